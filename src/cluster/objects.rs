//! What is kept of each watched object: the few fields a decision may depend on.
//!
//! Pure. Each projection reads the object as JSON, so that one object that does not make sense is a value
//! with an error in it, and never the end of a watch (linkerd2 #14741).

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{
    AnalysisRunSpec, AnalysisRunStatus, DeployRepoSpec, DeployRepoStatus, InterventionSpec, InterventionStatus,
    PodTemplate, RolloutSpec, RolloutStatus, names,
};

/// A namespace and a name; the namespace is empty for what is not in one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Key {
    /// From its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What every kept object has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: String,
    /// The version, for preconditions.
    pub resource_version: String,
    /// The generation of the spec.
    pub generation: i64,
    /// When it was created.
    pub created_at: Option<DateTime<Utc>>,
    /// It is being deleted.
    pub deleting: bool,
    /// What must be done before it may go, each by its name.
    pub finalizers: Vec<String>,
    /// Its annotations of ours (`sluice.dev/…`).
    pub annotations: BTreeMap<String, String>,
    /// The uid of its controlling owner.
    pub owner: Option<String>,
}

/// What every kept object has, read from `object`.
pub fn identity(object: &DynamicObject) -> Identity {
    Identity::of(object)
}

impl Identity {
    /// The key.
    pub fn key(&self) -> Key {
        Key::new(self.namespace.clone(), self.name.clone())
    }

    /// It stays until we have handed back what it steers.
    pub fn is_held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == names::HAND_BACK)
    }

    fn of(object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created_at: metadata.creation_timestamp.as_ref().and_then(|time| time.0.to_string().parse().ok()),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            annotations: metadata
                .annotations
                .iter()
                .flatten()
                .filter(|(key, _)| key.starts_with("sluice.dev/"))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            owner: metadata
                .owner_references
                .iter()
                .flatten()
                .find(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.clone()),
        }
    }
}

/// An object of one of our own kinds: its spec, or what is wrong with it, and its status.
#[derive(Clone, Debug)]
pub struct Declared<Spec, Status> {
    /// What every object has.
    pub identity: Identity,
    /// The spec, or the field that does not make sense and why.
    pub spec: Result<Spec, Undecodable>,
    /// The status; one that does not make sense counts as none, and says so.
    pub status: Option<Status>,
    /// The status could not be read.
    pub status_trouble: Option<Undecodable>,
}

/// A field that does not make sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Undecodable {
    /// Its path from the object's root.
    pub field: String,
    /// Why.
    pub message: String,
}

/// A Rollout.
pub type RolloutObject = Declared<RolloutSpec, RolloutStatus>;
/// An AnalysisRun.
pub type AnalysisRunObject = Declared<AnalysisRunSpec, AnalysisRunStatus>;
/// An Intervention.
pub type InterventionObject = Declared<InterventionSpec, InterventionStatus>;
/// A DeployRepo.
pub type DeployRepoObject = Declared<DeployRepoSpec, DeployRepoStatus>;

impl<Spec: DeserializeOwned, Status: DeserializeOwned> Declared<Spec, Status> {
    /// Reads an object.
    pub fn of(object: &DynamicObject) -> Self {
        let spec = decode(object.data.get("spec").unwrap_or(&Value::Null), "spec");
        let (status, status_trouble) = match object.data.get("status") {
            None | Some(Value::Null) => (None, None),
            Some(status) => match decode(status, "status") {
                Ok(status) => (Some(status), None),
                Err(trouble) => (None, Some(trouble)),
            },
        };
        Self { identity: Identity::of(object), spec, status, status_trouble }
    }
}

/// Decodes with the path of the field that failed.
pub fn decode<T: DeserializeOwned>(value: &Value, root: &str) -> Result<T, Undecodable> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { root.to_owned() } else { format!("{root}.{path}") };
        Undecodable { field, message: error.into_inner().to_string() }
    })
}

