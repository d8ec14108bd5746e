//! The bucket as its users see it: what can be asked and found. `commit` is where something changes.

use crate::cache::Cache;
use crate::drives::DriveStates;
use crate::extent::{Extent, Location};
use crate::held::Held;
use crate::index::Index;
use crate::io::FindDrive;
use crate::key::{self, Object};
use crate::lock::{LockGuard, Locks, Mode};
use crate::merge::Merge;
use crate::planner::{Pauses, Step};
use crate::rebuild::{RebuildProgress, Rebuilds};
use crate::rebuild_pace::Stride;
use crate::run::IndexStripe;
use crate::stripe::{StripeRecord, StripeView};
use crate::stripes::{SetLimits, Stripes};
use crate::tunables::Tunables;
use crate::{BucketError, read};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use weft_journal::Log;
use weft_reactor::Handle;
use weft_reactor::sync::Notify;
use weft_wire::limits::SLAB_BLOCKS;
use weft_wire::map::{Ensemble, Protection};
use weft_wire::{BucketId, DriveId, Epoch, Seq, StripeId, Uuid, ZoneSetId};

/// What a leader must know to open its bucket.
pub struct BucketParams {
    pub cluster: Uuid,
    pub id: BucketId,
    pub epoch: Epoch,
    pub protection: Protection,
    pub members: Vec<DriveId>,
    pub states: DriveStates,
    pub ensembles: Vec<Ensemble>,
    /// Blocks of a zone on the member with the smallest zones.
    pub zone_rows: u32,
    pub find: FindDrive,
    /// Of the buckets that this core leads.
    pub beats: Rc<weft_journal::Beats>,
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
    /// Blocks that are allocated and hold nothing.
    pub reserved_blocks: Cell<u64>,
    pub rebuild_stride: Cell<Stride>,
    /// The most blocks that users had since this leader began.
    pub data_blocks_most: Cell<u64>,
    pub next_run: Cell<u64>,
    /// Stripes of the manifest that the newest root names.
    pub manifest: RefCell<Vec<IndexStripe>>,
    /// Runs that are being merged, a piece at a time.
    pub merging: RefCell<Option<Merge>>,
    /// The set that the cleaner is emptying.
    pub cleaning: Cell<Option<ZoneSetId>>,
    /// What the frozen memtable covers.
    pub frozen_at: Cell<Seq>,
    /// Told after each round of the planner, to those who wait for room.
    pub progress: Notify,
    pub views: RefCell<Cache<StripeId, Rc<StripeView>>>,
    pub counters: Counters,
    pub closed: Cell<bool>,
    /// The journal refused a record: a checkpoint is due, however little it holds.
    pub starved: Cell<bool>,
    /// Why the bucket ended, if the journal wasn't the first to hear.
    pub ended: RefCell<Option<BucketError>>,
    /// The planner is to stop after its step.
    pub finishing: Cell<bool>,
    /// The planner runs: nobody else may do its work.
    pub planning: Cell<bool>,
    pub planner_done: Notify,
    /// What it does just now, for people.
    pub step: Cell<Option<Step>>,
    pub pauses: RefCell<Pauses>,
    pub rebuilds: RefCell<Rebuilds>,
    /// [`Counters::asked`] at the end of the last step of a rebuild.
    pub asked_before: Cell<u64>,
}

/// A bucket that is asked while its index moves looks again so often.
const LOOKS_MAX: u32 = 64;
/// Extents that one look at a whole file takes.
const EXTENTS_MAX: usize = 1024;

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
    pub scrubbed_stripes: Cell<u64>,
    pub scrubbed_blocks: Cell<u64>,
    pub scrubs: Cell<u64>,
    pub rebuilt_bytes: Cell<u64>,
    pub rebuilt_shards: Cell<u64>,
    /// Reads and writes that users began.
    pub asked: Cell<u64>,
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
    pub scrubbed_stripes: u64,
    pub scrubbed_blocks: u64,
    pub scrubs: u64,
    pub checksum_errors: u64,
    pub reconstructions: u64,
    pub stripes: u64,
    pub zone_sets: u64,
    pub runs: u64,
    pub held_bytes: u64,
    pub index_resident_bytes: u64,
    pub index_pages_read: u64,
    pub journal_bytes: u64,
    /// Stripes by how many of their shards can't be read now: whole ones, those that lack one, and so on; the last
    /// number is of those that lack more than the protection survives.
    pub stripes_by_missing: Vec<u64>,
    pub rebuild: RebuildProgress,
    /// Bytes and shards of zone sets that were made anew.
    pub rebuilt_bytes: u64,
    pub rebuilt_shards: u64,
    /// Drives that answer much later than the others.
    pub slow_drives: BTreeSet<DriveId>,
    pub hedged_reads: u64,
    /// Waiting to be repaired.
    pub damaged_stripes: u64,
    /// More is lost of them than the protection survives.
    pub lost_stripes: u64,
    /// Zones whose drives could not be told yet that they are free.
    pub unfreed_zones: u64,
    /// What the planner does just now.
    pub step: Option<String>,
    /// Why something that should happen doesn't.
    pub trouble: Option<String>,
}

