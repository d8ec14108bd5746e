//! Asks all nodes of the cluster at once.

use crate::connection::{Access, CallError, Endpoint};
use anyhow::{Result, anyhow};
use std::time::Duration;
use weft_wire::NodeId;
use weft_wire::control::{NodeState, Status};

/// Nodes that are asked at the same time.
const ASKED_MAX: usize = 32;

/// What one node said. `entry` is its place in the map, which a node outside a cluster doesn't have.
pub struct Answered {
    pub entry: Option<NodeState>,
    pub endpoint: Endpoint,
    pub status: Result<Status, CallError>,
}

/// The first node and, through its map, all others.
pub struct Gathered {
    pub first: Status,
    /// In the order of the map; the first node among them.
    pub nodes: Vec<Answered>,
}

/// The first node must answer; of the others it is noted if they don't.
pub fn gather(access: &mut Access, timeout: Duration) -> Result<Gathered, CallError> {
    let first = access.status(&access.first, timeout)?;
    let Some(cluster) = &first.cluster else {
        let node = Answered { entry: None, endpoint: access.first.clone(), status: Ok(first.clone()) };
        return Ok(Gathered { first, nodes: vec![node] });
    };
    access.adopt_cluster_token(timeout);
    let access = &*access;
    let ask = |entry: &NodeState| match is_first(&first, entry) {
        true => Answered { entry: Some(entry.clone()), endpoint: access.first.clone(), status: Ok(first.clone()) },
        false => {
            let endpoint = control(entry);
            let status = access.status(&endpoint, timeout);
            Answered { entry: Some(entry.clone()), endpoint, status }
        }
    };
    let nodes = at_once(&cluster.nodes, ask);
    Ok(Gathered { first: first.clone(), nodes })
}

/// The first node's endpoint and those of the others.
pub fn endpoints(access: &Access, first: &Status) -> Vec<(String, Endpoint)> {
    match &first.cluster {
        None => vec![(first.name.clone(), access.first.clone())],
        Some(cluster) => cluster
            .nodes
            .iter()
            .map(|entry| {
                let own = is_first(first, entry);
                (entry.name.clone(), if own { access.first.clone() } else { control(entry) })
            })
            .collect(),
    }
}

pub fn is_first(first: &Status, entry: &NodeState) -> bool {
    first.node == Some(entry.node)
}

fn control(entry: &NodeState) -> Endpoint {
    Endpoint::Tcp(entry.control.to_string())
}

/// Maps all items by threads of their own, a bounded number at a time, and keeps their order.
pub fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let mut results = Vec::with_capacity(items.len());
    for part in items.chunks(ASKED_MAX) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = part.iter().map(|item| scope.spawn(|| work(item))).collect();
            for thread in threads {
                match thread.join() {
                    Ok(result) => results.push(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    results
}

/// The cluster's name for messages, or an error that says how to get one.
pub fn needs_cluster(status: &Status, endpoint: &Endpoint) -> Result<()> {
    match status.cluster {
        Some(_) => Ok(()),
        None => Err(anyhow!(
            "{} ({endpoint}) is in no cluster; it is {}{}. Make one with `weft cluster create`",
            status.name,
            status.phase,
            status.waiting.as_ref().map(|waiting| format!(", {waiting}")).unwrap_or_default()
        )),
    }
}

/// The name of a node, or its number if the map doesn't have it.
pub fn node_name(nodes: &[NodeState], id: NodeId) -> String {
    nodes.iter().find(|node| node.node == id).map_or_else(|| id.to_string(), |node| node.name.clone())
}
