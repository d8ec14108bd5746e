//! Members that are away, lost, replaced, back: writes go on, reads are made from what is left, shards are made again.

use crate::rig::{DRIVE_BYTES, Rig, SHARDS};
use bytes::Bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Batch, Bucket, BucketError, KeyBuilder, Object, Tag, Tunables};
use weft_drive::mem::CrashKeeps;
use weft_reactor::testing::VirtualTime;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::State;
use weft_wire::{DriveId, FsId, InodeId};

const FILE: Object = Object { fs: FsId(1), inode: InodeId(7) };
/// Data blocks of a full stripe.
const FULL: u64 = 256;

fn blocks(seed: u64, count: u64) -> Bytes {
    let mut out = Vec::with_capacity(count as usize * BLOCK_BYTES);
    for block in 0..count {
        // Scattered, so that no parity is zero by chance.
        let word = (seed << 20 | block | 1 << 63)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(17)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_le_bytes();
        out.extend(word.iter().cycle().take(BLOCK_BYTES));
    }
    out.into()
}

/// Writes stripe `number` of the file.
async fn write(bucket: &Bucket, number: u64) -> Result<(), BucketError> {
    let mut batch = Batch::new();
    let staged = bucket.stage(FILE, number * FULL, blocks(number, FULL)).await?;
    batch.place(FILE, number * FULL, staged);
    bucket.settled(bucket.commit(batch).await?).await
}

async fn expect(bucket: &Bucket, numbers: std::ops::Range<u64>) {
    bucket.readable().await.expect("readable");
    for number in numbers {
        let found = bucket.read_blocks(FILE, number * FULL..(number + 1) * FULL).await.expect("read");
        let data: Vec<u8> = found.iter().flat_map(|extent| extent.data.clone().unwrap_or_default()).collect();
        assert!(data == blocks(number, FULL), "stripe {number}");
    }
}

/// Waits until no stripe lacks a shard; how long that took.
async fn whole(rig: &Rig, bucket: &Bucket) -> Duration {
    let begun = rig.handle.now();
    while bucket.stats().stripes_by_missing[1..].iter().any(|count| *count > 0) {
        rig.handle.sleep(Duration::from_millis(1)).await;
        let waited = rig.handle.now().since(begun);
        assert!(waited < Duration::from_secs(30), "{:?}", bucket.stats());
    }
    rig.handle.now().since(begun)
}

/// All is where it should be, and nobody holds what nobody names.
async fn check(rig: &Rig, bucket: &Bucket) {
    rig.handle.sleep(Duration::from_secs(4)).await;
    let checked = bucket.check().await.expect("check");
    assert_eq!((&checked.problems, checked.exposed_most), (&Vec::<String>::new(), 0), "{checked:?}");
    assert_eq!(checked.leaked_zones, 0, "{:?}", bucket.stats());
    let scrubbed = bucket.scrub().await.expect("scrub");
    assert_eq!((scrubbed.damaged, scrubbed.unreachable_shards), (0, 0));
}

#[test]
fn a_write_under_way_goes_on_without_a_member_that_went_away() {
    let time = VirtualTime::new(1);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        for number in 0..3 {
            write(&bucket, number).await.expect("all are there");
        }
        for (absent, node) in [(1, 4), (2, 5)] {
            rig.fall_silent(node);
            let done = Rc::new(Cell::new(false));
            let (writer, told) = (bucket.clone(), Rc::clone(&done));
            let number = 2 + absent;
            let writing = rig.handle.spawn("write", async move {
                write(&writer, number).await.expect("the others are there");
                told.set(true);
            });
            rig.handle.sleep(Duration::from_secs(1)).await;
            assert!(!done.get(), "nobody said that the member is away");
            rig.set_state(node, State::Away);
            rig.tell(&bucket);
            rig.handle.sleep(Duration::from_millis(20)).await;
            assert!(done.get(), "the map says that it is away");
            writing.await.expect("done");
            assert!(bucket.stats().stripes_by_missing[absent as usize] > 0, "{:?}", bucket.stats());
        }
        expect(&bucket, 0..5).await;
        // One more, and it is told what is wrong.
        rig.stop_node(3);
        rig.set_state(3, State::Away);
        rig.tell(&bucket);
        let refused = write(&bucket, 9).await.expect_err("three of six");
        assert_eq!(refused, BucketError::NotReady("3 of 6 members are away".into()));
        // All come back: what was written meanwhile is caught up with, and only that.
        for node in 3..6 {
            rig.restart_node(node).await;
            rig.set_state(node, State::Up);
        }
        rig.tell(&bucket);
        whole(&rig, &bucket).await;
        let stats = bucket.stats();
        let shard = 64 * BLOCK_BYTES as u64;
        assert!((3 * shard..6 * shard).contains(&stats.rebuilt_bytes), "{stats:?}");
        expect(&bucket, 0..5).await;
        check(&rig, &bucket).await;
        // New stripes have all their shards.
        write(&bucket, 5).await.expect("all are there");
        assert_eq!(bucket.stats().stripes_by_missing[1..], [0, 0, 0]);
    });
}

