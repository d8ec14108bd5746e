//! Attributes: what stat shows and chmod, chown, truncate, utimens change.
//!
//! Access times are not kept up by reads: atime changes at creation and by utimens alone (as with `noatime`). All other
//! times are the leader's clock.

use crate::inode::{INLINE_BYTES_MAX, Inode, inode_key, object, orphan_key};
use crate::{Call, Namespace, Outcome, WAIT_MAX, cut, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_bucket::Batch;
use weft_wire::fs::{Attr, FileKind, FsError, FsOp, FsReply, LateTimes, SetAttr, SetTime};
use weft_wire::limits::{BLOCK_BYTES, FILE_BYTES_MAX, SLAB_BLOCKS, SLAB_BYTES};
use weft_wire::{FsId, InodeId};

impl Namespace {
    pub(crate) async fn get_attr(&self, call: &Call, number: InodeId, own: bool) -> Outcome {
        let inode = self.settled_inode(call, number).await?;
        let mut attr = inode.attr(number);
        if inode.is_split() && !own {
            self.combine(call.fs, &inode, &mut attr).await?;
        }
        Ok((FsReply::Attr(attr), Bytes::new()))
    }

    /// The inode when no cut of it is under way: a client must not learn of a cut that isn't everywhere yet.
    pub(crate) async fn settled_inode(&self, call: &Call, number: InodeId) -> Result<Inode, FsError> {
        self.seen(&inode_key(call.fs, number)).await?;
        let inode = self.inode(call, number).await?;
        if !inode.cutting {
            return Ok(inode);
        }
        // Whoever cuts holds the lock until it is done.
        let cutting = || FsError::NotReady(format!("a truncate of {number} is being finished"));
        let done = self.bucket.handle().timeout(WAIT_MAX, self.lock_inodes(call, [number])).await;
        let _guard = done.map_err(|_| cutting())?;
        let inode = self.inode(call, number).await?;
        if inode.cutting { Err(cutting()) } else { Ok(inode) }
    }

    /// Waits until what a truncate that was carried out before removes is gone everywhere.
    pub(crate) async fn cut_finished(&self, fs: FsId, op: &FsOp) -> Result<(), FsError> {
        let (FsOp::SetAttr { inode, .. } | FsOp::Open { inode, truncate: true, .. }) = op else { return Ok(()) };
        match self.settled_inode(&self.own_call(fs), *inode).await {
            Err(error @ FsError::NotReady(_)) => Err(error),
            // Whatever became of it since.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub(crate) async fn read_link(&self, call: &Call, number: InodeId) -> Outcome {
        let inode = self.inode(call, number).await?;
        if inode.kind != FileKind::Symlink {
            return Err(errno::EINVAL);
        }
        Ok((FsReply::Bytes(inode.inline.to_vec()), Bytes::new()))
    }

    pub(crate) async fn set_attr(self: &Rc<Self>, call: &Call, number: InodeId, set: SetAttr) -> Outcome {
        let _guard = self.lock_inodes(call, [number]).await;
        let mut inode = self.inode(call, number).await?;
        if inode.cutting {
            return Err(FsError::NotReady(format!("a truncate of {number} is being finished")));
        }
        // Of a large directory: what its pages say.
        let mut said = inode.attr(number);
        let newest_ns = match inode.is_split() {
            true => self.combine(call.fs, &inode, &mut said).await?,
            false => 0,
        };
        if let Some(size) = set.size_bytes
            && inode.kind == FileKind::File
            && size <= FILE_BYTES_MAX
        {
            self.uncover(call, number, &mut inode, size).await?;
        }
        if set.mtime.is_some() {
            self.settle_times(call, number, &mut inode).await?;
        }
        if let Some(mode) = set.mode {
            inode.mode = mode & 0o7777;
        }
        if let Some(uid) = set.uid {
            inode.uid = uid;
        }
        if let Some(gid) = set.gid {
            inode.gid = gid;
        }
        if set.kill_setid && inode.kind == FileKind::File {
            inode.kill_setid();
        }
        inode.ctime_ns = call.now_ns;
        let mut batch = Batch::new();
        if set.mode.is_some() {
            self.acl_follows_mode(call, number, &inode, &mut batch).await?;
        }
        let mut cuts_elsewhere = false;
        if let Some(size) = set.size_bytes {
            if inode.kind == FileKind::Directory {
                return Err(errno::EISDIR);
            }
            if inode.kind != FileKind::File {
                return Err(errno::EINVAL);
            }
            if size > FILE_BYTES_MAX {
                return Err(errno::EFBIG);
            }
            inode.written(call.now_ns);
            cuts_elsewhere = self.resize(call, number, &mut inode, size, &mut batch).await?;
        }
        let time = |time: SetTime| match time {
            SetTime::Now => call.now_ns,
            SetTime::At(at) => at,
        };
        if let Some(atime) = set.atime {
            inode.atime_ns = time(atime);
        }
        if let Some(mtime) = set.mtime {
            inode.mtime_ns = time(mtime);
            if inode.late != LateTimes::Never {
                inode.late = LateTimes::AfterSet;
            }
            said.mtime_ns = inode.mtime_ns;
            inode.split_since_ns = inode.split_since_ns.map(|since| since.max(newest_ns));
        }
        if inode.is_split() && (set.mode.is_some() || set.gid.is_some()) {
            // Also if it is what it was: an earlier change may have come half-way.
            let inherited = self.inherited(call.fs, number, &inode).await?;
            self.tell_pages(call.fs, number, &inherited).await?;
        }
        if !cuts_elsewhere {
            batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
            let mut attr = inode.attr(number);
            if inode.is_split() {
                let Attr { links, size_bytes, blocks, mtime_ns, .. } = said;
                attr = Attr { links, size_bytes, blocks, mtime_ns, ..attr };
            }
            return self.commit(call, batch, FsReply::Attr(attr)).await;
        }
        let size = inode.size;
        let reply = FsReply::Attr(inode.attr(number));
        let batch = self.cut_elsewhere(call, number, &mut inode, size, batch, Some(reply.clone())).await?;
        self.commit(call, batch, reply).await
    }

    /// Commits the batch with the beginning of a cut, and makes the cut everywhere. Answers the batch that ends it.
    /// `result`: of the request that asks for the cut. It stands from the beginning on: a later leader finishes the cut, and
    /// the request that comes again must not cut what was written since.
    pub(crate) async fn cut_elsewhere(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        inode: &mut Inode,
        size: u64,
        mut batch: Batch,
        result: Option<FsReply>,
    ) -> Result<Batch, FsError> {
        inode.cutting = true;
        batch.put(orphan_key(call.fs, number), Bytes::new());
        batch.put(inode_key(call.fs, number), weft_wire::encode(inode));
        match result {
            Some(result) => drop(self.commit(call, batch, result).await?),
            None => drop(self.bucket.commit(batch).await.map_err(errno::of_bucket)?),
        }
        self.bucket.readable().await.map_err(errno::of_bucket)?;
        cut::everywhere(self, call.fs, number, inode.cut_generation, size).await?;
        inode.cutting = false;
        let mut batch = Batch::new();
        if inode.links > 0 {
            batch.delete(orphan_key(call.fs, number));
        }
        batch.put(inode_key(call.fs, number), weft_wire::encode(inode));
        Ok(batch)
    }

    /// Sets the size. What lies beyond is gone, and what a later extension uncovers is zeros. True: other buckets must
    /// cut too.
    async fn resize(
        &self,
        call: &Call,
        number: InodeId,
        inode: &mut Inode,
        size: u64,
        batch: &mut Batch,
    ) -> Result<bool, FsError> {
        let old = inode.size;
        inode.size = size;
        if size >= old {
            if !inode.inline.is_empty() && size as usize > INLINE_BYTES_MAX {
                self.spill(call, number, inode, batch);
            }
            return Ok(false);
        }
        inode.cut_generation += 1;
        let cuts_elsewhere = old > SLAB_BYTES;
        if !cuts_elsewhere {
            inode.published_from = inode.cut_generation;
        }
        if !inode.inline.is_empty() {
            inode.inline = inode.inline.slice(..inode.inline.len().min(size as usize));
            return Ok(false);
        }
        let blocks = size.div_ceil(BLOCK_BYTES as u64);
        if blocks < SLAB_BLOCKS {
            batch.punch(object(call.fs, number), blocks..SLAB_BLOCKS);
        }
        if size < SLAB_BYTES {
            self.zero_tail(call, number, size, batch).await?;
        }
        inode.blocks = self.blocks_after(call, number, batch).await?;
        Ok(cuts_elsewhere)
    }

    /// The rest of the block in which the file ends must read as zeros when the file grows again.
    pub(crate) async fn zero_tail(
        &self,
        call: &Call,
        number: InodeId,
        size: u64,
        batch: &mut Batch,
    ) -> Result<(), FsError> {
        let within = (size % BLOCK_BYTES as u64) as usize;
        if within == 0 {
            return Ok(());
        }
        let block = size / BLOCK_BYTES as u64;
        if let Some(old) = self.read_block(call, number, block).await? {
            let mut tail = old.to_vec();
            tail[within..].fill(0);
            batch.write_blocks(object(call.fs, number), block, tail.into());
        }
        Ok(())
    }

    /// Contents in the inode become a block.
    pub(crate) fn spill(&self, call: &Call, number: InodeId, inode: &mut Inode, batch: &mut Batch) {
        if inode.inline.is_empty() {
            return;
        }
        let mut block = vec![0; BLOCK_BYTES];
        block[..inode.inline.len()].copy_from_slice(&inode.inline);
        batch.write_blocks(object(call.fs, number), 0, block.into());
        inode.inline = Bytes::new();
        inode.blocks = 1;
    }

    /// Blocks of slab 0 once the batch is committed.
    pub(crate) async fn blocks_after(&self, call: &Call, number: InodeId, batch: &Batch) -> Result<u64, FsError> {
        self.bucket.blocks_after(object(call.fs, number), 0, batch).await.map_err(errno::of_bucket)
    }
}
