//! Nodes die and come back: who leads instead, and which drives hold the journals meanwhile.
//!
//! A drive *lives* if neither it nor its node is away or given up. Journals are kept on P+2 living members, on P+1 if there
//! are no more; with fewer nothing is changed, and the bucket's leader refuses to write. A new ensemble goes in front of the
//! earlier ones and raises the epoch, since nobody writes to an ensemble that the map doesn't name.

use crate::change::delta;
use crate::form::bucket_ids;
use crate::moves::give_up;
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::map::{Bucket, Change, Delta, Ensemble, Map, Purpose, State};
use weft_wire::{BucketId, CoreId, DomainId, DriveId, Epoch, NodeId};

/// Buckets that one delta changes; the next one goes on.
const BUCKETS_PER_DELTA_MAX: usize = 2048;
/// Ensembles of one bucket that may be listed. Only a bucket that can't write at all gets another one beyond half of them.
const ENSEMBLES_MAX: usize = 16;

/// Journals that each drive holds: the newest ensembles count.
type Load = BTreeMap<DriveId, u64>;

/// Nodes are believed to be in other states than the map says. Leaders of nodes that are gone move, in the same delta; a
/// node that is given up also loses its shards, as far as there are other domains for them. `None`: nothing changes.
pub fn node_states(map: &Map, states: &BTreeMap<NodeId, State>) -> Option<Delta> {
    let mut next = map.clone();
    let mut changes = Vec::new();
    for (id, state) in states {
        let Some(node) = next.nodes.get_mut(id).filter(|node| node.state != *state) else { continue };
        node.state = *state;
        changes.push(Change::Node(node.clone()));
    }
    if changes.iter().any(|change| matches!(change, Change::Node(node) if node.state == State::Failed)) {
        give_up(&mut next);
    }
    fail_over(&mut next);
    let delta = delta(map, &next, changes);
    (!delta.changes.is_empty()).then_some(delta)
}

/// A drive is given up: its shards go to other domains as far as there are any, and journals that can't be written without
/// it get other drives. `None`: it is given up already, or unknown.
pub fn drive_failed(map: &Map, id: DriveId) -> Option<Delta> {
    let mut next = map.clone();
    let drive = next.drives.get_mut(&id).filter(|drive| drive.state != State::Failed)?;
    drive.state = State::Failed;
    let changes = vec![Change::Drive(drive.clone())];
    give_up(&mut next);
    fail_over(&mut next);
    Some(delta(map, &next, changes))
}

/// What can't wait: leaders for buckets that have none, ensembles for buckets that can't write. `None`: nothing to do, or nothing that would help.
pub fn urgent(map: &Map) -> Option<Delta> {
    node_states(map, &BTreeMap::new())
}

/// Whether nothing speaks against a drive of the bucket's journal: it lives, is a member, and is not being emptied.
pub fn is_well(map: &Map, bucket: &Bucket, drive: DriveId) -> bool {
    lives(map, drive) && bucket.members.contains(&drive) && !is_leaving(map, drive)
}

/// The ensemble that a bucket should have instead of its newest, if there is a better one: one of living members that stay, of P+2
/// if there are so many, and spread so that all drives hold about as many journals. The leader's own drive stays.
pub fn better_ensemble(map: &Map, id: BucketId) -> Option<Vec<DriveId>> {
    let bucket = map.bucket(id).filter(|bucket| bucket.ensembles.len() < ENSEMBLES_MAX / 2)?;
    let newest = &bucket.ensembles.first()?.drives;
    let load = load(map);
    let all_well = newest.iter().all(|drive| is_well(map, bucket, *drive));
    let chosen = choose(map, bucket, &load)?;
    if !all_well || chosen.len() > newest.len() {
        return (!same(&chosen, newest)).then_some(chosen);
    }
    // One change at a time where nothing presses.
    if bucket.ensembles.len() > 1 {
        return None;
    }
    let own = own_drive(map, bucket);
    let from =
        newest.iter().copied().filter(|drive| Some(*drive) != own).max_by_key(|drive| filled(map, &load, *drive, 0))?;
    let others = bucket.members.iter().copied().filter(|drive| !newest.contains(drive) && is_well(map, bucket, *drive));
    // A domain never counts twice.
    let elsewhere = |drive: &DriveId| {
        let stay = newest.iter().filter(|other| **other != from);
        stay.map(|other| domain_of(map, *other)).all(|domain| domain != domain_of(map, *drive))
    };
    let to = others.filter(elsewhere).min_by_key(|drive| filled(map, &load, *drive, 1))?;
    // Two journals of difference, or the drives would take turns.
    (filled(map, &load, to, 1) < filled(map, &load, from, 0) && load.get(&to) < load.get(&from))
        .then(|| newest.iter().map(|drive| if *drive == from { to } else { *drive }).collect())
}

