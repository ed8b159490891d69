//! What a rollout does while its transitions cannot be recorded.

use super::*;
use crate::api::{Conditions, InterventionAction, OnAuditUnavailable, ReleaseState};

/// The second version at 20 %, with a ledger that cannot be written since the release began.
fn without_record(policy: OnAuditUnavailable) -> World {
    let mut world = deployed(spec("i:1", json!({})));
    world.ledger.on_unavailable = policy;
    world.let_ledger_be_away(true);
    world.edit_spec(|spec| spec.template = template("i:2"));
    until(&mut world, |world| canary_share(world) == 20);
    world
}

fn waits(world: &mut World) -> crate::engine::Wait {
    match world.run(TimeDelta::hours(3)) {
        Ended::Waits(wait) | Ended::Time(wait) => wait,
        Ended::Turns => panic!("no end: {}", world.status.message),
    }
}

fn ready_reason(world: &World) -> String {
    world.status.conditions.condition("Ready").unwrap().reason.clone()
}

#[test]
fn by_default_it_goes_on_and_the_record_follows() {
    let mut world = without_record(OnAuditUnavailable::Continue);
    waits(&mut world);
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
    assert_eq!(world.recorded.len(), 2, "nothing is recorded meanwhile");
    world.let_ledger_be_away(false);
    let numbers: Vec<i64> = world.recorded.iter().map(|transition| transition.sequence).collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<_>>());
}

#[test]
fn with_pause_it_stays_at_its_stage_until_the_record_has_followed() {
    let mut world = without_record(OnAuditUnavailable::Pause);
    let wait = waits(&mut world);
    assert_eq!(wait.on, WaitOn::Ledger);
    assert!(wait.message.contains("since 2026-01-01 00:0") && wait.message.contains("pause"), "{}", wait.message);
    // The pause of a minute is over, and the stage is not left.
    assert_eq!((canary_share(&world), world.in_flight().unwrap().stage), (20, 1));
    assert_eq!((world.status.phase, ready_reason(&world).as_str()), (Phase::Progressing, "AwaitingRecord"));
    assert_eq!(world.status.message, wait.message);
    let timeline = forecast(&world.snapshot(), world.now);
    assert_eq!((timeline.ends_at, timeline.blocked_on.map(|wait| wait.on)), (None, Some(WaitOn::Ledger)));
    world.let_ledger_be_away(false);
    waits(&mut world);
    assert_eq!(world.status.stable_revision, Some(template("i:2").revision()), "{}", world.status.message);
}

#[test]
fn with_hold_before_promotion_it_takes_its_steps_and_is_not_promoted() {
    let mut world = without_record(OnAuditUnavailable::HoldBeforePromotion);
    let wait = waits(&mut world);
    assert_eq!(wait.on, WaitOn::Ledger, "{wait:?}");
    assert_eq!((canary_share(&world), world.in_flight().unwrap().stage), (60, 3));
    world.let_ledger_be_away(false);
    waits(&mut world);
    assert_eq!(world.status.stable_revision, Some(template("i:2").revision()), "{}", world.status.message);
}

#[test]
fn an_abort_never_waits_for_the_record_and_a_promote_does() {
    for policy in [OnAuditUnavailable::Pause, OnAuditUnavailable::HoldBeforePromotion] {
        let mut world = without_record(policy);
        waits(&mut world);
        say(&mut world, "1", InterventionAction::Promote);
        waits(&mut world);
        let refused = &world.status.refused_interventions[0];
        assert!(refused.message.contains("no word overrides") && refused.message.contains("not in git yet"));
        assert_eq!(world.in_flight().unwrap().state, ReleaseState::Stepping);
        say(&mut world, "2", InterventionAction::Abort);
        world.run(TimeDelta::seconds(30));
        assert_eq!((world.status.phase, canary_share(&world)), (Phase::Aborted, 0), "{policy:?}");
        assert_eq!(world.recorded.len(), 2, "the ledger is still away");
        let pending = &world.status.pending_log;
        assert_eq!(pending.last().map(|transition| transition.event), Some(Event::Aborted));
    }
}

#[test]
fn nothing_begins_without_a_record_but_the_way_back_does() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    waits(&mut world);
    world.ledger.on_unavailable = OnAuditUnavailable::Pause;
    world.let_ledger_be_away(true);
    world.edit_spec(|spec| spec.template = template("i:3"));
    until(&mut world, |world| canary_share(world) == 20);
    world.advance_to(world.now + TimeDelta::minutes(2));
    world.edit_spec(|spec| spec.template = template("i:4"));
    let wait = waits(&mut world);
    assert_eq!(wait.on, WaitOn::Ledger, "{wait:?}");
    assert!(world.in_flight().is_none(), "the third is given up, the fourth does not begin");
    assert_eq!((canary_share(&world), ready_reason(&world).as_str()), (0, "AwaitingRecord"));
    say(&mut world, "1", InterventionAction::Retry);
    waits(&mut world);
    assert!(world.in_flight().is_none());
    // The version before this one was good: going back is no step forward.
    world.edit_spec(|spec| spec.template = template("i:1"));
    waits(&mut world);
    assert_eq!(world.status.stable_revision, Some(template("i:1").revision()), "{}", world.status.message);
}
