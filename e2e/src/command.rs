//! Running programs: one small wrapper, so that every failure names the command and what it said.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::AsyncWriteExt;

/// No command that the harness runs and waits for may take longer than this, unless it says so.
const LONGEST: Duration = Duration::from_secs(120);

/// A program with its arguments, not yet run.
pub struct Command {
    inner: tokio::process::Command,
    shown: String,
    input: Option<Vec<u8>>,
    bound: Duration,
}

/// What a finished program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Command {
    /// A command that runs `program`, found on `PATH` unless it is a path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut inner = tokio::process::Command::new(program);
        inner.kill_on_drop(true);
        let shown = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
        Self { inner, shown, input: None, bound: LONGEST }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&argument.as_ref().to_string_lossy());
        self.inner.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        for argument in arguments {
            self = self.arg(argument);
        }
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(name, value);
        self
    }

    /// The folder it runs in.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.inner.current_dir(dir);
        self
    }

    /// What it reads from its standard input; nothing unless told.
    #[must_use]
    pub fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// How long it may take; two minutes unless told.
    #[must_use]
    pub fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Runs it to its end, whatever the exit code.
    pub async fn output(mut self) -> Result<Output> {
        self.inner
            .stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.inner.spawn().with_context(|| format!("cannot start `{}`", self.shown))?;
        let feed = child.stdin.take().zip(self.input.take());
        let write = async move {
            if let Some((mut pipe, text)) = feed {
                // A program that ends before it has read everything is judged by its exit code.
                let _ = pipe.write_all(&text).await;
            }
        };
        let finished = async { tokio::join!(write, child.wait_with_output()).1 };
        let output = tokio::time::timeout(self.bound, finished)
            .await
            .map_err(|_| anyhow!("`{}` was still running after {:?}", self.shown, self.bound))?
            .with_context(|| format!("`{}`", self.shown))?;
        Ok(Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it, fails unless it exits with 0, and gives what it printed.
    pub async fn ok(self) -> Result<String> {
        let shown = self.shown.clone();
        let output = self.output().await?;
        if output.code != Some(0) {
            bail!("{}", failure(&shown, output.code, &output.stdout, &output.stderr));
        }
        Ok(output.stdout)
    }
}

/// Runs a program to its end on this thread. For the moments without a runtime: building tools, and taking a
/// cluster down from a destructor.
pub fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Result<String> {
    let mut command = std::process::Command::new(program.as_ref());
    command.args(arguments);
    run_prepared(command)
}

/// The same, for a command with an environment or a folder of its own.
pub fn run_prepared(mut command: std::process::Command) -> Result<String> {
    let shown = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{}", failure(&shown, output.status.code(), &stdout, &stderr));
    }
    Ok(stdout.into_owned())
}

fn failure(shown: &str, code: Option<i32>, stdout: &str, stderr: &str) -> String {
    let code = code.map_or_else(|| "was ended by a signal".to_owned(), |code| format!("exited with {code}"));
    let said = if stderr.trim().is_empty() { stdout } else { stderr };
    format!("`{shown}` {code}: {}", tail(said.trim(), 4000))
}

/// The last `limit` bytes of a text, from the beginning of a character on.
fn tail(text: &str, limit: usize) -> &str {
    let mut from = text.len().saturating_sub(limit);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
