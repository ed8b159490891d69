//! What Prometheus scrapes: pods that ask for it by annotation, written to a file as they come and go.

use std::path::Path;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use serde_json::{Map, Value, json};

/// The operator's label on pods.
const REVISION: &str = "sluice.dev/revision";

/// Writes the pods with the annotation `prometheus.io/scrape: "true"` to `file`, for as long as it runs. Every label
/// of a pod becomes a label of its samples, beside `namespace`, `pod` and `revision`.
pub async fn write_targets(client: Client, file: &Path) -> Result<()> {
    write(file, &[])?;
    let (reader, writer) = reflector::store();
    let pods = watcher(Api::<Pod>::all(client), watcher::Config::default());
    let mut changes = pods.default_backoff().reflect(writer).touched_objects().boxed();
    let mut last = Vec::new();
    loop {
        match changes.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            // The API server may be paused or killed by a test; the watch goes on by itself.
            Err(_) => continue,
        }
        let mut targets: Vec<Value> = reader.state().iter().filter_map(|pod| target(pod)).collect();
        targets.sort_by_key(Value::to_string);
        if targets != last {
            write(file, &targets)?;
            last = targets;
        }
    }
}

fn write(file: &Path, targets: &[Value]) -> Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_string_pretty(targets)?)?;
    // In one step, so that Prometheus never reads half of it.
    std::fs::rename(&new, file).with_context(|| file.display().to_string())
}

fn target(pod: &Pod) -> Option<Value> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let wanted = |name: &str| annotations.get(&format!("prometheus.io/{name}"));
    let phase = pod.status.as_ref()?.phase.as_deref();
    if wanted("scrape")? != "true" || phase != Some("Running") {
        return None;
    }
    let address = pod.status.as_ref()?.pod_ip.as_ref()?;
    let port = wanted("port").map_or("8080", String::as_str);
    let mut labels = Map::new();
    for (name, value) in pod.metadata.labels.iter().flatten() {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        labels.insert(name, json!(value));
    }
    // The short name that queries use.
    if let Some(revision) =
        pod.metadata.labels.iter().flatten().find(|(name, _)| *name == REVISION).map(|(_, value)| value)
    {
        labels.insert("revision".to_owned(), json!(revision));
    }
    labels.insert("namespace".to_owned(), json!(pod.metadata.namespace));
    labels.insert("pod".to_owned(), json!(pod.metadata.name));
    if let Some(path) = wanted("path") {
        labels.insert("__metrics_path__".to_owned(), json!(path));
    }
    Some(json!({"targets": [format!("{address}:{port}")], "labels": labels}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: Value) -> Pod {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_pod_that_asks_for_it_is_scraped_with_its_labels() {
        let found = target(&pod(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app.kubernetes.io/name": "web", REVISION: "abc"},
                         "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9000"}},
            "status": {"phase": "Running", "podIP": "10.0.0.7"},
        })))
        .unwrap();
        assert_eq!(found["targets"], json!(["10.0.0.7:9000"]));
        assert_eq!(
            found["labels"],
            json!({"app_kubernetes_io_name": "web", "sluice_dev_revision": "abc", "revision": "abc", "namespace": "shop", "pod": "web-1"})
        );
    }

    #[test]
    fn others_are_not() {
        let asks = json!({"prometheus.io/scrape": "true"});
        let base = |annotations: &Value, phase: &str| {
            pod(json!({"metadata": {"name": "a", "annotations": annotations},
                       "status": {"phase": phase, "podIP": "10.0.0.7"}}))
        };
        assert!(target(&base(&asks, "Running")).is_some());
        assert!(target(&base(&asks, "Succeeded")).is_none());
        assert!(target(&base(&json!({}), "Running")).is_none());
        assert!(target(&pod(json!({"metadata": {"annotations": asks}, "status": {"phase": "Running"}}))).is_none());
    }
}