/// Buckets whose journal, or what is still needed of an earlier one, has fewer than P+2 copies on drives that live: as many more
/// failures as the protection allows could stop these.
pub fn journals_lacking(map: &Map) -> usize {
    let copies = usize::from(map.protection.parity) + 2;
    let lacks = |ensemble: &Ensemble| ensemble.drives.iter().filter(|drive| lives(map, **drive)).count() < copies;
    map.buckets.iter().filter(|bucket| bucket.ensembles.iter().any(lacks)).count()
}

/// The bucket with a new ensemble in front, and a new epoch for its present leader.
pub fn with_ensemble(bucket: &Bucket, drives: Vec<DriveId>) -> Bucket {
    let epoch = Epoch(bucket.epoch.0 + 1);
    let mut ensembles = vec![Ensemble { since: epoch, drives }];
    ensembles.extend(bucket.ensembles.iter().cloned());
    Bucket { epoch, ensembles, ..bucket.clone() }
}

/// Whether a drive takes part as far as the map knows.
pub fn lives(map: &Map, id: DriveId) -> bool {
    let there = |state| matches!(state, State::Up | State::Draining);
    map.drives
        .get(&id)
        .is_some_and(|drive| there(drive.state) && map.nodes.get(&drive.node).is_some_and(|node| there(node.state)))
}

fn is_leaving(map: &Map, id: DriveId) -> bool {
    map.drives.get(&id).is_some_and(|drive| {
        let node = map.nodes.get(&drive.node);
        drive.purpose == Purpose::Leave || node.is_some_and(|node| node.purpose == Purpose::Leave)
    })
}

fn fail_over(next: &mut Map) {
    let leads = |next: &Map, core: CoreId| {
        next.nodes.get(&core.node).is_some_and(|node| {
            matches!(node.state, State::Up | State::Draining) && usize::from(core.core) < node.cores.len()
        })
    };
    // A node that never started can't begin with other nodes' buckets.
    let mut led: BTreeMap<CoreId, usize> = next
        .nodes
        .values()
        .filter(|node| node.state == State::Up && node.incarnation.0 > 0)
        .flat_map(|node| (0..node.cores.len()).map(|core| (CoreId { node: node.id, core: core as u8 }, 0)))
        .collect();
    for bucket in &next.buckets {
        led.entry(bucket.leader).and_modify(|count| *count += 1);
    }
    let mut load = load(next);
    let mut changed = 0;
    for id in bucket_ids(next) {
        let Some(old) = next.bucket(id) else { continue };
        let mut bucket = old.clone();
        if !leads(next, bucket.leader)
            && let Some(leader) = successor(next, &bucket, &led)
        {
            led.entry(leader).and_modify(|count| *count += 1);
            bucket.leader = leader;
            bucket.incarnation = next.nodes.get(&leader.node).map(|node| node.incarnation).unwrap_or_default();
            bucket.epoch = Epoch(bucket.epoch.0 + 1);
        }
        if let Some(drives) = urgent_ensemble(next, &bucket, &load) {
            drives.iter().for_each(|drive| *load.entry(*drive).or_default() += 1);
            // One step for both.
            bucket.epoch = old.epoch;
            bucket = with_ensemble(&bucket, drives);
        }
        if bucket != *old {
            next.buckets[id.0 as usize] = bucket;
            changed += 1;
            if changed == BUCKETS_PER_DELTA_MAX {
                return;
            }
        }
    }
}