#[test]
fn what_nobody_wants_any_more_is_no_trouble() {
    let time = VirtualTime::new(9);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        rig.fall_silent(4);
        rig.set_state(4, State::Away);
        rig.tell(&bucket);
        write(&bucket, 0).await.expect("the others are there");
        write(&bucket, 1).await.expect("the others are there");
        // The map says that it is back, but it doesn't answer.
        rig.set_state(4, State::Up);
        rig.tell(&bucket);
        rig.handle.sleep(Duration::from_secs(15)).await;
        let trouble = bucket.stats().trouble.unwrap_or_default();
        assert!(trouble.starts_with("Rebuild: "), "{:?}", bucket.stats());
        // So it was wrong, and there is nowhere to put the shards: nothing is due.
        rig.set_state(4, State::Away);
        rig.tell(&bucket);
        rig.handle.sleep(Duration::from_secs(2)).await;
        assert_eq!(bucket.stats().trouble, None);
    });
}

#[test]
fn lost_members_are_replaced_and_the_next_ones_may_go_too() {
    let time = VirtualTime::new(2);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        // The manifest's first block is on one of those that are lost.
        rig.set_members((0..SHARDS).rev());
        let mut bucket = rig.open().await;
        for number in 0..40 {
            write(&bucket, number).await.expect("write");
        }
        // A root names where the manifest is, and no other follows while its shards move.
        bucket.finish().await.expect("checkpoint");
        bucket = rig.open().await;
        for lost in [4, 5] {
            rig.stop_node(lost);
            rig.set_state(lost, State::Failed);
        }
        rig.tell(&bucket);
        let exposed = bucket.stats();
        assert!(exposed.stripes_by_missing[2] >= 40, "{exposed:?}");
        expect(&bucket, 0..40).await;
        assert!(rig.replace(4) && rig.replace(5));
        rig.tell(&bucket);
        assert!(bucket.stats().rebuild.bytes_left > 40 * 2 * 64 * BLOCK_BYTES as u64 - 1);
        // A new leader goes on where the old one was.
        rig.handle.sleep(Duration::from_millis(3)).await;
        bucket.close();
        bucket = rig.open().await;
        whole(&rig, &bucket).await;
        assert_eq!(bucket.stats().rebuild.bytes_left, 0);
        expect(&bucket, 0..40).await;
        // The lost ones come back with what they had: nobody wants it.
        for back in [4, 5] {
            rig.restart_node(back).await;
            rig.set_state(back, State::Up);
        }
        rig.tell(&bucket);
        check(&rig, &bucket).await;
        // Two more go: all of it is read from what is left, and put where the first ones were.
        for lost in [3, 6] {
            rig.stop_node(lost);
            rig.set_state(lost, State::Failed);
            assert!(rig.replace(lost));
        }
        rig.tell(&bucket);
        expect(&bucket, 0..40).await;
        whole(&rig, &bucket).await;
        rig.crash(CrashKeeps::Nothing).await;
        bucket = rig.open().await;
        expect(&bucket, 0..40).await;
        for back in [3, 6] {
            rig.restart_node(back).await;
            rig.set_state(back, State::Up);
        }
        rig.tell(&bucket);
        check(&rig, &bucket).await;
    });
}

#[test]
fn the_most_exposed_stripes_are_rebuilt_first() {
    let time = VirtualTime::new(3);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables { rebuild_chunks_max: 1, ..Tunables::default() }).await;
        let bucket = rig.open().await;
        rig.stop_node(4);
        rig.set_state(4, State::Away);
        rig.tell(&bucket);
        for number in 0..20 {
            write(&bucket, number).await.expect("one is away");
        }
        rig.restart_node(4).await;
        rig.set_state(4, State::Up);
        rig.tell(&bucket);
        rig.handle.sleep(Duration::from_millis(1)).await;
        let before = bucket.stats();
        assert!(before.rebuild.bytes_left > 0 && before.stripes_by_missing[1] > 8, "{before:?}");
        // While that goes on, another drive fails for good: what lacks two now comes first.
        rig.stop_node(5);
        rig.set_state(5, State::Failed);
        assert!(rig.replace(5));
        rig.tell(&bucket);
        let two = bucket.stats().stripes_by_missing[2];
        assert!(two > 0 && two <= before.stripes_by_missing[1], "{:?}", bucket.stats());
        let one = bucket.stats().stripes_by_missing[1];
        while bucket.stats().stripes_by_missing[2] > 0 {
            assert!(bucket.stats().stripes_by_missing[1] >= one, "{:?}", bucket.stats());
            rig.handle.sleep(Duration::from_micros(100)).await;
        }
        whole(&rig, &bucket).await;
        expect(&bucket, 0..20).await;
    });
}

