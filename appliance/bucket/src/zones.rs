//! Zone sets and the stripes in them: who is where, how much of it is live, what may be appended to, what may be freed.
//!
//! The table is in memory whole: 40 bytes a stripe. It is part of each checkpoint's manifest; between checkpoints the
//! journal's records carry absolute values, so that replaying them is idempotent.

use crate::zone_set::{Kind, Member, Place, StripeEntry, ZoneSet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::{StripeId, ZoneSetId};

/// Where a set stands for the planner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Filed {
    /// Being written, freed, or not worth a look.
    #[default]
    Nowhere,
    /// Closed, with this share (of 256) to be moved before it can be freed.
    Closed(u64),
    /// Closed and empty.
    Freeable,
}

#[derive(Debug)]
struct SetState {
    set: ZoneSet,
    stripes: BTreeSet<StripeId>,
    /// Blocks that a cleaner would have to move; see [`ZoneTable::weight`].
    kept: u64,
    /// Reasons not to free it yet: stripes that are being written and not committed, its own opening.
    pending: u32,
    /// Next row to hand out; `None`: closed.
    next_row: Option<u32>,
    /// A freeing record is under way.
    freeing: bool,
    /// Cleaning gained nothing: left alone until one of its stripes dies.
    stuck: bool,
    filed: Filed,
}

/// What a manifest keeps of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneTableImage {
    pub sets: Vec<ZoneSet>,
    pub stripes: Vec<(StripeId, StripeEntry)>,
    pub next_set: u64,
    pub next_stripe: u64,
}

/// Kept so that each question of the hot paths is answered from a counter or the end of an ordered set.
#[derive(Debug)]
pub struct ZoneTable {
    data_shards: u64,
    sets: BTreeMap<ZoneSetId, SetState>,
    stripes: BTreeMap<StripeId, StripeEntry>,
    /// Index stripes that the newest root still names, though nobody else does: gone when the next root stands.
    retired: BTreeSet<StripeId>,
    open: BTreeMap<Kind, ZoneSetId>,
    /// Closed sets that hold something, by their share to be moved.
    closed: BTreeSet<(u64, ZoneSetId)>,
    freeable: BTreeSet<ZoneSetId>,
    live_data: u64,
    index_blocks: u64,
    next_set: u64,
    next_stripe: u64,
    /// Counts what may change which sets have a shard to be rebuilt.
    revision: u64,
}

impl ZoneTable {
    pub fn new(data_shards: u8) -> Self {
        Self {
            data_shards: u64::from(data_shards.max(1)),
            sets: BTreeMap::new(),
            stripes: BTreeMap::new(),
            retired: BTreeSet::new(),
            open: BTreeMap::new(),
            closed: BTreeSet::new(),
            freeable: BTreeSet::new(),
            live_data: 0,
            index_blocks: 0,
            next_set: 0,
            next_stripe: 0,
            revision: 0,
        }
    }

    pub fn from_image(data_shards: u8, image: ZoneTableImage) -> Self {
        let mut table = Self { next_set: image.next_set, next_stripe: image.next_stripe, ..Self::new(data_shards) };
        for set in image.sets {
            table.add_set(set);
        }
        for (id, entry) in image.stripes {
            table.add_stripe(id, entry);
        }
        table
    }

    /// Without the stripes of the index: runs and root name theirs.
    pub fn image(&self) -> ZoneTableImage {
        ZoneTableImage {
            sets: self.sets.values().map(|state| state.set.clone()).collect(),
            stripes: self
                .stripes
                .iter()
                .filter(|(_, entry)| entry.kind != Kind::Index)
                .map(|(id, entry)| (*id, *entry))
                .collect(),
            next_set: self.next_set,
            next_stripe: self.next_stripe,
        }
    }

    /// A set that nothing is appended to. One that is known already stays as it is.
    pub fn add_set(&mut self, set: ZoneSet) {
        self.insert_set(set, 0);
    }

    /// A set whose record is on its way. [`Self::open_set`] follows when that stands; until then it is not free either.
    pub fn begin_set(&mut self, set: ZoneSet) {
        self.insert_set(set, 1);
    }

