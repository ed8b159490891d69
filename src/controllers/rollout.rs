//! The rollout loop: observe, decide, act; one effect or one status write at a time.
//!
//! It holds no state of its own that a decision depends on. A crash between any two lines repeats the decision.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::LedgerView;
use super::queue::{Failure, Outcome};
use crate::api::{
    Condition, ConditionStatus, Conditions, InterventionStatus, Phase, ReleaseState, RolloutStatus, TransitionEvent,
};
use crate::cluster::events::Events;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{Key, RolloutObject, Undecodable};
use crate::cluster::observe::observe;
use crate::cluster::write::{WriteError, Writer};
use crate::engine::decide::decide;
use crate::engine::{Effect, Ending, Snapshot, Turn};
use crate::telemetry::Metrics;

/// Turns taken for one Rollout before the others get theirs.
const TURNS: usize = 32;
/// A Rollout is looked at again after this time even if no event came: events may be lost.
const RESYNC: Duration = Duration::from_secs(240);
/// How often a process that does not lead looks whether it does: in memory, without a request.
pub const STANDBY: Duration = Duration::from_secs(5);
/// A refused write is tried again after this time, or as soon as something changes.
const REFUSED: Duration = Duration::from_secs(5);
/// What a PodDisruptionBudget holds up is tried again after this time; what else is due is not late by more.
const LATER: Duration = Duration::from_secs(5);

/// The rollout loop.
pub struct RolloutController {
    /// The cluster as last seen.
    pub index: Arc<Index>,
    /// The way to write.
    pub writer: Writer,
    /// The epoch of this leader, while it leads.
    pub epoch: Arc<dyn Fn() -> Option<i64> + Send + Sync>,
    /// The ledger.
    pub ledger: Arc<dyn LedgerView>,
    /// Where events go.
    pub events: Events,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// The one clock.
    pub now: fn() -> DateTime<Utc>,
    /// The operator is being uninstalled: every Rollout hands back what it steers.
    pub retiring: bool,
}

impl RolloutController {
    /// Takes turns for one Rollout until it waits.
    pub async fn turn(&self, key: &Key) -> Outcome {
        for _ in 0..TURNS {
            // Not leading, or not sure of it just now (a clock that jumped): nothing is lost by looking again.
            let Some(epoch) = (self.epoch)() else { return Outcome::After(STANDBY) };
            let Some(rollout) = self.index.rollout(key) else { return Outcome::Done };
            if (rollout.identity.deleting || self.retiring) && !rollout.identity.is_held() {
                // All is handed back; the ReplicaSets and AnalysisRuns of one that is deleted go with their owner.
                return Outcome::Done;
            }
            let mut snapshot = match observe(&self.index, &rollout, self.ledger.state(key), epoch) {
                Ok(snapshot) => snapshot,
                Err(trouble) => return self.unreadable(&rollout, &trouble, epoch).await,
            };
            if self.retiring && snapshot.ending.is_none() {
                snapshot.ending = Some(Ending::Uninstalled);
            }
            let now = (self.now)();
            let result = match decide(&snapshot, now) {
                Turn::Wait(wait) => {
                    let delay = wait.until.map_or(RESYNC, |until| (until - now).to_std().unwrap_or_default());
                    // A little late rather than a little early: an early look would only wait again.
                    return Outcome::After(delay.min(RESYNC) + Duration::from_millis(2));
                }
                Turn::Apply(effect) => {
                    tracing::info!(rollout = %key, effect = ?EffectName(&effect), "apply");
                    if let Effect::RemoveFinalizer { unfinished: Some(why) } = &effect {
                        tracing::warn!(rollout = %key, why, "not all was handed back");
                        self.events.not_handed_back(&rollout.identity, why, now);
                    }
                    match self.writer.perform(&rollout, &effect).await {
                        Err(WriteError::Refused { reason, message, what }) => {
                            let text = format!("{what}: {message}");
                            self.stall(&rollout, snapshot.status, &reason, &text, epoch).await;
                            // Not a failure of ours: a back-off would also hold back the revert that mends it.
                            return Outcome::After(REFUSED);
                        }
                        Err(WriteError::Later { what, message }) => {
                            tracing::info!(rollout = %key, what, message, "not now");
                            self.events.hindered(&rollout.identity, &format!("{what} has to wait: {message}"), now);
                            return Outcome::After(LATER);
                        }
                        other => other,
                    }
                }
                Turn::Advance(status) => self.advance(&rollout, &snapshot, &status, now).await,
            };
            match result {
                Ok(()) => {}
                Err(WriteError::NotLeader) => return Outcome::After(STANDBY),
                // Look again: the watch brings what changed; this is the bound for when it does not.
                Err(WriteError::Conflict { what }) => {
                    return Outcome::Failed(Failure {
                        reason: "Conflict",
                        message: format!("{what} changed meanwhile"),
                    });
                }
                Err(error) => {
                    return Outcome::Failed(Failure::new(error.reason(), &error));
                }
            }
        }
        Outcome::After(Duration::ZERO)
    }

