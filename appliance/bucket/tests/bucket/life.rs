//! A bucket's life: writes, checkpoints, cleaning, power loss.

use crate::rig::Rig;
use bytes::Bytes;
use std::collections::BTreeMap;
use weft_bucket::{Batch, Bucket, BucketError, KeyBuilder, Object, Tag, Tunables};
use weft_drive::mem::CrashKeeps;
use weft_reactor::testing::VirtualTime;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{FsId, InodeId};

const FILE: Object = Object { fs: FsId(1), inode: InodeId(7) };

fn blocks(seed: u64, count: u64) -> Bytes {
    let mut out = Vec::with_capacity(count as usize * BLOCK_BYTES);
    for block in 0..count {
        let word = (seed << 20 | block).to_le_bytes();
        out.extend(word.iter().cycle().take(BLOCK_BYTES));
    }
    out.into()
}

fn key(number: u64) -> Bytes {
    KeyBuilder::new(FsId(1), Tag::Inode).u64(number).build()
}

fn low() -> Tunables {
    Tunables {
        memtable_bytes_max: 32 << 10,
        held_bytes_max: 512 << 10,
        checkpoint_share: 16,
        runs_max: 3,
        zone_sets_max: 12,
        ..Tunables::default()
    }
}

async fn write(bucket: &Bucket, first: u64, data: Bytes) -> Result<(), BucketError> {
    let mut batch = Batch::new();
    if data.len() >= 16 * BLOCK_BYTES {
        let staged = bucket.stage(FILE, first, data).await?;
        batch.place(FILE, first, staged);
    } else {
        batch.write_blocks(FILE, first, data);
    }
    let seq = bucket.commit(batch).await?;
    bucket.settled(seq).await
}

async fn read(bucket: &Bucket, first: u64, count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for extent in bucket.read_blocks(FILE, first..first + count).await.expect("read") {
        match extent.data {
            Some(data) => out.extend_from_slice(&data),
            None => out.resize(out.len() + extent.blocks as usize * BLOCK_BYTES, 0),
        }
    }
    out
}

#[test]
fn what_is_written_is_read_small_and_large_and_after_power_loss() {
    let time = VirtualTime::new(1);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        write(&bucket, 0, blocks(1, 256)).await.expect("large");
        write(&bucket, 10, blocks(2, 3)).await.expect("small");
        write(&bucket, 300, blocks(3, 1)).await.expect("small");
        let mut batch = Batch::new();
        batch.put(key(1), Bytes::from_static(b"one")).punch(FILE, 20..22).reserve(FILE, 21..30);
        let seq = bucket.commit(batch).await.expect("commit");
        bucket.settled(seq).await.expect("settled");
        for round in 0..3 {
            let bucket = if round == 0 { bucket.clone() } else { rig.open().await };
            bucket.readable().await.expect("readable");
            let mut expected = blocks(1, 256).to_vec();
            expected[10 * BLOCK_BYTES..13 * BLOCK_BYTES].copy_from_slice(&blocks(2, 3));
            expected[20 * BLOCK_BYTES..22 * BLOCK_BYTES].fill(0);
            assert!(read(&bucket, 0, 256).await == expected, "round {round}");
            assert!(read(&bucket, 299, 3).await[BLOCK_BYTES..2 * BLOCK_BYTES] == blocks(3, 1));
            assert_eq!(bucket.get(&key(1)).await.expect("get").as_deref(), Some(&b"one"[..]));
            assert_eq!(bucket.seek(FILE, 0, 1000, true).await.expect("seek"), Some(20));
            assert_eq!(bucket.seek(FILE, 256, 1000, false).await.expect("seek"), Some(300));
            assert_eq!(bucket.count_blocks(FILE).await.expect("count"), 256);
            if round == 1 {
                bucket.finish().await.expect("checkpoint");
            }
            bucket.close();
            rig.crash(CrashKeeps::Nothing).await;
        }
    });
}

