//! What one turn does: an effect, a step forward, or a wait that says on what.
//!
//! Pure and level-triggered: everything is derived from the snapshot, and a turn that is repeated after a crash
//! repeats the decision. The order of the questions is the order of their weight: who leads, what is wrong, what
//! must stop, what people say, what comes next.

use chrono::{DateTime, TimeDelta, Utc};

use super::converge::{Convergence, Target, converge, facts, share_of_pods, split_pods, template};
use super::plan::{Gate, Plan, Pods, Stage, plan};
use super::recover::{denied, position};
use super::{
    AnalysisState, Effect, Ending, InterventionState, LedgerState, Problem, Snapshot, StrategyChange, Turn, Wait,
    WaitOn,
};
use crate::api::{
    Abort, AbortCause, AnalysisPhase, AnalysisReference, Condition, ConditionStatus, Conditions, Denied, Hold,
    InterventionAction, OnAuditUnavailable, PausedBy, Phase, RECORDED, RefusedIntervention, Release, ReleaseState,
    RolloutStatus, Seen, Steering, TERMINATING, Transition, TransitionEvent, WORKLOAD_SCALED_DOWN, names,
};

/// How many taken Interventions, and how many promoted revisions, are remembered.
const REMEMBERED: usize = 20;
const REMEMBERED_REVISIONS: usize = 10;
/// How many transitions are kept of a Rollout that no DeployRepo records.
const UNRECORDED: usize = 20;
/// How long handing back may take, and how much of that traffic has for its way back. It counts from when a deletion
/// was first seen, so an operator that was away shortens nothing. Helm waits five minutes for an uninstallation.
const END_TAKES_AT_MOST: TimeDelta = TimeDelta::minutes(4);
const WAY_BACK_TAKES_AT_MOST: TimeDelta = TimeDelta::minutes(3);

/// Decides what one turn does.
pub fn decide(snapshot: &Snapshot, now: DateTime<Utc>) -> Turn {
    if snapshot.status.epoch > snapshot.epoch {
        return wait(WaitOn::Spec, None, "another leader has taken over".to_owned());
    }
    if snapshot.ending.is_some() && !snapshot.finalizer {
        return wait(WaitOn::Nothing, None, "all is handed back".to_owned());
    }
    let decision = Decision::of(snapshot, now);
    let (seen, weight) = (decision.next.seen.clone(), decision.next.weight);
    let problem = decision.problem.clone();
    let steady = snapshot.ending.is_none() && snapshot.strategy_change == StrategyChange::None && problem.is_none();
    let turn = match (&snapshot.strategy_change, &problem) {
        _ if snapshot.ending.is_some() => decision.end(),
        (StrategyChange::Gone, _) => decision.adopt(),
        (StrategyChange::Leaving { asked }, _) => decision.leave(asked),
        (StrategyChange::None, Some(problem)) if !decision.may_go_back() => decision.stalled(problem),
        (StrategyChange::None, _) => decision.run(),
    };
    let turn = match turn {
        Turn::Wait(wait) if steady => Decision::of(snapshot, now).hand_over(wait),
        turn => turn,
    };
    let turn = match turn {
        Turn::Wait(wait) if steady => Decision::of(snapshot, now).restart(wait),
        turn => turn,
    };
    let before = &snapshot.status;
    match turn {
        // A fact that has ended is written down before anything is done, or it would count as never interrupted
        // when it comes back. And a new leader says so before its first effect: that fences the old one.
        Turn::Apply(_) if ended(&before.seen, &seen) || before.epoch < snapshot.epoch => {
            let status = RolloutStatus { seen, weight, epoch: snapshot.epoch, ..before.clone() };
            Turn::Advance(Box::new(status))
        }
        // What will have to be handed back is never moved before that is sure to happen.
        Turn::Apply(_) if unguarded(snapshot) => Turn::Apply(Effect::AddFinalizer),
        Turn::Wait(_) if unguarded(snapshot) && before.stable_revision.is_some() => Turn::Apply(Effect::AddFinalizer),
        turn => turn,
    }
}

/// Once it is deleted, nobody would hand back what it steers.
fn unguarded(snapshot: &Snapshot) -> bool {
    !snapshot.finalizer && snapshot.ending.is_none()
}

/// Whether a fact that was so before is not so any more.
fn ended(before: &Seen, now: &Seen) -> bool {
    before.weight.is_some() && before.weight != now.weight
        || before.stable_service.is_some() && before.stable_service != now.stable_service
        || before.canary_service.is_some() && before.canary_service != now.canary_service
}

pub(super) struct Decision<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) now: DateTime<Utc>,
    /// The status as it will be.
    pub(super) next: RolloutStatus,
    /// The revision that git asks for.
    desired: String,
    plan: Plan,
    /// What must be mended before anything but an abort goes on.
    problem: Option<Problem>,
}

/// What a gate says.
enum Passage {
    Open {
        verdict: Option<String>,
        runs: Vec<String>,
    },
    Closed(Wait),
    Effect(Effect),
    /// Missing data holds.
    Missing(Wait, String),
    /// A person must say.
    Person(Hold),
    /// The run is spent; another one is needed.
    AnotherRun,
}

impl<'a> Decision<'a> {
    // === What is always so ===

    fn of(snapshot: &'a Snapshot, now: DateTime<Utc>) -> Self {
        let mut problems = snapshot.problems.clone();
        let compiled = plan(&snapshot.spec);
        if let Err(found) = &compiled {
            problems.splice(0..0, found.iter().cloned());
        }
        let mut decision = Decision {
            snapshot,
            now,
            next: snapshot.status.clone(),
            desired: snapshot.spec.template.revision(),
            plan: compiled.unwrap_or(Plan { stages: Vec::new() }),
            problem: problems.into_iter().next(),
        };
        decision.refresh();
        decision
    }

    /// What is copied from the observation into the status.
    fn refresh(&mut self) {
        let snapshot = self.snapshot;
        if snapshot.ending.is_none() {
            // The operator was uninstalled, and is there again.
            self.next.conditions.retain(|condition| condition.type_ != TERMINATING);
        }
        self.next.epoch = snapshot.epoch;
        self.next.observed_generation = Some(snapshot.generation);
        self.next.revision.clone_from(&self.desired);
        self.next.strategy =
            if snapshot.spec.strategy.blue_green.is_some() { "BlueGreen" } else { "Canary" }.to_owned();
        let labels = &snapshot.spec.selector.match_labels;
        self.next.selector = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        if snapshot.strategy_change == StrategyChange::None {
            self.next.steering = Some(snapshot.spec.strategy.steering());
        }
        self.next.seen = facts(snapshot, &snapshot.status.seen, self.now);
        // The same weights can stand for more than one percentage: what the stage asks for is what they mean.
        let stage = self.in_flight().and_then(|release| self.plan.stage(release.stage)).map(|stage| stage.weight);
        if let (Some(weight), Some(wanted)) = (&mut self.next.seen.weight, stage)
            && !snapshot.routes.is_empty()
            && snapshot.routes.values().flat_map(|route| &route.rules).all(|rule| rule.holds(wanted))
        {
            weight.value = wanted;
        }
        if let Some(weight) = &self.next.seen.weight {
            self.next.weight = Some(weight.value);
        }
        let sum = |count: fn(&super::RevisionState) -> i32| snapshot.revisions.values().map(count).sum();
        self.next.replicas = sum(|state| state.current);
        self.next.ready_replicas = sum(|state| state.ready);
        self.next.updated_replicas = snapshot.revisions.get(&self.desired).map_or(0, |state| state.current);
        for denied in &mut self.next.denied {
            denied.left |= denied.revision != self.desired;
        }
        if snapshot.status.has_no_position() && snapshot.ledger.sequence > snapshot.status.sequence {
            // The numbers go on where the ledger has them, under whatever uid.
            self.next.sequence = snapshot.ledger.sequence;
            self.next.recorded_sequence = snapshot.ledger.sequence;
        }
    }

    fn blue_green(&self) -> bool {
        self.snapshot.spec.strategy.blue_green.is_some()
    }

    /// A canary without routes: its pods are its weight.
    fn by_pods(&self) -> bool {
        self.snapshot.spec.strategy.by_pods().is_some()
    }

    pub(super) fn replicas(&self) -> i32 {
        self.snapshot.spec.replicas().max(0)
    }

    pub(super) fn stable(&self) -> Option<String> {
        self.snapshot.status.stable_revision.clone()
    }

    /// Something is wrong, but an abort goes on as far as it can: it needs the Services and routes only.
    fn may_go_back(&self) -> bool {
        let references = self.snapshot.spec.references();
        let is_there = |name: &String| self.snapshot.services.contains_key(name);
        let stable = references.stable_service.as_ref().is_some_and(is_there);
        let complete = self.by_pods()
            || stable
                && (self.blue_green()
                    || references.canary_service.as_ref().is_some_and(is_there)
                        && !references.routes.is_empty()
                        && references.routes.iter().all(|name| self.snapshot.routes.contains_key(name)));
        let release = self.snapshot.status.release.as_ref();
        let going_back = release.is_some_and(|release| {
            release.state == ReleaseState::Aborted || self.in_flight().is_some() && self.abort_cause().is_some()
        });
        complete && going_back && self.stable().is_some()
    }

    fn in_flight(&self) -> Option<&Release> {
        let release = self.snapshot.status.release.as_ref()?;
        matches!(release.state, ReleaseState::Stepping | ReleaseState::Promoting).then_some(release)
    }

    // === The questions in their order ===

    fn run(mut self) -> Turn {
        if self.snapshot.status.has_no_position() {
            return self.recover();
        }
        let Some(stable) = self.stable() else { return self.first_deploy() };
        if let Some(release) = self.in_flight().cloned() {
            if let Some(cause) = self.abort_cause() {
                return self.abort(release, cause);
            }
            if let Some(word) = self.snapshot.interventions.first().cloned() {
                return self.take(&word);
            }
            if release.state == ReleaseState::Promoting {
                // Every gate has passed: a third revision starts when this one is done, a second later.
                return self.promoting(release, &stable);
            }
            if release.revision != self.desired {
                return self.supersede(&release);
            }
            return self.stepping(release, &stable);
        }
        if let Some(word) = self.snapshot.interventions.first().cloned() {
            return self.take(&word);
        }
        match self.snapshot.status.release.clone() {
            Some(release) if release.state == ReleaseState::Aborted => self.aborted(release, &stable),
            Some(_) => {
                // A first deploy that has a stable revision: a status that was edited by hand.
                self.next.release = None;
                self.idle(&stable)
            }
            None => self.idle(&stable),
        }
    }

