//! One life of a node: from its drives to serving buckets. The same on real hardware and in the simulator, which hand in
//! other drives, networks and clocks.

use crate::drives::{self, Device, DriveStore, DrivesError, Found, NodeDrive};
use crate::folds;
use crate::lead::{LeadState, Leads, Propose, Tunables};
use crate::passes::{PassOptions, Passes};
use crate::report::{bucket_stats, cluster_status};
use crate::watch;
use crate::word::Word;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::{DriveOptions, DriveServer, DriveService, FormattedDrive};
use weft_manager::{ConfigStore, Ended, Manager, MapWatch, NotAdmitted, Patience, Slot};
use weft_reactor::Handle;
use weft_reactor::sync::mpsc;
use weft_transport::rpc::Network;
use weft_wire::control::{
    Answer, BucketState, Command, Description, DriveDescription, DriveState, Event, ManagerState, Status,
};
use weft_wire::manager::{ManagerReply, Proposal};
use weft_wire::map::{FilesystemState, Map};
use weft_wire::{CoreId, Incarnation, NodeId};

/// Events that a node remembers.
const EVENTS_MAX: usize = 256;
/// For how long a node that stops stays to see its last word off.
const GOODBYE: Duration = Duration::from_millis(30);
/// For how long a node that was removed stays to answer who asked for that.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Commands that wait for the node.
const FORMS_MAX: usize = 4;

pub struct NodeParams {
    pub name: String,
    pub domain: Option<String>,
    pub cores: Vec<SocketAddr>,
    pub control: SocketAddr,
    pub devices: Vec<Device>,
    pub manager: weft_manager::Tunables,
    pub lead: Tunables,
    pub drive: DriveOptions,
    pub passes: PassOptions,
}

/// Makes the network of a core, once it is known which core it is.
pub type MakeNetwork = Box<dyn FnOnce(CoreId) -> Result<Rc<dyn Network>, String>>;

/// Why a life ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeEnd {
    #[error("asked to stop")]
    Stopped,
    /// The managers admitted another process as this node.
    #[error("another process runs as this node: stop one of them")]
    Superseded,
    #[error("the node was removed from its cluster; wipe its drives to use them for something else")]
    Removed,
    #[error(transparent)]
    Drives(#[from] DrivesError),
    #[error("{0}")]
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    OpeningDrives,
    /// In no cluster: `weft cluster create` is awaited.
    Unclaimed,
    /// Waits for the managers to admit it.
    Joining,
    Serving,
    Stopping,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::OpeningDrives => "opening drives",
            Self::Unclaimed => "unclaimed",
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
        }
    }
}

type FormRequest = (Box<Map>, weft_reactor::sync::Completer<Result<(), String>>);

pub struct Node {
    pub(crate) handle: Handle,
    params: NodeParams,
    phase: Cell<Phase>,
    pub(crate) drives: RefCell<Vec<NodeDrive>>,
    pub(crate) store: RefCell<Option<Rc<DriveStore>>>,
    pub(crate) manager: RefCell<Option<Rc<Manager>>>,
    leads: RefCell<Option<Leads>>,
    passes: RefCell<Option<Passes>>,
    service: DriveService,
    pub(crate) incarnation: Cell<Option<Incarnation>>,
    forms: (mpsc::Sender<FormRequest>, RefCell<Option<mpsc::Receiver<FormRequest>>>),
    events: RefCell<VecDeque<Event>>,
    stop: weft_reactor::sync::Notify,
}

impl Node {
    pub fn new(handle: Handle, params: NodeParams) -> Rc<Self> {
        let (sender, receiver) = mpsc::bounded(FORMS_MAX);
        Rc::new(Self {
            handle,
            params,
            phase: Cell::new(Phase::OpeningDrives),
            drives: RefCell::default(),
            store: RefCell::default(),
            manager: RefCell::default(),
            leads: RefCell::default(),
            passes: RefCell::default(),
            service: DriveService::new(),
            incarnation: Cell::new(None),
            forms: (sender, RefCell::new(Some(receiver))),
            events: RefCell::default(),
            stop: Default::default(),
        })
    }

