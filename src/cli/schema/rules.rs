//! The rules of our definitions, each with a twin in Rust. Pure.
//!
//! An API server runs the rules, which are written in CEL, itself. A command has no API server, so each rule has a
//! twin here, found by the rule's own text: whoever changes a rule changes its twin, and a test says so otherwise.

use regex::Regex;
use serde_json::Value;

use crate::api::{Duration, PodCount, RouteKind, names};

/// Whether a value keeps a rule; `None` when the rule has no twin.
///
/// A rule that compares with an older object holds: a file says nothing of what was before.
pub fn holds(rule: &str, value: &Value) -> Option<bool> {
    if rule.contains("oldSelf") {
        return Some(true);
    }
    if let Some(pattern) = rule.strip_prefix("self.matches(r'").and_then(|rest| rest.strip_suffix("')")) {
        return value.as_str().and_then(|text| Some(Regex::new(pattern).ok()?.is_match(text)));
    }
    TWINS.iter().find(|(text, _)| *text == rule).map(|(_, twin)| twin(value))
}

type Twin = fn(&Value) -> bool;

const TWINS: &[(&str, Twin)] = &[
    (
        "type(self) == int ? self >= 0 && self <= 31622400 : self.matches(r'^([0-9]{1,8}|([0-9]{1,8}(ms|s|m|h|d))+)$')",
        |value| serde_json::from_value::<Duration>(value.clone()).is_ok(),
    ),
    ("type(self) == int ? self >= 0 && self <= 2147483647 : self.matches(r'^(100|[0-9]{1,2})%$')", |value| {
        serde_json::from_value::<PodCount>(value.clone()).is_ok()
    }),
    // Rollout.
    ("self.metadata.name.size() <= 46", |object| {
        size(object.pointer("/metadata/name")).is_none_or(|letters| letters <= names::MAX_ROLLOUT_NAME)
    }),
    (
        "!has(self.template) || has(self.template.metadata) && has(self.template.metadata.labels) && self.selector.matchLabels.all(key, key in self.template.metadata.labels && self.template.metadata.labels[key] == self.selector.matchLabels[key])",
        |spec| {
            if !has(spec, "template") {
                return true;
            }
            let Some(labels) = spec.pointer("/template/metadata/labels").and_then(Value::as_object) else {
                return false;
            };
            let wanted = spec.pointer("/selector/matchLabels").and_then(Value::as_object);
            wanted.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        },
    ),
    (
        "!has(self.template) || !(has(self.template.metadata) && has(self.template.metadata.labels)) || ['sluice.dev/revision', 'sluice.dev/rollout'].all(key, !(key in self.template.metadata.labels))",
        |spec| {
            let labels = spec.pointer("/template/metadata/labels");
            [names::REVISION, names::ROLLOUT].iter().all(|key| labels.and_then(|labels| labels.get(*key)).is_none())
        },
    ),
    ("has(self.template) != has(self.workloadRef)", |spec| has(spec, "template") != has(spec, "workloadRef")),
    ("!has(self.template) || has(self.template.spec) && self.template.spec.containers.size() > 0", |spec| {
        !has(spec, "template")
            || size(spec.pointer("/template/spec/containers")).is_some_and(|containers| containers > 0)
    }),
    ("has(self.canary) != has(self.blueGreen)", |strategy| has(strategy, "canary") != has(strategy, "blueGreen")),
    ("!has(self.stableService) || !has(self.canaryService) || self.stableService != self.canaryService", |canary| {
        differ(canary, "stableService", "canaryService")
    }),
    ("!has(self.trafficRouting) || (has(self.stableService) && has(self.canaryService))", |canary| {
        !has(canary, "trafficRouting") || (has(canary, "stableService") && has(canary, "canaryService"))
    }),
    (
        "!has(self.analysis) || !has(self.analysis.startingStep) || self.analysis.startingStep <= (has(self.steps) ? self.steps.size() : 0)",
        |canary| {
            let start = canary.pointer("/analysis/startingStep").and_then(Value::as_u64).unwrap_or_default();
            let steps = size(canary.get("steps")).unwrap_or_default();
            usize::try_from(start).is_ok_and(|start| start <= steps)
        },
    ),
    (
        "[has(self.httpRoutes) && self.httpRoutes.size() > 0, has(self.grpcRoutes) && self.grpcRoutes.size() > 0, has(self.tlsRoutes) && self.tlsRoutes.size() > 0, has(self.tcpRoutes) && self.tcpRoutes.size() > 0].exists(given, given)",
        |routing| {
            let lists = RouteKind::ALL.map(|kind| size(routing.get(kind.field())).unwrap_or_default());
            lists.into_iter().any(|routes| routes > 0)
        },
    ),
    (
        "[has(self.setWeight), has(self.setCanaryScale), has(self.setHeaderRoute), has(self.pause), has(self.analysis)].filter(given, given).size() == 1",
        |step| {
            let verbs = ["setWeight", "setCanaryScale", "setHeaderRoute", "pause", "analysis"];
            verbs.iter().filter(|verb| has(step, verb)).count() == 1
        },
    ),
    (
        "[has(self.replicas), has(self.weight), has(self.matchTrafficWeight)].filter(given, given).size() == 1",
        |scale| ["replicas", "weight", "matchTrafficWeight"].iter().filter(|field| has(scale, field)).count() == 1,
    ),
    ("!has(self.trafficRouting) || !(has(self.maxSurge) || has(self.maxUnavailable))", |canary| {
        !has(canary, "trafficRouting") || !(has(canary, "maxSurge") || has(canary, "maxUnavailable"))
    }),
    ("has(self.trafficRouting) || !(has(self.dynamicStableScale) || has(self.minPodsPerReplicaSet))", |canary| {
        has(canary, "trafficRouting") || !(has(canary, "dynamicStableScale") || has(canary, "minPodsPerReplicaSet"))
    }),
    ("has(self.trafficRouting) || !has(self.steps) || !self.steps.exists(step, has(step.setCanaryScale))", |canary| {
        let mut steps = canary.get("steps").and_then(Value::as_array).into_iter().flatten();
        has(canary, "trafficRouting") || !steps.any(|step| has(step, "setCanaryScale"))
    }),
    ("[has(self.exact), has(self.prefix), has(self.regex)].filter(given, given).size() == 1", |text| {
        ["exact", "prefix", "regex"].iter().filter(|field| has(text, field)).count() == 1
    }),
    ("!has(self.duration) || !has(self.approvals)", |pause| !has(pause, "duration") || !has(pause, "approvals")),
    ("!has(self.previewService) || self.previewService != self.activeService", |strategy| {
        differ(strategy, "previewService", "activeService")
    }),
    // Analysis templates.
    ("has(self.threshold) || has(self.successCondition) || has(self.failureCondition)", |metric| {
        ["threshold", "successCondition", "failureCondition"].iter().any(|field| has(metric, field))
    }),
    ("!has(self.count) || self.count <= 1 || has(self.interval)", |metric| {
        metric.get("count").and_then(Value::as_i64).unwrap_or_default() <= 1 || has(metric, "interval")
    }),
    ("has(self.min) || has(self.max)", |threshold| has(threshold, "min") || has(threshold, "max")),
    ("!has(self.min) || !has(self.max) || self.min <= self.max", |threshold| {
        let bound = |name| threshold.get(name).and_then(Value::as_f64);
        bound("min").zip(bound("max")).is_none_or(|(min, max)| min <= max)
    }),
    ("has(self.prometheus)", |provider| has(provider, "prometheus")),
    // DeployRepo.
    ("!self.startsWith('rollout-log/') && !self.startsWith('-')", |branch| {
        branch.as_str().is_none_or(|name| !name.starts_with(names::LOG_BRANCH_PREFIX) && !name.starts_with('-'))
    }),
    ("!self.startsWith('/') && !self.split('/').exists(part, part == '..')", |path| {
        path.as_str().is_none_or(|path| !path.starts_with('/') && path.split('/').all(|part| part != ".."))
    }),
    ("!has(self.onAbort) || self.onAbort != 'pullRequest' || has(self.forge)", |spec| {
        spec.get("onAbort").and_then(Value::as_str) != Some("pullRequest") || has(spec, "forge")
    }),
    (
        "!has(self.projections) || self.projections.all(p, p.to in ['commitStatus', 'deployment'] ? has(self.forge) : has(p.secretRef))",
        |spec| {
            let projections = spec.get("projections").and_then(Value::as_array);
            projections.into_iter().flatten().all(|projection| match projection.get("to").and_then(Value::as_str) {
                Some("commitStatus" | "deployment") => has(spec, "forge"),
                _ => has(projection, "secretRef"),
            })
        },
    ),
];

