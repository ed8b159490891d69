//! The plugin's way to the API server: as the person who types, with the rights that person has.
//!
//! Looking goes through the watches and the index of `cluster`, so the plugin sees objects exactly as the
//! operator does, and a watch of the plugin costs the API server no polling. Speaking is one POST of an
//! Intervention; to go back to an older template is one patch of the Rollout. Nothing else is ever written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
pub use kube::Client;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DynamicObject;
use kube::runtime::watcher;
use kube::{Api, Config};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::rollout_status::facts::Gap;
use crate::api::{Intervention, InterventionSpec, InterventionStatus, PodTemplate, names};
use crate::cluster::client::client;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{Identity, Key};
use crate::cluster::watch::{Observer, watch};

/// How long the first look may take.
const FIRST_LOOK: Duration = Duration::from_secs(15);
/// Who writes a template that is taken back: a person, by kubectl.
const UNDO_MANAGER: &str = "kubectl-rollout-status";
/// How often the outcome of an Intervention is asked for.
const OUTCOME_INTERVAL: Duration = Duration::from_millis(200);

/// Why the API server could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No usable kubeconfig.
    #[error("kubeconfig: {0}")]
    Kubeconfig(String),
    /// The API server does not serve our kinds.
    #[error("the cluster does not know the kind Rollout of sluice.dev/v1alpha1; is Sluice installed?")]
    NotInstalled,
    /// Everything else.
    #[error("{0}")]
    Api(String),
    /// No answer in time.
    #[error("the API server did not answer within {}s", FIRST_LOOK.as_secs())]
    Slow,
}

impl From<kube::Error> for FetchError {
    fn from(error: kube::Error) -> Self {
        Self::Api(plain(&error))
    }
}

/// An error as the API server worded it, without the noise of the layers above; a transport error with its
/// causes, for the first layer only says that something failed.
fn plain(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// Where the API server is, and as whom to ask it.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Connection {
    /// The namespace; that of the context when absent
    #[arg(short = 'n', long, global = true, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubeconfig file
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The user to act as
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// A group to act as; may be given several times
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub impersonate_groups: Vec<String>,
}

impl Connection {
    /// A client, and the namespace that is meant.
    ///
    /// # Errors
    /// When the kubeconfig is missing or does not make sense.
    pub async fn open(&self) -> Result<(Client, String), FetchError> {
        let trouble = |error: &dyn std::fmt::Display| FetchError::Kubeconfig(error.to_string());
        let mut config = if self.kubeconfig.is_none() && self.context.is_none() {
            Config::infer().await.map_err(|error| trouble(&error))?
        } else {
            let kubeconfig = match &self.kubeconfig {
                Some(file) => Kubeconfig::read_from(file),
                None => Kubeconfig::read(),
            };
            let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
            let kubeconfig = kubeconfig.map_err(|error| trouble(&error))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| trouble(&error))?
        };
        if let Some(user) = &self.impersonate {
            config.auth_info.impersonate = Some(user.clone());
        }
        if !self.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(self.impersonate_groups.clone());
        }
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok((client(config)?, namespace))
    }
}

/// The cluster as this person may see it, kept up to date while it lives.
pub struct Lens {
    index: Arc<Index>,
    sight: Arc<Sight>,
    // Dropped with the lens, which ends the watches.
    _watches: JoinSet<()>,
}

#[derive(Default)]
struct Sight {
    seen: Mutex<Seen>,
    news: Notify,
}

#[derive(Default)]
struct Seen {
    listed: BTreeSet<Kind>,
    failed: BTreeMap<Kind, Failure>,
}

#[derive(Clone)]
struct Failure {
    code: Option<u16>,
    message: String,
}

impl Sight {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Sight {
    fn changed(&self, kind: Kind, _: &Key, _: BTreeSet<Key>) {
        self.seen().failed.remove(&kind);
        self.news.notify_one();
    }

