//! Prometheus, and anything that answers its HTTP API.
//!
//! The client is `prometheus-http-query`; the answer is decoded here, because what that crate drops matters:
//! warnings (a partial answer) and numbers that are none. It asks with the guards of [`crate::egress`], and without
//! the proxies of the environment: a Prometheus is near.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use prometheus_http_query::Client;
use reqwest::{
    StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, MetricError, Sample};
use crate::api::PrometheusServer;
use crate::egress::{self, Failure, MAX_BODY, Settings};

/// The most series that are judged.
pub const MAX_SERIES: usize = 1000;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// A query that takes longer would rather hold up the others than help a rollout.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_MAX_AGE: TimeDelta = TimeDelta::minutes(2);

/// One Prometheus, with its connections.
pub struct Prometheus {
    client: Client,
    headers: HeaderMap,
    timeout: Duration,
    max_age: TimeDelta,
}

impl Prometheus {
    /// Prepares to ask a server; says which field cannot be used.
    pub fn new(server: &PrometheusServer) -> Result<Self, MetricError> {
        let declared = |field: &str, message: &str| MetricError::Declaration {
            field: format!("spec.prometheus.{field}"),
            message: message.to_owned(),
        };
        let timeout = server.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.std()).min(LONGEST_TIMEOUT);
        if timeout.is_zero() {
            return Err(declared("timeout", "a query needs some time"));
        }
        let address = server.address.trim_end_matches('/');
        let encrypted = address.starts_with("https://");
        if !encrypted && !address.starts_with("http://") {
            return Err(declared("address", "must begin with http:// or https://"));
        }
        let settings = Settings { encrypted, timeout, authorities: None, proxies: false };
        let http = egress::client(settings).map_err(|error| declared("address", &error.to_string()))?;
        let client = Client::from(http, address).map_err(|_| declared("address", "is not an address"))?;
        let url = client.base_url();
        if !url.username().is_empty() || url.password().is_some() {
            return Err(declared("address", "may hold no user and no password: use bearerToken"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(declared("address", "is a base address: without \"?\" and \"#\""));
        }
        egress::check(url).map_err(|why| declared("address", why))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &server.headers {
            let field = format!("headers[{name}]");
            let parsed = name.parse::<HeaderName>().map_err(|_| declared(&field, "is not a header's name"))?;
            let connection = ["host", "content-length", "transfer-encoding", "connection", "content-type", "expect"];
            if connection.contains(&parsed.as_str()) {
                return Err(declared(&field, "belongs to the connection and cannot be set"));
            }
            if parsed == AUTHORIZATION && server.bearer_token.is_some() {
                return Err(declared(&field, "cannot be given together with bearerToken"));
            }
            let mut value = value.parse::<HeaderValue>().map_err(|_| declared(&field, "has no valid value"))?;
            value.set_sensitive(true);
            headers.insert(parsed, value);
        }
        let max_age = server.max_sample_age.map_or(DEFAULT_MAX_AGE, |age| age.delta());
        Ok(Self { client, headers, timeout, max_age })
    }

    /// How long one query may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks for the value of a query at the source's present time.
    pub async fn query(&self, promql: &str, token: Option<&str>) -> Result<Answer, MetricError> {
        let late = || MetricError::Timeout { seconds: self.timeout.as_secs().max(1) };
        // The client has the same limit; this one also covers what it does before and after the request.
        match tokio::time::timeout(self.timeout, self.ask(promql, token)).await {
            Ok(Err(MetricError::Timeout { .. })) | Err(_) => Err(late()),
            Ok(answer) => answer,
        }
    }

    async fn ask(&self, promql: &str, token: Option<&str>) -> Result<Answer, MetricError> {
        let mut headers = self.headers.clone();
        if let Some(token) = token {
            let mut value =
                HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| MetricError::Declaration {
                    field: "spec.prometheus.bearerToken".into(),
                    message: "the Secret's value is not a token".into(),
                })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let query = || {
            let milliseconds = i64::try_from(self.timeout.as_millis()).unwrap_or(i64::MAX);
            let mut query = self.client.query(promql).timeout(milliseconds);
            for (name, value) in &headers {
                query = query.header(name.clone(), value.clone());
            }
            query
        };
        // POST, because a long query does not fit into an address; some proxies let only GET through.
        let mut response = query().post_raw().await.map_err(failure)?;
        if matches!(response.status(), StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) {
            response = query().get_raw().await.map_err(failure)?;
        }
        let status = response.status();
        let body = egress::read(response).await.map_err(unreachable);
        if !status.is_success() {
            // Prometheus says in the body what kind of error it is; a proxy says nothing we repeat.
            return Err(body.ok().and_then(|body| failed_query(&body)).unwrap_or_else(|| refusal(status)));
        }
        decode(&body?, self.max_age)
    }
}

#[derive(Deserialize)]
struct Reply {
    status: String,
    data: Option<Data>,
    #[serde(default)]
    warnings: Vec<serde::de::IgnoredAny>,
    #[serde(rename = "errorType")]
    error_type: Option<String>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "resultType")]
    result_type: String,
    result: Value,
}

