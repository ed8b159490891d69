//! The loop against a small API server, real repositories and a forge that remembers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::*;
use crate::api::PodTemplate;
use crate::cluster::client::client;
use crate::cluster::kinds::Kind;
use crate::cluster::write::Gate;
use crate::engine::LedgerState;
use crate::forge::PullRequestState;
use crate::git::{Credentials, RemoteAddress};

struct Leads;
impl Gate for Leads {
    fn may_write(&self) -> bool {
        true
    }
}

/// What the ledger knows of the last good version.
#[derive(Default)]
struct Known(Mutex<Option<(String, PodTemplate)>>);
impl LedgerView for Known {
    fn state(&self, _: &Key) -> LedgerState {
        LedgerState { read: true, last_good: self.0.lock().unwrap().clone(), ..LedgerState::default() }
    }
    fn notify(&self, _: &Key, _: bool) {}
}

/// A forge that remembers its pull requests, and may die at any request.
#[derive(Clone, Default)]
struct Forge {
    open: Arc<Mutex<Vec<PullRequest>>>,
    down: Arc<Mutex<bool>>,
}

impl PullRequests for Forge {
    async fn find(&self, head: &str) -> Result<Option<PullRequest>, ForgeError> {
        Ok(self.open.lock().unwrap().iter().find(|open| open.head == head).cloned())
    }
    async fn open(&self, new: NewPullRequest<'_>) -> Result<PullRequest, ForgeError> {
        if *self.down.lock().unwrap() {
            return Err(ForgeError::Unreachable { doing: "opening a pull request", why: "it is down" });
        }
        assert!(new.body.contains("errors rose"), "{}", new.body);
        let number = self.open.lock().unwrap().len() as u64 + 1;
        let open = PullRequest {
            number,
            page: Some(format!("https://forge.example/pulls/{number}")),
            head: new.head.to_owned(),
            base: new.base.to_owned(),
            state: PullRequestState::Open,
        };
        self.open.lock().unwrap().push(open.clone());
        Ok(open)
    }
}

struct Local {
    cache: GitCache,
    remote: PathBuf,
    forge: Forge,
}

impl Local {
    fn open(&self) -> Result<Repository, Trouble> {
        Ok(self.cache.repository_at(RemoteAddress::local(&self.remote)?, Credentials::None)?)
    }
}

impl Doors for Local {
    type Forge = Forge;
    async fn repository(&self, _: &str, _: &DeployRepoSpec) -> Result<Repository, Trouble> {
        self.open()
    }
    async fn log(&self, _: &str, _: &DeployRepoSpec) -> Result<Repository, Trouble> {
        self.open()
    }
    async fn forge(&self, _: &str, spec: &DeployRepoSpec) -> Result<Option<Forge>, Trouble> {
        Ok(spec.forge.as_ref().map(|_| self.forge.clone()))
    }
}

struct World {
    loop_: WriteBack<Local>,
    index: Arc<Index>,
    statuses: Arc<Mutex<BTreeMap<String, Value>>>,
    writes: Arc<AtomicUsize>,
    forge: Forge,
    known: Arc<Known>,
    directory: tempfile::TempDir,
}

const MANIFEST: &str = "# the shop\napiVersion: sluice.dev/v1alpha1\nkind: Rollout\nmetadata: {name: web, namespace: shop}\nspec:\n  replicas: 3\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    spec:\n      containers:\n      - name: c\n        image: i:IMAGE # by hand\n  strategy: {canary: {stableService: a, canaryService: b, steps: []}}\n";

fn template(image: &str) -> PodTemplate {
    PodTemplate(
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": format!("i:{image}")}]}}),
    )
}

