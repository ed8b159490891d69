//! From what was last seen to what the engine is asked about: one [`Snapshot`].
//!
//! Pure. Everything a Rollout refers to is looked up here, and what is missing or does not fit becomes a
//! [`Problem`] that names the field and the cure, before anything moves. The operator and the command line use
//! the same function, so that what a person is told is what the engine sees.

use std::collections::BTreeMap;

use super::index::Index;
use super::kinds::Kind;
use super::objects::{Key, RolloutObject, Undecodable};
use crate::analysis::resolve::{self, Ending, Template};
use crate::api::{
    AnalysisReference, AnalysisTemplateSpec, Metric, ProviderKind, References, RolloutSpec, RolloutStatus, names,
};
use crate::engine::{
    AnalysisState, InterventionState, LedgerState, Problem, RevisionState, RouteState, ServiceState, Snapshot,
};
use crate::traffic::http_route;

/// A Rollout as seen, or what makes it unreadable.
pub type Observation = Result<Snapshot, Undecodable>;

/// Looks at one Rollout. `None` when it does not exist or is being deleted.
pub fn observe(index: &Index, rollout: &RolloutObject, ledger: LedgerState, epoch: i64) -> Observation {
    let spec = rollout.spec.clone()?;
    let named = spec.references();
    let key = rollout.identity.key();
    let status = rollout.status.clone().unwrap_or_default();
    let mut problems = Vec::new();
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
    let services = observe_services(index, rollout, &spec, &named, &mut problems);
    let routes = observe_routes(index, &key, &named, &mut problems);
    let revisions = observe_revisions(index, rollout);
    let mut status = status;
    if rollout.status.is_none() || rollout.status_trouble.is_some() {
        // No status, but pods that serve: it was lost or is not ours to read. What the stable Service selects is
        // stable; this is no first deploy.
        let selected = named.stable_service.as_ref().and_then(|name| services.get(name)?.selects.clone());
        status.stable_revision = selected.filter(|revision| revisions.get(revision).is_some_and(|set| set.ready > 0));
    }
    problems.extend(analysis_problems(index, rollout, &spec));
    Ok(Snapshot {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: rollout.identity.uid.clone(),
        generation: rollout.identity.generation,
        revisions,
        services,
        routes,
        analyses: observe_analyses(index, rollout),
        interventions: observe_interventions(index, &key, &status),
        ledger,
        source_commit: rollout.identity.annotations.get(names::SOURCE_COMMIT).cloned(),
        epoch,
        spec,
        status,
        problems,
    })
}

fn observe_revisions(index: &Index, rollout: &RolloutObject) -> BTreeMap<String, RevisionState> {
    let sets = index.replica_sets_of(&rollout.identity.key());
    sets.iter()
        .filter(|set| set.identity.owner.as_deref() == Some(rollout.identity.uid.as_str()) && !set.identity.deleting)
        .map(|set| {
            let state = RevisionState {
                replicas: set.replicas,
                current: set.current,
                ready: set.ready,
                available: set.available,
                observed: set.observed,
                created_at: set.identity.created_at,
                template: set.template.clone(),
                trouble: set.trouble.clone(),
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
    let sides = [("stableService", &named.stable_service), ("canaryService", &named.canary_service)];
    let mut services = BTreeMap::new();
    for (side, name) in sides {
        let Some(name) = name else { continue };
        let field = Some(format!("spec.strategy.canary.{side}"));
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
    named: &References,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, RouteState> {
    let mut routes = BTreeMap::new();
    let (Some(stable), Some(canary)) = (&named.stable_service, &named.canary_service) else {
        return routes;
    };
    for (number, name) in named.routes.iter().enumerate() {
        let field = Some(format!("spec.strategy.canary.trafficRouting.gatewayAPI.httpRoutes[{number}].name"));
        let route_key = Key::new(key.namespace.clone(), name.clone());
        let Some(route) = index.route(&route_key) else {
            problems.push(Problem {
                reason: "RouteNotFound".to_owned(),
                message: format!("HTTPRoute {route_key} does not exist; create it, or mend the name"),
                field,
            });
            continue;
        };
        if let Some(claimant) = index.claimants(Kind::HttpRoute, &route_key).first().filter(|first| **first != *key) {
            problems.push(Problem {
                reason: "RouteClaimed".to_owned(),
                message: format!("HTTPRoute {route_key} is already steered by Rollout {claimant}"),
                field,
            });
            continue;
        }
        match http_route::read(&route.value, &key.namespace, stable, canary) {
            Ok(state) => {
                routes.insert(name.clone(), state);
            }
            Err(problem) => {
                problems.push(Problem { reason: "RouteNotSteerable".to_owned(), message: problem.to_string(), field })
            }
        }
    }
    routes
}

fn observe_analyses(index: &Index, rollout: &RolloutObject) -> BTreeMap<String, AnalysisState> {
    let runs = index.analysis_runs_of(&rollout.identity.key());
    runs.iter()
        .filter(|run| run.identity.owner.as_deref() == Some(rollout.identity.uid.as_str()))
        .filter_map(|run| {
            let spec = run.spec.as_ref().ok()?;
            Some((run.identity.name.clone(), crate::analysis::judge::state(spec, run.status.as_ref())))
        })
        .collect()
}

fn observe_interventions(index: &Index, key: &Key, status: &RolloutStatus) -> Vec<InterventionState> {
    let mut words: Vec<_> = index
        .interventions_of(key)
        .iter()
        .filter(|word| !status.taken_interventions.contains(&word.identity.uid))
        // One that already says what became of it was taken long ago.
        .filter(|word| word.status.as_ref().is_none_or(|status| status.outcome.is_none()))
        .filter_map(|word| {
            let spec = word.spec.as_ref().ok()?;
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
    let Some(canary) = &spec.strategy.canary else { return Vec::new() };
    let revision = spec.template.revision();
    let mut problems = Vec::new();
    if let Some(background) = &canary.analysis
        && let Err(found) = resolve(index, rollout, &revision, "background", &background.analysis)
    {
        problems.extend(under("spec.strategy.canary.analysis", found));
    }
    for (number, step) in canary.steps.iter().enumerate() {
        if let Some(analysis) = &step.analysis
            && let Err(found) = resolve(index, rollout, &revision, &format!("step-{number}"), analysis)
        {
            problems.extend(under(&format!("spec.strategy.canary.steps[{number}].analysis"), found));
        }
    }
    problems
}

fn under(root: &str, problems: Vec<Problem>) -> impl Iterator<Item = Problem> {
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
