//! Requests for tests, and the rules that every map keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use weft_placement::{FormRequest, NewDrive, NewNode};
use weft_wire::hash::Secret;
use weft_wire::map::{Map, Protection, State};
use weft_wire::{CoreId, DomainId, DriveId, NodeId, Uuid};

pub const MIB: u64 = 1 << 20;

pub fn address(node: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([10, (node >> 8) as u8, node as u8, 1], port))
}

/// Node number `node` with `cores` cores and drives of these many zones of 1 MiB.
pub fn node(number: usize, cores: usize, zones: &[u32]) -> NewNode {
    NewNode {
        name: format!("n{number}"),
        domain: None,
        cores: (0..cores).map(|core| address(number, 7000 + core as u16)).collect(),
        control: address(number, 6000),
        drives: zones
            .iter()
            .enumerate()
            .map(|(index, &zones)| NewDrive {
                uuid: Uuid((number as u128) << 16 | index as u128),
                core: (index % cores) as u8,
                capacity_bytes: (u64::from(zones) + 1) * MIB,
                zone_bytes: MIB,
                zones,
            })
            .collect(),
    }
}

pub fn request(protection: &str, nodes: Vec<NewNode>) -> FormRequest {
    let (data, parity) = protection.split_once('+').unwrap();
    FormRequest {
        cluster: Uuid(77),
        name: "test".into(),
        secret: Secret([7; 16]),
        protection: Protection { data: data.parse().unwrap(), parity: parity.parse().unwrap() },
        nodes,
        bucket_bits: None,
    }
}

/// Equal nodes, each its own domain.
pub fn uniform(protection: &str, nodes: usize, cores: usize, drives: usize) -> FormRequest {
    request(protection, (0..nodes).map(|number| node(number, cores, &vec![2048; drives])).collect())
}

pub fn domain(map: &Map, drive: DriveId) -> DomainId {
    map.nodes[&map.drives[&drive].node].domain
}

/// Shards that each drive holds.
pub fn shards(map: &Map) -> BTreeMap<DriveId, u64> {
    let mut counts: BTreeMap<DriveId, u64> = map.drives.keys().map(|id| (*id, 0)).collect();
    for drive in map.buckets.iter().flat_map(|bucket| &bucket.members) {
        *counts.get_mut(drive).unwrap() += 1;
    }
    counts
}

pub fn led(map: &Map) -> BTreeMap<CoreId, u64> {
    let mut counts = BTreeMap::new();
    for node in map.nodes.values().filter(|node| node.state == State::Up) {
        for core in 0..node.cores.len() {
            counts.insert(CoreId { node: node.id, core: core as u8 }, 0);
        }
    }
    for bucket in &map.buckets {
        *counts.entry(bucket.leader).or_default() += 1;
    }
    counts
}

/// Buckets that each two nodes of different domains share.
pub fn pairs(map: &Map) -> BTreeMap<(NodeId, NodeId), u64> {
    let mut counts = BTreeMap::new();
    for a in map.nodes.values() {
        for b in map.nodes.values().filter(|b| b.id > a.id && b.domain != a.domain) {
            counts.insert((a.id, b.id), 0);
        }
    }
    for bucket in &map.buckets {
        let mut nodes: Vec<NodeId> = bucket.members.iter().map(|drive| map.drives[drive].node).collect();
        nodes.sort_unstable();
        for (position, &b) in nodes.iter().enumerate() {
            for &a in &nodes[..position] {
                *counts.get_mut(&(a, b)).unwrap() += 1;
            }
        }
    }
    counts
}

pub fn spread(counts: impl Iterator<Item = u64>) -> (u64, u64) {
    counts.fold((u64::MAX, 0), |(low, high), count| (low.min(count), high.max(count)))
}

/// What holds for each map, whatever it was made of.
pub fn check(map: &Map) {
    let protection = map.protection;
    assert_eq!(map.buckets.len(), 1 << map.bucket_bits);
    for bucket in &map.buckets {
        assert_eq!(bucket.members.len(), protection.shards());
        let domains: BTreeSet<DomainId> = bucket.members.iter().map(|drive| domain(map, *drive)).collect();
        assert_eq!(domains.len(), protection.shards(), "a domain holds two shards");
        let newest = &bucket.ensembles[0];
        let journal: BTreeSet<DriveId> = newest.drives.iter().copied().collect();
        assert_eq!(journal.len(), protection.ensemble());
        assert!(newest.drives.iter().all(|drive| bucket.members.contains(drive)));
        assert!(newest.since <= bucket.epoch);
        assert!(usize::from(bucket.leader.core) < map.nodes[&bucket.leader.node].cores.len());
        assert_eq!(bucket.incarnation, map.nodes[&bucket.leader.node].incarnation);
    }
    assert_eq!(map.managers.len(), protection.managers());
    let domains: BTreeSet<DomainId> = map.managers.iter().map(|id| map.nodes[id].domain).collect();
    assert_eq!(domains.len(), protection.managers(), "two managers in one domain");
}
