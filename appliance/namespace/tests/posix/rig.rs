//! Six nodes in memory: a drive on the first core of each, leaders of four buckets on second cores; clients that go to
//! the leaders as real ones do.

use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Bucket, BucketParams};
use weft_drive::mem::{CrashKeeps, MemMedia, MemOptions};
use weft_drive::{Drive, DriveOptions, DriveServer, DriveService, FormatOptions, FormattedDrive};
use weft_namespace::{Context, Namespace, Tunables};
use weft_reactor::Handle;
use weft_reactor::testing::VirtualTime;
use weft_transport::memory::MemoryNetwork;
use weft_transport::rpc::{Network, Request, Response, handler};
use weft_wire::bucket::{ParticipantReply, ParticipantRequest};
use weft_wire::fs::*;
use weft_wire::hash::{Secret, slab_position};
use weft_wire::limits::SLAB_BYTES;
use weft_wire::map::{self, Ensemble, Map, Protection, State};
use weft_wire::page::{KnownPages, PageId};
use weft_wire::*;

pub const NODES: u16 = 6;
pub const BITS: u8 = 2;
pub const BUCKETS: u32 = 1 << BITS;
pub const FS: FsId = FsId(1);
pub const ROOT: InodeId = InodeId(0);
const CLUSTER: Uuid = Uuid(0xc1);
const PROTECTION: Protection = Protection { data: 4, parity: 2 };
const CALL: Duration = Duration::from_secs(2);
const TRIES_MAX: u32 = 20_000;

pub fn errno(error: &FsError) -> i32 {
    match error {
        FsError::Errno(errno) => *errno,
        other => panic!("not an errno: {other}"),
    }
}

fn drive_core(node: u16) -> CoreId {
    CoreId { node: NodeId(node), core: 0 }
}

/// Where a bucket's leader runs: a core of its own, so that it can die alone.
pub fn leader_core(bucket: BucketId) -> CoreId {
    CoreId { node: NodeId(bucket.0 as u16), core: 1 }
}

#[derive(Clone)]
pub struct Rig(Rc<Inner>);

struct Inner {
    handle: Handle,
    network: MemoryNetwork,
    media: Vec<MemMedia>,
    map: Rc<RefCell<Rc<Map>>>,
    mapless: Rc<Cell<bool>>,
    lives: Cell<u64>,
    leaders: RefCell<BTreeMap<BucketId, Rc<Namespace>>>,
    trace: RefCell<Vec<(BucketId, String)>>,
    tunables: Cell<Tunables>,
}

/// Runs a test in virtual time.
pub fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Rig) -> F) {
    run_with(Tunables::default(), seed, test);
}

pub fn run_with<F: Future<Output = ()>>(tunables: Tunables, seed: u64, test: impl FnOnce(Rig) -> F) {
    let time = VirtualTime::new(seed);
    let handle = time.handle();
    time.block_on(async move {
        let rig = Rig::new(handle, tunables).await;
        test(rig).await;
    });
}

