//! The check: whether everything that a bucket says of itself is so, in memory, in the index and on the drives. For
//! tests, the simulator and whoever distrusts a bucket; it reads all of it.

use crate::BucketError;
use crate::bucket::Bucket;
use crate::extent::{Extent, Location};
use crate::key;
use crate::shards::PieceError;
use crate::stripe::{StripeRecord, StripeView};
use crate::zone_set::{Kind, Member, StripeEntry};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::drive::{DriveOp, DriveReply, ZoneInfo};
use weft_wire::limits::SLAB_BLOCKS;
use weft_wire::{DriveId, Seq, StripeId};

/// Contradictions that are told; more are counted.
const PROBLEMS_MAX: usize = 64;
/// Index entries of one look.
const SCAN_KEYS_MAX: usize = 1024;
/// Looks at a bucket that changes meanwhile.
const TRIES_MAX: u32 = 8;

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub stripes: u64,
    pub extents: u64,
    /// Blocks on drives that are what their checksums say.
    pub blocks: u64,
    pub unreachable_shards: u64,
    /// Never written, and not rebuilt yet.
    pub absent_shards: u64,
    /// Shards that the stripe lacks which lacks most.
    pub exposed_most: u64,
    /// Zones that drives hold for the bucket and nobody names.
    pub leaked_zones: u64,
    pub problems: Vec<String>,
    pub more_problems: u64,
}

impl Checked {
    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX { self.problems.push(text) } else { self.more_problems += 1 }
    }
}

/// What the index refers to.
#[derive(Default)]
struct Seen {
    /// Blocks of each stripe that extents refer to, a bit each.
    referred: BTreeMap<StripeId, Vec<bool>>,
    records: BTreeMap<StripeId, StripeRecord>,
    held: BTreeSet<(Seq, u32)>,
    reserved: u64,
    last: Option<(Bytes, u64)>,
}

impl Bucket {
    /// Checks all of it: every live block has a place of its own in a stripe or the journal, live counts are the sums
    /// of what refers to them, rows and zones belong to one stripe and one set, every shard is what was written, and
    /// parity fits the data. `NotReady`: it changed all the time; `Deposed`: someone else leads, nothing is known.
    pub async fn check(&self) -> Result<Checked, BucketError> {
        for _ in 0..TRIES_MAX {
            let at = self.0.log.last();
            let mut checked = Checked::default();
            let seen = self.look_at_index(&mut checked).await?;
            if self.0.log.last() != at {
                self.0.handle.yield_now().await;
                continue;
            }
            self.check_table(&seen, &mut checked);
            self.check_index_stripes(&mut checked);
            self.check_drives(seen, &mut checked).await?;
            self.check_zones(&mut checked).await;
            // A leader that was replaced meanwhile would take for lost what its successor has freed.
            self.readable().await?;
            return Ok(checked);
        }
        Err(BucketError::NotReady("the bucket changes while it is checked".into()))
    }

    async fn look_at_index(&self, checked: &mut Checked) -> Result<Seen, BucketError> {
        let mut seen = Seen::default();
        let mut from = Vec::new();
        let to = [u8::MAX; 32];
        loop {
            let entries = self.scan(&from, &to, SCAN_KEYS_MAX).await?;
            let Some((last, _)) = entries.last() else { return Ok(seen) };
            from = last.to_vec();
            from.push(0);
            for (key, value) in &entries {
                if key::is_extent(key) {
                    self.look_at_extent(key, value, &mut seen, checked);
                } else if let Some(id) = key::stripe_of(key) {
                    match weft_wire::decode::<StripeRecord>(value) {
                        Ok(record) => drop(seen.records.insert(id, record)),
                        Err(_) => checked.problem(format!("the record of {id} can't be read")),
                    }
                }
            }
        }
    }

