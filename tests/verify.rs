//! `sluice verify` on a ledger as it is written, and on copies of it that somebody has tampered with.
//!
//! The forger of these tests is a careful one: all that follows a forged commit is written again, and names the new
//! commits where it named the old ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail loudly")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sluice::api::{PodTemplate, Transition, TransitionEvent};
use sluice::git::{
    Archive, Credentials, Evidence, GitCache, LedgerEntry, LedgerPolicy, RemoteAddress, Report, Signature, Signer,
    VerifyOptions, verify,
};

const BRANCH: &str = "rollout-log/prod";
const WRITER: &str = "Sluice <sluice@prod>";

fn git(directory: &Path, arguments: &[&str]) -> String {
    git_with(directory, arguments, b"")
}

fn git_with(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feed = std::thread::spawn(move || std::io::Write::write_all(&mut pipe, &input));
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn start() -> DateTime<Utc> {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn template(image: &str) -> PodTemplate {
    PodTemplate(
        json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image, "name": "c"}]}}),
    )
}

fn transition(sequence: i64, event: TransitionEvent, image: &str, weights: (i32, i32)) -> Transition {
    Transition {
        sequence,
        event,
        at: start() + TimeDelta::seconds(sequence * 30),
        stage: 1,
        stages: 3,
        weight_from: weights.0,
        weight_to: weights.1,
        revision_from: Some(template("i:1").revision()),
        revision_to: template(image).revision(),
        attempt: 1,
        reason: format!("{event:?}"),
        message: format!("what happened as number {sequence}, ünïcode and \"quotes\" included"),
        verdict: None,
        actor: Some("pat".to_owned()),
        source_commit: Some("0123456789012345678901234567890123456789".to_owned()),
        analysis_runs: Vec::new(),
    }
}

fn entry(name: &str, transition: Transition, image: &str) -> LedgerEntry {
    let template = template(image);
    LedgerEntry {
        cluster: "prod".to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        state: json!({"phase": "Progressing", "sequence": transition.sequence}),
        plan: format!("# Plan\n\nAfter number {}\n", transition.sequence),
        evidence: Vec::new(),
        template: Some(template.0),
        covers: Vec::new(),
        operator: "sluice/1.2.3".to_owned(),
        transition,
    }
}

/// What a writer pushes, push by push: a release that is aborted by its metrics, one that is promoted, and one that is
/// told in a single entry.
fn pushes() -> Vec<Vec<LedgerEntry>> {
    use TransitionEvent::{Aborted, FirstDeploy, Promoted, Started, StepCompleted};
    let first = |name: &str| entry(name, transition(1, FirstDeploy, "i:1", (0, 0)), "i:1");
    let promoted = |name: &str| entry(name, transition(2, Promoted, "i:1", (0, 100)), "i:1");
    let mut aborted = entry("web", transition(5, Aborted, "i:2", (20, 0)), "i:2");
    aborted.transition.reason = "Verdict".to_owned();
    aborted.transition.verdict = Some("fail".to_owned());
    aborted.evidence = vec![Evidence {
        stage: "background".to_owned(),
        body: json!({"stage": "background", "metrics": [{"value": 0.2}]}),
    }];
    let mut quiet = entry("api", transition(5, Promoted, "i:3", (50, 100)), "i:3");
    quiet.covers = vec![transition(3, Started, "i:3", (0, 20)), transition(4, StepCompleted, "i:3", (20, 50))];
    vec![
        vec![first("web"), promoted("web")],
        vec![first("api")],
        vec![entry("web", transition(3, Started, "i:2", (0, 20)), "i:2")],
        vec![promoted("api")],
        vec![entry("web", transition(4, StepCompleted, "i:2", (20, 20)), "i:2")],
        vec![aborted],
        vec![quiet],
        vec![entry("web", transition(6, Started, "i:3", (0, 20)), "i:3")],
        vec![LedgerEntry { template: None, ..entry("web", transition(7, Promoted, "i:3", (20, 100)), "i:3") }],
    ]
}

