//! The strategy is edited: in flight, together with the image, at rest.

use super::*;
use crate::api::{ReleaseState, Strategy};
use crate::engine::Effect;

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn strategy(value: serde_json::Value) -> Strategy {
    serde_json::from_value(value).unwrap()
}

fn blue_green() -> Strategy {
    strategy(json!({"blueGreen": {"activeService": "web-stable", "previewService": "web-canary",
        "postPromotionAnalysis": {"templates": [{"templateName": "errors"}]}}}))
}

fn by_pods() -> Strategy {
    strategy(json!({"canary": {"steps": [{"setWeight": 20}, {"pause": {"duration": "60s"}}]}}))
}

fn other_route() -> Strategy {
    let mut strategy = spec(OLD, json!({})).strategy;
    let canary = strategy.canary.as_mut().unwrap();
    canary.traffic_routing =
        serde_json::from_value(json!({"gatewayAPI": {"httpRoutes": [{"name": "web-2"}]}})).unwrap();
    strategy
}

fn other_services() -> Strategy {
    let mut strategy = spec(OLD, json!({})).strategy;
    let canary = strategy.canary.as_mut().unwrap();
    (canary.stable_service, canary.canary_service) = (Some("stable-2".into()), Some("canary-2".into()));
    strategy
}

/// Version 2 has 60 % of the traffic.
fn at_60() -> World {
    let mut world = deployed(spec(OLD, json!({})));
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| canary_share(world) == 60 && world.routes[&web_route()].accept_at.is_none());
    until(&mut world, |world| world.in_flight().is_some_and(|release| release.reached_at.is_some()));
    world
}

fn ready(world: &World, revision: &str) -> usize {
    let set = world.replica_sets.get(revision);
    set.map_or(0, |set| set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count())
}

/// Nobody is sent to a Service that has nobody.
fn served(world: &World) {
    for (key, route) in &world.routes {
        let (stable, canary) = &route.services;
        for rule in &route.rules {
            for (service, weight) in [(stable, rule.stable), (canary, rule.canary)] {
                let Some(revision) = &world.services[service].selects else { continue };
                assert!(
                    weight == 0 || ready(world, revision) > 0,
                    "{key} sends {weight} to {service}, which has nobody"
                );
            }
        }
    }
}

#[test]
fn whatever_takes_its_place_traffic_goes_back_by_the_old_strategy_first() {
    let others = [
        ("blue/green", blue_green()),
        ("no routes", by_pods()),
        ("another route", other_route()),
        ("other Services", other_services()),
    ];
    for (name, other) in others {
        for image in [NEW, "i:3"] {
            let mut world = at_60();
            world.edit_spec(|spec| {
                spec.strategy = other.clone();
                spec.template = template(image);
            });
            let renamed = name == "other Services";
            let before = world.recorded.len();
            until(&mut world, |world| {
                served(world);
                canary_share(world) == 0
            });
            if !renamed {
                let selected = world.services["web-stable"].selects.clone();
                assert_eq!(selected, Some(template(OLD).revision()), "{name}: nothing else has moved yet");
            }
            until(&mut world, |world| {
                served(world);
                world.status.stable_revision == Some(template(image).revision())
            });
            world.run(TimeDelta::hours(1));
            assert_eq!(world.status.phase, Phase::Ready, "{name}: {}", world.status.message);
            assert_eq!(canary_share(&world), 0, "{name}: no weight is left behind");
            let told = &world.recorded[before..];
            assert_eq!((told[0].event, told[0].reason.as_str()), (Event::Superseded, "StrategyChanged"), "{name}");
            assert_eq!((told[1].event, told[1].weight_from), (Event::Started, 0), "{name}: it begins again");
            let runs = world.replica_sets.values().filter(|set| set.replicas > 0).count();
            assert_eq!(runs, 1, "{name}");
        }
    }
}

#[test]
fn blue_green_that_becomes_a_canary_gives_live_traffic_back() {
    let mut world = deployed(RolloutSpec { strategy: blue_green(), ..spec(OLD, json!({})) });
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.services["web-stable"].selects == Some(template(NEW).revision()));
    world.edit_spec(|other| other.strategy = spec(OLD, json!({})).strategy);
    until(&mut world, |world| world.services["web-stable"].selects == Some(template(OLD).revision()));
    until(&mut world, |world| {
        served(world);
        world.status.stable_revision == Some(template(NEW).revision())
    });
    assert!(events(&world).contains(&Event::Superseded));
}