/// A ReplicaSet of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSetObject {
    /// What every object has.
    pub identity: Identity,
    /// The Rollout it belongs to.
    pub rollout: String,
    /// The revision of its pods.
    pub revision: String,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that exist.
    pub current: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that have been ready for long enough.
    pub available: i32,
    /// The counts are about the present spec.
    pub observed: bool,
    /// The template as the Rollout has it, without what we add.
    pub template: PodTemplate,
    /// What the cluster says hinders its pods.
    pub trouble: Option<String>,
}

impl ReplicaSetObject {
    /// Reads a ReplicaSet that carries our label.
    pub fn of(object: &DynamicObject) -> Self {
        let label = |key: &str| object.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
        let count = |pointer: &str| {
            let number = object.data.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
            i32::try_from(number).unwrap_or_default()
        };
        let mut template = object.data.pointer("/spec/template").cloned().unwrap_or_default();
        if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(names::REVISION);
        }
        let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array);
        let trouble = conditions.into_iter().flatten().find_map(|condition| {
            let failed = condition["type"] == "ReplicaFailure" && condition["status"] == "True";
            failed.then(|| condition["message"].as_str().unwrap_or("the pods cannot be created").to_owned())
        });
        let identity = Identity::of(object);
        let observed =
            object.data.pointer("/status/observedGeneration").and_then(Value::as_i64) >= Some(identity.generation);
        Self {
            rollout: label(names::ROLLOUT).unwrap_or_default(),
            revision: label(names::REVISION).unwrap_or_default(),
            replicas: count("/spec/replicas"),
            current: count("/status/replicas"),
            ready: count("/status/readyReplicas"),
            available: count("/status/availableReplicas"),
            observed,
            template: PodTemplate(template),
            trouble,
            identity,
        }
    }
}

/// A pod of one of our ReplicaSets, from its beginning until it is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodObject {
    /// What every object has.
    pub identity: Identity,
    /// The Rollout it belongs to.
    pub rollout: String,
    /// Its revision.
    pub revision: String,
    /// None of its containers runs any more, or will again.
    pub finished: bool,
    /// What keeps it from starting, if the cluster says so.
    pub trouble: Option<String>,
    /// Since when it is ready, if it is.
    pub ready_since: Option<DateTime<Utc>>,
}

impl PodObject {
    /// Reads a pod that carries our label.
    pub fn of(object: &DynamicObject) -> Self {
        let labels = object.metadata.labels.as_ref();
        let revision = labels.and_then(|labels| labels.get(names::REVISION)).cloned().unwrap_or_default();
        // Its ReplicaSet is `<rollout>-<revision>`; names are kept short enough that none is ever cut.
        let owners = object.metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true) && owner.kind == "ReplicaSet");
        let rollout = owner.and_then(|owner| owner.name.strip_suffix(&revision)?.strip_suffix('-'));
        let text = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_str);
        Self {
            rollout: rollout.unwrap_or_default().to_owned(),
            finished: matches!(text("/status/phase"), Some("Succeeded" | "Failed")),
            trouble: pod_trouble(&object.data),
            ready_since: ready_since(&object.data),
            identity: Identity::of(object),
            revision,
        }
    }
}

/// Since when a pod is ready, if it is.
fn ready_since(data: &Value) -> Option<DateTime<Utc>> {
    let conditions = data.pointer("/status/conditions").and_then(Value::as_array)?;
    let ready = conditions.iter().find(|it| it["type"] == "Ready" && it["status"] == "True")?;
    ready["lastTransitionTime"].as_str()?.parse().ok()
}

/// So many letters of what the cluster says of a pod are kept.
const LONGEST_TROUBLE: usize = 200;

