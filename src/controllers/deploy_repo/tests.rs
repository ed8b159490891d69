//! The sync against a small API server of our own, which keeps a log of every request.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kube::core::DynamicObject;
use serde_json::json;

use super::*;
use crate::cluster::index::Index;
use crate::cluster::write::{Gate, WriteObserver};
use crate::git::{Credentials, SourceFile};

/// An API server with a handful of kinds: server-side apply replaces, preconditions hold.
#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    log: Vec<String>,
    bodies: HashMap<String, Value>,
    versions: u64,
    /// Requests (as in the log) that are answered with this code and message, until taken out.
    refuse: Vec<(String, u16, String)>,
    /// Somebody writes to this object between each read and each write of ours, so many times.
    meddle: Option<(String, u32)>,
}

type Shared = Arc<Mutex<Server>>;

const APPLY: &str = "?force=true&fieldManager=sluice-sync&fieldValidation=Strict";
const DRY: &str = "?dryRun=All&force=true&fieldManager=sluice-sync&fieldValidation=Strict";

fn kinds(version: &str) -> Option<Vec<(&'static str, &'static str, bool)>> {
    Some(match version {
        "/api/v1" => vec![
            ("configmaps", "ConfigMap", true),
            ("secrets", "Secret", true),
            ("services", "Service", true),
            ("namespaces", "Namespace", false),
        ],
        "/apis/apps/v1" => vec![("deployments", "Deployment", true)],
        "/apis/sluice.dev/v1alpha1" => vec![("rollouts", "Rollout", true), ("deployrepos", "DeployRepo", true)],
        "/apis/gateway.networking.k8s.io/v1" => vec![("httproutes", "HTTPRoute", true)],
        "/apis/apiextensions.k8s.io/v1" => vec![("customresourcedefinitions", "CustomResourceDefinition", false)],
        _ => return None,
    })
}

fn answer(code: u16, value: &Value) -> Response {
    let headers = [("content-type", "application/json")];
    (StatusCode::from_u16(code).unwrap(), headers, value.to_string()).into_response()
}

fn fault(code: u16, message: &str) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        _ => "InternalError",
    };
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "details": {"name": message.split(' ').next()}}),
    )
}

