//! A whole rollout of six transitions while its remote fails at each of them, in every way that remotes do: each
//! transition is one commit, in order, whatever happened, and no reference was ever forced.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::*;

const EVENTS: [TransitionEvent; 6] = [
    TransitionEvent::Started,
    TransitionEvent::Paused,
    TransitionEvent::StepCompleted,
    TransitionEvent::Aborted,
    TransitionEvent::Started,
    TransitionEvent::Promoted,
];

/// What a remote does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It closes each connection.
    Down,
    /// It accepts connections and never answers.
    Hangs,
    /// It answers everything with this status.
    Answers(u16),
    /// It lets read, and answers each push with this status.
    RefusesPushes(u16),
    /// It takes the push, and the answer is lost.
    LosesAnswer,
    /// Its hook says this and refuses.
    Hook(&'static str),
    /// The branch is deleted by somebody.
    Deleted,
    /// The branch is set back by one commit.
    SetBack,
    /// The repository is somewhere else.
    Renamed,
    /// `ssh` says this and ends.
    Ssh(&'static str),
    /// `ssh` waits for its server.
    SshHangs,
}

const HOST_KEY: &str =
    "@@@@@@@@@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.";
const NO_NAME: &str = "ssh: Could not resolve hostname git.example: Name or service not known";
const NO_KEY: &str = "git@git.example: Permission denied (publickey).";
const NO_ROOM: &str = "fatal: write error: No space left on device";
const PROTECTED: &str = "GitLab: You are not allowed to push code to protected branches on this project.";

/// The transport, the fault, and the reason that people are told; none when the record is simply written.
const CASES: [(&str, Fault, Option<&str>); 24] = [
    ("http", Fault::Down, Some("RepositoryUnreachable")),
    ("http", Fault::Hangs, Some("Timeout")),
    ("http", Fault::Answers(301), Some("RepositoryMoved")),
    ("http", Fault::Answers(401), Some("AccessDenied")),
    ("http", Fault::Answers(403), Some("AccessDenied")),
    ("http", Fault::Answers(404), Some("RepositoryNotFound")),
    ("http", Fault::Answers(429), Some("RepositoryUnreachable")),
    ("http", Fault::Answers(503), Some("RepositoryUnreachable")),
    ("http", Fault::RefusesPushes(401), Some("AccessDenied")),
    // As an archived repository does.
    ("http", Fault::RefusesPushes(403), Some("AccessDenied")),
    ("http", Fault::RefusesPushes(429), Some("RepositoryUnreachable")),
    ("http", Fault::LosesAnswer, Some("RepositoryUnreachable")),
    ("http", Fault::Hook("only on Tuesdays"), Some("PushRejected")),
    ("http", Fault::Hook(PROTECTED), Some("PushRejected")),
    ("http", Fault::Hook(NO_ROOM), Some("PushRejected")),
    ("http", Fault::Deleted, None),
    ("http", Fault::SetBack, None),
    ("http", Fault::Renamed, Some("RepositoryNotFound")),
    ("ssh", Fault::Ssh(HOST_KEY), Some("HostKeyChanged")),
    ("ssh", Fault::Ssh(NO_NAME), Some("RepositoryUnreachable")),
    ("ssh", Fault::Ssh(NO_KEY), Some("AccessDenied")),
    ("ssh", Fault::SshHangs, Some("Timeout")),
    ("ssh", Fault::Hook("only on Tuesdays"), Some("PushRejected")),
    ("ssh", Fault::Renamed, Some("RepositoryNotFound")),
];

/// A remote that fails on request.
struct Faulty {
    place: Place,
    fault: Arc<Mutex<Option<Fault>>>,
    seen: Arc<Mutex<Seen>>,
    url: String,
    credentials: Credentials,
    cache: GitCache,
}

type Front = (Server, Arc<Mutex<Option<Fault>>>);

async fn answer(
    State((server, fault)): State<Front>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let pushes = uri.to_string().contains("git-receive-pack");
    let fault = *fault.lock().unwrap();
    let status = match fault {
        Some(Fault::Answers(status)) => status,
        Some(Fault::RefusesPushes(status)) if pushes => status,
        Some(Fault::LosesAnswer) if pushes && method == Method::POST => {
            serve(State(server), method, uri.clone(), headers, body).await;
            502
        }
        _ => return serve(State(server), method, uri, headers, body).await,
    };
    // The server repeats what it was given, as careless ones do.
    let headers = [
        ("location", format!("http://127.0.0.1:1{uri}")),
        ("retry-after", "60".to_owned()),
        ("www-authenticate", "Basic realm=\"x\"".to_owned()),
    ];
    (StatusCode::from_u16(status).unwrap(), headers, format!("you gave {CANARY}\n")).into_response()
}

impl Faulty {
    async fn new(transport: &str, limit: Duration) -> Self {
        let place = Place::new();
        place.git(&["config", "http.receivepack", "true"]);
        let updates = place.directory.path().join("updates");
        place.hook("update", &format!("echo \"$@\" >> '{}'", updates.display()));
        let fault = Arc::new(Mutex::new(None));
        let server = Server { root: place.directory.path().to_owned(), ..Server::default() };
        let seen = server.seen.clone();
        let timeouts = Timeouts { ask: limit, fetch: limit, push: limit, ..Timeouts::default() };
        let cache = place.cache().with_timeouts(timeouts).with_ssh(&place.directory.path().join("ssh"));
        let (url, credentials) = match transport {
            "ssh" => {
                let says = place.directory.path().join("ssh-says");
                let says = says.display();
                let script = format!(
                    "#!/bin/sh\nif [ -e '{says}' ]; then cat '{says}' >&2; exit 255; fi\n\
                     if [ -e '{says}.hangs' ]; then exec sleep 60; fi\n\
                     for command; do :; done\neval \"exec git ${{command#git-}}\"\n"
                );
                let program = place.directory.path().join("ssh");
                fs::write(&program, script).unwrap();
                fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
                let identity = format!("-----BEGIN KEY-----\n{CANARY}\n-----END KEY-----");
                let known_hosts = "git.example ssh-ed25519 AAAA".to_owned();
                let url = format!("ssh://git@git.example{}", place.remote().display());
                (url, Credentials::Ssh { identity, known_hosts })
            }
            _ => (format!("{}/remote.git", Self::front(server, fault.clone()).await), basic()),
        };
        Self { place, fault, seen, url, credentials, cache }
    }

    /// Connections reach the server through this door.
    async fn front(server: Server, fault: Arc<Mutex<Option<Fault>>>) -> String {
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = inner.local_addr().unwrap();
        let app = axum::Router::new().fallback(answer).with_state((server, fault.clone()));
        tokio::spawn(async move { axum::serve(inner, app).await });
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", door.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = door.accept().await {
                let fault = *fault.lock().unwrap();
                tokio::spawn(async move {
                    match fault {
                        Some(Fault::Down) => {}
                        Some(Fault::Hangs) => std::future::pending().await,
                        _ => {
                            let mut server = TcpStream::connect(target).await.unwrap();
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                        }
                    }
                });
            }
        });
        url
    }

    fn ledger(&self) -> Ledger {
        self.cache.repository(&self.url, self.credentials.clone()).unwrap().ledger("prod").unwrap()
    }

    fn begin(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
        let file = |name: &str, text: &str| fs::write(self.place.directory.path().join(name), text).unwrap();
        let tip = format!("refs/heads/{BRANCH}");
        let length = self.place.git(&["rev-list", "--count", "--all"]).parse::<usize>().unwrap();
        match fault {
            Fault::Hook(says) => self.place.hook("pre-receive", &format!("echo '{says} {CANARY}' >&2; exit 1")),
            Fault::Deleted if length > 0 => drop(self.place.git(&["update-ref", "-d", &tip])),
            Fault::SetBack if length > 1 => drop(self.place.git(&["update-ref", &tip, &format!("{tip}~1")])),
            Fault::Renamed => fs::rename(self.place.remote(), self.place.directory.path().join("away")).unwrap(),
            Fault::Ssh(says) => file("ssh-says", &format!("{says}\n{CANARY}\n")),
            Fault::SshHangs => file("ssh-says.hangs", ""),
            _ => {}
        }
    }

    fn end(&self, fault: Fault) {
        *self.fault.lock().unwrap() = None;
        let remove = |name: &str| fs::remove_file(self.place.directory.path().join(name)).unwrap();
        match fault {
            Fault::Hook(_) => self.place.remove_hook("pre-receive"),
            Fault::Renamed => fs::rename(self.place.directory.path().join("away"), self.place.remote()).unwrap(),
            Fault::Ssh(_) => remove("ssh-says"),
            Fault::SshHangs => remove("ssh-says.hangs"),
            _ => {}
        }
    }

    /// No update of the log branch left anything behind.
    fn nothing_was_forced(&self, case: &str) {
        let updates = fs::read_to_string(self.place.directory.path().join("updates")).unwrap();
        for update in updates.lines() {
            let words: Vec<&str> = update.split(' ').collect();
            let [name, old, new] = words.as_slice() else { panic!("{case}: {update}") };
            assert_eq!(*name, format!("refs/heads/{BRANCH}"), "{case}");
            if !old.chars().all(|digit| digit == '0') {
                self.place.git(&["merge-base", "--is-ancestor", old, new]);
            }
        }
    }
}

