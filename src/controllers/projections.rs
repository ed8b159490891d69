//! The loop that tells others: from the entries of the ledger to those whom a DeployRepo names, in order, each once.
//!
//! *Observe*: how far the log has come, and how far this one has been told. *Decide*: what it is told next. *Act*: tell,
//! then write down that it was told. A crash between the two tells it once more, under the same identity. Each
//! projection has turns of its own, so one that fails delays no other one; and nothing here is waited for by a
//! rollout or by the ledger, whose own copy is all that is read.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::credentials::{CredentialsError, Remote, Secrets};
use super::ledger::record::may_record;
use super::queue::{Failure, Outcome, Queue, QueueConfig};
use crate::api::{DeployRepoSpec, DeployRepoStatus, Projection, ProjectionKind, ProjectionStatus};
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{DeployRepoObject, Key};
use crate::cluster::write::{WriteError, Writer};
use crate::forge::Location;
use crate::git::{Commit, GitCache, GitError, RemoteAddress, Segment};
use crate::projections::{DeliveryError, Event, ForgeSink, Format, Receiver, Sink};
use crate::telemetry::{Delivery, Metrics};

/// Entries in one turn at most.
const MOST: usize = 50;
/// A turn ends after this time, though there is more: others wait for a worker.
const LONGEST_TURN: Duration = Duration::from_secs(20);
/// When our copy does not hold the tip yet, the ledger's loop is about to fetch it.
const NOT_HERE_YET: Duration = Duration::from_secs(5);
/// How long one entry is offered to somebody who takes others but not this one.
const OFFERED_FOR: TimeDelta = TimeDelta::hours(1);
/// How often a write is tried whose precondition failed.
const TRIES: u32 = 5;
/// The field that names the Secret of a projection.
const SECRET: &str = "spec.projections.secretRef";

/// One projection of one DeployRepo.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectionKey {
    /// The DeployRepo.
    pub repo: Key,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for ProjectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of DeployRepo {}", self.name, self.repo)
    }
}

/// Reads the entries of a ledger. The `git` room's own copy, or a local one in tests.
pub trait Entries: Send + Sync + 'static {
    /// What a DeployRepo's log holds after a commit, oldest first and at most `most`. None while our copy is behind.
    fn after(
        &self,
        spec: &DeployRepoSpec,
        wanted: Segment,
        most: usize,
    ) -> impl Future<Output = Result<Option<Vec<Commit>>, GitError>> + Send;
}

impl Entries for GitCache {
    async fn after(
        &self,
        spec: &DeployRepoSpec,
        wanted: Segment,
        most: usize,
    ) -> Result<Option<Vec<Commit>>, GitError> {
        self.entries(&RemoteAddress::parse(&Remote::log(spec).url)?, wanted, most).await
    }
}

/// The measures of the queue of projections. One that does not answer holds a worker for as long as a request may take.
pub fn queue_config() -> QueueConfig {
    QueueConfig {
        concurrency: 32,
        turn_timeout: Duration::from_secs(180),
        first_backoff: Duration::from_secs(1),
        longest_backoff: Duration::from_secs(60),
        ..QueueConfig::default()
    }
}

/// What the loop is made of.
pub struct Parts<E> {
    /// The cluster as last seen, and the way to write.
    pub writer: Writer,
    /// Reads the Secrets of those who are told.
    pub secrets: Secrets,
    /// The way to the entries.
    pub entries: E,
    /// The cluster's name, where a DeployRepo gives none.
    pub cluster: String,
    /// The operator's own namespace.
    pub operator_namespace: String,
    /// The queue whose keys are given to [`ProjectionController::turn`].
    pub queue: Queue<ProjectionKey>,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// The one clock.
    pub now: fn() -> DateTime<Utc>,
}

/// The loop that tells others.
pub struct ProjectionController<E> {
    parts: Parts<E>,
    memory: Mutex<HashMap<ProjectionKey, Memory>>,
    /// One write at a time: many projections share one status, which the ledger and the sync write too.
    writing: tokio::sync::Mutex<()>,
}

/// What a turn remembers for the next one. Losing it costs a request.
#[derive(Clone, Default)]
struct Memory {
    /// The other side wants no request before.
    not_before: Option<DateTime<Utc>>,
    /// The entry that was refused, and since when.
    refused: Option<(String, DateTime<Utc>)>,
    /// The entry that was told last: it is not told again when only writing that down has failed.
    told: Option<String>,
}

