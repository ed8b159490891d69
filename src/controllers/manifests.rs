//! From the bytes of files to the objects they declare. Pure: no client, no git, no clock.
//!
//! What is read, and what is not:
//! - `.yaml` and `.yml` files are streams of YAML documents, `.json` files are streams of JSON values. Other
//!   files, and files or folders whose name starts with a dot (`.github/`), are left alone.
//! - Scalars mean what they mean to `kubectl`: `0644` is octal, unquoted `yes` and `on` are booleans.
//! - Empty and comment-only documents are nothing. A `List` is its items.
//! - Everything else that is not a Kubernetes object is an error. Whoever syncs a folder means it to be applied,
//!   and a file that is skipped in silence would be an object that is pruned in silence. Flux refuses such a
//!   folder as well.
//! - A kustomization and a Helm chart are refused by name: they are not rendered, and applying their pieces
//!   unrendered would be wrong.

use std::{borrow::Cow, collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::api::{canonical_json, names};

/// The most objects one DeployRepo may declare: its inventory lives in its status, and an object of the API
/// server holds about a megabyte.
pub const MAX_OBJECTS: usize = 3000;
/// How deep lists may hold lists.
const MAX_LIST_DEPTH: usize = 4;

/// Where in the source something is declared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The file's path in the repository.
    pub file: String,
    /// The document in the file, from 1. Every `---` begins one; what stands before the first `---` is one only
    /// when it holds something.
    pub document: usize,
    /// The line of the file, from 1, at which the document begins.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, document {}", self.file, self.document)
    }
}

/// What makes an object one and the same: not its version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// The API group; empty for the core group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectId {
    /// From an `apiVersion` instead of a group.
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: group_of(api_version).to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(formatter, "{} {}", self.kind, self.name),
            namespace => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// The group in an `apiVersion`; empty for the core group.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// One declared object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The object as declared, without annotations of ours.
    pub object: Value,
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its `kind`.
    pub kind: String,
    /// Its `metadata.namespace`; empty when none is declared, or after [`assign_namespaces`] when the kind has
    /// none.
    pub namespace: String,
    /// Its `metadata.name`.
    pub name: String,
    /// Where it is declared.
    pub place: Place,
    /// SHA-256 of the canonical JSON of `object`.
    pub digest: String,
}

impl Manifest {
    /// What it is, whatever its version.
    pub fn id(&self) -> ObjectId {
        ObjectId::new(&self.api_version, &self.kind, &self.namespace, &self.name)
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.place, self.id())
    }
}

/// Why a file cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Bytes that are no text.
    #[error("{file}: is not UTF-8 text")]
    NotText {
        /// The file.
        file: String,
    },
    /// Text that is no YAML or JSON.
    #[error("{place}: {message}")]
    Syntax {
        /// The document.
        place: Place,
        /// What is wrong, with the line in the file.
        message: String,
    },
    /// A field that is missing or not what it must be.
    #[error("{place}: {field}: {message}")]
    Field {
        /// The document.
        place: Place,
        /// The path of the field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// Needs a tool to become manifests.
    #[error("{file}: {what} is not rendered; commit the rendered manifests, or set spec.path to a folder of them")]
    NotRendered {
        /// The file.
        file: String,
        /// What it is.
        what: &'static str,
    },
    /// The same object twice.
    #[error("{second}: {identity} is declared a second time; the first is in {first} (line {})", first.line)]
    Duplicate {
        /// The first declaration.
        first: Place,
        /// The second one.
        second: Place,
        /// The object.
        identity: Box<ObjectId>,
    },
    /// A kind the cluster does not know.
    #[error(
        "{place} ({identity}): the cluster has no kind {} in {api_version}; install its CustomResourceDefinition, or correct apiVersion and kind",
        identity.kind
    )]
    UnknownKind {
        /// The document.
        place: Place,
        /// The object.
        identity: Box<ObjectId>,
        /// Its `apiVersion`.
        api_version: String,
    },
    /// An object outside what this DeployRepo may manage.
    #[error("{place} ({identity}): {cure}")]
    NotAllowed {
        /// The document.
        place: Place,
        /// The object.
        identity: Box<ObjectId>,
        /// Why, and what to do.
        cure: String,
    },
    /// More objects than one DeployRepo can keep account of.
    #[error("{count} objects are declared, and one DeployRepo takes at most {MAX_OBJECTS}; split the folder")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// They do.
    Namespaced,
    /// They do not.
    Cluster,
}

