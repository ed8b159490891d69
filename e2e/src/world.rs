//! What every story has: a cluster with the operator installed by its chart, a git server, and a shop of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use crate::cluster::{Cluster, Component, Options, Ready, said};
use crate::command::{Command, Output};
use crate::forge::{Forge, Repository, SshKey};
use crate::git_server::GitServer;
use crate::images;
use crate::progress::timed;
use crate::tools::{Tools, project};
use crate::traffic::Traffic;
use crate::wait::wait_for;
use crate::work_tree::{LogEntry, WorkTree};

/// The operator's namespace.
pub const OPERATOR_NAMESPACE: &str = "sluice-system";
/// The cluster's name in the log branch.
pub const CLUSTER_NAME: &str = "demo";
/// The log branch.
pub const LOG_BRANCH: &str = "rollout-log/demo";
/// The one DeployRepo of a shop, in the shop's own namespace.
pub const REPO: &str = "deploy";

/// What signs the calls of the webhook, for every shop.
const WEBHOOK_TOKEN: &str = "a-webhook-token";

/// How the operator reaches a repository on the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// As a user of the forge, by its token; the forge's certificate has an authority of its own.
    Https,
    /// By a deploy key of the repository.
    Ssh,
}

/// A cluster, the operator in it, and a git server beside it.
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// The git server; locked while it is stopped or started.
    pub git: Mutex<GitServer>,
    forge: OnceCell<Forge>,
    /// Where the tools are.
    pub tools: Tools,
    folder: tempfile::TempDir,
    repositories: PathBuf,
    binaries: PathBuf,
    images: Images,
    shops: AtomicU32,
    requests: u32,
    /// The cluster's name in the log.
    pub name: &'static str,
}

/// What the cluster runs.
struct Images {
    operator: String,
    demo: String,
    pull_policy: &'static str,
}

impl World {
    /// Installs the operator on somebody else's cluster, which can pull both images. `SLUICE_E2E_IMAGE` is the
    /// operator's, `SLUICE_E2E_DEMO` the repository of the demo application with its versions as tags; see
    /// [`Cluster::connect`] for what else the environment must say.
    pub async fn connect(tools: &Tools, kubeconfig: &Path) -> Result<Self> {
        let binaries = timed("the operator's binaries", binaries()).await?;
        let images = Images {
            operator: said("SLUICE_E2E_IMAGE", "the operator's image, as repository:tag")?,
            demo: said("SLUICE_E2E_DEMO", "the repository of the demo application's image")?,
            pull_policy: "IfNotPresent",
        };
        let cluster = Cluster::connect(tools, kubeconfig).await?;
        Self::on(cluster, tools, binaries, images, CLUSTER_NAME).await
    }

    /// Builds the images, boots a cluster and installs the operator.
    pub async fn start(tools: &Tools) -> Result<Self> {
        Self::start_as(tools, CLUSTER_NAME).await
    }

    /// The same for a cluster of another name in the log, beside the first.
    pub async fn start_as(tools: &Tools, name: &'static str) -> Result<Self> {
        let binaries = timed("the operator's binaries", binaries()).await?;
        let demo = timed("image of the demo application", images::demo_archive(tools)).await?;
        let operator =
            timed("image of the operator", images::operator_archive(tools, &binaries.join("sluice"))).await?;
        let cluster = Cluster::start(tools, Options { images: vec![demo, operator] }).await?;
        let images = Images {
            operator: images::OPERATOR.to_owned(),
            demo: images::DEMO.to_owned(),
            // They come from nowhere but the archives.
            pull_policy: "Never",
        };
        Self::on(cluster, tools, binaries, images, name).await
    }

    async fn on(
        cluster: Cluster,
        tools: &Tools,
        binaries: PathBuf,
        images: Images,
        name: &'static str,
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let repositories = cluster.dir().unwrap_or_else(|| folder.path().to_owned()).join("git");
        let git = GitServer::start(repositories.clone(), cluster.host_address()).await?;
        let world = Self {
            cluster,
            git: Mutex::new(git),
            forge: OnceCell::new(),
            tools: tools.clone(),
            folder,
            repositories,
            binaries,
            images,
            shops: AtomicU32::new(0),
            requests: 50,
            name,
        };
        timed("the operator, by its chart", world.install()).await?;
        Ok(world)
    }

