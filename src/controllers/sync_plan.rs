//! What one commit asks of the cluster: what to apply, in which order, with which stamps, and what to prune.
//! Pure: the DeployRepo controller observes, this module decides, the `cluster` room acts.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::manifests::{self, Manifest, ObjectId, group_of};
use crate::api::{GROUP, InventoryEntry, names};
use crate::cluster::apply::Live;

/// What is known of an object in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Absent,
    /// There is this one.
    Present(Live),
    /// We may not look. What the inventory says counts.
    Unknown,
}

/// Why an object is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is not in the inventory.
    New,
    /// Its declaration changed.
    Changed,
    /// It is gone from the cluster.
    Missing,
    /// It is there, but what it carries is not what was applied last.
    Overwritten,
}

/// One object to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned<'a> {
    /// Its declaration.
    pub manifest: &'a Manifest,
    /// The commit that last changed the declaration.
    pub commit: String,
    /// Why.
    pub cause: Cause,
    /// What is there now.
    pub seen: Seen,
}

/// One object to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// What the inventory says of it.
    pub entry: InventoryEntry,
    /// Its uid, for the precondition.
    pub uid: String,
    /// Its version, for the precondition.
    pub resource_version: String,
}

/// An object that another DeployRepo applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Contested<'a> {
    /// Its declaration here.
    pub manifest: &'a Manifest,
    /// The other DeployRepo, `namespace/name`.
    pub owner: String,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncPlan<'a> {
    /// To apply, in this order.
    pub apply: Vec<Planned<'a>>,
    /// As declared already: not written again.
    pub unchanged: Vec<InventoryEntry>,
    /// To delete, in this order, after everything has been applied.
    pub delete: Vec<Deletion>,
    /// No longer declared, but kept: and kept account of, so that it is pruned when it may be.
    pub retained: Vec<InventoryEntry>,
    /// Declared here, applied by another DeployRepo.
    pub contested: Vec<Contested<'a>>,
}

/// What a plan is made from.
pub struct Situation<'a> {
    /// What was applied before.
    pub inventory: &'a [InventoryEntry],
    /// What is declared now. Nothing declared prunes nothing: an emptied folder is more often an accident
    /// than a wish.
    pub manifests: &'a [Manifest],
    /// What is there, of both. What is missing here counts as unknown.
    pub live: &'a HashMap<ObjectId, Seen>,
    /// The commit that declares it.
    pub commit: &'a str,
    /// This DeployRepo, `namespace/name`.
    pub owner: &'a str,
    /// Whether to prune at all.
    pub prune: bool,
}

/// Decides. `in_use` says of an object that is to be pruned whether something living still needs it.
pub fn plan_sync<'a>(situation: &Situation<'a>, in_use: impl Fn(&InventoryEntry) -> bool) -> SyncPlan<'a> {
    let mut plan = SyncPlan::default();
    let mut left: HashMap<ObjectId, &InventoryEntry> =
        situation.inventory.iter().map(|entry| (object_id(entry), entry)).collect();
    let see = |id: &ObjectId| situation.live.get(id).cloned().unwrap_or(Seen::Unknown);
    for manifest in situation.manifests {
        let id = manifest.id();
        let seen = see(&id);
        let entry = left.remove(&id);
        if let Seen::Present(live) = &seen
            && let Some(owner) = live.owner()
            && owner != situation.owner
        {
            plan.contested.push(Contested { manifest, owner: owner.to_owned() });
        }
        match judge(manifest, entry, &seen, situation) {
            (None, commit) => plan.unchanged.push(record(manifest, commit)),
            (Some(cause), commit) => plan.apply.push(Planned { manifest, commit, cause, seen }),
        }
    }
    // Stable: within a rank the order of the files holds.
    plan.apply.sort_by_key(|planned| rank(planned.manifest));
    let mut left: Vec<&InventoryEntry> = left.into_values().collect();
    left.sort_unstable_by(|a, b| removal_order(a, b));
    for entry in left {
        let live = match see(&object_id(entry)) {
            Seen::Absent => continue,
            Seen::Unknown => {
                plan.retained.push(entry.clone());
                continue;
            }
            Seen::Present(live) => live,
        };
        if live.owner() != Some(situation.owner) {
            // Somebody took it over, or took our mark off it: it is not ours to remove.
            continue;
        }
        let keep = !situation.prune
            || situation.manifests.is_empty()
            || live.is_prune_disabled()
            || live.deleting
            || is_never_pruned(entry)
            || in_use(entry);
        if keep {
            plan.retained.push(entry.clone());
        } else {
            plan.delete.push(Deletion {
                entry: entry.clone(),
                uid: live.uid,
                resource_version: live.resource_version,
            });
        }
    }
    plan
}

