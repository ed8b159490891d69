//! The loop against a small API server and a real repository.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::record::Trouble;
use super::{LedgerController, LedgerKey, Opened, Parts, Remotes, queue_config};
use crate::api::{Conditions, DeployRepoSpec, RECORDED, RolloutStatus};
use crate::cluster::client::client;
use crate::cluster::events::Events;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::Key;
use crate::cluster::write::{Gate, Writer};
use crate::controllers::LedgerView;
use crate::controllers::queue::{Outcome, Queue, QueueConfig};
use crate::git::{Credentials, GitCache, Ledger, LedgerContents, RemoteAddress, Timeouts};
use crate::telemetry::Metrics;

mod faults;

/// Objects by path, changed by JSON Patch with its tests, as an API server does.
#[derive(Clone, Default)]
struct Api {
    objects: Arc<Mutex<std::collections::BTreeMap<String, Value>>>,
    writes: Arc<AtomicUsize>,
    /// So many writes meet somebody else's.
    conflicts: Arc<AtomicUsize>,
    /// The notes of the Kubernetes events that were sent.
    events: Arc<Mutex<Vec<String>>>,
}

fn path_of(object: &Value) -> String {
    let kind = if object["kind"] == "Rollout" { "rollouts" } else { "deployrepos" };
    let metadata = &object["metadata"];
    format!(
        "/apis/sluice.dev/v1alpha1/namespaces/{}/{kind}/{}",
        metadata["namespace"].as_str().unwrap(),
        metadata["name"].as_str().unwrap()
    )
}

impl Api {
    async fn serve(&self) -> kube::Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = self.clone();
        let handler = move |method: Method, uri: Uri, body: Bytes| {
            let api = api.clone();
            async move { api.answer(&method, &uri, &body) }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        client(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap()
    }

    fn answer(&self, method: &Method, uri: &Uri, body: &Bytes) -> Response {
        if uri.path().ends_with("/events") {
            let event: Value = serde_json::from_slice(body).unwrap();
            self.events.lock().unwrap().push(event["note"].as_str().unwrap().to_owned());
            return (StatusCode::CREATED, axum::Json(event)).into_response();
        }
        assert_eq!(method, Method::PATCH);
        let path = uri.path().strip_suffix("/status").unwrap();
        let mut objects = self.objects.lock().unwrap();
        let object = objects.get_mut(path).unwrap();
        if self.conflicts.load(Ordering::SeqCst) > 0 {
            self.conflicts.fetch_sub(1, Ordering::SeqCst);
            touch(object);
        }
        for operation in serde_json::from_slice::<Vec<Value>>(body).unwrap() {
            let pointer = operation["path"].as_str().unwrap();
            match operation["op"].as_str().unwrap() {
                "test" if object.pointer(pointer) != Some(&operation["value"]) => {
                    let message = "the server rejected our request due to an error in our request";
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
                        "code": 422, "reason": "Invalid", "message": message});
                    return (StatusCode::UNPROCESSABLE_ENTITY, axum::Json(status)).into_response();
                }
                "test" => {}
                "add" => object["status"] = operation["value"].clone(),
                other => panic!("{other}"),
            }
        }
        touch(object);
        self.writes.fetch_add(1, Ordering::SeqCst);
        axum::Json(object.clone()).into_response()
    }
}

fn touch(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
}

struct Leads;
impl Gate for Leads {
    fn may_write(&self) -> bool {
        true
    }
}

/// Opens one directory, whatever the address, or what a test says.
struct Local {
    cache: GitCache,
    remote: PathBuf,
    address: Arc<Mutex<Option<(String, Credentials)>>>,
    refused: Arc<Mutex<Option<Trouble>>>,
    mirror: Arc<Mutex<Option<PathBuf>>>,
}