/// Where a DeployRepo may apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The DeployRepo's own namespace.
    pub own: String,
    /// The namespaces it lists.
    pub listed: Vec<String>,
    /// Whether it lives in the operator's namespace. Anywhere else only `own` counts.
    pub in_operator_namespace: bool,
}

impl Permission {
    /// Whether it may apply into a namespace.
    pub fn allows(&self, namespace: &str) -> bool {
        namespace == self.own || (self.in_operator_namespace && self.listed.iter().any(|listed| listed == namespace))
    }

    fn refusal(&self, manifest: &Manifest, scope: Scope) -> Option<String> {
        match scope {
            Scope::Namespaced if self.allows(&manifest.namespace) => None,
            Scope::Namespaced if self.in_operator_namespace => Some(format!(
                "namespace {} is not managed by this DeployRepo; add it to spec.namespaces, or correct metadata.namespace",
                manifest.namespace
            )),
            Scope::Namespaced => Some(format!(
                "a DeployRepo in namespace {own} manages that namespace only; correct metadata.namespace, or declare \
                 the object in a DeployRepo in the operator's namespace that lists {}",
                manifest.namespace,
                own = self.own
            )),
            Scope::Cluster if !self.in_operator_namespace => Some(format!(
                "{} is cluster-scoped, and only a DeployRepo in the operator's namespace may apply such objects; \
                 declare it there",
                manifest.kind
            )),
            Scope::Cluster
                if manifest.kind == "Namespace"
                    && group_of(&manifest.api_version).is_empty()
                    && !self.allows(&manifest.name) =>
            {
                Some(format!(
                    "namespace {} is not managed by this DeployRepo; add it to spec.namespaces",
                    manifest.name
                ))
            }
            Scope::Cluster => None,
        }
    }
}

/// Reads all files. All faults of all files are reported, so that one commit can mend them.
///
/// # Errors
/// Every fault found; nothing is applied then.
pub fn parse<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Vec<Manifest>, Vec<ManifestError>> {
    let (manifests, errors) = read(files);
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

/// Reads all files: what they declare, and every fault in them, so that one broken document hides no other.
pub fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> (Vec<Manifest>, Vec<ManifestError>) {
    let mut manifests = Vec::new();
    let mut errors = Vec::new();
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_unstable_by_key(|(file, _)| *file);
    for (file, bytes) in files {
        match classify(file) {
            FileKind::Ignored => {}
            FileKind::NotRendered(what) => {
                errors.push(ManifestError::NotRendered { file: file.to_owned(), what });
            }
            FileKind::Yaml => parse_file(file, bytes, yaml_documents, &mut manifests, &mut errors),
            FileKind::Json => parse_file(file, bytes, json_documents, &mut manifests, &mut errors),
        }
    }
    if manifests.len() > MAX_OBJECTS {
        errors.push(ManifestError::TooMany { count: manifests.len() });
    }
    (manifests, errors)
}

/// Gives each object the namespace it is meant for, and checks that it may go there and is declared once.
///
/// `scope_of` answers for an `apiVersion` and `kind`; `None` is a kind that neither the cluster knows nor the
/// manifests declare (see [`declared_scopes`]).
pub fn assign_namespaces(
    manifests: Vec<Manifest>,
    permission: &Permission,
    scope_of: impl Fn(&str, &str) -> Option<Scope>,
) -> Result<Vec<Manifest>, Vec<ManifestError>> {
    let mut errors = Vec::new();
    let mut placed = Vec::with_capacity(manifests.len());
    let mut seen: HashMap<ObjectId, Place> = HashMap::with_capacity(manifests.len());
    for mut manifest in manifests {
        let Some(scope) = scope_of(&manifest.api_version, &manifest.kind) else {
            errors.push(ManifestError::UnknownKind {
                identity: Box::new(manifest.id()),
                place: manifest.place,
                api_version: manifest.api_version,
            });
            continue;
        };
        match scope {
            Scope::Cluster if !manifest.namespace.is_empty() => {
                errors.push(ManifestError::Field {
                    message: format!("{} is cluster-scoped and has no namespace; remove the field", manifest.kind),
                    place: manifest.place,
                    field: "metadata.namespace".to_owned(),
                });
                continue;
            }
            Scope::Namespaced if manifest.namespace.is_empty() => {
                manifest.namespace.clone_from(&permission.own);
                if let Some(metadata) = manifest.object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("namespace".to_owned(), Value::from(permission.own.as_str()));
                }
                manifest.digest = digest(&manifest.object);
            }
            Scope::Cluster | Scope::Namespaced => {}
        }
        if let Some(cure) = permission.refusal(&manifest, scope) {
            errors.push(ManifestError::NotAllowed { identity: Box::new(manifest.id()), place: manifest.place, cure });
            continue;
        }
        let identity = manifest.id();
        if let Some(first) = seen.get(&identity) {
            errors.push(ManifestError::Duplicate {
                first: first.clone(),
                second: manifest.place,
                identity: Box::new(identity),
            });
            continue;
        }
        seen.insert(identity, manifest.place.clone());
        placed.push(manifest);
    }
    if errors.is_empty() { Ok(placed) } else { Err(errors) }
}