async fn serve(State(server): State<Shared>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let mut server = server.lock().unwrap();
    let path = uri.path().to_owned();
    let query = uri.query().map(|query| query.trim_start_matches('&')).filter(|query| !query.is_empty());
    let line = format!("{method} {path}{}", query.map(|query| format!("?{query}")).unwrap_or_default());
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    server.log.push(line.clone());
    server.bodies.insert(line.clone(), body.clone());
    if let Some((_, code, message)) = server.refuse.iter().find(|(pattern, ..)| line.starts_with(pattern.as_str())) {
        return fault(*code, message);
    }
    if method == Method::GET {
        let served = kinds(&path).or_else(|| {
            let widgets = server
                .objects
                .contains_key("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.org");
            (widgets && path == "/apis/example.org/v1").then(|| vec![("widgets", "Widget", true)])
        });
        if let Some(kinds) = served {
            let resources: Vec<Value> = kinds
                .iter()
                .map(|(plural, kind, namespaced)| {
                    json!({"name": plural, "singularName": "", "kind": kind, "namespaced": namespaced,
                        "verbs": ["get", "patch", "delete"]})
                })
                .collect();
            let version = path.trim_start_matches("/apis/").trim_start_matches("/api/").to_owned();
            return answer(200, &json!({"kind": "APIResourceList", "groupVersion": version, "resources": resources}));
        }
        return match server.objects.get(&path) {
            Some(object) => answer(200, object),
            None if path.starts_with("/apis/") && !path.contains("/namespaces/") => {
                (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
            }
            None => fault(404, &format!("{path} not found")),
        };
    }
    if let Some((meddled, times)) = server.meddle.clone()
        && meddled == path
        && times > 0
        && !line.contains("dryRun")
    {
        server.meddle = Some((meddled, times - 1));
        server.versions += 1;
        let version = server.versions.to_string();
        server.objects.get_mut(&path).unwrap()["metadata"]["resourceVersion"] = version.into();
    }
    let stored = server.objects.get(path.trim_end_matches("/status")).cloned();
    if method == Method::DELETE {
        let Some(stored) = stored else { return fault(404, "not found") };
        for field in ["uid", "resourceVersion"] {
            if body["preconditions"][field] != stored["metadata"][field] {
                return fault(409, "precondition failed");
            }
        }
        server.objects.remove(&path);
        return answer(200, &stored);
    }
    if path.ends_with("/status") {
        let Some(mut stored) = stored else { return fault(404, "not found") };
        for operation in body.as_array().unwrap() {
            let at = operation["path"].as_str().unwrap();
            match operation["op"].as_str().unwrap() {
                "test" if stored.pointer(at) != Some(&operation["value"]) => {
                    return fault(422, "the server rejected our request due to an error in our request");
                }
                "test" => {}
                _ => stored["status"] = operation["value"].clone(),
            }
        }
        server.versions += 1;
        stored["metadata"]["resourceVersion"] = server.versions.to_string().into();
        server.objects.insert(path.trim_end_matches("/status").to_owned(), stored.clone());
        return answer(200, &stored);
    }
    assert_eq!(method, Method::PATCH, "{line}");
    assert_eq!(headers["content-type"], "application/apply-patch+yaml", "{line}");
    let mut object = body;
    let namespace = path.split("/namespaces/").nth(1).and_then(|rest| rest.split_once('/')).map(|(name, _)| name);
    let known = |name: &str| name == "shop" || server.objects.contains_key(&format!("/api/v1/namespaces/{name}"));
    if namespace.is_some_and(|name| !known(name)) {
        return fault(404, &format!("namespaces \"{}\" not found", namespace.unwrap()));
    }
    for field in ["uid", "resourceVersion"] {
        let given = &object["metadata"][field];
        let there = stored.as_ref().map_or(&Value::Null, |stored| &stored["metadata"][field]);
        if !given.is_null() && given != there {
            return fault(409, "the object has been modified");
        }
    }
    if line.contains("dryRun=All") {
        return answer(200, &object);
    }
    server.versions += 1;
    let version = server.versions.to_string();
    let uid = stored.map_or_else(|| format!("uid-{version}").into(), |stored| stored["metadata"]["uid"].clone());
    object["metadata"]["uid"] = uid;
    object["metadata"]["resourceVersion"] = version.into();
    if object["kind"] == "CustomResourceDefinition" {
        object["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
    }
    server.objects.insert(path, object.clone());
    answer(200, &object)
}

#[derive(Default)]
struct Leader(AtomicBool);

impl Gate for Leader {
    fn may_write(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

struct Quiet;

impl WriteObserver for Quiet {
    fn wrote(&self, _: &'static str, _: &'static str, _: &'static str) {}
}

/// A branch, and how often it was asked for.
#[derive(Default)]
struct Branch {
    tree: Option<Source>,
    error: Option<GitError>,
    heads: usize,
    reads: usize,
    opened_with: Access,
    descent: Option<Result<Descent, GitError>>,
    /// Between which commits it was asked for.
    moves: Vec<(String, String)>,
}

#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Branch>>);

impl Scripted {
    fn answer(&self, address: &SourceAddress) -> Result<Source, GitError> {
        let mut branch = self.0.lock().unwrap();
        branch.opened_with = address.access.clone();
        match (&branch.error, &branch.tree) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(tree)) => Ok(tree.clone()),
            (None, None) => Err(GitError::NotFound {
                what: Missing::Branch,
                name: address.branch.clone(),
                remote: address.url.clone(),
            }),
        }
    }
}

impl Sources for Scripted {
    async fn head(&self, address: &SourceAddress) -> Result<String, GitError> {
        self.0.lock().unwrap().heads += 1;
        self.answer(address).map(|tree| tree.commit)
    }

    async fn read(&self, address: &SourceAddress) -> Result<Source, GitError> {
        self.0.lock().unwrap().reads += 1;
        self.answer(address)
    }

    async fn descent(&self, _: &SourceAddress, old: &str, new: &str) -> Result<Descent, GitError> {
        let mut branch = self.0.lock().unwrap();
        branch.moves.push((old.to_owned(), new.to_owned()));
        branch.descent.clone().unwrap_or(Ok(Descent::Forward))
    }
}

/// The controller, its API server and its branch.
struct Bench {
    server: Shared,
    index: Arc<Index>,
    leader: Arc<Leader>,
    branch: Scripted,
    trigger: SyncTrigger,
    controller: DeployRepos<Scripted>,
    key: Key,
}

const REPO: &str = "/apis/sluice.dev/v1alpha1/namespaces/shop/deployrepos/web";
const A: &str = "/api/v1/namespaces/shop/configmaps/a";
const B: &str = "/api/v1/namespaces/shop/configmaps/b";

impl Bench {
    async fn new(spec: Value) -> Self {
        Self::of("shop", spec).await
    }

    async fn of(operator_namespace: &str, spec: Value) -> Self {
        let server = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let client = crate::cluster::client::client(config).unwrap();
        let index = Arc::new(Index::default());
        let leader = Arc::new(Leader(AtomicBool::new(true)));
        let writer = Writer::new(client.clone(), index.clone(), leader.clone(), Arc::new(Quiet));
        let applier = Arc::new(Applier::new(client, leader.clone(), Arc::new(Quiet)));
        let secrets = Secrets::new(Arc::clone(&applier));
        let branch = Scripted::default();
        let trigger = SyncTrigger::new(Queue::new("deploy-repos", queue_config()));
        let controller =
            DeployRepos::new(applier, secrets, writer, branch.clone(), operator_namespace.to_owned(), trigger.clone());
        let bench = Self { server, index, leader, branch, trigger, controller, key: Key::new("shop", "web") };
        bench.declare(1, spec);
        bench
    }

    /// Stores the DeployRepo with this spec, as the API server and the watch would show it.
    fn declare(&self, generation: i64, spec: Value) {
        let mut server = self.server.lock().unwrap();
        let status = server.objects.get(REPO).map(|object| object["status"].clone()).unwrap_or_default();
        server.versions += 1;
        let object = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": "web", "namespace": "shop", "uid": "uid-repo", "generation": generation,
                "resourceVersion": server.versions.to_string()},
            "spec": spec, "status": status});
        server.objects.insert(REPO.to_owned(), object.clone());
        self.index.apply(Kind::DeployRepo, &serde_json::from_value::<DynamicObject>(object).unwrap());
    }

    fn store(&self, path: &str, mut object: Value) {
        let mut server = self.server.lock().unwrap();
        server.versions += 1;
        let version = server.versions.to_string();
        object["metadata"]["uid"] = format!("uid-{version}").into();
        object["metadata"]["resourceVersion"] = version.into();
        server.objects.insert(path.to_owned(), object);
    }

    fn commit(&self, commit: &str, files: &[(&str, &str)]) {
        let files = files.iter().map(|(path, content)| SourceFile { path: (*path).into(), content: (*content).into() });
        let tree = Source { commit: commit.to_owned(), files: files.collect() };
        self.branch.0.lock().unwrap().tree = Some(tree);
    }

    /// A look as a webhook would ask for it; the requests it made.
    async fn look(&self) -> (Outcome, Vec<String>) {
        self.trigger.request(&self.key);
        self.turn().await
    }

    async fn turn(&self) -> (Outcome, Vec<String>) {
        self.server.lock().unwrap().log.clear();
        let outcome = self.controller.turn(self.key.clone()).await;
        (outcome, self.server.lock().unwrap().log.clone())
    }

    fn object(&self, path: &str) -> Option<Value> {
        self.server.lock().unwrap().objects.get(path).cloned()
    }

    fn body(&self, line: &str) -> Value {
        self.server.lock().unwrap().bodies.get(line).cloned().unwrap_or_else(|| panic!("no request {line}"))
    }

    fn status(&self) -> DeployRepoStatus {
        serde_json::from_value(self.object(REPO).unwrap()["status"].clone()).unwrap()
    }

    /// (status, reason, message) of a condition.
    fn condition(&self, type_: &str) -> Option<(ConditionStatus, String, String)> {
        let status = self.status();
        let condition = status.conditions.condition(type_)?;
        assert_eq!(condition.observed_generation, status.observed_generation);
        Some((condition.status, condition.reason.clone(), condition.message.clone()))
    }

    #[track_caller]
    fn assert_ready(&self, reason: &str) -> String {
        let (status, found, message) = self.condition("Ready").expect("a Ready condition");
        assert_eq!((status, found.as_str()), (ConditionStatus::True, reason), "{message}");
        assert_eq!(self.condition("Stalled"), None);
        assert_eq!(self.condition("Reconciling"), None);
        message
    }

    #[track_caller]
    fn assert_stalled(&self, reason: &str) -> String {
        let (status, found, message) = self.condition("Ready").expect("a Ready condition");
        assert_eq!((status, found.as_str()), (ConditionStatus::False, reason), "{message}");
        assert_eq!(self.condition("Stalled"), Some((ConditionStatus::True, found, message.clone())));
        assert_eq!(self.condition("Reconciling"), None);
        message
    }

    fn refuse(&self, request: &str, code: u16, message: &str) {
        self.server.lock().unwrap().refuse.push((request.to_owned(), code, message.to_owned()));
    }

    fn relent(&self) {
        self.server.lock().unwrap().refuse.clear();
    }
}

