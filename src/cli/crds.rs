//! `sluice crds`: the custom resource definitions, generated from `api`.
//!
//! What the derived schemas cannot say is added here, the same way for every kind: the pod template has the API
//! server's own schema, so that its lists merge by the same keys as in a Deployment; an explicit null is the same
//! as an absent field; and integers have only formats that OpenAPI knows.

use std::io::{self, Write};
use std::path::PathBuf;

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::api::{
    AnalysisRun, AnalysisTemplate, ClusterAnalysisTemplate, ClusterMetricProvider, DeployRepo, Intervention,
    MetricProvider, Rollout,
};

/// The schema of a pod template as Kubernetes 1.34 serves it; made by `examples/pod_template_schema.rs`.
const POD_TEMPLATE: &str = include_str!("pod_template.schema.json");

/// What `sluice crds` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Write one file for each kind into this directory instead of printing; may be given more than once
    #[arg(long, value_name = "DIR")]
    pub write: Vec<PathBuf>,
}

/// Why the definitions could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum CrdError {
    /// A definition has not the form it must have. A fault of this program.
    #[error("the definition of {kind} {what}")]
    Malformed {
        /// The kind.
        kind: String,
        /// In which way.
        what: String,
    },
    /// A definition has no form in JSON or YAML. A fault of this program.
    #[error("the definition cannot be written as text: {0}")]
    Text(String),
    /// A directory or file could not be written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

/// One definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The plural name, which is also the name of its file.
    pub plural: String,
    /// The whole object.
    pub object: Value,
}

impl Definition {
    /// The name of its file.
    pub fn file_name(&self) -> String {
        format!("{}.yaml", self.plural)
    }

    /// As YAML.
    ///
    /// # Errors
    /// When it has no form in YAML.
    pub fn yaml(&self) -> Result<String, CrdError> {
        serde_saphyr::to_string(&self.object).map_err(|error| CrdError::Text(error.to_string()))
    }
}

/// Prints the definitions, or writes them into the directories.
///
/// # Errors
/// When a definition cannot be made or written.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> Result<(), CrdError> {
    let definitions = definitions()?;
    if arguments.write.is_empty() {
        for definition in &definitions {
            write!(out, "---\n{}", definition.yaml()?)?;
        }
        return Ok(());
    }
    for directory in &arguments.write {
        let at = |path: &PathBuf| {
            let path = path.clone();
            move |source| CrdError::File { path, source }
        };
        std::fs::create_dir_all(directory).map_err(at(directory))?;
        for definition in &definitions {
            let path = directory.join(definition.file_name());
            std::fs::write(&path, definition.yaml()?).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// All definitions, by kind.
///
/// # Errors
/// When one cannot be made, which is a fault of this program.
pub fn definitions() -> Result<Vec<Definition>, CrdError> {
    [
        Rollout::crd(),
        AnalysisTemplate::crd(),
        ClusterAnalysisTemplate::crd(),
        AnalysisRun::crd(),
        MetricProvider::crd(),
        ClusterMetricProvider::crd(),
        DeployRepo::crd(),
        Intervention::crd(),
    ]
    .into_iter()
    .map(|crd| {
        let names = crd.spec.names.clone();
        let object = serde_json::to_value(crd).map_err(|error| CrdError::Text(error.to_string()))?;
        Ok(Definition { plural: names.plural, object: finish(&names.kind, object)? })
    })
    .collect()
}

fn finish(kind: &str, mut object: Value) -> Result<Value, CrdError> {
    let malformed = |what: &str| CrdError::Malformed { kind: kind.to_owned(), what: what.to_owned() };
    let schema = object
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema")
        .ok_or_else(|| malformed("has no schema in its version"))?;
    tidy(schema);
    // The derive macro describes the object by its own name; the words for people stand at the spec.
    let description = schema.pointer("/properties/spec/description").cloned().unwrap_or_default();
    let root = schema.as_object_mut().ok_or_else(|| malformed("has a schema that is no object"))?;
    root.insert("description".to_owned(), description);
    if kind == "Rollout" {
        let template =
            schema.pointer_mut("/properties/spec/properties/template").ok_or_else(|| malformed("has no template"))?;
        let mut own: Map<String, Value> =
            serde_json::from_str(POD_TEMPLATE).map_err(|error| CrdError::Text(error.to_string()))?;
        own.insert("description".to_owned(), template.get("description").cloned().unwrap_or_default());
        *template = own.into();
        fit_for_rules(template).ok_or_else(|| malformed("has a template without labels"))?;
    }
    Ok(object)
}

/// Makes one schema, and those within it, fit for an API server.
fn tidy(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        if let Some(items) = schema.as_array_mut() {
            items.iter_mut().for_each(tidy);
        }
        return;
    };
    // Without it the API server drops a null, which then is an absent field to every rule and to us alike.
    if fields.get("nullable").is_some_and(Value::is_boolean) {
        fields.remove("nullable");
    }
    if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        fields.remove("format");
    }
    if let Some(conditions) = fields.get_mut("properties").and_then(|properties| properties.get_mut("conditions"))
        && conditions.get("type") == Some(&json!("array"))
    {
        conditions["x-kubernetes-list-type"] = json!("map");
        conditions["x-kubernetes-list-map-keys"] = json!(["type"]);
    }
    fields.values_mut().for_each(tidy);
}

/// What the rules read of the template is never null, and has the bounds that it has anyway: the API server weighs
/// a rule by the longest input it may meet.
fn fit_for_rules(template: &mut Value) -> Option<()> {
    for path in ["/properties/metadata", "/properties/spec", "/properties/metadata/properties/labels"] {
        template.pointer_mut(path)?.as_object_mut()?.remove("nullable");
    }
    let labels = template.pointer_mut("/properties/metadata/properties/labels")?.as_object_mut()?;
    labels.insert("maxProperties".to_owned(), json!(256));
    labels.get_mut("additionalProperties")?.as_object_mut()?.insert("maxLength".to_owned(), json!(63));
    Some(())
}
