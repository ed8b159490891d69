//! Reads the manifests of one branch and folder: a shallow fetch without files, then only the files needed.
//!
//! Nothing is checked out, so no link is followed, no filter runs and no file name can lead out of a directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::address::{check_branch, check_path};
use super::cache::{Remote, Repository, Store, Timeouts, remote_head};
use super::command::{Git, disk_use};
use super::error::{GitError, Missing, Result};

/// What may be read at most.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Files.
    pub files: usize,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Bytes that the local copy may take on disk.
    pub disk_bytes: u64,
    /// Time for each fetch; the cache's own limit when absent.
    pub fetch: Option<Duration>,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            files: 10_000,
            file_bytes: 4 * 1024 * 1024,
            bytes: 64 * 1024 * 1024,
            disk_bytes: 1024 * 1024 * 1024,
            fetch: None,
        }
    }
}

/// The manifests of one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The commit at the tip of the branch.
    pub commit: String,
    /// The files, by path.
    pub files: Vec<SourceFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path from the root of the repository.
    pub path: String,
    /// What is in it.
    pub content: String,
}

/// One regular file in a tree.
struct Entry {
    object: String,
    path: String,
}

/// After so many fetches the copy is made anew, which is cheaper than tidying it.
const MOST_PACKS: usize = 200;

impl Repository {
    /// The `*.yaml`, `*.yml` and `*.json` files of a branch below a path. Links, submodules and everything
    /// whose name or folder begins with a dot are left out.
    pub async fn read(&self, branch: &str, path: Option<&str>, limits: &ReadLimits) -> Result<Source> {
        check_branch("branch", branch)?;
        let path = check_path(path)?;
        let mut store = self.stores.source.lock().await;
        let mut reading = Reading { remote: &self.remote, timeouts: self.timeouts, branch, path, limits };
        match reading.read(&mut store).await {
            Err(GitError::Corrupt { detail, .. }) => {
                tracing::warn!(repository = %self.remote.address, detail, "the local copy is damaged and made anew");
                store.discard()?;
                reading.read(&mut store).await
            }
            result => result,
        }
    }
}

/// Manifests as they were before a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    /// The commit before it.
    pub source: Source,
    /// The first line of its message.
    pub subject: String,
}

impl Repository {
    /// The manifests of the first parent of a commit.
    pub(super) async fn read_parent(&self, commit: &str, path: Option<&str>, limits: &ReadLimits) -> Result<Before> {
        let path = check_path(path)?;
        let mut store = self.stores.source.lock().await;
        let mut reading = Reading { remote: &self.remote, timeouts: self.timeouts, branch: commit, path, limits };
        reading.tidy(&store)?;
        store.prepare().await?;
        let git = store.git_with(&self.remote);
        let options: &[&str] = if store.whole { &["--no-filter"] } else { &["--filter=blob:none"] };
        let arguments = ["fetch", "--quiet", "--depth=2", "--no-tags", "--no-write-fetch-head"].iter().chain(options);
        let arguments = arguments.chain(&["--", "origin", commit]).map(|&option| option.to_owned()).collect();
        let git = if store.whole { git } else { partial(git) };
        let packs = store.directory.join("objects/pack");
        reading.fetching(&git, arguments, Vec::new(), &packs).await?;
        let own = store.git();
        let subject = own.call("reading the commit", ["log", "-1", "--format=%s", commit, "--"]).line().await?;
        let parent = own.call("looking for the commit before", ["rev-parse", "--verify", &format!("{commit}^")]);
        let commit = parent.line().await?;
        let source = reading.read_at(&mut store, commit).await?;
        Ok(Before { source, subject })
    }
}

struct Reading<'a> {
    remote: &'a Remote,
    timeouts: Timeouts,
    branch: &'a str,
    path: Option<String>,
    limits: &'a ReadLimits,
}

