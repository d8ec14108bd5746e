//! A cluster in memory that speaks the protocol of leaders and managers, with just enough of a filesystem behind it.
//! What is durable in a real cluster survives everything here; what a leader keeps in memory goes with its epoch.

use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, ConnectError, ConnectOptions};
use weft_reactor::Handle;
use weft_reactor::testing::VirtualTime;
use weft_transport::memory::MemoryNetwork;
use weft_transport::rpc::{Network, Request, Response, handler};
use weft_wire::fs::*;
use weft_wire::hash::{Secret, slab_position};
use weft_wire::limits::{CLIENT_WINDOW_MAX, SLAB_BYTES};
use weft_wire::manager::{ManagerReply, ManagerRequest, MapReply, MapRequest, Proposal};
use weft_wire::map::{
    Bucket, Change, Client as MapClient, Delta, Ensemble, Filesystem, FilesystemState, Map, Node, Protection, State,
};
use weft_wire::*;

const NODES: u16 = 3;
const BUCKET_BITS: u8 = 3;
pub const FS: FsId = FsId(5);
pub const FS_NAME: &str = "home";
pub const ROOT: InodeId = InodeId((3 << (40 + 21)) | 1);

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ESTALE: i32 = 116;
const EOPNOTSUPP: i32 = 95;

#[derive(Clone, Debug)]
pub struct FakeInode {
    pub attr: Attr,
    pub slabs: BTreeMap<u64, Vec<u8>>,
    /// Generation that each slab refuses older ones of.
    pub cuts: u64,
}

impl FakeInode {
    /// What lies beyond a size goes, under a new generation.
    fn cut(&mut self, size: u64) {
        self.attr.cut_generation += 1;
        self.cuts = self.attr.cut_generation;
        self.slabs.retain(|slab, _| slab * SLAB_BYTES < size);
        for (slab, data) in &mut self.slabs {
            data.truncate((size - slab * SLAB_BYTES).min(SLAB_BYTES) as usize);
        }
    }
}

pub struct World {
    pub map: Map,
    pub deltas: Vec<Delta>,
    pub inodes: BTreeMap<InodeId, FakeInode>,
    pub names: BTreeMap<(InodeId, Vec<u8>), InodeId>,
    /// Answers kept per client, bucket and number.
    results: BTreeMap<(ClientId, BucketId, u64), FsReply>,
    lowest: BTreeMap<(ClientId, BucketId), u64>,
    /// Who has what open, by the leader's epoch.
    pub opens: BTreeSet<(BucketId, Epoch, InodeId, ClientId)>,
    /// Each op that ran, with the bucket that was asked.
    pub ran: Vec<(BucketId, FsOp)>,
    next_serial: u64,
    /// Nodes that answer "not ready".
    pub not_ready: bool,
    pub quorum: bool,
    /// The next size that would pass the end of a file finds there what somebody left behind, and all of it is cut.
    pub cut_next_growth: bool,
}

#[derive(Clone)]
pub struct Cluster {
    pub network: MemoryNetwork,
    pub handle: Handle,
    pub world: Rc<RefCell<World>>,
}

pub fn core(node: u16) -> CoreId {
    CoreId { node: NodeId(node), core: 0 }
}

impl Cluster {
    pub fn start(time: &VirtualTime) -> Self {
        let network = MemoryNetwork::new(time.handle());
        let world = Rc::new(RefCell::new(World::new()));
        let cluster = Self { network, handle: time.handle(), world };
        (1..=NODES).for_each(|node| cluster.serve(node));
        cluster
    }

