//! The ledger: one branch, one writer, one commit per transition.
//!
//! Commits are built in our own bare repository without a work tree, and pushed as a plain fast-forward; nothing
//! is ever forced, merged or rebased. A push whose answer was lost is looked up before anything is pushed again,
//! by uid and number, so a transition is never written twice. A branch that is not as we left it is an incident: it
//! stays as it was found, the next epoch goes on from what we know, citing both, and people are told. That happens
//! once; a second time before they have looked, nothing is written any more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::address::check_branch;
use super::cache::{Remote, Repository, Store, Timeouts, list_remote};
use super::command::{Git, Output};
use super::epoch::Epoch;
use super::error::{GitError, Rejection, Result, Scrubber, classify, detail};
use super::import::{Import, NewCommit, seconds};
use super::ledger_entry::{LedgerEntry, Place, Rendered, StateFile, folder, overview, state_path};
use super::signing::Signer;
use super::source::{read_objects, tree_line};
use crate::api::{Epochs, PodTemplate, RolloutStatus};

/// What one ledger holds is read into memory whole; more than this is refused.
const LARGEST_TREE: usize = 64 * 1024 * 1024;
/// After so many appends our own repository is tidied.
const TIDY_AFTER: u32 = 100;

/// The name that stands in every commit, as author and as committer.
const WRITER: &str = "Sluice";
/// What the first commit of an epoch says of the branch before it.
const CITATION: &str = "--format=%(trailers:key=Rollout-Prev-Epoch,valueonly,separator=%x20)";

type Key = (String, String);

/// The ledger of one cluster in one repository.
pub struct Ledger {
    cluster: String,
    policy: LedgerPolicy,
    store: Arc<tokio::sync::Mutex<Store>>,
    remote: Option<Arc<Remote>>,
    timeouts: Timeouts,
    /// Whether this process may write at this moment.
    leads: Arc<dyn Fn() -> bool + Send + Sync>,
    memory: tokio::sync::Mutex<Memory>,
}

/// How a ledger is written.
#[derive(Clone, Debug, Default)]
pub struct LedgerPolicy {
    /// When a new branch is begun.
    pub epochs: Epochs,
    /// Signs the last commit of each push.
    pub signer: Option<Signer>,
    /// The branch that was begun after a fork, once people have looked at it.
    pub acknowledged_fork: Option<String>,
}

/// The branch was not as we left it, and another one was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The branch that is written since, or will be with the next transition.
    pub branch: String,
    /// The one that is not as we left it.
    pub previous: String,
    /// The tip that it should have or contain.
    pub expected: String,
    /// The tip it has instead, or `gone`.
    pub found: String,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The branch that is written.
    pub branch: String,
    /// Its tip, if it exists.
    pub tip: Option<String>,
    /// It was begun after a fork that nobody has acknowledged.
    pub fork: Option<Fork>,
    /// The transitions asked for, as uid and number: each of them is in the ledger now.
    pub recorded: Vec<(String, i64)>,
}

/// What the ledger says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerContents {
    /// The branch that is written.
    pub branch: String,
    /// Its tip; none while nothing was ever recorded.
    pub tip: Option<String>,
    /// It was begun after a fork that nobody has acknowledged.
    pub fork: Option<Fork>,
    /// Each Rollout, by namespace and name.
    pub rollouts: BTreeMap<(String, String), RecordedRollout>,
}

/// What the ledger says of one Rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordedRollout {
    /// The uid of the last one that had this name.
    pub uid: String,
    /// The number of its last recorded transition.
    pub sequence: i64,
    /// Revisions that were aborted, and why.
    pub aborted: BTreeMap<String, String>,
    /// How often each revision was aborted since it was last promoted; also those that are not held back any more.
    pub aborts: BTreeMap<String, i32>,
    /// The last revision that was promoted, with its template if that was recorded.
    pub last_good: Option<(String, Option<PodTemplate>)>,
    /// Its state after that transition, without the outbox and what is observed; none when it was too large to record.
    pub status: Option<RolloutStatus>,
}

#[derive(Default)]
struct Memory {
    /// What the branch holds; `None` until it was looked at, and after any result that is not certain.
    known: Option<Known>,
    /// The last tip that is certain to be in the ledger, and its branch.
    confirmed: Option<(Epoch, String)>,
    /// What may have been pushed without an answer.
    attempted: BTreeSet<Attempt>,
    /// The branch was looked at since this writer began. Before that, more of our own entries may be found.
    begun: bool,
    appends: u32,
}

/// What tells an entry of ours from anybody else's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Attempt {
    id: String,
    sequence: i64,
    uid: String,
}

impl Attempt {
    fn of(entry: &LedgerEntry) -> Self {
        Self { id: entry.id(), sequence: entry.transition.sequence, uid: entry.uid.clone() }
    }
}

#[derive(Clone, Default)]
struct Known {
    epoch: Epoch,
    tip: Option<String>,
    /// What the next commit begins before it.
    begins: Option<Beginning>,
    /// The epoch was begun after this fork.
    fork: Option<Fork>,
    /// The time of the newest transition.
    newest: Option<DateTime<Utc>>,
    states: BTreeMap<Key, StateFile>,
    aborted: BTreeMap<Key, BTreeMap<String, String>>,
    /// The objects of those files that go when a release is over, by path; an empty name until they are read from the ledger.
    files: BTreeMap<String, String>,
    /// The last commit of each Rollout, as far as it is known.
    commits: BTreeMap<Key, String>,
}

/// An epoch that is begun with the next commit.
#[derive(Clone)]
struct Beginning {
    /// The epoch before, and its last tip as we know it.
    previous: (Epoch, String),
    /// The newest one that exists.
    after: Epoch,
    basis: Basis,
}

