//! Zones on drives: opened under numbers of their own, given back, and found again when nobody names them.

use crate::BucketError;
use crate::bucket::{Bucket, Inner};
use crate::io::DriveCallError;
use crate::stripes::Stripes;
use crate::zone_set::Member;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;
use weft_reactor::join_all;
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply};
use weft_wire::{DriveId, ZoneSetId};

/// Zones that could not be given back yet, at most; beyond it they wait until their drive is listed.
const UNFREED_MAX: usize = 65536;
/// Pauses between questions to drives that did not answer what they hold.
const LIST_PAUSE_MIN: Duration = Duration::from_secs(1);
const LIST_PAUSE_MAX: Duration = Duration::from_secs(60);

/// A number under which zones are opened. While this lives, whoever lists a drive's zones leaves them alone.
pub(crate) struct Unnamed {
    pub id: ZoneSetId,
    all: Rc<RefCell<BTreeSet<ZoneSetId>>>,
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        self.all.borrow_mut().remove(&self.id);
    }
}

impl Stripes {
    /// A number that no zones of this epoch were opened under.
    pub(crate) fn number_zones(&self) -> Unnamed {
        let id = self.zones.borrow_mut().next_set_id();
        self.unnamed.borrow_mut().insert(id);
        Unnamed { id, all: Rc::clone(&self.unnamed) }
    }

    /// Opens a zone, and says how many blocks it has.
    pub(crate) async fn open_zone(
        &self,
        drive: DriveId,
        number: ZoneSetId,
        shard: u8,
    ) -> Result<(Member, u32), BucketError> {
        let op = DriveOp::OpenZone { epoch: self.epoch, zone_set: number, shard };
        match self.ask(drive, op, Bytes::new()).await {
            Ok((DriveReply::Zone { zone, generation, blocks }, _)) => Ok((Member { drive, zone, generation }, blocks)),
            Ok(_) => Err(BucketError::NotReady(DriveCallError::Confused(drive).to_string())),
            Err(DriveCallError::Refused(_, DriveRefusal::Sealed(epoch))) => Err(BucketError::Deposed(epoch)),
            Err(DriveCallError::Refused(_, DriveRefusal::NoZone)) => Err(BucketError::NoSpace),
            Err(error) => {
                // It may have opened one all the same.
                self.list_zones_of(drive);
                Err(BucketError::NotReady(error.to_string()))
            }
        }
    }

    /// Gives zones back. What can't be reached is asked again by [`Self::free_again`], and by the next leader.
    pub async fn free_members(&self, members: impl IntoIterator<Item = Member>) {
        let frees = members.into_iter().map(|member| async move {
            let op = DriveOp::FreeZone { epoch: self.epoch, zone: member.zone, generation: member.generation };
            (member, self.ask(member.drive, op, Bytes::new()).await)
        });
        for (member, answer) in join_all(frees).await {
            if let Err(error) = answer {
                tracing::debug!(drive = %member.drive, %error, "a zone is freed later");
                let mut unfreed = self.unfreed.borrow_mut();
                if unfreed.len() < UNFREED_MAX && self.drives.is_known(member.drive) {
                    unfreed.push(member);
                }
            }
        }
    }

    /// Zones that drives still have to be told to free.
    pub fn unfreed_len(&self) -> usize {
        self.unfreed.borrow().len()
    }

    /// Whether one of these drives could be told now.
    pub fn can_free_again(&self) -> bool {
        self.unfreed.borrow().iter().any(|member| self.drives.is_there(member.drive))
    }

    /// Asks once more for what [`Self::free_members`] could not give back. False: some drive did not answer.
    pub async fn free_again(&self) -> bool {
        let members = std::mem::take(&mut *self.unfreed.borrow_mut());
        let (there, away): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| self.drives.is_there(member.drive));
        self.unfreed.borrow_mut().extend(away.into_iter().filter(|member| self.drives.is_known(member.drive)));
        let before = self.unfreed_len();
        self.free_members(there).await;
        self.unfreed_len() <= before
    }

    /// Compares, soon, what a drive holds for the bucket with what is named.
    pub(crate) fn list_zones_of(&self, drive: DriveId) {
        self.unlisted.borrow_mut().insert(drive);
        self.listing.notify_one();
    }
}

