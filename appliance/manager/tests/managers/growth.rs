//! Nodes come and go in a cluster that runs: votes move, shards move, and both go on whoever dies in between.

use crate::cluster::*;
use std::rc::Rc;
use std::time::Duration;
use weft_manager::{Manager, NotAdmitted, Patience, Role};
use weft_placement::{Holds, Moves, moves};
use weft_reactor::testing::VirtualTime;
use weft_wire::manager::{HandOverReason, ManagerReply, Part, Proposal};
use weft_wire::map::{Map, Purpose, State};
use weft_wire::{BucketId, DriveId, NodeId};

fn drain(node: u16) -> Proposal {
    Proposal::SetPurpose { part: Part::Node(NodeId(node)), purpose: Purpose::Leave }
}

fn votes(cluster: &Cluster, number: u16) -> bool {
    cluster
        .running()
        .any(|(other, manager)| other == number && matches!(manager.status().role, Role::Leader | Role::Follower))
}

fn replaced(cluster: &Cluster, node: u16) -> bool {
    let map = cluster.newest();
    !map.managers.contains(&NodeId(node)) && map.managers.iter().all(|manager| votes(cluster, manager.0))
}

#[test]
fn a_drained_manager_gives_its_vote_to_another_node() {
    let mut cluster = Cluster::formed(7, 80);
    let leaver = if cluster.leader() == Some(2) { 3 } else { 2 };
    cluster.commit(1, drain(leaver));
    cluster.until("another one votes", |cluster| replaced(cluster, leaver));
    cluster.until("it votes no more", |cluster| cluster.manager(leaver).status().role == Role::None);
    cluster.create(leaver, "data");
    assert_eq!(cluster.agreed().filesystems.len(), 1, "it follows");
    // It remembers that it has no vote.
    cluster.settle();
    cluster.crash(leaver);
    cluster.start_all([leaver]);
    assert_eq!(cluster.manager(leaver).status().role, Role::None);
    // The new vote counts.
    let map = cluster.newest();
    let old: Vec<u16> =
        map.managers.iter().map(|id| id.0).filter(|id| *id <= 5 && cluster.leader() != Some(*id)).take(2).collect();
    old.into_iter().for_each(|number| cluster.crash(number));
    cluster.create(leaver, "needed");
}

#[test]
fn a_manager_that_gave_its_vote_back_asks_for_none_by_the_map_from_before() {
    let mut cluster = Cluster::formed(7, 83);
    let leaver = if cluster.leader() == Some(2) { 3 } else { 2 };
    cluster.commit(1, drain(leaver));
    cluster.until_by(Duration::from_millis(1), "it votes no more", |cluster| {
        cluster.manager(leaver).status().role == Role::None
    });
    // That is on its drives, and the map that no longer names it isn't yet.
    cluster.time.run_for(Duration::from_millis(1));
    cluster.crash(leaver);
    cluster.start_all([leaver]);
    cluster.until("it is no manager", |cluster| {
        let status = cluster.manager(leaver).status();
        status.role == Role::None && status.waiting.is_none()
    });
}

#[test]
fn the_managers_leader_can_be_drained_too() {
    let cluster = Cluster::formed(7, 81);
    let leaver = cluster.leader().unwrap();
    cluster.commit(1, drain(leaver));
    cluster.until("another one votes", |cluster| replaced(cluster, leaver));
    cluster.until("it votes no more", |cluster| cluster.manager(leaver).status().role == Role::None);
    cluster.create(leaver, "data");
    // And comes back to be one: under another voter's id.
    cluster.commit(1, Proposal::SetPurpose { part: Part::Node(NodeId(leaver)), purpose: Purpose::Serve });
    let other = cluster.newest().managers[0].0;
    cluster.commit(1, drain(other));
    cluster.until("the next one is replaced", |cluster| replaced(cluster, other));
    cluster.create(other, "more");
    assert_eq!(cluster.agreed().filesystems.len(), 2);
}