/// A clone of a ledger.
struct Clone {
    directory: tempfile::TempDir,
    tip: String,
}

impl Clone {
    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("log.git")
    }

    async fn verify(&self, options: VerifyOptions) -> Report {
        let archive = Archive::open(&self.path()).await.unwrap();
        let ledgers = archive.ledgers(Some("prod")).await.unwrap();
        verify(&archive, &ledgers[0], &options).await.unwrap()
    }
}

/// As the operator writes it.
async fn written(policy: LedgerPolicy) -> Clone {
    written_in(pushes(), policy).await
}

async fn written_in(pushes: Vec<Vec<LedgerEntry>>, policy: LedgerPolicy) -> Clone {
    let directory = tempfile::tempdir().unwrap();
    git(directory.path(), &["init", "-q", "--bare", "log.git"]);
    let cache = GitCache::new(directory.path().join("cache")).unwrap();
    let address = RemoteAddress::local(&directory.path().join("log.git")).unwrap();
    let repository = cache.repository_at(address, Credentials::None).unwrap();
    let ledger = repository.ledger("prod").unwrap().with_policy(policy);
    for push in pushes {
        ledger.append(&push).await.unwrap();
    }
    let tip = git(&directory.path().join("log.git"), &["rev-parse", BRANCH]).trim().to_owned();
    Clone { directory, tip }
}

/// One commit, taken apart.
#[derive(Clone)]
struct Raw {
    id: String,
    parents: Vec<String>,
    author: String,
    committer: String,
    message: String,
    /// Mode and content by path.
    files: BTreeMap<String, (String, Vec<u8>)>,
}

impl Raw {
    fn text(&self, path: &str) -> String {
        String::from_utf8(self.files[path].1.clone()).unwrap()
    }

    fn write(&mut self, path: &str, text: &str) {
        self.files.insert(path.to_owned(), ("100644".to_owned(), text.as_bytes().to_vec()));
    }

    fn edit(&mut self, path: &str, from: &str, to: &str) {
        let text = self.text(path);
        assert!(text.contains(from), "{path} holds no {from}: {text}");
        self.write(path, &text.replacen(from, to, 1));
    }

    fn say(&mut self, from: &str, to: &str) {
        assert!(self.message.contains(from), "no {from}: {}", self.message);
        self.message = self.message.replacen(from, to, 1);
    }
}

/// Takes a branch apart, oldest first.
fn taken_apart(clone: &Clone) -> Vec<Raw> {
    let path = clone.path();
    let ids = git(&path, &["rev-list", "--reverse", BRANCH]);
    let raw = |id: &str| {
        let text = git(&path, &["cat-file", "commit", id]);
        let (head, message) = text.split_once("\n\n").unwrap();
        let all = |name: &str| -> Vec<String> {
            head.lines().filter_map(|line| line.strip_prefix(&format!("{name} "))).map(str::to_owned).collect()
        };
        let listed = git(&path, &["ls-tree", "-r", "-z", id]);
        let files = listed.split('\0').filter(|line| !line.is_empty()).map(|line| {
            let (meta, path_) = line.split_once('\t').unwrap();
            let mut meta = meta.split(' ');
            let (mode, object) = (meta.next().unwrap().to_owned(), meta.nth(1).unwrap());
            (path_.to_owned(), (mode, git(&path, &["cat-file", "blob", object]).into_bytes()))
        });
        Raw {
            id: id.to_owned(),
            parents: all("parent"),
            author: all("author").remove(0),
            committer: all("committer").remove(0),
            message: message.to_owned(),
            files: files.collect(),
        }
    };
    ids.lines().map(raw).collect()
}

