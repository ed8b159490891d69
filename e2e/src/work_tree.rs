//! A person's clone of a repository: what somebody who deploys by git does, and what an auditor reads.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{Command, Output};
use crate::git_server::isolated;

/// A clone, with the branch that was checked out.
pub struct WorkTree {
    dir: PathBuf,
    branch: String,
    environment: Vec<(String, String)>,
}

/// One commit, as `git log` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// The commit.
    pub sha: String,
    /// The first paragraph of its message.
    pub subject: String,
    /// The rest of its message, trailers included.
    pub body: String,
}

impl LogEntry {
    /// The value of the last trailer of this name.
    #[must_use]
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| -> Option<usize> {
            let (found, _) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(found.len() + 2)
        };
        self.body.lines().rev().find_map(|line| value(line).map(|from| &line[from..]))
    }
}

impl WorkTree {
    /// Clones `url`, which may be empty or contain a user and a password, into the new folder `dir`.
    pub async fn clone(url: &str, dir: impl Into<PathBuf>) -> Result<Self> {
        Self::clone_with(url, dir, Vec::new()).await
    }

    /// The same, with what git needs in its environment to talk to that server, then and later.
    pub async fn clone_with(url: &str, dir: impl Into<PathBuf>, environment: Vec<(String, String)>) -> Result<Self> {
        let dir = dir.into();
        let parent = dir.parent().with_context(|| format!("{} is no folder for a clone", dir.display()))?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let clone = isolated(parent).args(["clone", "--quiet", url]).arg(&dir);
        environment.iter().fold(clone, |git, (name, value)| git.env(name, value)).ok().await?;
        let head = isolated(&dir).args(["symbolic-ref", "--short", "HEAD"]).ok().await?;
        Ok(Self { dir, branch: head.trim().to_owned(), environment })
    }

    /// Where its files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file and the folders above it.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let file = self.inside(path)?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Deletes a file.
    pub fn remove(&self, path: &str) -> Result<()> {
        let file = self.inside(path)?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
    }

    /// Commits everything that changed, and gives the commit.
    pub async fn commit(&self, message: &str) -> Result<String> {
        self.git().args(["add", "--all"]).ok().await?;
        self.git().args(["commit", "--quiet", "--file=-"]).input(message).ok().await?;
        self.head().await
    }

    /// Commits the opposite of `sha`, as a person does who stops a deployment, and gives the commit.
    pub async fn revert(&self, sha: &str) -> Result<String> {
        self.git().args(["revert", "--no-edit", sha]).ok().await?;
        self.head().await
    }

    /// The commit that is checked out.
    pub async fn head(&self) -> Result<String> {
        Ok(self.git().args(["rev-parse", "HEAD"]).ok().await?.trim().to_owned())
    }

    /// Makes a new branch here and checks it out; [`WorkTree::push`] pushes it from now on.
    pub async fn branch(&mut self, name: &str) -> Result<()> {
        self.git().args(["checkout", "--quiet", "-b", name]).ok().await?;
        self.branch = name.to_owned();
        Ok(())
    }

    /// Pushes the branch that is checked out.
    pub async fn push(&self) -> Result<()> {
        self.git().args(["push", "--quiet", "origin", &format!("HEAD:refs/heads/{}", self.branch)]).ok().await?;
        Ok(())
    }

    /// Sets the branch back to `sha` here and on the server, whatever came after it: history that is forced.
    pub async fn force_back(&self, sha: &str) -> Result<()> {
        self.git().args(["reset", "--quiet", "--hard", sha]).ok().await?;
        self.git()
            .args(["push", "--quiet", "--force", "origin", &format!("HEAD:refs/heads/{}", self.branch)])
            .ok()
            .await?;
        Ok(())
    }

    /// The lines that differ between a commit and what is checked out.
    pub async fn changed_since(&self, sha: &str) -> Result<Vec<String>> {
        let text = self.git().args(["diff", "--unified=0", "--no-color", sha, "HEAD"]).ok().await?;
        let changed =
            |line: &&str| line.starts_with(['+', '-']) && !line.starts_with("+++") && !line.starts_with("---");
        Ok(text.lines().filter(changed).map(str::to_owned).collect())
    }

    /// Brings the branch to what the server has.
    pub async fn pull(&self) -> Result<String> {
        self.git().args(["pull", "--quiet", "--ff-only", "origin", &self.branch]).ok().await?;
        self.head().await
    }

    /// The commits of a branch as the server has it now, newest first; none when there is no such branch.
    pub async fn log(&self, branch: &str) -> Result<Vec<LogEntry>> {
        let Some(tip) = self.tip(branch).await? else { return Ok(Vec::new()) };
        let text = self.git().args(["log", "--format=%H%x1f%s%x1f%b%x1e", &tip, "--"]).ok().await?;
        text.split('\u{1e}').map(str::trim_start).filter(|record| !record.is_empty()).map(entry).collect()
    }

    /// Checks that `sha` is signed by a key of this file of allowed signers.
    pub async fn verify_signature(&self, sha: &str, allowed: &Path) -> Result<()> {
        let file = format!("gpg.ssh.allowedSignersFile={}", allowed.display());
        self.git().args(["-c", &file, "verify-commit", sha]).ok().await?;
        Ok(())
    }

    /// A file of a branch as the server has it now; `None` when the branch or the file is not there.
    pub async fn file_at(&self, branch: &str, path: &str) -> Result<Option<String>> {
        let Some(tip) = self.tip(branch).await? else { return Ok(None) };
        let object = format!("{tip}:{path}");
        let Output { code, .. } = self.git().args(["cat-file", "-e", &object]).output().await?;
        if code != Some(0) {
            return Ok(None);
        }
        Ok(Some(self.git().args(["cat-file", "blob", &object]).ok().await?))
    }

    /// The paths of all files of a branch as the server has it now.
    pub async fn files(&self, branch: &str) -> Result<Vec<String>> {
        let Some(tip) = self.tip(branch).await? else { return Ok(Vec::new()) };
        let text = self.git().args(["ls-tree", "-r", "-z", "--name-only", &tip]).ok().await?;
        Ok(text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
    }

    /// Fetches, and gives the commit that `branch` points to on the server.
    async fn tip(&self, branch: &str) -> Result<Option<String>> {
        self.git().args(["fetch", "--quiet", "--prune", "origin", "+refs/heads/*:refs/remotes/origin/*"]).ok().await?;
        let name = format!("refs/remotes/origin/{branch}");
        let found = self.git().args(["rev-parse", "--verify", "--quiet", &name]).output().await?;
        Ok((found.code == Some(0)).then(|| found.stdout.trim().to_owned()))
    }

    fn git(&self) -> Command {
        let mut git = isolated(&self.dir);
        for (name, value) in &self.environment {
            git = git.env(name, value);
        }
        for role in ["AUTHOR", "COMMITTER"] {
            git = git
                .env(&format!("GIT_{role}_NAME"), "Robin Developer")
                .env(&format!("GIT_{role}_EMAIL"), "robin@shop.test");
        }
        git
    }

    fn inside(&self, path: &str) -> Result<PathBuf> {
        if path.is_empty() || !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
            bail!("`{path}` is not a path inside the repository");
        }
        Ok(self.dir.join(path))
    }
}

fn entry(record: &str) -> Result<LogEntry> {
    let mut fields = record.splitn(3, '\u{1f}').map(|field| field.trim_end().to_owned());
    let (Some(sha), Some(subject), Some(body)) = (fields.next(), fields.next(), fields.next()) else {
        bail!("`git log` answered with something that is no commit: {record}");
    };
    Ok(LogEntry { sha, subject, body })
}
