//! Rules of our own in an HTTPRoute or a GRPCRoute: requests with certain headers go to the canary, whatever its
//! weight.
//!
//! Each is a copy of a steered rule, right before it, that asks for the headers too and has the canary as its one
//! backend. Its name says that it is ours, and which header route it belongs to; whatever else is in the route is
//! somebody else's and stays to the byte.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::RouteProblem;
use super::gateway_api::{Pair, label, pairs, patch, rules, text, title};
use crate::api::{HeaderMatch, HeaderRoute};

/// How the names of our rules begin.
const OURS: &str = "sluice-";

/// The header routes that a route holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Those it holds as they should be, by [`HeaderRoute::id`].
    pub whole: BTreeSet<String>,
    /// It has a rule of ours beside these: of an unknown header route, or not as it should be.
    pub stray: bool,
}

/// Whether a rule is ours: `sluice-<name>-<digest>-<number>`, as nobody calls a rule of theirs by chance.
fn is_ours(rule: &Value) -> bool {
    let parts = || {
        let (rest, number) = text(rule, "name").strip_prefix(OURS)?.rsplit_once('-')?;
        let (_, digest) = rest.rsplit_once('-')?;
        Some((digest, number))
    };
    let hex = |digest: &str| digest.len() == 8 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    parts().is_some_and(|(digest, number)| hex(digest) && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Which of the `known` header routes a route holds.
pub(super) fn held(route: &Value, pairs: &[Pair], known: &[HeaderRoute]) -> Result<Held, RouteProblem> {
    let mut whole = BTreeSet::new();
    let mut accounted = 0;
    for header_route in known.iter().filter(|known| !known.matches.is_empty()) {
        let expected = copies(route, pairs, header_route)?;
        if !whole.contains(&header_route.id()) && expected.iter().all(|copy| is_there(route, copy)) {
            accounted += expected.len();
            whole.insert(header_route.id());
        }
    }
    let ours = rules(route).iter().filter(|rule| is_ours(rule)).count();
    Ok(Held { whole, stray: ours > accounted })
}

/// The JSON Patch after which a route holds exactly the `wanted` header routes; `None` when it does already. It tests
/// the version of the route and the identity of each rule it moves, so that it changes what was read or nothing.
///
/// # Errors
/// When the route does not steer the two Services, or its own matches cannot be told apart from the headers.
pub fn set_header_routes(
    route: &Value,
    namespace: &str,
    stable: &str,
    canary: &str,
    wanted: &[HeaderRoute],
) -> Result<Option<Value>, RouteProblem> {
    let mut after = route.clone();
    let mut writes = Vec::new();
    let wanted_rules = |route: &Value| -> Result<Vec<(usize, Vec<Copy>)>, RouteProblem> {
        let pairs = pairs(route, namespace, stable, canary)?;
        let mut places: Vec<(usize, Vec<Copy>)> = pairs.iter().map(|pair| (pair.rule, Vec::new())).collect();
        for header_route in wanted.iter().filter(|wanted| !wanted.matches.is_empty()) {
            for ((_, copies), copy) in places.iter_mut().zip(copies(route, &pairs, header_route)?) {
                copies.push(copy);
            }
        }
        Ok(places)
    };
    // From the end, so that a change moves no place that is still to be visited.
    let kept = wanted_rules(route)?;
    for index in (0..rules(route).len()).rev() {
        let Some(rule) = rules(route).get(index).filter(|rule| is_ours(rule)) else { continue };
        if kept.iter().flat_map(|(_, copies)| copies).any(|copy| copy.0 == *rule) {
            continue;
        }
        let path = format!("/spec/rules/{index}");
        writes.push(json!({"op": "test", "path": format!("{path}/name"), "value": text(rule, "name")}));
        writes.push(json!({"op": "remove", "path": path}));
        if let Some(Value::Array(rules)) = after.pointer_mut("/spec/rules") {
            rules.remove(index);
        }
    }
    for (index, copies) in wanted_rules(&after)?.into_iter().rev() {
        let missing: Vec<Copy> = copies.into_iter().filter(|copy| !is_there(&after, copy)).collect();
        if missing.is_empty() {
            continue;
        }
        let path = format!("/spec/rules/{index}");
        let source = rules(&after).get(index).and_then(|rule| rule.get("backendRefs"));
        writes.push(json!({"op": "test", "path": format!("{path}/backendRefs"), "value": source}));
        // Each pushes the one before it back, so that the first wanted comes first.
        writes.extend(missing.into_iter().rev().map(|copy| json!({"op": "add", "path": path, "value": copy.0})));
    }
    patch(route, writes)
}

/// Puts our rules of the live route into a declaration, each before the rule it copies, so that applying what git
/// says does not end a header route. Answers how many were put in.
pub(super) fn carry_rules(live: &Value, desired: &mut Value, places: &[(usize, usize)]) -> usize {
    let mut carried = 0;
    let mut places = places.to_vec();
    places.sort_unstable_by_key(|(_, index)| *index);
    for (live_index, index) in places.into_iter().rev() {
        let Some(source) = rules(desired).get(index).cloned() else { continue };
        let before = rules(live).get(..live_index).unwrap_or_default();
        let ours: Vec<Value> =
            before.iter().rev().take_while(|rule| is_ours(rule)).map(|rule| again(rule, &source)).collect();
        let Some(Value::Array(rules)) = desired.pointer_mut("/spec/rules") else { continue };
        carried += ours.len();
        for rule in ours {
            rules.insert(index, rule);
        }
    }
    carried
}

/// Our rule as it is to be when what it copies has become `source`.
fn again(ours: &Value, source: &Value) -> Value {
    let mut rule = source.clone();
    if let Value::Object(fields) = &mut rule {
        for field in ["name", "matches", "backendRefs"] {
            fields.insert(field.to_owned(), ours.get(field).cloned().unwrap_or_default());
        }
    }
    rule
}

/// One of our rules, whole.
struct Copy(Value);

fn is_there(route: &Value, copy: &Copy) -> bool {
    rules(route).contains(&copy.0)
}

/// The rules of a header route, one for each steered rule in its order.
fn copies(route: &Value, pairs: &[Pair], header_route: &HeaderRoute) -> Result<Vec<Copy>, RouteProblem> {
    let id = header_route.id();
    let numbered = pairs.iter().enumerate();
    let copies = numbered.map(|(number, pair)| {
        let mut rule = rules(route).get(pair.rule).and_then(Value::as_object).cloned().unwrap_or_default();
        let mut canary = backends_of(&rule).get(pair.canary.index).cloned().unwrap_or_default();
        if let Some(canary) = canary.as_object_mut() {
            canary.insert("weight".to_owned(), 1.into());
        }
        let matches = matches(route, pair.rule, &rule, &header_route.matches)?;
        rule.insert("name".to_owned(), format!("{OURS}{id}-{}", number + 1).into());
        rule.insert("matches".to_owned(), matches);
        rule.insert("backendRefs".to_owned(), json!([canary]));
        Ok(Copy(Value::Object(rule)))
    });
    copies.collect()
}

fn backends_of(rule: &Map<String, Value>) -> &[Value] {
    rule.get("backendRefs").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What a rule matches, and the headers too.
fn matches(
    route: &Value,
    index: usize,
    rule: &Map<String, Value>,
    headers: &[HeaderMatch],
) -> Result<Value, RouteProblem> {
    let mut matches = rule.get("matches").and_then(Value::as_array).cloned().unwrap_or_default();
    if matches.is_empty() {
        matches.push(json!({}));
    }
    for one in &mut matches {
        let Some(one) = one.as_object_mut() else { continue };
        let own = one.entry("headers").or_insert_with(|| json!([]));
        let Some(own) = own.as_array_mut() else { continue };
        for header in headers {
            // Of two entries about one header the gateway looks at the first only.
            if own.iter().any(|own| text(own, "name").eq_ignore_ascii_case(&header.header_name)) {
                return Err(RouteProblem::Header {
                    route: title(route),
                    rule: label(route, index),
                    header: header.header_name.clone(),
                });
            }
            let (type_, value) = match header.header_value.parts() {
                ("exact", text) => ("Exact", text.to_owned()),
                ("prefix", text) => ("RegularExpression", format!("^{}.*", regex::escape(text))),
                (_, text) => ("RegularExpression", text.to_owned()),
            };
            own.push(json!({"type": type_, "name": header.header_name, "value": value}));
        }
    }
    Ok(Value::Array(matches))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{is_ours, set_header_routes};
    use crate::api::{HeaderRoute, RouteKind};
    use crate::traffic::gateway_api::{carry_weights, read, set_weight};

    const VIP: &str = r#"{"name": "vip", "match": [{"headerName": "X-Vip", "headerValue": {"exact": "1"}}]}"#;

    fn header_route(text: &str) -> HeaderRoute {
        serde_json::from_str(text).unwrap()
    }

    fn beta() -> HeaderRoute {
        header_route(
            r#"{"name": "beta", "match": [
                {"headerName": "Cookie", "headerValue": {"regex": ".*beta=1.*"}},
                {"headerName": "X-Team", "headerValue": {"prefix": "a.b"}}]}"#,
        )
    }

    fn rule(path: &str) -> Value {
        json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}], "timeouts": {"request": "5s"},
            "backendRefs": [
                {"group": "", "kind": "Service", "name": "web-stable", "port": 80, "weight": 100},
                {"group": "", "kind": "Service", "name": "web-canary", "port": 80, "weight": 0}]})
    }

    fn foreign() -> Value {
        json!({"name": "sluice-gate", "matches": [{"path": {"type": "Exact", "value": "/old"}}],
            "backendRefs": [{"name": "old", "port": 80}]})
    }

    fn route(kind: RouteKind, rules: &[Value]) -> Value {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind.name(),
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "71", "generation": 3},
            "spec": {"parentRefs": [{"name": "edge"}], "rules": rules}})
    }

    fn set(route: &Value, wanted: &[HeaderRoute]) -> Option<Value> {
        set_header_routes(route, "shop", "web-stable", "web-canary", wanted).unwrap()
    }

    /// As an API server would do it; refuses what one would refuse.
    fn apply(route: &Value, patch: &Value) -> Value {
        let mut out = route.clone();
        for op in patch.as_array().unwrap() {
            let path = op["path"].as_str().unwrap();
            let (parent, key) = path.rsplit_once('/').unwrap();
            match op["op"].as_str().unwrap() {
                "test" => assert_eq!(out.pointer(path), Some(&op["value"]), "{path}"),
                "remove" => {
                    out.pointer_mut(parent).unwrap().as_array_mut().unwrap().remove(key.parse().unwrap());
                }
                "add" => {
                    let list = out.pointer_mut(parent).unwrap().as_array_mut().unwrap();
                    list.insert(key.parse().unwrap(), op["value"].clone());
                }
                other => panic!("operation {other}"),
            }
        }
        out
    }

    fn after(route: &Value, wanted: &[HeaderRoute]) -> Value {
        set(route, wanted).map_or_else(|| route.clone(), |patch| apply(route, &patch))
    }

    fn holds(route: &Value, known: &[HeaderRoute]) -> (Vec<String>, bool) {
        let state = read(route, "shop", "web-stable", "web-canary", known).unwrap();
        (state.header_routes.into_iter().collect(), state.stray)
    }

    #[test]
    fn a_header_route_is_a_rule_before_the_one_it_copies() {
        let vip = header_route(VIP);
        let route = route(RouteKind::Http, &[foreign(), rule("/")]);
        let patch = set(&route, std::slice::from_ref(&vip)).unwrap();
        let backends = rule("/")["backendRefs"].clone();
        let copy = json!({"name": format!("sluice-{}-1", vip.id()),
            "matches": [{"path": {"type": "PathPrefix", "value": "/"},
                         "headers": [{"type": "Exact", "name": "X-Vip", "value": "1"}]}],
            "timeouts": {"request": "5s"},
            "backendRefs": [{"group": "", "kind": "Service", "name": "web-canary", "port": 80, "weight": 1}]});
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "71"},
                {"op": "test", "path": "/spec/rules/1/backendRefs", "value": backends},
                {"op": "add", "path": "/spec/rules/1", "value": copy}
            ])
        );
        let with = apply(&route, &patch);
        assert_eq!(holds(&with, std::slice::from_ref(&vip)), (vec![vip.id()], false));
        assert_eq!(set(&with, std::slice::from_ref(&vip)), None, "nothing more to do");
        // Weights are those of the steered rule, as ever.
        let weights = set_weight(&with, "shop", "web-stable", "web-canary", 20).unwrap().unwrap();
        assert_eq!(weights[1]["path"], "/spec/rules/2/backendRefs/0/name");
        assert_eq!(
            set(&with, &[]).unwrap(),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "71"},
                {"op": "test", "path": "/spec/rules/1/name", "value": format!("sluice-{}-1", vip.id())},
                {"op": "remove", "path": "/spec/rules/1"}
            ])
        );
    }

    #[test]
    fn every_header_must_match_in_every_match_of_the_rule() {
        let mut both = rule("/");
        both["matches"] = json!([{"path": {"type": "Exact", "value": "/a"}},
            {"headers": [{"type": "Exact", "name": "X-Env", "value": "prod"}]}]);
        let with = after(&route(RouteKind::Http, &[both]), &[beta()]);
        let ours = [
            json!({"type": "RegularExpression", "name": "Cookie", "value": ".*beta=1.*"}),
            json!({"type": "RegularExpression", "name": "X-Team", "value": "^a\\.b.*"}),
        ];
        let env = json!({"type": "Exact", "name": "X-Env", "value": "prod"});
        assert_eq!(
            with["spec"]["rules"][0]["matches"],
            json!([{"path": {"type": "Exact", "value": "/a"}, "headers": ours}, {"headers": [env, ours[0], ours[1]]}])
        );
        // A GRPCRoute that matches everything has no matches at all.
        let mut all = rule("/");
        all.as_object_mut().unwrap().remove("matches");
        let with = after(&route(RouteKind::Grpc, &[all]), &[beta()]);
        assert_eq!(with["spec"]["rules"][0]["matches"], json!([{"headers": ours}]));
    }

    #[test]
    fn a_header_that_the_rule_asks_for_itself_is_refused() {
        let mut own = rule("/");
        own["matches"][0]["headers"] = json!([{"type": "Exact", "name": "x-vip", "value": "2"}]);
        let route = route(RouteKind::Grpc, &[own]);
        let known = [header_route(VIP)];
        let message = read(&route, "shop", "web-stable", "web-canary", &known).unwrap_err().to_string();
        assert!(message.starts_with("GRPCRoute \"web\", rule 1 matches header \"X-Vip\" itself"), "{message}");
        assert!(set_header_routes(&route, "shop", "web-stable", "web-canary", &known).is_err());
    }

    #[test]
    fn what_is_not_as_it_should_be_is_told_and_made_anew() {
        let vip = [header_route(VIP)];
        let plain = route(RouteKind::Http, &[rule("/"), rule("/api")]);
        let whole = after(&plain, &vip);
        assert_eq!(holds(&whole, &vip), (vec![vip[0].id()], false));
        assert_eq!(holds(&whole, &[]), (vec![], true), "of a header route that no step knows");
        assert_eq!(holds(&whole, &[beta()]), (vec![], true));
        // Somebody changes what a rule matches, its copy in one place, or takes one copy away.
        let damages: [fn(&mut Value); 3] = [
            |route| route["spec"]["rules"][1]["matches"][0]["path"]["value"] = "/v2".into(),
            |route| route["spec"]["rules"][2]["backendRefs"][0]["name"] = "web-stable".into(),
            |route| drop(route["spec"]["rules"].as_array_mut().unwrap().remove(2)),
        ];
        for damage in damages {
            let mut route = whole.clone();
            damage(&mut route);
            assert_eq!(holds(&route, &vip), (vec![], true));
            let mended = after(&route, &vip);
            assert_eq!(holds(&mended, &vip), (vec![vip[0].id()], false));
            assert_eq!(mended["spec"]["rules"].as_array().unwrap().len(), 4);
        }
        // The same name with another match is another header route.
        let other = [header_route(&VIP.replace("\"1\"", "\"2\""))];
        let changed = after(&whole, &other);
        assert_eq!(holds(&changed, &[vip[0].clone(), other[0].clone()]), (vec![other[0].id()], false));
        assert_eq!(after(&changed, &[]), plain);
        // One without a match is none.
        assert_eq!(set(&plain, &[header_route(r#"{"name": "vip"}"#)]), None);
    }

    #[test]
    fn only_our_names_are_ours() {
        for (name, ours) in [
            ("sluice-vip-1a2b3c4d-1", true),
            ("sluice-a-b-1a2b3c4d-12", true),
            ("sluice-gate", false),
            ("sluice-vip-1a2b3c4-1", false),
            ("sluice-vip-1a2b3c4d-x", false),
            ("vip-1a2b3c4d-1", false),
            ("", false),
        ] {
            assert_eq!(is_ours(&json!({"name": name})), ours, "{name}");
        }
    }

    #[test]
    fn a_commit_does_not_end_a_header_route() {
        let known = [header_route(VIP), beta()];
        let live = after(&route(RouteKind::Http, &[rule("/"), foreign(), rule("/api")]), &known);
        let mut changed = rule("/api");
        changed["timeouts"] = json!({"request": "9s"});
        let mut desired = route(RouteKind::Http, &[changed.clone(), rule("/"), rule("/new")]);
        let pairs = [("web-stable".to_owned(), "web-canary".to_owned())];
        assert_eq!(carry_weights(&live, &mut desired, &pairs), 4);
        let names: Vec<&str> = desired["spec"]["rules"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rule| rule["name"].as_str().unwrap_or_default())
            .collect();
        let of = |index: usize, number: usize| format!("sluice-{}-{number}", known[index].id());
        assert_eq!(names, [&of(0, 2), &of(1, 2), "", &of(0, 1), &of(1, 1), "", ""]);
        assert_eq!(desired["spec"]["rules"][0]["timeouts"], changed["timeouts"], "the rest is git's");
        assert_eq!(desired["spec"]["rules"][2], changed);
    }

    proptest! {
        #[test]
        fn what_was_put_in_can_be_taken_out_to_the_byte(
            shape in prop::collection::vec(0u8..3, 1..6),
            first in any::<bool>(),
            kind in prop_oneof![Just(RouteKind::Http), Just(RouteKind::Grpc)],
        ) {
            let of = |(index, shape): (usize, &u8)| match shape {
                0 => foreign(),
                _ => rule(&format!("/{index}")),
            };
            let mut rules: Vec<Value> = shape.iter().enumerate().map(of).collect();
            rules.push(rule("/"));
            let plain = route(kind, &rules);
            let known = [header_route(VIP), beta()];
            let (one, other) = if first { (0, 1) } else { (1, 0) };
            let single = after(&plain, &known[one..=one]);
            prop_assert_eq!(holds(&single, &known), (vec![known[one].id()], false));
            let both = after(&single, &known);
            let mut ids = vec![known[0].id(), known[1].id()];
            ids.sort();
            prop_assert_eq!(holds(&both, &known), (ids, false));
            let rest = after(&both, &known[other..=other]);
            prop_assert_eq!(holds(&rest, &known), (vec![known[other].id()], false));
            prop_assert_eq!(serde_json::to_string(&after(&rest, &[])).unwrap(), serde_json::to_string(&plain).unwrap());
        }
    }
}
