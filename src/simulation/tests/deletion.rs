//! A Rollout is deleted: traffic goes back, and what it steered is handed back, before it is gone.

use super::*;
use crate::api::{Phase, ReleaseState};
use crate::engine::{Effect, Ending};

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn blue_green() -> RolloutSpec {
    let mut spec = spec(OLD, json!({}));
    spec.strategy = serde_json::from_value(json!({"blueGreen": {"activeService": "web-stable",
        "previewService": "web-canary", "postPromotionAnalysis": {"templates": [{"templateName": "errors"}]}}}))
    .unwrap();
    spec
}

fn by_pods(canary: serde_json::Value) -> RolloutSpec {
    let mut spec = spec(OLD, json!({}));
    spec.strategy = serde_json::from_value(json!({"canary": canary})).unwrap();
    spec
}

/// Version 2 of a canary has 60 % of the traffic.
fn at_60() -> World {
    let mut world = deployed(spec(OLD, json!({})));
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| canary_share(world) == 60 && world.routes[&web_route()].accept_at.is_none());
    world
}

/// Deletes the Rollout and lets it go. Until then no traffic goes to what has no pods, and nothing of the version on
/// trial is in reach of the stable Service.
fn delete(world: &mut World) -> Vec<Effect> {
    let trial = world.status.release.as_ref().map(|release| release.revision.clone());
    world.delete();
    let mut effects = Vec::new();
    let end = world.now + TimeDelta::minutes(20);
    while !world.gone {
        assert!(world.now < end, "it never goes: {}", world.status.message);
        match world.turn() {
            Happened::Performed(effect) => effects.push(effect),
            Happened::Written(_) => {}
            Happened::Waits(wait) => {
                let at = world.wakes_at(&wait).unwrap_or_else(|| panic!("waits for ever: {wait:?}"));
                world.advance_to(at);
            }
        }
        if let (Some(trial), Some(stable)) = (&trial, world.services.get("web-stable"))
            && stable.selects.is_none()
            && !world.gone
        {
            let left = world.replica_sets.get(trial).map_or(0, |set| set.pods.len());
            let stable = world.status.stable_revision.as_ref().filter(|stable| ready(world, stable) > 0);
            assert!(left == 0 || stable.is_none(), "the stable Service reaches {trial}");
        }
    }
    effects
}

fn ready(world: &World, revision: &str) -> usize {
    let set = world.replica_sets.get(revision);
    set.map_or(0, |set| set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count())
}

/// All is as git declares it, and stable has all the weight.
fn assert_handed_back(world: &World) {
    for (name, service) in &world.services {
        assert_eq!(service.selects, None, "{name} would select nobody");
    }
    for (key, route) in &world.routes {
        assert!(route.rules.iter().all(|rule| rule.holds(0)), "{key}: {:?}", route.rules);
        assert!(route.header_routes.is_empty(), "{key}");
    }
}

fn unfinished(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::RemoveFinalizer { unfinished } => unfinished.as_deref(),
        _ => None,
    })
}

#[test]
fn nothing_is_steered_before_a_deletion_is_sure_to_hand_it_back() {
    for spec in [spec(OLD, json!({})), blue_green(), by_pods(json!({}))] {
        let world = deployed(spec);
        let written: Vec<_> = world.writes.iter().map(|write| &write.written).collect();
        let first = written.iter().position(|it| matches!(it, Written::Effect(_))).unwrap();
        assert_eq!(written[first], &Written::Effect(Effect::AddFinalizer));
        assert!(world.finalizer);
    }
}

#[test]
fn one_that_an_older_operator_left_at_rest_is_guarded_too() {
    let mut world = deployed(spec(OLD, json!({})));
    world.finalizer = false;
    assert_eq!(world.turn(), Happened::Performed(Effect::AddFinalizer));
    assert!(matches!(world.turn(), Happened::Waits(wait) if wait.on == WaitOn::Nothing));
}

