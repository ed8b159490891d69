//! The forge, used as people and programs use it: git over HTTPS and SSH, pull requests, deploy keys, webhooks.
//!
//! The tests build the tools where they are missing, and fail where they cannot.

use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::post;
use e2e::forge::{Account, Forge, Merge, Repository, SshKey};
use e2e::tools::Tools;
use e2e::wait::wait_for;
use e2e::work_tree::WorkTree;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A forge with a user and a repository.
struct Bench {
    forge: Forge,
    robin: Account,
    shop: Repository,
    scratch: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let tools = tokio::task::spawn_blocking(Tools::ready).await.unwrap().unwrap();
        let forge = Forge::alone(&tools).await.unwrap();
        let robin = forge.create_user("robin").await.unwrap();
        let shop = robin.create_repository("shop").await.unwrap();
        Self { forge, robin, shop, scratch: tempfile::tempdir().unwrap() }
    }

    async fn clone(&self, url: &str, name: &str, key: Option<&SshKey>) -> anyhow::Result<WorkTree> {
        let environment = self.forge.environment(key)?;
        WorkTree::clone_with(url, self.scratch.path().join(name), environment).await
    }

    /// A clone over HTTPS with one commit that is pushed.
    async fn begun(&self) -> (WorkTree, String) {
        let tree = self.clone(&self.shop.https_url_with_token(), "one", None).await.unwrap();
        tree.write("deploy/web.yaml", "image: web:v1\n").unwrap();
        let sha = tree.commit("web v1").await.unwrap();
        tree.push().await.unwrap();
        (tree, sha)
    }

    fn key(&self, name: &str) -> SshKey {
        SshKey::make(self.scratch.path().join(name), name).unwrap()
    }
}

#[tokio::test]
async fn git_reads_and_pushes_over_https_with_a_token_and_over_ssh_with_a_deploy_key() {
    let bench = Bench::new().await;
    let (_, first) = bench.begun().await;
    let refused = bench.clone(&bench.shop.https_url(), "without", None).await.err().unwrap();
    assert!(format!("{refused:#}").contains("Authentication failed"), "{refused:#}");
    let url = bench.shop.https_url_with_token();
    let distrusted = WorkTree::clone(&url, bench.scratch.path().join("distrusting")).await.err().unwrap();
    assert!(format!("{distrusted:#}").contains("certificate"), "{distrusted:#}");

    let (reader, writer) = (bench.key("reader"), bench.key("writer"));
    let url = bench.shop.ssh_url();
    let refused = bench.clone(&url, "unknown", Some(&reader)).await.err().unwrap();
    assert!(format!("{refused:#}").contains("Permission denied"), "{refused:#}");
    bench.shop.add_deploy_key("reader", reader.public(), true).await.unwrap();
    let number = bench.shop.add_deploy_key("writer", writer.public(), false).await.unwrap();
    let reading = bench.clone(&url, "two", Some(&reader)).await.unwrap();
    assert_eq!(reading.head().await.unwrap(), first);
    reading.write("deploy/web.yaml", "image: web:v2\n").unwrap();
    reading.commit("web v2").await.unwrap();
    assert!(reading.push().await.is_err(), "the key only reads");
    let writing = bench.clone(&url, "three", Some(&writer)).await.unwrap();
    writing.write("deploy/web.yaml", "image: web:v3\n").unwrap();
    let third = writing.commit("web v3").await.unwrap();
    writing.push().await.unwrap();
    assert_eq!(reading.log("main").await.unwrap()[0].sha, third);
    bench.shop.remove_deploy_key(number).await.unwrap();
    assert!(writing.log("main").await.is_err(), "the key is revoked");
}

