//! The bare repositories on our own disk, one pair a remote, and the way to the remote.
//!
//! Everything in here can be lost: it is fetched again. Reading sources and writing the ledger have a directory
//! and a lock each, so that a slow source never delays the record of an abort, and so that the source's copy may
//! be shallow and partial while the ledger's is whole.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::address::{Access, Credentials, RemoteAddress, Scheme, check_branch, directory_name};
use super::command::{Git, storage};
use super::error::{GitError, Result, Scrubber};
use super::ledger::Ledger;
use super::signing::Signer;

/// How long git may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To ask for the tip of a branch.
    pub ask: Duration,
    /// To fetch.
    pub fetch: Duration,
    /// To push.
    pub push: Duration,
    /// For work on our own disk.
    pub local: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            ask: Duration::from_secs(20),
            fetch: Duration::from_secs(120),
            push: Duration::from_secs(60),
            local: Duration::from_secs(60),
        }
    }
}

/// All repositories the operator knows, below one directory. Cheap to clone; all clones are the same cache. There
/// is one for a directory, for its locks are in memory.
#[derive(Clone)]
pub struct GitCache {
    root: PathBuf,
    timeouts: Timeouts,
    /// The program that git runs for addresses of ssh.
    ssh: String,
    stores: Arc<std::sync::Mutex<HashMap<String, Arc<Stores>>>>,
}

/// The directories of one remote.
pub(super) struct Stores {
    pub(super) source: tokio::sync::Mutex<Store>,
    /// Commits without their files.
    pub(super) commits: tokio::sync::Mutex<Store>,
    pub(super) ledger: Arc<tokio::sync::Mutex<Store>>,
}

/// One bare repository. Whoever uses it holds its lock.
pub(super) struct Store {
    pub(super) directory: PathBuf,
    home: PathBuf,
    /// The server does not give single files: everything is fetched.
    pub(super) whole: bool,
}

/// One remote repository, with what opens it. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(super) stores: Arc<Stores>,
    pub(super) remote: Arc<Remote>,
    pub(super) timeouts: Timeouts,
    pub(super) home: PathBuf,
}

/// The way to a remote repository.
pub(super) struct Remote {
    pub(super) address: RemoteAddress,
    options: Vec<String>,
    environment: Vec<(String, OsString)>,
    scrubber: Scrubber,
    /// Holds the files of keys and certificates; they go when nobody needs them any more.
    files: Option<tempfile::TempDir>,
}

impl GitCache {
    /// Below this directory, which is made if it does not exist and belongs to the cache alone.
    pub fn new(root: PathBuf) -> Result<Self> {
        private_directory(&root)?;
        private_directory(&root.join("home"))?;
        Ok(Self { root, timeouts: Timeouts::default(), ssh: "ssh".to_owned(), stores: Arc::default() })
    }

    /// With other time limits.
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// With another program in the place of ssh.
    #[cfg(test)]
    pub(crate) fn with_ssh(mut self, program: &Path) -> Self {
        self.ssh = program.display().to_string();
        self
    }

    /// A repository by its address, as a user of the cluster wrote it.
    pub fn repository(&self, url: &str, access: impl Into<Access>) -> Result<Repository> {
        self.repository_at(RemoteAddress::parse(url)?, access)
    }

    /// A key that signs logs, from its text.
    pub fn signer(&self, identity: &str) -> Result<Signer> {
        Signer::new(&self.root, identity)
    }

    /// A repository by its checked address.
    pub fn repository_at(&self, address: RemoteAddress, access: impl Into<Access>) -> Result<Repository> {
        let stores = self.stores(&address);
        let remote = Arc::new(Remote::new(address, access.into(), &self.root, &self.ssh)?);
        Ok(Repository { stores, remote, timeouts: self.timeouts, home: self.root.join("home") })
    }

    /// Our own copies of a remote.
    pub(super) fn stores(&self, address: &RemoteAddress) -> Arc<Stores> {
        let canonical = address.canonical();
        let directory = directory_name(&self.root, &canonical);
        let home = self.root.join("home");
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let stores = stores.entry(canonical).or_insert_with(|| {
            let store = |name: &str| Store { directory: directory.join(name), home: home.clone(), whole: false };
            Arc::new(Stores {
                source: tokio::sync::Mutex::new(store("source.git")),
                commits: tokio::sync::Mutex::new(store("commits.git")),
                ledger: Arc::new(tokio::sync::Mutex::new(store("ledger.git"))),
            })
        });
        Arc::clone(stores)
    }
}

impl Repository {
    /// Its address.
    pub fn address(&self) -> &RemoteAddress {
        &self.remote.address
    }

    /// The commit at the tip of a branch, or nothing when there is no such branch.
    pub async fn remote_head(&self, branch: &str) -> Result<Option<String>> {
        check_branch("branch", branch)?;
        let git = self.remote.git(None, &self.home);
        remote_head(&git, branch, self.timeouts.ask).await
    }

