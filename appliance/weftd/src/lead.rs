//! The buckets that this core leads, by the map: opened when the map says so, closed when it says otherwise.

use crate::{moves, reach, upkeep};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Bucket, BucketError, BucketParams, DriveStates};
use weft_manager::MapWatch;
use weft_namespace::{Context, Namespace};
use weft_reactor::sync::Notify;
use weft_reactor::{Handle, Task};
use weft_transport::rpc::{Network, Request, Response, handler};
use weft_wire::bucket::{ParticipantReply, ParticipantRequest};
use weft_wire::fs::{FsError, FsOp, FsReply, FsRequest};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::manager::Proposal;
use weft_wire::map::{FilesystemState, Map, State};
use weft_wire::{BucketId, ClientId, CoreId, DriveId, Epoch, FsId, Incarnation, NodeId, Service, Uuid, decode, encode};

/// Pause before a bucket that failed asks for a new epoch.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two such questions: longer than a proposal waits for a quorum of the managers.
const UNDECIDED: Duration = Duration::from_secs(15);

/// For how long a request is held whose bucket will be served here in a moment, and how many of them.
const HOLD_MAX: Duration = Duration::from_millis(500);
const HELD_MAX: usize = 4096;

/// How long an orderly end waits for a last checkpoint.
const FINISH_MAX: Duration = Duration::from_secs(3);

/// Numbers that the configuration turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunables {
    pub journal: weft_journal::Tunables,
    pub bucket: weft_bucket::Tunables,
    pub namespace: weft_namespace::Tunables,
}

/// Counters of a led bucket.
pub struct LeadStats {
    pub bucket: weft_bucket::Stats,
    /// Pages of directories that have split.
    pub page_splits: u64,
}

/// How a led bucket is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeadState {
    /// Its journal is being recovered; the text says what that waits for.
    Opening(String),
    Serving,
    /// It could not be opened, or was lost; a new epoch is asked for.
    Failed(String),
}

struct Lead {
    epoch: Epoch,
    state: LeadState,
    namespace: Option<Rc<Namespace>>,
    opening: Option<Task<()>>,
}

/// Makes proposals to the managers' leader.
pub type Propose = Rc<dyn Fn(Proposal)>;

#[derive(Clone)]
pub struct Leads(Rc<Inner>);

struct Inner {
    core: CoreId,
    incarnation: Incarnation,
    network: Rc<dyn Network>,
    handle: Handle,
    map: MapWatch,
    propose: Propose,
    tunables: Tunables,
    beats: Rc<weft_journal::Beats>,
    leads: RefCell<BTreeMap<BucketId, Lead>>,
    making: RefCell<BTreeSet<FsId>>,
    /// A bucket has come further, or there is a newer map.
    progress: Notify,
    held: Cell<usize>,
    /// Nothing is opened any more.
    finishing: Cell<bool>,
    /// Nodes that don't answer this one though the managers say that they are there.
    unreached: RefCell<BTreeSet<NodeId>>,
}

/// What becomes of a request.
enum Found {
    Serves(Rc<Namespace>),
    /// Not yet, for this reason.
    Soon(FsError),
    Refused(FsError),
}

impl Leads {
    /// Follows the map from now on, as this incarnation of the node.
    pub fn start(
        core: CoreId,
        incarnation: Incarnation,
        network: Rc<dyn Network>,
        handle: Handle,
        map: MapWatch,
        propose: Propose,
        tunables: Tunables,
    ) -> Self {
        let leads = Self(Rc::new(Inner {
            core,
            incarnation,
            network,
            handle: handle.clone(),
            map,
            propose,
            tunables,
            beats: Rc::default(),
            leads: RefCell::default(),
            making: RefCell::default(),
            progress: Notify::new(),
            held: Cell::new(0),
            finishing: Cell::new(false),
            unreached: RefCell::default(),
        }));
        leads.serve();
        handle.spawn("leads", leads.clone().follow()).detach();
        handle.spawn("upkeep of leads", upkeep::run(leads.clone())).detach();
        handle.spawn("watch who can be reached", reach::run(leads.clone())).detach();
        handle.spawn("report moves", moves::run(leads.clone())).detach();
        leads
    }

