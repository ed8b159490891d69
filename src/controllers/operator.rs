//! The whole operator: what is watched, who works on it, and how it starts and stops.
//!
//! Starts warm: watches run on every replica, so a standby that becomes the leader acts at once. The gate is at
//! the write. Stops in order: no new turns, turns that have begun end, events and records go out, the lease is
//! given back, and last of all the health port closes.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use kube::runtime::watcher;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::OperatorArgs;
use super::analysis::AnalysisController;
use super::credentials::Secrets;
use super::deploy_repo::{self, DeployRepos, SyncTrigger};
use super::ledger::{self, LedgerController, LedgerKey, SecretRemotes};
use super::projections::{self, ProjectionController};
use super::queue::{self, Queue, QueueConfig};
use super::rollout::RolloutController;
use super::write_back::{self, SecretDoors, WriteBack};
use crate::api::names;
use crate::cluster::apply::Applier;
use crate::cluster::client::client;
use crate::cluster::events::Events;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::lease::{LeaderElection, Leadership, LeaseConfig, LeaseError};
use crate::cluster::objects::Key;
use crate::cluster::watch::{Observer, watch};
use crate::cluster::write::{WriteError, Writer, request_look, stand_down};
use crate::git::{GitCache, GitError, check_executable};
use crate::http::{Access, Limits, Readiness, ReadyHandle, Repositories, serve_health, serve_webhooks};
use crate::telemetry::{Metrics, Shutdown, ShutdownTrigger};

