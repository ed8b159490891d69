//! What the operator says about itself, and how it is told to stop: logs, metrics, signals.
//!
//! Nothing here may decide anything, and no label may come from a cluster's objects: each label's value is a
//! word of this program (`&'static str`), so the number of series is bounded by the code and not by the number
//! of Rollouts. Names of objects as labels are how operators run out of memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::api::{Phase, ProjectionKind, TransitionEvent};

/// What can go wrong when the process sets itself up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter for the logs does not parse.
    #[error("the log filter `{filter}` is not one: {source}; write for example `info` or `info,sluice=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// Why it is none.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else already takes the logs.
    #[error("logging is already set up")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

// === Logs ===

/// What is logged when nobody says otherwise.
pub const DEFAULT_LOG_FILTER: &str = "info";

/// Sends the logs as one JSON object a line to standard error, so that standard output stays free for data.
pub fn init_logs(filter: &str) -> Result<(), TelemetryError> {
    logs(filter, io::stderr)?.try_init()?;
    Ok(())
}

/// What takes the logs: those that the filter asks for and that may be written, as JSON lines.
pub(crate) fn logs<W>(filter: &str, writer: W) -> Result<impl Subscriber + Send + Sync, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let parsed =
        EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    Ok(tracing_subscriber::registry()
        .with(parsed)
        .with(filter_fn(|metadata| may_log(metadata.target(), metadata.level())))
        .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer)))
}

/// Whether a line of this target and level may ever be written, whatever the filter asks for. The libraries that
/// speak HTTP and TLS write headers and bodies at their finer levels, and those hold tokens. The Kubernetes client
/// writes an answer that it cannot decode as a warning, whole: that may be a Secret.
fn may_log(target: &str, level: &Level) -> bool {
    let ours = target == "sluice" || target.starts_with("sluice::");
    let most = if target == "kube_client::client" { Level::ERROR } else { Level::INFO };
    ours || *level <= most
}

// === Metrics ===

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Whether something that was tried went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Success {
    /// It did.
    Ok,
    /// It did not.
    Error,
}

impl Success {
    fn word(self) -> &'static str {
        match self {
            Success::Ok => "ok",
            Success::Error => "error",
        }
    }
}

/// What became of one entry of a log that somebody was to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It was taken.
    Told,
    /// It was not, and is told again.
    Failed,
    /// It was refused for so long that it is not told any more.
    GivenUp,
}

/// The operator's metrics. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    registry: Registry,
    rollouts: Family<Labels<1>, Gauge>,
    transitions: Family<Labels<1>, Counter>,
    verdicts: Family<Labels<1>, Counter>,
    api_writes: Family<Labels<3>, Counter>,
    git_push_seconds: Histogram,
    git_pushes: Family<Labels<1>, Counter>,
    outbox_depth: Gauge,
    record_lag: Gauge<f64, std::sync::atomic::AtomicU64>,
    mirror_lag: Gauge<f64, std::sync::atomic::AtomicU64>,
    git_ahead: Gauge,
    git_ahead_age: Gauge<f64, std::sync::atomic::AtomicU64>,
    log_tip: Family<BranchLabel, Gauge>,
    reconcile_seconds: Histograms<1>,
    reconcile_errors: Family<Labels<2>, Counter>,
    queue_depth: Family<Labels<1>, Gauge>,
    leader: Gauge,
    watch_age: Family<Labels<1>, Gauge<f64, std::sync::atomic::AtomicU64>>,
    watch_seen: Mutex<BTreeMap<&'static str, Instant>>,
    abort_latency: Histogram,
    first_shift: Histogram,
    events_dropped: Counter,
    webhooks: Family<Labels<1>, Counter>,
    deliveries: Family<Labels<2>, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The branch of a log: as many as there are DeployRepos and epochs in the life of one process.
#[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
struct BranchLabel {
    branch: String,
}

