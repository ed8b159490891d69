//! The ledger loop: from the outboxes in the Rollouts' status to the log branch, one writer a branch.
//!
//! *Observe*: the transitions that wait, and what belongs to them. *Decide*: which, in which order, and whether it
//! is time to push. *Act*: append, push, then take what is certain out of the outbox. Nothing here holds a rollout
//! up: while git is away the outbox grows, and a condition says so. A crash anywhere repeats a turn, and the
//! ledger recognises what it has.

pub mod record;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, future, stream};

use self::record::{Mirror, Trouble, Waiting};
use super::LedgerView;
use super::credentials::{CredentialsError, Remote, Secrets};
use super::queue::{Failure, Outcome, Queue, QueueConfig};
use crate::api::{DeployRepoSpec, Granularity, OnAuditUnavailable, PodTemplate};
use crate::cluster::events::Events;
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{DeployRepoObject, Key, RolloutObject};
use crate::cluster::write::{WriteError, Writer};
use crate::engine::LedgerState;
use crate::git::{
    Epoch, Fork, GitCache, GitError, Ledger, LedgerContents, LedgerEntry, LedgerPolicy, PushPolicy, RemoteAddress,
    Repository, Signer,
};
use crate::telemetry::{Metrics, Success};

/// Transitions in one push at most. More follow with the next one.
const MOST: usize = 200;
/// A ledger is looked at after this time even if no event came.
const RESYNC: Duration = Duration::from_secs(60);
/// How soon a process that does not lead looks whether it does by now.
const STANDBY: Duration = Duration::from_secs(5);
/// How often a confirmation is tried whose precondition failed.
const TRIES: u32 = 5;
/// Writes to the API server at the same time, of one ledger.
const PARALLEL: usize = 8;
/// How old credentials may grow before their Secrets are read again: a token of a GitHub App has at least ten minutes
/// left when it is given.
const REOPENED_AFTER: TimeDelta = TimeDelta::minutes(5);

/// One ledger: one branch of one repository, however its address is spelled.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LedgerKey {
    /// The repository.
    pub repository: String,
    /// The cluster's name.
    pub cluster: String,
}

impl fmt::Display for LedgerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", Epoch::First.branch(&self.cluster), self.repository)
    }
}

/// Opens repositories. The `git` room with the Secrets of the cluster, or a local one in tests.
pub trait Remotes: Send + Sync + 'static {
    /// Which repository an address is, whatever way leads there; none when it cannot be used.
    fn identity(&self, url: &str) -> Option<String>;
    /// Opens what a DeployRepo in `namespace` names for its log.
    fn open(&self, namespace: &str, spec: &DeployRepoSpec) -> impl Future<Output = Result<Opened, Trouble>> + Send;
}

/// What a log is written to, and with.
pub struct Opened {
    /// The repository.
    pub repository: Repository,
    /// The second remote, or why it cannot be opened; the log does not wait for it.
    pub mirror: Option<Result<Repository, Trouble>>,
    /// The key that signs.
    pub signer: Option<Signer>,
}

/// The repositories of the `git` room, opened with what the DeployRepos' Secrets hold.
pub struct SecretRemotes {
    /// Reads the Secrets.
    pub secrets: Secrets,
    /// The one cache.
    pub cache: GitCache,
}

impl Remotes for SecretRemotes {
    fn identity(&self, url: &str) -> Option<String> {
        RemoteAddress::parse(url).ok().map(|address| address.identity())
    }

    async fn open(&self, namespace: &str, spec: &DeployRepoSpec) -> Result<Opened, Trouble> {
        let repository = self.repository(namespace, &Remote::log(spec)).await?;
        let mirror = match Remote::mirror(spec) {
            None => None,
            Some(mirror) => Some(self.repository(namespace, &mirror).await),
        };
        let key = self.secrets.signing_key(namespace, spec).await?;
        let signer = key.map(|key| self.cache.signer(&key)).transpose()?;
        Ok(Opened { repository, mirror, signer })
    }
}

impl SecretRemotes {
    async fn repository(&self, namespace: &str, remote: &Remote) -> Result<Repository, Trouble> {
        let access = self.secrets.access(namespace, remote).await?;
        Ok(self.cache.repository(&remote.url, access)?)
    }
}

