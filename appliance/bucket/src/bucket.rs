//! The bucket as its users see it, and the one place where something changes: [`Bucket::commit`].

use crate::batch::{Batch, BatchRecord, DataChange, PieceRecord, ZoneSetChange};
use crate::extent::{Extent, Location};
use crate::extents::{Slab, Worked, slab_lock, slabs};
use crate::held::Held;
use crate::index::Index;
use crate::io::FindDrive;
use crate::key::{self, Object};
use crate::lock::{LockGuard, Locks, Mode};
use crate::run::IndexStripe;
use crate::stripe::{Owner, Staged, StripeRecord, StripeView};
use crate::stripes::{Members, Stripes};
use crate::tunables::Tunables;
use crate::zones::{Kind, StripeEntry, ZoneSet};
use crate::{BucketError, read};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use weft_journal::{Log, LogError};
use weft_reactor::Handle;
use weft_reactor::sync::Notify;
use weft_wire::drive::RecordKind;
use weft_wire::limits::{BLOCK_BYTES, SLAB_BLOCKS};
use weft_wire::map::{Ensemble, Protection};
use weft_wire::{BucketId, DriveId, Epoch, Seq, StripeId, Uuid};

/// What a leader must know to open its bucket.
pub struct BucketParams {
    pub cluster: Uuid,
    pub id: BucketId,
    pub epoch: Epoch,
    pub protection: Protection,
    pub members: Vec<DriveId>,
    pub ensembles: Vec<Ensemble>,
    /// Blocks of a zone on the member with the smallest zones.
    pub zone_rows: u32,
    pub find: FindDrive,
    pub journal: weft_journal::Tunables,
    pub tunables: Tunables,
}

/// A bucket that this core leads. Clones are the same bucket.
#[derive(Clone)]
pub struct Bucket(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub id: BucketId,
    pub epoch: Epoch,
    pub protection: Protection,
    pub zone_rows: u32,
    pub tunables: Tunables,
    pub handle: Handle,
    pub log: Rc<Log>,
    pub stripes: Rc<Stripes>,
    pub index: Index,
    pub locks: Locks,
    pub held: RefCell<Held>,
    pub next_serial: Cell<u64>,
    pub next_run: Cell<u64>,
    /// Stripes of the manifest that the newest root names.
    pub manifest: RefCell<Vec<IndexStripe>>,
    /// Stripes of merged or moved runs: free once a root stands that doesn't name them.
    pub retired: RefCell<Vec<StripeId>>,
    /// What the frozen memtable covers.
    pub frozen_at: Cell<Seq>,
    /// Told after each round of the planner, to those who wait for room.
    pub progress: Notify,
    pub views: RefCell<BTreeMap<StripeId, Rc<StripeView>>>,
    pub members: Members,
    pub counters: Counters,
    pub closed: Cell<bool>,
    /// The planner is to stop after its step.
    pub finishing: Cell<bool>,
    pub planner_done: Notify,
    /// Why the planner can't go on, if it can't.
    pub trouble: RefCell<Option<String>>,
}

/// Views of stripes that are kept at hand.
const VIEWS_MAX: usize = 128;
/// Waits for the planner until a writer is told that there is no room.
const ROOM_WAITS_MAX: u32 = 50;

#[derive(Default)]
pub(crate) struct Counters {
    pub commits: Cell<u64>,
    pub destaged_blocks: Cell<u64>,
    pub checkpoints: Cell<u64>,
    pub merges: Cell<u64>,
    pub cleaned_sets: Cell<u64>,
    pub moved_blocks: Cell<u64>,
    pub repaired_stripes: Cell<u64>,
    pub freed_sets: Cell<u64>,
}

/// Blocks of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub blocks: u64,
    pub used: u64,
}

/// What a bucket has done and holds; for status and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub commits: u64,
    pub destaged_blocks: u64,
    pub checkpoints: u64,
    pub merges: u64,
    pub cleaned_sets: u64,
    pub moved_blocks: u64,
    pub repaired_stripes: u64,
    pub freed_sets: u64,
    pub checksum_errors: u64,
    pub reconstructions: u64,
    pub stripes: u64,
    pub zone_sets: u64,
    pub runs: u64,
    pub held_bytes: u64,
    pub index_resident_bytes: u64,
    pub index_pages_read: u64,
    pub journal_bytes: u64,
    pub damaged_stripes: u64,
    pub trouble: Option<String>,
}

