//! Judges a recorded analysis again, from its evidence alone. Pure: a document goes in, disagreements come out.
//!
//! It is the judge itself that judges again, so both can only differ when the record is not what was judged, or when
//! the rules have changed. Sentences are not compared: a later version may word them better.

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::judge;
use crate::api::{AnalysisPhase, AnalysisRunSpec, AnalysisRunStatus, Measurement, Metric, MetricResult, Verdict};

/// The version of the evidence that is read here.
const SCHEMA: u32 = 1;
/// More than any run takes, and few enough to be counted on from. Anybody may have written what is read here.
const MOST_SAMPLES: i32 = 100_000_000;

/// What came of judging a document again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Replayed {
    /// It was judged.
    Judged(Judged),
    /// From a rehearsal: nothing was measured.
    Simulated,
    /// The ledger did not keep it, for the reason given.
    #[serde(rename_all = "camelCase")]
    NotKept {
        /// Why.
        reason: String,
    },
}

/// An analysis that was judged again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// The Rollout's name.
    pub rollout: String,
    /// `<revision>.<attempt>`.
    pub release: String,
    /// `background`, or `step-N`.
    pub stage: String,
    /// How many samples were taken, by the counters.
    pub taken: u64,
    /// How many of them the evidence holds. Of the others only the counters speak.
    pub kept: u64,
    /// How many of those could not be judged again, for an answer was longer than is kept.
    pub cut: u64,
    /// Where the record and the judge differ.
    pub disagreements: Vec<Disagreement>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disagreement {
    /// The metric; none when it is about the whole run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// What differs.
    pub about: String,
    /// What is recorded.
    pub recorded: String,
    /// What comes out.
    pub comes_out: String,
}

/// Why a document cannot be judged again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It is not what the ledger writes.
    #[error("it is no evidence: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Written by a version that this one does not know.
    #[error("its schema is {0}; this version reads {SCHEMA}")]
    Schema(u32),
    /// A time with which nobody can reckon.
    #[error("it has the impossible time {0}")]
    Time(DateTime<Utc>),
}

/// What the ledger writes of one analysis.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Evidence {
    rollout: String,
    revision: String,
    attempt: i32,
    stage: String,
    phase: AnalysisPhase,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    #[serde(default)]
    terminate: bool,
    metrics: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    asked: Metric,
    answered: Option<MetricResult>,
}

/// What kind of document it is.
#[derive(Deserialize)]
struct Kind {
    schema: Option<u32>,
    #[serde(default)]
    simulated: bool,
    omitted: Option<String>,
}

/// Judges one document of the ledger's evidence again.
///
/// # Errors
/// When it is not such a document.
pub fn replay(document: &[u8]) -> Result<Replayed, ReplayError> {
    let document: Value = serde_json::from_slice(document)?;
    let kind = Kind::deserialize(&document)?;
    if let Some(schema) = kind.schema.filter(|schema| *schema != SCHEMA) {
        return Err(ReplayError::Schema(schema));
    }
    if kind.simulated {
        return Ok(Replayed::Simulated);
    }
    if let Some(reason) = kind.omitted {
        return Ok(Replayed::NotKept { reason });
    }
    let evidence = Evidence::deserialize(&document)?;
    let impossible = evidence.times().find(|at| !(1970..10_000).contains(&at.year()));
    match impossible {
        Some(impossible) => Err(ReplayError::Time(impossible)),
        None => Ok(Replayed::Judged(run(evidence))),
    }
}

impl Evidence {
    fn times(&self) -> impl Iterator<Item = DateTime<Utc>> {
        let results = self.metrics.iter().filter_map(|metric| metric.answered.as_ref());
        let measured = results.flat_map(|result| {
            let samples = result.measurements.iter().map(|measurement| measurement.at);
            samples.chain(result.missing_since).chain(result.last_passed_at)
        });
        measured.chain(self.started_at).chain(self.completed_at)
    }
}

