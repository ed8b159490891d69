//! What receivers and forges get, and what is made of their answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::commit::{commit_state, deployment_state};
use super::receiver::signature;
use super::{DeliveryError, Event, ForgeSink, Format, Receiver, Sink};
use crate::api::{ForgeKind, TransitionEvent};
use crate::forge::{ForgeClient, Location, State};
use crate::git::{Commit, Person};

/// In every address and token; looked for in every error and `Debug`.
const CANARY: &str = "canary-9f1c";
const SOURCE: &str = "1234567890123456789012345678901234567890";
/// What somebody may have put where people can write.
const HOSTILE: &str = "<!channel> <@U1> [x](http://evil) **b** & \u{202e}gnp";

fn commit(trailers: &str, body: &str) -> Commit {
    let person = Person { who: "Sluice <sluice@prod>".into(), seconds: Some(1_772_600_060), zone: "+0000".into() };
    Commit {
        id: "c0ffee".into(),
        branch: "rollout-log/prod".into(),
        tree: String::new(),
        tree_before: None,
        parents: Vec::new(),
        author: person.clone(),
        committer: person,
        signed: false,
        more_headers: Vec::new(),
        message: format!("shop/web: StepCompleted 2/5 20%→50%\n\n{body}\n\n{trailers}\n").into_bytes(),
        repeated: Vec::new(),
        source_commit_before: None,
    }
}

const TRAILERS: &str = "Rollout-Schema: 1\nRollout-Id: prod/shop/web\nRollout-Uid: uid-1\nRollout-Seq: 7\n\
    Rollout-Prev: c0ffe0\nRollout-Release: bbbbbbbbbb.1\nRollout-Event: StepCompleted\nRollout-Step: 2/5\n\
    Rollout-Weight: 20->50\nRollout-Verdict: pass\nRollout-Reason: AnalysisPassed\nRollout-From: aaaaaaaaaa\n\
    Rollout-To: bbbbbbbbbb\nRollout-Source-Commit: 1234567890123456789012345678901234567890\n\
    Rollout-Actor: \"ann \\\"the\\\" admin\"\nRollout-Operator: sluice 0.1.0";

fn event() -> Event {
    Event::of(&commit(TRAILERS, "errors stay below 1%")).unwrap()
}

fn now() -> DateTime<Utc> {
    "2026-03-04T05:06:07Z".parse().unwrap()
}

#[test]
fn an_event_is_read_from_the_commit_and_nothing_else() {
    let event = event();
    let wanted = json!({
        "cluster": "prod", "namespace": "shop", "rollout": "web", "uid": "uid-1", "sequence": 7,
        "event": "StepCompleted", "at": "2026-03-04T04:54:20Z", "stage": 2, "stages": 5, "weightFrom": 20,
        "weightTo": 50, "revisionFrom": "aaaaaaaaaa", "revisionTo": "bbbbbbbbbb", "release": "bbbbbbbbbb.1",
        "verdict": "pass", "reason": "AnalysisPassed", "message": "errors stay below 1%",
        "actor": "ann \"the\" admin", "sourceCommit": SOURCE, "branch": "rollout-log/prod", "commit": "c0ffee",
    });
    assert_eq!(json!(event), wanted);
    let covering = TRAILERS.replace("Rollout-Seq: 7", "Rollout-Seq: 7\nRollout-Covers: 4-6");
    assert_eq!(Event::of(&commit(&covering, "x")).unwrap().covers.as_deref(), Some("4-6"));
}

#[test]
fn what_records_no_transition_is_no_event() {
    let epoch = "Rollout-Schema: 1\nRollout-Epoch: 2026q4\nRollout-Operator: sluice 0.1.0";
    let newer = TRAILERS.replace("StepCompleted", "Teleported");
    let damaged = TRAILERS.replace("20->50", "20");
    for trailers in [epoch, &newer, &damaged, ""] {
        assert_eq!(Event::of(&commit(trailers, "x")), None, "{trailers}");
    }
}

