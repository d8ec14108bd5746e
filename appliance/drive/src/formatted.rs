//! A drive that carries the on-drive format: formatting it, opening it, and its configuration slots.

use crate::device::{Drive, DriveError, outcome};
use crate::format::config::ConfigHeader;
use crate::format::frame::FrameError;
use crate::format::superblock::{Superblock, SuperblockError};
use crate::format::zone_table::{TableBlock, ZoneEntry};
use crate::format::{Geometry, GeometryError, crc32c, whole_blocks};
use crate::ring::scan::{RingContent, scan_ring};
use crate::zones::{TableContent, load_table};
use bytes::Bytes;
use std::cell::RefCell;
use std::rc::Rc;
use weft_reactor::sync::Mutex;
use weft_reactor::{AlignedBuf, join_all};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{DriveId, NodeId, Uuid};

/// How much at either end must be zero for a drive to count as blank.
const BLANK_BYTES: usize = 64 << 10;
/// Of one write that fills.
const FILL_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    pub cluster: Uuid,
    pub node: NodeId,
    pub drive: DriveId,
    /// Must be fresh for each formatting: it tells leftovers of an earlier one from what is written now.
    pub uuid: Uuid,
    /// Overwrites whatever is on the drive, also another cluster's data.
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    #[error("the drive belongs to cluster {cluster} as {drive}; formatting it would destroy that data")]
    InUse { cluster: Uuid, drive: DriveId },
    #[error("the drive isn't blank: its first or last 64 KiB hold data that isn't Weft's")]
    NotBlank,
    #[error(transparent)]
    Drive(#[from] DriveError),
}

/// Why a drive can't be used. The drive is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("the drive is blank: it was never formatted, or its formatting was interrupted")]
    Blank,
    #[error("the drive holds data that isn't Weft's")]
    Foreign,
    #[error("the drive has format version {0}; this program reads version {version}", version = crate::format::frame::VERSION)]
    Version(u16),
    #[error("both superblocks are torn or corrupt")]
    Torn,
    #[error("the drive has {actual_bytes} bytes but was formatted with {expected_bytes}: it was truncated or replaced")]
    Truncated { expected_bytes: u64, actual_bytes: u64 },
    #[error("the zone table is damaged in both copies of block {block}")]
    ZoneTable { block: u32 },
    #[error(
        "a copy of block {block} of the zone table, which may be the newer one, can't be read ({error}); replace the drive"
    )]
    ZoneTableUnreadable { block: u32, error: DriveError },
    #[error(transparent)]
    Drive(#[from] DriveError),
}

/// Names the configuration slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ConfigSlot {
    Map = 0,
    Raft = 1,
    RaftLog = 2,
    RaftSnapshot = 3,
    Node = 4,
    Events = 5,
}

impl ConfigSlot {
    pub const ALL: [Self; 6] = [Self::Map, Self::Raft, Self::RaftLog, Self::RaftSnapshot, Self::Node, Self::Events];
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{bytes} bytes don't fit configuration slot {slot:?}, which takes {bytes_max}")]
    TooLarge { slot: ConfigSlot, bytes: usize, bytes_max: u64 },
    #[error("both copies of configuration slot {slot:?} are damaged")]
    Damaged { slot: ConfigSlot },
    #[error("a copy of configuration slot {slot:?}, which may be the newer one, can't be read: {error}")]
    Unreadable { slot: ConfigSlot, error: DriveError },
    #[error(transparent)]
    Drive(#[from] DriveError),
}

/// Which copy of a slot is the newest intact one, once that is known.
#[derive(Clone, Copy)]
struct Newest {
    copy: usize,
    generation: u64,
}

enum SlotState {
    Unread,
    Empty,
    Stored(Newest),
}

/// An opened drive. What lies in its ring and its zones is served by a [`DriveServer`](crate::DriveServer).
pub struct FormattedDrive {
    drive: Rc<dyn Drive>,
    superblock: Superblock,
    slots: [Mutex<SlotState>; ConfigSlot::ALL.len()],
    content: RefCell<Option<DriveContent>>,
}

/// What opening found; it goes to the one server of the drive.
pub(crate) struct DriveContent {
    pub(crate) ring: RingContent,
    pub(crate) table: TableContent,
}

impl FormattedDrive {
    /// Writes an empty format. A crash in the middle leaves a drive that opens as blank.
    pub async fn format(drive: &Rc<dyn Drive>, options: FormatOptions) -> Result<(), FormatError> {
        let capacity = drive.capacity_bytes();
        let geometry = Geometry::for_capacity(capacity)?;
        if !options.force {
            match read_superblock(drive.as_ref()).await {
                Ok(found) => return Err(FormatError::InUse { cluster: found.cluster, drive: found.drive }),
                Err(OpenError::Drive(error)) => return Err(error.into()),
                Err(_) if !ends_are_zero(drive.as_ref(), &geometry).await? => return Err(FormatError::NotBlank),
                Err(_) => {}
            }
        }
        let superblock = Superblock {
            cluster: options.cluster,
            node: options.node,
            drive: options.drive,
            uuid: options.uuid,
            geometry,
        };
        let zeros = AlignedBuf::with_len(BLOCK_BYTES).freeze();
        for offset in geometry.superblock_offsets() {
            outcome(drive.write_durable(offset, vec![zeros.clone()])).await?;
        }
        write_empty_regions(drive.as_ref(), &superblock, &zeros).await?;
        let [first, last] = geometry.superblock_offsets();
        for offset in [last, first] {
            outcome(drive.write_durable(offset, vec![aligned(&superblock.encode(offset))])).await?;
        }
        Ok(())
    }

