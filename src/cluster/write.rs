//! Every write to the cluster, each with its precondition, behind one gate.
//!
//! Nothing here decides; one request goes out, and its answer goes into the index at
//! once, so that the next decision sees it. A write whose precondition failed is a [`WriteError::Conflict`]:
//! look again. A write whose answer was lost is repeated by the next decision and finds itself done.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, ValidationDirective};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::index::Index;
use super::kinds::Kind;
use super::objects::{DeploymentObject, Identity, Key};
use crate::api::{RolloutStatus, names};

/// How long one request may take. Shorter than the lease's safety margin, so that a write begun as the leader
/// is not answered after another has taken over.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a write did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This process does not lead.
    #[error("this process does not hold the lease")]
    NotLeader,
    /// The object has changed, or is not what was seen.
    #[error("{what} has changed meanwhile")]
    Conflict {
        /// Which object.
        what: String,
    },
    /// The API server refuses: the reason goes to the Rollout's condition.
    #[error("the API server refuses {what}: {message}")]
    Refused {
        /// Which write.
        what: String,
        /// `Forbidden`, `Invalid`, …
        reason: String,
        /// In the API server's words.
        message: String,
    },
    /// A PodDisruptionBudget allows it only later.
    #[error("{what} has to wait: {message}")]
    Later {
        /// Which write.
        what: String,
        /// In the API server's words.
        message: String,
    },
    /// What the effect needs cannot be made from what is there.
    #[error("{0}")]
    Unprepared(String),
    /// No answer in time: it may have happened.
    #[error("no answer about {what} within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// Which write.
        what: String,
    },
    /// The API server could not be asked, or had trouble of its own.
    #[error("{what}: {source}")]
    Api {
        /// Which write.
        what: String,
        /// The error.
        source: Box<kube::Error>,
    },
}

impl WriteError {
    /// One word for metrics: bounded.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotLeader => "NotLeader",
            Self::Conflict { .. } => "Conflict",
            Self::Refused { .. } => "Refused",
            Self::Later { .. } => "Later",
            Self::Unprepared(_) => "Unprepared",
            Self::Timeout { .. } => "Timeout",
            Self::Api { .. } => "ApiError",
        }
    }
}

/// Whether this process may write now.
pub trait Gate: Send + Sync + 'static {
    /// True only while the lease is held for longer than one request may take.
    fn may_write(&self) -> bool;
}

/// Told of each write, for metrics.
pub trait WriteObserver: Send + Sync + 'static {
    /// A write ended.
    fn wrote(&self, kind: &'static str, verb: &'static str, result: &'static str);
}

impl WriteObserver for crate::telemetry::Metrics {
    fn wrote(&self, kind: &'static str, verb: &'static str, result: &'static str) {
        self.api_write(kind, verb, result);
    }
}

/// Writes to the cluster.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    index: Arc<Index>,
    gate: Arc<dyn Gate>,
    observer: Arc<dyn WriteObserver>,
}

impl Writer {
    /// A writer that feeds `index` with the answers.
    pub fn new(client: Client, index: Arc<Index>, gate: Arc<dyn Gate>, observer: Arc<dyn WriteObserver>) -> Self {
        Self { client, index, gate, observer }
    }

    /// The cluster as last seen.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Whether this process may write now.
    pub fn may_write(&self) -> bool {
        self.gate.may_write()
    }

    /// Replaces a Rollout's status as it was seen at this very version.
    pub async fn replace_status(&self, identity: &Identity, status: &RolloutStatus) -> Result<(), WriteError> {
        let status = serde_json::to_value(status).map_err(|error| WriteError::Unprepared(error.to_string()))?;
        self.replace_status_of(Kind::Rollout, identity, status).await
    }