/// The kinds that CustomResourceDefinitions among the manifests bring along: (`apiVersion`, `kind`) and scope.
pub fn declared_scopes(manifests: &[Manifest]) -> HashMap<(String, String), Scope> {
    let mut scopes = HashMap::new();
    for manifest in manifests.iter().filter(|manifest| is_custom_resource_definition(manifest)) {
        let spec = &manifest.object["spec"];
        let (Some(group), Some(kind)) = (spec["group"].as_str(), spec["names"]["kind"].as_str()) else { continue };
        let scope = if spec["scope"].as_str() == Some("Cluster") { Scope::Cluster } else { Scope::Namespaced };
        for version in spec["versions"].as_array().into_iter().flatten() {
            if let Some(version) = version["name"].as_str() {
                scopes.insert((format!("{group}/{version}"), kind.to_owned()), scope);
            }
        }
    }
    scopes
}

/// Whether a manifest defines a kind.
pub fn is_custom_resource_definition(manifest: &Manifest) -> bool {
    manifest.kind == "CustomResourceDefinition" && group_of(&manifest.api_version) == "apiextensions.k8s.io"
}

/// Whether a manifest is a Namespace.
pub fn is_namespace(manifest: &Manifest) -> bool {
    manifest.kind == "Namespace" && group_of(&manifest.api_version).is_empty()
}

/// SHA-256 over the canonical JSON of a declaration.
pub fn digest(object: &Value) -> String {
    names::hex(&Sha256::digest(canonical_json(object)))
}

enum FileKind {
    Yaml,
    Json,
    Ignored,
    NotRendered(&'static str),
}

fn classify(path: &str) -> FileKind {
    if path.split('/').any(|part| part.starts_with('.')) {
        return FileKind::Ignored;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    match name {
        "kustomization.yaml" | "kustomization.yml" | "Kustomization" => {
            return FileKind::NotRendered("a kustomization");
        }
        "Chart.yaml" => return FileKind::NotRendered("a Helm chart"),
        _ => {}
    }
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("yaml" | "yml") => FileKind::Yaml,
        Some("json") => FileKind::Json,
        _ => FileKind::Ignored,
    }
}

/// The documents of a text that hold something, each with its place.
type Documents = Vec<Result<(Place, Value), ManifestError>>;

fn parse_file(
    file: &str,
    bytes: &[u8],
    documents: impl Fn(&str, &str) -> Documents,
    manifests: &mut Vec<Manifest>,
    errors: &mut Vec<ManifestError>,
) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        errors.push(ManifestError::NotText { file: file.to_owned() });
        return;
    };
    for document in documents(file, text.strip_prefix('\u{feff}').unwrap_or(text)) {
        let read = document.and_then(|(place, value)| collect(value, &place, "", 0, manifests, errors));
        errors.extend(read.err());
    }
}

/// Splits at the document markers and reads each document by itself, so that a broken one hides none after it
/// and the numbering counts the empty ones. A marker at the start of a line ends everything in YAML, block
/// scalars included, so the split is exact.
fn yaml_documents(file: &str, text: &str) -> Documents {
    let mut starts = vec![(0, 1)];
    let mut position = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            starts.push((position, index + 1));
        }
        position += line.len();
    }
    let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([text.len()]);
    let mut documents = Vec::new();
    let mut number = 0;
    for (&(start, line), end) in starts.iter().zip(ends) {
        let chunk = &text[start..end];
        let marked = line > 1 || chunk.starts_with("---");
        if !marked && is_blank(chunk) {
            continue;
        }
        number += 1;
        let place = Place { file: file.to_owned(), document: number, line };
        match yaml_document(chunk, line - 1) {
            Ok(None) => {}
            Ok(Some(value)) => documents.push(Ok((place, value))),
            Err(message) => documents.push(Err(ManifestError::Syntax { place, message })),
        }
    }
    documents
}

/// Comments, directives, markers and nothing else.
fn is_blank(chunk: &str) -> bool {
    chunk.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with(['#', '%']) || line == "..."
    })
}