/// Puts commits together to a branch again. What names a commit by its old name names the new one.
fn put_together(commits: &[Raw]) -> Clone {
    let directory = tempfile::tempdir().unwrap();
    git(directory.path(), &["init", "-q", "--bare", "log.git"]);
    let path = directory.path().join("log.git");
    let mut renamed: Vec<(String, String)> = Vec::new();
    let new_name = |renamed: &[(String, String)], text: &str| {
        renamed.iter().fold(text.to_owned(), |text, (old, new)| text.replace(old.as_str(), new))
    };
    for commit in commits {
        let mut index = String::new();
        for (file, (mode, content)) in &commit.files {
            let object = match mode.as_str() {
                "160000" => String::from_utf8(content.clone()).unwrap(),
                _ => git_with(&path, &["hash-object", "-w", "--stdin"], content).trim().to_owned(),
            };
            writeln!(index, "{mode} {object}\t{file}").unwrap();
        }
        let scratch = path.join("index");
        let _ = std::fs::remove_file(&scratch);
        let mut update = Command::new("git");
        update.arg("-C").arg(&path).args(["update-index", "--add", "--index-info"]).env("GIT_INDEX_FILE", &scratch);
        let mut child = update.stdin(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), index.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        let mut tree = Command::new("git");
        let tree = tree.arg("-C").arg(&path).arg("write-tree").env("GIT_INDEX_FILE", &scratch).output().unwrap();
        let mut object = format!("tree {}", String::from_utf8_lossy(&tree.stdout));
        for parent in &commit.parents {
            writeln!(object, "parent {}", new_name(&renamed, parent)).unwrap();
        }
        let message = new_name(&renamed, &commit.message);
        write!(object, "author {}\ncommitter {}\n\n{message}", commit.author, commit.committer).unwrap();
        let id = git_with(&path, &["hash-object", "-t", "commit", "-w", "--stdin", "--literally"], object.as_bytes());
        renamed.push((commit.id.clone(), id.trim().to_owned()));
    }
    let tip = renamed.last().unwrap().1.clone();
    git(&path, &["update-ref", &format!("refs/heads/{BRANCH}"), &tip]);
    Clone { directory, tip }
}

#[tokio::test]
async fn a_ledger_as_it_is_written_is_clean() {
    let clone = written(LedgerPolicy::default()).await;
    let report = clone.verify(VerifyOptions::default()).await;
    assert_eq!(report.faults, [], "{:?}", report.faults);
    assert_eq!((report.entries, report.signature), (10, Signature::Absent));
    assert_eq!(report.rollouts, [("shop/api".to_owned(), 5), ("shop/web".to_owned(), 7)].into());
    assert_eq!(report.tip, clone.tip);
    // The forger changes nothing but what he means to.
    assert_eq!(put_together(&taken_apart(&clone)).tip, clone.tip);
}

#[tokio::test]
async fn a_release_that_is_tried_again_is_clean() {
    use TransitionEvent::{Aborted, Promoted, Started};
    let mut pushes = pushes();
    let mut sequence = 7;
    let mut next = |event, image: &str, attempt| {
        sequence += 1;
        let mut entry = entry("web", transition(sequence, event, image, (0, 20)), image);
        entry.transition.attempt = attempt;
        pushes.push(vec![entry]);
    };
    next(Started, "i:4", 1);
    next(Aborted, "i:4", 1);
    next(Started, "i:4", 2);
    next(Promoted, "i:4", 2);
    next(Started, "i:5", 1);
    next(Started, "i:5", 2);
    // What was good is tried again.
    next(Started, "i:4", 1);
    let clone = written_in(pushes, LedgerPolicy::default()).await;
    let report = clone.verify(VerifyOptions::default()).await;
    assert_eq!(report.faults, [], "{:?}", report.faults);
}

const WEB: &str = "shop/web/state.json";

type Case = (&'static str, fn(&mut Vec<Raw>), &'static str);

