//! Zone sets and the stripes in them: who is where, how much of it is live, what may be appended to, what may be freed.
//!
//! The table is in memory whole: 40 bytes a stripe. It is part of each checkpoint's manifest; between checkpoints the
//! journal's records carry absolute values, so that replaying them is idempotent.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Shard i of each stripe is in `members[i]`.
    pub members: Vec<Member>,
    /// Blocks of the smallest of them.
    pub rows: u32,
    /// The leader's epoch that opened it; only that one appends.
    pub epoch: Epoch,
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

#[derive(Debug)]
struct SetState {
    set: ZoneSet,
    stripes: u32,
    /// Stripes that are being written and not committed yet.
    pending: u32,
    /// Next row to hand out; `None`: closed.
    next_row: Option<u32>,
    /// A freeing record is under way.
    freeing: bool,
}

impl SetState {
    fn is_freeable(&self) -> bool {
        self.next_row.is_none() && self.stripes == 0 && self.pending == 0 && !self.freeing
    }
}

/// What a manifest keeps of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneTableImage {
    pub sets: Vec<ZoneSet>,
    pub stripes: Vec<(StripeId, StripeEntry)>,
    pub next_set: u64,
    pub next_stripe: u64,
}

#[derive(Debug, Default)]
pub struct ZoneTable {
    sets: BTreeMap<ZoneSetId, SetState>,
    stripes: BTreeMap<StripeId, StripeEntry>,
    open: BTreeMap<Kind, ZoneSetId>,
    next_set: u64,
    next_stripe: u64,
}

/// Rows that were handed out, once and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub stripe: StripeId,
    pub zone_set: ZoneSetId,
    pub row: u32,
}

impl ZoneTable {
    pub fn from_image(image: ZoneTableImage) -> Self {
        let mut table = Self { next_set: image.next_set, next_stripe: image.next_stripe, ..Self::default() };
        for set in image.sets {
            table.add_set(set, false);
        }
        for (id, entry) in image.stripes {
            table.add_stripe(id, entry);
        }
        table
    }

    /// Without the stripes in `except`: those of runs that the manifest replaces.
    pub fn image(&self, except: &BTreeSet<StripeId>) -> ZoneTableImage {
        ZoneTableImage {
            sets: self.sets.values().filter(|state| !state.freeing).map(|state| state.set.clone()).collect(),
            stripes: self
                .stripes
                .iter()
                .filter(|(id, _)| !except.contains(id))
                .map(|(id, entry)| (*id, *entry))
                .collect(),
            next_set: self.next_set,
            next_stripe: self.next_stripe,
        }
    }

    /// A set that this leader just opened is appended to; others are closed.
    pub fn add_set(&mut self, set: ZoneSet, open: bool) {
        self.next_set = self.next_set.max(set.id.0 + 1);
        let next_row = open.then_some(0);
        self.sets.entry(set.id).or_insert(SetState { set, stripes: 0, pending: 0, next_row, freeing: false });
    }

    pub fn remove_set(&mut self, id: ZoneSetId) {
        self.sets.remove(&id);
        self.open.retain(|_, open| *open != id);
    }

    pub fn next_set_id(&mut self) -> ZoneSetId {
        let id = ZoneSetId(self.next_set);
        self.next_set += 1;
        id
    }

    /// Stripes of this kind go to this set from now on.
    pub fn use_set(&mut self, kind: Kind, id: ZoneSetId) {
        self.open.insert(kind, id);
    }

    /// Nothing is appended to the set any more.
    pub fn close(&mut self, id: ZoneSetId) {
        if let Some(state) = self.sets.get_mut(&id) {
            state.next_row = None;
        }
        self.open.retain(|_, open| *open != id);
    }

    /// Hands out rows of the open set, if it has as many left. Otherwise the set is closed.
    pub fn allocate(&mut self, kind: Kind, rows: u32) -> Option<Place> {
        let id = *self.open.get(&kind)?;
        let state = self.sets.get_mut(&id)?;
        let row = state.next_row?;
        if row + rows > state.set.rows {
            // A short rest is filled by nobody: the cleaner gets it back.
            self.close(id);
            return None;
        }
        state.next_row = Some(row + rows);
        state.pending += 1;
        let stripe = StripeId(self.next_stripe);
        self.next_stripe += 1;
        Some(Place { stripe, zone_set: id, row })
    }

    /// The stripe that was allocated is committed, or given up.
    pub fn settle(&mut self, place: Place) {
        if let Some(state) = self.sets.get_mut(&place.zone_set) {
            state.pending = state.pending.saturating_sub(1);
        }
    }

