//! A fleet of Rollouts on a virtual clock: every transition is the engine's own, with the state, the plan and the
//! evidence that the operator would record with it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sluice::api::{AnalysisRunSpec, AnalysisRunStatus, RolloutSpec, TransitionEvent};
use sluice::controllers::plan_text;
use sluice::git::{Evidence, LedgerEntry, state_document};
use sluice::simulation::{Answer, Happened, Script, World, forecast};

/// The cluster's name.
pub const CLUSTER: &str = "prod";
/// One release in so many fails its analysis.
const ONE_FAILS_IN: u64 = 16;
/// The most measurements that an analysis keeps of one metric.
const KEPT: i64 = 20;

/// How many, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// All transitions together.
    pub transitions: usize,
    /// Of so many Rollouts.
    pub rollouts: usize,
    /// Transitions a minute, on average.
    pub per_minute: f64,
}

/// Gives the transitions of all Rollouts, by time.
pub struct Fleet {
    members: Vec<Member>,
    next: BinaryHeap<Reverse<(DateTime<Utc>, usize)>>,
}

/// One Rollout with its own cluster around it.
struct Member {
    number: usize,
    world: World,
    ready: VecDeque<LedgerEntry>,
    releases: u64,
    /// Transitions still to come.
    left: usize,
    /// From the beginning of one release to that of the next.
    gap: TimeDelta,
}

impl Fleet {
    /// The fleet, at its first transition.
    pub fn new(size: Size) -> Self {
        let start = DateTime::from_timestamp(1_772_600_400, 0).unwrap_or_default();
        let each = size.transitions.div_ceil(size.rollouts.max(1));
        let minutes = size.transitions as f64 / size.per_minute;
        // The first version takes two transitions, and a release nine.
        let releases = each.saturating_sub(2).div_ceil(9) + 1;
        let gap = TimeDelta::milliseconds((minutes * 60_000.0 / releases as f64) as i64);
        let mut fleet = Self { members: Vec::with_capacity(size.rollouts), next: BinaryHeap::new() };
        for number in 0..size.rollouts {
            let world = World::new(spec(number, 0), start + part_of(gap, number, 0));
            let left = each.min(size.transitions - (number * each).min(size.transitions));
            let member = Member { number, world, ready: VecDeque::new(), releases: 0, left, gap };
            fleet.members.push(member);
            fleet.look_at(number);
        }
        fleet
    }

    fn look_at(&mut self, number: usize) {
        let Some(member) = self.members.get_mut(number) else { return };
        if member.ready.is_empty() {
            member.go_on();
        }
        if let Some(entry) = member.ready.front() {
            self.next.push(Reverse((entry.transition.at, number)));
        }
    }
}

impl Iterator for Fleet {
    type Item = LedgerEntry;

    fn next(&mut self) -> Option<LedgerEntry> {
        let Reverse((_, number)) = self.next.pop()?;
        let entry = self.members.get_mut(number)?.ready.pop_front();
        self.look_at(number);
        entry
    }
}

impl Member {
    /// Lets the engine work until the next transition.
    fn go_on(&mut self) {
        while self.left > 0 && self.ready.is_empty() {
            match self.world.turn() {
                Happened::Performed(_) => {}
                Happened::Written(new) => self.take(new),
                Happened::Waits(wait) => match self.world.wakes_at(&wait) {
                    Some(at) => self.world.advance_to(at),
                    None => self.release(),
                },
            }
        }
    }

    /// Somebody commits the next version.
    fn release(&mut self) {
        self.releases += 1;
        let (number, release) = (self.number, self.releases);
        let begin = self.gap * i32::try_from(release).unwrap_or(i32::MAX) + part_of(self.gap, number, release);
        let start = DateTime::from_timestamp(1_772_600_400, 0).unwrap_or_default();
        self.world.advance_to((start + begin).max(self.world.now + TimeDelta::seconds(5)));
        self.world.scripts.clear();
        if draw(number, release, "fails").is_multiple_of(ONE_FAILS_IN) {
            self.world.scripts.push(Script { from: self.world.now, from_stage: 2, answer: Answer::Fail });
        }
        self.world.source_commit = Some(digest(number, release, "commit")[..40].to_owned());
        self.world.edit_spec(|own| *own = spec(number, release));
    }

    /// The transitions that were just written, as the ledger gets them.
    fn take(&mut self, new: usize) {
        let snapshot = self.world.snapshot();
        let (namespace, name) = names(self.number);
        let first = self.world.recorded.len().saturating_sub(new);
        for transition in self.world.recorded.iter().skip(first).take(self.left) {
            let runs = transition.analysis_runs.iter().filter_map(|run| Some((run, self.world.analyses.get(run)?)));
            let evidence = runs.map(|(run, state)| {
                let passes = transition.event != TransitionEvent::Aborted;
                let (spec, status) = analysis(&name, transition.at - state.created_at, transition.at, passes);
                let spec = AnalysisRunSpec {
                    revision: state.revision.clone(),
                    attempt: state.attempt,
                    stage: state.stage.clone(),
                    ..spec
                };
                Evidence::of(run, &spec, &status)
            });
            let set = self.world.replica_sets.get(&transition.revision_to);
            let key = format!("{namespace}/{name}");
            self.ready.push_back(LedgerEntry {
                cluster: CLUSTER.to_owned(),
                namespace: namespace.clone(),
                name: name.clone(),
                uid: uid(self.number),
                covers: Vec::new(),
                state: state_document(&self.world.status),
                plan: plan_text::text(&key, &self.world.status, &forecast(&snapshot, transition.at)),
                evidence: evidence.collect(),
                template: set.map(|set| set.template.0.clone()),
                operator: "sluice/0.1.0".to_owned(),
                transition: transition.clone(),
            });
            self.left -= 1;
        }
    }
}

