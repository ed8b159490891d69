//! `make demo`: the main job, once, on a real cluster with live traffic; what a person would see is printed as it
//! goes, and `target/demo/summary.json` holds the figures.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::progress::{heading, keep_figures, line};
use crate::tools::{Tools, project};
use crate::wait::wait_for;
use crate::world::{LOG_BRANCH, Shop, World, none_lost};

const STEP: Duration = Duration::from_secs(60);
const WHOLE: Duration = Duration::from_secs(120);

/// Runs the demo; with `keep` the cluster outlives it.
pub async fn run(keep: bool) -> Result<()> {
    let begun = Instant::now();
    let cold = !project().join("target/demo/summary.json").exists();
    let tools = tokio::task::spawn_blocking(Tools::ready).await??;
    let world = World::start(&tools).await?;
    let booted = begun.elapsed();
    let figures = story(&world).await;
    if figures.is_err() {
        let logs = world.cluster.save_logs("demo").await?;
        line(format_args!("the logs are in {}", logs.display()));
    }
    let mut figures = figures?;
    figures["wallSeconds"] = json!(seconds(begun.elapsed()));
    figures["bootSeconds"] = json!(seconds(booted));
    figures["cold"] = json!(cold);
    keep_figures("demo", &figures)?;
    heading("figures");
    line(serde_json::to_string_pretty(&figures)?);
    if keep {
        let kubeconfig = world.cluster.kubeconfig().to_owned();
        let gateway = world.cluster.gateway_address();
        let git = world.git.lock().await.address();
        world.keep().await?;
        heading("kept, until `make demo-down`");
        line(format_args!("export KUBECONFIG={}", kubeconfig.display()));
        line(format_args!("git clone http://{git}/shop-0.git"));
        line(format_args!("curl -H 'Host: web.shop-0.test' http://{gateway}/"));
    }
    Ok(())
}

async fn story(world: &World) -> Result<Value> {
    let shop = world.shop("shop").await?;

    heading("v1: the first version, pushed to the deploy repository");
    shop.first("v1").await?;
    view(&shop, &["web"]).await?;
    let traffic = shop.traffic().await?;

    heading("v2: a good release goes through 20, 50 and 100 % with analysis");
    let pushed = Instant::now();
    shop.release("v2").await?;
    let started = started(&shop, 20).await?;
    let first_weight = started.1;
    view(&shop, &["web"]).await?;
    shop.weight(50, STEP).await?;
    view(&shop, &["web"]).await?;
    shop.promoted("v2", WHOLE).await?;
    view(&shop, &["web", "--until", "promoted", "--timeout", "30s"]).await?;
    line(format_args!("v2 is promoted {} s after the push", seconds(pushed.elapsed())));

    heading("v3: a bad release is aborted by its metrics");
    let bad = shop.release("v3").await?;
    let weight_zero = bad_to_zero(&shop).await?;
    shop.phase("Aborted", WHOLE).await?;
    view(&shop, &["web"]).await?;

    heading("git revert: git and cluster agree again");
    line("$ git revert <v3> && git push");
    shop.revert(&bad).await?;
    shop.promoted("v2", WHOLE).await?;
    view(&shop, &["web"]).await?;

    heading("v4: starts, and is stopped by git revert half-way");
    let halfway = shop.release("v4").await?;
    started_weight(&shop, 20).await?;
    view(&shop, &["web"]).await?;
    wait_for("clients to see v4", STEP, async || {
        let seen = traffic.snapshot().versions.get("v4").copied().unwrap_or(0);
        if seen >= 20 { Ok(()) } else { Err(anyhow!("{seen} answers so far")) }
    })
    .await?;
    line("$ git revert <v4> && git push");
    shop.revert(&halfway).await?;
    let pushed = Instant::now();
    wait_for("weight 0 after the revert", Duration::from_secs(20), async || match shop.written_weight().await? {
        0 => Ok(()),
        weight => Err(anyhow!("it is {weight}")),
    })
    .await?;
    let revert_to_zero = pushed.elapsed();
    shop.promoted("v2", WHOLE).await?;
    view(&shop, &["web"]).await?;

    let counts = traffic.stop().await;
    let log = shop.recorded(Duration::from_secs(60)).await?;
    heading(&format!("git log {LOG_BRANCH}"));
    for entry in &log {
        line(format_args!("{} {}", &entry.sha[..entry.sha.len().min(8)], entry.subject));
    }
    heading("requests");
    for (version, count) in &counts.versions {
        line(format_args!("{version:>6}  {count}"));
    }
    line(format_args!(
        "{} sent, {} of them answered with an error on purpose by v3, {} lost",
        counts.sent, counts.deliberate_errors, counts.lost
    ));
    none_lost(&counts)?;
    ensure!(counts.versions.contains_key("v4"), "v4 was seen by clients before it was stopped: {:?}", counts.versions);
    let transitions: Vec<Value> = log
        .iter()
        .map(|entry| json!({"subject": entry.subject, "event": entry.trailer("Rollout-Event"), "sequence": entry.trailer("Rollout-Seq"),
            "weight": entry.trailer("Rollout-Weight"), "commit": entry.sha}))
        .collect();
    Ok(json!({
        "requests": {"sent": counts.sent, "lost": counts.lost, "deliberateErrors": counts.deliberate_errors, "perVersion": counts.versions},
        "transitions": transitions,
        "seconds": {
            "fromSpecToFirstWeight": seconds(first_weight),
            "fromBadSampleToWeightZero": seconds(weight_zero),
            "fromRevertPushedToWeightZero": seconds(revert_to_zero),
        },
        "logCommits": log.len(),
    }))
}