    pub(crate) fn event(&self, level: &str, text: String) {
        tracing::info!(level, "{text}");
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(Event { time_ns: self.handle.wall_ns(), level: level.into(), text });
    }

    /// Lives until asked to stop or something ends it.
    pub async fn run(self: Rc<Self>, make_network: MakeNetwork) -> NodeEnd {
        let life = Rc::clone(&self);
        let lived = weft_reactor::select(life.live(make_network), self.stop.notified()).await;
        match lived {
            weft_reactor::Either::Left(Ok(end)) => end,
            weft_reactor::Either::Left(Err(end)) => end,
            weft_reactor::Either::Right(()) => {
                self.phase.set(Phase::Stopping);
                let leads = self.leads.borrow().clone();
                if let Some(leads) = leads {
                    leads.finish().await;
                }
                self.say_goodbye().await;
                NodeEnd::Stopped
            }
        }
    }

    /// Orderly: buckets are checkpointed, then [`Node::run`] returns.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Nobody need find out that this life is over.
    async fn say_goodbye(&self) {
        let manager = self.manager.borrow().clone();
        let (Some(manager), Some(incarnation)) = (manager, self.incarnation.get()) else { return };
        if let Some(node) = manager.node() {
            manager.died(node, incarnation);
            self.handle.sleep(GOODBYE).await;
        }
    }

    async fn live(self: Rc<Self>, make_network: MakeNetwork) -> Result<NodeEnd, NodeEnd> {
        let mut found = drives::open(self.params.devices.clone(), &self.handle).await;
        let identity = drives::identity(&found)?;
        let store = DriveStore::new(self.handle.clone(), &found);
        let has_map = match has_map(&store).await {
            Ok(has_map) => has_map,
            Err(error) => return Err(NodeEnd::Failed(error)),
        };
        if identity.is_some() && !has_map && !found.iter().any(|drive| matches!(drive.found, Found::Formatted(_))) {
            return Err(NodeEnd::Failed("no drive of this node has a map of its cluster".into()));
        }
        let (manager, network, node) = match identity.filter(|_| has_map) {
            Some((_, node)) => {
                *self.drives.borrow_mut() = found;
                let network = make_network(core(node)).map_err(NodeEnd::Failed)?;
                (self.start_manager(Rc::clone(&network), store).await?, network, node)
            }
            None => {
                *self.drives.borrow_mut() = std::mem::take(&mut found);
                self.phase.set(Phase::Unclaimed);
                self.event("info", "in no cluster yet: waiting for `weft cluster create`".into());
                self.be_formed(make_network).await?
            }
        };
        if let Some(map) = manager.map() {
            network.set_addresses(&map);
        }
        *self.manager.borrow_mut() = Some(Rc::clone(&manager));
        self.phase.set(Phase::Joining);
        let admitted = manager.node_started(self.params.cores.clone(), self.params.control).await;
        let incarnation = admitted.map_err(|not| match not {
            NotAdmitted::Removed => NodeEnd::Removed,
            NotAdmitted::Refused(reason) => NodeEnd::Failed(reason),
        })?;
        self.incarnation.set(Some(incarnation));
        let looks = Rc::downgrade(&manager);
        network.watch_refusals(Rc::new(move |core| {
            if let Some(manager) = looks.upgrade() {
                manager.suspect(core.node);
            }
        }));
        self.serve_drives(&*network, incarnation);
        let propose: Propose = {
            let (manager, handle) = (Rc::clone(&manager), self.handle.clone());
            Rc::new(move |proposal: Proposal| {
                let manager = Rc::clone(&manager);
                let proposing = async move {
                    let reply = manager.propose(proposal.clone(), Patience::default()).await;
                    if !matches!(reply, ManagerReply::Committed { .. } | ManagerReply::Ok) {
                        tracing::warn!(?proposal, ?reply, "a proposal was not accepted");
                    }
                };
                handle.spawn("propose", proposing).detach();
            })
        };
        let report = {
            let propose = Rc::clone(&propose);
            Rc::new(move |drive| propose(Proposal::DriveFailed { node, incarnation, drive }))
        };
        let watching = watch::drives(self.service.clone(), node, self.handle.clone(), manager.watch(), report);
        self.handle.spawn("watch drives", watching).detach();
        self.watch_folds(node, &manager);
        let leads = Leads::start(
            core(node),
            incarnation,
            network,
            self.handle.clone(),
            manager.watch(),
            propose,
            self.params.lead,
        );
        *self.leads.borrow_mut() = Some(leads);
        self.start_passes();
        self.phase.set(Phase::Serving);
        self.event("info", format!("{} serves as {node}, {incarnation}", self.params.name));
        self.ready_drives();
        Ok(match manager.ended().await {
            Ended::Superseded => NodeEnd::Superseded,
            Ended::Removed => {
                // Whoever ordered that may have asked this node.
                self.handle.sleep(LAST_WORD).await;
                NodeEnd::Removed
            }
        })
    }

