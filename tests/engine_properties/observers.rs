//! What must hold of every write, judged by those who know nothing of the engine: they see the world before and
//! after each write, and keep their own books.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sluice::api::{
    InterventionAction, ReleaseState, RolloutSpec, RolloutStatus, RouteKey, Transition, TransitionEvent,
};
use sluice::engine::plan::plan;
use sluice::engine::{Effect, RuleState, Wait, WaitOn};
use sluice::simulation::{Route, World};

#[derive(Default)]
pub struct Observers {
    pub violations: Vec<String>,
    /// The strategy is edited: what a plan, or the sizes of one strategy, promise is not looked at.
    edited: bool,
    /// The weights that the gateway last accepted, by route.
    live: BTreeMap<RouteKey, Vec<RuleState>>,
    /// When each revision last was in reach of traffic.
    last_traffic: BTreeMap<String, DateTime<Utc>>,
    /// When each side last was in reach of traffic: stable, canary.
    side_traffic: [Option<DateTime<Utc>>; 2],
    sequence: i64,
    epoch: i64,
    /// The release that is open: (revision, since, stage, stage since).
    open: Option<Open>,
    absorbed: bool,
    /// Something was promoted before: what lives is not new.
    deployed: bool,
    /// When somebody asked for it to be deleted.
    deleted_at: Option<DateTime<Utc>>,
}

struct Open {
    revision: String,
    since: DateTime<Utc>,
    stage: i32,
    stage_since: DateTime<Utc>,
    ended: bool,
}

fn ceil_share(replicas: i32, percent: i32) -> i32 {
    (replicas.max(0) * percent + 99) / 100
}

/// What is wanted, with the strategy that moves traffic at present.
fn effective(world: &World) -> RolloutSpec {
    world.status.leaves(&world.spec).unwrap_or_else(|| world.spec.clone())
}

fn blue_green(world: &World) -> bool {
    effective(world).strategy.blue_green.is_some()
}

fn by_pods(world: &World) -> bool {
    effective(world).strategy.by_pods().is_some()
}

/// The Service of a side; a preview need not be there.
fn side_name(world: &World, side: usize) -> Option<String> {
    let named = effective(world).references();
    [named.stable_service, named.canary_service][side].clone()
}

/// What a side selects.
fn selects(world: &World, side: usize) -> Option<String> {
    world.services[&side_name(world, side)?].selects.clone()
}

/// Ready endpoints that a Service has published.
fn endpoints(world: &World, side: usize) -> i32 {
    side_name(world, side).map_or(0, |name| world.services[&name].published.values().sum())
}

fn pods_ready(world: &World, revision: &str) -> i32 {
    let ready = world
        .replica_sets
        .get(revision)
        .map_or(0, |set| set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count());
    i32::try_from(ready).unwrap()
}

fn side_weight(rule: &RuleState, side: usize) -> i32 {
    [rule.stable, rule.canary][side]
}

fn share(rule: &RuleState, side: usize) -> i32 {
    side_weight(rule, side) * 100 / (rule.stable + rule.canary).max(1)
}

fn drain(world: &World) -> TimeDelta {
    effective(world).strategy.drain().delta()
}

/// What holds also while the strategy is edited.
const EDITED: [&str; 6] = ["S1", "S2", "S8", "S9", "S10", "L3"];

impl Observers {
    pub fn of(edited: bool) -> Self {
        Self { edited, ..Self::default() }
    }

    fn fail(&mut self, world: &World, property: &str, what: impl std::fmt::Display) {
        if self.edited && !EDITED.contains(&property) {
            return;
        }
        self.violations.push(format!("{property} at {}: {what}", world.now.format("%H:%M:%S%.3f")));
    }

