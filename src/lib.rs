//! Sluice: progressive delivery for Kubernetes that git can audit.
//!
//! The rooms and what each may reach are in ARCHITECTURE.md; `tests/architecture.rs` holds them to it.
pub mod analysis;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod controllers;
pub mod egress;
pub mod engine;
pub mod forge;
pub mod git;
pub mod http;
pub mod metrics;
pub mod projections;
pub mod simulation;
pub mod telemetry;
pub mod traffic;
