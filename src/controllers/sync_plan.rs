//! What one commit asks of the cluster: what to apply, in which order, with which stamps, and what to prune.
//! Pure: the DeployRepo controller observes, this module decides, the `cluster` room acts.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::manifests::{self, Manifest, ObjectId, group_of};
use crate::api::{GROUP, InventoryEntry, ROUTE_GROUP, RouteKey, RouteKind, SourceHistory, Steering, names};
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
    /// What the branch was moved from to that commit, when not simply forward.
    pub history: Option<&'a SourceHistory>,
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
    /// What the branch was moved from to that commit, when not simply forward.
    pub history: Option<&'a SourceHistory>,
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
            (Some(cause), commit) => {
                let moved = matches!(cause, Cause::New | Cause::Changed);
                let history = situation.history.filter(|_| moved);
                plan.apply.push(Planned { manifest, commit, history, cause, seen });
            }
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
            plan.delete.push(Deletion { entry: entry.clone(), uid: live.uid, resource_version: live.resource_version });
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
                let history =
                    self.history.map(|history| (names::SOURCE_HISTORY.to_owned(), history.to_string().into()));
                annotations.extend(history);
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
    /// All Deployments whose size is a Rollout's.
    pub workloads: BTreeSet<String>,
}

impl Steered {
    /// Adds the Deployment that one Rollout takes over, by its `workloadRef` as JSON.
    pub fn add_workload(&mut self, workload: &Value) {
        let text = |field: &str| workload.get(field).and_then(Value::as_str);
        let name = text("name").filter(|_| text("scaleDown").is_some_and(|when| when != "never"));
        self.workloads.extend(name.map(str::to_owned));
    }

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
    match (group_of(&manifest.api_version), manifest.kind.as_str()) {
        ("", "Service") | ("apps", "Deployment") | (GROUP, "Rollout") => true,
        (ROUTE_GROUP, kind) => RouteKind::named(kind).is_some(),
        _ => false,
    }
}