#[test]
fn overwriting_at_eighty_percent_cleans_checkpoints_and_loses_nothing() {
    let time = VirtualTime::new(2);
    time.block_on(async {
        let rig = Rig::new(time.handle(), low()).await;
        let mut bucket = rig.open().await;
        write(&bucket, 0, blocks(0, 1)).await.expect("first");
        let room = bucket.space().blocks;
        let file_blocks = room * 8 / 10;
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut at = 0;
        let mut seed = 1;
        while at < file_blocks {
            let count = 64.min(file_blocks - at);
            write(&bucket, at, blocks(seed, count)).await.expect("fill");
            model.extend((0..count).map(|i| (at + i, seed << 20 | i)));
            at += count;
            seed += 1;
        }
        for round in 0..4u64 {
            let mut written = 0;
            while written < file_blocks * 2 {
                let count = [1, 3, 16, 64, 200][(rig.handle.random_u64() % 5) as usize];
                let first = rig.handle.random_u64() % (file_blocks - count);
                write(&bucket, first, blocks(seed, count)).await.unwrap_or_else(|error| panic!("{round}: {error}"));
                model.extend((0..count).map(|i| (first + i, seed << 20 | i)));
                for i in 0..4 {
                    let mut batch = Batch::new();
                    batch.put(key(seed * 4 + i), blocks(seed, 1).slice(..100));
                    if seed > 50 {
                        batch.delete(key((seed - 50) * 4 + i));
                    }
                    bucket.commit(batch).await.expect("keys");
                }
                written += count;
                seed += 1;
            }
            if round == 1 {
                bucket.settled(bucket.commit(Batch::new()).await.expect("last")).await.expect("settled");
                bucket.close();
                rig.crash(CrashKeeps::Some { seed: 5 }).await;
                bucket = rig.open().await;
            }
            let mut first = 0;
            while first < file_blocks {
                let count = 256.min(file_blocks - first);
                let data = read(&bucket, first, count).await;
                for (i, block) in data.chunks(BLOCK_BYTES).enumerate() {
                    let word = u64::from_le_bytes(block[..8].try_into().expect("8"));
                    assert_eq!(Some(&word), model.get(&(first + i as u64)), "round {round} block {}", first + i as u64);
                }
                first += count;
            }
        }
        let stats = bucket.stats();
        assert!(stats.cleaned_sets > 0 && stats.checkpoints > 0 && stats.merges > 0, "{stats:?}");
        assert!(stats.zone_sets <= 12, "{stats:?}");
        // To the brim: refused, not broken; deleting gives the space back.
        let mut at = file_blocks;
        let error = loop {
            match write(&bucket, at, blocks(seed, 64)).await {
                Ok(()) => at += 64,
                Err(error) => break error,
            }
        };
        assert_eq!(error, BucketError::NoSpace);
        let mut batch = Batch::new();
        batch.punch(FILE, 0..file_blocks / 2);
        let seq = bucket.commit(batch).await.expect("punch when full");
        bucket.settled(seq).await.expect("settled");
        write(&bucket, 0, blocks(seed, 256)).await.expect("there is room again");
        assert!(read(&bucket, 0, 256).await == blocks(seed, 256));
    });
}

