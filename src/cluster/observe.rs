//! From what was last seen to what the engine is asked about: one [`Snapshot`].
//!
//! Pure. Everything a Rollout refers to is looked up here, and what is missing or does not fit becomes a
//! [`Problem`] that names the field and the cure, before anything moves. The operator and the command line use
//! the same function, so that what a person is told is what the engine sees.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::index::Index;
use super::kinds::Kind;
use super::objects::{Key, RolloutObject, Undecodable};
use crate::analysis::resolve::{self, Ending, Template};
use crate::api::{
    AnalysisPhase, AnalysisReference, AnalysisRunSpec, AnalysisTemplateSpec, CanaryStrategy, InterventionAction,
    InterventionStatus, Metric, ProviderKind, References, RolloutSpec, RolloutStatus, RouteKey, names,
};
use crate::engine::{
    self, AnalysisState, InterventionState, LedgerState, PodState, Problem, RevisionState, RouteState, ServiceState,
    Snapshot, StrategyChange, WorkloadState,
};
use crate::traffic::gateway_api;

/// A Rollout as seen, or what makes it unreadable.
pub type Observation = Result<Snapshot, Undecodable>;

/// Looks at one Rollout.
pub fn observe(index: &Index, rollout: &RolloutObject, ledger: LedgerState, epoch: i64) -> Observation {
    let mut asked = rollout.spec.clone()?;
    let key = rollout.identity.key();
    let status = rollout.status.clone().unwrap_or_default();
    let revisions = observe_revisions(index, rollout);
    let unfit = workload_problem(index, &key, &asked);
    if unfit.is_some() {
        // What cannot be had is no new version.
        asked.template = revisions.get(&status.revision).map(|known| known.template.clone()).unwrap_or_default();
    }
    let look = |spec: RolloutSpec| {
        let mut problems = Vec::new();
        let named = spec.references();
        let services = observe_services(index, rollout, &spec, &named, &mut problems);
        let routes = observe_routes(index, &key, &spec, &named, &mut problems);
        (spec, services, routes, problems)
    };
    let leaving = StrategyChange::Leaving { asked: Box::new(asked.strategy.steering()) };
    let (strategy_change, seen) = match status.leaves(&asked).map(look) {
        None => (StrategyChange::None, look(asked)),
        Some(old) if old.3.is_empty() => (leaving, old),
        Some(_) => (StrategyChange::Gone, look(asked)),
    };
    let (spec, services, routes, found) = seen;
    let mut problems = Vec::from_iter(unfit.clone());
    if key.name.len() > names::MAX_ROLLOUT_NAME {
        problems.push(Problem {
            reason: "NameTooLong".to_owned(),
            field: Some("metadata.name".to_owned()),
            message: format!(
                "metadata.name: at most {} letters, so that the names of ReplicaSets and pods fit; create it again under a shorter name",
                names::MAX_ROLLOUT_NAME
            ),
        });
    }
    problems.extend(found);
    problems.extend(analysis_problems(index, rollout, &spec));
    // A new version is asked for where its template stands.
    let workload = spec.workload_ref.as_ref().and_then(|it| index.deployment(&Key::new(&*key.namespace, &*it.name)));
    let source = workload.as_ref().map_or(&rollout.identity, |workload| &workload.identity);
    // One that is about to go, or that another Rollout has, is neither scaled nor waited for.
    let own = workload.as_ref().filter(|seen| unfit.is_none() && !seen.identity.deleting);
    let workload_state = own.map(|seen| WorkloadState {
        name: seen.identity.name.clone(),
        revision: seen.template.revision(),
        replicas: seen.replicas,
        ready: seen.ready,
    });
    Ok(Snapshot {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: rollout.identity.uid.clone(),
        generation: rollout.identity.generation,
        ending: rollout.identity.deleting.then_some(engine::Ending::Deleted),
        finalizer: rollout.identity.is_held(),
        revisions,
        workload: workload_state,
        services,
        routes,
        analyses: observe_analyses(index, rollout, &spec),
        interventions: observe_interventions(index, &key, &status),
        ledger,
        source_commit: source.annotations.get(names::SOURCE_COMMIT).cloned(),
        source_history: source.annotations.get(names::SOURCE_HISTORY).and_then(|text| text.parse().ok()),
        epoch,
        spec,
        strategy_change,
        status,
        problems,
    })
}

/// Why no template can be had of the workload that a Rollout names.
fn workload_problem(index: &Index, key: &Key, spec: &RolloutSpec) -> Option<Problem> {
    let workload = spec.workload_ref.as_ref()?;
    let workload_key = Key::new(key.namespace.clone(), workload.name.clone());
    let problem = |reason: &str, message: String| Problem {
        reason: reason.to_owned(),
        field: Some("spec.workloadRef.name".to_owned()),
        message,
    };
    let Some(seen) = index.deployment(&workload_key) else {
        let message = format!("Deployment {workload_key} does not exist; create it, or mend the name");
        return Some(problem("WorkloadNotFound", message));
    };
    if let Some(claimant) = index.claimants(Kind::Deployment, &workload_key).first().filter(|first| *first != key) {
        let message = format!(
            "Deployment {workload_key} is already the workload of Rollout {claimant}; give each Rollout a workload of its own"
        );
        return Some(problem("WorkloadClaimed", message));
    }
    let labels: BTreeMap<&str, &str> = seen.template.labels().collect();
    let lacks = |(label, value): &(&String, &String)| labels.get(label.as_str()) != Some(&value.as_str());
    let (label, value) = spec.selector.match_labels.iter().find(lacks)?;
    let message = format!(
        "the pods of Deployment {workload_key} do not carry {label}={value} of spec.selector.matchLabels; let them be the same"
    );
    Some(problem("WorkloadSelectorMismatch", message))
}

