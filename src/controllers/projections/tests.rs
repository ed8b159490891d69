//! The loop against a small API server, a real ledger and receivers of all tempers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use chrono::{DateTime, Utc};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::{Entries, Parts, ProjectionController, ProjectionKey, queue_config};
use crate::api::{DeployRepoSpec, DeployRepoStatus, Epochs, ProjectionStatus, Transition, TransitionEvent};
use crate::cluster::apply::Applier;
use crate::cluster::client::client;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::Key;
use crate::cluster::write::{Gate, Writer};
use crate::controllers::credentials::Secrets;
use crate::controllers::queue::{Outcome, Queue};
use crate::git::{Commit, Credentials, GitCache, GitError, Ledger, LedgerEntry, LedgerPolicy, RemoteAddress, Segment};
use crate::telemetry::Metrics;

const REPO: &str = "/apis/sluice.dev/v1alpha1/namespaces/sluice-system/deployrepos/deploy";
const CANARY: &str = "canary-9f1c";

/// One DeployRepo and Secrets, as an API server holds them.
#[derive(Clone, Default)]
struct Api {
    repo: Arc<Mutex<Value>>,
    secrets: Arc<Mutex<BTreeMap<String, Value>>>,
    writes: Arc<AtomicI64>,
    conflicts: Arc<AtomicI64>,
    /// No write is taken.
    down: Arc<AtomicBool>,
}

impl Api {
    async fn serve(&self) -> kube::Client {
        let api = self.clone();
        let handler = move |method: Method, uri: Uri, body: Bytes| {
            let api = api.clone();
            async move { api.answer(&method, uri.path(), &body) }
        };
        client(kube::Config::new(serve(Router::new().fallback(handler)).await.parse().unwrap())).unwrap()
    }

    fn answer(&self, method: &Method, path: &str, body: &Bytes) -> Response {
        if method == Method::GET {
            let name = path.strip_prefix("/api/v1/namespaces/sluice-system/secrets/").unwrap();
            return match self.secrets.lock().unwrap().get(name) {
                Some(secret) => axum::Json(secret.clone()).into_response(),
                None => refusal(StatusCode::NOT_FOUND, "NotFound"),
            };
        }
        assert_eq!(path, format!("{REPO}/status"));
        if self.down.load(Ordering::SeqCst) {
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        let mut repo = self.repo.lock().unwrap();
        for operation in serde_json::from_slice::<Vec<Value>>(body).unwrap() {
            let pointer = operation["path"].as_str().unwrap();
            if operation["op"] == "test" && repo.pointer(pointer) != Some(&operation["value"]) {
                self.conflicts.fetch_add(1, Ordering::SeqCst);
                return refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
            }
            if operation["op"] == "add" {
                repo["status"] = operation["value"].clone();
            }
        }
        touch(&mut repo);
        self.writes.fetch_add(1, Ordering::SeqCst);
        axum::Json(repo.clone()).into_response()
    }
}

fn refusal(code: StatusCode, reason: &str) -> Response {
    let message = "the server rejected our request due to an error in our request";
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
        "code": code.as_u16(), "reason": reason, "message": message});
    (code, axum::Json(status)).into_response()
}