impl Remotes for Local {
    fn identity(&self, url: &str) -> Option<String> {
        RemoteAddress::parse(url).ok().map(|address| address.identity())
    }
    async fn open(&self, _: &str, _: &DeployRepoSpec) -> Result<Opened, Trouble> {
        if let Some(trouble) = self.refused.lock().unwrap().clone() {
            return Err(trouble);
        }
        let repository = |path: &Path| self.cache.repository_at(RemoteAddress::local(path).unwrap(), Credentials::None);
        let mirror = self.mirror.lock().unwrap().clone();
        let mirror = mirror.map(|path| repository(&path).map_err(Trouble::from));
        let address = self.address.lock().unwrap().clone();
        let opened = match address {
            Some((url, credentials)) => self.cache.repository(&url, credentials),
            None => repository(&self.remote),
        };
        Ok(Opened { repository: opened?, mirror, signer: None })
    }
}

struct World {
    api: Api,
    index: Arc<Index>,
    rollouts: Queue<Key>,
    controller: LedgerController<Local>,
    address: Arc<Mutex<Option<(String, Credentials)>>>,
    refused: Arc<Mutex<Option<Trouble>>>,
    mirror: Arc<Mutex<Option<PathBuf>>>,
    directory: tempfile::TempDir,
}

fn ledger_key() -> LedgerKey {
    LedgerKey { repository: "git.example/shop/deploy".into(), cluster: "prod".into() }
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let remote = directory.path().join("remote.git");
        Ledger::local(&remote, "prod").unwrap().read().unwrap();
        let api = Api::default();
        let index = Arc::new(Index::default());
        let metrics = Metrics::new();
        let client = api.serve().await;
        let writer = Writer::new(client.clone(), Arc::clone(&index), Arc::new(Leads), Arc::new(metrics.clone()));
        let refused = Arc::new(Mutex::new(None));
        let mirror = Arc::new(Mutex::new(None));
        let address = Arc::new(Mutex::new(None));
        let short = Duration::from_secs(2);
        let timeouts = Timeouts { ask: short, push: short, ..Timeouts::default() };
        let rollouts = Queue::new("rollout", QueueConfig::default());
        let controller = LedgerController::new(Parts {
            writer,
            remotes: Local {
                cache: GitCache::new(directory.path().join("cache")).unwrap().with_timeouts(timeouts),
                remote,
                address: Arc::clone(&address),
                refused: Arc::clone(&refused),
                mirror: Arc::clone(&mirror),
            },
            cluster: "prod".into(),
            operator_namespace: "sluice-system".into(),
            queue: Queue::new("ledger", queue_config()),
            rollouts: rollouts.clone(),
            events: Events::start(client, "me", metrics.clone()).0,
            metrics,
            now: Utc::now,
        });
        let world = Self { api, index, rollouts, controller, address, refused, mirror, directory };
        world.put(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": "deploy", "namespace": "sluice-system", "uid": "repo", "resourceVersion": "1", "generation": 1},
            "spec": {"url": "https://git.example/shop/deploy.git", "namespaces": ["shop"]}
        }));
        world
    }

    fn put(&self, object: Value) {
        let kind = if object["kind"] == "Rollout" { Kind::Rollout } else { Kind::DeployRepo };
        self.index.apply(kind, &serde_json::from_value::<DynamicObject>(object.clone()).unwrap());
        self.api.objects.lock().unwrap().insert(path_of(&object), object);
    }

    /// A Rollout whose outbox holds these transitions.
    fn rollout(&self, name: &str, pending: &[(i64, &str)], age: i64) {
        let at = Utc::now() - chrono::TimeDelta::seconds(age);
        let pending: Vec<Value> = pending
            .iter()
            .map(|(sequence, event)| {
                json!({"sequence": sequence, "event": event, "at": at, "stage": 1, "stages": 2, "weightFrom": 20,
                    "weightTo": 0, "revisionTo": "badbadbad0", "attempt": 1, "reason": "r", "message": "errors rose"})
            })
            .collect();
        let version = Utc::now().timestamp_micros().to_string();
        self.put(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": version},
            "spec": {"selector": {}, "template": {}, "strategy": {}},
            "status": {"phase": "Ready", "stableRevision": "goodgoodgo", "sequence": 9, "pendingLog": pending}
        }));
    }

    fn status(&self, name: &str) -> RolloutStatus {
        let path = format!("/apis/sluice.dev/v1alpha1/namespaces/shop/rollouts/{name}");
        let status = self.api.objects.lock().unwrap()[&path]["status"].clone();
        serde_json::from_value(status).unwrap()
    }

    fn repo_status(&self) -> Value {
        let path = "/apis/sluice.dev/v1alpha1/namespaces/sluice-system/deployrepos/deploy";
        self.api.objects.lock().unwrap()[path]["status"].clone()
    }

    fn remote(&self) -> PathBuf {
        self.directory.path().join("remote.git")
    }

    fn recorded(&self) -> LedgerContents {
        Ledger::local(&self.remote(), "prod").unwrap().read().unwrap()
    }

    fn writes(&self) -> usize {
        self.api.writes.load(Ordering::SeqCst)
    }

    /// The watch brings what was written.
    fn watch(&self) {
        let objects: Vec<Value> = self.api.objects.lock().unwrap().values().cloned().collect();
        objects.into_iter().for_each(|object| self.put(object));
    }

    /// Changes the DeployRepo's spec, as a person would.
    fn ask(&self, change: impl FnOnce(&mut Value)) {
        self.watch();
        let mut repo = self.api.objects.lock().unwrap().values().find(|o| o["kind"] == "DeployRepo").unwrap().clone();
        change(&mut repo["spec"]);
        repo["metadata"]["generation"] = json!(repo["metadata"]["generation"].as_i64().unwrap() + 1);
        touch(&mut repo);
        self.put(repo);
    }

    /// The status, reason and message of a condition of the DeployRepo.
    fn repo_condition(&self, type_: &str) -> Option<(String, String, String)> {
        let status = self.repo_status();
        let found = status["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)?.clone();
        let text = |field: &str| found[field].as_str().unwrap().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Takes turns until it holds.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {}", self.repo_status());
            self.watch();
            self.turn().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn turn(&self) -> Outcome {
        self.controller.turn(ledger_key()).await
    }
}

fn key(name: &str) -> Key {
    Key::new("shop", name)
}

fn recorded_condition(status: &RolloutStatus) -> Option<(String, String)> {
    status.conditions.condition(RECORDED).map(|found| (format!("{:?}", found.status), found.reason.clone()))
}

#[tokio::test]
async fn an_outbox_is_emptied_by_one_push_and_one_write_for_each_rollout() {
    let world = World::new().await;
    world.rollout("web", &[(1, "Started"), (2, "StepCompleted"), (3, "Aborted")], 5);
    world.rollout("api", &[(7, "Started")], 5);
    world.api.conflicts.store(1, Ordering::SeqCst);
    // The version that the watch brings, after the conflict: here there is no watch, so the turn must fail and
    // the next one find the record in the ledger.
    let first = world.turn().await;
    assert!(matches!(first, Outcome::Failed(_)), "{first:?}");
    let objects: Vec<Value> = world.api.objects.lock().unwrap().values().cloned().collect();
    objects.into_iter().for_each(|object| world.put(object));
    let again = world.turn().await;
    assert!(matches!(again, Outcome::After(_)), "{again:?}");
    let contents = world.recorded();
    let numbers: Vec<i64> = contents.rollouts.values().map(|recorded| recorded.sequence).collect();
    assert_eq!(numbers, [7, 3]);
    for (name, sequence) in [("web", 3), ("api", 7)] {
        let status = world.status(name);
        assert_eq!((status.pending_log.len(), status.recorded_sequence), (0, sequence), "{name}");
        assert_eq!(recorded_condition(&status), Some(("True".into(), "Recorded".into())));
        assert_eq!(status.stable_revision.as_deref(), Some("goodgoodgo"), "everything else stays");
    }
    let repo = world.repo_status();
    assert_eq!(repo["logBranch"], "rollout-log/prod");
    assert_eq!(repo["logTip"].as_str(), contents.tip.as_deref());
    // At rest nothing is written.
    let writes = world.writes();
    world.turn().await;
    assert_eq!(world.writes(), writes);
    assert_eq!(world.recorded().tip, contents.tip);
}

#[tokio::test]
async fn the_rollout_loop_learns_what_was_aborted_and_is_woken() {
    let world = World::new().await;
    world.rollout("web", &[(1, "Aborted")], 0);
    let state = world.controller.state(&key("web"));
    assert!(state.configured && !state.read, "not before the ledger was read");
    assert_eq!(world.controller.parts.queue.depth(), 1, "and it is asked for");
    assert!(!world.controller.state(&key("nobody")).configured);
    world.put(json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
        "metadata": {"name": "new", "namespace": "shop", "uid": "new", "resourceVersion": "1"},
        "spec": {"selector": {}, "template": {}, "strategy": {}}
    }));
    world.turn().await;
    assert_eq!(world.rollouts.depth(), 1, "the Rollout without a version is woken");
    let state = world.controller.state(&key("web"));
    assert!(state.read);
    assert_eq!(state.aborted.get("badbadbad0").map(String::as_str), Some("errors rose"));
    assert_eq!(state.aborts.get("badbadbad0"), Some(&1));
}