/// Waits for the first weight; gives when the release started and how long it took from there.
async fn started(shop: &Shop<'_>, weight: i64) -> Result<(DateTime<Utc>, Duration)> {
    started_weight(shop, weight).await?;
    let now = Utc::now();
    let rollout = shop.rollout().await?;
    let at = rollout.pointer("/status/release/startedAt").and_then(Value::as_str).context("no start is recorded")?;
    let at: DateTime<Utc> = at.parse()?;
    Ok((at, (now - at).to_std().unwrap_or_default()))
}

async fn started_weight(shop: &Shop<'_>, weight: i64) -> Result<()> {
    wait_for(&format!("the first weight, {weight} %"), STEP, async || match shop.written_weight().await? {
        now if now == weight => Ok(()),
        now => Err(anyhow!("it is {now}")),
    })
    .await
}

/// Waits until the bad version was noticed and has no traffic; gives the time from the sample that decided to then.
async fn bad_to_zero(shop: &Shop<'_>) -> Result<Duration> {
    started_weight(shop, 20).await?;
    wait_for("weight 0 of the bad version", WHOLE, async || match shop.written_weight().await? {
        0 => Ok(()),
        weight => Err(anyhow!("it is {weight}")),
    })
    .await?;
    let now = Utc::now();
    let samples = shop.analysis_samples().await?;
    let decided = samples.iter().filter(|(verdict, _)| verdict == "Fail").map(|(_, at)| *at).max();
    let decided = decided.context("no failed sample is kept")?;
    Ok((now - decided).to_std().unwrap_or_default())
}

/// What the plugin shows, as a person would see it.
async fn view(shop: &Shop<'_>, arguments: &[&str]) -> Result<()> {
    line(format_args!("$ kubectl rollout-status {} -n {}", arguments.join(" "), shop.namespace));
    let output = shop.plugin(arguments).await?;
    for text in output.stdout.lines() {
        line(format_args!("  {text}"));
    }
    for text in output.stderr.lines() {
        line(format_args!("  {text}"));
    }
    ensure!(output.code.is_some_and(|code| code != 1), "the plugin ended with {:?}", output.code);
    Ok(())
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100.0).round() / 100.0
}