fn spec() -> Value {
    json!({"url": "https://git.example/shop.git", "sync": {}})
}

fn config_map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n")
}

/// The requests that are meant to change something.
fn writes(log: &[String]) -> Vec<String> {
    let changing = |line: &&String| !line.starts_with("GET ") && !line.contains("dryRun=All");
    log.iter().filter(changing).cloned().collect()
}

fn inventory(status: &DeployRepoStatus) -> Vec<(&str, &str)> {
    status.inventory.iter().map(|entry| (entry.name.as_str(), entry.commit.as_str())).collect()
}

#[tokio::test]
async fn a_commit_is_tried_then_applied_then_left_alone() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one")), ("b.yaml", &config_map("b", "one"))]);
    let (outcome, log) = bench.turn().await;
    assert!(matches!(outcome, Outcome::After(after) if (54..=66).contains(&after.as_secs())), "{outcome:?}");
    let patches: Vec<&String> = log.iter().filter(|line| !line.starts_with("GET ")).collect();
    let patch = |path: &str, how: &str| format!("PATCH {path}{how}");
    // The inventory is written before anything new is made, and again when it is there.
    let status = format!("PATCH {REPO}/status?fieldManager=sluice");
    let mut sorted = patches.clone();
    sorted[..2].sort();
    sorted[3..5].sort();
    assert_eq!(
        sorted,
        [&patch(A, DRY), &patch(B, DRY), &status, &patch(A, APPLY), &patch(B, APPLY), &status],
        "{log:#?}"
    );
    let object = bench.object(A).unwrap();
    assert_eq!(object["data"]["key"], "one");
    let annotations = &object["metadata"]["annotations"];
    assert_eq!(annotations[names::SOURCE_COMMIT], "c1");
    assert_eq!(annotations[names::DEPLOY_REPO], "shop/web");
    assert_eq!(annotations[names::SOURCE_DIGEST], bench.status().inventory[0].digest);
    assert_eq!(bench.assert_ready("Synced"), "all 2 objects of commit c1 are applied");
    let status = bench.status();
    assert_eq!(inventory(&status), [("a", "c1"), ("b", "c1")]);
    assert_eq!((status.observed_commit.as_deref(), status.applied_commit.as_deref()), (Some("c1"), Some("c1")));
    assert_eq!(status.observed_generation, Some(1));
    assert!(status.applied_at.is_some());

    // At rest: the branch is asked, and nothing else.
    let (_, log) = bench.look().await;
    assert_eq!((log, bench.branch.0.lock().unwrap().reads), (vec![], 1));

    // A commit that changes one object writes one object; the other keeps its stamp.
    bench.commit("c2", &[("a.yaml", &config_map("a", "two")), ("b.yaml", &config_map("b", "one"))]);
    let (_, log) = bench.look().await;
    assert_eq!(writes(&log), [patch(A, APPLY), format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert_eq!(bench.body(&patch(A, APPLY))["metadata"]["uid"], object["metadata"]["uid"], "the precondition");
    assert_eq!(inventory(&bench.status()), [("a", "c2"), ("b", "c1")]);
    assert_eq!(bench.object(A).unwrap()["metadata"]["annotations"][names::SOURCE_COMMIT], "c2");

    // Same tree, other commit: nothing but the status says so.
    bench.commit("c3", &[("a.yaml", &config_map("a", "two")), ("b.yaml", &config_map("b", "one"))]);
    let (_, log) = bench.look().await;
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert_eq!(inventory(&bench.status()), [("a", "c2"), ("b", "c1")]);
    assert_eq!(bench.status().applied_commit.as_deref(), Some("c3"));
}

#[tokio::test]
async fn a_change_of_the_object_itself_asks_no_git_server_and_a_webhook_does() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    bench.turn().await;
    // As when the watch brings our own status write.
    let (outcome, log) = bench.turn().await;
    assert!(matches!(outcome, Outcome::After(after) if after.as_secs() <= 66), "{outcome:?}");
    assert_eq!((log, bench.branch.0.lock().unwrap().heads), (vec![], 1));
    bench.look().await;
    assert_eq!(bench.branch.0.lock().unwrap().heads, 2);
    // A changed spec is looked at without being asked.
    bench.declare(2, json!({"url": "https://git.example/shop.git", "sync": {"prune": false}}));
    bench.turn().await;
    assert_eq!(bench.branch.0.lock().unwrap().heads, 3);
    assert_eq!(bench.status().observed_generation, Some(2));
}