#[tokio::test]
async fn ordinary_transitions_are_gathered_and_an_abort_goes_at_once() {
    let world = World::new().await;
    world.rollout("web", &[(1, "Started")], 0);
    world.turn().await;
    world.rollout("web", &[(2, "StepCompleted")], 0);
    let Outcome::After(pause) = world.turn().await else { panic!("it waits") };
    assert!(pause > Duration::from_secs(5) && pause <= Duration::from_secs(10), "{pause:?}");
    assert_eq!(world.status("web").pending_log.len(), 1);
    world.rollout("web", &[(2, "StepCompleted"), (3, "Aborted")], 0);
    world.turn().await;
    assert_eq!(world.status("web").recorded_sequence, 3);
    // And when the process ends.
    world.rollout("web", &[(4, "Started")], 0);
    assert!(matches!(world.turn().await, Outcome::After(_)));
    assert_eq!(world.status("web").pending_log.len(), 1);
    world.controller.flush(Duration::from_secs(20)).await;
    assert_eq!(world.status("web").recorded_sequence, 4);
}

#[tokio::test]
async fn while_git_is_away_nothing_is_lost_and_the_condition_says_so_once() {
    let world = World::new().await;
    let away = world.directory.path().join("away");
    std::fs::rename(world.remote(), &away).unwrap();
    world.rollout("web", &[(1, "Started")], 120);
    world.rollout("idle", &[], 0);
    for _ in 0..3 {
        assert!(matches!(world.turn().await, Outcome::Failed(_)));
    }
    let status = world.status("web");
    assert_eq!((status.pending_log.len(), status.recorded_sequence), (1, 0));
    assert_eq!(recorded_condition(&status), Some(("False".into(), "RepositoryNotFound".into())));
    assert_eq!(recorded_condition(&world.status("idle")), None, "nothing of it waits");
    assert_eq!(world.writes(), 2, "one for the Rollout, one for the DeployRepo");
    assert_eq!(world.repo_status()["conditions"][0]["reason"], "RepositoryNotFound");
    std::fs::rename(&away, world.remote()).unwrap();
    world.turn().await;
    assert_eq!(recorded_condition(&world.status("web")), Some(("True".into(), "Recorded".into())));
    assert_eq!(world.repo_status()["conditions"][0]["status"], "True");
    assert_eq!(world.recorded().rollouts.len(), 1);
}

