//! A canary in every kind of Secret: each is used by the loops that read it, and works, is refused, or cannot be
//! understood, while the other side repeats all it was given in every spelling. Nothing that the operator says, logs,
//! counts, writes to the API server or pushes may hold the canary.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use chrono::Utc;
use kube::core::DynamicObject;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::api::DeployRepoSpec;
use crate::cluster::apply::Applier;
use crate::cluster::client::client;
use crate::cluster::events::Events;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::Key;
use crate::cluster::write::{Gate, Writer};
use crate::controllers::analysis::AnalysisController;
use crate::controllers::credentials::{Remote, Secrets};
use crate::controllers::deploy_repo::{self, DeployRepos, SourceAddress, SyncTrigger};
use crate::controllers::ledger::{self, LedgerController, LedgerKey, Remotes, SecretRemotes};
use crate::controllers::projections::{self, ProjectionController, ProjectionKey};
use crate::controllers::queue::{Queue, QueueConfig};
use crate::git::{GitCache, RemoteAddress, Timeouts};
use crate::http::{Access, Limits, Repositories, serve_webhooks};
use crate::telemetry::{Metrics, Shutdown};

/// With letters that Base64 and addresses spell in another way.
const CANARY: &str = "canary/5d1e07+Zz=";
/// A key that opens nothing: made for tests.
const APP_KEY: &str = include_str!("../../forge/tests/app_key.pem");

/// The kinds of Secrets, by what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    SshKey,
    Password,
    AppKey,
    SigningKey,
    ForgeToken,
    WebhookToken,
    SlackAddress,
    TeamsAddress,
    ReceiverToken,
    MetricToken,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Works,
    /// The other side refuses it, and repeats it.
    Refused,
    /// It is of no shape that could be used.
    Misshapen,
    /// The API server's answer about the Secret cannot be understood.
    Garbled,
}

/// What was logged, at the finest level that may be asked for.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a secret is spelled on its way through HTTP and addresses.
fn spellings(secret: &str) -> Vec<String> {
    let escape = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") };
    let percent: String = secret.bytes().map(escape).collect();
    let mut forms =
        vec![secret.to_owned(), percent.replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d"), percent];
    for before in 0..3 {
        let text = STANDARD_NO_PAD.encode([vec![0; before], secret.as_bytes().to_vec()].concat());
        let (begin, end) = ((before * 8).div_ceil(6), (before + secret.len()) * 8 / 6);
        let part = text[begin..end].to_owned();
        forms.extend([part.replace('+', "-").replace('/', "_"), part]);
    }
    forms
}

/// And as `Debug` writes its bytes.
fn bytes(secret: &str) -> String {
    secret.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ")
}

/// The API server, and all that was written to it.
#[derive(Clone, Default)]
struct Api {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    written: Arc<Mutex<Vec<String>>>,
}

async fn api(State(api): State<Api>, method: Method, uri: Uri, body: Bytes) -> Response {
    let mut objects = api.objects.lock().unwrap();
    let path = uri.path().trim_end_matches("/status");
    if method != Method::GET {
        api.written.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
    }
    if method == Method::POST {
        return (StatusCode::CREATED, body).into_response();
    }
    let Some(object) = objects.get_mut(path) else {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}, "code": 404,
            "reason": "NotFound", "message": "not found", "details": {"name": "x"}});
        return (StatusCode::NOT_FOUND, axum::Json(status)).into_response();
    };
    if method == Method::PATCH {
        for operation in serde_json::from_slice::<Vec<Value>>(&body).unwrap() {
            if operation["op"] == "add" {
                object["status"] = operation["value"].clone();
            }
        }
        let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        object["metadata"]["resourceVersion"] = json!((version + 1).to_string());
    }
    axum::Json(object.clone()).into_response()
}

/// Everybody else: a git server, a forge, a receiver of messages, a Prometheus. It says all that it hears.
#[derive(Clone)]
struct Foreign {
    root: std::path::PathBuf,
    refuses: bool,
    /// What shows that the secret was used.
    heard: Arc<Mutex<Vec<String>>>,
}

