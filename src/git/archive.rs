//! A clone on this machine, opened to be read only: which ledgers are in it, and which commits each is made of.
//!
//! A clone may come from anybody, and a repository's own configuration can name programs that git runs. So only
//! references are read from the clone itself; for all else git runs in an empty repository of our own that borrows
//! the clone's objects. Replacements, grafts and caches of the clone have no say either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::cache::Store;
use super::command::{Git, storage};
use super::epoch::Epoch;
use super::error::{GitError, Missing, Result};
use super::history::{History, Segment, Trailers};
use crate::api::names;

/// A repository on this machine, bare or not.
pub struct Archive {
    pub(super) git: Git,
    references: BTreeMap<String, String>,
    /// Where git runs; it goes with us.
    _scratch: tempfile::TempDir,
}

/// The branches of one cluster's ledger, as they are in a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedLedger {
    /// The cluster.
    pub cluster: String,
    /// The branches, oldest epoch first. There is at least one.
    pub branches: Vec<ArchivedBranch>,
}

/// One branch, as it is in a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedBranch {
    /// Which epoch it is.
    pub epoch: Epoch,
    /// `rollout-log/<cluster>`.
    pub name: String,
    /// Its tip. When the clone has several references to one branch, the tip that holds the most.
    pub tip: String,
    /// Where else the clone says this branch to be, and at which tip.
    pub elsewhere: BTreeMap<String, String>,
}

/// The way through a ledger: from its first commit to the newest tip, across epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Oldest first.
    pub segments: Vec<Segment>,
    /// The oldest segment begins an epoch that goes on from this branch and tip, which are not in the clone.
    pub missing: Option<(String, String)>,
}

impl Archive {
    /// Opens a clone: the folder with its `.git`, or a bare repository.
    pub async fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let missing =
            || GitError::NotFound { what: Missing::Repository, name: shown.clone(), remote: "this machine".to_owned() };
        let path = path.canonicalize().map_err(|_| missing())?;
        let directory = [path.join(".git"), path].into_iter().find(|path| path.exists()).ok_or_else(missing)?;
        let clone = Git { remote: shown.clone(), ..Store::local(directory).git() };
        let arguments = ["rev-parse", "--is-shallow-repository", "--show-object-format", "--git-path", "objects"];
        let answer = clone.call("opening the repository", arguments).output().await?;
        let text = String::from_utf8_lossy(&answer.stdout);
        let lines: Vec<&str> = text.lines().collect();
        let ([shallow, format, objects], true) = (lines.as_slice(), answer.success) else { return Err(missing()) };
        if *shallow == "true" {
            let reason = "its history is cut off: fetch the rest with git fetch --unshallow".to_owned();
            return Err(GitError::Unreadable { path: shown, reason });
        }
        let arguments = ["for-each-ref", "--format=%(objectname)%09%(refname)", "refs/heads/", "refs/remotes/"];
        let listed = clone.call("reading the branches", arguments).most_output(256 * 1024 * 1024).run().await?;
        let listed = String::from_utf8_lossy(&listed);
        let references = listed.lines().filter_map(|line| line.split_once('\t'));
        let references = references.map(|(tip, name)| (name.to_owned(), tip.to_owned())).collect();