impl SyncPlan<'_> {
    /// The inventory to write down before anything is applied, when it holds something new: what a crash
    /// leaves behind must be known to the next sync, or it would never be pruned. A new object has no digest
    /// yet.
    pub fn inventory_ahead(&self, before: &[InventoryEntry]) -> Option<Vec<InventoryEntry>> {
        let known: HashMap<ObjectId, &InventoryEntry> = before.iter().map(|entry| (object_id(entry), entry)).collect();
        let fresh: Vec<InventoryEntry> = self
            .apply
            .iter()
            .filter(|planned| !known.contains_key(&planned.manifest.id()))
            .map(|planned| InventoryEntry { digest: String::new(), ..planned.entry() })
            .collect();
        if fresh.is_empty() {
            return None;
        }
        let mut ahead = before.to_vec();
        ahead.extend(fresh);
        ahead.sort_unstable();
        Some(ahead)
    }

    /// The inventory once everything is done.
    pub fn inventory_after(&self) -> Vec<InventoryEntry> {
        let applied = self.apply.iter().map(Planned::entry);
        let mut after: Vec<InventoryEntry> =
            self.unchanged.iter().cloned().chain(applied).chain(self.retained.iter().cloned()).collect();
        after.sort_unstable();
        after
    }
}

impl Planned<'_> {
    /// What the inventory says of it once it is applied.
    pub fn entry(&self) -> InventoryEntry {
        record(self.manifest, self.commit.clone())
    }

    /// Its place in the order: what must be there before what.
    pub fn rank(&self) -> u8 {
        rank(self.manifest)
    }

    /// Other objects of the same commit can only be tried once it is there.
    pub fn is_prerequisite(&self) -> bool {
        self.rank() <= LAST_PREREQUISITE
    }

    /// The object to apply: the declaration with our stamps.
    pub fn stamped(&self, owner: &str) -> Value {
        let mut object = self.manifest.object.clone();
        let stamps = [
            (names::SOURCE_COMMIT, self.commit.as_str()),
            (names::SOURCE_DIGEST, self.manifest.digest.as_str()),
            (names::DEPLOY_REPO, owner),
        ];
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.extend(stamps.map(|(key, value)| (key.to_owned(), Value::from(value))));
            }
        }
        object
    }
}

/// Whether to apply, and the commit that last changed the declaration.
fn judge(
    manifest: &Manifest,
    entry: Option<&InventoryEntry>,
    seen: &Seen,
    situation: &Situation<'_>,
) -> (Option<Cause>, String) {
    let recorded = entry.filter(|entry| entry.digest == manifest.digest).map(|entry| entry.commit.clone());
    // What the object itself carries counts more: it is what was applied, even if the inventory was lost.
    let stamped = match seen {
        Seen::Present(live) if live.owner() == Some(situation.owner) => {
            (live.digest() == Some(manifest.digest.as_str())).then(|| live.commit().map(str::to_owned)).flatten()
        }
        Seen::Present(_) | Seen::Absent | Seen::Unknown => None,
    };
    let head = || situation.commit.to_owned();
    match (seen, stamped, recorded) {
        (Seen::Present(_), Some(commit), _) | (Seen::Unknown, _, Some(commit)) => (None, commit),
        (Seen::Present(_), None, Some(commit)) => (Some(Cause::Overwritten), commit),
        (Seen::Absent, _, Some(commit)) => (Some(Cause::Missing), commit),
        (_, _, None) if entry.is_none_or(|entry| entry.digest.is_empty()) => (Some(Cause::New), head()),
        (_, _, None) => (Some(Cause::Changed), head()),
    }
}