fn run(evidence: Evidence) -> Judged {
    let mut judged = Judged {
        rollout: evidence.rollout.clone(),
        release: format!("{}.{}", evidence.revision, evidence.attempt),
        stage: evidence.stage.clone(),
        taken: 0,
        kept: 0,
        cut: 0,
        disagreements: Vec::new(),
    };
    let recorded: Vec<MetricResult> =
        evidence.metrics.iter().map(|metric| metric.answered.clone().unwrap_or_default()).collect();
    let asked: Vec<Metric> = evidence.metrics.into_iter().map(|metric| metric.asked).collect();
    let results = asked.iter().zip(&recorded).map(|(metric, recorded)| judged.metric(metric, recorded)).collect();

    // A run that goes on, or that was cut short, is what its last sample made it: no hold had run out by then.
    let last = recorded.iter().flat_map(|result| &result.measurements).map(|measurement| measurement.at).max();
    let last = last.or(evidence.started_at).unwrap_or_default();
    let went_to_its_end = judge::ended(evidence.phase) && evidence.phase != AnalysisPhase::Terminated;
    let now = evidence.completed_at.filter(|_| went_to_its_end).unwrap_or(last);
    let before =
        AnalysisRunStatus { started_at: evidence.started_at, metrics: results, ..AnalysisRunStatus::default() };
    let mut spec = AnalysisRunSpec {
        rollout: evidence.rollout,
        revision: evidence.revision,
        attempt: evidence.attempt,
        stage: evidence.stage,
        metrics: asked,
        terminate: false,
    };
    let mut status = judge::conclude(&spec, &before, now);
    if evidence.phase == AnalysisPhase::Terminated {
        spec.terminate = evidence.terminate;
        status = judge::conclude(&spec, &status, evidence.completed_at.unwrap_or(now));
    }
    for ((metric, recorded), result) in spec.metrics.iter().zip(&recorded).zip(&status.metrics) {
        judged.compare(Some(metric), "the metric's phase", recorded.phase, result.phase);
    }
    judged.compare(None, "the run's phase", evidence.phase, status.phase);
    judged
}

impl Judged {
    fn compare<T: PartialEq + std::fmt::Debug>(
        &mut self,
        metric: Option<&Metric>,
        about: impl Into<String>,
        recorded: T,
        comes_out: T,
    ) {
        if recorded != comes_out {
            self.disagree(metric, about, format!("{recorded:?}"), format!("{comes_out:?}"));
        }
    }

    fn disagree(&mut self, metric: Option<&Metric>, about: impl Into<String>, recorded: String, comes_out: String) {
        let metric = metric.map(|metric| metric.name.clone());
        self.disagreements.push(Disagreement { metric, about: about.into(), recorded, comes_out });
    }

    /// What the samples of a metric add up to, before anything is said about the whole run.
    fn metric(&mut self, metric: &Metric, recorded: &MetricResult) -> MetricResult {
        let kept = Counters::of_samples(&recorded.measurements);
        let lost = self.lost(metric, recorded, kept);
        self.taken += Counters::of_result(recorded).taken();
        self.kept += u64::try_from(recorded.measurements.len()).unwrap_or(u64::MAX);

        // What is not kept was counted before what is kept, so the count goes on from there.
        let mut result = MetricResult {
            name: metric.name.clone(),
            count: lost.usable(),
            passed: lost.passed,
            failed: lost.failed,
            inconclusive: lost.inconclusive,
            no_data: lost.no_data,
            errors: lost.errors,
            ..MetricResult::default()
        };
        let ordered = recorded.measurements.is_sorted_by_key(|measurement| measurement.at);
        let all_missing = recorded.measurements.iter().all(|measurement| is_missing(measurement.verdict));
        // The clock was set, or the beginning of the gap is not kept: then there is only the record.
        let believed = !ordered || (all_missing && lost.taken() > 0);
        if all_missing && believed {
            result.missing_since = recorded.missing_since;
        }
        for (number, measurement) in (1..).zip(&recorded.measurements) {
            let verdict = self.sample(metric, number, measurement);
            if judge::ended(result.phase) {
                let comes_out = format!("none: the metric had ended as {:?}", result.phase);
                let about = format!("sample {number} at {}", measurement.at.to_rfc3339());
                self.disagree(Some(metric), about, format!("{:?}", measurement.verdict), comes_out);
                break;
            }
            judge::take_in(metric, &mut result, Measurement { verdict, ..measurement.clone() });
        }
        self.errors_in_a_row(metric, recorded, lost, &mut result);
        if believed {
            result.missing_since = result.missing_since.and(recorded.missing_since);
        } else {
            self.compare(Some(metric), "since when data is missing", recorded.missing_since, result.missing_since);
        }
        result
    }

