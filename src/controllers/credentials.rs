//! What opens the repositories of a DeployRepo: from the Secrets that it names, for each purpose its own.
//!
//! A Secret is read by its name when it is needed, never listed or watched, and its text leaves this module only as
//! credentials. One that was meant for one host is never used for another.

use std::collections::BTreeMap;

use crate::api::{DeployRepoSpec, SecretReference};
use crate::cluster::apply::{Applier, ApplyError};
use crate::git::{Access, Credentials, RemoteAddress};

/// Why a repository cannot be opened.
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
}

impl CredentialsError {
    /// Whether it may go away by itself.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Api { source, .. } if !matches!(source, ApplyError::Refused { .. }))
    }
}

/// The way to a repository for one purpose: its address, and the field and the name of the Secret that opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The address.
    pub url: String,
    /// The field that names the Secret, or would.
    field: &'static str,
    secret: Option<String>,
}

impl Remote {
    fn new(url: &str, field: &'static str, secret: Option<&SecretReference>) -> Self {
        Self { url: url.to_owned(), field, secret: secret.map(|secret| secret.name.clone()) }
    }

    /// For reading the manifests.
    pub fn read(spec: &DeployRepoSpec) -> Self {
        Self::new(&spec.url, "spec.secretRef", spec.secret_ref.as_ref())
    }

    /// For writing to the branches that people use: reverts and their pull requests.
    pub fn write(spec: &DeployRepoSpec) -> Self {
        match &spec.write_secret_ref {
            Some(secret) => Self::new(&spec.url, "spec.writeSecretRef", Some(secret)),
            None => Self::read(spec),
        }
    }

    /// For reading and writing the log.
    pub fn log(spec: &DeployRepoSpec) -> Self {
        let url = spec.log.url.as_ref().unwrap_or(&spec.url);
        if spec.log.secret_ref.is_some() || !same_host(url, &spec.url) {
            return Self::new(url, "spec.log.secretRef", spec.log.secret_ref.as_ref());
        }
        Self { url: url.clone(), ..Self::write(spec) }
    }

    /// For the second remote of the log, if there is one.
    pub fn mirror(spec: &DeployRepoSpec) -> Option<Self> {
        let mirror = spec.log.mirror.as_ref()?;
        Some(Self::new(&mirror.url, "spec.log.mirror.secretRef", mirror.secret_ref.as_ref()))
    }

    /// What opens it, from the Secret in the DeployRepo's `namespace`.
    ///
    /// # Errors
    /// A sentence that says what is missing, naming the field, the Secret and its key.
    pub async fn access(&self, applier: &Applier, namespace: &str) -> Result<Access, CredentialsError> {
        let secret = match &self.secret {
            None => None,
            Some(name) => Some(named_secret(applier, namespace, self.field, name).await?),
        };
        access_from(&self.url, self.field, secret)
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

/// The SSH private key that signs the log, if it is signed.
///
/// # Errors
/// A sentence that says what is missing, naming the field, the Secret and its key.
pub async fn signing_key(
    applier: &Applier,
    namespace: &str,
    spec: &DeployRepoSpec,
) -> Result<Option<String>, CredentialsError> {
    let Some(signing) = &spec.log.signing else { return Ok(None) };
    let name = &signing.secret_ref.name;
    let secret = named_secret(applier, namespace, "spec.log.signing.secretRef", name).await?;
    secret.value("identity").map(Some)
}

async fn named_secret(
    applier: &Applier,
    namespace: &str,
    field: &'static str,
    name: &str,
) -> Result<NamedSecret, CredentialsError> {
    let data = applier.secret(namespace, name).await;
    let data = data.map_err(|source| CredentialsError::Api { field, source })?;
    Ok(NamedSecret { field, name: format!("{namespace}/{name}"), data })
}

impl NamedSecret {
    fn missing(&self, what: &str) -> CredentialsError {
        CredentialsError::Missing(format!("{}: {what}", self.field))
    }

    fn has(&self, key: &str) -> bool {
        self.data.as_ref().is_some_and(|data| data.contains_key(key))
    }

    fn value(&self, key: &str) -> Result<String, CredentialsError> {
        let name = &self.name;
        let Some(data) = &self.data else { return Err(self.missing(&format!("Secret {name} does not exist"))) };
        match data.get(key).map(|bytes| text(bytes)) {
            Some(Some(value)) => Ok(value),
            Some(None) => Err(self.missing(&format!("key {key} of Secret {name} is empty or not UTF-8 text"))),
            None => Err(self.missing(&format!("Secret {name} has no key {key}"))),
        }
    }
}

/// The way into an address, from the Secret if one is named.
fn access_from(url: &str, field: &str, secret: Option<NamedSecret>) -> Result<Access, CredentialsError> {
    let by_key = url.starts_with("ssh://");
    let Some(secret) = secret else {
        if by_key {
            let message = format!("{field}: {url} needs a Secret with the keys identity and known_hosts");
            return Err(CredentialsError::Missing(message));
        }
        return Ok(Access::default());
    };
    if by_key {
        let (identity, known_hosts) = (secret.value("identity")?, secret.value("known_hosts")?);
        // A key file ends with a line break; some readers insist.
        return Ok(
            Credentials::Ssh { identity: format!("{identity}\n"), known_hosts: format!("{known_hosts}\n") }.into()
        );
    }
    let authorities = if secret.has("ca.crt") { Some(secret.value("ca.crt")?) } else { None };
    let for_something_else = authorities.is_some() || secret.has("webhookToken");
    if !secret.has("username") && !secret.has("password") && for_something_else {
        // A public repository whose webhook is guarded, or whose server has an authority of its own.
        return Ok(Access { credentials: Credentials::None, authorities });
    }
    let credentials = Credentials::Basic { username: secret.value("username")?, password: secret.value("password")? };
    Ok(Access { credentials, authorities })
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
        assert_eq!(of("https://x/r", None), Ok(Access::default()));
        assert_eq!(of("https://x/r", data(&[("webhookToken", "t")])), Ok(Access::default()));
        let authorities = Some("PEM".to_owned());
        let public = Access { credentials: Credentials::None, authorities: authorities.clone() };
        assert_eq!(of("https://x/r", data(&[("ca.crt", "PEM\n")])), Ok(public));
        let opened = Credentials::Basic { username: "bob".into(), password: "hush".into() };
        let keys = [("username", "bob"), ("password", "hush"), ("ca.crt", "PEM\n")];
        assert_eq!(of("https://x/r", data(&keys)), Ok(Access { credentials: opened, authorities }));
        let key = || data(&[("identity", "KEY\n"), ("known_hosts", "x ssh-ed25519 AAAA")]);
        let opened = Credentials::Ssh { identity: "KEY\n".into(), known_hosts: "x ssh-ed25519 AAAA\n".into() };
        assert_eq!(of("ssh://git@x/r", key()), Ok(opened.into()));
        for (url, secret, message) in [
            ("ssh://git@x/r", None, "ssh://git@x/r needs a Secret with the keys identity and known_hosts"),
            ("ssh://git@x/r", data(&[("identity", "KEY")]), "Secret shop/git has no key known_hosts"),
            ("https://x/r", key(), "Secret shop/git has no key username"),
            (
                "https://x/r",
                data(&[("username", "bob"), ("password", "\n")]),
                "key password of Secret shop/git is empty",
            ),
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
