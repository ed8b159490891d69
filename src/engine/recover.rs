//! Where a Rollout stands whose status was lost or damaged while its pods, Services and routes live.
//!
//! Pure. The order of the witnesses, and why:
//!
//! 1. **The stable Service** says which revision is stable: only a promotion changes what it selects, and it is true
//!    also when the ledger is behind. Not when it selects what the ledger knows as aborted (an abort in the middle of
//!    a promotion), and not when it selects no revision that is known.
//! 2. **The ledger** says the rest: the release that was in flight and its stage, what was promoted before, what was
//!    aborted. What it does not know must be passed again: a release goes back to the stage the ledger knows, and its
//!    present gate is asked anew, with analyses of a new attempt.
//! 3. **The routes**: when a canary has weight and the ledger knows of no release, it begins again at the first stage.
//!    `converge` lowers the weight to that stage's as it lowers every weight.
//!
//! A verdict that had failed still counts. Nothing here raises a weight, and nothing becomes stable that the stable
//! Service does not select already.

use super::converge::template;
use super::plan::Plan;
use super::{RevisionState, Snapshot};
use crate::api::{AnalysisPhase, Denied, Release, ReleaseState, RolloutStatus};

/// The position of a Rollout, as far as it can be known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Position {
    /// The stable revision; none while the first version is on its way.
    pub stable: Option<String>,
    /// What is in flight, or was aborted.
    pub release: Option<Release>,
    /// It became stable by a promotion that the ledger does not have.
    pub promotion_unrecorded: bool,
    /// By which witnesses, for people.
    pub witnesses: &'static str,
}

/// Where the Rollout stands. `None` when nothing of it lives: it is new, or its cluster is.
pub(super) fn position(snapshot: &Snapshot, plan: &Plan) -> Option<Position> {
    let witness = Witness::of(snapshot, plan);
    let selected = witness.selected();
    let living = snapshot.revisions.values().any(lives);
    if !living && selected.is_none() {
        return None;
    }
    let recorded = witness.recorded_stable();
    let first = witness.recorded.release.as_ref().filter(|release| release.state == ReleaseState::FirstDeploy);
    let (stable, witnesses) = match (selected, recorded) {
        (Some(selected), Some(recorded)) if selected == recorded => (selected, "the stable Service and the log"),
        (Some(selected), Some(recorded)) => {
            if let Some(release) = witness.taking_over(&selected) {
                // Services change sides only after the last gate: the promotion goes on.
                let position = witness.with_release(recorded, Some(release), "the log and the stable Service");
                return Some(position);
            }
            if witness.was_aborted(&selected) { (recorded, "the log") } else { (selected, "the stable Service") }
        }
        (Some(selected), None) => {
            if let Some(first) = first.filter(|first| first.revision == selected) {
                let (release, witnesses) = (Some(first.clone()), "the log and the stable Service");
                return Some(Position { stable: None, release, promotion_unrecorded: false, witnesses });
            }
            (selected, "the stable Service")
        }
        (None, Some(recorded)) => (recorded, "the log"),
        (None, None) => {
            // The stable Service was never narrowed: it selects every pod. What serves longest is what was there first.
            // (Without routes no Service is ever needed, and this says nothing of a first version on its way.)
            let serving = witness.serving()?;
            if serving == witness.desired && snapshot.spec.strategy.by_pods().is_none() {
                return None;
            }
            (serving, "the pods")
        }
    };
    let release = witness.release(&stable);
    let unrecorded = snapshot.ledger.configured && witness.good() != Some(&stable);
    let mut position = witness.with_release(stable, release, witnesses);
    position.promotion_unrecorded = unrecorded && witnesses == "the stable Service";
    Some(position)
}

/// What must not be rolled out without a person's word, by the status and by the ledger; `now` is the time of what
/// the ledger tells no time of.
pub(super) fn denied(snapshot: &Snapshot, now: chrono::DateTime<chrono::Utc>) -> Vec<Denied> {
    let mut denied = snapshot.status.denied.clone();
    let recorded = snapshot.ledger.position.iter().flat_map(|position| position.denied.clone());
    let ledger = &snapshot.ledger;
    let counted = ledger.aborts.keys().filter(|revision| !ledger.aborted.contains_key(*revision));
    // What had consent since may be aborted again, and that is not its first time.
    let counted = counted.map(|revision| (revision, "it was aborted before"));
    let held = ledger.aborted.iter().map(|(revision, message)| (revision, message.as_str()));
    let aborted = held.chain(counted).map(|(revision, message)| Denied {
        revision: revision.clone(),
        aborts: ledger.aborts.get(revision).copied().unwrap_or(1),
        message: message.to_owned(),
        at: now,
        source_commit: None,
        left: false,
    });
    for entry in recorded.chain(aborted) {
        if !denied.iter().any(|known| known.revision == entry.revision) {
            denied.push(entry);
        }
    }
    denied
}

fn lives(state: &RevisionState) -> bool {
    state.replicas > 0 || state.current > 0
}

struct Witness<'a> {
    snapshot: &'a Snapshot,
    plan: &'a Plan,
    desired: String,
    /// The ledger's position; what is left of the status when there is none.
    recorded: &'a RolloutStatus,
}

impl<'a> Witness<'a> {
    fn of(snapshot: &'a Snapshot, plan: &'a Plan) -> Self {
        let recorded = snapshot.ledger.position.as_deref().unwrap_or(&snapshot.status);
        Self { snapshot, plan, desired: snapshot.spec.template.revision(), recorded }
    }

    /// The revision that one of the Services selects, if there is a ReplicaSet of it.
    fn selects(&self, service: Option<String>) -> Option<String> {
        let selected = self.snapshot.services.get(&service?)?.selects.clone()?;
        self.snapshot.revisions.contains_key(&selected).then_some(selected)
    }

