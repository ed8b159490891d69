//! What a person can say to a release, and which Intervention says it.
//!
//! Pure. A word is bound to the revision, the attempt and (for approve and skip) the stage that the person saw,
//! so that it can never act on something else. Where there is nothing to say, nothing is written.

use super::facts::Facts;
use crate::api::{InterventionAction, InterventionSpec, Release, ReleaseState};
use crate::engine::{Turn, WaitOn};

/// A verb as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Past the present gate.
    Promote,
    /// Past all gates.
    PromoteFull,
    /// Traffic back to stable.
    Abort,
    /// No further step.
    Pause,
    /// The end of a pause.
    Resume,
    /// Once more.
    Retry,
    /// New pods of the same version.
    Restart,
}

impl Verb {
    /// As typed, without options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promote | Self::PromoteFull => "promote",
            Self::Abort => "abort",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
            Self::Restart => "restart",
        }
    }
}

/// What is to be written, but for actor and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The action.
    pub action: InterventionAction,
    /// The revision it is bound to.
    pub revision: String,
    /// The attempt it is bound to.
    pub attempt: Option<i32>,
    /// The stage it is bound to.
    pub stage: Option<i32>,
    /// What it will do, for the person.
    pub meaning: String,
}

impl Word {
    /// The Intervention's spec.
    pub fn spec(&self, rollout: &str, actor: &str, reason: &str) -> InterventionSpec {
        InterventionSpec {
            rollout: rollout.to_owned(),
            revision: self.revision.clone(),
            attempt: self.attempt,
            stage: self.stage,
            action: self.action,
            reason: reason.to_owned(),
            actor: actor.to_owned(),
        }
    }
}

/// There is nothing to say; the message tells why, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Nothing(pub String);

/// The word that `verb` means in this situation.
///
/// # Errors
/// When there is nothing to say.
pub fn word(verb: Verb, facts: &Facts) -> Result<Word, Nothing> {
    let status = &facts.status;
    let name = &facts.rollout.identity.name;
    match verb {
        Verb::Retry => return retry(facts),
        Verb::Restart => return restart(facts),
        _ => {}
    }
    let release = match &status.release {
        Some(release) if release.state == ReleaseState::Aborted => {
            return Err(Nothing(format!(
                "revision {} of {name} is aborted already; git revert makes it Ready again, retry tries it once more",
                release.revision
            )));
        }
        Some(release) => release,
        None => {
            return Err(Nothing(format!(
                "nothing of {name} is in flight; to go back to an older version, git revert the commit that changed it"
            )));
        }
    };
    let bound = |action, meaning: String| Word {
        action,
        revision: release.revision.clone(),
        attempt: Some(release.attempt),
        stage: matches!(action, InterventionAction::Approve | InterventionAction::Skip).then_some(release.stage),
        meaning,
    };
    match verb {
        Verb::Retry => retry(facts),
        Verb::Restart => restart(facts),
        Verb::Abort => Ok(bound(InterventionAction::Abort, "traffic goes back to the stable version".to_owned())),
        Verb::Pause => match &status.paused_by {
            Some(paused) => Err(Nothing(format!("{name} is paused already, by {}", paused.actor))),
            None => Ok(bound(InterventionAction::Pause, "no further step is taken until resume".to_owned())),
        },
        Verb::Resume => match &status.paused_by {
            Some(_) => Ok(bound(InterventionAction::Resume, "the steps go on".to_owned())),
            None => Err(Nothing(format!(
                "{name} is not paused by a person{}",
                if status.phase == crate::api::Phase::Paused { "; promote passes the step it waits at" } else { "" }
            ))),
        },
        Verb::PromoteFull if release.promote_full || release.state == ReleaseState::Promoting => {
            Err(Nothing(format!("{name} is on its way to full weight already")))
        }
        Verb::PromoteFull => Ok(bound(
            InterventionAction::Promote,
            "the new version takes everything as fast as its pods are ready, past all remaining steps".to_owned(),
        )),
        Verb::Promote => promote(facts, release, bound),
    }
}

fn promote(
    facts: &Facts,
    release: &Release,
    bound: impl Fn(InterventionAction, String) -> Word,
) -> Result<Word, Nothing> {
    let status = &facts.status;
    let name = &facts.rollout.identity.name;
    let step = release.stage.saturating_add(1);
    if let Some(paused) = &status.paused_by {
        return Err(Nothing(format!("{name} is paused by {}; resume it first", paused.actor)));
    }
    if release.state == ReleaseState::Promoting {
        return Err(Nothing(format!("{name} is past all its steps already")));
    }
    if facts.rollout.spec.as_ref().is_ok_and(|spec| spec.paused) {
        return Err(Nothing(format!("{name} has spec.paused: true in its declaration; change that in git")));
    }
    let approve = || bound(InterventionAction::Approve, format!("one approval of step {step}"));
    // It has reached the pause and said so. What it does at this moment (a weight that somebody edited is being put
    // back) does not make the approval void.
    if status.phase == crate::api::Phase::Paused {
        return Ok(approve());
    }
    let Some(turn) = &facts.turn else {
        return Err(Nothing(format!("cannot tell what {name} waits for: {}", gaps(facts))));
    };
    match turn {
        Turn::Wait(wait) => match wait.on {
            WaitOn::Person => Ok(approve()),
            WaitOn::Pause => {
                Ok(bound(InterventionAction::Skip, format!("the rest of the pause in step {step} is skipped")))
            }
            WaitOn::Analysis | WaitOn::Metrics => {
                Ok(bound(InterventionAction::Skip, format!("step {step} does not wait for its analysis any longer")))
            }
            _ => Err(Nothing(format!("{name} waits for nothing a person can give: {}", wait.message))),
        },
        Turn::Apply(_) | Turn::Advance(_) => Err(Nothing(format!("{name} does not wait at the moment; look again"))),
    }
}

fn gaps(facts: &Facts) -> String {
    let gaps: Vec<String> =
        facts.gaps.iter().map(|gap| format!("{} could not be read ({})", gap.kind.name(), gap.why)).collect();
    if gaps.is_empty() { facts.status.message.clone() } else { gaps.join(", ") }
}

fn retry(facts: &Facts) -> Result<Word, Nothing> {
    let status = &facts.status;
    let name = &facts.rollout.identity.name;
    let aborted = status.release.as_ref().filter(|release| release.state == ReleaseState::Aborted);
    let denied = status.denied.iter().find(|denied| denied.revision == status.revision);
    let (revision, attempt) = match (aborted, denied) {
        (Some(release), _) if release.revision == status.revision => (&release.revision, Some(release.attempt)),
        (_, Some(denied)) => (&denied.revision, None),
        _ => return Err(Nothing(format!("what git asks for in {name} was not aborted; there is nothing to retry"))),
    };
    Ok(Word {
        action: InterventionAction::Retry,
        revision: revision.clone(),
        attempt,
        stage: None,
        meaning: format!("revision {revision} is tried again from the first step"),
    })
}

fn restart(facts: &Facts) -> Result<Word, Nothing> {
    let status = &facts.status;
    if status.stable_revision.is_none() || status.revision.is_empty() {
        let name = &facts.rollout.identity.name;
        return Err(Nothing(format!("the first version of {name} is coming up: its pods are new")));
    }
    Ok(Word {
        action: InterventionAction::Restart,
        revision: status.revision.clone(),
        attempt: None,
        stage: None,
        meaning: "all pods are replaced by new ones of the same version, and none is missing meanwhile".to_owned(),
    })
}
