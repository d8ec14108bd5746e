//! One write to the journal ring: a header, an entry for each record, then the payloads.
//!
//! A group begins on a block. Small payloads follow the entries at once; each large one begins on a block of
//! its own, so that it goes to the drive from where it lies. The header's checksum covers header and entries;
//! each record's own covers its payload, so that a damaged payload costs one record and not the group.

use super::frame::{self, FRAME_BYTES, Frame, FrameError, Identity};
use weft_wire::drive::{RecordHeader, RecordKind};
use weft_wire::{BucketId, Epoch, Incarnation, Seq};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const MAGIC: &[u8; 8] = b"WEFT.grp";
pub const HEADER_BYTES: usize = 96;
pub const ENTRY_BYTES: usize = 64;
/// Entries in one group.
pub const ENTRIES_MAX: usize = 512;
/// Kind of an entry that carries no record but what the drive knows of a bucket.
const KIND_STATE: u8 = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Layout {
    frame: Frame,
    incarnation: U64,
    serial: U64,
    number: U64,
    oldest_serial: U64,
    total_bytes: U64,
    entries: U16,
    reserved: [U16; 3],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryLayout {
    seq: U64,
    epoch: U64,
    acknowledged: U64,
    as_epoch: U64,
    trim_below: U64,
    bucket: U32,
    payload_bytes: U32,
    checksum: U32,
    payload_offset: U32,
    kind: u8,
    reserved: [u8; 7],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupHeader {
    /// Of the process that wrote it.
    pub incarnation: Incarnation,
    /// The segment's serial number; it gives the segment's place.
    pub serial: u64,
    /// Rises by one from group to group.
    pub number: u64,
    /// Segments with lower serial numbers hold nothing that is still needed.
    pub oldest_serial: u64,
    /// The whole group with its payloads: a multiple of 4 KiB.
    pub total_bytes: u64,
    pub entries: u16,
}

impl GroupHeader {
    /// Header and entries.
    pub fn covered_bytes(&self) -> usize {
        HEADER_BYTES + usize::from(self.entries) * ENTRY_BYTES
    }
}

/// What a drive knows of a bucket beside its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BucketState {
    /// Nothing is granted to lower epochs.
    pub fence: Epoch,
    pub trim_below: Seq,
    /// Highest acknowledged mark seen.
    pub acknowledged: Seq,
    /// Sequences up to this one that aren't held may have been, and were damaged.
    pub lost_through: Seq,
}

/// A record in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordEntry {
    pub header: RecordHeader,
    /// Epoch of the leader that wrote this copy.
    pub as_epoch: Epoch,
    pub trim_below: Seq,
    /// From the start of the group.
    pub payload_offset: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    Record(RecordEntry),
    State(BucketState),
}

/// Header and entries of a group as one checksummed structure; payloads are the caller's.
pub fn encode(header: &GroupHeader, entries: &[(BucketId, Entry)], identity: Identity, position: u64) -> Vec<u8> {
    assert!(entries.len() <= ENTRIES_MAX && entries.len() == usize::from(header.entries), "{} entries", entries.len());
    let layout = Layout {
        frame: Frame::new_zeroed(),
        incarnation: header.incarnation.0.into(),
        serial: header.serial.into(),
        number: header.number.into(),
        oldest_serial: header.oldest_serial.into(),
        total_bytes: header.total_bytes.into(),
        entries: header.entries.into(),
        reserved: [0.into(); 3],
    };
    let mut bytes = Vec::with_capacity(header.covered_bytes());
    bytes.extend_from_slice(layout.as_bytes());
    for (bucket, entry) in entries {
        bytes.extend_from_slice(encode_entry(*bucket, entry).as_bytes());
    }
    frame::seal(&mut bytes, MAGIC, identity, position);
    bytes
}

fn encode_entry(bucket: BucketId, entry: &Entry) -> EntryLayout {
    let blank = EntryLayout { bucket: bucket.0.into(), ..EntryLayout::new_zeroed() };
    match entry {
        Entry::Record(record) => EntryLayout {
            seq: record.header.seq.0.into(),
            epoch: record.header.epoch.0.into(),
            acknowledged: record.header.acknowledged.0.into(),
            as_epoch: record.as_epoch.0.into(),
            trim_below: record.trim_below.0.into(),
            payload_bytes: record.header.len_bytes.into(),
            checksum: record.header.checksum.into(),
            payload_offset: record.payload_offset.into(),
            kind: record.header.kind as u8,
            ..blank
        },
        Entry::State(state) => EntryLayout {
            seq: state.lost_through.0.into(),
            acknowledged: state.acknowledged.0.into(),
            as_epoch: state.fence.0.into(),
            trim_below: state.trim_below.0.into(),
            kind: KIND_STATE,
            ..blank
        },
    }
}

