//! Requests that go to the canary by a header, whatever its weight: they find a pod, and they end before it goes.

use super::*;

const GRPC: RouteKind = RouteKind::Grpc;

/// Steps with a header route, over an HTTPRoute and a GRPCRoute of one name and a TCPRoute.
fn with_header_route(image: &str) -> RolloutSpec {
    spec(
        image,
        json!({
            "trafficRouting": {"gatewayAPI": {
                "httpRoutes": [{"name": "web"}], "grpcRoutes": [{"name": "web"}], "tcpRoutes": [{"name": "web"}]}},
            "abortScaleDownDelaySeconds": 0,
            "steps": [{"setHeaderRoute": {"name": "vip", "match": [
                          {"headerName": "X-Vip", "headerValue": {"exact": "1"}}]}},
                      {"pause": {"duration": "60s"}}, {"setWeight": 60}, {"pause": {"duration": "60s"}},
                      {"setHeaderRoute": {"name": "vip"}}, {"pause": {"duration": "60s"}}],
        }),
    )
}

fn new_version() -> World {
    let mut world = deployed(with_header_route("i:1"));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world
}

fn is_direct(world: &World) -> bool {
    world.routes.values().any(|route| !route.header_routes.is_empty())
}

/// Turns until `done`, and looks before each whether those who are sent to the canary directly are served by it.
fn watched(world: &mut World, done: impl Fn(&World) -> bool) {
    let canary = std::cell::RefCell::new(None);
    until(world, |world| {
        let selected = world.services["web-canary"].selects.clone();
        if is_direct(world) {
            let sets = &world.replica_sets[selected.as_ref().unwrap()];
            assert!(sets.replicas > 0, "no pod for those who are sent directly");
            let before = canary.borrow().clone().unwrap_or_else(|| selected.clone());
            assert_eq!(before, selected, "a Service in traffic was changed");
        }
        *canary.borrow_mut() = is_direct(world).then_some(selected);
        done(world)
    });
}

fn held(world: &World, kind: RouteKind) -> usize {
    world.routes[&RouteKey::new(kind, "web")].header_routes.len()
}

fn stage(world: &World) -> i32 {
    world.status.release.as_ref().map_or(-1, |release| release.stage)
}

#[test]
fn a_header_route_sends_some_requests_to_a_canary_without_weight() {
    let mut world = new_version();
    watched(&mut world, |world| stage(world) == 1);
    assert_eq!((held(&world, RouteKind::Http), held(&world, GRPC), held(&world, RouteKind::Tcp)), (1, 1, 0));
    assert_eq!(world.replica_sets[&template("i:2").revision()].replicas, 1, "one pod serves them");
    assert_eq!((world.status.weight, canary_share(&world)), (Some(0), 0));

    watched(&mut world, |world| stage(world) == 3);
    assert!(is_direct(&world), "weights change nothing");
    watched(&mut world, |world| stage(world) == 5);
    assert!(!is_direct(&world), "a step of the same name ended it");
    assert_eq!(world.status.weight, Some(60));
    watched(&mut world, |world| world.status.stable_revision == Some(template("i:2").revision()));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Ready);
}

#[test]
fn a_header_route_that_no_step_ends_ends_with_the_promotion() {
    let mut world = new_version();
    world.edit_spec(|spec| spec.strategy.canary.as_mut().unwrap().steps.truncate(4));
    watched(&mut world, |world| stage(world) == 4 && canary_share(world) == 100);
    assert!(is_direct(&world), "whoever had the canary has it until everybody does");
    watched(&mut world, |world| world.status.stable_revision == Some(template("i:2").revision()));
    world.run(TimeDelta::hours(1));
    assert!(!is_direct(&world));
    assert_eq!(world.status.phase, Phase::Ready);
}

#[test]
fn an_abort_ends_header_routes_and_drains_before_the_pods_go() {
    let mut world = new_version();
    watched(&mut world, |world| stage(world) == 1);
    say(&mut world, "1", crate::api::InterventionAction::Abort);
    watched(&mut world, |world| !is_direct(world));
    let ended = world.now;
    let canary = template("i:2").revision();
    watched(&mut world, |world| world.replica_sets.get(&canary).is_none_or(|set| set.replicas == 0));
    let drain = world.spec.strategy.drain().delta();
    assert!(world.now - ended >= drain, "{} is no time to drain", world.now - ended);
    assert_eq!(world.status.phase, Phase::Aborted);
}

#[test]
fn another_version_takes_the_canary_service_only_when_nobody_is_sent_there() {
    let mut world = new_version();
    watched(&mut world, |world| stage(world) == 1);
    world.edit_spec(|spec| spec.template = template("i:3"));
    let third = template("i:3").revision();
    watched(&mut world, |world| !is_direct(world));
    let ended = world.now;
    watched(&mut world, |world| world.services["web-canary"].selects.as_ref() == Some(&third));
    assert!(!is_direct(&world));
    assert!(world.now - ended >= world.spec.strategy.drain().delta(), "what was sent there had no time to end");
    watched(&mut world, is_direct);
    watched(&mut world, |world| world.status.stable_revision.as_ref() == Some(&third));
}

#[test]
fn when_the_canary_dies_nobody_is_sent_to_it_until_it_is_back() {
    let mut world = new_version();
    watched(&mut world, |world| stage(world) == 1);
    world.kill_pods(&template("i:2").revision(), 100);
    until(&mut world, |world| !is_direct(world));
    assert_eq!(stage(&world), 1);
    watched(&mut world, is_direct);
    assert!(world.services["web-canary"].published.values().sum::<i32>() > 0);
}

#[test]
fn a_paused_rollout_begins_no_header_route_and_keeps_what_it_has() {
    let mut world = new_version();
    until(&mut world, |world| world.replica_sets.contains_key(&template("i:2").revision()));
    world.edit_spec(|spec| spec.paused = true);
    world.run(TimeDelta::hours(1));
    assert!(!is_direct(&world));
    world.edit_spec(|spec| spec.paused = false);
    watched(&mut world, |world| stage(world) == 1);
    world.edit_spec(|spec| spec.paused = true);
    world.run(TimeDelta::hours(1));
    assert!(is_direct(&world));
}

#[test]
fn draining_begins_when_the_header_route_ends_however_quick_the_gateway_is() {
    let mut world = new_version();
    watched(&mut world, |world| stage(world) == 1);
    let seen = world.status.seen.clone();
    let later = world.now + TimeDelta::minutes(1);
    let weight = |world: &World| {
        let weight = crate::engine::converge::facts(&world.snapshot(), &seen, later).weight.unwrap();
        (weight.value, weight.direct, weight.since)
    };
    assert_eq!(weight(&world), (0, true, seen.weight.as_ref().unwrap().since), "nothing has changed");
    // Accepted before the operator ever saw it unaccepted.
    world.routes.values_mut().for_each(|route| route.header_routes.clear());
    assert_eq!(weight(&world), (0, false, later));
}
