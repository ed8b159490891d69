//! The only code that moves pods or traffic: the next single safe effect on the way to a target.
//!
//! The order is the same whatever the target: *grow → ready → raise weight*, and *lower weight → drain →
//! shrink*. Where routes split the traffic, a Service changes what it selects only while it gets nothing, so the two
//! sides of one backend never change at once; in blue/green the active Service is what moves. Forward, abort, rollback, promotion, a new revision and a scale in flight all come through here.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Effect, RouteState, ServiceState, Snapshot, Wait, WaitOn};
use crate::api::{CanaryStrategy, HeaderRoute, PodTemplate, References, ReleaseState, Seen, SeenRevision, SeenWeight};

/// Where pods and traffic should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Pods of each revision; a revision that is not named has none.
    pub sizes: BTreeMap<String, i32>,
    /// What the stable Service selects.
    pub stable_service: String,
    /// What the canary Service selects; `None` leaves it as it is.
    pub canary_service: Option<String>,
    /// The canary's weight in percent.
    pub weight: i32,
    /// Which requests the canary has whatever its weight.
    pub header_routes: Vec<HeaderRoute>,
    /// The canary weight may only fall: an abort is absorbing (S7).
    pub only_lower: bool,
    /// Whose old pods are replaced by new ones, once all else is as it should be.
    pub renewal: Option<Renewal>,
}

/// A revision whose pods are replaced by new ones of the same version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The revision.
    pub revision: String,
    /// Pods that were created up to this time are replaced.
    pub before: DateTime<Utc>,
    /// So many of its pods in [`Target::sizes`] are there only so that none is missing meanwhile.
    pub surge: i32,
}

/// What the way to a target is at this moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Convergence {
    /// This effect is next.
    Do(Effect),
    /// Something must happen first.
    Hold(Wait),
    /// The target holds.
    Reached,
}

/// The pods that carry `percent` of `replicas`: rounded up (S3, S4).
pub fn share(replicas: i32, percent: i32) -> i32 {
    let product = i64::from(replicas.max(0)) * i64::from(percent.clamp(0, 100));
    i32::try_from((product + 99) / 100).unwrap_or(i32::MAX)
}

/// The facts of this snapshot with their times: a fact that is as it was keeps its time, a new one begins now,
/// and a stamp in the future is taken as now, so that a clock that was wrong can only prolong a wait.
pub fn facts(snapshot: &Snapshot, before: &Seen, now: DateTime<Utc>) -> Seen {
    let references = snapshot.spec.references();
    let service = |name: &Option<String>, before: &Option<SeenRevision>| {
        let service = snapshot.services.get(name.as_deref()?)?;
        let revision = service.selects.clone()?;
        // Only once the published endpoints are of this revision and no other.
        let own = service.ready.get(&revision).copied().unwrap_or_default();
        if own <= 0 || service.ready.iter().any(|(other, ready)| *other != revision && *ready > 0) {
            return None;
        }
        let since = before.as_ref().filter(|fact| fact.revision == revision).map_or(now, |fact| fact.since.min(now));
        Some(SeenRevision { revision, since })
    };
    let stable_service = service(&references.stable_service, &before.stable_service);
    let canary_service = service(&references.canary_service, &before.canary_service);
    let value = match &snapshot.spec.strategy.blue_green {
        None if snapshot.spec.strategy.by_pods().is_some() => Some(share_of_pods(snapshot)),
        Some(_) => stable_service.as_ref().and_then(|fact| switched(snapshot, &fact.revision)),
        None => accepted_weight(snapshot, before.weight.as_ref().map(|weight| weight.value)),
    };
    let direct = snapshot.routes.values().any(RouteState::is_direct);
    let weight = value.map(|value| {
        let same = before.weight.as_ref().filter(|fact| (fact.value, fact.direct) == (value, direct));
        SeenWeight { value, direct, since: same.map_or(now, |fact| fact.since.min(now)) }
    });
    Seen { weight, stable_service, canary_service }
}

/// Which side has everything when a Service alone says so: 0 for stable (or the first version), 100 for the version
/// on trial. None for what is neither.
fn switched(snapshot: &Snapshot, active: &str) -> Option<i32> {
    let status = &snapshot.status;
    if status.stable_revision.as_deref() == Some(active) {
        return Some(0);
    }
    let release = status.release.as_ref().filter(|release| release.revision == active)?;
    Some(if release.state == ReleaseState::FirstDeploy { 0 } else { 100 })
}

