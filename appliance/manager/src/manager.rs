//! One node's manager: forms with the others, starts again after a stop, follows, proposes.

use crate::copies::{Copies, Kept, LoadError, Loaded, Memory, failures, first_place, first_record, load};
use crate::follow::{save, say_alive};
use crate::history::{MapServer, MapWatch};
use crate::log::Log;
use crate::propose::{Patience, ask_leader};
use crate::records::{MapRecord, Place, seal};
use crate::seat::{recall, take_part};
use crate::shared::{Role, Shared};
use crate::store::{ConfigStore, Slot};
use crate::tunables::Tunables;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_placement::MAP_BYTES_MAX;
use weft_reactor::{Handle, Task};
use weft_transport::rpc::Network;
use weft_wire::manager::{ManagerReply, ManagerRequest, Proposal};
use weft_wire::map::Map;
use weft_wire::{Incarnation, MapVersion, NodeId, Service, Uuid, encode};

/// The map that a cluster is formed with.
const FIRST: MapVersion = MapVersion(1);

/// Serves the map and, on managers, votes on it. One for each node, on its first core.
pub struct Manager {
    shared: Rc<Shared>,
    tasks: RefCell<Vec<Task<()>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    #[error("this node is in cluster {0} already; its drives have to be formatted anew before it can join another")]
    OtherCluster(Uuid),
    #[error("the map has no {0}")]
    NoSuchNode(NodeId),
    #[error(
        "the map takes {bytes} bytes, more than the {MAP_BYTES_MAX} that a drive keeps; form the cluster with fewer buckets"
    )]
    TooLarge { bytes: usize },
    #[error("the first map could not be stored: {0}")]
    Store(String),
}

/// Why a life of a node has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Superseded,
    Removed,
}

/// Why a life of a node can't begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The cluster's map no longer has the node.
    #[error("the node was removed from its cluster")]
    Removed,
    #[error("{0}")]
    Refused(String),
}

/// After a refusal, until it has heard of the newest map: it may have been removed while it was away.
const NEWER_MAP_MAX: Duration = Duration::from_secs(5);

/// What `weft status` shows of a node's manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerStatus {
    pub node: Option<NodeId>,
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// Who votes, as far as this voter knows; nobody if it is none.
    pub voters: Vec<NodeId>,
    pub version: MapVersion,
    /// Drives that hold this manager's vote and log.
    pub copies: Vec<Uuid>,
    /// What this node waits for, if it does.
    pub waiting: Option<String>,
}

impl Manager {
    /// Reads what the drives remember, serves the map, and takes the node's part in the consensus. A node without a cluster waits for [`Self::bootstrap`].
    pub async fn start(
        handle: Handle,
        network: Rc<dyn Network>,
        store: Rc<dyn ConfigStore>,
        tunables: Tunables,
    ) -> Result<Rc<Self>, LoadError> {
        let loaded = load(&store).await?;
        let shared = Shared::new(handle, network, store, tunables);
        shared.server.serve(&*shared.network);
        shared.network.serve(Service::Manager, shared.handler());
        let manager = Rc::new(Self { shared, tasks: RefCell::default() });
        if let Some(loaded) = loaded {
            manager.begin(loaded);
        }
        Ok(manager)
    }

    /// Makes this node, as `node`, part of a new cluster. Every node of the cluster is given the same map; a second time does nothing.
    ///
    /// The map's incarnations are nobody's: call [`Self::node_started`] next.
    pub async fn bootstrap(&self, node: NodeId, map: Map) -> Result<(), BootstrapError> {
        if let Some(present) = self.map() {
            return match present.cluster == map.cluster {
                true => Ok(()),
                false => Err(BootstrapError::OtherCluster(present.cluster)),
            };
        }
        if !map.nodes.contains_key(&node) {
            return Err(BootstrapError::NoSuchNode(node));
        }
        let bytes = encode(&map).len();
        if bytes > MAP_BYTES_MAX {
            return Err(BootstrapError::TooLarge { bytes });
        }
        let store = &self.shared.store;
        let drives = store.drives();
        let place = first_place(&map, node);
        let record = MapRecord { node, place: place.clone(), map: map.clone() };
        let failed = |failed: Vec<(Uuid, crate::StoreError)>| match failed.first() {
            Some((drive, error)) => Err(BootstrapError::Store(format!("drive {drive}: {error}"))),
            None => Ok(()),
        };
        let mut memory = Memory::None;
        // Who joins later gets its vote from the others.
        if map.managers.contains(&node) && map.version == FIRST {
            if drives.is_empty() {
                return Err(BootstrapError::Store("a manager needs a drive for its vote and log".into()));
            }
            let first = first_record(&map, node, &drives);
            let mut copies = Copies::new(store.clone(), first.clone());
            let log = Log::new(first.hard_state(), Vec::new(), place.clone(), Some(Rc::new(map.clone())));
            if copies.write(&log, None).await.is_err() {
                return Err(BootstrapError::Store("no drive takes this manager's vote and log".into()));
            }
            memory = Memory::Kept(Box::new(Kept { copies, record: first, place, map }));
        }
        // The map comes last: a node that has one is in the cluster, with everything that belongs to it.
        failed(failures(store, &drives, Slot::Map, &seal(&record)).await)?;
        if self.map().is_none() {
            self.begin(Loaded { map: record, memory });
        }
        Ok(())
    }