#[tokio::test]
async fn one_refused_object_keeps_the_whole_commit_out_until_the_next_one() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    bench.turn().await;
    let two = format!("{}---\n{}", config_map("a", "two"), config_map("b", "one"));
    bench.commit("c2", &[("deploy/web.yaml", &two)]);
    bench.refuse(
        &format!("PATCH {B}?dryRun"),
        422,
        "ConfigMap in version \"v1\": strict decoding error: unknown field \"dota\"",
    );
    let (outcome, log) = bench.look().await;
    assert!(matches!(outcome, Outcome::After(_)), "{outcome:?}");
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")], "nothing is applied");
    assert_eq!(
        bench.assert_stalled("InvalidManifest"),
        "nothing is applied: deploy/web.yaml, document 2 (ConfigMap shop/b): ConfigMap in version \"v1\": strict \
         decoding error: unknown field \"dota\""
    );
    assert_eq!(bench.object(A).unwrap()["data"]["key"], "one");
    let status = bench.status();
    assert_eq!((status.observed_commit.as_deref(), status.applied_commit.as_deref()), (Some("c2"), Some("c1")));
    assert_eq!(inventory(&status), [("a", "c1")]);
    // The same fault again is the same text, and no write.
    let (_, log) = bench.look().await;
    assert_eq!(writes(&log), Vec::<String>::new());
    bench.relent();
    bench.commit("c3", &[("deploy/web.yaml", &two)]);
    bench.look().await;
    bench.assert_ready("Synced");
    assert_eq!(inventory(&bench.status()), [("a", "c3"), ("b", "c3")]);
}

#[tokio::test]
async fn a_text_that_cannot_be_read_touches_nothing_and_names_the_place() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one")), ("deploy/x.yaml", "a:\n\tb: 1\n")]);
    let (_, log) = bench.turn().await;
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    let message = bench.assert_stalled("InvalidManifest");
    assert!(message.starts_with("nothing is applied: deploy/x.yaml, document 1: line 2, "), "{message}");
}

#[tokio::test]
async fn an_object_elsewhere_is_refused() {
    let bench = Bench::of("sluice-system", spec()).await;
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: kube-system}\n";
    bench.commit("c1", &[("a.yaml", text)]);
    let (_, log) = bench.turn().await;
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    let message = bench.assert_stalled("NamespaceNotAllowed");
    assert!(message.contains("a.yaml, document 1 (ConfigMap kube-system/a)"), "{message}");
    assert!(message.contains("manages that namespace only"), "{message}");
    // Nor may it help itself to other namespaces.
    bench.declare(2, json!({"url": "https://git.example/shop.git", "sync": {}, "namespaces": ["kube-system"]}));
    bench.look().await;
    assert!(
        bench.assert_stalled("NamespaceNotAllowed").starts_with("spec.namespaces: only a DeployRepo in the operator's")
    );
}