    /// Installs the operator by its chart, or again.
    pub async fn install(&self) -> Result<()> {
        let (repository, tag) = self.images.operator.rsplit_once(':').context("the image has no tag")?;
        self.helm()?
            .args(["upgrade", "--install", "sluice"])
            .arg(project().join("charts/sluice"))
            .args(["--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--wait", "--timeout", "120s"])
            .args(["--set", &format!("image.repository={repository}"), "--set", &format!("image.tag={tag}")])
            .args(["--set", &format!("image.pullPolicy={}", self.images.pull_policy)])
            .args(["--set", &format!("clusterName={}", self.name)])
            .args(["--set", "sync.enabled=true"])
            .within(Duration::from_secs(150))
            .ok()
            .await
            .context("cannot install the chart")?;
        self.helm()?
            .args(["test", "sluice", "--namespace", OPERATOR_NAMESPACE, "--timeout", "60s"])
            .within(Duration::from_secs(90))
            .ok()
            .await
            .context("helm test")?;
        let provider = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "ClusterMetricProvider", "metadata": {"name": "prometheus"},
            "spec": {"prometheus": {"address": self.cluster.prometheus_address(), "timeout": "3s"}}
        });
        self.apply(&provider.to_string()).await
    }

    /// Leaves cluster and git server running; the git server in a process of its own, at the same address.
    pub async fn keep(self) -> Result<()> {
        let dir = self.cluster.dir().context("only a cluster that was booted here can be kept")?;
        let mut git = self.git.into_inner();
        git.stop().await;
        let settings = dir.join("git-settings.json");
        git.save(&settings)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Component::new(&dir, "git", dir.join("e2e"))
            .args(["git-server".to_owned(), format!("--root={}", text(&self.repositories))])
            .args([format!("--address={}", git.address()), format!("--settings={}", text(&settings))])
            .ready_when(Ready::Listens(git.address()))
            .start()
            .await?;
        if let Some(forge) = self.forge.into_inner() {
            forge.keep()?;
        }
        self.cluster.keep()
    }

    /// Starts again what a story left broken.
    pub async fn mend(&self) -> Result<()> {
        self.git.lock().await.start_again().await?;
        if let Some(forge) = self.forge.get() {
            forge.mend().await?;
        }
        self.cluster.mend().await
    }

    /// `helm` for this cluster.
    pub fn helm(&self) -> Result<Command> {
        Ok(Command::new(self.tools.program("helm")?).env("KUBECONFIG", self.cluster.kubeconfig()))
    }

    /// `kubectl rollout-status …`, as a person runs it.
    pub fn plugin(&self) -> Result<Command> {
        Ok(Command::new(self.binaries.join("kubectl-rollout_status")).env("KUBECONFIG", self.cluster.kubeconfig()))
    }

    /// Applies manifests.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        self.cluster.kubectl()?.args(["apply", "--server-side", "-f", "-"]).input(manifests).ok().await?;
        Ok(())
    }

    /// The operator's pods.
    pub async fn operator_pods(&self) -> Result<Vec<DynamicObject>> {
        let pods = self.objects("", "v1", "Pod", "pods", OPERATOR_NAMESPACE);
        let all = pods.list(&kube::api::ListParams::default().labels("app.kubernetes.io/name=sluice")).await?;
        Ok(all.items)
    }

    /// The name of the pod that leads now.
    pub async fn leader(&self) -> Result<String> {
        let leases = self.objects("coordination.k8s.io", "v1", "Lease", "leases", OPERATOR_NAMESPACE);
        let lease = leases.get("sluice-operator").await?;
        let holder = lease.data.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default();
        if holder.is_empty() { bail!("nobody leads") } else { Ok(holder.to_owned()) }
    }

    /// Kills the leader's process at once: no grace, no hand-over.
    pub async fn kill_leader(&self) -> Result<String> {
        let leader = self.leader().await?;
        let pods = self.operator_pods().await?;
        let pod = pods.iter().find(|pod| leader.starts_with(&pod.name_any())).context("the leader's pod is gone")?;
        let name = pod.name_any();
        self.cluster
            .kubectl()?
            .args(["-n", OPERATOR_NAMESPACE, "delete", "pod", &name, "--grace-period=0", "--force", "--wait=false"])
            .ok()
            .await?;
        Ok(name)
    }

    /// Objects of any kind.
    pub fn objects(&self, group: &str, version: &str, kind: &str, plural: &str, namespace: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Api::namespaced_with(self.cluster.client(), namespace, &resource)
    }

    /// A real forge beside the cluster; the first who asks starts it.
    pub async fn forge(&self) -> Result<&Forge> {
        self.forge
            .get_or_try_init(async || {
                let dir = self.cluster.dir().unwrap_or_else(|| self.folder.path().to_owned());
                Forge::start(&self.tools, &dir, self.cluster.host_address()).await
            })
            .await
    }

    /// A namespace with a deploy repository of its own, in which nothing is declared yet.
    pub async fn shop(&self, name: &str) -> Result<Shop<'_>> {
        let namespace = self.namespace(name);
        let webhook = self.webhook_url(&namespace).await?;
        let url = {
            let git = self.git.lock().await;
            let url = git.create(&namespace).await?;
            git.set_webhook(&namespace, &webhook, Some(WEBHOOK_TOKEN));
            url
        };
        let tree = WorkTree::clone(&url, self.folder.path().join(&namespace)).await?;
        self.declared(namespace, url, json!({}), tree).await
    }

    /// The same with a private repository on the forge, as the person who owns it reaches it.
    pub async fn shop_on_forge(&self, name: &str, transport: Transport) -> Result<(Shop<'_>, Repository)> {
        let namespace = self.namespace(name);
        let forge = self.forge().await?;
        let person = forge.create_user(&namespace).await?;
        let repository = person.create_repository("deploy").await?;
        repository.add_webhook(&self.webhook_url(&namespace).await?, WEBHOOK_TOKEN).await?;
        let (url, secret) = match transport {
            Transport::Https => {
                let operator = forge.create_user(&format!("{namespace}-sluice")).await?;
                repository.add_collaborator(operator.name(), false).await?;
                let secret = json!({"username": operator.name(), "password": operator.token(),
                    "ca.crt": forge.certificate_authority()});
                (repository.https_url(), secret)
            }
            Transport::Ssh => {
                let key = SshKey::make(self.folder.path().join(format!("{namespace}-key")), "sluice")?;
                repository.add_deploy_key("sluice", key.public(), false).await?;
                (repository.ssh_url(), json!({"identity": key.identity(), "known_hosts": forge.known_hosts()}))
            }
        };
        let folder = self.folder.path().join(&namespace);
        let tree = WorkTree::clone_with(&repository.https_url_with_token(), folder, forge.environment(None)?).await?;
        Ok((self.declared(namespace, url, secret, tree).await?, repository))
    }

    /// The shop of another cluster, declared here as well: the same namespace, repository and path.
    pub async fn shop_of(&self, other: &Shop<'_>) -> Result<Shop<'_>> {
        let folder = self.folder.path().join(&other.namespace);
        let tree = WorkTree::clone(&other.url, folder).await?;
        let shop = Shop {
            world: self,
            namespace: other.namespace.clone(),
            host: other.host.clone(),
            tree,
            url: other.url.clone(),
            secret: other.secret.clone(),
            repo_spec: other.repo_spec.clone(),
            beside: other.beside.clone(),
            replaced: other.replaced.clone(),
        };
        shop.declare_repository().await?;
        Ok(shop)
    }

    fn namespace(&self, name: &str) -> String {
        format!("{name}-{}", self.shops.fetch_add(1, Ordering::Relaxed))
    }

    async fn declared(&self, namespace: String, url: String, mut secret: Value, tree: WorkTree) -> Result<Shop<'_>> {
        secret["webhookToken"] = json!(WEBHOOK_TOKEN);
        let host = format!("web.{namespace}.test");
        let shop = Shop {
            world: self,
            host,
            namespace,
            tree,
            url,
            secret,
            repo_spec: json!({}),
            beside: Vec::new(),
            replaced: Vec::new(),
        };
        shop.declare_repository().await?;
        Ok(shop)
    }

    async fn webhook_url(&self, namespace: &str) -> Result<String> {
        let services = self.objects("", "v1", "Service", "services", OPERATOR_NAMESPACE);
        let service = services.get("sluice-webhook").await.context("the chart's webhook Service")?;
        let address = service.data.pointer("/spec/clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(format!("http://{address}:9292/hooks/{namespace}/{REPO}"))
    }
}

