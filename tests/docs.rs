//! The documents say what is so: reasons, links, examples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every word that follows one of `signs` in quotes, in what ships of a file.
fn quoted_after(path: &str, signs: &[&str]) -> BTreeSet<String> {
    let text = read(path);
    let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut found = BTreeSet::new();
    for sign in signs {
        for (position, _) in shipped.match_indices(sign) {
            let rest = shipped[position + sign.len()..].trim_start();
            let Some(word) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
            if word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphanumeric) {
                found.insert(word.to_owned());
            }
        }
    }
    assert!(!found.is_empty(), "{path} has none of {signs:?}: this test reads the wrong place");
    found
}

#[test]
fn every_reason_has_a_cause_and_a_cure() {
    let mut reasons = BTreeSet::new();
    let phases =
        ["Pending", "Progressing", "Paused", "Holding", "Promoting", "Ready", "Aborted", "Stalled", "Terminating"];
    let described: Vec<String> = phases.iter().map(|phase| format!("describe(Phase::{phase},")).collect();
    let mut signs: Vec<&str> = described.iter().map(String::as_str).collect();
    signs.push("self.hold(");
    reasons.extend(quoted_after("src/engine/decide.rs", &signs));
    let handed_over = ["say_scaled_down(ConditionStatus::True,", "say_scaled_down(ConditionStatus::False,", ": &str ="];
    reasons.extend(quoted_after("src/engine/workload.rs", &handed_over));
    reasons.extend(quoted_after("src/engine/plan.rs", &["reason:"]));
    reasons.extend(quoted_after("src/cluster/observe.rs", &["reason:", "Some(problem("]));
    reasons.extend(quoted_after("src/git/error.rs", &["} =>", "NotLeading =>"]));
    let sync = ["reason:", "stalled(", "passing(", "if forbidden {", "if only_place {", "} else {", "{ .. } =>"];
    reasons.extend(quoted_after("src/controllers/deploy_repo.rs", &sync));
    reasons.extend(quoted_after("src/controllers/ledger.rs", &["reason:"]));
    reasons.extend(quoted_after("src/controllers/credentials.rs", &["Self::Missing(_) =>", "is_transient() =>"]));
    reasons.extend(quoted_after("src/engine/model.rs", &["AWAITED: &'static str ="]));
    reasons.extend(quoted_after("src/forge/error.rs", &["{ .. } =>"]));
    reasons.extend(quoted_after("src/controllers/write_back.rs", &["after(", "reason:", ": &str ="]));
    reasons.extend(["Verdict", "DataMissing", "Deadline", "Revert", "Intervention"].map(str::to_owned));
    assert!(reasons.len() > 50, "{reasons:?}");
    let document = read("docs/reasons.md");
    let missing: Vec<_> = reasons.iter().filter(|reason| !document.contains(&format!("`{reason}`"))).collect();
    assert!(missing.is_empty(), "docs/reasons.md does not explain {missing:?}");
    // And nothing is explained that does not exist any more.
    let words = document.lines().filter(|line| line.starts_with("| `")).flat_map(|line| {
        let cell = line.split('|').nth(1).unwrap_or_default();
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    });
    let conditions = [
        "Ready",
        "Reconciling",
        "Stalled",
        "Paused",
        "Promoted",
        "Aborted",
        "Terminating",
        "Recorded",
        "WorkloadScaledDown",
    ];
    // Made by the writer, when an object of the wanted name is somebody else's; two events' own; and two by a name.
    let others = ["NotOurs", "NotHandedBack", "EvictionRefused", "Deleted", "Uninstalled"];
    for word in words {
        let known = reasons.contains(&word) || conditions.contains(&word.as_str()) || others.contains(&word.as_str());
        assert!(known, "docs/reasons.md explains {word}, which nothing says");
    }
}

#[test]
fn links_lead_somewhere() {
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "docs/lint.md",
        "docs/reasons.md",
        "docs/notifications.md",
        "docs/canary.md",
        "docs/blue-green.md",
        "docs/canary-without-routes.md",
        "docs/adopt-a-deployment.md",
        "docs/taking-it-out.md",
    ] {
        let text = read(document);
        for rest in text.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.starts_with("https://") {
                continue;
            }
            let path = root(document).parent().unwrap().join(target.split('#').next().unwrap_or_default());
            assert!(path.exists(), "{document} links to {target}");
        }
        // Paths in code are paths that exist.
        for word in text.split('`').skip(1).step_by(2) {
            let is_path =
                ["src/", "tests/", "examples/", "charts/", "crds/", "docs/"].iter().any(|top| word.starts_with(top));
            if is_path && !word.contains(['*', ' ']) {
                assert!(root(word).exists(), "{document} names {word}");
            }
        }
    }
}

