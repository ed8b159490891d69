//! The git host, used by real git.

use std::net::Ipv4Addr;
use std::time::Instant;

use axum::http::HeaderMap;
use axum::routing::post;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::work_tree::WorkTree;

async fn host() -> (TempDir, GitServer) {
    let scratch = tempfile::tempdir().unwrap();
    let server = GitServer::start(scratch.path().join("host"), Ipv4Addr::LOCALHOST.into()).await.unwrap();
    (scratch, server)
}

async fn pushed(scratch: &TempDir, url: &str, clone: &str) -> (WorkTree, String) {
    let tree = WorkTree::clone(url, scratch.path().join(clone)).await.unwrap();
    tree.write("apps/web.yaml", "kind: Rollout\n").unwrap();
    let sha = tree.commit("Deploy v1\n\nBecause.\n\nSluice-Phase: Promoted\n").await.unwrap();
    tree.push().await.unwrap();
    (tree, sha)
}

#[tokio::test]
async fn what_one_clone_pushes_another_reads() {
    let (scratch, server) = host().await;
    let url = server.create("shop").await.unwrap();
    let (tree, first) = pushed(&scratch, &url, "one").await;
    tree.write("apps/web.yaml", "kind: Rollout # v2\n").unwrap();
    let second = tree.commit("Deploy v2").await.unwrap();
    let third = tree.revert(&second).await.unwrap();
    tree.push().await.unwrap();

    let other = WorkTree::clone(&url, scratch.path().join("two")).await.unwrap();
    let log = other.log("main").await.unwrap();
    assert_eq!(log.iter().map(|entry| entry.sha.as_str()).collect::<Vec<_>>(), [&*third, &*second, &*first]);
    assert_eq!(log[0].subject, "Revert \"Deploy v2\"");
    assert_eq!(log[0].body, format!("This reverts commit {second}."));
    assert_eq!(log[2].trailer("sluice-phase"), Some("Promoted"));
    assert_eq!(other.file_at("main", "apps/web.yaml").await.unwrap().as_deref(), Some("kind: Rollout\n"));
    assert_eq!(other.files("main").await.unwrap(), ["apps/web.yaml"]);
    assert_eq!(other.file_at("main", "apps/none.yaml").await.unwrap(), None);
    assert_eq!(other.log("rollout-log/none").await.unwrap(), []);
}

#[tokio::test]
async fn a_shallow_partial_fetch_of_one_commit_works() {
    let (scratch, server) = host().await;
    let url = server.create("shop").await.unwrap();
    let (tree, first) = pushed(&scratch, &url, "one").await;
    tree.write("large", &"x".repeat(2 << 20)).unwrap();
    tree.commit("Something large").await.unwrap();
    tree.push().await.unwrap();

    let bare = scratch.path().join("bare");
    isolated(scratch.path()).args(["init", "--quiet", "--bare"]).arg(&bare).ok().await.unwrap();
    let fetch = ["fetch", "--quiet", "--depth=1", "--filter=blob:none", &url];
    isolated(&bare).args(fetch).arg("main:refs/heads/main").ok().await.unwrap();
    let commits = isolated(&bare).args(["rev-list", "--count", "main"]).ok().await.unwrap();
    assert_eq!(commits.trim(), "1", "not shallow");
    let missing = isolated(&bare).args(["rev-list", "--objects", "--missing=print", "main"]).ok().await.unwrap();
    assert!(missing.lines().any(|line| line.starts_with('?')), "not partial: {missing}");
    // A commit that no branch points to, by its name alone.
    isolated(&bare).args(fetch).arg(format!("{first}:refs/heads/old")).ok().await.unwrap();
}

#[tokio::test]
async fn without_the_password_nobody_reads_or_pushes() {
    let (scratch, server) = host().await;
    let url = server.create("shop").await.unwrap();
    let (tree, first) = pushed(&scratch, &url, "one").await;
    server.require_password("shop", "robin", "hush");

    let refused = WorkTree::clone(&url, scratch.path().join("two")).await.err().unwrap();
    assert!(format!("{refused:#}").contains("Authentication failed"), "{refused:#}");
    let wrong = url.replace("http://", "http://robin:guess@");
    assert!(WorkTree::clone(&wrong, scratch.path().join("three")).await.is_err());
    tree.write("more", "").unwrap();
    tree.commit("More").await.unwrap();
    assert!(tree.push().await.is_err());

    let right = url.replace("http://", "http://robin:hush@");
    let admitted = WorkTree::clone(&right, scratch.path().join("four")).await.unwrap();
    assert_eq!(admitted.head().await.unwrap(), first, "the refused push moved nothing");
    admitted.write("more", "").unwrap();
    admitted.commit("More").await.unwrap();
    admitted.push().await.unwrap();
}

