//! The cluster's certificate authority and what it signs, and the kubeconfig files that use them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

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

/// Long enough for a cluster that was kept, short enough to be worth nothing to anybody.
const DAYS: &str = "30";

/// The folder with keys and certificates.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes the authority, every certificate and every kubeconfig.
    pub fn make(layout: &Layout, server: &str) -> Result<Self> {
        let certificates = Self { dir: layout.dir().join("pki") };
        fs::create_dir_all(&certificates.dir)?;
        let at = |name: &str| certificates.path(name);
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let mut authority = vec!["req", "-x509"];
        authority.extend(curve);
        let (key, certificate) = (at("ca.key"), at("ca.crt"));
        authority.extend(["-keyout", &key, "-out", &certificate, "-subj", "/CN=sluice-e2e", "-days", DAYS]);
        run("openssl", authority).context("cannot make the cluster's certificate authority")?;

        let names = format!(
            "subjectAltName=IP:127.0.0.1,IP:{},IP:{},DNS:localhost,DNS:kubernetes.default.svc\n",
            layout.node_address(),
            layout.api_service()
        );
        certificates.sign("apiserver", "/CN=kube-apiserver", &format!("{names}extendedKeyUsage=serverAuth\n"))?;
        for (name, subject) in CLIENTS {
            certificates.sign(name, subject, "extendedKeyUsage=clientAuth\n")?;
            certificates.kubeconfig(name, server)?;
        }
        run("openssl", ["genrsa", "-out", &at("sa.key"), "2048"])?;
        run("openssl", ["rsa", "-in", &at("sa.key"), "-pubout", "-out", &at("sa.pub")])?;
        Ok(certificates)
    }

    /// A file of the folder, as an argument for a program.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// The kubeconfig of one of the clients.
    #[must_use]
    pub fn kubeconfig_of(&self, client: &str) -> PathBuf {
        self.dir.join(format!("{client}.kubeconfig"))
    }

    fn sign(&self, name: &str, subject: &str, extensions: &str) -> Result<()> {
        let at = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        let (key, request, certificate, extension) = (at("key"), at("csr"), at("crt"), at("ext"));
        fs::write(&extension, extensions)?;
        run(
            "openssl",
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", &key]
                .into_iter()
                .chain(["-out", &request, "-subj", subject]),
        )?;
        let (authority, authority_key) = (self.path("ca.crt"), self.path("ca.key"));
        run(
            "openssl",
            ["x509", "-req", "-in", &request, "-CA", &authority, "-CAkey", &authority_key, "-CAcreateserial"]
                .into_iter()
                .chain(["-out", &certificate, "-days", DAYS, "-extfile", &extension]),
        )
        .with_context(|| format!("cannot sign the certificate of {name}"))?;
        Ok(())
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
