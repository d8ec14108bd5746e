//! The virtual hot spare: capacity of some nodes that is kept free on all drives, so that everything fits when they are lost.

use crate::Refusal;
use crate::change::delta;
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::map::{Change, Delta, Map, Purpose, State};
use weft_wire::{DomainId, NodeId};

/// Capacity in bytes of drives, data and parity together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spare {
    pub total_bytes: u64,
    /// That of the largest nodes, as many as are spared.
    pub reserved_bytes: u64,
}

impl Spare {
    /// Of `amount` of anything that is spread over all drives, what may be used.
    pub fn usable(&self, amount: u64) -> u64 {
        let left = u128::from(self.total_bytes.saturating_sub(self.reserved_bytes));
        (u128::from(amount) * left / u128::from(self.total_bytes.max(1))) as u64
    }
}

/// What a reserve of `nodes` nodes takes.
pub fn spare(map: &Map, nodes: u16) -> Spare {
    let mut capacities: Vec<u64> = capacities(map).into_values().collect();
    capacities.sort_unstable_by(|a, b| b.cmp(a));
    let sum = |capacities: &[u64]| capacities.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    let reserved = &capacities[..usize::from(nodes).min(capacities.len())];
    Spare { total_bytes: sum(&capacities), reserved_bytes: sum(reserved) }
}

/// Bytes that each node brings.
fn capacities(map: &Map) -> BTreeMap<NodeId, u64> {
    let mut capacities = BTreeMap::new();
    for drive in map.drives.values() {
        let serves = |state, purpose| matches!(state, State::Up | State::Away) && purpose == Purpose::Serve;
        let Some(node) = map.nodes.get(&drive.node) else { continue };
        if serves(node.state, node.purpose) && serves(drive.state, drive.purpose) {
            let bytes = u64::from(drive.zones).saturating_mul(drive.zone_bytes);
            *capacities.entry(node.id).or_insert(0u64) += bytes;
        }
    }
    capacities
}

/// Keeps the capacity of so many nodes free. `None`: that is so already. Refused if their loss left too few domains.
pub fn hot_spare(map: &Map, nodes: u16) -> Result<Option<Delta>, Refusal> {
    let domains: BTreeSet<DomainId> =
        capacities(map).keys().filter_map(|node| map.nodes.get(node)).map(|node| node.domain).collect();
    let needed = map.protection.shards();
    let left = domains.len().saturating_sub(usize::from(nodes));
    if nodes > 0 && left < needed {
        let most = domains.len().saturating_sub(needed);
        return Err(Refusal::Spare { spare: nodes, left, domains: domains.len(), needed, most });
    }
    Ok((map.hot_spare != nodes).then(|| delta(map, map, vec![Change::HotSpare(nodes)])))
}
