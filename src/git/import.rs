//! A conversation with `git fast-import`: one process for all commits of a push, and a cost for each commit that
//! does not grow with the tree.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};

use super::command::{Git, Process};
use super::error::{GitError, Result, Scrubber, classify};

/// One import, from its start to [`Import::finish`]. Nothing points to its commits.
pub(super) struct Import {
    process: Process,
    stdin: ChildStdin,
    answers: BufReader<ChildStdout>,
    begun: bool,
}

/// One commit to be made.
pub(super) struct NewCommit<'a> {
    /// `Name <mail>`, for both roles.
    pub(super) author: &'a str,
    /// For both dates.
    pub(super) at: DateTime<Utc>,
    /// Ends with a line end.
    pub(super) message: &'a str,
    /// Of the first commit of an import; the others follow the one before them.
    pub(super) parent: Option<&'a str>,
    /// A whole tree to begin with; the parent's when absent.
    pub(super) tree: Option<&'a str>,
    /// Path and content; `None` removes the file. Paths hold nothing that would have to be quoted.
    pub(super) files: &'a BTreeMap<String, Option<String>>,
    /// A file as it is in the parent, and where it stands too.
    pub(super) copy: Option<&'a (String, String)>,
}

/// A time as git counts it. It knows none before 1970.
pub(super) fn seconds(at: DateTime<Utc>) -> i64 {
    at.timestamp().max(0)
}

/// Where the import keeps its commits while it runs; it is gone when the import ends.
const SCRATCH: &str = "refs/sluice/next";

impl Import {
    pub(super) fn start(git: &Git, limit: std::time::Duration) -> Result<Self> {
        let call = git.call("writing the log branch", ["fast-import", "--quiet", "--done", "--date-format=raw"]);
        let mut process = call.limit(limit).start()?;
        let broken = || GitError::Executable { detail: "git fast-import has no input or output".to_owned() };
        let stdin = process.stdin.take().ok_or_else(broken)?;
        let answers = BufReader::new(process.stdout.take().ok_or_else(broken)?);
        Ok(Self { process, stdin, answers, begun: false })
    }

    pub(super) async fn commit(&mut self, commit: &NewCommit<'_>) -> Result<String> {
        let NewCommit { author, message, .. } = commit;
        let mut text = String::new();
        if !self.begun {
            // Later commits follow the one before them by themselves.
            self.begun = true;
            text += &format!("reset {SCRATCH}\n");
            text += &commit.parent.map(|parent| format!("from {parent}\n")).unwrap_or_default();
            text.push('\n');
        }
        let date = seconds(commit.at);
        text += &format!(
            "commit {SCRATCH}\nmark :1\nauthor {author} {date} +0000\ncommitter {author} {date} +0000\n\
             data {}\n{message}",
            message.len(),
        );
        text += &commit.tree.map(|tree| format!("M 040000 {tree} \"\"\n")).unwrap_or_default();
        text += &commit.copy.map(|(from, to)| format!("C {from} {to}\n")).unwrap_or_default();
        for (path, content) in commit.files {
            match content {
                Some(content) => text += &format!("M 100644 inline {path}\ndata {}\n{content}\n", content.len()),
                None => text += &format!("D {path}\n"),
            }
        }
        text += "\nget-mark :1\n";
        let lost = |_| GitError::Failed {
            doing: "writing the log branch".to_owned(),
            detail: "git fast-import ended early".to_owned(),
        };
        self.stdin.write_all(text.as_bytes()).await.map_err(lost)?;
        self.stdin.flush().await.map_err(lost)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).await.map_err(lost)?;
        let commit = answer.trim();
        if commit.len() < 40 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(lost(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(commit.to_owned())
    }

    pub(super) async fn finish(mut self) -> Result<()> {
        let end = format!("reset {SCRATCH}\nfrom {}\n\ndone\n", "0".repeat(40));
        let written = self.stdin.write_all(end.as_bytes()).await;
        drop(self.stdin);
        let failed =
            |detail: String| classify("writing the log branch", "the log branch", &detail, &Scrubber::default());
        self.process.finish().await?.map_err(failed)?;
        written.map_err(super::command::storage)
    }

    /// Ends it; what it said.
    pub(super) async fn fail(self) -> String {
        drop(self.stdin);
        match tokio::time::timeout(std::time::Duration::from_secs(2), self.process.finish()).await {
            Ok(Ok(Err(said))) => said,
            _ => String::new(),
        }
    }
}
