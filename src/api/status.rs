//! The Rollout's status: the position in the plan, what was seen when, and the outbox of the ledger.
//!
//! Everything `decide` needs to go on after a crash stands here, and nothing that can be observed.

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, ConditionStatus, Conditions, Granularity, RECORDED, RolloutSpec, Steering};

/// Where a Rollout stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// The generation of the spec this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// In one word.
    pub phase: Phase,
    /// In one sentence.
    pub message: String,
    /// `Canary` or `BlueGreen`, for the column.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub strategy: String,
    /// What moves pods and traffic at present: of a strategy that was edited it is left before the new one begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steering: Option<Steering>,
    /// The revision that git asks for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// The revision that is known to be good and serves when nothing is in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// Revisions that were stable before, newest first, at most 10: going back to one is a rollback.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub promoted_revisions: Vec<String>,
    /// When the stable revision became so: the old one is kept for a time after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promoted_at: Option<DateTime<Utc>>,
    /// What is in flight, or was aborted and not yet replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// `2/6`, for the column.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub step_label: String,
    /// The canary's share in percent as last seen accepted by every route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Since when what was seen in the data plane's configuration has been so.
    pub seen: Seen,
    /// Revisions that were aborted and need a person's word to be tried again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<Denied>,
    /// Interventions already taken, by uid, newest last, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken_interventions: Vec<String>,
    /// Those of them that did nothing, and why, newest last, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused_interventions: Vec<RefusedIntervention>,
    /// A pause made by a person.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<PausedBy>,
    /// The last request that all pods be replaced by new ones of the same version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Pods of all revisions.
    pub replicas: i32,
    /// Of them ready.
    pub ready_replicas: i32,
    /// Pods of the desired revision.
    pub updated_replicas: i32,
    /// The label selector in text form, for the scale subresource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The number of the last transition.
    pub sequence: i64,
    /// The number of the last transition that is in the ledger.
    pub recorded_sequence: i64,
    /// Transitions not yet in the ledger, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending_log: Vec<Transition>,
    /// The epoch of the leader that wrote this; a leader of a lower one drops its write.
    pub epoch: i64,
    /// Conditions, by type.
    pub conditions: Vec<Condition>,
}

/// A request that all pods be replaced by new ones of the same version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// Pods that were created up to this time are replaced.
    pub at: DateTime<Utc>,
    /// None of them is left.
    pub done: bool,
}

impl RolloutStatus {
    /// The spec with the strategy that moved traffic last, when another one is asked for by now: traffic goes back by
    /// the old one first. `None` when there is nothing to leave.
    pub fn leaves(&self, spec: &RolloutSpec) -> Option<RolloutSpec> {
        let steering = self.steering.as_ref().filter(|_| self.stable_revision.is_some())?;
        let changed = *steering != spec.strategy.steering();
        changed.then(|| RolloutSpec { strategy: steering.strategy(), ..spec.clone() })
    }

    /// Nothing says where the Rollout stands: it is new, or its status was lost or damaged.
    pub fn has_no_position(&self) -> bool {
        let first = self.release.as_ref().is_some_and(|release| release.state == ReleaseState::FirstDeploy);
        self.stable_revision.is_none() && !first
    }

    /// How long transitions may wait for the log before the record counts as behind.
    pub const BEHIND_AFTER: TimeDelta = TimeDelta::seconds(60);

    /// The transitions that the log lacks, by number: all up to the last one that gets a commit of its own. The ones
    /// after it wait for their company, and nothing is wrong with that.
    pub fn due(&self, granularity: Granularity) -> Vec<&Transition> {
        let mut transitions: Vec<&Transition> = self.pending_log.iter().collect();
        transitions.sort_by_key(|transition| transition.sequence);
        let last = transitions.iter().rposition(|transition| granularity.gives_commit(transition.event));
        transitions.truncate(last.map_or(0, |last| last + 1));
        transitions
    }

    /// When the oldest transition happened that the log lacks.
    pub fn unrecorded_since(&self, granularity: Granularity) -> Option<DateTime<Utc>> {
        self.due(granularity).into_iter().map(|transition| transition.at).min()
    }

    /// Since when the record is behind, if it is: transitions have waited for longer than is usual, or something is
    /// known to keep them out of the log.
    pub fn record_behind_since(&self, granularity: Granularity, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let refused = self.conditions.condition(RECORDED).is_some_and(|known| known.status == ConditionStatus::False);
        self.unrecorded_since(granularity).filter(|since| refused || now - *since >= Self::BEHIND_AFTER)
    }
}

/// Where a Rollout stands, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Not looked at yet, or the first version is being started.
    #[default]
    Pending,
    /// On its way through the steps.
    Progressing,
    /// Waiting for a person.
    Paused,
    /// Waiting for metrics.
    Holding,
    /// All gates passed; the new version takes over for good.
    Promoting,
    /// The desired version serves everything.
    Ready,
    /// Aborted; stable serves everything, git still asks for what was aborted.
    Aborted,
    /// Cannot go on before somebody changes something.
    Stalled,
    /// Being deleted, or the operator uninstalled: traffic goes back to stable, and what was steered is handed back.
    Terminating,
}

