//! What a person or a program is told of one Rollout: five answers first, then the details.
//!
//! Pure, and a contract: `-o json` prints exactly this, so fields are added and never renamed within a version.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::facts::Facts;
use crate::api::{
    Abort, AbortCause, AnalysisPhase, AnalysisRunSpec, AnalysisRunStatus, Condition, ConditionStatus, Conditions,
    Metric, MetricResult, Phase, PodTemplate, ReleaseState, Threshold, Verdict, names,
};
use crate::engine::{Effect, Turn, WaitOn};
use crate::simulation::StageState;

/// The version of the document that `-o json` prints.
pub const API_VERSION: &str = "sluice.dev/v1alpha1";

/// Everything that is told of one Rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// The version of this document.
    pub api_version: &'static str,
    /// `RolloutStatusView`.
    pub kind: &'static str,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: String,
    /// The generation of the spec.
    pub generation: i64,
    /// The generation the operator has seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When this was looked at.
    pub looked_at: DateTime<Utc>,
    /// When the Rollout was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<DateTime<Utc>>,
    /// `Canary` or `BlueGreen`.
    pub strategy: String,
    /// In one word.
    pub phase: Phase,
    /// In one sentence.
    pub message: String,
    /// What is rolled out.
    pub what: What,
    /// How far it is.
    #[serde(rename = "where")]
    pub position: Position,
    /// Why it was aborted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// Why it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// What comes next, and when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// How to stop it, to mend it, or to go back.
    pub ways: Ways,
    /// The steps, done and to come.
    pub steps: Vec<Step>,
    /// The versions that have pods.
    pub sides: Vec<Side>,
    /// What is measured for this attempt.
    pub analyses: Vec<Analysis>,
    /// The last measurement that failed in this attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed_metric: Option<FailedMetric>,
    /// What is in the log.
    pub record: Record,
    /// The conditions, as in the status.
    pub conditions: Vec<Condition>,
    /// What could not be read, so that this is not the whole picture.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<String>,
}

/// What is rolled out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct What {
    /// The revision that git asks for.
    pub revision: String,
    /// The revision that is known to be good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,
    /// Which try of the revision this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// The commit that last changed the declaration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The images, a container each.
    pub images: Vec<Image>,
}

/// One container's image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The container.
    pub container: String,
    /// Its image in the wanted revision.
    pub image: String,
    /// Its image in the stable revision, when that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stable_image: Option<String>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// The present step from 1; absent when nothing is in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// How many steps there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<i32>,
    /// What the release is doing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ReleaseState>,
    /// The canary's share in percent that the data plane has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// The share the present step wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted_weight: Option<i32>,
    /// When the release began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<DateTime<Utc>>,
    /// When the present step began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_started_at: Option<DateTime<Utc>>,
}

/// Why it waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// On what, in one word; `Operator` when the operator has something to do.
    pub on: String,
    /// In one sentence.
    pub message: String,
    /// When it ends, if a time is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Only a person ends it.
    pub needs_person: bool,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Next {
    /// The step from 1; absent for the end of the release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// In words.
    pub label: String,
    /// When at the earliest; absent while a person is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
    /// When the whole release is done at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<DateTime<Utc>>,
    /// What stands in the way of an end that can be foretold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_on: Option<String>,
}

/// Commands a person can copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ways {
    /// What they do: `Stop`, `Mend` or `Undo`.
    pub label: &'static str,
    /// The commands.
    pub commands: Vec<String>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// From 1.
    pub step: i32,
    /// In words.
    pub label: String,
    /// What must hold before the next one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gate: String,
    /// The canary's share in percent.
    pub weight: i32,
    /// Done, current or to come.
    pub state: StepState,
    /// When it began, or begins at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<DateTime<Utc>>,
    /// When it ends at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<DateTime<Utc>>,
    /// Only a person ends it.
    pub needs_person: bool,
}

/// Where a step lies in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum StepState {
    /// Behind.
    Done,
    /// Now.
    Current,
    /// Ahead.
    Ahead,
    /// The release was aborted in it.
    Aborted,
    /// Never reached: the release was aborted before.
    NotReached,
}

/// A version that has pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Side {
    /// `stable`, `canary`, `first` or `old`.
    pub role: &'static str,
    /// The revision.
    pub revision: String,
    /// Its images.
    pub images: Vec<String>,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that have been ready for long enough.
    pub available: i32,
    /// Its share of the traffic in percent, when known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// What hinders its pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// One AnalysisRun of this attempt.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// Its name.
    pub name: String,
    /// `background`, or `step-N`.
    pub stage: String,
    /// How it stands.
    pub phase: AnalysisPhase,
    /// Why.
    pub message: String,
    /// Its metrics.
    pub metrics: Vec<MeasuredMetric>,
}

