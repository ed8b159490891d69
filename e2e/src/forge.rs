//! A real forge beside the cluster: Gitea, with pull requests, deploy keys, branch protection, commit statuses and
//! webhooks, reached over HTTPS with an authority of its own and over SSH with a host key that is known.
//!
//! Like a component of the cluster it can be killed, paused and restarted. It runs as an ordinary user, for as root
//! it refuses to; so it has its own copy of the program, which that user can read wherever the tools are kept.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::authority::Authority;
use crate::cluster::{Component, Ready, Slot, teardown};
use crate::command::{Command, run};
use crate::tools::Tools;

mod api;
mod keys;

use api::Api;
pub use api::{Account, CommitStatus, Merge, PullRequest, Repository, Tip};
pub use keys::SshKey;

/// The forge's name among the components of a cluster.
const NAME: &str = "forge";
/// Who it runs as when the harness is root: the user and group `nobody`.
const NOBODY: &str = "65534";

/// A running forge. It ends with this value, unless it is kept.
pub struct Forge {
    component: Component,
    folder: PathBuf,
    address: SocketAddr,
    ssh: SocketAddr,
    known_hosts: String,
    certificate_authority: String,
    client: reqwest::Client,
    /// The place of a forge that stands alone.
    slot: Option<Slot>,
    kept: bool,
}

impl Forge {
    /// A forge beside the cluster whose folder `dir` is, on free ports of `address`, where pods and this machine
    /// both reach it. Whoever takes the cluster down ends the forge too, even after a crash.
    pub async fn start(tools: &Tools, dir: &Path, address: IpAddr) -> Result<Self> {
        crate::crypto();
        let folder = dir.join(NAME);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        copy(&tools.program("gitea")?, &folder.join("gitea"))?;
        copy(&tools.shared("gitea")?, &folder.join("share"))?;
        let authority = Authority::make(&folder.join("tls"))?;
        let names = format!("subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth\n");
        authority.sign("forge", "/CN=forge", &names)?;
        let host_key = SshKey::make(folder.join("host_key"), "forge")?;

        let [https, ssh] = free_ports(address)?;
        let (address, ssh) = (SocketAddr::new(address, https), SocketAddr::new(address, ssh));
        fs::write(folder.join("app.ini"), configuration(&folder, address, ssh))?;
        if rustix::process::geteuid().is_root() {
            let owner = format!("{NOBODY}:{NOBODY}");
            run("chown", ["-R".as_ref(), owner.as_ref(), folder.as_os_str()])?;
        }

        let certificate_authority = fs::read_to_string(authority.path("ca.crt"))?;
        let trusted = reqwest::Certificate::from_pem(certificate_authority.as_bytes()).context("the forge's CA")?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([trusted])
            .timeout(std::time::Duration::from_secs(30))
            .build()
            .context("cannot make a client for the forge")?;
        let mut command = command(&folder).into_iter().chain(["web".to_owned()]);
        let component = Component::new(dir, NAME, command.next().unwrap_or_default())
            .args(command)
            .env("HOME", &folder.to_string_lossy())
            .ready_when(Ready::Answers(format!("https://{address}/api/healthz")));
        let known_hosts = format!("[{}]:{} {}\n", ssh.ip(), ssh.port(), host_key.public());
        let forge = Self {
            component,
            folder,
            address,
            ssh,
            known_hosts,
            certificate_authority,
            client,
            slot: None,
            kept: false,
        };
        // From here on it is ended by its destructor, also when it does not serve.
        forge.component.start().await?;
        Ok(forge)
    }

    /// A forge without a cluster, for this machine only. One that a crash leaves behind is ended by whoever takes
    /// its place, or by taking down the clusters that were left behind.
    pub async fn alone(tools: &Tools) -> Result<Self> {
        let slot = Slot::take()?;
        match Self::start(tools, &slot.layout().dir(), Ipv4Addr::LOCALHOST.into()).await {
            Ok(mut forge) => {
                forge.slot = Some(slot);
                Ok(forge)
            }
            Err(error) => {
                teardown::clean(&slot.layout())?;
                Err(error)
            }
        }
    }

    /// Its process, to kill, pause, resume or restart. It keeps its addresses and all that it holds.
    #[must_use]
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Lets it serve again, whatever a test did to its process.
    pub async fn mend(&self) -> Result<()> {
        if self.component.pid().is_some() {
            self.component.resume()?;
        } else {
            self.component.launch()?;
        }
        self.component.serving().await
    }

    /// Where it keeps all that it holds.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its pages and its API are, as `https://address:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate of the authority that signed the forge's, as PEM.
    #[must_use]
    pub fn certificate_authority(&self) -> &str {
        &self.certificate_authority
    }

    /// Its SSH host key, as a line of a `known_hosts` file.
    #[must_use]
    pub fn known_hosts(&self) -> &str {
        &self.known_hosts
    }

