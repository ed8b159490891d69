//! When a watch has seen what it was asked to wait for.
//!
//! Pure. The revision is pinned at the start, and nothing is believed before the operator has seen the
//! generation that was current then: an older success is never reported, and a newer revision ends the watch.

use std::str::FromStr;

use super::facts::Facts;
use crate::api::{Phase, Release, ReleaseState, names};
use crate::cli::Exit;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The revision is the stable one.
    Promoted,
    /// The release waits for a person.
    Paused,
    /// The release was aborted, and no traffic is left on it.
    Aborted,
    /// The release has come to this step, from 1.
    Step(i32),
    /// The release is over, one way or the other.
    Finished,
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("\"{text}\" is none of promoted, paused, aborted, step=N (from 1), finished");
        match text {
            "promoted" => Ok(Self::Promoted),
            "paused" => Ok(Self::Paused),
            "aborted" => Ok(Self::Aborted),
            "finished" => Ok(Self::Finished),
            _ => {
                let number = text.strip_prefix("step=").and_then(|number| number.parse().ok());
                number.filter(|number| *number >= 1).map(Self::Step).ok_or_else(refuse)
            }
        }
    }
}

/// The end of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// How it ended.
    pub exit: Exit,
    /// In one sentence.
    pub message: String,
}

/// A watch with an end.
#[derive(Clone, Debug)]
pub struct Watchman {
    until: Until,
    fail_on_pause: bool,
    asked: Option<String>,
    uid: String,
    generation: i64,
    pinned: Option<Pinned>,
}

#[derive(Clone, Debug)]
struct Pinned {
    revision: String,
    /// What was stable when the watch began: a return to it is an abort by revert, anything else is newer.
    stable: Option<String>,
}

impl Watchman {
    /// Begins a watch. `asked` is a revision or a commit, or the start of one.
    pub fn new(until: Until, fail_on_pause: bool, asked: Option<String>, first: &Facts) -> Self {
        let identity = &first.rollout.identity;
        Self { until, fail_on_pause, asked, uid: identity.uid.clone(), generation: identity.generation, pinned: None }
    }

    /// The end, if these facts are it.
    pub fn judge(&mut self, facts: &Facts) -> Option<End> {
        let status = &facts.status;
        let identity = &facts.rollout.identity;
        if identity.uid != self.uid {
            return end(Exit::Error, "the Rollout was deleted and created again".to_owned());
        }
        if status.observed_generation.is_none_or(|observed| observed < self.generation) {
            return None;
        }
        if identity.deleting {
            return end(Exit::Failed, "the Rollout is being deleted".to_owned());
        }
        if status.phase == Phase::Stalled && facts.is_current() {
            return end(Exit::Failed, format!("stalled: {}", status.message));
        }
        let pinned = match &self.pinned {
            Some(pinned) => pinned.clone(),
            None => {
                let pinned = self.pin(facts)?;
                self.pinned.insert(pinned).clone()
            }
        };
        let release = status.release.as_ref().filter(|release| release.revision == pinned.revision);
        let denied = status.denied.iter().find(|denied| denied.revision == pinned.revision);
        let promoted = release.is_none() && status.stable_revision.as_ref() == Some(&pinned.revision);
        if let Some(release) = release.filter(|release| release.state == ReleaseState::Aborted) {
            return self.aborted(release, status.weight);
        }
        if promoted && (status.phase == Phase::Ready || status.revision != pinned.revision) {
            return match self.until {
                Until::Promoted | Until::Finished | Until::Step(_) => {
                    end(Exit::Reached, format!("revision {} is promoted", pinned.revision))
                }
                Until::Paused | Until::Aborted => {
                    end(Exit::Failed, format!("revision {} was promoted instead", pinned.revision))
                }
            };
        }
        if release.is_none() && !promoted {
            if let Some(denied) = denied {
                let exit = if self.until == Until::Aborted { Exit::Reached } else { Exit::Failed };
                return end(exit, format!("revision {} was aborted: {}", pinned.revision, denied.message));
            }
            if status.revision != pinned.revision {
                let reverted = Some(&status.revision) == pinned.stable.as_ref();
                return if !reverted {
                    end(Exit::Superseded, format!("revision {} took the place of {}", status.revision, pinned.revision))
                } else if self.until == Until::Aborted {
                    end(Exit::Reached, format!("revision {} was reverted", pinned.revision))
                } else {
                    end(Exit::Failed, format!("revision {} was reverted", pinned.revision))
                };
            }
        }
        let waits_for_person = status.phase == Phase::Paused;
        match self.until {
            Until::Step(step) => {
                let reached = release.is_some_and(|release| {
                    release.state == ReleaseState::Promoting || release.stage.saturating_add(1) >= step
                });
                if reached {
                    return end(Exit::Reached, format!("revision {} has come to step {step}", pinned.revision));
                }
            }
            Until::Paused if waits_for_person => {
                return end(Exit::Reached, format!("waiting for a person: {}", status.message));
            }
            _ => {}
        }
        if waits_for_person && self.fail_on_pause {
            return end(Exit::NeedsPerson, format!("waiting for a person: {}", status.message));
        }
        None
    }

    /// The revision that is watched; `None` while the one asked for has not been seen.
    fn pin(&self, facts: &Facts) -> Option<Pinned> {
        let status = &facts.status;
        let commit = facts.rollout.identity.annotations.get(names::SOURCE_COMMIT);
        let matches = |asked: &String| {
            status.revision.starts_with(asked.as_str())
                || (facts.is_current() && commit.is_some_and(|commit| commit.starts_with(asked.as_str())))
        };
        if self.asked.as_ref().is_some_and(|asked| !matches(asked)) || status.revision.is_empty() {
            return None;
        }
        Some(Pinned {
            revision: status.revision.clone(),
            stable: status.stable_revision.clone().filter(|stable| *stable != status.revision),
        })
    }

    fn aborted(&self, release: &Release, weight: Option<i32>) -> Option<End> {
        let why = release.abort.as_ref().map(|abort| abort.message.clone()).unwrap_or_default();
        let message = format!("revision {} was aborted: {why}", release.revision);
        match self.until {
            // Whoever waits for the abort wants the traffic gone; whoever waits for anything else has lost.
            Until::Aborted if weight.unwrap_or_default() > 0 => None,
            Until::Aborted => end(Exit::Reached, message),
            _ => end(Exit::Failed, message),
        }
    }

    /// What is watched, for the message of a time-out.
    pub fn watched(&self) -> String {
        match (&self.pinned, &self.asked) {
            (Some(pinned), _) => format!("revision {}", pinned.revision),
            (None, Some(asked)) => format!("revision {asked}, which was not seen"),
            (None, None) => format!("generation {}, which the operator has not seen", self.generation),
        }
    }
}

fn end(exit: Exit, message: String) -> Option<End> {
    Some(End { exit, message })
}
