//! What a zone set is, and a stripe's place in it.

use serde::{Deserialize, Serialize};
use weft_wire::{DriveId, Epoch, Generation, StripeId, ZoneIndex, ZoneSetId};

/// One zone of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub drive: DriveId,
    pub zone: ZoneIndex,
    pub generation: Generation,
}

/// One zone on each member at the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSet {
    pub id: ZoneSetId,
    /// Shard i of each stripe is in `members[i]`; absent, never written, if its drive was away when the set was opened.
    pub members: Vec<Option<Member>>,
    /// Blocks of the smallest of them.
    pub rows: u32,
    /// The leader's epoch that opened it; only that one appends.
    pub epoch: Epoch,
}

impl ZoneSet {
    /// Where a shard is, unless it is absent.
    pub fn member(&self, shard: usize) -> Option<Member> {
        self.members.get(shard).copied().flatten()
    }

    /// Its zones.
    pub fn zones(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().flatten()
    }
}

/// What a stripe is for. Each kind is appended to zone sets of its own, since they die at different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// File data as it was written.
    Data,
    /// File data that a cleaner moved: likely to live long.
    Moved,
    /// Runs and manifests.
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeEntry {
    pub zone_set: ZoneSetId,
    /// First block of each shard in its zone.
    pub row: u32,
    /// Blocks of each shard.
    pub rows: u32,
    pub kind: Kind,
    /// Data blocks that someone refers to.
    pub live: u32,
}

/// Rows that were handed out, once and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub stripe: StripeId,
    pub zone_set: ZoneSetId,
    pub row: u32,
}
