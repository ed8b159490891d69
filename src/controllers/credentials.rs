//! What opens the repositories of a DeployRepo: from the Secrets that it names, for each purpose its own.
//!
//! A Secret is read by its name when it is needed, never listed or watched, and its text leaves this module only as
//! credentials. One that was meant for one host is never used for another.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::{DeployRepoSpec, ForgeKind, SecretReference};
use crate::cluster::apply::{Applier, ApplyError};
use crate::forge::{AppTokens, ForgeClient, ForgeError, GIT_USER, GitHubApp, Location};
use crate::git::{Access, Credentials, RemoteAddress};

/// Why a repository or a forge cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// What a field names is not there, or not complete.
    #[error("{0}")]
    Missing(String),
    /// The API server could not be asked.
    #[error("{field}: {source}")]
    Api {
        /// The field that names the Secret.
        field: &'static str,
        /// What it said.
        source: ApplyError,
    },
    /// The forge gives no token for its App, or cannot be spoken to as declared.
    #[error("{field}: {source}")]
    Forge {
        /// The field that names the Secret.
        field: &'static str,
        /// What is wrong.
        source: ForgeError,
    },
}

impl CredentialsError {
    /// Whether it may go away by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Missing(_) => false,
            Self::Api { source, .. } => !matches!(source, ApplyError::Refused { .. }),
            Self::Forge { source, .. } => source.is_transient(),
        }
    }

    /// One word, for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing(_) => "CredentialsNotFound",
            Self::Api { .. } if self.is_transient() => "ApiUnavailable",
            Self::Api { .. } => "CredentialsNotFound",
            Self::Forge { source, .. } => source.reason(),
        }
    }
}

/// The way to a repository for one purpose: its address, and the field and the name of the Secret that opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The address.
    pub url: String,
    /// The API of the GitHub that has it, where it is not the usual one.
    api: Option<String>,
    /// The field that names the Secret, or would.
    field: &'static str,
    secret: Option<String>,
}

impl Remote {
    fn new(spec: &DeployRepoSpec, url: &str, field: &'static str, secret: Option<&SecretReference>) -> Self {
        let declared = spec.forge.as_ref().filter(|forge| forge.kind == ForgeKind::GitHub && same_host(url, &spec.url));
        let api = declared.and_then(|forge| forge.api.clone());
        Self { url: url.to_owned(), api, field, secret: secret.map(|secret| secret.name.clone()) }
    }

    /// For reading the manifests.
    pub fn read(spec: &DeployRepoSpec) -> Self {
        Self::new(spec, &spec.url, "spec.secretRef", spec.secret_ref.as_ref())
    }

    /// For writing to the branches that people use: reverts and their pull requests.
    pub fn write(spec: &DeployRepoSpec) -> Self {
        match &spec.write_secret_ref {
            Some(secret) => Self::new(spec, &spec.url, "spec.writeSecretRef", Some(secret)),
            None => Self::read(spec),
        }
    }

    /// For reading and writing the log.
    pub fn log(spec: &DeployRepoSpec) -> Self {
        let url = spec.log.url.as_ref().unwrap_or(&spec.url);
        if spec.log.secret_ref.is_some() || !same_host(url, &spec.url) {
            return Self::new(spec, url, "spec.log.secretRef", spec.log.secret_ref.as_ref());
        }
        Self { url: url.clone(), ..Self::write(spec) }
    }

    /// For the second remote of the log, if there is one.
    pub fn mirror(spec: &DeployRepoSpec) -> Option<Self> {
        let mirror = spec.log.mirror.as_ref()?;
        Some(Self::new(spec, &mirror.url, "spec.log.mirror.secretRef", mirror.secret_ref.as_ref()))
    }
}

fn same_host(one: &str, other: &str) -> bool {
    let origin = |url| RemoteAddress::parse(url).ok().map(|address| address.origin());
    one == other || origin(one).is_some_and(|one| origin(other) == Some(one))
}

