//! What one transition looks like in the ledger: the commit's message and the files it changes. Pure.
//!
//! The message is read by people in `git log` and by programs through its trailers. Text that people or foreign
//! systems wrote can never break out of its line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::{AnalysisRunSpec, AnalysisRunStatus, MetricResult, RolloutStatus, Transition, TransitionEvent};

// A Rollout's folder is made so that git packs it well. Git looks for deltas among files with the same end of a path, so
// a name is short enough to leave room for the Rollout's; and a tree becomes a delta when what stays lies between what
// changes. `docs/log-at-scale.md` has the numbers.

/// The version of the trailers and files.
pub(super) const SCHEMA: u32 = 1;
const LONGEST_SUBJECT: usize = 72;
const LARGEST_STATE: usize = 128 * 1024;
const LARGEST_PLAN: usize = 64 * 1024;
const LARGEST_EVIDENCE: usize = 512 * 1024;
/// Former uids of one name that are remembered.
const MOST_FORMER: usize = 10;
/// Revisions whose aborts are counted: as many as a Rollout's status remembers.
const MOST_ABORTS: usize = 20;

/// One transition with all that goes into its commit.
#[derive(Clone, Debug, PartialEq)]
pub struct LedgerEntry {
    /// The cluster's name, as in the branch.
    pub cluster: String,
    /// The Rollout's namespace.
    pub namespace: String,
    /// The Rollout's name.
    pub name: String,
    /// The Rollout's uid.
    pub uid: String,
    /// What happened.
    pub transition: Transition,
    /// Earlier transitions of this Rollout that get no commit of their own, oldest first. They are told in this one.
    pub covers: Vec<Transition>,
    /// The Rollout's state as a document, see [`state_document`]; null when a later one is recorded with it.
    pub state: Value,
    /// The rest of the way, in Markdown; empty when a later one is recorded with it.
    pub plan: String,
    /// The analyses behind it.
    pub evidence: Vec<Evidence>,
    /// The pod template of the revision it is about.
    pub template: Option<Value>,
    /// The operator and its version.
    pub operator: String,
}

/// One analysis: what was asked, what was answered, how it was judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// `background`, or `step-N`.
    pub stage: String,
    /// The document.
    pub body: Value,
}

/// `<namespace>/<rollout>/state.json`: the present, and what is needed to write the next entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StateFile {
    pub(super) schema: u32,
    pub(super) id: String,
    pub(super) uid: String,
    pub(super) sequence: i64,
    pub(super) at: DateTime<Utc>,
    pub(super) event: TransitionEvent,
    #[serde(default)]
    pub(super) message: String,
    pub(super) release: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) source_commit: Option<String>,
    #[serde(default)]
    pub(super) operator: String,
    pub(super) stage: i32,
    pub(super) stages: i32,
    pub(super) weight: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_good: Option<LastGood>,
    /// Uids that had this name before, with their last number: a late entry of theirs is not written again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) former: Vec<Former>,
    /// How often each revision was aborted since it was last promoted, the newest abort last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) aborts: Vec<Aborts>,
    #[serde(default)]
    pub(super) status: Value,
}

/// The last revision that was promoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LastGood {
    pub(super) revision: String,
    pub(super) at: DateTime<Utc>,
}

/// A Rollout that had this name before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Former {
    pub(super) uid: String,
    pub(super) sequence: i64,
}

/// How often a revision was aborted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Aborts {
    pub(super) revision: String,
    pub(super) aborts: i32,
}

impl StateFile {
    /// How often a revision was aborted since it was last promoted.
    fn aborts_of(&self, revision: &str) -> i32 {
        self.aborts.iter().find(|known| known.revision == revision).map_or(0, |known| known.aborts)
    }

    /// Whether a release is under way.
    fn is_in_flight(&self) -> bool {
        // What says nothing about a release.
        let beside = [TransitionEvent::DriftCorrected, TransitionEvent::Restarting, TransitionEvent::Restarted];
        if beside.contains(&self.event) {
            return self.status.get("release").is_some_and(|release| !release.is_null());
        }
        !matches!(
            self.event,
            TransitionEvent::Promoted
                | TransitionEvent::Aborted
                | TransitionEvent::Denied
                | TransitionEvent::HandedBack
        )
    }

