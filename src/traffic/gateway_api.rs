//! A Gateway API route, edited in place: only the weights of two backends, in every rule that holds both.
//!
//! HTTPRoute, GRPCRoute, TLSRoute and TCPRoute have the same `spec.rules[].backendRefs[]`, so one code serves all;
//! what a rule matches is of interest only when a declaration is compared with the live object.
//!
//! `spec.rules` is an atomic list, so server-side apply cannot own one weight in it; a JSON Patch with `test`
//! operations can change one and nothing else. Rules that do not hold both Services are never touched.

use serde_json::{Value, json};

use super::{RouteProblem, header_route};
use crate::{
    api::{HeaderRoute, weight},
    engine::{RouteState, RuleState},
};

/// What a rule has together when stable and canary are alone in it.
const WHOLE: i32 = 100;
const MAX_WEIGHT: i64 = 1_000_000;

/// Reads the weights of the two Services and whether the route's gateways accepted this very version.
/// Of the header routes that may be in it, the `known` ones can be told.
pub fn read(
    route: &Value,
    namespace: &str,
    stable: &str,
    canary: &str,
    known: &[HeaderRoute],
) -> Result<RouteState, RouteProblem> {
    let pairs = pairs(route, namespace, stable, canary)?;
    let held = header_route::held(route, &pairs, known)?;
    let rules = pairs.iter().map(Pair::state).collect();
    let refused = trouble(route, namespace);
    let accepted = refused.is_none();
    let trouble = refused.or_else(|| {
        let silent = pairs.iter().find(|pair| !pair.alone && pair.stable.weight + pair.canary.weight == 0)?;
        Some(format!(
            "{} gives both Services weight 0 beside other backends: taken as {WHOLE} together",
            label(route, silent.rule)
        ))
    });
    Ok(RouteState { rules, header_routes: held.whole, stray: held.stray, accepted, trouble })
}

/// The JSON Patch that gives the canary `percent` in every rule that holds both Services; `None` when the
/// route says so already. It tests the version and the name of each backend it touches, so that it changes
/// exactly what was read or nothing.
pub fn set_weight(
    route: &Value,
    namespace: &str,
    stable: &str,
    canary: &str,
    percent: i32,
) -> Result<Option<Value>, RouteProblem> {
    let mut writes = Vec::new();
    for pair in pairs(route, namespace, stable, canary)? {
        let (stable_weight, canary_weight) = weight::split(pair.base(), percent);
        // Both or neither: a reader of the patch sees a whole rule.
        if (pair.stable.weight, pair.canary.weight) == (stable_weight, canary_weight) {
            continue;
        }
        for (backend, wanted) in [(&pair.stable, stable_weight), (&pair.canary, canary_weight)] {
            let path = format!("/spec/rules/{}/backendRefs/{}", pair.rule, backend.index);
            writes.push(json!({"op": "test", "path": format!("{path}/name"), "value": backend.name}));
            let op = if backend.written { "replace" } else { "add" };
            writes.push(json!({"op": op, "path": format!("{path}/weight"), "value": wanted}));
        }
    }
    patch(route, writes)
}

/// The writes as a patch of this very version of the route; `None` when there are none.
pub(super) fn patch(route: &Value, mut writes: Vec<Value>) -> Result<Option<Value>, RouteProblem> {
    if writes.is_empty() {
        return Ok(None);
    }
    let version = route.pointer("/metadata/resourceVersion").and_then(Value::as_str);
    let version = version.ok_or_else(|| RouteProblem::NoVersion { route: title(route) })?;
    writes.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": version}));
    Ok(Some(Value::Array(writes)))
}

/// Puts the live weights into a declaration, so that applying what git says does not move traffic that a
/// rollout is moving. `pairs` are the (stable, canary) Services of the Rollouts that steer this route. A rule
/// is found again by its name, else by what it matches. Answers how many rules were changed.
pub fn carry_weights(live: &Value, desired: &mut Value, pairs: &[(String, String)]) -> usize {
    let namespace = |route: &Value| route.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
    let Some(namespace) = namespace(live).or_else(|| namespace(desired)) else { return 0 };
    let mut changed = 0;
    // Where rules of ours may stand: before the live rule, and before the declared one.
    let mut places = Vec::new();
    for (stable, canary) in pairs {
        let live_pairs = rule_pairs(live, &namespace, stable, canary);
        for wanted in rule_pairs(desired, &namespace, stable, canary) {
            let Some(known) = same_rule(live, &live_pairs, desired, wanted.rule) else { continue };
            places.push((known.rule, wanted.rule));
            let weights = if known.base() == wanted.base() {
                (known.stable.weight, known.canary.weight)
            } else {
                weight::split(wanted.base(), known.state().share())
            };
            if weights == (wanted.stable.weight, wanted.canary.weight) {
                continue;
            }
            for (index, value) in [(wanted.stable.index, weights.0), (wanted.canary.index, weights.1)] {
                let path = format!("/spec/rules/{}/backendRefs/{index}", wanted.rule);
                if let Some(Value::Object(backend)) = desired.pointer_mut(&path) {
                    backend.insert("weight".into(), value.into());
                }
            }
            changed += 1;
        }
    }
    changed += header_route::carry_rules(live, desired, &places);
    changed
}

