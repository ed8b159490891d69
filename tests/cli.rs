//! The real programs, as a person or a script runs them: what they print, where, and how they end.
//!
//! The plugin talks to a small API server in this process that speaks as much of Kubernetes as it needs:
//! lists, watches, one POST.

// The helpers of a test may end it as the test itself may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use sluice::api::{PodTemplate, names};
use tempfile::TempDir;
use tokio::sync::broadcast;

const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
const PLUGIN: &str = env!("CARGO_BIN_EXE_kubectl-rollout_status");

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Output {
    // No kubeconfig of whoever runs the tests, and no colour settings either.
    Command::new(program)
        .args(arguments)
        .env_remove("KUBECONFIG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("NO_COLOR")
        .env("HOME", "/nonexistent")
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn help_is_no_error_and_wrong_usage_is_code_1() {
    for program in [SLUICE, PLUGIN] {
        let help = run(program, &["--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(text(&help.stdout).contains("Usage:"));
        let wrong = run(program, &["--no-such-option"]);
        assert_eq!(wrong.status.code(), Some(1), "2 would mean aborted");
        assert!(text(&wrong.stderr).contains("--no-such-option") && wrong.stdout.is_empty());
    }
    for arguments in [
        &["web", "--until", "soon"][..],
        &["--until", "promoted"],
        &["web", "--timeout", "long"],
        &["web", "--revision", "abc"],
        &["web", "-l", "app=web"],
        &["web", "-A"],
        &["web", "-w", "abort", "api"],
        &["promote"],
    ] {
        let wrong = run(PLUGIN, arguments);
        assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(1), 0), "{arguments:?}");
        assert!(!wrong.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn each_shell_gets_its_script() {
    for shell in ["bash", "zsh", "fish"] {
        for (program, word) in [(SLUICE, "sluice"), (PLUGIN, "kubectl-rollout_status")] {
            let script = run(program, &["completion", shell]);
            assert_eq!(script.status.code(), Some(0));
            assert!(text(&script.stdout).contains(word), "{program} {shell}");
        }
    }
    let helper = text(&run(PLUGIN, &["completion", "kubectl"]).stdout);
    assert!(helper.starts_with("#!/bin/sh\n") && helper.contains("exec kubectl-rollout_status __complete \"$@\""));
    // Without a cluster there are no names, but the words are there, and files are not proposed.
    let proposals = text(&run(PLUGIN, &["__complete", "a"]).stdout);
    assert_eq!(proposals, "abort\n:4\n");
    let options = text(&run(PLUGIN, &["__complete", "promote", "--f"]).stdout);
    assert_eq!(options, "--full\n:4\n");
}

#[test]
fn without_a_cluster_the_plugin_says_so() {
    let nothing = run(PLUGIN, &["web", "--kubeconfig", "/nonexistent/config"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(text(&nothing.stderr).starts_with("error: kubeconfig: "), "{}", text(&nothing.stderr));
}

/// As much of an API server as the plugin asks for.
#[derive(Clone)]
struct Cluster {
    objects: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
    forbidden: Arc<Mutex<Vec<&'static str>>>,
    created: Arc<Mutex<Vec<Value>>>,
    outcome: Arc<Mutex<Option<Value>>>,
    events: broadcast::Sender<(String, Value)>,
    directory: Arc<TempDir>,
}

impl Cluster {
    async fn start() -> Self {
        let (events, _) = broadcast::channel(64);
        let cluster = Self {
            objects: Arc::default(),
            forbidden: Arc::default(),
            created: Arc::default(),
            outcome: Arc::default(),
            events,
            directory: Arc::new(tempfile::tempdir().unwrap()),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(cluster.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "test", "user": {"token": "t"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "shop"}}]
        });
        std::fs::write(cluster.kubeconfig(), kubeconfig.to_string()).unwrap();
        cluster
    }

    fn kubeconfig(&self) -> std::path::PathBuf {
        Path::new(self.directory.path()).join("kubeconfig")
    }

    /// Puts an object in the place of the one of the same name, and tells who watches.
    fn put(&self, plural: &str, object: Value) {
        let mut objects = self.objects.lock().unwrap();
        let list = objects.entry(plural.to_owned()).or_default();
        list.retain(|known| known["metadata"]["name"] != object["metadata"]["name"]);
        list.push(object.clone());
        let _ = self.events.send((plural.to_owned(), object));
    }

    fn forbid(&self, plural: &'static str) {
        self.forbidden.lock().unwrap().push(plural);
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(PLUGIN);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR");
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(arguments).output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends").unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

fn refuse(code: StatusCode, reason: &str, message: &str) -> Response {
    let body = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(),
                      "reason": reason, "message": message});
    (code, body.to_string()).into_response()
}

async fn answer(State(cluster): State<Cluster>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let method = request.method().clone();
    let mut parts: Vec<&str> = path.split('/').skip_while(|part| *part != "namespaces").skip(2).collect();
    if parts.is_empty() {
        parts = path.rsplit('/').take(1).collect();
    }
    let plural = parts[0].to_owned();
    if cluster.forbidden.lock().unwrap().contains(&plural.as_str()) {
        return refuse(StatusCode::FORBIDDEN, "Forbidden", &format!("{plural} is forbidden: not for you"));
    }
    if method == Method::POST {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        if plural == "selfsubjectreviews" {
            object["status"] = json!({"userInfo": {"username": "alice@example.com"}});
        } else {
            object["metadata"]["name"] =
                json!(format!("{}x7k2p", object["metadata"]["generateName"].as_str().unwrap()));
            cluster.created.lock().unwrap().push(object.clone());
        }
        return (StatusCode::CREATED, object.to_string()).into_response();
    }
    if let (["rollouts", name], true) = (&parts[..], method != Method::POST) {
        let known = cluster.objects.lock().unwrap()["rollouts"].clone();
        let object = known.into_iter().find(|known| known["metadata"]["name"] == **name).unwrap();
        if method == Method::PATCH {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            cluster.created.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        }
        return object.to_string().into_response();
    }
    if let [_, _name] = parts[..] {
        let mut object = cluster.created.lock().unwrap().last().cloned().unwrap();
        if let Some(outcome) = cluster.outcome.lock().unwrap().clone() {
            object["status"] = outcome;
        }
        return object.to_string().into_response();
    }
    if query.contains("watch=true") {
        // Subscribed before the objects are read, so that no change falls between the two.
        let events = cluster.events.subscribe();
        let known = cluster.objects.lock().unwrap().get(&plural).cloned().unwrap_or_default();
        let line = |object: Value| Bytes::from(json!({"type": "MODIFIED", "object": object}).to_string() + "\n");
        let known: Vec<_> = known.into_iter().map(|object| Ok(line(object))).collect();
        let news = futures::stream::unfold(events, move |mut events| {
            let plural = plural.clone();
            async move {
                loop {
                    let (of, object) = events.recv().await.ok()?;
                    if of == plural {
                        return Some((Ok::<_, std::io::Error>(line(object)), events));
                    }
                }
            }
        });
        return Body::from_stream(futures::stream::iter(known).chain(news).boxed()).into_response();
    }
    let items = cluster.objects.lock().unwrap().get(&plural).cloned().unwrap_or_default();
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
        .to_string()
        .into_response()
}

fn template(version: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
           "spec": {"containers": [{"name": "web", "image": format!("registry.example/web:{version}")}]}})
}

fn revision(version: &str) -> String {
    PodTemplate(template(version)).revision()
}

fn rollout(version: i64, status: Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "generation": 7,
                     "resourceVersion": version.to_string(), "creationTimestamp": "2026-03-02T09:00:00Z",
                     "annotations": {names::SOURCE_COMMIT: "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d"}},
        "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": template("v2"),
                 "strategy": {"canary": {
                     "stableService": "web-stable", "canaryService": "web-canary",
                     "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": "web"}]}},
                     "steps": [{"setWeight": 20}, {"pause": {}}]}}},
        "status": status
    })
}

