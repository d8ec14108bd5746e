//! Writing and reading stripes on the members' drives.

use crate::BucketError;
use crate::io::{DriveCallError, DriveCalls};
use crate::run::{IndexStripe, RunMeta};
use crate::stripe::{self, Encoded, Piece, Staged, StripeRecord, StripeView};
use crate::zones::{Kind, Member, Place, ZoneSet, ZoneTable};
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use weft_erasure::Code;
use weft_reactor::Handle;
use weft_reactor::buf::AlignedBuf;
use weft_reactor::sync::{Mutex, Notify};
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::Protection;
use weft_wire::{DriveId, Epoch, StripeId};

/// Zone sets tried for one stripe before its writer is told.
const STAGE_TRIES_MAX: u32 = 8;
/// Between tries, so that a drive that is away isn't asked without pause.
const STAGE_PAUSE: Duration = Duration::from_millis(200);

/// Newest members and whether new zone sets may be opened; set by the map.
pub type Members = Rc<RefCell<Vec<DriveId>>>;

/// Called with each newly opened zone set before anything is written to it: makes it durable in the journal.
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
    pub zones: RefCell<ZoneTable>,
    pub stats: StripeStats,
    /// Stripes that a read had to repair on the way: to be moved.
    pub damaged: RefCell<std::collections::BTreeSet<StripeId>>,
    /// Wakes the planner.
    pub work: Notify,
    handle: Handle,
    code: Code,
    members: Members,
    opening: Mutex<()>,
    record_set: RefCell<Option<RecordZoneSet>>,
}

