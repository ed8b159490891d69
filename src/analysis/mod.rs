//! Judging samples: thresholds, conditions and what is neither good nor bad.
//!
//! Pure; may use `api`. Collecting the samples is the analysis controller's work, through `metrics`.
