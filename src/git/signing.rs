//! The key that signs the tip of a ledger.
//!
//! One signature a push: the commits before the tip are covered by it, for each names its parent by a hash of all
//! that is in it. The key stands in a file of our own while it is used, for that is how ssh-keygen takes it, and
//! never in an argument.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::cache::private_file;
use super::command::storage;
use super::error::{GitError, Result, Scrubber};

/// A key that signs commits. Cheap to clone; the file goes with the last clone.
#[derive(Clone)]
pub struct Signer {
    keys: Arc<tempfile::TempDir>,
    pub(super) scrubber: Scrubber,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// With this SSH private key, as `ssh-keygen` writes it, without a passphrase. Its file stands below `root`.
    pub fn new(root: &Path, identity: &str) -> Result<Self> {
        let refuse = |reason: &str| GitError::InvalidCredentials {
            remote: "the signature of the log".to_owned(),
            reason: reason.to_owned(),
        };
        if !identity.trim_start().starts_with("-----BEGIN ") {
            return Err(refuse("\"identity\" must be an SSH private key"));
        }
        if identity.contains("ENCRYPTED") {
            return Err(refuse("\"identity\" must be an SSH private key without a passphrase"));
        }
        let private = std::fs::Permissions::from_mode(0o700);
        let keys = tempfile::Builder::new().prefix("sign-").permissions(private).tempdir_in(root).map_err(storage)?;
        let text = format!("{}\n", identity.replace("\r\n", "\n").trim());
        private_file(&keys.path().join("identity"), &text)?;
        let lines = identity.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
        let scrubber = Scrubber::new(lines.map(str::to_owned));
        Ok(Self { keys: Arc::new(keys), scrubber })
    }

    /// What git is told of it.
    pub(super) fn options(&self) -> [String; 2] {
        let file = self.keys.path().join("identity");
        ["gpg.format=ssh".to_owned(), format!("user.signingkey={}", file.display())]
    }
}

#[cfg(test)]
mod unit {
    use super::Signer;

    #[test]
    fn only_a_private_key_without_a_passphrase_is_taken() {
        let root = tempfile::tempdir().unwrap();
        for (text, word) in [
            ("", "private key"),
            ("ssh-ed25519 AAAA public", "private key"),
            ("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n", "passphrase"),
        ] {
            let error = Signer::new(root.path(), text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\r\nc2VjcmV0\r\n-----END OPENSSH PRIVATE KEY-----";
        let signer = Signer::new(root.path(), key).unwrap();
        assert!(!format!("{signer:?}").contains("c2Vj"));
        let file = signer.keys.path().join("identity");
        assert!(std::fs::read_to_string(file).unwrap().ends_with("c2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"));
    }
}
