//! Every way in which a git server fails, at every transition of a release: each transition has one commit, in order,
//! none is lost, none is doubled, nothing is forced, and the Rollout never waits for it.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use super::*;

/// One release: begun, held, gone on, promoted; the next one aborted.
const RELEASE: [&str; 6] = ["Started", "StepCompleted", "Paused", "Promoted", "Started", "Aborted"];
/// In the credentials; nothing that is said may hold it.
const CANARY: &str = "canary-5d1e07";

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Answers everything with this.
    Status(u16),
    /// Answers with this what would write, and lets read.
    ReadOnly(u16),
    /// Says that the repository is on another host.
    Elsewhere,
    /// Takes the first request and says nothing.
    SilentWhenAsked,
    /// Takes the push and says nothing, and does nothing.
    SilentWhenPushed,
    /// Does what the push asks, and says nothing.
    LostAnswer,
    /// Does what the push asks, and cuts the connection in the middle of its answer.
    CutAnswer,
    /// A page for people instead of git.
    Nonsense,
    /// Cannot write a file any more.
    FullDisk,
}

struct Server {
    address: SocketAddr,
    root: PathBuf,
    fault: Arc<Mutex<Fault>>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Serves the repositories below `root`.
    fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self {
            address,
            root: root.to_owned(),
            fault: Arc::new(Mutex::new(Fault::None)),
            serving: Mutex::default(),
        };
        server.listen(listener);
        server
    }

    fn listen(&self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (root, fault) = (self.root.clone(), Arc::clone(&self.fault));
        let handler = move |request: Request| {
            let (root, fault) = (root.clone(), *fault.lock().unwrap());
            async move { answer(&root, fault, request).await }
        };
        let serving =
            tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await.unwrap() });
        *self.serving.lock().unwrap() = Some(serving);
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    async fn down(&self) {
        let serving = self.serving.lock().unwrap().take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    fn up(&self) {
        self.listen(TcpListener::bind(self.address).unwrap());
    }

    fn url(&self) -> String {
        format!("http://{}/remote.git", self.address)
    }
}

async fn answer(root: &Path, fault: Fault, request: Request) -> Response {
    let writes = request.uri().path().ends_with("git-receive-pack")
        || request.uri().query().is_some_and(|query| query.contains("git-receive-pack"));
    let pushes = writes && request.method() == Method::POST;
    let status = |code: u16| (StatusCode::from_u16(code).unwrap(), "no\n").into_response();
    match fault {
        Fault::Status(code) => return status(code),
        Fault::ReadOnly(code) if writes => return status(code),
        Fault::Elsewhere => {
            let elsewhere = format!("http://elsewhere.example{}", request.uri());
            return (StatusCode::MOVED_PERMANENTLY, [("location", elsewhere)]).into_response();
        }
        Fault::SilentWhenAsked => return std::future::pending().await,
        Fault::SilentWhenPushed if pushes => return std::future::pending().await,
        Fault::Nonsense => return ([("content-type", "text/html")], "<h1>Please sign in</h1>").into_response(),
        _ => {}
    }
    if fault == Fault::SilentWhenPushed || fault == Fault::LostAnswer && !pushes {
        return backend(root, false, request).await;
    }
    let answered = backend(root, fault == Fault::FullDisk && writes, request).await;
    match fault {
        Fault::LostAnswer if pushes => std::future::pending().await,
        Fault::CutAnswer if pushes => {
            let cut = futures::stream::iter([Ok("00"), Err(std::io::Error::other("cut"))]);
            (answered.headers().clone(), Body::from_stream(cut)).into_response()
        }
        _ => answered,
    }
}

/// `git http-backend` as a CGI program; perhaps one that cannot write files.
async fn backend(root: &Path, full: bool, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let limit = if full { "ulimit -f 0; " } else { "" };
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", &format!("{limit}exec git http-backend")])
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "sluice")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let feed = async move {
        // A backend that ends before it has read everything has said why.
        let _ = pipe.write_all(&body).await;
    };
    let output = tokio::join!(feed, child.wait_with_output()).1.unwrap();
    let end = output.stdout.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let Some(end) = end else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output.stdout[..end]).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap().parse::<u16>().unwrap()),
            name => response.header(name, value),
        };
    }
    response.body(Body::from(output.stdout[end + 4..].to_vec())).unwrap()
}

