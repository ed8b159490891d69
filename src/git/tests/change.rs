//! A change of one file of a branch that people commit to.

use super::*;
use crate::git::{FileChange, Rejection};

const FILES: [(&str, &str, &str); 4] = [
    ("100644", "deploy/shop/web.yaml", "image: bad # comment\r\n"),
    ("100644", "deploy/shop/näme with spaces.yaml", "x: 1"),
    ("100755", "run.sh", "#!/bin/sh\n"),
    ("120000", "link", "run.sh"),
];

fn change<'a>(base: &'a str, content: &'a str) -> FileChange<'a> {
    FileChange {
        base,
        path: "deploy/shop/web.yaml",
        content,
        message: "Revert \"web: v2\"\n\nThis reverts commit 1234.\n",
        author: "Sluice <sluice@prod>",
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
    }
}

/// A server as a careful host has it: no shallow history may come in.
fn place() -> Place {
    let place = Place::new();
    place.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
    place.git(&["config", "receive.shallowUpdate", "false"]);
    for number in 0..5 {
        place.commit("main", &[("100644", "deploy/shop/web.yaml", &format!("image: v{number}\n"))]);
    }
    place
}

#[tokio::test]
async fn one_file_changes_and_nothing_else_and_the_history_is_whole() {
    let place = place();
    let bad = place.commit("main", &FILES);
    let repository = place.repository();
    let source = read(&repository, Some("deploy")).await.unwrap();
    let before = repository.read_before(&bad, Some("deploy"), &ReadLimits::default()).await.unwrap();
    assert_eq!(
        (before.subject.as_str(), before.source.files[0].content.as_str()),
        ("somebody's commit", "image: v4\n")
    );
    let content = "image: good # comment\r\n";
    let made = repository.push_change("main", change(&source.commit, content)).await.unwrap();
    assert_eq!(place.git(&["rev-parse", "main"]), made);
    assert_eq!(place.git(&["diff", "--name-only", &bad, &made]), "deploy/shop/web.yaml");
    assert_eq!(place.git(&["rev-list", "--count", "main"]), "7", "no history is cut off");
    place.git(&["fsck", "--strict"]);
    let raw = run(Command::new("git").arg("--git-dir").arg(place.remote()).args(["cat-file", "commit", &made]));
    assert!(
        raw.contains("author Sluice <sluice@prod> 1767225600 +0000") && raw.contains("Revert \"web: v2\""),
        "{raw}"
    );
    // The next look reads it, and the same change again is the same commit: nothing is done twice.
    let again = read(&repository, Some("deploy")).await.unwrap();
    assert_eq!((again.commit, again.files[1].content.as_str()), (made.clone(), content));
    assert_eq!(repository.push_change("main", change(&bad, content)).await.unwrap(), made);
}

#[tokio::test]
async fn a_branch_that_has_moved_on_is_not_overwritten() {
    let place = place();
    let bad = place.commit("main", &FILES);
    let repository = place.repository();
    read(&repository, None).await.unwrap();
    let theirs = place.commit("main", &[("100644", "deploy/shop/web.yaml", "image: mended\n")]);
    let refused = repository.push_change("main", change(&bad, "image: good\n")).await.unwrap_err();
    assert!(matches!(refused, GitError::Rejected { why: Rejection::NonFastForward, .. }), "{refused}");
    assert_eq!(place.git(&["rev-parse", "main"]), theirs);
    place.hook("pre-receive", "echo 'reviews are needed' >&2; exit 1");
    read(&repository, None).await.unwrap();
    let refused = repository.push_change("main", change(&theirs, "image: good\n")).await.unwrap_err();
    assert!(matches!(refused, GitError::Rejected { why: Rejection::Hook, .. }), "{refused}");
    place.remove_hook("pre-receive");
    // A branch of its own, for a pull request.
    let made =
        repository.push_change("sluice/revert/prod/shop/web/abc", change(&theirs, "image: good\n")).await.unwrap();
    assert_eq!(place.git(&["rev-parse", "sluice/revert/prod/shop/web/abc"]), made);
    assert_eq!(repository.log_branches().await.unwrap().len(), 0);
    place.git(&["update-ref", "refs/heads/rollout-log/prod", &made]);
    place.git(&["update-ref", "refs/heads/rollout-log/test@2026q1", &made]);
    let branches: Vec<String> = repository.log_branches().await.unwrap().into_iter().collect();
    assert_eq!(branches, ["rollout-log/prod", "rollout-log/test@2026q1"]);
}

#[tokio::test]
async fn what_cannot_be_changed_is_named() {
    let place = place();
    let bad = place.commit("main", &FILES);
    let repository = place.repository();
    read(&repository, None).await.unwrap();
    for path in ["link", "gone.yaml", "deploy"] {
        let refused = repository.push_change("main", FileChange { path, ..change(&bad, "x") }).await.unwrap_err();
        assert!(refused.to_string().contains(path), "{refused}");
    }
    for commit in ["--upload-pack=x", "main", &"0".repeat(40)] {
        assert!(repository.read_before(commit, None, &ReadLimits::default()).await.is_err(), "{commit}");
    }
}
