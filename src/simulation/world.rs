//! A small, deterministic cluster with one Rollout in it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::objects::{
    AnalysisRun, Conflict, Knobs, Pod, ReplicaSet, Route, Script, Service, Versions, Workload, Write, Written,
};
use crate::api::{
    AnalysisPhase, HeaderRoute, OnAuditUnavailable, PodTemplate, RolloutSpec, RolloutStatus, RouteKey, SourceHistory,
    Transition, TransitionEvent, weight,
};
use crate::engine::{
    AnalysisState, Effect, Ending, InterventionState, LedgerState, PodState, Problem, RevisionState, RouteState,
    RuleState, ServiceState, Snapshot, StrategyChange, WorkloadState,
};

/// The kinds of objects that have versions.
const REPLICA_SET: &str = "ReplicaSet";
const DEPLOYMENT: &str = "Deployment";
const SERVICE: &str = "Service";
const ANALYSIS: &str = "AnalysisRun";
const ROLLOUT: &str = "Rollout";

/// A cluster with one Rollout, and a clock that moves only when told.
#[derive(Clone, Debug)]
pub struct World {
    /// The virtual time.
    pub now: DateTime<Utc>,
    /// What is wanted.
    pub spec: RolloutSpec,
    /// The generation of the spec.
    pub generation: i64,
    /// The Rollout is being deleted, or the operator uninstalled.
    pub ending: Option<Ending>,
    /// It carries our finalizer.
    pub finalizer: bool,
    /// It is gone.
    pub gone: bool,
    /// The status as stored.
    pub status: RolloutStatus,
    /// The ReplicaSets by revision.
    pub replica_sets: BTreeMap<String, ReplicaSet>,
    /// The Deployment that keeps the template.
    pub workload: Option<Workload>,
    /// The Services by name.
    pub services: BTreeMap<String, Service>,
    /// The routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// The AnalysisRuns by name.
    pub analyses: BTreeMap<String, AnalysisRun>,
    /// Interventions not yet taken, oldest first.
    pub interventions: Vec<InterventionState>,
    /// What the ledger says.
    pub ledger: LedgerState,
    /// The ledger cannot be written: transitions stay in the status.
    pub ledger_away: bool,
    /// The transitions the ledger has recorded.
    pub recorded: Vec<Transition>,
    /// What is wrong with what the spec refers to.
    pub problems: Vec<Problem>,
    /// The commit that asked for the spec.
    pub source_commit: Option<String>,
    /// What the branch was moved from, when not simply forward.
    pub source_history: Option<SourceHistory>,
    /// The epoch of the leader.
    pub epoch: i64,
    /// How quick and how kind the world is.
    pub knobs: Knobs,
    /// What the metrics answer; the last that fits counts, and good is what they answer without one.
    pub scripts: Vec<Script>,
    /// Every write so far.
    pub writes: Vec<Write>,
    pub(super) identity: (String, String, String),
    pub(super) status_version: u64,
    pub(super) pods_made: u64,
}

impl World {
    /// A world in which nothing was deployed yet. The Services and routes that the spec names exist.
    pub fn new(spec: RolloutSpec, now: DateTime<Utc>) -> Self {
        let mut world = Self {
            now,
            generation: 1,
            ending: None,
            finalizer: false,
            gone: false,
            status: RolloutStatus::default(),
            replica_sets: BTreeMap::new(),
            workload: None,
            services: BTreeMap::new(),
            routes: BTreeMap::new(),
            analyses: BTreeMap::new(),
            interventions: Vec::new(),
            ledger: LedgerState { read: true, configured: true, ..LedgerState::default() },
            ledger_away: false,
            recorded: Vec::new(),
            problems: Vec::new(),
            source_commit: None,
            source_history: None,
            epoch: 1,
            knobs: Knobs::default(),
            scripts: Vec::new(),
            writes: Vec::new(),
            identity: ("default".to_owned(), "rollout".to_owned(), "00000000-0000-0000-0000-000000000000".to_owned()),
            status_version: 1,
            pods_made: 0,
            spec,
        };
        world.declare();
        world
    }

    /// What git declares beside the Rollout: the Services and routes that the spec names. A route that names two other
    /// Services than before is as git has it; nothing is pruned.
    pub(super) fn declare(&mut self) {
        let named = self.spec.references();
        for service in named.stable_service.iter().chain(&named.canary_service) {
            self.services.entry(service.clone()).or_default();
        }
        let pair = named.stable_service.unwrap_or_default();
        let pair = (pair, named.canary_service.unwrap_or_default());
        for key in named.routes {
            let route = self.routes.entry(key).or_default();
            if route.services != pair {
                route.services = pair.clone();
                route.rules = vec![RuleState { base: 100, stable: 100, canary: 0 }];
                route.version += 1;
            }
        }
    }

