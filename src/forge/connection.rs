//! One request to a forge's API: where it goes, how it is proved, and what its answer means.

use std::fmt;
use std::time::Duration;

use chrono::Utc;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ForgeError;
use crate::egress::{self, Settings};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait when a forge says "too many" and not for how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// The longest wait that is believed: forges count by the hour.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The API of one forge, with what proves who asks. The proof goes to this scheme, host and port and nowhere else:
/// every address is made from the base, and no redirect is followed.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    base: Url,
    headers: HeaderMap,
}

impl Connection {
    pub(super) fn new(base: &Url, scheme: &str, token: &str, authorities: Option<&str>) -> Result<Self, ForgeError> {
        let proof = HeaderValue::try_from(format!("{scheme} {}", token.trim()));
        let mut proof = proof.map_err(|_| ForgeError::Declaration {
            field: "the token of the Secret",
            reason: "has letters that no token has",
        })?;
        proof.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, proof);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let encrypted = base.scheme() == "https";
        let client = egress::client(Settings { encrypted, timeout: TIMEOUT, authorities, proxies: true })?;
        Ok(Self { client, base: base.clone(), headers })
    }

    /// With one more header in every request, or another value of one.
    pub(super) fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// A request about what is at this path below the base. `doing` is for messages: "looking for a pull request".
    pub(super) fn get(&self, doing: &'static str, path: &[&str]) -> Call<'_> {
        self.call(doing, Method::GET, path)
    }

    pub(super) fn post(&self, doing: &'static str, path: &[&str], body: Value) -> Call<'_> {
        Call { body: Some(body), ..self.call(doing, Method::POST, path) }
    }

    pub(super) fn put(&self, doing: &'static str, path: &[&str], body: Value) -> Call<'_> {
        Call { body: Some(body), ..self.call(doing, Method::PUT, path) }
    }

    fn call(&self, doing: &'static str, method: Method, path: &[&str]) -> Call<'_> {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        Call { connection: self, doing, method, url, body: None }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (***)", self.base)
    }
}

/// One request, ready to be sent.
pub(super) struct Call<'a> {
    connection: &'a Connection,
    doing: &'static str,
    method: Method,
    url: Url,
    body: Option<Value>,
}

impl Call<'_> {
    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    /// Sends it and reads the answer.
    pub(super) async fn send<T: DeserializeOwned>(self) -> Result<T, ForgeError> {
        let doing = self.doing;
        let mut request =
            self.connection.client.request(self.method, self.url).headers(self.connection.headers.clone());
        if let Some(body) = &self.body {
            request = request.json(body);
        }
        let failed = |failure| ForgeError::failed(doing, failure);
        let response = request.send().await.map_err(|error| failed(egress::failure(&error)))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if !status.is_success() {
            return Err(refusal(doing, status, &headers));
        }
        let body = egress::read(response).await.map_err(failed)?;
        let what = "is spec.forge.api its address, and spec.forge.type its kind?";
        serde_json::from_slice(&body).map_err(|_| ForgeError::Unexpected { doing, what })
    }
}

fn refusal(doing: &'static str, status: StatusCode, headers: &HeaderMap) -> ForgeError {
    match status.as_u16() {
        // GitHub says "forbidden" for both of its limits; only headers tell them from a lack of rights.
        code @ (403 | 429) => match wait(headers) {
            Some(retry_after) => ForgeError::RateLimited { doing, retry_after },
            None if code == 429 => ForgeError::RateLimited { doing, retry_after: DEFAULT_WAIT },
            None => ForgeError::Denied { doing },
        },
        401 => ForgeError::Denied { doing },
        404 => ForgeError::NotFound { doing },
        300..=399 => ForgeError::Moved { doing },
        408 | 500..=599 => ForgeError::Unreachable { doing, why: "the forge has trouble of its own" },
        code @ 400..=499 => ForgeError::Refused { doing, code },
        _ => ForgeError::Unexpected { doing, what: "an HTTP status that nobody knows" },
    }
}

/// How long a forge asks to wait, if it does.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
    let seconds = number(RETRY_AFTER.as_str()).or_else(|| {
        let reset = |limit: &str| {
            let used_up = number(&format!("{limit}-remaining")) == Some(0);
            number(&format!("{limit}-reset")).filter(|_| used_up).map(|at| at - Utc::now().timestamp())
        };
        reset("x-ratelimit").or_else(|| reset("ratelimit"))
    })?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1)).min(LONGEST_WAIT))
}
