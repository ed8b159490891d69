//! What a person sees, state by state, and how a watch ends. The objects are as a cluster would hold them.

use chrono::{DateTime, TimeDelta, Utc};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::facts::{Facts, Gap};
use super::render::{self, Columns};
use super::until::{Until, Watchman};
use super::verbs::{Verb, word};
use super::view::View;
use crate::api::{InterventionAction, PodTemplate, RouteKind, names};
use crate::cli::Exit;
use crate::cli::terminal::{Line, Terminal};
use crate::cluster::index::Index;
use crate::cluster::kinds::Kind;
use crate::cluster::objects::Key;
use crate::engine::plan::plan;
use crate::engine::{Turn, Wait, WaitOn};
use crate::simulation::{StageState, Timeline, TimelineStage};

fn at(text: &str) -> DateTime<Utc> {
    format!("2026-03-02T{text}Z").parse().unwrap()
}

fn now() -> DateTime<Utc> {
    at("14:01:00")
}

fn template(version: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}},
           "spec": {"containers": [{"name": "web", "image": format!("registry.example/web:{version}")}]}})
}

fn revision(version: &str) -> String {
    PodTemplate(template(version)).revision()
}

/// A cluster with one Rollout that wants v2 while v1 is stable.
struct World {
    status: Value,
    generation: i64,
    wanted: &'static str,
    canary_pods: (i32, i32),
    runs: Vec<Value>,
    wait: Option<(WaitOn, &'static str, Option<DateTime<Utc>>)>,
    stages: Vec<(&'static str, i32, bool)>,
    gaps: Vec<Gap>,
}

impl World {
    fn new() -> Self {
        let status = json!({
            "observedGeneration": 7, "phase": "Progressing", "message": "step 2/4", "strategy": "Canary",
            "revision": revision("v2"), "stableRevision": revision("v1"), "weight": 20, "stepLabel": "2/4",
            "release": {"revision": revision("v2"), "attempt": 1, "state": "Stepping", "stage": 1, "stages": 4,
                        "planHash": "p", "startedAt": at("14:00:00"), "stageStartedAt": at("14:00:10"),
                        "reachedAt": at("14:00:10")},
            "sequence": 5, "recordedSequence": 5,
            "conditions": [{"type": "Ready", "status": "Unknown", "reason": "Stepping", "message": "",
                            "lastTransitionTime": at("14:00:00")}]
        });
        Self {
            status,
            generation: 7,
            wanted: "v2",
            canary_pods: (1, 1),
            runs: Vec::new(),
            wait: Some((WaitOn::Pause, "pause of 2m", Some(at("14:02:10")))),
            stages: vec![("20 %", 20, false), ("pause 2m", 20, false), ("50 %", 50, false), ("one approval", 50, true)],
            gaps: Vec::new(),
        }
    }

    fn with(mut self, changes: Value) -> Self {
        merge(&mut self.status, changes);
        self
    }

    /// As the plugin sees it, with the engine's own answer.
    fn observed(&self) -> Facts {
        let index = Index::default();
        let put = |kind: Kind, object: Value| {
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            index.apply(kind, &object);
        };
        put(
            Kind::Rollout,
            json!({
                "apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout",
                "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "generation": self.generation,
                             "finalizers": [names::HAND_BACK],
                             "resourceVersion": "9", "creationTimestamp": at("09:01:00"),
                             "annotations": {names::SOURCE_COMMIT: "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d"}},
                "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}},
                         "template": template(self.wanted), "strategy": {"canary": {
                             "stableService": "web-stable", "canaryService": "web-canary",
                             "trafficRouting": {"gatewayAPI": {"httpRoutes": [{"name": "web"}]}},
                             "steps": [{"setWeight": 20}, {"pause": {"duration": "2m"}}, {"setWeight": 50},
                                       {"pause": {"approvals": 1}}]}}},
                "status": self.status
            }),
        );
        for (version, (ready, replicas)) in [("v1", (4, 4)), ("v2", self.canary_pods)] {
            let mut pods = template(version);
            pods["metadata"]["labels"][names::REVISION] = json!(revision(version));
            let owner = json!({"apiVersion": "sluice.dev/v1alpha1", "kind": "Rollout", "name": "web", "uid": "u-1",
                               "controller": true});
            put(
                Kind::ReplicaSet,
                json!({
                    "apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "metadata": {"name": names::replica_set("web", &revision(version)), "namespace": "shop",
                                 "uid": version, "generation": 1, "resourceVersion": "3", "ownerReferences": [owner],
                                 "labels": {names::ROLLOUT: "web", names::REVISION: revision(version)}},
                    "spec": {"replicas": replicas, "template": pods},
                    "status": {"replicas": replicas, "readyReplicas": ready, "availableReplicas": ready,
                               "observedGeneration": 1}
                }),
            );
        }
        for (service, version) in [("web-stable", "v1"), ("web-canary", "v2")] {
            let metadata = |name: &str| json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "2"});
            let selector = json!({"app": "web", names::REVISION: revision(version)});
            put(
                Kind::Service,
                json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(service),
                       "spec": {"selector": selector}}),
            );
            let mut slice = metadata(&format!("{service}-x1"));
            slice["labels"] = json!({"kubernetes.io/service-name": service});
            let (ready, _) = if version == "v1" { (4, 4) } else { self.canary_pods };
            let pod = |number| format!("{}-{number}", names::replica_set("web", &revision(version)));
            let endpoints: Vec<Value> =
                (0..ready).map(|number| json!({"targetRef": {"kind": "Pod", "name": pod(number)}})).collect();
            put(
                Kind::EndpointSlice,
                json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice,
                       "endpoints": endpoints}),
            );
        }
        put(Kind::Route(RouteKind::Http), self.route());
        for run in &self.runs {
            put(Kind::AnalysisRun, run.clone());
        }
        Facts::of(&index, &Key::new("shop", "web"), &self.gaps, now()).unwrap()
    }

    fn route(&self) -> Value {
        let weight = self.status["weight"].as_i64().unwrap_or_default();
        let accepted = json!([
            {"type": "Accepted", "status": "True", "reason": "Accepted", "observedGeneration": 3},
            {"type": "ResolvedRefs", "status": "True", "reason": "ResolvedRefs", "observedGeneration": 3}
        ]);
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "web", "namespace": "shop", "uid": "r-1", "generation": 3, "resourceVersion": "2"},
            "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [
                {"name": "web-stable", "port": 80, "weight": 100 - weight},
                {"name": "web-canary", "port": 80, "weight": weight}]}]},
            "status": {"parents": [{"parentRef": {"name": "edge"}, "controllerName": "example/gateway",
                                    "conditions": accepted}]}
        })
    }

    fn facts(&self) -> Facts {
        let mut facts = self.observed();
        // The engine's own words are tested where it lives; here it is given what to say.
        if self.gaps.is_empty() {
            facts.turn =
                self.wait.map(|(on, message, until)| Turn::Wait(Wait { until, on, message: message.to_owned() }));
            let stage = facts.status.release.as_ref().map(|release| release.stage);
            facts.timeline = stage.map(|current| self.timeline(current));
        }
        facts
    }

    fn timeline(&self, current: i32) -> Timeline {
        let stages = (0..).zip(&self.stages).map(|(number, (label, weight, needs_person))| {
            let ahead = TimeDelta::seconds(i64::from(number - current) * 70);
            TimelineStage {
                stage: number,
                stages: 4,
                label: (*label).to_owned(),
                weight: *weight,
                gate: String::new(),
                state: match number.cmp(&current) {
                    std::cmp::Ordering::Less => StageState::Done,
                    std::cmp::Ordering::Equal => StageState::Current,
                    std::cmp::Ordering::Greater => StageState::Ahead,
                },
                starts_at: match number.cmp(&current) {
                    std::cmp::Ordering::Less => None,
                    std::cmp::Ordering::Equal => Some(at("14:00:10")),
                    std::cmp::Ordering::Greater => Some(now() + ahead),
                },
                ends_at: (number == current && !needs_person).then(|| now() + TimeDelta::seconds(70)),
                needs_person: *needs_person,
            }
        });
        Timeline { now: now(), stages: stages.collect(), ends_at: Some(at("14:05:00")), blocked_on: None }
    }

    fn view(&self) -> View {
        View::of(&self.facts(), now())
    }

    fn text(&self) -> String {
        render::detail(&self.view()).iter().map(|line| line.text() + "\n").collect()
    }
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, value) in changes {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, changes) => *into = changes,
    }
}