/// A revision on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Release {
    /// The revision.
    pub revision: String,
    /// How many times it has been tried, from 1.
    pub attempt: i32,
    /// What it is doing.
    pub state: ReleaseState,
    /// Index of the present stage of the plan, from 0.
    pub stage: i32,
    /// How many stages the plan has.
    pub stages: i32,
    /// Hash of the plan the index is about.
    pub plan_hash: String,
    /// When the release began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When the present stage began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage_started_at: Option<DateTime<Utc>>,
    /// When the present stage's target was reached and its gate began to count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached_at: Option<DateTime<Utc>>,
    /// Since when a person is waited for in this stage, as it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<DateTime<Utc>>,
    /// Who approved the present stage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<String>,
    /// The gate of the present stage is open by a person's word.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gate_skipped: bool,
    /// Go to full weight past all gates, by a person's word.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub promote_full: bool,
    /// Why it was aborted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Going back to a revision that was stable before: no analysis, no pauses.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub rollback: bool,
    /// How many background analyses have ended before the present one: each needs a name of its own.
    #[serde(skip_serializing_if = "is_zero")]
    pub background_runs: i32,
    /// Why the release waits for a person beyond its own steps (an inconclusive verdict, a changed plan).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_for: Option<Hold>,
}

fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// What a release is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReleaseState {
    /// The very first version of this Rollout: straight to full size.
    #[default]
    FirstDeploy,
    /// Through the steps.
    Stepping,
    /// Past the last gate: Services and weights change sides.
    Promoting,
    /// Aborted: traffic is on its way back, or is back.
    Aborted,
}

/// A hold that only a person ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// One word: `InconclusiveAnalysis`, `PlanChanged`, `DataMissing`.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// Why a release was aborted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Abort {
    /// What caused it.
    pub cause: AbortCause,
    /// The reason in one sentence, with the numbers.
    pub message: String,
    /// When it was decided.
    pub at: DateTime<Utc>,
    /// Who, when it was a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

/// What can cause an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AbortCause {
    /// A metric failed.
    Verdict,
    /// Metrics were missing for too long, and the policy says abort.
    DataMissing,
    /// A step took too long.
    Deadline,
    /// Git asks for the stable revision again.
    Revert,
    /// A person said so.
    Intervention,
}

/// A revision that must not be rolled out without a person's word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// The revision.
    pub revision: String,
    /// How many times it was aborted.
    pub aborts: i32,
    /// Why, the last time.
    pub message: String,
    /// When, the last time.
    pub at: DateTime<Utc>,
    /// The commit that asked for it then; the same one is not consent to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_commit: Option<String>,
    /// The desired revision has been another one since: the next identical commit is consent, once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
}

/// An Intervention that did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedIntervention {
    /// Its uid.
    pub uid: String,
    /// Why.
    pub message: String,
}

/// Who paused, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PausedBy {
    /// The person.
    pub actor: String,
    /// In their words.
    #[serde(default)]
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// Facts about the data plane's configuration, each with the time since when it has been seen so. Waiting
/// times (settle, drain) count from these, so they survive a restart and a fault can only prolong them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen {
    /// The canary weight that every steered rule has, accepted by the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<SeenWeight>,
    /// The revision the stable Service selects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_service: Option<SeenRevision>,
    /// The revision the canary Service selects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary_service: Option<SeenRevision>,
}

/// A weight, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeenWeight {
    /// In percent.
    pub value: i32,
    /// Some requests go to the canary besides, by a header route.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// A selected revision whose endpoints are ready, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeenRevision {
    /// The revision.
    pub revision: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// One transition: what the ledger records as one commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Transition {
    /// Its number within this Rollout, from 1, without gaps.
    pub sequence: i64,
    /// What happened.
    pub event: TransitionEvent,
    /// When.
    pub at: DateTime<Utc>,
    /// The stage it was in (from 1 for people), and how many there are.
    pub stage: i32,
    /// How many stages the plan has.
    pub stages: i32,
    /// The canary weight before, in percent.
    pub weight_from: i32,
    /// The canary weight it leads to, in percent.
    pub weight_to: i32,
    /// The revision that served before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_from: Option<String>,
    /// The revision it is about.
    pub revision_to: String,
    /// The attempt of that revision.
    pub attempt: i32,
    /// One word why.
    pub reason: String,
    /// One sentence why, with the numbers.
    pub message: String,
    /// The verdict that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// The person behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The commit that asked for the desired revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_commit: Option<String>,
    /// The AnalysisRuns with the evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub analysis_runs: Vec<String>,
}

/// What can happen to a Rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransitionEvent {
    /// The first version was found.
    FirstDeploy,
    /// A new revision begins.
    Started,
    /// A stage is done and the next one begins.
    StepCompleted,
    /// A hold for a person begins.
    Paused,
    /// It ends.
    Resumed,
    /// Missing metrics hold the release.
    Held,
    /// All gates are passed; the new version takes over.
    Promoting,
    /// The new version is the stable one.
    Promoted,
    /// Traffic goes back to stable.
    Aborted,
    /// Another revision takes this one's place before it was done.
    Superseded,
    /// The plan was changed in flight.
    PlanChanged,
    /// A revision that was aborted before is not rolled out.
    Denied,
    /// The status was lost; where the Rollout stands was taken from the log, the Services and the routes.
    Recovered,
    /// The Rollout is being deleted, or the operator uninstalled: traffic goes back to stable, and what it steered is
    /// handed back.
    HandedBack,
    /// Somebody else changed what the Rollout keeps as it is; it is changed back.
    DriftCorrected,
    /// Somebody asks for new pods of what runs; the version stays.
    Restarting,
    /// All pods are newer than that request.
    Restarted,
}