#[test]
fn what_has_passed_every_gate_is_finished_by_the_strategy_it_began_with() {
    let mut world = at_60();
    until(&mut world, |world| world.in_flight().is_some_and(|release| release.state == ReleaseState::Promoting));
    world.edit_spec(|spec| spec.strategy = blue_green());
    until(&mut world, |world| {
        served(world);
        world.status.stable_revision == Some(template(NEW).revision())
    });
    assert!(!events(&world).contains(&Event::Superseded));
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, world.status.strategy.as_str()), (Phase::Ready, "BlueGreen"));
}

#[test]
fn at_rest_nothing_moves_and_nothing_is_told() {
    let mut world = deployed(spec(OLD, json!({})));
    let (told, writes) = (world.recorded.len(), world.writes.len());
    world.edit_spec(|spec| spec.strategy = blue_green());
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, world.recorded.len()), (Phase::Ready, told));
    let moved = world.writes[writes..]
        .iter()
        .any(|write| matches!(&write.written, Written::Effect(Effect::Scale { .. } | Effect::SetWeight { .. })));
    assert!(!moved);
}

#[test]
fn a_gateway_that_accepts_nothing_can_be_left() {
    let mut world = at_60();
    for route in world.routes.values_mut() {
        route.trouble = Some("no such parent".to_owned());
    }
    world.edit_spec(|spec| spec.strategy = by_pods());
    until(&mut world, |world| world.status.steering == Some(by_pods().steering()));
    assert_eq!(canary_share(&world), 0);
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
}

#[test]
fn an_abort_that_is_asked_for_while_a_strategy_is_left_is_recorded_as_one() {
    let mut world = at_60();
    world.edit_spec(|spec| {
        spec.strategy = blue_green();
        spec.template = template(OLD);
    });
    world.run(TimeDelta::hours(1));
    let last = world.recorded.last().unwrap();
    assert_eq!((last.event, last.reason.as_str()), (Event::Aborted, "Revert"));
    assert_eq!((world.status.phase, canary_share(&world)), (Phase::Ready, 0));
}

#[test]
fn any_series_of_edits_ends_well_and_loses_nobody_on_the_way() {
    for seed in 0..300_u32 {
        let mut random = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
        let mut draw = |bound: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 16) % bound
        };
        let mut world = deployed(spec(OLD, json!({})));
        world.knobs.endpoint_delay = TimeDelta::milliseconds(i64::from(draw(3)) * 700);
        for _ in 0..6 {
            let (image, other, wait) = (format!("i:{}", 1 + draw(4)), draw(5), [0, 1, 3, 9, 40, 70][draw(6) as usize]);
            world.edit_spec(|edited| {
                edited.template = template(&image);
                edited.strategy = match other {
                    0 => blue_green(),
                    1 => by_pods(),
                    2 => other_route(),
                    3 => other_services(),
                    _ => spec(OLD, json!({})).strategy,
                };
            });
            if other == 3 {
                // Who renames Services prunes the old ones.
                let named = world.spec.references();
                let kept = [named.stable_service, named.canary_service];
                world.services.retain(|name, _| kept.contains(&Some(name.clone())));
                world.routes.retain(|key, _| named.routes.contains(key));
            }
            let end = world.now + TimeDelta::seconds(wait);
            for turn in 0.. {
                assert!(turn < 500, "seed {seed}: it never waits: {}", world.status.message);
                served(&world);
                let Happened::Waits(waits) = world.turn() else { continue };
                let at = world.wakes_at(&waits).unwrap_or(end).min(end);
                world.advance_to(at);
                if at == end {
                    break;
                }
            }
        }
        world.run(TimeDelta::hours(2));
        assert_eq!(world.status.phase, Phase::Ready, "seed {seed}: {}", world.status.message);
        assert_eq!(world.status.stable_revision, Some(world.spec.template.revision()), "seed {seed}");
        let named = world.spec.references().routes;
        let astray = world.routes.iter().find(|(key, route)| named.contains(key) && route.rules[0].canary != 0);
        assert_eq!(astray, None, "seed {seed}");
        assert_eq!(world.replica_sets.values().filter(|set| set.replicas > 0).count(), 1, "seed {seed}");
    }
}