/// Why the operator could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// No cluster to talk to.
    #[error("no kubeconfig and no service account: {0}")]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    /// The client cannot be made.
    #[error("the Kubernetes client cannot be made: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The lease cannot be contended for.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The pods that lead cannot be stopped.
    #[error(transparent)]
    StandDown(#[from] WriteError),
    /// The cache of repositories cannot be had.
    #[error("the git cache: {0}")]
    Git(#[from] GitError),
    /// A port or a signal cannot be had.
    #[error("{what}: {source}")]
    Io {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// How long the last transitions may take to reach git when the operator stops.
const FLUSH: Duration = Duration::from_secs(8);
/// How long handing everything back may take before the process ends anyway: Helm waits five minutes.
const HAND_BACK_TAKES_AT_MOST: Duration = Duration::from_secs(270);
/// The name of the lease in the operator's namespace.
const LEASE: &str = "sluice-operator";

/// Runs the operator until it is asked to stop.
///
/// # Errors
/// When it cannot start; once it runs, troubles are retried and reported, not returned.
pub async fn run(args: OperatorArgs) -> Result<(), OperatorError> {
    let (stop, shutdown) =
        Shutdown::on_signals().map_err(|source| OperatorError::Io { what: "signals".to_owned(), source })?;
    let config = kube::Config::infer().await.map_err(|error| OperatorError::NoCluster(Box::new(error)))?;
    let client = client(config.clone()).map_err(|error| OperatorError::Client(Box::new(error)))?;
    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let index = Arc::new(Index::default());
    let identity = args.identity.clone().unwrap_or_else(|| format!("sluice-{}", std::process::id()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), cluster = args.cluster_name, identity, "starting");

    let rollouts = Queue::new(
        "rollout",
        // A short longest back-off: a Rollout that fails may be the one somebody aborts next.
        QueueConfig {
            concurrency: args.concurrency,
            longest_backoff: Duration::from_secs(5),
            ..QueueConfig::default()
        },
    );
    let syncs = Queue::new("deploy-repo", deploy_repo::queue_config());
    let trigger = SyncTrigger::new(syncs.clone());
    let health = listen(args.probe_address).await?;
    let metrics_listener = listen(args.metrics_address).await?;
    let retiring = args.hand_back.is_some();
    if let Some(deployment) = &args.hand_back {
        stand_down(client.clone(), &Key::new(args.namespace.clone(), deployment.clone())).await?;
    }

    let leadership = LeaderElection::start(config, &args.namespace, LEASE, &identity, LeaseConfig::default()).await?;
    let gate = Arc::new(leadership.clone());
    let writer = Writer::new(client.clone(), Arc::clone(&index), gate.clone(), Arc::new(metrics.clone()));
    let cache = GitCache::new(args.cache_dir.clone())?;
    tracing::info!(git = check_executable().await?, "the git executable");
    let applier = || Applier::new(client.clone(), gate.clone(), Arc::new(metrics.clone()));
    let repo_applier = Arc::new(applier());
    let secrets = Secrets::new(Arc::clone(&repo_applier));
    let analyses = AnalysisController::new(writer.clone(), applier(), args.namespace.clone(), metrics.clone());
    let tellings = Queue::new("projection", projections::queue_config());
    let projections = Arc::new(ProjectionController::new(projections::Parts {
        writer: writer.clone(),
        secrets: secrets.clone(),
        entries: cache.clone(),
        cluster: args.cluster_name.clone(),
        operator_namespace: args.namespace.clone(),
        queue: tellings.clone(),
        metrics: metrics.clone(),
        now,
    }));
    let reverts = Queue::new("write-back", write_back::queue_config());
    let observer = Arc::new(Wiring {
        rollouts: rollouts.clone(),
        reverts: reverts.clone(),
        syncs: syncs.clone(),
        projections: Arc::clone(&projections),
        analyses: analyses.clone(),
        index: Arc::clone(&index),
        trigger: trigger.clone(),
        stamps: Mutex::default(),
        metrics: metrics.clone(),
        lists: Lists::new(&args, &readiness),
    });
    // Both ports serve the same pages: probes and scrapes come from different networks.
    let health = tokio::spawn(serve_health(health, readiness.clone(), metrics.clone(), shutdown.clone()));
    let scrapes = tokio::spawn(serve_health(metrics_listener, readiness.clone(), metrics.clone(), shutdown.clone()));
    let (events, events_task) = Events::start(client.clone(), &identity, metrics.clone());
    let ledgers = Queue::new("ledger", ledger::queue_config());
    let ledger = Arc::new(LedgerController::new(ledger::Parts {
        writer: writer.clone(),
        remotes: SecretRemotes { secrets: secrets.clone(), cache: cache.clone() },
        cluster: args.cluster_name.clone(),
        operator_namespace: args.namespace.clone(),
        queue: ledgers.clone(),
        rollouts: rollouts.clone(),
        events: events.clone(),
        metrics: metrics.clone(),
        now,
    }));
    let reverting = {
        let write_back = Arc::new(WriteBack::new(write_back::Parts {
            writer: writer.clone(),
            doors: SecretDoors { secrets: secrets.clone(), cache: cache.clone() },
            ledger: ledger.clone(),
            cluster: args.cluster_name.clone(),
            operator_namespace: args.namespace.clone(),
            metrics: metrics.clone(),
            now,
        }));
        let readiness = readiness.clone();
        let turn = move |key: Key| {
            let (write_back, ready) = (Arc::clone(&write_back), readiness.is_ready());
            async move {
                // Half of the cluster would look like Rollouts that nobody records.
                if ready { write_back.turn(key).await } else { queue::Outcome::After(Duration::from_millis(100)) }
            }
        };
        tokio::spawn(queue::run(reverts, turn, metrics.clone(), shutdown.clone()))
    };
    let repos = Arc::new(DeployRepos::new(
        repo_applier,
        secrets,
        writer.clone(),
        cache,
        args.namespace.clone(),
        trigger.clone(),
    ));
    let hooks = Hooks { repos: Arc::clone(&repos), trigger, client: client.clone(), leadership: leadership.clone() };
    let webhooks = listen(args.webhook_address).await?;

    let mut background = JoinSet::new();
    let namespaces: Vec<Option<String>> = match args.watch_namespaces.as_slice() {
        [] => vec![None],
        listed => listed.iter().cloned().map(Some).collect(),
    };
    for kind in Kind::ALL {
        let scopes = if kind.is_cluster_scoped() { vec![None] } else { namespaces.clone() };
        for namespace in scopes {
            let observer: Arc<dyn Observer> = observer.clone();
            background.spawn(watch(client.clone(), Arc::clone(&index), kind, namespace, observer));
        }
    }
    background.spawn(count_rollouts(Arc::clone(&index), metrics.clone()));
    background.spawn(follow_leadership(
        leadership.clone(),
        Arc::clone(&index),
        rollouts.clone(),
        syncs.clone(),
        analyses.clone(),
        metrics.clone(),
    ));
    let analysing = {
        let (analyses, shutdown) = (analyses.clone(), shutdown.clone());
        tokio::spawn(async move { analyses.run(shutdown).await })
    };
    let webhooks = tokio::spawn(serve_webhooks(webhooks, hooks, Limits::default(), metrics.clone(), shutdown.clone()));
    let recording = {
        let (ledger, readiness) = (Arc::clone(&ledger), readiness.clone());
        tokio::spawn(queue::run(
            ledgers,
            move |key: LedgerKey| {
                let (ledger, ready) = (Arc::clone(&ledger), readiness.is_ready());
                async move {
                    // Half of the cluster would look like Rollouts without a ledger.
                    if ready { ledger.turn(key).await } else { queue::Outcome::After(Duration::from_millis(100)) }
                }
            },
            metrics.clone(),
            shutdown.clone(),
        ))
    };
    let telling = {
        let projections = Arc::clone(&projections);
        let turn = move |key| {
            let projections = Arc::clone(&projections);
            async move { projections.turn(key).await }
        };
        tokio::spawn(queue::run(tellings, turn, metrics.clone(), shutdown.clone()))
    };
    let syncing = {
        let (readiness, leadership, ledger) = (readiness.clone(), leadership.clone(), Arc::clone(&ledger));
        tokio::spawn(queue::run(
            syncs,
            move |key: Key| {
                let (repos, ready, leads) = (Arc::clone(&repos), readiness.is_ready(), leadership.is_leader());
                if leads {
                    ledger.look_at(&key);
                    projections.look_at(&key);
                }
                async move {
                    match (leads, ready) {
                        // Nothing is applied any more.
                        _ if retiring => queue::Outcome::Done,
                        // A standby asks no repository.
                        (false, _) => queue::Outcome::After(super::rollout::STANDBY),
                        (true, false) => queue::Outcome::After(Duration::from_millis(100)),
                        (true, true) => repos.turn(key).await,
                    }
                }
            },
            metrics.clone(),
            shutdown.clone(),
        ))
    };

    let epoch = {
        let leadership = leadership.clone();
        Arc::new(move || leadership.epoch())
    };
    let controller = Arc::new(RolloutController {
        index: Arc::clone(&index),
        writer,
        epoch,
        ledger: ledger.clone(),
        events: events.clone(),
        metrics: metrics.clone(),
        now,
        retiring,
    });
    if retiring {
        background.spawn(until_handed_back(Arc::clone(&index), readiness.clone(), leadership.clone(), stop.clone()));
    }
    let work = {
        let readiness = readiness.clone();
        let controller = Arc::clone(&controller);
        move |key: Key| {
            let (controller, readiness) = (Arc::clone(&controller), readiness.clone());
            async move {
                if !readiness.is_ready() {
                    // A decision on half of the cluster is no decision: what is missing would look deleted.
                    return queue::Outcome::After(Duration::from_millis(100));
                }
                controller.turn(&key).await
            }
        }
    };
    let dropped = queue::run(rollouts, work, metrics.clone(), shutdown.clone()).await;
    if dropped > 0 {
        tracing::warn!(dropped, "turns were dropped unfinished; the next leader repeats them");
    }
    let _ = analysing.await;
    let _ = syncing.await;
    let _ = telling.await;
    let _ = reverting.await;
    let _ = recording.await;
    ledger.flush(FLUSH).await;
    let _ = webhooks.await;
    drop(controller);
    drop(events);
    let _ = tokio::time::timeout(Duration::from_secs(3), events_task).await;
    leadership.release().await;
    background.abort_all();
    health.abort();
    scrapes.abort();
    tracing::info!("stopped");
    Ok(())
}

/// The one clock. Thousandths are enough for people, and what is compared is also what is stored.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(3)
}

async fn listen(address: std::net::SocketAddr) -> Result<TcpListener, OperatorError> {
    TcpListener::bind(address).await.map_err(|source| OperatorError::Io { what: format!("port {address}"), source })
}

/// How many Rollouts there are in each phase, for the metrics: counted now and then, not at every change.
async fn count_rollouts(index: Arc<Index>, metrics: Metrics) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        let rollouts = index.rollouts();
        metrics
            .set_rollouts(rollouts.iter().map(|rollout| rollout.status.as_ref().map(|s| s.phase).unwrap_or_default()));
    }
}

