//! Stories about the log: whose repository it is in, who else has it, and what is left when all else is gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::forge::SshKey;
use crate::wait::wait_for;
use crate::work_tree::WorkTree;
use crate::world::{LOG_BRANCH, Transport, World, none_lost};

const STEP: Duration = Duration::from_secs(40);
const WHOLE: Duration = Duration::from_secs(120);

pub(super) async fn the_ledger_has_a_repository_of_its_own_a_key_and_a_mirror(world: &World) -> Result<()> {
    let mut shop = world.shop("ownlog").await?;
    let (log_name, mirror_name) = (format!("{}-log", shop.namespace), format!("{}-mirror", shop.namespace));
    let password = "only-for-the-log";
    let (log_url, mirror_url) = {
        let git = world.git.lock().await;
        let urls = (git.create(&log_name).await?, git.create(&mirror_name).await?);
        git.require_password(&log_name, "sluice", password);
        urls
    };
    let folder = tempfile::tempdir()?;
    let key = SshKey::make(folder.path().join("signing"), "sluice@demo")?;
    let log = json!({"log": {"url": log_url, "secretRef": {"name": "log"}, "signing": {"secretRef": {"name": "signing"}},
        "mirror": {"url": mirror_url}}});
    let secrets = [
        ("log", json!({"username": "sluice", "password": password})),
        ("signing", json!({"identity": key.identity()})),
    ];
    shop.declare_more(log, &secrets).await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    ensure!(shop.tree.log(LOG_BRANCH).await?.is_empty(), "the repository of the manifests holds no log");

    let with_password = log_url.replace("http://", &format!("http://sluice:{password}@"));
    let log = WorkTree::clone(&with_password, folder.path().join("log")).await?;
    let entries = wait_for("the promotion in the log", Duration::from_secs(60), async || {
        let entries = log.log(LOG_BRANCH).await?;
        let promoted = entries.iter().any(|entry| entry.trailer("Rollout-Event") == Some("Promoted"));
        if promoted { Ok(entries) } else { Err(anyhow!("it has {} entries", entries.len())) }
    })
    .await?;
    let numbers: Vec<&str> = entries.iter().rev().filter_map(|entry| entry.trailer("Rollout-Seq")).collect();
    let expected: Vec<String> = (1..=entries.len()).map(|number| number.to_string()).collect();
    ensure!(numbers == expected, "one entry for each transition, in order: {numbers:?}");

    let allowed = folder.path().join("allowed_signers");
    std::fs::write(&allowed, format!("sluice@demo {}\n", key.public()))?;
    let tip = entries.first().context("no entry")?.sha.clone();
    log.verify_signature(&tip, &allowed).await.context("the tip is signed by the key of the Secret")?;

    let mirror = WorkTree::clone(&mirror_url, folder.path().join("mirror")).await?;
    wait_for("the mirror to follow", Duration::from_secs(60), async || match mirror.log(LOG_BRANCH).await?.first() {
        Some(entry) if entry.sha == tip => Ok(()),
        other => Err(anyhow!("its tip is {other:?}")),
    })
    .await?;
    wait_for("the DeployRepo to say so", Duration::from_secs(60), async || {
        let status = shop.deploy_repo().await?["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let holds = |type_: &str| conditions.iter().any(|found| found["type"] == type_ && found["status"] == "True");
        if status["logTip"] == tip && holds("Mirrored") && holds("Recorded") {
            Ok(())
        } else {
            Err(anyhow!("{status}"))
        }
    })
    .await?;
    let told = world.cluster.kubectl()?.args(["-n", &shop.namespace, "get", "events", "-o", "json"]).ok().await?;
    ensure!(told.contains(&tip), "the tip is told by an event as well");
    shop.remove().await
}

pub(super) async fn history_is_forced_back_in_the_middle_of_a_canary(world: &World) -> Result<()> {
    let (mut shop, _) = world.shop_on_forge("forced", Transport::Https).await?;
    shop.replace("pause: {duration: 5s}\n      - setWeight: 50", "pause: {duration: 5m}\n      - setWeight: 50");
    let good = shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    let dropped = shop.release("v2").await?;
    shop.weight(20, STEP).await?;
    let begun = Instant::now();
    shop.tree.force_back(&good).await?;
    wait_for("weight 0 after the push", Duration::from_secs(15), async || match shop.written_weight().await? {
        0 => Ok(()),
        weight => Err(anyhow!("it is {weight}")),
    })
    .await?;
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "from forced push to weight 0");
    shop.promoted("v1", WHOLE).await?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let started = log.iter().find(|entry| entry.trailer("Rollout-Source-Commit") == Some(&dropped));
    ensure!(started.is_some(), "the log remembers what history forgot: {log:?}");
    let abort = log.iter().find(|entry| entry.trailer("Rollout-Event") == Some("Aborted")).context("no abort")?;
    ensure!(
        abort.trailer("Rollout-Reason").is_some_and(|reason| reason.contains("Revert")),
        "it is an abort by git: {abort:?}"
    );
    ensure!(abort.trailer("Rollout-Source-Commit") == Some(&good), "it names the commit that counts now: {abort:?}");
    // The body is broken into lines.
    let body = abort.body.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(
        body.contains("history rewritten") && body.contains(&dropped),
        "and the one that history forgot: {abort:?}"
    );
    // The DeployRepo needs nobody's hand: the next release goes its way.
    shop.replace("pause: {duration: 5m}", "pause: {duration: 1s}");
    shop.release("v2").await?;
    shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    shop.remove().await
}