fn stepping() -> Value {
    json!({"observedGeneration": 7, "phase": "Paused", "message": "waits for a person: 0 of 1 approvals",
           "strategy": "Canary", "revision": revision("v2"), "stableRevision": revision("v1"), "weight": 20,
           "release": {"revision": revision("v2"), "attempt": 1, "state": "Stepping", "stage": 1, "stages": 3}})
}

fn promoted() -> Value {
    json!({"observedGeneration": 7, "phase": "Ready", "message": "the desired version serves everything",
           "strategy": "Canary", "revision": revision("v2"), "stableRevision": revision("v2"),
           "promotedRevisions": [revision("v1")]})
}

fn aborted() -> Value {
    let mut status = stepping();
    status["phase"] = json!("Aborted");
    status["message"] = json!("aborted");
    status["weight"] = json!(0);
    status["release"]["state"] = json!("Aborted");
    status["release"]["abort"] =
        json!({"cause": "Verdict", "message": "error-rate is too high", "at": "2026-03-02T14:00:55Z"});
    status
}

fn failed_run() -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AnalysisRun",
        "metadata": {"name": "web-run", "namespace": "shop", "uid": "a-1", "resourceVersion": "4"},
        "spec": {"rollout": "web", "revision": revision("v2"), "attempt": 1, "stage": "background", "metrics": [
            {"name": "error-rate", "threshold": {"max": 0.01},
             "provider": {"prometheus": {"name": "main", "query": "sum(rate(errors[1m]))"}}}]},
        "status": {"phase": "Failed", "metrics": [{"name": "error-rate", "phase": "Failed", "failed": 1,
            "measurements": [{"at": "2026-03-02T14:00:54Z", "verdict": "Fail", "values": ["0.031"]}]}]}
    })
}

