//! Whether a branch moved forward, or its history was rewritten.
//!
//! The copies for reading have no history, so commits alone are fetched, a bounded number of them, into a copy of their
//! own: in the copy for reading they would pass for having their files. What the bound leaves open is said to be open.

use std::collections::HashSet;
use std::time::Duration;

use super::address::check_branch;
use super::cache::{Repository, Store};
use super::error::{GitError, Result};
use super::source::partial;

/// How many commits before a tip are looked at.
const DEPTH: u32 = 512;
/// How many before the old tip: enough to reach below the end of the new one's, when it was set back or rebased.
const OLD_DEPTH: u32 = 2 * DEPTH;
/// How long one question may take: a revert waits for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that their copy may take on disk, in bytes.
const MOST_DISK: u64 = 128 * 1024 * 1024;
/// After so many fetches the copy is made anew.
const MOST_PACKS: usize = 50;

/// How a branch came from one commit to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// The old one is an ancestor of the new one.
    Forward,
    /// It is not.
    Rewritten,
    /// Too much history lies between them, or the server does not give it.
    Unknown,
}

impl Repository {
    /// How `branch` came from `old` to `new`, its tip or one of the commits before it. Asks the server when the answer
    /// does not follow from what is here: twice at most, for five seconds each.
    ///
    /// # Errors
    /// When the server cannot be asked, or our own copy not used.
    pub async fn descent(&self, branch: &str, old: &str, new: &str) -> Result<Descent> {
        check_branch("branch", branch)?;
        for commit in [old, new] {
            if !matches!(commit.len(), 40 | 64) || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                let reason = "is not the full name of a commit".to_owned();
                return Err(GitError::InvalidName {
                    field: "commit",
                    value: commit.chars().take(80).collect(),
                    reason,
                });
            }
        }
        if old == new || parents(&*self.stores.source.lock().await, new).await?.contains(old) {
            return Ok(Descent::Forward);
        }
        let store = self.stores.commits.lock().await;
        let packs = store.directory.join("objects/pack");
        if std::fs::read_dir(&packs).map_or(0, |entries| entries.count()) / 3 > MOST_PACKS {
            store.discard()?;
        }
        store.prepare().await?;
        match compare(&store, old, new).await? {
            Descent::Unknown => {}
            known => return Ok(known),
        }
        let tip = format!("+refs/heads/{branch}:refs/sluice/commits/{branch}");
        self.fetch(&store, DEPTH, &tip).await?;
        match compare(&store, old, new).await? {
            Descent::Unknown => {}
            known => return Ok(known),
        }
        // A commit that no branch has: the server may have collected it, or not give it.
        match self.fetch(&store, OLD_DEPTH, old).await {
            Ok(()) | Err(GitError::Failed { .. } | GitError::Corrupt { .. }) => compare(&store, old, new).await,
            Err(error) => Err(error),
        }
    }

    async fn fetch(&self, store: &Store, depth: u32, what: &str) -> Result<()> {
        let git = partial(store.git_with(&self.remote));
        let depth = format!("--depth={depth}");
        let options = ["fetch", "--quiet", &depth, "--filter=tree:0", "--no-tags", "--no-write-fetch-head", "--"];
        let call = git.call("looking at the history", options.into_iter().chain(["origin", what]));
        let packs = store.directory.join("objects/pack");
        call.limit(self.timeouts.ask.min(PATIENCE)).most_disk(packs, MOST_DISK).run().await.map(drop)
    }
}

/// The parents of a commit, as it names them itself; none when it is not here.
async fn parents(store: &Store, commit: &str) -> Result<HashSet<String>> {
    if !store.directory.join("HEAD").exists() {
        return Ok(HashSet::new());
    }
    let git = store.git();
    let answer = git.call("reading the commit", ["cat-file", "commit", commit]).output().await?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let head = text.split("\n\n").next().unwrap_or_default().lines();
    Ok(head.filter_map(|line| line.strip_prefix("parent ").map(str::to_owned)).collect())
}

/// The commit and all that is here of what came before it; empty when it is not here.
async fn history(store: &Store, commit: &str) -> Result<HashSet<String>> {
    let git = store.git();
    let answer = git.call("listing the history", ["rev-list", commit, "--"]).output().await?;
    let lines = String::from_utf8_lossy(&answer.stdout).into_owned();
    Ok(if answer.success { lines.lines().map(str::to_owned).collect() } else { HashSet::new() })
}

async fn compare(store: &Store, old: &str, new: &str) -> Result<Descent> {
    let (before_new, before_old) = (history(store, new).await?, history(store, old).await?);
    if before_new.contains(old) {
        return Ok(Descent::Forward);
    }
    let shallow = std::fs::read_to_string(store.directory.join("shallow")).unwrap_or_default();
    // Where our knowledge of the new one's history ends. What comes before the old one does not come after it: if all
    // ends are such, the old one cannot be beyond them.
    let mut ends = shallow.lines().filter(|commit| before_new.contains(*commit));
    let closed = !before_new.is_empty() && ends.all(|end| before_old.contains(end));
    Ok(if closed || before_old.contains(new) { Descent::Rewritten } else { Descent::Unknown })
}
