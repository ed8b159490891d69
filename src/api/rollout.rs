//! The Rollout: what is wanted.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, HeaderRoute, PodCount, PodTemplate, RolloutStatus, RouteKey, RouteKind};

/// A workload whose new versions take over step by step.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "sluice.dev",
    version = "v1alpha1",
    kind = "Rollout",
    namespaced,
    shortname = "ro",
    status = "RolloutStatus"
)]
#[kube(scale(
    spec_replicas_path = ".spec.replicas",
    status_replicas_path = ".status.replicas",
    label_selector_path = ".status.selector"
))]
#[kube(printcolumn(name = "Strategy", type_ = "string", json_path = ".status.strategy"))]
#[kube(printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"))]
#[kube(printcolumn(name = "Step", type_ = "string", json_path = ".status.stepLabel"))]
#[kube(printcolumn(name = "Weight", type_ = "integer", json_path = ".status.weight"))]
#[kube(printcolumn(name = "Revision", type_ = "string", json_path = ".status.revision"))]
#[kube(printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#))]
#[kube(printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"))]
#[kube(printcolumn(
    name = "Recorded",
    type_ = "string",
    json_path = r#".status.conditions[?(@.type=="Recorded")].status"#,
    priority = 1
))]
#[kube(printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1))]
#[kube(validation = ("self.metadata.name.size() <= 46", "metadata.name: at most 46 letters, so that the names of ReplicaSets and pods fit"))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.template) != has(self.workloadRef)")
        .message("name exactly one of template and workloadRef")
        .field_path(".template"),
    validation = Rule::new("!has(self.template) || has(self.template.metadata) && has(self.template.metadata.labels) && self.selector.matchLabels.all(key, key in self.template.metadata.labels && self.template.metadata.labels[key] == self.selector.matchLabels[key])")
        .message("must carry every label of spec.selector.matchLabels")
        .field_path(".template.metadata.labels"),
    validation = Rule::new("!has(self.template) || !(has(self.template.metadata) && has(self.template.metadata.labels)) || ['sluice.dev/revision', 'sluice.dev/rollout'].all(key, !(key in self.template.metadata.labels))")
        .message("sluice.dev/revision and sluice.dev/rollout are set by the operator; remove them")
        .field_path(".template.metadata.labels"),
    validation = Rule::new("!has(self.template) || has(self.template.spec) && self.template.spec.containers.size() > 0")
        .message("name at least one container")
        .field_path(".template.spec"),
)]
pub struct RolloutSpec {
    /// How many pods serve when nothing is in flight; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("default" = 1))]
    pub replicas: Option<i32>,
    /// Which pods are this Rollout's. Cannot be changed.
    pub selector: Selector,
    /// The pods. Either this or `workloadRef`.
    #[serde(default, skip_serializing_if = "PodTemplate::is_absent")]
    pub template: PodTemplate,
    /// The workload whose template the pods are made by. Either this or `template`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_ref: Option<WorkloadRef>,
    /// Seconds a pod must be ready before it counts; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_ready_seconds: Option<i32>,
    /// Old ReplicaSets kept for going back; 10 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub revision_history_limit: Option<i32>,
    /// Seconds a step may take to have its pods ready and its route accepted; 600 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub progress_deadline_seconds: Option<i32>,
    /// Abort when that time has passed; true when absent. With false the Rollout only says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline_abort: Option<bool>,
    /// How far back a revision takes the fast lane; the last 10 that were stable when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_window: Option<RollbackWindow>,
    /// Pods that were created up to this time are replaced by new ones of the same version, with a new one in place
    /// before an old one goes. One in the future waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_at: Option<DateTime<Utc>>,
    /// Take no step. Pods are still looked after.
    #[serde(default)]
    pub paused: bool,
    /// How a new version takes over.
    pub strategy: Strategy,
}

/// A workload that keeps the pod template, so that whoever edits it need not know of the Rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// `apps/v1`.
    #[schemars(extend("enum" = ["apps/v1"]))]
    pub api_version: String,
    /// `Deployment`: of it alone the pods can be taken over one by one and be handed back.
    #[schemars(extend("enum" = ["Deployment"]))]
    pub kind: String,
    /// Its name, in the Rollout's namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// When its own pods go; `never` when absent. With any other value they come back before the Rollout goes.
    #[serde(default)]
    pub scale_down: ScaleDown,
}

