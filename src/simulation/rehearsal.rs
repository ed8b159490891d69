//! A release from beginning to end in the simulated world, with faults on request.

use chrono::{DateTime, TimeDelta, Utc};

use super::forecast::approve;
use super::objects::{AfterHold, Answer, Script};
use super::run::{Happened, TURNS};
use super::world::World;
use crate::api::{AnalysisPhase, Duration, ReleaseState, RolloutSpec, RolloutStatus, Transition};
use crate::engine::{Snapshot, Wait, WaitOn};

/// What goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    /// The metrics turn bad at this step, counted from 1.
    pub fail_at: Option<usize>,
    /// The metrics go silent at this step, counted from 1.
    pub no_data_at: Option<usize>,
    /// How long each pod of the new version takes to become ready.
    pub slow_pods: Option<Duration>,
}

/// What happened.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// The transitions in order.
    pub entries: Vec<RehearsalEntry>,
    /// The status at the end.
    pub end: RolloutStatus,
    /// When that was.
    pub ended_at: DateTime<Utc>,
    /// What happened between the transitions.
    pub notes: Vec<(DateTime<Utc>, String)>,
}

/// One transition, and the world right after it.
#[derive(Clone, Debug)]
pub struct RehearsalEntry {
    /// The transition.
    pub transition: Transition,
    /// The status with it.
    pub status: RolloutStatus,
    /// What was to be seen then.
    pub snapshot: Snapshot,
}

/// No rehearsal lasts longer.
const LONGEST: TimeDelta = TimeDelta::days(366);

/// How long the old version serves before the new one comes.
const REST: TimeDelta = TimeDelta::hours(1);

/// Deploys `old`, then rolls `new` out, with the faults of `scenario`.
pub fn rehearse(old: &RolloutSpec, new: &RolloutSpec, scenario: &Scenario, start: DateTime<Utc>) -> Rehearsal {
    rehearse_with(old, new, scenario, start, AfterHold::default())
}

/// Like [`rehearse`], and says what follows a hold for missing data.
pub fn rehearse_with(
    old: &RolloutSpec,
    new: &RolloutSpec,
    scenario: &Scenario,
    start: DateTime<Utc>,
    after_hold: AfterHold,
) -> Rehearsal {
    let mut run = Run { world: World::new(old.clone(), start), entries: Vec::new(), notes: Vec::new(), people: 0 };
    run.world.knobs.after_hold = after_hold;
    run.until_the_end(None);
    // The old version has served for a while: what only follows its own start, such as a drain, is over.
    run.world.advance_to(run.world.now + REST);
    if let Some(delay) = scenario.slow_pods {
        run.world.knobs.pod_ready_delay = delay.delta();
    }
    let analysis = analyses(new);
    for (step, answer) in [(scenario.fail_at, Answer::Fail), (scenario.no_data_at, Answer::NoData)] {
        let Some(step) = step else { continue };
        let from_stage = i32::try_from(step.saturating_sub(1)).unwrap_or(i32::MAX);
        run.world.scripts.push(Script { from: start, from_stage, answer });
        if answer == Answer::NoData && !analysis {
            run.note("the Rollout has no analysis: that metrics go silent changes nothing".to_owned());
        }
    }
    let broken = scenario.fail_at.filter(|_| !analysis).map(|step| i32::try_from(step).unwrap_or(i32::MAX) - 1);
    let spec = new.clone();
    run.world.edit_spec(|own| *own = spec);
    run.until_the_end(broken);
    let promoted = run.world.status.stable_revision == Some(new.template.revision());
    if promoted && scenario.fail_at.is_some() {
        run.note("nothing judged the new version at that step or after it: it was promoted".to_owned());
    }
    Rehearsal { entries: run.entries, end: run.world.status, ended_at: run.world.now, notes: run.notes }
}

fn analyses(spec: &RolloutSpec) -> bool {
    !spec.references().analysis_templates.is_empty()
}