/// Turns take milliseconds; a few wait for a slow API server.
fn turn_histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

/// Things people wait for take from a tenth of a second to minutes.
fn wait_histogram() -> Histogram {
    Histogram::new([0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0])
}

impl Metrics {
    /// Registers every instrument, all at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("sluice");
        let rollouts = Family::<Labels<1>, Gauge>::default();
        let transitions = Family::<Labels<1>, Counter>::default();
        let verdicts = Family::<Labels<1>, Counter>::default();
        let api_writes = Family::<Labels<3>, Counter>::default();
        let git_push_seconds = wait_histogram();
        let git_pushes = Family::<Labels<1>, Counter>::default();
        let outbox_depth = Gauge::default();
        let record_lag = Gauge::default();
        let mirror_lag = Gauge::default();
        let git_ahead = Gauge::default();
        let git_ahead_age = Gauge::default();
        let log_tip = Family::<BranchLabel, Gauge>::default();
        let reconcile_seconds: Histograms<1> = Family::new_with_constructor(turn_histogram);
        let reconcile_errors = Family::<Labels<2>, Counter>::default();
        let queue_depth = Family::<Labels<1>, Gauge>::default();
        let leader = Gauge::default();
        let watch_age = Family::default();
        let abort_latency = wait_histogram();
        let first_shift = wait_histogram();
        let events_dropped = Counter::default();
        let webhooks = Family::<Labels<1>, Counter>::default();
        let deliveries = Family::<Labels<2>, Counter>::default();

        registry.register("rollouts", "Rollouts by phase", rollouts.clone());
        registry.register("transitions", "Transitions by event", transitions.clone());
        registry.register("verdicts", "Verdicts of analyses", verdicts.clone());
        registry.register("api_writes", "Writes to the Kubernetes API", api_writes.clone());
        registry.register("git_push_seconds", "Time a push to a log branch takes", git_push_seconds.clone());
        registry.register("git_pushes", "Pushes to log branches", git_pushes.clone());
        registry.register("outbox_depth", "Transitions that are not yet in git", outbox_depth.clone());
        registry.register("record_lag_seconds", "Age of the oldest transition not yet in git", record_lag.clone());
        registry.register("mirror_lag_seconds", "Time since the second remote lacks something", mirror_lag.clone());
        registry.register("git_ahead", "Rollouts for which git asks for what was aborted", git_ahead.clone());
        registry.register("git_ahead_seconds", "Time since the first of them", git_ahead_age.clone());
        registry.register("log_tip", "The first 13 hex digits of a log branch's tip, as a number", log_tip.clone());
        registry.register("reconcile_seconds", "Time one turn of a loop takes", reconcile_seconds.clone());
        registry.register("reconcile_errors", "Turns that failed", reconcile_errors.clone());
        registry.register("queue_depth", "Objects whose turn is due and waits for a worker", queue_depth.clone());
        registry.register("leader", "1 while this process may write", leader.clone());
        registry.register("watch_age_seconds", "Time since a watch last heard anything", watch_age.clone());
        registry.register(
            "abort_latency_seconds",
            "Time from an abort to canary weight 0 accepted everywhere",
            abort_latency.clone(),
        );
        registry.register(
            "first_shift_seconds",
            "Time from the start of a release to its first weight",
            first_shift.clone(),
        );
        registry.register("events_dropped", "Kubernetes events that could not be sent", events_dropped.clone());
        registry.register("webhooks", "Calls to the webhook receiver", webhooks.clone());
        registry.register("deliveries", "Entries of logs that others were told of", deliveries.clone());

