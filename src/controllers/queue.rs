//! Whose turn it is: a queue of keys for the loops.
//!
//! A key stands for an object, not for an event: however often it is added, it is worked on once, and never by
//! two workers at the same time. A key that is added while it is being worked on is worked on again afterwards,
//! for the worker may have looked before the change. One object that fails, hangs or panics delays no other one.
//!
//! This module knows nothing of what the keys name. It is the only one that may use the `backoff` crate.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::{self, Display};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use futures::FutureExt;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::telemetry::{Metrics, Shutdown};

/// How a turn ended.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to do before somebody adds the key again.
    Done,
    /// Look again after this time, if nobody adds the key before.
    After(Duration),
    /// Look again after a back-off that doubles with each failure in a row.
    Failed(Failure),
}

/// Why a turn failed.
#[derive(Debug)]
pub struct Failure {
    /// One word of this program, for the metrics: the number of reasons must not grow with the number of objects.
    pub reason: &'static str,
    /// One sentence for the log.
    pub message: String,
}

impl Failure {
    /// A failure with everything an error knows about its causes.
    pub fn new(reason: &'static str, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            // Many errors repeat their source in their own sentence.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        Self { reason, message }
    }
}

/// The measures of a queue.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// How many keys are worked on at the same time.
    pub concurrency: usize,
    /// A turn that takes longer is dropped where it waits, and counts as a failure.
    pub turn_timeout: Duration,
    /// How long turns that have begun may go on after the request to stop.
    pub drain_timeout: Duration,
    /// The pause after the first failure in a row. A failing key is never worked on sooner, whoever adds it: its
    /// own writes may be what adds it.
    pub first_backoff: Duration,
    /// The longest pause, before jitter. Short enough that all keys are visited within a minute after an outage.
    pub longest_backoff: Duration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            concurrency: 16,
            turn_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(20),
            first_backoff: Duration::from_millis(200),
            longest_backoff: Duration::from_secs(30),
        }
    }
}

/// A queue of keys. Cheap to clone; all clones are the same queue.
pub struct Queue<K>(Arc<Shared<K>>);

struct Shared<K> {
    name: &'static str,
    config: QueueConfig,
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    keys: HashMap<K, Key>,
    /// Due, in the order in which they became due.
    ready: VecDeque<K>,
    /// Due later. The number tells keys of the same instant apart.
    later: BTreeMap<(Instant, u64), K>,
    next_number: u64,
}

/// What is known of a key. There is an entry only while there is something to know.
#[derive(Default)]
struct Key {
    place: Place,
    failures: Option<Failures>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Nowhere,
    Ready,
    Later(Instant, u64),
    /// Being worked on; to be worked on again at the given time.
    Working(Option<Instant>),
}

struct Failures {
    backoff: ExponentialBackoff,
    not_before: Instant,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> fmt::Debug for Queue<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Queue").field(&self.0.name).finish()
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue. Its name is for logs and metrics.
    pub fn new(name: &'static str, config: QueueConfig) -> Self {
        Self(Arc::new(Shared {
            name,
            config,
            state: Mutex::new(State {
                keys: HashMap::new(),
                ready: VecDeque::new(),
                later: BTreeMap::new(),
                next_number: 0,
            }),
            changed: Notify::new(),
        }))
    }

    /// Works on the key as soon as a worker is free.
    pub fn add(&self, key: K) {
        self.schedule(key, Instant::now());
    }

    /// Works on the key after a delay. When it is already to be worked on earlier, that holds.
    pub fn add_after(&self, key: K, delay: Duration) {
        let now = Instant::now();
        // A delay beyond what an instant can hold is as good as a year.
        self.schedule(key, now.checked_add(delay).unwrap_or_else(|| now + Duration::from_secs(365 * 86_400)));
    }

    /// How many keys are due and wait for a worker.
    pub fn depth(&self) -> usize {
        let mut state = self.state();
        state.promote(Instant::now());
        state.ready.len()
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // No code that can panic runs under the lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(&self, key: K, at: Instant) {
        self.state().schedule(key, at, Instant::now());
        self.0.changed.notify_one();
    }

