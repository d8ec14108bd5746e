//! Writing groups, one at a time, and reclaiming the oldest segment.

use super::{Held, Item, Ring, Ticket, payload_matches};
use crate::device::{DriveError, outcome};
use crate::format::geometry::SEGMENTS_FREE_MIN;
use crate::format::group::{self, ENTRIES_MAX, ENTRY_BYTES, Entry, GroupHeader, HEADER_BYTES, RecordEntry};
use crate::format::whole_blocks;
use bytes::Bytes;
use std::rc::Rc;
use weft_reactor::sync::Pending;
use weft_reactor::{AlignedBuf, is_aligned};
use weft_wire::BucketId;
use weft_wire::limits::{BLOCK_BYTES, RECORD_BYTES_MAX};

/// Payload bytes of one group, unless its first record alone is larger.
const GROUP_PAYLOAD_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// Payloads from this size on go to the drive from where they lie; smaller ones are copied behind the entries.
const IN_PLACE_BYTES_MIN: usize = 32 << 10;
/// After so many failures in a row a place is given up for the next segment.
const FAILURES_MAX: u32 = 2;

/// Writes what is queued until nothing is.
pub(super) async fn run(ring: Rc<Ring>) {
    loop {
        if let Err(error) = ring.reclaim().await {
            tracing::warn!(drive = %ring.superblock.drive, %error, "can't reclaim journal segments");
        }
        let batch = ring.take_batch();
        if batch.is_empty() {
            ring.committing.set(false);
            return;
        }
        let (items, tickets): (Vec<Item>, Vec<Rc<Ticket>>) = batch.into_iter().unzip();
        let result = ring.write_group(&items).await;
        ring.settle_queued(&items);
        for ticket in tickets {
            ticket.settle(result.clone());
        }
        ring.room.notify_all();
    }
}

/// Where everything in a group goes.
struct Plan {
    /// Of each item's payload, from the group's start.
    offsets: Vec<usize>,
    /// Header, entries and copied payloads.
    head_bytes: usize,
    total_bytes: usize,
}

fn goes_in_place(payload: &Bytes) -> bool {
    payload.len() >= IN_PLACE_BYTES_MIN && is_aligned(payload)
}

impl Plan {
    fn of(items: &[Item]) -> Self {
        let mut head_end = HEADER_BYTES + items.len() * ENTRY_BYTES;
        let mut offsets = vec![0; items.len()];
        for (offset, item) in offsets.iter_mut().zip(items).filter(|(_, item)| !goes_in_place(item.payload())) {
            *offset = head_end;
            head_end += item.payload().len();
        }
        let head_bytes = whole_blocks(head_end);
        let mut total_bytes = head_bytes;
        for (offset, item) in offsets.iter_mut().zip(items).filter(|(_, item)| goes_in_place(item.payload())) {
            *offset = total_bytes;
            total_bytes += whole_blocks(item.payload().len());
        }
        Self { offsets, head_bytes, total_bytes }
    }
}

impl Ring {
    fn take_batch(&self) -> Vec<(Item, Rc<Ticket>)> {
        let mut queue = self.queue.borrow_mut();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some((item, _)) = queue.front() {
            bytes += item.payload().len();
            if batch.len() == ENTRIES_MAX || (!batch.is_empty() && bytes > GROUP_PAYLOAD_BYTES_MAX) {
                break;
            }
            batch.extend(queue.pop_front());
        }
        batch
    }

    /// Takes written or failed items out of the queue's accounts.
    fn settle_queued(&self, items: &[Item]) {
        let mut index = self.index.borrow_mut();
        for item in items {
            if let Item::Record { bucket, header, .. } = item {
                let charge = index.charge(header.len_bytes);
                index.queued_bytes -= charge;
                index.bucket(*bucket).queued_bytes -= charge;
            }
        }
    }

