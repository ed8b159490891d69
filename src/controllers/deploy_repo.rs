//! The sync: from a branch to the cluster, one DeployRepo at a time.
//!
//! *Observe*: the branch's newest commit, the manifests in it, what the cluster holds of them. *Decide*:
//! [`plan_sync`]. *Act*: try everything on the server first; if anything is refused nothing is applied. Then
//! apply, then prune. At rest a turn is one look at the branch, and writes nothing.
//!
//! A DeployRepo without `sync` is only looked at: another tool applies what it declares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use chrono::Utc;
use futures::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::credentials::{CredentialsError, Remote, Secrets, text};
use super::manifests::{self, Manifest, ManifestError, ObjectId, Permission, Scope};
use super::queue::{Failure, Outcome, Queue, QueueConfig};
use super::sync_plan::{
    Planned, Seen, Situation, Steered, SyncPlan, carry_over, is_needed_by, may_carry, object_id, plan_sync, steers,
};
use crate::api::{
    Condition, ConditionStatus, Conditions, DeployRepoStatus, GROUP, HISTORY_REWRITTEN, InventoryEntry, SourceHistory,
    Steering, Strategy, names,
};
use crate::cluster::apply::{Applier, ApplyError, Basis, Target};
use crate::cluster::kinds::Kind;
use crate::cluster::objects::{DeployRepoObject, Key};
use crate::cluster::write::{WriteError, Writer};
use crate::git::{Access, Descent, GitCache, GitError, Missing, ReadLimits, Source};

/// Time between two looks at a branch when the DeployRepo does not say.
const INTERVAL: Duration = Duration::from_secs(60);
/// The shortest time between two looks.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// How often the cluster is compared with the commit though the branch has not moved.
const FULL_LOOK: Duration = Duration::from_secs(600);
/// How soon a process that does not lead looks whether it does by now.
const STANDBY: Duration = Duration::from_secs(5);
/// Requests to the API server at the same time, of one DeployRepo.
const PARALLEL: usize = 8;
/// How often a write is tried again whose precondition failed.
const TRIES: usize = 5;
/// How long a new CustomResourceDefinition may take to be served.
const ESTABLISH: Duration = Duration::from_secs(15);
/// Faults that fit a condition; the others are counted.
const SHOWN_FAULTS: usize = 5;
/// The longest message of a condition. The API server takes 32 KiB.
const LONGEST_MESSAGE: usize = 4000;

/// Where a branch is and what opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceAddress {
    /// The repository.
    pub url: String,
    /// The branch.
    pub branch: String,
    /// The folder.
    pub path: Option<String>,
    /// What opens it.
    pub access: Access,
}

/// Reads branches. The `git` room, or a scripted one in tests.
pub trait Sources: Send + Sync + 'static {
    /// The newest commit of the branch.
    fn head(&self, address: &SourceAddress) -> impl Future<Output = Result<String, GitError>> + Send;
    /// The files in the folder at the newest commit of the branch.
    fn read(&self, address: &SourceAddress) -> impl Future<Output = Result<Source, GitError>> + Send;
    /// How the branch came from one commit to another one.
    fn descent(
        &self,
        address: &SourceAddress,
        old: &str,
        new: &str,
    ) -> impl Future<Output = Result<Descent, GitError>> + Send;
}

impl Sources for GitCache {
    async fn head(&self, address: &SourceAddress) -> Result<String, GitError> {
        let repository = self.repository(&address.url, address.access.clone())?;
        let head = repository.remote_head(&address.branch).await?;
        head.ok_or_else(|| GitError::NotFound {
            what: Missing::Branch,
            name: address.branch.clone(),
            remote: repository.address().to_string(),
        })
    }

    async fn read(&self, address: &SourceAddress) -> Result<Source, GitError> {
        let repository = self.repository(&address.url, address.access.clone())?;
        repository.read(&address.branch, address.path.as_deref(), &ReadLimits::default()).await
    }

    async fn descent(&self, address: &SourceAddress, old: &str, new: &str) -> Result<Descent, GitError> {
        self.repository(&address.url, address.access.clone())?.descent(&address.branch, old, new).await
    }
}

/// Makes the operator look at a DeployRepo's branch at once. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SyncTrigger {
    queue: Queue<Key>,
    requested: Arc<Mutex<HashSet<Key>>>,
}

impl SyncTrigger {
    /// A trigger for the queue that the DeployRepos are worked on from.
    pub fn new(queue: Queue<Key>) -> Self {
        Self { queue, requested: Arc::default() }
    }

    /// Look now. Returns at once.
    pub fn request(&self, key: &Key) {
        self.requested.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        self.queue.add(key.clone());
    }

    fn take(&self, key: &Key) -> bool {
        self.requested.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }
}

/// The measures of the queue of DeployRepos. A turn may fetch a repository and apply a thousand objects.
pub fn queue_config() -> QueueConfig {
    QueueConfig {
        concurrency: 4,
        turn_timeout: Duration::from_secs(300),
        first_backoff: Duration::from_secs(1),
        longest_backoff: Duration::from_secs(60),
        ..QueueConfig::default()
    }
}

