//! The ends: the operator is uninstalled, a Rollout leaves git, a Deployment is adopted and handed back.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

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

/// The manifests of the shop with its pods in a Deployment; with the Rollout that adopts it, or without.
fn with_deployment(shop: &Shop<'_>, version: &str, rollout: bool) -> Result<()> {
    shop.write(version)?;
    let path = shop.tree.dir().join("deploy/shop.yaml");
    let text = std::fs::read_to_string(path)?;
    let (others, own) = text.split_once("---\napiVersion: sluice.dev/v1alpha1\nkind: Rollout").context("no Rollout")?;
    let (head, rest) = own.split_once("  template:\n").context("no template")?;
    let (template, strategy) = rest.split_once("  strategy:\n").context("no strategy")?;
    let mut text = format!(
        "{others}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 4\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n{template}"
    );
    if rollout {
        let workload = "workloadRef: {apiVersion: apps/v1, kind: Deployment, name: web, scaleDown: progressively}";
        text +=
            &format!("---\napiVersion: sluice.dev/v1alpha1\nkind: Rollout{head}  {workload}\n  strategy:\n{strategy}");
    }
    shop.tree.write("deploy/shop.yaml", &text)
}

async fn push(shop: &Shop<'_>, subject: &str) -> Result<String> {
    let sha = shop.tree.commit(subject).await?;
    shop.tree.push().await?;
    Ok(sha)
}

/// Waits until the Deployment asks for so many pods, and all of them are ready.
async fn has_pods(shop: &Shop<'_>, pods: u64) -> Result<()> {
    let deployments = shop.deployments();
    wait_for(&format!("{pods} pods of the Deployment in {}", shop.namespace), STEP, async || {
        let deployment = deployments.get("web").await?;
        let asked = deployment.data["spec"]["replicas"].as_u64();
        let ready = deployment.data["status"]["readyReplicas"].as_u64().unwrap_or_default();
        if (asked, ready) == (Some(pods), pods) {
            Ok(())
        } else {
            Err(anyhow!("it asks for {asked:?}, {ready} are ready"))
        }
    })
    .await
}

async fn is_handed_over(shop: &Shop<'_>, reason: &str) -> Result<()> {
    wait_for(&format!("the hand-over in {}", shop.namespace), STEP, async || {
        let condition = shop.condition("WorkloadScaledDown").await?;
        if condition.as_ref().is_some_and(|condition| condition["reason"] == reason) {
            Ok(())
        } else {
            Err(anyhow!("it says {condition:?}"))
        }
    })
    .await
}

pub(super) async fn a_deployment_is_adopted_and_handed_back(world: &World) -> Result<()> {
    let shop = world.shop("adopt").await?;
    with_deployment(&shop, "v1", false)?;
    push(&shop, "web v1, a Deployment").await?;
    let traffic = shop.traffic().await?;
    has_pods(&shop, 4).await?;

    // It is adopted. The version is the same, and nobody notices.
    with_deployment(&shop, "v1", true)?;
    push(&shop, "web becomes a Rollout").await?;
    shop.phase("Ready", WHOLE).await?;
    is_handed_over(&shop, "HandedOver").await?;
    has_pods(&shop, 0).await?;
    only(&traffic, "v1").await?;

    // A new image in the Deployment is a release by the steps, and brings no pods of the Deployment back.
    with_deployment(&shop, "v2", true)?;
    push(&shop, "web v2").await?;
    shop.weight(20, STEP).await?;
    shop.phase("Ready", WHOLE).await?;
    only(&traffic, "v2").await?;
    has_pods(&shop, 0).await?;

    // Somebody scales it by hand, and that is told and put right.
    let patch = Patch::Merge(json!({"spec": {"replicas": 3}}));
    shop.deployments().patch_scale("web", &PatchParams::default(), &patch).await?;
    is_handed_over(&shop, "WorkloadScaledUp").await?;
    has_pods(&shop, 0).await?;
    let log = shop.recorded(STEP).await?;
    let drift = log.last().context("the log is empty")?;
    ensure!(drift.trailer("Rollout-Event") == Some("DriftCorrected"), "the log says it: {drift:?}");

    // A bad version is aborted: the Deployment has it, and gets no pods.
    with_deployment(&shop, "v3", true)?;
    let bad = push(&shop, "web v3").await?;
    let aborted = shop.phase("Aborted", WHOLE).await?;
    ensure!(aborted["status"]["release"]["abort"]["cause"] == "Verdict", "{}", aborted["status"]["release"]);
    only(&traffic, "v2").await?;
    has_pods(&shop, 0).await?;
    shop.revert(&bad).await?;
    shop.phase("Ready", WHOLE).await?;

    // The Rollout leaves git, and what is left is a Deployment that serves.
    with_deployment(&shop, "v2", false)?;
    push(&shop, "web is a Deployment again").await?;
    wait_for("the Rollout to be gone", WHOLE, async || match shop.rollout().await {
        Ok(rollout) => Err(anyhow!("it is {}: {}", rollout["status"]["phase"], rollout["status"]["message"])),
        Err(_) => Ok(()),
    })
    .await?;
    handed_back(&shop).await?;
    has_pods(&shop, 4).await?;
    only(&traffic, "v2").await?;
    none_lost(&traffic.stop().await)?;
    shop.remove().await
}
