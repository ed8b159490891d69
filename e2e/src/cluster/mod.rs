//! A one-node Kubernetes cluster with a Gateway and a Prometheus, made of real components.

mod certificates;
mod component;
mod configuration;
mod layout;
mod names;
mod targets;
pub(crate) mod teardown;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Node;
use kube::api::DynamicObject;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};

use crate::command::{Command, run};
use crate::progress::{heading, timed};
use crate::tools::{Tools, project};
use crate::wait::wait_for;
use certificates::Certificates;
pub use component::{Component, Ready};
pub use layout::{Layout, Slot};
pub use names::serve_names;
pub use targets::write_targets;

/// The namespace of the Gateway.
pub const GATEWAY_NAMESPACE: &str = "gateway";
/// The name of the Gateway.
pub const GATEWAY: &str = "web";

/// What a cluster should hold beyond Kubernetes itself.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Image archives to have on the node from the start.
    pub images: Vec<PathBuf>,
}

/// Where the parts of a cluster are reached, by pods and by this machine alike.
#[derive(Debug, Clone)]
struct Addresses {
    gateway: SocketAddr,
    prometheus: String,
    host: IpAddr,
}

/// A running cluster. One that this value booted ends with it, unless it is kept.
pub struct Cluster {
    slot: Option<Slot>,
    /// None for somebody else's cluster.
    layout: Option<Layout>,
    addresses: Addresses,
    components: Vec<Component>,
    kubeconfig: PathBuf,
    client: Client,
    tools: Tools,
}

/// Clusters to take down when the harness is interrupted.
static ACTIVE: Mutex<Vec<Layout>> = Mutex::new(Vec::new());

/// Takes down every cluster of this process. For an interruption, when nothing else will.
pub fn stop_all() {
    let active: Vec<Layout> = std::mem::take(&mut *ACTIVE.lock().unwrap_or_else(PoisonError::into_inner));
    for layout in active {
        if let Err(error) = teardown::clean(&layout) {
            eprintln!("cannot take down the cluster in {}: {error:#}", layout.dir().display());
        }
    }
}

/// Takes down every cluster that was kept, or left behind. Gives how many there were.
pub fn stop_ownerless() -> Result<usize> {
    let slots = Slot::ownerless()?;
    for slot in &slots {
        teardown::clean(&slot.layout())?;
    }
    Ok(slots.len())
}

