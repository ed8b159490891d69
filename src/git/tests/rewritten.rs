//! History that is rewritten between two looks: the next look reads what is there, without anybody's hand.

use super::*;

/// What the server does for housekeeping: what no branch has is gone.
fn forget(place: &Place) {
    place.git(&["reflog", "expire", "--expire=now", "--all"]);
    place.git(&["gc", "-q", "--prune=now"]);
}

#[tokio::test]
async fn the_next_look_reads_the_new_tip_whatever_was_done_to_history() {
    let content = |text: &str| [("100644", "a.yaml", text.to_owned())];
    let place = Place::new();
    let commit = |text: &str| {
        let files = content(text);
        let files: Vec<_> = files.iter().map(|(mode, path, text)| (*mode, *path, text.as_str())).collect();
        place.commit("main", &files)
    };
    let set = |commit: &str| place.git(&["update-ref", "refs/heads/main", commit]);
    let repository = place.repository();
    let look = async || {
        let source = read(&repository, None).await.unwrap();
        (source.commit, source.files[0].content.clone())
    };
    let first = commit("one");
    let second = commit("two");
    let third = commit("three");
    assert_eq!(look().await, (third.clone(), "three".into()));
    // Forced back, and what was there is collected.
    set(&first);
    forget(&place);
    assert_eq!(look().await, (first.clone(), "one".into()));
    // Amended: another commit on the same parent, with other content.
    let second_again = commit("two, amended");
    assert_ne!(second_again, second);
    assert_eq!(look().await, (second_again.clone(), "two, amended".into()));
    // A rebase that drops one: the third on the first.
    let third_again = commit("three");
    let tree = place.git(&["rev-parse", &format!("{third_again}^{{tree}}")]);
    let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
    let rebased = place.git(&[&identity[..], &["commit-tree", "-p", &first, "-m", "three", &tree]].concat());
    set(&rebased);
    forget(&place);
    assert_eq!(look().await, (rebased.clone(), "three".into()));
    // Deleted, looked at, and made anew from nothing.
    place.git(&["update-ref", "-d", "refs/heads/main"]);
    forget(&place);
    let gone = read(&repository, None).await.unwrap_err();
    assert_eq!(gone.reason(), "BranchNotFound");
    let anew = commit("anew");
    assert_eq!(look().await, (anew.clone(), "anew".into()));
    // Renamed: the branch that is declared is missing until the declaration follows.
    place.git(&["branch", "-m", "main", "trunk"]);
    assert_eq!(read(&repository, None).await.unwrap_err().reason(), "BranchNotFound");
    let renamed = repository.read("trunk", None, &ReadLimits::default()).await.unwrap();
    assert_eq!(renamed.commit, anew);
    place.git(&["branch", "-m", "trunk", "main"]);
    // The same commit again, after a long history: the boundary of what we have moves, and nobody minds.
    for number in 0..20 {
        commit(&format!("later {number}"));
    }
    assert_eq!(look().await.1, "later 19");
    set(&anew);
    assert_eq!(look().await, (anew, "anew".into()));
}