/// A Secret that is named; without data when there is none of that name.
pub(super) struct NamedSecret {
    /// The field that names it.
    pub(super) field: &'static str,
    /// `namespace/name`, for messages.
    pub(super) name: String,
    pub(super) data: Option<BTreeMap<String, Vec<u8>>>,
}

/// Turns what DeployRepos declare into what opens repositories and forges. Cheap to clone; all clones keep the same
/// tokens.
#[derive(Clone)]
pub struct Secrets {
    applier: Arc<Applier>,
    tokens: AppTokens,
}

impl Secrets {
    /// From the Secrets that this reads.
    pub fn new(applier: Arc<Applier>) -> Self {
        Self { applier, tokens: AppTokens::default() }
    }

    /// The way into a repository of a DeployRepo in `namespace`.
    ///
    /// # Errors
    /// A sentence that says what is missing, naming the field, the Secret and its key.
    pub async fn access(&self, namespace: &str, remote: &Remote) -> Result<Access, CredentialsError> {
        let secret = match &remote.secret {
            None => None,
            Some(name) => Some(self.named(namespace, remote.field, name).await?),
        };
        let (app, authorities) = match access_from(&remote.url, remote.field, secret)? {
            Opener::Known(access) => return Ok(access),
            Opener::App { app, authorities } => (app, authorities),
        };
        let failed = |source| CredentialsError::Forge { field: remote.field, source };
        let location = Location::new(ForgeKind::GitHub, remote.api.as_deref(), &remote.url).map_err(failed)?;
        let password = self.tokens.password(&app, &location, authorities.as_deref()).await.map_err(failed)?;
        Ok(Access { credentials: Credentials::Basic { username: GIT_USER.to_owned(), password }, authorities })
    }

    /// The SSH private key that signs the log, if it is signed.
    ///
    /// # Errors
    /// A sentence that says what is missing, naming the field, the Secret and its key.
    pub async fn signing_key(
        &self,
        namespace: &str,
        spec: &DeployRepoSpec,
    ) -> Result<Option<String>, CredentialsError> {
        let Some(signing) = &spec.log.signing else { return Ok(None) };
        let secret = self.named(namespace, "spec.log.signing.secretRef", &signing.secret_ref.name).await?;
        secret.value("identity").map(Some)
    }

    /// The API of the forge that a DeployRepo in `namespace` declares, for its repository. None when it declares none.
    ///
    /// # Errors
    /// A sentence that says what is missing, naming the field, the Secret and its key.
    pub async fn forge(&self, namespace: &str, spec: &DeployRepoSpec) -> Result<Option<ForgeClient>, CredentialsError> {
        let Some(forge) = &spec.forge else { return Ok(None) };
        let Remote { field, secret, .. } = match &forge.secret_ref {
            Some(secret) => Remote::new(spec, &spec.url, "spec.forge.secretRef", Some(secret)),
            None => Remote::write(spec),
        };
        let failed = |source| CredentialsError::Forge { field, source };
        let location = Location::new(forge.kind, forge.api.as_deref(), &spec.url).map_err(failed)?;
        let Some(name) = secret else {
            return Err(CredentialsError::Missing(format!(
                "{field}: the API of the forge needs a Secret with a token"
            )));
        };
        let secret = self.named(namespace, field, &name).await?;
        let authorities = secret.authorities()?;
        let token = if secret.has(APP_KEY) {
            self.tokens.password(&secret.app()?, &location, authorities.as_deref()).await.map_err(failed)?
        } else if forge.secret_ref.is_some() {
            secret.value("token")?
        } else {
            // The password for git is a token, and one for the API on the same server.
            secret.value("password")?
        };
        ForgeClient::new(location, &token, authorities.as_deref()).map(Some).map_err(failed)
    }

    /// A Secret in `namespace` that a field names.
    ///
    /// # Errors
    /// When the API server could not be asked.
    pub(super) async fn named(
        &self,
        namespace: &str,
        field: &'static str,
        name: &str,
    ) -> Result<NamedSecret, CredentialsError> {
        let data = self.applier.secret(namespace, name).await;
        let data = data.map_err(|source| CredentialsError::Api { field, source })?;
        Ok(NamedSecret { field, name: format!("{namespace}/{name}"), data })
    }
}