    fn watch_folds(self: &Rc<Self>, node: NodeId, manager: &Manager) {
        let told = Rc::downgrade(self);
        let tell = move |level: &str, text: String| {
            if let Some(node) = told.upgrade() {
                node.event(level, text);
            }
        };
        self.handle.spawn("watch folds", folds::watch(node, manager.watch(), tell)).detach();
    }

    fn start_passes(self: &Rc<Self>) {
        let (told, led) = (Rc::downgrade(self), Rc::downgrade(self));
        let tell = Rc::new(move |level: &str, text: String| {
            if let Some(node) = told.upgrade() {
                node.event(level, text);
            }
        });
        let led = Rc::new(move || led.upgrade().map(|node| node.buckets()).unwrap_or_default());
        let passes = Passes::start(self.handle.clone(), self.params.passes, led, tell);
        *self.passes.borrow_mut() = Some(passes);
    }

    async fn start_manager(&self, network: Rc<dyn Network>, store: Rc<DriveStore>) -> Result<Rc<Manager>, NodeEnd> {
        *self.store.borrow_mut() = Some(Rc::clone(&store));
        Manager::start(self.handle.clone(), network, store, self.params.manager)
            .await
            .map_err(|error| NodeEnd::Failed(format!("the node's drives can't tell what it was: {error}")))
    }

    /// Waits for a map that names this node, formats the drives and takes its place.
    async fn be_formed(&self, make_network: MakeNetwork) -> Result<(Rc<Manager>, Rc<dyn Network>, NodeId), NodeEnd> {
        let Some(mut forms) = self.forms.1.borrow_mut().take() else {
            return Err(NodeEnd::Failed("the node was started twice".into()));
        };
        let (map, node, answer) = loop {
            let Some((map, answer)) = forms.recv().await else {
                return Err(NodeEnd::Stopped);
            };
            match map.nodes.values().find(|node| node.name == self.params.name).map(|node| node.id) {
                Some(node) => break (map, node, answer),
                None => answer.complete(Err(format!("the map has no node named {}", self.params.name))),
            }
        };
        let mut drives = std::mem::take(&mut *self.drives.borrow_mut());
        let formatted = drives::format(&mut drives, &map, node).await;
        let store = DriveStore::new(self.handle.clone(), &drives);
        *self.drives.borrow_mut() = drives;
        if let Err(error) = formatted {
            answer.complete(Err(error.to_string()));
            return Err(error.into());
        }
        let network = match make_network(core(node)) {
            Ok(network) => network,
            Err(error) => {
                answer.complete(Err(error.clone()));
                return Err(NodeEnd::Failed(error));
            }
        };
        network.set_addresses(&map);
        let manager = self.start_manager(Rc::clone(&network), store).await?;
        let bootstrapped = manager.bootstrap(node, *map).await.map_err(|error| error.to_string());
        answer.complete(bootstrapped.clone());
        bootstrapped.map_err(NodeEnd::Failed)?;
        Ok((manager, network, node))
    }

    fn serve_drives(&self, network: &dyn Network, incarnation: Incarnation) {
        for drive in &*self.drives.borrow() {
            if let Found::Formatted(formatted) = &drive.found {
                self.serve_drive(formatted, incarnation);
            }
        }
        self.service.serve(network);
    }

