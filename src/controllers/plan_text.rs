//! The rest of a Rollout's way in words: `plan/<namespace>/<rollout>.md` in the ledger.

use std::fmt::Write;

use chrono::{DateTime, Utc};

use crate::api::{ReleaseState, RolloutSpec, RolloutStatus};
use crate::cluster::index::Index;
use crate::cluster::objects::RolloutObject;
use crate::engine::plan::plan;

/// The plan of a Rollout as last seen.
pub fn of(_index: &Index, rollout: &RolloutObject, now: DateTime<Utc>) -> String {
    let key = rollout.identity.key();
    let status = rollout.status.clone().unwrap_or_default();
    match &rollout.spec {
        Ok(spec) => text(&key.to_string(), spec, &status, now),
        Err(trouble) => format!("# What comes next for {key}\n\nNothing before the spec is mended: {trouble}\n"),
    }
}

fn text(rollout: &str, spec: &RolloutSpec, status: &RolloutStatus, now: DateTime<Utc>) -> String {
    let mut out = format!("# What comes next for {rollout}\n\nAs of {}.\n\n", now.format("%Y-%m-%d %H:%M:%S UTC"));
    let stable = status.stable_revision.as_deref().unwrap_or("nothing");
    let Some(release) = &status.release else {
        let _ = writeln!(out, "Nothing is in flight: `{stable}` serves.");
        return out;
    };
    let _ = writeln!(out, "Release `{}.{}`; `{stable}` is stable.\n", release.revision, release.attempt);
    match release.state {
        ReleaseState::Aborted => {
            out.push_str("It was aborted: traffic goes back to stable, and nothing more happens before a person's word.\n");
            return out;
        }
        ReleaseState::FirstDeploy => {
            out.push_str("It is the first version: it goes to full size and is stable when it is ready.\n");
            return out;
        }
        ReleaseState::Stepping | ReleaseState::Promoting => {}
    }
    let Ok(plan) = plan(spec) else {
        let _ = writeln!(out, "Nothing before the spec is mended.");
        return out;
    };
    out.push_str("| Stage | What | Weight | Goes on when | |\n|---|---|---|---|---|\n");
    let present = if release.state == ReleaseState::Promoting { plan.len() } else { release.stage };
    for (number, stage) in (0..).zip(&plan.stages) {
        let place = match number.cmp(&present) {
            std::cmp::Ordering::Less => "done",
            std::cmp::Ordering::Equal => "now",
            std::cmp::Ordering::Greater => "",
        };
        let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
        let _ = writeln!(
            out,
            "| {}/{} | {} | {}% | {} | {place} |",
            number + 1,
            plan.len(),
            cell(&stage.label),
            stage.weight,
            cell(&stage.gate.label()),
        );
    }
    let _ = writeln!(out, "\nThen `{}` is stable.", release.revision);
    out
}
