//! The cluster as last seen: one pruned projection per watched object, and which Rollouts each concerns.
//!
//! Pure memory. Watches feed it, and so do the answers to our own writes, so a decision never looks at an
//! object older than what this process itself wrote (the stale-cache faults of argo-rollouts #1904, #3080).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use kube::core::{ApiResource, DynamicObject};

use super::kinds::Kind;
use super::objects::{
    AnalysisRunObject, DeployRepoObject, DeploymentObject, EndpointSliceObject, Identity, InterventionObject, Key,
    PodObject, ReplicaSetObject, RolloutObject, RouteObject, ServiceObject, Undecodable, decode,
};
use crate::api::{
    AnalysisTemplateSpec, ClusterAnalysisTemplateSpec, ClusterMetricProviderSpec, MetricProviderSpec, RolloutSpec,
    RouteKind,
};

/// A named object whose spec only is of interest.
#[derive(Clone, Debug)]
pub struct SpecObject<Spec> {
    /// What every object has.
    pub identity: Identity,
    /// The spec, or the field that does not make sense.
    pub spec: Result<Spec, Undecodable>,
}

/// The shelves, one a kind.
#[derive(Default)]
struct Shelves {
    rollouts: Shelf<RolloutObject>,
    replica_sets: Shelf<ReplicaSetObject>,
    pods: Shelf<PodObject>,
    deployments: Shelf<DeploymentObject>,
    services: Shelf<ServiceObject>,
    endpoint_slices: Shelf<EndpointSliceObject>,
    routes: BTreeMap<RouteKind, Shelf<RouteObject>>,
    analysis_runs: Shelf<AnalysisRunObject>,
    analysis_templates: Shelf<SpecObject<AnalysisTemplateSpec>>,
    cluster_analysis_templates: Shelf<SpecObject<ClusterAnalysisTemplateSpec>>,
    metric_providers: Shelf<SpecObject<MetricProviderSpec>>,
    cluster_metric_providers: Shelf<SpecObject<ClusterMetricProviderSpec>>,
    interventions: Shelf<InterventionObject>,
    deploy_repos: Shelf<DeployRepoObject>,
    /// Where a kind is served that a cluster may do without, or may serve in an older version; `None` when it is not.
    served: BTreeMap<Kind, Option<ApiResource>>,
    /// Which Rollouts name a Service, a route or a template.
    referred: HashMap<(Kind, Key), BTreeSet<Key>>,
    /// What each Rollout names, for taking it out of `referred`.
    references: HashMap<Key, Vec<(Kind, Key)>>,
    /// Objects by the Rollout (or, for EndpointSlices, the Service) they belong to.
    members: HashMap<(Kind, Key), BTreeSet<Key>>,
}

