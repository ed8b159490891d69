//! Random histories: everything that people and faults do to a Rollout, from one seed.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use sluice::api::{InterventionAction, PodTemplate, RolloutSpec};
use sluice::engine::RuleState;
use sluice::simulation::{AfterHold, Answer, Workload, World};

/// SplitMix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    pub fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()].clone()
    }
}

/// What happens to the Rollout from outside.
#[derive(Clone, Debug)]
pub enum Event {
    Template(u8),
    Scale(i32),
    Steps(u8),
    PauseSpec(bool),
    Kill {
        canary: bool,
        number: usize,
    },
    SlowPods(i64),
    NeverReady(bool),
    AcceptDelay(i64),
    RouteTrouble(bool),
    HandEdit {
        share: i32,
        second: bool,
    },
    Word(InterventionAction),
    Tie,
    Answer(Answer),
    Epoch,
    LoseStatus,
    /// Somebody scales the Deployment that keeps the template.
    ScaleWorkload(i32),
    /// The strategy becomes another one, with these steps or gates.
    Strategy {
        kind: u8,
        steps: u8,
    },
}

#[derive(Clone, Debug)]
pub struct History {
    pub seed: u64,
    pub spec: RolloutSpec,
    pub bases: Vec<i32>,
    pub after_hold: AfterHold,
    pub endpoint_delay: i64,
    /// Whether there is a ledger.
    pub recorded: bool,
    /// Pods of the Deployment that keeps the template, if one does.
    pub workload: Option<i32>,
    /// Each with the milliseconds that pass before it.
    pub events: Vec<(i64, Event)>,
}

pub fn start() -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