fn record(manifest: &Manifest, commit: String) -> InventoryEntry {
    InventoryEntry {
        api_version: manifest.api_version.clone(),
        kind: manifest.kind.clone(),
        namespace: manifest.namespace.clone(),
        name: manifest.name.clone(),
        digest: manifest.digest.clone(),
        commit,
    }
}

/// What an inventory entry is, whatever its version.
pub fn object_id(entry: &InventoryEntry) -> ObjectId {
    ObjectId::new(&entry.api_version, &entry.kind, &entry.namespace, &entry.name)
}

const LAST_PREREQUISITE: u8 = 1;

/// What must be there before what. A Rollout comes last: everything it names is then declared as the same
/// commit wants it.
fn rank(manifest: &Manifest) -> u8 {
    let group = group_of(&manifest.api_version);
    match manifest.kind.as_str() {
        _ if manifests::is_namespace(manifest) => 0,
        _ if manifests::is_custom_resource_definition(manifest) => LAST_PREREQUISITE,
        "Rollout" if group == GROUP => 4,
        "ServiceAccount" | "ConfigMap" | "Secret" | "PersistentVolumeClaim" if group.is_empty() => 2,
        _ => 3,
    }
}

/// Rollouts first, then the rest by name: what a Rollout needs outlives it.
fn removal_order(a: &InventoryEntry, b: &InventoryEntry) -> Ordering {
    let is_rollout = |entry: &InventoryEntry| entry.kind == "Rollout" && group_of(&entry.api_version) == GROUP;
    is_rollout(b).cmp(&is_rollout(a)).then_with(|| a.cmp(b))
}

/// With a Namespace or a CustomResourceDefinition go objects that git may never have known.
fn is_never_pruned(entry: &InventoryEntry) -> bool {
    match entry.kind.as_str() {
        "Namespace" => group_of(&entry.api_version).is_empty(),
        "CustomResourceDefinition" => group_of(&entry.api_version) == "apiextensions.k8s.io",
        _ => false,
    }
}

/// What the Rollouts of one namespace steer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steered {
    /// The (stable, canary) Services between which traffic is split.
    pub pairs: Vec<(String, String)>,
    /// All Services whose selector names a revision.
    pub services: BTreeSet<String>,
}

impl Steered {
    /// Adds what one Rollout steers, by its strategy as JSON.
    pub fn add(&mut self, strategy: &Value) {
        let service = |kind: &str, field: &str| strategy.get(kind)?.get(field)?.as_str().map(str::to_owned);
        let canary = (service("canary", "stableService"), service("canary", "canaryService"));
        let preview = (service("blueGreen", "activeService"), service("blueGreen", "previewService"));
        for name in [&canary.0, &canary.1, &preview.0, &preview.1].into_iter().flatten() {
            self.services.insert(name.clone());
        }
        if let (Some(stable), Some(canary)) = canary
            && !self.pairs.iter().any(|pair| pair.0 == stable && pair.1 == canary)
        {
            self.pairs.push((stable, canary));
        }
    }
}

/// Whether [`carry_over`] may have something to do for a manifest.
pub fn may_carry(manifest: &Manifest) -> bool {
    matches!(
        (group_of(&manifest.api_version), manifest.kind.as_str()),
        ("gateway.networking.k8s.io", "HTTPRoute") | ("", "Service") | (GROUP, "Rollout")
    )
}