/// What an epoch begins with.
#[derive(Clone)]
enum Basis {
    /// The tree of this commit: at a quarter's end.
    Tree(String),
    /// This commit with all its history: after a fork, so that what we had written stays in the repository.
    History(String),
    /// Nothing: all that was written is lost.
    Nothing,
}

impl Ledger {
    pub(super) fn remote(repository: &Repository, cluster: &str) -> Result<Self> {
        let mut ledger = Self::new(cluster, repository.stores.ledger.clone(), repository.timeouts)?;
        ledger.remote = Some(repository.remote.clone());
        Ok(ledger)
    }

    /// A ledger in a repository on this machine, which is made if it does not exist. For rehearsals: it is used
    /// without an operator, and from code that does not wait.
    pub fn local(directory: &Path, cluster: &str) -> Result<LocalLedger> {
        let store = Arc::new(tokio::sync::Mutex::new(Store::local(directory.to_owned())));
        let ledger = Self::new(cluster, store, Timeouts::default())?;
        Ok(LocalLedger { ledger, directory: directory.to_owned() })
    }

    /// Written in this way.
    #[must_use]
    pub fn with_policy(mut self, policy: LedgerPolicy) -> Self {
        self.policy = policy;
        self
    }

    fn new(cluster: &str, store: Arc<tokio::sync::Mutex<Store>>, timeouts: Timeouts) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if cluster.is_empty() || cluster.len() > 63 || !cluster.chars().all(plain) {
            let reason = "a cluster's name has 1 to 63 lower-case letters, digits, dashes and dots".to_owned();
            return Err(GitError::InvalidName { field: "cluster", value: cluster.chars().take(200).collect(), reason });
        }
        check_branch("cluster", &Epoch::First.branch(cluster))?;
        let memory = tokio::sync::Mutex::default();
        let policy = LedgerPolicy::default();
        Ok(Self {
            cluster: cluster.to_owned(),
            policy,
            store,
            remote: None,
            timeouts,
            leads: Arc::new(|| true),
            memory,
        })
    }

    /// Asks this before each try to write. A process that was stopped for a while finds what the next leader wrote
    /// meanwhile: that is no fork of the log, and nothing to answer with another branch.
    #[must_use]
    pub fn while_leading(mut self, leads: Arc<dyn Fn() -> bool + Send + Sync>) -> Self {
        self.leads = leads;
        self
    }

    /// The branch and the tip that this writer, or one before it, is known to have left: a ledger that does not hold
    /// it was rewritten. A branch that is none of this ledger's says nothing.
    #[must_use]
    pub fn expecting(mut self, left: Option<(&str, &str)>) -> Self {
        let epoch = |branch| Epoch::parse(&self.cluster, branch);
        self.memory.get_mut().confirmed = left.and_then(|(branch, tip)| Some((epoch(branch)?, tip.to_owned())));
        self
    }

    /// The branch that is written, as far as it is known.
    pub async fn branch(&self) -> String {
        let memory = self.memory.lock().await;
        let known = memory.known.as_ref().map(|known| known.epoch);
        known.or(memory.confirmed.as_ref().map(|(epoch, _)| *epoch)).unwrap_or_default().branch(&self.cluster)
    }

    /// Writes these transitions, in the order of their times, and pushes them. On success every one of them is
    /// in the ledger, whether written now or found there. On an error some may be; asking again is always safe.
    pub async fn append(&self, entries: &[LedgerEntry]) -> Result<Appended> {
        if let Some(foreign) = entries.iter().find(|entry| entry.cluster != self.cluster) {
            let reason = format!("this ledger is that of {}", self.cluster);
            return Err(GitError::InvalidName { field: "cluster", value: foreign.cluster.clone(), reason });
        }
        let mut memory = self.memory.lock().await;
        let store = self.store.lock().await;
        let mut result = self.try_append(&mut memory, &store, entries).await;
        if let Err(GitError::Corrupt { detail, .. }) = &result {
            self.start_over(&mut memory, &store, detail)?;
            result = self.try_append(&mut memory, &store, entries).await;
        }
        if result.is_err() && self.remote.is_some() {
            store.sweep();
        }
        result
    }

    /// What the ledger says, as it is in the repository now.
    pub async fn read(&self) -> Result<LedgerContents> {
        let mut memory = self.memory.lock().await;
        let store = self.store.lock().await;
        let mut result = self.try_read(&mut memory, &store).await;
        if let Err(GitError::Corrupt { detail, .. }) = &result {
            self.start_over(&mut memory, &store, detail)?;
            result = self.try_read(&mut memory, &store).await;
        }
        if result.is_err() && self.remote.is_some() {
            store.sweep();
        }
        result
    }

    fn start_over(&self, memory: &mut Memory, store: &Store, detail: &str) -> Result<()> {
        memory.known = None;
        if self.remote.is_none() {
            // This directory belongs to a person.
            return Err(GitError::Corrupt { remote: store.directory.display().to_string(), detail: detail.to_owned() });
        }
        tracing::warn!(cluster = self.cluster, detail, "the local copy of the ledger is damaged and made anew");
        store.discard()
    }

    async fn try_read(&self, memory: &mut Memory, store: &Store) -> Result<LedgerContents> {
        self.look(memory, store, &[]).await?;
        let known = memory.known.clone().unwrap_or_default();
        let mut contents = LedgerContents {
            branch: known.epoch.branch(&self.cluster),
            fork: self.alarm(&known),
            tip: known.tip.clone(),
            rollouts: BTreeMap::new(),
        };
        let mut wanted = Vec::new();
        for (key, state) in &known.states {
            let good = state.last_good.as_ref();
            let template = good.and_then(|_| {
                let mut files = known.files_of(key);
                files.find(|(path, _)| matches!(Place::parse(path), Some((_, Place::Good))))
            });
            wanted.extend(template.map(|(_, object)| (key.clone(), object.clone())));
            contents.rollouts.insert(
                key.clone(),
                RecordedRollout {
                    uid: state.uid.clone(),
                    sequence: state.sequence,
                    aborted: BTreeMap::new(),
                    aborts: state.aborts.iter().map(|known| (known.revision.clone(), known.aborts)).collect(),
                    last_good: good.map(|good| (good.revision.clone(), None)),
                    status: serde_json::from_value(state.status.clone()).ok(),
                },
            );
        }
        for (key, revisions) in known.aborted {
            contents.rollouts.entry(key).or_default().aborted = revisions;
        }
        let objects: Vec<&str> = wanted.iter().map(|(_, object)| object.as_str()).collect();
        let templates = read_objects(&store.git(), &objects, LARGEST_TREE as u64).await?;
        for ((key, _), template) in wanted.iter().zip(templates) {
            let template: Value = parse(&format!("the template of {}/{}", key.0, key.1), &template)?;
            if let Some((_, slot)) = contents.rollouts.get_mut(key).and_then(|recorded| recorded.last_good.as_mut()) {
                *slot = Some(PodTemplate(template));
            }
        }
        Ok(contents)
    }

    async fn try_append(&self, memory: &mut Memory, store: &Store, entries: &[LedgerEntry]) -> Result<Appended> {
        if memory.known.is_none() || self.remote.is_none() {
            self.look(memory, store, entries).await?;
        }
        for again in [true, true, false] {
            let mut known = memory.known.clone().unwrap_or_default();
            let pending: Vec<&LedgerEntry> = in_order(entries).into_iter().filter(|entry| !known.has(entry)).collect();
            let Some(first) = pending.first() else { return Ok(self.appended(&known, entries)) };
            if !(self.leads)() {
                memory.known = None;
                return Err(GitError::NotLeading);
            }
            memory.attempted.extend(pending.iter().map(|entry| Attempt::of(entry)));
            self.begin_epoch(&mut known, first.transition.at);
            let before = known.tip.clone().filter(|_| known.begins.is_none());
            let written = self.write(store, known, &pending).await?;
            let tip = written.tip.clone().unwrap_or_default();
            // From here on the result is uncertain until the server's answer is read.
            memory.known = None;
            match self.publish(store, written.epoch, before.as_deref(), &tip).await {
                Ok(()) => {
                    self.confirm(memory, store, written.epoch, &tip).await?;
                    let appended = self.appended(&written, entries);
                    memory.known = Some(written);
                    memory.attempted.clear();
                    memory.appends += 1;
                    if memory.appends.is_multiple_of(TIDY_AFTER) {
                        self.tidy(store).await;
                    }
                    return Ok(appended);
                }
                // Our own push of before, whose answer was lost, or an incident: looking tells which.
                Err(GitError::Rejected { why: Rejection::NonFastForward, .. }) if again => {
                    self.look(memory, store, entries).await?;
                }
                Err(error) => return Err(error),
            }
        }
        let (epoch, tip) = memory.confirmed.clone().unwrap_or_default();
        Err(self.forked(epoch, &tip, "somebody else writes it at this moment"))
    }

    fn appended(&self, known: &Known, entries: &[LedgerEntry]) -> Appended {
        Appended {
            branch: known.epoch.branch(&self.cluster),
            tip: known.tip.clone(),
            fork: self.alarm(known),
            recorded: entries.iter().map(|entry| (entry.uid.clone(), entry.transition.sequence)).collect(),
        }
    }

    /// The fork that people have not acknowledged.
    fn alarm(&self, known: &Known) -> Option<Fork> {
        known.fork.clone().filter(|fork| self.policy.acknowledged_fork.as_ref() != Some(&fork.branch))
    }

    fn forked(&self, epoch: Epoch, expected: &str, found: &str) -> GitError {
        let branch = epoch.branch(&self.cluster);
        GitError::Forked { branch, expected: expected.to_owned(), found: found.to_owned() }
    }

    /// An epoch is named by the time of its first transition. The first transition of a quarter begins one, if that
    /// is wanted.
    fn begin_epoch(&self, known: &mut Known, at: DateTime<Utc>) {
        if let Some(beginning) = &known.begins {
            known.epoch = beginning.after.next(at);
            if let Some(fork) = &mut known.fork {
                fork.branch = known.epoch.branch(&self.cluster);
            }
            return;
        }
        let next = Epoch::of(at);
        let Some(tip) = known.tip.clone().filter(|_| next > known.epoch) else { return };
        let another = known.newest.is_some_and(|newest| next > Epoch::of(newest));
        // An alarm that nobody has looked at stays on the branch that is written.
        if self.policy.epochs == Epochs::Quarterly && another && self.alarm(known).is_none() {
            let previous = (known.epoch, tip.clone());
            known.begins = Some(Beginning { previous, after: known.epoch, basis: Basis::Tree(tip) });
            known.epoch = next;
            known.fork = None;
        }
    }

    /// Finds out what the ledger holds, and whether it is what we left.
    async fn look(&self, memory: &mut Memory, store: &Store, entries: &[LedgerEntry]) -> Result<()> {
        store.prepare().await?;
        memory.known = None;
        let local = self.local_heads(&store.git()).await?.pop_last();
        let Some(remote) = &self.remote else {
            let (epoch, tip) = local.unzip();
            memory.known = Some(self.load(store, epoch.unwrap_or_default(), tip).await?);
            return Ok(());
        };
        if let Some(local) = local.filter(|local| memory.confirmed.as_ref().is_none_or(|known| known.0 < local.0)) {
            memory.confirmed = Some(local);
        }
        let git = store.git_with(remote);
        let heads = self.remote_heads(&git).await?;
        let newest = heads.last_key_value().map(|(epoch, tip)| (*epoch, tip.clone()));
        let (epoch, tip, fork) = match (memory.confirmed.clone(), newest) {
            (None, None) => (Epoch::First, None, None),
            (None, Some((epoch, theirs))) => {
                self.fetch(&git, &store.git(), epoch, &theirs).await?;
                (epoch, Some(theirs), None)
            }
            (Some((epoch, ours)), theirs) => {
                let theirs = theirs.filter(|(newest, _)| *newest >= epoch);
                self.compare(memory, store, &git, (epoch, ours), theirs, &heads, entries).await?
            }
        };
        let (mut known, tip) = match self.load(store, epoch, tip.clone()).await {
            Ok(known) => (known, tip),
            // What somebody else left there is not a ledger: nothing of it is taken over.
            Err(GitError::Unreadable { .. }) if fork.is_some() => (Known { epoch, ..Known::default() }, None),
            Err(error) => return Err(error),
        };
        match (fork, tip) {
            (Some((expected, found)), tip) => {
                // Once begun after a fork, and that not looked at by anybody: two writers could go on like this.
                if let Some(before) = self.alarm(&known) {
                    return Err(self.forked(epoch, &before.expected, &found));
                }
                let previous = epoch.branch(&self.cluster);
                tracing::error!(previous, expected, found, "the log branch was rewritten: another one begins");
                let basis = tip.map_or(Basis::Nothing, Basis::History);
                let after = heads.last_key_value().map_or(epoch, |(newest, _)| epoch.max(*newest));
                known.begins = Some(Beginning { previous: (epoch, expected.clone()), after, basis });
                known.fork = Some(Fork { branch: String::new(), previous, expected, found });
                let at = known.newest.unwrap_or_else(Utc::now);
                self.begin_epoch(&mut known, at);
            }
            (None, Some(tip)) => self.confirm(memory, store, epoch, &tip).await?,
            (None, None) => {}
        }
        memory.begun = true;
        memory.known = Some(known);
        Ok(())
    }

    /// What we left, beside what the remote's newest branch holds: the branch and tip to go on from, and when that
    /// is not what we left, what was expected and what was found.
    #[allow(clippy::too_many_arguments)]
    async fn compare(
        &self,
        memory: &Memory,
        store: &Store,
        git: &Git,
        (epoch, ours): (Epoch, String),
        theirs: Option<(Epoch, String)>,
        heads: &BTreeMap<Epoch, String>,
        entries: &[LedgerEntry],
    ) -> Result<(Epoch, Option<String>, Option<(String, String)>)> {
        let own = store.git();
        let branch = epoch.branch(&self.cluster);
        let Some((newest, tip)) = theirs else {
            if exists(&own, &ours).await? {
                tracing::warn!(branch, tip = ours, "the log branch is gone; the next push restores it");
                return Ok((epoch, Some(ours), None));
            }
            // Nothing of it is left anywhere.
            return Ok((epoch, None, Some((ours, "gone".to_owned()))));
        };
        if newest == epoch && tip == ours {
            self.fetch(git, &own, epoch, &tip).await?;
            return Ok((epoch, Some(ours), None));
        }
        for (epoch, tip) in heads.range(epoch..) {
            self.fetch(git, &own, *epoch, tip).await?;
        }
        let ours_is_here = exists(&own, &ours).await?;
        if ours_is_here && self.goes_on_from(store, &ours, newest, &tip, heads).await? {
            let range = format!("{ours}..{tip}");
            return Ok(match self.foreign(memory, store, &range, entries).await? {
                None => (newest, Some(tip), None),
                Some(commit) => {
                    tracing::error!(branch, commit, "a commit in the log branch is not ours");
                    (epoch, Some(ours.clone()), Some((ours, tip)))
                }
            });
        }
        if ours_is_here && newest == epoch && is_ancestor(&own, &tip, &ours).await? {
            tracing::warn!(branch, tip = ours, found = tip, "the log branch was set back; the next push restores it");
            return Ok((epoch, Some(ours), None));
        }
        if ours_is_here {
            return Ok((epoch, Some(ours.clone()), Some((ours, tip))));
        }
        // What we left is nowhere any more: what is there is all there is to go on from.
        Ok((newest, Some(tip.clone()), Some((ours, tip))))
    }

    /// Whether a tip holds what we left: in its own branch, or through the branches that its first commit and those
    /// of the ones before it cite.
    async fn goes_on_from(
        &self,
        store: &Store,
        ours: &str,
        newest: Epoch,
        tip: &str,
        heads: &BTreeMap<Epoch, String>,
    ) -> Result<bool> {
        let git = store.git();
        let mut tip = tip.to_owned();
        for (epoch, _) in heads.range(..=newest).rev() {
            if is_ancestor(&git, ours, &tip).await? {
                return Ok(true);
            }
            let arguments = ["log", "--max-parents=0", CITATION, &tip, "--"];
            let cited = git.call("reading the beginning of the log branch", arguments).line().await?;
            let Some((previous, cited)) = cited.split_once(' ') else { return Ok(false) };
            let before = Epoch::parse(&self.cluster, previous).filter(|previous| previous < epoch);
            if before.is_none() || !exists(&git, cited).await? {
                return Ok(false);
            }
            tip = cited.to_owned();
        }
        is_ancestor(&git, ours, &tip).await
    }

    /// The first of these commits that is not ours. Those that came after the tip we know must be: those whose
    /// answer was lost or, when this writer begins, those of the writer before it.
    async fn foreign(
        &self,
        memory: &Memory,
        store: &Store,
        range: &str,
        entries: &[LedgerEntry],
    ) -> Result<Option<String>> {
        let format = "--format=%H%x1f%(trailers:key=Rollout-Id,valueonly,separator=%x1e)\
                      %x1f%(trailers:key=Rollout-Uid,valueonly,separator=%x1e)\
                      %x1f%(trailers:key=Rollout-Seq,valueonly,separator=%x1e)\
                      %x1f%(trailers:key=Rollout-Prev-Epoch,valueonly,separator=%x1e)";
        let git = store.git();
        let log = git.call("reading the log branch", ["log", "-z", "--reverse", format, range, "--"]).run().await?;
        let mut mine = memory.attempted.clone();
        mine.extend(entries.iter().map(Attempt::of));
        for record in String::from_utf8_lossy(&log).split('\0').filter(|record| !record.is_empty()) {
            let fields: Vec<&str> = record.trim().split('\u{1f}').map(str::trim).collect();
            let [commit, id, uid, sequence, epoch] = fields.as_slice() else { continue };
            let branch = epoch.split_once(' ').and_then(|(branch, _)| Epoch::parse(&self.cluster, branch));
            if id.is_empty() && branch.is_some() {
                continue;
            }
            let ours_by_name = id.starts_with(&format!("{}/", self.cluster));
            let sequence = sequence.parse().unwrap_or(-1);
            // Without a uid it is of the same one as the entry before it.
            let is_mine =
                |one: &Attempt| one.id == *id && one.sequence == sequence && (uid.is_empty() || one.uid == *uid);
            if !ours_by_name || (memory.begun && !mine.iter().any(is_mine)) {
                return Ok(Some((*commit).to_owned()));
            }
        }
        Ok(None)
    }

    /// The branches of this ledger in our own repository.
    async fn local_heads(&self, git: &Git) -> Result<BTreeMap<Epoch, String>> {
        let first = Epoch::First.branch(&self.cluster);
        let patterns = [format!("refs/heads/{first}"), format!("refs/heads/{first}@*")];
        let arguments = ["for-each-ref", "--format=%(objectname)%09%(refname)"].into_iter();
        let arguments = arguments.chain(patterns.iter().map(String::as_str));
        Ok(self.heads(&git.call("looking at the local copy", arguments).run().await?))
    }

    /// The branches of this ledger in the remote.
    async fn remote_heads(&self, git: &Git) -> Result<BTreeMap<Epoch, String>> {
        let first = Epoch::First.branch(&self.cluster);
        let patterns = [format!("refs/heads/{first}"), format!("refs/heads/{first}@*")];
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        Ok(self.heads(&list_remote(git, &first, &patterns, self.timeouts.ask).await?))
    }

    /// Of lines of a commit and a reference, those that are branches of this ledger.
    fn heads(&self, answer: &[u8]) -> BTreeMap<Epoch, String> {
        let text = String::from_utf8_lossy(answer);
        let lines = text.lines().filter_map(|line| {
            let (commit, name) = line.split_once('\t')?;
            Some((Epoch::parse(&self.cluster, name.strip_prefix("refs/heads/")?)?, commit.to_owned()))
        });
        lines.collect()
    }

    /// Fetches a branch that is known to have this tip. It may have moved since; then it is looked at again later.
    async fn fetch(&self, git: &Git, own: &Git, epoch: Epoch, head: &str) -> Result<()> {
        let branch = epoch.branch(&self.cluster);
        let seen = format!("refs/sluice/seen/{branch}");
        if resolve(own, &seen).await?.as_deref() == Some(head) {
            return Ok(());
        }
        let refspec = format!("+refs/heads/{branch}:{seen}");
        let arguments = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", "origin", &refspec];
        git.call(format!("fetching the branch {branch}"), arguments).limit(self.timeouts.fetch).run().await?;
        let missing = |detail: &str| GitError::Corrupt { remote: git.remote.clone(), detail: detail.to_owned() };
        resolve(own, &seen).await?.ok_or_else(|| missing("the fetched branch is not there"))?;
        match exists(own, head).await? {
            true => Ok(()),
            false => Err(missing("the fetched branch does not hold the tip that was told")),
        }
    }

    /// Reads the present of all Rollouts from a commit.
    async fn load(&self, store: &Store, epoch: Epoch, tip: Option<String>) -> Result<Known> {
        let mut known = Known { epoch, tip, ..Known::default() };
        let Some(tip) = &known.tip else { return Ok(known) };
        let git = store.git();
        let arguments = ["ls-tree", "-r", "-z", "--full-tree", tip, "--"];
        let listing = git.call("reading the log branch", arguments).most_output(LARGEST_TREE).run().await?;
        let listing = String::from_utf8_lossy(&listing);
        let mut files = Vec::new();
        for (mode, object, path) in listing.split('\0').filter_map(tree_line) {
            let Some((folder, place)) = Place::parse(path).filter(|_| mode == "100644") else {
                // To know nothing of what was aborted there would be worse than to stop.
                if ["/evidence/", "/templates/"].iter().any(|folder| path.contains(folder))
                    || path.starts_with("state/")
                {
                    let reason = "it is in the place of an earlier version; begin a new branch for this one".to_owned();
                    return Err(GitError::Unreadable { path: path.to_owned(), reason });
                }
                continue;
            };
            match place {
                Place::State | Place::Aborted { .. } => files.push((path, folder, place, object)),
                Place::Evidence | Place::Template | Place::Good => {
                    known.files.insert(path.to_owned(), object.to_owned());
                }
                Place::Plan | Place::Guide => {}
            }
        }
        let objects: Vec<&str> = files.iter().map(|(.., object)| *object).collect();
        let contents = read_objects(&git, &objects, LARGEST_TREE as u64).await?;
        for ((path, folder, place, _), content) in files.iter().zip(contents) {
            let (namespace, name) = folder.split_once('/').unwrap_or_default();
            let key = (namespace.to_owned(), name.to_owned());
            if let Place::Aborted { revision } = place {
                let denial: Value = parse(path, &content)?;
                let why = denial.get("message").and_then(Value::as_str).unwrap_or("aborted").to_owned();
                known.aborted.entry(key).or_default().insert((*revision).to_owned(), why);
            } else {
                let mut state: StateFile = parse(path, &content)?;
                // Only for readers of the branch; here it would be most of the memory.
                state.status = Value::Null;
                known.states.insert(key, state);
            }
        }
        known.newest = known.states.values().map(|state| state.at).max();
        known.fork = self.fork_of(store, epoch, tip).await?;
        Ok(known)
    }

    /// The fork after which an epoch was begun.
    async fn fork_of(&self, store: &Store, epoch: Epoch, tip: &str) -> Result<Option<Fork>> {
        let Some(name) = epoch.name() else { return Ok(None) };
        let wanted = format!("--grep=^Rollout-Epoch: {}$", name.replace('.', "\\."));
        let format = "--format=%(trailers:key=Rollout-Prev-Epoch,valueonly,separator=%x20)%x1f\
                      %(trailers:key=Rollout-Fork,valueonly,separator=%x20)";
        let arguments = ["log", "-1", &wanted, format, tip, "--"];
        let line = store.git().call("reading the beginning of the log branch", arguments).line().await?;
        let Some((cited, found)) = line.split_once('\u{1f}').filter(|(_, found)| !found.trim().is_empty()) else {
            return Ok(None);
        };
        let (previous, expected) = cited.trim().split_once(' ').unwrap_or_default();
        Ok(Some(Fork {
            branch: epoch.branch(&self.cluster),
            previous: previous.to_owned(),
            expected: expected.to_owned(),
            found: found.trim().to_owned(),
        }))
    }

    /// Builds one commit for each entry, on top of the known tip. Nothing points to them yet.
    async fn write(&self, store: &Store, mut known: Known, entries: &[&LedgerEntry]) -> Result<Known> {
        let git = store.git();
        // Before the import begins, for it wants the repository to itself.
        let tree = match &known.begins {
            Some(Beginning { basis: Basis::Tree(tip), .. }) => {
                Some(git.call("reading the tip", ["rev-parse", &format!("{tip}^{{tree}}")]).line().await?)
            }
            _ => None,
        };
        for entry in entries {
            let key = (entry.namespace.clone(), entry.name.clone());
            if let (Some(tip), true, false) =
                (&known.tip, known.states.contains_key(&key), known.commits.contains_key(&key))
            {
                let path = state_path(&entry.namespace, &entry.name);
                let arguments = ["log", "-1", "--format=%H", tip, "--", &path];
                let commit = git.call("looking for the entry before", arguments).line().await?;
                known.commits.insert(key, commit);
            }
        }
        let mut import = Import::start(&git, self.timeouts.local)?;
        let author = format!("{WRITER} <sluice@{}>", self.cluster);
        let mut last = None;
        let work = async {
            if let Some(beginning) = known.begins.take() {
                let (at, operator) = entries.first().map(|entry| (entry.transition.at, &entry.operator)).unzip();
                let at = at.or(known.newest).unwrap_or_default();
                let message = self.epoch_message(&known, &beginning, operator.map_or("", String::as_str));
                let commit = NewCommit {
                    author: &author,
                    at,
                    message: &message,
                    parent: match &beginning.basis {
                        Basis::History(tip) => Some(tip),
                        Basis::Tree(_) | Basis::Nothing => None,
                    },
                    tree: tree.as_deref(),
                    files: &BTreeMap::new(),
                    copy: None,
                };
                let commit = import.commit(&commit).await?;
                if matches!(beginning.basis, Basis::Tree(_)) {
                    // The last commit that touched each state, as a reader of this branch alone finds it.
                    known.commits = known.states.keys().map(|key| (key.clone(), commit.clone())).collect();
                }
                known.tip = Some(commit);
            }
            for (index, entry) in entries.iter().enumerate() {
                let key = (entry.namespace.clone(), entry.name.clone());
                let before = known.states.get(&key);
                let mut entry = (*entry).clone();
                if let Some(before) = before.filter(|before| before.uid == entry.uid) {
                    entry.covers.retain(|covered| covered.sequence > before.sequence);
                    let first = entry.covers.first().unwrap_or(&entry.transition).sequence;
                    if first > before.sequence + 1 {
                        let rollout = entry.id();
                        tracing::warn!(rollout, from = before.sequence, to = first, "numbers are missing in between");
                    }
                }
                let present = known.files_of(&key).map(|(path, _)| path.as_str());
                let mut rendered = entry.render(before, known.commits.get(&key).map(String::as_str), present);
                known.take(&key, &rendered);
                if index + 1 == entries.len() {
                    // Once a push: it is the same for all, and the largest file.
                    let text = overview(&self.cluster, &known.states, &known.aborted);
                    rendered.files.insert("README.md".to_owned(), Some(text));
                }
                let parent = known.tip.take();
                let commit = NewCommit {
                    author: &author,
                    at: rendered.at,
                    message: &rendered.message,
                    parent: parent.as_deref(),
                    tree: None,
                    files: &rendered.files,
                    copy: rendered.copy.as_ref(),
                };
                let commit = import.commit(&commit).await?;
                known.commits.insert(key.clone(), commit.clone());
                known.tip = Some(commit);
                known.newest = known.newest.max(Some(rendered.at));
                last = Some((key, rendered.at, rendered.message));
            }
            Ok(())
        };
        let worked = tokio::time::timeout(self.timeouts.local, work).await;
        match worked {
            Ok(Ok(())) => import.finish().await?,
            Ok(Err(error)) => {
                let said = import.fail().await;
                return Err(if said.is_empty() {
                    error
                } else {
                    classify("writing the log branch", &git.remote, &said, &Scrubber::default())
                });
            }
            Err(_) => {
                import.fail().await;
                let doing = "writing the log branch".to_owned();
                return Err(GitError::Timeout { doing, limit: self.timeouts.local });
            }
        }
        if let (Some(signer), Some((key, at, message)), Some(tip)) = (&self.policy.signer, last, &known.tip) {
            let signed = self.sign(git, signer, tip, at, &message).await?;
            known.commits.insert(key, signed.clone());
            known.tip = Some(signed);
        }
        Ok(known)
    }

    /// The same commit, signed.
    async fn sign(&self, mut git: Git, signer: &Signer, tip: &str, at: DateTime<Utc>, message: &str) -> Result<String> {
        let parents = git.call("reading the tip", ["rev-list", "--parents", "-1", tip]).line().await?;
        let tree = format!("{tip}^{{tree}}");
        let mut arguments = vec!["commit-tree", "-S", &tree];
        arguments.extend(parents.split(' ').skip(1).flat_map(|parent| ["-p", parent]));
        git.options.extend(signer.options());
        git.scrubber = signer.scrubber.clone();
        let date = format!("@{} +0000", seconds(at));
        for role in ["AUTHOR", "COMMITTER"] {
            for (what, value) in
                [("NAME", WRITER.to_owned()), ("EMAIL", format!("sluice@{}", self.cluster)), ("DATE", date.clone())]
            {
                git.environment.push((format!("GIT_{role}_{what}"), value.into()));
            }
        }
        git.call("signing the log", arguments).input(message).limit(self.timeouts.local).line().await
    }

    fn epoch_message(&self, known: &Known, beginning: &Beginning, operator: &str) -> String {
        let name = known.epoch.name().unwrap_or_default();
        let (previous, tip) = (beginning.previous.0.branch(&self.cluster), &beginning.previous.1);
        let fork = known.fork.as_ref().map(|fork| fork.found.as_str());
        super::epoch::message(&self.cluster, &name, (&previous, tip), fork, operator)
    }

    /// Makes the branch point to the new tip: in the remote, or in our own repository if there is none.
    async fn publish(&self, store: &Store, epoch: Epoch, before: Option<&str>, tip: &str) -> Result<()> {
        let branch = epoch.branch(&self.cluster);
        let full = format!("refs/heads/{branch}");
        let Some(remote) = &self.remote else {
            let absent = "0".repeat(40);
            let arguments = ["update-ref", &full, tip, before.unwrap_or(&absent)];
            store.git().call("setting the log branch", arguments).run().await?;
            return Ok(());
        };
        let git = store.git_with(remote);
        let refspec = format!("{tip}:{full}");
        let arguments = ["push", "--porcelain", "--no-follow-tags", "--", "origin", &refspec];
        let doing = format!("pushing the branch {branch}");
        let output = git.call(doing.clone(), arguments).limit(self.timeouts.push).output().await?;
        pushed(&git, &doing, &branch, &output)
    }

    /// Pushes what is certain of all branches of this ledger to another remote, as fast-forwards. Waits for nobody who
    /// writes, and nobody waits for it: it only reads objects that stay.
    pub async fn push_to(&self, mirror: &Repository) -> Result<()> {
        let (git, local) = {
            let store = self.store.lock().await;
            (store.git_with(&mirror.remote), store.git())
        };
        let heads = self.local_heads(&local).await?;
        let refspecs = heads.iter().map(|(epoch, tip)| format!("{tip}:refs/heads/{}", epoch.branch(&self.cluster)));
        let mut arguments: Vec<String> =
            ["push", "--quiet", "--no-follow-tags", "--", "origin"].map(str::to_owned).into();
        arguments.extend(refspecs);
        git.call("pushing to the second remote", arguments).limit(self.timeouts.push).run().await.map(drop)
    }

    /// Remembers a tip that is certain, on disk too.
    async fn confirm(&self, memory: &mut Memory, store: &Store, epoch: Epoch, tip: &str) -> Result<()> {
        if self.remote.is_some() {
            let full = format!("refs/heads/{}", epoch.branch(&self.cluster));
            store.git().call("remembering the tip", ["update-ref", &full, tip]).run().await?;
        }
        memory.confirmed = Some((epoch, tip.to_owned()));
        Ok(())
    }

    async fn tidy(&self, store: &Store) {
        let mut git = store.git();
        git.options.extend(["gc.auto=2000", "gc.autoDetach=false", "gc.autoPackLimit=50"].map(str::to_owned));
        let call = git.call("tidying the local copy", ["gc", "--auto", "--quiet"]).limit(self.timeouts.fetch);
        if let Err(error) = call.run().await {
            tracing::warn!(%error, "the local copy of the ledger could not be tidied");
        }
    }
}