        let metrics = Metrics(Arc::new(Instruments {
            registry,
            rollouts,
            transitions,
            verdicts,
            api_writes,
            git_push_seconds,
            git_pushes,
            outbox_depth,
            record_lag,
            mirror_lag,
            git_ahead,
            git_ahead_age,
            log_tip,
            reconcile_seconds,
            reconcile_errors,
            queue_depth,
            leader,
            watch_age,
            watch_seen: Mutex::new(BTreeMap::new()),
            abort_latency,
            first_shift,
            events_dropped,
            webhooks,
            deliveries,
        }));
        metrics.set_rollouts([]);
        metrics
    }

    /// How many Rollouts are in which phase: the phases of all of them. Phases nobody is in become 0.
    pub fn set_rollouts(&self, phases: impl IntoIterator<Item = Phase>) {
        let mut counts: BTreeMap<&'static str, i64> = ALL_PHASES.iter().map(|phase| (phase_word(*phase), 0)).collect();
        for phase in phases {
            *counts.entry(phase_word(phase)).or_default() += 1;
        }
        for (phase, count) in counts {
            self.0.rollouts.get_or_create(&[("phase", phase)]).set(count);
        }
    }

    /// A transition was written.
    pub fn transition(&self, event: TransitionEvent) {
        self.0.transitions.get_or_create(&[("event", event_word(event))]).inc();
    }

    /// An analysis came to a verdict: `pass`, `fail`, `no-data`, `error`, `inconclusive`.
    pub fn verdict(&self, verdict: &'static str) {
        self.0.verdicts.get_or_create(&[("verdict", verdict)]).inc();
    }

    /// Something was written to the API, or was tried to be.
    pub fn api_write(&self, kind: &'static str, verb: &'static str, result: &'static str) {
        self.0.api_writes.get_or_create(&[("kind", kind), ("verb", verb), ("result", result)]).inc();
    }

    /// A push to a log branch ended.
    pub fn git_push(&self, took: Duration, result: Success) {
        self.0.git_push_seconds.observe(took.as_secs_f64());
        self.0.git_pushes.get_or_create(&[("result", result.word())]).inc();
    }

    /// How many transitions of all Rollouts are not yet in git, and since when the oldest of them waits.
    pub fn set_outbox(&self, depth: usize, oldest: Duration) {
        self.0.outbox_depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
        self.0.record_lag.set(oldest.as_secs_f64());
    }

    /// How long the second remote of a log has been behind.
    pub fn set_mirror_lag(&self, lag: Duration) {
        self.0.mirror_lag.set(lag.as_secs_f64());
    }

    /// For how many Rollouts git asks for what was aborted, and since when the first of them.
    pub fn set_git_ahead(&self, count: usize, oldest: Duration) {
        self.0.git_ahead.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.0.git_ahead_age.set(oldest.as_secs_f64());
    }

    /// The tip of a log branch, as a number that fits a float: whoever keeps the series can tell a rewrite.
    pub fn set_log_tip(&self, branch: &str, tip: &str) {
        let digits: String = tip.chars().take(13).collect();
        let number = i64::from_str_radix(&digits, 16).unwrap_or_default();
        self.0.log_tip.get_or_create(&BranchLabel { branch: branch.to_owned() }).set(number);
    }

    /// A turn of the named loop ended.
    pub fn reconciled(&self, queue: &'static str, took: Duration) {
        self.0.reconcile_seconds.get_or_create(&[("queue", queue)]).observe(took.as_secs_f64());
    }

    /// A turn of the named loop failed.
    pub fn reconcile_error(&self, queue: &'static str, reason: &'static str) {
        self.0.reconcile_errors.get_or_create(&[("queue", queue), ("reason", reason)]).inc();
    }

    /// How many objects wait for a worker of the named loop.
    pub fn set_queue_depth(&self, queue: &'static str, depth: usize) {
        self.0.queue_depth.get_or_create(&[("queue", queue)]).set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    /// Whether this process may write.
    pub fn set_leader(&self, leader: bool) {
        self.0.leader.set(i64::from(leader));
    }

    /// The watch of a kind heard something just now: an event, a bookmark, or the end of a list.
    pub fn watch_seen(&self, kind: &'static str) {
        self.0.watch_seen.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, Instant::now());
    }

    /// An aborted release's canary weight is 0 everywhere, so long after the abort was decided.
    pub fn abort_done(&self, after: Duration) {
        self.0.abort_latency.observe(after.as_secs_f64());
    }

    /// A release's first weight was written, so long after the release began.
    pub fn first_shift(&self, after: Duration) {
        self.0.first_shift.observe(after.as_secs_f64());
    }

    /// A Kubernetes event was given up.
    pub fn event_dropped(&self) {
        self.0.events_dropped.inc();
    }

    /// The webhook receiver answered: `accepted`, `refused`, `limited`, `invalid`, `unavailable`.
    pub fn webhook(&self, result: &'static str) {
        self.0.webhooks.get_or_create(&[("result", result)]).inc();
    }

    /// Somebody was told of an entry of a log, or was to be.
    pub fn delivery(&self, to: ProjectionKind, result: Delivery) {
        let to = match to {
            ProjectionKind::CommitStatus => "commitStatus",
            ProjectionKind::Deployment => "deployment",
            ProjectionKind::CloudEvents => "cloudEvents",
            ProjectionKind::Webhook => "webhook",
            ProjectionKind::Slack => "slack",
            ProjectionKind::Teams => "teams",
        };
        let result = match result {
            Delivery::Told => "ok",
            Delivery::Failed => "error",
            Delivery::GivenUp => "given-up",
        };
        self.0.deliveries.get_or_create(&[("to", to), ("result", result)]).inc();
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        {
            let seen = self.0.watch_seen.lock().unwrap_or_else(PoisonError::into_inner);
            for (kind, at) in seen.iter() {
                self.0.watch_age.get_or_create(&[("kind", *kind)]).set(at.elapsed().as_secs_f64());
            }
        }
        let mut text = String::new();
        if encode(&mut text, &self.0.registry).is_err() {
            // Writing to a String does not fail; were it to, an empty answer is worse than a partial one is good.
            tracing::error!("the metrics could not be encoded");
        }
        text
    }
}

