//! Operations over several buckets: all or nothing, once, whoever dies when.

use crate::check::check;
use crate::rig::*;
use std::collections::BTreeSet;
use std::time::Duration;
use weft_drive::mem::CrashKeeps;
use weft_wire::fs::*;
use weft_wire::{BucketId, InodeId};

fn bucket_named(trace: &[(BucketId, String)], what: &str) -> BTreeSet<BucketId> {
    trace.iter().filter(|(_, op)| op.contains(what)).map(|(bucket, _)| *bucket).collect()
}

/// A directory of the root in this bucket.
async fn dir_in(client: &Client, rig: &Rig, bucket: u32, name: &str) -> InodeId {
    for i in 0.. {
        let name = format!("{name}{i}");
        let dir = client.mkdir(ROOT, &name).await.unwrap();
        if rig.bucket_of(dir) == BucketId(bucket) {
            return dir;
        }
        assert_eq!(client.rmdir(ROOT, &name).await, 0);
    }
    unreachable!()
}

#[test]
fn directories_spread_over_the_buckets() {
    run(300, |rig| async move {
        let client = rig.client(1);
        let mut buckets = BTreeSet::new();
        for i in 0..24 {
            let dir = client.mkdir(ROOT, &format!("d{i}")).await.unwrap();
            buckets.insert(rig.bucket_of(dir));
            let f = client.create(dir, "f").await.unwrap();
            assert_eq!(rig.bucket_of(f), rig.bucket_of(dir));
        }
        assert_eq!(buckets.len(), BUCKETS as usize);
        assert_eq!(check(&rig, &client).await.len(), 48);
    });
}

#[test]
fn operations_ask_nobody_whom_they_do_not_need() {
    run(301, |rig| async move {
        let client = rig.client(1);
        let a = dir_in(&client, &rig, 1, "a").await;
        let b = dir_in(&client, &rig, 2, "b").await;
        client.create(a, "f").await.unwrap();
        client.create(b, "g").await.unwrap();
        rig.take_trace();
        assert_eq!(client.rename((a, "f"), (a, "f2")).await, 0);
        let trace = rig.take_trace();
        assert_eq!(trace.len(), 1, "one request, one record: {trace:?}");
        assert_eq!(client.rename((b, "g"), (b, "g2")).await, 0);
        let touched: BTreeSet<_> = rig.take_trace().into_iter().map(|(bucket, _)| bucket).collect();
        assert_eq!(touched, BTreeSet::from([BucketId(2)]));
        // A file over two buckets: these alone, and not the root's.
        assert_eq!(client.rename((a, "f2"), (b, "f")).await, 0);
        let trace = rig.take_trace();
        assert_eq!(bucket_named(&trace, "Prepare"), BTreeSet::from([BucketId(2)]));
        assert!(trace.iter().all(|(bucket, _)| bucket.0 == 1 || bucket.0 == 2), "{trace:?}");
        // A directory to another parent: the root's bucket keeps the tree.
        let c = client.mkdir(a, "c").await.unwrap();
        rig.take_trace();
        assert_eq!(client.rename((a, "c"), (b, "c")).await, 0);
        assert!(bucket_named(&rig.take_trace(), "Prepare").contains(&rig.bucket_of(ROOT)));
        assert_eq!(client.lookup(b, "c").await.unwrap(), c);
        check(&rig, &client).await;
    });
}

#[test]
fn a_directory_is_made_near_when_its_bucket_is_away() {
    run(302, |rig| async move {
        let client = rig.client(1);
        let away = BucketId((rig.bucket_of(ROOT).0 + 1) % BUCKETS);
        rig.kill(away);
        for i in 0..8 {
            let dir = client.make_dir_blindly(ROOT, &format!("d{i}")).await;
            assert_ne!(rig.bucket_of(dir), away);
        }
        rig.lead(away).await;
        check(&rig, &client).await;
    });
}

