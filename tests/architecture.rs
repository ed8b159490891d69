//! The rooms of ARCHITECTURE.md, and what each of them may reach. Read from the source, so that the picture stays
//! true.
//!
//! Only what ships is read: tests may use what they like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use Reach::{Arguments, Backoff, Client, Clock, Environment, Files, Http, Process, Runtime, Server, Sockets, Types};

/// What code can reach outside of its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// Kubernetes' types and derives, without a client.
    Types,
    /// A Kubernetes client.
    Client,
    /// Other programs.
    Process,
    /// Foreign HTTP servers.
    Http,
    /// Callers of our own HTTP servers.
    Server,
    /// Network sockets.
    Sockets,
    /// An asynchronous runtime.
    Runtime,
    /// What time it is.
    Clock,
    /// Files.
    Files,
    /// Variables of the environment.
    Environment,
    /// The command line.
    Arguments,
    /// The `backoff` crate, which is unmaintained and is to stay replaceable.
    Backoff,
}

/// A room, the rooms it may use, and what else it may reach.
type Room = (&'static str, &'static [&'static str], &'static [Reach]);

#[rustfmt::skip]
const ROOMS: &[Room] = &[
    // Pure: data in, data out.
    ("api",         &[],                                                                  &[Types]),
    ("engine",      &["api"],                                                             &[]),
    ("simulation",  &["api", "engine"],                                                   &[]),
    ("analysis",    &["api", "engine", "metrics"],                                        &[]),
    ("traffic",     &["api", "engine"],                                                   &[]),
    // The outside world, one room for each part of it.
    ("egress",      &[],                                                                  &[Http, Sockets, Runtime]),
    ("metrics",     &["api", "egress"],                                                   &[Http, Runtime, Clock]),
    ("forge",       &["api", "egress"],                                                   &[Http, Runtime, Clock]),
    ("cluster",     &["analysis", "api", "engine", "telemetry", "traffic"],               &[Types, Client, Runtime, Clock]),
    ("git",         &["api"],                                                             &[Process, Runtime, Clock, Files]),
    ("http",        &["api", "telemetry"],                                                &[Server, Sockets, Runtime, Clock]),
    ("telemetry",   &["api"],                                                             &[Runtime, Clock]),
    ("projections", &["api", "egress", "forge", "git"],                                  &[Http]),
    // What brings them together.
    ("controllers", &["analysis", "api", "cluster", "engine", "forge", "git", "http", "metrics", "projections", "simulation", "telemetry", "traffic"],
                                                                                          &[Types, Runtime, Clock]),
    ("cli",         &["analysis", "api", "cluster", "controllers", "engine", "git", "simulation"],
                                                                                          &[Types, Runtime, Clock, Files, Arguments]),
];

/// Single files that may reach further than their room, and why.
#[rustfmt::skip]
const EXCEPTIONS: &[(&str, &[Reach], &str)] = &[
    ("controllers/operator.rs", &[Client, Sockets], "makes clients and listeners once, and hands them to their rooms"),
    ("controllers/mod.rs",      &[Arguments],   "how the operator is started"),
    ("controllers/queue.rs",    &[Backoff],     "the one place that waits longer after each failure"),
    ("git/command.rs",          &[Environment], "git inherits the few variables that are named there, and no others"),
    ("cli/fetch.rs",            &[Client],      "the plugin asks with the rights of the person who typed"),
    ("cli/probe.rs",            &[Sockets],     "asks one address, in an image without any other client"),
    ("cli/terminal.rs",         &[Environment], "whether colour is wanted"),
];

/// How a reach shows in the source. The longest match counts; some are harmless.
#[rustfmt::skip]
const SIGNS: &[(&str, Option<Reach>)] = &[
    ("kube::", Some(Client)), ("k8s_openapi::", Some(Types)),
    ("kube::core::", Some(Types)), ("kube::CustomResource", Some(Types)), ("kube::CustomResourceExt", Some(Types)),
    ("kube::{CustomResource, KubeSchema}", Some(Types)), ("kube::KubeSchema", Some(Types)),
    ("kube::runtime::watcher", Some(Types)),
    ("kube::ResourceExt", Some(Types)), ("kube::Resource", Some(Types)), ("kube::api::ObjectMeta", Some(Types)),
    ("std::process::", Some(Process)), ("tokio::process::", Some(Process)), ("process::Command", Some(Process)),
    ("std::process::ExitCode", None), ("std::process::id", None),
    ("reqwest::", Some(Http)), ("prometheus_http_query::", Some(Http)),
    ("axum::", Some(Server)),
    ("std::net::", Some(Sockets)), ("tokio::net::", Some(Sockets)), ("std::net::SocketAddr", None), ("std::net::IpAddr", None),
    ("tokio::", Some(Runtime)), ("std::thread", Some(Runtime)),
    ("SystemTime::now", Some(Clock)), ("Instant::now", Some(Clock)), ("Utc::now", Some(Clock)), ("Local::now", Some(Clock)),
    ("std::fs", Some(Files)), ("tokio::fs", Some(Files)), ("tempfile::", Some(Files)), ("File::", Some(Files)),
    ("std::env", Some(Environment)), ("env::var", Some(Environment)), ("env::args", Some(Environment)),
    ("clap::", Some(Arguments)), ("clap_complete::", Some(Arguments)),
    ("backoff::", Some(Backoff)),
];

#[test]
fn no_room_reaches_where_it_may_not() {
    let mut faults = String::new();
    let mut reached = BTreeSet::new();
    for (path, text) in sources() {
        let Some((room, rooms, reaches)) = room_of(&path) else {
            if !["lib.rs"].contains(&path.as_str()) && !path.starts_with("bin/") {
                let _ = writeln!(faults, "src/{path} is in no room: add it to the table");
            }
            continue;
        };
        let shipped = shipped(&text);
        for other in crate_paths(&shipped) {
            if other != *room && !rooms.contains(&other.as_str()) {
                let _ = writeln!(faults, "src/{path}: {room} may not use {other}");
            }
        }
        if leaves_by_super(&path, &shipped) {
            let _ = writeln!(faults, "src/{path}: leaves its room by super::, write crate::");
        }
        let exception = EXCEPTIONS.iter().find(|(file, _, _)| *file == path);
        for (reach, sign) in reaches_of(&shipped) {
            reached.insert((path.clone(), reach));
            let excepted = exception.is_some_and(|(_, more, _)| more.contains(&reach));
            if !reaches.contains(&reach) && !excepted {
                let _ = writeln!(faults, "src/{path}: {room} may not reach {reach:?} ({sign})");
            }
        }
    }
    for (file, more, _) in EXCEPTIONS {
        for reach in *more {
            if !reached.contains(&((*file).to_owned(), *reach)) {
                let _ = writeln!(faults, "src/{file} does not reach {reach:?} any more: take its exception away");
            }
        }
    }
    assert!(faults.is_empty(), "{faults}");
}

#[test]
fn data_flows_one_way_round() {
    // No room is reached by one that it reaches.
    let uses: BTreeMap<_, _> = ROOMS.iter().map(|(room, rooms, _)| (*room, *rooms)).collect();
    for room in uses.keys() {
        let (mut seen, mut next) = (BTreeSet::new(), uses[room].to_vec());
        while let Some(other) = next.pop() {
            assert_ne!(other, *room, "{room} is used by what it uses");
            if seen.insert(other) {
                next.extend(uses.get(other).unwrap_or_else(|| panic!("{room} names {other}, which is no room")).iter());
            }
        }
    }
}

#[test]
fn everything_that_moves_pods_or_traffic_is_pure() {
    for pure in ["engine", "simulation", "analysis", "traffic"] {
        let (_, _, reaches) = ROOMS.iter().find(|(room, _, _)| *room == pure).unwrap();
        assert!(reaches.is_empty(), "{pure}");
    }
}

#[test]
fn there_is_one_client_one_tls_provider_and_no_git_library() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lock.lines() {
        if let Some(name) = line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"')) {
            *counts.entry(name).or_default() += 1;
        }
    }
    for once in ["kube", "k8s-openapi", "rustls", "ring", "reqwest", "backoff"] {
        assert_eq!(counts.get(once), Some(&1), "{once}");
    }
    for never in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "git2", "libgit2-sys", "gix"] {
        assert!(!counts.contains_key(never), "{never}: see deny.toml");
    }
}