    /// Keeps the books; called before each decision and after each write.
    pub fn look(&mut self, world: &World) {
        for (name, route) in &world.routes {
            if route.accept_at.is_none() && route.trouble.is_none() {
                self.live.insert(name.clone(), route.rules.clone());
            }
        }
        if by_pods(world) {
            return;
        }
        for side in [0, 1] {
            let reach = |rules: &[RuleState]| rules.iter().any(|rule| side_weight(rule, side) > 0);
            let written = world.routes.values().any(|route: &Route| reach(&route.rules));
            let live = self.live.values().any(|rules| reach(rules));
            // In blue/green the active Service has everything, always.
            if !(written || live || blue_green(world) && side == 0) {
                continue;
            }
            self.side_traffic[side] = Some(world.now);
            let service = &world.services[&side_name(world, side).unwrap()];
            let selected = world.replica_sets.keys().filter(|name| service.selects.as_ref() == Some(*name));
            let all: Vec<String> = selected.chain(service.published.keys()).cloned().collect();
            for revision in all {
                self.last_traffic.insert(revision, world.now);
            }
        }
    }

    pub fn effect(&mut self, before: &World, effect: &Effect, after: &World, epoch: i64) {
        if epoch < before.status.epoch {
            self.fail(before, "S10", format!("a leader of an old epoch performs {effect:?}"));
        }
        for (name, route) in &after.routes {
            for rule in &route.rules {
                let sum = rule.stable + rule.canary == rule.base;
                let written = matches!(effect, Effect::SetWeight { route, .. } if route == name);
                if written && (rule.stable < 0 || rule.canary < 0 || !sum) {
                    self.fail(before, "S1", format!("{rule:?} in {name}"));
                }
            }
        }
        if let Effect::SelectEveryRevision { service } = effect {
            self.released(before, service);
        }
        if let Effect::ScaleWorkload { replicas, .. } = effect {
            self.hand_over(before, *replicas);
        }
        if let Effect::EvictPod { revision, uid, .. } = effect {
            self.evict(before, revision, uid, after);
        }
        if by_pods(before) {
            self.replace(before, effect, after);
            return;
        }
        match effect {
            Effect::SetWeight { route, percent } => self.weight(before, route, *percent, after),
            Effect::SelectRevision { service, revision } => self.select(before, service, revision),
            Effect::Scale { revision, .. } | Effect::DeleteReplicaSet { revision } => {
                self.shrink(before, revision, after);
            }
            _ => {}
        }
        self.look(after);
    }

    /// H1: the Deployment's pods go only when the Rollout's stand for them, and come back only at its end.
    fn hand_over(&mut self, before: &World, replicas: i32) {
        let had = before.workload.as_ref().map_or(0, |workload| workload.replicas);
        let own: i32 = before.replica_sets.keys().map(|revision| pods_ready(before, revision)).sum();
        if replicas > had && self.deleted_at.is_none() {
            self.fail(before, "H1", format!("the Deployment is scaled from {had} to {replicas}"));
        }
        let short = own + replicas < before.spec.replicas();
        if replicas < had && short {
            self.fail(before, "H1", format!("from {had} to {replicas} pods of the Deployment beside {own} ready ones"));
        }
        if replicas == 0 && before.status.stable_revision.is_none() {
            self.fail(before, "H1", "the Deployment goes before anything is stable");
        }
        if replicas == 0 && endpoints(before, 0) > 0 && selects(before, 0).is_none() {
            self.fail(before, "H1", "the Deployment goes while its pods have traffic");
        }
    }

