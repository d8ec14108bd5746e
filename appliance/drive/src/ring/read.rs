//! Reading a bucket's records back: what a new leader does.

use super::index::BucketLog;
use super::{Held, Ring, payload_matches};
use crate::device::DriveError;
use bytes::{Bytes, BytesMut};
use weft_reactor::join_all;
use weft_wire::drive::{RecordHeader, TailSummary};
use weft_wire::{BucketId, Seq};

/// Records in one answer.
const TAIL_RECORDS_MAX: usize = 4096;
/// Unreadable sequences in one answer.
const TAIL_UNREADABLE_MAX: usize = 16_384;
/// Payloads read at the same time.
const READS_MAX: usize = 64;

/// Part of a bucket's log.
pub struct TailRead {
    pub records: Vec<RecordHeader>,
    pub payloads: Bytes,
    pub unreadable: Vec<Seq>,
    pub more: bool,
}

impl Ring {
    /// What is held of a bucket's log.
    pub fn summary(&self, bucket: BucketId) -> TailSummary {
        let index = self.index.borrow();
        index.buckets.get(&bucket).map_or_else(|| BucketLog::default().summary(), BucketLog::summary)
    }

    /// Held and unreadable records from `from` on, as many as fit `bytes_max` but at least one.
    pub async fn read_tail(&self, bucket: BucketId, from: Seq, bytes_max: usize) -> Result<TailRead, DriveError> {
        loop {
            let tail = self.read_tail_once(bucket, from, bytes_max).await?;
            // Everything may have been trimmed while it was read: then there is nothing to ask on from.
            if !tail.more || !tail.records.is_empty() || !tail.unreadable.is_empty() {
                return Ok(tail);
            }
        }
    }

    async fn read_tail_once(&self, bucket: BucketId, from: Seq, bytes_max: usize) -> Result<TailRead, DriveError> {
        let Chosen { wanted, mut unreadable, more } = self.choose(bucket, from, bytes_max);
        let mut records = Vec::with_capacity(wanted.len());
        let mut payloads = BytesMut::new();
        for chunk in wanted.chunks(READS_MAX) {
            let read = join_all(chunk.iter().map(|held| self.read_record(bucket, *held))).await;
            for (held, read) in chunk.iter().zip(read) {
                match read? {
                    Found::Intact(header, payload) => {
                        records.push(header);
                        payloads.extend_from_slice(&payload);
                    }
                    Found::Damaged => unreadable.push(held.header.seq),
                    Found::Trimmed => {}
                }
            }
        }
        unreadable.sort();
        Ok(TailRead { records, payloads: payloads.freeze(), unreadable, more })
    }

    fn choose(&self, bucket: BucketId, from: Seq, bytes_max: usize) -> Chosen {
        let index = self.index.borrow();
        let Some(log) = index.buckets.get(&bucket) else {
            let last = index.unknown_lost_through.0.min(from.0.saturating_add(TAIL_UNREADABLE_MAX as u64));
            let unreadable = (from.0.max(1)..=last).map(Seq).collect();
            return Chosen { wanted: Vec::new(), unreadable, more: last < index.unknown_lost_through.0 };
        };
        let mut wanted: Vec<Held> = Vec::new();
        let mut bytes = 0;
        let mut more = false;
        for held in log.records.range(from..).map(|(_, held)| held) {
            bytes += held.header.len_bytes as usize;
            if !wanted.is_empty() && (bytes > bytes_max || wanted.len() == TAIL_RECORDS_MAX) {
                more = true;
                break;
            }
            wanted.push(*held);
        }
        // An answer says all of a stretch of the log, or the caller would take what is left out for lacking.
        let mut end = wanted.last().filter(|_| more).map_or(Seq(u64::MAX), |held| held.header.seq);
        let unreadable: Vec<Seq> = log.lost(from).take_while(|seq| *seq < end).take(TAIL_UNREADABLE_MAX).collect();
        if let Some(last) = unreadable.last().filter(|_| unreadable.len() == TAIL_UNREADABLE_MAX) {
            end = *last;
            more = true;
            wanted.retain(|held| held.header.seq < end);
        }
        Chosen { wanted, unreadable, more }
    }

    /// Reads until the record is found where the index says it is: it may move in the meantime.
    async fn read_record(&self, bucket: BucketId, mut held: Held) -> Result<Found, DriveError> {
        loop {
            let payload = self.read_payload(&held).await?;
            if let Some(payload) = payload.filter(|payload| payload_matches(bucket, &held.header, payload)) {
                return Ok(Found::Intact(held.header, payload));
            }
            let index = self.index.borrow();
            match index.buckets.get(&bucket).and_then(|log| log.records.get(&held.header.seq)) {
                None => return Ok(Found::Trimmed),
                Some(now) if *now == held => {
                    self.counters.borrow_mut().checksum_errors += 1;
                    return Ok(Found::Damaged);
                }
                Some(now) => held = *now,
            }
        }
    }
}

/// What an answer says.
struct Chosen {
    wanted: Vec<Held>,
    unreadable: Vec<Seq>,
    more: bool,
}

enum Found {
    Intact(RecordHeader, Bytes),
    Damaged,
    Trimmed,
}