    /// The next key that is due, or when the next one will be.
    fn take(&self) -> Result<K, Option<Instant>> {
        let mut state = self.state();
        state.promote(Instant::now());
        match state.ready.pop_front() {
            Some(key) => {
                state.keys.entry(key.clone()).or_default().place = Place::Working(None);
                Ok(key)
            }
            None => Err(state.later.first_key_value().map(|((at, _), _)| *at)),
        }
    }

    /// Puts a key whose turn is over where it belongs. Gives the pause after a failure.
    fn finish(&self, key: K, next: Next) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.state();
        let entry = state.keys.entry(key.clone()).or_default();
        let again = match entry.place {
            Place::Working(again) => again,
            Place::Nowhere | Place::Ready | Place::Later(..) => None,
        };
        entry.place = Place::Nowhere;
        let mut pause = None;
        let wanted = match next {
            Next::Never => {
                entry.failures = None;
                None
            }
            Next::After(delay) => {
                entry.failures = None;
                now.checked_add(delay)
            }
            Next::Backoff => {
                let config = &self.0.config;
                let failures = entry.failures.get_or_insert_with(|| Failures::new(config, now));
                let delay = failures.backoff.next_backoff().unwrap_or(config.longest_backoff);
                failures.not_before = now + config.first_backoff;
                pause = Some(delay);
                Some(now + delay)
            }
        };
        let idle = entry.failures.is_none();
        match (wanted, again) {
            (None, None) => {
                if idle {
                    state.keys.remove(&key);
                }
            }
            (Some(at), None) | (None, Some(at)) => state.schedule(key, at, now),
            (Some(one), Some(other)) => state.schedule(key, one.min(other), now),
        }
        drop(state);
        self.0.changed.notify_one();
        pause
    }
}

enum Next {
    Never,
    After(Duration),
    Backoff,
}

