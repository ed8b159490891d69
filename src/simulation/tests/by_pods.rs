//! A canary without routes: pods take each other's place, and their share is the share of the traffic.

use super::*;
use crate::api::InterventionAction;
use crate::engine::converge::split_pods;

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn by_pods(replicas: i32, canary: serde_json::Value) -> World {
    let mut spec = spec(OLD, json!({}));
    spec.replicas = Some(replicas);
    spec.strategy = serde_json::from_value(json!({"canary": canary})).unwrap();
    deployed(spec)
}

fn push(world: &mut World, image: &str) {
    world.edit_spec(|spec| spec.template = template(image));
}

fn pods(world: &World, image: &str) -> usize {
    world.replica_sets.get(&template(image).revision()).map_or(0, |set| set.pods.len())
}

fn ready(world: &World) -> usize {
    let pods = world.replica_sets.values().flat_map(|set| &set.pods);
    pods.filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count()
}

#[test]
fn each_step_has_the_nearest_pods_and_both_sides_have_one() {
    let mut told = Vec::new();
    for (replicas, percent, surge) in [
        (5, 20, 1),
        (5, 50, 1),
        (5, 1, 1),
        (5, 99, 1),
        (10, 34, 0),
        (2, 80, 1),
        (1, 50, 1),
        (1, 50, 0),
        (0, 50, 1),
        (4, 0, 1),
        (4, 100, 1),
    ] {
        told.push(split_pods(replicas, percent, surge));
    }
    assert_eq!(told, [(4, 1), (2, 3), (4, 1), (1, 4), (7, 3), (1, 1), (1, 1), (1, 0), (0, 0), (4, 0), (0, 4)]);
}

#[test]
fn the_steps_move_pods_and_never_beyond_the_bounds() {
    let steps = json!([{"setWeight": 20}, {"pause": {}}, {"setWeight": 60}, {"pause": {"duration": "60s"}}]);
    let mut world = by_pods(5, json!({"steps": steps, "maxSurge": 1, "maxUnavailable": 0}));
    push(&mut world, NEW);
    let within = |world: &World| {
        assert!(
            (5..=6).contains(&(pods(world, OLD) + pods(world, NEW))),
            "{} pods",
            pods(world, OLD) + pods(world, NEW)
        );
        assert!(ready(world) >= 5, "{} ready", ready(world));
    };
    until(&mut world, |world| {
        within(world);
        world.status.phase == Phase::Paused
    });
    assert_eq!((pods(&world, OLD), pods(&world, NEW), world.status.weight), (4, 1, Some(20)));
    say(&mut world, "1", InterventionAction::Approve);
    until(&mut world, |world| {
        within(world);
        world.status.message.contains("pause 1m")
    });
    assert_eq!((pods(&world, OLD), pods(&world, NEW), world.status.weight), (2, 3, Some(60)));
    until(&mut world, |world| {
        within(world);
        world.status.phase == Phase::Ready
    });
    assert_eq!((pods(&world, OLD), pods(&world, NEW)), (0, 5));
    assert!(world.services.is_empty() && world.routes.is_empty());
}

#[test]
fn without_steps_it_is_a_rolling_update() {
    let mut world = by_pods(4, json!({}));
    push(&mut world, NEW);
    until(&mut world, |world| {
        assert!(ready(world) >= 3 && pods(world, OLD) + pods(world, NEW) <= 5);
        world.status.stable_revision == Some(template(NEW).revision())
    });
    assert_eq!((pods(&world, OLD), pods(&world, NEW)), (0, 4));
}

#[test]
fn a_single_replica_is_joined_by_its_canary_and_never_missing() {
    let mut world = by_pods(1, json!({"steps": [{"setWeight": 50}, {"pause": {}}]}));
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Paused);
    assert_eq!((pods(&world, OLD), pods(&world, NEW), world.status.weight), (1, 1, Some(50)));
    say(&mut world, "1", InterventionAction::Approve);
    until(&mut world, |world| {
        assert!(ready(world) >= 1);
        world.status.phase == Phase::Ready
    });
}

#[test]
fn an_abort_walks_back_as_fast_as_pods_are_there() {
    let mut world =
        by_pods(10, json!({"steps": [{"setWeight": 80}, {"pause": {}}], "maxSurge": "20%", "maxUnavailable": 0}));
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Paused);
    assert_eq!((pods(&world, OLD), pods(&world, NEW)), (2, 8));
    say(&mut world, "1", InterventionAction::Abort);
    until(&mut world, |world| {
        assert!(ready(world) >= 10 && pods(world, OLD) + pods(world, NEW) <= 12);
        pods(world, NEW) == 0
    });
    assert_eq!((pods(&world, OLD), world.status.phase), (10, Phase::Aborted));
}

#[test]
fn a_canary_that_serves_nothing_goes_at_once() {
    let mut world =
        by_pods(4, json!({"steps": [{"setWeight": 50}, {"pause": {}}], "maxSurge": 0, "maxUnavailable": 1}));
    world.knobs.canary_never_ready = true;
    push(&mut world, NEW);
    world.run(TimeDelta::seconds(30));
    assert_eq!((pods(&world, OLD), pods(&world, NEW)), (3, 1), "one may be missing, no more");
    push(&mut world, OLD);
    world.run(TimeDelta::seconds(1));
    assert_eq!((pods(&world, OLD), pods(&world, NEW)), (4, 0));
}

