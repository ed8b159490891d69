//! `sluice plan`: what would happen, step by step, with times.
//!
//! The declared Rollout is looked at as the operator would look at it, an older version of it is brought to rest
//! in the simulated world, and the engine's own forecast tells the rest. What is not in the files is taken to
//! exist, and that is said.

use std::io::{self, Write};
use std::path::PathBuf;

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use serde::Serialize;

use super::declarations::{self, Declaration, Declarations, Fault, ReadError};
use super::exit::Exit;
use super::rollout_status::view::API_VERSION;
use super::terminal::{Line, Terminal, Tone, length, table};
use crate::api::{PodTemplate, RolloutSpec};
use crate::engine::Problem;
use crate::simulation::{Timeline, World, forecast};

/// How a result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What `sluice plan` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A file with manifests, a directory of them, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub filename: PathBuf,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The files.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Standard output.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    /// A document that cannot be written.
    #[error("output: {0}")]
    Document(#[from] serde_json::Error),
}

/// How long an older version may take to come to rest in the simulated world.
const SETTLING: TimeDelta = TimeDelta::days(30);

/// How long the older version has served when the new one comes.
const REST: TimeDelta = TimeDelta::hours(1);

/// Everything `plan` has to say.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    items: Vec<Foretold>,
    errors: Vec<String>,
}

/// What would happen to one Rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Foretold {
    namespace: String,
    name: String,
    declared_in: String,
    strategy: &'static str,
    from: String,
    to: String,
    steps: Vec<Step>,
    /// When the new version is the stable one at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_after_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_on: Option<String>,
    assumptions: Vec<String>,
}

/// One step, with times from the moment the operator sees the change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    step: i32,
    label: String,
    weight: i32,
    gate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    starts_after_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_after_seconds: Option<i64>,
    needs_person: bool,
}

/// Runs `sluice plan`: code 0 when everything in the files makes sense.
///
/// # Errors
/// When nothing could be read or written at all.
pub fn run(arguments: &Arguments) -> Result<Exit, PlanError> {
    let declarations = declarations::read(&arguments.filename)?;
    let (items, mut errors) = foretell(&declarations, Utc::now().trunc_subsecs(0));
    if items.is_empty() && errors.is_empty() {
        errors.push(format!("{}: no Rollout of {API_VERSION} in it", arguments.filename.display()));
    }
    let exit = if errors.is_empty() { Exit::Reached } else { Exit::Error };
    match arguments.output {
        Output::Json => {
            let document = Document { api_version: API_VERSION, kind: "PlanList", items, errors };
            let mut out = io::stdout().lock();
            writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
        }
        Output::Text => {
            let lines: Vec<Line> = items.iter().flat_map(lines).collect();
            Terminal::of_stdout(false).append(&lines)?;
            let mut err = io::stderr().lock();
            for error in errors {
                let _ = writeln!(err, "error: {error}");
            }
        }
    }
    Ok(exit)
}

fn foretell(declarations: &Declarations, start: DateTime<Utc>) -> (Vec<Foretold>, Vec<String>) {
    let mut errors = errors_beside(declarations);
    let mut items = Vec::new();
    for declaration in &declarations.rollouts {
        match check(declarations, declaration) {
            Ok(assumptions) => items.push(foretell_one(declaration, assumptions, start)),
            Err(found) => errors.extend(found),
        }
    }
    (items, errors)
}

/// What is wrong with a declared Rollout, each with its place and field; or what has to be assumed.
///
/// # Errors
/// Everything that is wrong.
pub fn check(declarations: &Declarations, declaration: &Declaration) -> Result<Vec<String>, Vec<String>> {
    let verdict = declarations.judge(declaration);
    let errors: Vec<String> = verdict.faults.iter().filter(|fault| !fault.doubtful).map(ToString::to_string).collect();
    if errors.is_empty() {
        let mut assumptions: Vec<String> = verdict.absent.iter().map(assumption).collect();
        assumptions.dedup();
        return Ok(assumptions);
    }
    Err(errors)
}

/// What is wrong with what is beside the Rollouts; another project's Rollout, which was hardly meant to be left out.
pub fn errors_beside(declarations: &Declarations) -> Vec<String> {
    let is_rollout = |fault: &&Fault| fault.origin.object.as_ref().is_some_and(|object| object.kind == "Rollout");
    let foreign = declarations.foreign.iter().filter(is_rollout);
    declarations.errors.iter().filter(|fault| !fault.doubtful).chain(foreign).map(ToString::to_string).collect()
}

/// What is taken for granted when something is not in the files.
pub fn assumption(problem: &Problem) -> String {
    let what = problem.message.split(" does not exist").next().unwrap_or(&problem.message);
    format!("{what} is not in the files; taken to exist and to fit")
}