pub fn template(number: u8) -> PodTemplate {
    PodTemplate(json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": format!("i:{number}")}]}}))
}

fn steps(number: u8) -> serde_json::Value {
    match number % 6 {
        0 => json!([{"setWeight": 20}, {"pause": {"duration": "10s"}}, {"setWeight": 60}]),
        1 => json!([{"setWeight": 10}, {"analysis": {"templates": [{"templateName": "a"}]}}, {"setWeight": 50}]),
        2 => json!([{"setWeight": 34}, {"pause": {"approvals": 2}}, {"setWeight": 100}]),
        3 => json!([]),
        4 => json!([{"pause": {"duration": "5s"}}, {"setWeight": 50}, {"setWeight": 20}, {"pause": {}}]),
        _ => json!([{"setWeight": 5}, {"setWeight": 25}, {"pause": {"duration": "20s"}}, {"setWeight": 75}]),
    }
}

/// What stands between the preview and the switch, and after it.
fn gates(number: u8) -> serde_json::Value {
    let analysis = json!({"templates": [{"templateName": "a"}]});
    match number % 6 {
        0 => json!({}),
        1 => json!({"prePromotionAnalysis": analysis}),
        2 => json!({"postPromotionAnalysis": analysis, "previewReplicaCount": 1}),
        3 => json!({"autoPromotionEnabled": false, "postPromotionAnalysis": analysis}),
        4 => json!({"autoPromotionSeconds": 10, "prePromotionAnalysis": analysis, "postPromotionAnalysis": analysis}),
        _ => json!({"autoPromotionSeconds": 5, "previewReplicaCount": 2}),
    }
}

pub fn with_steps(spec: &mut RolloutSpec, number: u8) {
    if let Some(canary) = &mut spec.strategy.canary {
        canary.steps = serde_json::from_value(steps(number)).unwrap();
        return;
    }
    let mut strategy = serde_json::to_value(spec.strategy.blue_green.as_ref().unwrap()).unwrap();
    let fields = strategy.as_object_mut().unwrap();
    fields.retain(|field, _| field.ends_with("Service") || field.ends_with("caleDownDelaySeconds"));
    fields.extend(gates(number).as_object().unwrap().clone());
    spec.strategy.blue_green = Some(serde_json::from_value(strategy).unwrap());
}

/// Gives a Rollout another strategy, by the same Services and routes.
pub fn with_strategy(spec: &mut RolloutSpec, routes: &[String], kind: u8, steps: u8) {
    let routes: Vec<_> = routes.iter().map(|name| json!({"name": name})).collect();
    let strategy = match kind {
        0 => json!({"canary": {"stableService": "stable", "canaryService": "canary",
            "trafficRouting": {"gatewayAPI": {"httpRoutes": routes}, "settle": "1s", "drain": "3s"}}}),
        1 => json!({"blueGreen": {"activeService": "stable", "previewService": "canary"}}),
        _ => json!({"canary": {"maxSurge": 1, "maxUnavailable": 0}}),
    };
    spec.strategy = serde_json::from_value(strategy).unwrap();
    with_steps(spec, steps);
}

/// Seeds from here on are of blue/green; those below of a canary with routes.
pub const BLUE_GREEN: u64 = 1_000_000;
/// Seeds from here on are of a canary without routes.
pub const BY_PODS: u64 = 2_000_000;
/// Seeds from here on are of a canary with routes whose stable version shrinks as it grows.
pub const DYNAMIC: u64 = 3_000_000;
/// Seeds from here on are of each of those in turn, which take over from a Deployment.
pub const ADOPTED: u64 = 4_000_000;
/// Seeds from here on are of each in turn, whose pods somebody wants to be new.
pub const RESTARTED: u64 = 5_000_000;
/// Seeds from here on are of a canary with routes whose strategy is edited.
pub const EDITED: u64 = 6_000_000;

impl History {
    pub fn of(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x1000_0001).wrapping_add(7));
        let family = match seed {
            ..ADOPTED => seed / BLUE_GREEN * BLUE_GREEN,
            EDITED.. => 0,
            _ => seed % 4 * BLUE_GREEN,
        };
        let routes = 1 + usize::from(random.chance(25));
        let names: Vec<_> = ["web", "api"].iter().take(routes).map(|name| json!({"name": name})).collect();
        let replicas = random.of(&[1, 2, 3, 5, 5, 10]);
        let mut spec = json!({
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(1).0,
            "minReadySeconds": random.of(&[0, 0, 3]),
            "revisionHistoryLimit": random.of(&[0, 1, 10]),
            "progressDeadlineSeconds": 60,
            "progressDeadlineAbort": random.chance(80),
            "strategy": {"canary": {
                "stableService": "stable", "canaryService": "canary",
                "trafficRouting": {
                    "gatewayAPI": {"httpRoutes": names},
                    "settle": random.of(&["0s", "1s", "2s"]),
                    "drain": random.of(&["0s", "3s", "10s"]),
                },
                "scaleDownDelaySeconds": random.of(&[0, 5, 30]),
                "abortScaleDownDelaySeconds": random.of(&[0, 5, 30]),
            }},
        });
        if family == DYNAMIC {
            spec["strategy"]["canary"]["dynamicStableScale"] = json!(true);
            if random.chance(40) {
                spec["strategy"]["canary"]["minPodsPerReplicaSet"] = json!(random.of(&[2, 3]));
            }
        }
        if family == BY_PODS {
            let surge = random.of(&[
                (json!("25%"), json!("25%")),
                (json!(1), json!(0)),
                (json!(0), json!(1)),
                (json!("100%"), json!(0)),
            ]);
            let mut canary = json!({"maxSurge": surge.0, "maxUnavailable": surge.1});
            if random.chance(50) {
                canary["stableService"] = json!("stable");
                canary["canaryService"] = json!("canary");
            }
            if random.chance(60) {
                canary["analysis"] = json!({"templates": [{"templateName": "b"}]});
            }
            spec["strategy"] = json!({"canary": canary});
        } else if family == BLUE_GREEN {
            spec["strategy"] = json!({"blueGreen": {
                "activeService": "stable",
                "scaleDownDelaySeconds": random.of(&[0, 5, 30]),
                "abortScaleDownDelaySeconds": random.of(&[0, 5, 30]),
            }});
            if random.chance(80) {
                spec["strategy"]["blueGreen"]["previewService"] = json!("canary");
            }
        } else if random.chance(60) {
            spec["strategy"]["canary"]["analysis"] = json!({"templates": [{"templateName": "b"}]});
        }
        let mut spec: RolloutSpec = serde_json::from_value(spec).unwrap();
        with_steps(&mut spec, u8::try_from(random.below(6)).unwrap());
        let bases = (0..routes).map(|_| random.of(&[100, 100, 100, 90, 10])).collect();
        let after_hold = random.of(&[AfterHold::Pause, AfterHold::Abort]);
        let endpoint_delay = random.of(&[0, 100, 1500]);
        let recorded = random.chance(75);
        let mut events = vec![(2000, Event::Template(2))];
        for _ in 0..random.below(12) {
            let before = random.of(&[0, 100, 700, 2500, 4000, 9000, 15_000, 40_000]);
            events.push((before, event(&mut random)));
        }
        let mut workload = None;
        if seed >= EDITED {
            // Of a route that no strategy names any more, what a person writes into it stays.
            events.retain(|(_, event)| !matches!(event, Event::HandEdit { .. }));
            for _ in 0..1 + random.below(3) {
                let at = usize::try_from(random.below(events.len() as u64 + 1)).unwrap();
                let (kind, steps) = (random.of(&[0, 1, 1, 2, 2]), u8::try_from(random.below(6)).unwrap());
                events.insert(at, (random.of(&[0, 700, 4000, 9000, 40_000]), Event::Strategy { kind, steps }));
            }
        } else if seed >= RESTARTED {
            for _ in 0..1 + random.below(2) {
                let at = usize::try_from(random.below(events.len() as u64 + 1)).unwrap();
                events.insert(at, (random.of(&[700, 9000, 40_000]), Event::Word(InterventionAction::Restart)));
            }
        } else if seed >= ADOPTED {
            let when = random.of(&["onsuccess", "progressively"]);
            let named = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "scaleDown": when});
            spec.workload_ref = Some(serde_json::from_value(named).unwrap());
            workload = Some(replicas);
            for _ in 0..random.below(4) {
                let at = usize::try_from(random.below(events.len() as u64 + 1)).unwrap();
                let event = Event::ScaleWorkload(random.of(&[0, 1, replicas, 12]));
                events.insert(at, (random.of(&[0, 700, 9000, 40_000]), event));
            }
        }
        Self { seed, spec, bases, after_hold, endpoint_delay, recorded, workload, events }
    }

    pub fn world(&self) -> World {
        let mut world = World::new(self.spec.clone(), start());
        for (route, base) in world.routes.values_mut().zip(&self.bases) {
            route.rules = vec![RuleState { base: *base, stable: *base, canary: 0 }];
        }
        world.ledger.configured = self.recorded;
        world.workload = self.workload.map(|pods| Workload::running(template(1), pods, start() - TimeDelta::hours(1)));
        world.knobs.interval = TimeDelta::seconds(5);
        world.knobs.hold = TimeDelta::seconds(20);
        world.knobs.after_hold = self.after_hold;
        world.knobs.endpoint_delay = TimeDelta::milliseconds(self.endpoint_delay);
        world
    }
}

