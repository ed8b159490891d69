use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::*;
use crate::api::{Phase, PodTemplate, RolloutSpec, RouteKey, RouteKind, TransitionEvent as Event};
use crate::engine::{InterventionState, WaitOn};

mod audit;
mod blue_green;
mod by_hand;
mod by_pods;
mod deletion;
mod going_back;
mod hand_over;
mod header_routes;
mod recover;
mod restart;
mod scale;
mod strategy_change;

fn start() -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn spec(image: &str, extra: serde_json::Value) -> RolloutSpec {
    let mut canary = json!({
        "stableService": "web-stable", "canaryService": "web-canary",
        "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": "web"}]}},
        "steps": [{"setWeight": 20}, {"pause": {"duration": "60s"}}, {"setWeight": 60}, {"pause": {"duration": "2m"}}],
    });
    for (key, value) in extra.as_object().unwrap() {
        canary[key] = value.clone();
    }
    serde_json::from_value(json!({
        "replicas": 5,
        "selector": {"matchLabels": {"app": "web"}},
        "template": template(image).0,
        "strategy": {"canary": canary},
    }))
    .unwrap()
}

fn template(image: &str) -> PodTemplate {
    PodTemplate(
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}),
    )
}

fn background() -> serde_json::Value {
    json!({"analysis": {"templates": [{"templateName": "errors"}]}})
}

fn deployed(spec: RolloutSpec) -> World {
    let mut world = World::new(spec, start());
    let ended = world.run(TimeDelta::hours(1));
    assert!(matches!(&ended, Ended::Waits(wait) if wait.on == WaitOn::Nothing), "{ended:?}");
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
    world
}

fn events(world: &World) -> Vec<Event> {
    world.recorded.iter().map(|transition| transition.event).collect()
}

fn web_route() -> RouteKey {
    RouteKey::new(RouteKind::Http, "web")
}

fn canary_share(world: &World) -> i32 {
    world.routes[&web_route()].rules[0].canary
}

#[test]
fn a_good_canary_becomes_stable() {
    let mut world = deployed(spec("i:1", background()));
    world.edit_spec(|spec| spec.template = template("i:2"));
    let ended = world.run(TimeDelta::hours(2));
    assert!(matches!(&ended, Ended::Waits(wait) if wait.on == WaitOn::Nothing), "{ended:?}");
    assert_eq!(
        events(&world),
        [
            Event::FirstDeploy,
            Event::Promoted,
            Event::Started,
            Event::StepCompleted,
            Event::StepCompleted,
            Event::StepCompleted,
            Event::StepCompleted,
            Event::Promoting,
            Event::Promoted
        ]
    );
    let revision = template("i:2").revision();
    assert_eq!(world.status.stable_revision.as_ref(), Some(&revision));
    assert_eq!(world.services["web-stable"].selects.as_ref(), Some(&revision));
    assert_eq!(canary_share(&world), 0);
    assert_eq!(world.replica_sets[&template("i:1").revision()].replicas, 0);
    assert_eq!(world.replica_sets[&revision].replicas, 5);
    let sequences: Vec<i64> = world.recorded.iter().map(|transition| transition.sequence).collect();
    assert_eq!(sequences, (1..=9).collect::<Vec<i64>>());
}

#[test]
fn nothing_is_written_at_rest() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::hours(2));
    let writes = world.writes.len();
    for _ in 0..5 {
        world.advance_to(world.now + TimeDelta::hours(1));
        let happened = world.turn();
        assert!(matches!(&happened, Happened::Waits(wait) if wait.on == WaitOn::Nothing), "{happened:?}");
    }
    assert_eq!(world.writes.len(), writes);
}