#[tokio::test]
async fn an_outage_refuses_connections_until_it_ends() {
    let (scratch, mut server) = host().await;
    let url = server.create("shop").await.unwrap();
    let (tree, first) = pushed(&scratch, &url, "one").await;
    server.stop().await;
    let down = tree.log("main").await.unwrap_err();
    assert!(format!("{down:#}").contains("Failed to connect"), "{down:#}");
    server.start_again().await.unwrap();
    assert_eq!(server.url("shop"), url, "on the same port");
    assert_eq!(tree.log("main").await.unwrap()[0].sha, first);
}

#[tokio::test]
async fn a_hook_refuses_a_push_until_it_is_removed() {
    let (scratch, server) = host().await;
    let url = server.create("shop").await.unwrap();
    server.set_hook("shop", "pre-receive", "#!/bin/sh\necho protected >&2\nexit 1\n").unwrap();
    let tree = WorkTree::clone(&url, scratch.path().join("one")).await.unwrap();
    tree.write("file", "").unwrap();
    tree.commit("A file").await.unwrap();
    let refused = tree.push().await.unwrap_err();
    assert!(format!("{refused:#}").contains("protected"), "{refused:#}");
    server.remove_hook("shop", "pre-receive").unwrap();
    tree.push().await.unwrap();
}

#[tokio::test]
async fn only_a_push_that_moved_something_is_told() {
    let (told, mut calls) = mpsc::unbounded_channel();
    let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hook = format!("http://{}/hook", receiver.local_addr().unwrap());
    let tell = move |headers: HeaderMap, body: String| async move { told.send((headers, body)).unwrap() };
    let router = Router::new().route("/hook", post(tell));
    tokio::spawn(async move { axum::serve(receiver, router).await.unwrap() });

    let (scratch, server) = host().await;
    let url = server.create("shop").await.unwrap();
    server.set_webhook("shop", &hook, Some("hush"));
    server.set_hook("shop", "pre-receive", "#!/bin/sh\nexit 1\n").unwrap();
    let tree = WorkTree::clone(&url, scratch.path().join("one")).await.unwrap();
    tree.write("file", "").unwrap();
    tree.commit("A file").await.unwrap();
    assert!(tree.push().await.is_err());
    server.remove_hook("shop", "pre-receive").unwrap();
    tree.push().await.unwrap();

    let (headers, body) = tokio::time::timeout(Duration::from_secs(10), calls.recv()).await.unwrap().unwrap();
    assert_eq!((body.as_str(), &headers["x-github-event"]), ("{}", &"push".parse().unwrap()));
    let wanted = "sha256=505c20ac604f662945b662a1f13a9ca2f03bf0b1986f505d5aef48e10da8c918";
    assert_eq!(headers["x-hub-signature-256"], wanted);
    // The refused push came first, and would have been told first.
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn a_large_push_arrives() {
    let (scratch, server) = host().await;
    let url = server.create("shop").await.unwrap();
    let (tree, _) = pushed(&scratch, &url, "one").await;
    // Larger than git's post buffer (1 MiB) after compression: git sends it in chunks, after a probe.
    let mut state = 1_u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        format!("{:016x}", state)
    })
    .take(200_000)
    .collect();
    tree.write("noise", &noise).unwrap();
    tree.commit("Noise").await.unwrap();
    let begun = Instant::now();
    tree.push().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(tree.file_at("main", "noise").await.unwrap().map(|text| text.len()), Some(noise.len()));
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_refused() {
    let (_scratch, server) = host().await;
    for name in ["", "..", "a/b", "a.git"] {
        assert!(server.create(name).await.is_err(), "{name}");
    }
    server.create("shop").await.unwrap();
    assert!(server.create("shop").await.is_err(), "twice");
}

#[tokio::test]
async fn another_process_goes_on_with_the_same_repositories_and_passwords() {
    let (scratch, mut server) = host().await;
    let url = server.create("shop").await.unwrap();
    let (_, sha) = pushed(&scratch, &url, "one").await;
    server.require_password("shop", "robot", "secret");
    let file = scratch.path().join("settings.json");
    server.save(&file).unwrap();
    let address = server.address();
    server.stop().await;

    let restored = GitServer::restore(scratch.path().join("host"), address, &file).await.unwrap();
    assert_eq!(restored.url("shop"), url);
    let with = url.replace("http://", "http://robot:secret@");
    let again = WorkTree::clone(&with, scratch.path().join("two")).await.unwrap();
    assert_eq!(again.head().await.unwrap(), sha);
    assert!(WorkTree::clone(&url, scratch.path().join("three")).await.is_err(), "the password is still asked for");
}
