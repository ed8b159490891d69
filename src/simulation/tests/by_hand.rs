//! What people do by hand to what is steered, and what they edit while it moves.

use super::*;
use crate::api::{InterventionAction, Phase};

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn revision(image: &str) -> String {
    template(image).revision()
}

/// Version 2 has 20 %, and a person has paused it there.
fn paused_at_20() -> World {
    let steps = json!({"steps": [{"setWeight": 20}, {"pause": {}}, {"setWeight": 60}, {"pause": {"duration": "60s"}}]});
    let mut world = deployed(spec(OLD, steps));
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.status.phase == Phase::Paused);
    world.advance_to(world.now + TimeDelta::seconds(30));
    settled(&mut world);
    assert_eq!(canary_share(&world), 20);
    world
}

/// Takes turns until nothing is left to do for now.
fn settled(world: &mut World) {
    for _ in 0..200 {
        if let Happened::Waits(wait) = world.turn() {
            match wait.until.or_else(|| world.next_event()) {
                Some(at) if at - world.now < TimeDelta::minutes(2) => world.advance_to(at),
                _ => return,
            }
        }
    }
    panic!("it does not settle: {}", world.status.message);
}

/// Takes turns until `done`; traffic never stays with a side that has no ready pod while the other one has some.
fn served_until(world: &mut World, done: impl Fn(&World) -> bool) {
    let end = world.now + TimeDelta::minutes(30);
    let mut astray: Option<DateTime<Utc>> = None;
    while !done(world) {
        assert!(world.now < end, "{:?}: {}", world.status.phase, world.status.message);
        if let Happened::Waits(wait) = world.turn() {
            let at = world.wakes_at(&wait).unwrap_or_else(|| panic!("waits for ever: {wait:?}"));
            world.advance_to(at);
        }
        let published = |name: &str| world.services[name].published.values().sum::<i32>();
        let share = canary_share(world);
        let lost = share > 0 && published("web-canary") == 0 && published("web-stable") > 0
            || share < 100 && published("web-stable") == 0 && published("web-canary") > 0;
        astray = lost.then(|| astray.unwrap_or(world.now));
        let since = astray.map_or(TimeDelta::zero(), |since| world.now - since);
        assert!(since <= TimeDelta::seconds(2), "{share} % with nobody there: {:?}", world.services);
    }
}

fn place(world: &World) -> (i32, Option<DateTime<Utc>>, usize) {
    let release = world.status.release.as_ref().unwrap();
    (release.stage, release.reached_at, world.recorded.len())
}

#[test]
fn a_replica_set_that_is_deleted_comes_back_and_traffic_follows_who_can_serve() {
    for gone in [vec![OLD], vec![NEW], vec![OLD, NEW]] {
        let mut world = paused_at_20();
        let before = place(&world);
        let deleted = world.now;
        for image in &gone {
            world.delete_replica_set(&revision(image));
        }
        served_until(&mut world, |world| gone.iter().all(|image| world.replica_sets.contains_key(&revision(image))));
        assert!(world.now - deleted <= TimeDelta::seconds(5), "{gone:?}");
        for image in [OLD, NEW] {
            assert_eq!(world.replica_sets[&revision(image)].template, template(image), "as it was recorded");
        }
        let whole = |world: &World| {
            let all = |image: &str| {
                let set = &world.replica_sets[&revision(image)];
                set.pods.iter().all(|pod| pod.ready_for(TimeDelta::zero(), world.now))
            };
            all(OLD) && all(NEW) && canary_share(world) == 20 && world.routes[&web_route()].accept_at.is_none()
        };
        served_until(&mut world, whole);
        settled(&mut world);
        assert_eq!(place(&world), before, "{gone:?}: neither the step nor its time has changed");
    }
}

#[test]
fn an_abort_while_the_stable_side_is_gone_is_recorded_at_once_and_done_when_it_is_back() {
    let mut world = paused_at_20();
    world.knobs.pod_ready_delay = TimeDelta::minutes(5);
    world.delete_replica_set(&revision(OLD));
    until(&mut world, |world| canary_share(world) == 100);
    say(&mut world, "abort", InterventionAction::Abort);
    let asked = world.now;
    served_until(&mut world, |world| events(world).last() == Some(&Event::Aborted));
    assert!(world.now - asked <= TimeDelta::seconds(1));
    assert_eq!(canary_share(&world), 100, "only the canary can serve");
    served_until(&mut world, |world| canary_share(world) == 0);
    assert!(world.now - asked >= TimeDelta::minutes(4), "{}", world.now - asked);
    settled(&mut world);
    assert_eq!(world.status.phase, Phase::Aborted);
}

#[test]
fn what_is_paused_at_rest_is_looked_after_and_begins_when_it_is_let_go() {
    let mut world = deployed(spec(OLD, json!({})));
    world.edit_spec(|spec| spec.paused = true);
    world.edit_spec(|spec| spec.template = template(NEW));
    settled(&mut world);
    assert_eq!(world.status.phase, Phase::Paused);
    assert!(world.status.message.contains("spec.paused") && world.status.message.contains(&revision(NEW)));
    // It is scaled, and a node is drained: the old version serves at full size, and the new one has nothing.
    world.edit_spec(|spec| spec.replicas = Some(6));
    settled(&mut world);
    world.kill_pods(&revision(OLD), 3);
    settled(&mut world);
    world.advance_to(world.now + TimeDelta::minutes(5));
    settled(&mut world);
    assert_eq!(world.services["web-stable"].published.get(&revision(OLD)), Some(&6));
    assert!(!world.replica_sets.contains_key(&revision(NEW)));
    assert_eq!(canary_share(&world), 0);
    world.edit_spec(|spec| spec.paused = false);
    until(&mut world, |world| world.status.phase == Phase::Ready);
    let told = events(&world);
    assert_eq!(told.iter().filter(|event| **event == Event::StepCompleted).count(), 4, "each step: {told:?}");
    assert_eq!(world.status.stable_revision, Some(revision(NEW)));
}

