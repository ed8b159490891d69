//! `sluice replay`: judges every analysis that a ledger records again, from its evidence, and tells where both differ.
//!
//! The judging is `analysis::replay`; here a clone is read, one commit after the other.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::exit::Exit;
use super::plan::Output;
use super::rollout_status::view::{API_VERSION, short};
use super::terminal::{Line, Terminal, Tone};
use crate::analysis::replay::{Judged, Replayed, replay};
use crate::git::{Archive, ArchivedLedger, Commit, Content, Evidence, GitError, Place};

/// What `sluice replay` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A clone of the repository with the ledger, bare or not
    #[arg(value_name = "REPOSITORY")]
    pub repository: PathBuf,
    /// Only this Rollout
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub rollout: Option<String>,
    /// Only the ledger of this cluster
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}

/// Why a ledger could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayCommandError {
    /// The option `--rollout`.
    #[error("--rollout: \"{0}\" is no NAMESPACE/NAME")]
    Rollout(String),
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

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    api_version: &'static str,
    kind: &'static str,
    ledgers: Vec<Report>,
}

/// What came of one ledger.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    cluster: String,
    /// A branch and its tip that the ledger goes on from, and that are not in the clone.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    commits: u64,
    /// Records of analyses. One that went on over several transitions has a record with each of them.
    judged: u64,
    simulated: u64,
    not_kept: u64,
    samples_taken: u64,
    samples_kept: u64,
    samples_cut: u64,
    findings: Vec<Finding>,
}

/// A record that does not agree with its evidence.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    commit: String,
    branch: String,
    rollout: String,
    release: String,
    stage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<String>,
    message: String,
}

/// Runs `sluice replay`: code 0 when all agrees, [`Exit::Failed`] when something does not.
///
/// # Errors
/// When the ledger cannot be read at all.
pub fn run(arguments: &Arguments) -> Result<Exit, ReplayCommandError> {
    let reports = reports(arguments)?;
    let agrees = reports.iter().all(|report| report.findings.is_empty());
    match arguments.output {
        Output::Json => {
            let document = Document { api_version: API_VERSION, kind: "Replay", ledgers: reports };
            writeln!(io::stdout().lock(), "{}", serde_json::to_string_pretty(&document)?)?;
        }
        Output::Text => {
            let lines: Vec<Line> = reports.iter().flat_map(lines).collect();
            Terminal::of_stdout(false).append(&lines)?;
        }
    }
    Ok(if agrees { Exit::Reached } else { Exit::Failed })
}