    /// What git needs in its environment to talk to this forge: whom to believe and, for SSH, the key.
    pub fn environment(&self, key: Option<&SshKey>) -> Result<Vec<(String, String)>> {
        let mut environment = vec![("GIT_SSL_CAINFO".to_owned(), path(&self.folder.join("tls/ca.crt")))];
        if let Some(key) = key {
            let hosts = key.file().with_extension("known_hosts");
            fs::write(&hosts, &self.known_hosts).with_context(|| format!("cannot write {}", hosts.display()))?;
            let options = "-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=yes";
            let (key, hosts) = (key.file().display(), hosts.display());
            let ssh = format!("ssh {options} -i '{key}' -o UserKnownHostsFile='{hosts}'");
            environment.push(("GIT_SSH_COMMAND".to_owned(), ssh));
        }
        Ok(environment)
    }

    /// A new user, with a token for everything.
    pub async fn create_user(&self, name: &str) -> Result<Account> {
        let mut gitea = command(&self.folder).into_iter();
        let said = Command::new(gitea.next().unwrap_or_default())
            .args(gitea)
            .args(["admin", "user", "create", "--username", name, "--email", &format!("{name}@shop.test")])
            .args(["--random-password", "--must-change-password=false", "--access-token"])
            .env("HOME", &self.folder)
            .ok()
            .await
            .with_context(|| format!("cannot make the user {name}"))?;
        let token = said.lines().find(|line| line.contains("Access token")).and_then(|line| line.rsplit(' ').next());
        let token = token.ok_or_else(|| anyhow!("the forge made the user {name} and gave no token"))?;
        let api = Api::new(self.client.clone(), self.url(), token);
        Ok(Account::new(name, token, api, self.ssh))
    }

    /// Leaves it running when this value ends; whoever takes the cluster down ends it.
    pub fn keep(mut self) -> Result<()> {
        if self.slot.is_some() {
            bail!("a forge that stands alone cannot be kept");
        }
        self.kept = true;
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.component.stop()?;
        if let Some(slot) = &self.slot {
            return teardown::clean(&slot.layout());
        }
        match fs::remove_dir_all(&self.folder) {
            // Its cluster was taken down first.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.with_context(|| format!("cannot remove {}", self.folder.display())),
        }
    }
}

impl Drop for Forge {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.end()
        {
            eprintln!("cannot end the forge: {error:#}");
        }
    }
}

/// The forge's program with its first arguments, as the user that it runs as.
fn command(folder: &Path) -> Vec<String> {
    let mut command = Vec::new();
    if rustix::process::geteuid().is_root() {
        let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
        command.extend(["setpriv".to_owned(), user, group, "--clear-groups".to_owned()]);
    }
    command.extend([path(&folder.join("gitea")), "--work-path".to_owned(), path(folder)]);
    command.extend(["--config".to_owned(), path(&folder.join("app.ini"))]);
    command
}

/// No mail, no jobs, no calls into the world; webhooks may go to any address, for pods have private ones.
fn configuration(folder: &Path, https: SocketAddr, ssh: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "\
APP_NAME = forge
WORK_PATH = {folder}

[server]
PROTOCOL = https
HTTP_ADDR = {}
HTTP_PORT = {}
ROOT_URL = https://{https}/
CERT_FILE = {folder}/tls/forge.crt
KEY_FILE = {folder}/tls/forge.key
STATIC_ROOT_PATH = {folder}/share
APP_DATA_PATH = {folder}/data
OFFLINE_MODE = true
START_SSH_SERVER = true
BUILTIN_SSH_SERVER_USER = git
SSH_DOMAIN = {}
SSH_PORT = {}
SSH_LISTEN_HOST = {}
SSH_LISTEN_PORT = {}
SSH_SERVER_HOST_KEYS = {folder}/host_key
SSH_ROOT_PATH = {folder}/ssh
SSH_CREATE_AUTHORIZED_KEYS_FILE = false

[database]
DB_TYPE = sqlite3
PATH = {folder}/data/forge.db
SQLITE_JOURNAL_MODE = WAL

[repository]
ROOT = {folder}/repositories
DEFAULT_BRANCH = main

[security]
INSTALL_LOCK = true

[service]
DISABLE_REGISTRATION = true

[webhook]
ALLOWED_HOST_LIST = *

[log]
MODE = console
LEVEL = Info

[indexer]
ISSUE_INDEXER_TYPE = db

[cron.update_checker]
ENABLED = false

[actions]
ENABLED = false

[packages]
ENABLED = false
",
        https.ip(),
        https.port(),
        ssh.ip(),
        ssh.port(),
        ssh.ip(),
        ssh.port(),
    )
}

/// Ports that are free now. The forge cannot choose its own and say which.
fn free_ports<const COUNT: usize>(address: IpAddr) -> Result<[u16; COUNT]> {
    // All are held until all are known, so that no two are the same.
    let mut held = Vec::new();
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = TcpListener::bind((address, 0)).with_context(|| format!("no free port on {address}"))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    // Where the file system can, without copying a byte.
    run("cp", ["-r".as_ref(), "--reflink=auto".as_ref(), from.as_os_str(), to.as_os_str()]).map(drop)
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