/// One metric and what was measured of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredMetric {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub phase: AnalysisPhase,
    /// Measurements that passed.
    pub passed: i32,
    /// Measurements that failed.
    pub failed: i32,
    /// Measurements that were neither.
    pub inconclusive: i32,
    /// Measurements without a usable sample.
    pub no_data: i32,
    /// Measurements that ended in an error.
    pub errors: i32,
    /// How many measurements end it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    /// The last value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What is good.
    pub bound: String,
}

/// A measurement that failed, with all that is needed to look for oneself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedMetric {
    /// The AnalysisRun.
    pub analysis: String,
    /// The metric.
    pub metric: String,
    /// The value.
    pub value: String,
    /// What would have been good.
    pub bound: String,
    /// The query.
    pub query: String,
    /// When it was measured.
    pub at: DateTime<Utc>,
}

impl FailedMetric {
    /// In one sentence.
    pub fn sentence(&self) -> String {
        format!("metric {} was {} at {}, {}", self.metric, self.value, self.at.format("%H:%M:%SZ"), self.bound)
    }
}

/// What is in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The number of the last transition.
    pub sequence: i64,
    /// The number of the last one that is in the log.
    pub recorded_sequence: i64,
    /// Why the log is behind, when it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl View {
    /// Tells what the facts say.
    pub fn of(facts: &Facts, now: DateTime<Utc>) -> Self {
        let identity = &facts.rollout.identity;
        let status = &facts.status;
        let steps = steps(facts);
        let runs = runs_of_attempt(facts);
        Self {
            api_version: API_VERSION,
            kind: "RolloutStatusView",
            namespace: identity.namespace.clone(),
            name: identity.name.clone(),
            uid: identity.uid.clone(),
            generation: identity.generation,
            observed_generation: status.observed_generation,
            looked_at: now,
            created_at: identity.created_at,
            strategy: strategy(facts),
            phase: status.phase,
            message: message(facts),
            what: what(facts),
            position: position(facts, &steps),
            abort: facts.release().and_then(|release| release.abort.clone()),
            waiting: waiting(facts),
            next: next(facts, &steps),
            ways: ways(facts),
            sides: sides(facts),
            analyses: runs.iter().map(|(name, spec, run)| analysis(name, spec, run)).collect(),
            failed_metric: failed_metric(&runs),
            record: record(facts),
            conditions: status.conditions.clone(),
            incomplete: facts
                .gaps
                .iter()
                .map(|gap| format!("{} could not be read: {}", gap.kind.name(), gap.why))
                .collect(),
            steps,
        }
    }

    /// Only a person can let the release go on.
    pub fn needs_person(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.needs_person)
    }

    /// The status of a condition, as a word.
    pub fn condition(&self, type_: &str) -> &'static str {
        match self.conditions.condition(type_).map(|condition| condition.status) {
            Some(ConditionStatus::True) => "True",
            Some(ConditionStatus::False) => "False",
            Some(ConditionStatus::Unknown) => "Unknown",
            None => "",
        }
    }
}

fn strategy(facts: &Facts) -> String {
    if !facts.status.strategy.is_empty() {
        return facts.status.strategy.clone();
    }
    match &facts.rollout.spec {
        Ok(spec) if spec.strategy.blue_green.is_some() => "BlueGreen".to_owned(),
        Ok(_) => "Canary".to_owned(),
        Err(_) => "Unknown".to_owned(),
    }
}

fn message(facts: &Facts) -> String {
    match &facts.rollout.spec {
        Err(trouble) => trouble.to_string(),
        Ok(_) => facts.status.message.clone(),
    }
}