/// One of the two Services in a rule.
pub(super) struct Backend {
    pub(super) index: usize,
    /// As written, which may be a full domain name.
    name: String,
    weight: i32,
    /// The weight is written out; an absent one means 1.
    written: bool,
}

/// A rule that holds both.
pub(super) struct Pair {
    pub(super) rule: usize,
    stable: Backend,
    pub(super) canary: Backend,
    alone: bool,
}

impl Pair {
    fn base(&self) -> i32 {
        match self.stable.weight.saturating_add(self.canary.weight) {
            together if self.alone || together == 0 => WHOLE,
            together => together,
        }
    }

    fn state(&self) -> RuleState {
        RuleState { base: self.base(), stable: self.stable.weight, canary: self.canary.weight }
    }
}

pub(super) fn pairs(route: &Value, namespace: &str, stable: &str, canary: &str) -> Result<Vec<Pair>, RouteProblem> {
    if stable == canary {
        return Err(RouteProblem::OneService { service: stable.into() });
    }
    let mut found = Vec::new();
    for (rule, backends) in rules(route).iter().map(backends).enumerate() {
        if let Some(pair) = pair(route, rule, backends, namespace, stable, canary)? {
            found.push(pair);
        }
    }
    if found.is_empty() {
        return Err(RouteProblem::NoPair {
            route: title(route),
            stable: stable.into(),
            canary: canary.into(),
            detail: near_miss(route, namespace, stable, canary),
        });
    }
    Ok(found)
}

/// The pairs of the rules that can be read, for the sync: a rule it cannot read is applied as git has it.
fn rule_pairs(route: &Value, namespace: &str, stable: &str, canary: &str) -> Vec<Pair> {
    let backends = rules(route).iter().map(backends).enumerate();
    backends.filter_map(|(rule, list)| pair(route, rule, list, namespace, stable, canary).ok().flatten()).collect()
}

fn pair(
    route: &Value,
    rule: usize,
    backends: &[Value],
    namespace: &str,
    stable: &str,
    canary: &str,
) -> Result<Option<Pair>, RouteProblem> {
    let holding = |service: &str| -> Vec<usize> {
        let indices = backends.iter().enumerate();
        indices.filter(|(_, backend)| names_service(backend, namespace, service)).map(|(index, _)| index).collect()
    };
    let (of_stable, of_canary) = (holding(stable), holding(canary));
    if of_stable.is_empty() || of_canary.is_empty() {
        return Ok(None);
    }
    let read = |service: &str, indices: &[usize]| -> Result<Backend, RouteProblem> {
        let [index] = indices else {
            return Err(RouteProblem::Twice {
                route: title(route),
                rule: label(route, rule),
                service: service.into(),
                times: indices.len(),
            });
        };
        let backend = &backends[*index];
        let written = backend.get("weight").filter(|weight| !weight.is_null());
        let weight = match written {
            None => Some(1),
            Some(weight) => weight.as_i64().filter(|weight| (0..=MAX_WEIGHT).contains(weight)),
        };
        let weight = weight.and_then(|weight| i32::try_from(weight).ok()).ok_or_else(|| RouteProblem::Weight {
            route: title(route),
            rule: label(route, rule),
            service: service.into(),
        })?;
        Ok(Backend { index: *index, name: text(backend, "name").into(), weight, written: written.is_some() })
    };
    Ok(Some(Pair {
        rule,
        stable: read(stable, &of_stable)?,
        canary: read(canary, &of_canary)?,
        alone: backends.len() == 2,
    }))
}

/// Whether a backend is this Service of this namespace, by its name or by its full domain name.
fn names_service(backend: &Value, namespace: &str, service: &str) -> bool {
    is_service(backend) && in_namespace(backend, namespace) && short_name(text(backend, "name"), namespace) == service
}

