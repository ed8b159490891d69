//! How clients are made.

use std::time::Duration;

use kube::{Client, Config};

/// A client without retries of its own: one call of the library's default can outlive our lease, and a
/// repeated POST is ours to recognise. No client-side rate limit: the server has its own fairness.
///
/// # Errors
/// When no kubeconfig and no service account is found, or the certificates cannot be read.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(3));
    config.write_timeout = Some(Duration::from_secs(5));
    Client::try_from(config)
}