/// Messages of one moment take longer than a participant waits before it asks: what is undecided then is still done
/// everywhere, or nowhere.
#[test]
fn who_asks_before_the_decision_waits_for_it() {
    let asked = std::rc::Rc::new(std::cell::Cell::new(0));
    for step in 0..48 {
        let asked = std::rc::Rc::clone(&asked);
        run(330, |rig| async move {
            let client = rig.client(1);
            let home = dir_in(&client, &rig, 1, "home").await;
            let from = dir_in(&client, &rig, 3, "from").await;
            let to = dir_in(&client, &rig, 2, "to").await;
            let f = client.create(home, "f").await.unwrap();
            assert_eq!(client.rename((home, "f"), (from, "f")).await, 0);
            rig.take_trace();
            let mover = client.clone();
            let moving = rig.handle().spawn("rename", async move { mover.rename((from, "f"), (to, "f")).await });
            rig.handle().sleep(Duration::from_micros(15 * step)).await;
            rig.slow_down(Duration::from_millis(1400), Duration::from_micros(16)).await;
            assert_eq!(moving.await.unwrap(), 0);
            asked.set(asked.get() + bucket_named(&rig.take_trace(), "Ask").len());
            assert_eq!(client.lookup(to, "f").await.unwrap(), f);
            let names = check(&rig, &client).await;
            assert_eq!(names.values().filter(|inode| **inode == f).count(), 1);
        });
    }
    assert!(asked.get() > 0, "no moment was the one");
}

#[test]
fn nobody_sees_one_half_before_the_other() {
    for seed in 310..314 {
        run(seed, |rig| async move {
            let client = rig.client(1);
            let a = dir_in(&client, &rig, 1, "a").await;
            let b = dir_in(&client, &rig, 2, "b").await;
            let f = client.create(a, "f").await.unwrap();
            client.create(b, "g").await.unwrap();
            let done = std::rc::Rc::new(std::cell::Cell::new(false));
            let watchers: Vec<_> = (2..5)
                .map(|id| {
                    let (watcher, done) = (rig.client(id), done.clone());
                    rig.handle().spawn("watcher", async move {
                        let mut looks = 0;
                        while !done.get() {
                            // Where it goes is looked at after where it comes from: it must be in one of both.
                            let here = watcher.lookup(a, "f").await.is_ok();
                            let there = watcher.lookup(b, "f").await.is_ok();
                            let here_again = watcher.lookup(a, "f").await.is_ok();
                            assert!(here || there || here_again, "the file was nowhere");
                            // A name that is replaced is always there.
                            assert!(watcher.lookup(b, "g").await.is_ok(), "the replaced name was gone");
                            looks += 1;
                        }
                        looks
                    })
                })
                .collect();
            for round in 0..12 {
                assert_eq!(client.rename((a, "f"), (b, "f")).await, 0);
                // What was answered is seen by everyone.
                assert_eq!(rig.client(6).lookup(b, "f").await.unwrap(), f);
                assert!(rig.client(6).lookup(a, "f").await.is_err());
                assert_eq!(client.rename((b, "f"), (a, "f")).await, 0);
                let h = client.create(a, "h").await.unwrap();
                assert_eq!(client.rename((a, "h"), (b, "g")).await, 0);
                assert_eq!(client.lookup(b, "g").await.unwrap(), h);
                if round == 5 {
                    rig.fail_over(BucketId(2)).await;
                }
            }
            done.set(true);
            for watcher in watchers {
                assert!(watcher.await.unwrap() > 10);
            }
            check(&rig, &client).await;
        });
    }
}

/// One operation over several buckets, in a world of its own.
#[derive(Clone, Copy, Debug)]
enum Case {
    Mkdir,
    Rmdir,
    Link,
    Unlink,
    Move,
    Replace,
    MoveDirectory,
    Exchange,
}

const CASES: [Case; 8] = [
    Case::Mkdir,
    Case::Rmdir,
    Case::Link,
    Case::Unlink,
    Case::Move,
    Case::Replace,
    Case::MoveDirectory,
    Case::Exchange,
];