#[tokio::test]
async fn what_left_the_repository_is_removed_as_it_was_seen() {
    let bench = Bench::new(spec()).await;
    let (a, b) = (config_map("a", "one"), config_map("b", "one"));
    bench.commit("c1", &[("a.yaml", &a), ("b.yaml", &b)]);
    bench.turn().await;
    let seen = bench.object(B).unwrap();
    bench.commit("c2", &[("a.yaml", &a)]);
    let (_, log) = bench.look().await;
    assert_eq!(writes(&log), [format!("DELETE {B}"), format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert_eq!(
        bench.body(&format!("DELETE {B}")),
        json!({"propagationPolicy": "Background", "preconditions":
            {"uid": seen["metadata"]["uid"], "resourceVersion": seen["metadata"]["resourceVersion"]}})
    );
    assert_eq!(bench.object(B), None);
    assert_eq!(inventory(&bench.status()), [("a", "c1")]);

    // An emptied folder removes nothing.
    bench.commit("c3", &[("README.md", "# empty")]);
    let (_, log) = bench.look().await;
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert!(bench.assert_stalled("NoManifests").contains("nothing is pruned"));
    assert_eq!(inventory(&bench.status()), [("a", "c1")]);
    assert!(bench.object(A).is_some());
}

#[tokio::test]
async fn an_object_kept_by_annotation_is_named_and_stays_on_the_books() {
    let bench = Bench::new(spec()).await;
    let kept = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b, annotations: {sluice.dev/prune: disabled}}\n";
    bench.commit("c1", &[("a.yaml", &config_map("a", "one")), ("b.yaml", kept)]);
    bench.turn().await;
    bench.commit("c2", &[("a.yaml", &config_map("a", "one"))]);
    let (_, log) = bench.look().await;
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert!(bench.assert_ready("Synced").ends_with("1 no longer declared but kept: ConfigMap shop/b"));
    assert_eq!(inventory(&bench.status()), [("a", "c1"), ("b", "c1")]);
}

#[tokio::test]
async fn a_branch_or_path_that_is_gone_removes_nothing() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    bench.turn().await;
    bench.branch.0.lock().unwrap().tree = None;
    let (outcome, log) = bench.look().await;
    assert!(matches!(outcome, Outcome::After(_)), "{outcome:?}");
    assert_eq!(log, [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert!(bench.assert_stalled("BranchNotFound").contains("nothing is pruned"));
    let since = bench.status().conditions.condition("Ready").unwrap().last_transition_time;
    let (_, log) = bench.look().await;
    assert_eq!(log, Vec::<String>::new(), "said once");
    let missing =
        GitError::NotFound { what: Missing::Path, name: "deploy".into(), remote: "https://git.example/shop".into() };
    bench.branch.0.lock().unwrap().error = Some(missing);
    bench.look().await;
    bench.assert_stalled("PathNotFound");
    assert_eq!(bench.status().conditions.condition("Ready").unwrap().last_transition_time, since);
    assert_eq!(inventory(&bench.status()), [("a", "c1")]);
    bench.branch.0.lock().unwrap().error = None;
    // Back at an older commit: history was rewritten, and what differs in content moves.
    bench.commit("c0", &[("a.yaml", &config_map("a", "zero"))]);
    bench.look().await;
    bench.assert_ready("Synced");
    assert_eq!(bench.object(A).unwrap()["data"]["key"], "zero");
}

#[tokio::test]
async fn history_that_was_rewritten_is_told_on_the_repo_and_on_what_changed_by_it() {
    let [c1, c2, c3, c4] = ["1", "2", "3", "4"].map(|digit| digit.repeat(40));
    let both = |a: &str, b: &str| [("a.yaml", config_map("a", a)), ("b.yaml", config_map("b", b))];
    let bench = Bench::new(spec()).await;
    let push = async |commit: &str, a: &str, b: &str, descent| {
        let files = both(a, b);
        bench.branch.0.lock().unwrap().descent = Some(descent);
        bench.commit(commit, &files.each_ref().map(|(path, content)| (*path, content.as_str())));
        bench.look().await;
    };
    let stamp =
        |path: &str| bench.object(path).unwrap()["metadata"]["annotations"]["sluice.dev/source-history"].clone();
    push(&c1, "one", "one", Ok(Descent::Rewritten)).await;
    assert_eq!(bench.condition(HISTORY_REWRITTEN), None, "nothing was there before");
    push(&c2, "two", "one", Ok(Descent::Forward)).await;
    assert_eq!(bench.condition(HISTORY_REWRITTEN), None);
    // Forced back.
    push(&c1, "one", "one", Ok(Descent::Rewritten)).await;
    let (status, reason, message) = bench.condition(HISTORY_REWRITTEN).unwrap();
    assert_eq!((status, reason.as_str()), (ConditionStatus::True, "NotAnAncestor"));
    assert_eq!(message, format!("history rewritten: {c1} took the place of {c2}, which is not an ancestor of it"));
    assert_eq!(stamp(A), format!("rewritten-from:{c2}"));
    assert_eq!(stamp(B), Value::Null, "it is as it was");
    bench.assert_ready("Synced");
    // It stays until the branch moves forward, and asks nobody again.
    bench.look().await;
    assert!(bench.condition(HISTORY_REWRITTEN).is_some());
    assert_eq!(bench.branch.0.lock().unwrap().moves.len(), 2);
    push(&c3, "three", "one", Ok(Descent::Forward)).await;
    assert_eq!((bench.condition(HISTORY_REWRITTEN), stamp(A)), (None, Value::Null));
    // What cannot be found out holds nothing up and is said to be so.
    let error = GitError::Unreachable { remote: "https://git.example/shop".into(), detail: "no route".into() };
    for unknown in [Ok(Descent::Unknown), Err(error)] {
        push(&c4, "four", "one", unknown).await;
        let (status, reason, message) = bench.condition(HISTORY_REWRITTEN).unwrap();
        assert_eq!((status, reason.as_str()), (ConditionStatus::Unknown, "AncestryUnknown"));
        assert!(message.starts_with("ancestry unknown: ") && message.contains(&c3), "{message}");
        assert_eq!(stamp(A), format!("unknown-from:{c3}"));
        bench.assert_ready("Synced");
        push(&c3, "three", "one", Ok(Descent::Forward)).await;
    }
    // A commit that could not be applied was never what was reverted.
    let broken = [("a.yaml", "not: [a manifest")];
    bench.commit(&c2, &broken);
    bench.look().await;
    push(&c1, "one", "one", Ok(Descent::Rewritten)).await;
    assert_eq!(stamp(A), format!("rewritten-from:{c3}"));
}

#[tokio::test]
async fn a_repository_that_another_tool_applies_tells_of_rewritten_history_too() {
    let bench = Bench::new(json!({"url": "https://git.example/shop", "branch": "main"})).await;
    for (commit, descent, told) in
        [("c1", Descent::Rewritten, false), ("c2", Descent::Rewritten, true), ("c3", Descent::Forward, false)]
    {
        bench.branch.0.lock().unwrap().descent = Some(Ok(descent));
        bench.commit(commit, &[]);
        bench.look().await;
        assert_eq!(bench.condition(HISTORY_REWRITTEN).is_some(), told, "{commit}");
    }
    assert_eq!(bench.branch.0.lock().unwrap().moves, [("c1".into(), "c2".into()), ("c2".into(), "c3".into())]);
}

#[tokio::test]
async fn an_unreachable_repository_is_tried_again() {
    let bench = Bench::new(spec()).await;
    let error = GitError::Unreachable { remote: "https://git.example/shop".into(), detail: "no route".into() };
    bench.branch.0.lock().unwrap().error = Some(error);
    let (outcome, _) = bench.turn().await;
    assert!(matches!(&outcome, Outcome::Failed(failure) if failure.reason == "RepositoryUnreachable"), "{outcome:?}");
    let (status, reason, _) = bench.condition("Reconciling").unwrap();
    assert_eq!((status, reason.as_str()), (ConditionStatus::True, "RepositoryUnreachable"));
    assert_eq!(bench.condition("Ready").unwrap().0, ConditionStatus::False);
    assert_eq!(bench.condition("Stalled"), None);
    // The queue comes back by itself, without a request.
    bench.branch.0.lock().unwrap().error = None;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    bench.turn().await;
    bench.assert_ready("Synced");
}

#[tokio::test]
async fn a_secret_that_is_missing_or_incomplete_is_named_until_it_is_there() {
    let bench =
        Bench::new(json!({"url": "https://git.example/shop.git", "sync": {}, "secretRef": {"name": "git"}})).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    bench.turn().await;
    assert_eq!(bench.assert_stalled("CredentialsNotFound"), "spec.secretRef: Secret shop/git does not exist");
    assert_eq!(bench.branch.0.lock().unwrap().heads, 0);
    let secret = "/api/v1/namespaces/shop/secrets/git";
    let of = |data: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git"}, "data": data});
    bench.store(secret, of(json!({"username": "Ym9i"})));
    let (_, log) = bench.look().await;
    assert_eq!(log[0], format!("GET {secret}"), "by its name, and never a list");
    assert_eq!(bench.assert_stalled("CredentialsNotFound"), "spec.secretRef: Secret shop/git has no key password");
    bench.store(secret, of(json!({"username": "Ym9i", "password": "czNjcjN0Cg==", "webhookToken": "dG9rZW4="})));
    bench.look().await;
    bench.assert_ready("Synced");
    let opened_with = bench.branch.0.lock().unwrap().opened_with.clone();
    assert_eq!(opened_with, Credentials::Basic { username: "bob".into(), password: "s3cr3t".into() }.into());
    assert!(!bench.object(REPO).unwrap().to_string().contains("s3cr3t"));
    assert_eq!(bench.controller.webhook_token(&bench.key).await.unwrap(), Some(Some("token".into())));
    assert_eq!(bench.controller.webhook_token(&Key::new("shop", "none")).await.unwrap(), None);
}

#[tokio::test]
async fn live_weights_are_carried_over_and_a_change_meanwhile_is_looked_at_again() {
    let bench = Bench::new(spec()).await;
    let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";
    let route = |stable: i32, canary: i32| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"rules": [{"backendRefs": [
                {"name": "web-stable", "port": 80, "weight": stable},
                {"name": "web-canary", "port": 80, "weight": canary}]}]}})
    };
    let rollout = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"},
        "spec": {"strategy": {"canary": {"stableService": "web-stable", "canaryService": "web-canary"}}}});
    bench.store(path, route(80, 20));
    bench.server.lock().unwrap().meddle = Some((path.to_owned(), 2));
    let (declared, rollout) = (route(100, 0).to_string(), rollout.to_string());
    bench.commit("c1", &[("route.json", &declared), ("rollout.json", &rollout)]);
    let (_, log) = bench.turn().await;
    bench.assert_ready("Synced");
    let tries = log.iter().filter(|line| **line == format!("PATCH {path}{APPLY}")).count();
    assert_eq!(tries, 3, "{log:#?}");
    let applied = bench.body(&format!("PATCH {path}{APPLY}"));
    let weights = |object: &Value| {
        let backends = object["spec"]["rules"][0]["backendRefs"].as_array().unwrap();
        backends.iter().map(|backend| backend["weight"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(weights(&applied), [80, 20]);
    assert!(applied["metadata"]["resourceVersion"].is_string(), "the precondition");
    // A rollout comes last.
    let last = writes(&log).iter().rev().find(|line| !line.contains("/status")).cloned().unwrap();
    assert!(last.contains("/rollouts/web"), "{last}");
    // The Rollout moved the traffic on: not drift, not ours.
    let mut live = bench.object(path).unwrap();
    live["spec"] = route(50, 50)["spec"].clone();
    bench.server.lock().unwrap().objects.insert(path.to_owned(), live);
    bench.commit("c2", &[("route.json", &declared), ("rollout.json", &rollout), ("a.yaml", &config_map("a", "one"))]);
    bench.look().await;
    assert_eq!(weights(&bench.object(path).unwrap()), [50, 50]);
}

#[tokio::test]
async fn what_a_rollout_has_not_left_yet_is_not_moved_by_the_commit_that_changes_its_strategy() {
    let bench = Bench::new(spec()).await;
    let route_path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web";
    let service_path = "/api/v1/namespaces/shop/services/web-stable";
    let route = |stable: i32, canary: i32| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"rules": [{"backendRefs": [
                {"name": "web-stable", "port": 80, "weight": stable},
                {"name": "web-canary", "port": 80, "weight": canary}]}]}})
    };
    let service = |selector: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web-stable", "namespace": "shop"},
            "spec": {"selector": selector}})
    };
    let narrowed = json!({"app": "web", "sluice.dev/revision": "abc"});
    bench.store(route_path, route(40, 60));
    bench.store(service_path, service(narrowed.clone()));
    // Git asks for a canary without routes; the Rollout still moves traffic by the route.
    let template =
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:2"}]}});
    let asked = json!({"selector": {"matchLabels": {"app": "web"}}, "template": template, "strategy": {"canary": {}}});
    let stands = |version: &str, steering: Value| {
        let live = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": version}, "spec": asked,
            "status": {"stableRevision": "abc", "steering": steering}});
        bench.index.apply(Kind::Rollout, &serde_json::from_value::<DynamicObject>(live).unwrap());
    };
    stands(
        "1",
        json!({"stableService": "web-stable", "canaryService": "web-canary",
        "gatewayAPI": {"httpRoutes": [{"name": "web"}]}}),
    );
    let (declared, stable) = (route(100, 0).to_string(), service(json!({"app": "web"})).to_string());
    bench.commit("c1", &[("route.json", &declared), ("service.json", &stable)]);
    bench.turn().await;
    bench.assert_ready("Synced");
    let backends = bench.body(&format!("PATCH {route_path}{APPLY}"))["spec"]["rules"][0]["backendRefs"].clone();
    assert_eq!((&backends[0]["weight"], &backends[1]["weight"]), (&json!(40), &json!(60)));
    assert_eq!(bench.body(&format!("PATCH {service_path}{APPLY}"))["spec"]["selector"], narrowed);
    // Nor is it pruned before it was left.
    let rollout =
        json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"}, "spec": asked});
    bench.commit("c2", &[("rollout.json", &rollout.to_string())]);
    bench.look().await;
    assert!(bench.object(route_path).is_some() && bench.object(service_path).is_some());
    stands("2", json!({}));
    bench.commit("c3", &[("rollout.json", &rollout.to_string())]);
    bench.look().await;
    assert!(bench.object(route_path).is_none() && bench.object(service_path).is_none());
}

