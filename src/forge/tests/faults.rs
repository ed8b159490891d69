//! Servers that refuse, break off, lie and send elsewhere.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use futures::stream;
use serde_json::json;

use super::*;
use crate::forge::ForgeError;

const KINDS: [ForgeKind; 3] = [ForgeKind::GitHub, ForgeKind::GitLab, ForgeKind::Gitea];
/// In whatever the server says; must never come back to us.
const FOREIGN: &str = "foreign-text-of-the-server";

/// What every operation makes of an answer. No error shows the token or the server's words.
async fn errors(answer: impl Fn(&Asked) -> Response + Clone + Send + Sync + 'static) -> Vec<ForgeError> {
    let mut errors = Vec::new();
    for kind in KINDS {
        let stub = Stub::start(answer.clone()).await;
        let client = stub.client(kind, "shop/deploy");
        errors.extend([
            client.find_pull_request("b").await.map(drop).unwrap_err(),
            client.open_pull_request(new("b")).await.map(drop).unwrap_err(),
            client.pull_request(1).await.map(drop).unwrap_err(),
            client.set_status(COMMIT, status(State::Success, "x")).await.unwrap_err(),
            client.deploy(deployment("a.1", State::Success)).await.unwrap_err(),
        ]);
        assert!(!format!("{client:?}").contains(CANARY), "{client:?}");
    }
    for error in &errors {
        let text = format!("{error} {error:?}");
        assert!(!text.contains(CANARY) && !text.contains(FOREIGN), "{text}");
    }
    errors
}

#[tokio::test]
async fn each_refusal_has_its_class() {
    for (code, reason, transient) in [
        (401, "ForgeAccessDenied", false),
        (403, "ForgeAccessDenied", false),
        (404, "ForgeNotFound", false),
        (409, "ForgeRefused", false),
        (422, "ForgeRefused", false),
        (429, "ForgeRateLimited", true),
        (301, "ForgeMoved", false),
        (500, "ForgeUnreachable", true),
        (503, "ForgeUnreachable", true),
    ] {
        for error in errors(move |_| json(code, json!({"message": FOREIGN}))).await {
            assert_eq!((error.reason(), error.is_transient()), (reason, transient), "{code}: {error}");
        }
    }
}

#[tokio::test]
async fn a_limit_says_how_long_to_wait() {
    let limited = |headers: Vec<(&'static str, String)>, code: u16| {
        move |_: &Asked| {
            let mut response = json(code, json!({"message": FOREIGN}));
            for (name, value) in &headers {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            response
        }
    };
    let now = chrono::Utc::now().timestamp();
    for (headers, code, least, most) in [
        (vec![("retry-after", "7".to_owned())], 429, 7, 7),
        (vec![("retry-after", "7".to_owned())], 403, 7, 7),
        (vec![("x-ratelimit-remaining", "0".into()), ("x-ratelimit-reset", (now + 90).to_string())], 403, 60, 90),
        (vec![("ratelimit-remaining", "0".into()), ("ratelimit-reset", (now + 90).to_string())], 429, 60, 90),
        // A clock that is wrong does not make us wait for ever, nor not at all.
        (vec![("x-ratelimit-remaining", "0".into()), ("x-ratelimit-reset", "99999999999".into())], 403, 3600, 3600),
        (vec![("x-ratelimit-remaining", "0".into()), ("x-ratelimit-reset", "1".into())], 403, 1, 1),
        (vec![], 429, 60, 60),
    ] {
        for error in errors(limited(headers.clone(), code)).await {
            let ForgeError::RateLimited { retry_after, .. } = error else { panic!("{headers:?}: {error}") };
            assert!((least..=most).contains(&retry_after.as_secs()), "{headers:?}: {retry_after:?}");
        }
    }
    // Requests are left, so it is the rights that are missing.
    let enough = limited(vec![("x-ratelimit-remaining", "4999".into()), ("x-ratelimit-reset", now.to_string())], 403);
    assert!(errors(enough).await.iter().all(|error| error.reason() == "ForgeAccessDenied"));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_the_token_stays() {
    let elsewhere = Stub::start(|_| json(200, json!([]))).await;
    let target = format!("http://{}/{FOREIGN}", elsewhere.address);
    for code in [301, 302, 307, 308] {
        let target = target.clone();
        let answer = move |_: &Asked| {
            let mut response = json(code, json!({}));
            response.headers_mut().insert(header::LOCATION, target.parse().unwrap());
            response
        };
        assert!(errors(answer).await.iter().all(|error| error.reason() == "ForgeMoved"));
    }
    assert!(elsewhere.asked().is_empty());
}

#[tokio::test]
async fn what_is_not_the_api_says_where_to_look() {
    for body in [format!("<html>{FOREIGN}</html>"), "{}".into(), "[{}]".into(), "null".into(), String::new()] {
        let html = move |_: &Asked| ([(header::CONTENT_TYPE, "text/html")], body.clone()).into_response();
        // One operation for each kind: some answers fit others by chance.
        for kind in KINDS {
            let client = Stub::start(html.clone()).await.client(kind, "shop/deploy");
            let error = client.pull_request(1).await.unwrap_err();
            assert_eq!(error.reason(), "ForgeAnswerUnexpected", "{error}");
            assert!(error.to_string().contains("spec.forge.api") && !error.to_string().contains(FOREIGN), "{error}");
        }
    }
}

#[tokio::test]
async fn a_body_without_end_ends_at_the_cap() {
    let endless = |_: &Asked| {
        let chunk = Bytes::from_static(&[b' '; 65536]);
        Body::from_stream(stream::repeat(Ok::<_, Infallible>(chunk))).into_response()
    };
    assert!(errors(endless).await.iter().all(|error| error.reason() == "ForgeAnswerUnexpected"));
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let location = Location::new(ForgeKind::Gitea, None, &format!("http://{address}/a/b")).unwrap();
    let client = ForgeClient::new(location, TOKEN, None).unwrap();
    let error = client.pull_request(1).await.unwrap_err();
    assert_eq!(error.to_string(), "reading a pull request: connection refused");
    assert!(error.is_transient());

    // Accepts, and never says anything. The clock runs by itself while everybody waits.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let location = Location::new(ForgeKind::Gitea, None, &format!("http://{address}/a/b")).unwrap();
    let client = ForgeClient::new(location, TOKEN, None).unwrap();
    let asking = tokio::spawn(async move { client.pull_request(1).await });
    let (_open, _) = silent.accept().await.unwrap();
    tokio::time::pause();
    let error = tokio::time::timeout(Duration::from_secs(60), asking).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "reading a pull request: the forge does not answer in time");
}

#[test]
fn a_token_that_cannot_be_one_is_refused_without_showing_it() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let location = Location::new(ForgeKind::Gitea, None, "https://git.example/a/b").unwrap();
    let error = ForgeClient::new(location.clone(), &format!("{CANARY}\r\nX-Evil: 1"), None).unwrap_err();
    assert_eq!(error.to_string(), "the token of the Secret has letters that no token has");
    let error = ForgeClient::new(location, TOKEN, Some(CANARY)).unwrap_err();
    assert_eq!(error.to_string(), "ca.crt holds no certificate in PEM format");
}
