//! Runs AnalysisRuns: asks what is due, judges the answers, writes what they add up to.
//!
//! A turn never waits for a metrics source. Queries run beside the turns; an answer is put down and the run
//! looked at again. So a wish to end a run is honoured at once though its query hangs, and an answer that
//! comes after the end changes nothing. All that a run needs is in its status: after a restart, or on another
//! replica, it goes on from there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::task::AbortHandle;

use super::queue::{self, Failure, Outcome, Queue, QueueConfig};
use crate::{
    analysis::judge,
    api::{
        AnalysisPhase, AnalysisRunSpec, AnalysisRunStatus, Measurement, Metric, PrometheusQuery, PrometheusServer,
        ProviderKind, SecretKey, Verdict,
    },
    cluster::{
        apply::Applier,
        index::Index,
        kinds::Kind,
        objects::{AnalysisRunObject, Identity, Key},
        write::{WriteError, Writer},
    },
    metrics::{Answer, MetricError, Sources},
    telemetry::{Metrics, Shutdown},
};

/// How many finished runs of a Rollout are kept, besides those of its present release.
const KEPT_RUNS: usize = 10;
/// How long a token is used before its Secret is read again.
const TOKEN_AGE: Duration = Duration::from_secs(60);
/// Longer than a query with all its waits may take; then it is asked again.
const LONGEST_QUERY: Duration = Duration::from_secs(120);
/// How soon a replica that does not lead looks again whether it does.
const STANDBY: Duration = Duration::from_secs(5);

/// The loop of the AnalysisRuns. Cheap to clone; all clones are the same loop.
#[derive(Clone)]
pub struct AnalysisController(Arc<Inner>);

struct Inner {
    writer: Writer,
    secrets: Applier,
    sources: Sources,
    queue: Queue<Key>,
    metrics: Metrics,
    /// The operator's own namespace, where the Secrets of cluster-wide providers are.
    namespace: String,
    flights: Mutex<HashMap<Key, Flight>>,
    tokens: Mutex<HashMap<String, Token>>,
}

/// A token as last read, by provider.
struct Token {
    read_at: Instant,
    from: SecretKey,
    value: Arc<str>,
}

/// What is under way for a run.
#[derive(Default)]
struct Flight {
    /// The run; another one of the same name starts anew.
    uid: String,
    /// When it was looked at first, until its status says so.
    begun_at: Option<DateTime<Utc>>,
    /// The metrics that are being asked.
    asked: BTreeMap<usize, (Instant, AbortHandle)>,
    /// Answers that are not in the status yet, in the order in which they came.
    answers: Vec<(usize, Measurement)>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.asked.values().for_each(|(_, task)| task.abort());
    }
}