    async fn follow(self) {
        loop {
            let version = self.0.map.version();
            if let Some(map) = self.0.map.get() {
                self.0.network.set_addresses(&map);
                self.reconcile(&map);
                self.make_roots(&map);
                self.0.progress.notify_all();
            }
            self.0.map.changed_since(version).await;
        }
    }

    /// Opens what is ours by the map, closes what isn't.
    fn reconcile(&self, map: &Map) {
        let mut ours = BTreeMap::new();
        for (index, bucket) in map.buckets.iter().enumerate() {
            if bucket.leader == self.0.core && bucket.incarnation == self.0.incarnation {
                ours.insert(BucketId(index as u32), bucket);
            }
        }
        self.0.leads.borrow_mut().retain(|id, lead| {
            let stays = ours.get(id).is_some_and(|bucket| bucket.epoch == lead.epoch);
            if !stays {
                tracing::info!(bucket = %id, epoch = %lead.epoch, "no longer led");
                lead.close();
            }
            stays
        });
        let states: DriveStates = Rc::new(drive_states(map));
        let shares = ZoneShares::new(map);
        let mut reads = weft_placement::rebuild_reads(map);
        for (id, bucket) in ours {
            let led = self.0.leads.borrow().get(&id).map(|lead| lead.namespace.clone());
            if let Some(namespace) = led {
                if let Some(namespace) = namespace {
                    namespace.bucket().set_members(bucket.members.clone(), Rc::clone(&states));
                    namespace.bucket().set_rebuild_reads(reads.remove(&id).unwrap_or_default());
                    if let Some(share) = shares.of(map, bucket) {
                        namespace.bucket().set_zone_sets_max(share);
                    }
                }
                continue;
            }
            if self.0.finishing.get() {
                continue;
            }
            let params = BucketParams {
                cluster: map.cluster,
                id,
                epoch: bucket.epoch,
                protection: map.protection,
                members: bucket.members.clone(),
                states: Rc::clone(&states),
                ensembles: bucket.ensembles.clone(),
                zone_rows: zone_rows(map, bucket),
                find: self.find_drive(),
                beats: Rc::clone(&self.0.beats),
                journal: journal_tunables(map, bucket, self.0.tunables.journal),
                tunables: weft_bucket::Tunables {
                    zone_sets_max: shares.of(map, bucket).unwrap_or(self.0.tunables.bucket.zone_sets_max),
                    ..self.0.tunables.bucket
                },
            };
            let opening = self.0.handle.spawn("open bucket", self.clone().open(params));
            let lead = Lead {
                epoch: bucket.epoch,
                state: LeadState::Opening("sealing its journal".into()),
                namespace: None,
                opening: Some(opening),
            };
            self.0.leads.borrow_mut().insert(id, lead);
        }
    }

    fn find_drive(&self) -> weft_bucket::FindDrive {
        let map = self.0.map.clone();
        Rc::new(move |drive| map.with(|map| map.as_ref().and_then(|map| map.drive_core(drive))))
    }