    fn selected(&self) -> Option<String> {
        self.selects(self.snapshot.spec.references().stable_service)
    }

    fn good(&self) -> Option<&String> {
        self.snapshot.ledger.last_good.as_ref().map(|(revision, _)| revision)
    }

    /// What was stable when the ledger was last written, if it can still be made.
    fn recorded_stable(&self) -> Option<String> {
        let known = [self.recorded.stable_revision.as_ref(), self.good()];
        known.into_iter().flatten().find(|revision| template(self.snapshot, revision).is_some()).cloned()
    }

    fn recorded_flight(&self) -> Option<&Release> {
        let release = self.recorded.release.as_ref()?;
        matches!(release.state, ReleaseState::Stepping | ReleaseState::Promoting).then_some(release)
    }

    /// The release in flight, as one that takes over: it has reached the stable Service.
    fn taking_over(&self, selected: &str) -> Option<Release> {
        let release = self.recorded_flight().filter(|release| release.revision == selected)?;
        if self.snapshot.spec.strategy.blue_green.is_some() && release.state == ReleaseState::Stepping {
            // There it has live traffic before the last gate; but never without the gates before the switch.
            let switch = self.plan.stages.iter().position(|stage| stage.weight >= 100);
            let switch = switch.and_then(|index| i32::try_from(index).ok()).unwrap_or(0);
            return Some(Release { stage: release.stage.max(switch), held_for: None, ..release.clone() });
        }
        let stage = self.plan.len().saturating_sub(1);
        Some(Release { state: ReleaseState::Promoting, stage, held_for: None, ..release.clone() })
    }

    fn was_aborted(&self, revision: &str) -> bool {
        let aborted = self.recorded.release.as_ref().filter(|release| release.state == ReleaseState::Aborted);
        let flies = self.recorded_flight().is_some_and(|release| release.revision == revision);
        aborted.is_some_and(|release| release.revision == revision)
            || self.snapshot.ledger.aborted.contains_key(revision) && !flies
    }

    /// Of the revisions with pods the one with the most that are ready, the eldest of equals. Where pods are the weight
    /// their number says nothing: there the eldest that serves.
    fn serving(&self) -> Option<String> {
        let living = self.snapshot.revisions.iter().filter(|(name, state)| lives(state) && !self.was_aborted(name));
        let by_pods = self.snapshot.spec.strategy.by_pods().is_some();
        let serves = |state: &RevisionState| if by_pods { state.ready.min(1) } else { state.ready };
        let best = living.max_by_key(|(name, state)| (serves(state), std::cmp::Reverse((state.created_at, *name))));
        best.map(|(name, _)| name.clone())
    }

    /// The most that the canary has in any rule, as written.
    fn weight(&self) -> i32 {
        let rules = self.snapshot.routes.values().flat_map(|route| &route.rules);
        rules.map(super::RuleState::share).max().unwrap_or(0)
    }

    /// What is in flight beside a stable revision, or was aborted.
    fn release(&self, stable: &str) -> Option<Release> {
        // A ledger that knows another stable revision knows nothing of what is in flight now.
        let same = self.recorded.stable_revision.as_deref() == Some(stable);
        let recorded = self.recorded.release.as_ref().filter(|release| same && release.revision != stable);
        if let Some(recorded) = recorded.filter(|release| release.state != ReleaseState::FirstDeploy) {
            return Some(recorded.clone());
        }
        let canary = self.selects(self.snapshot.spec.references().canary_service)?;
        let tried = canary != stable && canary == self.desired && !self.was_aborted(&canary);
        let shown = self.weight() > 0 || self.failed(&canary, 1).is_some();
        (tried && shown).then(|| Release {
            revision: canary,
            attempt: 1,
            state: ReleaseState::Stepping,
            plan_hash: self.plan.hash(),
            ..Release::default()
        })
    }

    fn with_release(&self, stable: String, release: Option<Release>, witnesses: &'static str) -> Position {
        let release = release.map(|release| self.anew(release));
        Position { stable: Some(stable), release, promotion_unrecorded: false, witnesses }
    }

    /// A release whose present stage is judged anew.
    fn anew(&self, mut release: Release) -> Release {
        if release.state != ReleaseState::Stepping || release.promote_full || release.rollback {
            return release;
        }
        if let Some((attempt, stage)) = self.failed(&release.revision, release.attempt) {
            // The verdict was there and not yet acted upon: it aborts at the next turn.
            release.attempt = attempt;
            release.stage = stage.unwrap_or(release.stage);
            return release;
        }
        let runs = self.snapshot.analyses.values().filter(|run| run.revision == release.revision);
        let used = runs.map(|run| run.attempt.saturating_add(1)).max().unwrap_or(1);
        release.attempt = release.attempt.max(used);
        release.background_runs = 0;
        release
    }

    /// The last attempt of a revision, not before `least`, when an analysis of it has failed; and the stage that
    /// failed, when it was not the background.
    fn failed(&self, revision: &str, least: i32) -> Option<(i32, Option<i32>)> {
        let runs = || self.snapshot.analyses.values().filter(|run| run.revision == revision && run.attempt >= least);
        let last = runs().map(|run| run.attempt).max()?;
        let bad = |phase| matches!(phase, AnalysisPhase::Failed | AnalysisPhase::Unavailable);
        let run = runs().find(|run| run.attempt == last && bad(run.phase))?;
        let step = run.stage.strip_prefix("step-").and_then(|step| step.parse::<usize>().ok());
        let stage = self.plan.stages.iter().position(|stage| step.is_some() && stage.step == step);
        Some((last, stage.and_then(|stage| i32::try_from(stage).ok())))
    }
}