    /// The verdict on one sample.
    fn sample(&mut self, metric: &Metric, number: usize, measurement: &Measurement) -> Verdict {
        let Some((verdict, why)) = judge_again(metric, measurement) else {
            self.cut += 1;
            return measurement.verdict;
        };
        if verdict != measurement.verdict {
            let about = format!("sample {number} at {}", measurement.at.to_rfc3339());
            let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
            self.disagree(Some(metric), about, format!("{:?}", measurement.verdict), format!("{verdict:?}{why}"));
        }
        verdict
    }

    /// What was counted and is not kept. The judge lets go of samples in two ways only: of the oldest, when there are
    /// more than it keeps, and of those between the first and the last of equal misses.
    fn lost(&mut self, metric: &Metric, recorded: &MetricResult, kept: Counters) -> Counters {
        let counted = Counters::of_result(recorded);
        self.compare(Some(metric), "the count of samples with a value", recorded.count, counted.usable());
        let full = recorded.measurements.len() >= judge::KEPT;
        let thinned = |verdict: Verdict| {
            recorded.measurements.windows(2).any(|pair| match pair {
                [first, second] => {
                    first.verdict == verdict
                        && (first.verdict, &first.message, &first.values)
                            == (second.verdict, &second.message, &second.values)
                }
                _ => false,
            })
        };
        let mut lost = |name: &str, counted: i32, kept: i32, verdict: Verdict| {
            let may = match verdict {
                Verdict::NoData | Verdict::Error => full || thinned(verdict),
                Verdict::Pass | Verdict::Fail | Verdict::Inconclusive => full,
            };
            if counted < kept || (counted > kept && !may) {
                self.compare(Some(metric), format!("how many samples {name}"), counted, kept);
            }
            counted.saturating_sub(kept).clamp(0, MOST_SAMPLES)
        };
        Counters {
            passed: lost("passed", counted.passed, kept.passed, Verdict::Pass),
            failed: lost("failed", counted.failed, kept.failed, Verdict::Fail),
            inconclusive: lost("are inconclusive", counted.inconclusive, kept.inconclusive, Verdict::Inconclusive),
            no_data: lost("have no data", counted.no_data, kept.no_data, Verdict::NoData),
            errors: lost("are errors", counted.errors, kept.errors, Verdict::Error),
        }
    }

    /// Errors at the end of which some are not kept: the counter speaks for those.
    fn errors_in_a_row(&mut self, metric: &Metric, recorded: &MetricResult, lost: Counters, result: &mut MetricResult) {
        let (least, most) = match result.consecutive_errors {
            0 => (0, 0),
            kept => (kept, kept.saturating_add(lost.errors)),
        };
        if (least..=most).contains(&recorded.consecutive_errors) {
            result.consecutive_errors = recorded.consecutive_errors;
        } else {
            self.compare(Some(metric), "errors in a row", recorded.consecutive_errors, result.consecutive_errors);
        }
    }
}

/// The verdict on what is recorded of an answer, and why; none when not all of its values are.
fn judge_again(metric: &Metric, measurement: &Measurement) -> Option<(Verdict, String)> {
    if let Some(unusable) = &measurement.unusable {
        if unusable.no_answer {
            return Some((Verdict::Error, "the source did not answer".to_owned()));
        }
        if unusable.warnings.is_some_and(|warnings| warnings > 0) {
            return Some((Verdict::NoData, "the answer came with warnings".to_owned()));
        }
        if let (Some(at), Some(from), Some(until)) = (unusable.sample_at, unusable.usable_from, unusable.usable_until)
            && !(from..=until).contains(&at)
        {
            return Some((Verdict::NoData, "a sample is too old, or from the future".to_owned()));
        }
    }
    if measurement.series.is_some() {
        return None;
    }
    match measurement.values.iter().map(|value| value.parse()).collect::<Result<Vec<f64>, _>>() {
        Ok(values) => Some(judge::judge_values(metric, &values)),
        Err(_) => Some((Verdict::Error, "a value is no number".to_owned())),
    }
}

