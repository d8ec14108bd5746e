//! Nodes die, hang and come back: who notices, how soon, and what becomes of the buckets.

use crate::cluster::{Cluster, core};
use std::time::Duration;
use weft_wire::manager::{ManagerReply, ManagerRequest};
use weft_wire::map::{Map, State};
use weft_wire::{Incarnation, NodeId, Service, decode, encode};

fn running(seed: u64) -> Cluster {
    let cluster = Cluster::formed(6, seed);
    // Later than any grace for those who might only be starting.
    cluster.time.run_for(Duration::from_secs(6));
    cluster
}

fn leads(map: &Map, node: u16) -> usize {
    map.buckets.iter().filter(|bucket| bucket.leader.node == NodeId(node)).count()
}

/// How long until every node that runs has a map in which `node` is in `state`.
fn until_state(cluster: &Cluster, node: u16, state: State) -> Duration {
    let start = cluster.time.handle().now();
    let known = |cluster: &Cluster| {
        cluster.running().all(|(_, manager)| manager.map().is_some_and(|map| map.nodes[&NodeId(node)].state == state))
    };
    while !known(cluster) {
        cluster.time.run_for(Duration::from_millis(5));
        let took = cluster.time.handle().now().since(start);
        assert!(took < Duration::from_secs(60), "never {state:?}");
    }
    cluster.time.handle().now().since(start)
}

fn incarnation(cluster: &Cluster, node: u16) -> Incarnation {
    cluster.agreed().nodes[&NodeId(node)].incarnation
}

#[test]
fn the_supervisors_word_moves_leaders_at_once() {
    let mut cluster = running(41);
    let leader = cluster.leader().unwrap();
    let victim = if leader == 6 { 5 } else { 6 };
    let incarnation = incarnation(&cluster, victim);
    assert!(leads(&cluster.agreed(), victim) > 0);
    cluster.crash(victim);
    let told = if leader == 1 { 2 } else { 1 };
    cluster.manager(told).died(NodeId(victim), incarnation);
    let took = until_state(&cluster, victim, State::Away);
    assert!(took < Duration::from_millis(50), "{took:?}");
    let map = cluster.agreed();
    assert_eq!(leads(&map, victim), 0);
    assert!(map.buckets.iter().all(|bucket| bucket.incarnation == map.nodes[&bucket.leader.node].incarnation));
    cluster.start_all([victim]);
    until_state(&cluster, victim, State::Up);
}

#[test]
fn the_managers_leader_is_replaced_at_a_word() {
    for seed in 50..58 {
        let mut cluster = running(seed);
        let victim = cluster.leader().unwrap();
        let incarnation = incarnation(&cluster, victim);
        cluster.crash(victim);
        for (_, manager) in cluster.running().collect::<Vec<_>>() {
            manager.died(NodeId(victim), incarnation);
        }
        let took = until_state(&cluster, victim, State::Away);
        assert!(took < Duration::from_millis(100), "{took:?}");
        assert_eq!(leads(&cluster.agreed(), victim), 0);
    }
}

#[test]
fn a_refused_port_is_looked_into_whoever_it_is() {
    for seed in 60..66 {
        let mut cluster = running(seed);
        let leader = cluster.leader().unwrap();
        let victims = [leader, leader % 5 + 1];
        victims.iter().for_each(|victim| cluster.crash(*victim));
        let others: Vec<u16> = cluster.running().map(|(number, _)| number).collect();
        for victim in victims {
            others.iter().for_each(|number| cluster.manager(*number).suspect(NodeId(victim)));
        }
        let took = until_state(&cluster, victims[1], State::Away).max(until_state(&cluster, victims[0], State::Away));
        assert!(took < Duration::from_millis(400), "{took:?}");
    }
}

#[test]
fn silence_is_noticed_and_a_return_is_not_believed_at_once() {
    let cluster = running(71);
    let leader = cluster.leader().unwrap();
    // Whoever leads, and one who doesn't.
    for victim in [if leader == 6 { 5 } else { 6 }, leader] {
        let others: Vec<u16> = (1..=6).filter(|number| *number != victim).collect();
        for other in &others {
            cluster.net.cut(core(NodeId(victim)), core(NodeId(*other)));
            cluster.net.cut(core(NodeId(*other)), core(NodeId(victim)));
        }
        let start = cluster.time.handle().now();
        let away = |cluster: &Cluster| {
            others.iter().all(|number| {
                cluster.manager(*number).map().is_some_and(|map| map.nodes[&NodeId(victim)].state == State::Away)
            })
        };
        while !away(&cluster) {
            cluster.time.run_for(Duration::from_millis(10));
            assert!(cluster.time.handle().now().since(start) < Duration::from_secs(4), "node {victim} is not away");
        }
        let took = cluster.time.handle().now().since(start);
        assert!(took > Duration::from_millis(700) && took < Duration::from_millis(2600), "{took:?}");
        cluster.net.mend_all();
        let took = until_state(&cluster, victim, State::Up);
        assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
    }
}

#[test]
fn a_manager_whose_drives_hang_is_not_taken_for_dead() {
    let cluster = running(75);
    let leader = cluster.leader().unwrap();
    let victim = leader % 5 + 1;
    cluster.store(victim).stall();
    // It has something to store, and gets heartbeats while it does.
    let version = cluster.create(leader, "meanwhile");
    cluster.time.run_for(Duration::from_millis(100));
    // Which are answered, although nothing can be said to them.
    let heartbeat = encode(&ManagerRequest::Raft { cluster: cluster.first.cluster, from: NodeId(leader) });
    let client = cluster.net.client(9);
    let within = Duration::from_millis(100);
    let heard = client.ask(core(NodeId(victim)), Service::Manager, heartbeat, bytes::Bytes::new(), within);
    let heard = cluster.time.block_on(heard).map(|response| decode::<ManagerReply>(&response.head));
    assert!(matches!(heard, Ok(Ok(ManagerReply::Lives { incarnation: Some(_) }))), "{heard:?}");
    for _ in 0..60 {
        cluster.time.run_for(Duration::from_millis(100));
        let map = cluster.manager(leader).map().unwrap();
        assert!(map.nodes.values().all(|node| node.state == State::Up), "{:?}", map.nodes);
    }
    cluster.store(victim).go_on();
    cluster.until("it has the map", |cluster| cluster.manager(victim).status().version >= version);
}

#[test]
fn who_stays_away_is_given_up_and_may_return() {
    let mut cluster = running(81);
    cluster.crash(6);
    until_state(&cluster, 6, State::Away);
    let took = until_state(&cluster, 6, State::Failed);
    assert!(took > Duration::from_secs(29) && took < Duration::from_secs(32), "{took:?}");
    let map = cluster.agreed();
    let held = map.buckets.iter().flat_map(|bucket| &bucket.members);
    assert_eq!(held.filter(|drive| map.drives[*drive].node == NodeId(6)).count(), 0, "3+2 has a sixth domain to spare");
    cluster.start_all([6]);
    until_state(&cluster, 6, State::Up);
}
