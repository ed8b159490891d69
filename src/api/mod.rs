//! The custom resources: their types, defaults, names and validation.
//!
//! This room is data. It reaches for no client, clock, file or process, so that every other room, the
//! command line and the tests can speak the same types.

mod analysis;
mod condition;
mod deploy_repo;
mod duration;
mod header_route;
mod intervention;
mod metric_provider;
pub mod names;
mod pod_count;
mod rollout;
mod route;
mod source_history;
mod status;
mod template;
pub mod weight;

pub use analysis::*;
pub use condition::*;
pub use deploy_repo::*;
pub use duration::Duration;
pub use header_route::*;
pub use intervention::*;
pub use metric_provider::*;
pub use pod_count::PodCount;
pub use rollout::*;
pub use route::*;
pub use source_history::{InvalidSourceHistory, SourceHistory};
pub use status::*;
pub use template::{PodTemplate, canonical_json};

/// The API group of every kind here.
pub const GROUP: &str = "sluice.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