    pub fn add_stripe(&mut self, id: StripeId, entry: StripeEntry) {
        self.next_stripe = self.next_stripe.max(id.0 + 1);
        let old = self.stripes.insert(id, entry);
        if let Some(state) = self.sets.get_mut(&entry.zone_set)
            && old.is_none()
        {
            state.stripes += 1;
        }
    }

    /// Sets the number of live blocks; at 0 the stripe is gone.
    pub fn set_live(&mut self, id: StripeId, live: u32) {
        if live > 0 {
            if let Some(entry) = self.stripes.get_mut(&id) {
                entry.live = live;
            }
            return;
        }
        if let Some(entry) = self.stripes.remove(&id)
            && let Some(state) = self.sets.get_mut(&entry.zone_set)
        {
            state.stripes = state.stripes.saturating_sub(1);
        }
    }

    pub fn stripe(&self, id: StripeId) -> Option<&StripeEntry> {
        self.stripes.get(&id)
    }

    pub fn stripes(&self) -> impl Iterator<Item = (StripeId, &StripeEntry)> {
        self.stripes.iter().map(|(id, entry)| (*id, entry))
    }

    pub fn set(&self, id: ZoneSetId) -> Option<&ZoneSet> {
        self.sets.get(&id).map(|state| &state.set)
    }

    pub fn sets(&self) -> impl Iterator<Item = &ZoneSet> {
        self.sets.values().map(|state| &state.set)
    }

    pub fn sets_len(&self) -> usize {
        self.sets.len()
    }

    pub fn has_freeable(&self) -> bool {
        self.sets.values().any(SetState::is_freeable)
    }

    /// Closed sets without a stripe. Marked, so that each is freed once.
    pub fn take_freeable(&mut self) -> Vec<ZoneSetId> {
        let mut found = Vec::new();
        for (id, state) in &mut self.sets {
            if state.is_freeable() {
                state.freeing = true;
                found.push(*id);
            }
        }
        found
    }

    /// The freeing record could not be written.
    pub fn keep(&mut self, id: ZoneSetId) {
        if let Some(state) = self.sets.get_mut(&id) {
            state.freeing = false;
        }
    }

    /// The closed set with the fewest live blocks for its rows, if less than `share_max` of 256 of it is live.
    pub fn emptiest(&self, data_shards: u32, share_max: u32) -> Option<(ZoneSetId, u64)> {
        let mut live: BTreeMap<ZoneSetId, u64> = BTreeMap::new();
        for entry in self.stripes.values() {
            *live.entry(entry.zone_set).or_default() += u64::from(entry.live);
        }
        self.sets
            .iter()
            .filter(|(_, state)| state.next_row.is_none() && state.pending == 0 && state.stripes > 0 && !state.freeing)
            .map(|(id, state)| {
                let capacity = u64::from(state.set.rows) * u64::from(data_shards);
                let live = live.get(id).copied().unwrap_or(0);
                (*id, live, live * 256 / capacity.max(1))
            })
            .filter(|(_, _, share)| *share < u64::from(share_max))
            .min_by_key(|(id, _, share)| (*share, *id))
            .map(|(id, live, _)| (id, live))
    }

    /// The stripes of a set.
    pub fn stripes_of(&self, set: ZoneSetId) -> Vec<(StripeId, StripeEntry)> {
        self.stripes.iter().filter(|(_, entry)| entry.zone_set == set).map(|(id, entry)| (*id, *entry)).collect()
    }

    /// Live data blocks of all stripes.
    pub fn live_blocks(&self) -> u64 {
        self.stripes.values().map(|entry| u64::from(entry.live)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(id: u64) -> ZoneSet {
        ZoneSet { id: ZoneSetId(id), members: vec![], rows: 100, epoch: Epoch(1) }
    }

    #[test]
    fn rows_are_handed_out_once_and_a_set_is_freed_when_its_last_stripe_is_gone() {
        let mut table = ZoneTable::default();
        assert_eq!(table.allocate(Kind::Data, 1), None);
        let id = table.next_set_id();
        table.add_set(set(id.0), true);
        table.use_set(Kind::Data, id);
        let a = table.allocate(Kind::Data, 64).expect("room");
        assert_eq!(a.row, 0);
        assert_eq!(table.allocate(Kind::Data, 64), None, "64 more don't fit 100");
        assert!(table.take_freeable().is_empty(), "one is being written");
        table.settle(a);
        table.add_stripe(a.stripe, StripeEntry { zone_set: id, row: 0, rows: 64, kind: Kind::Data, live: 256 });
        assert!(table.take_freeable().is_empty());
        let again = ZoneTable::from_image(table.image(&BTreeSet::new()));
        assert_eq!(again.live_blocks(), 256);
        table.set_live(a.stripe, 0);
        assert_eq!(table.take_freeable(), [id]);
        assert!(table.take_freeable().is_empty());
    }
}