    fn look_at_extent(&self, key: &Bytes, value: &[u8], seen: &mut Seen, checked: &mut Checked) {
        checked.extents += 1;
        let object = key.slice(..key.len().saturating_sub(8));
        let Some(extent) = key::extent_block(key).and_then(|first| Extent::decode(first, value)) else {
            return checked.problem(format!("an extent under {key:?} can't be read"));
        };
        if extent.first / SLAB_BLOCKS != (extent.end() - 1) / SLAB_BLOCKS {
            checked.problem(format!("{extent:?} crosses a slab"));
        }
        if let Some((last, end)) = &seen.last
            && *last == object
            && *end > extent.first
        {
            checked.problem(format!("{extent:?} begins before {end}, where the one before it ends"));
        }
        seen.last = Some((object, extent.end()));
        match extent.location {
            Location::Zero => seen.reserved += u64::from(extent.blocks),
            Location::Journal { seq, block } => {
                for block in block..block + extent.blocks {
                    if !self.0.held.borrow().is_live(seq, block) {
                        checked.problem(format!("{extent:?} refers to what the journal doesn't hold"));
                    }
                    if !seen.held.insert((seq, block)) {
                        checked.problem(format!("{extent:?} shares block {block} of {seq} with another"));
                    }
                }
            }
            Location::Stripe { stripe, block } => {
                let entry = self.0.stripes.zones.borrow().stripe(stripe).copied();
                let Some(entry) = entry.filter(|entry| entry.kind != Kind::Index) else {
                    return checked.problem(format!("{extent:?} refers to a stripe that doesn't exist"));
                };
                let capacity = entry.rows as usize * usize::from(self.0.protection.data);
                let bits = seen.referred.entry(stripe).or_insert_with(|| vec![false; capacity]);
                for block in block as usize..block as usize + extent.blocks as usize {
                    match bits.get_mut(block) {
                        None => checked.problem(format!("{extent:?} reaches over the stripe's {capacity} blocks")),
                        Some(true) => checked.problem(format!("{extent:?} shares block {block} with another")),
                        Some(bit) => *bit = true,
                    }
                }
            }
        }
    }

    /// The table against the index: no await, so that both are of one moment.
    fn check_table(&self, seen: &Seen, checked: &mut Checked) {
        let zones = self.0.stripes.zones.borrow();
        let mut rows: BTreeMap<_, Vec<(u32, u32, StripeId)>> = BTreeMap::new();
        for (id, entry) in zones.stripes() {
            checked.stripes += 1;
            rows.entry(entry.zone_set).or_default().push((entry.row, entry.row + entry.rows, id));
            if entry.kind == Kind::Index {
                continue;
            }
            let live = seen.referred.get(&id).map_or(0, |bits| bits.iter().filter(|bit| **bit).count());
            if live as u64 != u64::from(entry.live) {
                checked.problem(format!("{id} counts {} live blocks, {live} are referred to", entry.live));
            }
            match seen.records.get(&id) {
                None => checked.problem(format!("{id} has no record")),
                Some(record) => {
                    let same = (record.zone_set, record.row, record.rows) == (entry.zone_set, entry.row, entry.rows);
                    if !same || record.checksums.len() != self.0.protection.shards() * entry.rows as usize {
                        checked.problem(format!("{id} is not where its record says: {entry:?}"));
                    }
                }
            }
        }
        for id in seen.records.keys().filter(|id| zones.stripe(**id).is_none()) {
            checked.problem(format!("there is a record of {id}, which doesn't exist"));
        }
        for (set, mut rows) in rows {
            rows.sort_unstable();
            let end = zones.set(set).map_or(0, |set| set.rows);
            if let Some((_, last, id)) = rows.last()
                && *last > end
            {
                checked.problem(format!("{id} reaches over the {end} rows of {set}"));
            }
            for pair in rows.windows(2) {
                if pair[0].1 > pair[1].0 {
                    checked.problem(format!("{} and {} share rows of {set}", pair[0].2, pair[1].2));
                }
            }
        }
        let held = self.0.held.borrow().live_blocks();
        if held != seen.held.len() as u64 {
            checked.problem(format!("the journal holds {held} live blocks, {} are referred to", seen.held.len()));
        }
        let reserved = self.0.reserved_blocks.get();
        if reserved != seen.reserved {
            checked.problem(format!("{reserved} blocks count as reserved, {} are", seen.reserved));
        }
        zones.check_counters().into_iter().for_each(|problem| checked.problem(problem));
    }