    fn insert_set(&mut self, set: ZoneSet, pending: u32) {
        let id = set.id;
        self.revision += 1;
        self.next_set = self.next_set.max(id.0 + 1);
        self.sets.entry(id).or_insert(SetState {
            set,
            stripes: BTreeSet::new(),
            kept: 0,
            pending,
            next_row: None,
            freeing: false,
            stuck: false,
            filed: Filed::Nowhere,
        });
        self.refile(id);
    }

    /// Stripes of this kind go to this set, which [`Self::begin_set`] entered, from now on.
    pub fn open_set(&mut self, kind: Kind, id: ZoneSetId) {
        if let Some(state) = self.sets.get_mut(&id) {
            state.next_row = Some(0);
            state.pending = state.pending.saturating_sub(1);
            if let Some(before) = self.open.insert(kind, id) {
                self.close(before);
            }
            self.refile(id);
        }
    }

    /// A shard of a set that exists has a new place, or its first.
    pub fn set_member(&mut self, id: ZoneSetId, shard: u8, member: Member) {
        self.revision += 1;
        let state = self.sets.get_mut(&id);
        if let Some(place) = state.and_then(|state| state.set.members.get_mut(usize::from(shard))) {
            *place = Some(member);
        }
    }

    pub fn remove_set(&mut self, id: ZoneSetId) {
        self.revision += 1;
        if let Some(state) = self.sets.remove(&id) {
            self.unfile(id, state.filed);
        }
        self.open.retain(|_, open| *open != id);
    }

    pub fn next_set_id(&mut self) -> ZoneSetId {
        let id = ZoneSetId(self.next_set);
        self.next_set += 1;
        id
    }

    /// Nothing is appended to the set any more.
    pub fn close(&mut self, id: ZoneSetId) {
        self.revision += 1;
        if let Some(state) = self.sets.get_mut(&id) {
            state.next_row = None;
        }
        self.open.retain(|_, open| *open != id);
        self.refile(id);
    }

    /// Hands out rows of the open set, if it has as many left. Otherwise the set is closed.
    pub fn allocate(&mut self, kind: Kind, rows: u32) -> Option<Place> {
        let id = *self.open.get(&kind)?;
        let place = self.allocate_in(id, rows);
        if place.is_none() {
            // A short rest is filled by nobody: the cleaner gets it back.
            self.close(id);
        }
        place
    }

    /// Hands out rows of whatever open set has as many left: when another set can't be had.
    pub fn allocate_anywhere(&mut self, rows: u32) -> Option<Place> {
        let open: Vec<ZoneSetId> = self.open.values().copied().collect();
        open.into_iter().find_map(|id| self.allocate_in(id, rows))
    }

    /// Rows that the open set of this kind has left, or if there is none and `anywhere`, any other open set.
    pub fn rows_left(&self, kind: Kind, anywhere: bool) -> u32 {
        let left = |id: &ZoneSetId| {
            let state = self.sets.get(id)?;
            Some(state.set.rows.saturating_sub(state.next_row?))
        };
        let own = self.open.get(&kind).and_then(left).unwrap_or(0);
        match anywhere && own == 0 {
            true => self.open.values().filter_map(left).max().unwrap_or(0),
            false => own,
        }
    }

    fn allocate_in(&mut self, id: ZoneSetId, rows: u32) -> Option<Place> {
        let state = self.sets.get_mut(&id)?;
        let row = state.next_row?;
        let end = row.checked_add(rows).filter(|end| *end <= state.set.rows)?;
        state.next_row = Some(end);
        state.pending += 1;
        let stripe = StripeId(self.next_stripe);
        self.next_stripe += 1;
        self.refile(id);
        Some(Place { stripe, zone_set: id, row })
    }

    /// The stripe that was allocated is committed, or given up. True: its set is closed, and it was the last.
    pub fn settle(&mut self, place: Place) -> bool {
        let mut last = false;
        if let Some(state) = self.sets.get_mut(&place.zone_set) {
            state.pending = state.pending.saturating_sub(1);
            last = state.next_row.is_none() && state.pending == 0;
            self.revision += u64::from(last);
        }
        self.refile(place.zone_set);
        last
    }

