//! Locks between mounts, and what becomes of them when mounts or leaders go.

use crate::rig::*;
use bytes::Bytes;
use std::time::Duration;
use weft_wire::fs::*;
use weft_wire::{ClientId, FsId, InodeId};

const EINTR: i32 = 4;
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
const EDEADLK: i32 = 35;
const ESTALE: i32 = 116;

fn lock(typ: LockType, start: u64, end: u64) -> Lock {
    Lock { kind: LockKind::Record, typ, start, end, owner: 5, pid: 77 }
}

fn write() -> Lock {
    lock(LockType::Write, 0, u64::MAX)
}

async fn set(client: &Client, inode: InodeId, lock: Lock) -> i32 {
    client.fails(FsOp::SetLock { inode, lock, wait: false }).await
}

fn wait(rig: &Rig, client: &Client, inode: InodeId, lock: Lock) -> weft_reactor::Task<i32> {
    let client = client.clone();
    rig.handle().spawn("wait", async move { client.fails(FsOp::SetLock { inode, lock, wait: true }).await })
}

async fn renew(rig: &Rig, client: &Client, inode: InodeId, holds: Option<Holds>) -> bool {
    match client.ask_bucket(rig.bucket_of(inode), FsOp::Renew { holds }, Bytes::new()).await {
        Ok((FsReply::Renewed { reassert }, _)) => reassert,
        other => panic!("{other:?}"),
    }
}

fn seconds(rig: &Rig, seconds: u64) -> impl Future<Output = ()> + use<> {
    rig.handle().sleep(Duration::from_secs(seconds))
}

#[test]
fn mounts_exclude_each_other() {
    run(200, |rig| async move {
        let (one, two) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        assert_eq!(set(&one, f, lock(LockType::Write, 10, 19)).await, 0);
        assert_eq!(set(&two, f, lock(LockType::Read, 15, 30)).await, EAGAIN);
        assert_eq!(set(&two, f, lock(LockType::Read, 20, 30)).await, 0);
        assert_eq!(set(&two, f, lock(LockType::Read, 9, 8)).await, EINVAL);
        let test = FsOp::TestLock { inode: f, lock: lock(LockType::Write, 0, 100) };
        let (FsReply::Lock(Some(found)), _) = two.ask(test.clone()).await.unwrap() else { panic!() };
        assert_eq!((found.typ, found.start, found.end, found.pid), (LockType::Write, 10, 19, 77));
        let waiting = wait(&rig, &two, f, lock(LockType::Write, 0, 100));
        seconds(&rig, 3).await;
        assert!(!waiting.is_finished());
        assert_eq!(one.fails(FsOp::ReleaseLocks { inode: f, kind: LockKind::Record, owner: 5 }).await, 0);
        assert_eq!(waiting.await.unwrap(), 0);
        assert_eq!(set(&one, f, lock(LockType::Read, 100, 100)).await, EAGAIN);
        // A flock is something else.
        let flock = Lock { kind: LockKind::Flock, ..write() };
        assert_eq!(set(&one, f, flock).await, 0);
        assert_eq!(set(&two, f, flock).await, EAGAIN);
    });
}

#[test]
fn a_wait_can_be_given_up_and_is_refused_when_it_would_be_for_ever() {
    run(201, |rig| async move {
        let (one, two) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        let g = one.create(ROOT, "g").await.unwrap();
        assert_eq!(set(&one, f, write()).await, 0);
        assert_eq!(set(&two, g, write()).await, 0);
        let waiting = wait(&rig, &two, f, write());
        seconds(&rig, 1).await;
        assert_eq!(one.fails(FsOp::SetLock { inode: g, lock: write(), wait: true }).await, EDEADLK);
        two.ask(FsOp::CancelLock { inode: f, owner: 5, waiting: 0 }).await.unwrap();
        assert_eq!(waiting.await.unwrap(), EINTR);
        let waiting = wait(&rig, &one, g, write());
        seconds(&rig, 1).await;
        assert_eq!(set(&two, g, lock(LockType::Unlock, 0, u64::MAX)).await, 0);
        assert_eq!(waiting.await.unwrap(), 0);
    });
}

