//! Blue/green: a preview, a switch, a time to change one's mind.

use super::*;
use crate::api::{InterventionAction, ReleaseState};

const OLD: &str = "i:1";
const NEW: &str = "i:2";

fn blue_green(extra: serde_json::Value) -> World {
    let mut strategy = json!({"activeService": "web", "previewService": "web-preview"});
    strategy.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let mut spec = spec(OLD, json!({}));
    spec.strategy = serde_json::from_value(json!({"blueGreen": strategy})).unwrap();
    deployed(spec)
}

fn push(world: &mut World, image: &str) {
    world.edit_spec(|spec| spec.template = template(image));
}

fn analysis() -> serde_json::Value {
    json!({"templates": [{"templateName": "errors"}]})
}

fn selects(world: &World, service: &str) -> String {
    let selected = world.services[service].selects.clone().unwrap();
    let known = [OLD, NEW, "i:3"].into_iter().find(|image| template(image).revision() == selected);
    known.unwrap().to_owned()
}

/// Ready pods of a version.
fn ready(world: &World, image: &str) -> usize {
    let set = world.replica_sets.get(&template(image).revision());
    set.map_or(0, |set| set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), world.now)).count())
}

fn reasons(world: &World) -> Vec<(Event, &str)> {
    world.recorded.iter().map(|it| (it.event, it.reason.as_str())).collect()
}

fn stands_at(world: &World, label: &str) -> bool {
    world.status.message.contains(label) && world.in_flight().is_some_and(|release| release.reached_at.is_some())
}

#[test]
fn the_switch_comes_when_all_of_the_preview_is_ready_and_the_old_side_stays_for_its_time() {
    let mut world = blue_green(json!({"scaleDownDelaySeconds": 30}));
    push(&mut world, NEW);
    until(&mut world, |world| selects(world, "web-preview") == NEW);
    assert_eq!(selects(&world, "web"), OLD, "the preview has no live traffic");
    until(&mut world, |world| selects(world, "web") == NEW);
    assert_eq!((ready(&world, OLD), ready(&world, NEW)), (5, 5));
    until(&mut world, |world| world.status.phase == Phase::Ready);
    let switched = world.now;
    until(&mut world, |world| ready(world, OLD) == 0);
    assert!(world.now >= switched + TimeDelta::seconds(30), "{} after {switched}", world.now);
    world.run(TimeDelta::hours(1));
    use Event::{FirstDeploy, Promoted, Promoting, Started, StepCompleted};
    assert_eq!(events(&world), [FirstDeploy, Promoted, Started, StepCompleted, Promoting, Promoted]);
    assert_eq!((ready(&world, NEW), world.status.strategy.as_str()), (5, "BlueGreen"));
}

#[test]
fn a_small_preview_grows_to_full_size_before_the_switch() {
    let mut world = blue_green(json!({"previewReplicaCount": 2, "autoPromotionEnabled": false}));
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Paused);
    assert_eq!((ready(&world, OLD), ready(&world, NEW)), (5, 2));
    world.run(TimeDelta::days(1));
    assert_eq!(selects(&world, "web"), OLD, "nobody has approved");
    say(&mut world, "1", InterventionAction::Approve);
    until(&mut world, |world| selects(world, "web") == NEW);
    assert_eq!((ready(&world, OLD), ready(&world, NEW)), (5, 5));
}

#[test]
fn the_wait_before_the_switch_counts_from_a_ready_preview() {
    let mut world = blue_green(json!({"autoPromotionSeconds": 60}));
    world.knobs.pod_ready_delay = TimeDelta::seconds(100);
    push(&mut world, NEW);
    until(&mut world, |world| ready(world, NEW) == 5);
    let ready_at = world.now;
    until(&mut world, |world| selects(world, "web") == NEW);
    assert!(world.now >= ready_at + TimeDelta::seconds(60));
    assert!(world.now <= ready_at + TimeDelta::seconds(65));
}

