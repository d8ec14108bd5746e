//! Changes of what belongs to the cluster. What that moves comes later, step by step: see [`crate::next_moves`].

use crate::form::{DriveTable, bucket_ids, check_nodes, drive, node};
use crate::{Holds, NewDrive, NewNode, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::manager::Part;
use weft_wire::map::{Bucket, Change, Delta, Drive, Map, Node, Purpose, State};
use weft_wire::{BucketId, DomainId, DriveId, Incarnation, MapVersion, NodeId};

/// Adds a node with its drives. It takes part once it has started.
///
/// With `replace` it takes the place of the node of the same name, which must not live: that one's drives are given up. A node
/// that was added and never started is described anew. `None`: it is in the map just so.
pub fn add_node(map: &Map, new: &NewNode, replace: bool) -> Result<Option<Delta>, Refusal> {
    let known = map.nodes.values().find(|node| node.name == new.name);
    if let Some(known) = known
        && known.state != State::Joining
    {
        match known.state {
            State::Away | State::Failed if replace => {}
            _ if replace => return Err(Refusal::Lives(known.name.clone())),
            _ => return Err(Refusal::NameTwice(new.name.clone())),
        }
    }
    let others: BTreeMap<NodeId, Node> =
        map.nodes.iter().filter(|(id, _)| known.is_none_or(|known| known.id != **id)).map(pair).collect();
    let of_others: BTreeMap<DriveId, Drive> =
        map.drives.iter().filter(|(_, drive)| others.contains_key(&drive.node)).map(pair).collect();
    check_nodes(std::slice::from_ref(new), &others, &of_others)?;
    let id = known.map_or(map.next_node, |known| known.id);
    let by_name = others.values().find(|node| new.domain.is_some() && node.domain_name == new.domain);
    let kept = known.filter(|known| known.domain_name == new.domain).map(|known| known.domain);
    let last = map.nodes.values().map(|node| node.domain).max().unwrap_or_default();
    let domain = match by_name.map(|node| node.domain).or(kept) {
        Some(domain) => domain,
        None => DomainId(last.0.checked_add(1).ok_or(Refusal::NoIdLeft("domain"))?),
    };
    let incarnation = known.map_or(Incarnation(0), |known| known.incarnation);
    let added = Node { incarnation, state: State::Joining, ..node(id, domain, new) };
    if id.0 == NodeId(u16::MAX).0 {
        return Err(Refusal::NoIdLeft("node"));
    }
    let mut changes = Vec::new();
    let mut found = BTreeSet::new();
    for old in map.drives.values().filter(|drive| drive.node == id) {
        let same = new.drives.iter().find(|new| {
            new.uuid == old.uuid
                && (new.capacity_bytes, new.zones, new.core) == (old.capacity_bytes, old.zones, old.core)
        });
        match same {
            Some(new) => drop(found.insert(new.uuid)),
            None if Holds::of(map, Part::Drive(old.id)).is_nothing() => changes.push(Change::RemoveDrive(old.id)),
            None if old.state == State::Failed => {}
            None => changes.push(Change::Drive(Drive { state: State::Failed, ..old.clone() })),
        }
    }
    let fresh = new.drives.iter().filter(|new| !found.contains(&new.uuid));
    for (new, drive_id) in fresh.zip(map.next_drive.0..) {
        changes.push(Change::Drive(drive(DriveId(drive_id), id, new)));
    }
    if known != Some(&added) {
        changes.push(Change::Node(added));
    }
    Ok((!changes.is_empty()).then(|| delta(map, map, changes)))
}

fn pair<K: Copy, V: Clone>((id, value): (&K, &V)) -> (K, V) {
    (*id, value.clone())
}

/// Adds a drive to a node. It takes part once it is ready. A drive that was added and never became ready, of the same size,
/// is described anew; its id, then as always, is that of the drive with this uuid. `None`: it is in the map.
pub fn add_drive(map: &Map, node: NodeId, new: &NewDrive) -> Result<Option<Delta>, Refusal> {
    let of_node = map.nodes.get(&node).ok_or(Refusal::NoSuchNode(node))?;
    if map.drives.values().any(|drive| drive.uuid == new.uuid && drive.node == node) {
        return Ok(None);
    }
    let as_node = NewNode {
        name: of_node.name.clone(),
        domain: None,
        cores: of_node.cores.clone(),
        control: of_node.control,
        drives: vec![*new],
    };
    let others = map.nodes.iter().filter(|(id, _)| **id != node).map(pair).collect();
    check_nodes(std::slice::from_ref(&as_node), &others, &map.drives)?;
    let begun = map.drives.values().find(|drive| {
        drive.node == node
            && drive.state == State::Joining
            && (drive.capacity_bytes, drive.zones, drive.core) == (new.capacity_bytes, new.zones, new.core)
    });
    let id = begun.map_or(map.next_drive, |drive| drive.id);
    let added = Drive { state: State::Joining, ..drive(id, node, new) };
    Ok(Some(delta(map, map, vec![Change::Drive(added)])))
}

/// A drive that was added takes part from now on. `None`: it does.
pub fn drive_ready(map: &Map, id: DriveId) -> Result<Option<Delta>, Refusal> {
    let drive = map.drives.get(&id).ok_or(Refusal::NoSuchDrive(id))?;
    let ready = Drive { state: drive.purpose.present(), ..drive.clone() };
    Ok((drive.state == State::Joining).then(|| delta(map, map, vec![Change::Drive(ready)])))
}

/// An operator's order: a node or drive is to be emptied, or no longer. `None`: that is so already. Refused if the others have
/// too few domains to take what it holds, or to vote instead of it.
pub fn set_purpose(map: &Map, part: Part, purpose: Purpose) -> Result<Option<Delta>, Refusal> {
    let present = |state| if matches!(state, State::Up | State::Draining) { purpose.present() } else { state };
    let mut next = map.clone();
    let change = match part {
        Part::Node(id) => {
            let node = next.nodes.get_mut(&id).ok_or(Refusal::NoSuchNode(id))?;
            if node.purpose == purpose {
                return Ok(None);
            }
            (node.purpose, node.state) = (purpose, present(node.state));
            Change::Node(node.clone())
        }
        Part::Drive(id) => {
            let drive = next.drives.get_mut(&id).ok_or(Refusal::NoSuchDrive(id))?;
            if drive.purpose == purpose {
                return Ok(None);
            }
            (drive.purpose, drive.state) = (purpose, present(drive.state));
            Change::Drive(drive.clone())
        }
    };
    if purpose == Purpose::Leave {
        // Who is away may never come back. It may as well, and then it would wait in vain for a place for what it holds.
        let takers = |map: &Map| DriveTable::new(&map.nodes, &map.drives).domains_that_take();
        let own = match part {
            Part::Node(id) => Some(id),
            Part::Drive(id) => map.drives.get(&id).map(|drive| drive.node),
        };
        let mut back = map.clone();
        if let Some(node) = own.and_then(|own| back.nodes.get_mut(&own)).filter(|node| node.state == State::Away) {
            node.state = State::Up;
        }
        let (before, after) = (takers(&back), takers(&next));
        let needed = map.protection.shards();
        if after < needed && after < before {
            return Err(Refusal::Leave { part, what: "drives that can take its shards", needed, domains: after });
        }
        let votes: BTreeSet<DomainId> = next
            .nodes
            .values()
            .filter(|node| matches!(node.state, State::Up | State::Away) && node.purpose == Purpose::Serve)
            .map(|node| node.domain)
            .collect();
        let is_manager = matches!(part, Part::Node(id) if map.managers.contains(&id));
        let needed = map.protection.managers();
        if is_manager && votes.len() < needed {
            return Err(Refusal::Leave { part, what: "nodes that can be managers", needed, domains: votes.len() });
        }
    }
    Ok(Some(delta(map, &next, vec![change])))
}

/// Takes a node or drive out of the map. Refused as long as anything is on it.
pub fn remove(map: &Map, part: Part) -> Result<Delta, Refusal> {
    let in_use = match part {
        Part::Node(id) => {
            let node = map.nodes.get(&id).ok_or(Refusal::NoSuchNode(id))?;
            node.state == State::Up
        }
        Part::Drive(id) => {
            let drive = map.drives.get(&id).ok_or(Refusal::NoSuchDrive(id))?;
            let others = map.drives.values().any(|other| {
                other.node == drive.node && other.id != id && !matches!(other.state, State::Failed | State::Joining)
            });
            if !others {
                return Err(Refusal::LastDrive { drive: id, node: drive.node });
            }
            drive.state == State::Up
        }
    };
    let holds = Holds::of(map, part);
    if !holds.is_nothing() {
        return Err(Refusal::Holds { part, holds });
    }
    if in_use {
        return Err(Refusal::InUse(part));
    }
    let changes = match part {
        Part::Drive(id) => vec![Change::RemoveDrive(id)],
        Part::Node(id) => {
            let of_node = map.drives.values().filter(|drive| drive.node == id);
            of_node.map(|drive| Change::RemoveDrive(drive.id)).chain([Change::RemoveNode(id)]).collect()
        }
    };
    Ok(delta(map, map, changes))
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
