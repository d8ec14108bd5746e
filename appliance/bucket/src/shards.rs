//! Reading shards of stripes: verified, made again from others where a drive is away, wrong, or takes too long.

use crate::BucketError;
use crate::io::DriveCallError;
use crate::stripe::{self, Piece, StripeView};
use crate::stripes::{Stripes, concat};
use crate::zone_set::ZoneSet;
use bytes::Bytes;
use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;
use weft_reactor::buf::AlignedBuf;
use weft_reactor::{Either, join_all, select};
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply};
use weft_wire::limits::BLOCK_BYTES;

/// A drive that doesn't answer a read within this time is read around: the other shards say the same.
const READ_MAX: Duration = Duration::from_secs(1);
/// For how long it is then left alone by reads that can do without it.
const SILENT: Duration = Duration::from_secs(2);
/// The same for one that the other shards were faster than.
const SLOW: Duration = Duration::from_millis(100);
/// Reads that are asked for a second way at once, at most.
const HEDGES_MAX: u32 = 32;

impl Stripes {
    /// Data blocks of a stripe, verified; made again from the other shards where a drive is away or wrong.
    pub async fn read(&self, view: &StripeView, block: u32, blocks: u32) -> Result<Bytes, BucketError> {
        let pieces = stripe::pieces(view.rows, block, blocks);
        if let [piece] = pieces[..] {
            return self.read_or_reconstruct(view, piece).await;
        }
        let reads: Vec<_> = pieces.iter().map(|piece| self.read_or_reconstruct(view, *piece)).collect();
        let parts: Result<Vec<Bytes>, BucketError> = join_all(reads).await.into_iter().collect();
        Ok(concat(parts?))
    }

    /// Where whole shards don't suffice, each row may have enough good blocks by itself.
    pub async fn read_or_reconstruct(&self, view: &StripeView, piece: Piece) -> Result<Bytes, BucketError> {
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
        let member = view.set.member(piece.shard).filter(|member| !self.drives.is_away(member.drive));
        let Some(member) = member else { return self.reconstruct(view, piece, None).await };
        let mut reading = pin!(self.read_piece(view, piece));
        let patience = self.handle.sleep(self.drives.paces.hedge_after());
        let answer = match select(reading.as_mut(), patience).await {
            Either::Left(answer) => answer,
            Either::Right(()) => match Hedge::take(&self.hedges) {
                None => reading.await,
                Some(_hedge) => {
                    let unanswered = Some(PieceError::Unreachable("it takes long".into()));
                    match select(reading.as_mut(), self.reconstruct(view, piece, unanswered)).await {
                        Either::Left(answer) => answer,
                        Either::Right(Ok(data)) => {
                            let hedged = &self.stats.hedged_reads;
                            hedged.set(hedged.get() + 1);
                            // Those that were asked at the same time say nothing new.
                            if !self.drives.is_away(member.drive) {
                                self.drives.paces.was_late(member.drive);
                            }
                            self.drives.leave_alone(member.drive, SLOW);
                            return Ok(data);
                        }
                        Either::Right(Err(_)) => reading.await,
                    }
                }
            },
        };
        match answer {
            Ok(data) => {
                self.stats.blocks_read.set(self.stats.blocks_read.get() + u64::from(piece.rows));
                Ok(data)
            }
            Err(error) => {
                tracing::debug!(stripe = %view.id, shard = piece.shard, %error, "reconstructing");
                self.reconstruct(view, piece, Some(error)).await
            }
        }
    }

    /// All shards of a stripe, each as its drive has it. Drives that the map doesn't expect to be there aren't asked.
    pub async fn read_all(&self, view: &StripeView) -> Vec<Result<Bytes, PieceError>> {
        let shards = 0..self.protection.shards();
        join_all(shards.map(|shard| async move {
            match view.set.member(shard) {
                Some(member) if !self.drives.is_there(member.drive) => {
                    Err(PieceError::Unreachable(format!("{} is away", member.drive)))
                }
                _ => self.read_piece(view, Piece { shard, row: 0, rows: view.rows }).await,
            }
        }))
        .await
    }

