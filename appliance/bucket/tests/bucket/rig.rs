//! Six drives in memory on six nodes of a network in memory, and a bucket that the first of them leads.

use std::cell::{Cell, RefCell};
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
pub const NODES: u16 = 6;
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

    /// Power fails everywhere. What was not durable is gone.
    pub async fn crash(&self, keeps: CrashKeeps) {
        for node in 0..NODES {
            self.network.crash(core(node));
        }
        self.media.iter().for_each(|media| media.crash(keeps));
        for node in 0..NODES {
            self.network.restart(core(node));
        }
        self.start_nodes().await;
    }

    /// A node's process dies; what its drive got stays.
    pub fn stop_node(&self, node: u16) {
        self.network.crash(core(node));
    }

    /// The node is there again, and its drive with it.
    pub async fn restart_node(&self, node: u16) {
        self.network.restart(core(node));
        self.start_node(node).await;
    }

    /// The bucket, under a new epoch.
    pub async fn open(&self) -> Bucket {
        self.epoch.set(self.epoch.get() + 1);
        let params = BucketParams {
            cluster: CLUSTER,
            id: BucketId(0),
            epoch: Epoch(self.epoch.get()),
            protection: PROTECTION,
            members: (0..u32::from(NODES)).map(DriveId).collect(),
            states: Rc::new((0..u32::from(NODES)).map(|drive| (DriveId(drive), State::Up)).collect()),
            ensembles: vec![Ensemble { since: Epoch(1), drives: (0..4).map(DriveId).collect() }],
            zone_rows: 256,
            find: Rc::new(|drive| Some(core(drive.0 as u16))),
            journal: Default::default(),
            tunables: self.tunables,
        };
        let network = self.leader.borrow().clone().expect("started");
        Bucket::open(params, network, self.handle.clone(), |_| {}).await.expect("open")
    }
}