/// One request as a receiver sees it.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: HeaderMap,
    body: String,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

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
                let body = String::from_utf8(body.to_vec()).unwrap();
                let asked = Asked { path: parts.uri.path().to_owned(), headers: parts.headers, body };
                record.lock().unwrap().push(asked.clone());
                answer(&asked)
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    fn sink(&self, format: Format) -> Sink {
        let address = format!("http://{}/{CANARY}", self.address);
        Sink::Receiver(Receiver::new(format, &address, Some(format!("token-{CANARY}")), None).unwrap())
    }

    fn only(&self) -> Asked {
        let asked = self.asked.lock().unwrap();
        assert_eq!(asked.len(), 1);
        asked[0].clone()
    }
}

/// What one receiver gets.
async fn told(format: Format, event: &Event) -> Asked {
    let stub = Stub::start(|_| StatusCode::ACCEPTED.into_response()).await;
    stub.sink(format).deliver(event, now()).await.unwrap();
    let asked = stub.only();
    assert_eq!(asked.path, format!("/{CANARY}"));
    asked
}

#[tokio::test]
async fn a_cloud_event_has_what_the_specification_wants() {
    let asked = told(Format::CloudEvent, &event()).await;
    assert_eq!(asked.header("content-type"), "application/cloudevents+json; charset=UTF-8");
    let body = asked.json();
    assert_eq!(body["data"], json!(event()));
    let mut attributes = body;
    attributes.as_object_mut().unwrap().remove("data");
    assert_eq!(
        attributes,
        json!({
            "specversion": "1.0", "id": "uid-1/7", "source": "prod/shop/web",
            "type": "dev.sluice.rollout.StepCompleted", "subject": "bbbbbbbbbb.1", "time": "2026-03-04T04:54:20Z",
            "datacontenttype": "application/json",
        })
    );
}

#[tokio::test]
async fn a_webhook_is_signed_over_its_time_and_its_body() {
    let asked = told(Format::Document, &event()).await;
    assert_eq!(asked.header("x-sluice-delivery"), "uid-1/7");
    assert_eq!(asked.header("x-sluice-timestamp"), "1772600767");
    let expected = signature(&format!("token-{CANARY}"), 1_772_600_767, &asked.body).unwrap();
    assert_eq!(asked.header("x-sluice-signature-256"), expected);
    assert_eq!(asked.json()["id"], "uid-1/7");
    assert_eq!(asked.json()["event"], "StepCompleted");
    // As another program computes it: printf '1.{}' | openssl dgst -sha256 -hmac secret
    let known = "sha256=1122767b193110cfec322b6f199b599edbf608ed087f2d27afb0b97d99523908";
    assert_eq!(signature("secret", 1, "{}").unwrap(), known);
}

#[tokio::test]
async fn telling_again_says_the_same_under_the_same_identity() {
    for format in [Format::CloudEvent, Format::Document, Format::Slack, Format::Teams] {
        let (one, other) = (told(format, &event()).await, told(format, &event()).await);
        assert_eq!(one.body, other.body);
        assert_eq!(one.header("x-sluice-delivery"), other.header("x-sluice-delivery"));
    }
}

