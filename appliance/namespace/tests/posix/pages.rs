//! Large directories: pages that split over buckets, under everyone's hands and whatever dies.

use crate::acl::{acl, get, node, set_op};
use crate::check::check;
use crate::rig::*;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{KeyBuilder, Tag};
use weft_drive::mem::CrashKeeps;
use weft_namespace::Tunables;
use weft_wire::acl::{ACCESS_NAME, DEFAULT_NAME};
use weft_wire::fs::*;
use weft_wire::{BucketId, InodeId};

fn small_pages(page_entries_max: u64) -> Tunables {
    Tunables { page_entries_max }
}

fn splits(rig: &Rig) -> u64 {
    (0..BUCKETS).map(|bucket| rig.leader(BucketId(bucket)).page_splits()).sum()
}

async fn make(client: &Client, dir: InodeId, count: usize) -> BTreeSet<String> {
    let names: BTreeSet<String> = (0..count).map(|i| format!("f{i}")).collect();
    for name in &names {
        client.create(dir, name).await.unwrap();
    }
    names
}

async fn listed(client: &Client, dir: InodeId) -> BTreeSet<String> {
    let names = client.names(dir).await;
    let set: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "a name is listed twice");
    set
}

/// Nothing of directories that are gone, or of pages that have split, is left.
async fn nothing_left(rig: &Rig) {
    rig.handle().sleep(Duration::from_secs(90)).await;
    for bucket in (0..BUCKETS).map(BucketId) {
        for tag in [Tag::Page, Tag::Dentry] {
            let prefix = KeyBuilder::new(FS, tag).build();
            let left = rig.leader(bucket).bucket().scan_prefix(&prefix, usize::MAX).await.expect("scan");
            assert!(left.is_empty(), "{bucket} has {} keys of {tag:?} left", left.len());
        }
    }
}

#[test]
fn a_directory_grows_over_buckets_and_goes() {
    run_with(small_pages(8), 600, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        let mut names = make(&client, dir, 150).await;
        let sub = client.mkdir(dir, "sub").await.unwrap();
        names.insert("sub".into());
        rig.handle().sleep(Duration::from_secs(1)).await;
        assert!(splits(&rig) >= 8, "{} splits", splits(&rig));
        // Who knows nothing of pages finds everything.
        let other = rig.client(2);
        assert_eq!(listed(&other, dir).await, names);
        for name in &names {
            assert!(rig.client(3).lookup(dir, name).await.is_ok(), "{name}");
        }
        assert_eq!(other.lookup(dir, "none").await, Err(FsError::Errno(2)));
        let attr = other.getattr(dir).await.unwrap();
        assert_eq!((attr.links, attr.blocks), (3, 1 + 151 / 64));
        let buckets: BTreeSet<_> = {
            let mut buckets = BTreeSet::new();
            for i in 0..20 {
                buckets.insert(rig.bucket_of(other.create(dir, &format!("g{i}")).await.unwrap()));
            }
            buckets
        };
        assert!(buckets.len() > 2, "new files go where their names are: {buckets:?}");
        for i in 0..20 {
            assert_eq!(client.rename((dir, &format!("g{i}")), (sub, &format!("h{i}"))).await, 0);
            assert_eq!(other.rename((sub, &format!("h{i}")), (dir, &format!("g{i}"))).await, 0);
            assert_eq!(other.rename((dir, &format!("g{i}")), (dir, &format!("k{i}"))).await, 0);
            assert_eq!(client.unlink(dir, &format!("k{i}")).await, 0);
        }
        assert_eq!(client.rmdir(ROOT, "d").await, 39);
        check(&rig, &other).await;
        assert_eq!(client.rmdir(dir, "sub").await, 0);
        names.remove("sub");
        for name in &names {
            assert_eq!(other.unlink(dir, name).await, 0, "{name}");
        }
        assert_eq!(listed(&client, dir).await, BTreeSet::new());
        assert_eq!(client.rmdir(ROOT, "d").await, 0);
        // Whoever remembers its pages hears that it is gone.
        assert!(client.create(dir, "late").await.is_err());
        assert!(client.lookup(dir, "f1").await.is_err());
        check(&rig, &other).await;
        nothing_left(&rig).await;
    });
}

#[test]
fn what_a_large_directory_says_of_itself_is_what_was_last_done() {
    run_with(small_pages(4), 601, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        make(&client, dir, 30).await;
        rig.handle().sleep(Duration::from_secs(1)).await;
        let before = client.getattr(dir).await.unwrap();
        client.create(dir, "new").await.unwrap();
        let after = client.getattr(dir).await.unwrap();
        assert!(after.mtime_ns > before.mtime_ns && after.ctime_ns == after.mtime_ns);
        let set = SetAttr { mtime: Some(SetTime::At(5)), ..SetAttr::default() };
        assert_eq!(client.setattr(dir, set).await.unwrap().mtime_ns, 5);
        assert_eq!(client.getattr(dir).await.unwrap().mtime_ns, 5, "what was set stays");
        let set = SetAttr { mode: Some(0o2755), gid: Some(77), ..SetAttr::default() };
        let attr = client.setattr(dir, set).await.unwrap();
        assert_eq!((attr.mtime_ns, attr.blocks), (5, 1));
        for i in 0..12 {
            let inode = client.create(dir, &format!("in{i}")).await.unwrap();
            assert_eq!(client.getattr(inode).await.unwrap().gid, 77, "the group is that of the directory");
        }
        assert!(client.getattr(dir).await.unwrap().mtime_ns > 5);
        check(&rig, &client).await;
    });
}

