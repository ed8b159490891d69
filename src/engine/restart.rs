//! New pods of the same version: who asks for them, whose turn it is, and when all are new.
//!
//! It touches neither the version nor the step. A side has pods beyond its size while its old ones are replaced, so that
//! none is missing; `converge` ends an old one when enough others serve.

use chrono::{DateTime, TimeDelta, Utc};

use super::converge::{Renewal, Target};
use super::decide::Decision;
use super::{InterventionState, PodState, RevisionState, Turn, Wait};
use crate::api::{Phase, Restart, TransitionEvent};

/// A side has one pod more for so many of its pods.
const PODS_OF_ONE_SURGE: i32 = 4;

/// The API server tells the time of a pod's creation in whole seconds: only what is made after this time is surely newer
/// than the request.
const TELLS_APART: TimeDelta = TimeDelta::seconds(1);

impl Decision<'_> {
    /// A request is not yet fulfilled, or not even taken up.
    pub(super) fn is_restarting(&self) -> bool {
        match self.not_taken_up().filter(|at| *at <= self.now) {
            Some(at) => self.outdated(at).is_some(),
            None => self.next.restart.as_ref().is_some_and(|restart| !restart.done),
        }
    }

    /// The request in the declaration, while it is newer than the last one that is known.
    fn not_taken_up(&self) -> Option<DateTime<Utc>> {
        let known = self.next.restart.as_ref().map(|known| known.at);
        self.snapshot.spec.restart_at.filter(|at| known.is_none_or(|known| known < *at))
    }

    /// The revision whose turn it is: stable first, for most of the traffic is there.
    fn outdated(&self, at: DateTime<Utc>) -> Option<String> {
        let release = self.next.release.as_ref().map(|release| release.revision.clone());
        let mut sides = self.stable().into_iter().chain(release);
        sides.find(|revision| {
            let state = self.snapshot.revisions.get(revision);
            // What is not seen yet may be old: the plugin sees no pods at all.
            let all_seen = |state: &RevisionState| i32::try_from(state.pods.len()).is_ok_and(|it| it == state.current);
            state.is_some_and(|state| !all_seen(state)) || self.pods(revision).iter().any(|pod| pod.created_at <= at)
        })
    }

    fn pods(&self, revision: &str) -> &[PodState] {
        self.snapshot.revisions.get(revision).map_or(&[], |state| &state.pods)
    }

    /// Lets the target have the pods that stand in for those which are replaced.
    pub(super) fn renew(&self, target: &mut Target) {
        let Some(restart) = self.next.restart.as_ref().filter(|restart| !restart.done) else { return };
        if self.now < restart.at + TELLS_APART {
            return;
        }
        let Some(revision) = self.outdated(restart.at) else { return };
        let Some(size) = target.sizes.get(&revision).copied().filter(|size| *size > 0) else { return };
        let quarter = size.saturating_add(PODS_OF_ONE_SURGE - 1) / PODS_OF_ONE_SURGE;
        // Without routes more pods are more traffic: it is always stable that stands in.
        let (stands_in, surge) = match self.snapshot.spec.strategy.by_pods() {
            Some(canary) => {
                let most = self.replicas().saturating_add(canary.surge_and_unavailable(self.replicas()).0);
                let room = most.saturating_sub(target.sizes.values().sum()).max(0);
                (target.stable_service.clone(), room.min(quarter))
            }
            None => (revision.clone(), quarter),
        };
        if let Some(size) = target.sizes.get_mut(&stands_in).filter(|size| **size > 0) {
            *size = size.saturating_add(surge);
        }
        let surge = if stands_in == revision { surge } else { 0 };
        target.renewal = Some(Renewal { revision, before: restart.at, surge });
    }

    /// What a turn that waits does for a restart: a request in the declaration is taken up, one that is fulfilled is
    /// told; else it waits, at the latest until the restart goes on.
    pub(super) fn restart(mut self, mut wait: Wait) -> Turn {
        let Some(stable) = self.stable() else { return Turn::Wait(wait) };
        if let Some(at) = self.not_taken_up() {
            match self.outdated(at) {
                _ if at > self.now => wait.until = Some(wait.until.map_or(at, |until| until.min(at))),
                Some(revision) if self.pods(&revision).iter().any(|pod| pod.created_at <= at) => {
                    let message = format!("spec.restartAt: pods from before {} are replaced", stamp(at));
                    return self.begin_restart(at, "RestartAt", message, None);
                }
                Some(_) => {}
                None => {
                    // A declaration older than all pods, or whose status was lost: nothing is to be done or told.
                    self.next.restart = Some(Restart { at, done: true });
                    return self.advance();
                }
            }
        }
        let Some(restart) = self.next.restart.clone().filter(|restart| !restart.done) else { return Turn::Wait(wait) };
        if let Some(revision) = self.outdated(restart.at) {
            let settle = self.snapshot.spec.strategy.settle().delta();
            let settles = self.pods(&revision).iter().filter_map(|pod| pod.ready_since.map(|since| since + settle));
            let next = settles.chain([restart.at + TELLS_APART]).filter(|at| *at > self.now).min();
            wait.until = [wait.until, next].into_iter().flatten().min();
            return Turn::Wait(wait);
        }
        self.next.restart = Some(Restart { done: true, ..restart });
        let message = format!("all pods are newer than {}", stamp(restart.at));
        self.tell_restart(TransitionEvent::Restarted, &stable, "Restarted", message, None);
        self.advance()
    }

    /// A person asks for new pods.
    pub(super) fn ask_for_restart(self, word: &InterventionState) -> Result<Turn, (Box<Self>, String)> {
        if self.stable().is_none() {
            return Err((Box::new(self), "its first version is coming up: its pods are new".to_owned()));
        }
        let reason = if word.reason.is_empty() { String::new() } else { format!(": {}", word.reason) };
        let message = format!("restarted by {}{reason}", word.actor);
        let at = self.now;
        Ok(self.begin_restart(at, "RestartedByPerson", message, Some(word.actor.clone())))
    }

    fn begin_restart(mut self, at: DateTime<Utc>, reason: &str, message: String, actor: Option<String>) -> Turn {
        let stable = self.stable().unwrap_or_default();
        self.next.restart = Some(Restart { at, done: false });
        if self.next.phase == Phase::Ready {
            self.describe(Phase::Progressing, "Restarting", &message);
        }
        self.tell_restart(TransitionEvent::Restarting, &stable, reason, message, actor);
        self.advance()
    }

    fn tell_restart(
        &mut self,
        event: TransitionEvent,
        stable: &str,
        reason: &str,
        message: String,
        actor: Option<String>,
    ) {
        let weight = self.next.weight.unwrap_or(0);
        let release = self.next.release.as_ref().map(|release| (release.revision.clone(), release.stage));
        let (revision, stage) = release.unwrap_or_else(|| (stable.to_owned(), 0));
        self.push(event, &revision, stage, (weight, weight), reason, message, actor);
    }
}

fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}
