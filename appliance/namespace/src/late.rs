//! Times that come late: who overwrites a large file tells the buckets of the slabs alone, and each keeps, in the record
//! with the data, when that was. Who looks at the file asks them along with its inode.
//!
//! An inode says for good that its times may come late, before the first writer relies on it. An application that sets
//! mtime makes the buckets forget what they keep: whatever they know afterwards came later. So that nobody who looks in
//! between sees the times go back, the inode first takes over what they are about to forget.

use crate::inode::{Inode, inode_key, time_key};
use crate::{Call, Namespace, Outcome, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_bucket::Batch;
use weft_reactor::join_all;
use weft_wire::bucket::{ParticipantOp, ParticipantReply};
use weft_wire::fs::{FsError, FsReply, LateTimes};
use weft_wire::limits::SLAB_BYTES;
use weft_wire::{BucketId, FsId, InodeId};

/// How often buckets are asked to forget their times while others go on writing. What comes after that is taken for
/// what came before mtime was set: it was under way at the same moment.
const FORGET_TRIES_MAX: u32 = 4;

impl Namespace {
    /// A write before the end of a file whose times come late.
    pub(crate) async fn overwrite(
        &self,
        call: &Call,
        number: InodeId,
        offset: u64,
        cut_generation: u64,
        after_ns: i64,
        data: Bytes,
    ) -> Outcome {
        let range = Self::check_range(offset, data.len() as u64)?;
        if offset < SLAB_BYTES {
            return Err(errno::EINVAL);
        }
        let _guard = self.lock_for_write(call, number, offset / SLAB_BYTES).await;
        self.check_cut(call, number, cut_generation).await?;
        let mut batch = Batch::new();
        self.mark_stray(call.fs, number, &mut batch).await?;
        self.put_data(call, number, &range, data, None, &mut batch).await?;
        // Other slabs of the file may be here: their times follow each other.
        let key = time_key(call.fs, number);
        let _time = self.bucket.lock([key.clone()]).await;
        let before_ns = match self.newest_time(call.fs, number).await {
            Ok(newest) => newest.unwrap_or(i64::MIN).max(after_ns),
            Err(error) => {
                self.bucket.discard(batch);
                return Err(error);
            }
        };
        batch.put(key, weft_wire::encode(&call.now_ns.max(before_ns.saturating_add(1))));
        let written = self.commit(call, batch, FsReply::Written { offset, attr: None }).await?;
        self.is_marked(call.fs, number);
        Ok(written)
    }

    /// When a file was last overwritten in this bucket.
    pub(crate) async fn newest_time(&self, fs: FsId, number: InodeId) -> Result<Option<i64>, FsError> {
        let found = self.bucket.get(&time_key(fs, number)).await.map_err(errno::of_bucket)?;
        found.map(|value| crate::inode::decode(&value)).transpose()
    }

    /// The same, once times up to `forget_ns` are forgotten.
    pub(crate) async fn written_here(
        &self,
        fs: FsId,
        number: InodeId,
        forget_ns: Option<i64>,
    ) -> Result<Option<i64>, FsError> {
        let Some(forget_ns) = forget_ns else { return self.newest_time(fs, number).await };
        let _time = self.bucket.lock([time_key(fs, number)]).await;
        match self.newest_time(fs, number).await? {
            Some(newest) if newest <= forget_ns => {
                let mut batch = Batch::new();
                batch.delete(time_key(fs, number));
                self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
                Ok(None)
            }
            newest => Ok(newest),
        }
    }

    /// A cut leaves nothing behind slab 0: its batch takes the time, too. The cut is locked, so nobody writes.
    pub(crate) async fn cut_time(&self, fs: FsId, number: InodeId, batch: &mut Batch) -> Result<(), FsError> {
        if self.newest_time(fs, number).await?.is_some() {
            batch.delete(time_key(fs, number));
        }
        Ok(())
    }

    /// Before an application's mtime takes the place of what was: the inode knows of all writes, and the buckets have
    /// forgotten them. The inode is locked.
    pub(crate) async fn settle_times(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        inode: &mut Inode,
    ) -> Result<(), FsError> {
        if inode.late == LateTimes::Never || inode.size <= SLAB_BYTES {
            return Ok(());
        }
        let mut newest = self.written_anywhere(call.fs, number, None).await?;
        for _ in 0..FORGET_TRIES_MAX {
            let Some(written_ns) = newest else { return Ok(()) };
            let mut attr = inode.attr(number);
            attr.add_late(Some(written_ns));
            (inode.mtime_ns, inode.ctime_ns) = (attr.mtime_ns, attr.ctime_ns);
            // Buckets that haven't forgotten theirs yet say nothing new.
            inode.late = LateTimes::Newest;
            let mut batch = Batch::new();
            batch.put(inode_key(call.fs, number), weft_wire::encode(inode));
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
            // What the buckets forget must not be lost with this leader.
            self.bucket.readable().await.map_err(errno::of_bucket)?;
            newest = self.written_anywhere(call.fs, number, Some(written_ns)).await?;
        }
        Ok(())
    }

    async fn written_anywhere(
        self: &Rc<Self>,
        fs: FsId,
        number: InodeId,
        forget_ns: Option<i64>,
    ) -> Result<Option<i64>, FsError> {
        let buckets = self.map()?.buckets.len() as u32;
        let asks = (0..buckets).map(|bucket| {
            let op = ParticipantOp::Written { fs, inode: number, forget_ns };
            self.ask_bucket(BucketId(bucket), op, Bytes::new())
        });
        let mut newest = None;
        for answer in join_all(asks.collect::<Vec<_>>()).await {
            match answer? {
                ParticipantReply::Written(written_ns) => newest = newest.max(written_ns),
                other => {
                    tracing::error!(?other, "an answer to nothing that was asked");
                    return Err(errno::EIO);
                }
            }
        }
        Ok(newest)
    }
}