/// How many bytes [`decode`] needs to see of the group that starts here.
pub fn covered_bytes(block: &[u8]) -> Result<usize, FrameError> {
    let covered = frame::peek_covered(block, MAGIC)?;
    let most = HEADER_BYTES + ENTRIES_MAX * ENTRY_BYTES;
    if (HEADER_BYTES..=most).contains(&covered) { Ok(covered) } else { Err(FrameError::Checksum) }
}

/// Checks and decodes header and entries. `position` is where they were read.
pub fn decode(
    bytes: &[u8],
    identity: Identity,
    position: u64,
) -> Result<(GroupHeader, Vec<(BucketId, Entry)>), FrameError> {
    let covered = frame::open(bytes, MAGIC, Some(identity), position)?;
    let (layout, rest) = Layout::ref_from_prefix(covered).map_err(|_| FrameError::Checksum)?;
    let count = usize::from(layout.entries.get());
    let (entries, excess) =
        <[EntryLayout]>::ref_from_prefix_with_elems(rest, count).map_err(|_| FrameError::Checksum)?;
    let total_bytes = layout.total_bytes.get();
    if !excess.is_empty() || count > ENTRIES_MAX || total_bytes % 4096 != 0 || total_bytes < covered.len() as u64 {
        return Err(FrameError::Checksum);
    }
    let entries = entries.iter().map(|entry| decode_entry(entry, total_bytes)).collect::<Result<_, _>>()?;
    let header = GroupHeader {
        incarnation: Incarnation(layout.incarnation.get()),
        serial: layout.serial.get(),
        number: layout.number.get(),
        oldest_serial: layout.oldest_serial.get(),
        total_bytes,
        entries: count as u16,
    };
    Ok((header, entries))
}

fn decode_entry(layout: &EntryLayout, total_bytes: u64) -> Result<(BucketId, Entry), FrameError> {
    let bucket = BucketId(layout.bucket.get());
    let kind = match layout.kind {
        1 => RecordKind::Batch,
        2 => RecordKind::EpochStart,
        3 => RecordKind::Root,
        KIND_STATE => {
            let state = BucketState {
                fence: Epoch(layout.as_epoch.get()),
                trim_below: Seq(layout.trim_below.get()),
                acknowledged: Seq(layout.acknowledged.get()),
                lost_through: Seq(layout.seq.get()),
            };
            return Ok((bucket, Entry::State(state)));
        }
        _ => return Err(FrameError::Checksum),
    };
    if u64::from(layout.payload_offset.get()) + u64::from(layout.payload_bytes.get()) > total_bytes {
        return Err(FrameError::Checksum);
    }
    let record = RecordEntry {
        header: RecordHeader {
            epoch: Epoch(layout.epoch.get()),
            seq: Seq(layout.seq.get()),
            kind,
            acknowledged: Seq(layout.acknowledged.get()),
            len_bytes: layout.payload_bytes.get(),
            checksum: layout.checksum.get(),
        },
        as_epoch: Epoch(layout.as_epoch.get()),
        trim_below: Seq(layout.trim_below.get()),
        payload_offset: layout.payload_offset.get(),
    };
    Ok((bucket, Entry::Record(record)))
}

const _: () = assert!(size_of::<Layout>() == HEADER_BYTES && size_of::<EntryLayout>() == ENTRY_BYTES);
const _: () = assert!(size_of::<Frame>() == FRAME_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::{DriveId, Uuid};

    #[test]
    fn what_is_encoded_is_decoded() {
        let me = Identity { uuid: Uuid(1), drive: DriveId(2) };
        let record = RecordEntry {
            header: RecordHeader {
                epoch: Epoch(3),
                seq: Seq(4),
                kind: RecordKind::Root,
                acknowledged: Seq(2),
                len_bytes: 100,
                checksum: 5,
            },
            as_epoch: Epoch(6),
            trim_below: Seq(1),
            payload_offset: 224,
        };
        let state = BucketState { fence: Epoch(9), trim_below: Seq(8), acknowledged: Seq(7), lost_through: Seq(6) };
        let entries = vec![(BucketId(1), Entry::Record(record)), (BucketId(2), Entry::State(state))];
        let header = GroupHeader {
            incarnation: Incarnation(1),
            serial: 2,
            number: 3,
            oldest_serial: 1,
            total_bytes: 4096,
            entries: 2,
        };
        let bytes = encode(&header, &entries, me, 4096);
        assert_eq!(covered_bytes(&bytes), Ok(bytes.len()));
        assert_eq!(decode(&bytes, me, 4096), Ok((header, entries)));
        assert!(decode(&bytes[..bytes.len() - 1], me, 4096).is_err());
    }
}
