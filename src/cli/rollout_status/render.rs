//! From a view to lines: one Rollout in full, many as a table, one transition as a line.
//!
//! Pure. The first six lines of a Rollout are the title and the five answers; they fit 80 columns whenever
//! names and reasons do.

use chrono::{DateTime, Utc};

use super::view::{Side, Step, StepState, View, short};
use crate::api::{AnalysisPhase, Phase, ReleaseState};
use crate::cli::terminal::{Line, Tone, clock, length, table};

/// One Rollout in full.
pub fn detail(view: &View) -> Vec<Line> {
    let now = view.looked_at;
    let mut lines = vec![title(view)];
    lines.push(answer("What", Tone::Plain, what(view)));
    lines.push(answer("Where", Tone::Plain, position(view)));
    if let Some(abort) = &view.abort {
        let actor = abort.actor.as_ref().map(|actor| format!(" ({actor})")).unwrap_or_default();
        lines.push(answer("Why", Tone::Bad, format!("{}{actor}", abort.message)));
    }
    if let Some(text) = waiting(view) {
        let tone =
            if view.needs_person() || view.phase == Phase::Holding { Tone::Attention } else { phase(view.phase) };
        lines.push(answer("Waiting", tone, text));
    }
    if let Some(text) = next(view) {
        lines.push(answer("Next", Tone::Plain, text));
    }
    if !view.ways.commands.is_empty() {
        lines.push(answer(view.ways.label, Tone::Plain, view.ways.commands.join("   or: ")));
    }
    if let Some(text) = record(view) {
        let tone = if view.record.trouble.is_some() { Tone::Attention } else { Tone::Quiet };
        lines.push(answer("Log", tone, text));
    }
    for gap in &view.incomplete {
        lines.push(answer("Note", Tone::Attention, gap.clone()));
    }
    if let Some(failed) = &view.failed_metric {
        lines.push(Line::new());
        lines.push(answer("Failed", Tone::Bad, failed.sentence()));
        lines.push(answer("", Tone::Quiet, format!("query: {}", failed.query)));
        lines.push(answer("", Tone::Quiet, format!("in AnalysisRun {}", failed.analysis)));
    }
    section(&mut lines, steps(&view.steps, now));
    section(&mut lines, sides(&view.sides));
    section(&mut lines, analyses(view));
    lines
}

fn section(lines: &mut Vec<Line>, more: Vec<Line>) {
    if more.len() > 1 {
        lines.push(Line::new());
        lines.extend(more);
    }
}

fn title(view: &View) -> Line {
    Line::new()
        .with(Tone::Strong, format!("{}/{}", view.namespace, view.name))
        .with(Tone::Plain, format!("   {}   ", view.strategy))
        .with(phase(view.phase), format!("{:?}", view.phase))
}

fn answer(label: &str, tone: Tone, text: String) -> Line {
    let label = if label.is_empty() { String::new() } else { format!("{label}:") };
    Line::new().column(Tone::Strong, &label, 10).with(tone, text)
}

fn phase(phase: Phase) -> Tone {
    match phase {
        Phase::Ready => Tone::Good,
        Phase::Aborted | Phase::Stalled => Tone::Bad,
        Phase::Paused | Phase::Holding | Phase::Terminating => Tone::Attention,
        Phase::Pending | Phase::Progressing | Phase::Promoting => Tone::Plain,
    }
}

fn what(view: &View) -> String {
    let images: Vec<String> = view
        .what
        .images
        .iter()
        .map(|image| match &image.stable_image {
            Some(stable) => format!("{} (stable: {stable})", image.image),
            None => image.image.clone(),
        })
        .collect();
    let mut parts = vec![if images.is_empty() { "no image".to_owned() } else { images.join(", ") }];
    parts.push(format!("revision {}", view.what.revision));
    if let Some(attempt) = view.what.attempt.filter(|attempt| *attempt > 1) {
        parts.push(format!("attempt {attempt}"));
    }
    if let Some(commit) = &view.what.commit {
        parts.push(format!("commit {}", short(commit)));
    }
    parts.join(", ")
}

