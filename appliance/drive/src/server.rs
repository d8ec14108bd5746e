//! Answers `wire::drive` requests for one drive.

use crate::device::DriveError;
use crate::formatted::FormattedDrive;
use crate::promise::Promises;
use crate::ring::{Append, AppendError, Ring, payload_matches};
use crate::zones::{ShardPlace, Zones};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::Notify;
use weft_reactor::{Handle, Instant};
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply, DriveRequest, DriveStat, RecordHeader};
use weft_wire::limits::{MESSAGE_BODY_BYTES_MAX, RECORD_BYTES_MAX};
use weft_wire::{BucketId, DriveId, Epoch, Incarnation, Seq};

/// A seal that must wait longer for old promises is refused with the time to wait, so that callers don't time out.
const SEAL_WAIT_MAX: Duration = Duration::from_millis(400);
/// Buckets that one drive serves.
const BUCKETS_MAX: usize = 1 << 16;
/// Records in one append.
const APPEND_RECORDS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub struct DriveOptions {
    /// How long a promise holds, and how long a restarted drive answers no seals.
    pub lease: Duration,
}

impl Default for DriveOptions {
    fn default() -> Self {
        Self { lease: Duration::from_millis(150) }
    }
}

/// How many writes ended which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    pub done: u64,
    pub failed: u64,
}

pub struct DriveServer {
    formatted: Rc<FormattedDrive>,
    ring: Rc<Ring>,
    zones: Rc<Zones>,
    handle: Handle,
    options: DriveOptions,
    silent_until: Instant,
    promises: RefCell<BTreeMap<BucketId, Promises>>,
    /// A leader gave its promise back.
    released: Notify,
}

type Answer = Result<(DriveReply, Bytes), DriveRefusal>;

impl DriveServer {
    /// Serves a drive that was just opened, as a process of this incarnation.
    ///
    /// Panics if the drive has a server already: there is one for each opening.
    pub fn new(
        formatted: Rc<FormattedDrive>,
        handle: Handle,
        incarnation: Incarnation,
        options: DriveOptions,
    ) -> Rc<Self> {
        let Some(content) = formatted.take_content() else {
            panic!("{} is served twice", formatted.id());
        };
        let drive = Rc::clone(formatted.device());
        let superblock = *formatted.superblock();
        let ring = Ring::new(Rc::clone(&drive), handle.clone(), superblock, incarnation, content.ring);
        let zones = Zones::new(drive, handle.clone(), superblock, content.table);
        let silent_until = handle.now() + options.lease;
        Rc::new(Self {
            formatted,
            ring,
            zones,
            handle,
            options,
            silent_until,
            promises: RefCell::default(),
            released: Notify::new(),
        })
    }

    pub fn id(&self) -> DriveId {
        self.formatted.id()
    }

    pub fn formatted(&self) -> &Rc<FormattedDrive> {
        &self.formatted
    }

    /// Answers an encoded [`DriveRequest`] with an encoded [`DriveReply`]. Bodies are beside the heads.
    pub async fn handle(&self, head: Bytes, body: Bytes) -> (Bytes, Bytes) {
        let (reply, body) = match weft_wire::decode::<DriveRequest>(&head) {
            Ok(request) => self.request(request, body).await,
            Err(malformed) => (DriveReply::Refused(DriveRefusal::Bounds(malformed.to_string())), Bytes::new()),
        };
        (weft_wire::encode(&reply), body)
    }

    pub async fn request(&self, request: DriveRequest, body: Bytes) -> (DriveReply, Bytes) {
        let answer = if request.cluster != self.formatted.cluster() {
            Err(DriveRefusal::OtherCluster)
        } else if request.drive != self.id() {
            Err(DriveRefusal::NotHere)
        } else if self.is_one_too_many(request.bucket) {
            Err(DriveRefusal::Bounds(format!("{} beside {BUCKETS_MAX} other buckets", request.bucket)))
        } else {
            self.answer(request.bucket, request.op, body).await
        };
        answer.unwrap_or_else(|refusal| (DriveReply::Refused(refusal), Bytes::new()))
    }