impl Known {
    fn has(&self, entry: &LedgerEntry) -> bool {
        let state = self.states.get(&(entry.namespace.clone(), entry.name.clone()));
        state.is_some_and(|state| state.has(&entry.uid, entry.transition.sequence))
    }

    /// The files of a Rollout that go when a release is over.
    fn files_of(&self, (namespace, name): &Key) -> impl Iterator<Item = (&String, &String)> {
        let folder = folder(namespace, name) + "/";
        self.files.range(folder.clone()..).take_while(move |(path, _)| path.starts_with(&folder))
    }

    fn take(&mut self, key: &Key, rendered: &Rendered) {
        self.files.extend(rendered.copy.iter().map(|(_, to)| (to.clone(), String::new())));
        for (path, text) in &rendered.files {
            match text {
                None => drop(self.files.remove(path)),
                Some(_) if matches!(Place::parse(path), Some((_, Place::Evidence | Place::Template | Place::Good))) => {
                    self.files.insert(path.clone(), String::new());
                }
                Some(_) => {}
            }
        }
        self.states.insert(key.clone(), StateFile { status: Value::Null, ..rendered.state.clone() });
        if let Some((revision, why)) = &rendered.denies {
            self.aborted.entry(key.clone()).or_default().insert(revision.clone(), why.clone());
        }
        if let (Some(revision), Some(revisions)) = (&rendered.lifts, self.aborted.get_mut(key)) {
            revisions.remove(revision);
        }
    }
}

