//! Replicas of one operator that write one log: who leads changes hands at any moment, also in the middle of a write.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::{Archive, VerifyOptions, verify};
use super::*;

const ROLLOUTS: [&str; 3] = ["api", "web", "worker"];
const ROUNDS: usize = 14;

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// One process with its own disk.
struct Replica {
    cache: GitCache,
    leads: Arc<AtomicBool>,
    ledger: Arc<Ledger>,
}

impl Replica {
    fn new(place: &Place) -> Self {
        let (cache, leads) = (place.fresh_cache(), Arc::new(AtomicBool::new(false)));
        let ledger = Arc::new(place.ledger());
        Self { cache, leads, ledger }
    }

    /// It leads from now on, and knows of the log what the status of the DeployRepo says.
    fn take_over(&mut self, place: &Place, tip: Option<&str>) {
        self.leads = Arc::new(AtomicBool::new(true));
        let leads = self.leads.clone();
        let ledger = self.cache.repository_at(place.address(), Credentials::None).unwrap().ledger("prod").unwrap();
        let ledger = ledger.expecting(tip.map(|tip| (BRANCH, tip)));
        self.ledger = Arc::new(ledger.while_leading(Arc::new(move || leads.load(Ordering::SeqCst))));
    }
}

/// What the outboxes hold: each Rollout's numbers above the confirmed one.
fn outbox(confirmed: &BTreeMap<&str, i64>, newest: &BTreeMap<&str, i64>) -> Vec<LedgerEntry> {
    let waiting =
        ROLLOUTS.iter().flat_map(|name| (confirmed[name] + 1..=newest[name]).map(|number| step(name, number)));
    waiting.collect()
}

async fn hand_over_and_over(seed: u64) {
    let place = Place::new();
    let mut dice = Dice(seed);
    let mut replicas: Vec<Replica> = (0..3).map(|_| Replica::new(&place)).collect();
    let mut leader = 0;
    let mut tip: Option<String> = None;
    let mut newest: BTreeMap<&str, i64> = ROLLOUTS.iter().map(|name| (*name, 0)).collect();
    let mut confirmed = newest.clone();
    replicas[0].take_over(&place, None);
    for round in 0..ROUNDS {
        let last = round + 1 == ROUNDS;
        for name in ROLLOUTS {
            *newest.get_mut(name).unwrap() += i64::try_from(dice.below(3)).unwrap();
        }
        let mut late = None;
        if !last && dice.below(3) > 0 {
            // It writes, and loses the lead somewhere on the way. Then the next one begins.
            let (ledger, entries) = (replicas[leader].ledger.clone(), outbox(&confirmed, &newest));
            late = Some(tokio::spawn(async move { ledger.append(&entries).await }));
            tokio::time::sleep(Duration::from_millis(dice.below(120))).await;
            replicas[leader].leads.store(false, Ordering::SeqCst);
            leader = (leader + 1 + usize::try_from(dice.below(2)).unwrap()) % replicas.len();
            replicas[leader].take_over(&place, tip.as_deref());
            *newest.get_mut("web").unwrap() += 1;
        }
        let entries = outbox(&confirmed, &newest);
        for attempt in 0.. {
            match replicas[leader].ledger.append(&entries).await {
                Ok(appended) => {
                    assert_eq!((appended.fork, appended.branch.as_str()), (None, BRANCH), "seed {seed}, round {round}");
                    tip = appended.tip;
                    confirmed.clone_from(&newest);
                    break;
                }
                // Two pushes met on the server.
                Err(GitError::Rejected { .. } | GitError::Failed { .. }) if attempt < 5 => {}
                Err(error) => panic!("seed {seed}, round {round}: {error}"),
            }
        }
        if let Some(late) = late {
            match late.await.unwrap() {
                Ok(appended) => assert_eq!(appended.fork, None, "seed {seed}, round {round}"),
                Err(GitError::NotLeading | GitError::Rejected { .. } | GitError::Failed { .. }) => {}
                Err(error) => panic!("seed {seed}, round {round}: {error}"),
            }
        }
    }
    let recorded = place.recorded();
    for name in ROLLOUTS {
        let own = |number: i64| format!("shop/{name}#{number}");
        let found: Vec<_> = recorded.iter().filter(|entry| entry.starts_with(&format!("shop/{name}#"))).collect();
        assert_eq!(found, (1..=newest[name]).map(own).collect::<Vec<_>>().iter().collect::<Vec<_>>(), "seed {seed}");
    }
    assert_eq!(place.git(&["for-each-ref", "--format=%(refname:short)", "refs/heads/rollout-log"]), BRANCH);
    let archive = Archive::open(&place.remote()).await.unwrap();
    let ledgers = archive.ledgers(None).await.unwrap();
    let report = verify(&archive, &ledgers[0], &VerifyOptions::default()).await.unwrap();
    // The templates of these tests have made-up names.
    let faults: Vec<_> = report.faults.iter().filter(|fault| !fault.place.ends_with("/pod.json")).collect();
    assert!(faults.is_empty(), "seed {seed}: {faults:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_take_over_in_the_middle_of_a_write_lose_and_double_nothing() {
    for seed in [1, 20, 300, 4000] {
        hand_over_and_over(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_logs_of_many_clusters_in_one_repository_do_not_meet() {
    let place = Place::new();
    let clusters = ["eu", "us", "test"];
    let write = |cluster: &'static str| {
        let repository = place.fresh_cache().repository_at(place.address(), Credentials::None).unwrap();
        async move {
            let ledger = repository.ledger(cluster).unwrap();
            for number in 1..=6 {
                let entry = LedgerEntry { cluster: cluster.to_owned(), ..step("web", number) };
                let appended = ledger.append(&[entry]).await.unwrap();
                assert_eq!(appended.fork, None);
            }
        }
    };
    futures::future::join_all(clusters.map(write)).await;
    for cluster in clusters {
        let expected: Vec<_> = (1..=6).map(|number| format!("{cluster}/shop/web#{number}")).collect();
        assert_eq!(place.recorded_in(&format!("rollout-log/{cluster}")), expected);
    }
}

#[tokio::test]
async fn a_leader_that_was_stopped_in_the_middle_of_a_write_begins_no_other_branch() {
    for still_leads in [false, true] {
        let place = Place::new();
        // It leads when it begins to write, and wakes up when another one has written on.
        let asked = Arc::new(AtomicBool::new(false));
        let leads = Arc::new(move || !asked.swap(true, Ordering::SeqCst) || still_leads);
        let first = place.ledger();
        first.append(&[step("web", 1)]).await.unwrap();
        let next = place.fresh_ledger();
        next.append(&[step("web", 2), step("web", 3)]).await.unwrap();
        let result = first.while_leading(leads).append(&[step("web", 2)]).await;
        let branches = place.git(&["for-each-ref", "--format=%(refname:short)", "refs/heads/rollout-log"]);
        assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3"], "what is there stays");
        if still_leads {
            // A writer that does not belong there is told all the same.
            assert!(result.unwrap().fork.is_some());
            assert_ne!(branches, BRANCH);
        } else {
            assert!(matches!(result, Err(GitError::NotLeading)), "{result:?}");
            assert_eq!(branches, BRANCH);
        }
    }
}