/// Works on DeployRepos.
pub struct DeployRepos<S> {
    applier: Arc<Applier>,
    secrets: Secrets,
    writer: Writer,
    sources: S,
    operator_namespace: String,
    trigger: SyncTrigger,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// What a turn remembers for the next one. Losing it costs reads only.
#[derive(Clone)]
struct Memory {
    uid: String,
    generation: i64,
    head: String,
    /// Before this time only a changed spec or a request is a reason to look at the branch.
    next_look: Instant,
    /// The cluster was last compared with `head` at this time, and agreed; `None` when it did not.
    agreed: Option<Instant>,
}

/// How a turn judged the DeployRepo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    ready: ConditionStatus,
    reason: &'static str,
    message: String,
    /// It waits for somebody to mend something.
    stalled: bool,
    /// It is on its way, or will be tried again.
    reconciling: bool,
}

/// What a turn found out, for the status. `None` leaves what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Findings {
    observed_commit: Option<String>,
    applied_commit: Option<String>,
    inventory: Option<Vec<InventoryEntry>>,
    moved: Option<Moved>,
}

/// How the branch came to the commit it is at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Moved {
    /// As branches do.
    Forward,
    /// Not so, or nobody knows.
    Otherwise(SourceHistory),
}

/// Why a turn did not reach its end.
#[derive(Debug)]
enum Halt {
    /// Somebody else leads. Nothing is said.
    NotLeader,
    /// Something is wrong.
    Trouble(Trouble),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trouble {
    reason: &'static str,
    message: String,
    /// Trying again is of no use before somebody mends something, here or there.
    stalled: bool,
}

impl Trouble {
    fn stalled(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), stalled: true }
    }

    fn passing(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), stalled: false }
    }
}

impl From<Trouble> for Halt {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<ApplyError> for Halt {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::NotLeader => Self::NotLeader,
            ApplyError::Refused { ref reason, .. } if reason == "Forbidden" => {
                Trouble::stalled("Forbidden", error.to_string()).into()
            }
            error => Trouble::passing("ApplyFailed", error.to_string()).into(),
        }
    }
}

impl From<WriteError> for Halt {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NotLeader => Self::NotLeader,
            error => Trouble::passing("StatusNotWritten", error.to_string()).into(),
        }
    }
}

/// A sync that was carried out.
struct Synced {
    message: String,
    inventory: Vec<InventoryEntry>,
    /// Something is still being deleted by somebody: compare again at the next look.
    unsettled: bool,
}

impl<S: Sources> DeployRepos<S> {
    /// What the loop needs. `trigger` must be of the queue whose keys are given to [`Self::turn`].
    pub fn new(
        applier: Arc<Applier>,
        secrets: Secrets,
        writer: Writer,
        sources: S,
        operator_namespace: String,
        trigger: SyncTrigger,
    ) -> Self {
        Self { applier, secrets, writer, sources, operator_namespace, trigger, memory: Mutex::default() }
    }

    /// One turn for one DeployRepo.
    pub async fn turn(&self, key: Key) -> Outcome {
        let requested = self.trigger.take(&key);
        let Some(repo) = self.writer.index().deploy_repo(&key) else {
            // What it applied stays: a DeployRepo deleted by mistake must not empty a namespace.
            self.memory().remove(&key);
            return Outcome::Done;
        };
        if repo.identity.deleting {
            return Outcome::Done;
        }
        if !self.writer.may_write() {
            return Outcome::After(STANDBY);
        }
        let remembered = self
            .memory()
            .get(&key)
            .cloned()
            .filter(|memory| memory.uid == repo.identity.uid && memory.generation == repo.identity.generation);
        // Our own status writes come back as changes; they are no reason to ask the git server again.
        if !requested
            && let Some(memory) = &remembered
            && let Some(rest) = memory.next_look.checked_duration_since(Instant::now())
            && !rest.is_zero()
        {
            return Outcome::After(rest);
        }
        let interval = match &repo.spec {
            Ok(spec) => jittered(spec.interval.map_or(INTERVAL, |given| given.std()).max(SHORTEST_INTERVAL)),
            Err(_) => INTERVAL,
        };
        let mut findings = Findings::default();
        let mut memory = Memory {
            uid: repo.identity.uid.clone(),
            generation: repo.identity.generation,
            head: remembered.as_ref().map(|memory| memory.head.clone()).unwrap_or_default(),
            next_look: Instant::now() + interval,
            agreed: remembered.and_then(|memory| memory.agreed),
        };
        let judged = match self.look(&repo, &mut memory, &mut findings).await {
            Ok(Some(report)) => self.report(&key, &repo, report, findings).await.map(|()| None),
            Ok(None) => Ok(None),
            Err(Halt::NotLeader) => Err(Halt::NotLeader),
            Err(Halt::Trouble(trouble)) => {
                memory.agreed = None;
                let report = Report {
                    ready: ConditionStatus::False,
                    reason: trouble.reason,
                    message: trouble.message.clone(),
                    stalled: trouble.stalled,
                    reconciling: !trouble.stalled,
                };
                self.report(&key, &repo, report, findings).await.map(|()| (!trouble.stalled).then_some(trouble))
            }
        };
        let outcome = match judged {
            Ok(None) => Outcome::After(interval),
            Ok(Some(trouble)) => failed(&mut memory, trouble),
            Err(Halt::NotLeader) => {
                memory.agreed = None;
                memory.next_look = Instant::now();
                Outcome::After(STANDBY)
            }
            Err(Halt::Trouble(trouble)) => failed(&mut memory, trouble),
        };
        self.memory().insert(key, memory);
        outcome
    }

