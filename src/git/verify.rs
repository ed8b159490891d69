//! Checks a ledger from its first commit to its tip, offline: what an auditor does who trusts nobody.
//!
//! Each entry is written anew from its own parts, by the code that writes entries: from what its files and trailers
//! say follows what every other file and the whole message must be, to the byte. What two witnesses tell differently
//! is a fault. What only one witness tells (who acted, for instance) is held by the chain: the next entry of the same
//! Rollout names the commit before it, the signature covers the tip, and a tip that was seen elsewhere must be here.
//! Nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::archive::{Archive, ArchivedLedger, is_object_name};
use super::epoch::{self, Epoch};
use super::error::Result;
use super::history::{Change, Commit, History, Trailers};
use super::ledger_entry::{
    Evidence, LedgerEntry, Place, StateFile, event, evidence_path, folder, one_line, overview, state_path,
    template_path,
};
use crate::api::{PodTemplate, Transition, TransitionEvent};

/// Where the allowed signers of a repository stand, on the branch that people commit to.
pub const ALLOWED_SIGNERS: &str = ".sluice/allowed_signers";

/// More are not told: a ledger that is wrong in so many places is another one.
const MOST_FAULTS: usize = 1000;
/// What is quoted of an expectation or a finding, in letters.
const LONGEST_QUOTE: usize = 200;
/// A check of all objects reads each of them.
const LONGEST_CHECK: Duration = Duration::from_secs(3600);
const README: &str = "README.md";

/// What to check beyond the ledger itself.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Who may sign, in the format of ssh's `allowed_signers`.
    pub allowed_signers: Option<Vec<u8>>,
    /// A tip without a signature is a fault.
    pub require_signature: bool,
    /// Tips that were seen outside of git: each must be in the ledger.
    pub seen_tips: Vec<String>,
}

/// Something that is not as the writer of the ledger leaves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The commit; none when it is about a branch or the repository.
    pub commit: Option<String>,
    /// The path, trailer or header.
    pub place: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(commit) = &self.commit {
            write!(f, "{} ", commit.get(..12).unwrap_or(commit))?;
        }
        write!(f, "{}: expected {}, found {}", self.place, self.expected, self.found)
    }
}

/// How the tip of a ledger is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signature {
    /// Not at all.
    Absent,
    /// By a key that may sign for this principal.
    By(String),
    /// By a key of which nobody has said whether it may: its fingerprint.
    Unknown(String),
    /// It does not fit the commit.
    Bad,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The cluster.
    pub cluster: String,
    /// The newest branch.
    pub branch: String,
    /// Its tip.
    pub tip: String,
    /// Entries, over all epochs.
    pub entries: usize,
    /// The last number of each Rollout, by `namespace/name`.
    pub rollouts: BTreeMap<String, i64>,
    /// Of the newest tip.
    pub signature: Signature,
    /// What one should know and is nobody's fault, such as a fork that was told.
    pub notes: Vec<String>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// Checks one cluster's ledger.
///
/// # Errors
/// When the repository cannot be read. What is wrong in the ledger is no error but a fault of the report.
pub async fn verify(archive: &Archive, ledger: &ArchivedLedger, options: &VerifyOptions) -> Result<Report> {
    let chain = archive.chain(ledger).await?;
    let (branch, tip) =
        ledger.branches.last().map(|branch| (branch.name.clone(), branch.tip.clone())).unwrap_or_default();
    let mut books = Books::new(&ledger.cluster);
    if let Some((branch, tip)) = &chain.missing {
        let place = format!("the epoch before {}", chain.segments.first().map_or("", |first| &first.branch));
        books.fault(None, &place, &format!("{branch} at {tip} in this repository"), "nothing");
    }
    if let Err(said) = archive.check_objects(&tip).await? {
        books.fault(None, "the objects", "what their names say", &said);
    }
    let ends: BTreeMap<String, String> =
        chain.segments.iter().map(|segment| (segment.tip.clone(), segment.branch.clone())).collect();
    let mut history = archive.history(chain.segments.clone()).await?;
    while let Some(commit) = history.next().await? {
        let changes = history.changes(&commit).await?;
        books.commit(&mut history, &commit, &changes).await?;
        if ends.contains_key(&commit.id) {
            books.readme(&mut history, &commit.id).await?;
        }
        if books.faults.len() >= MOST_FAULTS {
            break;
        }
    }
    for branch in &ledger.branches {
        if !ends.contains_key(&branch.tip) && !books.forks.contains(&branch.tip) {
            let expected = "a tip from which the next epoch goes on, or that it tells as a fork";
            books.fault(None, &branch.name, expected, &branch.tip);
        }
        for (reference, tip) in &branch.elsewhere {
            books.notes.push(format!("{reference} is at {tip}, not at {}", branch.tip));
        }
    }
    for seen in &options.seen_tips {
        let mut here = false;
        for segment in chain.segments.iter().filter(|_| is_object_name(seen)) {
            here |= archive.holds(&segment.tip, seen).await?;
        }
        if !here {
            books.fault(None, &branch, &format!("the tip {seen}, which was seen elsewhere"), "a history without it");
        }
    }
    let signature = archive.signature(&tip, options.allowed_signers.as_deref()).await?;
    books.signature(&tip, &signature, options);
    let rollouts = books.states.iter();
    let rollouts = rollouts.map(|((namespace, name), state)| (format!("{namespace}/{name}"), state.sequence));
    Ok(Report {
        cluster: ledger.cluster.clone(),
        branch,
        tip,
        entries: books.entries,
        rollouts: rollouts.collect(),
        signature,
        notes: books.notes,
        faults: books.faults,
    })
}