fn touch(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

async fn serve(router: Router) -> String {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// A receiver, and what it was told: the identity and the document.
#[derive(Clone)]
struct Told {
    told: Arc<Mutex<Vec<(String, Value)>>>,
    answer: Arc<AtomicU16>,
}

impl Told {
    /// As `name#number`.
    fn taken(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        let name = |document: &Value| document["rollout"].as_str().unwrap().to_owned();
        told.iter().map(|(_, document)| format!("{}#{}", name(document), document["sequence"])).collect()
    }

    fn answers(&self, code: u16) {
        self.answer.store(code, Ordering::SeqCst);
    }
}

/// Reads one directory, whatever the address.
#[derive(Clone)]
struct Local {
    cache: GitCache,
    remote: PathBuf,
}

impl Entries for Local {
    async fn after(&self, _: &DeployRepoSpec, wanted: Segment, most: usize) -> Result<Option<Vec<Commit>>, GitError> {
        self.cache.entries(&RemoteAddress::local(&self.remote).unwrap(), wanted, most).await
    }
}

struct Leads(AtomicBool);
impl Gate for Leads {
    fn may_write(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Minutes that the clock is ahead; each test runs in a thread of its own.
fn now() -> DateTime<Utc> {
    Utc::now() + chrono::TimeDelta::minutes(AHEAD.with(|ahead| ahead.load(Ordering::SeqCst)))
}
thread_local! {
    static AHEAD: AtomicI64 = const { AtomicI64::new(0) };
}

struct World {
    api: Api,
    client: kube::Client,
    index: Arc<Index>,
    leads: Arc<Leads>,
    local: Local,
    ledger: Ledger,
    metrics: Metrics,
    controller: ProjectionController<Local>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let remote = directory.path().join("remote.git");
        Ledger::local(&remote, "prod").unwrap().read().unwrap();
        let cache = GitCache::new(directory.path().join("cache")).unwrap();
        let address = RemoteAddress::local(&remote).unwrap();
        let ledger = cache.repository_at(address, Credentials::None).unwrap().ledger("prod").unwrap();
        let ledger = ledger.with_policy(LedgerPolicy { epochs: Epochs::Quarterly, ..LedgerPolicy::default() });
        let api = Api::default();
        *api.repo.lock().unwrap() = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": "deploy", "namespace": "sluice-system", "uid": "repo", "resourceVersion": "1", "generation": 1},
            "spec": {"url": "https://git.example/shop/deploy.git", "namespaces": ["shop"], "projections": [],
                     "forge": {"type": "gitea"}},
            "status": {"logBranch": "rollout-log/prod"}
        });
        let client = api.serve().await;
        let (index, leads) = (Arc::new(Index::default()), Arc::new(Leads(AtomicBool::new(true))));
        let (local, metrics) = (Local { cache, remote }, Metrics::new());
        let controller = controller(&client, &index, &leads, &local, &metrics);
        let world = Self { api, client, index, leads, local, ledger, metrics, controller, _directory: directory };
        world.see();
        world
    }

    /// A new process: it remembers nothing.
    fn restart(&mut self) {
        self.controller = controller(&self.client, &self.index, &self.leads, &self.local, &self.metrics);
    }

    /// What the watch brings.
    fn see(&self) {
        let repo = self.api.repo.lock().unwrap().clone();
        self.index.apply(Kind::DeployRepo, &serde_json::from_value::<DynamicObject>(repo).unwrap());
    }

    fn change(&self, change: impl FnOnce(&mut Value)) {
        {
            let mut repo = self.api.repo.lock().unwrap();
            change(&mut repo);
            touch(&mut repo);
        }
        self.see();
    }

    /// A webhook by this name.
    async fn webhook(&self, name: &str, more: Value) -> Told {
        let told = Told { told: Arc::default(), answer: Arc::new(AtomicU16::new(204)) };
        let receiver = told.clone();
        let handler = move |headers: HeaderMap, body: Bytes| {
            let receiver = receiver.clone();
            async move {
                let code = StatusCode::from_u16(receiver.answer.load(Ordering::SeqCst)).unwrap();
                if code.is_success() {
                    let identity = headers["x-sluice-delivery"].to_str().unwrap().to_owned();
                    assert!(headers["x-sluice-signature-256"].to_str().unwrap().starts_with("sha256="));
                    receiver.told.lock().unwrap().push((identity, serde_json::from_slice(&body).unwrap()));
                }
                (code, [("retry-after", "120")], format!("{CANARY} says no"))
            }
        };
        let address = format!("{}/{CANARY}", serve(Router::new().fallback(handler)).await);
        self.secret(name, &[("address", &address), ("token", CANARY)]);
        let mut projection = json!({"name": name, "to": "webhook", "secretRef": {"name": name}});
        projection.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.change(|repo| repo["spec"]["projections"].as_array_mut().unwrap().push(projection));
        told
    }

    fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let data: BTreeMap<&str, String> = data.iter().map(|(key, value)| (*key, encode(value))).collect();
        let secret = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": "sluice-system"}, "data": data});
        self.api.secrets.lock().unwrap().insert(name.to_owned(), secret);
    }

    /// Records entries and says how far the log is, as the ledger's loop does.
    async fn record(&self, entries: &[LedgerEntry]) {
        let appended = self.ledger.append(entries).await.unwrap();
        self.change(|repo| {
            repo["status"]["logBranch"] = json!(appended.branch);
            repo["status"]["logTip"] = json!(appended.tip);
        });
    }

    async fn turn(&self, name: &str) -> Outcome {
        let key = ProjectionKey { repo: Key::new("sluice-system", "deploy"), name: name.to_owned() };
        self.controller.turn(key).await
    }

    fn status(&self, name: &str) -> Option<ProjectionStatus> {
        let status = self.api.repo.lock().unwrap()["status"].clone();
        let status: DeployRepoStatus = serde_json::from_value(status).unwrap();
        status.projections.into_iter().find(|known| known.name == name)
    }

    fn tip(&self) -> String {
        self.api.repo.lock().unwrap()["status"]["logTip"].as_str().unwrap().to_owned()
    }

    fn writes(&self) -> i64 {
        self.api.writes.load(Ordering::SeqCst)
    }
}

