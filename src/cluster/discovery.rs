//! From `apiVersion` and `kind` to where the API server serves it: cached, and asked again on a miss.
//!
//! A group's version is read whole, so a commit with forty kinds costs a handful of requests, and one without
//! a new kind costs none.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::core::ApiResource;
use kube::core::gvk::GroupVersion;
use kube::discovery::{self, Scope};
use tokio::time::timeout;

/// How long one look may take: aggregated API servers answer slowly.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Where a kind is served.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its address.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// Why it is not known where a kind is served.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The API server could not be asked.
    #[error("the API server could not say what {api_version} holds: {}", brief(source))]
    Api {
        /// The group and version.
        api_version: String,
        /// The error.
        source: Box<kube::Error>,
    },
    /// It did not answer in time.
    #[error("the API server did not say within {} s what {api_version} holds", TIMEOUT.as_secs())]
    Timeout {
        /// The group and version.
        api_version: String,
    },
}

/// An error in few words: the library's own text repeats the whole answer.
pub(super) fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("{} {}", status.code, status.reason),
        error => error.to_string(),
    }
}

/// What the API server serves, as last seen.
pub struct Discovery {
    client: Client,
    versions: Mutex<HashMap<String, HashMap<String, Served>>>,
}

impl Discovery {
    /// Knows nothing yet.
    pub fn new(client: Client) -> Self {
        Self { client, versions: Mutex::default() }
    }

    /// Where a kind is served; `None` when the API server, asked just now, does not know it.
    pub async fn find(&self, api_version: &str, kind: &str) -> Result<Option<Served>, DiscoveryError> {
        if let Some(known) = self.known(api_version, kind) {
            return Ok(Some(known));
        }
        let Ok(version) = api_version.parse::<GroupVersion>() else { return Ok(None) };
        let request = timeout(TIMEOUT, discovery::pinned_group(&self.client, &version));
        let group = match request.await {
            Err(_) => return Err(DiscoveryError::Timeout { api_version: api_version.to_owned() }),
            // By the code: the body of an address that is not served is plain text.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                self.forget(api_version);
                return Ok(None);
            }
            Ok(Err(source)) => {
                return Err(DiscoveryError::Api { api_version: api_version.to_owned(), source: Box::new(source) });
            }
            Ok(Ok(group)) => group,
        };
        let kinds = group.versioned_resources(&version.version).into_iter().map(|(resource, capabilities)| {
            let namespaced = capabilities.scope == Scope::Namespaced;
            (resource.kind.clone(), Served { resource, namespaced })
        });
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.insert(api_version.to_owned(), kinds.collect());
        drop(versions);
        Ok(self.known(api_version, kind))
    }

    /// Asks again next time: something has shown that what is known of this version is out of date.
    pub fn forget(&self, api_version: &str) {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).remove(api_version);
    }

    fn known(&self, api_version: &str, kind: &str) -> Option<Served> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.get(api_version)?.get(kind).cloned()
    }
}
