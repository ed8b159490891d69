//! A certificate authority of our own, and what it signs. Everything that speaks TLS in a test is signed by one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::run;

/// Long enough for a cluster that was kept, short enough to be worth nothing to anybody.
const DAYS: &str = "30";
/// A key that is made in no time.
const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// A certificate authority, and the folder with its keys and certificates: `ca.key` and `ca.crt`, and for each name
/// it signed for `<name>.key` and `<name>.crt`.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes the authority in the folder `dir`, which is made where it is missing.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let authority = Self { dir: dir.to_owned() };
        let (key, certificate) = (authority.path("ca.key"), authority.path("ca.crt"));
        let own = ["-keyout", &key, "-out", &certificate, "-subj", "/CN=sluice-e2e", "-days", DAYS];
        run("openssl", ["req", "-x509"].into_iter().chain(NEW_KEY).chain(own))
            .context("cannot make a certificate authority")?;
        Ok(authority)
    }

    /// Makes a key and a certificate for `subject`, with these lines of X.509 extensions.
    pub(crate) fn sign(&self, name: &str, subject: &str, extensions: &str) -> Result<()> {
        let at = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        let (key, request, certificate, extension) = (at("key"), at("csr"), at("crt"), at("ext"));
        fs::write(&extension, extensions)?;
        let own = ["-keyout", &key, "-out", &request, "-subj", subject];
        run("openssl", ["req"].into_iter().chain(NEW_KEY).chain(own))?;
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

    /// A file of the folder, as an argument for a program.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}