#[test]
fn at_rest_the_services_are_released_and_the_log_gets_its_last_entry() {
    for spec in
        [spec(OLD, json!({})), blue_green(), by_pods(json!({"stableService": "web-stable"})), by_pods(json!({}))]
    {
        let mut world = deployed(spec);
        let effects = delete(&mut world);
        assert_handed_back(&world);
        assert_eq!(unfinished(&effects), None);
        let last = world.recorded.last().unwrap();
        assert_eq!((last.event, last.reason.as_str()), (Event::HandedBack, "Deleted"));
        assert_eq!(events(&world).iter().filter(|event| **event == Event::HandedBack).count(), 1);
    }
}

#[test]
fn a_canary_in_flight_goes_back_first() {
    let mut world = at_60();
    let effects = delete(&mut world);
    assert_handed_back(&world);
    let position = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).unwrap();
    let back = position(|effect| matches!(effect, Effect::SetWeight { percent: 0, .. }));
    let shrunk = position(|effect| matches!(effect, Effect::Scale { replicas: 0, .. }));
    let released = position(|effect| matches!(effect, Effect::SelectEveryRevision { .. }));
    assert!(back < shrunk && shrunk < released, "{effects:?}");
    let last = world.recorded.last().unwrap();
    assert_eq!((last.event, last.weight_from, last.weight_to), (Event::HandedBack, 60, 0));
    assert!(last.message.contains("in flight"), "{}", last.message);
    assert_eq!(world.status.phase, Phase::Terminating);
    assert_eq!(world.status.release, None);
}

#[test]
fn header_routes_go() {
    let steps = json!({"steps": [{"setWeight": 20}, {"setHeaderRoute": {"name": "beta",
        "match": [{"headerName": "x", "headerValue": {"exact": "y"}}]}}, {"pause": {}}]});
    let mut world = deployed(spec(OLD, steps));
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| !world.routes[&web_route()].header_routes.is_empty());
    delete(&mut world);
    assert_handed_back(&world);
}

#[test]
fn after_the_switch_of_blue_green_the_active_service_goes_back_while_the_old_side_stands() {
    let mut world = deployed(blue_green());
    let old = world.status.stable_revision.clone().unwrap();
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.services["web-stable"].selects.as_ref().is_some_and(|it| *it != old));
    let effects = delete(&mut world);
    let back = Effect::SelectRevision { service: "web-stable".into(), revision: old };
    assert!(effects.contains(&back), "{effects:?}");
    assert_handed_back(&world);
}

#[test]
fn in_the_middle_of_a_promotion_it_goes_back_too() {
    let mut world = deployed(spec(OLD, json!({})));
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.in_flight().is_some_and(|release| release.state == ReleaseState::Promoting));
    delete(&mut world);
    assert_handed_back(&world);
}

#[test]
fn a_first_version_on_its_way_leaves_nothing_behind() {
    let mut world = World::new(spec(OLD, json!({})), start());
    world.knobs.pod_ready_delay = TimeDelta::hours(1);
    world.run(TimeDelta::seconds(30));
    assert!(world.finalizer);
    delete(&mut world);
    assert_handed_back(&world);
    assert!(world.now < start() + TimeDelta::minutes(2), "nothing is waited for");
}

#[test]
fn a_route_that_is_gone_holds_nothing_up() {
    let mut world = at_60();
    world.routes.clear();
    let effects = delete(&mut world);
    assert_handed_back(&world);
    assert_eq!(unfinished(&effects), None);
}

#[test]
fn a_gateway_that_accepts_nothing_is_waited_for_a_bounded_time() {
    let mut world = at_60();
    for route in world.routes.values_mut() {
        route.trouble = Some("no such parent".to_owned());
    }
    let at = world.now;
    let effects = delete(&mut world);
    // All was written; that the gateway never took it is not for the Rollout to wait out.
    assert_handed_back(&world);
    assert!(world.now - at < TimeDelta::minutes(5), "{}", world.now - at);
    assert_eq!(unfinished(&effects), None);
}

