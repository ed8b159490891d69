//! The harness: it builds the tools of a real cluster from package registries, boots clusters, breaks their
//! components on request, and runs stories on them.
//!
//! It knows the operator only from outside: its image, its chart, its custom resources, its plugin.

mod authority;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod forge;
pub mod git_server;
pub mod images;
pub mod progress;
pub mod soak;
pub mod stories;
pub mod tools;
pub mod traffic;
pub mod wait;
pub mod work_tree;
pub mod world;

/// Installs the one cryptography provider. Calling it again does nothing.
pub fn crypto() {
    // It only fails when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