impl World {
    async fn new(spec: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let remote = directory.path().join("remote.git");
        git(directory.path(), &["init", "-q", "--bare", "-b", "main", "remote.git"]);
        for (name, value) in [("uploadpack.allowAnySHA1InWant", "true"), ("uploadpack.allowFilter", "true")] {
            git(&remote, &["config", name, value]);
        }
        let statuses = Arc::new(Mutex::new(BTreeMap::new()));
        let writes = Arc::new(AtomicUsize::new(0));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (kept, count) = (Arc::clone(&statuses), Arc::clone(&writes));
        let handler = move |method: Method, uri: Uri, body: Bytes| {
            let (kept, count) = (Arc::clone(&kept), Arc::clone(&count));
            async move { answer(&kept, &count, &method, &uri, &body) }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        let index = Arc::new(Index::default());
        let metrics = Metrics::new();
        let kube = client(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let writer = Writer::new(kube, Arc::clone(&index), Arc::new(Leads), Arc::new(metrics.clone()));
        let good = (template("good").revision(), template("good"));
        let (forge, known) = (Forge::default(), Arc::new(Known(Mutex::new(Some(good)))));
        let loop_ = WriteBack::new(Parts {
            writer,
            doors: Local {
                cache: GitCache::new(directory.path().join("cache")).unwrap(),
                remote,
                forge: forge.clone(),
            },
            ledger: known.clone(),
            cluster: "prod".into(),
            operator_namespace: "sluice-system".into(),
            metrics,
            now: Utc::now,
        });
        let world = Self { loop_, index, statuses, writes, forge, known, directory };
        let mut whole = json!({"url": "https://git.example/shop/deploy.git", "path": "deploy", "sync": {}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        world.put(json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": "deploy", "namespace": "shop", "uid": "repo", "resourceVersion": "1"}, "spec": whole,
            "status": {"logTip": "0123456789"}}));
        world
    }

    fn put(&self, object: Value) {
        let kind = if object["kind"] == "Rollout" { Kind::Rollout } else { Kind::DeployRepo };
        self.index.apply(kind, &serde_json::from_value::<DynamicObject>(object.clone()).unwrap());
        let path = format!("rollouts/{}", object["metadata"]["name"].as_str().unwrap());
        self.statuses.lock().unwrap().insert(path, object);
    }

    fn remote(&self) -> PathBuf {
        self.directory.path().join("remote.git")
    }

    /// Commits the manifest, and gives the commit.
    fn commit(&self, message: &str, image: &str) -> String {
        self.write(message, &MANIFEST.replace("IMAGE", image))
    }

    fn write(&self, message: &str, text: &str) -> String {
        let parent = git_or(&self.remote(), &["rev-parse", "-q", "--verify", "refs/heads/main"]);
        let from = parent.map_or_else(String::new, |parent| format!("from {parent}\n"));
        let stream = format!(
            "commit refs/heads/main\ncommitter p <p@x> 1700000000 +0000\ndata {}\n{message}\n{from}M 644 inline \
             deploy/web.yaml\ndata {}\n{text}\nM 644 inline other.txt\ndata 2\nx\n\n",
            message.len(),
            text.len(),
        );
        let mut import = Command::new("git");
        import.arg("-C").arg(self.remote()).args(["fast-import", "--quiet"]).stdin(Stdio::piped());
        let mut child = import.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), stream.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        git(&self.remote(), &["rev-parse", "main"])
    }

    /// The Rollout after its release of `image` was aborted for this cause.
    fn aborted(&self, image: &str, commit: &str, cause: &str) {
        let version = Utc::now().timestamp_micros().to_string();
        self.put(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web", "resourceVersion": version,
                "annotations": {"sluice.dev/source-commit": commit, "sluice.dev/deploy-repo": "shop/deploy"}},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template(image).0,
                "strategy": {"canary": {"stableService": "a", "canaryService": "b", "steps": []}}},
            "status": {"phase": "Aborted", "stableRevision": template("good").revision(), "sequence": 7,
                "recordedSequence": 7, "release": {"revision": template(image).revision(), "attempt": 1,
                    "state": "Aborted", "stage": 1, "stages": 2, "planHash": "x",
                    "abort": {"cause": cause, "message": "errors rose", "at": "2026-01-01T00:00:00Z"}}}
        }));
    }

    fn change_status(&self, change: impl FnOnce(&mut Value)) {
        let mut object = self.statuses.lock().unwrap()["rollouts/web"].clone();
        change(&mut object["status"]);
        object["metadata"]["resourceVersion"] = json!(Utc::now().timestamp_micros().to_string());
        self.put(object);
    }

    /// Adds a file to the log of a cluster.
    fn log(&self, cluster: &str, path: &str) {
        let name = format!("refs/heads/rollout-log/{cluster}");
        let parent = git_or(&self.remote(), &["rev-parse", "-q", "--verify", &name]);
        let from = parent.map_or_else(String::new, |parent| format!("from {parent}\n"));
        let stream = format!(
            "commit {name}\ncommitter p <p@x> 1700000000 +0000\ndata 1\nx\n{from}M 644 inline {path}\ndata 3\n{{}}\n\n"
        );
        let mut import = Command::new("git");
        import.arg("-C").arg(self.remote()).args(["fast-import", "--quiet"]).stdin(Stdio::piped());
        let mut child = import.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), stream.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    async fn turn(&self) -> Outcome {
        let objects: Vec<Value> = self.statuses.lock().unwrap().values().cloned().collect();
        objects.into_iter().filter(|object| object["kind"] == "Rollout").for_each(|object| self.put(object));
        self.loop_.turn(Key::new("shop", "web")).await
    }

    fn ahead(&self) -> Option<(String, String, String)> {
        let status = self.statuses.lock().unwrap()["rollouts/web"]["status"].clone();
        let found = status["conditions"].as_array()?.iter().find(|found| found["type"] == GIT_AHEAD)?.clone();
        let text = |field: &str| found[field].as_str().unwrap().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    fn reason(&self) -> String {
        self.ahead().unwrap().1
    }

    fn main(&self) -> String {
        git(&self.remote(), &["rev-parse", "main"])
    }
}

