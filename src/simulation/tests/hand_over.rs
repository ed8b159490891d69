//! A Deployment keeps the pod template: its pods go when the Rollout's serve, and come back before the Rollout goes.

use super::*;
use crate::api::{ConditionStatus, Conditions, Phase, ScaleDown, WORKLOAD_SCALED_DOWN};
use crate::engine::{Effect, Ending};

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn with_routes() -> RolloutSpec {
    spec(OLD, json!({}))
}

fn blue_green() -> RolloutSpec {
    let mut spec = spec(OLD, json!({}));
    spec.strategy =
        serde_json::from_value(json!({"blueGreen": {"activeService": "web-stable", "previewService": "web-canary"}}))
            .unwrap();
    spec
}

fn by_pods(canary: serde_json::Value) -> RolloutSpec {
    let mut spec = spec(OLD, json!({}));
    spec.strategy = serde_json::from_value(json!({"canary": canary})).unwrap();
    spec
}

fn every_strategy() -> [RolloutSpec; 4] {
    let pods = [json!({"stableService": "web-stable", "maxUnavailable": 0}), json!({"maxUnavailable": 0})];
    let [with_service, without] = pods.map(by_pods);
    [with_routes(), blue_green(), with_service, without]
}

/// A Deployment that has served for long, and a Rollout that begins to take over from it.
fn adopting(mut spec: RolloutSpec, scale_down: &str) -> World {
    spec.workload_ref = Some(
        serde_json::from_value(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop", "scaleDown": scale_down}),
        )
        .unwrap(),
    );
    let mut world = World::new(spec, start());
    world.workload = Some(Workload::running(template(OLD), 5, start() - TimeDelta::hours(1)));
    // Its endpoints have been published.
    for second in 1..=2 {
        world.advance_to(start() + TimeDelta::seconds(second));
    }
    world
}

fn adopted(spec: RolloutSpec, scale_down: &str) -> World {
    let mut world = adopting(spec, scale_down);
    rest(&mut world);
    world
}

/// Until nothing is to be done any more. At each moment the stable Service has as many ready pods as are asked for.
fn rest(world: &mut World) -> Vec<Effect> {
    play(world, |_| false)
}

fn play(world: &mut World, done: impl Fn(&World) -> bool) -> Vec<Effect> {
    let mut effects = Vec::new();
    let end = world.now + TimeDelta::hours(3);
    while !world.gone && !done(world) {
        assert!(world.now < end, "no end: {:?} {}", world.status.phase, world.status.message);
        match world.turn() {
            Happened::Performed(effect) => effects.push(effect),
            Happened::Written(_) => {}
            Happened::Waits(wait) => match world.wakes_at(&wait) {
                Some(at) => world.advance_to(at),
                None => break,
            },
        }
        served(world);
    }
    effects
}

/// Pods that would answer: as many as are asked for, among them none that has gone.
fn served(world: &World) {
    if world.gone {
        return;
    }
    let own: i32 = world.replica_sets.keys().map(|revision| i32::try_from(ready(world, revision)).unwrap()).sum();
    let workload = world.workload.as_ref().map_or(0, |workload| workload.ready(world.now));
    assert!(own + workload >= 5, "{own} + {workload} pods are ready; {}", world.status.message);
    let Some(service) = world.services.get("web-stable") else { return };
    let published: i32 = service.published.values().sum();
    // By pods, and beside a canary, the stable side has its share.
    let least = if world.in_flight().is_some() { 1 } else { 5 };
    assert!(published >= least, "{:?}; {}", service, world.status.message);
}

fn ready(world: &World, revision: &str) -> usize {
    let set = world.replica_sets.get(revision);
    set.map_or(0, |set| set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count())
}

fn replicas(world: &World) -> i32 {
    world.workload.as_ref().unwrap().replicas
}

fn scaled(effects: &[Effect]) -> Vec<i32> {
    let size = |effect: &Effect| match effect {
        Effect::ScaleWorkload { workload, replicas } => Some((workload.clone(), *replicas)),
        _ => None,
    };
    let sizes: Vec<_> = effects.iter().filter_map(size).collect();
    assert!(sizes.iter().all(|(workload, _)| workload == "shop"));
    sizes.into_iter().map(|(_, replicas)| replicas).collect()
}

fn condition(world: &World) -> Option<(ConditionStatus, &str)> {
    let condition = world.status.conditions.condition(WORKLOAD_SCALED_DOWN)?;
    Some((condition.status, condition.reason.as_str()))
}

#[test]
fn on_success_all_pods_go_at_once_when_the_first_version_is_stable_and_settled() {
    for spec in every_strategy() {
        let mut world = adopting(spec, "onsuccess");
        play(&mut world, |world| world.status.phase == Phase::Ready);
        let promoted = world.now;
        assert_eq!(replicas(&world), 5, "the first version is only just stable");
        assert_eq!(scaled(&rest(&mut world)), [0]);
        let write =
            world.writes.iter().find(|write| matches!(&write.written, Written::Effect(Effect::ScaleWorkload { .. })));
        let strategy = &world.spec.strategy;
        assert!(write.unwrap().at >= promoted + strategy.settle().delta(), "proxies are given their time");
        assert_eq!(condition(&world), Some((ConditionStatus::True, "HandedOver")));
        assert_eq!(world.status.phase, Phase::Ready);
        let writes = world.writes.len();
        world.advance_to(world.now + TimeDelta::hours(1));
        rest(&mut world);
        assert_eq!(world.writes.len(), writes, "nothing is written at rest");
    }
}

