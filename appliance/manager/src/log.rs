//! The consensus' log in memory. It is filled from the drives at the start and stored on them before anything in it counts.

use crate::records::{Members, Place, RaftRecord, entry_bytes};
use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::RefCell;
use std::rc::Rc;
use weft_wire::encode;
use weft_wire::map::Map;

/// Clones are the same log: the consensus library owns one, its driver another.
#[derive(Clone)]
pub struct Log {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    hard: HardState,
    /// Index and term of the entry before the first.
    cut: (u64, u64),
    entries: Vec<Entry>,
    entries_bytes: usize,
    /// Who was a member at the start, for the library's initial state.
    members: Members,
    /// What has been applied: a snapshot for those who need entries from before the cut.
    applied: Place,
    map: Option<Rc<Map>>,
}

impl Log {
    /// A log that begins where `map` stands. Entries up to there are dropped.
    pub fn new(mut hard: HardState, entries: Vec<Entry>, applied: Place, map: Option<Rc<Map>>) -> Self {
        hard.commit = hard.commit.max(applied.index);
        let entries: Vec<Entry> = entries.into_iter().filter(|entry| entry.index > applied.index).collect();
        let entries_bytes = entries.iter().map(size).sum();
        let cut = (applied.index, applied.term);
        let members = applied.members.clone();
        Self { inner: Rc::new(RefCell::new(Inner { hard, cut, entries, entries_bytes, members, applied, map })) }
    }

    pub fn set_hard_state(&self, hard: HardState) {
        self.inner.borrow_mut().hard = hard;
    }

    /// Appends entries in place of those from the first one's index on.
    pub fn append(&self, entries: Vec<Entry>) {
        let mut inner = self.inner.borrow_mut();
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        assert!(first > inner.cut.0, "entry {first} would be before the cut at {}", inner.cut.0);
        let keep = (first - inner.cut.0 - 1) as usize;
        assert!(keep <= inner.entries.len(), "entry {first} would leave a gap after {} entries", inner.entries.len());
        inner.entries.truncate(keep);
        inner.entries.extend(entries);
        inner.entries_bytes = inner.entries.iter().map(size).sum();
    }

    /// Starts anew from a snapshot of the leader.
    pub fn restore(&self, place: Place, map: Rc<Map>) {
        let mut inner = self.inner.borrow_mut();
        inner.cut = (place.index, place.term);
        inner.entries.clear();
        inner.entries_bytes = 0;
        inner.hard.commit = inner.hard.commit.max(place.index);
        inner.applied = place;
        inner.map = Some(map);
    }

    /// Everything up to `place` is in `map`.
    pub fn set_applied(&self, place: Place, map: Option<Rc<Map>>) {
        let mut inner = self.inner.borrow_mut();
        inner.applied = place;
        inner.map = map;
    }

    pub fn applied(&self) -> Place {
        self.inner.borrow().applied.clone()
    }

    /// Drops the entries up to a place at which the map is stored.
    pub fn cut(&self, index: u64) {
        let mut inner = self.inner.borrow_mut();
        let index = index.min(inner.applied.index);
        if index <= inner.cut.0 {
            return;
        }
        let drop = (index - inner.cut.0) as usize;
        let Some(term) = inner.entries.get(drop - 1).map(|entry| entry.term) else { return };
        inner.entries.drain(..drop);
        inner.entries_bytes = inner.entries.iter().map(size).sum();
        inner.cut = (index, term);
    }

    pub fn len(&self) -> usize {
        self.inner.borrow().entries.len()
    }

    pub fn bytes(&self) -> usize {
        self.inner.borrow().entries_bytes
    }

    /// Writes the log's part of `record`.
    pub fn fill(&self, record: &mut RaftRecord) {
        let inner = self.inner.borrow();
        record.term = inner.hard.term;
        record.vote = inner.hard.vote;
        record.commit = inner.hard.commit;
        (record.cut_index, record.cut_term) = inner.cut;
        record.entries = inner.entries.iter().map(entry_bytes).collect();
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 32
}

impl Inner {
    fn last_index(&self) -> u64 {
        self.cut.0 + self.entries.len() as u64
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        let inner = self.inner.borrow();
        Ok(RaftState::new(inner.hard.clone(), inner.members.to_raft()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let inner = self.inner.borrow();
        if low <= inner.cut.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > inner.last_index() + 1 || low > high {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let (from, to) = ((low - inner.cut.0 - 1) as usize, (high - inner.cut.0 - 1) as usize);
        let mut entries = inner.entries[from..to].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> Result<u64> {
        let inner = self.inner.borrow();
        if index == inner.cut.0 {
            return Ok(inner.cut.1);
        }
        if index < inner.cut.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = inner.entries.get((index - inner.cut.0 - 1) as usize);
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.inner.borrow().cut.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.inner.borrow().last_index())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        let inner = self.inner.borrow();
        let Some(map) = &inner.map else {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        if inner.applied.index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot { data: encode(&**map), ..Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        metadata.index = inner.applied.index;
        metadata.term = inner.applied.term;
        metadata.set_conf_state(inner.applied.members.to_raft());
        Ok(snapshot)
    }
}