fn observe_revisions(index: &Index, rollout: &RolloutObject) -> BTreeMap<String, RevisionState> {
    let sets = index.replica_sets_of(&rollout.identity.key());
    let pods = index.pods_of(&rollout.identity.key());
    sets.iter()
        .filter(|set| set.identity.owner.as_deref() == Some(rollout.identity.uid.as_str()) && !set.identity.deleting)
        .map(|set| {
            let own = || pods.iter().filter(|pod| pod.revision == set.revision);
            let unfinished = own().filter(|pod| !pod.finished).count();
            let trouble = || own().filter(|pod| !pod.identity.deleting).find_map(|pod| pod.trouble.clone());
            let state = RevisionState {
                replicas: set.replicas,
                current: set.current,
                // A pod is gone when both say so: each may lag behind the other.
                unfinished: i32::try_from(unfinished).unwrap_or(i32::MAX).max(set.current),
                ready: set.ready,
                available: set.available,
                observed: set.observed,
                created_at: set.identity.created_at,
                template: set.template.clone(),
                trouble: set.trouble.clone().or_else(trouble),
                pods: own()
                    .filter(|pod| !pod.finished && !pod.identity.deleting)
                    .map(|pod| PodState {
                        name: pod.identity.name.clone(),
                        uid: pod.identity.uid.clone(),
                        created_at: pod.identity.created_at.unwrap_or_default(),
                        ready_since: pod.ready_since,
                    })
                    .collect(),
            };
            (set.revision.clone(), state)
        })
        .collect()
}

