//! Contents: reads, writes, appends and holes, split by slab.
//!
//! Slab 0 is in the inode's bucket, and one request there does everything. Other slabs are in buckets of their own: their
//! data is written first, then the size and the times are published at the inode. A write to them carries the cut
//! generation that the writer knows, so that it can't bring back what a truncate has removed.

use crate::client::{Client, unexpected};
use crate::errno::Errno;
use crate::request::{Effect, Failure};
use crate::tunables::{
    AGAIN_FIRST, AGAIN_MOST, APPEND_BYTES_MAX, GENERATION_AGE_MAX, GENERATION_USED_MAX, GENERATIONS_MAX, OPENS_COUNT,
    PARALLEL_MAX, PUNCH_SLABS_MAX, SLABS_ASKED_MAX, STAT_LOOKS_MAX,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use weft_reactor::{Instant, join, join_all};
use weft_wire::fs::{Attr, FallocateMode, FsOp, FsReply, LateTimes, SeekTarget};
use weft_wire::hash::slab_position;
use weft_wire::limits::{FILE_BYTES_MAX, SLAB_BYTES};
use weft_wire::{BucketId, InodeId, Position};

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The parts of a byte range that lie in one slab each.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let stop = (at / SLAB_BYTES + 1).saturating_mul(SLAB_BYTES).min(range.end);
        let piece = (at < range.end).then_some(at..stop);
        at = stop;
        piece
    })
}

fn push_zeros(parts: &mut Vec<Bytes>, mut len: usize) {
    while len > 0 {
        let some = len.min(ZEROS.len());
        parts.push(Bytes::from_static(&ZEROS[..some]));
        len -= some;
    }
}

/// Bytes that were read, and zeros for those up to `wanted` that were never written.
fn push_padded(parts: &mut Vec<Bytes>, data: Bytes, wanted: usize) {
    let there = data.len().min(wanted);
    parts.push(data.slice(..there));
    push_zeros(parts, wanted - there);
}

/// What was heard of a file's contents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    generation: u64,
    at: Instant,
    /// The largest size under that generation. A file shrinks by cuts alone.
    reached: u64,
    /// A size under that generation, and when the inode's leader was asked for it.
    size: Option<(u64, Instant)>,
    /// The inode has said that overwrites needn't be told to it. That stays so.
    late: bool,
    /// The newest ctime.
    newest_ns: i64,
}

/// How a write goes whose time the slabs keep: under the generation in which the file was so long.
#[derive(Clone, Copy, Debug)]
struct Late {
    generation: u64,
    /// The newest time that was heard of the file.
    after_ns: i64,
}

impl Client {
    /// Where the slab with this byte is.
    fn slab_at(&self, inode: InodeId, offset: u64) -> Position {
        let slab = offset / SLAB_BYTES;
        match self.follower.map() {
            Some(map) => slab_position(&map.secret, self.fs, inode, slab),
            // There is always a map once there is a client.
            None => inode.position(),
        }
    }

    /// Takes note of what the leader told of an inode.
    pub(crate) fn learn(&self, attr: &Attr) {
        let mut generations = self.generations.borrow_mut();
        if attr.cut_generation == 0 && attr.size_bytes <= SLAB_BYTES {
            // The common small file needs no memory; one that was cut meanwhile answers so.
            return;
        }
        if generations.len() >= GENERATIONS_MAX && !generations.contains_key(&attr.inode) {
            generations.clear();
        }
        let (generation, at) = (attr.cut_generation, self.handle.now());
        let first = Heard { generation, at, reached: 0, size: None, late: false, newest_ns: i64::MIN };
        let known = generations.entry(attr.inode).or_insert(first);
        if generation > known.generation {
            *known = Heard { late: known.late, newest_ns: known.newest_ns, ..first };
        }
        known.late |= attr.late != LateTimes::Never;
        known.newest_ns = known.newest_ns.max(attr.ctime_ns);
        if generation == known.generation {
            known.at = known.at.max(at);
            known.reached = known.reached.max(attr.size_bytes);
        }
    }

