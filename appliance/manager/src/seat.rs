//! A node's part in the consensus over its life: with a vote, without one, and from one to the other when the map names other
//! managers.
//!
//! Who becomes a manager asks the leader for a voter's id, listens until it has caught up, and is given its vote. Who is no
//! manager any more is taken out of the consensus by the leader, once all others vote; it finds that in its log, or, if it
//! could not be reached then, by asking when it hears of no leader.

use crate::consensus::Consensus;
use crate::copies::{Copies, Kept, Memory, first_record};
use crate::decide::front;
use crate::driver::{Driver, End};
use crate::follow::follow;
use crate::log::Log;
use crate::propose::{Patience, ask_leader};
use crate::records::{Place, RaftRecord};
use crate::shared::{Input, Role, Shared};
use std::rc::Rc;
use weft_reactor::{Either, select};
use weft_wire::manager::{ManagerReply, ManagerRequest, MapReply, MapRequest};
use weft_wire::map::Map;
use weft_wire::{MapVersion, Service, decode, encode};

/// What a new voter begins with.
struct Vote {
    copies: Copies,
    record: RaftRecord,
    place: Place,
    map: Option<Rc<Map>>,
}

/// What a node's drives remembered of its part.
pub(crate) struct Recalled {
    vote: Option<Vote>,
    generation: u64,
}

/// Shows what is remembered; [`take_part`] goes on from there.
pub(crate) fn recall(shared: &Shared, memory: Memory) -> Recalled {
    match memory {
        Memory::None => Recalled { vote: None, generation: 0 },
        Memory::Kept(kept) => {
            let Kept { copies, record, place, map } = *kept;
            shared.role.set(Role::Follower);
            let map = (place.index > 0).then(|| Rc::new(map));
            if let Some(map) = &map {
                shared.current.replace(Some((place.clone(), map.clone())));
            }
            Recalled { vote: Some(Vote { copies, record, place, map }), generation: 0 }
        }
        Memory::Lost { reason, generation } => {
            shared.role.set(Role::Amnesiac);
            shared.set_waiting(Some(format!("{reason}; waiting for the other managers to give this node a new vote")));
            Recalled { vote: None, generation }
        }
    }
}

/// Takes this node's part for as long as its process lives.
pub(crate) async fn take_part(shared: Rc<Shared>, recalled: Recalled) {
    let Recalled { mut vote, generation } = recalled;
    loop {
        let begun = match vote.take() {
            Some(begun) => begun,
            None => {
                let following = async {
                    follow(shared.clone()).await;
                    std::future::pending::<()>().await;
                };
                match select(following, ask_for_vote(&shared, generation)).await {
                    Either::Right(Some(begun)) => begun,
                    Either::Left(()) | Either::Right(None) => return follow(shared).await,
                }
            }
        };
        match cast(&shared, begun).await {
            Some(End::Dismissed) => tracing::info!("no manager any more"),
            Some(End::AllLost) | None => return follow(shared).await,
        }
    }
}

/// Takes part in the consensus until that ends. `None`: it can't begin.
async fn cast(shared: &Rc<Shared>, vote: Vote) -> Option<End> {
    let Vote { copies, record, place, map } = vote;
    shared.role.set(Role::Follower);
    let log = Log::new(record.hard_state(), record.log().unwrap_or_default(), place, map.clone());
    match Consensus::new(record.voter, record.cluster, log, map, &shared.tunables) {
        Ok(consensus) => {
            let end = Driver::new(shared.clone(), consensus, copies).run().await;
            if end == End::AllLost {
                shared.set_waiting(Some(
                    "every copy of this manager's vote and log failed; replace its drives and start it again".into(),
                ));
            }
            Some(end)
        }
        Err(error) => {
            shared.role.set(Role::None);
            shared.set_waiting(Some(format!("the stored log can't be used: {error}")));
            None
        }
    }
}

/// Waits until the map names this node as a manager, and gets a vote for it that it never had. `None`: no drive takes it.
async fn ask_for_vote(shared: &Rc<Shared>, generation: u64) -> Option<Vote> {
    let node = shared.node.get()?;
    let watch = shared.server.watch();
    let named = |map: &Option<Rc<Map>>| map.as_ref().is_some_and(|map| map.managers.contains(&node));
    let voter = loop {
        if !named(&watch.get()) {
            // What it forgot no longer matters.
            shared.role.set(Role::None);
            shared.set_waiting(None);
        }
        watch.wait_for(named).await;
        let map = shared.map()?;
        let request = ManagerRequest::Rejoin { cluster: map.cluster, node };
        match ask_leader(&shared.network, &shared.handle, &map, None, &request, Patience::default()).await.0 {
            ManagerReply::Rejoin { voter } => break voter,
            ManagerReply::Refused(reason) => {
                shared.set_waiting(Some(format!("the other managers gave no new vote: {reason}")));
                shared.handle.sleep(shared.tunables.retry_most).await;
            }
            _ => {}
        }
    };
    let map = shared.map()?;
    let record = RaftRecord {
        voter,
        generation,
        term: 0,
        commit: 0,
        cut_index: 0,
        cut_term: 0,
        ..first_record(&map, node, &shared.store.drives())
    };
    let place = Place { voter, ..Place::default() };
    let mut copies = Copies::new(shared.store.clone(), record.clone());
    let log = Log::new(record.hard_state(), Vec::new(), place.clone(), None);
    if record.copies.is_empty() || copies.write(&log, None).await.is_err() {
        shared.set_waiting(Some("no drive takes this manager's vote and log".into()));
        return None;
    }
    shared.set_waiting(None);
    Some(Vote { copies, record, place, map: None })
}

/// Asks whether a voter still is one. Who leads now it may not know: someone else's map tells.
pub(crate) async fn find_out(shared: Rc<Shared>, voter: u64) {
    let Some(map) = shared.map() else { return };
    let newer = newer_map(&shared, &map).await;
    if let Some(newer) = &newer {
        // Whoever leads now may have joined while this node was away.
        shared.network.set_addresses(newer);
    }
    let newest = newer.as_ref().unwrap_or(&map);
    let request = ManagerRequest::HasVote { cluster: map.cluster, voter };
    let patience =
        Patience { total: shared.tunables.call_timeout, call: shared.tunables.ask_timeout, ..Patience::default() };
    let (reply, _) = ask_leader(&shared.network, &shared.handle, newest, None, &request, patience).await;
    if reply == (ManagerReply::Vote { has: false }) {
        shared.push(Input::Dismissed(voter));
    }
}

/// A map that any node of the cluster has, if it is newer than this one.
async fn newer_map(shared: &Rc<Shared>, map: &Map) -> Option<Map> {
    let own = shared.node.get()?;
    let peers: Vec<_> = map.nodes.keys().copied().filter(|node| *node != own).collect();
    let start = shared.handle.random_u64() as usize;
    for turn in 0..peers.len() {
        let peer = peers[(start.wrapping_add(turn)) % peers.len()];
        let head = encode(&MapRequest::Get { cluster: Some(map.cluster), have: MapVersion(0), wait_ms: 0 });
        let asked =
            shared.network.ask(front(peer), Service::Map, head, bytes::Bytes::new(), shared.tunables.ask_timeout);
        let reply = asked.await.ok().and_then(|response| decode::<MapReply>(&response.head).ok());
        if let Some(MapReply::Whole(other)) = reply
            && other.cluster == map.cluster
            && other.version > map.version
        {
            return Some(*other);
        }
    }
    None
}