#[test]
fn commands_of_the_documents_exist() {
    let makefile = read("Makefile");
    for document in ["README.md", "CONTRIBUTING.md"] {
        let text = read(document);
        for rest in text.split("`make ").skip(1) {
            let target: String = rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '-').collect();
            assert!(makefile.contains(&format!("\n{target}:")), "{document}: make {target}");
        }
    }
}

fn sluice(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).current_dir(root("")).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

#[test]
fn the_example_can_be_planned_and_rehearsed_as_the_readme_says() {
    let (success, text) = sluice(&["plan", "-f", "examples/web.yaml"]);
    assert!(success && text.contains("shop/web:v2") && text.contains("pause 2m"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("log");
    let ledger = ledger.to_str().unwrap();
    let (success, text) = sluice(&["rehearse", "-f", "examples/web.yaml", "--fail-at", "3", "--ledger", ledger]);
    assert!(success, "{text}");
    let log = Command::new("git").args(["-C", ledger, "log", "--format=%s", "rollout-log/rehearsal"]).output().unwrap();
    let log = String::from_utf8(log.stdout).unwrap();
    let readme = read("README.md");
    assert_eq!(log.lines().next(), Some("shop/web: Aborted 3/5 50%→0%"), "{text}");
    for subject in log.lines() {
        assert!(readme.contains(subject), "README.md does not show {subject}");
    }
}

/// Whether a line is as the page shows it; `…` stands for anything.
fn is_shown(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        let part = part.trim_end();
        if last && !part.is_empty() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    !parts.is_empty() || rest.is_empty()
}

/// Whether lines are as the page shows them; a line that is only `…` stands for any lines.
fn are_shown(shown: &[&str], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((&"…", rest)) => (0..=lines.len()).any(|skipped| are_shown(rest, &lines[skipped..])),
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, lines)| is_shown(first, line.trim_end()) && are_shown(rest, lines))
        }
    }
}

#[test]
fn what_a_page_shows_is_compared() {
    assert!(are_shown(&["a …", "…", "z"], &["a 1", "b", "c", "z"]));
    assert!(are_shown(&["a … c"], &["a b c"]));
    assert!(!are_shown(&["a …", "z"], &["a 1", "b", "z"]));
    assert!(!are_shown(&["a"], &["a b"]) && !are_shown(&["a … c"], &["a b d"]));
}

/// Runs every command of a page, one after the other in one folder, and compares what it says with what the page
/// shows; gives how many there are. The page's first manifest is there as `rollout.yaml`.
fn run_page(document: &str) -> usize {
    let page = read(document);
    let folder = tempfile::tempdir().unwrap();
    if let Some((_, manifest)) = page.split_once("```yaml\n") {
        fs::write(folder.path().join("rollout.yaml"), manifest.split("```").next().unwrap()).unwrap();
    }
    let examples = folder.path().join("examples");
    std::os::unix::fs::symlink(root("examples"), &examples).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_sluice")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut count = 0;
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap();
        for step in block.split("$ ").skip(1) {
            let mut lines = step.lines();
            let command = lines.next().unwrap();
            let shown: Vec<&str> = lines.map(str::trim_end).collect();
            let output =
                Command::new("sh").args(["-c", command]).current_dir(&folder).env("PATH", &path).output().unwrap();
            let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
            let got: Vec<&str> = text.trim_end().lines().collect();
            let shown = shown.strip_suffix(&[""]).unwrap_or(&shown);
            assert!(are_shown(shown, &got), "$ {command}\n--- the page shows\n{}\n--- it is\n{text}", shown.join("\n"));
            count += 1;
        }
    }
    count
}

#[test]
fn the_life_of_a_rollout_in_git_is_as_the_page_shows_it() {
    let count = run_page("docs/life-of-a-rollout-in-git.md");
    assert!(count > 10, "only {count} commands were found");
}

#[test]
fn each_strategy_does_what_its_page_shows() {
    for document in ["docs/canary.md", "docs/blue-green.md", "docs/canary-without-routes.md"] {
        let count = run_page(document);
        assert!(count >= 3, "{document}: only {count} commands were found");
    }
    assert_eq!(run_page("docs/adopt-a-deployment.md"), 1);
}

#[test]
fn every_scenario_has_a_test_that_exists() {
    let table = read("tests/SCENARIOS.md");
    let names: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .filter_map(|line| line.split('|').nth(2)?.trim().strip_prefix('`')?.strip_suffix('`'))
        .collect();
    assert!(names.len() > 40, "{names:?}");
    let mut code = String::new();
    let mut folders = vec![root("src"), root("tests"), root("e2e/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => code += &fs::read_to_string(path).unwrap(),
                _ => {}
            }
        }
    }
    let missing: Vec<_> = names.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "tests/SCENARIOS.md names tests that do not exist: {missing:?}");
}
