//! What the engine sees and what it answers.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::api::{
    AnalysisPhase, AnalysisReference, Conditions, Granularity, HeaderRoute, InterventionAction, OnAuditUnavailable,
    PodTemplate, RolloutSpec, RolloutStatus, RouteKey, SourceHistory, Steering, weight,
};

/// Everything one decision may depend on, as last observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The Rollout's namespace.
    pub namespace: String,
    /// The Rollout's name.
    pub name: String,
    /// The Rollout's uid.
    pub uid: String,
    /// The generation of the spec.
    pub generation: i64,
    /// Why everything it steers is to be handed back, if so.
    pub ending: Option<Ending>,
    /// It carries our finalizer ([`names::HAND_BACK`](crate::api::names::HAND_BACK)).
    pub finalizer: bool,
    /// What is wanted; with the strategy that moved traffic last while that one is left.
    pub spec: RolloutSpec,
    /// Whether another strategy is asked for than the one that moved traffic last.
    pub strategy_change: StrategyChange,
    /// Where we stand, as last written.
    pub status: RolloutStatus,
    /// What is wrong with the spec or with what it refers to; found before the engine is asked.
    pub problems: Vec<Problem>,
    /// The ReplicaSets of this Rollout, by revision.
    pub revisions: BTreeMap<String, RevisionState>,
    /// The Deployment that the template is taken from, while it is there.
    pub workload: Option<WorkloadState>,
    /// The Services the strategy names, by name; one that does not exist is absent.
    pub services: BTreeMap<String, ServiceState>,
    /// The routes the strategy names; one that does not exist is absent.
    pub routes: BTreeMap<RouteKey, RouteState>,
    /// The AnalysisRuns of this Rollout, by name.
    pub analyses: BTreeMap<String, AnalysisState>,
    /// Interventions for this Rollout that are not yet in `status.taken_interventions`, oldest first.
    pub interventions: Vec<InterventionState>,
    /// What the ledger says of this Rollout.
    pub ledger: LedgerState,
    /// The commit that last changed the Rollout's declaration, when known.
    pub source_commit: Option<String>,
    /// What the branch was moved from to that commit, when it was not simply moved forward.
    pub source_history: Option<SourceHistory>,
    /// The epoch of this leader.
    pub epoch: i64,
}

/// Why a Rollout hands back what it steers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is being deleted.
    Deleted,
    /// The operator is being uninstalled.
    Uninstalled,
}

impl Ending {
    /// One word for conditions and for the log.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deleted => "Deleted",
            Self::Uninstalled => "Uninstalled",
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deleted => "the Rollout was deleted",
            Self::Uninstalled => "the operator is being uninstalled",
        })
    }
}

/// A strategy was edited so that other Services, other routes, or none, move the traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StrategyChange {
    /// It was not.
    #[default]
    None,
    /// It was, and all that the old one moves is there: traffic goes back by it first.
    Leaving {
        /// What the new one moves.
        asked: Box<Steering>,
    },
    /// It was, and something that the old one moves is gone: the new one takes over at once.
    Gone,
}

/// Something that must be mended before anything moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word for the condition: `InvalidSpec`, `ServiceNotFound`, `RouteNotFound`, `RouteNotSteerable`, …
    pub reason: String,
    /// The field path in the Rollout, when one is to blame.
    pub field: Option<String>,
    /// What is wrong and how it is mended.
    pub message: String,
}

/// The pods of one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevisionState {
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that exist, but for those that are ending.
    pub current: i32,
    /// Pods that exist until their last process has ended.
    pub unfinished: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that have been ready for `minReadySeconds`.
    pub available: i32,
    /// The counts are about the present spec of the ReplicaSet.
    pub observed: bool,
    /// When the ReplicaSet was created.
    pub created_at: Option<DateTime<Utc>>,
    /// The template, for creating it again and for the ledger.
    pub template: PodTemplate,
    /// What the cluster says hinders its pods (quota, image), if anything.
    pub trouble: Option<String>,
    /// Its pods one by one, but for those that are ending; may lag behind the counts.
    pub pods: Vec<PodState>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Since when it is ready, if it is.
    pub ready_since: Option<DateTime<Utc>>,
}