/// When the pods of the Deployment that a Rollout takes its template from go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleDown {
    /// They are not touched.
    #[default]
    Never,
    /// All at once, when the first version of the Rollout is stable and has all traffic.
    OnSuccess,
    /// One for each pod of the first version that serves, and the last when that is stable.
    Progressively,
}

/// Which revisions are known well enough to need no steps, no pauses and no analysis when they come back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackWindow {
    /// So many of those that were stable before, the newest first; none with 0.
    #[schemars(range(min = 0, max = 10))]
    pub revisions: i32,
}

/// A label selector, as in a Deployment; only `matchLabels` is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self == oldSelf", "cannot be changed; create another Rollout"),
)]
pub struct Selector {
    /// Labels that must be equal.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub match_labels: BTreeMap<String, String>,
}

/// Exactly one of the strategies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.canary) != has(self.blueGreen)", "name exactly one of canary and blueGreen"),
)]
pub struct Strategy {
    /// Step by step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStrategy>,
    /// All at once, after a preview.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreenStrategy>,
}

/// Traffic moves to the new version in steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.stableService) || !has(self.canaryService) || self.stableService != self.canaryService")
        .message("must differ from stableService")
        .field_path(".canaryService"),
    validation = Rule::new("!has(self.trafficRouting) || (has(self.stableService) && has(self.canaryService))")
        .message("needs stableService and canaryService")
        .field_path(".trafficRouting"),
    validation = Rule::new("!has(self.analysis) || !has(self.analysis.startingStep) || self.analysis.startingStep <= (has(self.steps) ? self.steps.size() : 0)")
        .message("must not be greater than the number of steps")
        .field_path(".analysis.startingStep"),
    validation = Rule::new("!has(self.trafficRouting) || !(has(self.maxSurge) || has(self.maxUnavailable))")
        .message("is of a canary without trafficRouting: with routes, the canary's pods come on top")
        .field_path(".maxSurge"),
    validation = Rule::new("has(self.trafficRouting) || !(has(self.dynamicStableScale) || has(self.minPodsPerReplicaSet))")
        .message("needs trafficRouting: without routes the pods are the weight")
        .field_path(".dynamicStableScale"),
    validation = Rule::new("has(self.trafficRouting) || !has(self.steps) || !self.steps.exists(step, has(step.setCanaryScale))")
        .message("setCanaryScale needs trafficRouting: without routes the pods are the weight")
        .field_path(".steps"),
)]
pub struct CanaryStrategy {
    /// The Service of the version that is known to be good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub stable_service: Option<String>,
    /// The Service of the version on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub canary_service: Option<String>,
    /// What splits the traffic between the two. Without it the share of the pods is the share of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_routing: Option<TrafficRouting>,
    /// Without routes: pods above `replicas` while versions change, a percentage rounded up; 25% when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<PodCount>,
    /// Without routes: pods of `replicas` that may be missing while versions change, a percentage rounded down; 25%
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<PodCount>,
    /// With routes: the stable version shrinks as the canary grows, so that both together are `replicas`. Going back
    /// takes as long as its pods need to come up again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic_stable_scale: bool,
    /// With routes: the fewest pods of a version that has any traffic, at most `replicas`; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub min_pods_per_replica_set: Option<i32>,
    /// Judges the canary in the background, from `startingStep` to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<BackgroundAnalysis>,
    /// The steps; after the last one the canary takes everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub steps: Vec<CanaryStep>,
    /// Seconds the old version is kept at full size after promotion; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub scale_down_delay_seconds: Option<i32>,
    /// Seconds the canary is kept after an abort; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub abort_scale_down_delay_seconds: Option<i32>,
}

/// What splits the traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficRouting {
    /// Gateway API routes.
    #[serde(default, rename = "gatewayAPI", skip_serializing_if = "Option::is_none")]
    pub gateway_api: Option<GatewayApiRouting>,
    /// How long a change of a Service or of weights needs to reach the data plane; 2 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<Duration>,
    /// How long a side that no longer gets traffic still answers what it has; 10 seconds when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Duration>,
}