fn analysis_run(stage: &str, metric: &Value, result: &Value) -> Value {
    json!({
        "apiVersion": "sluice.dev/v1alpha1", "kind": "AnalysisRun",
        "metadata": {"name": format!("web-{stage}"), "namespace": "shop", "uid": stage, "resourceVersion": "4"},
        "spec": {"rollout": "web", "revision": revision("v2"), "attempt": 1, "stage": stage, "metrics": [metric]},
        "status": {"phase": result["phase"], "message": result["message"], "metrics": [result]}
    })
}

fn error_rate() -> Value {
    json!({"name": "error-rate", "interval": "10s", "threshold": {"max": 0.01},
           "provider": {"prometheus": {"name": "main", "query": "sum(rate(errors[1m]))"}}})
}

#[test]
fn stepping() {
    let expected = "\
shop/web   Canary   Progressing
What:     registry.example/web:v2 (stable: registry.example/web:v1), revision 0c0c7ed1f2, commit 1a2b3c4d5e
Where:    step 2/4, 20 % of traffic routed to it
Waiting:  pause of 2m, until 14:02:10Z (in 1m10s)
Next:     step 3: 50 % at 14:02:10Z (in 1m10s); a person is needed in step 4
Stop:     git revert 1a2b3c4d5e   or: kubectl rollout-status abort web -n shop
Log:      5 of 5 transitions recorded in git

STEP   STATE   WHAT           WEIGHT   WHEN
1      done    20 %           20 %
2      now     pause 2m       20 %     since 14:00:10Z, until 14:02:10Z
3              50 %           50 %     14:02:10Z (in 1m10s)
4              one approval   50 %     14:03:20Z (in 2m20s), needs a person

SIDE     REVISION     PODS        TRAFFIC   IMAGES
stable   REVISION_1   4/4 ready   80 %      registry.example/web:v1
canary   REVISION_2   1/1 ready   20 %      registry.example/web:v2
";
    assert_eq!(World::new().text(), golden(expected));
}