fn event(random: &mut Random) -> Event {
    use InterventionAction::{Abort, Approve, Pause, Promote, Resume, Retry, Skip};
    match random.below(100) {
        0..20 => Event::Template(1 + u8::try_from(random.below(4)).unwrap()),
        20..27 => Event::Scale(random.of(&[1, 2, 4, 6, 8])),
        27..31 => Event::Steps(u8::try_from(random.below(6)).unwrap()),
        31..34 => Event::PauseSpec(random.chance(50)),
        34..44 => Event::Kill { canary: random.chance(60), number: random.of(&[1, 2, 100]) },
        44..49 => Event::SlowPods(random.of(&[500, 2000, 20_000])),
        49..52 => Event::NeverReady(random.chance(60)),
        52..57 => Event::AcceptDelay(random.of(&[0, 200, 3000, 15_000])),
        57..59 => Event::RouteTrouble(random.chance(50)),
        59..67 => Event::HandEdit { share: random.of(&[0, 13, 50, 100]), second: random.chance(50) },
        67..82 => Event::Word(random.of(&[Abort, Approve, Approve, Pause, Promote, Resume, Retry, Skip])),
        82..85 => Event::Tie,
        85..96 => {
            Event::Answer(random.of(&[Answer::Pass, Answer::Pass, Answer::Fail, Answer::NoData, Answer::Inconclusive]))
        }
        96..98 => Event::LoseStatus,
        _ => Event::Epoch,
    }
}