#[tokio::test]
async fn a_namespace_and_a_kind_of_the_same_commit_come_first() {
    let namespaces = json!({"url": "https://git.example/shop.git", "sync": {}, "namespaces": ["team"]});
    let bench = Bench::of("shop", namespaces).await;
    let text = "kind: Widget\napiVersion: example.org/v1\nmetadata: {name: w, namespace: team}\n---\n\
        apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n\
        apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n---\n\
        apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.org}\n\
        spec: {group: example.org, scope: Namespaced, names: {kind: Widget, plural: widgets}, versions: [{name: v1}]}\n";
    bench.commit("c1", &[("all.yaml", text)]);
    let (_, log) = bench.turn().await;
    bench.assert_ready("Synced");
    let widget = "PATCH /apis/example.org/v1/namespaces/team/widgets/w";
    let namespace = format!("PATCH /api/v1/namespaces/team{APPLY}");
    let definition =
        format!("PATCH /apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.org{APPLY}");
    let at = |line: &str| log.iter().position(|found| found == line).unwrap_or_else(|| panic!("{line}: {log:#?}"));
    assert!(at(&format!("PATCH {A}{DRY}")) < at(&namespace));
    assert!(at(&namespace) < at(&format!("{widget}{DRY}")));
    assert!(at(&definition) < at(&format!("{widget}{DRY}")));
    assert!(at(&format!("{widget}{DRY}")) < at(&format!("PATCH {A}{APPLY}")));
    assert!(at(&format!("{widget}{DRY}")) < at(&format!("{widget}{APPLY}")));
    // Both are kept when they leave.
    bench.commit("c2", &[("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")]);
    let (_, log) = bench.look().await;
    let deleted: Vec<&String> = log.iter().filter(|line| line.starts_with("DELETE")).collect();
    assert_eq!(deleted, ["DELETE /apis/example.org/v1/namespaces/team/widgets/w"]);
    assert!(bench.assert_ready("Synced").contains("2 no longer declared but kept"));
}