fn controller(
    client: &kube::Client,
    index: &Arc<Index>,
    leads: &Arc<Leads>,
    local: &Local,
    metrics: &Metrics,
) -> ProjectionController<Local> {
    let observer = Arc::new(metrics.clone());
    let applier = Applier::new(client.clone(), leads.clone(), observer.clone());
    ProjectionController::new(Parts {
        writer: Writer::new(client.clone(), Arc::clone(index), leads.clone(), observer),
        secrets: Secrets::new(Arc::new(applier)),
        entries: local.clone(),
        cluster: "prod".into(),
        operator_namespace: "sluice-system".into(),
        queue: Queue::new("projection", queue_config()),
        metrics: metrics.clone(),
        now,
    })
}

fn entry(name: &str, sequence: i64, event: TransitionEvent) -> LedgerEntry {
    LedgerEntry {
        cluster: "prod".into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        transition: Transition {
            sequence,
            event,
            at: DateTime::from_timestamp(1_772_600_000 + sequence * 60, 0).unwrap(),
            stage: 1,
            stages: 3,
            weight_from: 0,
            weight_to: 20,
            revision_from: None,
            revision_to: "bbbbbbbbbb".into(),
            attempt: 1,
            reason: "StepCompleted".into(),
            message: format!("number {sequence} of {name}"),
            verdict: None,
            actor: None,
            source_commit: None,
            analysis_runs: Vec::new(),
        },
        covers: Vec::new(),
        state: json!({}),
        plan: String::new(),
        evidence: Vec::new(),
        template: None,
        operator: "sluice 0.1.0".into(),
    }
}

fn step(name: &str, sequence: i64) -> LedgerEntry {
    entry(name, sequence, TransitionEvent::StepCompleted)
}

#[tokio::test]
async fn each_entry_is_told_once_in_the_order_of_the_log() {
    let world = World::new().await;
    let told = world.webhook("events", json!({})).await;
    // The log is there and empty: so the first entry of all is told too.
    assert!(matches!(world.turn("events").await, Outcome::Done));
    assert_eq!(world.status("events").unwrap().commit, "");
    world.record(&[step("web", 1), step("web", 2), step("api", 3)]).await;
    world.record(&[step("web", 3)]).await;
    assert!(matches!(world.turn("events").await, Outcome::Done));
    assert_eq!(told.taken(), ["web#1", "web#2", "api#3", "web#3"]);
    assert_eq!(world.status("events"), Some(ProjectionStatus::at("events", world.tip())));
    let writes = world.writes();
    for _ in 0..3 {
        assert!(matches!(world.turn("events").await, Outcome::Done));
    }
    assert_eq!((told.taken().len(), world.writes()), (4, writes), "and then there is peace");
    let (identity, document) = told.told.lock().unwrap()[0].clone();
    assert_eq!((identity.as_str(), &document["message"]), ("uid-web/1", &json!("number 1 of web")));
    let page = format!("https://git.example/shop/deploy/commit/{}", document["commit"].as_str().unwrap());
    assert_eq!(document["page"], page);
    assert!(world.metrics.encode().contains(r#"sluice_deliveries_total{to="webhook",result="ok"} 4"#));
}

#[tokio::test]
async fn after_a_crash_before_the_cursor_the_same_is_told_again_and_without_one_it_is_not() {
    let mut world = World::new().await;
    let told = world.webhook("events", json!({})).await;
    world.turn("events").await;
    world.record(&[step("web", 1), step("web", 2)]).await;
    world.api.down.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(world.turn("events").await, Outcome::Failed(_)));
    }
    assert_eq!(told.taken(), ["web#1"], "what was told is remembered while the process lives");
    world.restart();
    world.api.down.store(false, Ordering::SeqCst);
    assert!(matches!(world.turn("events").await, Outcome::Done));
    assert_eq!(told.taken(), ["web#1", "web#1", "web#2"]);
    let told = told.told.lock().unwrap();
    assert_eq!(told[0], told[1], "the same identity and the same document");
}