/// An explicit null is the same as an absent field: the API server drops it.
fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some_and(|value| !value.is_null())
}

fn differ(value: &Value, one: &str, other: &str) -> bool {
    !has(value, one) || value.get(one) != value.get(other)
}

fn size(value: Option<&Value>) -> Option<usize> {
    match value? {
        Value::String(text) => Some(text.chars().count()),
        Value::Array(items) => Some(items.len()),
        Value::Object(fields) => Some(fields.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{TWINS, holds};
    use crate::cli::crds;

    fn rules(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                let own = fields.get("x-kubernetes-validations").and_then(Value::as_array);
                found.extend(own.into_iter().flatten().map(|rule| rule["rule"].as_str().unwrap().to_owned()));
                fields.values().for_each(|value| rules(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| rules(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_rule_has_a_twin_and_every_twin_a_rule() {
        let mut found = Vec::new();
        for definition in crds::definitions().unwrap() {
            rules(&definition.object, &mut found);
        }
        assert!(found.len() > 30);
        for rule in &found {
            // The value is of no matter: text, so that a pattern can be looked at.
            assert!(holds(rule, &json!("")).is_some(), "{rule}: write its twin here");
        }
        for (twin, _) in TWINS {
            assert!(found.iter().any(|rule| rule == twin), "no definition has the rule {twin}");
        }
    }
}
