//! Changes of a map in use: the rules stay kept, the balance comes back, and nothing moves without need.

use crate::common::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use weft_placement::{
    FormRequest, Holds, Moves, NewNode, Refusal, add_drive, add_node, balance_leaders, better_ensemble, drive_failed,
    drive_ready, folded, form, hot_spare, moved, moves, next_managers, next_moves, node_states, remove, set_leaders,
    set_purpose, spare, with_ensemble,
};
use weft_wire::manager::Part;
use weft_wire::map::{Bucket, Delta, Map, Purpose, State};
use weft_wire::{BucketId, CoreId, DriveId, Epoch, Incarnation, NodeId};

fn applied(map: &Map, delta: &Delta) -> Map {
    let mut next = map.clone();
    next.apply(delta).unwrap();
    for (old, new) in map.buckets.iter().zip(&next.buckets) {
        assert_eq!(old.members != new.members, old.layout != new.layout, "layout rises with the members");
        let changed = old.leader != new.leader || old.ensembles != new.ensembles;
        assert_eq!(changed, new.epoch > old.epoch, "epochs rise with leader or ensemble, and only then");
        assert!(new.ensembles.ends_with(&old.ensembles), "earlier ensembles stay listed");
        for drive in old.members.iter().filter(|drive| !new.members.contains(drive)) {
            assert!(new.former.iter().any(|former| former.drive == *drive), "who was a member is former");
        }
    }
    next
}

/// Shards that were put on another drive from `old` to `new`.
fn differences(old: &Map, new: &Map) -> u64 {
    let pairs = old.buckets.iter().zip(&new.buckets);
    pairs.map(|(old, new)| new.members.iter().filter(|drive| !old.members.contains(drive)).count() as u64).sum()
}

/// A node is admitted for the first time.
fn started(map: &Map, id: NodeId) -> Map {
    let mut node = map.nodes[&id].clone();
    (node.state, node.incarnation) = (node.purpose.present(), Incarnation(node.incarnation.0 + 1));
    let mut next = map.clone();
    next.nodes.insert(id, node);
    next
}

fn grown(map: &Map, new: &NewNode) -> Map {
    let delta = add_node(map, new, false).unwrap().unwrap();
    let id = map.next_node;
    let joined = applied(map, &delta);
    assert_eq!(joined.nodes[&id].state, State::Joining);
    let moved = next_moves(&joined).map_or(joined.clone(), |delta| applied(&joined, &delta));
    assert!(Holds::of(&moved, Part::Node(id)).is_nothing(), "nothing moves to who never started");
    started(&joined, id)
}

fn leaves(map: &Map, part: Part) -> Result<Map, Refusal> {
    Ok(applied(map, &set_purpose(map, part, Purpose::Leave)?.unwrap()))
}

/// Everything moves: buckets' leaders copy what is to be copied, ensembles and leaders follow. The steps that shards made.
fn settled(map: &Map) -> (Map, u64) {
    let (mut map, mut steps) = (map.clone(), 0);
    for _ in 0..100_000 {
        if let Some(delta) = next_moves(&map) {
            let next = applied(&map, &delta);
            bounded(&map, &next);
            steps += differences(&map, &next);
            map = next;
        }
        // The first that moves is done; others are still under way when the next ones begin.
        let Some(id) = map.buckets.iter().position(|bucket| !bucket.former.is_empty()) else {
            return (followed(map), steps);
        };
        let id = BucketId(id as u32);
        let drives: Vec<DriveId> = map.bucket(id).unwrap().former.iter().map(|former| former.drive).collect();
        map = applied(&map, &moved(&map, id, &drives).unwrap());
    }
    panic!("it never ends");
}

