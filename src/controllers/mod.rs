//! The loops. Each is *observe, decide, act*, and short.

pub mod analysis;
pub mod credentials;
pub mod deploy_repo;
pub mod ledger;
pub mod manifests;
pub mod operator;
pub mod plan_text;
pub mod projections;
pub mod queue;
pub mod rollout;
pub mod sync_plan;
pub mod write_back;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::cluster::objects::Key;
use crate::engine::LedgerState;

/// What the rollout loop needs of the ledger. It never waits for the ledger: it reads what is known, and says
/// that there is something to record.
pub trait LedgerView: Send + Sync + 'static {
    /// What the ledger says of a Rollout, as last read.
    fn state(&self, rollout: &Key) -> LedgerState;
    /// A Rollout has transitions in its `status.pendingLog`; `urgent` ones (Aborted, Promoted) go out at once.
    fn notify(&self, rollout: &Key, urgent: bool);
}

/// How the operator is started.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// The cluster's name: the record goes to the branch `rollout-log/<name>`.
    #[arg(long, env = "SLUICE_CLUSTER_NAME", default_value = "default")]
    pub cluster_name: String,
    /// The operator's own namespace: its lease lives there, and DeployRepos there may manage other namespaces.
    #[arg(long, env = "POD_NAMESPACE", default_value = "sluice-system")]
    pub namespace: String,
    /// This process's name in the lease.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// Watch these namespaces only (comma-separated); all when absent.
    #[arg(long, env = "SLUICE_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Hand back what every Rollout steers, and end: before the operator is uninstalled. The Deployment of this name is
    /// scaled to 0 first, so that nobody else leads.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub hand_back: Option<String>,
    /// Rollouts worked on at the same time.
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    /// Where git repositories are cached.
    #[arg(long, env = "SLUICE_CACHE_DIR", default_value = "/var/cache/sluice")]
    pub cache_dir: PathBuf,
    /// Where metrics are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub metrics_address: SocketAddr,
    /// Where health is served.
    #[arg(long, default_value = "0.0.0.0:8081")]
    pub probe_address: SocketAddr,
    /// Where webhooks are received.
    #[arg(long, default_value = "0.0.0.0:9292")]
    pub webhook_address: SocketAddr,
}
