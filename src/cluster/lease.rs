//! Who may write: one leader at a time, by a Lease.
//!
//! The rules are those of the Kubernetes components. A candidate judges a lease by *its own* clock: it takes over
//! when it has not seen the record change for the time the holder promised, and never compares the holder's
//! timestamps with its own. Every write is a PUT with the resourceVersion that was seen, so of two candidates one
//! wins. The holder stops writing at the renew deadline, which comes before anybody may take over by at least the
//! time one request may take.
//!
//! A lease is a hint and no lock: a process can be stopped between the question and the write. Hence three fences:
//! [`Leadership::is_leader`] is asked before each write and looks at the clock, not at what the renewing loop last
//! thought; each write carries a precondition; and each Rollout's status carries the *epoch* of its writer, which
//! grows with every change of leader.
//!
//! All that can be decided is decided by `Election`, which has no clock and no client. It renews on a thread of
//! its own with a client of its own, so that neither a busy runtime nor a slow list costs the lease.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::client::client;
use super::write::{Gate, REQUEST_TIMEOUT};

/// Why an election cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// The times do not fit together.
    #[error("{field} = {value:?}: {rule}")]
    Config {
        /// Which time.
        field: &'static str,
        /// What it is.
        value: Duration,
        /// What it should be.
        rule: &'static str,
    },
    /// The name under which to take part is empty, and an empty holder means that nobody leads.
    #[error("the identity for the leader election is empty")]
    NoIdentity,
    /// No client could be made.
    #[error("the leader election has no client: {0}")]
    Client(#[from] Box<kube::Error>),
    /// No thread could be started.
    #[error("the leader election has no thread: {0}")]
    Thread(#[from] io::Error),
}

/// The times of an election.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// How long a candidate that sees no change waits before it takes over. Whole seconds.
    pub lease_duration: Duration,
    /// How long the leader goes on without a successful renewal. Shorter than the lease's duration by more than
    /// one request may take.
    pub renew_deadline: Duration,
    /// Time between two renewals, and between two looks of a candidate.
    pub retry_period: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl LeaseConfig {
    fn check(&self) -> Result<(), LeaseError> {
        let wrong = |field, value, rule| Err(LeaseError::Config { field, value, rule });
        if self.lease_duration.subsec_nanos() != 0 || i32::try_from(self.lease_duration.as_secs()).is_err() {
            return wrong("lease_duration", self.lease_duration, "must be whole seconds, and few enough for 32 bits");
        }
        if self.renew_deadline.saturating_add(REQUEST_TIMEOUT) > self.lease_duration {
            let rule = "must be shorter than lease_duration by at least the 4 s that one write may take";
            return wrong("renew_deadline", self.renew_deadline, rule);
        }
        if self.retry_period.is_zero() || self.retry_period.saturating_mul(2) > self.renew_deadline {
            let rule = "must be above 0, and fit twice into renew_deadline";
            return wrong("retry_period", self.retry_period, rule);
        }
        Ok(())
    }

    /// How long one request about the lease may take: several fit between a renewal and its deadline.
    fn call_timeout(&self) -> Duration {
        self.renew_deadline / 4
    }
}

// === The decisions ===

/// Microseconds since 1970, as a Lease stores them.
type Wall = i64;

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    /// Empty when nobody leads.
    holder: String,
    /// What the holder promised.
    duration: Duration,
    acquired: Wall,
    renewed: Wall,
    epoch: i64,
}

/// A record as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    record: Record,
    version: String,
    /// Since when, by this process's clock, the record has been what it is.
    since: Instant,
}

/// What is known of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// It must be read before anything is done.
    Unknown,
    /// It does not exist.
    Absent,
    /// It is this.
    Present(Observed),
}

/// That this process leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    mark: Mark,
    /// When the last successful renewal was *sent*: the API server cannot have counted from before that.
    renewed: Instant,
    renewed_wall: Wall,
}

/// Tells one taking of the lease from every other one, even by a process of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    epoch: i64,
    acquired: Wall,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// Read the Lease.
    Read,
    /// Create it. When it exists by now, that is a conflict.
    Create(Record),
    /// Replace the version that was seen.
    Replace { version: String, record: Record },
    /// Nothing until then.
    Wait(Instant),
    /// This process does not lead any more.
    Lose(&'static str),
}

/// What the API server said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// It was read.
    Found { version: String, record: Record },
    /// It does not exist.
    Absent,
    /// It was written.
    Written { version: String, record: Record },
    /// Somebody else wrote it first.
    Conflict,
    /// Nothing that helps; a write may have happened or not.
    Failed,
}

/// The state of one candidate.
#[derive(Debug)]
struct Election {
    identity: String,
    config: LeaseConfig,
    /// The time between two looks, a little different for each candidate.
    poll: Duration,
    sight: Sight,
    /// When `sight` was last read.
    read: Option<Instant>,
    /// The last record seen, though the Lease may be gone by now.
    last: Option<Observed>,
    claim: Option<Claim>,
    /// The last mark this process wrote or tried to write. A record that carries it is nobody else's.
    own: Option<Mark>,
    /// Not to be bothered before then.
    retry: Option<Instant>,
}

impl Election {
    fn new(identity: String, config: LeaseConfig) -> Self {
        let mut hasher = DefaultHasher::new();
        identity.hash(&mut hasher);
        let parts = u32::try_from(hasher.finish() % 100).unwrap_or(0);
        let poll = config.retry_period + config.retry_period / 500 * parts;
        Self {
            identity,
            config,
            poll,
            sight: Sight::Unknown,
            read: None,
            last: None,
            claim: None,
            own: None,
            retry: None,
        }
    }

    fn is_own(&self, record: &Record) -> bool {
        record.holder == self.identity
            && self.own.is_some_and(|mark| mark == Mark { epoch: record.epoch, acquired: record.acquired })
    }

    /// Decides what to do at this moment.
    fn step(&self, now: Instant, wall: Wall) -> Action {
        match self.claim {
            Some(claim) => self.step_as_leader(claim, now, wall),
            None => self.step_as_candidate(now, wall),
        }
    }

    fn step_as_leader(&self, claim: Claim, now: Instant, wall: Wall) -> Action {
        let deadline = claim.renewed + self.config.renew_deadline;
        if now >= deadline {
            return Action::Lose("it could not be renewed in time");
        }
        if let Sight::Present(observed) = &self.sight
            && !self.is_own(&observed.record)
        {
            return Action::Lose("another process took it");
        }
        let due = self.retry.map_or(claim.renewed + self.config.retry_period, |retry| retry);
        if now < due {
            return Action::Wait(due.min(deadline));
        }
        let record = Record {
            holder: self.identity.clone(),
            duration: self.config.lease_duration,
            acquired: claim.mark.acquired,
            renewed: wall,
            epoch: claim.mark.epoch,
        };
        match &self.sight {
            Sight::Unknown => Action::Read,
            // Somebody deleted it. Whoever creates it first has it; that is best the one who leads anyway.
            Sight::Absent => Action::Create(record),
            Sight::Present(observed) => Action::Replace { version: observed.version.clone(), record },
        }
    }

