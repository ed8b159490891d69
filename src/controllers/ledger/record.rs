//! What is to be recorded, what a confirmation changes, and what is said about both. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::Place;
use crate::api::{
    Condition, ConditionStatus, Conditions, DeployRepoStatus, Granularity, OnAuditUnavailable, PodTemplate, RECORDED,
    RolloutStatus, Transition, TransitionEvent,
};
use crate::cluster::objects::{AnalysisRunObject, DeployRepoObject, Identity, RolloutObject};
use crate::git::{Evidence, Fork, LedgerEntry, state_document};

/// How long transitions may wait before it is said that the record is behind.
pub const BEHIND_AFTER: TimeDelta = RolloutStatus::BEHIND_AFTER;

/// The condition of a DeployRepo whose log is not as it was left.
const LOG_FORKED: &str = "LogForked";
/// The condition of a DeployRepo whose log has a second remote.
const MIRRORED: &str = "Mirrored";

/// How far the second remote of a log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// There is none.
    Absent,
    /// It is being pushed to, or could not be asked about.
    Unknown,
    /// It has all that the first one has.
    Whole,
    /// This keeps it behind.
    Behind(Trouble),
}

/// What keeps transitions out of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// One word for the condition.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// It may go away by itself: only said when it lasts.
    pub passing: bool,
}

/// One transition that waits, with all that its record needs.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Its Rollout as seen.
    pub rollout: Arc<RolloutObject>,
    /// The transition.
    pub transition: Transition,
    /// Earlier ones that get no commit of their own.
    pub covers: Vec<Transition>,
    /// It is the last one of its Rollout: the present state is the state it led to.
    pub last: bool,
}

/// Whether a DeployRepo may record what happens in a namespace.
pub fn may_record(repo: &DeployRepoObject, operator_namespace: &str, namespace: &str) -> bool {
    let Ok(spec) = &repo.spec else { return false };
    let own = &repo.identity.namespace;
    own == namespace || (own == operator_namespace && spec.namespaces.iter().any(|listed| listed == namespace))
}

/// The DeployRepo that records a Rollout: the one that applied it, else the one that lists its namespace. The
/// annotation is a hint of the Rollout's own, so it counts only for a DeployRepo that may record there.
pub fn recorder<'a>(
    rollout: &Identity,
    repos: &'a [Arc<DeployRepoObject>],
    operator_namespace: &str,
) -> Option<&'a Arc<DeployRepoObject>> {
    let applied_by = rollout.annotations.get(crate::api::names::DEPLOY_REPO);
    let rank = |repo: &DeployRepoObject| {
        let key = repo.identity.key();
        let applied = applied_by.is_some_and(|name| *name == key.to_string());
        let own = repo.identity.namespace == rollout.namespace;
        (!applied, !own, repo.identity.created_at, key)
    };
    repos.iter().filter(|repo| may_record(repo, operator_namespace, &rollout.namespace)).min_by_key(|repo| rank(repo))
}

/// The oldest waiting transitions of these Rollouts, in the order in which they are recorded: by time, but never
/// a later number of one Rollout before an earlier one.
pub fn choose(rollouts: &[Arc<RolloutObject>], most: usize, granularity: Granularity) -> Vec<Waiting> {
    let mut timed = Vec::new();
    for rollout in rollouts {
        let Some(status) = &rollout.status else { continue };
        let newest = status.pending_log.iter().map(|transition| transition.sequence).max();
        let mut time = DateTime::<Utc>::MIN_UTC;
        let mut covers = Vec::new();
        for transition in status.due(granularity) {
            time = time.max(transition.at);
            if !granularity.gives_commit(transition.event) {
                covers.push(transition.clone());
                continue;
            }
            let last = Some(transition.sequence) == newest;
            let (transition, covers) = (transition.clone(), std::mem::take(&mut covers));
            timed.push((time, Waiting { rollout: rollout.clone(), transition, covers, last }));
        }
    }
    timed.sort_by_key(|(time, _)| *time);
    timed.into_iter().map(|(_, waiting)| waiting).take(most).collect()
}

/// Whether people wait for it.
pub fn is_urgent(transition: &Transition) -> bool {
    matches!(transition.event, TransitionEvent::Aborted | TransitionEvent::Promoted)
}