impl Cluster {
    /// Boots a cluster and waits until a pod can be scheduled and the Gateway answers.
    pub async fn start(tools: &Tools, options: Options) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a cluster needs root: it makes a network namespace, mounts and control groups");
        }
        let slot = Slot::take()?;
        let layout = slot.layout();
        heading(&format!("cluster {} ({})", layout.number(), layout.dir().display()));
        ACTIVE.lock().unwrap_or_else(PoisonError::into_inner).push(layout.clone());
        // From here on a failure must clean up, and the value that does so does not exist yet.
        let started = Self::boot(&layout, tools, options).await;
        match started {
            Ok(mut cluster) => {
                cluster.slot = Some(slot);
                Ok(cluster)
            }
            Err(error) => {
                let logs = save_logs(&layout, &format!("boot-{}", layout.number()));
                forget(&layout);
                if let Err(second) = teardown::clean(&layout) {
                    eprintln!("cannot clean up after it: {second:#}");
                }
                Err(match logs {
                    Ok(folder) => {
                        error.context(format!("the cluster did not start; its logs are in {}", folder.display()))
                    }
                    Err(_) => error,
                })
            }
        }
    }

    /// Uses a cluster that is there already. What the harness cannot find out must be said by the environment:
    /// `SLUICE_E2E_GATEWAY` (address and port of the Gateway `web` in the namespace `gateway`),
    /// `SLUICE_E2E_PROMETHEUS` (its URL; it scrapes pods with the annotation `prometheus.io/scrape` and labels their
    /// samples with `namespace` and, from the pod's label, `revision`) and `SLUICE_E2E_HOST` (an address of this
    /// machine that pods reach).
    pub async fn connect(tools: &Tools, kubeconfig: &Path) -> Result<Self> {
        let addresses = Addresses {
            gateway: said("SLUICE_E2E_GATEWAY", "address and port of the Gateway")?,
            prometheus: said("SLUICE_E2E_PROMETHEUS", "the URL of Prometheus")?,
            host: said("SLUICE_E2E_HOST", "an address of this machine that pods reach")?,
        };
        let client = client_of(kubeconfig).await?;
        client.apiserver_version().await.with_context(|| format!("the cluster of {}", kubeconfig.display()))?;
        Ok(Self {
            slot: None,
            layout: None,
            addresses,
            components: Vec::new(),
            kubeconfig: kubeconfig.to_owned(),
            client,
            tools: tools.clone(),
        })
    }

    async fn boot(layout: &Layout, tools: &Tools, options: Options) -> Result<Self> {
        let server = format!("https://{}:6443", layout.node_address());
        let certificates = timed("certificates, network", async {
            let certificates = Certificates::make(layout, &server)?;
            make_network(layout)?;
            make_control_groups(layout)?;
            Ok(certificates)
        })
        .await?;
        let components = configuration::components(layout, tools, &certificates)?;
        let component = |name: &str| find(&components, name);

        timed("etcd, API server, containerd", async {
            component("containerd")?.launch()?;
            component("etcd")?.start().await?;
            component("apiserver")?.start().await?;
            component("containerd")?.serving().await
        })
        .await?;
        let kubeconfig = certificates.kubeconfig_of("admin");
        let client = client_of(&kubeconfig).await?;
        let cluster = Self {
            slot: None,
            layout: Some(layout.clone()),
            addresses: Addresses {
                gateway: (layout.node_address(), 8080).into(),
                prometheus: format!("http://{}:9090", layout.node_address()),
                host: layout.host_address().into(),
            },
            components: components.clone(),
            kubeconfig,
            client,
            tools: tools.clone(),
        };

        timed("images", async {
            for image in &options.images {
                cluster.import(image).await?;
            }
            Ok(())
        })
        .await?;
        timed("controller manager, scheduler, kubelet, proxy, names", async {
            let names = ["controller-manager", "scheduler", "kubelet", "proxy", "names"];
            for name in names {
                component(name)?.launch()?;
            }
            for name in names {
                component(name)?.serving().await?;
            }
            let nodes: Api<Node> = Api::all(cluster.client());
            wait_for("the node to be ready", Duration::from_secs(60), async || {
                let node = nodes.get("node1").await.ok();
                let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
                let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
                match ready {
                    Some(condition) if condition.status == "True" => Ok(()),
                    other => Err(anyhow!("its condition is {other:?}")),
                }
            })
            .await
        })
        .await?;
        timed("Prometheus", async {
            component("prometheus")?.start().await?;
            component("targets")?.start().await
        })
        .await?;
        timed("Gateway: Contour and Envoy", cluster.gateway()).await?;
        Ok(cluster)
    }

    /// Contour watches kinds that must be served before it starts, and Envoy asks Contour for its configuration.
    async fn gateway(&self) -> Result<()> {
        let definitions = self.tools.shared("gateway-crds")?;
        self.kubectl()?.args(["apply", "--server-side", "-f"]).arg(&definitions).ok().await?;
        self.kubectl()?.args(["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).ok().await?;
        self.kubectl()?.args(["apply", "-f", "-"]).input(configuration::gateway_manifest()).ok().await?;
        let dir = self.own()?.dir();
        let bootstrap = dir.join("gateway/envoy.json");
        Command::new(self.tools.program("contour")?)
            .args(["bootstrap".as_ref(), bootstrap.as_os_str()])
            .args(["--xds-address=127.0.0.1", "--xds-port=8001", "--xds-resource-version=v3"])
            .arg(format!("--admin-address={}", dir.join("gateway/admin.sock").display()))
            .ok()
            .await?;
        self.component("contour")?.start().await?;
        self.component("envoy")?.start().await?;
        let resource = kube::api::ApiResource::from_gvk_with_plural(
            &kube::api::GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway"),
            "gateways",
        );
        let gateways: Api<DynamicObject> = Api::namespaced_with(self.client(), GATEWAY_NAMESPACE, &resource);
        wait_for("the Gateway to be programmed", Duration::from_secs(60), async || {
            let gateway = gateways.get(GATEWAY).await?;
            let conditions = gateway.data.pointer("/status/conditions").cloned().unwrap_or_default();
            let programmed = conditions.as_array().is_some_and(|conditions| {
                conditions.iter().any(|condition| condition["type"] == "Programmed" && condition["status"] == "True")
            });
            if programmed { Ok(()) } else { Err(anyhow!("its conditions are {conditions}")) }
        })
        .await
    }

    /// A process of the cluster, to kill, pause, resume or restart: `etcd`, `apiserver`, `containerd`,
    /// `controller-manager`, `scheduler`, `kubelet`, `proxy`, `names`, `prometheus`, `targets`, `contour`, `envoy`.
    pub fn component(&self, name: &str) -> Result<&Component> {
        find(&self.components, name)
    }

    /// A client with every right.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The kubeconfig with every right.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `kubectl` for this cluster.
    pub fn kubectl(&self) -> Result<Command> {
        Ok(Command::new(self.tools.program("kubectl")?).env("KUBECONFIG", &self.kubeconfig))
    }

    /// Where the Gateway listens, as `address:port`. Envoy opens the port with the first route, not before.
    #[must_use]
    pub fn gateway_address(&self) -> String {
        self.addresses.gateway.to_string()
    }

    /// Where Prometheus answers, from inside the cluster and from this machine.
    #[must_use]
    pub fn prometheus_address(&self) -> String {
        self.addresses.prometheus.clone()
    }

    /// This machine, as pods see it.
    #[must_use]
    pub fn host_address(&self) -> IpAddr {
        self.addresses.host
    }

    /// Whether it was booted here, so that its components can be broken and images brought to it.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.layout.is_some()
    }

    /// The folder of a cluster that was booted here; what is put there goes away with the cluster.
    #[must_use]
    pub fn dir(&self) -> Option<PathBuf> {
        self.layout.as_ref().map(Layout::dir)
    }

    fn own(&self) -> Result<&Layout> {
        self.layout.as_ref().ok_or_else(|| anyhow!("this cluster was not booted by the harness"))
    }

    /// Lets every component that is paused go on and starts every one that is not running: what a test broke and
    /// did not mend must not fail the next one.
    pub async fn mend(&self) -> Result<()> {
        for component in &self.components {
            if component.pid().is_some() {
                component.resume()?;
            } else {
                component.launch()?;
            }
        }
        for component in &self.components {
            component.serving().await?;
        }
        Ok(())
    }

    /// Brings an image archive to the node.
    pub async fn import(&self, archive: &Path) -> Result<()> {
        let socket = self.own()?.dir().join("containerd/c.sock");
        Command::new("ctr")
            .arg("-a")
            .arg(&socket)
            .args(["-n", "k8s.io", "images", "import"])
            .arg(archive)
            .ok()
            .await
            .map(drop)
            .with_context(|| format!("cannot import {}", archive.display()))
    }

    /// Copies the logs of every component and a picture of the cluster to `target/e2e-logs/<name>`.
    pub async fn save_logs(&self, name: &str) -> Result<PathBuf> {
        let folder = match &self.layout {
            Some(layout) => save_logs(layout, name)?,
            None => fresh_folder(name)?,
        };
        let pictures: [(&str, &[&str]); 4] = [
            ("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
            ("pods.txt", &["get", "pods", "-A", "-o", "wide"]),
            ("all.yaml", &["get", "deploy,rs,svc,endpointslices,httproutes,leases", "-A", "-o", "yaml"]),
            (
                "sluice.yaml",
                &["get", "rollouts.sluice.dev,analysisruns.sluice.dev,deployrepos.sluice.dev", "-A", "-o", "yaml"],
            ),
        ];
        for (file, arguments) in pictures {
            // The API server may be what is broken; then the logs have to do.
            let text = match self.kubectl()?.args(arguments).within(Duration::from_secs(20)).output().await {
                Ok(output) => output.stdout + &output.stderr,
                Err(error) => format!("{error:#}"),
            };
            fs::write(folder.join(file), text)?;
        }
        if let Some(layout) = &self.layout {
            copy(&layout.dir().join("kubelet-logs"), &folder.join("pods"))?;
        }
        Ok(folder)
    }

    /// Leaves the cluster running when this value ends; [`stop_ownerless`] takes it down.
    pub fn keep(mut self) -> Result<()> {
        let layout = self.own()?;
        fs::write(layout.kept(), "")?;
        forget(layout);
        self.slot = None;
        Ok(())
    }

    /// Takes the cluster down.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // Kept, ended before, or somebody else's.
        let (Some(slot), Some(layout)) = (self.slot.take(), &self.layout) else { return Ok(()) };
        forget(layout);
        let result = teardown::clean(layout);
        // Only now may the place be taken again.
        drop(slot);
        result
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot take down a cluster: {error:#}");
        }
    }
}

