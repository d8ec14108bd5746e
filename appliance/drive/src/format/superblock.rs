//! Whose drive this is and where its regions lie. Two copies: the first and the last block.

use super::frame::{self, Frame, FrameError, Identity};
use super::geometry::{Geometry, GeometryError};
use serde::Serialize;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{DriveId, NodeId, Uuid};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAGIC: &[u8; 8] = b"WEFT.sup";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    frame: Frame,
    cluster: U128,
    node: U16,
    reserved: [U16; 3],
    capacity_bytes: U64,
    config_offset: U64,
    slot_bytes: U64,
    zone_table_offset: U64,
    zone_table_blocks: U32,
    segments: U32,
    ring_offset: U64,
    segment_bytes: U64,
    zones_offset: U64,
    zone_bytes: U64,
    zones: U32,
    reserved_end: U32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Superblock {
    pub cluster: Uuid,
    pub node: NodeId,
    pub drive: DriveId,
    /// Fresh for each formatting: tells leftovers of an earlier one from what belongs to this one.
    pub uuid: Uuid,
    pub geometry: Geometry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Geometry(#[from] GeometryError),
}

impl Superblock {
    pub fn identity(&self) -> Identity {
        Identity { uuid: self.uuid, drive: self.drive }
    }

    /// One block, for this position.
    pub fn encode(&self, position: u64) -> Vec<u8> {
        let geometry = &self.geometry;
        let blank = Layout::new_zeroed();
        let layout = Layout {
            cluster: self.cluster.0.into(),
            node: self.node.0.into(),
            capacity_bytes: geometry.capacity_bytes.into(),
            config_offset: geometry.config_offset.into(),
            slot_bytes: geometry.slot_bytes.into(),
            zone_table_offset: geometry.zone_table_offset.into(),
            zone_table_blocks: geometry.zone_table_blocks.into(),
            segments: geometry.segments.into(),
            ring_offset: geometry.ring_offset.into(),
            segment_bytes: geometry.segment_bytes.into(),
            zones_offset: geometry.zones_offset.into(),
            zone_bytes: geometry.zone_bytes.into(),
            zones: geometry.zones.into(),
            ..blank
        };
        let mut block = vec![0; BLOCK_BYTES];
        block[..size_of::<Layout>()].copy_from_slice(layout.as_bytes());
        frame::seal(&mut block, MAGIC, self.identity(), position);
        block
    }

    pub fn decode(block: &[u8], position: u64) -> Result<Self, SuperblockError> {
        let covered = frame::open(block, MAGIC, None, position)?;
        let (layout, _) = Layout::ref_from_prefix(covered).map_err(|_| FrameError::Checksum)?;
        let geometry = Geometry {
            capacity_bytes: layout.capacity_bytes.get(),
            config_offset: layout.config_offset.get(),
            slot_bytes: layout.slot_bytes.get(),
            zone_table_offset: layout.zone_table_offset.get(),
            zone_table_blocks: layout.zone_table_blocks.get(),
            ring_offset: layout.ring_offset.get(),
            segment_bytes: layout.segment_bytes.get(),
            segments: layout.segments.get(),
            zones_offset: layout.zones_offset.get(),
            zone_bytes: layout.zone_bytes.get(),
            zones: layout.zones.get(),
        };
        geometry.check()?;
        Ok(Self {
            cluster: Uuid(layout.cluster.get()),
            node: NodeId(layout.node.get()),
            drive: DriveId(layout.frame.drive.get()),
            uuid: Uuid(layout.frame.uuid.get()),
            geometry,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let superblock = Superblock {
            cluster: Uuid(0x1234_5678_9abc_def0_1122_3344_5566_7788),
            node: NodeId(5),
            drive: DriveId(9),
            uuid: Uuid(77),
            geometry: Geometry::for_capacity(256 << 20).unwrap(),
        };
        let last = superblock.geometry.superblock_offsets()[1];
        assert_eq!(Superblock::decode(&superblock.encode(last), last), Ok(superblock));
        assert!(Superblock::decode(&superblock.encode(last), 0).is_err());
    }
}