#[tokio::test]
async fn a_pull_request_is_opened_and_merged_into_a_branch_that_nobody_pushes_to() {
    let bench = Bench::new().await;
    let (mut tree, first) = bench.begun().await;
    let shop = &bench.shop;
    shop.protect_branch("main", &[]).await.unwrap();
    tree.write("deploy/web.yaml", "image: web:v2\n").unwrap();
    let second = tree.commit("web v2").await.unwrap();
    let refused = tree.push().await.unwrap_err();
    assert!(format!("{refused:#}").contains("protected"), "{refused:#}");

    tree.branch("release").await.unwrap();
    tree.push().await.unwrap();
    let opened = shop.open_pull_request("release", "main", "Release v2", "Because.").await.unwrap();
    assert_eq!((opened.state.as_str(), opened.merged, opened.head.sha.as_str()), ("open", false, second.as_str()));
    assert_eq!((opened.base.branch.as_str(), opened.base.sha.as_str()), ("main", first.as_str()));
    let merged = shop.merge(opened.number, Merge::Commit).await.unwrap();
    assert!(merged.merged);
    let log = tree.log("main").await.unwrap();
    assert_eq!(Some(&log[0].sha), merged.merge_commit_sha.as_ref());
    assert!(log.iter().any(|entry| entry.sha == second), "{log:?}");
    let all = shop.pull_requests().await.unwrap();
    assert_eq!(all.iter().map(|request| (request.number, request.merged)).collect::<Vec<_>>(), [(1, true)]);
    assert_eq!(shop.commit_statuses(&second).await.unwrap(), []);

    // A second one, by somebody who may only read, is closed.
    let guest = bench.forge.create_user("guest").await.unwrap();
    let seen = guest.repository(bench.robin.name(), "shop");
    assert!(seen.pull_requests().await.is_err(), "it is private");
    shop.add_collaborator(guest.name(), true).await.unwrap();
    assert_eq!(seen.pull_requests().await.unwrap(), all);
    tree.branch("more").await.unwrap();
    tree.write("more", "").unwrap();
    tree.commit("More").await.unwrap();
    tree.push().await.unwrap();
    let opened = shop.open_pull_request("more", "main", "More", "").await.unwrap();
    assert!(seen.merge(opened.number, Merge::Squash).await.is_err(), "it may only read");
    shop.close(opened.number).await.unwrap();
    let closed = shop.pull_request(opened.number).await.unwrap();
    assert_eq!((closed.state.as_str(), closed.merged), ("closed", false));
}

#[tokio::test]
async fn a_push_is_told_and_an_outage_ends_where_it_began() {
    let mut bench = Bench::new().await;
    let (told, mut calls) = mpsc::unbounded_channel();
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hook = format!("http://{}/hook", receiver.local_addr().unwrap());
    let tell = move |headers: HeaderMap, body: String| async move { told.send((headers, body)).unwrap() };
    let router = Router::new().route("/hook", post(tell));
    tokio::spawn(async move { axum::serve(receiver, router).await.unwrap() });
    bench.shop.add_webhook(&hook, "hush").await.unwrap();
    let (tree, sha) = bench.begun().await;
    let (headers, body) = tokio::time::timeout(Duration::from_secs(20), calls.recv()).await.unwrap().unwrap();
    assert!(body.contains(&sha), "{body}");
    assert!(headers["x-hub-signature-256"].to_str().unwrap().starts_with("sha256="));

    bench.forge.component().kill().unwrap();
    let down = tree.log("main").await.unwrap_err();
    // Refused, or cut while it ends.
    assert!(format!("{down:#}").contains("unable to access"), "{down:#}");
    bench.forge.mend().await.unwrap();
    assert_eq!(tree.log("main").await.unwrap()[0].sha, sha);
    bench.forge.component().pause().unwrap();
    bench.forge.mend().await.unwrap();

    bench.shop.rename("store").await.unwrap();
    let renamed = bench.clone(&bench.shop.https_url_with_token(), "renamed", None).await.unwrap();
    assert_eq!(renamed.head().await.unwrap(), sha);
}

#[tokio::test]
async fn nothing_of_a_forge_stays() {
    let bench = Bench::new().await;
    let (_tree, _) = bench.begun().await;
    let folder = bench.forge.folder().to_owned();
    let running = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("cmdline"));
        let commands = processes.filter_map(|file| std::fs::read(file).ok());
        let commands = commands.map(|text| String::from_utf8_lossy(&text).into_owned());
        commands.filter(|command| command.contains(folder.to_str().unwrap())).collect::<Vec<_>>()
    };
    assert_ne!(running(), Vec::<String>::new());
    drop(bench);
    assert!(!folder.exists());
    wait_for("its processes to end", Duration::from_secs(10), async || match running() {
        none if none.is_empty() => Ok(()),
        some => Err(anyhow::anyhow!("{some:?}")),
    })
    .await
    .unwrap();
}
