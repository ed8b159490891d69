//! The engine at work in the simulated world.

use chrono::{DateTime, TimeDelta, Utc};

use super::world::World;
use crate::engine::decide::decide;
use crate::engine::{Effect, Turn, Wait, WaitOn};

/// What one turn in the world came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Happened {
    /// An effect was performed.
    Performed(Effect),
    /// The status was written, with so many new transitions.
    Written(usize),
    /// Nothing is to be done before something else happens.
    Waits(Wait),
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It waits for something that does not come by itself.
    Waits(Wait),
    /// The time was over.
    Time(Wait),
    /// It took more turns than any run may.
    Turns,
}

impl World {
    /// One turn of the engine at the present time.
    pub fn turn(&mut self) -> Happened {
        match decide(&self.snapshot(), self.now) {
            Turn::Apply(effect) => match self.perform(&effect) {
                Ok(()) => Happened::Performed(effect),
                Err(conflict) => Happened::Waits(gone(conflict.to_string())),
            },
            Turn::Advance(status) => {
                let before = self.recorded.len();
                match self.write_status(*status) {
                    Ok(()) => Happened::Written(self.recorded.len().saturating_sub(before)),
                    Err(conflict) => Happened::Waits(gone(conflict.to_string())),
                }
            }
            Turn::Wait(wait) => Happened::Waits(wait),
        }
    }

    /// When something can be different for one who waits so: its own time, or what happens before.
    pub fn wakes_at(&self, wait: &Wait) -> Option<DateTime<Utc>> {
        let own = wait.until.filter(|until| *until > self.now);
        [own, self.next_event()].into_iter().flatten().min()
    }

    /// Turns until everything waits for what does not come by itself, for `length` at the most.
    pub fn run(&mut self, length: TimeDelta) -> Ended {
        let end = self.now + length;
        for _ in 0..TURNS {
            let Happened::Waits(wait) = self.turn() else { continue };
            match self.wakes_at(&wait) {
                None => return Ended::Waits(wait),
                Some(at) if at > end => {
                    self.advance_to(end);
                    return Ended::Time(wait);
                }
                Some(at) => self.advance_to(at),
            }
        }
        Ended::Turns
    }
}

/// No run of one Rollout needs more turns: a hundred steps with their waits are a few thousand.
pub(super) const TURNS: usize = 20_000;

fn gone(message: String) -> Wait {
    Wait { until: None, on: WaitOn::Spec, message }
}
