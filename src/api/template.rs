//! The pod template of a Rollout, kept as the JSON it was stored as.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::names;

/// A pod template as opaque JSON: a field that is newer than our bindings must survive the way into a
/// ReplicaSet, which a typed round trip would drop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(pub Value);

impl PodTemplate {
    /// The full SHA-256 over the canonical JSON (keys sorted, no white space): version 1 of the algorithm.
    /// It reads what is stored and nothing of ours, so neither an operator's upgrade nor a changed child
    /// makes a new revision (argo-rollouts #4696).
    pub fn hash_v1(&self) -> String {
        names::hex(&Sha256::digest(canonical_json(&self.0)))
    }

    /// The revision's name: the first letters of the hash.
    pub fn revision(&self) -> String {
        self.hash_v1().chars().take(names::REVISION_LENGTH).collect()
    }

    /// There is none: it is kept elsewhere.
    pub fn is_absent(&self) -> bool {
        self.0.is_null()
    }

    /// The labels of the pods.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.0.pointer("/metadata/labels").and_then(Value::as_object);
        labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// The images of the containers, in order, with the container's name.
    pub fn images(&self) -> impl Iterator<Item = (&str, &str)> {
        let containers = self.0.pointer("/spec/containers").and_then(Value::as_array);
        containers
            .into_iter()
            .flatten()
            .filter_map(|container| Some((container.get("name")?.as_str()?, container.get("image")?.as_str()?)))
    }
}

/// The text of `value` with sorted keys and no white space, whatever map the JSON library is built with: what
/// digests are made of.
pub fn canonical_json(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    text
}

fn canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(item, out);
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

impl JsonSchema for PodTemplate {
    fn schema_name() -> Cow<'static, str> {
        "PodTemplate".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "The pods' template, as in a Deployment.",
            "x-kubernetes-preserve-unknown-fields": true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::PodTemplate;
    use serde_json::json;

    #[test]
    fn the_hash_is_of_the_content_and_never_changes() {
        let a = PodTemplate(
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}),
        );
        let b: PodTemplate = serde_json::from_str(
            r#"{"spec":{"containers":[{"image":"i:1","name":"c"}]}, "metadata":{"labels":{"app":"web"}}}"#,
        )
        .unwrap();
        assert_eq!(a.hash_v1(), b.hash_v1());
        // Written down: a release in which this changes would roll every workload out again.
        assert_eq!(a.revision(), "d099dfbdf7");
        assert_eq!(a.images().collect::<Vec<_>>(), [("c", "i:1")]);
    }
}
