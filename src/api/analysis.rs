//! What is measured, and what a measurement means.

use chrono::{DateTime, Utc};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Duration};

/// Metrics to judge, with arguments, for the Rollouts of one namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(group = "sluice.dev", version = "v1alpha1", kind = "AnalysisTemplate", namespaced, shortname = "at")]
#[kube(printcolumn(name = "Metrics", type_ = "string", json_path = ".spec.metrics[*].name"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
pub struct AnalysisTemplateSpec {
    /// The arguments the metrics use as `{{args.name}}`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub args: Vec<TemplateArgument>,
    /// The metrics; all of them are judged.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<Metric>,
}

/// Metrics to judge, with arguments, for the Rollouts of every namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(group = "sluice.dev", version = "v1alpha1", kind = "ClusterAnalysisTemplate", shortname = "cat")]
#[kube(printcolumn(name = "Metrics", type_ = "string", json_path = ".spec.metrics[*].name"))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
pub struct ClusterAnalysisTemplateSpec {
    /// The arguments the metrics use as `{{args.name}}`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub args: Vec<TemplateArgument>,
    /// The metrics; all of them are judged.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<Metric>,
}

/// An argument a template takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateArgument {
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Its value when the Rollout gives none; without it the argument is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// One metric: how to ask, how often, and what the answer means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.threshold) || has(self.successCondition) || has(self.failureCondition)", "nothing says what is good: give a threshold, a successCondition or a failureCondition"),
    validation = Rule::new("!has(self.count) || self.count <= 1 || has(self.interval)")
        .message("more than one measurement needs an interval")
        .field_path(".interval"),
)]
pub struct Metric {
    /// Its name, unique in the run.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Time between two measurements. Without it one measurement is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How many measurements end the metric. Without it: one when there is no interval, else as many as the
    /// run lasts (a background analysis only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub count: Option<i32>,
    /// Time before the first measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<Duration>,
    /// The value passes when it is within these bounds and fails when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// An expression over `result` that must be true to pass, such as `result[0] < 0.01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub success_condition: Option<String>,
    /// An expression over `result` that fails when true. With both and neither true: inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub failure_condition: Option<String>,
    /// More failed measurements than this fail the metric; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub failure_limit: Option<i32>,
    /// More inconclusive measurements than this make the metric inconclusive; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub inconclusive_limit: Option<i32>,
    /// More errors in a row than this end the hold at once and follow `onError`. Without it errors hold for
    /// the time given there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub consecutive_error_limit: Option<i32>,
    /// What to do when the source answers, but with no usable sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_no_data: Option<MissingPolicy>,
    /// What to do when the source does not answer, or answers with an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<MissingPolicy>,
    /// Whom to ask.
    pub provider: MetricQuery,
}

/// Bounds of a good value; at least one of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.min) || has(self.max)", "give min, max or both"),
    validation = ("!has(self.min) || !has(self.max) || self.min <= self.max", "min is greater than max: no value passes"),
)]
pub struct Threshold {
    /// The least good value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The greatest good value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// Missing data never passes: the rollout holds for a time, then does as told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MissingPolicy {
    /// How long to hold; 10 minutes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Duration>,
    /// What then; `pause` when absent.
    #[serde(default)]
    pub then: MissingThen,
}

/// What follows a hold that ran out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MissingThen {
    /// Wait for a person.
    #[default]
    Pause,
    /// Traffic back to stable.
    Abort,
}

impl MissingPolicy {
    /// The hold when none is given, in seconds.
    pub const DEFAULT_HOLD_SECONDS: u64 = 600;

    /// How long to hold.
    pub fn hold(policy: Option<Self>) -> Duration {
        policy.and_then(|policy| policy.hold_for).unwrap_or(Duration::from_secs(Self::DEFAULT_HOLD_SECONDS))
    }
}

/// Whom to ask, and what. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.prometheus)", "name exactly one kind of provider; known are: prometheus"),
)]
pub struct MetricQuery {
    /// A query to a Prometheus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<PrometheusQuery>,
}

/// A query to a Prometheus that an administrator declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PrometheusQuery {
    /// The name of the MetricProvider or ClusterMetricProvider.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Which of the two kinds; `ClusterMetricProvider` when absent.
    #[serde(default)]
    pub kind: ProviderKind,
    /// PromQL; must give a scalar or a vector.
    #[schemars(length(min = 1, max = 8192))]
    pub query: String,
}

/// The two kinds of providers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderKind {
    /// For every namespace.
    #[default]
    ClusterMetricProvider,
    /// For this namespace.
    MetricProvider,
}

