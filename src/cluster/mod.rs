//! The only room with a Kubernetes client: watches, projections, writes, the lease and events.
//!
//! Data flows one way: [`watch`] feeds the [`index`], [`observe`] makes a snapshot of it, and [`mod@write`] carries
//! out one effect with a precondition and feeds the answer back. Nothing in here decides.

pub mod apply;
pub mod client;
pub mod discovery;
pub mod effects;
pub mod events;
pub mod index;
pub mod kinds;
pub mod lease;
pub mod objects;
pub mod observe;
pub mod watch;
pub mod write;
