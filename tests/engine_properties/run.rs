//! One history played against the engine, or against an engine with a planted fault.

use chrono::{DateTime, TimeDelta, Utc};
use sluice::api::{InterventionAction, Phase, RolloutStatus};
use sluice::engine::decide::decide;
use sluice::engine::{Effect, InterventionState, Snapshot, Turn, Wait, WaitOn};
use sluice::simulation::{Versions, World};

use super::history::{EDITED, Event, History, Random, template, with_steps, with_strategy};
use super::mutants::Mutant;
use super::observers::Observers;

/// A turn that takes longer than the history: more than this many between two events is a loop.
const TURNS: usize = 3000;

pub struct Run {
    pub world: World,
    pub observers: Observers,
    random: Random,
    mutant: Option<Mutant>,
    faults: bool,
    resting: bool,
    words: usize,
    /// A status that an instance decided on before it lost the lead, and has not written yet.
    drawer: Option<(RolloutStatus, Versions)>,
    told: bool,
    pub trace: Vec<String>,
}

/// Plays a history; what was violated, and the trace.
pub fn play(history: &History, mutant: Option<Mutant>) -> Run {
    tell(history, mutant, false)
}

/// Plays a history in the middle of which the Rollout is deleted.
pub fn play_deleted(history: &History, mutant: Option<Mutant>, told: bool) -> Run {
    let mut run = Run::new(history, mutant, told);
    let all = u64::try_from(history.events.len() + 1).unwrap();
    let deletion = usize::try_from(history.seed % all).unwrap();
    // The first version is on its way, or there.
    let first = if deletion == 0 { i64::try_from(history.seed % 30).unwrap() } else { 60 };
    run.until(run.world.now + TimeDelta::seconds(first));
    for (index, (before, event)) in history.events.iter().enumerate() {
        if index == deletion {
            run.delete();
        }
        run.until(run.world.now + TimeDelta::milliseconds(*before));
        if run.world.gone || !run.observers.violations.is_empty() {
            break;
        }
        run.happen(event);
    }
    if run.world.ending.is_none() {
        run.delete();
    }
    run.end();
    run
}

/// Plays a history, and keeps the trace when `told`.
pub fn tell(history: &History, mutant: Option<Mutant>, told: bool) -> Run {
    let mut run = Run::new(history, mutant, told);
    run.until(run.world.now + TimeDelta::seconds(60));
    for (before, event) in &history.events {
        let at = run.world.now + TimeDelta::milliseconds(*before);
        run.until(at);
        run.happen(event);
        if !run.observers.violations.is_empty() {
            return run;
        }
    }
    run.calm();
    run
}

impl Run {
    fn new(history: &History, mutant: Option<Mutant>, told: bool) -> Self {
        Self {
            world: history.world(),
            observers: Observers::of(history.seed >= EDITED),
            random: Random(history.seed ^ 0xABCD),
            mutant,
            faults: true,
            resting: false,
            words: 0,
            drawer: None,
            told,
            trace: Vec::new(),
        }
    }

    fn delete(&mut self) {
        self.trace.push(format!("{} DELETED", self.world.now.format("%H:%M:%S%.3f")));
        self.world.delete();
        self.observers.deleted(&self.world);
    }

    /// Faults stop; then the Rollout goes, in a bounded time and with everything handed back.
    fn end(&mut self) {
        self.faults = false;
        self.drawer = None;
        self.until(self.world.now + TimeDelta::minutes(10));
        match self.world.gone {
            true => self.observers.gone(&self.world),
            false => self.violated("L1", format!("it is never gone: {}", self.world.status.message)),
        }
    }

    fn violated(&mut self, property: &str, what: String) {
        self.observers.violations.push(format!("{property} at {}: {what}", self.world.now));
    }

