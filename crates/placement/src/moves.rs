//! Shards on their way: which go where next, so that in the end every drive holds its quota and none that must not hold any does.
//!
//! Everything follows from the map, so there is no plan to keep: whoever leads the managers goes on where the last one was. A
//! move changes a bucket's members at once; the drive that was one is *former* until the bucket's leader has found that
//! nothing is left on it. A few buckets move at a time. What is given up is not moved but made again, and at once.
//!
//! The journal follows by itself: its leader asks for an ensemble of members ([`crate::better_ensemble`]).

use crate::change::delta;
use crate::form::{DriveTable, indices};
use crate::movement::Placement;
use crate::quota::Rank;
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::map::{Bucket, Change, Delta, Former, Map};
use weft_wire::{BucketId, DriveId, Layout, MapVersion};

/// Moves that a drive takes part in at a time, giving or taking.
const MOVES_PER_DRIVE_MAX: usize = 4;

/// Shards under way, and those whose turn is still to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    pub under_way: u64,
    pub waiting: u64,
}

/// The next moves. `None`: nothing is to be moved, or nothing can be before others are done.
pub fn next_moves(map: &Map) -> Option<Delta> {
    let mut next = map.clone();
    give_up(&mut next);
    move_some(&mut next);
    let delta = delta(map, &next, Vec::new());
    (!delta.changes.is_empty()).then_some(delta)
}

/// How much is on its way or will be, as things are now.
pub fn moves(map: &Map) -> Moves {
    let table = DriveTable::new(&map.nodes, &map.drives);
    let under_way = map.buckets.iter().map(|bucket| bucket.former.len() as u64).sum();
    let members = indices(map, &table);
    let Some((quota, _)) = table.quotas_now(&ranks(&table, &members), map.buckets.len() as u64, map.protection) else {
        return Moves { under_way, waiting: 0 };
    };
    let mut held = vec![0u64; quota.len()];
    members.iter().flatten().for_each(|drive| held[*drive] += 1);
    let waiting = held.iter().zip(&quota).map(|(held, quota)| held.saturating_sub(*quota)).sum();
    Moves { under_way, waiting }
}

/// A bucket's leader found nothing left on drives that were members. `None`: the map says so already.
pub fn moved(map: &Map, id: BucketId, drives: &[DriveId]) -> Option<Delta> {
    let mut bucket = map.bucket(id)?.clone();
    let before = bucket.former.len();
    bucket.former.retain(|former| !drives.contains(&former.drive));
    (bucket.former.len() < before)
        .then(|| Delta { version: MapVersion(map.version.0 + 1), changes: vec![Change::Bucket(id, bucket)] })
}

/// What doesn't divide stays where it is. New shards of what is given up go to nodes that have least to read for it: those that
/// share few buckets with who is gone.
fn ranks(table: &DriveTable, members: &[Vec<usize>]) -> Vec<Rank> {
    let nodes = table.node_of.iter().map(|node| node + 1).max().unwrap_or(0);
    let mut reads = vec![0; nodes];
    let mut held = vec![0i64; table.ids.len()];
    for members in members {
        members.iter().for_each(|&drive| held[drive] += 1);
        if members.iter().any(|&drive| table.given_up[drive]) {
            members.iter().for_each(|&drive| reads[table.node_of[drive]] += 1);
        }
    }
    held.iter().zip(&table.node_of).map(|(held, &node)| Rank(-held, reads[node])).collect()
}

/// Gives the shards of drives that are given up to others, as far as there are drives for them; the rest stays.
pub(crate) fn give_up(next: &mut Map) {
    let table = DriveTable::new(&next.nodes, &next.drives);
    let shards = next.protection.shards();
    let members = indices(next, &table);
    let Some(quota) = table.quotas_now(&ranks(&table, &members), next.buckets.len() as u64, next.protection) else {
        return;
    };
    let mut placement = Placement::new(&table, members, quota, shards);
    for bucket in 0..placement.members.len() {
        let leaving: Vec<usize> =
            placement.members[bucket].iter().copied().filter(|&drive| table.given_up[drive]).collect();
        for old in leaving {
            if let Some(new) = placement.successor(bucket, old) {
                placement.replace(bucket, old, new);
            }
        }
    }
    set_members(next, &table, &placement);
}

