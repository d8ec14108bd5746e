//! Reading a bucket's records back: what a new leader does.

use super::{Held, Ring, payload_matches};
use crate::device::DriveError;
use bytes::{Bytes, BytesMut};
use weft_reactor::join_all;
use weft_wire::drive::{RecordHeader, TailSummary};
use weft_wire::{BucketId, Seq};

/// Records in one answer.
const TAIL_RECORDS_MAX: usize = 4096;
/// Unreadable sequences in one answer.
const TAIL_UNREADABLE_MAX: usize = 4096;
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
        self.index.borrow_mut().bucket(bucket).summary()
    }

    /// Held records from `from` on, as many as fit `bytes_max` but at least one.
    pub async fn read_tail(&self, bucket: BucketId, from: Seq, bytes_max: usize) -> Result<TailRead, DriveError> {
        let (wanted, more) = self.choose(bucket, from, bytes_max);
        let end = wanted.last().filter(|_| more).map_or(Seq(u64::MAX), |held| held.header.seq);
        let mut records = Vec::with_capacity(wanted.len());
        let mut payloads = BytesMut::new();
        let mut unreadable = Vec::new();
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
        let lost = self.lost_between(bucket, from, end);
        let cut = lost.len() == TAIL_UNREADABLE_MAX;
        unreadable.extend(lost);
        unreadable.sort();
        unreadable.dedup();
        Ok(TailRead { records, payloads: payloads.freeze(), unreadable, more: more || (cut && end < Seq(u64::MAX)) })
    }

    fn choose(&self, bucket: BucketId, from: Seq, bytes_max: usize) -> (Vec<Held>, bool) {
        let index = self.index.borrow();
        let Some(log) = index.buckets.get(&bucket) else { return (Vec::new(), false) };
        let mut wanted: Vec<Held> = Vec::new();
        let mut bytes = 0;
        for held in log.records.range(from..).map(|(_, held)| held) {
            bytes += held.header.len_bytes as usize;
            if !wanted.is_empty() && (bytes > bytes_max || wanted.len() == TAIL_RECORDS_MAX) {
                return (wanted, true);
            }
            wanted.push(*held);
        }
        (wanted, false)
    }

    fn lost_between(&self, bucket: BucketId, from: Seq, end: Seq) -> Vec<Seq> {
        let mut index = self.index.borrow_mut();
        let log = index.bucket(bucket);
        let first = from.max(log.state.trim_below);
        let last = end.min(log.state.lost_through);
        (first.0..=last.0).map(Seq).filter(|seq| log.may_be_lost(*seq)).take(TAIL_UNREADABLE_MAX).collect()
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

enum Found {
    Intact(RecordHeader, Bytes),
    Damaged,
    Trimmed,
}