    /// Changes whenever a set came, went, was closed or has new members.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The sets that are appended to.
    pub fn open_sets(&self) -> impl Iterator<Item = &ZoneSet> {
        self.open.values().filter_map(|id| self.set(*id))
    }

    /// Sets that hold stripes and will never hold others: what is in them can only die.
    pub fn settled_sets(&self) -> impl Iterator<Item = &ZoneSet> {
        let settled = |state: &&SetState| {
            state.next_row.is_none() && state.pending == 0 && !state.freeing && !state.stripes.is_empty()
        };
        self.sets.values().filter(settled).map(|state| &state.set)
    }

    /// The stripes of a set from one on, in the order of their rows; replaced ones that the root still names included.
    pub fn stripes_of(&self, set: ZoneSetId, from: StripeId) -> impl Iterator<Item = (StripeId, StripeEntry)> {
        let ids = self.sets.get(&set).into_iter().flat_map(move |state| state.stripes.range(from..));
        ids.filter_map(|id| Some((*id, *self.stripes.get(id)?)))
    }

    pub fn add_stripe(&mut self, id: StripeId, entry: StripeEntry) {
        self.next_stripe = self.next_stripe.max(id.0 + 1);
        self.set_live(id, 0);
        self.stripes.insert(id, entry);
        self.count(&entry, 1);
        if let Some(state) = self.sets.get_mut(&entry.zone_set) {
            state.stripes.insert(id);
        }
        self.weigh(entry.zone_set, 0, self.weight(&entry));
    }

    /// Sets the number of live blocks; at 0 the stripe is gone.
    pub fn set_live(&mut self, id: StripeId, live: u32) {
        let Some(entry) = self.stripes.get(&id).copied() else { return };
        let before = if self.retired.contains(&id) { 0 } else { self.weight(&entry) };
        self.count(&entry, -1);
        if live > 0 {
            let now = StripeEntry { live, ..entry };
            self.stripes.insert(id, now);
            self.count(&now, 1);
            let after = if before == 0 { 0 } else { self.weight(&now) };
            self.weigh(entry.zone_set, before, after);
            return;
        }
        self.stripes.remove(&id);
        self.retired.remove(&id);
        if let Some(state) = self.sets.get_mut(&entry.zone_set) {
            state.stripes.remove(&id);
            state.stuck = false;
        }
        self.weigh(entry.zone_set, before, 0);
    }

    /// A stripe of the index that no longer counts when the next root stands.
    pub fn retire(&mut self, id: StripeId) {
        let Some(entry) = self.stripes.get(&id).copied() else { return };
        if self.retired.insert(id) {
            self.weigh(entry.zone_set, self.weight(&entry), 0);
        }
    }

    pub fn retired(&self) -> &BTreeSet<StripeId> {
        &self.retired
    }

    /// What a cleaner has to write again to get rid of a stripe: index stripes are copied as they are.
    fn weight(&self, entry: &StripeEntry) -> u64 {
        match entry.kind {
            Kind::Index => u64::from(entry.rows) * self.data_shards,
            Kind::Data | Kind::Moved => u64::from(entry.live),
        }
    }

    fn count(&mut self, entry: &StripeEntry, sign: i64) {
        let (counter, blocks) = match entry.kind {
            Kind::Index => (&mut self.index_blocks, u64::from(entry.rows) * self.data_shards),
            Kind::Data | Kind::Moved => (&mut self.live_data, u64::from(entry.live)),
        };
        *counter = if sign > 0 { *counter + blocks } else { counter.saturating_sub(blocks) };
    }

    fn weigh(&mut self, id: ZoneSetId, before: u64, after: u64) {
        if let Some(state) = self.sets.get_mut(&id) {
            state.kept = (state.kept + after).saturating_sub(before);
        }
        self.refile(id);
    }

    fn unfile(&mut self, id: ZoneSetId, filed: Filed) {
        match filed {
            Filed::Nowhere => {}
            Filed::Closed(share) => drop(self.closed.remove(&(share, id))),
            Filed::Freeable => drop(self.freeable.remove(&id)),
        }
    }

