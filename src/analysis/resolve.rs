//! From templates and arguments to the metrics of one run, with everything checked that can be checked
//! before the run begins. The run keeps the result, so that an edited template changes no run in flight.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    arguments::{fill_condition, fill_query},
    condition::Condition,
};
use crate::api::{AnalysisTemplateSpec, Argument, ClusterAnalysisTemplateSpec, Metric, TemplateArgument};

/// What an AnalysisRun can hold; its schema says the same.
const MAX_METRICS: usize = 64;
const MAX_QUERY: usize = 8192;

/// The arguments that are always set, whoever uses a template.
const STANDARD: [&str; 6] = ["namespace", "rollout", "revision", "stableRevision", "stableService", "canaryService"];

/// A template as a Rollout names it.
#[derive(Clone, Copy, Debug)]
pub struct Template<'a> {
    /// `AnalysisTemplate` or `ClusterAnalysisTemplate`.
    pub kind: &'static str,
    /// Its name.
    pub name: &'a str,
    /// The arguments it takes.
    pub args: &'a [TemplateArgument],
    /// Its metrics.
    pub metrics: &'a [Metric],
}

impl<'a> Template<'a> {
    /// A template of the Rollout's namespace.
    pub fn namespaced(name: &'a str, spec: &'a AnalysisTemplateSpec) -> Self {
        Self { kind: "AnalysisTemplate", name, args: &spec.args, metrics: &spec.metrics }
    }

    /// A template of the cluster.
    pub fn cluster(name: &'a str, spec: &'a ClusterAnalysisTemplateSpec) -> Self {
        Self { kind: "ClusterAnalysisTemplate", name, args: &spec.args, metrics: &spec.metrics }
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself: a step waits for it, so every metric must have an end.
    ByItself,
    /// With the rollout it runs beside: a metric may go on for as long.
    WithRollout,
}

/// Something in a template, or between a Rollout and a template, that must be mended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Fault {
    /// The object and field: `AnalysisTemplate "error-rate" spec.metrics[0].count`, or `args[1]` of the
    /// Rollout's own reference.
    pub place: String,
    /// What is wrong and how it is mended.
    pub message: String,
}

/// The metrics of a run. `given` are the Rollout's arguments, `standard` those that are always set
/// (`namespace`, `revision`, …). All faults are returned, not only the first.
pub fn resolve(
    templates: &[Template<'_>],
    given: &[Argument],
    standard: &BTreeMap<String, String>,
    ending: Ending,
) -> Result<Vec<Metric>, Vec<Fault>> {
    let mut faults = Faults::default();
    let given = given_values(templates, given, standard, &mut faults);
    let mut metrics: Vec<Metric> = Vec::new();
    let mut homes: BTreeMap<String, &str> = BTreeMap::new();
    for template in templates {
        let values = template_values(template, &given, standard, &mut faults);
        for (index, metric) in template.metrics.iter().enumerate() {
            let place = |field: &str| place(template, &format!("spec.metrics[{index}]{field}"));
            if let Some(other) = homes.insert(metric.name.clone(), template.name) {
                let message = format!("there is a metric \"{}\" in template \"{other}\" already", metric.name);
                faults.add(place(".name"), message);
            }
            let metric = filled(metric, &values, &place, &mut faults);
            check(&metric, ending, &place, &mut faults);
            metrics.push(metric);
        }
    }
    if metrics.len() > MAX_METRICS {
        let message = format!("{} metrics are too many for one analysis: at most {MAX_METRICS}", metrics.len());
        faults.add("templates".into(), message);
    }
    if metrics.is_empty() && faults.0.is_empty() {
        faults.add("templates".into(), "none of the templates has a metric: there is nothing to judge");
    }
    if faults.0.is_empty() { Ok(metrics) } else { Err(faults.0) }
}

/// What is wrong with one template by itself, whoever uses it: a number stands for each of its arguments.
pub fn check_template(template: &Template<'_>) -> Vec<Fault> {
    let mut faults = Faults::default();
    let arguments = template.args.iter().map(|argument| argument.name.as_str()).chain(STANDARD);
    let values: BTreeMap<String, String> = arguments.map(|name| (name.to_owned(), "0".to_owned())).collect();
    let mut names = BTreeSet::new();
    for (index, metric) in template.metrics.iter().enumerate() {
        let place = |field: &str| place(template, &format!("spec.metrics[{index}]{field}"));
        if !names.insert(&metric.name) {
            faults.add(place(".name"), format!("there is a metric \"{}\" already", metric.name));
        }
        let metric = filled(metric, &values, &place, &mut faults);
        check(&metric, Ending::WithRollout, &place, &mut faults);
    }
    faults.0
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, place: String, message: impl Into<String>) {
        self.0.push(Fault { place, message: message.into() });
    }
}