    /// What a message tells only when it is not as in the entry before of the same Rollout: the trailers' names and
    /// values. One that has no value is empty.
    pub(super) fn repeated(&self) -> [(&'static str, String); 7] {
        let revision = self.release.rsplit_once('.').map_or(self.release.as_str(), |(revision, _)| revision);
        [
            ("Schema", self.schema.to_string()),
            ("Uid", self.uid.clone()),
            ("Release", self.release.clone()),
            ("From", self.from.clone().unwrap_or_default()),
            ("To", revision.to_owned()),
            ("Source-Commit", self.source_commit.clone().unwrap_or_default()),
            ("Operator", self.operator.clone()),
        ]
    }

    /// Whether this transition is in the ledger.
    pub(super) fn has(&self, uid: &str, sequence: i64) -> bool {
        if self.uid == uid {
            return sequence <= self.sequence;
        }
        self.former.iter().any(|former| former.uid == uid && sequence <= former.sequence)
    }
}

/// One commit, ready to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rendered {
    pub(super) message: String,
    pub(super) at: DateTime<Utc>,
    pub(super) state: StateFile,
    /// Path and content; `None` removes the file.
    pub(super) files: BTreeMap<String, Option<String>>,
    /// A file of the ledger, and where it stands too from now on.
    pub(super) copy: Option<(String, String)>,
    /// What the deny list gains, by revision.
    pub(super) denies: Option<(String, String)>,
    /// What it loses.
    pub(super) lifts: Option<String>,
}

impl LedgerEntry {
    /// `cluster/namespace/name`.
    pub(super) fn id(&self) -> String {
        format!("{}/{}/{}", self.cluster, self.namespace, self.name)
    }