    /// Puts a set where the planner finds it, after anything about it changed.
    fn refile(&mut self, id: ZoneSetId) {
        let Some(state) = self.sets.get_mut(&id) else { return };
        let capacity = u64::from(state.set.rows) * self.data_shards;
        let filed = if state.next_row.is_some() || state.pending > 0 || state.freeing {
            Filed::Nowhere
        } else if state.stripes.is_empty() {
            Filed::Freeable
        } else if state.stuck || state.kept == 0 {
            Filed::Nowhere
        } else {
            Filed::Closed(state.kept * 256 / capacity.max(1))
        };
        let before = std::mem::replace(&mut state.filed, filed);
        if before == filed {
            return;
        }
        self.unfile(id, before);
        match filed {
            Filed::Nowhere => {}
            Filed::Closed(share) => drop(self.closed.insert((share, id))),
            Filed::Freeable => drop(self.freeable.insert(id)),
        }
    }

    pub fn stripe(&self, id: StripeId) -> Option<&StripeEntry> {
        self.stripes.get(&id)
    }

    pub fn stripes(&self) -> impl Iterator<Item = (StripeId, &StripeEntry)> {
        self.stripes.iter().map(|(id, entry)| (*id, entry))
    }

    /// The first stripe at or after `id`.
    pub fn stripe_from(&self, id: StripeId) -> Option<(StripeId, StripeEntry)> {
        self.stripes.range(id..).next().map(|(id, entry)| (*id, *entry))
    }

    pub fn stripes_len_of(&self, set: ZoneSetId) -> usize {
        self.sets.get(&set).map_or(0, |state| state.stripes.len())
    }

    pub fn stripes_len(&self) -> usize {
        self.stripes.len()
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
        !self.freeable.is_empty()
    }

    /// Closed sets without a stripe. Marked, so that each is freed once.
    pub fn take_freeable(&mut self) -> Vec<ZoneSetId> {
        let found: Vec<_> = std::mem::take(&mut self.freeable).into_iter().collect();
        for id in &found {
            if let Some(state) = self.sets.get_mut(id) {
                state.freeing = true;
                state.filed = Filed::Nowhere;
            }
        }
        found
    }

    /// The freeing record could not be written.
    pub fn keep(&mut self, id: ZoneSetId) {
        if let Some(state) = self.sets.get_mut(&id) {
            state.freeing = false;
        }
        self.refile(id);
    }

    /// The closed set with the least to be moved for its rows, if less than `share_max` of 256 of it is.
    pub fn emptiest(&self, share_max: u32) -> Option<ZoneSetId> {
        self.closed.first().filter(|(share, _)| *share < u64::from(share_max)).map(|(_, id)| *id)
    }

    /// Blocks that keep a set from being free.
    pub fn kept(&self, id: ZoneSetId) -> u64 {
        self.sets.get(&id).map_or(0, |state| state.kept)
    }

    /// Cleaning the set gained nothing.
    pub fn leave_alone(&mut self, id: ZoneSetId) {
        if let Some(state) = self.sets.get_mut(&id) {
            state.stuck = true;
        }
        self.refile(id);
    }

    /// The first stripes of a set that would have to be moved.
    pub fn kept_stripes_of(&self, set: ZoneSetId, stripes_max: usize) -> Vec<(StripeId, StripeEntry)> {
        let Some(state) = self.sets.get(&set) else { return Vec::new() };
        let kept = state.stripes.iter().filter(|id| !self.retired.contains(id));
        kept.take(stripes_max).filter_map(|id| Some((*id, *self.stripes.get(id)?))).collect()
    }