    fn happen(&mut self, event: &Event) {
        let now = self.world.now;
        self.trace.push(format!("{} EVENT {event:?}", now.format("%H:%M:%S%.3f")));
        let world = &mut self.world;
        match event.clone() {
            Event::Template(number) if world.workload.is_some() => world.edit_workload(template(number)),
            Event::Template(number) => world.edit_spec(|spec| spec.template = template(number)),
            Event::ScaleWorkload(replicas) => world.scale_workload(replicas),
            Event::Scale(replicas) => world.edit_spec(|spec| spec.replicas = Some(replicas)),
            Event::Steps(number) => world.edit_spec(|spec| with_steps(spec, number)),
            Event::PauseSpec(paused) => world.edit_spec(|spec| spec.paused = paused),
            Event::Kill { canary, number } => {
                let canary = world.in_flight().map(|release| release.revision.clone()).filter(|_| canary);
                if let Some(revision) = canary.or(world.status.stable_revision.clone()) {
                    world.kill_pods(&revision, number);
                }
            }
            Event::SlowPods(delay) => world.knobs.pod_ready_delay = TimeDelta::milliseconds(delay),
            Event::NeverReady(never) => {
                world.knobs.canary_never_ready = never;
                if !never {
                    revive(world);
                }
            }
            Event::AcceptDelay(delay) => world.knobs.accept_delay = TimeDelta::milliseconds(delay),
            Event::RouteTrouble(trouble) => {
                for route in world.routes.values_mut() {
                    route.trouble = trouble.then(|| "no such parent".to_owned());
                }
                world.advance_to(now);
            }
            Event::HandEdit { share, second } => {
                let name = if second { world.routes.keys().last() } else { world.routes.keys().next() };
                let Some(name) = name.cloned() else { return };
                let base = world.routes[&name].rules[0].base;
                world.edit_weights(&name, base - base * share / 100, base * share / 100);
            }
            Event::Strategy { kind, steps } => {
                let routes: Vec<String> = world.routes.keys().map(|key| key.name.clone()).collect();
                world.edit_spec(|spec| with_strategy(spec, &routes, kind, steps));
            }
            Event::Word(action) => self.say(action),
            Event::Tie => {
                let first = self.random.chance(50);
                self.say(if first { InterventionAction::Promote } else { InterventionAction::Abort });
                self.say(if first { InterventionAction::Abort } else { InterventionAction::Promote });
            }
            Event::Answer(answer) => {
                world.scripts.push(sluice::simulation::Script { from: now, from_stage: 0, answer });
            }
            Event::Epoch => world.epoch += 1,
            Event::LoseStatus => {
                world.lose_status();
                self.observers.status_lost(world);
            }
        }
        self.observers.look(&self.world);
    }

    fn say(&mut self, action: InterventionAction) {
        self.words += 1;
        let uid = format!("word-{}", self.words);
        self.world.intervene(InterventionState {
            uid: uid.clone(),
            name: uid.clone(),
            revision: self.world.spec.template.revision(),
            attempt: None,
            stage: None,
            action,
            actor: format!("actor-{}", self.random.below(3)),
            reason: String::new(),
            created_at: self.world.now,
        });
    }

    fn decide(&mut self, snapshot: &Snapshot) -> Turn {
        match self.mutant {
            Some(mutant) => mutant.decide(snapshot, self.world.now),
            None => decide(snapshot, self.world.now),
        }
    }

    /// Turns and time until `end`.
    fn until(&mut self, end: DateTime<Utc>) -> Option<Wait> {
        for _ in 0..TURNS {
            if self.world.gone || !self.observers.violations.is_empty() {
                return None;
            }
            let Some(wait) = self.turn() else { continue };
            match self.world.wakes_at(&wait).filter(|at| *at <= end) {
                Some(at) => self.pass(at),
                None => {
                    self.pass(end);
                    return Some(wait);
                }
            }
        }
        let what = format!("{TURNS} turns and no end; the last: {:?}", self.trace.last());
        self.violated("L1", what);
        None
    }