type Key = (String, String);

/// What the ledger holds up to a commit.
struct Books {
    cluster: String,
    author: String,
    entries: usize,
    /// The tree, by path: the name of the object.
    tree: BTreeMap<String, String>,
    states: BTreeMap<Key, StateFile>,
    aborted: BTreeMap<Key, BTreeMap<String, String>>,
    /// The last commit of each Rollout's name, as a reader of the present branch finds it.
    commits: BTreeMap<Key, String>,
    /// The commit before, and the branch it was read for.
    last: Option<(String, String)>,
    forks: BTreeSet<String>,
    notes: Vec<String>,
    faults: Vec<Fault>,
}

impl Books {
    fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            author: format!("Sluice <sluice@{cluster}>"),
            entries: 0,
            tree: BTreeMap::new(),
            states: BTreeMap::new(),
            aborted: BTreeMap::new(),
            commits: BTreeMap::new(),
            last: None,
            forks: BTreeSet::new(),
            notes: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, commit: Option<&str>, place: &str, expected: &str, found: &str) {
        let quote = |text: &str| {
            let line: String = one_line(text).chars().take(LONGEST_QUOTE).collect();
            if line.is_empty() { "nothing".to_owned() } else { line }
        };
        self.faults.push(Fault {
            commit: commit.map(str::to_owned),
            place: quote(place),
            expected: quote(expected),
            found: quote(found),
        });
    }

    async fn commit(&mut self, history: &mut History, commit: &Commit, changes: &[Change]) -> Result<()> {
        self.people(commit);
        for change in changes {
            let Some(entry) = &change.after else {
                self.tree.remove(&change.path);
                continue;
            };
            if entry.mode != "100644" {
                let found = format!("mode {}", entry.mode);
                self.fault(Some(&commit.id), &change.path, "a plain file, mode 100644", &found);
            }
            self.tree.insert(change.path.clone(), entry.object.clone());
        }
        let trailers = commit.trailers();
        if trailers.get("Epoch").is_some() {
            self.epoch(commit, &trailers, changes);
        } else {
            self.parent(commit, false);
            self.entries += 1;
            self.entry(history, commit, &trailers, changes).await?;
        }
        self.last = Some((commit.id.clone(), commit.branch.to_string()));
        Ok(())
    }

    /// Who wrote it, and what else a commit's head says.
    fn people(&mut self, commit: &Commit) {
        let author = self.author.clone();
        for (place, person) in [("author", &commit.author), ("committer", &commit.committer)] {
            if person.who != author || person.zone != "+0000" {
                self.fault(Some(&commit.id), place, &format!("{author} at +0000"), &person.to_string());
            }
        }
        if commit.committer.seconds != commit.author.seconds {
            self.fault(Some(&commit.id), "committer", "the author's time", &commit.committer.to_string());
        }
        if !commit.more_headers.is_empty() {
            self.fault(Some(&commit.id), "headers", "those of an entry", &commit.more_headers.join(", "));
        }
    }

    fn parent(&mut self, commit: &Commit, root: bool) {
        let before = self.last.as_ref().filter(|_| !root).map(|(commit, _)| vec![commit.clone()]);
        let expected = before.unwrap_or_default();
        if commit.parents != expected {
            let told = |parents: &[String]| match parents {
                [] => "no parent".to_owned(),
                some => some.join(" and "),
            };
            self.fault(Some(&commit.id), "parents", &told(&expected), &told(&commit.parents));
        }
    }

    /// The first commit of a later epoch.
    fn epoch(&mut self, commit: &Commit, trailers: &Trailers, changes: &[Change]) {
        let id = commit.id.as_str();
        let fork = trailers.get("Fork");
        let (previous, tip) = trailers.get("Prev-Epoch").and_then(|cited| cited.split_once(' ')).unwrap_or_default();
        let epoch = Epoch::parse(&self.cluster, &commit.branch);
        let name = epoch.and_then(Epoch::name).unwrap_or_default();
        let operator = trailers.get("Operator").unwrap_or_default();
        self.message(commit, &epoch::message(&self.cluster, &name, (previous, tip), fork, operator));
        // After a fork it goes on from what was written last, if that is left; at a quarter's end only the tree does.
        self.parent(commit, fork.is_none() || commit.parents.is_empty());
        let (last, branch) = self.last.clone().unwrap_or_default();
        if (tip, previous) != (last.as_str(), branch.as_str()) {
            self.fault(Some(id), "Rollout-Prev-Epoch", &format!("{branch} {last}"), &format!("{previous} {tip}"));
        }
        let before = Epoch::parse(&self.cluster, previous);
        if !matches!((before, epoch), (Some(before), Some(epoch)) if before < epoch) {
            self.fault(Some(id), "Rollout-Prev-Epoch", "an epoch before this one", previous);
        }
        for change in changes {
            self.fault(Some(id), &change.path, "the tree of the epoch before", "a change");
        }
        if let Some(found) = fork {
            self.forks.insert(found.to_owned());
            let branch = &commit.branch;
            self.notes.push(format!("{previous} was rewritten: {found} in place of {tip}; {branch} goes on"));
        }
        if commit.parents.is_empty() {
            for last in self.commits.values_mut() {
                last.clone_from(&commit.id);
            }
        }
    }

    /// One transition.
    async fn entry(
        &mut self,
        history: &mut History,
        commit: &Commit,
        trailers: &Trailers,
        changes: &[Change],
    ) -> Result<()> {
        let id = commit.id.as_str();
        let Some(key) = self.identity(commit, trailers) else { return Ok(()) };
        let place = folder(&key.0, &key.1);
        let Some(state) = self.state(history, id, &state_path(&key.0, &key.1), changes).await? else {
            return Ok(());
        };
        let Some(transition) = self.transition(id, &state, trailers) else { return Ok(()) };
        let text = |name: &str| trailers.get(name).unwrap_or_default().to_owned();
        let mut entry = LedgerEntry {
            cluster: self.cluster.clone(),
            namespace: key.0.clone(),
            name: key.1.clone(),
            uid: text("Uid"),
            transition,
            covers: if text("Covers").is_empty() { Vec::new() } else { covered_by(commit) },
            state: state.status.clone(),
            plan: String::new(),
            evidence: Vec::new(),
            template: None,
            operator: text("Operator"),
        };
        let before = self.states.get(&key).cloned();
        self.numbers(id, before.as_ref(), &entry);
        self.evidence(history, id, trailers, &mut entry).await?;
        for change in changes {
            let Some(after) = &change.after else { continue };
            let content = history.read(&after.object).await?;
            let Some(text) = content.bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()) else {
                self.fault(Some(id), &change.path, "a text", "something else");
                continue;
            };
            match Place::parse(&change.path).filter(|(folder, _)| *folder == place) {
                Some((_, Place::Plan)) => text.clone_into(&mut entry.plan),
                Some((_, Place::Template | Place::Good)) => self.template(id, &change.path, text, &mut entry),
                _ => {}
            }
        }
        let known = template_path(&key.0, &key.1);
        // A release that takes the place of another one of the same template leaves the file as it is.
        let stays = before.as_ref().is_some_and(|before| before.release != state.release)
            && changes.iter().all(|change| change.path != known);
        if (stays || entry.transition.event == TransitionEvent::Promoted)
            && let Some(object) = self.tree.get(&known).cloned()
        {
            // What is promoted is what the ledger knew of the release.
            let content = history.read(&object).await?;
            let text = content.bytes().map(String::from_utf8_lossy).unwrap_or_default();
            self.template(id, &known, &text, &mut entry);
        }
        // As it was before this entry: what goes with it is among the changes.
        let gone = changes.iter().filter(|change| change.after.is_none()).map(|change| change.path.as_str());
        let below = format!("{place}/");
        let left = self.tree.range(below.clone()..).map(|(path, _)| path.as_str());
        let present = gone.chain(left.take_while(|path| path.starts_with(&below)));
        let rendered = entry.render(before.as_ref(), self.commits.get(&key).map(String::as_str), present);
        self.message(commit, &rendered.message);
        if commit.author.seconds != Some(rendered.at.timestamp()) {
            self.fault(Some(id), "author", &format!("the time {}", rendered.at), &commit.author.to_string());
        }
        for (path, expected) in &rendered.files {
            match (expected, self.tree.get(path).cloned()) {
                (None, None) => {}
                (None, Some(_)) => self.fault(Some(id), path, "that it goes with this entry", "that it stays"),
                (Some(_), None) => self.fault(Some(id), path, "a file", "none"),
                (Some(expected), Some(object)) => {
                    let content = history.read(&object).await?;
                    let found = content.bytes().unwrap_or_default();
                    if found != expected.as_bytes() {
                        let (expected, found) = difference(expected, &String::from_utf8_lossy(found));
                        self.fault(Some(id), path, &expected, &found);
                    }
                }
            }
        }
        for change in changes.iter().filter(|change| change.path != README) {
            if !rendered.files.contains_key(&change.path) {
                self.fault(Some(id), &change.path, "no change by an entry of this Rollout", "one");
            }
        }
        self.states.insert(key.clone(), rendered.state);
        let held = self.aborted.entry(key.clone()).or_default();
        held.extend(rendered.denies);
        if let Some(revision) = rendered.lifts {
            held.remove(&revision);
        }
        self.commits.insert(key, commit.id.clone());
        if changes.iter().any(|change| change.path == README) {
            self.readme(history, id).await?;
        }
        Ok(())
    }

    fn identity(&mut self, commit: &Commit, trailers: &Trailers) -> Option<Key> {
        let id = trailers.get("Id").unwrap_or_default();
        let parts: Vec<&str> = id.splitn(3, '/').collect();
        if let [cluster, namespace, name] = parts.as_slice()
            && *cluster == self.cluster
        {
            return Some(((*namespace).to_owned(), (*name).to_owned()));
        }
        let expected = format!("{}/<namespace>/<rollout>", self.cluster);
        self.fault(Some(&commit.id), "Rollout-Id", &expected, id);
        None
    }

    async fn state(
        &mut self,
        history: &mut History,
        id: &str,
        path: &str,
        changes: &[Change],
    ) -> Result<Option<StateFile>> {
        let changed = changes.iter().any(|change| change.path == path && change.after.is_some());
        let object = self.tree.get(path).cloned().unwrap_or_default();
        let content = history.read(&object).await?;
        let state = content.bytes().and_then(|bytes| serde_json::from_slice::<StateFile>(bytes).ok());
        let found = match state {
            Some(state) if changed => return Ok(Some(state)),
            Some(_) => "the one before",
            None => "nothing that can be read as one",
        };
        self.fault(Some(id), path, "the state that this entry led to", found);
        Ok(None)
    }

    /// What happened, as its witnesses tell it: the state, and for what that does not hold the trailers.
    fn transition(&mut self, id: &str, state: &StateFile, trailers: &Trailers) -> Option<Transition> {
        let text = |name: &str| trailers.get(name).map(str::to_owned);
        let weight = text("Weight").unwrap_or_default();
        let Some(weight_from) = weight.split_once("->").and_then(|(from, _)| from.parse().ok()) else {
            self.fault(Some(id), "Rollout-Weight", "<percent>-><percent>", &weight);
            return None;
        };
        let Some((revision, attempt)) = state.release.rsplit_once('.') else {
            self.fault(Some(id), "release of the state", "<revision>.<attempt>", &state.release);
            return None;
        };
        Some(Transition {
            sequence: state.sequence,
            event: state.event,
            at: state.at,
            stage: state.stage,
            stages: state.stages,
            weight_from,
            weight_to: state.weight,
            revision_from: text("From"),
            revision_to: revision.to_owned(),
            attempt: attempt.parse().unwrap_or_default(),
            reason: text("Reason").unwrap_or_else(|| event(state.event)),
            message: state.message.clone(),
            verdict: text("Verdict"),
            actor: text("Actor"),
            source_commit: text("Source-Commit"),
            analysis_runs: Vec::new(),
        })
    }

    fn numbers(&mut self, id: &str, before: Option<&StateFile>, entry: &LedgerEntry) {
        let told = entry.covers.iter().chain([&entry.transition]);
        let numbers: Vec<i64> = told.map(|transition| transition.sequence).collect();
        if numbers.windows(2).any(|pair| pair[1] != pair[0].saturating_add(1)) {
            self.fault(Some(id), "Rollout-Covers", "numbers without a gap", &format!("{numbers:?}"));
        }
        let (Some(before), Some(first)) = (before, numbers.first()) else { return };
        let next = before.sequence.saturating_add(1);
        let again = before.uid != entry.uid && *first == 1;
        if again {
            self.notes.push(format!("{}/{} begins again with number 1 at {id}", entry.namespace, entry.name));
        } else if *first != next {
            self.fault(Some(id), "Rollout-Seq", &next.to_string(), &first.to_string());
        }
    }

    async fn evidence(
        &mut self,
        history: &mut History,
        id: &str,
        trailers: &Trailers,
        entry: &mut LedgerEntry,
    ) -> Result<()> {
        if trailers.get("Evidence").is_none() {
            return Ok(());
        }
        let path = evidence_path(&entry.namespace, &entry.name);
        let object = self.tree.get(&path).cloned().unwrap_or_default();
        let content = history.read(&object).await?;
        match Evidence::all(content.bytes().unwrap_or_default()) {
            Ok(evidence) => entry.evidence = evidence,
            Err(_) => self.fault(Some(id), &path, "the evidence that this entry names", "nothing that can be read"),
        }
        Ok(())
    }

    fn template(&mut self, id: &str, path: &str, text: &str, entry: &mut LedgerEntry) {
        let template = PodTemplate(serde_json::from_str(text).unwrap_or_default());
        let hash = template.hash_v1();
        if !hash.starts_with(&entry.transition.revision_to) {
            let expected = format!("the template of {}", entry.transition.revision_to);
            self.fault(Some(id), path, &expected, &format!("one with the hash {hash}"));
        }
        entry.template = Some(template.0);
    }

    fn message(&mut self, commit: &Commit, expected: &str) {
        let found = commit.text();
        if found == expected {
            return;
        }
        let line = first_difference(expected, &found);
        let name = expected.lines().nth(line).or(found.lines().nth(line)).unwrap_or_default();
        let place = match (line, name.split_once(": ")) {
            (0, _) => "subject",
            (_, Some((name, _))) if name.starts_with("Rollout-") => name,
            _ => "body",
        };
        let (expected, found) = difference(expected, &found);
        self.fault(Some(&commit.id), place, &expected, &found);
    }

    /// What is told once a push must be what follows from the rest.
    async fn readme(&mut self, history: &mut History, id: &str) -> Result<()> {
        if self.faults.iter().any(|fault| fault.place == README && fault.commit.as_deref() == Some(id)) {
            return Ok(());
        }
        let expected = overview(&self.cluster, &self.states, &self.aborted);
        let object = self.tree.get(README).cloned().unwrap_or_default();
        let content = history.read(&object).await?;
        let found = content.bytes().unwrap_or_default();
        if self.entries > 0 && found != expected.as_bytes() {
            let (expected, found) = difference(&expected, &String::from_utf8_lossy(found));
            self.fault(Some(id), README, &expected, &found);
        }
        Ok(())
    }

    fn signature(&mut self, tip: &str, signature: &Signature, options: &VerifyOptions) {
        let writer = format!("sluice@{}", self.cluster);
        match signature {
            Signature::Bad => {
                self.fault(Some(tip), "signature", "one that fits this commit", "one that does not");
            }
            Signature::Absent if options.require_signature => {
                self.fault(Some(tip), "signature", "one over the tip", "none");
            }
            Signature::Unknown(key) if options.allowed_signers.is_some() => {
                self.fault(Some(tip), "signature", "one of an allowed key", key);
            }
            Signature::By(principal) if *principal != writer => {
                self.fault(Some(tip), "signature", &format!("one of {writer}"), principal);
            }
            Signature::Absent | Signature::Unknown(_) | Signature::By(_) => {}
        }
    }
}