/// Revisions are hashes; the goldens name them by version.
fn golden(text: &str) -> String {
    text.replace("0c0c7ed1f2", &revision("v2"))
        .replace("REVISION_1", &revision("v1"))
        .replace("REVISION_2", &revision("v2"))
}

#[test]
fn paused_for_an_approval() {
    let mut world = World::new().with(json!({
        "phase": "Paused", "message": "waits for one approval", "stepLabel": "4/4", "weight": 50,
        "release": {"stage": 3}
    }));
    world.canary_pods = (2, 2);
    world.wait = Some((WaitOn::Person, "waits for one approval", None));
    let text = world.text();
    assert!(text.contains("Waiting:  waits for one approval\n"), "{text}");
    assert!(text.contains("Next:     the new version is stable once a person lets it go on\n"), "{text}");
    assert!(text.contains("4      now     one approval   50 %     since 14:00:10Z, needs a person\n"), "{text}");
    assert!(world.view().needs_person());
}

#[test]
fn what_follows_a_person_has_no_time() {
    let mut world = World::new();
    world.stages.push(("promote", 100, false));
    let text = world.text();
    assert!(text.contains("4              one approval   50 %     14:03:20Z (in 2m20s), needs a person\n"), "{text}");
    assert!(text.contains("5              promote        100 %    after step 4\n"), "{text}");
}

#[test]
fn a_person_who_aborted_is_named() {
    let world = aborted_by_verdict().with(json!({"release": {"abort": {
        "cause": "Intervention", "message": "customers complain", "actor": "alice@example.com"}}}));
    assert!(world.text().contains("Why:      customers complain (alice@example.com)\n"), "{}", world.text());
}

