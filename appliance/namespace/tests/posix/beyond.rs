//! Data that was written beyond the end and never published: nobody ever sees it.

use crate::rig::*;
use bytes::Bytes;
use std::time::Duration;
use weft_wire::InodeId;
use weft_wire::fs::*;

const MIB: u64 = 1 << 20;

/// Durable at the slab's owner, unknown to the inode.
async fn leave(client: &Client, inode: InodeId, offset: u64, len: usize) {
    let cut_generation = client.getattr(inode).await.unwrap().cut_generation;
    let op = FsOp::Write { inode, offset, cut_generation, kill_setid: false };
    client.ask_with(op, Bytes::from(vec![1; len])).await.unwrap();
}

/// What all buckets have of some kind.
async fn keys(rig: &Rig, tag: weft_bucket::Tag) -> usize {
    let mut keys = 0;
    for bucket in (0..BUCKETS).map(weft_wire::BucketId) {
        let prefix = weft_bucket::KeyBuilder::new(FS, tag).build();
        keys += rig.leader(bucket).bucket().scan_prefix(&prefix, usize::MAX).await.unwrap().len();
    }
    keys
}

fn publish(inode: InodeId, start: u64, end: u64, cut_generation: u64) -> FsOp {
    FsOp::Publish { inode, start, end, cut_generation, kill_setid: false }
}

#[test]
fn a_write_further_out_does_not_uncover_it() {
    run(90, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 0, b"small").await.unwrap();
        leave(&client, f, 2 * MIB + 17, 9000).await;
        leave(&client, f, 5 * MIB, 10).await;
        // The writer is told to write again, and then it goes through.
        assert_eq!(client.ask(publish(f, 5 * MIB, 5 * MIB + 10, 0)).await.unwrap_err(), FsError::Cut { generation: 1 });
        client.write(f, 5 * MIB, b"0123456789").await.unwrap();
        assert_eq!(client.read(f, 5 * MIB, 100).await, b"0123456789");
        assert_eq!(client.read(f, MIB, 4 * MIB).await, vec![0; 4 << 20]);
        assert_eq!(client.read(f, 0, 5).await, b"small");
        assert_eq!(client.blocks(f).await, 2);
        // A writer from before the cut can't publish any more.
        assert_eq!(client.ask(publish(f, 3 * MIB, 8 * MIB, 0)).await.unwrap_err(), FsError::Cut { generation: 1 });
    });
}

#[test]
fn within_a_block_neither() {
    run(91, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 2 * MIB, &[7; 100]).await.unwrap();
        leave(&client, f, 2 * MIB + 100, 50).await;
        let start = 2 * MIB + 200;
        leave(&client, f, start, 10).await;
        assert_eq!(client.ask(publish(f, start, start + 10, 0)).await.unwrap_err(), FsError::Cut { generation: 1 });
        client.write(f, start, &[8; 10]).await.unwrap();
        let expected = [vec![7; 100], vec![0; 100], vec![8; 10]].concat();
        assert_eq!(client.read(f, 2 * MIB, 4096).await, expected);
    });
}

#[test]
fn what_the_writer_itself_has_written_is_not_in_its_way() {
    run(92, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        for at in 0..5 {
            client.write(f, at * 700_000, &vec![at as u8 + 1; 700_000]).await.unwrap();
        }
        // Nor is what was only reserved.
        client.fallocate(f, 6 * MIB, MIB, FallocateMode::Allocate { keep_size: true }).await.unwrap();
        client.write(f, 8 * MIB + 5, b"far").await.unwrap();
        let attr = client.getattr(f).await.unwrap();
        assert_eq!((attr.size_bytes, attr.cut_generation), (8 * MIB + 8, 0));
        assert_eq!(client.read(f, 4 * 700_000, 700_000).await, vec![5; 700_000]);
    });
}

