//! Forges that answer as the real ones do, and servers that answer as none should.

mod app;
mod faults;
mod gitea;
mod github;
mod gitlab;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;

use super::{
    CommitStatus, Deployment, EndedDeployment, ForgeClient, Location, NewPullRequest, PullRequestState, State,
};
use crate::api::ForgeKind;

/// In every token; looked for in every error and `Debug`.
const CANARY: &str = "canary-9f1c";
const TOKEN: &str = "token-canary-9f1c";
const COMMIT: &str = "1234567890123456789012345678901234567890";

/// One request as a forge sees it.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    /// As it was written, with its escapes.
    path: String,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Value,
}

impl Asked {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }

    fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }
}

/// A server on a port of its own.
struct Stub {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Stub {
    async fn start(answer: impl Fn(&Asked) -> Response + Send + Sync + 'static) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let record = Arc::clone(&asked);
        let router = Router::new().fallback(move |request: Request| {
            let (record, answer) = (Arc::clone(&record), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let url = reqwest::Url::parse(&format!("http://stub{}", parts.uri)).unwrap();
                let asked = Asked {
                    method: parts.method,
                    path: url.path().to_owned(),
                    query: url.query_pairs().into_owned().collect(),
                    headers: parts.headers,
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                record.lock().unwrap().push(asked.clone());
                answer(&asked)
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    fn client(&self, kind: ForgeKind, path: &str) -> ForgeClient {
        let location = Location::new(kind, None, &format!("http://{}/{path}", self.address)).unwrap();
        ForgeClient::new(location, TOKEN, None).unwrap()
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests would have changed something.
    fn writes(&self) -> usize {
        self.asked().iter().filter(|asked| asked.method != Method::GET).count()
    }
}

fn json(status: u16, body: Value) -> Response {
    (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
}

fn new(head: &str) -> NewPullRequest<'_> {
    NewPullRequest { title: "Revert \"web: 1.2\"", body: "It failed.", head, base: "main" }
}

fn status(state: State, description: &str) -> CommitStatus<'_> {
    CommitStatus { context: "sluice/prod/shop/web", state, description, target: Some("https://log.example/1") }
}

fn deployment<'a>(key: &'a str, state: State) -> Deployment<'a> {
    Deployment { commit: COMMIT, environment: "prod/eu", key, state, description: "step 1 of 3", target: None }
}

fn ended(key: &str) -> EndedDeployment<'_> {
    EndedDeployment { commit: COMMIT, environment: "prod/eu", key, description: "another one took its place" }
}

/// What every forge must do with pull requests.
async fn pull_requests_are_opened_once(stub: &Stub, client: &ForgeClient, close: impl Fn(u64, bool)) {
    assert_eq!(client.find_pull_request("sluice/revert-1").await.unwrap(), None);
    let opened = client.open_pull_request(new("sluice/revert-1")).await.unwrap();
    assert_eq!((opened.head.as_str(), opened.base.as_str()), ("sluice/revert-1", "main"));
    assert_eq!(opened.state, PullRequestState::Open);
    assert_eq!(opened.page.as_deref(), Some(format!("https://forge.example/pr/{}", opened.number).as_str()));
    let writes = stub.writes();
    assert_eq!(client.open_pull_request(new("sluice/revert-1")).await.unwrap(), opened);
    assert_eq!(stub.writes(), writes, "the second time it only looks");
    assert_eq!(client.find_pull_request("sluice/revert-1").await.unwrap().unwrap(), opened);
    assert_eq!(client.find_pull_request("sluice/revert").await.unwrap(), None);
    let other = client.open_pull_request(new("sluice/revert-2")).await.unwrap();
    close(opened.number, true);
    close(other.number, false);
    assert_eq!(client.pull_request(opened.number).await.unwrap().state, PullRequestState::Merged);
    assert_eq!(client.pull_request(other.number).await.unwrap().state, PullRequestState::Closed);
    assert_eq!(client.find_pull_request("sluice/revert-1").await.unwrap(), None);
    let again = client.open_pull_request(new("sluice/revert-1")).await.unwrap();
    assert!(again.number > other.number);
}

/// What every forge must do with statuses. `newest` is what it holds: state and description.
async fn statuses_are_set_when_they_differ(
    stub: &Stub,
    client: &ForgeClient,
    words: [&str; 3],
    newest: impl Fn() -> (String, String),
) {
    let long = format!("step 1\nof 3 {}", "x".repeat(200));
    client.set_status(COMMIT, status(State::Pending, &long)).await.unwrap();
    let (state, description) = newest();
    assert_eq!(state, words[0]);
    assert!(description.starts_with("step 1 of 3 xx") && description.chars().count() == 140, "{description}");
    let writes = stub.writes();
    client.set_status(COMMIT, status(State::Pending, &long)).await.unwrap();
    assert_eq!(stub.writes(), writes, "it says so already");
    // Another name on the same commit is another matter.
    let other = CommitStatus { context: "ci", ..status(State::Failure, "no") };
    client.set_status(COMMIT, other).await.unwrap();
    client.set_status(COMMIT, status(State::Success, "promoted")).await.unwrap();
    assert_eq!(newest(), (words[1].to_owned(), "promoted".to_owned()));
    let writes = stub.writes();
    client.set_status(COMMIT, status(State::Success, "promoted")).await.unwrap();
    assert_eq!(stub.writes(), writes);
    // The same commit is rolled out once more.
    client.set_status(COMMIT, status(State::Pending, "step 1")).await.unwrap();
    client.set_status(COMMIT, status(State::Failure, "aborted")).await.unwrap();
    assert_eq!(newest(), (words[2].to_owned(), "aborted".to_owned()));
    let error = client.set_status("main", status(State::Success, "x")).await.unwrap_err();
    assert_eq!(error.to_string(), "the commit is not a full name of one");
}
