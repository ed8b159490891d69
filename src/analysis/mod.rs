//! Judging samples: thresholds, conditions and what is neither good nor bad.
//!
//! Pure; may use `api`, what `metrics` answers, and the engine's view of a run. Collecting the samples is the
//! analysis controller's work, through `metrics`.

pub mod arguments;
pub mod condition;
pub mod judge;
pub mod replay;
pub mod resolve;