#[tokio::test]
async fn one_rollout_many_and_none() {
    let cluster = Cluster::start().await;
    let (code, out, err) = cluster.run(&[]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", "No Rollouts found in namespace shop.\n"));
    let (code, out, err) = cluster.run(&["web"]).await;
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(err, "error: rollouts.sluice.dev \"web\" not found in namespace shop\n");

    cluster.put("rollouts", rollout(9, stepping()));
    let (code, out, _) = cluster.run(&["ro/web"]).await;
    assert_eq!(code, Some(0));
    assert!(out.starts_with("shop/web   Canary   Paused\nWhat:     registry.example/web:v2"), "{out}");
    assert!(out.contains("Stop:     git revert 1a2b3c4d5e   or: kubectl rollout-status abort web -n shop\n"), "{out}");
    assert!(!out.contains('\x1b'), "no colour away from a terminal");
    let (_, table, _) = cluster.run(&["-A"]).await;
    let titles: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles.join(" "), "NAMESPACE NAME STRATEGY PHASE STEP WEIGHT REVISION READY AGE");
    let (_, names, _) = cluster.run(&["-o", "name"]).await;
    assert_eq!(names, "rollout.sluice.dev/web\n");
    let (_, document, _) = cluster.run(&["web", "-o", "json"]).await;
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["kind"], &document["where"]["step"]), (&json!("RolloutStatusView"), &json!(2)));
    let (_, list, _) = cluster.run(&["-o", "json"]).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["name"]), (&json!("RolloutStatusViewList"), &json!("web")));
    let (_, yaml, _) = cluster.run(&["web", "-o", "yaml"]).await;
    assert!(yaml.contains("kind: RolloutStatusView\n"), "{yaml}");
    let (_, proposals, _) = cluster.run(&["__complete", "abort", "w"]).await;
    assert_eq!(proposals, "web\n:4\n");
}

#[tokio::test]
async fn what_may_not_be_read_is_named() {
    let cluster = Cluster::start().await;
    cluster.put("rollouts", rollout(9, stepping()));
    cluster.forbid("services");
    let (code, out, _) = cluster.run(&["web"]).await;
    assert_eq!(code, Some(0));
    assert!(out.contains("Note:     Service could not be read: services is forbidden: not for you\n"), "{out}");
    assert!(out.contains("Waiting:  waits for a person: 0 of 1 approvals\n"), "{out}");
    cluster.forbid("rollouts");
    let (code, _, err) = cluster.run(&["web"]).await;
    assert_eq!((code, err.as_str()), (Some(1), "error: rollouts is forbidden: not for you\n"));
}

