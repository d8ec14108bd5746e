//! The ring as leaders see it: records, seals, promises, trims, copying forward.

mod common;

use common::*;
use std::time::Duration;
use weft_drive::mem::CrashKeeps;
use weft_reactor::testing::VirtualTime;
use weft_wire::drive::*;
use weft_wire::*;

#[test]
fn acknowledged_records_survive_a_power_loss() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        for seq in 1..=20 {
            let len = [0, 1, 100, 4096, 5000, 40_000, 100_000][seq as usize % 7];
            assert_eq!(Appending::batch(3, 1, seq, len).to(&server).await, APPENDED);
            assert_eq!(Appending::batch(9, 2, seq, 10).to(&server).await, APPENDED);
        }
        drop(server);
        media.crash(CrashKeeps::Nothing);
        let server = serve(&media, &handle, 2).await;
        let held = tail(&server, 3, 5).await;
        assert_eq!((held.first, held.last, held.acknowledged, held.root), (Seq(1), Seq(20), Seq(19), None));
        let all = read_tail(&server, 3, 1).await;
        assert_eq!(all.seqs(), (1..=20).collect::<Vec<_>>());
        assert!(all.unreadable.is_empty());
        assert_eq!(read_tail(&server, 9, 15).await.seqs(), (15..=20).collect::<Vec<_>>());
        let empty = tail(&server, 77, 1).await;
        assert_eq!((empty.first, empty.last), (Seq(1), Seq(0)));
    });
}

#[test]
fn concurrent_appends_share_a_group() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        let before = media.counters();
        let appends = (0..50).map(|bucket| Appending::batch(bucket, 1, 1, 200).to(&server));
        assert!(weft_reactor::join_all(appends).await.iter().all(|reply| *reply == APPENDED));
        let after = media.counters();
        assert!(after.durable_writes - before.durable_writes <= 2, "{before:?} {after:?}");
        assert_eq!(after.flushes, before.flushes);
        let before = media.counters();
        assert_eq!(Appending::batch(1, 1, 2, 4096).to(&server).await, APPENDED);
        let after = media.counters();
        assert_eq!(
            (after.durable_writes - before.durable_writes, after.blocks_written - before.blocks_written),
            (1, 2)
        );
    });
}

#[test]
fn a_seal_stops_lower_epochs_for_ever() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        assert_eq!(Appending::batch(3, 1, 1, 10).to(&server).await, APPENDED);
        tail(&server, 3, 2).await;
        let sealed = DriveReply::Refused(DriveRefusal::Sealed(Epoch(2)));
        assert_eq!(Appending::batch(3, 1, 2, 10).to(&server).await, sealed);
        assert_eq!(beat(&server, 3, 1, 0, true).await, sealed);
        assert_eq!(seal(&server, 3, 1).await, sealed);
        drop(server);
        media.crash(CrashKeeps::Nothing);
        let server = serve(&media, &handle, 2).await;
        assert_eq!(Appending::batch(3, 1, 2, 10).to(&server).await, sealed);
        // A copy of the old leader's record by the new one.
        assert_eq!(Appending { as_epoch: 2, ..Appending::batch(3, 1, 2, 10) }.to(&server).await, APPENDED);
        // Another record in its place by a later one.
        assert_eq!(Appending { as_epoch: 4, ..Appending::batch(3, 4, 2, 20) }.to(&server).await, APPENDED);
        assert_eq!(read_tail(&server, 3, 2).await.records[0].epoch, Epoch(4));
        assert_eq!(seal(&server, 3, 3).await, DriveReply::Refused(DriveRefusal::Sealed(Epoch(4))));
    });
}

#[test]
fn a_seal_is_answered_when_the_last_promise_has_run_out() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        handle.sleep(LEASE * 2).await;
        assert_eq!(beat(&server, 3, 1, 0, true).await, DriveReply::Appended { promised: true });
        let promised = handle.now();
        handle.sleep(Duration::from_millis(50)).await;
        let asked = handle.spawn("seal", {
            let (server, handle) = (server.clone(), handle.clone());
            async move {
                let reply = seal(&server, 3, 2).await;
                (reply, handle.now())
            }
        });
        handle.sleep(Duration::from_millis(1)).await;
        let sealed = DriveReply::Refused(DriveRefusal::Sealed(Epoch(2)));
        assert_eq!(beat(&server, 3, 1, 0, true).await, sealed, "no promise from the first seal request on");
        let (reply, at) = asked.await.unwrap();
        assert!(matches!(reply, DriveReply::Sealed { .. }));
        assert_eq!(at, promised + LEASE);
        // Nothing holds back other buckets, nor this leader's own seal.
        let before = handle.now();
        tail(&server, 8, 1).await;
        tail(&server, 3, 2).await;
        assert!(handle.now().since(before) < Duration::from_millis(10));
    });
}

#[test]
fn a_restarted_drive_waits_before_it_answers_seals() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        assert_eq!(beat(&server, 3, 1, 0, true).await, DriveReply::Appended { promised: true });
        drop(server);
        media.kill();
        let server = serve(&media, &handle, 2).await;
        let restarted = handle.now();
        tail(&server, 3, 2).await;
        assert!(handle.now() >= restarted + LEASE);
    });
}

#[test]
fn a_retry_costs_nothing_and_another_record_is_refused() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        assert_eq!(Appending::batch(3, 1, 1, 10).to(&server).await, APPENDED);
        let writes = media.counters().writes;
        assert_eq!(Appending::batch(3, 1, 1, 10).to(&server).await, APPENDED);
        assert_eq!(media.counters().writes, writes);
        let other = Appending::batch(3, 1, 1, 11).to(&server).await;
        assert!(matches!(other, DriveReply::Refused(DriveRefusal::Bounds(_))), "{other:?}");
    });
}

