//! Runs one git at a time: with an environment of our own, a limit on time, on output and on disk, and an end
//! for all its children.
//!
//! Nothing secret is ever an argument: arguments are public on the machine. Secrets go through the environment
//! of the one process that needs them, bound to scheme, host and port of the address they belong to.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};

use super::error::{GitError, Result, Scrubber, classify};

/// What may come from our own environment: where programs are, and how the network is reached.
const ALLOWED_ENVIRONMENT: [&str; 13] = [
    "PATH",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_EXEC_PATH",
    "LD_LIBRARY_PATH",
];

/// Options of every call. No hook, no helper, no watcher and no protocol that was not asked for; no redirect,
/// for the credentials that were meant for one address would follow it; no background work that outlives us.
const OPTIONS: [&str; 13] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "credential.helper=",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "http.followRedirects=false",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=30",
    "protocol.allow=never",
    "push.recurseSubmodules=no",
    "advice.pushUpdateRejected=true",
];

const LONGEST_STDERR: usize = 64 * 1024;
/// After a polite request to end, how long before the hard one. Git uses it to take its lock files away.
const GRACE: Duration = Duration::from_secs(2);

/// How git is called for one directory, and for one remote if there is one.
#[derive(Clone)]
pub(super) struct Git {
    /// The bare repository; none for questions to a remote alone.
    pub(super) directory: Option<PathBuf>,
    /// An empty directory of our own.
    pub(super) home: PathBuf,
    /// For messages.
    pub(super) remote: String,
    /// More `-c` options.
    pub(super) options: Vec<String>,
    /// More environment, secrets among it.
    pub(super) environment: Vec<(String, OsString)>,
    /// Takes the secrets out of messages.
    pub(super) scrubber: Scrubber,
}

#[cfg(test)]
thread_local! {
    /// Calls of git from this thread, for tests that count them.
    pub(super) static CALLS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    /// The shell script that this thread runs in the place of git, for tests in which git has no room to write.
    pub(super) static PROGRAM: std::cell::RefCell<Option<std::path::PathBuf>> = const { std::cell::RefCell::new(None) };
}

#[cfg(not(test))]
fn program() -> tokio::process::Command {
    tokio::process::Command::new("git")
}

#[cfg(test)]
fn program() -> tokio::process::Command {
    let Some(script) = PROGRAM.with_borrow(Clone::clone) else { return tokio::process::Command::new("git") };
    // By way of the shell: a file that was just written may be open in the child of another thread, and then it
    // cannot be executed itself.
    let mut command = tokio::process::Command::new("sh");
    command.arg(script);
    command
}

impl Git {
    /// One call of git. `doing` is for messages: "reading the branch main".
    pub(super) fn call<I, A>(&self, doing: impl Into<String>, arguments: I) -> Call<'_>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        Call {
            git: self,
            doing: doing.into(),
            arguments: arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect(),
            input: Vec::new(),
            limit: Duration::from_secs(60),
            most_output: 16 * 1024 * 1024,
            most_disk: None,
        }
    }

    fn command(&self, arguments: &[OsString]) -> tokio::process::Command {
        #[cfg(test)]
        CALLS.with(|calls| calls.set(calls.get() + 1));
        let mut command = program();
        command.env_clear();
        for name in ALLOWED_ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", &self.home)
            .env("LC_ALL", "C")
            .env("LANGUAGE", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        match &self.directory {
            Some(directory) => {
                let mut option = OsString::from("--git-dir=");
                option.push(directory);
                command.arg(option);
            }
            // Nothing around us may be taken for our repository.
            None => {
                command.env("GIT_CEILING_DIRECTORIES", "/").current_dir("/");
            }
        }
        for option in OPTIONS.iter().copied().chain(self.options.iter().map(String::as_str)) {
            command.args(["-c", option]);
        }
        command.args(arguments).process_group(0);
        command
    }
}

/// One call of git, ready to run.
pub(super) struct Call<'a> {
    git: &'a Git,
    doing: String,
    arguments: Vec<OsString>,
    input: Vec<u8>,
    limit: Duration,
    most_output: usize,
    most_disk: Option<(PathBuf, u64)>,
}

