//! The zone table in memory, and its way to the drive: changed blocks are gathered, written over their older
//! copies and flushed together.

use crate::device::{Drive, DriveError, outcome};
use crate::format::geometry::ZONES_PER_TABLE_BLOCK;
use crate::format::superblock::Superblock;
use crate::format::zone_table::{TableBlock, ZoneEntry};
use crate::formatted::OpenError;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_reactor::sync::{Completer, completion};
use weft_reactor::{AlignedBuf, Handle, join_all};
use weft_wire::ZoneIndex;
use weft_wire::limits::BLOCK_BYTES;

/// The table as it was found.
pub struct TableContent {
    pub entries: Vec<ZoneEntry>,
    pub copies: Vec<NewestCopy>,
}

/// Which copy of a table block counts.
#[derive(Clone, Copy, Debug)]
pub struct NewestCopy {
    copy: usize,
    version: u64,
}

/// Reads the newer intact copy of each block. A torn one was never finished; one that can't be read may be the newer, without
/// which generations of zones would be handed out a second time.
pub async fn load_table(drive: &dyn Drive, superblock: &Superblock) -> Result<TableContent, OpenError> {
    let geometry = &superblock.geometry;
    let mut content = TableContent { entries: Vec::new(), copies: Vec::new() };
    for block in 0..geometry.zone_table_blocks {
        let mut newest: Option<(usize, TableBlock)> = None;
        for copy in 0..2 {
            let offset = geometry.zone_table_copy_offset(block, copy);
            let bytes = match outcome(drive.read(offset, BLOCK_BYTES)).await {
                Ok(bytes) => bytes,
                Err(error @ DriveError::Failed { .. }) => return Err(OpenError::ZoneTableUnreadable { block, error }),
                Err(error) => return Err(error.into()),
            };
            let Ok(found) = TableBlock::decode(&bytes, superblock.identity(), offset) else { continue };
            if found.index == block && newest.as_ref().is_none_or(|(_, newest)| newest.version < found.version) {
                newest = Some((copy, found));
            }
        }
        let (copy, found) = newest.ok_or(OpenError::ZoneTable { block })?;
        let expected = geometry.zones.saturating_sub(block * ZONES_PER_TABLE_BLOCK).min(ZONES_PER_TABLE_BLOCK);
        if found.entries.len() != expected as usize {
            return Err(OpenError::ZoneTable { block });
        }
        content.copies.push(NewestCopy { copy, version: found.version });
        content.entries.extend(found.entries);
    }
    Ok(content)
}

pub struct Table {
    drive: Rc<dyn Drive>,
    handle: Handle,
    superblock: Superblock,
    state: Rc<RefCell<State>>,
}

struct State {
    entries: Vec<ZoneEntry>,
    copies: Vec<NewestCopy>,
    /// Blocks that differ from the drive.
    dirty: BTreeSet<u32>,
    /// Blocks on their way.
    writing: BTreeSet<u32>,
    waiting: Vec<Completer<Result<(), DriveError>>>,
    running: bool,
}

impl Table {
    pub fn new(drive: Rc<dyn Drive>, handle: Handle, superblock: Superblock, content: TableContent) -> Self {
        let state = State {
            entries: content.entries,
            copies: content.copies,
            dirty: BTreeSet::new(),
            writing: BTreeSet::new(),
            waiting: Vec::new(),
            running: false,
        };
        Self { drive, handle, superblock, state: Rc::new(RefCell::new(state)) }
    }

    /// A zone beyond the drive's is nobody's.
    pub fn entry(&self, zone: ZoneIndex) -> ZoneEntry {
        self.state.borrow().entries.get(zone.0 as usize).copied().unwrap_or_default()
    }

    pub fn find(&self, chosen: impl Fn(&ZoneEntry) -> bool) -> Option<ZoneIndex> {
        self.state.borrow().entries.iter().position(chosen).map(|index| ZoneIndex(index as u32))
    }