#[tokio::test]
async fn a_missing_secret_and_a_suspended_repository_are_named() {
    let world = World::new().await;
    world.rollout("web", &[(1, "Started")], 0);
    let message = "spec.secretRef: Secret sluice-system/git does not exist".to_owned();
    *world.refused.lock().unwrap() =
        Some(Trouble { reason: "CredentialsNotFound", message: message.clone(), passing: false });
    assert!(matches!(world.turn().await, Outcome::Failed(_)));
    assert_eq!(world.repo_status()["conditions"][0]["message"], message);
    assert!(world.status("web").conditions.condition(RECORDED).unwrap().message.contains(&message));
    *world.refused.lock().unwrap() = None;
    let mut repo: Value =
        world.api.objects.lock().unwrap().values().find(|o| o["kind"] == "DeployRepo").unwrap().clone();
    repo["spec"]["suspend"] = json!(true);
    world.put(repo.clone());
    assert!(matches!(world.turn().await, Outcome::After(_)));
    assert_eq!(recorded_condition(&world.status("web")), Some(("False".into(), "Suspended".into())));
    assert!(world.recorded().rollouts.is_empty());
    repo = world.api.objects.lock().unwrap().values().find(|o| o["kind"] == "DeployRepo").unwrap().clone();
    repo["spec"]["suspend"] = json!(false);
    world.put(repo);
    world.turn().await;
    assert_eq!(world.status("web").recorded_sequence, 1);
}