/// Why somebody could not be told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error("{SECRET}: Secret {secret}: {source}")]
    Declaration { secret: String, source: DeliveryError },
    #[error("{field} {reason}")]
    Missing { field: &'static str, reason: &'static str },
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    #[error("the log cannot be read: {0}")]
    Git(#[from] GitError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl TellError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Credentials(error) => error.reason(),
            Self::Declaration { source, .. } | Self::Delivery(source) => source.reason(),
            Self::Missing { .. } => "InvalidProjection",
            Self::Git(error) => error.reason(),
            Self::Write(error) => error.reason(),
        }
    }

    /// It lies with the one who is to be told, or with what was declared for it, and not with us.
    fn is_theirs(&self) -> bool {
        !matches!(self, Self::Git(_) | Self::Write(_))
    }
}

/// What one turn is about.
struct Work<'a> {
    key: &'a ProjectionKey,
    repo: &'a DeployRepoObject,
    spec: &'a DeployRepoSpec,
    projection: &'a Projection,
}

impl<E: Entries> ProjectionController<E> {
    /// The loop; its turns are taken from `parts.queue`.
    pub fn new(parts: Parts<E>) -> Self {
        Self { parts, memory: Mutex::default(), writing: tokio::sync::Mutex::default() }
    }

    /// Looks soon at all projections of a DeployRepo: after a change of it, and so after each push of the log.
    pub fn look_at(&self, repo: &Key) {
        if !self.parts.writer.may_write() {
            return;
        }
        let Some(seen) = self.parts.writer.index().deploy_repo(repo) else { return };
        let declared = seen.spec.iter().flat_map(|spec| &spec.projections).map(|projection| &projection.name);
        let known = seen.status.iter().flat_map(|status| &status.projections).map(|known| &known.name);
        for name in declared.chain(known).collect::<BTreeSet<_>>() {
            self.parts.queue.add(ProjectionKey { repo: repo.clone(), name: name.clone() });
        }
    }

    /// One turn for one projection.
    pub async fn turn(&self, key: ProjectionKey) -> Outcome {
        // Whoever leads looks at every DeployRepo first of all.
        if !self.parts.writer.may_write() {
            return Outcome::Done;
        }
        let repo = self.parts.writer.index().deploy_repo(&key.repo).filter(|repo| !repo.identity.deleting);
        let Some(repo) = repo else {
            self.memory().remove(&key);
            return Outcome::Done;
        };
        let Ok(spec) = &repo.spec else { return Outcome::Done };
        let Some(projection) = spec.projections.iter().find(|projection| projection.name == key.name) else {
            self.memory().remove(&key);
            return outcome(&key, self.forget(&key, &repo).await.map(|()| Outcome::Done).map_err(TellError::Write));
        };
        if spec.suspend {
            return Outcome::Done;
        }
        let now = (self.parts.now)();
        if let Some(until) = self.remembered(&key).not_before
            && let Ok(left) = (until - now).to_std()
            && !left.is_zero()
        {
            return Outcome::After(left);
        }
        let work = Work { key: &key, repo: &repo, spec, projection };
        outcome(&key, self.follow(&work).await)
    }

    /// From the last entry that was told towards the tip.
    async fn follow(&self, work: &Work<'_>) -> Result<Outcome, TellError> {
        let status = work.repo.status.clone().unwrap_or_default();
        // Without a branch nobody has looked at the log yet; with one, no tip means that it is empty.
        let Some(branch) = status.log_branch else { return Ok(Outcome::Done) };
        let Some(known) = status.projections.into_iter().find(|known| known.name == work.key.name) else {
            // A new one is told what comes from now on, and not all the past.
            let here = ProjectionStatus::at(&work.key.name, status.log_tip.unwrap_or_default());
            self.write(work, None, &here).await?;
            return Ok(Outcome::Done);
        };
        let Some(tip) = status.log_tip.filter(|tip| *tip != known.commit) else { return Ok(Outcome::Done) };
        let after = Some(known.commit.clone()).filter(|commit| !commit.is_empty());
        let wanted = Segment { branch, tip: tip.clone(), after };
        let Some(entries) = self.parts.entries.after(work.spec, wanted, MOST).await? else {
            return Ok(Outcome::After(NOT_HERE_YET));
        };
        let began = Instant::now();
        let (mut cursor, mut sink) = (known, None);
        // With no entries the cursor is none of this log's any more, and there is nowhere to begin but here.
        let mut passed = if entries.is_empty() { tip.clone() } else { cursor.commit.clone() };
        for entry in &entries {
            if let Some(event) = self.concerning(work, entry) {
                if sink.is_some() && began.elapsed() > LONGEST_TURN {
                    break;
                }
                if let Err(error) = self.tell(work, &mut sink, &event).await {
                    return self.failed(work, &cursor, error).await;
                }
                let here = ProjectionStatus::at(&work.key.name, entry.id.clone());
                self.write(work, Some(&cursor.commit), &here).await?;
                self.memory().remove(work.key);
                cursor = here;
            }
            passed.clone_from(&entry.id);
        }
        if passed != cursor.commit {
            let here = ProjectionStatus::at(&work.key.name, passed.clone());
            self.write(work, Some(&cursor.commit), &here).await?;
        }
        Ok(if passed == tip { Outcome::Done } else { Outcome::After(Duration::ZERO) })
    }