    pub(crate) fn serve_drive(&self, formatted: &Rc<FormattedDrive>, incarnation: Incarnation) {
        let server = DriveServer::new(Rc::clone(formatted), self.handle.clone(), incarnation, self.params.drive);
        self.service.add(server);
    }

    /// Serves one command of the control API.
    pub async fn command(self: Rc<Self>, command: Command) -> Answer {
        match command {
            Command::Describe => Answer::Description(self.describe()),
            Command::Status => Answer::Status(Box::new(self.status())),
            Command::Events => Answer::Events(self.events.borrow().iter().cloned().collect()),
            Command::Token => match self.token() {
                Some(token) => Answer::Token(token),
                None => Answer::Refused("the node is in no cluster yet: its own token file counts".into()),
            },
            Command::Form { map } => self.form(map).await,
            Command::Map => match self.manager.borrow().as_ref().and_then(|manager| manager.map()) {
                Some(map) => Answer::Map(Box::new(Map::clone(&map))),
                None => Answer::Refused("the node is in no cluster yet".into()),
            },
            Command::AddNode { new, replace } => self.propose_and_see(Proposal::AddNode { new, replace }).await,
            Command::AddDrive { path } => self.add_drive(&path).await,
            Command::SetPurpose { part, purpose } => self.propose(Proposal::SetPurpose { part, purpose }).await,
            Command::Remove { part } => self.propose(Proposal::Remove { part }).await,
            Command::HotSpare { nodes } => self.propose(Proposal::HotSpare { nodes }).await,
            Command::CreateFilesystem { name, size_bytes } => {
                let proposal = Proposal::CreateFilesystem { name: name.clone(), size_bytes };
                match self.propose(proposal).await {
                    Answer::Done => self.filesystem_ready(&name).await,
                    answer => answer,
                }
            }
            Command::Died { node, incarnation } => {
                if let Some(manager) = &*self.manager.borrow() {
                    manager.died(node, incarnation);
                }
                Answer::Done
            }
            Command::DeleteFilesystem { name } => self.propose(Proposal::DeleteFilesystem { name }).await,
            Command::BeginPass { kind, pace_bytes } => {
                self.with_passes(|passes| match passes.begin(kind, pace_bytes) {
                    Ok(()) => Answer::Done,
                    Err(reason) => Answer::Refused(reason),
                })
            }
            Command::StopPass { kind } => self.with_passes(|passes| {
                passes.stop(kind);
                Answer::Done
            }),
            Command::Pass { kind } => self.with_passes(|passes| Answer::Pass(Box::new(passes.state(kind)))),
        }
    }

    fn with_passes(&self, ask: impl FnOnce(&Passes) -> Answer) -> Answer {
        match &*self.passes.borrow() {
            Some(passes) => ask(passes),
            None => Answer::Refused(format!("the node leads nothing yet: it is {}", self.phase.get().name())),
        }
    }

    /// What all nodes of the cluster take over TCP.
    pub fn token(&self) -> Option<String> {
        let map = self.manager.borrow().as_ref().and_then(|manager| manager.map())?;
        Some(format!("{:032x}", weft_wire::hash::control_token(&map.secret)))
    }

    /// What this node's supervisor has to say when this life ends; nothing before it is admitted.
    pub fn word(&self) -> Option<Word> {
        let manager = self.manager.borrow().clone()?;
        Some(Word::new(&*manager.map()?, self.token()?, manager.node()?, self.incarnation.get()?))
    }

    /// For those who act on changes of the map, once there is one.
    pub fn map_watch(&self) -> Option<MapWatch> {
        self.manager.borrow().as_ref().map(|manager| manager.watch())
    }

    async fn form(&self, map: Box<Map>) -> Answer {
        let manager = self.manager.borrow().clone();
        if let Some(present) = manager.and_then(|manager| manager.map()) {
            return match present.cluster == map.cluster {
                true => Answer::Done,
                false => Answer::Refused(format!("the node is in cluster {} already", present.cluster)),
            };
        }
        let (completer, pending) = weft_reactor::sync::completion();
        if self.forms.0.try_send((map, completer)).is_err() {
            return Answer::Refused("the node can't be formed now: see its log".into());
        }
        match pending.await {
            Ok(Ok(())) => Answer::Done,
            Ok(Err(reason)) => Answer::Refused(reason),
            Err(_) => Answer::Refused("the node stopped while it was formed: see its log".into()),
        }
    }

