//! What the leader makes of proposals: pure.

use crate::cluster::first_map;
use weft_manager::{Decision, decide};
use weft_wire::manager::Proposal;
use weft_wire::map::{Map, State};
use weft_wire::{ClientId, Epoch, FsId, Incarnation, NodeId};

fn accepted(map: &Map, proposal: Proposal) -> Map {
    let Decision::Change(delta, _) = decide(map, &proposal) else { panic!("{proposal:?} is not accepted") };
    let mut next = map.clone();
    next.apply(&delta).unwrap();
    next
}

fn refused(map: &Map, proposal: Proposal) -> String {
    match decide(map, &proposal) {
        Decision::Refused(text) => text,
        other => panic!("{proposal:?} is not refused: {other:?}"),
    }
}

fn started(map: &Map, node: u16) -> Proposal {
    let known = &map.nodes[&NodeId(node)];
    Proposal::NodeStarted { node: known.id, cores: known.cores.clone(), control: known.control }
}

#[test]
fn a_start_touches_what_the_node_leads_and_nothing_else() {
    let mut map = first_map(6);
    map.nodes.get_mut(&NodeId(2)).unwrap().state = State::Away;
    let next = accepted(&map, started(&map, 2));
    assert_eq!(next.nodes[&NodeId(2)].incarnation, Incarnation(2));
    assert_eq!(next.nodes[&NodeId(2)].state, State::Up);
    for (old, new) in map.buckets.iter().zip(&next.buckets) {
        let epoch = if old.leader.node == NodeId(2) { Epoch(2) } else { Epoch(1) };
        assert_eq!((new.epoch, &new.members, &new.ensembles), (epoch, &old.members, &old.ensembles));
    }
}

#[test]
fn a_start_that_contradicts_the_map_is_refused() {
    let map = first_map(6);
    let mut lost_core = started(&map, 2);
    let mut stolen = started(&map, 2);
    let mut unknown = started(&map, 2);
    if let Proposal::NodeStarted { cores, .. } = &mut lost_core {
        cores.clear();
    }
    if let Proposal::NodeStarted { cores, .. } = &mut stolen {
        *cores = map.nodes[&NodeId(3)].cores.clone();
    }
    if let Proposal::NodeStarted { node, .. } = &mut unknown {
        *node = NodeId(7);
    }
    assert!(refused(&map, lost_core).contains("started with 0 cores and had 1"));
    assert!(refused(&map, stolen).contains("uses a data address of node \"n3\""));
    assert!(refused(&map, unknown).contains("has no node7"));
}

#[test]
fn names_that_break_command_lines_are_refused() {
    let map = first_map(6);
    for name in ["", "a/b", "a b", "a,b", "a:b", "a\0", &"x".repeat(256)] {
        let text = refused(&map, Proposal::CreateFilesystem { name: name.into(), size_bytes: 0 });
        assert!(text.contains("can't name a filesystem"), "{text}");
    }
    accepted(&map, Proposal::CreateFilesystem { name: "ä-1_x.y".into(), size_bytes: 0 });
}

#[test]
fn what_is_not_there_is_refused_or_done_already() {
    let map = first_map(6);
    assert!(refused(&map, Proposal::DeleteFilesystem { name: "x".into() }).contains("no filesystem \"x\""));
    assert!(refused(&map, Proposal::FilesystemReady { fs: FsId(9) }).contains("no fs9"));
    for done in [
        Proposal::FilesystemGone { fs: FsId(9) },
        Proposal::RemoveClient { client: ClientId(9) },
        Proposal::FenceClient { client: ClientId(9) },
    ] {
        assert!(matches!(decide(&map, &done), Decision::Nothing(_)));
    }
}

#[test]
fn the_map_has_a_size_that_it_never_exceeds() {
    let mut map = first_map(6);
    let host = "h".repeat(255);
    let text = loop {
        match decide(&map, &Proposal::NewClient { host: host.clone() }) {
            Decision::Change(delta, outcome) => {
                map.apply(&delta).unwrap();
                // Many at once, or this takes long.
                for _ in 0..500 {
                    let client = weft_wire::map::Client { id: map.next_client, host: host.clone(), fenced: false };
                    map.next_client.0 += 1;
                    map.clients.insert(client.id, client);
                }
                assert!(outcome.client < map.next_client);
            }
            Decision::Refused(text) => break text,
            Decision::Nothing(_) => panic!("a new client is always a change"),
        }
    };
    assert!(text.contains("the map would take"), "{text}");
    assert!(refused(&map, Proposal::NewClient { host: "h".repeat(256) }).contains("longer than 255"));
}