/// By time; but never a later number of one Rollout before an earlier one, whatever the clocks said.
fn in_order(entries: &[LedgerEntry]) -> Vec<&LedgerEntry> {
    let mut ordered: Vec<&LedgerEntry> = entries.iter().collect();
    ordered.sort_by(|a, b| (&a.uid, a.transition.sequence).cmp(&(&b.uid, b.transition.sequence)));
    ordered.dedup_by(|a, b| a.uid == b.uid && a.transition.sequence == b.transition.sequence);
    let mut timed = Vec::with_capacity(ordered.len());
    let mut latest = None;
    for entry in ordered {
        let time = match latest {
            Some((uid, time)) if uid == &entry.uid => entry.transition.at.max(time),
            _ => entry.transition.at,
        };
        latest = Some((&entry.uid, time));
        timed.push((time, entry));
    }
    timed.sort_by_key(|(time, _)| *time);
    timed.into_iter().map(|(_, entry)| entry).collect()
}

async fn resolve(git: &Git, reference: &str) -> Result<Option<String>> {
    let output =
        git.call("looking at the local copy", ["rev-parse", "--verify", "--quiet", reference]).output().await?;
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.success {
        return Ok(Some(commit));
    }
    if output.stderr.is_empty() {
        return Ok(None);
    }
    Err(classify("looking at the local copy", &git.remote, &output.stderr, &git.scrubber))
}

