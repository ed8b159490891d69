//! Server-side apply, reading and pruning of objects of any kind: the hands of the sync.
//!
//! Nothing here decides what to apply. Every real write goes through the gate and carries a precondition: an
//! apply to an existing object names its uid (and its version, where fields of the live object were carried
//! over), a deletion names both. The sync has a field manager of its own, and takes over what it declares:
//! git is the declaration, and a hand edit of a declared field is what a commit is there to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::{DynamicObject, ObjectMeta};
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::timeout;

use super::discovery::{Discovery, DiscoveryError, brief};
use super::write::{Gate, REQUEST_TIMEOUT, WriteObserver};
use crate::api::{InventoryEntry, names};

/// How long a read or a dry run may take: admission webhooks have ten seconds by default. Neither changes
/// anything, so neither needs to end before the lease does.
const PATIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// An object of any kind, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl From<&InventoryEntry> for Target {
    fn from(entry: &InventoryEntry) -> Self {
        Self {
            api_version: entry.api_version.clone(),
            kind: entry.kind.clone(),
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(formatter, "{} {}", self.kind, self.name),
            namespace => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// What the sync needs to know of an object in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub resource_version: String,
    /// It is being deleted.
    pub deleting: bool,
    /// Its annotations of ours (`sluice.dev/…`).
    pub annotations: BTreeMap<String, String>,
}

impl Live {
    fn of(metadata: &ObjectMeta) -> Self {
        let annotations = metadata.annotations.iter().flatten();
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            annotations: annotations
                .filter(|(key, _)| key.starts_with("sluice.dev/"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        }
    }

    /// The digest of the declaration last applied.
    pub fn digest(&self) -> Option<&str> {
        self.annotations.get(names::SOURCE_DIGEST).map(String::as_str)
    }

    /// The commit that last changed the declaration.
    pub fn commit(&self) -> Option<&str> {
        self.annotations.get(names::SOURCE_COMMIT).map(String::as_str)
    }

    /// The DeployRepo (`namespace/name`) that applied it.
    pub fn owner(&self) -> Option<&str> {
        self.annotations.get(names::DEPLOY_REPO).map(String::as_str)
    }

    /// It is to be kept when it leaves the repository.
    pub fn is_prune_disabled(&self) -> bool {
        self.annotations.get(names::PRUNE).is_some_and(|value| value == "disabled")
    }
}

/// Why an object could not be read, tried or written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// This process does not lead.
    #[error("this process does not hold the lease")]
    NotLeader,
    /// The object has changed, or is another one of the same name.
    #[error("{target} has changed meanwhile")]
    Conflict {
        /// The object.
        target: Box<Target>,
    },
    /// The API server refuses. Trying again is of no use before something is mended.
    #[error("{message}")]
    Refused {
        /// The object.
        target: Box<Target>,
        /// `Forbidden`, `Invalid`, …
        reason: String,
        /// In the API server's words.
        message: String,
    },
    /// The cluster does not know the kind.
    #[error("the cluster has no kind {} in {}", target.kind, target.api_version)]
    UnknownKind {
        /// The object.
        target: Box<Target>,
    },
    /// No answer in time: a write may have happened.
    #[error("no answer about {target} in time")]
    Timeout {
        /// The object.
        target: Box<Target>,
    },
    /// The answer is not what an API server says. Nothing of it is kept: it may be a Secret.
    #[error("the answer about {target} cannot be understood")]
    Unreadable {
        /// The object.
        target: Box<Target>,
    },
    /// The API server could not be asked, or had trouble of its own.
    #[error("{target}: {}", brief(source))]
    Api {
        /// The object.
        target: Box<Target>,
        /// The error.
        source: Box<kube::Error>,
    },
    /// It could not be found out where the kind is served.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
}

/// What an apply rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Basis {
    /// There was no such object.
    Absent,
    /// There was this one, whatever its version: only its uid must be the same.
    Object {
        /// Its uid.
        uid: String,
    },
    /// There was this one in this version, and fields of it went into what is applied.
    Version {
        /// Its uid.
        uid: String,
        /// Its version.
        resource_version: String,
    },
}