fn is_service(backend: &Value) -> bool {
    matches!(text(backend, "group"), "" | "core") && matches!(text(backend, "kind"), "" | "Service")
}

fn in_namespace(backend: &Value, namespace: &str) -> bool {
    matches!(text(backend, "namespace"), there if there.is_empty() || there == namespace)
}

/// `web` for `web.shop.svc` and `web.shop.svc.cluster.local`; anything else as it is. A Service's own name
/// has no dots, so nothing can be mistaken here.
fn short_name<'a>(name: &'a str, namespace: &str) -> &'a str {
    let Some((service, domain)) = name.split_once('.') else { return name };
    let rest = domain.strip_prefix(namespace).and_then(|rest| rest.strip_prefix(".svc"));
    if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) { service } else { name }
}

/// Why no rule holds both: what is near, else what is missing.
fn near_miss(route: &Value, namespace: &str, stable: &str, canary: &str) -> String {
    let rules = rules(route);
    if rules.is_empty() {
        return "it has no rules".into();
    }
    let mut found = Vec::new();
    for (index, backends) in rules.iter().map(backends).enumerate() {
        let at = label(route, index);
        let has = |service: &str| backends.iter().any(|backend| names_service(backend, namespace, service));
        for (service, other) in [(stable, canary), (canary, stable)] {
            if has(service) {
                continue;
            }
            let missing = backends.iter().filter(|backend| !names_service(backend, namespace, other));
            let near = missing.filter_map(|backend| miss(backend, namespace, service)).min();
            if let Some((distance, why)) = near {
                found.push((distance, format!("{at} {why}")));
            } else if has(other) {
                found.push((100, format!("{at} names \"{other}\" but not \"{service}\"")));
            }
        }
    }
    found.sort_by_key(|(distance, _)| *distance);
    found.truncate(3);
    if found.is_empty() {
        return format!("none of its {} rules names either", rules.len());
    }
    found.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; ")
}

/// How a backend almost is this Service, and how far off.
fn miss(backend: &Value, namespace: &str, service: &str) -> Option<(usize, String)> {
    let name = text(backend, "name");
    if short_name(name, namespace) == service {
        if !in_namespace(backend, namespace) {
            let there = text(backend, "namespace");
            let why = format!("names \"{service}\" in namespace \"{there}\", not in \"{namespace}\"");
            return Some((0, why));
        }
        let (group, kind) = (text(backend, "group"), text(backend, "kind"));
        return Some((0, format!("names \"{service}\" as {kind} of group \"{group}\", not as a Service")));
    }
    let distance = edit_distance(name, service);
    let near = distance <= 2 && distance < service.chars().count();
    near.then(|| (distance, format!("names \"{name}\", which looks like \"{service}\"")))
}

/// The edit distance, where swapping two neighbours is one edit.
fn edit_distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().take(64).collect(), right.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

/// Why the route is not in force as it is written; `None` when every parent accepted this version.
fn trouble(route: &Value, namespace: &str) -> Option<String> {
    let generation = route.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
    let parents = list(route, "/spec/parentRefs");
    if parents.is_empty() {
        return Some("the route has no parentRefs: no gateway serves it".into());
    }
    let reports = list(route, "/status/parents");
    parents.iter().find_map(|parent| {
        let wanted = ParentKey::of(parent, namespace);
        let mut about = reports
            .iter()
            .filter(|report| ParentKey::of(report.get("parentRef").unwrap_or(&Value::Null), namespace) == wanted)
            .peekable();
        if about.peek().is_none() {
            return Some(format!("{wanted} has not said yet whether it accepts the route"));
        }
        about.find_map(|report| refusal(report, generation).map(|why| format!("{wanted} {why}")))
    })
}

/// What one parent's report lacks.
fn refusal(report: &Value, generation: i64) -> Option<String> {
    let conditions = list(report, "/conditions");
    let find = |type_: &str| conditions.iter().find(|condition| text(condition, "type") == type_);
    let current = |condition: &Value| {
        condition.get("observedGeneration").and_then(Value::as_i64).unwrap_or_default() >= generation
    };
    let because = |condition: &Value| {
        let (reason, message) = (text(condition, "reason"), text(condition, "message"));
        let message: String = message.chars().take(300).collect();
        if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
    };
    for type_ in ["Accepted", "ResolvedRefs"] {
        let Some(condition) = find(type_) else { return Some(format!("does not report {type_} yet")) };
        if !current(condition) {
            return Some(format!("has not looked at generation {generation} yet ({type_})"));
        }
        if text(condition, "status") != "True" {
            return Some(format!("says {type_}={} ({})", text(condition, "status"), because(condition)));
        }
    }
    // Some rules were dropped or still are the last good ones: which, nobody says, so none counts.
    let partial = find("PartiallyInvalid").filter(|condition| text(condition, "status") == "True");
    partial
        .filter(|condition| current(condition))
        .map(|condition| format!("serves only a part of the route ({})", because(condition)))
}