/// Whoever becomes the leader looks at everything once.
async fn follow_leadership(
    mut leadership: crate::cluster::lease::Leadership,
    index: Arc<Index>,
    rollouts: Queue<Key>,
    syncs: Queue<Key>,
    analyses: AnalysisController,
    metrics: Metrics,
) {
    loop {
        let leads = leadership.is_leader();
        metrics.set_leader(leads);
        if leads {
            tracing::info!(epoch = leadership.epoch(), "leading");
            for key in index.keys(Kind::Rollout) {
                rollouts.add(key);
            }
            for key in index.keys(Kind::DeployRepo) {
                syncs.add(key);
            }
            analyses.look_at_all();
        } else {
            tracing::info!("standing by");
        }
        leadership.changed().await;
    }
}

/// Ends the process when no Rollout steers anything any more, or when that has taken too long.
async fn until_handed_back(index: Arc<Index>, readiness: Readiness, leadership: Leadership, stop: ShutdownTrigger) {
    let begun = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        let rollouts = index.rollouts();
        let held: Vec<String> = rollouts
            .iter()
            .filter(|rollout| rollout.identity.is_held())
            .map(|rollout| rollout.identity.key().to_string())
            .collect();
        let knows = readiness.is_ready() && leadership.is_leader();
        if knows && held.is_empty() {
            tracing::info!(rollouts = rollouts.len(), "all is handed back");
            break;
        }
        if begun.elapsed() >= HAND_BACK_TAKES_AT_MOST {
            tracing::error!(
                rollouts = held.join(", "),
                leads = leadership.is_leader(),
                "not all was handed back in time"
            );
            break;
        }
    }
    stop.signal();
}

