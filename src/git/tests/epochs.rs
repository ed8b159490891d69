//! Forks, epochs and signatures of a ledger.

use std::fs;
use std::process::Command;

use super::super::{Fork, LedgerPolicy, Signer};
use super::{BRANCH, GitError, Place, run, step};
use crate::api::Epochs;

/// In the quarter of the entries of these tests.
const NEXT: &str = "rollout-log/prod@2026q1";

fn policy(epochs: Epochs) -> LedgerPolicy {
    LedgerPolicy { epochs, ..LedgerPolicy::default() }
}

fn trailer(place: &Place, commit: &str, name: &str) -> String {
    place.git(&["log", "-1", &format!("--format=%(trailers:key=Rollout-{name},valueonly,separator=)"), commit])
}

#[tokio::test]
async fn a_branch_that_others_wrote_is_left_alone_and_the_next_epoch_goes_on() {
    let full = format!("refs/heads/{BRANCH}");
    for rewritten in [true, false] {
        let place = Place::new();
        let ledger = place.ledger();
        ledger.append(&[step("web", 1)]).await.unwrap();
        let known = place.tip();
        if rewritten {
            place.git(&["update-ref", "-d", &full]);
        }
        let foreign = place.commit(BRANCH, &[("100644", "shop/web/state.json", "{}")]);
        let appended = ledger.append(&[step("web", 2)]).await.unwrap();
        let fork =
            Fork { branch: NEXT.into(), previous: BRANCH.into(), expected: known.clone(), found: foreign.clone() };
        assert_eq!((appended.branch.as_str(), &appended.fork), (NEXT, &Some(fork.clone())), "rewritten {rewritten}");
        assert_eq!(place.tip(), foreign, "the branch stays as it was found");
        // Nothing that was written is lost, and the commit between says why there are two branches.
        assert_eq!(place.recorded_in(NEXT), ["shop/web#1", "#", "shop/web#2"]);
        let between = format!("{NEXT}~1");
        assert_eq!(trailer(&place, &between, "Epoch"), "2026q1");
        assert_eq!(trailer(&place, &between, "Prev-Epoch"), format!("{BRANCH} {known}"));
        assert_eq!(trailer(&place, &between, "Fork"), foreign);
        assert_eq!(trailer(&place, NEXT, "Prev"), known);
        // Whoever comes later goes on there, and the alarm stays until somebody has looked.
        let fresh = place.fresh_ledger().expecting(Some((BRANCH, &known)));
        for ledger in [&ledger, &place.ledger(), &place.fresh_ledger(), &fresh] {
            let again = ledger.append(&[step("web", 2), step("web", 3)]).await.unwrap();
            assert_eq!((again.branch.as_str(), again.fork.as_ref()), (NEXT, Some(&fork)));
            assert_eq!(ledger.read().await.unwrap().fork.as_ref(), Some(&fork));
        }
        assert_eq!(place.recorded_in(NEXT), ["shop/web#1", "#", "shop/web#2", "shop/web#3"]);
        let looked = LedgerPolicy { acknowledged_fork: Some(NEXT.into()), ..LedgerPolicy::default() };
        assert_eq!(place.fresh_ledger().with_policy(looked).read().await.unwrap().fork, None);
    }
}

#[tokio::test]
async fn a_second_fork_before_somebody_has_looked_stops_the_writer() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.append(&[step("web", 1)]).await.unwrap();
    place.commit(BRANCH, &[("100644", "x", "")]);
    ledger.append(&[step("web", 2)]).await.unwrap();
    let foreign = place.commit(NEXT, &[("100644", "y", "")]);
    for ledger in [&ledger, &place.ledger()] {
        for _ in 0..2 {
            let error = ledger.append(&[step("web", 3)]).await.unwrap_err();
            assert!(matches!(error, GitError::Forked { .. }), "{error}");
            assert_eq!(error.reason(), "LogForked");
            assert_eq!(place.git(&["rev-parse", NEXT]), foreign);
        }
    }
    let looked = LedgerPolicy { acknowledged_fork: Some(NEXT.into()), ..LedgerPolicy::default() };
    let appended = place.ledger().with_policy(looked).append(&[step("web", 3)]).await.unwrap();
    assert_eq!(appended.branch, "rollout-log/prod@2026q1.2");
    assert_eq!(appended.fork.unwrap().found, foreign);
    assert_eq!(place.recorded_in(&appended.branch), ["shop/web#1", "#", "shop/web#2", "#", "shop/web#3"]);
}