struct Shelf<T>(BTreeMap<Key, Arc<T>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// The cluster as last seen.
#[derive(Default)]
pub struct Index {
    shelves: RwLock<Shelves>,
}

impl Index {
    /// Takes in an object, unless a newer version of it is already here. Returns the Rollouts it concerns.
    pub fn apply(&self, kind: Kind, object: &DynamicObject) -> BTreeSet<Key> {
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        shelves.apply(kind, object)
    }

    /// Takes in the size of a Deployment that was written just now.
    pub fn scaled(&self, key: &Key, uid: &str, version: &str, replicas: i32) {
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = shelves.deployments.0.get(key) else { return };
        if known.identity.uid != uid || is_newer(&known.identity.resource_version, version) {
            return;
        }
        let mut scaled = DeploymentObject::clone(known);
        // What the status says is about the size before: of new pods none is ready.
        scaled.ready = scaled.ready.min(known.replicas);
        scaled.replicas = replicas;
        version.clone_into(&mut scaled.identity.resource_version);
        shelves.deployments.put(key, scaled);
    }

    /// Takes in that a pod was told to end just now.
    pub fn evicted(&self, key: &Key, uid: &str) {
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = shelves.pods.0.get(key).filter(|known| known.identity.uid == uid) else { return };
        let mut ending = PodObject::clone(known);
        ending.identity.deleting = true;
        shelves.pods.put(key, ending);
    }

    /// Forgets an object, unless one of the same name but another uid has taken its place. Returns the
    /// Rollouts it concerned.
    pub fn remove(&self, kind: Kind, key: &Key, uid: &str) -> BTreeSet<Key> {
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        if shelves.identity(kind, key).is_none_or(|known| known.uid != uid) {
            return BTreeSet::new();
        }
        let concerned = shelves.concerned(kind, key);
        shelves.remove(kind, key);
        concerned
    }

    /// Forgets every object of a kind in `namespace` (all, when none) that a complete list did not hold.
    pub fn retain(&self, kind: Kind, namespace: Option<&str>, listed: &BTreeSet<Key>) -> BTreeSet<Key> {
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        let within = |key: &Key| namespace.is_none_or(|namespace| namespace == key.namespace);
        let gone: Vec<Key> =
            shelves.keys(kind).into_iter().filter(|key| within(key) && !listed.contains(key)).collect();
        let mut concerned = BTreeSet::new();
        for key in gone {
            concerned.extend(shelves.concerned(kind, &key));
            shelves.remove(kind, &key);
        }
        concerned
    }

    /// The keys of a kind.
    pub fn keys(&self, kind: Kind) -> Vec<Key> {
        self.read(|shelves| shelves.keys(kind))
    }

    /// A Rollout; one with a `workloadRef` has the template that the workload has now, if that is there.
    pub fn rollout(&self, key: &Key) -> Option<Arc<RolloutObject>> {
        self.read(|shelves| shelves.rollouts.0.get(key).cloned())
    }

    /// A Service.
    pub fn service(&self, key: &Key) -> Option<Arc<ServiceObject>> {
        self.read(|shelves| shelves.services.0.get(key).cloned())
    }

    /// A Deployment.
    pub fn deployment(&self, key: &Key) -> Option<Arc<DeploymentObject>> {
        self.read(|shelves| shelves.deployments.0.get(key).cloned())
    }

    /// A route.
    pub fn route(&self, kind: RouteKind, key: &Key) -> Option<Arc<RouteObject>> {
        self.read(|shelves| shelves.routes.get(&kind)?.0.get(key).cloned())
    }

    /// Notes where the API server serves a kind, or that it does not. Returns the Rollouts that name one, when that
    /// is news.
    pub fn set_served(&self, kind: Kind, at: Option<ApiResource>) -> BTreeSet<Key> {
        let mut shelves = self.shelves.write().unwrap_or_else(PoisonError::into_inner);
        let is_there = at.is_some();
        let was_there = shelves.served.insert(kind, at).is_none_or(|before| before.is_some());
        if is_there == was_there {
            return BTreeSet::new();
        }
        shelves.referred.iter().filter(|((named, _), _)| *named == kind).flat_map(|(_, keys)| keys).cloned().collect()
    }

    /// The API server was asked and does not serve this kind.
    pub fn is_absent(&self, kind: Kind) -> bool {
        self.read(|shelves| matches!(shelves.served.get(&kind), Some(None)))
    }

    /// Where to write an object of a kind: where it was read from.
    pub fn resource(&self, kind: Kind) -> ApiResource {
        self.read(|shelves| shelves.served.get(&kind).cloned().flatten()).unwrap_or_else(|| kind.resource())
    }

    /// A ReplicaSet.
    pub fn replica_set(&self, key: &Key) -> Option<Arc<ReplicaSetObject>> {
        self.read(|shelves| shelves.replica_sets.0.get(key).cloned())
    }

    /// The ReplicaSets of a Rollout.
    pub fn replica_sets_of(&self, rollout: &Key) -> Vec<Arc<ReplicaSetObject>> {
        self.read(|shelves| shelves.members_of(Kind::ReplicaSet, rollout, &shelves.replica_sets))
    }

    /// The pods of a Rollout, those that are still ending included.
    pub fn pods_of(&self, rollout: &Key) -> Vec<Arc<PodObject>> {
        self.read(|shelves| shelves.members_of(Kind::Pod, rollout, &shelves.pods))
    }

    /// The EndpointSlices of a Service.
    pub fn endpoint_slices_of(&self, service: &Key) -> Vec<Arc<EndpointSliceObject>> {
        self.read(|shelves| shelves.members_of(Kind::EndpointSlice, service, &shelves.endpoint_slices))
    }

    /// An AnalysisRun.
    pub fn analysis_run(&self, key: &Key) -> Option<Arc<AnalysisRunObject>> {
        self.read(|shelves| shelves.analysis_runs.0.get(key).cloned())
    }

    /// The AnalysisRuns of a Rollout.
    pub fn analysis_runs_of(&self, rollout: &Key) -> Vec<Arc<AnalysisRunObject>> {
        self.read(|shelves| shelves.members_of(Kind::AnalysisRun, rollout, &shelves.analysis_runs))
    }

    /// The Interventions on a Rollout.
    pub fn interventions_of(&self, rollout: &Key) -> Vec<Arc<InterventionObject>> {
        self.read(|shelves| shelves.members_of(Kind::Intervention, rollout, &shelves.interventions))
    }

    /// An AnalysisTemplate.
    pub fn analysis_template(&self, key: &Key) -> Option<Arc<SpecObject<AnalysisTemplateSpec>>> {
        self.read(|shelves| shelves.analysis_templates.0.get(key).cloned())
    }

    /// A ClusterAnalysisTemplate.
    pub fn cluster_analysis_template(&self, name: &str) -> Option<Arc<SpecObject<ClusterAnalysisTemplateSpec>>> {
        self.read(|shelves| shelves.cluster_analysis_templates.0.get(&Key::new("", name)).cloned())
    }

    /// A MetricProvider.
    pub fn metric_provider(&self, key: &Key) -> Option<Arc<SpecObject<MetricProviderSpec>>> {
        self.read(|shelves| shelves.metric_providers.0.get(key).cloned())
    }

    /// A ClusterMetricProvider.
    pub fn cluster_metric_provider(&self, name: &str) -> Option<Arc<SpecObject<ClusterMetricProviderSpec>>> {
        self.read(|shelves| shelves.cluster_metric_providers.0.get(&Key::new("", name)).cloned())
    }

    /// A DeployRepo.
    pub fn deploy_repo(&self, key: &Key) -> Option<Arc<DeployRepoObject>> {
        self.read(|shelves| shelves.deploy_repos.0.get(key).cloned())
    }

    /// All DeployRepos.
    pub fn deploy_repos(&self) -> Vec<Arc<DeployRepoObject>> {
        self.read(|shelves| shelves.deploy_repos.0.values().cloned().collect())
    }

    /// All Rollouts.
    pub fn rollouts(&self) -> Vec<Arc<RolloutObject>> {
        self.read(|shelves| shelves.rollouts.0.values().cloned().collect())
    }

    /// The Rollouts that name this object, oldest first: the first of them may use it.
    pub fn claimants(&self, kind: Kind, key: &Key) -> Vec<Key> {
        self.read(|shelves| {
            let claimants = shelves.referred.get(&(kind, key.clone())).into_iter().flatten();
            let mut by_age: Vec<_> = claimants
                .map(|key| (shelves.rollouts.0.get(key).and_then(|rollout| rollout.identity.created_at), key.clone()))
                .collect();
            by_age.sort();
            by_age.into_iter().map(|(_, key)| key).collect()
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Shelves) -> T) -> T {
        look(&self.shelves.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shelves {
    fn apply(&mut self, kind: Kind, object: &DynamicObject) -> BTreeSet<Key> {
        let key = Key::new(
            object.metadata.namespace.clone().unwrap_or_default(),
            object.metadata.name.clone().unwrap_or_default(),
        );
        let incoming = object.metadata.resource_version.clone().unwrap_or_default();
        if self.identity(kind, &key).is_some_and(|known| is_newer(&known.resource_version, &incoming)) {
            return BTreeSet::new();
        }
        let mut concerned = self.concerned(kind, &key);
        match kind {
            Kind::Rollout => {
                let rollout = RolloutObject::of(object);
                let asked = rollout.spec.as_ref().ok();
                let left = asked.and_then(|spec| rollout.status.as_ref()?.leaves(spec));
                self.set_references(&key, asked.into_iter().chain(&left));
                self.rollouts.put(&key, rollout);
                self.fill_template(&key);
            }
            Kind::ReplicaSet => {
                let set = ReplicaSetObject::of(object);
                self.join(kind, Key::new(key.namespace.clone(), set.rollout.clone()), &key);
                self.replica_sets.put(&key, set);
            }
            Kind::Pod => {
                let pod = PodObject::of(object);
                self.join(kind, Key::new(key.namespace.clone(), pod.rollout.clone()), &key);
                self.pods.put(&key, pod);
            }
            Kind::Deployment => {
                self.deployments.put(&key, DeploymentObject::of(object));
                for rollout in &concerned {
                    self.fill_template(rollout);
                }
            }
            Kind::Service => self.services.put(&key, ServiceObject::of(object)),
            Kind::EndpointSlice => {
                let slice = EndpointSliceObject::of(object);
                if slice.service.is_empty() {
                    return concerned;
                }
                self.join(kind, Key::new(key.namespace.clone(), slice.service.clone()), &key);
                self.endpoint_slices.put(&key, slice);
            }
            Kind::Route(route) => self.routes.entry(route).or_default().put(&key, RouteObject::of(object)),
            Kind::AnalysisRun => {
                let run = AnalysisRunObject::of(object);
                if let Ok(spec) = &run.spec {
                    self.join(kind, Key::new(key.namespace.clone(), spec.rollout.clone()), &key);
                }
                self.analysis_runs.put(&key, run);
            }
            Kind::Intervention => {
                let intervention = InterventionObject::of(object);
                if let Ok(spec) = &intervention.spec {
                    self.join(kind, Key::new(key.namespace.clone(), spec.rollout.clone()), &key);
                }
                self.interventions.put(&key, intervention);
            }
            Kind::AnalysisTemplate => self.analysis_templates.put(&key, spec_of(object)),
            Kind::ClusterAnalysisTemplate => self.cluster_analysis_templates.put(&key, spec_of(object)),
            Kind::MetricProvider => self.metric_providers.put(&key, spec_of(object)),
            Kind::ClusterMetricProvider => self.cluster_metric_providers.put(&key, spec_of(object)),
            Kind::DeployRepo => self.deploy_repos.put(&key, DeployRepoObject::of(object)),
        }
        concerned.extend(self.concerned(kind, &key));
        concerned
    }

    fn remove(&mut self, kind: Kind, key: &Key) {
        match kind {
            Kind::Rollout => {
                self.set_references(key, []);
                self.rollouts.0.remove(key);
            }
            Kind::ReplicaSet => self.replica_sets.0.remove(key).map_or((), drop),
            Kind::Pod => self.pods.0.remove(key).map_or((), drop),
            Kind::Deployment => {
                self.deployments.0.remove(key);
                for rollout in self.concerned(kind, key) {
                    self.fill_template(&rollout);
                }
            }
            Kind::Service => self.services.0.remove(key).map_or((), drop),
            Kind::EndpointSlice => self.endpoint_slices.0.remove(key).map_or((), drop),
            Kind::Route(route) => self.routes.entry(route).or_default().0.remove(key).map_or((), drop),
            Kind::AnalysisRun => self.analysis_runs.0.remove(key).map_or((), drop),
            Kind::AnalysisTemplate => self.analysis_templates.0.remove(key).map_or((), drop),
            Kind::ClusterAnalysisTemplate => self.cluster_analysis_templates.0.remove(key).map_or((), drop),
            Kind::MetricProvider => self.metric_providers.0.remove(key).map_or((), drop),
            Kind::ClusterMetricProvider => self.cluster_metric_providers.0.remove(key).map_or((), drop),
            Kind::Intervention => self.interventions.0.remove(key).map_or((), drop),
            Kind::DeployRepo => self.deploy_repos.0.remove(key).map_or((), drop),
        }
        self.members.retain(|(member_kind, _), members| {
            if *member_kind == kind {
                members.remove(key);
            }
            !members.is_empty()
        });
    }

    fn keys(&self, kind: Kind) -> Vec<Key> {
        match kind {
            Kind::Rollout => self.rollouts.keys(),
            Kind::ReplicaSet => self.replica_sets.keys(),
            Kind::Pod => self.pods.keys(),
            Kind::Deployment => self.deployments.keys(),
            Kind::Service => self.services.keys(),
            Kind::EndpointSlice => self.endpoint_slices.keys(),
            Kind::Route(route) => self.routes.get(&route).map(Shelf::keys).unwrap_or_default(),
            Kind::AnalysisRun => self.analysis_runs.keys(),
            Kind::AnalysisTemplate => self.analysis_templates.keys(),
            Kind::ClusterAnalysisTemplate => self.cluster_analysis_templates.keys(),
            Kind::MetricProvider => self.metric_providers.keys(),
            Kind::ClusterMetricProvider => self.cluster_metric_providers.keys(),
            Kind::Intervention => self.interventions.keys(),
            Kind::DeployRepo => self.deploy_repos.keys(),
        }
    }

    fn identity(&self, kind: Kind, key: &Key) -> Option<&Identity> {
        match kind {
            Kind::Rollout => self.rollouts.0.get(key).map(|object| &object.identity),
            Kind::ReplicaSet => self.replica_sets.0.get(key).map(|object| &object.identity),
            Kind::Pod => self.pods.0.get(key).map(|object| &object.identity),
            Kind::Deployment => self.deployments.0.get(key).map(|object| &object.identity),
            Kind::Service => self.services.0.get(key).map(|object| &object.identity),
            Kind::EndpointSlice => self.endpoint_slices.0.get(key).map(|object| &object.identity),
            Kind::Route(route) => self.routes.get(&route)?.0.get(key).map(|object| &object.identity),
            Kind::AnalysisRun => self.analysis_runs.0.get(key).map(|object| &object.identity),
            Kind::AnalysisTemplate => self.analysis_templates.0.get(key).map(|object| &object.identity),
            Kind::ClusterAnalysisTemplate => self.cluster_analysis_templates.0.get(key).map(|object| &object.identity),
            Kind::MetricProvider => self.metric_providers.0.get(key).map(|object| &object.identity),
            Kind::ClusterMetricProvider => self.cluster_metric_providers.0.get(key).map(|object| &object.identity),
            Kind::Intervention => self.interventions.0.get(key).map(|object| &object.identity),
            Kind::DeployRepo => self.deploy_repos.0.get(key).map(|object| &object.identity),
        }
    }

    /// The Rollouts that must be looked at when this object changes.
    fn concerned(&self, kind: Kind, key: &Key) -> BTreeSet<Key> {
        let of = |name: &str| Key::new(key.namespace.clone(), name);
        let referred = |kind: Kind, key: &Key| self.referred.get(&(kind, key.clone())).cloned().unwrap_or_default();
        match kind {
            Kind::Rollout => {
                // A Rollout also concerns those that claim the same Service or route.
                let rivals = self.references.get(key).into_iter().flatten();
                let mut concerned: BTreeSet<Key> =
                    rivals.filter(|(kind, _)| is_claimed(*kind)).flat_map(|(kind, key)| referred(*kind, key)).collect();
                concerned.insert(key.clone());
                concerned
            }
            Kind::ReplicaSet => self.replica_sets.0.get(key).map(|set| of(&set.rollout)).into_iter().collect(),
            Kind::Pod => self.pods.0.get(key).map(|pod| of(&pod.rollout)).into_iter().collect(),
            Kind::EndpointSlice => {
                let service = self.endpoint_slices.0.get(key).map(|slice| of(&slice.service));
                service.map(|service| referred(Kind::Service, &service)).unwrap_or_default()
            }
            Kind::AnalysisRun => {
                let spec = self.analysis_runs.0.get(key).and_then(|run| run.spec.as_ref().ok());
                spec.map(|spec| of(&spec.rollout)).into_iter().collect()
            }
            Kind::Intervention => {
                let spec = self.interventions.0.get(key).and_then(|word| word.spec.as_ref().ok());
                spec.map(|spec| of(&spec.rollout)).into_iter().collect()
            }
            Kind::Deployment
            | Kind::Service
            | Kind::Route(_)
            | Kind::AnalysisTemplate
            | Kind::ClusterAnalysisTemplate => referred(kind, key),
            // Rare, and a Rollout names its providers only through its templates: look at all that judge.
            Kind::MetricProvider | Kind::ClusterMetricProvider => self
                .rollouts
                .0
                .keys()
                .filter(|rollout| kind.is_cluster_scoped() || rollout.namespace == key.namespace)
                .filter(|rollout| {
                    let named = self.references.get(*rollout).into_iter().flatten();
                    named.into_iter().any(|(kind, _)| !is_claimed(*kind))
                })
                .cloned()
                .collect(),
            Kind::DeployRepo => BTreeSet::new(),
        }
    }

    /// What a Rollout names: by its spec, and by the strategy that is left while it is left.
    fn set_references<'s>(&mut self, rollout: &Key, specs: impl IntoIterator<Item = &'s RolloutSpec>) {
        for reference in self.references.remove(rollout).unwrap_or_default() {
            if let Some(rollouts) = self.referred.get_mut(&reference) {
                rollouts.remove(rollout);
                if rollouts.is_empty() {
                    self.referred.remove(&reference);
                }
            }
        }
        let mut list = Vec::new();
        let within = |name: &str| Key::new(rollout.namespace.clone(), name);
        for named in specs.into_iter().map(RolloutSpec::references) {
            if let Some(workload) = &named.workload {
                list.push((Kind::Deployment, within(workload)));
            }
            for service in named.stable_service.iter().chain(&named.canary_service) {
                list.push((Kind::Service, within(service)));
            }
            for route in &named.routes {
                list.push((Kind::Route(route.kind), within(&route.name)));
            }
            for template in &named.analysis_templates {
                list.push(if template.cluster_scope {
                    (Kind::ClusterAnalysisTemplate, Key::new("", &template.template_name))
                } else {
                    (Kind::AnalysisTemplate, within(&template.template_name))
                });
            }
        }
        for reference in &list {
            self.referred.entry(reference.clone()).or_default().insert(rollout.clone());
        }
        if !list.is_empty() {
            self.references.insert(rollout.clone(), list);
        }
    }

    /// Gives a Rollout that has a `workloadRef` the workload's template, or none while that is not there.
    fn fill_template(&mut self, rollout: &Key) {
        let Some(known) = self.rollouts.0.get(rollout) else { return };
        let Some(workload) = known.spec.as_ref().ok().and_then(|spec| spec.workload_ref.as_ref()) else { return };
        let workload = self.deployments.0.get(&Key::new(rollout.namespace.clone(), &workload.name));
        let template = workload.map(|workload| workload.template.clone()).unwrap_or_default();
        let mut filled = RolloutObject::clone(known);
        if let Ok(spec) = &mut filled.spec {
            spec.template = template;
        }
        self.rollouts.put(rollout, filled);
    }

    fn join(&mut self, kind: Kind, group: Key, member: &Key) {
        self.members.entry((kind, group)).or_default().insert(member.clone());
    }

    fn members_of<T>(&self, kind: Kind, group: &Key, shelf: &Shelf<T>) -> Vec<Arc<T>> {
        let members = self.members.get(&(kind, group.clone())).into_iter().flatten();
        members.filter_map(|key| shelf.0.get(key).cloned()).collect()
    }
}

impl<T> Shelf<T> {
    fn put(&mut self, key: &Key, object: T) {
        self.0.insert(key.clone(), Arc::new(object));
    }
    fn keys(&self) -> Vec<Key> {
        self.0.keys().cloned().collect()
    }
}

fn spec_of<Spec: serde::de::DeserializeOwned>(object: &DynamicObject) -> SpecObject<Spec> {
    let identity = crate::cluster::objects::identity(object);
    SpecObject { identity, spec: decode(&object.data["spec"], "spec") }
}

/// Only one Rollout at a time may steer one of these.
fn is_claimed(kind: Kind) -> bool {
    matches!(kind, Kind::Deployment | Kind::Service | Kind::Route(_))
}

/// Resource versions are opaque by contract; where both are numbers (every API server with etcd) they grow,
/// and what cannot be compared is taken as it comes.
fn is_newer(known: &str, incoming: &str) -> bool {
    match (known.parse::<u128>(), incoming.parse::<u128>()) {
        (Ok(known), Ok(incoming)) => known > incoming,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn rollout(name: &str, created: &str, version: u32) -> DynamicObject {
        object(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string(),
                "creationTimestamp": created},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {}, "strategy": {"canary": {
                "stableService": "web-stable", "canaryService": "web-canary",
                "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": "web"}]}},
                "analysis": {"templates": [{"templateName": "errors"}]}}}}
        }))
    }

    fn named(kind: &str, name: &str, version: u32) -> DynamicObject {
        object(json!({"apiVersion": "v1", "kind": kind,
            "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string()}}))
    }

    #[test]
    fn every_object_wakes_the_rollouts_it_concerns_and_no_other() {
        let index = Index::default();
        let web = Key::new("shop", "web");
        assert_eq!(index.apply(Kind::Rollout, &rollout("web", "2026-01-01T00:00:00Z", 5)), [web.clone()].into());
        for (kind, name) in
            [(Kind::Service, "web-stable"), (Kind::Route(RouteKind::Http), "web"), (Kind::AnalysisTemplate, "errors")]
        {
            assert_eq!(index.apply(kind, &named(kind.name(), name, 6)), [web.clone()].into(), "{name}");
            assert!(index.apply(kind, &named(kind.name(), "another", 6)).is_empty());
        }
        let slice = object(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-canary-x", "namespace": "shop", "resourceVersion": "7",
                "labels": {"kubernetes.io/service-name": "web-canary"}}}));
        assert_eq!(index.apply(Kind::EndpointSlice, &slice), [web.clone()].into());
        assert_eq!(index.endpoint_slices_of(&Key::new("shop", "web-canary")).len(), 1);
        assert_eq!(index.remove(Kind::EndpointSlice, &Key::new("shop", "web-canary-x"), ""), [web].into());
        assert!(index.endpoint_slices_of(&Key::new("shop", "web-canary")).is_empty());
    }

    #[test]
    fn an_older_version_never_replaces_a_newer_one() {
        let index = Index::default();
        index.apply(Kind::Service, &named("Service", "s", 9));
        assert!(index.apply(Kind::Service, &named("Service", "s", 8)).is_empty());
        assert_eq!(index.service(&Key::new("shop", "s")).unwrap().identity.resource_version, "9");
    }

    #[test]
    fn the_elder_claims_and_the_rival_is_woken_when_it_goes() {
        let index = Index::default();
        index.apply(Kind::Rollout, &rollout("young", "2026-02-01T00:00:00Z", 1));
        index.apply(Kind::Rollout, &rollout("elder", "2026-01-01T00:00:00Z", 2));
        let service = Key::new("shop", "web-stable");
        let (young, elder) = (Key::new("shop", "young"), Key::new("shop", "elder"));
        assert_eq!(index.claimants(Kind::Service, &service), [elder.clone(), young.clone()]);
        assert!(index.remove(Kind::Rollout, &elder, "elder").contains(&young));
        assert_eq!(index.claimants(Kind::Service, &service), [young]);
    }

    #[test]
    fn a_kind_that_comes_or_goes_wakes_those_that_name_it() {
        let index = Index::default();
        let web = Key::new("shop", "web");
        index.apply(Kind::Rollout, &rollout("web", "2026-01-01T00:00:00Z", 1));
        let (http, tcp) = (Kind::Route(RouteKind::Http), Kind::Route(RouteKind::Tcp));
        assert!(index.set_served(tcp, None).is_empty(), "nobody names one");
        assert_eq!(index.set_served(http, None), [web.clone()].into());
        assert!(index.is_absent(http));
        assert!(index.set_served(http, None).is_empty(), "it is no news");
        assert_eq!(index.set_served(http, Some(http.resource())), [web].into());
        assert!(!index.is_absent(http));
        // A write goes to the version that was read; before anything was read, to the newest.
        let older = tcp.resources().pop().unwrap();
        assert_eq!(index.resource(tcp).version, "v1");
        index.set_served(tcp, Some(older));
        assert_eq!(index.resource(tcp).api_version, "gateway.networking.k8s.io/v1alpha2");
    }

    #[test]
    fn routes_of_one_name_and_different_kinds_are_different() {
        let index = Index::default();
        let web = Key::new("shop", "web");
        for kind in RouteKind::ALL {
            index.apply(Kind::Route(kind), &named(kind.name(), "web", 1));
        }
        index.remove(Kind::Route(RouteKind::Grpc), &web, "web");
        assert!(index.route(RouteKind::Grpc, &web).is_none());
        for kind in [RouteKind::Http, RouteKind::Tls, RouteKind::Tcp] {
            assert_eq!(index.route(kind, &web).unwrap().value["kind"], kind.name());
            assert_eq!(index.keys(Kind::Route(kind)), std::slice::from_ref(&web));
        }
    }

    #[test]
    fn a_list_ends_what_it_does_not_hold() {
        let index = Index::default();
        index.apply(Kind::Service, &named("Service", "a", 1));
        index.apply(Kind::Service, &named("Service", "b", 1));
        index.retain(Kind::Service, None, &[Key::new("shop", "a")].into());
        assert_eq!(index.keys(Kind::Service), [Key::new("shop", "a")]);
        index.retain(Kind::Service, Some("elsewhere"), &BTreeSet::new());
        assert_eq!(index.keys(Kind::Service).len(), 1);
    }
}