async fn live_through(transport: &str, fault: Fault, reason: Option<&str>) {
    let case = format!("{transport}, {fault:?}");
    let limit = if reason == Some("Timeout") { Duration::from_millis(1500) } else { Duration::from_secs(60) };
    let remote = Faulty::new(transport, limit).await;
    let mut ledger = remote.ledger();
    let mut waiting = Vec::new();
    let mut written = Vec::new();
    for (number, event) in (1..).zip(EVENTS) {
        let case = format!("{case}, at transition {number}");
        waiting.push(entry("web", number, event));
        written.push(format!("shop/web#{number}"));
        remote.begin(fault);
        match (ledger.append(&waiting).await, reason) {
            (Err(error), Some(reason)) => {
                assert_eq!(error.reason(), reason, "{case}: {error}");
                assert!(!leaks(&format!("{error} {error:?}")), "{case}: {error}");
            }
            (Ok(_), None) => {}
            (other, _) => panic!("{case}: {other:?}"),
        }
        if number % 2 == 0 {
            // The operator is restarted in the middle of it.
            ledger = remote.ledger();
            if let Err(error) = ledger.append(&waiting).await {
                assert!(!leaks(&format!("{error} {error:?}")), "{case}: {error}");
            }
        }
        remote.end(fault);
        // The outbox asks again until it is told that all is written.
        let mut result = ledger.append(&waiting).await;
        for _ in 0..3 {
            if result.is_err() {
                result = ledger.append(&waiting).await;
            }
        }
        assert_eq!(result.unwrap_or_else(|error| panic!("{case}: {error}")).fork, None, "{case}");
        assert_eq!(remote.place.recorded(), written, "{case}");
        if number != 3 {
            // Once, the next one goes out with one that is there already.
            waiting.clear();
        }
    }
    remote.nothing_was_forced(&case);
    assert_eq!(remote.seen.lock().unwrap().leaks, Vec::<String>::new(), "{case}: in the arguments of a process");
    let log = remote.place.git(&["log", "-p", "--format=raw", BRANCH]);
    assert!(!leaks(&log), "{case}: in a commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_every_fault_at_every_transition_leaves_one_commit_each() {
    live_through_all("http").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_ssh_every_fault_at_every_transition_leaves_one_commit_each() {
    live_through_all("ssh").await;
}

async fn live_through_all(over: &str) {
    // Four at a time, so that the patience of the test does not depend on the machine.
    let of_transport: Vec<_> = CASES.iter().filter(|(transport, ..)| *transport == over).collect();
    for some in of_transport.chunks(4) {
        let running: Vec<_> = some
            .iter()
            .map(|(transport, fault, reason)| tokio::spawn(live_through(transport, *fault, *reason)))
            .collect();
        for case in running {
            case.await.unwrap();
        }
    }
}
