//! Entries after a commit, as those read them who tell others.

use super::super::{GitCache, LedgerPolicy, Segment};
use super::{BRANCH, Place, step};
use crate::api::Epochs;

const NEXT: &str = "rollout-log/prod@2026q2";

/// The subjects' Ids and numbers of what is answered; none while the copy does not hold the tip.
async fn after(place: &Place, cache: &GitCache, branch: &str, after: Option<&str>, most: usize) -> Option<Vec<String>> {
    let tip = place.git(&["rev-parse", branch]);
    let wanted = Segment { branch: branch.to_owned(), tip, after: after.map(str::to_owned) };
    let commits = cache.entries(&place.address(), wanted, most).await.unwrap()?;
    let entry = |name: &str, sequence: &str| format!("{}#{sequence}", name.trim_start_matches("prod/shop/"));
    let told = commits.iter().map(|commit| {
        let trailers = commit.trailers();
        entry(trailers.get("Id").unwrap_or_default(), trailers.get("Seq").unwrap_or_default())
    });
    Some(told.collect())
}

async fn two_epochs(place: &Place) -> GitCache {
    let cache = place.cache();
    let ledger = cache.repository_at(place.address(), super::Credentials::None).unwrap().ledger("prod").unwrap();
    let ledger = ledger.with_policy(LedgerPolicy { epochs: Epochs::Quarterly, ..LedgerPolicy::default() });
    ledger.append(&[step("web", 1), step("web", 2), step("web", 3)]).await.unwrap();
    let mut april = step("web", 4);
    april.transition.at = "2026-04-01T00:00:00Z".parse().unwrap();
    ledger.append(&[april]).await.unwrap();
    cache
}

#[tokio::test]
async fn entries_come_in_order_after_a_commit_and_across_epochs() {
    let place = Place::new();
    let cache = two_epochs(&place).await;
    let commit = |name: &str| place.git(&["rev-parse", name]);
    let (first, old_tip, root) = (commit(&format!("{BRANCH}~2")), commit(BRANCH), commit(&format!("{NEXT}~1")));
    let whole = ["web#1", "web#2", "web#3", "#", "web#4"];
    for (cursor, expected) in [
        (None, whole.as_slice()),
        (Some(first.as_str()), &whole[1..]),
        (Some(old_tip.as_str()), &whole[3..]),
        (Some(root.as_str()), &whole[4..]),
        (Some(commit(NEXT).as_str()), &[]),
    ] {
        assert_eq!(after(&place, &cache, NEXT, cursor, 100).await.unwrap(), expected, "{cursor:?}");
    }
    assert_eq!(after(&place, &cache, NEXT, Some(&first), 2).await.unwrap(), ["web#2", "web#3"]);
    assert_eq!(after(&place, &cache, BRANCH, Some(&first), 100).await.unwrap(), ["web#2", "web#3"]);
}

#[tokio::test]
async fn a_commit_that_is_nowhere_begins_with_the_present_epoch() {
    let place = Place::new();
    let cache = two_epochs(&place).await;
    let gone = "1234567890123456789012345678901234567890";
    for cursor in [gone, "--all", "", "main"] {
        assert_eq!(after(&place, &cache, NEXT, Some(cursor), 100).await.unwrap(), ["#", "web#4"], "{cursor}");
        let first = after(&place, &cache, BRANCH, Some(cursor), 100).await.unwrap();
        assert_eq!(first, Vec::<String>::new(), "the first branch has no such beginning");
    }
    // A commit that exists and is in none of the epochs.
    let foreign = place.commit("main", &[("100644", "a", "b")]);
    assert_eq!(after(&place, &cache, NEXT, Some(&foreign), 100).await.unwrap(), ["#", "web#4"]);
}

#[tokio::test]
async fn what_our_copy_does_not_hold_yet_is_waited_for() {
    let place = Place::new();
    two_epochs(&place).await;
    let fresh = place.fresh_cache();
    assert_eq!(after(&place, &fresh, NEXT, None, 100).await, None);
    let ledger = fresh.repository_at(place.address(), super::Credentials::None).unwrap().ledger("prod").unwrap();
    ledger.read().await.unwrap();
    // The branch of the first quarter was not fetched again.
    assert_eq!(after(&place, &fresh, NEXT, Some(&place.tip()), 100).await.unwrap(), ["#", "web#4"]);
}