    /// R1: only a pod from before the request goes, and never one that is needed.
    fn evict(&mut self, before: &World, revision: &str, uid: &str, after: &World) {
        let pods = before.replica_sets.get(revision).map(|set| &set.pods);
        let pod = pods.into_iter().flatten().find(|pod| pod.number.to_string() == uid).unwrap();
        let request = before.status.restart.as_ref().filter(|restart| !restart.done).map(|restart| restart.at);
        if request.is_none_or(|at| pod.created_at > at) {
            self.fail(before, "R1", format!("a pod of {} is ended for {request:?}", pod.created_at));
        }
        let replicas = before.spec.replicas();
        if !pod.ready_for(TimeDelta::zero(), before.now) {
            return;
        }
        let ready = pods_ready(after, revision);
        let effective = effective(before);
        if let Some(canary) = effective.strategy.by_pods() {
            let all: i32 = after.replica_sets.keys().map(|revision| pods_ready(after, revision)).sum();
            let least = replicas - canary.surge_and_unavailable(replicas).1;
            if all < least {
                self.fail(before, "R1", format!("{all} pods are left where {least} must be"));
            }
            return;
        }
        for side in [0, 1] {
            let selected = side_name(before, side).and_then(|name| before.services[&name].selects.clone());
            if selected.as_deref() != Some(revision) {
                continue;
            }
            // A small base cannot tell every percent apart: the least that it may mean.
            let rules = || before.routes.values().flat_map(|route| &route.rules);
            let held = |percent: &i32| rules().all(|rule| rule.holds(if side == 1 { *percent } else { 100 - percent }));
            let carried = if blue_green(before) { Some(if side == 0 { 100 } else { 0 }) } else { (0..=100).find(held) };
            let Some(carried) = carried else { continue };
            if ready < ceil_share(replicas, carried) && selects(before, 0) != selects(before, 1) {
                self.fail(before, "R1", format!("{ready} pods of {revision} are left for {carried} %"));
            }
            if carried > 0 && endpoints(before, side) < 2 {
                self.fail(before, "R1", format!("the only endpoint of {revision} is ended"));
            }
        }
    }

    fn weight(&mut self, before: &World, route: &RouteKey, percent: i32, after: &World) {
        let replicas = before.spec.replicas();
        let (old, new) = (&before.routes[route].rules, &after.routes[route].rules);
        if !(0..=100).contains(&percent) {
            self.fail(before, "S1", format!("{percent} %"));
        }
        for (old, new) in old.iter().zip(new) {
            for side in [0, 1] {
                let other = 1 - side;
                if side_weight(new, side) > 0 && endpoints(before, side) == 0 && endpoints(before, other) > 0 {
                    self.fail(before, "S2", format!("{new:?}: the side has no endpoints, the other has"));
                }
                let asked = if side == 1 { percent } else { 100 - percent };
                let raised = side_weight(new, side) * old.base.max(1) > side_weight(old, side) * new.base.max(1);
                let needed = ceil_share(replicas, asked);
                let same = selects(before, 0) == selects(before, 1);
                if raised && !same && endpoints(before, side) < needed && endpoints(before, other) > 0 {
                    let property = if side == 0 { "S3" } else { "S4" };
                    let ready = endpoints(before, side);
                    self.fail(before, property, format!("{old:?} to {new:?} with {ready} ready of {needed}"));
                }
            }
            let raised = share(new, 1) > share(old, 1);
            if raised && self.absorbed && selects(before, 0) != selects(before, 1) {
                self.fail(before, "S7", format!("{old:?} to {new:?} after an abort"));
            }
            if raised && self.abort_is_asked(before) && selects(before, 0) != selects(before, 1) {
                self.fail(before, "S7", "raised although somebody asks for an abort");
            }
            let release = before.in_flight().filter(|release| release.state == ReleaseState::Stepping);
            if raised
                && let Some(release) = release
                && let Ok(plan) = plan(&before.spec)
                && let Some(stage) = plan.stage(release.stage)
                && percent > stage.weight
                && endpoints(before, 0) > 0
                && release.plan_hash == plan.hash()
                && release.held_for.is_none()
                && selects(before, 0) == before.status.stable_revision
            {
                self.fail(before, "S6", format!("{percent} % is written at a stage of {} %", stage.weight));
            }
        }
    }

    fn abort_is_asked(&self, world: &World) -> bool {
        world.in_flight().is_some_and(|release| {
            world.interventions.iter().any(|word| {
                word.action == InterventionAction::Abort
                    && word.revision == release.revision
                    && word.attempt.is_none_or(|attempt| attempt == release.attempt)
            })
        })
    }

