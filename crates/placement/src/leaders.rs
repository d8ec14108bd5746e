//! Which core leads which bucket: as many on each core as on any other (one more or less), where possible on a core that owns a
//! member drive, so that one copy of each record crosses no network.

use crate::Refusal;
use crate::change::delta;
use crate::form::{DriveTable, bucket_ids, indices};
use std::collections::{BTreeMap, VecDeque};
use weft_wire::map::{Delta, Map, State};
use weft_wire::{BucketId, CoreId, Epoch};

/// Gives buckets to other cores, each with a new epoch.
pub fn set_leaders(map: &Map, leaders: &BTreeMap<BucketId, CoreId>) -> Result<Delta, Refusal> {
    let mut next = map.clone();
    for (&bucket, &core) in leaders {
        if map.bucket(bucket).is_none() {
            return Err(Refusal::NoSuchBucket(bucket));
        }
        let node = map.nodes.get(&core.node).filter(|node| matches!(node.state, State::Up | State::Draining));
        if node.is_none_or(|node| usize::from(core.core) >= node.cores.len()) {
            return Err(Refusal::NoSuchCore(core));
        }
        lead(&mut next, bucket, core);
    }
    Ok(delta(map, &next, Vec::new()))
}

/// The buckets that should change their leader so that all cores lead about the same number, and no more of them than that takes.
/// A core whose node is away, failed or being drained gives up all of its buckets.
pub fn balance_leaders(map: &Map) -> Vec<(BucketId, CoreId)> {
    let table = DriveTable::new(&map.nodes, &map.drives);
    if table.cores.is_empty() {
        return Vec::new();
    }
    let near: Vec<Vec<usize>> = indices(map, &table).iter().map(|members| table.near(members)).collect();
    let held: Vec<Option<usize>> =
        map.buckets.iter().map(|bucket| table.cores.binary_search(&bucket.leader).ok()).collect();
    let balanced = balance(&near, &held, table.cores.len());
    bucket_ids(map)
        .zip(balanced)
        .map(|(id, core)| (id, table.cores[core]))
        .filter(|(id, core)| map.buckets[id.0 as usize].leader != *core)
        .collect()
}

fn lead(next: &mut Map, id: BucketId, leader: CoreId) {
    let incarnation = next.nodes.get(&leader.node).map(|node| node.incarnation).unwrap_or_default();
    if let Some(bucket) = next.buckets.get_mut(id.0 as usize) {
        bucket.leader = leader;
        bucket.incarnation = incarnation;
        bucket.epoch = Epoch(bucket.epoch.0 + 1);
    }
}

/// For each bucket the index of its core. `near[bucket]` are the cores that own a member; `held[bucket]` the core that leads it now.
///
/// Starts from what is held, so that a balance that is good enough moves nothing, and moves along shortest chains of near cores. Only where no chain
/// exists does a bucket get a core that owns none of its members.
pub(crate) fn balance(near: &[Vec<usize>], held: &[Option<usize>], cores: usize) -> Vec<usize> {
    assert!(cores > 0, "leaders need a core");
    let mut led: Vec<Vec<usize>> = vec![Vec::new(); cores];
    let mut leader: Vec<usize> = Vec::with_capacity(near.len());
    for (bucket, near) in near.iter().enumerate() {
        let core = held[bucket].unwrap_or_else(|| {
            let candidates = near.iter().copied();
            candidates.min_by_key(|&core| (led[core].len(), core)).unwrap_or_else(|| least(&led))
        });
        led[core].push(bucket);
        leader.push(core);
    }
    loop {
        let (low, high) = (least(&led), most(&led));
        if led[high].len() <= led[low].len() + 1 {
            return leader;
        }
        let chain = chain(&led, near, low).unwrap_or_else(|| {
            // No chain of near cores reaches the emptiest core: it leads for strangers.
            led[high].last().map(|&bucket| vec![(bucket, low)]).unwrap_or_default()
        });
        for (bucket, to) in chain {
            let from = leader[bucket];
            led[from].retain(|&other| other != bucket);
            led[to].push(bucket);
            leader[bucket] = to;
        }
    }
}

fn least(led: &[Vec<usize>]) -> usize {
    (0..led.len()).min_by_key(|&core| (led[core].len(), core)).unwrap_or(0)
}

fn most(led: &[Vec<usize>]) -> usize {
    (0..led.len()).max_by_key(|&core| (led[core].len(), core)).unwrap_or(0)
}

/// The shortest chain of moves to a near core that ends at `low` and starts at a core which leads at least two more.
fn chain(led: &[Vec<usize>], near: &[Vec<usize>], low: usize) -> Option<Vec<(usize, usize)>> {
    // Breadth first against the direction of the moves: who could hand a bucket to whom has been reached.
    let mut givers: Vec<Vec<(usize, usize)>> = vec![Vec::new(); led.len()];
    for (from, buckets) in led.iter().enumerate() {
        for &bucket in buckets {
            for &to in near[bucket].iter().filter(|&&to| to != from) {
                givers[to].push((bucket, from));
            }
        }
    }
    let mut step: Vec<Option<(usize, usize)>> = vec![None; led.len()];
    let mut queue = VecDeque::from([low]);
    while let Some(core) = queue.pop_front() {
        if led[core].len() >= led[low].len() + 2 {
            let mut moves = Vec::new();
            let mut at = core;
            while let Some((bucket, to)) = step[at] {
                moves.push((bucket, to));
                at = to;
            }
            return Some(moves);
        }
        for &(bucket, from) in &givers[core] {
            if from != low && step[from].is_none() {
                step[from] = Some((bucket, core));
                queue.push_back(from);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_reach_an_empty_core() {
        // Core 2 is near bucket 2 only, which core 1 holds; core 0 holds too many.
        let near = vec![vec![0, 1], vec![0, 1], vec![1, 2], vec![0]];
        let leader = balance(&near, &[Some(0), Some(0), Some(1), Some(0)], 3);
        let counts: Vec<usize> = (0..3).map(|core| leader.iter().filter(|&&led| led == core).count()).collect();
        assert_eq!(counts, vec![2, 1, 1]);
        assert!(leader.iter().enumerate().all(|(bucket, core)| near[bucket].contains(core)), "{leader:?}");
    }

    #[test]
    fn balance_moves_nothing_that_is_balanced() {
        let near = vec![vec![0, 1]; 8];
        let held: Vec<Option<usize>> = (0..8).map(|bucket| Some(bucket % 2)).collect();
        assert_eq!(balance(&near, &held, 2), (0..8).map(|bucket| bucket % 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_core_without_drives_leads_its_share() {
        let near = vec![vec![0]; 6];
        let leader = balance(&near, &[None; 6], 2);
        assert_eq!(leader.iter().filter(|&&core| core == 1).count(), 3);
    }
}