/// Puts into `desired` what belongs to others than git, as it is in the live object, and says whether there was
/// any: then the apply rests on this very version.
///
/// - A route of the Gateway API: the weights between the Services of a Rollout.
/// - A Service of a Rollout: the revision it selects. A selector is one value to the API server, so an apply without the
///   revision would send traffic to all versions at once.
/// - A Deployment that a Rollout takes over: its size, or each commit would bring its pods back for a moment.
/// - A Rollout whose replicas have left git: the API server takes a field away when the one manager that
///   declared it stops, and the default is 1 pod.
pub fn carry_over(live: &Value, desired: &mut Value, steered: &Steered) -> bool {
    let text = |field: &str| desired.get(field).and_then(Value::as_str).unwrap_or_default();
    let (group, kind) = (group_of(text("apiVersion")).to_owned(), text("kind").to_owned());
    match (group.as_str(), kind.as_str()) {
        (ROUTE_GROUP, kind) if RouteKind::named(kind).is_some() => {
            crate::traffic::gateway_api::carry_weights(live, desired, &steered.pairs);
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
        ("apps", "Deployment") => {
            let name = live.pointer("/metadata/name").and_then(Value::as_str);
            if !name.is_some_and(|name| steered.workloads.contains(name)) {
                return false;
            }
            let spec = desired.get_mut("spec").and_then(Value::as_object_mut);
            if let (Some(replicas), Some(spec)) = (live.pointer("/spec/replicas"), spec) {
                spec.insert("replicas".to_owned(), replicas.clone());
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

/// Whether an object is one of those by which a Rollout moves traffic.
pub fn steers(steering: &Steering, entry: &InventoryEntry) -> bool {
    match RouteKind::named(&entry.kind) {
        Some(kind) => {
            let route = RouteKey::new(kind, &entry.name);
            steering.strategy().canary.is_some_and(|canary| canary.routes().any(|(_, key)| key == route))
        }
        None => {
            let mut services = [&steering.stable_service, &steering.canary_service].into_iter().flatten();
            entry.kind == "Service" && services.any(|service| *service == entry.name)
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OWNER: &str = "shop/web";
    const HEAD: &str = "c2";

    fn manifest(kind: &str, name: &str, content: &str) -> Manifest {
        let api_version = match kind {
            "Rollout" => "sluice.dev/v1alpha1",
            "Deployment" => "apps/v1",
            "CustomResourceDefinition" => "apiextensions.k8s.io/v1",
            _ => "v1",
        };
        let namespace = if kind == "Namespace" || kind == "CustomResourceDefinition" { "" } else { "shop" };
        let object = json!({"apiVersion": api_version, "kind": kind,
            "metadata": {"name": name, "namespace": namespace, "annotations": {"team": "a"}}, "content": content});
        Manifest {
            digest: manifests::digest(&object),
            object,
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
            place: manifests::Place { file: "a.yaml".into(), document: 1, line: 1 },
        }
    }

    /// What the inventory says of a manifest that was applied with commit `c1`.
    fn entry(manifest: &Manifest) -> InventoryEntry {
        record(manifest, "c1".into())
    }

    /// What the cluster holds of a manifest that was applied with commit `c1`.
    fn live(manifest: &Manifest) -> (ObjectId, Seen) {
        let annotations = [
            (names::SOURCE_COMMIT, "c1"),
            (names::SOURCE_DIGEST, manifest.digest.as_str()),
            (names::DEPLOY_REPO, OWNER),
        ];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let live = Live { uid: "u1".into(), resource_version: "7".into(), deleting: false, annotations };
        (manifest.id(), Seen::Present(live))
    }

    fn annotated(seen: (ObjectId, Seen), key: &str, value: &str) -> (ObjectId, Seen) {
        let Seen::Present(mut live) = seen.1 else { panic!("not present") };
        live.annotations.insert(key.into(), value.into());
        (seen.0, Seen::Present(live))
    }

    fn situation<'a>(
        inventory: &'a [InventoryEntry],
        manifests: &'a [Manifest],
        live: &'a HashMap<ObjectId, Seen>,
    ) -> Situation<'a> {
        Situation { inventory, manifests, live, commit: HEAD, history: None, owner: OWNER, prune: true }
    }

    fn applied(plan: &SyncPlan<'_>) -> Vec<(String, Cause, String)> {
        plan.apply.iter().map(|p| (p.manifest.name.clone(), p.cause, p.commit.clone())).collect()
    }

    fn removed<'a>(plan: &'a SyncPlan<'a>) -> Vec<&'a str> {
        plan.delete.iter().map(|deletion| deletion.entry.name.as_str()).collect()
    }

    fn kept<'a>(plan: &'a SyncPlan<'a>) -> Vec<&'a str> {
        plan.retained.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn nothing_changed_is_nothing_to_write_and_keeps_the_commit() {
        let manifests = [manifest("ConfigMap", "a", "1")];
        let inventory = [entry(&manifests[0])];
        let seen = [live(&manifests[0])].into();
        let plan = plan_sync(&situation(&inventory, &manifests, &seen), |_| false);
        assert_eq!((applied(&plan), removed(&plan)), (vec![], vec![]));
        assert_eq!(plan.inventory_after(), inventory);
        assert_eq!(plan.inventory_ahead(&inventory), None);
    }

    #[test]
    fn a_changed_declaration_carries_the_commit_that_changed_it() {
        let old = manifest("ConfigMap", "a", "1");
        let manifests = [manifest("ConfigMap", "a", "2"), manifest("ConfigMap", "b", "1")];
        let inventory = [entry(&old)];
        let seen = [live(&old), (manifests[1].id(), Seen::Absent)].into();
        let plan = plan_sync(&situation(&inventory, &manifests, &seen), |_| false);
        assert_eq!(applied(&plan), [("a".into(), Cause::Changed, HEAD.into()), ("b".into(), Cause::New, HEAD.into())]);
        let object = plan.apply[0].stamped(OWNER);
        assert_eq!(
            object["metadata"]["annotations"],
            json!({"team": "a", "sluice.dev/source-commit": HEAD, "sluice.dev/source-digest": manifests[0].digest,
                "sluice.dev/deploy-repo": OWNER})
        );
        // Whoever rewrites history leaves a trace on what changed by it.
        let history = SourceHistory { from: "5".repeat(40), rewritten: true };
        let rewritten = Situation { history: Some(&history), ..situation(&inventory, &manifests, &seen) };
        let annotations = plan_sync(&rewritten, |_| false).apply[0].stamped(OWNER)["metadata"]["annotations"].clone();
        assert_eq!(annotations["sluice.dev/source-history"], history.to_string());
        // A new object is written down before it is made, without a digest; the old one keeps its own.
        let ahead = plan.inventory_ahead(&inventory).unwrap();
        assert_eq!(
            ahead.iter().map(|e| (e.name.as_str(), e.digest.as_str())).collect::<Vec<_>>(),
            [("a", old.digest.as_str()), ("b", "")]
        );
        // After a crash it is still new.
        let again = plan_sync(&situation(&ahead, &manifests, &seen), |_| false);
        assert_eq!(applied(&again)[1], ("b".into(), Cause::New, HEAD.into()));
        assert_eq!(again.inventory_ahead(&ahead), None);
    }

    #[test]
    fn what_is_gone_or_overwritten_comes_back_with_its_old_commit() {
        let manifests = [manifest("ConfigMap", "gone", "1"), manifest("ConfigMap", "other", "1")];
        let inventory = manifests.each_ref().map(entry);
        let other = annotated(live(&manifests[1]), names::SOURCE_DIGEST, "something else");
        let seen = [(manifests[0].id(), Seen::Absent), other].into();
        let plan = plan_sync(&situation(&inventory, &manifests, &seen), |_| false);
        assert_eq!(
            applied(&plan),
            [("gone".into(), Cause::Missing, "c1".into()), ("other".into(), Cause::Overwritten, "c1".into())]
        );
    }

    #[test]
    fn a_lost_inventory_is_read_back_from_the_objects() {
        let manifests = [manifest("ConfigMap", "a", "1")];
        let seen = [live(&manifests[0])].into();
        let plan = plan_sync(&situation(&[], &manifests, &seen), |_| false);
        assert_eq!(applied(&plan), []);
        assert_eq!(plan.inventory_after(), [entry(&manifests[0])]);
    }

    #[test]
    fn what_may_not_be_looked_at_is_judged_by_the_inventory() {
        let manifests = [manifest("Secret", "same", "1"), manifest("Secret", "new", "1")];
        let inventory = [entry(&manifests[0]), entry(&manifest("Secret", "left", "1"))];
        let nothing = HashMap::new();
        let plan = plan_sync(&situation(&inventory, &manifests, &nothing), |_| false);
        assert_eq!(applied(&plan), [("new".into(), Cause::New, HEAD.into())]);
        assert_eq!((removed(&plan), kept(&plan)), (vec![], vec!["left"]));
    }

    #[test]
    fn what_is_needed_comes_first_and_rollouts_last() {
        let manifests = ["Rollout", "Deployment", "Secret", "Service", "CustomResourceDefinition", "Namespace"]
            .map(|kind| manifest(kind, kind, "1"));
        let seen = manifests.iter().map(|manifest| (manifest.id(), Seen::Absent)).collect();
        let plan = plan_sync(&situation(&[], &manifests, &seen), |_| false);
        let order: Vec<&str> = plan.apply.iter().map(|planned| planned.manifest.kind.as_str()).collect();
        assert_eq!(order, ["Namespace", "CustomResourceDefinition", "Secret", "Deployment", "Service", "Rollout"]);
        assert!(plan.apply[1].is_prerequisite() && !plan.apply[2].is_prerequisite());
    }

    #[test]
    fn what_left_is_pruned_as_it_was_seen_with_every_guard() {
        let stays = [manifest("ConfigMap", "stays", "1")];
        let left = ["rollout", "plain", "disabled", "foreign", "unmarked", "absent", "used", "deleting"]
            .map(|name| manifest(if name == "rollout" { "Rollout" } else { "ConfigMap" }, name, "1"));
        let big = [manifest("Namespace", "shop", "1"), manifest("CustomResourceDefinition", "crd", "1")];
        let inventory: Vec<_> = stays.iter().chain(&left).chain(&big).map(entry).collect();
        let mut seen: HashMap<_, _> = stays.iter().chain(&left).chain(&big).map(live).collect();
        seen.extend([
            annotated(live(&left[2]), "sluice.dev/prune", "disabled"),
            annotated(live(&left[3]), names::DEPLOY_REPO, "other/repo"),
            (left[5].id(), Seen::Absent),
        ]);
        if let Some(Seen::Present(live)) = seen.get_mut(&left[4].id()) {
            live.annotations.clear();
        }
        if let Some(Seen::Present(live)) = seen.get_mut(&left[7].id()) {
            live.deleting = true;
        }
        let used = |entry: &InventoryEntry| entry.name == "used";
        let situation = situation(&inventory, &stays, &seen);
        let plan = plan_sync(&situation, used);
        assert_eq!(removed(&plan), ["rollout", "plain"]);
        assert_eq!((plan.delete[0].uid.as_str(), plan.delete[0].resource_version.as_str()), ("u1", "7"));
        assert_eq!(kept(&plan), ["crd", "deleting", "disabled", "used", "shop"]);
        // What is kept stays on the books; what is gone or somebody else's does not.
        let after = plan.inventory_after();
        let after: Vec<&str> = after.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(after, ["crd", "deleting", "disabled", "stays", "used", "shop"]);

        let plan = plan_sync(&Situation { prune: false, ..situation }, used);
        assert_eq!(removed(&plan), Vec::<&str>::new());
        assert!(kept(&plan).contains(&"plain"));
        // An empty source prunes nothing.
        let plan = plan_sync(&Situation { inventory: &inventory, manifests: &[], live: &seen, ..situation }, |_| false);
        assert_eq!(removed(&plan), Vec::<&str>::new());
    }

    #[test]
    fn a_new_api_version_is_the_same_object() {
        let mut newer = manifest("Deployment", "a", "1");
        let inventory = [entry(&newer)];
        newer.api_version = "apps/v2".into();
        let seen = [live(&newer)].into();
        let manifests = [newer];
        let plan = plan_sync(&situation(&inventory, &manifests, &seen), |_| false);
        assert_eq!(removed(&plan), Vec::<&str>::new());
        assert_eq!(plan.inventory_after()[0].api_version, "apps/v2");
    }

    #[test]
    fn an_object_of_another_deploy_repo_is_contested() {
        let manifests = [manifest("ConfigMap", "a", "1")];
        let seen = [annotated(live(&manifests[0]), names::DEPLOY_REPO, "other/repo")].into();
        let plan = plan_sync(&situation(&[], &manifests, &seen), |_| false);
        assert_eq!(plan.contested[0].owner, "other/repo");
        assert_eq!(applied(&plan), [("a".into(), Cause::New, HEAD.into())], "taken over when the other is gone");
    }

    fn steered() -> Steered {
        let mut steered = Steered::default();
        steered.add(&json!({"canary": {"stableService": "web-stable", "canaryService": "web-canary"}}));
        steered.add(&json!({"canary": {"stableService": "web-stable", "canaryService": "web-canary"}}));
        steered.add(&json!({"blueGreen": {"activeService": "api"}}));
        steered
    }

    #[test]
    fn traffic_that_a_rollout_moves_is_not_moved_by_a_commit() {
        assert_eq!(steered().pairs, [("web-stable".to_owned(), "web-canary".to_owned())]);
        assert_eq!(steered().services.iter().collect::<Vec<_>>(), ["api", "web-canary", "web-stable"]);
        let route = |kind: &str, stable: i32, canary: i32, timeout: &str| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"rules": [{"timeouts": {"request": timeout}, "backendRefs": [
                    {"name": "web-stable", "port": 80, "weight": stable},
                    {"name": "web-canary", "port": 80, "weight": canary}]}]}})
        };
        for kind in RouteKind::ALL.map(RouteKind::name) {
            let mut desired = route(kind, 100, 0, "5s");
            assert!(carry_over(&route(kind, 80, 20, "1s"), &mut desired, &steered()));
            assert_eq!(desired, route(kind, 80, 20, "5s"));
        }
        let mut desired = route("UDPRoute", 100, 0, "5s");
        assert!(!carry_over(&route("UDPRoute", 80, 20, "1s"), &mut desired, &steered()), "nobody steers these");

        let service = |name: &str, selector: Value| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"selector": selector}})
        };
        let moved = json!({"app": "web", "sluice.dev/revision": "abc"});
        let mut desired = service("web-stable", json!({"app": "shop"}));
        assert!(carry_over(&service("web-stable", moved.clone()), &mut desired, &steered()));
        assert_eq!(desired["spec"]["selector"], json!({"app": "shop", "sluice.dev/revision": "abc"}));
        // A Service that no Rollout names (any more) is git's alone.
        let mut desired = service("plain", json!({"app": "shop"}));
        assert!(!carry_over(&service("plain", moved), &mut desired, &steered()));
        assert_eq!(desired["spec"]["selector"], json!({"app": "shop"}));
    }

    #[test]
    fn a_deployment_that_a_rollout_takes_over_keeps_its_size() {
        let mut steered = Steered::default();
        steered.add_workload(&json!({"kind": "Deployment", "name": "shop", "scaleDown": "progressively"}));
        steered.add_workload(&json!({"kind": "Deployment", "name": "kept", "scaleDown": "never"}));
        steered.add_workload(&json!({"kind": "Deployment", "name": "plain"}));
        let deployment = |name: &str, replicas: i32, image: &str| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
                "spec": {"replicas": replicas, "template": {"image": image}}})
        };
        let mut desired = deployment("shop", 50, "i:2");
        assert!(carry_over(&deployment("shop", 0, "i:1"), &mut desired, &steered));
        assert_eq!(desired, deployment("shop", 0, "i:2"));
        for name in ["kept", "plain", "other"] {
            let mut desired = deployment(name, 50, "i:2");
            assert!(!carry_over(&deployment(name, 0, "i:1"), &mut desired, &steered));
            assert_eq!(desired, deployment(name, 50, "i:2"), "{name} is git's alone");
        }
    }

    #[test]
    fn replicas_that_leave_git_are_left_alone() {
        let live = |manager: &str| {
            json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "web",
                "managedFields": [{"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]},
                "spec": {"replicas": 7}})
        };
        let rollout = |spec: Value| json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "spec": spec});
        let mut desired = rollout(json!({"paused": true}));
        assert!(carry_over(&live(names::SYNC_FIELD_MANAGER), &mut desired, &Steered::default()));
        assert_eq!(desired["spec"], json!({"paused": true, "replicas": 7}));
        // Never ours: nothing to hold, so that an autoscaler stays the only one who owns it.
        let mut desired = rollout(json!({"paused": true}));
        carry_over(&live("autoscaler"), &mut desired, &Steered::default());
        assert_eq!(desired["spec"], json!({"paused": true}));
        // Git has a word: it counts.
        let mut desired = rollout(json!({"replicas": 3}));
        carry_over(&live(names::SYNC_FIELD_MANAGER), &mut desired, &Steered::default());
        assert_eq!(desired["spec"], json!({"replicas": 3}));
    }

    #[test]
    fn configuration_of_a_living_revision_is_found_in_its_template() {
        let template = json!({"spec": {"serviceAccountName": "runner", "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env-key", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "env-all"}}]}],
            "volumes": [{"configMap": {"name": "vol"}}, {"secret": {"secretName": "vol-secret"}},
                {"projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"persistentVolumeClaim": {"claimName": "disk"}}]}});
        let needs = |kind: &str, name: &str| is_needed_by(&entry(&manifest(kind, name, "1")), &template);
        for (kind, name) in [
            ("ConfigMap", "env-all"),
            ("ConfigMap", "vol"),
            ("Secret", "pull"),
            ("Secret", "env-key"),
            ("Secret", "vol-secret"),
            ("Secret", "projected"),
            ("PersistentVolumeClaim", "disk"),
            ("ServiceAccount", "runner"),
        ] {
            assert!(needs(kind, name), "{kind} {name}");
        }
        for (kind, name) in [("ConfigMap", "pull"), ("Secret", "vol"), ("ConfigMap", "k"), ("Service", "runner")] {
            assert!(!needs(kind, name), "{kind} {name}");
        }
    }
}
