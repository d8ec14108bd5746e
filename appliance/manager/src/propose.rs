//! Bringing a proposal to the managers' leader, from any node or client.

use crate::decide::front;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::{Handle, Instant};
use weft_transport::rpc::{CallError, Network};
use weft_wire::manager::{ManagerReply, ManagerRequest, Proposal};
use weft_wire::map::Map;
use weft_wire::{NodeId, Service, decode, encode};

/// How a proposer takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// After so long the answer is `NoQuorum`.
    pub total: Duration,
    /// One call may take so long; more than the leader waits for a quorum.
    pub call: Duration,
    pub retry_first: Duration,
    pub retry_most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(10),
            call: Duration::from_secs(4),
            retry_first: Duration::from_millis(50),
            retry_most: Duration::from_secs(1),
        }
    }
}

/// Proposes until the leader of the managers has answered, follows its trail and tries again while there is none.
///
/// `NoQuorum`: nobody answered for as long as `patience` allows. The proposal may have been accepted or may still be, so proposing it again must be
/// harmless: it is for all but `NewClient`, which then leaves an id unused.
pub async fn propose(
    network: &Rc<dyn Network>,
    handle: &Handle,
    map: &Map,
    proposal: Proposal,
    patience: Patience,
) -> ManagerReply {
    let ask = ManagerRequest::Propose { cluster: map.cluster, proposal };
    ask_leader(network, handle, map, None, &ask, patience).await.0
}

/// [`propose`] for any request that only the leader answers. Also says who that was; `hint` is asked first.
pub(crate) async fn ask_leader(
    network: &Rc<dyn Network>,
    handle: &Handle,
    map: &Map,
    hint: Option<NodeId>,
    request: &ManagerRequest,
    patience: Patience,
) -> (ManagerReply, Option<NodeId>) {
    let end = handle.now() + patience.total;
    let head = encode(request);
    let mut pause = patience.retry_first;
    let mut next = hint.filter(|hint| map.nodes.contains_key(hint));
    let mut turn = usize::from(network.local().map(|core| core.node.0).unwrap_or_default());
    let mut asked = 0;
    let mut mismatch = None;
    loop {
        let target = match next.take() {
            Some(node) => node,
            None if map.managers.is_empty() => return (ManagerReply::NoQuorum, None),
            None => {
                turn += 1;
                map.managers[turn % map.managers.len()]
            }
        };
        let call = patience.call.min(left(handle, end));
        let outcome = network.ask(front(target), Service::Manager, head.clone(), bytes::Bytes::new(), call).await;
        match outcome.map(|response| decode::<ManagerReply>(&response.head)) {
            // It may lead until others vote in its place, and be no manager by the map any more.
            Ok(Ok(ManagerReply::NotLeader(Some(leader)))) if leader != target && map.nodes.contains_key(&leader) => {
                next = Some(leader)
            }
            Ok(Ok(ManagerReply::NotLeader(_) | ManagerReply::NoQuorum) | Err(_)) => {}
            Ok(Ok(reply)) => return (reply, Some(target)),
            Err(CallError::VersionMismatch) => mismatch = Some(target),
            Err(_) => {}
        }
        if left(handle, end).is_zero() {
            let text = |node: NodeId| format!("no manager leads, and {node} speaks another version of the protocol");
            return (mismatch.map_or(ManagerReply::NoQuorum, |node| ManagerReply::Refused(text(node))), None);
        }
        asked += 1;
        // A trail is followed at once; a round without a leader is a reason to wait.
        if asked % (map.managers.len() + 1) == 0 || (next.is_none() && map.managers.len() == 1) {
            handle.sleep(pause.min(left(handle, end))).await;
            pause = (pause * 3 / 2).min(patience.retry_most);
        }
    }
}

fn left(handle: &Handle, end: Instant) -> Duration {
    end.since(handle.now())
}
