//! Contents: reads, writes, appends, holes. Requests stay within one slab; slab 0 is in the inode's bucket and changes
//! size and times in the same record, other slabs hold blocks alone.

use crate::inode::{INLINE_BYTES_MAX, Inode, cut_key, inode_key, object};
use crate::{Call, Namespace, Outcome, cut, errno};
use bytes::Bytes;
use std::ops::Range;
use std::rc::Rc;
use weft_bucket::{Batch, KeyBuilder, LockGuard, Mode, Tag};
use weft_reactor::{AlignedBuf, join_all};
use weft_wire::fs::{FallocateMode, FileKind, FsError, FsReply, LateTimes, SeekTarget};
use weft_wire::limits::{BLOCK_BYTES, FILE_BYTES_MAX, SLAB_BYTES};
use weft_wire::{FsId, InodeId};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// From here on data goes into a stripe of its own instead of the journal.
const STAGE_BYTES_MIN: u64 = 64 << 10;
/// Looks of a read at a file whose end moves, before it keeps others from moving it.
const LOOKS_MAX: u32 = 3;

/// A write, as the attributes show it.
fn touch(inode: &mut Inode, call: &Call, kill_setid: bool) {
    inode.written(call.now_ns);
    if kill_setid {
        inode.kill_setid();
    }
}

/// Stands for a slab. Comes after the inode's [`cut_key`], in whose order they are locked.
fn slab_key(fs: FsId, number: InodeId, slab: u64) -> Bytes {
    KeyBuilder::new(fs, Tag::Cut).u64(number.0).u64(slab).build()
}

/// Whole blocks that a byte range touches.
fn blocks_of(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK..range.end.div_ceil(BLOCK)
}

impl Namespace {
    /// The slab's lock key for read-modify-write of its blocks.
    pub(crate) async fn lock_slab(&self, call: &Call, number: InodeId, slab: u64) -> LockGuard {
        self.bucket.lock([slab_key(call.fs, number, slab)]).await
    }

    /// The same for a writer that doesn't hold the inode's lock: no cut comes between its look at the newest cut and its
    /// record, which would bring back what the cut removed.
    pub(crate) async fn lock_for_write(&self, call: &Call, number: InodeId, slab: u64) -> LockGuard {
        let slab = slab_key(call.fs, number, slab);
        self.bucket.lock_modes([(cut_key(call.fs, number), Mode::Shared), (slab, Mode::Exclusive)]).await
    }

    /// One block; `None` is a hole.
    pub(crate) async fn read_block(&self, call: &Call, number: InodeId, block: u64) -> Result<Option<Bytes>, FsError> {
        let found = self.bucket.read_blocks(object(call.fs, number), block..block + 1).await;
        Ok(found.map_err(errno::of_bucket)?.into_iter().next().and_then(|extent| extent.data))
    }

    pub(crate) fn check_range(offset: u64, len: u64) -> Result<Range<u64>, FsError> {
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(errno::EFBIG)?;
        if len > 0 && offset / SLAB_BYTES != (end - 1) / SLAB_BYTES {
            return Err(errno::EINVAL);
        }
        Ok(offset..end)
    }

    pub(crate) async fn read(
        &self,
        call: &Call,
        number: InodeId,
        offset: u64,
        len_bytes: u32,
        cut_generation: Option<u64>,
    ) -> Outcome {
        let asked = Self::check_range(offset, u64::from(len_bytes))?;
        if asked.start >= SLAB_BYTES {
            let data = self.read_range(call, number, &asked).await?;
            if let Some(generation) = cut_generation {
                // Afterwards: a cut that comes while the blocks are read may have taken some of them.
                self.check_cut(call, number, generation).await?;
            }
            return Ok((FsReply::Data, data));
        }
        for _ in 0..LOOKS_MAX {
            if let Some(data) = self.look(call, number, &asked).await? {
                return Ok((FsReply::Data, data));
            }
        }
        // Whoever changes it all the time waits for once.
        let _guard = self.lock_inodes(call, [number]).await;
        let data = self.look(call, number, &asked).await?;
        let moved = || FsError::NotReady(format!("{number} changes while it is read"));
        data.map(|data| (FsReply::Data, data)).ok_or_else(moved)
    }

