//! When each stage will come, if all goes well.
//!
//! The forecast is the engine's own run in a world made from the snapshot: analyses pass at their first possible
//! sample and people approve at once, which is marked. It holds no state and promises nothing.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::run::{Happened, TURNS};
use super::world::World;
use crate::api::{InterventionAction, ReleaseState, TransitionEvent};
use crate::engine::plan::plan;
use crate::engine::{InterventionState, Snapshot, Wait, WaitOn};

/// What lies ahead of a Rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    /// When this was foretold.
    pub now: DateTime<Utc>,
    /// The stages of the plan in order; none when the strategy has no valid plan.
    pub stages: Vec<TimelineStage>,
    /// When the desired revision will be the stable one; absent when it is, or when that cannot be told.
    pub ends_at: Option<DateTime<Utc>>,
    /// What must happen first that does not come by itself.
    pub blocked_on: Option<Wait>,
}

/// One stage of the plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineStage {
    /// Its index, from 0.
    pub stage: i32,
    /// How many there are.
    pub stages: i32,
    /// In a few words.
    pub label: String,
    /// The canary's weight in percent.
    pub weight: i32,
    /// What opens the way on, in a few words.
    pub gate: String,
    /// Whether it lies behind or ahead.
    pub state: StageState,
    /// When it began, or will.
    pub starts_at: Option<DateTime<Utc>>,
    /// When it will be done.
    pub ends_at: Option<DateTime<Utc>>,
    /// A person has to say something; the times after it assume that it is said at once.
    pub needs_person: bool,
}

/// Where a stage lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StageState {
    /// Behind.
    Done,
    /// The present one.
    Current,
    /// Ahead.
    Ahead,
}

/// The longest time looked ahead.
const HORIZON: TimeDelta = TimeDelta::days(366);

/// Foretells the stages of the desired revision, if all goes well.
pub fn forecast(snapshot: &Snapshot, now: DateTime<Utc>) -> Timeline {
    let desired = snapshot.spec.template.revision();
    let Ok(plan) = plan(&snapshot.spec) else {
        let wait = match crate::engine::decide::decide(snapshot, now) {
            crate::engine::Turn::Wait(wait) => wait,
            _ => first_wait(snapshot, now),
        };
        return Timeline { now, stages: Vec::new(), ends_at: None, blocked_on: Some(wait) };
    };
    let release = snapshot.status.release.as_ref().filter(|release| release.revision == desired);
    let going = release.filter(|release| {
        matches!(release.state, ReleaseState::Stepping | ReleaseState::Promoting) && release.plan_hash == plan.hash()
    });
    let done = snapshot.status.stable_revision.as_ref() == Some(&desired);
    let mut ahead = Ahead::look(snapshot, now, &desired);
    if let Some(release) = going {
        let stage = if release.state == ReleaseState::Promoting { plan.len().saturating_sub(1) } else { release.stage };
        ahead.starts.insert(stage, release.stage_started_at.unwrap_or(now));
    }
    let current = match going {
        Some(release) if release.state == ReleaseState::Promoting => Some(plan.len().saturating_sub(1)),
        Some(release) => Some(release.stage),
        None => None,
    };
    let first = ahead.starts.keys().next().copied();
    let aborted_at = release.filter(|release| release.state == ReleaseState::Aborted).map(|release| release.stage);
    let first_deploy = snapshot.status.stable_revision.is_none();
    let mut stages = Vec::with_capacity(plan.stages.len());
    for (index, stage) in (0i32..).zip(&plan.stages) {
        if first_deploy {
            break;
        }
        let state = match (current, first.or(aborted_at)) {
            _ if done => StageState::Done,
            (Some(current), _) if index == current => StageState::Current,
            (Some(current), _) if index < current => StageState::Done,
            (None, Some(first)) if index < first => StageState::Done,
            _ => StageState::Ahead,
        };
        let times = state != StageState::Done;
        stages.push(TimelineStage {
            stage: index,
            stages: plan.len(),
            label: stage.label.clone(),
            weight: stage.weight,
            gate: stage.gate.label(),
            state,
            starts_at: ahead.starts.get(&index).copied().filter(|_| times),
            ends_at: ahead.ends.get(&index).copied().filter(|_| times),
            needs_person: times
                && (ahead.people.contains(&index) || matches!(stage.gate, crate::engine::plan::Gate::Approvals(_))),
        });
    }
    Timeline { now, stages, ends_at: ahead.promoted_at.filter(|_| !done), blocked_on: ahead.blocked_on }
}

