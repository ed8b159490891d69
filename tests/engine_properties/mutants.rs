//! Engines with one planted fault each: the observers must catch every one of them.

use chrono::{DateTime, TimeDelta, Utc};
use sluice::api::{AnalysisPhase, InterventionAction, ReleaseState, TransitionEvent};
use sluice::engine::decide::decide;
use sluice::engine::plan::plan;
use sluice::engine::{Effect, LedgerState, Snapshot, StrategyChange, Turn, WaitOn};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    RaiseBeforeReady,
    ShrinkBeforeRoute,
    SkipSettle,
    SelectInTraffic,
    NoDataPasses,
    IgnoreEpoch,
    PromoteWinsTie,
    OldSamples,
    DoubleTransition,
    ForgetWakeUp,
    /// Planted where effects are performed.
    RelativeWeight,
    /// Planted where the status is written.
    StaleWrite,
    AbortNotAbsorbing,
    SkipStage,
    LostTransition,
    WriteAtRest,
    LostStatusIsFirstDeploy,
    SwitchBeforeReady,
    PreviewIsLive,
    OldGoesAtOnce,
    ReplaceBeforeReady,
    /// It goes at once when it is deleted.
    GoesAtOnce,
    /// What is deleted first loses what traffic goes by.
    ReleasesInTraffic,
    /// The Deployment's pods go before the Rollout's stand for them.
    HandsOverEarly,
    /// What an autoscaler makes of the Rollout brings pods of the Deployment back.
    ScalesTheDeploymentAlong,
    /// An old pod goes before a new one stands for it.
    EvictsFirst,
    /// A new strategy begins before traffic has left by the old one.
    LeavesNothing,
}

impl Mutant {
    pub const ALL: [Self; 27] = [
        Self::RaiseBeforeReady,
        Self::ShrinkBeforeRoute,
        Self::SkipSettle,
        Self::SelectInTraffic,
        Self::NoDataPasses,
        Self::IgnoreEpoch,
        Self::PromoteWinsTie,
        Self::OldSamples,
        Self::DoubleTransition,
        Self::ForgetWakeUp,
        Self::RelativeWeight,
        Self::StaleWrite,
        Self::AbortNotAbsorbing,
        Self::SkipStage,
        Self::LostTransition,
        Self::WriteAtRest,
        Self::LostStatusIsFirstDeploy,
        Self::SwitchBeforeReady,
        Self::PreviewIsLive,
        Self::OldGoesAtOnce,
        Self::ReplaceBeforeReady,
        Self::GoesAtOnce,
        Self::ReleasesInTraffic,
        Self::HandsOverEarly,
        Self::ScalesTheDeploymentAlong,
        Self::EvictsFirst,
        Self::LeavesNothing,
    ];

