//! A git host for the stories: smart HTTP by git's own `http-backend`, with what a host adds to it.
//!
//! Passwords per repository, hooks, webhooks, and an outage on demand. It is a stand-in for a real host, so it knows
//! nothing of what is in the repositories.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::command::Command;

mod backend;
mod webhook;

/// How long an outage waits for the requests that are being answered.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// A running git host.
pub struct GitServer {
    address: SocketAddr,
    host: Arc<Host>,
    serving: Option<Serving>,
}

struct Serving {
    end: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

/// What the requests' handlers share.
struct Host {
    root: PathBuf,
    client: reqwest::Client,
    settings: Mutex<HashMap<String, Settings>>,
}

/// What was configured for one repository.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Settings {
    /// The only `Authorization` header that is let in.
    authorization: Option<String>,
    webhook: Option<Webhook>,
}

/// Whom to tell about a push.
#[derive(Clone, Serialize, Deserialize)]
struct Webhook {
    url: String,
    token: Option<String>,
}

impl GitServer {
    /// Serves the repositories below `root` on a free port of `address`.
    pub async fn start(root: PathBuf, address: IpAddr) -> Result<Self> {
        Self::serve(root, SocketAddr::new(address, 0), HashMap::new()).await
    }

    /// Goes on where another server, in another process, ended after [`GitServer::save`].
    pub async fn restore(root: PathBuf, address: SocketAddr, file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::serve(root, address, serde_json::from_slice(&text).with_context(|| file.display().to_string())?).await
    }

    /// Writes passwords and webhooks to a file that only its owner can read.
    pub fn save(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec(&*self.host.settings())?;
        fs::write(file, []).with_context(|| format!("cannot write {}", file.display()))?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    async fn serve(root: PathBuf, address: SocketAddr, settings: HashMap<String, Settings>) -> Result<Self> {
        crate::crypto();
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .context("cannot make a client for the webhooks")?;
        let host = Arc::new(Host { root, client, settings: Mutex::new(settings) });
        let mut server = Self { address, host, serving: None };
        server.start_again().await?;
        Ok(server)
    }

    /// Ends an outage: serves on the same port as before. Does nothing when there is no outage.
    pub async fn start_again(&mut self) -> Result<()> {
        if self.serving.is_some() {
            return Ok(());
        }
        let listener =
            TcpListener::bind(self.address).await.with_context(|| format!("cannot listen on {}", self.address))?;
        self.address = listener.local_addr().context("the git server has no address")?;
        let router = Router::new().fallback(backend::answer).with_state(Arc::clone(&self.host));
        let (end, ended) = oneshot::channel();
        let serve = axum::serve(listener, router).with_graceful_shutdown(async {
            // A sender that is gone means the same as one that spoke.
            let _ = ended.await;
        });
        self.serving = Some(Serving { end, task: tokio::spawn(serve.into_future()) });
        Ok(())
    }

    /// An outage: finishes what it is answering, closes all connections and refuses new ones.
    pub async fn stop(&mut self) {
        let Some(Serving { end, mut task }) = self.serving.take() else { return };
        let _ = end.send(());
        if tokio::time::timeout(LAST_ANSWERS, &mut task).await.is_err() {
            task.abort();
        }
    }

    /// Where it listens, outage or not.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the repository `name`.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.address)
    }

    /// The bare repository `name` on disk.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.host.path(name)
    }

    /// Makes an empty repository that everybody may read and push to, and gives its URL.
    pub async fn create(&self, name: &str) -> Result<String> {
        if !name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-') || name.is_empty() {
            bail!("`{name}` is no name for a repository: letters, digits and `-` are allowed");
        }
        let path = self.path(name);
        if path.exists() {
            bail!("the repository `{name}` exists already");
        }
        isolated(&self.host.root).args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&path).ok().await?;
        for setting in ["http.receivepack", "uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"] {
            isolated(&path).args(["config", setting, "true"]).ok().await?;
        }
        Ok(self.url(name))
    }

    /// From now on only this user with this password may read the repository or push to it.
    pub fn require_password(&self, name: &str, user: &str, password: &str) {
        let authorization = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        self.host.settings().entry(name.to_owned()).or_default().authorization = Some(authorization);
    }

    /// From now on every push that changed the repository is told to `url`, signed with `token` if there is one.
    pub fn set_webhook(&self, name: &str, url: &str, token: Option<&str>) {
        let webhook = Webhook { url: url.to_owned(), token: token.map(str::to_owned) };
        self.host.settings().entry(name.to_owned()).or_default().webhook = Some(webhook);
    }

    /// Nobody is told any more.
    pub fn clear_webhook(&self, name: &str) {
        self.host.settings().entry(name.to_owned()).or_default().webhook = None;
    }

    /// Installs a hook, such as a `pre-receive` that refuses some pushes.
    pub fn set_hook(&self, name: &str, hook: &str, script: &str) -> Result<()> {
        let path = self.path(name).join("hooks").join(hook);
        fs::create_dir_all(self.path(name).join("hooks"))?;
        // A hook that is being run cannot be written to: put the new one in its place.
        let next = path.with_extension("next");
        fs::write(&next, script).with_context(|| format!("cannot write the hook {}", next.display()))?;
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755))?;
        fs::rename(&next, &path).with_context(|| format!("cannot install the hook {}", path.display()))
    }

    /// Takes a hook away again.
    pub fn remove_hook(&self, name: &str, hook: &str) -> Result<()> {
        let path = self.path(name).join("hooks").join(hook);
        fs::remove_file(&path).with_context(|| format!("cannot remove the hook {}", path.display()))
    }
}

impl Host {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.git"))
    }

    /// No one panics while holding it, and a setting cannot be half-written.
    fn settings(&self) -> MutexGuard<'_, HashMap<String, Settings>> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// git in `dir`, untouched by this machine's and this person's configuration.
pub(crate) fn isolated(dir: &Path) -> Command {
    Command::new("git")
        .dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "true")
}

#[cfg(test)]
#[path = "git_server_tests.rs"]
mod tests;