/// The transitions that are told in another one's entry, from the lines of its body.
fn covered_by(commit: &Commit) -> Vec<Transition> {
    let body = commit.body();
    body.lines().skip_while(|line| !line.is_empty()).filter_map(covered).collect()
}

/// `4 StepCompleted 2/6 20%→50%: sentence`.
fn covered(line: &str) -> Option<Transition> {
    let (what, message) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
    let mut words = what.split(' ');
    let sequence = words.next()?.parse().ok()?;
    let event: TransitionEvent = serde_json::from_value(Value::from(words.next()?)).ok()?;
    let (stage, stages) = words.next()?.split_once('/')?;
    let (from, to) = words.next()?.split_once('→')?;
    Some(Transition {
        sequence,
        event,
        at: chrono::DateTime::UNIX_EPOCH,
        stage: stage.parse().ok()?,
        stages: stages.parse().ok()?,
        weight_from: from.strip_suffix('%')?.parse().ok()?,
        weight_to: to.strip_suffix('%')?.parse().ok()?,
        revision_from: None,
        revision_to: String::new(),
        attempt: 0,
        reason: String::new(),
        message: message.to_owned(),
        verdict: None,
        actor: None,
        source_commit: None,
        analysis_runs: Vec::new(),
    })
}

fn first_difference(expected: &str, found: &str) -> usize {
    expected.lines().zip(found.lines()).take_while(|(expected, found)| expected == found).count()
}

