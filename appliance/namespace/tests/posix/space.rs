//! What removed files held is free again, wherever it was.

use crate::rig::*;
use std::time::Duration;
use weft_wire::InodeId;
use weft_wire::fs::*;

const MIB: usize = 1 << 20;
const ENOSPC: i32 = 28;
const ESTALE: i32 = 116;

#[test]
fn large_files_leave_nothing_behind() {
    run(80, |rig| async move {
        let client = rig.client(1);
        let used = || (0..BUCKETS).map(|b| rig.leader(weft_wire::BucketId(b)).bucket().space().used).sum::<u64>();
        let before = used();
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        assert_eq!(client.blocks(f).await, 6 * 256);
        client.truncate(f, 2 * MIB as u64 + 1).await.unwrap();
        assert_eq!(client.blocks(f).await, 2 * 256 + 1);
        client.truncate(f, 0).await.unwrap();
        assert_eq!(client.blocks(f).await, 0);
        client.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        rig.handle().sleep(Duration::from_secs(5)).await;
        assert_eq!(client.blocks(f).await, 0);
        assert_eq!(used(), before);
        // Nor do the buckets remember for ever what was cut.
        let remembered = async || {
            let mut keys = 0;
            for bucket in (0..BUCKETS).map(weft_wire::BucketId) {
                let prefix = weft_bucket::KeyBuilder::new(FS, weft_bucket::Tag::Cut).build();
                keys += rig.leader(bucket).bucket().scan_prefix(&prefix, usize::MAX).await.unwrap().len();
            }
            keys
        };
        assert!(remembered().await > 0);
        rig.fail_over(weft_wire::BucketId(1)).await;
        rig.handle().sleep(Duration::from_secs(300)).await;
        assert_eq!(remembered().await, 0);
    });
}

/// A removal that has begun goes on under the next leader, which does not know yet who has what open.
#[test]
fn nobody_sees_a_file_that_is_half_removed() {
    run(81, |rig| async move {
        let (one, other) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        one.open(f).await.unwrap();
        one.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        let home = rig.bucket_of(f);
        let away = (0..BUCKETS).map(weft_wire::BucketId).find(|bucket| *bucket != home).unwrap();
        rig.kill(away);
        assert_eq!(one.unlink(ROOT, "f").await, 0);
        one.release(f).await;
        rig.handle().sleep(Duration::from_secs(5)).await;
        rig.fail_over(home).await;
        assert_eq!(errno(&other.open(f).await.unwrap_err()), ESTALE);
        assert_eq!(errno(&one.getattr(f).await.unwrap_err()), ESTALE);
        rig.lead(away).await;
        rig.handle().sleep(Duration::from_secs(30)).await;
        assert_eq!(one.blocks(f).await, 0);
    });
}

/// A truncate that its leader began, and another one finished, is not made again over what others wrote since.
#[test]
fn a_truncate_happens_once() {
    run(84, |rig| async move {
        let (one, other) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        one.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        let home = rig.bucket_of(f);
        let away = (0..BUCKETS).map(weft_wire::BucketId).find(|bucket| *bucket != home).unwrap();
        rig.kill(away);
        let truncate =
            FsOp::SetAttr { inode: f, set: SetAttr { size_bytes: Some(MIB as u64 + 5), ..SetAttr::default() } };
        let (truncator, op) = (one.clone(), truncate.clone());
        let truncating = rig.handle().spawn("truncate", async move { truncator.ask(op).await.map(drop) });
        rig.handle().sleep(Duration::from_secs(1)).await;
        drop(truncating);
        rig.fail_over(home).await;
        rig.lead(away).await;
        rig.handle().sleep(Duration::from_secs(5)).await;
        other.write(f, 3 * MIB as u64, b"new").await.unwrap();
        one.ask_again(home, one.last_sequence(home), truncate, bytes::Bytes::new()).await.unwrap();
        assert_eq!(other.read(f, 3 * MIB as u64, 10).await, b"new");
        assert_eq!(other.read(f, MIB as u64 + 3, 4).await, [5, 5, 0, 0]);
    });
}