async fn foreign(State(server): State<Foreign>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let proof = header("authorization");
    let known = proof.strip_prefix("Basic ").map(|pair| String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap());
    let heard = format!("{uri} {} {}", known.unwrap_or_else(|| proof.clone()), header("x-sluice-signature-256"));
    server.heard.lock().unwrap().push(heard.clone());
    let path = uri.path();
    let known = heard.contains(CANARY);
    if server.refuses && (known || path.starts_with("/hook") || path.ends_with("/access_tokens")) {
        let spelled = if known { spellings(CANARY).join(" ") } else { String::new() };
        let said = format!("{heard} {proof} {spelled} {}", String::from_utf8_lossy(&body));
        return (StatusCode::FORBIDDEN, [("x-you-gave", heard)], said).into_response();
    }
    let token = json!({"token": format!("ghs_{CANARY}"), "expires_at": Utc::now() + chrono::TimeDelta::hours(1)});
    match path {
        "/api/v3/app/installations/99/access_tokens" => (StatusCode::CREATED, axum::Json(token)).into_response(),
        path if path.starts_with("/api/v1/repos/") && method == Method::GET => axum::Json(json!([])).into_response(),
        path if path.starts_with("/api/v1/repos/") => (StatusCode::CREATED, axum::Json(json!({}))).into_response(),
        "/prometheus/api/v1/query" => {
            let result = json!([Utc::now().timestamp(), "0.01"]);
            let data = json!({"resultType": "scalar", "result": result});
            axum::Json(json!({"status": "success", "data": data})).into_response()
        }
        path if path.starts_with("/hook") => StatusCode::NO_CONTENT.into_response(),
        _ if proof.is_empty() => {
            (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"x\"")]).into_response()
        }
        _ => backend(&server.root, &method, &uri, &headers, body).await,
    }
}

/// `git http-backend`, on a thread of its own.
async fn backend(root: &Path, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let mut command = Command::new("git");
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "sluice")
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let run = move || {
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let feed = std::thread::spawn(move || drop(input.write_all(&body)));
        let output = child.wait_with_output().unwrap().stdout;
        feed.join().unwrap();
        output
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = if name == "Status" { response.status(&value[..3]) } else { response.header(name, value) };
    }
    response.body(output[end + 4..].to_vec().into()).unwrap()
}