fn reports(arguments: &Arguments) -> Result<Vec<Report>, ReplayCommandError> {
    let rollout = arguments.rollout.as_deref();
    if let Some(rollout) = rollout
        && rollout.split('/').filter(|part| !part.is_empty()).count() != 2
    {
        return Err(ReplayCommandError::Rollout(rollout.to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let reports: Result<Vec<Report>, GitError> = runtime.block_on(async {
        let archive = Archive::open(&arguments.repository).await?;
        let mut reports = Vec::new();
        for ledger in archive.ledgers(arguments.cluster.as_deref()).await? {
            reports.push(read(&archive, &ledger, rollout).await?);
        }
        Ok(reports)
    });
    Ok(reports?)
}

async fn read(archive: &Archive, ledger: &ArchivedLedger, wanted: Option<&str>) -> Result<Report, GitError> {
    let chain = archive.chain(ledger).await?;
    let missing = chain.missing.map(|(branch, tip)| format!("{branch} {tip}"));
    let mut report = Report { cluster: ledger.cluster.clone(), missing, ..Report::default() };
    let mut history = archive.history(chain.segments).await?;
    while let Some(commit) = history.next().await? {
        report.commits += 1;
        for change in history.changes(&commit).await? {
            let Some((rollout, Place::Evidence)) = Place::parse(&change.path) else { continue };
            if change.after.is_none() || wanted.is_some_and(|wanted| wanted != rollout) {
                continue;
            }
            let content = match change.file() {
                Some(object) => history.read(object).await?,
                None => Content::None,
            };
            let release = commit.trailers().get("Release").unwrap_or("-").to_owned();
            report.take_in(&commit, &Claim { rollout, release: &release }, &content);
        }
    }
    Ok(report)
}

/// What evidence is of, by its place and its commit.
struct Claim<'a> {
    rollout: &'a str,
    release: &'a str,
}

impl Report {
    /// Judges the records of one entry.
    fn take_in(&mut self, commit: &Commit, claim: &Claim<'_>, content: &Content) {
        let all = content.bytes().map(Evidence::all);
        match all {
            Some(Ok(all)) => {
                for evidence in all {
                    self.judge(commit, claim, &evidence);
                }
            }
            Some(Err(error)) => {
                self.find(commit, claim, "-", None, format!("cannot be judged: it is no evidence: {error}"));
            }
            None => {
                let message = "cannot be judged: it is no plain file, or one that is too large".to_owned();
                self.find(commit, claim, "-", None, message);
            }
        }
    }

    fn find(&mut self, commit: &Commit, claim: &Claim<'_>, stage: &str, metric: Option<String>, message: String) {
        self.findings.push(Finding {
            commit: commit.id.clone(),
            branch: commit.branch.to_string(),
            rollout: claim.rollout.to_owned(),
            release: claim.release.to_owned(),
            stage: stage.to_owned(),
            metric,
            message,
        });
    }

    fn judge(&mut self, commit: &Commit, claim: &Claim<'_>, Evidence { stage, body }: &Evidence) {
        let mut find = |metric: Option<String>, message: String| self.find(commit, claim, stage, metric, message);
        let judged = match replay(body.to_string().as_bytes()) {
            Ok(Replayed::Judged(judged)) => judged,
            Ok(Replayed::Simulated) => {
                self.simulated += 1;
                return;
            }
            Ok(Replayed::NotKept { .. }) => {
                self.not_kept += 1;
                return;
            }
            Err(error) => return find(None, format!("cannot be judged: {error}")),
        };
        for (about, is, should) in belongs(&judged, claim, stage) {
            find(None, format!("{about} is recorded as {is}, and its place says {should}"));
        }
        for one in judged.disagreements {
            find(
                one.metric,
                format!("{} is recorded as {} and comes out as {}", one.about, one.recorded, one.comes_out),
            );
        }
        self.judged += 1;
        self.samples_taken += judged.taken;
        self.samples_kept += judged.kept;
        self.samples_cut += judged.cut;
    }
}

/// Evidence of something else proves nothing here: what it says to be about, and what its place says, where they differ.
fn belongs<'a>(
    judged: &'a Judged,
    &Claim { rollout, release }: &Claim<'a>,
    stage: &'a str,
) -> impl Iterator<Item = (&'static str, &'a str, &'a str)> {
    let name = rollout.rsplit('/').next().unwrap_or(rollout);
    let pairs = [
        ("the Rollout", &*judged.rollout, name),
        ("the release", &judged.release, release),
        ("the stage", &judged.stage, stage),
    ];
    pairs.into_iter().filter(|(_, is, should)| is != should)
}

fn lines(report: &Report) -> Vec<Line> {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let Finding { commit, rollout, release, stage, metric, message, .. } = finding;
        let metric = metric.as_ref().map(|metric| format!(" {metric}")).unwrap_or_default();
        let text = format!("{} {rollout} {release} {stage}{metric}: {message}", short(commit));
        lines.push(Line::new().with(Tone::Bad, printable(&text)));
    }
    let counted = |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let mut parts = Vec::new();
    if report.judged > 0 {
        parts.push(format!("{} judged again", counted(report.judged, "analysis", "analyses")));
    }
    if report.judged + report.simulated + report.not_kept == 0 {
        parts.push("no analysis".to_owned());
    }
    if report.simulated > 0 {
        parts.push(format!("{} of a rehearsal (nothing was measured)", report.simulated));
    }
    if report.not_kept > 0 {
        parts.push(format!("{} too large to be kept", report.not_kept));
    }
    if report.samples_taken > 0 {
        parts.push(format!("{} of {} samples kept", report.samples_kept, report.samples_taken));
    }
    if report.samples_cut > 0 {
        parts.push(format!("{} with more values than are kept", report.samples_cut));
    }
    let commits = counted(report.commits, "commit", "commits");
    let (tone, result) = match report.findings.len() {
        0 => (Tone::Good, "All as recorded.".to_owned()),
        1 => (Tone::Bad, "1 disagreement.".to_owned()),
        more => (Tone::Bad, format!("{more} disagreements.")),
    };
    if let Some(missing) = &report.missing {
        let text = format!("{}: goes on from {missing}, which is not in this clone", report.cluster);
        lines.push(Line::new().with(Tone::Attention, printable(&text)));
    }
    let summary = format!("{}: {commits}, {}. ", report.cluster, parts.join(", "));
    lines.push(Line::new().with(Tone::Plain, summary).with(tone, result));
    lines
}