#[test]
fn the_reader_sees_what_it_should() {
    let text = r#"
//! Speaks of kube::Client and crate::cluster in a comment.
use crate::{api::{Rollout, names}, engine::Turn};
use crate::traffic::http_route; // and crate::git here
pub(crate) mod visible;
fn now() -> Instant { tokio::time::Instant::now() }
fn text() -> &'static str { "reqwest::get and crate::http" }
fn test_in_the_middle() {}
#[cfg(test)]
mod tests {
    use crate::cluster::Writer;
    use std::process::Command;
}
fn after() { std::fs::read("x"); }
#[cfg(test)]
mod more_tests;
"#;
    let shipped = shipped(text);
    assert_eq!(crate_paths(&shipped), ["api", "engine", "traffic"].map(str::to_owned).into());
    let reaches: BTreeSet<_> = reaches_of(&shipped).into_keys().collect();
    assert_eq!(reaches, [Runtime, Clock, Files].into());
    let derive = "use kube::{CustomResource, KubeSchema}; use std::process::ExitCode; my_backoff::x();";
    let reaches: BTreeSet<_> = reaches_of(derive).into_keys().collect();
    assert_eq!(reaches, [Types].into());
    assert!(leaves_by_super("engine/mod.rs", "use super::api;"));
    assert!(!leaves_by_super("engine/plan.rs", "use super::model;"));
    assert!(leaves_by_super("engine/plan.rs", "use super::super::api;"));
    assert!(!leaves_by_super("cli/rollout_status/view.rs", "use super::super::Exit;"));
}