    /// The token that a call of this DeployRepo's webhook must know: `None` when there is no such DeployRepo,
    /// `Some(None)` when it has no token.
    pub async fn webhook_token(&self, key: &Key) -> Result<Option<Option<String>>, ApplyError> {
        let Some(repo) = self.writer.index().deploy_repo(key) else { return Ok(None) };
        let Some(secret) = repo.spec.as_ref().ok().and_then(|spec| spec.secret_ref.as_ref()) else {
            return Ok(Some(None));
        };
        let data = self.applier.secret(&key.namespace, &secret.name).await?.unwrap_or_default();
        Ok(Some(data.get("webhookToken").and_then(|token| text(token))))
    }

    /// Looks at the branch and, where there is reason to, brings the cluster to it. `None`: nothing new.
    async fn look(
        &self,
        repo: &DeployRepoObject,
        memory: &mut Memory,
        findings: &mut Findings,
    ) -> Result<Option<Report>, Halt> {
        let spec = repo.spec.as_ref().map_err(|trouble| Trouble::stalled("InvalidSpec", trouble.to_string()))?;
        if spec.suspend {
            return Ok(Some(Report {
                ready: ConditionStatus::Unknown,
                reason: "Suspended",
                message: "spec.suspend is true: nothing is read or applied".to_owned(),
                stalled: false,
                reconciling: false,
            }));
        }
        let permission = Permission {
            own: repo.identity.namespace.clone(),
            listed: spec.namespaces.clone(),
            in_operator_namespace: repo.identity.namespace == self.operator_namespace,
        };
        if !spec.namespaces.is_empty() && !permission.in_operator_namespace {
            return Err(Trouble::stalled(
                "NamespaceNotAllowed",
                format!(
                    "spec.namespaces: only a DeployRepo in the operator's namespace ({}) may manage other namespaces; \
                     remove the field, or create the DeployRepo there",
                    self.operator_namespace
                ),
            )
            .into());
        }
        let address = SourceAddress {
            url: spec.url.clone(),
            branch: spec.branch.clone(),
            path: spec.path.clone(),
            access: self.secrets.access(&repo.identity.namespace, &Remote::read(spec)).await.map_err(Trouble::from)?,
        };
        let head = self.sources.head(&address).await.map_err(Trouble::from)?;
        findings.observed_commit = Some(head.clone());
        let agreed = memory.agreed.filter(|at| memory.head == head && at.elapsed() < FULL_LOOK);
        let known = repo.status.as_ref().is_some_and(|status| {
            status.observed_generation == Some(repo.identity.generation)
                && status.observed_commit.as_deref() == Some(head.as_str())
        });
        if agreed.is_some() && known {
            return Ok(None);
        }
        memory.head.clone_from(&head);
        let Some(policy) = &spec.sync else {
            let before = repo.status.as_ref().and_then(|status| status.observed_commit.as_deref());
            findings.moved = self.moved(&address, before, &head).await;
            memory.agreed = Some(Instant::now());
            return Ok(Some(Report {
                ready: ConditionStatus::True,
                reason: "Reachable",
                message: format!("branch {} is at {}; another tool applies it", spec.branch, short(&head)),
                stalled: false,
                reconciling: false,
            }));
        };
        let tree = self.sources.read(&address).await.map_err(Trouble::from)?;
        findings.observed_commit = Some(tree.commit.clone());
        memory.head.clone_from(&tree.commit);
        // What is not applied yet has moved nothing, and is not what was reverted.
        let before = repo.status.as_ref().and_then(|it| it.applied_commit.as_ref().or(it.observed_commit.as_ref()));
        findings.moved = self.moved(&address, before.map(String::as_str), &tree.commit).await;
        let synced = self.sync(repo, &permission, policy.prune, &tree, findings).await?;
        memory.agreed = (!synced.unsettled).then(Instant::now);
        findings.applied_commit = Some(tree.commit);
        findings.inventory = Some(synced.inventory);
        Ok(Some(Report {
            ready: ConditionStatus::True,
            reason: "Synced",
            message: synced.message,
            stalled: false,
            reconciling: false,
        }))
    }

    /// How the branch came from one commit to another one; `None` when it was not moved.
    async fn moved(&self, address: &SourceAddress, before: Option<&str>, commit: &str) -> Option<Moved> {
        let from = before.filter(|before| *before != commit)?;
        let descent = self.sources.descent(address, from, commit).await.unwrap_or_else(|error| {
            tracing::info!(%error, from, commit, "whether history was rewritten could not be found out");
            Descent::Unknown
        });
        Some(match descent {
            Descent::Forward => Moved::Forward,
            Descent::Rewritten => Moved::Otherwise(SourceHistory { from: from.to_owned(), rewritten: true }),
            Descent::Unknown => Moved::Otherwise(SourceHistory { from: from.to_owned(), rewritten: false }),
        })
    }

