//! Going back through git, in every form in which people do it, at each stage of a release. What git says counts;
//! how it came to say so, in which words and by whom, does not.

use super::*;
use crate::api::{InterventionAction, ReleaseState, SourceHistory};

/// The template with an environment variable: a second thing that a commit may change.
fn template_with(image: &str, mode: &str) -> PodTemplate {
    let mut template = template(image);
    template.0["spec"]["containers"][0]["env"] = json!([{"name": "MODE", "value": mode}]);
    template
}

/// Somebody pushes: from now on git asks for this, by this commit.
fn push(world: &mut World, commit: &str, edit: impl FnOnce(&mut RolloutSpec)) {
    world.source_commit = Some(commit.to_owned());
    world.edit_spec(edit);
}

/// Where a release is when git changes its mind.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Share(i32),
    Promoting,
}

const MOMENTS: [Moment; 3] = [Moment::Share(20), Moment::Share(60), Moment::Promoting];

fn at(world: &mut World, moment: Moment) {
    until(world, |world| match moment {
        Moment::Share(share) => canary_share(world) == share && world.routes[&web_route()].accept_at.is_none(),
        Moment::Promoting => world.in_flight().is_some_and(|release| release.state == ReleaseState::Promoting),
    });
}

/// Version 0 and version 1 were promoted, version 2 is on its way.
fn in_flight(moment: Moment) -> World {
    let mut world = deployed(spec("i:0", json!({})));
    push(&mut world, "c1", |spec| spec.template = template_with("i:1", "a"));
    world.run(TimeDelta::hours(1));
    push(&mut world, "c2", |spec| spec.template = template_with("i:2", "b"));
    at(&mut world, moment);
    world
}

struct Form {
    name: &'static str,
    commit: &'static str,
    edit: fn(&mut RolloutSpec),
    /// What follows in the log.
    events: &'static [(Event, &'static str)],
    /// What is stable in the end.
    stable: fn() -> PodTemplate,
}

fn one() -> PodTemplate {
    template_with("i:1", "a")
}

/// Back to what is stable: one transition, and everything is as it was.
const ABORT: &[(Event, &str)] = &[(Event::Aborted, "Revert")];

#[test]
fn every_form_of_a_revert_says_where_to_be() {
    let forms = [
        Form { name: "revert commit", commit: "r", edit: |spec| spec.template = one(), events: ABORT, stable: one },
        Form {
            name: "reset and force-push",
            commit: "c1",
            edit: |spec| spec.template = one(),
            events: ABORT,
            stable: one,
        },
        Form { name: "revert of a merge", commit: "m", edit: |spec| spec.template = one(), events: ABORT, stable: one },
        Form {
            name: "cherry-pick of the good one",
            commit: "p",
            edit: |spec| spec.template = one(),
            events: ABORT,
            stable: one,
        },
        Form {
            name: "revert together with another size",
            commit: "r",
            edit: |spec| {
                spec.template = one();
                spec.replicas = Some(7);
            },
            events: ABORT,
            stable: one,
        },
        Form {
            name: "revert together with other steps",
            commit: "r",
            edit: |spec| {
                spec.template = one();
                let canary = spec.strategy.canary.as_mut().unwrap();
                canary.steps = serde_json::from_value(json!([{"setWeight": 40}])).unwrap();
            },
            events: ABORT,
            stable: one,
        },
        Form {
            name: "revert of the image alone",
            commit: "r",
            edit: |spec| spec.template = template_with("i:1", "b"),
            events: &[(Event::Superseded, "Superseded"), (Event::Started, "NewRevision")],
            stable: || template_with("i:1", "b"),
        },
        Form {
            name: "revert squashed with another change",
            commit: "r",
            edit: |spec| spec.template = template_with("i:1", "c"),
            events: &[(Event::Superseded, "Superseded"), (Event::Started, "NewRevision")],
            stable: || template_with("i:1", "c"),
        },
        Form {
            name: "revert to an older version",
            commit: "r",
            edit: |spec| spec.template = template("i:0"),
            events: &[(Event::Superseded, "Superseded"), (Event::Started, "Rollback")],
            stable: || template("i:0"),
        },
    ];
    for form in &forms {
        for moment in MOMENTS {
            let told = format!("{}, {moment:?}", form.name);
            let mut world = in_flight(moment);
            let before = world.recorded.len();
            push(&mut world, form.commit, form.edit);
            let ended = world.run(TimeDelta::hours(2));
            assert!(matches!(&ended, Ended::Waits(wait) if wait.on == WaitOn::Nothing), "{told}: {ended:?}");
            let new = &world.recorded[before..];
            let said: Vec<(Event, &str)> =
                new.iter().take(form.events.len()).map(|entry| (entry.event, entry.reason.as_str())).collect();
            // A promotion that has begun is finished before something else than the stable version begins.
            let finished = matches!(moment, Moment::Promoting) && form.events[0].0 == Event::Superseded;
            let first = if finished { (Event::Promoted, "Promoted") } else { form.events[0] };
            assert_eq!((said[0], &said[1..]), (first, &form.events[1..]), "{told}");
            if form.events == ABORT {
                assert_eq!(new.len(), 1, "{told}: nothing else happened");
                assert!(new[0].message.contains(&one().revision()), "{told}: the target is named");
            }
            assert_eq!(new.last().unwrap().source_commit.as_deref(), Some(form.commit), "{told}");
            let stable = (form.stable)().revision();
            assert_eq!(world.status.stable_revision.as_ref(), Some(&stable), "{told}");
            assert_eq!((world.status.phase, canary_share(&world)), (Phase::Ready, 0), "{told}");
            assert_eq!(world.services["web-stable"].selects.as_ref(), Some(&stable), "{told}");
            assert!(world.status.denied.is_empty(), "{told}: a revert denies nothing");
        }
    }
}