#[test]
fn going_back_in_flight_aborts_and_ends_where_it_began() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::seconds(40));
    assert_eq!(canary_share(&world), 20);
    world.edit_spec(|spec| spec.template = template("i:1"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
    assert_eq!(canary_share(&world), 0);
    assert_eq!(events(&world).last(), Some(&Event::Aborted));
    assert_eq!(world.replica_sets[&template("i:2").revision()].replicas, 0);
}

#[test]
fn a_third_revision_takes_the_place_of_the_second() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::seconds(40));
    world.edit_spec(|spec| spec.template = template("i:3"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
    assert_eq!(world.status.stable_revision, Some(template("i:3").revision()));
    assert!(events(&world).contains(&Event::Superseded));
}

#[test]
fn the_forecast_is_what_then_happens() {
    let mut world = deployed(spec("i:1", background()));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.turn();
    let timeline = forecast(&world.snapshot(), world.now);
    assert_eq!(timeline.blocked_on, None);
    let started = world.recorded.len();
    world.run(TimeDelta::hours(2));
    let happened: Vec<_> = world.recorded[started..]
        .iter()
        .filter(|transition| matches!(transition.event, Event::StepCompleted | Event::Promoted))
        .map(|transition| Some(transition.at))
        .collect();
    let foretold: Vec<_> = timeline.stages.iter().map(|stage| stage.ends_at).collect();
    assert_eq!(foretold, happened);
    assert_eq!(timeline.ends_at, *happened.last().unwrap());
    for stage in &timeline.stages {
        assert!(stage.starts_at.unwrap() < stage.ends_at.unwrap(), "{stage:?}");
    }
    for pair in timeline.stages.windows(2) {
        assert_eq!(pair[0].ends_at, pair[1].starts_at);
    }
    assert_eq!(timeline.stages[0].state, StageState::Current);
    assert!(timeline.stages[1..].iter().all(|stage| stage.state == StageState::Ahead));
}

#[test]
fn a_forecast_from_any_moment_ends_when_the_first_one_said() {
    let mut world = deployed(spec("i:1", background()));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.turn();
    let foretold = forecast(&world.snapshot(), world.now).ends_at.unwrap();
    for _ in 0..400 {
        if world.in_flight().is_none() {
            break;
        }
        let again = forecast(&world.snapshot(), world.now).ends_at.unwrap();
        let apart = (again - foretold).abs();
        assert!(apart <= TimeDelta::seconds(31), "{again} but {foretold}, at {}", world.now);
        if let Happened::Waits(wait) = world.turn() {
            world.advance_to(world.wakes_at(&wait).unwrap());
        }
    }
    assert!(world.in_flight().is_none());
}

#[test]
fn a_forecast_marks_where_a_person_is_needed() {
    let steps = json!({"steps": [{"setWeight": 10}, {"pause": {"approvals": 2}}, {"setWeight": 50}]});
    let mut world = deployed(spec("i:1", steps));
    world.edit_spec(|spec| spec.template = template("i:2"));
    let timeline = forecast(&world.snapshot(), world.now);
    let people: Vec<bool> = timeline.stages.iter().map(|stage| stage.needs_person).collect();
    assert_eq!(people, [false, true, false, false]);
    assert!(timeline.ends_at.is_some());
    assert_eq!(serde_json::to_value(&timeline).unwrap()["stages"][1]["needsPerson"], true);
}

#[test]
fn a_forecast_of_what_does_not_move_says_on_what_it_waits() {
    let mut world = deployed(spec("i:1", background()));
    let timeline = forecast(&world.snapshot(), world.now);
    assert!(timeline.stages.iter().all(|stage| stage.state == StageState::Done));
    assert_eq!((timeline.ends_at, timeline.blocked_on), (None, None));

    world.scripts.push(Script { from: start(), from_stage: 0, answer: Answer::Fail });
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Aborted);
    let timeline = forecast(&world.snapshot(), world.now);
    assert_eq!(timeline.blocked_on.map(|wait| wait.on), Some(WaitOn::Person));
    assert_eq!(timeline.ends_at, None);

    world.edit_spec(|spec| spec.selector.match_labels.clear());
    let timeline = forecast(&world.snapshot(), world.now);
    assert_eq!(timeline.blocked_on.map(|wait| wait.on), Some(WaitOn::Spec));
    assert!(timeline.stages.is_empty());
}