/// The canary's share of the pods that are asked for, in percent: 0 when it has none, 100 when only it has any.
pub(super) fn share_of_pods(snapshot: &Snapshot) -> i32 {
    let release = snapshot.status.release.as_ref().filter(|release| release.state != ReleaseState::FirstDeploy);
    let own = release.filter(|release| snapshot.status.stable_revision.as_ref() != Some(&release.revision));
    let Some(canary) = own.and_then(|release| snapshot.revisions.get(&release.revision)) else { return 0 };
    // One that is still on its way out may still answer.
    let pods =
        |state: &super::RevisionState| i64::from(if state.replicas > 0 { state.replicas } else { state.current });
    let total: i64 = snapshot.revisions.values().map(pods).sum();
    match pods(canary) {
        0 => 0,
        all if all == total => 100,
        some => i32::try_from((some * 100 + total / 2) / total).unwrap_or(100).clamp(1, 99),
    }
}

/// Without routes: the pods of stable and canary when the canary has `percent` of `replicas`, the nearest that pods can
/// be. Each side has one pod at least while the weight is between 0 and 100; with a single replica that takes one above
/// it, or the canary has none.
pub fn split_pods(replicas: i32, percent: i32, surge: i32) -> (i32, i32) {
    let replicas = replicas.max(0);
    let nearest =
        i32::try_from((i64::from(replicas) * i64::from(percent.clamp(0, 100)) + 50) / 100).unwrap_or(replicas);
    match (replicas, percent) {
        (_, ..=0) | (0, _) => (replicas, 0),
        (_, 100..) => (0, replicas),
        (1, _) => (1, surge.clamp(0, 1)),
        _ => {
            let canary = nearest.clamp(1, replicas.saturating_sub(1));
            (replicas.saturating_sub(canary), canary)
        }
    }
}

/// The weight that every rule of every route holds and the gateway has accepted. A small base cannot tell every
/// percent apart, so a rule that still holds the value it was last seen with has that value.
fn accepted_weight(snapshot: &Snapshot, before: Option<i32>) -> Option<i32> {
    if snapshot.routes.is_empty() || snapshot.routes.values().any(|route| !route.accepted || route.rules.is_empty()) {
        return None;
    }
    let mut rules = snapshot.routes.values().flat_map(|route| &route.rules);
    let wanted = snapshot.status.weight;
    let first = rules.next()?.share();
    // Rules of different bases round apart: 5 % may read as 5 in one and as 6 in another.
    [before, wanted, Some(first)]
        .into_iter()
        .flatten()
        .chain(0..=100)
        .find(|value| snapshot.routes.values().flat_map(|route| &route.rules).all(|rule| rule.holds(*value)))
}

/// The next single safe effect on the way to `target`.
pub fn converge(snapshot: &Snapshot, target: &Target, seen: &Seen, now: DateTime<Utc>) -> Convergence {
    let view = View { snapshot, references: snapshot.spec.references(), target, seen, now };
    match view.converge() {
        Convergence::Reached => view.renew().map_or(Convergence::Reached, Convergence::Do),
        other => other,
    }
}

struct View<'a> {
    snapshot: &'a Snapshot,
    references: References,
    target: &'a Target,
    seen: &'a Seen,
    now: DateTime<Utc>,
}

