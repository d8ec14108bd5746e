//! One node's manager: forms with the others, starts again after a stop, follows, proposes.

use crate::consensus::Consensus;
use crate::copies::{Copies, Kept, LoadError, Loaded, Memory, failures, first_place, first_record, load};
use crate::driver::Driver;
use crate::follow::{follow, save, say_alive};
use crate::history::{MapServer, MapWatch};
use crate::log::Log;
use crate::propose::{Patience, ask_leader};
use crate::records::{MapRecord, Place, RaftRecord, seal};
use crate::shared::{Role, Shared};
use crate::store::{ConfigStore, Slot};
use crate::tunables::{MAP_BYTES_MAX, Tunables};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use weft_reactor::{Handle, Task};
use weft_transport::rpc::Network;
use weft_wire::manager::{ManagerReply, ManagerRequest, Proposal};
use weft_wire::map::Map;
use weft_wire::{Incarnation, MapVersion, NodeId, Service, Uuid, encode};

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

/// What `weft status` shows of a node's manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagerStatus {
    pub node: Option<NodeId>,
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: u64,
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
        if map.managers.contains(&node) {
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
        match loaded.memory {
            Memory::None => self.spawn("manager: follow", follow(shared.clone())),
            Memory::Kept(kept) => {
                let Kept { copies, record, place, map } = *kept;
                shared.role.set(Role::Follower);
                let started = (place.index > 0).then(|| Rc::new(map));
                if let Some(map) = &started {
                    shared.current.replace(Some((place.clone(), map.clone())));
                }
                self.spawn("manager", vote(shared.clone(), copies, record, place, started));
            }
            Memory::Lost { reason, generation } => {
                shared.role.set(Role::Amnesiac);
                shared.set_waiting(Some(format!(
                    "{reason}; waiting for the other managers to give this node a new vote"
                )));
                self.spawn("manager: follow", follow(shared.clone()));
                self.spawn("manager", rejoin(shared.clone(), generation));
            }
        }
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
    /// after a loss of power takes until that many nodes are back; meanwhile [`Self::status`] says what it waits for. `Err`: refused, with the reason.
    ///
    /// Returns when this node's own map shows the new incarnation. What it leads may be served from then on, and only as that incarnation.
    pub async fn node_started(&self, cores: Vec<SocketAddr>, control: SocketAddr) -> Result<Incarnation, String> {
        let shared = &self.shared;
        loop {
            let (Some(node), Some(map)) = (shared.node.get(), shared.map()) else {
                shared.set_waiting(Some("this node is in no cluster yet".into()));
                self.watch().changed().await;
                continue;
            };
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
                    return Err(reason);
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

    /// Returns when the map names a later life of this node than the one that was admitted here: this one has to end.
    pub async fn superseded(&self) {
        let shared = &self.shared;
        self.watch()
            .wait_for(|map| {
                let known =
                    map.as_ref().and_then(|map| map.nodes.get(&shared.node.get()?).map(|node| node.incarnation));
                matches!((shared.incarnation.get(), known), (Some(own), Some(known)) if known > own)
            })
            .await;
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

/// Takes part in the consensus; without any copy left, follows.
async fn vote(shared: Rc<Shared>, copies: Copies, record: RaftRecord, place: Place, map: Option<Rc<Map>>) {
    let log = Log::new(record.hard_state(), record.log().unwrap_or_default(), place, map.clone());
    match Consensus::new(record.voter, record.cluster, log, map, &shared.tunables) {
        Ok(consensus) => {
            let _all_lost = Driver::new(shared.clone(), consensus, copies).run().await;
            shared.set_waiting(Some(
                "every copy of this manager's vote and log failed; replace its drives and start it again".into(),
            ));
        }
        Err(error) => shared.set_waiting(Some(format!("the stored log can't be used: {error}"))),
    }
    follow(shared).await;
}

/// Gets a new vote for a node that forgot what it promised under the old one.
async fn rejoin(shared: Rc<Shared>, generation: u64) {
    let voter = loop {
        let (Some(node), Some(map)) = (shared.node.get(), shared.map()) else { return };
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
    let (Some(node), Some(map)) = (shared.node.get(), shared.map()) else { return };
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
        return shared.set_waiting(Some("no drive takes this manager's vote and log".into()));
    }
    shared.set_waiting(None);
    vote(shared, copies, record, place, None).await;
}
