//! The decisions, pure: what is wanted next, and the one safe effect on the way to it.
//!
//! Three functions: `plan` compiles a strategy to stages, `converge` is the
//! only code that moves pods or traffic, `decide` chooses what one turn does
//! (`recover`, `restart` and `workload` are parts of it). This room sees a
//! [`Snapshot`] and a time and returns data. It may not reach for a client, a runtime, a process, a clock or a
//! file: everything that matters about safety can be tested without a cluster.

pub mod converge;
pub mod decide;
mod model;
pub mod plan;
mod recover;
mod restart;
mod workload;

pub use model::*;
