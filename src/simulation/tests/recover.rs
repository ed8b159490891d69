//! What happens to a Rollout whose status is lost, and to one whose whole cluster is.

use super::*;
use crate::api::{InterventionAction, ReleaseState};

fn release_of(image: &str) -> World {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template(image));
    world
}

fn stable(world: &World) -> Option<String> {
    world.status.stable_revision.clone()
}

/// Runs to the end and gives the greatest weight that the canary had on the way.
fn to_the_end(world: &mut World, at_most: impl Fn(&World) -> i32) {
    for _ in 0..2000 {
        let happened = world.turn();
        let (is, may) = (canary_share(world), at_most(world));
        assert!(is <= may, "{is} % where {may} % is allowed: {}", world.status.message);
        match happened {
            Happened::Waits(wait) if wait.on == WaitOn::Nothing => return,
            Happened::Waits(wait) => match world.wakes_at(&wait) {
                Some(at) => world.advance_to(at),
                None => return,
            },
            _ => {}
        }
    }
    panic!("no end: {}", world.status.message);
}

#[test]
fn a_canary_goes_on_at_the_stage_that_the_ledger_knows() {
    for share in [20, 60] {
        let mut world = release_of("i:2");
        until(&mut world, |world| canary_share(world) == share);
        let numbers = world.recorded.len();
        world.lose_status();
        world.turn();
        assert_eq!(stable(&world), Some(template("i:1").revision()), "not a first deploy");
        let flight = world.in_flight().expect("the canary is in flight again").clone();
        assert_eq!((flight.state, flight.revision), (ReleaseState::Stepping, template("i:2").revision()));
        assert_eq!(world.recorded.last().map(|transition| transition.event), Some(Event::Recovered));
        // Nothing is promoted by accident: from here on each stage is passed as ever.
        to_the_end(&mut world, |world| if world.in_flight().is_none_or(|it| it.stage >= 4) { 100 } else { 60 });
        assert_eq!(stable(&world), Some(template("i:2").revision()), "{}", world.status.message);
        let sequences: Vec<i64> = world.recorded.iter().map(|transition| transition.sequence).collect();
        let expected: Vec<i64> = (1..=i64::try_from(sequences.len()).unwrap()).collect();
        assert_eq!(sequences, expected, "the numbers go on");
        assert!(sequences.len() > numbers);
    }
}

#[test]
fn without_a_ledger_a_canary_begins_again_at_its_first_stage() {
    let mut world = release_of("i:2");
    world.ledger.configured = false;
    until(&mut world, |world| canary_share(world) == 60);
    world.lose_status();
    world.turn();
    assert_eq!(stable(&world), Some(template("i:1").revision()), "by the stable Service");
    until(&mut world, |world| canary_share(world) == 20);
    to_the_end(&mut world, |world| if world.in_flight().is_none_or(|it| it.stage >= 4) { 100 } else { 60 });
    assert_eq!(stable(&world), Some(template("i:2").revision()), "{}", world.status.message);
}

#[test]
fn what_is_at_rest_stays_at_rest() {
    let mut world = deployed(spec("i:1", json!({})));
    let writes = world.writes.len();
    world.lose_status();
    world.run(TimeDelta::hours(1));
    assert_eq!(stable(&world), Some(template("i:1").revision()));
    assert_eq!((world.status.phase, canary_share(&world)), (Phase::Ready, 0), "{}", world.status.message);
    assert_eq!(events(&world).last(), Some(&Event::Recovered));
    let effects = world.writes[writes..].iter().filter(|write| matches!(write.written, objects::Written::Effect(_)));
    assert_eq!(effects.count(), 0, "no pod and no weight is touched");
}

#[test]
fn what_was_aborted_stays_aborted() {
    let mut world = release_of("i:2");
    until(&mut world, |world| canary_share(world) == 20);
    say(&mut world, "1", InterventionAction::Abort);
    world.run(TimeDelta::minutes(5));
    assert_eq!(world.status.phase, Phase::Aborted);
    world.lose_status();
    to_the_end(&mut world, |_| 0);
    assert_eq!((world.status.phase, stable(&world)), (Phase::Aborted, Some(template("i:1").revision())));
    // A person's word still lifts it, as a new attempt.
    say(&mut world, "2", InterventionAction::Retry);
    until(&mut world, |world| canary_share(world) == 20);
    assert_eq!(world.in_flight().unwrap().attempt, 2);
}

