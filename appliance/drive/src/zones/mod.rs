//! Zones: handing them out, writing each location once, reading, taking them back.
//!
//! Who holds a zone is durable in the zone table before it is answered. Which locations were written is known
//! only for zones that were opened in this life of the drive: all others are closed for writes.

mod ranges;
mod table;

pub use table::{TableContent, load_table};

use crate::device::{Drive, DriveError, outcome};
use crate::format::superblock::Superblock;
use crate::format::zone_table::{Holder, ZoneEntry};
use bytes::Bytes;
use ranges::Ranges;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use table::Table;
use weft_reactor::sync::{Completer, Notify, completion};
use weft_reactor::{Handle, to_aligned};
use weft_wire::drive::{DriveRefusal, ZoneInfo};
use weft_wire::limits::{BLOCK_BYTES, MESSAGE_BODY_BYTES_MAX};
use weft_wire::{BucketId, Epoch, Generation, ZoneIndex, ZoneSetId};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A zone that was opened in this life of the drive.
#[derive(Default)]
struct Writable {
    /// Somebody was told that it is theirs.
    told: bool,
    written: Ranges,
    in_flight: Vec<(u32, u32)>,
}

pub struct Zones {
    drive: Rc<dyn Drive>,
    superblock: Superblock,
    handle: Handle,
    table: Table,
    writable: RefCell<BTreeMap<ZoneIndex, Writable>>,
    /// Operations that still touch a zone's blocks: it isn't handed out again before they end.
    busy: RefCell<BTreeMap<ZoneIndex, u32>>,
    /// Highest epoch that asked anything of a bucket's zones.
    fences: RefCell<BTreeMap<BucketId, Epoch>>,
    next_fit: Cell<u32>,
    flusher: Flusher,
    /// Writes that haven't ended.
    writing: Cell<usize>,
    write_ended: Notify,
    counters: Cell<ZoneCounters>,
    /// Why the last write failed, if it did.
    trouble: RefCell<Option<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneCounters {
    pub writes: u64,
    pub read_errors: u64,
    pub write_errors: u64,
}

enum Claim {
    Ours,
    /// A write of some of it hasn't ended.
    InFlight,
    Written,
}

/// A write's place, as the leader names it.
#[derive(Clone, Copy, Debug)]
pub struct ShardPlace {
    pub zone: ZoneIndex,
    pub generation: Generation,
    pub block: u32,
}

fn failed(error: &DriveError) -> DriveRefusal {
    DriveRefusal::Io(error.to_string())
}

impl Zones {
    pub fn new(drive: Rc<dyn Drive>, handle: Handle, superblock: Superblock, content: TableContent) -> Rc<Self> {
        let mut fences: BTreeMap<BucketId, Epoch> = BTreeMap::new();
        for holder in content.entries.iter().filter_map(|entry| entry.holder) {
            let fence = fences.entry(holder.bucket).or_default();
            *fence = holder.epoch.max(*fence);
        }
        Rc::new(Self {
            flusher: Flusher::new(Rc::clone(&drive), handle.clone()),
            table: Table::new(Rc::clone(&drive), handle.clone(), superblock, content),
            drive,
            superblock,
            handle,
            writable: RefCell::default(),
            busy: RefCell::default(),
            fences: RefCell::new(fences),
            next_fit: Cell::new(0),
            writing: Cell::new(0),
            write_ended: Notify::new(),
            counters: Cell::default(),
            trouble: RefCell::default(),
        })
    }

    fn admit(&self, bucket: BucketId, epoch: Epoch) -> Result<(), DriveRefusal> {
        let mut fences = self.fences.borrow_mut();
        let fence = fences.entry(bucket).or_default();
        if epoch < *fence {
            return Err(DriveRefusal::Sealed(*fence));
        }
        *fence = epoch;
        Ok(())
    }

