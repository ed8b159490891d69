//! `sluice lint`: what is wrong with manifests, before any cluster sees them.
//!
//! The checks are those of the operator and of the definitions, run on what the files declare
//! ([`super::declarations`]); nothing is checked here. This module only sorts what was found into errors and
//! warnings, and prints it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::declarations::{self, Declarations, Fault, Origin, ReadError};
use super::exit::Exit;
use super::plan::{Output, assumption};
use super::rollout_status::view::API_VERSION;
use super::terminal::{Line, Terminal, Tone};

/// What `sluice lint` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A file with manifests, a directory of them, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub filename: PathBuf,
    /// Errors instead of warnings for what a Rollout names and the files do not hold, and for fields of a pod template
    /// that are probably misspelt
    #[arg(long)]
    pub strict: bool,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum LintError {
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

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Severity {
    /// It has to be mended: the exit code says so.
    Error,
    /// It may be meant.
    Warning,
}

/// Everything that was found; the form of `-o json`, which only ever gains fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    /// How many objects were read, of any kind.
    objects: usize,
    /// How many of them are of Sluice's kinds.
    own: usize,
    errors: usize,
    warnings: usize,
    items: Vec<Finding>,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<usize>,
    /// Of the fault when it is known, else of the document's beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    message: String,
    /// As the text form shows it.
    text: String,
}

/// What it was found in.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
}

/// Runs `sluice lint`: code 0 when nothing has to be mended.
///
/// # Errors
/// When nothing could be read or written at all.
pub fn run(arguments: &Arguments) -> Result<Exit, LintError> {
    let declarations = declarations::read(&arguments.filename)?;
    let document = lint(&declarations, arguments.strict, is_directory(&arguments.filename));
    let exit = if document.errors == 0 { Exit::Reached } else { Exit::Error };
    match arguments.output {
        Output::Json => writeln!(io::stdout().lock(), "{}", serde_json::to_string_pretty(&document)?)?,
        Output::Text => {
            let lines: Vec<Line> = document.items.iter().map(line).collect();
            Terminal::of_stdout(false).append(&lines)?;
            // Apart from the findings, so that a program can count lines.
            let _ = writeln!(io::stderr().lock(), "{}", summary(&document));
        }
    }
    Ok(exit)
}

/// Whether a place has to name its file.
fn is_directory(path: &Path) -> bool {
    path != Path::new("-") && path.is_dir()
}

fn lint(declarations: &Declarations, strict: bool, with_file: bool) -> Document {
    let mut found: Vec<(Severity, Fault)> = Vec::new();
    let mut add = |severity: Severity, fault: Fault| found.push((severity, fault));
    let doubtful = if strict { Severity::Error } else { Severity::Warning };
    for fault in &declarations.errors {
        add(if fault.doubtful { doubtful } else { Severity::Error }, fault.clone());
    }
    for fault in &declarations.foreign {
        add(Severity::Warning, fault.clone());
    }
    for declaration in &declarations.rollouts {
        let verdict = declarations.judge(declaration);
        for fault in verdict.faults {
            if !declarations.is_told(&fault) {
                add(if fault.doubtful { doubtful } else { Severity::Error }, fault);
            }
        }
        let mut absent = Vec::new();
        for problem in verdict.absent.iter().filter(|problem| declarations.should_hold(problem)) {
            let mut fault = Fault::of_problem(&declaration.origin, problem.clone());
            if !strict {
                fault.message = assumption(problem);
            }
            if !absent.contains(&fault.message) {
                absent.push(fault.message.clone());
                add(doubtful, fault);
            }
        }
    }
    // In the order of the files; what is about all of them comes first.
    found.sort_by_key(|(_, Fault { origin, .. })| (origin.file.clone(), origin.document));
    let count = |wanted: Severity| found.iter().filter(|(severity, _)| *severity == wanted).count();
    Document {
        api_version: API_VERSION,
        kind: "LintReport",
        objects: declarations.objects,
        own: declarations.own,
        errors: count(Severity::Error),
        warnings: count(Severity::Warning),
        items: found.into_iter().map(|(severity, fault)| finding(severity, fault, with_file)).collect(),
    }
}

fn finding(severity: Severity, fault: Fault, with_file: bool) -> Finding {
    let origin = if with_file { fault.origin.clone() } else { fault.origin.within_file() };
    let text = Fault { origin, ..fault.clone() }.to_string();
    let Origin { file, document, line, object } = fault.origin;
    let object = object.map(|object| Object { kind: object.kind, namespace: object.namespace, name: object.name });
    Finding { severity, file, document, line, object, field: fault.field, message: fault.message, text }
}

fn line(finding: &Finding) -> Line {
    match finding.severity {
        Severity::Error => Line::plain(finding.text.clone()),
        Severity::Warning => {
            Line::new().with(Tone::Attention, "warning: ".to_owned()).with(Tone::Plain, finding.text.clone())
        }
    }
}

fn summary(document: &Document) -> String {
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!(
        "{}, {} of Sluice's kinds: {}, {}",
        many(document.objects, "object"),
        document.own,
        many(document.errors, "error"),
        many(document.warnings, "warning")
    )
}