    /// Brings the cluster to one commit.
    async fn sync(
        &self,
        repo: &DeployRepoObject,
        permission: &Permission,
        prune: bool,
        tree: &Source,
        findings: &mut Findings,
    ) -> Result<Synced, Halt> {
        let owner = repo.identity.key().to_string();
        let before = repo.status.as_ref().map(|status| status.inventory.clone()).unwrap_or_default();
        let files = tree.files.iter().map(|file| (file.path.as_str(), file.content.as_bytes()));
        let parsed = manifests::parse(files).map_err(invalid)?;
        if parsed.is_empty() && !before.is_empty() {
            return Err(Trouble::stalled(
                "NoManifests",
                format!(
                    "commit {} declares nothing in {}, so nothing is pruned ({} applied before). Correct spec.path or \
                     restore the files; to remove all but one object, leave that one",
                    short(&tree.commit),
                    repo.spec.as_ref().ok().and_then(|spec| spec.path.as_deref()).unwrap_or("the repository"),
                    before.len()
                ),
            )
            .into());
        }
        let served = self.served_scopes(&parsed).await?;
        let declared = manifests::declared_scopes(&parsed);
        let manifests = manifests::assign_namespaces(parsed, permission, |api_version, kind| {
            let kind = (api_version.to_owned(), kind.to_owned());
            served.get(&kind).or_else(|| declared.get(&kind)).copied()
        })
        .map_err(invalid)?;
        let live = self.live(&manifests, &before).await?;
        let situation = Situation {
            inventory: &before,
            manifests: &manifests,
            live: &live,
            commit: &tree.commit,
            history: match &findings.moved {
                Some(Moved::Otherwise(history)) => Some(history),
                Some(Moved::Forward) | None => None,
            },
            owner: &owner,
            prune,
        };
        let in_use = |entry: &InventoryEntry| self.is_in_use(entry) || self.is_being_left(entry, &manifests, &owner);
        let plan = plan_sync(&situation, in_use);
        self.refuse_contested(&plan)?;
        let attempt = Attempt { owner: &owner, steered: self.steered(&manifests, &plan), plan: &plan };
        let deferred = Deferred::of(&plan, &served);
        let (late, early): (Vec<&Planned<'_>>, Vec<&Planned<'_>>) =
            plan.apply.iter().partition(|planned| deferred.holds(planned));
        self.try_all(&attempt, &early).await?;
        if let Some(ahead) = plan.inventory_ahead(&before) {
            let report = Report {
                ready: ConditionStatus::Unknown,
                reason: "Applying",
                message: format!("applying {} objects of commit {}", plan.apply.len(), short(&tree.commit)),
                stalled: false,
                reconciling: true,
            };
            let ahead =
                Findings { inventory: Some(ahead), observed_commit: Some(tree.commit.clone()), ..Findings::default() };
            self.report(&repo.identity.key(), repo, report, ahead).await?;
        }
        let mut progress = Progress::of(&before, &plan);
        let done = self.act(&attempt, &late, &mut progress).await;
        if let Err(halt) = done {
            findings.inventory = Some(progress.inventory());
            return Err(halt);
        }
        let unsettled = live.values().any(|seen| matches!(seen, Seen::Present(live) if live.deleting))
            || plan.retained.iter().any(in_use);
        if !plan.apply.is_empty() || !plan.delete.is_empty() {
            tracing::info!(
                deploy_repo = owner,
                commit = tree.commit,
                applied = plan.apply.len(),
                pruned = plan.delete.len(),
                "synced"
            );
        }
        Ok(Synced { message: success(&plan, &manifests, tree), inventory: plan.inventory_after(), unsettled })
    }