pub(super) async fn exists(git: &Git, commit: &str) -> Result<bool> {
    let name = format!("{commit}^{{commit}}");
    Ok(git.call("looking for a commit", ["cat-file", "-e", &name]).output().await?.success)
}

pub(super) async fn is_ancestor(git: &Git, older: &str, newer: &str) -> Result<bool> {
    let output = git.call("comparing two commits", ["merge-base", "--is-ancestor", older, newer]).output().await?;
    match output.code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(classify("comparing two commits", &git.remote, &output.stderr, &git.scrubber)),
    }
}

fn parse<T: serde::de::DeserializeOwned>(path: &str, content: &[u8]) -> Result<T> {
    serde_json::from_slice(content)
        .map_err(|error| GitError::Unreadable { path: path.to_owned(), reason: error.to_string() })
}

/// A ledger in a directory on this machine, for code that does not wait.
pub struct LocalLedger {
    ledger: Ledger,
    directory: PathBuf,
}

impl LocalLedger {
    /// Writes these transitions, in the order of their times.
    pub fn append(&self, entries: &[LedgerEntry]) -> Result<Appended> {
        blocking(async {
            let appended = self.ledger.append(entries).await?;
            // So that `git log` without a word shows it.
            let head = format!("refs/heads/{}", appended.branch);
            let store = self.ledger.store.lock().await;
            store.git().call("setting HEAD", ["symbolic-ref", "HEAD", &head]).run().await?;
            Ok(appended)
        })
    }