#[tokio::test]
async fn a_watch_ends_with_the_code_of_what_it_saw() {
    let table = [
        ("promoted", promoted(), 0),
        ("finished", promoted(), 0),
        ("promoted", aborted(), 2),
        ("aborted", aborted(), 0),
        (
            "promoted",
            json!({"observedGeneration": 7, "revision": "another", "stableRevision": revision("v1"),
                            "phase": "Progressing", "release": {"revision": "another", "stages": 3}}),
            5,
        ),
    ];
    for (until, then, code) in table {
        let cluster = Cluster::start().await;
        cluster.put("rollouts", rollout(9, stepping()));
        cluster.put("analysisruns", failed_run());
        let mut child = cluster
            .command(&["web", "--until", until, "--timeout", "50s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The first line of the log says that it looks.
        let mut out = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut out, &mut first);
        tokio::time::timeout(Duration::from_secs(30), read).await.expect("a first line").unwrap();
        assert!(first.contains(" shop/web Paused, step 2/3, 20 %, revision "), "{first}");
        cluster.put("rollouts", rollout(10, then));
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.expect("it ends");
        let output = output.unwrap();
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "--until {until}: {err}");
        if code == 2 {
            assert_eq!(
                err.lines().last(),
                Some("metric error-rate was 0.031 at 14:00:54Z, must be at most 0.01"),
                "the last line is for whoever reads the log of a failed job"
            );
        }
    }
}

#[tokio::test]
async fn a_watch_gives_up_in_time_and_on_request_when_a_person_is_needed() {
    let cluster = Cluster::start().await;
    cluster.put("rollouts", rollout(9, stepping()));
    let (code, out, err) = cluster.run(&["web", "--until", "promoted", "--timeout", "1s"]).await;
    assert_eq!((code, out.lines().count()), (Some(3), 1), "{out}");
    assert!(err.starts_with("error: timed out after 1s for revision "), "{err}");
    let (code, _, err) = cluster.run(&["web", "--until", "promoted", "--fail-on-pause"]).await;
    assert_eq!(code, Some(4), "{err}");
    let (code, ..) = cluster.run(&["web", "--until", "paused"]).await;
    assert_eq!(code, Some(0));
    // Pinned to a revision that never comes.
    let (code, _, err) =
        cluster.run(&["web", "--until", "promoted", "--revision", "feedbeef", "--timeout", "1s"]).await;
    assert_eq!(code, Some(3));
    assert!(err.contains("feedbeef, which was not seen"), "{err}");
    // A machine reads one document a line.
    let (_, out, _) = cluster.run(&["web", "-w", "-o", "json", "--timeout", "1s"]).await;
    for line in out.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["kind"], "RolloutStatusView");
    }
    assert_eq!(out.lines().count(), 1, "{out}");
}

#[tokio::test]
async fn a_word_becomes_one_intervention_with_its_actor() {
    let cluster = Cluster::start().await;
    cluster.put("rollouts", rollout(9, stepping()));
    *cluster.outcome.lock().unwrap() = Some(json!({"outcome": "Applied", "message": "traffic goes back"}));
    let (code, out, err) = cluster.run(&["abort", "web", "--reason", "customers complain"]).await;
    assert_eq!(code, Some(0), "{err}");
    let expected = "rollout.sluice.dev/web abort: applied, by alice@example.com (web-abort-x7k2p): traffic goes back\n";
    assert_eq!(out, expected);
    let created = cluster.created.lock().unwrap().clone();
    assert_eq!(created.len(), 1);
    assert_eq!(
        created[0]["spec"],
        json!({"rollout": "web", "revision": revision("v2"), "attempt": 1, "action": "abort",
               "reason": "customers complain", "actor": "alice@example.com"})
    );
    let metadata = &created[0]["metadata"];
    assert_eq!(metadata["labels"], json!({names::ROLLOUT: "web"}));
    assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1");

    *cluster.outcome.lock().unwrap() = Some(json!({"outcome": "Refused", "message": "another revision is in flight"}));
    let (code, _, err) = cluster.run(&["promote", "web", "--full"]).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("was refused") && err.contains("another revision is in flight"), "{err}");

    *cluster.outcome.lock().unwrap() = None;
    let (code, _, err) = cluster.run(&["abort", "web", "--wait", "300ms"]).await;
    assert_eq!(code, Some(3), "nobody took it");
    assert!(err.contains("kubectl get intervention web-abort-x7k2p -n shop"), "{err}");
}

fn replica_set(version: &str) -> Value {
    let mut template = template(version);
    template["metadata"]["labels"][names::REVISION] = json!(revision(version));
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": format!("web-{}", revision(version)), "namespace": "shop", "uid": version,
            "resourceVersion": "3", "labels": {names::ROLLOUT: "web", names::REVISION: revision(version)},
            "ownerReferences": [{"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web", "uid": "u-1",
                "controller": true}]},
        "spec": {"replicas": 0, "template": template}, "status": {"replicas": 0}})
}

