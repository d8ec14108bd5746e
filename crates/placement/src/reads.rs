//! From which members lost shards are made again, so that all nodes have about equally much to do for it.
//!
//! D of the members that are left are read, often there are more. Leaders know nothing of each other while they rebuild; but
//! all have the same map, and what each of them computes from it is the same plan for all.

use std::collections::BTreeMap;
use weft_wire::map::{Bucket, Map, State};
use weft_wire::{BucketId, DriveId};

/// A whole shard.
const WHOLE: u64 = 1 << 10;
/// Passes over all buckets; more change little. What changes no share by more than the other ends it, too.
const PASSES_MAX: usize = 24;
const CHANGE_MIN: u64 = WHOLE / 128;
/// So many buckets come out even enough by themselves.
const PLANNED_MAX: usize = 1024;

/// Of each member's shard, how much is read for a bucket, in a unit in which all together are D whole shards.
pub type Reads = BTreeMap<DriveId, u64>;

/// A bucket that has something to make again.
struct Work {
    id: BucketId,
    reads: Reads,
}

/// For each bucket with shards that were on drives which are given up: what to read of each member that is left. Of buckets
/// where no choice is left nothing is said.
pub fn rebuild_reads(map: &Map) -> BTreeMap<BucketId, Reads> {
    let data = u64::from(map.protection.data);
    // In terms of drives: those of one node have no work in common.
    let mut load: BTreeMap<DriveId, u64> = BTreeMap::new();
    let mut works = Vec::new();
    for (index, bucket) in map.buckets.iter().enumerate() {
        let targets = targets(map, bucket);
        if targets.is_empty() {
            continue;
        }
        for target in &targets {
            *load.entry(*target).or_default() += WHOLE;
        }
        let left: Vec<DriveId> = bucket.members.iter().copied().filter(|drive| !targets.contains(drive)).collect();
        let each = data * WHOLE / (left.len() as u64).max(data);
        for drive in &left {
            *load.entry(*drive).or_default() += each;
        }
        works.push(Work { id: BucketId(index as u32), reads: left.into_iter().map(|drive| (drive, each)).collect() });
    }
    works.retain(|work| work.reads.len() as u64 > data);
    if works.len() > PLANNED_MAX {
        return BTreeMap::new();
    }
    for _ in 0..PASSES_MAX {
        let changes = works.iter_mut().map(|work| level(&mut work.reads, &mut load, data * WHOLE));
        if changes.max().unwrap_or(0) <= CHANGE_MIN {
            break;
        }
    }
    works.into_iter().map(|work| (work.id, work.reads)).collect()
}

/// Members that have yet to be given what others held that were given up.
fn targets(map: &Map, bucket: &Bucket) -> Vec<DriveId> {
    let given_up = |drive: DriveId| {
        let drive = map.drives.get(&drive);
        let node = drive.and_then(|drive| map.nodes.get(&drive.node));
        drive.is_none_or(|drive| drive.state == State::Failed) || node.is_none_or(|node| node.state == State::Failed)
    };
    let lost = bucket.former.iter().filter(|former| given_up(former.drive));
    lost.filter_map(|former| bucket.members.get(usize::from(former.shard)).copied()).collect()
}

/// Shares out one bucket's reads so that the members' loads come as close to each other as they can. The largest change.
fn level(reads: &mut Reads, load: &mut BTreeMap<DriveId, u64>, needed: u64) -> u64 {
    for (drive, read) in reads.iter_mut() {
        if let Some(load) = load.get_mut(drive) {
            *load -= *read;
        }
    }
    let others = |drive: &DriveId| load.get(drive).copied().unwrap_or(0);
    let taken = |level: u64| reads.keys().map(|drive| level.saturating_sub(others(drive)).min(WHOLE)).sum::<u64>();
    let (mut low, mut high) = (0, reads.keys().map(others).max().unwrap_or(0) + WHOLE);
    while low < high {
        let middle = low.midpoint(high);
        if taken(middle) < needed { low = middle + 1 } else { high = middle }
    }
    // The level is whole: what is beyond the need is less than one unit for each whose share the level says.
    let mut beyond = taken(low).saturating_sub(needed);
    let shares = reads.keys().map(|drive| {
        let share = low.saturating_sub(others(drive)).min(WHOLE);
        let less = u64::from(beyond > 0 && (1..WHOLE).contains(&share));
        beyond -= less;
        share - less
    });
    let shares: Vec<u64> = shares.collect();
    let mut change = 0;
    for ((drive, read), share) in reads.iter_mut().zip(shares) {
        change = change.max(read.abs_diff(share));
        *read = share;
        *load.entry(*drive).or_default() += share;
    }
    change
}
