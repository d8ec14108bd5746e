//! What the log promises, one promise at a time.

use crate::cluster::{BUCKET, CLUSTER, Cluster, Leader, drive_core, drives, leader_core, settled};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::mem::CrashKeeps;
use weft_journal::{Log, LogError, RecoverError, Tunables};
use weft_reactor::testing::VirtualTime;
use weft_wire::drive::{DriveOp, DriveReply, DriveRequest};
use weft_wire::{DriveId, Epoch, Seq};

/// Runs a test's body on a cluster of `count` drives.
fn with_cluster<F: Future<Output = ()>>(seed: u64, count: u32, body: impl FnOnce(Rc<Cluster>) -> F) {
    let time = VirtualTime::new(seed);
    let handle = time.handle();
    time.block_on(async move { body(Cluster::new(handle, count).await).await });
}

async fn append_all(leader: &Leader, values: std::ops::Range<u64>) {
    let pending: Vec<_> = values.map(|value| leader.append(value, 4096).expect("there is room").1).collect();
    for pending in pending {
        assert_eq!(settled(pending).await, Ok(()));
    }
}

#[test]
fn what_was_acknowledged_is_there_for_the_next_leader() {
    with_cluster(1, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let first = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        assert_eq!((first.root, first.replayed, first.log.last()), (None, 0, Seq(1)));
        append_all(&first, 0..100).await;
        assert_eq!(first.log.acknowledged(), Seq(101));
        first.log.stop();
        let second = cluster.lead(2, &[&ensemble]).await.expect("all drives are there");
        assert_eq!(*second.state.borrow(), *first.state.borrow());
        assert_eq!(second.log.last(), Seq(102), "the epoch start follows the last record");
        assert!(second.log.copied().await.is_ok());
    });
}

#[test]
fn a_record_costs_one_message_to_each_drive() {
    with_cluster(2, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let leader = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        cluster.handle.sleep(Duration::from_secs(1)).await;
        let calls = || cluster.handle.task_stats().iter().find(|stats| stats.name == "journal call").map(|s| s.spawned);
        let before = calls().expect("calls were made");
        append_all(&leader, 0..1).await;
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(calls(), Some(before + 4));
    });
}

#[test]
fn a_root_trims_and_recovery_reads_only_what_follows() {
    with_cluster(3, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let first = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        append_all(&first, 0..50).await;
        let covers = first.log.acknowledged();
        append_all(&first, 50..60).await;
        let used = first.log.room().bytes_used;
        let (root, pending) = first.append_root(covers).expect("roots are always taken");
        assert_eq!(settled(pending).await, Ok(()));
        assert!(first.log.room().bytes_used < used / 3);
        append_all(&first, 60..65).await;
        cluster.handle.sleep(Duration::from_millis(10)).await;
        for drive in &ensemble {
            let summary = summary(&cluster, *drive).await;
            assert_eq!((summary.first, summary.root), (covers.next(), Some(root)), "{drive} trimmed");
        }
        let second = cluster.lead(2, &[&ensemble]).await.expect("all drives are there");
        assert_eq!((second.root, second.replayed), (Some(root), 15));
        assert_eq!(*second.state.borrow(), *first.state.borrow());
        // A root that covers everything: nothing is replayed.
        let (_, pending) = second.append_root(second.log.last()).expect("roots are always taken");
        assert_eq!(settled(pending).await, Ok(()));
        let third = cluster.lead(3, &[&ensemble]).await.expect("all drives are there");
        assert_eq!(third.replayed, 0);
        assert_eq!(*third.state.borrow(), *first.state.borrow());
    });
}

/// What a drive would tell a leader of the epoch it is sealed by.
async fn summary(cluster: &Cluster, drive: DriveId) -> weft_wire::drive::TailSummary {
    let server = Rc::clone(&cluster.servers.borrow()[&drive]);
    let op = DriveOp::Seal { epoch: Epoch(1) };
    let request = DriveRequest { cluster: CLUSTER, drive, bucket: BUCKET, op };
    match server.request(request, bytes::Bytes::new()).await.0 {
        DriveReply::Sealed { tail } => tail,
        other => panic!("{drive} answered {other:?}"),
    }
}

#[test]
fn one_drive_down_stops_nothing_and_is_caught_up() {
    with_cluster(4, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let leader = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        cluster.crash(DriveId(2), CrashKeeps::Nothing);
        append_all(&leader, 0..200).await;
        assert!(leader.log.troubles().is_some_and(|text| text.contains("drive2 on node2")));
        cluster.start(DriveId(2)).await;
        cluster.handle.sleep(Duration::from_secs(3)).await;
        append_all(&leader, 200..201).await;
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(summary(&cluster, DriveId(2)).await.last, leader.log.last());
        assert_eq!(leader.log.troubles(), None);
        // Another one may go now.
        cluster.crash(DriveId(1), CrashKeeps::Nothing);
        append_all(&leader, 201..210).await;
        let state = leader.state.borrow().clone();
        leader.log.stop();
        cluster.crash(DriveId(3), CrashKeeps::Nothing);
        // Two drives are enough to decide, and a third to go on.
        let reasons = Rc::new(RefCell::new(Vec::new()));
        let told = Rc::clone(&reasons);
        let params = cluster.params(2, &[&ensemble]);
        let net = cluster.network.node(leader_core(2));
        let recovery = Log::recover_with(params, net, cluster.handle.clone(), move |reason| {
            told.borrow_mut().push(reason.to_owned());
        });
        let task = cluster.handle.spawn("recovery", recovery);
        cluster.handle.sleep(Duration::from_secs(5)).await;
        assert!(!task.is_finished(), "a start needs three copies");
        assert!(reasons.borrow().iter().any(|reason| reason.contains("drive3 on node3")), "{reasons:?}");
        cluster.start(DriveId(3)).await;
        let recovered = task.await.expect("not aborted").expect("three drives are there");
        assert_eq!(*Leader::new(recovered).state.borrow(), state);
    });
}