#[test]
fn a_preview_that_fails_never_gets_live_traffic() {
    let mut world = blue_green(json!({"prePromotionAnalysis": analysis()}));
    world.scripts.push(Script { from: start(), from_stage: 0, answer: Answer::Fail });
    push(&mut world, NEW);
    until(&mut world, |world| {
        assert_eq!(selects(world, "web"), OLD);
        world.status.phase == Phase::Aborted
    });
    let (aborted, preview) = (world.now, ready(&world, NEW));
    assert_eq!((preview, selects(&world, "web-preview").as_str()), (5, NEW), "it can still be looked at");
    until(&mut world, |world| ready(world, NEW) == 0);
    assert!(world.now >= aborted + TimeDelta::seconds(30));
    world.run(TimeDelta::hours(1));
    assert_eq!(selects(&world, "web-preview"), OLD, "a preview never points at nothing");
    assert_eq!(reasons(&world).last(), Some(&(Event::Aborted, "Verdict")));
}

#[test]
fn what_fails_after_the_switch_is_switched_back_to_a_side_that_still_stands() {
    let mut world = blue_green(json!({"postPromotionAnalysis": analysis(), "scaleDownDelaySeconds": 0}));
    world.scripts.push(Script { from: start(), from_stage: 0, answer: Answer::Fail });
    push(&mut world, NEW);
    until(&mut world, |world| selects(world, "web") == NEW);
    let switched = world.now;
    until(&mut world, |world| {
        assert_eq!(ready(world, OLD), 5, "the old side stands until the verdict");
        selects(world, "web") == OLD
    });
    assert!(world.now <= switched + TimeDelta::seconds(40), "{} after {switched}", world.now);
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, ready(&world, OLD), ready(&world, NEW)), (Phase::Aborted, 5, 0));
    let aborted = world.recorded.last().unwrap();
    assert_eq!((aborted.event, aborted.weight_from, aborted.weight_to), (Event::Aborted, 100, 0));
    // The next version goes its way.
    world.scripts.push(Script { from: world.now, from_stage: 0, answer: Answer::Pass });
    push(&mut world, "i:3");
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, selects(&world, "web").as_str()), (Phase::Ready, "i:3"));
}

#[test]
fn going_back_within_the_delay_needs_no_new_pod_and_no_analysis() {
    let mut world = blue_green(json!({"prePromotionAnalysis": analysis(), "scaleDownDelaySeconds": 600}));
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Ready && selects(world, "web") == NEW);
    let runs = world.analyses.len();
    world.knobs.pod_ready_delay = TimeDelta::hours(1);
    push(&mut world, OLD);
    let asked = world.now;
    until(&mut world, |world| selects(world, "web") == OLD);
    assert!(world.now <= asked + TimeDelta::seconds(5), "{} after {asked}", world.now);
    world.run(TimeDelta::minutes(1));
    assert_eq!((world.analyses.len(), world.status.phase), (runs, Phase::Ready));
    assert!(reasons(&world).contains(&(Event::Started, "Rollback")));
}

#[test]
fn what_was_stable_keeps_its_time_when_the_next_version_begins() {
    let mut world = blue_green(json!({"scaleDownDelaySeconds": 600}));
    push(&mut world, NEW);
    until(&mut world, |world| world.status.phase == Phase::Ready && selects(world, "web") == NEW);
    let until_then = world.now + TimeDelta::seconds(600);
    push(&mut world, "i:3");
    until(&mut world, |world| {
        assert!(ready(world, OLD) == 5 || selects(world, "web") == "i:3");
        selects(world, "web") == "i:3"
    });
    assert!(world.now < until_then);
}

