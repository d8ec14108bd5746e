//! Changes of a map that is in use. Each gives the delta to the next version; nothing is moved that doesn't have to be.

use crate::form::{DriveTable, bucket_ids, check_nodes, drive, indices, node};
use crate::movement::Placement;
use crate::{NewNode, Refusal, failover, leaders};
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::map::{Bucket, Change, Delta, Map, State};
use weft_wire::{BucketId, CoreId, DomainId, DriveId, Epoch, Layout, MapVersion, NodeId};

/// Adds a node with its drives, in `domain` or in one of its own, and gives it its share of shards and leaders.
///
/// `new.domain` is not looked at: the map keeps the numbers of domains, not their names.
pub fn add_node(map: &Map, new: &NewNode, domain: Option<DomainId>) -> Result<Delta, Refusal> {
    check_nodes(std::slice::from_ref(new), &map.nodes, &map.drives)?;
    let last_domain = map.nodes.values().map(|node| node.domain).max().unwrap_or_default();
    let domain = match domain {
        Some(domain) if map.nodes.values().any(|node| node.domain == domain) => domain,
        Some(domain) => return Err(Refusal::NoSuchDomain(domain)),
        None => DomainId(last_domain.0.checked_add(1).ok_or(Refusal::NoIdLeft("domain"))?),
    };
    let last_node = map.nodes.keys().next_back().copied().unwrap_or_default();
    let id = NodeId(last_node.0.checked_add(1).ok_or(Refusal::NoIdLeft("node"))?);
    let mut next = map.clone();
    let mut changes = Vec::new();
    next.nodes.insert(id, node(id, domain, new));
    changes.push(Change::Node(node(id, domain, new)));
    let mut last_drive = map.drives.keys().next_back().copied().unwrap_or_default();
    for new in &new.drives {
        last_drive = DriveId(last_drive.0.checked_add(1).ok_or(Refusal::NoIdLeft("drive"))?);
        next.drives.insert(last_drive, drive(last_drive, id, new));
        changes.push(Change::Drive(drive(last_drive, id, new)));
    }
    let table = DriveTable::new(&next.nodes, &next.drives);
    let quota = table.quotas(map.buckets.len() as u64, map.protection)?;
    let mut placement = Placement::new(&table, indices(&next, &table), quota, map.protection.shards());
    placement.even_out();
    set_members(&mut next, &table, &placement);
    for (bucket, leader) in balance_leaders(&next) {
        lead(&mut next, bucket, leader);
    }
    Ok(delta(map, &next, changes))
}

/// Gives up a drive for good: its shards go to drives of domains that hold none of the same bucket.
pub fn replace_drive(map: &Map, failed: DriveId) -> Result<Delta, Refusal> {
    let mut drive = map.drives.get(&failed).ok_or(Refusal::NoSuchDrive(failed))?.clone();
    drive.state = State::Failed;
    let mut next = map.clone();
    next.drives.insert(failed, drive.clone());
    move_off(&mut next)?;
    Ok(delta(map, &next, vec![Change::Drive(drive)]))
}

/// Empties a node: its shards and its leaders go to the others. It stays in the map until its old zone sets are rebuilt.
pub fn drain(map: &Map, drained: NodeId) -> Result<Delta, Refusal> {
    let mut node = map.nodes.get(&drained).ok_or(Refusal::NoSuchNode(drained))?.clone();
    node.state = State::Draining;
    let mut next = map.clone();
    next.nodes.insert(drained, node.clone());
    let mut changes = vec![Change::Node(node)];
    for drive in next.drives.values_mut().filter(|drive| drive.node == drained && drive.state != State::Failed) {
        drive.state = State::Draining;
        changes.push(Change::Drive(drive.clone()));
    }
    move_off(&mut next)?;
    for (bucket, leader) in balance_leaders(&next) {
        lead(&mut next, bucket, leader);
    }
    Ok(delta(map, &next, changes))
}

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
    let balanced = leaders::balance(&near, &held, table.cores.len());
    bucket_ids(map)
        .zip(balanced)
        .map(|(id, core)| (id, table.cores[core]))
        .filter(|(id, core)| map.buckets[id.0 as usize].leader != *core)
        .collect()
}

