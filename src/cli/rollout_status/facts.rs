//! What is known of one Rollout at one moment, and what the engine makes of it.
//!
//! Pure: from an index of the cluster's objects and a time. A kind the user may not read leaves a gap that is
//! named, never a guess: with a gap the engine is not asked.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::api::{Phase, Release, ReleaseState, RolloutStatus, RouteKind};
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{AnalysisRunObject, Key, RolloutObject};
use crate::cluster::observe::observe;
use crate::engine::decide::decide;
use crate::engine::plan::{Gate, Plan, plan};
use crate::engine::{LedgerState, RevisionState, Snapshot, Turn};
use crate::simulation::{StageState, Timeline, TimelineStage, forecast};

/// A kind of objects that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The kind.
    pub kind: Kind,
    /// Why.
    pub why: String,
}

/// What is known of one Rollout.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The Rollout itself.
    pub rollout: Arc<RolloutObject>,
    /// Its status; the default one before the operator's first visit.
    pub status: RolloutStatus,
    /// Its pods, by revision.
    pub revisions: BTreeMap<String, RevisionState>,
    /// Its AnalysisRuns.
    pub runs: Vec<Arc<AnalysisRunObject>>,
    /// What the engine would do now, when everything it needs could be read.
    pub turn: Option<Turn>,
    /// The stages of the plan; when everything needed could be read, with the engine's own forecast of them.
    pub timeline: Option<Timeline>,
    /// What could not be read.
    pub gaps: Vec<Gap>,
}

/// What the engine's answer depends on; templates and providers do not matter to a release that runs.
pub const NEEDED: [Kind; 11] = [
    Kind::Rollout,
    Kind::ReplicaSet,
    Kind::Deployment,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Route(RouteKind::Http),
    Kind::Route(RouteKind::Grpc),
    Kind::Route(RouteKind::Tls),
    Kind::Route(RouteKind::Tcp),
    Kind::AnalysisRun,
    Kind::Intervention,
];

/// How many notes in a row are taken as written; the engine needs one or two.
const MOST_NOTES: usize = 8;

impl Facts {
    /// Looks up one Rollout; `None` when it is not there.
    pub fn of(index: &Index, key: &Key, gaps: &[Gap], now: DateTime<Utc>) -> Option<Self> {
        let rollout = index.rollout(key)?;
        let status = rollout.status.clone().unwrap_or_default();
        let ledger = LedgerState::told_by(&status);
        let snapshot = observe(index, &rollout, ledger, status.epoch).ok().map(|mut snapshot| {
            // Templates and providers are not read here, so what is said of them is not so. When the operator
            // finds something wrong, the status says it.
            snapshot.problems.clear();
            snapshot
        });
        // Routes of a kind that the Rollout does not name tell nothing of it.
        let named: Vec<RouteKind> = match &rollout.spec {
            Ok(spec) => spec.references().routes.into_iter().map(|route| route.kind).collect(),
            Err(_) => Vec::new(),
        };
        let keeps = rollout.spec.as_ref().is_ok_and(|spec| spec.workload_ref.is_some());
        let matters = |gap: &&Gap| match gap.kind {
            Kind::Route(kind) => named.contains(&kind),
            Kind::Deployment => keeps,
            _ => true,
        };
        let gaps: Vec<Gap> = gaps.iter().filter(matters).cloned().collect();
        let foreseeable = gaps.is_empty() && status.phase != Phase::Stalled;
        let asked = snapshot.as_ref().filter(|_| foreseeable);
        Some(Self {
            turn: asked.map(|snapshot| next_turn(snapshot, now)),
            timeline: match asked {
                Some(snapshot) => Some(forecast(snapshot, now)),
                None => untimed(&rollout, &status, now),
            },
            revisions: snapshot.map(|snapshot| snapshot.revisions).unwrap_or_default(),
            runs: index.analysis_runs_of(key),
            rollout,
            status,
            gaps,
        })
    }

    /// The release in flight, or the aborted one that git still asks for. One that a revert has settled is history:
    /// its pods are kept for a time, and that is all.
    pub fn release(&self) -> Option<&Release> {
        let settled = |release: &Release| release.state == ReleaseState::Aborted && self.status.phase == Phase::Ready;
        self.status.release.as_ref().filter(|release| !settled(release))
    }

    /// The operator has seen the present spec.
    pub fn is_current(&self) -> bool {
        self.status.observed_generation.is_some_and(|observed| observed >= self.rollout.identity.generation)
    }
}

/// What the engine does next that is more than bookkeeping: a status that only notes what was seen is taken as
/// written, for the operator writes it at any moment and it is no reason to wait.
fn next_turn(snapshot: &Snapshot, now: DateTime<Utc>) -> Turn {
    let mut snapshot = snapshot.clone();
    for _ in 0..MOST_NOTES {
        match decide(&snapshot, now) {
            Turn::Advance(status) if status.sequence == snapshot.status.sequence => snapshot.status = *status,
            turn => return turn,
        }
    }
    decide(&snapshot, now)
}

/// The stages of the plan without a forecast: with the one time that the status holds.
fn untimed(rollout: &RolloutObject, status: &RolloutStatus, now: DateTime<Utc>) -> Option<Timeline> {
    let release = status.release.as_ref().filter(|release| release.state != ReleaseState::FirstDeploy)?;
    let plan: Plan = plan(rollout.spec.as_ref().ok()?).ok()?;
    let current = release.stage;
    let stages = (0..).zip(&plan.stages).map(|(number, stage)| TimelineStage {
        stage: number,
        stages: plan.len(),
        label: stage.label.clone(),
        weight: stage.weight,
        gate: stage.gate.label(),
        state: match number.cmp(&current) {
            Ordering::Less => StageState::Done,
            Ordering::Equal => StageState::Current,
            Ordering::Greater => StageState::Ahead,
        },
        starts_at: release.stage_started_at.filter(|_| number == current),
        ends_at: None,
        needs_person: matches!(stage.gate, Gate::Approvals(_)),
    });
    Some(Timeline { now, stages: stages.collect(), ends_at: None, blocked_on: None })
}
