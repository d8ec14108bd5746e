//! Telling the managers of a node that doesn't listen: a client may be the first to notice, and the only one that asks the
//! node anything. They look for themselves.

use crate::client::Client;
use crate::tunables::{REPORT_EVERY, REPORT_TIMEOUT};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use weft_reactor::Instant;
use weft_wire::manager::ManagerRequest;
use weft_wire::{CoreId, NodeId, Service, encode};

/// When nodes were last reported. One entry for each node of the map at most.
#[derive(Default)]
pub(crate) struct Reports(RefCell<BTreeMap<NodeId, Instant>>);

impl Client {
    /// Nobody listens where the map says that the node is.
    pub(crate) fn report(&self, node: NodeId) {
        let Some(map) = self.follower.map().filter(|map| map.nodes.contains_key(&node)) else { return };
        let now = self.handle.now();
        let mut reports = self.reports.0.borrow_mut();
        if reports.get(&node).is_some_and(|at| now.since(*at) < REPORT_EVERY) {
            return;
        }
        reports.retain(|node, _| map.nodes.contains_key(node));
        reports.insert(node, now);
        let head = encode(&ManagerRequest::Suspect { cluster: map.cluster, node });
        for manager in map.managers.iter().filter(|manager| **manager != node) {
            let to = CoreId { node: *manager, core: 0 };
            let call = self.network.call(to, Service::Manager, head.clone(), Bytes::new(), REPORT_TIMEOUT);
            let told = self.handle.spawn("report a node", async move {
                // Whether it arrived changes nothing here.
                let _ = call.await;
            });
            told.detach();
        }
    }
}