    /// What of an entry this projection is told: none when it does not concern it.
    fn concerning(&self, work: &Work<'_>, entry: &Commit) -> Option<Event> {
        let Some(mut event) = Event::of(entry) else {
            if entry.trailers().get("Id").is_some() {
                tracing::warn!(projection = %work.key, commit = entry.id, "an entry of the log is not understood");
            }
            return None;
        };
        // One log may hold what several DeployRepos record: nobody is told of another one's namespaces.
        if !may_record(work.repo, &self.parts.operator_namespace, &event.namespace) {
            return None;
        }
        let wanted = &work.projection.events;
        if !wanted.is_empty() && !wanted.contains(&event.event) {
            return None;
        }
        event.page = page(work.spec, &event.commit);
        Some(event)
    }

    /// Tells it, unless that was done already, or is given up.
    async fn tell(&self, work: &Work<'_>, sink: &mut Option<Sink>, event: &Event) -> Result<(), TellError> {
        if self.remembered(work.key).told.as_ref() == Some(&event.commit) {
            return Ok(());
        }
        let now = (self.parts.now)();
        let opened = match sink.take() {
            Some(opened) => opened,
            None => self.open(work).await?,
        };
        let delivered = sink.insert(opened).deliver(event, now).await;
        let kind = work.projection.to;
        let Err(error) = delivered else {
            self.parts.metrics.delivery(kind, Delivery::Told);
            let memory = Memory { told: Some(event.commit.clone()), ..Memory::default() };
            self.memory().insert(work.key.clone(), memory);
            return Ok(());
        };
        let mut memory = self.remembered(work.key);
        memory.not_before =
            error.retry_after().and_then(|wait| now.checked_add_signed(TimeDelta::from_std(wait).ok()?));
        let refused = memory.refused.take().filter(|(commit, _)| *commit == event.commit);
        memory.refused = error.is_about_the_message().then(|| refused.unwrap_or((event.commit.clone(), now)));
        let given_up = memory.refused.as_ref().is_some_and(|(_, since)| now - *since >= OFFERED_FOR);
        self.memory().insert(work.key.clone(), memory);
        if given_up {
            tracing::warn!(projection = %work.key, commit = event.commit, %error, "an entry is not told, for it is refused");
            self.parts.metrics.delivery(kind, Delivery::GivenUp);
            return Ok(());
        }
        self.parts.metrics.delivery(kind, Delivery::Failed);
        Err(error.into())
    }

    async fn open(&self, work: &Work<'_>) -> Result<Sink, TellError> {
        let (namespace, secrets) = (&work.repo.identity.namespace, &self.parts.secrets);
        let format = match work.projection.to {
            ProjectionKind::CommitStatus | ProjectionKind::Deployment => {
                let missing = TellError::Missing { field: "spec.forge", reason: "is missing" };
                let client = secrets.forge(namespace, work.spec).await?.ok_or(missing)?;
                let sink = if work.projection.to == ProjectionKind::CommitStatus {
                    ForgeSink::commit_status(client)
                } else {
                    let cluster = || work.spec.log.cluster.clone().unwrap_or_else(|| self.parts.cluster.clone());
                    ForgeSink::deployment(client, work.projection.environment.clone().unwrap_or_else(cluster))
                };
                return Ok(Sink::Forge(Box::new(sink)));
            }
            ProjectionKind::CloudEvents => Format::CloudEvent,
            ProjectionKind::Webhook => Format::Document,
            ProjectionKind::Slack => Format::Slack,
            ProjectionKind::Teams => Format::Teams,
        };
        let missing = TellError::Missing { field: SECRET, reason: "is missing" };
        let reference = work.projection.secret_ref.as_ref().ok_or(missing)?;
        let secret = secrets.named(namespace, SECRET, &reference.name).await?;
        // A webhook is always signed; a broker in the same cluster may want no signature.
        let signs = format == Format::Document || (format == Format::CloudEvent && secret.has("token"));
        let token = signs.then(|| secret.value("token")).transpose()?;
        let receiver = Receiver::new(format, &secret.value("address")?, token, secret.authorities()?.as_deref());
        let receiver = receiver.map_err(|source| TellError::Declaration { secret: secret.name.clone(), source })?;
        Ok(Sink::Receiver(receiver))
    }

