//! The webhook receiver: `POST /hooks/<namespace>/<name>` makes the operator look at that DeployRepo's branch now
//! instead of at its next interval. That is all it can do.
//!
//! - Nothing in the body is believed, or even parsed: it is only run through the HMAC as it comes in, so a caller
//!   costs the same few kilobytes whatever it sends.
//! - A repository with a `webhookToken` accepts `X-Hub-Signature-256` (GitHub, Gitea, Forgejo: HMAC-SHA256 of the
//!   body), `X-Gitlab-Token`, or `Authorization: Bearer`. Comparisons take the same time wherever they differ.
//! - A repository without a token accepts unsigned calls: a hint is harmless, and the limit of calls is the same.
//!   An empty token is a mistake and refuses everything.
//! - An unknown repository and a wrong signature get the same answer, so names cannot be found out.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::connections::BoundedListener;
use crate::telemetry::{Metrics, Shutdown};

/// What the receiver asks the rest of the operator.
pub trait Repositories: Send + Sync + 'static {
    /// Who may call the webhook of a DeployRepo. Should look whether it exists before it reads a Secret.
    fn access(&self, namespace: &str, name: &str) -> impl Future<Output = Access> + Send;

    /// Look at the repository's branch now. Must return at once.
    fn look_now(&self, namespace: &str, name: &str);
}

/// Who may call the webhook of a DeployRepo.
#[derive(Clone, PartialEq, Eq)]
pub enum Access {
    /// There is no such DeployRepo.
    Unknown,
    /// It could not be found out.
    Unavailable,
    /// It has no token: anybody.
    Open,
    /// Who knows this token.
    Token(String),
}

impl fmt::Debug for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Access::Unknown => "Unknown",
            Access::Unavailable => "Unavailable",
            Access::Open => "Open",
            Access::Token(_) => "Token(…)",
        })
    }
}

/// The bounds of the receiver.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The longest body.
    pub body_bytes: usize,
    /// The longest time for one call, from its first byte to the answer.
    pub call_timeout: Duration,
    /// The longest time a connection lives, whatever it does. Longer than `call_timeout`.
    pub connection_lifetime: Duration,
    /// Connections at once; further ones wait.
    pub connections: usize,
    /// Calls in all, good or bad: this many at once, then one each `attempt_interval`.
    pub attempts: u32,
    /// See `attempts`.
    pub attempt_interval: Duration,
    /// Accepted calls of one repository: this many at once, then one each `accept_interval`. Only calls that were
    /// allowed count, so a stranger cannot use up what belongs to a repository with a token.
    pub accepts: u32,
    /// See `accepts`.
    pub accept_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            call_timeout: Duration::from_secs(10),
            connection_lifetime: Duration::from_secs(15),
            connections: 64,
            attempts: 200,
            attempt_interval: Duration::from_millis(20),
            accepts: 10,
            accept_interval: Duration::from_secs(2),
        }
    }
}

/// Receives webhooks until asked to stop; calls that have begun get at most two seconds to end.
pub async fn serve_webhooks<R: Repositories>(
    listener: TcpListener,
    repositories: R,
    limits: Limits,
    metrics: Metrics,
    shutdown: Shutdown,
) -> io::Result<()> {
    let listener = BoundedListener::new(listener, limits.connections, limits.connection_lifetime);
    let receiver = Receiver {
        attempts: Mutex::new(Bucket::new(limits.attempts, limits.attempt_interval)),
        accepts: Mutex::new(HashMap::new()),
        repositories,
        limits,
        metrics,
    };
    let app = Router::new().route("/hooks/{namespace}/{name}", post(receive::<R>)).with_state(Arc::new(receiver));
    let requested = shutdown.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move { requested.requested().await });
    tokio::select! {
        result = async { serving.await } => result,
        () = async {
            shutdown.requested().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        } => Ok(()),
    }
}

struct Receiver<R> {
    repositories: R,
    limits: Limits,
    metrics: Metrics,
    attempts: Mutex<Bucket>,
    accepts: Mutex<HashMap<(String, String), Bucket>>,
}

