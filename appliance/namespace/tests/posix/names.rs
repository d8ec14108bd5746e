//! Names come, go and are found.

use crate::rig::*;
use std::collections::BTreeSet;
use weft_wire::InodeId;
use weft_wire::fs::*;

const ENOENT: i32 = 2;
const EPERM: i32 = 1;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const ENOTEMPTY: i32 = 39;
const ESTALE: i32 = 116;

fn file(mode: u16) -> NewNode {
    NewNode { kind: FileKind::File, mode, umask: 0, rdev: 0, caller: Caller { uid: 7, gid: 8 }, target: Vec::new() }
}

#[test]
fn files_are_created_found_and_removed() {
    run(1, |rig| async move {
        let client = rig.client(1);
        let a = client.create(ROOT, "a").await.unwrap();
        assert_eq!(client.lookup(ROOT, "a").await.unwrap(), a);
        let again = client.create(ROOT, "a").await;
        assert_eq!(errno(&again.unwrap_err()), EEXIST);
        // Without O_EXCL it answers what is there.
        let op = FsOp::Create { dir: ROOT, name: "a".into(), node: file(0o600), exclusive: false, open: false };
        let (FsReply::Entry { inode, created, .. }, _) = client.ask(op).await.unwrap() else { panic!() };
        assert_eq!((inode, created), (a, false));
        assert_eq!(errno(&client.lookup(ROOT, "b").await.unwrap_err()), ENOENT);
        assert_eq!(errno(&client.lookup(a, "b").await.unwrap_err()), ENOTDIR);
        assert_eq!(errno(&client.create(a, "b").await.unwrap_err()), ENOTDIR);
        assert_eq!(client.rmdir(ROOT, "a").await, ENOTDIR);
        assert_eq!(client.unlink(ROOT, "a").await, 0);
        assert_eq!(client.unlink(ROOT, "a").await, ENOENT);
        assert_eq!(errno(&client.lookup(ROOT, "a").await.unwrap_err()), ENOENT);
        assert_eq!(errno(&client.getattr(a).await.unwrap_err()), ESTALE);
        assert!(client.names(ROOT).await.is_empty());
    });
}

#[test]
fn names_are_checked() {
    run(2, |rig| async move {
        let client = rig.client(1);
        let longest = "n".repeat(255);
        let too_long = "n".repeat(256);
        client.create(ROOT, &longest).await.unwrap();
        assert_eq!(errno(&client.create(ROOT, &too_long).await.unwrap_err()), ENAMETOOLONG);
        assert_eq!(errno(&client.lookup(ROOT, &too_long).await.unwrap_err()), ENAMETOOLONG);
        assert_eq!(client.unlink(ROOT, &too_long).await, ENAMETOOLONG);
        assert_eq!(client.rename((ROOT, &longest), (ROOT, &too_long)).await, ENAMETOOLONG);
        for name in ["", ".", "..", "a/b", "a\0b"] {
            assert_eq!(errno(&client.create(ROOT, name).await.unwrap_err()), EINVAL, "{name:?}");
        }
        let target = vec![b't'; 4096];
        assert_eq!(errno(&client.symlink(ROOT, "s", &target).await.unwrap_err()), ENAMETOOLONG);
        let s = client.symlink(ROOT, "s", &target[..4095]).await.unwrap();
        let (FsReply::Bytes(read), _) = client.ask(FsOp::ReadLink { inode: s }).await.unwrap() else { panic!() };
        assert_eq!(read, &target[..4095]);
        let attr = client.getattr(s).await.unwrap();
        assert_eq!((attr.size_bytes, attr.mode), (4095, 0o777));
        let f = client.create(ROOT, "f").await.unwrap();
        assert_eq!(client.fails(FsOp::ReadLink { inode: f }).await, EINVAL);
    });
}

