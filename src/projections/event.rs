//! What is told of one transition, read from its commit in the ledger. Pure.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::api::TransitionEvent;
use crate::git::Commit;

/// One transition. As JSON it is what receivers get: fields may be added, and none changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The cluster.
    pub cluster: String,
    /// The Rollout's namespace.
    pub namespace: String,
    /// The Rollout's name.
    pub rollout: String,
    /// The Rollout's uid.
    pub uid: String,
    /// Its number within the Rollout.
    pub sequence: i64,
    /// The earlier numbers that this entry of the log stands for too, `4-6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covers: Option<String>,
    /// What happened.
    pub event: TransitionEvent,
    /// When.
    pub at: DateTime<Utc>,
    /// The stage it was in, from 1.
    pub stage: i32,
    /// How many stages the plan has.
    pub stages: i32,
    /// The canary weight before, in percent.
    pub weight_from: i32,
    /// The canary weight it leads to, in percent.
    pub weight_to: i32,
    /// The revision that served before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_from: Option<String>,
    /// The revision it is about.
    pub revision_to: String,
    /// That revision and the attempt at it.
    pub release: String,
    /// The verdict that led to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// One word why.
    pub reason: String,
    /// Why, with the numbers.
    pub message: String,
    /// The person behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The commit that asked for the desired revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_commit: Option<String>,
    /// The commit that asked for what this one gives up; the same one when that is not known. Not told to receivers.
    #[serde(skip)]
    pub source_commit_before: Option<String>,
    /// The branch of the log.
    pub branch: String,
    /// The commit in the log.
    pub commit: String,
    /// Where people read that commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
}

impl Event {
    /// The transition that a commit of a ledger records. None when it records none, as the first one of an epoch, or
    /// one that this version does not know.
    pub fn of(commit: &Commit) -> Option<Self> {
        let trailers = commit.trailers();
        let text = |name: &str| trailers.get(name).map(str::to_owned);
        let mut id = trailers.get("Id")?.splitn(3, '/').map(str::to_owned);
        let (stage, stages) = pair(trailers.get("Step")?, "/")?;
        let (weight_from, weight_to) = pair(trailers.get("Weight")?, "->")?;
        Some(Self {
            cluster: id.next()?,
            namespace: id.next()?,
            rollout: id.next()?,
            uid: text("Uid")?,
            sequence: trailers.get("Seq")?.parse().ok()?,
            covers: text("Covers"),
            event: serde_json::from_value(Value::from(trailers.get("Event")?)).ok()?,
            at: commit.at()?,
            stage,
            stages,
            weight_from,
            weight_to,
            revision_from: text("From"),
            revision_to: text("To")?,
            release: text("Release")?,
            verdict: text("Verdict"),
            // What has no other reason is its own.
            reason: text("Reason").or_else(|| text("Event")).unwrap_or_default(),
            message: commit.body(),
            actor: text("Actor"),
            source_commit_before: commit.source_commit_before.clone().or_else(|| text("Source-Commit")),
            source_commit: text("Source-Commit"),
            branch: commit.branch.to_string(),
            commit: commit.id.clone(),
            page: None,
        })
    }

    /// Its identity, which it keeps however often it is told: `<uid>/<number>`.
    pub fn identity(&self) -> String {
        format!("{}/{}", self.uid, self.sequence)
    }

    /// `<cluster>/<namespace>/<rollout>`.
    pub fn source(&self) -> String {
        format!("{}/{}/{}", self.cluster, self.namespace, self.rollout)
    }

    /// The event as it is written everywhere: `StepCompleted`.
    pub fn name(&self) -> String {
        format!("{:?}", self.event)
    }

    /// `StepCompleted 2/5, 20% → 50%`.
    pub fn summary(&self) -> String {
        let Self { stage, stages, weight_from, weight_to, .. } = self;
        format!("{} {stage}/{stages}, {weight_from}% → {weight_to}%", self.name())
    }
}

fn pair(text: &str, between: &str) -> Option<(i32, i32)> {
    let (one, other) = text.split_once(between)?;
    Some((one.parse().ok()?, other.parse().ok()?))
}