    fn listed(&self, kind: Kind, _: Option<&str>) {
        let mut seen = self.seen();
        seen.listed.insert(kind);
        seen.failed.remove(&kind);
        drop(seen);
        self.news.notify_one();
    }

    fn failed(&self, kind: Kind, error: &watcher::Error) {
        let (code, message) = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => {
                let code = if let kube::Error::Api(status) = error { Some(status.code) } else { None };
                (code, plain(error))
            }
            watcher::Error::WatchError(status) => (Some(status.code), status.message.clone()),
            watcher::Error::NoResourceVersion => (None, error.to_string()),
        };
        self.seen().failed.insert(kind, Failure { code, message });
        self.news.notify_one();
    }
}

impl Lens {
    /// Looks at these kinds in one namespace (all, when none), and waits until each was seen or refused.
    ///
    /// # Errors
    /// When Rollouts cannot be read, or nothing answers in time.
    pub async fn open(client: &Client, namespace: Option<&str>, kinds: &[Kind]) -> Result<Self, FetchError> {
        let index = Arc::new(Index::default());
        let sight = Arc::new(Sight::default());
        let mut watches = JoinSet::new();
        for kind in kinds {
            let observer: Arc<dyn Observer> = sight.clone();
            watches.spawn(watch(client.clone(), index.clone(), *kind, namespace.map(str::to_owned), observer));
        }
        let lens = Self { index, sight, _watches: watches };
        let first = async {
            loop {
                if let Some(done) = lens.first_look(kinds) {
                    return done;
                }
                lens.changed().await;
            }
        };
        timeout(FIRST_LOOK, first).await.map_err(|_| FetchError::Slow)??;
        Ok(lens)
    }

    fn first_look(&self, kinds: &[Kind]) -> Option<Result<(), FetchError>> {
        let seen = self.sight.seen();
        if let Some(failure) = seen.failed.get(&Kind::Rollout) {
            return Some(Err(match failure.code {
                Some(404) => FetchError::NotInstalled,
                _ => FetchError::Api(failure.message.clone()),
            }));
        }
        let settled = |kind: &Kind| seen.listed.contains(kind) || seen.failed.contains_key(kind);
        kinds.iter().all(settled).then_some(Ok(()))
    }

    /// The objects.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The kinds this person may not see, or that do not answer.
    pub fn gaps(&self) -> Vec<Gap> {
        let seen = self.sight.seen();
        // A kind that was listed and only lost its watch for a moment is still known.
        let lasting = |(kind, failure): &(&Kind, &Failure)| failure.code == Some(403) || !seen.listed.contains(kind);
        let failed = seen.failed.iter().filter(lasting);
        failed.map(|(kind, failure)| Gap { kind: *kind, why: failure.message.clone() }).collect()
    }

    /// What keeps the view from being up to date, if anything.
    pub fn trouble(&self) -> Option<String> {
        let seen = self.sight.seen();
        seen.failed.get(&Kind::Rollout).map(|failure| failure.message.clone())
    }

    /// Waits for the next change.
    pub async fn changed(&self) {
        self.sight.news.notified().await;
    }
}

/// The Rollouts that a label selector chooses.
///
/// # Errors
/// When the API server refuses, for one because the selector does not make sense.
pub async fn selected(client: &Client, namespace: Option<&str>, labels: &str) -> Result<BTreeSet<Key>, FetchError> {
    let resource = Kind::Rollout.resource();
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let list = api.list_metadata(&ListParams::default().labels(labels)).await?;
    let key = |metadata: kube::api::ObjectMeta| {
        Key::new(metadata.namespace.unwrap_or_default(), metadata.name.unwrap_or_default())
    };
    Ok(list.items.into_iter().map(|item| key(item.metadata)).collect())
}

/// The names of the Rollouts in a namespace, for completion.
///
/// # Errors
/// When they cannot be listed.
pub async fn rollout_names(client: &Client, namespace: &str) -> Result<Vec<String>, FetchError> {
    let keys = selected(client, Some(namespace), "").await?;
    Ok(keys.into_iter().map(|key| key.name).collect())
}

