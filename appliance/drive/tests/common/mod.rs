//! A drive in memory with a server on it, and short ways to ask it.
#![allow(dead_code, reason = "each test file uses its own part")]

use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::mem::{MemMedia, MemOptions};
use weft_drive::{Drive, DriveOptions, DriveServer, FormatOptions, FormattedDrive};
use weft_reactor::Handle;
use weft_wire::drive::*;
use weft_wire::*;

pub const CLUSTER: Uuid = Uuid(0xc1);
pub const DRIVE: DriveId = DriveId(4);
pub const LEASE: Duration = Duration::from_millis(150);
pub const SMALLEST_BYTES: u64 = 64 << 20;

pub fn format_options() -> FormatOptions {
    FormatOptions { cluster: CLUSTER, node: NodeId(1), drive: DRIVE, uuid: Uuid(0xd4), force: false }
}

pub fn media() -> MemMedia {
    media_of(SMALLEST_BYTES)
}

pub fn media_of(capacity_bytes: u64) -> MemMedia {
    MemMedia::new(MemOptions {
        capacity_bytes,
        read_latency: Duration::from_micros(80),
        write_latency: Duration::from_micros(20),
        flush_latency: Duration::from_micros(50),
    })
}

pub async fn format(media: &MemMedia, handle: &Handle) {
    let drive: Rc<dyn Drive> = media.open(handle);
    FormattedDrive::format(&drive, format_options()).await.unwrap();
}

/// Opens the drive as the next process would.
pub async fn serve(media: &MemMedia, handle: &Handle, incarnation: u64) -> Rc<DriveServer> {
    let formatted = FormattedDrive::open(media.open(handle)).await.unwrap();
    DriveServer::new(formatted, handle.clone(), Incarnation(incarnation), DriveOptions { lease: LEASE })
}

pub async fn ask(server: &DriveServer, bucket: u32, op: DriveOp, body: Bytes) -> (DriveReply, Bytes) {
    let request = DriveRequest { cluster: CLUSTER, drive: DRIVE, bucket: BucketId(bucket), op };
    let (head, body) = server.handle(encode(&request), body).await;
    (decode(&head).unwrap(), body)
}

pub fn record(bucket: u32, epoch: u64, seq: u64, kind: RecordKind, payload: &[u8]) -> RecordHeader {
    let blank = RecordHeader {
        epoch: Epoch(epoch),
        seq: Seq(seq),
        kind,
        acknowledged: Seq(seq.saturating_sub(1)),
        len_bytes: payload.len() as u32,
        checksum: 0,
    };
    RecordHeader { checksum: blank.checksum_of(BucketId(bucket), [payload]), ..blank }
}

/// What a record holds in these tests.
pub fn payload(seq: u64, len: usize) -> Bytes {
    (0..len).map(|at| (seq as usize * 31 + at * 7) as u8).collect::<Vec<u8>>().into()
}

pub struct Appending {
    pub bucket: u32,
    pub epoch: u64,
    pub as_epoch: u64,
    pub seq: u64,
    pub kind: RecordKind,
    pub len: usize,
    pub trim_below: u64,
    pub promise: bool,
}

impl Appending {
    pub fn batch(bucket: u32, epoch: u64, seq: u64, len: usize) -> Self {
        Self { bucket, epoch, as_epoch: epoch, seq, kind: RecordKind::Batch, len, trim_below: 0, promise: false }
    }

    pub async fn to(self, server: &DriveServer) -> DriveReply {
        let payload = payload(self.seq, self.len);
        let records = vec![record(self.bucket, self.epoch, self.seq, self.kind, &payload)];
        let op = DriveOp::Append {
            as_epoch: Epoch(self.as_epoch),
            records,
            trim_below: Seq(self.trim_below),
            promise: self.promise,
        };
        ask(server, self.bucket, op, payload).await.0
    }
}