/// What a call left behind.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) success: bool,
    pub(super) code: Option<i32>,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Call<'_> {
    pub(super) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }
    pub(super) fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
    pub(super) fn most_output(mut self, bytes: usize) -> Self {
        self.most_output = bytes;
        self
    }
    /// Ends the call when the files of this directory are larger than this together.
    pub(super) fn most_disk(mut self, directory: PathBuf, bytes: u64) -> Self {
        self.most_disk = Some((directory, bytes));
        self
    }

    /// Runs it; a failure is an error that says why.
    pub(super) async fn run(self) -> Result<Vec<u8>> {
        let (doing, git) = (self.doing.clone(), self.git);
        let output = self.output().await?;
        if output.success {
            return Ok(output.stdout);
        }
        Err(classify(&doing, &git.remote, &output.stderr, &git.scrubber))
    }

    /// Runs it; the answer is text of one line.
    pub(super) async fn line(self) -> Result<String> {
        let stdout = self.run().await?;
        Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
    }

    /// Runs it; a failure of git is an answer too.
    pub(super) async fn output(self) -> Result<Output> {
        let mut process = self.spawn(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() })?;
        let input = process.stdin.take();
        let work = async {
            let feed = async {
                if let Some(mut stdin) = input {
                    // A git that ends early closes its end; its exit says why.
                    let _ = stdin.write_all(&self.input).await;
                }
            };
            let (_, stdout, stderr) = tokio::join!(
                feed,
                read_bounded(process.stdout.take(), self.most_output, true),
                read_bounded(process.stderr.take(), LONGEST_STDERR, false),
            );
            let Some(stdout) = stdout else {
                return Err(GitError::TooLarge {
                    what: format!("the answer to {}", self.doing),
                    limit: format!("{} bytes", self.most_output),
                });
            };
            let status = process.child.wait().await.map_err(storage)?;
            let stderr = String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned();
            Ok(Output { success: status.success(), code: status.code(), stdout, stderr })
        };
        let guarded = async {
            tokio::select! {
                result = work => result,
                error = self.disk_overflow() => Err(error),
            }
        };
        let result = match tokio::time::timeout(self.limit, guarded).await {
            Ok(result) => result,
            Err(_) => Err(GitError::Timeout { doing: self.doing.clone(), limit: self.limit }),
        };
        match result {
            Ok(output) => {
                process.group.disarm();
                tracing::debug!(doing = %self.doing, success = output.success, code = output.code, "git");
                Ok(output)
            }
            Err(error) => {
                process.end().await;
                Err(error)
            }
        }
    }

    /// Starts it, to be talked to.
    pub(super) fn start(self) -> Result<Process> {
        self.spawn(Stdio::piped())
    }

    fn spawn(&self, stdin: Stdio) -> Result<Process> {
        let mut command = self.git.command(&self.arguments);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => GitError::Executable { detail: "there is none in PATH".to_owned() },
            _ => GitError::Executable { detail: error.to_string() },
        })?;
        Ok(Process {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            group: Group(child.id()),
            child,
        })
    }

    async fn disk_overflow(&self) -> GitError {
        let Some((directory, most)) = &self.most_disk else { return std::future::pending().await };
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if disk_use(directory) > *most {
                return GitError::TooLarge {
                    what: format!("what {} brings", self.doing),
                    limit: format!("{} MiB", most / (1024 * 1024)),
                };
            }
        }
    }
}

/// A running git.
pub(super) struct Process {
    child: Child,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<tokio::process::ChildStderr>,
    group: Group,
}

impl Process {
    /// Waits for its end; what it said on stderr if it failed.
    pub(super) async fn finish(mut self) -> Result<std::result::Result<(), String>> {
        drop(self.stdin.take());
        let stderr = read_bounded(self.stderr.take(), LONGEST_STDERR, false).await.unwrap_or_default();
        let status = self.child.wait().await.map_err(storage)?;
        self.group.disarm();
        Ok(if status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&stderr).into_owned()) })
    }

    /// Ends it and all its children.
    pub(super) async fn end(&mut self) {
        self.group.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.group.signal(Signal::KILL);
            let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        }
        // A child that ignored the polite request may still be there when git itself has gone.
        self.group.signal(Signal::KILL);
        self.group.disarm();
    }
}

/// The process group of a running git. Whoever stops waiting for it ends it.
struct Group(Option<u32>);

impl Group {
    fn signal(&self, signal: Signal) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, signal);
        }
    }
    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
    }
}

/// Reads to the end. Beyond `most` bytes: `None` when `strict`, else the rest is read and forgotten.
async fn read_bounded(from: Option<impl AsyncRead + Unpin>, most: usize, strict: bool) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let Some(mut from) = from else { return Some(all) };
    let mut piece = vec![0; 64 * 1024];
    loop {
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => return Some(all),
            Ok(read) => {
                let room = most.saturating_sub(all.len());
                if read > room && strict {
                    return None;
                }
                all.extend_from_slice(&piece[..read.min(room)]);
            }
        }
    }
}

/// Bytes in the files of a directory, not deeper.
pub(super) fn disk_use(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

pub(super) fn storage(error: std::io::Error) -> GitError {
    GitError::Storage { detail: error.to_string() }
}