    /// The commit. `before` is the state this Rollout's name has in the ledger, `previous` the commit of that, `present`
    /// the paths that the ledger holds of this Rollout (others do not matter).
    pub(super) fn render<'a>(
        &self,
        before: Option<&StateFile>,
        previous: Option<&str>,
        present: impl Iterator<Item = &'a str>,
    ) -> Rendered {
        let transition = &self.transition;
        let release = format!("{}.{}", transition.revision_to, transition.attempt);
        let place = folder(&self.namespace, &self.name);
        let mut files = BTreeMap::new();
        let at = |file: &str| format!("{place}/{file}");
        if !self.evidence.is_empty() {
            files.insert(at(EVIDENCE), Some(evidence_file(&self.evidence)));
        }
        let template = self.template.as_ref().map(document);
        if template.is_some() {
            files.insert(at(TEMPLATE), template.clone());
        }
        let state = self.state_file(before, release);
        let denied_path = at(&format!("{ABORTED}/{}.json", component(&transition.revision_to)));
        let (mut denies, mut lifts) = (None, None);
        match transition.event {
            TransitionEvent::Aborted if self.denies() => {
                let denial = serde_json::json!({
                    "schema": SCHEMA,
                    "id": self.id(),
                    "revision": transition.revision_to,
                    "attempt": transition.attempt,
                    "aborts": state.aborts_of(&transition.revision_to),
                    "reason": transition.reason,
                    "message": transition.message,
                    "at": stamp(transition.at),
                    "actor": transition.actor,
                    "sourceCommit": transition.source_commit,
                    "evidence": self.stages(),
                });
                files.insert(denied_path, Some(document(&denial)));
                denies = Some((transition.revision_to.clone(), transition.message.clone()));
            }
            // What begins had consent, and what is promoted had it: it is not held back any more.
            TransitionEvent::FirstDeploy | TransitionEvent::Started | TransitionEvent::Promoted => {
                files.insert(denied_path, None);
                lifts = Some(transition.revision_to.clone());
            }
            _ => {}
        }
        files.insert(state_path(&self.namespace, &self.name), Some(document(&state)));
        if !self.plan.is_empty() {
            files.insert(at(PLAN), Some(self.plan_file()));
        }
        let revision = |state: &StateFile| state.last_good.as_ref().map(|good| good.revision.clone());
        let another_good = before.and_then(revision) != revision(&state);
        let promoted = transition.event == TransitionEvent::Promoted;
        let unknown = promoted && template.is_none();
        if promoted && template.is_some() {
            files.insert(at(GOOD), template);
        }
        let mut copy = None;
        let another_release = before.is_none_or(|before| before.release != state.release);
        // The tree is the present: what belongs to an earlier release is in the history.
        let gone = [(EVIDENCE, another_release), (TEMPLATE, another_release), (GOOD, another_good)];
        for path in present {
            let file = path.strip_prefix(&*place).and_then(|rest| rest.strip_prefix('/'));
            if unknown && !another_release && file == Some(TEMPLATE) {
                // Its ReplicaSet is gone by now, and the ledger has it from the entries before.
                copy = Some((at(TEMPLATE), at(GOOD)));
            }
            if gone.iter().any(|(name, gone)| *gone && file == Some(name)) {
                files.entry(path.to_owned()).or_insert(None);
            }
        }
        if before.is_none() {
            files.insert(at(README), Some(guide(&self.namespace, &self.name)));
        }
        if copy.is_some() {
            files.remove(&at(GOOD));
        }
        let message = self.message(&state, before, previous);
        Rendered { message, at: transition.at, state, files, copy, denies, lifts }
    }

    /// The analyses it is based on, by the names they have in the ledger.
    fn stages(&self) -> Vec<String> {
        let stages: BTreeSet<String> = self.evidence.iter().map(|evidence| component(&evidence.stage)).collect();
        stages.into_iter().collect()
    }

    /// A revert says where to be, not that the revision is bad: asking for it again is consent.
    fn denies(&self) -> bool {
        self.transition.event == TransitionEvent::Aborted && self.transition.reason != "Revert"
    }

    /// How often each revision was aborted, this entry included.
    fn aborts(&self, before: Option<&StateFile>) -> Vec<Aborts> {
        let mut all = before.map(|before| before.aborts.clone()).unwrap_or_default();
        let revision = &self.transition.revision_to;
        let settled = self.transition.event == TransitionEvent::Promoted;
        if self.denies() || settled {
            all.retain(|known| known.revision != *revision);
        }
        if self.denies() {
            let aborts = before.map_or(0, |before| before.aborts_of(revision)).saturating_add(1);
            all.push(Aborts { revision: revision.clone(), aborts });
            all.drain(..all.len().saturating_sub(MOST_ABORTS));
        }
        all
    }

    fn state_file(&self, before: Option<&StateFile>, release: String) -> StateFile {
        let transition = &self.transition;
        let mut former = before.map(|before| before.former.clone()).unwrap_or_default();
        if let Some(before) = before.filter(|before| before.uid != self.uid) {
            former.retain(|known| known.uid != self.uid);
            former.push(Former { uid: before.uid.clone(), sequence: before.sequence });
            let surplus = former.len().saturating_sub(MOST_FORMER);
            former.drain(..surplus);
        }
        let last_good = match transition.event {
            TransitionEvent::Promoted => Some(LastGood { revision: transition.revision_to.clone(), at: transition.at }),
            _ => before.and_then(|before| before.last_good.clone()),
        };
        let status = if self.state.to_string().len() > LARGEST_STATE { Value::Null } else { self.state.clone() };
        StateFile {
            schema: SCHEMA,
            id: self.id(),
            uid: self.uid.clone(),
            sequence: transition.sequence,
            at: transition.at,
            event: transition.event,
            message: transition.message.clone(),
            release,
            from: transition.revision_from.clone(),
            source_commit: transition.source_commit.clone(),
            operator: self.operator.clone(),
            stage: transition.stage,
            stages: transition.stages,
            weight: transition.weight_to,
            last_good,
            former,
            aborts: self.aborts(before),
            status,
        }
    }

    fn plan_file(&self) -> String {
        let mut plan: String = self.plan.trim_end().to_owned();
        if plan.len() > LARGEST_PLAN {
            let cut = plan.char_indices().map(|(at, _)| at).take_while(|at| *at <= LARGEST_PLAN).last();
            plan.truncate(cut.unwrap_or(0));
            plan.push_str("\n\n(cut here: the plan is longer than is kept)");
        }
        plan + "\n"
    }

    fn message(&self, state: &StateFile, before: Option<&StateFile>, previous: Option<&str>) -> String {
        let transition = &self.transition;
        let mut message = self.subject();
        let sentence = one_line(&transition.message);
        let _ = write!(message, "\n\n{}\n", if sentence.is_empty() { one_line(&transition.reason) } else { sentence });
        for (index, covered) in self.covers.iter().enumerate() {
            let blank = if index == 0 { "\n" } else { "" };
            let (number, sentence) = (covered.sequence, one_line(&covered.message));
            let _ = writeln!(message, "{blank}{number} {}: {sentence}", what(covered));
        }
        let mut trailer = |name: &str, text: &str| {
            if !text.is_empty() {
                let _ = write!(message, "\nRollout-{name}: {}", trailer_value(text));
            }
        };
        trailer("Id", &self.id());
        trailer("Seq", &transition.sequence.to_string());
        trailer("Covers", &self.covered());
        trailer("Prev", previous.unwrap_or_default());
        trailer("Event", &event(transition.event));
        trailer("Step", &format!("{}/{}", transition.stage, transition.stages));
        trailer("Weight", &format!("{}->{}", transition.weight_from, transition.weight_to));
        trailer("Verdict", transition.verdict.as_deref().unwrap_or_default());
        if transition.reason != event(transition.event) {
            trailer("Reason", &transition.reason);
        }
        trailer("Actor", transition.actor.as_deref().unwrap_or_default());
        trailer("Evidence", &self.stages().join(" "));
        let told = before.map(StateFile::repeated);
        for (index, (name, value)) in state.repeated().into_iter().enumerate() {
            match told.as_ref().and_then(|told| told.get(index)) {
                Some((_, before)) if *before == value => {}
                Some(_) if value.is_empty() => trailer(name, NO_MORE),
                _ => trailer(name, &value),
            }
        }
        message.push('\n');
        message
    }

    /// The numbers of the covered transitions, `4` or `4-6`; empty when there are none.
    fn covered(&self) -> String {
        match self.covers.as_slice() {
            [] => String::new(),
            [only] => only.sequence.to_string(),
            [first, .., last] => format!("{}-{}", first.sequence, last.sequence),
        }
    }

    /// At most 72 letters. The name gives way, for the trailers hold it in full.
    fn subject(&self) -> String {
        let tail = format!(": {}", what(&self.transition));
        let name = one_line(&format!("{}/{}", self.namespace, self.name));
        let room = LONGEST_SUBJECT.saturating_sub(tail.chars().count());
        if name.chars().count() <= room {
            return name + &tail;
        }
        let cut: String = name.chars().take(room.saturating_sub(1)).collect();
        format!("{cut}…{tail}")
    }
}