#[test]
fn a_rehearsal_with_bad_metrics_ends_aborted_with_all_traffic_on_stable() {
    let (old, new) = (spec("i:1", background()), spec("i:2", background()));
    let scenario = Scenario { fail_at: Some(3), ..Scenario::default() };
    let rehearsal = rehearse(&old, &new, &scenario, start());
    assert_eq!(rehearsal.end.phase, Phase::Aborted);
    assert_eq!(rehearsal.end.weight, Some(0));
    let last = &rehearsal.entries.last().unwrap().transition;
    assert_eq!((last.event, last.stage, last.weight_to), (Event::Aborted, 3, 0), "{:?}", rehearsal.notes);
    assert!(last.verdict.as_ref().unwrap().starts_with("fail"), "{last:?}");
}

#[test]
fn a_rehearsal_without_analysis_lets_the_pods_fail() {
    let (old, new) = (spec("i:1", json!({})), spec("i:2", json!({})));
    let rehearsal = rehearse(&old, &new, &Scenario { fail_at: Some(3), ..Scenario::default() }, start());
    assert_eq!(rehearsal.end.phase, Phase::Aborted, "{:#?}", rehearsal.notes);
    let last = &rehearsal.entries.last().unwrap().transition;
    assert_eq!((last.event, last.reason.as_str()), (Event::Aborted, "Deadline"));
    assert!(rehearsal.notes.iter().any(|(_, note)| note.contains("has no analysis")), "{:?}", rehearsal.notes);
}

#[test]
fn a_rehearsal_without_data_holds_and_then_waits_for_a_person() {
    let (old, new) = (spec("i:1", background()), spec("i:2", background()));
    let rehearsal = rehearse(&old, &new, &Scenario { no_data_at: Some(2), ..Scenario::default() }, start());
    let seen: Vec<Event> = rehearsal.entries.iter().map(|entry| entry.transition.event).collect();
    assert!(seen.contains(&Event::Held), "{seen:?}");
    assert_eq!(seen.last(), Some(&Event::Paused));
    assert_eq!(rehearsal.end.phase, Phase::Paused);
    assert_eq!(rehearsal.end.weight, Some(20));
}

#[test]
fn a_rehearsal_with_slow_pods_and_approvals_is_promoted() {
    let steps = json!({"steps": [{"setWeight": 10}, {"pause": {}}, {"setWeight": 50}]});
    let (old, new) = (spec("i:1", steps.clone()), spec("i:2", steps));
    let slow = Scenario { slow_pods: Some("90s".parse().unwrap()), ..Scenario::default() };
    let rehearsal = rehearse(&old, &new, &slow, start());
    assert_eq!(rehearsal.end.phase, Phase::Ready, "{:#?}", rehearsal.notes);
    assert!(rehearsal.notes.iter().any(|(_, note)| note.contains("a person approves")), "{:?}", rehearsal.notes);
    assert!(rehearsal.ended_at - start() > TimeDelta::seconds(180));
}

#[test]
fn an_effect_on_a_state_that_has_changed_is_refused() {
    let mut world = deployed(spec("i:1", json!({})));
    let versions = world.versions();
    world.edit_weights(&web_route(), 50, 50);
    let effect = crate::engine::Effect::SetWeight { route: web_route(), percent: 0 };
    assert!(matches!(world.perform_on(&effect, &versions), Err(Conflict::Changed { kind: "HTTPRoute", .. })));
    assert_eq!(canary_share(&world), 50);
    // And the engine puts it right.
    world.run(TimeDelta::minutes(5));
    assert_eq!(canary_share(&world), 0);
}

