//! The records that the leader still keeps in memory: those that some drive may yet have to be sent.

use bytes::Bytes;
use std::collections::VecDeque;
use weft_wire::Seq;
use weft_wire::drive::RecordHeader;

#[derive(Debug)]
pub struct Entry {
    pub header: RecordHeader,
    pub pieces: Vec<Bytes>,
    /// Which drives of the ensemble hold it: a bit for each.
    pub holders: u32,
}

impl Entry {
    pub fn copies(&self) -> usize {
        self.holders.count_ones() as usize
    }
}

/// Consecutive records, oldest first.
#[derive(Debug)]
pub struct Store {
    entries: VecDeque<Entry>,
    /// Sequence of the first entry, or of the next record if there is none.
    first: Seq,
    bytes: u64,
}

impl Store {
    pub fn new(first: Seq) -> Self {
        Self { entries: VecDeque::new(), first, bytes: 0 }
    }

    pub fn first(&self) -> Seq {
        self.first
    }

    /// Appends the record after the last. Its sequence must be the next.
    pub fn push(&mut self, entry: Entry) {
        assert_eq!(entry.header.seq.0, self.first.0 + self.entries.len() as u64, "records are consecutive");
        self.bytes += u64::from(entry.header.len_bytes);
        self.entries.push_back(entry);
    }

    pub fn get(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?)
    }

    pub fn get_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?)
    }

    /// Forgets the oldest records while `dispensable` says so of the oldest, told how many bytes are kept.
    pub fn evict(&mut self, dispensable: impl Fn(&Entry, u64) -> bool) {
        while let Some(entry) = self.entries.front()
            && dispensable(entry, self.bytes)
        {
            self.bytes -= u64::from(entry.header.len_bytes);
            self.first = self.first.next();
            self.entries.pop_front();
        }
    }
}

/// What records take on each drive that no root covers yet.
#[derive(Debug)]
pub struct Ledger {
    sizes: VecDeque<u32>,
    first: Seq,
    bytes: u64,
}

/// What a drive needs for a record beside its payload, roughly.
const FRAME_BYTES: u32 = 64;

impl Ledger {
    pub fn new(first: Seq) -> Self {
        Self { sizes: VecDeque::new(), first, bytes: 0 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn push(&mut self, len_bytes: u32) {
        let size = len_bytes.saturating_add(FRAME_BYTES);
        self.sizes.push_back(size);
        self.bytes += u64::from(size);
    }

    /// Everything up to `floor` is trimmed.
    pub fn trim(&mut self, floor: Seq) {
        while self.first <= floor
            && let Some(size) = self.sizes.pop_front()
        {
            self.bytes -= u64::from(size);
            self.first = self.first.next();
        }
    }
}