/// What of a Rollout's status goes into the ledger: where it stands, and nothing that is there already or that
/// changes without a transition.
pub fn state_document(status: &RolloutStatus) -> Value {
    let mut document = serde_json::to_value(status).unwrap_or_default();
    if let Some(fields) = document.as_object_mut() {
        for left_out in [
            "pendingLog",
            "recordedSequence",
            "conditions",
            "takenInterventions",
            "refusedInterventions",
            "epoch",
            "selector",
            "message",
            "sequence",
            "strategy",
            "stepLabel",
            "weight",
            "seen",
            "replicas",
            "readyReplicas",
            "updatedReplicas",
            "observedGeneration",
        ] {
            fields.remove(left_out);
        }
    }
    document
}

impl Evidence {
    /// All that a file of the ledger holds, by stage.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn all(file: &[u8]) -> serde_json::Result<Vec<Self>> {
        let all: BTreeMap<String, Value> = serde_json::from_slice(file)?;
        Ok(all.into_iter().map(|(stage, body)| Self { stage, body }).collect())
    }

    /// Everything that is needed to judge again: what was asked, each answer, each verdict.
    pub fn of(run: &str, spec: &AnalysisRunSpec, status: &AnalysisRunStatus) -> Self {
        let results: BTreeMap<&str, &MetricResult> =
            status.metrics.iter().map(|result| (result.name.as_str(), result)).collect();
        let metrics: Vec<Value> = spec
            .metrics
            .iter()
            .map(|metric| serde_json::json!({"asked": metric, "answered": results.get(metric.name.as_str())}))
            .collect();
        let body = serde_json::json!({
            "schema": SCHEMA,
            "analysisRun": run,
            "rollout": spec.rollout,
            "revision": spec.revision,
            "attempt": spec.attempt,
            "stage": spec.stage,
            "phase": status.phase,
            "message": status.message,
            // To the last digit: a hold runs out at a time, and whoever judges again must find the same side of it.
            "startedAt": status.started_at,
            "completedAt": status.completed_at,
            "terminate": spec.terminate,
            "metrics": metrics,
        });
        Self { stage: spec.stage.clone(), body }
    }
}

/// The folder of all that the ledger holds of a Rollout.
pub(super) fn folder(namespace: &str, name: &str) -> String {
    format!("{}/{}", component(namespace), component(name))
}

/// Where the present of a Rollout stands.
pub(super) fn state_path(namespace: &str, name: &str) -> String {
    format!("{}/{STATE}", folder(namespace, name))
}

/// Where the evidence of a Rollout stands.
pub(super) fn evidence_path(namespace: &str, name: &str) -> String {
    format!("{}/{EVIDENCE}", folder(namespace, name))
}

/// Where the pod template of the present release stands.
pub(super) fn template_path(namespace: &str, name: &str) -> String {
    format!("{}/{TEMPLATE}", folder(namespace, name))
}

/// What analyses were asked and answered, by stage.
fn evidence_file(all: &[Evidence]) -> String {
    let bounded = all.iter().map(|evidence| (component(&evidence.stage), bounded(&evidence.body, LARGEST_EVIDENCE)));
    document(&bounded.collect::<BTreeMap<String, Value>>())
}

const STATE: &str = "state.json";
const PLAN: &str = "plan.md";
const EVIDENCE: &str = "facts.json";
const TEMPLATE: &str = "pod.json";
const GOOD: &str = "good.json";
const ABORTED: &str = "aborted";
const README: &str = "README.md";
/// The value of a trailer that the entry before had and this one has not.
pub(super) const NO_MORE: &str = "-";

/// What lies below a Rollout's folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// `state.json`: the present.
    State,
    /// `plan.md`: the rest of the way.
    Plan,
    /// `facts.json`: what the analyses of the present release were last asked and answered, by stage.
    Evidence,
    /// `pod.json`: the pod template of the present release.
    Template,
    /// `good.json`: the pod template of the last good revision.
    Good,
    /// `aborted/<revision>.json`: what is not rolled out again without a person's word.
    Aborted {
        /// The revision.
        revision: &'a str,
    },
    /// `README.md`: what the others are. It never changes.
    Guide,
}

