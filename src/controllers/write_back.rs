//! When a verdict aborts, git is put back: a pull request or a commit in which only the Rollout's own fields change.
//!
//! *Observe*: a release that was aborted by its metrics or its deadline, and git still asks for it. *Decide*: what the
//! DeployRepo allows, and whether this cluster may speak for the others on the same path. *Act*: one push, one pull
//! request. Nothing is remembered here: a crash at any point is answered by looking first, at the branch, the pull
//! request and the condition `GitAhead`, which says all along that git is ahead of the cluster, since when, and why.
//! Never for missing metrics or faults of the infrastructure, for those say nothing about the revision.

mod positions;
mod restore;
mod splice;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use self::restore::{Good, NotLiteral, Wanted, find, in_words_of, restore, undeclared};
use super::LedgerView;
use super::credentials::{CredentialsError, Remote, Secrets};
use super::ledger::record::{Trouble, recorder};
use super::queue::{Failure, Outcome, QueueConfig};
use crate::api::{
    Abort, AbortCause, Condition, ConditionStatus, Conditions, DeployRepoSpec, OnAbort, Release, ReleaseState,
    RolloutStatus, names,
};
use crate::cluster::index::Index;
use crate::cluster::objects::{DeployRepoObject, Key, RolloutObject};
use crate::cluster::write::{WriteError, Writer};
use crate::forge::{ForgeClient, ForgeError, NewPullRequest, PullRequest};
use crate::git::{Epoch, FileChange, GitCache, GitError, Place, ReadLimits, Rejection, Repository};
use crate::telemetry::Metrics;

/// The condition this room owns: git asks for what the cluster has aborted.
pub const GIT_AHEAD: &str = "GitAhead";

/// A pull request was opened.
const PROPOSED: &str = "RevertProposed";
/// A commit was pushed.
const COMMITTED: &str = "RevertCommitted";

/// How often a branch that moves on meanwhile is read again.
const TRIES: u32 = 10;
/// How often a write is tried whose precondition failed.
const WRITES: u32 = 5;
/// How long what waits for somebody else is left alone.
const LATER: Duration = Duration::from_secs(60);
/// How long an abort that is not in the log yet is left alone.
const SOON: Duration = Duration::from_secs(2);
/// How often a process that does not lead looks whether it does.
const STANDBY: Duration = Duration::from_secs(5);

/// Opens repositories and forges: with the Secrets of the cluster, or local ones in tests.
pub trait Doors: Send + Sync + 'static {
    /// The forge of a repository.
    type Forge: PullRequests;
    /// A DeployRepo's repository, for writing to the branches that people use.
    fn repository(
        &self,
        namespace: &str,
        spec: &DeployRepoSpec,
    ) -> impl Future<Output = Result<Repository, Trouble>> + Send;
    /// The repository of its log.
    fn log(&self, namespace: &str, spec: &DeployRepoSpec) -> impl Future<Output = Result<Repository, Trouble>> + Send;
    /// The forge, if one is declared.
    fn forge(
        &self,
        namespace: &str,
        spec: &DeployRepoSpec,
    ) -> impl Future<Output = Result<Option<Self::Forge>, Trouble>> + Send;
}

/// What is needed of a forge.
pub trait PullRequests: Send + Sync {
    /// The open one from this branch, if there is one.
    fn find(&self, head: &str) -> impl Future<Output = Result<Option<PullRequest>, ForgeError>> + Send;
    /// Opens one.
    fn open(&self, new: NewPullRequest<'_>) -> impl Future<Output = Result<PullRequest, ForgeError>> + Send;
}

impl PullRequests for ForgeClient {
    async fn find(&self, head: &str) -> Result<Option<PullRequest>, ForgeError> {
        self.find_pull_request(head).await
    }

