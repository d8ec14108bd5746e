//! Changes of a map in use: the rules stay kept, the balance comes back, and nothing moves without need.

use crate::common::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use weft_placement::{Refusal, add_node, balance_leaders, drain, form, replace_drive, set_leaders};
use weft_wire::map::{Delta, Map, State};
use weft_wire::{BucketId, CoreId, DriveId, Epoch, NodeId};

fn applied(map: &Map, delta: &Delta) -> Map {
    let mut next = map.clone();
    next.apply(delta).unwrap();
    for (old, new) in map.buckets.iter().zip(&next.buckets) {
        assert_eq!(old.members != new.members, old.layout != new.layout, "layout rises with the members");
        let changed = old.leader != new.leader || old.ensembles != new.ensembles;
        assert_eq!(changed, new.epoch > old.epoch, "epochs rise with leader or ensemble, and only then");
        assert!(new.ensembles.ends_with(&old.ensembles), "earlier ensembles stay listed");
    }
    next
}

fn moved(old: &Map, new: &Map) -> u64 {
    let pairs = old.buckets.iter().zip(&new.buckets);
    pairs.map(|(old, new)| new.members.iter().filter(|drive| !old.members.contains(drive)).count() as u64).sum()
}

#[test]
fn growing_moves_the_minimum() {
    let mut request = uniform("8+2", 50, 1, 1);
    request.bucket_bits = Some(10);
    for node in &mut request.nodes {
        node.drives[0].zones = 16_384;
        node.drives[0].capacity_bytes *= 8;
    }
    let first = form(&request).unwrap();
    let mut map = first.clone();
    let mut steps = 0;
    for number in 50..55 {
        let mut new = node(number, 1, &[16_384]);
        new.domain = None;
        let next = applied(&map, &add_node(&map, &new, None).unwrap());
        check(&next);
        steps += moved(&map, &next);
        map = next;
    }
    let total = (map.buckets.len() * map.protection.shards()) as f64;
    // One node after the other: each share is 1/51, 1/52, ...
    let optimum: f64 = (51..=55).map(|nodes| total / f64::from(nodes)).sum();
    assert!(steps as f64 <= optimum * 1.05, "moved {steps}, the optimum is {optimum}");
    let (low, high) = spread(shards(&map).into_values());
    let mean = total / 55.0;
    assert!(high as f64 <= mean * 1.05 && low as f64 >= mean * 0.95, "{low}..{high} around {mean}");
    let (low, high) = spread(led(&map).into_values());
    assert!(high - low <= 1);
}

#[test]
fn a_failed_drive_is_spread_over_the_rest() {
    let map = form(&uniform("4+2", 12, 1, 2)).unwrap();
    let failed = DriveId(5);
    let next = applied(&map, &replace_drive(&map, failed).unwrap());
    check(&next);
    assert_eq!(next.drives[&failed].state, State::Failed);
    assert_eq!(shards(&next)[&failed], 0);
    assert_eq!(moved(&map, &next), shards(&map)[&failed], "only what the drive held moves");
    let others = shards(&next).into_iter().filter(|(id, _)| *id != failed).map(|(_, count)| count);
    let (low, high) = spread(others);
    assert!(high - low <= 2, "{low}..{high}");
}

#[test]
fn draining_empties_a_node() {
    let map = form(&uniform("4+2", 8, 2, 2)).unwrap();
    let next = applied(&map, &drain(&map, NodeId(3)).unwrap());
    check(&next);
    assert!(next.drives.values().filter(|drive| drive.node == NodeId(3)).all(|drive| shards(&next)[&drive.id] == 0));
    assert!(next.buckets.iter().all(|bucket| bucket.leader.node != NodeId(3)));
    let (low, high) = spread(led(&next).into_values());
    assert!(high - low <= 1, "{low}..{high}");
    let leaders = map.buckets.iter().zip(&next.buckets).filter(|(old, new)| old.leader != new.leader).count();
    assert_eq!(leaders, map.buckets.iter().filter(|bucket| bucket.leader.node == NodeId(3)).count());
}

