//! From files to what they declare: the Rollouts, and all that they name as far as it is there too.
//!
//! Reading is the sync's own ([`crate::controllers::manifests`]), so a file that passes here is read the same
//! way by the operator. Every fault is told with its document and field, not only the first one.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::crds::CrdError;
use super::schema::{Flaw, Schemas};
use crate::analysis::resolve::{Template, check_template};
use crate::api::{AnalysisTemplateSpec, ClusterAnalysisTemplateSpec, GROUP, RolloutSpec, VERSION};
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{Key, RolloutObject, Undecodable, decode};
use crate::cluster::observe::observe;
use crate::controllers::manifests::{self, Manifest, ManifestError, ObjectId, Place};
use crate::engine::plan::plan;
use crate::engine::{LedgerState, Problem};

/// The most bytes that are read, of all files together.
const MAX_BYTES: u64 = 64 << 20;
/// How deep directories are read.
const MAX_DEPTH: usize = 16;
/// Where a Rollout without a namespace is taken to be.
const DEFAULT_NAMESPACE: &str = "default";

/// What standard input is called, and what it is read as.
const STANDARD_INPUT: (&str, &str) = ("standard input", "standard input.yaml");

/// What the files declare.
pub struct Declarations {
    /// The Rollouts that can be read, in the order of the files.
    pub rollouts: Vec<Declaration>,
    /// All objects of kinds that matter to a Rollout.
    pub index: Index,
    /// What is wrong with anything but the Rollouts above, each with its document and field.
    pub errors: Vec<Fault>,
    /// Objects of other projects that are easily taken for ours.
    pub foreign: Vec<Fault>,
    /// How many objects there are, of any kind.
    pub objects: usize,
    /// How many of them are of our kinds.
    pub own: usize,
    /// The kinds of the objects that were looked at.
    kinds: BTreeSet<Kind>,
    /// What a Rollout would say of the templates it names, and what is among the errors already.
    told: BTreeSet<String>,
}

/// A Rollout in a file.
#[derive(Clone, Debug)]
pub struct Declaration {
    /// Where it is declared, and what it is.
    pub origin: Origin,
    /// The Rollout.
    pub rollout: Arc<RolloutObject>,
    /// Its spec.
    pub spec: RolloutSpec,
    /// What an API server would refuse of it.
    flaws: Vec<Flaw>,
}

/// Where something is declared, and what it is as far as that is known: `web.yaml, document 2 (Rollout shop/web)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file; none when it is about all of them.
    pub file: Option<String>,
    /// The document in the file, from 1; none when it is about the whole file.
    pub document: Option<usize>,
    /// The line of the file, from 1: of the fault when it is known, else of the document's beginning.
    pub line: Option<usize>,
    /// The object.
    pub object: Option<ObjectId>,
}

impl Origin {
    /// Without the file where there is a document, for whoever knows which file was read.
    pub fn within_file(&self) -> Self {
        Self { file: self.file.clone().filter(|_| self.document.is_none()), ..self.clone() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let document = self.document.map(|number| format!("document {number}"));
        let parts: Vec<&str> = self.file.as_deref().into_iter().chain(document.as_deref()).collect();
        formatter.write_str(&parts.join(", "))?;
        match &self.object {
            Some(object) => write!(formatter, " ({object})"),
            None => Ok(()),
        }
    }
}

/// Something that must be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub origin: Origin,
    /// The path of the field from the object's root, when one is to blame.
    pub field: Option<String>,
    /// What is wrong and how it is mended.
    pub message: String,
    /// It may be right after all: a field of a pod template that is newer than our schema.
    pub doubtful: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin.to_string();
        let parts = [Some(origin.as_str()).filter(|text| !text.is_empty()), self.field.as_deref(), Some(&self.message)];
        formatter.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(": "))
    }
}

impl Fault {
    /// A problem of the operator's condition.
    pub fn of_problem(origin: &Origin, problem: Problem) -> Self {
        let Problem { field, message, .. } = problem;
        let prefix = field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
        let message = message.strip_prefix(&prefix).unwrap_or(&message).to_owned();
        Self { origin: origin.clone(), field, message, doubtful: false }
    }

