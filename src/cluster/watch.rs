//! The watches: one stream a kind (and namespace), each with a back-off of its own, so that a kind that is
//! missing or forbidden slows no other down.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, pin_mut};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use super::index::Index;
use super::kinds::Kind;
use super::objects::Key;

/// What the watches tell the rest of the operator.
pub trait Observer: Send + Sync + 'static {
    /// An object changed, and these Rollouts are concerned.
    fn changed(&self, kind: Kind, key: &Key, rollouts: BTreeSet<Key>);
    /// A complete list of the kind has been taken in (called once per list).
    fn listed(&self, kind: Kind, namespace: Option<&str>);
    /// The watch met an error; it goes on by itself.
    fn failed(&self, kind: Kind, error: &watcher::Error);
}

/// How long until a kind that the API server does not serve is looked for again: at first, and in the end.
const FIRST_LOOK_AGAIN: Duration = Duration::from_secs(1);
const LAST_LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Watches one kind for ever, in one namespace or in all. Never returns by itself; drop it to stop.
///
/// A kind that a cluster may do without is looked for in each of its versions, newest first, by listing it: what can
/// be listed can be steered, and no other right is needed. When none is served, or the one that was is no more, it
/// is looked for again, so that a CustomResourceDefinition may come, go and be upgraded at any time.
pub async fn watch(
    client: Client,
    index: Arc<Index>,
    kind: Kind,
    namespace: Option<String>,
    observer: Arc<dyn Observer>,
) {
    let watch = Watch { client, index, kind, namespace, observer };
    let mut pause = FIRST_LOOK_AGAIN;
    loop {
        for resource in kind.resources() {
            if watch.follow(&resource).await {
                pause = FIRST_LOOK_AGAIN;
            }
        }
        watch.absent();
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(LAST_LOOK_AGAIN);
    }
}

struct Watch {
    client: Client,
    index: Arc<Index>,
    kind: Kind,
    namespace: Option<String>,
    observer: Arc<dyn Observer>,
}

impl Watch {
    /// Watches one version of the kind until the API server does not serve it. Says whether it ever did.
    async fn follow(&self, resource: &ApiResource) -> bool {
        let Self { index, kind, observer, .. } = self;
        let (kind, namespace) = (*kind, self.namespace.as_deref());
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) if !kind.is_cluster_scoped() => {
                Api::namespaced_with(self.client.clone(), namespace, resource)
            }
            _ => Api::all_with(self.client.clone(), resource),
        };
        // A dead peer is noticed after this time and five seconds more.
        let mut config = watcher::Config::default().timeout(120);
        if let Some(labels) = kind.label_selector() {
            config = config.labels(labels);
        }
        let stream = watcher(api, config).default_backoff();
        pin_mut!(stream);
        let mut listed = BTreeSet::new();
        let mut was_served = false;
        let mut complained: Option<Instant> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    let key = key_of(&object);
                    let rollouts = index.apply(kind, &object);
                    observer.changed(kind, &key, rollouts);
                    listed.insert(key);
                }
                Ok(watcher::Event::InitDone) => {
                    was_served = true;
                    self.tell(index.set_served(kind, Some(resource.clone())));
                    self.tell(index.retain(kind, namespace, &listed));
                    listed.clear();
                    observer.listed(kind, namespace);
                }
                Ok(watcher::Event::Apply(object)) => {
                    let rollouts = index.apply(kind, &object);
                    observer.changed(kind, &key_of(&object), rollouts);
                }
                Ok(watcher::Event::Delete(object)) => {
                    let key = key_of(&object);
                    let rollouts = index.remove(kind, &key, object.metadata.uid.as_deref().unwrap_or_default());
                    observer.changed(kind, &key, rollouts);
                }
                Err(error) if kind.is_optional() && is_not_served(&error) => break,
                Err(error) => {
                    if complained.is_none_or(|at| at.elapsed() > Duration::from_secs(30)) {
                        tracing::warn!(kind = kind.name(), %error, "a watch failed and is taken up again");
                        complained = Some(Instant::now());
                    }
                    observer.failed(kind, &error);
                }
            }
        }
        was_served
    }

    /// No version of the kind is served. Objects that were seen are kept: an API server that starts may not yet know
    /// its kinds.
    fn absent(&self) {
        self.tell(self.index.set_served(self.kind, None));
        self.observer.listed(self.kind, self.namespace.as_deref());
    }

    /// Rollouts are concerned, by no one object.
    fn tell(&self, rollouts: BTreeSet<Key>) {
        if !rollouts.is_empty() {
            self.observer.changed(self.kind, &Key::new("", ""), rollouts);
        }
    }
}

