//! Nodes go and come back: buckets are led and journalled as far as there are nodes for it, and nothing else changes.

use crate::common::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use weft_placement::{
    balance_leaders, better_ensemble, drive_failed, form, journals_lacking, lives, node_states, rebuild_reads,
    set_leaders, urgent, with_ensemble,
};
use weft_wire::map::{Bucket, Change, Delta, Map, State};
use weft_wire::{BucketId, DriveId, Epoch, Incarnation, MapVersion, NodeId};

fn formed(protection: &str, nodes: usize) -> Map {
    let mut map = form(&uniform(protection, nodes, 1, 1)).unwrap();
    for node in map.nodes.values_mut() {
        node.incarnation = Incarnation(1);
    }
    for bucket in &mut map.buckets {
        bucket.incarnation = Incarnation(1);
    }
    map
}

fn become_(map: &Map, nodes: &[u16], state: State) -> Map {
    let states: BTreeMap<NodeId, State> = nodes.iter().map(|node| (NodeId(*node), state)).collect();
    let mut next = map.clone();
    next.apply(&node_states(map, &states).unwrap()).unwrap();
    next
}

fn live(map: &Map, bucket: &Bucket) -> usize {
    bucket.members.iter().filter(|drive| lives(map, **drive)).count()
}

/// What holds after each change of states.
fn check_service(old: &Map, new: &Map) {
    let (ack, full) = (new.protection.acknowledge(), new.protection.ensemble());
    for (before, after) in old.buckets.iter().zip(&new.buckets) {
        let changed = before.leader != after.leader || before.ensembles != after.ensembles;
        let expected = if changed { Epoch(before.epoch.0 + 1) } else { before.epoch };
        assert_eq!(after.epoch, expected, "one epoch for everything that changes at once");
        assert!(after.ensembles.ends_with(&before.ensembles), "earlier ensembles stay listed");
        let newest = &after.ensembles[0];
        assert!(newest.since <= after.epoch);
        let living = newest.drives.iter().filter(|drive| lives(new, **drive)).count();
        if living < ack {
            assert!(live(new, after) < ack, "a journal that could be written to");
            assert_eq!(before.ensembles, after.ensembles, "nothing is changed that wouldn't help");
        } else if before.ensembles != after.ensembles {
            assert_eq!(living, newest.drives.len(), "a new ensemble lives");
            assert_eq!(newest.drives.len(), full.min(live(new, after)));
            assert_eq!(newest.since, after.epoch);
        }
        if new.nodes.values().any(|node| node.state == State::Up) {
            assert_eq!(new.nodes[&after.leader.node].state, State::Up);
            assert_eq!(new.nodes[&after.leader.node].incarnation, after.incarnation);
        }
        if old.nodes[&before.leader.node].state == State::Up && new.nodes[&before.leader.node].state == State::Up {
            assert_eq!(before.leader, after.leader, "who leads and lives goes on");
        }
    }
}

#[test]
fn one_node_of_six_costs_its_leaders_and_no_ensemble() {
    let map = formed("4+2", 6);
    let next = become_(&map, &[3], State::Away);
    check_service(&map, &next);
    let moved = map.buckets.iter().zip(&next.buckets).filter(|(old, new)| old != new).count();
    assert_eq!(moved, map.buckets.iter().filter(|bucket| bucket.leader.node == NodeId(3)).count());
    let (low, high) = spread(led(&next).into_values().filter(|count| *count > 0));
    assert!(high - low <= 2, "{low}..{high}");
    assert_eq!(urgent(&next), None);
}

#[test]
fn two_nodes_of_six_at_once_leave_all_buckets_writable() {
    let map = formed("4+2", 6);
    let next = become_(&map, &[1, 2], State::Away);
    check_service(&map, &next);
    assert!(
        next.buckets
            .iter()
            .all(|bucket| { bucket.ensembles[0].drives.iter().filter(|drive| lives(&next, **drive)).count() >= 3 })
    );
    // A third one is more than the protection survives: leaders move, journals stay as they are.
    let refused = become_(&next, &[4], State::Away);
    check_service(&next, &refused);
    let mut third: BTreeSet<usize> = BTreeSet::new();
    third.extend(refused.buckets.iter().map(|bucket| live(&refused, bucket)));
    assert_eq!(third, BTreeSet::from([3]), "P+1 are left, so even that goes on");
    let fourth = become_(&refused, &[5], State::Away);
    check_service(&refused, &fourth);
    // With a node more, the journals can be written again.
    let back = become_(&fourth, &[5], State::Up);
    check_service(&fourth, &back);
    assert_eq!(urgent(&back), None);
}

