//! The rest of a Rollout's way in words: `<namespace>/<rollout>/plan.md` in the ledger. What it says is the
//! engine's own forecast; here it is only written down.

use std::fmt::Write;

use chrono::{DateTime, Utc};

use crate::api::{ReleaseState, RolloutStatus};
use crate::cluster::index::Index;
use crate::cluster::objects::RolloutObject;
use crate::cluster::observe::observe;
use crate::engine::LedgerState;
use crate::simulation::{StageState, Timeline, forecast};

/// The plan of a Rollout as last seen.
pub fn of(index: &Index, rollout: &RolloutObject, ledger: LedgerState, now: DateTime<Utc>) -> String {
    let key = rollout.identity.key();
    let epoch = rollout.status.as_ref().map_or(0, |status| status.epoch);
    match observe(index, rollout, ledger, epoch) {
        Ok(snapshot) => text(&key.to_string(), &snapshot.status, &forecast(&snapshot, now)),
        Err(trouble) => format!("# What comes next for {key}\n\nNothing before the spec is mended: {trouble}\n"),
    }
}

/// The plan of a Rollout, given its status and the forecast.
pub fn text(rollout: &str, status: &RolloutStatus, timeline: &Timeline) -> String {
    let time = |at: Option<DateTime<Utc>>| at.map(|at| at.format("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default();
    let mut out = format!("# What comes next for {rollout}\n\n");
    let stable = status.stable_revision.as_deref().unwrap_or("nothing");
    let Some(release) = &status.release else {
        let _ = writeln!(out, "Nothing is in flight: `{stable}` serves.");
        return out;
    };
    let _ = writeln!(out, "Release `{}.{}`; `{stable}` is stable.\n", release.revision, release.attempt);
    if release.state == ReleaseState::Aborted {
        let _ = writeln!(out, "It was aborted: `{stable}` serves. It is not tried again without a person's word.");
        return out;
    }
    if let Some(wait) = &timeline.blocked_on {
        let _ = writeln!(out, "It waits for something that does not come by itself: {}\n", cell(&wait.message));
    }
    if !timeline.stages.is_empty() {
        out.push_str(
            "| Stage | What | Weight | Goes on when | Begins (UTC) | Done (UTC) | |\n|---|---|---|---|---|---|---|\n",
        );
    }
    for stage in &timeline.stages {
        let place = match stage.state {
            StageState::Done => "done",
            StageState::Current => "now",
            StageState::Ahead if stage.needs_person => "needs a person",
            StageState::Ahead => "",
        };
        let _ = writeln!(
            out,
            "| {}/{} | {} | {}% | {} | {} | {} | {place} |",
            stage.stage.saturating_add(1),
            stage.stages,
            cell(&stage.label),
            stage.weight,
            cell(&stage.gate),
            time(stage.starts_at),
            time(stage.ends_at),
        );
    }
    if timeline.ends_at.is_some() {
        let _ = writeln!(out, "\nIf all goes well, `{}` is stable at {}.", release.revision, time(timeline.ends_at));
    }
    out
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Release;
    use crate::simulation::TimelineStage;

    #[test]
    fn the_way_is_a_table_with_times() {
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0);
        let stage = |stage, weight, state, starts: i64| TimelineStage {
            stage,
            stages: 2,
            label: format!("weight | {weight}"),
            weight,
            gate: "2m".into(),
            state,
            starts_at: at(starts),
            ends_at: at(starts + 120),
            needs_person: stage == 1,
        };
        let timeline = Timeline {
            now: at(0).unwrap(),
            stages: vec![stage(0, 20, StageState::Current, 0), stage(1, 100, StageState::Ahead, 120)],
            ends_at: at(300),
            blocked_on: None,
        };
        let mut status = RolloutStatus { stable_revision: Some("old".into()), ..RolloutStatus::default() };
        assert!(text("shop/web", &status, &timeline).contains("Nothing is in flight: `old` serves."));
        let release =
            Release { revision: "new".into(), attempt: 1, state: ReleaseState::Stepping, ..Release::default() };
        status.release = Some(release.clone());
        let written = text("shop/web", &status, &timeline);
        let now = "| 1/2 | weight \\| 20 | 20% | 2m | 2027-01-15 08:00:00 | 2027-01-15 08:02:00 | now |";
        let ahead = "| 2/2 | weight \\| 100 | 100% | 2m | 2027-01-15 08:02:00 | 2027-01-15 08:04:00 | needs a person |";
        assert!(written.contains(&format!("{now}\n{ahead}\n")), "{written}");
        assert!(written.ends_with("If all goes well, `new` is stable at 2027-01-15 08:05:00.\n"), "{written}");
        status.release = Some(Release { state: ReleaseState::Aborted, ..release });
        assert!(text("shop/web", &status, &timeline).contains("It was aborted: `old` serves."));
    }
}