impl From<CredentialsError> for Trouble {
    fn from(error: CredentialsError) -> Self {
        Self { reason: error.reason(), passing: error.is_transient(), message: error.to_string() }
    }
}

impl From<GitError> for Trouble {
    fn from(error: GitError) -> Self {
        Self { reason: error.reason(), passing: error.is_transient(), message: error.to_string() }
    }
}

/// The measures of the queue of ledgers. A turn may fetch a long history.
pub fn queue_config() -> QueueConfig {
    QueueConfig {
        concurrency: 8,
        turn_timeout: Duration::from_secs(300),
        first_backoff: Duration::from_secs(1),
        longest_backoff: Duration::from_secs(30),
        ..QueueConfig::default()
    }
}

/// What the loop is made of.
pub struct Parts<R> {
    /// The cluster as last seen, and the way to write.
    pub writer: Writer,
    /// The way to the repositories.
    pub remotes: R,
    /// The cluster's name, where a DeployRepo gives none.
    pub cluster: String,
    /// The operator's own namespace.
    pub operator_namespace: String,
    /// The queue whose keys are given to [`LedgerController::turn`].
    pub queue: Queue<LedgerKey>,
    /// The queue of the rollout loop: whoever waits for the ledger is woken.
    pub rollouts: Queue<Key>,
    /// Where events go.
    pub events: Events,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// The one clock.
    pub now: fn() -> DateTime<Utc>,
}

/// The ledger loop.
pub struct LedgerController<R> {
    parts: Parts<R>,
    /// What each ledger says, as last read; none before that.
    known: Mutex<HashMap<LedgerKey, Arc<LedgerContents>>>,
    sessions: Mutex<HashMap<LedgerKey, Arc<tokio::sync::Mutex<Session>>>>,
    /// The process ends: what waits goes out now.
    flushing: AtomicBool,
}

/// What a turn remembers for the next one. Losing it costs a look at the branch.
#[derive(Default)]
struct Session {
    open: Option<Open>,
    policy: PushPolicy,
    /// Which of the DeployRepos' credentials are used: the next ones when the last were refused.
    opener: usize,
    trouble_since: Option<DateTime<Utc>>,
    /// What is in the ledger for sure, as the last number of each uid: a confirmation that failed is repeated
    /// without a push, and so without waiting for one.
    recorded: BTreeMap<String, i64>,
    /// The log as last seen.
    place: Place,
    granularity: Granularity,
    mirror: Arc<Mutex<MirrorState>>,
}

/// Where a log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The branch that is written; empty before it was looked at.
    pub branch: String,
    /// Its tip.
    pub tip: Option<String>,
    /// It was begun after a fork that nobody has acknowledged.
    pub fork: Option<Fork>,
}

struct Open {
    ledger: Arc<Ledger>,
    mirror: Option<Result<Repository, Trouble>>,
    repo: String,
    generation: i64,
    /// When it was opened.
    at: DateTime<Utc>,
}

/// How far the second remote has come.
#[derive(Default)]
struct MirrorState {
    running: bool,
    /// The tip it has.
    tip: Option<String>,
    /// Since when it lacks something, and why.
    behind_since: Option<DateTime<Utc>>,
    trouble: Option<Trouble>,
}

impl Session {
    fn mirror(&self) -> Mirror {
        let Some(open) = &self.open else { return Mirror::Unknown };
        if open.mirror.is_none() {
            return Mirror::Absent;
        }
        let at = self.mirror.lock().unwrap_or_else(PoisonError::into_inner);
        match &at.trouble {
            Some(trouble) => Mirror::Behind(trouble.clone()),
            None if at.tip == self.place.tip => Mirror::Whole,
            None => Mirror::Unknown,
        }
    }
}

