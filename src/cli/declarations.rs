//! From files to what they declare: the Rollouts, and all that they name as far as it is there too.
//!
//! Reading is the sync's own ([`crate::controllers::manifests`]), so a file that passes here is read the same
//! way by the operator. Every fault is told with its document and field, not only the first one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::core::DynamicObject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::analysis::resolve::{Template, check_template};
use crate::api::{AnalysisTemplateSpec, ClusterAnalysisTemplateSpec, GROUP, RolloutSpec, VERSION};
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{Key, RolloutObject, decode};
use crate::controllers::manifests::{self, Manifest};

/// The most bytes that are read, of all files together.
const MAX_BYTES: u64 = 64 << 20;
/// How deep directories are read.
const MAX_DEPTH: usize = 16;
/// Where a Rollout without a namespace is taken to be.
const DEFAULT_NAMESPACE: &str = "default";

/// What the files declare.
pub struct Declarations {
    /// The Rollouts that make sense, in the order of the files.
    pub rollouts: Vec<Declaration>,
    /// All objects of kinds that matter to a Rollout.
    pub index: Index,
    /// What is wrong, each with its document and field.
    pub errors: Vec<String>,
}

/// A Rollout in a file.
#[derive(Clone, Debug)]
pub struct Declaration {
    /// Where it is declared, and what it is: `web.yaml, document 2 (Rollout shop/web)`.
    pub place: String,
    /// The Rollout.
    pub rollout: Arc<RolloutObject>,
    /// Its spec.
    pub spec: RolloutSpec,
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// By the operating system's word.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Too much.
    #[error("{}: the files hold more than {} MiB", path.display(), MAX_BYTES >> 20)]
    TooLarge {
        /// What was asked for.
        path: PathBuf,
    },
    /// Nothing to read.
    #[error("{}: no .yaml, .yml or .json file in it", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

/// Reads a file, a directory (with all below it), or standard input (`-`).
///
/// # Errors
/// When something cannot be read; what is read and makes no sense is in the result.
pub fn read(path: &Path) -> Result<Declarations, ReadError> {
    let mut files = Vec::new();
    let mut budget = MAX_BYTES;
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        let wrong = |error| ReadError::File { path: "standard input".into(), error };
        io::stdin().lock().take(budget + 1).read_to_end(&mut bytes).map_err(wrong)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > budget {
            return Err(ReadError::TooLarge { path: path.to_owned() });
        }
        files.push(("standard input.yaml".to_owned(), bytes));
    } else {
        collect(path, path, 0, &mut budget, &mut files)?;
        if files.is_empty() {
            return Err(ReadError::Empty { path: path.to_owned() });
        }
    }
    let mut declarations = declared(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    for error in &mut declarations.errors {
        *error = error.replace("standard input.yaml", "standard input");
    }
    Ok(declarations)
}

fn collect(
    root: &Path,
    path: &Path,
    depth: usize,
    budget: &mut u64,
    files: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), ReadError> {
    let wrong = |error| ReadError::File { path: path.to_owned(), error };
    let metadata = fs::metadata(path).map_err(wrong)?;
    if metadata.is_dir() {
        if depth >= MAX_DEPTH {
            return Ok(());
        }
        let entries: Result<Vec<_>, _> = fs::read_dir(path).map_err(wrong)?.collect();
        let mut entries: Vec<PathBuf> = entries.map_err(wrong)?.into_iter().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            let hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let is_manifest =
                entry.extension().is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
            // Links are not followed below the root: a directory is taken for what it holds.
            let kind = fs::symlink_metadata(&entry).map_err(wrong)?;
            if !hidden && (kind.is_dir() || (kind.is_file() && is_manifest)) {
                collect(root, &entry, depth + 1, budget, files)?;
            }
        }
        return Ok(());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|file| file.take(*budget + 1).read_to_end(&mut bytes)).map_err(wrong)?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    *budget = budget.checked_sub(length).ok_or_else(|| ReadError::TooLarge { path: root.to_owned() })?;
    let name = if depth == 0 {
        path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy()).into_owned()
    } else {
        path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
    };
    // A file that is named on the command line is meant, whatever its ending is.
    let known = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
    files.push((if known { name } else { format!("{}.yaml", name.trim_start_matches('.')) }, bytes));
    Ok(())
}