#[tokio::test]
async fn undo_writes_only_where_it_holds() {
    let cluster = Cluster::start().await;
    let owned_by = |manager: &str| {
        let mut object = rollout(9, promoted());
        object["metadata"]["managedFields"] = json!([
            {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:template": {}}}},
            {"manager": "sluice", "operation": "Update", "fieldsV1": {"f:status": {}}}]);
        object
    };
    for version in ["v1", "v2"] {
        cluster.put("replicasets", replica_set(version));
    }
    let refusal = async |object: Value, arguments: &[&str]| {
        cluster.put("rollouts", object);
        let (code, out, err) = cluster.run(arguments).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        err
    };
    let mut in_git = owned_by("sluice-sync");
    in_git["metadata"]["annotations"][names::DEPLOY_REPO] = json!("shop/deploy");
    let err = refusal(in_git, &["undo", "web"]).await;
    assert!(err.contains("DeployRepo shop/deploy") && err.contains("git revert 1a2b3c4d5e\n"), "{err}");
    let mut kept_elsewhere = owned_by("kubectl");
    kept_elsewhere["spec"].as_object_mut().unwrap().remove("template");
    kept_elsewhere["spec"]["workloadRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"});
    let err = refusal(kept_elsewhere, &["undo", "web"]).await;
    assert!(err.contains("kubectl rollout undo deployment/shop -n shop"), "{err}");
    let err = refusal(owned_by("argocd-controller"), &["undo", "web"]).await;
    assert!(err.contains("belongs to argocd-controller"), "{err}");
    let err = refusal(owned_by("kubectl"), &["undo", "web", "--to", "0000"]).await;
    assert!(err.contains(&format!("0000 is not known any more; known are {}", revision("v1"))), "{err}");
    let err = refusal(owned_by("kubectl"), &["undo", "web", "--to", &revision("v2")]).await;
    assert!(err.contains("already"), "{err}");
    assert!(cluster.created.lock().unwrap().is_empty(), "nothing was written so far");

    for arguments in [vec!["undo", "web"], vec!["undo", "ro/web", "--to", &revision("v1")[..6]]] {
        let (code, out, err) = cluster.run(&arguments).await;
        assert_eq!((code, err.as_str()), (Some(0), ""));
        assert!(out.contains(&format!("asks for revision {} again", revision("v1"))), "{out}");
        let patch = cluster.created.lock().unwrap().pop().unwrap();
        assert_eq!(patch[0], json!({"op": "test", "path": "/metadata/uid", "value": "u-1"}));
        assert_eq!(patch[1], json!({"op": "test", "path": "/metadata/generation", "value": 7}));
        assert_eq!(patch[2], json!({"op": "replace", "path": "/spec/template", "value": template("v1")}));
    }
}

#[tokio::test]
async fn where_there_is_nothing_to_say_nothing_is_written() {
    let cluster = Cluster::start().await;
    cluster.put("rollouts", rollout(9, promoted()));
    for verb in ["abort", "promote", "pause", "resume", "retry"] {
        let (code, out, err) = cluster.run(&[verb, "web"]).await;
        assert_eq!((code, out.as_str()), (Some(1), ""), "{verb}");
        assert!(err.starts_with("error: "), "{verb}: {err}");
    }
    assert!(cluster.created.lock().unwrap().is_empty());
}

const MANIFESTS: &str = "\
apiVersion: sluice.dev/v1alpha1
kind: Rollout
metadata: {name: web, namespace: shop}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: 'registry.example/web:v2'}]}}
  strategy:
    canary:
      stableService: web-stable
      canaryService: web-canary
      trafficRouting: {gatewayAPI: {httpRoutes: [{name: web}]}}
      analysis: {templates: [{templateName: error-rate}]}
      steps:
      - setWeight: 20
      - pause: {duration: 2m}
      - setWeight: 50
      - pause: {approvals: 1}
---
apiVersion: sluice.dev/v1alpha1
kind: AnalysisTemplate
metadata: {name: error-rate, namespace: shop}
spec:
  metrics:
  - name: error-rate
    interval: 10s
    threshold: {max: 0.01}
    provider: {prometheus: {name: main, query: 'sum(rate(errors[1m]))'}}
