//! The on-drive format, version 1: what each structure looks like in bytes, and nothing that does I/O.

pub mod config;
pub mod frame;
pub mod geometry;
pub mod group;
pub mod superblock;
pub mod zone_table;

pub use frame::{Frame, FrameError, Identity};
pub use geometry::{Geometry, GeometryError};

use crc_fast::{CrcAlgorithm::Crc32Iscsi, checksum};
use weft_wire::limits::BLOCK_BYTES;

/// CRC-32C.
pub fn crc32c(data: &[u8]) -> u32 {
    // The algorithm's width is 32 bits: the upper half of the result is 0.
    checksum(Crc32Iscsi, data) as u32
}

/// `bytes` rounded up to whole blocks.
pub fn whole_blocks(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}
