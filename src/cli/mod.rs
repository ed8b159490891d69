//! What a person types: `sluice lint`, `sluice plan`, `sluice rehearse`, completion, and the kubectl plugin.
//!
//! Each command is a pure core (objects in, lines or a document out) and a thin shell that reads files or
//! asks the API server. What is shown of the future comes from `simulation`, which runs the engine itself, so
//! a person is never told anything the operator would not do. Nothing in here decides.

pub mod completion;
pub mod crds;
pub mod declarations;
pub mod exit;
pub mod fetch;
pub mod lint;
pub mod log;
pub mod plan;
pub mod probe;
pub mod rehearse;
pub mod replay;
pub mod rollout_status;
pub mod schema;
pub mod terminal;
pub mod verify;

pub use exit::Exit;