    async fn open(self, params: BucketParams) {
        let (id, epoch) = (params.id, params.epoch);
        let progress = {
            let leads = self.clone();
            move |reason: &str| leads.set_state(id, epoch, LeadState::Opening(reason.into()))
        };
        let opened = Bucket::open(params, Rc::clone(&self.0.network), self.0.handle.clone(), progress).await;
        let namespace = match opened {
            Ok(bucket) => {
                let (map, propose) = (self.0.map.clone(), Rc::clone(&self.0.propose));
                let context = Context {
                    map: Rc::new(move || map.get()),
                    network: Rc::clone(&self.0.network),
                    fence: Rc::new(move |client| propose(Proposal::FenceClient { client })),
                    tunables: self.0.tunables.namespace,
                };
                Namespace::open(bucket, context).await
            }
            Err(error) => Err(error),
        };
        match namespace {
            Ok(namespace) => {
                tracing::info!(bucket = %id, %epoch, "serving");
                if let Some(lead) = self.0.leads.borrow_mut().get_mut(&id).filter(|lead| lead.epoch == epoch) {
                    lead.state = LeadState::Serving;
                    lead.namespace = Some(namespace);
                    lead.opening = None;
                }
                self.0.progress.notify_all();
                upkeep::report_copied(&self, id, epoch);
                if let Some(map) = self.0.map.get() {
                    // It may have changed since the opening began.
                    self.reconcile(&map);
                    self.make_roots(&map);
                }
            }
            Err(error) => self.failed(id, epoch, error),
        }
    }

    fn set_state(&self, id: BucketId, epoch: Epoch, state: LeadState) {
        if let Some(lead) = self.0.leads.borrow_mut().get_mut(&id).filter(|lead| lead.epoch == epoch) {
            lead.state = state;
        }
        self.0.progress.notify_all();
    }

    /// The epoch is used up. If no other leader took over, a new one is asked for.
    fn failed(&self, id: BucketId, epoch: Epoch, error: BucketError) {
        tracing::warn!(bucket = %id, %epoch, %error, "can't lead");
        self.set_state(id, epoch, LeadState::Failed(error.to_string()));
        let leads = self.clone();
        let again = async move {
            let mut pause = AGAIN;
            loop {
                leads.0.handle.sleep(pause).await;
                let still = leads.0.leads.borrow().get(&id).is_some_and(|lead| lead.epoch == epoch);
                if !still || leads.is_finishing() {
                    return;
                }
                let node = leads.0.core.node;
                let incarnation = leads.0.incarnation;
                (leads.0.propose)(Proposal::NewEpochs { node, incarnation, buckets: vec![id] });
                // There may be no quorum of managers for longer than a proposal waits for one.
                pause = UNDECIDED;
            }
        };
        self.0.handle.spawn("ask for an epoch", again).detach();
    }

    fn serve(&self) {
        let leads = self.clone();
        self.0.network.serve(
            Service::Fs,
            handler(move |request: Request| {
                let leads = leads.clone();
                async move { leads.fs(request).await }
            }),
        );
        let leads = self.clone();
        self.0.network.serve(
            Service::Bucket,
            handler(move |request: Request| {
                let leads = leads.clone();
                async move { leads.participant(request).await }
            }),
        );
    }

    /// The namespace that serves the bucket in this epoch, or what the caller must do. Whoever comes a moment too early waits
    /// here: a bucket that just moved is opened, or this node's map is behind the caller's.
    async fn find(&self, bucket: BucketId, epoch: Epoch) -> Result<Rc<Namespace>, FsError> {
        let until = self.0.handle.now() + HOLD_MAX;
        loop {
            let progress = self.0.progress.notified();
            let error = match self.look(bucket, epoch) {
                Found::Serves(namespace) => return Ok(namespace),
                Found::Refused(error) => return Err(error),
                Found::Soon(error) => error,
            };
            if self.0.held.get() >= HELD_MAX {
                return Err(error);
            }
            let _one_more = Held::new(&self.0.held);
            if self.0.handle.timeout_at(until, progress).await.is_err() {
                return Err(error);
            }
        }
    }