fn answer(
    kept: &Mutex<BTreeMap<String, Value>>,
    count: &AtomicUsize,
    method: &Method,
    uri: &Uri,
    body: &Bytes,
) -> Response {
    assert_eq!((method, uri.path()), (&Method::PATCH, "/apis/sluice.dev/v1alpha1/namespaces/shop/rollouts/web/status"));
    let mut kept = kept.lock().unwrap();
    let object = kept.get_mut("rollouts/web").unwrap();
    for operation in serde_json::from_slice::<Vec<Value>>(body).unwrap() {
        let pointer = operation["path"].as_str().unwrap();
        match operation["op"].as_str().unwrap() {
            "test" if object.pointer(pointer) != Some(&operation["value"]) => {
                return (StatusCode::UNPROCESSABLE_ENTITY, "a test failed").into_response();
            }
            "test" => {}
            _ => object["status"] = operation["value"].clone(),
        }
    }
    object["metadata"]["resourceVersion"] = json!(Utc::now().timestamp_micros().to_string());
    count.fetch_add(1, Ordering::SeqCst);
    axum::Json(object.clone()).into_response()
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    git_or(directory, arguments).unwrap_or_else(|| panic!("git {arguments:?}"))
}

fn git_or(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn forge() -> Value {
    json!({"forge": {"type": "gitea"}, "onAbort": "pullRequest"})
}

const HEAD: &str = "refs/heads/sluice/revert/prod/shop/web/";

#[tokio::test]
async fn a_pull_request_is_opened_once_whatever_happens_in_between() {
    let world = World::new(forge()).await;
    world.commit("web good", "good");
    let bad = world.commit("web bad", "bad");
    world.aborted("bad", &bad, "Verdict");
    // The push goes out, the pull request does not; then the process starts anew.
    *world.forge.down.lock().unwrap() = true;
    assert!(matches!(world.turn().await, Outcome::Failed(_)));
    assert_eq!(world.reason(), "ForgeUnreachable");
    *world.forge.down.lock().unwrap() = false;
    for _ in 0..3 {
        assert!(matches!(world.turn().await, Outcome::Done));
    }
    let (status, reason, message) = world.ahead().unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "RevertProposed"));
    assert!(message.contains("https://forge.example/pulls/1"), "{message}");
    assert_eq!(world.forge.open.lock().unwrap().len(), 1);
    assert_eq!(world.main(), bad, "the branch that people use is theirs");
    let branches = git(&world.remote(), &["for-each-ref", "--format=%(refname)", HEAD]);
    assert_eq!(branches, format!("{HEAD}{}.1", template("bad").revision()));
    // The condition was lost, and the pull request is still there.
    world.change_status(|status| status["conditions"] = json!([]));
    world.turn().await;
    assert_eq!((world.reason(), world.forge.open.lock().unwrap().len()), ("RevertProposed".into(), 1));
    // Merged, and applied: git is not ahead any more, and that is said once.
    world.aborted("bad", &bad, "Verdict");
    world.turn().await;
    world.change_status(|status| status["release"] = Value::Null);
    world.turn().await;
    assert_eq!(world.ahead().map(|ahead| (ahead.0, ahead.1)), Some(("False".into(), "Resolved".into())));
    let writes = world.writes.load(Ordering::SeqCst);
    world.turn().await;
    assert_eq!(world.writes.load(Ordering::SeqCst), writes);
}

