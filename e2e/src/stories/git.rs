//! Stories in which git is what happens.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use kube::ResourceExt;

use crate::wait::wait_for;
use crate::world::{LOG_BRANCH, REPO, Transport, World, none_lost};

const STEP: Duration = Duration::from_secs(40);
const WHOLE: Duration = Duration::from_secs(120);

pub(super) async fn a_revert_stops_a_release_half_way(world: &World) -> Result<()> {
    let mut shop = world.shop("revert").await?;
    shop.replace("pause: {duration: 5s}\n      - setWeight: 50", "pause: {duration: 5m}\n      - setWeight: 50");
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    let commit = shop.release("v4").await?;
    shop.weight(20, STEP).await?;
    let begun = Instant::now();
    shop.revert(&commit).await?;
    wait_for("weight 0 after the revert", Duration::from_secs(15), async || match shop.written_weight().await? {
        0 => Ok(()),
        weight => Err(anyhow!("it is {weight}")),
    })
    .await?;
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "from revert to weight 0");
    shop.promoted("v1", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let abort = log.iter().find(|entry| entry.trailer("Rollout-Event") == Some("Aborted"));
    ensure!(
        abort.is_some_and(|entry| entry.trailer("Rollout-Reason").is_some_and(|reason| reason.contains("Revert"))),
        "the log names the revert: {abort:?}"
    );
    shop.remove().await
}

pub(super) async fn git_is_down_during_an_abort(world: &World) -> Result<()> {
    let mut shop = world.shop("outage").await?;
    // Long enough at 20 % that git is down before the metrics have judged.
    shop.replace("initialDelay: 4s", "initialDelay: 12s");
    shop.first("v1").await?;
    shop.recorded(Duration::from_secs(60)).await?;
    let traffic = shop.traffic().await?;
    shop.release("v3").await?;
    shop.weight(20, STEP).await?;
    world.git.lock().await.stop().await;
    // Whatever happens in between, git comes back for the stories that follow.
    let result = async {
        let aborted = shop.phase("Aborted", WHOLE).await?;
        shop.no_canary().await?;
        let pending = aborted["status"]["pendingLog"].as_array().map_or(0, Vec::len);
        ensure!(pending > 0, "what could not be recorded waits in the outbox");
        Ok(())
    }
    .await;
    world.git.lock().await.start_again().await?;
    result?;
    let log = shop.recorded(Duration::from_secs(120)).await?;
    ensure!(log.iter().any(|entry| entry.trailer("Rollout-Event") == Some("Aborted")), "the abort is recorded later");
    none_lost(&traffic.stop().await)?;
    shop.remove().await
}

pub(super) async fn a_fresh_cluster_does_not_roll_out_what_was_aborted(world: &World) -> Result<()> {
    let (shop, _) = world.shop_on_forge("fresh", Transport::Https).await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v3").await?;
    shop.phase("Aborted", WHOLE).await?;
    traffic.stop().await;
    shop.recorded(Duration::from_secs(60)).await?;
    let good = shop.rollout().await?["status"]["stableRevision"].clone();
    // Everything in the cluster is gone; git still asks for v3, and the log says that it was aborted.
    shop.remove().await?;
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(world.cluster.client());
    wait_for("the namespace to be gone", Duration::from_secs(90), async || {
        match namespaces.get_opt(&shop.namespace).await? {
            None => Ok(()),
            Some(_) => Err(anyhow!("it is still there")),
        }
    })
    .await?;
    shop.declare_repository().await?;
    let held = shop.phase("Aborted", WHOLE).await?;
    ensure!(
        held["status"]["message"].as_str().is_some_and(|text| text.contains("was aborted before")),
        "it says who was denied: {}",
        held["status"]["message"]
    );
    let rollout = wait_for("the last good revision to serve", Duration::from_secs(60), async || {
        let rollout = shop.rollout().await?;
        if rollout["status"]["stableRevision"] == good { Ok(rollout) } else { Err(anyhow!("{}", rollout["status"])) }
    })
    .await?;
    ensure!(
        rollout["status"]["phase"] == "Aborted",
        "git still asks for what was aborted: {}",
        rollout["status"]["phase"]
    );
    let traffic = shop.traffic().await?;
    wait_for("answers", Duration::from_secs(20), async || {
        let counts = traffic.snapshot();
        if counts.sent > 50 { Ok(()) } else { Err(anyhow!("{} so far", counts.sent)) }
    })
    .await?;
    let counts = traffic.stop().await;
    ensure!(counts.share("v1") > 0.99, "clients see the last good version: {:?}", counts.versions);
    shop.remove().await
}

pub(super) async fn a_repository_that_cannot_be_read_says_so_and_recovers(world: &World) -> Result<()> {
    let shop = world.shop("repo").await?;
    shop.first("v1").await?;
    let repos = world.objects("sluice.dev", "v1alpha1", "DeployRepo", "deployrepos", &shop.namespace);
    let condition = async |reason: &str, named: &str| {
        wait_for(&format!("reason {reason}"), Duration::from_secs(60), async || {
            let repo = repos.get(REPO).await?;
            let conditions = repo.data.pointer("/status/conditions").cloned().unwrap_or_default();
            let ready =
                conditions.as_array().into_iter().flatten().find(|condition| condition["type"] == "Ready").cloned();
            let ready = ready.unwrap_or_default();
            let says = ready["message"].as_str().unwrap_or_default();
            if ready["reason"] == reason && says.contains(named) {
                return Ok(());
            }
            Err(anyhow!("{} says {ready}", repo.name_any()))
        })
        .await
    };
    let before = shop.rollout().await?["metadata"]["uid"].clone();
    shop.tree.write("deploy/broken.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x\n")?;
    shop.tree.commit("a manifest that is no YAML").await?;
    shop.tree.push().await?;
    condition("InvalidManifest", "broken.yaml").await?;
    shop.tree.remove("deploy/broken.yaml")?;
    shop.tree.write(
        "deploy/elsewhere.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: kube-system}\n",
    )?;
    shop.tree.commit("an object in a foreign namespace").await?;
    shop.tree.push().await?;
    condition("NamespaceNotAllowed", "kube-system").await?;
    shop.tree.remove("deploy/elsewhere.yaml")?;
    shop.tree.commit("mended").await?;
    shop.tree.push().await?;
    condition("Synced", "").await?;
    ensure!(shop.rollout().await?["metadata"]["uid"] == before, "nothing was lost on the way");
    let log = shop.tree.log(LOG_BRANCH).await?;
    ensure!(!log.is_empty(), "the log is still there");
    shop.remove().await
}
