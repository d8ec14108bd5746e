//! Writing and reading stripes on the members' drives.

use crate::BucketError;
use crate::drives::Drives;
use crate::io::{DriveCallError, DriveCalls};
use crate::run::{IndexStripe, RunMeta};
use crate::stripe::{self, Claim, Encoded, Piece, Staged, StripeRecord, StripeView};
use crate::zones::{Kind, Member, Place, ZoneSet, ZoneTable};
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use weft_erasure::Code;
use weft_reactor::Handle;
use weft_reactor::buf::AlignedBuf;
use weft_reactor::sync::{Mutex, Notify};
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply};
use weft_wire::limits::{BLOCK_BYTES, STRIPE_ROWS_MAX};
use weft_wire::map::Protection;
use weft_wire::{Epoch, StripeId};

/// Zone sets tried for one stripe before its writer is told.
const STAGE_TRIES_MAX: u32 = 8;
/// Between tries, so that a drive that is away isn't asked without pause.
const STAGE_PAUSE: Duration = Duration::from_millis(200);

/// Zones that could not be given back yet, at most; beyond it they wait for the next leader.
const UNFREED_MAX: usize = 65536;
/// A drive that doesn't answer a read within this time is read around: the other shards say the same.
const READ_MAX: Duration = Duration::from_secs(1);

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
}

pub struct Stripes {
    pub calls: DriveCalls,
    pub protection: Protection,
    pub epoch: Epoch,
    pub zones: Rc<RefCell<ZoneTable>>,
    pub limits: SetLimits,
    pub stats: StripeStats,
    /// Stripes with a wrong or unreadable block, data or parity: to be moved.
    pub damaged: RefCell<BTreeSet<StripeId>>,
    /// Stripes of which more is lost than the protection survives.
    pub lost: RefCell<BTreeSet<StripeId>>,
    /// Zones whose drives did not hear that they are free.
    unfreed: RefCell<Vec<Member>>,
    pub drives: Drives,
    /// Wakes the planner.
    pub work: Notify,
    handle: Handle,
    code: Code,
    opening: Mutex<()>,
    record_set: RefCell<Option<RecordZoneSet>>,
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
            limits,
            stats: StripeStats::default(),
            damaged: RefCell::default(),
            lost: RefCell::default(),
            unfreed: RefCell::default(),
            drives,
            work: Notify::new(),
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

    /// Blocks of the next stripe of this kind that leave nothing of an open zone set unused: what the planner writes is
    /// cut to fit, so that cleaning always gains what was free.
    pub fn fitting_blocks(&self, kind: Kind) -> u32 {
        let zones = self.zones.borrow();
        let left = zones.rows_left(kind, zones.sets_len() >= self.limits.user());
        let rows = if left == 0 { STRIPE_ROWS_MAX } else { left.min(STRIPE_ROWS_MAX) };
        rows * u32::from(self.protection.data)
    }

