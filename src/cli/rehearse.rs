//! `sluice rehearse`: a run of a Rollout in the simulated world, with faults on request and a real log.
//!
//! The engine is the real one and the log branch is a real one, in a repository of its own. Only the cluster and
//! the clock are simulated, so that it takes about a second.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::Serialize;
use serde_json::json;

use super::declarations::{self, Declaration, Declarations, ReadError};
use super::exit::Exit;
use super::plan::{Output, check, errors_beside, images, older};
use super::rollout_status::view::API_VERSION;
use super::terminal::{Line, Terminal, Tone, length};
use crate::api::{Duration, MissingThen, ReleaseState, RolloutSpec, RouteKind, TransitionEvent};
use crate::cluster::objects::Key;
use crate::controllers::plan_text;
use crate::engine::plan::plan;
use crate::git::{Evidence, GitError, Ledger, LedgerEntry, LocalLedger, state_document};
use crate::simulation::{AfterHold, Rehearsal, RehearsalEntry, Scenario, forecast, rehearse_with};

/// The cluster's name in the log of a rehearsal.
const CLUSTER: &str = "rehearsal";

/// What `sluice rehearse` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A file with manifests, a directory of them, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub filename: PathBuf,
    /// The Rollout, when the files declare more than one
    #[arg(long, value_name = "NAME")]
    pub rollout: Option<String>,
    /// Let the metrics turn bad at this step (counted from 1, as shown)
    #[arg(long, value_name = "STEP")]
    pub fail_at: Option<usize>,
    /// Let each pod take this long to become ready
    #[arg(long, value_name = "DURATION")]
    pub slow_pods: Option<Duration>,
    /// Let the metrics go silent at this step (counted from 1, as shown)
    #[arg(long, value_name = "STEP")]
    pub no_data_at: Option<usize>,
    /// Keep the repository with the log branch in this directory; it must be empty or not exist
    #[arg(long, value_name = "DIR")]
    pub ledger: Option<PathBuf>,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

/// Why there is no rehearsal.
#[derive(Debug, thiserror::Error)]
pub enum RehearseError {
    /// The files.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What the files declare makes no sense; every fault in a line of its own.
    #[error("{}", .0.join("\nerror: "))]
    Declarations(Vec<String>),
    /// Not one Rollout to take.
    #[error("{0}")]
    Choice(String),
    /// An option that does not fit the Rollout.
    #[error("--{option}: {message}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The repository.
    #[error("the log: {0}")]
    Ledger(#[from] GitError),
    /// A directory or standard output.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A document that cannot be written.
    #[error("output: {0}")]
    Document(#[from] serde_json::Error),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Outcome {
    Promoted,
    Aborted,
    WaitsForPerson,
    Unfinished,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    namespace: String,
    name: String,
    from: String,
    from_revision: String,
    to: String,
    to_revision: String,
    outcome: Outcome,
    message: String,
    started_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
    lasted_seconds: i64,
    events: Vec<Event>,
    assumptions: Vec<String>,
    log: Log,
}

/// A transition, or what happened between two of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    at: DateTime<Utc>,
    after_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    transition: Option<TransitionEvent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_from: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_to: Option<i32>,
    /// How long it was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    lasts_seconds: Option<i64>,
    message: String,
}

impl Event {
    fn is_wait(&self) -> bool {
        self.transition.is_none() && self.message.starts_with(WAITS)
    }

    /// Among what happens at one moment: what was seen, what the engine made of it, what it then waits for.
    fn rank(&self) -> u8 {
        let start = self.message.split(' ').next().unwrap_or_default();
        let seen = start == "analysis" || RouteKind::named(start).is_some() || self.message.ends_with(" are ready");
        match self.transition {
            Some(_) => 1,
            None if seen => 0,
            None => 2,
        }
    }
}

/// How the simulation words that it waits.
const WAITS: &str = "waits: ";

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    branch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<PathBuf>,
    commits: Vec<String>,
}