/// Routes of the Gateway API, edited in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.httpRoutes) && self.httpRoutes.size() > 0, has(self.grpcRoutes) && self.grpcRoutes.size() > 0, has(self.tlsRoutes) && self.tlsRoutes.size() > 0, has(self.tcpRoutes) && self.tcpRoutes.size() > 0].exists(given, given)", "name at least one route"),
)]
pub struct GatewayApiRouting {
    /// HTTPRoutes in this namespace; each rule that names both Services is steered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub http_routes: Vec<RouteReference>,
    /// GRPCRoutes in this namespace, steered in the same way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub grpc_routes: Vec<RouteReference>,
    /// TLSRoutes in this namespace. Weights share out connections, not requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tls_routes: Vec<RouteReference>,
    /// TCPRoutes in this namespace. Weights share out connections, not requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub tcp_routes: Vec<RouteReference>,
}

impl GatewayApiRouting {
    /// The list of one kind.
    pub fn of(&self, kind: RouteKind) -> &[RouteReference] {
        match kind {
            RouteKind::Http => &self.http_routes,
            RouteKind::Grpc => &self.grpc_routes,
            RouteKind::Tls => &self.tls_routes,
            RouteKind::Tcp => &self.tcp_routes,
        }
    }
}

/// A route in the Rollout's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Analysis that runs beside the steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackgroundAnalysis {
    /// What to judge, and with which arguments.
    #[serde(flatten)]
    pub analysis: AnalysisReference,
    /// The step (from 0) at which it starts; 0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub starting_step: Option<i32>,
}

/// Analysis templates and their arguments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisReference {
    /// The templates; their metrics are judged together.
    #[schemars(length(min = 1, max = 16))]
    pub templates: Vec<AnalysisTemplateReference>,
    /// Values for the templates' arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<Argument>,
}

/// One template by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisTemplateReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub template_name: String,
    /// A ClusterAnalysisTemplate instead of an AnalysisTemplate.
    #[serde(default)]
    pub cluster_scope: bool,
}

/// A value for an argument. Besides those given, `namespace`, `rollout`, `revision`, `stableRevision`,
/// `stableService` and `canaryService` are always set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// One step: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.setWeight), has(self.setCanaryScale), has(self.setHeaderRoute), has(self.pause), has(self.analysis)].filter(given, given).size() == 1", "a step holds exactly one of setWeight, setCanaryScale, setHeaderRoute, pause and analysis"),
)]
pub struct CanaryStep {
    /// The canary's share of the traffic in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub set_weight: Option<i32>,
    /// The canary's pods, from here on: more than its weight needs, never fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_canary_scale: Option<CanaryScale>,
    /// Requests with certain headers go to the canary, whatever its weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_header_route: Option<HeaderRoute>,
    /// Wait for a time, for approvals, or (with neither) for a person to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseStep>,
    /// Judge the canary, and go on when it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<AnalysisReference>,
}

/// How many pods the canary has: exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.replicas), has(self.weight), has(self.matchTrafficWeight)].filter(given, given).size() == 1", "give exactly one of replicas, weight and matchTrafficWeight"),
)]
pub struct CanaryScale {
    /// So many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub replicas: Option<i32>,
    /// So many percent of `spec.replicas`, rounded up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub weight: Option<i32>,
    /// As many as the weight needs, again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub match_traffic_weight: Option<bool>,
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.duration) || !has(self.approvals)", "give duration or approvals, not both"),
)]
pub struct PauseStep {
    /// How long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// How many different people must approve; with neither field: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub approvals: Option<i32>,
}

/// Traffic moves at once, after a preview.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.previewService) || self.previewService != self.activeService")
        .message("must differ from activeService")
        .field_path(".previewService"),
)]
pub struct BlueGreenStrategy {
    /// The Service that gets live traffic.
    #[schemars(length(min = 1, max = 63))]
    pub active_service: String,
    /// The Service of the version on trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub preview_service: Option<String>,
    /// Pods of the preview; as many as `replicas` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub preview_replica_count: Option<i32>,
    /// Switch without a person; true when absent. With false one person must approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_promotion_enabled: Option<bool>,
    /// Seconds to wait before switching, once the preview is ready and judged. Nothing when a person must approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub auto_promotion_seconds: Option<i32>,
    /// Judges the preview before the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_promotion_analysis: Option<AnalysisReference>,
    /// Judges the new version after the switch; a failure switches back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_promotion_analysis: Option<AnalysisReference>,
    /// Seconds the old version is kept after the switch; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub scale_down_delay_seconds: Option<i32>,
    /// Seconds the preview is kept after an abort; 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub abort_scale_down_delay_seconds: Option<i32>,
}

