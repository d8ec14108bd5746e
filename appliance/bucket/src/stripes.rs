//! The stripes of a bucket: what writing (`staging`), reading (`shards`) and giving back (`freeing`) share.

use crate::BucketError;
use crate::drives::{DriveStates, Drives};
use crate::io::{DriveCallError, DriveCalls};
use crate::run::{IndexStripe, RunMeta};
use crate::stripe::{self, StripeRecord, StripeView};
use crate::zone_set::{Member, ZoneSet};
use crate::zones::ZoneTable;
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_erasure::Code;
use weft_reactor::buf::AlignedBuf;
use weft_reactor::sync::{Mutex, Notify};
use weft_reactor::{Either, Handle, select};
use weft_wire::drive::{DriveOp, DriveReply};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::Protection;
use weft_wire::{DriveId, Epoch, StripeId, ZoneSetId};

/// Who writes a stripe, and so which zone sets it may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purse {
    /// All but the reserved ones.
    User,
    /// All: what makes room must not wait for room.
    Planner,
}

/// How many zone sets the bucket may own.
#[derive(Clone, Copy, Debug)]
pub struct SetLimits {
    pub max: usize,
    pub reserved: usize,
}

impl SetLimits {
    pub fn user(&self) -> usize {
        self.max.saturating_sub(self.reserved)
    }

    /// What a planner may own that couldn't go on otherwise. What a leader opened its successor can't append to, so
    /// leaders that come and go while a bucket is full use up its reserve; others' are seldom needed at the same time,
    /// and the cleaner gives it back.
    pub fn borrowed(&self) -> usize {
        self.max + 2 * self.reserved
    }
}

/// Called with each newly opened zone set before anything is written to it: enters it into the table, and makes it
/// durable in the journal.
pub type RecordZoneSet = Box<dyn Fn(ZoneSet) -> std::pin::Pin<Box<dyn Future<Output = Result<(), BucketError>>>>>;

/// Counts of what reading found.
#[derive(Debug, Default)]
pub struct StripeStats {
    pub stripes_written: Cell<u64>,
    pub blocks_read: Cell<u64>,
    pub checksum_errors: Cell<u64>,
    pub shards_unreachable: Cell<u64>,
    pub reconstructions: Cell<u64>,
    /// Reads that were made from other shards because a drive took long.
    pub hedged_reads: Cell<u64>,
}

pub struct Stripes {
    pub calls: DriveCalls,
    pub protection: Protection,
    pub epoch: Epoch,
    pub zones: Rc<RefCell<ZoneTable>>,
    pub limits: Cell<SetLimits>,
    pub stats: StripeStats,
    /// Stripes with a wrong or unreadable block, data or parity: to be moved.
    pub damaged: RefCell<BTreeSet<StripeId>>,
    /// Stripes of which more is lost than the protection survives.
    pub lost: RefCell<BTreeSet<StripeId>>,
    /// Zones whose drives did not hear that they are free.
    pub(crate) unfreed: RefCell<Vec<Member>>,
    /// Numbers under which zones are being opened that no record names yet.
    pub(crate) unnamed: Rc<RefCell<BTreeSet<ZoneSetId>>>,
    /// Drives that may hold zones that nobody names.
    pub(crate) unlisted: RefCell<BTreeSet<DriveId>>,
    /// Wakes whoever lists them.
    pub(crate) listing: Notify,
    pub drives: Drives,
    /// Wakes the planner.
    pub work: Notify,
    /// Reads of shards that are asked for a second way at this moment.
    pub(crate) hedges: Cell<u32>,
    pub(crate) handle: Handle,
    pub(crate) code: Code,
    pub(crate) opening: Mutex<()>,
    pub(crate) record_set: RefCell<Option<RecordZoneSet>>,
}

impl Stripes {
    pub fn new(
        handle: Handle,
        calls: DriveCalls,
        protection: Protection,
        epoch: Epoch,
        drives: Drives,
        limits: SetLimits,
    ) -> Result<Self, BucketError> {
        let code = Code::new(usize::from(protection.data), usize::from(protection.parity))
            .map_err(|error| BucketError::Corrupt(error.to_string()))?;
        Ok(Self {
            calls,
            protection,
            epoch,
            zones: Rc::new(RefCell::new(ZoneTable::new(protection.data))),
            limits: Cell::new(limits),
            stats: StripeStats::default(),
            damaged: RefCell::default(),
            lost: RefCell::default(),
            unfreed: RefCell::default(),
            unnamed: Rc::default(),
            unlisted: RefCell::new(drives.all_there().into_iter().collect()),
            listing: Notify::new(),
            drives,
            work: Notify::new(),
            hedges: Cell::new(0),
            handle,
            code,
            opening: Mutex::new(()),
            record_set: RefCell::new(None),
        })
    }

