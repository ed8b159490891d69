//! Stories on a real forge.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::forge::Merge;
use crate::world::{Transport, World, none_lost};

const WHOLE: Duration = Duration::from_secs(120);

pub(super) async fn a_pull_request_is_merged_and_released_over_https_and_over_ssh(world: &World) -> Result<()> {
    tokio::try_join!(released(world, "https", Transport::Https), released(world, "ssh", Transport::Ssh)).map(drop)
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