#[test]
fn a_create_asks_no_more_however_many_entries_there_are() {
    run_with(small_pages(64), 604, |rig| async move {
        let client = rig.client(1);
        let (small, large) = (client.mkdir(ROOT, "s").await.unwrap(), client.mkdir(ROOT, "l").await.unwrap());
        make(&client, large, 900).await;
        rig.handle().sleep(Duration::from_secs(1)).await;
        assert!(splits(&rig) >= 12, "{} splits", splits(&rig));
        let mut asked = Vec::new();
        for dir in [small, large] {
            rig.take_trace();
            for i in 0..60 {
                client.create(dir, &format!("n{i}")).await.unwrap();
            }
            // Splits included.
            rig.handle().sleep(Duration::from_secs(1)).await;
            asked.push(rig.take_trace().len());
        }
        assert!(asked[0] == 60 && asked[1] * 10 <= asked[0] * 12, "{asked:?} requests for 60 creates");
    });
}

#[test]
fn what_is_inherited_is_the_same_in_all_pages() {
    run_with(small_pages(3), 602, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        assert_eq!(client.fails(set_op(dir, DEFAULT_NAME, acl(7))).await, 0);
        make(&client, dir, 24).await;
        rig.handle().sleep(Duration::from_secs(1)).await;
        assert!(splits(&rig) >= 4);
        let made = async |prefix: &str, kind: FileKind| {
            let mut made = Vec::new();
            for i in 0..12 {
                made.push(client.make(dir, &format!("{prefix}{i}"), node(kind, 0o666)).await.unwrap());
            }
            made
        };
        // Pages begin with what the directory had...
        for attr in made("a", FileKind::File).await {
            assert_eq!((attr.mode, get(&client, attr.inode, ACCESS_NAME).await.unwrap().mode()), (0o660, 0o660));
        }
        // ... and hear of changes, wherever they are.
        assert_eq!(client.fails(set_op(dir, DEFAULT_NAME, acl(4))).await, 0);
        for attr in made("b", FileKind::Directory).await {
            assert_eq!(get(&client, attr.inode, DEFAULT_NAME).await.unwrap().mode() & 0o070, 0o040);
        }
        let set = SetAttr { mode: Some(0o2755), gid: Some(99), ..SetAttr::default() };
        client.setattr(dir, set).await.unwrap();
        rig.fail_over(BucketId(1)).await;
        let remove = FsOp::RemoveXattr { inode: dir, name: DEFAULT_NAME.to_vec() };
        assert_eq!(client.fails(remove).await, 0);
        for attr in made("c", FileKind::File).await {
            assert_eq!((attr.mode, attr.gid), (0o600, 99), "the umask has its say again");
            assert!(get(&client, attr.inode, ACCESS_NAME).await.is_err());
        }
        check(&rig, &client).await;
    });
}

#[test]
fn times_of_a_large_directory_are_those_of_its_names_or_what_was_set() {
    run_with(small_pages(2), 603, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        // Set before there are pages, to a time that has not come.
        let far = i64::MAX / 2;
        let set = SetAttr { mtime: Some(SetTime::At(far)), ..SetAttr::default() };
        client.setattr(dir, set).await.unwrap();
        make(&client, dir, 12).await;
        rig.handle().sleep(Duration::from_secs(1)).await;
        assert!(splits(&rig) > 2);
        let made = client.getattr(dir).await.unwrap();
        assert!(made.mtime_ns < far, "a new name is newer than what was set");
        // It moves, and gets an attribute: that is no change of its names.
        assert_eq!(client.rename((ROOT, "d"), (ROOT, "e")).await, 0);
        assert_eq!(client.fails(set_op(dir, b"user.a", b"1".to_vec())).await, 0);
        let moved = client.getattr(dir).await.unwrap();
        assert_eq!(moved.mtime_ns, made.mtime_ns);
        assert!(moved.ctime_ns > made.ctime_ns);
        client.setattr(dir, set).await.unwrap();
        assert_eq!(client.getattr(dir).await.unwrap().mtime_ns, far);
        assert_eq!(client.unlink(dir, "f3").await, 0);
        let removed = client.getattr(dir).await.unwrap();
        assert!(removed.mtime_ns > made.mtime_ns && removed.mtime_ns < far);
        check(&rig, &client).await;
    });
}