/// Applies, reads and deletes objects of any kind.
pub struct Applier {
    client: Client,
    discovery: Discovery,
    gate: Arc<dyn Gate>,
    observer: Arc<dyn WriteObserver>,
}

impl Applier {
    /// One client, one gate for all writes.
    pub fn new(client: Client, gate: Arc<dyn Gate>, observer: Arc<dyn WriteObserver>) -> Self {
        Self { discovery: Discovery::new(client.clone()), client, gate, observer }
    }

    /// What the API server serves.
    pub fn discovery(&self) -> &Discovery {
        &self.discovery
    }

    /// The metadata of an object; `None` when there is none, or its kind is not served (any more).
    pub async fn live(&self, target: &Target) -> Result<Option<Live>, ApplyError> {
        let look = async {
            let api = self.api(target).await?;
            self.read(target, api.get_metadata(&target.name)).await
        };
        Ok(or_absent(look.await)?.map(|object| Live::of(&object.metadata)))
    }

    /// A whole object; `None` when there is none.
    pub async fn get(&self, target: &Target) -> Result<Option<Value>, ApplyError> {
        let look = async {
            let api = self.api(target).await?;
            self.read(target, api.get(&target.name)).await
        };
        Ok(or_absent(look.await)?.map(|object| serde_json::to_value(object).unwrap_or_default()))
    }

    /// The data of a Secret, read by its name; `None` when there is none.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, ApplyError> {
        let target = Target {
            api_version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let api: Api<k8s_openapi::api::core::v1::Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = or_absent(self.read(&target, api.get(name)).await)?;
        Ok(secret.map(|secret| secret.data.into_iter().flatten().map(|(key, bytes)| (key, bytes.0)).collect()))
    }

    /// Tries an apply on the server, admission and defaults included, and changes nothing.
    pub async fn dry_run(&self, target: &Target, object: &Value) -> Result<(), ApplyError> {
        let api = self.api(target).await?;
        let params = apply_params().dry_run();
        self.read(target, api.patch(&target.name, &params, &Patch::Apply(object))).await.map(drop)
    }