#[test]
fn nor_does_an_allocation_or_the_next_leader() {
    run(93, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        leave(&client, f, 3 * MIB, 5000).await;
        rig.fail_over(rig.bucket_of(f)).await;
        assert_eq!(client.ask(publish(f, 4 * MIB, 4 * MIB, 0)).await.unwrap_err(), FsError::Cut { generation: 1 });
        client.ask(publish(f, 4 * MIB, 4 * MIB, 1)).await.unwrap();
        assert_eq!(client.read(f, 0, 5 * MIB).await, vec![0; 4 << 20]);
    });
}

#[test]
fn what_a_truncate_overtakes_is_not_to_be_written_again() {
    run(94, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 0, &vec![1; 5 << 20]).await.unwrap();
        // Two writers, the second over the first and further; a truncate comes before either is published.
        leave(&client, f, 2 * MIB, 5000).await;
        client.write(f, 2 * MIB, &[2; 5000]).await.unwrap();
        leave(&client, f, 6 * MIB, 10).await;
        client.truncate(f, 4 * MIB).await.unwrap();
        for (start, end) in [(2 * MIB, 2 * MIB + 5000), (6 * MIB, 6 * MIB + 10)] {
            client.ask(publish(f, start, end, 0)).await.unwrap();
        }
        // They came before the truncate.
        assert_eq!(client.getattr(f).await.unwrap().size_bytes, 4 * MIB);
        assert_eq!(client.read(f, 2 * MIB, 5000).await, vec![2; 5000]);
        client.truncate(f, 7 * MIB).await.unwrap();
        assert_eq!(client.read(f, 4 * MIB, 3 * MIB).await, vec![0; 3 << 20]);
    });
}

/// The inode never knew of it, and is the last that could: it goes all the same.
#[test]
fn it_goes_with_its_file() {
    run(95, |rig| async move {
        let client = rig.client(1);
        let minutes = |minutes: u64| rig.handle().sleep(Duration::from_secs(60 * minutes));
        let f = client.create(ROOT, "f").await.unwrap();
        leave(&client, f, 3 * MIB, 10).await;
        leave(&client, f, 6 * MIB, 100_000).await;
        let keep = FallocateMode::Allocate { keep_size: true };
        let g = client.create(ROOT, "g").await.unwrap();
        client.fallocate(g, 9 * MIB, MIB, keep).await.unwrap();
        minutes(5).await;
        // It isn't anybody's business as long as they are there; also not of new leaders.
        for bucket in (0..BUCKETS).map(weft_wire::BucketId) {
            rig.fail_over(bucket).await;
        }
        assert_eq!(client.blocks(g).await, 256);
        assert!(client.blocks(f).await > 25);
        assert!(keys(&rig, weft_bucket::Tag::Stray).await > 1);
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        assert_eq!(client.unlink(ROOT, "g").await, 0);
        minutes(3).await;
        assert_eq!(client.blocks(g).await, 0);
        assert_eq!(client.blocks(f).await, 0);
        for tag in [weft_bucket::Tag::Stray, weft_bucket::Tag::Extent] {
            assert_eq!(keys(&rig, tag).await, 0, "{tag:?}");
        }
    });
}

#[test]
fn large_files_need_no_looking_after() {
    run(96, |rig| async move {
        let client = rig.client(1);
        let minutes = |minutes: u64| rig.handle().sleep(Duration::from_secs(60 * minutes));
        let marks = async || keys(&rig, weft_bucket::Tag::Stray).await;
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 2 * MIB, &[7; 8192]).await.unwrap();
        assert_eq!(marks().await, 1);
        minutes(3).await;
        assert_eq!(marks().await, 0);
        client.write(f, 2 * MIB + 8192, &[7; 8192]).await.unwrap();
        assert_eq!(marks().await, 0);
        // Once cut, what comes next may be nobody's again.
        client.truncate(f, 10).await.unwrap();
        leave(&client, f, 2 * MIB, 10).await;
        assert_eq!(marks().await, 1);
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        minutes(3).await;
        assert_eq!(client.blocks(f).await, 0);
        assert_eq!(marks().await, 0);
    });
}
