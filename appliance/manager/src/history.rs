//! The newest map of a node and how it came about, for whoever asks: other nodes that follow it, and clients.

use crate::tunables::{HISTORY_BYTES_MAX, HISTORY_MAX, WAIT_MAX, WAITING_MAX};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::Handle;
use weft_reactor::sync::Watch;
use weft_transport::rpc::{Handler, Network, Request, Response, handler};
use weft_wire::manager::{MapReply, MapRequest};
use weft_wire::map::{ApplyError, Delta, Map};
use weft_wire::{MapVersion, Service, decode, encode};

/// The newest map that this node knows; `None` before it is part of a cluster.
pub type MapWatch = Watch<Option<Rc<Map>>>;

/// Holds the map and serves it. Each core of a node may have one; [`MapServer::publish`] feeds it.
pub struct MapServer {
    handle: Handle,
    watch: MapWatch,
    /// The last deltas with their encoded sizes, ending at the map's version.
    history: RefCell<VecDeque<(Delta, usize)>>,
    history_bytes: Cell<usize>,
    waiting: Cell<usize>,
}

impl MapServer {
    pub fn new(handle: Handle) -> Rc<Self> {
        Rc::new(Self {
            handle,
            watch: Watch::new(None),
            history: RefCell::default(),
            history_bytes: Cell::new(0),
            waiting: Cell::new(0),
        })
    }

    pub fn watch(&self) -> MapWatch {
        self.watch.clone()
    }

    pub fn map(&self) -> Option<Rc<Map>> {
        self.watch.get()
    }

    pub fn version(&self) -> MapVersion {
        self.watch.with(|map| map.as_ref().map(|map| map.version).unwrap_or_default())
    }

    /// Takes a newer map; `deltas` are the steps to it from the present one, if they are known. An older one is ignored.
    pub fn publish(&self, map: Rc<Map>, deltas: Vec<Delta>) {
        if map.version <= self.version() {
            return;
        }
        let follows = deltas.first().is_some_and(|first| first.version.0 == self.version().0 + 1)
            && deltas.last().is_some_and(|last| last.version == map.version);
        {
            let mut history = self.history.borrow_mut();
            if !follows {
                history.clear();
                self.history_bytes.set(0);
            } else {
                for delta in deltas {
                    let bytes = encode(&delta).len();
                    self.history_bytes.set(self.history_bytes.get() + bytes);
                    history.push_back((delta, bytes));
                }
                while history.len() > HISTORY_MAX || self.history_bytes.get() > HISTORY_BYTES_MAX {
                    let Some((_, bytes)) = history.pop_front() else { break };
                    self.history_bytes.set(self.history_bytes.get() - bytes);
                }
            }
        }
        self.watch.set(Some(map));
    }

    /// Takes what [`MapRequest::Get`] was answered with. Returns whether the map is newer now.
    pub fn take(&self, reply: MapReply) -> Result<bool, ApplyError> {
        let before = self.version();
        match reply {
            MapReply::None => {}
            MapReply::Whole(map) => self.publish(Rc::from(map), Vec::new()),
            MapReply::Deltas(deltas) => {
                let Some(map) = self.map() else { return Ok(false) };
                let mut next = Map::clone(&map);
                let newer: Vec<Delta> = deltas.into_iter().filter(|delta| delta.version > next.version).collect();
                for delta in &newer {
                    next.apply(delta)?;
                }
                self.publish(Rc::new(next), newer);
            }
        }
        Ok(self.version() > before)
    }

    /// Answers on `network` whoever asks for the map.
    pub fn serve(self: &Rc<Self>, network: &dyn Network) {
        network.serve(Service::Map, self.handler());
    }

    fn handler(self: &Rc<Self>) -> Handler {
        let server = Rc::downgrade(self);
        handler(move |request: Request| {
            let server = server.upgrade();
            async move {
                let reply = match (server, decode::<MapRequest>(&request.head)) {
                    (Some(server), Ok(MapRequest::Get { cluster, have, wait_ms })) => {
                        match cluster.is_none_or(|cluster| server.map().is_some_and(|map| map.cluster == cluster)) {
                            true => server.get(have, wait_ms).await,
                            false => MapReply::None,
                        }
                    }
                    _ => MapReply::None,
                };
                Response { head: encode(&reply), body: bytes::Bytes::new() }
            }
        })
    }

    async fn get(&self, have: MapVersion, wait_ms: u32) -> MapReply {
        let wait = Duration::from_millis(u64::from(wait_ms)).min(WAIT_MAX);
        if self.version() <= have && !wait.is_zero() && self.waiting.get() < WAITING_MAX {
            let _one_more = Waiting::new(&self.waiting);
            let newer = self.watch.wait_for(|map| map.as_ref().is_some_and(|map| map.version > have));
            // Either way the answer is what there is now.
            let _ = self.handle.timeout(wait, newer).await;
        }
        self.reply(have)
    }

    fn reply(&self, have: MapVersion) -> MapReply {
        let Some(map) = self.map() else { return MapReply::None };
        if map.version <= have {
            return MapReply::Deltas(Vec::new());
        }
        let history = self.history.borrow();
        let reaches = history.front().is_some_and(|(oldest, _)| oldest.version.0 <= have.0 + 1);
        if !reaches {
            return MapReply::Whole(Box::new(Map::clone(&map)));
        }
        MapReply::Deltas(
            history.iter().filter(|(delta, _)| delta.version > have).map(|(delta, _)| delta.clone()).collect(),
        )
    }
}

/// Counts itself for as long as it lives.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