impl View<'_> {
    fn converge(&self) -> Convergence {
        if let Some(canary) = self.snapshot.spec.strategy.by_pods() {
            return self.replace(canary);
        }
        if let Some(effect) = self.grow() {
            return effect;
        }
        let traffic = match &self.snapshot.spec.strategy.blue_green {
            Some(_) => self.switch(),
            None => self.traffic(),
        };
        if matches!(traffic, Convergence::Do(_)) {
            return traffic;
        }
        // Shrinking never stands in the way of traffic, and traffic that waits does not stop what may shrink safely.
        let shrink = self.shrink();
        match (traffic, shrink) {
            (_, Convergence::Do(effect)) => Convergence::Do(effect),
            (Convergence::Hold(wait), _) => Convergence::Hold(wait),
            (_, shrink) => shrink,
        }
    }

    /// The next pod that makes place for a new one of the same version: only while as many others serve as are needed
    /// without the surge, by their own word, by the endpoints that are published, and for as long as proxies take to
    /// know them.
    fn renew(&self) -> Option<Effect> {
        let Renewal { revision, before, surge } = self.target.renewal.as_ref()?;
        let state = self.snapshot.revisions.get(revision)?;
        let size = self.target.sizes.get(revision).copied()?;
        let by_pods = self.snapshot.spec.strategy.by_pods().map(|canary| canary.surge_and_unavailable(self.replicas()));
        // Where none may be beside it, an old pod is gone before the next one goes.
        let existing = if by_pods.is_some_and(|(most, _)| most == 0) { state.unfinished } else { state.current };
        let listed = i32::try_from(state.pods.len()).ok()?;
        if !state.observed || (state.replicas, existing, listed) != (size, size, size) {
            return None;
        }
        let mut old: Vec<_> = state.pods.iter().filter(|pod| pod.created_at <= *before).collect();
        old.sort_by_key(|pod| (pod.ready_since.is_some(), pod.created_at, &pod.name));
        let next = old.first()?;
        let evict = Effect::EvictPod { revision: revision.clone(), pod: next.name.clone(), uid: next.uid.clone() };
        if next.ready_since.is_none() {
            return Some(evict);
        }
        let known = state.pods.iter().filter(|pod| self.is_known(pod)).count();
        let selecting = self.snapshot.services.values().filter(|service| service.selects.as_ref() == Some(revision));
        let published = selecting.map(|service| service.ready.get(revision).copied().unwrap_or_default()).min();
        let serving = state.available.min(state.ready).min(i32::try_from(known).ok()?);
        let serving = serving.min(published.unwrap_or(serving));
        let needed = size.saturating_sub((*surge).max(1));
        let all: i32 = self.snapshot.revisions.values().map(|state| state.available.min(state.ready)).sum();
        let enough = by_pods.is_none_or(|(_, unavailable)| all > self.replicas().saturating_sub(unavailable));
        (serving > needed && enough).then_some(evict)
    }

    /// It has been ready for as long as proxies may take to know it.
    fn is_known(&self, pod: &super::PodState) -> bool {
        pod.ready_since.is_some_and(|since| since + self.settle() <= self.now)
    }

    fn replicas(&self) -> i32 {
        self.snapshot.spec.replicas().max(0)
    }

    fn settle(&self) -> TimeDelta {
        self.snapshot.spec.strategy.settle().delta()
    }

    fn drain(&self) -> TimeDelta {
        self.snapshot.spec.strategy.drain().delta()
    }

    fn service(&self, name: &Option<String>) -> (String, ServiceState) {
        let name = name.clone().unwrap_or_default();
        let state = self.snapshot.services.get(&name).cloned().unwrap_or_default();
        (name, state)
    }

    /// The least and the most the canary has in any rule, as written.
    fn written(&self) -> (i32, i32) {
        let shares = || self.snapshot.routes.values().flat_map(|route| &route.rules).map(super::RuleState::share);
        (shares().min().unwrap_or(0), shares().max().unwrap_or(0))
    }

    fn holds(&self, percent: i32) -> bool {
        let mut rules = self.snapshot.routes.values().flat_map(|route| &route.rules);
        rules.all(|rule| rule.holds(percent))
    }

    fn grow(&self) -> Option<Convergence> {
        for (revision, size) in &self.target.sizes {
            match self.snapshot.revisions.get(revision) {
                None if *size > 0 => {
                    let Some(template) = template(self.snapshot, revision) else {
                        let message = format!("the template of revision {revision} is not known any more");
                        return Some(hold(WaitOn::Spec, None, message));
                    };
                    return Some(Convergence::Do(Effect::CreateReplicaSet {
                        revision: revision.clone(),
                        template,
                        replicas: *size,
                    }));
                }
                Some(state) if state.replicas < *size => {
                    return Some(Convergence::Do(Effect::Scale { revision: revision.clone(), replicas: *size }));
                }
                _ => {}
            }
        }
        None
    }

    fn traffic(&self) -> Convergence {
        let (stable_name, stable) = self.service(&self.references.stable_service);
        let (canary_name, canary) = self.service(&self.references.canary_service);
        // Endpoints of pods that have just gone are published for a moment longer: both must say so.
        let ready = |service: &ServiceState| match &service.selects {
            Some(revision) => {
                let pods = self.snapshot.revisions.get(revision).map_or(0, |state| state.ready);
                service.ready.get(revision).copied().unwrap_or_default().min(pods)
            }
            None => service.ready.values().sum(),
        };
        let (ready_stable, ready_canary) = (ready(&stable), ready(&canary));
        let (least, most) = self.written();
        // S2: traffic leaves a side that can serve nothing for one that can serve something, before all else.
        let nothing = |service: &ServiceState| service.ready.values().all(|ready| *ready <= 0);
        if most > 0 && nothing(&canary) && ready_stable > 0 {
            return self.write(0);
        }
        let narrowed = stable.selects.is_some() && canary.selects.is_some();
        // But never for a revision that nobody asks for any more.
        let wanted = canary.selects.is_some()
            && (canary.selects == self.target.canary_service
                || canary.selects.as_ref() == Some(&self.target.stable_service));
        if least < 100 && nothing(&stable) && ready_canary > 0 && narrowed && wanted && !self.target.only_lower {
            return self.write(100);
        }
        let serves = canary.selects == self.target.canary_service && !nothing(&canary);
        // What stable had has come to the version on trial, and the plan goes on with that: who waited for a broken
        // version would wait for the very thing that this release may be the cure of.
        let alone = nothing(&stable) && ready_stable == 0 && narrowed && wanted && serves && !self.target.only_lower;
        if let Some(effect) = self.end_header_routes(serves) {
            return effect;
        }
        let Some(stable_revision) = &stable.selects else {
            return self.narrow_stable(stable_name);
        };
        if *stable_revision != self.target.stable_service {
            if !self.holds(100) {
                // The stable Service gets traffic, so it must not change yet: all of it to the other side first.
                return self.raise(100, &canary, ready_canary);
            }
            if let Some(wait) = self.drained(100) {
                return wait;
            }
            let revision = self.target.stable_service.clone();
            return Convergence::Do(Effect::SelectRevision { service: stable_name, revision });
        }
        if let Some(wanted) = &self.target.canary_service
            && canary.selects.as_ref() != Some(wanted)
        {
            if !self.holds(0) {
                return self.lower(0, ready_stable, most);
            }
            if canary.selects.is_some()
                && let Some(wait) = self.drained(0)
            {
                return wait;
            }
            return Convergence::Do(Effect::SelectRevision { service: canary_name, revision: wanted.clone() });
        }
        if alone && self.holds(100) {
            return self.accepted(100);
        }
        let weight = self.target.weight;
        if self.holds(weight) {
            return match (self.accepted(weight), self.missing_header_routes()) {
                (Convergence::Reached, Some(effect)) => {
                    self.unready_canary(weight, &canary, ready_canary).unwrap_or(effect)
                }
                (accepted, _) => accepted,
            };
        }
        // Of the rules that do not hold it yet: in a small base a rule may hold 25 % and read as 26.
        let rules = self.snapshot.routes.values().flat_map(|route| &route.rules);
        let astray: Vec<i32> = rules.filter(|rule| !rule.holds(weight)).map(super::RuleState::share).collect();
        match astray.iter().max() {
            Some(most) if *most > weight => self.lower(weight, ready_stable, *most),
            Some(_) if astray.iter().any(|share| *share < weight) => self.raise(weight, &canary, ready_canary),
            _ => self.write(weight),
        }
    }

    /// Without routes: pods take each other's place, never more than `maxSurge` above and never fewer than
    /// `maxUnavailable` below what is asked for. A pod that is not available carries nothing, so it may always go.
    fn replace(&self, canary: &CanaryStrategy) -> Convergence {
        let (surge, unavailable) = canary.surge_and_unavailable(self.replicas());
        let sizes = &self.target.sizes;
        let wanted = |revision: &String| sizes.get(revision).copied().unwrap_or_default();
        let revisions = &self.snapshot.revisions;
        let available = |state: &super::RevisionState| state.available.min(state.ready).min(state.replicas).max(0);
        if let Some(effect) = self.follow() {
            return effect;
        }
        // Who allows no pod too many means it: not even while an old one takes its time to end.
        let existing = |state: &super::RevisionState| if surge == 0 { state.unfinished } else { state.current };
        let total: i32 = revisions.values().map(|state| state.replicas.max(existing(state))).sum();
        let room = self.replicas().saturating_add(surge).saturating_sub(total);
        let short = sizes.iter().find(|(revision, size)| {
            revisions.get(*revision).is_none_or(|state| state.replicas < **size) && **size > 0
        });
        if let Some((revision, size)) = short.filter(|_| room > 0) {
            let Some(state) = revisions.get(revision) else {
                let Some(template) = template(self.snapshot, revision) else {
                    let message = format!("the template of revision {revision} is not known any more");
                    return hold(WaitOn::Spec, None, message);
                };
                let replicas = room.min(*size);
                return Convergence::Do(Effect::CreateReplicaSet { revision: revision.clone(), template, replicas });
            };
            let replicas = state.replicas.saturating_add(room).min(*size);
            return Convergence::Do(Effect::Scale { revision: revision.clone(), replicas });
        }
        let serving: i32 = revisions.values().map(available).sum();
        let spare = serving.saturating_sub(self.replicas().saturating_sub(unavailable)).max(0);
        // What nobody asks for goes first.
        let mut surplus: Vec<_> =
            revisions.iter().filter(|(revision, state)| state.replicas > wanted(revision)).collect();
        surplus.sort_by_key(|(revision, _)| wanted(revision) > 0);
        let mut stays = false;
        for (revision, state) in surplus {
            let idle = state.replicas.saturating_sub(available(state));
            let replicas = state.replicas.saturating_sub(idle.saturating_add(spare)).max(wanted(revision));
            if replicas < state.replicas {
                return Convergence::Do(Effect::Scale { revision: revision.clone(), replicas });
            }
            stays = true;
        }
        if stays || short.is_some() {
            let late = sizes.keys().find_map(|revision| {
                let state = revisions.get(revision).filter(|state| available(state) < state.replicas)?;
                Some(self.pods(revision, state.replicas))
            });
            if let Some(late) = late {
                return late;
            }
            let ending: i32 = revisions.values().map(|state| state.unfinished.saturating_sub(state.current)).sum();
            if surge == 0 && ending > 0 {
                let message = format!("{ending} old pods are still ending, and maxSurge allows none beside them");
                return hold(WaitOn::Pods, None, message);
            }
            let least = self.replicas().saturating_sub(unavailable);
            let message = format!("{serving} of {} pods are available, at least {least} must be", self.replicas());
            return hold(WaitOn::Pods, None, message);
        }
        let trial = self.target.canary_service.as_ref().filter(|_| self.target.weight > 0);
        match trial.and_then(|revision| Some((revision, revisions.get(revision)?))) {
            Some((revision, state)) if available(state) < wanted(revision) => self.pods(revision, wanted(revision)),
            _ => Convergence::Reached,
        }
    }

    /// Without routes the two Services are a convenience: they select their side as soon as it has a ready pod, and
    /// never one that is about to go.
    fn follow(&self) -> Option<Convergence> {
        let ready = |revision: &String| self.snapshot.revisions.get(revision).is_some_and(|state| state.ready > 0);
        let stable = &self.target.stable_service;
        let sides = [
            (&self.references.stable_service, Some(stable)),
            (&self.references.canary_service, self.target.canary_service.as_ref()),
        ];
        for (name, wanted) in sides {
            let Some(name) = name else { continue };
            let Some(service) = self.snapshot.services.get(name) else { continue };
            let selected = service.selects.as_ref();
            let goes = |revision: &String| self.target.sizes.get(revision).copied().unwrap_or_default() == 0;
            let wanted = wanted.or_else(|| selected.filter(|revision| goes(revision)).map(|_| stable));
            if let Some(revision) = wanted.filter(|revision| selected != Some(*revision) && ready(revision)) {
                let (service, revision) = (name.clone(), revision.clone());
                return Some(Convergence::Do(Effect::SelectRevision { service, revision }));
            }
        }
        None
    }

    /// Blue/green: one Service has all the traffic, and what it selects changes at once. The version on trial has the
    /// preview, and gets live traffic only by a target that says so.
    fn switch(&self) -> Convergence {
        let (active_name, active) = self.service(&self.references.stable_service);
        let (preview_name, preview) = self.service(&self.references.canary_service);
        let stable = &self.target.stable_service;
        let trial = self.target.canary_service.as_ref().filter(|_| self.target.weight >= 100);
        let wanted = trial.unwrap_or(stable);
        let ready = |service: &ServiceState| service.ready.values().sum::<i32>();
        let state = |revision: &String| self.snapshot.revisions.get(revision).cloned().unwrap_or_default();
        let Some(selected) = &active.selects else { return self.narrow_stable(active_name) };
        let select = |service: String, revision: &String| {
            Convergence::Do(Effect::SelectRevision { service, revision: revision.clone() })
        };
        // S2: traffic leaves a side that can serve nothing for the one that is known to be good.
        // By its pods too: right after a switch its endpoints are only not published yet.
        let dead = ready(&active) <= 0 && state(selected).ready <= 0;
        if dead && selected != stable && state(stable).ready > 0 {
            return select(active_name, stable);
        }
        if let Some(trial) =
            self.target.canary_service.as_ref().filter(|trial| preview.selects.as_ref() != Some(*trial))
            && self.references.canary_service.is_some()
        {
            return select(preview_name, trial);
        }
        if selected == wanted {
            return match &self.seen.stable_service {
                Some(fact) if fact.revision == *wanted => {
                    let settles = self.since(fact.since, self.settle(), "the active Service settles");
                    settles.unwrap_or(Convergence::Reached)
                }
                // What serves nothing cannot settle, and does not hold up the version that may be its cure.
                _ if dead
                    && !self.target.only_lower
                    && self.target.canary_service.as_ref().is_some_and(|it| it != wanted) =>
                {
                    Convergence::Reached
                }
                _ => {
                    let message = format!("the active Service has no endpoints of revision {wanted} alone yet");
                    hold(WaitOn::Endpoints, None, message)
                }
            };
        }
        // S12: everything moves at once, so all of it must be there. From a side that serves nothing, anything is better.
        let needed = if dead && wanted == stable { 1 } else { self.replicas().max(1) };
        let own = state(wanted);
        if own.available.min(own.ready) < needed {
            return self.pods(wanted, needed);
        }
        if self.references.canary_service.is_some() && preview.selects.as_ref() == Some(wanted) {
            let published = preview.ready.get(wanted).copied().unwrap_or_default();
            if published < needed {
                let message = format!("{published} of {needed} endpoints of the preview Service are ready");
                return hold(WaitOn::Endpoints, None, message);
            }
        }
        select(active_name, wanted)
    }

    /// A Service that was never narrowed selects pods of every revision: it may be narrowed to one that can carry
    /// everything.
    fn narrow_stable(&self, service: String) -> Convergence {
        let revision = self.target.stable_service.clone();
        let state = self.snapshot.revisions.get(&revision).cloned().unwrap_or_default();
        let needed = self.replicas();
        if state.available.min(state.ready) < needed {
            return self.pods(&revision, needed);
        }
        Convergence::Do(Effect::SelectRevision { service, revision })
    }

    fn lower(&self, weight: i32, ready_stable: i32, most: i32) -> Convergence {
        // S3: walk back as fast as stable has the pods for it.
        let replicas = self.replicas();
        if let Some(wait) = self.stable_unsettled() {
            return wait;
        }
        let floor = (weight..=100).find(|percent| share(replicas, 100 - percent) <= ready_stable).unwrap_or(100);
        if floor < most
            && let Some(effect) = self.write_lower(floor)
        {
            return effect;
        }
        self.pods(&self.target.stable_service, share(replicas, 100 - weight))
    }

    /// The stable Service gets more traffic only when what it selects has settled. An abort is never held up by
    /// a fact that cannot be had: what the Service had before still serves.
    fn stable_unsettled(&self) -> Option<Convergence> {
        match &self.seen.stable_service {
            Some(fact) if fact.revision == self.target.stable_service => {
                self.since(fact.since, self.settle(), "the stable Service settles")
            }
            _ if self.target.only_lower => None,
            _ => {
                let message = "the stable Service has no endpoints of its revision alone yet".to_owned();
                Some(hold(WaitOn::Endpoints, None, message))
            }
        }
    }

    fn raise(&self, weight: i32, canary: &ServiceState, ready_canary: i32) -> Convergence {
        // When both Services select the same revision, weights between them expose nobody to anything new.
        let same = self.service(&self.references.stable_service).1.selects == canary.selects;
        if self.target.only_lower && !same {
            return hold(WaitOn::Pods, None, "traffic only goes back; stable is waited for".to_owned());
        }
        self.unready_canary(weight, canary, ready_canary).unwrap_or_else(|| self.write(weight))
    }

    /// What the canary still lacks to carry `weight`, or anything at all.
    fn unready_canary(&self, weight: i32, canary: &ServiceState, ready_canary: i32) -> Option<Convergence> {
        let same = self.service(&self.references.stable_service).1.selects == canary.selects;
        let Some(revision) = &canary.selects else {
            return Some(hold(WaitOn::Spec, None, "the canary Service selects no revision".to_owned()));
        };
        // Nor do they ask for more pods than serve already.
        let needed = if same { 1 } else { share(self.replicas(), weight).max(1) };
        let state = self.snapshot.revisions.get(revision).cloned().unwrap_or_default();
        // S4, on pods that have been ready for long enough and on endpoints that are published.
        if state.available.min(state.ready) < needed {
            return Some(self.pods(revision, needed));
        }
        if ready_canary < needed {
            let message = format!("{ready_canary} of {needed} endpoints of the canary Service are ready");
            return Some(hold(WaitOn::Endpoints, None, message));
        }
        let fact = self.seen.canary_service.as_ref().filter(|fact| fact.revision == *revision);
        let Some(fact) = fact else {
            let message = "the canary Service still has endpoints of another revision".to_owned();
            return Some(hold(WaitOn::Endpoints, None, message));
        };
        self.since(fact.since, self.settle(), "the canary Service settles")
    }

    /// Header routes that nobody asks for end before all else, and all of them when the canary Service `serves` nothing
    /// that is asked for: what they sent to the canary is shared out by the weight again, which takes no new pods.
    fn end_header_routes(&self, serves: bool) -> Option<Convergence> {
        let wanted: Vec<&HeaderRoute> = self.target.header_routes.iter().filter(|_| serves).collect();
        self.snapshot.routes.iter().find_map(|(route, state)| {
            let is_held = |wanted: &&HeaderRoute| state.header_routes.contains(&wanted.id());
            let kept: Vec<HeaderRoute> = wanted.iter().copied().filter(is_held).cloned().collect();
            let surplus = state.stray || kept.len() < state.header_routes.len();
            let route = route.clone();
            surplus.then_some(Convergence::Do(Effect::SetHeaderRoutes { route, header_routes: kept }))
        })
    }

    /// The first route that lacks a header route gets all of them.
    fn missing_header_routes(&self) -> Option<Convergence> {
        let header_routes = self.target.header_routes.clone();
        let (route, _) = self.snapshot.routes.iter().find(|(route, state)| {
            route.kind.matches_headers() && header_routes.iter().any(|it| !state.header_routes.contains(&it.id()))
        })?;
        Some(Convergence::Do(Effect::SetHeaderRoutes { route: route.clone(), header_routes }))
    }

    /// Waits until the weight has been `percent`, accepted, for the drain time.
    fn drained(&self, percent: i32) -> Option<Convergence> {
        match self.seen.weight.as_ref().filter(|_| self.holds(percent)) {
            None => Some(self.unaccepted(percent)),
            Some(weight) => self.since(weight.since, self.drain(), "connections drain"),
        }
    }

    fn since(&self, since: DateTime<Utc>, length: TimeDelta, what: &str) -> Option<Convergence> {
        let until = since.checked_add_signed(length)?;
        (until > self.now).then(|| hold(WaitOn::Settle, Some(until), what.to_owned()))
    }

    fn accepted(&self, percent: i32) -> Convergence {
        // Not by its name: where a base cannot tell two percents apart, the other one is as good.
        if self.seen.weight.is_some() && self.holds(percent) { Convergence::Reached } else { self.unaccepted(percent) }
    }

    fn unaccepted(&self, percent: i32) -> Convergence {
        let trouble = self.snapshot.routes.iter().find(|(_, route)| !route.accepted);
        let message = trouble.map_or_else(
            || format!("the routes do not yet all say {percent} %"),
            |(name, route)| match &route.trouble {
                Some(trouble) => format!("{name} is not accepted: {trouble}"),
                None => format!("{name} is not accepted yet"),
            },
        );
        hold(WaitOn::Route, None, message)
    }

    /// The first route that says something else gets the weight; one effect a turn.
    fn write(&self, percent: i32) -> Convergence {
        let other = self.snapshot.routes.iter().find(|(_, route)| route.rules.iter().any(|rule| !rule.holds(percent)));
        match other {
            Some((route, _)) => Convergence::Do(Effect::SetWeight { route: route.clone(), percent }),
            None => self.accepted(percent),
        }
    }

    /// Only routes that say more are touched: one that says less is raised in its turn, when the pods are there.
    fn write_lower(&self, percent: i32) -> Option<Convergence> {
        let above = |rule: &super::RuleState| rule.share() > percent && !rule.holds(percent);
        let (route, _) = self.snapshot.routes.iter().find(|(_, route)| route.rules.iter().any(above))?;
        Some(Convergence::Do(Effect::SetWeight { route: route.clone(), percent }))
    }

    fn shrink(&self) -> Convergence {
        let (least, most) = self.written();
        // A side that some requests go to directly is in traffic, if only a little.
        let most = if self.snapshot.routes.values().any(RouteState::is_direct) { most.max(1) } else { most };
        let stable = self.service(&self.references.stable_service).1;
        let canary = self.service(&self.references.canary_service).1;
        // What the gateways have not accepted yet is not so yet: until then a side may have what it had.
        let accepted = self.seen.weight.as_ref().map(|weight| weight.value);
        let (sure, possible) = (accepted.unwrap_or(0).min(least), accepted.unwrap_or(100).max(most));
        let mut waiting = Convergence::Reached;
        for (revision, state) in &self.snapshot.revisions {
            let wanted = self.target.sizes.get(revision).copied().unwrap_or_default();
            if state.replicas <= wanted {
                continue;
            }
            let on_stable = stable.selects.as_ref() == Some(revision);
            let on_canary = canary.selects.as_ref() == Some(revision);
            let carried = match (on_stable, on_canary) {
                (true, true) => 100,
                (true, false) if least < 100 => 100 - sure,
                (false, true) if most > 0 => possible,
                _ => 0,
            };
            let unnarrowed = stable.selects.is_none() || canary.selects.is_none() && most > 0;
            if carried > 0 || unnarrowed {
                // A side in traffic keeps the pods for its share (S3, S4), whatever the target says.
                let kept = wanted.max(share(self.replicas(), if unnarrowed { 100 } else { carried }));
                let spare = state.replicas.saturating_sub(kept);
                if spare > 0 && state.ready.saturating_sub(spare) >= share(self.replicas(), carried) {
                    return Convergence::Do(Effect::Scale { revision: revision.clone(), replicas: kept });
                }
                continue;
            }
            // It gets nothing any more: but what it has, it may finish. Whatever moved last counts: the weights,
            // and what a Service selects that still gets something.
            let selected = |gets: bool, fact: &Option<SeenRevision>| gets.then(|| fact.as_ref().map(|fact| fact.since));
            let facts: Vec<Option<DateTime<Utc>>> = [
                Some(self.seen.weight.as_ref().map(|fact| fact.since)),
                selected(least < 100, &self.seen.stable_service),
                selected(most > 0, &self.seen.canary_service),
            ]
            .into_iter()
            .flatten()
            .collect();
            if facts.iter().any(Option::is_none) {
                waiting =
                    hold(WaitOn::Route, None, format!("revision {revision} is kept until the routes are accepted"));
                continue;
            }
            let last = facts.into_iter().flatten().max().unwrap_or(self.now);
            if let Some(wait) = self.since(last, self.drain(), "connections drain") {
                waiting = wait;
                continue;
            }
            let blue_green = self.snapshot.spec.strategy.blue_green.is_some();
            if blue_green && on_canary && wanted == 0 && *revision != self.target.stable_service {
                // Whoever looks at the preview finds what serves, not nothing.
                let (service, revision) =
                    (self.service(&self.references.canary_service).0, &self.target.stable_service);
                return Convergence::Do(Effect::SelectRevision { service, revision: revision.clone() });
            }
            return Convergence::Do(Effect::Scale { revision: revision.clone(), replicas: wanted });
        }
        waiting
    }

    fn pods(&self, revision: &str, needed: i32) -> Convergence {
        let state = self.snapshot.revisions.get(revision).cloned().unwrap_or_default();
        let ready = state.available.min(state.ready);
        let trouble = state.trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
        hold(WaitOn::Pods, None, format!("{ready} of {needed} pods of revision {revision} are ready{trouble}"))
    }
}

/// The template of a revision: of the spec, of its ReplicaSet, or of the ledger.
pub fn template(snapshot: &Snapshot, revision: &str) -> Option<PodTemplate> {
    if snapshot.spec.template.revision() == revision {
        return Some(snapshot.spec.template.clone());
    }
    if let Some(state) = snapshot.revisions.get(revision) {
        return Some(state.template.clone());
    }
    snapshot.ledger.last_good.as_ref().filter(|(good, _)| good == revision).map(|(_, template)| template.clone())
}

fn hold(on: WaitOn, until: Option<DateTime<Utc>>, message: String) -> Convergence {
    Convergence::Hold(Wait { until, on, message })
}
