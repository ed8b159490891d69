//! Writes a fleet's transitions as the operator would: in the pushes of its policy, whose times are virtual, by the
//! real ledger to a real repository.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sluice::api::TransitionEvent;
use sluice::git::{Credentials, GitCache, Ledger, LedgerEntry, PushPolicy, RemoteAddress, Timeouts};

use crate::fleet::CLUSTER;

/// Transitions in one push, as in the operator.
pub const MOST: usize = 200;

/// What the policy knows of a transition.
pub trait Arrival {
    /// When it happened.
    fn at(&self) -> DateTime<Utc>;
    /// People wait for it.
    fn is_urgent(&self) -> bool;
}

impl Arrival for LedgerEntry {
    fn at(&self) -> DateTime<Utc> {
        self.transition.at
    }
    fn is_urgent(&self) -> bool {
        matches!(self.transition.event, TransitionEvent::Aborted | TransitionEvent::Promoted)
    }
}

/// One push: what went out with it, and when.
pub struct Push<A> {
    /// The virtual time.
    pub at: DateTime<Utc>,
    /// The transitions.
    pub entries: Vec<A>,
}

/// Gathers transitions into pushes, on the virtual clock.
pub struct Pushes<I: Iterator> {
    arrivals: Peekable<I>,
    waiting: VecDeque<I::Item>,
    policy: PushPolicy,
    now: DateTime<Utc>,
    /// The policy counts in another clock: it showed the second one when ours showed the first.
    origin: (DateTime<Utc>, Instant),
    /// How long a push takes: meanwhile no other one begins.
    lasts: TimeDelta,
}

impl<A: Arrival, I: Iterator<Item = A>> Pushes<I> {
    /// The pushes of these transitions, which come by time.
    pub fn of(arrivals: I, lasts: TimeDelta) -> Self {
        let mut arrivals = arrivals.peekable();
        let now = arrivals.peek().map(Arrival::at).unwrap_or_default();
        let (waiting, policy, origin) = (VecDeque::new(), PushPolicy::default(), (now, Instant::now()));
        Self { arrivals, waiting, policy, now, origin, lasts }
    }

    fn instant(&self, at: DateTime<Utc>) -> Instant {
        self.origin.1 + (at - self.origin.0).to_std().unwrap_or_default()
    }

    fn virtually(&self, at: Instant) -> DateTime<Utc> {
        self.origin.0 + TimeDelta::from_std(at - self.origin.1).unwrap_or_default()
    }
}

impl<A: Arrival, I: Iterator<Item = A>> Iterator for Pushes<I> {
    type Item = Push<A>;

    fn next(&mut self) -> Option<Push<A>> {
        loop {
            while let Some(arrival) = self.arrivals.next_if(|arrival| arrival.at() <= self.now) {
                self.waiting.push_back(arrival);
            }
            let next = self.arrivals.peek().map(Arrival::at);
            if self.waiting.is_empty() {
                self.now = next?;
                continue;
            }
            let urgent = self.waiting.iter().any(Arrival::is_urgent);
            let due = self.virtually(self.policy.due(self.instant(self.now), urgent));
            if due > self.now {
                // Whoever comes before that may be urgent.
                self.now = next.map_or(due, |next| due.min(next));
                continue;
            }
            self.policy.pushed(self.instant(self.now));
            let at = self.now;
            self.now += self.lasts;
            let entries = self.waiting.drain(..self.waiting.len().min(MOST)).collect();
            return Some(Push { at, entries });
        }
    }
}

/// The places of one run: a remote, and the operator's cache.
pub struct Bench {
    directory: tempfile::TempDir,
    ledger: Ledger,
}

impl Bench {
    /// An empty remote on this disk.
    pub fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let remote = directory.path().join("remote.git");
        git(&remote, &["init", "--quiet", "--bare", "--initial-branch=main", "."])?;
        // A server tidies beside the pushes, not in them: see `tidy`.
        git(&remote, &["config", "receive.autogc", "false"])?;
        let patient = Duration::from_secs(300);
        let timeouts = Timeouts { ask: patient, fetch: patient, push: patient, local: patient };
        let cache = GitCache::new(directory.path().join("cache"))?.with_timeouts(timeouts);
        let address = RemoteAddress::local(&remote)?;
        let ledger = cache.repository_at(address, Credentials::None)?.ledger(CLUSTER)?;
        Ok(Self { directory, ledger })
    }

    /// One push; how long it took.
    pub async fn push(&self, push: &Push<LedgerEntry>) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.ledger.append(&push.entries).await?;
        Ok(began.elapsed())
    }

    /// The bare repository that is pushed to.
    pub fn remote(&self) -> PathBuf {
        self.directory.path().join("remote.git")
    }

    /// What a server does of itself, now and then.
    pub fn tidy(&self) -> anyhow::Result<()> {
        git(&self.remote(), &["gc", "--quiet", "--prune=now"]).map(drop)
    }

    /// Bytes of the remote's objects after a repack as a server does it.
    pub fn packed(&self) -> anyhow::Result<u64> {
        let remote = self.remote();
        self.tidy()?;
        let packs = std::fs::read_dir(remote.join("objects/pack"))?.flatten();
        let packs = packs.filter(|entry| entry.path().extension().is_some_and(|end| end == "pack"));
        Ok(packs.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum())
    }

    /// What takes the room, by what lies in a Rollout's folder: bytes in the pack, and objects. Reads everything.
    pub fn by_folder(&self) -> anyhow::Result<Vec<(String, u64, u64)>> {
        let remote = self.remote();
        let sizes = "--batch-check=%(objectname) %(objecttype) %(objectsize:disk)";
        let all = git(&remote, &["cat-file", "--batch-all-objects", sizes])?;
        let named = git(&remote, &["rev-list", "--all", "--objects"])?;
        let paths: std::collections::HashMap<&str, &str> =
            named.lines().filter_map(|line| line.split_once(' ')).collect();
        let mut folders = std::collections::BTreeMap::<String, (u64, u64)>::new();
        for line in all.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [object, kind, size] = words.as_slice() else { continue };
            let path = paths.get(object).copied().unwrap_or_default();
            let folder = match *kind {
                "commit" => "(commits)".to_owned(),
                "tree" => format!("(trees) depth {}", if path.is_empty() { 0 } else { path.split('/').count() }),
                _ => path.split('/').nth(2).unwrap_or(path).to_owned(),
            };
            let entry = folders.entry(folder).or_default();
            entry.0 += size.parse::<u64>().unwrap_or_default();
            entry.1 += 1;
        }
        Ok(folders.into_iter().map(|(folder, (bytes, count))| (folder, bytes, count)).collect())
    }
}

fn git(directory: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    std::fs::create_dir_all(directory)?;
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
