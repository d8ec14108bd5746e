//! Who holds which zone, in which generation. Each logical block is stored twice and the older copy is
//! overwritten, so that a crash in the middle of a write leaves the other.

use super::frame::{self, Frame, FrameError, Identity};
use super::geometry::ZONES_PER_TABLE_BLOCK;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{BucketId, Epoch, Generation, ZoneSetId};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAGIC: &[u8; 8] = b"WEFT.zon";
const STATE_FREE: u8 = 0;
const STATE_HELD: u8 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    frame: Frame,
    /// Rises with each write of this block; the copy with the higher one counts.
    version: U64,
    index: U32,
    entries: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryLayout {
    generation: U64,
    epoch: U64,
    zone_set: U64,
    bucket: U32,
    shard: u8,
    state: u8,
    reserved: U16,
}

/// Who holds a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub bucket: BucketId,
    pub epoch: Epoch,
    pub zone_set: ZoneSetId,
    pub shard: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ZoneEntry {
    /// How often it was handed out; kept while it is free.
    pub generation: Generation,
    pub holder: Option<Holder>,
}

/// One block of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableBlock {
    pub index: u32,
    pub version: u64,
    pub entries: Vec<ZoneEntry>,
}

impl TableBlock {
    pub fn encode(&self, identity: Identity, position: u64) -> Vec<u8> {
        assert!(self.entries.len() <= ZONES_PER_TABLE_BLOCK as usize, "{} entries", self.entries.len());
        let layout = Layout {
            frame: Frame::new_zeroed(),
            version: self.version.into(),
            index: self.index.into(),
            entries: (self.entries.len() as u32).into(),
        };
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        block.extend_from_slice(layout.as_bytes());
        for entry in &self.entries {
            let free = EntryLayout { generation: entry.generation.0.into(), ..EntryLayout::new_zeroed() };
            let layout = entry.holder.map_or(free, |holder| EntryLayout {
                generation: entry.generation.0.into(),
                epoch: holder.epoch.0.into(),
                zone_set: holder.zone_set.0.into(),
                bucket: holder.bucket.0.into(),
                shard: holder.shard,
                state: STATE_HELD,
                reserved: 0.into(),
            });
            block.extend_from_slice(layout.as_bytes());
        }
        block.resize(BLOCK_BYTES, 0);
        frame::seal(&mut block, MAGIC, identity, position);
        block
    }

    pub fn decode(block: &[u8], identity: Identity, position: u64) -> Result<Self, FrameError> {
        let covered = frame::open(block, MAGIC, Some(identity), position)?;
        let (layout, rest) = Layout::ref_from_prefix(covered).map_err(|_| FrameError::Checksum)?;
        let count = layout.entries.get();
        if count > ZONES_PER_TABLE_BLOCK {
            return Err(FrameError::Checksum);
        }
        let (entries, _) =
            <[EntryLayout]>::ref_from_prefix_with_elems(rest, count as usize).map_err(|_| FrameError::Checksum)?;
        let entries = entries.iter().map(decode_entry).collect::<Result<_, _>>()?;
        Ok(Self { index: layout.index.get(), version: layout.version.get(), entries })
    }
}

fn decode_entry(layout: &EntryLayout) -> Result<ZoneEntry, FrameError> {
    let holder = match layout.state {
        STATE_FREE => None,
        STATE_HELD => Some(Holder {
            bucket: BucketId(layout.bucket.get()),
            epoch: Epoch(layout.epoch.get()),
            zone_set: ZoneSetId(layout.zone_set.get()),
            shard: layout.shard,
        }),
        _ => return Err(FrameError::Checksum),
    };
    Ok(ZoneEntry { generation: Generation(layout.generation.get()), holder })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::{DriveId, Uuid};

    #[test]
    fn what_is_encoded_is_decoded() {
        let me = Identity { uuid: Uuid(1), drive: DriveId(2) };
        let holder = Holder { bucket: BucketId(5), epoch: Epoch(6), zone_set: ZoneSetId(7), shard: 8 };
        let entries =
            (0..126).map(|n| ZoneEntry { generation: Generation(n), holder: (n % 3 == 0).then_some(holder) }).collect();
        let block = TableBlock { index: 4, version: 9, entries };
        assert_eq!(TableBlock::decode(&block.encode(me, 4096), me, 4096), Ok(block));
    }
}
