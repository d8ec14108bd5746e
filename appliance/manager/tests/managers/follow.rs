//! The map for those who don't vote.

use crate::cluster::*;
use std::time::Duration;
use weft_wire::manager::{MapReply, MapRequest};
use weft_wire::map::{Map, State};
use weft_wire::{MapVersion, NodeId, Service, Uuid, decode, encode};

fn get(cluster: &Cluster, from: u16, have: MapVersion, wait_ms: u32) -> MapReply {
    let client = cluster.net.client(1);
    let head = encode(&MapRequest::Get { cluster: None, have, wait_ms });
    let timeout = Duration::from_secs(60);
    let call = client.ask(core(NodeId(from)), Service::Map, head, bytes::Bytes::new(), timeout);
    decode(&cluster.time.block_on(call).unwrap().head).unwrap()
}

#[test]
fn any_node_serves_the_whole_map_and_deltas() {
    let cluster = Cluster::formed(7, 40);
    let old = cluster.agreed();
    cluster.create(1, "one");
    cluster.create(2, "two");
    let new = cluster.agreed();
    for number in 1..=7 {
        let MapReply::Whole(whole) = get(&cluster, number, MapVersion(0), 0) else { panic!("no whole map") };
        assert_eq!(*whole, *new);
        let MapReply::Deltas(deltas) = get(&cluster, number, old.version, 0) else { panic!("no deltas") };
        let mut map = Map::clone(&old);
        deltas.iter().for_each(|delta| map.apply(delta).unwrap());
        assert_eq!(map, *new);
    }
    assert_eq!(get(&cluster, 7, new.version, 0), MapReply::Deltas(Vec::new()));
}

#[test]
fn a_question_waits_for_what_is_new() {
    let cluster = Cluster::formed(7, 41);
    let map = cluster.agreed();
    let start = cluster.time.handle().now();
    assert_eq!(get(&cluster, 7, map.version, 2_000), MapReply::Deltas(Vec::new()));
    assert!(cluster.time.handle().now().since(start) >= Duration::from_secs(2));

    let client = cluster.net.client(2);
    let head = encode(&MapRequest::Get { cluster: Some(map.cluster), have: map.version, wait_ms: 20_000 });
    let asked = client.call(core(NodeId(7)), Service::Map, head, bytes::Bytes::new(), Duration::from_secs(30));
    cluster.time.run_for(Duration::from_millis(100));
    assert!(!asked.is_settled());
    cluster.create(1, "data");
    let reply = cluster.time.block_on(asked).unwrap().unwrap();
    let MapReply::Deltas(deltas) = decode(&reply.head).unwrap() else { panic!("no deltas") };
    assert_eq!(deltas.last().unwrap().version.0, map.version.0 + 1);
}

#[test]
fn nodes_of_other_clusters_have_no_map_to_give() {
    let cluster = Cluster::formed(7, 43);
    let map = cluster.agreed();
    let client = cluster.net.client(1);
    let ask = |of: Uuid| {
        let head = encode(&MapRequest::Get { cluster: Some(of), have: MapVersion(0), wait_ms: 0 });
        let timeout = Duration::from_secs(60);
        let call = client.ask(core(NodeId(3)), Service::Map, head, bytes::Bytes::new(), timeout);
        decode::<MapReply>(&cluster.time.block_on(call).unwrap().head).unwrap()
    };
    assert!(matches!(ask(map.cluster), MapReply::Whole(_)));
    assert_eq!(ask(Uuid(map.cluster.0 ^ 1)), MapReply::None);
}

#[test]
fn a_node_without_a_cluster_has_no_map() {
    let cluster = Cluster::blank(6, 42);
    assert_eq!(get(&cluster, 1, MapVersion(0), 0), MapReply::None);
    assert_eq!(cluster.manager(1).map(), None);
}

#[test]
fn followers_survive_managers_and_remember_the_map() {
    let mut cluster = Cluster::formed(8, 43);
    cluster.crash(7);
    cluster.crash(2);
    cluster.crash(3);
    cluster.create(8, "data");
    cluster.agreed();
    cluster.settle();
    for number in 1..=8 {
        cluster.crash(number);
    }
    // A follower alone has no quorum to talk to, but still knows the last map, and what it missed comes when managers are back.
    cluster.start(8);
    assert!(cluster.manager(8).map().unwrap().filesystem_named("data").is_some());
    cluster.start(7);
    assert!(cluster.manager(7).map().unwrap().filesystem_named("data").is_none());
    cluster.start_all([1, 4, 5]);
    assert!(cluster.agreed().filesystem_named("data").is_some());
}

#[test]
fn a_follower_that_is_far_behind_gets_the_whole_map() {
    let mut cluster = Cluster::formed(7, 44);
    cluster.settle();
    cluster.crash(7);
    for index in 0..600u32 {
        let client = weft_wire::manager::Proposal::NewClient { host: format!("h{index}") };
        cluster.commit(1, client);
    }
    cluster.start_all([7]);
    assert_eq!(cluster.agreed().clients.len(), 600);
}

#[test]
fn a_stopped_follower_is_away_and_comes_back() {
    let mut cluster = Cluster::formed(7, 45);
    cluster.crash(7);
    cluster.until("it is away", |cluster| cluster.manager(1).map().unwrap().nodes[&NodeId(7)].state == State::Away);
    cluster.create(6, "meanwhile");
    cluster.start_all([7]);
    assert_eq!(cluster.agreed().nodes[&NodeId(7)].state, State::Up);
    cluster.time.run_for(Duration::from_secs(30));
    assert!(cluster.agreed().nodes.values().all(|node| node.state == State::Up), "nobody is away without reason");
}

#[test]
fn a_cut_off_node_is_away_until_it_is_heard_again() {
    let cluster = Cluster::formed(7, 46);
    for other in 1..=6 {
        cluster.net.cut(core(NodeId(7)), core(NodeId(other)));
    }
    cluster.until("it is away", |cluster| cluster.manager(1).map().unwrap().nodes[&NodeId(7)].state == State::Away);
    cluster.net.mend_all();
    cluster.until("it is up", |cluster| cluster.manager(7).map().unwrap().nodes[&NodeId(7)].state == State::Up);
}

#[test]
fn a_second_life_ends_the_first() {
    let cluster = Cluster::formed(6, 47);
    let manager = cluster.manager(6);
    let ended = cluster.time.handle().spawn("superseded", async move { manager.ended().await });
    cluster.time.run_for(Duration::from_secs(5));
    assert!(!ended.is_finished());
    let cores = cluster.agreed().nodes[&NodeId(6)].cores.clone();
    let again =
        weft_wire::manager::Proposal::NodeStarted { node: NodeId(6), cores, control: ([127, 0, 0, 1], 1).into() };
    cluster.commit(1, again);
    cluster.time.block_on(ended).unwrap();
}