    /// What the ledger says.
    pub fn read(&self) -> Result<LedgerContents> {
        blocking(self.ledger.read())
    }

    /// The commits of the branch as `git log --oneline` shows them, newest first.
    pub fn log(&self) -> Result<Vec<String>> {
        blocking(async {
            let head = format!("refs/heads/{}", self.ledger.branch().await);
            let store = self.ledger.store.lock().await;
            let shown = store.git().call("reading the log", ["log", "--oneline", "--no-decorate", &head]).run().await?;
            Ok(String::from_utf8_lossy(&shown).lines().map(str::to_owned).collect())
        })
    }

    /// Written in this way.
    #[must_use]
    pub fn with_policy(mut self, policy: LedgerPolicy) -> Self {
        self.ledger = self.ledger.with_policy(policy);
        self
    }

    /// The branch that is written.
    pub fn branch(&self) -> Result<String> {
        blocking(async { Ok(self.ledger.branch().await) })
    }

    /// The bare repository.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// In a thread of its own, for the caller may be inside a runtime already.
fn blocking<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let broken = |detail: String| GitError::Executable { detail };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| broken(error.to_string()))?.block_on(work)
        });
        thread.join().unwrap_or_else(|_| Err(broken("the thread that ran git ended early".to_owned())))
    })
}

