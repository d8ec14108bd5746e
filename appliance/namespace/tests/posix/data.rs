//! Contents: small and large, sparse, cut and grown.

use crate::rig::*;
use weft_wire::InodeId;
use weft_wire::fs::*;

const EFBIG: i32 = 27;
const EISDIR: i32 = 21;
const MIB: u64 = 1 << 20;

/// Bytes that tell where they stand.
fn pattern(seed: u64, offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(|at| (at.wrapping_mul(31).wrapping_add(seed * 7 + at / 251)) as u8 | 1).collect()
}

/// A file and what it must hold.
struct Checked {
    client: Client,
    inode: InodeId,
    model: Vec<u8>,
}

impl Checked {
    async fn new(client: &Client, name: &str) -> Self {
        Self { client: client.clone(), inode: client.create(ROOT, name).await.unwrap(), model: Vec::new() }
    }

    async fn write(&mut self, seed: u64, offset: u64, len: usize) {
        let data = pattern(seed, offset, len);
        self.client.write(self.inode, offset, &data).await.unwrap();
        let end = offset as usize + len;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset as usize..end].copy_from_slice(&data);
    }

    async fn append(&mut self, seed: u64, len: usize) {
        let data = pattern(seed, 0, len);
        let offset = self.client.append(self.inode, &data).await.unwrap();
        assert_eq!(offset, self.model.len() as u64);
        self.model.extend_from_slice(&data);
    }

    async fn truncate(&mut self, size: u64) {
        self.client.truncate(self.inode, size).await.unwrap();
        self.model.resize(size as usize, 0);
    }

    async fn zero(&mut self, offset: u64, len: u64, mode: FallocateMode) {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let stop = ((at / MIB + 1) * MIB).min(end);
            self.client.fallocate(self.inode, at, stop - at, mode).await.unwrap();
            at = stop;
        }
        let grows = matches!(mode, FallocateMode::Zero { keep_size: false });
        if grows && end as usize > self.model.len() {
            self.model.resize(end as usize, 0);
            let cut_generation = self.client.getattr(self.inode).await.unwrap().cut_generation;
            let op = FsOp::Publish { inode: self.inode, start: offset, end, cut_generation, kill_setid: false };
            self.client.ask(op).await.unwrap();
        }
        let stop = (end as usize).min(self.model.len());
        if (offset as usize) < stop {
            self.model[offset as usize..stop].fill(0);
        }
    }

    async fn check(&self) {
        let attr = self.client.getattr(self.inode).await.unwrap();
        assert_eq!(attr.size_bytes, self.model.len() as u64);
        let found = self.client.read(self.inode, 0, u64::MAX >> 8).await;
        let differs = found.iter().zip(&self.model).position(|(a, b)| a != b);
        assert_eq!(differs, None, "contents of {} bytes", self.model.len());
        assert_eq!(found.len(), self.model.len());
    }

    /// st_blocks as the inode tells it is what slab 0 has.
    async fn check_blocks(&self) {
        let attr = self.client.getattr(self.inode).await.unwrap();
        let counted = self.client.blocks(self.inode).await;
        if attr.size_bytes <= MIB && counted > 0 {
            assert_eq!(attr.blocks, counted, "blocks of {} bytes", attr.size_bytes);
        }
    }
}

#[test]
fn small_files_grow_shrink_and_spill() {
    run(60, |rig| async move {
        let mut file = Checked::new(&rig.client(1), "f").await;
        file.check().await;
        file.write(1, 0, 10).await;
        file.write(2, 100, 50).await;
        file.check().await;
        assert_eq!(file.client.blocks(file.inode).await, 0);
        file.truncate(60).await;
        file.truncate(160).await;
        file.check().await;
        file.write(3, 0, 2048).await;
        file.check().await;
        file.truncate(1000).await;
        file.truncate(2048).await;
        file.check().await;
        file.append(4, 1).await;
        file.check().await;
        file.check_blocks().await;
        file.truncate(5).await;
        file.append(5, 10).await;
        file.check().await;
        file.check_blocks().await;
        file.truncate(0).await;
        file.check_blocks().await;
        file.append(6, 100).await;
        file.truncate(10_000).await;
        file.check().await;
        file.check_blocks().await;
    });
}

#[test]
fn a_small_file_keeps_its_contents_when_a_write_lands_far_behind() {
    run(61, |rig| async move {
        let client = rig.client(1);
        for (i, offset) in [2000, 3000, 4096, 9000, MIB - 1, MIB, MIB + 5000, 3 * MIB].into_iter().enumerate() {
            let mut file = Checked::new(&client, &format!("f{i}")).await;
            file.write(1, 0, 700).await;
            file.write(2, offset, 300).await;
            file.check().await;
            file.check_blocks().await;
        }
    });
}