    /// Applies an object. With [`Basis::Absent`] it is created, or joined with what somebody created meanwhile.
    pub async fn apply(&self, target: &Target, mut object: Value, basis: &Basis) -> Result<(), ApplyError> {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            let (uid, version) = match basis {
                Basis::Absent => (None, None),
                Basis::Object { uid } => (Some(uid), None),
                Basis::Version { uid, resource_version } => (Some(uid), Some(resource_version)),
            };
            if let Some(uid) = uid {
                metadata.insert("uid".to_owned(), Value::from(uid.as_str()));
            }
            if let Some(version) = version {
                metadata.insert("resourceVersion".to_owned(), Value::from(version.as_str()));
            }
        }
        let api = self.api(target).await?;
        let params = apply_params();
        self.write(target, "apply", api.patch(&target.name, &params, &Patch::Apply(&object))).await.map(drop)
    }

    /// Deletes an object as it was seen, what it owns after it. One that is gone already is as good.
    pub async fn delete(&self, target: &Target, uid: &str, resource_version: &str) -> Result<(), ApplyError> {
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: Some(resource_version.to_owned()),
        });
        let deletion = async {
            let api = self.api(target).await?;
            self.write(target, "delete", api.delete(&target.name, &params)).await
        };
        or_absent(deletion.await).map(drop)
    }

    async fn api(&self, target: &Target) -> Result<Api<DynamicObject>, ApplyError> {
        let served = self.discovery.find(&target.api_version, &target.kind).await?;
        let served = served.ok_or_else(|| ApplyError::UnknownKind { target: Box::new(target.clone()) })?;
        Ok(if served.namespaced {
            Api::namespaced_with(self.client.clone(), &target.namespace, &served.resource)
        } else {
            Api::all_with(self.client.clone(), &served.resource)
        })
    }

    async fn read<T>(
        &self,
        target: &Target,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApplyError> {
        self.bounded(target, PATIENT_TIMEOUT, request).await
    }

    async fn bounded<T>(
        &self,
        target: &Target,
        limit: Duration,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApplyError> {
        let error = match timeout(limit, request).await {
            Err(_) => return Err(ApplyError::Timeout { target: Box::new(target.clone()) }),
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => sort(target, error),
        };
        if matches!(error, ApplyError::UnknownKind { .. }) {
            // Its definition has gone since it was looked up.
            self.discovery.forget(&target.api_version);
        }
        Err(error)
    }

    async fn write<T>(
        &self,
        target: &Target,
        verb: &'static str,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApplyError> {
        if !self.gate.may_write() {
            return Err(ApplyError::NotLeader);
        }
        let result = self.bounded(target, REQUEST_TIMEOUT, request).await;
        let word = match &result {
            Ok(_) => "Ok",
            Err(ApplyError::NotLeader) => "NotLeader",
            Err(ApplyError::Conflict { .. }) => "Conflict",
            Err(ApplyError::Refused { .. } | ApplyError::UnknownKind { .. }) => "Refused",
            Err(ApplyError::Timeout { .. }) => "Timeout",
            Err(ApplyError::Api { .. } | ApplyError::Unreadable { .. } | ApplyError::Discovery(_)) => "ApiError",
        };
        // One label for all kinds: people name kinds, and labels of metrics must stay few.
        self.observer.wrote("synced", verb, word);
        result
    }
}

const NOT_FOUND: &str = "NotFound";

fn apply_params() -> PatchParams {
    PatchParams::apply(names::SYNC_FIELD_MANAGER).force().validation_strict()
}

/// What is not there, or cannot be there, as an answer instead of an error.
fn or_absent<T>(result: Result<T, ApplyError>) -> Result<Option<T>, ApplyError> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(ApplyError::UnknownKind { .. }) => Ok(None),
        Err(ApplyError::Refused { reason, .. }) if reason == NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

/// What kind of error this is.
fn sort(target: &Target, error: kube::Error) -> ApplyError {
    let boxed = Box::new(target.clone());
    let mut status = match error {
        kube::Error::Api(status) => status,
        kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) => return ApplyError::Unreadable { target: boxed },
        error => return ApplyError::Api { target: boxed, source: Box::new(error) },
    };
    let refused = |reason: &str, message: &str| ApplyError::Refused {
        target: boxed.clone(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let is_mistyped = status.message.contains("failed to create typed patch object");
    // An address that is not served is "not found" without the name of an object.
    let names_an_object = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
    status.message = said(target, &status);
    match status.code {
        // A conflict of field managers cannot be: the apply is forced. So it is the precondition.
        409 | 412 => ApplyError::Conflict { target: boxed },
        404 if !names_an_object => ApplyError::UnknownKind { target: boxed },
        404 => refused(NOT_FOUND, &status.message),
        400 | 401 | 403 | 405 | 406 | 413 | 415 | 422 => refused(&status.reason, &status.message),
        // A text where a list belongs and the like: the API server takes our fault for its own.
        500 if is_mistyped => refused("Invalid", &status.message),
        _ => ApplyError::Api { target: boxed, source: Box::new(kube::Error::Api(status)) },
    }
}

/// The API server's words. Of a Secret only the names of the fields at fault: messages quote values.
fn said(target: &Target, status: &kube::core::Status) -> String {
    if target.kind != "Secret" {
        return status.message.clone();
    }
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let fields: Vec<&str> = causes.map(|cause| cause.field.as_str()).filter(|field| !field.is_empty()).collect();
    match fields.as_slice() {
        [] => format!("{} (the message is withheld, for it may quote a value of the Secret)", status.reason),
        fields => format!("{}: {}", status.reason, fields.join(", ")),
    }
}