struct Run {
    world: World,
    entries: Vec<RehearsalEntry>,
    notes: Vec<(DateTime<Utc>, String)>,
    people: usize,
}

impl Run {
    fn note(&mut self, text: String) {
        if self.notes.last().is_none_or(|(_, last)| *last != text) {
            self.notes.push((self.world.now, text));
        }
    }

    /// Until nothing more comes by itself. From stage `broken` on, the pods of the new version fail.
    fn until_the_end(&mut self, mut broken: Option<i32>) {
        let end = self.world.now + LONGEST;
        let mut before = self.world.snapshot();
        for _ in 0..TURNS {
            match self.world.turn() {
                Happened::Performed(_) => {}
                Happened::Written(new) => {
                    self.record(new);
                    let stage = self.world.in_flight().map(|release| release.stage);
                    if broken.is_some_and(|from| stage.is_some_and(|stage| stage >= from)) {
                        broken = None;
                        self.break_pods();
                    }
                }
                Happened::Waits(wait) => {
                    if self.stops(&wait) {
                        return;
                    }
                    if wait.on == WaitOn::Person {
                        continue;
                    }
                    self.note(format!("waits: {}", wait.message));
                    match self.world.wakes_at(&wait).filter(|at| *at <= end) {
                        Some(at) => self.world.advance_to(at),
                        None => return,
                    }
                    let after = self.world.snapshot();
                    self.compare(&before, &after);
                    before = after;
                    continue;
                }
            }
            before = self.world.snapshot();
        }
        self.note("it did not come to an end".to_owned());
    }

    /// Whether this is the end. A person whom the plan asks for approves at once; one who must find out what is
    /// wrong does not.
    fn stops(&mut self, wait: &Wait) -> bool {
        if wait.on == WaitOn::Nothing {
            return true;
        }
        if wait.on != WaitOn::Person {
            return false;
        }
        let status = &self.world.status;
        let asked = self
            .world
            .in_flight()
            .is_some_and(|release| release.state == ReleaseState::Stepping && release.held_for.is_none())
            && status.paused_by.is_none()
            && !self.world.spec.paused;
        if !asked || self.people > 1000 {
            self.note(format!("waits for a person: {}", wait.message));
            return true;
        }
        self.people += 1;
        self.note(format!("a person approves, as the plan asks (person-{})", self.people));
        approve(&mut self.world, self.people);
        false
    }

    fn record(&mut self, new: usize) {
        let first = self.world.recorded.len().saturating_sub(new);
        let snapshot = self.world.snapshot();
        for transition in self.world.recorded.get(first..).unwrap_or_default() {
            self.entries.push(RehearsalEntry {
                transition: transition.clone(),
                status: self.world.status.clone(),
                snapshot: snapshot.clone(),
            });
        }
    }

    fn break_pods(&mut self) {
        self.world.knobs.canary_never_ready = true;
        let Some(revision) = self.world.in_flight().map(|release| release.revision.clone()) else { return };
        self.world.kill_pods(&revision, usize::MAX);
        self.note(format!("the Rollout has no analysis: instead, the pods of revision {revision} fail from here on"));
    }

    fn compare(&mut self, before: &Snapshot, after: &Snapshot) {
        for (revision, state) in &after.revisions {
            let ready = before.revisions.get(revision).map_or(0, |state| state.ready);
            if state.ready != ready {
                self.note(format!("{} of {} pods of revision {revision} are ready", state.ready, state.replicas));
            }
        }
        for (name, route) in &after.routes {
            let accepted = before.routes.get(name).is_some_and(|route| route.accepted);
            if route.accepted && !accepted {
                let share = route.rules.first().map_or(0, |rule| rule.share());
                self.note(format!("{name} is accepted with {share} % for the canary"));
            }
        }
        for (name, run) in &after.analyses {
            let phase = before.analyses.get(name).map_or(AnalysisPhase::Pending, |run| run.phase);
            if run.phase != phase {
                self.note(format!("analysis {}: {:?}, {}", run.stage, run.phase, run.message));
            }
        }
    }
}