    fn select(&mut self, before: &World, service: &str, revision: &str) {
        let side = usize::from(side_name(before, 1).as_deref() == Some(service));
        if blue_green(before) {
            if side == 0 {
                self.switch(before, revision);
            }
            return;
        }
        if before.services[service].selects.is_none() {
            // The first narrowing: what stays must carry everything.
            let weight: i32 = before.routes.values().flat_map(|route| &route.rules).map(|rule| share(rule, side)).sum();
            if weight > 0 && pods_ready(before, revision) < before.spec.replicas() {
                self.fail(before, "S3", format!("{service} is narrowed to {revision}, which cannot carry it"));
            }
            return;
        }
        let drained = self.side_traffic[side].is_none_or(|last| last + drain(before) <= before.now);
        let in_traffic = self.side_traffic[side].is_some_and(|last| last == before.now && !drain(before).is_zero());
        if in_traffic || !drained {
            let last = self.side_traffic[side];
            self.fail(before, "S9", format!("{service} selects {revision} though it had traffic at {last:?}"));
        }
        for rule in before.routes.values().flat_map(|route| &route.rules) {
            if side_weight(rule, side) > 0 {
                self.fail(before, "S9", format!("{service} selects {revision} at {rule:?}"));
            }
        }
    }

    /// Without routes: pods take each other's place within bounds, and the canary's are no more than its stage says.
    fn replace(&mut self, before: &World, effect: &Effect, after: &World) {
        let effective = effective(before);
        let canary = effective.strategy.by_pods().unwrap();
        let replicas = before.spec.replicas();
        let (surge, unavailable) = canary.surge_and_unavailable(replicas);
        let size = |world: &World, revision: &str| world.replica_sets.get(revision).map_or(0, |set| set.replicas);
        let total = |world: &World| world.replica_sets.values().map(|set| set.replicas).sum::<i32>();
        let (Effect::Scale { revision, .. } | Effect::CreateReplicaSet { revision, .. }) = effect else {
            if let Effect::SelectRevision { service, revision } = effect
                && pods_ready(before, revision) == 0
            {
                self.fail(before, "S2", format!("{service} selects {revision}, which has no ready pod"));
            }
            return;
        };
        let grown = size(after, revision) > size(before, revision);
        if grown && total(after) > replicas + surge {
            self.fail(before, "S3", format!("{} pods where {replicas} and {surge} are allowed", total(after)));
        }
        let least = TimeDelta::seconds(i64::from(before.spec.min_ready_seconds.unwrap_or(0)));
        let available = |world: &World| {
            let pods = world.replica_sets.values().flat_map(|set| &set.pods);
            i32::try_from(pods.filter(|pod| pod.ready_for(least, world.now)).count()).unwrap()
        };
        let (had, has) = (available(before), available(after));
        if has < had && has < replicas - unavailable {
            self.fail(before, "S3", format!("{revision} shrinks, and {has} of {replicas} pods are available"));
        }
        let stable = before.status.stable_revision.as_ref();
        let Some(release) = before.status.release.as_ref().filter(|release| release.revision == *revision) else {
            return;
        };
        if !grown || stable.is_none() || stable == Some(revision) {
            return;
        }
        if self.absorbed || self.abort_is_asked(before) {
            self.fail(before, "S7", format!("{revision} grows after an abort"));
        }
        let stage = plan(&before.spec).ok().and_then(|plan| plan.stage(release.stage).cloned());
        if let Some(stage) = stage.filter(|_| release.state == ReleaseState::Stepping && release.held_for.is_none()) {
            let most = (replicas * stage.weight + 50) / 100;
            if size(after, revision) > most.max(i32::from(stage.weight > 0)) {
                self.fail(before, "S6", format!("{revision} grows to {} at {} %", size(after, revision), stage.weight));
            }
        }
    }

