//! Rename, all modes, within a directory and between directories that may be in any bucket.

use crate::rig::*;
use weft_wire::fs::*;

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENOTEMPTY: i32 = 39;
const ESTALE: i32 = 116;

#[test]
fn files_move_and_replace() {
    run(20, |rig| async move {
        let client = rig.client(1);
        for (i, to) in ["here", "there", "elsewhere", "d3", "d4", "d5"].into_iter().enumerate() {
            let dir = client.mkdir(ROOT, to).await.unwrap();
            let name = format!("f{i}");
            let f = client.create(ROOT, &name).await.unwrap();
            client.write(f, 0, name.as_bytes()).await.unwrap();
            let before = client.getattr(f).await.unwrap();
            rig.handle().sleep(std::time::Duration::from_millis(1)).await;
            assert_eq!(client.rename((ROOT, &name), (dir, "x")).await, 0);
            assert_eq!(client.lookup(dir, "x").await.unwrap(), f);
            assert_eq!(errno(&client.lookup(ROOT, &name).await.unwrap_err()), ENOENT);
            let after = client.getattr(f).await.unwrap();
            assert!(after.ctime_ns > before.ctime_ns && after.mtime_ns == before.mtime_ns);
            let dir_attr = client.getattr(dir).await.unwrap();
            assert_eq!((dir_attr.mtime_ns, dir_attr.ctime_ns), (after.ctime_ns, after.ctime_ns));
            // Over another file, which goes.
            let g = client.create(ROOT, "g").await.unwrap();
            assert_eq!(client.rename((ROOT, "g"), (dir, "x")).await, 0);
            assert_eq!(client.lookup(dir, "x").await.unwrap(), g);
            assert_eq!(errno(&client.getattr(f).await.unwrap_err()), ESTALE);
            assert_eq!(client.names(dir).await, ["x"]);
        }
        assert_eq!(client.names(ROOT).await, ["d3", "d4", "d5", "elsewhere", "here", "there"]);
    });
}

#[test]
fn errors_are_those_of_posix() {
    run(21, |rig| async move {
        let client = rig.client(1);
        let d = client.mkdir(ROOT, "d").await.unwrap();
        let e = client.mkdir(ROOT, "e").await.unwrap();
        client.create(ROOT, "f").await.unwrap();
        client.create(e, "full").await.unwrap();
        assert_eq!(client.rename((ROOT, "none"), (d, "x")).await, ENOENT);
        assert_eq!(client.rename((ROOT, "f"), (ROOT, "d")).await, EISDIR);
        assert_eq!(client.rename((ROOT, "d"), (ROOT, "f")).await, ENOTDIR);
        assert_eq!(client.rename((ROOT, "d"), (ROOT, "e")).await, ENOTEMPTY);
        assert_eq!(client.rename_mode((ROOT, "f"), (e, "full"), RenameMode::NoReplace).await, EEXIST);
        assert_eq!(client.rename_mode((ROOT, "f"), (e, "none"), RenameMode::Exchange).await, ENOENT);
        // Below itself.
        let sub = client.mkdir(d, "sub").await.unwrap();
        let deep = client.mkdir(sub, "deep").await.unwrap();
        assert_eq!(client.rename((ROOT, "d"), (d, "x")).await, EINVAL);
        assert_eq!(client.rename((ROOT, "d"), (deep, "x")).await, EINVAL);
        assert_eq!(client.rename_mode((deep, "y"), (ROOT, "d"), RenameMode::Exchange).await, ENOENT);
        client.mkdir(deep, "y").await.unwrap();
        assert_eq!(client.rename_mode((deep, "y"), (ROOT, "d"), RenameMode::Exchange).await, EINVAL);
        assert_eq!(client.rename((deep, "y"), (ROOT, "d")).await, ENOTEMPTY);
        // To itself, and to another name of the same file: nothing happens.
        assert_eq!(client.rename((ROOT, "f"), (ROOT, "f")).await, 0);
        let f = client.lookup(ROOT, "f").await.unwrap();
        client.link(f, d, "g").await;
        assert_eq!(client.rename((ROOT, "f"), (d, "g")).await, 0);
        assert_eq!(client.names(ROOT).await, ["d", "e", "f"]);
        assert_eq!(client.getattr(f).await.unwrap().links, 2);
        // A directory over an empty one.
        assert_eq!(client.unlink(e, "full").await, 0);
        let d_links = client.getattr(ROOT).await.unwrap().links;
        assert_eq!(client.rename((ROOT, "d"), (ROOT, "e")).await, 0);
        assert_eq!(client.getattr(ROOT).await.unwrap().links, d_links - 1);
        assert_eq!(errno(&client.getattr(e).await.unwrap_err()), ESTALE);
        assert_eq!(client.lookup(ROOT, "e").await.unwrap(), d);
        // In place of its own parent, which has nothing else.
        let h = client.mkdir(ROOT, "h").await.unwrap();
        client.mkdir(h, "only").await.unwrap();
        assert_eq!(client.rename((h, "only"), (ROOT, "h")).await, ENOTEMPTY);
        assert_eq!(client.rename_mode((h, "only"), (ROOT, "h"), RenameMode::Exchange).await, EINVAL);
    });
}