    /// Whether the set that a reader looks at is still the bucket's: if not, its zones hold something else by now.
    pub fn is_current(&self, view: &StripeView) -> bool {
        self.zones.borrow().set(view.set.id).is_some_and(|set| set.members == view.set.members)
    }

    /// Reads and verifies rows of one shard.
    pub async fn read_piece(&self, view: &StripeView, piece: Piece) -> Result<Bytes, PieceError> {
        let Some(member) = view.set.member(piece.shard) else { return Err(PieceError::Absent) };
        let op = DriveOp::ReadShard {
            zone: member.zone,
            generation: member.generation,
            block: view.row + piece.row,
            blocks: piece.rows,
        };
        let begun = self.handle.now();
        let answer = self.calls.call_within(member.drive, op, Bytes::new(), READ_MAX).await;
        if answer.is_ok() {
            self.drives.paces.sample(member.drive, self.handle.now().since(begun));
        }
        let wrong = match answer {
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
                self.drives.leave_alone(member.drive, SILENT);
                return Err(PieceError::Unreachable(error.to_string()));
            }
        };
        self.mark_damaged(view.id);
        Err(PieceError::Wrong(wrong))
    }

    /// Rows of a shard of whatever stripes, as they are on the drive.
    pub async fn read_rows(&self, set: &ZoneSet, shard: usize, block: u32, blocks: u32) -> Option<Bytes> {
        let member = set.member(shard)?;
        let op = DriveOp::ReadShard { zone: member.zone, generation: member.generation, block, blocks };
        match self.calls.call_within(member.drive, op, Bytes::new(), READ_MAX).await {
            Ok((DriveReply::Blocks, data)) if data.len() == blocks as usize * BLOCK_BYTES => Some(data),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(set = %set.id, shard, %error, "can't be read in one go");
                if !matches!(error, DriveCallError::Refused(_, DriveRefusal::Gone(_) | DriveRefusal::Io(_))) {
                    self.drives.leave_alone(member.drive, SILENT);
                }
                None
            }
        }
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
        let present = |shard: &usize| view.set.member(*shard).is_some();
        let mut order: Vec<usize> = (0..shards).filter(|shard| *shard != wanted.shard).filter(present).collect();
        order.sort_by_key(|shard| view.set.member(*shard).is_some_and(|member| self.drives.is_away(member.drive)));
        let mut unreachable = usize::from(matches!(asked, Some(PieceError::Unreachable(_))));
        if asked.is_none() && present(&wanted.shard) {
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
            for (shard, answer) in next.iter().zip(join_all(reads).await) {
                match answer {
                    Ok(data) if *shard == wanted.shard => return Ok(data),
                    Ok(data) => {
                        found[*shard] = Some(data);
                        have += 1;
                    }
                    Err(PieceError::Gone) => return Err(BucketError::Gone(view.id)),
                    Err(PieceError::Unreachable(_)) => unreachable += 1,
                    Err(PieceError::Wrong(_) | PieceError::Absent) => {}
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
        let mut out = AlignedBuf::unfilled(wanted.rows as usize * BLOCK_BYTES);
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

/// A read that is asked for a second way.
struct Hedge<'a>(&'a Cell<u32>);

impl<'a> Hedge<'a> {
    fn take(count: &'a Cell<u32>) -> Option<Self> {
        if count.get() >= HEDGES_MAX {
            return None;
        }
        count.set(count.get() + 1);
        Some(Self(count))
    }
}

impl Drop for Hedge<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Why a shard's rows could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The drive answered, and it is not the block, now or later.
    #[error("{0}")]
    Wrong(String),
    /// It was never written: its drive was away.
    #[error("the shard is absent")]
    Absent,
    #[error("the zone was freed")]
    Gone,
    #[error("{0}")]
    Unreachable(String),
}