    fn step_as_candidate(&self, now: Instant, wall: Wall) -> Action {
        if let Some(retry) = self.retry.filter(|retry| now < *retry) {
            return Action::Wait(retry);
        }
        let next_look = self.read.map_or(now, |read| read + self.poll);
        if now >= next_look {
            return Action::Read;
        }
        let free_at = |observed: &Observed| {
            let free = observed.record.holder.is_empty() || self.is_own(&observed.record);
            if free { now } else { observed.since + observed.record.duration }
        };
        let take = |after: i64| Record {
            holder: self.identity.clone(),
            duration: self.config.lease_duration,
            acquired: wall,
            renewed: wall,
            epoch: next_epoch(after, wall),
        };
        match &self.sight {
            Sight::Unknown => Action::Read,
            Sight::Absent => match &self.last {
                // A Lease that is gone does not mean that its holder is.
                Some(last) if now < free_at(last) => Action::Wait(free_at(last).min(next_look)),
                Some(last) => Action::Create(take(last.record.epoch)),
                None => Action::Create(take(0)),
            },
            Sight::Present(observed) if now < free_at(observed) => Action::Wait(free_at(observed).min(next_look)),
            Sight::Present(observed) => {
                Action::Replace { version: observed.version.clone(), record: take(observed.record.epoch) }
            }
        }
    }

    /// A request is about to go out.
    fn asking(&mut self, action: &Action) {
        if let (None, Action::Create(record) | Action::Replace { record, .. }) = (self.claim, action) {
            self.own = Some(Mark { epoch: record.epoch, acquired: record.acquired });
        }
    }

    /// Takes in an answer: when its question was sent, and when it came.
    fn heard(&mut self, answer: Answer, sent: Instant, now: Instant) {
        self.retry = None;
        match answer {
            Answer::Found { version, record } => {
                self.read = Some(now);
                self.see(version, record, now);
            }
            Answer::Absent => {
                self.read = Some(now);
                self.sight = Sight::Absent;
            }
            Answer::Written { version, record } => {
                self.read = Some(now);
                let mark = Mark { epoch: record.epoch, acquired: record.acquired };
                let renewed_wall = record.renewed;
                self.see(version, record, now);
                // An answer that comes after the deadline, to a process that was stopped, makes no leader.
                if now < sent + self.config.renew_deadline {
                    self.claim = Some(Claim { mark, renewed: sent, renewed_wall });
                }
            }
            // A tenth of a second or so, for an API server that says so to everything must not be asked for ever.
            Answer::Conflict => {
                self.sight = Sight::Unknown;
                self.read = None;
                self.retry = Some(now + self.config.retry_period / 16);
            }
            Answer::Failed => {
                self.sight = Sight::Unknown;
                self.read = None;
                let pause = if self.claim.is_some() { self.config.retry_period / 4 } else { self.poll };
                self.retry = Some(now + pause);
            }
        }
    }

    fn see(&mut self, version: String, record: Record, now: Instant) {
        let since = match &self.last {
            Some(last) if last.record == record => last.since,
            _ => now,
        };
        let observed = Observed { record, version, since };
        self.last = Some(observed.clone());
        self.sight = Sight::Present(observed);
    }

    fn lose(&mut self) {
        self.claim = None;
        self.retry = None;
        // Look again before anything else.
        self.sight = Sight::Unknown;
        self.read = None;
    }

    /// How long a request that begins now may take.
    fn limit(&self, now: Instant) -> Duration {
        let limit = self.config.call_timeout();
        self.claim.map_or(limit, |claim| {
            limit.min((claim.renewed + self.config.renew_deadline).saturating_duration_since(now))
        })
    }

    fn term(&self) -> Option<Term> {
        self.claim.map(|claim| Term {
            epoch: claim.mark.epoch,
            renewed: claim.renewed,
            renewed_wall: claim.renewed_wall,
            lasts: self.config.renew_deadline,
        })
    }
}

/// The epoch after this one. It is the Lease's `leaseTransitions`, and never less than the minutes since 1970: a
/// Lease that somebody deletes or restores from a backup must not take the epochs back, for every Rollout written
/// since would then be closed to its leader.
fn next_epoch(after: i64, wall: Wall) -> i64 {
    let minutes = wall / 60_000_000;
    after.saturating_add(1).max(minutes).clamp(1, i64::from(i32::MAX))
}

// === What others see ===

/// A term of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Term {
    epoch: i64,
    renewed: Instant,
    renewed_wall: Wall,
    lasts: Duration,
}

impl Term {
    /// How much longer writes may begin. The wall clock has a say as well, for the other one stands still while a
    /// machine sleeps; a jump of it costs at most the time to the next renewal.
    fn left(&self, now: Instant, wall: Wall) -> Duration {
        let by_clock = now.saturating_duration_since(self.renewed);
        let by_wall = Duration::from_micros(u64::try_from(wall.saturating_sub(self.renewed_wall)).unwrap_or(0));
        self.lasts.saturating_sub(by_clock.max(by_wall))
    }
}

/// Whether this process leads. Cheap to clone, and cheap to ask: before every write.
///
/// When the last clone is dropped the lease is given back.
#[derive(Clone, Debug)]
pub struct Leadership {
    term: watch::Receiver<Option<Term>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Leadership {
    /// Whether a write may begin now: the lease is held for longer than one request may take. Right even when this
    /// process has been stopped for a while and has only just gone on.
    pub fn is_leader(&self) -> bool {
        !self.valid_for().is_zero()
    }

    /// The epoch of this leader; `None` when this process does not lead now.
    pub fn epoch(&self) -> Option<i64> {
        let (now, wall) = (Instant::now(), wall_now());
        self.term.borrow().filter(|term| !term.left(now, wall).is_zero()).map(|term| term.epoch)
    }

    /// For how long writes may still begin, if no renewal succeeds.
    pub fn valid_for(&self) -> Duration {
        let (now, wall) = (Instant::now(), wall_now());
        self.term.borrow().map_or(Duration::ZERO, |term| term.left(now, wall))
    }

    /// Waits until this process begins to lead, or ceases to, since the last call.
    pub async fn changed(&mut self) {
        if self.term.changed().await.is_err() {
            // The election is over; nothing will change any more.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this process leads. Gives the epoch.
    pub async fn acquired(&mut self) -> i64 {
        loop {
            self.term.mark_unchanged();
            if let Some(epoch) = self.epoch() {
                return epoch;
            }
            // A jump of the wall clock suspends a term without ending it; hence not for ever.
            let _ = timeout(Duration::from_secs(1), self.changed()).await;
        }
    }

    /// Ceases to lead and gives the lease back, so that another one can take over at its next look. To be called last
    /// of all, when no write is under way. Bounded in time.
    pub async fn release(&self) {
        self.stop.send_replace(true);
        let mut term = self.term.clone();
        let ended = async { while term.changed().await.is_ok() {} };
        if timeout(RELEASE_TIMEOUT + Duration::from_secs(1), ended).await.is_err() {
            tracing::warn!("the lease was not given back in time; the next leader has to wait for it to expire");
        }
    }
}

impl Gate for Leadership {
    fn may_write(&self) -> bool {
        self.is_leader()
    }
}

/// How long giving the lease back may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

fn wall_now() -> Wall {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}

// === The loop ===

/// Takes part in the election of a leader.
pub struct LeaderElection;

impl LeaderElection {
    /// Takes part from now on, on a thread of its own and with a client of its own, until the [`Leadership`] is
    /// released or dropped. `identity` names this process in the Lease for people; two of the same name do not lead
    /// both.
    ///
    /// # Errors
    /// When the times do not fit together, or no client can be made.
    pub async fn start(
        kube: kube::Config,
        namespace: &str,
        lease_name: &str,
        identity: &str,
        config: LeaseConfig,
    ) -> Result<Leadership, LeaseError> {
        let (election, leadership, publisher, stop) = prepare(identity, config)?;
        let (namespace, lease_name) = (namespace.to_owned(), lease_name.to_owned());
        let (begun, beginning) = oneshot::channel();
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = begun.send(Err(LeaseError::Thread(error)));
                    return;
                }
            };
            runtime.block_on(async move {
                match client(kube) {
                    Ok(client) => {
                        let _ = begun.send(Ok(()));
                        let api = Api::namespaced(client, &namespace);
                        run(Shell { api, name: lease_name, seen: None }, election, publisher, stop).await;
                    }
                    Err(error) => {
                        let _ = begun.send(Err(LeaseError::Client(Box::new(error))));
                    }
                }
            });
        };
        std::thread::Builder::new().name("lease".to_owned()).spawn(body)?;
        match beginning.await {
            Ok(result) => result.map(|()| leadership),
            Err(_) => Err(LeaseError::Thread(io::Error::other("it ended at once"))),
        }
    }
}