#[test]
fn a_person_can_promote_past_every_gate_but_not_past_the_pods() {
    let mut world = blue_green(json!({"prePromotionAnalysis": analysis(), "autoPromotionEnabled": false,
        "postPromotionAnalysis": analysis(), "previewReplicaCount": 1}));
    push(&mut world, NEW);
    until(&mut world, |world| ready(world, NEW) == 1);
    say(&mut world, "1", InterventionAction::Promote);
    until(&mut world, |world| selects(world, "web") == NEW);
    assert_eq!(ready(&world, NEW), 5);
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, world.analyses.len()), (Phase::Ready, 0));
}

#[test]
fn a_preview_that_never_gets_ready_is_given_up_at_the_deadline() {
    let mut world = blue_green(json!({"autoPromotionEnabled": false}));
    world.knobs.canary_never_ready = true;
    push(&mut world, NEW);
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, selects(&world, "web").as_str()), (Phase::Aborted, OLD));
    assert_eq!(reasons(&world).last(), Some(&(Event::Aborted, "Deadline")));
}

#[test]
fn a_third_version_during_the_last_analysis_goes_back_first() {
    let mut world = blue_green(json!({"postPromotionAnalysis": analysis()}));
    push(&mut world, NEW);
    until(&mut world, |world| stands_at(world, "after the switch"));
    assert_eq!(selects(&world, "web"), NEW);
    push(&mut world, "i:3");
    until(&mut world, |world| selects(world, "web") == OLD);
    assert_eq!(ready(&world, OLD), 5);
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, selects(&world, "web").as_str()), (Phase::Ready, "i:3"));
}

#[test]
fn a_pause_after_the_switch_leaves_live_traffic_where_it_is() {
    let mut world = blue_green(json!({"postPromotionAnalysis": analysis()}));
    push(&mut world, NEW);
    until(&mut world, |world| selects(world, "web") == NEW);
    say(&mut world, "1", InterventionAction::Pause);
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, selects(&world, "web").as_str()), (Phase::Paused, NEW));
    say(&mut world, "2", InterventionAction::Resume);
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Ready);
}

#[test]
fn a_lost_status_after_the_switch_is_judged_again_and_before_it_changes_nothing() {
    for after in [false, true] {
        let mut world = blue_green(json!({"postPromotionAnalysis": analysis(), "autoPromotionSeconds": 60}));
        push(&mut world, NEW);
        until(&mut world, |world| if after { stands_at(world, "after the switch") } else { stands_at(world, "pause") });
        let selected = selects(&world, "web");
        world.lose_status();
        world.turn();
        assert_eq!(events(&world).last(), Some(&Event::Recovered));
        assert_eq!(world.status.stable_revision, Some(template(OLD).revision()), "{after}");
        until(&mut world, |world| {
            assert!(!after || selects(world, "web") == selected, "nothing moves because a status was lost");
            world.in_flight().is_none_or(|release| release.state == ReleaseState::Promoting)
        });
        world.run(TimeDelta::hours(1));
        assert_eq!((world.status.phase, selects(&world, "web").as_str()), (Phase::Ready, NEW), "{after}");
        assert!(world.analyses.values().any(|run| run.attempt == if after { 2 } else { 1 }), "{after}");
    }
}

#[test]
fn without_a_preview_service_all_else_is_the_same() {
    let mut world = blue_green(json!({"previewService": null, "prePromotionAnalysis": analysis()}));
    push(&mut world, NEW);
    world.run(TimeDelta::hours(1));
    assert_eq!((world.status.phase, selects(&world, "web").as_str()), (Phase::Ready, NEW));
    assert_eq!(world.services.len(), 1);
}

#[test]
fn when_the_new_side_dies_after_the_switch_the_old_one_has_the_traffic() {
    let mut world = blue_green(json!({"postPromotionAnalysis": analysis()}));
    push(&mut world, NEW);
    until(&mut world, |world| stands_at(world, "after the switch"));
    world.knobs.pod_ready_delay = TimeDelta::seconds(60);
    world.kill_pods(&template(NEW).revision(), 5);
    let died = world.now;
    until(&mut world, |world| selects(world, "web") == OLD);
    assert!(world.now <= died + TimeDelta::seconds(10));
}