    /// Hands out a zone, or the one that the same request got before. A zone whose opening could not be written is free again:
    /// whoever asked asks under another number next time, and a drive that fails for a while would be used up.
    pub async fn open(
        &self,
        bucket: BucketId,
        epoch: Epoch,
        zone_set: ZoneSetId,
        shard: u8,
    ) -> Result<(ZoneIndex, Generation), DriveRefusal> {
        self.admit(bucket, epoch)?;
        let holder = Holder { bucket, epoch, zone_set, shard };
        let zone = match self.table.find(|entry| entry.holder == Some(holder)) {
            Some(zone) => zone,
            None => {
                let zone = self.choose_free().ok_or(DriveRefusal::NoZone)?;
                let before = self.table.entry(zone).generation.0;
                let generation =
                    Generation(if weft_wire::mutant("reuse_location") { before.max(1) } else { before + 1 });
                self.table.set(zone, ZoneEntry { generation, holder: Some(holder) });
                self.writable.borrow_mut().insert(zone, Writable::default());
                zone
            }
        };
        let generation = self.table.entry(zone).generation;
        let written = self.table.ensure_durable(zone).await;
        let is_held = self.table.entry(zone) == ZoneEntry { generation, holder: Some(holder) };
        let mut writable = self.writable.borrow_mut();
        match written {
            Ok(()) if is_held => {
                if let Some(zone) = writable.get_mut(&zone) {
                    zone.told = true;
                }
                Ok((zone, generation))
            }
            Ok(()) => Err(DriveRefusal::Io(format!("{zone} could not be opened at the first try"))),
            Err(error) => {
                if is_held && writable.get(&zone).is_some_and(|zone| !zone.told) {
                    writable.remove(&zone);
                    self.table.set(zone, ZoneEntry { generation, holder: None });
                }
                Err(failed(&error))
            }
        }
    }

    /// The next free zone after the one handed out last, so that wear spreads.
    fn choose_free(&self) -> Option<ZoneIndex> {
        let zones = self.superblock.geometry.zones;
        let busy = self.busy.borrow();
        let start = self.next_fit.get();
        let chosen = (0..zones)
            .map(|step| ZoneIndex((start + step) % zones))
            .find(|zone| self.table.entry(*zone).holder.is_none() && !busy.contains_key(zone))?;
        self.next_fit.set((chosen.0 + 1) % zones);
        Some(chosen)
    }

    /// Takes a zone back. One that is free, of another generation or another bucket's is left as it is.
    pub async fn free(
        self: &Rc<Self>,
        bucket: BucketId,
        epoch: Epoch,
        zone: ZoneIndex,
        generation: Generation,
    ) -> Result<(), DriveRefusal> {
        self.admit(bucket, epoch)?;
        self.check_zone(zone)?;
        let entry = self.table.entry(zone);
        if entry.generation != generation || entry.holder.is_none_or(|holder| holder.bucket != bucket) {
            return self.table.ensure_durable(zone).await.map_err(|error| failed(&error));
        }
        let guard = self.touch(zone);
        self.table.set(zone, ZoneEntry { generation, holder: None });
        self.writable.borrow_mut().remove(&zone);
        self.table.ensure_durable(zone).await.map_err(|error| failed(&error))?;
        // Behind the answer: the zone stays busy until its old content is gone.
        let geometry = &self.superblock.geometry;
        let discarded = self.drive.discard(geometry.zone_offset(zone.0), geometry.zone_bytes);
        self.handle
            .spawn("discard zone", async move {
                if let Err(error) = outcome(discarded).await {
                    tracing::debug!(%zone, %error, "discard");
                }
                drop(guard);
            })
            .detach();
        Ok(())
    }

    /// What the bucket holds. That is durable before it is told: a generation that is lost with a failing drive would be handed
    /// out a second time, and whoever had heard of the first could give back the second.
    pub async fn list(&self, bucket: BucketId) -> Result<Vec<ZoneInfo>, DriveRefusal> {
        let held = self.held_by(bucket);
        self.table.all_durable().await.map_err(|error| failed(&error))?;
        Ok(held)
    }

    fn held_by(&self, bucket: BucketId) -> Vec<ZoneInfo> {
        let writable = self.writable.borrow();
        let blocks = self.superblock.geometry.zone_blocks();
        let info = |zone: ZoneIndex, entry: ZoneEntry| {
            let holder = entry.holder.filter(|holder| holder.bucket == bucket)?;
            Some(ZoneInfo {
                zone,
                generation: entry.generation,
                zone_set: holder.zone_set,
                shard: holder.shard,
                epoch: holder.epoch,
                written_blocks: writable.get(&zone).map_or(blocks, |writable| writable.written.end()),
            })
        };
        (0..self.superblock.geometry.zones)
            .map(ZoneIndex)
            .filter_map(|zone| info(zone, self.table.entry(zone)))
            .collect()
    }