#[test]
fn a_promotion_whose_status_is_lost_is_finished() {
    let mut world = release_of("i:2");
    until(&mut world, |world| world.services["web-stable"].selects == Some(template("i:2").revision()));
    world.lose_status();
    to_the_end(&mut world, |_| 100);
    assert_eq!(stable(&world), Some(template("i:2").revision()), "{}", world.status.message);
    assert_eq!(events(&world).iter().filter(|event| **event == Event::Promoted).count(), 2, "once for each version");
}

/// The same declaration in a cluster where nothing is, with what the ledger of the other one says.
fn rebuilt(from: &World) -> World {
    let mut world = World::new(from.spec.clone(), from.now);
    world.ledger = from.ledger.clone();
    world
}

#[test]
fn a_cluster_rebuilt_in_the_middle_of_a_canary_comes_up_on_what_was_good() {
    let mut before = release_of("i:2");
    until(&mut before, |world| canary_share(world) == 60);
    let mut world = rebuilt(&before);
    until(&mut world, |world| world.status.stable_revision.is_some());
    assert_eq!(stable(&world), Some(template("i:1").revision()), "the last good one first");
    let first = &world.recorded[0];
    assert_eq!((first.event, first.sequence), (Event::FirstDeploy, before.status.sequence + 1));
    assert!(first.message.contains("last good one in the log"), "{}", first.message);
    // What git asks for follows by its steps.
    until(&mut world, |world| canary_share(world) == 20);
    world.run(TimeDelta::hours(2));
    assert_eq!(stable(&world), Some(template("i:2").revision()), "{}", world.status.message);
}

#[test]
fn a_cluster_rebuilt_after_an_abort_holds_what_was_aborted() {
    let mut before = release_of("i:2");
    until(&mut before, |world| canary_share(world) == 20);
    say(&mut before, "1", InterventionAction::Abort);
    before.run(TimeDelta::minutes(5));
    let mut world = rebuilt(&before);
    world.run(TimeDelta::hours(2));
    assert_eq!((world.status.phase, stable(&world)), (Phase::Aborted, Some(template("i:1").revision())));
    assert!(world.status.message.contains("aborted before"), "{}", world.status.message);
    assert!(!world.replica_sets.contains_key(&template("i:2").revision()), "not one pod of it was started");
    let sequences: Vec<i64> = world.recorded.iter().map(|transition| transition.sequence).collect();
    let next = before.status.sequence + 1;
    assert_eq!(sequences, (next..next + i64::try_from(sequences.len()).unwrap()).collect::<Vec<_>>());
}

#[test]
fn the_second_abort_is_the_second_one_also_when_the_log_had_no_room_for_the_status() {
    // The status is lost while the first abort stands, while the second attempt runs, or after the second abort.
    for lost in 0..3 {
        let mut world = release_of("i:2");
        let lose = |world: &mut World| {
            world.ledger.position = None;
            world.lose_status();
            world.turn();
        };
        let push = |world: &mut World, commit: &str, image: &str| {
            world.source_commit = Some(commit.to_owned());
            world.edit_spec(|spec| spec.template = template(image));
        };
        until(&mut world, |world| canary_share(world) == 20);
        say(&mut world, "1", InterventionAction::Abort);
        world.run(TimeDelta::minutes(10));
        if lost == 0 {
            lose(&mut world);
        }
        push(&mut world, "back", "i:1");
        world.run(TimeDelta::minutes(10));
        push(&mut world, "again", "i:2");
        until(&mut world, |world| canary_share(world) == 20);
        assert!(world.in_flight().is_some_and(|release| release.attempt == 2), "consent, once: {lost}");
        if lost == 1 {
            lose(&mut world);
            assert!(world.in_flight().is_some_and(|release| release.attempt >= 1), "{}", world.status.message);
        }
        say(&mut world, "2", InterventionAction::Abort);
        world.run(TimeDelta::minutes(10));
        assert_eq!(world.status.phase, Phase::Aborted, "{lost}: {}", world.status.message);
        if lost == 2 {
            lose(&mut world);
        }
        let denied = &world.status.denied;
        assert_eq!(denied.iter().map(|denied| denied.aborts).collect::<Vec<_>>(), [2], "{lost}: {denied:?}");
        push(&mut world, "back again", "i:1");
        world.run(TimeDelta::minutes(10));
        push(&mut world, "and again", "i:2");
        to_the_end(&mut world, |_| 0);
        assert_eq!((world.status.phase, stable(&world)), (Phase::Aborted, Some(template("i:1").revision())), "{lost}");
    }
}
