//! Extents: which blocks of a file are where. Pure arithmetic.
//!
//! An extent never crosses a slab boundary, so that the one that covers a block begins in the block's slab.

use std::ops::Range;
use weft_wire::limits::SLAB_BLOCKS;
use weft_wire::{Seq, StripeId};

/// Where an extent's blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// Data blocks of a stripe, counted from `block`.
    Stripe { stripe: StripeId, block: u32 },
    /// Blocks of a journal record. In a record itself, sequence 0 is that record.
    Journal { seq: Seq, block: u32 },
    /// Allocated, never written: reads as zeros.
    Zero,
}

impl Location {
    fn skip(self, blocks: u32) -> Self {
        match self {
            Self::Stripe { stripe, block } => Self::Stripe { stripe, block: block + blocks },
            Self::Journal { seq, block } => Self::Journal { seq, block: block + blocks },
            Self::Zero => Self::Zero,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub first: u64,
    pub blocks: u32,
    pub location: Location,
}

const ENCODED_BYTES: usize = 17;

impl Extent {
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.blocks)
    }

    /// The part within `range`, if there is one.
    pub fn clip(&self, range: &Range<u64>) -> Option<Extent> {
        let first = self.first.max(range.start);
        let end = self.end().min(range.end);
        (first < end).then(|| Extent {
            first,
            blocks: (end - first) as u32,
            location: self.location.skip((first - self.first) as u32),
        })
    }

    /// The value under the extent's key.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, number, block) = match self.location {
            Location::Stripe { stripe, block } => (1u8, stripe.0, block),
            Location::Journal { seq, block } => (2, seq.0, block),
            Location::Zero => (3, 0, 0),
        };
        let mut out = Vec::with_capacity(ENCODED_BYTES);
        out.push(kind);
        out.extend_from_slice(&self.blocks.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&block.to_le_bytes());
        out
    }

    /// Reads what [`Extent::encode`] made; `None` if it is something else.
    pub fn decode(first: u64, value: &[u8]) -> Option<Extent> {
        let value: &[u8; ENCODED_BYTES] = value.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([value[at], value[at + 1], value[at + 2], value[at + 3]]);
        let number = u64::from(u32_at(5)) | u64::from(u32_at(9)) << 32;
        let block = u32_at(13);
        let blocks = u32_at(1);
        if blocks == 0 || u64::from(blocks) > SLAB_BLOCKS {
            return None;
        }
        let location = match value[0] {
            1 => Location::Stripe { stripe: StripeId(number), block },
            2 => Location::Journal { seq: Seq(number), block },
            3 => Location::Zero,
            _ => return None,
        };
        Some(Extent { first, blocks, location })
    }
}

/// What becomes of the extents that a range overlaps when the range is taken out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carved {
    /// Keys (first blocks) that go.
    pub deletes: Vec<u64>,
    /// What is left of them.
    pub puts: Vec<Extent>,
    /// Pieces that nobody can read any more.
    pub dead: Vec<Extent>,
}

/// Takes `range` out of `existing`.
pub fn carve(existing: &[Extent], range: &Range<u64>) -> Carved {
    let mut carved = Carved::default();
    for extent in existing {
        let Some(dead) = extent.clip(range) else { continue };
        carved.dead.push(dead);
        match extent.clip(&(0..range.start)) {
            Some(left) => carved.puts.push(left),
            None => carved.deletes.push(extent.first),
        }
        if let Some(right) = extent.clip(&(range.end..u64::MAX)) {
            carved.puts.push(right);
        }
    }
    carved
}

/// Cuts a range at slab boundaries.
pub fn by_slab(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let end = ((at / SLAB_BLOCKS + 1) * SLAB_BLOCKS).min(range.end);
        let piece = at..end;
        at = end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripe(first: u64, blocks: u32, block: u32) -> Extent {
        Extent { first, blocks, location: Location::Stripe { stripe: StripeId(1), block } }
    }

    #[test]
    fn an_overwrite_in_the_middle_leaves_both_ends() {
        let carved = carve(&[stripe(10, 10, 0)], &(12..15));
        assert_eq!(carved.deletes, []);
        assert_eq!(carved.puts, [stripe(10, 2, 0), stripe(15, 5, 5)]);
        assert_eq!(carved.dead, [stripe(12, 3, 2)]);
    }

    #[test]
    fn a_covered_extent_goes() {
        let carved = carve(&[stripe(10, 2, 0), stripe(12, 2, 7)], &(8..14));
        assert_eq!(carved.deletes, [10, 12]);
        assert!(carved.puts.is_empty());
    }

    #[test]
    fn neighbours_are_left_alone() {
        assert_eq!(carve(&[stripe(10, 2, 0)], &(12..14)), Carved::default());
    }

    #[test]
    fn values_come_back() {
        for location in [
            Location::Stripe { stripe: StripeId(1 << 40), block: 77 },
            Location::Journal { seq: Seq(u64::MAX - 1), block: 3 },
            Location::Zero,
        ] {
            let extent = Extent { first: 5, blocks: 256, location };
            assert_eq!(Extent::decode(5, &extent.encode()), Some(extent));
        }
        assert_eq!(Extent::decode(5, &[1; 16]), None);
        assert_eq!(Extent::decode(5, &[9; 17]), None);
    }

    #[test]
    fn ranges_are_cut_at_slabs() {
        assert_eq!(by_slab(250..520).collect::<Vec<_>>(), [250..256, 256..512, 512..520]);
        assert_eq!(by_slab(3..3).count(), 0);
    }
}
