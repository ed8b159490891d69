//! Taking a cluster down, from whatever state it is in: what the harness started, what those started, mounts,
//! network, control groups, files. Works from the layout alone, so it also cleans up after a harness that crashed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::component::{self, alive};
use crate::cluster::layout::Layout;
use crate::command::run;

const GONE: Duration = Duration::from_secs(20);

/// Ends every process of the cluster and removes every trace of it.
pub fn clean(layout: &Layout) -> Result<()> {
    // The kubelet first: it would start again what is ended after it.
    end(&recorded(layout, Some("kubelet")))?;
    // Pods run in network namespaces of their own, but in the cluster's control group; shims outlive containerd.
    end(&in_control_group(layout))?;
    end(&in_namespace(layout))?;
    end(&recorded(layout, None))?;
    // A pod that was being made while its shim was ended.
    end(&in_control_group(layout))?;
    unmount(&layout.dir())?;
    network(layout)?;
    control_groups(layout)?;
    if layout.dir().exists() {
        fs::remove_dir_all(layout.dir()).with_context(|| format!("cannot remove {}", layout.dir().display()))?;
    }
    Ok(())
}

/// Processes whose pid file is in the cluster's folder.
fn recorded(layout: &Layout, only: Option<&str>) -> BTreeSet<i32> {
    let folder = layout.dir().join("pids");
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| only.is_none_or(|only| path.file_name().is_some_and(|name| name == only)))
        .filter_map(|path| component::recorded(&path))
        .map(Pid::as_raw_pid)
        .collect()
}

fn in_namespace(layout: &Layout) -> BTreeSet<i32> {
    if !layout.namespace_file().exists() {
        return BTreeSet::new();
    }
    let listed = run("ip", ["netns", "pids", &layout.namespace()]).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The cluster's control group in each hierarchy (version 1), or in the one there is (version 2).
fn groups(layout: &Layout) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let name = layout.control_group();
    let name = name.trim_start_matches('/');
    let mut found = vec![root.join(name)];
    if let Ok(entries) = fs::read_dir(root) {
        found.extend(entries.filter_map(|entry| entry.ok()).map(|entry| entry.path().join(name)));
    }
    found.retain(|path| path.is_dir());
    found
}

fn below(folder: &Path, into: &mut Vec<PathBuf>) {
    if let Ok(entries) = fs::read_dir(folder) {
        for path in entries.filter_map(|entry| entry.ok()).map(|entry| entry.path()).filter(|path| path.is_dir()) {
            below(&path, into);
        }
    }
    into.push(folder.to_owned());
}

fn in_control_group(layout: &Layout) -> BTreeSet<i32> {
    let mut folders = Vec::new();
    for group in groups(layout) {
        below(&group, &mut folders);
    }
    folders
        .iter()
        .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

fn end(pids: &BTreeSet<i32>) -> Result<()> {
    let own = rustix::process::getpid();
    let pids: Vec<Pid> = pids.iter().filter_map(|pid| Pid::from_raw(*pid)).filter(|pid| *pid != own).collect();
    for pid in &pids {
        // It may have ended by itself meanwhile.
        let _ = kill_process(*pid, Signal::KILL);
    }
    let begun = Instant::now();
    while let Some(pid) = pids.iter().find(|pid| alive(**pid)) {
        if begun.elapsed() > GONE {
            bail!("process {} does not end", pid.as_raw_nonzero());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn unmount(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("mounts")?;
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    points.reverse();
    for point in points {
        run("umount", ["--lazy", point])?;
    }
    Ok(())
}

fn network(layout: &Layout) -> Result<()> {
    let interface = layout.outer_interface();
    if Path::new("/sys/class/net").join(&interface).exists() {
        // Goes away with the namespace too, but not at once.
        let _ = run("ip", ["link", "delete", &interface]);
    }
    if layout.namespace_file().exists() {
        run("ip", ["netns", "delete", &layout.namespace()])?;
    }
    Ok(())
}

fn control_groups(layout: &Layout) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut folders = Vec::new();
        for group in groups(layout) {
            below(&group, &mut folders);
        }
        // Deepest first. The kernel lets go of a group a moment after its last process.
        folders.retain(|folder| fs::remove_dir(folder).is_err() && folder.exists());
        match folders.first() {
            None => return Ok(()),
            Some(folder) if begun.elapsed() > GONE => bail!("cannot remove the control group {}", folder.display()),
            Some(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