/// What keeps a pod from starting: it cannot be placed, or one of its containers cannot begin or does not stay.
fn pod_trouble(data: &Value) -> Option<String> {
    let list = |pointer: &str| data.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let said = |reason: &str, message: Option<&str>| match message {
        Some(message) if !message.is_empty() => {
            // An image that cannot be pulled fills a page; its beginning tells what is wrong.
            let (mut head, rest) = (message.to_owned(), message.char_indices().nth(LONGEST_TROUBLE));
            if let Some((end, _)) = rest {
                head.truncate(end);
                head.push('…');
            }
            format!("{reason}: {head}")
        }
        _ => reason.to_owned(),
    };
    let unplaced = list("/status/conditions").find_map(|condition| {
        let is_it = condition["type"] == "PodScheduled" && condition["status"] == "False";
        is_it.then(|| said(condition["reason"].as_str().unwrap_or("Unschedulable"), condition["message"].as_str()))
    });
    let begins = ["ContainerCreating", "PodInitializing"];
    let mut containers = list("/status/initContainerStatuses").chain(list("/status/containerStatuses"));
    unplaced.or_else(|| {
        containers.find_map(|container| {
            let waiting = container.pointer("/state/waiting")?;
            let reason = waiting["reason"].as_str().filter(|reason| !begins.contains(reason))?;
            Some(said(reason, waiting["message"].as_str()))
        })
    })
}

/// A Deployment that a Rollout may take its template from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentObject {
    /// What every object has.
    pub identity: Identity,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// The pod template.
    pub template: PodTemplate,
}

impl DeploymentObject {
    /// Reads a Deployment.
    pub fn of(object: &DynamicObject) -> Self {
        let count = |pointer: &str| {
            let number = object.data.pointer(pointer).and_then(Value::as_i64);
            number.and_then(|number| i32::try_from(number).ok())
        };
        let mut template = object.data.pointer("/spec/template").cloned().unwrap_or_default();
        if let Some(metadata) = template.pointer_mut("/metadata").and_then(Value::as_object_mut) {
            // The API server writes this null into every template; it is no part of any declaration.
            metadata.retain(|_, value| !value.is_null());
        }
        Self {
            identity: Identity::of(object),
            // Absent means one (the API's own rule), and the API server always writes it.
            replicas: count("/spec/replicas").unwrap_or(1),
            ready: count("/status/readyReplicas").unwrap_or_default(),
            template: PodTemplate(template),
        }
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceObject {
    /// What every object has.
    pub identity: Identity,
    /// Its selector.
    pub selector: BTreeMap<String, String>,
}

impl ServiceObject {
    /// Reads a Service.
    pub fn of(object: &DynamicObject) -> Self {
        let selector = object.data.pointer("/spec/selector").cloned().unwrap_or_default();
        Self { identity: Identity::of(object), selector: serde_json::from_value(selector).unwrap_or_default() }
    }
}

/// The ready pods of one EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSliceObject {
    /// What every object has.
    pub identity: Identity,
    /// The Service it belongs to.
    pub service: String,
    /// The names of the pods that are ready, each once however many addresses it has.
    pub ready_pods: Vec<String>,
}

impl EndpointSliceObject {
    /// Reads an EndpointSlice.
    pub fn of(object: &DynamicObject) -> Self {
        let labels = object.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name")).cloned().unwrap_or_default();
        let endpoints = object.data.get("endpoints").and_then(Value::as_array);
        let ready_pods = endpoints
            .into_iter()
            .flatten()
            // An absent `ready` means ready (the API's own rule); only an explicit false does not.
            .filter(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)))
            .filter_map(|endpoint| endpoint.pointer("/targetRef/name")?.as_str())
            .map(str::to_owned)
            .collect();
        Self { identity: Identity::of(object), service, ready_pods }
    }
}

/// A route, whole: a patch must know the place of every backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteObject {
    /// What every object has.
    pub identity: Identity,
    /// The object as JSON, without managed fields.
    pub value: Value,
}