pub(crate) fn add(counter: &Cell<u64>, by: u64) {
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
        for _ in 0..LOOKS_MAX {
            match self.0.index.get(key, &self.0.stripes).await {
                // Runs were merged meanwhile, and the old ones freed.
                Err(BucketError::Gone(_)) => self.0.handle.yield_now().await,
                done => return done,
            }
        }
        Err(moving())
    }

    /// The first `limit` entries with keys in [`from`, `to`).
    pub async fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, BucketError> {
        self.scan_from(from, from, to, limit).await
    }

    /// Scans from the last key between `floor` and `from`, if there is one.
    async fn scan_from(
        &self,
        floor: &[u8],
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, BucketError> {
        for _ in 0..LOOKS_MAX {
            match self.0.index.scan(floor, from, to, limit, &self.0.stripes).await {
                Err(BucketError::Gone(_)) => self.0.handle.yield_now().await,
                done => return done,
            }
        }
        Err(moving())
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
        if let Some(error) = self.failed() {
            return Err(error);
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
        self.0.log.failed().map(BucketError::from).or_else(|| self.0.ended.borrow().clone())
    }

    /// Someone took over, a drive says: nothing will work any more.
    pub(crate) fn end(&self, error: BucketError) {
        self.0.ended.borrow_mut().get_or_insert(error);
        self.0.stripes.work.notify_one();
        self.0.progress.notify_all();
    }

    /// Blocks that one [`Bucket::stage`] takes.
    pub fn stage_blocks_max(&self) -> u32 {
        self.0.stripes.blocks_max()
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
        let mut at = Some(0);
        while let Some(from) = at {
            let extents = self.extents(object, from..u64::MAX, EXTENTS_MAX).await?;
            blocks += extents.iter().map(|extent| u64::from(extent.blocks)).sum::<u64>();
            at = more_from(&extents);
        }
        Ok(blocks)
    }

    /// Whether any block of the range was written, and not only reserved.
    pub async fn is_written(&self, object: Object, range: Range<u64>) -> Result<bool, BucketError> {
        let mut at = Some(range.start);
        while let Some(from) = at {
            let extents = self.extents(object, from..range.end, EXTENTS_MAX).await?;
            if extents.iter().any(|extent| extent.location != Location::Zero) {
                return Ok(true);
            }
            at = more_from(&extents);
        }
        Ok(false)
    }

    /// Extents that begin in or reach into `range`: the first so many, or one less.
    pub(crate) async fn extents(
        &self,
        object: Object,
        range: Range<u64>,
        limit: usize,
    ) -> Result<Vec<Extent>, BucketError> {
        // The extent that covers the first block begins in its slab: it is the last one at or before it.
        let slab_start = range.start - range.start % SLAB_BLOCKS;
        let floor = key::extent(object, slab_start);
        let from = key::extent(object, range.start);
        let to = key::extent(object, range.end);
        let found = self.scan_from(&floor, &from, &to, limit).await?;
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
        if let Some(view) = self.0.views.borrow_mut().get(&id).filter(|view| self.0.stripes.is_current(view)) {
            return Ok(Rc::clone(view));
        }
        let record = self.stripe_record(id).await?;
        let view = Rc::new(self.0.stripes.view(id, record)?);
        let bytes = view.bytes();
        self.0.views.borrow_mut().insert(id, Rc::clone(&view), bytes);
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
            scrubbed_stripes: counters.scrubbed_stripes.get(),
            scrubbed_blocks: counters.scrubbed_blocks.get(),
            scrubs: counters.scrubs.get(),
            checksum_errors: stripes.stats.checksum_errors.get(),
            reconstructions: stripes.stats.reconstructions.get(),
            stripes: zones.stripes_len() as u64,
            zone_sets: zones.sets_len() as u64,
            runs: self.0.index.runs().len() as u64,
            held_bytes: self.0.held.borrow().resident_bytes(),
            index_resident_bytes: self.0.index.resident_bytes() as u64,
            index_pages_read: self.0.index.pages_read(),
            journal_bytes: self.0.log.room().bytes_used,
            stripes_by_missing: self.stripes_by_missing(),
            rebuild: self.rebuild_progress(),
            rebuilt_bytes: counters.rebuilt_bytes.get(),
            rebuilt_shards: counters.rebuilt_shards.get(),
            slow_drives: stripes.drives.paces.slow(),
            hedged_reads: stripes.stats.hedged_reads.get(),
            damaged_stripes: stripes.damaged.borrow().len() as u64,
            lost_stripes: stripes.lost.borrow().len() as u64,
            unfreed_zones: stripes.unfreed_len() as u64,
            step: self.0.step.get().map(|step| format!("{step:?}")),
            trouble: self.trouble().or_else(|| self.0.log.troubles()),
        }
    }

    /// What the newest map says: the members of new zone sets, and how the cluster's drives are.
    pub fn set_members(&self, members: Vec<DriveId>, states: DriveStates) {
        if self.0.stripes.update_drives(members, states) {
            self.0.pauses.borrow_mut().try_again(self.0.handle.now());
        }
    }

    /// The members of new zone sets, as the bucket was told last.
    pub fn members(&self) -> Vec<DriveId> {
        self.0.stripes.drives.members()
    }

    /// How many zone sets the bucket may own from now on: its share of its members' zones changes with the cluster.
    pub fn set_zone_sets_max(&self, max: usize) {
        let limits = self.0.stripes.limits.get();
        self.0.stripes.limits.set(SetLimits { max, ..limits });
    }

    /// Stops all work. Nothing is written any more; what was acknowledged is in the journal.
    pub fn close(&self) {
        self.0.closed.set(true);
        self.0.stripes.listing.notify_one();
        self.0.log.stop();
        self.0.stripes.work.notify_one();
        self.0.progress.notify_all();
    }
}

/// Where the next look at a file's extents begins, if this one may not have shown all: it may be one short.
fn more_from(extents: &[Extent]) -> Option<u64> {
    extents.last().filter(|_| extents.len() + 1 >= EXTENTS_MAX).map(Extent::end)
}

fn moving() -> BucketError {
    BucketError::NotReady("the index moves while it is read".into())
}