/// From what the watches see to who works on it.
struct Wiring {
    rollouts: Queue<Key>,
    reverts: Queue<Key>,
    syncs: Queue<Key>,
    projections: Arc<ProjectionController<GitCache>>,
    analyses: AnalysisController,
    index: Arc<Index>,
    trigger: SyncTrigger,
    stamps: Mutex<HashMap<Key, Option<String>>>,
    metrics: Metrics,
    lists: Lists,
}

/// Which complete lists have come: what readiness means.
struct Lists {
    handles: HashMap<Kind, ReadyHandle>,
    /// Lists still to come, by kind.
    missing: Mutex<HashMap<Kind, BTreeSet<Option<String>>>>,
}

impl Lists {
    fn new(args: &OperatorArgs, readiness: &Readiness) -> Self {
        let scopes = |kind: Kind| -> BTreeSet<Option<String>> {
            match args.watch_namespaces.as_slice() {
                listed if !listed.is_empty() && !kind.is_cluster_scoped() => listed.iter().cloned().map(Some).collect(),
                _ => [None].into(),
            }
        };
        Self {
            handles: Kind::ALL.into_iter().map(|kind| (kind, readiness.handle(kind.name()))).collect(),
            missing: Mutex::new(Kind::ALL.into_iter().map(|kind| (kind, scopes(kind))).collect()),
        }
    }

    fn came(&self, kind: Kind, namespace: Option<&str>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(scopes) = missing.get_mut(&kind) else { return };
        scopes.remove(&namespace.map(str::to_owned));
        if scopes.is_empty()
            && let Some(handle) = self.handles.get(&kind)
        {
            handle.ready();
        }
    }
}

impl Observer for Wiring {
    fn changed(&self, kind: Kind, key: &Key, rollouts: BTreeSet<Key>) {
        self.metrics.watch_seen(kind.name());
        self.analyses.changed(kind, key);
        if kind == Kind::DeployRepo {
            self.projections.look_at(key);
            // A new stamp (of a standby, or of `kubectl annotate`) asks for a look now.
            let repo = self.index.deploy_repo(key);
            let stamp = repo.and_then(|repo| repo.identity.annotations.get(names::REQUESTED_AT).cloned());
            let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            match stamps.insert(key.clone(), stamp.clone()) {
                Some(before) if before != stamp && stamp.is_some() => self.trigger.request(key),
                _ => self.syncs.add(key.clone()),
            }
        }
        if kind == Kind::Rollout {
            self.reverts.add(key.clone());
        }
        for rollout in rollouts {
            self.rollouts.add(rollout);
        }
    }

    fn listed(&self, kind: Kind, namespace: Option<&str>) {
        self.metrics.watch_seen(kind.name());
        self.lists.came(kind, namespace);
    }

    fn failed(&self, _kind: Kind, _error: &watcher::Error) {}
}

/// What the webhook receiver may ask and do.
struct Hooks {
    repos: Arc<DeployRepos<GitCache>>,
    trigger: SyncTrigger,
    client: kube::Client,
    leadership: Leadership,
}

impl Repositories for Hooks {
    async fn access(&self, namespace: &str, name: &str) -> Access {
        match self.repos.webhook_token(&Key::new(namespace, name)).await {
            Ok(None) => Access::Unknown,
            Ok(Some(None)) => Access::Open,
            Ok(Some(Some(token))) => Access::Token(token),
            Err(error) => {
                tracing::warn!(namespace, name, %error, "the webhook's token cannot be read");
                Access::Unavailable
            }
        }
    }

    fn look_now(&self, namespace: &str, name: &str) {
        let key = Key::new(namespace, name);
        if self.leadership.is_leader() {
            self.trigger.request(&key);
            return;
        }
        // The webhook's Service knows no leader: a standby passes the hint on by a stamp that the leader watches.
        let client = self.client.clone();
        tokio::spawn(async move {
            if let Err(error) = request_look(client, &key).await {
                tracing::warn!(repository = %key, %error, "a webhook could not be passed on; the next poll finds the commit");
            }
        });
    }
}