pub(super) async fn two_clusters_on_one_path_have_a_log_each_and_revert_together(world: &World) -> Result<()> {
    let second = World::start_as(&world.tools, "second").await?;
    let mut first_shop = world.shop("both").await?;
    first_shop.declare_more(json!({"onAbort": "commit", "abortQuorum": 2}), &[]).await?;
    first_shop.release("v1").await?;
    let second_shop = second.shop_of(&first_shop).await?;
    let shops = [&first_shop, &second_shop];
    for shop in shops {
        shop.phase("Ready", Duration::from_secs(60)).await?;
    }
    let traffic = [first_shop.traffic().await?, second_shop.traffic().await?];
    let bad = first_shop.release("v3").await?;
    // Nobody reverts: when both have aborted it, git is put back for both.
    wait_for("the revert", WHOLE, async || match first_shop.tree.log("main").await?.first() {
        Some(newest) if newest.sha != bad => Ok(()),
        _ => Err(anyhow!("the newest commit is still the bad one")),
    })
    .await?;
    for shop in shops {
        shop.promoted("v1", WHOLE).await?;
        shop.no_canary().await?;
    }
    first_shop.tree.pull().await?;
    let since = first_shop.tree.log("main").await?;
    let since: Vec<_> = since.iter().take_while(|entry| entry.sha != bad).collect();
    ensure!(since.len() == 1, "it is reverted once: {since:?}");
    ensure!(since[0].subject == "Revert \"web v3\"", "as git words it: {:?}", since[0]);
    let changed = first_shop.tree.changed_since(&bad).await?;
    ensure!(changed.len() == 2, "one line changes and no other: {changed:?}");
    for traffic in traffic {
        none_lost(&traffic.stop().await)?;
    }
    for shop in shops {
        let log = shop.recorded(Duration::from_secs(60)).await?;
        let clusters: Vec<&str> = log.iter().filter_map(|entry| entry.trailer("Rollout-Id")).collect();
        let own = format!("{}/{}/web", shop.cluster_name(), shop.namespace);
        ensure!(clusters.iter().all(|id| *id == own), "each log tells of its own cluster {own}: {clusters:?}");
        ensure!(
            log.iter().any(|entry| entry.trailer("Rollout-Event") == Some("Aborted")),
            "each cluster judged for itself: {log:?}"
        );
    }
    first_shop.remove().await
}