impl<R: Remotes> LedgerView for LedgerController<R> {
    fn state(&self, rollout: &Key) -> LedgerState {
        let Some((key, on_unavailable)) = self.index().rollout(rollout).and_then(|rollout| self.recording_of(&rollout))
        else {
            return LedgerState::default();
        };
        let granularity = granularity(&self.repos_of(&key));
        let Some(contents) = self.contents(&key) else {
            // Asked for the first time, or not readable yet: the queue's back-off bounds how often it is tried.
            self.parts.queue.add(key);
            return LedgerState { configured: true, on_unavailable, granularity, ..LedgerState::default() };
        };
        let recorded = contents.rollouts.get(&(rollout.namespace.clone(), rollout.name.clone()));
        let last_good = recorded.and_then(|recorded| recorded.last_good.clone());
        LedgerState {
            read: true,
            configured: true,
            aborted: recorded.map(|recorded| recorded.aborted.clone()).unwrap_or_default(),
            aborts: recorded.map(|recorded| recorded.aborts.clone()).unwrap_or_default(),
            last_good: last_good.and_then(|(revision, template)| Some((revision, template?))),
            sequence: recorded.map(|recorded| recorded.sequence).unwrap_or_default(),
            position: recorded.and_then(|recorded| recorded.status.clone()).map(Box::new),
            on_unavailable,
            granularity,
        }
    }

    fn notify(&self, rollout: &Key, _urgent: bool) {
        if let Some(key) = self.index().rollout(rollout).and_then(|rollout| self.ledger_of(&rollout)) {
            self.parts.queue.add(key);
        }
    }
}

impl<R: Remotes> LedgerController<R> {
    /// The loop; its turns are taken from `parts.queue`.
    pub fn new(parts: Parts<R>) -> Self {
        Self { parts, known: Mutex::default(), sessions: Mutex::default(), flushing: AtomicBool::new(false) }
    }

    /// Looks soon at the ledger that a DeployRepo records into: after a change of it.
    pub fn look_at(&self, repo: &Key) {
        if let Some(key) = self.index().deploy_repo(repo).and_then(|repo| self.key_of(&repo)) {
            self.parts.queue.add(key);
        }
    }

    /// Pushes what waits, before the process ends. What does not go out stays in the outbox.
    pub async fn flush(&self, limit: Duration) {
        self.flushing.store(true, Ordering::SeqCst);
        let keys: Vec<LedgerKey> =
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let turns = keys.into_iter().map(|key| self.turn(key));
        if tokio::time::timeout(limit, future::join_all(turns)).await.is_err() {
            tracing::warn!("not every transition went to git in time; the next leader records them");
        }
    }

    /// One turn for one ledger.
    pub async fn turn(&self, key: LedgerKey) -> Outcome {
        let session =
            Arc::clone(self.sessions.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default());
        let mut session = session.lock().await;
        let repos = self.repos_of(&key);
        if !self.parts.writer.may_write() || repos.is_empty() {
            // Whoever leads next, or again, looks at the branch before it writes.
            session.open = None;
            self.known().remove(&key);
            if repos.is_empty() {
                self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                return Outcome::Done;
            }
            return Outcome::After(STANDBY);
        }
        let result = self.record(&key, &repos, &mut session).await;
        self.measure();
        match result {
            Ok(pause) => {
                session.trouble_since = None;
                Outcome::After(pause)
            }
            Err(trouble) => {
                let since = *session.trouble_since.get_or_insert_with(self.parts.now);
                self.complain(&key, &repos, &trouble, since).await;
                Outcome::Failed(Failure { reason: trouble.reason, message: format!("{key}: {}", trouble.message) })
            }
        }
    }