/// Sets up, answers the operation and the paths before and after it.
async fn prepare(client: &Client, rig: &Rig, case: Case) -> (FsOp, Vec<&'static str>, Vec<&'static str>) {
    let a = dir_in(client, rig, 1, "a").await;
    let b = dir_in(client, rig, 2, "b").await;
    assert_eq!(client.rename((ROOT, &name_of(client, a).await), (ROOT, "a")).await, 0);
    assert_eq!(client.rename((ROOT, &name_of(client, b).await), (ROOT, "b")).await, 0);
    let rename = |mode| FsOp::Rename { dir: a, name: "x".into(), new_dir: b, new_name: "y".into(), mode };
    match case {
        Case::Mkdir => {
            let node = NewNode {
                kind: FileKind::Directory,
                mode: 0o755,
                umask: 0,
                rdev: 0,
                caller: Caller { uid: 0, gid: 0 },
                target: Vec::new(),
            };
            let mut name = 0;
            // A name that lands elsewhere.
            let map = rig.map();
            while map.bucket_of(weft_wire::hash::directory_position(&map.secret, FS, a, NAMES[name].as_bytes(), 0))
                != BucketId(3)
            {
                name += 1;
            }
            let op = FsOp::Create { dir: a, name: NAMES[name].into(), node, exclusive: true, open: false };
            (op, vec!["/a", "/b"], vec!["/a", PATHS[name], "/b"])
        }
        Case::Rmdir => {
            let op = FsOp::Remove { dir: ROOT, name: "a".into(), directory: true };
            (op, vec!["/a", "/b"], vec!["/b"])
        }
        Case::Link => {
            let inode = client.create(b, "y").await.unwrap();
            let op = FsOp::Link { inode, dir: a, name: "x".into() };
            (op, vec!["/a", "/b", "/b/y"], vec!["/a", "/a/x", "/b", "/b/y"])
        }
        Case::Unlink => {
            let inode = client.create(b, "y").await.unwrap();
            assert_eq!(client.link(inode, a, "x").await, 0);
            assert_eq!(client.unlink(b, "y").await, 0);
            let op = FsOp::Remove { dir: a, name: "x".into(), directory: false };
            (op, vec!["/a", "/a/x", "/b"], vec!["/a", "/b"])
        }
        Case::Move => {
            client.create(a, "x").await.unwrap();
            (rename(RenameMode::Replace), vec!["/a", "/a/x", "/b"], vec!["/a", "/b", "/b/y"])
        }
        Case::Replace => {
            client.create(a, "x").await.unwrap();
            client.create(b, "y").await.unwrap();
            (rename(RenameMode::Replace), vec!["/a", "/a/x", "/b", "/b/y"], vec!["/a", "/b", "/b/y"])
        }
        Case::MoveDirectory => {
            client.mkdir(a, "x").await.unwrap();
            client.mkdir(b, "y").await.unwrap();
            (rename(RenameMode::Replace), vec!["/a", "/a/x", "/b", "/b/y"], vec!["/a", "/b", "/b/y"])
        }
        Case::Exchange => {
            let x = client.mkdir(a, "x").await.unwrap();
            client.create(b, "y").await.unwrap();
            client.create(x, "in").await.unwrap();
            let before = vec!["/a", "/a/x", "/a/x/in", "/b", "/b/y"];
            (rename(RenameMode::Exchange), before, vec!["/a", "/a/x", "/b", "/b/y", "/b/y/in"])
        }
    }
}

const NAMES: [&str; 12] = ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9", "nA", "nB"];
const PATHS: [&str; 12] =
    ["/a/n0", "/a/n1", "/a/n2", "/a/n3", "/a/n4", "/a/n5", "/a/n6", "/a/n7", "/a/n8", "/a/n9", "/a/nA", "/a/nB"];

async fn name_of(client: &Client, dir: InodeId) -> String {
    let op = FsOp::ReadDir { dir: ROOT, cookie: 0, entries_max: 1000, attrs: false };
    let Ok((FsReply::Entries { entries, .. }, _)) = client.ask(op).await else { panic!() };
    let entry = entries.into_iter().find(|entry| entry.inode == dir).expect("name");
    String::from_utf8(entry.name).expect("utf-8")
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    /// The leader of a bucket dies, another takes over.
    Kill(u32),
    /// Another takes over while the old one lives on.
    Depose(u32),
    /// All leaders and drives.
    Power,
}