    /// Reads what is on the drive. Repairs a damaged copy of the superblock; writes nothing else.
    pub async fn open(drive: Rc<dyn Drive>) -> Result<Rc<Self>, OpenError> {
        // What an earlier process wrote and nobody flushed must not vanish after it was seen.
        outcome(drive.flush()).await?;
        let superblock = read_superblock(drive.as_ref()).await?;
        repair_superblocks(drive.as_ref(), &superblock).await?;
        let table = load_table(drive.as_ref(), &superblock).await?;
        let ring = scan_ring(drive.as_ref(), &superblock).await?;
        tracing::debug!(drive = %superblock.drive, groups = ring.groups, lost = ring.lost_groups, "opened");
        let slots = std::array::from_fn(|_| Mutex::new(SlotState::Unread));
        let content = RefCell::new(Some(DriveContent { ring, table }));
        Ok(Rc::new(Self { drive, superblock, slots, content }))
    }

    /// Whether the drive reads nothing: not even a superblock. What is on it may be there again when it works again; a block that
    /// alone can't be read is lost.
    pub(crate) async fn is_unreadable(&self) -> bool {
        for offset in self.superblock.geometry.superblock_offsets() {
            if outcome(self.drive.read(offset, BLOCK_BYTES)).await.is_ok() {
                return false;
            }
        }
        true
    }

    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    pub fn cluster(&self) -> Uuid {
        self.superblock.cluster
    }

    pub fn id(&self) -> DriveId {
        self.superblock.drive
    }

    pub(crate) fn device(&self) -> &Rc<dyn Drive> {
        &self.drive
    }

    /// The first caller gets it.
    pub(crate) fn take_content(&self) -> Option<DriveContent> {
        self.content.borrow_mut().take()
    }

    /// Replaces the content of a slot; durable when it returns. A crash leaves the old or the new content.
    pub async fn config_store(&self, slot: ConfigSlot, content: &[u8]) -> Result<(), ConfigError> {
        let bytes_max = self.geometry().slot_bytes;
        if content.len() as u64 > bytes_max {
            return Err(ConfigError::TooLarge { slot, bytes: content.len(), bytes_max });
        }
        let mut state = self.slots[slot as usize].lock().await;
        if matches!(*state, SlotState::Unread) {
            *state = match self.find_newest(slot).await {
                Ok(Some((newest, _))) => SlotState::Stored(newest),
                Ok(None) => SlotState::Empty,
                Err(ConfigError::Damaged { .. }) => SlotState::Empty,
                Err(error) => return Err(error),
            };
        }
        let newest = match *state {
            SlotState::Stored(newest) => {
                let next = Newest { copy: 1 - newest.copy, generation: newest.generation + 1 };
                self.write_copy(slot, next, content).await?;
                next
            }
            // The first store writes both copies, so that one that is damaged later is known to be damaged.
            SlotState::Unread | SlotState::Empty => {
                let first = Newest { copy: 0, generation: 1 };
                let second = Newest { copy: 1, generation: 2 };
                self.write_copy(slot, first, content).await?;
                self.write_copy(slot, second, content).await?;
                second
            }
        };
        *state = SlotState::Stored(newest);
        Ok(())
    }

