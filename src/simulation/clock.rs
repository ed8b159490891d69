//! What happens in the simulated world as time passes, and what other people do to it.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::objects::{AfterHold, AnalysisRun, Answer, Pod, Workload, Write, Written};
use super::world::World;
use crate::api::{AnalysisPhase, PodTemplate, ReleaseState, RolloutSpec, RolloutStatus, RouteKey};
use crate::engine::{Ending, InterventionState};

impl World {
    /// When something happens next by itself. Samples that only confirm what is known are left out.
    pub fn next_event(&self) -> Option<DateTime<Utc>> {
        let least = self.min_ready();
        let sets = self.replica_sets.values().flat_map(|set| &set.pods);
        let pods = sets.chain(self.workload.iter().flat_map(|it| &it.pods)).filter_map(|pod| pod.ready_at);
        let available = pods.clone().map(|at| at + least);
        let services = self.services.values().filter_map(|service| service.publish_at);
        let routes = self.routes.values().filter(|route| route.trouble.is_none()).filter_map(|route| route.accept_at);
        let samples = self.analyses.values().filter(|run| self.tells(run)).map(|run| run.next_sample);
        let holds = self.analyses.values().filter(|run| run.live()).filter_map(|run| run.hold_until);
        let ends = self.replica_sets.values().flat_map(|set| &set.ending).copied();
        let all = pods.chain(ends).chain(available).chain(services).chain(routes).chain(samples).chain(holds);
        all.filter(|at| *at > self.now).min()
    }

    /// Whether the next sample of a run can change anything.
    fn tells(&self, run: &AnalysisRun) -> bool {
        let reached = self.status.release.as_ref().and_then(|release| release.reached_at);
        let known = run.passed_since.is_some_and(|since| reached.is_none_or(|reached| since >= reached));
        let good = self.answer(run.next_sample) == Answer::Pass
            && self.scripts.iter().all(|script| script.from <= run.next_sample);
        run.live() && (run.phase != AnalysisPhase::Running || !known || !good)
    }

    /// Lets time pass. Everything that happens until then happens at its own time.
    pub fn advance_to(&mut self, time: DateTime<Utc>) {
        while let Some(at) = self.next_step().filter(|at| *at <= time) {
            self.now = at;
            self.settle();
        }
        self.now = self.now.max(time);
        self.settle();
    }

    fn next_step(&self) -> Option<DateTime<Utc>> {
        let samples = self.analyses.values().filter(|run| run.live()).map(|run| run.next_sample);
        let sample = samples.filter(|at| *at > self.now).min();
        [self.next_event(), sample].into_iter().flatten().min()
    }

    /// What controllers other than ours do at once: pods follow their ReplicaSet, endpoints follow pods.
    pub(super) fn settle(&mut self) {
        self.pods();
        self.endpoints();
        for route in self.routes.values_mut() {
            if route.trouble.is_none() && route.accept_at.is_some_and(|at| at <= self.now) {
                route.accept_at = None;
            }
        }
        let names: Vec<String> = self.analyses.keys().cloned().collect();
        for name in names {
            if let Some(mut run) = self.analyses.remove(&name) {
                self.measure(&mut run);
                self.analyses.insert(name, run);
            }
        }
    }

    fn pods(&mut self) {
        let now = self.now;
        for (revision, set) in &mut self.replica_sets {
            let wanted = usize::try_from(set.replicas).unwrap_or(0);
            if set.pods.len() > wanted {
                // Those that are not ready go first, then the youngest: as the ReplicaSet controller does.
                set.pods.sort_by_key(|pod| (!pod.ready_for(TimeDelta::zero(), now), pod.created_at));
                set.ending.extend(set.pods.drain(wanted..).map(|_| now + self.knobs.grace));
            }
            set.ending.retain(|gone_at| *gone_at > now);
            let never = self.knobs.canary_never_ready && self.status.stable_revision.as_ref() != Some(revision);
            let ready_at = (!never).then(|| now + self.knobs.pod_ready_delay);
            while set.pods.len() < wanted {
                self.pods_made += 1;
                set.pods.push(Pod { number: self.pods_made, created_at: now, ready_at });
            }
        }
        if let Some(workload) = &mut self.workload {
            let pod = Pod { number: 0, created_at: now, ready_at: Some(now + self.knobs.pod_ready_delay) };
            workload.pods.resize(usize::try_from(workload.replicas).unwrap_or(0), pod);
        }
    }

    fn endpoints(&mut self) {
        let now = self.now;
        let workload = self.workload.iter().map(|it| (Workload::PODS.to_owned(), it.ready(now)));
        let ready: BTreeMap<String, i32> = self
            .replica_sets
            .iter()
            .map(|(revision, set)| {
                let ready = set.pods.iter().filter(|pod| pod.ready_for(TimeDelta::zero(), now)).count();
                (revision.clone(), i32::try_from(ready).unwrap_or(i32::MAX))
            })
            .chain(workload)
            .filter(|(_, ready)| *ready > 0)
            .collect();
        let delay = self.knobs.endpoint_delay;
        for service in self.services.values_mut() {
            let selected = |revision: &String| service.selects.as_ref().is_none_or(|own| own == revision);
            let wanted: BTreeMap<String, i32> =
                ready.iter().filter(|(revision, _)| selected(revision)).map(|(name, n)| (name.clone(), *n)).collect();
            if service.published == wanted {
                service.publish_at = None;
                continue;
            }
            let at = *service.publish_at.get_or_insert(now + delay);
            if at <= now {
                service.published = wanted;
                service.publish_at = None;
            }
        }
    }