fn key_of(object: &DynamicObject) -> Key {
    Key::new(object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default())
}

fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        // By the code: the body is plain text, and then the library's own question about the reason says no.
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use axum::response::{IntoResponse, Response};
    use kube::runtime::watcher;
    use serde_json::json;
    use tokio::sync::Notify;

    use super::{Observer, watch};
    use crate::api::RouteKind;
    use crate::cluster::client::client;
    use crate::cluster::index::Index;
    use crate::cluster::kinds::Kind;
    use crate::cluster::objects::Key;

    const KIND: Kind = Kind::Route(RouteKind::Tcp);

    /// An API server that serves TCPRoutes in one version, or not at all, as it is told at any moment.
    #[derive(Default)]
    struct Bench {
        served: Mutex<Option<&'static str>>,
        lists: Mutex<usize>,
        news: Notify,
    }

    impl Bench {
        fn answer(&self, uri: &Uri) -> Response {
            let served = *self.served.lock().unwrap();
            let version = served.filter(|version| uri.path().contains(&format!("/{version}/tcproutes")));
            let Some(version) = version else {
                return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
            };
            if uri.query().unwrap_or_default().contains("watch=true") {
                // Ends at once: nothing happens, and the watcher asks again.
                return StatusCode::OK.into_response();
            }
            let api_version = format!("gateway.networking.k8s.io/{version}");
            axum::Json(json!({"apiVersion": api_version, "kind": "TCPRouteList", "metadata": {"resourceVersion": "1"},
                "items": [{"apiVersion": api_version, "kind": "TCPRoute",
                    "metadata": {"name": "web", "namespace": "shop", "uid": "r", "resourceVersion": "1"}}]}))
            .into_response()
        }

        /// Waits until the index says so, for ten seconds at most.
        async fn until(&self, what: &str, seen: impl Fn() -> bool) {
            let wait = async {
                while !seen() {
                    self.news.notified().await;
                }
            };
            assert!(tokio::time::timeout(Duration::from_secs(10), wait).await.is_ok(), "{what}");
        }
    }

    impl Observer for Bench {
        fn changed(&self, _: Kind, _: &Key, _: BTreeSet<Key>) {
            self.news.notify_one();
        }
        fn listed(&self, _: Kind, _: Option<&str>) {
            *self.lists.lock().unwrap() += 1;
            self.news.notify_one();
        }
        fn failed(&self, _: Kind, error: &watcher::Error) {
            panic!("not served is no failure: {error}");
        }
    }

    #[tokio::test]
    async fn a_kind_may_be_absent_come_and_change_its_version() {
        let bench = Arc::new(Bench::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::clone(&bench);
        let handler = move |uri: Uri| {
            let server = Arc::clone(&server);
            async move { server.answer(&uri) }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        let client = client(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let index = Arc::new(Index::default());
        let watching = tokio::spawn(watch(client, Arc::clone(&index), KIND, None, bench.clone()));

        let lists = || *bench.lists.lock().unwrap();
        bench.until("an absent kind counts as listed, so that the operator starts", || lists() > 0).await;
        assert!(index.is_absent(KIND));

        *bench.served.lock().unwrap() = Some("v1alpha2");
        let web = Key::new("shop", "web");
        bench.until("the kind comes in an old version", || index.resource(KIND).version == "v1alpha2").await;
        assert!(!index.is_absent(KIND));
        assert!(index.route(RouteKind::Tcp, &web).is_some());

        *bench.served.lock().unwrap() = Some("v1");
        bench
            .until("it moves to its stable version", || index.resource(KIND).version == "v1" && !index.is_absent(KIND))
            .await;
        assert!(index.route(RouteKind::Tcp, &web).is_some(), "what was seen is kept meanwhile");
        watching.abort();
    }
}
