//! Ledgers as they are read back from clones of all kinds.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::{Archive, ArchivedLedger, Commit, Content, LedgerPolicy};
use super::{BRANCH, Evidence, GitError, Place, run, step};
use crate::api::Epochs;

/// Two Rollouts, evidence, and an epoch of a later quarter.
async fn two_epochs() -> Place {
    let place = Place::new();
    let quarterly = LedgerPolicy { epochs: Epochs::Quarterly, ..LedgerPolicy::default() };
    let ledger = place.ledger().with_policy(quarterly);
    let mut first = step("web", 1);
    first.transition.actor = Some("ann \"the\" admin".into());
    first.evidence.push(Evidence { stage: "step-1".into(), body: serde_json::json!({"verdict": "Pass"}) });
    let mut second = step("api", 1);
    second.transition.at += chrono::TimeDelta::seconds(1);
    ledger.append(&[first, second]).await.unwrap();
    let mut april = step("web", 2);
    april.transition.at = "2026-04-01T00:00:00Z".parse().unwrap();
    ledger.append(&[april]).await.unwrap();
    place
}

fn clone(place: &Place, options: &[&str]) -> PathBuf {
    let to = tempfile::tempdir_in(place.directory.path()).unwrap().keep();
    run(Command::new("git").args(["clone", "-q"]).args(options).arg(place.remote()).arg(&to));
    to
}

async fn only(archive: &Archive) -> ArchivedLedger {
    let mut ledgers = archive.ledgers(None).await.unwrap();
    assert_eq!(ledgers.len(), 1);
    ledgers.remove(0)
}

async fn commits(path: &Path) -> Vec<(Commit, Vec<String>)> {
    let archive = Archive::open(path).await.unwrap();
    let chain = archive.chain(&only(&archive).await).await.unwrap();
    assert_eq!(chain.missing, None);
    let mut history = archive.history(chain.segments).await.unwrap();
    let mut commits = Vec::new();
    while let Some(commit) = history.next().await.unwrap() {
        let changes = history.changes(&commit).await.unwrap();
        commits.push((commit, changes.into_iter().map(|change| change.path).collect()));
    }
    commits
}

#[tokio::test]
async fn a_history_is_read_across_epochs_from_any_clone() {
    let place = two_epochs().await;
    place.commit("main", &[("100644", "a", "b")]);
    for path in [place.remote(), clone(&place, &[]), clone(&place, &["--mirror"]), clone(&place, &["-o", "a/b"])] {
        let commits = commits(&path).await;
        let told: Vec<(&str, String)> = commits.iter().map(|(commit, _)| (&*commit.branch, commit.subject())).collect();
        let next = "rollout-log/prod@2026q2";
        assert_eq!(
            told,
            [
                (BRANCH, "shop/web: StepCompleted 1/3 0%→20%".to_owned()),
                (BRANCH, "shop/api: StepCompleted 1/3 0%→20%".to_owned()),
                (next, "prod: epoch 2026q2".to_owned()),
                (next, "shop/web: StepCompleted 1/3 0%→20%".to_owned()),
            ]
        );
        let (first, changed) = &commits[0];
        assert_eq!(first.parents, Vec::<String>::new());
        assert_eq!(first.author.to_string(), "Sluice <sluice@prod> 1772600060 +0000");
        assert_eq!(first.author, first.committer);
        assert_eq!(first.at().unwrap().timestamp(), 1_772_600_060);
        assert_eq!((first.body().as_str(), first.signed), ("number 1 of web", false));
        let trailers = first.trailers();
        assert_eq!(trailers.get("Id"), Some("prod/shop/web"));
        assert_eq!(trailers.get("Actor"), Some("ann \"the\" admin"), "decoded");
        assert_eq!(trailers.get("Weight"), Some("0->20"));
        assert_eq!(trailers.to_json()["Seq"], "1");
        let state = "shop/web/state.json";
        let all = ["shop/web/README.md", "shop/web/facts.json", "shop/web/plan.md"];
        assert_eq!(changed[..3], all.map(str::to_owned));
        assert_eq!(commits[2].1, Vec::<String>::new(), "an epoch begins with the tree of the one before");
        assert!(commits[2].0.parents.is_empty());
        assert!(commits[3].1.contains(&state.to_owned()));
    }
}

#[tokio::test]
async fn what_files_hold_is_read_when_it_is_asked_for() {
    let place = two_epochs().await;
    let archive = Archive::open(&place.remote()).await.unwrap();
    let chain = archive.chain(&only(&archive).await).await.unwrap();
    let mut history = archive.history(chain.segments).await.unwrap();
    let first = history.next().await.unwrap().unwrap();
    let changes = history.changes(&first).await.unwrap();
    let evidence = changes.iter().find(|change| change.path.ends_with("/facts.json")).unwrap();
    let wanted = Content::File(b"{\n  \"step-1\": {\n    \"verdict\": \"Pass\"\n  }\n}\n".to_vec());
    assert_eq!(history.read(evidence.file().unwrap()).await.unwrap(), wanted);
    assert_eq!(history.read(&format!("{}:{}", first.id, evidence.path)).await.unwrap(), wanted);
    for nothing in [format!("{}:no such file", first.id), first.id.clone(), "x\ny".to_owned(), String::new()] {
        assert_eq!(history.read(&nothing).await.unwrap(), Content::None, "{nothing:?}");
    }
    assert!(history.next().await.unwrap().is_some(), "and the stream goes on");
}

