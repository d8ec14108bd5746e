//! The one place where something changes. A commit looks up what it changes, which may wait; then, without giving up
//! the core, it appends one record to the journal and applies it to memory: memory is always what the journal says.

use crate::BucketError;
use crate::batch::{Batch, BatchRecord, Change, DataChange, PieceRecord, ZoneSetChange};
use crate::bucket::{Bucket, Space, add};
use crate::extent::{Extent, Location};
use crate::extents::{Worked, slab_lock, touched};
use crate::key::{self, Object};
use crate::lock::Mode;
use crate::stripe::{Owner, Staged, StripeRecord};
use crate::stripes::Purse;
use crate::zone_set::{Kind, StripeEntry, ZoneSet};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use weft_journal::LogError;
use weft_wire::drive::RecordKind;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{Seq, StripeId};

/// Waits for the planner until a writer is told that there is no room.
const ROOM_WAITS_MAX: u32 = 50;
/// What users gave back of a full bucket they may take again, even if the index grew meanwhile by this part of all.
const REGAIN_PART: u64 = 32;

impl Bucket {
    /// Writes blocks as a full stripe, durably on all members. [`Batch::place`] makes them real; a stripe that is
    /// dropped unplaced is nobody's. `object` and `first` are where they are to go: what is there makes room.
    pub async fn stage(&self, object: Object, first: u64, data: Bytes) -> Result<Staged, BucketError> {
        add(&self.0.counters.asked, 1);
        let blocks = (data.len() / BLOCK_BYTES) as u64;
        let mut waits = 0;
        loop {
            if self.fits(blocks).is_err() {
                let range = first..first + blocks;
                let there = self.extents(object, range.clone(), usize::MAX).await?;
                let replaced = there.iter().filter_map(|extent| extent.clip(&range)).map(|part| u64::from(part.blocks));
                self.fits(blocks.saturating_sub(replaced.sum()))?;
            }
            self.uncrowded().await?;
            match self.0.stripes.stage(Kind::Data, Purse::User, data.clone()).await {
                // The cleaner may make room yet.
                Err(BucketError::NoSpace) if waits < ROOM_WAITS_MAX && !self.is_idle() => waits += 1,
                Err(deposed @ BucketError::Deposed(_)) => {
                    self.end(deposed.clone());
                    return Err(deposed);
                }
                done => return done,
            }
            self.wait_for_progress().await?;
        }
    }

    /// Space for users of this bucket.
    pub fn space(&self) -> Space {
        let tunables = &self.0.tunables;
        let sets = self.0.stripes.limits.get().user() as u64;
        let set_blocks = u64::from(self.0.zone_rows) * u64::from(self.0.protection.data);
        // Merging runs takes their space a second time.
        let index = 2 * self.0.stripes.zones.borrow().index_blocks();
        Space { blocks: sets * set_blocks * tunables.fill_share_max / 256, used: self.data_blocks() + index }
    }

    /// Blocks of users: in stripes, in the journal, and promised.
    fn data_blocks(&self) -> u64 {
        let held = self.0.held.borrow().live_blocks();
        self.0.stripes.zones.borrow().live_data_blocks() + held + self.0.reserved_blocks.get()
    }

    /// `NoSpace` if users can't have as many blocks more.
    pub fn fits(&self, blocks: u64) -> Result<(), BucketError> {
        let (space, data) = (self.space(), self.data_blocks());
        let most = self.0.data_blocks_most.get().max(data);
        self.0.data_blocks_most.set(most);
        // The index grows and shrinks with every run and merge: that must not take away what was just given back.
        let limit = if data + blocks <= most { space.blocks + space.blocks / REGAIN_PART } else { space.blocks };
        if blocks > 0 && space.used + blocks > limit { Err(BucketError::NoSpace) } else { Ok(()) }
    }

    /// Waits until the planner has made room to write; `NoSpace` if it can't.
    async fn uncrowded(&self) -> Result<(), BucketError> {
        let mut waits = 0;
        loop {
            let crowded = self.0.stripes.zones.borrow().sets_len() > self.0.stripes.limits.get().user();
            let held_full = self.0.held.borrow().resident_bytes() > self.0.tunables.held_bytes_max;
            if !crowded && !held_full {
                return Ok(());
            }
            if waits == ROOM_WAITS_MAX || (crowded && !held_full && self.is_idle()) {
                break;
            }
            waits += 1;
            self.wait_for_progress().await?;
        }
        match self.is_idle() {
            true => Err(BucketError::NoSpace),
            false => Err(BucketError::NotReady(format!("{} waits for the cleaner", self.0.id))),
        }
    }