/// What a push came to, by what git says in its porcelain format.
pub(super) fn pushed(git: &Git, doing: &str, branch: &str, output: &Output) -> Result<()> {
    if output.success {
        return Ok(());
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let Some(refused) = stdout.lines().find(|line| line.starts_with('!')) else {
        return Err(classify(doing, &git.remote, &output.stderr, &git.scrubber));
    };
    let text = refused.to_ascii_lowercase();
    let said: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("remote:")).collect();
    let reason = refused.rsplit('\t').next().unwrap_or_default();
    let detail = detail(&format!("{reason} {}", said.join(" ")), &git.scrubber);
    if text.contains("unpacker error") {
        // It took what we sent and could not store it, as when its disk is full.
        return Err(GitError::Unreachable { remote: git.remote.clone(), detail });
    }
    let why = if ["non-fast-forward", "fetch first", "stale info", "reference already exists"]
        .iter()
        .any(|sign| text.contains(sign))
    {
        Rejection::NonFastForward
    } else if ["incorrect old value", "cannot lock ref", "failed to update ref"].iter().any(|sign| text.contains(sign))
    {
        // Two pushes met on the server, or its disk failed.
        if output.stderr.contains("is at ") { Rejection::NonFastForward } else { Rejection::Other }
    } else if ["hook", "protected", "declined", "prohibited"].iter().any(|sign| text.contains(sign)) {
        Rejection::Hook
    } else {
        Rejection::Other
    };
    Err(GitError::Rejected {
        remote: git.remote.clone(),
        branch: branch.to_owned(),
        why,
        detail: format!(": {detail}"),
    })
}