";

/// A directory with one file of manifests.
fn manifests(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web.yaml");
    std::fs::write(&file, text).unwrap();
    let file = file.to_string_lossy().into_owned();
    (directory, file)
}

#[test]
fn plan_tells_each_step_with_its_time() {
    let (directory, file) = manifests(MANIFESTS);
    let output = run(SLUICE, &["plan", "-f", &file]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((output.status.code(), err.as_str()), (Some(0), ""));
    assert!(out.starts_with("shop/web   Canary   registry.example/web:v0 -> registry.example/web:v2\n"), "{out}");
    let rows: Vec<Vec<&str>> = out
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
        .map(|line| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let labels: Vec<&str> = rows.iter().map(|row| row[1]).collect();
    assert_eq!(labels, ["20 %", "pause 2m", "50 %", "pause for 1 approval", "promote"]);
    assert_eq!(rows[0][3], "+0s");
    assert!(out.contains("1 approval by a person"), "{out}");
    assert!(out.contains("Assumed: HTTPRoute shop/web is not in the files; taken to exist and to fit.\n"), "{out}");
    assert!(!out.contains("AnalysisTemplate shop/error-rate"), "it is in the file: {out}");

    // A directory, and a program that reads it.
    let output = run(SLUICE, &["plan", "-f", &directory.path().to_string_lossy(), "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let steps = document["items"][0]["steps"].as_array().unwrap();
    let pause = steps[1]["endsAfterSeconds"].as_i64().unwrap() - steps[1]["startsAfterSeconds"].as_i64().unwrap();
    assert_eq!(pause, 120, "the pause of two minutes");
    assert_eq!((steps.len(), &steps[3]["needsPerson"]), (5, &json!(true)));
    assert!(document["items"][0]["endsAfterSeconds"].as_i64().unwrap() > 120);
    assert_eq!(document["errors"], json!([]));
}

#[test]
fn plan_names_document_and_field_of_every_fault() {
    let wrong = MANIFESTS
        .replace("- setWeight: 50", "- setWeight: 150")
        .replace("name: web, namespace", "name: bad, namespace");
    let (_directory, file) = manifests(&format!("{MANIFESTS}---\n{wrong}").replacen(
        "error-rate, namespace: shop",
        "other, namespace: shop",
        1,
    ));
    let output = run(SLUICE, &["plan", "-f", &file]);
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert_eq!(
        err,
        "error: web.yaml, document 3 (Rollout shop/bad): spec.strategy.canary.steps[2].setWeight: 150 is above 100\n"
    );
    assert!(text(&output.stdout).contains("shop/web   Canary"), "what makes sense is told all the same");

    for (from, to, expected) in [
        ("setWeight: 20", "setWieght: 20", "spec.strategy.canary.steps[0].setWieght: there is no such field"),
        ("duration: 2m", "duration: soon", "spec.strategy.canary.steps[1].pause.duration: "),
        ("stableService: web-stable", "stableService: web-canary", "spec.strategy.canary.canaryService: must differ"),
        ("max: 0.01", "max: 0.01, mxa: 1", "spec.metrics[0].threshold.mxa: there is no such field"),
        ("sluice.dev/v1alpha1\nkind: Rollout", "argoproj.io/v1alpha1\nkind: Rollout", "another project's Rollout"),
        ("kind: Rollout", "kind: [", "document 1: "),
        ("canary:", "blueGreen: {activeService: web}\n    canary:", "spec.strategy: name exactly one"),
    ] {
        let (_directory, file) = manifests(&MANIFESTS.replacen(from, to, 1));
        let output = run(SLUICE, &["plan", "-f", &file]);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{to}: {err}");
        assert!(err.starts_with("error: web.yaml, document ") && err.contains(expected), "{to}: {err}");
    }
    let missing = run(SLUICE, &["plan", "-f", "/nonexistent/web.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).starts_with("error: /nonexistent/web.yaml: "));
}

/// The subjects of the commits in a repository's log branch, oldest first.
fn subjects(repository: &Path) -> Vec<String> {
    let output = Command::new("git")
        .args(["-C", &repository.to_string_lossy(), "log", "--reverse", "--format=%s", "rollout-log/rehearsal"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

fn rehearsed(options: &[&str]) -> (Value, Vec<String>) {
    let (directory, file) = manifests(MANIFESTS);
    let ledger = directory.path().join("ledger");
    let kept = ledger.to_string_lossy().into_owned();
    let mut arguments = vec!["rehearse", "-f", file.as_str(), "--ledger", kept.as_str(), "-o", "json"];
    arguments.extend(options);
    let output = run(SLUICE, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let subjects = subjects(&ledger);
    let commits: Vec<String> = document["log"]["commits"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|line| line.as_str().unwrap().split_once(' ').unwrap().1.to_owned())
        .collect();
    assert_eq!(commits, subjects, "what is printed is what is in the repository");
    (document, subjects)
}

#[test]
fn a_rehearsal_that_goes_well_is_promoted_and_recorded() {
    let (document, subjects) = rehearsed(&[]);
    assert_eq!(document["outcome"], "Promoted");
    let expected = [
        "shop/web: FirstDeploy 1/5 0%→0%",
        "shop/web: Promoted 1/5 0%→100%",
        "shop/web: Started 1/5 0%→20%",
        "shop/web: StepCompleted 1/5 20%→20%",
        "shop/web: StepCompleted 2/5 20%→50%",
        "shop/web: Paused 4/5 50%→50%",
        "shop/web: StepCompleted 4/5 50%→100%",
        "shop/web: Promoted 5/5 100%→100%",
    ];
    let mut left = subjects.iter();
    for subject in expected {
        assert!(left.any(|line| line == subject), "{subject} in this order in {subjects:?}");
    }
    let lasted = document["lastedSeconds"].as_i64().unwrap();
    assert!((120..600).contains(&lasted), "two minutes of pause and some: {lasted}");
    let (slow, _) = rehearsed(&["--slow-pods", "4m"]);
    let longer = slow["lastedSeconds"].as_i64().unwrap() - lasted;
    assert!(longer >= 600, "three times new pods, each four minutes: {longer}");
}

#[test]
fn a_rehearsal_with_bad_metrics_is_aborted_at_that_step() {
    let (document, subjects) = rehearsed(&["--fail-at", "3"]);
    assert_eq!(document["outcome"], "Aborted");
    assert_eq!(subjects.last().map(String::as_str), Some("shop/web: Aborted 3/5 50%→0%"));
    let events = document["events"].as_array().unwrap();
    let abort = events.iter().find(|event| event["transition"] == "Aborted").unwrap();
    assert_eq!((&abort["step"], &abort["weightTo"]), (&json!(3), &json!(0)));
}

#[test]
fn a_rehearsal_without_data_holds_and_then_waits_for_a_person() {
    let (document, subjects) = rehearsed(&["--no-data-at", "3"]);
    assert_eq!(document["outcome"], "WaitsForPerson");
    assert_eq!(subjects[subjects.len() - 2..], ["shop/web: Held 3/5 50%→50%", "shop/web: Paused 3/5 50%→50%"]);
    assert!(!subjects.iter().any(|subject| subject.contains("Aborted") || subject.contains("5/5")), "{subjects:?}");
}

#[test]
fn a_rehearsal_reads_as_a_story_and_leaves_nothing_behind() {
    let (_directory, file) = manifests(MANIFESTS);
    let output = run(SLUICE, &["rehearse", "-f", &file, "--fail-at", "2"]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(out.contains("\n+0s      Started 1/5, 0 -> 20 %: "), "{out}");
    assert!(out.contains("Aborted 2/5, 20 -> 0 %: "), "{out}");
    assert!(out.contains("\nAborted, 0 % of traffic left on the new version: "), "{out}");
    assert!(out.contains("$ git log --oneline rollout-log/rehearsal   (--ledger DIR keeps the repository)\n"), "{out}");
    assert!(out.trim_end().ends_with("shop/web: FirstDeploy 1/5 0%→0%"), "{out}");
    for (options, expected) in [
        (&["--fail-at", "9"][..], "error: --fail-at: the Rollout has the steps 1 to 5\n"),
        (&["--rollout", "api"], "error: the files declare no Rollout api; they declare shop/web\n"),
        (&["--ledger", "/"], "error: --ledger: / is not empty\n"),
    ] {
        let mut arguments = vec!["rehearse", "-f", file.as_str()];
        arguments.extend(options);
        let output = run(SLUICE, &arguments);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), expected));
    }
}