impl Rig {
    pub async fn new(handle: Handle, tunables: Tunables) -> Self {
        let media: Vec<_> = (0..NODES)
            .map(|_| {
                MemMedia::new(MemOptions {
                    capacity_bytes: 192 << 20,
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
        let inner = Inner {
            handle,
            network,
            media,
            map: Rc::new(RefCell::new(Rc::new(first_map()))),
            mapless: Rc::default(),
            lives: Cell::new(0),
            leaders: RefCell::default(),
            trace: RefCell::default(),
            tunables: Cell::new(tunables),
        };
        let rig = Self(Rc::new(inner));
        rig.start_drives().await;
        for bucket in 0..BUCKETS {
            rig.lead(BucketId(bucket)).await;
        }
        rig.client(1).make_root().await;
        rig
    }

    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    pub fn map(&self) -> Rc<Map> {
        Rc::clone(&self.0.map.borrow())
    }

    /// Changes the map; everyone knows at once.
    pub fn change_map(&self, change: impl FnOnce(&mut Map)) {
        let mut map = (*self.map()).clone();
        change(&mut map);
        map.version.0 += 1;
        *self.0.map.borrow_mut() = Rc::new(map);
    }

    /// What managers make of a leader's word.
    fn fence(&self, client: ClientId) {
        self.0.trace.borrow_mut().push((BucketId(0), format!("fence {client}")));
        if !self.0.mapless.get() {
            self.change_map(|map| map.clients.get_mut(&client).expect("a known client").fenced = true);
        }
    }

    pub fn is_fenced(&self, client: u64) -> bool {
        self.map().clients[&ClientId(client)].fenced
    }

    /// Leaders have no map: much of what they do has to wait.
    pub fn set_mapless(&self, mapless: bool) {
        self.0.mapless.set(mapless);
    }

    pub fn leader(&self, bucket: BucketId) -> Rc<Namespace> {
        Rc::clone(&self.0.leaders.borrow()[&bucket])
    }

    async fn start_drives(&self) {
        self.0.lives.set(self.0.lives.get() + 1);
        for (node, media) in self.0.media.iter().enumerate() {
            let formatted = FormattedDrive::open(media.open(&self.0.handle)).await.expect("open");
            let incarnation = Incarnation(self.0.lives.get());
            let server = DriveServer::new(formatted, self.0.handle.clone(), incarnation, DriveOptions::default());
            let service = DriveService::new();
            service.add(server);
            service.serve(&*self.0.network.node(drive_core(node as u16)));
        }
    }

    /// A new leader of the bucket, under a new epoch. The old one, if it lives, finds out by itself.
    pub async fn lead(&self, id: BucketId) {
        self.change_map(|map| map.buckets[id.0 as usize].epoch.0 += 1);
        let map = self.map();
        let by_map = map.bucket(id).expect("bucket");
        let params = BucketParams {
            cluster: CLUSTER,
            id,
            epoch: by_map.epoch,
            protection: PROTECTION,
            members: by_map.members.clone(),
            states: Rc::new(by_map.members.iter().map(|drive| (*drive, map::State::Up)).collect()),
            ensembles: by_map.ensembles.clone(),
            zone_rows: 256,
            find: Rc::new(|drive| Some(drive_core(drive.0 as u16))),
            beats: Rc::default(),
            journal: Default::default(),
            tunables: weft_bucket::Tunables { zone_sets_max: 24, ..Default::default() },
        };
        let network = self.0.network.node(leader_core(id));
        let bucket = Bucket::open(params, Rc::clone(&network), self.0.handle.clone(), |_| {}).await.expect("open");
        let (map, mapless, rig) = (Rc::clone(&self.0.map), Rc::clone(&self.0.mapless), self.clone());
        let context = Context {
            map: Rc::new(move || (!mapless.get()).then(|| Rc::clone(&map.borrow()))),
            network: Rc::clone(&network),
            fence: Rc::new(move |client| rig.fence(client)),
            tunables: self.0.tunables.get(),
        };
        let namespace = Namespace::open(bucket, context).await.expect("open");
        self.0.leaders.borrow_mut().insert(id, namespace);
        self.serve(&network, id);
    }

    fn serve(&self, network: &Rc<dyn Network>, id: BucketId) {
        let rig = self.clone();
        network.serve(
            Service::Fs,
            handler(move |request: Request| {
                let rig = rig.clone();
                async move {
                    let head: FsRequest = decode(&request.head).expect("head");
                    rig.0.trace.borrow_mut().push((id, format!("{:?}", head.op)));
                    let (reply, body) = match rig.find(head.bucket, head.epoch) {
                        Ok(namespace) => namespace.handle(head, request.body).await,
                        Err(error) => (FsReply::Error(error), Bytes::new()),
                    };
                    Response { head: encode(&reply), body }
                }
            }),
        );
        let rig = self.clone();
        network.serve(
            Service::Bucket,
            handler(move |request: Request| {
                let rig = rig.clone();
                async move {
                    let head: ParticipantRequest = decode(&request.head).expect("head");
                    rig.0.trace.borrow_mut().push((id, format!("{:?}", head.op)));
                    let (reply, body) = match rig.find(head.bucket, head.epoch) {
                        Ok(namespace) => namespace.participant(head, request.body).await,
                        Err(error) => (ParticipantReply::Refused(error), Bytes::new()),
                    };
                    Response { head: encode(&reply), body }
                }
            }),
        );
    }

    fn find(&self, bucket: BucketId, epoch: Epoch) -> Result<Rc<Namespace>, FsError> {
        let namespace = self.leader(bucket);
        let mine = namespace.bucket().epoch();
        match mine.cmp(&epoch) {
            std::cmp::Ordering::Greater => Err(FsError::Newer(mine)),
            std::cmp::Ordering::Less => Err(FsError::Older(mine)),
            std::cmp::Ordering::Equal => Ok(namespace),
        }
    }

    /// What arrived at leaders since the last look.
    pub fn take_trace(&self) -> Vec<(BucketId, String)> {
        std::mem::take(&mut *self.0.trace.borrow_mut())
    }

    /// The leader's process dies. Nobody leads the bucket until [`Rig::lead`].
    pub fn kill(&self, bucket: BucketId) {
        self.0.network.crash(leader_core(bucket));
        self.leader(bucket).bucket().close();
        self.0.network.restart(leader_core(bucket));
    }

    /// Another leader takes over after the first died.
    pub async fn fail_over(&self, bucket: BucketId) {
        self.kill(bucket);
        self.lead(bucket).await;
    }

    /// Power fails everywhere. What was not durable is gone.
    pub async fn lose_power(&self, keeps: CrashKeeps) {
        for bucket in 0..BUCKETS {
            self.kill(BucketId(bucket));
        }
        for node in 0..NODES {
            self.0.network.crash(drive_core(node));
        }
        self.0.media.iter().for_each(|media| media.crash(keeps));
        for node in 0..NODES {
            self.0.network.restart(drive_core(node));
        }
        self.start_drives().await;
        for bucket in 0..BUCKETS {
            self.lead(BucketId(bucket)).await;
        }
    }

    /// What anyone sends in the next `moment` takes `latency`.
    pub async fn slow_down(&self, latency: Duration, moment: Duration) {
        self.0.network.set_latency(latency, latency);
        self.0.handle.sleep(moment).await;
        self.0.network.set_latency(Duration::from_micros(5), Duration::from_micros(20));
    }

    pub fn client(&self, id: u64) -> Client {
        Client(Rc::new(ClientInner {
            rig: self.clone(),
            id: ClientId(id),
            network: self.0.network.client(id as u16),
            next: RefCell::default(),
            outstanding: RefCell::default(),
            pages: RefCell::default(),
        }))
    }

    pub fn bucket_of(&self, inode: InodeId) -> BucketId {
        self.map().bucket_of(inode.position())
    }
}

fn first_map() -> Map {
    let drives: Vec<u32> = (0..u32::from(NODES)).collect();
    let buckets = (0..BUCKETS)
        .map(|bucket| {
            let mut members = drives.clone();
            members.rotate_left(bucket as usize);
            let members: Vec<DriveId> = members.into_iter().map(DriveId).collect();
            map::Bucket {
                leader: leader_core(BucketId(bucket)),
                epoch: Epoch(0),
                incarnation: Incarnation(1),
                layout: Layout(1),
                former: Vec::new(),
                ensembles: vec![Ensemble { since: Epoch(1), drives: members[..PROTECTION.ensemble()].to_vec() }],
                members,
            }
        })
        .collect();
    let fs =
        map::Filesystem { id: FS, name: "test".into(), root: ROOT, size_bytes: 0, state: map::FilesystemState::Ready };
    let clients =
        (1..=8).map(|id| (ClientId(id), map::Client { id: ClientId(id), host: format!("host{id}"), fenced: false }));
    Map {
        version: MapVersion(1),
        cluster: CLUSTER,
        name: "test".into(),
        secret: Secret(*b"0123456789abcdef"),
        protection: PROTECTION,
        bucket_bits: BITS,
        nodes: (0..NODES)
            .map(|node| {
                let cores = (0..2).map(|core| MemoryNetwork::address(CoreId { node: NodeId(node), core })).collect();
                let node = map::Node {
                    id: NodeId(node),
                    name: format!("node{node}"),
                    domain: DomainId(node),
                    domain_name: None,
                    cores,
                    control: MemoryNetwork::address(drive_core(node)),
                    incarnation: Incarnation(1),
                    state: State::Up,
                    purpose: map::Purpose::Serve,
                };
                (node.id, node)
            })
            .collect(),
        drives: BTreeMap::new(),
        buckets,
        filesystems: BTreeMap::from([(FS, fs)]),
        managers: Vec::new(),
        next_client: ClientId(9),
        next_node: Default::default(),
        next_drive: Default::default(),
        hot_spare: 0,
        clients: clients.collect(),
    }
}

/// A mount.
#[derive(Clone)]
pub struct Client(Rc<ClientInner>);

struct ClientInner {
    rig: Rig,
    id: ClientId,
    network: Rc<dyn Network>,
    next: RefCell<BTreeMap<BucketId, u64>>,
    outstanding: RefCell<BTreeMap<BucketId, std::collections::BTreeSet<u64>>>,
    pages: RefCell<KnownPages>,
}

pub type Answer = Result<(FsReply, Bytes), FsError>;

fn changes(op: &FsOp) -> bool {
    !matches!(
        op,
        FsOp::Lookup { .. }
            | FsOp::ReadDir { .. }
            | FsOp::GetAttr { .. }
            | FsOp::ReadLink { .. }
            | FsOp::GetXattr { .. }
            | FsOp::ListXattr { .. }
            | FsOp::TestLock { .. }
            | FsOp::Read { .. }
            | FsOp::Seek { .. }
            | FsOp::CountBlocks { .. }
            | FsOp::StatFs
            | FsOp::MakeRoot { .. }
            | FsOp::Renew { .. }
    )
}

impl Client {
    /// A request at a bucket, again until it is answered.
    pub async fn ask_bucket(&self, bucket: BucketId, op: FsOp, body: Bytes) -> Answer {
        self.ask_page(bucket, 0, op, body).await
    }

    async fn ask_page(&self, bucket: BucketId, depth: u8, op: FsOp, body: Bytes) -> Answer {
        let mut sequence = 0;
        if changes(&op) {
            let mut next = self.0.next.borrow_mut();
            let next = next.entry(bucket).or_insert(1);
            sequence = *next;
            *next += 1;
            self.0.outstanding.borrow_mut().entry(bucket).or_default().insert(sequence);
        }
        let answer = self.ask_again_page(bucket, depth, sequence, op, body).await;
        if sequence > 0 {
            self.0.outstanding.borrow_mut().entry(bucket).or_default().remove(&sequence);
        }
        answer
    }

    pub fn last_sequence(&self, bucket: BucketId) -> u64 {
        self.0.next.borrow().get(&bucket).copied().unwrap_or(1) - 1
    }

    /// The same request, with its number, until it is answered.
    pub async fn ask_again(&self, bucket: BucketId, sequence: u64, op: FsOp, body: Bytes) -> Answer {
        self.ask_again_page(bucket, 0, sequence, op, body).await
    }

    async fn ask_again_page(&self, bucket: BucketId, depth: u8, sequence: u64, op: FsOp, body: Bytes) -> Answer {
        for _ in 0..TRIES_MAX {
            let map = self.0.rig.map();
            let by_map = map.bucket(bucket).expect("bucket");
            let lowest = self.0.outstanding.borrow().get(&bucket).and_then(|set| set.first().copied());
            let request = FsRequest {
                cluster: map.cluster,
                bucket,
                epoch: by_map.epoch,
                fs: FS,
                client: self.0.id,
                sequence,
                unanswered: lowest.unwrap_or(sequence).min(sequence),
                depth,
                op: op.clone(),
            };
            let answer = self.0.network.ask(by_map.leader, Service::Fs, encode(&request), body.clone(), CALL).await;
            if let Ok(Response { head, body }) = answer {
                match decode::<FsReply>(&head).expect("reply") {
                    FsReply::Error(
                        FsError::NotReady(_) | FsError::Newer(_) | FsError::Older(_) | FsError::NotLeader,
                    ) => {}
                    FsReply::Error(error) => return Err(error),
                    reply => return Ok((reply, body)),
                }
            }
            self.0.rig.handle().sleep(Duration::from_millis(10)).await;
        }
        panic!("no answer to {op:?}");
    }

    fn home(&self, op: &FsOp) -> BucketId {
        let map = self.0.rig.map();
        let position = match op {
            FsOp::Lookup { dir, .. }
            | FsOp::Create { dir, .. }
            | FsOp::Link { dir, .. }
            | FsOp::Remove { dir, .. }
            | FsOp::Rename { dir, .. }
            | FsOp::ReadDir { dir, .. }
            | FsOp::CreateUnnamed { dir, .. } => dir.position(),
            FsOp::Read { inode, offset, .. }
            | FsOp::Write { inode, offset, .. }
            | FsOp::Overwrite { inode, offset, .. }
            | FsOp::Fallocate { inode, offset, .. }
            | FsOp::Seek { inode, offset, .. } => slab_position(&map.secret, FS, *inode, offset / SLAB_BYTES),
            FsOp::GetAttr { inode, .. }
            | FsOp::SetAttr { inode, .. }
            | FsOp::ReadLink { inode }
            | FsOp::Open { inode, .. }
            | FsOp::Release { inode }
            | FsOp::GetXattr { inode, .. }
            | FsOp::SetXattr { inode, .. }
            | FsOp::ListXattr { inode }
            | FsOp::RemoveXattr { inode, .. }
            | FsOp::SetLock { inode, .. }
            | FsOp::TestLock { inode, .. }
            | FsOp::CancelLock { inode, .. }
            | FsOp::ReleaseLocks { inode, .. }
            | FsOp::Append { inode, .. }
            | FsOp::Publish { inode, .. }
            | FsOp::CountBlocks { inode }
            | FsOp::MakeRoot { root: inode } => inode.position(),
            FsOp::StatFs | FsOp::Renew { .. } => Position(0),
        };
        map.bucket_of(position)
    }

    pub async fn ask(&self, op: FsOp) -> Answer {
        self.ask_with(op, Bytes::new()).await
    }

    /// The page that the operation is about, if it is about names.
    fn page(&self, op: &FsOp) -> Option<PageId> {
        let (known, secret) = (self.0.pages.borrow(), self.0.rig.map().secret);
        match op {
            FsOp::Lookup { name, .. } if name == b".." => None,
            FsOp::Lookup { dir, name }
            | FsOp::Create { dir, name, .. }
            | FsOp::Link { dir, name, .. }
            | FsOp::Remove { dir, name, .. }
            | FsOp::Rename { dir, name, .. } => Some(known.of_name(&secret, *dir, name)),
            FsOp::ReadDir { dir, cookie, .. } => Some(known.of_cookie(*dir, cookie.saturating_add(1))),
            _ => None,
        }
    }

    /// What a request about names learns of pages on its way.
    async fn ask_pages(&self, mut op: FsOp) -> Answer {
        let mut listed = Vec::new();
        for _ in 0..TRIES_MAX {
            let page = self.page(&op).expect("about names");
            let map = self.0.rig.map();
            let bucket = map.bucket_of(page.position(&map.secret, FS));
            match self.ask_page(bucket, page.depth, op.clone(), Bytes::new()).await {
                Err(FsError::Moved { .. }) => self.0.pages.borrow_mut().split(page),
                Err(FsError::NoPage) => self.0.pages.borrow_mut().forget(page.dir),
                Ok((FsReply::Entries { entries, end: true }, body)) => {
                    listed.extend(entries);
                    let FsOp::ReadDir { cookie, entries_max, .. } = &mut op else { panic!("{op:?}") };
                    *cookie = page.last_cookie();
                    if page.is_last() || listed.len() >= *entries_max as usize {
                        return Ok((FsReply::Entries { entries: listed, end: page.is_last() }, body));
                    }
                }
                Ok((FsReply::Entries { entries, .. }, body)) => {
                    listed.extend(entries);
                    return Ok((FsReply::Entries { entries: listed, end: false }, body));
                }
                answer => return answer,
            }
        }
        panic!("no page for {op:?}");
    }

    pub async fn ask_with(&self, op: FsOp, body: Bytes) -> Answer {
        if self.page(&op).is_some() {
            return self.ask_pages(op).await;
        }
        let bucket = self.home(&op);
        self.ask_bucket(bucket, op, body).await
    }

    async fn make_root(&self) {
        self.ask(FsOp::MakeRoot { root: ROOT }).await.expect("root");
    }

    /// The errno that the request fails with; 0 if it doesn't.
    pub async fn fails(&self, op: FsOp) -> i32 {
        self.ask(op).await.err().map_or(0, |error| errno(&error))
    }

    fn node(kind: FileKind, mode: u16) -> NewNode {
        NewNode { kind, mode, umask: 0, rdev: 0, caller: Caller { uid: 1000, gid: 1000 }, target: Vec::new() }
    }

    pub async fn make(&self, dir: InodeId, name: &str, node: NewNode) -> Result<Attr, FsError> {
        let op = FsOp::Create { dir, name: name.into(), node, exclusive: true, open: false };
        match self.ask(op).await?.0 {
            FsReply::Entry { inode, attr: None, .. } => self.getattr(inode).await,
            FsReply::Entry { attr: Some(attr), .. } => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub async fn create(&self, dir: InodeId, name: &str) -> Result<InodeId, FsError> {
        Ok(self.make(dir, name, Self::node(FileKind::File, 0o644)).await?.inode)
    }

    pub async fn mkdir(&self, dir: InodeId, name: &str) -> Result<InodeId, FsError> {
        Ok(self.make(dir, name, Self::node(FileKind::Directory, 0o755)).await?.inode)
    }

    /// Asks nobody but the parent's leader.
    pub async fn make_dir_blindly(&self, dir: InodeId, name: &str) -> InodeId {
        let node = Self::node(FileKind::Directory, 0o755);
        let op = FsOp::Create { dir, name: name.into(), node, exclusive: true, open: false };
        match self.ask(op).await.expect("mkdir").0 {
            FsReply::Entry { inode, .. } => inode,
            other => panic!("{other:?}"),
        }
    }

    pub async fn symlink(&self, dir: InodeId, name: &str, target: &[u8]) -> Result<InodeId, FsError> {
        let node = NewNode { target: target.into(), ..Self::node(FileKind::Symlink, 0o777) };
        Ok(self.make(dir, name, node).await?.inode)
    }

    pub async fn getattr(&self, inode: InodeId) -> Result<Attr, FsError> {
        match self.ask(FsOp::GetAttr { inode, own: false }).await?.0 {
            FsReply::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub async fn setattr(&self, inode: InodeId, set: SetAttr) -> Result<Attr, FsError> {
        match self.ask(FsOp::SetAttr { inode, set }).await?.0 {
            FsReply::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub async fn truncate(&self, inode: InodeId, size: u64) -> Result<Attr, FsError> {
        self.setattr(inode, SetAttr { size_bytes: Some(size), ..SetAttr::default() }).await
    }

    pub async fn lookup(&self, dir: InodeId, name: &str) -> Result<InodeId, FsError> {
        match self.ask(FsOp::Lookup { dir, name: name.into() }).await?.0 {
            FsReply::Entry { inode, .. } => Ok(inode),
            other => panic!("{other:?}"),
        }
    }

    pub async fn link(&self, inode: InodeId, dir: InodeId, name: &str) -> i32 {
        self.fails(FsOp::Link { inode, dir, name: name.into() }).await
    }

    pub async fn unlink(&self, dir: InodeId, name: &str) -> i32 {
        self.fails(FsOp::Remove { dir, name: name.into(), directory: false }).await
    }

    pub async fn rmdir(&self, dir: InodeId, name: &str) -> i32 {
        self.fails(FsOp::Remove { dir, name: name.into(), directory: true }).await
    }

    pub async fn rename(&self, from: (InodeId, &str), to: (InodeId, &str)) -> i32 {
        self.rename_mode(from, to, RenameMode::Replace).await
    }

    pub async fn rename_mode(&self, from: (InodeId, &str), to: (InodeId, &str), mode: RenameMode) -> i32 {
        let (dir, name) = (from.0, from.1.into());
        self.fails(FsOp::Rename { dir, name, new_dir: to.0, new_name: to.1.into(), mode }).await
    }

    /// All names of a directory, sorted.
    pub async fn names(&self, dir: InodeId) -> Vec<String> {
        let mut names = Vec::new();
        let mut cookie = 0;
        loop {
            let op = FsOp::ReadDir { dir, cookie, entries_max: 7, attrs: false };
            let (FsReply::Entries { entries, end }, _) = self.ask(op).await.expect("readdir") else { panic!() };
            for entry in entries {
                assert!(entry.cookie > cookie, "cookies rise");
                cookie = entry.cookie;
                names.push(String::from_utf8(entry.name).expect("name"));
            }
            if end {
                names.sort();
                return names;
            }
        }
    }

    pub async fn open(&self, inode: InodeId) -> Result<(), FsError> {
        self.ask(FsOp::Open { inode, truncate: false, kill_setid: false }).await.map(drop)
    }

    pub async fn release(&self, inode: InodeId) {
        self.ask(FsOp::Release { inode }).await.expect("release");
    }
}
