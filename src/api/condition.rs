//! Conditions after kstatus, with stable transition times.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The type of the condition that says whether the log has every transition.
pub const RECORDED: &str = "Recorded";

/// The type of the condition of a Rollout that is being deleted; it stands since when that was first seen.
pub const TERMINATING: &str = "Terminating";

/// The type of the condition that says that the Deployment which a Rollout takes its template from has no pods any more.
pub const WORKLOAD_SCALED_DOWN: &str = "WorkloadScaledDown";

/// The type of the condition that says that the branch was moved, and not forward.
pub const HISTORY_REWRITTEN: &str = "HistoryRewritten";

/// One condition of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it says something about: `Ready`, `Reconciling`, `Stalled`, `Paused`, `Promoted`, `Aborted`, `Recorded`,
    /// `Terminating`, `WorkloadScaledDown`.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// One word for programs.
    pub reason: String,
    /// One sentence for people.
    #[serde(default)]
    pub message: String,
    /// Since when `status` is what it is.
    pub last_transition_time: DateTime<Utc>,
    /// The generation of the spec it was judged on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The three states of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It is being found out.
    Unknown,
}

/// The conditions of an object, by type.
pub trait Conditions {
    /// The condition of this type, if set.
    fn condition(&self, type_: &str) -> Option<&Condition>;
    /// Sets a condition; keeps its transition time while the status stays the same, so that an equal state
    /// is an equal text and not a write.
    fn set_condition(&mut self, condition: Condition);
    /// Removes a condition.
    fn remove_condition(&mut self, type_: &str);
}

impl Conditions for Vec<Condition> {
    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.iter().find(|condition| condition.type_ == type_)
    }

    fn set_condition(&mut self, mut condition: Condition) {
        match self.iter_mut().find(|known| known.type_ == condition.type_) {
            Some(known) => {
                if known.status == condition.status {
                    condition.last_transition_time = known.last_transition_time;
                }
                *known = condition;
            }
            None => self.push(condition),
        }
    }

    fn remove_condition(&mut self, type_: &str) {
        self.retain(|condition| condition.type_ != type_);
    }
}