    /// Time passes, and the books are kept while it does.
    fn pass(&mut self, to: DateTime<Utc>) {
        while let Some(at) = self.world.next_event().filter(|at| *at < to) {
            self.world.advance_to(at);
            self.observers.look(&self.world);
        }
        self.world.advance_to(to);
        self.observers.look(&self.world);
    }

    fn turn(&mut self) -> Option<Wait> {
        self.observers.look(&self.world);
        if !self.resting {
            self.world.writes.clear();
        }
        if self.faults && self.random.chance(4) && self.world.status.epoch > 1 {
            self.deposed();
        }
        let snapshot = self.world.snapshot();
        let versions = self.world.versions();
        let turn = self.decide(&snapshot);
        let fault = if self.faults { self.random.below(100) } else { 100 };
        if let Some((status, versions)) = self.drawer.take() {
            // The late write of an instance that was stopped in between: it must be refused.
            self.write(status, &versions, true);
        }
        match turn {
            Turn::Wait(wait) => {
                let said = if !self.told { String::new() } else { format!("{:?} {}", wait.on, wait.message) };
                if self.told && !self.trace.last().is_some_and(|last| last.contains(&said)) {
                    self.trace.push(format!("{} waits {said} until {:?}", self.world.now.time(), wait.until));
                }
                self.observers.wait(&self.world, &wait);
                return Some(wait);
            }
            // Crashed between decision and write: nothing happened, some time has passed.
            _ if fault < 5 => {
                self.trace.push("crash".to_owned());
                let pause = self.random.of(&[0, 300, 3000]);
                let to = self.world.now + TimeDelta::milliseconds(pause);
                self.pass(to);
            }
            Turn::Apply(effect) => {
                self.perform(&effect, &snapshot, &versions, false);
                if fault < 12 {
                    // The answer was lost: the same once more, on what was seen before.
                    self.perform(&effect, &snapshot, &versions, true);
                }
            }
            Turn::Advance(status) => {
                self.write((*status).clone(), &versions, false);
                if fault < 12 {
                    self.drawer = Some((*status, versions));
                }
            }
        }
        None
    }

    /// An instance that has lost the lead decides once more.
    fn deposed(&mut self) {
        let mut snapshot = self.world.snapshot();
        let versions = self.world.versions();
        snapshot.epoch = self.world.status.epoch - 1;
        match self.decide(&snapshot) {
            Turn::Wait(_) => {}
            Turn::Apply(effect) => {
                let before = self.world.clone();
                if self.world.perform_on(&effect, &versions).is_ok() {
                    self.observers.effect(&before, &effect, &self.world, snapshot.epoch);
                }
            }
            Turn::Advance(status) => self.write(*status, &versions, false),
        }
    }

    fn perform(&mut self, effect: &Effect, snapshot: &Snapshot, versions: &Versions, again: bool) {
        let before = self.world.clone();
        let relative = self.mutant == Some(Mutant::RelativeWeight);
        let done = match effect {
            Effect::SetWeight { route, percent } if relative => {
                let share = |rules: &[sluice::engine::RuleState]| rules.first().map_or(0, |rule| rule.share());
                let change = percent - share(&snapshot.routes[route].rules);
                let percent = (share(&self.world.routes[route].rules) + change).clamp(0, 100);
                self.world.perform(&Effect::SetWeight { route: route.clone(), percent })
            }
            effect => self.world.perform_on(effect, versions),
        };
        if self.told {
            let mut text = format!("{effect:?}");
            text.truncate(90);
            self.trace.push(format!("{} {text} again {again}: {done:?}", self.world.now.time()));
        }
        if done.is_ok() {
            // Observers see what was really written.
            let seen = match self.world.writes.last().map(|write| &write.written) {
                Some(sluice::simulation::Written::Effect(seen)) => seen.clone(),
                _ => effect.clone(),
            };
            self.observers.effect(&before, &seen, &self.world, before.epoch);
        }
    }