impl Reading<'_> {
    async fn read(&mut self, store: &mut Store) -> Result<Source> {
        self.tidy(store)?;
        store.prepare().await?;
        let commit = self.fetch(store).await?;
        self.read_at(store, commit).await
    }

    /// The manifests of a commit that is here.
    async fn read_at(&mut self, store: &mut Store, commit: String) -> Result<Source> {
        let entries = self.entries(store, &commit).await?;
        let contents = match self.contents(store, &entries).await {
            Err(GitError::Failed { detail, .. }) if !store.whole && detail.contains("unadvertised object") => {
                tracing::info!(repository = %self.remote.address, "the server gives no single files: all are fetched");
                store.discard()?;
                store.whole = true;
                store.prepare().await?;
                self.fetch(store).await?;
                self.contents(store, &entries).await?
            }
            contents => contents?,
        };
        let mut files = Vec::with_capacity(entries.len());
        for (entry, content) in entries.into_iter().zip(contents) {
            let content = String::from_utf8(content).map_err(|_| GitError::NotText { path: entry.path.clone() })?;
            files.push(SourceFile { path: entry.path, content });
        }
        Ok(Source { commit, files })
    }

    fn tidy(&self, store: &Store) -> Result<()> {
        let packs = store.directory.join("objects/pack");
        let count = std::fs::read_dir(&packs).map_or(0, |entries| entries.count());
        if count / 3 > MOST_PACKS || disk_use(&packs) > self.limits.disk_bytes / 2 {
            store.discard()?;
        }
        Ok(())
    }

    /// Brings the tip of the branch; its files only if the server cannot leave them out.
    async fn fetch(&self, store: &mut Store) -> Result<String> {
        let git = store.git_with(self.remote);
        let packs = store.directory.join("objects/pack");
        let missing = || GitError::NotFound {
            what: Missing::Branch,
            name: self.branch.to_owned(),
            remote: self.remote.address.to_string(),
        };
        let head = remote_head(&git, self.branch, self.timeouts.ask).await?.ok_or_else(missing)?;
        let local = format!("refs/sluice/source/{}", self.branch);
        let own = store.git();
        let known =
            own.call("looking at the local copy", ["rev-parse", "--verify", "--quiet", &local]).output().await?;
        if known.success && String::from_utf8_lossy(&known.stdout).trim() == head {
            return Ok(head);
        }
        let refspec = format!("+refs/heads/{}:{local}", self.branch);
        let arguments = |options: &[&'static str]| {
            let common = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head"];
            let mut all: Vec<String> = common.iter().chain(options).map(|&option| option.to_owned()).collect();
            all.extend(["--".to_owned(), "origin".to_owned(), refspec.clone()]);
            all
        };
        let whole = store.whole;
        let attempt = if whole {
            self.fetching(&git, arguments(&["--no-filter"]), Vec::new(), &packs).await
        } else {
            self.fetching(&partial(git.clone()), arguments(&["--filter=blob:none"]), Vec::new(), &packs).await
        };
        match attempt {
            Err(GitError::Failed { detail, .. }) if !whole && detail.contains("filter") => {
                store.discard()?;
                store.whole = true;
                store.prepare().await?;
                self.fetching(&git, arguments(&["--no-filter"]), Vec::new(), &packs).await?;
            }
            result => result?,
        }
        // The branch may have moved on since it was asked for.
        own.call("looking at the local copy", ["rev-parse", "--verify", &local]).line().await
    }

    async fn fetching(&self, git: &Git, arguments: Vec<String>, input: Vec<u8>, packs: &Path) -> Result<()> {
        let call = git.call(format!("fetching the branch {}", self.branch), arguments);
        let call = call.input(input).limit(self.limits.fetch.unwrap_or(self.timeouts.fetch));
        call.most_disk(packs.to_owned(), self.limits.disk_bytes).run().await?;
        Ok(())
    }

    /// The regular manifest files below the path.
    async fn entries(&self, store: &Store, commit: &str) -> Result<Vec<Entry>> {
        let git = store.git();
        let mut listed = Vec::new();
        match &self.path {
            None => listed = self.list(&git, commit, "").await?,
            Some(path) => {
                let missing = || GitError::NotFound {
                    what: Missing::Path,
                    name: path.clone(),
                    remote: self.remote.address.to_string(),
                };
                let arguments = ["ls-tree", "-z", "--full-tree", commit, "--", path];
                let answer = git.call("looking for the path", arguments).run().await?;
                let answer = String::from_utf8_lossy(&answer);
                let (mode, object, _) = answer.split('\0').find_map(tree_line).ok_or_else(missing)?;
                match mode {
                    "040000" => listed = self.list(&git, object, &format!("{path}/")).await?,
                    "100644" | "100755" => listed.push(Entry { object: object.to_owned(), path: path.clone() }),
                    // A link or a submodule: not followed, so for us there is nothing.
                    _ => return Err(missing()),
                }
            }
        }
        if listed.len() > self.limits.files {
            return Err(GitError::TooLarge {
                what: "the number of manifests".to_owned(),
                limit: format!("{} files", self.limits.files),
            });
        }
        Ok(listed)
    }

    async fn list(&self, git: &Git, tree: &str, prefix: &str) -> Result<Vec<Entry>> {
        let call = git.call("listing the manifests", ["ls-tree", "-r", "-z", "--full-tree", tree]);
        let answer = call.most_output(64 * 1024 * 1024).run().await?;
        let mut entries = Vec::new();
        for line in answer.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            let Ok(line) = std::str::from_utf8(line) else {
                // Only a name that is not text cannot be decoded; is it a manifest's?
                let line = String::from_utf8_lossy(line);
                match tree_line(&line) {
                    Some((mode, _, path)) if mode.starts_with("100") && is_manifest(path) => {
                        return Err(GitError::NotText { path: path.to_owned() });
                    }
                    _ => continue,
                }
            };
            if let Some(("100644" | "100755", object, path)) = tree_line(line)
                && is_manifest(path)
            {
                entries.push(Entry { object: object.to_owned(), path: format!("{prefix}{path}") });
            }
        }
        Ok(entries)
    }

    /// The content of each entry, in order. Brings what is not here yet.
    async fn contents(&self, store: &Store, entries: &[Entry]) -> Result<Vec<Vec<u8>>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let git = store.git();
        let sizes = self.sizes(&git, entries).await?;
        let absent: BTreeSet<&str> =
            entries.iter().zip(&sizes).filter(|(_, size)| size.is_none()).map(|(entry, _)| &*entry.object).collect();
        let sizes = if absent.is_empty() {
            sizes
        } else {
            let wanted = absent.iter().fold(String::new(), |all, object| all + object + "\n");
            let options = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin"];
            let arguments = options.iter().chain(&["--", "origin"]).map(|&option| option.to_owned()).collect();
            let mut remote = partial(store.git_with(self.remote));
            remote.options.push("fetch.negotiationAlgorithm=noop".to_owned());
            self.fetching(&remote, arguments, wanted.into_bytes(), &store.directory.join("objects/pack")).await?;
            self.sizes(&git, entries).await?
        };
        let mut total = 0u64;
        for (entry, size) in entries.iter().zip(&sizes) {
            let size = size.ok_or_else(|| GitError::Corrupt {
                remote: self.remote.address.to_string(),
                detail: format!("{} was not brought by the fetch", entry.path),
            })?;
            total = total.saturating_add(size);
            let too_large =
                |what: String, limit: u64| Err(GitError::TooLarge { what, limit: format!("{limit} bytes") });
            if size > self.limits.file_bytes {
                return too_large(format!("the file {:?}", entry.path), self.limits.file_bytes);
            }
            if total > self.limits.bytes {
                return too_large("the manifests together".to_owned(), self.limits.bytes);
            }
        }
        let wanted: Vec<&str> = entries.iter().map(|entry| &*entry.object).collect();
        read_objects(&git, &wanted, total).await
    }

    /// The size of each entry; `None` for what is not here.
    async fn sizes(&self, git: &Git, entries: &[Entry]) -> Result<Vec<Option<u64>>> {
        let wanted = entries.iter().fold(String::new(), |all, entry| all + &entry.object + "\n");
        let arguments = ["cat-file", "--batch-check=%(objectname) %(objectsize)"];
        let answer = git.call("measuring the manifests", arguments).input(wanted).run().await?;
        let answer = String::from_utf8_lossy(&answer);
        Ok(answer.lines().map(|line| line.split_once(' ').and_then(|(_, size)| size.parse().ok())).collect())
    }
}