    /// The newest intact content of a slot; `None` if none was ever stored.
    pub async fn config_load(&self, slot: ConfigSlot) -> Result<Option<Bytes>, ConfigError> {
        let mut state = self.slots[slot as usize].lock().await;
        let found = self.find_newest(slot).await?;
        *state = found.as_ref().map_or(SlotState::Empty, |(newest, _)| SlotState::Stored(*newest));
        Ok(found.map(|(_, content)| content))
    }

    async fn write_copy(&self, slot: ConfigSlot, newest: Newest, content: &[u8]) -> Result<(), DriveError> {
        let offset = self.geometry().config_copy_offset(slot as u8, newest.copy);
        let header = ConfigHeader {
            slot: slot as u8,
            generation: newest.generation,
            content_bytes: content.len() as u64,
            content_crc: crc32c(content),
        };
        let mut buffer = AlignedBuf::with_len(BLOCK_BYTES + whole_blocks(content.len()));
        let (head, rest) = buffer.as_mut_slice().split_at_mut(BLOCK_BYTES);
        head.copy_from_slice(&header.encode(self.superblock.identity(), offset));
        rest[..content.len()].copy_from_slice(content);
        outcome(self.drive.write_durable(offset, vec![buffer.freeze()])).await
    }

    /// A torn copy was never finished. One that can't be read may be the newest: what a manager promised must not be forgotten.
    async fn find_newest(&self, slot: ConfigSlot) -> Result<Option<(Newest, Bytes)>, ConfigError> {
        let unreadable = |error: DriveError| match error {
            DriveError::Failed { .. } => ConfigError::Unreadable { slot, error },
            error => error.into(),
        };
        let mut copies = [Err(FrameError::Zero), Err(FrameError::Zero)];
        for (copy, header) in copies.iter_mut().enumerate() {
            let read = read_config_header(self.drive.as_ref(), &self.superblock, slot, copy).await;
            *header = read.map_err(unreadable)?;
        }
        let mut intact: Vec<(usize, ConfigHeader)> =
            copies.iter().enumerate().filter_map(|(copy, header)| Some((copy, *header.as_ref().ok()?))).collect();
        intact.sort_by_key(|(_, header)| std::cmp::Reverse(header.generation));
        for (copy, header) in intact {
            if let Some(content) = self.read_content(slot, copy, &header).await.map_err(unreadable)? {
                return Ok(Some((Newest { copy, generation: header.generation }, content)));
            }
        }
        // The second copy is written only after the first was durable.
        let never_stored = matches!(copies[1], Err(FrameError::Zero));
        if never_stored { Ok(None) } else { Err(ConfigError::Damaged { slot }) }
    }