    async fn open(&self, new: NewPullRequest<'_>) -> Result<PullRequest, ForgeError> {
        self.open_pull_request(new).await
    }
}

/// The doors that the Secrets of DeployRepos open.
pub struct SecretDoors {
    /// Reads the Secrets.
    pub secrets: Secrets,
    /// The one cache.
    pub cache: GitCache,
}

impl SecretDoors {
    async fn open(&self, namespace: &str, remote: &Remote) -> Result<Repository, Trouble> {
        let access = self.secrets.access(namespace, remote).await?;
        Ok(self.cache.repository(&remote.url, access)?)
    }
}

impl Doors for SecretDoors {
    type Forge = ForgeClient;

    async fn repository(&self, namespace: &str, spec: &DeployRepoSpec) -> Result<Repository, Trouble> {
        self.open(namespace, &Remote::write(spec)).await
    }

    async fn log(&self, namespace: &str, spec: &DeployRepoSpec) -> Result<Repository, Trouble> {
        self.open(namespace, &Remote::log(spec)).await
    }

    async fn forge(&self, namespace: &str, spec: &DeployRepoSpec) -> Result<Option<ForgeClient>, Trouble> {
        self.secrets.forge(namespace, spec).await.map_err(|error: CredentialsError| error.into())
    }
}

impl From<ForgeError> for Trouble {
    fn from(error: ForgeError) -> Self {
        Self { reason: error.reason(), passing: error.is_transient(), message: error.to_string() }
    }
}

impl From<NotLiteral> for Trouble {
    fn from(error: NotLiteral) -> Self {
        let message = format!("{error}; git cannot be put back by itself: revert by hand");
        Self { reason: "NotLiteral", passing: false, message }
    }
}

/// The measures of the queue.
pub fn queue_config() -> QueueConfig {
    QueueConfig {
        concurrency: 4,
        turn_timeout: Duration::from_secs(300),
        first_backoff: Duration::from_secs(2),
        longest_backoff: Duration::from_secs(300),
        ..QueueConfig::default()
    }
}

/// What the loop is made of.
pub struct Parts<D> {
    /// The cluster as last seen, and the way to write.
    pub writer: Writer,
    /// The way to repositories and forges.
    pub doors: D,
    /// What the ledger says of the last good version.
    pub ledger: Arc<dyn LedgerView>,
    /// The cluster's name in the log.
    pub cluster: String,
    /// The operator's own namespace.
    pub operator_namespace: String,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// The one clock.
    pub now: fn() -> DateTime<Utc>,
}

/// The loop that puts git back.
pub struct WriteBack<D> {
    parts: Parts<D>,
}

/// A release that was aborted while git asks for it.
struct Ahead<'a> {
    /// The cluster's name in the log.
    cluster: &'a str,
    rollout: &'a RolloutObject,
    status: &'a RolloutStatus,
    release: &'a Release,
    abort: &'a Abort,
    /// The commit that asked for it, if that is known.
    commit: Option<&'a str>,
}

impl<'a> Ahead<'a> {
    fn of(rollout: &'a RolloutObject, cluster: &'a str) -> Option<Self> {
        let status = rollout.status.as_ref()?;
        let release = status.release.as_ref().filter(|release| release.state == ReleaseState::Aborted)?;
        let abort = release.abort.as_ref()?;
        let judged = matches!(abort.cause, AbortCause::Verdict | AbortCause::Deadline);
        let asked = rollout.spec.as_ref().ok()?.template.revision() == release.revision;
        let commit = rollout.identity.annotations.get(names::SOURCE_COMMIT).map(String::as_str);
        (judged && asked && !rollout.identity.deleting).then_some(Self {
            cluster,
            rollout,
            status,
            release,
            abort,
            commit,
        })
    }

    /// `<revision>.<attempt>`, as in the log.
    fn name(&self) -> String {
        format!("{}.{}", self.release.revision, self.release.attempt)
    }
}

/// What was done, as the condition says it.
struct Done {
    reason: &'static str,
    message: String,
    /// Look again after this time.
    again: Option<Duration>,
}

impl<D: Doors> WriteBack<D> {
    /// The loop; its turns are taken from `parts.queue`.
    pub fn new(parts: Parts<D>) -> Self {
        Self { parts }
    }

