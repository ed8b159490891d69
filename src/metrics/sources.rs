//! The sources that are in use: one client each, and a fair share of the queries in flight.
//!
//! A provider that hangs keeps its own queries waiting and nobody else's: each provider has a cap well below
//! the total, and a query takes its provider's place before one of the common places.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

use super::{Answer, MetricError, prometheus::Prometheus};
use crate::api::PrometheusServer;

/// Queries in flight, of all providers together.
const IN_FLIGHT: usize = 64;
/// Queries in flight of one provider.
const IN_FLIGHT_EACH: usize = 12;
/// How long a query waits for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sources in use. Cheap to share behind an `Arc`.
pub struct Sources {
    places: Semaphore,
    known: Mutex<HashMap<String, Arc<Source>>>,
}

struct Source {
    server: PrometheusServer,
    prometheus: Prometheus,
    places: Semaphore,
}

impl Default for Sources {
    fn default() -> Self {
        Self { places: Semaphore::new(IN_FLIGHT), known: Mutex::default() }
    }
}

impl Sources {
    /// Asks a provider. `name` is its own in the whole cluster; a changed declaration makes a new client.
    pub async fn query(
        &self,
        name: &str,
        server: &PrometheusServer,
        promql: &str,
        token: Option<&str>,
    ) -> Result<Answer, MetricError> {
        let source = self.source(name, server)?;
        let turn = async {
            let own = source.places.acquire().await;
            (own, self.places.acquire().await)
        };
        let busy = MetricError::Busy { seconds: PATIENCE.as_secs() };
        // The places are never closed, so only the time can run out.
        let Ok((Ok(_own), Ok(_common))) = timeout(PATIENCE, turn).await else { return Err(busy) };
        source.prometheus.query(promql, token).await
    }

    fn source(&self, name: &str, server: &PrometheusServer) -> Result<Arc<Source>, MetricError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = known.get(name)
            && source.server == *server
        {
            return Ok(Arc::clone(source));
        }
        let source = Arc::new(Source {
            server: server.clone(),
            prometheus: Prometheus::new(server)?,
            places: Semaphore::new(IN_FLIGHT_EACH),
        });
        known.insert(name.to_owned(), Arc::clone(&source));
        Ok(source)
    }

    /// Forgets the providers that are gone, and their connections.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| exists(name));
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use axum::{Router, routing::any};
    use tokio::{net::TcpListener, time::timeout};

    use super::Sources;
    use crate::{api::PrometheusServer, metrics::MetricError};

    fn server(address: std::net::SocketAddr, seconds: u64) -> PrometheusServer {
        PrometheusServer {
            address: format!("http://{address}"),
            bearer_token: None,
            headers: std::collections::BTreeMap::new(),
            timeout: Some(crate::api::Duration::from_secs(seconds)),
            max_sample_age: None,
        }
    }

    #[tokio::test]
    async fn two_hundred_hanging_queries_hold_up_nobody_else() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hangs = server(hanging.local_addr().unwrap(), 30);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let answers = server(listener.local_addr().unwrap(), 5);
        let body = r#"{"status":"success","data":{"resultType":"scalar","result":[1800000000,"7"]}}"#;
        let router = Router::new().fallback(any(move || async move { body }));
        tokio::spawn(async move { axum::serve(listener, router).await });

        let sources = Arc::new(Sources::default());
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (sources, hangs) = (Arc::clone(&sources), hangs.clone());
            waiting.spawn(async move { sources.query("hangs", &hangs, "up", None).await });
        }
        // They have taken all that one provider may have.
        let full = async {
            while sources.places.available_permits() > super::IN_FLIGHT - super::IN_FLIGHT_EACH {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), full).await.expect("the queries never began");
        for _ in 0..20 {
            let answer = timeout(Duration::from_secs(4), sources.query("answers", &answers, "up", None)).await;
            assert_eq!(answer.expect("held up").unwrap().samples[0].value, 7.0);
        }
    }

    #[tokio::test]
    async fn a_changed_declaration_is_used_at_once() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = gone.local_addr().unwrap();
        drop(gone);
        let sources = Sources::default();
        let error = sources.query("a", &server(address, 5), "up", None).await.unwrap_err();
        assert_eq!(error, MetricError::Unreachable { why: "connection refused" });
        let mut broken = server(address, 5);
        broken.address = "http://169.254.169.254".into();
        let error = sources.query("a", &broken, "up", None).await.unwrap_err();
        assert!(matches!(error, MetricError::Declaration { .. }), "{error}");
        sources.retain(|_| false);
        assert!(sources.known.lock().unwrap().is_empty());
    }
}