    fn of_flaw(origin: &Origin, flaw: Flaw) -> Self {
        Self { origin: origin.clone(), field: Some(flaw.field), message: flaw.message, doubtful: flaw.doubtful }
    }

    /// Whether the other is about the same field, or about one within it.
    fn covers(&self, other: &Flaw) -> bool {
        self.field.as_deref().is_some_and(|field| is_within(field, &other.field))
    }
}

impl From<ManifestError> for Fault {
    fn from(error: ManifestError) -> Self {
        let at = |place: Place, object: Option<ObjectId>| Origin {
            file: Some(place.file),
            document: Some(place.document),
            line: Some(place.line),
            object,
        };
        match error {
            ManifestError::Syntax { place, message } => {
                let line = message.strip_prefix("line ").and_then(|rest| rest.split(',').next()?.parse().ok());
                let origin = at(place, None);
                Self { origin: Origin { line: line.or(origin.line), ..origin }, field: None, message, doubtful: false }
            }
            ManifestError::Field { place, field, message } => {
                Self { origin: at(place, None), field: Some(field), message, doubtful: false }
            }
            ManifestError::NotText { ref file } | ManifestError::NotRendered { ref file, .. } => {
                let text = error.to_string();
                let message = text.strip_prefix(&format!("{file}: ")).unwrap_or(&text).to_owned();
                let origin = Origin { file: Some(file.clone()), ..Origin::default() };
                Self { origin, field: None, message, doubtful: false }
            }
            // About all files, or about what only a cluster knows.
            other => Self { origin: Origin::default(), field: None, message: other.to_string(), doubtful: false },
        }
    }
}

fn is_within(field: &str, outer: &str) -> bool {
    field.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What is to be said of one Rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What is wrong with it, in the words of the operator's condition where it has some.
    pub faults: Vec<Fault>,
    /// What it names and the files do not hold.
    pub absent: Vec<Problem>,
}

impl Declarations {
    /// What is wrong with a Rollout among the others: by the operator's own checks, and by the definition.
    ///
    /// Each field is told of once, by the operator's word first.
    pub fn judge(&self, declaration: &Declaration) -> Verdict {
        let origin = &declaration.origin;
        let mut problems = plan(&declaration.spec).err().unwrap_or_default();
        let ledger = LedgerState { read: true, ..LedgerState::default() };
        let mut verdict = Verdict::default();
        match observe(&self.index, &declaration.rollout, ledger, 0) {
            Ok(snapshot) => problems.extend(snapshot.problems),
            Err(Undecodable { field, message }) => {
                verdict.faults.push(Fault { origin: origin.clone(), field: Some(field), message, doubtful: false });
            }
        }
        for problem in problems {
            if problem.reason.ends_with("NotFound") {
                verdict.absent.push(problem);
            } else {
                let fault = Fault::of_problem(origin, problem);
                if !verdict.faults.contains(&fault) {
                    verdict.faults.push(fault);
                }
            }
        }
        let said = verdict.faults.len();
        for flaw in &declaration.flaws {
            if !verdict.faults[..said].iter().any(|fault| fault.covers(flaw)) {
                verdict.faults.push(Fault::of_flaw(origin, flaw.clone()));
            }
        }
        verdict
    }

    /// Whether the files are where something absent is to be looked for. What administrators keep for everybody is
    /// hardly in the files of a team: only files that hold some of it are taken to hold all of it.
    pub fn should_hold(&self, absent: &Problem) -> bool {
        match absent.reason.as_str() {
            "MetricProviderNotFound" => {
                [Kind::MetricProvider, Kind::ClusterMetricProvider].iter().any(|kind| self.kinds.contains(kind))
            }
            "AnalysisTemplateNotFound" if absent.message.starts_with(Kind::ClusterAnalysisTemplate.name()) => {
                self.kinds.contains(&Kind::ClusterAnalysisTemplate)
            }
            _ => true,
        }
    }