    async fn record(
        &self,
        key: &LedgerKey,
        repos: &[Arc<DeployRepoObject>],
        session: &mut Session,
    ) -> Result<Duration, Trouble> {
        let active: Vec<&Arc<DeployRepoObject>> =
            repos.iter().filter(|repo| repo.spec.as_ref().is_ok_and(|spec| !spec.suspend)).collect();
        if active.is_empty() {
            let message = "spec.suspend is true: nothing is recorded".to_owned();
            let trouble = Trouble { reason: "Suspended", message, passing: false };
            self.complain(key, repos, &trouble, (self.parts.now)()).await;
            return Ok(RESYNC);
        }
        self.open(key, &active, session).await?;
        let Some(Open { ledger, .. }) = &session.open else { return Ok(RESYNC) };
        let ledger = Arc::clone(ledger);
        if self.contents(key).is_none() {
            match ledger.read().await {
                Ok(contents) => {
                    session.place = Place {
                        branch: contents.branch.clone(),
                        tip: contents.tip.clone(),
                        fork: contents.fork.clone(),
                    };
                    self.publish(key, contents);
                }
                Err(error) => return Err(refused(session, error)),
            }
        }
        let rollouts = self.rollouts_of(key);
        let all = record::choose(&rollouts, usize::MAX, session.granularity);
        let is_recorded = |waiting: &Waiting| {
            session.recorded.get(&waiting.rollout.identity.uid) >= Some(&waiting.transition.sequence)
        };
        let (unconfirmed, mut waiting): (Vec<Waiting>, Vec<Waiting>) = all.into_iter().partition(is_recorded);
        self.confirm(session, &unconfirmed).await?;
        let more = waiting.len() > MOST;
        let urgent = waiting.iter().any(|waiting| record::is_urgent(&waiting.transition));
        waiting.truncate(MOST);
        let mut pause = RESYNC;
        if !waiting.is_empty() {
            let urgent = urgent || self.flushing.load(Ordering::SeqCst);
            let now = Instant::now();
            let due = session.policy.due(now, urgent);
            if due > now {
                return Ok(due - now);
            }
            session.policy.pushed(now);
            let entries: Vec<LedgerEntry> = waiting.iter().map(|waiting| self.entry(key, waiting)).collect();
            let appended = ledger.append(&entries).await;
            let result = if appended.is_ok() { Success::Ok } else { Success::Error };
            self.parts.metrics.git_push(now.elapsed(), result);
            let appended = match appended {
                Ok(appended) => appended,
                Err(error) => return Err(refused(session, error)),
            };
            tracing::info!(ledger = %key, transitions = entries.len(), tip = appended.tip, "recorded");
            session.recorded = record::last_numbers(&appended.recorded);
            session.place = Place { branch: appended.branch, tip: appended.tip, fork: appended.fork };
            self.echo(repos, &session.place);
            self.confirm(session, &waiting).await?;
            if urgent && let Ok(contents) = ledger.read().await {
                // What was aborted or promoted matters to a Rollout that is created anew.
                self.publish(key, contents);
            }
            if more {
                pause = Duration::ZERO;
            }
        }
        self.mirror(key, session);
        self.reassure(key, repos, session).await;
        Ok(pause)
    }

    /// Opens the ledger, or keeps it open while its DeployRepo has not changed.
    async fn open(
        &self,
        key: &LedgerKey,
        repos: &[&Arc<DeployRepoObject>],
        session: &mut Session,
    ) -> Result<(), Trouble> {
        let kept = session.open.as_ref().is_some_and(|open| {
            repos.iter().any(|repo| repo.identity.uid == open.repo && repo.identity.generation == open.generation)
        });
        let now = (self.parts.now)();
        if kept && session.open.as_ref().is_some_and(|open| now - open.at < REOPENED_AFTER) {
            return Ok(());
        }
        session.open = None;
        let Some(repo) = repos.get(session.opener % repos.len().max(1)) else { return Ok(()) };
        let Ok(spec) = &repo.spec else { return Ok(()) };
        let opened = self.parts.remotes.open(&repo.identity.namespace, spec).await;
        let opened = opened.inspect_err(|_| session.opener = session.opener.wrapping_add(1))?;
        let left = repos
            .iter()
            .filter_map(|repo| {
                let status = repo.status.as_ref()?;
                let (branch, tip) = (status.log_branch.as_deref()?, status.log_tip.as_deref()?);
                Some((Epoch::parse(&key.cluster, branch)?, branch, tip))
            })
            .max_by_key(|(epoch, ..)| *epoch)
            .map(|(_, branch, tip)| (branch, tip));
        let policy = LedgerPolicy {
            epochs: spec.log.epochs,
            signer: opened.signer,
            acknowledged_fork: spec.log.acknowledged_fork.clone(),
        };
        let writer = self.parts.writer.clone();
        let ledger = opened.repository.ledger(&key.cluster)?.with_policy(policy).expecting(left);
        let ledger = Arc::new(ledger.while_leading(Arc::new(move || writer.may_write())));
        session.granularity = spec.log.granularity;
        if !kept {
            // Read again, for what was acknowledged meanwhile.
            self.known().remove(key);
        }
        let mirror = opened.mirror;
        let (repo, generation) = (repo.identity.uid.clone(), repo.identity.generation);
        session.open = Some(Open { ledger, mirror, repo, generation, at: now });
        Ok(())
    }

