//! Keeping the newest map: asks nodes, which answer when there is something newer.
//!
//! One at a time until there is a map; then P+1 at a time, so that the news of a death comes from a node that lives even if P
//! have just stopped answering.

use crate::tunables::{MAP_CALL_TIMEOUT, MAP_PAUSE, MAP_PAUSE_MOST, MAP_WAIT};
use bytes::Bytes;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::{Notify, Watch};
use weft_reactor::{Either, Handle, Task, join_all, select};
use weft_transport::rpc::{CallError, Network, Response};
use weft_wire::manager::{MapReply, MapRequest};
use weft_wire::map::Map;
use weft_wire::{MapVersion, Service, Uuid, decode, encode};

/// The newest map, for as long as this lives.
pub(crate) struct Follower {
    shared: Rc<Shared>,
    task: Task<()>,
}

struct Shared {
    network: Rc<dyn Network>,
    handle: Handle,
    /// Where the next one to be asked is looked for.
    turn: Cell<usize>,
    /// Where to ask as long as the map names nobody, or nobody whom it names answers.
    bootstrap: Vec<SocketAddr>,
    map: Watch<Option<Rc<Map>>>,
    stale: Notify,
    /// Who knows better.
    hint: Cell<Option<SocketAddr>>,
}

enum News {
    Newer,
    Nothing,
    /// The node is of no use now.
    Useless,
}

impl Follower {
    pub fn start(network: Rc<dyn Network>, handle: Handle, bootstrap: Vec<SocketAddr>) -> Self {
        let shared = Rc::new(Shared {
            network,
            handle: handle.clone(),
            turn: Cell::new(handle.random_u64() as usize),
            bootstrap,
            map: Watch::new(None),
            stale: Notify::new(),
            hint: Cell::new(None),
        });
        let task = handle.spawn("follow the map", Rc::clone(&shared).follow());
        Self { shared, task }
    }

    pub fn map(&self) -> Option<Rc<Map>> {
        self.shared.map.get()
    }

    pub fn watch(&self) -> Watch<Option<Rc<Map>>> {
        self.shared.map.clone()
    }

    /// The map seems to be out of date: ask now, first of all at `hint`.
    pub fn refresh(&self, hint: Option<SocketAddr>) {
        if hint.is_some() {
            self.shared.hint.set(hint);
        }
        self.shared.stale.notify_one();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn follow(self: Rc<Self>) {
        let mut pause = MAP_PAUSE;
        while self.map.with(Option::is_none) {
            let Some(target) = self.target() else { return };
            if let News::Useless = self.ask(target, Duration::ZERO).await {
                self.handle.sleep(pause).await;
                pause = (pause * 2).min(MAP_PAUSE_MOST);
            }
        }
        let count = self.map.with(|map| map.as_ref().map_or(1, |map| map.protection.acknowledge()));
        let askers = (0..count).map(|nth| Rc::clone(&self).keep_asking(nth == 0));
        join_all(askers).await;
    }

    /// `hastes`: lets go of a question that is held when the map is known to be out of date.
    async fn keep_asking(self: Rc<Self>, hastes: bool) {
        let mut pause = MAP_PAUSE;
        let mut wait = MAP_WAIT;
        let Some(mut target) = self.target() else { return };
        loop {
            let call = self.ask(target, wait);
            let news = match hastes {
                false => call.await,
                true => match select(call, self.stale.notified()).await {
                    Either::Left(news) => news,
                    Either::Right(()) => {
                        // Someone met a node that knows better than the one that is asked here.
                        let Some(next) = self.target() else { return };
                        (target, wait) = (next, Duration::ZERO);
                        self.handle.sleep(MAP_PAUSE).await;
                        continue;
                    }
                },
            };
            match news {
                News::Newer | News::Nothing => {
                    pause = MAP_PAUSE;
                    wait = MAP_WAIT;
                    // A node that holds too many such requests answers at once.
                    self.handle.sleep(MAP_PAUSE).await;
                }
                News::Useless => {
                    let Some(next) = self.target() else { return };
                    target = next;
                    self.handle.sleep(pause).await;
                    pause = (pause * 2).min(MAP_PAUSE_MOST);
                }
            }
        }
    }

    async fn ask(&self, target: SocketAddr, wait: Duration) -> News {
        let have = self.map.with(|map| map.as_ref().map_or(MapVersion(0), |map| map.version));
        let cluster = self.map.with(|map| map.as_ref().map(|map| map.cluster));
        let head = encode(&MapRequest::Get { cluster, have, wait_ms: wait.as_millis() as u32 });
        let answer = self.network.ask_addr(target, Service::Map, head, Bytes::new(), wait + MAP_CALL_TIMEOUT).await;
        self.take(target, answer)
    }

    /// The next one to ask: who knows better, or the next in turn.
    fn target(&self) -> Option<SocketAddr> {
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        if let Some(hint) = self.hint.take() {
            return Some(hint);
        }
        let mut targets: Vec<SocketAddr> = self.map.with(|map| {
            let nodes = map.iter().flat_map(|map| map.nodes.values());
            nodes.filter_map(|node| node.cores.first().copied()).collect()
        });
        targets.extend(self.bootstrap.iter().filter(|address| !targets.contains(address)).collect::<Vec<_>>());
        targets.get(turn.checked_rem(targets.len())?).copied()
    }

    fn take(&self, from: SocketAddr, outcome: Result<Response, CallError>) -> News {
        let response = match outcome {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%from, %error, "no map");
                return News::Useless;
            }
        };
        let map = self.map.get();
        match decode::<MapReply>(&response.head) {
            Ok(MapReply::Whole(newer)) => self.take_whole(from, map.as_deref(), *newer),
            Ok(MapReply::Deltas(deltas)) => {
                let Some(map) = map else { return News::Useless };
                let mut newer = (*map).clone();
                for delta in deltas.iter().filter(|delta| delta.version > map.version) {
                    if let Err(error) = newer.apply(delta) {
                        tracing::warn!(%from, %error, "a change of the map doesn't fit");
                        return News::Useless;
                    }
                }
                if newer.version == map.version {
                    return News::Nothing;
                }
                self.install(newer)
            }
            Ok(MapReply::None) | Err(_) => News::Useless,
        }
    }

    fn take_whole(&self, from: SocketAddr, map: Option<&Map>, newer: Map) -> News {
        match map {
            Some(map) if map.cluster != newer.cluster => {
                let ours: Uuid = map.cluster;
                tracing::warn!(%from, %ours, theirs = %newer.cluster, "the node is of another cluster");
                News::Useless
            }
            Some(map) if map.version >= newer.version => News::Nothing,
            _ => self.install(newer),
        }
    }

    fn install(&self, map: Map) -> News {
        tracing::debug!(version = %map.version, "newer map");
        self.network.set_addresses(&map);
        self.map.set(Some(Rc::new(map)));
        News::Newer
    }
}
