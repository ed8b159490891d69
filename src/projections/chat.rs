//! Messages for people: Slack's blocks, and adaptive cards as workflows of Microsoft Teams take them. Pure.
//!
//! Foreign text goes only where the other side parses nothing but its escapes: into Slack's `plain_text`, and into the
//! text runs of a card. So it can mention nobody and link nowhere.

use serde_json::{Value, json};

use super::{Event, cut};
use crate::api::TransitionEvent;

/// Letters of the text of a message that are shown: Slack takes 3000 in one block, and escaping makes five of one.
const LONGEST_MESSAGE: usize = 500;
/// Letters of a headline: Slack takes 150.
const LONGEST_TITLE: usize = 140;
/// Letters of one fact: Slack takes 2000, people less.
const LONGEST_FACT: usize = 300;

/// For an incoming webhook of Slack.
pub(super) fn slack(event: &Event) -> Value {
    let plain = |text: &str| json!({"type": "plain_text", "text": escaped(text), "emoji": false});
    let title = format!("{} {}", mark(event.event), title(event));
    let facts: Vec<Value> = facts(event)
        .into_iter()
        .map(|(name, value)| plain(&format!("{name}\n{}", cut(&value, LONGEST_FACT))))
        .collect();
    let mut blocks = vec![
        json!({"type": "section", "text": plain(&cut(&title, LONGEST_TITLE))}),
        json!({"type": "section", "fields": facts}),
    ];
    if !event.message.is_empty() {
        let message = cut(&event.message, LONGEST_MESSAGE);
        blocks.insert(1, json!({"type": "section", "text": plain(&message)}));
    }
    if let Some(page) = &event.page {
        // An address holds neither spaces nor the letters that end a link; where it does, it is none.
        if !page.contains(['|', '<', '>', ' ']) {
            let link = format!("<{}|The entry in the log>", escaped(page));
            blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": link}]}));
        }
    }
    json!({
        "text": escaped(&cut(&title, LONGEST_TITLE)),
        "blocks": blocks,
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

/// For a workflow of Teams that posts a card.
pub(super) fn teams(event: &Event) -> Value {
    let run = |text: &str| json!({"type": "TextRun", "text": text});
    let heading = json!({
        "type": "TextRun", "text": cut(&title(event), LONGEST_TITLE), "weight": "bolder", "size": "medium",
        "color": colour(event.event),
    });
    let mut body = vec![json!({"type": "RichTextBlock", "inlines": [heading]})];
    if !event.message.is_empty() {
        body.push(json!({"type": "RichTextBlock", "inlines": [run(&cut(&event.message, LONGEST_MESSAGE))]}));
    }
    for (name, value) in facts(event) {
        let name = json!({"type": "TextRun", "text": format!("{name}: "), "isSubtle": true});
        let inlines = [name, run(&cut(&value, LONGEST_FACT))];
        body.push(json!({"type": "RichTextBlock", "spacing": "none", "inlines": inlines}));
    }
    let mut card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "fallbackText": cut(&title(event), LONGEST_TITLE),
        "body": body,
    });
    if let (Some(page), Some(fields)) = (&event.page, card.as_object_mut()) {
        let open = json!({"type": "Action.OpenUrl", "title": "The entry in the log", "url": page});
        fields.insert("actions".to_owned(), json!([open]));
    }
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": card,
        }],
    })
}

fn title(event: &Event) -> String {
    format!("{}: {}", event.source(), event.summary())
}

fn facts(event: &Event) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Release", event.release.clone()), ("Reason", event.reason.clone())];
    let more = [("Verdict", &event.verdict), ("By", &event.actor), ("Commit", &event.source_commit)];
    facts.extend(more.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    facts.retain(|(_, value)| !value.is_empty());
    facts
}

/// The three letters that mean something in a message of Slack.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn mark(event: TransitionEvent) -> &'static str {
    match event {
        TransitionEvent::Promoted => "✅",
        TransitionEvent::Aborted | TransitionEvent::Denied => "❌",
        TransitionEvent::Paused | TransitionEvent::Held => "✋",
        _ => "▶",
    }
}

fn colour(event: TransitionEvent) -> &'static str {
    match event {
        TransitionEvent::Promoted => "good",
        TransitionEvent::Aborted | TransitionEvent::Denied => "attention",
        TransitionEvent::Paused | TransitionEvent::Held => "warning",
        _ => "default",
    }
}
