//! One Kubernetes event for each transition of a Rollout and for each push of a log, for `kubectl describe` and for whoever collects events.
//!
//! An event is a courtesy. It never fails a turn, never holds one up, and is given up when the API server does not
//! take it: the record is in git. Its name is derived from the Rollout's uid and the transition's number, so one
//! that is sent again (after a restart, after a lost answer) is recognised by the API server and not doubled. That
//! is why they are created here and not by the library's recorder, which would also merge transitions of one kind
//! and keep only the first one's text.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::objects::Identity;
use super::write::REQUEST_TIMEOUT;
use crate::api::{GROUP, Transition, TransitionEvent, VERSION, names};
use crate::telemetry::{Metrics, event_word};

/// Events that wait to be sent. A burst of this many transitions is longer than any outage is worth.
const QUEUED: usize = 512;
/// How many times one event is tried.
const TRIES: u32 = 3;
/// What the API server allows, in bytes.
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;
/// Who says so.
const CONTROLLER: &str = "sluice.dev/sluice";

/// Sends events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    instance: String,
    metrics: Metrics,
}

impl Events {
    /// Starts the task that sends. It ends by itself when the last clone is dropped and what waits is sent or given
    /// up; whoever stops the process waits for that with a bound. `instance` names this process.
    pub fn start(client: Client, instance: &str, metrics: Metrics) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUED);
        let sending = tokio::spawn(send_all(client, receiver, metrics.clone()));
        (Self { sender, instance: cut(instance, LONGEST_INSTANCE), metrics }, sending)
    }

    /// Tells of a transition that was written to the Rollout's status. Returns at once. May be told again.
    pub fn transition(&self, rollout: &Identity, transition: &Transition) {
        self.send(event(rollout, transition, &self.instance));
    }

    /// Tells of a Rollout that goes without having been handed back. Returns at once. May be told again.
    pub fn not_handed_back(&self, rollout: &Identity, why: &str, at: DateTime<Utc>) {
        let mut event = about("Rollout", rollout, "not handed back", at, &self.instance);
        event.type_ = Some("Warning".to_owned());
        event.reason = Some("NotHandedBack".to_owned());
        event.action = Some(action(TransitionEvent::HandedBack).to_owned());
        event.note =
            Some(cut(&format!("the Rollout goes, but not all it steered was handed back: {why}"), LONGEST_NOTE));
        self.send(event);
    }

    /// Tells what keeps pods from being replaced. Returns at once. The same is told once.
    pub fn hindered(&self, rollout: &Identity, why: &str, at: DateTime<Utc>) {
        let mut event = about("Rollout", rollout, why, at, &self.instance);
        event.type_ = Some("Normal".to_owned());
        event.reason = Some("EvictionRefused".to_owned());
        event.action = Some(action(TransitionEvent::Restarting).to_owned());
        event.note = Some(cut(why, LONGEST_NOTE));
        self.send(event);
    }

    /// Tells the tip of a log after a push. Returns at once. May be told again.
    pub fn log_tip(&self, repo: &Identity, branch: &str, tip: &str, at: DateTime<Utc>) {
        let mut event = about("DeployRepo", repo, tip, at, &self.instance);
        event.type_ = Some("Normal".to_owned());
        event.reason = Some("LogPushed".to_owned());
        event.action = Some("Record".to_owned());
        event.note = Some(cut(&format!("the tip of {branch} is {tip}"), LONGEST_NOTE));
        self.send(event);
    }

    fn send(&self, event: Event) {
        if let Err(refused) = self.sender.try_send(event) {
            self.metrics.event_dropped();
            let name = refused.into_inner().metadata.name;
            tracing::warn!(name, "too many events wait; this one is not sent");
        }
    }
}