#[tokio::test]
async fn two_operators_of_one_name_do_not_drive_each_other_on() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.append(&[step("web", 1)]).await.unwrap();
    let other = place.fresh_ledger();
    other.append(&[step("api", 1)]).await.unwrap();
    for number in 2..6 {
        ledger.append(&[step("web", number)]).await.unwrap();
        other.append(&[step("api", number)]).await.unwrap();
    }
    assert_eq!(place.git(&["for-each-ref", "--format=%(refname:short)", "refs/heads"]), format!("{BRANCH}\n{NEXT}"));
    assert_eq!(place.recorded_in(NEXT), ["shop/web#1", "#", "shop/web#2", "shop/web#3", "shop/web#4", "shop/web#5"]);
}

#[tokio::test]
async fn who_has_no_copy_but_knows_of_one_does_not_begin_anew_in_silence() {
    for garbage in [None, Some("{}")] {
        let place = Place::new();
        place.ledger().append(&[step("web", 1)]).await.unwrap();
        let tip = place.tip();
        place.git(&["update-ref", "-d", &format!("refs/heads/{BRANCH}")]);
        let found = garbage.map(|text| place.commit(BRANCH, &[("100644", "shop/web/state.json", text)]));
        let fresh = place.fresh_ledger().expecting(Some((BRANCH, &tip)));
        assert!(fresh.read().await.unwrap().fork.is_some());
        let appended = fresh.append(&[step("web", 2)]).await.unwrap();
        let fork = appended.fork.unwrap();
        assert_eq!((fork.expected, fork.found), (tip.clone(), found.clone().unwrap_or("gone".into())));
        assert_eq!(place.recorded_in(NEXT), ["#", "shop/web#2"]);
        assert_eq!(trailer(&place, &format!("{NEXT}~1"), "Prev-Epoch"), format!("{BRANCH} {tip}"));
    }
}

#[tokio::test]
async fn the_answer_to_the_first_push_of_an_epoch_may_be_lost() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.append(&[step("web", 1)]).await.unwrap();
    let known = place.tip();
    place.commit(BRANCH, &[("100644", "x", "")]);
    // The server takes the push and ends the connection in the middle of its answer.
    place.hook("post-receive", "kill -9 $PPID");
    ledger.append(&[step("web", 2)]).await.unwrap_err();
    place.remove_hook("post-receive");
    assert_eq!(place.recorded_in(NEXT), ["shop/web#1", "#", "shop/web#2"], "the server did take it");
    for ledger in [&ledger, &place.fresh_ledger().expecting(Some((BRANCH, &known)))] {
        assert_eq!(ledger.append(&[step("web", 2)]).await.unwrap().branch, NEXT);
    }
    assert_eq!(place.recorded_in(NEXT), ["shop/web#1", "#", "shop/web#2"]);
}