#[test]
fn who_is_fenced_or_silent_loses_everything() {
    run(202, |rig| async move {
        let (one, two, three) = (rig.client(1), rig.client(2), rig.client(3));
        let f = one.create(ROOT, "f").await.unwrap();
        let g = one.create(ROOT, "g").await.unwrap();
        one.open(g).await.unwrap();
        assert_eq!(set(&one, f, write()).await, 0);
        assert_eq!(two.unlink(ROOT, "g").await, 0);
        let waiting = wait(&rig, &two, f, write());
        seconds(&rig, 2).await;
        assert!(!waiting.is_finished() && two.getattr(g).await.is_ok());
        rig.change_map(|map| map.clients.get_mut(&ClientId(1)).unwrap().fenced = true);
        assert_eq!(waiting.await.unwrap(), 0);
        seconds(&rig, 2).await;
        assert_eq!(errno(&two.getattr(g).await.unwrap_err()), ESTALE);
        let prefix = weft_bucket::KeyBuilder::new(FsId(0), weft_bucket::Tag::Result).u64(1).build();
        let results = rig.leader(rig.bucket_of(f)).bucket().scan_prefix(&prefix, usize::MAX).await.unwrap();
        assert!(results.is_empty(), "nobody asks for its results any more");
        // Whoever renews promises to go on with it.
        assert!(!renew(&rig, &two, f, None).await);
        seconds(&rig, 20).await;
        assert_eq!(set(&three, f, write()).await, EAGAIN);
        seconds(&rig, 9).await;
        assert!(!renew(&rig, &two, f, None).await);
        seconds(&rig, 29).await;
        assert!(!rig.is_fenced(2));
        assert_eq!(set(&three, f, write()).await, EAGAIN);
        seconds(&rig, 2).await;
        assert!(rig.is_fenced(2));
        assert_eq!(set(&three, f, write()).await, EAGAIN, "others may still serve it");
        seconds(&rig, 3).await;
        assert_eq!(set(&three, f, write()).await, 0);
        // It need not have renewed before.
        seconds(&rig, 29).await;
        assert!(!rig.is_fenced(3));
        seconds(&rig, 3).await;
        assert!(rig.is_fenced(3));
    });
}

#[test]
fn a_silent_client_keeps_its_locks_until_the_map_has_fenced_it() {
    run(205, |rig| async move {
        let (one, two) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        assert_eq!(set(&one, f, write()).await, 0);
        let waiting = wait(&rig, &two, f, write());
        // The managers have no quorum.
        rig.set_mapless(true);
        seconds(&rig, 60).await;
        assert!(!waiting.is_finished() && !rig.is_fenced(1));
        rig.set_mapless(false);
        seconds(&rig, 9).await;
        assert!(rig.is_fenced(1), "it is asked for again");
        assert_eq!(waiting.await.unwrap(), 0);
    });
}

#[test]
fn who_is_silent_without_locks_is_not_fenced() {
    run(206, |rig| async move {
        let (one, two) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        one.open(f).await.unwrap();
        assert_eq!(set(&one, f, write()).await, 0);
        assert_eq!(set(&one, f, lock(LockType::Unlock, 0, u64::MAX)).await, 0);
        assert_eq!(two.unlink(ROOT, "f").await, 0);
        seconds(&rig, 29).await;
        assert!(two.getattr(f).await.is_ok());
        seconds(&rig, 5).await;
        assert_eq!(errno(&two.getattr(f).await.unwrap_err()), ESTALE);
        assert!(!rig.is_fenced(1));
    });
}

#[test]
fn the_dead_hold_up_one_new_leader_alone() {
    run(204, |rig| async move {
        let (one, two) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        assert_eq!(set(&one, f, write()).await, 0);
        rig.fail_over(rig.bucket_of(f)).await;
        seconds(&rig, 15).await;
        assert!(rig.is_fenced(1));
        rig.fail_over(rig.bucket_of(f)).await;
        let began = rig.handle().now();
        assert_eq!(set(&two, f, write()).await, 0);
        assert!(rig.handle().now().since(began) < Duration::from_secs(1));
    });
}

#[test]
fn a_new_leader_waits_for_those_who_held_something() {
    run(203, |rig| async move {
        let (one, two) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        let g = one.create(ROOT, "g").await.unwrap();
        assert_eq!(set(&one, f, write()).await, 0);
        one.open(g).await.unwrap();
        rig.fail_over(rig.bucket_of(f)).await;
        assert_eq!(two.unlink(ROOT, "g").await, 0);
        let other = wait(&rig, &two, f, write());
        seconds(&rig, 2).await;
        assert!(!other.is_finished(), "nobody knows yet who has it");
        assert!(renew(&rig, &one, f, None).await, "it is asked what it holds");
        let holds = Holds { opens: vec![g], locks: vec![(f, write())] };
        assert!(!renew(&rig, &one, f, Some(holds)).await);
        seconds(&rig, 20).await;
        assert!(!other.is_finished() && one.getattr(g).await.is_ok());
        one.release(g).await;
        assert_eq!(set(&one, f, lock(LockType::Unlock, 0, u64::MAX)).await, 0);
        assert_eq!(other.await.unwrap(), 0);
        seconds(&rig, 1).await;
        assert_eq!(errno(&one.getattr(g).await.unwrap_err()), ESTALE);
        // Who doesn't tell within the time of grace has lost what it had open, and what it may have locked when it is fenced.
        let h = one.create(ROOT, "h").await.unwrap();
        one.open(h).await.unwrap();
        assert_eq!(one.unlink(ROOT, "h").await, 0);
        rig.fail_over(rig.bucket_of(f)).await;
        let began = rig.handle().now();
        assert_eq!(two.create(ROOT, "i").await.map(|_| ()), Ok(()));
        assert_eq!(set(&two, f, write()).await, 0);
        let waited = rig.handle().now().since(began);
        assert!(waited > Duration::from_secs(11) && waited < Duration::from_secs(15), "{waited:?}");
        assert!(rig.is_fenced(1));
        seconds(&rig, 2).await;
        assert_eq!(errno(&two.getattr(h).await.unwrap_err()), ESTALE);
    });
}