    /// The active Service changes what it selects: all traffic moves at once.
    fn switch(&mut self, before: &World, revision: &str) {
        let replicas = before.spec.replicas();
        let ready = pods_ready(before, revision);
        let rescue = endpoints(before, 0) == 0 && ready > 0;
        if ready < replicas && !rescue {
            self.fail(before, "S12", format!("a switch to {revision} with {ready} ready of {replicas}"));
        }
        let stable = before.status.stable_revision.as_deref();
        let release = before.status.release.as_ref().filter(|release| release.revision == revision);
        let Some(release) = release.filter(|_| stable.is_some() && stable != Some(revision)) else { return };
        if self.absorbed || self.abort_is_asked(before) {
            self.fail(before, "S7", format!("a switch to {revision} after an abort"));
        }
        let allowed = plan(&before.spec).is_ok_and(|plan| {
            let stage = plan.stage(release.stage);
            release.state == ReleaseState::Promoting || stage.is_some_and(|stage| stage.weight >= 100)
        });
        if !allowed {
            self.fail(before, "S12", format!("live traffic for {revision}, which is a preview"));
        }
    }

    fn shrink(&mut self, before: &World, revision: &str, after: &World) {
        if self.deleted_at.is_some_and(|at| before.now - at >= TimeDelta::minutes(3)) {
            // What was to be waited for was waited for; it goes now.
            return;
        }
        let (had, has) = (pods_ready(before, revision), pods_ready(after, revision));
        let size = |world: &World| world.replica_sets.get(revision).map_or(0, |set| set.replicas);
        if size(after) >= size(before) {
            return;
        }
        let mut carried = 0;
        for side in [0, 1] {
            let here = selects(before, side).is_none_or(|own| own == revision);
            if blue_green(before) {
                carried += if here && side == 0 { 100 } else { 0 };
            } else if here {
                let rules = before.routes.values().flat_map(|route| &route.rules);
                carried += rules.map(|rule| share(rule, side)).max().unwrap_or(0);
            }
        }
        if has < had && size(after) < before.spec.replicas() {
            self.old_is_kept(before, revision);
        }
        let needed = ceil_share(before.spec.replicas(), carried.min(100));
        if has < had && has < needed {
            self.fail(before, "S4", format!("{revision} shrinks from {had} to {has} ready, of {needed} needed"));
        }
        if carried == 0
            && has < had
            && let Some(last) = self.last_traffic.get(revision).copied()
            && last + drain(before) > before.now
        {
            self.fail(before, "S4", format!("{revision} shrinks though it had traffic at {last}"));
        }
    }

    /// S17: what a deleted Rollout put on trial is out of reach when the stable Service selects every revision again,
    /// while that can still be had in time.
    fn released(&mut self, before: &World, service: &str) {
        let Some(deleted_at) = self.deleted_at else { return };
        let in_time = before.now - deleted_at < TimeDelta::minutes(3);
        let Some(stable) = before.status.stable_revision.as_ref().filter(|_| in_time) else { return };
        let is_trial = |revision: &&String| *revision != stable && pods_ready(before, revision) > 0;
        if side_name(before, 0).as_deref() == Some(service)
            && let Some(trial) = before.replica_sets.keys().find(is_trial)
        {
            self.fail(before, "S17", format!("{service} selects every revision while {trial} has pods"));
        }
    }

    /// Somebody deletes the Rollout.
    pub fn deleted(&mut self, world: &World) {
        self.deleted_at = Some(world.now);
    }

    /// S17: whoever comes after it finds Services and routes as git declares them, and stable has all the weight.
    pub fn gone(&mut self, world: &World) {
        let asked = world.spec.replicas();
        if world.workload.as_ref().is_some_and(|workload| workload.replicas < asked) {
            self.fail(world, "H1", "it goes without a Deployment that serves");
        }
        for (name, service) in &world.services {
            if let Some(revision) = &service.selects {
                self.fail(world, "S17", format!("{name} still selects {revision}"));
            }
        }
        for (name, route) in &world.routes {
            if !route.header_routes.is_empty() || route.rules.iter().any(|rule| !rule.holds(0)) {
                self.fail(world, "S17", format!("{name} is left with {route:?}"));
            }
        }
    }