fn what(facts: &Facts) -> What {
    let status = &facts.status;
    let template = facts.rollout.spec.as_ref().ok().map(|spec| &spec.template);
    let stable = status.stable_revision.as_ref().and_then(|revision| facts.revisions.get(revision));
    let stable_image = |container: &str| {
        let mut images = stable.into_iter().flat_map(|stable| stable.template.images());
        images.find(|(name, _)| *name == container).map(|(_, image)| image.to_owned())
    };
    // Until the operator has seen the spec its word is about an older one.
    let revision = match template {
        Some(template) if status.revision.is_empty() || !facts.is_current() => template.revision(),
        _ => status.revision.clone(),
    };
    What {
        revision,
        stable_revision: status.stable_revision.clone(),
        attempt: facts.release().map(|release| release.attempt),
        commit: facts.rollout.identity.annotations.get(names::SOURCE_COMMIT).cloned(),
        images: template
            .into_iter()
            .flat_map(PodTemplate::images)
            .map(|(container, image)| Image {
                container: container.to_owned(),
                image: image.to_owned(),
                stable_image: stable_image(container).filter(|stable| stable != image),
            })
            .collect(),
    }
}

fn position(facts: &Facts, steps: &[Step]) -> Position {
    let status = &facts.status;
    let release = facts.release();
    let aborted = release.is_some_and(|release| release.state == ReleaseState::Aborted);
    let current = steps.iter().find(|step| step.state == StepState::Current);
    Position {
        step: release.map(|release| release.stage.saturating_add(1).min(release.stages.max(1))),
        steps: release.map(|release| release.stages),
        state: release.map(|release| release.state),
        weight: status.weight,
        wanted_weight: if aborted { Some(0) } else { current.map(|step| step.weight) },
        started_at: release.and_then(|release| release.started_at),
        step_started_at: release.and_then(|release| release.stage_started_at),
    }
}

fn waiting(facts: &Facts) -> Option<Waiting> {
    let status = &facts.status;
    let plainly = |on: &str, message: String| Waiting { on: on.to_owned(), message, until: None, needs_person: false };
    if facts.rollout.spec.is_err() {
        return Some(plainly("Spec", message(facts)));
    }
    if status.observed_generation.is_none() {
        return Some(plainly("Operator", "the operator has not seen it yet; is it running?".to_owned()));
    }
    if !facts.is_current() {
        return Some(plainly("Operator", "the operator has not seen the latest change of the spec yet".to_owned()));
    }
    let Some(turn) = &facts.turn else {
        let on = if status.phase == Phase::Stalled { "Spec" } else { "Unknown" };
        let silent = status.phase == Phase::Ready || status.message.is_empty();
        let needs_person = status.phase == Phase::Paused;
        return (!silent).then(|| Waiting { needs_person, ..plainly(on, status.message.clone()) });
    };
    match turn {
        Turn::Wait(wait) if wait.on == WaitOn::Nothing => None,
        Turn::Wait(wait) => Some(Waiting {
            on: format!("{:?}", wait.on),
            message: wait.message.clone(),
            until: wait.until,
            needs_person: wait.on == WaitOn::Person,
        }),
        Turn::Advance(status) => {
            Some(plainly("Operator", format!("the operator is about to go on: {}", status.message)))
        }
        Turn::Apply(effect) => {
            let doing = describe(effect, &facts.rollout.identity.name);
            Some(plainly("Operator", format!("the operator is about to {doing}")))
        }
    }
}