/// What a strategy moves, without how: enough to bring traffic back by it when another strategy is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Steering {
    /// Blue/green rather than a canary.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub blue_green: bool,
    /// The Service of the version that is known to be good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_service: Option<String>,
    /// The Service of the version on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary_service: Option<String>,
    /// The routes.
    #[serde(rename = "gatewayAPI", skip_serializing_if = "Option::is_none")]
    pub gateway_api: Option<GatewayApiRouting>,
}

impl Steering {
    /// A strategy that moves the same and has no steps.
    pub fn strategy(&self) -> Strategy {
        let (stable_service, canary_service) = (self.stable_service.clone(), self.canary_service.clone());
        if self.blue_green {
            let active_service = stable_service.unwrap_or_default();
            let preview_service = canary_service;
            let blue_green = BlueGreenStrategy { active_service, preview_service, ..BlueGreenStrategy::default() };
            return Strategy { blue_green: Some(blue_green), canary: None };
        }
        let routing = |gateway_api: &GatewayApiRouting| TrafficRouting {
            gateway_api: Some(gateway_api.clone()),
            ..TrafficRouting::default()
        };
        let traffic_routing = self.gateway_api.as_ref().map(routing);
        let canary = CanaryStrategy { stable_service, canary_service, traffic_routing, ..CanaryStrategy::default() };
        Strategy { canary: Some(canary), blue_green: None }
    }
}

/// What a Rollout names in its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// The Service of the version that is known to be good.
    pub stable_service: Option<String>,
    /// The Service of the version on trial.
    pub canary_service: Option<String>,
    /// The routes.
    pub routes: Vec<RouteKey>,
    /// The templates of every analysis.
    pub analysis_templates: Vec<AnalysisTemplateReference>,
    /// The Deployment that keeps the pod template.
    pub workload: Option<String>,
}

impl RolloutSpec {
    /// What it names.
    pub fn references(&self) -> References {
        let workload = self.workload_ref.as_ref().map(|workload| workload.name.clone());
        if let Some(canary) = &self.strategy.canary {
            let background = canary.analysis.iter().map(|background| &background.analysis);
            let analyses = background.chain(canary.steps.iter().filter_map(|step| step.analysis.as_ref()));
            return References {
                stable_service: canary.stable_service.clone(),
                canary_service: canary.canary_service.clone(),
                routes: canary.routes().map(|(_, route)| route).collect(),
                analysis_templates: analyses.flat_map(|analysis| analysis.templates.iter().cloned()).collect(),
                workload,
            };
        }
        let Some(blue_green) = &self.strategy.blue_green else {
            return References { workload, ..References::default() };
        };
        let analyses = blue_green.pre_promotion_analysis.iter().chain(&blue_green.post_promotion_analysis);
        References {
            stable_service: Some(blue_green.active_service.clone()),
            canary_service: blue_green.preview_service.clone(),
            routes: Vec::new(),
            analysis_templates: analyses.flat_map(|analysis| analysis.templates.iter().cloned()).collect(),
            workload,
        }
    }

    /// When the pods of the Deployment that it takes its template from go, if there is one and they do.
    pub fn takes_over(&self) -> Option<ScaleDown> {
        self.workload_ref.as_ref().map(|workload| workload.scale_down).filter(|when| *when != ScaleDown::Never)
    }

    /// How many pods are wanted.
    pub fn replicas(&self) -> i32 {
        self.replicas.unwrap_or(1)
    }
    /// Seconds a step may take.
    pub fn progress_deadline(&self) -> Duration {
        seconds(self.progress_deadline_seconds, 600)
    }
    /// Whether the deadline aborts.
    pub fn progress_deadline_abort(&self) -> bool {
        self.progress_deadline_abort.unwrap_or(true)
    }
    /// How many of the revisions that were stable before take the fast lane.
    pub fn rollback_window(&self) -> usize {
        self.rollback_window.as_ref().map_or(usize::MAX, |window| usize::try_from(window.revisions).unwrap_or(0))
    }
    /// Old ReplicaSets kept.
    pub fn revision_history_limit(&self) -> usize {
        usize::try_from(self.revision_history_limit.unwrap_or(10)).unwrap_or(0)
    }
}