/// Drives that should hold nothing first, then domains with two shards of a bucket, then drives above their quota. No bucket moves twice at a time.
fn move_some(next: &mut Map) {
    let table = DriveTable::new(&next.nodes, &next.drives);
    let shards = next.protection.shards();
    let members = indices(next, &table);
    let Some(quota) = table.quotas_now(&ranks(&table, &members), next.buckets.len() as u64, next.protection) else {
        return;
    };
    let mut placement = Placement::new(&table, members, quota, shards);
    let mut busy = Busy::new(next, &table);
    for bucket in 0..placement.members.len() {
        let leaves = |drive: &&usize| table.holders[**drive].weight == 0 && !table.given_up[**drive];
        let leaving: Vec<usize> = placement.members[bucket].iter().filter(leaves).copied().collect();
        // The best one or none: what goes elsewhere now would have to move again.
        let goes = leaving.into_iter().find_map(|old| {
            let new = placement.successor(bucket, old)?;
            (busy.takes(bucket, old, new) || busy.redirects(bucket, old, new)).then_some((old, new))
        });
        if let Some((old, new)) = goes {
            placement.replace(bucket, old, new);
            busy.add(bucket, old, new);
        }
    }
    for bucket in 0..placement.members.len() {
        if let Some((old, new)) = placement.unfolding(bucket)
            && busy.takes(bucket, old, new)
        {
            placement.replace(bucket, old, new);
            busy.add(bucket, old, new);
        }
    }
    while let Some((bucket, giver, taker)) =
        placement.evening(|drive| busy.is_free(drive), |bucket, giver, taker| busy.takes(bucket, giver, taker))
    {
        placement.replace(bucket, giver, taker);
        busy.add(bucket, giver, taker);
    }
    set_members(next, &table, &placement);
}

/// Who takes part in moves that are not done.
struct Busy<'a> {
    table: &'a DriveTable,
    drives: BTreeMap<usize, usize>,
    /// Where the shards that move in a bucket go.
    buckets: BTreeMap<usize, BTreeSet<usize>>,
}

impl<'a> Busy<'a> {
    fn new(map: &Map, table: &'a DriveTable) -> Self {
        let mut busy = Self { table, drives: BTreeMap::new(), buckets: BTreeMap::new() };
        for (index, bucket) in map.buckets.iter().enumerate() {
            for former in &bucket.former {
                let target = bucket.members.get(usize::from(former.shard));
                let goes_to = target.and_then(|id| table.ids.binary_search(id).ok());
                busy.buckets.entry(index).or_default().extend(goes_to);
                let ends = [Some(&former.drive), target].into_iter().flatten();
                for drive in ends.filter_map(|id| table.ids.binary_search(id).ok()) {
                    *busy.drives.entry(drive).or_default() += 1;
                }
            }
        }
        busy
    }

    fn is_free(&self, drive: usize) -> bool {
        self.drives.get(&drive).is_none_or(|moves| *moves < MOVES_PER_DRIVE_MAX)
    }

    fn takes(&self, bucket: usize, old: usize, new: usize) -> bool {
        self.table.up[new] && !self.buckets.contains_key(&bucket) && self.is_free(old) && self.is_free(new)
    }

    /// What is on its way to a drive that is to be emptied goes elsewhere: that one takes nothing any more, so the move would
    /// never end.
    fn redirects(&self, bucket: usize, old: usize, new: usize) -> bool {
        let goes_there = self.buckets.get(&bucket).is_some_and(|targets| targets.iter().all(|target| *target == old));
        self.table.up[new] && goes_there && self.is_free(new)
    }

    fn add(&mut self, bucket: usize, old: usize, new: usize) {
        self.buckets.entry(bucket).or_default().insert(new);
        *self.drives.entry(old).or_default() += 1;
        *self.drives.entry(new).or_default() += 1;
    }
}

/// Writes members into the map. Who was one is former.
fn set_members(next: &mut Map, table: &DriveTable, placement: &Placement<'_>) {
    for (bucket, members) in next.buckets.iter_mut().zip(&placement.members) {
        let ids: Vec<DriveId> = members.iter().map(|&drive| table.ids[drive]).collect();
        if bucket.members != ids {
            replace_members(bucket, ids);
        }
    }
}

fn replace_members(bucket: &mut Bucket, members: Vec<DriveId>) {
    let before = std::mem::replace(&mut bucket.members, members);
    bucket.layout = Layout(bucket.layout.0 + 1);
    for (shard, drive) in (0..).zip(before) {
        if !bucket.members.contains(&drive) {
            bucket.former.retain(|former| former.drive != drive);
            bucket.former.push(Former { drive, shard });
        }
    }
    let Bucket { members, former, .. } = bucket;
    former.retain(|former| !members.contains(&former.drive));
}