    /// Whether a fault of a Rollout is one of a template that is among the errors itself.
    pub fn is_told(&self, fault: &Fault) -> bool {
        self.told.contains(&fault.message)
    }
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
    /// The definitions that objects are checked against. A fault of this program.
    #[error(transparent)]
    Definitions(#[from] CrdError),
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
        let wrong = |error| ReadError::File { path: STANDARD_INPUT.0.into(), error };
        io::stdin().lock().take(budget + 1).read_to_end(&mut bytes).map_err(wrong)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > budget {
            return Err(ReadError::TooLarge { path: path.to_owned() });
        }
        files.push((STANDARD_INPUT.1.to_owned(), bytes));
    } else {
        collect(path, path, 0, &mut budget, &mut files)?;
        if files.is_empty() {
            return Err(ReadError::Empty { path: path.to_owned() });
        }
    }
    Ok(declared(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))?)
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
///
/// # Errors
/// When the definitions cannot be made, which is a fault of this program.
pub fn declared<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Declarations, CrdError> {
    let schemas = Schemas::load()?;
    let (manifests, errors) = manifests::read(files);
    let mut found = Declarations {
        rollouts: Vec::new(),
        index: Index::default(),
        errors: errors.into_iter().map(Fault::from).collect(),
        foreign: Vec::new(),
        objects: manifests.len(),
        own: 0,
        kinds: BTreeSet::new(),
        told: BTreeSet::new(),
    };
    let mut seen = BTreeSet::new();
    for manifest in &manifests {
        found.add(manifest, &schemas, &mut seen);
    }
    for declaration in &mut found.rollouts {
        // A workload that keeps the template may stand behind its Rollout, or in another file.
        if let Some(rollout) = found.index.rollout(&declaration.rollout.identity.key())
            && let Ok(spec) = &rollout.spec
        {
            declaration.spec = spec.clone();
            declaration.rollout = rollout;
        }
    }
    for fault in found.errors.iter_mut().chain(&mut found.foreign) {
        rename_standard_input(&mut fault.origin);
    }
    for declaration in &mut found.rollouts {
        rename_standard_input(&mut declaration.origin);
    }
    Ok(found)
}

fn rename_standard_input(origin: &mut Origin) {
    if let Some(file) = origin.file.as_mut().filter(|file| *file == STANDARD_INPUT.1) {
        STANDARD_INPUT.0.clone_into(file);
    }
}