/// The version that is taken to serve before: the same declaration with other images.
pub fn older(spec: &RolloutSpec) -> RolloutSpec {
    let mut older = spec.clone();
    let containers = older.template.0.pointer_mut("/spec/containers").and_then(|containers| containers.as_array_mut());
    for container in containers.into_iter().flatten() {
        let Some(image) = container.get("image").and_then(|image| image.as_str()) else { continue };
        let tag = if image.ends_with(":v0") { "before" } else { "v0" };
        container["image"] = format!("{}:{tag}", repository(image)).into();
    }
    older
}

/// An image without tag and digest. A colon before the last slash belongs to the registry's port.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

/// The images of a template in one text.
pub fn images(template: &PodTemplate) -> String {
    template.images().map(|(_, image)| image).collect::<Vec<_>>().join(", ")
}

fn foretell_one(declaration: &Declaration, mut assumptions: Vec<String>, start: DateTime<Utc>) -> Foretold {
    let before = older(&declaration.spec);
    let mut world = World::new(before.clone(), start);
    world.run(SETTLING);
    // It has served for a while: what only follows its own start, such as a drain, is over.
    world.advance_to(world.now + REST);
    let spec = declaration.spec.clone();
    world.edit_spec(|own| *own = spec);
    let Timeline { now, stages, ends_at, blocked_on } = forecast(&world.snapshot(), world.now);
    let after = |at: DateTime<Utc>| (at - now).num_seconds().max(0);
    assumptions.insert(0, format!("{} serves now; all pods get ready, all metrics are good", images(&before.template)));
    if stages.iter().any(|stage| stage.needs_person) {
        assumptions.push("whoever is asked approves at once".to_owned());
    }
    let identity = &declaration.rollout.identity;
    Foretold {
        namespace: identity.namespace.clone(),
        name: identity.name.clone(),
        declared_in: declaration.origin.to_string(),
        strategy: if declaration.spec.strategy.blue_green.is_some() { "BlueGreen" } else { "Canary" },
        from: images(&before.template),
        to: images(&declaration.spec.template),
        steps: stages
            .into_iter()
            .map(|stage| Step {
                step: stage.stage.saturating_add(1),
                label: stage.label,
                weight: stage.weight,
                gate: stage.gate,
                starts_after_seconds: stage.starts_at.map(after),
                ends_after_seconds: stage.ends_at.map(after),
                needs_person: stage.needs_person,
            })
            .collect(),
        ends_after_seconds: ends_at.map(after),
        blocked_on: blocked_on.map(|wait| wait.message),
        assumptions,
    }
}

fn lines(item: &Foretold) -> Vec<Line> {
    let offset = |seconds: Option<i64>| {
        seconds.map(|seconds| format!("+{}", length(TimeDelta::seconds(seconds)))).unwrap_or_default()
    };
    let mut lines = vec![
        Line::new()
            .with(Tone::Strong, format!("{}/{}", item.namespace, item.name))
            .with(Tone::Plain, format!("   {}   {} -> {}", item.strategy, item.from, item.to)),
        Line::new(),
    ];
    let rows: Vec<_> = item
        .steps
        .iter()
        .map(|step| {
            let plain = |text: String| (Tone::Plain, text);
            let gate = if step.needs_person { format!("{} by a person", step.gate) } else { step.gate.clone() };
            vec![
                plain(step.step.to_string()),
                plain(step.label.clone()),
                plain(format!("{} %", step.weight)),
                plain(offset(step.starts_after_seconds)),
                plain(offset(step.ends_after_seconds)),
                (if step.needs_person { Tone::Attention } else { Tone::Plain }, gate),
            ]
        })
        .collect();
    lines.extend(table(&["STEP", "WHAT", "WEIGHT", "STARTS", "ENDS", "GOES ON WHEN"], &rows));
    lines.push(Line::new());
    lines.push(match (item.ends_after_seconds, &item.blocked_on) {
        (Some(seconds), _) => Line::plain(format!(
            "Promoted {} after the change is seen, at the earliest.",
            length(TimeDelta::seconds(seconds))
        )),
        (None, Some(blocked)) => {
            Line::new().with(Tone::Attention, format!("Does not come to an end by itself: {blocked}"))
        }
        (None, None) => Line::plain("Nothing would happen."),
    });
    for assumption in &item.assumptions {
        lines.push(Line::new().with(Tone::Quiet, format!("Assumed: {assumption}.")));
    }
    lines.push(Line::new());
    lines
}

#[cfg(test)]
mod tests {
    use super::repository;

    #[test]
    fn an_image_keeps_its_registry_and_its_port() {
        for (image, expected) in [
            ("web", "web"),
            ("web:v1", "web"),
            ("example.com:5000/web", "example.com:5000/web"),
            ("example.com:5000/shop/web:v1", "example.com:5000/shop/web"),
            ("example.com/web@sha256:abc", "example.com/web"),
            ("example.com/web:v1@sha256:abc", "example.com/web"),
        ] {
            assert_eq!(repository(image), expected);
        }
    }
}
