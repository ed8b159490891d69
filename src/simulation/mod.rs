//! The simulated world and its virtual clock: forecast, rehearsal and the property tests.
//!
//! It runs the engine itself, so that what it foretells cannot differ from what the engine does. It may use
//! `api` and `engine`, and nothing else.

mod clock;
mod forecast;
mod objects;
mod rehearsal;
mod run;
mod world;

pub use forecast::{StageState, Timeline, TimelineStage, forecast};
pub use objects::{
    AfterHold, AnalysisRun, Answer, Conflict, Knobs, Pod, ReplicaSet, Route, Script, Service, Versions, Workload,
    Write, Written,
};
pub use rehearsal::{Rehearsal, RehearsalEntry, Scenario, rehearse, rehearse_with};
pub use run::{Ended, Happened};
pub use world::World;

#[cfg(test)]
mod tests;