    /// Applies and prunes. `late` are those that could not be tried before what they need was there.
    async fn act(&self, attempt: &Attempt<'_>, late: &[&Planned<'_>], progress: &mut Progress) -> Result<(), Halt> {
        let plan = attempt.plan;
        let (first, rest): (Vec<&Planned<'_>>, Vec<&Planned<'_>>) =
            plan.apply.iter().partition(|planned| planned.is_prerequisite());
        self.apply_all(attempt, &first, progress).await?;
        self.await_definitions(&first).await?;
        self.try_all(attempt, late).await?;
        for same_rank in rest.chunk_by(|a, b| a.rank() == b.rank()) {
            self.apply_all(attempt, same_rank, progress).await?;
        }
        for deletion in &plan.delete {
            let target = Target::from(&deletion.entry);
            match self.applier.delete(&target, &deletion.uid, &deletion.resource_version).await {
                Ok(()) => progress.removed(&deletion.entry),
                // It changed since we looked: look again before it is removed.
                Err(error) => {
                    return Err(match Halt::from(error) {
                        Halt::Trouble(trouble) => Trouble {
                            message: format!("{target} left the repository but was not removed: {}", trouble.message),
                            ..trouble
                        }
                        .into(),
                        Halt::NotLeader => Halt::NotLeader,
                    });
                }
            }
        }
        Ok(())
    }

    /// Tries all on the server. One refusal refuses the commit.
    async fn try_all(&self, attempt: &Attempt<'_>, planned: &[&Planned<'_>]) -> Result<(), Halt> {
        let mut faults = Vec::new();
        let mut forbidden = true;
        for chunk in planned.chunks(PARALLEL) {
            let tries = chunk.iter().map(|planned| self.try_one(attempt, planned));
            for (planned, result) in chunk.iter().zip(join_all(tries).await) {
                match result {
                    Ok(()) => {}
                    Err(ApplyError::Refused { reason, message, .. }) => {
                        forbidden &= reason == "Forbidden";
                        faults.push(format!("{}: {message}", planned.manifest));
                    }
                    Err(error @ ApplyError::UnknownKind { .. }) => {
                        forbidden = false;
                        faults.push(format!("{}: {error}", planned.manifest));
                    }
                    Err(ApplyError::NotLeader) => return Err(Halt::NotLeader),
                    Err(error) => {
                        let message = format!("{}: could not be tried: {error}", planned.manifest);
                        return Err(Trouble::passing("ApplyFailed", message).into());
                    }
                }
            }
        }
        if faults.is_empty() {
            return Ok(());
        }
        let reason = if forbidden { "Forbidden" } else { "InvalidManifest" };
        Err(Trouble::stalled(reason, format!("nothing is applied: {}", listed(&faults))).into())
    }

    async fn try_one(&self, attempt: &Attempt<'_>, planned: &Planned<'_>) -> Result<(), ApplyError> {
        let (object, _) = self.prepared(attempt, planned, false).await?;
        self.applier.dry_run(&target(planned.manifest), &object).await
    }

    async fn apply_all(
        &self,
        attempt: &Attempt<'_>,
        planned: &[&Planned<'_>],
        progress: &mut Progress,
    ) -> Result<(), Halt> {
        for chunk in planned.chunks(PARALLEL) {
            let mut trouble = None;
            let writes = chunk.iter().map(|planned| self.apply_one(attempt, planned));
            for (planned, result) in chunk.iter().zip(join_all(writes).await) {
                match result {
                    Ok(()) => progress.applied(planned),
                    Err(ApplyError::NotLeader) => trouble = Some(Halt::NotLeader),
                    Err(error) => {
                        let message = format!("{}: {error}", planned.manifest);
                        trouble = Some(match Halt::from(error) {
                            Halt::Trouble(trouble) => Trouble { message, ..trouble }.into(),
                            Halt::NotLeader => Halt::NotLeader,
                        });
                    }
                }
            }
            if let Some(trouble) = trouble {
                return Err(trouble);
            }
        }
        Ok(())
    }

    async fn apply_one(&self, attempt: &Attempt<'_>, planned: &Planned<'_>) -> Result<(), ApplyError> {
        let target = target(planned.manifest);
        let mut tries = 0;
        loop {
            let (object, basis) = self.prepared(attempt, planned, tries > 0).await?;
            tries += 1;
            match self.applier.apply(&target, object, &basis).await {
                Err(ApplyError::Conflict { .. }) if tries < TRIES => {}
                result => return result,
            }
        }
    }

    /// The object as it is to be applied, and what that rests on. `again` looks afresh.
    async fn prepared(
        &self,
        attempt: &Attempt<'_>,
        planned: &Planned<'_>,
        again: bool,
    ) -> Result<(Value, Basis), ApplyError> {
        let target = target(planned.manifest);
        let mut object = planned.stamped(attempt.owner);
        if may_carry(planned.manifest) {
            let Some(live) = self.applier.get(&target).await? else { return Ok((object, Basis::Absent)) };
            let metadata = |field: &str| live["metadata"][field].as_str().unwrap_or_default().to_owned();
            let none = Steered::default();
            let steered = attempt.steered.get(&target.namespace).unwrap_or(&none);
            let uid = metadata("uid");
            let basis = if carry_over(&live, &mut object, steered) {
                Basis::Version { uid, resource_version: metadata("resourceVersion") }
            } else {
                Basis::Object { uid }
            };
            return Ok((object, basis));
        }
        let basis = if again {
            self.applier.live(&target).await?.map_or(Basis::Absent, |live| Basis::Object { uid: live.uid })
        } else {
            match &planned.seen {
                Seen::Present(live) => Basis::Object { uid: live.uid.clone() },
                Seen::Absent | Seen::Unknown => Basis::Absent,
            }
        };
        Ok((object, basis))
    }

    /// Waits until new kinds are served, within bounds.
    async fn await_definitions(&self, applied: &[&Planned<'_>]) -> Result<(), Halt> {
        let deadline = Instant::now() + ESTABLISH;
        for planned in applied.iter().filter(|planned| manifests::is_custom_resource_definition(planned.manifest)) {
            loop {
                let definition = self.applier.get(&target(planned.manifest)).await?.unwrap_or_default();
                let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
                let established = conditions.into_iter().flatten().any(|condition| {
                    condition["type"].as_str() == Some("Established") && condition["status"].as_str() == Some("True")
                });
                if established {
                    break;
                }
                if Instant::now() > deadline {
                    let message = format!("{}: is not served within {} s", planned.manifest, ESTABLISH.as_secs());
                    return Err(Trouble::passing("ApplyFailed", message).into());
                }
                sleep(Duration::from_millis(200)).await;
            }
            for (api_version, _) in manifests::declared_scopes(std::slice::from_ref(planned.manifest)).into_keys() {
                self.applier.discovery().forget(&api_version);
            }
        }
        Ok(())
    }

    /// Which of the declared kinds the cluster serves, and how.
    async fn served_scopes(&self, manifests: &[Manifest]) -> Result<HashMap<(String, String), Scope>, Halt> {
        let kinds: BTreeSet<(&str, &str)> =
            manifests.iter().map(|manifest| (manifest.api_version.as_str(), manifest.kind.as_str())).collect();
        let mut scopes = HashMap::new();
        for (api_version, kind) in kinds {
            let served = self.applier.discovery().find(api_version, kind).await.map_err(ApplyError::from)?;
            if let Some(served) = served {
                let scope = if served.namespaced { Scope::Namespaced } else { Scope::Cluster };
                scopes.insert((api_version.to_owned(), kind.to_owned()), scope);
            }
        }
        Ok(scopes)
    }

    /// What the cluster holds of what is declared now and what was applied before.
    async fn live(
        &self,
        manifests: &[Manifest],
        inventory: &[InventoryEntry],
    ) -> Result<HashMap<ObjectId, Seen>, Halt> {
        let mut targets: HashMap<ObjectId, Target> =
            inventory.iter().map(|entry| (object_id(entry), Target::from(entry))).collect();
        // The declared version is looked at rather than the one of last time.
        targets.extend(manifests.iter().map(|manifest| (manifest.id(), target(manifest))));
        let targets: Vec<(ObjectId, Target)> = targets.into_iter().collect();
        let mut live = HashMap::with_capacity(targets.len());
        for chunk in targets.chunks(PARALLEL) {
            let looks = chunk.iter().map(|(_, target)| self.applier.live(target));
            for ((id, target), result) in chunk.iter().zip(join_all(looks).await) {
                let seen = match result {
                    Ok(Some(found)) => Seen::Present(found),
                    Ok(None) => Seen::Absent,
                    Err(ApplyError::Refused { .. }) => Seen::Unknown,
                    Err(error) => {
                        tracing::debug!(%target, %error, "could not be looked at");
                        return Err(error.into());
                    }
                };
                live.insert(id.clone(), seen);
            }
        }
        Ok(live)
    }

    /// Two DeployRepos that declare one object would undo each other's word for ever.
    fn refuse_contested(&self, plan: &SyncPlan<'_>) -> Result<(), Halt> {
        let index = self.writer.index();
        let is_alive = |owner: &str| {
            owner
                .split_once('/')
                .and_then(|(namespace, name)| index.deploy_repo(&Key::new(namespace, name)))
                .is_some_and(|other| {
                    !other.identity.deleting && other.spec.as_ref().is_ok_and(|spec| spec.sync.is_some())
                })
        };
        let contested = plan.contested.iter().filter(|contested| is_alive(&contested.owner));
        let faults: Vec<String> = contested
            .map(|contested| {
                format!(
                    "{}: DeployRepo {} applies it already; remove it from one of the two repositories",
                    contested.manifest, contested.owner
                )
            })
            .collect();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Trouble::stalled("OwnedByAnother", format!("nothing is applied: {}", listed(&faults))).into())
    }

    /// What Rollouts steer, by namespace: those declared, and those in the cluster that are not about to go.
    fn steered(&self, manifests: &[Manifest], plan: &SyncPlan<'_>) -> HashMap<String, Steered> {
        let mut steered: HashMap<String, Steered> = HashMap::new();
        let declared = manifests
            .iter()
            .filter(|manifest| manifest.kind == "Rollout" && manifests::group_of(&manifest.api_version) == GROUP);
        for manifest in declared {
            let own = steered.entry(manifest.namespace.clone()).or_default();
            if let Some(strategy) = manifest.object.pointer("/spec/strategy") {
                own.add(strategy);
            }
            if let Some(workload) = manifest.object.pointer("/spec/workloadRef") {
                own.add_workload(workload);
            }
        }
        let leaving: HashSet<ObjectId> = plan.delete.iter().map(|deletion| object_id(&deletion.entry)).collect();
        for rollout in self.writer.index().rollouts() {
            let key = rollout.identity.key();
            let id = ObjectId::new(GROUP_VERSION, "Rollout", &key.namespace, &key.name);
            // Also what it steered last: until the Rollout has left that, a commit does not move it either.
            let left = rollout.status.as_ref().and_then(|status| Some(status.steering.as_ref()?.strategy()));
            let asked = rollout.spec.as_ref().ok().map(|spec| spec.strategy.clone());
            let own = asked.iter().chain(&left).filter(|_| !leaving.contains(&id));
            for strategy in own.filter_map(|strategy| serde_json::to_value(strategy).ok()) {
                steered.entry(key.namespace.clone()).or_default().add(&strategy);
            }
            let workload = rollout.spec.as_ref().ok().and_then(|spec| spec.workload_ref.as_ref());
            let workload = workload.filter(|_| !leaving.contains(&id));
            if let Some(workload) = workload.and_then(|workload| serde_json::to_value(workload).ok()) {
                steered.entry(key.namespace.clone()).or_default().add_workload(&workload);
            }
        }
        steered
    }

    /// Whether an object still moves the traffic of a Rollout that git does not ask for any more, or asks for with
    /// another strategy: it is pruned when the Rollout has left it.
    fn is_being_left(&self, entry: &InventoryEntry, manifests: &[Manifest], owner: &str) -> bool {
        let rollouts = self.writer.index().rollouts();
        let goes = rollouts.iter().filter(|rollout| {
            let identity = &rollout.identity;
            let applied_by = identity.annotations.get(names::DEPLOY_REPO);
            let id = ObjectId::new(GROUP_VERSION, "Rollout", &identity.namespace, &identity.name);
            identity.namespace == entry.namespace
                && applied_by.is_some_and(|applied_by| applied_by == owner)
                && !manifests.iter().any(|manifest| manifest.id() == id)
        });
        let steers = |steering: &Steering| steers(steering, entry);
        if goes.filter_map(|rollout| rollout.status.as_ref()?.steering.as_ref()).any(steers) {
            return true;
        }
        let declared = manifests.iter().filter(|manifest| {
            manifest.kind == "Rollout"
                && manifest.namespace == entry.namespace
                && manifests::group_of(&manifest.api_version) == GROUP
        });
        declared.into_iter().any(|manifest| {
            let key = Key::new(manifest.namespace.clone(), manifest.name.clone());
            let asked = manifest.object.pointer("/spec/strategy").cloned();
            let asked = asked.and_then(|strategy| serde_json::from_value::<Strategy>(strategy).ok());
            let live = self.writer.index().rollout(&key);
            let steering = live.as_ref().and_then(|live| live.status.as_ref()?.steering.as_ref());
            let (Some(steering), Some(asked)) = (steering, asked) else { return false };
            *steering != asked.steering() && steers(steering)
        })
    }

    /// Whether a revision that has pods still needs an object.
    fn is_in_use(&self, entry: &InventoryEntry) -> bool {
        let index = self.writer.index();
        index.rollouts().iter().filter(|rollout| rollout.identity.namespace == entry.namespace).any(|rollout| {
            let sets = index.replica_sets_of(&rollout.identity.key());
            sets.iter()
                .filter(|set| set.replicas > 0 || set.current > 0)
                .any(|set| is_needed_by(entry, &set.template.0))
        })
    }

    /// Writes the status, when it says something new.
    async fn report(
        &self,
        key: &Key,
        judged: &DeployRepoObject,
        report: Report,
        findings: Findings,
    ) -> Result<(), Halt> {
        let mut tries = 0;
        loop {
            let Some(repo) = self.writer.index().deploy_repo(key) else { return Ok(()) };
            if repo.identity.uid != judged.identity.uid {
                return Ok(());
            }
            let before = repo.status.clone().unwrap_or_default();
            let after = status(&before, judged.identity.generation, &report, &findings);
            if after == before && repo.status.is_some() {
                return Ok(());
            }
            let value = serde_json::to_value(&after)
                .map_err(|error| Trouble::passing("StatusNotWritten", error.to_string()))?;
            tries += 1;
            match self.writer.replace_status_of(Kind::DeployRepo, &repo.identity, value).await {
                // The ledger writes its part of the same status; the watch brings it soon.
                Err(WriteError::Conflict { .. }) if tries < TRIES => sleep(Duration::from_millis(200)).await,
                result => return Ok(result?),
            }
        }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Memory>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const GROUP_VERSION: &str = "sluice.dev/v1alpha1";

/// What all writes of one sync have in common.
struct Attempt<'a> {
    owner: &'a str,
    plan: &'a SyncPlan<'a>,
    steered: HashMap<String, Steered>,
}

/// What cannot be tried before something of the same commit is there.
struct Deferred<'a> {
    /// Namespaces that this commit creates.
    namespaces: HashSet<&'a str>,
    /// The kinds that are served now.
    served: &'a HashMap<(String, String), Scope>,
}