    fn look(&self, bucket: BucketId, epoch: Epoch) -> Found {
        let Some(map) = self.0.map.get() else {
            return Found::Refused(FsError::NotReady("the node is in no cluster yet".into()));
        };
        let Some(by_map) = map.bucket(bucket) else { return Found::Refused(FsError::NotLeader) };
        if by_map.epoch > epoch {
            return Found::Refused(FsError::Newer(by_map.epoch));
        }
        if by_map.epoch < epoch {
            return Found::Soon(FsError::Older(by_map.epoch));
        }
        let mut lost = None;
        let found = {
            let leads = self.0.leads.borrow();
            match leads.get(&bucket).filter(|lead| lead.epoch == epoch) {
                None if by_map.leader == self.0.core && by_map.incarnation == self.0.incarnation => {
                    Found::Soon(FsError::NotReady("opening".into()))
                }
                None => Found::Refused(FsError::NotLeader),
                Some(lead) => match (&lead.namespace, &lead.state) {
                    (Some(namespace), LeadState::Serving) => match namespace.bucket().failed() {
                        None => Found::Serves(Rc::clone(namespace)),
                        Some(error) => {
                            lost = Some((lead.epoch, error.clone()));
                            Found::Soon(FsError::NotReady(error.to_string()))
                        }
                    },
                    (_, LeadState::Opening(reason)) => Found::Soon(FsError::NotReady(reason.clone())),
                    (_, LeadState::Failed(reason)) => Found::Refused(FsError::NotReady(reason.clone())),
                    (None, LeadState::Serving) => Found::Soon(FsError::NotReady("opening".into())),
                },
            }
        };
        if let Some((epoch, error)) = lost {
            self.failed(bucket, epoch, error);
        }
        found
    }

    async fn fs(&self, request: Request) -> Response {
        let Ok(head) = decode::<FsRequest>(&request.head) else {
            return answer(FsReply::Error(FsError::Errno(libc_einval())), Bytes::new());
        };
        if let Err(error) = self.same_cluster(head.cluster) {
            return answer(FsReply::Error(error), Bytes::new());
        }
        let from_node = request.from_core.is_some() && head.client == ClientId(0);
        if !from_node && let Err(error) = self.known_client(&head) {
            return answer(FsReply::Error(error), Bytes::new());
        }
        match self.find(head.bucket, head.epoch).await {
            Ok(namespace) => {
                let (reply, body) = namespace.handle(head, request.body).await;
                answer(reply, body)
            }
            Err(error) => answer(FsReply::Error(error), Bytes::new()),
        }
    }

    /// Numbers of buckets, clients and epochs mean something only within one cluster. Whoever asks goes on looking for its
    /// own: an address may have been handed on, or the node been set up anew.
    fn same_cluster(&self, asked: Uuid) -> Result<(), FsError> {
        match self.0.map.get() {
            Some(map) if map.cluster == asked => Ok(()),
            Some(_) => Err(FsError::NotReady("the node at this address is of another cluster".into())),
            None => Err(FsError::NotReady("the node is in no cluster yet".into())),
        }
    }

    /// A request of a client that the map doesn't list is refused, never executed.
    fn known_client(&self, request: &FsRequest) -> Result<(), FsError> {
        let Some(map) = self.0.map.get() else { return Err(FsError::NotReady("the node is in no cluster yet".into())) };
        match map.clients.get(&request.client) {
            Some(client) if !client.fenced => Ok(()),
            None if request.client >= map.next_client => Err(FsError::Older(Epoch(0))),
            _ => Err(FsError::Fenced(request.client)),
        }
    }

    async fn participant(&self, request: Request) -> Response {
        let reply = match decode::<ParticipantRequest>(&request.head) {
            Err(_) => (ParticipantReply::Refused(FsError::Errno(libc_einval())), Bytes::new()),
            Ok(head) => match self.same_cluster(head.cluster) {
                Ok(()) => match self.find(head.bucket, head.epoch).await {
                    Ok(namespace) => namespace.participant(head, request.body).await,
                    Err(error) => (ParticipantReply::Refused(error), Bytes::new()),
                },
                Err(error) => (ParticipantReply::Refused(error), Bytes::new()),
            },
        };
        Response { head: encode(&reply.0), body: reply.1 }
    }