async fn serve(router: Router) -> String {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

struct Leads;
impl Gate for Leads {
    fn may_write(&self) -> bool {
        true
    }
}

/// The webhook receiver's questions, answered as the operator does.
struct Hooks(Arc<DeployRepos<GitCache>>);
impl Repositories for Hooks {
    async fn access(&self, namespace: &str, name: &str) -> Access {
        match self.0.webhook_token(&Key::new(namespace, name)).await {
            Ok(Some(Some(token))) => Access::Token(token),
            Ok(_) => Access::Unknown,
            Err(error) => {
                tracing::warn!(namespace, name, %error, "the webhook's token cannot be read");
                Access::Unavailable
            }
        }
    }
    fn look_now(&self, _: &str, _: &str) {}
}

/// The loops of an operator, between an API server and everybody else.
struct Stage {
    holds: Holds,
    fate: Fate,
    api: Api,
    client: kube::Client,
    address: String,
    heard: Arc<Mutex<Vec<String>>>,
    index: Arc<Index>,
    metrics: Metrics,
    cache: GitCache,
    /// What was said: outcomes, errors with their sources, `Debug` of what carries a secret.
    said: Vec<String>,
    /// What must not be said.
    secrets: Vec<String>,
    directory: tempfile::TempDir,
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("--git-dir").arg(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An SSH key that opens nothing.
fn ssh_key(directory: &Path) -> String {
    let file = directory.join("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", CANARY, "-f"]).arg(&file).status();
    assert!(made.unwrap().success());
    std::fs::read_to_string(file).unwrap()
}

/// The lines of a key that are secret by themselves.
fn lines(key: &str) -> Vec<String> {
    key.lines().filter(|line| !line.starts_with("-----") && line.len() > 20).map(str::to_owned).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!("\n{error} {error:?}");
        next = error.source();
    }
    text
}

impl Stage {
    async fn new(holds: Holds, fate: Fate) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let remote = directory.path().join("shop/deploy");
        std::fs::create_dir_all(&remote).unwrap();
        git(&remote, &["init", "-q", "--bare", "-b", "main"]);
        git(&remote, &["config", "http.receivepack", "true"]);
        let tree = git(&remote, &["hash-object", "-t", "tree", "-w", "/dev/null"]);
        let who = ["-c", "user.name=x", "-c", "user.email=x@x"];
        let commit = git(&remote, &[&who[..], &["commit-tree", "-m", "one", tree.trim()]].concat());
        git(&remote, &["update-ref", "refs/heads/main", commit.trim()]);
        let heard = Arc::default();
        let refuses = fate == Fate::Refused && holds != Holds::SigningKey;
        let server = Foreign { root: directory.path().to_owned(), refuses, heard: Arc::clone(&heard) };
        let address = serve(Router::new().fallback(foreign).with_state(server)).await;
        let state = Api::default();
        let api_server = serve(Router::new().fallback(api).with_state(state.clone())).await;
        let short = Duration::from_secs(20);
        let timeouts = Timeouts { ask: short, fetch: short, push: short, ..Timeouts::default() };
        let ssh = directory.path().join("ssh");
        let cache = GitCache::new(directory.path().join("cache")).unwrap().with_timeouts(timeouts).with_ssh(&ssh);
        let refuse = match fate {
            Fate::Refused => "sed 's/^/fatal: your key is /' \"$4\" >&2; exit 255",
            _ => "for command; do :; done; eval \"exec git ${command#git-}\"",
        };
        // `$4` is the file of the key: `-F /dev/null -i <file>`.
        std::fs::write(&ssh, format!("#!/bin/sh\ncat \"$4\" >> '{}/heard'\n{refuse}\n", directory.path().display()))
            .unwrap();
        std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            holds,
            fate,
            api: state,
            client: client(kube::Config::new(api_server.parse().unwrap())).unwrap(),
            address,
            heard,
            index: Arc::default(),
            metrics: Metrics::new(),
            cache,
            said: Vec::new(),
            secrets: vec![CANARY.to_owned()],
            directory,
        }
    }

    fn put(&self, kind: Kind, path: &str, mut object: Value) {
        object["apiVersion"] = json!("sluice.dev/v1alpha1");
        object["kind"] = json!(kind.name());
        let known = self.api.objects.lock().unwrap().get(path).cloned().unwrap_or_default();
        let version = known["metadata"]["resourceVersion"].as_str().map_or(1, |text| text.parse::<u64>().unwrap() + 1);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object["metadata"]["uid"] = json!(path);
        if !kind.is_cluster_scoped() {
            object["metadata"]["namespace"] = json!("shop");
        }
        self.api.objects.lock().unwrap().insert(path.to_owned(), object.clone());
        self.index.apply(kind, &serde_json::from_value::<DynamicObject>(object).unwrap());
    }

    /// What the watch brings.
    fn see(&self) {
        for (kind, path) in [(Kind::DeployRepo, DEPLOY_REPO), (Kind::Rollout, ROLLOUT)] {
            let object = self.api.objects.lock().unwrap().get(path).cloned();
            let Some(object) = object else { continue };
            self.index.apply(kind, &serde_json::from_value::<DynamicObject>(object).unwrap());
        }
    }

    fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let subject = name == "subject";
        let data: BTreeMap<&str, Value> = data
            .iter()
            .map(|(key, value)| {
                let value = if subject && self.fate == Fate::Misshapen {
                    format!("{value}\n\u{1}{value}")
                } else {
                    (*value).into()
                };
                (*key, json!(STANDARD.encode(value)))
            })
            .collect();
        let mut data = json!(data);
        if subject && self.fate == Fate::Garbled {
            // As an API server never answers, or a proxy before it does.
            data = json!(format!("{CANARY} {}", self.secrets.join(" ")));
        }
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "shop"}, "data": data});
        self.api.objects.lock().unwrap().insert(format!("/api/v1/namespaces/shop/secrets/{name}"), secret);
    }

    /// Declares what reads the Secret `subject`, and the Secret.
    fn declare(&mut self) {
        let url = format!("{}/shop/deploy", self.address);
        self.secret("git", &[("username", "sluice"), ("password", "opens")]);
        let mut spec = json!({"url": url, "secretRef": {"name": "git"}, "forge": {"type": "gitea"}});
        let projection = |to: &str| json!([{"name": "tell", "to": to, "secretRef": {"name": "subject"}}]);
        let hook = format!("{}/hook/{CANARY}", self.address);
        match self.holds {
            Holds::SshKey | Holds::SigningKey => {
                let key = ssh_key(self.directory.path());
                self.secrets.extend(lines(&key));
                if self.holds == Holds::SigningKey {
                    // A key that ssh-keygen does not take is the refusal here.
                    let broken =
                        format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{CANARY}\n-----END OPENSSH PRIVATE KEY-----");
                    self.secret("subject", &[("identity", if self.fate == Fate::Refused { &broken } else { &key })]);
                    spec["log"] = json!({"signing": {"secretRef": {"name": "subject"}}});
                } else {
                    self.secret("subject", &[("identity", &key), ("known_hosts", "git.example ssh-ed25519 AAAA")]);
                    let remote = self.directory.path().join("shop/deploy");
                    spec = json!({"url": format!("ssh://git@git.example{}", remote.display()), "secretRef": {"name": "subject"}});
                }
            }
            Holds::Password => {
                self.secret("subject", &[("username", "sluice"), ("password", CANARY)]);
                spec["secretRef"]["name"] = json!("subject");
            }
            Holds::AppKey => {
                self.secrets.extend(lines(APP_KEY));
                let key = format!("{CANARY}\n{APP_KEY}");
                let ids =
                    [("githubAppID", "4711"), ("githubAppInstallationID", "99"), ("githubAppPrivateKey", key.as_str())];
                self.secret("subject", &ids);
                spec["secretRef"]["name"] = json!("subject");
                spec["forge"]["type"] = json!("gitHub");
            }
            Holds::ForgeToken => {
                self.secret("subject", &[("token", CANARY)]);
                spec["forge"]["secretRef"] = json!({"name": "subject"});
                spec["projections"] = json!([{"name": "tell", "to": "commitStatus"}]);
            }
            Holds::WebhookToken => {
                let data = [("username", "sluice"), ("password", "opens"), ("webhookToken", CANARY)];
                self.secret("subject", &data);
                spec["secretRef"]["name"] = json!("subject");
            }
            Holds::SlackAddress | Holds::TeamsAddress => {
                self.secret("subject", &[("address", &hook)]);
                spec["projections"] = projection(if self.holds == Holds::SlackAddress { "slack" } else { "teams" });
            }
            Holds::ReceiverToken => {
                let address = format!("{}/hook", self.address);
                self.secret("subject", &[("address", &address), ("token", CANARY)]);
                spec["projections"] = projection("webhook");
            }
            Holds::MetricToken => {
                self.secret("subject", &[("token", CANARY)]);
                let server = json!({"address": format!("{}/prometheus", self.address),
                    "bearerToken": {"name": "subject", "key": "token"}});
                let provider = json!({"metadata": {"name": "prom"}, "spec": {"prometheus": server}});
                self.put(Kind::MetricProvider, "/prom", provider);
                let query = json!({"kind": "MetricProvider", "name": "prom", "query": "up"});
                let metrics = json!([{"name": "errors", "interval": "1s", "count": 1, "threshold": {"max": 0.05},
                    "provider": {"prometheus": query}}]);
                self.put(Kind::AnalysisRun, ANALYSIS, json!({"metadata": {"name": "run"},
                    "spec": {"rollout": "web", "revision": "abc", "attempt": 1, "stage": "background", "metrics": metrics}}));
            }
        }
        self.put(Kind::DeployRepo, DEPLOY_REPO, json!({"metadata": {"name": "deploy", "generation": 1}, "spec": spec}));
        self.transition(1);
    }

    /// The Rollout has something to record.
    fn transition(&self, number: i64) {
        let pending = json!([{"sequence": number, "event": "Promoted", "at": Utc::now(), "stage": 1, "stages": 2,
            "weightFrom": 20, "weightTo": 100, "revisionTo": "abc", "attempt": 1, "reason": "r", "message": "m",
            "sourceCommit": "1234567890123456789012345678901234567890"}]);
        self.put(
            Kind::Rollout,
            ROLLOUT,
            json!({"metadata": {"name": "web", "generation": number},
            "spec": {"selector": {}, "template": {}, "strategy": {}},
            "status": {"phase": "Ready", "stableRevision": "abc", "sequence": number, "pendingLog": pending}}),
        );
    }

    /// Every loop that reads the Secret has its turn.
    async fn run(&mut self) {
        let observer = Arc::new(self.metrics.clone());
        let leads = Arc::new(Leads);
        let writer = Writer::new(self.client.clone(), Arc::clone(&self.index), leads.clone(), observer.clone());
        let applier = || Applier::new(self.client.clone(), leads.clone(), observer.clone());
        let secrets = Secrets::new(Arc::new(applier()));
        if self.holds == Holds::MetricToken {
            return self
                .analyse(AnalysisController::new(writer, applier(), "sluice-system".into(), self.metrics.clone()))
                .await;
        }
        let repo = Key::new("shop", "deploy");
        let spec: DeployRepoSpec = {
            let objects = self.api.objects.lock().unwrap();
            serde_json::from_value(objects[DEPLOY_REPO]["spec"].clone()).unwrap()
        };

        // What carries a secret, and why it cannot be had.
        match secrets.access("shop", &Remote::read(&spec)).await {
            Ok(access) => {
                self.said.push(format!("{access:?}"));
                let branch = spec.branch.clone();
                self.said.push(format!("{:?}", SourceAddress { url: spec.url.clone(), branch, path: None, access }));
            }
            Err(error) => self.said.push(chain(&error)),
        }
        match secrets.signing_key("shop", &spec).await {
            Ok(Some(key)) => self.said.push(format!("{:?}", self.cache.signer(&key).map_err(|error| chain(&error)))),
            Ok(None) => {}
            Err(error) => self.said.push(chain(&error)),
        }
        match secrets.forge("shop", &spec).await {
            Ok(forge) => self.said.push(format!("{forge:?}")),
            Err(error) => self.said.push(chain(&error)),
        }
        let remotes = SecretRemotes { secrets: secrets.clone(), cache: self.cache.clone() };
        if let Err(trouble) = remotes.open("shop", &spec).await {
            self.said.push(format!("{trouble:?}"));
        }

        // The sync.
        let trigger = SyncTrigger::new(Queue::new("deploy-repo", deploy_repo::queue_config()));
        let cache = self.cache.clone();
        let (namespace, repos_applier) = ("sluice-system".to_owned(), Arc::new(applier()));
        let repos = DeployRepos::new(repos_applier, secrets.clone(), writer.clone(), cache, namespace, trigger);
        self.said.push(format!("{:?}", repos.turn(repo.clone()).await));
        self.see();
        if self.holds == Holds::WebhookToken {
            self.call(Hooks(Arc::new(repos))).await;
        }

        // The log, and those who are told of it: two turns, for a projection begins where it is declared.
        let (events, sending) = Events::start(self.client.clone(), "me", self.metrics.clone());
        let ledger = LedgerController::new(ledger::Parts {
            writer: writer.clone(),
            remotes,
            cluster: "prod".into(),
            operator_namespace: "sluice-system".into(),
            queue: Queue::new("ledger", ledger::queue_config()),
            rollouts: Queue::new("rollout", QueueConfig::default()),
            events,
            metrics: self.metrics.clone(),
            now: Utc::now,
        });
        let projections = ProjectionController::new(projections::Parts {
            writer,
            secrets,
            entries: self.cache.clone(),
            cluster: "prod".into(),
            operator_namespace: "sluice-system".into(),
            queue: Queue::new("projection", projections::queue_config()),
            metrics: self.metrics.clone(),
            now: Utc::now,
        });
        let identity = RemoteAddress::parse(&spec.url).unwrap().identity();
        let key = LedgerKey { repository: identity, cluster: "prod".into() };
        for number in 1..=2 {
            self.transition(number);
            self.said.push(format!("{:?}", ledger.turn(key.clone()).await));
            self.see();
            let told = projections.turn(ProjectionKey { repo: repo.clone(), name: "tell".into() }).await;
            self.said.push(format!("{told:?}"));
            self.see();
        }
        drop(ledger);
        sending.await.unwrap();
    }

    async fn analyse(&self, analyses: AnalysisController) {
        let (trigger, shutdown) = Shutdown::new();
        analyses.look_at_all();
        let running = tokio::spawn(async move { analyses.run(shutdown).await });
        let begun = Instant::now();
        while self.api.objects.lock().unwrap()[ANALYSIS].pointer("/status/metrics/0/measurements/0").is_none() {
            assert!(begun.elapsed() < Duration::from_secs(20), "no measurement");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(trigger);
        running.abort();
    }

    /// Calls the webhook, with the token or with another one.
    async fn call(&mut self, hooks: Hooks) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/hooks/shop/deploy", listener.local_addr().unwrap());
        let (trigger, shutdown) = Shutdown::new();
        let limits = Limits::default();
        let serving = tokio::spawn(serve_webhooks(listener, hooks, limits, self.metrics.clone(), shutdown));
        let right = self.fate == Fate::Works;
        for (header, value) in [
            ("x-gitlab-token", CANARY.to_owned()),
            ("authorization", format!("Bearer {CANARY}")),
            ("x-hub-signature-256", format!("sha256={CANARY}")),
        ] {
            let value = if right { value } else { format!("{value}-wrong") };
            let answer = reqwest::Client::new().post(&address).header(header, value).body(CANARY).send().await.unwrap();
            let used = right && answer.status() == StatusCode::ACCEPTED;
            self.heard.lock().unwrap().extend(used.then(|| CANARY.to_owned()));
            self.said.push(format!("{:?} {}", answer.status(), answer.text().await.unwrap()));
        }
        self.said.push(format!("{:?}", Access::Token(CANARY.to_owned())));
        drop(trigger);
        serving.abort();
    }

    /// The Secret was put to use, or the case shows nothing.
    fn was_used(&self) -> bool {
        let heard = self.heard.lock().unwrap().join("\n");
        match self.holds {
            Holds::SshKey => {
                let given = std::fs::read_to_string(self.directory.path().join("heard")).unwrap_or_default();
                self.secrets[1..].iter().all(|line| given.contains(line))
            }
            Holds::SigningKey => {
                let remote = self.directory.path().join("shop/deploy");
                self.fate == Fate::Refused || git(&remote, &["cat-file", "-p", "rollout-log/prod"]).contains("gpgsig")
            }
            Holds::AppKey if self.fate == Fate::Refused => heard.contains("access_tokens Bearer ey"),
            Holds::AppKey => heard.contains(&format!("x-access-token:ghs_{CANARY}")),
            Holds::ReceiverToken => heard.contains("sha256="),
            Holds::WebhookToken if self.fate == Fate::Refused => true,
            _ => heard.contains(CANARY),
        }
    }

    /// Where the secret is seen, and in which spelling.
    fn leaks(&self, log: &Log) -> Vec<String> {
        let remote = self.directory.path().join("shop/deploy");
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("the finest level is heard"), "{log}");
        let places = [
            ("the log", log),
            ("the metrics", self.metrics.encode()),
            ("what is said", self.said.join("\n")),
            ("the API server", self.api.written.lock().unwrap().join("\n")),
            ("the commits", git(&remote, &["log", "--all", "-p", "--format=raw"])),
        ];
        let mut found = Vec::new();
        for secret in &self.secrets {
            for spelling in spellings(secret).into_iter().chain([bytes(secret)]) {
                for (place, text) in &places {
                    if let Some(at) = text.find(&spelling) {
                        let from = text[..at].char_indices().rev().nth(120).map_or(0, |(at, _)| at);
                        found.push(format!("{place}: {}", &text[from..at + spelling.len()]));
                    }
                }
            }
        }
        found
    }
}