#[test]
fn trimming_keeps_the_newest_root() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        for seq in 1..=10 {
            let kind = if seq == 4 || seq == 6 { RecordKind::Root } else { RecordKind::Batch };
            assert_eq!(Appending { kind, ..Appending::batch(3, 1, seq, 100) }.to(&server).await, APPENDED);
        }
        beat(&server, 3, 1, 9, false).await;
        let held = read_tail(&server, 3, 1).await;
        assert_eq!((held.seqs(), held.unreadable), (vec![6, 9, 10], vec![Seq(7), Seq(8)]), "trimmed is not lacking");
        let root = Appending { kind: RecordKind::Root, trim_below: 9, ..Appending::batch(3, 1, 11, 100) };
        assert_eq!(root.to(&server).await, APPENDED);
        assert_eq!(read_tail(&server, 3, 1).await.seqs(), [9, 10, 11]);
        drop(server);
        media.crash(CrashKeeps::Nothing);
        let server = serve(&media, &handle, 2).await;
        let held = tail(&server, 3, 1).await;
        assert_eq!((held.first, held.last, held.root), (Seq(9), Seq(11), Some(Seq(11))));
    });
}

/// One bucket goes round the ring many times while another never trims; with restarts in between.
#[test]
fn the_ring_goes_round_and_keeps_what_is_needed() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let mut server = serve(&media, &handle, 1).await;
        for seq in 1..=5 {
            assert_eq!(Appending::batch(1, 1, seq, 30_000).to(&server).await, APPENDED);
        }
        tail(&server, 7, 6).await;
        for seq in 1..=600_u64 {
            let append = Appending { trim_below: seq.saturating_sub(3), ..Appending::batch(2, 1, seq, 70_000) };
            assert_eq!(append.to(&server).await, APPENDED, "{seq}");
            if seq % 90 == 0 {
                drop(server);
                media.crash(CrashKeeps::Some { seed: seq });
                server = serve(&media, &handle, 1 + seq).await;
                assert_eq!(read_tail(&server, 2, 1).await.seqs().last(), Some(&seq));
            }
        }
        let old = read_tail(&server, 1, 1).await;
        assert_eq!(old.seqs(), [1, 2, 3, 4, 5]);
        assert!(old.unreadable.is_empty());
        let fenced = Appending::batch(7, 5, 1, 10).to(&server).await;
        assert_eq!(fenced, DriveReply::Refused(DriveRefusal::Sealed(Epoch(6))), "a fence moves along too");
        assert!(stat(&server, 1).await.ring_bucket_bytes >= 150_000);
    });
}

#[test]
fn a_bucket_that_never_trims_is_refused_and_the_others_go_on() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media());
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        let mut seq = 0;
        let full = loop {
            seq += 1;
            match Appending::batch(1, 1, seq, 50_000).to(&server).await {
                APPENDED => assert!(seq < 1000),
                other => break other,
            }
        };
        assert_eq!(full, DriveReply::Refused(DriveRefusal::RingFull));
        for other in 1..=500_u64 {
            let append = Appending { trim_below: other.saturating_sub(2), ..Appending::batch(2, 1, other, 50_000) };
            assert_eq!(append.to(&server).await, APPENDED, "{other}");
        }
        let root = Appending { kind: RecordKind::Root, ..Appending::batch(1, 1, seq, 1000) };
        assert_eq!(root.to(&server).await, APPENDED, "a root always finds room");
        beat(&server, 1, 1, seq, false).await;
        assert_eq!(Appending::batch(1, 1, seq + 1, 50_000).to(&server).await, APPENDED);
    });
}

/// Other drives die, and this one takes part in the journals of more buckets: their tails come here, and each is more than the share
/// of one bucket among so many.
#[test]
fn tails_that_are_more_than_their_share_find_room_and_so_does_what_makes_room() {
    let time = VirtualTime::new(1);
    let (handle, media) = (time.handle(), media_of(1 << 30));
    const LEN: usize = 50_000;
    const TAIL: u64 = 35;
    time.block_on(async {
        format(&media, &handle).await;
        let server = serve(&media, &handle, 1).await;
        for seq in 1..=TAIL {
            for bucket in 1..=4 {
                assert_eq!(Appending::batch(bucket, 1, seq, LEN).to(&server).await, APPENDED);
            }
        }
        for seq in 1..=TAIL {
            for bucket in 5..=6 {
                let adopted = Appending { as_epoch: 2, ..Appending::batch(bucket, 1, seq, LEN) };
                assert_eq!(adopted.to(&server).await, APPENDED, "{seq} of bucket {bucket}");
            }
        }
        for seq in 1..=6 {
            for bucket in 1..=6 {
                let fresh = Appending::batch(bucket, 2, TAIL + seq, LEN);
                assert_eq!(fresh.to(&server).await, APPENDED, "{seq} of bucket {bucket}");
            }
        }
        let mut seq = TAIL + 7;
        while Appending::batch(1, 2, seq, LEN).to(&server).await == APPENDED {
            seq += 1;
            assert!(seq < 3 * TAIL, "a bucket that never trims is refused");
        }
        for seq in 1..=TAIL / 2 {
            assert_eq!(Appending::batch(7, 2, seq, LEN).to(&server).await, APPENDED, "the others have their share");
        }
    });
}