/// The name under which the API server knows this person.
///
/// # Errors
/// When it does not say.
pub async fn who_am_i(client: &Client) -> Result<String, FetchError> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let name = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
    name.ok_or_else(|| FetchError::Api("the API server does not say who you are".to_owned()))
}

/// Writes a word on a Rollout; returns the name of the Intervention. Never tried twice: a word that was heard
/// although its answer was lost must not be said again.
///
/// # Errors
/// When the API server refuses it, or its answer is lost.
pub async fn intervene(
    client: &Client,
    rollout: &Identity,
    action: &str,
    spec: InterventionSpec,
) -> Result<String, FetchError> {
    let api: Api<Intervention> = Api::namespaced(client.clone(), &rollout.namespace);
    let mut object = Intervention::new("", spec);
    object.metadata.name = None;
    object.metadata.generate_name = Some(format!("{}-{action}-", rollout.name));
    object.metadata.labels = Some([(names::ROLLOUT.to_owned(), rollout.name.clone())].into());
    // Not blocking the owner's deletion: that would need the right to set finalizers.
    object.metadata.owner_references = Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference {
        api_version: format!("{}/{}", crate::api::GROUP, crate::api::VERSION),
        kind: "Rollout".to_owned(),
        name: rollout.name.clone(),
        uid: rollout.uid.clone(),
        ..Default::default()
    }]);
    let created = api.create(&PostParams::default(), &object).await?;
    Ok(created.metadata.name.unwrap_or_default())
}

/// Who wrote the pod template of a Rollout, by the names of the field managers.
///
/// # Errors
/// When it cannot be read.
pub async fn template_owners(client: &Client, rollout: &Identity) -> Result<Vec<String>, FetchError> {
    let object = rollouts(client, rollout).get_metadata(&rollout.name).await?;
    let managed = object.metadata.managed_fields.unwrap_or_default();
    let writes = managed.into_iter().filter(|entry| {
        let fields = entry.fields_v1.as_ref().and_then(|fields| fields.0.pointer("/f:spec/f:template"));
        fields.is_some()
    });
    Ok(writes.filter_map(|entry| entry.manager).collect())
}

/// Gives a Rollout another pod template, if nobody has changed it since it was read.
///
/// # Errors
/// When the API server refuses, or somebody has.
pub async fn set_template(client: &Client, rollout: &Identity, template: &PodTemplate) -> Result<(), FetchError> {
    let patch = serde_json::json!([
        {"op": "test", "path": "/metadata/uid", "value": rollout.uid},
        {"op": "test", "path": "/metadata/generation", "value": rollout.generation},
        {"op": "replace", "path": "/spec/template", "value": template.0},
    ]);
    let patch: Patch<()> =
        Patch::Json(serde_json::from_value(patch).map_err(|error| FetchError::Api(error.to_string()))?);
    let params = PatchParams { field_manager: Some(UNDO_MANAGER.to_owned()), ..PatchParams::default() };
    rollouts(client, rollout).patch(&rollout.name, &params, &patch).await?;
    Ok(())
}

fn rollouts(client: &Client, rollout: &Identity) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &rollout.namespace, &Kind::Rollout.resource())
}

/// Waits until the operator said what became of an Intervention; `None` when it did not within the time.
///
/// # Errors
/// When it cannot be read.
pub async fn outcome(
    client: &Client,
    namespace: &str,
    name: &str,
    within: Duration,
) -> Result<Option<InterventionStatus>, FetchError> {
    let api: Api<Intervention> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + within;
    loop {
        let status = api.get(name).await?.status;
        if let Some(status) = status.filter(|status| status.outcome.is_some()) {
            return Ok(Some(status));
        }
        if Instant::now() + OUTCOME_INTERVAL > deadline {
            return Ok(None);
        }
        sleep(OUTCOME_INTERVAL).await;
    }
}