fn decode(body: &[u8], max_age: TimeDelta) -> Result<Answer, MetricError> {
    let malformed = |what| MetricError::Malformed { what };
    let reply: Reply = serde_json::from_slice(body).map_err(|_| malformed("not the JSON that was expected"))?;
    if reply.status != "success" {
        return Err(failed_query(body).unwrap_or_else(|| malformed("neither success nor error")));
    }
    let data = reply.data.ok_or_else(|| malformed("no data"))?;
    let samples = match (data.result_type.as_str(), &data.result) {
        ("scalar", sample) => vec![decode_sample(sample)?],
        ("vector", Value::Array(series)) if series.len() > MAX_SERIES => {
            return Err(MetricError::TooManySeries { limit: MAX_SERIES });
        }
        ("vector", Value::Array(series)) => series.iter().map(decode_series).collect::<Result<_, _>>()?,
        ("vector", _) => return Err(malformed("a vector that is no list")),
        ("matrix", _) => return Err(MetricError::Shape { found: "a range of values (a matrix)" }),
        ("string", _) => return Err(MetricError::Shape { found: "a text" }),
        _ => return Err(malformed("an unknown type of result")),
    };
    Ok(Answer { samples, warnings: reply.warnings.len(), max_age })
}

fn decode_series(series: &Value) -> Result<Sample, MetricError> {
    match series.get("value") {
        Some(sample) => decode_sample(sample),
        None if series.get("histogram").is_some() => Err(MetricError::Shape { found: "a histogram" }),
        None => Err(MetricError::Malformed { what: "a series without a value" }),
    }
}

/// `[1435781451.781, "0.02"]`: the seconds are a number, the value is a text.
fn decode_sample(sample: &Value) -> Result<Sample, MetricError> {
    let malformed = || MetricError::Malformed { what: "a sample that is not a time and a number" };
    let [time, value] = sample.as_array().map(Vec::as_slice).unwrap_or_default() else { return Err(malformed()) };
    let since_epoch = time.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let since_epoch = since_epoch.and_then(|duration| TimeDelta::from_std(duration).ok());
    let at = since_epoch.and_then(|delta| DateTime::<Utc>::UNIX_EPOCH.checked_add_signed(delta));
    let value = value.as_str().and_then(|text| text.parse::<f64>().ok());
    at.zip(value).map(|(at, value)| Sample { at, value }).ok_or_else(malformed)
}

/// The class of an error that Prometheus itself reports. Its text stays with it.
fn failed_query(body: &[u8]) -> Option<MetricError> {
    let reply: Reply = serde_json::from_slice(body).ok()?;
    let why = match reply.error_type.as_deref()? {
        "bad_data" => "it is not valid PromQL",
        "execution" => "it failed when it was run",
        "timeout" => "it took too long there",
        "canceled" => "it was cancelled there",
        "unavailable" | "internal" => "it has trouble of its own",
        "not_found" => "there is no such API",
        _ => "it reports an error",
    };
    Some(MetricError::Query { why })
}

fn refusal(status: StatusCode) -> MetricError {
    let hint = match status.as_u16() {
        401 | 403 => ": the credentials are not accepted",
        404 => ": is the address the base of a Prometheus API?",
        429 => ": too many requests",
        300..=399 => ": a redirect, which is not followed",
        500..=599 => ": the server has trouble of its own",
        _ => "",
    };
    MetricError::Status { code: status.as_u16(), hint }
}

fn failure(error: prometheus_http_query::Error) -> MetricError {
    unreachable(egress::failure(&error))
}