#[tokio::test]
async fn one_that_is_down_delays_itself_only_and_then_misses_nothing() {
    let world = World::new().await;
    let (down, up) = (world.webhook("down", json!({})).await, world.webhook("up", json!({})).await);
    world.turn("down").await;
    world.turn("up").await;
    down.answers(500);
    world.record(&[step("web", 1), step("web", 2)]).await;
    let Outcome::Failed(failure) = world.turn("down").await else { panic!("it is down") };
    assert_eq!(failure.reason, "ReceiverUnreachable");
    assert!(matches!(world.turn("up").await, Outcome::Done));
    assert_eq!(up.taken(), ["web#1", "web#2"]);
    let status = world.status("down").unwrap();
    assert_eq!(status.commit, "");
    assert_eq!(status.message.as_deref(), Some("the receiver has trouble of its own: HTTP status 500"));
    let (since, writes) = (status.failing_since.unwrap(), world.writes());
    assert!(matches!(world.turn("down").await, Outcome::Failed(_)));
    assert_eq!(world.status("down").unwrap().failing_since, Some(since), "since then, not since now");
    assert_eq!(world.writes(), writes, "the same trouble is not said twice");
    down.answers(200);
    assert!(matches!(world.turn("down").await, Outcome::Done));
    assert_eq!(down.taken(), ["web#1", "web#2"]);
    assert_eq!(world.status("down"), Some(ProjectionStatus::at("down", world.tip())));
    assert!(!world.api.repo.lock().unwrap().to_string().contains(CANARY));
}

#[tokio::test]
async fn a_new_one_begins_with_the_present_and_one_that_comes_back_too() {
    let world = World::new().await;
    world.record(&[step("web", 1)]).await;
    let told = world.webhook("late", json!({})).await;
    world.turn("late").await;
    world.record(&[step("web", 2)]).await;
    world.turn("late").await;
    assert_eq!(told.taken(), ["web#2"]);
    let declared = world.api.repo.lock().unwrap()["spec"]["projections"].clone();
    world.change(|repo| repo["spec"]["projections"] = json!([]));
    world.turn("late").await;
    assert_eq!(world.status("late"), None, "one that is declared no more is forgotten");
    world.record(&[step("web", 3)]).await;
    world.change(|repo| repo["spec"]["projections"] = declared);
    world.turn("late").await;
    world.record(&[step("web", 4)]).await;
    world.turn("late").await;
    assert_eq!(told.taken(), ["web#2", "web#4"]);
}

#[tokio::test]
async fn a_log_that_nobody_has_looked_at_or_that_is_not_here_is_waited_for() {
    let world = World::new().await;
    let told = world.webhook("events", json!({})).await;
    world.change(|repo| repo["status"] = json!({}));
    world.turn("events").await;
    assert_eq!(world.status("events"), None, "whether the log is empty is not known");
    world.change(|repo| repo["status"] = json!({"logBranch": "rollout-log/prod"}));
    world.turn("events").await;
    let elsewhere = "1234567890123456789012345678901234567890";
    world.change(|repo| repo["status"]["logTip"] = json!(elsewhere));
    assert!(matches!(world.turn("events").await, Outcome::After(wait) if wait > Duration::ZERO));
    assert_eq!((told.taken().len(), world.status("events").unwrap().commit.as_str()), (0, ""));
}