    /// S12: what was stable is kept for its time.
    fn old_is_kept(&mut self, before: &World, revision: &str) {
        if self.deleted_at.is_some() {
            return;
        }
        let status = &before.status;
        let old = status.promoted_revisions.first().is_some_and(|old| old == revision);
        let delay = effective(before).strategy.scale_down_delay().delta();
        let kept_until = status.promoted_at.map(|at| at + delay);
        let again = status.release.as_ref().is_some_and(|release| release.revision == revision);
        if old && !again && kept_until.is_some_and(|until| until > before.now) {
            self.fail(before, "S12", format!("{revision} shrinks before its time, {kept_until:?}"));
        }
    }

    /// The status is gone, and without a ledger so is all that only it knew.
    pub fn status_lost(&mut self, world: &World) {
        if !world.ledger.configured {
            self.sequence = 0;
            self.absorbed = false;
        }
    }

    pub fn status(&mut self, before: &World, status: &RolloutStatus, after: &World) {
        if status.epoch < self.epoch {
            self.fail(before, "S10", format!("epoch {} after {}", status.epoch, self.epoch));
        }
        self.epoch = self.epoch.max(status.epoch);
        let asked = self.abort_is_asked(before);
        let new = after.recorded.get(before.recorded.len()..).unwrap_or_default();
        for transition in new {
            if transition.sequence != self.sequence + 1 {
                self.fail(before, "S8", format!("transition {} after {}", transition.sequence, self.sequence));
            }
            self.sequence = transition.sequence;
            let lost = transition.reason == "StatusLost";
            let back = matches!(transition.event, TransitionEvent::Aborted | TransitionEvent::HandedBack);
            if asked && !back && !lost {
                self.fail(before, "S7", format!("{:?} although somebody asks for an abort", transition.event));
            }
            self.transition(before, transition);
        }
        if new.iter().any(|transition| transition.event == TransitionEvent::Recovered) {
            let release = after.status.release.as_ref();
            self.absorbed = release.is_some_and(|release| release.state == ReleaseState::Aborted);
            if let Some(open) = self.open.as_mut().filter(|_| after.in_flight().is_none()) {
                open.ended = true;
            }
        }
        if status.sequence != self.sequence {
            self.fail(before, "S8", format!("the status counts {}, not {}", status.sequence, self.sequence));
        }
        if let (Some(open), Some(release)) = (&self.open, after.in_flight())
            && release.state == ReleaseState::Stepping
            && open.stage != release.stage
        {
            let what = format!("stage {} became {} without a transition", open.stage, release.stage);
            self.fail(before, "S6", what);
        }
        self.look(after);
    }