#[test]
fn a_commit_that_changes_nothing_changes_nothing() {
    for moment in MOMENTS {
        let mut world = in_flight(moment);
        let before = world.recorded.len();
        let flight = world.in_flight().cloned();
        push(&mut world, "amended", |_| ());
        world.turn();
        assert!(world.recorded[before..].iter().all(|entry| entry.event != Event::Superseded), "{moment:?}");
        assert_eq!(world.in_flight().map(|it| it.attempt), flight.map(|it| it.attempt), "{moment:?}");
        world.run(TimeDelta::hours(2));
        assert_eq!(world.status.stable_revision, Some(template_with("i:2", "b").revision()), "{moment:?}");
    }
}

#[test]
fn the_revert_of_a_revert_is_consent() {
    for moment in MOMENTS {
        let mut world = in_flight(moment);
        push(&mut world, "r", |spec| spec.template = one());
        world.run(TimeDelta::hours(1));
        push(&mut world, "r2", |spec| spec.template = template_with("i:2", "b"));
        let ended = world.run(TimeDelta::hours(2));
        assert!(matches!(&ended, Ended::Waits(wait) if wait.on == WaitOn::Nothing), "{moment:?}: {ended:?}");
        assert_eq!(world.status.stable_revision, Some(template_with("i:2", "b").revision()), "{moment:?}");
    }
}

#[test]
fn a_revert_after_the_promotion_takes_the_fast_lane() {
    let mut world = in_flight(Moment::Promoting);
    world.run(TimeDelta::hours(1));
    let (before, begun) = (world.recorded.len(), world.now);
    push(&mut world, "r", |spec| spec.template = one());
    world.run(TimeDelta::hours(2));
    let new: Vec<(Event, &str)> =
        world.recorded[before..].iter().map(|entry| (entry.event, entry.reason.as_str())).collect();
    assert_eq!(new[0], (Event::Started, "Rollback"));
    assert!(new.iter().all(|(event, _)| *event != Event::StepCompleted || world.spec.replicas() == 0), "{new:?}");
    assert_eq!(world.status.stable_revision, Some(one().revision()));
    let took = world.recorded.last().unwrap().at - begun;
    assert!(took < TimeDelta::minutes(1), "no pause is waited for: {took}");
}

/// Version 2 was aborted by its metrics, and git was put right by a revert.
fn aborted_and_reverted() -> World {
    let mut world = in_flight(Moment::Share(20));
    say(&mut world, "1", InterventionAction::Abort);
    world.run(TimeDelta::minutes(10));
    assert_eq!(world.status.phase, Phase::Aborted);
    assert_eq!(world.ledger.aborted.len(), 1);
    push(&mut world, "r", |spec| spec.template = one());
    world.run(TimeDelta::minutes(10));
    assert_eq!(world.status.phase, Phase::Ready, "{}", world.status.message);
    world
}