/// The commits, by number: 0 web#1, 1 web#2, 2 api#1, 3 web#3, 4 api#2, 5 web#4, 6 web#5 (aborted), 7 api#3-5,
/// 8 web#6, 9 web#7.
#[rustfmt::skip]
fn cases() -> Vec<Case> {
    fn drop_at(commits: &mut Vec<Raw>, at: usize) {
        let gone = commits.remove(at);
        if let Some(next) = commits.get_mut(at) {
            next.parents = gone.parents;
        }
    }
    vec![
        ("a dropped entry", |commits| drop_at(commits, 5), "Rollout-Seq: expected 4, found 5"),
        ("a dropped first entry", |commits| drop_at(commits, 0), "Rollout-Prev"),
        ("a dropped abort", |commits| drop_at(commits, 6), "Rollout-Seq: expected 5, found 6"),
        ("a reordered pair", |commits| {
            commits.swap(5, 6);
            let (one, other) = (commits[5].id.clone(), commits[4].id.clone());
            commits[5].parents = vec![other];
            commits[6].parents = vec![one];
            let last = commits[6].id.clone();
            commits[7].parents = vec![last];
        }, "Rollout-Seq: expected 4, found 5"),
        ("a doubled entry", |commits| {
            let mut again = commits[5].clone();
            again.parents = vec![again.id.clone()];
            again.id = "f".repeat(40);
            again.message.push('\n');
            commits.insert(6, again);
            commits[7].parents = vec!["f".repeat(40)];
        }, "expected the state that this entry led to, found the one before"),
        ("a doubled number", |commits| {
            commits[5].say("Rollout-Seq: 4", "Rollout-Seq: 3");
            commits[5].edit(WEB, "\"sequence\": 4,\n  \"sourceCommit\"", "\"sequence\": 3,\n  \"sourceCommit\"");
        }, "Rollout-Seq: expected 4, found 3"),
        ("a gap", |commits| {
            commits[5].say("Rollout-Seq: 4", "Rollout-Seq: 9");
            commits[5].edit(WEB, "\"sequence\": 4,\n  \"sourceCommit\"", "\"sequence\": 9,\n  \"sourceCommit\"");
        }, "Rollout-Seq: expected 4, found 9"),
        ("a number in the trailer alone", |commits| commits[5].say("Rollout-Seq: 4", "Rollout-Seq: 5"), "Rollout-Seq: expected `Rollout-Seq: 4`"),
        ("a forged author", |commits| commits[3].author = commits[3].author.replace("sluice@prod", "eve@prod"), "author: expected Sluice <sluice@prod>"),
        ("a forged committer", |commits| commits[3].committer = commits[3].committer.replace("Sluice", "Eve"), "committer: expected Sluice <sluice@prod>"),
        ("another author's date", |commits| commits[3].author = format!("{WRITER} 1 +0000"), "author: expected the time"),
        ("another committer's date", |commits| commits[3].committer = format!("{WRITER} 1 +0000"), "committer: expected the author's time"),
        ("another time zone", |commits| commits[3].author = commits[3].author.replace("+0000", "+0100"), "author: expected Sluice <sluice@prod> at +0000"),
        ("another time in the state", |commits| commits[3].edit(WEB, "2026-03-01T12:01:30Z", "2026-03-01T11:01:30Z"), "author: expected the time"),
        ("an edited weight in the state", |commits| commits[3].edit(WEB, "\"weight\": 20", "\"weight\": 10"), "subject: expected"),
        ("an edited weight in the trailer", |commits| commits[3].say("Rollout-Weight: 0->20", "Rollout-Weight: 0->10"), "Rollout-Weight"),
        ("an edited step", |commits| commits[3].say("Rollout-Step: 1/3", "Rollout-Step: 2/3"), "Rollout-Step"),
        ("another event", |commits| commits[6].say("Rollout-Event: Aborted", "Rollout-Event: Promoted"), "Rollout-Event"),
        ("an abort that became a promotion", |commits| {
            commits[6].say("Rollout-Event: Aborted", "Rollout-Event: Promoted");
            commits[6].say("web: Aborted", "web: Promoted");
            commits[6].edit(WEB, "\"event\": \"Aborted\"", "\"event\": \"Promoted\"");
        }, "expected that it goes with this entry, found that it stays"),
        ("another release", |commits| commits[3].edit(WEB, ".1\",", ".2\","), "Rollout-Release"),
        ("another uid", |commits| commits[0].say("Rollout-Uid: uid-web", "Rollout-Uid: uid-eve"), "shop/web/state.json: expected"),
        ("an Id of another cluster", |commits| commits[3].say("Rollout-Id: prod/", "Rollout-Id: test/"), "Rollout-Id: expected prod/<namespace>/<rollout>"),
        ("an Id of another Rollout", |commits| commits[3].say("Rollout-Id: prod/shop/web", "Rollout-Id: prod/shop/api"), "shop/api/state.json: expected the state that this entry led to"),
        ("a Prev that names another commit", |commits| {
            let wrong = commits[2].id.clone();
            let right = commits[1].id.clone();
            commits[3].say(&right, &wrong);
        }, "Rollout-Prev"),
        ("another schema", |commits| commits[0].say("Rollout-Schema: 1", "Rollout-Schema: 2"), "Rollout-Schema"),
        ("a trailer more", |commits| commits[3].say("Rollout-Event", "Rollout-Approved: yes\nRollout-Event"), "Rollout-Approved"),
        ("an edited subject", |commits| commits[3].say("shop/web: Started", "shop/web: Resumed"), "subject"),
        ("an edited body", |commits| commits[3].say("what happened", "what did not happen"), "body"),
        ("an edited sentence of an entry that is told in another", |commits| commits[7].say("3 Started 1/3 0%→20%", "3 Resumed 1/3 0%->20%"), "body"),
        ("covered numbers with a gap", |commits| commits[7].say("4 StepCompleted", "8 StepCompleted"), "Rollout-Covers"),
        ("an edited plan", |commits| commits[3].edit("shop/web/plan.md", "After number 3\n", "After number 3  \n\n\n"), "shop/web/plan.md"),
        ("edited evidence that is not JSON any more", |commits| commits[6].edit(&evidence(), "\"stage\"", "stage"), "evidence"),
        ("edited evidence in another layout", |commits| commits[6].edit(&evidence(), "  ", " "), "facts.json"),
        ("evidence that was removed", |commits| { commits[6].files.remove(&evidence()); }, "expected the evidence that this entry names"),
        ("evidence that nothing names", |commits| commits[3].write(&evidence(), "{}\n"), "expected no change by an entry of this Rollout"),
        ("evidence that is not named any more", |commits| {
            commits[6].say("\nRollout-Evidence: background", "");
        }, "expected no change by an entry of this Rollout"),
        ("a template with another content", |commits| {
            commits[3].edit("shop/web/pod.json", "i:2", "i:evil");
        }, "the template of"),
        ("a template that changes later", |commits| {
            let other = commits[8].text("shop/web/pod.json");
            commits[9].write("shop/web/good.json", &other.replace("i:3", "i:2"));
        }, "shop/web/good.json: expected the template of"),
        ("a good template that was removed", |commits| { commits[9].files.remove("shop/web/good.json"); }, "shop/web/good.json: expected a file, found none"),
        ("a good template that was put in the place of another", |commits| {
            let other = commits[3].text("shop/web/pod.json");
            commits[5].write("shop/web/good.json", &other);
        }, "shop/web/good.json: expected no change"),
        ("an edited guide", |commits| commits[3].write("shop/web/README.md", "rm -rf\n"), "shop/web/README.md: expected no change"),
        ("a trailer that tells another source than the state", |commits| commits[5].say("Rollout-Actor: pat", "Rollout-Actor: pat\nRollout-Source-Commit: 1"), "shop/web/state.json: expected"),
        ("evidence that outlives its release", |commits| {
            let path = evidence();
            let kept = commits[7].files[&path].clone();
            commits[8].files.insert(path, kept);
        }, "expected that it goes with this entry"),
        ("a deny entry removed by somebody", |commits| for commit in &mut commits[8..] {
            commit.files.retain(|path, _| !path.contains("/aborted/"));
        }, "expected no change by an entry of this Rollout"),
        ("a deny entry removed at its abort", |commits| commits[6].files.retain(|path, _| !path.contains("/aborted/")), "expected a file, found none"),
        ("a deny entry added", |commits| commits[3].write("shop/web/aborted/eeeeeeeeee.json", "{}\n"), "expected no change by an entry of this Rollout"),
        ("an edited reason in the deny entry", |commits| {
            let path = commits[6].files.keys().find(|path| path.contains("/aborted/")).unwrap().clone();
            commits[6].edit(&path, "Verdict", "Mistake");
        }, "shop/web/aborted/"),
        ("an edited README", |commits| commits[9].edit("README.md", "- shop/web", "- shop/api"), "README.md"),
        ("a README that was edited and put back", |commits| commits[6].edit("README.md", "- shop/web", "- shop/api"), "README.md"),
        ("a removed README", |commits| { commits[9].files.remove("README.md"); }, "README.md"),
        ("a foreign file", |commits| commits[3].write("backdoor.sh", "#!/bin/sh\n"), "backdoor.sh: expected no change"),
        ("another Rollout's state", |commits| commits[5].edit("shop/api/state.json", "\"weight\": 100", "\"weight\": 0"), "shop/api/state.json: expected no change"),
        ("another last good revision", |commits| commits[3].edit(WEB, "\"lastGood\": {\n    \"at\": \"2026-03-01T12:01:00Z\"", "\"lastGood\": {\n    \"at\": \"2026-03-01T12:01:01Z\""), WEB),
        ("a state in another layout", |commits| commits[3].edit(WEB, "{\n", "{\n\n"), WEB),
        ("a symbolic link", |commits| commits[3].files.get_mut(WEB).unwrap().0 = "120000".to_owned(), "expected a plain file, mode 100644"),
        ("an executable", |commits| commits[3].files.get_mut("shop/web/plan.md").unwrap().0 = "100755".to_owned(), "expected a plain file, mode 100644"),
        ("a submodule", |commits| { commits[3].files.insert("library".to_owned(), ("160000".to_owned(), "1".repeat(40).into_bytes())); }, "expected a plain file, mode 100644"),
        ("a merge", |commits| { let other = commits[1].id.clone(); commits[5].parents.push(other); }, "parents: expected"),
        ("an entry that changes nothing", |commits| {
            let files = commits[4].files.clone();
            commits[5].files = files;
        }, "found the one before"),
        ("a commit of a person", |commits| {
            let mut own = commits[9].clone();
            own.parents = vec![own.id.clone()];
            own.id = "e".repeat(40);
            own.message = "fix the log\n".to_owned();
            commits.push(own);
        }, "Rollout-Id: expected prod/<namespace>/<rollout>"),
    ]
}