    /// The world that a snapshot is of. What the snapshot cannot tell is taken kindly: pods that are not ready
    /// soon are, a route that is not accepted soon is.
    pub fn from_snapshot(snapshot: &Snapshot, now: DateTime<Utc>) -> Self {
        let mut world = Self::new(snapshot.spec.clone(), now);
        world.identity = (snapshot.namespace.clone(), snapshot.name.clone(), snapshot.uid.clone());
        world.generation = snapshot.generation;
        world.ending = snapshot.ending;
        world.finalizer = snapshot.finalizer;
        world.status = snapshot.status.clone();
        world.interventions.clone_from(&snapshot.interventions);
        world.ledger = LedgerState { read: true, ..snapshot.ledger.clone() };
        // A record that something waits for does not come by itself; any other is taken kindly.
        let waited_for = snapshot.ledger.configured && snapshot.ledger.on_unavailable != OnAuditUnavailable::Continue;
        world.ledger_away =
            waited_for && snapshot.status.record_behind_since(snapshot.ledger.granularity, now).is_some();
        world.problems.clone_from(&snapshot.problems);
        world.source_commit.clone_from(&snapshot.source_commit);
        world.source_history.clone_from(&snapshot.source_history);
        world.epoch = snapshot.epoch;
        let least = world.min_ready();
        let soon = now + world.knobs.pod_ready_delay;
        for (revision, state) in &snapshot.revisions {
            let long = now - least - TimeDelta::seconds(1);
            let pods = (0..state.current.max(state.ready)).map(|index| {
                let ready_at = if index < state.available { long } else { now };
                let known = usize::try_from(index).ok().and_then(|index| state.pods.get(index));
                let created_at = known.map_or(long, |pod| pod.created_at);
                world.pods_made += 1;
                let ready_at = Some(if index < state.ready { ready_at } else { soon });
                Pod { number: world.pods_made, created_at, ready_at }
            });
            let set = ReplicaSet {
                template: state.template.clone(),
                replicas: state.replicas,
                pods: pods.collect(),
                ending: (state.current..state.unfinished).map(|_| now + world.knobs.grace).collect(),
                created_at: state.created_at.unwrap_or(now),
                version: 1,
            };
            world.replica_sets.insert(revision.clone(), set);
        }
        world.workload = snapshot.workload.as_ref().map(|state| {
            let template = snapshot.spec.template.clone();
            let mut workload = Workload::running(template, state.replicas, now);
            for (index, pod) in (0..).zip(&mut workload.pods) {
                pod.ready_at = Some(if index < state.ready { now } else { soon });
            }
            workload
        });
        let service = |state: &ServiceState| Service {
            selects: state.selects.clone(),
            published: state.ready.clone(),
            ..Service::default()
        };
        world.services = snapshot.services.iter().map(|(name, state)| (name.clone(), service(state))).collect();
        let accept_at = now + world.knobs.accept_delay;
        let named = snapshot.spec.references();
        let pair = (named.stable_service.unwrap_or_default(), named.canary_service.unwrap_or_default());
        let route = |state: &RouteState| Route {
            services: pair.clone(),
            rules: state.rules.clone(),
            header_routes: state.header_routes.clone(),
            accept_at: (!state.accepted).then_some(accept_at),
            ..Route::default()
        };
        world.routes = snapshot.routes.iter().map(|(name, state)| (name.clone(), route(state))).collect();
        for (name, state) in &snapshot.analyses {
            let interval = state.interval.filter(|interval| *interval > TimeDelta::zero());
            let interval = interval.unwrap_or(world.knobs.interval);
            let next = state.passed_since.map_or(now, |since| since + interval);
            let run = AnalysisRun {
                stage: state.stage.clone(),
                revision: state.revision.clone(),
                attempt: state.attempt,
                created_at: now,
                phase: state.phase,
                message: state.message.clone(),
                passed_since: state.passed_since,
                interval,
                next_sample: next.max(now),
                hold_until: state.hold_until,
                terminating: state.terminating,
                version: 1,
            };
            world.analyses.insert(name.clone(), run);
        }
        if let Some(interval) = world.analyses.values().map(|run| run.interval).max() {
            world.knobs.interval = interval;
        }
        world.settle();
        world
    }