/// Runs `sluice rehearse`. Code 0 when it could be rehearsed, whatever came of it.
///
/// # Errors
/// When the files do not make sense, or the log cannot be written.
pub fn run(arguments: &Arguments) -> Result<Exit, RehearseError> {
    let declarations = declarations::read(&arguments.filename)?;
    let errors = errors_beside(&declarations);
    if !errors.is_empty() {
        return Err(RehearseError::Declarations(errors));
    }
    let declaration = choose(&declarations, arguments.rollout.as_deref())?;
    let mut assumptions = check(&declarations, declaration).map_err(RehearseError::Declarations)?;
    let scenario = scenario(arguments, &declaration.spec)?;
    let before = older(&declaration.spec);
    assumptions.insert(0, format!("{} serves before", images(&before.template)));
    let after_hold = after_hold(&declarations, declaration);
    let start = Utc::now().trunc_subsecs(0);
    let rehearsal = rehearse_with(&before, &declaration.spec, &scenario, start, after_hold);

    let scratch = match &arguments.ledger {
        Some(directory) => {
            must_be_empty(directory)?;
            None
        }
        None => Some(tempfile::tempdir()?),
    };
    let directory = arguments.ledger.as_deref().or_else(|| scratch.as_ref().map(tempfile::TempDir::path));
    let ledger = Ledger::local(directory.unwrap_or(Path::new(".")), CLUSTER)?;
    record(&ledger, declaration, &rehearsal)?;
    let log = Log { branch: ledger.branch()?, directory: arguments.ledger.clone(), commits: ledger.log()? };
    let document = document(declaration, &before, &rehearsal, assumptions, log);
    match arguments.output {
        Output::Json => writeln!(io::stdout().lock(), "{}", serde_json::to_string_pretty(&document)?)?,
        Output::Text => Terminal::of_stdout(false).append(&lines(&document))?,
    }
    Ok(Exit::Reached)
}

fn choose<'a>(declarations: &'a Declarations, name: Option<&str>) -> Result<&'a Declaration, RehearseError> {
    let named = |declaration: &&Declaration| name.is_none_or(|name| declaration.rollout.identity.name == name);
    let mut found = declarations.rollouts.iter().filter(named);
    let all = || {
        let keys = declarations.rollouts.iter().map(|declaration| declaration.rollout.identity.key().to_string());
        keys.collect::<Vec<_>>().join(", ")
    };
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (None, _) if declarations.rollouts.is_empty() => {
            Err(RehearseError::Choice(format!("the files declare no Rollout of {API_VERSION}")))
        }
        (None, _) => Err(RehearseError::Choice(format!(
            "the files declare no Rollout {}; they declare {}",
            name.unwrap_or_default(),
            all()
        ))),
        (Some(_), Some(_)) => Err(RehearseError::Choice(format!(
            "the files declare more than one Rollout: {}; choose with --rollout",
            all()
        ))),
    }
}

fn scenario(arguments: &Arguments, spec: &RolloutSpec) -> Result<Scenario, RehearseError> {
    let steps = plan(spec).map(|plan| plan.stages.len()).unwrap_or_default();
    for (option, step) in [("fail-at", arguments.fail_at), ("no-data-at", arguments.no_data_at)] {
        if step.is_some_and(|step| !(1..=steps).contains(&step)) {
            let message = format!("the Rollout has the steps 1 to {steps}");
            return Err(RehearseError::Option { option, message });
        }
    }
    Ok(Scenario { fail_at: arguments.fail_at, no_data_at: arguments.no_data_at, slow_pods: arguments.slow_pods })
}

/// What the metrics of the Rollout's templates say about missing data: one that aborts is enough.
fn after_hold(declarations: &Declarations, declaration: &Declaration) -> AfterHold {
    let namespace = &declaration.rollout.identity.namespace;
    let metrics = declaration.spec.references().analysis_templates.into_iter().flat_map(|template| {
        let name = &template.template_name;
        let index = &declarations.index;
        if template.cluster_scope {
            let spec = index.cluster_analysis_template(name).and_then(|template| template.spec.clone().ok());
            spec.map(|spec| spec.metrics).unwrap_or_default()
        } else {
            let key = Key::new(namespace.clone(), name.clone());
            let spec = index.analysis_template(&key).and_then(|template| template.spec.clone().ok());
            spec.map(|spec| spec.metrics).unwrap_or_default()
        }
    });
    let aborts = |then: Option<MissingThen>| then == Some(MissingThen::Abort);
    let any = metrics.into_iter().any(|metric| aborts(metric.on_no_data.map(|policy| policy.then)));
    if any { AfterHold::Abort } else { AfterHold::Pause }
}