    fn answer(&self, at: DateTime<Utc>) -> Answer {
        let stage = self.status.release.as_ref().map_or(0, |release| release.stage);
        let script = self.scripts.iter().rev().find(|script| script.from <= at && script.from_stage <= stage);
        script.map_or(Answer::Pass, |script| script.answer)
    }

    fn measure(&self, run: &mut AnalysisRun) {
        while run.live() && run.next_sample <= self.now {
            let at = run.next_sample;
            run.next_sample = at + run.interval.max(TimeDelta::seconds(1));
            match self.answer(at) {
                Answer::Pass => {
                    run.passed_since = Some(at);
                    run.hold_until = None;
                    let done = !run.stage.starts_with("background");
                    run.phase = if done { AnalysisPhase::Passed } else { AnalysisPhase::Running };
                    "the sample is good".clone_into(&mut run.message);
                }
                Answer::Fail => {
                    run.phase = AnalysisPhase::Failed;
                    run.hold_until = None;
                    "the sample is bad".clone_into(&mut run.message);
                }
                Answer::Inconclusive => {
                    run.phase = AnalysisPhase::Inconclusive;
                    run.hold_until = None;
                    "the sample is neither good nor bad".clone_into(&mut run.message);
                }
                Answer::NoData => {
                    run.phase = AnalysisPhase::Holding;
                    run.hold_until.get_or_insert(at + self.knobs.hold);
                    "no usable sample".clone_into(&mut run.message);
                }
            }
        }
        if run.phase == AnalysisPhase::Holding && run.hold_until.is_some_and(|until| until <= self.now) {
            run.phase = match self.knobs.after_hold {
                AfterHold::Pause => AnalysisPhase::Inconclusive,
                AfterHold::Abort => AnalysisPhase::Unavailable,
            };
            run.hold_until = None;
            "no usable sample for too long".clone_into(&mut run.message);
        }
    }

    // === What other people and faults do ===

    fn outside(&mut self, what: String) {
        self.writes.push(Write { at: self.now, written: Written::Outside(what) });
        self.settle();
    }

    /// Somebody changes the spec.
    pub fn edit_spec(&mut self, edit: impl FnOnce(&mut RolloutSpec)) {
        edit(&mut self.spec);
        self.declare();
        self.generation += 1;
        self.outside(format!("spec, generation {}", self.generation));
    }

    /// Somebody, or another tool, scales the Deployment that keeps the template.
    pub fn scale_workload(&mut self, replicas: i32) {
        if let Some(workload) = &mut self.workload {
            workload.replicas = replicas;
            workload.version += 1;
            self.outside(format!("the Deployment is scaled to {replicas}"));
        }
    }

    /// Somebody gives the Deployment that keeps the template another one; its own pods follow at once.
    pub fn edit_workload(&mut self, template: PodTemplate) {
        if let Some(workload) = &mut self.workload {
            workload.template = template.clone();
            workload.version += 1;
        }
        self.edit_spec(|spec| spec.template = template);
    }

    /// Somebody deletes the Rollout.
    pub fn delete(&mut self) {
        self.ending = Some(Ending::Deleted);
        self.collect_garbage();
        self.status_version += 1;
        self.outside("the Rollout is deleted".to_owned());
    }

    /// So many pods of a revision die, and new ones take their place.
    pub fn kill_pods(&mut self, revision: &str, number: usize) {
        if let Some(set) = self.replica_sets.get_mut(revision) {
            let kept = set.pods.len().saturating_sub(number);
            set.pods.truncate(kept);
            self.outside(format!("{number} pods of {revision} die"));
        }
    }

    /// Somebody deletes the ReplicaSet of a revision, and its pods go with it.
    pub fn delete_replica_set(&mut self, revision: &str) {
        if self.replica_sets.remove(revision).is_some() {
            self.outside(format!("the ReplicaSet of {revision} is deleted"));
        }
    }

    /// The status is gone: deleted, or damaged beyond reading.
    pub fn lose_status(&mut self) {
        self.status = RolloutStatus::default();
        self.status_version += 1;
        self.outside("the status is lost".to_owned());
    }

    /// Somebody writes weights into a route by hand.
    pub fn edit_weights(&mut self, name: &RouteKey, stable: i32, canary: i32) {
        let accept_at = self.now + self.knobs.accept_delay;
        if let Some(route) = self.routes.get_mut(name) {
            for rule in &mut route.rules {
                (rule.stable, rule.canary) = (stable, canary);
            }
            route.accept_at = Some(accept_at);
            route.version += 1;
            self.outside(format!("weights of {name} by hand"));
        }
    }

    /// A person says something.
    pub fn intervene(&mut self, word: InterventionState) {
        let what = format!("{:?} by {}", word.action, word.actor);
        self.interventions.push(word);
        self.outside(what);
    }

    /// The revision in flight.
    pub fn in_flight(&self) -> Option<&crate::api::Release> {
        let release = self.status.release.as_ref()?;
        matches!(release.state, ReleaseState::Stepping | ReleaseState::Promoting).then_some(release)
    }
}