#[test]
fn the_loser_of_a_race_learns_it_and_loses_nothing() {
    for seed in 0..20 {
        with_cluster(100 + seed, 4, |cluster| async move {
            let ensemble = drives(1..=4);
            let old = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
            let racing = Rc::clone(&cluster);
            let drives_of_new = ensemble.clone();
            let new = cluster.handle.spawn("new leader", async move { racing.lead(2, &[&drives_of_new]).await });
            let mut acknowledged = 0;
            let mut error = None;
            for value in 0.. {
                match old.append(value, 100) {
                    Ok((_, pending)) => match settled(pending).await {
                        Ok(()) => acknowledged = value + 1,
                        Err(failure) => error = Some(failure),
                    },
                    Err(failure) => error = Some(failure),
                }
                if error.is_some() {
                    break;
                }
            }
            assert_eq!(error, Some(LogError::Sealed(Epoch(2))));
            assert_eq!(old.log.failed(), Some(LogError::Sealed(Epoch(2))));
            assert!(old.log.hold_lease().await.is_err());
            let new = new.await.expect("not aborted").expect("all drives are there");
            let state = new.state.borrow();
            let values: Vec<u64> = state.values().copied().collect();
            assert!(values.len() as u64 >= acknowledged, "{values:?} lacks one of {acknowledged}");
            assert_eq!(values, (0..values.len() as u64).collect::<Vec<_>>());
        });
    }
}

#[test]
fn a_cut_off_leader_stops_reading_before_another_begins() {
    with_cluster(6, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let old = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        old.log.hold_lease().await.expect("drives promise");
        // An idle leader beats when it is asked, and only then.
        cluster.handle.sleep(Duration::from_secs(1)).await;
        assert!(!old.log.lease_valid(cluster.handle.now()));
        old.log.hold_lease().await.expect("drives promise");
        assert!(old.log.lease_valid(cluster.handle.now()));
        for drive in &ensemble {
            cluster.network.cut(leader_core(1), drive_core(*drive));
        }
        let began = cluster.handle.now();
        let new = cluster.lead(2, &[&ensemble]).await.expect("all drives are there");
        let took = cluster.handle.now().since(began);
        assert!(!old.log.lease_valid(cluster.handle.now()));
        assert!(took >= Duration::from_millis(140) && took < Duration::from_millis(250), "{took:?}");
        assert!(new.log.lease_valid(cluster.handle.now()));
    });
}

#[test]
fn a_new_ensemble_gets_everything_and_the_old_one_may_go() {
    with_cluster(7, 6, |cluster| async move {
        let (old, new) = (drives(1..=4), drives(3..=6));
        let first = cluster.lead(1, &[&old]).await.expect("an empty log begins");
        append_all(&first, 0..30).await;
        let (_, pending) = first.append_root(Seq(20)).expect("roots are always taken");
        assert_eq!(settled(pending).await, Ok(()));
        append_all(&first, 30..40).await;
        first.log.stop();
        cluster.crash(DriveId(1), CrashKeeps::Nothing);
        let second = cluster.lead(2, &[&new, &old]).await.expect("enough drives of both are there");
        append_all(&second, 40..50).await;
        second.log.copied().await.expect("not deposed");
        second.log.stop();
        for drive in [2, 3, 4] {
            cluster.crash(DriveId(drive), CrashKeeps::Nothing);
        }
        cluster.start(DriveId(3)).await;
        let third = cluster.lead(3, &[&new]).await.expect("three of four are there");
        assert_eq!(*third.state.borrow(), *second.state.borrow());
        assert_eq!(third.state.borrow().len(), 50);
    });
}