fn place(template: &Template<'_>, field: &str) -> String {
    format!("{} \"{}\" {field}", template.kind, template.name)
}

fn given_values(
    templates: &[Template<'_>],
    given: &[Argument],
    standard: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> BTreeMap<String, String> {
    let taken: BTreeSet<&str> = templates.iter().flat_map(|t| t.args).map(|argument| argument.name.as_str()).collect();
    let mut values = BTreeMap::new();
    for (index, Argument { name, value }) in given.iter().enumerate() {
        let place = format!("args[{index}]");
        match standard.get(name) {
            Some(known) if known != value => {
                let message =
                    format!("argument \"{name}\" is always \"{known}\" and cannot be given; take another name");
                faults.add(place, message);
                continue;
            }
            None if !taken.contains(name.as_str()) => {
                let known: Vec<&str> = taken.iter().copied().collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                faults.add(place, format!("no template takes an argument \"{name}\"; they take {known}"));
                continue;
            }
            _ => {}
        }
        if values.insert(name.clone(), value.clone()).is_some() {
            faults.add(place, format!("argument \"{name}\" is given twice"));
        }
    }
    values
}

/// The values as one template sees them: what is always set, its own defaults, and what was given for it.
fn template_values(
    template: &Template<'_>,
    given: &BTreeMap<String, String>,
    standard: &BTreeMap<String, String>,
    faults: &mut Faults,
) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for (index, argument) in template.args.iter().enumerate() {
        let value = given.get(&argument.name).or_else(|| standard.get(&argument.name)).or(argument.value.as_ref());
        let place = || place(template, &format!("spec.args[{index}]"));
        let Some(value) = value else {
            let name = &argument.name;
            faults.add(place(), format!("argument \"{name}\" is required: give it in the Rollout's args"));
            // A stand-in, so that the one fault is not told again for each use.
            values.insert(name.clone(), "0".into());
            continue;
        };
        if values.insert(argument.name.clone(), value.clone()).is_some() {
            faults.add(place(), format!("argument \"{}\" is declared twice", argument.name));
        }
    }
    // What is always set comes last: a default may not take its place.
    values.extend(standard.iter().map(|(name, value)| (name.clone(), value.clone())));
    values
}

fn filled(
    metric: &Metric,
    values: &BTreeMap<String, String>,
    place: &dyn Fn(&str) -> String,
    faults: &mut Faults,
) -> Metric {
    let mut metric = metric.clone();
    if let Some(prometheus) = &mut metric.provider.prometheus {
        match fill_query(&prometheus.query, values) {
            Ok(query) => prometheus.query = query.trim().to_owned(),
            Err(error) => faults.add(place(".provider.prometheus.query"), error.to_string()),
        }
    }
    for (field, condition) in
        [(".successCondition", &mut metric.success_condition), (".failureCondition", &mut metric.failure_condition)]
    {
        let Some(text) = condition else { continue };
        match fill_condition(text, values) {
            Ok(filled) => *text = filled,
            Err(error) => {
                faults.add(place(field), error.to_string());
                // Not told again by the parser.
                *condition = Some("true".into());
            }
        }
    }
    metric
}

/// What must hold of a metric whatever its arguments are.
fn check(metric: &Metric, ending: Ending, place: &dyn Fn(&str) -> String, faults: &mut Faults) {
    if metric.name.trim().is_empty() {
        faults.add(place(".name"), "a metric needs a name");
    }
    if metric.threshold.is_none() && metric.success_condition.is_none() && metric.failure_condition.is_none() {
        let message = "nothing says what is good: give a threshold, a successCondition or a failureCondition";
        faults.add(place(""), message);
    }
    if let Some(threshold) = metric.threshold {
        let bounds = [threshold.min, threshold.max];
        if bounds.iter().all(Option::is_none) {
            faults.add(place(".threshold"), "give min, max or both");
        }
        if bounds.iter().flatten().any(|bound| !bound.is_finite()) {
            faults.add(place(".threshold"), "a bound must be a finite number");
        }
        if let [Some(min), Some(max)] = bounds
            && min > max
        {
            faults.add(place(".threshold"), format!("min ({min}) is greater than max ({max}): no value passes"));
        }
    }
    for (field, condition) in
        [(".successCondition", &metric.success_condition), (".failureCondition", &metric.failure_condition)]
    {
        let Some(text) = condition else { continue };
        if let Err(error) = Condition::parse(text) {
            faults.add(place(field), error.to_string());
        }
    }
    check_times(metric, ending, place, faults);
    for (field, limit) in [
        (".failureLimit", metric.failure_limit),
        (".inconclusiveLimit", metric.inconclusive_limit),
        (".consecutiveErrorLimit", metric.consecutive_error_limit),
    ] {
        if limit.is_some_and(|limit| limit < 0) {
            faults.add(place(field), "a limit is at least 0");
        }
    }
    match &metric.provider.prometheus {
        None => faults.add(place(".provider"), "no provider is named; known are: prometheus"),
        Some(prometheus) => {
            if prometheus.query.trim().is_empty() {
                faults.add(place(".provider.prometheus.query"), "the query is empty");
            }
            if prometheus.query.chars().count() > MAX_QUERY {
                let message = format!("with its arguments the query is longer than {MAX_QUERY} characters");
                faults.add(place(".provider.prometheus.query"), message);
            }
            if prometheus.name.contains("{{") {
                faults.add(place(".provider.prometheus.name"), "arguments are filled into queries and conditions only");
            }
        }
    }
}

fn check_times(metric: &Metric, ending: Ending, place: &dyn Fn(&str) -> String, faults: &mut Faults) {
    if metric.interval.is_some_and(|interval| interval.std() < std::time::Duration::from_secs(1)) {
        faults.add(place(".interval"), "an interval is at least 1s");
    }
    match (metric.interval, metric.count) {
        (_, Some(count)) if count < 1 => {
            let message = "count is at least 1; leave it out to measure for as long as the rollout runs";
            faults.add(place(".count"), message);
        }
        (None, Some(count)) if count > 1 => {
            let message = format!("{count} measurements need an interval between them");
            faults.add(place(".interval"), message);
        }
        (Some(_), None) if ending == Ending::ByItself => {
            let message = "an interval without count never ends, and a step would wait for it for ever: give a count";
            faults.add(place(".count"), message);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::{Ending, Fault, Template, check_template, resolve};
    use crate::api::{AnalysisTemplateSpec, Argument, Metric};

    fn template(value: Value) -> AnalysisTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    fn metric(change: Value) -> Value {
        let mut metric = json!({
            "name": "errors", "interval": "10s", "count": 3, "threshold": {"max": 0.05},
            "provider": {"prometheus": {"name": "prom", "query": "errors{app=\"{{args.app}}\"}\n\n"}}
        });
        for (key, value) in change.as_object().unwrap() {
            if value.is_null() {
                metric.as_object_mut().unwrap().remove(key);
            } else {
                metric[key] = value.clone();
            }
        }
        metric
    }

    fn argument(name: &str, value: &str) -> Argument {
        Argument { name: name.into(), value: value.into() }
    }

    fn one(spec: &AnalysisTemplateSpec, given: &[Argument], ending: Ending) -> Result<Vec<Metric>, Vec<Fault>> {
        let standard = BTreeMap::from([("namespace".to_owned(), "shop".to_owned())]);
        resolve(&[Template::namespaced("t", spec)], given, &standard, ending)
    }

    #[test]
    fn fills_arguments_defaults_and_what_is_always_set() {
        let spec = template(json!({
            "args": [{"name": "app"}, {"name": "limit", "value": "0.95"}],
            "metrics": [
                metric(json!({})),
                metric(json!({
                    "name": "Success Rate (%)", "threshold": null, "count": null, "interval": null,
                    "successCondition": "result >= {{args.limit}}",
                    "provider": {"prometheus": {"name": "prom", "query": "ok{ns=\"{{args.namespace}}\"}"}}
                })),
            ]
        }));
        let metrics = one(&spec, &[argument("app", "web")], Ending::ByItself).unwrap();
        let query = |index: usize| metrics[index].provider.prometheus.as_ref().unwrap().query.as_str();
        assert_eq!(query(0), "errors{app=\"web\"}");
        assert_eq!(query(1), "ok{ns=\"shop\"}");
        assert_eq!(metrics[1].success_condition.as_deref(), Some("result >= 0.95"));
        assert_eq!(check_template(&Template::namespaced("t", &spec)), []);
    }

    #[test]
    fn an_argument_that_nobody_declares_is_a_fault_of_the_template_itself() {
        let query = "errors{app=\"{{ args.app }}\",code=\"{{args.cod}}\"}";
        let spec = template(json!({"args": [{"name": "app"}], "metrics": [metric(json!({
            "provider": {"prometheus": {"name": "prom", "query": query}}
        }))]}));
        let faults = check_template(&Template::namespaced("t", &spec));
        assert_eq!(
            faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["AnalysisTemplate \"t\" spec.metrics[0].provider.prometheus.query: {{args.cod}} is not an argument of \
                 this template; it knows app, canaryService, namespace, revision, rollout, stableRevision, stableService"]
        );
        // A Rollout that uses it is told the same.
        assert_eq!(one(&spec, &[argument("app", "web")], Ending::ByItself).unwrap_err().len(), 1);
    }

    #[test]
    fn arguments_that_do_not_fit_are_named() {
        let spec = template(json!({"args": [{"name": "app"}], "metrics": [metric(json!({}))]}));
        let cases: &[(&[Argument], &str)] = &[
            (&[], "AnalysisTemplate \"t\" spec.args[0]: argument \"app\" is required"),
            (
                &[argument("app", "a"), argument("ap", "b")],
                "args[1]: no template takes an argument \"ap\"; they take app",
            ),
            (&[argument("app", "a"), argument("app", "b")], "args[1]: argument \"app\" is given twice"),
            (&[argument("app", "a"), argument("namespace", "b")], "args[1]: argument \"namespace\" is always \"shop\""),
            (
                &[argument("app", "a\"} or up")],
                "spec.metrics[0].provider.prometheus.query: argument \"app\" is \"a\"} or up\"",
            ),
        ];
        for (given, expected) in cases {
            let faults = one(&spec, given, Ending::ByItself).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].to_string().contains(expected), "{} should contain {expected}", faults[0]);
        }
        assert!(one(&spec, &[argument("app", "a"), argument("namespace", "shop")], Ending::ByItself).is_ok());
    }

    #[test]
    fn metrics_that_cannot_be_judged_are_named_by_field() {
        let provider = |query: &str| json!({"prometheus": {"name": "prom", "query": query}});
        let cases = [
            (metric(json!({"threshold": null})), "spec.metrics[0]: nothing says what is good"),
            (metric(json!({"threshold": {}})), "spec.metrics[0].threshold: give min, max or both"),
            (metric(json!({"threshold": {"min": 2, "max": 1}})), "no value passes"),
            (metric(json!({"successCondition": "result[0] <"})), "spec.metrics[0].successCondition: column 12"),
            (
                metric(json!({"failureCondition": "result[0] < {{args.none}}"})),
                "spec.metrics[0].failureCondition: {{args.none}}",
            ),
            (metric(json!({"interval": null, "count": 5})), "spec.metrics[0].interval: 5 measurements need"),
            (metric(json!({"count": null})), "spec.metrics[0].count: an interval without count never ends"),
            (metric(json!({"count": 0})), "spec.metrics[0].count: count is at least 1"),
            (metric(json!({"interval": 0})), "spec.metrics[0].interval: an interval is at least 1s"),
            (metric(json!({"failureLimit": -1})), "spec.metrics[0].failureLimit: a limit is at least 0"),
            (metric(json!({"provider": {}})), "spec.metrics[0].provider: no provider"),
            (
                metric(json!({"provider": provider(" \n")})),
                "spec.metrics[0].provider.prometheus.query: the query is empty",
            ),
            (metric(json!({"provider": provider("up{a=\"{{ \"{{\" }}b\"}")})), "left over from a chart"),
        ];
        for (metric, expected) in cases {
            let spec = template(json!({"args": [{"name": "app"}], "metrics": [metric]}));
            let faults = one(&spec, &[argument("app", "web")], Ending::ByItself).unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].to_string().contains(expected), "{} should contain {expected}", faults[0]);
        }
        let endless = template(json!({"args": [{"name": "app"}], "metrics": [metric(json!({"count": null}))]}));
        assert!(one(&endless, &[argument("app", "web")], Ending::WithRollout).is_ok(), "fine beside a rollout");
    }

    #[test]
    fn a_metric_name_is_one_metric_across_templates() {
        let spec = template(json!({"args": [{"name": "app", "value": "x"}], "metrics": [metric(json!({}))]}));
        let templates = [Template::namespaced("a", &spec), Template::namespaced("b", &spec)];
        let faults = resolve(&templates, &[], &BTreeMap::new(), Ending::ByItself).unwrap_err();
        assert_eq!(
            faults[0].to_string(),
            "AnalysisTemplate \"b\" spec.metrics[0].name: there is a metric \"errors\" in template \"a\" already"
        );
        assert!(resolve(&[], &[], &BTreeMap::new(), Ending::ByItself).is_err(), "nothing to judge never passes");
    }
}