    /// Replaces the status of one of our objects as it was seen at this very version.
    pub async fn replace_status_of(&self, kind: Kind, identity: &Identity, status: Value) -> Result<(), WriteError> {
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": identity.uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": identity.resource_version},
            {"op": "add", "path": "/status", "value": status},
        ]);
        self.json_patch(kind, &identity.key(), Some("status"), patch).await
    }

    /// Puts our finalizer on a Rollout as it was seen, or takes it off; those of others stay.
    pub async fn set_finalizer(&self, identity: &Identity, on: bool) -> Result<(), WriteError> {
        let others = identity.finalizers.iter().map(String::as_str).filter(|finalizer| *finalizer != names::HAND_BACK);
        let finalizers: Vec<&str> = others.chain(on.then_some(names::HAND_BACK)).collect();
        let patch = json!([
            {"op": "test", "path": "/metadata/uid", "value": identity.uid},
            {"op": "test", "path": "/metadata/resourceVersion", "value": identity.resource_version},
            {"op": "add", "path": "/metadata/finalizers", "value": finalizers},
        ]);
        let key = identity.key();
        let done = self.json_patch(Kind::Rollout, &key, None, patch).await;
        if done.is_ok() && finalizers.is_empty() && identity.deleting {
            // The answer is the object as it went: kept, it would be a ghost until the watch says so.
            self.index.remove(Kind::Rollout, &key, &identity.uid);
        }
        done
    }

    /// Deletes an object as it was seen.
    pub async fn delete(&self, kind: Kind, key: &Key, seen: &Identity) -> Result<(), WriteError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(seen.uid.clone()),
                resource_version: Some(seen.resource_version.clone()),
            }),
            ..DeleteParams::background()
        };
        let what = format!("deletion of {} {key}", kind.name());
        let api = self.api(kind, key);
        let answer = self.bounded(kind, "delete", what, api.delete(&key.name, &params)).await?;
        if answer.is_right() {
            self.index.remove(kind, key, &seen.uid);
        }
        Ok(())
    }

    /// Applies JSON Patch operations; the first ones are tests.
    pub async fn json_patch(
        &self,
        kind: Kind,
        key: &Key,
        subresource: Option<&str>,
        operations: Value,
    ) -> Result<(), WriteError> {
        let patch = serde_json::from_value(operations).map_err(|error| WriteError::Unprepared(error.to_string()))?;
        let patch: Patch<()> = Patch::Json(patch);
        // A field that the cluster's version of a route does not know is refused by name: dropped without a word it
        // would be written again for ever.
        let strict = matches!(kind, Kind::Route(_)).then_some(ValidationDirective::Strict);
        let params = PatchParams {
            field_manager: Some(names::FIELD_MANAGER.to_owned()),
            field_validation: strict,
            ..PatchParams::default()
        };
        let api = self.api(kind, key);
        let what = format!("{} {key}", kind.name());
        let answer = match subresource {
            Some(subresource) => {
                let request = api.patch_subresource(subresource, &key.name, &params, &patch);
                self.bounded(kind, "patch", what, request).await?
            }
            None => self.bounded(kind, "patch", what, api.patch(&key.name, &params, &patch)).await?,
        };
        self.index.apply(kind, &answer);
        Ok(())
    }

    /// Sets the size of a Deployment, as it was seen. By its `scale`, so that nothing else of it may be written.
    pub(super) async fn scale_deployment(
        &self,
        key: &Key,
        seen: &DeploymentObject,
        replicas: i32,
    ) -> Result<(), WriteError> {
        let kind = Kind::Deployment;
        // A Scale of 0 is written without a number.
        let (path, value) = match seen.replicas {
            0 => ("/spec", json!({})),
            some => ("/spec/replicas", json!(some)),
        };
        let patch = serde_json::from_value(json!([
            {"op": "test", "path": "/metadata/uid", "value": seen.identity.uid},
            {"op": "test", "path": path, "value": value},
            {"op": "add", "path": "/spec/replicas", "value": replicas},
        ]));
        let patch: Patch<()> = Patch::Json(patch.map_err(|error| WriteError::Unprepared(error.to_string()))?);
        let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api = self.api(kind, key);
        let what = format!("the scale of Deployment {key}");
        let request = api.patch_scale(&key.name, &params, &patch);
        let answer = self.bounded(kind, "patch", what, request).await?;
        // The answer is a Scale: of the Deployment it tells the size and the version.
        let version = answer.metadata.resource_version.unwrap_or_default();
        self.index.scaled(key, &seen.identity.uid, &version, replicas);
        Ok(())
    }

    /// Ends this very pod, unless a PodDisruptionBudget needs it now.
    pub(super) async fn evict(&self, key: &Key, uid: &str) -> Result<(), WriteError> {
        let what = format!("the eviction of Pod {key}");
        // Not by kube's `evict`: its delete options have a name that no API server reads, and the uid would be ignored.
        let body = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "deleteOptions": {"preconditions": {"uid": uid}}});
        let api = self.api(Kind::Pod, key);
        let params = PostParams::default();
        let request = api.create_subresource::<Value, Value>("eviction", &key.name, &params, &body);
        match self.bounded(Kind::Pod, "evict", what, request).await {
            Err(WriteError::Api { what, source }) => match &*source {
                kube::Error::Api(status) if status.code == 429 => {
                    Err(WriteError::Later { what, message: status.message.clone() })
                }
                _ => Err(WriteError::Api { what, source }),
            },
            Ok(_) => {
                self.index.evicted(key, uid);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Creates an object that `owner` controls. One of that name that the same owner controls is taken as the
    /// answer to an earlier try; one that it does not control is refused.
    pub(super) async fn create(&self, kind: Kind, owner: &Identity, key: &Key, body: Value) -> Result<(), WriteError> {
        let what = format!("{} {key}", kind.name());
        let params = PostParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let body = serde_json::to_vec(&body).map_err(|error| WriteError::Unprepared(error.to_string()))?;
        let url = <DynamicObject as kube::Resource>::url_path(&kind.resource(), Some(&key.namespace));
        let mut request = kube::core::Request::new(url)
            .create(&params, body)
            .map_err(|error| WriteError::Unprepared(error.to_string()))?;
        // Strict: a field the API server does not know is an error that names it, before anything moves.
        let uri = format!("{}&fieldValidation=Strict", request.uri()).parse();
        *request.uri_mut() = uri.map_err(|_| WriteError::Unprepared(format!("no address for {what}")))?;
        let answer = self.bounded(kind, "create", what.clone(), self.client.request::<DynamicObject>(request)).await;
        match answer {
            Ok(object) => {
                self.index.apply(kind, &object);
                Ok(())
            }
            Err(WriteError::Refused { reason, .. }) if reason == "AlreadyExists" => {
                let api = self.api(kind, key);
                let existing = self.bounded(kind, "get", what.clone(), api.get(&key.name)).await?;
                let ours = super::objects::identity(&existing);
                if ours.deleting {
                    return Err(WriteError::Conflict { what });
                }
                if ours.owner.as_deref() != Some(owner.uid.as_str()) {
                    return Err(WriteError::Refused {
                        what,
                        reason: "NotOurs".to_owned(),
                        message: "an object of that name exists and belongs to somebody else; delete or rename it"
                            .to_owned(),
                    });
                }
                self.index.apply(kind, &existing);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn api(&self, kind: Kind, key: &Key) -> Api<DynamicObject> {
        let resource = self.index.resource(kind);
        if kind.is_cluster_scoped() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &key.namespace, &resource)
        }
    }

    /// One request behind the gate, bounded in time, its error sorted.
    async fn bounded<T>(
        &self,
        kind: Kind,
        verb: &'static str,
        what: String,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WriteError> {
        if !self.gate.may_write() {
            return Err(WriteError::NotLeader);
        }
        let result = match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Err(_) => Err(WriteError::Timeout { what }),
            Ok(Err(error)) => Err(sort(what, error)),
            Ok(Ok(answer)) => Ok(answer),
        };
        self.observer.wrote(kind.name(), verb, result.as_ref().map_or_else(WriteError::reason, |_| "Ok"));
        result
    }
}

/// Asks whoever leads to look at a DeployRepo now, by a stamp on it. The one write that needs no lease: it changes
/// nothing but when somebody looks.
pub async fn request_look(client: Client, repo: &Key) -> Result<(), WriteError> {
    let what = format!("the stamp on DeployRepo {repo}");
    let api: Api<DynamicObject> = Api::namespaced_with(client, &repo.namespace, &Kind::DeployRepo.resource());
    let stamp = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let patch = json!({"metadata": {"annotations": {names::REQUESTED_AT: stamp}}});
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match tokio::time::timeout(REQUEST_TIMEOUT, api.patch_metadata(&repo.name, &params, &Patch::Merge(patch))).await {
        Err(_) => Err(WriteError::Timeout { what }),
        Ok(Err(error)) => Err(sort(what, error)),
        Ok(Ok(_)) => Ok(()),
    }
}

/// Lets no pod of the operator's Deployment run, so that whoever asks for the lease next gets it. The one other write
/// that needs no lease: it is how a lease is given up.
pub async fn stand_down(client: Client, deployment: &Key) -> Result<(), WriteError> {
    let what = format!("the scale of Deployment {deployment}");
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("apps", "v1", "Deployment"), "deployments");
    let api: Api<DynamicObject> = Api::namespaced_with(client, &deployment.namespace, &resource);
    let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let params = PatchParams { field_manager: Some(names::FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match tokio::time::timeout(REQUEST_TIMEOUT, api.patch_scale(&deployment.name, &params, &patch)).await {
        Err(_) => Err(WriteError::Timeout { what }),
        Ok(Err(error)) => Err(sort(what, error)),
        Ok(Ok(_)) => Ok(()),
    }
}

/// What kind of error this is. A failed `test` of a JSON Patch comes as 422 without causes in the object.
fn sort(what: String, error: kube::Error) -> WriteError {
    let kube::Error::Api(status) = &error else {
        return WriteError::Api { what, source: Box::new(error) };
    };
    let failed_test = status.code == 422 && status.message.starts_with("the server rejected our request");
    match status.code {
        409 if status.reason == "AlreadyExists" => {
            WriteError::Refused { what, reason: status.reason.clone(), message: status.message.clone() }
        }
        404 | 409 | 410 | 412 => WriteError::Conflict { what },
        _ if failed_test => WriteError::Conflict { what },
        400 | 401 | 403 | 405 | 413 | 415 | 422 => {
            WriteError::Refused { what, reason: status.reason.clone(), message: status.message.clone() }
        }
        _ => WriteError::Api { what, source: Box::new(error) },
    }
}

pub(super) fn conflict(key: &Key) -> WriteError {
    WriteError::Conflict { what: key.to_string() }
}