#[test]
fn writes_of_all_alignments_do_not_disturb_their_neighbours() {
    run(62, |rig| async move {
        let mut file = Checked::new(&rig.client(1), "f").await;
        file.write(1, 0, 20_000).await;
        for (i, (offset, len)) in
            [(1, 1), (4095, 2), (4096, 4096), (5000, 10_000), (19_999, 1), (20_000, 1), (8191, 4098), (0, 4096)]
                .into_iter()
                .enumerate()
        {
            file.write(i as u64 + 2, offset, len).await;
            file.check().await;
            file.check_blocks().await;
        }
        // Large enough for a stripe of its own, over several slabs, and not.
        file.write(20, 65_536, 131_072).await;
        file.write(21, 100_000, 70_000).await;
        file.write(22, MIB - 8192, 16_384).await;
        file.write(23, MIB - 100, 200).await;
        file.write(24, 2 * MIB, 200_000).await;
        file.check().await;
    });
}

#[test]
fn what_a_truncate_removed_reads_as_zeros_when_the_file_grows_again() {
    run(63, |rig| async move {
        let client = rig.client(1);
        for (i, size) in
            [0, 1, 4095, 4096, 4097, 100_000, MIB - 1, MIB, MIB + 1, 2 * MIB - 5000].into_iter().enumerate()
        {
            let mut file = Checked::new(&client, &format!("f{i}")).await;
            file.write(1, 0, 2 * MIB as usize + 10_000).await;
            file.truncate(size).await;
            file.check().await;
            file.truncate(2 * MIB + 20_000).await;
            file.check().await;
            file.write(2, 2 * MIB + 5, 3).await;
            file.check().await;
            assert!(client.getattr(file.inode).await.unwrap().cut_generation > 0);
        }
    });
}

#[test]
fn a_writer_that_has_not_heard_of_a_cut_is_told() {
    run(64, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, MIB, &[1; 5000]).await.unwrap();
        client.truncate(f, 10).await.unwrap();
        let op = FsOp::Write { inode: f, offset: MIB, cut_generation: 0, kill_setid: false };
        let refused = client.ask_with(op, bytes::Bytes::from_static(b"old")).await.unwrap_err();
        assert_eq!(refused, FsError::Cut { generation: 1 });
    });
}

#[test]
fn what_was_never_published_does_not_show() {
    run(69, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 0, b"small").await.unwrap();
        // A writer that died before it told the inode.
        let op = FsOp::Write { inode: f, offset: 2 * MIB, cut_generation: 0, kill_setid: false };
        client.ask_with(op, bytes::Bytes::from(vec![1; 8192])).await.unwrap();
        client.truncate(f, 4 * MIB).await.unwrap();
        assert_eq!(client.read(f, 2 * MIB, 8192).await, vec![0; 8192]);
        assert_eq!(client.read(f, 0, 6).await, b"small\0");
        // And one that this truncate overtook.
        let op = FsOp::Publish { inode: f, start: 0, end: 5 * MIB, cut_generation: 0, kill_setid: false };
        assert_eq!(client.ask(op).await.unwrap_err(), FsError::Cut { generation: 1 });
    });
}