impl AnalysisController {
    /// A loop that writes through `writer` and reads Secrets, by their exact names, through `secrets`.
    pub fn new(writer: Writer, secrets: Applier, namespace: String, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            writer,
            secrets,
            sources: Sources::default(),
            queue: Queue::new("analysis", QueueConfig::default()),
            metrics,
            namespace,
            flights: Mutex::default(),
            tokens: Mutex::default(),
        }))
    }

    /// Something was seen to change; to be called for every kind, it picks what concerns it.
    pub fn changed(&self, kind: Kind, key: &Key) {
        match kind {
            Kind::AnalysisRun => self.0.queue.add(key.clone()),
            Kind::MetricProvider | Kind::ClusterMetricProvider => {
                let index = self.0.writer.index();
                let known: BTreeSet<String> = [ProviderKind::MetricProvider, ProviderKind::ClusterMetricProvider]
                    .into_iter()
                    .flat_map(|kind| index.keys(kind_of(kind)).into_iter().map(move |key| provider_name(kind, &key)))
                    .collect();
                self.0.sources.retain(|name| known.contains(name));
            }
            _ => {}
        }
    }

    /// Looks at every run, as when this process has begun to lead.
    pub fn look_at_all(&self) {
        for key in self.0.writer.index().keys(Kind::AnalysisRun) {
            self.0.queue.add(key);
        }
    }

    /// Works until asked to stop. Queries in flight are dropped then; another replica asks again.
    pub async fn run(&self, shutdown: Shutdown) {
        let controller = self.clone();
        let work = move |key| {
            let controller = controller.clone();
            async move { controller.turn(key, Utc::now()).await }
        };
        queue::run(self.0.queue.clone(), work, self.0.metrics.clone(), shutdown).await;
        self.0.flights().clear();
    }

    /// One turn: observe, decide, write.
    async fn turn(&self, key: Key, now: DateTime<Utc>) -> Outcome {
        let inner = &self.0;
        let Some(run) = inner.writer.index().analysis_run(&key).filter(|run| !run.identity.deleting) else {
            inner.flights().remove(&key);
            return Outcome::Done;
        };
        if run.status.as_ref().is_some_and(|status| judge::ended(status.phase)) {
            inner.flights().remove(&key);
            return inner.tidy(&run).await;
        }
        if !inner.writer.may_write() {
            inner.flights().remove(&key);
            return Outcome::After(STANDBY);
        }
        let spec = match &run.spec {
            Ok(spec) => spec,
            Err(trouble) => {
                // Ours, and yet not readable: written by another version. A person must look.
                let status = AnalysisRunStatus {
                    phase: AnalysisPhase::Inconclusive,
                    message: format!("this version of the operator cannot read the run: {trouble}"),
                    completed_at: Some(now),
                    ..AnalysisRunStatus::default()
                };
                return inner.write(&run.identity, &status).await.map_or_else(failed, |()| Outcome::Done);
            }
        };

        let (begun_at, answers, asked) = inner.observe(&key, &run.identity.uid, now);
        let fresh = AnalysisRunStatus { started_at: Some(begun_at), ..AnalysisRunStatus::default() };
        let before = run.status.clone().unwrap_or(fresh);
        let status = judge::advance_all(spec, &before, answers.iter().cloned(), now);
        let due: Vec<usize> =
            judge::due(spec, &status, now).into_iter().filter(|index| !asked.contains(index)).collect();
        // A run that has only begun is written with its first answer: one write instead of two.
        let answer_comes = status.phase == AnalysisPhase::Pending && !(due.is_empty() && asked.is_empty());
        let changed = run.status.as_ref() != Some(&status) && !(run.status.is_none() && answer_comes);
        if changed {
            if let Err(error) = inner.write(&run.identity, &status).await {
                return failed(error);
            }
            inner.taken_in(&key, &run.identity.uid, answers.len());
            if status.phase != AnalysisPhase::Terminated {
                answers.iter().for_each(|(_, measurement)| inner.metrics.verdict(word(measurement.verdict)));
            }
        }
        if judge::ended(status.phase) {
            inner.flights().remove(&key);
            return Outcome::Done;
        }
        for index in due {
            self.ask(&key, &run, spec, index, now);
        }
        let asked: BTreeSet<usize> =
            inner.flights().get(&key).map(|flight| flight.asked.keys().copied().collect()).unwrap_or_default();
        // A millisecond more, so that the time has come when it is looked at.
        let next = judge::next_due_besides(spec, &status, &asked, now)
            .map_or(LONGEST_QUERY, |at| (at - now).to_std().unwrap_or_default() + Duration::from_millis(1));
        Outcome::After(next.min(LONGEST_QUERY))
    }

    /// Asks for one metric beside the turns.
    fn ask(&self, key: &Key, run: &AnalysisRunObject, spec: &AnalysisRunSpec, index: usize, at: DateTime<Utc>) {
        let Some(metric) = spec.metrics.get(index).cloned() else { return };
        let mut flights = self.0.flights();
        let Some(flight) = flights.get_mut(key).filter(|flight| flight.uid == run.identity.uid) else { return };
        let (controller, key, uid) = (self.clone(), key.clone(), run.identity.uid.clone());
        // The lock is held until the handle is in its place, so the answer cannot come before it.
        let task = tokio::spawn(async move {
            let answer = controller.0.query(&key.namespace, &metric).await;
            let answer = answer.as_ref().map_err(String::as_str);
            let measurement = judge::measure(&metric, answer, at, Utc::now());
            if controller.0.put_down(&key, &uid, index, measurement) {
                controller.0.queue.add(key);
            }
        });
        flight.asked.insert(index, (Instant::now(), task.abort_handle()));
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, HashMap<Key, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is under way for a run: since when, the answers so far, and what is being asked.
    fn observe(
        &self,
        key: &Key,
        uid: &str,
        now: DateTime<Utc>,
    ) -> (DateTime<Utc>, Vec<(usize, Measurement)>, BTreeSet<usize>) {
        let mut flights = self.flights();
        let flight = flights.entry(key.clone()).or_default();
        if flight.uid != uid {
            *flight = Flight::default();
            uid.clone_into(&mut flight.uid);
        }
        // A query that ended without an answer has panicked; one that takes longer than it may is given up.
        flight.asked.retain(|_, (begun, task)| {
            let lost = task.is_finished() || begun.elapsed() > LONGEST_QUERY;
            if lost {
                task.abort();
            }
            !lost
        });
        let begun_at = *flight.begun_at.get_or_insert(now);
        (begun_at, flight.answers.clone(), flight.asked.keys().copied().collect())
    }

    /// Keeps an answer for the next turn; false when nobody waits for it any more.
    fn put_down(&self, key: &Key, uid: &str, index: usize, measurement: Measurement) -> bool {
        let mut flights = self.flights();
        let Some(flight) = flights.get_mut(key).filter(|flight| flight.uid == uid) else { return false };
        flight.asked.remove(&index);
        flight.answers.push((index, measurement));
        true
    }

    /// Forgets the answers that are in the status now.
    fn taken_in(&self, key: &Key, uid: &str, count: usize) {
        if let Some(flight) = self.flights().get_mut(key).filter(|flight| flight.uid == uid) {
            flight.answers.drain(..count.min(flight.answers.len()));
        }
    }

    async fn write(&self, identity: &Identity, status: &AnalysisRunStatus) -> Result<(), WriteError> {
        let value = serde_json::to_value(status).map_err(|error| WriteError::Unprepared(error.to_string()))?;
        self.writer.replace_status_of(Kind::AnalysisRun, identity, value).await
    }

    /// Asks the provider of a metric. The error is one sentence for the status.
    async fn query(&self, namespace: &str, metric: &Metric) -> Result<Answer, String> {
        let Some(query) = &metric.provider.prometheus else { return Err("no provider is named".into()) };
        let (name, server) = provider(self.writer.index(), namespace, query)?;
        let secrets = match query.kind {
            ProviderKind::ClusterMetricProvider => self.namespace.as_str(),
            ProviderKind::MetricProvider => namespace,
        };
        let named = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let token = match &server.bearer_token {
            None => None,
            Some(key) => Some(self.token(&name, secrets, key).await.map_err(|error| named(&error))?),
        };
        let answer = self.sources.query(&name, &server, &query.query, token.as_deref()).await;
        if let Err(MetricError::Status { code: 401 | 403, .. }) = answer {
            // Perhaps the token was renewed: the next query reads it again.
            self.tokens().remove(&name);
        }
        answer.map_err(|error| named(&error))
    }

    async fn token(&self, provider: &str, namespace: &str, wanted: &SecretKey) -> Result<Arc<str>, String> {
        if let Some(token) = self.tokens().get(provider)
            && token.read_at.elapsed() < TOKEN_AGE
            && token.from == *wanted
        {
            return Ok(Arc::clone(&token.value));
        }
        let SecretKey { name, key } = wanted;
        let data = self.secrets.secret(namespace, name).await;
        let data = data.map_err(|error| {
            tracing::warn!(secret = %format!("{namespace}/{name}"), %error, "a metric provider's Secret was not read");
            format!("Secret {namespace}/{name} could not be read")
        })?;
        let data = data.ok_or_else(|| format!("Secret {namespace}/{name} does not exist"))?;
        let token = data.get(key).ok_or_else(|| format!("Secret {namespace}/{name} has no key \"{key}\""))?;
        let token =
            std::str::from_utf8(token).map_err(|_| format!("Secret {namespace}/{name}: \"{key}\" is no text"))?;
        let value: Arc<str> = token.trim().into();
        let token = Token { read_at: Instant::now(), from: wanted.clone(), value: Arc::clone(&value) };
        self.tokens().insert(provider.to_owned(), token);
        Ok(value)
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<String, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes finished runs of the same Rollout that nobody needs any more.
    async fn tidy(&self, run: &AnalysisRunObject) -> Outcome {
        let Ok(spec) = &run.spec else { return Outcome::Done };
        let rollout = Key::new(run.identity.namespace.clone(), spec.rollout.clone());
        for surplus in surplus(self.writer.index(), &rollout) {
            match self.writer.delete(Kind::AnalysisRun, &surplus.key(), &surplus).await {
                // Gone or changed is as good as deleted; the next run to end looks again.
                Ok(()) | Err(WriteError::Conflict { .. } | WriteError::NotLeader) => {}
                Err(error) => return failed(error),
            }
        }
        Outcome::Done
    }
}

/// The finished runs of a Rollout beyond those that are kept. None while a transition is not recorded yet: the
/// ledger takes its evidence from the runs. A Rollout that is gone takes its runs along by its ownership.
fn surplus(index: &Index, rollout: &Key) -> Vec<Identity> {
    let Some(rollout) = index.rollout(rollout) else { return Vec::new() };
    let Some(status) = rollout.status.as_ref().filter(|status| status.pending_log.is_empty()) else {
        return Vec::new();
    };
    let present = status.release.as_ref().map(|release| (release.revision.as_str(), release.attempt));
    let mut finished: Vec<(Option<DateTime<Utc>>, Identity)> = index
        .analysis_runs_of(&rollout.identity.key())
        .iter()
        .filter(|run| run.identity.owner.as_deref() == Some(rollout.identity.uid.as_str()) && !run.identity.deleting)
        .filter(|run| run.spec.as_ref().is_ok_and(|spec| present != Some((spec.revision.as_str(), spec.attempt))))
        .filter_map(|run| {
            let status = run.status.as_ref().filter(|status| judge::ended(status.phase))?;
            Some((status.completed_at, run.identity.clone()))
        })
        .collect();
    finished.sort_by(|a, b| (b.0, &b.1.name).cmp(&(a.0, &a.1.name)));
    finished.into_iter().skip(KEPT_RUNS).map(|(_, identity)| identity).collect()
}

/// The provider a query names, and what messages and the client cache call it.
fn provider(index: &Index, namespace: &str, query: &PrometheusQuery) -> Result<(String, PrometheusServer), String> {
    let (key, spec) = match query.kind {
        ProviderKind::ClusterMetricProvider => {
            let found = index.cluster_metric_provider(&query.name);
            (Key::new("", query.name.clone()), found.map(|found| found.spec.clone().map(|spec| spec.prometheus)))
        }
        ProviderKind::MetricProvider => {
            let key = Key::new(namespace, query.name.clone());
            let found = index.metric_provider(&key);
            (key, found.map(|found| found.spec.clone().map(|spec| spec.prometheus)))
        }
    };
    let name = provider_name(query.kind, &key);
    match spec {
        None => Err(format!("{name} does not exist")),
        Some(Err(trouble)) => Err(format!("{name}: {trouble}")),
        Some(Ok(server)) => Ok((name, server)),
    }
}

fn kind_of(kind: ProviderKind) -> Kind {
    match kind {
        ProviderKind::ClusterMetricProvider => Kind::ClusterMetricProvider,
        ProviderKind::MetricProvider => Kind::MetricProvider,
    }
}

fn provider_name(kind: ProviderKind, key: &Key) -> String {
    match kind {
        ProviderKind::ClusterMetricProvider => format!("ClusterMetricProvider \"{}\"", key.name),
        ProviderKind::MetricProvider => format!("MetricProvider \"{key}\""),
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Inconclusive => "inconclusive",
        Verdict::NoData => "no-data",
        Verdict::Error => "error",
    }
}

fn failed(error: WriteError) -> Outcome {
    match error {
        // Not the leader any more: the gate says when it is again.
        WriteError::NotLeader => Outcome::After(STANDBY),
        error => Outcome::Failed(Failure::new(error.reason(), &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
        time::Duration,
    };

    use axum::{
        Json, Router,
        body::Bytes,
        http::{HeaderMap, Method, StatusCode, Uri},
        response::{IntoResponse, Response},
    };
    use serde_json::{Value, json};
    use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle, time::timeout};

    use super::AnalysisController;
    use crate::{
        cluster::{
            apply::Applier,
            client::client,
            index::Index,
            kinds::Kind,
            objects::Key,
            write::{Gate, Writer},
        },
        telemetry::{Metrics, Shutdown, ShutdownTrigger},
    };

    const TOKEN: &str = "token-that-nobody-may-see";

    /// AnalysisRuns behind an API server that knows versions and the operations of a JSON Patch we use.
    #[derive(Clone)]
    struct Api(Arc<ApiState>);

    struct ApiState {
        runs: Mutex<Vec<Value>>,
        version: AtomicUsize,
        writes: AtomicUsize,
        /// The next writes are answered with this status.
        trouble: Mutex<Vec<u16>>,
        index: Arc<Index>,
        changed: Mutex<Option<AnalysisController>>,
    }

    impl Api {
        fn answer(&self, method: &Method, uri: &Uri, body: &Bytes) -> Response {
            let path = uri.path();
            if path == "/api/v1/namespaces/sluice-system/secrets/prom" {
                // "token-that-nobody-may-see\n"
                let token = "dG9rZW4tdGhhdC1ub2JvZHktbWF5LXNlZQo=";
                return Json(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "prom"},
                                   "data": {"token": token}}))
                .into_response();
            }
            let name = path.split('/').nth(7).unwrap_or_default().to_owned();
            let mut runs = self.0.runs.lock().unwrap();
            let Some(at) = runs.iter().position(|run| run["metadata"]["name"] == name) else {
                return refuse(404, "NotFound");
            };
            if *method == Method::DELETE {
                return Json(runs.remove(at)).into_response();
            }
            self.0.writes.fetch_add(1, Ordering::SeqCst);
            if let Some(code) = self.0.trouble.lock().unwrap().pop() {
                return refuse(code, "Trouble");
            }
            let patch: Value = serde_json::from_slice(body).unwrap();
            for operation in patch.as_array().unwrap() {
                let path = operation["path"].as_str().unwrap();
                match operation["op"].as_str().unwrap() {
                    "test" if runs[at].pointer(path) != Some(&operation["value"]) => {
                        return refuse(422, "Invalid");
                    }
                    "test" => {}
                    "add" => runs[at]["status"] = operation["value"].clone(),
                    other => panic!("operation {other}"),
                }
            }
            runs[at]["metadata"]["resourceVersion"] = self.next_version();
            Json(runs[at].clone()).into_response()
        }

        fn next_version(&self) -> Value {
            self.0.version.fetch_add(1, Ordering::SeqCst).to_string().into()
        }

        /// Changes a run as somebody else would, and lets the watch tell of it.
        fn change(&self, name: &str, change: impl Fn(&mut Value)) {
            let mut runs = self.0.runs.lock().unwrap();
            if !runs.iter().any(|run| run["metadata"]["name"] == name) {
                runs.push(json!({
                    "apiVersion": "sluice.dev/v1alpha1", "kind": "AnalysisRun",
                    "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"),
                                 "ownerReferences": [{"apiVersion": "v1", "kind": "Rollout", "name": "web",
                                                      "uid": "web-uid", "controller": true}]}
                }));
            }
            let run = runs.iter_mut().find(|run| run["metadata"]["name"] == name).unwrap();
            change(run);
            run["metadata"]["resourceVersion"] = self.next_version();
            self.0.index.apply(Kind::AnalysisRun, &serde_json::from_value(run.clone()).unwrap());
            if let Some(controller) = self.0.changed.lock().unwrap().as_ref() {
                controller.changed(Kind::AnalysisRun, &Key::new("shop", name));
            }
        }

        fn status(&self, name: &str) -> Value {
            let runs = self.0.runs.lock().unwrap();
            runs.iter().find(|run| run["metadata"]["name"] == name).map(|run| run["status"].clone()).unwrap_or_default()
        }
    }

    fn refuse(code: u16, reason: &str) -> Response {
        // As the API server says that a test of a patch failed.
        let message = "the server rejected our request due to an error in our request";
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                          "code": code, "reason": reason, "message": message});
        (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
    }

    struct Lease(AtomicBool);

    impl Gate for Lease {
        fn may_write(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    /// A Prometheus that answers with a value, or lets a query wait until it is told.
    struct Source {
        address: SocketAddr,
        value: Mutex<String>,
        asked: AtomicUsize,
        answered: AtomicUsize,
        hangs: AtomicBool,
        go_on: Semaphore,
        authorization: Mutex<Vec<String>>,
    }

    impl Source {
        async fn start(value: &str) -> Arc<Self> {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let source = Arc::new(Self {
                address: listener.local_addr().unwrap(),
                value: Mutex::new(value.to_owned()),
                asked: AtomicUsize::new(0),
                answered: AtomicUsize::new(0),
                hangs: AtomicBool::new(false),
                go_on: Semaphore::new(0),
                authorization: Mutex::default(),
            });
            let answering = Arc::clone(&source);
            let router = Router::new().fallback(move |headers: HeaderMap| {
                let source = Arc::clone(&answering);
                async move {
                    if let Some(value) = headers.get("authorization") {
                        source.authorization.lock().unwrap().push(value.to_str().unwrap().to_owned());
                    }
                    source.asked.fetch_add(1, Ordering::SeqCst);
                    if source.hangs.load(Ordering::SeqCst) {
                        source.go_on.acquire().await.unwrap().forget();
                    }
                    source.answered.fetch_add(1, Ordering::SeqCst);
                    let value = source.value.lock().unwrap().clone();
                    let now = chrono::Utc::now().timestamp();
                    Json(json!({"status": "success", "data": {"resultType": "scalar", "result": [now, value]}}))
                }
            });
            tokio::spawn(async move { axum::serve(listener, router).await });
            source
        }
    }

    struct Bench {
        api: Api,
        controller: AnalysisController,
        index: Arc<Index>,
        lease: Arc<Lease>,
        metrics: Metrics,
        _trigger: ShutdownTrigger,
        running: JoinHandle<()>,
    }

    impl Bench {
        async fn start() -> Self {
            drop(rustls::crypto::ring::default_provider().install_default());
            let index = Arc::new(Index::default());
            let api = Api(Arc::new(ApiState {
                runs: Mutex::default(),
                version: AtomicUsize::new(1),
                writes: AtomicUsize::new(0),
                trouble: Mutex::default(),
                index: Arc::clone(&index),
                changed: Mutex::new(None),
            }));
            Self::attach(api, index).await
        }

        /// An operator at an API server that is there already.
        async fn attach(api: Api, index: Arc<Index>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let answering = api.clone();
            let router = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
                let api = answering.clone();
                async move { api.answer(&method, &uri, &body) }
            });
            tokio::spawn(async move { axum::serve(listener, router).await });
            let client = client(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
            let lease = Arc::new(Lease(AtomicBool::new(true)));
            let metrics = Metrics::new();
            let observer = Arc::new(metrics.clone());
            let writer = Writer::new(client.clone(), Arc::clone(&index), lease.clone(), observer.clone());
            let secrets = Applier::new(client, lease.clone(), observer);
            let controller = AnalysisController::new(writer, secrets, "sluice-system".into(), metrics.clone());
            *api.0.changed.lock().unwrap() = Some(controller.clone());
            let (trigger, shutdown) = Shutdown::new();
            let looping = controller.clone();
            let running = tokio::spawn(async move { looping.run(shutdown).await });
            Self { api, controller, index, lease, metrics, _trigger: trigger, running }
        }

        /// The operator's process ends without a word; another starts on what the cluster holds.
        async fn restart(self) -> Self {
            self.running.abort();
            self.controller.0.flights().clear();
            let bench = Self::attach(self.api, self.index).await;
            // Its first list: the last write of the other may have been made without an answer.
            for run in bench.api.0.runs.lock().unwrap().iter() {
                bench.index.apply(Kind::AnalysisRun, &serde_json::from_value(run.clone()).unwrap());
            }
            bench.controller.look_at_all();
            bench
        }

        fn provider(&self, name: &str, source: &Source, token: bool) {
            let mut prometheus = json!({"address": format!("http://{}", source.address), "timeout": "30s"});
            if token {
                prometheus["bearerToken"] = json!({"name": "prom", "key": "token"});
            }
            let provider = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ClusterMetricProvider",
                                  "metadata": {"name": name, "uid": name, "resourceVersion": "1"},
                                  "spec": {"prometheus": prometheus}});
            self.index.apply(Kind::ClusterMetricProvider, &serde_json::from_value(provider).unwrap());
            self.controller.changed(Kind::ClusterMetricProvider, &Key::new("", name));
        }

        fn run(&self, name: &str, metric: Value) {
            let mut whole = json!({"name": "errors", "threshold": {"max": 0.05},
                                   "provider": {"prometheus": {"name": "prom", "query": "up"}}});
            whole.as_object_mut().unwrap().extend(metric.as_object().unwrap().clone());
            self.api.change(name, |run| {
                run["spec"] = json!({"rollout": "web", "revision": "abc", "attempt": 1, "stage": "background",
                                     "metrics": [whole.clone()]});
            });
        }

        /// Waits until the status of a run is as wanted.
        async fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
            let reached = async {
                loop {
                    let status = self.api.status(name);
                    if wanted(&status) {
                        return status;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            match timeout(Duration::from_secs(20), reached).await {
                Ok(status) => status,
                Err(_) => panic!("{name} stays {}", self.api.status(name)),
            }
        }
    }

    async fn until(what: &str, reached: impl Fn() -> bool) {
        let wait = async {
            while !reached() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    fn phase(wanted: &'static str) -> impl Fn(&Value) -> bool {
        move |status| status["phase"] == wanted
    }

    #[tokio::test]
    async fn a_run_is_measured_judged_and_written_once_a_measurement() {
        let bench = Bench::start().await;
        let source = Source::start("0.02").await;
        bench.provider("prom", &source, true);
        bench.run("good", json!({"interval": "1s", "count": 2}));
        let status = bench.until("good", phase("Passed")).await;
        assert_eq!(status["message"], "errors: 2 of 2 measurements passed");
        assert_eq!(status["metrics"][0]["measurements"][0]["values"], json!(["0.02"]));
        assert_eq!(bench.api.0.writes.load(Ordering::SeqCst), 2, "one write a measurement");
        assert_eq!(*source.authorization.lock().unwrap(), vec![format!("Bearer {TOKEN}"); 2]);
        assert!(!status.to_string().contains(TOKEN));
        until("both are counted", || bench.metrics.encode().contains("verdict=\"pass\"} 2")).await;

        *source.value.lock().unwrap() = "0.5".into();
        bench.run("bad", json!({"interval": "1s"}));
        let status = bench.until("bad", phase("Failed")).await;
        assert_eq!(status["message"], "errors: 0.5 is above max 0.05 (1 failed, 0 allowed)");
        // At rest nothing is written, whoever looks.
        let writes = bench.api.0.writes.load(Ordering::SeqCst);
        bench.controller.look_at_all();
        until("the queue is empty", || bench.controller.0.queue.depth() == 0).await;
        assert_eq!(bench.api.0.writes.load(Ordering::SeqCst), writes);
    }

    #[tokio::test]
    async fn a_missing_provider_or_secret_holds_with_its_name_and_mending_goes_on() {
        let bench = Bench::start().await;
        bench.run("run", json!({"interval": "1s", "count": 1}));
        let status = bench.until("run", phase("Holding")).await;
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with("errors: ClusterMetricProvider \"prom\" does not exist; holds since"), "{message}");
        assert_eq!(status["metrics"][0]["measurements"][0]["verdict"], "Error");
        let source = Source::start("0").await;
        bench.provider("prom", &source, false);
        bench.until("run", phase("Passed")).await;

        let other = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "ClusterMetricProvider",
            "metadata": {"name": "keyless", "uid": "k", "resourceVersion": "1"},
            "spec": {"prometheus": {"address": "http://127.0.0.1:1", "bearerToken": {"name": "prom", "key": "other"}}}});
        bench.index.apply(Kind::ClusterMetricProvider, &serde_json::from_value(other).unwrap());
        bench.run("keyless", json!({"provider": {"prometheus": {"name": "keyless", "query": "up"}}}));
        let status = bench.until("keyless", phase("Holding")).await;
        let message = status["message"].as_str().unwrap();
        assert!(message.contains("Secret sluice-system/prom has no key \"other\""), "{message}");
    }

    #[tokio::test]
    async fn ending_is_honoured_at_once_while_a_query_hangs_and_its_late_answer_is_dropped() {
        let bench = Bench::start().await;
        let source = Source::start("0").await;
        source.hangs.store(true, Ordering::SeqCst);
        bench.provider("prom", &source, false);
        // 200 Rollouts hang with it: none of them may take a place that ending needs.
        for number in 0..200 {
            bench.run(&format!("run-{number}"), json!({"interval": "1s"}));
        }
        until("queries hang", || source.asked.load(Ordering::SeqCst) > 0).await;
        let begun = std::time::Instant::now();
        for name in ["run-0", "run-199"] {
            bench.api.change(name, |run| run["spec"]["terminate"] = true.into());
            bench.until(name, phase("Terminated")).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let before = ["run-0", "run-199"].map(|name| bench.api.status(name));
        source.go_on.add_permits(1000);
        source.hangs.store(false, Ordering::SeqCst);
        bench.until("run-100", phase("Running")).await;
        assert_eq!(["run-0", "run-199"].map(|name| bench.api.status(name)), before);
        assert_eq!(before[0]["metrics"][0]["passed"], 0);
    }

    #[tokio::test]
    async fn another_process_goes_on_from_the_status_alone() {
        let bench = Bench::start().await;
        let source = Source::start("0").await;
        bench.provider("prom", &source, false);
        bench.run("run", json!({"interval": "1s", "count": 3}));
        bench.until("run", |status| status["metrics"][0]["count"] == 1).await;
        let started = bench.api.status("run")["startedAt"].clone();
        let bench = bench.restart().await;
        let status = bench.until("run", phase("Passed")).await;
        assert_eq!(status["startedAt"], started);
        assert_eq!(status["metrics"][0]["count"], 3, "what was measured before counts");
        // One more at most: the one that was in flight when the other ended.
        assert!(source.asked.load(Ordering::SeqCst) <= 4, "and is not measured again");
    }

    #[tokio::test]
    async fn a_failed_write_loses_no_answer_and_doubles_none() {
        let bench = Bench::start().await;
        let source = Source::start("0").await;
        bench.provider("prom", &source, false);
        *bench.api.0.trouble.lock().unwrap() = vec![422, 500, 409];
        bench.run("run", json!({}));
        let status = bench.until("run", phase("Passed")).await;
        assert_eq!(status["metrics"][0]["count"], 1);
        assert_eq!(source.asked.load(Ordering::SeqCst), 1, "the answer was kept");
        assert_eq!(bench.api.0.writes.load(Ordering::SeqCst), 4);
    }

    #[tokio::test]
    async fn a_process_that_does_not_lead_asks_and_writes_nothing() {
        let bench = Bench::start().await;
        let source = Source::start("0").await;
        bench.lease.0.store(false, Ordering::SeqCst);
        bench.provider("prom", &source, false);
        bench.run("run", json!({}));
        until("it was looked at", || bench.metrics.encode().contains("queue=\"analysis\"")).await;
        until("the queue is empty", || bench.controller.0.queue.depth() == 0).await;
        assert_eq!(source.asked.load(Ordering::SeqCst), 0);
        assert_eq!(bench.api.status("run"), Value::Null);
        bench.lease.0.store(true, Ordering::SeqCst);
        bench.controller.look_at_all();
        bench.until("run", phase("Passed")).await;
    }

    #[tokio::test]
    async fn old_runs_go_when_everything_about_them_is_recorded() {
        let bench = Bench::start().await;
        let rollout = |version: usize, pending: Value| {
            let rollout = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
                "metadata": {"name": "web", "namespace": "shop", "uid": "web-uid", "resourceVersion": version.to_string()},
                "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {}, "strategy": {"canary": {}}},
                "status": {"pendingLog": pending, "release": {"revision": "now", "attempt": 1}}});
            bench.index.apply(Kind::Rollout, &serde_json::from_value(rollout).unwrap());
            let seen = bench.index.rollout(&Key::new("shop", "web")).unwrap();
            assert!(seen.status.is_some(), "{:?}", seen.status_trouble);
        };
        let transition = json!({"sequence": 7, "event": "StepCompleted", "at": "2026-01-01T00:00:00Z", "stage": 0,
            "stages": 1, "weightFrom": 0, "weightTo": 20, "revisionTo": "abc", "attempt": 1, "reason": "Passed",
            "message": ""});
        rollout(1, json!([transition]));
        let finished = |name: &str, revision: &str, minute: usize| {
            bench.api.change(name, |run| {
                run["spec"] = json!({"rollout": "web", "revision": revision, "attempt": 1, "stage": "background",
                    "metrics": [{"name": "a", "threshold": {"max": 1},
                                 "provider": {"prometheus": {"name": "prom", "query": "up"}}}]});
                run["status"] = json!({"phase": "Passed", "completedAt": format!("2026-01-01T00:{minute:02}:00Z")});
            });
        };
        for minute in 0..15 {
            finished(&format!("old-{minute:02}"), "abc", minute);
        }
        finished("present", "now", 0);
        let names = || -> Vec<String> {
            let runs = bench.api.0.runs.lock().unwrap();
            runs.iter().map(|run| run["metadata"]["name"].as_str().unwrap().to_owned()).collect()
        };
        until("the queue is empty", || bench.controller.0.queue.depth() == 0).await;
        assert_eq!(names().len(), 16, "not before the ledger has taken its evidence");
        rollout(2, json!([]));
        bench.controller.changed(Kind::AnalysisRun, &Key::new("shop", "old-00"));
        until("the oldest are gone", || names().len() == 11).await;
        assert_eq!(names()[0], "old-05");
        assert!(names().contains(&"present".to_owned()), "the release under way keeps its own");
    }
}