/// Puts into `desired` what belongs to others than git, as it is in the live object, and says whether there was
/// any: then the apply rests on this very version.
///
/// - An HTTPRoute: the weights between the Services of a Rollout.
/// - A Service of a Rollout: the revision it selects. A selector is one value to the API server, so an apply without the
///   revision would send traffic to all versions at once.
/// - A Rollout whose replicas have left git: the API server takes a field away when the one manager that
///   declared it stops, and the default is 1 pod.
pub fn carry_over(live: &Value, desired: &mut Value, steered: &Steered) -> bool {
    let text = |field: &str| desired.get(field).and_then(Value::as_str).unwrap_or_default();
    let (group, kind) = (group_of(text("apiVersion")).to_owned(), text("kind").to_owned());
    match (group.as_str(), kind.as_str()) {
        ("gateway.networking.k8s.io", "HTTPRoute") => {
            crate::traffic::http_route::carry_weights(live, desired, &steered.pairs);
            true
        }
        ("", "Service") => {
            let name = live.pointer("/metadata/name").and_then(Value::as_str);
            if !name.is_some_and(|name| steered.services.contains(name)) {
                return false;
            }
            let revision = live.get("spec").and_then(|spec| spec.get("selector")?.get(names::REVISION));
            let selector = desired.pointer_mut("/spec/selector").and_then(Value::as_object_mut);
            if let (Some(revision), Some(selector)) = (revision, selector) {
                selector.insert(names::REVISION.to_owned(), revision.clone());
            }
            true
        }
        (GROUP, "Rollout") => {
            let replicas = live.pointer("/spec/replicas").filter(|_| owns_replicas(live));
            let spec = desired.get_mut("spec").and_then(Value::as_object_mut);
            if let (Some(replicas), Some(spec)) = (replicas, spec)
                && spec.get("replicas").is_none_or(Value::is_null)
            {
                spec.insert("replicas".to_owned(), replicas.clone());
            }
            true
        }
        _ => false,
    }
}

/// Whether an earlier sync declared the replicas of this Rollout.
fn owns_replicas(live: &Value) -> bool {
    let managers = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    managers.into_iter().flatten().any(|entry| {
        entry.get("manager").and_then(Value::as_str) == Some(names::SYNC_FIELD_MANAGER)
            && entry.get("operation").and_then(Value::as_str) == Some("Apply")
            && entry.pointer("/fieldsV1/f:spec/f:replicas").is_some()
    })
}

/// Whether a pod template needs an object: its configuration, its storage, its account. A pod that starts again
/// tomorrow reads them again.
pub fn is_needed_by(entry: &InventoryEntry, template: &Value) -> bool {
    if !group_of(&entry.api_version).is_empty() {
        return false;
    }
    // Where a pod spec names each of them, as (object that holds the name, field of the name).
    let places: &[(&str, &str)] = match entry.kind.as_str() {
        "ConfigMap" => &[("configMapRef", "name"), ("configMapKeyRef", "name"), ("configMap", "name")],
        "Secret" => &[
            ("secretRef", "name"),
            ("secretKeyRef", "name"),
            ("secret", "secretName"),
            ("secret", "name"),
            ("imagePullSecrets", "name"),
        ],
        "PersistentVolumeClaim" => &[("persistentVolumeClaim", "claimName")],
        "ServiceAccount" => &[("spec", "serviceAccountName")],
        _ => return false,
    };
    names_it(template, places, &entry.name)
}

fn names_it(value: &Value, places: &[(&str, &str)], name: &str) -> bool {
    let at = |holder: &Value, field: &str| holder.get(field).and_then(Value::as_str) == Some(name);
    match value {
        Value::Object(map) => map.iter().any(|(key, inner)| {
            places.iter().filter(|(holder, _)| holder == key).any(|(_, field)| match inner {
                Value::Array(items) => items.iter().any(|item| at(item, field)),
                inner => at(inner, field),
            }) || names_it(inner, places, name)
        }),
        Value::Array(items) => items.iter().any(|item| names_it(item, places, name)),
        _ => false,
    }
}