    pub fn free_count(&self) -> u32 {
        self.table.count(|entry| entry.holder.is_none())
    }

    pub fn counters(&self) -> ZoneCounters {
        self.counters.get()
    }

    /// Why the last write failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Writes blocks that were never written in this generation; durable when it returns.
    pub async fn write(
        self: &Rc<Self>,
        bucket: BucketId,
        epoch: Epoch,
        place: ShardPlace,
        data: Bytes,
    ) -> Result<(), DriveRefusal> {
        let blocks = self.check_body(&data)?;
        let range = self.check_blocks(place.zone, place.block, blocks)?;
        self.admit(bucket, epoch)?;
        loop {
            match self.claim(bucket, epoch, place, range)? {
                Claim::Ours => break,
                Claim::InFlight => self.write_ended.notified().await,
                Claim::Written => return self.compare(place, blocks, &data).await,
            }
        }
        let _guard = self.touch(place.zone);
        let offset = self.offset(place);
        let result = self.write_through(offset, to_aligned(data)).await;
        if let Some(zone) = self.writable.borrow_mut().get_mut(&place.zone) {
            zone.in_flight.retain(|flying| *flying != range);
        }
        self.write_ended.notify_all();
        match result {
            Ok(()) => {
                self.count(|counters| counters.writes += 1);
                self.trouble.take();
                Ok(())
            }
            Err(error) => {
                self.count(|counters| counters.write_errors += 1);
                *self.trouble.borrow_mut() = Some(error.to_string());
                Err(failed(&error))
            }
        }
    }

    /// A lone write is durable by itself: one operation, not two. Writes in parallel share flushes.
    async fn write_through(&self, offset: u64, data: Bytes) -> Result<(), DriveError> {
        let _writing = Writing::begin(&self.writing);
        if self.writing.get() == 1 && !weft_wire::mutant("no_flush") {
            return outcome(self.drive.write_durable(offset, vec![data])).await;
        }
        outcome(self.drive.write(offset, vec![data])).await?;
        self.flusher.flush().await
    }

    /// Marks a range as written, if nothing of it was.
    fn claim(
        &self,
        bucket: BucketId,
        epoch: Epoch,
        place: ShardPlace,
        range: (u32, u32),
    ) -> Result<Claim, DriveRefusal> {
        let entry = self.table.entry(place.zone);
        let holder = match entry.holder {
            Some(holder) if holder.bucket == bucket && entry.generation == place.generation => holder,
            _ => return Err(DriveRefusal::Gone(entry.generation)),
        };
        let mut writable = self.writable.borrow_mut();
        let Some(zone) = writable.get_mut(&place.zone).filter(|_| holder.epoch == epoch) else {
            return Err(DriveRefusal::ZoneClosed);
        };
        if zone.in_flight.iter().any(|(from, to)| *from < range.1 && range.0 < *to) {
            return Ok(Claim::InFlight);
        }
        if zone.written.covers(range) {
            return Ok(Claim::Written);
        }
        if zone.written.touches(range) {
            return Err(DriveRefusal::WrittenBefore);
        }
        zone.written.add(range);
        zone.in_flight.push(range);
        Ok(Claim::Ours)
    }

    /// A second write of the same location: fine if the same bytes are there.
    async fn compare(self: &Rc<Self>, place: ShardPlace, blocks: u32, data: &Bytes) -> Result<(), DriveRefusal> {
        let _guard = self.touch(place.zone);
        let there = outcome(self.drive.read(self.offset(place), blocks as usize * BLOCK_BYTES)).await;
        let there = there.map_err(|error| {
            self.count(|counters| counters.read_errors += 1);
            failed(&error)
        })?;
        if there != *data {
            return Err(DriveRefusal::WrittenBefore);
        }
        // The first write may have failed between reaching the drive and being flushed.
        self.flusher.flush().await.map_err(|error| failed(&error))
    }

    pub async fn read(
        self: &Rc<Self>,
        bucket: BucketId,
        place: ShardPlace,
        blocks: u32,
    ) -> Result<Bytes, DriveRefusal> {
        if blocks == 0 || blocks as usize > MESSAGE_BODY_BYTES_MAX / BLOCK_BYTES {
            return Err(DriveRefusal::Bounds(format!("{blocks} blocks in one read")));
        }
        self.check_blocks(place.zone, place.block, blocks)?;
        self.check_holder(bucket, place)?;
        let content = outcome(self.drive.read(self.offset(place), blocks as usize * BLOCK_BYTES)).await;
        // The zone may have been freed, and handed to another bucket, in the meantime.
        self.check_holder(bucket, place)?;
        content.map_err(|error| {
            self.count(|counters| counters.read_errors += 1);
            failed(&error)
        })
    }

