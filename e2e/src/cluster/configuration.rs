//! How each component is started. Flags that are not obvious say why they are there.

use std::fs;

use anyhow::Result;
use serde_json::json;

use crate::cluster::certificates::Certificates;
use crate::cluster::component::{Component, Ready};
use crate::cluster::layout::Layout;
use crate::cluster::{GATEWAY, GATEWAY_NAMESPACE};
use crate::images::PAUSE;
use crate::tools::Tools;

/// Every component, in the order in which they start. Writes their configuration files.
pub fn components(layout: &Layout, tools: &Tools, certificates: &Certificates) -> Result<Vec<Component>> {
    let dir = layout.dir();
    let node = layout.node_address();
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let pki = |name: &str| certificates.path(name);
    let kubeconfig = |client: &str| certificates.kubeconfig_of(client).to_string_lossy().into_owned();
    let inside =
        |name: &str, program: std::path::PathBuf| Component::new(&dir, name, program).inside(layout.namespace_file());
    for folder in ["cni", "containerd", "gateway", "prometheus/targets"] {
        fs::create_dir_all(dir.join(folder))?;
    }

    // A copy: the harness may be built anew while the cluster runs. The link leads to the program even then.
    let harness = dir.join("e2e");
    fs::copy("/proc/self/exe", &harness)?;

    let etcd = inside("etcd", tools.program("etcd")?)
        .args([
            format!("--data-dir={}", at("etcd")),
            // Nothing in it has to survive a power cut.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
            "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            format!("--listen-metrics-urls=http://{node}:2381"),
        ])
        .ready_when(Ready::Answers(format!("http://{node}:2381/health")));

    let apiserver = inside("apiserver", tools.program("kube-apiserver")?)
        .args([
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--secure-port=6443".to_owned(),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={node}"),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--service-account-key-file={}", pki("sa.pub")),
            format!("--service-account-signing-key-file={}", pki("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={}", layout.services()),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--kubelet-client-certificate={}", pki("admin.crt")),
            format!("--kubelet-client-key={}", pki("admin.key")),
            // The node has no name that anything resolves.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--profiling=false".to_owned(),
        ])
        .ready_when(Ready::Answers(format!("https://{node}:6443/readyz")));

    fs::write(dir.join("cni/10-bridge.conflist"), network_configuration(layout)?)?;
    fs::write(dir.join("containerd.toml"), containerd_configuration(&dir.to_string_lossy()))?;
    let containerd = inside("containerd", tools.program("containerd")?)
        .args(["--config".to_owned(), at("containerd.toml")])
        // A kubelet that finds no runtime ends.
        .ready_when(Ready::Socket(dir.join("containerd/c.sock")));

    let controller_manager = inside("controller-manager", tools.program("kube-controller-manager")?)
        .args([
            format!("--kubeconfig={}", kubeconfig("controller-manager")),
            format!("--service-account-private-key-file={}", pki("sa.key")),
            format!("--root-ca-file={}", pki("ca.crt")),
            "--use-service-account-credentials".to_owned(),
            "--leader-elect=false".to_owned(),
        ])
        .ready_when(Ready::Answers(format!("https://{node}:10257/healthz")));

    let scheduler = inside("scheduler", tools.program("kube-scheduler")?)
        .args([format!("--kubeconfig={}", kubeconfig("scheduler")), "--leader-elect=false".to_owned()])
        .ready_when(Ready::Answers(format!("https://{node}:10259/healthz")));

    fs::write(dir.join("kubelet.json"), kubelet_configuration(layout, &pki("ca.crt"))?)?;
    let kubelet = inside("kubelet", tools.program("kubelet")?)
        .args([
            format!("--config={}", at("kubelet.json")),
            format!("--kubeconfig={}", kubeconfig("kubelet")),
            "--hostname-override=node1".to_owned(),
            format!("--node-ip={node}"),
            format!("--root-dir={}", at("kubelet")),
        ])
        .ready_when(Ready::Answers(format!("http://{node}:10248/healthz")));

    let proxy = inside("proxy", tools.program("kube-proxy")?)
        .args([
            format!("--kubeconfig={}", kubeconfig("proxy")),
            "--hostname-override=node1".to_owned(),
            "--proxy-mode=iptables".to_owned(),
            format!("--cluster-cidr={}", layout.pods()),
            // Two pods on one bridge: without this the answer takes the short way past the translation of addresses.
            "--masquerade-all".to_owned(),
            format!("--healthz-bind-address={node}:10256"),
            // These belong to the machine, and cannot be set from a network namespace.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-min=0".to_owned(),
        ])
        .ready_when(Ready::Answers(format!("http://{node}:10256/healthz")));

    let names = inside("names", harness.clone()).args([
        "names".to_owned(),
        format!("--kubeconfig={}", kubeconfig("admin")),
        format!("--address={node}:53"),
    ]);

    fs::write(dir.join("prometheus/prometheus.yml"), prometheus_configuration(&at("prometheus/targets")))?;
    let prometheus = inside("prometheus", tools.program("prometheus")?)
        .args([
            format!("--config.file={}", at("prometheus/prometheus.yml")),
            format!("--storage.tsdb.path={}", at("prometheus/data")),
            format!("--web.listen-address={node}:9090"),
            "--log.level=warn".to_owned(),
        ])
        .ready_when(Ready::Answers(format!("http://{node}:9090/-/ready")));

    // Debian's Prometheus cannot discover pods itself: this process writes them to a file that it watches.
    let targets = Component::new(&dir, "targets", harness).args([
        "targets".to_owned(),
        format!("--kubeconfig={}", kubeconfig("admin")),
        format!("--file={}", at("prometheus/targets/pods.json")),
    ]);

    let gateway = json!({"gateway": {"gatewayRef": {"name": GATEWAY, "namespace": GATEWAY_NAMESPACE}}});
    fs::write(dir.join("gateway/contour.yaml"), serde_json::to_string_pretty(&gateway)?)?;
    let contour = inside("contour", tools.program("contour")?)
        .args([
            "serve".to_owned(),
            "--insecure".to_owned(),
            "--disable-leader-election".to_owned(),
            format!("--kubeconfig={}", kubeconfig("admin")),
            format!("--config-path={}", at("gateway/contour.yaml")),
            format!("--envoy-service-namespace={GATEWAY_NAMESPACE}"),
            "--xds-address=127.0.0.1".to_owned(),
            "--xds-port=8001".to_owned(),
            // Envoy takes 8002 for its own health.
            "--http-port=8012".to_owned(),
            format!("--health-address={node}"),
            "--health-port=8013".to_owned(),
        ])
        .ready_when(Ready::Answers(format!("http://{node}:8013/healthz")));

    let envoy = inside("envoy", tools.program("envoy")?)
        // Envoy's parser takes no `=` between an option and its value.
        .args([
            "--config-path".to_owned(),
            at("gateway/envoy.json"),
            "--service-cluster".to_owned(),
            "gateway".to_owned(),
            "--service-node".to_owned(),
            "envoy1".to_owned(),
            "--log-level".to_owned(),
            "warn".to_owned(),
            "--concurrency".to_owned(),
            "2".to_owned(),
            // Two Envoys on one machine share memory by this number.
            "--base-id".to_owned(),
            layout.number().to_string(),
        ])
        .ready_when(Ready::Answers(format!("http://{node}:8002/ready")));

    Ok(vec![
        etcd,
        apiserver,
        containerd,
        controller_manager,
        scheduler,
        kubelet,
        proxy,
        names,
        prometheus,
        targets,
        contour,
        envoy,
    ])
}