#[test]
fn a_person_can_pause_resume_and_abort() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::seconds(40));
    let say = |world: &mut World, uid: &str, action| {
        world.intervene(InterventionState {
            uid: uid.to_owned(),
            name: uid.to_owned(),
            revision: template("i:2").revision(),
            attempt: None,
            stage: None,
            action,
            actor: "ada".to_owned(),
            reason: String::new(),
            created_at: world.now,
        });
    };
    say(&mut world, "1", crate::api::InterventionAction::Pause);
    let ended = world.run(TimeDelta::hours(3));
    assert!(matches!(&ended, Ended::Waits(wait) if wait.on == WaitOn::Person), "{ended:?}");
    assert_eq!((world.status.phase, canary_share(&world)), (Phase::Paused, 20));
    world.advance_to(world.now + TimeDelta::hours(3));
    say(&mut world, "2", crate::api::InterventionAction::Resume);
    world.run(TimeDelta::seconds(20));
    assert_eq!(canary_share(&world), 60);
    say(&mut world, "3", crate::api::InterventionAction::Abort);
    world.run(TimeDelta::hours(3));
    assert_eq!((world.status.phase, canary_share(&world)), (Phase::Aborted, 0));
}

// === What the engine once got wrong ===

fn say(world: &mut World, uid: &str, action: crate::api::InterventionAction) {
    world.intervene(InterventionState {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        revision: world.spec.template.revision(),
        attempt: None,
        stage: None,
        action,
        actor: format!("actor-{uid}"),
        reason: String::new(),
        created_at: world.now,
    });
}

/// Turns until `done`, in the world's own time.
fn until(world: &mut World, done: impl Fn(&World) -> bool) {
    for _ in 0..1000 {
        if done(world) {
            return;
        }
        if let Happened::Waits(wait) = world.turn() {
            let at = world.wakes_at(&wait).unwrap_or_else(|| panic!("nothing will end this wait: {wait:?}"));
            world.advance_to(at);
        }
    }
    panic!("it never came to that: {:?}", world.status);
}

#[test]
fn a_first_step_without_pods_lets_the_revision_before_it_go() {
    let steps = json!({"steps": [{"pause": {"duration": "5s"}}, {"setWeight": 50}, {"pause": {"duration": "30s"}}]});
    let mut world = deployed(spec("i:1", steps));
    world.edit_spec(|spec| spec.template = template("i:2"));
    until(&mut world, |world| world.status.weight == Some(50));
    world.edit_spec(|spec| spec.template = template("i:3"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.stable_revision, Some(template("i:3").revision()), "{}", world.status.message);
    assert_eq!(world.replica_sets[&template("i:2").revision()].replicas, 0);
}

#[test]
fn a_pause_is_not_lateness() {
    let mut world = deployed(spec("i:1", json!({})));
    world.knobs.pod_ready_delay = TimeDelta::seconds(300);
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::seconds(60));
    world.edit_spec(|spec| spec.paused = true);
    world.run(TimeDelta::hours(1));
    world.advance_to(world.now + TimeDelta::hours(5));
    world.run(TimeDelta::seconds(1));
    assert_eq!(world.status.phase, Phase::Paused, "{}", world.status.message);
    world.edit_spec(|spec| spec.paused = false);
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
    assert!(!events(&world).contains(&Event::Aborted));
}

#[test]
fn a_second_try_is_not_judged_by_the_analysis_of_the_first() {
    let steps = json!({"steps": [{"setWeight": 20}, {"analysis": {"templates": [{"templateName": "a"}]}},
        {"pause": {"duration": "5m"}}]});
    let mut world = deployed(spec("i:1", steps));
    world.edit_spec(|spec| spec.template = template("i:2"));
    until(&mut world, |world| world.in_flight().is_some_and(|release| release.stage == 2));
    world.edit_spec(|spec| spec.template = template("i:1"));
    world.run(TimeDelta::hours(1));
    let again = world.now;
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.scripts.push(Script { from: again, from_stage: 0, answer: Answer::Fail });
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Aborted, "{}", world.status.message);
    assert_eq!(world.status.stable_revision, Some(template("i:1").revision()));
}