    pub fn serve(&self, node: u16) {
        let network = self.network.node(core(node));
        let (world, handle) = (Rc::clone(&self.world), self.handle.clone());
        network.serve(
            Service::Map,
            handler(move |request: Request| {
                let (world, handle) = (Rc::clone(&world), handle.clone());
                async move {
                    let Ok(MapRequest::Get { have, wait_ms, .. }) = decode(&request.head) else {
                        return answer(&MapReply::None);
                    };
                    let end = handle.now() + Duration::from_millis(u64::from(wait_ms));
                    while world.borrow().map.version <= have && handle.now() < end {
                        handle.sleep(Duration::from_millis(5)).await;
                    }
                    answer(&world.borrow().map_since(have))
                }
            }),
        );
        let world = Rc::clone(&self.world);
        network.serve(
            Service::Manager,
            handler(move |request: Request| {
                let reply = world.borrow_mut().propose(node, &request);
                async move { answer(&reply) }
            }),
        );
        let world = Rc::clone(&self.world);
        network.serve(
            Service::Fs,
            handler(move |request: Request| {
                let (head, body) = world.borrow_mut().serve(node, request);
                async move { Response { head: encode(&head), body } }
            }),
        );
    }

    /// A client that is not yet connected.
    pub fn options(&self) -> ConnectOptions {
        let addresses: Vec<SocketAddr> = (1..=NODES).map(|node| MemoryNetwork::address(core(node))).collect();
        ConnectOptions { addresses, fs_name: FS_NAME.into(), host: "test".into(), fail_after: None }
    }

    pub fn client_network(&self, index: u16) -> Rc<dyn Network> {
        self.network.client(index)
    }

    pub async fn connect(&self, index: u16) -> Result<Rc<Client>, ConnectError> {
        Client::connect(self.client_network(index), self.handle.clone(), self.options()).await
    }

    /// Gives the buckets that `from` leads to `to`, with new epochs.
    pub fn move_leaders(&self, from: u16, to: u16) {
        let mut world = self.world.borrow_mut();
        let mut changes = Vec::new();
        for (index, bucket) in world.map.buckets.iter().enumerate() {
            if bucket.leader == core(from) {
                let bucket = Bucket { leader: core(to), epoch: Epoch(bucket.epoch.0 + 1), ..bucket.clone() };
                changes.push(Change::Bucket(BucketId(index as u32), bucket));
            }
        }
        world.commit(changes);
    }

    pub fn commit(&self, changes: Vec<Change>) {
        self.world.borrow_mut().commit(changes);
    }

    pub fn count(&self, which: impl Fn(&FsOp) -> bool) -> usize {
        self.world.borrow().ran.iter().filter(|(_, op)| which(op)).count()
    }
}

fn answer<T: serde::Serialize>(reply: &T) -> Response {
    Response { head: encode(reply), body: Bytes::new() }
}

impl World {
    fn new() -> Self {
        let nodes = (1..=NODES).map(|id| {
            let node = Node {
                id: NodeId(id),
                name: format!("node{id}"),
                domain: DomainId(id),
                domain_name: None,
                cores: vec![MemoryNetwork::address(core(id))],
                control: MemoryNetwork::address(core(id)),
                incarnation: Incarnation(1),
                state: State::Up,
                purpose: weft_wire::map::Purpose::Serve,
            };
            (node.id, node)
        });
        let bucket = |index: u16| Bucket {
            leader: core(1 + index % NODES),
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            layout: Layout(1),
            former: Vec::new(),
            members: Vec::new(),
            ensembles: vec![Ensemble { since: Epoch(1), drives: Vec::new() }],
        };
        let filesystem =
            Filesystem { id: FS, name: FS_NAME.into(), root: ROOT, size_bytes: 0, state: FilesystemState::Ready };
        let map = Map {
            version: MapVersion(1),
            cluster: Uuid(7),
            name: "test".into(),
            secret: Secret([9; 16]),
            protection: Protection { data: 4, parity: 2 },
            bucket_bits: BUCKET_BITS,
            nodes: nodes.collect(),
            drives: BTreeMap::new(),
            buckets: (0..1 << BUCKET_BITS).map(bucket).collect(),
            filesystems: [(FS, filesystem)].into(),
            managers: (1..=NODES).map(NodeId).collect(),
            next_client: ClientId(1),
            next_node: Default::default(),
            next_drive: Default::default(),
            hot_spare: 0,
            clients: BTreeMap::new(),
        };
        let mut world = Self {
            map,
            deltas: Vec::new(),
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            results: BTreeMap::new(),
            lowest: BTreeMap::new(),
            opens: BTreeSet::new(),
            ran: Vec::new(),
            next_serial: 100,
            not_ready: false,
            quorum: true,
            cut_next_growth: false,
        };
        world.add_inode(ROOT, FileKind::Directory);
        world
    }

