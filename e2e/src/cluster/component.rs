//! One long-lived process of a cluster, which a test may kill, pause, resume and restart.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How a component shows that it serves.
#[derive(Debug, Clone)]
pub enum Ready {
    /// It answers with a success at this address. Certificates are not looked at.
    Answers(String),
    /// It accepts connections on this socket.
    Socket(PathBuf),
    /// It accepts connections at this address.
    Listens(SocketAddr),
    /// It is running.
    Running,
}

/// A process by name, with all that is needed to start it again.
#[derive(Debug, Clone)]
pub struct Component {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    network: Option<PathBuf>,
    dir: PathBuf,
    ready: Ready,
}

/// A component starts in seconds; on a machine that builds something at the same time in tens of seconds.
const START: Duration = Duration::from_secs(90);
const END: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

impl Component {
    /// A component whose pid file and log are below `dir`.
    pub fn new(dir: &Path, name: &str, program: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            network: None,
            dir: dir.to_owned(),
            ready: Ready::Running,
        }
    }

    /// Its arguments.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The network namespace it runs in; the machine's own unless told.
    #[must_use]
    pub fn inside(mut self, network: PathBuf) -> Self {
        self.network = Some(network);
        self
    }

    /// How it shows that it serves.
    #[must_use]
    pub fn ready_when(mut self, ready: Ready) -> Self {
        self.ready = ready;
        self
    }

    /// The name that tests use.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes, all runs in one file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("logs").join(format!("{}.log", self.name))
    }

    /// Starts the process and does not wait until it serves.
    pub fn launch(&self) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("{} is running already, as process {}", self.name, pid.as_raw_nonzero());
        }
        fs::create_dir_all(self.dir.join("logs"))?;
        fs::create_dir_all(self.dir.join("pids"))?;
        let pid_file = self.pid_file();
        // setsid -f makes it init's child and the leader of its own group. Envoy asks the kernel for SIGTERM when
        // its parent ends, and the parent of a plain child is whichever thread happened to start it.
        let mut command = match &self.network {
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network.display())).arg("setsid");
                command
            }
            None => Command::new("setsid"),
        };
        let log = File::options().create(true).append(true).open(self.log())?;
        command
            .args([
                "-f",
                "sh",
                "-c",
                "read -r stat < /proc/$$/stat; echo \"$stat\" > \"$0.new\" && mv \"$0.new\" \"$0\" && exec \"$@\"",
            ])
            .arg(&pid_file)
            .arg(&self.program)
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let status = command.status().with_context(|| format!("cannot start {}", self.name))?;
        if !status.success() {
            bail!("cannot start {}: {status}{}", self.name, self.last_words());
        }
        let begun = Instant::now();
        while !pid_file.exists() {
            if begun.elapsed() > END {
                bail!("{} did not start within {END:?}{}", self.name, self.last_words());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until it serves; fails at once when the process ends.
    pub async fn serving(&self) -> Result<()> {
        crate::crypto();
        let client = reqwest::Client::builder()
            .danger_accept_invalid_certs(true)
            .timeout(Duration::from_secs(5))
            .build()
            .context("HTTP client")?;
        let begun = Instant::now();
        loop {
            if self.pid().is_none() {
                bail!("{} ended while it was starting{}", self.name, self.last_words());
            }
            let serves = match &self.ready {
                Ready::Running => true,
                Ready::Socket(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
                Ready::Listens(address) => tokio::net::TcpStream::connect(address).await.is_ok(),
                Ready::Answers(address) => {
                    client.get(address).send().await.is_ok_and(|answer| answer.status().is_success())
                }
            };
            if serves {
                return Ok(());
            }
            if begun.elapsed() > START {
                bail!("{} does not serve after {START:?} ({:?}){}", self.name, self.ready, self.last_words());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts it and waits until it serves.
    pub async fn start(&self) -> Result<()> {
        self.launch()?;
        self.serving().await
    }

    /// Ends it as a crash would: at once, without a word.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.gone(END)
    }

    /// Ends it politely, and by force when that takes too long.
    pub fn stop(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        // A stopped process sees no signal but these two.
        let _ = kill_process_group(pid, Signal::CONT);
        let _ = kill_process_group(pid, Signal::TERM);
        self.gone(END).or_else(|_| self.kill())
    }

    /// Freezes it: it keeps its connections and answers nothing.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen one go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it politely, starts it and waits until it serves.
    pub async fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start().await
    }

    /// Its process, while it lives.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        recorded(&self.pid_file())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().ok_or_else(|| anyhow!("{} is not running", self.name))?;
        kill_process_group(pid, signal)
            .or_else(|_| kill_process(pid, signal))
            .with_context(|| format!("cannot send a signal to {}", self.name))
    }

    fn gone(&self, bound: Duration) -> Result<()> {
        let begun = Instant::now();
        while self.pid().is_some() {
            if begun.elapsed() > bound {
                bail!("{} is still there after {bound:?}", self.name);
            }
            std::thread::sleep(LOOK);
        }
        let _ = fs::remove_file(self.pid_file());
        Ok(())
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pids").join(&self.name)
    }

    /// The end of its log, for an error message.
    fn last_words(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("; the end of {}:\n{}", self.log().display(), lines.join("\n"))
    }
}

/// The process that a pid file names, while it lives. The file holds the line that the kernel had for the process
/// when it began: the number may belong to somebody else by now, the moment it began cannot. What the process is
/// called says nothing, because for a moment of its exec it has no name at all.
pub(crate) fn recorded(pid_file: &Path) -> Option<Pid> {
    let begun = fs::read_to_string(pid_file).ok()?;
    let pid = begun.split(' ').next()?.parse().ok().and_then(Pid::from_raw)?;
    let now = living(pid)?;
    (started(&now).is_some() && started(&now) == started(&begun)).then_some(pid)
}

/// Whether a process exists and has not ended; one that nobody has waited for yet has ended.
pub(crate) fn alive(pid: Pid) -> bool {
    living(pid).is_some()
}

/// The kernel's line for a process that has not ended.
fn living(pid: Pid) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let ended = matches!(after_name(&stat).next(), None | Some("Z" | "X"));
    (!ended).then_some(stat)
}

/// When the process began, in ticks since the machine started (field 22 of proc(5)).
fn started(stat: &str) -> Option<&str> {
    after_name(stat).nth(19)
}

/// The fields from the third on; the second, the name, is in brackets and may hold anything.
fn after_name(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit(')').next().unwrap_or_default().split_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_component_is_killed_paused_resumed_and_restarted() {
        let dir = tempfile::tempdir().unwrap();
        let component = Component::new(dir.path(), "sleeper", crate::tools::find("sleep").unwrap()).args(["60"]);
        component.start().await.unwrap();
        let first = component.pid().unwrap();
        assert!(component.start().await.unwrap_err().to_string().contains("running already"));
        component.pause().unwrap();
        let state = |pid: Pid| fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
        let begun = Instant::now();
        while !state(first).contains(") T ") {
            assert!(begun.elapsed() < END, "it was not paused");
        }
        component.resume().unwrap();
        component.restart().await.unwrap();
        assert_ne!(component.pid().unwrap(), first);
        component.kill().unwrap();
        assert!(component.pid().is_none());
        assert!(component.kill().unwrap_err().to_string().contains("not running"));
    }

    #[tokio::test]
    async fn one_that_ends_at_once_says_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let component = Component::new(dir.path(), "broken", crate::tools::find("ls").unwrap())
            .args(["/no/such/file"])
            .ready_when(Ready::Socket(dir.path().join("never")));
        let error = component.start().await.unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
    }

    #[tokio::test]
    async fn a_component_is_itself_whatever_its_process_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let component = Component::new(dir.path(), "renamed", crate::tools::find("bash").unwrap())
            .args(["-c", "exec -a '' sleep 60"])
            .ready_when(Ready::Running);
        component.start().await.unwrap();
        let pid = component.pid().unwrap();
        let begun = Instant::now();
        while !fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap().starts_with(b"\0") {
            assert!(begun.elapsed() < END, "it was not renamed");
        }
        assert_eq!(component.pid(), Some(pid));
        component.kill().unwrap();
    }

    #[test]
    fn a_number_that_was_given_to_somebody_else_is_not_the_component() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        fs::write(&file, &own).unwrap();
        assert_eq!(recorded(&file), Some(rustix::process::getpid()));
        let moment = started(&own).unwrap().to_owned();
        fs::write(&file, own.replace(&moment, "1")).unwrap();
        assert_eq!(recorded(&file), None);
    }
}