/// What makes a parentRef the same as another, with the API's defaults.
#[derive(PartialEq, Eq)]
struct ParentKey<'a> {
    group: &'a str,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    section: &'a str,
    port: Option<i64>,
}

impl<'a> ParentKey<'a> {
    fn of(parent: &'a Value, namespace: &'a str) -> Self {
        // A group that is written as "" is the core group (a Service of a mesh); only an absent one is the default.
        let or = |key: &str, default: &'a str| parent.get(key).and_then(Value::as_str).unwrap_or(default);
        Self {
            group: or("group", "gateway.networking.k8s.io"),
            kind: or("kind", "Gateway"),
            namespace: or("namespace", namespace),
            name: or("name", ""),
            section: or("sectionName", ""),
            port: parent.get("port").and_then(Value::as_i64),
        }
    }
}

impl std::fmt::Display for ParentKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        if !self.section.is_empty() {
            write!(f, " ({})", self.section)?;
        }
        self.port.map_or(Ok(()), |port| write!(f, " (port {port})"))
    }
}

/// The live pair of the rule that is `index` in `desired`.
fn same_rule<'a>(live: &Value, pairs: &'a [Pair], desired: &Value, index: usize) -> Option<&'a Pair> {
    let wanted = rules(desired).get(index)?;
    let rule = |pair: &Pair| rules(live).get(pair.rule);
    let rule_name = text(wanted, "name");
    if !rule_name.is_empty()
        && let Some(pair) = pairs.iter().find(|pair| rule(pair).is_some_and(|rule| text(rule, "name") == rule_name))
    {
        return Some(pair);
    }
    let wanted = normal_matches(wanted);
    let mut equal = pairs.iter().filter(|pair| rule(pair).is_some_and(|rule| normal_matches(rule) == wanted));
    let first = equal.next()?;
    let rest: Vec<&Pair> = equal.collect();
    if rest.is_empty() {
        return Some(first);
    }
    // Several rules match the same: only the place tells them apart.
    std::iter::once(first).chain(rest).find(|pair| pair.rule == index)
}

/// `matches` as the API server stores it, so that a declaration and a live object compare.
fn normal_matches(rule: &Value) -> Value {
    let prefix = || json!({"type": "PathPrefix", "value": "/"});
    let mut matches = list(rule, "/matches").to_vec();
    if matches.is_empty() {
        matches.push(json!({}));
    }
    for one in &mut matches {
        let Some(one) = one.as_object_mut() else { continue };
        let path = one.entry("path").or_insert_with(prefix);
        if let Some(path) = path.as_object_mut() {
            path.entry("type").or_insert_with(|| "PathPrefix".into());
            path.entry("value").or_insert_with(|| "/".into());
        }
        // A GRPCRoute matches a method by service and name, an HTTPRoute by a word.
        if let Some(method) = one.get_mut("method").and_then(Value::as_object_mut) {
            method.entry("type").or_insert_with(|| "Exact".into());
        }
        for key in ["headers", "queryParams"] {
            for item in one.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(item) = item.as_object_mut() {
                    item.entry("type").or_insert_with(|| "Exact".into());
                }
            }
        }
    }
    Value::Array(matches)
}

pub(super) fn rules(route: &Value) -> &[Value] {
    list(route, "/spec/rules")
}