/// The core that leads fewest buckets, one that owns a living member if it leads no more than one above that.
fn successor(map: &Map, bucket: &Bucket, led: &BTreeMap<CoreId, usize>) -> Option<CoreId> {
    let near: BTreeSet<CoreId> =
        bucket.members.iter().filter(|drive| lives(map, **drive)).filter_map(|drive| map.drive_core(*drive)).collect();
    let cost = |core: &CoreId, count: usize| {
        let far = usize::from(!near.contains(core));
        (count + far, far, *core)
    };
    led.iter().min_by_key(|(core, count)| cost(core, **count)).map(|(core, _)| *core)
}

/// A new ensemble for a bucket that can't write to its newest: fewer than P+1 of its drives live.
pub(crate) fn urgent_ensemble(map: &Map, bucket: &Bucket, load: &Load) -> Option<Vec<DriveId>> {
    let newest = bucket.ensembles.first().map(|ensemble| ensemble.drives.as_slice()).unwrap_or_default();
    let live = newest.iter().filter(|drive| lives(map, **drive)).count();
    if live >= map.protection.acknowledge() || bucket.ensembles.len() >= ENSEMBLES_MAX {
        return None;
    }
    choose(map, bucket, load)
}

/// P+2 living members of different domains, or P+1: those of the newest ensemble first, as they hold the journal already, then the
/// leader's own, then those with the fewest journals. `None`: there are fewer.
pub(crate) fn choose(map: &Map, bucket: &Bucket, load: &Load) -> Option<Vec<DriveId>> {
    let newest = bucket.ensembles.first().map(|ensemble| ensemble.drives.as_slice()).unwrap_or_default();
    let own = own_drive(map, bucket);
    let mut candidates: Vec<DriveId> = bucket.members.iter().copied().filter(|drive| lives(map, *drive)).collect();
    candidates.sort_by_key(|drive| {
        (is_leaving(map, *drive), !newest.contains(drive), Some(*drive) != own, filled(map, load, *drive, 1), *drive)
    });
    let mut domains: BTreeSet<DomainId> = BTreeSet::new();
    let chosen: Vec<DriveId> = candidates
        .into_iter()
        .filter(|drive| domain_of(map, *drive).is_some_and(|domain| domains.insert(domain)))
        .take(map.protection.ensemble())
        .collect();
    (chosen.len() >= map.protection.acknowledge()).then_some(chosen)
}

fn domain_of(map: &Map, drive: DriveId) -> Option<DomainId> {
    Some(map.nodes.get(&map.drives.get(&drive)?.node)?.domain)
}

fn own_drive(map: &Map, bucket: &Bucket) -> Option<DriveId> {
    bucket.members.iter().copied().find(|drive| map.drive_core(*drive) == Some(bucket.leader))
}

pub(crate) fn load(map: &Map) -> Load {
    let mut load = Load::new();
    for drive in map.buckets.iter().filter_map(|bucket| bucket.ensembles.first()).flat_map(|newest| &newest.drives) {
        *load.entry(*drive).or_default() += 1;
    }
    load
}

/// Journals of a drive with `more`, relative to its size, as an integer that compares.
fn filled(map: &Map, load: &Load, id: DriveId, more: u64) -> u128 {
    let weight = map.drives.get(&id).map_or(1, |drive| u64::from(drive.zones).saturating_mul(drive.zone_bytes).max(1));
    (u128::from(load.get(&id).copied().unwrap_or_default() + more) << 64) / u128::from(weight)
}

fn same(one: &[DriveId], other: &[DriveId]) -> bool {
    one.len() == other.len() && one.iter().all(|drive| other.contains(drive))
}