#[test]
fn listings_and_lookups_miss_nothing_while_pages_split() {
    for seed in 610..614 {
        run_with(small_pages(3), seed, |rig| async move {
            let client = rig.client(1);
            let dir = client.mkdir(ROOT, "d").await.unwrap();
            let stays = make(&client, dir, 3).await;
            let done = Rc::new(Cell::new(false));
            let watchers: Vec<_> = (2..5)
                .map(|id| {
                    let (watcher, done, stays) = (rig.client(id), Rc::clone(&done), stays.clone());
                    rig.handle().spawn("watcher", async move {
                        let mut looks = 0;
                        while !done.get() {
                            let found = listed(&watcher, dir).await;
                            assert!(stays.is_subset(&found), "{found:?}");
                            for name in &stays {
                                assert!(watcher.lookup(dir, name).await.is_ok(), "{name} was gone");
                            }
                            looks += 1;
                        }
                        looks
                    })
                })
                .collect();
            for i in 0..60 {
                client.create(dir, &format!("g{i}")).await.unwrap();
                assert!(rig.client(6).lookup(dir, &format!("g{i}")).await.is_ok());
                if i % 20 == 10 {
                    rig.fail_over(BucketId(rig.handle().random_below(u64::from(BUCKETS)) as u32)).await;
                }
            }
            done.set(true);
            for watcher in watchers {
                assert!(watcher.await.unwrap() > 5);
            }
            assert!(splits(&rig) > 0);
            check(&rig, &client).await;
        });
    }
}

/// A page splits, and somebody dies at one moment of it, perhaps somebody else a moment later.
fn strike(seed: u64, blow: Option<u32>, again: Option<u32>, after: Duration) {
    run_with(small_pages(6), seed, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        let mut names = make(&client, dir, 6).await;
        // The one too many.
        client.create(dir, "more").await.unwrap();
        names.insert("more".into());
        rig.handle().sleep(after).await;
        match blow {
            Some(bucket) => rig.fail_over(BucketId(bucket)).await,
            None => rig.lose_power(CrashKeeps::Nothing).await,
        }
        if let Some(bucket) = again {
            rig.fail_over(BucketId(bucket)).await;
        }
        let other = rig.client(2);
        assert_eq!(listed(&other, dir).await, names, "{blow:?} after {after:?}");
        for i in 0..20 {
            client.create(dir, &format!("g{i}")).await.unwrap();
            names.insert(format!("g{i}"));
        }
        assert_eq!(listed(&other, dir).await, names, "{blow:?} after {after:?}");
        rig.handle().sleep(Duration::from_secs(15)).await;
        client.create(dir, "last").await.unwrap();
        names.insert("last".into());
        rig.handle().sleep(Duration::from_secs(5)).await;
        assert!(splits(&rig) > 0, "it splits in the end");
        check(&rig, &other).await;
        for name in &names {
            assert_eq!(other.unlink(dir, name).await, 0, "{name} {blow:?} after {after:?}");
        }
        assert_eq!(other.rmdir(ROOT, "d").await, 0);
        check(&rig, &other).await;
        nothing_left(&rig).await;
    });
}

#[test]
fn leaders_die_at_any_moment_of_a_split() {
    for step in 0..12 {
        let after = Duration::from_micros(step * 150);
        for bucket in 0..BUCKETS {
            strike(620 + step, Some(bucket), None, after + Duration::from_micros(u64::from(bucket) * 35));
        }
    }
}

#[test]
fn leader_follows_leader_while_a_page_splits() {
    for step in 0..8 {
        for bucket in 0..BUCKETS {
            let again = (bucket + step) % BUCKETS;
            strike(630 + u64::from(step), Some(bucket), Some(again), Duration::from_micros(u64::from(step) * 210));
        }
    }
}

#[test]
fn power_fails_at_any_moment_of_a_split() {
    for step in 0..12 {
        strike(640 + step, None, None, Duration::from_micros(step * 160));
    }
}

#[test]
fn a_directory_goes_all_or_nothing_with_its_pages() {
    for step in 0..10 {
        run_with(small_pages(2), 660 + step, |rig| async move {
            let client = rig.client(1);
            let dir = client.mkdir(ROOT, "d").await.unwrap();
            let names = make(&client, dir, 16).await;
            rig.handle().sleep(Duration::from_secs(1)).await;
            for name in &names {
                assert_eq!(client.unlink(dir, name).await, 0);
            }
            let going = client.clone();
            let gone = rig.handle().spawn("rmdir", async move { going.rmdir(ROOT, "d").await });
            rig.handle().sleep(Duration::from_micros(step * 170)).await;
            let other = rig.client(2);
            let late = other.create(dir, "late").await;
            rig.fail_over(BucketId(step as u32 % BUCKETS)).await;
            match gone.await.unwrap() {
                0 => assert!(late.is_err(), "a file was made in a directory that went"),
                errno => assert_eq!((errno, late.is_ok()), (39, true)),
            }
            check(&rig, &other).await;
        });
    }
}

#[test]
fn small_pages_bear_random_lives() {
    for seed in 680..688 {
        run_with(small_pages(1 + seed % 3), seed, |rig| async move {
            let client = rig.client(1);
            crate::transactions::live(&rig, &client).await;
            check(&rig, &client).await;
        });
    }
}
