//! `sluice verify`: checks a ledger in a clone, without a cluster and without the network.
//!
//! The checks are `git::verify`; here is what a person gives and gets.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::exit::Exit;
use super::plan::Output;
use super::rollout_status::view::API_VERSION;
use super::terminal::{Line, Terminal, Tone};
use crate::git::{ALLOWED_SIGNERS, Archive, Fault, GitError, Report, Signature, VerifyOptions, verify};

/// What `sluice verify` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A clone of the repository with the ledger, bare or not
    #[arg(value_name = "REPOSITORY")]
    pub repository: PathBuf,
    /// Only the ledger of this cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Who may sign, as a file in the format of ssh's allowed_signers; else `.sluice/allowed_signers` on the source branch
    #[arg(long, value_name = "FILE")]
    pub allowed_signers: Option<PathBuf>,
    /// The branch that people commit to
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub source_branch: String,
    /// A tip without a signature is a fault
    #[arg(long)]
    pub require_signature: bool,
    /// A tip that was seen outside of git, in a status, an event or a metric: it must be in the ledger
    #[arg(long, value_name = "COMMIT")]
    pub expect: Vec<String>,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

/// Why a ledger could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyCommandError {
    /// The option `--allowed-signers`.
    #[error("--allowed-signers: {path}: {source}")]
    AllowedSigners {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The repository.
    #[error(transparent)]
    Ledger(#[from] GitError),
    /// Standard output, or the runtime.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A document that cannot be written.
    #[error("output: {0}")]
    Document(#[from] serde_json::Error),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    ledgers: Vec<Ledger>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ledger {
    cluster: String,
    branch: String,
    tip: String,
    entries: usize,
    rollouts: std::collections::BTreeMap<String, i64>,
    signature: String,
    notes: Vec<String>,
    faults: Vec<Finding>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    place: String,
    expected: String,
    found: String,
}

impl From<Fault> for Finding {
    fn from(Fault { commit, place, expected, found }: Fault) -> Self {
        Self { commit, place, expected, found }
    }
}

/// Runs `sluice verify`: code 0 when all holds, [`Exit::Failed`] when something does not.
///
/// # Errors
/// When the ledger cannot be read at all.
pub fn run(arguments: &Arguments) -> Result<Exit, VerifyCommandError> {
    let reports = reports(arguments)?;
    let clean = reports.iter().all(|report| report.faults.is_empty());
    match arguments.output {
        Output::Json => {
            let ledgers = reports.into_iter().map(|report| Ledger {
                signature: signed(&report.signature),
                cluster: report.cluster,
                branch: report.branch,
                tip: report.tip,
                entries: report.entries,
                rollouts: report.rollouts,
                notes: report.notes,
                faults: report.faults.into_iter().map(Finding::from).collect(),
            });
            let document = Document { api_version: API_VERSION, kind: "Verification", ledgers: ledgers.collect() };
            writeln!(io::stdout().lock(), "{}", serde_json::to_string_pretty(&document)?)?;
        }
        Output::Text => {
            let lines: Vec<Line> = reports.iter().flat_map(lines).collect();
            Terminal::of_stdout(false).append(&lines)?;
        }
    }
    Ok(if clean { Exit::Reached } else { Exit::Failed })
}

fn reports(arguments: &Arguments) -> Result<Vec<Report>, VerifyCommandError> {
    let given = arguments.allowed_signers.as_ref().map(|path| {
        let failed = |source| VerifyCommandError::AllowedSigners { path: path.display().to_string(), source };
        std::fs::read(path).map_err(failed)
    });
    let given = given.transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reports: Result<Vec<Report>, GitError> = runtime.block_on(async {
        let archive = Archive::open(&arguments.repository).await?;
        let allowed_signers = match given {
            Some(given) => Some(given),
            None => archive.file(&arguments.source_branch, ALLOWED_SIGNERS).await?,
        };
        let ledgers = archive.ledgers(arguments.cluster.as_deref()).await?;
        let mut reports = Vec::new();
        for ledger in &ledgers {
            let options = VerifyOptions {
                allowed_signers: allowed_signers.clone(),
                require_signature: arguments.require_signature,
                seen_tips: arguments.expect.clone(),
            };
            reports.push(verify(&archive, ledger, &options).await?);
        }
        Ok(reports)
    });
    Ok(reports?)
}

fn signed(signature: &Signature) -> String {
    match signature {
        Signature::Absent => "not signed".to_owned(),
        Signature::By(principal) => format!("signed by {principal}"),
        Signature::Unknown(key) => format!("signed by the key {key}, of which nobody says whether it may"),
        Signature::Bad => "with a signature that does not hold".to_owned(),
    }
}

fn lines(report: &Report) -> Vec<Line> {
    let number = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let what = format!(
        "{}: {} of {}, tip {}, {}",
        report.branch,
        number(report.entries, "entry", "entries"),
        number(report.rollouts.len(), "Rollout", "Rollouts"),
        report.tip.get(..12).unwrap_or(&report.tip),
        signed(&report.signature),
    );
    let mut lines: Vec<Line> = report
        .faults
        .iter()
        .map(|fault| Line::new().with(Tone::Bad, "fault  ").with(Tone::Plain, fault.to_string()))
        .collect();
    lines.extend(report.notes.iter().map(|note| Line::new().with(Tone::Attention, "note   ").with(Tone::Plain, note)));
    let verdict = match report.faults.len() {
        0 => Line::plain(what).with(Tone::Good, ": clean"),
        faults => Line::plain(what).with(Tone::Bad, format!(": {}", number(faults, "fault", "faults"))),
    };
    lines.push(verdict);
    lines
}