/// Without what stands between the end marker and the next document: its directives, which mean nothing here.
fn until_end_marker(chunk: &str) -> &str {
    let end = chunk.find("\n...").filter(|at| is_blank(&chunk[at + 1..]));
    end.map_or(chunk, |at| &chunk[..=at])
}

fn yaml_document(chunk: &str, lines_before: usize) -> Result<Option<Value>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 2,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_nodes: 250_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 16,
        },
        legacy_octal_numbers: true,
        emit_comments: false,
        with_snippet: false,
    };
    let chunk = until_end_marker(chunk);
    if is_blank(chunk) {
        return Ok(None);
    }
    let lines = FileLines { before: lines_before };
    match serde_saphyr::from_multiple_with_options::<Value>(chunk, options) {
        Ok(mut values) => match values.len() {
            0 => Ok(None),
            1 => Ok(values.pop()),
            _ => Err("begins a second document without `---`".to_owned()),
        },
        Err(error) => Err(error.render_with_formatter(&serde_saphyr::UserMessageFormatter.with_localizer(&lines))),
    }
}

/// Counts lines from the beginning of the file instead of the document.
struct FileLines {
    before: usize,
}

impl serde_saphyr::localizer::Localizer for FileLines {
    fn attach_location<'a>(&self, base: Cow<'a, str>, location: serde_saphyr::Location) -> Cow<'a, str> {
        if location == serde_saphyr::Location::UNKNOWN {
            return base;
        }
        let line = usize::try_from(location.line()).unwrap_or(0) + self.before;
        Cow::Owned(format!("line {line}, column {}: {base}", location.column()))
    }
}

fn json_documents(file: &str, text: &str) -> Documents {
    let mut documents = Vec::new();
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<UniqueKeys>();
    let mut number = 0;
    loop {
        let start = stream.byte_offset();
        let skipped = text[start..].len() - text[start..].trim_start().len();
        let line = 1 + text[..start + skipped].matches('\n').count();
        number += 1;
        let place = Place { file: file.to_owned(), document: number, line };
        match stream.next() {
            None => return documents,
            Some(Ok(UniqueKeys(Value::Null))) => {}
            Some(Ok(UniqueKeys(value))) => documents.push(Ok((place, value))),
            Some(Err(error)) => {
                documents.push(Err(ManifestError::Syntax { place, message: error.to_string() }));
                return documents;
            }
        }
    }
}

/// A JSON value in which no key stands twice: the JSON library keeps the last one without a word.
struct UniqueKeys(Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Value;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON value")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::from(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::from(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::from(value))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::from(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::from(value))
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(UniqueKeys(value)) = items.next_element()? {
                    values.push(value);
                }
                Ok(Value::Array(values))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom(format!("duplicate key \"{key}\"")));
                    }
                    let UniqueKeys(value) = entries.next_value()?;
                    map.insert(key, value);
                }
                Ok(Value::Object(map))
            }
        }
        deserializer.deserialize_any(Reader).map(UniqueKeys)
    }
}

/// Turns a document into its objects. `path` leads to it within the document, for the items of a list.
fn collect(
    value: Value,
    place: &Place,
    path: &str,
    depth: usize,
    manifests: &mut Vec<Manifest>,
    errors: &mut Vec<ManifestError>,
) -> Result<(), ManifestError> {
    let field = |name: &str, message: String| ManifestError::Field {
        place: place.clone(),
        field: format!("{path}{name}"),
        message,
    };
    let Value::Object(mut object) = value else {
        return Err(ManifestError::Syntax {
            place: place.clone(),
            message: format!("{}is not a Kubernetes object (a mapping with apiVersion and kind)", {
                let path = path.trim_end_matches('.');
                if path.is_empty() { String::new() } else { format!("{path} ") }
            }),
        });
    };
    let text = |object: &Map<String, Value>, name: &str| match object.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        None | Some(Value::Null) => Err(field(
            name,
            "is missing, so this is no Kubernetes object; move files that are none out of the synced folder".to_owned(),
        )),
        Some(_) => Err(field(name, "must be a text that is not empty".to_owned())),
    };
    let api_version = text(&object, "apiVersion")?;
    let kind = text(&object, "kind")?;
    let group = group_of(&api_version);
    if group == "kustomize.config.k8s.io" {
        return Err(ManifestError::NotRendered { file: place.file.clone(), what: "a kustomization" });
    }
    if kind.ends_with("List") && !object.contains_key("spec") && object.contains_key("items") {
        return collect_list(object, place, path, depth, manifests, errors);
    }
    let (name, namespace) = read_metadata(&mut object, &field)?;
    let object = Value::Object(object);
    manifests.push(Manifest {
        digest: digest(&object),
        object,
        api_version,
        kind,
        namespace,
        name,
        place: place.clone(),
    });
    Ok(())
}

