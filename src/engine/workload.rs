//! The Deployment that keeps the pod template: its own pods go when the Rollout's serve, and come back before the
//! Rollout goes.
//!
//! Asked only when nothing else is to be done, so it never stands before traffic. A Deployment is scaled down to nothing
//! once, and after that only when somebody else scaled it up: a Rollout of another size (an autoscaler) moves nothing,
//! and nor does a version that fails, for what the Deployment has by then is that very version.

use chrono::{DateTime, TimeDelta, Utc};

use super::converge::Convergence;
use super::decide::{Decision, wait_for};
use super::{Effect, Ending, ServiceState, Turn, Wait, WaitOn, WorkloadState};
use crate::api::{Condition, ConditionStatus, Conditions, ScaleDown, TransitionEvent, WORKLOAD_SCALED_DOWN};

/// A Deployment that is scaled up again within this time is scaled down without another entry in the log: two
/// controllers that pull at one field would fill it.
const QUIET: TimeDelta = TimeDelta::minutes(10);

const HANDED_BACK: &str = "HandedBack";

impl Decision<'_> {
    fn workload(&self) -> Option<(&WorkloadState, ScaleDown)> {
        Some((self.snapshot.workload.as_ref()?, self.snapshot.spec.takes_over()?))
    }

    /// What a turn that waits does for the hand-over of the Deployment's pods; else it waits, at the latest until that
    /// goes on.
    pub(super) fn hand_over(mut self, mut wait: Wait) -> Turn {
        let before = self.snapshot.status.conditions.condition(WORKLOAD_SCALED_DOWN);
        let before = before.map(|condition| (condition.status, condition.last_transition_time));
        let Some((workload, when)) = self.workload() else {
            if before.is_none() || self.snapshot.spec.takes_over().is_some() {
                return Turn::Wait(wait);
            }
            self.next.conditions.remove_condition(WORKLOAD_SCALED_DOWN);
            return self.advance();
        };
        let name = workload.name.clone();
        let mut sooner = |at: Option<DateTime<Utc>>| wait.until = [wait.until, at].into_iter().flatten().min();
        if workload.replicas == 0 {
            let quiet = before.and_then(|(status, since)| {
                (status == ConditionStatus::False).then(|| since.min(self.now) + QUIET).filter(|at| *at > self.now)
            });
            sooner(quiet);
            let known = matches!(before, Some((ConditionStatus::True, _)));
            if known || quiet.is_some() || self.stable().is_none() {
                return Turn::Wait(wait);
            }
            let message = format!("Deployment {name} has no pods of its own: the Rollout's serve");
            self.say_scaled_down(ConditionStatus::True, "HandedOver", message);
            return self.advance();
        }
        if let Some((ConditionStatus::True, _)) = before {
            let (stable, weight) = (self.stable().unwrap_or_default(), self.next.weight.unwrap_or(0));
            let message = format!(
                "Deployment {name} was scaled up to {} pods by somebody else; it goes back to 0",
                workload.replicas
            );
            let stage = self.snapshot.status.release.as_ref().map_or(0, |release| release.stage);
            let event = TransitionEvent::DriftCorrected;
            self.push(event, &stable, stage, (weight, weight), "WorkloadScaledUp", message.clone(), None);
            self.say_scaled_down(ConditionStatus::False, "WorkloadScaledUp", message);
            return self.advance();
        }
        match self.own_pods(workload, when) {
            Ok(replicas) if replicas < workload.replicas => {
                Turn::Apply(Effect::ScaleWorkload { workload: name, replicas })
            }
            Ok(_) => Turn::Wait(wait),
            Err(until) => {
                sooner(until);
                Turn::Wait(wait)
            }
        }
    }

    /// The pods that the Deployment still needs; or when to look again, if a time is known.
    fn own_pods(&self, workload: &WorkloadState, when: ScaleDown) -> Result<i32, Option<DateTime<Utc>>> {
        let snapshot = self.snapshot;
        let available: i32 = snapshot.revisions.values().map(|state| state.available.min(state.ready).max(0)).sum();
        let service = snapshot.spec.references().stable_service;
        if self.stable().is_none() {
            // The first version is coming up. The Service has pods of both, and what serves is what it publishes.
            let published = service.as_ref().and_then(|name| snapshot.services.get(name)).map(|service| {
                let ours = |(revision, _): &(&String, &i32)| snapshot.revisions.contains_key(*revision);
                service.ready.iter().filter(ours).map(|(_, ready)| *ready).sum()
            });
            let serving = published.unwrap_or(available).min(available);
            return if when == ScaleDown::Progressively && serving > 0 {
                Ok(self.replicas().saturating_sub(serving).max(1))
            } else {
                Ok(workload.replicas)
            };
        }
        if available < self.replicas() {
            return Err(None);
        }
        // Requests reach the Deployment's pods until every proxy knows that the Service has other ones now.
        let known = service.as_ref().and_then(|name| snapshot.services.get(name));
        if known.is_some_and(|service| service.selects.is_none() || self.foreign(service) > 0) {
            return Err(None);
        }
        let seen = &self.next.seen;
        let fact = seen.stable_service.as_ref().map(|fact| fact.since);
        // Without a Service of its own, or while that has no pod: it was promoted before anything of this could be. A
        // status that was lost knows at least since when the weight has been what it is.
        let weight = seen.weight.as_ref().map(|fact| fact.since);
        let since = fact.or(snapshot.status.promoted_at).or(weight).unwrap_or(self.now);
        let strategy = &snapshot.spec.strategy;
        let at = since.min(self.now) + strategy.settle().delta() + strategy.drain().delta();
        if at > self.now { Err(Some(at)) } else { Ok(0) }
    }

    /// Ready endpoints of a Service that are no pods of ours.
    fn foreign(&self, service: &ServiceState) -> i32 {
        let others = |(revision, _): &(&String, &i32)| !self.snapshot.revisions.contains_key(*revision);
        service.ready.iter().filter(others).map(|(_, ready)| *ready).sum()
    }

    fn say_scaled_down(&mut self, status: ConditionStatus, reason: &str, message: String) {
        self.next.conditions.set_condition(Condition {
            type_: WORKLOAD_SCALED_DOWN.to_owned(),
            status,
            reason: reason.to_owned(),
            message,
            last_transition_time: self.now,
            observed_generation: Some(self.snapshot.generation),
        });
    }

    /// The Deployment's pods are asked for again, whatever else is on its way: they take the longest.
    pub(super) fn workload_back(&self, late: bool) -> Option<Effect> {
        let (workload, _) = self.workload()?;
        let missing = workload.replicas < self.replicas();
        // What it has is not what serves: a person can still mend that.
        (missing && (late || self.other_template().is_none()))
            .then(|| Effect::ScaleWorkload { workload: workload.name.clone(), replicas: self.replicas() })
    }

    /// The Deployment has another version than the stable one, in a sentence.
    pub(super) fn other_template(&self) -> Option<String> {
        let (workload, _) = self.workload()?;
        let stable = self.stable().filter(|stable| *stable != workload.revision)?;
        Some(format!(
            "Deployment {} has the template of revision {}, not of {stable}, which is stable",
            workload.name, workload.revision
        ))
    }

    /// What must be so before the Rollout's Services reach the Deployment's pods.
    pub(super) fn workload_not_ready(&self) -> Option<Convergence> {
        let (workload, _) = self.workload()?;
        if let (Some(other), true) = (self.other_template(), workload.replicas < self.replicas()) {
            let message = format!(
                "{other}: go back to that, or what it has comes up without steps, 3 minutes after the end began"
            );
            return Some(Convergence::Hold(wait_for(WaitOn::Person, None, &message)));
        }
        (workload.ready < self.replicas()).then(|| {
            let (name, ready) = (&workload.name, workload.ready);
            let message = format!("{ready} of {} pods of Deployment {name} are ready", self.replicas());
            Convergence::Hold(wait_for(WaitOn::Pods, None, &message))
        })
    }

    /// What must be so before the Rollout's own pods go.
    pub(super) fn workload_serves(&self) -> Option<Convergence> {
        let (workload, _) = self.workload()?;
        if workload.ready < self.replicas() {
            return self.workload_not_ready();
        }
        let service = self.snapshot.spec.references().stable_service;
        let published = service.and_then(|name| self.snapshot.services.get(&name)).map(|service| self.foreign(service));
        if published.is_some_and(|published| published < self.replicas()) {
            let message = format!("the endpoints of Deployment {} are not all published", workload.name);
            return Some(Convergence::Hold(wait_for(WaitOn::Endpoints, None, &message)));
        }
        None
    }

    /// The Deployment serves again, and whoever uninstalls finds that alone: pods of which nobody knows any more would
    /// stay as they are when it gets a new version. (A Rollout that is deleted takes its pods with it.)
    pub(super) fn own_pods_go(&mut self, ending: Ending) -> Option<Turn> {
        let name = self.workload()?.0.name.clone();
        if ending == Ending::Deleted {
            return None;
        }
        if !self.workload_is_handed_back() {
            self.say_scaled_down(ConditionStatus::False, HANDED_BACK, format!("Deployment {name} serves again"));
            return Some(Turn::Advance(Box::new(self.next.clone())));
        }
        let (revision, _) = self.snapshot.revisions.iter().find(|(_, state)| state.replicas > 0)?;
        Some(Turn::Apply(Effect::Scale { revision: revision.clone(), replicas: 0 }))
    }

    /// From then on no traffic goes back to pods of ours.
    pub(super) fn workload_is_handed_back(&self) -> bool {
        let condition = self.snapshot.status.conditions.condition(WORKLOAD_SCALED_DOWN);
        condition.is_some_and(|condition| condition.reason == HANDED_BACK)
    }
}