#[test]
fn directories_nest_and_count_their_links() {
    run(3, |rig| async move {
        let client = rig.client(1);
        let a = client.mkdir(ROOT, "a").await.unwrap();
        let b = client.mkdir(a, "b").await.unwrap();
        let links = async |inode| client.getattr(inode).await.unwrap().links;
        assert_eq!((links(ROOT).await, links(a).await, links(b).await), (3, 3, 2));
        assert_eq!(client.lookup(b, "..").await.unwrap(), a);
        assert_eq!(client.lookup(a, "..").await.unwrap(), ROOT);
        assert_eq!(client.lookup(ROOT, "..").await.unwrap(), ROOT);
        assert_eq!(errno(&client.mkdir(ROOT, "a").await.unwrap_err()), EEXIST);
        assert_eq!(client.unlink(ROOT, "a").await, EISDIR);
        assert_eq!(client.rmdir(ROOT, "a").await, ENOTEMPTY);
        assert_eq!(client.rmdir(a, "b").await, 0);
        assert_eq!(links(a).await, 2);
        assert_eq!(client.rmdir(ROOT, "a").await, 0);
        assert_eq!(client.rmdir(ROOT, "a").await, ENOENT);
        assert_eq!(links(ROOT).await, 2);
        assert_eq!(errno(&client.create(a, "late").await.unwrap_err()), ESTALE);
    });
}

#[test]
fn a_removed_directory_takes_no_new_names_while_it_is_open() {
    run(4, |rig| async move {
        let client = rig.client(1);
        let a = client.mkdir(ROOT, "a").await.unwrap();
        client.open(a).await.unwrap();
        assert_eq!(client.rmdir(ROOT, "a").await, 0);
        assert_eq!(client.getattr(a).await.unwrap().links, 0);
        assert_eq!(errno(&client.create(a, "late").await.unwrap_err()), ENOENT);
        assert_eq!(errno(&client.mkdir(a, "late").await.unwrap_err()), ENOENT);
        assert!(client.names(a).await.is_empty());
        client.release(a).await;
        rig.handle().sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(errno(&client.getattr(a).await.unwrap_err()), ESTALE);
    });
}

#[test]
fn links_are_counted_and_the_last_takes_the_file() {
    run(5, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        let d = client.mkdir(ROOT, "d").await.unwrap();
        client.write(f, 0, &[7; 5000]).await.unwrap();
        assert_eq!(client.link(f, ROOT, "g").await, 0);
        assert_eq!(client.link(f, d, "h").await, 0);
        assert_eq!(client.link(f, ROOT, "g").await, EEXIST);
        assert_eq!(client.link(d, ROOT, "e").await, EPERM);
        assert_eq!(client.getattr(f).await.unwrap().links, 3);
        assert_eq!(client.lookup(d, "h").await.unwrap(), f);
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        assert_eq!(client.unlink(ROOT, "g").await, 0);
        assert_eq!(client.getattr(f).await.unwrap().links, 1);
        assert_eq!(client.read(f, 0, 9999).await, [7; 5000]);
        assert_eq!(client.unlink(d, "h").await, 0);
        assert_eq!(errno(&client.getattr(f).await.unwrap_err()), ESTALE);
        assert_eq!(client.link(f, ROOT, "back").await, ENOENT);
    });
}

#[test]
fn an_open_file_lives_on_without_a_name() {
    run(6, |rig| async move {
        let (one, other) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        one.write(f, 0, &[1; 3000]).await.unwrap();
        one.open(f).await.unwrap();
        other.open(f).await.unwrap();
        assert_eq!(one.unlink(ROOT, "f").await, 0);
        assert_eq!(one.getattr(f).await.unwrap().links, 0);
        one.release(f).await;
        one.write(f, 3000, &[2; 3000]).await.unwrap();
        assert_eq!(other.read(f, 2999, 2).await, [1, 2]);
        other.release(f).await;
        rig.handle().sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(errno(&one.getattr(f).await.unwrap_err()), ESTALE);
        assert_eq!(one.blocks(f).await, 0);
        // Nobody can open it any more.
        assert_eq!(errno(&one.open(f).await.unwrap_err()), ESTALE);
    });
}