/// The Gateway, its class, and the Service that Contour takes the Gateway's address from.
pub fn gateway_manifest() -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GATEWAY_NAMESPACE}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "envoy", "namespace": GATEWAY_NAMESPACE},
         "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "contour"},
         "spec": {"controllerName": "projectcontour.io/gateway-controller"}},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
         "metadata": {"name": GATEWAY, "namespace": GATEWAY_NAMESPACE},
         "spec": {"gatewayClassName": "contour", "listeners": [
             {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}]}},
    ]})
    .to_string()
}

fn network_configuration(layout: &Layout) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "dataDir": layout.dir().join("cni/addresses"),
                      "ranges": [[{"subnet": layout.pods()}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    }))?)
}

fn containerd_configuration(dir: &str) -> String {
    // restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower a pod's score and every sandbox fails.
    // netns_mounts_under_state_dir: pods' namespaces are mounts below the cluster's folder, so that none is left over.
    format!(
        r#"version = 2
root = "{dir}/containerd/root"
state = "{dir}/containerd/state"
[grpc]
  address = "{dir}/containerd/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni"
"#
    )
}

fn kubelet_configuration(layout: &Layout, authority: &str) -> Result<String> {
    Ok(serde_json::to_string_pretty(&json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        // Its own tree: a kubelet ends every pod below its root that it does not know, another cluster's as well.
        "cgroupRoot": layout.control_group(),
        "failSwapOn": false,
        "failCgroupV1": false,
        "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": authority}, "webhook": {"enabled": true}},
        "authorization": {"mode": "Webhook"},
        "healthzBindAddress": layout.node_address(),
        "containerRuntimeEndpoint": format!("unix://{}", layout.dir().join("containerd/c.sock").display()),
        "podLogsDir": layout.dir().join("kubelet-logs"),
        "volumePluginDir": layout.dir().join("volume-plugins"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [layout.node_address()],
        "enforceNodeAllocatable": [],
        // Images come from nowhere: one that is collected never comes back.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "resolvConf": "/etc/resolv.conf",
        // Many pods start at once on one node, and a test waits for them.
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "eventRecordQPS": 0,
        "syncFrequency": "10s",
    }))?)
}

fn prometheus_configuration(targets: &str) -> String {
    format!(
        r"global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
scrape_configs:
- job_name: pods
  file_sd_configs:
  - files: ['{targets}/*.json']
    refresh_interval: 5s
"
    )
}