impl Stripes {
    pub fn new(
        handle: Handle,
        calls: DriveCalls,
        protection: Protection,
        epoch: Epoch,
        members: Members,
    ) -> Result<Self, BucketError> {
        let code = Code::new(usize::from(protection.data), usize::from(protection.parity))
            .map_err(|error| BucketError::Corrupt(error.to_string()))?;
        Ok(Self {
            calls,
            protection,
            epoch,
            zones: RefCell::default(),
            stats: StripeStats::default(),
            damaged: RefCell::default(),
            work: Notify::new(),
            handle,
            code,
            members,
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

    /// Writes a stripe on all members, durably. Nobody knows it until a batch places it.
    pub async fn stage(&self, kind: Kind, data: Bytes) -> Result<Staged, BucketError> {
        let data_blocks = (data.len() / BLOCK_BYTES) as u32;
        if data_blocks == 0 || data_blocks > self.blocks_max() {
            return Err(BucketError::Bounds(format!("a stripe of {data_blocks} blocks")));
        }
        let encoded = stripe::encode(&self.code, self.protection, &data);
        let mut last_error = None;
        for attempt in 0..STAGE_TRIES_MAX {
            if attempt > 1 {
                self.handle.sleep(STAGE_PAUSE * attempt).await;
            }
            let (place, set) = match self.place(kind, encoded.rows).await {
                Ok(placed) => placed,
                Err(BucketError::NotReady(reason)) => {
                    last_error = Some(BucketError::NotReady(reason));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match self.write_shards(&set, place, &encoded).await {
                Ok(()) => {
                    self.stats.stripes_written.set(self.stats.stripes_written.get() + 1);
                    return Ok(Staged { place, rows: encoded.rows, kind, data_blocks, checksums: encoded.checksums });
                }
                Err(error) => {
                    let mut zones = self.zones.borrow_mut();
                    zones.settle(place);
                    zones.close(set.id);
                    if let DriveCallError::Refused(_, DriveRefusal::Sealed(epoch)) = error {
                        return Err(BucketError::Deposed(epoch));
                    }
                    last_error = Some(BucketError::NotReady(error.to_string()));
                }
            }
        }
        Err(last_error.unwrap_or(BucketError::NotReady("no zone set could be written".into())))
    }

    /// A staged stripe that will not be placed.
    pub fn abandon(&self, staged: &Staged) {
        self.zones.borrow_mut().settle(staged.place);
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
        for answer in weft_reactor::join_all(writes).await {
            match answer? {
                (DriveReply::Written, _) => {}
                _ => {
                    return Err(DriveCallError::Confused(
                        set.members.first().map_or(DriveId(0), |member| member.drive),
                    ));
                }
            }
        }
        Ok(())
    }

    async fn place(&self, kind: Kind, rows: u32) -> Result<(Place, ZoneSet), BucketError> {
        if let Some(placed) = self.allocate(kind, rows) {
            return Ok(placed);
        }
        let _opening = self.opening.lock().await;
        // Someone else may have opened one meanwhile.
        if let Some(placed) = self.allocate(kind, rows) {
            return Ok(placed);
        }
        let set = self.open_set().await?;
        let id = set.id;
        {
            let mut zones = self.zones.borrow_mut();
            zones.add_set(set, true);
            zones.use_set(kind, id);
        }
        self.allocate(kind, rows).ok_or_else(|| BucketError::Bounds(format!("{rows} rows don't fit a new zone set")))
    }

    fn allocate(&self, kind: Kind, rows: u32) -> Option<(Place, ZoneSet)> {
        let mut zones = self.zones.borrow_mut();
        let place = zones.allocate(kind, rows)?;
        let set = zones.set(place.zone_set)?.clone();
        Some((place, set))
    }

    /// Opens a zone on each member and journals the set.
    async fn open_set(&self) -> Result<ZoneSet, BucketError> {
        let id = self.zones.borrow_mut().next_set_id();
        let drives = self.members.borrow().clone();
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
        let mut failed = None;
        for (drive, answer) in drives.iter().zip(weft_reactor::join_all(opens).await) {
            match answer {
                Ok((DriveReply::Zone { zone, generation, blocks }, _)) => {
                    members.push(Member { drive: *drive, zone, generation });
                    rows = rows.min(blocks);
                }
                Ok(_) => failed = Some(BucketError::NotReady(DriveCallError::Confused(*drive).to_string())),
                Err(DriveCallError::Refused(_, DriveRefusal::NoZone)) => failed = Some(BucketError::NoSpace),
                Err(DriveCallError::Refused(_, DriveRefusal::Sealed(epoch))) => {
                    failed = Some(BucketError::Deposed(epoch))
                }
                Err(error) => failed = failed.or(Some(BucketError::NotReady(error.to_string()))),
            }
        }
        if let Some(error) = failed {
            self.free_members(&members).await;
            return Err(error);
        }
        let set = ZoneSet { id, members, rows, epoch: self.epoch };
        let recorded = self.record_set.borrow().as_ref().map(|record| record(set.clone()));
        if let Some(recorded) = recorded {
            recorded.await?;
        }
        Ok(set)
    }

    /// Gives zones back. What can't be reached is freed by the next leader.
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
            }
        }
    }

    /// A stripe as readers need it, from the record in the index.
    pub fn view(&self, id: StripeId, record: &StripeRecord) -> Result<StripeView, BucketError> {
        let set = self.zones.borrow().set(record.zone_set).cloned();
        let set = set.ok_or(BucketError::Gone(id))?;
        Ok(StripeView { id, set, row: record.row, rows: record.rows, checksums: Rc::new(record.checksums.clone()) })
    }

    fn index_view(&self, stripe: &IndexStripe) -> Result<StripeView, BucketError> {
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

    /// Blocks of a run.
    pub async fn read_run(&self, meta: &RefCell<RunMeta>, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let per_stripe = self.blocks_max();
        let mut parts = Vec::new();
        let mut at = block;
        while at < block + blocks {
            let within = at % per_stripe;
            let count = (per_stripe - within).min(block + blocks - at);
            let stripe = meta.borrow().stripes.get((at / per_stripe) as usize).cloned();
            let stripe = stripe.ok_or_else(|| BucketError::Corrupt(format!("a run without block {at}")))?;
            parts.push(self.read_index_stripe(&stripe, within, count).await?);
            at += count;
        }
        Ok(concat(parts))
    }

    pub async fn read_index_stripe(&self, stripe: &IndexStripe, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let view = self.index_view(stripe)?;
        self.read(&view, block, blocks).await
    }

    /// Data blocks of a stripe, verified; made again from the other shards where a drive is away or wrong.
    pub async fn read(&self, view: &StripeView, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let pieces = stripe::pieces(view.rows, block, blocks);
        let reads: Vec<_> = pieces.iter().map(|piece| self.read_piece(view, *piece)).collect();
        let answers = weft_reactor::join_all(reads).await;
        let mut parts = Vec::with_capacity(pieces.len());
        for (piece, answer) in pieces.into_iter().zip(answers) {
            match answer {
                Ok(data) => parts.push(data),
                Err(error) => {
                    tracing::debug!(stripe = %view.id, shard = piece.shard, %error, "reconstructing");
                    parts.push(self.reconstruct(view, piece).await?);
                }
            }
        }
        self.stats.blocks_read.set(self.stats.blocks_read.get() + u64::from(blocks));
        Ok(concat(parts))
    }

    /// Reads and verifies rows of one shard.
    pub async fn read_piece(&self, view: &StripeView, piece: Piece) -> Result<Bytes, PieceError> {
        let Some(member) = view.set.members.get(piece.shard) else {
            return Err(PieceError::Unreachable("no such shard".into()));
        };
        let op = DriveOp::ReadShard {
            zone: member.zone,
            generation: member.generation,
            block: view.row + piece.row,
            blocks: piece.rows,
        };
        match self.calls.call(member.drive, op, Bytes::new()).await {
            Ok((DriveReply::Blocks, data)) if view.verify(piece, &data) => Ok(data),
            Ok(_) => {
                self.stats.checksum_errors.set(self.stats.checksum_errors.get() + 1);
                self.damaged.borrow_mut().insert(view.id);
                self.work.notify_one();
                tracing::warn!(stripe = %view.id, shard = piece.shard, drive = %member.drive, zone = %member.zone,
                    block = view.row + piece.row, blocks = piece.rows, "checksum mismatch");
                Err(PieceError::Mismatch(member.drive))
            }
            Err(DriveCallError::Refused(_, DriveRefusal::Gone(_))) => Err(PieceError::Gone),
            Err(error) => {
                self.stats.shards_unreachable.set(self.stats.shards_unreachable.get() + 1);
                Err(PieceError::Unreachable(error.to_string()))
            }
        }
    }

    /// The same rows of the other shards give the missing ones.
    async fn reconstruct(&self, view: &StripeView, wanted: Piece) -> Result<Bytes, BucketError> {
        let shards = self.protection.shards();
        let others: Vec<usize> = (0..shards).filter(|shard| *shard != wanted.shard).collect();
        let reads: Vec<_> =
            others.iter().map(|shard| self.read_piece(view, Piece { shard: *shard, ..wanted })).collect();
        let mut found: Vec<Option<Bytes>> = vec![None; shards];
        let mut gone = 0;
        for (shard, answer) in others.iter().zip(weft_reactor::join_all(reads).await) {
            match answer {
                Ok(data) => found[*shard] = Some(data),
                Err(PieceError::Gone) => gone += 1,
                Err(_) => {}
            }
        }
        if gone > 0 {
            return Err(BucketError::Gone(view.id));
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
    #[error("{0} holds something else")]
    Mismatch(DriveId),
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
