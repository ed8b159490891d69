//! Makes `src/cli/pod_template.schema.json` from what an API server says of its own `PodTemplateSpec`:
//!
//! ```sh
//! kubectl get --raw /openapi/v3/apis/apps/v1 | cargo run --example pod_template_schema > src/cli/pod_template.schema.json
//! ```
//!
//! References are resolved, and what a custom resource's schema may not hold is left out. What stays makes lists
//! merge by the same keys as in a Deployment, lets `kubectl explain` work, and lets a field that is newer than
//! this schema survive.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::io;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

const ROOT: &str = "io.k8s.api.core.v1.PodTemplateSpec";

/// What is taken over as it is.
const KEPT: [&str; 8] = [
    "type",
    "format",
    "enum",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "additionalProperties",
];

fn main() -> anyhow::Result<()> {
    let document: Value = serde_json::from_reader(io::stdin().lock()).context("standard input is not JSON")?;
    let schemas = document.pointer("/components/schemas").context("no components.schemas: is this OpenAPI v3?")?;
    let root = resolve(schemas, &json!({"$ref": format!("#/components/schemas/{ROOT}")}), 0)?;
    serde_json::to_writer(io::stdout().lock(), &root)?;
    println!();
    Ok(())
}

fn resolve(schemas: &Value, schema: &Value, depth: usize) -> anyhow::Result<Value> {
    if depth > 64 {
        bail!("the schema refers to itself");
    }
    if let Some(name) = reference(schema) {
        let target = schemas.get(name).with_context(|| format!("no schema {name}"))?;
        return resolve(schemas, target, depth + 1);
    }
    if let Some(choices) = schema.get("oneOf").and_then(Value::as_array) {
        return scalar(schema, choices);
    }
    let mut out = Map::new();
    for key in KEPT {
        if let Some(value) = schema.get(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(items) = schema.get("items") {
        let mut items = resolve(schemas, items, depth + 1)?;
        default_map_keys(schemas, schema, &mut items)?;
        out.insert("items".to_owned(), items);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        out.insert("additionalProperties".to_owned(), resolve(schemas, values, depth + 1)?);
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let mut resolved = Map::new();
        for (name, property) in properties {
            let mut value = resolve(schemas, property, depth + 1)?;
            if let (Some(value), Some(text)) = (value.as_object_mut(), property.get("description")) {
                value.insert("description".to_owned(), first_sentence(text.as_str().unwrap_or_default()).into());
                // Charts leave nulls behind, which a Deployment takes for absent fields.
                if !is_required(&out, name) {
                    value.insert("nullable".to_owned(), true.into());
                }
            }
            resolved.insert(name.clone(), value);
        }
        out.insert("properties".to_owned(), resolved.into());
    }
    // A map knows all of its keys; any other object may get a field that is newer than this schema.
    if out.get("type") == Some(&json!("object")) && !out.contains_key("additionalProperties") {
        out.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
    }
    Ok(out.into())
}

/// The name of the schema that `schema` stands for.
fn reference(schema: &Value) -> Option<&str> {
    let direct = schema.get("$ref");
    let wrapped = || schema.pointer("/allOf/0/$ref");
    direct.or_else(wrapped)?.as_str()?.strip_prefix("#/components/schemas/")
}

/// A value that is written in two ways.
fn scalar(schema: &Value, choices: &[Value]) -> anyhow::Result<Value> {
    if schema.get("format") == Some(&json!("int-or-string")) {
        return Ok(json!({"x-kubernetes-int-or-string": true}));
    }
    let types: Vec<_> = choices.iter().filter_map(|choice| choice.get("type")?.as_str()).collect();
    if types == ["string", "number"] {
        // A quantity. `cpu: 0.5` is a float, which int-or-string refuses and a Deployment takes.
        return Ok(json!({"x-kubernetes-preserve-unknown-fields": true}));
    }
    bail!("no rule for oneOf {choices:?}")
}

/// The key of a list that merges by keys is required or has its default, or the definition is refused.
fn default_map_keys(schemas: &Value, list: &Value, items: &mut Value) -> anyhow::Result<()> {
    let Some(keys) = list.get("x-kubernetes-list-map-keys").and_then(Value::as_array) else { return Ok(()) };
    let name = list.get("items").and_then(reference).context("items of a map list without a reference")?;
    let Some(items) = items.as_object_mut() else { bail!("items of {name} are no objects") };
    for key in keys.iter().filter_map(Value::as_str) {
        if is_required(items, key) {
            continue;
        }
        let declared = schemas.get(name).and_then(|schema| schema.pointer(&format!("/properties/{key}/default")));
        let default = declared.with_context(|| format!("{name}.{key} is neither required nor has a default"))?;
        let property = items.get_mut("properties").and_then(|properties| properties.get_mut(key)?.as_object_mut());
        let property = property.with_context(|| format!("{name} has no {key}"))?;
        property.remove("nullable");
        property.insert("default".to_owned(), default.clone());
    }
    Ok(())
}

fn is_required(object: &Map<String, Value>, field: &str) -> bool {
    object.get("required").and_then(Value::as_array).is_some_and(|required| required.iter().any(|name| name == field))
}

/// The first sentence: enough for `kubectl explain`, and the definition stays small enough for any way of applying it.
fn first_sentence(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let end = line.find(". ").map_or(line.len(), |end| end + 1);
    line[..end].trim().to_owned()
}