impl Declarations {
    fn add(&mut self, manifest: &Manifest, schemas: &Schemas, seen: &mut BTreeSet<ObjectId>) {
        let group = manifests::group_of(&manifest.api_version);
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == manifest.kind && kind.resource().group == group);
        let origin = origin(manifest, kind);
        let fault = |field: &str, message: String| Fault {
            origin: origin.clone(),
            field: Some(field.to_owned()).filter(|field| !field.is_empty()),
            message,
            doubtful: false,
        };
        if let Some(message) = foreign(manifest, group) {
            self.foreign.push(fault("apiVersion", message));
            return;
        }
        let ours = format!("{GROUP}/{VERSION}");
        if group == GROUP {
            self.own += 1;
            if manifest.api_version != ours {
                let message = format!("{} is not served; write {ours}", manifest.api_version);
                self.errors.push(fault("apiVersion", message));
                return;
            }
            if kind.is_none() {
                let hint = schemas.near(&manifest.kind).map(|near| format!("; did you mean {near}?"));
                let message = format!("there is no kind {} in {ours}{}", manifest.kind, hint.unwrap_or_default());
                self.errors.push(fault("kind", message));
            }
        }
        let Some(kind) = kind else { return };
        self.kinds.insert(kind);
        let Some(object) = object(manifest, kind) else { return };
        if let Some(object) = &origin.object
            && !seen.insert(object.clone())
        {
            self.errors.push(fault("", "is declared a second time".to_owned()));
            return;
        }
        if kind.is_cluster_scoped() && !manifest.namespace.is_empty() {
            let message = format!("{} is cluster-scoped and has no namespace; remove the field", manifest.kind);
            self.errors.push(fault("metadata.namespace", message));
        }
        let flaws = match group {
            GROUP => schemas.check(kind.name(), &manifest.object).unwrap_or_default(),
            _ => Vec::new(),
        };
        let spec = manifest.object.get("spec").unwrap_or(&Value::Null);
        match kind {
            Kind::Rollout => match understood::<RolloutSpec>(spec, flaws) {
                Ok((spec, flaws)) => {
                    self.index.apply(kind, &object);
                    let key = Key::new(
                        object.metadata.namespace.clone().unwrap_or_default(),
                        object.metadata.name.clone().unwrap_or_default(),
                    );
                    if let Some(rollout) = self.index.rollout(&key) {
                        self.rollouts.push(Declaration { origin, rollout, spec, flaws });
                    }
                    return;
                }
                Err(flaws) => self.flawed(&origin, flaws),
            },
            Kind::AnalysisTemplate => self.template(&origin, spec, flaws, |spec: &AnalysisTemplateSpec| {
                check_template(&Template::namespaced(&manifest.name, spec))
            }),
            Kind::ClusterAnalysisTemplate => {
                self.template(&origin, spec, flaws, |spec: &ClusterAnalysisTemplateSpec| {
                    check_template(&Template::cluster(&manifest.name, spec))
                })
            }
            _ => self.flawed(&origin, flaws),
        }
        // A person's word and a run in a file are no facts of any cluster.
        if !matches!(kind, Kind::Intervention | Kind::AnalysisRun | Kind::ReplicaSet | Kind::EndpointSlice) {
            self.index.apply(kind, &object);
        }
    }

    fn flawed(&mut self, origin: &Origin, flaws: Vec<Flaw>) {
        self.errors.extend(flaws.into_iter().map(|flaw| Fault::of_flaw(origin, flaw)));
    }

    fn template<Spec: DeserializeOwned>(
        &mut self,
        origin: &Origin,
        spec: &Value,
        flaws: Vec<Flaw>,
        check: impl Fn(&Spec) -> Vec<crate::analysis::resolve::Fault>,
    ) {
        let name = origin.object.as_ref().map(|object| object.name.as_str()).unwrap_or_default();
        match understood::<Spec>(spec, flaws) {
            Ok((spec, flaws)) => {
                let mut faults = Vec::new();
                for fault in check(&spec) {
                    self.told.insert(fault.to_string());
                    // The place begins with the template, which the origin tells already.
                    let field = fault.place.split_once("\" ").map(|(_, field)| field.to_owned());
                    faults.push(Fault { origin: origin.clone(), field, message: fault.message, doubtful: false });
                }
                let said = |flaw: &Flaw| faults.iter().any(|fault| fault.covers(flaw));
                let flaws: Vec<Flaw> = flaws.into_iter().filter(|flaw| !said(flaw)).collect();
                self.errors.extend(faults);
                self.flawed(origin, flaws);
            }
            Err(flaws) => {
                self.told.extend(flaws.iter().map(|flaw| format!("template {name}: {}: {}", flaw.field, flaw.message)));
                self.flawed(origin, flaws);
            }
        }
    }
}

/// The spec and what an API server would refuse of it, or what makes it unreadable: in the words that the operator
/// would have for it, and all the rest that an API server would refuse.
fn understood<Spec: DeserializeOwned>(spec: &Value, mut flaws: Vec<Flaw>) -> Result<(Spec, Vec<Flaw>), Vec<Flaw>> {
    match decode(spec, "spec") {
        Ok(spec) => Ok((spec, flaws)),
        Err(Undecodable { field, message }) => {
            if let Some(flaw) = flaws.iter_mut().find(|flaw| flaw.field == field) {
                // Of the whole spec the operator says how it is built inside, which helps nobody.
                if field != "spec" {
                    flaw.message = message;
                }
            } else if !flaws.iter().any(|flaw| is_within(&flaw.field, &field)) {
                flaws.push(Flaw { field, message, doubtful: false });
            }
            Err(flaws)
        }
    }
}