/// An event about an object, named by the object and by what it tells; the same one for the same, but for the sender.
fn about(kind: &str, object: &Identity, told: &str, at: DateTime<Utc>, instance: &str) -> Event {
    let digest = names::hex(&Sha256::digest(format!("{}/{told}", object.uid)));
    let head: String = object.name.chars().take(200).collect();
    let mut event = Event::default();
    event.metadata.name = Some(format!("{}.{}", head.trim_end_matches(['-', '.']), &digest[..16]));
    event.metadata.namespace = Some(object.namespace.clone());
    event.event_time = Timestamp::from_microsecond(at.timestamp_micros()).ok().map(MicroTime);
    event.reporting_controller = Some(CONTROLLER.to_owned());
    event.reporting_instance = Some(instance.to_owned());
    event.regarding = Some(ObjectReference {
        api_version: Some(format!("{GROUP}/{VERSION}")),
        kind: Some(kind.to_owned()),
        namespace: Some(object.namespace.clone()),
        name: Some(object.name.clone()),
        uid: Some(object.uid.clone()),
        ..ObjectReference::default()
    });
    event
}

/// The event of a transition.
fn event(rollout: &Identity, transition: &Transition, instance: &str) -> Event {
    let mut event = about("Rollout", rollout, &transition.sequence.to_string(), transition.at, instance);
    event.type_ = Some(if is_warning(transition.event) { "Warning" } else { "Normal" }.to_owned());
    event.reason = Some(event_word(transition.event).to_owned());
    event.action = Some(action(transition.event).to_owned());
    event.note = Some(cut(&transition.message, LONGEST_NOTE));
    event
}

/// Whether somebody should look.
fn is_warning(event: TransitionEvent) -> bool {
    match event {
        TransitionEvent::Aborted
        | TransitionEvent::Denied
        | TransitionEvent::Held
        | TransitionEvent::Recovered
        | TransitionEvent::DriftCorrected => true,
        TransitionEvent::FirstDeploy
        | TransitionEvent::Started
        | TransitionEvent::StepCompleted
        | TransitionEvent::Paused
        | TransitionEvent::Resumed
        | TransitionEvent::Promoting
        | TransitionEvent::Promoted
        | TransitionEvent::Superseded
        | TransitionEvent::PlanChanged
        | TransitionEvent::HandedBack
        | TransitionEvent::Restarting
        | TransitionEvent::Restarted => false,
    }
}

/// What Sluice does at such a transition.
fn action(event: TransitionEvent) -> &'static str {
    match event {
        TransitionEvent::FirstDeploy => "Deploy",
        TransitionEvent::Started => "Begin",
        TransitionEvent::StepCompleted => "Advance",
        TransitionEvent::Paused => "Pause",
        TransitionEvent::Resumed => "Resume",
        TransitionEvent::Held => "Hold",
        TransitionEvent::Promoting | TransitionEvent::Promoted => "Promote",
        TransitionEvent::Aborted => "ReturnToStable",
        TransitionEvent::Superseded => "Replace",
        TransitionEvent::PlanChanged => "Replan",
        TransitionEvent::Denied => "Refuse",
        TransitionEvent::Recovered => "Recover",
        TransitionEvent::HandedBack => "HandBack",
        TransitionEvent::DriftCorrected => "Correct",
        TransitionEvent::Restarting | TransitionEvent::Restarted => "ReplacePods",
    }
}

/// At most so many bytes, without cutting a letter in two; what was cut off is hinted at.
fn cut(text: &str, bytes: usize) -> String {
    const MORE: &str = "…";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let mut end = bytes.saturating_sub(MORE.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MORE}", &text[..end])
}