fn position(view: &View) -> String {
    let position = &view.position;
    let routed = position.weight.map(|weight| format!("{weight} % of traffic routed to it")).into_iter();
    let step = match (position.step, position.steps) {
        (Some(step), Some(steps)) if steps > 0 => format!("step {step}/{steps}"),
        _ => "step 1".to_owned(),
    };
    match position.state {
        Some(ReleaseState::FirstDeploy) => "first version, no steps: straight to full size".to_owned(),
        Some(ReleaseState::Aborted) => {
            std::iter::once(format!("aborted in {step}")).chain(routed).collect::<Vec<_>>().join(", ")
        }
        Some(ReleaseState::Promoting) => {
            std::iter::once("past all steps, taking over".to_owned()).chain(routed).collect::<Vec<_>>().join(", ")
        }
        Some(ReleaseState::Stepping) => {
            let wanted = position.wanted_weight.filter(|wanted| Some(*wanted) != position.weight);
            let wanted = wanted.map(|wanted| format!("{wanted} % wanted"));
            std::iter::once(step).chain(routed).chain(wanted).collect::<Vec<_>>().join(", ")
        }
        None if view.what.stable_revision.is_none() => "nothing is running yet".to_owned(),
        None if view.what.stable_revision.as_ref() == Some(&view.what.revision) => {
            "nothing in flight, all traffic on this revision".to_owned()
        }
        None => "not in flight, all traffic on the stable revision".to_owned(),
    }
}

fn waiting(view: &View) -> Option<String> {
    let waiting = view.waiting.as_ref()?;
    let until = waiting.until.map(|until| format!(", until {}", when(until, view.looked_at)));
    Some(format!("{}{}", waiting.message, until.unwrap_or_default()))
}

fn when(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    if at > now { format!("{} (in {})", clock(at, now), length(at - now)) } else { clock(at, now) }
}

fn next(view: &View) -> Option<String> {
    let next = view.next.as_ref()?;
    if view.position.state == Some(ReleaseState::FirstDeploy) && next.at.is_none() {
        return None;
    }
    let mut text = match next.step {
        Some(step) => format!("step {step}: {}", next.label),
        None => next.label.clone(),
    };
    match next.at {
        Some(at) => text.push_str(&format!(" at {}", when(at, view.looked_at))),
        None if view.needs_person() => text.push_str(" once a person lets it go on"),
        None => {}
    }
    let people: Vec<String> = view
        .steps
        .iter()
        .filter(|step| step.needs_person && step.state == StepState::Ahead)
        .map(|step| step.step.to_string())
        .collect();
    match (next.ends_at, &next.blocked_on) {
        (Some(end), None) if next.step.is_some() && people.is_empty() && next.at.is_some() => {
            text.push_str(&format!("; done at {} at the earliest", clock(end, view.looked_at)));
        }
        (_, None) if !people.is_empty() => {
            text.push_str(&format!("; a person is needed in step {}", people.join(" and ")));
        }
        (_, Some(blocked)) if next.at.is_some() => text.push_str(&format!("; then {blocked}")),
        _ => {}
    }
    Some(text)
}

fn record(view: &View) -> Option<String> {
    let record = &view.record;
    if record.recorded_sequence == 0 && record.trouble.is_none() {
        return None;
    }
    let mut text = format!("{} of {} transitions recorded in git", record.recorded_sequence, record.sequence);
    if let Some(trouble) = &record.trouble {
        text.push_str(&format!(" ({trouble})"));
    }
    Some(text)
}

/// The steps as a timeline.
pub fn steps(steps: &[Step], now: DateTime<Utc>) -> Vec<Line> {
    // When a person comes is not foretold, and neither is what follows.
    let person = steps.iter().find(|step| step.needs_person).map(|step| step.step);
    let rows: Vec<_> = steps
        .iter()
        .map(|step| {
            let after = person.filter(|person| step.step > *person);
            let (mark, tone) = match step.state {
                StepState::Done => ("done", Tone::Good),
                StepState::Current => ("now", Tone::Strong),
                StepState::Ahead => ("", Tone::Plain),
                StepState::Aborted => ("aborted", Tone::Bad),
                StepState::NotReached => ("not reached", Tone::Quiet),
            };
            vec![
                (tone, step.step.to_string()),
                (tone, mark.to_owned()),
                (Tone::Plain, step.label.clone()),
                (Tone::Plain, format!("{} %", step.weight)),
                (Tone::Plain, after.map_or_else(|| times(step, now), |person| format!("after step {person}"))),
            ]
        })
        .collect();
    table(&["STEP", "STATE", "WHAT", "WEIGHT", "WHEN"], &rows)
}