#[tokio::test]
async fn what_was_applied_before_a_failure_is_known_afterwards() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one")), ("b.yaml", &config_map("b", "one"))]);
    bench.refuse(&format!("PATCH {B}{APPLY}"), 500, "etcd is tired");
    let (outcome, _) = bench.turn().await;
    assert!(matches!(&outcome, Outcome::Failed(failure) if failure.reason == "ApplyFailed"), "{outcome:?}");
    let (_, reason, message) = bench.condition("Ready").unwrap();
    assert_eq!(reason, "ApplyFailed");
    assert!(
        message.contains("b.yaml, document 1 (ConfigMap shop/b)") && message.contains("etcd is tired"),
        "{message}"
    );
    let status = bench.status();
    assert_eq!(status.applied_commit, None);
    let known: Vec<(&str, bool)> = status.inventory.iter().map(|e| (e.name.as_str(), e.digest.is_empty())).collect();
    assert_eq!(known, [("a", false), ("b", true)]);
    bench.relent();
    let (_, log) = bench.turn().await;
    assert_eq!(writes(&log), [format!("PATCH {B}{APPLY}"), format!("PATCH {REPO}/status?fieldManager=sluice")]);
    bench.assert_ready("Synced");
}

#[tokio::test]
async fn who_does_not_lead_reads_no_git_and_writes_nothing() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    bench.leader.0.store(false, Ordering::SeqCst);
    let (outcome, log) = bench.look().await;
    assert!(matches!(outcome, Outcome::After(STANDBY)), "{outcome:?}");
    assert_eq!((log, bench.branch.0.lock().unwrap().heads), (vec![], 0));
    bench.leader.0.store(true, Ordering::SeqCst);
    bench.turn().await;
    bench.assert_ready("Synced");
}