    fn check_index_stripes(&self, checked: &mut Checked) {
        let named: BTreeMap<StripeId, StripeEntry> =
            self.index_stripes().iter().map(|stripe| (stripe.id, stripe.entry())).collect();
        let zones = self.0.stripes.zones.borrow();
        for (id, entry) in &named {
            if zones.stripe(*id) != Some(entry) {
                checked.problem(format!("{id} of the index is not in the table"));
            }
        }
        let merging = self.0.merging.borrow();
        for (id, entry) in zones.stripes().filter(|(_, entry)| entry.kind == Kind::Index) {
            let known = named.contains_key(&id)
                || zones.retired().contains(&id)
                || merging.as_ref().is_some_and(|merge| merge.wrote(id));
            // While a run or manifest is being written, its stripes are nobody's yet.
            if !known && self.0.step.get().is_none() {
                checked.problem(format!("{id} of the index is named by nobody: {entry:?}"));
            }
        }
    }

    async fn check_drives(&self, seen: Seen, checked: &mut Checked) -> Result<(), BucketError> {
        for (id, record) in seen.records {
            let view = self.0.stripes.view(id, record);
            self.check_stripe(view, checked).await?;
        }
        for stripe in self.index_stripes() {
            self.check_stripe(self.0.stripes.index_view(&stripe), checked).await?;
        }
        Ok(())
    }

    async fn check_stripe(
        &self,
        view: Result<StripeView, BucketError>,
        checked: &mut Checked,
    ) -> Result<(), BucketError> {
        let view = match view {
            Ok(view) => view,
            // Freed by the planner since; a set that should be there is missed by the table's check.
            Err(BucketError::Gone(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut shards = Vec::new();
        let (mut unreachable, mut absent) = (0, 0);
        for (shard, answer) in self.0.stripes.read_all(&view).await.into_iter().enumerate() {
            match answer {
                Ok(data) => {
                    checked.blocks += u64::from(view.rows);
                    shards.push(data);
                }
                Err(PieceError::Gone) => return Ok(()),
                Err(PieceError::Wrong(why)) => checked.problem(format!("{} shard {shard}: {why}", view.id)),
                Err(PieceError::Unreachable(_)) => unreachable += 1,
                Err(PieceError::Absent) => absent += 1,
            }
        }
        checked.unreachable_shards += unreachable;
        checked.absent_shards += absent;
        checked.exposed_most = checked.exposed_most.max(unreachable + absent);
        if absent > u64::from(self.0.protection.parity) {
            checked.problem(format!("{} was written without {absent} of its shards", view.id));
        }
        if shards.len() == self.0.protection.shards() && !self.0.stripes.parity_fits(&shards) {
            checked.problem(format!("the parity of {} doesn't fit its data", view.id));
        }
        Ok(())
    }

    /// No zone belongs to two sets, and each is the bucket's on its drive.
    async fn check_zones(&self, checked: &mut Checked) {
        let mut owners: BTreeMap<DriveId, BTreeMap<_, _>> = BTreeMap::new();
        for set in self.0.stripes.zones.borrow().sets() {
            for member in set.zones() {
                let zones = owners.entry(member.drive).or_default();
                if let Some((other, _)) = zones.insert(member.zone, (set.id, member.generation)) {
                    let (drive, zone, id) = (member.drive, member.zone, set.id);
                    checked.problem(format!("{zone} of {drive} belongs to {other} and {id}"));
                }
            }
        }
        for drive in self.0.stripes.drives.all_there() {
            owners.entry(drive).or_default();
        }
        for (drive, zones) in owners.into_iter().filter(|(drive, _)| self.0.stripes.drives.is_there(*drive)) {
            let answer = self.0.stripes.calls.call(drive, DriveOp::ListZones, Bytes::new()).await;
            let Ok((DriveReply::Zones(found), _)) = answer else { continue };
            let unnamed = self.0.stripes.unnamed.borrow();
            let leaked = |zone: &&ZoneInfo| !zones.contains_key(&zone.zone) && !unnamed.contains(&zone.zone_set);
            checked.leaked_zones += found.iter().filter(leaked).count() as u64;
            let found: BTreeMap<_, _> = found.into_iter().map(|zone| (zone.zone, zone.generation)).collect();
            for (zone, (set, generation)) in zones {
                // Unless it was freed or moved meanwhile.
                let named = Member { drive, zone, generation };
                let current =
                    self.0.stripes.zones.borrow().set(set).is_some_and(|set| set.zones().any(|m| *m == named));
                if current && found.get(&zone) != Some(&generation) {
                    checked.problem(format!("{drive} doesn't hold {zone} of {set} for the bucket"));
                }
            }
        }
    }
}