    pub(super) fn min_ready(&self) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.spec.min_ready_seconds.unwrap_or(0).max(0)))
    }

    /// What the engine is shown.
    pub fn snapshot(&self) -> Snapshot {
        let (namespace, name, uid) = self.identity.clone();
        let least = self.min_ready();
        let count = |set: &ReplicaSet, length| {
            let ready = set.pods.iter().filter(|pod| pod.ready_for(length, self.now)).count();
            i32::try_from(ready).unwrap_or(i32::MAX)
        };
        let revision = |set: &ReplicaSet| RevisionState {
            replicas: set.replicas,
            current: i32::try_from(set.pods.len()).unwrap_or(i32::MAX),
            unfinished: i32::try_from(set.pods.len() + set.ending.len()).unwrap_or(i32::MAX),
            ready: count(set, TimeDelta::zero()),
            available: count(set, least),
            observed: true,
            created_at: Some(set.created_at),
            template: set.template.clone(),
            trouble: None,
            pods: set.pods.iter().map(|pod| self.pod_state(pod)).collect(),
        };
        let service =
            |service: &Service| ServiceState { selects: service.selects.clone(), ready: service.published.clone() };
        let route = |route: &Route| RouteState {
            rules: route.rules.clone(),
            header_routes: route.header_routes.clone(),
            stray: false,
            accepted: route.accept_at.is_none() && route.trouble.is_none(),
            trouble: route.trouble.clone(),
        };
        let analysis = |run: &AnalysisRun| AnalysisState {
            stage: run.stage.clone(),
            revision: run.revision.clone(),
            attempt: run.attempt,
            phase: run.phase,
            message: run.message.clone(),
            passed_since: run.passed_since,
            terminating: run.terminating,
            interval: Some(run.interval),
            hold_until: run.hold_until,
            changed: None,
        };
        let steers = |spec: &RolloutSpec| {
            let named = spec.references();
            let pair =
                (named.stable_service.clone().unwrap_or_default(), named.canary_service.clone().unwrap_or_default());
            let services = named.stable_service.iter().chain(&named.canary_service);
            let fits = |key| self.routes.get(key).is_some_and(|route: &Route| route.services == pair);
            services.into_iter().all(|name| self.services.contains_key(name)) && named.routes.iter().all(fits)
        };
        let (strategy_change, spec) = match self.status.leaves(&self.spec) {
            None => (StrategyChange::None, self.spec.clone()),
            Some(old) if steers(&old) => {
                (StrategyChange::Leaving { asked: Box::new(self.spec.strategy.steering()) }, old)
            }
            Some(_) => (StrategyChange::Gone, self.spec.clone()),
        };
        let named = spec.references();
        let seen_services: Vec<_> = named.stable_service.iter().chain(&named.canary_service).cloned().collect();
        Snapshot {
            namespace,
            name,
            uid,
            generation: self.generation,
            ending: self.ending,
            finalizer: self.finalizer,
            spec,
            strategy_change,
            status: self.status.clone(),
            problems: self.problems.clone(),
            revisions: self.replica_sets.iter().map(|(name, set)| (name.clone(), revision(set))).collect(),
            workload: self.spec.workload_ref.as_ref().zip(self.workload.as_ref()).map(|(named, workload)| {
                WorkloadState {
                    name: named.name.clone(),
                    revision: workload.template.revision(),
                    replicas: workload.replicas,
                    ready: workload.ready(self.now),
                }
            }),
            services: self
                .services
                .iter()
                .filter(|(name, _)| seen_services.contains(name))
                .map(|(name, state)| (name.clone(), service(state)))
                .collect(),
            routes: self
                .routes
                .iter()
                .filter(|(key, _)| named.routes.contains(key))
                .map(|(name, state)| (name.clone(), route(state)))
                .collect(),
            analyses: self.analyses.iter().map(|(name, run)| (name.clone(), analysis(run))).collect(),
            interventions: self.interventions.clone(),
            ledger: self.ledger.clone(),
            source_commit: self.source_commit.clone(),
            source_history: self.source_history.clone(),
            epoch: self.epoch,
        }
    }

    fn pod_state(&self, pod: &Pod) -> PodState {
        PodState {
            name: format!("pod-{}", pod.number),
            uid: pod.number.to_string(),
            created_at: pod.created_at,
            ready_since: pod.ready_at.filter(|at| *at <= self.now),
        }
    }

    /// The versions of everything in the present snapshot.
    pub fn versions(&self) -> Versions {
        let sets = self.replica_sets.iter().map(|(name, set)| ((REPLICA_SET, name.clone()), set.version));
        let services = self.services.iter().map(|(name, service)| ((SERVICE, name.clone()), service.version));
        let routes = self.routes.iter().map(|(name, route)| ((name.kind.name(), name.name.clone()), route.version));
        let runs = self.analyses.iter().map(|(name, run)| ((ANALYSIS, name.clone()), run.version));
        let workload = self.workload.iter().map(|it| ((DEPLOYMENT, DEPLOYMENT.to_owned()), it.version));
        Versions {
            of: sets.chain(services).chain(routes).chain(runs).chain(workload).collect(),
            status: self.status_version,
        }
    }

    /// Performs an effect that was decided on the present state.
    ///
    /// # Errors
    /// What it is about does not exist.
    pub fn perform(&mut self, effect: &Effect) -> Result<(), Conflict> {
        let versions = self.versions();
        self.perform_on(effect, &versions)
    }

    /// Performs an effect that was decided when the objects had these versions.
    ///
    /// # Errors
    /// The object that would be written has changed since, or does not exist.
    pub fn perform_on(&mut self, effect: &Effect, versions: &Versions) -> Result<(), Conflict> {
        let now = self.now;
        let check = |kind, name: &str, version: u64| match versions.of.get(&(kind, name.to_owned())) {
            Some(seen) if *seen == version => Ok(()),
            _ => Err(Conflict::Changed { kind, name: name.to_owned() }),
        };
        let missing = |kind, name: &str| Conflict::Missing { kind, name: name.to_owned() };
        if self.gone {
            return Err(missing(ROLLOUT, &self.identity.1));
        }
        match effect {
            Effect::CreateReplicaSet { revision, template, replicas } => {
                if self.replica_sets.contains_key(revision) {
                    // Recognised as ours: a second creation changes nothing.
                    return Ok(());
                }
                self.create(revision, template.clone(), *replicas);
            }
            Effect::Scale { revision, replicas } => {
                let set = self.replica_sets.get_mut(revision).ok_or_else(|| missing(REPLICA_SET, revision))?;
                check(REPLICA_SET, revision, set.version)?;
                set.replicas = *replicas;
                set.version += 1;
            }
            Effect::ScaleWorkload { workload, replicas } => {
                let state = self.workload.as_mut().ok_or_else(|| missing(DEPLOYMENT, workload))?;
                check(DEPLOYMENT, DEPLOYMENT, state.version)?;
                state.replicas = *replicas;
                state.version += 1;
            }
            Effect::DeleteReplicaSet { revision } => {
                let set = self.replica_sets.get(revision).ok_or_else(|| missing(REPLICA_SET, revision))?;
                check(REPLICA_SET, revision, set.version)?;
                self.replica_sets.remove(revision);
            }
            Effect::EvictPod { revision, uid, .. } => {
                let grace = self.knobs.grace;
                let set = self.replica_sets.get_mut(revision).ok_or_else(|| missing(REPLICA_SET, revision))?;
                let place = set.pods.iter().position(|pod| pod.number.to_string() == *uid);
                set.pods.remove(place.ok_or_else(|| missing("Pod", uid))?);
                set.ending.push(now + grace);
            }
            Effect::SelectRevision { service, revision } => {
                let state = self.services.get_mut(service).ok_or_else(|| missing(SERVICE, service))?;
                check(SERVICE, service, state.version)?;
                state.selects = Some(revision.clone());
                state.version += 1;
            }
            Effect::SelectEveryRevision { service } => {
                let state = self.services.get_mut(service).ok_or_else(|| missing(SERVICE, service))?;
                check(SERVICE, service, state.version)?;
                state.selects = None;
                state.version += 1;
            }
            Effect::SetWeight { route, percent } => {
                let state = self.routes.get_mut(route).ok_or_else(|| missing(route.kind.name(), &route.name))?;
                check(route.kind.name(), &route.name, state.version)?;
                for rule in &mut state.rules {
                    (rule.stable, rule.canary) = weight::split(rule.base, *percent);
                }
                state.accept_at = Some(now + self.knobs.accept_delay);
                state.version += 1;
            }
            Effect::SetHeaderRoutes { route, header_routes } => {
                let state = self.routes.get_mut(route).ok_or_else(|| missing(route.kind.name(), &route.name))?;
                check(route.kind.name(), &route.name, state.version)?;
                state.header_routes = header_routes.iter().map(HeaderRoute::id).collect();
                state.accept_at = Some(now + self.knobs.accept_delay);
                state.version += 1;
            }
            Effect::StartAnalysis { name, stage, revision, attempt, .. } => {
                let run = AnalysisRun {
                    stage: stage.clone(),
                    revision: revision.clone(),
                    attempt: *attempt,
                    created_at: now,
                    phase: AnalysisPhase::Pending,
                    message: "nothing was measured yet".to_owned(),
                    passed_since: None,
                    interval: self.knobs.interval,
                    next_sample: now + TimeDelta::seconds(1),
                    hold_until: None,
                    terminating: false,
                    version: 1,
                };
                if self.analyses.contains_key(name) {
                    return Ok(());
                }
                self.analyses.insert(name.clone(), run);
            }
            Effect::AddFinalizer | Effect::RemoveFinalizer { .. } => {
                if versions.status != self.status_version {
                    return Err(Conflict::Changed { kind: ROLLOUT, name: self.identity.1.clone() });
                }
                self.finalizer = *effect == Effect::AddFinalizer;
                self.status_version += 1;
                self.collect_garbage();
            }
            Effect::EndAnalysis { name } => {
                let run = self.analyses.get_mut(name).ok_or_else(|| missing(ANALYSIS, name))?;
                check(ANALYSIS, name, run.version)?;
                run.terminating = true;
                run.version += 1;
                if run.live() {
                    run.phase = AnalysisPhase::Terminated;
                    "ended by the operator".clone_into(&mut run.message);
                }
            }
        }
        self.writes.push(Write { at: now, written: Written::Effect(effect.clone()) });
        self.settle();
        Ok(())
    }

    /// A Rollout that is deleted and that nothing holds is gone, and what it owns goes with it.
    pub(super) fn collect_garbage(&mut self) {
        if self.ending == Some(Ending::Deleted) && !self.finalizer {
            self.gone = true;
            self.replica_sets.clear();
            self.analyses.clear();
        }
    }

    fn create(&mut self, revision: &str, template: PodTemplate, replicas: i32) {
        let set =
            ReplicaSet { template, replicas, pods: Vec::new(), ending: Vec::new(), created_at: self.now, version: 1 };
        self.replica_sets.insert(revision.to_owned(), set);
    }

    /// Writes a status that was decided on the present one.
    ///
    /// # Errors
    /// A leader of a higher epoch has written.
    pub fn write_status(&mut self, status: RolloutStatus) -> Result<(), Conflict> {
        let versions = self.versions();
        self.write_status_on(status, &versions)
    }

    /// Writes a status that was decided when the status had this version. The ledger then records what is new.
    ///
    /// # Errors
    /// The status has changed since, or a leader of a higher epoch has written.
    pub fn write_status_on(&mut self, status: RolloutStatus, versions: &Versions) -> Result<(), Conflict> {
        if self.gone {
            return Err(Conflict::Missing { kind: ROLLOUT, name: self.identity.1.clone() });
        }
        if versions.status != self.status_version {
            return Err(Conflict::Changed { kind: ROLLOUT, name: self.identity.1.clone() });
        }
        if status.epoch < self.status.epoch {
            return Err(Conflict::Epoch);
        }
        self.writes.push(Write { at: self.now, written: Written::Status(Box::new(status.clone())) });
        self.status = status;
        self.status_version += 1;
        let taken = &self.status.taken_interventions;
        self.interventions.retain(|word| !taken.contains(&word.uid));
        if !self.ledger_away {
            self.record_all();
        }
        Ok(())
    }

    /// The ledger can be written again, or not any more.
    pub fn let_ledger_be_away(&mut self, away: bool) {
        self.ledger_away = away;
        if !away && !self.status.pending_log.is_empty() {
            self.record_all();
            self.status_version += 1;
        }
    }

    fn record_all(&mut self) {
        for transition in std::mem::take(&mut self.status.pending_log) {
            self.record(transition);
        }
        if self.ledger.configured {
            self.ledger.sequence = self.ledger.sequence.max(self.status.recorded_sequence);
            self.ledger.position = Some(Box::new(self.status.clone()));
        }
    }

    fn record(&mut self, transition: Transition) {
        let revision = transition.revision_to.clone();
        match transition.event {
            _ if !self.ledger.configured => {}
            TransitionEvent::Aborted if transition.reason != "Revert" => {
                *self.ledger.aborts.entry(revision.clone()).or_default() += 1;
                self.ledger.aborted.insert(revision, transition.message.clone());
            }
            TransitionEvent::Promoted => {
                self.ledger.aborted.remove(&revision);
                self.ledger.aborts.remove(&revision);
                if let Some(set) = self.replica_sets.get(&revision) {
                    self.ledger.last_good = Some((revision, set.template.clone()));
                }
            }
            // Whatever begins had consent: it is not denied any more.
            TransitionEvent::Started | TransitionEvent::FirstDeploy => {
                self.ledger.aborted.remove(&revision);
            }
            _ => {}
        }
        self.status.recorded_sequence = transition.sequence;
        self.recorded.push(transition);
    }
}
