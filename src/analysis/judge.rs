//! What a sample means, and what a run of samples adds up to. Pure: a status goes in, a status comes out.
//!
//! Missing data never passes. It holds the metric for a bounded time, then does as declared; a good sample in
//! that time lets it go on. All that a run needs to go on is in its status, so a restart loses nothing.

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::condition::Condition;
use crate::{
    api::{
        AnalysisPhase, AnalysisRunSpec, AnalysisRunStatus, Measurement, Metric, MetricResult, MissingPolicy,
        MissingThen, Threshold, Unusable, Verdict,
    },
    engine::AnalysisState,
    metrics::Answer,
};

/// How many measurements a metric keeps.
pub(super) const KEPT: usize = 20;
/// How soon a metric without a usable sample is asked again, unless its interval is shorter.
const RETRY: TimeDelta = TimeDelta::seconds(10);
/// How far a sample may be ahead of our clock: clocks differ a little.
const AHEAD: TimeDelta = TimeDelta::seconds(30);
/// How many values of an answer are kept in a measurement.
const KEPT_VALUES: usize = 20;

/// Makes a measurement, begun at `at`, of what the source answered by `now`, or of the reason why it did not.
pub fn measure(metric: &Metric, answer: Result<&Answer, &str>, at: DateTime<Utc>, now: DateTime<Utc>) -> Measurement {
    match answer {
        Ok(answer) => {
            let (verdict, message) = judge_sample(metric, answer, now);
            let values = answer.samples.iter().take(KEPT_VALUES).map(|sample| number(sample.value)).collect();
            let series = answer.samples.len();
            let series = (series > KEPT_VALUES).then(|| i32::try_from(series).unwrap_or(i32::MAX));
            let unusable = unusable(answer, now).map(|(unusable, _)| unusable);
            Measurement { at, verdict, values, message, unusable, series }
        }
        Err(error) => {
            let unusable = Some(Unusable { no_answer: true, ..Unusable::default() });
            let message = error.to_owned();
            Measurement { at, verdict: Verdict::Error, values: Vec::new(), message, unusable, series: None }
        }
    }
}

/// What an answer means for a metric, and why.
pub fn judge_sample(metric: &Metric, answer: &Answer, now: DateTime<Utc>) -> (Verdict, String) {
    match unusable(answer, now) {
        Some((_, message)) => (Verdict::NoData, message),
        None => {
            let values: Vec<f64> = answer.samples.iter().map(|sample| sample.value).collect();
            judge_values(metric, &values)
        }
    }
}

/// Why an answer counts for nothing, whatever its values.
fn unusable(answer: &Answer, now: DateTime<Utc>) -> Option<(Unusable, String)> {
    if answer.warnings > 0 {
        let message = format!("the source answered with {} warning(s): the result may be partial", answer.warnings);
        let warnings = Some(i32::try_from(answer.warnings).unwrap_or(i32::MAX));
        return Some((Unusable { warnings, ..Unusable::default() }, message));
    }
    let (from, until) = (now - answer.max_age, now + AHEAD);
    let sample = answer.samples.iter().find(|sample| sample.at < from || sample.at > until)?;
    let age = now - sample.at;
    let message = if sample.at < from {
        format!("the sample is {} s old, older than {}", age.num_seconds(), seconds(answer.max_age))
    } else {
        format!("the sample is {} s in the future: compare the clocks", -age.num_seconds())
    };
    let unusable = Unusable {
        sample_at: Some(sample.at),
        usable_from: Some(from),
        usable_until: Some(until),
        ..Unusable::default()
    };
    Some((unusable, message))
}

/// What values mean for a metric, and why.
pub(super) fn judge_values(metric: &Metric, values: &[f64]) -> (Verdict, String) {
    let mut verdicts = Vec::new();
    if let Some(threshold) = metric.threshold {
        verdicts.push(within(threshold, values));
    }
    if metric.success_condition.is_some() || metric.failure_condition.is_some() {
        verdicts.push(conditions(metric, values));
    }
    // The worst of the two counts; bad is worse than unknown, unknown worse than undecided.
    let rank = |verdict: Verdict| match verdict {
        Verdict::Fail => 0,
        Verdict::Error => 1,
        Verdict::NoData => 2,
        Verdict::Inconclusive => 3,
        Verdict::Pass => 4,
    };
    verdicts
        .into_iter()
        .min_by_key(|(verdict, _)| rank(*verdict))
        .unwrap_or_else(|| (Verdict::Inconclusive, "nothing says what is good".into()))
}

fn within(threshold: Threshold, values: &[f64]) -> (Verdict, String) {
    let value = match values {
        [] => return (Verdict::NoData, "the query gave no series".into()),
        [value] => *value,
        several => {
            let message = format!("{} series where a threshold expects one: aggregate the query", several.len());
            return (Verdict::Error, message);
        }
    };
    if value.is_nan() {
        return (Verdict::NoData, "the value is NaN".into());
    }
    let shown = number(value);
    match (threshold.min, threshold.max) {
        (_, Some(max)) if value > max => (Verdict::Fail, format!("{shown} is above max {}", number(max))),
        (Some(min), _) if value < min => (Verdict::Fail, format!("{shown} is below min {}", number(min))),
        // x/0 is no measurement, however well it fits.
        _ if value.is_infinite() => (Verdict::NoData, format!("the value is {shown}")),
        _ => (Verdict::Pass, String::new()),
    }
}