fn add(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

impl Bucket {
    pub fn id(&self) -> BucketId {
        self.0.id
    }

    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// The value of a key at the moment of the call.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, BucketError> {
        loop {
            match self.0.index.get(key, &self.0.stripes).await {
                // Runs were merged meanwhile, and the old ones freed.
                Err(BucketError::Gone(_)) => self.0.handle.yield_now().await,
                done => return done,
            }
        }
    }

    /// The first `limit` entries with keys in [`from`, `to`).
    pub async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, BucketError> {
        loop {
            match self.0.index.scan(from, to, limit, &self.0.stripes).await {
                Err(BucketError::Gone(_)) => self.0.handle.yield_now().await,
                done => return done,
            }
        }
    }

    /// All keys that begin with `prefix`, up to `limit`.
    pub async fn scan_prefix(&self, prefix: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, BucketError> {
        match key::after_prefix(prefix) {
            Some(end) => self.scan(prefix, &end, limit).await,
            None => Ok(Vec::new()),
        }
    }

    /// Locks keys exclusively, in key order.
    pub async fn lock(&self, keys: impl IntoIterator<Item = Bytes>) -> LockGuard {
        self.0.locks.lock(keys.into_iter().map(|key| (key, Mode::Exclusive))).await
    }

    pub async fn lock_modes(&self, keys: impl IntoIterator<Item = (Bytes, Mode)>) -> LockGuard {
        self.0.locks.lock(keys).await
    }

    /// A serial for a new inode: never handed out before, also not by earlier leaders to an inode that was committed.
    pub fn serial(&self) -> u64 {
        let serial = self.0.next_serial.get();
        self.0.next_serial.set(serial + 1);
        serial
    }

    /// Waits until the record stands on P+1.
    pub async fn settled(&self, seq: Seq) -> Result<(), BucketError> {
        Ok(self.0.log.settled(seq).await?)
    }

    /// Waits until everything that a read may have seen stands on P+1 and the leader's lease holds.
    pub async fn readable(&self) -> Result<(), BucketError> {
        let log = &self.0.log;
        if let Some(error) = log.failed() {
            return Err(error.into());
        }
        log.settled(log.last()).await?;
        if !log.lease_valid(self.0.handle.now()) {
            log.hold_lease().await?;
        }
        Ok(())
    }

    /// Why the bucket serves no more, if so.
    pub fn failed(&self) -> Option<BucketError> {
        if self.0.closed.get() {
            return Some(BucketError::Stopped);
        }
        self.0.log.failed().map(BucketError::from)
    }

    /// Writes blocks as a full stripe, durably on all members. [`Batch::place`] makes them real.
    pub async fn stage(&self, data: Bytes) -> Result<Staged, BucketError> {
        self.admit((data.len() / BLOCK_BYTES) as u64).await?;
        self.0.stripes.stage(Kind::Data, data).await
    }

    /// Blocks that one [`Bucket::stage`] takes.
    pub fn stage_blocks_max(&self) -> u32 {
        self.0.stripes.blocks_max()
    }

    /// A staged stripe that will not be placed after all.
    pub fn abandon(&self, staged: Staged) {
        self.0.stripes.abandon(&staged);
    }

    /// What of `range` is where, and the data. Covers the range without gaps, in order.
    pub async fn read_blocks(&self, object: Object, range: Range<u64>) -> Result<Vec<read::ReadExtent>, BucketError> {
        read::read_blocks(self, object, range).await
    }

    /// The first block at or after `from` that holds data (`hole`: that is a hole), below `end`.
    pub async fn seek(&self, object: Object, from: u64, end: u64, hole: bool) -> Result<Option<u64>, BucketError> {
        read::seek(self, object, from, end, hole).await
    }

    /// Blocks that the file has in this bucket.
    pub async fn count_blocks(&self, object: Object) -> Result<u64, BucketError> {
        let mut blocks = 0;
        let mut at = 0;
        loop {
            let extents = self.extents(object, at..u64::MAX, 1024).await?;
            blocks += extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>();
            match extents.last() {
                Some(last) if extents.len() == 1024 => at = last.first + 1,
                _ => return Ok(blocks),
            }
        }
    }

    /// Space for users of this bucket.
    pub fn space(&self) -> Space {
        let zones = self.0.stripes.zones.borrow();
        let rows = u64::from(self.0.zone_rows);
        let tunables = &self.0.tunables;
        let sets = (tunables.zone_sets_max.saturating_sub(tunables.zone_sets_reserved)) as u64;
        let blocks = sets * rows * u64::from(self.0.protection.data) * tunables.fill_share_max / 256;
        Space { blocks, used: zones.live_blocks() + self.0.held.borrow().live_blocks() }
    }

    /// Waits for room for as many blocks of user data; `NoSpace` if cleaning can't make it.
    pub async fn admit(&self, blocks: u64) -> Result<(), BucketError> {
        for _ in 0..ROOM_WAITS_MAX {
            let zone_sets = self.0.stripes.zones.borrow().sets_len();
            let space = self.space();
            if space.used + blocks > space.blocks {
                return Err(BucketError::NoSpace);
            }
            let limit = self.0.tunables.zone_sets_max.saturating_sub(self.0.tunables.zone_sets_reserved);
            let held_full = self.0.held.borrow().resident_bytes() > self.0.tunables.held_bytes_max;
            if zone_sets <= limit && !held_full {
                return Ok(());
            }
            self.wait_for_progress().await?;
        }
        if self.0.stripes.zones.borrow().sets_len() < self.0.tunables.zone_sets_max {
            return Err(BucketError::NoSpace);
        }
        Err(BucketError::NotReady(format!("{} waits for the cleaner", self.0.id)))
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
        let done = self.commit_admitted(&batch).await;
        if done.is_err() {
            self.abandon_placed(&batch);
        }
        done
    }

    async fn commit_admitted(&self, batch: &Batch) -> Result<Seq, BucketError> {
        let journalled: u64 = batch
            .data
            .iter()
            .map(|change| match change {
                DataChange::Write { data, .. } => (data.len() / BLOCK_BYTES) as u64,
                DataChange::Reserve { range, .. } => range.end - range.start,
                _ => 0,
            })
            .sum();
        if journalled > 0 {
            self.admit(journalled).await?;
        }
        // The last quarter of the journal is for the work that makes room.
        while self.0.log.room().bytes_used * 4 > self.0.log.room().bytes_quota * 3 {
            self.wait_for_progress().await?;
        }
        self.commit_unadmitted(batch, &[]).await
    }

    /// A batch that will not be committed after all: what was staged for it is nobody's.
    pub fn discard(&self, batch: Batch) {
        self.abandon_placed(&batch);
    }

    /// Stripes that were staged for a batch which was not taken are nobody's.
    fn abandon_placed(&self, batch: &Batch) {
        for change in &batch.data {
            if let DataChange::Place { staged, .. } = change {
                self.0.stripes.abandon(staged);
            }
        }
    }

    /// A commit that makes room instead of taking it.
    pub(crate) async fn commit_unadmitted(&self, batch: &Batch, sets: &[ZoneSetChange]) -> Result<Seq, BucketError> {
        let mut touched: BTreeMap<Slab, u64> = BTreeMap::new();
        for change in &batch.data {
            let (object, range) = change.target();
            for slab in slabs(object, &range) {
                let end = touched.entry(slab).or_default();
                *end = (*end).max(range.end.min((slab.1 + 1) * SLAB_BLOCKS));
            }
        }
        loop {
            let _guard = self.0.locks.lock(touched.keys().map(|slab| (slab_lock(*slab), Mode::Exclusive))).await;
            let mut worked = Worked::default();
            for (slab, end) in &touched {
                let extents = self.extents(slab.0, slab.1 * SLAB_BLOCKS..*end, usize::MAX).await?;
                worked.load(*slab, extents);
            }
            for change in &batch.data {
                worked.apply(change);
            }
            match self.commit_now(&batch.changes, &batch.data, &worked, sets) {
                Err(LogError::Full) => {}
                done => return Ok(done?),
            }
            drop(_guard);
            self.wait_for_progress().await?;
        }
    }

    /// The synchronous part: from here to the end nothing else runs on this core.
    pub(crate) fn commit_now(
        &self,
        changes: &[(Bytes, Option<Bytes>)],
        data: &[DataChange],
        worked: &Worked,
        sets: &[ZoneSetChange],
    ) -> Result<Seq, LogError> {
        if self.0.closed.get() {
            return Err(LogError::Stopped);
        }
        let mut record = BatchRecord {
            changes: changes.to_vec(),
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
            zone_sets: sets.to_vec(),
            next_serial: self.0.next_serial.get(),
            ..BatchRecord::default()
        };
        record.changes.extend(worked.changes());
        let mut live: BTreeMap<StripeId, u32> = BTreeMap::new();
        let mut placed = Vec::new();
        for change in data {
            let DataChange::Place { object, first, staged, block, blocks } = change else { continue };
            placed.push((
                Rc::clone(staged),
                Owner { fs: object.fs, inode: object.inode, first: *first, block: *block, blocks: *blocks },
            ));
        }
        for (stripe, owners) in by_stripe(&placed) {
            let staged = &owners[0].0;
            let blocks = owners.iter().map(|(_, owner)| owner.blocks).sum();
            live.insert(stripe, blocks);
            let entry = StripeEntry {
                zone_set: staged.place.zone_set,
                row: staged.place.row,
                rows: staged.rows,
                kind: staged.kind,
                live: blocks,
            };
            record.stripes.push((stripe, entry));
            let value = StripeRecord {
                zone_set: staged.place.zone_set,
                row: staged.place.row,
                rows: staged.rows,
                checksums: staged.checksums.clone(),
                owners: owners.iter().map(|(_, owner)| *owner).collect(),
            };
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
        for (stripe, count) in &live {
            if *count == 0 {
                record.changes.push((key::stripe(*stripe), None));
            }
        }
        record.live = live.into_iter().collect();
        let (seq, _) = self.0.log.append(RecordKind::Batch, record.encode(worked.data.clone()))?;
        self.apply(seq, &record, worked.data.clone());
        {
            let mut held = self.0.held.borrow_mut();
            for dead in &worked.dead {
                if let Location::Journal { seq: at, block } = dead.location {
                    held.kill(if at == Seq(0) { seq } else { at }, block, dead.blocks);
                }
            }
        }
        {
            let mut zones = self.0.stripes.zones.borrow_mut();
            let mut settled: Vec<StripeId> = Vec::new();
            for (staged, _) in &placed {
                if !settled.contains(&staged.stripe()) {
                    settled.push(staged.stripe());
                    zones.settle(staged.place);
                }
            }
        }
        add(&self.0.counters.commits, 1);
        if self.wants_work() {
            self.0.stripes.work.notify_one();
        }
        Ok(seq)
    }

    /// What a record does to memory. Also the replay at recovery.
    pub(crate) fn apply(&self, seq: Seq, record: &BatchRecord, data: Vec<Bytes>) {
        for (key, value) in &record.changes {
            let value = match value {
                Some(value) if key::is_extent(key) => Some(placed_at(key, value, seq)),
                other => other.clone(),
            };
            self.0.index.insert(key.clone(), value);
        }
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
        let mut zones = self.0.stripes.zones.borrow_mut();
        for change in &record.zone_sets {
            match change {
                ZoneSetChange::Open(set) => zones.add_set(set.clone(), false),
                ZoneSetChange::Free(id) => zones.remove_set(*id),
            }
        }
        for (id, entry) in &record.stripes {
            zones.add_stripe(*id, *entry);
        }
        for (id, live) in &record.live {
            zones.set_live(*id, *live);
            if *live == 0 {
                self.0.views.borrow_mut().remove(id);
            }
        }
        self.0.next_serial.set(self.0.next_serial.get().max(record.next_serial));
    }

    /// Journals a zone set before anything is written to it. The set itself is added by whoever opened it.
    pub(crate) async fn record_zone_set(&self, set: ZoneSet) -> Result<(), BucketError> {
        let record = BatchRecord {
            zone_sets: vec![ZoneSetChange::Open(set)],
            next_serial: self.0.next_serial.get(),
            ..BatchRecord::default()
        };
        loop {
            match self.0.log.append(RecordKind::Batch, record.encode(Vec::new())) {
                Ok((seq, _)) => {
                    self.0.log.settled(seq).await?;
                    return Ok(());
                }
                // A checkpoint may be what asks for the zone set: its root must not wait for itself.
                Err(LogError::Full) => self.0.handle.sleep(std::time::Duration::from_millis(5)).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Extents that begin in or reach into `range`, which must begin at a slab's start or in one slab.
    pub(crate) async fn extents(
        &self,
        object: Object,
        range: Range<u64>,
        limit: usize,
    ) -> Result<Vec<Extent>, BucketError> {
        let slab_start = range.start - range.start % SLAB_BLOCKS;
        let from = key::extent(object, slab_start);
        let to = key::extent(object, range.end);
        let found = self.scan(&from, &to, limit).await?;
        let mut extents = Vec::with_capacity(found.len());
        for (key, value) in found {
            let first = key::extent_block(&key);
            let extent = first.and_then(|first| Extent::decode(first, &value));
            let extent = extent.ok_or_else(|| BucketError::Corrupt(format!("an extent of {}", object.inode)))?;
            if extent.end() > range.start {
                extents.push(extent);
            }
        }
        Ok(extents)
    }

    /// A stripe as readers need it.
    pub(crate) async fn view(&self, id: StripeId) -> Result<Rc<StripeView>, BucketError> {
        if let Some(view) = self.0.views.borrow().get(&id) {
            return Ok(Rc::clone(view));
        }
        let record = self.stripe_record(id).await?;
        let view = Rc::new(self.0.stripes.view(id, &record)?);
        let mut views = self.0.views.borrow_mut();
        if views.len() >= VIEWS_MAX {
            views.pop_first();
        }
        views.insert(id, Rc::clone(&view));
        Ok(view)
    }

    pub(crate) async fn stripe_record(&self, id: StripeId) -> Result<StripeRecord, BucketError> {
        let value = self.get(&key::stripe(id)).await?.ok_or(BucketError::Gone(id))?;
        weft_wire::decode(&value).map_err(|_| BucketError::Corrupt(format!("the record of {id}")))
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.0.counters;
        let stripes = &self.0.stripes;
        let zones = stripes.zones.borrow();
        Stats {
            commits: counters.commits.get(),
            destaged_blocks: counters.destaged_blocks.get(),
            checkpoints: counters.checkpoints.get(),
            merges: counters.merges.get(),
            cleaned_sets: counters.cleaned_sets.get(),
            moved_blocks: counters.moved_blocks.get(),
            repaired_stripes: counters.repaired_stripes.get(),
            freed_sets: counters.freed_sets.get(),
            checksum_errors: stripes.stats.checksum_errors.get(),
            reconstructions: stripes.stats.reconstructions.get(),
            stripes: zones.stripes().count() as u64,
            zone_sets: zones.sets_len() as u64,
            runs: self.0.index.runs().len() as u64,
            held_bytes: self.0.held.borrow().resident_bytes(),
            index_resident_bytes: self.0.index.resident_bytes() as u64,
            index_pages_read: self.0.index.pages_read(),
            journal_bytes: self.0.log.room().bytes_used,
            damaged_stripes: stripes.damaged.borrow().len() as u64,
            trouble: self.0.trouble.borrow().clone(),
        }
    }

    /// New members for new zone sets.
    pub fn set_members(&self, members: Vec<DriveId>) {
        *self.0.members.borrow_mut() = members;
    }

    /// Stops all work. Nothing is written any more; what was acknowledged is in the journal.
    pub fn close(&self) {
        self.0.closed.set(true);
        self.0.log.stop();
        self.0.stripes.work.notify_one();
        self.0.progress.notify_all();
    }
}

type Placed = (Rc<Staged>, Owner);

fn by_stripe(placed: &[Placed]) -> BTreeMap<StripeId, Vec<Placed>> {
    let mut by: BTreeMap<StripeId, Vec<Placed>> = BTreeMap::new();
    for (staged, owner) in placed {
        by.entry(staged.stripe()).or_default().push((Rc::clone(staged), *owner));
    }
    by
}

/// In a record, sequence 0 stands for the record itself.
fn placed_at(key: &[u8], value: &Bytes, seq: Seq) -> Bytes {
    let extent = key::extent_block(key).and_then(|first| Extent::decode(first, value));
    match extent {
        Some(Extent { first, blocks, location: Location::Journal { seq: Seq(0), block } }) => {
            Extent { first, blocks, location: Location::Journal { seq, block } }.encode().into()
        }
        _ => value.clone(),
    }
}