    /// Writes the root directories of new filesystems whose bucket is served here.
    fn make_roots(&self, map: &Map) {
        for fs in map.filesystems.values().filter(|fs| fs.state == FilesystemState::Creating) {
            let bucket = map.bucket_of(fs.root.position());
            let namespace = self.0.leads.borrow().get(&bucket).and_then(|lead| lead.namespace.clone());
            let Some(namespace) = namespace else { continue };
            if !self.0.making.borrow_mut().insert(fs.id) {
                continue;
            }
            let (leads, cluster, id, root) = (self.clone(), map.cluster, fs.id, fs.root);
            let make = async move {
                let request = FsRequest {
                    cluster,
                    bucket,
                    epoch: namespace.bucket().epoch(),
                    fs: id,
                    client: Default::default(),
                    sequence: 0,
                    unanswered: 0,
                    depth: 0,
                    op: FsOp::MakeRoot { root },
                };
                let (reply, _) = namespace.handle(request, Bytes::new()).await;
                leads.0.making.borrow_mut().remove(&id);
                match reply {
                    FsReply::Error(error) => tracing::warn!(fs = %id, %error, "its root can't be made"),
                    _ => (leads.0.propose)(Proposal::FilesystemReady { fs: id }),
                }
            };
            self.0.handle.spawn("make root", make).detach();
        }
    }

    /// The state of each led bucket, with its counters.
    pub fn states(&self) -> Vec<(BucketId, Epoch, LeadState, Option<LeadStats>)> {
        let leads = self.0.leads.borrow();
        leads
            .iter()
            .map(|(id, lead)| {
                let stats = lead.namespace.as_ref().map(|namespace| LeadStats {
                    bucket: namespace.bucket().stats(),
                    page_splits: namespace.page_splits(),
                });
                (*id, lead.epoch, lead.state.clone(), stats)
            })
            .collect()
    }

    /// The buckets that are served here: for those who check them.
    pub fn buckets(&self) -> Vec<Bucket> {
        let leads = self.0.leads.borrow();
        leads.values().filter_map(|lead| lead.namespace.as_ref().map(|namespace| namespace.bucket().clone())).collect()
    }

    /// The namespaces that serve now.
    pub(crate) fn serving(&self) -> Vec<(BucketId, Rc<Namespace>)> {
        let leads = self.0.leads.borrow();
        let serving = |lead: &Lead| lead.namespace.clone().filter(|namespace| namespace.bucket().failed().is_none());
        leads.iter().filter_map(|(id, lead)| Some((*id, serving(lead)?))).collect()
    }

    pub(crate) fn parts(&self) -> (CoreId, Incarnation, &Handle, &MapWatch, &Propose) {
        (self.0.core, self.0.incarnation, &self.0.handle, &self.0.map, &self.0.propose)
    }

    pub(crate) fn network(&self) -> &Rc<dyn Network> {
        &self.0.network
    }

    pub(crate) fn is_finishing(&self) -> bool {
        self.0.finishing.get()
    }

    pub(crate) fn set_unreached(&self, nodes: BTreeSet<NodeId>) {
        self.0.unreached.replace(nodes);
    }

    pub(crate) fn unreached(&self) -> Vec<NodeId> {
        self.0.unreached.borrow().iter().copied().collect()
    }

    /// Orderly end: everything into runs, so that the next start has little to replay. Peers that stop at the same time
    /// may be gone already, so it isn't waited for long: the journal has everything all the same.
    pub async fn finish(&self) {
        self.0.finishing.set(true);
        let namespaces: Vec<_> = self.0.leads.borrow().values().filter_map(|lead| lead.namespace.clone()).collect();
        let finishing = namespaces.iter().map(|namespace| async {
            let bucket = namespace.bucket();
            match self.0.handle.timeout(FINISH_MAX, bucket.finish()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::info!(bucket = %bucket.id(), %error, "no checkpoint at the end"),
                Err(_) => tracing::info!(bucket = %bucket.id(), "no checkpoint at the end: its drives don't answer"),
            }
            bucket.close();
        });
        weft_reactor::join_all(finishing).await;
    }
}