#[test]
fn a_manager_that_dies_before_it_has_its_vote_is_replaced_in_turn() {
    let mut cluster = Cluster::formed(8, 85);
    let leaver = if cluster.leader() == Some(2) { 3 } else { 2 };
    // Whoever is chosen can't be reached.
    for other in [1, 2, 3, 4, 5, 7, 8] {
        cluster.net.cut(core(NodeId(6)), core(NodeId(other)));
        cluster.net.cut(core(NodeId(other)), core(NodeId(6)));
    }
    cluster.commit(1, drain(leaver));
    cluster.until("one without a vote is named", |cluster| cluster.newest().managers.contains(&NodeId(6)));
    cluster.crash(6);
    cluster.until("another one votes", |cluster| replaced(cluster, leaver) && replaced(cluster, 6));
    cluster.until("it votes no more", |cluster| cluster.manager(leaver).status().role == Role::None);
}

#[test]
fn a_manager_that_was_replaced_while_it_was_away_finds_that_out() {
    let mut cluster = Cluster::formed(7, 82);
    let lost = if cluster.leader() == Some(4) { 5 } else { 4 };
    cluster.settle();
    cluster.crash(lost);
    cluster.until("it is given up and replaced", |cluster| replaced(cluster, lost));
    cluster.create(1, "data");
    cluster.start_all([lost]);
    cluster.until("it votes no more", |cluster| cluster.manager(lost).status().role == Role::None);
    assert_eq!(cluster.agreed().filesystems.len(), 1);
    assert!(!cluster.agreed().managers.contains(&NodeId(lost)));
}

/// What leaders of buckets do: they copy, and report. One report for each look.
fn report(cluster: &Cluster) {
    let Some((by, _)) = cluster.running().next() else { return };
    let map = cluster.newest();
    let reports = (0..).map(BucketId).zip(&map.buckets).filter(|(_, bucket)| !bucket.former.is_empty());
    for (id, bucket) in reports.take(3) {
        let drives: Vec<DriveId> = bucket.former.iter().map(|former| former.drive).collect();
        let proposal = Proposal::Moved {
            node: bucket.leader.node,
            incarnation: bucket.incarnation,
            bucket: id,
            epoch: bucket.epoch,
            layout: bucket.layout,
            drives,
        };
        cluster.propose(by, proposal);
    }
    // Journals and leaders follow.
    for (id, bucket) in (0..).map(BucketId).zip(&map.buckets) {
        let (node, incarnation, epoch) = (bucket.leader.node, bucket.incarnation, bucket.epoch);
        if bucket.ensembles.len() > 1 {
            cluster.propose(by, Proposal::TailCopied { node, incarnation, bucket: id, epoch });
        } else if weft_placement::better_ensemble(&map, id).is_some() {
            cluster.propose(by, Proposal::NewEnsemble { node, incarnation, bucket: id, epoch });
        } else if let Some((_, to)) = weft_placement::balance_leaders(&map).into_iter().find(|(other, _)| *other == id)
        {
            cluster.propose(
                by,
                Proposal::HandOver { node, incarnation, bucket: id, epoch, to, reason: HandOverReason::Balance },
            );
        }
    }
}

fn at_rest(map: &Map) -> bool {
    moves(map) == Moves::default() && weft_placement::next_moves(map).is_none()
}

/// Crashes, one after the other, of whoever leads the managers, while `is_done` isn't so.
fn through_crashes(cluster: &mut Cluster, is_done: impl Fn(&Map) -> bool) {
    let mut down: Option<u16> = None;
    for round in 0..600 {
        if is_done(&cluster.newest()) && down.is_none() {
            return;
        }
        report(cluster);
        cluster.time.run_for(Duration::from_millis(500));
        if round % 12 == 5 && round < 90 {
            if let Some(number) = down.take() {
                cluster.start_all([number]);
            } else if let Some(leader) = cluster.leader() {
                cluster.crash(leader);
                down = Some(leader);
            }
        }
        if round == 90
            && let Some(number) = down.take()
        {
            cluster.start_all([number]);
        }
    }
    panic!("it never ends: {:?}", moves(&cluster.newest()));
}

