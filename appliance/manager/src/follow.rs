//! What every node does whether it votes or not: keeps the newest map on its drives, says that it lives, and, without a vote, asks for newer maps.

use crate::copies::failures;
use crate::decide::front;
use crate::propose::{Patience, ask_leader};
use crate::records::{Place, seal};
use crate::shared::{Role, Shared};
use crate::store::Slot;
use std::rc::Rc;
use weft_reactor::join_all;
use weft_wire::manager::{ManagerReply, ManagerRequest, MapReply, MapRequest};
use weft_wire::map::Map;
use weft_wire::{NodeId, Service, decode, encode};

/// Brings each new map to every drive, a little later, so that a series of changes is written once.
pub(crate) async fn save(shared: Rc<Shared>) {
    loop {
        shared.save.notified().await;
        shared.handle.sleep(shared.tunables.save_after).await;
        let Some(record) = shared.map_record() else { continue };
        let bytes = seal(&record);
        for (drive, error) in failures(&shared.store, &shared.store.drives(), Slot::Map, &bytes).await {
            tracing::error!(%drive, %error, version = %record.map.version, "the map could not be stored");
        }
    }
}

/// Tells the leader, again and again, that this life of this node goes on. Answers to its heartbeats say so, too.
pub(crate) async fn say_alive(shared: Rc<Shared>) {
    let mut answered = shared.handle.now();
    loop {
        let asleep = shared.handle.now();
        shared.handle.sleep(shared.tunables.alive_every).await;
        let now = shared.handle.now();
        if now.since(asleep) > shared.tunables.alive_every * 2 {
            // This process stood still: it has not listened either.
            answered = now;
        }
        let (Some(node), Some(incarnation), Some(map)) = (shared.node.get(), shared.incarnation.get(), shared.map())
        else {
            continue;
        };
        let is_heard = shared.is_voting() && now.since(shared.heard_leader.get()) < shared.tunables.alive_every;
        if is_heard || shared.role.get() == Role::Leader {
            answered = now;
            continue;
        }
        let hears = now.since(answered) <= shared.tunables.alive_every * 3;
        let request = ManagerRequest::Alive { cluster: map.cluster, node, incarnation, hears };
        let patience = Patience {
            total: shared.tunables.alive_every,
            call: shared.tunables.ask_timeout,
            retry_first: shared.tunables.retry_first,
            retry_most: shared.tunables.retry_most,
        };
        let (reply, leader) =
            ask_leader(&shared.network, &shared.handle, &map, shared.leader.get(), &request, patience).await;
        if reply == ManagerReply::Ok {
            answered = shared.handle.now();
        }
        // A voter knows its leader better than its answers do.
        if !shared.is_voting() {
            shared.set_leader(leader);
        }
    }
}

/// Asks managers, or other nodes when there are none, for newer maps, as long as the consensus doesn't bring them here. P+1
/// of them at a time: P may have stopped answering without anyone knowing.
pub(crate) async fn follow(shared: Rc<Shared>) {
    let Some(map) = shared.map() else { return };
    let own = usize::from(shared.node.get().unwrap_or_default().0);
    join_all((0..map.protection.acknowledge()).map(|nth| follow_one(shared.clone(), own + nth))).await;
}

async fn follow_one(shared: Rc<Shared>, mut turn: usize) {
    let mut pause = shared.tunables.retry_first;
    while !(shared.is_voting() && shared.current.borrow().as_ref().is_some_and(|(place, _)| place.index > 0)) {
        let (Some(map), Some(own)) = (shared.map(), shared.node.get()) else { return };
        let peers = peers(&map, own);
        let Some(peer) = (!peers.is_empty()).then(|| peers[turn % peers.len()]) else { return };
        let wait = shared.tunables.follow_wait;
        let head = encode(&MapRequest::Get {
            cluster: Some(map.cluster),
            have: map.version,
            wait_ms: wait.as_millis() as u32,
        });
        let call = shared.network.ask(
            front(peer),
            Service::Map,
            head,
            bytes::Bytes::new(),
            wait + shared.tunables.call_timeout,
        );
        let reply = call.await.ok().and_then(|response| decode::<MapReply>(&response.head).ok());
        let useful = match reply {
            None | Some(MapReply::None) => false,
            Some(MapReply::Whole(other)) if other.cluster != map.cluster => false,
            Some(reply) => take(&shared, reply),
        };
        if useful {
            pause = shared.tunables.retry_first;
        } else {
            // Another one than those that are being asked.
            turn += map.protection.acknowledge();
            shared.handle.sleep(pause).await;
            pause = (pause * 2).min(shared.tunables.retry_most);
        }
    }
}

/// Managers first, from the one that this node's turn names; then everyone else.
fn peers(map: &Map, own: NodeId) -> Vec<NodeId> {
    let mut peers: Vec<NodeId> = map.managers.iter().copied().filter(|node| *node != own).collect();
    if peers.is_empty() {
        peers = map.nodes.keys().copied().filter(|node| *node != own).collect();
    }
    peers
}

/// Returns whether the peer could be understood.
fn take(shared: &Shared, reply: MapReply) -> bool {
    match shared.server.take(reply) {
        Ok(true) => {
            let keeps_own =
                shared.current.borrow().as_ref().is_some_and(|(place, _)| place.index > 0 && shared.is_voting());
            if let Some(map) = shared.map() {
                shared.network.set_addresses(&map);
                if !keeps_own {
                    shared.current.replace(Some((Place::default(), map)));
                }
                shared.save.notify_one();
            }
            true
        }
        Ok(false) => true,
        Err(error) => {
            tracing::warn!(%error, "a peer sent changes of another map");
            false
        }
    }
}
