//! The ends: the operator is uninstalled, a Rollout leaves git.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::releases::only;
use crate::wait::wait_for;
use crate::world::{OPERATOR_NAMESPACE, Shop, World, none_lost};

const STEP: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(120);

/// The Services select every revision, and stable has all the weight.
async fn handed_back(shop: &Shop<'_>) -> Result<()> {
    for name in ["web-stable", "web-canary"] {
        let service = shop.service(name).await?;
        let selected = service.pointer("/spec/selector/sluice.dev~1revision").and_then(Value::as_str);
        ensure!(selected.is_none(), "{name} still selects {selected:?}");
    }
    let weight = shop.written_weight().await?;
    ensure!(weight == 0, "the route still says {weight} %");
    Ok(())
}

pub(super) async fn nothing_is_left_steered_by_an_uninstallation_or_a_deletion(world: &World) -> Result<()> {
    let mut shop = world.shop("end").await?;
    shop.replace("pause: {duration: 5s}\n      - setWeight: 50", "pause: {duration: 30s}\n      - setWeight: 50");
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    shop.weight(20, STEP).await?;

    // The operator goes in the middle of a canary, and nobody notices.
    world
        .helm()?
        .args(["uninstall", "sluice", "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "5m"])
        .within(Duration::from_secs(310))
        .ok()
        .await
        .context("helm uninstall")?;
    handed_back(&shop).await?;
    only(&traffic, "v1").await?;
    let left = shop.rollout().await?;
    ensure!(left["metadata"]["finalizers"].is_null(), "nothing may hold it: {}", left["metadata"]["finalizers"]);
    ensure!(left["status"]["phase"] == "Terminating", "{}", left["status"]["phase"]);
    let last = shop.log().await?.pop().context("the log is empty")?;
    ensure!(last.trailer("Rollout-Event") == Some("HandedBack"), "the log says it: {last:?}");

    // It comes back, and goes on by the steps.
    world.install().await?;
    shop.promoted("v2", WHOLE).await?;
    only(&traffic, "v2").await?;
    none_lost(&traffic.stop().await)?;

    // The Rollout leaves git in the middle of another canary; what it steered stays declared.
    shop.replace("terminationGracePeriodSeconds: 15", "terminationGracePeriodSeconds: 16");
    shop.release("v2").await?;
    shop.weight(20, STEP).await?;
    let path = shop.tree.dir().join("deploy/shop.yaml");
    let text = std::fs::read_to_string(path)?;
    let end =
        text.rfind("---\napiVersion: sluice.dev/v1alpha1\nkind: Rollout").context("no Rollout in the manifests")?;
    shop.tree.write("deploy/shop.yaml", &text[..end])?;
    shop.tree.commit("web is served by others").await?;
    shop.tree.push().await?;
    wait_for("the Rollout to be gone", WHOLE, async || match shop.rollout().await {
        Ok(rollout) => Err(anyhow!("it is {}: {}", rollout["status"]["phase"], rollout["status"]["message"])),
        Err(_) => Ok(()),
    })
    .await?;
    handed_back(&shop).await?;
    let last = shop.log().await?.pop().context("the log is empty")?;
    let told = (last.trailer("Rollout-Event"), last.trailer("Rollout-Weight"));
    ensure!(told == (Some("HandedBack"), Some("20->0")), "the log says it: {last:?}");
    shop.remove().await
}