/// Counts itself for as long as it lives.
struct Held<'a>(&'a Cell<usize>);

impl<'a> Held<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Lead {
    fn close(&mut self) {
        if let Some(opening) = self.opening.take() {
            opening.abort();
        }
        if let Some(namespace) = self.namespace.take() {
            namespace.bucket().close();
        }
    }
}

fn libc_einval() -> i32 {
    nix::errno::Errno::EINVAL as i32
}

fn answer(reply: FsReply, body: Bytes) -> Response {
    Response { head: encode(&reply), body }
}

/// How each drive is: as itself or as its node, whichever is worse.
fn drive_states(map: &Map) -> BTreeMap<DriveId, State> {
    let severity = |state: &State| match state {
        State::Up => 0,
        State::Draining => 1,
        State::Away => 2,
        State::Failed => 3,
        State::Joining => 4,
    };
    let state = |drive: &weft_wire::map::Drive| {
        let node = map.nodes.get(&drive.node).map_or(State::Failed, |node| node.state);
        std::cmp::max_by_key(drive.state, node, severity)
    };
    map.drives.iter().map(|(id, drive)| (*id, state(drive))).collect()
}

/// Blocks of a zone on the member with the smallest.
fn zone_rows(map: &Map, bucket: &weft_wire::map::Bucket) -> u32 {
    let zones = bucket.members.iter().filter_map(|member| map.drives.get(member)).map(|drive| drive.zone_bytes);
    zones.min().unwrap_or(0).div_ceil(BLOCK_BYTES as u64).min(u64::from(u32::MAX)) as u32
}

/// A journal may hold as much as each drive of its ensembles takes of it however full the others' journals are. What former leaders
/// left may be more: the deaths of drives leave less of the others to each bucket.
fn journal_tunables(
    map: &Map,
    bucket: &weft_wire::map::Bucket,
    tunables: weft_journal::Tunables,
) -> weft_journal::Tunables {
    let drives = bucket.ensembles.iter().flat_map(|ensemble| &ensemble.drives);
    let shares = drives.filter_map(|id| {
        let geometry = weft_drive::format::geometry::Geometry::for_capacity(map.drives.get(id)?.capacity_bytes).ok()?;
        let holds =
            |bucket: &&weft_wire::map::Bucket| bucket.ensembles.iter().any(|ensemble| ensemble.drives.contains(id));
        let buckets = map.buckets.iter().filter(holds).count().max(1) as u64;
        Some(weft_journal::Tunables::quota_of(geometry.ring_live_bytes_max(), buckets))
    });
    let share = shares.min().unwrap_or(tunables.quota_bytes);
    weft_journal::Tunables { quota_bytes: share.min(tunables.quota_bytes), ..tunables }
}

/// Zones that buckets may use: each drive's over the buckets that it is a member of, less what is kept as a hot spare.
struct ZoneShares {
    buckets: BTreeMap<DriveId, usize>,
    spare: weft_placement::Spare,
}

impl ZoneShares {
    fn new(map: &Map) -> Self {
        let mut buckets = BTreeMap::new();
        for member in map.buckets.iter().flat_map(|bucket| &bucket.members) {
            *buckets.entry(*member).or_default() += 1;
        }
        Self { buckets, spare: weft_placement::spare(map, map.hot_spare) }
    }

    /// The share on the member that has least.
    fn of(&self, map: &Map, bucket: &weft_wire::map::Bucket) -> Option<usize> {
        let shares = bucket.members.iter().filter_map(|member| {
            let zones = u64::from(map.drives.get(member)?.zones);
            let buckets = self.buckets.get(member).copied().unwrap_or(1).max(1);
            Some(self.spare.usable(zones) as usize / buckets)
        });
        shares.min()
    }
}
