//! Who votes on the map when nodes leave or are given up.

use std::collections::BTreeSet;
use weft_wire::map::{Map, Node, Purpose, State};
use weft_wire::{DomainId, Incarnation, NodeId};

/// The managers with one of them replaced that is given up, being drained or gone, by a node of a domain that has no vote; nodes
/// with two drives first, as they keep two copies of the consensus' state. `None`: all is well, or there is nobody.
pub fn next_managers(map: &Map) -> Option<Vec<NodeId>> {
    let (stay, leave): (Vec<NodeId>, Vec<NodeId>) = map.managers.iter().copied().partition(|id| {
        map.nodes.get(id).is_some_and(|node| node.state != State::Failed && node.purpose == Purpose::Serve)
    });
    let wanted = map.protection.managers();
    if leave.is_empty() && stay.len() >= wanted {
        return None;
    }
    let taken: BTreeSet<DomainId> = stay.iter().filter_map(|id| map.nodes.get(id)).map(|node| node.domain).collect();
    let copies = |node: &Node| map.drives.values().filter(|drive| drive.node == node.id).count().min(2);
    let successor = map
        .nodes
        .values()
        .filter(|node| node.state == State::Up && node.purpose == Purpose::Serve && node.incarnation > Incarnation(0))
        .filter(|node| !map.managers.contains(&node.id) && !taken.contains(&node.domain) && copies(node) > 0)
        .min_by_key(|node| (core::cmp::Reverse(copies(node)), node.id))?;
    let mut managers = stay;
    managers.push(successor.id);
    managers.extend(leave.into_iter().skip(1));
    managers.truncate(wanted);
    managers.sort_unstable();
    Some(managers)
}
