//! Real git, on repositories of a moment.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::error::Rejection;
use super::{
    Credentials, Descent, Evidence, GitCache, GitError, Ledger, LedgerEntry, Missing, ReadLimits, RemoteAddress,
    Repository, Timeouts,
};
use crate::api::{Transition, TransitionEvent};

mod authorities;
mod change;
mod cost;
mod entries;
mod epochs;
mod faults;
mod full;
mod history;
mod race;
mod rewritten;

const BRANCH: &str = "rollout-log/prod";

/// A remote repository and a cache, both gone at the end.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        place.make_remote();
        place
    }
    fn make_remote(&self) {
        run(Command::new("git").args(["init", "-q", "--bare", "-b", "main"]).arg(self.remote()));
        self.git(&["config", "uploadpack.allowFilter", "true"]);
    }
    fn remote(&self) -> PathBuf {
        self.directory.path().join("remote.git")
    }
    fn git(&self, arguments: &[&str]) -> String {
        run(Command::new("git").arg("--git-dir").arg(self.remote()).args(arguments))
    }
    /// Commits exactly these files (mode, path, content) to a branch.
    fn commit(&self, branch: &str, files: &[(&str, &str, &str)]) -> String {
        self.import(&format!("refs/heads/{branch}"), "somebody's commit", files)
    }
    fn import(&self, reference: &str, message: &str, files: &[(&str, &str, &str)]) -> String {
        let mut parent = Command::new("git");
        parent.arg("--git-dir").arg(self.remote()).args(["rev-parse", "-q", "--verify", reference]);
        let parent = parent.output().unwrap();
        let mut stream = format!("commit {reference}\ncommitter a <a@b> 1700000000 +0000\n");
        stream += &format!("data {}\n{message}\n", message.len());
        if parent.status.success() {
            stream += &format!("from {}\ndeleteall\n", String::from_utf8(parent.stdout).unwrap().trim());
        }
        for (mode, path, content) in files {
            match *mode {
                "160000" => stream += &format!("M 160000 {content} {path}\n"),
                _ => stream += &format!("M {mode} inline {path}\ndata {}\n{content}\n", content.len()),
            }
        }
        let mut import = Command::new("git");
        import.arg("--git-dir").arg(self.remote()).args(["fast-import", "--quiet"]).stdin(std::process::Stdio::piped());
        let mut child = import.spawn().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), stream.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        self.git(&["rev-parse", reference])
    }
    fn hook(&self, name: &str, script: &str) {
        let path = self.remote().join("hooks").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fn remove_hook(&self, name: &str) {
        fs::remove_file(self.remote().join("hooks").join(name)).unwrap();
    }
    fn cache(&self) -> GitCache {
        GitCache::new(self.directory.path().join("cache")).unwrap()
    }
    /// What a new process with an empty disk has.
    fn fresh_cache(&self) -> GitCache {
        GitCache::new(tempfile::tempdir_in(self.directory.path()).unwrap().keep()).unwrap()
    }
    fn address(&self) -> RemoteAddress {
        RemoteAddress::local(&self.remote()).unwrap()
    }
    fn repository(&self) -> Repository {
        self.cache().repository_at(self.address(), Credentials::None).unwrap()
    }
    fn ledger(&self) -> Ledger {
        self.repository().ledger("prod").unwrap()
    }
    fn fresh_ledger(&self) -> Ledger {
        self.fresh_cache().repository_at(self.address(), Credentials::None).unwrap().ledger("prod").unwrap()
    }
    /// The recorded transitions, oldest first, as `namespace/name#number`.
    fn recorded(&self) -> Vec<String> {
        self.recorded_in(BRANCH)
    }
    fn recorded_in(&self, branch: &str) -> Vec<String> {
        let format =
            "--format=%(trailers:key=Rollout-Id,valueonly,separator=)#%(trailers:key=Rollout-Seq,valueonly,separator=)";
        let log = self.git(&["log", "--reverse", "--first-parent", format, branch]);
        log.lines().map(|line| line.trim_start_matches("prod/").to_owned()).collect()
    }
    fn tip(&self) -> String {
        self.git(&["rev-parse", BRANCH])
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn entry(name: &str, sequence: i64, event: TransitionEvent) -> LedgerEntry {
    LedgerEntry {
        cluster: "prod".into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-of-{name}"),
        transition: Transition {
            sequence,
            event,
            at: chrono::DateTime::from_timestamp(1_772_600_000 + sequence * 60, 0).unwrap(),
            stage: 1,
            stages: 3,
            weight_from: 0,
            weight_to: 20,
            revision_from: Some("aaaaaaaaaa".into()),
            revision_to: "bbbbbbbbbb".into(),
            attempt: 1,
            reason: "Because".into(),
            message: format!("number {sequence} of {name}"),
            verdict: None,
            actor: None,
            source_commit: None,
            analysis_runs: vec![],
        },
        covers: Vec::new(),
        state: json!({"phase": "Progressing"}),
        plan: "# What comes next\n".into(),
        evidence: vec![],
        template: Some(json!({"spec": {"containers": [{"name": "web", "image": "web:2"}]}})),
        operator: "sluice/0.1.0".into(),
    }
}

fn step(name: &str, sequence: i64) -> LedgerEntry {
    entry(name, sequence, TransitionEvent::StepCompleted)
}

async fn read(repository: &Repository, path: Option<&str>) -> super::Result<super::Source> {
    repository.read("main", path, &ReadLimits::default()).await
}

fn paths(source: &super::Source) -> Vec<&str> {
    source.files.iter().map(|file| file.path.as_str()).collect()
}

const TREE: [(&str, &str, &str); 9] = [
    ("100644", "deploy/prod/web.yaml", "kind: Rollout\n"),
    ("100644", "deploy/prod/sub/route.yml", "kind: HTTPRoute\n"),
    ("100755", "deploy/prod/settings.json", "{}\n"),
    ("100644", "deploy/prod/notes.txt", "not a manifest\n"),
    ("100644", "deploy/prod/.hidden/x.yaml", "kind: Hidden\n"),
    ("120000", "deploy/prod/link.yaml", "/etc/passwd"),
    ("160000", "deploy/prod/module.yaml", "1234567890123456789012345678901234567890"),
    ("120000", "current", "deploy/prod"),
    ("100644", "other/large.yaml", "kind: Elsewhere\n"),
];

#[tokio::test]
async fn reads_manifests_below_a_path_and_nothing_else() {
    for filter in ["true", "false"] {
        let place = Place::new();
        place.git(&["config", "uploadpack.allowFilter", filter]);
        let commit = place.commit("main", &TREE);
        let repository = place.repository();
        assert_eq!(repository.remote_head("main").await.unwrap().as_deref(), Some(commit.as_str()));
        assert_eq!(repository.remote_head("ain").await.unwrap(), None);
        let source = read(&repository, Some("deploy/prod/")).await.unwrap();
        assert_eq!(source.commit, commit);
        assert_eq!(
            paths(&source),
            ["deploy/prod/settings.json", "deploy/prod/sub/route.yml", "deploy/prod/web.yaml"],
            "filter {filter}"
        );
        assert_eq!(source.files[2].content, "kind: Rollout\n");
        assert_eq!(paths(&read(&repository, Some("deploy/prod/web.yaml")).await.unwrap()), ["deploy/prod/web.yaml"]);
        assert_eq!(read(&repository, None).await.unwrap().files.len(), 4);
    }
}

#[tokio::test]
async fn fetches_only_the_files_it_needs() {
    let place = Place::new();
    place.commit("main", &TREE);
    let elsewhere = place.git(&["rev-parse", "main:other/large.yaml"]);
    let needed = place.git(&["rev-parse", "main:deploy/prod/web.yaml"]);
    read(&place.repository(), Some("deploy")).await.unwrap();
    let cache = fs::read_dir(place.directory.path().join("cache"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path().join("source.git"));
    let cache = { cache }.find(|path| path.exists()).unwrap();
    let has = |object: &str| {
        let check = Command::new("git").arg("--git-dir").arg(&cache).args(["cat-file", "-e", object]).output().unwrap();
        check.status.success()
    };
    assert!(has(&needed) && !has(&elsewhere));
}

#[tokio::test]
async fn follows_the_branch_wherever_it_goes() {
    let place = Place::new();
    let repository = place.repository();
    place.commit("main", &[("100644", "a.yaml", "one")]);
    assert_eq!(read(&repository, None).await.unwrap().files[0].content, "one");
    let second = place.commit("main", &[("100644", "a.yaml", "two"), ("100644", "b.yaml", "new")]);
    assert_eq!(read(&repository, None).await.unwrap().files[0].content, "two");
    // Rewritten to an unrelated history, then set back.
    place.git(&["update-ref", "-d", "refs/heads/main"]);
    place.commit("main", &[("100644", "c.yaml", "three")]);
    assert_eq!(paths(&read(&repository, None).await.unwrap()), ["c.yaml"]);
    place.git(&["update-ref", "refs/heads/main", &second]);
    let source = read(&repository, None).await.unwrap();
    assert_eq!(paths(&source), ["a.yaml", "b.yaml"]);
    assert_eq!(source.commit, second);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let place = Place::new();
    place.commit("main", &TREE);
    let repository = place.repository();
    let missing = |result: super::Result<super::Source>| match result {
        Err(GitError::NotFound { what, name, .. }) => (what, name),
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(read(&repository, Some("deploy/stage")).await), (Missing::Path, "deploy/stage".into()));
    let linked = read(&repository, Some("current")).await;
    assert_eq!(missing(linked), (Missing::Path, "current".into()), "a link is not followed");
    assert_eq!(missing(read(&repository, Some("current/web.yaml")).await).0, Missing::Path);
    let branch = repository.read("nope", None, &ReadLimits::default()).await;
    assert_eq!(missing(branch), (Missing::Branch, "nope".into()));
    fs::rename(place.remote(), place.directory.path().join("away")).unwrap();
    assert_eq!(missing(read(&repository, None).await).0, Missing::Repository);
    fs::rename(place.directory.path().join("away"), place.remote()).unwrap();
    assert_eq!(read(&repository, Some("other")).await.unwrap().files.len(), 1);
}

#[tokio::test]
async fn limits_are_kept() {
    let place = Place::new();
    place.commit("main", &TREE);
    let repository = place.repository();
    let what = |result: super::Result<super::Source>| match result {
        Err(GitError::TooLarge { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    let limits = ReadLimits { files: 3, ..ReadLimits::default() };
    assert!(what(repository.read("main", None, &limits).await).contains("number of manifests"));
    let limits = ReadLimits { file_bytes: 14, ..ReadLimits::default() };
    assert!(what(repository.read("main", None, &limits).await).contains("deploy/prod/sub/route.yml"));
    let limits = ReadLimits { bytes: 40, ..ReadLimits::default() };
    assert!(what(repository.read("main", None, &limits).await).contains("together"));
    place.commit("main", &[("100644", "a.yaml", "x")]);
    assert_eq!(repository.read("main", None, &limits).await.unwrap().files.len(), 1);
}

#[tokio::test]
async fn a_damaged_copy_is_made_anew() {
    let place = Place::new();
    place.commit("main", &TREE);
    let repository = place.repository();
    read(&repository, None).await.unwrap();
    let ledger = place.ledger();
    ledger.append(&[step("web", 1)]).await.unwrap();
    for store in fs::read_dir(place.directory.path().join("cache")).unwrap().flatten() {
        for name in ["source.git", "ledger.git"] {
            // As after a crash in the middle of a write: objects gone, a lock left behind.
            let objects = store.path().join(name).join("objects");
            if objects.exists() {
                fs::remove_dir_all(&objects).unwrap();
                fs::create_dir_all(objects.join("pack")).unwrap();
                fs::write(store.path().join(name).join("shallow.lock"), "").unwrap();
            }
        }
    }
    assert_eq!(read(&repository, None).await.unwrap().files.len(), 4);
    ledger.append(&[step("web", 2)]).await.unwrap();
    place.ledger().append(&[step("web", 3)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3"]);
}

#[tokio::test]
async fn one_commit_for_each_transition_in_order_and_git_reads_it() {
    let place = Place::new();
    let main = place.commit("main", &TREE);
    let updates = place.directory.path().join("updates");
    place.hook("update", &format!("echo \"$@\" >> '{}'", updates.display()));
    let ledger = place.ledger();
    // Two Rollouts, given out of order, one of them with a clock that went back.
    let mut late = step("web", 2);
    late.transition.at -= chrono::TimeDelta::hours(1);
    let appended = ledger.append(&[step("api", 5), late, step("web", 1), step("web", 3)]).await.unwrap();
    assert_eq!(appended.tip.as_deref(), Some(place.tip().as_str()));
    assert_eq!(appended.recorded.len(), 4);
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3", "shop/api#5"]);
    ledger.append(&[step("web", 4)]).await.unwrap();
    let body = place.git(&["log", "-1", "--format=%an <%ae>|%cn|%aI|%cI|%s", BRANCH]);
    let stamp = "2026-03-04T04:57:20+00:00";
    let who = "Sluice <sluice@prod>|Sluice";
    assert_eq!(body, format!("{who}|{stamp}|{stamp}|shop/web: StepCompleted 1/3 0%→20%"));
    // The chain of one Rollout, over pushes and other Rollouts.
    let previous = place.git(&["log", "-1", "--format=%(trailers:key=Rollout-Prev,valueonly)", BRANCH]);
    assert_eq!(previous, place.git(&["rev-parse", &format!("{BRANCH}~2")]));
    let files = place.git(&["ls-tree", "-r", "--name-only", BRANCH]);
    let expected = "README.md shop/api/README.md shop/api/plan.md shop/api/pod.json shop/api/state.json \
                    shop/web/README.md shop/web/plan.md shop/web/pod.json shop/web/state.json";
    assert_eq!(files.split('\n').collect::<Vec<_>>().join(" "), expected);
    assert!(place.git(&["show", &format!("{BRANCH}:README.md")]).contains("number 4 of web"));
    place.git(&["fsck", "--strict"]);
    // S9: no other ref was touched, and every update was a fast-forward.
    assert_eq!(place.git(&["rev-parse", "main"]), main);
    let updates = fs::read_to_string(updates).unwrap();
    assert_eq!(updates.lines().count(), 2);
    for line in updates.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[0], format!("refs/heads/{BRANCH}"));
        if !words[1].starts_with("0000") {
            place.git(&["merge-base", "--is-ancestor", words[1], words[2]]);
        }
    }
}

#[tokio::test]
async fn what_is_recorded_is_not_recorded_again() {
    let place = Place::new();
    let ledger = place.ledger();
    let first = ledger.append(&[step("web", 1), step("web", 2)]).await.unwrap();
    for ledger in [&ledger, &place.ledger(), &place.fresh_ledger()] {
        let again = ledger.append(&[step("web", 1), step("web", 2)]).await.unwrap();
        assert_eq!(again, first);
    }
    // A Rollout of the same name begins again at 1; a late one of the old is known.
    let mut reborn = step("web", 1);
    reborn.uid = "reborn".into();
    place.fresh_ledger().append(&[reborn, step("web", 2)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#1"]);
    place.fresh_ledger().append(&[step("web", 2)]).await.unwrap();
    assert_eq!(place.recorded().len(), 3);
    assert_eq!(place.ledger().append(&[]).await.unwrap().tip, Some(place.tip()));
}

/// The server takes the push and then never answers: the client cannot know.
#[tokio::test]
async fn a_push_whose_answer_is_lost_is_looked_up_and_not_repeated() {
    let place = Place::new();
    let timeouts = Timeouts { push: Duration::from_secs(2), ..Timeouts::default() };
    let repository =
        |cache: GitCache| cache.with_timeouts(timeouts).repository_at(place.address(), Credentials::None).unwrap();
    let ledger = repository(place.cache()).ledger("prod").unwrap();
    ledger.append(&[step("web", 1)]).await.unwrap();
    let known = place.tip();
    place.hook("post-receive", "sleep 600");
    let began = Instant::now();
    let error = ledger.append(&[step("web", 2)]).await.unwrap_err();
    assert!(matches!(error, GitError::Timeout { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2"], "the server did take it");
    place.remove_hook("post-receive");
    // The same writer, with more to say; and one that begins after a crash.
    ledger.append(&[step("web", 2), step("web", 3)]).await.unwrap();
    let next = repository(place.fresh_cache()).ledger("prod").unwrap().expecting(Some((BRANCH, &known)));
    next.append(&[step("web", 2), step("web", 3), step("web", 4)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3", "shop/web#4"]);
}

#[tokio::test]
async fn a_hook_that_refuses_and_a_remote_that_is_away_lose_nothing() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.append(&[step("web", 1)]).await.unwrap();
    place.hook("pre-receive", "echo 'only on Tuesdays' >&2; exit 1");
    let error = ledger.append(&[step("web", 2)]).await.unwrap_err();
    assert!(matches!(error, GitError::Rejected { why: Rejection::Hook, .. }), "{error}");
    assert!(error.to_string().contains("only on Tuesdays"), "{error}");
    place.remove_hook("pre-receive");
    let away = place.directory.path().join("away");
    fs::rename(place.remote(), &away).unwrap();
    let error = ledger.append(&[step("web", 2), step("web", 3)]).await.unwrap_err();
    assert_eq!(error.reason(), "RepositoryNotFound");
    fs::rename(&away, place.remote()).unwrap();
    ledger.append(&[step("web", 2), step("web", 3)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3"]);
}

#[tokio::test]
async fn a_branch_that_was_deleted_or_set_back_is_restored_whole() {
    let place = Place::new();
    let ledger = place.ledger();
    ledger.append(&[step("web", 1)]).await.unwrap();
    let first = place.tip();
    ledger.append(&[step("web", 2)]).await.unwrap();
    place.git(&["update-ref", "-d", &format!("refs/heads/{BRANCH}")]);
    ledger.append(&[step("web", 3)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3"]);
    place.git(&["update-ref", &format!("refs/heads/{BRANCH}"), &first]);
    ledger.append(&[step("web", 4)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3", "shop/web#4"]);
}

#[tokio::test]
async fn a_new_cluster_reads_what_was_aborted_and_what_was_good() {
    let place = Place::new();
    let nothing = super::LedgerContents { branch: BRANCH.to_owned(), ..Default::default() };
    assert_eq!(place.fresh_ledger().read().await.unwrap(), nothing);
    let ledger = place.ledger();
    let promoted = entry("web", 1, TransitionEvent::Promoted);
    let mut aborted = entry("web", 2, TransitionEvent::Aborted);
    aborted.transition.revision_to = "cccccccccc".into();
    aborted.template = Some(json!({"bad": true}));
    aborted.evidence = vec![Evidence { stage: "step-1".into(), body: json!({"verdict": "Fail"}) }];
    ledger.append(&[promoted.clone(), aborted.clone()]).await.unwrap();
    let key = ("shop".to_owned(), "web".to_owned());
    for ledger in [&ledger, &place.fresh_ledger()] {
        let contents = ledger.read().await.unwrap();
        assert_eq!(contents.tip, Some(place.tip()));
        let web = &contents.rollouts[&key];
        assert_eq!((web.uid.as_str(), web.sequence), ("uid-of-web", 2));
        assert_eq!(web.aborted, BTreeMap::from([("cccccccccc".to_owned(), "number 2 of web".to_owned())]));
        assert_eq!(web.aborts, BTreeMap::from([("cccccccccc".to_owned(), 1)]));
        let (revision, template) = web.last_good.clone().unwrap();
        assert_eq!((revision, template.unwrap().0), ("bbbbbbbbbb".to_owned(), promoted.template.clone().unwrap()));
    }
    let evidence = place.git(&["show", &format!("{BRANCH}:shop/web/facts.json")]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&evidence).unwrap(), json!({"step-1": {"verdict": "Fail"}}));
    // Tried again with a person's word, and good.
    aborted.transition.sequence = 3;
    aborted.transition.attempt = 2;
    aborted.transition.event = TransitionEvent::Promoted;
    place.fresh_ledger().append(&[aborted]).await.unwrap();
    let web = place.fresh_ledger().read().await.unwrap().rollouts.remove(&key).unwrap();
    assert_eq!(web.aborted, BTreeMap::new());
    assert_eq!(web.last_good.unwrap().0, "cccccccccc");
    assert!(place.git(&["ls-tree", "-r", "--name-only", BRANCH, "shop/web/aborted/"]).is_empty());
}

#[tokio::test]
async fn a_ledger_of_an_earlier_layout_is_refused_and_not_taken_for_an_empty_one() {
    let place = Place::new();
    place.commit(BRANCH, &[("100644", "state/shop/web.json", "{}")]);
    let refused = place.ledger().read().await.unwrap_err().to_string();
    assert!(refused.contains("state/shop/web.json") && refused.contains("earlier version"), "{refused}");
}

#[tokio::test]
async fn a_local_ledger_needs_no_remote_and_no_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rehearsal");
    // Inside a runtime, which must not matter.
    let ledger = Ledger::local(&path, "demo").unwrap();
    let entries: Vec<_> = (1..=3).map(|n| LedgerEntry { cluster: "demo".into(), ..step("web", n) }).collect();
    let appended = ledger.append(&entries).unwrap();
    ledger.append(&entries).unwrap();
    let log = run(Command::new("git").arg("-C").arg(&path).args(["log", "--format=%H"]));
    assert_eq!(log.lines().count(), 3);
    assert_eq!(log.lines().next().map(str::to_owned), appended.tip);
    assert_eq!(ledger.read().unwrap().rollouts.len(), 1);
    assert!(matches!(Ledger::local(&path, "Not A Name"), Err(GitError::InvalidName { field: "cluster", .. })));
    assert!(matches!(ledger.append(&[step("web", 4)]), Err(GitError::InvalidName { field: "cluster", .. })));
}

const CANARY: &str = "canary-5up3r53cr3t";

/// `git http-backend` behind a password, and what was seen on the way.
#[derive(Clone, Default)]
struct Server {
    root: PathBuf,
    redirect: Option<String>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    authorizations: Vec<Option<String>>,
    leaks: Vec<String>,
}

impl Server {
    async fn start(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(serve).with_state(self);
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}")
    }
}

async fn serve(State(server): State<Server>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let given = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    {
        let mut seen = server.seen.lock().unwrap();
        seen.authorizations.push(given.clone());
        // While git and its helper wait for this answer, their arguments are there for everybody to read.
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            if arguments.contains("git") && leaks(&arguments) {
                seen.leaks.push(arguments);
            }
        }
    }
    if let Some(target) = &server.redirect {
        return (StatusCode::FOUND, [("location", format!("{target}{uri}"))]).into_response();
    }
    if given.as_deref() != Some(&format!("Basic {}", encoded())) {
        return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"x\"")]).into_response();
    }
    let mut backend = tokio::process::Command::new("git");
    backend
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &server.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_USER", "sluice")
        .env("PATH_INFO", uri.path())
        .env("QUERY_STRING", uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", method.as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut child = backend.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::spawn(async move {
        let _ = stdin.write_all(&body).await;
    });
    let output = child.wait_with_output().await.unwrap().stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let mut response = Response::builder();
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value[..3].parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    response.body(output[end + 4..].to_vec().into()).unwrap()
}

fn encoded() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(format!("sluice:{CANARY}"))
}

fn leaks(text: &str) -> bool {
    text.contains(CANARY) || text.contains(&encoded())
}

fn basic() -> Credentials {
    Credentials::Basic { username: "sluice".into(), password: CANARY.into() }
}

#[tokio::test]
async fn over_http_the_password_opens_and_is_seen_nowhere() {
    let place = Place::new();
    place.git(&["config", "http.receivepack", "true"]);
    let commit = place.commit("main", &TREE);
    let server = Server { root: place.directory.path().to_owned(), ..Server::default() };
    let seen = server.seen.clone();
    let url = format!("{}/remote.git", server.start().await);
    let cache = place.cache();
    let repository = cache.repository(&url, basic()).unwrap();
    assert_eq!(read(&repository, Some("deploy")).await.unwrap().commit, commit);
    repository.ledger("prod").unwrap().append(&[step("web", 1)]).await.unwrap();
    assert_eq!(place.recorded(), ["shop/web#1"]);
    {
        let seen = seen.lock().unwrap();
        assert!(seen.authorizations.iter().any(Option::is_some));
        assert_eq!(seen.leaks, Vec::<String>::new(), "in the arguments of a process");
    }
    // The wrong one, none, and a refusal that repeats the password: no message shows it.
    let wrong = Credentials::Basic { username: "sluice".into(), password: format!("{CANARY}-wrong") };
    for credentials in [wrong, Credentials::None] {
        let error = read(&cache.repository(&url, credentials).unwrap(), None).await.unwrap_err();
        assert_eq!(error.reason(), "AccessDenied", "{error}");
        assert!(!leaks(&format!("{error} {error:?}")), "{error}");
    }
    place.hook("pre-receive", &format!("echo 'your password is {CANARY}' >&2; exit 1"));
    let error = repository.ledger("prod").unwrap().append(&[step("web", 2)]).await.unwrap_err();
    assert!(error.to_string().contains("your password is ***") && !leaks(&format!("{error:?}")), "{error}");
    // Nor does anything that stays on disk.
    let grep = Command::new("grep").args(["-r", "-l", "-F", CANARY]).arg(place.directory.path().join("cache")).output();
    assert_eq!(String::from_utf8_lossy(&grep.unwrap().stdout), "");
    let error = cache.repository(&url.replace("://", &format!("://sluice:{CANARY}@")), basic()).err().unwrap();
    assert!(!leaks(&format!("{error} {error:?}")), "{error}");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    let place = Place::new();
    place.commit("main", &TREE);
    let target = Server { root: place.directory.path().to_owned(), ..Server::default() };
    let seen = target.seen.clone();
    let redirect = Some(target.start().await);
    let url = Server { redirect, ..Server::default() }.start().await;
    let repository = place.cache().repository(&format!("{url}/remote.git"), basic()).unwrap();
    let error = read(&repository, None).await.unwrap_err();
    assert_eq!(error.reason(), "RepositoryMoved", "{error}");
    assert!(seen.lock().unwrap().authorizations.is_empty());
}

#[tokio::test]
async fn a_server_that_hangs_or_is_not_there_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let place = Place::new();
    let timeouts = Timeouts { ask: Duration::from_millis(500), ..Timeouts::default() };
    let cache = place.cache().with_timeouts(timeouts);
    let url = format!("http://{address}/a-name-to-look-for-{}", std::process::id());
    let began = Instant::now();
    let error = cache.repository(&url, Credentials::None).unwrap().remote_head("main").await.unwrap_err();
    assert_eq!(error.reason(), "Timeout", "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
    // Its helper has gone too.
    let alive = |what: &str| {
        let commands = fs::read_dir("/proc").unwrap().flatten().map(|process| process.path().join("cmdline"));
        commands.filter_map(|path| fs::read_to_string(path).ok()).any(|command| command.contains(what))
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while alive(&url) {
        assert!(Instant::now() < deadline, "git is still running");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(listener);
    for url in [format!("http://{address}/x"), format!("ssh://git@{address}/x")] {
        let credentials = if url.starts_with("ssh") { ssh() } else { basic() };
        let cache = place.cache();
        let error = cache.repository(&url, credentials).unwrap().remote_head("main").await.unwrap_err();
        assert_eq!(error.reason(), "RepositoryUnreachable", "{error}");
    }
}

fn ssh() -> Credentials {
    Credentials::Ssh {
        identity: format!("-----BEGIN\n{CANARY}\n-----END"),
        known_hosts: "host ssh-ed25519 AAAA".into(),
    }
}

#[tokio::test]
async fn an_ssh_key_is_a_private_file_and_goes_with_its_user() {
    let place = Place::new();
    let cache = place.cache();
    let keys = || {
        let entries = fs::read_dir(place.directory.path().join("cache")).unwrap().flatten().map(|entry| entry.path());
        entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ssh-")).collect::<Vec<_>>()
    };
    let repository = cache.repository("ssh://git@git.example/shop", ssh()).unwrap();
    let directory = keys().pop().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("identity"))), (0o700, 0o600));
    assert!(fs::read_to_string(directory.join("identity")).unwrap().ends_with("-----END\n"));
    let git = repository.remote.git(None, Path::new("/nonexistent"));
    let command = git.environment.iter().find(|(name, _)| name == "GIT_SSH_COMMAND").unwrap().1.to_str().unwrap();
    assert!(command.contains("StrictHostKeyChecking=yes") && command.contains("known_hosts"), "{command}");
    assert!(!leaks(command) && !leaks(&git.options.join(" ")));
    assert_eq!(git.scrubber.clean(&format!("load key: {CANARY}")), "load key: ***");
    drop(repository);
    assert!(keys().is_empty());
    // What cannot work is refused before anything is asked, and says which key of the Secret is to blame.
    for (url, credentials, key) in [
        ("ssh://git@git.example/shop", Credentials::None, "identity"),
        ("ssh://git@git.example/shop", basic(), "known_hosts"),
        ("https://git.example/shop", ssh(), "password"),
        (
            "ssh://git@git.example/shop",
            Credentials::Ssh { identity: CANARY.into(), known_hosts: " ".into() },
            "known_hosts",
        ),
        (
            "https://git.example/shop",
            Credentials::Basic { username: "x".into(), password: format!("{CANARY}\nEvil: header") },
            "username",
        ),
    ] {
        let error = cache.repository(url, credentials).err().unwrap();
        assert_eq!(error.reason(), "InvalidCredentials");
        assert!(error.to_string().contains(key) && !leaks(&error.to_string()), "{error}");
    }
}

#[tokio::test]
async fn two_hundred_transitions_are_one_push_and_one_process() {
    let place = Place::new();
    let updates = place.directory.path().join("updates");
    place.hook("update", &format!("echo x >> '{}'", updates.display()));
    let entries: Vec<_> = (1..=50).flat_map(|n| ["a", "b", "c", "d"].map(|name| step(name, n))).collect();
    let began = Instant::now();
    place.ledger().append(&entries).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(place.recorded().len(), 200);
    assert_eq!(fs::read_to_string(updates).unwrap().lines().count(), 1);
    assert!(super::check_executable().await.unwrap().starts_with("git version 2"));
}
