//! Writing stripes: encoded, written on all members that are there, nobody's until a batch places them.

use crate::BucketError;
use crate::io::DriveCallError;
use crate::stripe::{self, Claim, Encoded, Staged};
use crate::stripes::{Purse, Stripes};
use crate::zone_set::{Kind, Member, Place, ZoneSet};
use crate::zones::ZoneTable;
use bytes::Bytes;
use std::time::Duration;
use weft_reactor::{join_all, select};
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply};
use weft_wire::limits::{BLOCK_BYTES, STRIPE_ROWS_MAX};

/// Zone sets tried for one stripe before its writer is told.
const STAGE_TRIES_MAX: u32 = 8;
/// Between tries, so that a drive that is away isn't asked without pause. A map that says so ends it.
const STAGE_PAUSE: Duration = Duration::from_millis(200);

impl Stripes {
    /// Blocks of the next stripe of this kind that leave nothing of an open zone set unused: what the planner writes is
    /// cut to fit, so that cleaning always gains what was free.
    pub fn fitting_blocks(&self, kind: Kind) -> u32 {
        let zones = self.zones.borrow();
        let left = zones.rows_left(kind, zones.sets_len() >= self.limits.get().user());
        let rows = if left == 0 { STRIPE_ROWS_MAX } else { left.min(STRIPE_ROWS_MAX) };
        rows * u32::from(self.protection.data)
    }

    /// Writes a stripe, durably, on all members that the map expects to be there. Nobody knows it until a batch places
    /// it. `NoSpace`: another zone set is needed and can't be had.
    pub async fn stage(&self, kind: Kind, purse: Purse, data: Bytes) -> Result<Staged, BucketError> {
        let data_blocks = (data.len() / BLOCK_BYTES) as u32;
        if data_blocks == 0 || data_blocks > self.blocks_max() || !data.len().is_multiple_of(BLOCK_BYTES) {
            return Err(BucketError::Bounds(format!("a stripe of {} bytes", data.len())));
        }
        let encoded = stripe::encode(&self.code, self.protection, &data);
        let mut last_error = None;
        let mut tries = 0;
        while tries < STAGE_TRIES_MAX {
            self.check_members()?;
            let version = self.drives.version();
            let (claim, set) = match self.place(kind, purse, encoded.rows).await {
                Ok(placed) => placed,
                Err(BucketError::NotReady(reason)) => {
                    last_error = Some(BucketError::NotReady(reason));
                    tries += 1;
                    self.pause(tries, version).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let error = match self.write_shards(&set, claim.place(), &encoded).await {
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
                Err(error) => error,
            };
            self.zones.borrow_mut().close(set.id);
            if let DriveCallError::Refused(_, DriveRefusal::Sealed(epoch)) = error {
                return Err(BucketError::Deposed(epoch));
            }
            last_error = Some(BucketError::NotReady(error.to_string()));
            tries += 1;
            if tries > 1 {
                self.pause(tries, version).await;
            }
        }
        Err(last_error.unwrap_or(BucketError::NotReady("no zone set could be written".into())))
    }

    /// Waits a while, or for a map newer than `version`.
    async fn pause(&self, tries: u32, version: u64) {
        select(self.handle.sleep(STAGE_PAUSE * tries), self.drives.changed_since(version)).await;
    }

    async fn write_shards(&self, set: &ZoneSet, place: Place, encoded: &Encoded) -> Result<(), DriveCallError> {
        let shards = set.members.iter().zip(&encoded.shards).filter_map(|(member, shard)| Some(((*member)?, shard)));
        let writes = shards.map(|(member, shard)| async move {
            let op = DriveOp::WriteShard {
                epoch: self.epoch,
                zone: member.zone,
                generation: member.generation,
                block: place.row,
            };
            match self.ask(member.drive, op, shard.clone()).await {
                Ok((DriveReply::Written, _)) => Ok(()),
                Ok(_) => Err(DriveCallError::Confused(member.drive)),
                Err(error) => Err(error),
            }
        });
        let mut failed = Ok(());
        for written in join_all(writes).await {
            match written {
                Ok(()) => {}
                // That someone took over says more than that a drive is away.
                Err(sealed @ DriveCallError::Refused(_, DriveRefusal::Sealed(_))) => return Err(sealed),
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
        let limits = self.limits.get();
        // Close to the limit kinds share what is open, so that the last sets are not spent on half-empty ones.
        if sets >= limits.user()
            && let Some(placed) = self.allocate_anywhere(rows)
        {
            return Ok(placed);
        }
        let may_own = match purse {
            Purse::User => limits.user(),
            Purse::Planner => limits.borrowed(),
        };
        let opened = if sets >= may_own { Err(BucketError::NoSpace) } else { self.open_set(kind).await };
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

    /// At most P members may be left out.
    fn check_members(&self) -> Result<(), BucketError> {
        let drives = self.drives.members();
        let there = drives.iter().filter(|drive| self.drives.is_there(**drive)).count();
        let shards = self.protection.shards();
        if drives.len() != shards {
            return Err(BucketError::NotReady(format!("the bucket has {} members instead of {shards}", drives.len())));
        }
        if there + usize::from(self.protection.parity) < shards {
            return Err(BucketError::NotReady(format!("{} of {shards} members are away", shards - there)));
        }
        Ok(())
    }

    /// Opens a zone on each member that is there and journals the set, which stripes of `kind` then go to.
    async fn open_set(&self, kind: Kind) -> Result<(), BucketError> {
        self.check_members()?;
        let drives = self.drives.members();
        let unnamed = self.number_zones();
        let number = unnamed.id;
        let opens = drives.iter().enumerate().map(|(shard, drive)| async move {
            match self.drives.is_there(*drive) {
                true => self.open_zone(*drive, number, shard as u8).await.map(Some),
                false => Ok(None),
            }
        });
        let mut members: Vec<Option<Member>> = Vec::with_capacity(drives.len());
        let mut rows = u32::MAX;
        let mut failed: Option<BucketError> = None;
        for opened in join_all(opens).await {
            match opened {
                Ok(None) => members.push(None),
                Ok(Some((member, blocks))) => {
                    members.push(Some(member));
                    rows = rows.min(blocks);
                }
                Err(deposed @ BucketError::Deposed(_)) => return Err(deposed),
                Err(BucketError::NoSpace) => failed = Some(BucketError::NoSpace),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let id = number;
        let set = ZoneSet { id, members, rows, epoch: self.epoch };
        if let Some(error) = failed {
            self.free_members(set.zones().copied()).await;
            return Err(error);
        }
        let recorded = self.record_set.borrow().as_ref().map(|record| record(set.clone()));
        let Some(recorded) = recorded else { return Err(BucketError::Stopped) };
        if let Err(error) = recorded.await {
            // Where its record stands nobody knows; if the journal only took none of it, the zones are free again.
            if self.zones.borrow().set(id).is_none() {
                self.free_members(set.zones().copied()).await;
            }
            return Err(error);
        }
        self.zones.borrow_mut().open_set(kind, id);
        if !self.fits(&set) {
            self.zones.borrow_mut().close(id);
            return Err(BucketError::NotReady("the members changed while a zone set was opened".into()));
        }
        Ok(())
    }
}
