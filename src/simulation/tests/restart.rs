//! New pods of the same version: asked for by a person or in git, at rest and in the middle of a release.

use super::*;
use crate::api::{InterventionAction, Phase};
use crate::engine::decide::decide;

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn revision(image: &str) -> String {
    template(image).revision()
}

fn ready(world: &World, image: &str) -> usize {
    let set = world.replica_sets.get(&revision(image));
    set.map_or(0, |set| set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count())
}

fn published(world: &World, service: &str) -> i32 {
    world.services[service].published.values().sum()
}

/// Turns until everything is newer than `request`, with `check` after each; gives the pods that were made.
fn restarted(world: &mut World, request: DateTime<Utc>, check: impl Fn(&World)) {
    let end = world.now + TimeDelta::minutes(20);
    let is_done = |world: &World| world.status.restart.as_ref().is_some_and(|it| it.done && it.at >= request);
    let mut turns = 0;
    while !is_done(world) {
        turns += 1;
        assert!(turns < 2000, "{:?}", &world.writes[world.writes.len() - 6..]);
        assert!(world.now < end, "{:?}: {}", world.status.restart, world.status.message);
        if let Happened::Waits(wait) = world.turn() {
            let at = world.wakes_at(&wait).unwrap_or_else(|| panic!("waits for ever: {wait:?}"));
            world.advance_to(at);
        }
        check(world);
    }
    let old =
        |world: &World| world.replica_sets.values().flat_map(|set| &set.pods).any(|pod| pod.created_at <= request);
    assert!(!old(world), "it is said to be done, and an old pod is left");
}

fn idle(world: &mut World) {
    for _ in 0..100 {
        if let Happened::Waits(wait) = world.turn() {
            match world.wakes_at(&wait) {
                Some(at) if at - world.now < TimeDelta::minutes(2) => world.advance_to(at),
                _ => return,
            }
        }
    }
    panic!("it does not come to rest: {}", world.status.message);
}

#[test]
fn a_restart_at_rest_replaces_every_pod_and_none_is_missing_meanwhile() {
    for replicas in [1, 2, 6] {
        let mut spec = spec(OLD, json!({}));
        spec.replicas = Some(replicas);
        let mut world = deployed(spec);
        let told = events(&world).len();
        say(&mut world, "restart", InterventionAction::Restart);
        let request = world.now;
        world.turn();
        assert_eq!(world.status.phase, Phase::Progressing, "whoever waits for Ready from now on waits for new pods");
        restarted(&mut world, request, |world| {
            assert!(ready(world, OLD) >= usize::try_from(replicas).unwrap(), "a pod is missing");
            assert!(published(world, "web-stable") >= replicas, "an endpoint is missing");
            assert!(ready(world, OLD) <= usize::try_from(replicas + (replicas + 3) / 4).unwrap(), "too many");
        });
        idle(&mut world);
        assert_eq!(world.status.phase, Phase::Ready);
        assert_eq!(ready(&world, OLD), usize::try_from(replicas).unwrap());
        assert_eq!(events(&world)[told..], [Event::Restarting, Event::Restarted]);
        assert_eq!(world.recorded[told].actor.as_deref(), Some("actor-restart"));
    }
}

#[test]
fn a_restart_in_the_middle_of_a_canary_of_one_leaves_no_side_without_a_pod() {
    let mut spec = spec(OLD, json!({"steps": [{"setWeight": 50}, {"pause": {}}]}));
    spec.replicas = Some(1);
    let mut world = deployed(spec);
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.status.phase == Phase::Paused);
    idle(&mut world);
    let before = world.status.release.clone();
    world.advance_to(world.now + TimeDelta::seconds(30));
    say(&mut world, "restart", InterventionAction::Restart);
    let request = world.now;
    restarted(&mut world, request, |world| {
        assert!(published(world, "web-stable") >= 1 && published(world, "web-canary") >= 1, "{:?}", world.services);
        assert_eq!(canary_share(world), 50);
        assert_eq!(world.status.phase, Phase::Paused);
    });
    idle(&mut world);
    assert_eq!(world.status.release, before, "neither the step nor its time has changed");
    assert_eq!((ready(&world, OLD), ready(&world, NEW)), (1, 1));
}