#[test]
fn ensembles_are_made_better_until_they_are_good() {
    let mut map = become_(&formed("4+2", 6), &[3], State::Away);
    let better = |map: &Map| {
        (0..map.buckets.len() as u32).find_map(|id| Some((BucketId(id), better_ensemble(map, BucketId(id))?)))
    };
    let mut changes = 0;
    while let Some((id, drives)) = better(&map) {
        let bucket = with_ensemble(map.bucket(id).unwrap(), drives);
        map.apply(&Delta { version: MapVersion(map.version.0 + 1), changes: vec![Change::Bucket(id, bucket)] })
            .unwrap();
        changes += 1;
        assert!(changes < 200, "it never ends");
    }
    let of_three = |bucket: &&Bucket| {
        bucket.ensembles.iter().flat_map(|ensemble| &ensemble.drives).any(|drive| !lives(&map, *drive))
    };
    let copying = map.buckets.iter().filter(of_three).count();
    assert!(copying > 0);
    assert_eq!(journals_lacking(&map), copying, "what earlier ones hold is not copied yet");
    let all_live = |map: &Map, bucket: &Bucket| bucket.ensembles[0].drives.iter().all(|drive| lives(map, *drive));
    assert!(map.buckets.iter().all(|bucket| all_live(&map, bucket) && bucket.ensembles[0].drives.len() == 4));
    // Leaders have dropped the earlier ones; the node comes back and gets its share of journals and leaders.
    map.buckets.iter_mut().for_each(|bucket| bucket.ensembles.truncate(1));
    assert_eq!(journals_lacking(&map), 0);
    let mut map = become_(&map, &[3], State::Up);
    assert!(!balance_leaders(&map).is_empty());
    let moves = balance_leaders(&map).into_iter().collect();
    map.apply(&set_leaders(&map, &moves).unwrap()).unwrap();
    while let Some((id, drives)) = better(&map) {
        let bucket = with_ensemble(map.bucket(id).unwrap(), drives);
        map.apply(&Delta { version: MapVersion(map.version.0 + 1), changes: vec![Change::Bucket(id, bucket)] })
            .unwrap();
        map.buckets.iter_mut().for_each(|bucket| bucket.ensembles.truncate(1));
        changes += 1;
        assert!(changes < 400, "it never ends");
    }
    let of_three = map.buckets.iter().flat_map(|bucket| &bucket.ensembles[0].drives);
    let count = of_three.filter(|drive| map.drives[*drive].node == NodeId(3)).count();
    let fair = map.buckets.len() * 4 / 6;
    assert!(count + 2 >= fair, "{count} journals of {fair}");
}

#[test]
fn a_node_that_is_given_up_loses_its_shards_where_there_is_room() {
    let map = become_(&formed("4+2", 8), &[3], State::Away);
    let next = become_(&map, &[3], State::Failed);
    let held =
        next.buckets.iter().flat_map(|bucket| &bucket.members).filter(|drive| next.drives[*drive].node == NodeId(3));
    assert_eq!(held.count(), 0);
    let small = become_(&formed("4+2", 6), &[3], State::Away);
    let stays = become_(&small, &[3], State::Failed);
    let members = |map: &Map| map.buckets.iter().map(|bucket| bucket.members.clone()).collect::<Vec<_>>();
    assert_eq!(members(&small), members(&stays), "no domain is free: the shards stay where they will come back");
}

#[test]
fn a_failed_drive_is_replaced_where_there_is_room_and_left_out_where_not() {
    for nodes in [6, 8] {
        let map = formed("4+2", nodes);
        let mut next = map.clone();
        let failed = weft_wire::DriveId(2);
        next.apply(&drive_failed(&map, failed).unwrap()).unwrap();
        let held = next.buckets.iter().filter(|bucket| bucket.members.contains(&failed)).count();
        assert_eq!(held == 0, nodes == 8);
        assert!(next.buckets.iter().zip(&map.buckets).all(|(new, old)| new.leader == old.leader), "its node goes on");
        assert_eq!(drive_failed(&next, failed), None);
        assert_eq!(urgent(&next), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_and_goes_is_served_as_far_as_it_can_be(
        nodes in 6usize..12,
        events in proptest::collection::vec((any::<u16>(), 0u8..4), 1..12),
    ) {
        let mut map = formed("4+2", nodes);
        for (pick, state) in events {
            let node = NodeId(1 + pick % nodes as u16);
            let state = [State::Up, State::Away, State::Away, State::Failed][usize::from(state)];
            let Some(delta) = node_states(&map, &BTreeMap::from([(node, state)])) else { continue };
            let mut next = map.clone();
            next.apply(&delta).unwrap();
            if state != State::Failed {
                check_service(&map, &next);
            }
            for bucket in &next.buckets {
                let domains: BTreeSet<_> = bucket.members.iter().map(|drive| domain(&next, *drive)).collect();
                prop_assert_eq!(domains.len(), 6);
            }
            prop_assert_eq!(urgent(&next), None, "one delta does everything that is urgent");
            map = next;
        }
    }
}

#[test]
fn what_a_dead_node_held_is_read_from_all_others_alike() {
    for (protection, nodes) in [("4+2", 8), ("4+2", 30), ("8+2", 40)] {
        let map = form(&uniform(protection, nodes, 1, 1)).unwrap();
        assert!(rebuild_reads(&map).is_empty());
        let next = become_(&map, &[3], State::Failed);
        let reads = rebuild_reads(&next);
        let mut work: BTreeMap<DriveId, u64> = BTreeMap::new();
        let whole = reads.values().next().unwrap().values().sum::<u64>() / u64::from(map.protection.data);
        for (before, (index, after)) in map.buckets.iter().zip(next.buckets.iter().enumerate()) {
            let lost = before.members.iter().any(|drive| map.drives[drive].node == NodeId(3));
            assert_eq!(lost, reads.contains_key(&BucketId(index as u32)));
            let Some(reads) = reads.get(&BucketId(index as u32)) else { continue };
            // D whole shards of those that are left, and none more than once.
            assert!(reads.keys().all(|drive| before.members.contains(drive) && after.members.contains(drive)));
            assert_eq!(reads.values().sum::<u64>(), whole * u64::from(map.protection.data));
            assert!(reads.values().all(|read| *read <= whole));
            reads.iter().for_each(|(drive, read)| *work.entry(*drive).or_default() += read);
            let target = after.members.iter().find(|drive| !before.members.contains(drive)).unwrap();
            *work.entry(*target).or_default() += whole;
        }
        let mean = work.values().sum::<u64>() / (nodes as u64 - 1);
        assert!(work.len() == nodes - 1 && work.values().all(|work| work * 100 <= mean * 102), "{mean}: {work:?}");
    }
}