/// Few at a time: what begins to move is in a bucket that moves nothing else, between drives that take part in no more than four
/// moves. What goes to a drive that is given up meanwhile goes elsewhere, however many that are; and so does what was to go to one
/// that is to be emptied, of which that one has nothing to give yet.
fn bounded(before: &Map, map: &Map) {
    let mut busy: BTreeMap<DriveId, usize> = BTreeMap::new();
    let mut begun = BTreeSet::new();
    for (old, bucket) in before.buckets.iter().zip(&map.buckets) {
        let mut targets = BTreeSet::new();
        for former in &bucket.former {
            let ends = [former.drive, bucket.members[usize::from(former.shard)]];
            *busy.entry(ends[0]).or_default() += 1;
            *busy.entry(ends[1]).or_default() += usize::from(targets.insert(former.shard));
            if !old.former.contains(former) && weft_placement::lives(map, former.drive) {
                // But what goes on from a drive that is to be emptied, before it has arrived there.
                let goes_on = old.former.iter().all(|old| old.shard == former.shard);
                assert!(goes_on, "{:?} before {:?}", old.former, bucket.former);
                begun.insert(ends[1]);
                if old.former.is_empty() {
                    begun.insert(ends[0]);
                }
            }
        }
    }
    assert!(begun.iter().all(|drive| busy[drive] <= 4), "{begun:?} of {busy:?}");
}

/// What leaders of buckets ask for, until they have it.
fn followed(mut map: Map) -> Map {
    let leaders = balance_leaders(&map);
    map = applied(&map, &set_leaders(&map, &leaders.into_iter().collect()).unwrap());
    for index in 0..map.buckets.len() {
        let id = BucketId(index as u32);
        for _ in 0..4 {
            map.buckets[index].ensembles.truncate(1);
            let Some(drives) = better_ensemble(&map, id) else { break };
            map.buckets[index] = with_ensemble(&map.buckets[index], drives);
        }
    }
    while let Some(managers) = next_managers(&map) {
        map.managers = managers;
    }
    check(&map);
    assert_eq!(moves(&map).under_way, 0);
    map
}

fn large(protection: &str, nodes: usize, bits: u8) -> FormRequest {
    let mut request = uniform(protection, nodes, 1, 1);
    request.bucket_bits = Some(bits);
    for node in &mut request.nodes {
        node.drives[0].zones = 16_384;
        node.drives[0].capacity_bytes *= 8;
    }
    request
}

/// Fill of the fullest drive that may hold anything, relative to the mean.
fn fill(map: &Map) -> f64 {
    let serving = |drive: &DriveId| {
        weft_placement::lives(map, *drive) && {
            let drive = &map.drives[drive];
            drive.purpose == Purpose::Serve && map.nodes[&drive.node].purpose == Purpose::Serve
        }
    };
    let held: Vec<u64> = shards(map).into_iter().filter(|(id, _)| serving(id)).map(|(_, count)| count).collect();
    let mean = held.iter().sum::<u64>() as f64 / held.len() as f64;
    held.into_iter().max().unwrap_or(0) as f64 / mean
}