/// Every string in a document, with the object it stands in.
fn strings<'a>(value: &'a Value, within: &'a Value, found: &mut Vec<(&'a str, &'a Value)>) {
    match value {
        Value::String(text) => found.push((text, within)),
        Value::Array(items) => items.iter().for_each(|item| strings(item, within, found)),
        Value::Object(fields) => fields.values().for_each(|field| strings(field, value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn nobody_can_mention_or_link_in_a_chat_by_what_they_wrote() {
    let mut event = event();
    event.message = HOSTILE.into();
    event.actor = Some(HOSTILE.into());
    event.reason = HOSTILE.into();
    event.page = Some("https://git.example/shop/deploy/commit/c0ffee".into());
    let slack = told(Format::Slack, &event).await.json();
    let mut found = Vec::new();
    strings(&slack, &slack, &mut found);
    for (text, within) in found {
        if within["type"] == "mrkdwn" && text != "mrkdwn" {
            assert_eq!(text, "<https://git.example/shop/deploy/commit/c0ffee|The entry in the log>");
        } else {
            assert!(!text.contains(['<', '>']), "{text}");
        }
    }
    assert!(slack.to_string().contains("&lt;!channel&gt; &lt;@U1&gt; [x](http://evil) **b** &amp;"), "{slack}");
    assert!(slack["text"].as_str().unwrap().contains("prod/shop/web: StepCompleted 2/5, 20% → 50%"));
    assert_eq!(slack["unfurl_links"], false);

    let teams = told(Format::Teams, &event).await.json();
    let attachment = &teams["attachments"][0];
    assert_eq!((&teams["type"], &attachment["content"]["type"]), (&json!("message"), &json!("AdaptiveCard")));
    assert_eq!(attachment["contentType"], "application/vnd.microsoft.card.adaptive");
    let mut found = Vec::new();
    strings(attachment, attachment, &mut found);
    let hostile: Vec<_> = found.iter().filter(|(text, _)| text.contains("evil")).collect();
    assert_eq!(hostile.len(), 3);
    assert!(hostile.iter().all(|(_, within)| within["type"] == "TextRun"), "text runs are never parsed");
    assert_eq!(attachment["content"]["actions"][0]["url"], "https://git.example/shop/deploy/commit/c0ffee");
}

#[tokio::test]
async fn a_long_message_is_cut_to_what_a_chat_takes() {
    let mut event = event();
    event.message = "&".repeat(20_000);
    event.actor = Some("<".repeat(20_000));
    let slack = told(Format::Slack, &event).await.json();
    let mut found = Vec::new();
    strings(&slack, &slack, &mut found);
    assert!(found.iter().all(|(text, _)| text.chars().count() <= 3000));
    for field in slack["blocks"][2]["fields"].as_array().unwrap() {
        assert!(field["text"].as_str().unwrap().chars().count() <= 2000);
    }
    assert!(told(Format::Teams, &event).await.body.len() < 28 * 1024);
}

#[tokio::test]
async fn an_answer_is_a_class_and_shows_no_secret_and_no_foreign_word() {
    let second = std::time::Duration::from_secs;
    for (code, header, expected) in [
        (301, None, DeliveryError::Moved),
        (400, None, DeliveryError::Refused { code: 400 }),
        (401, None, DeliveryError::Denied { code: 401 }),
        (404, None, DeliveryError::NotFound { code: 404 }),
        (413, None, DeliveryError::Refused { code: 413 }),
        (429, Some("7"), DeliveryError::RateLimited { retry_after: second(7) }),
        (429, Some("999999"), DeliveryError::RateLimited { retry_after: second(3600) }),
        (429, Some("soon"), DeliveryError::RateLimited { retry_after: second(30) }),
        (500, None, DeliveryError::Trouble { code: 500 }),
        (503, Some("0"), DeliveryError::RateLimited { retry_after: second(1) }),
        (503, None, DeliveryError::Trouble { code: 503 }),
    ] {
        let stub = Stub::start(move |_| {
            let mut answer = (StatusCode::from_u16(code).unwrap(), format!("{CANARY} says: owned")).into_response();
            answer.headers_mut().insert("location", format!("http://127.0.0.1:1/{CANARY}").parse().unwrap());
            if let Some(wait) = header {
                answer.headers_mut().insert("retry-after", wait.parse().unwrap());
            }
            answer
        })
        .await;
        let sink = stub.sink(Format::Document);
        let error = sink.deliver(&event(), now()).await.unwrap_err();
        assert_eq!(error, expected, "{code}");
        assert_eq!(stub.asked.lock().unwrap().len(), 1, "nothing is followed or repeated by itself");
        let shown = format!("{error} {error:?} {sink:?}");
        assert!(!shown.contains(CANARY) && !shown.contains("owned"), "{shown}");
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_used_or_reached_says_so_without_showing_it() {
    drop(rustls::crypto::ring::default_provider().install_default());
    for address in [CANARY, "ftp://a/canary-9f1c", "http://169.254.169.254/canary-9f1c", "https://u:canary-9f1c@a/"] {
        let error = Receiver::new(Format::Slack, address, None, None).unwrap_err();
        assert!(matches!(error, DeliveryError::Declaration { field: "address", .. }), "{error}");
        assert!(!error.to_string().contains(CANARY), "{error}");
    }
    let error = Receiver::new(Format::Slack, "https://a/", None, Some("no certificate")).unwrap_err();
    assert!(error.to_string().starts_with("ca.crt "), "{error}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let sink = Receiver::new(Format::Slack, &format!("http://{closed}/{CANARY}"), None, None).unwrap();
    let error = Sink::Receiver(sink).deliver(&event(), now()).await.unwrap_err();
    assert_eq!(error.to_string(), "the receiver: not reachable: connection refused");
    assert!(!error.is_about_the_message());
}

#[test]
fn the_forge_shows_how_it_goes_for_the_commit_that_asked() {
    use TransitionEvent::{Aborted, Denied, FirstDeploy, Held, Promoted, Recovered, Started, Superseded};
    let (pending, success, failure) = (Some(State::Pending), Some(State::Success), Some(State::Failure));
    for (kind, reason, status, deployment) in [
        (FirstDeploy, "FirstDeploy", pending, pending),
        (Started, "NewRevision", pending, pending),
        (Held, "NoData", pending, pending),
        (Promoted, "Promoted", success, success),
        (Aborted, "Verdict", failure, failure),
        // The commit of a revert has what it asked for, and is no deployment of what it took back.
        (Aborted, "Revert", success, None),
        (Denied, "Denied", failure, None),
        (Superseded, "Superseded", pending, None),
        (Recovered, "StatusLost", None, None),
    ] {
        let event = Event { event: kind, reason: reason.into(), ..event() };
        assert_eq!((commit_state(&event), deployment_state(&event)), (status, deployment), "{kind:?} {reason}");
    }
}

#[tokio::test]
async fn a_commit_status_says_it_once_with_the_page_of_the_entry() {
    let stub = Stub::start(|asked| match asked.body.as_str() {
        "" => axum::Json(json!([])).into_response(),
        _ => (StatusCode::CREATED, axum::Json(json!({}))).into_response(),
    })
    .await;
    let location = Location::new(ForgeKind::Gitea, None, &format!("http://{}/shop/deploy", stub.address)).unwrap();
    let sink = Sink::Forge(Box::new(ForgeSink::commit_status(ForgeClient::new(location, CANARY, None).unwrap())));
    let page = Some("https://git.example/shop/deploy/commit/c0ffee".to_owned());
    sink.deliver(&Event { page, ..event() }, now()).await.unwrap();
    let asked = stub.asked.lock().unwrap().clone();
    let written = asked.iter().find(|asked| !asked.body.is_empty()).unwrap();
    assert_eq!(written.path, format!("/api/v1/repos/shop/deploy/statuses/{SOURCE}"));
    let body = written.json();
    assert_eq!(body["context"], "sluice/prod/shop/web");
    assert_eq!(body["state"], "pending");
    assert_eq!(body["description"], "StepCompleted 2/5, 20% → 50%: errors stay below 1%");
    assert_eq!(body["target_url"], "https://git.example/shop/deploy/commit/c0ffee");
    let before = asked.len();
    for commit in [None, Some("main".to_owned())] {
        sink.deliver(&Event { source_commit: commit, ..event() }, now()).await.unwrap();
    }
    assert_eq!(stub.asked.lock().unwrap().len(), before, "without a commit there is nothing to show it beside");
    assert!(!format!("{sink:?}").contains(CANARY));
}