#[test]
fn named_services_follow_their_side() {
    let named = json!({"stableService": "web-stable", "canaryService": "web-canary",
        "steps": [{"setWeight": 50}, {"pause": {}}]});
    let mut world = by_pods(4, named);
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Paused);
    let selects = |world: &World, name: &str| world.services[name].selects.clone().unwrap();
    let (old, new) = (template(OLD).revision(), template(NEW).revision());
    assert_eq!((selects(&world, "web-stable"), selects(&world, "web-canary")), (old.clone(), new));
    push(&mut world, OLD);
    world.run(TimeDelta::hours(1));
    assert_eq!((selects(&world, "web-stable"), selects(&world, "web-canary")), (old.clone(), old));
}

#[test]
fn a_lost_status_finds_what_is_stable_by_age() {
    let mut world = by_pods(5, json!({"steps": [{"setWeight": 80}, {"pause": {}}]}));
    world.ledger.configured = false;
    world.ledger.position = None;
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Paused);
    world.ledger.last_good = None;
    world.lose_status();
    world.run(TimeDelta::hours(1));
    assert_eq!(
        world.status.stable_revision,
        Some(template(OLD).revision()),
        "the many pods of the canary prove nothing"
    );
    assert_eq!(world.status.phase, Phase::Paused);
}

#[test]
fn more_pods_than_the_weight_needs_and_never_fewer() {
    let steps = json!([{"setCanaryScale": {"weight": 60}}, {"pause": {}}, {"setWeight": 80}, {"setCanaryScale": {"replicas": 1}},
        {"setWeight": 20}, {"pause": {}}, {"setCanaryScale": {"matchTrafficWeight": true}}, {"pause": {}}]);
    let mut world = deployed(spec(OLD, json!({"steps": steps})));
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Paused);
    assert_eq!((pods(&world, NEW), canary_share(&world)), (3, 0), "pods without traffic");
    say(&mut world, "1", InterventionAction::Approve);
    until(&mut world, |world| canary_share(world) == 80);
    until(&mut world, |world| world.status.message.contains("1 pod"));
    assert_eq!(pods(&world, NEW), 4, "80 % of the traffic needs four pods, whatever was asked for");
    until(&mut world, |world| world.status.phase == Phase::Paused);
    assert_eq!((pods(&world, NEW), canary_share(&world)), (1, 20));
    say(&mut world, "2", InterventionAction::Approve);
    until(&mut world, |world| world.status.phase == Phase::Paused && world.status.message.contains("0 of 1"));
    assert_eq!((pods(&world, NEW), canary_share(&world)), (1, 20));
}

/// Plays on until `done`. At each moment no more pods have a process than are asked for.
fn never_too_many(world: &mut World, most: usize, done: impl Fn(&World) -> bool) -> Vec<String> {
    let mut waits = Vec::new();
    let end = world.now + TimeDelta::hours(2);
    while !done(world) {
        assert!(world.now < end, "{:?}: {}", world.status.phase, world.status.message);
        if let Happened::Waits(wait) = world.turn() {
            let at = world.wakes_at(&wait).unwrap_or_else(|| panic!("waits for ever: {wait:?}"));
            waits.push(wait.message);
            world.advance_to(at);
        }
        let alive = world.replica_sets.values().map(|set| set.pods.len() + set.ending.len());
        assert!(alive.clone().sum::<usize>() <= most, "{:?}", alive.collect::<Vec<_>>());
    }
    waits
}

#[test]
fn without_surge_a_new_pod_comes_when_the_old_one_has_ended() {
    for (replicas, canary) in [
        (1, json!({"maxSurge": 0, "maxUnavailable": 1})),
        (20, json!({"maxSurge": "0%", "maxUnavailable": "100%"})),
        (20, json!({"maxSurge": 0, "maxUnavailable": 3, "steps": [{"setWeight": 20}, {"pause": {"duration": "30s"}}]})),
    ] {
        let most = usize::try_from(replicas).unwrap();
        let mut world = by_pods(replicas, canary);
        // The process uses all the time it is given.
        world.knobs.grace = TimeDelta::seconds(20);
        push(&mut world, NEW);
        let stable = template(NEW).revision();
        let waits = never_too_many(&mut world, most, |world| {
            world.status.phase == Phase::Ready && world.status.stable_revision.as_ref() == Some(&stable)
        });
        assert!(waits.iter().any(|wait| wait.contains("are still ending")), "{waits:?}");

        // A version that never gets ready is given up, and is gone before what was there comes back.
        world.knobs.canary_never_ready = true;
        push(&mut world, "i:3");
        never_too_many(&mut world, most, |world| world.status.phase == Phase::Aborted);
        world.knobs.canary_never_ready = false;
        never_too_many(&mut world, most, |world| ready(world) == most);
        assert_eq!(pods(&world, NEW), most);
    }
}

#[test]
fn with_surge_nobody_waits_for_a_pod_that_takes_its_time_to_end() {
    let mut world = by_pods(4, json!({"maxSurge": 1, "maxUnavailable": 0}));
    world.knobs.grace = TimeDelta::hours(1);
    push(&mut world, NEW);
    let began = world.now;
    let stable = template(NEW).revision();
    never_too_many(&mut world, 8, |world| {
        world.status.phase == Phase::Ready && world.status.stable_revision.as_ref() == Some(&stable)
    });
    assert!(world.now - began < TimeDelta::minutes(5));
}