    /// The leader was asked at `asked_at` and told a size. (What comes with a change may be long past: a request that is made
    /// again gets the answer of the first time.)
    fn learn_size(&self, attr: &Attr, asked_at: Instant) {
        if let Some(heard) = self.generations.borrow_mut().get_mut(&attr.inode)
            && heard.generation == attr.cut_generation
        {
            heard.size = Some((attr.size_bytes, asked_at));
        }
    }

    /// The file's cut generation, and when that was so.
    async fn generation(&self, inode: InodeId) -> Result<(u64, Instant), Errno> {
        let now = self.handle.now();
        let known = self.generations.borrow().get(&inode).copied();
        match known.filter(|heard| now.since(heard.at) < GENERATION_AGE_MAX) {
            Some(heard) => Ok((heard.generation, heard.at)),
            None => Ok((self.getattr(inode).await?.cut_generation, now)),
        }
    }

    /// The generation under which the file was at least so long, by what its leader was asked, and when that was.
    fn reaches(&self, inode: InodeId, end: u64) -> Option<(u64, Instant)> {
        let heard = self.generations.borrow().get(&inode).copied()?;
        let (size, asked_at) = heard.size?;
        let recent = self.handle.now().since(asked_at) < GENERATION_AGE_MAX;
        (end <= size && recent).then_some((heard.generation, asked_at))
    }

    /// Up to `len` bytes; fewer only where the file ends.
    pub async fn read(&self, inode: InodeId, offset: u64, len: u32) -> Result<Vec<Bytes>, Errno> {
        let end = offset.saturating_add(u64::from(len)).min(FILE_BYTES_MAX);
        if offset >= end {
            return Ok(Vec::new());
        }
        if end <= SLAB_BYTES {
            return Ok(vec![self.read_slab(inode, offset..end, None).await?]);
        }
        if offset >= SLAB_BYTES
            && let Some(parts) = self.read_within(inode, offset..end).await?
        {
            return Ok(parts);
        }
        // The size is asked along with the data: what was written before this read began is in both answers.
        let (size, found) = loop {
            let asked_at = self.handle.now();
            let reads = join_all(pieces(offset..end).map(|piece| self.read_slab(inode, piece, None)));
            let (attr, found) = join(self.getattr(inode), reads).await;
            let attr = attr?;
            self.learn_size(&attr, asked_at);
            // After a longer silence this client's opens may be forgotten, and the file be gone: that would read as zeros.
            if self.handle.now().since(asked_at) < OPENS_COUNT {
                break (attr.size_bytes, found);
            }
        };
        let mut parts = Vec::with_capacity(found.len());
        for (piece, data) in pieces(offset..end).zip(found) {
            if piece.start >= size {
                break;
            }
            push_padded(&mut parts, data?, (piece.end.min(size) - piece.start) as usize);
        }
        Ok(parts)
    }

    /// Reads what lies before the file's end by all that is known; its inode needn't be asked. `None`: that isn't known, or a
    /// slab has seen a newer cut.
    async fn read_within(&self, inode: InodeId, range: Range<u64>) -> Result<Option<Vec<Bytes>>, Errno> {
        let Some((generation, asked_at)) = self.reaches(inode, range.end) else { return Ok(None) };
        let reads = join_all(pieces(range.clone()).map(|piece| self.read_slab(inode, piece, Some(generation)))).await;
        let mut parts = Vec::with_capacity(reads.len());
        for (piece, data) in pieces(range).zip(reads) {
            match data {
                Ok(data) => push_padded(&mut parts, data, (piece.end - piece.start) as usize),
                Err(Failure::Cut { .. }) => return Ok(None),
                Err(failure) => return Err(failure.into()),
            }
        }
        // After a long time the slabs may have forgotten a cut that they would have refused this for.
        let recent = self.handle.now().since(asked_at) < GENERATION_USED_MAX;
        Ok(recent.then_some(parts))
    }