fn collect_list(
    mut list: Map<String, Value>,
    place: &Place,
    path: &str,
    depth: usize,
    manifests: &mut Vec<Manifest>,
    errors: &mut Vec<ManifestError>,
) -> Result<(), ManifestError> {
    let refuse = |message: &str| {
        Err(ManifestError::Field { place: place.clone(), field: format!("{path}items"), message: message.to_owned() })
    };
    if depth == MAX_LIST_DEPTH {
        return refuse("lists are nested too deep");
    }
    match list.remove("items") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(items)) => {
            // A broken item hides none after it.
            for (index, item) in items.into_iter().enumerate() {
                let path = format!("{path}items[{index}].");
                let read = collect(item, place, &path, depth + 1, manifests, errors);
                errors.extend(read.err());
            }
            Ok(())
        }
        Some(_) => refuse("must be a list"),
    }
}

/// Checks what the sync itself relies on, and removes what is ours to write: manifests are often copied from
/// `kubectl get -o yaml`.
fn read_metadata(
    object: &mut Map<String, Value>,
    field: &impl Fn(&str, String) -> ManifestError,
) -> Result<(String, String), ManifestError> {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Err(field("metadata", "must be a mapping with at least a name".to_owned()));
    };
    let name = match metadata.get("name") {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        Some(Value::String(_) | Value::Null) | None if metadata.contains_key("generateName") => {
            return Err(field(
                "metadata.generateName",
                "would create a new object at every look; give the object a name".to_owned(),
            ));
        }
        Some(Value::String(_) | Value::Null) | None => return Err(field("metadata.name", "is missing".to_owned())),
        Some(_) => return Err(field("metadata.name", "must be a text; put it in quotes".to_owned())),
    };
    if name.contains('/') || name.contains('%') || name == "." || name == ".." {
        return Err(field("metadata.name", format!("\"{name}\" is not a name")));
    }
    let namespace = match metadata.get("namespace") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(namespace)) if is_label(namespace) => namespace.clone(),
        Some(Value::String(namespace)) => {
            return Err(field(
                "metadata.namespace",
                format!("\"{namespace}\" is not a namespace's name (letters a-z, digits and dashes)"),
            ));
        }
        Some(_) => return Err(field("metadata.namespace", "must be a text; put it in quotes".to_owned())),
    };
    if namespace.is_empty() {
        metadata.remove("namespace");
    }
    for ours in ["uid", "resourceVersion", "managedFields"] {
        if metadata.get(ours).is_some_and(|value| !value.is_null()) {
            return Err(field(
                &format!("metadata.{ours}"),
                "belongs to one object in one cluster; remove it from the manifest".to_owned(),
            ));
        }
        metadata.remove(ours);
    }
    match metadata.get_mut("annotations") {
        None | Some(Value::Null) => {
            metadata.remove("annotations");
        }
        Some(Value::Object(annotations)) => {
            // `deploy-repo` on a Rollout is a person's word on where it is recorded, but only where nobody
            // applies it; here the DeployRepo that reads it is the answer.
            for ours in [names::SOURCE_COMMIT, names::SOURCE_HISTORY, names::SOURCE_DIGEST, names::DEPLOY_REPO] {
                annotations.remove(ours);
            }
        }
        Some(_) => return Err(field("metadata.annotations", "must be a mapping of texts".to_owned())),
    }
    Ok((name, namespace))
}

