//! What the ring holds, in memory: headers and positions of records by bucket and sequence, never payloads.

use crate::format::group::{BucketState, ENTRY_BYTES, RecordEntry};
use std::collections::BTreeMap;
use weft_wire::drive::{RecordHeader, RecordKind, TailSummary};
use weft_wire::{BucketId, Epoch, Seq};

/// Records that one drive's index can hold: bounds its memory to a few ten MiB. Where records are small, each is
/// charged as if it were large enough that no more fit.
pub const RECORDS_MAX: u64 = 1 << 17;

/// Sequences beyond a bucket's last record that count as unreadable after damage.
const SUSPECT_MAX: u64 = 1 << 16;

/// A record and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub header: RecordHeader,
    /// Epoch of the leader that wrote it here.
    pub as_epoch: Epoch,
    /// Segment.
    pub serial: u64,
    /// Byte of the drive at which the payload begins.
    pub offset: u64,
}

#[derive(Debug, Default)]
pub struct BucketLog {
    pub records: BTreeMap<Seq, Held>,
    pub state: BucketState,
    /// Newest segment from which all of `state` can be rebuilt.
    pub state_serial: u64,
    /// What its records are charged.
    pub live_bytes: u64,
    /// What is charged for records on their way into the ring.
    pub queued_bytes: u64,
}

#[derive(Debug)]
pub struct Index {
    pub buckets: BTreeMap<BucketId, BucketLog>,
    /// What was put into each segment, for the day it is reclaimed.
    segments: BTreeMap<u64, Vec<(BucketId, Seq)>>,
    /// Entries of `segments`, those that aren't needed any more included.
    segment_entries: u64,
    pub live_bytes: u64,
    pub queued_bytes: u64,
    charge_bytes_min: u64,
    /// For buckets that aren't known here: groups were damaged beyond telling whose they were.
    pub unknown_lost_through: Seq,
}

impl BucketLog {
    pub fn newest_root(&self) -> Option<Seq> {
        self.records.iter().rev().find(|(_, held)| held.header.kind == RecordKind::Root).map(|(seq, _)| *seq)
    }

    pub fn summary(&self) -> TailSummary {
        let first = self.records.keys().next().copied().unwrap_or(self.state.trim_below.max(Seq::FIRST));
        let last = self.records.keys().next_back().copied().unwrap_or(Seq(first.0.saturating_sub(1)));
        TailSummary { first, last, acknowledged: self.state.acknowledged, root: self.newest_root() }
    }

    /// Sequences from `from` on of which it can't be said that they were never held: damaged ones, and those
    /// trimmed between a root that is kept and the trim mark.
    pub fn lost(&self, from: Seq) -> impl Iterator<Item = Seq> {
        let trim_below = self.state.trim_below.max(Seq::FIRST);
        let first = self.records.keys().next().copied().unwrap_or(trim_below);
        let trimmed = from.max(first).0..trim_below.0;
        let damaged = from.max(trim_below).0..=self.state.lost_through.0;
        trimmed.chain(damaged).map(Seq).filter(|seq| !self.records.contains_key(seq))
    }
}

impl Index {
    /// For a ring that may hold live records of so many bytes.
    pub fn new(live_bytes_max: u64) -> Self {
        Self {
            buckets: BTreeMap::new(),
            segments: BTreeMap::new(),
            segment_entries: 0,
            live_bytes: 0,
            queued_bytes: 0,
            charge_bytes_min: live_bytes_max / RECORDS_MAX,
            unknown_lost_through: Seq(0),
        }
    }

    /// What a record with a payload of `len_bytes` is charged.
    pub fn charge(&self, len_bytes: u32) -> u64 {
        (u64::from(len_bytes) + ENTRY_BYTES as u64).max(self.charge_bytes_min)
    }

    pub fn bucket(&mut self, bucket: BucketId) -> &mut BucketLog {
        let lost_through = self.unknown_lost_through;
        self.buckets.entry(bucket).or_insert_with(|| {
            let state = BucketState { lost_through, ..BucketState::default() };
            BucketLog { state, ..BucketLog::default() }
        })
    }

