//! Contents of files, as a client engine reads and writes them.

use crate::rig::*;
use bytes::Bytes;
use weft_wire::fs::*;
use weft_wire::limits::SLAB_BYTES;
use weft_wire::{BucketId, InodeId};

impl Client {
    /// As a client engine does it: slab by slab, then the size.
    pub async fn write(&self, inode: InodeId, offset: u64, data: &[u8]) -> Result<(), FsError> {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let stop = ((at / SLAB_BYTES + 1) * SLAB_BYTES).min(end);
            let body = Bytes::copy_from_slice(&data[(at - offset) as usize..(stop - offset) as usize]);
            loop {
                let cut_generation = self.getattr(inode).await?.cut_generation;
                let op = FsOp::Write { inode, offset: at, cut_generation, kill_setid: false };
                match self.ask_with(op, body.clone()).await {
                    Err(FsError::Cut { .. }) => {}
                    answer => break answer.map(drop)?,
                }
            }
            at = stop;
        }
        if end > SLAB_BYTES {
            let cut_generation = self.getattr(inode).await?.cut_generation;
            self.ask(FsOp::Publish { inode, start: offset, end, cut_generation, kill_setid: false }).await?;
        }
        Ok(())
    }

    pub async fn append(&self, inode: InodeId, data: &[u8]) -> Result<u64, FsError> {
        let op = FsOp::Append { inode, kill_setid: false };
        match self.ask_with(op, Bytes::copy_from_slice(data)).await?.0 {
            FsReply::Written { offset, .. } => Ok(offset),
            other => panic!("{other:?}"),
        }
    }

    pub async fn read(&self, inode: InodeId, offset: u64, len: u64) -> Vec<u8> {
        let size = self.getattr(inode).await.expect("getattr").size_bytes;
        let end = (offset + len).min(size);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        let mut at = offset;
        while at < end {
            let stop = ((at / SLAB_BYTES + 1) * SLAB_BYTES).min(end);
            let op = FsOp::Read { inode, offset: at, len_bytes: (stop - at) as u32, cut_generation: None };
            let (_, data) = self.ask(op).await.expect("read");
            let from = (at - offset) as usize;
            out[from..from + data.len()].copy_from_slice(&data);
            at = stop;
        }
        out
    }

    pub async fn fallocate(&self, inode: InodeId, offset: u64, len: u64, mode: FallocateMode) -> Result<(), FsError> {
        let cut_generation = self.getattr(inode).await?.cut_generation;
        self.ask(FsOp::Fallocate { inode, offset, len_bytes: len, mode, cut_generation }).await.map(drop)
    }

    /// An overwrite that the inode isn't told of.
    pub async fn overwrite(&self, inode: InodeId, offset: u64, data: &[u8], after_ns: i64) -> Result<(), FsError> {
        let cut_generation = self.getattr(inode).await?.cut_generation;
        let op = FsOp::Overwrite { inode, offset, cut_generation, after_ns };
        self.ask_with(op, Bytes::copy_from_slice(data)).await.map(drop)
    }

    /// As a client engine shows it.
    pub async fn stat(&self, inode: InodeId) -> Attr {
        let (blocks, written_ns) = self.slabs(inode).await;
        let mut attr = self.getattr(inode).await.expect("getattr");
        attr.blocks = blocks;
        attr.add_late(written_ns);
        attr
    }

    /// Blocks in all buckets.
    pub async fn blocks(&self, inode: InodeId) -> u64 {
        self.slabs(inode).await.0
    }

    /// Blocks in all buckets, and the newest of their times.
    pub async fn slabs(&self, inode: InodeId) -> (u64, Option<i64>) {
        let (mut blocks, mut newest) = (0, None);
        for bucket in 0..BUCKETS {
            let answer = self.ask_bucket(BucketId(bucket), FsOp::CountBlocks { inode }, Bytes::new()).await;
            let Ok((FsReply::Blocks { count, written_ns }, _)) = answer else { panic!("{answer:?}") };
            blocks += count;
            newest = newest.max(written_ns);
        }
        (blocks, newest)
    }
}