/// How a call ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    Refused,
    Limited(Duration),
    TooLarge,
    Late,
    Unavailable,
}

async fn receive<R: Repositories>(
    State(receiver): State<Arc<Receiver<R>>>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let verdict = match path {
        Ok(Path((namespace, name))) => {
            timeout(receiver.limits.call_timeout, receiver.judge(&namespace, &name, &headers, body))
                .await
                .unwrap_or(Verdict::Late)
        }
        Err(_) => Verdict::Refused,
    };
    receiver.metrics.webhook(match verdict {
        Verdict::Accepted => "accepted",
        Verdict::Refused => "refused",
        Verdict::Limited(_) => "limited",
        Verdict::TooLarge | Verdict::Late => "invalid",
        Verdict::Unavailable => "unavailable",
    });
    verdict.into_response()
}

impl IntoResponse for Verdict {
    fn into_response(self) -> Response {
        match self {
            Verdict::Accepted => (StatusCode::ACCEPTED, "the branch is looked at now\n").into_response(),
            Verdict::Refused => (
                StatusCode::NOT_FOUND,
                "there is no DeployRepo of that name here, or the call is not signed with its webhookToken\n",
            )
                .into_response(),
            Verdict::Limited(wait) => (
                StatusCode::TOO_MANY_REQUESTS,
                [(header::RETRY_AFTER, wait.as_secs().saturating_add(1).to_string())],
                "too many calls; the branch is looked at within its interval anyway\n",
            )
                .into_response(),
            Verdict::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is too long\n").into_response(),
            Verdict::Late => (StatusCode::REQUEST_TIMEOUT, "the call took too long\n").into_response(),
            Verdict::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the call cannot be checked now; the branch is looked at within its interval anyway\n",
            )
                .into_response(),
        }
    }
}

impl<R: Repositories> Receiver<R> {
    async fn judge(&self, namespace: &str, name: &str, headers: &HeaderMap, body: Body) -> Verdict {
        let now = Instant::now();
        if let Err(wait) = self.attempts.lock().unwrap_or_else(PoisonError::into_inner).take(now) {
            return Verdict::Limited(wait);
        }
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > u64::try_from(self.limits.body_bytes).unwrap_or(u64::MAX)) {
            return Verdict::TooLarge;
        }
        // What cannot be a name is not asked for, but from here on takes the same way as what is unknown.
        let access = if is_name(namespace) && is_name(name) {
            self.repositories.access(namespace, name).await
        } else {
            Access::Unknown
        };
        let Some(proof) = Proof::begin(&access, headers) else {
            return Verdict::Refused;
        };
        let proof = match read(proof, body, self.limits.body_bytes).await {
            Ok(proof) => proof,
            Err(verdict) => return verdict,
        };
        let proven = proof.holds();
        match access {
            Access::Unknown => return Verdict::Refused,
            Access::Unavailable => return Verdict::Unavailable,
            Access::Token(_) if !proven => return Verdict::Refused,
            Access::Open | Access::Token(_) => {}
        }
        if let Err(wait) = self.accept(namespace, name, Instant::now()) {
            return Verdict::Limited(wait);
        }
        self.repositories.look_now(namespace, name);
        Verdict::Accepted
    }

    fn accept(&self, namespace: &str, name: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.accepts.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= 1024 {
            // Repositories come and go; a full bucket says nothing that a new one would not.
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        buckets
            .entry((namespace.to_owned(), name.to_owned()))
            .or_insert_with(|| Bucket::new(self.limits.accepts, self.limits.accept_interval))
            .take(now)
    }
}

/// Reads the whole body through the proof, and keeps nothing of it.
async fn read(mut proof: Proof, body: Body, limit: usize) -> Result<Proof, Verdict> {
    let mut body = body.into_data_stream();
    let mut length = 0usize;
    while let Some(chunk) = body.next().await {
        let Ok(chunk) = chunk else {
            return Err(Verdict::Late);
        };
        length = length.saturating_add(chunk.len());
        if length > limit {
            return Err(Verdict::TooLarge);
        }
        proof.update(&chunk);
    }
    Ok(proof)
}

