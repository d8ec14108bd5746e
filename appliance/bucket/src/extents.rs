//! The extents that a batch touches, worked on in memory until the batch is written.

use crate::BucketError;
use crate::batch::{Batch, DataChange};
use crate::bucket::Bucket;
use crate::extent::{Extent, Location, by_slab, carve};
use crate::held;
use crate::key::{self, Object};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use weft_wire::Seq;
use weft_wire::limits::{BLOCK_BYTES, SLAB_BLOCKS};

/// A slab of a file: what is locked while its extents change.
pub(crate) type Slab = (Object, u64);

/// The slabs that a range of blocks touches.
pub(crate) fn slabs(object: Object, range: &Range<u64>) -> impl Iterator<Item = Slab> + use<> {
    let last = if range.is_empty() { range.start / SLAB_BLOCKS } else { (range.end - 1) / SLAB_BLOCKS + 1 };
    (range.start / SLAB_BLOCKS..last).map(move |slab| (object, slab))
}

/// Of each slab that the ranges touch, the blocks from the first to behind the last touched. What covers them begins in
/// the slab.
pub(crate) fn touched(ranges: impl IntoIterator<Item = (Object, Range<u64>)>) -> BTreeMap<Slab, Range<u64>> {
    let mut touched: BTreeMap<Slab, Range<u64>> = BTreeMap::new();
    for (object, range) in ranges {
        for slab in slabs(object, &range) {
            let start = range.start.max(slab.1 * SLAB_BLOCKS);
            let end = range.end.min((slab.1 + 1) * SLAB_BLOCKS);
            let all = touched.entry(slab).or_insert(start..end);
            *all = all.start.min(start)..all.end.max(end);
        }
    }
    touched
}

/// The key under which a slab is locked: one that no extent has.
pub(crate) fn slab_lock((object, slab): Slab) -> Bytes {
    let mut key = key::extent(object, slab * SLAB_BLOCKS).to_vec();
    key.push(0);
    key.into()
}

/// What a batch does to extents.
#[derive(Default)]
pub(crate) struct Worked {
    slabs: BTreeMap<Slab, Working>,
    /// Pieces that nobody refers to any more, this record's own (sequence 0) included.
    pub dead: Vec<Extent>,
    /// Data blocks of the record, in order.
    pub data: Vec<Bytes>,
    pub data_blocks: u32,
    /// Blocks that were holes and are allocated now, though they hold nothing.
    pub reserved_blocks: u64,
    pub pieces: Vec<held::Piece>,
}

struct Working {
    before: BTreeMap<u64, Extent>,
    now: BTreeMap<u64, Extent>,
}

impl Bucket {
    /// Blocks that a slab of a file will have once the batch is committed. The caller keeps others from changing it.
    pub async fn blocks_after(&self, object: Object, slab: u64, batch: &Batch) -> Result<u64, BucketError> {
        let range = slab * SLAB_BLOCKS..(slab + 1) * SLAB_BLOCKS;
        let mut worked = Worked::default();
        worked.load((object, slab), self.extents(object, range.clone(), usize::MAX).await?);
        for change in batch.data.iter().filter(|change| change.target().0 == object) {
            worked.apply(change);
        }
        Ok(worked.current(object, &range).iter().map(|extent| u64::from(extent.blocks)).sum())
    }
}

impl Worked {
    /// The extents of a slab as the index has them; those of the whole slab, or of all that its changes can touch.
    pub fn load(&mut self, slab: Slab, extents: Vec<Extent>) {
        let before: BTreeMap<u64, Extent> = extents.into_iter().map(|extent| (extent.first, extent)).collect();
        self.slabs.insert(slab, Working { now: before.clone(), before });
    }

    fn carve(&mut self, object: Object, range: &Range<u64>) {
        let Some(working) = self.slabs.get_mut(&(object, range.start / SLAB_BLOCKS)) else { return };
        let existing: Vec<Extent> = overlapping(&working.now, range);
        let carved = carve(&existing, range);
        for first in carved.deletes {
            working.now.remove(&first);
        }
        for extent in carved.puts {
            working.now.insert(extent.first, extent);
        }
        self.dead.extend(carved.dead);
    }

    fn set(&mut self, object: Object, extent: Extent) {
        if let Some(working) = self.slabs.get_mut(&(object, extent.first / SLAB_BLOCKS)) {
            working.now.insert(extent.first, extent);
        }
    }