    /// Looks at one Rollout.
    pub async fn turn(&self, key: Key) -> Outcome {
        if !self.parts.writer.may_write() {
            return Outcome::After(STANDBY);
        }
        self.measure();
        let Some(rollout) = self.index().rollout(&key) else { return Outcome::Done };
        let repos = self.index().deploy_repos();
        let repo = recorder(&rollout.identity, &repos, &self.parts.operator_namespace);
        let spec = repo.and_then(|repo| repo.spec.as_ref().ok());
        let own = spec.and_then(|spec| spec.log.cluster.as_deref()).unwrap_or(&self.parts.cluster);
        let Some(ahead) = Ahead::of(&rollout, own) else {
            let written = self.say(&rollout, None).await;
            return written
                .map_or_else(|error| Outcome::Failed(Failure::new("NotWritten", &error)), |()| Outcome::Done);
        };
        let (Some(repo), Some(spec)) = (repo, spec.filter(|spec| !spec.suspend)) else { return Outcome::Done };
        match self.put_back(&ahead, repo, spec).await {
            Ok(done) => match self.say(&rollout, Some((done.reason, &done.message))).await {
                Ok(()) => done.again.map_or(Outcome::Done, Outcome::After),
                Err(error) => Outcome::Failed(Failure::new("NotWritten", &error)),
            },
            Err(trouble) => {
                tracing::warn!(rollout = %key, reason = trouble.reason, message = trouble.message, "git is not put back");
                let said = self.say(&rollout, Some((trouble.reason, &trouble.message))).await;
                let message = said.err().map_or(trouble.message, |error| error.to_string());
                Outcome::Failed(Failure { reason: trouble.reason, message })
            }
        }
    }