/// An effect in words.
pub fn describe(effect: &Effect, rollout: &str) -> String {
    match effect {
        Effect::CreateReplicaSet { revision, replicas, .. } => {
            format!("create ReplicaSet {} with {replicas} pods", names::replica_set(rollout, revision))
        }
        Effect::Scale { revision, replicas } => {
            format!("scale ReplicaSet {} to {replicas}", names::replica_set(rollout, revision))
        }
        Effect::DeleteReplicaSet { revision } => {
            format!("delete ReplicaSet {}", names::replica_set(rollout, revision))
        }
        Effect::SelectRevision { service, revision } => format!("let Service {service} select revision {revision}"),
        Effect::SelectEveryRevision { service } => format!("let Service {service} select every revision"),
        Effect::SetWeight { route, percent } => format!("set the canary's weight in {route} to {percent} %"),
        Effect::SetHeaderRoutes { route, header_routes } => {
            let names: Vec<&str> = header_routes.iter().map(|it| it.name.as_str()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("set the header routes of {route}: {names}")
        }
        Effect::StartAnalysis { name, .. } => format!("start AnalysisRun {name}"),
        Effect::ScaleWorkload { workload, replicas } => format!("scale Deployment {workload} to {replicas}"),
        Effect::EvictPod { pod, .. } => format!("end Pod {pod}, for a new one to take its place"),
        Effect::AddFinalizer => "see to it that a deletion hands back what is steered".to_owned(),
        Effect::RemoveFinalizer { .. } => "let the Rollout go".to_owned(),
        Effect::EndAnalysis { name } => format!("end AnalysisRun {name}"),
    }
}

fn next(facts: &Facts, steps: &[Step]) -> Option<Next> {
    let timeline = facts.timeline.as_ref()?;
    facts.release().filter(|release| release.state != ReleaseState::Aborted)?;
    let ahead = steps.iter().find(|step| step.state == StepState::Ahead);
    let person = steps.iter().any(|step| step.state == StepState::Current && step.needs_person);
    Some(Next {
        step: ahead.map(|step| step.step),
        label: ahead.map_or_else(|| "the new version is stable".to_owned(), |step| step.label.clone()),
        at: ahead.map_or(timeline.ends_at, |step| step.starts_at).filter(|_| !person),
        ends_at: timeline.ends_at,
        blocked_on: timeline.blocked_on.as_ref().map(|wait| wait.message.clone()),
    })
}

fn ways(facts: &Facts) -> Ways {
    let identity = &facts.rollout.identity;
    let status = &facts.status;
    let command = |verb: &str| format!("kubectl rollout-status {verb} {} -n {}", identity.name, identity.namespace);
    let commit = identity.annotations.get(names::SOURCE_COMMIT);
    let revert = commit.map(|commit| format!("git revert {}", short(commit))).into_iter();
    match facts.release() {
        Some(release) if release.state == ReleaseState::Aborted => {
            let by_revert = release.abort.as_ref().is_some_and(|abort| abort.cause == AbortCause::Revert);
            let commands = if by_revert { Vec::new() } else { revert.chain([command("retry")]).collect() };
            Ways { label: "Mend", commands }
        }
        Some(_) => Ways { label: "Stop", commands: revert.chain([command("abort")]).collect() },
        None if status.denied.iter().any(|denied| denied.revision == status.revision) => {
            Ways { label: "Mend", commands: revert.chain([command("retry")]).collect() }
        }
        None if status.promoted_revisions.is_empty() => Ways { label: "Undo", commands: Vec::new() },
        None => Ways { label: "Undo", commands: revert.collect() },
    }
}

/// A commit as people abbreviate it.
pub fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

fn steps(facts: &Facts) -> Vec<Step> {
    let Some(timeline) = &facts.timeline else { return Vec::new() };
    let Some(release) = facts.release() else { return Vec::new() };
    let aborted_in = (release.state == ReleaseState::Aborted).then_some(release.stage);
    timeline
        .stages
        .iter()
        .map(|stage| {
            let state = match (aborted_in, stage.state) {
                (Some(aborted), _) if stage.stage < aborted => StepState::Done,
                (Some(aborted), _) if stage.stage == aborted => StepState::Aborted,
                (Some(_), _) => StepState::NotReached,
                (None, StageState::Done) => StepState::Done,
                (None, StageState::Current) => StepState::Current,
                (None, StageState::Ahead) => StepState::Ahead,
            };
            let foretold = matches!(state, StepState::Current | StepState::Ahead);
            let began = release.stage_started_at.filter(|_| state == StepState::Aborted);
            Step {
                step: stage.stage.saturating_add(1),
                label: stage.label.clone(),
                gate: stage.gate.clone(),
                weight: stage.weight,
                state,
                starts_at: stage.starts_at.filter(|_| foretold).or(began),
                // Whoever is waited for comes when they come.
                ends_at: stage.ends_at.filter(|_| foretold && !stage.needs_person),
                needs_person: foretold && stage.needs_person,
            }
        })
        .collect()
}

fn sides(facts: &Facts) -> Vec<Side> {
    let status = &facts.status;
    let stable = status.stable_revision.as_deref();
    let canary = status.release.as_ref().map(|release| release.revision.as_str()).filter(|name| Some(*name) != stable);
    let side = |role, revision: &str, weight| {
        let state = facts.revisions.get(revision)?;
        Some(Side {
            role,
            revision: revision.to_owned(),
            images: state.template.images().map(|(_, image)| image.to_owned()).collect(),
            replicas: state.replicas,
            ready: state.ready,
            available: state.available,
            weight,
            trouble: state.trouble.clone(),
        })
    };
    let stable_weight = if canary.is_some() { status.weight.map(|weight| 100 - weight) } else { Some(100) };
    let first = stable.and_then(|revision| side("stable", revision, stable_weight));
    let canary_role = if stable.is_some() { "canary" } else { "first" };
    let second = canary.and_then(|revision| side(canary_role, revision, status.weight));
    let is_old = |revision: &str| Some(revision) != stable && Some(revision) != canary;
    let old = facts
        .revisions
        .iter()
        .filter(|(revision, state)| is_old(revision) && state.replicas.max(state.current) > 0)
        .filter_map(|(revision, _)| side("old", revision, Some(0)));
    first.into_iter().chain(second).chain(old).collect()
}

type Run<'a> = (&'a str, &'a AnalysisRunSpec, AnalysisRunStatus);

/// The AnalysisRuns of the present attempt, the background one first, then by step.
fn runs_of_attempt(facts: &Facts) -> Vec<Run<'_>> {
    let Some(release) = facts.release() else { return Vec::new() };
    let mut runs: Vec<Run<'_>> = facts
        .runs
        .iter()
        .filter_map(|run| {
            let spec = run.spec.as_ref().ok()?;
            let ours = spec.revision == release.revision && spec.attempt == release.attempt;
            ours.then(|| (run.identity.name.as_str(), spec, run.status.clone().unwrap_or_default()))
        })
        .collect();
    let order = |stage: &str| stage.strip_prefix("step-").and_then(|number| number.parse::<i32>().ok()).unwrap_or(-1);
    runs.sort_by(|a, b| (order(&a.1.stage), a.0).cmp(&(order(&b.1.stage), b.0)));
    runs
}