#[test]
fn no_domain_to_spare_is_said() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let text = replace_drive(&map, DriveId(1)).unwrap_err().to_string();
    assert!(text.contains("6 shards (D+P)") && text.contains("5 domains have one"), "{text}");
    assert!(matches!(drain(&map, NodeId(1)), Err(Refusal::NoSpareDomain { .. })));
    assert_eq!(replace_drive(&map, DriveId(9)), Err(Refusal::NoSuchDrive(DriveId(9))));
}

#[test]
fn leaders_are_set_and_brought_back() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let core = |node| CoreId { node: NodeId(node), core: 0 };
    let wanted: BTreeMap<_, _> = (0..32).map(|bucket| (BucketId(bucket), core(2))).collect();
    let lopsided = applied(&map, &{
        let moves = wanted.into_iter().filter(|(id, _)| map.buckets[id.0 as usize].leader != core(2)).collect();
        set_leaders(&map, &moves).unwrap()
    });
    check(&lopsided);
    assert_eq!(led(&lopsided)[&core(2)], 32);
    let moves = balance_leaders(&lopsided);
    assert_eq!(moves.len(), 26, "each of the other five gets its five or six");
    let even = applied(&lopsided, &set_leaders(&lopsided, &moves.into_iter().collect()).unwrap());
    assert_eq!(spread(led(&even).into_values()), (5, 6));
    assert!(even.buckets.iter().all(|bucket| bucket.epoch <= Epoch(3)));
    assert!(balance_leaders(&even).is_empty());
    let nobody = BTreeMap::from([(BucketId(0), CoreId { node: NodeId(2), core: 1 })]);
    assert!(matches!(set_leaders(&map, &nobody), Err(Refusal::NoSuchCore(_))));
    let nothing = BTreeMap::from([(BucketId(99), core(2))]);
    assert_eq!(set_leaders(&map, &nothing), Err(Refusal::NoSuchBucket(BucketId(99))));
}

#[test]
fn a_new_node_may_join_a_domain() {
    let map = form(&uniform("4+2", 7, 1, 1)).unwrap();
    let domain = map.nodes[&NodeId(2)].domain;
    let next = applied(&map, &add_node(&map, &node(7, 1, &[2048]), Some(domain)).unwrap());
    check(&next);
    assert_eq!(next.nodes[&NodeId(8)].domain, domain);
    assert!(matches!(add_node(&map, &node(6, 1, &[2048]), None), Err(Refusal::NameTwice(_))));
    assert!(matches!(
        add_node(&map, &node(9, 1, &[2048]), Some(weft_wire::DomainId(99))),
        Err(Refusal::NoSuchDomain(_))
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to a cluster, one change after the other: rules kept, and at most the share of the drives concerned moves.
    #[test]
    fn changes_keep_the_rules(nodes in 9usize..14, events in proptest::collection::vec((0u8..3, any::<u16>()), 1..5)) {
        let mut map = form(&uniform("4+2", nodes, 1, 2)).unwrap();
        for (count, (kind, pick)) in events.into_iter().enumerate() {
            let held = shards(&map);
            let (delta, bound) = match kind {
                0 => {
                    let delta = add_node(&map, &node(nodes + count, 1, &[2048, 2048]), None).unwrap();
                    let live = 2 + map.drives.values().filter(|drive| drive.state == State::Up).count() as u64;
                    (Ok(delta), 2 * (held.values().sum::<u64>().div_ceil(live) + 1))
                }
                1 => {
                    let drive = *map.drives.keys().nth(usize::from(pick) % map.drives.len()).unwrap();
                    (replace_drive(&map, drive), held[&drive])
                }
                _ => {
                    let node = *map.nodes.keys().nth(usize::from(pick) % map.nodes.len()).unwrap();
                    let of_node = map.drives.values().filter(|drive| drive.node == node);
                    (drain(&map, node), of_node.map(|drive| held[&drive.id]).sum())
                }
            };
            match delta {
                Ok(delta) => {
                    let next = applied(&map, &delta);
                    check(&next);
                    prop_assert!(moved(&map, &next) <= bound, "moved {} of at most {bound}", moved(&map, &next));
                    map = next;
                }
                Err(refusal) => {
                    let spare = matches!(refusal, Refusal::NoSpareDomain { .. });
                    prop_assert!(spare, "{}", refusal);
                }
            }
        }
    }
}