#[test]
fn unnamed_files_get_a_name_or_go() {
    run(7, |rig| async move {
        let client = rig.client(1);
        let make = async || {
            let op = FsOp::CreateUnnamed { dir: ROOT, node: file(0o600) };
            let (FsReply::Entry { inode, .. }, _) = client.ask(op).await.unwrap() else { panic!() };
            inode
        };
        let (kept, gone) = (make().await, make().await);
        client.write(kept, 0, b"kept").await.unwrap();
        client.write(gone, 0, &[9; 10_000]).await.unwrap();
        assert_eq!(client.link(kept, ROOT, "kept").await, 0);
        assert_eq!(client.getattr(kept).await.unwrap().links, 1);
        client.release(kept).await;
        client.release(gone).await;
        rig.handle().sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(client.read(kept, 0, 10).await, b"kept");
        assert_eq!(errno(&client.getattr(gone).await.unwrap_err()), ESTALE);
        assert_eq!(client.blocks(gone).await, 0);
    });
}

#[test]
fn listing_goes_on_where_it_was_whatever_comes_and_goes() {
    run(8, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        for i in 0..60 {
            client.create(dir, &format!("f{i:02}")).await.unwrap();
        }
        let mut seen = BTreeSet::new();
        let mut cookie = 0;
        let mut round = 0;
        loop {
            let op = FsOp::ReadDir { dir, cookie, entries_max: 5, attrs: round % 2 == 0 };
            let (FsReply::Entries { entries, end }, _) = client.ask(op).await.unwrap() else { panic!() };
            for entry in entries {
                cookie = entry.cookie;
                if let Some(attr) = entry.attr {
                    assert_eq!(attr.inode, entry.inode);
                }
                assert!(seen.insert(String::from_utf8(entry.name).unwrap()), "a name came twice");
            }
            if end {
                break;
            }
            client.create(dir, &format!("new{round}")).await.unwrap();
            client.unlink(dir, &format!("f{:02}", round + 40)).await;
            round += 1;
        }
        for i in 0..40 {
            assert!(seen.contains(&format!("f{i:02}")), "f{i:02} was there all the time");
        }
        let file: InodeId = client.lookup(dir, "f00").await.unwrap();
        let op = FsOp::ReadDir { dir: file, cookie: 0, entries_max: 5, attrs: false };
        assert_eq!(client.fails(op).await, ENOTDIR);
        let op = FsOp::ReadDir { dir, cookie: u64::MAX, entries_max: 5, attrs: false };
        let (FsReply::Entries { entries, end }, _) = client.ask(op).await.unwrap() else { panic!() };
        assert!(entries.is_empty() && end);
    });
}

#[test]
fn special_files_keep_their_numbers() {
    run(9, |rig| async move {
        let client = rig.client(1);
        for (name, kind) in [("fifo", FileKind::Fifo), ("dev", FileKind::CharDevice), ("sock", FileKind::Socket)] {
            let node = NewNode { kind, rdev: 0x0105, ..file(0o620) };
            let attr = client.make(ROOT, name, node).await.unwrap();
            assert_eq!((attr.kind, attr.rdev, attr.mode, attr.links), (kind, 0x0105, 0o620, 1));
        }
        let dev = client.lookup(ROOT, "dev").await.unwrap();
        assert_eq!(errno(&client.truncate(dev, 0).await.unwrap_err()), EINVAL);
        assert_eq!(errno(&client.truncate(ROOT, 0).await.unwrap_err()), EISDIR);
        assert_eq!(client.names(ROOT).await, ["dev", "fifo", "sock"]);
    });
}

#[test]
fn a_file_is_one_buckets_business() {
    run(10, |rig| async move {
        let client = rig.client(1);
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        rig.take_trace();
        let f = client.create(dir, "f").await.unwrap();
        client.write(f, 0, b"small").await.unwrap();
        client.rename((dir, "f"), (dir, "g")).await;
        client.unlink(dir, "g").await;
        let trace = rig.take_trace();
        assert!(trace.iter().all(|(bucket, _)| *bucket == rig.bucket_of(dir)), "{trace:?}");
    });
}