impl<'a> Place<'a> {
    /// The Rollout's folder, `<namespace>/<rollout>`, and what the path is in it. None for what no ledger holds.
    pub fn parse(path: &'a str) -> Option<(&'a str, Self)> {
        let (at, _) = path.match_indices('/').nth(1)?;
        let (folder, rest) = (path.get(..at)?, path.get(at + 1..)?);
        let place = match rest {
            STATE => Self::State,
            PLAN => Self::Plan,
            EVIDENCE => Self::Evidence,
            TEMPLATE => Self::Template,
            GOOD => Self::Good,
            README => Self::Guide,
            _ => {
                let file = rest.strip_prefix(ABORTED)?.strip_prefix('/')?;
                let revision = file.strip_suffix(".json").filter(|revision| !revision.contains('/'))?;
                Self::Aborted { revision }
            }
        };
        Some((folder, place))
    }
}

/// `README.md` in a Rollout's folder.
fn guide(namespace: &str, name: &str) -> String {
    format!(
        "# {}/{}\n\n\
         Written by Sluice.\n\n\
         - `state.json` — the present\n\
         - `plan.md` — what comes next\n\
         - `facts.json` — what its analyses were asked and answered; of earlier releases that is in the history\n\
         - `pod.json` — the pod template of the release, `good.json` — that of the last good one\n\
         - `aborted/` — revisions that are held back\n",
        one_line(namespace),
        one_line(name),
    )
}

/// The event as it is written everywhere: in the subject, the trailers and the files.
pub(super) fn event(event: TransitionEvent) -> String {
    format!("{event:?}")
}

/// `StepCompleted 2/6 20%→50%`.
fn what(transition: &Transition) -> String {
    let Transition { stage, stages, weight_from, weight_to, .. } = transition;
    format!("{} {stage}/{stages} {weight_from}%→{weight_to}%", event(transition.event))
}

/// Part of a path in the tree that can be nothing else, whatever it is made of.
pub(super) fn component(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let mut out: String = text.chars().map(plain).take(200).collect();
    if out.is_empty() || out.starts_with('.') {
        out.insert(0, '_');
    }
    out
}

/// JSON as it is stored: sorted and indented, so that equal content is an equal file and a difference is small.
pub(super) fn document(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).map(sorted).unwrap_or_default();
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