fn evidence() -> String {
    "shop/web/facts.json".to_owned()
}

#[tokio::test]
async fn every_tampered_copy_is_told() {
    let clean = taken_apart(&written(LedgerPolicy::default()).await);
    let cases = cases();
    assert!(cases.len() >= 30);
    let mut missed = String::new();
    for (name, tamper, words) in cases {
        let mut commits = clean.clone();
        tamper(&mut commits);
        let report = put_together(&commits).verify(VerifyOptions::default()).await;
        let told: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
        if !told.iter().any(|fault| fault.contains(words)) {
            writeln!(missed, "{name}: nothing says `{words}`: {told:#?}").unwrap();
        }
    }
    assert!(missed.is_empty(), "{missed}");
}

#[tokio::test]
async fn what_is_cut_off_or_written_anew_is_found_by_a_tip_that_was_seen() {
    let clone = written(LedgerPolicy::default()).await;
    let seen = VerifyOptions { seen_tips: vec![clone.tip.clone()], ..VerifyOptions::default() };
    assert_eq!(clone.verify(seen.clone()).await.faults, []);
    let mut commits = taken_apart(&clone);
    commits.truncate(8);
    let told = |report: Report| report.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(told(put_together(&commits).verify(seen.clone()).await).contains("which was seen elsewhere"));
    // Who acted has one witness: the tip.
    let mut commits = taken_apart(&clone);
    commits[9].say("Rollout-Actor: pat", "Rollout-Actor: eve");
    let forged = put_together(&commits);
    assert_eq!(forged.verify(VerifyOptions::default()).await.faults, []);
    assert!(told(forged.verify(seen).await).contains("which was seen elsewhere"));
    // A clone in which an object is damaged.
    let objects = clone.path().join("objects");
    let tree = git(&clone.path(), &["rev-parse", &format!("{BRANCH}~4:README.md")]);
    let (folder, file) = tree.trim().split_at(2);
    let object = objects.join(folder).join(file);
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, "not an object").unwrap();
    let archive = Archive::open(&clone.path()).await.unwrap();
    let ledgers = archive.ledgers(None).await.unwrap();
    let outcome = verify(&archive, &ledgers[0], &VerifyOptions::default()).await;
    assert!(outcome.is_err() || !outcome.unwrap().faults.is_empty(), "damage is told");
}

