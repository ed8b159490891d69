//! A git repository that declares what runs in the cluster, and takes the record of it.

use chrono::{DateTime, Utc};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Duration};

/// A git repository: where it is, what of it is applied, and where the record goes.
///
/// In the operator's own namespace it may manage the namespaces it lists; in any other namespace it manages
/// that namespace only.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "DeployRepo",
    namespaced,
    shortname = "dr",
    status = "DeployRepoStatus"
)]
#[kube(printcolumn(name = "Branch", type_ = "string", json_path = ".spec.branch"))]
#[kube(printcolumn(name = "Commit", type_ = "string", json_path = ".status.appliedCommit"))]
#[kube(printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#))]
#[kube(printcolumn(
    name = "Recorded",
    type_ = "string",
    json_path = r#".status.conditions[?(@.type=="Recorded")].status"#
))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[kube(printcolumn(
    name = "Message",
    type_ = "string",
    json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
    priority = 1
))]
#[serde(rename_all = "camelCase")]
pub struct DeployRepoSpec {
    /// Its address: `https://`, `http://` or `ssh://`, without user's password or token.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = (r"self.matches(r'^(https?://[^/@?#\s]+|ssh://([^/@:?#\s]+@)?[^/@?#\s]+)/[^?#\s]+$')", "must be https://, http:// or ssh://, without password, token, query or fragment; credentials belong into secretRef"))]
    pub url: String,
    /// The branch people commit to.
    #[serde(default = "main_branch")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = ("!self.startsWith('rollout-log/') && !self.startsWith('-')", "must be the branch that people commit to, not a log branch"))]
    pub branch: String,
    /// The folder with the manifests; the whole repository when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = ("!self.startsWith('/') && !self.split('/').exists(part, part == '..')", "must be a folder within the repository, written without a leading / and without .."))]
    pub path: Option<String>,
    /// A Secret in this namespace: `username` and `password`, or `identity` and `known_hosts`; and
    /// `webhookToken` for the webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// Time between two looks at the branch; 1 minute when absent. A webhook makes it look at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// The namespaces it may manage and record, besides its own. Allowed in the operator's namespace only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Vec<String>,
    /// Apply the manifests. Without it another tool applies them, and only the record is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncPolicy>,
    /// Where the record goes.
    #[serde(default)]
    pub log: LogPolicy,
    /// Do nothing with this repository for now.
    #[serde(default)]
    pub suspend: bool,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// A Secret by name, in the object's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How manifests are applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SyncPolicy {
    /// Remove objects that have left the repository; true when absent.
    #[serde(default = "yes")]
    pub prune: bool,
}

fn yes() -> bool {
    true
}

/// Where the record goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogPolicy {
    /// The cluster's name in `rollout-log/<cluster>`; the operator's own setting when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub cluster: Option<String>,
}

/// What the operator knows of the repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeployRepoStatus {
    /// The generation last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The newest commit seen on the branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_commit: Option<String>,
    /// The commit whose manifests are applied in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_commit: Option<String>,
    /// When that was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<DateTime<Utc>>,
    /// What was applied, and is removed when it leaves the repository.
    #[serde(default)]
    pub inventory: Vec<InventoryEntry>,
    /// The log branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_branch: Option<String>,
    /// Its tip as last pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tip: Option<String>,
    /// Conditions, by type: `Ready`, `Reconciling`, `Stalled`, `Recorded`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// One applied object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InventoryEntry {
    /// The API version, `apps/v1`.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The namespace; empty for a cluster-scoped object.
    #[serde(default)]
    pub namespace: String,
    /// The name.
    pub name: String,
    /// SHA-256 of the declaration as applied.
    pub digest: String,
    /// The commit that last changed it.
    pub commit: String,
}
