//! What people say, through the plugin.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::world::{Shop, World, none_lost};

const STEP: Duration = Duration::from_secs(60);

pub(super) async fn people_pause_resume_abort_retry_and_promote(world: &World) -> Result<()> {
    let mut shop = world.shop("people").await?;
    shop.replace("pause: {duration: 5s}\n      - setWeight: 50", "pause: {duration: 10m}\n      - setWeight: 50");
    shop.first("v1").await?;
    let nothing = shop.plugin(&["abort", "web"]).await?;
    ensure!(nothing.code == Some(1), "abort with nothing in flight ended with {:?}", nothing.code);
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    shop.weight(20, STEP).await?;

    let said = async |arguments: &[&str]| -> Result<()> {
        let output = shop.plugin(arguments).await?;
        ensure!(
            output.code == Some(0),
            "{arguments:?} ended with {:?}: {}{}",
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(())
    };
    said(&["pause", "web", "--reason", "lunch"]).await?;
    let paused = shop.phase("Paused", STEP).await?;
    ensure!(
        paused["status"]["message"].as_str().is_some_and(|text| text.contains("lunch")),
        "{}",
        paused["status"]["message"]
    );
    said(&["resume", "web"]).await?;
    shop.phase("Progressing", STEP).await?;
    said(&["abort", "web", "--reason", "it smells"]).await?;
    let aborted = shop.phase("Aborted", STEP).await?;
    ensure!(aborted["status"]["release"]["abort"]["cause"] == "Intervention", "{}", aborted["status"]["release"]);
    let waited = shop.plugin(&["web", "--until", "promoted", "--timeout", "20s"]).await?;
    ensure!(waited.code == Some(2), "--until promoted on an aborted rollout ended with {:?}", waited.code);
    said(&["retry", "web"]).await?;
    shop.weight(20, STEP).await?;
    said(&["promote", "web", "--full", "--reason", "it is fine"]).await?;
    shop.promoted("v2", Duration::from_secs(90)).await?;
    // New pods of the same version: who waits from now on waits for all of them.
    let old = pods(&shop).await?;
    said(&["restart", "web", "--reason", "a leak"]).await?;
    let waited = shop.plugin(&["web", "--until", "promoted", "--timeout", "90s"]).await?;
    ensure!(waited.code == Some(0), "--until promoted after a restart ended with {:?}: {}", waited.code, waited.stderr);
    let new = pods(&shop).await?;
    ensure!(new.len() >= 4 && new.is_disjoint(&old), "all are new: {old:?}, then {new:?}");
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let actor = log
        .iter()
        .find(|entry| entry.trailer("Rollout-Event") == Some("Aborted"))
        .and_then(|entry| entry.trailer("Rollout-Actor"));
    ensure!(actor.is_some_and(|actor| actor.contains("admin")), "the log names who aborted: {actor:?}");
    shop.remove().await
}

/// The names of the pods that are not ending.
async fn pods(shop: &Shop<'_>) -> Result<BTreeSet<String>> {
    let pods = shop.pods().list(&ListParams::default()).await?;
    let staying = pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(staying.map(|pod| pod.name_any()).collect())
}