/// One evaluation of metrics for one (revision, attempt, stage) of a Rollout. It holds its resolved spec, so
/// that an edited template neither changes it nor starts another.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "AnalysisRun",
    namespaced,
    shortname = "ar",
    status = "AnalysisRunStatus"
)]
#[kube(printcolumn(name = "Rollout", type_ = "string", json_path = ".spec.rollout"))]
#[kube(printcolumn(name = "Stage", type_ = "string", json_path = ".spec.stage"))]
#[kube(printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"))]
#[kube(printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.rollout == oldSelf.rollout && self.revision == oldSelf.revision && self.attempt == oldSelf.attempt && self.stage == oldSelf.stage && self.metrics == oldSelf.metrics", "an AnalysisRun is never edited, but for terminate"),
    validation = Rule::new("self.terminate || !oldSelf.terminate")
        .message("an ended run does not go on")
        .field_path(".terminate"),
)]
pub struct AnalysisRunSpec {
    /// The Rollout it judges.
    #[schemars(length(min = 1, max = 253))]
    pub rollout: String,
    /// The revision it judges.
    #[schemars(length(min = 1, max = 253))]
    pub revision: String,
    /// The attempt of that revision.
    pub attempt: i32,
    /// `background`, or `step-N` with the index of the step.
    #[schemars(length(min = 1, max = 253))]
    pub stage: String,
    /// The metrics with every argument filled in.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<Metric>,
    /// Ends the run; what was measured so far is kept. Set by the operator when the rollout moved on.
    #[serde(default)]
    pub terminate: bool,
}

/// How an AnalysisRun, or one of its metrics, stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AnalysisPhase {
    /// Nothing was measured yet.
    #[default]
    Pending,
    /// Being measured, and good so far.
    Running,
    /// The source gives no usable sample, or does not answer: the rollout holds.
    Holding,
    /// Good, and done.
    Passed,
    /// Bad: abort.
    Failed,
    /// Neither good nor bad, or missing for too long with `then: pause`: a person must say.
    Inconclusive,
    /// Missing for too long with `then: abort`.
    Unavailable,
    /// Ended by the operator before it was done: neither passed nor failed.
    Terminated,
}

/// The verdict on one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Good.
    Pass,
    /// Bad.
    Fail,
    /// Neither.
    Inconclusive,
    /// The source answered, but with no usable sample (empty, NaN, stale, partial).
    NoData,
    /// The source did not answer, or with an error.
    Error,
}

/// What was measured so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisRunStatus {
    /// The worst of the metrics.
    #[serde(default)]
    pub phase: AnalysisPhase,
    /// Why, naming the metric, its value and its bound.
    #[serde(default)]
    pub message: String,
    /// When the first measurement was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<DateTime<Utc>>,
    /// Each metric, in the order of the spec.
    #[serde(default)]
    pub metrics: Vec<MetricResult>,
    /// Conditions, by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What was measured of one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricResult {
    /// Its name.
    pub name: String,
    /// How it stands.
    #[serde(default)]
    pub phase: AnalysisPhase,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Measurements that gave a value (pass, fail or inconclusive).
    #[serde(default)]
    pub count: i32,
    /// Of them: passed.
    #[serde(default)]
    pub passed: i32,
    /// Of them: failed.
    #[serde(default)]
    pub failed: i32,
    /// Of them: inconclusive.
    #[serde(default)]
    pub inconclusive: i32,
    /// Measurements without a usable sample.
    #[serde(default)]
    pub no_data: i32,
    /// Measurements that ended in an error.
    #[serde(default)]
    pub errors: i32,
    /// Errors in a row, up to now.
    #[serde(default)]
    pub consecutive_errors: i32,
    /// Since when there has been no usable sample; absent while there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<DateTime<Utc>>,
    /// When the last measurement that passed was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_passed_at: Option<DateTime<Utc>>,
    /// The last measurements, oldest first, at most 20.
    #[serde(default)]
    pub measurements: Vec<Measurement>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Measurement {
    /// When it was begun.
    pub at: DateTime<Utc>,
    /// What it means.
    pub verdict: Verdict,
    /// The values, as numbers in text ("0.02", "NaN", "+Inf"), one a series.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Why, when it is not a plain pass or fail. Never the text of a foreign answer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Why the answer counted for nothing, whatever its values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<Unusable>,
    /// How many series were answered, when there were more than values are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<i32>,
}

/// What made an answer count for nothing. With it and the values, a verdict can be reached again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unusable {
    /// The source did not answer, or with an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_answer: bool,
    /// How many warnings came with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnings: Option<i32>,
    /// The time of a sample that was too old, or from the future.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_at: Option<DateTime<Utc>>,
    /// The earliest time at which it would have counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_from: Option<DateTime<Utc>>,
    /// The latest time at which it would have counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_until: Option<DateTime<Utc>>,
}