/// Whether this can be the name of a namespace or an object.
fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && bytes.first().is_some_and(|first| letter(*first))
        && bytes.last().is_some_and(|last| letter(*last))
        && bytes.iter().all(|byte| letter(*byte) || *byte == b'-' || *byte == b'.')
}

/// The keyed digest of what the caller should have sent, on the way to being compared with what it did send.
struct Proof {
    digest: Hmac<Sha256>,
    expected: [u8; 32],
    of_body: bool,
    possible: bool,
}

impl Proof {
    /// Without a token, or without a claim that could be checked, it goes through the same motions in vain. `None`
    /// when no key can be made of the token, which HMAC does not know.
    fn begin(access: &Access, headers: &HeaderMap) -> Option<Self> {
        let token = match access {
            Access::Token(token) => token.as_str(),
            Access::Unknown | Access::Unavailable | Access::Open => "",
        };
        let text = |name: &str| headers.get(name).map(|value| value.as_bytes());
        let mut proof = Self {
            digest: <Hmac<Sha256> as Mac>::new_from_slice(token.as_bytes()).ok()?,
            expected: [0; 32],
            of_body: true,
            possible: !token.is_empty(),
        };
        if let Some(signature) = text("x-hub-signature-256") {
            match signature.strip_prefix(b"sha256=").and_then(unhex) {
                Some(expected) => proof.expected = expected,
                None => proof.possible = false,
            }
            return Some(proof);
        }
        let bearer = || {
            let value = text("authorization")?;
            let (scheme, secret) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
        };
        match text("x-gitlab-token").or_else(bearer) {
            // Comparing digests keyed with the token compares the secrets without a hint at where they differ.
            Some(secret) => {
                proof.of_body = false;
                proof.digest.update(token.as_bytes());
                let mut claimed = <Hmac<Sha256> as Mac>::new_from_slice(token.as_bytes()).ok()?;
                claimed.update(secret);
                proof.expected = claimed.finalize().into_bytes().into();
            }
            None => proof.possible = false,
        }
        Some(proof)
    }

    fn update(&mut self, bytes: &[u8]) {
        if self.of_body {
            self.digest.update(bytes);
        }
    }

    fn holds(self) -> bool {
        // In constant time.
        self.digest.verify_slice(&self.expected).is_ok() && self.possible
    }
}

/// 64 hexadecimal digits.
fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? * 16 + digit(*low)?;
    }
    Some(bytes)
}

/// A token bucket, kept as the time at which it will be full again.
struct Bucket {
    size: u32,
    interval: Duration,
    full_at: Option<Instant>,
}

impl Bucket {
    fn new(size: u32, interval: Duration) -> Self {
        Self { size: size.max(1), interval, full_at: None }
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }

    /// Takes one, or says how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let owed = self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now)) + self.interval;
        let most = self.interval * self.size;
        if owed > most {
            return Err(owed - most);
        }
        self.full_at = Some(now + owed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Answer, receive as receive_answer, send};
    use super::*;
    use crate::api::names::hex;
    use crate::telemetry::ShutdownTrigger;
    use proptest::prelude::*;
    use std::net::SocketAddr;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    const TOKEN: &str = "correct horse";

    #[derive(Clone, Default)]
    struct Looks(Arc<Mutex<Vec<String>>>);

    impl Looks {
        fn seen(&self) -> Vec<String> {
            self.0.lock().unwrap().clone()
        }
    }

    impl Repositories for Looks {
        async fn access(&self, namespace: &str, name: &str) -> Access {
            assert!(is_name(namespace) && is_name(name), "{namespace:?}/{name:?} is no name to ask for");
            match (namespace, name) {
                ("shop", "signed") => Access::Token(TOKEN.into()),
                ("shop", "open") => Access::Open,
                ("shop", "empty") => Access::Token(String::new()),
                ("shop", "away") => Access::Unavailable,
                ("shop", "hangs") => std::future::pending().await,
                _ => Access::Unknown,
            }
        }

        fn look_now(&self, namespace: &str, name: &str) {
            self.0.lock().unwrap().push(format!("{namespace}/{name}"));
        }
    }

