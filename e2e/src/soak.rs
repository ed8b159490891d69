//! `make soak`: several Rollouts that never rest, good releases and bad ones, under live traffic, while pods and
//! leaders die at random.
//!
//! What it asserts is what a user would see: each good release is promoted, each bad one is aborted and reverted, no
//! request is lost, and the log of each Rollout is whole. A seed replays what is chosen (the releases, who dies when),
//! though never the very same interleaving. `target/soak/summary.json` holds the figures, also of a run that failed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use futures::future::join_all;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::progress::{heading, keep_figures, line, spoken};
use crate::stories::strategies::{BLUE_GREEN, BY_PODS, with_strategy};
use crate::traffic::Counts;
use crate::world::{Shop, World};

/// The longest that a release may take, from the push to Ready: with a new leader now and then.
const WHOLE: Duration = Duration::from_secs(240);
/// Versions that work; `v3` does not.
const GOOD: [&str; 3] = ["v1", "v2", "v4"];
const BAD: &str = "v3";
/// Seconds between one death and the next.
const PEACE: std::ops::Range<u64> = 6..18;

/// When a run ends. The releases that are under way are brought to their end.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// After so many releases of each Rollout.
    Releases(u32),
    /// After this time.
    Time(Duration),
}

/// One Rollout of the run.
struct Lane<'w> {
    shop: Shop<'w>,
    strategy: &'static str,
    lot: Rng,
    serving: &'static str,
    promoted: u32,
    aborted: u32,
    slowest: Duration,
}

impl Lane<'_> {
    /// One release: a good version is promoted; a bad one is aborted by its metrics, and its revert makes it Ready.
    async fn release(&mut self) -> Result<()> {
        let begun = Instant::now();
        if self.lot.u8(0..3) == 0 {
            let commit = self.shop.release(BAD).await?;
            let aborted = self.shop.phase("Aborted", WHOLE).await?;
            // After a second abort an identical commit is no consent: it is denied before it has any traffic.
            let status = &aborted["status"];
            let denied = status["denied"].as_array().is_some_and(|denied| {
                self.aborted >= 2 && denied.iter().any(|it| it["revision"] == status["revision"])
            });
            let cause = &status["release"]["abort"]["cause"];
            ensure!(denied || cause == "Verdict", "it was aborted for another reason: {status}");
            self.shop.revert(&commit).await?;
            self.shop.promoted(self.serving, WHOLE).await?;
            self.aborted += 1;
        } else {
            let others: Vec<&'static str> = GOOD.into_iter().filter(|version| *version != self.serving).collect();
            let version = others[self.lot.usize(0..others.len())];
            self.shop.release(version).await?;
            self.shop.promoted(version, WHOLE).await?;
            self.serving = version;
            self.promoted += 1;
        }
        self.slowest = self.slowest.max(begun.elapsed());
        line(format_args!(
            "{}: {} promoted, {} aborted, the last in {}",
            self.shop.namespace,
            self.promoted,
            self.aborted,
            spoken(begun.elapsed())
        ));
        Ok(())
    }

    async fn live(&mut self, length: Length, begun: Instant) -> Result<()> {
        loop {
            let on = match length {
                Length::Releases(count) => self.promoted + self.aborted < count,
                Length::Time(time) => begun.elapsed() < time,
            };
            if !on {
                return Ok(());
            }
            self.release().await?;
        }
    }

    fn figures(&self, counts: &Counts, transitions: usize, failure: Option<&str>) -> Value {
        let lost: Vec<String> = counts.first_lost.iter().map(|lost| format!("{lost:?}")).collect();
        json!({
            "name": self.shop.namespace, "strategy": self.strategy,
            "promoted": self.promoted, "aborted": self.aborted, "slowestSeconds": self.slowest.as_secs(),
            "requests": {"sent": counts.sent, "lost": counts.lost, "firstLost": lost,
                "deliberateErrors": counts.deliberate_errors, "perVersion": counts.versions},
            "transitions": transitions, "failure": failure,
        })
    }
}

/// Who died.
#[derive(Default)]
struct Deaths {
    pods: AtomicU32,
    leaders: AtomicU32,
}