#[test]
fn growing_moves_the_minimum() {
    let mut map = form(&large("8+2", 50, 9)).unwrap();
    let mut steps = 0;
    for number in 50..55 {
        let (next, moved) = settled(&grown(&map, &node(number, 1, &[16_384])));
        steps += moved;
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
fn ten_more_than_a_hundred_take_their_share_and_no_more() {
    let first = form(&large("8+2", 100, 8)).unwrap();
    let mut map = first.clone();
    for number in 100..110 {
        map = grown(&map, &node(number, 1, &[16_384]));
    }
    let (map, steps) = settled(&map);
    let share = steps as f64 / (first.buckets.len() * first.protection.shards()) as f64;
    assert!(share <= 10.0 / 110.0 * 1.05, "{share} of all shards moved");
    assert!(fill(&map) <= 1.05, "{}", fill(&map));
}

#[test]
fn a_node_more_and_a_node_less() {
    let first = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let total = (first.buckets.len() * first.protection.shards()) as f64;
    let (seven, grew) = settled(&grown(&first, &node(6, 1, &[2048])));
    assert!(grew as f64 <= total / 7.0 * 1.1, "{grew} of {total}");
    assert!(fill(&seven) <= 1.05, "{}", fill(&seven));
    for leaver in [NodeId(7), NodeId(2)] {
        let held = Holds::of(&seven, Part::Node(leaver)).shards;
        let (six, shrank) = settled(&leaves(&seven, Part::Node(leaver)).unwrap());
        assert_eq!(shrank, held, "only what it held");
        assert_eq!(Holds::of(&six, Part::Node(leaver)), Holds::default());
        let left = applied(&six, &remove(&six, Part::Node(leaver)).unwrap());
        check(&left);
        assert_eq!(left.drives.len(), 6);
        let again = grown(&left, &node(8, 1, &[2048]));
        assert_eq!(again.nodes.keys().next_back(), Some(&NodeId(8)), "no id comes again");
        assert_eq!(again.drives.keys().next_back(), Some(&DriveId(8)));
    }
}

#[test]
fn what_holds_anything_is_not_removed() {
    let seven = settled(&grown(&form(&uniform("4+2", 6, 1, 1)).unwrap(), &node(6, 1, &[2048]))).0;
    let (leaver, drive) = (Part::Node(NodeId(1)), Part::Drive(DriveId(1)));
    let draining = leaves(&seven, leaver).unwrap();
    assert_eq!(draining.nodes[&NodeId(1)].state, State::Draining);
    let text = remove(&draining, leaver).unwrap_err().to_string();
    for part in ["leads", "is a member of", "journals", "is a manager"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(matches!(remove(&draining, drive), Err(Refusal::LastDrive { .. })));
    let moving = applied(&draining, &next_moves(&draining).unwrap());
    assert!(Holds::of(&moving, drive).former > 0);
    // It is not to leave after all: what did not move yet stays, the rest comes back.
    let stays = applied(&moving, &set_purpose(&moving, leaver, Purpose::Serve).unwrap().unwrap());
    assert_eq!(stays.nodes[&NodeId(1)].state, State::Up);
    assert_eq!(set_purpose(&stays, leaver, Purpose::Serve), Ok(None));
    let back = settled(&stays).0;
    assert!(fill(&back) <= 1.05);
    // Nothing is on a node that has just started, and everything can be in a moment.
    let fresh = grown(&seven, &node(7, 1, &[2048]));
    assert_eq!(remove(&fresh, Part::Node(NodeId(8))), Err(Refusal::InUse(Part::Node(NodeId(8)))));
}

#[test]
fn a_node_that_dies_while_it_is_drained_is_given_up_and_stays_leaving() {
    let seven = settled(&grown(&form(&uniform("4+2", 6, 1, 1)).unwrap(), &node(6, 1, &[2048]))).0;
    let draining = leaves(&seven, Part::Node(NodeId(3))).unwrap();
    let moving = applied(&draining, &next_moves(&draining).unwrap());
    let states = |state| BTreeMap::from([(NodeId(3), state)]);
    let away = applied(&moving, &node_states(&moving, &states(State::Away)).unwrap());
    assert!(away.buckets.iter().all(|bucket| bucket.leader.node != NodeId(3)));
    let failed = applied(&away, &node_states(&away, &states(State::Failed)).unwrap());
    assert_eq!(shards(&failed)[&DriveId(3)], 0, "what it held is made again at once");
    let (empty, _) = settled(&failed);
    assert!(remove(&empty, Part::Node(NodeId(3))).is_ok());
    let back = started(&empty, NodeId(3));
    assert_eq!(back.nodes[&NodeId(3)].state, State::Draining, "the order stands");
    assert_eq!(moves(&back), Moves::default());
}

#[test]
fn a_failed_drive_is_spread_over_the_rest_and_used_again_when_it_is_back() {
    let map = form(&uniform("4+2", 12, 1, 2)).unwrap();
    let failed = DriveId(5);
    let next = applied(&map, &drive_failed(&map, failed).unwrap());
    assert_eq!(next.drives[&failed].state, State::Failed);
    assert_eq!(shards(&next)[&failed], 0);
    assert_eq!(differences(&map, &next), shards(&map)[&failed], "only what the drive held moves, and all at once");
    let (next, _) = settled(&next);
    assert!(fill(&next) <= 1.1, "{}", fill(&next));
    let mut back = next.clone();
    back.drives.get_mut(&failed).unwrap().state = State::Up;
    let (back, steps) = settled(&back);
    let (low, high) = spread(shards(&back).into_values());
    assert!(high - low <= 1, "{low}..{high}");
    assert!(steps <= shards(&back)[&failed] + 1, "{steps}");
}

#[test]
fn a_node_whose_drives_are_lost_is_replaced_by_one_of_its_name() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let mut new = node(1, 1, &[2048]);
    new.drives[0].uuid = weft_wire::Uuid(99);
    assert_eq!(add_node(&map, &new, true), Err(Refusal::Lives("n1".into())));
    let states = BTreeMap::from([(NodeId(2), State::Away)]);
    let away = applied(&map, &node_states(&map, &states).unwrap());
    assert!(matches!(add_node(&away, &new, false), Err(Refusal::NameTwice(_))));
    let joined = applied(&away, &add_node(&away, &new, true).unwrap().unwrap());
    assert_eq!(joined.drives[&DriveId(2)].state, State::Failed);
    assert_eq!(joined.drives[&DriveId(7)].node, NodeId(2));
    assert_eq!(joined.nodes[&NodeId(2)].domain, map.nodes[&NodeId(2)].domain);
    assert_eq!(add_node(&joined, &new, true), Ok(None), "said again");
    let (whole, steps) = settled(&started(&joined, NodeId(2)));
    assert_eq!(steps, shards(&map)[&DriveId(2)]);
    assert_eq!(shards(&whole)[&DriveId(7)], shards(&map)[&DriveId(2)]);
    let left = applied(&whole, &remove(&whole, Part::Drive(DriveId(2))).unwrap());
    check(&left);
}

#[test]
fn a_drive_takes_part_when_it_is_ready() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let new = node(20, 1, &[2048]).drives[0];
    let added = applied(&map, &add_drive(&map, NodeId(2), &new).unwrap().unwrap());
    assert_eq!(added.drives[&DriveId(7)].state, State::Joining);
    assert_eq!(next_moves(&added), None);
    // Its node was started again before it was formatted: a blank drive has a new uuid.
    let again = weft_placement::NewDrive { uuid: weft_wire::Uuid(98), ..new };
    let added = applied(&added, &add_drive(&added, NodeId(2), &again).unwrap().unwrap());
    assert_eq!((added.drives.len(), added.drives[&DriveId(7)].uuid), (7, again.uuid));
    let ready = applied(&added, &drive_ready(&added, DriveId(7)).unwrap().unwrap());
    let (even, _) = settled(&ready);
    let held = shards(&even);
    assert!(held[&DriveId(2)].abs_diff(held[&DriveId(7)]) <= 1, "the node's share is halved: {held:?}");
    // And the old one goes.
    let (left, _) = settled(&leaves(&even, Part::Drive(DriveId(2))).unwrap());
    check(&applied(&left, &remove(&left, Part::Drive(DriveId(2))).unwrap()));
}

#[test]
fn no_domain_to_spare_is_said() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let text = leaves(&map, Part::Node(NodeId(1))).unwrap_err().to_string();
    assert!(text.contains("without node1 only 5 failure domains") && text.contains("needs 6"), "{text}");
    assert!(matches!(leaves(&map, Part::Drive(DriveId(1))), Err(Refusal::Leave { .. })));
    assert_eq!(leaves(&map, Part::Drive(DriveId(9))), Err(Refusal::NoSuchDrive(DriveId(9))));
    // 3+4 needs nine managers, and seven domains for shards.
    let map = form(&uniform("3+4", 9, 1, 1)).unwrap();
    let text = leaves(&map, Part::Node(NodeId(1))).unwrap_err().to_string();
    assert!(text.contains("managers") && text.contains("needs 9"), "{text}");
}