fn key(directory: &Path, name: &str) -> (String, String) {
    let file = directory.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "x", "-f"]).arg(&file).status();
    assert!(made.unwrap().success());
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    (read(&file), read(&file.with_extension("pub")))
}

#[tokio::test]
async fn a_signature_is_that_of_the_writer_over_the_tip() {
    let keys = tempfile::tempdir().unwrap();
    let ((identity, public), (_, strange)) = (key(keys.path(), "own"), key(keys.path(), "strange"));
    let signer = Signer::new(keys.path(), &identity).unwrap();
    let clone = written(LedgerPolicy { signer: Some(signer), ..LedgerPolicy::default() }).await;
    let allowed = |who: &str, key: &str| VerifyOptions {
        allowed_signers: Some(format!("{who} {key}").into_bytes()),
        require_signature: true,
        ..VerifyOptions::default()
    };
    let report = clone.verify(allowed("sluice@prod", &public)).await;
    assert_eq!((report.faults, report.signature), (Vec::new(), Signature::By("sluice@prod".to_owned())));
    let report = clone.verify(VerifyOptions::default()).await;
    assert!(matches!(&report.signature, Signature::Unknown(key) if key.starts_with("SHA256:")), "{report:?}");
    assert_eq!(report.faults, []);
    let told = |report: Report| report.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(told(clone.verify(allowed("sluice@prod", &strange)).await).contains("one of an allowed key"));
    assert!(
        told(clone.verify(allowed("eve@prod", &public)).await).contains("expected one of sluice@prod, found eve@prod")
    );
    // Rewritten without the key: the tip is not signed any more.
    let forged = put_together(&taken_apart(&clone));
    assert!(
        told(forged.verify(allowed("sluice@prod", &public)).await).contains("expected one over the tip, found none")
    );
    // The signature of another commit does not fit.
    let path = clone.path();
    let text = git(&path, &["cat-file", "commit", &clone.tip]).replace("Rollout-Actor: pat", "Rollout-Actor: eve");
    let id = git_with(&path, &["hash-object", "-t", "commit", "-w", "--stdin", "--literally"], text.as_bytes());
    git(&path, &["update-ref", &format!("refs/heads/{BRANCH}"), id.trim()]);
    assert!(told(clone.verify(allowed("sluice@prod", &public)).await).contains("expected one that fits this commit"));
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// Any byte of any file that an entry wrote, changed by somebody who does not fix what names the commit.
#[tokio::test]
async fn any_changed_byte_is_found() {
    let clone = written(LedgerPolicy::default()).await;
    let clean = taken_apart(&clone);
    let seed = std::env::var("SLUICE_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::try_from(Utc::now().timestamp_micros()).unwrap());
    println!("SLUICE_SEED={seed}");
    let mut random = Random(seed);
    for _ in 0..40 {
        let mut commits = clean.clone();
        // What comes after it names it, but for the last entry of each Rollout: those need a signature or a tip.
        let at = random.below(7);
        let before: BTreeMap<_, _> = at.checked_sub(1).map(|before| clean[before].files.clone()).unwrap_or_default();
        let written: Vec<String> = commits[at]
            .files
            .iter()
            .filter(|(path, file)| before.get(*path) != Some(file))
            .map(|(path, _)| path.clone())
            .collect();
        let path = &written[random.below(written.len())];
        let content = &mut commits[at].files.get_mut(path).unwrap().1;
        let place = random.below(content.len());
        let old = content[place];
        content[place] = if old == b'x' { b'y' } else { b'x' };
        let report = put_together_as_it_stands(&commits).verify(VerifyOptions::default()).await;
        let change = format!("byte {place} of {path} in commit {at}, {:?} became x or y", char::from(old));
        assert!(!report.faults.is_empty(), "SLUICE_SEED={seed}: {change}");
    }
}

/// The same, without naming anything anew in the messages.
fn put_together_as_it_stands(commits: &[Raw]) -> Clone {
    let hidden: Vec<Raw> = commits
        .iter()
        .enumerate()
        .map(|(index, commit)| Raw {
            id: format!("{index:040x}"),
            parents: index.checked_sub(1).map(|before| format!("{before:040x}")).into_iter().collect(),
            ..commit.clone()
        })
        .collect();
    put_together(&hidden)
}

#[tokio::test]
async fn a_document_says_all_that_the_lines_say() {
    let clone = written(LedgerPolicy::default()).await;
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).arg(clone.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&["verify"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("rollout-log/prod: 10 entries of 2 Rollouts, tip ") && text.ends_with("clean\n"), "{text}");
    let (code, text) = run(&["verify", "-o", "json", "--require-signature"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, Some(2));
    assert_eq!(document["ledgers"][0]["faults"][0]["place"], "signature");
    let (code, text) = run(&["log", "--rollout", "api"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("shop/api #5  Promoted") && !text.contains("shop/web"), "{text}");
    assert!(text.contains("3 Started 1/3 0%→20%: what happened as number 3"), "{text}");
    let (_, text) = run(&["log", "-o", "json", "--since", "2026-03-01T12:03:00Z"]);
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.len(), 2, "{text}");
    assert_eq!(entries[1]["trailers"]["Seq"], "7");
}

#[tokio::test]
async fn names_as_long_as_kubernetes_allows_are_found_and_fit_a_file_system() {
    let (namespace, name) = ("n".repeat(63), format!("{}.{}", "a".repeat(40), "b".repeat(20)));
    let directory = tempfile::tempdir().unwrap();
    git(directory.path(), &["init", "-q", "--bare", "log.git"]);
    let cache = GitCache::new(directory.path().join("cache")).unwrap();
    let address = RemoteAddress::local(&directory.path().join("log.git")).unwrap();
    let ledger = cache.repository_at(address, Credentials::None).unwrap().ledger("prod").unwrap();
    let mut long = entry(&name, transition(1, TransitionEvent::FirstDeploy, "i:1", (0, 0)), "i:1");
    long.namespace.clone_from(&namespace);
    long.evidence = vec![Evidence { stage: "step-1".to_owned(), body: json!({"stage": "step-1"}) }];
    ledger.append(&[long]).await.unwrap();
    let tip = git(&directory.path().join("log.git"), &["rev-parse", BRANCH]).trim().to_owned();
    let clone = Clone { directory, tip };
    assert_eq!(clone.verify(VerifyOptions::default()).await.faults, []);
    let paths = git(&clone.path(), &["ls-tree", "-r", "--name-only", BRANCH]);
    assert!(paths.lines().flat_map(|path| path.split('/')).all(|part| part.len() < 255), "{paths}");
    let mut log = Command::new(env!("CARGO_BIN_EXE_sluice"));
    let output = log.args(["log", "--rollout", &format!("{namespace}/{name}")]).arg(clone.path()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("#1  FirstDeploy"));
}