#[test]
fn progressively_one_pod_goes_for_each_that_serves() {
    for spec in every_strategy() {
        let mut world = adopting(spec, "progressively");
        // The pods of the first version become ready one after the other.
        for number in 1..=5 {
            play(&mut world, |world| ready(world, &template(OLD).revision()) >= number);
        }
        let sizes = scaled(&rest(&mut world));
        assert_eq!(sizes.last(), Some(&0), "{sizes:?}");
        assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
        assert_eq!(condition(&world), Some((ConditionStatus::True, "HandedOver")));
    }
}

#[test]
fn progressively_none_goes_while_none_serves_and_one_stays_until_all_is_stable() {
    let mut world = adopting(with_routes(), "progressively");
    world.knobs.canary_never_ready = true;
    let end = world.now + TimeDelta::minutes(30);
    let effects = play(&mut world, |world| world.now >= end || world.status.phase == Phase::Stalled);
    assert_eq!(scaled(&effects), [] as [i32; 0], "the first version never becomes ready");
    assert_eq!(replicas(&world), 5);
}

#[test]
fn never_nothing_is_touched() {
    let mut world = adopted(with_routes(), "never");
    assert_eq!((replicas(&world), condition(&world)), (5, None));
    world.delete();
    assert_eq!(scaled(&rest(&mut world)), [] as [i32; 0]);
}

#[test]
fn a_rollout_of_another_size_moves_no_pod_of_the_deployment() {
    let mut world = adopted(with_routes(), "progressively");
    for size in [3, 12, 5] {
        world.edit_spec(|spec| spec.replicas = Some(size));
        let mut effects = Vec::new();
        while let Some(effect) = match world.turn() {
            Happened::Performed(effect) => Some(Some(effect)),
            Happened::Written(_) => Some(None),
            Happened::Waits(wait) => world.wakes_at(&wait).map(|at| {
                world.advance_to(at);
                None
            }),
        } {
            effects.extend(effect);
        }
        assert_eq!(scaled(&effects), [] as [i32; 0], "size {size}");
        assert_eq!(replicas(&world), 0);
    }
}

#[test]
fn a_deployment_that_is_scaled_up_again_is_corrected_and_that_is_recorded_once() {
    for spec in every_strategy() {
        let mut world = adopted(spec, "onsuccess");
        let before = world.recorded.len();
        world.scale_workload(5);
        let began = world.now;
        play(&mut world, |world| replicas(world) == 0);
        assert!(world.now - began <= TimeDelta::seconds(10), "{}", world.now - began);
        assert_eq!(condition(&world), Some((ConditionStatus::False, "WorkloadScaledUp")));
        let told: Vec<_> = world.recorded[before..].iter().map(|it| (it.event, it.message.clone())).collect();
        let message = "Deployment shop was scaled up to 5 pods by somebody else; it goes back to 0".to_owned();
        assert_eq!(told, [(Event::DriftCorrected, message)]);
        // Another tool that insists is corrected each time, and does not fill the log.
        for _ in 0..5 {
            world.advance_to(world.now + TimeDelta::seconds(20));
            world.scale_workload(5);
            play(&mut world, |world| replicas(world) == 0);
        }
        assert_eq!(world.recorded.len(), before + 1);
        rest(&mut world);
        assert_eq!(condition(&world), Some((ConditionStatus::True, "HandedOver")), "it has been quiet");
        world.scale_workload(5);
        rest(&mut world);
        assert_eq!(world.recorded.len(), before + 2);
    }
}

#[test]
fn a_deployment_is_not_scaled_down_while_the_rollout_lacks_pods() {
    let mut world = adopted(by_pods(json!({})), "onsuccess");
    let stable = template(OLD).revision();
    world.scale_workload(5);
    world.advance_to(world.now + TimeDelta::seconds(5));
    world.knobs.pod_ready_delay = TimeDelta::seconds(60);
    world.kill_pods(&stable, 2);
    let killed = world.now;
    play(&mut world, |world| replicas(world) == 0);
    assert!(world.now - killed >= TimeDelta::seconds(60), "{}", world.now - killed);
}

#[test]
fn a_version_that_fails_brings_no_pods_of_the_deployment_back() {
    for spec in every_strategy() {
        let mut world = adopted(spec, "progressively");
        world.knobs.canary_never_ready = true;
        world.edit_workload(template(NEW));
        let effects = play(&mut world, |world| world.status.phase == Phase::Aborted);
        assert_eq!(world.status.phase, Phase::Aborted, "{}", world.status.message);
        let end = world.now + TimeDelta::hours(1);
        let later = play(&mut world, |world| world.now > end);
        assert_eq!(scaled(&effects), [] as [i32; 0]);
        assert_eq!(scaled(&later), [] as [i32; 0]);
        assert_eq!(ready(&world, &template(OLD).revision()), 5, "version 1 serves");
    }
}