#[test]
fn what_a_full_bucket_gave_back_can_be_written_again() {
    let time = VirtualTime::new(30);
    time.block_on(async {
        let rig = Rig::new(time.handle(), low()).await;
        let bucket = rig.open().await;
        let mut name = 0;
        let mut names = async |count: u64| {
            for _ in 0..count {
                let mut batch = Batch::new();
                batch.put(key(name), blocks(name, 1).slice(..100));
                name += 1;
                bucket.commit(batch).await.expect("names fit");
            }
        };
        let mut at = 0;
        let mut refused = 0;
        // As files of this size are made until none fits any more, and their names stay all the same.
        while refused < 24 {
            names(20).await;
            match write(&bucket, at, blocks(at, 64)).await {
                Ok(()) => at += 64,
                Err(BucketError::NoSpace) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        for round in 0..4 {
            let mut batch = Batch::new();
            batch.punch(FILE, 0..64);
            bucket.settled(bucket.commit(batch).await.expect("punch")).await.expect("settled");
            let again = write(&bucket, 0, blocks(round, 64)).await;
            assert_eq!(again, Ok(()), "round {round}: {:?} {:?}", bucket.space(), bucket.stats());
        }
    });
}

#[test]
fn leaders_that_come_and_go_do_not_use_up_a_nearly_full_bucket() {
    for (seed, longest) in [(20, 20), (21, 60)] {
        let time = VirtualTime::new(seed);
        time.block_on(async {
            let rig = Rig::new(time.handle(), low()).await;
            let mut bucket = rig.open().await;
            write(&bucket, 0, blocks(0, 1)).await.expect("first");
            let file_blocks = bucket.space().blocks * 9 / 10;
            for at in (0..file_blocks).step_by(64) {
                write(&bucket, at, blocks(at, 64.min(file_blocks - at))).await.expect("fill");
            }
            for change in 0..150u64 {
                // Each leader begins something, and is gone before it gains anything.
                let spared = rig.handle.random_u64() % longest;
                let overwriting = async {
                    for round in 0..u64::MAX {
                        let count = [1, 3, 64][(rig.handle.random_u64() % 3) as usize];
                        let first = rig.handle.random_u64() % (file_blocks - count);
                        let mut batch = Batch::new();
                        for _ in 0..8 {
                            batch.put(key(rig.handle.random_u64() % 4000), blocks(round, 1).slice(..100));
                        }
                        let put = bucket.commit(batch).await.is_ok();
                        if !put || write(&bucket, first, blocks(change << 20 | round, count)).await.is_err() {
                            break;
                        }
                    }
                };
                let _ = rig.handle.timeout(std::time::Duration::from_millis(spared), overwriting).await;
                bucket.close();
                bucket = rig.open().await;
            }
            write(&bucket, 0, blocks(1, 256)).await.unwrap_or_else(|error| panic!("{error}: {:?}", bucket.stats()));
            bucket.finish().await.expect("checkpoint");
            let bucket = rig.open().await;
            for _ in 0..100 {
                rig.handle.sleep(std::time::Duration::from_millis(100)).await;
            }
            let stats = bucket.stats();
            assert!(stats.zone_sets <= 12 && stats.trouble.is_none(), "{stats:?}");
            let checked = bucket.check().await.expect("check");
            assert_eq!(checked.problems, Vec::<String>::new());
        });
    }
}

#[test]
fn damage_up_to_p_is_repaired_and_beyond_is_told() {
    let time = VirtualTime::new(3);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let bucket = rig.open().await;
        write(&bucket, 0, blocks(1, 256)).await.expect("write");
        for node in [1usize, 3] {
            // Wherever the shard is: the last block of the file's zone on this drive.
            let needle = blocks(1, 256);
            let shard = &needle[node * 64 * BLOCK_BYTES..node * 64 * BLOCK_BYTES + BLOCK_BYTES];
            let at = (0..(128u64 << 20) / BLOCK_BYTES as u64)
                .map(|block| block * BLOCK_BYTES as u64)
                .find(|offset| rig.media[node].peek(*offset, BLOCK_BYTES) == shard)
                .expect("the block is on its drive");
            rig.media[node].corrupt(at + 5, 0x40);
        }
        assert!(read(&bucket, 0, 256).await == blocks(1, 256));
        let stats = bucket.stats();
        assert!(stats.checksum_errors >= 2 && stats.reconstructions >= 2, "{stats:?}");
        for _ in 0..100 {
            if bucket.stats().repaired_stripes > 0 {
                break;
            }
            rig.handle.sleep(std::time::Duration::from_millis(20)).await;
        }
        let before = bucket.stats().checksum_errors;
        assert!(read(&bucket, 0, 256).await == blocks(1, 256));
        assert_eq!(bucket.stats().checksum_errors, before, "the stripe is in a new place");
    });
}

#[test]
fn who_was_replaced_does_not_take_for_lost_what_its_successor_freed() {
    let time = VirtualTime::new(9);
    time.block_on(async {
        let rig = Rig::new(time.handle(), Tunables::default()).await;
        let former = rig.open().await;
        write(&former, 0, blocks(1, 256)).await.expect("write");
        assert_eq!(former.check().await.expect("check").problems, Vec::<String>::new());
        let bucket = rig.open().await;
        let mut batch = Batch::new();
        batch.punch(FILE, 0..256);
        let seq = bucket.commit(batch).await.expect("punch");
        bucket.settled(seq).await.expect("settled");
        for _ in 0..100 {
            if bucket.stats().freed_sets > 0 {
                break;
            }
            rig.handle.sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(bucket.stats().freed_sets > 0, "{:?}", bucket.stats());
        let checked = former.check().await;
        assert!(matches!(checked, Err(BucketError::Deposed(_) | BucketError::Stopped)), "{checked:?}");
        assert_eq!(bucket.check().await.expect("check").problems, Vec::<String>::new());
    });
}