impl Bucket {
    /// Whether nothing of the bucket is on a drive any more that is no member: no zone set names it, the records that say so
    /// stand, and if it answers it has freed its zones.
    pub async fn has_left(&self, drive: DriveId) -> bool {
        // A set that is being opened may still be opened there.
        drop(self.0.stripes.opening.lock().await);
        let last = self.0.log.last();
        if self.is_on(drive) || self.settled(last).await.is_err() {
            return false;
        }
        if self.0.stripes.drives.is_there(drive) {
            let unfreed = |bucket: &Self| bucket.0.stripes.unfreed.borrow().iter().any(|member| member.drive == drive);
            if !self.free_unknown_zones_of(drive).await || unfreed(self) {
                return false;
            }
        }
        !self.is_on(drive)
    }

    fn is_on(&self, drive: DriveId) -> bool {
        let named = |set: &crate::zone_set::ZoneSet| set.zones().any(|member| member.drive == drive);
        self.0.stripes.drives.members().contains(&drive) || self.0.stripes.zones.borrow().sets().any(named)
    }

    /// Frees zones of a drive that no record names, of earlier epochs and of this one. False: the drive doesn't answer.
    async fn free_unknown_zones_of(&self, drive: DriveId) -> bool {
        let stripes = &self.0.stripes;
        let answer = stripes.ask(drive, DriveOp::ListZones, Bytes::new()).await;
        let Ok((DriveReply::Zones(found), _)) = answer else { return false };
        let named: BTreeSet<_> = {
            let zones = stripes.zones.borrow();
            let all = zones.sets().flat_map(|set| set.zones());
            all.map(|member| (member.drive, member.zone, member.generation)).collect()
        };
        let unnamed = stripes.unnamed.borrow().clone();
        let ours = self.0.epoch;
        let nobodys = |epoch, number| epoch < ours || (epoch == ours && !unnamed.contains(&number));
        let unknown: Vec<_> = found
            .into_iter()
            .filter(|zone| nobodys(zone.epoch, zone.zone_set))
            .filter(|zone| !named.contains(&(drive, zone.zone, zone.generation)))
            .map(|zone| Member { drive, zone: zone.zone, generation: zone.generation })
            .collect();
        if !unknown.is_empty() {
            // A set that the planner just freed is missing here before the record that says so stands: another leader
            // could still need it.
            if self.settled(self.0.log.last()).await.is_err() {
                return false;
            }
            tracing::debug!(bucket = %self.0.id, %drive, zones = unknown.len(), "freeing zones that no record names");
            stripes.free_members(unknown).await;
        }
        true
    }
}

/// Asks drives for zones that nobody names: all drives at first, now that the epoch start stands, then those that come
/// back or that may have opened one without saying so.
pub(crate) async fn free_unknown_zones(bucket: Weak<Inner>) {
    let mut pause = LIST_PAUSE_MIN;
    loop {
        let Some(listing) = bucket.upgrade().map(|bucket| bucket.stripes.listing.notified()) else { return };
        let drives = bucket.upgrade().map(|bucket| bucket.stripes.unlisted.take()).unwrap_or_default();
        let mut silent = BTreeSet::new();
        for drive in drives {
            let Some(bucket) = bucket.upgrade().map(Bucket).filter(|bucket| bucket.failed().is_none()) else { return };
            // One that is away is listed when it comes back.
            if bucket.0.stripes.drives.is_there(drive) && !bucket.free_unknown_zones_of(drive).await {
                silent.insert(drive);
            }
        }
        let Some(handle) = bucket.upgrade().map(|bucket| bucket.handle.clone()) else { return };
        if silent.is_empty() {
            pause = LIST_PAUSE_MIN;
            listing.await;
        } else {
            let _ = handle.timeout(pause, listing).await;
            pause = (pause * 2).min(LIST_PAUSE_MAX);
        }
        let Some(bucket) = bucket.upgrade() else { return };
        bucket.stripes.unlisted.borrow_mut().extend(silent);
        if Bucket(bucket).failed().is_some() {
            return;
        }
    }
}
