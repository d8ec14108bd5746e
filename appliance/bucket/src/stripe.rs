//! A stripe: D+P shards of r blocks each, written once. How its blocks are laid out, checked and made again.

use crate::key::Object;
use crate::zone_set::{Kind, Member, Place, ZoneSet};
use crate::zones::ZoneTable;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::rc::Rc;
use weft_erasure::Code;
use weft_reactor::sync::Notify;
use weft_wire::limits::{BLOCK_BYTES, STRIPE_ROWS_MAX};
use weft_wire::map::Protection;
use weft_wire::{FsId, InodeId, StripeId, ZoneSetId};

/// CRC-32C of one block.
pub fn checksum(block: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, block) as u32
}

/// Where a stripe is and what each of its blocks must be. Kept until the stripe is freed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeRecord {
    pub zone_set: ZoneSetId,
    pub row: u32,
    pub rows: u32,
    /// Of all D+P shards, one shard after another.
    #[serde(with = "packed")]
    pub checksums: Vec<u32>,
    /// Whose blocks these were when it was written.
    pub owners: Vec<Owner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub fs: FsId,
    pub inode: InodeId,
    pub first: u64,
    /// Data block of the stripe.
    pub block: u32,
    pub blocks: u32,
}

impl Owner {
    pub fn object(&self) -> Object {
        Object { fs: self.fs, inode: self.inode }
    }
}

/// Checksums are as good as random: four bytes each, not a variable-length number of five.
pub(crate) mod packed {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub fn serialize<S: Serializer>(checksums: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = checksums.iter().flat_map(|checksum| checksum.to_le_bytes()).collect();
        bytes::Bytes::from(bytes).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
        let bytes = bytes::Bytes::deserialize(deserializer)?;
        if bytes.len() % 4 != 0 {
            return Err(D::Error::custom("checksums of no whole number"));
        }
        Ok(bytes.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
    }
}

/// Rows in which a stripe is being written. While this lives, their zone set isn't freed: it lives until the stripe is
/// in the table, or given up by whoever wrote it, even half way.
#[derive(Debug)]
pub(crate) struct Claim {
    place: Place,
    zones: Rc<RefCell<ZoneTable>>,
    work: Notify,
}

impl Claim {
    pub fn new(place: Place, zones: &Rc<RefCell<ZoneTable>>, work: &Notify) -> Self {
        Self { place, zones: Rc::clone(zones), work: work.clone() }
    }

    pub fn place(&self) -> Place {
        self.place
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut zones = self.zones.borrow_mut();
        if zones.settle(self.place) || zones.has_freeable() {
            self.work.notify_one();
        }
    }
}

/// A stripe that is durable on all members and not yet named by any record: it doesn't exist until a batch places it.
/// Dropped unplaced, its space is free again.
#[derive(Debug)]
pub struct Staged {
    pub(crate) place: Place,
    pub(crate) _claim: Claim,
    pub(crate) rows: u32,
    pub(crate) kind: Kind,
    pub(crate) data_blocks: u32,
    pub(crate) checksums: Vec<u32>,
}

impl Staged {
    pub fn stripe(&self) -> StripeId {
        self.place.stripe
    }

    pub fn data_blocks(&self) -> u32 {
        self.data_blocks
    }
}

/// Data blocks that one stripe can hold.
pub fn blocks_max(protection: Protection) -> u32 {
    u32::from(protection.data) * STRIPE_ROWS_MAX
}

/// All shards of a stripe in memory.
pub struct Encoded {
    pub rows: u32,
    pub shards: Vec<Bytes>,
    pub checksums: Vec<u32>,
}

/// Cuts `data` (whole blocks, at most [`blocks_max`]) into shards and computes parity. Shards that lie within `data` are not copied.
pub fn encode(code: &Code, protection: Protection, data: &Bytes) -> Encoded {
    let blocks = (data.len() / BLOCK_BYTES) as u32;
    let rows = blocks.div_ceil(u32::from(protection.data)).max(1);
    let shard_bytes = rows as usize * BLOCK_BYTES;
    let mut shards: Vec<Bytes> = Vec::with_capacity(protection.shards());
    for i in 0..usize::from(protection.data) {
        let from = (i * shard_bytes).min(data.len());
        let to = (from + shard_bytes).min(data.len());
        if to - from == shard_bytes {
            shards.push(data.slice(from..to));
        } else {
            let mut padded = weft_reactor::buf::AlignedBuf::with_len(shard_bytes);
            padded.as_mut_slice()[..to - from].copy_from_slice(&data[from..to]);
            shards.push(padded.freeze());
        }
    }
    let mut parity: Vec<_> =
        (0..protection.parity).map(|_| weft_reactor::buf::AlignedBuf::unfilled(shard_bytes)).collect();
    {
        let inputs: Vec<&[u8]> = shards.iter().map(|shard| &shard[..]).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(|shard| shard.as_mut_slice()).collect();
        code.encode(&inputs, &mut outputs);
    }
    shards.extend(parity.into_iter().map(|shard| shard.freeze()));
    let checksums = shards.iter().flat_map(|shard| shard.chunks_exact(BLOCK_BYTES).map(checksum)).collect();
    Encoded { rows, shards, checksums }
}

/// A run of rows of one shard that holds wanted data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub shard: usize,
    /// Counted from the stripe's first row.
    pub row: u32,
    pub rows: u32,
}

/// Which rows of which shards hold data blocks `block..block + blocks` of a stripe of height `height`.
pub fn pieces(height: u32, block: u32, blocks: u32) -> Vec<Piece> {
    let mut found = Vec::new();
    let mut at = block;
    while at < block + blocks {
        let shard = at / height;
        let row = at % height;
        let rows = (height - row).min(block + blocks - at);
        found.push(Piece { shard: shard as usize, row, rows });
        at += rows;
    }
    found
}

/// A stripe's place as a reader needs it.
#[derive(Clone, Debug)]
pub struct StripeView {
    pub id: StripeId,
    pub set: ZoneSet,
    pub row: u32,
    pub rows: u32,
    pub checksums: Rc<Vec<u32>>,
}

impl StripeView {
    /// What it takes of the memory budget, about.
    pub fn bytes(&self) -> usize {
        128 + self.checksums.len() * 4 + self.set.members.len() * size_of::<Option<Member>>()
    }

    /// Whether `data` is what was written to these rows of a shard.
    pub fn verify(&self, piece: Piece, data: &[u8]) -> bool {
        if data.len() != piece.rows as usize * BLOCK_BYTES {
            return false;
        }
        let first = piece.shard * self.rows as usize + piece.row as usize;
        let Some(expected) = self.checksums.get(first..first + piece.rows as usize) else { return false };
        data.chunks_exact(BLOCK_BYTES).zip(expected).all(|(block, expected)| checksum(block) == *expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_the_shards() {
        assert_eq!(pieces(64, 60, 10), [Piece { shard: 0, row: 60, rows: 4 }, Piece { shard: 1, row: 0, rows: 6 }]);
        assert_eq!(pieces(1, 2, 2), [Piece { shard: 2, row: 0, rows: 1 }, Piece { shard: 3, row: 0, rows: 1 }]);
    }
}