    pub(crate) async fn propose(&self, proposal: Proposal) -> Answer {
        let manager = self.manager.borrow().clone();
        let Some(manager) = manager else { return Answer::Refused("the node is in no cluster yet".into()) };
        match manager.propose(proposal, Patience::default()).await {
            ManagerReply::Ok | ManagerReply::Committed { .. } => Answer::Done,
            ManagerReply::Refused(reason) => Answer::Refused(reason),
            ManagerReply::NoQuorum
            | ManagerReply::NotLeader(_)
            | ManagerReply::Rejoin { .. }
            | ManagerReply::Vote { .. }
            | ManagerReply::Lives { .. } => {
                Answer::Refused("too few managers answer: see `weft status` for which nodes are away".into())
            }
        }
    }

    /// Waits until a new filesystem can be mounted.
    async fn filesystem_ready(&self, name: &str) -> Answer {
        const WAIT_MAX: Duration = Duration::from_secs(30);
        let manager = self.manager.borrow().clone();
        let Some(manager) = manager else { return Answer::Refused("the node is in no cluster yet".into()) };
        let watch = manager.watch();
        let ready = watch.wait_for(|map| {
            let fs = map.as_ref().and_then(|map| map.filesystem_named(name));
            fs.is_some_and(|fs| fs.state == FilesystemState::Ready)
        });
        match self.handle.timeout(WAIT_MAX, ready).await {
            Ok(_) => Answer::Done,
            Err(_) => Answer::Refused(format!(
                "{name} was created, but its root directory is not there after {} s: `weft status` shows which bucket waits and why",
                WAIT_MAX.as_secs()
            )),
        }
    }

    /// The buckets that this node serves: for those who check them.
    pub fn buckets(&self) -> Vec<weft_bucket::Bucket> {
        self.leads.borrow().as_ref().map(Leads::buckets).unwrap_or_default()
    }

    fn describe(&self) -> Description {
        let drives = self.drives.borrow();
        let manager = self.manager.borrow();
        let map = manager.as_ref().and_then(|manager| manager.map());
        Description {
            name: self.params.name.clone(),
            domain: self.params.domain.clone(),
            cores: self.params.cores.clone(),
            control: self.params.control,
            cluster: map.map(|map| map.cluster),
            drives: drives
                .iter()
                .map(|drive| {
                    let capacity_bytes = drive.device.drive.capacity_bytes();
                    let geometry = drives::geometry(capacity_bytes);
                    let problem = match &drive.found {
                        Found::Unusable(reason) => Some(reason.clone()),
                        _ => geometry.clone().err(),
                    };
                    let (zone_bytes, zones) = geometry.unwrap_or_default();
                    DriveDescription {
                        path: drive.device.path.clone(),
                        uuid: drive.uuid,
                        core: drive.device.core,
                        capacity_bytes,
                        zone_bytes,
                        zones,
                        problem,
                    }
                })
                .collect(),
        }
    }

    pub fn status(&self) -> Status {
        let manager = self.manager.borrow().clone();
        let map = manager.as_ref().and_then(|manager| manager.map());
        let manager = manager.map(|manager| manager.status());
        Status {
            name: self.params.name.clone(),
            node: manager.as_ref().and_then(|manager| manager.node),
            version: env!("CARGO_PKG_VERSION").into(),
            phase: self.phase.get().name().into(),
            waiting: manager
                .as_ref()
                .and_then(|manager| manager.waiting.clone())
                .or_else(|| self.waiting(map.as_deref())),
            incarnation: self.incarnation.get(),
            cluster: map.as_deref().map(cluster_status),
            manager: manager.map(|manager| ManagerState {
                role: format!("{:?}", manager.role).to_lowercase(),
                leader: manager.leader,
                term: manager.term,
                voters: manager.voters,
                waiting: manager.waiting,
            }),
            drives: self.drives.borrow().iter().map(|drive| self.drive_state(drive)).collect(),
            buckets: self.bucket_states(),
            unreached: self.leads.borrow().as_ref().map(Leads::unreached).unwrap_or_default(),
        }
    }

