//! SSH key pairs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::run;

/// A pair of SSH keys, in a file and its neighbour `.pub`.
#[derive(Debug, Clone)]
pub struct SshKey {
    file: PathBuf,
    identity: String,
    public: String,
}

impl SshKey {
    /// Makes a pair, without a password; `comment` says whose it is.
    pub fn make(file: impl Into<PathBuf>, comment: &str) -> Result<Self> {
        let file = file.into();
        let kind = ["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"].map(AsRef::as_ref);
        run("ssh-keygen", kind.into_iter().chain([file.as_os_str()])).context("cannot make an SSH key")?;
        let identity = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let public = fs::read_to_string(file.with_extension("pub")).with_context(|| file.display().to_string())?;
        Ok(Self { file, identity, public: public.trim().to_owned() })
    }

    /// Where the private key is.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The private key, as a file holds it.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The public key, as one line: kind, key, comment.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }
}