#[test]
fn what_was_aborted_may_be_asked_for_once_more_and_that_is_recorded() {
    let mut world = aborted_and_reverted();
    let before = world.recorded.len();
    push(&mut world, "r2", |spec| spec.template = template_with("i:2", "b"));
    until(&mut world, |world| canary_share(world) == 20);
    let begun = &world.recorded[before];
    assert_eq!((begun.event, begun.reason.as_str(), begun.attempt), (Event::Started, "Consent", 2));
    assert!(begun.message.contains("git asks for it again"), "{}", begun.message);
    assert!(world.ledger.aborted.is_empty(), "the entry is lifted by what is recorded");
    // Aborted a second time: an identical commit is no consent any more, whoever pushes it.
    say(&mut world, "2", InterventionAction::Abort);
    world.run(TimeDelta::minutes(10));
    push(&mut world, "r3", |spec| spec.template = one());
    world.run(TimeDelta::minutes(10));
    let before = world.recorded.len();
    push(&mut world, "r4", |spec| spec.template = template_with("i:2", "b"));
    world.run(TimeDelta::hours(1));
    let new: Vec<Event> = world.recorded[before..].iter().map(|entry| entry.event).collect();
    assert_eq!(new, [Event::Denied]);
    assert_eq!((world.status.phase, canary_share(&world)), (Phase::Aborted, 0));
    assert!(world.status.message.contains("retry"), "it says how to lift it: {}", world.status.message);
    // A person's word is.
    say(&mut world, "3", InterventionAction::Retry);
    until(&mut world, |world| canary_share(world) == 20);
    assert_eq!(world.in_flight().unwrap().attempt, 3);
}

#[test]
fn a_revert_that_leads_to_what_was_aborted_is_a_word_for_it_once() {
    let mut world = in_flight(Moment::Share(20));
    say(&mut world, "1", InterventionAction::Abort);
    world.run(TimeDelta::minutes(10));
    // Version 3 is committed on top of version 2, and reverted in flight.
    push(&mut world, "c3", |spec| spec.template = template_with("i:3", "b"));
    until(&mut world, |world| canary_share(world) == 20);
    let before = world.recorded.len();
    push(&mut world, "r", |spec| spec.template = template_with("i:2", "b"));
    until(&mut world, |world| world.in_flight().is_some_and(|it| it.attempt == 2));
    let new: Vec<(Event, &str)> =
        world.recorded[before..].iter().map(|entry| (entry.event, entry.reason.as_str())).collect();
    assert_eq!(new, [(Event::Superseded, "Superseded"), (Event::Started, "Consent")]);
}

#[test]
fn a_partial_revert_of_what_does_not_make_the_revision_aborts_nothing() {
    let mut world = in_flight(Moment::Share(20));
    let before = world.recorded.len();
    push(&mut world, "r", |spec| spec.replicas = Some(6));
    world.run(TimeDelta::seconds(20));
    assert!(world.in_flight().is_some(), "{}", world.status.message);
    assert!(
        world.recorded[before..].iter().all(|entry| entry.event == Event::StepCompleted),
        "a size is no transition"
    );
}

#[test]
fn an_abort_by_rewritten_history_says_so_with_both_commits() {
    let [good, bad] = ["3", "5"].map(|digit| digit.repeat(40));
    for (rewritten, words) in [(true, "history rewritten"), (false, "ancestry unknown")] {
        for moment in MOMENTS {
            let mut world = in_flight(moment);
            push(&mut world, &good, |spec| spec.template = one());
            world.source_history = Some(SourceHistory { from: bad.clone(), rewritten });
            world.run(TimeDelta::hours(1));
            let aborted = world.recorded.iter().rfind(|transition| transition.event == Event::Aborted).unwrap();
            assert_eq!(
                (aborted.reason.as_str(), aborted.source_commit.as_ref()),
                ("Revert", Some(&good)),
                "{moment:?}"
            );
            let message = &aborted.message;
            assert!(message.contains(words) && message.contains(&good) && message.contains(&bad), "{message}");
            assert_eq!(world.status.stable_revision, Some(one().revision()));
        }
    }
}
