//! The traffic's counts, against servers that do exactly what they are told.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, extract::State};
use tokio::net::TcpListener;

use super::*;

async fn until(traffic: &Traffic, what: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
    let begun = Instant::now();
    loop {
        let counts = traffic.snapshot();
        if reached(&counts) {
            return counts;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "not reached: {what}; {counts:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Of every five answers: three of v1, a deliberate error of v2, and an error nobody ordered.
async fn script(State(turn): State<Arc<AtomicUsize>>, headers: axum::http::HeaderMap) -> Response {
    if !headers["host"].to_str().unwrap().starts_with("shop.test") {
        return (StatusCode::NOT_FOUND, "wrong host").into_response();
    }
    match turn.fetch_add(1, Ordering::SeqCst) % 5 {
        0..=2 => ([("x-version", "v1")], "ok").into_response(),
        3 => {
            (StatusCode::INTERNAL_SERVER_ERROR, [("x-version", "v2"), ("x-deliberate-error", "1")], "").into_response()
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream").into_response(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_deliberate_errors_and_lost_requests_are_told_apart() {
    let turns = Arc::new(AtomicUsize::new(0));
    let address = serve(Router::new().route("/", get(script)).with_state(Arc::clone(&turns))).await;
    let traffic = Traffic::start(address, "shop.test", 500).unwrap();
    until(&traffic, "a hundred answers", |counts| counts.sent >= 100).await;
    let counts = traffic.stop().await;
    let served = u64::try_from(turns.load(Ordering::SeqCst)).unwrap();
    assert_eq!(counts.sent, served, "every request has a fate, and none was sent twice");
    assert_eq!(counts.versions["v1"] + counts.versions["v2"] + counts.lost, served);
    assert_eq!(counts.deliberate_errors, counts.versions["v2"]);
    assert!(counts.lost.abs_diff(served / 5) <= 1, "{counts:?}");
    assert!((0.70..0.80).contains(&counts.share("v1")), "three of four answers: {}", counts.share("v1"));
    assert_eq!(counts.first_lost.len(), 20);
    assert_eq!(counts.first_lost[0].status, Some(503));
    assert_eq!(counts.first_lost[0].reason, "no healthy upstream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_forgets_what_was_before_it() {
    let turns = Arc::new(AtomicUsize::new(0));
    let script = |State(turn): State<Arc<AtomicUsize>>| async move {
        let version = if turn.fetch_add(1, Ordering::SeqCst) < 50 { "old" } else { "new" };
        [("x-version", version)]
    };
    let address = serve(Router::new().route("/", get(script)).with_state(turns)).await;
    let traffic = Traffic::start(address, "shop.test", 200).unwrap();
    let begun = Instant::now();
    loop {
        let window = traffic.window(Duration::from_millis(200));
        if window.versions.contains_key("new") && !window.versions.contains_key("old") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{window:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(traffic.stop().await.versions["old"], 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_a_lost_request_that_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let traffic = Traffic::start(address, "shop.test", 50).unwrap();
    until(&traffic, "a lost request", |counts| counts.lost > 0).await;
    let counts = traffic.stop().await;
    assert_eq!((counts.sent, counts.versions.len()), (counts.lost, 0));
    assert_eq!(counts.first_lost[0].status, None);
    assert!(counts.first_lost[0].reason.contains("refused"), "{}", counts.first_lost[0].reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Version: v1\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    let traffic = Traffic::start(address, "shop.test", 200).unwrap();
    until(&traffic, "a hundred answers", |counts| counts.sent >= 100).await;
    traffic.stop().await;
    assert!(connections.load(Ordering::SeqCst) <= 20, "{connections:?}");
}

#[tokio::test]
async fn no_traffic_at_all_is_refused() {
    assert!(Traffic::start("127.0.0.1:1".parse().unwrap(), "shop.test", 0).is_err());
}