    fn transition(&mut self, world: &World, transition: &Transition) {
        let stage = transition.stage - 1;
        match transition.event {
            TransitionEvent::Started => {
                if self.open.as_ref().is_some_and(|open| !open.ended) {
                    self.fail(world, "S6", "a release starts before the other one has ended");
                }
                self.absorbed = false;
                self.open = Some(Open {
                    revision: transition.revision_to.clone(),
                    since: world.now,
                    stage,
                    stage_since: world.now,
                    ended: false,
                });
            }
            TransitionEvent::StepCompleted | TransitionEvent::PlanChanged | TransitionEvent::Promoting => {
                let Some(mut open) = self.open.take() else {
                    return self.fail(world, "S6", format!("{:?} of no release", transition.event));
                };
                if open.ended || open.revision != transition.revision_to {
                    self.fail(world, "S6", format!("{:?} after the end", transition.event));
                }
                match transition.event {
                    TransitionEvent::PlanChanged => open.stage = stage,
                    event => {
                        if open.stage != stage {
                            let what = format!("{event:?} of stage {stage} at stage {}", open.stage);
                            self.fail(world, "S6", what);
                        }
                        self.evidence(world, transition, &open);
                        open.stage = stage + 1;
                        if transition.reason == "PromoteFull" {
                            open.stage = transition.stages - 1;
                        }
                    }
                }
                open.stage_since = world.now;
                self.open = Some(open);
            }
            TransitionEvent::Recovered => {
                self.open = Some(Open {
                    revision: transition.revision_to.clone(),
                    since: world.now,
                    stage,
                    stage_since: world.now,
                    ended: false,
                });
            }
            TransitionEvent::FirstDeploy if self.deployed => {
                self.fail(world, "S6", "a first deploy beside what was deployed long ago");
            }
            // Found, not done.
            TransitionEvent::Promoted if transition.reason == "StatusLost" => self.deployed = true,
            TransitionEvent::Promoted | TransitionEvent::Aborted | TransitionEvent::Superseded => {
                self.deployed |= transition.event == TransitionEvent::Promoted;
                self.absorbed = transition.event == TransitionEvent::Aborted;
                match &mut self.open {
                    Some(open) if !open.ended && open.revision == transition.revision_to => open.ended = true,
                    None if transition.event == TransitionEvent::Promoted => {}
                    _ => self.fail(world, "S6", format!("{:?} of what is not open", transition.event)),
                }
            }
            TransitionEvent::HandedBack => {
                self.absorbed = true;
                if let Some(open) = &mut self.open {
                    open.ended = true;
                }
            }
            _ => {}
        }
    }

    /// S5: a gate that an analysis guards opens only on samples of this release and this stage.
    fn evidence(&mut self, world: &World, transition: &Transition, open: &Open) {
        if transition.reason == "PromoteFull" || transition.reason == "GateSkipped" {
            return;
        }
        let Some(release) = world.in_flight() else { return };
        if release.rollback || release.promote_full || release.gate_skipped {
            return;
        }
        for name in &transition.analysis_runs {
            let Some(run) = world.analyses.get(name) else {
                self.fail(world, "S5", format!("{name} does not exist"));
                continue;
            };
            if run.created_at < open.since {
                self.fail(world, "S5", format!("{name} is from before the release"));
            }
            if run.passed_since.is_none_or(|since| since < open.stage_since) {
                let what = format!("{name} passed last at {:?}, before the stage", run.passed_since);
                self.fail(world, "S5", what);
            }
        }
        let guarded = plan(&world.spec).is_ok_and(|plan| {
            let background = world.spec.strategy.canary.as_ref().is_some_and(|canary| canary.analysis.is_some());
            plan.stage(open.stage).is_some_and(|stage| {
                background && stage.weight > 0 || matches!(stage.gate, sluice::engine::plan::Gate::Analysis(_))
            })
        });
        if guarded && transition.analysis_runs.is_empty() {
            self.fail(world, "S5", format!("stage {} is done without evidence", open.stage));
        }
    }

    /// L3: whoever waits says until when, or on what, and that can come.
    pub fn wait(&mut self, world: &World, wait: &Wait) {
        if wait.message.is_empty() {
            self.fail(world, "L3", "a wait without a word");
        }
        match wait.until {
            Some(until) if until <= world.now => self.fail(world, "L3", format!("a wait for the past: {wait:?}")),
            Some(_) => {}
            None => {
                let timed = matches!(wait.on, WaitOn::Settle | WaitOn::Pause | WaitOn::ScaleDown);
                let faulty = world.knobs.canary_never_ready
                    || world.routes.values().any(|route| route.trouble.is_some())
                    || world.knobs.pod_ready_delay > TimeDelta::seconds(60);
                let stands = matches!(wait.on, WaitOn::Nothing | WaitOn::Spec | WaitOn::Person);
                if timed || !stands && !faulty && world.next_event().is_none() {
                    self.fail(world, "L3", format!("nothing will end this wait: {wait:?}"));
                }
            }
        }
    }
}