    fn check_holder(&self, bucket: BucketId, place: ShardPlace) -> Result<(), DriveRefusal> {
        let entry = self.table.entry(place.zone);
        let held = entry.generation == place.generation && entry.holder.is_some_and(|holder| holder.bucket == bucket);
        if held { Ok(()) } else { Err(DriveRefusal::Gone(entry.generation)) }
    }

    fn check_zone(&self, zone: ZoneIndex) -> Result<(), DriveRefusal> {
        let zones = self.superblock.geometry.zones;
        if zone.0 < zones { Ok(()) } else { Err(DriveRefusal::Bounds(format!("{zone} of {zones}"))) }
    }

    fn check_body(&self, data: &Bytes) -> Result<u32, DriveRefusal> {
        if data.is_empty() || data.len() > MESSAGE_BODY_BYTES_MAX || !data.len().is_multiple_of(BLOCK_BYTES) {
            return Err(DriveRefusal::Bounds(format!("a shard of {} bytes", data.len())));
        }
        Ok((data.len() / BLOCK_BYTES) as u32)
    }

    fn check_blocks(&self, zone: ZoneIndex, block: u32, blocks: u32) -> Result<(u32, u32), DriveRefusal> {
        self.check_zone(zone)?;
        let zone_blocks = self.superblock.geometry.zone_blocks();
        match block.checked_add(blocks) {
            Some(end) if end <= zone_blocks => Ok((block, end)),
            _ => Err(DriveRefusal::Bounds(format!("{blocks} blocks at block {block} of a zone of {zone_blocks}"))),
        }
    }

    fn offset(&self, place: ShardPlace) -> u64 {
        self.superblock.geometry.zone_offset(place.zone.0) + u64::from(place.block) * BLOCK
    }

    fn count(&self, change: impl FnOnce(&mut ZoneCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn touch(self: &Rc<Self>, zone: ZoneIndex) -> Touch {
        *self.busy.borrow_mut().entry(zone).or_default() += 1;
        Touch { zones: Rc::clone(self), zone }
    }
}

/// Counts a write.
struct Writing<'a>(&'a Cell<usize>);

impl<'a> Writing<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Keeps a zone from being handed out.
struct Touch {
    zones: Rc<Zones>,
    zone: ZoneIndex,
}

impl Drop for Touch {
    fn drop(&mut self) {
        let mut busy = self.zones.busy.borrow_mut();
        match busy.get_mut(&self.zone) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(busy.remove(&self.zone)),
        }
    }
}

/// Lets writes that end at about the same time share a flush.
struct Flusher {
    drive: Rc<dyn Drive>,
    handle: Handle,
    state: Rc<RefCell<FlushState>>,
}

#[derive(Default)]
struct FlushState {
    running: bool,
    waiting: Vec<Completer<Result<(), DriveError>>>,
}

impl Flusher {
    fn new(drive: Rc<dyn Drive>, handle: Handle) -> Self {
        Self { drive, handle, state: Rc::default() }
    }

    /// Returns after a flush that began after the call.
    async fn flush(&self) -> Result<(), DriveError> {
        if weft_wire::mutant("no_flush") {
            return Ok(());
        }
        let (completer, pending) = completion();
        let start = {
            let mut state = self.state.borrow_mut();
            state.waiting.push(completer);
            !std::mem::replace(&mut state.running, true)
        };
        if start {
            let drive = Rc::clone(&self.drive);
            let state = Rc::clone(&self.state);
            self.handle.spawn("flush drive", run_flushes(drive, state)).detach();
        }
        outcome(pending).await
    }
}

async fn run_flushes(drive: Rc<dyn Drive>, state: Rc<RefCell<FlushState>>) {
    loop {
        let waiting = {
            let mut state = state.borrow_mut();
            if state.waiting.is_empty() {
                state.running = false;
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        let result = outcome(drive.flush()).await;
        for completer in waiting {
            completer.complete(result.clone());
        }
    }
}