    struct Bench {
        address: SocketAddr,
        looks: Looks,
        metrics: Metrics,
        trigger: ShutdownTrigger,
        serving: JoinHandle<io::Result<()>>,
    }

    async fn serve(limits: Limits) -> Bench {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let looks = Looks::default();
        let metrics = Metrics::new();
        let (trigger, shutdown) = Shutdown::new();
        let serving = tokio::spawn(serve_webhooks(listener, looks.clone(), limits, metrics.clone(), shutdown));
        Bench { address, looks, metrics, trigger, serving }
    }

    fn sign(token: &str, body: &[u8]) -> String {
        let mut digest = <Hmac<Sha256> as Mac>::new_from_slice(token.as_bytes()).unwrap();
        digest.update(body);
        format!("X-Hub-Signature-256: sha256={}\r\n", hex(&digest.finalize().into_bytes()))
    }

    fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: sluice\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    }

    impl Bench {
        async fn post(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
            send(self.address, &request(path, headers, body)).await.expect("an answer")
        }
    }

    /// What a caller can tell apart, without the date.
    fn visible(answer: &Answer) -> (u16, String, &str) {
        let head = answer.head.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n");
        (answer.status, head, &answer.body)
    }

    #[tokio::test]
    async fn each_forge_can_prove_that_it_knows_the_token() {
        let bench = serve(Limits::default()).await;
        let body = br#"{"ref":"refs/heads/main"}"#;
        for headers in [
            sign(TOKEN, body),
            sign(TOKEN, body).to_uppercase().replace("SHA256=", "sha256="),
            format!("X-Gitlab-Token: {TOKEN}\r\n"),
            format!("Authorization: Bearer {TOKEN}\r\n"),
            format!("authorization: bearer {TOKEN}\r\n"),
        ] {
            let answer = bench.post("/hooks/shop/signed", &headers, body).await;
            assert_eq!((answer.status, answer.body.as_str()), (202, "the branch is looked at now\n"), "{headers}");
        }
        assert_eq!(bench.looks.seen(), ["shop/signed"; 5]);
        assert!(bench.metrics.encode().contains(r#"sluice_webhooks_total{result="accepted"} 5"#));
    }

    #[tokio::test]
    async fn what_does_not_prove_it_is_refused_and_looks_like_what_does_not_exist() {
        let bench = serve(Limits::default()).await;
        let body = b"{}";
        let unknown = bench.post("/hooks/shop/nothing", &sign(TOKEN, body), body).await;
        assert_eq!(unknown.status, 404);
        for (path, headers) in [
            ("/hooks/shop/signed", String::new()),
            ("/hooks/shop/signed", sign("wrong", body)),
            ("/hooks/shop/signed", sign("", body)),
            ("/hooks/shop/signed", sign(TOKEN, b"another body")),
            ("/hooks/shop/signed", "X-Hub-Signature-256: sha256=\r\n".into()),
            ("/hooks/shop/signed", "X-Hub-Signature-256: sha1=0123\r\n".into()),
            ("/hooks/shop/signed", format!("X-Hub-Signature-256: sha256={}\r\n", "é".repeat(32))),
            // A wrong signature is not outweighed by a right token.
            ("/hooks/shop/signed", format!("{}X-Gitlab-Token: {TOKEN}\r\n", sign("wrong", body))),
            ("/hooks/shop/signed", "X-Gitlab-Token: \r\n".into()),
            ("/hooks/shop/signed", "X-Gitlab-Token: correct\r\n".into()),
            ("/hooks/shop/signed", "Authorization: Bearer\r\n".into()),
            ("/hooks/shop/signed", "Authorization: B\r\n".into()),
            ("/hooks/shop/signed", format!("Authorization: Basic {TOKEN}\r\n")),
            ("/hooks/shop/empty", sign("", body)),
            ("/hooks/shop/empty", "X-Gitlab-Token: \r\n".into()),
            ("/hooks/shop/empty", String::new()),
            ("/hooks/other/signed", sign(TOKEN, body)),
            ("/hooks/shop/..", sign(TOKEN, body)),
            ("/hooks/shop/signed%2Fother", sign(TOKEN, body)),
            ("/hooks/shop/%ff%fe", sign(TOKEN, body)),
            ("/hooks/shop/%00", sign(TOKEN, body)),
        ] {
            let answer = bench.post(path, &headers, body).await;
            assert_eq!(visible(&answer), visible(&unknown), "{path} {headers}");
        }
        assert!(bench.looks.seen().is_empty(), "{:?}", bench.looks.seen());
    }

    #[tokio::test]
    async fn a_repository_without_a_token_takes_a_hint_from_anybody_whatever_the_body_says() {
        let bench = serve(Limits::default()).await;
        for body in [&b""[..], b"null", b"{\"repository\":null}", b"\xff\xfe\x00", b"{\"commits\":[]}"] {
            assert_eq!(bench.post("/hooks/shop/open", "X-GitHub-Event: unheard-of\r\n", body).await.status, 202);
        }
        assert_eq!(bench.looks.seen(), ["shop/open"; 5]);
    }

    #[tokio::test]
    async fn when_the_token_cannot_be_read_the_caller_is_told_to_come_back() {
        let bench = serve(Limits { call_timeout: Duration::from_millis(300), ..Limits::default() }).await;
        assert_eq!(bench.post("/hooks/shop/away", &sign(TOKEN, b""), b"").await.status, 503);
        assert_eq!(bench.post("/hooks/shop/hangs", &sign(TOKEN, b""), b"").await.status, 408);
        assert!(bench.looks.seen().is_empty());
    }

    #[tokio::test]
    async fn calls_of_one_repository_are_limited_and_no_other_one_suffers() {
        let bench = serve(Limits { accepts: 3, accept_interval: Duration::from_secs(900), ..Limits::default() }).await;
        for _ in 0..20 {
            // Strangers do not use up what belongs to the repository.
            assert_eq!(bench.post("/hooks/shop/signed", &sign("wrong", b""), b"").await.status, 404);
        }
        for _ in 0..3 {
            assert_eq!(bench.post("/hooks/shop/signed", &sign(TOKEN, b""), b"").await.status, 202);
        }
        let answer = bench.post("/hooks/shop/signed", &sign(TOKEN, b""), b"").await;
        assert_eq!(answer.status, 429);
        let wait = answer.head.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
        assert!((1..=900).contains(&wait.parse::<u64>().unwrap()), "{wait}");
        assert_eq!(bench.post("/hooks/shop/open", "", b"").await.status, 202);
        assert_eq!(bench.looks.seen(), ["shop/signed", "shop/signed", "shop/signed", "shop/open"]);
    }

    #[tokio::test]
    async fn a_flood_of_calls_is_limited_before_anything_is_looked_up() {
        let limits = Limits { attempts: 2, attempt_interval: Duration::from_secs(900), ..Limits::default() };
        let bench = serve(limits).await;
        for expected in [404, 404, 429, 429] {
            assert_eq!(bench.post("/hooks/a/b", "", b"").await.status, expected);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_not_read() {
        let bench = serve(Limits::default()).await;
        let limit = 1 << 20;
        let body = vec![b' '; limit];
        assert_eq!(bench.post("/hooks/shop/signed", &sign(TOKEN, &body), &body).await.status, 202, "just fits");
        // One that says so is answered before it sends anything.
        let head =
            "POST /hooks/shop/open HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: 1000000000\r\n\r\n";
        assert_eq!(send(bench.address, head.as_bytes()).await.unwrap().status, 413);
        // One that does not say so is cut off.
        let mut chunked =
            b"POST /hooks/shop/open HTTP/1.1\r\nHost: s\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_vec();
        chunked.extend_from_slice(format!("{:x}\r\n", limit + 1).as_bytes());
        chunked.extend(std::iter::repeat_n(b' ', limit + 1));
        chunked.extend_from_slice(b"\r\n0\r\n\r\n");
        let answer = send(bench.address, &chunked).await;
        assert!(answer.is_none_or(|answer| answer.status == 413));
        assert_eq!(bench.looks.seen(), ["shop/signed"]);
    }

    #[tokio::test]
    async fn slow_callers_are_cut_off_and_do_not_keep_others_out() {
        let limits = Limits {
            call_timeout: Duration::from_millis(200),
            connection_lifetime: Duration::from_millis(500),
            connections: 2,
            ..Limits::default()
        };
        let bench = serve(limits).await;
        let mut slow_head = TcpStream::connect(bench.address).await.unwrap();
        slow_head.write_all(b"POST /hooks/shop/open HTTP/1.1\r\nX-Slow: ").await.unwrap();
        let mut slow_body = TcpStream::connect(bench.address).await.unwrap();
        slow_body
            .write_all(b"POST /hooks/shop/open HTTP/1.1\r\nHost: s\r\nConnection: close\r\nContent-Length: 9\r\n\r\nx")
            .await
            .unwrap();
        // Waits for a place, and gets one.
        assert_eq!(bench.post("/hooks/shop/open", "", b"").await.status, 202);
        assert_eq!(receive_answer(slow_body).await.unwrap().status, 408);
        assert_eq!(receive_answer(slow_head).await, None);
        assert_eq!(bench.looks.seen(), ["shop/open"]);
    }

    #[tokio::test]
    async fn other_methods_and_paths_do_nothing() {
        let bench = serve(Limits::default()).await;
        for (line, status) in [
            ("GET /hooks/shop/open", 405),
            ("PUT /hooks/shop/open", 405),
            ("POST /", 404),
            ("POST /hooks/shop", 404),
            ("POST /hooks/shop/open/more", 404),
            ("GET /metrics", 404),
        ] {
            let request = format!("{line} HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n");
            assert_eq!(send(bench.address, request.as_bytes()).await.unwrap().status, status, "{line}");
        }
        assert!(bench.looks.seen().is_empty());
    }

    #[tokio::test]
    async fn it_stops_when_asked_though_a_caller_stays() {
        let bench = serve(Limits::default()).await;
        let mut idle = TcpStream::connect(bench.address).await.unwrap();
        idle.write_all(b"POST /hooks/shop/open HTTP/1.1\r\n").await.unwrap();
        bench.trigger.signal();
        tokio::time::timeout(Duration::from_secs(10), bench.serving).await.unwrap().unwrap().unwrap();
    }

    #[test]
    fn no_token_is_ever_shown() {
        assert_eq!(format!("{:?}", Access::Token(TOKEN.into())), "Token(…)");
    }

    #[test]
    fn a_bucket_gives_a_burst_and_then_the_rate() {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let mut bucket = Bucket::new(3, 2 * second);
        assert!((0..3).all(|_| bucket.take(begun).is_ok()));
        assert_eq!(bucket.take(begun), Err(2 * second));
        assert_eq!(bucket.take(begun + second), Err(second));
        assert!(bucket.take(begun + 2 * second).is_ok());
        assert!(bucket.take(begun + 2 * second).is_err());
        assert!(!bucket.is_full(begun + 7 * second));
        assert!(bucket.is_full(begun + 8 * second));
        assert!((0..3).all(|_| bucket.take(begun + 100 * second).is_ok()));
        assert!(bucket.take(begun + 100 * second).is_err(), "no more than the burst, however long it rested");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn nothing_that_anybody_sends_proves_a_token_it_does_not_know(
            signature in proptest::collection::vec(any::<u8>(), 0..80),
            token in ".{0,40}",
            body in proptest::collection::vec(any::<u8>(), 0..200),
            header in 0usize..3,
        ) {
            let mut headers = HeaderMap::new();
            let name = ["x-hub-signature-256", "x-gitlab-token", "authorization"][header];
            if let Ok(value) = axum::http::HeaderValue::from_bytes(&signature) {
                headers.insert(name, value);
            }
            prop_assume!(signature != token.as_bytes());
            let mut proof = Proof::begin(&Access::Token(token), &headers).unwrap();
            proof.update(&body);
            prop_assert!(!proof.holds());
        }
    }
}