    /// What a part of slab 0 holds, up to the file's end. `None`: the end moved in between, so that the blocks are not
    /// of the same moment.
    async fn look(&self, call: &Call, number: InodeId, asked: &Range<u64>) -> Result<Option<Bytes>, FsError> {
        let inode = self.settled_inode(call, number).await?;
        if inode.kind == FileKind::Directory {
            return Err(errno::EISDIR);
        }
        let range = asked.start..asked.end.min(inode.size);
        if range.is_empty() {
            return Ok(Some(Bytes::new()));
        }
        if inode.inline.len() as u64 >= inode.size {
            return Ok(Some(inode.inline.slice(range.start as usize..range.end as usize)));
        }
        if !inode.inline.is_empty() {
            // A truncate made it longer than what is stored: zeros follow.
            let mut data = vec![0; (range.end - range.start) as usize];
            let from = (range.start as usize).min(inode.inline.len());
            let to = (range.end as usize).min(inode.inline.len());
            data[..to - from].copy_from_slice(&inode.inline[from..to]);
            return Ok(Some(data.into()));
        }
        let data = self.read_range(call, number, &range).await?;
        let after = self.settled_inode(call, number).await?;
        let same_end = asked.end.min(after.size) == range.end;
        let same = same_end && after.cut_generation == inode.cut_generation && after.inline.is_empty();
        Ok(same.then_some(data))
    }

    async fn read_range(&self, call: &Call, number: InodeId, range: &Range<u64>) -> Result<Bytes, FsError> {
        let blocks = blocks_of(range);
        let found = self.bucket.read_blocks(object(call.fs, number), blocks.clone()).await.map_err(errno::of_bucket)?;
        let skip = (range.start - blocks.start * BLOCK) as usize;
        let len = (range.end - range.start) as usize;
        if let [only] = &found[..]
            && let Some(data) = &only.data
        {
            return Ok(data.slice(skip..skip + len));
        }
        let mut out = weft_reactor::AlignedBuf::with_len(((blocks.end - blocks.start) * BLOCK) as usize);
        for extent in found {
            if let Some(data) = extent.data {
                let at = ((extent.first_block - blocks.start) * BLOCK) as usize;
                out.as_mut_slice()[at..at + data.len()].copy_from_slice(&data);
            }
        }
        Ok(out.freeze().slice(skip..skip + len))
    }

    pub(crate) async fn write(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        offset: u64,
        cut_generation: u64,
        kill_setid: bool,
        data: Bytes,
    ) -> Outcome {
        let range = Self::check_range(offset, data.len() as u64)?;
        if offset < SLAB_BYTES {
            let _guard = self.lock_inodes(call, [number]).await;
            let inode = self.file(call, number).await?;
            return self.write_first_slab(call, number, inode, range, kill_setid, data).await;
        }
        let _guard = self.lock_for_write(call, number, offset / SLAB_BYTES).await;
        self.check_cut(call, number, cut_generation).await?;
        let mut batch = Batch::new();
        self.mark_stray(call.fs, number, &mut batch).await?;
        self.put_data(call, number, &range, data, None, &mut batch).await?;
        let written = self.commit(call, batch, FsReply::Written { offset, attr: None }).await?;
        self.is_marked(call.fs, number);
        Ok(written)
    }