    /// Whether what is counted along is what a count from scratch gives; for checks.
    pub fn check_counters(&self) -> Vec<String> {
        let mut fresh = Self { retired: self.retired.clone(), ..Self::new(self.data_shards as u8) };
        self.sets.values().for_each(|state| fresh.add_set(state.set.clone()));
        let mut problems = Vec::new();
        for (id, entry) in &self.stripes {
            if !self.sets.contains_key(&entry.zone_set) {
                problems.push(format!("{id} is in {}, which doesn't exist", entry.zone_set));
            }
            fresh.add_stripe(*id, *entry);
            if self.retired.contains(id) {
                fresh.weigh(entry.zone_set, self.weight(entry), 0);
            }
        }
        if (self.live_data, self.index_blocks) != (fresh.live_data, fresh.index_blocks) {
            problems.push(format!("{} live and {} index blocks are miscounted", self.live_data, self.index_blocks));
        }
        for (id, state) in &self.sets {
            if state.kept != fresh.kept(*id) {
                problems.push(format!("{id} counts {} blocks, it has {}", state.kept, fresh.kept(*id)));
            }
        }
        problems
    }

    /// Blocks of files in stripes that someone refers to.
    pub fn live_data_blocks(&self) -> u64 {
        self.live_data
    }

    /// Blocks that runs and manifests take, replaced ones included.
    pub fn index_blocks(&self) -> u64 {
        self.index_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::Epoch;

    fn set(id: u64) -> ZoneSet {
        ZoneSet { id: ZoneSetId(id), members: vec![], rows: 100, epoch: Epoch(1) }
    }

    #[test]
    fn rows_are_handed_out_once_and_a_set_is_freed_when_its_last_stripe_is_gone() {
        let mut table = ZoneTable::new(4);
        assert_eq!(table.allocate(Kind::Data, 1), None);
        let id = table.next_set_id();
        table.begin_set(set(id.0));
        assert!(table.take_freeable().is_empty(), "it is being opened");
        table.open_set(Kind::Data, id);
        let a = table.allocate(Kind::Data, 64).expect("room");
        assert_eq!(a.row, 0);
        assert_eq!(table.allocate(Kind::Data, 64), None, "64 more don't fit 100");
        assert!(table.take_freeable().is_empty(), "one is being written");
        table.settle(a);
        table.add_stripe(a.stripe, StripeEntry { zone_set: id, row: 0, rows: 64, kind: Kind::Data, live: 256 });
        assert!(table.take_freeable().is_empty());
        let again = ZoneTable::from_image(4, table.image());
        assert_eq!((again.live_data_blocks(), again.emptiest(255)), (256, Some(id)));
        table.set_live(a.stripe, 0);
        assert_eq!(table.take_freeable(), [id]);
        assert!(table.take_freeable().is_empty());
    }

    #[test]
    fn the_emptiest_set_is_found_whatever_changes() {
        let mut table = ZoneTable::new(4);
        for id in 0..3 {
            table.add_set(set(id));
            for stripe in 0..4 {
                let entry =
                    StripeEntry { zone_set: ZoneSetId(id), row: stripe * 25, rows: 25, kind: Kind::Data, live: 100 };
                table.add_stripe(StripeId(id * 4 + u64::from(stripe)), entry);
            }
        }
        assert_eq!(table.emptiest(256), None, "all are full");
        table.set_live(StripeId(5), 10);
        table.set_live(StripeId(8), 50);
        assert_eq!(table.emptiest(256), Some(ZoneSetId(1)));
        table.leave_alone(ZoneSetId(1));
        assert_eq!(table.emptiest(256), Some(ZoneSetId(2)));
        table.set_live(StripeId(5), 0);
        assert_eq!(table.emptiest(256), Some(ZoneSetId(1)), "something of it died");
        assert_eq!(table.kept(ZoneSetId(1)), 300);
        assert_eq!(table.live_data_blocks(), 1050);
        let index = StripeEntry { zone_set: ZoneSetId(1), row: 25, rows: 25, kind: Kind::Index, live: 1 };
        table.add_stripe(StripeId(20), index);
        assert_eq!((table.emptiest(255), table.index_blocks()), (Some(ZoneSetId(2)), 100), "it is copied as it is");
        table.retire(StripeId(20));
        assert_eq!(table.kept_stripes_of(ZoneSetId(1), 9).len(), 3);
        for stripe in [4, 6, 7] {
            table.set_live(StripeId(stripe), 0);
        }
        assert!(!table.has_freeable(), "the root names the retired one");
        table.set_live(StripeId(20), 0);
        assert_eq!(table.take_freeable(), [ZoneSetId(1)]);
    }
}