    /// Why the release in flight must stop. An abort wins every tie.
    fn abort_cause(&self) -> Option<Abort> {
        let release = self.in_flight()?;
        let abort = |cause, message: String| Some(Abort { cause, message, at: self.now, actor: None });
        if Some(&self.desired) == self.snapshot.status.stable_revision.as_ref() {
            let message = format!("git asks for {} again, which is the stable revision", self.desired);
            return abort(AbortCause::Revert, self.with_history(message));
        }
        let word = self.snapshot.interventions.iter().find(|word| {
            word.action == InterventionAction::Abort
                && word.revision == release.revision
                && word.attempt.is_none_or(|attempt| attempt == release.attempt)
        });
        if let Some(word) = word {
            return Some(self.abort_by(word));
        }
        if release.promote_full || release.rollback {
            return self.deadline(release).and_then(|message| abort(AbortCause::Deadline, message));
        }
        for (_, run) in self.runs(release) {
            match run.phase {
                AnalysisPhase::Failed => return abort(AbortCause::Verdict, run.message.clone()),
                AnalysisPhase::Unavailable => return abort(AbortCause::DataMissing, run.message.clone()),
                _ => {}
            }
        }
        self.deadline(release).and_then(|message| abort(AbortCause::Deadline, message))
    }

    /// A revert by rewriting history leaves no trace in git but this one.
    fn with_history(&self, message: String) -> String {
        match (&self.snapshot.source_history, &self.snapshot.source_commit) {
            (Some(history), Some(commit)) => format!("{message}; {}", history.sentence(commit)),
            _ => message,
        }
    }

    fn abort_by(&self, word: &InterventionState) -> Abort {
        let reason = if word.reason.is_empty() { "no reason given" } else { &word.reason };
        let message = format!("aborted by {}: {reason}", word.actor);
        Abort { cause: AbortCause::Intervention, message, at: self.now, actor: Some(word.actor.clone()) }
    }