    async fn read_content(
        &self,
        slot: ConfigSlot,
        copy: usize,
        header: &ConfigHeader,
    ) -> Result<Option<Bytes>, DriveError> {
        if header.slot != slot as u8 || header.content_bytes > self.geometry().slot_bytes {
            return Ok(None);
        }
        let len = header.content_bytes as usize;
        if len == 0 {
            return Ok(Some(Bytes::new()));
        }
        let offset = self.geometry().config_copy_offset(slot as u8, copy) + BLOCK_BYTES as u64;
        let content = outcome(self.drive.read(offset, whole_blocks(len))).await?;
        Ok(Some(content.slice(..len)).filter(|content| crc32c(content) == header.content_crc))
    }
}

/// The header of one copy of a slot.
pub(crate) async fn read_config_header(
    drive: &dyn Drive,
    superblock: &Superblock,
    slot: ConfigSlot,
    copy: usize,
) -> Result<Result<ConfigHeader, FrameError>, DriveError> {
    let offset = superblock.geometry.config_copy_offset(slot as u8, copy);
    let block = outcome(drive.read(offset, BLOCK_BYTES)).await?;
    Ok(ConfigHeader::decode(&block, superblock.identity(), offset))
}

fn aligned(bytes: &[u8]) -> Bytes {
    AlignedBuf::copy_of(bytes).freeze()
}

async fn ends_are_zero(drive: &dyn Drive, geometry: &Geometry) -> Result<bool, DriveError> {
    for offset in [0, geometry.capacity_bytes - BLANK_BYTES as u64] {
        let content = outcome(drive.read(offset, BLANK_BYTES)).await?;
        if content.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn write_empty_regions(drive: &dyn Drive, superblock: &Superblock, zeros: &Bytes) -> Result<(), DriveError> {
    let geometry = &superblock.geometry;
    let mut writes = Vec::new();
    for slot in 0..crate::format::geometry::CONFIG_SLOTS {
        for copy in 0..2 {
            writes.push(drive.write(geometry.config_copy_offset(slot, copy), vec![zeros.clone()]));
        }
    }
    // Each group of records is made durable by itself. In a sparse file that would be a change to the host's filesystem
    // each time, so its journal ring is written once as a whole.
    let empty_bytes = if drive.is_sparse() { geometry.segment_bytes } else { BLOCK_BYTES as u64 };
    let empty = AlignedBuf::with_len(empty_bytes.min(FILL_BYTES) as usize).freeze();
    for serial in 0..u64::from(geometry.segments) {
        for at in (0..empty_bytes).step_by(empty.len()) {
            let piece = empty.slice(..empty.len().min((empty_bytes - at) as usize));
            writes.push(drive.write(geometry.segment_offset(serial) + at, vec![piece]));
        }
    }
    for index in 0..geometry.zone_table_blocks {
        let first = index * crate::format::geometry::ZONES_PER_TABLE_BLOCK;
        let count = geometry.zones.saturating_sub(first).min(crate::format::geometry::ZONES_PER_TABLE_BLOCK);
        let block = TableBlock { index, version: 1, entries: vec![ZoneEntry::default(); count as usize] };
        let offset = geometry.zone_table_copy_offset(index, 0);
        writes.push(drive.write(offset, vec![aligned(&block.encode(superblock.identity(), offset))]));
        writes.push(drive.write(geometry.zone_table_copy_offset(index, 1), vec![zeros.clone()]));
    }
    for written in join_all(writes.into_iter().map(outcome)).await {
        written?;
    }
    outcome(drive.flush()).await
}

/// The superblock that counts, from either copy.
pub(crate) async fn read_superblock(drive: &dyn Drive) -> Result<Superblock, OpenError> {
    let actual_bytes = drive.capacity_bytes();
    let whole = actual_bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    if whole == 0 {
        return Err(OpenError::Blank);
    }
    let mut problem = None;
    for offset in [0, whole - BLOCK_BYTES as u64] {
        let decoded = match outcome(drive.read(offset, BLOCK_BYTES)).await {
            Ok(block) => Superblock::decode(&block, offset),
            Err(DriveError::Failed { .. }) => Err(FrameError::Checksum.into()),
            Err(error) => return Err(error.into()),
        };
        match decoded {
            Ok(superblock) if superblock.geometry.capacity_bytes > actual_bytes => {
                let expected_bytes = superblock.geometry.capacity_bytes;
                return Err(OpenError::Truncated { expected_bytes, actual_bytes });
            }
            Ok(superblock) => return Ok(superblock),
            Err(error) => problem = Some(worse(problem, classify(error))),
        }
    }
    Err(problem.unwrap_or(OpenError::Torn))
}

fn classify(error: SuperblockError) -> OpenError {
    match error {
        SuperblockError::Frame(FrameError::Zero) => OpenError::Blank,
        SuperblockError::Frame(FrameError::Foreign) => OpenError::Foreign,
        SuperblockError::Frame(FrameError::Version(version)) => OpenError::Version(version),
        SuperblockError::Frame(_) | SuperblockError::Geometry(_) => OpenError::Torn,
    }
}

/// Of what two copies say, that which must not be overlooked.
fn worse(one: Option<OpenError>, other: OpenError) -> OpenError {
    let rank = |error: &OpenError| match error {
        OpenError::Blank => 0,
        OpenError::Foreign => 1,
        OpenError::Torn => 2,
        _ => 3,
    };
    match one {
        Some(one) if rank(&one) >= rank(&other) => one,
        _ => other,
    }
}

async fn repair_superblocks(drive: &dyn Drive, superblock: &Superblock) -> Result<(), DriveError> {
    for offset in superblock.geometry.superblock_offsets() {
        let intact = match outcome(drive.read(offset, BLOCK_BYTES)).await {
            Ok(block) => Superblock::decode(&block, offset).as_ref() == Ok(superblock),
            Err(DriveError::Failed { .. }) => false,
            Err(error) => return Err(error),
        };
        if !intact {
            tracing::warn!(drive = %superblock.drive, offset, "repairing a damaged superblock");
            outcome(drive.write_durable(offset, vec![aligned(&superblock.encode(offset))])).await?;
        }
    }
    Ok(())
}