impl<'a> Deferred<'a> {
    fn of(plan: &'a SyncPlan<'_>, served: &'a HashMap<(String, String), Scope>) -> Self {
        let created = plan
            .apply
            .iter()
            .filter(|planned| manifests::is_namespace(planned.manifest) && !matches!(planned.seen, Seen::Present(_)));
        Self { namespaces: created.map(|planned| planned.manifest.name.as_str()).collect(), served }
    }

    fn holds(&self, planned: &Planned<'_>) -> bool {
        let manifest = planned.manifest;
        self.namespaces.contains(manifest.namespace.as_str())
            || !self.served.contains_key(&(manifest.api_version.clone(), manifest.kind.clone()))
    }
}

/// The inventory as far as a sync has come.
struct Progress(BTreeMap<ObjectId, InventoryEntry>);

impl Progress {
    fn of(before: &[InventoryEntry], plan: &SyncPlan<'_>) -> Self {
        let ahead = plan.inventory_ahead(before).unwrap_or_else(|| before.to_vec());
        Self(ahead.into_iter().map(|entry| (object_id(&entry), entry)).collect())
    }

    fn applied(&mut self, planned: &Planned<'_>) {
        self.0.insert(planned.manifest.id(), planned.entry());
    }

    fn removed(&mut self, entry: &InventoryEntry) {
        self.0.remove(&object_id(entry));
    }