async fn send_all(client: Client, mut events: mpsc::Receiver<Event>, metrics: Metrics) {
    while let Some(event) = events.recv().await {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let name = event.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        for attempt in 1..=TRIES {
            let sent = timeout(REQUEST_TIMEOUT, api.create(&PostParams::default(), &event)).await;
            let problem = match sent {
                Ok(Ok(_)) => {
                    metrics.api_write("Event", "create", "Ok");
                    break;
                }
                // It was sent before. Nothing tells more than that it is there.
                Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => {
                    metrics.api_write("Event", "create", "AlreadyExists");
                    break;
                }
                Ok(Err(error)) => {
                    metrics.api_write("Event", "create", "ApiError");
                    let hopeless =
                        matches!(&error, kube::Error::Api(status) if status.code < 500 && status.code != 429);
                    (hopeless, error.to_string())
                }
                Err(_) => {
                    metrics.api_write("Event", "create", "Timeout");
                    (false, "no answer in time".to_owned())
                }
            };
            let (hopeless, problem) = problem;
            // A namespace that is being deleted takes no events, and a missing right does not come back by asking.
            if hopeless || attempt == TRIES {
                metrics.event_dropped();
                tracing::warn!(namespace, name, problem, "an event could not be created");
                break;
            }
            sleep(Duration::from_millis(500) * attempt).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use chrono::{TimeZone, Utc};
    use serde_json::{Value, json};
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    /// The events' side of an API server: answers from a list first, then stores what is new.
    #[derive(Clone, Default)]
    struct ApiServer {
        stored: Arc<Mutex<Vec<Value>>>,
        /// The next answers; `None` for none at all.
        script: Arc<Mutex<VecDeque<Option<u16>>>>,
        asked: Arc<Mutex<usize>>,
    }

    impl ApiServer {
        fn client(&self) -> Client {
            let server = self.clone();
            let router = Router::new().fallback(move |request: Request| {
                let server = server.clone();
                async move {
                    let path = request.uri().path().to_owned();
                    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
                    *server.asked.lock().unwrap() += 1;
                    let scripted = server.script.lock().unwrap().pop_front();
                    match scripted {
                        Some(None) => std::future::pending().await,
                        Some(Some(code)) => status(code, "Scripted"),
                        None => server.create(&path, serde_json::from_slice(&body).unwrap()),
                    }
                }
            });
            Client::new(router, "shop")
        }

        fn create(&self, path: &str, event: Value) -> Response {
            assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
            let mut stored = self.stored.lock().unwrap();
            if stored.iter().any(|known| known["metadata"]["name"] == event["metadata"]["name"]) {
                return status(409, "AlreadyExists");
            }
            stored.push(event.clone());
            axum::Json(event).into_response()
        }

        fn notes(&self) -> Vec<String> {
            let stored = self.stored.lock().unwrap();
            stored.iter().map(|event| event["note"].as_str().unwrap().to_owned()).collect()
        }
    }

    fn status(code: u16, reason: &str) -> Response {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
            "reason": reason, "code": code});
        (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
    }

    fn web() -> Identity {
        Identity { namespace: "shop".into(), name: "web".into(), uid: "u-1".into(), ..Identity::default() }
    }

    fn aborted(sequence: i64, message: &str) -> Transition {
        Transition {
            sequence,
            event: TransitionEvent::Aborted,
            at: Utc.with_ymd_and_hms(2026, 3, 4, 5, 6, 7).unwrap(),
            stage: 2,
            stages: 6,
            weight_from: 20,
            weight_to: 0,
            revision_from: None,
            revision_to: "7d4b9c".into(),
            attempt: 1,
            reason: "Verdict".into(),
            message: message.into(),
            verdict: Some("fail".into()),
            actor: None,
            source_commit: None,
            analysis_runs: Vec::new(),
        }
    }

    /// Sends, and waits until everything is sent or given up.
    async fn finish(events: Events, sending: JoinHandle<()>) {
        drop(events);
        timeout(Duration::from_secs(600), sending).await.expect("it ends").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_transition_is_one_event_about_the_rollout_with_its_own_text() {
        let server = ApiServer::default();
        let (events, sending) = Events::start(server.client(), "sluice-0", Metrics::new());
        events.transition(&web(), &aborted(4, "error-rate was 0.08, allowed is below 0.01"));
        finish(events, sending).await;
        let stored = server.stored.lock().unwrap();
        assert_eq!(stored.len(), 1);
        let event = &stored[0];
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reason"], "Aborted");
        assert_eq!(event["action"], "ReturnToStable");
        assert_eq!(event["note"], "error-rate was 0.08, allowed is below 0.01");
        assert_eq!(event["eventTime"], "2026-03-04T05:06:07.000000Z", "the time of the transition, not of the sending");
        assert_eq!(event["reportingController"], "sluice.dev/sluice");
        assert_eq!(event["reportingInstance"], "sluice-0");
        assert_eq!(
            event["regarding"],
            json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "namespace": "shop", "name": "web", "uid": "u-1"})
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_sent_again_by_another_process_is_not_doubled() {
        let server = ApiServer::default();
        for instance in ["sluice-0", "sluice-1"] {
            let metrics = Metrics::new();
            let (events, sending) = Events::start(server.client(), instance, metrics.clone());
            events.transition(&web(), &aborted(4, "first"));
            events.transition(&web(), &aborted(5, "second"));
            finish(events, sending).await;
            assert!(metrics.encode().contains("sluice_events_dropped_total 0"), "that is no failure");
        }
        assert_eq!(server.notes(), ["first", "second"]);
        // A Rollout of the same name that was created anew has events of its own.
        let (events, sending) = Events::start(server.client(), "sluice-1", Metrics::new());
        events.transition(&Identity { uid: "u-2".into(), ..web() }, &aborted(4, "third"));
        finish(events, sending).await;
        assert_eq!(server.notes(), ["first", "second", "third"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passing_fault_is_tried_again_and_a_lasting_one_given_up() {
        let server = ApiServer::default();
        let metrics = Metrics::new();
        let (events, sending) = Events::start(server.client(), "sluice-0", metrics.clone());
        server.script.lock().unwrap().extend([Some(503), None]);
        events.transition(&web(), &aborted(1, "late"));
        finish(events, sending).await;
        assert_eq!(server.notes(), ["late"]);

        let (events, sending) = Events::start(server.client(), "sluice-0", metrics.clone());
        *server.asked.lock().unwrap() = 0;
        // The namespace is being deleted; then an API server that stays away for one event, and is back.
        server.script.lock().unwrap().extend([Some(403), Some(500), Some(429), Some(500)]);
        events.transition(&web(), &aborted(2, "refused"));
        events.transition(&web(), &aborted(3, "away"));
        events.transition(&web(), &aborted(4, "back"));
        finish(events, sending).await;
        assert_eq!(server.notes(), ["late", "back"]);
        assert_eq!(*server.asked.lock().unwrap(), 5, "the refused one is tried once");
        assert!(metrics.encode().contains("sluice_events_dropped_total 2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_and_holds_nobody_up() {
        let server = ApiServer::default();
        let metrics = Metrics::new();
        server.script.lock().unwrap().push_back(None);
        let (events, sending) = Events::start(server.client(), "sluice-0", metrics.clone());
        let begun = tokio::time::Instant::now();
        for sequence in 0..600 {
            events.transition(&web(), &aborted(sequence, "flood"));
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        finish(events, sending).await;
        assert_eq!(server.notes().len(), QUEUED);
        assert!(metrics.encode().contains("sluice_events_dropped_total 88"));
    }

    #[test]
    fn every_text_fits_into_what_the_api_server_takes() {
        let long = Identity { name: "n".repeat(253), ..web() };
        let event = event(&long, &aborted(1, &"ä".repeat(2000)), "sluice-0");
        let note = event.note.unwrap();
        assert!(note.len() <= 1024 && note.len() > 1020 && note.ends_with('…'), "{} bytes", note.len());
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= 253 && name.is_ascii(), "{name}");
        assert_eq!(cut("short", 1024), "short");
        assert_eq!(cut(&"x".repeat(1024), 1024).len(), 1024);
    }

    #[test]
    fn what_stops_a_release_is_a_warning_and_what_goes_as_planned_is_not() {
        assert!(is_warning(TransitionEvent::Aborted) && is_warning(TransitionEvent::Held));
        assert!(!is_warning(TransitionEvent::Promoted) && !is_warning(TransitionEvent::Paused));
    }
}
