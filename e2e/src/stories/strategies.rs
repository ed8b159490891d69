//! The strategies beside the canary with routes: blue/green, and a canary whose pods are its weight.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::releases::only;
use crate::traffic::Traffic;
use crate::wait::wait_for;
use crate::world::{Shop, World, none_lost};

const STEP: Duration = Duration::from_secs(40);
const WHOLE: Duration = Duration::from_secs(120);

pub(crate) const BLUE_GREEN: &str = "  strategy:
    blueGreen:
      activeService: web-stable
      previewService: web-canary
      previewReplicaCount: 1
      autoPromotionSeconds: 5
      scaleDownDelaySeconds: 10
      abortScaleDownDelaySeconds: 5
      postPromotionAnalysis:
        templates: [{templateName: after-the-switch}]
---
apiVersion: sluice.dev/v1alpha1
kind: AnalysisTemplate
metadata: {name: after-the-switch}
spec:
  metrics:
  - name: error-rate
    interval: 2s
    initialDelay: 4s
    count: 4
    failureLimit: 1
    successCondition: result[0] < 0.05
    provider:
      prometheus:
        name: prometheus
        query: |
          (sum(rate(http_requests_total{namespace=\"{{args.namespace}}\",revision=\"{{args.revision}}\",code=~\"5..\"}[8s])) or vector(0))
          /
          sum(rate(http_requests_total{namespace=\"{{args.namespace}}\",revision=\"{{args.revision}}\"}[8s]))
";

pub(crate) const BY_PODS: &str = "  strategy:
    canary:
      maxSurge: 1
      maxUnavailable: 0
      analysis:
        templates: [{templateName: error-rate}]
      steps:
      - setWeight: 25
      - pause: {duration: 5s}
      - setWeight: 50
      - pause: {duration: 5s}
";

/// From now on the shop's Rollout has this strategy.
pub(crate) fn with_strategy(shop: &mut Shop<'_>, strategy: &str) -> Result<()> {
    let manifests = include_str!("../../manifests/shop.yaml");
    let place = manifests.find("  strategy:\n").context("the manifests hold no strategy")?;
    shop.replace(&manifests[place..], strategy);
    Ok(())
}

/// The revision that a Service selects.
async fn selects(shop: &Shop<'_>, service: &str) -> Result<String> {
    let service = shop.service(service).await?;
    let revision = service.pointer("/spec/selector/sluice.dev~1revision").and_then(Value::as_str);
    revision.map(str::to_owned).context("it selects no revision")
}

/// Waits until the last answers that clients had came from both versions, or longer than that: until `share` has.
async fn sees(traffic: &Traffic, version: &str, share: std::ops::Range<f64>) -> Result<()> {
    wait_for(&format!("clients to see {version} at {share:?}"), STEP, async || {
        let window = traffic.window(Duration::from_secs(2));
        if share.contains(&window.share(version)) { Ok(()) } else { Err(anyhow!("they see {:?}", window.versions)) }
    })
    .await
}

pub(super) async fn blue_green_switches_at_once_and_back_when_the_new_side_fails(world: &World) -> Result<()> {
    let mut shop = world.shop("blue").await?;
    with_strategy(&mut shop, BLUE_GREEN)?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    wait_for("a preview of v2", STEP, async || {
        let (active, preview) = (selects(&shop, "web-stable").await?, selects(&shop, "web-canary").await?);
        if active != preview { Ok(()) } else { Err(anyhow!("both select {active}")) }
    })
    .await?;
    ensure!(traffic.window(Duration::from_secs(1)).share("v2") == 0.0, "a preview has no live traffic");
    let view = shop.plugin(&["web"]).await?;
    ensure!(view.code == Some(0) && view.stdout.contains("BlueGreen"), "the view: {} {}", view.stdout, view.stderr);
    shop.promoted("v2", WHOLE).await?;
    only(&traffic, "v2").await?;
    // v3 fails every third request: it has live traffic for a moment, and then v2 has it again.
    let commit = shop.release("v3").await?;
    sees(&traffic, "v3", 0.9..1.1).await?;
    let aborted = shop.phase("Aborted", WHOLE).await?;
    ensure!(aborted["status"]["release"]["abort"]["cause"] == "Verdict", "{}", aborted["status"]["release"]);
    only(&traffic, "v2").await?;
    let stable = aborted["status"]["stableRevision"].as_str().context("no stable revision")?.to_owned();
    ensure!(selects(&shop, "web-stable").await? == stable, "the active Service selects what was stable");
    shop.revert(&commit).await?;
    shop.promoted("v2", WHOLE).await?;
    wait_for("the preview to point at what serves", STEP, async || {
        let preview = selects(&shop, "web-canary").await?;
        if preview == stable { Ok(()) } else { Err(anyhow!("it selects {preview}")) }
    })
    .await?;
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let abort = log.iter().find(|entry| entry.trailer("Rollout-Event") == Some("Aborted"));
    ensure!(abort.and_then(|entry| entry.trailer("Rollout-Weight")) == Some("100->0"), "the log says it: {abort:?}");
    shop.remove().await
}

pub(super) async fn a_canary_without_routes_moves_by_its_pods(world: &World) -> Result<()> {
    let mut shop = world.shop("pods").await?;
    with_strategy(&mut shop, BY_PODS)?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.release("v2").await?;
    shop.weight(25, STEP).await?;
    sees(&traffic, "v2", 0.1..0.45).await?;
    shop.weight(50, STEP).await?;
    sees(&traffic, "v2", 0.3..0.7).await?;
    shop.promoted("v2", WHOLE).await?;
    only(&traffic, "v2").await?;
    let commit = shop.release("v3").await?;
    let aborted = shop.phase("Aborted", WHOLE).await?;
    ensure!(aborted["status"]["release"]["abort"]["cause"] == "Verdict", "{}", aborted["status"]["release"]);
    only(&traffic, "v2").await?;
    shop.revert(&commit).await?;
    shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    shop.recorded(Duration::from_secs(60)).await?;
    shop.remove().await
}
