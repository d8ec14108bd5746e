//! The journal ring: one append-only log on the drive, shared by all buckets.
//!
//! Whoever has something to write queues it; one task takes what is queued, writes it as one group with one
//! durable write, enters it into the index and answers. The ring is a circle of segments. Before the free ones run
//! out, the records that are still needed in the oldest are copied to the end and the oldest is free.

mod commit;
pub mod index;
mod read;
pub mod scan;

use crate::device::{Drive, DriveError, outcome};
use crate::format::geometry::SEGMENTS_FREE_MIN;
use crate::format::group::BucketState;
use crate::format::superblock::Superblock;
use bytes::Bytes;
use index::{Held, Index};
use scan::RingContent;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use weft_reactor::Handle;
use weft_reactor::sync::{Completer, Notify, completion};
use weft_wire::drive::{RecordHeader, RecordKind};
use weft_wire::limits::RECORD_BYTES_MAX;
use weft_wire::{BucketId, Epoch, Incarnation, Seq};

/// Payload bytes waiting for the commit task; whoever brings more waits.
const QUEUE_BYTES_MAX: u64 = 32 << 20;
/// How many times its share a bucket may have whose tail is of a time when the share was larger.
const BEYOND_SHARE: u64 = 2;
/// Whether a payload is the one that the record was made with.
pub fn payload_matches(bucket: BucketId, header: &RecordHeader, payload: &[u8]) -> bool {
    payload.len() == header.len_bytes as usize && header.checksum_of(bucket, [payload]) == header.checksum
}

/// Why records weren't taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// The bucket has more than its share, or the ring is full of live records.
    Full,
    /// The same leader wrote another record at this sequence.
    Conflict(Seq),
    Drive(DriveError),
}

impl From<DriveError> for AppendError {
    fn from(error: DriveError) -> Self {
        Self::Drive(error)
    }
}

/// A leader's records, checked by the caller: lengths and checksums fit.
pub struct Append {
    pub bucket: BucketId,
    pub as_epoch: Epoch,
    pub trim_below: Seq,
    pub records: Vec<(RecordHeader, Bytes)>,
}

enum Item {
    Record {
        bucket: BucketId,
        as_epoch: Epoch,
        trim_below: Seq,
        header: RecordHeader,
        payload: Bytes,
    },
    /// A record that moves from the oldest segment to the end.
    Copy {
        bucket: BucketId,
        held: Held,
        trim_below: Seq,
        payload: Bytes,
    },
    State {
        bucket: BucketId,
        state: BucketState,
    },
}

impl Item {
    fn payload(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match self {
            Self::Record { payload, .. } | Self::Copy { payload, .. } => payload,
            Self::State { .. } => &NONE,
        }
    }
}

/// Several items that are answered together.
struct Ticket {
    left: Cell<usize>,
    done: RefCell<Option<Completer<Result<(), DriveError>>>>,
}

impl Ticket {
    fn settle(&self, result: Result<(), DriveError>) {
        self.left.set(self.left.get().saturating_sub(1));
        if (result.is_err() || self.left.get() == 0)
            && let Some(done) = self.done.borrow_mut().take()
        {
            done.complete(result);
        }
    }
}

/// Where the next group goes.
struct Writer {
    serial: u64,
    /// Bytes from the segment's start.
    at: u64,
    next_number: u64,
    oldest_serial: u64,
    /// Failures in a row at this place.
    failures: u32,
}

pub struct Ring {
    drive: Rc<dyn Drive>,
    handle: Handle,
    superblock: Superblock,
    incarnation: Incarnation,
    index: RefCell<Index>,
    queue: RefCell<VecDeque<(Item, Rc<Ticket>)>>,
    writer: RefCell<Writer>,
    committing: Cell<bool>,
    room: Notify,
    counters: RefCell<RingCounters>,
    /// Why the last write failed, if it did.
    trouble: RefCell<Option<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    pub groups_written: u64,
    pub records_written: u64,
    pub records_copied: u64,
    pub segments_reclaimed: u64,
    pub write_errors: u64,
    pub read_errors: u64,
    pub checksum_errors: u64,
}

/// How full the ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingUse {
    pub live_bytes_max: u64,
    pub live_bytes: u64,
    pub bucket_bytes: u64,
}

impl Ring {
    pub fn new(
        drive: Rc<dyn Drive>,
        handle: Handle,
        superblock: Superblock,
        incarnation: Incarnation,
        content: RingContent,
    ) -> Rc<Self> {
        let segments = u64::from(superblock.geometry.segments);
        let mut writer = Writer {
            serial: content.serial,
            at: content.at,
            next_number: content.next_number,
            oldest_serial: content.oldest_serial,
            failures: 0,
        };
        // A new process writes to a fresh segment, unless its predecessors died so often that none is left.
        if writer.at > 0 && writer.free(segments) > SEGMENTS_FREE_MIN {
            writer.serial += 1;
            writer.at = 0;
        }
        Rc::new(Self {
            drive,
            handle,
            superblock,
            incarnation,
            index: RefCell::new(content.index),
            queue: RefCell::default(),
            writer: RefCell::new(writer),
            committing: Cell::new(false),
            room: Notify::new(),
            counters: RefCell::default(),
            trouble: RefCell::default(),
        })
    }

    /// Nothing is granted to lower epochs: as far as the ring knows durably.
    pub fn fence(&self, bucket: BucketId) -> Epoch {
        self.index.borrow().buckets.get(&bucket).map_or(Epoch(0), |log| log.state.fence)
    }

