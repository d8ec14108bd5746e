//! Real drives in memory behind a network in memory, and leaders that come and go.

use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::mem::{CrashKeeps, MemMedia, MemOptions};
use weft_drive::{Drive, DriveOptions, DriveServer, DriveService, FormatOptions, FormattedDrive};
use weft_journal::{Log, LogError, LogParams, RecoverError, Recovered, RootRecord, Tunables};
use weft_reactor::Handle;
use weft_reactor::sync::Pending;
use weft_transport::memory::MemoryNetwork;
use weft_wire::drive::RecordKind;
use weft_wire::map::{Ensemble, Protection};
use weft_wire::{BucketId, CoreId, DriveId, Epoch, Incarnation, NodeId, Seq, Uuid};

pub const CLUSTER: Uuid = Uuid(0xc1);
pub const BUCKET: BucketId = BucketId(7);
const CAPACITY_BYTES: u64 = 64 << 20;

pub struct Cluster {
    pub handle: Handle,
    pub network: MemoryNetwork,
    pub tunables: Cell<Tunables>,
    media: BTreeMap<DriveId, MemMedia>,
    incarnation: Cell<u64>,
    pub servers: RefCell<BTreeMap<DriveId, Rc<DriveServer>>>,
}

pub fn drives(ids: impl IntoIterator<Item = u32>) -> Vec<DriveId> {
    ids.into_iter().map(DriveId).collect()
}

pub fn drive_core(drive: DriveId) -> CoreId {
    CoreId { node: NodeId(drive.0 as u16), core: 0 }
}

/// Each epoch's leader has a node of its own, so that it can be cut off and crash by itself.
pub fn leader_core(epoch: u64) -> CoreId {
    CoreId { node: NodeId(1000 + epoch as u16), core: 0 }
}

impl Cluster {
    /// With formatted drives 1 to `count`, all running.
    pub async fn new(handle: Handle, count: u32) -> Rc<Self> {
        let options = MemOptions {
            capacity_bytes: CAPACITY_BYTES,
            read_latency: Duration::from_micros(20),
            write_latency: Duration::from_micros(50),
            flush_latency: Duration::from_micros(100),
        };
        let media = (1..=count).map(|id| (DriveId(id), MemMedia::new(options))).collect();
        let cluster = Rc::new(Self {
            network: MemoryNetwork::new(handle.clone()),
            handle,
            tunables: Cell::new(Tunables::default()),
            media,
            incarnation: Cell::new(0),
            servers: RefCell::default(),
        });
        for (drive, media) in &cluster.media {
            let device: Rc<dyn Drive> = media.open(&cluster.handle);
            let node = drive_core(*drive).node;
            let uuid = Uuid(u128::from(drive.0));
            let options = FormatOptions { cluster: CLUSTER, node, drive: *drive, uuid, force: false };
            FormattedDrive::format(&device, options).await.expect("a blank drive can be formatted");
            cluster.start(*drive).await;
        }
        cluster
    }

    /// A process opens the drive and serves it.
    pub async fn start(&self, drive: DriveId) {
        self.network.restart(drive_core(drive));
        let device = self.media[&drive].open(&self.handle);
        let formatted = FormattedDrive::open(device).await.expect("a formatted drive can be opened");
        self.incarnation.set(self.incarnation.get() + 1);
        let incarnation = Incarnation(self.incarnation.get());
        let options = DriveOptions { lease: self.tunables.get().lease };
        let server = DriveServer::new(formatted, self.handle.clone(), incarnation, options);
        let service = DriveService::new();
        service.add(Rc::clone(&server));
        service.serve(self.network.node(drive_core(drive)).as_ref());
        self.servers.borrow_mut().insert(drive, server);
    }

    /// The drive's process dies, and with `keeps` its power too.
    pub fn crash(&self, drive: DriveId, keeps: CrashKeeps) {
        self.network.crash(drive_core(drive));
        self.servers.borrow_mut().remove(&drive);
        self.media[&drive].crash(keeps);
    }