    /// The AnalysisRuns of this attempt that still count: the background, and the present step.
    fn runs<'b>(&'b self, release: &'b Release) -> impl Iterator<Item = (&'b String, &'b AnalysisState)> {
        let step = self.plan.stage(release.stage).and_then(|stage| stage.step).map(step_name);
        self.snapshot.analyses.iter().filter(move |(_, run)| {
            let counts = run.stage.starts_with("background") || Some(&run.stage) == step.as_ref();
            run.revision == release.revision && run.attempt == release.attempt && counts
        })
    }

    /// The step has taken too long to get its pods ready and its route accepted, and that aborts.
    fn deadline(&self, release: &Release) -> Option<String> {
        if !self.snapshot.spec.progress_deadline_abort()
            || release.reached_at.is_some()
            || self.waits_for_person(release)
        {
            return None;
        }
        let until = self.deadline_at(release)?;
        (until <= self.now).then(|| {
            let deadline = self.snapshot.spec.progress_deadline();
            let trouble = self.snapshot.revisions.get(&release.revision).map(|state| {
                let trouble = state.trouble.as_ref().map(|trouble| format!(" ({trouble})")).unwrap_or_default();
                format!(
                    ": {} of {} pods of revision {} are ready{trouble}",
                    state.ready, state.replicas, release.revision
                )
            });
            format!(
                "stage {} was not reached within {deadline}{}",
                release.stage.saturating_add(1),
                trouble.unwrap_or_default()
            )
        })
    }

    /// While a person is waited for, no step is late: the time begins again when they have spoken.
    fn waits_for_person(&self, release: &Release) -> bool {
        release.state == ReleaseState::Stepping
            && (release.held_for.is_some() || self.paused().is_some() || self.snapshot.status.phase == Phase::Paused)
    }

    fn deadline_at(&self, release: &Release) -> Option<DateTime<Utc>> {
        let strategy = &self.snapshot.spec.strategy;
        // Waiting times that are asked for do not count as being late.
        let allowed =
            self.snapshot.spec.progress_deadline().delta() + (strategy.settle().delta() + strategy.drain().delta()) * 2;
        release.stage_started_at?.min(self.now).checked_add_signed(allowed)
    }

    // === Without a position ===

    /// Nothing says where the Rollout stands: it is new, or its status was lost.
    fn recover(mut self) -> Turn {
        if self.snapshot.ledger.configured && !self.snapshot.ledger.read {
            return self.read_ledger();
        }
        self.next.denied = denied(self.snapshot, self.now);
        let surplus = self.next.denied.len().saturating_sub(REMEMBERED);
        self.next.denied.drain(..surplus);
        if let Some(recorded) = self.snapshot.ledger.position.as_deref() {
            self.next.promoted_revisions.clone_from(&recorded.promoted_revisions);
            self.next.paused_by.clone_from(&recorded.paused_by);
        }
        let Some(found) = position(self.snapshot, &self.plan) else { return self.first_deploy() };
        let recorded = self.snapshot.ledger.position.as_deref();
        self.next.promoted_at =
            recorded.filter(|recorded| recorded.stable_revision == found.stable).and_then(|it| it.promoted_at);
        self.next.stable_revision.clone_from(&found.stable);
        self.next.release = found.release.clone().map(|mut release| {
            release.started_at = release.started_at.or(Some(self.now));
            self.reset_stage(&mut release);
            release
        });
        // What people said was forgotten with the status. What would go forward must be said again.
        for word in &self.snapshot.interventions {
            if !matches!(word.action, InterventionAction::Abort | InterventionAction::Pause) {
                self.next.taken_interventions.push(word.uid.clone());
                let message =
                    "the status was lost before it was heard; look where the rollout stands, and say it again";
                let refused = RefusedIntervention { uid: word.uid.clone(), message: message.to_owned() };
                self.next.refused_interventions.push(refused);
            }
        }
        let stable = found.stable.as_deref().unwrap_or("none");
        let flight = match &self.next.release {
            Some(release) if release.state == ReleaseState::Aborted => format!("{} was aborted", release.revision),
            Some(release) => format!(
                "{} goes on at stage {} of {}, attempt {}",
                release.revision,
                release.stage.saturating_add(1),
                self.plan.len(),
                release.attempt
            ),
            None => "nothing is in flight".to_owned(),
        };
        let message = format!("the status was lost; by {} {stable} is stable, and {flight}", found.witnesses);
        let weight = self.weight();
        let release = self.next.release.clone();
        let stage = release.as_ref().map_or(0, |release| release.stage);
        let leads_to = release.as_ref().filter(|release| release.state == ReleaseState::Stepping);
        let leads_to = leads_to.and_then(|release| self.plan.stage(release.stage)).map_or(0, |stage| stage.weight);
        let about = release.map_or_else(|| stable.to_owned(), |release| release.revision);
        self.push(TransitionEvent::Recovered, &about, stage, (weight, leads_to), "StatusLost", message.clone(), None);
        self.stable_is(found.stable.as_ref());
        if let Some(stable) = found.stable.as_ref().filter(|_| found.promotion_unrecorded) {
            let message = format!("revision {stable} is stable by the stable Service; its promotion was not recorded");
            self.push(TransitionEvent::Promoted, stable, stage, (weight, leads_to), "StatusLost", message, None);
            let before = self.snapshot.ledger.last_good.as_ref().map(|(revision, _)| revision.clone());
            self.stable_is(before.as_ref());
        }
        self.describe(Phase::Progressing, "StatusLost", &message);
        // An abort may have been taken and lost with the status: what was said since the release began is heard again.
        let flies = |release: &&Release| matches!(release.state, ReleaseState::Stepping | ReleaseState::Promoting);
        let release = self.next.release.as_ref().filter(flies).cloned();
        let word = release.as_ref().and_then(|release| {
            let began = found.release.as_ref().and_then(|found| found.started_at);
            self.snapshot.interventions.iter().find(|word| {
                word.action == InterventionAction::Abort
                    && word.revision == release.revision
                    && began.is_none_or(|began| word.created_at >= began)
            })
        });
        match (release, word) {
            (Some(release), Some(word)) => {
                let abort = self.abort_by(word);
                self.abort(release, abort)
            }
            _ => self.advance(),
        }
    }

    /// The last transition says what was stable before it.
    fn stable_is(&mut self, stable: Option<&String>) {
        if let Some(transition) = self.next.pending_log.last_mut() {
            transition.revision_from = stable.cloned();
        }
    }

    /// Until the ledger is read nothing is known well enough to be recorded. What lives stays as it is; but traffic
    /// leaves what cannot serve, and an abort or a revert is obeyed.
    fn read_ledger(mut self) -> Turn {
        let living = self.snapshot.revisions.iter().filter(|(_, state)| state.replicas > 0);
        let sizes: std::collections::BTreeMap<String, i32> =
            living.map(|(revision, state)| (revision.clone(), state.replicas)).collect();
        let message = match sizes.is_empty() {
            true => "the ledger is read before the first version is started",
            false => "the status was lost; the ledger is read before anything goes on",
        };
        self.describe(Phase::Pending, "ReadingLedger", message);
        let wait = wait_for(WaitOn::Ledger, None, message);
        let references = self.snapshot.spec.references();
        let stable = references.stable_service.and_then(|name| self.snapshot.services.get(&name)?.selects.clone());
        let Some(stable) = stable.filter(|stable| sizes.contains_key(stable)) else {
            return self.conclude(Convergence::Hold(wait));
        };
        let abort = |word: &InterventionState| word.action == InterventionAction::Abort;
        let back = stable == self.desired || self.snapshot.interventions.iter().any(abort);
        let weight = if back { 0 } else { self.written() };
        let target = Target {
            sizes,
            stable_service: stable,
            canary_service: None,
            weight,
            only_lower: true,
            ..Target::default()
        };
        let convergence = match converge(self.snapshot, &target, &self.next.seen, self.now) {
            Convergence::Hold(held) => Convergence::Hold(Wait { until: held.until, ..wait }),
            convergence => or_wait(convergence, wait),
        };
        self.conclude(convergence)
    }

    // === The first version ===

    fn first_deploy(self) -> Turn {
        if let Some(word) = self.snapshot.interventions.first() {
            return self.take(word);
        }
        let desired = self.desired.clone();
        let begun = self.snapshot.status.release.clone();
        if let Some(good) = begun.as_ref().filter(|release| release.rollback).map(|release| release.revision.clone())
            && template(self.snapshot, &good).is_some()
        {
            return self.deploy(&good);
        }
        if let Some(reason) = self.denial(&desired) {
            return self.deny_first(&reason);
        }
        match self.last_good() {
            // The ledger knows what was good: that comes up, and what git asks for follows by its steps.
            Some(good) if begun.is_none() => self.deploy(&good),
            _ => self.deploy(&desired),
        }
    }

    /// The last good revision in the ledger, if pods of it can be made for this spec.
    fn last_good(&self) -> Option<String> {
        let (revision, template) = self.snapshot.ledger.last_good.as_ref()?;
        let labels: std::collections::BTreeMap<&str, &str> = template.labels().collect();
        let mut selector = self.snapshot.spec.selector.match_labels.iter();
        let fits = selector.all(|(key, value)| labels.get(key.as_str()) == Some(&value.as_str()));
        fits.then(|| revision.clone())
    }

    /// Git asks for what was aborted before: the last good revision is deployed instead, or nothing.
    fn deny_first(mut self, reason: &str) -> Turn {
        let desired = self.desired.clone();
        let good = self.last_good().filter(|good| *good != desired);
        if !self.snapshot.status.denied.iter().any(|denied| denied.revision == desired) {
            let instead =
                good.as_ref().map_or_else(|| "nothing".to_owned(), |good| format!("{good}, the last good one,"));
            let message = format!("revision {desired} was aborted before ({reason}); {instead} is deployed instead");
            self.push(TransitionEvent::Denied, &desired, 0, (0, 0), "Denied", message, None);
            self.describe_denied(reason);
            return self.advance();
        }
        match good {
            Some(good) => self.deploy(&good),
            None => {
                self.describe_denied(reason);
                self.conclude(Convergence::Hold(wait_for(WaitOn::Person, None, "revision was aborted before")))
            }
        }
    }

    fn deploy(mut self, revision: &str) -> Turn {
        let instead = (revision != self.desired).then(|| {
            let desired = &self.desired;
            match self.denial(desired) {
                Some(_) => {
                    format!("revision {revision}, the last good one in the log, comes up; {desired} was aborted")
                }
                None => format!(
                    "revision {revision}, the last good one in the log, comes up first; {desired} follows by its steps"
                ),
            }
        });
        let said = instead.clone().unwrap_or_else(|| "the first version is being started".to_owned());
        let release = match &self.snapshot.status.release {
            Some(release) if release.revision == revision => release.clone(),
            _ => {
                let mut release = self.release(revision, ReleaseState::FirstDeploy, 1);
                release.rollback = instead.is_some();
                self.next.release = Some(release);
                let (reason, message) = match instead {
                    Some(message) => ("LastGood", message),
                    None => ("FirstDeploy", format!("the first version, revision {revision}, goes to full size")),
                };
                self.push(TransitionEvent::FirstDeploy, revision, 0, (0, 0), reason, message, None);
                self.describe(Phase::Pending, "FirstDeploy", &said);
                return self.advance();
            }
        };
        let target = Target {
            sizes: [(revision.to_owned(), self.replicas())].into(),
            stable_service: revision.to_owned(),
            canary_service: Some(revision.to_owned()),
            weight: 0,
            only_lower: false,
            ..Target::default()
        };
        let convergence = converge(self.snapshot, &target, &self.next.seen, self.now);
        let ready = self.snapshot.revisions.get(revision).map_or(0, |state| state.available.min(state.ready));
        match convergence {
            Convergence::Reached if ready >= self.replicas() => self.promoted(release),
            Convergence::Reached => {
                self.describe(Phase::Pending, "FirstDeploy", &said);
                self.conclude(Convergence::Hold(wait_for(WaitOn::Pods, None, "the first version's pods become ready")))
            }
            convergence => {
                let late = self.deadline_at(&release).is_some_and(|until| until <= self.now);
                if late {
                    let message = match said == "the first version is being started" {
                        true => "the first version did not become ready in time; mend it, or wait".to_owned(),
                        false => format!(
                            "{said}; it did not become ready in time: mend it, wait, or retry what git asks for"
                        ),
                    };
                    self.describe(Phase::Stalled, "ProgressDeadlineExceeded", &message);
                } else {
                    self.describe(Phase::Pending, "FirstDeploy", &said);
                }
                let until = (!late).then(|| self.deadline_at(&release)).flatten();
                self.conclude_by(convergence, until)
            }
        }
    }

    // === Nothing in flight ===

    fn idle(mut self, stable: &str) -> Turn {
        if self.desired != stable {
            let desired = self.desired.clone();
            if let Some(reason) = self.denial(&desired) {
                return self.deny(stable, &reason);
            }
            if let Some(why) = self.paused() {
                self.describe(Phase::Paused, "Paused", &format!("{why}; revision {desired} waits"));
                let target = self.rest(stable);
                let convergence = converge(self.snapshot, &target, &self.next.seen, self.now);
                let until = self.old_is_kept_until();
                return self.conclude_by(or_person(convergence, "the rollout is paused"), until);
            }
            if let Some(wait) = self.beginning_awaits_record() {
                self.describe(Phase::Progressing, LedgerState::AWAITED, &wait.message);
                let convergence = converge(self.snapshot, &self.rest(stable), &self.next.seen, self.now);
                let until = self.old_is_kept_until();
                return self.conclude_by(or_wait(convergence, wait), until);
            }
            return self.start(1, "NewRevision", None);
        }
        let target = self.rest(stable);
        let convergence = converge(self.snapshot, &target, &self.next.seen, self.now);
        let ready = self.snapshot.revisions.get(stable).map_or(0, |state| state.available.min(state.ready));
        if ready >= self.replicas() && self.is_restarting() {
            let message = format!("pods of revision {stable} are replaced by new ones");
            self.describe(Phase::Progressing, "Restarting", &message);
        } else if ready >= self.replicas() {
            self.describe(Phase::Ready, "Ready", &format!("revision {stable} serves everything"));
        } else {
            self.describe(Phase::Progressing, "PodsNotReady", &format!("pods of revision {stable} are not all ready"));
        }
        self.rest_or(convergence)
    }

    /// At rest: pods of stable, all traffic on stable, what was there before goes after its time.
    fn rest(&self, stable: &str) -> Target {
        let mut target = Target {
            sizes: [(stable.to_owned(), self.replicas())].into(),
            stable_service: stable.to_owned(),
            canary_service: None,
            weight: 0,
            only_lower: false,
            ..Target::default()
        };
        self.keep_beside(&mut target);
        target
    }

    /// What is there beside what a target is about: pods that stand in during a restart; and what was stable before,
    /// for its time, whatever has begun since: going back to it needs no new pods.
    fn keep_beside(&self, target: &mut Target) {
        self.renew(target);
        let Some(old) = self.snapshot.status.promoted_revisions.first().filter(|_| !self.by_pods()) else { return };
        if self.kept_until().is_some_and(|until| until > self.now)
            && !target.sizes.contains_key(old)
            && let Some(state) = self.snapshot.revisions.get(old)
        {
            target.sizes.insert(old.clone(), state.replicas.min(self.replicas()));
        }
    }

    fn kept_until(&self) -> Option<DateTime<Utc>> {
        let promoted_at = self.snapshot.status.promoted_at?.min(self.now);
        promoted_at.checked_add_signed(self.snapshot.spec.strategy.scale_down_delay().delta())
    }

    /// Until when pods of another revision than the stable one are kept, while there are any.
    fn old_is_kept_until(&self) -> Option<DateTime<Utc>> {
        let stable = self.next.stable_revision.as_ref();
        let kept = |(revision, state): (&String, &super::RevisionState)| state.replicas > 0 && Some(revision) != stable;
        self.kept_until().filter(|until| *until > self.now && self.snapshot.revisions.iter().any(kept))
    }

    /// The rest of a turn at rest: clean up, wait for the scale-down delay, or for nothing.
    fn rest_or(self, convergence: Convergence) -> Turn {
        if let Convergence::Reached = convergence {
            if let Some(effect) = self.end_analyses(None).or_else(|| self.surplus()) {
                return Turn::Apply(effect);
            }
            let until = self.old_is_kept_until();
            let wait = match until {
                Some(_) => wait_for(WaitOn::ScaleDown, until, "the old version is kept for a time"),
                None => wait_for(WaitOn::Nothing, None, "the desired version serves everything"),
            };
            let stable_ready = self.next.phase == Phase::Ready;
            if !stable_ready {
                let what = if self.is_restarting() { "pods are replaced by new ones" } else { "pods become ready" };
                return self.conclude(Convergence::Hold(wait_for(WaitOn::Pods, None, what)));
            }
            if self.next == self.snapshot.status {
                return Turn::Wait(wait);
            }
            return self.advance();
        }
        self.conclude(convergence)
    }

    /// A ReplicaSet beyond the history limit, oldest first.
    fn surplus(&self) -> Option<Effect> {
        let status = &self.snapshot.status;
        let mut old: Vec<_> = self
            .snapshot
            .revisions
            .iter()
            .filter(|(revision, state)| {
                state.replicas == 0
                    && state.current == 0
                    && Some(*revision) != status.stable_revision.as_ref()
                    && **revision != self.desired
                    && status.release.as_ref().is_none_or(|release| release.revision != **revision)
                    && self.snapshot.services.values().all(|service| service.selects.as_ref() != Some(*revision))
            })
            .collect();
        if old.len() <= self.snapshot.spec.revision_history_limit() {
            return None;
        }
        old.sort_by_key(|(revision, state)| (state.created_at, (*revision).clone()));
        old.first().map(|(revision, _)| Effect::DeleteReplicaSet { revision: (*revision).clone() })
    }

    fn end_analyses(&self, keep: Option<&Release>) -> Option<Effect> {
        let unneeded = |run: &AnalysisState| match keep {
            None => true,
            Some(release) => run.revision != release.revision || run.attempt != release.attempt,
        };
        let live = |run: &AnalysisState| {
            matches!(run.phase, AnalysisPhase::Pending | AnalysisPhase::Running | AnalysisPhase::Holding)
        };
        let run = self.snapshot.analyses.iter().find(|(_, run)| live(run) && !run.terminating && unneeded(run));
        run.map(|(name, _)| Effect::EndAnalysis { name: name.clone() })
    }

    // === A new revision ===

    fn release(&self, revision: &str, state: ReleaseState, attempt: i32) -> Release {
        Release {
            revision: revision.to_owned(),
            attempt,
            state,
            stage: 0,
            stages: self.plan.len(),
            plan_hash: self.plan.hash(),
            started_at: Some(self.now),
            stage_started_at: Some(self.now),
            ..Release::default()
        }
    }

    /// An AnalysisRun is named after the attempt: one that exists already must not speak for another.
    fn unused_attempt(&self, revision: &str) -> Option<i32> {
        let runs = self.snapshot.analyses.values().filter(|run| run.revision == revision);
        runs.map(|run| run.attempt.saturating_add(1)).max()
    }

    fn start(mut self, least_attempt: i32, reason: &str, actor: Option<String>) -> Turn {
        let desired = self.desired.clone();
        let aborts =
            self.next.denied.iter().find(|denied| denied.revision == desired).map_or(0, |denied| denied.aborts);
        let attempt = aborts.saturating_add(1).max(least_attempt);
        let first = attempt == 1;
        let attempt = self.unused_attempt(&desired).map_or(attempt, |unused| attempt.max(unused));
        let mut release = self.release(&desired, ReleaseState::Stepping, attempt);
        let mut reason = reason.to_owned();
        let mut message = format!("revision {desired} begins, attempt {attempt}");
        if aborts > 0 && actor.is_none() {
            reason = "Consent".to_owned();
            message = format!("{message}: it was aborted before, and git asks for it again");
        }
        let window = self.snapshot.spec.rollback_window();
        if self.next.promoted_revisions.iter().take(window).any(|known| *known == desired) && first {
            release.rollback = true;
            release.stage = self.plan.len().saturating_sub(1);
            reason = "Rollback".to_owned();
            message = format!("back to revision {desired}, which was good before: no pauses, no analysis");
        }
        let weight = self.plan.stage(release.stage).map_or(100, |stage| stage.weight);
        let stage = release.stage;
        self.next.release = Some(release);
        self.push(TransitionEvent::Started, &desired, stage, (self.weight(), weight), &reason, message.clone(), actor);
        self.describe(Phase::Progressing, "Stepping", &message);
        self.advance()
    }

    fn supersede(mut self, release: &Release) -> Turn {
        let desired = self.desired.clone();
        let message = format!("git asks for revision {desired}; revision {} is given up", release.revision);
        let weight = self.weight();
        self.push(
            TransitionEvent::Superseded,
            &release.revision,
            release.stage,
            (weight, 0),
            "Superseded",
            message,
            None,
        );
        self.next.release = None;
        if self.denial(&desired).is_some() || self.paused().is_some() || self.beginning_awaits_record().is_some() {
            self.describe(Phase::Progressing, "Superseded", "traffic goes back to the stable revision");
            return self.advance();
        }
        self.start(1, "NewRevision", None)
    }

    // === Another strategy ===

    /// Other Services, other routes or none move the traffic from now on: it goes back by the old ones first, or what
    /// they send to the version on trial would stay there and nobody would look after it.
    fn leave(mut self, asked: &Steering) -> Turn {
        let Some(stable) = self.stable() else { return self.adopt() };
        if let Some(release) = self.in_flight().cloned() {
            return match self.abort_cause() {
                Some(cause) => self.abort(release, cause),
                // Every gate has passed: it is finished by the strategy it began with.
                None if release.state == ReleaseState::Promoting => self.promoting(release, &stable),
                None => {
                    self.give_up(&release);
                    self.advance()
                }
            };
        }
        let own = self.snapshot.spec.references().stable_service.and_then(|name| self.snapshot.services.get(&name));
        if own.is_some_and(|service| service.selects.is_none()) {
            // The handing back has begun.
            return self.hand_back(asked);
        }
        let target = Target { only_lower: true, ..self.rest(&stable) };
        let wait = match converge(self.snapshot, &target, &self.next.seen, self.now) {
            Convergence::Do(effect) => return Turn::Apply(effect),
            Convergence::Reached => return self.hand_back(asked),
            // A gateway that accepts nothing may be why the strategy was changed: more than to say 0 cannot be done.
            Convergence::Hold(wait) if wait.on == WaitOn::Route && self.written() == 0 => {
                return self.hand_back(asked);
            }
            Convergence::Hold(wait) => wait,
        };
        let message =
            format!("another strategy is asked for; traffic goes back by the old one first: {}", wait.message);
        self.describe(Phase::Progressing, "StrategyChanged", &message);
        self.conclude(Convergence::Hold(wait))
    }

    /// A Service that is steered no more selects every revision again, or it would soon have nobody.
    fn hand_back(self, asked: &Steering) -> Turn {
        let steered = |name: &String| {
            [&asked.stable_service, &asked.canary_service].into_iter().flatten().any(|steered| steered == name)
        };
        let left = self.snapshot.services.iter().find(|(name, state)| state.selects.is_some() && !steered(name));
        match left {
            Some((service, _)) => Turn::Apply(Effect::SelectEveryRevision { service: service.clone() }),
            None => self.adopt(),
        }
    }

    /// From now on the strategy of the spec moves the traffic.
    fn adopt(mut self) -> Turn {
        if let Some(release) = self.in_flight().cloned() {
            self.give_up(&release);
        }
        self.next.steering = None;
        // What was seen was of other Services and routes.
        self.next.seen = Seen::default();
        self.advance()
    }

    fn give_up(&mut self, release: &Release) {
        let message = format!("another strategy is asked for; revision {} begins again by that one", release.revision);
        let weight = self.weight();
        let (event, stage) = (TransitionEvent::Superseded, release.stage);
        self.push(event, &release.revision, stage, (weight, 0), "StrategyChanged", message.clone(), None);
        self.next.release = None;
        self.describe(Phase::Progressing, "StrategyChanged", &message);
    }

    // === The end ===

    /// Nobody will steer any more. Whoever comes after must find Services that select their pods and routes that lead
    /// to them; the pods of a Rollout that is deleted go with it. Until then traffic stays where it is served.
    fn end(mut self) -> Turn {
        let Some(ending) = self.snapshot.ending else { return self.advance() };
        let Some(since) = self.snapshot.status.conditions.condition(TERMINATING).map(|it| it.last_transition_time)
        else {
            return self.terminate(ending);
        };
        let since = since.min(self.now);
        let now = self.now;
        let late = move |length: TimeDelta| now - since >= length;
        if late(END_TAKES_AT_MOST) {
            return Turn::Apply(Effect::RemoveFinalizer { unfinished: Some(self.snapshot.status.message.clone()) });
        }
        if let Some(effect) = self.workload_back(late(WAY_BACK_TAKES_AT_MOST)) {
            return Turn::Apply(effect);
        }
        let patience = since + if late(WAY_BACK_TAKES_AT_MOST) { END_TAKES_AT_MOST } else { WAY_BACK_TAKES_AT_MOST };
        let goes_back = !late(WAY_BACK_TAKES_AT_MOST) && !self.workload_is_handed_back();
        let first = self.way_back().or_else(|| self.workload_not_ready()).filter(|_| goes_back);
        let step =
            first.or_else(|| self.release_what_is_steered().map(Convergence::Do)).or_else(|| self.workload_serves());
        if step.is_none()
            && let Some(turn) = self.own_pods_go(ending)
        {
            return turn;
        }
        match step.unwrap_or_else(|| self.outbox()) {
            Convergence::Do(effect) => Turn::Apply(effect),
            Convergence::Reached => {
                // Before that it was declared so, by whoever took the Rollout away.
                let unfinished = self.other_template().filter(|_| late(WAY_BACK_TAKES_AT_MOST));
                Turn::Apply(Effect::RemoveFinalizer { unfinished })
            }
            Convergence::Hold(wait) => {
                self.describe(Phase::Terminating, ending.reason(), &format!("{ending}; {}", wait.message));
                self.conclude_by(Convergence::Hold(wait), Some(patience))
            }
        }
    }

    fn terminate(mut self, ending: Ending) -> Turn {
        let stable = self.stable();
        let release = self.next.release.take();
        let about = release.as_ref().map(|release| release.revision.clone()).or(stable);
        let message = match self.in_flight() {
            Some(release) => format!("{ending} while revision {} was in flight", release.revision),
            None => ending.to_string(),
        };
        if about.is_none() && self.snapshot.status.has_no_position() {
            // The status was lost: traffic goes back to what can be known as stable. There is nothing to record.
            self.next.stable_revision = position(self.snapshot, &self.plan).and_then(|found| found.stable);
        }
        if let Some(about) = about {
            let stage = release.as_ref().map_or(0, |release| release.stage);
            let weight = self.weight();
            self.push(TransitionEvent::HandedBack, &about, stage, (weight, 0), ending.reason(), message.clone(), None);
            if let (Some(transition), Some(release)) = (self.next.pending_log.last_mut(), release) {
                transition.attempt = release.attempt;
            }
        }
        self.describe(Phase::Terminating, ending.reason(), &message);
        self.next.conditions.remove_condition(WORKLOAD_SCALED_DOWN);
        self.advance()
    }

    /// Traffic goes back to stable, as an abort does it. `None` when it is back, or cannot be brought back: something
    /// that it goes by is gone, or stable is.
    fn way_back(&self) -> Option<Convergence> {
        let stable = self.stable().filter(|stable| self.snapshot.revisions.contains_key(stable))?;
        let references = self.snapshot.spec.references();
        let services = || references.stable_service.iter().chain(&references.canary_service);
        let whole = services().all(|name| self.snapshot.services.contains_key(name))
            && references.routes.iter().all(|route| self.snapshot.routes.contains_key(route));
        // Handing back begins with the stable Service: once it selects every revision, there is no way but on.
        let selects = |name: &String| self.snapshot.services.get(name)?.selects.clone();
        let narrowed = references.stable_service.as_ref().is_none_or(|name| selects(name).is_some());
        if !whole || !narrowed {
            return None;
        }
        let mut target = self.rest(&stable);
        target.sizes.retain(|revision, _| *revision == stable);
        target.only_lower = true;
        match converge(self.snapshot, &target, &self.next.seen, self.now) {
            Convergence::Reached => None,
            convergence => Some(convergence),
        }
    }

    /// The next thing that is steered and must be handed back: routes say that stable has everything, and nothing of
    /// ours, and Services select every revision, as they are declared.
    fn release_what_is_steered(&self) -> Option<Effect> {
        let direct = self.snapshot.routes.iter().find(|(_, state)| state.is_direct());
        if let Some((route, _)) = direct {
            return Some(Effect::SetHeaderRoutes { route: route.clone(), header_routes: Vec::new() });
        }
        let weighted = self.snapshot.routes.iter().find(|(_, state)| state.rules.iter().any(|rule| !rule.holds(0)));
        if let Some((route, _)) = weighted {
            return Some(Effect::SetWeight { route: route.clone(), percent: 0 });
        }
        let stable = self.snapshot.spec.references().stable_service;
        let narrowed = |is_stable: bool| {
            let mut services = self.snapshot.services.iter().filter(|(_, state)| state.selects.is_some());
            let found = services.find(|(name, _)| (stable.as_ref() == Some(*name)) == is_stable);
            found.map(|(service, _)| Effect::SelectEveryRevision { service: service.clone() })
        };
        // What is on trial goes before the stable Service reaches it, if anything else serves.
        let serves =
            self.stable().filter(|stable| self.snapshot.revisions.get(stable).is_some_and(|state| state.ready > 0));
        let trial = || {
            let serves = serves.as_ref()?;
            let mut others = self.snapshot.revisions.iter().filter(|(revision, _)| *revision != serves);
            let (revision, _) = others.find(|(_, state)| state.replicas > 0)?;
            Some(Effect::Scale { revision: revision.clone(), replicas: 0 })
        };
        narrowed(false).or_else(trial).or_else(|| narrowed(true))
    }

    /// What has happened must be in the log before the outbox goes with the Rollout.
    fn outbox(&self) -> Convergence {
        let ledger = &self.snapshot.ledger;
        if !ledger.configured || self.snapshot.status.pending_log.is_empty() {
            return Convergence::Reached;
        }
        Convergence::Hold(wait_for(WaitOn::Ledger, None, "what has happened is not in the log yet"))
    }

    // === Through the steps ===

    fn stepping(mut self, mut release: Release, stable: &str) -> Turn {
        if release.plan_hash != self.plan.hash() {
            return self.plan_changed(release);
        }
        let Some(stage) = self.plan.stage(release.stage).cloned() else {
            // An index that no plan has: a status that was edited. The last stage needs a person.
            release.stage = self.plan.len().saturating_sub(1);
            release.held_for = Some(self.hold("PlanChanged", "the recorded stage does not exist"));
            self.next.release = Some(release);
            return self.advance();
        };
        let paused = self.paused();
        let (mut weight, mut pods) = (stage.weight, stage.pods);
        let held = paused.is_some() || release.held_for.is_some();
        if !held && release.reached_at.is_none() && self.snapshot.status.phase == Phase::Paused {
            let message = format!("stage {} of {}: {}", release.stage.saturating_add(1), self.plan.len(), stage.label);
            release.stage_started_at = Some(self.now);
            self.next.release = Some(release);
            self.describe(Phase::Progressing, "Stepping", &message);
            return self.advance();
        }
        let switched = self.blue_green() && self.written() == stage.weight;
        if held && release.reached_at.is_none() && !switched {
            // No step: what was reached before is kept, and what has gone down already stays down.
            let before = release.stage.checked_sub(1).and_then(|index| self.plan.stage(index));
            weight = before.map_or(0, |before| before.weight).min(weight.max(self.written()));
            pods = before.map_or(Pods::ForWeight, |before| before.pods);
            if release.held_for.is_some() {
                weight = self.weight();
            }
        }
        let mut target = self.target(&release.revision, stable, weight, pods);
        target.header_routes = stage.header_routes.clone();
        if held {
            // No step: what is in force is kept, and nothing begins.
            let routes = || self.snapshot.routes.values();
            target.header_routes.retain(|it| routes().any(|route| route.header_routes.contains(&it.id())));
        }
        if !target.header_routes.is_empty() {
            // Whoever is sent to the canary directly finds a pod there.
            let size = target.sizes.entry(release.revision.clone()).or_default();
            *size = (*size).max(self.replicas().min(1));
        }
        let mut convergence = converge(self.snapshot, &target, &self.next.seen, self.now);
        if !held && release.reached_at.is_none() && matches!(convergence, Convergence::Reached) {
            convergence = self.pods_ready(&release.revision, stage.pods);
        }
        match convergence {
            Convergence::Do(effect) => return Turn::Apply(effect),
            Convergence::Hold(_) if !held => {
                let label =
                    format!("stage {} of {}: {}", release.stage.saturating_add(1), self.plan.len(), stage.label);
                if self.snapshot.spec.progress_deadline_abort()
                    || self.deadline_at(&release).is_none_or(|at| at > self.now)
                {
                    self.describe(Phase::Progressing, "Stepping", &label);
                    let now = self.now;
                    let until = self.deadline_at(&release).filter(|until| release.reached_at.is_none() && *until > now);
                    return self.conclude_by(convergence, until);
                }
                self.describe(Phase::Progressing, "ProgressDeadlineExceeded", &format!("{label} takes too long"));
                return self.conclude(convergence);
            }
            _ => {}
        }
        if held {
            let message = match (&release.held_for, paused) {
                (Some(hold), _) => format!("{}; approve, skip or abort", hold.message),
                (None, Some(why)) => why,
                (None, None) => String::new(),
            };
            let reason = release.held_for.as_ref().map_or("Paused", |hold| hold.reason.as_str()).to_owned();
            self.describe(Phase::Paused, &reason, &message);
            return self.conclude(or_person(convergence, &message));
        }
        if release.reached_at.is_none() {
            release.reached_at = Some(self.now);
            self.next.release = Some(release.clone());
        }
        if let Some(effect) = self.end_analyses(Some(&release)) {
            return Turn::Apply(effect);
        }
        self.gate(release, &stage)
    }

    fn gate(mut self, mut release: Release, stage: &Stage) -> Turn {
        match self.passage(&release, stage) {
            Passage::Open { verdict, runs } => self.pass(release, stage, verdict, runs),
            Passage::Effect(effect) => Turn::Apply(effect),
            Passage::AnotherRun => {
                release.background_runs = release.background_runs.saturating_add(1);
                self.next.release = Some(release);
                self.advance()
            }
            Passage::Missing(wait, message) => {
                if self.snapshot.status.phase != Phase::Holding {
                    let weight = self.weight();
                    let revision = release.revision.clone();
                    self.push(
                        TransitionEvent::Held,
                        &revision,
                        release.stage,
                        (weight, weight),
                        "MetricsUnavailable",
                        message.clone(),
                        None,
                    );
                }
                self.describe(Phase::Holding, "MetricsUnavailable", &message);
                self.conclude(Convergence::Hold(wait))
            }
            Passage::Person(hold) => {
                let weight = self.weight();
                let revision = release.revision.clone();
                let (reason, message) = (hold.reason.clone(), hold.message.clone());
                release.held_for = Some(hold);
                self.push(
                    TransitionEvent::Paused,
                    &revision,
                    release.stage,
                    (weight, weight),
                    &reason,
                    message.clone(),
                    None,
                );
                self.next.release = Some(release);
                self.describe(Phase::Paused, &reason, &format!("{message}; approve, skip or abort"));
                self.advance()
            }
            Passage::Closed(closed) => {
                let label =
                    format!("stage {} of {}: {}", release.stage.saturating_add(1), self.plan.len(), stage.label);
                if self.snapshot.status.phase == Phase::Holding {
                    let weight = self.weight();
                    let revision = release.revision.clone();
                    self.push(
                        TransitionEvent::Resumed,
                        &revision,
                        release.stage,
                        (weight, weight),
                        "MetricsBack",
                        "metrics are back".to_owned(),
                        None,
                    );
                }
                if closed.on == WaitOn::Person {
                    // Once a stage: a pod that comes and goes while somebody thinks is no news for the log.
                    if release.asked_at.is_none() {
                        let weight = self.weight();
                        let revision = release.revision.clone();
                        release.asked_at = Some(self.now);
                        self.next.release = Some(release.clone());
                        self.push(
                            TransitionEvent::Paused,
                            &revision,
                            release.stage,
                            (weight, weight),
                            "AwaitingApproval",
                            closed.message.clone(),
                            None,
                        );
                    }
                    self.describe(Phase::Paused, "AwaitingApproval", &closed.message);
                } else {
                    self.describe(Phase::Progressing, "Stepping", &label);
                }
                self.conclude(Convergence::Hold(closed))
            }
        }
    }

    fn pass(mut self, mut release: Release, stage: &Stage, verdict: Option<String>, runs: Vec<String>) -> Turn {
        let next = self.plan.stage(release.stage.saturating_add(1));
        let everything = stage.weight < 100 && next.is_some_and(|next| next.weight >= 100);
        let promotes = everything || release.stage >= self.plan.len().saturating_sub(2);
        if let Some(wait) = self.awaits_record(promotes).filter(|_| !release.rollback) {
            self.describe(Phase::Progressing, LedgerState::AWAITED, &wait.message);
            return self.conclude(Convergence::Hold(wait));
        }
        let revision = release.revision.clone();
        let actor = (!release.approvals.is_empty()).then(|| release.approvals.join(", "));
        let reason = if release.gate_skipped { "GateSkipped" } else { "StepCompleted" };
        let index = release.stage;
        if index >= self.plan.len().saturating_sub(1) {
            release.state = ReleaseState::Promoting;
            let message = format!("every gate has passed; revision {revision} takes over");
            self.reset_stage(&mut release);
            self.next.release = Some(release);
            self.push(
                TransitionEvent::Promoting,
                &revision,
                index,
                (stage.weight, 100),
                "GatesPassed",
                message.clone(),
                actor,
            );
            self.evidence(verdict, runs);
            self.describe(Phase::Promoting, "Promoting", &message);
            return self.advance();
        }
        release.stage = index.saturating_add(1);
        let weight = self.plan.stage(release.stage).map_or(stage.weight, |next| next.weight);
        let done = match &verdict {
            Some(verdict) => format!("{} is done: {verdict}", stage.label),
            None => format!("{} is done", stage.label),
        };
        self.reset_stage(&mut release);
        let label = self.plan.stage(release.stage).map(|next| next.label.clone()).unwrap_or_default();
        let now_at = format!("stage {} of {}: {label}", release.stage.saturating_add(1), self.plan.len());
        self.next.release = Some(release);
        self.push(TransitionEvent::StepCompleted, &revision, index, (stage.weight, weight), reason, done, actor);
        self.evidence(verdict, runs);
        self.describe(Phase::Progressing, "Stepping", &now_at);
        self.advance()
    }

    fn reset_stage(&self, release: &mut Release) {
        release.stage_started_at = Some(self.now);
        release.reached_at = None;
        release.asked_at = None;
        release.approvals.clear();
        release.gate_skipped = false;
        release.stages = self.plan.len();
    }

    /// What the gate of the present stage says, the background included.
    fn passage(&self, release: &Release, stage: &Stage) -> Passage {
        let open = |verdict, runs| Passage::Open { verdict, runs };
        if release.promote_full || release.rollback {
            return open(None, Vec::new());
        }
        let reached = release.reached_at.unwrap_or(self.now).min(self.now);
        let mut verdicts = Vec::new();
        let mut runs = Vec::new();
        let mut background_wait = None;
        if let Some((name, analysis, stage_name)) = self.background(release, stage) {
            let Some(run) = self.snapshot.analyses.get(&name) else {
                return Passage::Effect(start_analysis(name, stage_name, release, analysis));
            };
            runs.push(name);
            match run.phase {
                AnalysisPhase::Holding => return missing(run),
                AnalysisPhase::Inconclusive if !release.gate_skipped => {
                    return Passage::Person(self.hold("InconclusiveAnalysis", &run.message));
                }
                AnalysisPhase::Terminated if !release.gate_skipped => {
                    return Passage::Person(
                        self.hold("AnalysisEnded", "the background analysis was ended by somebody"),
                    );
                }
                AnalysisPhase::Inconclusive | AnalysisPhase::Terminated if release.gate_skipped => {
                    return Passage::AnotherRun;
                }
                // S5: a pass counts only from samples taken after this stage was reached.
                _ if run.passed_since.is_some_and(|since| since >= reached) => {
                    verdicts.push(passed(run));
                }
                AnalysisPhase::Passed => return Passage::AnotherRun,
                _ => {
                    let detail = if run.message.is_empty() { String::new() } else { format!(": {}", run.message) };
                    let message = format!("the background analysis has not passed since this stage began{detail}");
                    background_wait = Some(wait_for(WaitOn::Analysis, None, &message));
                }
            }
        }
        if release.gate_skipped {
            return open(None, runs);
        }
        match &stage.gate {
            Gate::Ready => {}
            Gate::Time(duration) => {
                let until = reached.checked_add_signed(duration.delta()).unwrap_or(DateTime::<Utc>::MAX_UTC);
                if until > self.now {
                    return Passage::Closed(wait_for(WaitOn::Pause, Some(until), &stage.label));
                }
            }
            Gate::Approvals(needed) => {
                let given = i32::try_from(release.approvals.len()).unwrap_or(i32::MAX);
                if given < *needed {
                    let message = format!("waits for a person: {given} of {needed} approvals");
                    return Passage::Closed(wait_for(WaitOn::Person, None, &message));
                }
            }
            Gate::Analysis(analysis) => {
                let stage_name = step_name(stage.step.unwrap_or_default());
                let name = self.run_name(release, &stage_name);
                let Some(run) = self.snapshot.analyses.get(&name) else {
                    return Passage::Effect(start_analysis(name, stage_name, release, analysis.clone()));
                };
                match run.phase {
                    AnalysisPhase::Passed => verdicts.push(passed(run)),
                    AnalysisPhase::Holding => return missing(run),
                    AnalysisPhase::Inconclusive => {
                        return Passage::Person(self.hold("InconclusiveAnalysis", &run.message));
                    }
                    AnalysisPhase::Terminated => {
                        return Passage::Person(self.hold("AnalysisEnded", "the analysis was ended by somebody"));
                    }
                    _ => {
                        let message = format!("analysis: {}", run.message);
                        return Passage::Closed(wait_for(WaitOn::Analysis, None, &message));
                    }
                }
                runs.push(name);
            }
        }
        if let Some(wait) = background_wait {
            return Passage::Closed(wait);
        }
        open((!verdicts.is_empty()).then(|| verdicts.join("; ")), runs)
    }

    /// The background analysis that must stand by at this stage.
    fn background(&self, release: &Release, stage: &Stage) -> Option<(String, AnalysisReference, String)> {
        let background = self.snapshot.spec.strategy.canary.as_ref()?.analysis.as_ref()?;
        let start = usize::try_from(background.starting_step.unwrap_or_default()).unwrap_or_default();
        if stage.step.is_some_and(|step| step < start) || stage.weight == 0 {
            return None;
        }
        let stage_name = match release.background_runs {
            0 => "background".to_owned(),
            spent => format!("background-{}", spent.saturating_add(1)),
        };
        Some((self.run_name(release, &stage_name), background.analysis.clone(), stage_name))
    }

    fn run_name(&self, release: &Release, stage: &str) -> String {
        names::analysis_run(&self.snapshot.name, &self.snapshot.uid, &release.revision, release.attempt, stage)
    }

    /// The steps were edited in flight: the position is what has been reached, not an index. Nothing is promoted
    /// because the list got shorter.
    fn plan_changed(mut self, mut release: Release) -> Turn {
        let weight = self.weight();
        // Of the stages at that weight the first: an analysis among them is not skipped.
        let (mut reached, mut begins) = (0, 0);
        for run in self.plan.stages.chunk_by(|one, next| one.weight == next.weight) {
            if run.first().is_some_and(|stage| stage.weight <= weight && stage.step.is_some()) {
                reached = begins;
            }
            begins += run.len();
        }
        let old = release.stage;
        release.stage = i32::try_from(reached).unwrap_or(0);
        release.plan_hash = self.plan.hash();
        // What was judged for a step of the other plan says nothing about the step that has its number now.
        if let Some(unused) = self.unused_attempt(&release.revision) {
            release.attempt = release.attempt.max(unused);
            release.background_runs = 0;
        }
        self.reset_stage(&mut release);
        if !release.promote_full && !release.rollback {
            let text = format!("the steps were changed in flight; {weight} % is kept until a person approves");
            release.held_for = Some(self.hold("PlanChanged", &text));
        } else {
            release.stage = self.plan.len().saturating_sub(1);
        }
        let revision = release.revision.clone();
        let message = format!(
            "the plan has {} stages now; from stage {} to stage {}",
            self.plan.len(),
            old.saturating_add(1),
            release.stage.saturating_add(1)
        );
        let stage = release.stage;
        self.next.release = Some(release);
        self.push(
            TransitionEvent::PlanChanged,
            &revision,
            stage,
            (weight, weight),
            "PlanChanged",
            message.clone(),
            None,
        );
        self.describe(Phase::Paused, "PlanChanged", &message);
        self.advance()
    }

    /// A stage that asks for pods is reached when they are ready.
    fn pods_ready(&self, revision: &str, pods: Pods) -> Convergence {
        let needed = pods.size(self.replicas(), 0);
        let state = self.snapshot.revisions.get(revision).cloned().unwrap_or_default();
        let ready = state.available.min(state.ready);
        if ready >= needed {
            return Convergence::Reached;
        }
        let trouble = state.trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
        let message = format!("{ready} of {needed} pods of revision {revision} are ready{trouble}");
        Convergence::Hold(wait_for(WaitOn::Pods, None, &message))
    }

    /// The pods of stable and canary where routes or a Service move the traffic.
    fn sizes_beside_routes(&self, revision: &str, weight: i32, pods: Pods) -> (i32, i32) {
        let replicas = self.replicas();
        let canary = self.snapshot.spec.strategy.canary.as_ref();
        let least = canary.and_then(|canary| canary.min_pods_per_replica_set).unwrap_or(1).min(replicas);
        let floor = |size: i32| if size > 0 { size.max(least) } else { 0 };
        // Before the canary Service can select another revision, stable must carry everything once.
        let service = canary.and_then(|canary| self.snapshot.services.get(canary.canary_service.as_ref()?));
        let selected = service.is_some_and(|service| service.selects.as_deref() == Some(revision));
        let stable = match selected && canary.is_some_and(|canary| canary.dynamic_stable_scale) {
            true => floor(Pods::ForWeight.size(replicas, 100_i32.saturating_sub(weight))),
            false => replicas,
        };
        // Who carries everything, because stable serves nothing, has the pods for it.
        let carried = self.next.seen.weight.as_ref().map_or(0, |fact| fact.value);
        let serves = |name: &String| self.snapshot.revisions.get(name).is_some_and(|state| state.ready > 0);
        let alone = selected && carried >= 100 && !self.stable().as_ref().is_some_and(serves);
        (stable, if alone { replicas } else { floor(pods.size(replicas, weight)) })
    }

    fn target(&self, revision: &str, stable: &str, weight: i32, pods: Pods) -> Target {
        let replicas = self.replicas();
        let (base, size) = match self.snapshot.spec.strategy.by_pods() {
            Some(canary) => split_pods(replicas, weight, canary.surge_and_unavailable(replicas).0),
            None => self.sizes_beside_routes(revision, weight, pods),
        };
        let mut sizes: std::collections::BTreeMap<String, i32> = [(stable.to_owned(), base)].into();
        let kept = sizes.entry(revision.to_owned()).or_default();
        *kept = (*kept).max(size);
        let mut target = Target {
            sizes,
            stable_service: stable.to_owned(),
            canary_service: Some(revision.to_owned()),
            weight,
            only_lower: false,
            ..Target::default()
        };
        self.keep_beside(&mut target);
        target
    }

    // === Promotion ===

    fn promoting(mut self, release: Release, stable: &str) -> Turn {
        let replicas = self.replicas();
        let base = if self.by_pods() { 0 } else { self.sizes_beside_routes(&release.revision, 100, Pods::ForWeight).0 };
        let mut target = Target {
            sizes: [(stable.to_owned(), base), (release.revision.clone(), replicas)].into(),
            stable_service: release.revision.clone(),
            canary_service: Some(release.revision.clone()),
            weight: 0,
            only_lower: false,
            ..Target::default()
        };
        self.keep_beside(&mut target);
        match converge(self.snapshot, &target, &self.next.seen, self.now) {
            Convergence::Reached => self.promoted(release),
            convergence => {
                self.describe(Phase::Promoting, "Promoting", &format!("revision {} takes over", release.revision));
                let until = self.deadline_at(&release).filter(|until| *until > self.now);
                self.conclude_by(convergence, until)
            }
        }
    }

    fn promoted(mut self, release: Release) -> Turn {
        let revision = release.revision.clone();
        let old = self.next.stable_revision.replace(revision.clone());
        if let Some(old) = old.clone() {
            self.next.promoted_revisions.retain(|known| *known != old && *known != revision);
            self.next.promoted_revisions.insert(0, old);
            self.next.promoted_revisions.truncate(REMEMBERED_REVISIONS);
        }
        self.next.denied.retain(|denied| denied.revision != revision);
        self.next.release = None;
        self.next.promoted_at = Some(self.now);
        let message = format!("revision {revision} is stable now");
        let weight = self.weight();
        self.push(
            TransitionEvent::Promoted,
            &revision,
            release.stage,
            (weight.max(if old.is_some() { 100 } else { 0 }), 100),
            "Promoted",
            message.clone(),
            None,
        );
        if let Some(transition) = self.next.pending_log.last_mut() {
            transition.revision_from = old;
            transition.attempt = release.attempt;
        }
        if self.desired == revision {
            self.describe(Phase::Ready, "Ready", &format!("revision {revision} serves everything"));
        } else {
            self.describe(Phase::Progressing, "Promoted", &message);
        }
        self.advance()
    }

    // === Back ===

    fn abort(mut self, mut release: Release, abort: Abort) -> Turn {
        let revision = release.revision.clone();
        let weight = self.weight();
        let (stage, attempt) = (release.stage, release.attempt);
        let runs: Vec<String> = self.runs(&release).map(|(name, _)| name.clone()).collect();
        let verdict = match abort.cause {
            AbortCause::Verdict => Some(format!("fail ({})", abort.message)),
            AbortCause::DataMissing => Some(format!("no data ({})", abort.message)),
            _ => None,
        };
        release.state = ReleaseState::Aborted;
        release.held_for = None;
        release.abort = Some(abort.clone());
        self.next.release = Some(release);
        // A revert is a person's word on where to be, not a verdict on the revision.
        if abort.cause != AbortCause::Revert {
            let aborts =
                self.next.denied.iter().find(|denied| denied.revision == revision).map_or(0, |denied| denied.aborts);
            self.next.denied.retain(|denied| denied.revision != revision);
            self.next.denied.push(Denied {
                revision: revision.clone(),
                aborts: aborts.saturating_add(1),
                message: abort.message.clone(),
                at: self.now,
                source_commit: self.snapshot.source_commit.clone(),
                left: false,
            });
            let surplus = self.next.denied.len().saturating_sub(REMEMBERED);
            self.next.denied.drain(..surplus);
        }
        for word in &self.snapshot.interventions {
            // The word that aborted is taken; the others are answered one by one.
            if word.action == InterventionAction::Abort && word.revision == revision {
                self.next.taken_interventions.push(word.uid.clone());
            }
        }
        let reason = format!("{:?}", abort.cause);
        self.push(
            TransitionEvent::Aborted,
            &revision,
            stage,
            (weight, 0),
            &reason,
            abort.message.clone(),
            abort.actor.clone(),
        );
        if let Some(transition) = self.next.pending_log.last_mut() {
            transition.attempt = attempt;
        }
        self.evidence(verdict, runs);
        self.describe_aborted(&abort);
        self.advance()
    }

    fn aborted(mut self, release: Release, stable: &str) -> Turn {
        let abort = release.abort.clone().unwrap_or_else(|| Abort {
            cause: AbortCause::Intervention,
            message: "no cause is recorded".to_owned(),
            at: self.now,
            actor: None,
        });
        let desired = self.desired.clone();
        let replicas = self.replicas();
        let kept_until =
            abort.at.min(self.now).checked_add_signed(self.snapshot.spec.strategy.abort_scale_down_delay().delta());
        // Without routes whatever has pods has traffic.
        let kept = kept_until.filter(|until| *until > self.now && !self.by_pods());
        let mut target = Target {
            sizes: [(stable.to_owned(), replicas)].into(),
            stable_service: stable.to_owned(),
            canary_service: None,
            weight: 0,
            only_lower: true,
            ..Target::default()
        };
        self.keep_beside(&mut target);
        let state = self.snapshot.revisions.get(&release.revision);
        if kept.is_some()
            && release.revision != stable
            && let Some(state) = state
        {
            target.sizes.insert(release.revision.clone(), state.replicas);
        }
        let convergence = converge(self.snapshot, &target, &self.next.seen, self.now);
        if let Convergence::Do(effect) = convergence {
            return Turn::Apply(effect);
        }
        if let Some(effect) = self.end_analyses(None) {
            return Turn::Apply(effect);
        }
        let back = self.next.seen.weight.as_ref().is_some_and(|weight| weight.value == 0);
        let gone = state.is_none_or(|state| state.replicas == 0);
        if back && let Some(problem) = self.problem.clone() {
            // The way back needed none of it; the way forward does.
            self.describe(Phase::Stalled, &problem.reason, &problem.message);
            let convergence = match convergence {
                Convergence::Reached => Convergence::Hold(wait_for(WaitOn::Spec, None, &problem.message)),
                other => other,
            };
            return self.conclude_by(convergence, kept.filter(|_| !gone));
        }
        let begins = desired != stable && back && self.denial(&desired).is_none() && self.paused().is_none();
        let awaited = self.beginning_awaits_record().filter(|_| begins);
        if begins && awaited.is_none() {
            if desired == release.revision {
                // Aborted by a revert, and now asked for again: that is a person's word.
                return self.start(release.attempt.saturating_add(1), "AskedAgain", None);
            }
            self.next.release = None;
            return self.start(1, "NewRevision", None);
        }
        if desired == stable && back {
            self.describe(Phase::Ready, "Ready", &format!("revision {stable} serves everything"));
            if gone {
                self.next.release = None;
            }
        } else if let Some(wait) = &awaited {
            self.describe(Phase::Progressing, LedgerState::AWAITED, &wait.message);
        } else {
            self.describe_aborted(&abort);
        }
        match convergence {
            Convergence::Reached if !gone && kept.is_some() => {
                self.conclude(Convergence::Hold(wait_for(WaitOn::ScaleDown, kept, "the canary is kept for a time")))
            }
            Convergence::Reached => {
                let person = if desired == stable { WaitOn::Nothing } else { WaitOn::Person };
                let wait = awaited.unwrap_or_else(|| wait_for(person, None, "stable serves everything"));
                self.conclude(Convergence::Hold(wait))
            }
            convergence => self.conclude_by(convergence, kept),
        }
    }

    // === The record ===

    /// The wait for the record, while it is behind and the policy says that this waits. Going back never asks: neither
    /// an abort nor a way back to a revision that was good.
    fn awaits_record(&self, promotes: bool) -> Option<Wait> {
        let ledger = &self.snapshot.ledger;
        let (policy, what) = match ledger.on_unavailable {
            OnAuditUnavailable::Continue => return None,
            OnAuditUnavailable::Pause => ("pause", "no step is taken"),
            OnAuditUnavailable::HoldBeforePromotion if promotes => ("holdBeforePromotion", "it is not promoted"),
            OnAuditUnavailable::HoldBeforePromotion => return None,
        };
        let status = &self.snapshot.status;
        let since = status.record_behind_since(ledger.granularity, self.now).filter(|_| ledger.configured)?;
        let cause = status.conditions.condition(RECORDED).filter(|known| known.status == ConditionStatus::False);
        let cause = cause.map_or_else(String::new, |known| format!(" ({})", known.reason));
        let since = since.format("%Y-%m-%d %H:%M:%S UTC");
        let message = format!(
            "transitions since {since} are not in git yet{cause}; {what} before they are (onAuditUnavailable: {policy})"
        );
        Some(wait_for(WaitOn::Ledger, None, &message))
    }

    /// The same for a release that would begin.
    fn beginning_awaits_record(&self) -> Option<Wait> {
        let back = self.next.promoted_revisions.contains(&self.desired);
        self.awaits_record(self.plan.len() <= 1).filter(|_| !back)
    }

    // === Consent ===

    /// Why a revision must not be rolled out without a person's word, if so.
    fn denial(&self, revision: &str) -> Option<String> {
        if let Some(denied) = self.next.denied.iter().find(|denied| denied.revision == revision) {
            let asked_again = denied.aborts == 1
                && self.was_left(revision)
                && (self.snapshot.source_commit.is_none() || self.snapshot.source_commit != denied.source_commit);
            return (!asked_again).then(|| denied.message.clone());
        }
        if self.snapshot.status.stable_revision.is_none() && self.snapshot.status.release.is_none() {
            return self.snapshot.ledger.aborted.get(revision).cloned();
        }
        None
    }

    /// Git has asked for something else since the abort, as recorded before this turn.
    fn was_left(&self, revision: &str) -> bool {
        self.snapshot.status.denied.iter().any(|denied| denied.revision == revision && denied.left)
    }

    fn deny(mut self, stable: &str, reason: &str) -> Turn {
        let desired = self.desired.clone();
        let said = self.snapshot.status.phase == Phase::Aborted && self.snapshot.status.revision == desired;
        if !said {
            let message = format!("revision {desired} was aborted before ({reason}); it needs a person's word");
            let weight = self.weight();
            self.push(TransitionEvent::Denied, &desired, 0, (weight, weight), "Denied", message, None);
            self.describe_denied(reason);
            return self.advance();
        }
        self.describe_denied(reason);
        let target = self.rest(stable);
        let convergence = converge(self.snapshot, &target, &self.next.seen, self.now);
        if let Convergence::Reached = convergence
            && let Some(effect) = self.end_analyses(None)
        {
            return Turn::Apply(effect);
        }
        let until = self.old_is_kept_until();
        self.conclude_by(or_person(convergence, "the revision was aborted before"), until)
    }

    // === What people say ===

    fn take(mut self, word: &InterventionState) -> Turn {
        self.next.taken_interventions.push(word.uid.clone());
        // Forget only what no longer waits to be taken: the answer in its status keeps it from coming back.
        let surplus = self.next.taken_interventions.len().saturating_sub(REMEMBERED);
        self.next.taken_interventions.drain(..surplus);
        match self.obey(word) {
            Ok(turn) => turn,
            Err((mut decision, message)) => {
                decision.next.refused_interventions.push(RefusedIntervention { uid: word.uid.clone(), message });
                let surplus = decision.next.refused_interventions.len().saturating_sub(REMEMBERED);
                decision.next.refused_interventions.drain(..surplus);
                decision.advance()
            }
        }
    }

    fn obey(mut self, word: &InterventionState) -> Result<Turn, (Box<Self>, String)> {
        let desired = self.desired.clone();
        let weight = self.weight();
        let actor = Some(word.actor.clone());
        let reason = if word.reason.is_empty() { String::new() } else { format!(": {}", word.reason) };
        if word.revision != desired {
            return Err((
                Box::new(self),
                format!("it is about revision {}, but git asks for {desired}", word.revision),
            ));
        }
        let release = self.in_flight().filter(|release| release.revision == desired).cloned();
        match word.action {
            InterventionAction::Pause => {
                if self.next.paused_by.is_some() {
                    return Err((Box::new(self), "it is paused already".to_owned()));
                }
                let text = word.reason.clone();
                self.next.paused_by = Some(PausedBy { actor: word.actor.clone(), reason: text, since: self.now });
                let message = format!("paused by {}{reason}", word.actor);
                let stage = release.as_ref().map_or(0, |release| release.stage);
                self.push(
                    TransitionEvent::Paused,
                    &desired,
                    stage,
                    (weight, weight),
                    "PausedByPerson",
                    message.clone(),
                    actor,
                );
                if self.next.phase != Phase::Ready {
                    self.describe(Phase::Paused, "Paused", &message);
                }
                return Ok(self.advance());
            }
            InterventionAction::Resume => {
                if self.next.paused_by.take().is_none() {
                    return Err((Box::new(self), "nobody has paused it".to_owned()));
                }
                let message = format!("resumed by {}{reason}", word.actor);
                let stage = release.as_ref().map_or(0, |release| release.stage);
                self.push(
                    TransitionEvent::Resumed,
                    &desired,
                    stage,
                    (weight, weight),
                    "ResumedByPerson",
                    message.clone(),
                    actor,
                );
                if let Some(release) = self.next.release.as_mut().filter(|release| release.reached_at.is_none()) {
                    release.stage_started_at = Some(self.now);
                }
                if self.next.phase != Phase::Ready {
                    self.describe(Phase::Progressing, "Stepping", &message);
                }
                return Ok(self.advance());
            }
            InterventionAction::Retry => return self.retry(word),
            InterventionAction::Restart => return self.ask_for_restart(word),
            _ => {}
        }
        let Some(mut release) = release else {
            return Err((Box::new(self), "nothing is in flight".to_owned()));
        };
        if word.attempt.is_some_and(|attempt| attempt != release.attempt) {
            let message = format!(
                "it is about attempt {}, but attempt {} is in flight",
                word.attempt.unwrap_or_default(),
                release.attempt
            );
            return Err((Box::new(self), message));
        }
        if word.stage.is_some_and(|stage| stage != release.stage) {
            let message = format!(
                "it is about stage {}, but stage {} is the present one",
                word.stage.unwrap_or_default().saturating_add(1),
                release.stage.saturating_add(1)
            );
            return Err((Box::new(self), message));
        }
        if release.state == ReleaseState::Promoting {
            return Err((Box::new(self), "every gate has passed already".to_owned()));
        }
        match word.action {
            InterventionAction::Promote => {
                if let Some(wait) = self.awaits_record(true).filter(|_| !release.rollback) {
                    return Err((Box::new(self), format!("no word overrides that: {}", wait.message)));
                }
                let from = release.stage;
                release.stage = self.plan.len().saturating_sub(1);
                self.reset_stage(&mut release);
                release.promote_full = true;
                release.held_for = None;
                self.next.release = Some(release);
                self.next.paused_by = None;
                let message = format!("to full weight past all gates, by {}{reason}", word.actor);
                self.push(
                    TransitionEvent::StepCompleted,
                    &desired,
                    from,
                    (weight, 100),
                    "PromoteFull",
                    message.clone(),
                    actor,
                );
                self.describe(Phase::Progressing, "Stepping", &message);
            }
            InterventionAction::Approve | InterventionAction::Skip => {
                let stage = self.plan.stage(release.stage).cloned();
                let gate = stage.map(|stage| stage.gate);
                let held = release.held_for.take();
                if release.approvals.contains(&word.actor) && held.is_none() {
                    return Err((Box::new(self), format!("{} has approved this stage already", word.actor)));
                }
                if held.is_none() && release.reached_at.is_none() {
                    return Err((
                        Box::new(self),
                        "the stage is not reached yet: there is nothing to approve".to_owned(),
                    ));
                }
                release.approvals.push(word.actor.clone());
                let counts = matches!(gate, Some(Gate::Approvals(_)))
                    && word.action == InterventionAction::Approve
                    && held.is_none();
                match &held {
                    Some(hold) if hold.reason == "PlanChanged" => release.approvals.clear(),
                    _ if counts => {}
                    _ => release.gate_skipped = true,
                }
                if held.is_none() && !counts && matches!(gate, Some(Gate::Ready)) {
                    return Err((Box::new(self), "the present stage waits for no person".to_owned()));
                }
                let was_held = held.is_some();
                if release.reached_at.is_none() {
                    release.stage_started_at = Some(self.now);
                }
                self.next.release = Some(release);
                let message = format!("approved by {}{reason}", word.actor);
                if was_held {
                    let stage = self.next.release.as_ref().map_or(0, |release| release.stage);
                    self.push(
                        TransitionEvent::Resumed,
                        &desired,
                        stage,
                        (weight, weight),
                        "ApprovedByPerson",
                        message.clone(),
                        actor,
                    );
                }
                self.describe(Phase::Progressing, "Stepping", &message);
            }
            InterventionAction::Abort
            | InterventionAction::Pause
            | InterventionAction::Resume
            | InterventionAction::Retry
            | InterventionAction::Restart => {
                return Err((Box::new(self), "it does not fit what is in flight".to_owned()));
            }
        }
        Ok(self.advance())
    }

    fn retry(mut self, word: &InterventionState) -> Result<Turn, (Box<Self>, String)> {
        let desired = self.desired.clone();
        let aborted = self
            .snapshot
            .status
            .release
            .as_ref()
            .filter(|release| release.state == ReleaseState::Aborted && release.revision == desired);
        if self.in_flight().is_some_and(|release| release.revision == desired) {
            return Err((Box::new(self), "it is being tried already".to_owned()));
        }
        let attempt = aborted.map_or(1, |release| release.attempt.saturating_add(1));
        // The last good revision comes up instead, and maybe never does.
        let instead = self.snapshot.status.release.as_ref();
        let instead = instead.is_some_and(|it| it.state == ReleaseState::FirstDeploy && it.revision != desired);
        if aborted.is_none() && !instead && self.denial(&desired).is_none() {
            return Err((Box::new(self), "it was not aborted: there is nothing to retry".to_owned()));
        }
        if Some(&desired) == self.snapshot.status.stable_revision.as_ref() {
            return Err((Box::new(self), "the revision is stable".to_owned()));
        }
        let actor = Some(word.actor.clone());
        if self.snapshot.status.stable_revision.is_none() {
            // A first deploy that was denied: the person's word lifts it.
            self.next.denied.retain(|denied| denied.revision != desired);
            let mut release = self.release(&desired, ReleaseState::FirstDeploy, 1);
            release.attempt = 2;
            self.next.release = Some(release);
            let message = format!("retried by {}", word.actor);
            self.push(TransitionEvent::FirstDeploy, &desired, 0, (0, 0), "Retry", message.clone(), actor);
            self.describe(Phase::Pending, "FirstDeploy", &message);
            return Ok(self.advance());
        }
        if let Some(wait) = self.beginning_awaits_record() {
            return Err((Box::new(self), format!("no word overrides that: {}", wait.message)));
        }
        Ok(self.start(attempt, "Retry", actor))
    }

    fn paused(&self) -> Option<String> {
        if self.snapshot.spec.paused {
            return Some("paused by spec.paused".to_owned());
        }
        self.next.paused_by.as_ref().map(|paused| match paused.reason.as_str() {
            "" => format!("paused by {}", paused.actor),
            reason => format!("paused by {}: {reason}", paused.actor),
        })
    }

    // === What is said ===

    fn weight(&self) -> i32 {
        self.next.weight.unwrap_or(0)
    }

    /// The most that the canary has in any rule, or by the active Service: as written, accepted or not.
    fn written(&self) -> i32 {
        if self.by_pods() {
            return share_of_pods(self.snapshot);
        }
        if self.blue_green() {
            let active = self.snapshot.spec.references().stable_service;
            let selected = active.and_then(|name| self.snapshot.services.get(&name)?.selects.clone());
            let release = self.snapshot.status.release.as_ref().filter(|_| selected != self.stable());
            return release.filter(|release| selected.as_ref() == Some(&release.revision)).map_or(0, |_| 100);
        }
        let rules = self.snapshot.routes.values().flat_map(|route| &route.rules);
        rules.map(super::RuleState::share).max().unwrap_or(0)
    }

    fn hold(&self, reason: &str, message: &str) -> Hold {
        Hold { reason: reason.to_owned(), message: message.to_owned(), since: self.now }
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of a record")]
    pub(super) fn push(
        &mut self,
        event: TransitionEvent,
        revision: &str,
        stage: i32,
        weight: (i32, i32),
        reason: &str,
        message: String,
        actor: Option<String>,
    ) {
        self.next.sequence = self.next.sequence.saturating_add(1);
        let attempt = self.next.release.as_ref().map_or(1, |release| release.attempt);
        let stages = self.plan.len().max(1);
        self.next.pending_log.push(Transition {
            sequence: self.next.sequence,
            event,
            at: self.now,
            stage: stage.saturating_add(1).clamp(1, stages),
            stages,
            weight_from: weight.0,
            weight_to: weight.1,
            revision_from: self.snapshot.status.stable_revision.clone(),
            revision_to: revision.to_owned(),
            attempt,
            reason: reason.to_owned(),
            message,
            verdict: None,
            actor,
            source_commit: self.snapshot.source_commit.clone(),
            analysis_runs: Vec::new(),
        });
        if !self.snapshot.ledger.configured {
            // Nobody records this Rollout: the newest are kept for people to read, and the status stays small.
            let surplus = self.next.pending_log.len().saturating_sub(UNRECORDED);
            self.next.pending_log.drain(..surplus);
        }
    }

    fn evidence(&mut self, verdict: Option<String>, runs: Vec<String>) {
        if let Some(transition) = self.next.pending_log.last_mut() {
            transition.verdict = verdict;
            transition.analysis_runs = runs;
        }
    }

    fn describe_aborted(&mut self, abort: &Abort) {
        let mut message = format!("{}; stable serves everything. Revert the commit, or retry", abort.message);
        message += &self.judged_by_another_text();
        self.describe(Phase::Aborted, &format!("{:?}", abort.cause), &message);
    }

    fn describe_denied(&mut self, reason: &str) {
        let desired = self.desired.clone();
        let mut message = format!("revision {desired} was aborted before ({reason}); change the template, or retry it");
        message += &self.judged_by_another_text();
        self.describe(Phase::Aborted, "Denied", &message);
    }

    /// Whoever mends the analysis that judged wrongly must know that this alone tries nothing again.
    fn judged_by_another_text(&self) -> String {
        let runs = self.snapshot.analyses.values().filter(|run| run.revision == self.desired);
        let Some(last) = runs.filter(|run| run.phase == AnalysisPhase::Failed).max_by_key(|run| run.attempt) else {
            return String::new();
        };
        last.changed.as_ref().map_or_else(String::new, |(then, now)| {
            format!(
                ". The analysis that judged it has changed since ({then} then, {now} now): `kubectl rollout-status \
                 retry {}` tries again by the new one",
                self.snapshot.name
            )
        })
    }

    fn stalled(mut self, problem: &Problem) -> Turn {
        self.describe(Phase::Stalled, &problem.reason, &problem.message);
        self.conclude(Convergence::Hold(wait_for(WaitOn::Spec, None, &problem.message)))
    }

    /// Phase, message and conditions (kstatus): one table.
    pub(super) fn describe(&mut self, phase: Phase, reason: &str, message: &str) {
        self.next.phase = phase;
        self.next.message = message.to_owned();
        let generation = self.snapshot.generation;
        let now = self.now;
        let conditions = &mut self.next.conditions;
        let mut set = |type_: &str, status| {
            conditions.set_condition(Condition {
                type_: type_.to_owned(),
                status,
                reason: reason.to_owned(),
                message: message.to_owned(),
                last_transition_time: now,
                observed_generation: Some(generation),
            });
        };
        let ready = match phase {
            Phase::Ready => ConditionStatus::True,
            Phase::Aborted | Phase::Stalled => ConditionStatus::False,
            _ => ConditionStatus::Unknown,
        };
        let holds = |holds| if holds { ConditionStatus::True } else { ConditionStatus::False };
        let moving = !matches!(phase, Phase::Ready | Phase::Aborted | Phase::Stalled);
        set("Ready", ready);
        set("Reconciling", holds(moving));
        set("Stalled", holds(phase == Phase::Stalled));
        set("Paused", holds(phase == Phase::Paused));
        set("Aborted", holds(phase == Phase::Aborted));
        set("Promoted", holds(phase == Phase::Ready));
        if phase == Phase::Terminating {
            set(TERMINATING, ConditionStatus::True);
        }
    }

    fn label(&mut self) {
        self.next.step_label = match &self.next.release {
            Some(release) if release.state != ReleaseState::FirstDeploy => {
                format!("{}/{}", release.stage.saturating_add(1).clamp(1, self.plan.len().max(1)), self.plan.len())
            }
            _ => String::new(),
        };
    }

    // === How a turn ends ===

    pub(super) fn advance(mut self) -> Turn {
        self.label();
        Turn::Advance(Box::new(self.next))
    }

    fn conclude(self, convergence: Convergence) -> Turn {
        self.conclude_by(convergence, None)
    }

    /// An effect is performed; else what has changed in the status is written; else the turn waits, at the latest
    /// until `by`.
    fn conclude_by(mut self, convergence: Convergence, by: Option<DateTime<Utc>>) -> Turn {
        let mut wait = match convergence {
            Convergence::Do(effect) => return Turn::Apply(effect),
            Convergence::Hold(wait) => wait,
            Convergence::Reached => wait_for(WaitOn::Nothing, None, "the target holds"),
        };
        self.label();
        let before = &self.snapshot.status;
        // Pods come and go: their counts alone are not worth a write while something is on its way.
        let counts = (self.next.replicas, self.next.ready_replicas, self.next.updated_replicas);
        (self.next.replicas, self.next.ready_replicas, self.next.updated_replicas) =
            (before.replicas, before.ready_replicas, before.updated_replicas);
        if self.next != *before
            || wait.on == WaitOn::Nothing && counts != (before.replicas, before.ready_replicas, before.updated_replicas)
        {
            (self.next.replicas, self.next.ready_replicas, self.next.updated_replicas) = counts;
            return Turn::Advance(Box::new(self.next));
        }
        wait.until = [wait.until, by, self.old_is_kept_until()].into_iter().flatten().min();
        Turn::Wait(wait)
    }
}

fn step_name(step: usize) -> String {
    format!("step-{step}")
}

fn start_analysis(name: String, stage: String, release: &Release, analysis: AnalysisReference) -> Effect {
    Effect::StartAnalysis { name, stage, revision: release.revision.clone(), attempt: release.attempt, analysis }
}

fn passed(run: &AnalysisState) -> String {
    if run.message.is_empty() { "pass".to_owned() } else { format!("pass ({})", run.message) }
}

fn missing(run: &AnalysisState) -> Passage {
    Passage::Missing(wait_for(WaitOn::Metrics, run.hold_until, &run.message), run.message.clone())
}

fn or_person(convergence: Convergence, message: &str) -> Convergence {
    or_wait(convergence, wait_for(WaitOn::Person, None, message))
}

fn or_wait(convergence: Convergence, wait: Wait) -> Convergence {
    match convergence {
        Convergence::Reached => Convergence::Hold(wait),
        other => other,
    }
}

pub(super) fn wait_for(on: WaitOn, until: Option<DateTime<Utc>>, message: &str) -> Wait {
    Wait { until, on, message: message.to_owned() }
}

fn wait(on: WaitOn, until: Option<DateTime<Utc>>, message: String) -> Turn {
    Turn::Wait(Wait { until, on, message })
}