    async fn advance(
        &self,
        rollout: &RolloutObject,
        snapshot: &Snapshot,
        status: &RolloutStatus,
        now: DateTime<Utc>,
    ) -> Result<(), WriteError> {
        self.writer.replace_status(&rollout.identity, status).await?;
        let key = rollout.identity.key();
        self.measure(&snapshot.status, status, now);
        let mut urgent = false;
        let before = snapshot.status.sequence;
        for transition in status.pending_log.iter().filter(|transition| transition.sequence > before) {
            urgent |= matches!(transition.event, TransitionEvent::Aborted | TransitionEvent::Promoted);
            tracing::info!(rollout = %key, event = ?transition.event, sequence = transition.sequence,
                weight = transition.weight_to, message = transition.message, "transition");
            self.metrics.transition(transition.event);
            self.events.transition(&rollout.identity, transition);
        }
        if status.sequence > before {
            self.ledger.notify(&key, urgent);
        }
        let known: BTreeSet<&String> = snapshot.status.taken_interventions.iter().collect();
        for uid in status.taken_interventions.iter().filter(|uid| !known.contains(uid)) {
            self.answer(snapshot, status, uid, now).await;
        }
        Ok(())
    }

    /// How long the two moments took that people wait for: the first traffic on a new version, the last on a bad one.
    fn measure(&self, before: &RolloutStatus, after: &RolloutStatus, now: DateTime<Utc>) {
        let Some(release) = &after.release else { return };
        let since = |at: Option<DateTime<Utc>>| at.and_then(|at| (now - at).to_std().ok());
        match (before.weight.unwrap_or(0), after.weight.unwrap_or(0)) {
            (0, 1..) if release.state == ReleaseState::Stepping => {
                since(release.started_at).into_iter().for_each(|took| self.metrics.first_shift(took));
            }
            (1.., 0) if release.state == ReleaseState::Aborted => {
                since(release.abort.as_ref().map(|abort| abort.at))
                    .into_iter()
                    .for_each(|took| self.metrics.abort_done(took));
            }
            _ => {}
        }
    }

    /// Tells the person what became of their word. Best effort: the word itself is taken, and recorded.
    async fn answer(&self, snapshot: &Snapshot, status: &RolloutStatus, uid: &str, now: DateTime<Utc>) {
        let Some(word) = snapshot.interventions.iter().find(|word| word.uid == uid) else { return };
        let key = Key::new(snapshot.namespace.clone(), word.name.clone());
        let Some(object) = self
            .index
            .interventions_of(&Key::new(snapshot.namespace.clone(), snapshot.name.clone()))
            .into_iter()
            .find(|object| object.identity.uid == uid)
        else {
            return;
        };
        let (outcome, message) = match status.refused_interventions.iter().find(|refused| refused.uid == uid) {
            Some(refused) => (InterventionStatus::REFUSED, refused.message.clone()),
            None => (InterventionStatus::APPLIED, status.message.clone()),
        };
        let answer = json!({"outcome": outcome, "message": message, "at": now});
        if let Err(error) = self.writer.replace_status_of(Kind::Intervention, &object.identity, answer).await {
            tracing::warn!(intervention = %key, %error, "its outcome could not be written");
        }
    }