/// The contents of objects, in order. Every one of them is here.
pub(super) async fn read_objects(git: &Git, objects: &[&str], total: u64) -> Result<Vec<Vec<u8>>> {
    let wanted = objects.iter().fold(String::new(), |all, object| all + object + "\n");
    let most = usize::try_from(total).unwrap_or(usize::MAX).saturating_add(objects.len().saturating_mul(128));
    let call = git.call("reading files", ["cat-file", "--batch"]).input(wanted).most_output(most);
    let answer = call.run().await?;
    let damaged = || GitError::Corrupt { remote: git.remote.clone(), detail: "a file cannot be read".to_owned() };
    let mut contents = Vec::with_capacity(objects.len());
    let mut rest = answer.as_slice();
    for _ in objects {
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
        let header = String::from_utf8_lossy(&rest[..end]);
        let size: usize = header.rsplit(' ').next().and_then(|size| size.parse().ok()).ok_or_else(damaged)?;
        let content = rest.get(end + 1..end + 1 + size).ok_or_else(damaged)?;
        contents.push(content.to_vec());
        rest = rest.get(end + 2 + size..).ok_or_else(damaged)?;
    }
    Ok(contents)
}

/// As a partial clone, for this one call: written into the repository's configuration it would let any later
/// call fetch by itself.
pub(super) fn partial(mut git: Git) -> Git {
    git.options.extend(
        ["remote.origin.promisor=true", "remote.origin.partialclonefilter=blob:none", "fetch.unpackLimit=1"]
            .map(str::to_owned),
    );
    git
}

/// `mode type object\tpath`
pub(super) fn tree_line(line: &str) -> Option<(&str, &str, &str)> {
    let (left, path) = line.split_once('\t')?;
    let mut words = left.split(' ');
    let (mode, _, object) = (words.next()?, words.next()?, words.next()?);
    Some((mode, object, path))
}

fn is_manifest(path: &str) -> bool {
    let ends = [".yaml", ".yml", ".json"].iter().any(|end| path.ends_with(end));
    ends && !path.split('/').any(|part| part.starts_with('.'))
}
