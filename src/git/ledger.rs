//! The ledger: one branch, one writer, one commit per transition.
//!
//! Commits are built in our own bare repository without a work tree, and pushed as a plain fast-forward; nothing
//! is ever forced, merged or rebased. A push whose answer was lost is looked up before anything is pushed again,
//! by uid and number, so a transition is never written twice. A branch that is not as we left it is an incident
//! for people, not something to mend.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};

use super::address::check_branch;
use super::cache::{Remote, Repository, Store, Timeouts, remote_head};
use super::command::{Git, Process};
use super::error::{GitError, Rejection, Result, Scrubber, classify, detail};
use super::ledger_entry::{LedgerEntry, Rendered, StateFile, overview, state_path};
use super::source::{read_objects, tree_line};
use crate::api::{PodTemplate, names};

/// What one ledger holds is read into memory whole; more than this is refused.
const LARGEST_TREE: usize = 64 * 1024 * 1024;
/// After so many appends our own repository is tidied.
const TIDY_AFTER: u32 = 100;

type Key = (String, String);

/// The ledger of one cluster in one repository.
pub struct Ledger {
    cluster: String,
    branch: String,
    store: Arc<tokio::sync::Mutex<Store>>,
    remote: Option<Arc<Remote>>,
    timeouts: Timeouts,
    memory: tokio::sync::Mutex<Memory>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The tip of the branch, if it exists.
    pub tip: Option<String>,
    /// The transitions asked for, as uid and number: each of them is in the ledger now.
    pub recorded: Vec<(String, i64)>,
}

/// What the ledger says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerContents {
    /// The tip of the branch; none while nothing was ever recorded.
    pub tip: Option<String>,
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
    /// The last revision that was promoted, with its template if that was recorded.
    pub last_good: Option<(String, Option<PodTemplate>)>,
}

#[derive(Default)]
struct Memory {
    /// What the branch holds; `None` until it was looked at, and after any result that is not certain.
    known: Option<Known>,
    /// The last tip that is certain to be in the branch.
    confirmed: Option<String>,
    /// What may have been pushed without an answer.
    attempted: BTreeSet<(String, i64)>,
    /// The branch was looked at since this writer began. Before that, more of our own entries may be found.
    begun: bool,
    appends: u32,
}

#[derive(Clone, Default)]
struct Known {
    tip: Option<String>,
    states: BTreeMap<Key, StateFile>,
    aborted: BTreeMap<Key, BTreeMap<String, String>>,
    /// Hashes of the recorded templates, with their objects.
    templates: BTreeMap<String, String>,
    /// The last commit of each Rollout, as far as it is known.
    commits: BTreeMap<Key, String>,
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