fn observe_services(
    index: &Index,
    rollout: &RolloutObject,
    spec: &RolloutSpec,
    named: &References,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, ServiceState> {
    let key = rollout.identity.key();
    let pod_labels: BTreeMap<&str, &str> = spec.template.labels().collect();
    let fields = match spec.strategy.blue_green {
        Some(_) => ["blueGreen.activeService", "blueGreen.previewService"],
        None => ["canary.stableService", "canary.canaryService"],
    };
    let mut services = BTreeMap::new();
    for (field, name) in fields.into_iter().zip([&named.stable_service, &named.canary_service]) {
        let Some(name) = name else { continue };
        let field = Some(format!("spec.strategy.{field}"));
        let service_key = Key::new(key.namespace.clone(), name.clone());
        let Some(service) = index.service(&service_key) else {
            problems.push(Problem {
                reason: "ServiceNotFound".to_owned(),
                message: format!("Service {service_key} does not exist; create it, or mend the name"),
                field,
            });
            continue;
        };
        if let Some(claimant) = index.claimants(Kind::Service, &service_key).first().filter(|first| **first != key) {
            problems.push(Problem {
                reason: "ServiceClaimed".to_owned(),
                message: format!(
                    "Service {service_key} is already steered by Rollout {claimant}; give each Rollout Services of its own"
                ),
                field,
            });
            continue;
        }
        let stranger = service.selector.iter().find(|(label, value)| {
            *label != names::REVISION && pod_labels.get(label.as_str()) != Some(&value.as_str())
        });
        let stranger = stranger.filter(|_| !spec.template.is_absent());
        if service.selector.is_empty() || stranger.is_some() {
            let detail = stranger.map_or_else(
                || "has no selector".to_owned(),
                |(label, value)| format!("selects {label}={value}, which the pods of spec.template do not carry"),
            );
            problems.push(Problem {
                reason: "ServiceSelectorMismatch".to_owned(),
                message: format!("Service {service_key} {detail}; let it select the Rollout's pods"),
                field,
            });
            continue;
        }
        let mut ready: BTreeMap<String, i32> = BTreeMap::new();
        let prefix = format!("{}-", key.name);
        for slice in index.endpoint_slices_of(&service_key) {
            for pod in &slice.ready_pods {
                // A pod is `<rollout>-<revision>-<suffix>`: names of ReplicaSets are kept short enough that
                // the API server never cuts them (api::names::MAX_REPLICA_SET_NAME).
                let revision = pod
                    .strip_prefix(&prefix)
                    .and_then(|rest| rest.rsplit_once('-'))
                    .map_or_else(String::new, |(revision, _)| revision.to_owned());
                *ready.entry(revision).or_default() += 1;
            }
        }
        services.insert(name.clone(), ServiceState { selects: service.selector.get(names::REVISION).cloned(), ready });
    }
    services
}

fn observe_routes(
    index: &Index,
    key: &Key,
    spec: &RolloutSpec,
    named: &References,
    problems: &mut Vec<Problem>,
) -> BTreeMap<RouteKey, RouteState> {
    let mut routes = BTreeMap::new();
    let (Some(stable), Some(canary)) = (&named.stable_service, &named.canary_service) else {
        return routes;
    };
    let header_routes = spec.strategy.canary.as_ref().map(CanaryStrategy::header_routes).unwrap_or_default();
    for (field, route) in spec.strategy.canary.iter().flat_map(CanaryStrategy::routes) {
        let field = Some(field);
        let kind = Kind::Route(route.kind);
        let kind_name = route.kind.name();
        let route_key = Key::new(key.namespace.clone(), route.name.clone());
        let Some(seen) = index.route(route.kind, &route_key) else {
            let cure = "install the Gateway API with it, or name a route of another kind";
            problems.push(if index.is_absent(kind) {
                Problem {
                    reason: "RouteKindNotServed".to_owned(),
                    message: format!(
                        "this cluster does not serve {kind_name}, so {route_key} cannot be steered; {cure}"
                    ),
                    field,
                }
            } else {
                Problem {
                    reason: "RouteNotFound".to_owned(),
                    message: format!("{kind_name} {route_key} does not exist; create it, or mend the name"),
                    field,
                }
            });
            continue;
        };
        if let Some(claimant) = index.claimants(kind, &route_key).first().filter(|first| **first != *key) {
            problems.push(Problem {
                reason: "RouteClaimed".to_owned(),
                message: format!("{kind_name} {route_key} is already steered by Rollout {claimant}"),
                field,
            });
            continue;
        }
        let known = if route.kind.matches_headers() { header_routes.as_slice() } else { &[] };
        match gateway_api::read(&seen.value, &key.namespace, stable, canary, known) {
            Ok(state) => {
                routes.insert(route, state);
            }
            Err(problem) => {
                problems.push(Problem { reason: "RouteNotSteerable".to_owned(), message: problem.to_string(), field })
            }
        }
    }
    routes
}

fn observe_analyses(index: &Index, rollout: &RolloutObject, asked: &RolloutSpec) -> BTreeMap<String, AnalysisState> {
    let runs = index.analysis_runs_of(&rollout.identity.key());
    runs.iter()
        .filter(|run| run.identity.owner.as_deref() == Some(rollout.identity.uid.as_str()))
        .filter_map(|run| {
            let spec = run.spec.as_ref().ok()?;
            let mut state = crate::analysis::judge::state(spec, run.status.as_ref());
            if state.phase == AnalysisPhase::Failed {
                state.changed = changed(index, rollout, asked, spec);
            }
            Some((run.identity.name.clone(), state))
        })
        .collect()
}

/// Whether a run was made by another text of its templates than the present one: the hashes of the two.
fn changed(
    index: &Index,
    rollout: &RolloutObject,
    asked: &RolloutSpec,
    run: &AnalysisRunSpec,
) -> Option<(String, String)> {
    let named = named_analyses(asked);
    // A background analysis that was spent is followed by another one, under a stage of its own.
    let (_, _, analysis) = named.iter().find(|(_, stage, _)| match stage.as_str() {
        "background" => run.stage.starts_with("background"),
        stage => run.stage == stage,
    })?;
    let present = resolve(index, rollout, &run.revision, &run.stage, analysis).ok()?;
    (present != run.metrics).then(|| (hash(&run.metrics), hash(&present)))
}

/// Ten hex digits that stand for metrics with every argument filled in.
fn hash(metrics: &[Metric]) -> String {
    let text = serde_json::to_vec(metrics).unwrap_or_default();
    names::hex(&Sha256::digest(text)).chars().take(10).collect()
}

/// The words that wait to be taken. When the status was lost, so was the memory of what was taken: an abort that
/// was obeyed before is heard again, for it may be that nothing else tells of it.
fn observe_interventions(index: &Index, key: &Key, status: &RolloutStatus) -> Vec<InterventionState> {
    let mut words: Vec<_> = index
        .interventions_of(key)
        .iter()
        .filter(|word| !status.taken_interventions.contains(&word.identity.uid))
        .filter_map(|word| {
            let spec = word.spec.as_ref().ok()?;
            // One that already says what became of it was taken long ago.
            let outcome = word.status.as_ref().and_then(|status| status.outcome.as_deref());
            let again = status.has_no_position()
                && spec.action == InterventionAction::Abort
                && outcome == Some(InterventionStatus::APPLIED);
            if outcome.is_some() && !again {
                return None;
            }
            Some(InterventionState {
                uid: word.identity.uid.clone(),
                name: word.identity.name.clone(),
                revision: spec.revision.clone(),
                attempt: spec.attempt,
                stage: spec.stage,
                action: spec.action,
                actor: spec.actor.clone(),
                reason: spec.reason.clone(),
                created_at: word.identity.created_at.unwrap_or_default(),
            })
        })
        .collect();
    words.sort_by(|a, b| (a.created_at, &a.uid).cmp(&(b.created_at, &b.uid)));
    words
}

/// What is wrong with the analyses a Rollout names, each with its field.
fn analysis_problems(index: &Index, rollout: &RolloutObject, spec: &RolloutSpec) -> Vec<Problem> {
    let revision = spec.template.revision();
    let resolved = named_analyses(spec)
        .into_iter()
        .map(|(field, stage, analysis)| (field, resolve(index, rollout, &revision, &stage, analysis)));
    resolved.filter_map(|(field, found)| Some(under(&field, found.err()?))).flatten().collect()
}

/// Each analysis that a Rollout names: its field, its stage, and what it refers to.
fn named_analyses(spec: &RolloutSpec) -> Vec<(String, String, &AnalysisReference)> {
    let mut named: Vec<(String, String, &AnalysisReference)> = Vec::new();
    if let Some(canary) = &spec.strategy.canary {
        if let Some(background) = &canary.analysis {
            let field = "spec.strategy.canary.analysis".to_owned();
            named.push((field, "background".to_owned(), &background.analysis));
        }
        for (number, step) in canary.steps.iter().enumerate() {
            if let Some(analysis) = &step.analysis {
                let field = format!("spec.strategy.canary.steps[{number}].analysis");
                named.push((field, format!("step-{number}"), analysis));
            }
        }
    }
    if let Some(blue_green) = &spec.strategy.blue_green {
        let analyses = [
            ("prePromotionAnalysis", &blue_green.pre_promotion_analysis),
            ("postPromotionAnalysis", &blue_green.post_promotion_analysis),
        ];
        for (field, analysis) in analyses {
            if let Some(analysis) = analysis {
                named.push((format!("spec.strategy.blueGreen.{field}"), field.to_owned(), analysis));
            }
        }
    }
    named
}

fn under(root: &str, problems: Vec<Problem>) -> impl Iterator<Item = Problem> + use<> {
    let root = root.to_owned();
    problems.into_iter().map(move |problem| Problem {
        field: Some(problem.field.map_or_else(|| root.to_owned(), |field| format!("{root}.{field}"))),
        ..problem
    })
}

/// The metrics of an analysis with every argument filled in, or what is missing. Fields are relative to the
/// analysis.
pub fn resolve(
    index: &Index,
    rollout: &RolloutObject,
    revision: &str,
    stage: &str,
    analysis: &AnalysisReference,
) -> Result<Vec<Metric>, Vec<Problem>> {
    let namespace = &rollout.identity.namespace;
    let mut problems = Vec::new();
    let mut found_templates: Vec<(&'static str, &str, AnalysisTemplateSpec)> = Vec::new();
    for (number, reference) in analysis.templates.iter().enumerate() {
        let name = &reference.template_name;
        let kind = if reference.cluster_scope { "ClusterAnalysisTemplate" } else { "AnalysisTemplate" };
        let found = if reference.cluster_scope {
            index.cluster_analysis_template(name).map(|template| {
                template.spec.clone().map(|spec| AnalysisTemplateSpec { args: spec.args, metrics: spec.metrics })
            })
        } else {
            index.analysis_template(&Key::new(namespace.clone(), name.clone())).map(|template| template.spec.clone())
        };
        let field = Some(format!("templates[{number}].templateName"));
        match found {
            Some(Ok(template)) => found_templates.push((kind, name, template)),
            Some(Err(trouble)) => problems.push(Problem {
                reason: "InvalidAnalysisTemplate".to_owned(),
                message: format!("template {name}: {trouble}"),
                field,
            }),
            None => problems.push(Problem {
                reason: "AnalysisTemplateNotFound".to_owned(),
                message: if reference.cluster_scope {
                    format!("ClusterAnalysisTemplate {name} does not exist; create it, or mend the name")
                } else {
                    format!("AnalysisTemplate {namespace}/{name} does not exist; create it, or mend the name")
                },
                field,
            }),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let templates: Vec<Template<'_>> = found_templates
        .iter()
        .map(|(kind, name, spec)| Template { kind, name, args: &spec.args, metrics: &spec.metrics })
        .collect();
    let ending = if stage.starts_with("background") { Ending::WithRollout } else { Ending::ByItself };
    let metrics =
        resolve::resolve(&templates, &analysis.args, &standard(rollout, revision), ending).map_err(|faults| {
            let problem = |fault: resolve::Fault| Problem {
                reason: "InvalidAnalysis".to_owned(),
                field: fault.place.starts_with("args").then(|| fault.place.clone()),
                message: fault.to_string(),
            };
            faults.into_iter().map(problem).collect::<Vec<_>>()
        })?;
    for metric in &metrics {
        let Some(query) = &metric.provider.prometheus else { continue };
        let (known, kind) = match query.kind {
            ProviderKind::ClusterMetricProvider => {
                (index.cluster_metric_provider(&query.name).is_some(), format!("ClusterMetricProvider {}", query.name))
            }
            ProviderKind::MetricProvider => (
                index.metric_provider(&Key::new(namespace.clone(), query.name.clone())).is_some(),
                format!("MetricProvider {namespace}/{}", query.name),
            ),
        };
        if !known {
            problems.push(Problem {
                reason: "MetricProviderNotFound".to_owned(),
                message: format!("metric {}: {kind} does not exist; an administrator creates it", metric.name),
                field: Some("templates".to_owned()),
            });
        }
    }
    if problems.is_empty() { Ok(metrics) } else { Err(problems) }
}

/// The arguments that are always set.
fn standard(rollout: &RolloutObject, revision: &str) -> BTreeMap<String, String> {
    let named = rollout.spec.as_ref().map(crate::api::RolloutSpec::references).unwrap_or_default();
    let stable = rollout.status.as_ref().and_then(|status| status.stable_revision.clone()).unwrap_or_default();
    [
        ("namespace", rollout.identity.namespace.clone()),
        ("rollout", rollout.identity.name.clone()),
        ("revision", revision.to_owned()),
        ("stableRevision", stable),
        ("stableService", named.stable_service.unwrap_or_default()),
        ("canaryService", named.canary_service.unwrap_or_default()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

#[cfg(test)]
mod tests {
    use kube::core::DynamicObject;
    use serde_json::{Value, json};

    use super::*;
    use chrono::Utc;

    use crate::api::{
        Abort, AbortCause, Phase, PodTemplate, Release, ReleaseState, RouteKind, SourceHistory, TransitionEvent,
    };
    use crate::engine::Turn;
    use crate::engine::decide::decide;

    fn put(index: &Index, kind: Kind, mut object: Value) {
        object["apiVersion"] = json!(kind.resource().api_version);
        object["kind"] = json!(kind.name());
        if !kind.is_cluster_scoped() {
            object["metadata"]["namespace"] = json!("shop");
        }
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        index.apply(kind, &object);
    }

    fn rollout(name: &str, created: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "1", "generation": 1, "creationTimestamp": created},
            "spec": {"selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}},
                "strategy": {"canary": {"stableService": "web-stable", "canaryService": "web-canary",
                    "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": "web"}]}},
                    "analysis": {"templates": [{"templateName": "errors"}]},
                    "steps": [{"setWeight": 20}]}}}
        })
    }

    fn service(name: &str, selector: Value) -> Value {
        json!({"metadata": {"name": name, "uid": name, "resourceVersion": "1"}, "spec": {"selector": selector}})
    }

    fn route(canary: &str) -> Value {
        json!({
            "metadata": {"name": "web", "uid": "route", "resourceVersion": "1", "generation": 1},
            "spec": {"rules": [{"backendRefs": [
                {"name": "web-stable", "port": 80, "weight": 100}, {"name": canary, "port": 80, "weight": 0}]}]}
        })
    }

    fn template(provider: &str) -> Value {
        json!({
            "metadata": {"name": "errors", "uid": "errors", "resourceVersion": "1"},
            "spec": {"metrics": [{"name": "rate", "interval": "5s", "successCondition": "result[0] < 0.1",
                "provider": {"prometheus": {"name": provider, "query": "up"}}}]}
        })
    }

    /// Everything the Rollout `web` needs.
    fn whole() -> Index {
        let index = Index::default();
        put(&index, Kind::Rollout, rollout("web", "2026-01-01T00:00:00Z"));
        put(&index, Kind::Service, service("web-stable", json!({"app": "web", "sluice.dev/revision": "abc"})));
        put(&index, Kind::Service, service("web-canary", json!({"app": "web"})));
        put(&index, Kind::Route(RouteKind::Http), route("web-canary"));
        put(&index, Kind::AnalysisTemplate, template("prom"));
        put(
            &index,
            Kind::ClusterMetricProvider,
            json!({"metadata": {"name": "prom", "uid": "prom", "resourceVersion": "1"},
                   "spec": {"prometheus": {"address": "http://prometheus:9090"}}}),
        );
        index
    }

    fn look(index: &Index, name: &str) -> Snapshot {
        let rollout = index.rollout(&Key::new("shop", name)).unwrap();
        observe(index, &rollout, LedgerState::default(), 1).unwrap()
    }

    /// The one problem of `web`, as reason, field and message.
    fn problem(index: &Index) -> (String, String, String) {
        let problems = look(index, "web").problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let problem = problems.into_iter().next().unwrap();
        (problem.reason, problem.field.unwrap_or_default(), problem.message)
    }

    #[test]
    fn a_whole_rollout_has_no_problems() {
        let snapshot = look(&whole(), "web");
        assert_eq!(snapshot.problems, []);
        assert_eq!(snapshot.services["web-stable"].selects.as_deref(), Some("abc"));
        assert_eq!(snapshot.services["web-canary"].selects, None);
        assert_eq!(snapshot.routes[&RouteKey::new(RouteKind::Http, "web")].rules.len(), 1);
    }

    #[test]
    fn where_the_branch_was_moved_from_is_read_from_the_stamp_of_the_sync() {
        let from = "5".repeat(40);
        for (stamp, expected) in [
            (format!("rewritten-from:{from}"), Some(SourceHistory { from: from.clone(), rewritten: true })),
            (format!("unknown-from:{from}"), Some(SourceHistory { from, rewritten: false })),
            ("anything".to_owned(), None),
        ] {
            let index = whole();
            let mut web = rollout("web", "2026-01-01T00:00:00Z");
            web["metadata"]["resourceVersion"] = json!("2");
            web["metadata"]["annotations"] = json!({"sluice.dev/source-history": stamp});
            put(&index, Kind::Rollout, web);
            assert_eq!(look(&index, "web").source_history, expected);
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_field() {
        let index = whole();
        index.remove(Kind::Service, &Key::new("shop", "web-canary"), "web-canary");
        let (reason, field, message) = problem(&index);
        assert_eq!((reason.as_str(), field.as_str()), ("ServiceNotFound", "spec.strategy.canary.canaryService"));
        assert!(message.contains("shop/web-canary"), "{message}");

        let index = whole();
        index.remove(Kind::Route(RouteKind::Http), &Key::new("shop", "web"), "route");
        let (reason, field, _) = problem(&index);
        assert_eq!(reason, "RouteNotFound");
        assert_eq!(field, "spec.strategy.canary.trafficRouting.gatewayAPI.httpRoutes[0].name");

        let index = whole();
        index.remove(Kind::AnalysisTemplate, &Key::new("shop", "errors"), "errors");
        let (reason, field, _) = problem(&index);
        assert_eq!(reason, "AnalysisTemplateNotFound");
        assert_eq!(field, "spec.strategy.canary.analysis.templates[0].templateName");

        let index = whole();
        index.remove(Kind::ClusterMetricProvider, &Key::new("", "prom"), "prom");
        let (reason, _, message) = problem(&index);
        assert_eq!(reason, "MetricProviderNotFound");
        assert!(message.contains("ClusterMetricProvider prom"), "{message}");
    }

    fn deployment(version: &str, image: &str, labels: Value) -> Value {
        json!({"metadata": {"name": "shop", "uid": "shop", "resourceVersion": version,
                "annotations": {"sluice.dev/source-commit": image}},
            "spec": {"replicas": 3, "template": {"metadata": {"creationTimestamp": null, "labels": labels},
                "spec": {"containers": [{"name": "c", "image": image}]}}}})
    }

    /// `web` takes its template from Deployment `shop`.
    fn with_workload(index: &Index) {
        let mut web = rollout("web", "2026-01-01T00:00:00Z");
        web["metadata"]["resourceVersion"] = json!("2");
        web["spec"].as_object_mut().unwrap().remove("template");
        web["spec"]["workloadRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"});
        put(index, Kind::Rollout, web);
    }

    #[test]
    fn a_workload_keeps_the_template_whichever_of_the_two_comes_first() {
        let index = whole();
        with_workload(&index);
        let (reason, field, _) = problem(&index);
        assert_eq!((reason.as_str(), field.as_str()), ("WorkloadNotFound", "spec.workloadRef.name"));
        put(&index, Kind::Deployment, deployment("3", "i:1", json!({"app": "web"})));
        let snapshot = look(&index, "web");
        assert_eq!(snapshot.problems, []);
        let inline =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        assert_eq!(snapshot.spec.template.revision(), PodTemplate(inline).revision(), "no matter where it stands");
        assert_eq!(snapshot.source_commit.as_deref(), Some("i:1"), "the commit that changed the template");
        put(&index, Kind::Deployment, deployment("4", "i:2", json!({"app": "web"})));
        let next = look(&index, "web");
        assert_ne!(next.spec.template.revision(), snapshot.spec.template.revision());
        // The Rollout is written again (its status, say): it keeps the template.
        with_workload(&index);
        assert_eq!(look(&index, "web").spec.template, next.spec.template);
    }

    #[test]
    fn a_workload_that_does_not_fit_or_goes_is_no_new_version() {
        let index = whole();
        with_workload(&index);
        put(&index, Kind::Deployment, deployment("3", "i:1", json!({"app": "other"})));
        let (reason, _, message) = problem(&index);
        assert_eq!(reason, "WorkloadSelectorMismatch");
        assert!(message.contains("app=web"), "{message}");
        put(&index, Kind::Deployment, deployment("4", "i:1", json!({"app": "web"})));
        let revision = look(&index, "web").spec.template.revision();
        let template = look(&index, "web").spec.template.0;
        put(
            &index,
            Kind::ReplicaSet,
            json!({"metadata": {"name": format!("web-{revision}"), "uid": "set", "resourceVersion": "1",
                "labels": {"sluice.dev/rollout": "web", "sluice.dev/revision": revision},
                "ownerReferences": [{"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web", "uid": "web", "controller": true}]},
                "spec": {"replicas": 1, "template": template}}),
        );
        let mut web = rollout("web", "2026-01-01T00:00:00Z");
        web["metadata"]["resourceVersion"] = json!("5");
        web["spec"].as_object_mut().unwrap().remove("template");
        web["spec"]["workloadRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"});
        web["status"] = json!({"revision": revision, "stableRevision": revision});
        put(&index, Kind::Rollout, web);
        index.remove(Kind::Deployment, &Key::new("shop", "shop"), "shop");
        let snapshot = look(&index, "web");
        assert_eq!(snapshot.problems[0].reason, "WorkloadNotFound");
        assert_eq!(snapshot.spec.template.revision(), revision);
        let Turn::Advance(status) = decide(&Snapshot { finalizer: true, ..snapshot }, Utc::now()) else {
            panic!("it is said")
        };
        assert_eq!((status.phase, status.revision), (Phase::Stalled, revision));
        assert!(status.pending_log.is_empty(), "{:?}", status.pending_log);
    }

    #[test]
    fn a_workload_has_one_rollout() {
        let index = whole();
        put(&index, Kind::Deployment, deployment("3", "i:1", json!({"app": "web"})));
        let mut older = rollout("older", "2025-01-01T00:00:00Z");
        older["spec"].as_object_mut().unwrap().remove("template");
        older["spec"]["workloadRef"] = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"});
        older["spec"]["strategy"] = json!({"canary": {}});
        put(&index, Kind::Rollout, older);
        with_workload(&index);
        let (reason, _, message) = problem(&index);
        assert_eq!(reason, "WorkloadClaimed");
        assert!(message.contains("shop/older"), "{message}");
        assert_eq!(look(&index, "older").problems, []);
    }

    #[test]
    fn routes_of_every_kind_are_looked_up_and_named() {
        for kind in RouteKind::ALL {
            let index = Index::default();
            let mut web = rollout("web", "2026-01-01T00:00:00Z");
            web["spec"]["strategy"]["canary"].as_object_mut().unwrap().remove("analysis");
            web["spec"]["strategy"]["canary"]["trafficRouting"] =
                json!({"gatewayAPI": {kind.field(): [{"name": "web"}]}});
            put(&index, Kind::Rollout, web);
            put(&index, Kind::Service, service("web-stable", json!({"app": "web"})));
            put(&index, Kind::Service, service("web-canary", json!({"app": "web"})));
            let its_field = format!("spec.strategy.canary.trafficRouting.gatewayAPI.{}[0].name", kind.field());

            // A route of that name and another kind does not count.
            let other = if kind == RouteKind::Http { RouteKind::Grpc } else { RouteKind::Http };
            put(&index, Kind::Route(other), route("web-canary"));
            let (reason, field, message) = problem(&index);
            assert_eq!((reason.as_str(), field.as_str()), ("RouteNotFound", its_field.as_str()));
            assert!(message.starts_with(&format!("{} shop/web does not exist", kind.name())), "{message}");

            index.set_served(Kind::Route(kind), None);
            let (reason, field, message) = problem(&index);
            assert_eq!((reason.as_str(), field.as_str()), ("RouteKindNotServed", its_field.as_str()));
            assert!(message.starts_with(&format!("this cluster does not serve {}", kind.name())), "{message}");

            // The kind comes, and a route of it.
            index.set_served(Kind::Route(kind), Some(Kind::Route(kind).resource()));
            put(&index, Kind::Route(kind), route("web-canary"));
            let snapshot = look(&index, "web");
            assert_eq!(snapshot.problems, []);
            assert_eq!(snapshot.routes.keys().collect::<Vec<_>>(), [&RouteKey::new(kind, "web")]);

            let mut elder = rollout("elder", "2025-01-01T00:00:00Z");
            elder["spec"]["strategy"]["canary"]["trafficRouting"] =
                json!({"gatewayAPI": {kind.field(): [{"name": "web"}]}});
            put(&index, Kind::Rollout, elder);
            let claimed = look(&index, "web").problems.pop().unwrap();
            assert_eq!(claimed.reason, "RouteClaimed");
            assert!(claimed.message.starts_with(&format!("{} shop/web is already steered", kind.name())));
        }
    }

    #[test]
    fn a_dot_in_a_name_is_part_of_the_name() {
        let named = |index: &Index, name: &str, version: &str| {
            let mut web = rollout("web", "2026-01-01T00:00:00Z");
            web["metadata"]["resourceVersion"] = json!(version);
            web["spec"]["strategy"]["canary"]["trafficRouting"] =
                json!({"gatewayAPI": {"httpRoutes": [{"name": name}]}});
            put(index, Kind::Rollout, web);
        };
        let placed = |index: &Index, namespace: &str, name: &str| {
            let mut object = route("web-canary");
            object["metadata"] = json!({"name": name, "namespace": namespace, "uid": name, "resourceVersion": "1"});
            index.apply(Kind::Route(RouteKind::Http), &serde_json::from_value(object).unwrap());
        };
        let index = whole();
        placed(&index, "shop", "web.public");
        named(&index, "web.public", "2");
        assert_eq!(look(&index, "web").problems, []);
        // Another team's route is never looked for, whatever the name.
        placed(&index, "team-b", "web");
        named(&index, "web.team-b", "3");
        let (reason, _, message) = problem(&index);
        assert_eq!(reason, "RouteNotFound");
        assert!(message.contains("shop/web.team-b"), "{message}");
    }

    #[test]
    fn what_does_not_fit_is_named_with_the_near_miss() {
        let index = whole();
        put(&index, Kind::Route(RouteKind::Http), {
            let mut route = route("web-canray");
            route["metadata"]["resourceVersion"] = json!("2");
            route
        });
        let (reason, _, message) = problem(&index);
        assert_eq!(reason, "RouteNotSteerable");
        assert!(message.contains("web-canary") && message.contains("web-canray"), "{message}");

        let index = whole();
        let mut other = service("web-stable", json!({"app": "api"}));
        other["metadata"]["resourceVersion"] = json!("2");
        put(&index, Kind::Service, other);
        let (reason, field, message) = problem(&index);
        assert_eq!(
            (reason.as_str(), field.as_str()),
            ("ServiceSelectorMismatch", "spec.strategy.canary.stableService")
        );
        assert!(message.contains("app=api"), "{message}");
    }

    #[test]
    fn a_service_and_a_route_have_one_rollout() {
        let index = whole();
        put(&index, Kind::Rollout, rollout("rival", "2026-02-01T00:00:00Z"));
        assert_eq!(look(&index, "web").problems, [], "the elder is not disturbed");
        let rival = look(&index, "rival");
        let reasons: Vec<&str> = rival.problems.iter().map(|problem| problem.reason.as_str()).collect();
        assert_eq!(reasons, ["ServiceClaimed", "ServiceClaimed", "RouteClaimed"]);
        assert!(rival.problems[0].message.contains("shop/web"), "{}", rival.problems[0].message);
        assert!(rival.services.is_empty() && rival.routes.is_empty(), "what is claimed cannot be moved");
    }

    #[test]
    fn ready_endpoints_are_counted_by_revision() {
        let index = whole();
        let slice = |name: &str, pods: &[&str], version: &str| {
            let endpoints: Vec<Value> = pods
                .iter()
                .map(|pod| json!({"conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": pod}}))
                .collect();
            json!({"metadata": {"name": name, "uid": name, "resourceVersion": version,
                "labels": {"kubernetes.io/service-name": "web-stable"}}, "endpoints": endpoints})
        };
        put(&index, Kind::EndpointSlice, slice("a", &["web-abc-x1", "web-abc-x2", "other-1"], "1"));
        put(&index, Kind::EndpointSlice, slice("b", &["web-def-x3"], "1"));
        let ready = &look(&index, "web").services["web-stable"].ready;
        assert_eq!(ready.get("abc"), Some(&2));
        assert_eq!(ready.get("def"), Some(&1));
        assert_eq!(ready.get(""), Some(&1), "a stranger's pod is no revision's");
    }

    /// The Rollout `web` with its canary at 20 %, as the cluster shows it, and this status; with the two revisions.
    fn in_the_middle(status: Value) -> (Index, PodTemplate, PodTemplate) {
        let index = whole();
        let template = |image: &str| {
            PodTemplate(
                json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}),
            )
        };
        let (stable, canary) = (template("i:1"), template("i:2"));
        let mut web = rollout("web", "2026-01-01T00:00:00Z");
        web["metadata"]["resourceVersion"] = json!("2");
        web["spec"]["template"] = canary.0.clone();
        web["status"] = status;
        put(&index, Kind::Rollout, web);
        for (template, service) in [(&stable, "web-stable"), (&canary, "web-canary")] {
            let revision = template.revision();
            let mut its_service = service_of(service, &revision);
            its_service["metadata"]["resourceVersion"] = json!("2");
            put(&index, Kind::Service, its_service);
            let mut labelled = template.0.clone();
            labelled["metadata"]["labels"]["sluice.dev/revision"] = json!(revision);
            put(
                &index,
                Kind::ReplicaSet,
                json!({
                    "metadata": {"name": format!("web-{revision}"), "uid": revision, "resourceVersion": "1", "generation": 1,
                        "labels": {"sluice.dev/rollout": "web", "sluice.dev/revision": revision},
                        "ownerReferences": [{"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web",
                            "uid": "web", "controller": true}]},
                    "spec": {"replicas": 1, "template": labelled},
                    "status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}
                }),
            );
        }
        let mut route = route("web-canary");
        route["metadata"]["resourceVersion"] = json!("2");
        route["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(80);
        route["spec"]["rules"][0]["backendRefs"][1]["weight"] = json!(20);
        put(&index, Kind::Route(RouteKind::Http), route);
        (index, stable, canary)
    }

    fn service_of(name: &str, revision: &str) -> Value {
        service(name, json!({"app": "web", "sluice.dev/revision": revision}))
    }

    /// What the engine makes of `web` when the log has this position of it.
    fn next(index: &Index, position: Option<RolloutStatus>) -> RolloutStatus {
        let rollout = index.rollout(&Key::new("shop", "web")).unwrap();
        let ledger = LedgerState {
            read: true,
            configured: true,
            sequence: 7,
            position: position.map(Box::new),
            ..Default::default()
        };
        let snapshot = observe(index, &rollout, ledger, 1).unwrap();
        match decide(&snapshot, "2026-01-01T02:00:00Z".parse().unwrap()) {
            Turn::Advance(status) => *status,
            turn => panic!("{turn:?}"),
        }
    }

    /// The position that the log has: the canary at its first step.
    fn recorded(stable: &PodTemplate, canary: &PodTemplate) -> RolloutStatus {
        let release = Release {
            revision: canary.revision(),
            attempt: 1,
            state: ReleaseState::Stepping,
            started_at: "2026-01-01T01:00:00Z".parse().ok(),
            ..Release::default()
        };
        RolloutStatus { stable_revision: Some(stable.revision()), release: Some(release), ..RolloutStatus::default() }
    }

    #[test]
    fn a_rollout_with_a_damaged_status_goes_on_where_it_stood() {
        for damaged in [
            json!({"currentStep": "three"}),
            json!({"phase": "Progressing", "stableRevision": "abc", "release": {"stage": "three"}}),
            json!({"phase": "NoSuchPhase", "stableRevision": "abc"}),
            json!({"stableRevision": {"name": "abc"}}),
            json!([]),
            json!("three"),
        ] {
            let (index, stable, canary) = in_the_middle(damaged.clone());
            let status = next(&index, Some(recorded(&stable, &canary)));
            assert_eq!(status.stable_revision, Some(stable.revision()), "{damaged}: by Service and log");
            let release = status.release.expect("the canary is in flight again");
            assert_eq!((release.revision, release.state), (canary.revision(), ReleaseState::Stepping), "{damaged}");
            let told: Vec<_> =
                status.pending_log.iter().map(|it| (it.sequence, it.event, it.reason.as_str())).collect();
            assert_eq!(told, [(8, TransitionEvent::Recovered, "StatusLost")], "{damaged}: the numbers go on");
        }
    }

    #[test]
    fn whoever_mends_the_analysis_that_judged_is_told_what_tries_again() {
        let (_, stable, canary) = in_the_middle(Value::Null);
        let mut aborted = recorded(&stable, &canary);
        let abort = Abort {
            cause: AbortCause::Verdict,
            message: "errors: too many".to_owned(),
            at: "2026-01-01T01:30:00Z".parse().unwrap(),
            actor: None,
        };
        let release = aborted.release.as_mut().unwrap();
        (release.state, release.abort) = (ReleaseState::Aborted, Some(abort));
        let denied = json!({"revision": canary.revision(), "message": "errors: too many", "aborts": 1,
            "attempt": 1, "at": "2026-01-01T01:30:00Z"});
        aborted.denied.push(serde_json::from_value(denied).unwrap());
        let (index, ..) = in_the_middle(serde_json::to_value(&aborted).unwrap());
        let web = index.rollout(&Key::new("shop", "web")).unwrap();
        let spec = web.spec.clone().unwrap();
        let background = &spec.strategy.canary.as_ref().unwrap().analysis.as_ref().unwrap().analysis;
        let metrics = resolve(&index, &web, &canary.revision(), "background", background).unwrap();
        put(
            &index,
            Kind::AnalysisRun,
            json!({
                "metadata": {"name": "run", "uid": "run", "resourceVersion": "1", "ownerReferences": [
                    {"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web", "uid": "web", "controller": true}]},
                "spec": {"rollout": "web", "revision": canary.revision(), "attempt": 1, "stage": "background",
                    "metrics": metrics},
                "status": {"phase": "Failed", "message": "errors: too many"}
            }),
        );
        // The canary's pods are still kept, and the Services and routes are as they were left: only what is said counts.
        let said = |index: &Index| {
            let rollout = index.rollout(&Key::new("shop", "web")).unwrap();
            let ledger = LedgerState { read: true, ..LedgerState::default() };
            let mut snapshot = observe(index, &rollout, ledger, 1).unwrap();
            snapshot.finalizer = true;
            for route in snapshot.routes.values_mut() {
                route.rules[0] = crate::engine::RuleState { base: 100, stable: 100, canary: 0 };
                route.accepted = true;
            }
            let ready = [(stable.revision(), 1)];
            snapshot.services.get_mut("web-stable").unwrap().ready = ready.into();
            match decide(&snapshot, "2026-01-01T02:00:00Z".parse().unwrap()) {
                Turn::Advance(status) => *status,
                turn => panic!("{turn:?}"),
            }
        };
        let before = said(&index);
        assert_eq!(before.phase, Phase::Aborted);
        assert!(!before.message.contains("has changed since"), "{}", before.message);

        // A threshold is mended, and nothing else.
        let mut mended = template("prom");
        mended["metadata"]["resourceVersion"] = json!("2");
        mended["spec"]["metrics"][0]["successCondition"] = json!("result[0] < 0.01");
        put(&index, Kind::AnalysisTemplate, mended);
        let after = said(&index);
        let part = ". The analysis that judged it has changed since (";
        let (head, rest) = after.message.split_once(part).unwrap_or_else(|| panic!("{}", after.message));
        assert_eq!(head, before.message);
        let (then, rest) = rest.split_once(" then, ").unwrap();
        let (now, rest) = rest.split_once(" now): ").unwrap();
        assert!(then.len() == 10 && now.len() == 10 && then != now, "{then} {now}");
        assert_eq!(rest, "`kubectl rollout-status retry web` tries again by the new one");
        assert_eq!((after.phase, after.pending_log.len()), (Phase::Aborted, 0), "the edit alone tries nothing");
        assert_eq!(after.denied, before.denied, "and lifts nothing");
    }

    #[test]
    fn a_pod_counts_until_both_its_set_and_itself_are_gone() {
        let (index, _, canary) = in_the_middle(Value::Null);
        let revision = canary.revision();
        let pod = |name: &str, version: &str, ending: bool, phase: &str| {
            let mut pod = json!({
                "metadata": {"name": name, "uid": name, "resourceVersion": version,
                    "labels": {"app": "web", "sluice.dev/revision": revision},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                        "name": format!("web-{revision}"), "uid": "set"}]},
                "status": {"phase": phase, "containerStatuses": [
                    {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}}]}
            });
            if ending {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:00:00Z");
            }
            put(&index, Kind::Pod, pod);
        };
        let seen = || {
            let state = look(&index, "web").revisions[&revision].clone();
            let listed = state.pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>().join(" ");
            (state.current, state.unfinished, state.trouble, listed)
        };
        assert_eq!(seen(), (1, 1, None, String::new()), "the set has one, which nobody has shown yet");
        pod("a", "1", false, "Running");
        let trouble = Some("CrashLoopBackOff: back-off 10s".to_owned());
        assert_eq!(seen(), (1, 1, trouble.clone(), "a".to_owned()));
        pod("b", "1", true, "Running");
        assert_eq!(seen(), (1, 2, trouble, "a".to_owned()), "one that is ending still runs");
        pod("b", "2", true, "Failed");
        assert_eq!(seen().1, 1, "none of its processes is left");
        pod("c", "1", true, "Running");
        index.remove(Kind::Pod, &Key::new("shop", "c"), "c");
        index.remove(Kind::Pod, &Key::new("shop", "a"), "a");
        assert_eq!(seen(), (1, 1, None, String::new()));
    }

    #[test]
    fn an_abort_that_was_obeyed_is_heard_again_when_the_status_is_lost() {
        let word = |index: &Index, action: &str, created: &str, revision: &str| {
            put(
                index,
                Kind::Intervention,
                json!({
                    "metadata": {"name": "word", "uid": "word", "resourceVersion": "1", "creationTimestamp": created},
                    "spec": {"rollout": "web", "revision": revision, "action": action, "actor": "ann", "reason": "slow"},
                    "status": {"outcome": "Applied", "message": "done", "at": "2026-01-01T01:30:01Z"}
                }),
            );
        };
        let events = |status: &RolloutStatus| status.pending_log.iter().map(|it| it.event).collect::<Vec<_>>();

        // Said in this release, whose abort the log does not have: it counts again.
        let (index, stable, canary) = in_the_middle(json!({"currentStep": "three"}));
        word(&index, "abort", "2026-01-01T01:30:00Z", &canary.revision());
        let status = next(&index, Some(recorded(&stable, &canary)));
        assert_eq!(events(&status), [TransitionEvent::Recovered, TransitionEvent::Aborted]);
        let abort = status.release.as_ref().and_then(|release| release.abort.clone()).unwrap();
        assert_eq!(abort.actor.as_deref(), Some("ann"));
        assert_eq!(status.denied.iter().map(|it| it.revision.clone()).collect::<Vec<_>>(), [canary.revision()]);

        // Said of an attempt before this release, or not an abort: it was taken long ago.
        for (action, created) in [("abort", "2026-01-01T00:30:00Z"), ("promote", "2026-01-01T01:30:00Z")] {
            let (index, stable, canary) = in_the_middle(json!({"currentStep": "three"}));
            word(&index, action, created, &canary.revision());
            let status = next(&index, Some(recorded(&stable, &canary)));
            assert_eq!(events(&status), [TransitionEvent::Recovered], "{action} of {created}");
        }

        // With a status it was taken, and nothing hears it.
        let (_, stable, canary) = in_the_middle(Value::Null);
        let known = serde_json::to_value(recorded(&stable, &canary)).unwrap();
        let (index, ..) = in_the_middle(known);
        word(&index, "abort", "2026-01-01T01:30:00Z", &canary.revision());
        assert_eq!(look(&index, "web").interventions, []);
    }
}