/// The class of a failed request.
fn unreachable(failure: Failure) -> MetricError {
    match failure {
        // The caller knows the limit.
        Failure::Timeout => MetricError::Timeout { seconds: 0 },
        Failure::Unreachable(why) => MetricError::Unreachable { why },
        Failure::TooLarge => MetricError::TooLarge { limit: MAX_BODY },
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

    use axum::{
        Router,
        body::{Body, Bytes},
        extract::Request,
        http::{Method, StatusCode, header},
        response::{IntoResponse, Response},
    };
    use futures::{StreamExt, stream};
    use tokio::{net::TcpListener, sync::Mutex, time::Instant};

    use super::{MAX_BODY, Prometheus};
    use crate::{
        api::{PrometheusServer, SecretKey},
        metrics::{Answer, MetricError},
    };

    /// Planted in whatever the server says; must never come back to us.
    const CANARY: &str = "canary-text-of-the-server";
    const TOKEN: &str = "token-that-nobody-may-see";

    #[derive(Debug, Clone)]
    struct Seen {
        method: Method,
        path: String,
        authorization: Option<String>,
        tenant: Option<String>,
        body: String,
    }

    /// A scripted server on a port of its own; answers every request with what `script` makes.
    struct Server {
        address: SocketAddr,
        seen: Arc<Mutex<Vec<Seen>>>,
    }

    impl Server {
        async fn start(script: impl Fn(&Method) -> Response + Clone + Send + Sync + 'static) -> Self {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let record = Arc::clone(&seen);
            let router = Router::new().fallback(move |request: Request| {
                let (script, record) = (script.clone(), Arc::clone(&record));
                async move {
                    let (parts, body) = request.into_parts();
                    let text = |name: header::HeaderName| {
                        parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
                    };
                    let seen = Seen {
                        method: parts.method.clone(),
                        path: parts.uri.path().to_owned(),
                        authorization: text(header::AUTHORIZATION),
                        tenant: text("x-scope-orgid".parse().unwrap()),
                        body: String::from_utf8(axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap(),
                    };
                    record.lock().await.push(seen);
                    script(&parts.method)
                }
            });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move { axum::serve(listener, router).await });
            Self { address, seen }
        }

        fn prometheus(&self) -> Prometheus {
            prometheus(&format!("http://{}", self.address))
        }
    }

    fn declared(address: &str) -> PrometheusServer {
        PrometheusServer {
            address: address.into(),
            bearer_token: None,
            headers: BTreeMap::new(),
            timeout: Some("1s".parse().unwrap()),
            max_sample_age: None,
        }
    }

    fn prometheus(address: &str) -> Prometheus {
        drop(rustls::crypto::ring::default_provider().install_default());
        Prometheus::new(&declared(address)).unwrap()
    }

    fn json(body: impl Into<Body>) -> Response {
        ([(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
    }

    fn vector(series: &str) -> String {
        format!("{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":[{series}]}}}}")
    }

    fn series(value: &str) -> String {
        format!("{{\"metric\":{{\"pod\":\"{CANARY}\"}},\"value\":[1800000000.25,{value}]}}")
    }

    async fn ask(body: String) -> Result<Answer, MetricError> {
        let server = Server::start(move |_| json(body.clone())).await;
        let answer = server.prometheus().query("up", None).await;
        assert!(!format!("{answer:?}").contains(CANARY), "{answer:?}");
        answer
    }

    fn values(answer: &Answer) -> Vec<String> {
        answer.samples.iter().map(|sample| sample.value.to_string()).collect()
    }

    #[tokio::test]
    async fn asks_with_everything_that_was_declared() {
        let server = Server::start(|_| json(vector(&series("\"0.02\"")))).await;
        let mut declared = declared(&format!("http://{}/prometheus/", server.address));
        declared.headers.insert("X-Scope-OrgID".into(), "team-a".into());
        declared.bearer_token = Some(SecretKey { name: "prom".into(), key: "token".into() });
        drop(rustls::crypto::ring::default_provider().install_default());
        let prometheus = Prometheus::new(&declared).unwrap();
        let answer = prometheus.query("sum(rate(up[1m])) > 0", Some(&format!("{TOKEN}\n"))).await.unwrap();
        assert_eq!(values(&answer), ["0.02"]);
        assert_eq!(answer.samples[0].at.timestamp_millis(), 1_800_000_000_250);
        let seen = server.seen.lock().await;
        let [request] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((&request.method, request.path.as_str()), (&Method::POST, "/prometheus/api/v1/query"));
        assert_eq!(request.authorization.as_deref(), Some(format!("Bearer {TOKEN}").as_str()));
        assert_eq!(request.tenant.as_deref(), Some("team-a"));
        assert_eq!(request.body, "query=sum%28rate%28up%5B1m%5D%29%29+%3E+0&timeout=1000ms");
    }

    #[tokio::test]
    async fn numbers_are_numbers_whatever_they_look_like() {
        let answer =
            ask(vector(&[series("\"NaN\""), series("\"+Inf\""), series("\"-Inf\""), series("\"1e-7\"")].join(",")));
        assert_eq!(values(&answer.await.unwrap()), ["NaN", "inf", "-inf", "0.0000001"]);
        assert_eq!(ask(vector("")).await.unwrap().samples, []);
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1800000000,"7"]}}"#;
        assert_eq!(values(&ask(scalar.into()).await.unwrap()), ["7"]);
        let warned =
            r#"{"status":"success","warnings":["W","W"],"infos":["I"],"data":{"resultType":"vector","result":[]}}"#;
        assert_eq!(ask(warned.replace('W', CANARY)).await.unwrap().warnings, 2);
        let many = vec![series("\"1\""); 1000].join(",");
        assert_eq!(ask(vector(&many)).await.unwrap().samples.len(), 1000);
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error_of_its_class() {
        let result = |kind: &str, result: &str| {
            format!("{{\"status\":\"success\",\"data\":{{\"resultType\":\"{kind}\",\"result\":{result}}}}}")
        };
        let cases = [
            (result("matrix", "[]"), "the query gives a range of values"),
            (result("string", &format!("[1,\"{CANARY}\"]")), "the query gives a text"),
            (result(CANARY, "[]"), "an unknown type of result"),
            (result("vector", "{}"), "a vector that is no list"),
            (
                result("vector", &format!("[{{\"metric\":{{}},\"histogram\":[1,{{\"count\":\"{CANARY}\"}}]}}]")),
                "a histogram",
            ),
            (vector("{}"), "a series without a value"),
            (vector(&series("5")), "a sample that is not a time and a number"),
            (vector(&series(&format!("\"{CANARY}\""))), "a sample that is not a time and a number"),
            (vector(&series("\"1\",2")), "a sample that is not a time and a number"),
            (vector("{\"value\":[-1,\"1\"]}"), "a sample that is not a time and a number"),
            (vector("{\"value\":[1e300,\"1\"]}"), "a sample that is not a time and a number"),
            (vector(&vec![series("\"1\""); 1001].join(",")), "more than 1000 series: aggregate the query"),
            (format!("<html>{CANARY}</html>"), "not the JSON that was expected"),
            (String::new(), "not the JSON that was expected"),
            ("{\"status\":\"success\"}".into(), "no data"),
            (format!("{{\"status\":\"{CANARY}\"}}"), "neither success nor error"),
            (
                format!("{{\"status\":\"error\",\"errorType\":\"bad_data\",\"error\":\"{CANARY}\"}}"),
                "the source could not answer the query: it is not valid PromQL",
            ),
            (format!("{}{}", "[".repeat(5000), CANARY), "not the JSON that was expected"),
        ];
        for (body, expected) in cases {
            let error = ask(body.clone()).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{body:.80}: {error}");
        }
    }

    #[tokio::test]
    async fn a_status_is_an_error_and_a_redirect_is_not_followed() {
        let target = Server::start(|_| json(vector(&series("\"1\"")))).await;
        let location = format!("http://{}/api/v1/query", target.address);
        let cases = [
            (401, "HTTP status 401: the credentials are not accepted"),
            (404, "HTTP status 404: is the address the base"),
            (429, "HTTP status 429: too many requests"),
            (502, "HTTP status 502: the server has trouble"),
            (302, "HTTP status 302: a redirect, which is not followed"),
            (307, "HTTP status 307: a redirect, which is not followed"),
        ];
        for (code, expected) in cases {
            let location = location.clone();
            let server = Server::start(move |_| {
                let headers = [(header::LOCATION, location.clone()), (header::RETRY_AFTER, "1".into())];
                (StatusCode::from_u16(code).unwrap(), headers, CANARY).into_response()
            })
            .await;
            let error = server.prometheus().query("up", Some(TOKEN)).await.unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(!format!("{error:?}").contains(CANARY) && !format!("{error:?}").contains(TOKEN));
            assert_eq!(server.seen.lock().await.len(), 1, "asked once");
        }
        assert_eq!(target.seen.lock().await.len(), 0, "nobody followed");

        let bad = Server::start(|_| {
            let body = format!("{{\"status\":\"error\",\"errorType\":\"execution\",\"error\":\"{CANARY}\"}}");
            (StatusCode::UNPROCESSABLE_ENTITY, json(body)).into_response()
        });
        let error = bad.await.prometheus().query("up", None).await.unwrap_err();
        assert_eq!(error.to_string(), "the source could not answer the query: it failed when it was run");
    }

    #[tokio::test]
    async fn a_proxy_that_lets_only_get_through_is_asked_again() {
        let server = Server::start(|method| match *method {
            Method::GET => json(vector(&series("\"3\""))),
            _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        });
        let server = server.await;
        assert_eq!(values(&server.prometheus().query("up", None).await.unwrap()), ["3"]);
        assert_eq!(server.seen.lock().await.len(), 2);
    }

    #[tokio::test]
    async fn a_body_without_end_ends_at_the_cap_or_in_time() {
        let endless = Server::start(|_| {
            let chunk = Bytes::from_static(&[b' '; 65536]);
            json(Body::from_stream(stream::repeat(chunk).map(Ok::<_, Infallible>)))
        });
        let error = endless.await.prometheus().query("up", None).await.unwrap_err();
        assert_eq!(error, MetricError::TooLarge { limit: MAX_BODY });

        let slow = Server::start(|_| {
            let drops = stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
            });
            json(Body::from_stream(drops))
        });
        let begun = Instant::now();
        let error = slow.await.prometheus().query("up", None).await.unwrap_err();
        assert_eq!(error, MetricError::Timeout { seconds: 1 });
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

        // Accepts, and never says anything.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let error = prometheus(&format!("http://{address}")).query("up", None).await.unwrap_err();
        assert_eq!(error, MetricError::Timeout { seconds: 1 });
    }

    #[tokio::test]
    async fn failed_connections_have_their_class() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let error = prometheus(&format!("http://{address}")).query("up", None).await.unwrap_err();
        assert_eq!(error.to_string(), "not reachable: connection refused");
        let error = prometheus("http://no-such-name.invalid").query("up", None).await.unwrap_err();
        assert_eq!(error.to_string(), "not reachable: its name does not resolve");
        // Speaks no TLS.
        let plain = Server::start(|_| json("{}")).await;
        let error = prometheus(&format!("https://{}", plain.address)).query("up", None).await.unwrap_err();
        assert_eq!(error.to_string(), "not reachable: no TLS connection");
    }

    #[test]
    fn a_declaration_that_cannot_be_used_names_its_field() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let error = |change: &dyn Fn(&mut PrometheusServer)| {
            let mut server = declared("http://prometheus.monitoring:9090");
            change(&mut server);
            Prometheus::new(&server).map(drop).unwrap_err().to_string()
        };
        for address in [
            "http://169.254.169.254",
            "http://2852039166",
            "http://[::ffff:169.254.169.254]",
            "http://[fe80::1]:9090",
            "http://0.0.0.0:9090",
            "http://[fd00:ec2::254]",
            "http://100.100.100.200",
        ] {
            let error = error(&|server| server.address = address.into());
            assert!(error.contains("link-local or metadata"), "{address}: {error}");
        }
        for address in ["ftp://a", "http://", "http://user:pw@a", "http://a?b", "http://a#b", "a:9090", "file:///etc"] {
            let error = error(&|server| server.address = address.into());
            assert!(error.starts_with("spec.prometheus.address: "), "{address}: {error}");
            assert!(!error.contains("pw"), "{error}");
        }
        let header =
            |name: &str, value: &str| error(&|server| drop(server.headers.insert(name.to_owned(), value.to_owned())));
        assert!(header("a b", "c").starts_with("spec.prometheus.headers[a b]: is not a header"));
        assert!(header("A", "b\nc").starts_with("spec.prometheus.headers[A]: has no valid value"));
        assert!(header("Host", "b").contains("belongs to the connection"));
        let both = error(&|server| {
            server.headers.insert("authorization".into(), "x".into());
            server.bearer_token = Some(SecretKey { name: "a".into(), key: "b".into() });
        });
        assert!(both.contains("together with bearerToken"), "{both}");
        assert!(error(&|server| server.timeout = Some("0".parse().unwrap())).starts_with("spec.prometheus.timeout"));
    }
}