    /// Says in the status that the spec cannot be read, and touches nothing else.
    async fn unreadable(&self, rollout: &RolloutObject, trouble: &Undecodable, epoch: i64) -> Outcome {
        if rollout.identity.deleting || self.retiring {
            // What it steers cannot be known, and nobody waits for ever.
            self.events.not_handed_back(&rollout.identity, &trouble.to_string(), (self.now)());
            return match self.writer.set_finalizer(&rollout.identity, false).await {
                Ok(()) => Outcome::Done,
                Err(WriteError::NotLeader) => Outcome::After(STANDBY),
                Err(error) => Outcome::Failed(Failure::new(error.reason(), &error)),
            };
        }
        let status = rollout.status.clone().unwrap_or_default();
        self.stall(rollout, status, "InvalidSpec", &trouble.to_string(), epoch).await;
        Outcome::Done
    }

    async fn stall(&self, rollout: &RolloutObject, before: RolloutStatus, reason: &str, message: &str, epoch: i64) {
        let status = stalled(&before, rollout.identity.generation, reason, message, epoch, (self.now)());
        if status == before || before.epoch > epoch {
            return;
        }
        tracing::warn!(rollout = %rollout.identity.key(), reason, message, "stalled");
        if let Err(error) = self.writer.replace_status(&rollout.identity, &status).await {
            tracing::warn!(rollout = %rollout.identity.key(), %error, "its trouble could not be written");
        }
    }
}

/// The status that says what is in the way, and keeps everything else.
fn stalled(
    before: &RolloutStatus,
    generation: i64,
    reason: &str,
    message: &str,
    epoch: i64,
    now: DateTime<Utc>,
) -> RolloutStatus {
    let mut status = before.clone();
    status.phase = Phase::Stalled;
    status.message = message.to_owned();
    status.observed_generation = Some(generation);
    status.epoch = epoch;
    let condition = |type_: &str, value| Condition {
        type_: type_.to_owned(),
        status: value,
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now,
        observed_generation: Some(generation),
    };
    status.conditions.set_condition(condition("Ready", ConditionStatus::False));
    status.conditions.set_condition(condition("Stalled", ConditionStatus::True));
    status.conditions.set_condition(condition("Reconciling", ConditionStatus::False));
    status
}

/// An effect in the log, without the template.
struct EffectName<'a>(&'a Effect);

impl std::fmt::Debug for EffectName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Effect::CreateReplicaSet { revision, replicas, .. } => write!(f, "create {revision} with {replicas} pods"),
            Effect::StartAnalysis { name, .. } => write!(f, "start analysis {name}"),
            other => write!(f, "{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_said_once_and_moves_nothing() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let before = RolloutStatus { stable_revision: Some("a".to_owned()), sequence: 4, ..RolloutStatus::default() };
        let said = stalled(&before, 7, "InvalidSpec", "spec.replicas: invalid type", 3, now);
        assert_eq!(said.phase, Phase::Stalled);
        assert_eq!(said.conditions.condition("Stalled").map(|c| c.status), Some(ConditionStatus::True));
        assert_eq!((said.stable_revision.as_deref(), said.sequence), (Some("a"), 4));
        let later = now + chrono::TimeDelta::seconds(60);
        assert_eq!(stalled(&said, 7, "InvalidSpec", "spec.replicas: invalid type", 3, later), said, "no second write");
    }
}