fn is_missing(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::NoData | Verdict::Error)
}

/// How many samples had which verdict.
#[derive(Clone, Copy, Default)]
struct Counters {
    passed: i32,
    failed: i32,
    inconclusive: i32,
    no_data: i32,
    errors: i32,
}

impl Counters {
    fn of_result(result: &MetricResult) -> Self {
        Self {
            passed: result.passed,
            failed: result.failed,
            inconclusive: result.inconclusive,
            no_data: result.no_data,
            errors: result.errors,
        }
    }

    fn of_samples(samples: &[Measurement]) -> Self {
        let mut counters = Self::default();
        for sample in samples {
            let counter = match sample.verdict {
                Verdict::Pass => &mut counters.passed,
                Verdict::Fail => &mut counters.failed,
                Verdict::Inconclusive => &mut counters.inconclusive,
                Verdict::NoData => &mut counters.no_data,
                Verdict::Error => &mut counters.errors,
            };
            *counter = counter.saturating_add(1);
        }
        counters
    }

    /// Those that had a value.
    fn usable(self) -> i32 {
        self.passed.saturating_add(self.failed).saturating_add(self.inconclusive)
    }

    fn taken(self) -> u64 {
        let all = [self.passed, self.failed, self.inconclusive, self.no_data, self.errors];
        all.into_iter().map(|count| u64::try_from(count).unwrap_or_default()).sum()
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{Judged, ReplayError, Replayed, replay};
    use crate::{
        analysis::judge,
        api::{AnalysisPhase, AnalysisRunSpec, AnalysisRunStatus, Metric},
        git::Evidence,
        metrics::{Answer, Sample},
    };

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_800_000_000_000 + millis).unwrap()
    }

    fn metric(name: &str, fields: &Value) -> Metric {
        let mut metric = json!({"name": name, "provider": {"prometheus": {"name": "prom", "query": "up"}}});
        metric.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(metric).unwrap()
    }

    fn spec(metrics: Vec<Metric>) -> AnalysisRunSpec {
        AnalysisRunSpec {
            rollout: "web".into(),
            revision: "abc".into(),
            attempt: 1,
            stage: "step-1".into(),
            metrics,
            terminate: false,
        }
    }

    /// One metric that is asked every ten seconds and answered like this, one value or nothing each time.
    fn measured(fields: &Value, answers: &[Option<f64>]) -> Value {
        let spec = spec(vec![metric("errors", fields)]);
        let mut status = AnalysisRunStatus::default();
        for (number, value) in (0..).zip(answers) {
            let now = at(number * 10_000);
            let samples = value.iter().map(|value| Sample { at: now, value: *value }).collect();
            let answer = Answer { samples, warnings: 0, max_age: TimeDelta::seconds(120) };
            let measurement = judge::measure(&spec.metrics[0], Ok(&answer), now, now);
            status = judge::advance(&spec, &status, 0, measurement, now);
        }
        Evidence::of("run", &spec, &status).body
    }

    fn judged(evidence: &Value) -> Judged {
        match replay(evidence.to_string().as_bytes()).unwrap() {
            Replayed::Judged(judged) => judged,
            other => panic!("{other:?}"),
        }
    }

    fn said(evidence: &Value) -> Vec<String> {
        let disagreements = judged(evidence).disagreements.into_iter();
        disagreements.map(|one| format!("{}: {}, not {}", one.about, one.comes_out, one.recorded)).collect()
    }

    #[test]
    fn what_was_judged_is_judged_again_the_same() {
        let limits = json!({"threshold": {"max": 0.05}, "interval": "10s", "count": 4, "failureLimit": 1});
        for answers in [
            vec![Some(0.01); 4],
            vec![Some(0.01), Some(0.2), Some(0.02), Some(0.03)],
            vec![Some(0.2), None, Some(0.3)],
            vec![Some(0.2), Some(f64::NAN), Some(f64::INFINITY)],
            vec![],
        ] {
            let evidence = measured(&limits, &answers);
            assert_eq!(said(&evidence), [""; 0], "{evidence:#}");
            assert_eq!(judged(&evidence).kept, u64::try_from(answers.len()).unwrap());
        }
    }

    #[test]
    fn each_change_of_the_record_is_told() {
        let limits = json!({"threshold": {"max": 0.05}, "interval": "10s", "count": 4, "failureLimit": 1});
        let passed = measured(&limits, &[Some(0.01), Some(0.2), Some(0.02), Some(0.03)]);
        let failed = measured(&limits, &[Some(0.2), Some(0.01), Some(0.3)]);
        let held = measured(&limits, &[Some(0.01), None, None]);
        let changed = |evidence: &Value, place: &str, value: Value| {
            let mut evidence = evidence.clone();
            *evidence.pointer_mut(place).unwrap() = value;
            said(&evidence)
        };
        let sample = |number: usize, field: &str| format!("/metrics/0/answered/measurements/{number}/{field}");
        // A value.
        let value = changed(&failed, &sample(2, "values"), json!(["0.03"]));
        assert_eq!(
            value,
            [
                "sample 3 at 2027-01-15T08:00:20+00:00: Pass, not Fail",
                "the metric's phase: Running, not Failed",
                "the run's phase: Running, not Failed"
            ]
        );
        // A verdict.
        let verdict = changed(&passed, &sample(1, "verdict"), json!("Pass"));
        assert!(verdict[0].starts_with("how many samples passed"), "{verdict:?}");
        assert!(verdict.iter().any(|line| line.ends_with("Fail (0.2 is above max 0.05), not Pass")), "{verdict:?}");
        // A bound, up and down.
        let bound = changed(&failed, "/metrics/0/asked/threshold/max", json!(0.5));
        assert!(bound.iter().any(|line| line == "the run's phase: Running, not Failed"), "{bound:?}");
        let bound = changed(&passed, "/metrics/0/asked/threshold/max", json!(0.015));
        assert!(bound.contains(&"the run's phase: Failed, not Passed".to_owned()), "{bound:?}");
        // A limit.
        let limit = changed(&failed, "/metrics/0/asked/failureLimit", json!(2));
        assert!(limit.contains(&"the metric's phase: Running, not Failed".to_owned()), "{limit:?}");
        // A phase.
        for (evidence, phase) in [(&passed, "Failed"), (&failed, "Passed"), (&failed, "Terminated"), (&held, "Passed")]
        {
            let phases = changed(evidence, "/phase", json!(phase));
            assert!(phases.last().unwrap().ends_with(&format!("not {phase}")), "{phases:?}");
        }
        // A counter.
        let counter = changed(&passed, "/metrics/0/answered/failed", json!(0));
        assert!(counter.contains(&"how many samples failed: 1, not 0".to_owned()), "{counter:?}");
        // When a hold began.
        let since = changed(&held, "/metrics/0/answered/missingSince", json!(at(0)));
        assert!(since[0].starts_with("since when data is missing"), "{since:?}");
        // A sample that is gone, whichever.
        for (evidence, count) in [(&passed, 4), (&failed, 3)] {
            for number in 0..count {
                let mut evidence = evidence.clone();
                let samples = evidence.pointer_mut("/metrics/0/answered/measurements").unwrap();
                samples.as_array_mut().unwrap().remove(number);
                assert!(said(&evidence).iter().any(|line| line.starts_with("how many samples")), "{number}");
            }
        }
        // One that comes after the end.
        let mut more = passed.clone();
        let samples = more.pointer_mut("/metrics/0/answered/measurements").unwrap().as_array_mut().unwrap();
        samples.push(samples[3].clone());
        assert!(said(&more).iter().any(|line| line.contains("the metric had ended as Passed")), "{:?}", said(&more));
    }

    #[test]
    fn of_samples_that_are_not_kept_the_counters_speak() {
        let endless = json!({"threshold": {"max": 0.05}, "interval": "10s", "failureLimit": 3});
        let mut answers = vec![Some(0.2); 3];
        answers.extend([Some(0.01); 40]);
        let running = measured(&endless, &answers);
        assert_eq!(said(&running), [""; 0]);
        assert_eq!((judged(&running).kept, judged(&running).taken), (20, 43));
        answers.push(Some(0.3));
        let failed = measured(&endless, &answers);
        assert_eq!(failed["phase"], "Failed");
        assert_eq!(said(&failed), [""; 0], "three failures before what is kept, and the last one");
        let mut forged = failed.clone();
        forged["metrics"][0]["answered"]["failed"] = json!(1);
        assert!(said(&forged).contains(&"the run's phase: Running, not Failed".to_owned()), "{:?}", said(&forged));
        // A long outage keeps its first and its last miss.
        let mut outage = vec![Some(0.01)];
        outage.extend([None; 30]);
        let outage = measured(&endless, &outage);
        assert_eq!((said(&outage), judged(&outage).kept), (Vec::new(), 3));
    }

    #[test]
    fn each_attempt_is_judged_by_the_bounds_of_its_own_time() {
        let strict = json!({"threshold": {"max": 0.001}});
        let right = json!({"threshold": {"max": 0.01}});
        let (first, second) = (measured(&strict, &[Some(0.005)]), measured(&right, &[Some(0.005)]));
        assert_eq!((&first["phase"], &second["phase"]), (&json!("Failed"), &json!("Passed")));
        assert_eq!((said(&first), said(&second)), (Vec::new(), Vec::new()));
        let mut mixed = second;
        mixed["metrics"][0]["asked"] = first["metrics"][0]["asked"].clone();
        assert!(!said(&mixed).is_empty());
    }

    #[test]
    fn what_cannot_be_judged_is_said_and_nothing_panics() {
        assert_eq!(replay(br#"{"simulated": true, "phase": "Passed"}"#).unwrap(), Replayed::Simulated);
        let left_out = replay(br#"{"schema": 1, "omitted": "too long"}"#).unwrap();
        assert_eq!(left_out, Replayed::NotKept { reason: "too long".into() });
        assert!(matches!(replay(br#"{"schema": 7}"#), Err(ReplayError::Schema(7))));
        for text in ["", "[]", "{}", "{\"schema\": 1}", "null"] {
            assert!(matches!(replay(text.as_bytes()), Err(ReplayError::Malformed(_))), "{text}");
        }
        let mut evidence = measured(&json!({"threshold": {"max": 1}, "interval": "10s"}), &[Some(0.1), None]);
        evidence["metrics"][0]["answered"]["passed"] = json!(i32::MAX);
        evidence["metrics"][0]["answered"]["count"] = json!(i32::MIN);
        evidence["metrics"][0]["answered"]["noData"] = json!(-5);
        assert!(said(&evidence).len() >= 3, "{:?}", said(&evidence));
        evidence["completedAt"] = json!("+262142-01-01T00:00:00Z");
        assert!(matches!(replay(evidence.to_string().as_bytes()), Err(ReplayError::Time(_))));
        // More series than are kept: judged by nobody again.
        let many = vec![0.5; 30];
        let spec = spec(vec![metric("errors", &json!({"successCondition": "result < 1"}))]);
        let samples = many.into_iter().map(|value| Sample { at: at(0), value }).collect();
        let answer = Answer { samples, warnings: 0, max_age: TimeDelta::seconds(1) };
        let measurement = judge::measure(&spec.metrics[0], Ok(&answer), at(0), at(0));
        let status = judge::advance(&spec, &AnalysisRunStatus::default(), 0, measurement, at(0));
        let many = Evidence::of("run", &spec, &status).body;
        assert_eq!((judged(&many).cut, said(&many)), (1, Vec::new()));
    }

    fn any_metric() -> impl Strategy<Value = Value> {
        let rule = prop_oneof![
            Just(json!({"threshold": {"max": 0.5}})),
            Just(json!({"threshold": {"min": 0.2, "max": 0.9}})),
            Just(json!({"successCondition": "result[0] < 0.5"})),
            Just(json!({"successCondition": "result[0] < 0.3", "failureCondition": "result[0] > 0.7"})),
            Just(json!({"failureCondition": "len(result) > 1", "threshold": {"max": 0.8}})),
        ];
        let missing = || {
            let then = prop_oneof![Just("pause"), Just("abort")];
            prop::option::of((0u64..60, then).prop_map(|(hold, then)| json!({"holdFor": hold, "then": then})))
        };
        let limits = (0i32..3, 0i32..2, prop::option::of(0i32..4), prop::option::of(1i32..30), any::<bool>());
        (rule, limits, missing(), missing()).prop_map(|(mut rule, limits, no_data, error)| {
            let (failure, inconclusive, errors, count, repeated) = limits;
            rule["failureLimit"] = json!(failure);
            rule["inconclusiveLimit"] = json!(inconclusive);
            let optional = [
                ("consecutiveErrorLimit", errors.map(|limit| json!(limit))),
                ("count", count.filter(|_| repeated).map(|count| json!(count))),
                ("interval", repeated.then(|| json!("10s"))),
                ("onNoData", no_data),
                ("onError", error),
            ];
            for (field, value) in optional {
                if let Some(value) = value {
                    rule[field] = value;
                }
            }
            rule
        })
    }

    /// What a source does: no answer, or values with warnings and of an age in milliseconds.
    fn any_answer() -> impl Strategy<Value = Option<(Vec<f64>, usize, i64)>> {
        let value = prop_oneof![
            20 => (0u32..1000).prop_map(|thousandths| f64::from(thousandths) / 1000.0),
            1 => Just(f64::NAN), 1 => Just(f64::INFINITY), 1 => Just(f64::NEG_INFINITY), 1 => Just(1e-9),
        ];
        let values = prop_oneof![20 => prop::collection::vec(value.clone(), 1..2), 1 => Just(Vec::new()),
                                 1 => prop::collection::vec(value, 2..25)];
        let warnings = prop_oneof![20 => Just(0usize), 1 => 1usize..3];
        let age = prop_oneof![20 => 0i64..5_000, 1 => -40_000i64..200_000];
        prop_oneof![8 => (values, warnings, age).prop_map(Some), 1 => Just(None)]
    }

    proptest! {
        /// Whatever was asked and answered, and whenever it was recorded: the evidence leads to the same verdicts.
        #[test]
        fn whatever_the_judge_says_it_says_again(
            metrics in prop::collection::vec(any_metric(), 1..4),
            turns in prop::collection::vec(
                (1i64..15_000, prop::collection::vec((0usize..4, any_answer(), 0i64..900), 0..4)), 1..60),
            cut_short in prop::option::of(0usize..60),
        ) {
            let metrics = metrics.iter().enumerate().map(|(index, fields)| metric(&format!("m{index}"), fields));
            let mut spec = spec(metrics.collect());
            let mut status = AnalysisRunStatus::default();
            let mut now = 0;
            for (turn, (wait, answers)) in turns.into_iter().enumerate() {
                // A measurement is begun after the turn before and in the past.
                let (before, _) = (now, now += wait);
                let mut measurements = std::collections::BTreeMap::new();
                for (index, answer, took) in answers {
                    let Some(metric) = spec.metrics.get(index) else { continue };
                    let begun = at((now - took).max(before + 1).min(now));
                    let answer = answer.map(|(values, warnings, age)| Answer {
                        samples: values.iter().map(|value| Sample { at: at(now - age), value: *value }).collect(),
                        warnings,
                        max_age: TimeDelta::seconds(120),
                    });
                    let answer = answer.as_ref().ok_or("not reachable");
                    measurements.insert(index, judge::measure(metric, answer, begun, at(now)));
                }
                spec.terminate |= cut_short.is_some_and(|at| turn >= at);
                status = judge::advance_all(&spec, &status, measurements, at(now));
                let evidence = Evidence::of("run", &spec, &status).body;
                prop_assert_eq!(said(&evidence), Vec::<String>::new(), "{:#}", evidence);
                if status.phase != AnalysisPhase::Terminated {
                    let mut forged = evidence;
                    let other = if status.phase == AnalysisPhase::Passed { "Failed" } else { "Passed" };
                    forged["phase"] = json!(other);
                    prop_assert!(!said(&forged).is_empty(), "{:#}", forged);
                }
            }
        }
    }
}