impl RouteObject {
    /// Reads a route.
    pub fn of(object: &DynamicObject) -> Self {
        let mut object = object.clone();
        object.metadata.managed_fields = None;
        Self { identity: Identity::of(&object), value: serde_json::to_value(&object).unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_bad_field_is_named_and_kills_nothing() {
        let rollout = RolloutObject::of(&object(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {},
                     "strategy": {"canary": {"steps": [{"setWeight": 5}, {"pause": {"duration": "5 minutes"}}]}}},
            "status": {"phase": "NoSuchPhase"}
        })));
        let trouble = rollout.spec.unwrap_err();
        assert_eq!(trouble.field, "spec.strategy.canary.steps[1].pause.duration");
        assert!(trouble.message.contains("5 minutes"), "{}", trouble.message);
        assert!(rollout.status.is_none());
        assert!(rollout.status_trouble.is_some());
    }

    #[test]
    fn only_ready_pods_count() {
        let slice = EndpointSliceObject::of(&object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "s", "namespace": "n", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [
                {"conditions": {"ready": true}, "targetRef": {"name": "web-1-a"}},
                {"conditions": {"ready": false, "serving": true, "terminating": true}, "targetRef": {"name": "web-1-b"}},
                {"conditions": {}, "targetRef": {"name": "web-2-c"}},
                {"conditions": {"ready": true}}
            ]
        })));
        assert_eq!(slice.service, "web");
        assert_eq!(slice.ready_pods, ["web-1-a", "web-2-c"]);
    }

    #[test]
    fn a_pod_is_its_rollouts_and_says_what_keeps_it_from_starting() {
        let pod = |status: Value| {
            PodObject::of(&object(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "web-0a1b2c3d4e-x", "namespace": "shop", "labels": {"sluice.dev/revision": "0a1b2c3d4e"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "my-web-0a1b2c3d4e",
                        "uid": "s", "controller": true}]},
                "spec": {}, "status": status
            })))
        };
        let fresh = pod(json!({"phase": "Pending"}));
        assert_eq!((fresh.rollout.as_str(), fresh.revision.as_str()), ("my-web", "0a1b2c3d4e"));
        assert_eq!((fresh.finished, fresh.trouble), (false, None));
        for phase in ["Succeeded", "Failed"] {
            assert!(pod(json!({"phase": phase})).finished);
        }
        let waiting = |reason: &str| {
            pod(json!({"phase": "Pending", "containerStatuses": [{"state": {"running": {}}},
                {"state": {"waiting": {"reason": reason, "message": "no such tag"}}}]}))
        };
        assert_eq!(waiting("ContainerCreating").trouble, None, "that is how every pod begins");
        assert_eq!(waiting("ImagePullBackOff").trouble.as_deref(), Some("ImagePullBackOff: no such tag"));
        let unplaced = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory."}]});
        let told = "Unschedulable: 0/3 nodes are available: 3 Insufficient memory.";
        assert_eq!(pod(unplaced).trouble.as_deref(), Some(told));
        let long =
            pod(json!({"containerStatuses": [{"state": {"waiting": {"reason": "R", "message": "ü".repeat(999)}}}]}));
        assert_eq!(long.trouble.unwrap(), format!("R: {}…", "ü".repeat(200)));
        let stranger =
            PodObject::of(&object(json!({"metadata": {"name": "x", "labels": {"sluice.dev/revision": "a"}}})));
        assert_eq!(stranger.rollout, "");
    }

    #[test]
    fn the_template_is_given_back_as_it_was() {
        let set = ReplicaSetObject::of(&object(json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web-abc", "namespace": "shop", "generation": 2,
                "labels": {"sluice.dev/rollout": "web", "sluice.dev/revision": "abc"}},
            "spec": {"replicas": 3, "template": {"metadata": {"labels": {"app": "web", "sluice.dev/revision": "abc"}}}},
            "status": {"replicas": 3, "readyReplicas": 2, "availableReplicas": 1, "observedGeneration": 1,
                "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}
        })));
        assert_eq!(set.template.0, json!({"metadata": {"labels": {"app": "web"}}}));
        assert_eq!((set.replicas, set.ready, set.available, set.observed), (3, 2, 1, false));
        assert_eq!(set.trouble.as_deref(), Some("exceeded quota"));
    }
}