#[tokio::test]
async fn a_cursor_goes_on_through_epochs_and_one_that_is_gone_begins_with_the_present_one() {
    let world = World::new().await;
    let (near, far) = (world.webhook("near", json!({})).await, world.webhook("far", json!({})).await);
    world.turn("near").await;
    world.turn("far").await;
    world.record(&[step("web", 1)]).await;
    world.turn("near").await;
    let mut april = step("web", 2);
    april.transition.at = "2026-04-01T00:00:00Z".parse().unwrap();
    world.record(&[april]).await;
    assert_eq!(world.api.repo.lock().unwrap()["status"]["logBranch"], "rollout-log/prod@2026q2");
    world.turn("near").await;
    assert_eq!(near.taken(), ["web#1", "web#2"]);
    world.change(|repo| {
        for known in repo["status"]["projections"].as_array_mut().unwrap() {
            known["commit"] = json!("1234567890123456789012345678901234567890");
        }
    });
    world.turn("far").await;
    assert_eq!(far.taken(), ["web#2"]);
    assert_eq!(world.status("far").unwrap().commit, world.tip());
}

#[tokio::test]
async fn a_cursor_of_another_log_goes_on_from_here() {
    let world = World::new().await;
    world.record(&[step("web", 1)]).await;
    let told = world.webhook("events", json!({})).await;
    world.turn("events").await;
    world.change(|repo| {
        repo["status"]["projections"][0]["commit"] = json!("1234567890123456789012345678901234567890");
    });
    assert!(matches!(world.turn("events").await, Outcome::Done));
    assert_eq!(world.status("events").unwrap().commit, world.tip());
    world.record(&[step("web", 2)]).await;
    world.turn("events").await;
    assert_eq!(told.taken(), ["web#2"], "nobody is told a whole history of somebody else's");
}

#[tokio::test]
async fn only_what_is_asked_for_is_told_and_only_of_its_own_namespaces() {
    let world = World::new().await;
    let told = world.webhook("events", json!({"events": ["Aborted", "Promoted"]})).await;
    let all = world.webhook("all", json!({})).await;
    world.turn("events").await;
    world.turn("all").await;
    let mut other = entry("secret", 4, TransitionEvent::Promoted);
    other.namespace = "other".into();
    let promoted = entry("web", 2, TransitionEvent::Promoted);
    world.record(&[step("web", 1), promoted, step("web", 3), other]).await;
    world.turn("events").await;
    world.turn("all").await;
    assert_eq!(told.taken(), ["web#2"]);
    assert_eq!(all.taken(), ["web#1", "web#2", "web#3"]);
    assert_eq!(world.status("events").unwrap().commit, world.tip(), "what is passed over is not looked at again");
}

#[tokio::test]
async fn one_that_takes_no_more_for_now_is_left_alone_for_as_long_as_it_says() {
    let world = World::new().await;
    let told = world.webhook("busy", json!({})).await;
    world.turn("busy").await;
    world.record(&[step("web", 1)]).await;
    told.answers(429);
    assert!(matches!(world.turn("busy").await, Outcome::After(wait) if wait == Duration::from_secs(120)));
    told.answers(200);
    assert!(matches!(world.turn("busy").await, Outcome::After(wait) if wait > Duration::from_secs(100)));
    assert_eq!(told.taken().len(), 0, "whatever looked again");
    AHEAD.with(|ahead| ahead.store(3, Ordering::SeqCst));
    assert!(matches!(world.turn("busy").await, Outcome::Done));
    assert_eq!(told.taken(), ["web#1"]);
}