    /// The promise that it breaks, as the observers name it: another one that it breaks beside it does not count.
    pub fn breaks(self) -> &'static str {
        match self {
            Self::RaiseBeforeReady => "S2",
            Self::ShrinkBeforeRoute => "S4",
            Self::NoDataPasses | Self::OldSamples => "S5",
            Self::DoubleTransition | Self::RelativeWeight | Self::SkipStage | Self::LostStatusIsFirstDeploy => "S6",
            Self::PromoteWinsTie | Self::AbortNotAbsorbing => "S7",
            Self::StaleWrite | Self::LostTransition => "S8",
            Self::SkipSettle | Self::SelectInTraffic => "S9",
            Self::IgnoreEpoch => "S10",
            Self::SwitchBeforeReady | Self::PreviewIsLive | Self::OldGoesAtOnce => "S12",
            Self::ReplaceBeforeReady => "S3",
            Self::WriteAtRest | Self::LeavesNothing => "L1",
            Self::ForgetWakeUp => "L3",
            Self::GoesAtOnce | Self::ReleasesInTraffic => "S17",
            Self::HandsOverEarly | Self::ScalesTheDeploymentAlong => "H1",
            Self::EvictsFirst => "R1",
        }
    }

    pub fn decide(self, snapshot: &Snapshot, now: DateTime<Utc>) -> Turn {
        let mut snapshot = snapshot.clone();
        self.blind(&mut snapshot, now);
        let turn = decide(&snapshot, now);
        self.twist(&snapshot, turn)
    }

    /// What the faulty engine does not see, or sees wrongly.
    fn blind(self, snapshot: &mut Snapshot, now: DateTime<Utc>) {
        let long_ago = now - TimeDelta::hours(1);
        match self {
            Self::LeavesNothing => {
                if let StrategyChange::Leaving { asked } = snapshot.strategy_change.clone() {
                    snapshot.spec.strategy = asked.strategy();
                    snapshot.strategy_change = StrategyChange::Gone;
                }
            }
            Self::SkipSettle => {
                let seen = &mut snapshot.status.seen;
                for fact in [&mut seen.stable_service, &mut seen.canary_service].into_iter().flatten() {
                    fact.since = long_ago;
                }
                if let Some(weight) = &mut seen.weight {
                    weight.since = long_ago;
                }
            }
            Self::NoDataPasses => {
                for run in snapshot.analyses.values_mut().filter(|run| run.phase == AnalysisPhase::Holding) {
                    run.phase = AnalysisPhase::Running;
                    run.passed_since = Some(now);
                }
            }
            Self::OldSamples => {
                for run in snapshot.analyses.values_mut().filter(|run| run.passed_since.is_some()) {
                    run.passed_since = Some(now);
                }
            }
            Self::OldGoesAtOnce => snapshot.status.promoted_at = None,
            Self::IgnoreEpoch => snapshot.epoch = snapshot.epoch.max(snapshot.status.epoch),
            Self::PromoteWinsTie
                if snapshot.interventions.iter().any(|word| word.action == InterventionAction::Promote) =>
            {
                snapshot.interventions.retain(|word| word.action != InterventionAction::Abort);
            }
            Self::AbortNotAbsorbing => {
                if let Some(release) = &mut snapshot.status.release
                    && release.state == ReleaseState::Aborted
                {
                    release.state = ReleaseState::Stepping;
                    for run in snapshot.analyses.values_mut() {
                        run.phase = AnalysisPhase::Running;
                    }
                }
            }
            Self::LostStatusIsFirstDeploy if snapshot.status.has_no_position() => {
                snapshot.revisions.clear();
                // Its numbers go on: what gives it away is the first deploy, not a gap.
                let sequence = snapshot.ledger.sequence;
                snapshot.ledger = LedgerState { read: true, sequence, ..LedgerState::default() };
                for service in snapshot.services.values_mut() {
                    service.selects = None;
                }
            }
            _ => {}
        }
    }

    /// What the faulty engine does instead.
    fn twist(self, snapshot: &Snapshot, turn: Turn) -> Turn {
        let stepping = snapshot.status.release.as_ref().filter(|release| release.state == ReleaseState::Stepping);
        let route = snapshot.routes.iter().next();
        match (self, turn) {
            (Self::RaiseBeforeReady, Turn::Wait(wait)) if matches!(wait.on, WaitOn::Pods | WaitOn::Endpoints) => {
                let weight = stepping.and_then(|release| Some(plan(&snapshot.spec).ok()?.stage(release.stage)?.weight));
                match (weight, route) {
                    (Some(percent), Some((name, route))) if !route.rules.iter().any(|rule| rule.holds(percent)) => {
                        Turn::Apply(Effect::SetWeight { route: name.clone(), percent })
                    }
                    _ => Turn::Wait(wait),
                }
            }
            (Self::SwitchBeforeReady, Turn::Wait(wait)) if matches!(wait.on, WaitOn::Pods | WaitOn::Endpoints) => {
                let last = stepping.filter(|release| {
                    plan(&snapshot.spec).is_ok_and(|plan| plan.stage(release.stage).is_some_and(|it| it.weight == 100))
                });
                match (last, &snapshot.spec.strategy.blue_green) {
                    (Some(release), Some(blue_green)) => Turn::Apply(Effect::SelectRevision {
                        service: blue_green.active_service.clone(),
                        revision: release.revision.clone(),
                    }),
                    _ => Turn::Wait(wait),
                }
            }
            (Self::ReplaceBeforeReady, Turn::Wait(wait)) if wait.on == WaitOn::Pods => {
                let stable = snapshot.status.stable_revision.clone().filter(|_| stepping.is_some());
                match stable.filter(|_| snapshot.spec.strategy.by_pods().is_some()) {
                    Some(revision) if snapshot.revisions.get(&revision).is_some_and(|state| state.replicas > 0) => {
                        Turn::Apply(Effect::Scale { revision, replicas: 0 })
                    }
                    _ => Turn::Wait(wait),
                }
            }
            (Self::PreviewIsLive, Turn::Apply(Effect::SelectRevision { revision, .. }))
                if snapshot.spec.strategy.blue_green.is_some() && snapshot.status.stable_revision.is_some() =>
            {
                let service = snapshot.spec.references().stable_service.unwrap_or_default();
                Turn::Apply(Effect::SelectRevision { service, revision })
            }
            (Self::ShrinkBeforeRoute, Turn::Apply(effect @ Effect::SetWeight { percent: 0, .. })) => {
                let release = snapshot.status.release.as_ref();
                let revision = release.map(|release| release.revision.clone()).unwrap_or_default();
                match snapshot.revisions.get(&revision) {
                    Some(state)
                        if state.replicas > 0 && snapshot.status.stable_revision.as_ref() != Some(&revision) =>
                    {
                        Turn::Apply(Effect::Scale { revision, replicas: 0 })
                    }
                    _ => Turn::Apply(effect),
                }
            }
            (Self::SelectInTraffic, Turn::Apply(effect @ Effect::SetWeight { percent: 100, .. })) => {
                let release = snapshot.status.release.as_ref();
                match release.filter(|release| release.state == ReleaseState::Promoting) {
                    Some(release) => Turn::Apply(Effect::SelectRevision {
                        service: snapshot.spec.references().stable_service.unwrap_or_default(),
                        revision: release.revision.clone(),
                    }),
                    None => Turn::Apply(effect),
                }
            }
            (Self::DoubleTransition, Turn::Advance(mut status)) => {
                if let Some(last) = status.pending_log.last().cloned()
                    && last.event == TransitionEvent::StepCompleted
                {
                    status.sequence += 1;
                    status.pending_log.push(sluice::api::Transition { sequence: status.sequence, ..last });
                }
                Turn::Advance(status)
            }
            (Self::LostTransition, Turn::Advance(mut status)) => {
                if status.pending_log.last().is_some_and(|last| last.event == TransitionEvent::StepCompleted) {
                    status.pending_log.pop();
                }
                Turn::Advance(status)
            }
            (Self::SkipStage, Turn::Advance(mut status)) => {
                let stepped =
                    status.pending_log.last().is_some_and(|last| last.event == TransitionEvent::StepCompleted);
                if let Some(release) = status.release.as_mut().filter(|_| stepped) {
                    release.stage = (release.stage + 1).min(release.stages - 1);
                }
                Turn::Advance(status)
            }
            (Self::ForgetWakeUp, Turn::Wait(mut wait)) => {
                wait.until = None;
                Turn::Wait(wait)
            }
            (Self::GoesAtOnce, _) if snapshot.ending.is_some() && snapshot.finalizer => {
                Turn::Apply(Effect::RemoveFinalizer { unfinished: None })
            }
            (Self::ReleasesInTraffic, turn) if snapshot.ending.is_some() && snapshot.finalizer => {
                let narrowed = snapshot.services.iter().find(|(_, state)| state.selects.is_some());
                match narrowed {
                    Some((service, _)) => Turn::Apply(Effect::SelectEveryRevision { service: service.clone() }),
                    None => turn,
                }
            }
            (Self::HandsOverEarly, Turn::Wait(wait)) => match &snapshot.workload {
                Some(workload) if workload.replicas > 0 && snapshot.ending.is_none() => {
                    Turn::Apply(Effect::ScaleWorkload { workload: workload.name.clone(), replicas: 0 })
                }
                _ => Turn::Wait(wait),
            },
            (Self::ScalesTheDeploymentAlong, Turn::Apply(Effect::Scale { revision, replicas }))
                if snapshot.workload.as_ref().is_some_and(|workload| workload.replicas == 0) =>
            {
                let workload = snapshot.workload.as_ref().map(|workload| workload.name.clone()).unwrap_or_default();
                match snapshot.status.stable_revision.as_ref() == Some(&revision) && replicas > 0 {
                    true => Turn::Apply(Effect::ScaleWorkload { workload, replicas }),
                    false => Turn::Apply(Effect::Scale { revision, replicas }),
                }
            }
            (Self::EvictsFirst, Turn::Apply(Effect::Scale { revision, replicas })) => {
                let at = snapshot.status.restart.as_ref().filter(|restart| !restart.done).map(|restart| restart.at);
                let state = snapshot.revisions.get(&revision);
                let old = at.zip(state).and_then(|(at, state)| state.pods.iter().find(|pod| pod.created_at <= at));
                match old {
                    Some(pod) => {
                        Turn::Apply(Effect::EvictPod { revision, pod: pod.name.clone(), uid: pod.uid.clone() })
                    }
                    None => Turn::Apply(Effect::Scale { revision, replicas }),
                }
            }
            (Self::WriteAtRest, Turn::Wait(wait)) if wait.on == WaitOn::Nothing => {
                let mut status = snapshot.status.clone();
                status.message.push(' ');
                Turn::Advance(Box::new(status))
            }
            (_, turn) => turn,
        }
    }
}
