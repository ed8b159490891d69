//! `sluice log`: a ledger as a timeline, from a clone. It needs no cluster.

use std::io::{self, Write};
use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::exit::Exit;
use super::plan::Output;
use super::rollout_status::view::{API_VERSION, short};
use super::terminal::{Line, Terminal, Tone};
use crate::api::Duration;
use crate::git::{Archive, Commit, GitError};

/// What `sluice log` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A clone of the repository with the ledger, bare or not
    #[arg(value_name = "REPOSITORY")]
    pub repository: PathBuf,
    /// Only this Rollout, or all of this name
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub rollout: Option<String>,
    /// Only what happened since: a time (2026-01-31T12:00:00Z) or a length of time before now (2h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<Since>,
    /// Only the ledger of this cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// How it is printed: with json, one document a line
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

/// A moment, or how long ago it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// This moment.
    Time(DateTime<Utc>),
    /// So long ago.
    Ago(TimeDelta),
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Since::Time(time.to_utc()));
    }
    let length: Result<Duration, _> = text.parse();
    length.map(|length| Since::Ago(length.delta())).map_err(|_| "neither a time nor a length of time".to_owned())
}

/// Why a ledger could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
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

/// One entry, as a document.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    api_version: &'static str,
    kind: &'static str,
    at: Option<DateTime<Utc>>,
    commit: String,
    branch: String,
    cluster: String,
    subject: String,
    /// The sentence, and one for each entry that is told in this one.
    message: String,
    /// As they stand in the commit, without their prefix.
    trailers: serde_json::Value,
}

/// Runs `sluice log`: newest last.
///
/// # Errors
/// When the ledger cannot be read.
pub fn run(arguments: &Arguments) -> Result<Exit, LogError> {
    let from = arguments.since.map(|since| match since {
        Since::Time(time) => time,
        Since::Ago(length) => Utc::now() - length,
    });
    let terminal = Terminal::of_stdout(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let archive = Archive::open(&arguments.repository).await?;
        let ledgers = archive.ledgers(arguments.cluster.as_deref()).await?;
        let several = ledgers.len() > 1;
        for ledger in &ledgers {
            if several && arguments.output == Output::Text {
                terminal.append(&[Line::new().with(Tone::Strong, format!("cluster {}", ledger.cluster))])?;
            }
            let chain = archive.chain(ledger).await?;
            let mut history = archive.history(chain.segments).await?;
            while let Some(commit) = history.next().await? {
                if from.is_some_and(|from| commit.at().is_none_or(|at| at < from)) || !is_of(&commit, arguments) {
                    continue;
                }
                match arguments.output {
                    Output::Json => {
                        let entry = entry(&commit, &ledger.cluster);
                        writeln!(io::stdout().lock(), "{}", serde_json::to_string(&entry)?)?;
                    }
                    Output::Text => terminal.append(&lines(&commit))?,
                }
            }
        }
        Ok::<_, LogError>(())
    })?;
    Ok(Exit::Reached)
}

fn is_of(commit: &Commit, arguments: &Arguments) -> bool {
    let Some(wanted) = &arguments.rollout else { return true };
    let trailers = commit.trailers();
    let Some((_, rollout)) = trailers.get("Id").and_then(|id| id.split_once('/')) else { return false };
    rollout == wanted || rollout.rsplit('/').next() == Some(wanted)
}

fn entry(commit: &Commit, cluster: &str) -> Entry {
    Entry {
        api_version: API_VERSION,
        kind: "LogEntry",
        at: commit.at(),
        commit: commit.id.clone(),
        branch: commit.branch.to_string(),
        cluster: cluster.to_owned(),
        subject: commit.subject(),
        message: commit.body(),
        trailers: commit.trailers().to_json(),
    }
}

/// When, which, what; below it why, and who.
fn lines(commit: &Commit) -> Vec<Line> {
    let trailers = commit.trailers();
    let get = |name: &str| trailers.get(name).unwrap_or_default();
    let at = commit.at().map_or_else(|| "?".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%SZ").to_string());
    let start = Line::new().with(Tone::Quiet, format!("{at}  {}  ", short(&commit.id)));
    if trailers.get("Epoch").is_some() {
        return vec![start.with(Tone::Attention, commit.subject())];
    }
    let tone = match get("Event") {
        "Promoted" => Tone::Good,
        "Aborted" | "Denied" => Tone::Bad,
        "Paused" | "Held" | "PlanChanged" | "Recovered" => Tone::Attention,
        _ => Tone::Strong,
    };
    let rollout = get("Id").split_once('/').map_or("?", |(_, rollout)| rollout);
    let weight = get("Weight").replace("->", " % -> ");
    let first = start
        .with(Tone::Plain, format!("{rollout} #{}  ", get("Seq")))
        .with(tone, get("Event"))
        .with(Tone::Plain, format!("  {}  {weight} %  {}", get("Step"), get("Release")));
    let mut lines = vec![first];
    for sentence in commit.body().lines().filter(|line| !line.is_empty()) {
        lines.push(Line::plain(format!("    {sentence}")));
    }
    if !get("Actor").is_empty() {
        lines.push(Line::plain(format!("    by {}", get("Actor"))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_and_a_length_of_time_are_understood_and_nothing_else() {
        assert_eq!(since("2h"), Ok(Since::Ago(TimeDelta::hours(2))));
        let noon = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(since("2026-01-31T13:00:00+01:00"), Ok(Since::Time(noon)));
        for text in ["", "yesterday", "-2h", "2026-01-31"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
