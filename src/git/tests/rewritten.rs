//! History that is rewritten between two looks: the next look reads what is there, without anybody's hand.

use super::*;

/// What the server does for housekeeping: what no branch has is gone.
fn forget(place: &Place) {
    place.git(&["reflog", "expire", "--expire=now", "--all"]);
    place.git(&["gc", "-q", "--prune=now"]);
}

#[tokio::test]
async fn the_next_look_reads_the_new_tip_whatever_was_done_to_history() {
    let content = |text: &str| [("100644", "a.yaml", text.to_owned())];
    let place = Place::new();
    let commit = |text: &str| {
        let files = content(text);
        let files: Vec<_> = files.iter().map(|(mode, path, text)| (*mode, *path, text.as_str())).collect();
        place.commit("main", &files)
    };
    let set = |commit: &str| place.git(&["update-ref", "refs/heads/main", commit]);
    let repository = place.repository();
    let look = async || {
        let source = read(&repository, None).await.unwrap();
        (source.commit, source.files[0].content.clone())
    };
    let first = commit("one");
    let second = commit("two");
    let third = commit("three");
    assert_eq!(look().await, (third.clone(), "three".into()));
    // Forced back, and what was there is collected.
    set(&first);
    forget(&place);
    assert_eq!(look().await, (first.clone(), "one".into()));
    // Amended: another commit on the same parent, with other content.
    let second_again = commit("two, amended");
    assert_ne!(second_again, second);
    assert_eq!(look().await, (second_again.clone(), "two, amended".into()));
    // A rebase that drops one: the third on the first.
    let third_again = commit("three");
    let tree = place.git(&["rev-parse", &format!("{third_again}^{{tree}}")]);
    let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
    let rebased = place.git(&[&identity[..], &["commit-tree", "-p", &first, "-m", "three", &tree]].concat());
    set(&rebased);
    forget(&place);
    assert_eq!(look().await, (rebased.clone(), "three".into()));
    // Deleted, looked at, and made anew from nothing.
    place.git(&["update-ref", "-d", "refs/heads/main"]);
    forget(&place);
    let gone = read(&repository, None).await.unwrap_err();
    assert_eq!(gone.reason(), "BranchNotFound");
    let anew = commit("anew");
    assert_eq!(look().await, (anew.clone(), "anew".into()));
    // Renamed: the branch that is declared is missing until the declaration follows.
    place.git(&["branch", "-m", "main", "trunk"]);
    assert_eq!(read(&repository, None).await.unwrap_err().reason(), "BranchNotFound");
    let renamed = repository.read("trunk", None, &ReadLimits::default()).await.unwrap();
    assert_eq!(renamed.commit, anew);
    place.git(&["branch", "-m", "trunk", "main"]);
    // The same commit again, after a long history: the boundary of what we have moves, and nobody minds.
    for number in 0..20 {
        commit(&format!("later {number}"));
    }
    assert_eq!(look().await.1, "later 19");
    set(&anew);
    assert_eq!(look().await, (anew, "anew".into()));
}

/// A line of commits on a branch; the last one is its tip.
fn commits(place: &Place, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| place.commit("main", &[("100644", "a.yaml", name)])).collect()
}

fn set_back(place: &Place, commit: &str) {
    place.git(&["update-ref", "refs/heads/main", commit]);
}