#[tokio::test]
async fn a_part_of_a_history_knows_what_was_before_it() {
    let place = two_epochs().await;
    let archive = Archive::open(&place.remote()).await.unwrap();
    let mut segments = archive.chain(&only(&archive).await).await.unwrap().segments;
    segments.truncate(1);
    segments[0].after = Some(place.git(&["rev-parse", &format!("{BRANCH}~1")]));
    let mut history = archive.history(segments).await.unwrap();
    let commit = history.next().await.unwrap().unwrap();
    assert_eq!(commit.trailers().get("Id"), Some("prod/shop/api"));
    let paths: Vec<_> = history.changes(&commit).await.unwrap().into_iter().map(|change| change.path).collect();
    assert_eq!(
        paths,
        ["README.md", "shop/api/README.md", "shop/api/plan.md", "shop/api/pod.json", "shop/api/state.json"]
    );
    assert_eq!(history.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_epoch_whose_past_is_not_in_the_clone_says_so() {
    let place = two_epochs().await;
    let tip = place.tip();
    let path = clone(&place, &["--no-local", "--single-branch", "-b", "rollout-log/prod@2026q2"]);
    let archive = Archive::open(&path).await.unwrap();
    let chain = archive.chain(&only(&archive).await).await.unwrap();
    assert_eq!(chain.missing, Some((BRANCH.to_owned(), tip)));
    assert_eq!(chain.segments.len(), 1);
}

#[tokio::test]
async fn a_clone_cannot_make_us_run_or_believe_anything() {
    let place = two_epochs().await;
    let path = clone(&place, &["--mirror"]);
    let git = |arguments: &[&str]| run(Command::new("git").arg("--git-dir").arg(&path).args(arguments));
    let ran = path.join("ran");
    let program = format!("touch {}; false", ran.display());
    for name in ["core.fsmonitor", "diff.external", "gpg.program", "gpg.ssh.program", "core.sshCommand", "core.pager"] {
        git(&["config", name, &program]);
    }
    git(&["config", "log.showSignature", "true"]);
    git(&["commit-graph", "write", "--reachable"]);
    // A replacement that hides the first commit.
    git(&["replace", &place.git(&["rev-parse", &format!("{BRANCH}~1")]), &place.tip()]);
    assert_eq!(commits(&path).await.len(), 4);
    assert!(!ran.exists());
}

#[tokio::test]
async fn where_there_is_no_ledger_it_is_said_what_is_missing() {
    let place = Place::new();
    place.commit("main", &[("100644", "a", "b")]);
    let open = |path: PathBuf| async move { Archive::open(&path).await.err().map(|error| error.to_string()) };
    let nowhere = open(place.directory.path().join("nowhere")).await.unwrap();
    assert!(nowhere.contains("there is no repository"), "{nowhere}");
    let folder = open(place.directory.path().to_owned()).await.unwrap();
    assert!(folder.contains("there is no repository"), "{folder}");
    let archive = Archive::open(&place.remote()).await.unwrap();
    let error = archive.ledgers(None).await.unwrap_err();
    assert!(matches!(error, GitError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("branch \"rollout-log/*\""), "{error}");
    assert_eq!(archive.file("main", "a").await.unwrap(), Some(b"b".to_vec()));
    assert_eq!(archive.file("main", "b").await.unwrap(), None);
    assert_eq!(archive.file("other", "a").await.unwrap(), None);
    place.ledger().append(&[step("web", 1), step("web", 2)]).await.unwrap();
    let address = format!("file://{}", place.remote().display());
    let shallow = tempfile::tempdir().unwrap();
    let branch = ["--depth=1", "-q", "-b", BRANCH, &address];
    run(Command::new("git").arg("clone").args(branch).arg(shallow.path()));
    let cut = open(shallow.path().to_owned()).await.unwrap();
    assert!(cut.contains("--unshallow"), "{cut}");
}

#[tokio::test]
async fn of_two_references_to_one_branch_the_longer_counts_and_the_other_is_told() {
    let place = two_epochs().await;
    let path = clone(&place, &["-b", BRANCH]);
    let git = |arguments: &[&str]| run(Command::new("git").arg("-C").arg(&path).args(arguments));
    let (whole, before) = (place.tip(), place.git(&["rev-parse", &format!("{BRANCH}~1")]));
    git(&["reset", "-q", "--hard", &before]);
    let ledger = only(&Archive::open(&path).await.unwrap()).await;
    assert_eq!(ledger.branches[0].tip, whole);
    assert_eq!(ledger.branches[0].elsewhere[&format!("refs/heads/{BRANCH}")], before);
    git(&["update-ref", &format!("refs/remotes/origin/{BRANCH}"), &before]);
    git(&["update-ref", &format!("refs/heads/{BRANCH}"), &whole]);
    assert_eq!(only(&Archive::open(&path).await.unwrap()).await.branches[0].tip, whole);
}