/// The Deployment that keeps the pod template, and the pods it has of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadState {
    /// Its name.
    pub name: String,
    /// The revision that its template is.
    pub revision: String,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
}

/// A Service and the endpoints behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceState {
    /// The revision in its selector; `None` while it selects pods of every revision.
    pub selects: Option<String>,
    /// Ready endpoints by revision, as published.
    pub ready: BTreeMap<String, i32>,
}

/// A route that splits traffic between the two Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteState {
    /// The rules that name both Services; never empty in a snapshot without problems.
    pub rules: Vec<RuleState>,
    /// The header routes it holds as they should be, by [`HeaderRoute::id`].
    pub header_routes: BTreeSet<String>,
    /// It holds a rule of ours that belongs to none of them.
    pub stray: bool,
    /// The gateway accepted this very version of the route and resolved its backends.
    pub accepted: bool,
    /// Why not.
    pub trouble: Option<String>,
}

impl RouteState {
    /// Some requests go to the canary by a rule of ours, whatever the weight.
    pub fn is_direct(&self) -> bool {
        self.stray || !self.header_routes.is_empty()
    }
}

/// One rule that names both Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleState {
    /// What the two have together: what they had when other backends share the rule, 100 when alone.
    pub base: i32,
    /// The weight of the stable Service as written.
    pub stable: i32,
    /// The weight of the canary Service as written.
    pub canary: i32,
}

impl RuleState {
    /// Whether the rule says that the canary has `percent`.
    pub fn holds(&self, percent: i32) -> bool {
        (self.stable, self.canary) == weight::split(self.base, percent)
    }

    /// The canary's share in percent, rounded, but never 0 or 100 while the other side still has weight.
    pub fn share(&self) -> i32 {
        let total = i64::from(self.stable) + i64::from(self.canary);
        if self.canary <= 0 || total <= 0 {
            return 0;
        }
        if self.stable <= 0 {
            return 100;
        }
        let share = (i64::from(self.canary) * 100 + total / 2) / total;
        i32::try_from(share).unwrap_or(100).clamp(1, 99)
    }
}

/// An AnalysisRun as the engine needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnalysisState {
    /// `background`, or `step-N`.
    pub stage: String,
    /// The revision it judges.
    pub revision: String,
    /// The attempt it judges.
    pub attempt: i32,
    /// How it stands.
    pub phase: AnalysisPhase,
    /// Why, with the numbers.
    pub message: String,
    /// The time of the oldest among its metrics' last passes: each metric has passed since then.
    /// `None` while a metric has never passed.
    pub passed_since: Option<DateTime<Utc>>,
    /// Asked to end.
    pub terminating: bool,
    /// Longest interval of its metrics, for the forecast.
    pub interval: Option<chrono::TimeDelta>,
    /// When the hold for missing data runs out.
    pub hold_until: Option<DateTime<Utc>>,
    /// What it measures by is not what its templates say now: the hashes then and now.
    pub changed: Option<(String, String)>,
}

/// An Intervention that waits to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterventionState {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// The revision it is about.
    pub revision: String,
    /// The attempt it is about; any when absent.
    pub attempt: Option<i32>,
    /// The stage it is about; the present one when absent.
    pub stage: Option<i32>,
    /// What it says.
    pub action: InterventionAction,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
}

/// What the ledger says of this Rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerState {
    /// The ledger was read. Until then a first deploy waits (bounded), for it may hold an abort.
    pub read: bool,
    /// A DeployRepo records this Rollout; without one there is no ledger to wait for.
    pub configured: bool,
    /// Revisions that were aborted in it, with the reason.
    pub aborted: BTreeMap<String, String>,
    /// How often each revision was aborted in it since it was last promoted; also those that had consent since.
    pub aborts: BTreeMap<String, i32>,
    /// The last revision that was promoted in it, with its template.
    pub last_good: Option<(String, PodTemplate)>,
    /// The number of the last transition it has of a Rollout of this name; 0 when it has none.
    pub sequence: i64,
    /// Where that Rollout stood after it.
    pub position: Option<Box<RolloutStatus>>,
    /// What a rollout does while its transitions cannot be recorded.
    pub on_unavailable: OnAuditUnavailable,
    /// Which transitions it takes at once; the others are not behind while they wait for company.
    pub granularity: Granularity,
}