/// What files declare, given their names and bytes.
pub fn declared<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Declarations {
    let index = Index::default();
    let mut rollouts = Vec::new();
    let (manifests, mut errors) = match manifests::parse(files) {
        Ok(manifests) => (manifests, Vec::new()),
        Err(errors) => (Vec::new(), errors.iter().map(ToString::to_string).collect()),
    };
    let mut seen = BTreeSet::new();
    for manifest in manifests {
        let Some(kind) = kind_of(&manifest, &mut errors) else { continue };
        let Some(object) = object(&manifest, kind) else { continue };
        let place = place(&manifest, &object);
        let key = Key::new(
            object.metadata.namespace.clone().unwrap_or_default(),
            object.metadata.name.clone().unwrap_or_default(),
        );
        if !seen.insert((kind, key.clone())) {
            errors.push(format!("{place}: is declared a second time"));
            continue;
        }
        let spec = manifest.object.get("spec").unwrap_or(&Value::Null);
        let faults = match kind {
            Kind::Rollout => faults::<RolloutSpec>(spec),
            Kind::AnalysisTemplate => template_faults(spec, |spec: &AnalysisTemplateSpec| {
                check_template(&Template::namespaced(&manifest.name, spec))
            }),
            Kind::ClusterAnalysisTemplate => template_faults(spec, |spec: &ClusterAnalysisTemplateSpec| {
                check_template(&Template::cluster(&manifest.name, spec))
            }),
            _ => Vec::new(),
        };
        let sound = faults.is_empty();
        errors.extend(faults.into_iter().map(|fault| format!("{place}: {fault}")));
        index.apply(kind, &object);
        if kind == Kind::Rollout
            && sound
            && let Some(rollout) = index.rollout(&key)
            && let Ok(spec) = rollout.spec.clone()
        {
            rollouts.push(Declaration { place, rollout, spec });
        }
    }
    Declarations { rollouts, index, errors }
}

fn kind_of(manifest: &Manifest, errors: &mut Vec<String>) -> Option<Kind> {
    let kinds = [
        Kind::Rollout,
        Kind::AnalysisTemplate,
        Kind::ClusterAnalysisTemplate,
        Kind::MetricProvider,
        Kind::ClusterMetricProvider,
        Kind::Service,
        Kind::HttpRoute,
    ];
    let group = manifests::group_of(&manifest.api_version);
    let found = kinds.into_iter().find(|kind| kind.name() == manifest.kind && kind.resource().group == group);
    let ours = format!("{GROUP}/{VERSION}");
    if found.is_none() && manifest.kind == "Rollout" {
        errors.push(format!(
            "{} (Rollout {}): apiVersion: {} is another project's Rollout; Sluice reads {ours}",
            manifest.place, manifest.name, manifest.api_version
        ));
    }
    if found.is_some() && group == GROUP && manifest.api_version != ours {
        errors.push(format!("{manifest}: apiVersion: {} is not served; write {ours}", manifest.api_version));
        return None;
    }
    found
}

/// The object as the cluster would keep it: with a namespace, and an identity of its own.
fn object(manifest: &Manifest, kind: Kind) -> Option<DynamicObject> {
    let mut object: DynamicObject = serde_json::from_value(manifest.object.clone()).ok()?;
    if !kind.is_cluster_scoped() && object.metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        object.metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    object.metadata.uid = Some(format!("declared-{}-{}", manifest.kind, manifest.name).to_lowercase());
    object.metadata.generation = Some(1);
    object.metadata.resource_version = Some("1".to_owned());
    // A status in a file says nothing about any cluster.
    if let Some(data) = object.data.as_object_mut() {
        data.remove("status");
    }
    Some(object)
}