    /// Drives vanish, and empty ones answer in their place: more than the protection survives, if they are many.
    pub async fn replace_with_blank(&self, drives: &[DriveId]) {
        let blank = Self::new(self.handle.clone(), self.media.len() as u32).await;
        for drive in drives {
            let service = DriveService::new();
            service.add(Rc::clone(&blank.servers.borrow()[drive]));
            service.serve(self.network.node(drive_core(*drive)).as_ref());
        }
    }

    pub fn is_running(&self, drive: DriveId) -> bool {
        self.servers.borrow().contains_key(&drive)
    }

    pub fn params(&self, epoch: u64, ensembles: &[&[DriveId]]) -> LogParams {
        let ensembles =
            ensembles.iter().map(|drives| Ensemble { since: Epoch(epoch), drives: drives.to_vec() }).collect();
        LogParams {
            cluster: CLUSTER,
            bucket: BUCKET,
            epoch: Epoch(epoch),
            protection: Protection { data: 4, parity: 2 },
            ensembles,
            drives: Rc::new(|drive| Some(drive_core(drive))),
            beats: Rc::default(),
            tunables: self.tunables.get(),
        }
    }

    pub async fn lead(&self, epoch: u64, ensembles: &[&[DriveId]]) -> Result<Leader, RecoverError> {
        let params = self.params(epoch, ensembles);
        let recovered = Log::recover(params, self.network.node(leader_core(epoch)), self.handle.clone()).await?;
        Ok(Leader::new(recovered))
    }
}

/// A leader with the state that its log stands for: the payload of each batch, by sequence.
pub struct Leader {
    pub log: Rc<Log>,
    pub root: Option<Seq>,
    /// What the newest root covers.
    pub covered: Cell<Seq>,
    pub state: RefCell<BTreeMap<u64, u64>>,
    /// How many records had to be replayed.
    pub replayed: usize,
}

pub type Outcome = Pending<Result<(), LogError>>;

impl Leader {
    pub fn new(recovered: Recovered) -> Self {
        let Recovered { log, root, records } = recovered;
        let mut state = BTreeMap::new();
        let covers = root.as_ref().map_or(Seq(0), |(_, root)| root.covers);
        if let Some((_, root)) = &root {
            let pairs: Vec<(u64, u64)> = weft_wire::decode(&root.body).expect("the body that was appended");
            state.extend(pairs);
        }
        for record in &records {
            assert!(record.header.seq > covers, "{} is covered by {covers}", record.header.seq);
            assert_eq!(record.header.kind, RecordKind::Batch);
            state.insert(record.header.seq.0, value_of(&record.payload));
        }
        Self {
            log,
            root: root.map(|(seq, _)| seq),
            covered: Cell::new(covers),
            state: RefCell::new(state),
            replayed: records.len(),
        }
    }

    /// Appends a batch that carries `value`, `len` bytes long in two pieces.
    pub fn append(&self, value: u64, len: usize) -> Result<(Seq, Outcome), LogError> {
        let mut tail = vec![0; len.saturating_sub(8)];
        tail.iter_mut().zip(value..).for_each(|(byte, count)| *byte = count as u8);
        let payload = vec![Bytes::copy_from_slice(&value.to_le_bytes()), tail.into()];
        let (seq, pending) = self.log.append(RecordKind::Batch, payload)?;
        self.state.borrow_mut().insert(seq.0, value);
        Ok((seq, pending))
    }

    /// Appends a root that covers everything up to `covers`.
    pub fn append_root(&self, covers: Seq) -> Result<(Seq, Outcome), LogError> {
        let pairs: Vec<(u64, u64)> =
            self.state.borrow().range(..=covers.0).map(|(seq, value)| (*seq, *value)).collect();
        let appended = self.log.append_root(RootRecord { covers, body: weft_wire::encode(&pairs) })?;
        self.covered.set(covers);
        Ok(appended)
    }
}

fn value_of(payload: &Bytes) -> u64 {
    let (value, tail) = payload.split_first_chunk::<8>().expect("a value");
    let value = u64::from_le_bytes(*value);
    assert!(tail.iter().zip(value..).all(|(byte, count)| *byte == count as u8), "the payload of {value} is whole");
    value
}

pub async fn settled(pending: Outcome) -> Result<(), LogError> {
    pending.await.unwrap_or(Err(LogError::Stopped))
}