fn times(step: &Step, now: DateTime<Utc>) -> String {
    let person = if step.needs_person { "needs a person" } else { "" };
    let text = match (step.state, step.starts_at, step.ends_at) {
        (StepState::NotReached, ..) => return String::new(),
        (StepState::Done, Some(start), Some(end)) => {
            return format!("{}, took {}", clock(start, now), length(end - start));
        }
        (StepState::Done | StepState::Aborted, Some(start), _) => return clock(start, now),
        (StepState::Done | StepState::Aborted, None, _) => return String::new(),
        (StepState::Current, Some(start), Some(end)) => {
            format!("since {}, until {}", clock(start, now), clock(end, now))
        }
        (StepState::Current, Some(start), None) => format!("since {}", clock(start, now)),
        (StepState::Current, None, Some(end)) => format!("until {}", clock(end, now)),
        (StepState::Ahead, Some(start), _) => when(start, now),
        (StepState::Current | StepState::Ahead, None, _) => String::new(),
    };
    [text.as_str(), person].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(", ")
}

fn sides(sides: &[Side]) -> Vec<Line> {
    let rows: Vec<_> = sides
        .iter()
        .map(|side| {
            let pods = format!("{}/{} ready", side.ready, side.replicas);
            let tone = if side.trouble.is_some() { Tone::Bad } else { Tone::Plain };
            vec![
                (Tone::Plain, side.role.to_owned()),
                (Tone::Plain, side.revision.clone()),
                (tone, pods),
                (Tone::Plain, side.weight.map_or_else(|| "?".to_owned(), |weight| format!("{weight} %"))),
                (Tone::Plain, side.images.join(", ")),
                (Tone::Bad, side.trouble.clone().unwrap_or_default()),
            ]
        })
        .collect();
    table(&["SIDE", "REVISION", "PODS", "TRAFFIC", "IMAGES", ""], &rows)
}

fn analyses(view: &View) -> Vec<Line> {
    let rows: Vec<_> = view
        .analyses
        .iter()
        .flat_map(|analysis| analysis.metrics.iter().map(move |metric| (analysis, metric)))
        .map(|(analysis, metric)| {
            let tone = verdict(metric.phase);
            let passed = match metric.count {
                Some(count) => format!("{}/{count}", metric.passed),
                None => metric.passed.to_string(),
            };
            vec![
                (Tone::Plain, analysis.stage.clone()),
                (Tone::Plain, metric.name.clone()),
                (tone, format!("{:?}", metric.phase)),
                (Tone::Plain, passed),
                (Tone::Plain, metric.failed.to_string()),
                (Tone::Plain, metric.inconclusive.to_string()),
                (Tone::Plain, metric.no_data.to_string()),
                (Tone::Plain, metric.errors.to_string()),
                (Tone::Plain, metric.value.clone().unwrap_or_default()),
                (Tone::Plain, metric.bound.clone()),
            ]
        })
        .collect();
    let titles =
        ["ANALYSIS", "METRIC", "PHASE", "PASSED", "FAILED", "INCONCLUSIVE", "NODATA", "ERRORS", "LAST", "GOOD"];
    table(&titles, &rows)
}

fn verdict(phase: AnalysisPhase) -> Tone {
    match phase {
        AnalysisPhase::Passed => Tone::Good,
        AnalysisPhase::Failed | AnalysisPhase::Unavailable => Tone::Bad,
        AnalysisPhase::Holding | AnalysisPhase::Inconclusive => Tone::Attention,
        AnalysisPhase::Pending | AnalysisPhase::Running | AnalysisPhase::Terminated => Tone::Plain,
    }
}