    fn begin(&self, loaded: Loaded) {
        let shared = &self.shared;
        let map = Rc::new(loaded.map.map);
        shared.node.set(Some(loaded.map.node));
        shared.take_map(Place::default(), map.clone(), Vec::new());
        self.spawn("manager: save", save(shared.clone()));
        self.spawn("manager: alive", say_alive(shared.clone()));
        let recalled = recall(shared, loaded.memory);
        self.spawn("manager", take_part(shared.clone(), recalled));
    }

    fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(self.shared.handle.spawn(name, future));
    }

    /// The newest map that this node knows.
    pub fn map(&self) -> Option<Rc<Map>> {
        self.shared.map()
    }

    /// For everyone on this core who acts on changes of the map.
    pub fn watch(&self) -> MapWatch {
        self.shared.server.watch()
    }

    pub fn server(&self) -> Rc<MapServer> {
        self.shared.server.clone()
    }

    pub fn node(&self) -> Option<NodeId> {
        self.shared.node.get()
    }

    pub fn status(&self) -> ManagerStatus {
        let shared = &self.shared;
        ManagerStatus {
            node: shared.node.get(),
            role: shared.role.get(),
            leader: shared.leader.get(),
            term: shared.term.get(),
            voters: shared.voters.borrow().clone(),
            version: shared.server.version(),
            copies: shared.copies.borrow().clone(),
            waiting: shared.waiting.borrow().clone(),
        }
    }

    /// Proposes to the managers' leader wherever it is. See [`crate::propose()`].
    pub async fn propose(&self, proposal: Proposal, patience: Patience) -> ManagerReply {
        let Some(map) = self.map() else {
            return ManagerReply::Refused("this node is in no cluster yet".into());
        };
        let (shared, ask) = (&self.shared, ManagerRequest::Propose { cluster: map.cluster, proposal });
        ask_leader(&shared.network, &shared.handle, &map, shared.leader.get(), &ask, patience).await.0
    }

    /// Has this life of the node admitted: a new incarnation, and new epochs for what it leads. Tries until a majority of the managers agrees, which
    /// after a loss of power takes until that many nodes are back; meanwhile [`Self::status`] says what it waits for.
    ///
    /// Returns when this node's own map shows the new incarnation. What it leads may be served from then on, and only as that incarnation.
    pub async fn node_started(&self, cores: Vec<SocketAddr>, control: SocketAddr) -> Result<Incarnation, NotAdmitted> {
        let shared = &self.shared;
        loop {
            let (Some(node), Some(map)) = (shared.node.get(), shared.map()) else {
                shared.set_waiting(Some("this node is in no cluster yet".into()));
                self.watch().changed().await;
                continue;
            };
            if !map.nodes.contains_key(&node) {
                return Err(NotAdmitted::Removed);
            }
            let proposal = Proposal::NodeStarted { node, cores: cores.clone(), control };
            match self.propose(proposal, Patience::default()).await {
                ManagerReply::Committed { version, incarnation, .. } => {
                    self.watch().wait_for(|map| map.as_ref().is_some_and(|map| map.version >= version)).await;
                    shared.incarnation.set(Some(incarnation));
                    shared.set_waiting(None);
                    return Ok(incarnation);
                }
                ManagerReply::Refused(reason) => {
                    shared.set_waiting(Some(reason.clone()));
                    // Who refuses may know less than others: only a map that no longer has the node says that it is gone for good.
                    let watch = self.watch();
                    let gone = watch.wait_for(|map| map.as_ref().is_some_and(|map| !map.nodes.contains_key(&node)));
                    let waited = shared.handle.timeout(NEWER_MAP_MAX, gone).await;
                    return Err(waited.map_or(NotAdmitted::Refused(reason), |_| NotAdmitted::Removed));
                }
                _ => shared.set_waiting(Some(no_quorum(&map))),
            }
        }
    }

    /// A life of a node has ended, its supervisor says.
    pub fn died(&self, node: NodeId, incarnation: Incarnation) {
        self.shared.tell_death(node, incarnation);
    }

    /// A node gave no answer: whoever looks after it asks it.
    pub fn suspect(&self, node: NodeId) {
        self.shared.suspect(node);
    }

    /// Returns when the life that was admitted here has to end, because the map names a later one, or no such node.
    pub async fn ended(&self) -> Ended {
        let shared = &self.shared;
        let ended = |map: &Map| {
            let (node, own) = (shared.node.get()?, shared.incarnation.get()?);
            match map.nodes.get(&node) {
                None => Some(Ended::Removed),
                Some(node) => (node.incarnation > own).then_some(Ended::Superseded),
            }
        };
        let watch = self.watch();
        loop {
            if let Some(ended) = watch.get().as_deref().and_then(ended) {
                return ended;
            }
            watch.changed().await;
        }
    }

    /// Stops at once, as a crash would.
    pub fn stop(&self) {
        self.tasks.borrow_mut().drain(..).for_each(|task| task.abort());
        self.shared.role.set(Role::None);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.stop();
    }
}

fn no_quorum(map: &Map) -> String {
    let names: Vec<&str> =
        map.managers.iter().filter_map(|id| map.nodes.get(id)).map(|node| node.name.as_str()).collect();
    format!(
        "no majority of the managers answers: {} of {} are needed ({}); start more of them",
        map.managers.len() / 2 + 1,
        map.managers.len(),
        names.join(", ")
    )
}