    fn inventory(self) -> Vec<InventoryEntry> {
        let mut entries: Vec<InventoryEntry> = self.0.into_values().collect();
        entries.sort_unstable();
        entries
    }
}

impl From<CredentialsError> for Trouble {
    fn from(error: CredentialsError) -> Self {
        let message = error.to_string();
        if error.is_transient() {
            Self::passing(error.reason(), message)
        } else {
            Self::stalled(error.reason(), message)
        }
    }
}

impl From<GitError> for Trouble {
    fn from(error: GitError) -> Self {
        let reason = match &error {
            GitError::Denied { .. } => "AuthenticationFailed",
            error => error.reason(),
        };
        let message = match &error {
            GitError::NotFound { what: Missing::Branch | Missing::Path, .. } => {
                format!("{error}; what was applied stays as it is, and nothing is pruned, until it is there again")
            }
            error => error.to_string(),
        };
        Self { reason, message, stalled: !error.is_transient() }
    }
}

/// The DeployRepo by which a Rollout is recorded: the one that applied it (its annotation), else the one that
/// lives in its namespace, else the one in the operator's namespace that lists it. An annotation that names a
/// DeployRepo without a say in the namespace counts for nothing, or a tenant could write into another's log.
pub fn resolve_deploy_repo(
    annotations: &BTreeMap<String, String>,
    namespace: &str,
    repos: &[Arc<DeployRepoObject>],
    operator_namespace: &str,
) -> Option<Key> {
    let has_a_say = |repo: &DeployRepoObject| {
        let spec = repo.spec.as_ref().ok();
        repo.identity.namespace == namespace
            || (repo.identity.namespace == operator_namespace
                && spec.is_some_and(|spec| spec.namespaces.iter().any(|listed| listed == namespace)))
    };
    let mut candidates: Vec<Key> = repos
        .iter()
        .filter(|repo| !repo.identity.deleting && has_a_say(repo))
        .map(|repo| repo.identity.key())
        .collect();
    // Its own namespace first; then by name, so that the answer does not depend on who asks.
    candidates.sort_by_key(|key| (key.namespace != namespace, key.clone()));
    let named = annotations.get(names::DEPLOY_REPO);
    let named = named.and_then(|named| candidates.iter().find(|key| key.to_string() == *named));
    named.or(candidates.first()).cloned()
}

