//! What a transition costs: bytes in the repository, and calls of git. Not how long it takes; `benches/ledger` measures that.

use super::super::command::CALLS;
use super::*;
use crate::api::PodTemplate;

const ROLLOUTS: i64 = 20;
const RELEASES: i64 = 4;
/// Transitions of one release.
const STAGES: i64 = 9;
/// Measured: 583 with git 2.39. Other versions of git pack a little differently.
const MOST_BYTES: u64 = 650;

/// Digits as a server gives them, the same in every run.
fn digits(seed: i64) -> String {
    let mixed =
        seed.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0xd6e8_feb8_6659_fd93);
    format!("0.00{:016}", mixed % 10_000_000_000_000_000)
}

/// A transition of a canary that is analysed all along.
fn transition(rollout: i64, release: i64, stage: i64) -> LedgerEntry {
    let sequence = release * STAGES + stage;
    let event = match stage {
        1 => TransitionEvent::Started,
        STAGES => TransitionEvent::Promoted,
        _ => TransitionEvent::StepCompleted,
    };
    let mut entry = entry(&format!("service-{rollout:04}"), sequence, event);
    let template = |release: i64| json!({"spec": {"containers": [{"name": "app", "image": format!("app:{release}")}]}});
    let digest = |what: i64| PodTemplate(json!([rollout, what])).hash_v1();
    let at = entry.transition.at + chrono::TimeDelta::seconds(rollout);
    entry.transition.at = at;
    entry.transition.message = format!("stage {stage} is done: pass (the sample is good)");
    entry.transition.verdict = Some("pass (the sample is good)".into());
    entry.transition.revision_from = Some(digest(release - 1)[..10].to_owned());
    entry.transition.revision_to = digest(release)[..10].to_owned();
    entry.transition.source_commit = Some(digest(release + 1000)[..40].to_owned());
    entry.transition.weight_to = i32::try_from(stage * 10).unwrap();
    entry.transition.stage = i32::try_from(stage).unwrap();
    entry.state = json!({"phase": "Progressing", "release": {"stage": stage, "stageStartedAt": at}});
    let row = |one: i64| format!("| {one}/{STAGES} | {} |\n", if one < stage { "done" } else { "" });
    entry.plan = (1..=STAGES).map(row).collect();
    let measured = (0..stage * 2).map(|one| {
        let seed = (rollout * 100 + release) * 100 + one;
        json!({"at": at - chrono::TimeDelta::seconds(30 * (stage * 2 - one)), "values": [digits(seed)], "verdict": "Pass"})
    });
    let body = json!({"stage": "background", "measurements": measured.collect::<Vec<_>>()});
    entry.evidence = vec![Evidence { stage: "background".into(), body }];
    entry.template = Some(template(release));
    entry
}

#[tokio::test]
async fn a_transition_takes_few_bytes() {
    let place = Place::new();
    let ledger = place.ledger();
    let mut count = 0;
    for release in 0..RELEASES {
        for stage in 1..=STAGES {
            let push: Vec<_> = (0..ROLLOUTS).map(|rollout| transition(rollout, release, stage)).collect();
            ledger.append(&push).await.unwrap();
            count += push.len() as u64;
        }
    }
    place.git(&["repack", "-adfq", "--window=10", "--depth=50", "--threads=1"]);
    let packed = place.git(&["count-objects", "-v"]);
    let kibibytes = packed.lines().find_map(|line| line.strip_prefix("size-pack: ")).unwrap();
    // With the index of the pack, which takes 32 bytes an object.
    let objects = packed.lines().find_map(|line| line.strip_prefix("in-pack: ")).unwrap().parse::<u64>().unwrap();
    let bytes = (kibibytes.parse::<u64>().unwrap() * 1024).saturating_sub(objects * 32) / count;
    assert!(bytes <= MOST_BYTES, "{bytes} bytes a transition: {packed}");
    assert!(objects / count <= 7, "{objects} objects for {count} transitions");
}

#[tokio::test]
async fn a_push_takes_the_same_calls_of_git_however_much_it_carries() {
    let place = Place::new();
    let ledger = place.ledger();
    let all = |stage| (0..ROLLOUTS).map(move |rollout| transition(rollout, 0, stage)).collect::<Vec<_>>();
    ledger.append(&all(1)).await.unwrap();
    let mut calls = Vec::new();
    let pushes = [all(2)[..1].to_vec(), all(2)[1..].to_vec(), [all(3), all(4), all(5)].concat()];
    for push in pushes {
        let before = CALLS.get();
        ledger.append(&push).await.unwrap();
        calls.push(CALLS.get() - before);
    }
    assert_eq!(calls, [calls[0]; 3]);
    assert!(calls[0] <= 4, "{calls:?}: one writes, one pushes, one remembers");
    assert_eq!(place.recorded().len(), usize::try_from(ROLLOUTS).unwrap() * 5, "each has its commit");
}