    async fn answer(&self, bucket: BucketId, op: DriveOp, body: Bytes) -> Answer {
        let reply = match op {
            DriveOp::Append { as_epoch, records, trim_below, promise } => {
                self.append(bucket, as_epoch, records, trim_below, promise, body).await?
            }
            DriveOp::Seal { epoch } => self.seal(bucket, epoch).await?,
            DriveOp::ReadTail { from, bytes_max } => return self.read_tail(bucket, from, bytes_max).await,
            DriveOp::OpenZone { epoch, zone_set, shard } => {
                self.check_fence(bucket, epoch)?;
                let (zone, generation) = self.zones.open(bucket, epoch, zone_set, shard).await?;
                DriveReply::Zone { zone, generation, blocks: self.formatted.geometry().zone_blocks() }
            }
            DriveOp::FreeZone { epoch, zone, generation } => {
                self.check_fence(bucket, epoch)?;
                self.zones.free(bucket, epoch, zone, generation).await?;
                DriveReply::Freed
            }
            DriveOp::ListZones => DriveReply::Zones(self.zones.list(bucket).await?),
            DriveOp::WriteShard { epoch, zone, generation, block } => {
                self.check_fence(bucket, epoch)?;
                self.zones.write(bucket, epoch, ShardPlace { zone, generation, block }, body).await?;
                DriveReply::Written
            }
            DriveOp::ReadShard { zone, generation, block, blocks } => {
                let content = match self.zones.read(bucket, ShardPlace { zone, generation, block }, blocks).await {
                    Err(DriveRefusal::Io(reason)) if self.formatted.is_unreadable().await => {
                        return Err(DriveRefusal::Failing(reason));
                    }
                    answer => answer?,
                };
                return Ok((DriveReply::Blocks, content));
            }
            DriveOp::Stat => DriveReply::Stat(self.stat(bucket)),
            DriveOp::Release { epoch } => {
                self.with_promises(bucket, |promises| promises.release(epoch));
                self.released.notify_all();
                DriveReply::Released
            }
        };
        Ok((reply, Bytes::new()))
    }

    fn is_one_too_many(&self, bucket: BucketId) -> bool {
        let promises = self.promises.borrow();
        promises.len() >= BUCKETS_MAX && !promises.contains_key(&bucket)
    }

    /// What may be granted to this bucket's leaders.
    fn with_promises<R>(&self, bucket: BucketId, change: impl FnOnce(&mut Promises) -> R) -> R {
        let mut promises = self.promises.borrow_mut();
        let fence = self.ring.fence(bucket);
        change(promises.entry(bucket).or_insert_with(|| Promises::new(fence, self.silent_until)))
    }

    fn check_fence(&self, bucket: BucketId, epoch: Epoch) -> Result<(), DriveRefusal> {
        let highest = self.with_promises(bucket, |promises| promises.highest());
        if epoch < highest { Err(DriveRefusal::Sealed(highest)) } else { Ok(()) }
    }

    async fn append(
        &self,
        bucket: BucketId,
        as_epoch: Epoch,
        headers: Vec<RecordHeader>,
        trim_below: Seq,
        promise: bool,
        body: Bytes,
    ) -> Result<DriveReply, DriveRefusal> {
        let records = split_records(bucket, as_epoch, headers, &body)?;
        // From here on nothing waits before the records are queued: a seal that comes later is queued behind them.
        self.ring.room().await;
        self.with_promises(bucket, |promises| {
            promises.admit(as_epoch)?;
            if promise {
                promises.promise(as_epoch, self.handle.now(), self.options.lease);
            }
            Ok(())
        })
        .map_err(DriveRefusal::Sealed)?;
        self.ring.append(Append { bucket, as_epoch, trim_below, records }).await.map_err(refusal)?;
        Ok(DriveReply::Appended { promised: promise })
    }

