//! Documents for programs: CloudEvents 1.0 in its structured form, and the plain document of a webhook. Pure.

use chrono::SecondsFormat;
use serde_json::{Value, json};

use super::Event;

/// What a structured CloudEvent is sent as.
pub(super) const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";
const SPECIFICATION: &str = "1.0";
const TYPE_PREFIX: &str = "dev.sluice.rollout.";

/// The transition as a CloudEvent.
pub(super) fn cloud_event(event: &Event) -> Value {
    json!({
        "specversion": SPECIFICATION,
        "id": event.identity(),
        "source": event.source(),
        "type": format!("{TYPE_PREFIX}{}", event.name()),
        "subject": event.release,
        "time": event.at.to_rfc3339_opts(SecondsFormat::Secs, true),
        "datacontenttype": "application/json",
        "data": event,
    })
}

/// The transition as the document of a webhook.
pub(super) fn document(event: &Event) -> Value {
    let mut document = json!(event);
    if let Some(fields) = document.as_object_mut() {
        fields.insert("id".to_owned(), Value::from(event.identity()));
    }
    document
}
