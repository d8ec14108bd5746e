//! What changes together: one journal record. A record holds effects, never commands: replaying it, from wherever a
//! checkpoint left off, gives the same state.

use crate::key::Object;
use crate::stripe::Staged;
use crate::zone_set::{Member, StripeEntry, ZoneSet};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::rc::Rc;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{FsId, InodeId, StripeId, ZoneSetId};

/// A key and its new value; `None` deletes it.
pub(crate) type Change = (Bytes, Option<Bytes>);

/// Changes to commit as one. Later ones win over earlier ones of the same key or block.
#[derive(Default)]
pub struct Batch {
    pub(crate) changes: Vec<Change>,
    pub(crate) data: Vec<DataChange>,
}

pub(crate) enum DataChange {
    /// Whole blocks that go into the journal.
    Write {
        object: Object,
        first: u64,
        data: Bytes,
    },
    /// Blocks of a stripe that was written before.
    Place {
        object: Object,
        first: u64,
        staged: Rc<Staged>,
        block: u32,
        blocks: u32,
    },
    Punch {
        object: Object,
        range: Range<u64>,
    },
    /// Allocated, reads as zeros; what is there stays.
    Reserve {
        object: Object,
        range: Range<u64>,
    },
}

impl DataChange {
    pub(crate) fn target(&self) -> (Object, Range<u64>) {
        match self {
            Self::Write { object, first, data } => (*object, *first..first + (data.len() / BLOCK_BYTES) as u64),
            Self::Place { object, first, blocks, .. } => (*object, *first..first + u64::from(*blocks)),
            Self::Punch { object, range } | Self::Reserve { object, range } => (*object, range.clone()),
        }
    }
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put(&mut self, key: Bytes, value: impl Into<Bytes>) -> &mut Self {
        self.changes.push((key, Some(value.into())));
        self
    }

    pub fn delete(&mut self, key: Bytes) -> &mut Self {
        self.changes.push((key, None));
        self
    }

    /// Whole blocks of 4 KiB, carried by the journal.
    pub fn write_blocks(&mut self, object: Object, first: u64, data: Bytes) -> &mut Self {
        self.data.push(DataChange::Write { object, first, data });
        self
    }

    /// Makes a staged stripe real: its blocks become the file's from `first` on.
    pub fn place(&mut self, object: Object, first: u64, staged: Staged) -> &mut Self {
        let blocks = staged.data_blocks;
        self.data.push(DataChange::Place { object, first, staged: Rc::new(staged), block: 0, blocks });
        self
    }

    /// Frees the blocks: they read as zeros.
    pub fn punch(&mut self, object: Object, range: Range<u64>) -> &mut Self {
        self.data.push(DataChange::Punch { object, range });
        self
    }

    /// Allocates what is a hole in `range`; it reads as zeros.
    pub fn reserve(&mut self, object: Object, range: Range<u64>) -> &mut Self {
        self.data.push(DataChange::Reserve { object, range });
        self
    }

    /// Everything of another batch, after what is here.
    pub fn append(&mut self, other: Batch) -> &mut Self {
        self.changes.extend(other.changes);
        self.data.extend(other.data);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.data.is_empty()
    }

    /// What it adds to the journal, about.
    pub fn bytes(&self) -> usize {
        let changes: usize =
            self.changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len)).sum();
        let data: usize = self
            .data
            .iter()
            .map(|change| match change {
                DataChange::Write { data, .. } => data.len(),
                _ => 0,
            })
            .sum();
        changes + data
    }
}

/// The head of a record of kind `Batch`. The data blocks follow it in the payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchRecord {
    pub changes: Vec<Change>,
    /// What the data blocks are: in their order.
    pub pieces: Vec<PieceRecord>,
    pub stripes: Vec<(StripeId, StripeEntry)>,
    /// Live blocks of stripes, absolute. 0: the stripe is gone.
    pub live: Vec<(StripeId, u32)>,
    pub zone_sets: Vec<ZoneSetChange>,
    /// Lowest inode serial that was never handed out.
    pub next_serial: u64,
    /// Blocks that are allocated and hold nothing, absolute.
    pub reserved_blocks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PieceRecord {
    pub fs: FsId,
    pub inode: InodeId,
    pub first: u64,
    pub blocks: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ZoneSetChange {
    Open(ZoneSet),
    Free(ZoneSetId),
    /// Shard `shard` of each stripe of the set is here from now on.
    Move {
        set: ZoneSetId,
        shard: u8,
        member: Member,
    },
}

impl BatchRecord {
    /// The payload: length of the head, head, data blocks.
    pub fn encode(&self, data: &[Bytes]) -> Vec<Bytes> {
        let head = weft_wire::encode(self);
        let mut frame = Vec::with_capacity(4 + head.len());
        frame.extend_from_slice(&(head.len() as u32).to_le_bytes());
        frame.extend_from_slice(&head);
        let mut payload = Vec::with_capacity(1 + data.len());
        payload.push(frame.into());
        payload.extend_from_slice(data);
        payload
    }

    pub fn decode(payload: &Bytes) -> Option<(BatchRecord, Bytes)> {
        let len = u32::from_le_bytes(payload.get(..4)?.try_into().ok()?) as usize;
        let head = payload.get(4..4usize.checked_add(len)?)?;
        let record: BatchRecord = weft_wire::decode(head).ok()?;
        let data = payload.slice(4 + len..);
        let blocks: u64 = record.pieces.iter().map(|piece| u64::from(piece.blocks)).sum();
        (data.len() as u64 == blocks * BLOCK_BYTES as u64).then_some((record, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_torn_ones_do_not() {
        let record = BatchRecord {
            changes: vec![(Bytes::from_static(b"k"), None)],
            pieces: vec![PieceRecord { fs: FsId(1), inode: InodeId(2), first: 3, blocks: 1 }],
            next_serial: 9,
            ..BatchRecord::default()
        };
        let payload = record.encode(&[Bytes::from(vec![1; BLOCK_BYTES])]);
        let whole: Bytes = payload.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>().into();
        let (again, data) = BatchRecord::decode(&whole).expect("whole");
        assert_eq!((again, data.len()), (record, BLOCK_BYTES));
        for len in [0, 3, 10, whole.len() - 1] {
            assert!(BatchRecord::decode(&whole.slice(..len)).is_none());
        }
    }
}
