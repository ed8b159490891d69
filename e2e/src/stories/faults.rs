//! Stories in which something breaks.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::soak;
use crate::wait::wait_for;
use crate::world::{World, none_lost};

const STEP: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(200);

pub(super) async fn a_hand_edit_of_the_route_is_put_back(world: &World) -> Result<()> {
    let mut shop = world.shop("hand").await?;
    shop.replace("pause: {duration: 5s}\n      - setWeight: 50", "pause: {}\n      - setWeight: 50");
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    shop.phase("Paused", STEP).await?;
    let edit = json!([{"op": "replace", "path": "/spec/rules/0/backendRefs/1/weight", "value": 90}]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(edit)?);
    shop.routes().patch("web", &PatchParams::default(), &patch).await?;
    wait_for("the weight to be put back", Duration::from_secs(5), async || match shop.written_weight().await? {
        20 => Ok(()),
        weight => Err(anyhow!("it is {weight}")),
    })
    .await?;
    let paused = shop.phase("Paused", STEP).await?;
    ensure!(paused["status"]["stepLabel"] == "2/5", "no step was taken: {}", paused["status"]["stepLabel"]);
    let approved = shop.plugin(&["promote", "web", "--reason", "seen by a person"]).await?;
    ensure!(approved.code == Some(0), "promote ended with {:?}: {}{}", approved.code, approved.stdout, approved.stderr);
    shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    shop.recorded(Duration::from_secs(60)).await?;
    shop.remove().await
}

pub(super) async fn an_invalid_rollout_stalls_and_recovers(world: &World) -> Result<()> {
    let mut shop = world.shop("invalid").await?;
    shop.first("v1").await?;
    let first = shop.rollout().await?["status"]["revision"].clone();
    let traffic = shop.traffic().await?;
    // The canary Service in the route is misspelt: nothing may move, and the message names the near miss.
    shop.replace("{name: web-canary, port: 80, weight: 0}", "{name: web-canray, port: 80, weight: 0}");
    shop.release("v2").await?;
    // The route is applied first: for a moment it is version 1 that stalls.
    let stalled = wait_for("version 2 to stall", STEP, async || {
        let rollout = shop.phase("Stalled", STEP).await?;
        if rollout["status"]["revision"] == first { Err(anyhow!("it is still version 1")) } else { Ok(rollout) }
    })
    .await?;
    let message = stalled["status"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("web-canary") && message.contains("web-canray"), "it names what is wrong: {message}");
    ensure!(stalled["status"]["updatedReplicas"].as_i64().unwrap_or_default() == 0, "no canary pod exists");
    shop.replace("{name: web-canray, port: 80, weight: 0}", "{name: web-canary, port: 80, weight: 0}");
    shop.release("v2").await?;
    shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    // What the schema can refuse, the API server refuses, and names the field.
    let bad = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
        "metadata": {"name": "bad", "namespace": shop.namespace},
        "spec": {"selector": {"matchLabels": {"app": "bad"}},
            "template": {"metadata": {"labels": {"app": "bad"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            "strategy": {"canary": {"stableService": "a", "canaryService": "b", "steps": [{"setWeight": 140}]}}}});
    let refused = world.apply(&bad.to_string()).await;
    let text = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(text.contains("setWeight"), "the API server names the field: {text}");
    shop.remove().await
}

pub(super) async fn the_leader_is_killed_at_each_transition(world: &World) -> Result<()> {
    let shop = world.shop("killed").await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    let mut seen = 2;
    let begun = Instant::now();
    // Whenever a transition has happened the leader dies, until the release is through.
    while begun.elapsed() < WHOLE {
        let rollout = wait_for("the next transition", Duration::from_secs(90), async || {
            let rollout = shop.rollout().await?;
            let sequence = rollout["status"]["sequence"].as_i64().unwrap_or_default();
            if sequence > seen {
                Ok(rollout)
            } else {
                Err(anyhow!("{sequence} transitions: {}", rollout["status"]["message"]))
            }
        })
        .await?;
        seen = rollout["status"]["sequence"].as_i64().unwrap_or_default();
        if rollout["status"]["phase"] == "Ready" {
            break;
        }
        let killed = world.kill_leader().await?;
        wait_for("another leader", Duration::from_secs(40), async || {
            let leader = world.leader().await?;
            if leader.starts_with(&killed) { Err(anyhow!("{leader} still holds the lease")) } else { Ok(()) }
        })
        .await?;
    }
    shop.promoted("v2", Duration::from_secs(60)).await?;
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(90)).await?;
    let promoted = log.iter().filter(|entry| entry.trailer("Rollout-Event") == Some("Promoted")).count();
    ensure!(promoted == 2, "v1 and v2 were promoted once each, not {promoted} times");
    shop.remove().await
}

pub(super) async fn prometheus_is_away_for_two_minutes(world: &World) -> Result<()> {
    let shop = world.shop("metrics").await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    shop.weight(20, STEP).await?;
    let prometheus = world.cluster.component("prometheus")?;
    prometheus.kill()?;
    let result = async {
        let held = shop.phase("Holding", STEP).await?;
        let stage = held["status"]["release"]["stage"].clone();
        let begun = Instant::now();
        // Watched the whole time: no step, no abort.
        while begun.elapsed() < Duration::from_secs(120) {
            let rollout = shop.rollout().await?;
            ensure!(
                rollout["status"]["phase"] == "Holding",
                "without metrics it became {}",
                rollout["status"]["phase"]
            );
            ensure!(rollout["status"]["release"]["stage"] == stage, "without metrics it took a step");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }
    .await;
    prometheus.start().await?;
    result?;
    shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let count = |event| log.iter().filter(|entry| entry.trailer("Rollout-Event") == Some(event)).count();
    ensure!(count("Held") >= 1 && count("Aborted") == 0, "held, not aborted");
    shop.remove().await
}

/// Four releases of each of five Rollouts; `make soak` goes on for longer.
pub(super) async fn twenty_releases_five_at_once_while_pods_and_leaders_die(world: &World) -> Result<()> {
    soak::run(world, 7, soak::Length::Releases(4)).await
}