#[test]
fn a_full_journal_refuses_batches_and_takes_the_root_that_frees_it() {
    with_cluster(8, 4, |cluster| async move {
        cluster.tunables.set(Tunables { quota_bytes: 64 << 10, ..Tunables::default() });
        let leader = cluster.lead(1, &[&drives(1..=4)]).await.expect("an empty log begins");
        let mut count = 0;
        let refused = loop {
            match leader.append(count, 4100) {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, LogError::Full);
        assert!((10..16).contains(&count), "{count}");
        // Small ones are still taken, for a while.
        let small = (0..100).take_while(|n| leader.append(count + n, 100).is_ok()).count() as u64;
        assert!((1..100).contains(&small), "{small}");
        count += small;
        let last = leader.log.last();
        leader.log.settled(last).await.expect("not deposed");
        let (_, pending) = leader.append_root(last).expect("roots are always taken");
        assert_eq!(settled(pending).await, Ok(()));
        append_all(&leader, count..count + 10).await;
    });
}

/// Large batches that are taken until the journal is full.
fn taken_until_full(leader: &Leader) -> u64 {
    (0..100).take_while(|value| leader.append(*value, 4100).is_ok()).count() as u64
}

#[test]
fn behind_a_tail_beyond_the_quota_there_is_room_for_what_makes_room() {
    with_cluster(12, 4, |cluster| async move {
        let quota = |quota_bytes| cluster.tunables.set(Tunables { quota_bytes, ..Tunables::default() });
        let ensemble = drives(1..=4);
        quota(128 << 10);
        let first = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        append_all(&first, 0..30).await;
        // Drives died, and those of this bucket serve more of them.
        quota(64 << 10);
        first.log.stop();
        let second = cluster.lead(2, &[&ensemble]).await.expect("all drives are there");
        let room = second.log.room();
        assert!(room.bytes_used > room.bytes_quota / 8 * 9, "{room:?}");
        assert_eq!(taken_until_full(&second), 3, "a quarter of the quota");
        let last = second.log.last();
        second.log.settled(last).await.expect("not deposed");
        let (_, pending) = second.append_root(last).expect("roots are always taken");
        assert_eq!(settled(pending).await, Ok(()));
        assert!((14..16).contains(&taken_until_full(&second)), "the quota, as for any other");
    });
}

#[test]
fn an_epoch_is_tried_once() {
    with_cluster(9, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let first = cluster.lead(3, &[&ensemble]).await.expect("an empty log begins");
        first.log.stop();
        let again = cluster.lead(3, &[&ensemble]).await.map(|_| ());
        assert_eq!(again, Err(RecoverError::EpochUsed(Epoch(3))));
        let late = cluster.lead(2, &[&ensemble]).await.map(|_| ());
        assert_eq!(late, Err(RecoverError::Sealed(Epoch(3))));
        let few = cluster.lead(4, &[&drives(1..=2)]).await.map(|_| ());
        assert_eq!(few, Err(RecoverError::TooFewDrives { drives: 2, needed: 3 }));
    });
}

#[test]
fn one_copy_left_is_enough() {
    with_cluster(10, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let first = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        append_all(&first, 0..20).await;
        first.log.stop();
        cluster.replace_with_blank(&drives(1..=3)).await;
        let second = cluster.lead(2, &[&ensemble]).await.expect("one copy is left");
        assert_eq!(second.state.borrow().len(), 20);
        // The fourth drive missed the newest record, but knows that those before were acknowledged.
        cluster.crash(DriveId(4), CrashKeeps::Nothing);
        append_all(&second, 20..22).await;
        second.log.stop();
        cluster.replace_with_blank(&drives(1..=3)).await;
        cluster.start(DriveId(4)).await;
        let third = cluster.lead(3, &[&ensemble]).await.map(|third| third.state.borrow().len());
        assert_eq!(third, Ok(20), "nobody left knows of more");
    });
}

#[test]
fn a_root_gets_through_rings_that_refuse_the_batches_before_it() {
    with_cluster(11, 4, |cluster| async move {
        // More than the drives can hold.
        cluster.tunables.set(Tunables { quota_bytes: 1 << 30, ..Tunables::default() });
        let leader = cluster.lead(1, &[&drives(1..=4)]).await.expect("an empty log begins");
        let mut count = 0;
        while leader.log.room().bytes_used < leader.log.room().bytes_quota {
            for _ in 0..8 {
                drop(leader.append(count, 16 << 10).expect("room was said to be"));
                count += 1;
            }
            cluster.handle.sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(leader.append(count, 8).map(|_| ()), Err(LogError::Full), "the drives are full");
        let covers = leader.log.acknowledged();
        assert!(covers < leader.log.last());
        let (_, pending) = leader.append_root(covers).expect("roots are always taken");
        assert_eq!(settled(pending).await, Ok(()));
        append_all(&leader, count..count + 20).await;
    });
}

#[test]
fn what_stands_on_p_drives_is_not_acknowledged() {
    with_cluster(12, 4, |cluster| async move {
        let ensemble = drives(1..=4);
        let leader = cluster.lead(1, &[&ensemble]).await.expect("an empty log begins");
        append_all(&leader, 0..3).await;
        let before = leader.log.acknowledged();
        for drive in [3, 4] {
            cluster.crash(DriveId(drive), CrashKeeps::Everything);
        }
        let (seq, pending) = leader.append(3, 4096).expect("there is room");
        cluster.handle.sleep(Duration::from_secs(5)).await;
        assert_eq!(leader.log.acknowledged(), before, "two of four drives have it");
        cluster.start(DriveId(3)).await;
        assert_eq!(settled(pending).await, Ok(()));
        assert_eq!(leader.log.acknowledged(), seq);
    });
}
