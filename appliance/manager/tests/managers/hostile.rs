//! Messages that no sane peer sends.

use crate::cluster::*;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, Message, MessageType, Snapshot};
use std::time::Duration;
use weft_wire::manager::{ManagerReply, ManagerRequest, MapReply};
use weft_wire::{NodeId, Service, Uuid, decode, encode};

fn send(cluster: &Cluster, service: Service, head: bytes::Bytes, body: bytes::Bytes) -> bytes::Bytes {
    let client = cluster.net.client(9);
    cluster.time.block_on(client.ask(core(NodeId(1)), service, head, body, Duration::from_secs(5))).unwrap().head
}

fn works_still(cluster: &Cluster) {
    cluster.create(1, "after");
    assert!(cluster.agreed().filesystem_named("after").is_some());
}

#[test]
fn noise_is_answered_and_forgotten() {
    let cluster = Cluster::formed(6, 80);
    let handle = cluster.time.handle();
    for len in 0..200 {
        let noise: Vec<u8> = (0..len).map(|_| handle.random_u64() as u8).collect();
        let head = send(&cluster, Service::Manager, noise.clone().into(), bytes::Bytes::new());
        assert!(decode::<ManagerReply>(&head).is_ok());
        let head = send(&cluster, Service::Map, noise.clone().into(), bytes::Bytes::new());
        assert!(decode::<MapReply>(&head).is_ok());
        let raft = encode(&ManagerRequest::Raft { cluster: cluster.first.cluster, from: NodeId(2) });
        send(&cluster, Service::Manager, raft, noise.into());
    }
    works_still(&cluster);
}

#[test]
fn another_cluster_is_told_so() {
    let cluster = Cluster::formed(6, 81);
    for request in [
        ManagerRequest::Raft { cluster: Uuid(1), from: NodeId(2) },
        ManagerRequest::Rejoin { cluster: Uuid(1), node: NodeId(2) },
        ManagerRequest::Alive { cluster: Uuid(1), node: NodeId(2), incarnation: Default::default(), hears: true },
    ] {
        let head = send(&cluster, Service::Manager, encode(&request), bytes::Bytes::new());
        assert!(matches!(decode(&head), Ok(ManagerReply::Refused(_))));
    }
}

#[test]
fn messages_that_contradict_the_log_are_dropped() {
    let cluster = Cluster::formed(6, 82);
    let map = cluster.agreed();
    let base = |kind: MessageType| {
        let mut message = Message::default();
        message.set_msg_type(kind);
        message.from = 2 << 32 | 1;
        message.to = 1 << 32 | 1;
        message.term = 1 << 20;
        message
    };
    let entry = |index: u64, term: u64| {
        let mut entry = Entry::default();
        (entry.index, entry.term) = (index, term);
        entry
    };
    let mut messages = Vec::new();
    let mut heartbeat = base(MessageType::MsgHeartbeat);
    heartbeat.commit = 1 << 40;
    messages.push(heartbeat);
    for entries in [
        vec![entry(1, 9)],
        vec![entry(3, 1 << 19), entry(2, 1)],
        vec![entry(7, 1 << 30)],
        vec![entry(2, 77), entry(3, 77)],
    ] {
        let mut append = base(MessageType::MsgAppend);
        (append.index, append.log_term, append.commit) = (1, 1, 1 << 40);
        append.set_entries(entries.into());
        messages.push(append);
    }
    for data in [bytes::Bytes::from_static(b"junk"), encode(&*map)] {
        let mut snapshot = Snapshot { data, ..Snapshot::default() };
        snapshot.mut_metadata().index = 1 << 30;
        let mut message = base(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot.clone());
        messages.push(message.clone());
        snapshot.mut_metadata().set_conf_state(ConfState::from((vec![77], vec![])));
        message.set_snapshot(snapshot);
        messages.push(message);
    }
    for kind in
        [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgTimeoutNow, MessageType::MsgTransferLeader]
    {
        messages.push(base(kind));
    }
    let mut confirmed = base(MessageType::MsgAppendResponse);
    confirmed.index = 1 << 40;
    messages.push(confirmed);
    for mut message in messages {
        for term in [0, 1, 2, 3, 1 << 20] {
            message.term = term;
            let body = message.write_to_bytes().unwrap();
            let head = encode(&ManagerRequest::Raft { cluster: map.cluster, from: NodeId(2) });
            send(&cluster, Service::Manager, head.clone(), body.clone().into());
            // A sender that isn't who the message says.
            let head = encode(&ManagerRequest::Raft { cluster: map.cluster, from: NodeId(3) });
            send(&cluster, Service::Manager, head, body.into());
        }
        cluster.time.run_for(Duration::from_millis(300));
    }
    cluster.time.run_for(Duration::from_secs(10));
    works_still(&cluster);
}