    fn new(cluster: &str, store: Arc<tokio::sync::Mutex<Store>>, timeouts: Timeouts) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if cluster.is_empty() || cluster.len() > 63 || !cluster.chars().all(plain) {
            let reason = "a cluster's name has 1 to 63 lower-case letters, digits, dashes and dots".to_owned();
            return Err(GitError::InvalidName { field: "cluster", value: cluster.chars().take(200).collect(), reason });
        }
        let branch = format!("{}{cluster}", names::LOG_BRANCH_PREFIX);
        check_branch("cluster", &branch)?;
        let memory = tokio::sync::Mutex::default();
        Ok(Self { cluster: cluster.to_owned(), branch, store, remote: None, timeouts, memory })
    }

    /// The tip that this writer, or one before it, is known to have left: a branch that does not hold it was
    /// rewritten.
    pub fn expecting(mut self, tip: Option<String>) -> Self {
        self.memory.get_mut().confirmed = tip;
        self
    }

    /// The branch.
    pub fn branch(&self) -> &str {
        &self.branch
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
        match self.try_append(&mut memory, &store, entries).await {
            Err(GitError::Corrupt { detail, .. }) => {
                self.start_over(&mut memory, &store, &detail)?;
                self.try_append(&mut memory, &store, entries).await
            }
            result => result,
        }
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
        result
    }

    fn start_over(&self, memory: &mut Memory, store: &Store, detail: &str) -> Result<()> {
        memory.known = None;
        if self.remote.is_none() {
            // This directory belongs to a person.
            return Err(GitError::Corrupt { remote: store.directory.display().to_string(), detail: detail.to_owned() });
        }
        tracing::warn!(branch = self.branch, detail, "the local copy of the ledger is damaged and made anew");
        store.discard()
    }

    async fn try_read(&self, memory: &mut Memory, store: &Store) -> Result<LedgerContents> {
        self.look(memory, store, &[]).await?;
        let known = memory.known.clone().unwrap_or_default();
        let mut contents = LedgerContents { tip: known.tip, ..LedgerContents::default() };
        let mut wanted = Vec::new();
        for (key, state) in &known.states {
            let good = state.last_good.as_ref();
            let template = good.and_then(|good| {
                // A revision is the beginning of its template's hash.
                known
                    .templates
                    .range(good.revision.clone()..)
                    .next()
                    .filter(|(hash, _)| hash.starts_with(&good.revision))
            });
            wanted.extend(template.map(|(_, object)| (key.clone(), object.clone())));
            contents.rollouts.insert(
                key.clone(),
                RecordedRollout {
                    uid: state.uid.clone(),
                    sequence: state.sequence,
                    aborted: BTreeMap::new(),
                    last_good: good.map(|good| (good.revision.clone(), None)),
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
        for again in [true, false] {
            let known = memory.known.clone().unwrap_or_default();
            let pending: Vec<&LedgerEntry> = in_order(entries).into_iter().filter(|entry| !known.has(entry)).collect();
            if pending.is_empty() {
                let recorded = entries.iter().map(|entry| (entry.uid.clone(), entry.transition.sequence)).collect();
                return Ok(Appended { tip: known.tip, recorded });
            }
            memory.attempted.extend(pending.iter().map(|entry| (entry.uid.clone(), entry.transition.sequence)));
            let before = known.tip.clone();
            let written = self.write(store, known, &pending).await?;
            let tip = written.tip.clone().unwrap_or_default();
            // From here on the result is uncertain until the server's answer is read.
            memory.known = None;
            match self.publish(store, before.as_deref(), &tip).await {
                Ok(()) => {
                    self.confirm(memory, store, &tip).await?;
                    memory.known = Some(written);
                    memory.attempted.clear();
                    memory.appends += 1;
                    if memory.appends.is_multiple_of(TIDY_AFTER) {
                        self.tidy(store).await;
                    }
                    return Ok(Appended {
                        tip: Some(tip),
                        recorded: entries.iter().map(|entry| (entry.uid.clone(), entry.transition.sequence)).collect(),
                    });
                }
                // Our own push of before, whose answer was lost, or an incident: looking tells which.
                Err(GitError::Rejected { why: Rejection::NonFastForward, .. }) if again => {
                    self.look(memory, store, entries).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(self.forked(memory.confirmed.as_deref().unwrap_or("nothing"), "somebody else writes it at this moment"))
    }

    fn forked(&self, expected: &str, found: &str) -> GitError {
        GitError::Forked { branch: self.branch.clone(), expected: expected.to_owned(), found: found.to_owned() }
    }

    /// Finds out what the branch holds, and whether it is what we left.
    async fn look(&self, memory: &mut Memory, store: &Store, entries: &[LedgerEntry]) -> Result<()> {
        store.prepare().await?;
        memory.known = None;
        let own = format!("refs/heads/{}", self.branch);
        let local = resolve(&store.git(), &own).await?;
        let Some(remote) = &self.remote else {
            memory.known = Some(self.load(store, local).await?);
            return Ok(());
        };
        if let Some(local) = local {
            memory.confirmed.get_or_insert(local);
        }
        let git = store.git_with(remote);
        let head = remote_head(&git, &self.branch, self.timeouts.ask).await?;
        let theirs = match &head {
            None => None,
            Some(head) => Some(self.fetch(&git, &store.git(), head).await?),
        };
        let tip = match (&memory.confirmed, theirs) {
            (None, theirs) => theirs,
            (Some(ours), Some(theirs)) if *ours == theirs => Some(theirs),
            (Some(ours), None) => {
                if !exists(&store.git(), ours).await? {
                    return Err(self.forked(ours, "the branch is gone"));
                }
                tracing::warn!(branch = self.branch, tip = ours, "the log branch is gone; the next push restores it");
                Some(ours.clone())
            }
            (Some(ours), Some(theirs)) => {
                let known = exists(&store.git(), ours).await?;
                if known && is_ancestor(&store.git(), ours, &theirs).await? {
                    self.check_newer(memory, store, ours, &theirs, entries).await?;
                    Some(theirs)
                } else if known && is_ancestor(&store.git(), &theirs, ours).await? {
                    tracing::warn!(
                        branch = self.branch,
                        tip = ours,
                        found = theirs,
                        "the log branch was set back; the next push restores it"
                    );
                    Some(ours.clone())
                } else {
                    return Err(self.forked(ours, &format!("its tip {theirs} does not descend from that")));
                }
            }
        };
        let known = self.load(store, tip.clone()).await?;
        if let Some(tip) = &tip {
            self.confirm(memory, store, tip).await?;
        }
        memory.begun = true;
        memory.known = Some(known);
        Ok(())
    }

    /// Commits that came after the tip we know must be ours: those whose answer was lost or, when this writer
    /// begins, those of the writer before it.
    async fn check_newer(
        &self,
        memory: &Memory,
        store: &Store,
        ours: &str,
        theirs: &str,
        entries: &[LedgerEntry],
    ) -> Result<()> {
        let format = "--format=%H%x1f%(trailers:key=Rollout-Id,valueonly,separator=%x1e)\
                      %x1f%(trailers:key=Rollout-Uid,valueonly,separator=%x1e)\
                      %x1f%(trailers:key=Rollout-Seq,valueonly,separator=%x1e)";
        let range = format!("{ours}..{theirs}");
        let git = store.git();
        let log = git.call("reading the log branch", ["log", "-z", format, &range, "--"]).run().await?;
        let mut mine = memory.attempted.clone();
        mine.extend(entries.iter().map(|entry| (entry.uid.clone(), entry.transition.sequence)));
        for record in String::from_utf8_lossy(&log).split('\0').filter(|record| !record.is_empty()) {
            let fields: Vec<&str> = record.trim().split('\u{1f}').map(str::trim).collect();
            let [commit, id, uid, sequence] = fields.as_slice() else { continue };
            let ours_by_name = id.starts_with(&format!("{}/", self.cluster));
            let sequence = sequence.parse().unwrap_or(-1);
            if !ours_by_name || (memory.begun && !mine.contains(&((*uid).to_owned(), sequence))) {
                return Err(self.forked(ours, &format!("commit {commit} is not ours")));
            }
        }
        Ok(())
    }

    async fn fetch(&self, git: &Git, own: &Git, head: &str) -> Result<String> {
        let seen = format!("refs/sluice/seen/{}", self.branch);
        if resolve(own, &seen).await?.as_deref() == Some(head) {
            return Ok(head.to_owned());
        }
        let refspec = format!("+refs/heads/{}:{seen}", self.branch);
        let arguments = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", "origin", &refspec];
        git.call(format!("fetching the branch {}", self.branch), arguments).limit(self.timeouts.fetch).run().await?;
        resolve(own, &seen).await?.ok_or_else(|| GitError::Corrupt {
            remote: git.remote.clone(),
            detail: "the fetched branch is not there".to_owned(),
        })
    }

    /// Reads the present of all Rollouts from a commit.
    async fn load(&self, store: &Store, tip: Option<String>) -> Result<Known> {
        let mut known = Known { tip, ..Known::default() };
        let Some(tip) = &known.tip else { return Ok(known) };
        let git = store.git();
        let folders = ["state/", "aborted/", "templates/"];
        let arguments = ["ls-tree", "-r", "-z", "--full-tree", tip, "--"].into_iter().chain(folders);
        let listing = git.call("reading the log branch", arguments).most_output(LARGEST_TREE).run().await?;
        let listing = String::from_utf8_lossy(&listing);
        let mut files = Vec::new();
        for (mode, object, path) in listing.split('\0').filter_map(tree_line) {
            if mode != "100644" || !path.ends_with(".json") {
                continue;
            }
            match path.strip_prefix("templates/").and_then(|name| name.strip_suffix(".json")) {
                Some(hash) => {
                    known.templates.insert(hash.to_owned(), object.to_owned());
                }
                None => files.push((path, object)),
            }
        }
        let objects: Vec<&str> = files.iter().map(|(_, object)| *object).collect();
        let contents = read_objects(&git, &objects, LARGEST_TREE as u64).await?;
        for ((path, _), content) in files.iter().zip(contents) {
            let parts: Vec<&str> = path.trim_end_matches(".json").split('/').collect();
            match parts.as_slice() {
                ["state", namespace, name] => {
                    let mut state: StateFile = parse(path, &content)?;
                    // Only for readers of the branch; here it would be most of the memory.
                    state.status = Value::Null;
                    known.states.insert(((*namespace).to_owned(), (*name).to_owned()), state);
                }
                ["aborted", namespace, name, revision] => {
                    let denial: Value = parse(path, &content)?;
                    let why = denial.get("message").and_then(Value::as_str).unwrap_or("aborted").to_owned();
                    let key = ((*namespace).to_owned(), (*name).to_owned());
                    known.aborted.entry(key).or_default().insert((*revision).to_owned(), why);
                }
                _ => {}
            }
        }
        Ok(known)
    }

    /// Builds one commit for each entry, on top of the known tip. Nothing points to them yet.
    async fn write(&self, store: &Store, mut known: Known, entries: &[&LedgerEntry]) -> Result<Known> {
        let git = store.git();
        // Before the import begins, for it wants the repository to itself.
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
        let work = async {
            for (index, entry) in entries.iter().enumerate() {
                let key = (entry.namespace.clone(), entry.name.clone());
                let before = known.states.get(&key);
                if let Some(before) = before.filter(|before| before.uid == entry.uid)
                    && entry.transition.sequence > before.sequence + 1
                {
                    tracing::warn!(
                        rollout = entry.id(),
                        from = before.sequence,
                        to = entry.transition.sequence,
                        "numbers are missing between two transitions"
                    );
                }
                let mut rendered = entry.render(before, known.commits.get(&key).map(String::as_str));
                known.take(&key, &rendered);
                if index + 1 == entries.len() {
                    // Once a push: it is the same for all, and the largest file.
                    let text = overview(&self.cluster, &known.states, &known.aborted);
                    rendered.files.insert("README.md".to_owned(), Some(text));
                }
                let author = format!("Sluice <sluice@{}>", self.cluster);
                let commit = import.commit(&rendered, &author, known.tip.as_deref()).await?;
                known.commits.insert(key, commit.clone());
                known.tip = Some(commit);
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
        Ok(known)
    }

    /// Makes the branch point to the new tip: in the remote, or in our own repository if there is none.
    async fn publish(&self, store: &Store, before: Option<&str>, tip: &str) -> Result<()> {
        let full = format!("refs/heads/{}", self.branch);
        let Some(remote) = &self.remote else {
            let absent = "0".repeat(40);
            let arguments = ["update-ref", &full, tip, before.unwrap_or(&absent)];
            store.git().call("setting the log branch", arguments).run().await?;
            return Ok(());
        };
        let git = store.git_with(remote);
        let refspec = format!("{tip}:{full}");
        let arguments = ["push", "--porcelain", "--no-follow-tags", "--", "origin", &refspec];
        let doing = format!("pushing the branch {}", self.branch);
        let output = git.call(doing.clone(), arguments).limit(self.timeouts.push).output().await?;
        if output.success {
            return Ok(());
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        let Some(refused) = stdout.lines().find(|line| line.starts_with('!')) else {
            return Err(classify(&doing, &git.remote, &output.stderr, &git.scrubber));
        };
        let text = refused.to_ascii_lowercase();
        let why = if ["non-fast-forward", "fetch first", "stale info", "reference already exists"]
            .iter()
            .any(|sign| text.contains(sign))
        {
            Rejection::NonFastForward
        } else if ["incorrect old value", "cannot lock ref", "failed to update ref"]
            .iter()
            .any(|sign| text.contains(sign))
        {
            // Two pushes met on the server, or its disk failed.
            if output.stderr.contains("is at ") { Rejection::NonFastForward } else { Rejection::Other }
        } else if ["hook", "protected", "declined", "prohibited"].iter().any(|sign| text.contains(sign)) {
            Rejection::Hook
        } else {
            Rejection::Other
        };
        let reason = refused.rsplit('\t').next().unwrap_or_default();
        let said: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("remote:")).collect();
        let detail = detail(&format!("{reason} {}", said.join(" ")), &git.scrubber);
        Err(GitError::Rejected { remote: git.remote, branch: self.branch.clone(), why, detail: format!(": {detail}") })
    }

    /// Remembers a tip that is certain, on disk too.
    async fn confirm(&self, memory: &mut Memory, store: &Store, tip: &str) -> Result<()> {
        if self.remote.is_some() {
            let full = format!("refs/heads/{}", self.branch);
            store.git().call("remembering the tip", ["update-ref", &full, tip]).run().await?;
        }
        memory.confirmed = Some(tip.to_owned());
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

    fn take(&mut self, key: &Key, rendered: &Rendered) {
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

/// A conversation with `git fast-import`: one process for all commits of a push, and a cost for each commit that
/// does not grow with the tree.
struct Import {
    process: Process,
    stdin: ChildStdin,
    answers: BufReader<ChildStdout>,
    begun: bool,
}

/// Where the import keeps its commits while it runs; it is gone when the import ends.
const SCRATCH: &str = "refs/sluice/next";

impl Import {
    fn start(git: &Git, limit: std::time::Duration) -> Result<Self> {
        let call = git.call("writing the log branch", ["fast-import", "--quiet", "--done", "--date-format=raw"]);
        let mut process = call.limit(limit).start()?;
        let broken = || GitError::Executable { detail: "git fast-import has no input or output".to_owned() };
        let stdin = process.stdin.take().ok_or_else(broken)?;
        let answers = BufReader::new(process.stdout.take().ok_or_else(broken)?);
        Ok(Self { process, stdin, answers, begun: false })
    }

    async fn commit(&mut self, rendered: &Rendered, author: &str, parent: Option<&str>) -> Result<String> {
        let mut text = String::new();
        if !self.begun {
            // Later commits follow the one before them by themselves.
            self.begun = true;
            text += &format!("reset {SCRATCH}\n");
            text += &parent.map(|parent| format!("from {parent}\n")).unwrap_or_default();
            text.push('\n');
        }
        let date = rendered.at.timestamp().max(0);
        text += &format!(
            "commit {SCRATCH}\nmark :1\nauthor {author} {date} +0000\ncommitter {author} {date} +0000\n\
             data {}\n{}",
            rendered.message.len(),
            rendered.message
        );
        for (path, content) in &rendered.files {
            match content {
                Some(content) => text += &format!("M 100644 inline {path}\ndata {}\n{content}\n", content.len()),
                None => text += &format!("D {path}\n"),
            }
        }
        text += "\nget-mark :1\n";
        let lost = |_| GitError::Failed {
            doing: "writing the log branch".to_owned(),
            detail: "git fast-import ended early".to_owned(),
        };
        self.stdin.write_all(text.as_bytes()).await.map_err(lost)?;
        self.stdin.flush().await.map_err(lost)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).await.map_err(lost)?;
        let commit = answer.trim();
        if commit.len() < 40 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(commit.to_owned())
    }

    async fn finish(mut self) -> Result<()> {
        let end = format!("reset {SCRATCH}\nfrom {}\n\ndone\n", "0".repeat(40));
        let written = self.stdin.write_all(end.as_bytes()).await;
        drop(self.stdin);
        let failed =
            |detail: String| classify("writing the log branch", "the log branch", &detail, &Scrubber::default());
        self.process.finish().await?.map_err(failed)?;
        written.map_err(super::command::storage)
    }

    /// Ends it; what it said.
    async fn fail(self) -> String {
        drop(self.stdin);
        match tokio::time::timeout(std::time::Duration::from_secs(2), self.process.finish()).await {
            Ok(Ok(Err(said))) => said,
            _ => String::new(),
        }
    }
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

async fn exists(git: &Git, commit: &str) -> Result<bool> {
    let name = format!("{commit}^{{commit}}");
    Ok(git.call("looking for a commit", ["cat-file", "-e", &name]).output().await?.success)
}

async fn is_ancestor(git: &Git, older: &str, newer: &str) -> Result<bool> {
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
            let head = format!("refs/heads/{}", self.ledger.branch);
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
            let store = self.ledger.store.lock().await;
            let head = format!("refs/heads/{}", self.ledger.branch);
            let shown = store.git().call("reading the log", ["log", "--oneline", "--no-decorate", &head]).run().await?;
            Ok(String::from_utf8_lossy(&shown).lines().map(str::to_owned).collect())
        })
    }

    /// The branch.
    pub fn branch(&self) -> &str {
        self.ledger.branch()
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