    /// Writes a stripe on all members, durably. Nobody knows it until a batch places it. `NoSpace`: another zone set
    /// is needed and can't be had.
    pub async fn stage(&self, kind: Kind, purse: Purse, data: Bytes) -> Result<Staged, BucketError> {
        let data_blocks = (data.len() / BLOCK_BYTES) as u32;
        if data_blocks == 0 || data_blocks > self.blocks_max() || !data.len().is_multiple_of(BLOCK_BYTES) {
            return Err(BucketError::Bounds(format!("a stripe of {} bytes", data.len())));
        }
        let encoded = stripe::encode(&self.code, self.protection, &data);
        let mut last_error = None;
        for attempt in 0..STAGE_TRIES_MAX {
            if attempt > 1 {
                self.handle.sleep(STAGE_PAUSE * attempt).await;
            }
            let (claim, set) = match self.place(kind, purse, encoded.rows).await {
                Ok(placed) => placed,
                Err(BucketError::NotReady(reason)) => {
                    last_error = Some(BucketError::NotReady(reason));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match self.write_shards(&set, claim.place(), &encoded).await {
                Ok(()) => {
                    self.stats.stripes_written.set(self.stats.stripes_written.get() + 1);
                    return Ok(Staged {
                        place: claim.place(),
                        _claim: claim,
                        rows: encoded.rows,
                        kind,
                        data_blocks,
                        checksums: encoded.checksums,
                    });
                }
                Err(error) => {
                    self.zones.borrow_mut().close(set.id);
                    if let DriveCallError::Refused(_, DriveRefusal::Sealed(epoch)) = error {
                        return Err(BucketError::Deposed(epoch));
                    }
                    last_error = Some(BucketError::NotReady(error.to_string()));
                }
            }
        }
        Err(last_error.unwrap_or(BucketError::NotReady("no zone set could be written".into())))
    }

    async fn write_shards(&self, set: &ZoneSet, place: Place, encoded: &Encoded) -> Result<(), DriveCallError> {
        let writes: Vec<_> = set
            .members
            .iter()
            .zip(&encoded.shards)
            .map(|(member, shard)| {
                let op = DriveOp::WriteShard {
                    epoch: self.epoch,
                    zone: member.zone,
                    generation: member.generation,
                    block: place.row,
                };
                self.calls.call(member.drive, op, shard.clone())
            })
            .collect();
        let mut failed = Ok(());
        for (member, answer) in set.members.iter().zip(weft_reactor::join_all(writes).await) {
            match answer {
                Ok((DriveReply::Written, _)) => {}
                // That someone took over says more than that a drive is away.
                Err(sealed @ DriveCallError::Refused(_, DriveRefusal::Sealed(_))) => return Err(sealed),
                Ok(_) => failed = Err(DriveCallError::Confused(member.drive)),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    async fn place(&self, kind: Kind, purse: Purse, rows: u32) -> Result<(Claim, ZoneSet), BucketError> {
        if let Some(placed) = self.allocate(kind, rows) {
            return Ok(placed);
        }
        let _opening = self.opening.lock().await;
        // Someone else may have opened one meanwhile.
        if let Some(placed) = self.allocate(kind, rows) {
            return Ok(placed);
        }
        let sets = self.zones.borrow().sets_len();
        let opened = match purse {
            Purse::User if sets >= self.limits.user() => Err(BucketError::NoSpace),
            Purse::User => self.open_set(kind).await,
            Purse::Planner => {
                // Close to the limit kinds share what is open, so that the last sets are not spent on half-empty ones.
                if sets >= self.limits.user()
                    && let Some(placed) = self.allocate_anywhere(rows)
                {
                    return Ok(placed);
                }
                if sets >= self.limits.max { Err(BucketError::NoSpace) } else { self.open_set(kind).await }
            }
        };
        match opened {
            Ok(()) => {}
            Err(BucketError::NoSpace) if purse == Purse::Planner => {
                return self.allocate_anywhere(rows).ok_or(BucketError::NoSpace);
            }
            Err(error) => return Err(error),
        }
        self.allocate(kind, rows).ok_or_else(|| BucketError::Bounds(format!("{rows} rows don't fit a new zone set")))
    }

    fn allocate(&self, kind: Kind, rows: u32) -> Option<(Claim, ZoneSet)> {
        let mut zones = self.zones.borrow_mut();
        let place = zones.allocate(kind, rows);
        if place.is_none() && zones.has_freeable() {
            self.work.notify_one();
        }
        self.claim(&zones, place?)
    }

    fn allocate_anywhere(&self, rows: u32) -> Option<(Claim, ZoneSet)> {
        let mut zones = self.zones.borrow_mut();
        let place = zones.allocate_anywhere(rows)?;
        self.claim(&zones, place)
    }

    fn claim(&self, zones: &ZoneTable, place: Place) -> Option<(Claim, ZoneSet)> {
        let set = zones.set(place.zone_set)?.clone();
        Some((Claim::new(place, &self.zones, &self.work), set))
    }

    /// Opens a zone on each member and journals the set, which stripes of `kind` then go to.
    async fn open_set(&self, kind: Kind) -> Result<(), BucketError> {
        let id = self.zones.borrow_mut().next_set_id();
        let drives = self.drives.members();
        let opens: Vec<_> = drives
            .iter()
            .enumerate()
            .map(|(shard, drive)| {
                let op = DriveOp::OpenZone { epoch: self.epoch, zone_set: id, shard: shard as u8 };
                self.calls.call(*drive, op, Bytes::new())
            })
            .collect();
        let mut members = Vec::with_capacity(drives.len());
        let mut rows = u32::MAX;
        let mut failed: Option<BucketError> = None;
        for (drive, answer) in drives.iter().zip(weft_reactor::join_all(opens).await) {
            match answer {
                Ok((DriveReply::Zone { zone, generation, blocks }, _)) => {
                    members.push(Member { drive: *drive, zone, generation });
                    rows = rows.min(blocks);
                }
                Ok(_) => failed = Some(BucketError::NotReady(DriveCallError::Confused(*drive).to_string())),
                Err(DriveCallError::Refused(_, DriveRefusal::Sealed(epoch))) => {
                    return Err(BucketError::Deposed(epoch));
                }
                Err(DriveCallError::Refused(_, DriveRefusal::NoZone)) => failed = Some(BucketError::NoSpace),
                Err(error) => failed = failed.or(Some(BucketError::NotReady(error.to_string()))),
            }
        }
        if let Some(error) = failed {
            self.free_members(&members).await;
            return Err(error);
        }
        let set = ZoneSet { id, members, rows, epoch: self.epoch };
        let recorded = self.record_set.borrow().as_ref().map(|record| record(set.clone()));
        let Some(recorded) = recorded else { return Err(BucketError::Stopped) };
        if let Err(error) = recorded.await {
            // Where its record stands nobody knows; if the journal only took none of it, the zones are free again.
            if self.zones.borrow().set(id).is_none() {
                self.free_members(&set.members).await;
            }
            return Err(error);
        }
        self.zones.borrow_mut().open_set(kind, id);
        Ok(())
    }

    /// Gives zones back. What can't be reached is asked again by [`Self::free_again`], and by the next leader.
    pub async fn free_members(&self, members: &[Member]) {
        let frees: Vec<_> = members
            .iter()
            .map(|member| {
                let op = DriveOp::FreeZone { epoch: self.epoch, zone: member.zone, generation: member.generation };
                self.calls.call(member.drive, op, Bytes::new())
            })
            .collect();
        for (member, answer) in members.iter().zip(weft_reactor::join_all(frees).await) {
            if let Err(error) = answer {
                tracing::debug!(drive = %member.drive, %error, "a zone is freed later");
                let mut unfreed = self.unfreed.borrow_mut();
                if unfreed.len() < UNFREED_MAX && !matches!(error, DriveCallError::Unknown(_)) {
                    unfreed.push(*member);
                }
            }
        }
    }

    /// Zones that drives still have to be told to free.
    pub fn unfreed_len(&self) -> usize {
        self.unfreed.borrow().len()
    }

    /// Asks once more for what [`Self::free_members`] could not give back.
    pub async fn free_again(&self) {
        let members = std::mem::take(&mut *self.unfreed.borrow_mut());
        self.free_members(&members).await;
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

    /// Data blocks of a stripe, verified; made again from the other shards where a drive is away or wrong.
    pub async fn read(&self, view: &StripeView, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let pieces = stripe::pieces(view.rows, block, blocks);
        if let [piece] = pieces[..] {
            return self.read_or_reconstruct(view, piece).await;
        }
        let reads: Vec<_> = pieces.iter().map(|piece| self.read_or_reconstruct(view, *piece)).collect();
        let parts: Result<Vec<Bytes>, BucketError> = weft_reactor::join_all(reads).await.into_iter().collect();
        Ok(concat(parts?))
    }

    /// Where whole shards don't suffice, each row may have enough good blocks by itself.
    async fn read_or_reconstruct(&self, view: &StripeView, piece: Piece) -> Result<Bytes, BucketError> {
        match self.read_whole(view, piece).await {
            Err(BucketError::Unreadable(_)) if piece.rows > 1 => {}
            done => return done,
        }
        let mut rows = Vec::with_capacity(piece.rows as usize);
        for row in piece.row..piece.row + piece.rows {
            rows.push(self.read_whole(view, Piece { row, rows: 1, ..piece }).await?);
        }
        Ok(concat(rows))
    }

    async fn read_whole(&self, view: &StripeView, piece: Piece) -> Result<Bytes, BucketError> {
        let away = view.set.members.get(piece.shard).is_some_and(|member| self.drives.is_away(member.drive));
        let mut asked = None;
        if !away {
            match self.read_piece(view, piece).await {
                Ok(data) => {
                    self.stats.blocks_read.set(self.stats.blocks_read.get() + u64::from(piece.rows));
                    return Ok(data);
                }
                Err(error) => {
                    tracing::debug!(stripe = %view.id, shard = piece.shard, %error, "reconstructing");
                    asked = Some(error);
                }
            }
        }
        self.reconstruct(view, piece, asked).await
    }

    /// Whether the set that a reader looks at is still the bucket's: if not, its zones hold something else by now.
    fn is_current(&self, view: &StripeView) -> bool {
        self.zones.borrow().set(view.set.id).is_some_and(|set| set.members == view.set.members)
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

    /// Reads and verifies rows of one shard.
    pub async fn read_piece(&self, view: &StripeView, piece: Piece) -> Result<Bytes, PieceError> {
        let Some(member) = view.set.members.get(piece.shard) else {
            return Err(PieceError::Wrong("no such shard".into()));
        };
        let op = DriveOp::ReadShard {
            zone: member.zone,
            generation: member.generation,
            block: view.row + piece.row,
            blocks: piece.rows,
        };
        let wrong = match self.calls.call_within(member.drive, op, Bytes::new(), READ_MAX).await {
            Ok((DriveReply::Blocks, data)) if view.verify(piece, &data) => return Ok(data),
            Ok(_) => {
                self.stats.checksum_errors.set(self.stats.checksum_errors.get() + 1);
                tracing::warn!(stripe = %view.id, shard = piece.shard, drive = %member.drive, zone = %member.zone,
                    block = view.row + piece.row, blocks = piece.rows, "checksum mismatch");
                format!("{} holds something else", member.drive)
            }
            Err(DriveCallError::Refused(_, DriveRefusal::Gone(_))) if !self.is_current(view) => {
                return Err(PieceError::Gone);
            }
            Err(error @ DriveCallError::Refused(_, DriveRefusal::Gone(_) | DriveRefusal::Io(_))) => error.to_string(),
            Err(error) => {
                self.stats.shards_unreachable.set(self.stats.shards_unreachable.get() + 1);
                self.drives.was_silent(member.drive);
                return Err(PieceError::Unreachable(error.to_string()));
            }
        };
        self.mark_damaged(view.id);
        Err(PieceError::Wrong(wrong))
    }

    /// The same rows of as many other shards as are needed give the missing ones; shards of drives that seem to be away
    /// are asked last. `asked`: what the shard itself answered, if it was asked.
    async fn reconstruct(
        &self,
        view: &StripeView,
        wanted: Piece,
        asked: Option<PieceError>,
    ) -> Result<Bytes, BucketError> {
        let shards = self.protection.shards();
        let needed = usize::from(self.protection.data);
        let mut order: Vec<usize> = (0..shards).filter(|shard| *shard != wanted.shard).collect();
        order.sort_by_key(|shard| view.set.members.get(*shard).is_some_and(|member| self.drives.is_away(member.drive)));
        let mut unreachable = usize::from(matches!(asked, Some(PieceError::Unreachable(_))));
        if asked.is_none() {
            order.push(wanted.shard);
        }
        let mut order = order.into_iter();
        let mut found: Vec<Option<Bytes>> = vec![None; shards];
        let mut have = 0;
        while have < needed {
            let next: Vec<usize> = order.by_ref().take(needed - have).collect();
            if next.is_empty() {
                break;
            }
            let reads: Vec<_> =
                next.iter().map(|shard| self.read_piece(view, Piece { shard: *shard, ..wanted })).collect();
            for (shard, answer) in next.iter().zip(weft_reactor::join_all(reads).await) {
                match answer {
                    Ok(data) if *shard == wanted.shard => return Ok(data),
                    Ok(data) => {
                        found[*shard] = Some(data);
                        have += 1;
                    }
                    Err(PieceError::Gone) => return Err(BucketError::Gone(view.id)),
                    Err(PieceError::Unreachable(_)) => unreachable += 1,
                    Err(PieceError::Wrong(_)) => {}
                }
            }
        }
        if have < needed && !self.is_current(view) {
            return Err(BucketError::Gone(view.id));
        }
        if have < needed && have + unreachable >= needed {
            let (id, bucket) = (view.id, self.calls.bucket);
            return Err(BucketError::NotReady(format!(
                "{id} of bucket {bucket}: {unreachable} drives are away, {have} of {needed} needed shards are there"
            )));
        }
        let present: Vec<bool> = found.iter().map(Option::is_some).collect();
        let plan = self.code.plan(&present, &[wanted.shard]).map_err(|error| {
            BucketError::Unreadable(format!("{} of bucket {}: {error}", view.id, self.calls.bucket))
        })?;
        let mut out = AlignedBuf::with_len(wanted.rows as usize * BLOCK_BYTES);
        {
            let sources: Vec<&[u8]> = plan.sources().iter().filter_map(|shard| found.get(*shard)?.as_deref()).collect();
            plan.apply(&sources, &mut [out.as_mut_slice()]);
        }
        let data = out.freeze();
        if !view.verify(wanted, &data) {
            return Err(BucketError::Unreadable(format!(
                "{} of bucket {} does not add up",
                view.id, self.calls.bucket
            )));
        }
        self.stats.reconstructions.set(self.stats.reconstructions.get() + 1);
        Ok(data)
    }
}

/// Why a shard's rows could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The drive answered, and it is not the block, now or later.
    #[error("{0}")]
    Wrong(String),
    #[error("the zone was freed")]
    Gone,
    #[error("{0}")]
    Unreachable(String),
}

/// One buffer from several; no copy if there is one alone.
pub fn concat(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() == 1 {
        return parts.pop().unwrap_or_default();
    }
    let len = parts.iter().map(Bytes::len).sum();
    if len >= BLOCK_BYTES {
        let mut out = AlignedBuf::with_len(len);
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