#[test]
fn managers_are_replaced_one_by_one() {
    let mut map = form(&uniform("4+2", 9, 1, 1)).unwrap();
    let first = map.managers.clone();
    assert_eq!(next_managers(&map), None);
    map.nodes.get_mut(&first[0]).unwrap().state = State::Away;
    assert_eq!(next_managers(&map), None, "it is expected back");
    map.nodes.get_mut(&first[0]).unwrap().state = State::Failed;
    map = leaves(&map, Part::Node(first[1])).unwrap();
    let next = next_managers(&map).unwrap();
    assert_eq!(next.len(), 5);
    assert_eq!(next.iter().filter(|id| !first.contains(id)).count(), 1, "one at a time");
    assert_eq!(next.iter().filter(|id| map.nodes[id].domain == map.nodes[&first[4]].domain).count(), 1);
    map.managers = next;
    map.managers = next_managers(&map).unwrap();
    assert!(!map.managers.contains(&first[0]) && !map.managers.contains(&first[1]));
    assert_eq!(next_managers(&map), None);
}

#[test]
fn a_hot_spare_is_capacity_of_the_largest() {
    let mut request = uniform("4+2", 8, 1, 1);
    request.nodes[3] = node(3, 1, &[4096]);
    let map = form(&request).unwrap();
    let two = spare(&map, 2);
    assert_eq!(two.total_bytes, (7 * 2048 + 4096) * MIB);
    assert_eq!(two.reserved_bytes, (4096 + 2048) * MIB);
    assert_eq!(two.usable(18), 12);
    let kept = applied(&map, &hot_spare(&map, 2).unwrap().unwrap());
    assert_eq!(kept.hot_spare, 2);
    assert_eq!(hot_spare(&kept, 2), Ok(None));
    let text = hot_spare(&map, 3).unwrap_err().to_string();
    assert!(text.contains("leaves 5 of 8") && text.contains("at most 2"), "{text}");
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
    let named = |number: usize, rack: &str| NewNode { domain: Some(rack.into()), ..node(number, 1, &[2048]) };
    let nodes = (0..7).map(|number| named(number, &format!("rack{number}"))).collect();
    let map = form(&request("4+2", nodes)).unwrap();
    let next = grown(&map, &named(7, "rack2"));
    assert_eq!(next.nodes[&NodeId(8)].domain, map.nodes[&NodeId(3)].domain);
    let other = grown(&map, &named(7, "rack9"));
    assert!(map.nodes.values().all(|node| node.domain != other.nodes[&NodeId(8)].domain));
    let (even, _) = settled(&next);
    let held = shards(&even);
    assert!(held[&DriveId(3)].abs_diff(held[&DriveId(8)]) <= 1, "the rack is halved: {held:?}");
    assert!(matches!(add_node(&map, &named(6, "x"), false), Err(Refusal::NameTwice(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to a cluster, one change after the other, also while shards are on their way: rules kept, few moves at
    /// a time, an end, and an even fill.
    #[test]
    fn changes_keep_the_rules(nodes in 9usize..14, events in proptest::collection::vec((0u8..5, any::<u16>(), 0usize..12), 1..6)) {
        let mut map = form(&uniform("4+2", nodes, 1, 2)).unwrap();
        for (count, (kind, pick, steps)) in events.into_iter().enumerate() {
            let node_id = *map.nodes.keys().nth(usize::from(pick) % map.nodes.len()).unwrap();
            let drive = *map.drives.keys().nth(usize::from(pick) % map.drives.len()).unwrap();
            let changed = match kind {
                0 => Ok(Some(grown(&map, &node(nodes + count, 1, &[2048, 2048])))),
                1 => Ok(drive_failed(&map, drive).map(|delta| applied(&map, &delta))),
                2 => set_purpose(&map, Part::Node(node_id), Purpose::Leave).map(|delta| delta.map(|delta| applied(&map, &delta))),
                3 => set_purpose(&map, Part::Drive(drive), Purpose::Leave).map(|delta| delta.map(|delta| applied(&map, &delta))),
                _ => set_purpose(&map, Part::Node(node_id), Purpose::Serve).map(|delta| delta.map(|delta| applied(&map, &delta))),
            };
            match changed {
                Ok(Some(next)) => map = next,
                Ok(None) => {}
                Err(refusal) => prop_assert!(matches!(refusal, Refusal::Leave { .. }), "{}", refusal),
            }
            // Some of it moves before the next thing happens.
            for _ in 0..steps {
                if let Some(delta) = next_moves(&map) {
                    let next = applied(&map, &delta);
                    bounded(&map, &next);
                    map = next;
                }
                let Some(id) = map.buckets.iter().rposition(|bucket| !bucket.former.is_empty()) else { break };
                let drives: Vec<DriveId> = map.buckets[id].former.iter().map(|former| former.drive).collect();
                map = applied(&map, &moved(&map, BucketId(id as u32), &drives).unwrap());
            }
            for bucket in &map.buckets {
                prop_assert!(bucket.former.iter().all(|former| !bucket.members.contains(&former.drive)));
            }
        }
        // Failed drives of a cluster with domains to spare hold nothing in the end, nor does what leaves.
        let (end, _) = settled(&map);
        for drive in end.drives.values() {
            let leaves = drive.purpose == Purpose::Leave || end.nodes[&drive.node].purpose == Purpose::Leave;
            if leaves || drive.state == State::Failed {
                prop_assert_eq!(shards(&end)[&drive.id], 0);
            }
        }
        prop_assert_eq!(moves(&end).under_way, 0);
        prop_assert!(next_moves(&end).is_none());
    }
}

#[test]
fn a_leaving_node_gets_no_journals_while_its_shards_still_move() {
    // The emptiest drive is the best place for a journal, but for the one that is to be emptied.
    let mut map = form(&uniform("4+2", 8, 1, 1)).unwrap();
    let leaver = NodeId(2);
    map = applied(&map, &set_purpose(&map, Part::Node(leaver), Purpose::Leave).unwrap().unwrap());
    for round in 0..2 {
        for index in 0..map.buckets.len() {
            for _ in 0..8 {
                map.buckets[index].ensembles.truncate(1);
                let Some(drives) = better_ensemble(&map, BucketId(index as u32)) else { break };
                assert_eq!(round, 0, "bucket{index} asks for {drives:?} when all had what they asked for");
                map.buckets[index] = with_ensemble(&map.buckets[index], drives);
            }
        }
        let journals = map.buckets.iter().flat_map(|bucket| &bucket.ensembles[0].drives);
        let left = journals.filter(|drive| map.drives[*drive].node == leaver).count();
        assert_eq!(left, 0, "journals on the leaving node");
    }
}

#[test]
fn nothing_is_drained_onto_nodes_that_are_away() {
    let map = form(&uniform("4+2", 7, 1, 1)).unwrap();
    let away = applied(&map, &node_states(&map, &[(NodeId(7), State::Away)].into()).unwrap());
    let drain = |map: &Map| set_purpose(map, Part::Node(NodeId(2)), Purpose::Leave);
    assert!(matches!(drain(&away), Err(Refusal::Leave { needed: 6, domains: 5, .. })), "{:?}", drain(&away));
    assert!(drain(&map).is_ok());
}

/// It would wait in vain when it is back.
#[test]
fn who_is_away_is_not_drained_where_nobody_could_take_its_shards() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let away = applied(&map, &node_states(&map, &[(NodeId(2), State::Away)].into()).unwrap());
    let drive = map.drives.values().find(|drive| drive.node == NodeId(2)).unwrap().id;
    for part in [Part::Node(NodeId(2)), Part::Drive(drive)] {
        let drained = set_purpose(&away, part, Purpose::Leave);
        assert!(matches!(drained, Err(Refusal::Leave { needed: 6, domains: 5, .. })), "{drained:?}");
    }
    let failed = applied(&map, &node_states(&map, &[(NodeId(2), State::Failed)].into()).unwrap());
    assert!(set_purpose(&failed, Part::Node(NodeId(2)), Purpose::Leave).is_ok(), "the others do without it already");
}

#[test]
fn what_moves_to_a_node_that_is_drained_meanwhile_goes_elsewhere() {
    // A leaving drive takes no shards, so nothing may wait for it.
    let map = form(&uniform("4+2", 9, 1, 1)).unwrap();
    let failed = applied(&map, &node_states(&map, &[(NodeId(1), State::Failed)].into()).unwrap());
    let of_former = |map: &Map, node: NodeId| {
        let buckets = map.buckets.iter();
        let targets =
            buckets.flat_map(|bucket| bucket.former.iter().map(|former| bucket.members[usize::from(former.shard)]));
        targets.filter(|drive| map.drives[drive].node == node).count()
    };
    let target = map.nodes.keys().copied().find(|node| of_former(&failed, *node) > 0).unwrap();
    let mut drained = applied(&failed, &set_purpose(&failed, Part::Node(target), Purpose::Leave).unwrap().unwrap());
    for _ in 0..1000 {
        if let Some(delta) = next_moves(&drained) {
            drained = applied(&drained, &delta);
        }
        let takes = |bucket: &Bucket, shard: u8| {
            let drive = &drained.drives[&bucket.members[usize::from(shard)]];
            drained.nodes[&drive.node].purpose == Purpose::Serve
        };
        let arrived = drained.buckets.iter().enumerate().find_map(|(id, bucket)| {
            let formers = bucket.former.iter().filter(|former| takes(bucket, former.shard));
            let drives: Vec<DriveId> = formers.map(|former| former.drive).collect();
            (!drives.is_empty()).then_some((BucketId(id as u32), drives))
        });
        let Some((id, drives)) = arrived else { break };
        drained = applied(&drained, &moved(&drained, id, &drives).unwrap());
    }
    assert_eq!(moves(&drained), Moves::default());
    assert_eq!(of_former(&drained, target), 0);
}

/// Everything is made again as far as there are drives, and on no drive twice.
fn check_folded(map: &Map, per_domain: usize) {
    for bucket in &map.buckets {
        let drives: BTreeSet<DriveId> = bucket.members.iter().copied().collect();
        assert_eq!(drives.len(), bucket.members.len(), "a drive holds two shards of a bucket");
        let mut domains: BTreeMap<_, usize> = BTreeMap::new();
        drives.iter().for_each(|drive| *domains.entry(domain(map, *drive)).or_default() += 1);
        assert!(domains.values().all(|count| *count <= per_domain), "{domains:?}");
        let journal: BTreeSet<_> = bucket.ensembles[0].drives.iter().map(|drive| domain(map, *drive)).collect();
        assert_eq!(journal.len(), bucket.ensembles[0].drives.len(), "a domain holds a journal twice");
    }
}

#[test]
fn domains_that_run_out_are_folded_and_unfolded() {
    for gone in [vec![NodeId(3)], vec![NodeId(1), NodeId(5)]] {
        let map = form(&uniform("4+2", 6, 1, 2)).unwrap();
        assert_eq!(folded(&map), 0);
        let states = |state: State| gone.iter().map(|node| (*node, state)).collect();
        let failed = applied(&map, &node_states(&map, &states(State::Failed)).unwrap());
        let held: u64 = gone.iter().map(|node| Holds::of(&map, Part::Node(*node)).shards).sum();
        assert_eq!(differences(&map, &failed), held, "only what was lost is made again");
        let mut rest = failed.clone();
        while let Some(id) = rest.buckets.iter().position(|bucket| !bucket.former.is_empty()) {
            let former: Vec<DriveId> = rest.buckets[id].former.iter().map(|former| former.drive).collect();
            rest = applied(&rest, &moved(&rest, BucketId(id as u32), &former).unwrap());
            if let Some(delta) = next_moves(&rest) {
                rest = applied(&rest, &delta);
            }
        }
        for node in &gone {
            assert_eq!(Holds::of(&rest, Part::Node(*node)).shards, 0);
        }
        check_folded(&rest, 2);
        assert_eq!(folded(&rest), rest.buckets.len());
        assert_eq!(moves(&rest), Moves::default());
        assert!(fill(&rest) <= 1.05, "{}", fill(&rest));
        // They are back, or another one is there: nobody has to say so.
        let mut back = rest.clone();
        for node in &gone {
            back = started(&back, *node);
        }
        let (back, _) = settled(&back);
        check(&back);
        assert_eq!(folded(&back), 0);
        assert!(fill(&back) <= 1.05, "{}", fill(&back));
        if gone.len() == 1 {
            let (other, _) = settled(&grown(&rest, &node(9, 1, &[2048, 2048])));
            check(&other);
            assert_eq!(folded(&other), 0);
        }
    }
}

#[test]
fn without_drives_to_fold_onto_shards_stay_where_they_are() {
    let map = form(&uniform("4+2", 6, 1, 1)).unwrap();
    let failed = applied(&map, &node_states(&map, &[(NodeId(3), State::Failed)].into()).unwrap());
    assert_eq!((differences(&map, &failed), folded(&failed)), (0, 0));
}