/// What a Rollout without a plan waits for: the first wait after its status says so.
fn first_wait(snapshot: &Snapshot, now: DateTime<Utc>) -> Wait {
    let mut world = World::from_snapshot(snapshot, now);
    for _ in 0..100 {
        if let Happened::Waits(wait) = world.turn() {
            return wait;
        }
    }
    given_up()
}

fn given_up() -> Wait {
    Wait { until: None, on: WaitOn::Spec, message: "no end can be foretold".to_owned() }
}

/// What the run in the world found.
#[derive(Default)]
struct Ahead {
    starts: BTreeMap<i32, DateTime<Utc>>,
    ends: BTreeMap<i32, DateTime<Utc>>,
    people: std::collections::BTreeSet<i32>,
    promoted_at: Option<DateTime<Utc>>,
    blocked_on: Option<Wait>,
}

impl Ahead {
    fn look(snapshot: &Snapshot, now: DateTime<Utc>, desired: &str) -> Self {
        let mut world = World::from_snapshot(snapshot, now);
        let mut ahead = Self::default();
        let mut people = 0;
        for _ in 0..TURNS {
            match world.turn() {
                Happened::Performed(_) => {}
                Happened::Written(new) => {
                    ahead.note(&world, desired, new);
                    if ahead.promoted_at.is_some() {
                        return ahead;
                    }
                }
                Happened::Waits(wait) => {
                    if wait.on == WaitOn::Person && wait.until.is_none() {
                        let paused = world.spec.paused || world.status.paused_by.is_some();
                        let stage = world.in_flight().filter(|release| release.revision == desired && !paused);
                        let Some(stage) = stage.map(|release| release.stage) else {
                            ahead.blocked_on = Some(wait);
                            return ahead;
                        };
                        people += 1;
                        ahead.people.insert(stage);
                        let refused = world.status.refused_interventions.len();
                        approve(&mut world, people);
                        if people > 1000 || refused != world.status.refused_interventions.len() {
                            ahead.blocked_on = Some(wait);
                            return ahead;
                        }
                        continue;
                    }
                    match world.wakes_at(&wait).filter(|at| *at <= now + HORIZON) {
                        Some(at) => world.advance_to(at),
                        None => {
                            ahead.blocked_on = (wait.on != WaitOn::Nothing).then_some(wait);
                            return ahead;
                        }
                    }
                    if wait.on == WaitOn::Nothing || wait.on == WaitOn::ScaleDown {
                        return ahead;
                    }
                }
            }
        }
        ahead.blocked_on = Some(given_up());
        ahead
    }

    fn note(&mut self, world: &World, desired: &str, new: usize) {
        let new = world.recorded.len().saturating_sub(new)..;
        for transition in world.recorded.get(new).unwrap_or_default() {
            if transition.revision_to != desired {
                continue;
            }
            let stage = transition.stage.saturating_sub(1);
            match transition.event {
                TransitionEvent::StepCompleted => {
                    self.ends.insert(stage, transition.at);
                }
                TransitionEvent::Promoted => {
                    let last = transition.stages.saturating_sub(1);
                    self.ends.insert(last, transition.at);
                    self.promoted_at = Some(transition.at);
                }
                _ => {}
            }
        }
        if let Some(release) = world.in_flight().filter(|release| release.revision == desired) {
            self.starts.entry(release.stage).or_insert(release.stage_started_at.unwrap_or(world.now));
        }
    }
}

/// One more person approves the present stage.
pub(super) fn approve(world: &mut World, number: usize) {
    let Some(release) = world.in_flight() else { return };
    let word = InterventionState {
        uid: format!("person-{number}"),
        name: format!("person-{number}"),
        revision: release.revision.clone(),
        attempt: Some(release.attempt),
        stage: Some(release.stage),
        action: InterventionAction::Approve,
        actor: format!("person-{number}"),
        reason: String::new(),
        created_at: world.now,
    };
    world.intervene(word);
}