    /// Enters a record that lies in the ring, unless a higher epoch's leader wrote another one there before.
    pub fn insert(&mut self, bucket: BucketId, entry: &RecordEntry, serial: u64, offset: u64) {
        let charge = self.charge(entry.header.len_bytes);
        let seq = entry.header.seq;
        let log = self.bucket(bucket);
        let before = log.state;
        log.state.fence = before.fence.max(entry.as_epoch);
        log.state.trim_below = before.trim_below.max(entry.trim_below);
        log.state.acknowledged = before.acknowledged.max(entry.header.acknowledged);
        let tells_all = entry.as_epoch >= before.fence && entry.trim_below >= before.trim_below;
        if tells_all && log.state.lost_through == Seq(0) {
            log.state_serial = log.state_serial.max(serial);
        }
        if log.records.get(&seq).is_some_and(|held| held.as_epoch > entry.as_epoch) {
            return;
        }
        self.remove(bucket, seq);
        let held = Held { header: entry.header, as_epoch: entry.as_epoch, serial, offset };
        let log = self.bucket(bucket);
        log.records.insert(seq, held);
        log.live_bytes += charge;
        self.live_bytes += charge;
        self.segments.entry(serial).or_default().push((bucket, seq));
        self.segment_entries += 1;
        if self.segment_entries > 4 * RECORDS_MAX {
            self.forget_dead_entries();
        }
    }

    fn forget_dead_entries(&mut self) {
        self.segments.clear();
        for (bucket, log) in &self.buckets {
            for (seq, held) in &log.records {
                self.segments.entry(held.serial).or_default().push((*bucket, *seq));
            }
        }
        self.segment_entries = self.segments.values().map(|entries| entries.len() as u64).sum();
    }

    pub fn insert_state(&mut self, bucket: BucketId, state: &BucketState, serial: u64) {
        let log = self.bucket(bucket);
        log.state.fence = log.state.fence.max(state.fence);
        log.state.trim_below = log.state.trim_below.max(state.trim_below);
        log.state.acknowledged = log.state.acknowledged.max(state.acknowledged);
        log.state.lost_through = log.state.lost_through.max(state.lost_through);
        log.state_serial = log.state_serial.max(serial);
    }

    pub fn remove(&mut self, bucket: BucketId, seq: Seq) {
        let Some(log) = self.buckets.get_mut(&bucket) else { return };
        let Some(held) = log.records.remove(&seq) else { return };
        let charge = (u64::from(held.header.len_bytes) + ENTRY_BYTES as u64).max(self.charge_bytes_min);
        log.live_bytes -= charge;
        self.live_bytes -= charge;
    }

    /// Drops what is below, but for the newest root while no root at or above `below` is held.
    pub fn trim(&mut self, bucket: BucketId, below: Seq) {
        let log = self.bucket(bucket);
        log.state.trim_below = log.state.trim_below.max(below);
        let below = log.state.trim_below;
        if below > log.state.lost_through {
            log.state.lost_through = Seq(0);
        }
        if log.records.first_key_value().is_none_or(|(first, _)| *first >= below) {
            return;
        }
        let root = log.newest_root();
        let dropped: Vec<Seq> =
            log.records.range(..below).map(|(seq, _)| *seq).filter(|seq| Some(*seq) != root).collect();
        for seq in dropped {
            self.remove(bucket, seq);
        }
    }

    /// The records of a segment that are still needed there.
    pub fn live_in(&self, serial: u64) -> Vec<(BucketId, Held)> {
        let mut live: Vec<(BucketId, Held)> = Vec::new();
        for (bucket, seq) in self.segments.get(&serial).into_iter().flatten() {
            let held = self.buckets.get(bucket).and_then(|log| log.records.get(seq));
            live.extend(held.filter(|held| held.serial == serial).map(|held| (*bucket, *held)));
        }
        live.sort_by_key(|(bucket, held)| (*bucket, held.header.seq));
        live.dedup_by_key(|(bucket, held)| (*bucket, held.header.seq));
        live
    }

    /// The buckets whose state would be forgotten with this segment.
    pub fn states_in(&self, serial: u64) -> Vec<(BucketId, BucketState)> {
        self.buckets
            .iter()
            .filter(|(_, log)| log.state_serial <= serial && log.state != BucketState::default())
            .map(|(bucket, log)| (*bucket, log.state))
            .collect()
    }

    pub fn forget_segment(&mut self, serial: u64) {
        if let Some(entries) = self.segments.remove(&serial) {
            self.segment_entries -= entries.len() as u64;
        }
    }

    /// After damage that can't be attributed: whatever any bucket doesn't hold, up to so many records beyond its
    /// last, may have been there.
    pub fn suspect_all(&mut self, records: u64) {
        let records = records.min(SUSPECT_MAX);
        self.unknown_lost_through = Seq(records);
        for log in self.buckets.values_mut() {
            let last = log.records.keys().next_back().copied().unwrap_or(log.state.trim_below);
            log.state.lost_through = log.state.lost_through.max(Seq(last.0.saturating_add(records)));
            // Must be written down before any segment is reclaimed.
            log.state_serial = 0;
        }
    }
}