impl LedgerState {
    /// The reason of a Rollout that waits for its record.
    pub const AWAITED: &'static str = "AwaitingRecord";

    /// For those who cannot see the ledger: what the Rollout's status says of it.
    pub fn told_by(status: &RolloutStatus) -> Self {
        let awaited = status.conditions.condition("Ready").is_some_and(|ready| ready.reason == Self::AWAITED);
        Self {
            read: true,
            configured: awaited,
            on_unavailable: if awaited { OnAuditUnavailable::Pause } else { OnAuditUnavailable::Continue },
            ..Self::default()
        }
    }
}

/// What one turn does: exactly one thing.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// Perform this effect.
    Apply(Effect),
    /// Write this status. A transition that goes with it is already the last of its `pending_log`.
    Advance(Box<RolloutStatus>),
    /// Nothing to do before then.
    Wait(Wait),
}

/// What is waited for, and until when at the latest to look again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wait {
    /// When to look again, if a time is known. `None`: a named event will come.
    pub until: Option<DateTime<Utc>>,
    /// On what, for programs.
    pub on: WaitOn,
    /// On what, in one sentence for people.
    pub message: String,
}

/// What a Rollout can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitOn {
    /// Nothing: the desired version serves everything.
    Nothing,
    /// A change of the spec, or of what it refers to.
    Spec,
    /// Pods to become ready.
    Pods,
    /// The gateway to accept a route.
    Route,
    /// Endpoints to be published.
    Endpoints,
    /// A settle or drain time.
    Settle,
    /// The duration of a pause.
    Pause,
    /// A person.
    Person,
    /// An analysis to end, or its next good sample.
    Analysis,
    /// Metrics to come back.
    Metrics,
    /// The ledger: to be read, or to have what has happened.
    Ledger,
    /// A scale-down delay.
    ScaleDown,
}

/// One write. Absolute, never relative, so that doing it twice is doing it once.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Create the ReplicaSet of a revision. An existing one of that name is recognised as ours.
    CreateReplicaSet {
        /// The revision.
        revision: String,
        /// Its template.
        template: PodTemplate,
        /// Its size.
        replicas: i32,
    },
    /// Set the size of a revision's ReplicaSet.
    Scale {
        /// The revision.
        revision: String,
        /// The size.
        replicas: i32,
    },
    /// Set the size of the Deployment that keeps the pod template.
    ScaleWorkload {
        /// Its name.
        workload: String,
        /// The size.
        replicas: i32,
    },
    /// Delete the ReplicaSet of a revision beyond the history limit; its size is 0.
    DeleteReplicaSet {
        /// The revision.
        revision: String,
    },
    /// End a pod, as far as its PodDisruptionBudgets allow; its ReplicaSet makes a new one.
    EvictPod {
        /// The revision.
        revision: String,
        /// The pod's name.
        pod: String,
        /// Its uid.
        uid: String,
    },
    /// Let a Service select the pods of one revision.
    SelectRevision {
        /// The Service.
        service: String,
        /// The revision.
        revision: String,
    },
    /// Let a Service that is steered no more select the pods of every revision, as it is declared.
    SelectEveryRevision {
        /// The Service.
        service: String,
    },
    /// Give the canary this share of every steered rule of a route.
    SetWeight {
        /// The route.
        route: RouteKey,
        /// In percent.
        percent: i32,
    },
    /// Let a route hold these header routes and no others.
    SetHeaderRoutes {
        /// The route.
        route: RouteKey,
        /// The header routes.
        header_routes: Vec<HeaderRoute>,
    },
    /// Create an AnalysisRun. An existing one of that name is recognised as ours.
    StartAnalysis {
        /// Its derived name.
        name: String,
        /// `background`, or `step-N`.
        stage: String,
        /// The revision.
        revision: String,
        /// The attempt.
        attempt: i32,
        /// What to judge.
        analysis: AnalysisReference,
    },
    /// Keep the Rollout, once it is deleted, until what it steers is handed back.
    AddFinalizer,
    /// Let the Rollout go.
    RemoveFinalizer {
        /// What was not handed back in time, if anything.
        unfinished: Option<String>,
    },
    /// Ask an AnalysisRun to end.
    EndAnalysis {
        /// Its name.
        name: String,
    },
}
