//! Requests to the core that owns a drive: its journal ring and its zones.
//!
//! Every answer that says "done" says so of durable media. Bodies: `Append` carries the payloads of its
//! records one after another; `WriteShard` the blocks; `ReadShard` and `ReadTail` answer with theirs.

use crate::*;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveRequest {
    pub cluster: Uuid,
    pub drive: DriveId,
    pub bucket: BucketId,
    pub op: DriveOp,
}

/// What a journal record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum RecordKind {
    /// A batch of index changes with the data they carry.
    Batch = 1,
    /// First record of an epoch; its payload is the adopted history.
    EpochStart = 2,
    /// Where the index can be found: an encoded root.
    Root = 3,
}

/// A record's place and frame. Records keep their (epoch, sequence) for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordHeader {
    pub epoch: Epoch,
    pub seq: Seq,
    pub kind: RecordKind,
    /// Highest sequence that the leader knew to stand on P+1 when it made the record.
    pub acknowledged: Seq,
    pub len_bytes: u32,
    /// CRC-32C over epoch, sequence, kind, acknowledged mark, bucket and payload.
    pub checksum: u32,
}

impl RecordHeader {
    /// The checksum that a record with these fields and this payload must carry: CRC-32C over the little-endian
    /// bucket (4 bytes), epoch (8), sequence (8), acknowledged mark (8), length (4), kind (1), then the payload.
    pub fn checksum_of<'a>(&self, bucket: BucketId, payload: impl IntoIterator<Item = &'a [u8]>) -> u32 {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&bucket.0.to_le_bytes());
        digest.update(&self.epoch.0.to_le_bytes());
        digest.update(&self.seq.0.to_le_bytes());
        digest.update(&self.acknowledged.0.to_le_bytes());
        digest.update(&self.len_bytes.to_le_bytes());
        digest.update(&[self.kind as u8]);
        for piece in payload {
            digest.update(piece);
        }
        // CRC-32C fills the low half of the digest.
        digest.finalize() as u32
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveOp {
    /// Makes records durable and, if `promise` is asked for, promises not to answer a higher seal for the lease time.
    /// With no records it is a beat. Records below `trim_below` are no longer needed, but for the newest root.
    /// `as_epoch` is the leader's; copies of older records keep their own epochs in the headers.
    Append { as_epoch: Epoch, records: Vec<RecordHeader>, trim_below: Seq, promise: bool },
    /// From now on grants nothing to epochs below; durable before it is answered, and not before the last promise has run out.
    Seal { epoch: Epoch },
    /// The records held from `from` on, as many as fit the answer.
    ReadTail { from: Seq, bytes_max: u32 },
    /// Hands out a free zone. The same (epoch, zone set, shard) asked again gives the same zone.
    OpenZone { epoch: Epoch, zone_set: ZoneSetId, shard: u8 },
    /// Gives a zone back. Only the current leader may. Freeing one that is free or of another generation is no error.
    FreeZone { epoch: Epoch, zone: ZoneIndex, generation: Generation },
    /// All zones that the bucket holds on this drive.
    ListZones,
    /// Writes whole blocks into a zone, once. `block` counts from the zone's start.
    WriteShard { epoch: Epoch, zone: ZoneIndex, generation: Generation, block: u32 },
    /// Reads whole blocks. A zone of another generation answers `Gone`.
    ReadShard { zone: ZoneIndex, generation: Generation, block: u32, blocks: u32 },
    /// Capacity and use.
    Stat,
    /// The leader of this epoch serves no more: what it was promised holds nobody back.
    Release { epoch: Epoch },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveReply {
    /// `promised`: the lease time counted from the leader's send time is granted.
    Appended {
        promised: bool,
    },
    /// The drive's view of the bucket's log at the time of the seal.
    Sealed {
        tail: TailSummary,
    },
    /// Bodies follow in the order of the headers. `more`: ask again from the sequence after the last.
    Tail {
        records: Vec<RecordHeader>,
        unreadable: Vec<Seq>,
        more: bool,
    },
    Zone {
        zone: ZoneIndex,
        generation: Generation,
        blocks: u32,
    },
    Freed,
    Zones(Vec<ZoneInfo>),
    Written,
    /// Blocks follow.
    Blocks,
    Stat(DriveStat),
    Released,
    Refused(DriveRefusal),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailSummary {
    /// Lowest and highest sequence held; `last` below `first` is an empty log.
    pub first: Seq,
    pub last: Seq,
    /// Highest acknowledged mark seen in any record.
    pub acknowledged: Seq,
    /// The newest root record held.
    pub root: Option<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneInfo {
    pub zone: ZoneIndex,
    pub generation: Generation,
    pub zone_set: ZoneSetId,
    pub shard: u8,
    pub epoch: Epoch,
    /// Blocks from its start that may have been written.
    pub written_blocks: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveStat {
    pub zones: u32,
    pub zones_free: u32,
    pub zone_bytes: u64,
    pub ring_bytes: u64,
    pub ring_used_bytes: u64,
    /// What this bucket's records take in the ring.
    pub ring_bucket_bytes: u64,
    pub read_errors: u64,
    pub write_errors: u64,
    pub checksum_errors: u64,
}

/// Why a drive did not do it. Each tells the leader what follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum DriveRefusal {
    #[error("the drive isn't on this core; refresh the map")]
    NotHere,
    #[error("the drive belongs to another cluster")]
    OtherCluster,
    #[error("sealed by {0}; step down")]
    Sealed(Epoch),
    #[error("a promise to the old leader still holds; ask again in {retry_ms} ms")]
    Promised { retry_ms: u32 },
    #[error("the zone is gone: it holds {0} now")]
    Gone(Generation),
    #[error("the location was written before; open another zone set")]
    WrittenBefore,
    #[error("the zone was opened before the drive's restart or by another epoch; open another zone set")]
    ZoneClosed,
    #[error("no free zone")]
    NoZone,
    #[error("the bucket's share of the journal ring is full; checkpoint and trim")]
    RingFull,
    #[error("the request is out of bounds: {0}")]
    Bounds(String),
    #[error("the drive failed: {0}")]
    Io(String),
    #[error("the drive fails altogether: {0}")]
    Failing(String),
}