#[test]
fn a_slow_drive_slows_no_reads_and_is_told() {
    let time = VirtualTime::new(4);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        for number in 0..4 {
            write(&bucket, number).await.expect("write");
        }
        for _ in 0..20 {
            expect(&bucket, 0..4).await;
        }
        rig.media[1].set_read_latency(Duration::from_millis(300));
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            rig.handle.sleep(Duration::from_millis(50)).await;
            let begun = rig.handle.now();
            expect(&bucket, 0..4).await;
            longest = longest.max(rig.handle.now().since(begun));
        }
        let stats = bucket.stats();
        assert!(longest < Duration::from_millis(15), "four reads took {longest:?}: {stats:?}");
        assert!(stats.hedged_reads > 0 && stats.slow_drives == [DriveId(1)].into(), "{stats:?}");
    });
}

#[test]
fn what_is_rebuilt_while_it_changes_is_right() {
    let time = VirtualTime::new(5);
    time.block_on(async {
        let tunables = Tunables { memtable_bytes_max: 32 << 10, zone_sets_max: 14, runs_max: 2, ..Tunables::default() };
        let rig = Rig::new(time.handle(), tunables).await;
        let bucket = rig.open().await;
        for number in 0..24 {
            write(&bucket, number).await.expect("write");
        }
        for round in 0..4u16 {
            let lost = [1, 6, 4, 5][usize::from(round)];
            let back = (round > 0).then(|| [1, 6, 4][usize::from(round) - 1]);
            if let Some(back) = back {
                rig.restart_node(back).await;
                rig.set_state(back, State::Up);
            }
            rig.stop_node(lost);
            rig.set_state(lost, State::Failed);
            assert!(rig.replace(lost));
            rig.tell(&bucket);
            for _ in 0..30 {
                let number = rig.handle.random_below(24);
                write(&bucket, number).await.expect("write");
            }
            whole(&rig, &bucket).await;
            expect(&bucket, 0..24).await;
        }
        rig.restart_node(5).await;
        rig.set_state(5, State::Up);
        rig.tell(&bucket);
        check(&rig, &bucket).await;
        let stats = bucket.stats();
        assert!(stats.rebuilt_shards > 8 && stats.cleaned_sets > 0 && stats.checkpoints > 0, "{stats:?}");
    });
}

/// A member fails for good and another takes its place.
fn lose(rig: &Rig, bucket: &Bucket, node: u16) {
    rig.stop_node(node);
    rig.set_state(node, State::Failed);
    assert!(rig.replace(node));
    rig.tell(bucket);
}

#[test]
fn a_drive_that_is_drained_is_copied_and_readers_follow() {
    let time = VirtualTime::new(6);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        for number in 0..20 {
            write(&bucket, number).await.expect("write");
        }
        expect(&bucket, 0..20).await;
        rig.set_state(2, State::Draining);
        assert!(rig.replace(2));
        rig.tell(&bucket);
        assert_eq!(bucket.stats().stripes_by_missing[0], 20, "it is there as long as it takes");
        while bucket.stats().rebuild.bytes_left > 0 {
            expect(&bucket, 0..20).await;
        }
        rig.handle.sleep(Duration::from_secs(1)).await;
        expect(&bucket, 0..20).await;
        let stats = bucket.stats();
        let all = 20 * 64 * BLOCK_BYTES as u64;
        assert_eq!((stats.rebuilt_bytes, stats.reconstructions, stats.repaired_stripes), (all, 0, 0), "{stats:?}");
        rig.stop_node(2);
        rig.set_state(2, State::Failed);
        rig.tell(&bucket);
        assert_eq!(bucket.stats().stripes_by_missing[0], 20);
        check(&rig, &bucket).await;
    });
}

#[test]
fn a_target_that_leaves_on_the_way_and_comes_back_gets_new_zones() {
    let time = VirtualTime::new(7);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables { rebuild_chunks_max: 1, ..Tunables::default() }).await;
        let bucket = rig.open().await;
        for number in 0..16 {
            write(&bucket, number).await.expect("write");
        }
        lose(&rig, &bucket, 4);
        for _ in 0..3 {
            let before = bucket.stats().rebuilt_bytes;
            while bucket.stats().rebuilt_bytes == before {
                rig.handle.sleep(Duration::from_micros(50)).await;
            }
            rig.fall_silent(6);
            rig.set_state(6, State::Away);
            rig.tell(&bucket);
            expect(&bucket, 0..16).await;
            rig.handle.sleep(Duration::from_millis(300)).await;
            rig.speak_again(6);
            rig.set_state(6, State::Up);
            rig.tell(&bucket);
        }
        whole(&rig, &bucket).await;
        check(&rig, &bucket).await;
        expect(&bucket, 0..16).await;
    });
}

