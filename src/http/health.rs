//! `/healthz`, `/readyz` and `/metrics`, for the kubelet and for Prometheus.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::telemetry::{Metrics, Shutdown};

/// What must be in place before this process can do its work: every cache has seen its whole list. Cheap to
/// clone; all clones know the same parts.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, bool>>>);

/// Reports about one part.
#[derive(Clone, Debug)]
pub struct ReadyHandle {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// A part that must become ready, by the name the probe shows. To be called before serving begins, for a
    /// process with no parts is ready.
    pub fn handle(&self, name: &'static str) -> ReadyHandle {
        self.set(name, false);
        ReadyHandle { readiness: self.clone(), name }
    }

    /// The parts that are not ready.
    pub fn missing(&self) -> Vec<&'static str> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.iter().filter(|(_, ready)| !**ready).map(|(name, _)| *name).collect()
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.missing().is_empty()
    }

    fn set(&self, name: &'static str, ready: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name, ready);
    }
}

impl ReadyHandle {
    /// The part is in place.
    pub fn ready(&self) {
        self.readiness.set(self.name, true);
    }

    /// The part is not in place any more.
    pub fn not_ready(&self) {
        self.readiness.set(self.name, false);
    }
}

#[derive(Clone)]
struct Sources {
    readiness: Readiness,
    metrics: Metrics,
    shutdown: Shutdown,
}

fn router(sources: Sources) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(sources)
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    if sources.shutdown.is_requested() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned());
    }
    let missing = sources.readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
    }
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], sources.metrics.encode())
}

/// Serves health and metrics for as long as it is polled: to be dropped last of all, so that the process is seen alive
/// while it finishes its work. Ends by itself only when told to leave at once. A standby is ready too: its caches
/// are warm, and that is what readiness means here.
pub async fn serve_health(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    shutdown: Shutdown,
) -> io::Result<()> {
    let app = router(Sources { readiness, metrics, shutdown: shutdown.clone() });
    tokio::select! {
        result = async { axum::serve(listener, app).await } => result,
        () = shutdown.aborted() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::get;
    use super::*;
    use crate::telemetry::ShutdownTrigger;
    use std::net::SocketAddr;
    use tokio::io::AsyncWriteExt;
    use tokio::task::JoinHandle;

    struct Bench {
        address: SocketAddr,
        readiness: Readiness,
        metrics: Metrics,
        trigger: ShutdownTrigger,
        serving: JoinHandle<io::Result<()>>,
    }

    async fn serve(parts: &[&'static str]) -> (Bench, Vec<ReadyHandle>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Readiness::default();
        let handles = parts.iter().map(|part| readiness.handle(part)).collect();
        let metrics = Metrics::new();
        let (trigger, shutdown) = Shutdown::new();
        let serving = tokio::spawn(serve_health(listener, readiness.clone(), metrics.clone(), shutdown));
        (Bench { address, readiness, metrics, trigger, serving }, handles)
    }

    #[tokio::test]
    async fn it_is_ready_when_every_cache_is_and_says_which_is_missing() {
        let (bench, handles) = serve(&["rollouts", "services", "routes"]).await;
        assert_eq!(get(bench.address, "/healthz").await.status, 200);
        let answer = get(bench.address, "/readyz").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "not ready: rollouts, routes, services\n"));
        handles[0].ready();
        handles[2].ready();
        let answer = get(bench.address, "/readyz").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "not ready: services\n"));
        handles[1].ready();
        assert!(bench.readiness.is_ready());
        assert_eq!(get(bench.address, "/readyz").await.status, 200);
        handles[2].not_ready();
        assert_eq!(get(bench.address, "/readyz").await.body, "not ready: routes\n");
    }

    #[tokio::test]
    async fn metrics_are_served_in_the_format_prometheus_negotiates() {
        let (bench, _) = serve(&[]).await;
        bench.metrics.set_leader(true);
        let answer = get(bench.address, "/metrics").await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: application/openmetrics-text"), "{}", answer.head);
        assert!(answer.body.contains("sluice_leader 1"), "{}", answer.body);
        assert_eq!(get(bench.address, "/elsewhere").await.status, 404);
    }

    #[tokio::test]
    async fn while_it_drains_it_is_alive_and_not_ready_and_the_second_signal_ends_it() {
        let (bench, _) = serve(&[]).await;
        assert_eq!(get(bench.address, "/readyz").await.status, 200);
        bench.trigger.signal();
        assert_eq!(get(bench.address, "/healthz").await.status, 200);
        let answer = get(bench.address, "/readyz").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "shutting down\n"));
        let mut idle = tokio::net::TcpStream::connect(bench.address).await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        bench.trigger.signal();
        tokio::time::timeout(std::time::Duration::from_secs(10), bench.serving).await.unwrap().unwrap().unwrap();
    }
}