    /// One durable write; then the index knows the items.
    async fn write_group(&self, items: &[Item]) -> Result<(), DriveError> {
        let plan = Plan::of(items);
        let (position, header) = self.place(plan.total_bytes as u64, items.len())?;
        let entries = entries(items, &plan);
        let pieces = assemble(&group::encode(&header, &entries, self.superblock.identity(), position), items, &plan);
        let result = outcome(self.write_below(position, pieces)).await;
        let mut counters = self.counters.borrow_mut();
        let mut writer = self.writer.borrow_mut();
        if let Err(error) = result {
            counters.write_errors += 1;
            writer.failures += 1;
            *self.trouble.borrow_mut() = Some(error.to_string());
            return Err(error);
        }
        counters.groups_written += 1;
        self.trouble.take();
        writer.failures = 0;
        writer.at += header.total_bytes;
        writer.next_number += 1;
        drop(writer);
        let mut index = self.index.borrow_mut();
        for ((bucket, entry), item) in entries.iter().zip(items) {
            match entry {
                Entry::State(state) => index.insert_state(*bucket, state, header.serial),
                Entry::Record(record) => {
                    if let Item::Copy { held, .. } = item {
                        let now = index.bucket(*bucket).records.get(&held.header.seq);
                        if now != Some(held) {
                            continue;
                        }
                        counters.records_copied += 1;
                    }
                    counters.records_written += 1;
                    index.insert(*bucket, record, header.serial, position + u64::from(record.payload_offset));
                    let below = index.bucket(*bucket).state.trim_below;
                    index.trim(*bucket, below);
                }
            }
        }
        Ok(())
    }

    fn write_below(&self, position: u64, pieces: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        match weft_wire::mutant("no_flush") {
            true => self.drive.write(position, pieces),
            false => self.drive.write_durable(position, pieces),
        }
    }

    /// Where a group of this size goes, in this segment or the next.
    fn place(&self, total_bytes: u64, entries: usize) -> Result<(u64, GroupHeader), DriveError> {
        let geometry = &self.superblock.geometry;
        let segments = u64::from(geometry.segments);
        let mut writer = self.writer.borrow_mut();
        let full = writer.at + total_bytes > geometry.segment_bytes;
        let bad = writer.failures >= FAILURES_MAX && writer.at > 0 && writer.free(segments) > SEGMENTS_FREE_MIN;
        if full || bad {
            if writer.free(segments) == 0 {
                let (offset, len) = (geometry.ring_offset, total_bytes);
                let reason = "the journal ring is full and its oldest segment can't be reclaimed".into();
                return Err(DriveError::Failed { operation: crate::device::Operation::Write, offset, len, reason });
            }
            writer.serial += 1;
            writer.at = 0;
            writer.failures = 0;
        }
        let position = geometry.segment_offset(writer.serial) + writer.at;
        let header = GroupHeader {
            incarnation: self.incarnation,
            serial: writer.serial,
            number: writer.next_number,
            oldest_serial: writer.oldest_serial,
            total_bytes,
            entries: entries as u16,
        };
        Ok((position, header))
    }

    /// Frees the oldest segments until enough are free; what is still needed of them is copied to the end.
    async fn reclaim(&self) -> Result<(), DriveError> {
        let segments = u64::from(self.superblock.geometry.segments);
        for _ in 0..segments {
            let (free, oldest, current) = {
                let writer = self.writer.borrow();
                (writer.free(segments), writer.oldest_serial, writer.serial)
            };
            if free >= SEGMENTS_FREE_MIN || oldest == current {
                return Ok(());
            }
            self.copy_forward(oldest).await?;
            self.index.borrow_mut().forget_segment(oldest);
            self.writer.borrow_mut().oldest_serial = oldest + 1;
            self.counters.borrow_mut().segments_reclaimed += 1;
        }
        Ok(())
    }

    async fn copy_forward(&self, serial: u64) -> Result<(), DriveError> {
        let live = self.index.borrow().live_in(serial);
        let mut items = Vec::new();
        let mut bytes = 0;
        for (bucket, held) in live {
            let Some(payload) = self.read_for_copy(bucket, &held).await? else { continue };
            bytes += payload.len();
            if !items.is_empty() && (bytes > GROUP_PAYLOAD_BYTES_MAX || items.len() == ENTRIES_MAX) {
                self.write_group(&items).await?;
                items.clear();
                bytes = payload.len();
            }
            let trim_below = self.index.borrow_mut().bucket(bucket).state.trim_below;
            items.push(Item::Copy { bucket, held, trim_below, payload });
        }
        // After the records: reading them may have changed what is known to be lost.
        let states = self.index.borrow().states_in(serial);
        for (bucket, state) in states {
            if items.len() == ENTRIES_MAX {
                self.write_group(&items).await?;
                items.clear();
            }
            items.push(Item::State { bucket, state });
        }
        if items.is_empty() { Ok(()) } else { self.write_group(&items).await }
    }