fn must_be_empty(directory: &Path) -> Result<(), RehearseError> {
    let refuse = |message: String| RehearseError::Option { option: "ledger", message };
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(refuse(format!("{} is not empty", directory.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(directory).map_err(|error| refuse(format!("{}: {error}", directory.display())))
        }
        Err(error) => Err(refuse(format!("{}: {error}", directory.display()))),
    }
}

/// Writes the log, one commit a transition.
fn record(ledger: &LocalLedger, declaration: &Declaration, rehearsal: &Rehearsal) -> Result<(), RehearseError> {
    let entries: Vec<LedgerEntry> = rehearsal.entries.iter().map(|entry| ledger_entry(declaration, entry)).collect();
    ledger.append(&entries)?;
    Ok(())
}

fn ledger_entry(declaration: &Declaration, entry: &RehearsalEntry) -> LedgerEntry {
    let identity = &declaration.rollout.identity;
    let transition = entry.transition.clone();
    let revision = entry.snapshot.revisions.get(&transition.revision_to);
    let evidence = transition.analysis_runs.iter().filter_map(|name| {
        let run = entry.snapshot.analyses.get(name)?;
        let body = json!({
            "simulated": true, "stage": run.stage, "revision": run.revision, "attempt": run.attempt,
            "phase": run.phase, "message": run.message, "passedSince": run.passed_since,
        });
        Some(Evidence { stage: run.stage.clone(), body })
    });
    let timeline = forecast(&entry.snapshot, transition.at);
    LedgerEntry {
        cluster: CLUSTER.to_owned(),
        namespace: identity.namespace.clone(),
        name: identity.name.clone(),
        uid: entry.snapshot.uid.clone(),
        state: state_document(&entry.status),
        plan: plan_text::text(&identity.key().to_string(), &entry.status, &timeline),
        evidence: evidence.collect(),
        template: revision.map(|state| state.template.0.clone()),
        operator: format!("sluice {} (rehearsal)", env!("CARGO_PKG_VERSION")),
        transition,
        covers: Vec::new(),
    }
}

fn document(
    declaration: &Declaration,
    before: &RolloutSpec,
    rehearsal: &Rehearsal,
    assumptions: Vec<String>,
    log: Log,
) -> Document {
    let revision = declaration.spec.template.revision();
    let ours = |entry: &&RehearsalEntry| entry.transition.revision_to == revision;
    let started_at = rehearsal.entries.iter().find(ours).map_or(rehearsal.ended_at, |entry| entry.transition.at);
    let over_at = rehearsal.entries.last().map_or(rehearsal.ended_at, |entry| entry.transition.at);
    let after = |at: DateTime<Utc>| (at - started_at).num_seconds();
    let transitions = rehearsal.entries.iter().map(|entry| {
        let transition = &entry.transition;
        Event {
            at: transition.at,
            after_seconds: after(transition.at),
            transition: Some(transition.event),
            step: Some(transition.stage),
            steps: Some(transition.stages),
            weight_from: Some(transition.weight_from),
            weight_to: Some(transition.weight_to),
            lasts_seconds: None,
            message: transition.message.clone(),
        }
    });
    let notes = rehearsal.notes.iter().map(|(at, text)| Event {
        at: *at,
        after_seconds: after(*at),
        transition: None,
        step: None,
        steps: None,
        weight_from: None,
        weight_to: None,
        lasts_seconds: None,
        message: text.clone(),
    });
    let mut events: Vec<Event> = transitions.chain(notes).filter(|event| event.at >= started_at).collect();
    events.sort_by_key(|event| (event.at, event.rank()));
    lasting(&mut events);
    let (outcome, message) = outcome(rehearsal, &revision);
    Document {
        api_version: API_VERSION,
        kind: "Rehearsal",
        namespace: declaration.rollout.identity.namespace.clone(),
        name: declaration.rollout.identity.name.clone(),
        from: images(&before.template),
        from_revision: before.template.revision(),
        to: images(&declaration.spec.template),
        to_revision: revision,
        outcome,
        message,
        started_at,
        ended_at: over_at,
        lasted_seconds: after(over_at),
        events,
        assumptions,
        log,
    }
}

/// Leaves out what was waited for less than a second, and says how long the rest took.
fn lasting(events: &mut Vec<Event>) {
    let ends: Vec<Option<DateTime<Utc>>> = (1..=events.len()).map(|next| Some(events.get(next)?.at)).collect();
    for (event, end) in events.iter_mut().zip(ends) {
        if let (true, Some(end)) = (event.is_wait(), end) {
            event.lasts_seconds = Some((end - event.at).num_seconds());
        }
    }
    events.retain(|event| event.lasts_seconds != Some(0));
}

fn outcome(rehearsal: &Rehearsal, revision: &str) -> (Outcome, String) {
    let status = &rehearsal.end;
    let promoted = status.stable_revision.as_deref() == Some(revision);
    match &status.release {
        None if promoted => (Outcome::Promoted, "the new version is the stable one".to_owned()),
        Some(release) if release.state == ReleaseState::Aborted => {
            (Outcome::Aborted, release.abort.as_ref().map(|abort| abort.message.clone()).unwrap_or_default())
        }
        None if status.denied.iter().any(|denied| denied.revision == revision) => {
            (Outcome::Aborted, status.message.clone())
        }
        Some(release) if release.held_for.is_some() || status.paused_by.is_some() => {
            (Outcome::WaitsForPerson, status.message.clone())
        }
        _ => (Outcome::Unfinished, status.message.clone()),
    }
}

fn lines(document: &Document) -> Vec<Line> {
    let mut lines = vec![
        Line::new()
            .with(Tone::Strong, format!("{}/{}", document.namespace, document.name))
            .with(Tone::Plain, format!("   {} -> {}", document.from, document.to)),
        Line::new().with(Tone::Quiet, format!("Revisions: {} -> {}.", document.from_revision, document.to_revision)),
    ];
    for assumption in &document.assumptions {
        lines.push(Line::new().with(Tone::Quiet, format!("Assumed: {assumption}.")));
    }
    lines.push(Line::new());
    for event in &document.events {
        let after = format!("+{}", length(TimeDelta::seconds(event.after_seconds)));
        let line = Line::new().column(Tone::Quiet, &after, 9);
        lines.push(match event.transition {
            None => {
                let lasts = event.lasts_seconds.map(|seconds| format!(" ({})", length(TimeDelta::seconds(seconds))));
                line.with(Tone::Quiet, format!("  {}{}", event.message, lasts.unwrap_or_default()))
            }
            Some(transition) => {
                let step = format!("{}/{}", event.step.unwrap_or_default(), event.steps.unwrap_or_default());
                let from = event.weight_from.unwrap_or_default();
                let to = event.weight_to.unwrap_or_default();
                let weight = if from == to { format!("{to} %") } else { format!("{from} -> {to} %") };
                line.with(tone(transition), format!("{transition:?}"))
                    .with(Tone::Plain, format!(" {step}, {weight}: {}", event.message))
            }
        });
    }
    let lasted = length(TimeDelta::seconds(document.lasted_seconds));
    let (tone, result) = match document.outcome {
        Outcome::Promoted => (Tone::Good, format!("Promoted after {lasted}: {}.", document.message)),
        Outcome::Aborted => {
            let weight = document.events.iter().rev().find_map(|event| event.weight_to).unwrap_or_default();
            (Tone::Bad, format!("Aborted, {weight} % of traffic left on the new version: {}", document.message))
        }
        Outcome::WaitsForPerson => (Tone::Attention, format!("Waits for a person: {}", document.message)),
        Outcome::Unfinished => (Tone::Attention, format!("Did not come to an end: {}", document.message)),
    };
    lines.push(Line::new());
    lines.push(Line::new().with(tone, result));
    lines.push(Line::new());
    lines.push(Line::plain(match &document.log.directory {
        Some(directory) => format!("$ git -C {} log --oneline {}", directory.display(), document.log.branch),
        None => format!("$ git log --oneline {}   (--ledger DIR keeps the repository)", document.log.branch),
    }));
    lines.extend(document.log.commits.iter().map(Line::plain));
    lines
}

fn tone(event: TransitionEvent) -> Tone {
    match event {
        TransitionEvent::Promoted => Tone::Good,
        TransitionEvent::Aborted | TransitionEvent::Denied => Tone::Bad,
        TransitionEvent::Paused
        | TransitionEvent::Held
        | TransitionEvent::PlanChanged
        | TransitionEvent::Recovered
        | TransitionEvent::DriftCorrected => Tone::Attention,
        _ => Tone::Strong,
    }
}