    pub fn count(&self, chosen: impl Fn(&ZoneEntry) -> bool) -> u32 {
        self.state.borrow().entries.iter().filter(|entry| chosen(entry)).count() as u32
    }

    /// Changes an entry in memory; [`ensure_durable`](Self::ensure_durable) follows.
    pub fn set(&self, zone: ZoneIndex, entry: ZoneEntry) {
        let mut state = self.state.borrow_mut();
        state.entries[zone.0 as usize] = entry;
        state.dirty.insert(zone.0 / ZONES_PER_TABLE_BLOCK);
    }

    /// Returns once the entry, as it is now, is on the drive.
    pub async fn ensure_durable(&self, zone: ZoneIndex) -> Result<(), DriveError> {
        let block = zone.0 / ZONES_PER_TABLE_BLOCK;
        {
            let mut state = self.state.borrow_mut();
            if !state.dirty.contains(&block) && !state.writing.contains(&block) {
                return Ok(());
            }
            // One on its way may have left without the change: it goes once more.
            state.dirty.insert(block);
        }
        self.write_out().await
    }

    /// Returns once all entries, as they are now, are on the drive.
    pub async fn all_durable(&self) -> Result<(), DriveError> {
        {
            let mut state = self.state.borrow_mut();
            if state.dirty.is_empty() && state.writing.is_empty() {
                return Ok(());
            }
            let under_way = state.writing.clone();
            state.dirty.extend(under_way);
        }
        self.write_out().await
    }

    async fn write_out(&self) -> Result<(), DriveError> {
        let (completer, pending) = completion();
        let start = {
            let mut state = self.state.borrow_mut();
            state.waiting.push(completer);
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let (drive, state) = (Rc::clone(&self.drive), Rc::clone(&self.state));
            self.handle.spawn("zone table", write_dirty(drive, self.superblock, state)).detach();
        }
        outcome(pending).await
    }
}

async fn write_dirty(drive: Rc<dyn Drive>, superblock: Superblock, state: Rc<RefCell<State>>) {
    loop {
        let (blocks, waiting, writes) = {
            let mut state = state.borrow_mut();
            if state.waiting.is_empty() {
                state.running = false;
                return;
            }
            let blocks = std::mem::take(&mut state.dirty);
            state.writing.clone_from(&blocks);
            let writes: Vec<_> = blocks.iter().map(|block| state.begin(drive.as_ref(), &superblock, *block)).collect();
            (blocks, std::mem::take(&mut state.waiting), writes)
        };
        let mut result = join_all(writes).await.into_iter().collect::<Result<(), DriveError>>();
        if result.is_ok() {
            result = outcome(drive.flush()).await;
        }
        let mut state = state.borrow_mut();
        state.writing.clear();
        for block in blocks {
            let newest = &mut state.copies[block as usize];
            newest.version += 1;
            match result {
                Ok(()) => newest.copy = 1 - newest.copy,
                Err(_) => drop(state.dirty.insert(block)),
            }
        }
        drop(state);
        for completer in waiting {
            completer.complete(result.clone());
        }
    }
}

impl State {
    /// Writes a block over its older copy.
    fn begin(
        &self,
        drive: &dyn Drive,
        superblock: &Superblock,
        block: u32,
    ) -> impl Future<Output = Result<(), DriveError>> + use<> {
        let first = (block * ZONES_PER_TABLE_BLOCK) as usize;
        let last = (first + ZONES_PER_TABLE_BLOCK as usize).min(self.entries.len());
        let newest = self.copies[block as usize];
        let entries = self.entries[first..last].to_vec();
        let content = TableBlock { index: block, version: newest.version + 1, entries };
        let offset = superblock.geometry.zone_table_copy_offset(block, 1 - newest.copy);
        let bytes = AlignedBuf::copy_of(&content.encode(superblock.identity(), offset)).freeze();
        outcome(drive.write(offset, vec![bytes]))
    }
}