/// What is said of an object that only looks like one of ours.
fn foreign(manifest: &Manifest, group: &str) -> Option<String> {
    let own = match (group, manifest.kind.as_str()) {
        (GROUP, _) => return None,
        (_, "Rollout") | ("flagger.app", "Canary") => Some("Rollout"),
        ("argoproj.io", "AnalysisTemplate") | ("flagger.app", "MetricTemplate") => Some("AnalysisTemplate"),
        ("argoproj.io", "ClusterAnalysisTemplate") => Some("ClusterAnalysisTemplate"),
        ("argoproj.io", "AnalysisRun" | "Experiment") | ("flagger.app", "AlertProvider") => None,
        _ => return None,
    };
    let cure = own.map(|kind| format!("; write it as {kind} of {GROUP}/{VERSION}")).unwrap_or_default();
    let Manifest { api_version, kind, .. } = manifest;
    Some(format!("{api_version} is another project's {kind} and is not read by Sluice{cure}"))
}

/// The object as the cluster would keep it: with a namespace, and an identity of its own.
fn object(manifest: &Manifest, kind: Kind) -> Option<DynamicObject> {
    let read = serde_json::from_value(manifest.object.clone()).or_else(|_| {
        // Metadata of a wrong form is a flaw of its own, and hides nothing else.
        let mut value = manifest.object.clone();
        value["metadata"] = json!({"name": manifest.name, "namespace": manifest.namespace});
        serde_json::from_value(value)
    });
    let mut object: DynamicObject = read.ok()?;
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

fn origin(manifest: &Manifest, kind: Option<Kind>) -> Origin {
    let mut object = manifest.id();
    if object.namespace.is_empty() && kind.is_some_and(|kind| !kind.is_cluster_scoped()) {
        DEFAULT_NAMESPACE.clone_into(&mut object.namespace);
    }
    if kind.is_some_and(Kind::is_cluster_scoped) {
        object.namespace.clear();
    }
    let Place { file, document, line } = manifest.place.clone();
    Origin { file: Some(file), document: Some(document), line: Some(line), object: Some(object) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Declarations {
        declared([("web.yaml", text.as_bytes())]).unwrap()
    }

    /// Everything that is wrong, but for what is missing and for a router, which these have none of.
    fn told(declarations: &Declarations) -> Vec<String> {
        let rollouts = declarations.rollouts.iter().flat_map(|declaration| declarations.judge(declaration).faults);
        let all = declarations.errors.iter().cloned().chain(rollouts).chain(declarations.foreign.iter().cloned());
        let known = [".trafficRouting", ".stableService", ".canaryService"];
        all.filter(|fault| !known.iter().any(|end| fault.field.as_ref().is_some_and(|field| field.ends_with(end))))
            .map(|fault| fault.to_string())
            .collect()
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
        assert_eq!(told(&declarations), Vec::<String>::new());
        assert_eq!(declarations.rollouts.len(), 1);
        let wrong = read_text(&ROLLOUT.replace("{setWeight: 20}", "{setWeight: 20, setWieght: 20}"));
        let misspelt =
            "web.yaml, document 1 (Rollout shop/web): spec.strategy.canary.steps[0].setWieght: there is no such field";
        assert_eq!(told(&wrong), [misspelt]);
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
        let told = told(&declarations);
        assert_eq!(
            told,
            [
                "web.yaml, document 1 (Rollout shop/web): spec.strategy.canary.steps[0].setWeight: invalid type: \
                 string \"twenty\", expected i32",
                "web.yaml, document 2 (Rollout shop/web): apiVersion: argoproj.io/v1alpha1 is another project's \
                 Rollout and is not read by Sluice; write it as Rollout of sluice.dev/v1alpha1",
            ]
        );
        assert_eq!(declarations.rollouts[0].origin.to_string(), "web.yaml, document 3 (Rollout default/other)");
    }
}