#[test]
fn who_sees_no_pods_does_not_take_a_restart_for_a_size_that_is_wrong() {
    // As the plugin does, which may not be allowed to.
    let mut world = deployed(spec(OLD, json!({})));
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.in_flight().is_some_and(|release| release.stage == 1));
    world.advance_to(world.now + TimeDelta::seconds(2));
    say(&mut world, "restart", InterventionAction::Restart);
    until(&mut world, |world| world.replica_sets[&revision(OLD)].replicas > 5);
    idle_for_now(&mut world);
    let mut snapshot = world.snapshot();
    for state in snapshot.revisions.values_mut() {
        state.pods.clear();
    }
    let turn = decide(&snapshot, world.now);
    assert!(matches!(&turn, crate::engine::Turn::Wait(_)), "{turn:?}");
}

/// Turns until one waits.
fn idle_for_now(world: &mut World) {
    while !matches!(world.turn(), Happened::Waits(_)) {}
}

/// The new pod begins while the old one ends, as its ReplicaSet makes it; it is the ready ones that are never two.
#[test]
fn with_no_surge_the_old_pod_goes_first_in_a_restart() {
    let mut spec = spec(OLD, json!({}));
    spec.replicas = Some(1);
    spec.strategy = serde_json::from_value(json!({"canary": {"maxSurge": 0, "maxUnavailable": 1}})).unwrap();
    let mut world = deployed(spec);
    world.knobs.grace = TimeDelta::seconds(20);
    say(&mut world, "restart", InterventionAction::Restart);
    let request = world.now;
    restarted(&mut world, request, |world| assert!(ready(world, OLD) <= 1));
}

#[test]
fn a_restart_in_git_waits_for_its_time_and_is_not_repeated() {
    let mut world = deployed(spec(OLD, json!({})));
    let told = events(&world).len();
    let past = world.now - TimeDelta::days(1);
    world.edit_spec(|spec| spec.restart_at = Some(past));
    idle(&mut world);
    assert_eq!(events(&world).len(), told, "all pods are newer: nothing is to be done or told");
    let at = world.now + TimeDelta::seconds(90);
    world.edit_spec(|spec| spec.restart_at = Some(at));
    while world.status.restart.as_ref().is_none_or(|restart| restart.at < at) {
        if let Happened::Waits(wait) = world.turn() {
            let next = world.wakes_at(&wait).expect("the time that was asked for is waited for");
            world.advance_to(next);
        }
    }
    assert!(world.now >= at && world.now < at + TimeDelta::seconds(2), "{}", world.now);
    restarted(&mut world, at, |world| assert!(published(world, "web-stable") >= 5));
    idle(&mut world);
    world.edit_spec(|spec| spec.restart_at = None);
    idle(&mut world);
    assert_eq!(events(&world)[told..], [Event::Restarting, Event::Restarted]);
}

#[test]
fn a_restart_whose_new_pods_never_come_holds_up_no_release() {
    let mut world = deployed(spec(OLD, json!({})));
    // From now on nothing new of the old version becomes ready.
    world.knobs.pod_ready_delay = TimeDelta::days(1);
    say(&mut world, "restart", InterventionAction::Restart);
    for _ in 0..20 {
        world.turn();
    }
    assert_eq!(ready(&world, OLD), 5, "no old pod went");
    world.knobs.pod_ready_delay = TimeDelta::seconds(2);
    world.edit_spec(|spec| spec.template = template(NEW));
    until(&mut world, |world| world.status.stable_revision == Some(revision(NEW)));
    idle(&mut world);
    assert!(world.status.restart.as_ref().is_some_and(|restart| restart.done), "the pods of the new version are new");
}
