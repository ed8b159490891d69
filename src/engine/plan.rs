//! From a strategy to stages: the one place where strategies differ.
//!
//! Pure and total: what cannot be compiled becomes [`Problem`]s that name their fields.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::Problem;
use super::converge::share;
use crate::api::{
    AnalysisReference, BlueGreenStrategy, CanaryStep, CanaryStrategy, Duration, HeaderRoute, PodCount, RolloutSpec,
    names,
};

/// Everything that lies ahead of a new version.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The stages in order; the last one is full weight. Never empty.
    pub stages: Vec<Stage>,
}

/// A weight to reach, and what must hold before the next stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// The canary's weight in percent.
    pub weight: i32,
    /// The canary's pods that must be ready, beyond those its weight needs.
    pub pods: Pods,
    /// Which requests the canary has whatever its weight.
    pub header_routes: Vec<HeaderRoute>,
    /// What opens the way on.
    pub gate: Gate,
    /// In a few words.
    pub label: String,
    /// The step of the spec it comes from; none for the last one.
    pub step: Option<usize>,
}

/// How many pods a stage asks for, whatever its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// As many as the weight needs.
    ForWeight,
    /// So many.
    Number(i32),
    /// So many percent of `spec.replicas`, rounded up.
    Percent(i32),
}

impl Pods {
    /// The pods that carry `weight` percent of `replicas`, and at least as many as are asked for.
    pub fn size(self, replicas: i32, weight: i32) -> i32 {
        let carries = if weight > 0 { share(replicas, weight).max(1) } else { 0 };
        carries.max(match self {
            Self::ForWeight => 0,
            Self::Number(number) => number.max(0),
            Self::Percent(percent) => share(replicas, percent),
        })
    }
}

/// What opens the way to the next stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// The weight is in effect.
    Ready,
    /// Time has passed since.
    Time(Duration),
    /// So many different people have approved.
    Approvals(i32),
    /// An analysis has passed.
    Analysis(AnalysisReference),
}

impl Gate {
    /// In a few words.
    pub fn label(&self) -> String {
        match self {
            Self::Ready => "ready".to_owned(),
            Self::Time(duration) => format!("{duration}"),
            Self::Approvals(1) => "1 approval".to_owned(),
            Self::Approvals(number) => format!("{number} approvals"),
            Self::Analysis(analysis) => {
                let names: Vec<&str> =
                    analysis.templates.iter().map(|template| template.template_name.as_str()).collect();
                format!("analysis {}", names.join(", "))
            }
        }
    }
}

impl Plan {
    /// Names the plan: two plans of the same hash have the same stages.
    pub fn hash(&self) -> String {
        let mut digest = names::hex(&Sha256::digest(format!("{:?}", self.stages)));
        digest.truncate(12);
        digest
    }

    /// The stage of an index that may be out of range: a status is never trusted.
    pub fn stage(&self, index: i32) -> Option<&Stage> {
        self.stages.get(usize::try_from(index).ok()?)
    }

    /// How many stages there are.
    pub fn len(&self) -> i32 {
        i32::try_from(self.stages.len()).unwrap_or(i32::MAX)
    }

    /// Whether there are none; never so for a compiled plan.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }
}

