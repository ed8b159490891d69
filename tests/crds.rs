//! The custom resource definitions: `crds/` is what the code says, and what the code says is what was decided.
//!
//! Whether an API server takes them, and refuses what it should, is asked of a real one: `tests/data/refused` holds
//! objects, each with the message that its author must see, and `tests/data/accepted` objects that must pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};

use kube::CustomResourceExt;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice::api::{self, names};
use sluice::cli::crds::{self, Definition};

const REGENERATE: &str =
    "to write it again: cargo run -- crds --write crds --write charts/sluice/files/crds, and read the difference";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn definitions() -> Vec<Definition> {
    crds::definitions().unwrap()
}

fn definition(plural: &str) -> Value {
    definitions().into_iter().find(|definition| definition.plural == plural).unwrap().object
}

fn schema(plural: &str) -> Value {
    definition(plural).pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap().clone()
}

fn yaml_files(directory: &str) -> Vec<(PathBuf, String)> {
    let mut files: Vec<_> = fs::read_dir(root(directory))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| (path.clone(), fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{directory} is empty");
    files
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

/// Calls `visit` with each object in a schema, and where it is.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &serde_json::Map<String, Value>)) {
    match schema {
        Value::Object(fields) => {
            visit(path, fields);
            for (key, value) in fields {
                walk(value, &format!("{path}/{key}"), visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, path, visit)),
        _ => {}
    }
}

#[test]
fn the_files_are_what_the_code_says() {
    for directory in ["crds", "charts/sluice/files/crds"] {
        let mut expected: Vec<_> = definitions()
            .iter()
            .map(|definition| (root(directory).join(definition.file_name()), definition.yaml().unwrap()))
            .collect();
        expected.sort();
        let found = yaml_files(directory);
        let paths = |files: &[(PathBuf, String)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&found), paths(&expected), "{REGENERATE}");
        for ((path, found), (_, expected)) in found.iter().zip(&expected) {
            assert!(found == expected, "{} is out of date; {REGENERATE}", path.display());
        }
    }
}

#[test]
fn the_yaml_means_the_same_as_the_object() {
    for definition in definitions() {
        assert_eq!(documents(&definition.yaml().unwrap()), [definition.object]);
    }
    let mut printed = Vec::new();
    crds::run(&crds::Arguments { write: Vec::new() }, &mut printed).unwrap();
    assert_eq!(documents(&String::from_utf8(printed).unwrap()).len(), definitions().len());
}

#[test]
fn every_kind_is_there_and_served_where_it_should_be() {
    let mut found: Vec<_> = definitions()
        .into_iter()
        .map(|Definition { plural, object }| (plural, object["spec"]["scope"].as_str().unwrap().to_owned()))
        .collect();
    found.sort();
    let expected = [
        ("analysisruns", "Namespaced"),
        ("analysistemplates", "Namespaced"),
        ("clusteranalysistemplates", "Cluster"),
        ("clustermetricproviders", "Cluster"),
        ("deployrepos", "Namespaced"),
        ("interventions", "Namespaced"),
        ("metricproviders", "Namespaced"),
        ("rollouts", "Namespaced"),
    ];
    assert_eq!(found, expected.map(|(plural, scope)| (plural.to_owned(), scope.to_owned())));
    for Definition { object, .. } in definitions() {
        assert_eq!(object["spec"]["group"], api::GROUP);
        let versions = object["spec"]["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 1);
        assert_eq!(versions[0]["name"], api::VERSION);
    }
}

#[test]
fn a_rollout_shows_the_columns_people_know() {
    let version = definition("rollouts")["spec"]["versions"][0].clone();
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let shown: Vec<_> = columns
        .iter()
        .filter(|column| column.get("priority").is_none_or(|priority| priority == 0))
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(shown, ["Strategy", "Phase", "Step", "Weight", "Revision", "Ready", "Age"]);
    let fields = schema("rollouts");
    for column in columns {
        // Conditions are found by type, and the metadata is not described.
        let path = column["jsonPath"].as_str().unwrap();
        if path.contains("[?(") || path.starts_with(".metadata") {
            continue;
        }
        assert!(fields.pointer(&path.replace('.', "/properties/")).is_some(), "{path} is no field");
    }
    // An autoscaler reads the size from here, so it is never absent.
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.replicas");
    assert_eq!(fields.pointer("/properties/spec/properties/replicas/default"), Some(&json!(1)));
}

#[test]
fn schemas_hold_only_what_an_api_server_knows() {
    for Definition { plural, .. } in definitions() {
        let schema = schema(&plural);
        walk(&schema, "", &mut |path, fields| {
            if let Some(format) = fields.get("format").and_then(Value::as_str) {
                let known = ["int32", "int64", "double", "float", "date-time", "byte"];
                assert!(known.contains(&format), "{plural}{path}: format {format}");
            }
            // A null in a field of our own is dropped, or refused by name; a rule never meets one.
            let nullable = fields.get("nullable").is_some_and(Value::is_boolean);
            assert!(!nullable || path.contains("/template/"), "{plural}{path} is nullable");
            let described = !path.is_empty() && path.ends_with("/properties/spec");
            assert!(!described || fields.contains_key("description"), "{plural}{path} has no description");
        });
        let description = schema["description"].as_str().unwrap();
        assert!(!description.contains("CustomResource"), "{plural}: {description}");
    }
}

#[test]
fn rules_have_a_message_and_read_within_bounds() {
    let mut rules = 0;
    for Definition { plural, .. } in definitions() {
        walk(&schema(&plural), "", &mut |path, fields| {
            for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                rules += 1;
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(message.len() > 5 && !message.contains('\n'), "{plural}{path}: {rule}");
                if let Some(field) = rule["fieldPath"].as_str() {
                    let field = field.replace('.', "/properties/");
                    let here = Value::Object(fields.clone());
                    assert!(here.pointer(&field).is_some(), "{plural}{path} has no field {field}");
                }
            }
        });
    }
    assert!(rules > 30, "only {rules} rules");
}

#[test]
fn rules_speak_of_the_same_names_as_the_code() {
    let text = serde_json::to_string(&schema("rollouts")).unwrap();
    assert!(text.contains(&format!("self.metadata.name.size() <= {}", names::MAX_ROLLOUT_NAME)));
    assert!(text.contains(&format!("at most {} letters", names::MAX_ROLLOUT_NAME)));
    assert!(text.contains(&format!("['{}', '{}']", names::REVISION, names::ROLLOUT)));
    let text = serde_json::to_string(&schema("deployrepos")).unwrap();
    assert!(text.contains(&format!("startsWith('{}')", names::LOG_BRANCH_PREFIX)));
}

#[test]
fn lists_of_a_pod_template_merge_by_the_keys_of_a_deployment() {
    let schema = schema("rollouts");
    let template = schema.pointer("/properties/spec/properties/template").unwrap();
    let pod = "/properties/spec/properties";
    let container = format!("{pod}/containers/items/properties");
    for (list, keys) in [
        (format!("{pod}/containers"), json!(["name"])),
        (format!("{pod}/initContainers"), json!(["name"])),
        (format!("{pod}/volumes"), json!(["name"])),
        (format!("{pod}/imagePullSecrets"), json!(["name"])),
        (format!("{pod}/topologySpreadConstraints"), json!(["topologyKey", "whenUnsatisfiable"])),
        (format!("{container}/env"), json!(["name"])),
        (format!("{container}/ports"), json!(["containerPort", "protocol"])),
        (format!("{container}/volumeMounts"), json!(["mountPath"])),
    ] {
        let list = template.pointer(&list).unwrap_or_else(|| panic!("no {list}"));
        assert_eq!(list["x-kubernetes-list-type"], "map");
        assert_eq!(list["x-kubernetes-list-map-keys"], keys);
    }
    walk(template, "", &mut |path, fields| {
        // A field that is newer than the schema survives, at any depth.
        if fields.get("type") == Some(&json!("object")) && !fields.contains_key("additionalProperties") {
            assert_eq!(fields.get("x-kubernetes-preserve-unknown-fields"), Some(&json!(true)), "{path}");
        }
        assert!(!fields.contains_key("$ref"), "{path}");
    });
    let described = template.pointer(&format!("{container}/image/description")).and_then(Value::as_str);
    assert_eq!(described, Some("Container image name."));
}

#[test]
fn lists_of_our_own_merge_by_name() {
    let spec = "/properties/spec/properties";
    let routing = format!("{spec}/strategy/properties/canary/properties/trafficRouting");
    let routes = format!("{routing}/properties/gatewayAPI/properties");
    for (plural, list, key) in [
        ("rollouts", format!("{routes}/httpRoutes"), "name"),
        ("rollouts", format!("{routes}/grpcRoutes"), "name"),
        ("rollouts", format!("{routes}/tlsRoutes"), "name"),
        ("rollouts", format!("{routes}/tcpRoutes"), "name"),
        ("rollouts", "/properties/status/properties/conditions".to_owned(), "type"),
        ("analysistemplates", format!("{spec}/metrics"), "name"),
        ("analysistemplates", format!("{spec}/args"), "name"),
        ("clusteranalysistemplates", format!("{spec}/metrics"), "name"),
        ("analysisruns", format!("{spec}/metrics"), "name"),
        ("deployrepos", "/properties/status/properties/conditions".to_owned(), "type"),
    ] {
        let schema = schema(plural);
        let list = schema.pointer(&list).unwrap_or_else(|| panic!("{plural} has no {list}"));
        assert_eq!(list["x-kubernetes-list-map-keys"], json!([key]), "{plural}");
    }
}

/// The kinds as Rust reads them.
fn read(object: &Value) -> Result<(), String> {
    fn as_kind<K: DeserializeOwned>(object: &Value) -> Result<(), String> {
        serde_json::from_value::<K>(object.clone()).map(drop).map_err(|error| error.to_string())
    }
    match object["kind"].as_str().unwrap() {
        "Rollout" => as_kind::<api::Rollout>(object),
        "AnalysisTemplate" => as_kind::<api::AnalysisTemplate>(object),
        "ClusterAnalysisTemplate" => as_kind::<api::ClusterAnalysisTemplate>(object),
        "AnalysisRun" => as_kind::<api::AnalysisRun>(object),
        "MetricProvider" => as_kind::<api::MetricProvider>(object),
        "ClusterMetricProvider" => as_kind::<api::ClusterMetricProvider>(object),
        "DeployRepo" => as_kind::<api::DeployRepo>(object),
        "Intervention" => as_kind::<api::Intervention>(object),
        kind => Err(format!("unknown kind {kind}")),
    }
}

/// What the API server does before it stores an object: an explicit null is an absent field.
fn without_nulls(object: &mut Value) {
    match object {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[test]
fn what_an_api_server_accepts_the_operator_can_read() {
    for (path, text) in yaml_files("tests/data/accepted") {
        for mut object in documents(&text) {
            without_nulls(&mut object);
            read(&object).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

#[test]
fn what_an_api_server_refuses_has_a_message_that_names_the_field() {
    let refused = yaml_files("tests/data/refused");
    let mut messages = String::new();
    for (path, text) in &refused {
        let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
        let expected = expected.unwrap_or_else(|| panic!("{} does not say what it expects", path.display()));
        assert!(
            ["spec.", "spec: ", "metadata.", "unknown field \"spec."].iter().any(|start| expected.starts_with(start)),
            "{}: {expected}",
            path.display()
        );
        let objects = documents(text);
        // All but the last are there before: it is the change that is refused.
        assert!((1..=2).contains(&objects.len()), "{}", path.display());
        let kinds: Vec<_> = objects.iter().map(|object| &object["kind"]).collect();
        assert!(kinds.iter().all(|kind| *kind == kinds[0]), "{}", path.display());
        messages.push_str(expected);
        messages.push('\n');
    }
    // Each rule of ours has an object that it refuses.
    for Definition { plural, .. } in definitions() {
        walk(&schema(&plural), "", &mut |path, fields| {
            for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
                let message = rule["message"].as_str().unwrap();
                let known: String = message.chars().take(24).collect();
                assert!(messages.contains(&known), "{plural}{path}: nothing in tests/data/refused meets: {message}");
            }
        });
    }
}

#[test]
fn crds_are_named_after_their_kinds() {
    assert_eq!(api::Rollout::crd_name(), "rollouts.sluice.dev");
    assert_eq!(api::Rollout::shortnames(), ["ro"]);
}