/// Twenty Rollouts a namespace.
fn names(number: usize) -> (String, String) {
    (format!("team-{:02}", number / 20), format!("service-{number:04}"))
}

/// 64 letters that look like a digest, the same in every run.
fn digest(number: usize, release: u64, word: &str) -> String {
    (0..4).fold(String::with_capacity(64), |text, part| text + &format!("{:016x}", draw(number, release, (word, part))))
}

/// A number that is the same in every run.
fn draw(number: usize, release: u64, word: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (number, release, word).hash(&mut hasher);
    hasher.finish()
}

fn part_of(gap: TimeDelta, number: usize, release: u64) -> TimeDelta {
    let thousandths = i32::try_from(draw(number, release, "when") % 1000).unwrap_or_default();
    gap * thousandths / 1000
}

fn uid(number: usize) -> String {
    let digest = digest(number, 0, "uid");
    format!("{}-{}-{}-{}-{}", &digest[..8], &digest[8..12], &digest[12..16], &digest[16..20], &digest[20..32])
}

fn spec(number: usize, release: u64) -> RolloutSpec {
    let (_, name) = names(number);
    let image = format!("registry.example/{name}@sha256:{}", digest(number, release, "image"));
    let spec = json!({
        "replicas": 4,
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name, "version": format!("1.{release}.0")}},
            "spec": {"serviceAccountName": name, "containers": [{
                "name": "app", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
                "env": [
                    {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": name, "key": "url"}}},
                    {"name": "LOG_LEVEL", "value": "info"},
                ],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
                "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
                "securityContext": {"runAsNonRoot": true, "allowPrivilegeEscalation": false},
            }]},
        },
        "strategy": {"canary": {
            "stableService": format!("{name}-stable"), "canaryService": format!("{name}-canary"),
            "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": name}]}},
            "analysis": {"templates": [{"templateName": "golden-signals"}]},
            "steps": [
                {"setWeight": 5}, {"pause": {"duration": "2m"}}, {"setWeight": 25}, {"pause": {"duration": "5m"}},
                {"setWeight": 50}, {"pause": {"duration": "5m"}},
            ],
        }},
    });
    serde_json::from_value(spec).unwrap_or_else(|error| panic!("the spec of {name}: {error}"))
}

/// An analysis of two metrics, one sample in thirty seconds.
fn analysis(name: &str, lasted: TimeDelta, now: DateTime<Utc>, passes: bool) -> (AnalysisRunSpec, AnalysisRunStatus) {
    let taken = (lasted.num_seconds() / 30).max(1);
    let measured = |metric: &str| -> Vec<Value> {
        let first = (taken - KEPT).max(0);
        let one = |index: i64| {
            let last = index + 1 == taken;
            let at = now - TimeDelta::seconds(30 * (taken - 1 - index));
            // All the digits that a real server gives.
            let part = draw(0, 0, (name, metric, at.timestamp())) as f64 / u64::MAX as f64;
            let (verdict, value) = match (passes || !last, metric) {
                (true, "error-rate") => ("Pass", 0.01 * part),
                (_, "error-rate") => ("Fail", 0.04 + 0.01 * part),
                _ => ("Pass", 120.0 + 100.0 * part),
            };
            json!({"at": at, "verdict": verdict, "values": [value.to_string()]})
        };
        (first..taken).map(one).collect()
    };
    let result = |metric: &str| {
        let failed = i64::from(!passes && metric == "error-rate");
        json!({
            "name": metric, "phase": if failed == 0 { "Running" } else { "Failed" }, "count": taken,
            "passed": taken - failed, "failed": failed, "lastPassedAt": now, "measurements": measured(metric),
        })
    };
    let asked = |metric: &str, query: &str, condition: &str| {
        json!({
            "name": metric, "interval": "30s", "failureLimit": 0, "successCondition": condition,
            "provider": {"prometheus": {"name": "platform", "query": query}},
        })
    };
    let errors = format!(
        "sum(rate(http_requests_total{{service=\"{name}-canary\",code=~\"5..\"}}[1m])) / \
         sum(rate(http_requests_total{{service=\"{name}-canary\"}}[1m]))"
    );
    let latency = format!(
        "histogram_quantile(0.99, sum by (le) (rate(http_request_duration_ms_bucket{{service=\"{name}-canary\"}}[1m])))"
    );
    let spec = json!({
        "rollout": name, "revision": "", "attempt": 1, "stage": "background",
        "metrics": [
            asked("error-rate", &errors, "result[0] <= 0.01"),
            asked("latency-p99", &latency, "result[0] <= 500"),
        ],
    });
    let status = json!({
        "phase": if passes { "Running" } else { "Failed" },
        "message": if passes { "all metrics are good" } else { "error-rate was 0.04, at most 0.01 is allowed" },
        "startedAt": now - lasted,
        "metrics": [result("error-rate"), result("latency-p99")],
    });
    let spec = serde_json::from_value(spec).unwrap_or_else(|error| panic!("the analysis of {name}: {error}"));
    (spec, serde_json::from_value(status).unwrap_or_else(|error| panic!("the results of {name}: {error}")))
}
