//! A server that takes a request for each transition.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
use sha2::Sha256;

use super::{DeliveryError, Event, chat, cloud_event};
use crate::api::names::hex;
use crate::egress::{self, Settings};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when a receiver says "too many" and not for how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// The longest wait that is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The identity of what is told: the same when it is told again.
const DELIVERY: HeaderName = HeaderName::from_static("x-sluice-delivery");
/// When it was sent, in seconds since 1970. Part of what is signed, so that an old request is known as one.
const TIMESTAMP: HeaderName = HeaderName::from_static("x-sluice-timestamp");
/// HMAC-SHA-256 of `<timestamp>.<body>`, as `sha256=<hexadecimal>`.
const SIGNATURE: HeaderName = HeaderName::from_static("x-sluice-signature-256");

/// What a receiver understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A CloudEvent 1.0, structured.
    CloudEvent,
    /// The plain document.
    Document,
    /// A message of Slack.
    Slack,
    /// A message of Microsoft Teams.
    Teams,
}

/// A server that takes a request for each transition. Cheap to clone.
#[derive(Clone)]
pub struct Receiver {
    format: Format,
    client: Client,
    address: Url,
    token: Option<String>,
}

impl Receiver {
    /// At an address, which often is a secret itself. With a token each request is signed. `authorities` are the PEM
    /// certificates to believe; those of the system when absent.
    ///
    /// # Errors
    /// When the address or the authorities cannot be used.
    pub fn new(
        format: Format,
        address: &str,
        token: Option<String>,
        authorities: Option<&str>,
    ) -> Result<Self, DeliveryError> {
        let refuse = |reason| DeliveryError::Declaration { field: "address", reason };
        let address = Url::parse(address.trim()).map_err(|_| refuse("is not an address"))?;
        egress::check(&address).map_err(refuse)?;
        let encrypted = address.scheme() == "https";
        let client = egress::client(Settings { encrypted, timeout: TIMEOUT, authorities, proxies: true })?;
        Ok(Self { format, client, address, token })
    }

    pub(super) async fn deliver(&self, event: &Event, now: DateTime<Utc>) -> Result<(), DeliveryError> {
        let (body, headers) = self.request(event, now)?;
        let request = self.client.post(self.address.clone()).headers(headers).body(body);
        let response = request.send().await.map_err(|error| egress::failure(&error))?;
        // What it says is nobody's business: the status is the answer.
        answer(response.status(), response.headers())
    }

    fn request(&self, event: &Event, now: DateTime<Utc>) -> Result<(String, HeaderMap), DeliveryError> {
        let body = match self.format {
            Format::CloudEvent => cloud_event::cloud_event(event),
            Format::Document => cloud_event::document(event),
            Format::Slack => chat::slack(event),
            Format::Teams => chat::teams(event),
        }
        .to_string();
        let mut headers = HeaderMap::new();
        let content_type = match self.format {
            Format::CloudEvent => cloud_event::CONTENT_TYPE,
            Format::Document | Format::Slack | Format::Teams => "application/json",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if matches!(self.format, Format::CloudEvent | Format::Document) {
            let unfit = |_| DeliveryError::Declaration { field: "the Rollout's uid", reason: "fits into no header" };
            headers.insert(DELIVERY, HeaderValue::try_from(event.identity()).map_err(unfit)?);
            headers.insert(TIMESTAMP, HeaderValue::from(now.timestamp()));
            if let Some(token) = &self.token {
                let unfit = |_| DeliveryError::Declaration { field: "token", reason: "signs nothing" };
                let signature = signature(token, now.timestamp(), &body)?;
                headers.insert(SIGNATURE, HeaderValue::try_from(signature).map_err(unfit)?);
            }
        }
        Ok((body, headers))
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receiver({:?}, ***)", self.format)
    }
}

/// HMAC-SHA-256 of the time and the body, as a header.
pub(super) fn signature(token: &str, timestamp: i64, body: &str) -> Result<String, DeliveryError> {
    let digest = <Hmac<Sha256> as Mac>::new_from_slice(token.as_bytes());
    let mut digest = digest.map_err(|_| DeliveryError::Declaration { field: "token", reason: "is no key" })?;
    digest.update(format!("{timestamp}.").as_bytes());
    digest.update(body.as_bytes());
    Ok(format!("sha256={}", hex(&digest.finalize().into_bytes())))
}

fn answer(status: StatusCode, headers: &HeaderMap) -> Result<(), DeliveryError> {
    let code = status.as_u16();
    let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let wait = wait.map(|seconds| Duration::from_secs(seconds).clamp(Duration::from_secs(1), LONGEST_WAIT));
    match (code, wait) {
        (200..=299, _) => Ok(()),
        (300..=399, _) => Err(DeliveryError::Moved),
        (401 | 403 | 407, _) => Err(DeliveryError::Denied { code }),
        (404 | 410, _) => Err(DeliveryError::NotFound { code }),
        (429 | 503, Some(retry_after)) => Err(DeliveryError::RateLimited { retry_after }),
        (429, None) => Err(DeliveryError::RateLimited { retry_after: DEFAULT_WAIT }),
        (400..=499, _) if code != 408 => Err(DeliveryError::Refused { code }),
        _ => Err(DeliveryError::Trouble { code }),
    }
}