    /// Works one change in. The slabs that it touches must have been loaded.
    pub fn apply(&mut self, change: &DataChange) {
        let (object, range) = change.target();
        for part in by_slab(range.clone()) {
            let skipped = (part.start - range.start) as u32;
            let blocks = (part.end - part.start) as u32;
            match change {
                DataChange::Write { data, .. } => {
                    self.carve(object, &part);
                    let location = Location::Journal { seq: Seq(0), block: self.data_blocks };
                    self.set(object, Extent { first: part.start, blocks, location });
                    let piece = held::Piece { object, first: part.start, blocks, offset: self.data_blocks };
                    self.pieces.push(piece);
                    let from = skipped as usize * BLOCK_BYTES;
                    self.data.push(data.slice(from..from + blocks as usize * BLOCK_BYTES));
                    self.data_blocks += blocks;
                }
                DataChange::Place { staged, block, .. } => {
                    self.carve(object, &part);
                    let location = Location::Stripe { stripe: staged.stripe(), block: block + skipped };
                    self.set(object, Extent { first: part.start, blocks, location });
                }
                DataChange::Punch { .. } => self.carve(object, &part),
                DataChange::Reserve { .. } => self.reserve(object, &part),
            }
        }
    }

    fn reserve(&mut self, object: Object, range: &Range<u64>) {
        let Some(working) = self.slabs.get(&(object, range.start / SLAB_BLOCKS)) else { return };
        let mut at = range.start;
        let mut holes = Vec::new();
        for extent in overlapping(&working.now, range) {
            if extent.first > at {
                holes.push(at..extent.first);
            }
            at = extent.end();
        }
        if at < range.end {
            holes.push(at..range.end);
        }
        for hole in holes {
            let blocks = (hole.end - hole.start) as u32;
            self.reserved_blocks += u64::from(blocks);
            self.set(object, Extent { first: hole.start, blocks, location: Location::Zero });
        }
    }

    /// Reserved blocks that were written or given back.
    pub fn unreserved_blocks(&self) -> u64 {
        let zeros = self.dead.iter().filter(|dead| dead.location == Location::Zero);
        zeros.map(|dead| u64::from(dead.blocks)).sum()
    }

    /// By how much journalled and reserved blocks are more than what they replace, and what else goes.
    pub fn growth(&self) -> u64 {
        let dead: u64 = self.dead.iter().map(|dead| u64::from(dead.blocks)).sum();
        (u64::from(self.data_blocks) + self.reserved_blocks).saturating_sub(dead)
    }

    /// The extents of these blocks as they are now.
    pub fn current(&self, object: Object, range: &Range<u64>) -> Vec<Extent> {
        let Some(working) = self.slabs.get(&(object, range.start / SLAB_BLOCKS)) else { return Vec::new() };
        overlapping(&working.now, range)
    }

    /// The key changes that lead from what was loaded to what is now.
    pub fn changes(&self) -> Vec<(Bytes, Option<Bytes>)> {
        let mut changes = Vec::new();
        for ((object, _), working) in &self.slabs {
            for first in working.before.keys() {
                if !working.now.contains_key(first) {
                    changes.push((key::extent(*object, *first), None));
                }
            }
            for (first, extent) in &working.now {
                if working.before.get(first) != Some(extent) {
                    changes.push((key::extent(*object, *first), Some(extent.encode().into())));
                }
            }
        }
        changes
    }
}

fn overlapping(extents: &BTreeMap<u64, Extent>, range: &Range<u64>) -> Vec<Extent> {
    let before = extents.range(..range.start).next_back().filter(|(_, extent)| extent.end() > range.start);
    before.into_iter().chain(extents.range(range.clone())).map(|(_, extent)| *extent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::{FsId, InodeId};

    #[test]
    fn later_changes_of_a_batch_win() {
        let object = Object { fs: FsId(1), inode: InodeId(1) };
        let mut worked = Worked::default();
        worked.load((object, 0), vec![]);
        worked.load((object, 1), vec![]);
        let data = Bytes::from(vec![1; 4 * BLOCK_BYTES]);
        worked.apply(&DataChange::Write { object, first: 254, data });
        worked.apply(&DataChange::Punch { object, range: 255..256 });
        worked.apply(&DataChange::Reserve { object, range: 253..257 });
        let firsts: Vec<_> =
            worked.current(object, &(0..256)).iter().map(|e| (e.first, e.blocks, e.location)).collect();
        assert_eq!(
            firsts,
            [(253, 1, Location::Zero), (254, 1, Location::Journal { seq: Seq(0), block: 0 }), (255, 1, Location::Zero)]
        );
        assert_eq!(worked.current(object, &(256..300)).len(), 1);
        assert_eq!(worked.changes().len(), 4);
        assert_eq!(worked.dead.len(), 1);
        // 254 and 256 are written, 253 and 255 reserved; one was written in vain.
        assert_eq!((worked.reserved_blocks, worked.unreserved_blocks(), worked.growth()), (2, 0, 5));
        assert_eq!(slabs(object, &(254..258)).count(), 2);
        assert_eq!(slabs(object, &(5..5)).count(), 0);
    }
}