const ALL_PHASES: [Phase; 9] = [
    Phase::Pending,
    Phase::Progressing,
    Phase::Paused,
    Phase::Holding,
    Phase::Promoting,
    Phase::Ready,
    Phase::Aborted,
    Phase::Stalled,
    Phase::Terminating,
];

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Progressing => "Progressing",
        Phase::Paused => "Paused",
        Phase::Holding => "Holding",
        Phase::Promoting => "Promoting",
        Phase::Ready => "Ready",
        Phase::Aborted => "Aborted",
        Phase::Stalled => "Stalled",
        Phase::Terminating => "Terminating",
    }
}

/// The word for a transition's event, the same one as in the ledger and in Kubernetes events.
pub fn event_word(event: TransitionEvent) -> &'static str {
    match event {
        TransitionEvent::FirstDeploy => "FirstDeploy",
        TransitionEvent::Started => "Started",
        TransitionEvent::StepCompleted => "StepCompleted",
        TransitionEvent::Paused => "Paused",
        TransitionEvent::Resumed => "Resumed",
        TransitionEvent::Held => "Held",
        TransitionEvent::Promoting => "Promoting",
        TransitionEvent::Promoted => "Promoted",
        TransitionEvent::Aborted => "Aborted",
        TransitionEvent::Superseded => "Superseded",
        TransitionEvent::PlanChanged => "PlanChanged",
        TransitionEvent::Denied => "Denied",
        TransitionEvent::Recovered => "Recovered",
        TransitionEvent::HandedBack => "HandedBack",
        TransitionEvent::DriftCorrected => "DriftCorrected",
        TransitionEvent::Restarting => "Restarting",
        TransitionEvent::Restarted => "Restarted",
    }
}

// === Shutdown ===

/// How far the process was told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Stopping,
    Aborting,
}