#[test]
fn growing_and_shrinking_go_on_whoever_dies_in_between() {
    let mut cluster = Cluster::formed(6, 83);
    let seventh = cluster.join();
    let holds = |map: &Map, node: u16| Holds::of(map, Part::Node(NodeId(node)));
    through_crashes(&mut cluster, |map| holds(map, seventh).shards > 0 && at_rest(map));
    let map = cluster.agreed();
    let (held, mean) = (holds(&map, seventh).shards, map.buckets.len() as f64 * 5.0 / 7.0);
    assert!((held as f64) <= mean * 1.06 && held as f64 >= mean * 0.94, "{held} of {mean}");

    // And back again: a manager goes.
    let order = drain(2);
    cluster.commit(7, order.clone());
    assert!(matches!(cluster.propose(7, order), ManagerReply::Committed { .. }), "said again");
    let remove = Proposal::Remove { part: Part::Node(NodeId(2)) };
    let ManagerReply::Refused(reason) = cluster.propose(7, remove.clone()) else { panic!("removed with all it holds") };
    assert!(reason.contains("is a member of"), "{reason}");
    through_crashes(&mut cluster, |map| holds(map, 2).is_nothing() && at_rest(map));
    assert_eq!(cluster.newest().nodes[&NodeId(2)].state, State::Draining);
    cluster.commit(7, remove);
    let ended = cluster.manager(2);
    cluster.time.block_on(async move { assert_eq!(ended.ended().await, weft_manager::Ended::Removed) });
    cluster.crash(2);
    assert_eq!(cluster.agreed().nodes.len(), 6);
    cluster.create(7, "still");
}

#[test]
fn who_was_removed_while_it_was_away_hears_so() {
    let mut cluster = Cluster::formed(7, 85);
    cluster.commit(1, drain(7));
    through_crashes(&mut cluster, |map| Holds::of(map, Part::Node(NodeId(7))).is_nothing() && at_rest(map));
    cluster.crash(7);
    cluster.commit(1, Proposal::Remove { part: Part::Node(NodeId(7)) });
    cluster.start(7);
    assert_eq!(cluster.time.block_on(cluster.try_starting(7)), Err(NotAdmitted::Removed));
    cluster.settle();
    // It remembers.
    cluster.crash(7);
    cluster.start(7);
    assert_eq!(cluster.time.block_on(cluster.try_starting(7)), Err(NotAdmitted::Removed));
}

#[test]
fn nothing_moves_while_a_node_is_away() {
    let mut cluster = Cluster::formed(6, 84);
    cluster.crash(6);
    cluster.until("it is away", |cluster| cluster.newest().nodes[&NodeId(6)].state == State::Away);
    let seventh = cluster.join();
    cluster.time.run_for(Duration::from_secs(10));
    assert!(Holds::of(&cluster.newest(), Part::Node(NodeId(seventh))).is_nothing());
    cluster.start_all([6]);
    cluster.until("shards move", |cluster| moves(&cluster.newest()).under_way > 0);
    let time: &VirtualTime = &cluster.time;
    time.run_for(Duration::from_secs(30));
    let under_way = moves(&cluster.newest()).under_way;
    assert!((1..=8).contains(&under_way), "a few at a time, and they are not done by themselves: {under_way}");
}

#[test]
fn two_managers_that_are_given_up_are_replaced_at_once_however_busy_the_leader_is() {
    for seed in 90..92 {
        let mut cluster = Cluster::formed(8, seed);
        cluster.settle();
        let dead: Vec<u16> = (1..=5).filter(|number| cluster.leader() != Some(*number)).take(2).collect();
        dead.iter().for_each(|number| cluster.crash(*number));
        cluster.until("they are given up", |cluster| {
            dead.iter().all(|number| cluster.newest().nodes[&NodeId(*number)].state == State::Failed)
        });
        let leader = cluster.leader().unwrap();
        let manager = cluster.manager(leader);
        let handle = cluster.time.handle();
        // The map changes all the time.
        let changes = |by: Rc<Manager>| async move {
            loop {
                by.propose(Proposal::NewClient { host: "busy".into() }, Patience::default()).await;
            }
        };
        let changes: Vec<_> = (0..3).map(|_| handle.spawn("changes", changes(manager.clone()))).collect();
        let given_up = handle.now();
        let vote = || manager.map().is_some_and(|map| map.managers == manager.status().voters);
        while !(dead.iter().all(|number| replaced(&cluster, *number)) && vote()) {
            cluster.time.run_for(Duration::from_millis(1));
            assert!(handle.now().since(given_up) < Duration::from_millis(300), "{:?}", manager.status());
        }
        drop(changes);
    }
}