    async fn seal(&self, bucket: BucketId, epoch: Epoch) -> Result<DriveReply, DriveRefusal> {
        self.with_promises(bucket, |promises| promises.admit(epoch)).map_err(DriveRefusal::Sealed)?;
        // Written even if the fence stands already: the answer must cover every append that was let in before.
        self.ring.seal(bucket, epoch).await.map_err(io)?;
        loop {
            let released = self.released.notified();
            let at = self.with_promises(bucket, |promises| promises.seal_at(epoch));
            let wait = at.since(self.handle.now());
            if wait.is_zero() {
                break;
            }
            if wait > SEAL_WAIT_MAX {
                let retry_ms = u32::try_from(wait.as_millis() + 1).unwrap_or(u32::MAX);
                return Err(DriveRefusal::Promised { retry_ms });
            }
            // Either way it is looked at again.
            let _ = self.handle.timeout_at(at, released).await;
        }
        self.check_fence(bucket, epoch)?;
        Ok(DriveReply::Sealed { tail: self.ring.summary(bucket) })
    }

    async fn read_tail(&self, bucket: BucketId, from: Seq, bytes_max: u32) -> Answer {
        let bytes_max = (bytes_max as usize).min(MESSAGE_BODY_BYTES_MAX);
        let tail = self.ring.read_tail(bucket, from, bytes_max).await.map_err(io)?;
        let reply = DriveReply::Tail { records: tail.records, unreadable: tail.unreadable, more: tail.more };
        Ok((reply, tail.payloads))
    }

    /// How writes ended since the drive was opened: those of records, and those of shards. One kind may go on while the
    /// other fails: a file that can't grow takes records, as its journal ring is there already.
    pub fn writes(&self) -> [Writes; 2] {
        let (ring, zones) = (self.ring.counters(), self.zones.counters());
        [
            Writes { done: ring.groups_written, failed: ring.write_errors },
            Writes { done: zones.writes, failed: zones.write_errors },
        ]
    }

    /// Why the last write of either kind failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.zones.trouble().or_else(|| self.ring.trouble())
    }

    /// Capacity and use; of the ring also what one bucket's records take.
    pub fn stat(&self, bucket: BucketId) -> DriveStat {
        let geometry = self.formatted.geometry();
        let usage = self.ring.usage(bucket);
        let (ring, zones) = (self.ring.counters(), self.zones.counters());
        DriveStat {
            zones: geometry.zones,
            zones_free: self.zones.free_count(),
            zone_bytes: geometry.zone_bytes,
            ring_bytes: usage.live_bytes_max,
            ring_used_bytes: usage.live_bytes,
            ring_bucket_bytes: usage.bucket_bytes,
            read_errors: ring.read_errors + zones.read_errors,
            write_errors: ring.write_errors + zones.write_errors,
            checksum_errors: ring.checksum_errors,
        }
    }
}

/// Pairs headers with their payloads, checked.
fn split_records(
    bucket: BucketId,
    as_epoch: Epoch,
    headers: Vec<RecordHeader>,
    body: &Bytes,
) -> Result<Vec<(RecordHeader, Bytes)>, DriveRefusal> {
    let bounds = |what: String| Err(DriveRefusal::Bounds(what));
    if headers.len() > APPEND_RECORDS_MAX {
        return bounds(format!("{} records in one append", headers.len()));
    }
    let mut records = Vec::with_capacity(headers.len());
    let mut at = 0;
    for header in headers {
        let len = header.len_bytes as usize;
        let (seq, epoch) = (header.seq, header.epoch);
        if len > RECORD_BYTES_MAX || body.len() - at < len {
            return bounds(format!("{seq} has {len} bytes, the body {} more", body.len() - at));
        }
        if epoch > as_epoch || seq < Seq::FIRST {
            return bounds(format!("{seq} of {epoch} from the leader of {as_epoch}"));
        }
        let payload = body.slice(at..at + len);
        if !payload_matches(bucket, &header, &payload) {
            return bounds(format!("{seq} doesn't match its checksum"));
        }
        at += len;
        records.push((header, payload));
    }
    if at != body.len() { bounds(format!("{} bytes beyond the records", body.len() - at)) } else { Ok(records) }
}

fn io(error: DriveError) -> DriveRefusal {
    DriveRefusal::Io(error.to_string())
}

fn refusal(error: AppendError) -> DriveRefusal {
    match error {
        AppendError::Full => DriveRefusal::RingFull,
        AppendError::Conflict(seq) => DriveRefusal::Bounds(format!("{seq} holds another record of the same leader")),
        AppendError::Drive(error) => io(error),
    }
}