#[test]
fn appends_follow_each_other_across_slabs() {
    run(65, |rig| async move {
        let client = rig.client(1);
        let mut file = Checked::new(&client, "f").await;
        file.append(1, 1500).await;
        file.append(2, 1500).await;
        file.append(3, MIB as usize - 5000).await;
        file.append(4, 9000).await;
        file.append(5, 1).await;
        file.append(6, MIB as usize).await;
        file.check().await;
        // From several clients at once: nothing is lost, nothing overlaps.
        let f = client.create(ROOT, "g").await.unwrap();
        let writers: Vec<_> = (2..6u64)
            .map(|id| {
                let client = rig.client(id);
                rig.handle().spawn("append", async move {
                    for _ in 0..10 {
                        client.append(f, &[id as u8; 777]).await.unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let found = client.read(f, 0, MIB).await;
        assert_eq!(found.len(), 40 * 777);
        for chunk in found.chunks(777) {
            assert!(chunk.iter().all(|byte| *byte == chunk[0]));
        }
        // Slab 0 full of a small file's contents, then one large append.
        let mut file = Checked::new(&client, "h").await;
        file.append(1, 100).await;
        file.append(2, MIB as usize + 5000).await;
        file.check().await;
    });
}

#[test]
fn sparse_files_read_zeros_and_know_their_holes() {
    run(66, |rig| async move {
        let client = rig.client(1);
        let mut file = Checked::new(&client, "f").await;
        file.write(1, 40_960, 8192).await;
        file.write(2, 400_000, 10).await;
        file.truncate(500_000).await;
        file.check().await;
        file.check_blocks().await;
        let seek = async |offset, target| {
            let op = FsOp::Seek { inode: file.inode, offset, end: 500_000, target };
            match client.ask(op).await.unwrap().0 {
                FsReply::Offset(found) => found,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(seek(0, SeekTarget::Data).await, Some(40_960));
        assert_eq!(seek(0, SeekTarget::Hole).await, Some(0));
        assert_eq!(seek(41_000, SeekTarget::Data).await, Some(41_000));
        assert_eq!(seek(41_000, SeekTarget::Hole).await, Some(49_152));
        assert_eq!(seek(49_152, SeekTarget::Data).await, Some(397_312));
        assert_eq!(seek(401_409, SeekTarget::Data).await, None);
        // A sparse file that would fit into its inode.
        let small = client.create(ROOT, "small").await.unwrap();
        client.truncate(small, 1000).await.unwrap();
        assert_eq!(client.read(small, 0, 2000).await, [0; 1000]);
        client.write(small, 500, b"x").await.unwrap();
        assert_eq!(client.read(small, 499, 3).await, [0, b'x', 0]);
    });
}

#[test]
fn fallocate_reserves_punches_and_zeroes() {
    run(67, |rig| async move {
        let client = rig.client(1);
        let mut file = Checked::new(&client, "f").await;
        file.write(1, 0, 1000).await;
        file.zero(100, 200, FallocateMode::Punch).await;
        file.check().await;
        file.check_blocks().await;
        file.write(2, 0, 100_000).await;
        file.zero(10_000, 50_000, FallocateMode::Punch).await;
        file.check().await;
        file.check_blocks().await;
        file.zero(70_000, 1, FallocateMode::Punch).await;
        file.zero(80_000, 50_000, FallocateMode::Zero { keep_size: true }).await;
        file.check().await;
        file.check_blocks().await;
        file.zero(80_000, 50_000, FallocateMode::Zero { keep_size: false }).await;
        file.check().await;
        file.check_blocks().await;
        file.zero(MIB - 10_000, 30_000, FallocateMode::Zero { keep_size: false }).await;
        file.check().await;
        // Reserved: counted, zeros, the size as asked.
        let f = client.create(ROOT, "g").await.unwrap();
        client.fallocate(f, 0, 40_000, FallocateMode::Allocate { keep_size: true }).await.unwrap();
        let attr = client.getattr(f).await.unwrap();
        assert_eq!((attr.size_bytes, attr.blocks), (0, 10));
        client.fallocate(f, 0, 50_000, FallocateMode::Allocate { keep_size: false }).await.unwrap();
        let attr = client.getattr(f).await.unwrap();
        assert_eq!((attr.size_bytes, attr.blocks), (50_000, 13));
        assert_eq!(client.read(f, 0, MIB).await, vec![0; 50_000]);
        client.write(f, 5000, &[1; 10]).await.unwrap();
        assert_eq!(client.getattr(f).await.unwrap().blocks, 13);
        client.fallocate(f, 0, 50_000, FallocateMode::Punch).await.unwrap();
        // The last block is covered in part alone: it stays.
        assert_eq!(client.getattr(f).await.unwrap().blocks, client.blocks(f).await);
        client.truncate(f, 0).await.unwrap();
        assert_eq!(client.blocks(f).await, 0);
    });
}

#[test]
fn limits_are_errors() {
    run(68, |rig| async move {
        let client = rig.client(1);
        let f = client.create(ROOT, "f").await.unwrap();
        let max = weft_wire::limits::FILE_BYTES_MAX;
        assert_eq!(errno(&client.truncate(f, max + 1).await.unwrap_err()), EFBIG);
        client.truncate(f, max).await.unwrap();
        assert_eq!(errno(&client.append(f, b"x").await.unwrap_err()), EFBIG);
        client.truncate(f, 0).await.unwrap();
        let op = FsOp::Write { inode: f, offset: max, cut_generation: 9, kill_setid: false };
        assert_eq!(errno(&client.ask_with(op, bytes::Bytes::from_static(b"x")).await.unwrap_err()), EFBIG);
        let d = client.mkdir(ROOT, "d").await.unwrap();
        let op = FsOp::Write { inode: d, offset: 0, cut_generation: 0, kill_setid: false };
        assert_eq!(errno(&client.ask_with(op, bytes::Bytes::from_static(b"x")).await.unwrap_err()), EISDIR);
        assert_eq!(client.fails(FsOp::Read { inode: d, offset: 0, len_bytes: 10, cut_generation: None }).await, EISDIR);
        assert!(client.read(f, 5, 10).await.is_empty());
    });
}

/// A write merges its bytes into a block that it has read: a cut of the file in between must not come back with it.
#[test]
fn a_write_brings_nothing_back_that_a_truncate_has_removed() {
    run(69, |rig| async move {
        let (writer, cutter) = (rig.client(1), rig.client(2));
        for step in 0..40_u64 {
            let f = writer.create(ROOT, &format!("f{step}")).await.unwrap();
            writer.write(f, 2 * MIB, &[7; 4096]).await.unwrap();
            let late = {
                let (writer, handle) = (writer.clone(), rig.handle().clone());
                async move {
                    handle.sleep(std::time::Duration::from_micros(15 * step)).await;
                    writer.write(f, 2 * MIB, &[8; 100]).await.unwrap();
                }
            };
            let late = rig.handle().spawn("write", late);
            cutter.truncate(f, 10).await.unwrap();
            late.await.unwrap();
            let data = writer.read(f, 0, 3 * MIB).await;
            assert!(!data.contains(&7), "step {step}");
        }
    });
}