/// The key of a Secret that makes it one of a GitHub App.
const APP_KEY: &str = "githubAppPrivateKey";

impl NamedSecret {
    fn missing(&self, what: &str) -> CredentialsError {
        CredentialsError::Missing(format!("{}: {what}", self.field))
    }

    /// The authorities to believe, if it names any.
    pub(super) fn authorities(&self) -> Result<Option<String>, CredentialsError> {
        self.has("ca.crt").then(|| self.value("ca.crt")).transpose()
    }

    fn app(&self) -> Result<GitHubApp, CredentialsError> {
        Ok(GitHubApp {
            app: self.value("githubAppID")?,
            installation: self.value("githubAppInstallationID")?,
            private_key: self.value(APP_KEY)?,
        })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.data.as_ref().is_some_and(|data| data.contains_key(key))
    }

    pub(super) fn value(&self, key: &str) -> Result<String, CredentialsError> {
        let name = &self.name;
        let Some(data) = &self.data else { return Err(self.missing(&format!("Secret {name} does not exist"))) };
        match data.get(key).map(|bytes| text(bytes)) {
            Some(Some(value)) => Ok(value),
            Some(None) => Err(self.missing(&format!("key {key} of Secret {name} is empty or not UTF-8 text"))),
            None => Err(self.missing(&format!("Secret {name} has no key {key}"))),
        }
    }
}

/// What a Secret opens an address with.
#[derive(Debug, PartialEq, Eq)]
enum Opener {
    /// With what it holds.
    Known(Access),
    /// With a token for which its App has to be asked.
    App { app: GitHubApp, authorities: Option<String> },
}

/// The way into an address, from the Secret if one is named.
fn access_from(url: &str, field: &str, secret: Option<NamedSecret>) -> Result<Opener, CredentialsError> {
    let by_key = url.starts_with("ssh://");
    let Some(secret) = secret else {
        if by_key {
            let message = format!("{field}: {url} needs a Secret with the keys identity and known_hosts");
            return Err(CredentialsError::Missing(message));
        }
        return Ok(Opener::Known(Access::default()));
    };
    if by_key {
        let (identity, known_hosts) = (secret.value("identity")?, secret.value("known_hosts")?);
        // A key file ends with a line break; some readers insist.
        let credentials =
            Credentials::Ssh { identity: format!("{identity}\n"), known_hosts: format!("{known_hosts}\n") };
        return Ok(Opener::Known(credentials.into()));
    }
    let authorities = secret.authorities()?;
    if secret.has(APP_KEY) {
        return Ok(Opener::App { app: secret.app()?, authorities });
    }
    let for_something_else = authorities.is_some() || secret.has("webhookToken");
    if !secret.has("username") && !secret.has("password") && for_something_else {
        // A public repository whose webhook is guarded, or whose server has an authority of its own.
        return Ok(Opener::Known(Access { credentials: Credentials::None, authorities }));
    }
    let credentials = Credentials::Basic { username: secret.value("username")?, password: secret.value("password")? };
    Ok(Opener::Known(Access { credentials, authorities }))
}