fn conditions(metric: &Metric, values: &[f64]) -> (Verdict, String) {
    let mut minds_infinity = false;
    let mut judge = |field: &str, text: &Option<String>| -> Result<Option<Option<bool>>, String> {
        let Some(text) = text else { return Ok(None) };
        let condition = Condition::parse(text).map_err(|error| format!("{field}: {error}"))?;
        minds_infinity |= condition.minds_infinity();
        condition.evaluate(values).map(Some).map_err(|error| error.to_string())
    };
    let judged = judge("failureCondition", &metric.failure_condition)
        .and_then(|bad| Ok((bad, judge("successCondition", &metric.success_condition)?)));
    let (bad, good) = match judged {
        Ok(judged) => judged,
        Err(message) => return (Verdict::Error, message),
    };
    let shown = shown(values);
    let text = |condition: &Option<String>| condition.clone().unwrap_or_default();
    let verdict = match (bad, good) {
        (Some(Some(true)), _) => {
            (Verdict::Fail, format!("failureCondition {} is true for {shown}", text(&metric.failure_condition)))
        }
        // One that cannot be told leaves the other alone not enough to pass or fail.
        (Some(None), _) | (_, Some(None)) => {
            let message =
                if values.is_empty() { "the query gave no series".into() } else { format!("cannot judge {shown}") };
            (Verdict::NoData, message)
        }
        (_, Some(Some(true))) | (Some(Some(false)), None) => (Verdict::Pass, String::new()),
        (None, Some(Some(false))) => {
            (Verdict::Fail, format!("successCondition {} is false for {shown}", text(&metric.success_condition)))
        }
        (Some(Some(false)), Some(Some(false))) => {
            let (good, bad) = (text(&metric.success_condition), text(&metric.failure_condition));
            (Verdict::Inconclusive, format!("{shown} is neither good ({good}) nor bad ({bad})"))
        }
        (None, None) => (Verdict::Inconclusive, "nothing says what is good".into()),
    };
    if verdict.0 == Verdict::Pass && !minds_infinity && values.iter().any(|value| value.is_infinite()) {
        return (Verdict::NoData, format!("the value is {shown}"));
    }
    verdict
}