#[tokio::test]
async fn what_is_refused_for_an_hour_does_not_stop_the_rest() {
    let world = World::new().await;
    let told = world.webhook("picky", json!({})).await;
    world.turn("picky").await;
    world.record(&[step("web", 1), step("web", 2)]).await;
    // A refusal of whoever asks is no reason to give anything up.
    for (minutes, code) in [(0, 403), (90, 403), (180, 400), (239, 400)] {
        AHEAD.with(|ahead| ahead.store(minutes, Ordering::SeqCst));
        told.answers(code);
        assert!(matches!(world.turn("picky").await, Outcome::Failed(_)), "{minutes}");
        assert_eq!(world.status("picky").unwrap().commit, "");
    }
    AHEAD.with(|ahead| ahead.store(241, Ordering::SeqCst));
    assert!(matches!(world.turn("picky").await, Outcome::Failed(_)), "the second one has an hour of its own");
    assert_ne!(world.status("picky").unwrap().commit, "");
    told.answers(200);
    world.turn("picky").await;
    assert_eq!(told.taken(), ["web#2"]);
    assert!(world.metrics.encode().contains(r#"sluice_deliveries_total{to="webhook",result="given-up"} 1"#));
}

#[tokio::test]
async fn what_is_declared_wrongly_says_which_secret_and_which_key() {
    let world = World::new().await;
    world.webhook("hook", json!({})).await;
    world.turn("hook").await;
    world.record(&[step("web", 1)]).await;
    let field = "spec.projections.secretRef: ";
    for (data, message) in [
        (vec![("token", "t")], "Secret sluice-system/hook has no key address"),
        (vec![("address", "https://receiver.example/")], "Secret sluice-system/hook has no key token"),
        (
            vec![("address", "http://169.254.169.254/"), ("token", "t")],
            "Secret sluice-system/hook: address is a link-local or metadata address, which is never asked",
        ),
    ] {
        world.secret("hook", &data);
        assert!(matches!(world.turn("hook").await, Outcome::Failed(_)));
        assert_eq!(world.status("hook").unwrap().message, Some(format!("{field}{message}")));
    }
    world.api.secrets.lock().unwrap().clear();
    world.turn("hook").await;
    let missing = format!("{field}Secret sluice-system/hook does not exist");
    assert_eq!(world.status("hook").unwrap().message, Some(missing));
}

#[tokio::test]
async fn nobody_is_told_by_who_does_not_lead_or_while_suspended() {
    let world = World::new().await;
    let told = world.webhook("events", json!({})).await;
    world.turn("events").await;
    world.record(&[step("web", 1)]).await;
    world.leads.0.store(false, Ordering::SeqCst);
    assert!(matches!(world.turn("events").await, Outcome::Done));
    world.controller.look_at(&Key::new("sluice-system", "deploy"));
    assert_eq!(world.controller.parts.queue.depth(), 0);
    world.leads.0.store(true, Ordering::SeqCst);
    world.change(|repo| repo["spec"]["suspend"] = json!(true));
    assert!(matches!(world.turn("events").await, Outcome::Done));
    assert_eq!(told.taken().len(), 0);
    world.change(|repo| repo["spec"]["suspend"] = json!(false));
    world.controller.look_at(&Key::new("sluice-system", "deploy"));
    assert_eq!(world.controller.parts.queue.depth(), 1);
    world.turn("events").await;
    assert_eq!(told.taken(), ["web#1"]);
}

#[tokio::test]
async fn a_forge_shows_it_beside_the_commit_with_the_secret_of_the_forge() {
    let world = World::new().await;
    let said = Arc::new(Mutex::new(Vec::new()));
    let forge = {
        let said = Arc::clone(&said);
        let handler = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let said = Arc::clone(&said);
            async move {
                assert_eq!(headers["authorization"], format!("token {CANARY}"));
                if method == Method::GET {
                    return axum::Json(json!([])).into_response();
                }
                let body: Value = serde_json::from_slice(&body).unwrap();
                said.lock().unwrap().push((uri.path().to_owned(), body));
                (StatusCode::CREATED, axum::Json(json!({}))).into_response()
            }
        };
        serve(Router::new().fallback(handler)).await
    };
    world.change(|repo| {
        let api = format!("{forge}/api/v1");
        repo["spec"]["forge"] = json!({"type": "gitea", "api": api, "secretRef": {"name": "forge"}});
        repo["spec"]["projections"] =
            json!([{"name": "status", "to": "commitStatus"}, {"name": "place", "to": "deployment"}]);
    });
    world.turn("status").await;
    world.turn("place").await;
    let source = "1234567890123456789012345678901234567890";
    let mut promoted = entry("web", 1, TransitionEvent::Promoted);
    promoted.transition.source_commit = Some(source.into());
    world.record(&[promoted, step("web", 2)]).await;
    assert!(matches!(world.turn("status").await, Outcome::Failed(_)));
    let message = world.status("status").unwrap().message.unwrap();
    assert!(message.contains("spec.forge.secretRef: Secret sluice-system/forge does not exist"), "{message}");
    world.secret("forge", &[("token", CANARY)]);
    assert!(matches!(world.turn("status").await, Outcome::Done));
    assert!(matches!(world.turn("place").await, Outcome::Done));
    let said = said.lock().unwrap().clone();
    let contexts: Vec<_> = said.iter().map(|(_, body)| (&body["context"], &body["state"])).collect();
    let success = json!("success");
    assert_eq!(contexts, [(&json!("sluice/prod/shop/web"), &success), (&json!("deployment/prod"), &success)]);
    let page = said[0].1["target_url"].as_str().unwrap();
    assert!(page.starts_with(&format!("{forge}/shop/deploy/commit/")), "{page}");
    assert!(said.iter().all(|(path, _)| *path == format!("/api/v1/repos/shop/deploy/statuses/{source}")));
}

#[tokio::test]
async fn a_release_that_is_given_up_is_not_shown_as_on_its_way_for_ever() {
    let world = World::new().await;
    world.secret("forge", &[("token", CANARY)]);
    let said = Arc::new(Mutex::new(Vec::<Value>::new()));
    let forge = {
        let said = Arc::clone(&said);
        let handler = move |method: Method, uri: Uri, body: Bytes| {
            let said = Arc::clone(&said);
            async move {
                let mut said = said.lock().unwrap();
                let path = uri.path().trim_start_matches("/api/v1/repos/shop/deploy/").to_owned();
                if method == Method::GET {
                    let commit = path.split('/').nth(1).unwrap_or_default();
                    let own: Vec<_> = said.iter().filter(|status| status["commit"] == commit).cloned().collect();
                    return axum::Json(own).into_response();
                }
                let mut status: Value = serde_json::from_slice(&body).unwrap();
                status["id"] = json!(said.len() + 1);
                status["status"] = status["state"].clone();
                status["commit"] = json!(path.trim_start_matches("statuses/"));
                said.push(status);
                (StatusCode::CREATED, axum::Json(json!({}))).into_response()
            }
        };
        serve(Router::new().fallback(handler)).await
    };
    world.change(|repo| {
        let api = format!("{forge}/api/v1");
        repo["spec"]["forge"] = json!({"type": "gitea", "api": api, "secretRef": {"name": "forge"}});
        repo["spec"]["projections"] = json!([{"name": "place", "to": "deployment"}]);
    });
    world.turn("place").await;
    let [first, second, back] = ["1", "2", "3"].map(|digit| digit.repeat(40));
    let told = |sequence, event, revision: &str, commit: &str| {
        let mut entry = entry("web", sequence, event);
        entry.transition.revision_to = revision.repeat(10);
        entry.transition.source_commit = Some(commit.to_owned());
        entry
    };
    use TransitionEvent::{Aborted, Started, Superseded};
    world.record(&[told(1, Started, "a", &first), told(2, Superseded, "a", &second)]).await;
    let mut reverted = told(4, Aborted, "b", &back);
    reverted.transition.reason = "Revert".into();
    // What was asked for before is known from the log, also across turns.
    world.turn("place").await;
    world.record(&[told(3, Started, "b", &second)]).await;
    world.turn("place").await;
    world.record(&[reverted]).await;
    world.turn("place").await;
    let said: Vec<_> = said.lock().unwrap().iter().map(|one| (one["commit"].clone(), one["state"].clone())).collect();
    let expected = [(&first, "pending"), (&first, "warning"), (&second, "pending"), (&second, "warning")];
    assert_eq!(said, expected.map(|(commit, state)| (json!(commit), json!(state))));
}

#[tokio::test]
async fn many_do_not_get_in_each_others_way() {
    let world = World::new().await;
    let mut receivers = Vec::new();
    let names: Vec<String> = (0..8).map(|number| format!("hook-{number}")).collect();
    for name in &names {
        receivers.push(world.webhook(name, json!({})).await);
        world.turn(name).await;
    }
    let entries: Vec<_> = (1..=5).map(|number| step("web", number)).collect();
    world.record(&entries).await;
    let outcomes = futures::future::join_all(names.iter().map(|name| world.turn(name))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done)), "{outcomes:?}");
    assert!(receivers.iter().all(|told| told.taken() == ["web#1", "web#2", "web#3", "web#4", "web#5"]));
    assert_eq!(world.api.conflicts.load(Ordering::SeqCst), 0);
}