    async fn put_back(
        &self,
        ahead: &Ahead<'_>,
        repo: &DeployRepoObject,
        spec: &DeployRepoSpec,
    ) -> Result<Done, Trouble> {
        let release = ahead.name();
        let asked = ahead.commit.map_or_else(String::new, |commit| format!(" by commit {commit}"));
        let needed = format!("git asks for {release}{asked}, which was aborted: {}", ahead.abort.message);
        let after = |reason, message, again| Ok(Done { reason, message, again });
        if spec.on_abort == OnAbort::None {
            return after("RevertNeeded", format!("{needed}; revert that commit"), None);
        }
        if ahead.status.recorded_sequence < ahead.status.sequence || !ahead.status.pending_log.is_empty() {
            return after("RevertWaits", format!("{needed}; the log has not recorded the abort yet"), Some(SOON));
        }
        let known = ahead.status.conditions.condition(GIT_AHEAD);
        let known = known
            .filter(|known| known.status == ConditionStatus::True && known.message.split(' ').next() == Some(&release));
        let said = |reason: &str| known.filter(|known| known.reason == reason).map(|known| known.message.clone());
        if let Some(message) = said(COMMITTED) {
            return after(COMMITTED, message, None);
        }
        let proposed_before = said(PROPOSED);
        // What was proposed for want of agreement is committed once enough of the others agree.
        let may_become_commit = spec.on_abort == OnAbort::Commit && spec.abort_quorum.is_some();
        if let Some(message) = proposed_before.clone().filter(|_| !may_become_commit) {
            return after(PROPOSED, message, None);
        }
        let namespace = repo.identity.namespace.as_str();
        let alone = match self.others(namespace, spec, ahead).await? {
            None => Ok(()),
            Some((aborted, all)) => match spec.abort_quorum.and_then(|quorum| usize::try_from(quorum).ok()) {
                Some(quorum) if aborted >= quorum => Ok(()),
                Some(quorum) => {
                    Err(format!("{aborted} of {all} clusters have aborted it, {quorum} are needed to commit"))
                }
                None => Err(format!("{all} clusters follow this path, and abortQuorum is not set")),
            },
        };
        let commits = spec.on_abort == OnAbort::Commit && alone.is_ok();
        if let Some(message) = proposed_before.filter(|_| !commits) {
            return after(PROPOSED, message, Some(jittered(LATER)));
        }
        let repository = self.parts.doors.repository(namespace, spec).await?;
        // Of one that was proposed only for want of agreement the quorum may still come.
        let look_again = may_become_commit.then(|| jittered(LATER));
        let forge = if commits { None } else { self.parts.doors.forge(namespace, spec).await? };
        let head = format!(
            "sluice/revert/{}/{}/{}/{}",
            ahead.cluster, ahead.rollout.identity.namespace, ahead.rollout.identity.name, release
        );
        let branch = match (commits, &forge) {
            (true, _) => spec.branch.as_str(),
            (false, Some(_)) => head.as_str(),
            (false, None) => {
                let why = alone.err().unwrap_or_default();
                return after(
                    "RevertWaits",
                    format!("{needed}; {why}, and no forge is declared for a pull request"),
                    Some(LATER),
                );
            }
        };
        // A pull request that is there is not opened again: its branch, or the commit on it, may be older than this turn.
        if let Some(forge) = &forge
            && let Some(open) = forge.find(&head).await?
        {
            return after(PROPOSED, proposed(&release, &open), look_again);
        }
        let pushed = match (&forge, repository.remote_head(&head).await?) {
            // Its pull request was not opened before we stopped.
            (Some(_), Some(_)) => Some(None),
            _ => self.push(&repository, (repo, spec), ahead, branch, &release).await?.map(Some),
        };
        let Some(pushed) = pushed else {
            let message = format!("{needed}; the branch {} asks for something else by now", spec.branch);
            return after("RevertWaits", message, Some(LATER));
        };
        let Some(forge) = forge else {
            let commit = pushed.unwrap_or_default();
            return after(COMMITTED, format!("{release} is reverted by commit {commit} on {branch}"), Some(LATER));
        };
        let body = format!(
            "`{release}` of `{}/{}` was aborted in cluster `{}`.\n\n{}\n\nThis puts the pod template back to `{}`, which \
             is stable. Nothing else changes.\n",
            ahead.rollout.identity.namespace,
            ahead.rollout.identity.name,
            ahead.cluster,
            ahead.abort.message,
            ahead.status.stable_revision.as_deref().unwrap_or("what was stable"),
        );
        let title =
            format!("Revert {}/{} to what is stable", ahead.rollout.identity.namespace, ahead.rollout.identity.name);
        let new = NewPullRequest { title: &title, body: &body, head: &head, base: &spec.branch };
        let open = match forge.open(new).await {
            Err(ForgeError::NotFound { .. }) if pushed.is_some() => {
                // A branch that was pushed a moment ago is looked at in the forge's own time.
                let message = format!("{needed}; the forge does not know the branch {head} yet");
                return after("RevertWaits", message, Some(SOON));
            }
            open => open?,
        };
        after(PROPOSED, proposed(&release, &open), look_again)
    }