#[test]
fn directories_move_with_their_parents_counts() {
    run(22, |rig| async move {
        let client = rig.client(1);
        let mut dirs = Vec::new();
        for i in 0..6 {
            dirs.push(client.mkdir(ROOT, &format!("d{i}")).await.unwrap());
        }
        let moving = client.mkdir(dirs[0], "m").await.unwrap();
        client.create(moving, "inside").await.unwrap();
        for pair in dirs.windows(2) {
            assert_eq!(client.rename((pair[0], "m"), (pair[1], "m")).await, 0);
            assert_eq!(client.lookup(moving, "..").await.unwrap(), pair[1]);
            assert_eq!(client.getattr(pair[0]).await.unwrap().links, 2);
            assert_eq!(client.getattr(pair[1]).await.unwrap().links, 3);
        }
        assert_eq!(client.names(moving).await, ["inside"]);
        // Exchange a directory and a file between directories.
        let f = client.create(dirs[0], "f").await.unwrap();
        assert_eq!(client.rename_mode((dirs[0], "f"), (dirs[5], "m"), RenameMode::Exchange).await, 0);
        assert_eq!(client.lookup(dirs[0], "f").await.unwrap(), moving);
        assert_eq!(client.lookup(dirs[5], "m").await.unwrap(), f);
        assert_eq!(client.lookup(moving, "..").await.unwrap(), dirs[0]);
        assert_eq!(client.getattr(dirs[0]).await.unwrap().links, 3);
        assert_eq!(client.getattr(dirs[5]).await.unwrap().links, 2);
        assert_eq!(client.rename_mode((dirs[0], "f"), (dirs[0], "f"), RenameMode::Exchange).await, 0);
        assert_eq!(client.rmdir(dirs[0], "f").await, ENOTEMPTY);
    });
}

#[test]
fn a_file_that_is_replaced_while_open_stays_readable() {
    run(23, |rig| async move {
        let (client, reader) = (rig.client(1), rig.client(2));
        let dir = client.mkdir(ROOT, "d").await.unwrap();
        let old = client.create(dir, "f").await.unwrap();
        client.write(old, 0, &[3; 9000]).await.unwrap();
        reader.open(old).await.unwrap();
        let new = client.create(ROOT, "new").await.unwrap();
        assert_eq!(client.rename((ROOT, "new"), (dir, "f")).await, 0);
        assert_eq!(client.lookup(dir, "f").await.unwrap(), new);
        assert_eq!(reader.getattr(old).await.unwrap().links, 0);
        assert_eq!(reader.read(old, 0, 9999).await, [3; 9000]);
        reader.release(old).await;
        rig.handle().sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(errno(&reader.getattr(old).await.unwrap_err()), ESTALE);
        assert_eq!(client.blocks(old).await, 0);
    });
}

#[test]
fn renames_that_cross_each_other_never_make_a_cycle() {
    run(24, |rig| async move {
        let client = rig.client(1);
        let a = client.mkdir(ROOT, "a").await.unwrap();
        let b = client.mkdir(ROOT, "b").await.unwrap();
        let (one, two) = (rig.client(2), rig.client(3));
        let left = rig.handle().spawn("left", async move { one.rename((ROOT, "a"), (b, "a")).await });
        let right = rig.handle().spawn("right", async move { two.rename((ROOT, "b"), (a, "b")).await });
        let mut outcomes = [left.await.unwrap(), right.await.unwrap()];
        outcomes.sort();
        // One wins; the other finds its source gone, or its target below its source.
        assert_eq!(outcomes[0], 0);
        assert!(matches!(outcomes[1], ENOENT | EINVAL), "{outcomes:?}");
        assert_eq!(client.names(ROOT).await.len(), 1);
    });
}

/// What an answer says of two names was so at one moment.
#[test]
fn a_rename_that_comes_late_finds_nothing() {
    run(26, |rig| async move {
        let (one, other) = (rig.client(1), rig.client(2));
        for step in 0..60_u64 {
            // In whatever bucket.
            let dir = one.mkdir(ROOT, &format!("d{step}")).await.unwrap();
            one.create(ROOT, "f").await.unwrap();
            let first = {
                let (one, handle) = (one.clone(), rig.handle().clone());
                async move {
                    handle.sleep(std::time::Duration::from_micros(20 * (step / 2))).await;
                    one.rename((ROOT, "f"), (dir, "f")).await
                }
            };
            let first = rig.handle().spawn("rename", first);
            let late = match step % 2 {
                0 => other.rename_mode((ROOT, "f"), (dir, "f"), RenameMode::NoReplace).await,
                _ => other.rename((ROOT, "f"), (dir, "f")).await,
            };
            let first = first.await.unwrap();
            assert!([(0, ENOENT), (ENOENT, 0)].contains(&(first, late)), "step {step}: {first} and {late}");
        }
    });
}

/// Once a file is gone from where it was, it can be removed where it went.
#[test]
fn a_file_that_moved_is_there_for_whoever_removes_it() {
    run(27, |rig| async move {
        let (one, other) = (rig.client(1), rig.client(2));
        for step in 0..20_u64 {
            let dir = one.mkdir(ROOT, &format!("d{step}")).await.unwrap();
            one.create(ROOT, "f").await.unwrap();
            let mover = one.clone();
            let moved = rig.handle().spawn("rename", async move { mover.rename((ROOT, "f"), (dir, "f")).await });
            while other.lookup(ROOT, "f").await.is_ok() {}
            assert_eq!(other.unlink(dir, "f").await, 0, "step {step}");
            assert_eq!(moved.await.unwrap(), 0);
        }
    });
}
