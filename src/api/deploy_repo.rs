//! A git repository that declares what runs in the cluster, and takes the record of it.

use chrono::{DateTime, Utc};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Duration, TransitionEvent};

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
#[x_kube(validation = ("!has(self.onAbort) || self.onAbort != 'pullRequest' || has(self.forge)", "onAbort: pullRequest needs spec.forge, to open the pull request with"))]
#[x_kube(validation = ("!has(self.projections) || self.projections.all(p, p.to in ['commitStatus', 'deployment'] ? has(self.forge) : has(p.secretRef))", "projections: commitStatus and deployment need spec.forge, all others need their own secretRef with the address"))]
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
    /// A Secret in this namespace: `username` and `password`, or `identity` and `known_hosts`, or those of a GitHub App
    /// (`githubAppID`, `githubAppInstallationID`, `githubAppPrivateKey`); `ca.crt` for an https:// server whose
    /// certificate an authority of your own has signed; and `webhookToken` for the webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// Another such Secret for everything that is written: the log, reverts, pull requests. `secretRef` when absent,
    /// so that reading and writing can have credentials of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_secret_ref: Option<SecretReference>,
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
    /// The forge that hosts the repository, for pull requests, commit statuses and deployments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forge: Option<Forge>,
    /// What is done in git when a failed verdict or a missed deadline has aborted a release, and git still asks for
    /// it. Never done when metrics were missing or the infrastructure failed.
    #[serde(default, skip_serializing_if = "OnAbort::is_default")]
    pub on_abort: OnAbort,
    /// With `onAbort: commit`, where other clusters record the same Rollout in this repository: how many clusters, this
    /// one included, must have aborted the revision before it is reverted for all of them. When absent, one cluster
    /// never commits for the others: it opens a pull request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub abort_quorum: Option<i32>,
    /// Who else is told of each transition, once it is in the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub projections: Vec<Projection>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogPolicy {
    /// The cluster's name in `rollout-log/<cluster>`; the operator's own setting when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub cluster: Option<String>,
    /// Another repository for the log; the deploy repository itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = (r"self.matches(r'^(https?://[^/@?#\s]+|ssh://([^/@:?#\s]+@)?[^/@?#\s]+)/[^?#\s]+$')", "must be https://, http:// or ssh://, without password, token, query or fragment; credentials belong into secretRef"))]
    pub url: Option<String>,
    /// The Secret for that repository, or for the log branch alone; `writeSecretRef` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// Which transitions get a commit of their own.
    #[serde(default, skip_serializing_if = "Granularity::is_default")]
    pub granularity: Granularity,
    /// What a rollout does while its transitions cannot be recorded. An abort never waits.
    #[serde(default, skip_serializing_if = "OnAuditUnavailable::is_default")]
    pub on_audit_unavailable: OnAuditUnavailable,
    /// Sign the last commit of each push; the ones before it are covered by the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Signing>,
    /// When a new log branch is begun.
    #[serde(default, skip_serializing_if = "Epochs::is_default")]
    pub epochs: Epochs,
    /// A second remote that gets the same branch, in its own time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// The log branch that was begun after a fork, once people have looked at it: the alarm `LogForked` ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub acknowledged_fork: Option<String>,
}

/// Which transitions get a commit of their own. The others go into the next one that does, by number and name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Granularity {
    /// Each transition.
    #[default]
    Step,
    /// Each beginning, hold, resumption, promotion, abort: all but the steps in between.
    Phase,
    /// Only the end of a release: promoted, aborted, superseded, denied, and the first version.
    Release,
}