/// A number as Prometheus writes it.
pub fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else if value != 0.0 && (value.abs() < 1e-6 || value.abs() >= 1e15) {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

fn shown(values: &[f64]) -> String {
    match values {
        [] => "an empty result".into(),
        [one] => number(*one),
        several => {
            let first: Vec<String> = several.iter().take(5).map(|value| number(*value)).collect();
            let more = if several.len() > 5 { format!(", … {} in all", several.len()) } else { String::new() };
            format!("[{}{more}]", first.join(", "))
        }
    }
}

fn seconds(delta: TimeDelta) -> String {
    format!("{} s", delta.num_seconds())
}

/// Whether nothing more will come of it.
pub fn ended(phase: AnalysisPhase) -> bool {
    use AnalysisPhase::{Failed, Holding, Inconclusive, Passed, Pending, Running, Terminated, Unavailable};
    match phase {
        Pending | Running | Holding => false,
        Passed | Failed | Inconclusive | Unavailable | Terminated => true,
    }
}

/// The status of a run at its beginning, or as it was: the first look at a run starts its clock. A clock
/// that was set ahead is brought back, so that a wrong time makes a run longer and not endless.
pub fn begin(spec: &AnalysisRunSpec, status: &AnalysisRunStatus, now: DateTime<Utc>) -> AnalysisRunStatus {
    let mut next = status.clone();
    next.started_at = Some(status.started_at.map_or(now, |started| started.min(now)));
    let known: Vec<MetricResult> = std::mem::take(&mut next.metrics);
    next.metrics = spec
        .metrics
        .iter()
        .map(|metric| {
            let known = known.iter().find(|result| result.name == metric.name).cloned();
            let mut result = known.unwrap_or_else(|| MetricResult { name: metric.name.clone(), ..Default::default() });
            result.missing_since = result.missing_since.map(|since| since.min(now));
            // A pass that has not happened yet would count for a stage that has not begun yet.
            result.last_passed_at = result.last_passed_at.filter(|passed| *passed <= now);
            result
        })
        .collect();
    next
}

/// The metrics to ask now, by index.
pub fn due(spec: &AnalysisRunSpec, status: &AnalysisRunStatus, now: DateTime<Utc>) -> Vec<usize> {
    if ended(status.phase) || spec.terminate {
        return Vec::new();
    }
    let indices = 0..spec.metrics.len();
    indices.filter(|index| open(status, *index) && ask_at(spec, status, *index, now) <= now).collect()
}

/// When to look at a run again: the next measurement, or the end of a hold. `None` when it has ended.
pub fn next_due(spec: &AnalysisRunSpec, status: &AnalysisRunStatus, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    next_due_besides(spec, status, &BTreeSet::new(), now)
}

/// The same while the metrics in `asked` are being asked: their answers will come by themselves, but a hold
/// does not wait for them.
pub fn next_due_besides(
    spec: &AnalysisRunSpec,
    status: &AnalysisRunStatus,
    asked: &BTreeSet<usize>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    if ended(status.phase) {
        return None;
    }
    if spec.terminate {
        return Some(now);
    }
    let open = (0..spec.metrics.len()).filter(|index| open(status, *index));
    open.flat_map(|index| {
        let hold = spec.metrics.get(index).zip(status.metrics.get(index));
        let ask = (!asked.contains(&index)).then(|| ask_at(spec, status, index, now));
        [ask, hold.and_then(|(metric, result)| hold_ends(metric, result))]
    })
    .flatten()
    .min()
}

fn open(status: &AnalysisRunStatus, index: usize) -> bool {
    status.metrics.get(index).is_none_or(|result| !ended(result.phase))
}

/// When a metric is to be asked. One that was measured in the future (a clock was set back) is asked at once.
fn ask_at(spec: &AnalysisRunSpec, status: &AnalysisRunStatus, index: usize, now: DateTime<Utc>) -> DateTime<Utc> {
    let Some(metric) = spec.metrics.get(index) else { return now };
    let Some(last) = status.metrics.get(index).and_then(|result| result.measurements.last()) else {
        let delay = metric.initial_delay.map_or(TimeDelta::zero(), |delay| delay.delta());
        return status.started_at.map_or(now, |started| started + delay);
    };
    if last.at > now {
        return now;
    }
    let interval = metric.interval.map_or(RETRY, |interval| interval.delta());
    let missing = matches!(last.verdict, Verdict::NoData | Verdict::Error);
    last.at + if missing { interval.min(RETRY) } else { interval }
}

/// When the hold of a metric runs out, if it holds.
fn hold_ends(metric: &Metric, result: &MetricResult) -> Option<DateTime<Utc>> {
    result.missing_since.map(|since| since + MissingPolicy::hold(missing_policy(metric, result)).delta())
}

/// The policy for what is missing now: of two kinds, the last one counts.
fn missing_policy(metric: &Metric, result: &MetricResult) -> Option<MissingPolicy> {
    match result.measurements.last().map(|last| last.verdict) {
        Some(Verdict::Error) => metric.on_error,
        _ => metric.on_no_data,
    }
}

/// Takes in one measurement. A run or metric that has ended stays as it is: a late answer changes nothing.
pub fn advance(
    spec: &AnalysisRunSpec,
    status: &AnalysisRunStatus,
    index: usize,
    measurement: Measurement,
    now: DateTime<Utc>,
) -> AnalysisRunStatus {
    advance_all(spec, status, [(index, measurement)], now)
}

/// Takes in the measurements of one moment, and only then looks what they add up to: a failure is not lost
/// behind an undecided metric, nor an answer behind a hold that ran out while it came.
pub fn advance_all(
    spec: &AnalysisRunSpec,
    status: &AnalysisRunStatus,
    measurements: impl IntoIterator<Item = (usize, Measurement)>,
    now: DateTime<Utc>,
) -> AnalysisRunStatus {
    if ended(status.phase) || spec.terminate {
        return conclude(spec, status, now);
    }
    let mut next = begin(spec, status, now);
    for (index, measurement) in measurements {
        if open(&next, index)
            && let (Some(metric), Some(result)) = (spec.metrics.get(index), next.metrics.get_mut(index))
        {
            take_in(metric, result, measurement);
        }
    }
    conclude(spec, &next, now)
}

/// Counts one measurement of a metric, and ends the metric when a limit or its count is reached.
pub(super) fn take_in(metric: &Metric, result: &mut MetricResult, measurement: Measurement) {
    match measurement.verdict {
        Verdict::Pass => {
            result.passed += 1;
            result.last_passed_at = Some(measurement.at);
        }
        Verdict::Fail => result.failed += 1,
        Verdict::Inconclusive => result.inconclusive += 1,
        Verdict::NoData => result.no_data += 1,
        Verdict::Error => result.errors += 1,
    }
    match measurement.verdict {
        Verdict::Pass | Verdict::Fail | Verdict::Inconclusive => {
            result.count += 1;
            result.consecutive_errors = 0;
            result.missing_since = None;
            result.phase = AnalysisPhase::Running;
            result.message = measurement.message.clone();
        }
        Verdict::NoData | Verdict::Error => {
            let error = measurement.verdict == Verdict::Error;
            result.consecutive_errors = if error { result.consecutive_errors + 1 } else { 0 };
            result.missing_since.get_or_insert(measurement.at);
            result.phase = AnalysisPhase::Holding;
        }
    }
    // A long outage must not push out what was measured before it: of equal misses in a row the first and
    // the last are kept.
    let same = |known: &Measurement| {
        known.verdict == measurement.verdict
            && known.message == measurement.message
            && known.values == measurement.values
    };
    let missing = matches!(measurement.verdict, Verdict::NoData | Verdict::Error);
    if missing && result.measurements.len() >= 2 && result.measurements.iter().rev().take(2).all(same) {
        result.measurements.pop();
    }
    result.measurements.push(measurement);
    let surplus = result.measurements.len().saturating_sub(KEPT);
    result.measurements.drain(..surplus);
    settle(metric, result);
}

/// Ends a metric whose limits or count are reached.
fn settle(metric: &Metric, result: &mut MetricResult) {
    let reason = std::mem::take(&mut result.message);
    let (failure_limit, inconclusive_limit) =
        (metric.failure_limit.unwrap_or_default(), metric.inconclusive_limit.unwrap_or_default());
    let count = metric.count.or(if metric.interval.is_none() { Some(1) } else { None });
    let (phase, message) = if result.failed > failure_limit {
        let message = format!("{reason} ({} failed, {failure_limit} allowed)", result.failed);
        (AnalysisPhase::Failed, message)
    } else if result.inconclusive > inconclusive_limit {
        let message = format!("{reason} ({} inconclusive, {inconclusive_limit} allowed)", result.inconclusive);
        (AnalysisPhase::Inconclusive, message)
    } else if count.is_some_and(|count| result.count >= count) {
        if result.passed > 0 {
            (AnalysisPhase::Passed, format!("{} of {} measurements passed", result.passed, result.count))
        } else {
            // Within its limits, and yet never good: nothing was shown.
            (AnalysisPhase::Inconclusive, format!("none of {} measurements passed", result.count))
        }
    } else {
        (result.phase, reason)
    };
    (result.phase, result.message) = (phase, message);
}

/// What a run is at this moment, with holds that ran out and the worst of its metrics. Also ends a run that
/// was asked to end. Does nothing to one that has ended.
pub fn conclude(spec: &AnalysisRunSpec, status: &AnalysisRunStatus, now: DateTime<Utc>) -> AnalysisRunStatus {
    if ended(status.phase) {
        return status.clone();
    }
    let mut next = begin(spec, status, now);
    if spec.terminate {
        end(&mut next, AnalysisPhase::Terminated, "ended by the operator before it was done".into(), now);
        return next;
    }
    for (metric, result) in spec.metrics.iter().zip(&mut next.metrics) {
        if result.phase == AnalysisPhase::Holding {
            hold(metric, result, now);
        }
    }
    let worst =
        [AnalysisPhase::Failed, AnalysisPhase::Unavailable, AnalysisPhase::Inconclusive, AnalysisPhase::Holding]
            .into_iter()
            .find_map(|phase| next.metrics.iter().find(|result| result.phase == phase));
    if let Some(result) = worst {
        let message = format!("{}: {}", result.name, result.message);
        if ended(result.phase) {
            let phase = result.phase;
            end(&mut next, phase, message, now);
        } else {
            (next.phase, next.message) = (result.phase, message);
        }
        return next;
    }
    if !next.metrics.is_empty() && next.metrics.iter().all(|result| result.phase == AnalysisPhase::Passed) {
        let message = match next.metrics.as_slice() {
            [only] => format!("{}: {}", only.name, only.message),
            all => format!("all {} metrics passed", all.len()),
        };
        end(&mut next, AnalysisPhase::Passed, message, now);
        return next;
    }
    let begun = next.metrics.iter().any(|result| !result.measurements.is_empty());
    next.phase = if begun { AnalysisPhase::Running } else { AnalysisPhase::Pending };
    next.message = match next.metrics.iter().find(|result| !result.message.is_empty() && !ended(result.phase)) {
        Some(result) => format!("{}: {}", result.name, result.message),
        None => String::new(),
    };
    next
}

/// Holds on, or ends the hold when its time or the count of errors ran out.
fn hold(metric: &Metric, result: &mut MetricResult, now: DateTime<Utc>) {
    let policy = missing_policy(metric, result);
    let then = policy.map(|policy| policy.then).unwrap_or_default();
    let why = result.measurements.last().map(|last| last.message.clone()).unwrap_or_default();
    let since = result.missing_since.unwrap_or(now);
    let until = since + MissingPolicy::hold(policy).delta();
    let errors = metric.consecutive_error_limit.filter(|limit| result.consecutive_errors > *limit);
    if errors.is_none() && now < until {
        let then = match then {
            MissingThen::Pause => "waits for a person",
            MissingThen::Abort => "aborts",
        };
        result.message = format!("{why}; holds since {}, {then} at {}", clock(since), clock(until));
        return;
    }
    result.phase = match then {
        MissingThen::Pause => AnalysisPhase::Inconclusive,
        MissingThen::Abort => AnalysisPhase::Unavailable,
    };
    result.message = match errors {
        Some(limit) => format!("{why} ({} errors in a row, {limit} allowed)", result.consecutive_errors),
        None => format!("{why}; no usable sample since {}", clock(since)),
    };
}

fn clock(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Ends a run, and with it what is still open in it.
fn end(status: &mut AnalysisRunStatus, phase: AnalysisPhase, message: String, now: DateTime<Utc>) {
    for result in &mut status.metrics {
        if !ended(result.phase) {
            result.phase = AnalysisPhase::Terminated;
            result.message = "ended with the run".into();
        }
    }
    (status.phase, status.message, status.completed_at) = (phase, message, Some(now));
}

/// A run as the engine sees it.
pub fn state(spec: &AnalysisRunSpec, status: Option<&AnalysisRunStatus>) -> AnalysisState {
    let none = AnalysisRunStatus::default();
    let status = status.unwrap_or(&none);
    // A metric that is done will not pass again; while others go on, only they can say that all is well now.
    let some_open = status.metrics.iter().any(|result| !ended(result.phase));
    let mut counting = status.metrics.iter().filter(|result| !some_open || !ended(result.phase)).peekable();
    let passed_since = match counting.peek() {
        Some(_) if status.metrics.len() == spec.metrics.len() => counting
            .map(|result| result.last_passed_at)
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.into_iter().min()),
        _ => None,
    };
    let holding = spec.metrics.iter().zip(&status.metrics).filter(|(_, result)| result.phase == AnalysisPhase::Holding);
    AnalysisState {
        stage: spec.stage.clone(),
        revision: spec.revision.clone(),
        attempt: spec.attempt,
        phase: status.phase,
        message: status.message.clone(),
        passed_since,
        terminating: spec.terminate,
        interval: spec.metrics.iter().filter_map(|metric| metric.interval).max().map(|interval| interval.delta()),
        hold_until: holding.filter_map(|(metric, result)| hold_ends(metric, result)).min(),
        changed: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::{DateTime, TimeDelta, Utc};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{
        advance, advance_all, begin, conclude, due, ended, judge_sample, measure, next_due, next_due_besides, state,
    };
    use crate::{
        api::{AnalysisPhase, AnalysisRunSpec, AnalysisRunStatus, Measurement, Metric, Verdict},
        metrics::{Answer, Sample},
    };

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn metric(fields: Value) -> Metric {
        let mut metric = json!({"name": "errors", "provider": {"prometheus": {"name": "prom", "query": "up"}}});
        metric.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(metric).unwrap()
    }

    fn run(metrics: Vec<Metric>) -> AnalysisRunSpec {
        AnalysisRunSpec {
            rollout: "web".into(),
            revision: "abc".into(),
            attempt: 1,
            stage: "background".into(),
            metrics,
            terminate: false,
        }
    }

    fn answer(values: &[f64]) -> Answer {
        let samples = values.iter().map(|value| Sample { at: at(0), value: *value }).collect();
        Answer { samples, warnings: 0, max_age: TimeDelta::seconds(120) }
    }

    fn given(verdict: Verdict, seconds: i64) -> Measurement {
        let message = match verdict {
            Verdict::Pass => "",
            Verdict::Fail => "0.08 is above max 0.05",
            Verdict::Inconclusive => "0.93 is neither good nor bad",
            Verdict::NoData => "the query gave no series",
            Verdict::Error => "not reachable: connection refused",
        };
        Measurement {
            at: at(seconds),
            verdict,
            values: Vec::new(),
            message: message.into(),
            unusable: None,
            series: None,
        }
    }

    #[test]
    fn every_sample_has_its_verdict() {
        use Verdict::{Error, Fail, Inconclusive, NoData, Pass};
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let max = json!({"threshold": {"max": 0.05}});
        let min = json!({"threshold": {"min": 0.95}});
        let success = json!({"successCondition": "result[0] < 0.05"});
        let failure = json!({"failureCondition": "result[0] >= 0.05"});
        let both = json!({"successCondition": "result[0] >= 0.95", "failureCondition": "result[0] < 0.9"});
        let touching = json!({"successCondition": "result[0] <= 500", "failureCondition": "result[0] >= 500"});
        let guarded = json!({"successCondition": "isNaN(result[0]) || result[0] < 0.1"});
        let empty = json!({"successCondition": "len(result) == 0"});
        let infinite = json!({"successCondition": "isInf(result) || result < 1"});
        let mixed = json!({"threshold": {"max": 10}, "successCondition": "result < 5"});
        let cases: &[(&Value, &[f64], Verdict, &str)] = &[
            (&max, &[0.05], Pass, ""),
            (&max, &[0.051], Fail, "0.051 is above max 0.05"),
            (&max, &[nan], NoData, "the value is NaN"),
            (&max, &[inf], Fail, "+Inf is above max 0.05"),
            (&max, &[-inf], NoData, "the value is -Inf"),
            (&max, &[], NoData, "the query gave no series"),
            (&max, &[0.0, 0.0], Error, "2 series where a threshold expects one"),
            (&min, &[0.949], Fail, "0.949 is below min 0.95"),
            (&min, &[inf], NoData, "the value is +Inf"),
            (&min, &[-inf], Fail, "-Inf is below min"),
            (&success, &[0.01], Pass, ""),
            (&success, &[0.05], Fail, "successCondition result[0] < 0.05 is false for 0.05"),
            (&success, &[nan], NoData, "cannot judge NaN"),
            (&success, &[], NoData, "the query gave no series"),
            (&success, &[0.01, 9.0], Pass, ""),
            (&failure, &[0.01], Pass, ""),
            (&failure, &[0.05], Fail, "failureCondition result[0] >= 0.05 is true for 0.05"),
            (&failure, &[nan], NoData, "cannot judge NaN"),
            (&failure, &[], NoData, "the query gave no series"),
            (&failure, &[-inf], NoData, "the value is -Inf"),
            (&failure, &[inf], Fail, "is true for +Inf"),
            (&both, &[0.96], Pass, ""),
            (&both, &[0.89], Fail, ""),
            (&both, &[0.93], Inconclusive, "0.93 is neither good (result[0] >= 0.95) nor bad (result[0] < 0.9)"),
            (&both, &[nan], NoData, ""),
            (&touching, &[500.0], Fail, ""),
            (&touching, &[499.0], Pass, ""),
            (&guarded, &[nan], Pass, ""),
            (&guarded, &[], NoData, ""),
            (&empty, &[], Pass, ""),
            (&empty, &[1.0], Fail, "is false for 1"),
            (&empty, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Fail, "[1, 2, 3, 4, 5, … 6 in all]"),
            (&infinite, &[inf], Pass, ""),
            (&infinite, &[0.5, 0.5], Error, "the result has 2 series"),
            (&mixed, &[4.0], Pass, ""),
            (&mixed, &[6.0], Fail, "successCondition"),
            (&mixed, &[11.0], Fail, "above max"),
            (&json!({}), &[1.0], Inconclusive, "nothing says what is good"),
            (&json!({"successCondition": "result <"}), &[1.0], Error, "successCondition: column 9"),
        ];
        for (fields, values, verdict, message) in cases {
            let (got, why) = judge_sample(&metric((*fields).clone()), &answer(values), at(0));
            assert_eq!(got, *verdict, "{fields} of {values:?}: {why}");
            assert!(why.contains(message), "{fields} of {values:?}: {why}");
        }
    }

    #[test]
    fn old_future_and_partial_samples_are_no_data_even_when_they_are_bad() {
        for values in [[0.01], [0.9]] {
            let good_or_bad = metric(json!({"threshold": {"max": 0.05}}));
            let (verdict, why) = judge_sample(&good_or_bad, &answer(&values), at(121));
            assert_eq!((verdict, why.as_str()), (Verdict::NoData, "the sample is 121 s old, older than 120 s"));
            let (verdict, why) = judge_sample(&good_or_bad, &answer(&values), at(-31));
            assert_eq!(verdict, Verdict::NoData);
            assert!(why.contains("31 s in the future"), "{why}");
            let partial = Answer { warnings: 2, ..answer(&values) };
            let (verdict, why) = judge_sample(&good_or_bad, &partial, at(0));
            assert_eq!(verdict, Verdict::NoData);
            assert!(why.contains("2 warning(s)"), "{why}");
        }
        let fresh = metric(json!({"threshold": {"max": 0.05}}));
        assert_eq!(judge_sample(&fresh, &answer(&[0.0]), at(120)).0, Verdict::Pass);
        assert_eq!(judge_sample(&fresh, &answer(&[0.0]), at(-30)).0, Verdict::Pass);
    }

    /// Feeds verdicts 10 s apart and returns the phase after each.
    fn phases(fields: Value, verdicts: &[Verdict]) -> (Vec<AnalysisPhase>, AnalysisRunStatus) {
        let spec = run(vec![metric(fields)]);
        let mut status = begin(&spec, &AnalysisRunStatus::default(), at(0));
        let mut phases = Vec::new();
        for (index, verdict) in (0..).zip(verdicts) {
            status = advance(&spec, &status, 0, given(*verdict, index * 10), at(index * 10));
            phases.push(status.phase);
        }
        (phases, status)
    }

    #[test]
    fn limits_and_counts_end_a_metric() {
        use AnalysisPhase::{Failed, Holding, Inconclusive, Passed, Running, Unavailable};
        use Verdict::{Error, Fail, Inconclusive as Unclear, NoData, Pass};
        let bound = json!({"threshold": {"max": 0.05}});
        let with = |fields: Value| {
            let mut all = bound.clone();
            all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            all
        };
        let cases: Vec<(Value, Vec<Verdict>, Vec<AnalysisPhase>)> = vec![
            (with(json!({})), vec![Pass], vec![Passed]),
            (with(json!({})), vec![Fail], vec![Failed]),
            (with(json!({})), vec![NoData, Error, Pass], vec![Holding, Holding, Passed]),
            (with(json!({"interval": "10s", "count": 2})), vec![Pass, NoData, Pass], vec![Running, Holding, Passed]),
            (with(json!({"interval": "10s"})), vec![Pass, Pass, Pass, Fail], vec![Running, Running, Running, Failed]),
            (
                with(json!({"interval": "10s", "count": 4, "failureLimit": 1})),
                vec![Fail, Pass, Pass, Pass],
                vec![Running, Running, Running, Passed],
            ),
            (
                with(json!({"interval": "10s", "count": 4, "failureLimit": 1})),
                vec![Fail, Pass, Fail],
                vec![Running, Running, Failed],
            ),
            (with(json!({"failureLimit": 3})), vec![Fail], vec![Inconclusive]),
            (with(json!({"interval": "10s"})), vec![Unclear], vec![Inconclusive]),
            (
                with(json!({"interval": "10s", "inconclusiveLimit": 1})),
                vec![Unclear, Pass, Unclear],
                vec![Running, Running, Inconclusive],
            ),
            (
                with(json!({"interval": "10s", "consecutiveErrorLimit": 1})),
                vec![Error, NoData, Error, Error],
                vec![Holding, Holding, Holding, Inconclusive],
            ),
            (
                with(json!({"interval": "10s", "consecutiveErrorLimit": 0, "onError": {"then": "abort"}})),
                vec![Error],
                vec![Unavailable],
            ),
        ];
        for (fields, verdicts, expected) in cases {
            let (phases, status) = phases(fields.clone(), &verdicts);
            assert_eq!(phases, expected, "{fields} {verdicts:?}");
            assert_eq!(status.completed_at.is_some(), ended(status.phase), "{fields}");
            assert!(status.phase == Running || !status.message.is_empty(), "{fields}");
        }
        let (_, failed) = phases(with(json!({})), &[Fail]);
        assert_eq!(failed.message, "errors: 0.08 is above max 0.05 (1 failed, 0 allowed)");
    }

    #[test]
    fn missing_data_holds_for_its_time_then_does_as_told() {
        let cases = [
            (json!({"threshold": {"max": 1}, "interval": "60s"}), 600, AnalysisPhase::Inconclusive),
            (
                json!({"threshold": {"max": 1}, "interval": "60s", "onNoData": {"holdFor": "45s", "then": "abort"}}),
                45,
                AnalysisPhase::Unavailable,
            ),
        ];
        for (fields, hold, then) in cases {
            let spec = run(vec![metric(fields)]);
            let mut status = begin(&spec, &AnalysisRunStatus::default(), at(0));
            assert_eq!(due(&spec, &status, at(0)), [0]);
            status = advance(&spec, &status, 0, given(Verdict::NoData, 0), at(1));
            assert_eq!(status.phase, AnalysisPhase::Holding);
            assert!(status.message.starts_with("errors: the query gave no series; holds since"), "{}", status.message);
            assert_eq!(state(&spec, Some(&status)).hold_until, Some(at(hold)));
            assert_eq!(due(&spec, &status, at(9)), [0usize; 0], "asked again after 10 s, whatever the interval");
            assert_eq!(due(&spec, &status, at(10)), [0]);
            // The hold ends by itself: no answer is needed for that.
            assert_eq!(conclude(&spec, &status, at(hold - 1)).phase, AnalysisPhase::Holding);
            let over = conclude(&spec, &status, at(hold));
            assert_eq!(over.phase, then);
            assert_eq!(over.completed_at, Some(at(hold)));
            // A good sample lets it go on, and the next gap has the whole time again.
            let good = advance(&spec, &status, 0, given(Verdict::Pass, 20), at(20));
            assert_eq!(good.phase, AnalysisPhase::Running);
            assert_eq!(state(&spec, Some(&good)).hold_until, None);
            let again = advance(&spec, &good, 0, given(Verdict::NoData, 80), at(80));
            assert_eq!(state(&spec, Some(&again)).hold_until, Some(at(80 + hold)));
        }
    }

    #[test]
    fn a_time_to_look_again_is_always_known_and_includes_the_end_of_a_hold() {
        let fields = json!({"threshold": {"max": 1}, "interval": "30s", "initialDelay": "15s",
                            "onNoData": {"holdFor": "4s"}});
        let spec = run(vec![metric(fields)]);
        let status = begin(&spec, &AnalysisRunStatus::default(), at(0));
        assert_eq!(next_due(&spec, &status, at(0)), Some(at(15)));
        assert!(due(&spec, &status, at(14)).is_empty());
        let passed = advance(&spec, &status, 0, given(Verdict::Pass, 15), at(16));
        assert_eq!(next_due(&spec, &passed, at(16)), Some(at(45)), "from the beginning of the last one");
        let asked = BTreeSet::from([0]);
        assert_eq!(next_due_besides(&spec, &passed, &asked, at(45)), None, "its answer will come");
        let held = advance(&spec, &passed, 0, given(Verdict::NoData, 45), at(45));
        assert_eq!(next_due(&spec, &held, at(45)), Some(at(49)));
        assert_eq!(next_due_besides(&spec, &held, &asked, at(48)), Some(at(49)), "a hold does not wait for an answer");
        let over = conclude(&spec, &held, at(49));
        assert_eq!(next_due(&spec, &over, at(49)), None);
    }

    #[test]
    fn ending_is_final_and_late_answers_change_nothing() {
        let fields = json!({"threshold": {"max": 1}, "interval": "30s"});
        let mut spec = run(vec![metric(fields.clone()), Metric { name: "other".into(), ..metric(fields) }]);
        let status = begin(&spec, &AnalysisRunStatus::default(), at(0));
        let running = advance(&spec, &status, 0, given(Verdict::Pass, 0), at(0));
        spec.terminate = true;
        assert_eq!(due(&spec, &running, at(60)), [0usize; 0]);
        let over = conclude(&spec, &running, at(3));
        assert_eq!((over.phase, over.completed_at), (AnalysisPhase::Terminated, Some(at(3))));
        assert_eq!(over.metrics[0].passed, 1, "what was measured is kept");
        assert_eq!(over.metrics[1].phase, AnalysisPhase::Terminated);
        // A late answer, and one that arrives in the same turn as the wish to end.
        assert_eq!(advance(&spec, &over, 0, given(Verdict::Pass, 28), at(28)), over);
        let tie = advance(&spec, &running, 0, given(Verdict::Fail, 3), at(3));
        assert_eq!((tie.phase, tie.metrics[0].failed), (AnalysisPhase::Terminated, 0));
    }

    #[test]
    fn the_worst_metric_decides_and_failed_wins() {
        let fields = json!({"threshold": {"max": 1}, "interval": "10s", "count": 1});
        let spec = run(["a", "b", "c"].map(|name| Metric { name: name.into(), ..metric(fields.clone()) }).into());
        let status = begin(&spec, &AnalysisRunStatus::default(), at(0));
        let one = advance(&spec, &status, 0, given(Verdict::Pass, 0), at(0));
        assert_eq!(one.phase, AnalysisPhase::Running, "two are still to come");
        let held = advance(&spec, &one, 1, given(Verdict::Error, 0), at(0));
        assert_eq!(held.phase, AnalysisPhase::Holding);
        // In one turn: the hold of b runs out, and c fails.
        let both = advance(&spec, &held, 2, given(Verdict::Fail, 600), at(600));
        assert_eq!(both.phase, AnalysisPhase::Failed);
        assert!(both.message.starts_with("c: "), "{}", both.message);
        // In one turn: b is undecided, and c fails.
        let tie = [(1, given(Verdict::Inconclusive, 10)), (2, given(Verdict::Fail, 10))];
        assert_eq!(advance_all(&spec, &held, tie, at(10)).phase, AnalysisPhase::Failed);
        // In one turn: the holds of b and c run out, and their good answers come.
        let late = advance(&spec, &held, 2, given(Verdict::NoData, 0), at(1));
        let good = [(1, given(Verdict::Pass, 599)), (2, given(Verdict::Pass, 599))];
        assert_eq!(advance_all(&spec, &late, good, at(601)).phase, AnalysisPhase::Passed);
        let all = advance(
            &spec,
            &advance(&spec, &held, 1, given(Verdict::Pass, 10), at(10)),
            2,
            given(Verdict::Pass, 10),
            at(10),
        );
        assert_eq!((all.phase, all.message.as_str()), (AnalysisPhase::Passed, "all 3 metrics passed"));
    }

    #[test]
    fn the_engine_sees_since_when_all_is_well() {
        let endless = json!({"threshold": {"max": 1}, "interval": "30s"});
        let once = json!({"threshold": {"max": 1}});
        let spec = run(vec![
            metric(endless.clone()),
            Metric { name: "slow".into(), interval: Some(crate::api::Duration::from_secs(90)), ..metric(endless) },
            Metric { name: "once".into(), ..metric(once) },
        ]);
        assert_eq!(state(&spec, None).passed_since, None);
        let status = begin(&spec, &AnalysisRunStatus::default(), at(0));
        let status = advance(&spec, &status, 0, given(Verdict::Pass, 0), at(0));
        let status = advance(&spec, &status, 2, given(Verdict::Pass, 1), at(1));
        assert_eq!(state(&spec, Some(&status)).passed_since, None, "slow has never passed");
        let status = advance(&spec, &status, 1, given(Verdict::Pass, 5), at(5));
        assert_eq!(state(&spec, Some(&status)).passed_since, Some(at(0)));
        let status = advance(&spec, &status, 0, given(Verdict::Pass, 30), at(30));
        let seen = state(&spec, Some(&status));
        assert_eq!(seen.passed_since, Some(at(5)), "the metric that is done does not hold the others back");
        assert_eq!(seen.interval, Some(TimeDelta::seconds(90)));
        assert_eq!((seen.phase, seen.attempt, seen.stage.as_str()), (AnalysisPhase::Running, 1, "background"));
    }

    #[test]
    fn a_long_outage_does_not_push_out_the_evidence() {
        let fields = json!({"threshold": {"max": 1}, "interval": "10s", "onError": {"holdFor": "10d"}});
        let mut verdicts = vec![Verdict::Pass; 3];
        verdicts.extend([Verdict::Error; 500]);
        let (_, status) = phases(fields.clone(), &verdicts);
        let kept = &status.metrics[0];
        assert_eq!((kept.measurements.len(), kept.errors, kept.passed), (5, 500, 3));
        assert_eq!(kept.measurements[3].at, at(30), "when it began");
        assert_eq!(kept.measurements[4].at, at(30 + 499 * 10), "the last one");
        let (_, many) = phases(fields, &[Verdict::Pass; 50]);
        assert_eq!(many.metrics[0].measurements.len(), 20);
    }

    #[test]
    fn a_clock_that_was_ahead_makes_nothing_endless() {
        let spec = run(vec![metric(json!({"threshold": {"max": 1}, "initialDelay": "10s"}))]);
        let ahead = begin(&spec, &AnalysisRunStatus::default(), at(100_000));
        let back = conclude(&spec, &ahead, at(0));
        assert_eq!(next_due(&spec, &back, at(0)), Some(at(10)));

        let spec = run(vec![metric(json!({"threshold": {"max": 1}, "interval": "10s"}))]);
        let ahead = advance(&spec, &AnalysisRunStatus::default(), 0, given(Verdict::Pass, 100_000), at(100_000));
        assert_eq!(due(&spec, &ahead, at(0)), [0]);
        let back = conclude(&spec, &ahead, at(0));
        assert_eq!(state(&spec, Some(&back)).passed_since, None, "a pass from the future is none");
    }

    #[test]
    fn values_and_errors_become_measurements() {
        let bound = metric(json!({"threshold": {"max": 0.05}}));
        let good = measure(&bound, Ok(&answer(&[0.02])), at(0), at(0));
        assert_eq!((good.verdict, good.values), (Verdict::Pass, vec!["0.02".to_owned()]));
        let odd = measure(&bound, Ok(&answer(&[f64::NEG_INFINITY])), at(0), at(0));
        assert_eq!(odd.values, ["-Inf"]);
        let error = measure(&bound, Err("ClusterMetricProvider \"prom\" does not exist"), at(0), at(0));
        // It waited for its turn: the sample is judged by the time of the answer, and counts from its beginning.
        let waited = measure(&bound, Ok(&answer(&[0.02])), at(-100), at(1));
        assert_eq!((waited.verdict, waited.at), (Verdict::Pass, at(-100)));
        assert_eq!(error.verdict, Verdict::Error);
        assert!(error.message.contains("does not exist"));
    }

    fn any_verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Pass),
            Just(Verdict::Fail),
            Just(Verdict::Inconclusive),
            Just(Verdict::NoData),
            Just(Verdict::Error)
        ]
    }

    proptest! {
        /// Whatever comes, in whatever order: no pass without a passed measurement, an end stays the end, and
        /// until then there is a time to look again.
        #[test]
        fn a_run_never_passes_on_missing_data_and_never_comes_back(
            verdicts in prop::collection::vec((any_verdict(), 1i64..400), 1..60),
            failure_limit in 0i32..3, count in prop::option::of(1i32..5),
        ) {
            let mut fields = json!({"threshold": {"max": 1}, "interval": "10s", "failureLimit": failure_limit});
            if let Some(count) = count {
                fields["count"] = count.into();
            }
            let spec = run(vec![metric(fields)]);
            let mut status = begin(&spec, &AnalysisRunStatus::default(), at(0));
            let mut now = 0;
            for (verdict, wait) in verdicts {
                now += wait;
                let before = status.clone();
                status = advance(&spec, &status, 0, given(verdict, now), at(now));
                if ended(before.phase) {
                    prop_assert_eq!(&before, &status);
                }
                if status.phase == AnalysisPhase::Passed {
                    prop_assert!(status.metrics[0].passed >= 1);
                    prop_assert!(status.metrics[0].failed <= failure_limit);
                }
                prop_assert_eq!(next_due(&spec, &status, at(now)).is_none(), ended(status.phase));
                prop_assert_eq!(&conclude(&spec, &status, at(now)), &status, "looking twice changes nothing");
            }
        }
    }
}
