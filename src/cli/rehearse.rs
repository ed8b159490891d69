//! `sluice rehearse`: a run of a Rollout in the simulated world, with faults on request and a real log.

use std::path::PathBuf;

use super::plan::Output;
use crate::api::Duration;

/// What `sluice rehearse` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// A file with manifests, a directory of them, or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub filename: PathBuf,
    /// Let the metrics turn bad at this step (counted from 1, as shown)
    #[arg(long, value_name = "STEP")]
    pub fail_at: Option<u16>,
    /// Let each pod take this long to become ready
    #[arg(long, value_name = "DURATION")]
    pub slow_pods: Option<Duration>,
    /// Let the metrics go silent at this step (counted from 1, as shown)
    #[arg(long, value_name = "STEP")]
    pub no_data_at: Option<u16>,
    /// Keep the repository with the log branch in this directory; it must be empty or not exist
    #[arg(long, value_name = "DIR")]
    pub ledger: Option<PathBuf>,
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_enum, default_value_t)]
    pub output: Output,
}