impl Granularity {
    /// Whether a transition of this kind gets a commit of its own.
    pub fn gives_commit(self, event: TransitionEvent) -> bool {
        use TransitionEvent::{Aborted, Denied, FirstDeploy, HandedBack, Promoted, StepCompleted, Superseded};
        match self {
            Self::Step => true,
            Self::Phase => event != StepCompleted,
            Self::Release => matches!(event, FirstDeploy | Promoted | Aborted | Superseded | Denied | HandedBack),
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a rollout does while its transitions cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnAuditUnavailable {
    /// It goes on; the record follows.
    #[default]
    Continue,
    /// It stays at its step until the record has followed.
    Pause,
    /// It takes its steps, and stays before promotion until the record has followed.
    HoldBeforePromotion,
}

impl OnAuditUnavailable {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the log is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Signing {
    /// A Secret in this namespace with an SSH private key, without a passphrase, as `identity`.
    pub secret_ref: SecretReference,
}

/// When a new log branch is begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Epochs {
    /// Only after a fork.
    #[default]
    Never,
    /// With the first transition of each quarter: `rollout-log/<cluster>@2026q4`.
    Quarterly,
}

impl Epochs {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A second remote for the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Its address.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = (r"self.matches(r'^(https?://[^/@?#\s]+|ssh://([^/@:?#\s]+@)?[^/@?#\s]+)/[^?#\s]+$')", "must be https://, http:// or ssh://, without password, token, query or fragment; credentials belong into secretRef"))]
    pub url: String,
    /// The Secret for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// The forge that hosts the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forge {
    /// Which one.
    #[serde(rename = "type")]
    pub kind: ForgeKind,
    /// The address of its API, `https://git.example.com/api/v1`. When absent it follows from the repository's host:
    /// `https://api.github.com`, `https://<host>/api/v3`, `/api/v4` or `/api/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^https?://[^/@?#\s]+(/[^?#\s]*)?$"))]
    pub api: Option<String>,
    /// A Secret in this namespace with a `token`, or with `githubAppID`, `githubAppInstallationID` and
    /// `githubAppPrivateKey`; `writeSecretRef` when absent, whose `password` is the token then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// A kind of forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ForgeKind {
    /// github.com or GitHub Enterprise.
    GitHub,
    /// gitlab.com or a GitLab of one's own.
    GitLab,
    /// Gitea or Forgejo.
    Gitea,
}

/// What is done in git when a failed verdict or a missed deadline has aborted a release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnAbort {
    /// Nothing: `GitAhead` says so, and people revert.
    #[default]
    None,
    /// A pull request that puts the Rollout's own fields back.
    PullRequest,
    /// A commit that does so; a pull request where somebody has changed the same lines since.
    Commit,
}

impl OnAbort {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Somebody else who is told of each transition, in the order of the log, once it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Projection {
    /// Its name among the projections of this DeployRepo.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Who is told, and how.
    pub to: ProjectionKind,
    /// Only these events; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub events: Vec<TransitionEvent>,
    /// For `cloudEvents`, `webhook`, `slack` and `teams`: a Secret in this namespace with the `address`, and for
    /// `cloudEvents` and `webhook` a `token` that signs each request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
    /// For `deployment`: the environment; the cluster's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub environment: Option<String>,
}

/// A way to tell of a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProjectionKind {
    /// A commit status on the commit that asked for the revision.
    CommitStatus,
    /// A deployment of the forge, with its status.
    Deployment,
    /// A CloudEvent over HTTP.
    CloudEvents,
    /// A JSON document over HTTP, signed with HMAC-SHA-256.
    Webhook,
    /// A message by an incoming webhook of Slack.
    Slack,
    /// A message by a workflow of Microsoft Teams.
    Teams,
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
    /// How far each projection has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub projections: Vec<ProjectionStatus>,
    /// Conditions, by type: `Ready`, `Reconciling`, `Stalled`, `HistoryRewritten`, `Recorded`, `LogForked`.
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

/// How far a projection has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectionStatus {
    /// Its name in the spec.
    pub name: String,
    /// The last commit of the log that was told, or passed over; empty when the log was empty.
    pub commit: String,
    /// Since when telling the next one fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<DateTime<Utc>>,
    /// Why it fails, without a word of what the other side answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl ProjectionStatus {
    /// Told up to this commit of the log.
    pub fn at(name: &str, commit: String) -> Self {
        Self { name: name.to_owned(), commit, failing_since: None, message: None }
    }
}