/// Knows whether the process was asked to stop. Cheap to clone; everything that waits selects on it.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<Stage>);

/// Asks to stop. When it is dropped without a word that counts as asking, so that nothing waits for ever.
#[derive(Clone, Debug)]
pub struct ShutdownTrigger(watch::Sender<Stage>);

impl ShutdownTrigger {
    /// The first time: stop taking work and finish what is begun. The second time: leave at once.
    pub fn signal(&self) {
        self.0.send_modify(|stage| {
            *stage = if *stage == Stage::Running { Stage::Stopping } else { Stage::Aborting };
        });
    }
}

impl Shutdown {
    /// A shutdown that its trigger alone decides about.
    pub fn new() -> (ShutdownTrigger, Shutdown) {
        let (sender, receiver) = watch::channel(Stage::Running);
        (ShutdownTrigger(sender), Shutdown(receiver))
    }

    /// Takes SIGTERM and SIGINT of this process: the first one is a request to stop, the second one aborts.
    /// To be called once, inside the runtime.
    pub fn on_signals() -> io::Result<(ShutdownTrigger, Shutdown)> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Shutdown::new();
        let signalled = trigger.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "asked to stop"),
                    _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "asked to stop"),
                }
                signalled.signal();
            }
        });
        Ok((trigger, shutdown))
    }

    /// Whether the process was asked to stop.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Stage::Stopping || self.0.has_changed().is_err()
    }

    /// Waits until the process is asked to stop.
    pub async fn requested(&self) {
        let _ = self.0.clone().wait_for(|stage| *stage >= Stage::Stopping).await;
    }

    /// Waits until the process is told to leave without finishing anything. A dropped trigger does not say so.
    pub async fn aborted(&self) {
        if self.0.clone().wait_for(|stage| *stage >= Stage::Aborting).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    #[test]
    fn every_metric_has_the_prefix_and_the_documented_name() {
        let metrics = Metrics::new();
        metrics.transition(TransitionEvent::Aborted);
        metrics.verdict("fail");
        metrics.api_write("HTTPRoute", "patch", "conflict");
        metrics.git_push(Duration::from_millis(300), Success::Ok);
        metrics.set_outbox(3, Duration::from_secs(12));
        metrics.reconciled("rollout", Duration::from_millis(2));
        metrics.reconcile_error("rollout", "Timeout");
        metrics.set_queue_depth("rollout", 7);
        metrics.set_leader(true);
        metrics.abort_done(Duration::from_millis(800));
        metrics.first_shift(Duration::from_secs(1));
        metrics.event_dropped();
        metrics.webhook("accepted");
        let text = metrics.encode();
        for (series, expected) in [
            (r#"sluice_transitions_total{event="Aborted"}"#, 1.0),
            (r#"sluice_verdicts_total{verdict="fail"}"#, 1.0),
            (r#"sluice_api_writes_total{kind="HTTPRoute",verb="patch",result="conflict"}"#, 1.0),
            ("sluice_git_push_seconds_count", 1.0),
            (r#"sluice_git_pushes_total{result="ok"}"#, 1.0),
            ("sluice_outbox_depth", 3.0),
            ("sluice_record_lag_seconds", 12.0),
            (r#"sluice_reconcile_seconds_count{queue="rollout"}"#, 1.0),
            (r#"sluice_reconcile_errors_total{queue="rollout",reason="Timeout"}"#, 1.0),
            (r#"sluice_queue_depth{queue="rollout"}"#, 7.0),
            ("sluice_leader", 1.0),
            ("sluice_abort_latency_seconds_count", 1.0),
            ("sluice_first_shift_seconds_count", 1.0),
            ("sluice_events_dropped_total", 1.0),
            (r#"sluice_webhooks_total{result="accepted"}"#, 1.0),
        ] {
            assert_eq!(value(&text, series), Some(expected), "{series} in\n{text}");
        }
        let strangers = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("sluice_")).count();
        assert_eq!(strangers, 0, "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn a_phase_that_everybody_left_goes_back_to_zero() {
        let metrics = Metrics::new();
        metrics.set_rollouts([Phase::Ready, Phase::Ready, Phase::Aborted]);
        let text = metrics.encode();
        assert_eq!(value(&text, r#"sluice_rollouts{phase="Ready"}"#), Some(2.0), "{text}");
        assert_eq!(value(&text, r#"sluice_rollouts{phase="Aborted"}"#), Some(1.0), "{text}");
        metrics.set_rollouts([Phase::Ready]);
        let text = metrics.encode();
        assert_eq!(value(&text, r#"sluice_rollouts{phase="Ready"}"#), Some(1.0), "{text}");
        assert_eq!(value(&text, r#"sluice_rollouts{phase="Aborted"}"#), Some(0.0), "{text}");
    }

    #[test]
    fn the_age_of_a_watch_counts_from_when_it_last_heard_anything() {
        let metrics = Metrics::new();
        assert!(!metrics.encode().contains("sluice_watch_age_seconds{"));
        metrics.watch_seen("Rollout");
        let text = metrics.encode();
        let first = value(&text, r#"sluice_watch_age_seconds{kind="Rollout"}"#).unwrap();
        let later = value(&metrics.encode(), r#"sluice_watch_age_seconds{kind="Rollout"}"#).unwrap();
        assert!(first >= 0.0 && later > first, "{first} {later}");
    }

    #[test]
    fn the_words_in_metrics_are_the_words_in_the_api() {
        for phase in ALL_PHASES {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase_word(phase));
        }
        for event in [TransitionEvent::FirstDeploy, TransitionEvent::StepCompleted, TransitionEvent::PlanChanged] {
            assert_eq!(serde_json::to_value(event).unwrap(), event_word(event));
        }
    }

    #[test]
    fn no_filter_makes_the_http_and_tls_libraries_talk() {
        assert!(may_log("sluice::controllers::rollout", &Level::TRACE));
        assert!(may_log("kube_runtime::watcher", &Level::WARN));
        assert!(!may_log("kube_client::client", &Level::WARN), "it writes whole answers");
        for target in ["hyper::proto", "reqwest::connect", "rustls::client", "kube_client::client", "sluicebox"] {
            assert!(!may_log(target, &Level::DEBUG), "{target}");
            assert!(!may_log(target, &Level::TRACE), "{target}");
        }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = init_logs("info,sluice=loud=er").unwrap_err();
        assert!(error.to_string().contains("info,sluice=loud=er"), "{error}");
    }

    #[tokio::test]
    async fn the_first_signal_asks_and_the_second_aborts() {
        let (trigger, shutdown) = Shutdown::new();
        assert!(!shutdown.is_requested());
        assert!(shutdown.requested().now_or_never().is_none());
        trigger.signal();
        shutdown.requested().await;
        assert!(shutdown.is_requested());
        assert!(shutdown.aborted().now_or_never().is_none());
        trigger.signal();
        shutdown.aborted().await;
    }

    #[tokio::test]
    async fn a_lost_trigger_is_a_request_and_no_abort() {
        let (trigger, shutdown) = Shutdown::new();
        drop(trigger);
        shutdown.requested().await;
        assert!(shutdown.is_requested());
        assert!(shutdown.aborted().now_or_never().is_none());
    }

    #[tokio::test]
    async fn signals_of_the_process_are_taken() {
        let (_trigger, shutdown) = Shutdown::on_signals().unwrap();
        let ours = std::process::id().to_string();
        for _ in 0..2 {
            let status = tokio::process::Command::new("kill").args(["-TERM", &ours]).status().await.unwrap();
            assert!(status.success());
            tokio::time::timeout(Duration::from_secs(5), shutdown.requested()).await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(5), shutdown.aborted()).await.unwrap();
    }
}