/// Every source file, by its path below `src/`.
fn sources() -> Vec<(String, String)> {
    fn visit(directory: &Path, root: &Path, files: &mut Vec<(String, String)>) {
        let mut entries: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                visit(&path, root, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let is_test = name.ends_with("/tests.rs") || name.ends_with("_tests.rs") || name.contains("/tests/");
                if !is_test {
                    files.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    visit(&root, &root, &mut files);
    assert!(files.len() > 40, "only {} files", files.len());
    files
}

fn room_of(path: &str) -> Option<&'static Room> {
    let first = path.split('/').next()?;
    let first = first.strip_suffix(".rs").unwrap_or(first);
    ROOMS.iter().find(|(room, _, _)| *room == first)
}

/// The text without comments, the contents of strings, and modules that are for tests only.
fn shipped(text: &str) -> String {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            // An item for tests: up to its semicolon, or to the brace that closes it at the same depth.
            let end = format!("{}}}", " ".repeat(line.len() - line.trim_start().len()));
            let mut open = false;
            for line in lines.by_ref().map(str::trim_end) {
                if line == end || (!open && (line.ends_with(';') || line.ends_with(','))) {
                    break;
                }
                open |= line.ends_with('{');
            }
            continue;
        }
        let (mut quoted, mut escaped) = (false, false);
        for (position, letter) in line.char_indices() {
            if !quoted && line[position..].starts_with("//") {
                break;
            }
            match letter {
                '"' if !escaped => quoted = !quoted,
                _ if !quoted => out.push(letter),
                _ => {}
            }
            escaped = letter == '\\' && !escaped;
        }
        out.push('\n');
    }
    out
}

/// The rooms named after `crate::`.
fn crate_paths(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (position, _) in text.match_indices("crate::") {
        if is_word_before(text, position) {
            continue;
        }
        let rest = &text[position + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        // The names at the first level of a group.
        let (mut depth, mut at_start) = (0, true);
        for (position, letter) in group.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => at_start = true,
                _ if at_start && letter.is_alphabetic() => {
                    found.insert(word(&group[position..]));
                    at_start = false;
                }
                _ => {}
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

fn is_word_before(text: &str, position: usize) -> bool {
    text[..position].chars().next_back().is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
}

/// What a text reaches, with the sign that shows it.
fn reaches_of(text: &str) -> BTreeMap<Reach, &'static str> {
    let mut found = BTreeMap::new();
    let mut longest: BTreeMap<usize, (&'static str, Option<Reach>)> = BTreeMap::new();
    for (sign, reach) in SIGNS {
        for (position, _) in text.match_indices(sign) {
            if is_word_before(text, position) {
                continue;
            }
            let known = longest.entry(position).or_insert((sign, *reach));
            if sign.len() > known.0.len() {
                *known = (sign, *reach);
            }
        }
    }
    for (sign, reach) in longest.into_values() {
        found.extend(reach.map(|reach| (reach, sign)));
    }
    found
}

/// Whether a chain of `super::` goes above the room.
fn leaves_by_super(path: &str, text: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    let depth = if path.ends_with("/mod.rs") { parts.len() - 2 } else { parts.len() - 1 };
    text.contains(&"super::".repeat(depth + 1))
}
