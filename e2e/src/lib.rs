//! The parts of the cluster harness, and the stories that run on it.

pub mod traffic;

/// Installs the one cryptography provider. Calling it again does nothing.
pub fn crypto() {
    // It only fails when there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