    pub(crate) async fn wait_for_progress(&self) -> Result<(), BucketError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        let progress = self.0.progress.notified();
        self.0.stripes.work.notify_one();
        let _ = self.0.handle.timeout(self.0.tunables.planner_pause, progress).await;
        Ok(())
    }

    /// Appends one record with everything in the batch and applies it to memory, all or nothing. Callers hold the locks
    /// that make the batch right; extents are locked here. The answer's sequence is to be [`Bucket::settled`] before anyone hears.
    pub async fn commit(&self, batch: Batch) -> Result<Seq, BucketError> {
        add(&self.0.counters.asked, 1);
        let mut journalled = false;
        for change in &batch.data {
            match change {
                DataChange::Write { data, .. } if data.len() % BLOCK_BYTES != 0 => {
                    return Err(BucketError::Bounds(format!("{} bytes are no whole blocks", data.len())));
                }
                DataChange::Write { .. } => journalled = true,
                DataChange::Reserve { .. } | DataChange::Place { .. } | DataChange::Punch { .. } => {}
            }
        }
        if journalled {
            self.uncrowded().await?;
        }
        // What is being written as a run is in memory beside what comes in meanwhile.
        while self.0.index.is_full(self.0.tunables.memtable_bytes_max) {
            self.wait_for_progress().await?;
        }
        let touched = touched(batch.data.iter().map(DataChange::target));
        loop {
            let _guard = match touched.is_empty() {
                true => None,
                false => Some(self.0.locks.lock(touched.keys().map(|slab| (slab_lock(*slab), Mode::Exclusive))).await),
            };
            let mut worked = Worked::default();
            for (slab, range) in &touched {
                worked.load(*slab, self.extents(slab.0, range.clone(), usize::MAX).await?);
            }
            for change in &batch.data {
                worked.apply(change);
            }
            self.fits(worked.growth())?;
            match self.commit_now(&batch.changes, &batch.data, &worked, Vec::new(), Purse::User) {
                Err(LogError::Full) => {}
                done => return Ok(done?),
            }
            drop(_guard);
            self.wait_for_progress().await?;
        }
    }

    /// A batch that will not be committed after all: what was staged for it is nobody's.
    pub fn discard(&self, batch: Batch) {
        drop(batch);
    }

    /// The synchronous part: from here to the end nothing else runs on this core. `Full`: nothing was changed.
    pub(crate) fn commit_now(
        &self,
        changes: &[Change],
        data: &[DataChange],
        worked: &Worked,
        zone_sets: Vec<ZoneSetChange>,
        purse: Purse,
    ) -> Result<Seq, LogError> {
        let done = self.append(changes, data, worked, zone_sets, purse);
        if done == Err(LogError::Full) {
            self.0.starved.set(true);
        }
        done
    }

    fn append(
        &self,
        changes: &[Change],
        data: &[DataChange],
        worked: &Worked,
        zone_sets: Vec<ZoneSetChange>,
        purse: Purse,
    ) -> Result<Seq, LogError> {
        if self.0.closed.get() {
            return Err(LogError::Stopped);
        }
        let extents = worked.changes();
        let mut record = BatchRecord {
            changes: Vec::with_capacity(changes.len() + extents.len() + 2),
            pieces: worked
                .pieces
                .iter()
                .map(|piece| PieceRecord {
                    fs: piece.object.fs,
                    inode: piece.object.inode,
                    first: piece.first,
                    blocks: piece.blocks,
                })
                .collect(),
            zone_sets,
            next_serial: self.0.next_serial.get(),
            reserved_blocks: (self.0.reserved_blocks.get() + worked.reserved_blocks)
                .saturating_sub(worked.unreserved_blocks()),
            ..BatchRecord::default()
        };
        record.changes.extend_from_slice(changes);
        record.changes.extend(extents);
        let mut live: BTreeMap<StripeId, u32> = BTreeMap::new();
        for (stripe, (staged, owners)) in by_stripe(data) {
            let blocks = owners.iter().map(|owner| owner.blocks).sum();
            live.insert(stripe, blocks);
            let (zone_set, row, rows) = (staged.place.zone_set, staged.place.row, staged.rows);
            record.stripes.push((stripe, StripeEntry { zone_set, row, rows, kind: staged.kind, live: blocks }));
            let value = StripeRecord { zone_set, row, rows, checksums: staged.checksums.clone(), owners };
            record.changes.push((key::stripe(stripe), Some(weft_wire::encode(&value))));
        }
        {
            let zones = self.0.stripes.zones.borrow();
            for dead in &worked.dead {
                if let Location::Stripe { stripe, .. } = dead.location {
                    let count =
                        live.entry(stripe).or_insert_with(|| zones.stripe(stripe).map_or(0, |entry| entry.live));
                    *count = count.saturating_sub(dead.blocks);
                }
            }
        }
        let gone = live.iter().filter(|(_, count)| **count == 0);
        record.changes.extend(gone.map(|(stripe, _)| (key::stripe(*stripe), None)));
        record.live = live.into_iter().collect();
        let payload = record.encode(&worked.data);
        if purse == Purse::User {
            // The last quarter of the journal is for the work that makes room.
            let room = self.0.log.room();
            let after = room.bytes_used + payload.iter().map(|piece| piece.len() as u64).sum::<u64>();
            if after * 4 > room.bytes_quota * 3 && room.bytes_used * 4 > room.bytes_quota {
                return Err(LogError::Full);
            }
        }
        let (seq, _) = self.0.log.append(RecordKind::Batch, payload)?;
        self.apply(seq, record, worked.data.clone());
        let mut held = self.0.held.borrow_mut();
        for dead in &worked.dead {
            if let Location::Journal { seq: at, block } = dead.location {
                held.kill(if at == Seq(0) { seq } else { at }, block, dead.blocks);
            }
        }
        drop(held);
        add(&self.0.counters.commits, 1);
        if self.has_work() {
            self.0.stripes.work.notify_one();
        }
        Ok(seq)
    }

    /// What a record does to memory. Also the replay at recovery.
    pub(crate) fn apply(&self, seq: Seq, record: BatchRecord, data: Vec<Bytes>) {
        for (key, value) in record.changes {
            let value = match value {
                Some(value) if key::is_extent(&key) => Some(placed_at(&key, value, seq)),
                other => other,
            };
            self.0.index.insert(key, value);
        }
        if !record.pieces.is_empty() {
            let mut offset = 0;
            let mut pieces = Vec::with_capacity(record.pieces.len());
            for piece in &record.pieces {
                pieces.push(crate::held::Piece {
                    object: Object { fs: piece.fs, inode: piece.inode },
                    first: piece.first,
                    blocks: piece.blocks,
                    offset,
                });
                offset += piece.blocks;
            }
            self.0.held.borrow_mut().insert(seq, data, pieces);
        }
        let mut zones = self.0.stripes.zones.borrow_mut();
        for change in record.zone_sets {
            match change {
                ZoneSetChange::Open(set) => zones.add_set(set),
                ZoneSetChange::Free(id) => zones.remove_set(id),
                ZoneSetChange::Move { set, shard, member } => zones.set_member(set, shard, member),
            }
        }
        for (id, entry) in &record.stripes {
            zones.add_stripe(*id, *entry);
        }
        for (id, live) in &record.live {
            zones.set_live(*id, *live);
            if *live == 0 {
                self.0.views.borrow_mut().remove(id);
                self.0.stripes.forget(*id);
            }
        }
        self.0.next_serial.set(self.0.next_serial.get().max(record.next_serial));
        self.0.reserved_blocks.set(record.reserved_blocks);
    }

    /// Journals a zone set before anything is written to it, and enters it into the table at the same moment: what is
    /// recorded must be in each manifest that is made from then on. If nothing was recorded, the table lacks it.
    pub(crate) fn record_zone_set(&self, set: ZoneSet) -> impl Future<Output = Result<(), BucketError>> + use<> {
        let record = BatchRecord {
            zone_sets: vec![ZoneSetChange::Open(set.clone())],
            next_serial: self.0.next_serial.get(),
            reserved_blocks: self.0.reserved_blocks.get(),
            ..BatchRecord::default()
        };
        let appended = self.0.log.append(RecordKind::Batch, record.encode(&[]));
        if appended.is_ok() {
            self.0.stripes.zones.borrow_mut().begin_set(set);
        }
        async move {
            let (_, stands) = appended?;
            Ok(stands.await.map_err(|_| BucketError::Stopped)??)
        }
    }
}

/// The stripes that a batch makes real, and whose blocks they hold.
fn by_stripe(data: &[DataChange]) -> BTreeMap<StripeId, (&Rc<Staged>, Vec<Owner>)> {
    let mut by: BTreeMap<StripeId, (&Rc<Staged>, Vec<Owner>)> = BTreeMap::new();
    for change in data {
        let DataChange::Place { object, first, staged, block, blocks } = change else { continue };
        let owner = Owner { fs: object.fs, inode: object.inode, first: *first, block: *block, blocks: *blocks };
        by.entry(staged.stripe()).or_insert_with(|| (staged, Vec::new())).1.push(owner);
    }
    by
}

/// In a record, sequence 0 stands for the record itself.
fn placed_at(key: &[u8], value: Bytes, seq: Seq) -> Bytes {
    let extent = key::extent_block(key).and_then(|first| Extent::decode(first, &value));
    match extent {
        Some(Extent { first, blocks, location: Location::Journal { seq: Seq(0), block } }) => {
            Extent { first, blocks, location: Location::Journal { seq, block } }.encode().into()
        }
        _ => value,
    }
}