    /// Says since when it fails and why, where that lies with them.
    async fn failed(&self, work: &Work<'_>, cursor: &ProjectionStatus, error: TellError) -> Result<Outcome, TellError> {
        if !error.is_theirs() {
            return Err(error);
        }
        let since = cursor.failing_since.unwrap_or_else(self.parts.now);
        let after = ProjectionStatus { failing_since: Some(since), message: Some(error.to_string()), ..cursor.clone() };
        self.write(work, Some(&cursor.commit), &after).await?;
        match &error {
            TellError::Delivery(delivery) if delivery.retry_after().is_some() => {
                Ok(Outcome::After(delivery.retry_after().unwrap_or_default()))
            }
            _ => Err(error),
        }
    }

    /// Writes how far it has come, if it is still where it was left.
    async fn write(
        &self,
        work: &Work<'_>,
        before: Option<&String>,
        after: &ProjectionStatus,
    ) -> Result<(), WriteError> {
        self.change(work.key, work.repo, |status, spec| {
            let known = status.projections.iter().position(|known| known.name == after.name);
            let at = known.and_then(|index| status.projections.get_mut(index));
            if at.as_ref().map(|at| &at.commit) != before {
                return false;
            }
            match at {
                Some(at) => at.clone_from(after),
                None => status.projections.push(after.clone()),
            }
            // Those who are declared no more are forgotten with it.
            status.projections.retain(|known| spec.projections.iter().any(|declared| declared.name == known.name));
            true
        })
        .await
    }

    /// One that is declared no more begins anew when it is declared again.
    async fn forget(&self, key: &ProjectionKey, repo: &DeployRepoObject) -> Result<(), WriteError> {
        self.change(key, repo, |status, spec| {
            status.projections.retain(|known| spec.projections.iter().any(|declared| declared.name == known.name));
            true
        })
        .await
    }

    /// Writes a DeployRepo's status as it is now, changed. A change that does not fit any more is a conflict.
    async fn change(
        &self,
        key: &ProjectionKey,
        repo: &DeployRepoObject,
        change: impl Fn(&mut DeployRepoStatus, &DeployRepoSpec) -> bool,
    ) -> Result<(), WriteError> {
        let conflict = || WriteError::Conflict { what: key.to_string() };
        let _alone = self.writing.lock().await;
        for attempt in 1..=TRIES {
            let seen = self.parts.writer.index().deploy_repo(&key.repo);
            let seen = seen.filter(|seen| seen.identity.uid == repo.identity.uid).ok_or_else(conflict)?;
            let Ok(spec) = &seen.spec else { return Err(conflict()) };
            let before = seen.status.clone().unwrap_or_default();
            let mut status = before.clone();
            if !change(&mut status, spec) {
                return Err(conflict());
            }
            if status == before {
                return Ok(());
            }
            let status = serde_json::to_value(status).map_err(|error| WriteError::Unprepared(error.to_string()))?;
            match self.parts.writer.replace_status_of(Kind::DeployRepo, &seen.identity, status).await {
                // The watch brings what others have written.
                Err(WriteError::Conflict { .. }) => tokio::time::sleep(Duration::from_millis(50) * attempt).await,
                result => return result,
            }
        }
        Err(conflict())
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<ProjectionKey, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, key: &ProjectionKey) -> Memory {
        self.memory().get(key).cloned().unwrap_or_default()
    }
}

fn outcome(key: &ProjectionKey, result: Result<Outcome, TellError>) -> Outcome {
    match result {
        Ok(outcome) => outcome,
        // Whoever leads now tells it.
        Err(TellError::Write(WriteError::NotLeader)) => Outcome::Done,
        Err(error) => Outcome::Failed(Failure { reason: error.reason(), message: format!("{key}: {error}") }),
    }
}

/// Where people read an entry: on the forge, when the log is in the repository that the forge hosts.
fn page(spec: &DeployRepoSpec, commit: &str) -> Option<String> {
    let forge = spec.forge.as_ref().filter(|_| spec.log.url.as_ref().is_none_or(|url| *url == spec.url))?;
    Location::new(forge.kind, forge.api.as_deref(), &spec.url).ok().map(|location| location.commit_page(commit))
}

#[cfg(test)]
mod tests;
