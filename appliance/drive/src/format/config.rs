//! Configuration slots: small files (the map, the consensus' state) that are replaced as a whole.
//! Two copies each; the older one is overwritten, so that a crash leaves the other.

use super::frame::{self, Frame, FrameError, Identity};
use weft_wire::limits::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAGIC: &[u8; 8] = b"WEFT.cfg";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    frame: Frame,
    /// Rises with each store; the copy with the higher one counts.
    generation: U64,
    content_bytes: U64,
    content_crc: U32,
    slot: U32,
}

/// Header of one copy; the content follows in the next block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigHeader {
    pub slot: u8,
    pub generation: u64,
    pub content_bytes: u64,
    pub content_crc: u32,
}

impl ConfigHeader {
    pub fn encode(&self, identity: Identity, position: u64) -> Vec<u8> {
        let layout = Layout {
            frame: Frame::new_zeroed(),
            generation: self.generation.into(),
            content_bytes: self.content_bytes.into(),
            content_crc: self.content_crc.into(),
            slot: u32::from(self.slot).into(),
        };
        let mut block = vec![0; BLOCK_BYTES];
        block[..size_of::<Layout>()].copy_from_slice(layout.as_bytes());
        frame::seal(&mut block, MAGIC, identity, position);
        block
    }

    pub fn decode(block: &[u8], identity: Identity, position: u64) -> Result<Self, FrameError> {
        let covered = frame::open(block, MAGIC, Some(identity), position)?;
        let (layout, _) = Layout::ref_from_prefix(covered).map_err(|_| FrameError::Checksum)?;
        Ok(Self {
            slot: u8::try_from(layout.slot.get()).map_err(|_| FrameError::Checksum)?,
            generation: layout.generation.get(),
            content_bytes: layout.content_bytes.get(),
            content_crc: layout.content_crc.get(),
        })
    }
}