#[tokio::test]
async fn a_lost_answer_of_the_push_or_of_the_confirmation_doubles_nothing() {
    let world = World::new().await;
    world.rollout("web", &[(1, "Started")], 0);
    let hook = world.remote().join("hooks/post-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\nsleep 600\n").unwrap();
    std::os::unix::fs::PermissionsExt::set_mode(&mut std::fs::metadata(&hook).unwrap().permissions(), 0o755);
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let Outcome::Failed(failure) = world.turn().await else { panic!("no answer came") };
    assert_eq!(failure.reason, "Timeout");
    let tip = world.recorded().tip;
    assert!(tip.is_some(), "the server did take it");
    assert_eq!(world.status("web").pending_log.len(), 1, "but nobody knows yet");
    std::fs::remove_file(&hook).unwrap();
    // The policy lets an ordinary push wait; the abort that comes now takes it along.
    world.rollout("web", &[(1, "Started"), (2, "Aborted")], 0);
    world.turn().await;
    assert_eq!(world.status("web").recorded_sequence, 2);
    // The confirmation is lost: the outbox is as it was.
    let after = world.recorded().tip;
    world.rollout("web", &[(1, "Started"), (2, "Aborted")], 0);
    world.turn().await;
    assert_eq!(world.recorded().tip, after, "no further commit");
    assert_eq!(world.status("web").pending_log.len(), 0);
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
    let output = std::process::Command::new("git").arg("-C").arg(directory).args(identity).args(arguments).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_second_remote_follows_and_never_holds_up_the_first() {
    let world = World::new().await;
    let mirror = world.directory.path().join("mirror.git");
    // Not there yet, as a host that is down.
    *world.mirror.lock().unwrap() = Some(mirror.clone());
    world.rollout("web", &[(1, "Started"), (2, "Aborted")], 0);
    world.turn().await;
    assert_eq!(world.status("web").recorded_sequence, 2, "the first remote has it at once");
    world.until("it says so", |world| world.repo_condition("Mirrored").is_some()).await;
    let (status, reason, _) = world.repo_condition("Mirrored").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "RepositoryNotFound"));
    assert_eq!(world.repo_condition("Recorded").unwrap().0, "True");
    git(world.directory.path(), &["init", "-q", "--bare", "mirror.git"]);
    let mirrored = |world: &World| world.repo_condition("Mirrored").is_some_and(|(status, ..)| status == "True");
    world.until("it followed", mirrored).await;
    assert_eq!(git(&mirror, &["rev-parse", "rollout-log/prod"]), world.recorded().tip.unwrap());
    // What the second remote has and the first has not is not overwritten.
    let tree = git(&mirror, &["rev-parse", "rollout-log/prod^{tree}"]);
    let strange = git(&mirror, &["commit-tree", "-m", "strange", &tree]);
    git(&mirror, &["update-ref", "refs/heads/rollout-log/prod", &strange]);
    world.rollout("web", &[(3, "Aborted")], 0);
    world.turn().await;
    assert_eq!(world.status("web").recorded_sequence, 3);
    world.until("it is refused", |world| !mirrored(world)).await;
    assert_eq!(git(&mirror, &["rev-parse", "rollout-log/prod"]), strange);
}