fn target(manifest: &Manifest) -> Target {
    Target {
        api_version: manifest.api_version.clone(),
        kind: manifest.kind.clone(),
        namespace: manifest.namespace.clone(),
        name: manifest.name.clone(),
    }
}

fn failed(memory: &mut Memory, trouble: Trouble) -> Outcome {
    // The queue says when to try again.
    memory.agreed = None;
    memory.next_look = Instant::now();
    Outcome::Failed(Failure { reason: trouble.reason, message: trouble.message })
}

fn invalid(errors: Vec<ManifestError>) -> Halt {
    let only_place = errors.iter().all(|error| matches!(error, ManifestError::NotAllowed { .. }));
    let reason = if only_place { "NamespaceNotAllowed" } else { "InvalidManifest" };
    let faults: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Trouble::stalled(reason, format!("nothing is applied: {}", listed(&faults))).into()
}

/// The first faults, one a line.
fn listed(faults: &[String]) -> String {
    let mut message = faults.iter().take(SHOWN_FAULTS).cloned().collect::<Vec<_>>().join("\n");
    if faults.len() > SHOWN_FAULTS {
        message.push_str(&format!("\nand {} more", faults.len() - SHOWN_FAULTS));
    }
    message
}

fn success(plan: &SyncPlan<'_>, manifests: &[Manifest], tree: &Source) -> String {
    let mut message = match manifests.len() {
        0 => format!("commit {} declares nothing", short(&tree.commit)),
        1 => format!("the one object of commit {} is applied", short(&tree.commit)),
        count => format!("all {count} objects of commit {} are applied", short(&tree.commit)),
    };
    if !plan.retained.is_empty() {
        let some = plan.retained.iter().take(3).map(|entry| object_id(entry).to_string()).collect::<Vec<_>>();
        let more = if plan.retained.len() > some.len() { ", …" } else { "" };
        message.push_str(&format!("; {} no longer declared but kept: {}{more}", plan.retained.len(), some.join(", ")));
    }
    message
}

fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

/// The new status. Conditions keep their times while they say the same.
fn status(before: &DeployRepoStatus, generation: i64, report: &Report, findings: &Findings) -> DeployRepoStatus {
    let now = Utc::now();
    let mut after = before.clone();
    after.observed_generation = Some(generation);
    if let Some(commit) = &findings.observed_commit {
        after.observed_commit = Some(commit.clone());
    }
    if let Some(commit) = &findings.applied_commit
        && before.applied_commit.as_ref() != Some(commit)
    {
        after.applied_commit = Some(commit.clone());
        after.applied_at = Some(now);
    }
    if let Some(inventory) = &findings.inventory {
        after.inventory.clone_from(inventory);
    }
    let mut message = report.message.clone();
    if message.len() > LONGEST_MESSAGE {
        let cut = (0..=LONGEST_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    let condition = |type_: &str, status| Condition {
        type_: type_.to_owned(),
        status,
        reason: report.reason.to_owned(),
        message: message.clone(),
        last_transition_time: now,
        observed_generation: Some(generation),
    };
    after.conditions.set_condition(condition("Ready", report.ready));
    match (&findings.moved, &findings.observed_commit) {
        (Some(Moved::Otherwise(history)), Some(commit)) => {
            let (status, reason) = match history.rewritten {
                true => (ConditionStatus::True, "NotAnAncestor"),
                false => (ConditionStatus::Unknown, "AncestryUnknown"),
            };
            let message = history.sentence(commit);
            let reason = reason.to_owned();
            after.conditions.set_condition(Condition { reason, message, ..condition(HISTORY_REWRITTEN, status) });
        }
        (Some(Moved::Forward), _) => after.conditions.remove_condition(HISTORY_REWRITTEN),
        _ => {}
    }
    for (type_, holds) in [("Reconciling", report.reconciling), ("Stalled", report.stalled)] {
        if holds {
            after.conditions.set_condition(condition(type_, ConditionStatus::True));
        } else {
            after.conditions.remove_condition(type_);
        }
    }
    after
}

/// Nine to eleven tenths, so that a hundred DeployRepos of one minute do not ask one git server in one second.
fn jittered(interval: Duration) -> Duration {
    let nanoseconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    interval * (900 + nanoseconds % 200) / 1000
}

#[cfg(test)]
mod tests;