    /// Makes the revert and pushes it. None when git asks for something else by now.
    async fn push(
        &self,
        repository: &Repository,
        (repo, spec): (&DeployRepoObject, &DeployRepoSpec),
        ahead: &Ahead<'_>,
        branch: &str,
        release: &str,
    ) -> Result<Option<String>, Trouble> {
        let identity = &ahead.rollout.identity;
        let wanted = Wanted {
            namespace: &identity.namespace,
            name: &identity.name,
            default_namespace: &repo.identity.namespace,
        };
        let limits = ReadLimits::default();
        let mut tries = 0;
        loop {
            let tip = repository.read(&spec.branch, spec.path.as_deref(), &limits).await?;
            let files = tip.files.iter().map(|file| (file.path.as_str(), file.content.as_str()));
            let Some(declared) = find(files, wanted) else {
                return Err(NotLiteral::new("spec.template", "is not written in a manifest of this repository").into());
            };
            // The cluster adds defaults to what is declared, so both are compared by what is declared.
            let Ok(bad) = ahead.rollout.spec.as_ref().map(|spec| &spec.template.0) else { return Ok(None) };
            if undeclared(&declared.template, bad).is_some() {
                return Ok(None);
            }
            let before = match ahead.commit {
                Some(commit) => repository.read_before(commit, spec.path.as_deref(), &limits).await.ok(),
                None => None,
            };
            let stable = ahead.status.stable_revision.as_deref();
            let recorded = self.parts.ledger.state(&identity.key()).last_good;
            let recorded = recorded.filter(|(revision, _)| Some(revision.as_str()) == stable);
            let recorded = recorded.map(|(_, template)| template.0);
            let sets = self.index().replica_sets_of(&identity.key());
            let serving = sets.iter().find(|set| Some(set.revision.as_str()) == stable).map(|set| &set.template.0);
            let stored = recorded.as_ref().or(serving);
            let good = before.as_ref().zip(stored).and_then(|(before, stored)| {
                let files = before.source.files.iter().map(|file| (file.path.as_str(), file.content.as_str()));
                find(files, wanted).filter(|good| undeclared(&good.template, stored).is_none())
            });
            // Only what stands before that commit is reverted by its name: it may be one of several in a push.
            let reverted = good.as_ref().and_then(|_| Some((ahead.commit?, before.as_ref()?.subject.as_str())));
            let log = repo.status.as_ref().and_then(|status| status.log_tip.as_deref()).unwrap_or_default();
            let words;
            let good = match (&good, &recorded) {
                (Some(good), _) => Good::Declaration(good),
                (None, Some(recorded)) => {
                    words = in_words_of(&declared.template, bad, recorded)?;
                    Good::Template(&words)
                }
                (None, None) => {
                    return Err(
                        NotLiteral::new("spec.template", "was good in no commit and no record that is known").into()
                    );
                }
            };
            let restored = restore(&declared, good, wanted)?;
            if restored.fields.is_empty() {
                return Ok(None);
            }
            let message = Self::message(ahead, release, reverted, log, &restored.fields);
            let change = FileChange {
                base: &tip.commit,
                path: &declared.path,
                content: &restored.text,
                message: &message,
                author: &format!("Sluice <sluice@{}>", ahead.cluster),
                at: ahead.abort.at,
            };
            match repository.push_change(branch, change).await {
                Ok(commit) => return Ok(Some(commit)),
                Err(GitError::Rejected { why: Rejection::NonFastForward, .. }) if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(jittered(Duration::from_millis(200)) * tries).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// As git's own `revert` words it.
    fn message(
        ahead: &Ahead<'_>,
        release: &str,
        reverted: Option<(&str, &str)>,
        log: &str,
        fields: &[String],
    ) -> String {
        let identity = &ahead.rollout.identity;
        let rollout = format!("{}/{}", identity.namespace, identity.name);
        let (subject, reverts) = match reverted {
            Some((commit, subject)) => {
                (subject.to_owned(), format!("This reverts commit {commit}, as far as it is about {rollout}."))
            }
            None => (format!("{rollout} {release}"), format!("This puts {rollout} back to what is stable.")),
        };
        format!(
            "Revert \"{subject}\"\n\n{reverts}\nCluster {cluster} aborted {release}: {why}\n\nPut back: {fields}\n\n\
             Rollout-Id: {cluster}/{rollout}\nRollout-Seq: {sequence}\nRollout-Release: {release}\nRollout-Reason: {cause:?}\n\
             Rollout-Log: {log}\n",
            cluster = ahead.cluster,
            why = ahead.abort.message.split_whitespace().collect::<Vec<_>>().join(" "),
            fields = fields.join(", "),
            sequence = ahead.status.sequence,
            cause = ahead.abort.cause,
        )
    }

    /// How many of the clusters whose logs know this Rollout have aborted this revision, this one included; none when it
    /// is the only one.
    async fn others(
        &self,
        namespace: &str,
        spec: &DeployRepoSpec,
        ahead: &Ahead<'_>,
    ) -> Result<Option<(usize, usize)>, Trouble> {
        if spec.on_abort != OnAbort::Commit {
            return Ok(None);
        }
        let log = self.parts.doors.log(namespace, spec).await?;
        let mut newest = std::collections::BTreeMap::<String, (Epoch, String)>::new();
        for branch in log.log_branches().await? {
            let cluster = branch.trim_start_matches(names::LOG_BRANCH_PREFIX).split('@').next().unwrap_or_default();
            let Some(epoch) = Epoch::parse(cluster, &branch).filter(|_| cluster != ahead.cluster) else { continue };
            let known = newest.entry(cluster.to_owned()).or_insert((epoch, branch.clone()));
            if known.0 < epoch {
                *known = (epoch, branch);
            }
        }
        let identity = &ahead.rollout.identity;
        let (mut aborted, mut all) = (1, 1);
        for (_, branch) in newest.into_values() {
            let folder = format!("{}/{}", identity.namespace, identity.name);
            let found = match log.read(&branch, Some(&folder), &ReadLimits::default()).await {
                Ok(found) => found.files,
                Err(GitError::NotFound { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let places = || found.iter().filter_map(|file| Place::parse(&file.path)).map(|(_, place)| place);
            if places().any(|place| place == Place::State) {
                all += 1;
                let revision = &*ahead.release.revision;
                aborted += usize::from(places().any(|place| place == Place::Aborted { revision }));
            }
        }
        Ok((all > 1).then_some((aborted, all)))
    }

    /// Writes the condition: true for a reason, or false where it was true before.
    async fn say(&self, rollout: &RolloutObject, ahead: Option<(&str, &str)>) -> Result<(), WriteError> {
        let key = rollout.identity.key();
        for attempt in 1.. {
            let Some(seen) = self.index().rollout(&key).filter(|seen| seen.identity.uid == rollout.identity.uid) else {
                break;
            };
            let before = seen.status.clone().unwrap_or_default();
            let known = before.conditions.condition(GIT_AHEAD);
            let (value, reason, message) = match ahead {
                Some((reason, message)) => (ConditionStatus::True, reason, message),
                None if known.is_some_and(|known| known.status == ConditionStatus::True) => {
                    (ConditionStatus::False, "Resolved", "git asks for what the cluster has, or is about to have")
                }
                None => break,
            };
            if known.is_some_and(|known| known.status == value && known.reason == reason && known.message == message) {
                break;
            }
            let mut status = before;
            status.conditions.set_condition(Condition {
                type_: GIT_AHEAD.to_owned(),
                status: value,
                reason: reason.to_owned(),
                message: message.chars().take(2000).collect(),
                last_transition_time: (self.parts.now)(),
                observed_generation: status.observed_generation,
            });
            match self.parts.writer.replace_status(&seen.identity, &status).await {
                Err(WriteError::Conflict { .. }) if attempt < WRITES => {
                    tokio::time::sleep(jittered(Duration::from_millis(50)) * attempt).await;
                }
                result => return result,
            }
        }
        Ok(())
    }

    fn measure(&self) {
        let now = (self.parts.now)();
        let rollouts = self.index().rollouts();
        let since = rollouts.iter().filter_map(|rollout| {
            let known = rollout.status.as_ref()?.conditions.condition(GIT_AHEAD)?;
            (known.status == ConditionStatus::True).then_some(known.last_transition_time)
        });
        let since: Vec<DateTime<Utc>> = since.collect();
        let oldest = since.iter().min().and_then(|since| (now - *since).to_std().ok()).unwrap_or_default();
        self.parts.metrics.set_git_ahead(since.len(), oldest);
    }

    fn index(&self) -> &Index {
        self.parts.writer.index()
    }
}

/// Half to one and a half times as long: clusters that follow one path abort, and are refused, at the same moment.
fn jittered(pause: Duration) -> Duration {
    let nanoseconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    pause * (500 + nanoseconds / 1000 % 1000) / 1000
}

fn proposed(release: &str, open: &PullRequest) -> String {
    let page = open.page.clone().unwrap_or_else(|| format!("number {}", open.number));
    format!("{release} is to be reverted by the pull request {page}")
}