/// Compiles the strategy.
///
/// # Errors
/// Every problem found, not only the first.
pub fn plan(spec: &RolloutSpec) -> Result<Plan, Vec<Problem>> {
    let mut problems = Vec::new();
    if spec.replicas() < 0 {
        problems.push(invalid("spec.replicas", "must not be negative"));
    }
    if spec.selector.match_labels.is_empty() {
        problems.push(invalid("spec.selector.matchLabels", "must not be empty"));
    }
    let labels: BTreeMap<&str, &str> = spec.template.labels().collect();
    for (key, value) in &spec.selector.match_labels {
        if labels.get(key.as_str()) != Some(&value.as_str()) {
            let cure = format!("must carry {key}: {value}, which spec.selector asks for");
            problems.push(invalid("spec.template.metadata.labels", &cure));
        }
    }
    for key in [names::REVISION, names::ROLLOUT] {
        if labels.contains_key(key) || spec.selector.match_labels.contains_key(key) {
            problems
                .push(invalid("spec.template.metadata.labels", &format!("{key} is set by the operator; remove it")));
        }
    }
    if spec.template.images().next().is_none() {
        problems.push(invalid("spec.template.spec.containers", "name at least one container with an image"));
    }
    let stages = match (&spec.strategy.canary, &spec.strategy.blue_green) {
        (Some(canary), None) => {
            services_and_routes(canary, &mut problems);
            stages(canary, &mut problems)
        }
        (None, Some(blue_green)) => blue_green_stages(blue_green, &mut problems),
        _ => {
            problems.push(invalid("spec.strategy", "name exactly one of canary and blueGreen"));
            Vec::new()
        }
    };
    if problems.is_empty() { Ok(Plan { stages }) } else { Err(problems) }
}