#[tokio::test]
async fn a_commit_changes_one_line_and_speaks_as_git_does() {
    let world = World::new(json!({"onAbort": "commit"})).await;
    world.commit("web good", "good");
    let bad = world.commit("web bad", "bad");
    // Somebody changes another line and another file meanwhile.
    let later = world.write("more pods", &MANIFEST.replace("IMAGE", "bad").replace("replicas: 3", "replicas: 5"));
    world.aborted("bad", &bad, "Deadline");
    world.turn().await;
    let made = world.main();
    assert_eq!(git(&world.remote(), &["rev-parse", &format!("{made}^")]), later);
    assert_eq!(git(&world.remote(), &["diff", "--numstat", &later, &made]), "1\t1\tdeploy/web.yaml");
    let text = git(&world.remote(), &["show", &format!("{made}:deploy/web.yaml")]);
    assert!(text.contains("image: i:good # by hand") && text.contains("replicas: 5"), "{text}");
    let message = git(&world.remote(), &["log", "-1", "--format=%B", &made]);
    assert!(message.starts_with(&format!("Revert \"web bad\"\n\nThis reverts commit {bad}")), "{message}");
    for trailer in
        ["Rollout-Id: prod/shop/web", "Rollout-Seq: 7", "Rollout-Reason: Deadline", "Rollout-Log: 0123456789"]
    {
        assert!(message.contains(trailer), "{message}");
    }
    assert_eq!(world.reason(), "RevertCommitted");
    // The condition is lost before the sync has applied it: nothing is done twice.
    world.change_status(|status| status["conditions"] = json!([]));
    world.turn().await;
    assert_eq!((world.main(), world.reason()), (made, "RevertWaits".into()));
}

#[tokio::test]
async fn without_the_commit_before_the_ledger_says_what_was_good() {
    let world = World::new(json!({"onAbort": "commit"})).await;
    world.commit("web worse", "worse");
    let bad = world.commit("web bad", "bad");
    world.aborted("bad", &bad, "Verdict");
    *world.known.0.lock().unwrap() = None;
    assert!(matches!(world.turn().await, Outcome::Failed(_)));
    assert_eq!((world.main(), world.reason()), (bad.clone(), "NotLiteral".into()));
    *world.known.0.lock().unwrap() = Some((template("good").revision(), template("good")));
    world.turn().await;
    let text = git(&world.remote(), &["show", "main:deploy/web.yaml"]);
    assert!(text.contains("image: i:good # by hand"), "{text}");
    let message = git(&world.remote(), &["log", "-1", "--format=%B", "main"]);
    assert!(
        message.contains("This puts shop/web back") && !message.contains(&bad),
        "it is not that commit alone: {message}"
    );
}

#[tokio::test]
async fn only_a_verdict_or_a_deadline_is_a_reason_and_only_when_it_is_recorded() {
    for cause in ["DataMissing", "Intervention", "Revert"] {
        let world = World::new(json!({"onAbort": "commit"})).await;
        world.commit("web good", "good");
        let bad = world.commit("web bad", "bad");
        world.aborted("bad", &bad, cause);
        assert!(matches!(world.turn().await, Outcome::Done), "{cause}");
        assert_eq!((world.main(), world.ahead()), (bad, None), "{cause}");
    }
    let world = World::new(json!({"onAbort": "commit"})).await;
    world.commit("web good", "good");
    let bad = world.commit("web bad", "bad");
    world.aborted("bad", &bad, "Verdict");
    world.change_status(|status| status["recordedSequence"] = json!(6));
    assert!(matches!(world.turn().await, Outcome::After(_)));
    assert_eq!((world.main(), world.reason()), (bad.clone(), "RevertWaits".into()));
    // Nothing is asked of us but to say so.
    let world = World::new(json!({})).await;
    let bad = world.commit("web bad", "bad");
    world.aborted("bad", &bad, "Verdict");
    world.turn().await;
    let (_, reason, message) = world.ahead().unwrap();
    assert!(reason == "RevertNeeded" && message.contains(&bad) && message.contains("errors rose"), "{message}");
}