    /// The ledger of one cluster in this repository. There is one writer: ask for it once, and keep it.
    pub fn ledger(&self, cluster: &str) -> Result<Ledger> {
        Ledger::remote(self, cluster)
    }
}

/// The commit at the tip of a branch.
pub(super) async fn remote_head(git: &Git, branch: &str, limit: Duration) -> Result<Option<String>> {
    let full = format!("refs/heads/{branch}");
    let answer = list_remote(git, branch, &[&full], limit).await?;
    // A pattern matches the ends of names too, so the name is compared in full.
    let answer = String::from_utf8_lossy(&answer);
    let mut lines = answer.lines().filter_map(|line| line.split_once('\t'));
    Ok(lines.find(|(_, name)| *name == full).map(|(commit, _)| commit.to_owned()))
}

/// What a git server says of its references, as lines of a commit and a name.
///
/// To git, any web page is a server of the old "dumb" kind that has no references. A sign-in page in the server's place
/// must not look like an empty repository: nothing would be known to have been aborted. So an answer without
/// references counts only from a server with which git has agreed on a protocol, as its trace says.
pub(super) async fn list_remote(git: &Git, branch: &str, patterns: &[&str], limit: Duration) -> Result<Vec<u8>> {
    let trace = tempfile::NamedTempFile::new_in(&git.home).map_err(storage)?;
    let mut traced = git.clone();
    traced.environment.push(("GIT_TRACE2_EVENT".to_owned(), trace.path().into()));
    let arguments = ["ls-remote", "--quiet", "--refs", "--", "origin"].into_iter().chain(patterns.iter().copied());
    let answer = traced.call(format!("asking for the branch {branch}"), arguments).limit(limit).run().await?;
    let agreed = || std::fs::read_to_string(trace.path()).map(|text| text.contains("\"negotiated-version\""));
    if answer.is_empty() && !agreed().map_err(storage)? {
        let detail = "something answers there that is no git server".to_owned();
        return Err(GitError::Unreachable { remote: git.remote.clone(), detail });
    }
    Ok(answer)
}

impl Remote {
    fn new(address: RemoteAddress, access: Access, root: &Path, ssh: &str) -> Result<Self> {
        let refuse =
            |reason: &str| GitError::InvalidCredentials { remote: address.to_string(), reason: reason.to_owned() };
        let mut remote = Self {
            options: vec![format!("remote.origin.url={address}")],
            environment: Vec::new(),
            scrubber: Scrubber::default(),
            files: None,
            address: address.clone(),
        };
        let protocols: &[&str] = match address.scheme() {
            Scheme::Http | Scheme::Https => &["http", "https"],
            Scheme::Ssh => &["ssh"],
            Scheme::Local => &["file"],
        };
        remote.options.extend(protocols.iter().map(|protocol| format!("protocol.{protocol}.allow=always")));
        match (address.scheme(), access.credentials) {
            (Scheme::Ssh, Credentials::Ssh { identity, known_hosts }) => {
                if identity.trim().is_empty() {
                    return Err(refuse("the key \"identity\" is empty"));
                }
                if known_hosts.trim().is_empty() {
                    return Err(refuse("the key \"known_hosts\" is empty: without it any host could be the server"));
                }
                let keys = private_files(root, "ssh-")?;
                // ssh wants Unix line ends and one at the end.
                let text = |text: &str| format!("{}\n", text.replace("\r\n", "\n").trim_end());
                let identity_file = private_file(&keys.path().join("identity"), &text(&identity))?;
                let hosts_file = private_file(&keys.path().join("known_hosts"), &text(&known_hosts))?;
                let command = format!(
                    "{ssh} -F /dev/null -i {} -o IdentitiesOnly=yes -o IdentityAgent=none -o UserKnownHostsFile={} \
                     -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o UpdateHostKeys=no \
                     -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=2 \
                     -o ForwardAgent=no -o ClearAllForwardings=yes",
                    quoted(&identity_file)?,
                    quoted(&hosts_file)?,
                );
                remote.environment.push(("GIT_SSH_COMMAND".to_owned(), command.into()));
                remote.environment.push(("GIT_SSH_VARIANT".to_owned(), "ssh".into()));
                let lines = identity.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
                remote.scrubber = Scrubber::new(lines.map(str::to_owned));
                remote.files = Some(keys);
            }
            (Scheme::Http | Scheme::Https, Credentials::Basic { username, password }) => {
                if password.is_empty() {
                    return Err(refuse("the key \"password\" is empty"));
                }
                if username.contains([':', '\n', '\r']) || password.contains(['\n', '\r']) {
                    return Err(refuse("\"username\" has no colon, and neither key has more than one line"));
                }
                let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                // Bound to scheme, host and port; only in the environment of the process that needs it.
                let mut set = |name: &str, value: String| remote.environment.push((name.to_owned(), value.into()));
                set("GIT_CONFIG_COUNT", "1".to_owned());
                set("GIT_CONFIG_KEY_0", format!("http.{}/.extraHeader", address.origin()));
                set("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {pair}"));
                remote.scrubber = Scrubber::new([pair, password]);
            }
            (_, Credentials::None) => {}
            (Scheme::Ssh, Credentials::Basic { .. }) => {
                return Err(refuse("an ssh address needs \"identity\" and \"known_hosts\""));
            }
            (Scheme::Http | Scheme::Https, Credentials::Ssh { .. }) => {
                return Err(refuse("an http address needs \"username\" and \"password\""));
            }
            (Scheme::Local, _) => return Err(refuse("a local directory needs none")),
        }
        if address.scheme() == Scheme::Ssh && remote.files.is_none() {
            return Err(refuse("an ssh address needs \"identity\" and \"known_hosts\""));
        }
        if let (Scheme::Https, Some(authorities)) = (address.scheme(), access.authorities) {
            if authorities.contains("PRIVATE KEY") {
                return Err(refuse("the key \"ca.crt\" holds a private key: only certificates belong there"));
            }
            let certificates: std::result::Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(authorities.as_bytes()).collect();
            if certificates.map_or(true, |certificates| certificates.is_empty()) {
                return Err(refuse("the key \"ca.crt\" holds no certificate in PEM format"));
            }
            let files = private_files(root, "tls-")?;
            let bundle = private_file(&files.path().join("ca.crt"), &authorities)?;
            // Variables, for they win over those of our own environment; both, or the system's authorities would be
            // trusted as well.
            remote.environment.push(("GIT_SSL_CAINFO".to_owned(), bundle.into()));
            remote.environment.push(("GIT_SSL_CAPATH".to_owned(), files.path().into()));
            remote.files = Some(files);
        }
        Ok(remote)
    }

    /// How git is called for a directory when it shall talk to this remote.
    pub(super) fn git(&self, directory: Option<&Path>, home: &Path) -> Git {
        Git {
            directory: directory.map(Path::to_owned),
            home: home.to_owned(),
            remote: self.address.to_string(),
            options: self.options.clone(),
            environment: self.environment.clone(),
            scrubber: self.scrubber.clone(),
        }
    }
}