/// Which columns a table of Rollouts has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// With NAMESPACE.
    pub namespace: bool,
    /// With VERDICT, NEXT, RECORDED and MESSAGE.
    pub wide: bool,
}

/// Many Rollouts, a row each.
pub fn list(views: &[View], columns: Columns) -> Vec<Line> {
    let mut titles = Vec::new();
    if columns.namespace {
        titles.push("NAMESPACE");
    }
    titles.extend(["NAME", "STRATEGY", "PHASE", "STEP", "WEIGHT", "REVISION", "READY", "AGE"]);
    if columns.wide {
        titles.extend(["VERDICT", "NEXT", "RECORDED", "MESSAGE"]);
    }
    let rows: Vec<_> = views
        .iter()
        .map(|view| {
            let plain = |text: String| (Tone::Plain, text);
            let mut row = Vec::new();
            if columns.namespace {
                row.push(plain(view.namespace.clone()));
            }
            row.extend([
                plain(view.name.clone()),
                plain(view.strategy.clone()),
                (phase(view.phase), format!("{:?}", view.phase)),
                plain(step_label(view)),
                plain(view.position.weight.map(|weight| weight.to_string()).unwrap_or_default()),
                plain(view.what.revision.clone()),
                plain(view.condition("Ready").to_owned()),
                plain(view.created_at.map(|created| length(view.looked_at - created)).unwrap_or_default()),
            ]);
            if columns.wide {
                let worst = view.analyses.iter().map(|analysis| analysis.phase).max_by_key(|phase| badness(*phase));
                let next = view.next.as_ref().map(|next| match next.at {
                    Some(at) => format!("{} in {}", next.label, length(at - view.looked_at)),
                    None => next.label.clone(),
                });
                row.extend([
                    worst.map_or_else(|| plain(String::new()), |phase| (verdict(phase), format!("{phase:?}"))),
                    plain(next.unwrap_or_default()),
                    plain(view.condition("Recorded").to_owned()),
                    plain(view.message.clone()),
                ]);
            }
            row
        })
        .collect();
    table(&titles, &rows)
}

fn step_label(view: &View) -> String {
    match (view.position.step, view.position.steps) {
        (Some(step), Some(steps)) => format!("{step}/{steps}"),
        _ => String::new(),
    }
}

fn badness(phase: AnalysisPhase) -> u8 {
    match phase {
        AnalysisPhase::Terminated => 0,
        AnalysisPhase::Passed => 1,
        AnalysisPhase::Pending => 2,
        AnalysisPhase::Running => 3,
        AnalysisPhase::Holding => 4,
        AnalysisPhase::Inconclusive => 5,
        AnalysisPhase::Unavailable => 6,
        AnalysisPhase::Failed => 7,
    }
}

/// What makes two views of one Rollout the same line of an append-only log: everything but times and counts.
pub fn transition_key(view: &View) -> String {
    let position = &view.position;
    let waits_on = view.waiting.as_ref().map(|waiting| waiting.on.as_str()).filter(|on| *on != "Operator");
    format!(
        "{}/{} {} {:?} {:?} {:?} {:?} {:?} {waits_on:?}",
        view.namespace,
        view.name,
        view.what.revision,
        view.what.attempt,
        view.phase,
        position.state,
        position.step,
        position.weight
    )
}

/// One transition as one line.
pub fn transition(view: &View) -> Line {
    let mut parts = vec![format!("{:?}", view.phase)];
    let step = step_label(view);
    if !step.is_empty() {
        parts.push(format!("step {step}"));
    }
    parts.extend(view.position.weight.map(|weight| format!("{weight} %")));
    parts.push(format!("revision {}", view.what.revision));
    let why = view.waiting.as_ref().filter(|waiting| waiting.on != "Operator").map(|waiting| waiting.message.as_str());
    let why = why.unwrap_or(&view.message);
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    Line::plain(format!(
        "{} {}/{} {}{why}",
        view.looked_at.format("%Y-%m-%dT%H:%M:%SZ"),
        view.namespace,
        view.name,
        parts.join(", ")
    ))
}
