//! What a ledger costs: bytes a transition, the time of a commit as the ledger grows, pushes a minute, and how far the
//! record is behind.
//!
//! `cargo bench --bench ledger -- --transitions 20000 --rollouts 1000` writes a fleet's life by the real ledger to a
//! bare repository on this disk. Only the clock of the fleet and of the push policy is virtual.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it measures, and may fail loudly")]
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "figures for people")]
#![allow(missing_docs, reason = "a program")]

mod fleet;
mod writing;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser;
use fleet::{Fleet, Size};
use writing::{Arrival, Bench, Push, Pushes};

/// The server tidies its repository after so many pushes.
const TIDIED_AFTER: usize = 500;

#[derive(Parser)]
#[command(about = "Measures what a ledger costs")]
struct Arguments {
    /// All transitions together
    #[arg(long, default_value_t = 20_000)]
    transitions: usize,
    /// Of so many Rollouts
    #[arg(long, default_value_t = 1_000)]
    rollouts: usize,
    /// Transitions a minute, on average
    #[arg(long, default_value_t = 14.0)]
    per_minute: f64,
    /// Rollouts that abort at one moment, in the simulation of a burst
    #[arg(long, default_value_t = 500)]
    burst: usize,
    /// Seconds that a push is taken to last, in the simulations of the policy
    #[arg(long, default_value_t = 2)]
    push_takes: u32,
    /// Simulate the policy only, write nothing
    #[arg(long)]
    policy_only: bool,
    /// Keep the repository in this new directory
    #[arg(long)]
    keep: Option<std::path::PathBuf>,
    /// `cargo bench` says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Arguments { transitions, rollouts, per_minute, burst, .. } = arguments;
    let size = Size { transitions, rollouts, per_minute };
    println!("{transitions} transitions of {rollouts} Rollouts, {per_minute} a minute\n");

    let lasts = TimeDelta::seconds(arguments.push_takes.into());
    println!("Policy, where a push takes {} s", arguments.push_takes);
    let moments: Vec<Moment> =
        Fleet::new(size).map(|entry| Moment { at: entry.at(), urgent: entry.is_urgent() }).collect();
    report_policy("steady", Pushes::of(moments.iter().copied(), lasts), lasts);
    let (before, after) = moments.split_at(moments.len() / 2);
    let at = before.last().map(Arrival::at).unwrap_or_default();
    let crowd = std::iter::repeat_n(Moment { at, urgent: true }, burst);
    let all = before.iter().copied().chain(crowd).chain(after.iter().copied());
    report_policy(&format!("{burst} aborts at once"), Pushes::of(all, lasts), lasts);
    if arguments.policy_only {
        return Ok(());
    }

    let bench = Bench::new()?;
    let mut costs = Vec::new();
    let (mut written, mut began) = (0, Instant::now());
    for push in Pushes::of(Fleet::new(size), lasts) {
        costs.push((push.entries.len(), bench.push(&push).await?));
        written += push.entries.len();
        if costs.len().is_multiple_of(TIDIED_AFTER) {
            bench.tidy()?;
        }
        if began.elapsed() > Duration::from_secs(60) {
            began = Instant::now();
            eprintln!("{written} written, the last push in {:?}", costs.last().map(|(_, cost)| *cost));
        }
    }
    println!("\nWriting, {} pushes to a bare repository on this disk", costs.len());
    report_costs(&costs);
    if let Some(keep) = &arguments.keep {
        std::fs::create_dir_all(keep.parent().unwrap_or(keep))?;
        std::fs::rename(bench.remote(), keep)?;
        std::os::unix::fs::symlink(keep, bench.remote())?;
    }
    let packed = bench.packed()?;
    println!("\nSize, repacked: {packed} bytes, {} a transition (goal: 900)", packed / written.max(1) as u64);
    for (folder, bytes, count) in bench.by_folder()? {
        println!("  {folder:<16} {bytes:>10} bytes {count:>8} objects {:>6} a transition", bytes / written as u64);
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Moment {
    at: DateTime<Utc>,
    urgent: bool,
}

impl Arrival for Moment {
    fn at(&self) -> DateTime<Utc> {
        self.at
    }
    fn is_urgent(&self) -> bool {
        self.urgent
    }
}

fn report_policy(name: &str, pushes: impl Iterator<Item = Push<Moment>>, lasts: TimeDelta) {
    let mut lags = Vec::new();
    let mut recent = VecDeque::<DateTime<Utc>>::new();
    let (mut count, mut most) = (0, 0);
    let mut ends: Option<(DateTime<Utc>, DateTime<Utc>)> = None;
    for push in pushes {
        count += 1;
        ends = Some((ends.map_or(push.at, |(first, _)| first), push.at));
        recent.push_back(push.at);
        while recent.front().is_some_and(|at| push.at - *at >= TimeDelta::seconds(60)) {
            recent.pop_front();
        }
        most = most.max(recent.len());
        lags.extend(push.entries.iter().map(|entry| push.at + lasts - entry.at));
    }
    lags.sort_unstable();
    let lag = |thousandths: usize| {
        let at = (lags.len() * thousandths / 1000).min(lags.len().saturating_sub(1));
        lags.get(at).map_or(0.0, |lag| lag.num_milliseconds() as f64 / 1000.0)
    };
    let minutes = ends.map_or(1.0, |(first, last)| (last - first).num_seconds() as f64 / 60.0).max(1.0);
    println!(
        "  {name}: {:.1} pushes a minute, {most} in the fullest one (goal: 6); record lag p50 {:.1} s, p99 {:.1} s \
         (goal: 30 s), longest {:.1} s",
        f64::from(count) / minutes,
        lag(500),
        lag(990),
        lag(1000),
    );
}

fn report_costs(costs: &[(usize, Duration)]) {
    let part = (costs.len() / 10).max(1);
    let middle = costs.len().saturating_sub(part) / 2;
    let median = |from: usize, each: bool| {
        let slice = costs.iter().skip(from).take(part);
        let mut times: Vec<f64> = slice
            .map(|(entries, cost)| cost.as_secs_f64() * 1000.0 / if each { (*entries).max(1) as f64 } else { 1.0 })
            .collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    let ends = [("beginning", 0), ("middle", middle), ("end", costs.len().saturating_sub(part))];
    for (name, from) in ends {
        println!(
            "  {name:<10} a push {:>7.1} ms, a commit {:>7.1} ms (medians)",
            median(from, false),
            median(from, true)
        );
    }
    let ratio = median(costs.len().saturating_sub(part), true) / median(0, true);
    println!("  a commit at the end takes {ratio:.2} times what it takes at the beginning (goal: at most 1.5)");
}