pub const APPENDED: DriveReply = DriveReply::Appended { promised: false };

pub async fn beat(server: &DriveServer, bucket: u32, epoch: u64, trim_below: u64, promise: bool) -> DriveReply {
    let op = DriveOp::Append { as_epoch: Epoch(epoch), records: vec![], trim_below: Seq(trim_below), promise };
    ask(server, bucket, op, Bytes::new()).await.0
}

pub async fn seal(server: &DriveServer, bucket: u32, epoch: u64) -> DriveReply {
    ask(server, bucket, DriveOp::Seal { epoch: Epoch(epoch) }, Bytes::new()).await.0
}

/// Seals and returns what is held.
pub async fn tail(server: &DriveServer, bucket: u32, epoch: u64) -> TailSummary {
    match seal(server, bucket, epoch).await {
        DriveReply::Sealed { tail } => tail,
        other => panic!("{other:?}"),
    }
}

pub struct Tail {
    pub records: Vec<RecordHeader>,
    pub unreadable: Vec<Seq>,
}

impl Tail {
    pub fn seqs(&self) -> Vec<u64> {
        self.records.iter().map(|record| record.seq.0).collect()
    }
}

/// Everything that is held of a bucket's log; checks the payloads.
pub async fn read_tail(server: &DriveServer, bucket: u32, from: u64) -> Tail {
    let mut all = Tail { records: Vec::new(), unreadable: Vec::new() };
    let mut from = Seq(from);
    loop {
        let (reply, body) = ask(server, bucket, DriveOp::ReadTail { from, bytes_max: 100_000 }, Bytes::new()).await;
        let DriveReply::Tail { records, unreadable, more } = reply else { panic!("{reply:?}") };
        let mut at = 0;
        for record in &records {
            let end = at + record.len_bytes as usize;
            assert_eq!(body.slice(at..end), payload(record.seq.0, end - at), "{}", record.seq);
            at = end;
        }
        from = records.iter().map(|record| record.seq).chain(unreadable.iter().copied()).max().unwrap_or(from).next();
        all.records.extend(records);
        all.unreadable.extend(unreadable);
        if !more {
            return all;
        }
    }
}

pub async fn open_zone(server: &DriveServer, bucket: u32, epoch: u64, zone_set: u64) -> (ZoneIndex, Generation) {
    let op = DriveOp::OpenZone { epoch: Epoch(epoch), zone_set: ZoneSetId(zone_set), shard: 0 };
    match ask(server, bucket, op, Bytes::new()).await.0 {
        DriveReply::Zone { zone, generation, .. } => (zone, generation),
        other => panic!("{other:?}"),
    }
}

pub async fn write_shard(
    server: &DriveServer,
    bucket: u32,
    epoch: u64,
    (zone, generation): (ZoneIndex, Generation),
    block: u32,
    data: Bytes,
) -> DriveReply {
    ask(server, bucket, DriveOp::WriteShard { epoch: Epoch(epoch), zone, generation, block }, data).await.0
}

pub async fn read_shard(
    server: &DriveServer,
    bucket: u32,
    (zone, generation): (ZoneIndex, Generation),
    block: u32,
    blocks: u32,
) -> (DriveReply, Bytes) {
    ask(server, bucket, DriveOp::ReadShard { zone, generation, block, blocks }, Bytes::new()).await
}

pub async fn free_zone(
    server: &DriveServer,
    bucket: u32,
    epoch: u64,
    (zone, generation): (ZoneIndex, Generation),
) -> DriveReply {
    ask(server, bucket, DriveOp::FreeZone { epoch: Epoch(epoch), zone, generation }, Bytes::new()).await.0
}

pub async fn stat(server: &DriveServer, bucket: u32) -> DriveStat {
    match ask(server, bucket, DriveOp::Stat, Bytes::new()).await.0 {
        DriveReply::Stat(stat) => stat,
        other => panic!("{other:?}"),
    }
}
