//! What was written beyond a file's end and never published must not show when the file grows.
//!
//! A writer that dies between its data and the size leaves blocks in other buckets that nobody sees. A later size may pass
//! over those that its own writer has overwritten. For the rest, between the old end and where the new data begins, the
//! buckets that may hold some are asked first. Nearly always there is nothing. Otherwise all beyond the old end is cut under
//! a new generation, and whoever writes there, also the one who publishes just now, is told to write again.
//!
//! A write that comes in between the question and the new size is one that is under way: it may be seen, or not.

use crate::inode::{Inode, object};
use crate::{Call, Namespace, errno};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use weft_bucket::Batch;
use weft_wire::bucket::{ParticipantOp, ParticipantReply};
use weft_wire::fs::FsError;
use weft_wire::hash::slab_position;
use weft_wire::limits::{BLOCK_BYTES, SLAB_BYTES};
use weft_wire::{BucketId, FsId, InodeId};

const BLOCK: u64 = BLOCK_BYTES as u64;

impl Namespace {
    /// Before the size becomes one behind `start`, from where on everything is new. True: something was there and is cut,
    /// with all that was written for the new size. The inode's lock is held.
    pub(crate) async fn uncover(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        inode: &mut Inode,
        start: u64,
    ) -> Result<bool, FsError> {
        // Slab 0 changes together with the size.
        let end = inode.size.max(SLAB_BYTES);
        if start <= end || !self.held_anywhere(call.fs, number, end..start).await? {
            return Ok(false);
        }
        inode.cut_generation += 1;
        inode.published_from = inode.cut_generation;
        let batch = self.cut_elsewhere(call, number, inode, end, Batch::new(), None).await?;
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        Ok(true)
    }

    async fn held_anywhere(self: &Rc<Self>, fs: FsId, number: InodeId, range: Range<u64>) -> Result<bool, FsError> {
        let map = self.map()?;
        let slabs = range.start / SLAB_BYTES..range.end.div_ceil(SLAB_BYTES);
        let all = map.buckets.len() as u64;
        let buckets: BTreeSet<BucketId> = match slabs.end - slabs.start >= all {
            true => (0..all as u32).map(BucketId).collect(),
            false => slabs.map(|slab| map.bucket_of(slab_position(&map.secret, fs, number, slab))).collect(),
        };
        let (start, end) = (range.start, range.end);
        let asks = buckets.into_iter().map(|bucket| {
            let op = ParticipantOp::Holds { fs, inode: number, start, end };
            self.ask_bucket(bucket, op, Bytes::new())
        });
        for answer in weft_reactor::join_all(asks.collect::<Vec<_>>()).await {
            if answer? != ParticipantReply::Holds(false) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether something other than zeros is in this part of the file in this bucket.
    pub(crate) async fn holds(&self, call: &Call, number: InodeId, range: &Range<u64>) -> Result<bool, FsError> {
        let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
        if !whole.is_empty() {
            let written = self.bucket.is_written(object(call.fs, number), whole).await;
            if written.map_err(errno::of_bucket)? {
                return Ok(true);
            }
        }
        let mut edges: Vec<u64> =
            [range.start, range.end].iter().filter(|at| !at.is_multiple_of(BLOCK)).map(|at| at / BLOCK).collect();
        edges.dedup();
        for block in edges {
            let begin = block * BLOCK;
            let from = (range.start.max(begin) - begin) as usize;
            let to = (range.end.min(begin + BLOCK) - begin) as usize;
            let found = self.read_block(call, number, block).await?;
            if found.is_some_and(|data| data[from..to].iter().any(|byte| *byte != 0)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
