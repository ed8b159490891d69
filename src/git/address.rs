//! Where a repository is, and what opens it.
//!
//! An address never carries a secret: what stands in an address ends up in arguments, logs and messages.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::{GitError, Result};

/// A checked address of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteAddress {
    scheme: Scheme,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scheme {
    Http,
    Https,
    Ssh,
    /// A directory on this machine: only for tests and rehearsals, see [`RemoteAddress::local`].
    Local,
}

impl RemoteAddress {
    /// Reads `https://…`, `http://…` or `ssh://…`.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |reason: &str| {
            // An address with a secret in it must not be shown whole.
            let shown = match (text.find("://"), text.rfind('@')) {
                (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &text[..scheme + 3], &text[at..]),
                _ => text.to_owned(),
            };
            GitError::InvalidAddress { address: shown.chars().take(200).collect(), reason: reason.to_owned() }
        };
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(refuse("it contains white space"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(refuse("write https://host/path, http://host/path or ssh://user@host/path"));
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "ssh" => Scheme::Ssh,
            _ => return Err(refuse("only https, http and ssh are allowed")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, host_port) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if let Some(user) = user {
            if scheme != Scheme::Ssh || user.contains(':') {
                return Err(refuse("credentials belong in the Secret of secretRef, not in the address"));
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
            if user.is_empty() || user.starts_with('-') || !user.chars().all(plain) {
                return Err(refuse("the user's name has letters that do not belong there"));
            }
        }
        let (host, port) = split_port(host_port).ok_or_else(|| refuse("the port is not a number from 1 to 65535"))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
        if host.is_empty() || host.starts_with('-') || !host.chars().all(plain) {
            return Err(refuse("the host's name is missing or has letters that do not belong there"));
        }
        if path.contains(['?', '#']) {
            return Err(refuse("a query or fragment does not belong there"));
        }
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Err(refuse("the path of the repository is missing"));
        }
        let default = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
            _ => 22,
        };
        Ok(Self {
            scheme,
            user: user.map(str::to_owned),
            host: host.to_ascii_lowercase(),
            port: port.filter(|port| *port != default),
            path: path.to_owned(),
        })
    }

    /// A directory on this machine. Never made from what a user of the cluster writes.
    pub fn local(directory: &Path) -> Result<Self> {
        let refuse = |reason: &str| GitError::InvalidAddress {
            address: directory.display().to_string(),
            reason: reason.to_owned(),
        };
        if !directory.is_absolute() {
            return Err(refuse("a local directory is given from the root on"));
        }
        let path = directory.to_str().ok_or_else(|| refuse("it is not UTF-8 text"))?;
        Ok(Self { scheme: Scheme::Local, user: None, host: String::new(), port: None, path: path.to_owned() })
    }

    /// One text for one way to one repository, however it was spelled.
    pub fn canonical(&self) -> String {
        let path = self.path.strip_suffix(".git").unwrap_or(&self.path);
        format!("{}{path}", self.origin())
    }

    /// One text for one repository, by whichever way: what has one writer. HTTPS and SSH of one host are the
    /// same repository.
    pub fn identity(&self) -> String {
        let path = self.path.strip_suffix(".git").unwrap_or(&self.path);
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}{path}", self.host)
    }

    /// Scheme, user, host and port: what credentials are bound to.
    pub fn origin(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Ssh => "ssh",
            Scheme::Local => return String::new(),
        };
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{user}{}{port}", self.host)
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path)
    }
}

fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let colon = match text.rfind(']') {
        Some(end) => text[end..].find(':').map(|at| end + at),
        None => text.find(':'),
    };
    match colon {
        None => Some((text, None)),
        Some(at) => text[at + 1..].parse().ok().filter(|port| *port > 0).map(|port| (&text[..at], Some(port))),
    }
}

/// What opens a repository. It has no `Display`, and its `Debug` shows the kind only.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// HTTP basic authentication; a token is a password, with the user name its server wants.
    Basic {
        /// The user.
        username: String,
        /// The password or token.
        password: String,
    },
    /// An SSH key, and the host keys to believe.
    Ssh {
        /// The private key, as a file would hold it.
        identity: String,
        /// Lines of a `known_hosts` file.
        known_hosts: String,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::None => "none",
            Credentials::Basic { .. } => "basic(***)",
            Credentials::Ssh { .. } => "ssh(***)",
        })
    }
}

/// What opens a repository, and whom to believe that it is the right one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// What opens it.
    pub credentials: Credentials,
    /// The authorities that may have signed the certificate of an HTTPS server, as PEM certificates; those that the
    /// system trusts when absent. Other servers have no certificate.
    pub authorities: Option<String>,
}

impl From<Credentials> for Access {
    fn from(credentials: Credentials) -> Self {
        Self { credentials, authorities: None }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Somebody may have put a key where certificates belong.
        let authorities = if self.authorities.is_some() { "own" } else { "the system's" };
        f.debug_struct("Access").field("credentials", &self.credentials).field("authorities", &authorities).finish()
    }
}