/// A setting that the environment must hold.
pub(crate) fn said<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str, what: &str) -> Result<T> {
    let value = std::env::var(name).map_err(|_| anyhow!("with KUBECONFIG set, {name} must say {what}"))?;
    value.parse().with_context(|| format!("{name}={value}: not {what}"))
}

fn forget(layout: &Layout) {
    ACTIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|active| active.number() != layout.number());
}

fn find<'a>(components: &'a [Component], name: &str) -> Result<&'a Component> {
    components.iter().find(|component| component.name() == name).ok_or_else(|| {
        let names: Vec<&str> = components.iter().map(Component::name).collect();
        anyhow!("no component is called {name}; there are {}", names.join(", "))
    })
}

/// A client for a kubeconfig file, whatever the environment says.
pub async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Client::try_from(config).context("cannot make a client")
}

fn save_logs(layout: &Layout, name: &str) -> Result<PathBuf> {
    let folder = fresh_folder(name)?;
    copy(&layout.dir().join("logs"), &folder)?;
    Ok(folder)
}

fn fresh_folder(name: &str) -> Result<PathBuf> {
    let folder = project().join("target/e2e-logs").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Copies a folder of logs; names that cannot be read are left out.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for path in entries.filter_map(|entry| entry.ok()).map(|entry| entry.path()) {
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else if path.exists() {
            fs::copy(&path, to.join(name)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn make_network(layout: &Layout) -> Result<()> {
    let (namespace, outer) = (layout.namespace(), layout.outer_interface());
    let (node, host) = (layout.node_address().to_string(), layout.host_address().to_string());
    let inside = ["-n", &namespace];
    let ip = |arguments: &[&str]| run("ip", arguments).map(drop);
    ip(&["netns", "add", &namespace])?;
    ip(&["link", "add", &outer, "type", "veth", "peer", "name", "node0", "netns", &namespace])?;
    ip(&["addr", "add", &format!("{host}/24"), "dev", &outer])?;
    ip(&["link", "set", &outer, "up"])?;
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["addr", "add", &format!("{node}/24"), "dev", "node0"],
        &["link", "set", "node0", "up"],
        &["route", "add", "default", "via", &host],
    ] {
        ip(&[&inside[..], arguments].concat())?;
    }
    // From this machine straight to pods and Services, as from inside.
    for network in [layout.pods(), layout.services()] {
        ip(&["route", "add", &network, "via", &node, "dev", &outer])?;
    }
    run("ip", ["netns", "exec", &namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1"]).map(drop)
}

fn make_control_groups(layout: &Layout) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let name = layout.control_group();
    let name = name.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() {
        let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            // Those that this kernel does not hand on are not needed by the kubelet.
            let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        return fs::create_dir_all(root.join(name)).context("cannot make the pods' control group");
    }
    for entry in fs::read_dir(root).context("no control groups are mounted")? {
        let hierarchy = entry?.path();
        if hierarchy.join("cgroup.procs").exists() {
            fs::create_dir_all(hierarchy.join(name)).with_context(|| hierarchy.display().to_string())?;
        }
    }
    Ok(())
}
