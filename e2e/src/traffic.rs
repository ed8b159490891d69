//! Constant load on a route, and a count of who answered: the witness of every story.
//!
//! It knows nothing of Rollouts. A request is lost when nobody answered it, or when the answer is an error that the
//! application did not make on purpose.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A request without an answer after this long is lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// More requests than this are never open at a time: beyond it the load waits instead of growing.
const MOST_OPEN: usize = 256;
/// How many lost requests are described; the rest are only counted.
const DESCRIBED: usize = 20;
/// The longest stretch that [`Traffic::window`] can look back.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests whose fate is known.
    pub sent: u64,
    /// Answers per version, deliberate errors included.
    pub versions: BTreeMap<String, u64>,
    /// Errors that the application made on purpose.
    pub deliberate_errors: u64,
    /// Requests that nobody answered as they should have been.
    pub lost: u64,
    /// The first of the lost requests.
    pub first_lost: Vec<Lost>,
}

impl Counts {
    /// The share of the answers that came from `version`, from 0 to 1; 0 when there was no answer.
    #[must_use]
    pub fn share(&self, version: &str) -> f64 {
        let of = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        let total: u64 = self.versions.values().sum();
        if total == 0 { 0.0 } else { of(self.versions.get(version).copied().unwrap_or(0)) / of(total) }
    }
}

/// A request that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// When it was sent.
    pub sent_at: DateTime<Utc>,
    /// The status of the answer, if there was one.
    pub status: Option<u16>,
    /// What went wrong: the error, or the beginning of the answer's body.
    pub reason: String,
}

/// Running load. Dropping it ends the load.
pub struct Traffic {
    seen: Arc<Mutex<Seen>>,
    end: watch::Sender<bool>,
    pacer: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    counts: Counts,
    recent: VecDeque<(Instant, Fate)>,
}

#[derive(Clone)]
enum Fate {
    Answered { version: Option<String>, deliberate: bool },
    Lost(Lost),
}

impl Traffic {
    /// Sends `requests_per_second` requests for `/` of `host` to `target` until stopped.
    pub fn start(target: SocketAddr, host: &str, requests_per_second: u32) -> Result<Self> {
        if requests_per_second == 0 {
            bail!("traffic needs at least one request per second");
        }
        crate::crypto();
        // The name resolves to the target here and nowhere else, so that the Host header is the route's own.
        let client = reqwest::Client::builder()
            .no_proxy()
            .resolve(host, target)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(PATIENCE)
            .build()
            .context("cannot make a client for the traffic")?;
        let url = format!("http://{host}:{}/", target.port());
        let request = client.get(&url).build().with_context(|| format!("{url} is not a URL"))?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (end, ended) = watch::channel(false);
        let pacer = tokio::spawn(pace(client, request, requests_per_second, Arc::clone(&seen), ended));
        Ok(Self { seen, end, pacer })
    }

    /// Everything counted since the start.
    #[must_use]
    pub fn snapshot(&self) -> Counts {
        lock(&self.seen).counts.clone()
    }

    /// What was counted during the last `span` (ten minutes at most): the weights as a client sees them now.
    #[must_use]
    pub fn window(&self, span: Duration) -> Counts {
        let mut counts = Counts::default();
        for (at, fate) in lock(&self.seen).recent.iter().rev() {
            if at.elapsed() > span {
                break;
            }
            counts.add(fate.clone());
        }
        // It was walked backwards.
        counts.first_lost.reverse();
        counts
    }

    /// Sends nothing more, waits for the answers that are due, and says what became of all requests.
    pub async fn stop(mut self) -> Counts {
        self.end.send_replace(true);
        // Bounded by the patience with each open request. A pacer that panicked has left its counts behind.
        let _ = (&mut self.pacer).await;
        self.snapshot()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.pacer.abort();
    }
}

async fn pace(
    client: reqwest::Client,
    request: reqwest::Request,
    requests_per_second: u32,
    seen: Arc<Mutex<Seen>>,
    mut ended: watch::Receiver<bool>,
) {
    let room = Arc::new(Semaphore::new(MOST_OPEN));
    let mut open = JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / requests_per_second);
    // A machine that stalls must not answer with a burst: the load is constant or less.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ended.wait_for(|end| *end) => break,
            _ = tick.tick() => {}
        }
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { break };
        // A GET without a body can always be cloned.
        let Some(request) = request.try_clone() else { break };
        let (client, seen) = (client.clone(), Arc::clone(&seen));
        open.spawn(async move {
            let fate = send(&client, request).await;
            lock(&seen).add(fate);
            drop(place);
        });
        while open.try_join_next().is_some() {}
    }
    while open.join_next().await.is_some() {}
}

async fn send(client: &reqwest::Client, request: reqwest::Request) -> Fate {
    let sent_at = Utc::now();
    let lost = |status, reason| Fate::Lost(Lost { sent_at, status, reason });
    let response = match client.execute(request).await {
        Ok(response) => response,
        Err(error) => return lost(None, chain(&error)),
    };
    let status = response.status();
    let version = response.headers().get("x-version").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let deliberate = response.headers().contains_key("x-deliberate-error");
    // An answer whose body breaks off is no answer; reading it also lets the connection be used again.
    let body = match response.text().await {
        Ok(body) => body,
        Err(error) => return lost(Some(status.as_u16()), chain(&error)),
    };
    if deliberate || status.is_success() || status.is_redirection() {
        Fate::Answered { version, deliberate }
    } else {
        lost(Some(status.as_u16()), body.chars().take(200).collect())
    }
}

/// An error with all its causes: the outermost one of reqwest never says what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl Counts {
    fn add(&mut self, fate: Fate) {
        self.sent += 1;
        match fate {
            Fate::Answered { version, deliberate } => {
                *self.versions.entry(version.unwrap_or_else(|| "none".to_owned())).or_default() += 1;
                self.deliberate_errors += u64::from(deliberate);
            }
            Fate::Lost(lost) => {
                self.lost += 1;
                if self.first_lost.len() < DESCRIBED {
                    self.first_lost.push(lost);
                }
            }
        }
    }
}

impl Seen {
    fn add(&mut self, fate: Fate) {
        while self.recent.front().is_some_and(|(at, _)| at.elapsed() > REMEMBERED) {
            self.recent.pop_front();
        }
        self.recent.push_back((Instant::now(), fate.clone()));
        self.counts.add(fate);
    }
}

/// Counting cannot leave the counts half-written: a poisoned lock is as good as any.
fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