impl Strategy {
    /// What it moves.
    pub fn steering(&self) -> Steering {
        if let Some(blue_green) = &self.blue_green {
            return Steering {
                blue_green: true,
                stable_service: Some(blue_green.active_service.clone()),
                canary_service: blue_green.preview_service.clone(),
                gateway_api: None,
            };
        }
        let canary = self.canary.clone().unwrap_or_default();
        Steering {
            blue_green: false,
            stable_service: canary.stable_service,
            canary_service: canary.canary_service,
            gateway_api: canary.traffic_routing.and_then(|routing| routing.gateway_api),
        }
    }
    /// A canary without routes: its share of the pods is its share of the traffic.
    pub fn by_pods(&self) -> Option<&CanaryStrategy> {
        self.canary.as_ref().filter(|canary| canary.traffic_routing.is_none())
    }
    fn traffic_routing(&self) -> Option<&TrafficRouting> {
        self.canary.as_ref()?.traffic_routing.as_ref()
    }
    /// How long a change needs to reach the data plane.
    pub fn settle(&self) -> Duration {
        self.traffic_routing().and_then(|routing| routing.settle).unwrap_or(Duration::from_secs(2))
    }
    /// How long a side without traffic still answers.
    pub fn drain(&self) -> Duration {
        self.traffic_routing().and_then(|routing| routing.drain).unwrap_or(Duration::from_secs(10))
    }
    /// How long the old version is kept after promotion.
    pub fn scale_down_delay(&self) -> Duration {
        let canary = self.canary.as_ref().and_then(|canary| canary.scale_down_delay_seconds);
        let blue_green = self.blue_green.as_ref().and_then(|blue_green| blue_green.scale_down_delay_seconds);
        seconds(canary.or(blue_green), 30)
    }
    /// How long the version on trial is kept after an abort.
    pub fn abort_scale_down_delay(&self) -> Duration {
        let canary = self.canary.as_ref().and_then(|canary| canary.abort_scale_down_delay_seconds);
        let blue_green = self.blue_green.as_ref().and_then(|blue_green| blue_green.abort_scale_down_delay_seconds);
        seconds(canary.or(blue_green), 30)
    }
}

impl CanaryStrategy {
    /// Without routes: pods above `replicas`, and pods of `replicas` that may be missing, while versions change. Never
    /// both none, or nothing could ever change.
    pub fn surge_and_unavailable(&self, replicas: i32) -> (i32, i32) {
        let surge = self.max_surge.unwrap_or(PodCount::Percent(25)).rounded_up(replicas);
        let unavailable = self.max_unavailable.unwrap_or(PodCount::Percent(25)).rounded_down(replicas);
        (surge, if surge == 0 { unavailable.max(1) } else { unavailable })
    }
    /// Every header route that a step asks for.
    pub fn header_routes(&self) -> Vec<HeaderRoute> {
        self.steps.iter().filter_map(|step| step.set_header_route.clone()).collect()
    }
    /// The routes, each with the field that names it.
    pub fn routes(&self) -> impl Iterator<Item = (String, RouteKey)> {
        let routing = self.traffic_routing.as_ref().and_then(|routing| routing.gateway_api.as_ref());
        let lists = routing.into_iter().flat_map(|gateway| RouteKind::ALL.map(|kind| (kind, gateway.of(kind))));
        lists.flat_map(|(kind, routes)| {
            let list = format!("spec.strategy.canary.trafficRouting.gatewayAPI.{}", kind.field());
            let named = move |(index, route): (usize, &RouteReference)| {
                (format!("{list}[{index}].name"), RouteKey::new(kind, &route.name))
            };
            routes.iter().enumerate().map(named)
        })
    }
}

fn seconds(given: Option<i32>, otherwise: u64) -> Duration {
    Duration::from_secs(given.map_or(otherwise, |seconds| u64::try_from(seconds).unwrap_or(0)))
}