/// A log on a server that can fail.
struct Case {
    world: World,
    server: Server,
}

impl Case {
    async fn new() -> Self {
        let world = World::new().await;
        git(&world.remote(), &["config", "http.receivepack", "true"]);
        git(&world.remote(), &["config", "core.logAllRefUpdates", "always"]);
        let server = Server::start(world.directory.path());
        *world.address.lock().unwrap() =
            Some((server.url(), Credentials::Basic { username: "sluice".to_owned(), password: CANARY.to_owned() }));
        // Each turn pushes, also what could wait.
        world.controller.flushing.store(true, Ordering::SeqCst);
        Self { world, server }
    }

    fn hook(&self, name: &str, script: Option<&str>) {
        use std::os::unix::fs::PermissionsExt;
        let hook = self.world.remote().join("hooks").join(name);
        let Some(script) = script else { return std::fs::remove_file(hook).unwrap() };
        std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
        // In its place at once: one that is being written cannot be run.
        let next = hook.with_extension("next");
        std::fs::write(&next, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&next, &hook).unwrap();
    }

    fn commits(&self) -> Vec<String> {
        let branch = git(&self.world.remote(), &["for-each-ref", "--format=%(refname)", "refs/heads/rollout-log"]);
        if branch.is_empty() {
            return Vec::new();
        }
        let format = "--format=%(trailers:key=Rollout-Seq,valueonly,separator=)";
        let numbers = git(&self.world.remote(), &["log", "--reverse", format, "rollout-log/prod"]);
        numbers.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    async fn turn(&self) -> Outcome {
        // How often may be pushed has tests of its own.
        let sessions: Vec<_> = self.world.controller.sessions.lock().unwrap().values().cloned().collect();
        for session in sessions {
            session.lock().await.policy = Default::default();
        }
        self.world.turn().await
    }

    /// One release, each of whose transitions meets the fault.
    async fn each_transition_meets(
        &self,
        reason: Option<&str>,
        taken: bool,
        begin: impl AsyncFn(&Self),
        end: impl AsyncFn(&Self),
    ) {
        for (number, event) in (1..).zip(RELEASE) {
            self.world.rollout("web", &[(number, event)], 0);
            begin(self).await;
            let outcome = self.turn().await;
            match (reason, outcome) {
                (None, Outcome::After(_)) => {}
                (Some(reason), Outcome::Failed(failure)) => {
                    assert_eq!(failure.reason, reason, "{event}: {}", failure.message);
                    let status = self.world.status("web");
                    assert_eq!(status.pending_log.len(), 1, "{event}: it stays in the outbox");
                    assert_eq!(
                        status.stable_revision.as_deref(),
                        Some("goodgoodgo"),
                        "{event}: nothing else is touched"
                    );
                    let there = if taken { number } else { number - 1 };
                    assert_eq!(self.commits().len(), usize::try_from(there).unwrap(), "{event}: what the server has");
                    let said =
                        format!("{failure:?} {} {}", self.world.repo_status(), serde_json::to_string(&status).unwrap());
                    assert!(!said.contains(CANARY), "{said}");
                }
                (expected, outcome) => panic!("{event}: expected {expected:?}, got {outcome:?}"),
            }
            end(self).await;
            let begun = Instant::now();
            while !self.world.status("web").pending_log.is_empty() {
                assert!(begun.elapsed() < Duration::from_secs(30), "{event}: it is not recorded");
                self.world.watch();
                self.turn().await;
            }
        }
        let expected: Vec<String> = (1..=RELEASE.len()).map(|number| number.to_string()).collect();
        assert_eq!(self.commits(), expected, "one commit for each transition, in order");
        if reason.is_none() {
            // There it was the test that went back.
            return;
        }
        let updates = git(&self.world.remote(), &["reflog", "show", "--format=%H", "refs/heads/rollout-log/prod"]);
        let updates: Vec<&str> = updates.lines().collect();
        for pair in updates.windows(2) {
            let new_from_old = format!("{}..{}", pair[0], pair[1]);
            assert_eq!(git(&self.world.remote(), &["rev-list", "--count", &new_from_old]), "0", "nothing is forced");
        }
        assert_eq!(self.world.repo_condition("LogForked"), None);
        let log = git(&self.world.remote(), &["log", "-p", "rollout-log/prod"]);
        assert!(!log.contains(CANARY), "no credential is in the log");
    }

    async fn server_does(fault: Fault, reason: &str) {
        let taken = matches!(fault, Fault::LostAnswer | Fault::CutAnswer);
        let case = Self::new().await;
        let begin = async |case: &Self| case.server.set(fault);
        let end = async |case: &Self| case.server.set(Fault::None);
        case.each_transition_meets(Some(reason), taken, begin, end).await;
    }

    async fn hook_says(name: &'static str, script: &'static str, reason: &str) {
        let case = Self::new().await;
        let begin = async |case: &Self| case.hook(name, Some(script));
        let end = async |case: &Self| case.hook(name, None);
        case.each_transition_meets(Some(reason), false, begin, end).await;
    }
}

#[tokio::test]
async fn the_remote_is_down() {
    let case = Case::new().await;
    let begin = async |case: &Case| case.server.down().await;
    let end = async |case: &Case| case.server.up();
    case.each_transition_meets(Some("RepositoryUnreachable"), false, begin, end).await;
}

#[tokio::test]
async fn credentials_are_revoked() {
    Case::server_does(Fault::Status(401), "AccessDenied").await;
    Case::server_does(Fault::Status(403), "AccessDenied").await;
}

#[tokio::test]
async fn the_repository_is_archived() {
    Case::server_does(Fault::ReadOnly(403), "AccessDenied").await;
}

#[tokio::test]
async fn the_repository_is_gone_or_renamed() {
    Case::server_does(Fault::Status(404), "RepositoryNotFound").await;
    Case::server_does(Fault::Elsewhere, "RepositoryMoved").await;
}

#[tokio::test]
async fn the_server_has_too_much_to_do() {
    for code in [429, 500, 503] {
        Case::server_does(Fault::Status(code), "RepositoryUnreachable").await;
    }
}

#[tokio::test]
async fn the_server_says_nothing_when_asked() {
    Case::server_does(Fault::SilentWhenAsked, "Timeout").await;
}

#[tokio::test]
async fn the_server_says_nothing_when_pushed_to() {
    Case::server_does(Fault::SilentWhenPushed, "Timeout").await;
}

#[tokio::test]
async fn the_answer_of_an_accepted_push_is_lost() {
    Case::server_does(Fault::LostAnswer, "Timeout").await;
}

#[tokio::test]
async fn the_answer_of_an_accepted_push_is_cut() {
    Case::server_does(Fault::CutAnswer, "RepositoryUnreachable").await;
}

#[tokio::test]
async fn something_else_answers_in_the_servers_place() {
    Case::server_does(Fault::Nonsense, "RepositoryUnreachable").await;
}

#[tokio::test]
async fn the_servers_disk_is_full() {
    Case::server_does(Fault::FullDisk, "RepositoryUnreachable").await;
}

#[tokio::test]
async fn a_hook_or_a_protection_refuses() {
    Case::hook_says("pre-receive", "echo 'every commit needs a ticket' >&2; exit 1", "PushRejected").await;
    let protected = "echo 'GH006: Protected branch update failed for refs/heads/rollout-log/prod.' >&2; exit 1";
    Case::hook_says("update", protected, "PushRejected").await;
}

#[tokio::test]
async fn the_branch_is_deleted_or_set_back() {
    let nothing = async |_: &Case| ();
    let branch = "refs/heads/rollout-log/prod";
    let case = Case::new().await;
    let delete = async |case: &Case| {
        git(&case.world.remote(), &["update-ref", "-d", branch]);
    };
    case.each_transition_meets(None, false, delete, nothing).await;
    let case = Case::new().await;
    let set_back = async |case: &Case| {
        if case.commits().len() > 1 {
            git(&case.world.remote(), &["update-ref", branch, &format!("{branch}~1")]);
        }
    };
    case.each_transition_meets(None, false, set_back, nothing).await;
}