    /// What the node waits for, by what it does just now.
    fn waiting(&self, map: Option<&Map>) -> Option<String> {
        match self.phase.get() {
            Phase::OpeningDrives => {
                let paths: Vec<&str> = self.params.devices.iter().map(|device| device.path.as_str()).collect();
                Some(format!("for the drives to answer: {}", paths.join(", ")))
            }
            Phase::Unclaimed => {
                let drives = self.drives.borrow();
                let unusable = drives.iter().find_map(|drive| match &drive.found {
                    Found::Unusable(reason) => {
                        Some(format!("for a drive that can be used; {}: {reason}", drive.device.path))
                    }
                    _ => None,
                });
                Some(unusable.unwrap_or_else(|| "for `weft cluster create` to make it part of a cluster".into()))
            }
            Phase::Joining => {
                let managers = map.map(|map| map.managers.len()).unwrap_or_default();
                Some(format!(
                    "for the managers to admit it: {} of {managers} must answer and elect a leader",
                    managers / 2 + 1
                ))
            }
            Phase::Serving => self.waiting_buckets(),
            Phase::Stopping => Some("for a last checkpoint of its buckets".into()),
        }
    }

    fn waiting_buckets(&self) -> Option<String> {
        let states = self.leads.borrow().as_ref().map(Leads::states).unwrap_or_default();
        let waits = states.iter().filter_map(|(bucket, _, state, _)| match state {
            LeadState::Serving => None,
            LeadState::Opening(reason) | LeadState::Failed(reason) => Some((bucket, reason)),
        });
        let waits: Vec<_> = waits.collect();
        let (bucket, reason) = waits.first()?;
        Some(format!("{} of {} buckets are not served yet; {bucket}: {reason}", waits.len(), states.len()))
    }

    fn drive_state(&self, drive: &NodeDrive) -> DriveState {
        let (id, state) = match &drive.found {
            Found::Blank => (None, "blank".to_owned()),
            Found::Formatted(formatted) => (Some(formatted.id()), DriveState::IN_USE.to_owned()),
            Found::Unusable(reason) => (None, reason.clone()),
        };
        let server = id.and_then(|id| self.service.get(id));
        let stat = server.as_ref().map(|server| server.stat(Default::default())).unwrap_or_default();
        DriveState {
            path: drive.device.path.clone(),
            id,
            state,
            capacity_bytes: drive.device.drive.capacity_bytes(),
            zones: stat.zones,
            zones_free: stat.zones_free,
            ring_used_bytes: stat.ring_used_bytes,
            errors: stat.read_errors + stat.write_errors + stat.checksum_errors,
            trouble: server.and_then(|server| server.trouble()),
        }
    }

    fn bucket_states(&self) -> Vec<BucketState> {
        let leads = self.leads.borrow();
        let Some(leads) = &*leads else { return Vec::new() };
        leads
            .states()
            .into_iter()
            .map(|(bucket, epoch, state, stats)| BucketState {
                bucket: bucket.0,
                epoch: epoch.0,
                serving: state == LeadState::Serving,
                state: match state {
                    LeadState::Serving => "serving".into(),
                    LeadState::Opening(reason) => reason,
                    LeadState::Failed(reason) => format!("failed: {reason}"),
                },
                stats: stats.map(bucket_stats),
            })
            .collect()
    }
}

fn core(node: NodeId) -> CoreId {
    CoreId { node, core: 0 }
}

/// Whether any drive remembers a map. A drive that can't say so is no answer.
async fn has_map(store: &DriveStore) -> Result<bool, String> {
    let mut error = None;
    for drive in store.drives() {
        match store.load(drive, Slot::Map).await {
            Ok(Ok(Some(_))) => return Ok(true),
            Ok(Ok(None)) => {}
            Ok(Err(failed)) => error = Some(failed.to_string()),
            Err(_) => error = Some("the drive went away".into()),
        }
    }
    match error {
        Some(error) => Err(format!("whether this node is in a cluster can't be read: {error}")),
        None => Ok(false),
    }
}