impl Failures {
    fn new(config: &QueueConfig, now: Instant) -> Self {
        Self {
            backoff: ExponentialBackoff {
                current_interval: config.first_backoff,
                initial_interval: config.first_backoff,
                // Between half and one and a half of the interval: objects that failed together do not come
                // back together.
                randomization_factor: 0.5,
                multiplier: 2.0,
                max_interval: config.longest_backoff,
                // Never give up.
                max_elapsed_time: None,
                ..ExponentialBackoff::default()
            },
            not_before: now,
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn schedule(&mut self, key: K, at: Instant, now: Instant) {
        let entry = self.keys.entry(key.clone()).or_default();
        let at = entry.failures.as_ref().map_or(at, |failures| at.max(failures.not_before));
        match entry.place {
            Place::Ready => return,
            Place::Working(again) => {
                entry.place = Place::Working(Some(again.map_or(at, |earlier| earlier.min(at))));
                return;
            }
            Place::Later(earlier, _) if earlier <= at => return,
            Place::Later(later, number) => {
                self.later.remove(&(later, number));
            }
            Place::Nowhere => {}
        }
        if at <= now {
            entry.place = Place::Ready;
            self.ready.push_back(key);
        } else {
            let number = self.next_number;
            self.next_number = number.wrapping_add(1);
            entry.place = Place::Later(at, number);
            self.later.insert((at, number), key);
        }
    }

    /// Moves what has become due to the end of the line.
    fn promote(&mut self, now: Instant) {
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now) {
            let key = first.remove();
            self.keys.entry(key.clone()).or_default().place = Place::Ready;
            self.ready.push_back(key);
        }
    }
}

/// Works on the keys until asked to stop; then takes no more, and gives the turns that have begun a bounded time
/// to end. Returns how many turns were dropped unfinished.
pub async fn run<K, Work, Turn>(queue: Queue<K>, work: Work, metrics: Metrics, shutdown: Shutdown) -> usize
where
    K: Clone + Eq + Hash + Display + Send + Sync + 'static,
    Work: Fn(K) -> Turn + Send + Sync + 'static,
    Turn: Future<Output = Outcome> + Send + 'static,
{
    let name = queue.0.name;
    let concurrency = queue.0.config.concurrency.max(1);
    let work = Arc::new(work);
    let mut turns = JoinSet::new();
    loop {
        // Registered before the look at the queue, so that no addition falls between the two.
        let changed = queue.0.changed.notified();
        while turns.try_join_next().is_some() {}
        if shutdown.is_requested() {
            break;
        }
        let mut due = None;
        while turns.len() < concurrency {
            match queue.take() {
                Ok(key) => {
                    turns.spawn(turn(queue.clone(), key, Arc::clone(&work), metrics.clone()));
                }
                Err(next) => {
                    due = next;
                    break;
                }
            }
        }
        metrics.set_queue_depth(name, queue.depth());
        tokio::select! {
            () = shutdown.requested() => {}
            () = changed => {}
            _ = turns.join_next(), if !turns.is_empty() => {}
            () = sleep_until(due), if due.is_some() => {}
        }
    }
    let drain = async { while turns.join_next().await.is_some() {} };
    tokio::select! {
        result = timeout(queue.0.config.drain_timeout, drain) => drop(result),
        () = shutdown.aborted() => {}
    }
    let abandoned = turns.len();
    if abandoned > 0 {
        tracing::warn!(queue = name, abandoned, "stopped before every turn had ended");
    }
    turns.shutdown().await;
    abandoned
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn turn<K, Work, Turn>(queue: Queue<K>, key: K, work: Arc<Work>, metrics: Metrics)
where
    K: Clone + Eq + Hash + Display,
    Work: Fn(K) -> Turn,
    Turn: Future<Output = Outcome>,
{
    let name = queue.0.name;
    let begun = Instant::now();
    let limit = queue.0.config.turn_timeout;
    let guarded = AssertUnwindSafe(async { timeout(limit, work(key.clone())).await }).catch_unwind();
    let outcome = match guarded.await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Outcome::Failed(Failure {
            reason: "Timeout",
            message: format!("the turn took longer than {} s and was dropped", limit.as_secs()),
        }),
        Err(_) => Outcome::Failed(Failure { reason: "Panic", message: "the turn panicked; this is a bug".to_owned() }),
    };
    metrics.reconciled(name, begun.elapsed());
    match outcome {
        Outcome::Done => drop(queue.finish(key, Next::Never)),
        Outcome::After(delay) => drop(queue.finish(key, Next::After(delay))),
        Outcome::Failed(failure) => {
            metrics.reconcile_error(name, failure.reason);
            let pause = queue.finish(key.clone(), Next::Backoff).unwrap_or_default();
            let retry_in = pause.as_secs_f64();
            tracing::warn!(queue = name, %key, reason = failure.reason, retry_in, "{}", failure.message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::ShutdownTrigger;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    const SECOND: Duration = Duration::from_secs(1);

    /// A queue at work, whose turns report themselves and end as the script says.
    struct Bench {
        queue: Queue<&'static str>,
        turns: mpsc::UnboundedReceiver<(&'static str, Duration)>,
        trigger: ShutdownTrigger,
        running: JoinHandle<usize>,
        metrics: Metrics,
    }

    impl Bench {
        fn start<Turn>(
            config: QueueConfig,
            script: impl Fn(&'static str, usize) -> Turn + Send + Sync + 'static,
        ) -> Self
        where
            Turn: Future<Output = Outcome> + Send + 'static,
        {
            let (sender, turns) = mpsc::unbounded_channel();
            let (trigger, shutdown) = Shutdown::new();
            let queue = Queue::new("bench", config);
            let metrics = Metrics::new();
            let begun = Instant::now();
            let count = AtomicUsize::new(0);
            let work = move |key| {
                sender.send((key, begun.elapsed())).unwrap();
                script(key, count.fetch_add(1, Ordering::SeqCst))
            };
            let running = tokio::spawn(run(queue.clone(), work, metrics.clone(), shutdown));
            Self { queue, turns, trigger, running, metrics }
        }

        async fn next(&mut self) -> (&'static str, Duration) {
            timeout(Duration::from_secs(3600), self.turns.recv()).await.expect("no turn in an hour").unwrap()
        }

        /// Nothing happens for a long time.
        async fn quiet(&mut self) {
            let seen = timeout(Duration::from_secs(3600), self.turns.recv()).await;
            assert!(seen.is_err(), "unexpected turn {seen:?}");
        }
    }

    fn failed() -> Outcome {
        Outcome::Failed(Failure { reason: "Test", message: "as the script says".into() })
    }

    fn counter(metrics: &Metrics, series: &str) -> Option<String> {
        let text = metrics.encode();
        text.lines().find_map(|line| line.strip_prefix(series)).map(|rest| rest.trim().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_many_times_is_worked_on_once() {
        let mut bench = Bench::start(QueueConfig::default(), |_, _| async { Outcome::Done });
        for _ in 0..5 {
            bench.queue.add("web");
        }
        assert_eq!(bench.queue.depth(), 1);
        assert_eq!(bench.next().await, ("web", Duration::ZERO));
        bench.quiet().await;
        assert_eq!(bench.queue.depth(), 0);
        assert!(bench.queue.state().keys.is_empty(), "a key with nothing to know takes no memory");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_two_times_wins() {
        let mut bench = Bench::start(QueueConfig::default(), |_, _| async { Outcome::Done });
        bench.queue.add_after("web", 10 * SECOND);
        bench.queue.add_after("web", 3 * SECOND);
        bench.queue.add_after("web", 7 * SECOND);
        assert_eq!(bench.queue.depth(), 0, "not due yet");
        let (_, at) = bench.next().await;
        assert_eq!(at.as_secs(), 3);
        bench.quiet().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_that_is_too_long_for_a_clock_is_no_crash() {
        let mut bench = Bench::start(QueueConfig::default(), |_, _| async { Outcome::After(Duration::MAX) });
        bench.queue.add_after("web", Duration::MAX);
        bench.queue.add("web");
        bench.next().await;
        bench.quiet().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_worked_on_twice_at_once_and_again_when_added_meanwhile() {
        let at_once = Arc::new(AtomicUsize::new(0));
        let mut bench = Bench::start(QueueConfig::default(), {
            let at_once = Arc::clone(&at_once);
            move |_, _| {
                let at_once = Arc::clone(&at_once);
                async move {
                    assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two workers on one key");
                    tokio::time::sleep(5 * SECOND).await;
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    Outcome::After(100 * SECOND)
                }
            }
        });
        bench.queue.add("web");
        bench.next().await;
        bench.queue.add("web");
        bench.queue.add("web");
        let (_, again) = bench.next().await;
        assert_eq!(again.as_secs(), 5, "right after the first turn");
        let (_, third) = bench.next().await;
        assert_eq!(third.as_secs(), 110, "then as the turn itself asked");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_turns_at_once_than_allowed_and_none_forgotten() {
        let most = Arc::new(AtomicUsize::new(0));
        let now = Arc::new(AtomicUsize::new(0));
        let config = QueueConfig { concurrency: 3, ..QueueConfig::default() };
        let mut bench = Bench::start(config, {
            let (most, now) = (Arc::clone(&most), Arc::clone(&now));
            move |_, _| {
                let (most, now) = (Arc::clone(&most), Arc::clone(&now));
                async move {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(SECOND).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Outcome::Done
                }
            }
        });
        let keys = ["a", "b", "c", "d", "e", "f", "g"];
        for key in keys {
            bench.queue.add(key);
        }
        let mut seen = Vec::new();
        for _ in keys {
            seen.push(bench.next().await.0);
        }
        assert_eq!(seen, keys, "in the order in which they became due");
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_longer_and_longer_and_a_success_starts_afresh() {
        let mut bench = Bench::start(QueueConfig::default(), |_, count| async move {
            if count == 12 { Outcome::Done } else { failed() }
        });
        bench.queue.add("web");
        let mut last = bench.next().await.1;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let at = bench.next().await.1;
            pauses.push(at.saturating_sub(last).as_secs_f64());
            last = at;
        }
        for (index, pause) in pauses.iter().enumerate() {
            let middle = (0.2 * 2f64.powi(i32::try_from(index).unwrap())).min(30.0);
            assert!((middle * 0.49..=middle * 1.51).contains(pause), "pause {index} is {pause} s: {pauses:?}");
        }
        bench.quiet().await;
        assert_eq!(
            counter(&bench.metrics, r#"sluice_reconcile_errors_total{queue="bench",reason="Test"}"#).as_deref(),
            Some("12")
        );
        bench.queue.add("web");
        let before = bench.next().await.1;
        let after = bench.next().await.1;
        assert!(after - before < Duration::from_millis(310), "the first pause again, not {:?}", after - before);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_of_objects_that_fail_together_differ() {
        let queue: Queue<&str> = Queue::new("bench", QueueConfig::default());
        let keys = ["a", "b", "c", "d", "e", "f"];
        let pauses: std::collections::HashSet<_> =
            keys.iter().map(|key| queue.finish(key, Next::Backoff).unwrap()).collect();
        assert!(pauses.len() > 1, "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_that_adds_itself_does_not_spin_and_yet_is_looked_at_soon() {
        let mut bench = Bench::start(QueueConfig::default(), |_, _| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            failed()
        });
        bench.queue.add("web");
        let mut last = bench.next().await.1;
        for _ in 0..20 {
            // What a watch does when the turn's own write comes back.
            bench.queue.add("web");
            let at = bench.next().await.1;
            let pause = at - last;
            assert!(pause >= Duration::from_millis(100) && pause <= Duration::from_millis(310), "{pause:?}");
            last = at;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_hangs_is_dropped_and_delays_nobody() {
        let config = QueueConfig { concurrency: 2, ..QueueConfig::default() };
        let mut bench = Bench::start(config, |key, _| async move {
            if key == "hangs" {
                std::future::pending::<()>().await;
            }
            Outcome::Done
        });
        bench.queue.add("hangs");
        bench.queue.add("fine");
        assert_eq!(bench.next().await, ("hangs", Duration::ZERO));
        assert_eq!(bench.next().await, ("fine", Duration::ZERO));
        let (key, at) = bench.next().await;
        assert_eq!((key, at.as_secs()), ("hangs", 60));
        assert_eq!(
            counter(&bench.metrics, r#"sluice_reconcile_errors_total{queue="bench",reason="Timeout"}"#).as_deref(),
            Some("1")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_panics_is_a_failure_of_its_key_only() {
        let mut bench = Bench::start(QueueConfig::default(), |key, count| async move {
            assert!(key != "bad" || count > 0, "this panic is part of the test");
            Outcome::Done
        });
        bench.queue.add("bad");
        assert_eq!(bench.next().await.0, "bad");
        bench.queue.add("good");
        assert_eq!(bench.next().await.0, "good");
        assert_eq!(bench.next().await.0, "bad");
        bench.quiet().await;
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_lets_a_turn_end_and_takes_no_other() {
        let config = QueueConfig { concurrency: 1, ..QueueConfig::default() };
        let mut bench = Bench::start(config, |_, _| async {
            tokio::time::sleep(5 * SECOND).await;
            Outcome::After(SECOND)
        });
        bench.queue.add("begun");
        bench.queue.add("waits");
        assert_eq!(bench.next().await.0, "begun");
        bench.trigger.signal();
        assert_eq!(bench.running.await.unwrap(), 0);
        assert!(bench.turns.recv().await.is_none(), "no further turn");
        assert_eq!(bench.queue.depth(), 1, "the other one stayed");
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_does_not_wait_for_ever() {
        let begun = Instant::now();
        let mut bench = Bench::start(QueueConfig::default(), |_, _| std::future::pending());
        bench.queue.add("hangs");
        bench.next().await;
        bench.trigger.signal();
        assert_eq!(bench.running.await.unwrap(), 1);
        assert_eq!(begun.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_signal_leaves_at_once() {
        let begun = Instant::now();
        let mut bench = Bench::start(QueueConfig::default(), |_, _| std::future::pending());
        bench.queue.add("hangs");
        bench.next().await;
        bench.trigger.signal();
        bench.trigger.signal();
        assert_eq!(bench.running.await.unwrap(), 1);
        assert!(begun.elapsed() < SECOND);
    }

    #[test]
    fn a_failure_names_all_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("the route was not written")]
        struct Outer(#[source] std::io::Error);
        let failure = Failure::new("Route", &Outer(std::io::Error::other("connection refused")));
        assert_eq!(failure.message, "the route was not written: connection refused");
    }
}