fn backends(rule: &Value) -> &[Value] {
    list(rule, "/backendRefs")
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What messages call the route.
pub(super) fn title(route: &Value) -> String {
    let name = route.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    format!("{} \"{name}\"", text(route, "kind"))
}

/// A rule as people count, with its name if it has one.
pub(super) fn label(route: &Value, index: usize) -> String {
    match rules(route).get(index).map(|rule| text(rule, "name")) {
        Some(name) if !name.is_empty() => format!("rule {} ({name})", index + 1),
        _ => format!("rule {}", index + 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{carry_weights, read, set_weight};
    use crate::engine::RuleState;

    /// A route as a gateway would leave it: two backends, accepted at its generation.
    fn route(rules: Value) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "71", "generation": 3,
                         "annotations": {"a/b": "~1"}},
            "spec": {
                "parentRefs": [{"name": "edge", "namespace": "infra", "sectionName": "http"}],
                "hostnames": ["shop.example.test"],
                "rules": rules,
                "somethingNewer": {"keep": [1, 2.5, null]}
            },
            "status": {"parents": [{
                "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge",
                              "namespace": "infra", "sectionName": "http"},
                "controllerName": "example.test/gateway",
                "conditions": [
                    {"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 3},
                    {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "message": "", "observedGeneration": 3}
                ]
            }]}
        })
    }

    fn two(stable: i64, canary: i64) -> Value {
        json!({"backendRefs": [
            {"name": "web-stable", "port": 80, "weight": stable},
            {"name": "web-canary", "port": 80, "weight": canary}
        ]})
    }

    /// Applies the three operations that are used; panics where an API server would refuse.
    fn apply(route: &Value, patch: &Value) -> Value {
        let mut out = route.clone();
        for op in patch.as_array().unwrap() {
            let (path, value) = (op["path"].as_str().unwrap(), op["value"].clone());
            match op["op"].as_str().unwrap() {
                "test" => assert_eq!(out.pointer(path), Some(&value), "{path}"),
                "replace" => *out.pointer_mut(path).unwrap() = value,
                "add" => {
                    let (parent, key) = path.rsplit_once('/').unwrap();
                    let parent = out.pointer_mut(parent).unwrap().as_object_mut().unwrap();
                    assert!(parent.insert(key.to_owned(), value).is_none_or(|old| old.is_null()));
                }
                other => panic!("operation {other}"),
            }
        }
        out
    }

    #[test]
    fn writes_two_numbers_and_tests_what_it_read() {
        let route = route(json!([two(100, 0)]));
        let patch = set_weight(&route, "shop", "web-stable", "web-canary", 20).unwrap().unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "71"},
                {"op": "test", "path": "/spec/rules/0/backendRefs/0/name", "value": "web-stable"},
                {"op": "replace", "path": "/spec/rules/0/backendRefs/0/weight", "value": 80},
                {"op": "test", "path": "/spec/rules/0/backendRefs/1/name", "value": "web-canary"},
                {"op": "replace", "path": "/spec/rules/0/backendRefs/1/weight", "value": 20}
            ])
        );
        let state = read(&apply(&route, &patch), "shop", "web-stable", "web-canary", &[]).unwrap();
        assert_eq!(state.rules, [RuleState { base: 100, stable: 80, canary: 20 }]);
        assert!(state.accepted);
        assert_eq!(state.trouble, None);
    }

    #[test]
    fn every_kind_of_route_is_steered_by_its_backends() {
        let grpc = json!({"matches": [{"method": {"service": "shop.Cart"}}], "filters": [{"type": "RequestMirror"}]});
        for (kind, mut rule) in [
            ("HTTPRoute", json!({"matches": [{"path": {"value": "/"}}]})),
            ("GRPCRoute", grpc),
            ("TLSRoute", json!({"name": "passthrough"})),
            ("TCPRoute", json!({})),
        ] {
            rule["backendRefs"] = two(100, 0)["backendRefs"].clone();
            let mut route = route(json!([rule]));
            route["kind"] = kind.into();
            let patch = set_weight(&route, "shop", "web-stable", "web-canary", 20).unwrap().unwrap();
            let after = apply(&route, &patch);
            let state = read(&after, "shop", "web-stable", "web-canary", &[]).unwrap();
            assert_eq!(state.rules, [RuleState { base: 100, stable: 80, canary: 20 }], "{kind}");
            rule["backendRefs"] = two(80, 20)["backendRefs"].clone();
            assert_eq!(after["spec"]["rules"], json!([rule]), "{kind}: nothing but the weights");

            let message = read(&route, "shop", "web-stable", "cart", &[]).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{kind} \"web\" has no rule with both")), "{message}");
            route["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            let message = set_weight(&route, "shop", "web-stable", "web-canary", 20).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{kind} \"web\" has no metadata.resourceVersion")), "{message}");
        }
    }

    #[test]
    fn adds_absent_weights_and_leaves_other_backends_their_share() {
        let rules = json!([
            {"backendRefs": [{"name": "web-stable", "port": 80}, {"name": "web-canary", "port": 80}]},
            {"backendRefs": [
                {"name": "legacy", "port": 80, "weight": 10},
                {"name": "web-canary.shop.svc.cluster.local", "port": 80, "weight": 0},
                {"group": "", "kind": "Service", "namespace": "shop", "name": "web-stable", "port": 80, "weight": 90}
            ]},
            {"backendRefs": [{"name": "web-canary", "port": 80, "weight": 7}]},
            {"backendRefs": [{"name": "web-stable", "port": 80}, {"name": "web-canary", "namespace": "b", "port": 80}]}
        ]);
        let route = route(rules);
        let state = read(&route, "shop", "web-stable", "web-canary", &[]).unwrap();
        assert_eq!(
            state.rules,
            [RuleState { base: 100, stable: 1, canary: 1 }, RuleState { base: 90, stable: 90, canary: 0 }]
        );
        let patch = set_weight(&route, "shop", "web-stable", "web-canary", 50).unwrap().unwrap();
        let after = apply(&route, &patch);
        let weight = |path: &str| after.pointer(path).and_then(Value::as_i64);
        assert_eq!(weight("/spec/rules/0/backendRefs/0/weight"), Some(50));
        assert_eq!(weight("/spec/rules/1/backendRefs/0/weight"), Some(10));
        assert_eq!(weight("/spec/rules/1/backendRefs/1/weight"), Some(45));
        assert_eq!(weight("/spec/rules/1/backendRefs/2/weight"), Some(45));
        assert_eq!(after["spec"]["rules"][2], route["spec"]["rules"][2]);
        assert_eq!(after["spec"]["rules"][3], route["spec"]["rules"][3]);
    }

    #[test]
    fn a_route_that_nobody_matches_names_the_near_miss() {
        let backend = |name: &str| json!({"name": name, "port": 80});
        let cases = [
            (json!([{"backendRefs": [backend("web-stable"), backend("web-canray")]}]), "rule 1 names \"web-canray\""),
            (
                json!([{"name": "main", "backendRefs": [backend("web-stable")]}]),
                "rule 1 (main) names \"web-stable\" but not \"web-canary\"",
            ),
            (
                json!([{"backendRefs": [backend("web-stable"), {"name": "web-canary", "namespace": "b", "port": 80}]}]),
                "in namespace \"b\"",
            ),
            (
                json!([{"backendRefs": [backend("web-stable"), {"name": "web-canary", "kind": "Bucket", "group": "x.test"}]}]),
                "as Bucket of group \"x.test\"",
            ),
            (
                json!([{"backendRefs": [backend("web-stable"), backend("web-canary.b.svc.cluster.local")]}]),
                "rule 1 names \"web-stable\" but not \"web-canary\"",
            ),
            (json!([{"backendRefs": [backend("other")]}]), "none of its 1 rules names either"),
            (json!([]), "it has no rules"),
        ];
        for (rules, expected) in cases {
            let route = route(rules);
            let message = read(&route, "shop", "web-stable", "web-canary", &[]).unwrap_err().to_string();
            assert!(message.starts_with("HTTPRoute \"web\" has no rule with both"), "{message}");
            assert!(message.contains(expected), "{message} should contain {expected}");
            assert!(set_weight(&route, "shop", "web-stable", "web-canary", 20).is_err());
        }
    }

    #[test]
    fn refuses_what_it_cannot_tell_apart() {
        let twice = json!([{"backendRefs": [
            {"name": "web-stable", "port": 80}, {"name": "web-canary", "port": 80}, {"name": "web-canary", "port": 81}
        ]}]);
        let message = read(&route(twice), "shop", "web-stable", "web-canary", &[]).unwrap_err().to_string();
        assert!(message.contains("rule 1 names \"web-canary\" 2 times"), "{message}");
        let weight = json!([{"backendRefs": [{"name": "web-stable", "weight": "80"}, {"name": "web-canary"}]}]);
        let message = read(&route(weight), "shop", "web-stable", "web-canary", &[]).unwrap_err().to_string();
        assert!(message.contains("gives \"web-stable\" a weight"), "{message}");
        assert!(read(&route(json!([two(1, 1)])), "shop", "web-stable", "web-stable", &[]).is_err());
        let mut unread = route(json!([two(100, 0)]));
        unread["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        assert!(set_weight(&unread, "shop", "web-stable", "web-canary", 20).is_err(), "no write without precondition");
    }

    #[test]
    fn two_zeros_beside_others_are_said_and_still_sum_above_zero() {
        let rules = json!([{"backendRefs": [
            {"name": "web-stable", "weight": 0}, {"name": "web-canary", "weight": 0}, {"name": "other", "weight": 5}
        ]}]);
        let state = read(&route(rules), "shop", "web-stable", "web-canary", &[]).unwrap();
        assert_eq!(state.rules, [RuleState { base: 100, stable: 0, canary: 0 }]);
        assert!(state.accepted);
        assert!(state.trouble.unwrap().starts_with("rule 1 gives both Services weight 0"));
    }

    #[test]
    fn accepted_means_by_every_parent_at_this_generation() {
        let good = route(json!([two(80, 20)]));
        let trouble = |change: &dyn Fn(&mut Value)| {
            let mut route = good.clone();
            change(&mut route);
            let state = read(&route, "shop", "web-stable", "web-canary", &[]).unwrap();
            assert!(!state.accepted);
            state.trouble.unwrap()
        };
        let none = trouble(&|route| drop(route.as_object_mut().unwrap().remove("status")));
        assert_eq!(none, "Gateway infra/edge (http) has not said yet whether it accepts the route");
        let second = trouble(&|route| {
            route["spec"]["parentRefs"].as_array_mut().unwrap().push(json!({"name": "inner"}));
        });
        assert!(second.starts_with("Gateway shop/inner has not said yet"), "{second}");
        let stale = trouble(&|route| route["metadata"]["generation"] = 4.into());
        assert!(stale.contains("has not looked at generation 4 yet (Accepted)"), "{stale}");
        let refused = trouble(&|route| {
            let condition = &mut route["status"]["parents"][0]["conditions"][1];
            condition["status"] = "False".into();
            condition["reason"] = "BackendNotFound".into();
            condition["message"] = "Service web-canary not found".into();
        });
        assert!(
            refused.ends_with("says ResolvedRefs=False (BackendNotFound: Service web-canary not found)"),
            "{refused}"
        );
        let partial = trouble(&|route| {
            let conditions = route["status"]["parents"][0]["conditions"].as_array_mut().unwrap();
            conditions.push(json!({"type": "PartiallyInvalid", "status": "True", "reason": "UnsupportedValue", "observedGeneration": 3}));
        });
        assert!(partial.contains("serves only a part"), "{partial}");
        let silent = trouble(&|route| {
            route["status"]["parents"][0]["conditions"].as_array_mut().unwrap().pop();
        });
        assert!(silent.contains("does not report ResolvedRefs yet"), "{silent}");
        let orphan = trouble(&|route| route["spec"]["parentRefs"] = json!([]));
        assert!(orphan.contains("no gateway serves it"), "{orphan}");
    }

    #[test]
    fn carrying_keeps_live_weights_in_what_git_declares() {
        let pairs = [("web-stable".to_owned(), "web-canary".to_owned())];
        // Git has no matches and no weights; the API server wrote both out, and a rule was inserted above.
        let live = route(json!([
            {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
             "backendRefs": two(80, 20)["backendRefs"]}
        ]));
        let mut desired = route(json!([
            {"matches": [{"path": {"type": "Exact", "value": "/new"}}], "backendRefs": two(100, 0)["backendRefs"]},
            {"backendRefs": [{"name": "web-stable", "port": 80}, {"name": "web-canary", "port": 80, "weight": 0}]}
        ]));
        let before = desired.clone();
        assert_eq!(carry_weights(&live, &mut desired, &pairs), 1);
        assert_eq!(desired["spec"]["rules"][0], before["spec"]["rules"][0], "a new rule starts as git says");
        assert_eq!(desired["spec"]["rules"][1]["backendRefs"][0]["weight"], 80);
        assert_eq!(desired["spec"]["rules"][1]["backendRefs"][1]["weight"], 20);
        assert_eq!(carry_weights(&live, &mut desired, &pairs), 0, "nothing more to do");

        // The API server writes out that a method of gRPC is matched exactly.
        let grpc = |method: Value, weights: Value| {
            let mut rule = weights;
            rule["matches"] = json!([{"method": method}]);
            let mut route = route(json!([two(1, 1), rule]));
            route["kind"] = "GRPCRoute".into();
            route
        };
        let live = grpc(json!({"type": "Exact", "service": "shop.Cart"}), two(80, 20));
        let mut desired = grpc(json!({"service": "shop.Cart"}), two(100, 0));
        assert_eq!(carry_weights(&live, &mut desired, &pairs), 1);
        assert_eq!(desired["spec"]["rules"][1]["backendRefs"][1]["weight"], 20);

        // By name, though what it matches changed.
        let mut named = two(80, 20);
        named["name"] = "main".into();
        let live = route(json!([named]));
        let mut desired = route(json!([{"name": "main", "matches": [{"path": {"value": "/v2"}}],
                                        "backendRefs": two(100, 0)["backendRefs"]}]));
        assert_eq!(carry_weights(&live, &mut desired, &pairs), 1);
        assert_eq!(desired["spec"]["rules"][0]["backendRefs"][1]["weight"], 20);

        // Git gives the two another share beside a third: the split is kept, the share is git's.
        let mut desired = route(json!([{"name": "main", "backendRefs": [
            {"name": "web-stable", "weight": 50}, {"name": "web-canary", "weight": 0}, {"name": "old", "weight": 50}
        ]}]));
        assert_eq!(carry_weights(&live, &mut desired, &pairs), 1);
        assert_eq!(desired["spec"]["rules"][0]["backendRefs"][0]["weight"], 40);
        assert_eq!(desired["spec"]["rules"][0]["backendRefs"][1]["weight"], 10);
        assert_eq!(desired["spec"]["rules"][0]["backendRefs"][2]["weight"], 50);

        // Another Rollout's Services, or none: git's word.
        let mut desired = route(json!([two(100, 0)]));
        assert_eq!(carry_weights(&live, &mut desired, &[("a".into(), "b".into())]), 0);
    }

    fn any_backend() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            4 => Just("web-stable"), 4 => Just("web-canary"), 1 => Just("other"),
            1 => Just("web-canary.shop.svc"), 1 => Just("web-canary.b.svc.cluster.local")
        ];
        let weight = prop_oneof![Just(None), (0i64..=1000).prop_map(Some)];
        let namespace = prop_oneof![4 => Just(None), 1 => Just(Some("shop")), 1 => Just(Some("b"))];
        (name, weight, namespace, any::<bool>()).prop_map(|(name, weight, namespace, filters)| {
            let mut backend = json!({"name": name, "port": 80});
            if let Some(weight) = weight {
                backend["weight"] = weight.into();
            }
            if let Some(namespace) = namespace {
                backend["namespace"] = namespace.into();
            }
            if filters {
                backend["filters"] = json!([{"type": "RequestMirror", "weight": 3}]);
            }
            backend
        })
    }

    /// Takes out the weights of the two Services where one rule has both, and returns the rest.
    fn without_weights(route: &Value) -> (Value, Vec<i64>) {
        let mut rest = route.clone();
        let mut sums = Vec::new();
        for rule in rest["spec"]["rules"].as_array_mut().unwrap() {
            let backends = rule["backendRefs"].as_array_mut().unwrap();
            let ours = |backend: &Value, names: &[&str]| {
                names.contains(&backend["name"].as_str().unwrap()) && backend["namespace"] != "b"
            };
            let stable = backends.iter().any(|backend| ours(backend, &["web-stable"]));
            let canary = backends.iter().any(|backend| ours(backend, &["web-canary", "web-canary.shop.svc"]));
            if !(stable && canary) {
                continue;
            }
            sums.push(backends.iter().map(|backend| backend["weight"].as_i64().unwrap_or(1)).sum());
            for backend in backends.iter_mut() {
                if ours(backend, &["web-stable", "web-canary", "web-canary.shop.svc"]) {
                    backend.as_object_mut().unwrap().remove("weight");
                }
            }
        }
        (rest, sums)
    }

    proptest! {
        #[test]
        fn a_write_changes_two_weights_a_rule_and_nothing_else(
            rules in prop::collection::vec(prop::collection::vec(any_backend(), 1..4), 1..5),
            percent in 0i32..=100,
        ) {
            let rules: Vec<Value> = rules.into_iter().map(|backends| json!({"backendRefs": backends})).collect();
            let route = route(Value::Array(rules));
            let Ok(patch) = set_weight(&route, "shop", "web-stable", "web-canary", percent) else { return Ok(()) };
            let after = patch.map_or_else(|| route.clone(), |patch| apply(&route, &patch));
            let (rest_before, _) = without_weights(&route);
            let (rest_after, sums) = without_weights(&after);
            prop_assert_eq!(rest_before, rest_after, "a foreign field changed");
            prop_assert!(sums.iter().all(|sum| *sum > 0), "a rule sums to 0: {:?}", sums);
            let state = read(&after, "shop", "web-stable", "web-canary", &[]).unwrap();
            prop_assert!(state.rules.iter().all(|rule| rule.holds(percent)));
            let again = set_weight(&after, "shop", "web-stable", "web-canary", percent).unwrap();
            prop_assert_eq!(again, None, "a second write of the same");
        }
    }
}