/// Builds what the stories run, where it is not built yet.
async fn binaries() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo)
        .args(["build", "--quiet", "--profile", "image", "--workspace", "--bins"])
        .dir(project())
        .within(Duration::from_secs(1800))
        .ok()
        .await?;
    Ok(project().join("target/image"))
}

/// A namespace with a Rollout `web`, declared in a repository of its own.
pub struct Shop<'w> {
    world: &'w World,
    /// The namespace, and the repository's name.
    pub namespace: String,
    /// The name clients use.
    pub host: String,
    /// A person's clone of the repository.
    pub tree: WorkTree,
    url: String,
    /// What the DeployRepo's Secret holds.
    secret: Value,
    /// More of the DeployRepo's spec.
    repo_spec: Value,
    /// More objects that the DeployRepo needs.
    beside: Vec<Value>,
    replaced: Vec<(String, String)>,
}

impl Shop<'_> {
    /// The DeployRepo and its Secret.
    pub async fn declare_repository(&self) -> Result<()> {
        let mut spec = json!({"url": self.url, "path": "deploy", "interval": "10s", "secretRef": {"name": "deploy"},
            "sync": {"prune": true}});
        for (field, value) in self.repo_spec.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        let mut items = self.beside.clone();
        items.push(self.secret_object("deploy", &self.secret));
        items.push(json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": REPO, "namespace": self.namespace}, "spec": spec}));
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}});
        self.world.apply(&namespace.to_string()).await?;
        self.world.apply(&objects.to_string()).await
    }

    /// Declares the DeployRepo with more in its spec, and Secrets beside it.
    pub async fn declare_more(&mut self, spec: Value, secrets: &[(&str, Value)]) -> Result<()> {
        self.repo_spec = spec;
        self.beside = secrets.iter().map(|(name, data)| self.secret_object(name, data)).collect();
        self.declare_repository().await
    }

    fn secret_object(&self, name: &str, data: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": self.namespace},
            "stringData": data})
    }

    /// The name of its cluster in the log.
    #[must_use]
    pub fn cluster_name(&self) -> &'static str {
        self.world.name
    }

    /// The DeployRepo.
    pub async fn deploy_repo(&self) -> Result<Value> {
        let repos = self.world.objects("sluice.dev", "v1alpha1", "DeployRepo", "deployrepos", &self.namespace);
        Ok(serde_json::to_value(repos.get(REPO).await?)?)
    }

    /// From now on `from` in the manifests reads `to`.
    pub fn replace(&mut self, from: &str, to: &str) {
        self.replaced.push((from.to_owned(), to.to_owned()));
    }

    /// Writes the manifests for `version` into the clone.
    pub fn write(&self, version: &str) -> Result<()> {
        let mut text = include_str!("../manifests/shop.yaml")
            .replace("${IMAGE}", &format!("{}:{version}", self.world.images.demo))
            .replace("${HOST}", &self.host);
        for (from, to) in &self.replaced {
            if !text.contains(from) {
                bail!("the manifests hold no `{from}`");
            }
            text = text.replace(from, to);
        }
        self.tree.write("deploy/shop.yaml", &text)
    }

    /// Commits and pushes `version`; gives the commit.
    pub async fn release(&self, version: &str) -> Result<String> {
        self.write(version)?;
        let sha = self.tree.commit(&format!("web {version}")).await?;
        self.tree.push().await?;
        Ok(sha)
    }

    /// `git revert` and push, as a person stops a release; gives the commit.
    pub async fn revert(&self, sha: &str) -> Result<String> {
        let sha = self.tree.revert(sha).await?;
        self.tree.push().await?;
        Ok(sha)
    }

    /// The first version, up to Ready.
    pub async fn first(&self, version: &str) -> Result<String> {
        let sha = self.release(version).await?;
        self.phase("Ready", Duration::from_secs(60)).await?;
        Ok(sha)
    }

    /// Constant traffic through the Gateway.
    pub async fn traffic(&self) -> Result<Traffic> {
        let target: SocketAddr = self.world.cluster.gateway_address().parse()?;
        wait_for("the Gateway to answer for the shop", Duration::from_secs(30), async || {
            let answer = reqwest::Client::builder()
                .no_proxy()
                .resolve(&self.host, target)
                .timeout(Duration::from_secs(2))
                .build()?
                .get(format!("http://{}:{}/", self.host, target.port()))
                .send()
                .await?;
            if answer.status().is_success() { Ok(()) } else { Err(anyhow!("it answers {}", answer.status())) }
        })
        .await?;
        Traffic::start(target, &self.host, self.world.requests)
    }

    /// The Rollout.
    pub async fn rollout(&self) -> Result<Value> {
        let rollouts = self.world.objects("sluice.dev", "v1alpha1", "Rollout", "rollouts", &self.namespace);
        Ok(serde_json::to_value(rollouts.get("web").await?)?)
    }

    /// A condition of the Rollout.
    pub async fn condition(&self, type_: &str) -> Result<Option<Value>> {
        let conditions = self.rollout().await?["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.into_iter().find(|condition| condition["type"] == type_))
    }

    /// The route.
    pub fn routes(&self) -> Api<DynamicObject> {
        self.world.objects("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes", &self.namespace)
    }

    /// The Deployments.
    pub fn deployments(&self) -> Api<DynamicObject> {
        self.world.objects("apps", "v1", "Deployment", "deployments", &self.namespace)
    }

    /// The pods.
    pub fn pods(&self) -> Api<DynamicObject> {
        self.world.objects("", "v1", "Pod", "pods", &self.namespace)
    }

    /// A Service of the shop.
    pub async fn service(&self, name: &str) -> Result<Value> {
        let services = self.world.objects("", "v1", "Service", "services", &self.namespace);
        Ok(serde_json::to_value(services.get(name).await?)?)
    }

    /// The canary's weight as the route says it.
    pub async fn written_weight(&self) -> Result<i64> {
        let route = self.routes().get("web").await?;
        route.data.pointer("/spec/rules/0/backendRefs/1/weight").and_then(Value::as_i64).context("no weight")
    }

    /// Waits until the canary gets nothing, as the route says it: within seconds of the abort.
    pub async fn no_canary(&self) -> Result<()> {
        wait_for(&format!("weight 0 in {}", self.namespace), Duration::from_secs(5), async || {
            match self.written_weight().await? {
                0 => Ok(()),
                weight => Err(anyhow!("it is {weight}")),
            }
        })
        .await
    }

    /// Waits until the Rollout is in this phase for the present generation.
    pub async fn phase(&self, phase: &str, bound: Duration) -> Result<Value> {
        wait_for(&format!("phase {phase} of {}", self.namespace), bound, async || {
            let rollout = self.rollout().await?;
            let observed = rollout.pointer("/status/observedGeneration") == rollout.pointer("/metadata/generation");
            if rollout["status"]["phase"] == phase && observed {
                return Ok(rollout);
            }
            Err(anyhow!("it is {}: {}", rollout["status"]["phase"], rollout["status"]["message"]))
        })
        .await
    }

    /// Waits until the Rollout serves `version` for good.
    pub async fn promoted(&self, version: &str, bound: Duration) -> Result<Value> {
        let image = format!("{}:{version}", self.world.images.demo);
        wait_for(&format!("{version} to be promoted in {}", self.namespace), bound, async || {
            let rollout = self.rollout().await?;
            let wanted = rollout.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
            let status = &rollout["status"];
            let stable = status["stableRevision"] == status["revision"] && status["phase"] == "Ready";
            let observed = rollout.pointer("/status/observedGeneration") == rollout.pointer("/metadata/generation");
            if wanted == Some(&image) && stable && observed {
                return Ok(rollout);
            }
            Err(anyhow!("it wants {wanted:?} and is {}: {}", status["phase"], status["message"]))
        })
        .await
    }

    /// Waits until the Rollout has the canary at `weight` percent, accepted.
    pub async fn weight(&self, weight: i64, bound: Duration) -> Result<Value> {
        wait_for(&format!("{weight} % in {}", self.namespace), bound, async || {
            let rollout = self.rollout().await?;
            if rollout["status"]["weight"] == weight && rollout["status"]["release"].is_object() {
                return Ok(rollout);
            }
            Err(anyhow!(
                "it has {} % and is {}: {}",
                rollout["status"]["weight"],
                rollout["status"]["phase"],
                rollout["status"]["message"]
            ))
        })
        .await
    }

    /// The log branch, oldest first. What an entry does not tell again is as in the entry before of the same Rollout.
    pub async fn log(&self) -> Result<Vec<LogEntry>> {
        const TOLD_ONCE: [&str; 7] = ["Schema", "Uid", "Release", "From", "To", "Source-Commit", "Operator"];
        let mut log = self.tree.log(&format!("rollout-log/{}", self.world.name)).await?;
        log.reverse();
        let mut known: BTreeMap<(String, &str), String> = BTreeMap::new();
        for entry in &mut log {
            let Some(id) = entry.trailer("Rollout-Id").map(str::to_owned) else { continue };
            for name in TOLD_ONCE {
                let trailer = format!("Rollout-{name}");
                let key = (id.clone(), name);
                match entry.trailer(&trailer).map(str::to_owned) {
                    Some(value) => _ = known.insert(key, value),
                    None => {
                        if let Some(value) = known.get(&key) {
                            entry.body = format!("{}\n{trailer}: {value}", entry.body);
                        }
                    }
                }
            }
        }
        Ok(log)
    }

    /// The events in the log branch, oldest first, such as `Started`.
    pub async fn events(&self) -> Result<Vec<String>> {
        let log = self.log().await?;
        Ok(log.iter().filter_map(|entry| entry.trailer("Rollout-Event").map(str::to_owned)).collect())
    }

    /// Waits until the log branch holds every transition, checks that none is missing or doubled, and gives it.
    pub async fn recorded(&self, bound: Duration) -> Result<Vec<LogEntry>> {
        let sequence = wait_for(&format!("the record of {}", self.namespace), bound, async || {
            let rollout = self.rollout().await?;
            let status = &rollout["status"];
            let pending = status["pendingLog"].as_array().map_or(0, Vec::len);
            if pending == 0 && status["sequence"] == status["recordedSequence"] {
                return status["sequence"].as_i64().context("no sequence");
            }
            Err(anyhow!("{pending} transitions are not recorded yet"))
        })
        .await?;
        let log = self.log().await?;
        let uid = self.rollout().await?["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let numbers: Vec<i64> = log
            .iter()
            .filter(|entry| entry.trailer("Rollout-Uid") == Some(&uid))
            .filter_map(|entry| entry.trailer("Rollout-Seq")?.parse().ok())
            .collect();
        let expected: Vec<i64> = (1..=sequence).collect();
        if numbers != expected {
            bail!("the log of {} holds the numbers {numbers:?} instead of 1 to {sequence}", self.namespace);
        }
        Ok(log)
    }

    /// `kubectl rollout-status …` in this namespace, to its end.
    pub async fn plugin(&self, arguments: &[&str]) -> Result<Output> {
        self.world
            .plugin()?
            .args(arguments)
            .args(["-n", &self.namespace])
            .within(Duration::from_secs(120))
            .output()
            .await
    }

    /// Every kept measurement of this shop's AnalysisRuns: verdict and time.
    pub async fn analysis_samples(&self) -> Result<Vec<(String, chrono::DateTime<chrono::Utc>)>> {
        let runs = self.world.objects("sluice.dev", "v1alpha1", "AnalysisRun", "analysisruns", &self.namespace);
        let runs = runs.list(&kube::api::ListParams::default()).await?;
        let mut samples = Vec::new();
        for run in runs.items {
            let metrics = run.data.pointer("/status/metrics").and_then(Value::as_array).cloned().unwrap_or_default();
            for measurement in metrics.iter().flat_map(|metric| metric["measurements"].as_array().into_iter().flatten())
            {
                let verdict = measurement["verdict"].as_str().unwrap_or_default().to_owned();
                let at = measurement["at"].as_str().unwrap_or_default().parse()?;
                samples.push((verdict, at));
            }
        }
        Ok(samples)
    }

    /// Checks the ledger as an auditor does, in a person's clone.
    pub async fn verify(&self) -> Result<()> {
        let log = self.log().await?;
        if log.is_empty() {
            return Ok(());
        }
        let tip = self.deploy_repo().await?["status"]["logTip"].as_str().unwrap_or_default().to_owned();
        let auditor = |command: &str| {
            let sluice = Command::new(self.world.binaries.join("sluice")).arg(command).arg(self.tree.dir());
            sluice.args(["--cluster", self.world.name]).within(Duration::from_secs(60))
        };
        let failed = || format!("the ledger of {}", self.namespace);
        auditor("verify").args(["--expect", &tip]).ok().await.with_context(failed)?;
        auditor("replay").ok().await.with_context(failed)?;
        Ok(())
    }

    /// Removes everything in the cluster, after a look whether the ledger is whole; the repository stays.
    pub async fn remove(&self) -> Result<()> {
        self.verify().await?;
        self.world.cluster.kubectl()?.args(["delete", "namespace", &self.namespace, "--wait=false"]).ok().await?;
        Ok(())
    }
}

/// No request was lost by a transition.
pub fn none_lost(traffic: &crate::traffic::Counts) -> Result<()> {
    if traffic.lost == 0 {
        return Ok(());
    }
    bail!("{} of {} requests were lost; the first: {:?}", traffic.lost, traffic.sent, traffic.first_lost)
}