#[tokio::test]
async fn a_move_of_the_branch_is_forward_or_a_rewriting_whatever_is_here_of_it() {
    for filter in ["true", "false"] {
        let place = Place::new();
        place.git(&["config", "uploadpack.allowFilter", filter]);
        let c = commits(&place, &["one", "two", "three", "four", "five"]);
        let moved = async |old: &str, new: &str| {
            // As after a restart, and with what an earlier look has left behind.
            let mut answers = Vec::new();
            for repository in
                [place.repository(), place.fresh_cache().repository_at(place.address(), Credentials::None).unwrap()]
            {
                read(&repository, None).await.unwrap();
                answers.push(repository.descent("main", old, new).await.unwrap());
                answers.push(repository.descent("main", old, new).await.unwrap());
            }
            answers.dedup();
            assert_eq!(answers.len(), 1, "{answers:?}");
            answers[0]
        };
        assert_eq!(moved(&c[4], &c[4]).await, Descent::Forward);
        assert_eq!(moved(&c[3], &c[4]).await, Descent::Forward, "one commit");
        assert_eq!(moved(&c[0], &c[4]).await, Descent::Forward, "several commits in one look");
        // `git reset --hard C3 && git push --force`.
        set_back(&place, &c[2]);
        assert_eq!(moved(&c[4], &c[2]).await, Descent::Rewritten);
        forget(&place);
        assert_eq!(moved(&c[4], &c[2]).await, Descent::Rewritten, "also when the server has forgotten the old one");
        // An amended commit, and a rebase that drops one.
        set_back(&place, &c[1]);
        let amended = commits(&place, &["three, amended"]);
        assert_eq!(moved(&c[2], &amended[0]).await, Descent::Rewritten);
        // Made anew from nothing.
        place.git(&["update-ref", "-d", "refs/heads/main"]);
        let anew = commits(&place, &["anew"]);
        assert_eq!(moved(&amended[0], &anew[0]).await, Descent::Rewritten);
    }
}

#[tokio::test]
async fn a_merge_is_forward_from_each_of_its_sides() {
    let place = Place::new();
    let trunk = commits(&place, &["one", "two"]);
    place.git(&["branch", "side", &trunk[0]]);
    let side = place.commit("side", &[("100644", "b.yaml", "b")]);
    let tree = place.git(&["rev-parse", "main^{tree}"]);
    let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
    let merge = ["commit-tree", "-p", &trunk[1], "-p", &side, "-m", "merge", &tree];
    let merge = place.git(&[&identity[..], &merge].concat());
    set_back(&place, &merge);
    let repository = place.repository();
    read(&repository, None).await.unwrap();
    for old in [&trunk[0], &trunk[1], &side] {
        assert_eq!(repository.descent("main", old, &merge).await.unwrap(), Descent::Forward);
    }
    set_back(&place, &trunk[1]);
    assert_eq!(repository.descent("main", &side, &trunk[1]).await.unwrap(), Descent::Rewritten);
}

#[tokio::test]
async fn beyond_the_bound_it_is_said_to_be_unknown_and_short_ways_are_known_all_the_same() {
    let place = Place::new();
    // A long history, made at once.
    let stream: String = (0..3000)
        .map(|number| {
            format!("commit refs/heads/main\ncommitter a <a@b> {} +0000\ndata 1\nx\n", 1_700_000_000 + number)
        })
        .collect();
    let mut import = Command::new("git");
    import.arg("--git-dir").arg(place.remote()).args(["fast-import", "--quiet"]).stdin(std::process::Stdio::piped());
    let mut child = import.spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), stream.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let at = |back: u32| place.git(&["rev-parse", &format!("main~{back}")]);
    let (tip, near, far, root) = (at(0), at(10), at(2500), at(2999));
    let repository = place.repository();
    let descent = async |old: &str, new: &str| repository.descent("main", old, new).await.unwrap();
    assert_eq!(descent(&near, &tip).await, Descent::Forward);
    assert_eq!(descent(&far, &tip).await, Descent::Unknown, "it is forward, and too far away to be seen");
    // Amended and set back at the end of it.
    set_back(&place, &at(1));
    let amended = commits(&place, &["amended"]);
    assert_eq!(descent(&tip, &amended[0]).await, Descent::Rewritten);
    set_back(&place, &near);
    assert_eq!(descent(&tip, &near).await, Descent::Rewritten);
    forget(&place);
    let fresh = place.fresh_cache().repository_at(place.address(), Credentials::None).unwrap();
    assert_eq!(fresh.descent("main", &tip, &near).await.unwrap(), Descent::Unknown, "nobody has the old one any more");
    set_back(&place, &root);
    assert_eq!(descent(&tip, &root).await, Descent::Rewritten, "the whole history is seen");
    assert_eq!(repository.descent("main", "HEAD", &root).await.unwrap_err().reason(), "InvalidName");
}