    /// `None` if it isn't needed any more, or is damaged: then it counts as lost from now on.
    async fn read_for_copy(&self, bucket: BucketId, held: &Held) -> Result<Option<Bytes>, DriveError> {
        let payload = self.read_payload(held).await?;
        let mut index = self.index.borrow_mut();
        if index.bucket(bucket).records.get(&held.header.seq) != Some(held) {
            return Ok(None);
        }
        if let Some(payload) = payload.filter(|payload| payload_matches(bucket, &held.header, payload)) {
            return Ok(Some(payload));
        }
        self.counters.borrow_mut().checksum_errors += 1;
        index.remove(bucket, held.header.seq);
        let log = index.bucket(bucket);
        log.state.lost_through = log.state.lost_through.max(held.header.seq);
        log.state_serial = 0;
        Ok(None)
    }

    /// A record's payload as it lies on the drive; `None` if the drive can't read it.
    pub(super) async fn read_payload(&self, held: &Held) -> Result<Option<Bytes>, DriveError> {
        let len = held.header.len_bytes as usize;
        if len == 0 {
            return Ok(Some(Bytes::new()));
        }
        let skip = (held.offset % BLOCK_BYTES as u64) as usize;
        match outcome(self.drive.read(held.offset - skip as u64, whole_blocks(skip + len))).await {
            Ok(blocks) => Ok(Some(blocks.slice(skip..skip + len))),
            Err(DriveError::Failed { .. }) => {
                self.counters.borrow_mut().read_errors += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn entries(items: &[Item], plan: &Plan) -> Vec<(BucketId, Entry)> {
    let entry = |(item, offset): (&Item, &usize)| {
        let payload_offset = *offset as u32;
        match item {
            Item::Record { bucket, as_epoch, trim_below, header, .. } => {
                let (as_epoch, trim_below) = (*as_epoch, *trim_below);
                (*bucket, Entry::Record(RecordEntry { header: *header, as_epoch, trim_below, payload_offset }))
            }
            Item::Copy { bucket, held, trim_below, .. } => {
                let (header, as_epoch, trim_below) = (held.header, held.as_epoch, *trim_below);
                (*bucket, Entry::Record(RecordEntry { header, as_epoch, trim_below, payload_offset }))
            }
            Item::State { bucket, state } => (*bucket, Entry::State(*state)),
        }
    };
    items.iter().zip(&plan.offsets).map(entry).collect()
}

/// The pieces of the write. Large payloads aren't copied, but for what doesn't fill their last block.
fn assemble(head: &[u8], items: &[Item], plan: &Plan) -> Vec<Bytes> {
    let mut buffer = AlignedBuf::with_len(plan.head_bytes);
    let bytes = buffer.as_mut_slice();
    bytes[..head.len()].copy_from_slice(head);
    for (item, offset) in items.iter().zip(&plan.offsets).filter(|(item, _)| !goes_in_place(item.payload())) {
        bytes[*offset..*offset + item.payload().len()].copy_from_slice(item.payload());
    }
    let mut pieces = vec![buffer.freeze()];
    for item in items.iter().filter(|item| goes_in_place(item.payload())) {
        let payload = item.payload();
        let whole = payload.len() / BLOCK_BYTES * BLOCK_BYTES;
        pieces.push(payload.slice(..whole));
        if whole < payload.len() {
            let mut last = AlignedBuf::with_len(BLOCK_BYTES);
            last.as_mut_slice()[..payload.len() - whole].copy_from_slice(&payload[whole..]);
            pieces.push(last.freeze());
        }
    }
    pieces
}