#[test]
fn a_deleted_rollout_leaves_a_deployment_that_serves() {
    for spec in every_strategy() {
        let mut world = adopted(spec, "onsuccess");
        world.delete();
        let effects = rest(&mut world);
        assert!(world.gone);
        assert_eq!(scaled(&effects), [5]);
        assert_eq!(effects.last(), Some(&Effect::RemoveFinalizer { unfinished: None }));
        let workload = world.workload.as_ref().unwrap();
        assert_eq!(workload.ready(world.now), 5);
        let drifts = events(&world).into_iter().filter(|event| *event == Event::DriftCorrected).count();
        assert_eq!(drifts, 0, "our own doing is no drift");
        if let Some(service) = world.services.get("web-stable") {
            assert_eq!(service.selects, None);
            assert_eq!(service.published.get(Workload::PODS), Some(&5));
        }
    }
}

#[test]
fn a_deletion_in_the_middle_of_the_hand_over_gives_back_what_was_taken() {
    for spec in every_strategy() {
        let mut world = adopting(spec, "progressively");
        play(&mut world, |world| replicas(world) < 5);
        world.delete();
        let effects = rest(&mut world);
        assert!(world.gone);
        assert_eq!(scaled(&effects), [5]);
    }
}

#[test]
fn a_deployment_that_has_another_version_than_the_stable_one_is_waited_for() {
    for mended in [true, false] {
        let mut world = adopted(with_routes(), "onsuccess");
        world.knobs.canary_never_ready = true;
        world.edit_workload(template(NEW));
        play(&mut world, |world| world.status.phase == Phase::Aborted);
        world.delete();
        let began = world.now;
        play(&mut world, |world| world.now >= began + TimeDelta::minutes(1));
        assert_eq!(replicas(&world), 0);
        assert!(world.status.message.contains("is stable: go back to that"), "{}", world.status.message);
        if mended {
            world.edit_workload(template(OLD));
        }
        let effects = rest(&mut world);
        assert_eq!(scaled(&effects), [5]);
        let took = world.now - began;
        let Some(Effect::RemoveFinalizer { unfinished }) = effects.last() else { panic!("{effects:?}") };
        if mended {
            assert_eq!(unfinished, &None);
        } else {
            assert!(took >= TimeDelta::minutes(3) && took <= TimeDelta::minutes(4), "{took}");
            let why = unfinished.as_ref().expect("it is said");
            assert!(why.contains("has the template of revision"), "{why}");
        }
    }
}

#[test]
fn a_deployment_that_never_becomes_ready_ends_the_wait_and_is_told() {
    let mut world = adopted(with_routes(), "onsuccess");
    world.knobs.pod_ready_delay = TimeDelta::hours(5);
    world.delete();
    let began = world.now;
    let effects = rest(&mut world);
    assert!(world.gone && world.now - began <= TimeDelta::minutes(4) + TimeDelta::seconds(1));
    let Some(Effect::RemoveFinalizer { unfinished: Some(why) }) = effects.last() else { panic!("{effects:?}") };
    assert!(why.contains("0 of 5 pods of Deployment shop are ready"), "{why}");
}

#[test]
fn an_uninstalled_operator_leaves_the_deployment_alone_to_serve() {
    for spec in every_strategy() {
        let mut world = adopted(spec, "onsuccess");
        world.ending = Some(Ending::Uninstalled);
        rest(&mut world);
        assert!(!world.finalizer);
        assert_eq!(world.workload.as_ref().unwrap().ready(world.now), 5);
        assert!(world.replica_sets.values().all(|set| set.replicas == 0), "nobody would look after them");
        // It comes back, and takes over again.
        world.ending = None;
        world.status_version += 1;
        let effects = rest(&mut world);
        assert_eq!(scaled(&effects), [0]);
        assert_eq!(world.status.phase, Phase::Ready);
        assert_eq!(ready(&world, &template(OLD).revision()), 5);
    }
}

#[test]
fn a_rollout_that_takes_over_no_more_says_nothing_of_it() {
    let mut world = adopted(with_routes(), "onsuccess");
    world.edit_spec(|spec| spec.workload_ref.as_mut().unwrap().scale_down = ScaleDown::Never);
    rest(&mut world);
    assert_eq!((replicas(&world), condition(&world)), (0, None));
}

#[test]
fn whoever_takes_the_rollout_away_may_ask_for_a_new_version_of_the_deployment_at_once() {
    let mut world = adopted(with_routes(), "onsuccess");
    world.edit_workload(template(NEW));
    world.scale_workload(5);
    world.delete();
    let effects = rest(&mut world);
    assert!(world.gone);
    assert_eq!(effects.last(), Some(&Effect::RemoveFinalizer { unfinished: None }));
}