    /// The inode if it is a file that no cut is pending for. Its lock is held.
    async fn file(&self, call: &Call, number: InodeId) -> Result<Inode, FsError> {
        let inode = self.inode(call, number).await?;
        match inode.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(errno::EISDIR),
            _ => return Err(errno::EINVAL),
        }
        if inode.cutting {
            return Err(FsError::NotReady(format!("a truncate of {number} is being finished")));
        }
        Ok(inode)
    }

    /// A writer that hasn't heard of the newest cut would bring back what it removed, a reader take for zeros what is
    /// beyond the end.
    pub(crate) async fn check_cut(&self, call: &Call, number: InodeId, generation: u64) -> Result<(), FsError> {
        let newest = self.newest_cut(call.fs, number).await?.generation;
        if generation < newest { Err(FsError::Cut { generation: newest }) } else { Ok(()) }
    }

    async fn write_first_slab(
        &self,
        call: &Call,
        number: InodeId,
        mut inode: Inode,
        range: Range<u64>,
        kill_setid: bool,
        data: Bytes,
    ) -> Outcome {
        let mut batch = Batch::new();
        let offset = range.start;
        inode.size = inode.size.max(range.end);
        self.fill_first_slab(call, number, &mut inode, range, data, &mut batch).await?;
        touch(&mut inode, call, kill_setid);
        batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
        let reply = FsReply::Written { offset, attr: Some(inode.attr(number)) };
        self.commit(call, batch, reply).await
    }

    /// Puts bytes of slab 0 into the batch, or into the inode if the file (its size is the new one already) fits there.
    /// On an error the batch is as before.
    async fn fill_first_slab(
        &self,
        call: &Call,
        number: InodeId,
        inode: &mut Inode,
        range: Range<u64>,
        data: Bytes,
        batch: &mut Batch,
    ) -> Result<(), FsError> {
        if range.is_empty() {
            return Ok(());
        }
        if inode.size as usize <= INLINE_BYTES_MAX && inode.blocks == 0 {
            if range.end as usize > inode.inline.len() {
                self.room_for(0)?;
            }
            let mut contents = vec![0; inode.size as usize];
            contents[..inode.inline.len()].copy_from_slice(&inode.inline);
            contents[range.start as usize..range.end as usize].copy_from_slice(&data);
            inode.inline = contents.into();
            return Ok(());
        }
        let inline = std::mem::take(&mut inode.inline);
        let before = (!inline.is_empty()).then_some(inline);
        let blocks = match &before {
            // Nothing of the file is a block yet: what the inode held is in block 0, whoever writes it.
            Some(_) => blocks_of(&range).end - blocks_of(&range).start + u64::from(range.start >= BLOCK),
            None => 0,
        };
        let mut written = Batch::new();
        if let Some(inline) = &before
            && range.start >= BLOCK
        {
            // The write leaves block 0 alone: what the inode held goes there.
            let mut block = vec![0; BLOCK_BYTES];
            block[..inline.len()].copy_from_slice(inline);
            batch.write_blocks(object(call.fs, number), 0, block.into());
        }
        self.put_data(call, number, &range, data, before, &mut written).await?;
        inode.blocks = if blocks > 0 {
            blocks
        } else {
            match self.blocks_after(call, number, &written).await {
                Ok(blocks) => blocks,
                Err(error) => {
                    self.bucket.discard(written);
                    return Err(error);
                }
            }
        };
        batch.append(written);
        Ok(())
    }

    /// Puts bytes into the batch as whole blocks: through a stripe of their own if there are many, else by the journal.
    /// `inline`: what block 0 holds, if that is not stored as a block. On an error the batch is as before.
    pub(crate) async fn put_data(
        &self,
        call: &Call,
        number: InodeId,
        range: &Range<u64>,
        data: Bytes,
        inline: Option<Bytes>,
        batch: &mut Batch,
    ) -> Result<(), FsError> {
        if range.is_empty() {
            return Ok(());
        }
        let target = object(call.fs, number);
        let blocks = blocks_of(range);
        let aligned = range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK);
        let whole = if aligned {
            data
        } else {
            let mut buffer = AlignedBuf::with_len(((blocks.end - blocks.start) * BLOCK) as usize);
            for block in [blocks.start, blocks.end - 1] {
                let begin = block * BLOCK;
                let covered = range.start <= begin && range.end >= begin + BLOCK;
                if covered {
                    continue;
                }
                let old = match &inline {
                    Some(inline) if block == 0 => Some(inline.clone()),
                    Some(_) => None,
                    None => self.read_block(call, number, block).await?,
                };
                if let Some(old) = old {
                    let at = ((block - blocks.start) * BLOCK) as usize;
                    buffer.as_mut_slice()[at..at + old.len()].copy_from_slice(&old);
                }
            }
            let at = (range.start - blocks.start * BLOCK) as usize;
            buffer.as_mut_slice()[at..at + data.len()].copy_from_slice(&data);
            buffer.freeze()
        };
        if (whole.len() as u64) < STAGE_BYTES_MIN {
            batch.write_blocks(target, blocks.start, whole);
            return Ok(());
        }
        let per_stripe = u64::from(self.bucket.stage_blocks_max());
        let mut parts = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let end = (at + per_stripe).min(blocks.end);
            parts.push((
                at,
                whole.slice(((at - blocks.start) * BLOCK) as usize..((end - blocks.start) * BLOCK) as usize),
            ));
            at = end;
        }
        let staged = join_all(
            parts.into_iter().map(|(at, part)| async move { (at, self.bucket.stage(target, at, part).await) }),
        )
        .await;
        let mut placed = Batch::new();
        let mut failed = None;
        for (at, staged) in staged {
            match staged {
                Ok(staged) => drop(placed.place(target, at, staged)),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            self.bucket.discard(placed);
            return Err(errno::of_bucket(error));
        }
        batch.append(placed);
        Ok(())
    }

    /// O_APPEND: the inode's leader says where the end is. Within slab 0 it is one record; beyond, the data goes to the
    /// slab's owner first and the size follows.
    pub(crate) async fn append(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        kill_setid: bool,
        data: Bytes,
    ) -> Outcome {
        let _guard = self.lock_inodes(call, [number]).await;
        let mut inode = self.file(call, number).await?;
        let offset = inode.size;
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX).ok_or(errno::EFBIG)?;
        if end <= SLAB_BYTES {
            return self.write_first_slab(call, number, inode, offset..end, kill_setid, data).await;
        }
        // The other slabs first: what stands there counts only once the size passes over it.
        let mut at = offset.max(SLAB_BYTES);
        while at < end {
            let stop = ((at / SLAB_BYTES + 1) * SLAB_BYTES).min(end);
            let part = data.slice((at - offset) as usize..(stop - offset) as usize);
            cut::write_slab(self, call.fs, number, at, inode.cut_generation, part).await?;
            at = stop;
        }
        inode.size = end;
        let mut batch = Batch::new();
        if offset < SLAB_BYTES {
            let part = data.slice(..(SLAB_BYTES - offset) as usize);
            self.fill_first_slab(call, number, &mut inode, offset..SLAB_BYTES, part, &mut batch).await?;
        }
        touch(&mut inode, call, kill_setid);
        batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
        let reply = FsReply::Written { offset, attr: Some(inode.attr(number)) };
        self.commit(call, batch, reply).await
    }

    /// Data that a client wrote to other buckets becomes part of the file.
    pub(crate) async fn publish(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        written: Range<u64>,
        cut_generation: u64,
        kill_setid: bool,
    ) -> Outcome {
        let end = written.end;
        if end > FILE_BYTES_MAX {
            return Err(errno::EFBIG);
        }
        let _guard = self.lock_inodes(call, [number]).await;
        let mut inode = self.file(call, number).await?;
        if end > 0 && cut_generation < inode.published_from {
            return Err(FsError::Cut { generation: inode.cut_generation });
        }
        // Truncates alone have come since, and the slabs took the data when they had not heard of them (a client's word for
        // a generation is younger than any cut that a bucket has forgotten): the write came first. Written again, it
        // would be there twice, the second time over what others wrote in between.
        let before = end > 0 && cut_generation < inode.cut_generation;
        let end = if before { 0 } else { end };
        if end > inode.size && self.uncover(call, number, &mut inode, written.start).await? {
            return Err(FsError::Cut { generation: inode.cut_generation });
        }
        let mut batch = Batch::new();
        if end > INLINE_BYTES_MAX as u64 {
            self.spill(call, number, &mut inode, &mut batch);
        }
        if end > SLAB_BYTES && end <= inode.size && inode.late == LateTimes::Never {
            // It is being overwritten: from now on its writers needn't come here.
            inode.late = LateTimes::Newest;
        }
        inode.size = inode.size.max(end);
        touch(&mut inode, call, kill_setid);
        batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
        self.commit(call, batch, FsReply::Attr(inode.attr(number))).await
    }

    pub(crate) async fn fallocate(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        offset: u64,
        len_bytes: u64,
        mode: FallocateMode,
        cut_generation: u64,
    ) -> Outcome {
        let range = Self::check_range(offset, len_bytes)?;
        if range.is_empty() {
            return Err(errno::EINVAL);
        }
        let first = offset < SLAB_BYTES;
        let _slab = if first { None } else { Some(self.lock_for_write(call, number, offset / SLAB_BYTES).await) };
        let _inode = if first { Some(self.lock_inodes(call, [number]).await) } else { None };
        let mut batch = Batch::new();
        let mut inode = if first { Some(self.file(call, number).await?) } else { None };
        if let Some(inode) = &mut inode {
            self.spill(call, number, inode, &mut batch);
            if !batch.is_empty() {
                // The pieces below look at blocks, so what the inode held must be one.
                batch.put(inode_key(call.fs, number), weft_wire::encode(inode));
                self.bucket.commit(std::mem::take(&mut batch)).await.map_err(errno::of_bucket)?;
            }
        } else {
            self.check_cut(call, number, cut_generation).await?;
            self.mark_stray(call.fs, number, &mut batch).await?;
        }
        let target = object(call.fs, number);
        let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
        match mode {
            FallocateMode::Allocate { .. } => drop(batch.reserve(target, blocks_of(&range))),
            FallocateMode::Punch | FallocateMode::Zero { .. } => {
                if !whole.is_empty() {
                    batch.punch(target, whole.clone());
                    if matches!(mode, FallocateMode::Zero { .. }) {
                        batch.reserve(target, whole.clone());
                    }
                }
                self.zero_edges(call, number, &range, &mut batch).await?;
            }
        }
        let grows =
            matches!(mode, FallocateMode::Allocate { keep_size: false } | FallocateMode::Zero { keep_size: false });
        let mut attr = None;
        if let Some(inode) = &mut inode {
            if grows {
                inode.size = inode.size.max(range.end);
            }
            inode.written(call.now_ns);
            inode.blocks = self.blocks_after(call, number, &batch).await?;
            batch.put(inode_key(call.fs, number), weft_wire::encode(inode));
            attr = Some(inode.attr(number));
        }
        let done = self.commit(call, batch, FsReply::Written { offset, attr }).await?;
        if !first {
            self.is_marked(call.fs, number);
        }
        Ok(done)
    }

    /// Zeros in blocks that the range covers in part.
    async fn zero_edges(
        &self,
        call: &Call,
        number: InodeId,
        range: &Range<u64>,
        batch: &mut Batch,
    ) -> Result<(), FsError> {
        let mut edges = vec![range.start / BLOCK, (range.end - 1) / BLOCK];
        edges.dedup();
        for block in edges {
            let begin = block * BLOCK;
            let from = range.start.max(begin) - begin;
            let to = range.end.min(begin + BLOCK) - begin;
            if from == 0 && to == BLOCK {
                continue;
            }
            if let Some(old) = self.read_block(call, number, block).await? {
                let mut new = old.to_vec();
                new[from as usize..to as usize].fill(0);
                batch.write_blocks(object(call.fs, number), block, new.into());
            }
        }
        Ok(())
    }

    pub(crate) async fn seek(
        &self,
        call: &Call,
        number: InodeId,
        offset: u64,
        end: u64,
        target: SeekTarget,
    ) -> Outcome {
        let mut end = end;
        if offset < SLAB_BYTES {
            let inode = self.settled_inode(call, number).await?;
            end = end.min(inode.size);
            if !inode.inline.is_empty() {
                let found = match target {
                    SeekTarget::Data => (offset < end).then_some(offset),
                    SeekTarget::Hole => None,
                };
                return Ok((FsReply::Offset(found), Bytes::new()));
            }
        }
        if offset >= end {
            return Ok((FsReply::Offset(None), Bytes::new()));
        }
        let hole = target == SeekTarget::Hole;
        let found = self
            .bucket
            .seek(object(call.fs, number), offset / BLOCK, end.div_ceil(BLOCK), hole)
            .await
            .map_err(errno::of_bucket)?;
        let found = found.map(|block| (block * BLOCK).max(offset)).filter(|found| *found < end);
        Ok((FsReply::Offset(found), Bytes::new()))
    }
}