/// A DNS label: what a namespace's name must be. Anything else could leave its place in a request's path.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, text: &str) -> Result<Vec<Manifest>, Vec<ManifestError>> {
        parse([(file, text.as_bytes())])
    }

    fn fault(file: &str, text: &str) -> String {
        let errors = read(file, text).expect_err("must be refused");
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors[0].to_string()
    }

    fn config_map(name: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n")
    }

    fn names(manifests: &[Manifest]) -> Vec<String> {
        manifests.iter().map(|manifest| format!("{} {}", manifest.place, manifest.name)).collect()
    }

    fn tenant() -> Permission {
        Permission { own: "shop".into(), listed: Vec::new(), in_operator_namespace: false }
    }

    fn platform() -> Permission {
        Permission { own: "sluice-system".into(), listed: vec!["shop".into()], in_operator_namespace: true }
    }

    fn core_scope(_: &str, kind: &str) -> Option<Scope> {
        match kind {
            "ConfigMap" | "Deployment" | "Rollout" => Some(Scope::Namespaced),
            "Namespace" | "ClusterRole" | "ClusterAnalysisTemplate" => Some(Scope::Cluster),
            _ => None,
        }
    }

    #[test]
    fn a_stream_as_tools_pipe_it() {
        // Comment before the first marker, trailing spaces and a comment at markers, empty and comment-only
        // documents, Windows line ends, an end marker, no line break at the end.
        let stream = format!(
            "# generated\n---   \n{}---\n---\n# nothing here\n--- # the second\n{}...\n---\r\n{}",
            config_map("one"),
            config_map("two").replace('\n', "\r\n"),
            config_map("three").trim_end()
        );
        let manifests = read("all.yaml", &stream).unwrap();
        assert_eq!(
            names(&manifests),
            ["all.yaml, document 1 one", "all.yaml, document 4 two", "all.yaml, document 5 three"]
        );
        assert_eq!(manifests[1].place.line, 10);
        assert_eq!(read("empty.yaml", "").unwrap(), []);
        assert_eq!(read("empty.yaml", "---\n...\n%YAML 1.2\n---\n\n# x\n").unwrap(), []);
    }

    #[test]
    fn what_stands_before_the_first_marker_is_a_document_only_when_it_holds_something() {
        let with = format!("{}---\n{}", config_map("one"), config_map("two"));
        assert_eq!(names(&read("a.yaml", &with).unwrap()), ["a.yaml, document 1 one", "a.yaml, document 2 two"]);
        let bom = format!("\u{feff}---\n{}", config_map("one"));
        assert_eq!(names(&read("a.yaml", &bom).unwrap()), ["a.yaml, document 1 one"]);
    }

    #[test]
    fn three_dashes_inside_a_text_do_not_end_it() {
        let text =
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  b: |\n    x\n    ---\n    y\n  c: ----\n";
        let manifests = read("a.yaml", text).unwrap();
        assert_eq!(manifests[0].object["data"]["b"], "x\n---\ny\n");
        assert_eq!(manifests[0].object["data"]["c"], "----");
    }

    #[test]
    fn every_fault_is_told_with_file_document_and_line_and_hides_no_other() {
        let stream = format!(
            "{}---\nkind: ConfigMap\nmetadata:\n\tname: tabbed\n---\n{}---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  name: b\n---\napiVersion: v1\nkind: [\n",
            config_map("one"),
            config_map("two")
        );
        let errors = read("deploy/web.yaml", &stream).unwrap_err();
        let messages: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(messages.len(), 3, "{messages:#?}");
        assert!(messages[0].starts_with("deploy/web.yaml, document 2: line 8, "), "{}", messages[0]);
        assert!(messages[1].starts_with("deploy/web.yaml, document 4: line 19, "), "{}", messages[1]);
        assert!(messages[1].contains("duplicate") && messages[1].contains("name"), "{}", messages[1]);
        assert!(messages[2].starts_with("deploy/web.yaml, document 5: line "), "{}", messages[2]);
    }

    #[test]
    fn scalars_mean_what_they_mean_to_kubectl() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {mode: 0644, hex: 0x1F, port: 8080, \
                    on: yes, half: 0.5, text: '0644', none: ~, version: 1.10.0, big: 18446744073709551615}\n";
        let data = read("a.yaml", text).unwrap().remove(0).object["data"].clone();
        assert_eq!(
            data,
            serde_json::json!({"mode": 420, "hex": 31, "port": 8080, "half": 0.5, "text": "0644",
                "none": null, "on": true, "version": "1.10.0", "big": 18_446_744_073_709_551_615_u64}),
        );
    }

    #[test]
    fn anchors_and_merges_work_and_alias_bombs_do_not() {
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  base: &base {x: '1'}\n  more:\n    <<: *base\n    y: '2'\n";
        let object = read("a.yaml", text).unwrap().remove(0).object;
        assert_eq!(object["data"]["more"], serde_json::json!({"x": "1", "y": "2"}));
        let mut bomb =
            String::from("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nl0: &l0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let before = format!("*l{},", level - 1).repeat(10);
            bomb.push_str(&format!("l{level}: &l{level} [{}]\n", before.trim_end_matches(',')));
        }
        let begun = std::time::Instant::now();
        assert!(fault("bomb.yaml", &bomb).starts_with("bomb.yaml, document 1: "));
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
        let deep = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\nx: {}", "[".repeat(10_000));
        assert!(fault("deep.yaml", &deep).starts_with("deep.yaml, document 1: "));
    }

    #[test]
    fn lists_are_their_items() {
        let text = format!(
            "apiVersion: v1\nkind: List\nitems:\n- {}\n- apiVersion: v1\n  kind: ConfigMapList\n  items:\n  - {}\n",
            config_map("one").trim_end().replace('\n', "\n  "),
            config_map("two").trim_end().replace('\n', "\n    ")
        );
        let manifests = read("list.yaml", &text).unwrap();
        assert_eq!(names(&manifests), ["list.yaml, document 1 one", "list.yaml, document 1 two"]);
        assert_eq!(read("a.yaml", "apiVersion: v1\nkind: List\nitems: []\n").unwrap(), []);
        assert_eq!(
            fault(
                "a.yaml",
                "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata: {}\n"
            ),
            "a.yaml, document 1: items[0].metadata.name: is missing"
        );
        assert_eq!(
            fault("a.yaml", "apiVersion: v1\nkind: List\nitems: [7]\n"),
            "a.yaml, document 1: items[0] is not a Kubernetes object (a mapping with apiVersion and kind)"
        );
    }

    #[test]
    fn json_files_are_read_as_strictly() {
        let one = r#"{"apiVersion": "v1", "kind": "ConfigMap",
	"metadata": {"name": "one"}, "data": {"smile": "\ud83d\ude00\/"}}"#;
        let manifests = read("a.json", &format!("{one}\n\n{}", one.replace("one", "two"))).unwrap();
        assert_eq!(names(&manifests), ["a.json, document 1 one", "a.json, document 2 two"]);
        assert_eq!(manifests[0].object["data"]["smile"], "😀/");
        assert_eq!(manifests[1].place.line, 4);
        let twice =
            fault("a.json", r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "name": "b"}}"#);
        assert!(twice.contains("duplicate key \"name\" at line 1"), "{twice}");
        assert!(fault("a.json", "{\n\"a\": }").contains("line 2"));
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_name() {
        assert_eq!(
            fault("values.yaml", "replicas: 3\n"),
            "values.yaml, document 1: apiVersion: is missing, so this is no Kubernetes object; move files that are none \
             out of the synced folder"
        );
        assert!(fault("a.yaml", "just text\n").starts_with("a.yaml, document 1: is not a Kubernetes object"));
        assert!(fault("a.yaml", "- 1\n").starts_with("a.yaml, document 1: is not a Kubernetes object"));
        for file in ["deploy/kustomization.yaml", "kustomization.yml", "x/Kustomization"] {
            assert!(
                fault(file, "resources: [a.yaml]\n").starts_with(&format!("{file}: a kustomization is not rendered"))
            );
        }
        let renamed = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Component\n";
        assert!(fault("k.yaml", renamed).starts_with("k.yaml: a kustomization is not rendered"));
        assert!(fault("Chart.yaml", "apiVersion: v2\nname: x\n").contains("a Helm chart is not rendered"));
        assert_eq!(parse([("a.yaml", &b"a: \xff\xfe"[..])]).unwrap_err()[0].to_string(), "a.yaml: is not UTF-8 text");
        // Neither read nor refused.
        for file in ["README.md", ".github/workflows/ci.yaml", "deploy/.sops.yaml", "script.sh", "Makefile"] {
            assert_eq!(read(file, ": not: [ a manifest").unwrap(), [], "{file}");
        }
    }

    #[test]
    fn metadata_that_cannot_be_applied_names_the_field() {
        let of = |metadata: &str| fault("a.yaml", &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {metadata}\n"));
        for (metadata, expected) in [
            ("{}", "metadata.name: is missing"),
            ("[]", "metadata: must be a mapping"),
            ("{name: 7}", "metadata.name: must be a text; put it in quotes"),
            ("{name: ../../secrets/x}", "metadata.name: \"../../secrets/x\" is not a name"),
            ("{generateName: a-}", "metadata.generateName: would create a new object at every look"),
            ("{name: a, namespace: 7}", "metadata.namespace: must be a text"),
            (
                "{name: a, namespace: ../kube-system}",
                "metadata.namespace: \"../kube-system\" is not a namespace's name",
            ),
            ("{name: a, resourceVersion: '7'}", "metadata.resourceVersion: belongs to one object in one cluster"),
            ("{name: a, uid: x}", "metadata.uid: belongs to one object in one cluster"),
            ("{name: a, annotations: [x]}", "metadata.annotations: must be a mapping of texts"),
        ] {
            let message = of(metadata);
            assert!(message.starts_with(&format!("a.yaml, document 1: {expected}")), "{message}");
        }
    }

    #[test]
    fn the_digest_is_of_the_declaration_and_not_of_its_spelling_or_our_stamps() {
        let digest = |text: &str| read("a.yaml", text).unwrap().remove(0).digest;
        let plain = digest("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata: {x: '1', y: '2'}\n");
        assert_eq!(
            plain,
            digest("# hello\nkind: ConfigMap\ndata:\n  y: \"2\"\n  x: '1'\nmetadata: {name: a}\napiVersion: v1\n")
        );
        assert_ne!(plain, digest("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata: {x: '1', y: '3'}\n"));
        let copied = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  annotations:\n    team: shop\n    \
                      sluice.dev/source-commit: abc\n    sluice.dev/source-digest: def\n    sluice.dev/deploy-repo: a/b\n";
        let manifest = read("a.yaml", copied).unwrap().remove(0);
        assert_eq!(manifest.object["metadata"]["annotations"], serde_json::json!({"team": "shop"}));
    }

    #[test]
    fn objects_without_a_namespace_go_where_the_deploy_repo_is() {
        let manifests = read("a.yaml", &config_map("a")).unwrap();
        let placed = assign_namespaces(manifests, &tenant(), core_scope).unwrap();
        assert_eq!(placed[0].namespace, "shop");
        assert_eq!(placed[0].object["metadata"]["namespace"], "shop");
        assert_eq!(placed[0].digest, digest(&placed[0].object));
    }

    #[test]
    fn the_same_object_twice_names_both_places() {
        let spelled = config_map("a") + "  namespace: shop\n";
        let files = [("b.yaml", config_map("a")), ("a.yaml", format!("# x\n---\n{spelled}"))];
        let manifests = parse(files.iter().map(|(file, text)| (*file, text.as_bytes()))).unwrap();
        let errors = assign_namespaces(manifests, &tenant(), core_scope).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "b.yaml, document 1: ConfigMap shop/a is declared a second time; the first is in a.yaml, document 1 (line 2)"
        );
    }

    #[test]
    fn objects_elsewhere_are_refused_with_the_cure() {
        let refused = |text: &str, permission: &Permission| {
            let errors = assign_namespaces(read("a.yaml", text).unwrap(), permission, core_scope).unwrap_err();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let elsewhere = config_map("a") + "  namespace: kube-system\n";
        let message = refused(&elsewhere, &tenant());
        assert!(
            message.starts_with(
                "a.yaml, document 1 (ConfigMap kube-system/a): a DeployRepo in namespace shop manages that"
            ) && message.contains("correct metadata.namespace"),
            "{message}"
        );
        assert!(refused(&elsewhere, &platform()).contains("add it to spec.namespaces"));
        let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: a}\n";
        assert!(refused(role, &tenant()).contains("(ClusterRole a): ClusterRole is cluster-scoped"));
        let ours = "apiVersion: sluice.dev/v1alpha1\nkind: ClusterAnalysisTemplate\nmetadata: {name: a}\n";
        assert!(refused(ours, &tenant()).contains("only a DeployRepo in the operator's namespace"));
        let namespace = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
        assert!(refused(&namespace("shop"), &tenant()).contains("cluster-scoped"));
        assert!(refused(&namespace("kube-system"), &platform()).contains("add it to spec.namespaces"));
        assert!(refused("apiVersion: example.org/v1\nkind: Widget\nmetadata: {name: a}\n", &platform()).contains(
            "(Widget a): the cluster has no kind Widget in example.org/v1; install its CustomResourceDefinition"
        ));
        assert!(
            refused("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, namespace: shop}\n", &platform())
                .contains("metadata.namespace: Namespace is cluster-scoped")
        );
        for allowed in [
            config_map("a") + "  namespace: shop\n",
            config_map("a"),
            namespace("shop"),
            role.to_owned(),
            ours.to_owned(),
        ] {
            let manifests = read("a.yaml", &allowed).unwrap();
            assert!(assign_namespaces(manifests, &platform(), core_scope).is_ok(), "{allowed}");
        }
    }

    #[test]
    fn a_definition_brings_its_kinds_along() {
        let text = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: widgets.example.org}\n\
                    spec:\n  group: example.org\n  scope: Namespaced\n  names: {kind: Widget}\n  versions: [{name: v1}, {name: v2}]\n";
        let scopes = declared_scopes(&read("crd.yaml", text).unwrap());
        assert_eq!(scopes.get(&("example.org/v2".to_owned(), "Widget".to_owned())), Some(&Scope::Namespaced));
        assert_eq!(scopes.len(), 2);
    }

    #[test]
    fn more_objects_than_a_status_can_hold_are_refused() {
        let stream: String =
            (0..=MAX_OBJECTS).map(|index| format!("---\n{}", config_map(&format!("c{index}")))).collect();
        assert!(fault("many.yaml", &stream).contains("at most 3000"));
    }
}