#[tokio::test]
async fn a_value_that_is_not_written_in_the_file_is_named_and_a_refusal_is_told() {
    let world = World::new(json!({"onAbort": "commit"})).await;
    let anchored = |image: &str| {
        format!("x: &image i:{image}\n---\n").replace("---\n", "")
            + &MANIFEST.replace("# the shop\n", "").replace("i:IMAGE # by hand", "*image")
    };
    world.write("web good", &anchored("good"));
    let bad = world.write("web bad", &anchored("bad"));
    world.aborted("bad", &bad, "Verdict");
    assert!(matches!(world.turn().await, Outcome::Failed(_)));
    let (_, reason, message) = world.ahead().unwrap();
    assert!(reason == "NotLiteral" && message.contains("image"), "{message}");
    assert_eq!(world.main(), bad);
    let world = World::new(json!({"onAbort": "commit"})).await;
    world.commit("web good", "good");
    let bad = world.commit("web bad", "bad");
    world.aborted("bad", &bad, "Verdict");
    let hook = world.remote().join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(world.turn().await, Outcome::Failed(_)));
    assert_eq!((world.main(), world.reason()), (bad, "PushRejected".into()));
}

#[tokio::test]
async fn a_proposal_becomes_a_commit_when_the_quorum_is_reached_later() {
    let world = World::new(json!({"onAbort": "commit", "abortQuorum": 2, "forge": {"type": "gitea"}})).await;
    world.commit("web good", "good");
    let bad = world.commit("web bad", "bad");
    world.log("test", "shop/web/state.json");
    world.aborted("bad", &bad, "Verdict");
    for _ in 0..2 {
        let Outcome::After(again) = world.turn().await else { panic!("nobody looks for the others again") };
        assert!(again >= LATER / 2 && again <= LATER * 2, "{again:?}");
        assert_eq!((world.main(), world.reason()), (bad.clone(), "RevertProposed".into()));
        assert_eq!(world.forge.open.lock().unwrap().len(), 1);
    }
    world.log("test", &format!("shop/web/aborted/{}.json", template("bad").revision()));
    world.turn().await;
    let made = world.main();
    assert_eq!(world.reason(), "RevertCommitted");
    assert_eq!(git(&world.remote(), &["rev-parse", &format!("{made}^")]), bad);
    assert!(git(&world.remote(), &["show", "main:deploy/web.yaml"]).contains("image: i:good # by hand"));
    assert_eq!(world.forge.open.lock().unwrap().len(), 1);
    world.turn().await;
    assert_eq!((world.main(), world.reason()), (made, "RevertCommitted".into()));
}

#[tokio::test]
async fn one_cluster_does_not_commit_for_others_before_enough_of_them_agree() {
    let spec = json!({"onAbort": "commit", "abortQuorum": 2, "forge": {"type": "gitea"}});
    for (quorum, has_forge) in [(true, false), (false, true)] {
        let mut spec = spec.clone();
        let fields = spec.as_object_mut().unwrap();
        if !quorum {
            fields.remove("abortQuorum");
        }
        if !has_forge {
            fields.remove("forge");
        }
        let world = World::new(spec).await;
        world.commit("web good", "good");
        let bad = world.commit("web bad", "bad");
        let log = |cluster: &str, path: &str| world.log(cluster, path);
        log("prod", "shop/web/state.json");
        log("test", "shop/web/state.json");
        log("elsewhere", "shop/other/state.json");
        world.aborted("bad", &bad, "Verdict");
        world.turn().await;
        assert_eq!(world.main(), bad, "the other cluster is content with it");
        if has_forge {
            assert_eq!((world.reason(), world.forge.open.lock().unwrap().len()), ("RevertProposed".into(), 1));
            // Without a quorum it stays a proposal, whoever else aborts it.
            log("test", &format!("shop/web/aborted/{}.json", template("bad").revision()));
            assert!(matches!(world.turn().await, Outcome::Done));
            assert_eq!((world.main(), world.reason()), (bad, "RevertProposed".into()));
            continue;
        }
        let (_, reason, message) = world.ahead().unwrap();
        assert!(reason == "RevertWaits" && message.contains("1 of 2 clusters"), "{message}");
        log("test", &format!("shop/web/aborted/{}.json", template("bad").revision()));
        world.turn().await;
        assert_eq!(world.reason(), "RevertCommitted");
        assert_ne!(world.main(), bad);
    }
}
