//! Modes, owners, times, extended attributes.

use crate::rig::*;
use std::time::Duration;
use weft_drive::mem::CrashKeeps;
use weft_wire::fs::*;

const MIB: u64 = 1 << 20;

const EEXIST: i32 = 17;
const ERANGE: i32 = 34;
const ENODATA: i32 = 61;

fn node(kind: FileKind, mode: u16) -> NewNode {
    NewNode { kind, mode, umask: 0, rdev: 0, caller: Caller { uid: 7, gid: 8 }, target: Vec::new() }
}

#[test]
fn modes_and_owners_change() {
    run(40, |rig| async move {
        let client = rig.client(1);
        let f = client.make(ROOT, "f", node(FileKind::File, 0o106_755)).await.unwrap();
        assert_eq!((f.mode, f.uid, f.gid), (0o6755, 7, 8));
        let set = SetAttr { uid: Some(1), gid: Some(2), kill_setid: true, ..SetAttr::default() };
        let attr = client.setattr(f.inode, set).await.unwrap();
        assert_eq!((attr.mode, attr.uid, attr.gid), (0o755, 1, 2));
        // Without group execution, setgid is mandatory locking: it stays.
        client.setattr(f.inode, SetAttr { mode: Some(0o6744), ..SetAttr::default() }).await.unwrap();
        let op = FsOp::Write { inode: f.inode, offset: 0, cut_generation: 0, kill_setid: true };
        client.ask_with(op, bytes::Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(client.getattr(f.inode).await.unwrap().mode, 0o2744);
    });
}

#[test]
fn setgid_directories_hand_their_group_on() {
    run(41, |rig| async move {
        let client = rig.client(1);
        let d = client.make(ROOT, "d", node(FileKind::Directory, 0o2775)).await.unwrap();
        client.setattr(d.inode, SetAttr { gid: Some(99), ..SetAttr::default() }).await.unwrap();
        let sub = client.make(d.inode, "sub", node(FileKind::Directory, 0o755)).await.unwrap();
        assert_eq!((sub.mode, sub.gid), (0o2755, 99));
        let f = client.make(d.inode, "f", node(FileKind::File, 0o644)).await.unwrap();
        assert_eq!((f.mode, f.gid, f.uid), (0o644, 99, 7));
    });
}

#[test]
fn times_tell_what_happened() {
    run(42, |rig| async move {
        let client = rig.client(1);
        let tick = || rig.handle().sleep(Duration::from_millis(5));
        let f = client.create(ROOT, "f").await.unwrap();
        let made = client.getattr(f).await.unwrap();
        assert_eq!((made.mtime_ns, made.ctime_ns, made.btime_ns), (made.atime_ns, made.atime_ns, made.atime_ns));
        assert_eq!(client.getattr(ROOT).await.unwrap().mtime_ns, made.mtime_ns);
        tick().await;
        client.write(f, 0, b"1").await.unwrap();
        let written = client.getattr(f).await.unwrap();
        assert!(written.mtime_ns > made.mtime_ns && written.ctime_ns == written.mtime_ns);
        assert_eq!(written.atime_ns, made.atime_ns);
        tick().await;
        client.setattr(f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.unwrap();
        let changed = client.getattr(f).await.unwrap();
        assert!(changed.ctime_ns > written.ctime_ns && changed.mtime_ns == written.mtime_ns);
        let set = SetAttr { atime: Some(SetTime::At(-5)), mtime: Some(SetTime::At(77)), ..SetAttr::default() };
        tick().await;
        let set = client.setattr(f, set).await.unwrap();
        assert_eq!((set.atime_ns, set.mtime_ns, set.btime_ns), (-5, 77, made.btime_ns));
        assert!(set.ctime_ns > changed.ctime_ns);
        tick().await;
        client.link(f, ROOT, "g").await;
        let linked = client.getattr(f).await.unwrap();
        assert!(linked.ctime_ns > set.ctime_ns && linked.mtime_ns == 77);
        tick().await;
        client.unlink(ROOT, "g").await;
        let unlinked = client.getattr(f).await.unwrap();
        assert!(unlinked.ctime_ns > linked.ctime_ns);
        assert_eq!(client.getattr(ROOT).await.unwrap().mtime_ns, unlinked.ctime_ns);
        tick().await;
        client.truncate(f, 100).await.unwrap();
        assert!(client.getattr(f).await.unwrap().mtime_ns > unlinked.ctime_ns);
        // A failed create changes nothing.
        let before = client.getattr(ROOT).await.unwrap();
        tick().await;
        assert!(client.create(ROOT, "f").await.is_err());
        assert_eq!(client.getattr(ROOT).await.unwrap(), before);
    });
}

#[test]
fn times_of_overwrites_are_kept_by_the_slabs_until_an_application_sets_them() {
    run(45, |rig| async move {
        let client = rig.client(1);
        let tick = || rig.handle().sleep(Duration::from_millis(5));
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 0, &vec![1; 3 * MIB as usize]).await.unwrap();
        assert_eq!(client.getattr(f).await.unwrap().late, LateTimes::Never);
        client.write(f, MIB, b"over").await.unwrap();
        let told = client.getattr(f).await.unwrap();
        assert_eq!(told.late, LateTimes::Newest);

        tick().await;
        client.overwrite(f, 2 * MIB, b"and over", told.ctime_ns).await.unwrap();
        assert_eq!(client.getattr(f).await.unwrap(), told, "the inode isn't told");
        let late = client.stat(f).await;
        assert!(late.mtime_ns > told.mtime_ns && late.ctime_ns == late.mtime_ns);
        // Later than what its writer has seen, whatever the clock says.
        let future_ns = late.ctime_ns + 1_000_000_000;
        client.overwrite(f, 2 * MIB, b"again", future_ns).await.unwrap();
        assert_eq!(client.stat(f).await.mtime_ns, future_ns + 1);
        client.overwrite(f, 2 * MIB, b"again", 0).await.unwrap();
        assert_eq!(client.stat(f).await.mtime_ns, future_ns + 2);
        rig.lose_power(CrashKeeps::Nothing).await;
        assert_eq!(client.stat(f).await.mtime_ns, future_ns + 2);

        // The past, or the future: it counts until the next write.
        for mtime_ns in [77, 2 * future_ns] {
            let set = SetAttr { mtime: Some(SetTime::At(mtime_ns)), ..SetAttr::default() };
            assert_eq!(client.setattr(f, set).await.unwrap().mtime_ns, mtime_ns);
            assert_eq!(client.stat(f).await.mtime_ns, mtime_ns);
            assert_eq!(client.slabs(f).await.1, None);
            tick().await;
            client.overwrite(f, MIB, b"once more", 0).await.unwrap();
            let written = client.stat(f).await.mtime_ns;
            assert!(written != mtime_ns && written < 2 * future_ns);
        }
        tick().await;
        client.write(f, 5, b"told").await.unwrap();
        let told = client.getattr(f).await.unwrap();
        assert_eq!(client.stat(f).await.mtime_ns, told.mtime_ns, "and the newest again");

        // Nothing is left behind.
        client.overwrite(f, MIB, b"last", 0).await.unwrap();
        client.truncate(f, 10).await.unwrap();
        assert_eq!(client.slabs(f).await.1, None);
        let before = client.getattr(f).await.unwrap().cut_generation - 1;
        let op = FsOp::Overwrite { inode: f, offset: MIB, cut_generation: before, after_ns: 0 };
        let refused = client.ask_with(op, bytes::Bytes::from_static(b"old")).await.unwrap_err();
        assert!(matches!(refused, FsError::Cut { .. }));
    });
}

#[test]
fn a_directory_has_a_size() {
    run(43, |rig| async move {
        let client = rig.client(1);
        let d = client.mkdir(ROOT, "d").await.unwrap();
        let empty = client.getattr(d).await.unwrap();
        assert_eq!((empty.size_bytes, empty.blocks), (4096, 1));
        for i in 0..70 {
            client.create(d, &format!("{i}")).await.unwrap();
        }
        let full = client.getattr(d).await.unwrap();
        assert!(full.size_bytes > 4096 && full.size_bytes % 4096 == 0 && full.blocks == full.size_bytes / 4096);
    });
}

#[test]
fn extended_attributes_are_set_listed_and_removed() {
    run(44, |rig| async move {
        let client = rig.client(1);
        let inode = client.create(ROOT, "f").await.unwrap();
        let set = async |name: &str, value: &[u8], mode| {
            client
                .fails(FsOp::SetXattr { inode, name: name.into(), value: value.into(), mode, kill_setgid: false })
                .await
        };
        let get = async |name: &str| match client.ask(FsOp::GetXattr { inode, name: name.into() }).await {
            Ok((FsReply::Bytes(value), _)) => Ok(value),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(errno(&error)),
        };
        assert_eq!(get("user.a").await, Err(ENODATA));
        assert_eq!(set("user.a", b"1", XattrMode::Replace).await, ENODATA);
        assert_eq!(set("user.a", b"1", XattrMode::Create).await, 0);
        assert_eq!(set("user.a", b"2", XattrMode::Create).await, EEXIST);
        assert_eq!(set("user.a", b"2", XattrMode::Either).await, 0);
        assert_eq!(set("user.b", &[5; 65536], XattrMode::Either).await, 0);
        assert_eq!(set("user.empty", b"", XattrMode::Either).await, 0);
        assert_eq!(set(&"n".repeat(256), b"", XattrMode::Either).await, ERANGE);
        assert_eq!(get("user.a").await, Ok(b"2".to_vec()));
        assert_eq!(get("user.b").await, Ok(vec![5; 65536]));
        let list = async || match client.ask(FsOp::ListXattr { inode }).await.unwrap().0 {
            FsReply::Names(names) => names,
            other => panic!("{other:?}"),
        };
        assert_eq!(list().await, [b"user.a".to_vec(), b"user.b".to_vec(), b"user.empty".to_vec()]);
        for name in ["user.a", "user.b", "user.empty"] {
            assert_eq!(client.fails(FsOp::RemoveXattr { inode, name: name.into() }).await, 0);
            assert_eq!(client.fails(FsOp::RemoveXattr { inode, name: name.into() }).await, ENODATA);
        }
        assert!(list().await.is_empty());
        // A file with attributes goes like any other.
        set("user.a", b"1", XattrMode::Either).await;
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        rig.handle().sleep(Duration::from_secs(1)).await;
        assert!(client.getattr(inode).await.is_err());
    });
}