#[tokio::test]
async fn a_rewritten_log_is_told_until_a_person_acknowledges_it() {
    let world = World::new().await;
    world.rollout("web", &[(1, "Started"), (2, "Aborted")], 0);
    world.turn().await;
    assert_eq!(world.repo_condition("LogForked"), None);
    let ours = world.recorded().tip.unwrap();
    let tree = git(&world.remote(), &["rev-parse", "rollout-log/prod^{tree}"]);
    let theirs = git(&world.remote(), &["commit-tree", "-m", "history as I wish it", &tree]);
    git(&world.remote(), &["update-ref", "refs/heads/rollout-log/prod", &theirs]);
    world.watch();
    world.rollout("web", &[(3, "Aborted")], 0);
    world.until("the record goes on", |world| world.status("web").recorded_sequence == 3).await;
    let (status, _, message) = world.repo_condition("LogForked").unwrap();
    let branch = world.repo_status()["logBranch"].as_str().unwrap().to_owned();
    assert_eq!(status, "True");
    assert!(branch.starts_with("rollout-log/prod@"), "{branch}");
    assert!([&ours, &theirs, &branch].iter().all(|word| message.contains(*word)), "{message}");
    assert_eq!(git(&world.remote(), &["rev-parse", "rollout-log/prod"]), theirs, "never forced");
    assert_eq!(git(&world.remote(), &["rev-parse", &format!("{branch}~2")]), ours, "nothing of ours is lost");
    let told = |world: &World| world.api.events.lock().unwrap().concat();
    world.until("the tip is told", |world| told(world).contains(world.repo_status()["logTip"].as_str().unwrap())).await;
    // It stays said, also after a restart, until somebody has looked.
    world.watch();
    world.turn().await;
    assert_eq!(world.repo_condition("LogForked").unwrap().0, "True");
    world.ask(|spec| spec["log"]["acknowledgedFork"] = json!(branch));
    world.until("it is acknowledged", |world| world.repo_condition("LogForked").unwrap().0 == "False").await;
}

#[tokio::test]
async fn with_a_coarser_log_transitions_wait_for_company_and_none_is_lost() {
    let world = World::new().await;
    world.ask(|spec| spec["log"]["granularity"] = json!("release"));
    world.rollout("web", &[(1, "Started"), (2, "StepCompleted")], 300);
    world.turn().await;
    assert_eq!(world.recorded().tip, None, "nothing is due");
    assert_eq!(world.status("web").pending_log.len(), 2);
    assert_eq!(recorded_condition(&world.status("web")), None, "and nothing is late");
    world.rollout("web", &[(1, "Started"), (2, "StepCompleted"), (3, "Aborted"), (4, "Started")], 0);
    world.until("the end of the release is recorded", |world| world.status("web").recorded_sequence == 3).await;
    let numbers: Vec<i64> = world.status("web").pending_log.iter().map(|transition| transition.sequence).collect();
    assert_eq!(numbers, [4]);
    let message = git(&world.remote(), &["log", "--format=%B", "rollout-log/prod"]);
    assert!(message.contains("Rollout-Seq: 3") && message.contains("Rollout-Covers: 1-2"), "{message}");
    assert_eq!(git(&world.remote(), &["rev-list", "--count", "rollout-log/prod"]), "1");
}

#[tokio::test]
async fn the_template_is_recorded_as_it_was_declared() {
    let world = World::new().await;
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:2"}]}});
    let revision = crate::api::PodTemplate(template.clone()).revision();
    let mut defaulted = template.clone();
    defaulted["spec"]["dnsPolicy"] = json!("ClusterFirst");
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "web-x", "namespace": "shop", "uid": "set", "resourceVersion": "1",
            "labels": {"sluice.dev/rollout": "web", "sluice.dev/revision": revision},
            "ownerReferences": [{"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web", "uid": "uid-web",
                "controller": true}]},
        "spec": {"replicas": 2, "template": defaulted}});
    world.index.apply(Kind::ReplicaSet, &serde_json::from_value::<DynamicObject>(set).unwrap());
    let pending = json!([{"sequence": 1, "event": "Promoted", "at": Utc::now(), "stage": 1, "stages": 2, "weightFrom": 20,
        "weightTo": 0, "revisionTo": revision, "attempt": 1, "reason": "Promoted", "message": "stable now"}]);
    world.put(json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web", "resourceVersion": "1"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template,
            "strategy": {"canary": {"stableService": "a", "canaryService": "b", "steps": []}}},
        "status": {"phase": "Ready", "stableRevision": revision, "sequence": 1, "pendingLog": pending}
    }));
    world.turn().await;
    let contents = world.recorded();
    let good = contents.rollouts[&("shop".to_owned(), "web".to_owned())].last_good.clone();
    assert_eq!(good, Some((revision, Some(crate::api::PodTemplate(template)))), "a fresh cluster can make it again");
}
