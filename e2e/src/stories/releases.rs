//! Releases that go well, and one that does not.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use crate::traffic::Traffic;
use crate::wait::wait_for;
use crate::world::{World, none_lost};

const STEP: Duration = Duration::from_secs(40);
const WHOLE: Duration = Duration::from_secs(120);

pub(super) async fn a_good_release_is_promoted_step_by_step(world: &World) -> Result<()> {
    let shop = world.shop("good").await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    let commit = shop.release("v2").await?;
    shop.weight(20, STEP).await?;
    let view = shop.plugin(&["web"]).await?;
    ensure!(view.code == Some(0) && view.stdout.contains("20"), "the view at 20 %: {} {}", view.stdout, view.stderr);
    shop.weight(50, STEP).await?;
    let waited = shop.plugin(&["web", "--until", "promoted", "--timeout", "90s"]).await?;
    ensure!(waited.code == Some(0), "--until promoted ended with {:?}: {}", waited.code, waited.stderr);
    let rollout = shop.promoted("v2", WHOLE).await?;
    ensure!(rollout["metadata"]["annotations"]["sluice.dev/source-commit"] == commit.as_str(), "the commit is stamped");
    only(&traffic, "v2").await?;
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let events: Vec<_> = log.iter().filter_map(|entry| entry.trailer("Rollout-Event")).collect();
    let expected = [
        "FirstDeploy",
        "Promoted",
        "Started",
        "StepCompleted",
        "StepCompleted",
        "StepCompleted",
        "StepCompleted",
        "Promoting",
        "Promoted",
    ];
    let essential: Vec<_> = events.iter().copied().filter(|event| !matches!(*event, "Held" | "Resumed")).collect();
    ensure!(essential == expected, "the log tells {events:?}");
    let state = format!("{}/web/state.json", shop.namespace);
    let state = shop.tree.file_at(crate::world::LOG_BRANCH, &state).await?.unwrap_or_default();
    ensure!(state.contains("\"event\": \"Promoted\""), "the log says where the rollout stands: {state}");
    shop.remove().await
}

pub(super) async fn a_bad_release_is_aborted_by_its_metrics_and_its_revert_makes_it_ready(world: &World) -> Result<()> {
    let shop = world.shop("bad").await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    let commit = shop.release("v3").await?;
    let aborted = shop.phase("Aborted", WHOLE).await?;
    ensure!(aborted["status"]["release"]["abort"]["cause"] == "Verdict", "{}", aborted["status"]["release"]);
    shop.no_canary().await?;
    let waited = shop.plugin(&["web", "--until", "promoted", "--timeout", "30s"]).await?;
    ensure!(waited.code == Some(2), "--until promoted on an aborted rollout ended with {:?}", waited.code);
    shop.revert(&commit).await?;
    let ready = shop.promoted("v1", WHOLE).await?;
    ensure!(ready["status"]["phase"] == "Ready", "the revert makes it ready");
    only(&traffic, "v1").await?;
    none_lost(&traffic.stop().await)?;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let abort = log.iter().find(|entry| entry.trailer("Rollout-Event") == Some("Aborted"));
    ensure!(abort.is_some_and(|entry| entry.body.contains("error-rate")), "the log says why: {abort:?}");
    let events = shop.events().await?;
    ensure!(events.iter().filter(|event| *event == "Aborted").count() == 1, "one abort: {events:?}");
    shop.remove().await
}

pub(super) async fn two_rollouts_move_at_the_same_time(world: &World) -> Result<()> {
    let (one, two) = (world.shop("one").await?, world.shop("two").await?);
    tokio::try_join!(one.first("v1"), two.first("v1"))?;
    let traffic = (one.traffic().await?, two.traffic().await?);
    tokio::try_join!(one.release("v2"), two.release("v3"))?;
    let (good, bad) = tokio::try_join!(one.promoted("v2", WHOLE), two.phase("Aborted", WHOLE))?;
    ensure!(good["status"]["phase"] == "Ready", "{}", good["status"]);
    ensure!(bad["status"]["release"]["abort"]["cause"] == "Verdict", "{}", bad["status"]["release"]);
    two.no_canary().await?;
    none_lost(&traffic.0.stop().await)?;
    none_lost(&traffic.1.stop().await)?;
    tokio::try_join!(one.recorded(Duration::from_secs(60)), two.recorded(Duration::from_secs(60)))?;
    one.remove().await?;
    two.remove().await
}

/// Waits until clients see this version only.
pub(super) async fn only(traffic: &Traffic, version: &str) -> Result<()> {
    wait_for(&format!("clients to see {version} only"), Duration::from_secs(15), async || {
        let window = traffic.window(Duration::from_secs(2));
        if window.share(version) > 0.99 { Ok(()) } else { Err(anyhow!("they see {:?}", window.versions)) }
    })
    .await
}
