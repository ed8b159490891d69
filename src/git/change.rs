//! Changes one file of a branch that people commit to: the commit is made without a checkout, and the branch only ever
//! moves forward. Whose file it is and what is in it is said by the caller.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::cache::{Repository, list_remote};
use super::command::storage;
use super::error::{GitError, Result};
use super::import::seconds;
use super::ledger::pushed;
use super::source::{Before, ReadLimits, tree_line};
use crate::api::names;

/// One commit that changes one file.
#[derive(Clone, Copy, Debug)]
pub struct FileChange<'a> {
    /// The commit it is made on: the tip of a branch, as [`Repository::read`] gave it.
    pub base: &'a str,
    /// The file, from the root of the repository. It is there.
    pub path: &'a str,
    /// All that is to be in it.
    pub content: &'a str,
    /// The message.
    pub message: &'a str,
    /// `Name <mail>`.
    pub author: &'a str,
    /// When. The same change at the same time is the same commit, so one that is repeated after a crash is no second one.
    pub at: DateTime<Utc>,
}

impl Repository {
    /// The manifests as they were before a commit, and that commit's subject. The server must give commits by name.
    pub async fn read_before(&self, commit: &str, path: Option<&str>, limits: &ReadLimits) -> Result<Before> {
        if !super::archive::is_object_name(commit) {
            let reason = "it is no name of a commit".to_owned();
            return Err(GitError::InvalidName { field: "commit", value: commit.to_owned(), reason });
        }
        self.read_parent(commit, path, limits).await
    }

    /// The branches of all ledgers in this repository.
    pub async fn log_branches(&self) -> Result<BTreeSet<String>> {
        let git = self.remote.git(None, &self.home);
        let pattern = format!("refs/heads/{}*", names::LOG_BRANCH_PREFIX);
        let answer = list_remote(&git, names::LOG_BRANCH_PREFIX, &[&pattern], self.timeouts.ask).await?;
        let answer = String::from_utf8_lossy(&answer);
        let names = answer.lines().filter_map(|line| line.split_once("\trefs/heads/"));
        Ok(names.map(|(_, name)| name.to_owned()).collect())
    }

    /// Makes the commit and pushes it to a branch, which goes forward to it or is begun by it. Gives the commit.
    ///
    /// # Errors
    /// `Rejected` when the branch has moved on meanwhile, or somebody refuses the push.
    pub async fn push_change(&self, branch: &str, change: FileChange<'_>) -> Result<String> {
        super::address::check_branch("branch", branch)?;
        let store = self.stores.source.lock().await;
        let own = store.git();
        let FileChange { base, path, content, message, author, at } = change;
        let listed = own.call("looking for the file", ["ls-tree", "-z", "--full-tree", base, "--", path]).run().await?;
        let listed = String::from_utf8_lossy(&listed);
        let Some((mode @ ("100644" | "100755"), _, _)) = listed.split('\0').find_map(tree_line) else {
            return Err(GitError::Unreadable { path: path.to_owned(), reason: "it is no plain file".to_owned() });
        };
        let scratch = tempfile::tempdir_in(&self.home).map_err(storage)?;
        let mut git = own.clone();
        git.environment.push(("GIT_INDEX_FILE".to_owned(), scratch.path().join("index").into()));
        let doing = "writing the change";
        let blob = git.call(doing, ["hash-object", "-w", "--stdin"]).input(content).line().await?;
        git.call(doing, ["read-tree", base]).run().await?;
        let entry = format!("{mode},{blob},{path}");
        git.call(doing, ["update-index", "--cacheinfo", &entry]).run().await?;
        // Files that nobody has read yet are not here, and need not be: the server has them.
        let tree = git.call(doing, ["write-tree", "--missing-ok"]).line().await?;
        let (name, mail) = author.trim_end_matches('>').split_once(" <").unwrap_or((author, ""));
        let date = format!("{} +0000", seconds(at));
        for role in ["AUTHOR", "COMMITTER"] {
            git.environment.push((format!("GIT_{role}_NAME"), name.into()));
            git.environment.push((format!("GIT_{role}_EMAIL"), mail.into()));
            git.environment.push((format!("GIT_{role}_DATE"), date.clone().into()));
        }
        let commit = git.call(doing, ["commit-tree", &tree, "-p", base, "-F", "-"]).input(message).line().await?;
        let remote = super::source::partial(store.git_with(&self.remote));
        let refspec = format!("{commit}:refs/heads/{branch}");
        let arguments = ["push", "--porcelain", "--no-follow-tags", "--", "origin", &refspec];
        let doing = format!("pushing the branch {branch}");
        let output = remote.call(doing.clone(), arguments).limit(self.timeouts.push).output().await?;
        pushed(&remote, &doing, branch, &output)?;
        Ok(commit)
    }
}
