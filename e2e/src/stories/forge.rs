//! Stories on a real forge.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

use crate::forge::Merge;
use crate::wait::wait_for;
use crate::world::{Transport, World, none_lost};

const WHOLE: Duration = Duration::from_secs(120);

pub(super) async fn a_pull_request_is_merged_and_released_over_https_and_over_ssh(world: &World) -> Result<()> {
    tokio::try_join!(released(world, "https", Transport::Https), released(world, "ssh", Transport::Ssh)).map(drop)
}

pub(super) async fn a_verdict_opens_a_pull_request_and_its_merge_makes_the_rollout_ready(world: &World) -> Result<()> {
    let (mut shop, repository) = world.shop_on_forge("verdict", Transport::Https).await?;
    repository.protect_branch("main", &[&shop.namespace]).await?;
    shop.declare_more(
        json!({"forge": {"type": "gitea"}, "onAbort": "pullRequest",
        "projections": [{"name": "status", "to": "commitStatus"}]}),
        &[],
    )
    .await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    let bad = shop.release("v3").await?;
    shop.phase("Aborted", WHOLE).await?;
    let request = wait_for("the pull request", Duration::from_secs(60), async || {
        let requests = repository.pull_requests().await?;
        let ahead = shop.condition("GitAhead").await?;
        match requests.as_slice() {
            [only] if ahead.as_ref().is_some_and(|ahead| ahead["reason"] == "RevertProposed") => Ok(only.clone()),
            other => Err(anyhow!("there are {}, and the Rollout says {ahead:?}", other.len())),
        }
    })
    .await?;
    wait_for("the commit to be marked", Duration::from_secs(60), async || {
        let statuses = repository.commit_statuses(&bad).await?;
        let context = format!("sluice/demo/{}/web", shop.namespace);
        let newest = statuses.iter().find(|status| status.context == context);
        if newest.is_some_and(|status| status.state == "failure") { Ok(()) } else { Err(anyhow!("{statuses:?}")) }
    })
    .await?;
    repository.merge(request.number, Merge::Commit).await?;
    shop.promoted("v1", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    shop.tree.pull().await?;
    let changed = shop.tree.changed_since(&bad).await?;
    ensure!(
        changed == ["-        image: docker.io/sluice-e2e/demo:v3", "+        image: docker.io/sluice-e2e/demo:v1"],
        "one line changes and no other: {changed:?}"
    );
    wait_for("git is not ahead any more", Duration::from_secs(30), async || match shop.condition("GitAhead").await? {
        Some(ahead) if ahead["status"] == "False" => Ok(()),
        other => Err(anyhow!("{other:?}")),
    })
    .await?;
    ensure!(repository.pull_requests().await?.len() <= 1, "it was proposed once");
    shop.remove().await
}

async fn released(world: &World, name: &str, transport: Transport) -> Result<()> {
    let (mut shop, repository) = world.shop_on_forge(name, transport).await?;
    // Nobody but its owner pushes to main, the operator neither.
    repository.protect_branch("main", &[&shop.namespace]).await?;
    shop.first("v1").await?;
    let traffic = shop.traffic().await?;
    shop.tree.branch("release").await?;
    shop.release("v2").await?;
    let request = repository.open_pull_request("release", "main", "Release v2", "").await?;
    let merged = repository.merge(request.number, Merge::Commit).await?;
    let rollout = shop.promoted("v2", WHOLE).await?;
    none_lost(&traffic.stop().await)?;
    let commit = merged.merge_commit_sha.unwrap_or_default();
    ensure!(
        rollout["metadata"]["annotations"].to_string().contains(&commit),
        "it carries the merge {commit}: {}",
        rollout["metadata"]["annotations"]
    );
    let log = shop.recorded(Duration::from_secs(60)).await?;
    let promoted = log.iter().find(|entry| entry.trailer("Rollout-Event") == Some("Promoted"));
    ensure!(promoted.is_some(), "the forge has the record: {log:?}");
    shop.remove().await
}