#[test]
fn what_is_committed_after_its_set_was_closed_is_rebuilt_too() {
    let time = VirtualTime::new(8);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        write(&bucket, 0).await.expect("write");
        let staged = bucket.stage(FILE, FULL, blocks(1, FULL)).await.expect("stage");
        lose(&rig, &bucket, 4);
        rig.handle.sleep(Duration::from_secs(1)).await;
        let mut batch = Batch::new();
        batch.place(FILE, FULL, staged);
        bucket.settled(bucket.commit(batch).await.expect("commit")).await.expect("it stands");
        whole(&rig, &bucket).await;
        check(&rig, &bucket).await;
        expect(&bucket, 0..2).await;
    });
}

#[test]
fn runs_that_only_the_root_names_are_there_for_the_next_leader() {
    let time = VirtualTime::new(9);
    time.block_on(async {
        let tunables = Tunables { memtable_bytes_max: 16 << 10, runs_max: 2, ..Tunables::default() };
        let rig = Rig::new(time.handle(), tunables).await;
        let mut bucket = rig.open().await;
        let key = |number: u64| KeyBuilder::new(FsId(1), Tag::Inode).u64(number).build();
        let mut keys = 0;
        for lost in [4, 5] {
            let merges = bucket.stats().merges;
            while bucket.stats().merges == merges {
                let mut batch = Batch::new();
                batch.put(key(keys), vec![7; 300]);
                keys += 1;
                bucket.settled(bucket.commit(batch).await.expect("commit")).await.expect("it stands");
            }
            lose(&rig, &bucket, lost);
            whole(&rig, &bucket).await;
            bucket.close();
            rig.crash(CrashKeeps::Nothing).await;
            bucket = rig.open().await;
            assert_eq!(bucket.check().await.expect("check").problems, Vec::<String>::new());
            check(&rig, &bucket).await;
            for number in 0..keys {
                assert!(bucket.get(&key(number)).await.expect("get").is_some());
            }
        }
    });
}

#[test]
fn damage_is_not_copied() {
    let time = VirtualTime::new(10);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        for number in 0..8 {
            write(&bucket, number).await.expect("write");
        }
        let shard = blocks(3, FULL).slice(64 * BLOCK_BYTES..65 * BLOCK_BYTES);
        let at = (0..DRIVE_BYTES / BLOCK_BYTES as u64).map(|block| block * BLOCK_BYTES as u64);
        let at = at.into_iter().find(|offset| rig.media[1].peek(*offset, BLOCK_BYTES) == shard);
        rig.media[1].corrupt(at.expect("it is on its drive") + 9, 0x20);
        lose(&rig, &bucket, 4);
        whole(&rig, &bucket).await;
        check(&rig, &bucket).await;
        expect(&bucket, 0..8).await;
        let stats = bucket.stats();
        assert_eq!((stats.lost_stripes, stats.repaired_stripes), (0, 1), "{stats:?}");
    });
}

/// Tries that fail are fewer and fewer, as each may leave records in the journal; news of the drives ends the wait.
#[test]
fn what_failed_for_long_is_tried_at_once_when_drives_are_back() {
    let time = VirtualTime::new(12);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables { checkpoint_share: 1, ..Tunables::default() }).await;
        let bucket = rig.open().await;
        // The map doesn't know of it.
        let failing = [3, 4, 5];
        failing.iter().for_each(|node| rig.set_failing(*node, true));
        let is_stuck = || bucket.stats().trouble.is_some_and(|trouble| trouble.starts_with("Checkpoint"));
        for number in 0..1000 {
            if is_stuck() {
                break;
            }
            let mut batch = Batch::new();
            batch.write_blocks(FILE, number, blocks(number, 1));
            bucket.settled(bucket.commit(batch).await.expect("journals are there")).await.expect("journals are there");
            rig.handle.sleep(Duration::from_millis(50)).await;
        }
        // A try takes some seconds itself.
        let mut quiet = 0;
        for _ in 0..600 {
            rig.handle.sleep(Duration::from_millis(100)).await;
            quiet += usize::from(bucket.stats().step.is_none());
        }
        assert!(quiet > 200, "{quiet} of 600 looks saw no try");
        assert!(is_stuck() && bucket.stats().checkpoints == 0, "{:?}", bucket.stats());
        for state in [State::Away, State::Up] {
            failing.iter().for_each(|node| {
                rig.set_state(*node, state);
                rig.set_failing(*node, false);
            });
            rig.tell(&bucket);
        }
        rig.handle.sleep(Duration::from_millis(100)).await;
        assert!(bucket.stats().checkpoints > 0, "{:?}", bucket.stats());
    });
}