const DEPLOY_REPO: &str = "/apis/sluice.dev/v1alpha1/namespaces/shop/deployrepos/deploy";
const ROLLOUT: &str = "/apis/sluice.dev/v1alpha1/namespaces/shop/rollouts/web";
const ANALYSIS: &str = "/apis/sluice.dev/v1alpha1/namespaces/shop/analysisruns/run";

/// One kind of Secret, in all that may become of it.
async fn nothing_shows(holds: Holds) {
    for fate in [Fate::Works, Fate::Refused, Fate::Misshapen, Fate::Garbled] {
        let log = Log::default();
        let taken = log.clone();
        let logs = crate::telemetry::logs("trace", move || taken.clone()).unwrap();
        let _guard = tracing::subscriber::set_default(logs);
        tracing::trace!("the finest level is heard");
        let mut stage = Stage::new(holds, fate).await;
        stage.declare();
        stage.run().await;
        assert_eq!(stage.leaks(&log), Vec::<String>::new(), "{holds:?}, {fate:?}");
        if matches!(fate, Fate::Works | Fate::Refused) {
            assert!(stage.was_used(), "{holds:?}, {fate:?}: {:?} {:?}", stage.said, stage.heard);
        }
    }
}

macro_rules! nothing_shows {
    ($($name:ident: $holds:ident),+ $(,)?) => {
        $(#[tokio::test] async fn $name() { nothing_shows(Holds::$holds).await; })+
    };
}

nothing_shows! {
    an_ssh_key_is_seen_nowhere: SshKey,
    a_password_is_seen_nowhere: Password,
    the_key_of_a_github_app_and_its_token_are_seen_nowhere: AppKey,
    a_signing_key_is_seen_nowhere: SigningKey,
    the_token_of_a_forge_is_seen_nowhere: ForgeToken,
    the_token_of_a_webhook_is_seen_nowhere: WebhookToken,
    the_address_of_a_slack_channel_is_seen_nowhere: SlackAddress,
    the_address_of_a_teams_channel_is_seen_nowhere: TeamsAddress,
    the_token_of_a_receiver_is_seen_nowhere: ReceiverToken,
    the_token_of_a_metric_provider_is_seen_nowhere: MetricToken,
}

/// The observer of this page sees what it is there for.
#[test]
fn a_secret_is_found_in_every_spelling() {
    for text in [
        CANARY.to_owned(),
        format!("Basic {}", STANDARD.encode(format!("sluice:{CANARY}"))),
        format!("?t={}", URL_SAFE_NO_PAD.encode(format!("xy{CANARY}!"))),
        "/canary%2F5d1e07%2BZz%3D".to_owned(),
    ] {
        assert!(spellings(CANARY).iter().any(|spelling| text.contains(spelling)), "{text}");
    }
    assert!(format!("{:?}", format!("{CANARY}x").into_bytes()).contains(&bytes(CANARY)));
}