/// A leader that can't look at what is left of removed files when it comes to that looks again.
#[test]
fn removals_that_something_is_in_the_way_of_are_made_later() {
    run(83, |rig| async move {
        let client = rig.client(1);
        let keys = async |tag| {
            let mut keys = 0;
            for bucket in (0..BUCKETS).map(weft_wire::BucketId) {
                let prefix = weft_bucket::KeyBuilder::new(FS, tag).build();
                keys += rig.leader(bucket).bucket().scan_prefix(&prefix, usize::MAX).await.unwrap().len();
            }
            keys
        };
        let f = client.create(ROOT, "f").await.unwrap();
        client.open(f).await.unwrap();
        // The new leader doesn't know who has it open, so that it can't go when its name does.
        rig.fail_over(rig.bucket_of(f)).await;
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        assert_eq!(keys(weft_bucket::Tag::Open).await, 1);
        rig.set_mapless(true);
        rig.handle().sleep(Duration::from_secs(30)).await;
        assert_eq!(keys(weft_bucket::Tag::Open).await, 1);
        rig.set_mapless(false);
        rig.handle().sleep(Duration::from_secs(5)).await;
        assert_eq!(keys(weft_bucket::Tag::Open).await, 0);
        assert_eq!(keys(weft_bucket::Tag::Inode).await, 1, "the root's");
    });
}

/// Reserves pieces of slabs until the next ones find no room in any bucket. Answers the slab behind the last.
async fn reserve_all(client: &Client, inode: InodeId, first: u64, len_bytes: u64) -> u64 {
    const REFUSED_MAX: usize = 48;
    let (mut slab, mut refused) = (first, 0);
    while refused < REFUSED_MAX {
        let keep = FallocateMode::Allocate { keep_size: true };
        match client.fallocate(inode, slab * MIB as u64, len_bytes, keep).await {
            Ok(_) => refused = 0,
            Err(error) => {
                assert_eq!(errno(&error), ENOSPC);
                refused += 1;
            }
        }
        slab += 1;
    }
    slab
}

#[test]
fn full_buckets_refuse_what_is_new_and_nothing_else() {
    run(82, |rig| async move {
        let client = rig.client(1);
        let used = |bucket| rig.leader(bucket).bucket().space().used;
        let buckets = || (0..BUCKETS).map(weft_wire::BucketId);
        let before: u64 = buckets().map(used).sum();
        let f = client.create(ROOT, "f").await.unwrap();
        let g = client.create(ROOT, "g").await.unwrap();
        client.write(f, 0, &[1; 8192]).await.unwrap();
        client.write(g, 0, &vec![1; MIB]).await.unwrap();
        let slab = reserve_all(&client, f, 1, MIB as u64).await;
        // What is only reserved counts, also for the next leader. (Checkpoints change what the index takes.)
        for bucket in buckets() {
            let space = rig.leader(bucket).bucket().space();
            assert!(space.used + 256 > space.blocks, "{bucket}: {space:?}");
            rig.fail_over(bucket).await;
            assert!(used(bucket).abs_diff(space.used) < 100, "{bucket}: {} after {space:?}", used(bucket));
        }
        let end = reserve_all(&client, f, slab, 4096).await;

        let xattr = |name: &str| FsOp::SetXattr {
            inode: f,
            name: name.into(),
            value: b"1".to_vec(),
            mode: XattrMode::Either,
            kill_setgid: false,
        };
        assert_eq!(errno(&client.create(ROOT, "new").await.unwrap_err()), ENOSPC);
        assert_eq!(errno(&client.mkdir(ROOT, "new").await.unwrap_err()), ENOSPC);
        assert_eq!(errno(&client.symlink(ROOT, "new", b"f").await.unwrap_err()), ENOSPC);
        assert_eq!(client.fails(FsOp::Link { inode: f, dir: ROOT, name: "new".into() }).await, ENOSPC);
        assert_eq!(client.fails(xattr("user.new")).await, ENOSPC);
        assert_eq!(errno(&client.write(f, end * MIB as u64, &[1]).await.unwrap_err()), ENOSPC);

        client.write(f, 0, &[2; 8192]).await.unwrap();
        client.write(g, 0, &vec![2; MIB]).await.unwrap();
        client.write(f, MIB as u64, &vec![3; MIB]).await.unwrap();
        assert_eq!(client.read(f, MIB as u64 - 1, 2).await, [0, 3]);
        assert_eq!(client.rename((ROOT, "g"), (ROOT, "h")).await, 0);
        client.truncate(g, 4097).await.unwrap();
        client.truncate(f, 0).await.unwrap();
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        assert_eq!(client.unlink(ROOT, "h").await, 0);
        rig.handle().sleep(Duration::from_secs(30)).await;
        let after: u64 = buckets().map(used).sum();
        assert!(after < before + 200, "{after} blocks instead of {before}");
        client.create(ROOT, "new").await.unwrap();
    });
}