/// Refuses a branch name that git would refuse or misread.
pub(super) fn check_branch(field: &'static str, name: &str) -> Result<()> {
    let refuse = |reason: &str| {
        let value = name.chars().take(200).collect();
        Err(GitError::InvalidName { field, value, reason: reason.to_owned() })
    };
    if name.is_empty() || name.len() > 255 {
        return refuse("a branch name has 1 to 255 letters");
    }
    if name.starts_with('-') || name.starts_with('/') || name.ends_with('/') || name.ends_with('.') || name == "@" {
        return refuse("a branch name does not begin with - or /, nor end with / or .");
    }
    if name.starts_with("refs/") {
        return refuse("give the branch without refs/heads/");
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c)) {
        return refuse("a branch name has no white space and none of ~ ^ : ? * [ \\");
    }
    if name.contains("..") || name.contains("@{") || name.contains("//") {
        return refuse("a branch name does not contain .. or @{ or //");
    }
    if name.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock")) {
        return refuse("no part of a branch name begins with . or ends with .lock");
    }
    Ok(())
}

/// The folder in the repository, without decoration; `None` for the whole repository.
pub(super) fn check_path(path: Option<&str>) -> Result<Option<String>> {
    let Some(given) = path else { return Ok(None) };
    let refuse = |reason: &str| {
        let value = given.chars().take(200).collect();
        Err(GitError::InvalidName { field: "path", value, reason: reason.to_owned() })
    };
    if given.starts_with('/') {
        return refuse("it is taken from the root of the repository: leave the leading / away");
    }
    if given.chars().any(char::is_control) {
        return refuse("it contains control characters");
    }
    let parts: Vec<&str> = given.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refuse("it must not contain ..");
    }
    Ok(if parts.is_empty() { None } else { Some(parts.join("/")) })
}

/// A directory name for a text of any kind.
pub(super) fn directory_name(root: &Path, text: &str) -> PathBuf {
    use sha2::{Digest, Sha256};
    let digest = crate::api::names::hex(&Sha256::digest(text));
    root.join(&digest[..32])
}

#[cfg(test)]
mod unit {
    use super::{Credentials, RemoteAddress, check_branch, check_path};

    #[test]
    fn one_repository_is_one_however_it_is_spelled() {
        let canonical = |text: &str| RemoteAddress::parse(text).unwrap().canonical();
        assert_eq!(canonical("HTTPS://Git.Example:443/team/shop.git/"), "https://git.example/team/shop");
        assert_eq!(canonical("https://git.example/team/shop"), "https://git.example/team/shop");
        assert_ne!(canonical("https://git.example:8443/team/shop"), "https://git.example/team/shop");
        let identity = |text: &str| RemoteAddress::parse(text).unwrap().identity();
        assert_eq!(identity("ssh://git@git.example/team/shop.git"), identity("https://git.example/team/shop"));
        assert_eq!(identity("http://[::1]:80/x"), "[::1]/x");
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_no_secret_is_shown() {
        for text in [
            "git@host:team/shop",
            "file:///etc",
            "/etc",
            "ext::sh -c id",
            "https://",
            "https://host",
            "https://host/",
            "https://-oProxyCommand=id/x",
            "ssh://-oProxyCommand=id/x",
            "ssh://-l@host/x",
            "https://host:0/x",
            "https://host:99999/x",
            "https://host/x?token=abc",
            "https://ho st/x",
        ] {
            assert!(RemoteAddress::parse(text).is_err(), "{text}");
        }
        for text in ["https://bob:s3cr3t@host/x", "https://s3cr3t@host/x", "ssh://git:s3cr3t@host/x"] {
            let error = RemoteAddress::parse(text).unwrap_err().to_string();
            assert!(error.contains("secretRef") && !error.contains("s3cr3t"), "{error}");
        }
        let credentials = Credentials::Basic { username: "bob".into(), password: "s3cr3t".into() };
        assert_eq!(format!("{credentials:?}"), "basic(***)");
    }

    #[test]
    fn names_that_git_would_misread_are_refused() {
        for name in ["main", "release/2.x", "rollout-log/prod", "ünïcode"] {
            assert!(check_branch("branch", name).is_ok(), "{name}");
        }
        for name in ["", "-f", "a..b", "a b", "a:b", "a*", "a.lock", ".a", "a/.b", "a@{1}", "@", "a/", "a//b", "refs/x"]
        {
            assert!(check_branch("branch", name).is_err(), "{name}");
        }
        assert_eq!(check_path(Some("./deploy//prod/")).unwrap().as_deref(), Some("deploy/prod"));
        assert_eq!(check_path(Some(".")).unwrap(), None);
        for path in ["/etc", "../x", "a/../../x", "a\nb"] {
            assert!(check_path(Some(path)).is_err(), "{path}");
        }
    }
}