#[tokio::test]
async fn each_quarter_has_a_branch_that_begins_with_the_present() {
    let place = Place::new();
    let ledger = place.ledger().with_policy(policy(Epochs::Quarterly));
    ledger.append(&[step("web", 1), step("api", 1)]).await.unwrap();
    let first = place.tip();
    let mut april = step("web", 2);
    april.transition.at = "2026-04-01T00:00:00Z".parse().unwrap();
    let appended = ledger.append(&[april.clone()]).await.unwrap();
    let branch = "rollout-log/prod@2026q2";
    assert_eq!((appended.branch.as_str(), appended.fork), (branch, None));
    assert_eq!(place.tip(), first, "the old branch stays");
    assert_eq!(place.recorded_in(branch), ["#", "shop/web#2"]);
    let root = place.git(&["rev-list", "--max-parents=0", branch]);
    assert_eq!(trailer(&place, &root, "Prev-Epoch"), format!("{BRANCH} {first}"));
    assert_eq!(
        place.git(&["rev-parse", &format!("{root}^{{tree}}")]),
        place.git(&["rev-parse", &format!("{first}^{{tree}}")])
    );
    assert_eq!(trailer(&place, branch, "Prev"), root);
    // A late one of the old quarter goes where the ledger is now; one that is known is not written again; and who
    // knows only the old tip finds the way.
    let fresh = place.fresh_ledger().with_policy(policy(Epochs::Quarterly)).expecting(Some((BRANCH, &first)));
    let contents = fresh.read().await.unwrap();
    assert_eq!((contents.branch.as_str(), contents.rollouts.len(), contents.fork), (branch, 2, None));
    fresh.append(&[april, step("api", 1), step("api", 2)]).await.unwrap();
    assert_eq!(place.recorded_in(branch), ["#", "shop/web#2", "shop/api#2"]);
    assert_eq!(trailer(&place, branch, "Prev"), root);
    let mut july = step("api", 3);
    july.transition.at = "2026-07-04T00:00:00Z".parse().unwrap();
    let late = place.fresh_ledger().with_policy(policy(Epochs::Quarterly)).expecting(Some((BRANCH, &first)));
    late.append(&[july]).await.unwrap();
    // Two quarters on, from the first tip of all.
    let behind = place.fresh_ledger().expecting(Some((BRANCH, &first)));
    assert_eq!(behind.read().await.unwrap().fork, None);
    // Without the policy the branch that is there is written, whatever the date.
    let mut october = step("api", 4);
    october.transition.at = "2026-10-04T00:00:00Z".parse().unwrap();
    assert_eq!(behind.append(&[october]).await.unwrap().branch, "rollout-log/prod@2026q3");
    place.git(&["fsck", "--strict"]);
}

#[tokio::test]
async fn the_tip_of_each_push_is_signed_and_git_agrees() {
    let place = Place::new();
    let keys = place.directory.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let key = keys.join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&key));
    let public = fs::read_to_string(keys.join("key.pub")).unwrap();
    let allowed = keys.join("allowed");
    fs::write(&allowed, format!("sluice@prod namespaces=\"git\" {public}")).unwrap();
    let signer = Signer::new(&keys, &fs::read_to_string(&key).unwrap()).unwrap();
    let ledger = place.ledger().with_policy(LedgerPolicy { signer: Some(signer), ..LedgerPolicy::default() });
    ledger.append(&[step("web", 1), step("web", 2)]).await.unwrap();
    ledger.append(&[step("web", 3)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3"]);
    let option = format!("gpg.ssh.allowedSignersFile={}", allowed.display());
    let states = place.git(&["-c", &option, "log", "--reverse", "--format=%G?", BRANCH]);
    assert_eq!(states, "N\nG\nG");
    assert_eq!(trailer(&place, BRANCH, "Prev"), place.git(&["rev-parse", &format!("{BRANCH}~1")]));
    place.git(&["fsck", "--strict"]);
    // A key that cannot sign is an error that does not tell it, and nothing is written.
    let broken = "-----BEGIN OPENSSH PRIVATE KEY-----\nY2FuYXJ5LW5vdC1hLWtleQ==\n-----END OPENSSH PRIVATE KEY-----\n";
    let signer = Signer::new(&keys, broken).unwrap();
    let ledger = place.ledger().with_policy(LedgerPolicy { signer: Some(signer), ..LedgerPolicy::default() });
    let error = ledger.append(&[step("web", 4)]).await.unwrap_err();
    assert!(!error.to_string().contains("Y2FuYXJ5"), "{error}");
    assert_eq!(place.recorded().len(), 3);
}