#[tokio::test]
async fn without_sync_only_the_branch_is_looked_at() {
    let bench = Bench::new(json!({"url": "https://git.example/shop.git"})).await;
    bench.commit("0123456789abcdef", &[("a.yaml", "no: manifest")]);
    let (_, log) = bench.turn().await;
    assert_eq!(log, [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert_eq!(bench.assert_ready("Reachable"), "branch main is at 0123456789; another tool applies it");
    assert_eq!(bench.branch.0.lock().unwrap().reads, 0);
    let status = bench.status();
    assert_eq!((status.observed_commit.as_deref(), status.applied_commit), (Some("0123456789abcdef"), None));
    bench.declare(2, json!({"url": "https://git.example/shop.git", "suspend": true}));
    bench.look().await;
    assert_eq!(bench.condition("Ready").unwrap().1, "Suspended");
    assert_eq!(bench.branch.0.lock().unwrap().heads, 1);
}

#[tokio::test]
async fn two_deploy_repos_do_not_fight_over_an_object() {
    let bench = Bench::new(spec()).await;
    bench.store(
        A,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop",
            "annotations": {"sluice.dev/deploy-repo": "shop/other"}}}),
    );
    let other = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
        "metadata": {"name": "other", "namespace": "shop", "uid": "o", "resourceVersion": "1"},
        "spec": {"url": "https://git.example/other.git", "sync": {}}});
    let other: DynamicObject = serde_json::from_value(other).unwrap();
    bench.index.apply(Kind::DeployRepo, &other);
    bench.commit("c1", &[("a.yaml", &config_map("a", "one"))]);
    let (_, log) = bench.turn().await;
    assert_eq!(writes(&log), [format!("PATCH {REPO}/status?fieldManager=sluice")]);
    assert!(bench.assert_stalled("OwnedByAnother").contains("DeployRepo shop/other applies it already"));
    // The other one is gone: its objects may be taken over.
    bench.index.remove(Kind::DeployRepo, &Key::new("shop", "other"), "o");
    bench.look().await;
    bench.assert_ready("Synced");
    assert_eq!(bench.object(A).unwrap()["metadata"]["annotations"][names::DEPLOY_REPO], "shop/web");
}

#[tokio::test]
async fn a_secret_in_a_manifest_is_never_quoted() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("s.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {key: hunter2}\n")]);
    bench.refuse("PATCH /api/v1/namespaces/shop/secrets/s", 400, "illegal base64 data: hunter2");
    bench.turn().await;
    assert!(bench.assert_stalled("InvalidManifest").contains("s.yaml, document 1 (Secret shop/s)"));
    assert!(!bench.object(REPO).unwrap().to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_value_of_the_wrong_type_is_the_manifests_fault_though_the_server_says_500() {
    let bench = Bench::new(spec()).await;
    bench.commit("c1", &[("a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {key: [x]}\n")]);
    bench.refuse(
        &format!("PATCH {A}?dryRun"),
        500,
        "failed to create typed patch object (shop/a; /v1, Kind=ConfigMap): .data.key: expected string",
    );
    bench.turn().await;
    assert!(bench.assert_stalled("InvalidManifest").ends_with(".data.key: expected string"));
}

#[test]
fn a_rollout_is_recorded_by_who_applied_it_or_has_a_say() {
    let repo = |namespace: &str, name: &str, namespaces: &[&str]| {
        let object = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"url": "https://git.example/x", "namespaces": namespaces}});
        Arc::new(DeployRepoObject::of(&serde_json::from_value(object).unwrap()))
    };
    let repos = [
        repo("sluice-system", "platform", &["shop", "team"]),
        repo("shop", "web", &[]),
        repo("shop", "api", &[]),
        repo("evil", "grab", &["team", "lonely"]),
    ];
    let resolve = |annotation: Option<&str>, namespace: &str| {
        let annotations =
            annotation.map(|value| (names::DEPLOY_REPO.to_owned(), value.to_owned())).into_iter().collect();
        resolve_deploy_repo(&annotations, namespace, &repos, "sluice-system").map(|key| key.to_string())
    };
    assert_eq!(resolve(Some("shop/web"), "shop").as_deref(), Some("shop/web"));
    assert_eq!(resolve(Some("sluice-system/platform"), "shop").as_deref(), Some("sluice-system/platform"));
    assert_eq!(resolve(None, "shop").as_deref(), Some("shop/api"));
    assert_eq!(resolve(None, "team").as_deref(), Some("sluice-system/platform"));
    assert_eq!(resolve(Some("gone/away"), "team").as_deref(), Some("sluice-system/platform"));
    // A name alone gives no right, and neither does a list outside the operator's namespace.
    assert_eq!(resolve(Some("shop/web"), "team").as_deref(), Some("sluice-system/platform"));
    assert_eq!(resolve(Some("evil/grab"), "lonely"), None);
}
