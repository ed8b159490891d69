//! The watches: one stream a kind (and namespace), each with a back-off of its own, so that a kind that is
//! missing or forbidden slows no other down.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, pin_mut};
use kube::core::DynamicObject;
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

/// Watches one kind for ever, in one namespace or in all. Never returns by itself; drop it to stop.
pub async fn watch(
    client: Client,
    index: Arc<Index>,
    kind: Kind,
    namespace: Option<String>,
    observer: Arc<dyn Observer>,
) {
    let resource = kind.resource();
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) if !kind.is_cluster_scoped() => Api::namespaced_with(client, namespace, &resource),
        _ => Api::all_with(client, &resource),
    };
    // A dead peer is noticed after this time and five seconds more.
    let mut config = watcher::Config::default().timeout(120);
    if let Some(labels) = kind.label_selector() {
        config = config.labels(labels);
    }
    let stream = watcher(api, config).default_backoff();
    pin_mut!(stream);
    let mut listed = BTreeSet::new();
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
                let gone = index.retain(kind, namespace.as_deref(), &listed);
                if !gone.is_empty() {
                    observer.changed(kind, &Key::new("", ""), gone);
                }
                listed.clear();
                observer.listed(kind, namespace.as_deref());
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
            Err(error) => {
                if kind.is_optional() && is_not_served(&error) {
                    observer.listed(kind, namespace.as_deref());
                } else if complained.is_none_or(|at| at.elapsed() > Duration::from_secs(30)) {
                    tracing::warn!(kind = kind.name(), %error, "a watch failed and is taken up again");
                    complained = Some(Instant::now());
                }
                observer.failed(kind, &error);
            }
        }
    }
}

fn key_of(object: &DynamicObject) -> Key {
    Key::new(object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone().unwrap_or_default())
}

fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        // By the code: the body is plain text, and then the library's own question about the reason says no.
        watcher::Error::InitialListFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
