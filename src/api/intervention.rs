//! A person's word on one revision of a Rollout.

use chrono::{DateTime, Utc};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A person's word on one revision: create-only, so that it is a record and not a switch.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "sluice.dev", version = "v1alpha1", kind = "Intervention", namespaced, status = "InterventionStatus")]
#[kube(printcolumn(name = "Rollout", type_ = "string", json_path = ".spec.rollout"))]
#[kube(printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"))]
#[kube(printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision"))]
#[kube(printcolumn(name = "Actor", type_ = "string", json_path = ".spec.actor"))]
#[kube(printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[kube(validation = ("self.spec == oldSelf.spec", "spec: an Intervention is never edited; create another one"))]
#[serde(rename_all = "camelCase")]
pub struct InterventionSpec {
    /// The Rollout in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub rollout: String,
    /// The revision the word is about; it does nothing for any other.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// The attempt of that revision; any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// The stage (index into the plan) that `approve` and `skip` are about; the present one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<i32>,
    /// What to do.
    pub action: InterventionAction,
    /// Why, in the person's words.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// Who: the requesting user's name, held to it by an admission policy.
    #[schemars(length(min = 1, max = 253))]
    pub actor: String,
}

/// What a person may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InterventionAction {
    /// One approval of the pause the Rollout stands at.
    Approve,
    /// Go to full weight as fast as capacity allows, past all remaining gates.
    Promote,
    /// Traffic back to stable.
    Abort,
    /// Take no further step until resumed.
    Pause,
    /// End a pause made by `pause`.
    Resume,
    /// Try an aborted revision again, as a new attempt.
    Retry,
    /// Past the gate of the present stage only.
    Skip,
    /// All pods are replaced by new ones of the same version.
    Restart,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterventionStatus {
    /// `Applied` or `Refused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why it was refused, or what it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
}

impl InterventionStatus {
    /// The outcome of a word that was obeyed.
    pub const APPLIED: &'static str = "Applied";
    /// The outcome of a word that was not.
    pub const REFUSED: &'static str = "Refused";
}