type Prepared = (Election, Leadership, watch::Sender<Option<Term>>, watch::Receiver<bool>);

fn prepare(identity: &str, config: LeaseConfig) -> Result<Prepared, LeaseError> {
    config.check()?;
    if identity.is_empty() {
        return Err(LeaseError::NoIdentity);
    }
    let (publisher, term) = watch::channel(None);
    let (stopper, stop) = watch::channel(false);
    let leadership = Leadership { term, stop: Arc::new(stopper) };
    Ok((Election::new(identity.to_owned(), config), leadership, publisher, stop))
}

async fn run(
    mut shell: Shell,
    mut election: Election,
    publisher: watch::Sender<Option<Term>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failing = false;
    loop {
        let now = Instant::now();
        let action = election.step(now, wall_now());
        match action {
            Action::Wait(until) => tokio::select! {
                () = sleep_until(until) => {}
                () = stopped(&mut stop) => break,
            },
            Action::Lose(why) => {
                election.lose();
                publish(&publisher, None);
                tracing::warn!(identity = election.identity, why, "the lease is lost; going on as a standby");
            }
            question => {
                election.asking(&question);
                let answer = tokio::select! {
                    answer = shell.ask(&question, election.limit(now)) => answer,
                    () = stopped(&mut stop) => break,
                };
                let answer = answer.unwrap_or_else(|problem| {
                    if !failing {
                        tracing::warn!(lease = shell.name, problem, "the lease could not be read or written");
                    }
                    Answer::Failed
                });
                failing = answer == Answer::Failed;
                let led = election.claim.is_some();
                election.heard(answer, now, Instant::now());
                publish(&publisher, election.term());
                if let (false, Some(claim)) = (led, election.claim) {
                    tracing::info!(identity = election.identity, epoch = claim.mark.epoch, "this process leads");
                }
            }
        }
    }
    // First nobody here believes any more that we lead, then others may know it.
    publish(&publisher, None);
    match timeout(RELEASE_TIMEOUT, shell.release(&election)).await {
        Ok(true) => tracing::info!(identity = election.identity, "the lease is given back"),
        Ok(false) => {}
        Err(_) => tracing::warn!(lease = shell.name, "the lease could not be given back in time"),
    }
}

/// Told to stop, or nobody is left to tell.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Everybody sees the new validity at once; those who wait are woken when the leader changes.
fn publish(publisher: &watch::Sender<Option<Term>>, term: Option<Term>) {
    publisher.send_if_modified(|current| {
        let changed = current.map(|term| term.epoch) != term.map(|term| term.epoch);
        *current = term;
        changed
    });
}

/// The client's side of an election.
struct Shell {
    api: Api<Lease>,
    name: String,
    /// The Lease as last seen, so that a PUT keeps what others wrote on it.
    seen: Option<Lease>,
}

impl Shell {
    async fn ask(&mut self, question: &Action, limit: Duration) -> Result<Answer, String> {
        let result = match question {
            Action::Create(record) => {
                let mut lease = Lease::default();
                lease.metadata.name = Some(self.name.clone());
                write_record(&mut lease, record);
                timeout(limit, self.api.create(&PostParams::default(), &lease)).await
            }
            Action::Replace { version, record } => {
                let mut lease = self.seen.clone().unwrap_or_default();
                lease.metadata.name = Some(self.name.clone());
                lease.metadata.resource_version = Some(version.clone());
                lease.metadata.managed_fields = None;
                write_record(&mut lease, record);
                timeout(limit, self.api.replace(&self.name, &PostParams::default(), &lease)).await
            }
            Action::Read | Action::Wait(_) | Action::Lose(_) => timeout(limit, self.api.get(&self.name)).await,
        };
        match result {
            Ok(Ok(lease)) => {
                let version = lease.metadata.resource_version.clone().unwrap_or_default();
                let record = read_record(&lease);
                self.seen = Some(lease);
                Ok(if matches!(question, Action::Read) {
                    Answer::Found { version, record }
                } else {
                    Answer::Written { version, record }
                })
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Answer::Absent),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(Answer::Conflict),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        }
    }

    /// Writes an empty holder over a record of our own. Says whether it did.
    async fn release(&mut self, election: &Election) -> bool {
        // An answer may have been missed when the loop was left, hence the look; and a late write of ours may still
        // come between the look and the release, hence the second try.
        for _ in 0..2 {
            let Ok(Answer::Found { version, record }) = self.ask(&Action::Read, RELEASE_TIMEOUT / 2).await else {
                return false;
            };
            if !election.is_own(&record) {
                return false;
            }
            let wall = wall_now();
            let record = Record {
                holder: String::new(),
                duration: Duration::from_secs(1),
                acquired: wall,
                renewed: wall,
                epoch: record.epoch,
            };
            let question = Action::Replace { version, record };
            if let Ok(Answer::Written { .. }) = self.ask(&question, RELEASE_TIMEOUT / 2).await {
                return true;
            }
        }
        false
    }
}

fn read_record(lease: &Lease) -> Record {
    let empty = LeaseSpec::default();
    let spec = lease.spec.as_ref().unwrap_or(&empty);
    let wall = |time: &Option<MicroTime>| time.as_ref().map_or(0, |time| time.0.as_microsecond());
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|s| *s > 0);
    Record {
        holder: spec.holder_identity.clone().unwrap_or_default(),
        duration: seconds.map_or_else(|| LeaseConfig::default().lease_duration, Duration::from_secs),
        acquired: wall(&spec.acquire_time),
        renewed: wall(&spec.renew_time),
        epoch: i64::from(spec.lease_transitions.unwrap_or_default()),
    }
}