#[test]
fn holding_for_metrics() {
    let mut world = World::new().with(json!({"phase": "Holding", "message": "no data for error-rate"}));
    world.wait = Some((WaitOn::Metrics, "metric error-rate has no data since 14:00:30Z", Some(at("14:10:30"))));
    world.runs.push(analysis_run(
        "background",
        &error_rate(),
        &json!({"name": "error-rate", "phase": "Holding", "message": "no data", "count": 2, "passed": 2, "noData": 3,
                "measurements": [{"at": at("14:00:50"), "verdict": "NoData"}]}),
    ));
    let text = world.text();
    assert!(
        text.contains("Waiting:  metric error-rate has no data since 14:00:30Z, until 14:10:30Z (in 9m30s)\n"),
        "{text}"
    );
    let row = "background   error-rate   Holding   2        0        0              3        0               must be at most 0.01\n";
    assert!(text.contains(row), "{text}");
}

fn aborted_by_verdict() -> World {
    let mut world = World::new().with(json!({
        "phase": "Aborted", "message": "aborted", "weight": 0,
        "release": {"state": "Aborted", "abort": {"cause": "Verdict", "at": at("14:00:55"),
            "message": "metric error-rate: 0.031 is more than 0.01"}},
        "denied": [{"revision": revision("v2"), "aborts": 1, "message": "metric error-rate", "at": at("14:00:55")}],
        "recordedSequence": 3, "sequence": 5,
        "conditions": [{"type": "Recorded", "status": "False", "reason": "PushFailed", "message": "no route to host",
                        "lastTransitionTime": at("14:00:00")}]
    }));
    world.wait = Some((WaitOn::Spec, "git still asks for what was aborted", None));
    world.runs.push(analysis_run(
        "background",
        &error_rate(),
        &json!({"name": "error-rate", "phase": "Failed", "message": "0.031 is more than 0.01", "count": 3, "passed": 2,
                "failed": 1, "measurements": [
                    {"at": at("14:00:44"), "verdict": "Pass", "values": ["0.002"]},
                    {"at": at("14:00:54"), "verdict": "Fail", "values": ["0.031"]}]}),
    ));
    world
}

#[test]
fn aborted_by_a_verdict_with_its_numbers() {
    let expected = "\
shop/web   Canary   Aborted
What:     registry.example/web:v2 (stable: registry.example/web:v1), revision REVISION_2, commit 1a2b3c4d5e
Where:    aborted in step 2/4, 0 % of traffic routed to it
Why:      metric error-rate: 0.031 is more than 0.01
Waiting:  git still asks for what was aborted
Mend:     git revert 1a2b3c4d5e   or: kubectl rollout-status retry web -n shop
Log:      3 of 5 transitions recorded in git (PushFailed: no route to host)

Failed:   metric error-rate was 0.031 at 14:00:54Z, must be at most 0.01
          query: sum(rate(errors[1m]))
          in AnalysisRun web-background

STEP   STATE         WHAT           WEIGHT   WHEN
1      done          20 %           20 %
2      aborted       pause 2m       20 %     14:00:10Z
3      not reached   50 %           50 %
4      not reached   one approval   50 %

SIDE     REVISION     PODS        TRAFFIC   IMAGES
stable   REVISION_1   4/4 ready   100 %     registry.example/web:v1
canary   REVISION_2   1/1 ready   0 %       registry.example/web:v2

ANALYSIS     METRIC       PHASE    PASSED   FAILED   INCONCLUSIVE   NODATA   ERRORS   LAST    GOOD
background   error-rate   Failed   2        1        0              0        0        0.031   must be at most 0.01
";
    assert_eq!(aborted_by_verdict().text(), golden(expected));
}

fn ready() -> World {
    let mut world = World::new().with(json!({
        "phase": "Ready", "message": "", "stableRevision": revision("v2"), "release": null, "weight": 0,
        "stepLabel": "", "promotedRevisions": [revision("v1")],
        "conditions": [{"type": "Ready", "status": "True", "reason": "Promoted", "message": "",
                        "lastTransitionTime": at("14:00:00")}]
    }));
    world.wait = Some((WaitOn::Nothing, "", None));
    world.canary_pods = (4, 4);
    world
}