/// Finds successors for all members that hold shards and shouldn't.
fn move_off(next: &mut Map) -> Result<(), Refusal> {
    let table = DriveTable::new(&next.nodes, &next.drives);
    let domains = table.domains_with_weight();
    let shards = next.protection.shards();
    let no_spare = |bucket| Refusal::NoSpareDomain { bucket, needed: shards, domains };
    let quota = table.quotas(next.buckets.len() as u64, next.protection).map_err(|_| no_spare(BucketId::default()))?;
    let mut placement = Placement::new(&table, indices(next, &table), quota, shards);
    for bucket in 0..placement.members.len() {
        let leaving: Vec<usize> =
            placement.members[bucket].iter().copied().filter(|&drive| table.holders[drive].weight == 0).collect();
        for old in leaving {
            let new = placement.successor(bucket, old).ok_or_else(|| no_spare(BucketId(bucket as u32)))?;
            placement.replace(bucket, old, new);
        }
    }
    set_members(next, &table, &placement);
    Ok(())
}

/// Writes members into the map. A bucket that loses a drive of its newest ensemble gets a new ensemble, and with it a new
/// epoch, if enough of its members live.
fn set_members(next: &mut Map, table: &DriveTable, placement: &Placement<'_>) {
    let mut load = failover::load(next);
    for (index, members) in placement.members.iter().enumerate() {
        let ids: Vec<DriveId> = members.iter().map(|&drive| table.ids[drive]).collect();
        let Some(bucket) = next.buckets.get_mut(index).filter(|bucket| bucket.members != ids) else { continue };
        bucket.members = ids;
        bucket.layout = Layout(bucket.layout.0 + 1);
        let newest = bucket.ensembles.first().map(|ensemble| ensemble.drives.as_slice()).unwrap_or_default();
        if newest.iter().all(|drive| bucket.members.contains(drive)) {
            continue;
        }
        let bucket = bucket.clone();
        if let Some(drives) = failover::choose(next, &bucket, &load) {
            drives.iter().for_each(|drive| *load.entry(*drive).or_default() += 1);
            next.buckets[index] = failover::with_ensemble(&bucket, drives);
        }
    }
}

/// Moves the shards of drives that hold them and shouldn't, as far as there are domains for them; the rest stays.
pub(crate) fn give_up(next: &mut Map) {
    let table = DriveTable::new(&next.nodes, &next.drives);
    let shards = next.protection.shards();
    let Ok(quota) = table.quotas(next.buckets.len() as u64, next.protection) else { return };
    let mut placement = Placement::new(&table, indices(next, &table), quota, shards);
    for bucket in 0..placement.members.len() {
        let leaving: Vec<usize> =
            placement.members[bucket].iter().copied().filter(|&drive| table.holders[drive].weight == 0).collect();
        for old in leaving {
            if let Some(new) = placement.successor(bucket, old) {
                placement.replace(bucket, old, new);
            }
        }
    }
    set_members(next, &table, &placement);
}

fn lead(next: &mut Map, id: BucketId, leader: CoreId) {
    let incarnation = next.nodes.get(&leader.node).map(|node| node.incarnation).unwrap_or_default();
    if let Some(bucket) = next.buckets.get_mut(id.0 as usize) {
        bucket.leader = leader;
        bucket.incarnation = incarnation;
        bucket.epoch = Epoch(bucket.epoch.0 + 1);
    }
}

/// `changes`, and every bucket in which the two maps differ.
pub(crate) fn delta(map: &Map, next: &Map, mut changes: Vec<Change>) -> Delta {
    let changed = |id: &BucketId| bucket_at(map, *id) != bucket_at(next, *id);
    changes.extend(
        bucket_ids(map)
            .filter(changed)
            .filter_map(|id| bucket_at(next, id).map(|bucket| Change::Bucket(id, bucket.clone()))),
    );
    debug_assert!(
        next.buckets
            .iter()
            .all(|bucket| { bucket.members.iter().collect::<BTreeSet<_>>().len() == bucket.members.len() })
    );
    Delta { version: MapVersion(map.version.0 + 1), changes }
}

fn bucket_at(map: &Map, id: BucketId) -> Option<&Bucket> {
    map.bucket(id)
}