    fn add_inode(&mut self, inode: InodeId, kind: FileKind) {
        let attr = Attr {
            inode,
            kind,
            mode: 0o755,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes: 0,
            blocks: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: 0,
            cut_generation: 0,
            late: LateTimes::Never,
        };
        self.inodes.insert(inode, FakeInode { attr, slabs: BTreeMap::new(), cuts: 0 });
    }

    fn commit(&mut self, changes: Vec<Change>) {
        let delta = Delta { version: MapVersion(self.map.version.0 + 1), changes };
        if self.map.apply(&delta).is_ok() {
            self.deltas.push(delta);
        }
    }

    fn map_since(&self, have: MapVersion) -> MapReply {
        match have {
            MapVersion(0) => MapReply::Whole(Box::new(self.map.clone())),
            _ => MapReply::Deltas(self.deltas.iter().filter(|delta| delta.version > have).cloned().collect()),
        }
    }

    fn propose(&mut self, node: u16, request: &Request) -> ManagerReply {
        if node != 2 {
            return ManagerReply::NotLeader(Some(NodeId(2)));
        }
        if !self.quorum {
            return ManagerReply::NoQuorum;
        }
        let Ok(ManagerRequest::Propose { proposal, .. }) = decode(&request.head) else { return ManagerReply::NoQuorum };
        let mut client = ClientId(0);
        match proposal {
            Proposal::NewClient { host } => {
                client = self.map.next_client;
                self.commit(vec![Change::Client(MapClient { id: client, host, fenced: false })]);
            }
            Proposal::RemoveClient { client } => self.commit(vec![Change::RemoveClient(client)]),
            other => return ManagerReply::Refused(format!("{other:?}")),
        }
        ManagerReply::Committed { version: self.map.version, incarnation: Incarnation(0), fs: FsId(0), client }
    }

    fn serve(&mut self, node: u16, request: Request) -> (FsReply, Bytes) {
        let Ok(head) = decode::<FsRequest>(&request.head) else {
            return (FsReply::Error(FsError::Errno(EINVAL)), Bytes::new());
        };
        match self.checked(node, head, request.body) {
            Ok(answer) => answer,
            Err(error) => (FsReply::Error(error), Bytes::new()),
        }
    }

    fn checked(&mut self, node: u16, request: FsRequest, body: Bytes) -> Result<(FsReply, Bytes), FsError> {
        match self.map.clients.get(&request.client) {
            Some(client) if !client.fenced => {}
            _ => return Err(FsError::Fenced(request.client)),
        }
        let by_map = self.map.bucket(request.bucket).ok_or(FsError::NotLeader)?.clone();
        if by_map.epoch > request.epoch {
            return Err(FsError::Newer(by_map.epoch));
        }
        if by_map.epoch < request.epoch {
            return Err(FsError::Older(by_map.epoch));
        }
        if by_map.leader != core(node) {
            return Err(FsError::NotLeader);
        }
        if self.not_ready {
            return Err(FsError::NotReady("recovering".into()));
        }
        let key = (request.client, request.bucket, request.sequence);
        if request.sequence > 0 {
            if let Some(reply) = self.results.get(&key) {
                return Ok((reply.clone(), Bytes::new()));
            }
            let in_window =
                request.unanswered <= request.sequence && request.sequence - request.unanswered < CLIENT_WINDOW_MAX;
            let lowest = self.lowest.get(&(request.client, request.bucket)).copied().unwrap_or(0);
            if !in_window || request.sequence < lowest {
                return Err(FsError::Errno(EINVAL));
            }
        }
        let (reply, body) = self.run(&request, body)?;
        self.ran.push((request.bucket, request.op));
        if request.sequence > 0 {
            let lowest = self.lowest.entry((request.client, request.bucket)).or_default();
            *lowest = request.unanswered.max(*lowest);
            let lowest = *lowest;
            self.results.retain(|(client, bucket, sequence), _| {
                (*client, *bucket) != (request.client, request.bucket) || *sequence >= lowest
            });
            self.results.insert(key, reply.clone());
        }
        Ok((reply, body))
    }