/// The first line in which two texts differ.
fn difference(expected: &str, found: &str) -> (String, String) {
    let line = first_difference(expected, found);
    let quote = |text: &str| text.lines().nth(line).map_or_else(|| "its end".to_owned(), |line| format!("`{line}`"));
    let (one, other) = (quote(expected), quote(found));
    if one == other {
        // The lines are the same: what ends them is not.
        return ("each line ended by one line break".to_owned(), "something else".to_owned());
    }
    (one, other)
}

impl Archive {
    /// Whether every object of this history is there and is what its name says; else what git says.
    async fn check_objects(&self, tip: &str) -> Result<std::result::Result<(), String>> {
        let arguments = ["fsck", "--no-dangling", "--no-progress", "--no-reflogs", tip];
        let output = self.git.call("checking the objects", arguments).limit(LONGEST_CHECK).output().await?;
        Ok(if output.success { Ok(()) } else { Err(output.stderr) })
    }

    /// Whether `tip` comes after `commit`, or is it.
    async fn holds(&self, tip: &str, commit: &str) -> Result<bool> {
        Ok(super::ledger::exists(&self.git, commit).await?
            && super::ledger::is_ancestor(&self.git, commit, tip).await?)
    }

    /// How a commit is signed, where these may sign.
    async fn signature(&self, commit: &str, allowed: Option<&[u8]>) -> Result<Signature> {
        let text = self.git.call("reading the tip", ["cat-file", "commit", commit]).run().await?;
        let text = String::from_utf8_lossy(&text);
        if !text.lines().take_while(|line| !line.is_empty()).any(|line| line.starts_with("gpgsig")) {
            return Ok(Signature::Absent);
        }
        let file = tempfile::NamedTempFile::new().map_err(super::command::storage)?;
        std::fs::write(file.path(), allowed.unwrap_or_default()).map_err(super::command::storage)?;
        let mut git = self.git.clone();
        git.options.push(format!("gpg.ssh.allowedSignersFile={}", file.path().display()));
        let output = git.call("checking the signature", ["verify-commit", commit]).output().await?;
        // `Good "git" signature for <principal> with ED25519 key SHA256:...`, or without the principal.
        let Some(good) = output.stderr.lines().find(|line| line.starts_with("Good \"git\" signature")) else {
            return Ok(Signature::Bad);
        };
        let principal = good.split_once(" for ").and_then(|(_, rest)| rest.split(" with ").next());
        Ok(match principal {
            Some(principal) if output.success => Signature::By(principal.to_owned()),
            _ => Signature::Unknown(good.rsplit(' ').next().unwrap_or_default().to_owned()),
        })
    }
}
