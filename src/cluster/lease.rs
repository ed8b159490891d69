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
//! All that can be decided is decided by [`Election`], which has no clock and no client. It renews on a thread of
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
                self.claim = Some(Claim { mark, renewed: sent, renewed_wall });
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