    /// Waits until the queue isn't full. Whoever then appends at once finds room.
    pub async fn room(&self) {
        while self.index.borrow().queued_bytes > QUEUE_BYTES_MAX {
            self.room.notified().await;
        }
    }

    /// Makes a leader's records durable. They are queued before the first wait, in the order of the calls. Those that are held already, by the same leader's hand, cost nothing.
    pub async fn append(self: &Rc<Self>, append: Append) -> Result<(), AppendError> {
        let items = self.accept(append)?;
        if !items.is_empty() {
            self.enqueue(items).await?;
        }
        Ok(())
    }

    /// What of it must be written; its space is taken from here on.
    fn accept(&self, append: Append) -> Result<Vec<Item>, AppendError> {
        let Append { bucket, as_epoch, trim_below, records } = append;
        let mut index = self.index.borrow_mut();
        if trim_below > index.bucket(bucket).state.trim_below {
            index.trim(bucket, trim_below);
        }
        let mut fresh = Vec::with_capacity(records.len());
        for (header, payload) in records {
            match index.bucket(bucket).records.get(&header.seq) {
                Some(held) if held.as_epoch == as_epoch && held.header == header => {}
                Some(held) if held.as_epoch == as_epoch => return Err(AppendError::Conflict(header.seq)),
                _ => fresh.push((header, payload)),
            }
        }
        if !fresh.is_empty() {
            self.admit(&mut index, bucket, as_epoch, &fresh)?;
        }
        let charge: u64 = fresh.iter().map(|(header, _)| index.charge(header.len_bytes)).sum();
        index.queued_bytes += charge;
        index.bucket(bucket).queued_bytes += charge;
        let trim_below = index.bucket(bucket).state.trim_below;
        let item = |(header, payload)| Item::Record { bucket, as_epoch, trim_below, header, payload };
        Ok(fresh.into_iter().map(item).collect())
    }

    /// Makes a fence durable: behind everything that was queued before.
    pub async fn seal(self: &Rc<Self>, bucket: BucketId, epoch: Epoch) -> Result<(), DriveError> {
        if weft_wire::mutant("forget_seal") {
            return Ok(());
        }
        let state = {
            let mut index = self.index.borrow_mut();
            let state = index.bucket(bucket).state;
            BucketState { fence: state.fence.max(epoch), ..state }
        };
        self.enqueue(vec![Item::State { bucket, state }]).await
    }

    async fn enqueue(self: &Rc<Self>, items: Vec<Item>) -> Result<(), DriveError> {
        let (done, pending) = completion();
        let ticket = Rc::new(Ticket { left: Cell::new(items.len()), done: RefCell::new(Some(done)) });
        self.queue.borrow_mut().extend(items.into_iter().map(|item| (item, Rc::clone(&ticket))));
        if !self.committing.replace(true) {
            self.handle.spawn("drive ring", commit::run(Rc::clone(self))).detach();
        }
        outcome(pending).await
    }

    /// Below half of the ring's live bytes everyone is welcome; above, only buckets below their share. Two kinds of records
    /// get more, since nobody could trim without them: roots and epoch starts may use one segment beyond the live bytes. And what
    /// former leaders left, and the next ones write behind it to make room, may be more than the share is now, as other drives had
    /// a part of it: that may use the other half, or most of it.
    fn admit(
        &self,
        index: &mut Index,
        bucket: BucketId,
        as_epoch: Epoch,
        records: &[(RecordHeader, Bytes)],
    ) -> Result<(), AppendError> {
        let geometry = &self.superblock.geometry;
        let live_max = geometry.ring_live_bytes_max();
        let charge: u64 = records.iter().map(|(header, _)| index.charge(header.len_bytes)).sum();
        let total = index.live_bytes + index.queued_bytes + charge;
        if total <= live_max / 2 {
            return Ok(());
        }
        // Batches that were refused before go with the root behind them: it can't stand before they do.
        let urgent = records.iter().any(|(header, _)| header.kind != RecordKind::Batch);
        if urgent && total <= live_max + geometry.segment_bytes / 2 {
            return Ok(());
        }
        let log = index.bucket(bucket);
        let own = log.live_bytes + log.queued_bytes + charge;
        let holders = index.buckets.values().filter(|log| log.live_bytes + log.queued_bytes > 0).count().max(1);
        let share = (live_max / 2 / holders as u64).max(RECORD_BYTES_MAX as u64);
        let adopted = records.iter().all(|(header, _)| header.epoch < as_epoch);
        let most = match own <= share || adopted {
            true => live_max,
            false if own <= BEYOND_SHARE * share => live_max / 8 * 7,
            false => 0,
        };
        if total <= most { Ok(()) } else { Err(AppendError::Full) }
    }

    pub fn usage(&self, bucket: BucketId) -> RingUse {
        let index = self.index.borrow();
        RingUse {
            live_bytes_max: self.superblock.geometry.ring_live_bytes_max(),
            live_bytes: index.live_bytes + index.queued_bytes,
            bucket_bytes: index.buckets.get(&bucket).map_or(0, |log| log.live_bytes + log.queued_bytes),
        }
    }

    pub fn counters(&self) -> RingCounters {
        *self.counters.borrow()
    }

    /// Why the last write failed, if it did.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }
}

impl Writer {
    /// Segments that hold nothing.
    fn free(&self, segments: u64) -> u64 {
        segments.saturating_sub(self.serial - self.oldest_serial + 1)
    }
}
