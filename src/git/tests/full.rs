//! Our own disk has no room: what waits is told why, nothing is lost, and it goes on when there is room again.

use super::super::command::PROGRAM;
use super::*;

/// Git on this thread cannot make any file longer than so many blocks of 512 bytes, as on a disk without room.
fn with_room_for(place: &Place, blocks: u32) {
    let program = place.directory.path().join(format!("git-with-{blocks}"));
    // The signal would end git before it can say anything.
    fs::write(&program, format!("trap '' XFSZ\nulimit -f {blocks}\nexec git \"$@\"\n")).unwrap();
    PROGRAM.set(Some(program));
}

/// An entry that takes more room than is left.
fn large(number: i64) -> LedgerEntry {
    let mut entry = step("web", number);
    let noise: String = (0..4000_u64).map(|one| format!("{:x}", one.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    entry.plan = format!("# Plan {number}\n{noise}\n");
    entry
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_waits_is_written_when_there_is_room() {
    for blocks in [0, 1, 8] {
        let place = Place::new();
        let ledger = place.ledger();
        ledger.append(&[step("web", 1)]).await.unwrap();
        with_room_for(&place, blocks);
        let waiting = [large(2), large(3)];
        for ledger in [&ledger, &place.ledger()] {
            let error = ledger.append(&waiting).await.unwrap_err();
            assert!(matches!(error, GitError::Storage { .. }), "{blocks} blocks: {error:?}");
            assert!(error.is_transient() && error.reason() == "StorageFailed");
            assert_eq!(place.recorded(), ["shop/web#1"], "nothing went out in halves");
        }
        PROGRAM.set(None);
        ledger.append(&waiting).await.unwrap();
        assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2", "shop/web#3"]);
        place.git(&["fsck", "--strict"]);
        // No scratch of the failed tries eats the room that there is.
        let left = run(Command::new("find").arg(place.directory.path().join("cache")).args(["-name", "tmp_*"]));
        assert_eq!(left, "", "{blocks} blocks");
    }
}

#[tokio::test]
async fn a_new_cache_on_a_full_disk_is_told_and_made_when_there_is_room() {
    for blocks in [0, 1] {
        let place = Place::new();
        place.ledger().append(&[large(1)]).await.unwrap();
        let fresh = place.fresh_ledger();
        with_room_for(&place, blocks);
        let error = fresh.append(&[step("web", 2)]).await.unwrap_err();
        assert!(matches!(error, GitError::Storage { .. }), "{blocks} blocks: {error:?}");
        PROGRAM.set(None);
        fresh.append(&[step("web", 2)]).await.unwrap();
        assert_eq!(place.recorded(), ["shop/web#1", "shop/web#2"]);
    }
}
