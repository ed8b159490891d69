//! What the simulated cluster is made of.
//!
//! Each object has a version that moves with every change, so that a write can ask for the version it was
//! decided on, as a write to a real API server does.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::api::{AnalysisPhase, PodTemplate, RolloutStatus};
use crate::engine::{Effect, RuleState};

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Tells it from every other one of a ReplicaSet.
    pub number: u64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it is ready; never when absent.
    pub ready_at: Option<DateTime<Utc>>,
}

impl Pod {
    /// Whether it has been ready for `length`.
    pub fn ready_for(&self, length: TimeDelta, now: DateTime<Utc>) -> bool {
        self.ready_at.is_some_and(|at| at + length <= now)
    }
}

/// A ReplicaSet and its pods.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSet {
    /// Its template.
    pub template: PodTemplate,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that exist, oldest first.
    pub pods: Vec<Pod>,
    /// When each of those that were asked to end is gone.
    pub ending: Vec<DateTime<Utc>>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Moves with every change of its spec.
    pub version: u64,
}

/// The Deployment that keeps the pod template, and its pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its template.
    pub template: PodTemplate,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that exist, oldest first.
    pub pods: Vec<Pod>,
    /// Moves with every change of its spec.
    pub version: u64,
}

impl Workload {
    /// What a Service counts its pods under: they are of no revision.
    pub const PODS: &'static str = "";

    /// One whose pods have been ready for long.
    pub fn running(template: PodTemplate, replicas: i32, since: DateTime<Utc>) -> Self {
        let pod = Pod { number: 0, created_at: since, ready_at: Some(since) };
        Self { template, replicas, pods: vec![pod; usize::try_from(replicas).unwrap_or_default()], version: 1 }
    }

    /// Pods that are ready.
    pub fn ready(&self, now: DateTime<Utc>) -> i32 {
        let ready = self.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), now)).count();
        i32::try_from(ready).unwrap_or(i32::MAX)
    }
}

/// A Service and what is published for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The revision in its selector.
    pub selects: Option<String>,
    /// Ready endpoints by revision, as published.
    pub published: BTreeMap<String, i32>,
    /// When a change is published, while one is on its way.
    pub publish_at: Option<DateTime<Utc>>,
    /// Moves with every change of its selector.
    pub version: u64,
}

/// A route and what the gateway makes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The two Services: stable and canary.
    pub services: (String, String),
    /// The rules that name both Services.
    pub rules: Vec<RuleState>,
    /// The header routes it holds, by their ids.
    pub header_routes: BTreeSet<String>,
    /// When the gateway accepts what is written; accepted already when absent.
    pub accept_at: Option<DateTime<Utc>>,
    /// The gateway accepts nothing: why.
    pub trouble: Option<String>,
    /// Moves with every write.
    pub version: u64,
}

/// An AnalysisRun with one metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnalysisRun {
    /// `background`, or `step-N`.
    pub stage: String,
    /// The revision it judges.
    pub revision: String,
    /// The attempt it judges.
    pub attempt: i32,
    /// When it was created; when it was first seen, in a world made from a snapshot.
    pub created_at: DateTime<Utc>,
    /// How it stands.
    pub phase: AnalysisPhase,
    /// Why.
    pub message: String,
    /// When it was last good.
    pub passed_since: Option<DateTime<Utc>>,
    /// Time between two samples.
    pub interval: TimeDelta,
    /// When the next sample is taken.
    pub next_sample: DateTime<Utc>,
    /// When the hold for missing data runs out.
    pub hold_until: Option<DateTime<Utc>>,
    /// Asked to end.
    pub terminating: bool,
    /// Moves with every write of the controller.
    pub version: u64,
}

impl AnalysisRun {
    /// Whether it still measures.
    pub fn live(&self) -> bool {
        matches!(self.phase, AnalysisPhase::Pending | AnalysisPhase::Running | AnalysisPhase::Holding)
    }
}

/// What a metric answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Good.
    #[default]
    Pass,
    /// Bad.
    Fail,
    /// Nothing usable.
    NoData,
    /// Neither good nor bad.
    Inconclusive,
}

/// From a time on, the metrics of some analyses answer so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// From when on.
    pub from: DateTime<Utc>,
    /// Only at this stage of the plan (from 0) and after it.
    pub from_stage: i32,
    /// What they answer.
    pub answer: Answer,
}

/// What follows a hold for missing data that ran out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterHold {
    /// A person must say.
    #[default]
    Pause,
    /// Traffic back to stable.
    Abort,
}

/// How quick and how kind the world is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// From the creation of a pod to its being ready.
    pub pod_ready_delay: TimeDelta,
    /// From a pod's being asked to end to its being gone.
    pub grace: TimeDelta,
    /// New pods of any revision other than the stable one never become ready.
    pub canary_never_ready: bool,
    /// From a change of pods or selector to its being published.
    pub endpoint_delay: TimeDelta,
    /// From a write of a route to its acceptance.
    pub accept_delay: TimeDelta,
    /// Time between two samples of an analysis.
    pub interval: TimeDelta,
    /// How long missing data holds.
    pub hold: TimeDelta,
    /// What follows.
    pub after_hold: AfterHold,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            pod_ready_delay: TimeDelta::seconds(2),
            grace: TimeDelta::zero(),
            canary_never_ready: false,
            endpoint_delay: TimeDelta::milliseconds(100),
            accept_delay: TimeDelta::milliseconds(200),
            interval: TimeDelta::seconds(30),
            hold: TimeDelta::seconds(600),
            after_hold: AfterHold::Pause,
        }
    }
}

/// One write, as an observer sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub written: Written,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// An effect of the controller.
    Effect(Effect),
    /// The status.
    Status(Box<RolloutStatus>),
    /// Somebody else's change.
    Outside(String),
}

/// The versions of every object that an effect may touch, as they were observed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// By kind and name.
    pub(crate) of: BTreeMap<(&'static str, String), u64>,
    /// Of the Rollout's status.
    pub(crate) status: u64,
}

/// A write that was decided on a state that is no longer so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The object has changed since.
    #[error("{kind} {name} has changed since it was observed")]
    Changed {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object does not exist.
    #[error("{kind} {name} does not exist")]
    Missing {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A leader of a higher epoch has written.
    #[error("a leader of a higher epoch has written the status")]
    Epoch,
}