    /// Keeps what a ledger says, and wakes the Rollouts that wait for it.
    fn publish(&self, key: &LedgerKey, contents: LedgerContents) {
        let first = self.known().insert(key.clone(), Arc::new(contents)).is_none();
        if first {
            for rollout in self.rollouts_of(key).iter().filter(|rollout| waits_for_first(rollout)) {
                self.parts.rollouts.add(rollout.identity.key());
            }
        }
    }

    fn entry(&self, key: &LedgerKey, waiting: &Waiting) -> LedgerEntry {
        let index = self.index();
        let rollout = &waiting.rollout;
        let rollout_key = rollout.identity.key();
        let revision = &waiting.transition.revision_to;
        let sets = index.replica_sets_of(&rollout_key);
        let declared = rollout.spec.as_ref().ok().map(|spec| &spec.template);
        // As it was declared: a ReplicaSet holds it with the API server's defaults, and then it is another revision.
        let mut known = sets.iter().map(|set| &set.template).chain(declared);
        let template: Option<&PodTemplate> = known.rfind(|template| template.revision() == *revision);
        let runs = index.analysis_runs_of(&rollout_key);
        record::entry(&key.cluster, waiting, template, &runs, || {
            super::plan_text::of(index, rollout, self.state(&rollout_key), (self.parts.now)())
        })
    }

    /// Takes what is certain out of the outboxes.
    async fn confirm(&self, session: &Session, waiting: &[Waiting]) -> Result<(), Trouble> {
        let rollouts: BTreeMap<Key, String> = waiting
            .iter()
            .map(|waiting| (waiting.rollout.identity.key(), waiting.rollout.identity.uid.clone()))
            .collect();
        let (branch, granularity) = (&session.place.branch, session.granularity);
        let confirmations = rollouts.into_iter().filter_map(|(rollout, uid)| {
            let sequence = *session.recorded.get(&uid)?;
            let change = move |status: &_| record::confirmed(status, sequence, branch, granularity, (self.parts.now)());
            Some(async move { self.change(&rollout, &uid, change).await })
        });
        let results: Vec<_> = stream::iter(confirmations).buffer_unordered(PARALLEL).collect().await;
        results.into_iter().collect::<Result<Vec<()>, _>>().map(drop).map_err(|error| Trouble {
            // Recorded all the same: the next turn finds it in the ledger and confirms it.
            reason: "NotConfirmed",
            message: error.to_string(),
            passing: true,
        })
    }

