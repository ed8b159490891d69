//! What the cluster's certificate authority signs, and the kubeconfig files that use them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::authority::Authority;
use crate::cluster::layout::Layout;
use crate::command::run;

/// A client of the API server: its name here, and who it is there.
const CLIENTS: &[(&str, &str)] = &[
    ("admin", "/O=system:masters/CN=admin"),
    ("kubelet", "/O=system:nodes/CN=system:node:node1"),
    ("controller-manager", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
    ("proxy", "/CN=system:kube-proxy"),
];

/// The folder with keys and certificates.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: PathBuf,
    authority: Authority,
}

impl Certificates {
    /// Makes the authority, every certificate and every kubeconfig.
    pub fn make(layout: &Layout, server: &str) -> Result<Self> {
        let dir = layout.dir().join("pki");
        let certificates = Self { authority: Authority::make(&dir)?, dir };
        let names = format!(
            "subjectAltName=IP:127.0.0.1,IP:{},IP:{},DNS:localhost,DNS:kubernetes.default.svc\n",
            layout.node_address(),
            layout.api_service()
        );
        let extensions = format!("{names}extendedKeyUsage=serverAuth\n");
        certificates.authority.sign("apiserver", "/CN=kube-apiserver", &extensions)?;
        for (name, subject) in CLIENTS {
            certificates.authority.sign(name, subject, "extendedKeyUsage=clientAuth\n")?;
            certificates.kubeconfig(name, server)?;
        }
        let at = |name: &str| certificates.path(name);
        run("openssl", ["genrsa", "-out", &at("sa.key"), "2048"])?;
        run("openssl", ["rsa", "-in", &at("sa.key"), "-pubout", "-out", &at("sa.pub")])?;
        Ok(certificates)
    }

    /// A file of the folder, as an argument for a program.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.authority.path(name)
    }

    /// The kubeconfig of one of the clients.
    #[must_use]
    pub fn kubeconfig_of(&self, client: &str) -> PathBuf {
        self.dir.join(format!("{client}.kubeconfig"))
    }

    /// Holds keys and certificates themselves, so that the file can be copied to wherever a person wants it.
    fn kubeconfig(&self, client: &str, server: &str) -> Result<()> {
        let data = |name: String| -> Result<String> {
            let path = self.path(&name);
            Ok(run("openssl", ["base64", "-A", "-in", &path])?.trim().to_owned())
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "sluice-e2e",
            "contexts": [{"name": "sluice-e2e", "context": {"cluster": "sluice-e2e", "user": client}}],
            "clusters": [{"name": "sluice-e2e", "cluster": {
                "server": server,
                "certificate-authority-data": data("ca.crt".to_owned())?,
            }}],
            "users": [{"name": client, "user": {
                "client-certificate-data": data(format!("{client}.crt"))?,
                "client-key-data": data(format!("{client}.key"))?,
            }}],
        });
        write_private(&self.kubeconfig_of(client), &serde_json::to_string_pretty(&config)?)
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}