#[test]
fn a_drain_counts_again_after_somebody_wrote_weights_by_hand() {
    let mut world = deployed(spec("i:1", json!({})));
    world.knobs.accept_delay = TimeDelta::zero();
    world.edit_spec(|spec| spec.template = template("i:2"));
    until(&mut world, |world| {
        world.status.phase == Phase::Promoting && world.now > world.status.seen.weight.as_ref().unwrap().since
    });
    let before = world.now;
    world.edit_weights(&web_route(), 50, 50);
    let stable = template("i:2").revision();
    until(&mut world, |world| world.services["web-stable"].selects.as_ref() == Some(&stable));
    assert!(world.now >= before + TimeDelta::seconds(10), "selected at {}, by hand at {before}", world.now);
}

#[test]
fn an_abort_in_the_middle_of_promoting_comes_back() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    let (old, new) = (template("i:1").revision(), template("i:2").revision());
    until(&mut world, |world| world.services["web-stable"].selects.as_ref() == Some(&new) && canary_share(world) == 0);
    assert_eq!(world.status.phase, Phase::Promoting);
    world.edit_spec(|spec| spec.replicas = Some(8));
    say(&mut world, "1", crate::api::InterventionAction::Abort);
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Aborted, "{}", world.status.message);
    assert_eq!(world.services["web-stable"].selects.as_ref(), Some(&old));
    assert_eq!((canary_share(&world), world.replica_sets[&new].replicas), (0, 0));
}

#[test]
fn a_route_that_shares_its_rule_tells_every_percentage() {
    let mut world = deployed(spec("i:1", json!({"steps": [{"setWeight": 5}]})));
    world.routes.get_mut(&web_route()).unwrap().rules[0] = crate::engine::RuleState { base: 90, stable: 90, canary: 0 };
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.stable_revision, Some(template("i:2").revision()), "{}", world.status.message);
}

#[test]
fn a_retry_of_what_is_being_tried_is_refused() {
    let mut world = deployed(spec("i:1", background()));
    world.scripts.push(Script { from: start(), from_stage: 0, answer: Answer::Fail });
    world.edit_spec(|spec| spec.template = template("i:2"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Aborted);
    say(&mut world, "1", crate::api::InterventionAction::Retry);
    world.turn();
    say(&mut world, "2", crate::api::InterventionAction::Retry);
    world.turn();
    assert_eq!(world.status.refused_interventions.len(), 1);
    assert_eq!(events(&world).iter().filter(|event| **event == Event::Started).count(), 2);
}

#[test]
fn what_was_given_up_never_gets_traffic_again() {
    let steps = json!({"steps": [{"pause": {"duration": "5s"}}, {"setWeight": 50}, {"pause": {"duration": "30s"}}]});
    let mut world = deployed(spec("i:1", steps));
    world.edit_spec(|spec| spec.template = template("i:2"));
    until(&mut world, |world| world.status.weight == Some(50));
    // The third revision has no pods yet when all is called off: the canary Service still selects the second.
    world.edit_spec(|spec| spec.template = template("i:3"));
    until(&mut world, |world| world.status.weight == Some(0));
    world.edit_spec(|spec| spec.template = template("i:1"));
    until(&mut world, |world| world.status.release.is_none());
    assert!(!world.services["web-canary"].published.is_empty());
    world.kill_pods(&template("i:1").revision(), 100);
    let writes = world.writes.len();
    world.run(TimeDelta::hours(1));
    let raised = world.writes[writes..].iter().any(|write| match &write.written {
        Written::Effect(crate::engine::Effect::SetWeight { percent, .. }) => *percent > 0,
        _ => false,
    });
    assert!(!raised);
    assert_eq!(world.status.phase, Phase::Ready);
}

#[test]
fn a_paused_rollout_still_lets_the_old_version_go_in_time() {
    let mut world = deployed(spec("i:1", json!({})));
    world.edit_spec(|spec| spec.template = template("i:2"));
    until(&mut world, |world| world.status.stable_revision == Some(template("i:2").revision()));
    say(&mut world, "1", crate::api::InterventionAction::Pause);
    world.turn();
    world.edit_spec(|spec| spec.template = template("i:1"));
    world.run(TimeDelta::hours(1));
    assert_eq!(world.status.phase, Phase::Paused);
    assert_eq!(world.replica_sets[&template("i:1").revision()].replicas, 0);
}