#[test]
fn ready_and_how_to_go_back() {
    let text = ready().text();
    assert!(text.contains("Where:    nothing in flight, all traffic on this revision\n"), "{text}");
    assert!(text.contains("Undo:     git revert 1a2b3c4d5e\n"), "{text}");
    assert!(!text.contains("Waiting:") && !text.contains("STEP"), "{text}");
}

#[test]
fn stalled_says_the_field_and_asks_the_engine_nothing() {
    let message = "spec.strategy.canary.stableService: Service shop/web does not exist";
    let mut world = World::new().with(json!({"phase": "Stalled", "message": message, "release": null, "weight": null}));
    world.wait = None;
    let text = world.text();
    assert!(text.starts_with("shop/web   Canary   Stalled\n"), "{text}");
    assert!(text.contains(&format!("Waiting:  {message}\n")), "{text}");
}

#[test]
fn an_operator_that_does_not_look_is_named() {
    let mut world = World::new();
    world.generation = 8;
    assert!(world.text().contains("the operator has not seen the latest change of the spec yet"));
    world.status = json!({});
    assert!(world.text().contains("the operator has not seen it yet; is it running?"));
}

#[test]
fn what_cannot_be_read_is_named_and_not_guessed() {
    let mut world = World::new();
    world.gaps = vec![Gap { kind: Kind::Service, why: "services is forbidden".to_owned() }];
    assert!(world.observed().turn.is_none());
    let text = world.text();
    assert!(text.contains("Note:     Service could not be read: services is forbidden\n"), "{text}");
    assert!(text.contains("Where:    step 2/4, 20 % of traffic routed to it\n"), "{text}");

    // Routes of a kind that this Rollout does not name are no gap; those of its own kind are.
    let forbidden = |kind: RouteKind| Gap { kind: Kind::Route(kind), why: "is forbidden".to_owned() };
    world.gaps = vec![forbidden(RouteKind::Grpc), forbidden(RouteKind::Tcp)];
    assert!(world.observed().turn.is_some());
    assert!(!world.text().contains("could not be read"));
    world.gaps.push(forbidden(RouteKind::Http));
    assert!(world.observed().turn.is_none());
}

