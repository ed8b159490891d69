//! Where one cluster lives on the machine: its slot, its folder, its network namespace, its addresses.
//!
//! Every cluster has a network namespace of its own. Fixed ports, bridge, packet filter rules and routes are inside
//! it: several clusters stand side by side, the machine's own network is not touched, and whatever a cluster leaves
//! behind ends with the namespace. A pair of virtual interfaces joins it to the machine.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::run;

/// At most this many clusters at once on one machine.
const SLOTS: u8 = 16;

/// One of the places on this machine where a cluster can be.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    /// Held for as long as the cluster has an owner. A slot that nobody holds is free, or was left behind.
    _lock: File,
}

/// The addresses, names and paths of the cluster in a slot.
#[derive(Debug, Clone)]
pub struct Layout {
    number: u8,
}

fn root() -> PathBuf {
    std::env::temp_dir().join("sluice-e2e")
}

impl Slot {
    /// Takes the first slot that is free. One that was left behind by a harness that ended without cleaning up is
    /// cleaned first; one that was kept on purpose is passed over.
    pub fn take() -> Result<Self> {
        fs::create_dir_all(root()).with_context(|| format!("cannot make {}", root().display()))?;
        for number in 0..SLOTS {
            let layout = Layout { number };
            let Some(slot) = Self::lock(number)? else { continue };
            if layout.kept().exists() || layout.foreign() {
                continue;
            }
            if layout.dir().exists() || layout.namespace_file().exists() {
                crate::progress::line(format_args!(
                    "cleaning up what an earlier run left in {}",
                    layout.dir().display()
                ));
                super::teardown::clean(&layout)?;
            }
            fs::create_dir_all(layout.dir())?;
            return Ok(slot);
        }
        bail!("all {SLOTS} places for clusters are taken: `make demo-down` ends those that were kept")
    }

    /// Every slot that has a cluster and no owner: kept, or left behind.
    pub fn ownerless() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for number in 0..SLOTS {
            let layout = Layout { number };
            if (layout.dir().exists() || layout.namespace_file().exists())
                && let Some(slot) = Self::lock(number)?
            {
                found.push(slot);
            }
        }
        Ok(found)
    }

    fn lock(number: u8) -> Result<Option<Self>> {
        if !root().exists() {
            return Ok(None);
        }
        let path = root().join(format!("{number}.lock"));
        let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(lock.try_lock().is_ok().then_some(Self { number, _lock: lock }))
    }

    /// What is where.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout { number: self.number }
    }
}

impl Layout {
    /// The cluster's number on this machine.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Everything the cluster writes is below this folder. Short, because sockets' paths must be.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        root().join(self.number.to_string())
    }

    /// Says that the cluster outlives its harness.
    #[must_use]
    pub fn kept(&self) -> PathBuf {
        self.dir().join("kept")
    }

    /// The network namespace's name.
    #[must_use]
    pub fn namespace(&self) -> String {
        format!("sluice-e2e-{}", self.number)
    }

    /// The file that holds the network namespace.
    #[must_use]
    pub fn namespace_file(&self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace())
    }

    /// The machine's end of the pair of interfaces.
    #[must_use]
    pub fn outer_interface(&self) -> String {
        format!("sluice{}", self.number)
    }

    /// The control group of all pods, as the kubelet names it.
    #[must_use]
    pub fn control_group(&self) -> String {
        format!("/sluice-e2e-{}", self.number)
    }

    /// The node's address: the API server, Prometheus and the Gateway answer here.
    #[must_use]
    pub fn node_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, self.number, 1)
    }

    /// The machine's address as the cluster sees it: the git server answers here.
    #[must_use]
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, self.number, 2)
    }

    /// The addresses of pods.
    #[must_use]
    pub fn pods(&self) -> String {
        format!("10.201.{}.0/24", self.number)
    }

    /// The addresses of Services.
    #[must_use]
    pub fn services(&self) -> String {
        format!("10.202.{}.0/24", self.number)
    }

    /// The first Service's address, which is the API server's.
    #[must_use]
    pub fn api_service(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 202, self.number, 1)
    }

    /// Whether this machine already uses one of the networks for something else.
    fn foreign(&self) -> bool {
        let networks = [200_u8, 201, 202].map(|second| format!("10.{second}.{}.", self.number));
        let own = format!("dev {}", self.outer_interface());
        run("ip", ["-4", "route", "show", "table", "all"]).is_ok_and(|routes| {
            routes.lines().any(|route| networks.iter().any(|network| route.contains(network)) && !route.contains(&own))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_clusters_share_an_address_or_a_name() {
        let (one, two) = (Layout { number: 0 }, Layout { number: 1 });
        assert_ne!(one.node_address(), two.node_address());
        assert_ne!(one.pods(), two.pods());
        assert_ne!(one.services(), two.services());
        assert_ne!(one.dir(), two.dir());
        assert_ne!(one.namespace(), two.namespace());
        assert_ne!(one.control_group(), two.control_group());
        // The kernel cuts an interface's name at 15 characters.
        assert!(Layout { number: SLOTS - 1 }.outer_interface().len() <= 15);
    }
}
