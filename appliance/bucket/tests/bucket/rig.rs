//! Eight drives in memory on eight nodes of a network in memory, and a bucket that the first of them leads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Bucket, BucketParams, Tunables};
use weft_drive::mem::{CrashKeeps, MemMedia, MemOptions};
use weft_drive::{Drive, DriveOptions, DriveServer, DriveService, FormatOptions, FormattedDrive};
use weft_reactor::Handle;
use weft_transport::memory::MemoryNetwork;
use weft_transport::rpc::Network;
use weft_wire::map::{Ensemble, Protection, State};
use weft_wire::*;

pub const CLUSTER: Uuid = Uuid(0xc1);
pub const NODES: u16 = 8;
/// The first of them are the bucket's members, the rest are spare.
pub const SHARDS: u16 = 6;
/// The first of them hold the journal.
pub const ENSEMBLE: u16 = 4;
pub const DRIVE_BYTES: u64 = 128 << 20;
pub const PROTECTION: Protection = Protection { data: 4, parity: 2 };

pub struct Rig {
    pub handle: Handle,
    pub network: MemoryNetwork,
    pub media: Vec<MemMedia>,
    pub tunables: Tunables,
    epoch: Cell<u64>,
    starts: Cell<u64>,
    leader: RefCell<Option<Rc<dyn Network>>>,
    members: RefCell<Vec<DriveId>>,
    states: RefCell<BTreeMap<DriveId, State>>,
}

fn core(node: u16) -> CoreId {
    CoreId { node: NodeId(node), core: 0 }
}

impl Rig {
    pub async fn new(handle: Handle, tunables: Tunables) -> Self {
        let media: Vec<_> = (0..NODES)
            .map(|_| {
                MemMedia::new(MemOptions {
                    capacity_bytes: DRIVE_BYTES,
                    read_latency: Duration::from_micros(80),
                    write_latency: Duration::from_micros(20),
                    flush_latency: Duration::from_micros(50),
                })
            })
            .collect();
        for (node, media) in media.iter().enumerate() {
            let drive: Rc<dyn Drive> = media.open(&handle);
            let options = FormatOptions {
                cluster: CLUSTER,
                node: NodeId(node as u16),
                drive: DriveId(node as u32),
                uuid: Uuid(node as u128 + 1),
                force: false,
            };
            FormattedDrive::format(&drive, options).await.expect("format");
        }
        let network = MemoryNetwork::new(handle.clone());
        let rig = Self {
            handle,
            network,
            media,
            tunables,
            epoch: Cell::new(0),
            starts: Cell::new(0),
            leader: RefCell::new(None),
            members: RefCell::new((0..u32::from(SHARDS)).map(DriveId).collect()),
            states: RefCell::new((0..u32::from(NODES)).map(|drive| (DriveId(drive), State::Up)).collect()),
        };
        rig.start_nodes().await;
        rig
    }

    async fn start_nodes(&self) {
        for node in 0..NODES {
            self.start_node(node).await;
        }
    }

    async fn start_node(&self, node: u16) {
        {
            let media = &self.media[usize::from(node)];
            let formatted = FormattedDrive::open(media.open(&self.handle)).await.expect("open");
            self.starts.set(self.starts.get() + 1);
            let incarnation = Incarnation(self.starts.get());
            let server = DriveServer::new(formatted, self.handle.clone(), incarnation, DriveOptions::default());
            let service = DriveService::new();
            service.add(server);
            let node = self.network.node(core(node));
            service.serve(&*node);
            if node.local() == Some(core(0)) {
                *self.leader.borrow_mut() = Some(node);
            }
        }
    }

    /// Power fails everywhere. What was not durable is gone; what the map gave up stays dark.
    pub async fn crash(&self, keeps: CrashKeeps) {
        for node in 0..NODES {
            self.network.crash(core(node));
        }
        self.media.iter().for_each(|media| media.crash(keeps));
        for node in (0..NODES).filter(|node| self.state(*node) == State::Up) {
            self.network.restart(core(node));
            self.start_node(node).await;
        }
    }

    /// A node's process dies; what its drive got stays.
    pub fn stop_node(&self, node: u16) {
        self.network.crash(core(node));
    }

    /// Nothing reaches the node any more, and nobody is told.
    pub fn fall_silent(&self, node: u16) {
        self.network.cut(core(0), core(node));
        self.network.cut(core(node), core(0));
    }

    /// Every operation of the node's drive fails, or works again.
    pub fn set_failing(&self, node: u16, fails: bool) {
        self.media[usize::from(node)].set_failing(fails);
    }

    /// What [`Rig::fall_silent`] cut works again.
    pub fn speak_again(&self, node: u16) {
        self.network.mend(core(0), core(node));
        self.network.mend(core(node), core(0));
    }

    /// The node is there again, and its drive with it.
    pub async fn restart_node(&self, node: u16) {
        self.speak_again(node);
        self.network.crash(core(node));
        self.network.restart(core(node));
        self.start_node(node).await;
    }

    /// The map says something else of a drive; a bucket is told with [`Rig::tell`].
    pub fn set_state(&self, drive: u16, state: State) {
        self.states.borrow_mut().insert(DriveId(u32::from(drive)), state);
    }

    pub fn state(&self, drive: u16) -> State {
        self.states.borrow()[&DriveId(u32::from(drive))]
    }

    /// Another drive takes a member's place. False: there is none to take it.
    pub fn replace(&self, drive: u16) -> bool {
        let mut members = self.members.borrow_mut();
        let (old, all) = (DriveId(u32::from(drive)), (0..NODES).map(|drive| DriveId(u32::from(drive))));
        let spare = all.filter(|drive| !members.contains(drive)).find(|drive| self.states.borrow()[drive] == State::Up);
        match (members.iter_mut().find(|member| **member == old), spare) {
            (Some(member), Some(spare)) => *member = spare,
            _ => return false,
        }
        true
    }

    /// Other members, in this order.
    pub fn set_members(&self, drives: impl Iterator<Item = u16>) {
        *self.members.borrow_mut() = drives.map(|drive| DriveId(u32::from(drive))).collect();
    }

    pub fn is_member(&self, drive: u16) -> bool {
        self.members.borrow().contains(&DriveId(u32::from(drive)))
    }

    /// The bucket hears of the newest map.
    pub fn tell(&self, bucket: &Bucket) {
        bucket.set_members(self.members.borrow().clone(), Rc::new(self.states.borrow().clone()));
    }

    /// The bucket, under a new epoch.
    pub async fn open(&self) -> Bucket {
        self.epoch.set(self.epoch.get() + 1);
        let params = BucketParams {
            cluster: CLUSTER,
            id: BucketId(0),
            epoch: Epoch(self.epoch.get()),
            protection: PROTECTION,
            members: self.members.borrow().clone(),
            states: Rc::new(self.states.borrow().clone()),
            ensembles: vec![Ensemble { since: Epoch(1), drives: (0..u32::from(ENSEMBLE)).map(DriveId).collect() }],
            zone_rows: 256,
            find: Rc::new(|drive| Some(core(drive.0 as u16))),
            beats: Rc::default(),
            journal: Default::default(),
            tunables: self.tunables,
        };
        let network = self.leader.borrow().clone().expect("started");
        Bucket::open(params, network, self.handle.clone(), |_| {}).await.expect("open")
    }
}