/// The record of one transition.
pub fn entry(
    cluster: &str,
    waiting: &Waiting,
    template: Option<&PodTemplate>,
    runs: &[Arc<AnalysisRunObject>],
    plan: impl FnOnce() -> String,
) -> LedgerEntry {
    let identity = &waiting.rollout.identity;
    let transition = &waiting.transition;
    let named = |run: &str| {
        let told = waiting.covers.iter().chain([transition]);
        told.flat_map(|transition| &transition.analysis_runs).any(|name| name == run)
    };
    let evidence = runs
        .iter()
        .filter(|run| named(&run.identity.name))
        .filter(|run| run.identity.owner.as_deref() == Some(identity.uid.as_str()))
        .filter_map(|run| {
            let (spec, status) = (run.spec.as_ref().ok()?, run.status.as_ref()?);
            Some(Evidence::of(&run.identity.name, spec, status))
        })
        .collect();
    // Of an earlier transition the state is not known any more; the later one's would be a wrong record of it.
    let status = waiting.rollout.status.as_ref().filter(|_| waiting.last);
    LedgerEntry {
        cluster: cluster.to_owned(),
        namespace: identity.namespace.clone(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        transition: transition.clone(),
        covers: waiting.covers.clone(),
        state: status.map(state_document).unwrap_or_default(),
        plan: if waiting.last { plan() } else { String::new() },
        evidence,
        template: template.map(|template| template.0.clone()),
        operator: concat!("sluice/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// What a DeployRepo's log holds for sure: the last number of each uid.
pub fn last_numbers(recorded: &[(String, i64)]) -> BTreeMap<String, i64> {
    recorded.iter().fold(BTreeMap::new(), |mut last, (uid, sequence)| {
        let known: &mut i64 = last.entry(uid.clone()).or_default();
        *known = (*known).max(*sequence);
        last
    })
}

/// The status after transitions up to `sequence` are in the ledger; none when that changes nothing.
pub fn confirmed(
    before: &RolloutStatus,
    sequence: i64,
    branch: &str,
    granularity: Granularity,
    now: DateTime<Utc>,
) -> Option<RolloutStatus> {
    let mut status = before.clone();
    status.pending_log.retain(|transition| transition.sequence > sequence);
    status.recorded_sequence = status.recorded_sequence.max(sequence);
    let recent = status.unrecorded_since(granularity).is_none_or(|at| now - at < BEHIND_AFTER);
    if recent {
        let message = format!("transitions up to {} are in {branch}", status.recorded_sequence);
        set(&mut status, ConditionStatus::True, "Recorded", &message, now);
    }
    (status != *before).then_some(status)
}

/// The status that says that the record of this Rollout is behind; none when there is nothing new to say.
pub fn behind(
    before: &RolloutStatus,
    trouble: &Trouble,
    trouble_since: DateTime<Utc>,
    first_waits: bool,
    granularity: Granularity,
    policy: OnAuditUnavailable,
    now: DateTime<Utc>,
) -> Option<RolloutStatus> {
    let waiting_since = before.unrecorded_since(granularity).or(first_waits.then_some(trouble_since))?;
    if trouble.passing && now - waiting_since < BEHIND_AFTER {
        return None;
    }
    let known = before.conditions.condition(RECORDED);
    if known.is_some_and(|known| known.status == ConditionStatus::False && known.reason == trouble.reason) {
        // The count and the words of the error change all the time; that is no reason to write.
        return None;
    }
    let message = if before.due(granularity).is_empty() {
        format!("the log could not be read, so the first version waits: {}", trouble.message)
    } else {
        let since = waiting_since.format("%Y-%m-%d %H:%M:%S UTC");
        let meanwhile = match policy {
            OnAuditUnavailable::Continue => "the rollout goes on",
            OnAuditUnavailable::Pause => "no further step is taken, an abort is",
            OnAuditUnavailable::HoldBeforePromotion => "the rollout goes on, but is not promoted",
        };
        format!("transitions since {since} are not in git yet; {meanwhile}: {}", trouble.message)
    };
    let mut status = before.clone();
    set(&mut status, ConditionStatus::False, trouble.reason, &message, now);
    Some(status)
}

/// The status that says that all is well again; none when it never said otherwise.
pub fn caught_up(
    before: &RolloutStatus,
    branch: &str,
    granularity: Granularity,
    now: DateTime<Utc>,
) -> Option<RolloutStatus> {
    let known = before.conditions.condition(RECORDED)?;
    if known.status != ConditionStatus::False || !before.due(granularity).is_empty() {
        return None;
    }
    let mut status = before.clone();
    let message = format!("transitions up to {} are in {branch}", status.recorded_sequence);
    set(&mut status, ConditionStatus::True, "Recorded", &message, now);
    Some(status)
}

/// The DeployRepo's status while its log is written: branch, tip and conditions. None when nothing changed. `place` is
/// none while it is not known.
pub fn log_status(
    before: &DeployRepoStatus,
    generation: i64,
    place: Option<&Place>,
    mirror: &Mirror,
    trouble: Option<&Trouble>,
    now: DateTime<Utc>,
) -> Option<DeployRepoStatus> {
    let mut status = before.clone();
    let mut say = |type_: &str, value: ConditionStatus, reason: &str, message: String| {
        let known = before.conditions.condition(type_);
        if known.is_none_or(|known| known.status != value || known.reason != reason) {
            let said = Condition { type_: type_.to_owned(), ..condition(value, reason, &message, generation, now) };
            status.conditions.set_condition(said);
        }
    };
    match (trouble, place) {
        (Some(trouble), _) => say(RECORDED, ConditionStatus::False, trouble.reason, trouble.message.clone()),
        (None, Some(Place { branch, .. })) => {
            say(RECORDED, ConditionStatus::True, "Recorded", format!("every transition is in {branch}"));
        }
        (None, None) => {}
    }
    let forked = trouble.filter(|trouble| trouble.reason == LOG_FORKED).map(|trouble| trouble.message.clone());
    let begun = place.and_then(|place| place.fork.as_ref()).map(|fork| {
        let Fork { branch, previous, expected, found } = fork;
        format!(
            "{previous} is not as it was left: expected {expected}, found {found}; {branch} is written since. Look at \
             both, then set spec.log.acknowledgedFork to {branch}"
        )
    });
    match forked.or(begun) {
        Some(message) => say(LOG_FORKED, ConditionStatus::True, LOG_FORKED, message),
        None if place.is_some() && before.conditions.condition(LOG_FORKED).is_some() => {
            say(LOG_FORKED, ConditionStatus::False, "Acknowledged", "the log is as it was left".to_owned());
        }
        None => {}
    }
    match mirror {
        Mirror::Unknown => {}
        Mirror::Whole => say(MIRRORED, ConditionStatus::True, MIRRORED, "the second remote has the log too".to_owned()),
        Mirror::Behind(trouble) => say(MIRRORED, ConditionStatus::False, trouble.reason, trouble.message.clone()),
        Mirror::Absent => status.conditions.remove_condition(MIRRORED),
    }
    if let Some(place) = place {
        status.log_branch = Some(place.branch.clone());
        if place.tip.is_some() {
            status.log_tip.clone_from(&place.tip);
        }
    }
    (status != *before).then_some(status)
}

fn set(status: &mut RolloutStatus, value: ConditionStatus, reason: &str, message: &str, now: DateTime<Utc>) {
    let generation = status.observed_generation.unwrap_or_default();
    status.conditions.set_condition(condition(value, reason, message, generation, now));
}

fn condition(status: ConditionStatus, reason: &str, message: &str, generation: i64, now: DateTime<Utc>) -> Condition {
    Condition {
        type_: RECORDED.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.chars().take(2000).collect(),
        last_transition_time: now,
        observed_generation: Some(generation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn transition(sequence: i64, seconds: i64) -> Transition {
        serde_json::from_value(json!({
            "sequence": sequence, "event": "StepCompleted", "at": at(seconds), "stage": 1, "stages": 2,
            "weightFrom": 0, "weightTo": 20, "revisionTo": "b", "attempt": 1, "reason": "r", "message": "m"
        }))
        .unwrap()
    }

    fn rollout(name: &str, pending: &[(i64, i64)]) -> Arc<RolloutObject> {
        let object: kube::core::DynamicObject = serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"selector": {}, "template": {}, "strategy": {}}
        }))
        .unwrap();
        let mut rollout = RolloutObject::of(&object);
        rollout.status = Some(status(pending));
        Arc::new(rollout)
    }

    fn status(pending: &[(i64, i64)]) -> RolloutStatus {
        let pending_log = pending.iter().map(|(sequence, seconds)| transition(*sequence, *seconds)).collect();
        RolloutStatus { pending_log, ..RolloutStatus::default() }
    }

    fn repo(namespace: &str, name: &str, lists: &[&str], created: i64) -> Arc<DeployRepoObject> {
        let object: kube::core::DynamicObject = serde_json::from_value(json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "DeployRepo",
            "metadata": {"name": name, "namespace": namespace, "uid": name, "creationTimestamp": at(created)},
            "spec": {"url": "https://git.example/x", "namespaces": lists}
        }))
        .unwrap();
        Arc::new(DeployRepoObject::of(&object))
    }

    #[test]
    fn the_recorder_is_who_applied_it_else_who_may() {
        let repos = [
            repo("sluice-system", "platform", &["shop", "bank"], 0),
            repo("sluice-system", "second", &["shop"], 5),
            repo("shop", "own", &[], 9),
            repo("mallory", "trap", &["shop"], 0),
        ];
        let name = |annotation: Option<&str>, namespace: &str| {
            let mut identity = Identity { namespace: namespace.into(), name: "web".into(), ..Identity::default() };
            let annotations = annotation.map(|value| (crate::api::names::DEPLOY_REPO.to_owned(), value.to_owned()));
            identity.annotations = annotations.into_iter().collect();
            recorder(&identity, &repos, "sluice-system").map(|repo| repo.identity.name.clone())
        };
        assert_eq!(name(Some("sluice-system/second"), "shop").as_deref(), Some("second"));
        assert_eq!(name(None, "shop").as_deref(), Some("own"));
        assert_eq!(name(None, "bank").as_deref(), Some("platform"));
        assert_eq!(name(Some("shop/own"), "bank").as_deref(), Some("platform"), "it may not record there");
        assert_eq!(name(Some("mallory/trap"), "shop").as_deref(), Some("own"), "nobody lists what is not theirs");
        assert_eq!(name(Some("sluice-system/platform"), "elsewhere"), None);
    }

    #[test]
    fn the_oldest_go_first_and_numbers_stay_in_order() {
        // The clock of `b` went back between 1 and 2.
        let rollouts = [rollout("a", &[(4, 10), (5, 30)]), rollout("b", &[(2, 0), (1, 20)])];
        let order = |most| -> Vec<String> {
            let chosen = choose(&rollouts, most, Granularity::Step);
            let name = |waiting: &Waiting| {
                format!(
                    "{}{}{}",
                    waiting.rollout.identity.name,
                    waiting.transition.sequence,
                    if waiting.last { "!" } else { "" }
                )
            };
            chosen.iter().map(name).collect()
        };
        assert_eq!(order(10), ["a4", "b1", "b2!", "a5!"]);
        assert_eq!(order(2), ["a4", "b1"]);
    }

    #[test]
    fn only_the_last_transition_of_a_rollout_records_the_present_state() {
        let rollouts = [rollout("a", &[(1, 0), (2, 10)])];
        let chosen = choose(&rollouts, 10, Granularity::Step);
        let template = PodTemplate(json!({"spec": 1}));
        let entries: Vec<_> =
            chosen.iter().map(|waiting| entry("prod", waiting, Some(&template), &[], || "next".to_owned())).collect();
        assert_eq!((entries[0].state.is_null(), entries[0].plan.as_str()), (true, ""));
        assert_eq!((entries[1].state["phase"].as_str(), entries[1].plan.as_str()), (Some("Pending"), "next"));
        assert!(entries[1].state.get("pendingLog").is_none());
        assert_eq!(entries[0].template, Some(template.0));
    }

    #[test]
    fn a_confirmation_takes_out_what_is_recorded_and_nothing_else() {
        let before = status(&[(1, 0), (2, 10), (3, 20)]);
        let after = confirmed(&before, 2, "rollout-log/prod", Granularity::Step, at(30)).unwrap();
        assert_eq!(after.pending_log, vec![transition(3, 20)]);
        assert_eq!(after.recorded_sequence, 2);
        assert_eq!(after.conditions.condition(RECORDED).unwrap().status, ConditionStatus::True);
        assert_eq!(
            confirmed(&after, 2, "rollout-log/prod", Granularity::Step, at(31)),
            None,
            "nothing is written twice"
        );
        assert_eq!(confirmed(&after, 1, "rollout-log/prod", Granularity::Step, at(31)), None, "nor taken back");
        let late = confirmed(&before, 2, "rollout-log/prod", Granularity::Step, at(500)).unwrap();
        assert_eq!(late.conditions.condition(RECORDED), None, "what remains has waited too long");
    }

    #[test]
    fn being_behind_is_said_when_it_lasts_and_once() {
        let passing = Trouble { reason: "RepositoryUnreachable", message: "no route".into(), passing: true };
        let lasting = Trouble { reason: "AccessDenied", message: "401".into(), passing: false };
        let before = status(&[(1, 0)]);
        assert_eq!(
            behind(&before, &passing, at(0), false, Granularity::Step, OnAuditUnavailable::Continue, at(59)),
            None
        );
        assert!(
            behind(&before, &lasting, at(0), false, Granularity::Step, OnAuditUnavailable::Continue, at(1)).is_some()
        );
        let said =
            behind(&before, &passing, at(0), false, Granularity::Step, OnAuditUnavailable::Continue, at(61)).unwrap();
        let condition = said.conditions.condition(RECORDED).unwrap();
        assert_eq!((condition.status, condition.reason.as_str()), (ConditionStatus::False, "RepositoryUnreachable"));
        assert!(condition.message.contains("no route") && condition.message.contains("since"), "{}", condition.message);
        assert_eq!(
            behind(&said, &passing, at(0), false, Granularity::Step, OnAuditUnavailable::Continue, at(500)),
            None,
            "no second write"
        );
        assert!(
            behind(&said, &lasting, at(0), false, Granularity::Step, OnAuditUnavailable::Continue, at(500)).is_some(),
            "another reason is news"
        );
        assert_eq!(
            behind(&status(&[]), &lasting, at(0), false, Granularity::Step, OnAuditUnavailable::Continue, at(500)),
            None,
            "nothing waits"
        );
        let first =
            behind(&status(&[]), &passing, at(0), true, Granularity::Step, OnAuditUnavailable::Continue, at(61))
                .unwrap();
        assert!(first.conditions.condition(RECORDED).unwrap().message.contains("first version waits"));
        assert_eq!(caught_up(&said, "rollout-log/prod", Granularity::Step, at(600)), None, "it still waits");
        let after = confirmed(&said, 1, "rollout-log/prod", Granularity::Step, at(600)).unwrap();
        assert_eq!(after.conditions.condition(RECORDED).unwrap().status, ConditionStatus::True);
        assert_eq!(caught_up(&after, "rollout-log/prod", Granularity::Step, at(601)), None);
        assert!(caught_up(&first, "rollout-log/prod", Granularity::Step, at(601)).is_some());
    }

    #[test]
    fn a_deploy_repo_tells_branch_tip_and_trouble() {
        let before = DeployRepoStatus::default();
        let place = |tip: &str| Place { branch: "rollout-log/prod".into(), tip: Some(tip.into()), fork: None };
        let good = log_status(&before, 3, Some(&place("abc")), &Mirror::Absent, None, at(0)).unwrap();
        assert_eq!((good.log_branch.as_deref(), good.log_tip.as_deref()), (Some("rollout-log/prod"), Some("abc")));
        assert_eq!(log_status(&good, 3, Some(&place("abc")), &Mirror::Absent, None, at(9)), None);
        let trouble = Trouble { reason: "Rejected", message: "x".into(), passing: false };
        let bad = log_status(&good, 3, None, &Mirror::Absent, Some(&trouble), at(9)).unwrap();
        assert_eq!(bad.log_tip.as_deref(), Some("abc"), "the last known place stays");
        assert_eq!(bad.log_branch.as_deref(), Some("rollout-log/prod"));
        assert_eq!(bad.conditions.condition(RECORDED).unwrap().reason, "Rejected");
        assert_eq!(log_status(&bad, 3, None, &Mirror::Absent, Some(&trouble), at(99)), None);
        // A fork is said until it is acknowledged, and then that it was.
        let fork = Fork {
            branch: "rollout-log/prod@2026q4".into(),
            previous: "rollout-log/prod".into(),
            expected: "abc".into(),
            found: "evil".into(),
        };
        let forked = Place { branch: fork.branch.clone(), tip: Some("def".into()), fork: Some(fork) };
        let alarm = log_status(&bad, 3, Some(&forked), &Mirror::Absent, None, at(99)).unwrap();
        let condition = alarm.conditions.condition(LOG_FORKED).unwrap();
        assert_eq!(condition.status, ConditionStatus::True);
        for word in ["abc", "evil", "acknowledgedFork to rollout-log/prod@2026q4"] {
            assert!(condition.message.contains(word), "{}", condition.message);
        }
        let looked =
            log_status(&alarm, 3, Some(&Place { fork: None, ..forked }), &Mirror::Absent, None, at(100)).unwrap();
        assert_eq!(looked.conditions.condition(LOG_FORKED).unwrap().status, ConditionStatus::False);
        // The second remote has a condition of its own and touches no other.
        let late = log_status(&good, 3, Some(&place("abc")), &Mirror::Behind(trouble), None, at(9)).unwrap();
        assert_eq!(late.conditions.condition(MIRRORED).unwrap().status, ConditionStatus::False);
        assert_eq!(late.conditions.condition(RECORDED), good.conditions.condition(RECORDED));
        let there = log_status(&late, 3, Some(&place("abc")), &Mirror::Whole, None, at(10)).unwrap();
        assert_eq!(there.conditions.condition(MIRRORED).unwrap().status, ConditionStatus::True);
        assert_eq!(log_status(&there, 3, Some(&place("abc")), &Mirror::Unknown, None, at(11)), None);
        let without = log_status(&there, 3, Some(&place("abc")), &Mirror::Absent, None, at(11)).unwrap();
        assert_eq!(without.conditions.condition(MIRRORED), None, "nothing is said of what is no more");
    }

    #[test]
    fn transitions_between_go_with_the_next_one_that_has_a_commit() {
        use TransitionEvent::{Promoted, Promoting, Started, StepCompleted};
        let mut rollout = RolloutObject::clone(&rollout("web", &[(1, 0), (2, 10), (3, 20), (4, 30), (5, 40), (6, 50)]));
        let status = rollout.status.as_mut().unwrap();
        for (transition, event) in
            status.pending_log.iter_mut().zip([Started, StepCompleted, StepCompleted, Promoting, Promoted, Started])
        {
            transition.event = event;
        }
        let status = status.clone();
        let chosen = |granularity| -> Vec<String> {
            let chosen = choose(&[Arc::new(rollout.clone())], 10, granularity);
            let numbers = |waiting: &Waiting| {
                let covers = waiting.covers.iter().map(|covered| format!("{},", covered.sequence));
                format!(
                    "{}{}{}",
                    covers.collect::<String>(),
                    waiting.transition.sequence,
                    if waiting.last { "!" } else { "" }
                )
            };
            chosen.iter().map(numbers).collect()
        };
        assert_eq!(chosen(Granularity::Step), ["1", "2", "3", "4", "5", "6!"]);
        assert_eq!(chosen(Granularity::Phase), ["1", "2,3,4", "5", "6!"]);
        assert_eq!(chosen(Granularity::Release), ["1,2,3,4,5"]);
        // What waits for company is not late.
        let after = confirmed(&status, 5, "rollout-log/prod", Granularity::Release, at(9000)).unwrap();
        assert_eq!(after.pending_log.len(), 1);
        assert_eq!(after.conditions.condition(RECORDED).unwrap().status, ConditionStatus::True);
        let trouble = Trouble { reason: "Unreachable", message: "x".into(), passing: false };
        assert_eq!(
            behind(&after, &trouble, at(0), false, Granularity::Release, OnAuditUnavailable::Continue, at(9000)),
            None
        );
        assert!(
            behind(&after, &trouble, at(0), false, Granularity::Phase, OnAuditUnavailable::Continue, at(9000))
                .is_some()
        );
    }
}