/// Runs it, writes the summary, and fails when something was lost or did not end as it should.
pub async fn run(world: &World, seed: u64, length: Length) -> Result<()> {
    let strategies = [
        ("canary", None),
        ("blue/green", Some(BLUE_GREEN)),
        ("canary", None),
        ("by pods", Some(BY_PODS)),
        ("canary", None),
    ];
    heading(&format!("soak: {} Rollouts, seed {seed}", strategies.len()));
    let mut lanes = Vec::new();
    for (number, (strategy, text)) in (0_u64..).zip(strategies) {
        let mut shop = world.shop("soak").await?;
        if let Some(text) = text {
            with_strategy(&mut shop, text)?;
        }
        let lot = Rng::with_seed(seed.wrapping_add(number));
        lanes.push(Lane { shop, strategy, lot, serving: "v1", promoted: 0, aborted: 0, slowest: Duration::ZERO });
    }
    for first in join_all(lanes.iter().map(|lane| lane.shop.first("v1"))).await {
        first?;
    }
    let mut traffic = Vec::new();
    for lane in &lanes {
        traffic.push(lane.shop.traffic().await?);
    }
    let begun = Instant::now();
    let deaths = Deaths::default();
    let namespaces: Vec<String> = lanes.iter().map(|lane| lane.shop.namespace.clone()).collect();
    let ended = tokio::select! {
        ended = join_all(lanes.iter_mut().map(|lane| lane.live(length, begun))) => ended,
        never = disturb(world, &namespaces, Rng::with_seed(seed.wrapping_sub(1)), &deaths) => match never {},
    };
    let took = begun.elapsed();
    let mut rollouts = Vec::new();
    let mut failures = Vec::new();
    for ((lane, traffic), ended) in lanes.iter().zip(traffic).zip(ended) {
        let counts = traffic.stop().await;
        let whole = match ended {
            Ok(()) => lane.shop.recorded(Duration::from_secs(120)).await,
            Err(error) => Err(error),
        };
        let whole = match (whole, lane.shop.verify().await) {
            (Ok(_), Err(error)) => Err(error),
            (whole, _) => whole,
        };
        let transitions = whole.as_ref().map_or(0, Vec::len);
        let failure = match whole {
            Err(error) => Some(format!("{error:#}")),
            Ok(_) if counts.lost > 0 => Some(format!("{} requests were lost", counts.lost)),
            Ok(_) => None,
        };
        if let Some(failure) = &failure {
            failures.push(format!("{} ({}): {failure}", lane.shop.namespace, lane.strategy));
        }
        rollouts.push(lane.figures(&counts, transitions, failure.as_deref()));
    }
    let sum = |field: &str| rollouts.iter().filter_map(|it| it.pointer(field)?.as_u64()).sum::<u64>();
    let summary = json!({
        "seed": seed, "seconds": took.as_secs(), "passed": failures.is_empty(),
        "promoted": sum("/promoted"), "aborted": sum("/aborted"), "transitions": sum("/transitions"),
        "requests": {"sent": sum("/requests/sent"), "lost": sum("/requests/lost")},
        "killed": {"pods": deaths.pods.into_inner(), "leaders": deaths.leaders.into_inner()},
        "rollouts": rollouts,
    });
    let file = keep_figures("soak", &summary)?;
    line(format_args!(
        "{} promoted, {} aborted in {}; {} pods and {} leaders killed; {} of {} requests lost; {}",
        summary["promoted"],
        summary["aborted"],
        spoken(took),
        summary["killed"]["pods"],
        summary["killed"]["leaders"],
        summary["requests"]["lost"],
        summary["requests"]["sent"],
        file.display()
    ));
    ensure!(failures.is_empty(), "seed {seed}: {}", failures.join("; "));
    for lane in &lanes {
        lane.shop.remove().await?;
    }
    Ok(())
}

/// Kills somebody every few seconds, for ever.
async fn disturb(world: &World, namespaces: &[String], mut lot: Rng, deaths: &Deaths) -> Infallible {
    loop {
        tokio::time::sleep(Duration::from_secs(lot.u64(PEACE))).await;
        // Nobody leads for some seconds after a death, and a pod may be gone already: then nobody dies this time.
        if lot.u8(0..4) == 0 {
            if world.kill_leader().await.is_ok() {
                deaths.leaders.fetch_add(1, Ordering::Relaxed);
            }
        } else if let Ok(true) = kill_pod(world, &namespaces[lot.usize(0..namespaces.len())], &mut lot).await {
            deaths.pods.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends a pod as a node that is drained does. Never the last ready one of its revision: requests that are on their way
/// to the only pod of a side are lost whoever steers.
async fn kill_pod(world: &World, namespace: &str, lot: &mut Rng) -> Result<bool> {
    let pods = world.objects("", "v1", "Pod", "pods", namespace);
    let mut ready: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods.list(&ListParams::default().labels("sluice.dev/revision")).await?.items {
        let conditions = pod.data.pointer("/status/conditions").and_then(Value::as_array);
        let is_ready = conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True");
        if is_ready && pod.metadata.deletion_timestamp.is_none() {
            let revision = pod.labels().get("sluice.dev/revision").cloned().unwrap_or_default();
            ready.entry(revision).or_default().push(pod.name_any());
        }
    }
    let candidates: Vec<String> = ready.into_values().filter(|pods| pods.len() > 1).flatten().collect();
    if candidates.is_empty() {
        return Ok(false);
    }
    pods.delete(&candidates[lot.usize(0..candidates.len())], &DeleteParams::default()).await?;
    Ok(true)
}