    fn inode(&mut self, inode: InodeId) -> Result<&mut FakeInode, FsError> {
        self.inodes.get_mut(&inode).ok_or(FsError::Errno(ESTALE))
    }

    /// The slab belongs to the bucket that was asked.
    fn check_place(&self, request: &FsRequest, inode: InodeId, offset: u64) -> Result<(), FsError> {
        let position = slab_position(&self.map.secret, FS, inode, offset / SLAB_BYTES);
        match self.map.bucket_of(position) == request.bucket {
            true => Ok(()),
            false => Err(FsError::Errno(EINVAL)),
        }
    }

    fn run(&mut self, request: &FsRequest, body: Bytes) -> Result<(FsReply, Bytes), FsError> {
        let open = |inode| (request.bucket, request.epoch, inode, request.client);
        let reply = match request.op.clone() {
            FsOp::Lookup { dir, name } => {
                let inode = *self.names.get(&(dir, name)).ok_or(FsError::Errno(ENOENT))?;
                let attr = self.inode(inode)?.attr;
                // The inode counts as being elsewhere.
                FsReply::Entry { inode, kind: attr.kind, attr: None, created: false }
            }
            FsOp::Create { dir, name, node, exclusive, open: opens } => {
                if let Some(inode) = self.names.get(&(dir, name.clone())).copied() {
                    if exclusive {
                        return Err(FsError::Errno(EEXIST));
                    }
                    let attr = self.inode(inode)?.attr;
                    FsReply::Entry { inode, kind: attr.kind, attr: Some(attr), created: false }
                } else {
                    self.next_serial += 1;
                    let inode = InodeId::new(dir.position(), self.next_serial);
                    self.add_inode(inode, node.kind);
                    self.names.insert((dir, name), inode);
                    if opens {
                        self.opens.insert(open(inode));
                    }
                    let attr = self.inode(inode)?.attr;
                    FsReply::Entry { inode, kind: node.kind, attr: Some(attr), created: true }
                }
            }
            FsOp::Remove { dir, name, .. } => {
                self.names.remove(&(dir, name)).ok_or(FsError::Errno(ENOENT))?;
                FsReply::Done
            }
            FsOp::GetAttr { inode, .. } => FsReply::Attr(self.inode(inode)?.attr),
            FsOp::SetAttr { inode, set } => {
                let found = self.inode(inode)?;
                if let Some(size) = set.size_bytes {
                    found.attr.size_bytes = size;
                    found.cut(size);
                }
                FsReply::Attr(found.attr)
            }
            FsOp::Open { inode, .. } => {
                let attr = self.inode(inode)?.attr;
                self.opens.insert(open(inode));
                FsReply::Attr(attr)
            }
            FsOp::Release { inode } => {
                self.opens.remove(&open(inode));
                FsReply::Done
            }
            FsOp::Read { inode, offset, len_bytes, cut_generation } => {
                self.check_place(request, inode, offset)?;
                let cuts = self.inode(inode)?.cuts;
                if cut_generation.is_some_and(|known| known < cuts) {
                    return Err(FsError::Cut { generation: cuts });
                }
                return Ok((FsReply::Data, self.read(inode, offset, len_bytes)?));
            }
            FsOp::Write { inode, offset, cut_generation, .. }
            | FsOp::Overwrite { inode, offset, cut_generation, .. } => {
                self.check_place(request, inode, offset)?;
                if offset >= SLAB_BYTES {
                    let cuts = self.inode(inode)?.cuts;
                    if cut_generation < cuts {
                        return Err(FsError::Cut { generation: cuts });
                    }
                }
                self.put(inode, offset, &body)?;
                let found = self.inode(inode)?;
                let first = offset < SLAB_BYTES;
                if first {
                    found.attr.size_bytes = found.attr.size_bytes.max(offset + body.len() as u64);
                }
                FsReply::Written { offset, attr: first.then_some(found.attr) }
            }
            FsOp::Append { inode, .. } => {
                let offset = self.inode(inode)?.attr.size_bytes;
                self.put(inode, offset, &body)?;
                let found = self.inode(inode)?;
                found.attr.size_bytes = offset + body.len() as u64;
                FsReply::Written { offset, attr: Some(found.attr) }
            }
            FsOp::Publish { inode, end, cut_generation, .. } => {
                let cuts_all = self.cut_next_growth;
                let found = self.inode(inode)?;
                if cuts_all && end > found.attr.size_bytes {
                    found.cut(found.attr.size_bytes);
                    let generation = found.cuts;
                    self.cut_next_growth = false;
                    return Err(FsError::Cut { generation });
                }
                if cut_generation >= found.attr.cut_generation {
                    if end <= found.attr.size_bytes {
                        found.attr.late = LateTimes::Newest;
                    }
                    found.attr.size_bytes = found.attr.size_bytes.max(end);
                }
                FsReply::Attr(found.attr)
            }
            FsOp::Seek { inode, offset, end, target } => {
                let map = self.map.clone();
                let here = |slab: u64| map.bucket_of(slab_position(&map.secret, FS, inode, slab)) == request.bucket;
                let found = self.inode(inode)?;
                let has = |at: u64| {
                    let slab = at / SLAB_BYTES;
                    here(slab) && found.slabs.get(&slab).is_some_and(|data| at % SLAB_BYTES < data.len() as u64)
                };
                let mut at = offset;
                while at < end && has(at) != (target == SeekTarget::Data) {
                    at = (at / 4096 + 1) * 4096;
                }
                FsReply::Offset((at < end).then_some(at))
            }
            FsOp::CountBlocks { inode } => {
                let map = self.map.clone();
                let here = |slab: &u64| map.bucket_of(slab_position(&map.secret, FS, inode, *slab)) == request.bucket;
                let slabs = self.inode(inode)?.slabs.iter().filter(|(slab, _)| here(slab));
                let count = slabs.map(|(_, data)| data.len().div_ceil(4096) as u64).sum();
                FsReply::Blocks { count, written_ns: None }
            }
            FsOp::Renew { .. } => FsReply::Renewed { reassert: false },
            FsOp::StatFs => FsReply::Space(Space { blocks: 100, blocks_free: 60, blocks_available: 50, files: 1 }),
            _ => return Err(FsError::Errno(EOPNOTSUPP)),
        };
        Ok((reply, Bytes::new()))
    }