fn bounded(value: &Value, most: usize) -> Value {
    match value.to_string().len() {
        length if length <= most => value.clone(),
        length => {
            serde_json::json!({ "schema": SCHEMA, "omitted": format!("{length} bytes, more than {most} are not kept") })
        }
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<String, Value> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(ordered.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        scalar => scalar,
    }
}

/// As the API writes times.
pub(super) fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Letters that move what stands around them, or end a line somewhere.
fn unruly(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Foreign text as one line of a message.
pub(super) fn one_line(text: &str) -> String {
    let spaced: String = text.chars().map(|c| if unruly(c) { ' ' } else { c }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A plain word as it is; anything else as a JSON string.
fn trailer_value(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@+>()#%=, ".contains(c);
    if text.chars().all(plain) && text.trim() == text {
        return text.to_owned();
    }
    let quoted = Value::from(text).to_string();
    quoted.chars().fold(String::with_capacity(quoted.len()), |mut out, c| {
        if unruly(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
        out
    })
}

/// `README.md` in the root: what is in flight and what is held back, at a glance. Whoever is at rest is not in it: with
/// a large fleet this would be the largest file, written with each push.
pub(super) fn overview(
    cluster: &str,
    states: &BTreeMap<(String, String), StateFile>,
    aborted: &BTreeMap<(String, String), BTreeMap<String, String>>,
) -> String {
    let cell = |text: &str| one_line(text).replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;");
    let mut out = format!(
        "# Rollouts of {cluster}\n\n\
         Written by Sluice: one commit for each transition, and nothing else. Do not commit here.\n\n\
         ## In flight\n\n\
         | Rollout | Last event | Step | Weight | Release | When (UTC) | Why |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for ((namespace, name), state) in states.iter().filter(|(_, state)| state.is_in_flight()) {
        let path = folder(namespace, name);
        let _ = writeln!(
            out,
            "| [{namespace}/{name}]({path}) ([plan]({path}/{PLAN})) | {} | {}/{} | {}% | {} | {} | {} |",
            event(state.event),
            state.stage,
            state.stages,
            state.weight,
            cell(&state.release),
            state.at.format("%Y-%m-%d %H:%M:%S"),
            cell(&state.message),
        );
    }
    out.push_str("\nEvery other Rollout is at rest: the `state.json` in its folder says on which revision.\n");
    out.push_str(
        "\n## Held back\n\nRevisions that were aborted. They are not rolled out again without a person's word.\n\n",
    );
    let mut any = false;
    for ((namespace, name), revisions) in aborted {
        for (revision, why) in revisions {
            any = true;
            let _ = writeln!(out, "- {namespace}/{name} `{}`: {}", component(revision), cell(why));
        }
    }
    if !any {
        out.push_str("None.\n");
    }
    out.push_str(
        "\n## How to read this branch\n\n\
         - `git log` — what happened; each commit's trailers say who, when, why and on which evidence. What is as in the \
         entry before of the same Rollout is not told again\n\
         - `git log -- <namespace>/<rollout>` — the history of one Rollout\n\
         - the folder of a Rollout — its present, what comes next and what the last verdict was based on\n",
    );
    out
}

#[cfg(test)]
mod unit {
    use super::{Evidence, LastGood, LedgerEntry, Rendered, StateFile, component, event, overview, trailer_value};
    use crate::api::{Transition, TransitionEvent};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn none() -> std::iter::Empty<&'static str> {
        std::iter::empty()
    }

    fn entry() -> LedgerEntry {
        LedgerEntry {
            cluster: "prod".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "0b7f".into(),
            transition: Transition {
                sequence: 7,
                event: TransitionEvent::Aborted,
                at: "2026-03-04T05:06:07Z".parse().unwrap(),
                stage: 2,
                stages: 6,
                weight_from: 20,
                weight_to: 0,
                revision_from: Some("aaaaaaaaaa".into()),
                revision_to: "bbbbbbbbbb".into(),
                attempt: 1,
                reason: "AnalysisFailed".into(),
                message: "error-rate was 0.08, at most 0.01 is allowed".into(),
                verdict: Some("Fail".into()),
                actor: None,
                source_commit: Some("1234567890123456789012345678901234567890".into()),
                analysis_runs: vec!["web-bbbbbbbbbb-1-step-1-abcdef".into()],
            },
            covers: Vec::new(),
            state: json!({"phase": "Aborted", "a": 1}),
            plan: "Traffic is back on aaaaaaaaaa.".into(),
            evidence: vec![Evidence { stage: "step-1".into(), body: json!({"verdict": "Fail"}) }],
            template: Some(json!({"spec": {}})),
            operator: "sluice/0.1.0".into(),
        }
    }

    #[test]
    fn the_message_is_exactly_this() {
        let message = entry().render(None, Some("fedcba"), none()).message;
        let expected = "\
shop/web: Aborted 2/6 20%→0%

error-rate was 0.08, at most 0.01 is allowed

Rollout-Id: prod/shop/web
Rollout-Seq: 7
Rollout-Prev: fedcba
Rollout-Event: Aborted
Rollout-Step: 2/6
Rollout-Weight: 20->0
Rollout-Verdict: Fail
Rollout-Reason: AnalysisFailed
Rollout-Evidence: step-1
Rollout-Schema: 1
Rollout-Uid: 0b7f
Rollout-Release: bbbbbbbbbb.1
Rollout-From: aaaaaaaaaa
Rollout-To: bbbbbbbbbb
Rollout-Source-Commit: 1234567890123456789012345678901234567890
Rollout-Operator: sluice/0.1.0
";
        assert_eq!(message, expected);
    }

    #[test]
    fn what_is_as_in_the_entry_before_is_not_told_again() {
        let before = entry().render(None, None, none()).state;
        let told = |entry: &LedgerEntry| -> Vec<String> {
            let message = entry.render(Some(&before), Some("fedcba"), none()).message;
            message
                .lines()
                .skip_while(|line| !line.starts_with("Rollout-Evidence"))
                .skip(1)
                .map(str::to_owned)
                .collect()
        };
        let mut next = entry();
        next.transition.sequence = 8;
        assert_eq!(told(&next), Vec::<String>::new());
        next.transition.attempt = 2;
        next.operator = "sluice/0.2.0".into();
        next.uid = "another".into();
        let three = ["Rollout-Uid: another", "Rollout-Release: bbbbbbbbbb.2", "Rollout-Operator: sluice/0.2.0"];
        assert_eq!(told(&next), three);
        (next.transition.revision_from, next.transition.source_commit) = (None, None);
        let said = told(&next);
        assert!(said.contains(&"Rollout-From: -".to_owned()), "nothing is not the same as before: {said:?}");
        assert!(said.contains(&"Rollout-Source-Commit: -".to_owned()), "{said:?}");
    }

    #[test]
    fn the_tree_is_exactly_this() {
        let rendered = entry().render(None, None, none());
        let paths: Vec<_> = rendered.files.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "shop/web/README.md",
                "shop/web/aborted/bbbbbbbbbb.json",
                "shop/web/facts.json",
                "shop/web/plan.md",
                "shop/web/pod.json",
                "shop/web/state.json",
            ]
        );
        let state = rendered.files["shop/web/state.json"].as_deref().unwrap();
        let expected = r#"{
  "aborts": [
    {
      "aborts": 1,
      "revision": "bbbbbbbbbb"
    }
  ],
  "at": "2026-03-04T05:06:07Z",
  "event": "Aborted",
  "from": "aaaaaaaaaa",
  "id": "prod/shop/web",
  "message": "error-rate was 0.08, at most 0.01 is allowed",
  "operator": "sluice/0.1.0",
  "release": "bbbbbbbbbb.1",
  "schema": 1,
  "sequence": 7,
  "sourceCommit": "1234567890123456789012345678901234567890",
  "stage": 2,
  "stages": 6,
  "status": {
    "a": 1,
    "phase": "Aborted"
  },
  "uid": "0b7f",
  "weight": 0
}
"#;
        assert_eq!(state, expected);
    }

    #[test]
    fn a_new_release_clears_what_is_over_and_nothing_else() {
        let aborted = entry().render(None, None, none());
        let present = [
            "shop/web/facts.json",
            "shop/web/pod.json",
            "shop/web/good.json",
            "shop/web/aborted/bbbbbbbbbb.json",
            "shop/web/state.json",
            "shop/web.2/facts.json",
            "shop/api/pod.json",
        ];
        let gone = |rendered: Rendered| -> Vec<String> {
            rendered.files.into_iter().filter(|(_, text)| text.is_none()).map(|(path, _)| path).collect()
        };
        let mut again = entry();
        again.transition.sequence = 8;
        again.evidence.clear();
        again.template = None;
        let same = again.render(Some(&aborted.state), None, present.into_iter());
        assert_eq!(gone(same), Vec::<String>::new(), "the same release keeps all");
        let mut next = again.clone();
        next.transition.revision_to = "cccccccccc".into();
        next.transition.event = TransitionEvent::StepCompleted;
        let before = StateFile {
            last_good: Some(LastGood { revision: "aaaaaaaaaa".into(), at: next.transition.at }),
            ..aborted.state
        };
        let cleared = next.render(Some(&before), None, present.into_iter());
        assert_eq!(gone(cleared), ["shop/web/facts.json", "shop/web/pod.json"]);
        next.template = Some(json!({"new": 1}));
        next.evidence = entry().evidence;
        assert_eq!(gone(next.render(Some(&before), None, present.into_iter())), Vec::<String>::new(), "its own");
        next.transition.event = TransitionEvent::Promoted;
        let promoted = next.render(Some(&before), None, present.into_iter());
        assert_eq!(promoted.files["shop/web/good.json"], promoted.files["shop/web/pod.json"]);
        let stands = ("shop/web/pod.json".to_owned(), "shop/web/good.json".to_owned());
        next.template = None;
        let unknown = next.render(Some(&before), None, present.into_iter());
        assert_eq!(unknown.copy, None);
        let unknown = gone(unknown);
        assert!(unknown.contains(&stands.1), "nothing is better than another one's: {unknown:?}");
        let known =
            next.render(Some(&StateFile { release: "cccccccccc.1".into(), ..before }), None, present.into_iter());
        assert_eq!(known.copy, Some(stands));
        assert_eq!(gone(known), ["shop/web/aborted/cccccccccc.json"]);
    }

    #[test]
    fn foreign_text_cannot_forge_a_trailer_or_a_line() {
        let mut forged = entry();
        forged.transition.message = "fine\n\nRollout-Event: Promoted\nRollout-Actor: \u{202e}nobody".into();
        forged.transition.reason = "a\nRollout-Actor: root".into();
        forged.transition.actor = Some("oidc:\"ann\"\r\nRollout-Seq: 99".into());
        let message = forged.render(None, None, none()).message;
        assert_eq!(message.lines().filter(|line| line.starts_with("Rollout-Event:")).count(), 1);
        assert_eq!(message.lines().filter(|line| line.starts_with("Rollout-Actor:")).count(), 1);
        assert_eq!(message.lines().filter(|line| line.starts_with("Rollout-Seq:")).count(), 1);
        assert!(message.contains(r#"Rollout-Actor: "oidc:\"ann\"\r\nRollout-Seq: 99""#), "{message}");
        assert!(!message.contains('\u{202e}'));
        assert_eq!(trailer_value("x\u{2028}y"), "\"x\\u2028y\"");
        assert_eq!(trailer_value("ann@example.org"), "ann@example.org");
    }

    #[test]
    fn a_subject_has_at_most_72_letters() {
        let mut long = entry();
        long.namespace = "n".repeat(63);
        long.name = "r".repeat(46);
        long.transition.event = TransitionEvent::StepCompleted;
        long.transition.weight_to = 100;
        let message = long.render(None, None, none()).message;
        let subject = message.lines().next().unwrap();
        assert_eq!(subject.chars().count(), 72);
        assert!(subject.ends_with("…: StepCompleted 2/6 20%→100%"), "{subject}");
        assert!(message.contains(&format!("Rollout-Id: prod/{}/{}", long.namespace, long.name)));
    }

    #[test]
    fn a_promotion_lifts_the_denial_and_is_remembered_as_good() {
        let aborted = entry().render(None, None, none());
        assert_eq!(aborted.denies.as_ref().map(|(revision, _)| revision.as_str()), Some("bbbbbbbbbb"));
        let mut promoted = entry();
        promoted.transition.sequence = 8;
        promoted.transition.attempt = 2;
        promoted.transition.event = TransitionEvent::Promoted;
        let rendered = promoted.render(Some(&aborted.state), None, none());
        assert_eq!(rendered.files["shop/web/aborted/bbbbbbbbbb.json"], None);
        assert_eq!(rendered.state.last_good.as_ref().unwrap().revision, "bbbbbbbbbb");
        let mut next = entry();
        next.uid = "another".into();
        next.transition.sequence = 1;
        let rendered = next.render(Some(&rendered.state), None, none());
        assert_eq!(rendered.state.last_good.as_ref().unwrap().revision, "bbbbbbbbbb", "a new uid keeps it");
        assert!(rendered.state.has("0b7f", 8) && !rendered.state.has("0b7f", 9), "the former uid is remembered");
        assert!(rendered.state.has("another", 1) && !rendered.state.has("another", 2));
    }

    #[test]
    fn the_aborts_of_a_revision_are_counted_until_it_is_promoted() {
        let mut state: Option<StateFile> = None;
        let mut next = |event, reason: &str, revision: &str| {
            let mut entry = entry();
            entry.transition.sequence = state.as_ref().map_or(1, |state| state.sequence + 1);
            (entry.transition.event, entry.transition.reason) = (event, reason.to_owned());
            entry.transition.revision_to = revision.to_owned();
            // A state that is too large takes the status with it, and not the numbers.
            entry.state = json!({"padding": "x".repeat(200 * 1024)});
            let rendered = entry.render(state.as_ref(), None, none());
            let denial = rendered.files.get(&format!("shop/web/aborted/{revision}.json")).cloned().flatten();
            let denial = denial.map(|text| serde_json::from_str::<serde_json::Value>(&text).unwrap()["aborts"].clone());
            state = Some(rendered.state.clone());
            assert_eq!(rendered.state.status, serde_json::Value::Null);
            (denial, rendered.state.aborts.iter().map(|it| (it.revision.clone(), it.aborts)).collect::<Vec<_>>())
        };
        use TransitionEvent::{Aborted, Promoted, Started};
        let (a, b) = (("aaaaaaaaaa".to_owned(), 1), ("bbbbbbbbbb".to_owned(), 1));
        assert_eq!(next(Aborted, "Verdict", &a.0), (Some(json!(1)), vec![a.clone()]));
        assert_eq!(next(Started, "Consent", &a.0), (None, vec![a.clone()]), "what begins again is still remembered");
        assert_eq!(next(Aborted, "Revert", &a.0), (None, vec![a.clone()]), "a revert is no verdict");
        assert_eq!(next(Aborted, "Deadline", &b.0), (Some(json!(1)), vec![a.clone(), b.clone()]));
        assert_eq!(next(Aborted, "Verdict", &a.0), (Some(json!(2)), vec![b.clone(), (a.0.clone(), 2)]));
        assert_eq!(next(Promoted, "Promoted", &a.0), (None, vec![b]));
        for number in 0..30 {
            next(Aborted, "Verdict", &format!("c{number:09}"));
        }
        assert_eq!(next(Started, "Started", &a.0).1.len(), 20);
    }

    #[test]
    fn the_overview_cannot_be_broken_by_a_message() {
        let mut entry = entry();
        entry.transition.message = "a | b\n# <script>".into();
        entry.transition.event = TransitionEvent::StepCompleted;
        let rendered = entry.render(None, None, none());
        let key = ("shop".to_owned(), "web".to_owned());
        let states = BTreeMap::from([(key.clone(), rendered.state)]);
        let aborted = BTreeMap::from([(key, BTreeMap::from([("bbbbbbbbbb".to_owned(), "bad".to_owned())]))]);
        let text = overview("prod", &states, &aborted);
        assert!(
            text.contains("| StepCompleted | 2/6 | 0% | bbbbbbbbbb.1 | 2026-03-04 05:06:07 | a \\| b # &lt;script> |"),
            "{text}"
        );
        assert!(text.contains("- shop/web `bbbbbbbbbb`: bad"), "{text}");
        assert!(overview("prod", &states, &BTreeMap::new()).contains("None."));
    }

    #[test]
    fn paths_stay_in_their_folder_and_events_have_one_spelling() {
        for (given, path) in [("../x", "_..-x"), ("a/b", "a-b"), ("", "_"), (".git", "_.git"), ("web.1", "web.1")] {
            assert_eq!(component(given), path);
        }
        for each in [TransitionEvent::StepCompleted, TransitionEvent::FirstDeploy] {
            assert_eq!(json!(each), json!(event(each)));
        }
    }
}