impl Store {
    /// A directory that has no remote, for [`super::LocalLedger`].
    pub(super) fn local(directory: PathBuf) -> Self {
        Self { directory, home: PathBuf::from("/nonexistent"), whole: true }
    }

    /// How git is called here when it shall talk to nobody: no protocol is allowed, no address is known.
    pub(super) fn git(&self) -> Git {
        Git {
            directory: Some(self.directory.clone()),
            home: self.home.clone(),
            remote: self.directory.display().to_string(),
            options: Vec::new(),
            environment: Vec::new(),
            scrubber: Scrubber::default(),
        }
    }

    /// How git is called here when it shall talk to the remote.
    pub(super) fn git_with(&self, remote: &Remote) -> Git {
        remote.git(Some(&self.directory), &self.home)
    }

    /// Makes the repository if it is not there.
    pub(super) async fn prepare(&self) -> Result<()> {
        if self.directory.join("HEAD").exists() {
            return Ok(());
        }
        private_directory(&self.directory)?;
        let arguments = ["init", "--quiet", "--bare", "--template=", "--initial-branch=none"];
        self.git().call("making the local repository", arguments).run().await?;
        Ok(())
    }

    /// Removes what git began to write and could not end, which it leaves for weeks: on a full disk each new try would
    /// take what room there is. Whoever calls this holds the lock, so no git is at work here.
    pub(super) fn sweep(&self) {
        let within =
            |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let begun = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("tmp_"))
        };
        let folders = within(&self.directory.join("objects")).filter(|path| path.is_dir());
        for path in folders.flat_map(|folder| within(&folder).collect::<Vec<_>>()).filter(begun) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an unfinished file is left");
            }
        }
    }

    /// Throws it away. It is made again when needed.
    pub(super) fn discard(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(storage(error)),
            _ => Ok(()),
        }
    }
}

/// Fails when there is no git, or one older than 2.39.
pub async fn check_executable() -> Result<String> {
    let nowhere = Store::local(PathBuf::from("/nonexistent"));
    let version = nowhere.git().call("asking for the version", ["version"]).line().await?;
    let numbers = version.trim_start_matches("git version ").split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let numbers: Vec<u32> = numbers.take(2).collect();
    if numbers < vec![2, 39] {
        return Err(GitError::Executable { detail: format!("{version}, but 2.39 or newer is needed") });
    }
    Ok(version)
}

fn private_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| GitError::Storage { detail: format!("{}: {error}", path.display()) })
}

/// A directory for files that only we may read; it goes with its value.
fn private_files(root: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    let private = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix(prefix).permissions(private).tempdir_in(root).map_err(storage)
}

pub(super) fn private_file(path: &Path, text: &str) -> Result<PathBuf> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(storage)?;
    file.write_all(text.as_bytes()).map_err(storage)?;
    Ok(path.to_owned())
}

/// For the shell that git runs ssh with.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| GitError::Storage { detail: "the cache's path is not UTF-8".to_owned() })?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}