fn place(manifest: &Manifest, object: &DynamicObject) -> String {
    let namespace = object.metadata.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{} ({} {namespace}{})", manifest.place, manifest.kind, manifest.name)
}

/// What does not decode, and what decodes but was not read: a field that is misspelt would be dropped in
/// silence otherwise.
fn faults<Spec: DeserializeOwned + Serialize>(spec: &Value) -> Vec<String> {
    match decode::<Spec>(spec, "spec") {
        Err(trouble) => vec![trouble.to_string()],
        Ok(understood) => {
            let understood = serde_json::to_value(&understood).unwrap_or_default();
            let mut unknown = Vec::new();
            unread(spec, &understood, "spec", &mut unknown);
            unknown
        }
    }
}

fn template_faults<Spec: DeserializeOwned + Serialize, Fault: std::fmt::Display>(
    spec: &Value,
    check: impl Fn(&Spec) -> Vec<Fault>,
) -> Vec<String> {
    let mut found = faults::<Spec>(spec);
    if found.is_empty()
        && let Ok(spec) = decode::<Spec>(spec, "spec")
    {
        found.extend(check(&spec).iter().map(ToString::to_string));
    }
    found
}

fn unread(given: &Value, understood: &Value, path: &str, unknown: &mut Vec<String>) {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => {
            for (key, value) in given {
                match understood.get(key) {
                    Some(counterpart) => unread(value, counterpart, &format!("{path}.{key}"), unknown),
                    // An empty value may be left out when it is written back.
                    None if is_empty(value) => {}
                    None => unknown.push(format!("{path}.{key}: there is no such field")),
                }
            }
        }
        (Value::Array(given), Value::Array(understood)) => {
            for (number, (value, counterpart)) in given.iter().zip(understood).enumerate() {
                unread(value, counterpart, &format!("{path}[{number}]"), unknown);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Declarations {
        declared([("web.yaml", text.as_bytes())])
    }

    const ROLLOUT: &str = "
apiVersion: sluice.dev/v1alpha1
kind: Rollout
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: 'web:v1', unheardOf: 1}]}}
  strategy: {canary: {steps: [{setWeight: 20}, {pause: {}}]}}
";

    #[test]
    fn fields_newer_than_us_in_the_template_pass_and_misspelt_ones_of_ours_do_not() {
        let declarations = read_text(ROLLOUT);
        assert_eq!(declarations.errors, Vec::<String>::new());
        assert_eq!(declarations.rollouts.len(), 1);
        let wrong = read_text(&ROLLOUT.replace("setWeight: 20", "setWieght: 20"));
        assert_eq!(
            wrong.errors,
            [
                "web.yaml, document 1 (Rollout shop/web): spec.strategy.canary.steps[0].setWieght: there is no such field"
            ]
        );
        assert!(wrong.rollouts.is_empty());
    }

    #[test]
    fn every_fault_has_its_document_and_field() {
        let text = format!(
            "{}---{}---{}",
            ROLLOUT.replace("setWeight: 20", "setWeight: twenty"),
            ROLLOUT.replace("sluice.dev", "argoproj.io"),
            ROLLOUT.replace("name: web, namespace: shop", "name: other")
        );
        let declarations = read_text(&text);
        assert_eq!(declarations.errors.len(), 2, "{:?}", declarations.errors);
        let bad = &declarations.errors[0];
        assert!(
            bad.starts_with("web.yaml, document 1 (Rollout shop/web): spec.strategy.canary.steps[0].setWeight: "),
            "{bad}"
        );
        assert!(declarations.errors[1].contains("document 2 (Rollout web): apiVersion: argoproj.io"));
        assert_eq!(declarations.rollouts[0].place, "web.yaml, document 3 (Rollout default/other)");
    }
}