/// The text of a Secret's value, without the line break that `echo` leaves; `None` when it is empty or no text.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches(['\r', '\n']);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_purpose_has_its_secret_and_no_secret_goes_to_another_host() {
        let of = |more: serde_json::Value| -> DeployRepoSpec {
            let mut spec = json!({"url": "https://git.example/shop/deploy", "secretRef": {"name": "read"}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(spec).unwrap()
        };
        let secret =
            |Remote { field, secret, .. }: Remote| secret.map(|name| format!("{field}={name}")).unwrap_or_default();
        let write = of(json!({"writeSecretRef": {"name": "write"}}));
        assert_eq!(secret(Remote::read(&write)), "spec.secretRef=read");
        assert_eq!(secret(Remote::write(&of(json!({})))), "spec.secretRef=read");
        assert_eq!(secret(Remote::write(&write)), "spec.writeSecretRef=write");
        assert_eq!(secret(Remote::log(&write)), "spec.writeSecretRef=write");
        assert_eq!(Remote::mirror(&write), None);
        for (url, named) in [
            ("https://git.example/shop/log", "spec.secretRef=read"),
            ("https://git.example:443/shop/log", "spec.secretRef=read"),
            ("https://git.example:8443/shop/log", ""),
            ("http://git.example/shop/log", ""),
            ("https://git.example.evil/shop/log", ""),
            ("ssh://git@git.example/shop/log", ""),
        ] {
            let remote = Remote::log(&of(json!({"log": {"url": url}})));
            assert_eq!((remote.url.as_str(), secret(remote.clone()).as_str()), (url, named));
        }
        let log = of(json!({"log": {"url": "https://other.example/log", "secretRef": {"name": "log"},
                                    "mirror": {"url": "https://mirror.example/log"}}}));
        assert_eq!(secret(Remote::log(&log)), "spec.log.secretRef=log");
        let mirror = Remote::mirror(&log).unwrap();
        assert_eq!((mirror.url.as_str(), secret(mirror.clone()).as_str()), ("https://mirror.example/log", ""));
    }

    #[test]
    fn credentials_are_what_the_address_needs() {
        let data = |keys: &[(&str, &str)]| {
            let data = keys.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
            Some(NamedSecret { field: "spec.secretRef", name: "shop/git".to_owned(), data: Some(data) })
        };
        let of = |url: &str, secret| access_from(url, "spec.secretRef", secret).map_err(|error| error.to_string());
        assert_eq!(of("https://x/r", None), Ok(Opener::Known(Access::default())));
        assert_eq!(of("https://x/r", data(&[("webhookToken", "t")])), Ok(Opener::Known(Access::default())));
        let authorities = Some("PEM".to_owned());
        let public = Access { credentials: Credentials::None, authorities: authorities.clone() };
        assert_eq!(of("https://x/r", data(&[("ca.crt", "PEM\n")])), Ok(Opener::Known(public)));
        let opened = Credentials::Basic { username: "bob".into(), password: "hush".into() };
        let keys = [("username", "bob"), ("password", "hush"), ("ca.crt", "PEM\n")];
        assert_eq!(of("https://x/r", data(&keys)), Ok(Opener::Known(Access { credentials: opened, authorities })));
        let key = || data(&[("identity", "KEY\n"), ("known_hosts", "x ssh-ed25519 AAAA")]);
        let opened = Credentials::Ssh { identity: "KEY\n".into(), known_hosts: "x ssh-ed25519 AAAA\n".into() };
        assert_eq!(of("ssh://git@x/r", key()), Ok(Opener::Known(opened.into())));
        let app = [("githubAppID", "1"), ("githubAppInstallationID", "2"), ("githubAppPrivateKey", "PEM\n")];
        let opened = GitHubApp { app: "1".into(), installation: "2".into(), private_key: "PEM".into() };
        assert_eq!(of("https://x/o/r", data(&app)), Ok(Opener::App { app: opened, authorities: None }));
        for (url, secret, message) in [
            ("ssh://git@x/r", None, "ssh://git@x/r needs a Secret with the keys identity and known_hosts"),
            ("ssh://git@x/r", data(&[("identity", "KEY")]), "Secret shop/git has no key known_hosts"),
            ("https://x/r", key(), "Secret shop/git has no key username"),
            (
                "https://x/r",
                data(&[("username", "bob"), ("password", "\n")]),
                "key password of Secret shop/git is empty",
            ),
            ("https://x/r", data(&app[1..]), "Secret shop/git has no key githubAppID"),
            ("https://x/r", data(&[("ca.crt", "")]), "key ca.crt of Secret shop/git is empty"),
            (
                "https://x/r",
                Some(NamedSecret { field: "spec.secretRef", name: "shop/git".to_owned(), data: None }),
                "Secret shop/git does not exist",
            ),
        ] {
            let error = of(url, secret).unwrap_err();
            assert!(error.starts_with("spec.secretRef: ") && error.contains(message), "{error}");
        }
    }
}