#[test]
fn a_log_that_is_away_is_waited_for_a_bounded_time_and_it_is_said() {
    let mut world = at_60();
    world.let_ledger_be_away(true);
    let at = world.now;
    let effects = delete(&mut world);
    assert_handed_back(&world);
    assert!(world.now - at < TimeDelta::minutes(6), "{}", world.now - at);
    assert!(unfinished(&effects).unwrap().contains("not in the log yet"), "{effects:?}");

    let mut world = at_60();
    world.let_ledger_be_away(true);
    world.delete();
    world.run(TimeDelta::minutes(2));
    assert!(!world.gone && world.status.message.contains("not in the log yet"), "{}", world.status.message);
    world.let_ledger_be_away(false);
    world.run(TimeDelta::minutes(1));
    assert!(world.gone);
    assert_eq!(world.recorded.last().unwrap().event, Event::HandedBack);
}

#[test]
fn an_operator_that_was_away_still_hands_back() {
    let mut world = at_60();
    world.delete();
    // Nobody looked for an hour.
    world.advance_to(world.now + TimeDelta::hours(1));
    let effects = delete(&mut world);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::SelectEveryRevision { .. })), "{effects:?}");
    assert_handed_back(&world);
    assert_eq!(unfinished(&effects), None);
}

#[test]
fn a_stable_side_without_pods_holds_nothing_up() {
    let mut world = at_60();
    world.replica_sets.retain(|revision, _| Some(revision) != world.status.stable_revision.as_ref());
    delete(&mut world);
    assert_handed_back(&world);
}

#[test]
fn a_write_that_is_refused_does_not_tell_of_the_deletion_twice() {
    let mut world = at_60();
    world.delete();
    until(&mut world, |world| world.status.phase == Phase::Terminating);
    // As the controller does when the API server refuses an effect.
    world.status.phase = Phase::Stalled;
    delete(&mut world);
    assert_eq!(events(&world).iter().filter(|event| **event == Event::HandedBack).count(), 1);
}

#[test]
fn a_status_that_is_lost_meanwhile_keeps_nothing_from_going_back() {
    let mut world = at_60();
    world.delete();
    world.turn();
    world.lose_status();
    let effects = delete(&mut world);
    let back = effects.iter().position(|effect| matches!(effect, Effect::SetWeight { percent: 0, .. }));
    let released = effects.iter().position(|effect| matches!(effect, Effect::SelectEveryRevision { .. }));
    assert!(back < released, "{effects:?}");
    assert_handed_back(&world);
    assert_eq!(events(&world).iter().filter(|event| **event == Event::HandedBack).count(), 1);
}

#[test]
fn when_the_operator_is_uninstalled_pods_stay_and_it_goes_on_when_it_is_back() {
    let mut world = at_60();
    let desired = world.status.revision.clone();
    world.ending = Some(Ending::Uninstalled);
    world.run(TimeDelta::minutes(10));
    assert!(!world.finalizer && !world.gone);
    assert_handed_back(&world);
    let stable = world.status.stable_revision.clone().unwrap();
    assert_eq!((ready(&world, &stable), ready(&world, &desired)), (5, 0), "stable serves");
    assert_eq!(world.recorded.last().unwrap().reason, "Uninstalled");
    assert!(world.status.message.contains("the operator is being uninstalled"), "{}", world.status.message);
    // It is installed again: what git asks for begins again, by its steps.
    world.ending = None;
    let ended = world.run(TimeDelta::hours(1));
    assert!(matches!(&ended, Ended::Waits(wait) if wait.on == WaitOn::Nothing), "{ended:?}");
    assert!(world.finalizer);
    assert_eq!(world.status.stable_revision, Some(desired));
    assert!(world.status.conditions.iter().all(|condition| condition.type_ != "Terminating"));
    assert_eq!(world.services["web-stable"].selects, world.status.stable_revision);
}

#[test]
fn a_deletion_before_anything_was_done_is_over_at_once() {
    let mut world = World::new(spec(OLD, json!({})), start());
    world.delete();
    assert!(world.gone);
}

#[test]
fn while_the_strategy_is_changed_the_old_one_is_handed_back() {
    let mut world = at_60();
    world.edit_spec(|spec| spec.strategy = by_pods(json!({})).strategy);
    world.turn();
    delete(&mut world);
    assert_handed_back(&world);
}