/// Text that came from a repository, made harmless for a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use chrono::{DateTime, TimeDelta, Utc};
    use serde_json::json;

    use super::{Arguments, Output, Report, lines, reports, run};
    use crate::analysis::judge;
    use crate::api::{AnalysisRunSpec, AnalysisRunStatus};
    use crate::cli::Exit;
    use crate::git::{Evidence, Ledger, LedgerEntry};
    use crate::metrics::{Answer, Sample};

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    /// A real analysis: the error rate is measured at these values and must not be above `max`.
    fn analysis(attempt: i32, max: f64, values: &[f64]) -> Evidence {
        let metric = json!({"name": "error-rate", "threshold": {"max": max}, "interval": "10s", "count": 3,
                            "provider": {"prometheus": {"name": "prom", "query": "up"}}});
        let spec = json!({"rollout": "web", "revision": "abc", "attempt": attempt, "stage": "step-1",
                          "metrics": [metric]});
        let spec: AnalysisRunSpec = serde_json::from_value(spec).unwrap();
        let mut status = AnalysisRunStatus::default();
        for (number, value) in (0..).zip(values) {
            let now = at(number * 10);
            let samples = vec![Sample { at: now, value: *value }];
            let answer = Answer { samples, warnings: 0, max_age: TimeDelta::seconds(60) };
            let measurement = judge::measure(&spec.metrics[0], Ok(&answer), now, now);
            status = judge::advance(&spec, &status, 0, measurement, now);
        }
        Evidence::of("web-abc", &spec, &status)
    }

    fn entry(sequence: i64, event: &str, attempt: i32, evidence: Evidence) -> LedgerEntry {
        let transition = json!({
            "sequence": sequence, "event": event, "at": at(100 * sequence), "stage": 1, "stages": 2, "weightFrom": 20,
            "weightTo": 0, "revisionTo": "abc", "attempt": attempt, "reason": "Verdict", "message": "seen",
        });
        LedgerEntry {
            cluster: "prod".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "uid".into(),
            transition: serde_json::from_value(transition).unwrap(),
            state: json!({}),
            plan: String::new(),
            evidence: vec![evidence],
            template: None,
            operator: "sluice/test".into(),
            covers: Vec::new(),
        }
    }

    /// The first attempt fails by a bound that was a slip of the pen, the second passes by the right one.
    fn two_attempts(folder: &Path) -> PathBuf {
        let path = folder.join("log");
        std::fs::create_dir(&path).unwrap();
        let first = entry(1, "Aborted", 1, analysis(1, 0.001, &[0.005]));
        let second = entry(2, "StepCompleted", 2, analysis(2, 0.01, &[0.005, 0.004, 0.003]));
        Ledger::local(&path, "prod").unwrap().append(&[first, second]).unwrap();
        path
    }

    fn arguments(repository: &Path) -> Arguments {
        Arguments { repository: repository.to_owned(), rollout: None, cluster: None, output: Output::Text }
    }

    fn text(reports: &[Report]) -> Vec<String> {
        reports.iter().flat_map(lines).map(|line| line.text()).collect()
    }

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let identity = ["-c", "user.name=Mallory", "-c", "user.email=mallory@example.com"];
        let output = Command::new("git").args(identity).arg("-C").arg(folder).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    const EVIDENCE: &str = "shop/web/facts.json";

    /// A clone that ends with this commit, in which somebody changed evidence by hand.
    fn tampered(folder: &Path, path: &Path, commit: &str, from: &str, to: &str) -> PathBuf {
        let clone = tempfile::tempdir_in(folder).unwrap().keep();
        git(folder, &["clone", "-q", path.to_str().unwrap(), clone.to_str().unwrap()]);
        git(&clone, &["reset", "-q", "--hard", commit]);
        git(&clone, &["remote", "remove", "origin"]);
        let file = clone.join(EVIDENCE);
        let before = std::fs::read_to_string(&file).unwrap();
        let after = before.replace(from, to);
        assert_ne!(before, after);
        std::fs::write(file, after).unwrap();
        git(&clone, &["commit", "-qa", "--amend", "--no-edit"]);
        clone
    }

    #[test]
    fn each_attempt_agrees_with_the_bounds_of_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = two_attempts(folder.path());
        let found = reports(&arguments(&path)).unwrap();
        assert_eq!(text(&found), ["prod: 2 commits, 2 analyses judged again, 4 of 4 samples kept. All as recorded."]);
        assert_eq!(run(&arguments(&path)).unwrap(), Exit::Reached);
        let stored = |commit: &str| git(&path, &["show", &format!("{commit}:{EVIDENCE}")]);
        assert!(stored("HEAD~1").contains("\"max\": 0.001") && stored("HEAD").contains("\"max\": 0.01\n"));
    }

    #[test]
    fn each_disagreement_is_one_line_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = two_attempts(folder.path());
        let (first, second) = ("HEAD~1", "HEAD");
        for (attempt, from, to, expected) in [
            (
                first,
                "0.005",
                "0.0005",
                "abc.1 step-1 error-rate: sample 1 at 2027-01-15T08:00:00+00:00 is recorded as \
                                        Fail and comes out as Pass",
            ),
            (
                first,
                "\"max\": 0.001",
                "\"max\": 0.1",
                "abc.1 step-1: the run's phase is recorded as Failed and comes \
                                                     out as Running",
            ),
            (
                second,
                "\"phase\": \"Passed\"",
                "\"phase\": \"Failed\"",
                "abc.2 step-1 error-rate: the metric's phase is recorded as Failed and comes out as Passed",
            ),
            (
                second,
                "\"attempt\": 2",
                "\"attempt\": 1",
                "abc.2 step-1: the release is recorded as abc.1, and its place \
                                                       says abc.2",
            ),
            (second, "{", "", "abc.2 -: cannot be judged: it is no evidence: "),
        ] {
            let clone = tampered(folder.path(), &path, attempt, from, to);
            let commit = git(&clone, &["rev-parse", "HEAD"]);
            let found = reports(&arguments(&clone)).unwrap();
            let lines = text(&found);
            let start = format!("{} shop/web {expected}", &commit[..10]);
            assert!(lines.iter().any(|line| line.starts_with(&start)), "{start}\n{lines:#?}");
            assert!(lines.last().unwrap().contains("disagreement"), "{lines:#?}");
            assert_eq!(run(&arguments(&clone)).unwrap(), Exit::Failed);
            let elsewhere = Arguments { rollout: Some("shop/api".into()), ..arguments(&clone) };
            assert_eq!(run(&elsewhere).unwrap(), Exit::Reached, "nothing of that Rollout was touched");
        }
    }

    #[test]
    fn what_cannot_be_replayed_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = two_attempts(folder.path());
        let wrong = Arguments { rollout: Some("web".into()), ..arguments(&path) };
        assert_eq!(run(&wrong).unwrap_err().to_string(), "--rollout: \"web\" is no NAMESPACE/NAME");
        let other = Arguments { cluster: Some("staging".into()), ..arguments(&path) };
        assert!(run(&other).unwrap_err().to_string().contains("rollout-log/staging"));
        assert!(run(&arguments(&folder.path().join("nowhere"))).is_err());
    }
}