    pub fn set_recorder(&self, record: RecordZoneSet) {
        *self.record_set.borrow_mut() = Some(record);
    }

    pub fn blocks_max(&self) -> u32 {
        stripe::blocks_max(self.protection)
    }

    /// A newer map. What is written from now on goes to the members that are there: open sets that lack one of them, or
    /// have another drive, are closed. Whether anything is different now.
    pub fn update_drives(&self, members: Vec<DriveId>, states: DriveStates) -> bool {
        let Some(back) = self.drives.update(members, states) else { return false };
        let unfit: Vec<ZoneSetId> =
            self.zones.borrow().open_sets().filter(|set| !self.fits(set)).map(|set| set.id).collect();
        unfit.into_iter().for_each(|id| self.zones.borrow_mut().close(id));
        self.unlisted.borrow_mut().extend(back);
        self.listing.notify_one();
        self.work.notify_one();
        true
    }

    /// Whether a set is what a new one would be.
    pub(crate) fn fits(&self, set: &ZoneSet) -> bool {
        let members = self.drives.members();
        set.members.len() == members.len()
            && set.members.iter().zip(&members).all(|(member, drive)| {
                member.map(|member| member.drive) == self.drives.is_there(*drive).then_some(*drive)
            })
    }

    /// A call that ends when the map says that the drive isn't there.
    pub(crate) async fn ask(
        &self,
        drive: DriveId,
        op: DriveOp,
        body: Bytes,
    ) -> Result<(DriveReply, Bytes), DriveCallError> {
        match select(self.drives.left(drive), self.calls.call(drive, op, body)).await {
            Either::Left(()) => Err(DriveCallError::Away(drive)),
            Either::Right(answer) => answer,
        }
    }

    /// A stripe as readers need it, from the record in the index.
    pub fn view(&self, id: StripeId, record: StripeRecord) -> Result<StripeView, BucketError> {
        let set = self.zones.borrow().set(record.zone_set).cloned();
        let set = set.ok_or(BucketError::Gone(id))?;
        Ok(StripeView { id, set, row: record.row, rows: record.rows, checksums: Rc::new(record.checksums) })
    }

    pub fn index_view(&self, stripe: &IndexStripe) -> Result<StripeView, BucketError> {
        let set = self.zones.borrow().set(stripe.zone_set).cloned();
        let set = set.ok_or(BucketError::Gone(stripe.id))?;
        Ok(StripeView {
            id: stripe.id,
            set,
            row: stripe.row,
            rows: stripe.rows,
            checksums: Rc::new(stripe.checksums.clone()),
        })
    }

    /// Whether parity is what the data shards give.
    pub fn parity_fits(&self, shards: &[Bytes]) -> bool {
        let (data, parity) = shards.split_at(usize::from(self.protection.data).min(shards.len()));
        let inputs: Vec<&[u8]> = data.iter().map(|shard| &shard[..]).collect();
        let mut expected: Vec<Vec<u8>> = parity.iter().map(|shard| vec![0; shard.len()]).collect();
        let mut outputs: Vec<&mut [u8]> = expected.iter_mut().map(|shard| &mut shard[..]).collect();
        self.code.encode(&inputs, &mut outputs);
        parity.iter().zip(&expected).all(|(shard, expected)| shard == expected)
    }

    /// Blocks of a run.
    pub async fn read_run(&self, meta: &RefCell<RunMeta>, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let found = meta.borrow().stripes_of(block, blocks);
        let mut parts = Vec::with_capacity(found.len());
        let mut have = 0;
        for (stripe, within, count) in found {
            parts.push(self.read_index_stripe(&stripe, within, count).await?);
            have += count;
        }
        match have == blocks {
            true => Ok(concat(parts)),
            false => Err(BucketError::Corrupt(format!("a run without block {}", block + have))),
        }
    }

    pub async fn read_index_stripe(&self, stripe: &IndexStripe, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let view = self.index_view(stripe)?;
        self.read(&view, block, blocks).await
    }

    /// The stripe is gone, and with it whatever was wrong with it.
    pub fn forget(&self, id: StripeId) {
        self.damaged.borrow_mut().remove(&id);
        self.lost.borrow_mut().remove(&id);
    }

    pub fn mark_damaged(&self, id: StripeId) {
        if !self.lost.borrow().contains(&id) && self.damaged.borrow_mut().insert(id) {
            self.work.notify_one();
        }
    }
}

/// One buffer from several; no copy if there is one alone.
pub fn concat(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.pop().unwrap_or_default();
    }
    let len = parts.iter().map(Bytes::len).sum();
    if len >= BLOCK_BYTES {
        let mut out = AlignedBuf::unfilled(len);
        let mut at = 0;
        for part in &parts {
            out.as_mut_slice()[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        return out.freeze();
    }
    let mut out = BytesMut::with_capacity(len);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out.freeze()
}