    fn put(&mut self, inode: InodeId, offset: u64, body: &[u8]) -> Result<(), FsError> {
        let found = self.inode(inode)?;
        for (at, byte) in (offset..).zip(body) {
            let data = found.slabs.entry(at / SLAB_BYTES).or_default();
            let index = (at % SLAB_BYTES) as usize;
            if data.len() <= index {
                data.resize(index + 1, 0);
            }
            data[index] = *byte;
        }
        Ok(())
    }

    /// Slab 0 is clipped by the size; others answer what they have.
    fn read(&mut self, inode: InodeId, offset: u64, len_bytes: u32) -> Result<Bytes, FsError> {
        let found = self.inode(inode)?;
        let first = offset < SLAB_BYTES;
        let mut end = offset + u64::from(len_bytes);
        if first {
            end = end.min(found.attr.size_bytes);
        }
        if offset >= end {
            return Ok(Bytes::new());
        }
        let empty = Vec::new();
        let data = found.slabs.get(&(offset / SLAB_BYTES)).unwrap_or(&empty);
        let (from, to) = ((offset % SLAB_BYTES) as usize, ((end - 1) % SLAB_BYTES) as usize + 1);
        let mut out = data.get(from..to.min(data.len())).unwrap_or_default().to_vec();
        if first {
            out.resize(to - from, 0);
        }
        Ok(out.into())
    }
}