fn analysis(name: &str, spec: &AnalysisRunSpec, status: &AnalysisRunStatus) -> Analysis {
    let result = |metric: &Metric| status.metrics.iter().find(|result| result.name == metric.name).cloned();
    Analysis {
        name: name.to_owned(),
        stage: spec.stage.clone(),
        phase: status.phase,
        message: status.message.clone(),
        metrics: spec.metrics.iter().map(|metric| measured(metric, &result(metric).unwrap_or_default())).collect(),
    }
}

fn measured(metric: &Metric, result: &MetricResult) -> MeasuredMetric {
    MeasuredMetric {
        name: metric.name.clone(),
        phase: result.phase,
        passed: result.passed,
        failed: result.failed,
        inconclusive: result.inconclusive,
        no_data: result.no_data,
        errors: result.errors,
        count: metric.count,
        value: result.measurements.last().filter(|last| !last.values.is_empty()).map(|last| last.values.join(", ")),
        bound: bound(metric),
    }
}

/// What a good value is, in words.
pub fn bound(metric: &Metric) -> String {
    if let Some(Threshold { min, max }) = metric.threshold {
        return match (min, max) {
            (Some(min), Some(max)) => format!("must be from {min} to {max}"),
            (Some(min), None) => format!("must be at least {min}"),
            (None, Some(max)) => format!("must be at most {max}"),
            (None, None) => String::new(),
        };
    }
    match (&metric.success_condition, &metric.failure_condition) {
        (Some(success), Some(failure)) => format!("must hold: {success}; must not hold: {failure}"),
        (Some(success), None) => format!("must hold: {success}"),
        (None, Some(failure)) => format!("must not hold: {failure}"),
        (None, None) => String::new(),
    }
}

fn failed_metric(runs: &[Run<'_>]) -> Option<FailedMetric> {
    let failures = runs.iter().flat_map(|(name, spec, status)| {
        status.metrics.iter().filter_map(move |result| {
            let measurement = result.measurements.iter().rev().find(|one| one.verdict == Verdict::Fail)?;
            let metric = spec.metrics.iter().find(|metric| metric.name == result.name)?;
            // A metric that ended the release goes before one that only had a bad moment.
            Some(((result.phase == AnalysisPhase::Failed, measurement.at), *name, metric, measurement))
        })
    });
    let (_, name, metric, measurement) = failures.max_by_key(|(rank, ..)| *rank)?;
    Some(FailedMetric {
        analysis: name.to_owned(),
        metric: metric.name.clone(),
        value: measurement.values.join(", "),
        bound: bound(metric),
        query: metric
            .provider
            .prometheus
            .as_ref()
            .map(|query| query.query.split_whitespace().collect::<Vec<_>>().join(" "))
            .unwrap_or_default(),
        at: measurement.at,
    })
}

fn record(facts: &Facts) -> Record {
    let status = &facts.status;
    let behind = status.conditions.condition("Recorded").filter(|recorded| recorded.status != ConditionStatus::True);
    Record {
        sequence: status.sequence,
        recorded_sequence: status.recorded_sequence,
        trouble: behind.map(|recorded| format!("{}: {}", recorded.reason, recorded.message)),
    }
}