fn services_and_routes(canary: &CanaryStrategy, problems: &mut Vec<Problem>) {
    const ROOT: &str = "spec.strategy.canary";
    if canary.traffic_routing.is_some() {
        if canary.routes().next().is_none() {
            problems.push(invalid(&format!("{ROOT}.trafficRouting.gatewayAPI"), "name at least one route"));
        }
        for (field, service) in [("stableService", &canary.stable_service), ("canaryService", &canary.canary_service)] {
            if service.as_deref().is_none_or(str::is_empty) {
                problems.push(invalid(&format!("{ROOT}.{field}"), "is required"));
            }
        }
    }
    if canary.traffic_routing.is_none() {
        let cure = "needs trafficRouting: without routes the pods are the weight";
        for (field, given) in [
            ("dynamicStableScale", canary.dynamic_stable_scale),
            ("minPodsPerReplicaSet", canary.min_pods_per_replica_set.is_some()),
        ] {
            if given {
                problems.push(invalid(&format!("{ROOT}.{field}"), cure));
            }
        }
    }
    if canary.min_pods_per_replica_set.is_some_and(|least| least < 1) {
        problems.push(invalid(&format!("{ROOT}.minPodsPerReplicaSet"), "must be at least 1"));
    }
    for (field, count) in [("maxSurge", canary.max_surge), ("maxUnavailable", canary.max_unavailable)] {
        if count.is_some() && canary.traffic_routing.is_some() {
            problems.push(invalid(&format!("{ROOT}.{field}"), "is of a canary without trafficRouting"));
        }
    }
    let none = |count: Option<PodCount>| count.is_some_and(|count| count.rounded_up(100) == 0);
    if none(canary.max_surge) && none(canary.max_unavailable) {
        let cure = "must not be 0 together with maxSurge: no pod could ever be replaced";
        problems.push(invalid(&format!("{ROOT}.maxUnavailable"), cure));
    }
    if canary.stable_service.is_some() && canary.stable_service == canary.canary_service {
        problems.push(invalid(&format!("{ROOT}.canaryService"), "must differ from stableService"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (field, route) in canary.routes() {
        let twice = format!("{route} is named twice");
        if !seen.insert(route) {
            problems.push(invalid(&field, &twice));
        }
    }
    let steps = i32::try_from(canary.steps.len()).unwrap_or(i32::MAX);
    let start = canary.analysis.as_ref().and_then(|analysis| analysis.starting_step).unwrap_or_default();
    if start < 0 || start > steps {
        problems.push(invalid(&format!("{ROOT}.analysis.startingStep"), &format!("must be within 0 and {steps}")));
    }
}

const ONE_VERB: &str = "holds exactly one of setWeight, setCanaryScale, setHeaderRoute, pause and analysis";

fn header_route_problem(canary: &CanaryStrategy, wanted: &HeaderRoute, field: &str, problems: &mut Vec<Problem>) {
    if !canary.routes().any(|(_, route)| route.kind.matches_headers()) {
        problems.push(invalid(field, "needs an HTTPRoute or a GRPCRoute: no other route looks at headers"));
    }
    if wanted.name.is_empty() {
        problems.push(invalid(&format!("{field}.name"), "is required"));
    }
    for (index, header) in wanted.matches.iter().enumerate() {
        let field = format!("{field}.match[{index}]");
        if !header.header_value.is_one() {
            problems.push(invalid(&format!("{field}.headerValue"), "give exactly one of exact, prefix and regex"));
        }
        let name = &header.header_name;
        let before = wanted.matches.iter().take(index);
        if before.into_iter().any(|other| other.header_name.eq_ignore_ascii_case(name)) {
            problems.push(invalid(&format!("{field}.headerName"), &format!("{name} is named twice")));
        }
    }
}

fn stages(canary: &CanaryStrategy, problems: &mut Vec<Problem>) -> Vec<Stage> {
    let mut stages = Vec::with_capacity(canary.steps.len() + 1);
    let (mut weight, mut pods) = (0, Pods::ForWeight);
    let mut header_routes: Vec<HeaderRoute> = Vec::new();
    for (index, step) in canary.steps.iter().enumerate() {
        let field = format!("spec.strategy.canary.steps[{index}]");
        if let Some(header_route) = &step.set_header_route {
            let alone = CanaryStep { set_header_route: Some(header_route.clone()), ..CanaryStep::default() };
            if *step != alone {
                problems.push(invalid(&field, ONE_VERB));
            }
            header_route_problem(canary, header_route, &format!("{field}.setHeaderRoute"), problems);
            header_routes.retain(|other| other.name != header_route.name);
            let ends = header_route.matches.is_empty();
            if !ends {
                header_routes.push(header_route.clone());
            }
            let label = format!("header route {}{}", header_route.name, if ends { " ends" } else { "" });
            let (gate, header_routes) = (Gate::Ready, header_routes.clone());
            stages.push(Stage { weight, pods, header_routes, gate, label, step: Some(index) });
            continue;
        }
        let (gate, label) = match (step.set_weight, &step.set_canary_scale, &step.pause, &step.analysis) {
            (Some(percent), None, None, None) => {
                if !(0..=100).contains(&percent) {
                    let side = if percent > 100 { "above 100" } else { "below 0" };
                    problems.push(invalid(&format!("{field}.setWeight"), &format!("{percent} is {side}")));
                }
                weight = percent.clamp(0, 100);
                (Gate::Ready, format!("{weight} %"))
            }
            (None, Some(scale), None, None) => {
                let field = format!("{field}.setCanaryScale");
                if canary.traffic_routing.is_none() {
                    let cure = "needs trafficRouting: without routes the pods are the weight";
                    problems.push(invalid(&field, cure));
                }
                let (asked, label) = match (scale.replicas, scale.weight, scale.match_traffic_weight) {
                    (Some(1), None, None) => (Pods::Number(1), "1 pod".to_owned()),
                    (Some(number), None, None) if number >= 0 => (Pods::Number(number), format!("{number} pods")),
                    (None, Some(percent), None) if (0..=100).contains(&percent) => {
                        (Pods::Percent(percent), format!("{percent} % of the pods"))
                    }
                    (None, None, Some(true)) => (Pods::ForWeight, "pods as the weight needs".to_owned()),
                    _ => {
                        problems
                            .push(invalid(&field, "give exactly one of replicas, weight and matchTrafficWeight: true"));
                        continue;
                    }
                };
                pods = asked;
                (Gate::Ready, label)
            }
            (None, None, Some(pause), None) => match (pause.duration, pause.approvals) {
                (Some(_), Some(_)) => {
                    problems.push(invalid(&format!("{field}.pause"), "give duration or approvals, not both"));
                    continue;
                }
                (Some(duration), None) => (Gate::Time(duration), format!("pause {duration}")),
                (None, approvals) => {
                    let approvals = approvals.unwrap_or(1);
                    if approvals < 1 {
                        problems.push(invalid(&format!("{field}.pause.approvals"), "must be at least 1"));
                    }
                    let gate = Gate::Approvals(approvals);
                    let label = format!("pause for {}", gate.label());
                    (gate, label)
                }
            },
            (None, None, None, Some(analysis)) => {
                if analysis.templates.is_empty() {
                    problems.push(invalid(&format!("{field}.analysis.templates"), "name at least one template"));
                }
                let gate = Gate::Analysis(analysis.clone());
                let label = gate.label();
                (gate, label)
            }
            _ => {
                problems.push(invalid(&field, ONE_VERB));
                continue;
            }
        };
        let header_routes = header_routes.clone();
        stages.push(Stage { weight, pods, header_routes, gate, label, step: Some(index) });
    }
    // Until everything is the canary's, nobody who had it loses it.
    stages.push(Stage { header_routes, ..promote() });
    stages
}

/// The last stage of every plan: the new version has everything.
fn promote() -> Stage {
    Stage {
        weight: 100,
        pods: Pods::ForWeight,
        header_routes: Vec::new(),
        gate: Gate::Ready,
        label: "promote".to_owned(),
        step: None,
    }
}

/// Blue/green: the preview gets its pods, is judged, waited for; then everything moves at once, and what has it is
/// judged again while the old side still stands.
fn blue_green_stages(blue_green: &BlueGreenStrategy, problems: &mut Vec<Problem>) -> Vec<Stage> {
    const ROOT: &str = "spec.strategy.blueGreen";
    if blue_green.active_service.is_empty() {
        problems.push(invalid(&format!("{ROOT}.activeService"), "is required"));
    }
    if blue_green.preview_service.as_ref() == Some(&blue_green.active_service) {
        problems.push(invalid(&format!("{ROOT}.previewService"), "must differ from activeService"));
    }
    if blue_green.preview_replica_count.is_some_and(|count| count < 1) {
        problems.push(invalid(&format!("{ROOT}.previewReplicaCount"), "must be at least 1"));
    }
    let seconds = blue_green.auto_promotion_seconds.unwrap_or_default();
    if seconds < 0 {
        problems.push(invalid(&format!("{ROOT}.autoPromotionSeconds"), "must not be negative"));
    }
    let mut analysis = |field: &str, analysis: &Option<AnalysisReference>| {
        let analysis = analysis.as_ref()?;
        if analysis.templates.is_empty() {
            problems.push(invalid(&format!("{ROOT}.{field}.templates"), "name at least one template"));
        }
        Some(Gate::Analysis(analysis.clone()))
    };
    let before = analysis("prePromotionAnalysis", &blue_green.pre_promotion_analysis);
    let after = analysis("postPromotionAnalysis", &blue_green.post_promotion_analysis);
    let wait = match (blue_green.auto_promotion_enabled, u64::try_from(seconds)) {
        (Some(false), _) => Some(Gate::Approvals(1)),
        (_, Ok(seconds)) if seconds > 0 => Some(Gate::Time(Duration::from_secs(seconds))),
        _ => None,
    };
    let preview = |gate, label| (0, gate, label);
    let stages = [
        Some(preview(Gate::Ready, "preview".to_owned())),
        before.map(|gate| {
            let label = format!("{} of the preview", gate.label());
            preview(gate, label)
        }),
        wait.map(|gate| {
            let label = match &gate {
                Gate::Time(_) => format!("pause {}", gate.label()),
                _ => format!("pause for {}", gate.label()),
            };
            preview(gate, label)
        }),
        after.map(|gate| {
            let label = format!("{} after the switch", gate.label());
            (100, gate, label)
        }),
    ];
    let pods = blue_green.preview_replica_count.map_or(Pods::Percent(100), Pods::Number);
    let numbered = stages.into_iter().flatten().enumerate();
    let stages = numbered.map(|(index, (weight, gate, label))| Stage {
        weight,
        pods,
        header_routes: Vec::new(),
        gate,
        label,
        step: Some(index),
    });
    stages.chain([promote()]).collect()
}

fn invalid(field: &str, message: &str) -> Problem {
    Problem { reason: "InvalidSpec".to_owned(), field: Some(field.to_owned()), message: format!("{field}: {message}") }
}