#[test]
fn a_route_that_is_reset_by_hand_while_all_is_paused_is_put_back() {
    let mut world = paused_at_20();
    world.edit_spec(|spec| spec.paused = true);
    settled(&mut world);
    let before = place(&world);
    world.edit_weights(&web_route(), 100, 0);
    served_until(&mut world, |world| canary_share(world) == 20);
    settled(&mut world);
    assert_eq!(place(&world).0, before.0, "pause means no steps, not no care");
}

#[test]
fn steps_that_are_edited_in_flight_never_promote_by_themselves() {
    let steps = |weights: &[i32], pause: &str| {
        let steps =
            weights.iter().flat_map(|weight| [json!({"setWeight": weight}), json!({"pause": {"duration": pause}})]);
        serde_json::Value::Array(steps.collect())
    };
    let many: Vec<i32> = (0..200).map(|number| number / 2).collect();
    for (name, edited, ends_at) in [
        ("one step", json!([{"setWeight": 100}]), None),
        ("none", json!([]), None),
        ("other times", steps(&[10, 20, 50, 80, 100], "7m"), Some(50)),
        ("shorter and lower", steps(&[5, 10], "5m"), None),
        ("four hundred", steps(&many, "5m"), None),
    ] {
        let mut world = deployed(spec(OLD, json!({"steps": steps(&[10, 20, 50, 80, 100], "5m")})));
        world.edit_spec(|spec| spec.template = template(NEW));
        until(&mut world, |world| canary_share(world) == 50);
        world.advance_to(world.now + TimeDelta::seconds(30));
        world.edit_spec(|spec| {
            spec.strategy.canary.as_mut().unwrap().steps = serde_json::from_value(edited).unwrap();
        });
        let edit = world.now;
        let mut most = 0;
        while world.now < edit + TimeDelta::minutes(2) {
            if let Happened::Waits(wait) = world.turn() {
                let at = world.wakes_at(&wait).unwrap_or(edit + TimeDelta::minutes(2));
                world.advance_to(at.min(edit + TimeDelta::minutes(2)));
            }
            most = most.max(canary_share(&world));
        }
        assert!(most <= 50, "{name}: it went on to {most} %");
        assert_ne!(world.status.stable_revision, Some(revision(NEW)), "{name}");
        let changes: Vec<_> = world.recorded.iter().filter(|it| it.event == Event::PlanChanged).collect();
        assert_eq!(changes.len(), 1, "{name}: {:?}", events(&world));
        if let Some(weight) = ends_at {
            assert_eq!(canary_share(&world), weight, "{name}");
        }
        assert!(!world.status.message.is_empty(), "{name}");
    }
}

#[test]
fn a_stable_version_that_serves_nothing_does_not_hold_its_fix_up() {
    let steps = json!([{"setWeight": 20}, {"pause": {"duration": "60s"}}, {"setWeight": 60}]);
    let routed = spec(OLD, json!({"steps": steps.clone()}));
    let mut by_pods = routed.clone();
    by_pods.strategy = serde_json::from_value(json!({"canary": {"steps": steps}})).unwrap();
    let mut blue_green = routed.clone();
    blue_green.strategy = serde_json::from_value(json!({"blueGreen": {
        "activeService": "web-stable", "previewService": "web-canary"}}))
    .unwrap();
    for (name, spec) in [("routes", routed), ("pods", by_pods), ("blue/green", blue_green)] {
        let mut world = deployed(spec);
        let broken = |world: &mut World| {
            for pod in &mut world.replica_sets.get_mut(&revision(OLD)).unwrap().pods {
                pod.ready_at = None;
            }
        };
        broken(&mut world);
        world.edit_spec(|spec| spec.template = template(NEW));
        let edit = world.now;
        let mut least = 5;
        while world.status.stable_revision != Some(revision(NEW)) {
            assert!(world.now < edit + TimeDelta::minutes(20), "{name}: {}", world.status.message);
            if world.replica_sets.contains_key(&revision(OLD)) {
                broken(&mut world);
            }
            if let Happened::Waits(wait) = world.turn() {
                let at = world.wakes_at(&wait).unwrap_or_else(|| panic!("{name}: waits for ever: {wait:?}"));
                world.advance_to(at);
            }
            if name == "routes" && canary_share(&world) == 100 && world.routes[&web_route()].accept_at.is_none() {
                least = world.replica_sets[&revision(NEW)].replicas;
            }
        }
        assert_eq!(least, 5, "{name}: who has all the traffic has all the pods");
        assert!(!events(&world).contains(&Event::Aborted), "{name}");
        assert!(world.now >= edit + TimeDelta::seconds(60) || name == "blue/green", "{name}: no step was left out");
    }
}