        let scratch = tempfile::tempdir().map_err(storage)?;
        let mut git = Git { remote: shown, ..Store::local(scratch.path().join("git")).git() };
        let kind = format!("--object-format={format}");
        let init = ["init", "--quiet", "--bare", "--template=", "--initial-branch=none", &kind];
        git.call("opening the repository", init).run().await?;
        git.environment.push(("GIT_OBJECT_DIRECTORY".to_owned(), (*objects).into()));
        // Written by whoever made the clone, and believed by git without a look at the commits.
        git.options.push("core.commitGraph=false".to_owned());
        Ok(Self { git, references, _scratch: scratch })
    }

    /// The ledgers in it: that of one cluster, or all.
    pub async fn ledgers(&self, cluster: Option<&str>) -> Result<Vec<ArchivedLedger>> {
        let mut found: BTreeMap<(String, Epoch), BTreeMap<String, String>> = BTreeMap::new();
        for (reference, tip) in &self.references {
            let Some(branch) = branch_of(reference).filter(|branch| branch.starts_with(names::LOG_BRANCH_PREFIX))
            else {
                continue;
            };
            let name = branch.trim_start_matches(names::LOG_BRANCH_PREFIX).split('@').next().unwrap_or_default();
            let Some(epoch) = Epoch::parse(name, branch) else { continue };
            if cluster.is_none_or(|cluster| cluster == name) {
                found.entry((name.to_owned(), epoch)).or_default().insert(reference.clone(), tip.clone());
            }
        }
        let mut ledgers: Vec<ArchivedLedger> = Vec::new();
        for ((cluster, epoch), mut elsewhere) in found {
            let (reference, tip) = self.longest(&elsewhere).await?;
            elsewhere.remove(&reference);
            elsewhere.retain(|_, other| *other != tip);
            let branch = ArchivedBranch { epoch, name: epoch.branch(&cluster), tip, elsewhere };
            match ledgers.last_mut().filter(|ledger| ledger.cluster == cluster) {
                Some(ledger) => ledger.branches.push(branch),
                None => ledgers.push(ArchivedLedger { cluster, branches: vec![branch] }),
            }
        }
        if ledgers.is_empty() {
            let name = format!("{}{}", names::LOG_BRANCH_PREFIX, cluster.unwrap_or("*"));
            return Err(GitError::NotFound { what: Missing::Branch, name, remote: self.git.remote.clone() });
        }
        Ok(ledgers)
    }

    /// Of several references to one branch, the one whose tip holds the others, if there is one. What a remote has
    /// counts before a branch that somebody once checked out.
    async fn longest(&self, references: &BTreeMap<String, String>) -> Result<(String, String)> {
        let mut longest =
            references.iter().next_back().map(|(name, tip)| (name.clone(), tip.clone())).unwrap_or_default();
        for (name, tip) in references.iter().rev().skip(1) {
            if *tip != longest.1 && super::ledger::is_ancestor(&self.git, &longest.1, tip).await? {
                longest = (name.clone(), tip.clone());
            }
        }
        Ok(longest)
    }

    /// From the newest branch back to the first commit of all, by what the first commit of each epoch cites.
    pub async fn chain(&self, ledger: &ArchivedLedger) -> Result<Chain> {
        match ledger.branches.last() {
            Some(newest) => chain(&self.git, &newest.name, &newest.tip).await,
            None => Ok(Chain::default()),
        }
    }

    /// The commits of these segments, oldest first.
    pub async fn history(&self, segments: Vec<Segment>) -> Result<History> {
        History::of(&self.git, segments).await
    }

    /// What a file on a branch holds; none when there is no such branch or file.
    pub async fn file(&self, branch: &str, path: &str) -> Result<Option<Vec<u8>>> {
        let references = self.references.iter().rev();
        let Some((_, tip)) = references.into_iter().find(|(name, _)| branch_of(name) == Some(branch)) else {
            return Ok(None);
        };
        let name = format!("{tip}:{path}");
        let output = self.git.call(format!("reading {path}"), ["cat-file", "blob", &name]).output().await?;
        Ok(output.success.then_some(output.stdout))
    }
}

/// From a tip back to the first commit of all, by what the first commit of each epoch cites.
pub(super) async fn chain(git: &Git, branch: &str, tip: &str) -> Result<Chain> {
    let mut chain = Chain::default();
    let mut next = Some((branch.to_owned(), tip.to_owned()));
    let mut seen = BTreeSet::new();
    while let Some((branch, tip)) = next.take() {
        // What cites itself is no ledger; its checks will say so.
        if !seen.insert(tip.clone()) {
            break;
        }
        // Anybody may have written what is cited: nothing but a commit's name may reach git.
        if !is_object_name(&tip) || !super::ledger::exists(git, &tip).await? {
            chain.missing = Some((branch, tip));
            break;
        }
        let arguments = ["rev-list", "--max-parents=0", "--first-parent", &tip, "--"];
        let root = git.call("looking for the first commit", arguments).line().await?;
        let message = git.call("reading the first commit", ["cat-file", "commit", &root]).run().await?;
        let trailers = Trailers::parse(&String::from_utf8_lossy(&message));
        let cited = trailers.get("Prev-Epoch").and_then(|cited| cited.split_once(' '));
        next = cited.map(|(branch, tip)| (branch.to_owned(), tip.to_owned()));
        chain.segments.insert(0, Segment { branch, tip, after: None });
    }
    Ok(chain)
}

/// The branch that a reference stands for. A remote's name may hold slashes itself, so the ledger's prefix decides.
fn branch_of(reference: &str) -> Option<&str> {
    if let Some(branch) = reference.strip_prefix("refs/heads/") {
        return Some(branch);
    }
    let rest = reference.strip_prefix("refs/remotes/")?;
    match rest.find(&format!("/{}", names::LOG_BRANCH_PREFIX)) {
        Some(at) => rest.get(at + 1..),
        None => rest.split_once('/').map(|(_, branch)| branch),
    }
}

pub(super) fn is_object_name(text: &str) -> bool {
    [40, 64].contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