    /// Writes a Rollout's status as it is now, changed; looks again when it has changed meanwhile.
    async fn change(
        &self,
        rollout: &Key,
        uid: &str,
        change: impl Fn(&crate::api::RolloutStatus) -> Option<crate::api::RolloutStatus>,
    ) -> Result<(), WriteError> {
        let mut attempt = 1;
        loop {
            let Some(seen) = self.index().rollout(rollout).filter(|seen| seen.identity.uid == uid) else {
                return Ok(());
            };
            let Some(status) = change(&seen.status.clone().unwrap_or_default()) else { return Ok(()) };
            match self.parts.writer.replace_status(&seen.identity, &status).await {
                Err(WriteError::Conflict { .. }) if attempt < TRIES => {
                    // The watch brings what changed, or the deletion of the Rollout.
                    tokio::time::sleep(Duration::from_millis(50) * attempt).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Says that all is well, where something else was said before, and how far the log has come.
    async fn reassure(&self, key: &LedgerKey, repos: &[Arc<DeployRepoObject>], session: &Session) {
        let (branch, granularity) = (&session.place.branch, session.granularity);
        for rollout in self.rollouts_of(key) {
            let change = |status: &_| record::caught_up(status, branch, granularity, (self.parts.now)());
            if rollout.status.as_ref().is_some_and(|status| change(status).is_some()) {
                let written = self.change(&rollout.identity.key(), &rollout.identity.uid, change).await;
                self.note(&rollout.identity.key(), written);
            }
        }
        self.tell(repos, Some(&session.place), &session.mirror(), None).await;
    }

    /// Tells the tip to those who keep it outside git: whoever rewrites the log cannot rewrite that too.
    fn echo(&self, repos: &[Arc<DeployRepoObject>], place: &Place) {
        let Some(tip) = &place.tip else { return };
        self.parts.metrics.set_log_tip(&place.branch, tip);
        for repo in repos {
            self.parts.events.log_tip(&repo.identity, &place.branch, tip, (self.parts.now)());
        }
    }

    /// Pushes to the second remote, beside everything else.
    fn mirror(&self, key: &LedgerKey, session: &Session) {
        let Some(Open { ledger, mirror: Some(mirror), .. }) = &session.open else { return };
        let now = self.parts.now;
        let state = Arc::clone(&session.mirror);
        let mut at = state.lock().unwrap_or_else(PoisonError::into_inner);
        if at.running || at.tip == session.place.tip {
            return;
        }
        let since = *at.behind_since.get_or_insert_with(now);
        self.parts.metrics.set_mirror_lag((now() - since).to_std().unwrap_or_default());
        let repository = match mirror {
            Ok(repository) => repository.clone(),
            Err(trouble) => {
                at.trouble = Some(trouble.clone());
                return;
            }
        };
        at.running = true;
        drop(at);
        let (ledger, tip) = (Arc::clone(ledger), session.place.tip.clone());
        let (queue, metrics, key) = (self.parts.queue.clone(), self.parts.metrics.clone(), key.clone());
        tokio::spawn(async move {
            let pushed = ledger.push_to(&repository).await;
            let mut at = state.lock().unwrap_or_else(PoisonError::into_inner);
            at.running = false;
            match pushed {
                Ok(()) => {
                    *at = MirrorState { tip, ..MirrorState::default() };
                    metrics.set_mirror_lag(Duration::ZERO);
                    queue.add(key);
                }
                Err(error) => {
                    tracing::warn!(ledger = %key, %error, "the second remote of the log does not take it");
                    at.trouble = Some(error.into());
                }
            }
        });
    }

    /// Says what keeps transitions out of the ledger.
    async fn complain(
        &self,
        key: &LedgerKey,
        repos: &[Arc<DeployRepoObject>],
        trouble: &Trouble,
        since: DateTime<Utc>,
    ) {
        let now = (self.parts.now)();
        let unread = self.contents(key).is_none();
        let granularity = granularity(repos);
        for rollout in self.rollouts_of(key) {
            let first_waits = unread && waits_for_first(&rollout);
            let policy = self.recording_of(&rollout).map(|(_, policy)| policy).unwrap_or_default();
            let change = |status: &_| record::behind(status, trouble, since, first_waits, granularity, policy, now);
            if change(&rollout.status.clone().unwrap_or_default()).is_some() {
                let written = self.change(&rollout.identity.key(), &rollout.identity.uid, change).await;
                self.note(&rollout.identity.key(), written);
            }
        }
        if !trouble.passing || now - since >= record::BEHIND_AFTER {
            self.tell(repos, None, &Mirror::Unknown, Some(trouble)).await;
        }
    }

    async fn tell(
        &self,
        repos: &[Arc<DeployRepoObject>],
        place: Option<&Place>,
        mirror: &Mirror,
        trouble: Option<&Trouble>,
    ) {
        for repo in repos {
            let repo_key = repo.identity.key();
            for attempt in 1..=TRIES {
                let Some(seen) = self.index().deploy_repo(&repo_key) else { break };
                let before = seen.status.clone().unwrap_or_default();
                let now = (self.parts.now)();
                let status = record::log_status(&before, seen.identity.generation, place, mirror, trouble, now);
                let Some(status) = status.and_then(|status| serde_json::to_value(status).ok()) else { break };
                match self.parts.writer.replace_status_of(Kind::DeployRepo, &seen.identity, status).await {
                    Err(WriteError::Conflict { .. }) if attempt < TRIES => {
                        tokio::time::sleep(Duration::from_millis(50) * attempt).await;
                    }
                    written => {
                        self.note(&repo_key, written);
                        break;
                    }
                }
            }
        }
    }

    fn note(&self, object: &Key, written: Result<(), WriteError>) {
        if let Err(error) = written {
            tracing::warn!(%object, %error, "the state of the record could not be written");
        }
    }

    fn measure(&self) {
        let now = (self.parts.now)();
        let rollouts = self.index().rollouts();
        let repos = self.index().deploy_repos();
        let waiting: Vec<DateTime<Utc>> = rollouts
            .iter()
            .filter_map(|rollout| {
                let repo = record::recorder(&rollout.identity, &repos, &self.parts.operator_namespace)?;
                let due = rollout.status.as_ref()?.due(repo.spec.as_ref().ok()?.log.granularity);
                Some(due.into_iter().map(|transition| transition.at).collect::<Vec<_>>())
            })
            .flatten()
            .collect();
        let oldest = waiting.iter().min().and_then(|at| (now - *at).to_std().ok()).unwrap_or_default();
        self.parts.metrics.set_outbox(waiting.len(), oldest);
    }

    fn index(&self) -> &Index {
        self.parts.writer.index()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<LedgerKey, Arc<LedgerContents>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contents(&self, key: &LedgerKey) -> Option<Arc<LedgerContents>> {
        self.known().get(key).cloned()
    }

    fn key_of(&self, repo: &DeployRepoObject) -> Option<LedgerKey> {
        let spec = repo.spec.as_ref().ok()?;
        let repository = self.parts.remotes.identity(spec.log.url.as_ref().unwrap_or(&spec.url))?;
        let cluster = spec.log.cluster.clone().unwrap_or_else(|| self.parts.cluster.clone());
        Some(LedgerKey { repository, cluster })
    }

    fn ledger_of(&self, rollout: &RolloutObject) -> Option<LedgerKey> {
        self.recording_of(rollout).map(|(key, _)| key)
    }

    /// Where a Rollout is recorded, and what it does while that is not possible.
    fn recording_of(&self, rollout: &RolloutObject) -> Option<(LedgerKey, OnAuditUnavailable)> {
        let repos = self.index().deploy_repos();
        let repo = record::recorder(&rollout.identity, &repos, &self.parts.operator_namespace)?;
        Some((self.key_of(repo)?, repo.spec.as_ref().ok()?.log.on_audit_unavailable))
    }

    /// The DeployRepos that record into this ledger, the operator's own and the oldest first.
    fn repos_of(&self, key: &LedgerKey) -> Vec<Arc<DeployRepoObject>> {
        let mut repos = self.index().deploy_repos();
        repos.retain(|repo| !repo.identity.deleting && self.key_of(repo).as_ref() == Some(key));
        repos.sort_by_key(|repo| {
            let elsewhere = repo.identity.namespace != self.parts.operator_namespace;
            (elsewhere, repo.identity.created_at, repo.identity.key())
        });
        repos
    }

    fn rollouts_of(&self, key: &LedgerKey) -> Vec<Arc<RolloutObject>> {
        let repos = self.index().deploy_repos();
        let mut rollouts = self.index().rollouts();
        rollouts.retain(|rollout| {
            let repo = record::recorder(&rollout.identity, &repos, &self.parts.operator_namespace);
            repo.and_then(|repo| self.key_of(repo)).as_ref() == Some(key)
        });
        rollouts
    }
}

fn granularity(repos: &[Arc<DeployRepoObject>]) -> Granularity {
    repos.iter().find_map(|repo| Some(repo.spec.as_ref().ok()?.log.granularity)).unwrap_or_default()
}

/// A Rollout that has no version yet: it waits for what the ledger says.
fn waits_for_first(rollout: &RolloutObject) -> bool {
    rollout.status.as_ref().is_none_or(|status| status.stable_revision.is_none())
}

/// What can be cured by other credentials, or by the same ones read again, closes the ledger.
fn refused(session: &mut Session, error: GitError) -> Trouble {
    if matches!(
        error,
        GitError::Denied { .. }
            | GitError::HostKey { .. }
            | GitError::Certificate { .. }
            | GitError::Moved { .. }
            | GitError::NotFound { .. }
    ) {
        session.open = None;
        session.opener = session.opener.wrapping_add(1);
    }
    error.into()
}

#[cfg(test)]
mod tests;