    fn write(&mut self, status: RolloutStatus, versions: &Versions, late: bool) {
        let before = self.world.clone();
        let done = match self.mutant {
            Some(Mutant::StaleWrite) => self.world.write_status(status.clone()),
            _ => self.world.write_status_on(status.clone(), versions),
        };
        if done.is_ok() {
            let release = status.release.as_ref().map(|release| (release.state, release.stage, release.reached_at));
            if self.told {
                self.trace.push(format!(
                    "{} STATUS {:?} {} {release:?} {} late {late} events {:?}",
                    self.world.now.format("%H:%M:%S%.3f"),
                    status.phase,
                    status.message,
                    seen(&status.seen),
                    self.world.recorded[before.recorded.len()..].iter().map(|t| t.event).collect::<Vec<_>>()
                ));
            }
            self.observers.status(&before, &status, &self.world);
        }
    }

    /// Faults stop; then it comes to an end that people understand, and rests.
    fn calm(&mut self) {
        self.faults = false;
        self.drawer = None;
        let now = self.world.now;
        self.trace.push("CALM".to_owned());
        self.world.knobs.pod_ready_delay = TimeDelta::seconds(2);
        self.world.knobs.accept_delay = TimeDelta::milliseconds(200);
        self.world.knobs.canary_never_ready = false;
        revive(&mut self.world);
        for route in self.world.routes.values_mut() {
            route.trouble = None;
        }
        let good = sluice::simulation::Answer::Pass;
        self.world.scripts.push(sluice::simulation::Script { from: now, from_stage: 0, answer: good });
        self.world.advance_to(now + TimeDelta::milliseconds(1));
        let end = self.world.now + TimeDelta::hours(1);
        let Some(wait) = self.until(end) else { return };
        let phase = self.world.status.phase;
        let rests = match wait.on {
            WaitOn::Nothing => phase == Phase::Ready,
            WaitOn::Person => matches!(phase, Phase::Paused | Phase::Aborted),
            _ => false,
        };
        if !rests {
            self.violated("L1", format!("ends {phase:?} with {wait:?}"));
            return;
        }
        self.world.writes.clear();
        self.resting = true;
        for _ in 0..3 {
            self.until(self.world.now + TimeDelta::hours(1));
        }
        if let Some(first) = self.world.writes.first() {
            let new = format!("{first:?}");
            self.violated("quiescence", new);
        }
        let weights = self.world.routes.values().flat_map(|route| &route.rules).map(|rule| rule.canary);
        let astray = weights.sum::<i32>() > 0;
        let left = self.world.workload.as_ref().map_or(0, |workload| workload.replicas);
        if left > 0 && self.world.status.stable_revision.is_some() {
            self.violated("H1", format!("{left} pods of the Deployment are left for ever"));
        }
        if self.world.status.restart.as_ref().is_some_and(|restart| !restart.done) {
            self.violated("L1", "a restart is never done".to_owned());
        }
        if astray && matches!(phase, Phase::Ready | Phase::Aborted) {
            self.violated("L1", format!("{phase:?}, but the canary has weight"));
        }
    }
}

fn seen(seen: &sluice::api::Seen) -> String {
    let service = |fact: &Option<sluice::api::SeenRevision>| {
        fact.as_ref().map(|fact| format!("{} {}", &fact.revision[..3], fact.since.time()))
    };
    let weight = seen.weight.as_ref().map(|fact| format!("{} {}", fact.value, fact.since.time()));
    format!("[weight {weight:?} stable {:?} canary {:?}]", service(&seen.stable_service), service(&seen.canary_service))
}

/// Pods that could not become ready can now.
fn revive(world: &mut World) {
    let at = world.now + world.knobs.pod_ready_delay;
    for pod in world.replica_sets.values_mut().flat_map(|set| &mut set.pods) {
        pod.ready_at.get_or_insert(at);
    }
}