fn write_record(lease: &mut Lease, record: &Record) {
    let time = |wall: Wall| Timestamp::from_microsecond(wall).ok().map(MicroTime);
    let spec = lease.spec.get_or_insert_default();
    spec.holder_identity = Some(record.holder.clone());
    spec.lease_duration_seconds = Some(i32::try_from(record.duration.as_secs()).unwrap_or(i32::MAX));
    spec.acquire_time = time(record.acquired);
    spec.renew_time = time(record.renewed);
    spec.lease_transitions = Some(i32::try_from(record.epoch).unwrap_or(i32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::Request;
    use axum::http::{Method, StatusCode};
    use axum::response::{IntoResponse, Response};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::Mutex;
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Wall = 60_000_000;

    // --- The decisions ---

    fn election(identity: &str) -> Election {
        Election::new(identity.to_owned(), LeaseConfig::default())
    }

    fn held_by(holder: &str, renewed: Wall, epoch: i64) -> Record {
        Record { holder: holder.into(), duration: 15 * SECOND, acquired: 0, renewed, epoch }
    }

    fn found(version: &str, record: &Record) -> Answer {
        Answer::Found { version: version.into(), record: record.clone() }
    }

    /// What the election wants to write now.
    fn written(election: &Election, now: Instant, wall: Wall) -> Option<Record> {
        match election.step(now, wall) {
            Action::Create(record) | Action::Replace { record, .. } => Some(record),
            Action::Read | Action::Wait(_) | Action::Lose(_) => None,
        }
    }

    /// An election that has just taken the lease.
    fn leader(now: Instant, wall: Wall) -> Election {
        let mut election = election("a");
        election.heard(Answer::Absent, now, now);
        let action = election.step(now, wall);
        election.asking(&action);
        let Action::Create(record) = action else { panic!("{action:?}") };
        election.heard(Answer::Written { version: "1".into(), record }, now, now);
        assert!(election.term().is_some());
        election
    }

    #[test]
    fn the_lease_is_looked_at_first_then_created_then_renewed_at_the_version_seen() {
        let now = Instant::now();
        let mut election = election("a");
        assert_eq!(election.step(now, 7), Action::Read);
        election.heard(Answer::Absent, now, now);
        let action = election.step(now, 7);
        let record = Record { holder: "a".into(), duration: 15 * SECOND, acquired: 7, renewed: 7, epoch: 1 };
        assert_eq!(action, Action::Create(record.clone()));
        election.asking(&action);
        election.heard(Answer::Written { version: "1".into(), record: record.clone() }, now, now);
        assert_eq!(election.step(now, 8), Action::Wait(now + 2 * SECOND));
        assert_eq!(
            election.step(now + 2 * SECOND, 9),
            Action::Replace { version: "1".into(), record: Record { renewed: 9, ..record } }
        );
    }

    #[test]
    fn expiry_is_judged_by_how_long_ago_the_record_changed_here_and_never_by_the_holders_clock() {
        let begun = Instant::now();
        let day = 24 * 60 * MINUTE;
        for renewed in [-365 * day, 0, 365 * day] {
            let mut election = election("b");
            for second in 0u32..15 {
                let now = begun + SECOND * second;
                election.heard(found("5", &held_by("a", renewed, 3)), now, now);
                assert_eq!(written(&election, now, 10 * MINUTE), None, "after {second} s, renewed {renewed}");
            }
            // A sign of life starts the wait again.
            let alive = begun + 14 * SECOND;
            election.heard(found("6", &held_by("a", renewed + 1, 3)), alive, alive);
            let now = begun + 28 * SECOND;
            election.heard(found("6", &held_by("a", renewed + 1, 3)), now, now);
            assert_eq!(written(&election, now, 10 * MINUTE), None);
            let now = begun + 29 * SECOND;
            let record = written(&election, now, 10 * MINUTE).expect("takes over");
            assert_eq!((record.holder.as_str(), record.epoch), ("b", 10));
        }
    }

    #[test]
    fn a_touch_that_is_no_renewal_does_not_keep_a_dead_leader_alive() {
        let begun = Instant::now();
        let mut election = election("b");
        for second in 0u32..=15 {
            let now = begun + SECOND * second;
            // Somebody edits its labels all the time: another version, the same record.
            election.heard(found(&second.to_string(), &held_by("a", 0, 3)), now, now);
        }
        let now = begun + 15 * SECOND;
        assert!(matches!(election.step(now, 0), Action::Replace { version, .. } if version == "15"));
    }

    #[test]
    fn the_holders_own_promise_counts_and_not_ours() {
        let begun = Instant::now();
        let mut election = election("b");
        let record = Record { duration: 60 * SECOND, ..held_by("a", 0, 3) };
        for second in [0u32, 59] {
            let now = begun + SECOND * second;
            election.heard(found("5", &record), now, now);
            assert_eq!(written(&election, now, 0), None);
        }
        assert!(written(&election, begun + 60 * SECOND, 0).is_some());
    }

    #[test]
    fn a_lease_given_back_is_taken_at_the_next_look() {
        let now = Instant::now();
        let mut election = election("b");
        election.heard(found("5", &held_by("a", 0, 3)), now, now);
        let Action::Wait(until) = election.step(now, 0) else { panic!("must wait") };
        assert!(until <= now + Duration::from_millis(2400), "looks again within 2.4 s");
        assert_eq!(election.step(until, 0), Action::Read);
        election.heard(found("6", &held_by("", 0, 3)), until, until);
        assert_eq!(written(&election, until, 0).map(|record| record.epoch), Some(4));
    }

    #[test]
    fn the_leader_stops_long_before_another_may_take_over() {
        let now = Instant::now();
        let mut election = leader(now, 0);
        let config = LeaseConfig::default();
        let term = election.term().unwrap();
        assert_eq!(term.left(now + 9 * SECOND, 9_000_000), SECOND);
        assert_eq!(term.left(now + 10 * SECOND, 0), Duration::ZERO);
        assert!(config.renew_deadline + REQUEST_TIMEOUT <= config.lease_duration);
        // Failures all along.
        for half in 4u32..20 {
            let now = now + SECOND / 2 * half;
            election.heard(Answer::Failed, now, now);
            assert!(!matches!(election.step(now, 0), Action::Lose(_)), "still the leader after {half} halves");
            assert!(election.limit(now) <= (now - now) + SECOND * 10 / 4);
        }
        assert!(matches!(election.step(now + 10 * SECOND, 0), Action::Lose(_)));
        election.lose();
        assert_eq!(election.term(), None);
    }

    #[test]
    fn no_request_of_a_leader_is_waited_for_beyond_its_deadline() {
        let now = Instant::now();
        let election = leader(now, 0);
        assert_eq!(election.limit(now), SECOND * 10 / 4);
        assert_eq!(election.limit(now + 9 * SECOND), SECOND);
        assert_eq!(election.limit(now + 20 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_renewal_counts_from_when_it_was_sent() {
        let now = Instant::now();
        let mut election = leader(now, 0);
        let sent = now + 2 * SECOND;
        let Action::Replace { record, .. } = election.step(sent, 2) else { panic!("renews") };
        election.heard(Answer::Written { version: "2".into(), record }, sent, sent + 2 * SECOND);
        assert_eq!(election.term().unwrap().left(sent + 2 * SECOND, 0), 8 * SECOND);
    }

    #[test]
    fn a_jump_of_the_wall_clock_suspends_writes_until_the_next_renewal_and_loses_nothing() {
        let now = Instant::now();
        let hour = 60 * MINUTE;
        let mut election = leader(now, 5 * hour);
        // An hour ahead, or a machine that slept: not to be trusted until the API server has said so.
        let later = now + 2 * SECOND;
        assert_eq!(election.term().unwrap().left(later, 6 * hour), Duration::ZERO);
        let Action::Replace { record, .. } = election.step(later, 6 * hour) else { panic!("renews") };
        election.heard(Answer::Written { version: "2".into(), record }, later, later);
        assert_eq!(election.term().unwrap().left(later, 6 * hour), 10 * SECOND);
        // An hour back: the other clock decides.
        assert_eq!(election.term().unwrap().left(later + 9 * SECOND, 5 * hour), SECOND);
        assert_eq!(election.term().unwrap().left(later + 10 * SECOND, 5 * hour), Duration::ZERO);
    }

    #[test]
    fn a_process_that_was_stopped_knows_at_once_that_it_does_not_lead() {
        let now = Instant::now();
        let election = leader(now, 0);
        let resumed = now + 60 * SECOND;
        assert_eq!(election.term().unwrap().left(resumed, 0), Duration::ZERO);
        assert!(matches!(election.step(resumed, 0), Action::Lose(_)), "before it asks or writes anything");
    }

    #[test]
    fn a_leader_whose_lease_was_taken_stops_at_once_though_its_time_is_not_over() {
        let now = Instant::now();
        let mut election = leader(now, 0);
        election.heard(Answer::Conflict, now, now);
        let Action::Wait(until) = election.step(now, 0) else { panic!("not in a rush") };
        assert!(until < now + SECOND, "but soon");
        assert_eq!(election.step(until, 0), Action::Read);
        election.heard(found("9", &held_by("b", 0, 2)), until, until);
        assert!(matches!(election.step(until, 0), Action::Lose(_)));
    }

    #[test]
    fn a_conflict_with_a_renewal_of_ones_own_is_no_loss() {
        let now = Instant::now();
        let mut election = leader(now, 0);
        let due = now + 2 * SECOND;
        let Action::Replace { record, .. } = election.step(due, 2) else { panic!("renews") };
        // It was written, but the answer was lost; so the next try conflicts.
        election.heard(Answer::Failed, due, due + SECOND);
        election.heard(Answer::Conflict, due + SECOND, due + SECOND);
        let again = due + 2 * SECOND;
        assert_eq!(election.step(again, 4), Action::Read);
        election.heard(found("2", &record), again, again);
        assert!(matches!(election.step(again, 4), Action::Replace { version, .. } if version == "2"));
    }

    #[test]
    fn an_acquisition_whose_answer_was_lost_is_recognised() {
        let now = Instant::now();
        let mut election = election("a");
        election.heard(Answer::Absent, now, now);
        let action = election.step(now, 7);
        election.asking(&action);
        let Action::Create(record) = action else { panic!("creates") };
        election.heard(Answer::Failed, now, now + SECOND);
        assert_eq!(election.term(), None, "not the leader on a guess");
        let later = now + 5 * SECOND;
        election.heard(found("1", &record), later, later);
        assert_eq!(written(&election, later, 8).map(|record| record.epoch), Some(2), "no wait for itself to expire");
    }

    #[test]
    fn a_process_of_the_same_name_is_another_one() {
        let now = Instant::now();
        let first = leader(now, 7);
        let record = first.last.clone().unwrap().record;
        let mut second = election("a");
        second.heard(found("1", &record), now, now);
        assert_eq!(written(&second, now, 8), None);
        let later = now + 15 * SECOND;
        second.heard(found("1", &record), later, later);
        let taken = written(&second, later, 9).expect("after it has expired");
        let mut first = first;
        first.heard(found("2", &taken), now, now);
        assert!(matches!(first.step(now, 9), Action::Lose(_)));
    }

    #[test]
    fn a_deleted_lease_does_not_mean_that_its_holder_is_gone() {
        let now = Instant::now();
        let mut election = election("b");
        election.heard(found("5", &held_by("a", 0, 30)), now, now);
        let later = now + 14 * SECOND;
        election.heard(Answer::Absent, later, later);
        assert_eq!(written(&election, later, 0), None);
        let expired = now + 15 * SECOND;
        assert_eq!(written(&election, expired, 0).map(|record| record.epoch), Some(31));

        let mut leader = leader(now, 7);
        leader.heard(Answer::Absent, now, now);
        let again = leader.step(now + 2 * SECOND, 9);
        assert!(
            matches!(&again, Action::Create(record) if (record.epoch, record.acquired) == (1, 7)),
            "the one who leads puts it back as it was: {again:?}"
        );
    }

    #[test]
    fn epochs_never_go_back_though_the_lease_does() {
        assert_eq!(next_epoch(0, 0), 1);
        assert_eq!(next_epoch(41, 0), 42);
        assert_eq!(next_epoch(41, 30_000_000 * MINUTE), 30_000_000);
        assert_eq!(next_epoch(30_000_000, 30_000_000 * MINUTE), 30_000_001);
        assert_eq!(next_epoch(i64::MAX, i64::MIN), i64::from(i32::MAX), "what a Lease can hold");
    }

    #[test]
    fn times_that_do_not_fit_are_refused_by_name() {
        let good = LeaseConfig::default();
        assert!(good.check().is_ok());
        for (config, field) in [
            (LeaseConfig { lease_duration: Duration::from_millis(15_500), ..good.clone() }, "lease_duration"),
            (LeaseConfig { renew_deadline: 12 * SECOND, ..good.clone() }, "renew_deadline"),
            (LeaseConfig { retry_period: Duration::ZERO, ..good.clone() }, "retry_period"),
            (LeaseConfig { retry_period: 6 * SECOND, ..good.clone() }, "retry_period"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        assert!(matches!(prepare("", good), Err(LeaseError::NoIdentity)));
    }

    #[test]
    fn what_others_keep_in_the_lease_stays_and_odd_values_are_survived() {
        let mut lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": "sluice", "labels": {"team": "x"}},
            "spec": {"strategy": "OldestEmulationVersion", "leaseDurationSeconds": -3},
        }))
        .unwrap();
        let record = read_record(&lease);
        assert_eq!((record.holder.as_str(), record.duration, record.epoch), ("", 15 * SECOND, 0));
        let mine = Record { acquired: 1_700_000_000_123_456, ..held_by("a", 1_700_000_001_000_001, 4) };
        write_record(&mut lease, &mine);
        let stored: Lease = serde_json::from_value(serde_json::to_value(&lease).unwrap()).unwrap();
        assert_eq!(read_record(&stored), mine, "to the microsecond, by which our own is recognised");
        assert_eq!(stored.spec.unwrap().strategy.as_deref(), Some("OldestEmulationVersion"));
        assert_eq!(stored.metadata.labels.unwrap()["team"], "x");
    }

    // --- A world of candidates with slow, lost and late answers, stopped processes and clocks that differ ---

    #[derive(Clone, Copy, Debug)]
    enum Fault {
        None,
        /// The request never arrives.
        Lost,
        /// It arrives; the answer does not.
        Mute,
        /// It arrives this many tenths of a second late, the answer right after.
        Slow(u8),
        /// The process is stopped for this many tenths of a second, right after it has sent.
        Stopped(u8),
    }

    fn fault() -> impl Strategy<Value = Fault> {
        prop_oneof![
            6 => Just(Fault::None),
            1 => Just(Fault::Lost),
            1 => Just(Fault::Mute),
            1 => (1u8..40).prop_map(Fault::Slow),
            1 => (1u8..=250).prop_map(Fault::Stopped),
        ]
    }

    struct Candidate {
        election: Election,
        /// Its clock runs at so many thousandths of the true one.
        rate: u32,
        wall_offset: Wall,
        /// Sent and not yet answered: when it arrives, when the answer arrives, if ever; in true tenths.
        flight: Option<(Action, u32, Option<u32>, Instant)>,
        answer: Option<Answer>,
        stopped_until: u32,
    }

    fn serve(store: &mut Option<(u64, Record)>, version: &mut u64, action: &Action) -> Answer {
        *version += 1;
        match (action, store.as_ref()) {
            (Action::Create(record), None) => {
                *store = Some((*version, record.clone()));
                Answer::Written { version: version.to_string(), record: record.clone() }
            }
            (Action::Create(_), Some(_)) => Answer::Conflict,
            (Action::Replace { version: seen, record }, Some((stored, _))) if *seen == stored.to_string() => {
                *store = Some((*version, record.clone()));
                Answer::Written { version: version.to_string(), record: record.clone() }
            }
            (Action::Replace { .. }, Some(_)) => Answer::Conflict,
            (_, None) => Answer::Absent,
            (_, Some((stored, record))) => Answer::Found { version: stored.to_string(), record: record.clone() },
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn never_two_at_once_epochs_only_grow_and_somebody_leads_in_the_end(
            faults in proptest::collection::vec(fault(), 1..120),
            rates in proptest::array::uniform3(950u32..1050),
            offsets in proptest::array::uniform3(-600i64..600),
        ) {
            let begun = Instant::now();
            let mut store = None;
            let mut version = 0;
            let mut faults = faults.into_iter();
            let mut last_epoch = 0;
            let mut led = false;
            let mut candidates: Vec<Candidate> = (0..3).map(|index| Candidate {
                election: election(["a", "b", "c"][index]),
                rate: rates[index],
                wall_offset: offsets[index] * 1_000_000,
                flight: None,
                answer: None,
                stopped_until: 0,
            }).collect();
            let mut calm_since = None;
            let mut leaders_by_epoch = std::collections::BTreeMap::new();
            for tenth in 0u32..6000 {
                let mut leaders = 0;
                for (index, candidate) in candidates.iter_mut().enumerate() {
                    let now = begun + SECOND / 10_000 * candidate.rate * tenth;
                    let wall = i64::from(tenth) * 100_000 + 1_000_000_000 + candidate.wall_offset;
                    // The API server does its part whether or not the process is there to listen.
                    if let Some((action, arrives, _, _)) = &candidate.flight
                        && *arrives == tenth
                    {
                        candidate.answer = Some(serve(&mut store, &mut version, action));
                    }
                    if let Some(term) = candidate.election.term()
                        && !term.left(now, wall).is_zero()
                    {
                        leaders += 1;
                        led = true;
                        prop_assert!(term.epoch >= last_epoch, "{} after {last_epoch}", term.epoch);
                        last_epoch = term.epoch;
                        prop_assert_eq!(*leaders_by_epoch.entry(term.epoch).or_insert(index), index, "two leaders of one epoch");
                    }
                    if tenth < candidate.stopped_until {
                        continue;
                    }
                    if let Some((_, _, answered, sent)) = &candidate.flight {
                        let overdue = now >= *sent + candidate.election.limit(*sent);
                        if answered.is_some_and(|answered| answered <= tenth) {
                            let answer = candidate.answer.take().unwrap_or(Answer::Failed);
                            candidate.election.heard(answer, *sent, now);
                            candidate.flight = None;
                        } else if overdue {
                            candidate.election.heard(Answer::Failed, *sent, now);
                            // What is on its way still arrives, as far as it does so before the next question.
                            candidate.flight = None;
                        } else {
                            continue;
                        }
                    }
                    match candidate.election.step(now, wall) {
                        Action::Wait(until) => prop_assert!(until > now, "waits for the past"),
                        Action::Lose(_) => candidate.election.lose(),
                        question => {
                            candidate.election.asking(&question);
                            let (arrives, answered) = match faults.next() {
                                None => {
                                    calm_since.get_or_insert(tenth);
                                    (tenth + 1, Some(tenth + 1))
                                }
                                Some(Fault::None) => (tenth + 1, Some(tenth + 1)),
                                Some(Fault::Lost) => (u32::MAX, None),
                                Some(Fault::Mute) => (tenth + 1, None),
                                Some(Fault::Slow(late)) => {
                                    (tenth + 1 + u32::from(late), Some(tenth + 1 + u32::from(late)))
                                }
                                Some(Fault::Stopped(long)) => {
                                    candidate.stopped_until = tenth + u32::from(long);
                                    (tenth + 1, Some(tenth + 1))
                                }
                            };
                            candidate.flight = Some((question, arrives, answered, now));
                        }
                    }
                }
                prop_assert!(leaders <= 1, "{leaders} leaders after {tenth} tenths");
                if calm_since.is_some_and(|since| tenth > since + 600) {
                    break;
                }
            }
            prop_assert!(led);
            if calm_since.is_some() {
                let leads = candidates.iter().filter(|candidate| candidate.election.term().is_some()).count();
                prop_assert_eq!(leads, 1, "a minute of calm and no leader");
            }
        }
    }

    // --- The loop, with the library's client and an API server in memory ---

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    enum Road {
        #[default]
        Good,
        /// The API server says 503.
        Down,
        /// No answer ever; nothing arrives.
        Cut,
        /// What is asked is done, but no answer comes back.
        Mute,
        /// Every write is a conflict.
        Conflicts,
    }

    #[derive(Default)]
    struct Stored {
        lease: Option<Value>,
        version: u64,
        /// Who wrote what, and with which result.
        writes: Vec<(&'static str, Method, u16)>,
    }

    #[derive(Clone, Default)]
    struct ApiServer(Arc<Mutex<Stored>>);

    impl ApiServer {
        fn client(&self, who: &'static str, road: watch::Receiver<Road>) -> kube::Client {
            kube::Client::new(self.router(who, road), "sluice")
        }

        fn router(&self, who: &'static str, road: watch::Receiver<Road>) -> Router {
            let server = self.clone();
            Router::new().fallback(move |request: Request| {
                let (server, road) = (server.clone(), *road.borrow());
                async move {
                    let (parts, body) = request.into_parts();
                    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                    let answer = match road {
                        Road::Cut => std::future::pending().await,
                        Road::Down => status(503, "ServiceUnavailable"),
                        Road::Conflicts if parts.method != Method::GET => status(409, "Conflict"),
                        Road::Good | Road::Mute | Road::Conflicts => {
                            server.answer(who, &parts.method, parts.uri.path(), &body)
                        }
                    };
                    if road == Road::Mute {
                        std::future::pending::<()>().await;
                    }
                    answer
                }
            })
        }

        fn answer(&self, who: &'static str, method: &Method, path: &str, body: &[u8]) -> Response {
            let mut stored = self.0.lock().unwrap();
            let collection = "/apis/coordination.k8s.io/v1/namespaces/sluice/leases";
            let sent: Option<Value> = serde_json::from_slice(body).ok();
            let answer = match (method, path.strip_prefix(collection), sent) {
                (&Method::GET, Some("/sluice"), _) => match &stored.lease {
                    Some(lease) => axum::Json(lease.clone()).into_response(),
                    None => status(404, "NotFound"),
                },
                (&Method::POST, Some(""), Some(lease)) => match &stored.lease {
                    Some(_) => status(409, "AlreadyExists"),
                    None => stored.store(lease),
                },
                (&Method::PUT, Some("/sluice"), Some(lease)) => match &stored.lease {
                    None => status(404, "NotFound"),
                    // Without a version the real one would overwrite; that must never be asked for.
                    Some(old) if old["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] => {
                        status(409, "Conflict")
                    }
                    Some(_) => stored.store(lease),
                },
                other => panic!("unexpected request {other:?}"),
            };
            if method != Method::GET {
                stored.writes.push((who, method.clone(), answer.status().as_u16()));
            }
            answer
        }

        fn spec(&self) -> Value {
            self.0.lock().unwrap().lease.as_ref().map_or(Value::Null, |lease| lease["spec"].clone())
        }

        fn holder(&self) -> String {
            self.spec()["holderIdentity"].as_str().unwrap_or_default().to_owned()
        }

        /// Takes the list of writes so far.
        fn writes(&self) -> Vec<(&'static str, Method, u16)> {
            std::mem::take(&mut self.0.lock().unwrap().writes)
        }
    }

    impl Stored {
        fn store(&mut self, mut lease: Value) -> Response {
            self.version += 1;
            lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.lease = Some(lease.clone());
            axum::Json(lease).into_response()
        }
    }

    fn status(code: u16, reason: &str) -> Response {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
            "reason": reason, "code": code});
        (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
    }

    /// One candidate, its road to the API server, and its loop, which only runs while it is polled.
    struct Process {
        leadership: Leadership,
        road: watch::Sender<Road>,
        running: Option<tokio::task::JoinHandle<()>>,
    }

    fn process(server: &ApiServer, who: &'static str) -> (Process, impl Future<Output = ()> + Send + 'static) {
        let (road, roads) = watch::channel(Road::Good);
        let (election, leadership, publisher, stop) = prepare(who, LeaseConfig::default()).unwrap();
        let api = Api::namespaced(server.client(who, roads), "sluice");
        let running = run(Shell { api, name: "sluice".into(), seen: None }, election, publisher, stop);
        (Process { leadership, road, running: None }, running)
    }

    fn start(server: &ApiServer, who: &'static str) -> Process {
        let (mut process, running) = process(server, who);
        process.running = Some(tokio::spawn(running));
        process
    }

    impl Process {
        fn leads(&self) -> bool {
            self.leadership.is_leader()
        }
    }

    /// Waits for something, and sees to it that never two lead at once. Gives how long it took.
    async fn until(processes: &[&Process], limit: Duration, condition: impl Fn() -> bool) -> Duration {
        let begun = Instant::now();
        while !condition() {
            let leaders = processes.iter().filter(|process| process.leads()).count();
            assert!(leaders <= 1, "{leaders} leaders at once");
            assert!(begun.elapsed() < limit, "not within {limit:?}");
            sleep(Duration::from_millis(50)).await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_start_together_one_leads_and_renews_and_the_other_waits() {
        let server = ApiServer::default();
        let (a, b) = (start(&server, "a"), start(&server, "b"));
        until(&[&a, &b], SECOND, || a.leads() || b.leads()).await;
        let (leader, standby) = if a.leads() { (&a, &b) } else { (&b, &a) };
        let epoch = leader.leadership.epoch().unwrap();
        assert_eq!(server.spec()["leaseTransitions"], epoch);
        assert_eq!(server.spec()["leaseDurationSeconds"], 15);
        assert_eq!(standby.leadership.epoch(), None);
        server.writes();
        let begun = Instant::now();
        until(&[&a, &b], 61 * SECOND, || begun.elapsed() >= 60 * SECOND).await;
        assert_eq!(leader.leadership.epoch(), Some(epoch));
        assert!(leader.leadership.valid_for() > 7 * SECOND, "{:?}", leader.leadership.valid_for());
        let writes = server.writes();
        assert!((28..=31).contains(&writes.len()), "one renewal each two seconds: {}", writes.len());
        assert!(writes.iter().all(|(who, method, code)| *who == writes[0].0 && *method == Method::PUT && *code == 200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_cut_off_stops_in_time_and_is_replaced_and_comes_back_as_a_standby() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        let b = start(&server, "b");
        let first = a.leadership.epoch().unwrap();
        sleep(5 * SECOND).await;
        a.road.send_replace(Road::Cut);
        let stopped = until(&[&a, &b], 11 * SECOND, || !a.leads()).await;
        assert!(stopped <= 10 * SECOND, "{stopped:?}");
        assert!(!b.leads());
        let waited = until(&[&a, &b], 20 * SECOND, || b.leads()).await;
        assert!(stopped + waited >= 13 * SECOND && stopped + waited <= 18 * SECOND, "{stopped:?} + {waited:?}");
        assert!(b.leadership.epoch().unwrap() > first);
        assert!(!a.leadership.may_write());
        server.writes();
        a.road.send_replace(Road::Good);
        let begun = Instant::now();
        until(&[&a, &b], 61 * SECOND, || begun.elapsed() >= 60 * SECOND).await;
        assert!(b.leads() && !a.leads());
        assert!(server.writes().iter().all(|(who, _, _)| *who == "b"), "the old one writes nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_stopped_like_by_a_signal_knows_at_once_and_writes_nothing() {
        let server = ApiServer::default();
        let (a, running) = process(&server, "a");
        let mut running = Box::pin(running);
        // Its loop runs only inside of this.
        tokio::select! {
            () = &mut running => panic!("it ended"),
            () = sleep(3 * SECOND) => {}
        }
        assert!(a.leads());
        let b = start(&server, "b");
        let taken = until(&[&a, &b], 20 * SECOND, || b.leads()).await;
        assert!(taken >= 13 * SECOND, "{taken:?}");
        // It has not run since, and yet it knows.
        assert!(!a.leadership.is_leader());
        assert_eq!(a.leadership.epoch(), None);
        assert_eq!(a.leadership.valid_for(), Duration::ZERO);
        server.writes();
        let mut watching = a.leadership.clone();
        watching.term.mark_unchanged();
        tokio::select! {
            () = &mut running => panic!("it ended"),
            () = watching.changed() => {}
        }
        tokio::select! {
            () = &mut running => panic!("it ended"),
            () = sleep(20 * SECOND) => {}
        }
        assert!(b.leads() && !a.leads());
        assert!(server.writes().iter().all(|(who, _, _)| *who == "b"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_of_the_old_leader_that_arrives_late_is_refused() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        let late = server.0.lock().unwrap().lease.clone().unwrap();
        a.road.send_replace(Road::Cut);
        let b = start(&server, "b");
        until(&[&a, &b], 20 * SECOND, || b.leads()).await;
        let answer = server.answer(
            "a",
            &Method::PUT,
            "/apis/coordination.k8s.io/v1/namespaces/sluice/leases/sluice",
            late.to_string().as_bytes(),
        );
        assert_eq!(answer.status(), 409);
        assert_eq!(server.holder(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_given_back_is_taken_within_three_seconds() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        let b = start(&server, "b");
        sleep(7 * SECOND).await;
        let first = a.leadership.epoch().unwrap();
        let begun = Instant::now();
        a.leadership.release().await;
        assert!(!a.leads());
        assert_eq!(server.holder(), "");
        until(&[&a, &b], 3 * SECOND, || b.leads()).await;
        assert!(begun.elapsed() <= 3 * SECOND, "{:?}", begun.elapsed());
        assert!(b.leadership.epoch().unwrap() > first);
        a.running.unwrap().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_that_stops_leaves_the_lease_alone() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        let b = start(&server, "b");
        sleep(5 * SECOND).await;
        b.leadership.release().await;
        assert_eq!(server.holder(), "a");
        assert!(a.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_forgets_its_leadership_gives_the_lease_back() {
        let server = ApiServer::default();
        let Process { leadership, running, .. } = start(&server, "a");
        leadership.clone().acquired().await;
        drop(leadership);
        timeout(5 * SECOND, running.unwrap()).await.unwrap().unwrap();
        assert_eq!(server.holder(), "");
    }

    #[tokio::test(start_paused = true)]
    async fn giving_back_with_the_api_down_takes_no_more_than_its_time() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        a.road.send_replace(Road::Cut);
        let begun = Instant::now();
        a.leadership.release().await;
        assert!(!a.leads());
        assert!(begun.elapsed() <= 4 * SECOND, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_outage_costs_nothing_and_a_long_one_only_its_own_time() {
        let server = ApiServer::default();
        let (a, b) = (start(&server, "a"), start(&server, "b"));
        until(&[&a, &b], SECOND, || a.leads() || b.leads()).await;
        let epoch = a.leadership.epoch().or(b.leadership.epoch());
        for road in [&a.road, &b.road] {
            road.send_replace(Road::Down);
        }
        let begun = Instant::now();
        until(&[&a, &b], 8 * SECOND, || begun.elapsed() >= 7 * SECOND).await;
        assert!(a.leads() || b.leads());
        for road in [&a.road, &b.road] {
            road.send_replace(Road::Good);
        }
        sleep(10 * SECOND).await;
        assert_eq!(a.leadership.epoch().or(b.leadership.epoch()), epoch, "the same leader in the same term");
        for road in [&a.road, &b.road] {
            road.send_replace(Road::Down);
        }
        until(&[&a, &b], 11 * SECOND, || !a.leads() && !b.leads()).await;
        sleep(600 * SECOND).await;
        for road in [&a.road, &b.road] {
            road.send_replace(Road::Good);
        }
        until(&[&a, &b], 4 * SECOND, || a.leads() || b.leads()).await;
        assert!(a.leadership.epoch().or(b.leadership.epoch()) > epoch);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_answers_do_not_cost_a_lease_duration() {
        let server = ApiServer::default();
        let (road, roads) = watch::channel(Road::Mute);
        let (election, leadership, publisher, stop) = prepare("a", LeaseConfig::default()).unwrap();
        // The read has to get through for the creation to be tried.
        let mut shell =
            Shell { api: Api::namespaced(server.client("a", roads), "sluice"), name: "sluice".into(), seen: None };
        let mut election = election;
        let now = Instant::now();
        election.heard(Answer::Absent, now, now);
        let action = election.step(now, wall_now());
        election.asking(&action);
        assert!(shell.ask(&action, SECOND).await.is_err(), "no answer");
        assert_eq!(server.holder(), "a", "and yet it is written");
        election.heard(Answer::Failed, now, Instant::now());
        road.send_replace(Road::Good);
        let running = tokio::spawn(run(shell, election, publisher, stop));
        let begun = Instant::now();
        timeout(5 * SECOND, leadership.clone().acquired()).await.expect("recognises its own");
        assert!(begun.elapsed() < 4 * SECOND);
        leadership.release().await;
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_refuses_every_write_is_not_hammered() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        a.road.send_replace(Road::Conflicts);
        let lost = until(&[&a], 11 * SECOND, || !a.leads()).await;
        assert!(lost >= 7 * SECOND, "it leads as long as nobody else can: {lost:?}");
        a.road.send_replace(Road::Good);
        until(&[&a], 5 * SECOND, || a.leads()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_put_back_by_the_one_who_leads() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        until(&[&a], SECOND, || a.leads()).await;
        let b = start(&server, "b");
        sleep(5 * SECOND).await;
        let epoch = a.leadership.epoch();
        server.0.lock().unwrap().lease = None;
        until(&[&a, &b], 5 * SECOND, || server.holder() == "a").await;
        assert_eq!(a.leadership.epoch(), epoch);
        let begun = Instant::now();
        until(&[&a, &b], 31 * SECOND, || begun.elapsed() >= 30 * SECOND).await;
        assert!(a.leads() && !b.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn changes_of_leadership_wake_and_renewals_do_not() {
        let server = ApiServer::default();
        let a = start(&server, "a");
        let mut watching = a.leadership.clone();
        timeout(5 * SECOND, watching.changed()).await.expect("it leads now");
        assert!(watching.is_leader());
        assert!(timeout(60 * SECOND, watching.changed()).await.is_err(), "renewals wake nobody");
        a.road.send_replace(Road::Down);
        timeout(11 * SECOND, watching.changed()).await.expect("it does not lead any more");
        assert!(!watching.is_leader());
    }

    #[tokio::test]
    async fn it_renews_on_a_thread_of_its_own_while_the_runtime_is_busy() {
        let server = ApiServer::default();
        let (_road, roads) = watch::channel(Road::Good);
        let router = server.router("a", roads);
        // The API server has a runtime of its own, for this one is about to be blocked.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                axum::serve(listener, router).await.unwrap();
            });
        });
        let address = receiver.recv().unwrap();
        let kube = kube::Config::new(format!("http://{address}/").parse().unwrap());
        let config = LeaseConfig {
            lease_duration: 6 * SECOND,
            renew_deadline: SECOND,
            retry_period: Duration::from_millis(100),
        };
        let leadership = LeaderElection::start(kube, "sluice", "sluice", "a", config).await.unwrap();
        let epoch = timeout(10 * SECOND, leadership.clone().acquired()).await.unwrap();
        // Longer than the renew deadline.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(1500) {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(leadership.epoch(), Some(epoch));
        leadership.release().await;
        assert!(!leadership.is_leader());
        assert_eq!(server.holder(), "");
    }
}