/// The operation is under way when the blow falls; the client goes on until it is answered, or dies with its question.
fn strike(case: Case, blow: Blow, after: Duration, client_dies: bool) {
    run(400, |rig| async move {
        let client = rig.client(1);
        let (op, before, after_it) = prepare(&client, &rig, case).await;
        let asking = client.clone();
        let question = rig.handle().spawn("question", async move { asking.ask(op).await });
        rig.handle().sleep(after).await;
        if client_dies {
            question.abort();
        }
        match blow {
            Blow::Kill(bucket) => rig.fail_over(BucketId(bucket)).await,
            Blow::Depose(bucket) => rig.lead(BucketId(bucket)).await,
            Blow::Power => rig.lose_power(CrashKeeps::Nothing).await,
        }
        let answered = question.await;
        let other = rig.client(2);
        let paths: Vec<String> = check(&rig, &other).await.into_keys().collect();
        let what = format!("{case:?} {blow:?} after {after:?}");
        if client_dies {
            assert!(paths == before || paths == after_it, "{what}: {paths:?}");
        } else {
            answered.expect("not aborted").unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(paths, after_it, "{what}");
        }
    });
}

#[test]
fn a_leader_dies_at_any_moment() {
    for case in CASES {
        for step in 0..14 {
            let after = Duration::from_micros(step * 120);
            strike(case, Blow::Kill(if step % 2 == 0 { 1 } else { 2 }), after, false);
            strike(case, Blow::Kill([1, 2, 0, 3][step as usize % 4]), after + Duration::from_micros(60), true);
        }
    }
}

#[test]
fn a_leader_is_deposed_at_any_moment() {
    for case in CASES {
        for step in 0..10 {
            let after = Duration::from_micros(step * 150);
            strike(case, Blow::Depose([1, 2, 0][step as usize % 3]), after, step % 2 == 0);
        }
    }
}

#[test]
fn power_fails_at_any_moment() {
    for case in CASES {
        for step in 0..10 {
            let after = Duration::from_micros(step * 170);
            strike(case, Blow::Power, after, step % 3 == 0);
        }
    }
}

/// Many clients move things about at random while leaders come and go.
#[test]
fn trees_hang_together_whatever_happens() {
    for seed in 500..508 {
        run(seed, |rig| async move {
            let client = rig.client(1);
            live(&rig, &client).await;
            check(&rig, &client).await;
        });
    }
}

pub async fn live(rig: &Rig, client: &Client) {
    let mut dirs = vec![ROOT];
    for i in 0..5 {
        let parent = dirs[i % 2];
        dirs.push(client.mkdir(parent, &format!("d{i}")).await.unwrap());
    }
    let workers: Vec<_> = (2..6)
        .map(|id| {
            let (client, dirs, handle) = (rig.client(id), dirs.clone(), rig.handle().clone());
            let work = async move {
                for _ in 0..25 {
                    let pick = |n: u64| handle.random_below(n) as usize;
                    let (dir, other) = (dirs[pick(6)], dirs[pick(6)]);
                    let name = ["d0", "d1", "d2", "x", "y"][pick(5)];
                    let to = ["d0", "d1", "d2", "x", "y"][pick(5)];
                    match pick(8) {
                        0 => drop(client.create(dir, name).await),
                        1 => drop(client.mkdir(dir, name).await),
                        2 => _ = client.unlink(dir, name).await,
                        3 => _ = client.rmdir(dir, name).await,
                        4 => {
                            if let Ok(inode) = client.lookup(other, to).await {
                                client.link(inode, dir, name).await;
                            }
                        }
                        5 => _ = client.rename_mode((dir, name), (other, to), RenameMode::Exchange).await,
                        _ => _ = client.rename((dir, name), (other, to)).await,
                    }
                }
            };
            rig.handle().spawn("worker", work)
        })
        .collect();
    for _ in 0..4 {
        let nap = rig.handle().random_below(4000);
        rig.handle().sleep(Duration::from_micros(nap)).await;
        rig.fail_over(BucketId(rig.handle().random_below(u64::from(BUCKETS)) as u32)).await;
    }
    for worker in workers {
        worker.await.unwrap();
    }
}