#[test]
fn the_engine_is_asked_when_everything_could_be_read() {
    let world = World::new();
    let index = Index::default();
    assert!(Facts::of(&index, &Key::new("shop", "web"), &[], now()).is_none());
    let spec = world.observed().rollout.spec.clone().unwrap();
    let world = world.with(json!({"release": {"planHash": plan(&spec).unwrap().hash(), "stages": 5}}));
    let facts = world.observed();
    match facts.turn.as_ref().unwrap() {
        Turn::Wait(wait) => assert_eq!((wait.on, wait.until), (WaitOn::Pause, Some(at("14:02:10")))),
        turn => panic!("{turn:?}"),
    }
    let timeline = facts.timeline.unwrap();
    let steps: Vec<_> = timeline.stages.iter().map(|stage| (stage.label.as_str(), stage.state)).collect();
    let expected = [
        ("20 %", StageState::Done),
        ("pause 2m", StageState::Current),
        ("50 %", StageState::Ahead),
        ("pause for 1 approval", StageState::Ahead),
        ("promote", StageState::Ahead),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn the_table_of_many() {
    let text = |columns| -> String {
        let views = [World::new().view(), aborted_by_verdict().view()];
        render::list(&views, columns).iter().map(|line| line.text() + "\n").collect()
    };
    let expected = "\
NAME   STRATEGY   PHASE         STEP   WEIGHT   REVISION     READY     AGE
web    Canary     Progressing   2/4    20       REVISION_2   Unknown   5h
web    Canary     Aborted       2/4    0        REVISION_2             5h
";
    assert_eq!(text(Columns::default()), golden(expected));
    let wide = text(Columns { namespace: true, wide: true });
    let head = wide.lines().next().unwrap();
    let titles: Vec<&str> = head.split_whitespace().collect();
    let expected = "NAMESPACE NAME STRATEGY PHASE STEP WEIGHT REVISION READY AGE VERDICT NEXT RECORDED MESSAGE";
    assert_eq!(titles.join(" "), expected);
    assert!(wide.contains("50 % in 1m10s"), "{wide}");
    assert!(wide.contains("Failed") && wide.contains("False"), "{wide}");
}

#[test]
fn the_document_is_a_contract() {
    let document = serde_json::to_value(aborted_by_verdict().view()).unwrap();
    assert_eq!(document["apiVersion"], "sluice.dev/v1alpha1");
    assert_eq!(document["kind"], "RolloutStatusView");
    let mut fields: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let expected = "abort analyses apiVersion conditions createdAt failedMetric generation kind lookedAt message name \
                    namespace observedGeneration phase record sides steps strategy uid waiting ways what where";
    assert_eq!(fields.join(" "), expected);
    assert_eq!(
        document["failedMetric"],
        json!({"analysis": "web-background", "metric": "error-rate", "value": "0.031", "bound": "must be at most 0.01",
               "query": "sum(rate(errors[1m]))", "at": "2026-03-02T14:00:54Z"})
    );
    assert_eq!(document["where"]["state"], "Aborted");
    assert_eq!(
        document["sides"][0],
        json!({"role": "stable", "revision": revision("v1"), "replicas": 4, "ready": 4,
        "available": 4, "weight": 100, "images": ["registry.example/web:v1"]})
    );
    let stepping = serde_json::to_value(World::new().view()).unwrap();
    assert_eq!(stepping["next"]["step"], 3);
    assert_eq!(stepping["waiting"]["until"], "2026-03-02T14:02:10Z");
}

#[test]
fn nothing_is_coloured_away_from_a_terminal() {
    let lines: Vec<Line> = render::detail(&aborted_by_verdict().view());
    assert!(!Terminal { interactive: false, colour: false }.text(&lines).contains('\x1b'));
    assert!(Terminal { interactive: true, colour: true }.text(&lines).contains("\x1b[31mAborted\x1b[0m"));
}

#[test]
fn a_log_has_a_line_a_transition_and_not_a_line_a_second() {
    let world = World::new();
    let later = View::of(&world.facts(), now() + TimeDelta::seconds(9));
    assert_eq!(render::transition_key(&world.view()), render::transition_key(&later));
    assert_ne!(render::transition_key(&world.view()), render::transition_key(&aborted_by_verdict().view()));
    assert_eq!(
        render::transition(&world.view()).text(),
        golden("2026-03-02T14:01:00Z shop/web Progressing, step 2/4, 20 %, revision REVISION_2: pause of 2m")
    );
}

fn judge(until: Until, first: &World, then: &World) -> Option<Exit> {
    let mut watchman = Watchman::new(until, false, None, &first.facts());
    watchman.judge(&first.facts()).or_else(|| watchman.judge(&then.facts())).map(|end| end.exit)
}

#[test]
fn every_end_of_a_watch_has_its_code() {
    let superseded = World::new().with(json!({"revision": "another-one", "release": {"revision": "another-one"}}));
    let reverted =
        World::new().with(json!({"phase": "Ready", "revision": revision("v1"), "release": null, "weight": 0}));
    let on_the_way_back = aborted_by_verdict().with(json!({"weight": 20}));
    let stalled = World::new().with(json!({"phase": "Stalled", "message": "no such route"}));
    let paused = World::new().with(json!({"phase": "Paused"}));
    let start = World::new();
    let table = [
        (Until::Promoted, &ready(), Some(Exit::Reached)),
        (Until::Finished, &ready(), Some(Exit::Reached)),
        (Until::Aborted, &ready(), Some(Exit::Failed)),
        (Until::Promoted, &aborted_by_verdict(), Some(Exit::Failed)),
        (Until::Finished, &aborted_by_verdict(), Some(Exit::Failed)),
        (Until::Aborted, &aborted_by_verdict(), Some(Exit::Reached)),
        (Until::Aborted, &on_the_way_back, None),
        (Until::Promoted, &on_the_way_back, Some(Exit::Failed)),
        (Until::Promoted, &superseded, Some(Exit::Superseded)),
        (Until::Promoted, &reverted, Some(Exit::Failed)),
        (Until::Aborted, &reverted, Some(Exit::Reached)),
        (Until::Promoted, &stalled, Some(Exit::Failed)),
        (Until::Paused, &paused, Some(Exit::Reached)),
        (Until::Promoted, &paused, None),
        (Until::Step(2), &start, Some(Exit::Reached)),
        (Until::Step(3), &start, None),
        (Until::Step(3), &aborted_by_verdict(), Some(Exit::Failed)),
    ];
    for (until, then, exit) in table {
        assert_eq!(judge(until, &start, then), exit, "{until:?}, {:?}", then.status["phase"]);
    }
    let mut impatient = Watchman::new(Until::Finished, true, None, &start.facts());
    assert_eq!(impatient.judge(&paused.facts()).map(|end| end.exit), Some(Exit::NeedsPerson));
}

#[test]
fn an_older_success_is_never_reported() {
    // v1 is Ready, v2 has just been written, and the operator has not looked yet.
    let mut stale = ready().with(json!({"observedGeneration": 6, "revision": revision("v1"),
        "stableRevision": revision("v1")}));
    stale.generation = 7;
    assert_eq!(judge(Until::Promoted, &stale, &stale), None);
    assert_eq!(judge(Until::Promoted, &stale, &ready()), Some(Exit::Reached));
    // A pinned commit that has not arrived is waited for.
    let mut watchman = Watchman::new(Until::Promoted, false, Some("feedbeef".to_owned()), &ready().facts());
    assert_eq!(watchman.judge(&ready().facts()), None);
    assert!(watchman.watched().contains("feedbeef, which was not seen"));
    let mut watchman = Watchman::new(Until::Promoted, false, Some("1a2b3c4".to_owned()), &ready().facts());
    assert_eq!(watchman.judge(&ready().facts()).map(|end| end.exit), Some(Exit::Reached));
}

#[test]
fn a_word_is_bound_to_what_the_person_saw() {
    let said = |verb, world: &World| word(verb, &world.facts());
    let skip = said(Verb::Promote, &World::new()).unwrap();
    assert_eq!((skip.action, skip.stage, skip.attempt), (InterventionAction::Skip, Some(1), Some(1)));
    assert_eq!(skip.revision, revision("v2"));
    let mut approval = World::new();
    approval.wait = Some((WaitOn::Person, "waits for one approval", None));
    assert_eq!(said(Verb::Promote, &approval).unwrap().action, InterventionAction::Approve);
    let full = said(Verb::PromoteFull, &World::new()).unwrap();
    assert_eq!((full.action, full.stage), (InterventionAction::Promote, None));
    assert_eq!(said(Verb::Abort, &World::new()).unwrap().action, InterventionAction::Abort);
    assert_eq!(said(Verb::Retry, &aborted_by_verdict()).unwrap().action, InterventionAction::Retry);
    let paused = World::new().with(json!({"pausedBy": {"actor": "alice", "since": at("14:00:30")}}));
    assert_eq!(said(Verb::Resume, &paused).unwrap().action, InterventionAction::Resume);
    let spec = skip.spec("web", "alice", "looks good");
    assert_eq!((spec.rollout.as_str(), spec.actor.as_str(), spec.reason.as_str()), ("web", "alice", "looks good"));
}

#[test]
fn where_there_is_nothing_to_say_nothing_is_written() {
    let refusal = |verb, world: &World| word(verb, &world.facts()).unwrap_err().to_string();
    assert!(refusal(Verb::Abort, &ready()).contains("nothing of web is in flight"));
    assert!(refusal(Verb::Promote, &ready()).contains("nothing of web is in flight"));
    assert!(refusal(Verb::Abort, &aborted_by_verdict()).contains("is aborted already"));
    assert!(refusal(Verb::Resume, &World::new()).contains("is not paused by a person"));
    assert!(refusal(Verb::Retry, &World::new()).contains("was not aborted"));
    let mut pods = World::new();
    pods.wait = Some((WaitOn::Pods, "1 of 2 pods are ready", None));
    assert!(refusal(Verb::Promote, &pods).contains("1 of 2 pods are ready"));
    let paused = World::new().with(json!({"pausedBy": {"actor": "alice", "since": at("14:00:30")}}));
    assert!(refusal(Verb::Promote, &paused).contains("paused by alice; resume it first"));
    assert!(refusal(Verb::Pause, &paused).contains("paused already, by alice"));
}