    async fn read_slab(
        &self,
        inode: InodeId,
        piece: Range<u64>,
        cut_generation: Option<u64>,
    ) -> Result<Bytes, Failure> {
        let len_bytes = (piece.end - piece.start) as u32;
        let op = FsOp::Read { inode, offset: piece.start, len_bytes, cut_generation };
        match self.send(self.slab_at(inode, piece.start), op, Bytes::new(), Effect::None).await? {
            (FsReply::Data, data) if data.len() <= len_bytes as usize => Ok(data),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Writes at an offset; answers how much. Fewer bytes than given: the rest failed, or is beyond the largest size.
    pub async fn write(&self, inode: InodeId, offset: u64, data: Bytes, kill_setid: bool) -> Result<usize, Errno> {
        let end = offset.saturating_add(data.len() as u64).min(FILE_BYTES_MAX);
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= end {
            return Err(Errno::EFBIG);
        }
        if end <= SLAB_BYTES {
            let len = (end - offset) as usize;
            self.write_first_slab(inode, offset, data.slice(..len), kill_setid).await?;
            return Ok(len);
        }
        let reached = self.generations.borrow().get(&inode).map_or(0, |heard| heard.reached);
        let extends = (end > reached).then(|| self.extending.begin(inode, offset));
        let mut pause_max = AGAIN_FIRST;
        // Up to here it stands for good, and others may have written over it since.
        let mut from = offset;
        loop {
            let late = self.times_come_late(inode, from..end, kill_setid);
            let writes = pieces(from..end).map(|piece| {
                let part = data.slice((piece.start - offset) as usize..(piece.end - offset) as usize);
                async move {
                    if piece.start < SLAB_BYTES {
                        // It publishes itself.
                        self.write_first_slab(inode, piece.start, part, kill_setid).await.map(|()| None)
                    } else {
                        self.write_slab(inode, piece.start, part, late).await.map(Some)
                    }
                }
            });
            let beside = async {
                match late {
                    Some(late) => Some(late.generation),
                    None => self.publish_beside(inode, from..end, kill_setid).await,
                }
            };
            let (outcomes, told) = join(join_all(writes), beside).await;
            let mut stands = from;
            let mut failed = None;
            let mut written: BTreeMap<u64, Range<u64>> = BTreeMap::new();
            for (piece, outcome) in pieces(from..end).zip(outcomes) {
                stands = match outcome {
                    Ok(generation) => {
                        if let Some(generation) = generation {
                            written.entry(generation).or_insert(piece.clone()).end = piece.end;
                        } else {
                            from = piece.end;
                        }
                        piece.end
                    }
                    Err(errno) => {
                        failed = Some(errno);
                        break;
                    }
                };
            }
            if let Some(errno) = failed
                && stands == offset
            {
                return Err(errno);
            }
            if let Some(extends) = &extends {
                extends.turn().await;
            }
            let mut taken = false;
            for (generation, range) in written.into_iter().filter(|(generation, _)| told != Some(*generation)) {
                taken |= self.publish(inode, range, generation, kill_setid).await?.is_none();
            }
            if taken {
                // What no size had passed over yet was removed: once more. Writers far behind the file's end can take
                // each other's data that way: each waits for a time of its own, so that one comes first.
                self.handle.sleep(pause_max.mul_f64(self.handle.random_u64() as f64 / u64::MAX as f64)).await;
                pause_max = (pause_max * 2).min(AGAIN_MOST);
                continue;
            }
            return Ok((stands - offset) as usize);
        }
    }

    /// A write before the end of a file whose inode needn't be told of it: its slabs keep the time.
    fn times_come_late(&self, inode: InodeId, range: Range<u64>, kill_setid: bool) -> Option<Late> {
        let heard = self.generations.borrow().get(&inode).copied()?;
        let fits = heard.late && !kill_setid && range.start >= SLAB_BYTES && range.end <= heard.reached;
        fits.then_some(Late { generation: heard.generation, after_ns: heard.newest_ns })
    }

    /// Within a file, by all that is known, a write changes the times alone, and they needn't wait for the data. Answers under
    /// which cut generation they were published; data that a slab took under another one is published when it stands.
    async fn publish_beside(&self, inode: InodeId, range: Range<u64>, kill_setid: bool) -> Option<u64> {
        let heard = self.generations.borrow().get(&inode).copied();
        let fits = |heard: &Heard| range.start >= SLAB_BYTES && range.end <= heard.reached;
        let generation = heard.filter(fits)?.generation;
        let published = self.publish(inode, range, generation, kill_setid).await;
        published.is_ok_and(|attr| attr.is_some()).then_some(generation)
    }

    async fn write_first_slab(&self, inode: InodeId, offset: u64, data: Bytes, kill_setid: bool) -> Result<(), Errno> {
        let op = FsOp::Write { inode, offset, cut_generation: 0, kill_setid };
        match self.change(inode.position(), op, data).await? {
            (FsReply::Written { attr, .. }, _) => {
                attr.iter().for_each(|attr| self.learn(attr));
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn write_slab(&self, inode: InodeId, offset: u64, data: Bytes, late: Option<Late>) -> Result<u64, Errno> {
        self.change_slab(inode, offset, data, |cut_generation| match late {
            Some(Late { generation, after_ns }) if generation == cut_generation => {
                FsOp::Overwrite { inode, offset, cut_generation, after_ns }
            }
            _ => FsOp::Write { inode, offset, cut_generation, kill_setid: false },
        })
        .await
    }

    /// Changes a slab under the newest cut generation; answers which that was.
    async fn change_slab(
        &self,
        inode: InodeId,
        offset: u64,
        data: Bytes,
        op: impl Fn(u64) -> FsOp,
    ) -> Result<u64, Errno> {
        let position = self.slab_at(inode, offset);
        loop {
            let (known, at) = self.generation(inode).await?;
            match self.change(position, op(known), data.clone()).await {
                Ok((FsReply::Written { .. } | FsReply::Done, _)) => {
                    // After a long time the slab may have forgotten a cut that it would have refused this for.
                    let recent = self.handle.now().since(at) < GENERATION_USED_MAX;
                    if recent || self.getattr(inode).await?.cut_generation == known {
                        return Ok(known);
                    }
                }
                Ok(other) => return Err(unexpected(&other)),
                Err(Failure::Cut { generation }) => {
                    // The cut is known at the inode before any slab hears of it.
                    let newest = self.getattr(inode).await?.cut_generation;
                    if newest < generation {
                        tracing::error!(%inode, newest, generation, "a slab knows a cut that its inode doesn't");
                        return Err(Errno::EIO);
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// The data is durable: makes it part of the file. Up to 0: only the times change. `None`: it was removed since, as data
    /// beyond the end that nobody had published.
    async fn publish(
        &self,
        inode: InodeId,
        written: Range<u64>,
        cut_generation: u64,
        kill_setid: bool,
    ) -> Result<Option<Attr>, Errno> {
        let Range { start, end } = written;
        let op = FsOp::Publish { inode, start, end, cut_generation, kill_setid };
        match self.change(inode.position(), op, Bytes::new()).await {
            Ok((FsReply::Attr(attr), _)) => {
                self.learn(&attr);
                Ok(Some(attr))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(Failure::Cut { .. }) => {
                // Asked for anew.
                self.generations.borrow_mut().remove(&inode);
                Ok(None)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// Writes at the end of the file, wherever that is then; answers how much.
    pub async fn append(&self, inode: InodeId, data: Bytes, kill_setid: bool) -> Result<usize, Errno> {
        let mut written = 0;
        while written < data.len() {
            let part = data.slice(written..data.len().min(written + APPEND_BYTES_MAX));
            let len = part.len();
            let outcome = self.change(inode.position(), FsOp::Append { inode, kill_setid }, part).await;
            match outcome.map_err(Errno::from) {
                Ok((FsReply::Written { attr, .. }, _)) => attr.iter().for_each(|attr| self.learn(attr)),
                Ok(other) => return Err(unexpected(&other)),
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
            written += len;
        }
        Ok(written)
    }

    /// Reserves, punches or zeroes a range.
    pub async fn fallocate(&self, inode: InodeId, offset: u64, len: u64, mode: FallocateMode) -> Result<(), Errno> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let mut end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Errno::EFBIG)?;
        if mode == FallocateMode::Punch && len / SLAB_BYTES > PUNCH_SLABS_MAX {
            // Far beyond the size there is nothing but what was reserved there.
            let size = self.getattr(inode).await?.size_bytes;
            end = end.min(size.max(offset.saturating_add(PUNCH_SLABS_MAX * SLAB_BYTES)));
        }
        loop {
            let mut oldest = u64::MAX;
            let mut left = pieces(offset..end).peekable();
            while left.peek().is_some() {
                let some: Vec<_> = left.by_ref().take(PARALLEL_MAX).collect();
                let changes = some.iter().map(|piece| self.fallocate_slab(inode, piece.clone(), mode));
                for (piece, outcome) in some.iter().zip(join_all(changes).await) {
                    let generation = outcome?;
                    // Slab 0 asks for none.
                    oldest = if piece.start < SLAB_BYTES { oldest } else { oldest.min(generation) };
                }
            }
            if end <= SLAB_BYTES || self.publish_fallocated(inode, offset..end, oldest, mode).await? {
                return Ok(());
            }
        }
    }

    /// False: a cut has come in between.
    async fn publish_fallocated(
        &self,
        inode: InodeId,
        range: Range<u64>,
        cut_generation: u64,
        mode: FallocateMode,
    ) -> Result<bool, Errno> {
        let written = match mode {
            // What is there stays: nothing of the range was written.
            FallocateMode::Allocate { keep_size: false } => range.end..range.end,
            FallocateMode::Zero { keep_size: false } => range,
            _ => 0..0,
        };
        let published = self.publish(inode, written, cut_generation, false).await?;
        Ok(published.is_some())
    }

    async fn fallocate_slab(&self, inode: InodeId, piece: Range<u64>, mode: FallocateMode) -> Result<u64, Errno> {
        let (offset, len_bytes) = (piece.start, piece.end - piece.start);
        self.change_slab(inode, offset, Bytes::new(), |cut_generation| FsOp::Fallocate {
            inode,
            offset,
            len_bytes,
            mode,
            cut_generation,
        })
        .await
    }

    /// Where data or a hole is, at or after `offset`. `ENXIO`: there is none before the end.
    pub async fn seek(&self, inode: InodeId, offset: u64, target: SeekTarget) -> Result<u64, Errno> {
        let size = self.getattr(inode).await?.size_bytes;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let mut at = offset;
        if at < SLAB_BYTES {
            let end = size.min(SLAB_BYTES);
            if let Some(found) = self.seek_at(inode.position(), inode, at..end, target).await? {
                return Ok(found);
            }
            at = end;
        }
        let found = match target {
            SeekTarget::Data => self.seek_data(inode, at..size).await?,
            SeekTarget::Hole => self.seek_hole(inode, at..size).await?,
        };
        match (found, target) {
            (Some(found), _) => Ok(found),
            // The end of the file counts as a hole.
            (None, SeekTarget::Hole) => Ok(size),
            (None, SeekTarget::Data) => Err(Errno::ENXIO),
        }
    }

    async fn seek_at(
        &self,
        position: Position,
        inode: InodeId,
        range: Range<u64>,
        target: SeekTarget,
    ) -> Result<Option<u64>, Errno> {
        let op = FsOp::Seek { inode, offset: range.start, end: range.end, target };
        match self.ask(position, op).await? {
            (FsReply::Offset(found), _) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// The first data of all buckets that may have some.
    async fn seek_data(&self, inode: InodeId, range: Range<u64>) -> Result<Option<u64>, Errno> {
        let mut first: Option<u64> = None;
        for some in self.buckets_of(inode, range.clone()).chunks(PARALLEL_MAX) {
            let asks = some.iter().map(|at| self.seek_at(*at, inode, range.clone(), SeekTarget::Data));
            for found in join_all(asks).await {
                first = found?.into_iter().chain(first).min();
            }
        }
        Ok(first)
    }

    /// Slab by slab: a bucket can't tell a hole from a slab that isn't its own.
    async fn seek_hole(&self, inode: InodeId, range: Range<u64>) -> Result<Option<u64>, Errno> {
        let mut left = pieces(range).peekable();
        while left.peek().is_some() {
            let some: Vec<_> = left.by_ref().take(PARALLEL_MAX).collect();
            let asks = some
                .into_iter()
                .map(|piece| self.seek_at(self.slab_at(inode, piece.start), inode, piece, SeekTarget::Hole));
            for found in join_all(asks).await {
                if let Some(found) = found? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// A position in each bucket that may hold slabs of the range: those of its slabs, or all if they are many.
    fn buckets_of(&self, inode: InodeId, range: Range<u64>) -> Vec<Position> {
        let Some(map) = self.follower.map() else { return Vec::new() };
        let slabs = range.start / SLAB_BYTES..range.end.div_ceil(SLAB_BYTES);
        if slabs.end.saturating_sub(slabs.start) > SLABS_ASKED_MAX.min(map.buckets.len() as u64) {
            return crate::space::all_buckets(&map);
        }
        let mut seen: BTreeSet<BucketId> = BTreeSet::new();
        let positions = slabs.map(|slab| slab_position(&map.secret, self.fs, inode, slab));
        positions.filter(|position| seen.insert(map.bucket_of(*position))).collect()
    }

    /// What an application sees of an inode: the blocks of all slabs, the time of the newest write.
    pub async fn stat(&self, inode: InodeId) -> Result<Attr, Errno> {
        let mut attr = self.getattr(inode).await?;
        for look in 1..=STAT_LOOKS_MAX {
            if attr.size_bytes <= SLAB_BYTES {
                break;
            }
            let (blocks, written_ns) = self.ask_slabs(&attr).await?;
            let seen = attr;
            if attr.late != LateTimes::Never {
                // Who sets mtime makes the buckets forget theirs: what they said counts if nobody did so meanwhile.
                attr = self.getattr(inode).await?;
            }
            if (attr.mtime_ns, attr.ctime_ns) == (seen.mtime_ns, seen.ctime_ns) || look == STAT_LOOKS_MAX {
                attr.blocks = blocks;
                attr.add_late(written_ns);
                self.learn(&attr);
                break;
            }
        }
        Ok(attr)
    }

    /// Allocated blocks of 4 KiB in all buckets, and the newest write that they know of.
    async fn ask_slabs(&self, attr: &Attr) -> Result<(u64, Option<i64>), Errno> {
        let inode = attr.inode;
        let (mut blocks, mut newest) = (0, None);
        for some in self.buckets_of(inode, 0..attr.size_bytes).chunks(PARALLEL_MAX) {
            let asks = some.iter().map(|position| self.ask(*position, FsOp::CountBlocks { inode }));
            for answer in join_all(asks).await {
                match answer? {
                    (FsReply::Blocks { count, written_ns }, _) => {
                        blocks += count;
                        newest = newest.max(written_ns);
                    }
                    other => return Err(unexpected(&other)),
                }
            }
        }
        Ok((blocks, newest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_slabs_end() {
        let of = |range| pieces(range).collect::<Vec<_>>();
        assert_eq!(of(5..9), vec![5..9]);
        assert_eq!(of(0..SLAB_BYTES), vec![0..SLAB_BYTES]);
        assert_eq!(
            of(SLAB_BYTES - 1..2 * SLAB_BYTES + 1),
            vec![SLAB_BYTES - 1..SLAB_BYTES, SLAB_BYTES..2 * SLAB_BYTES, 2 * SLAB_BYTES..2 * SLAB_BYTES + 1]
        );
        assert!(of(7..7).is_empty());
    }
}
