//! The newest part of the index: what the journal holds and no run does yet.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// What an entry costs beyond its key and value, about.
const ENTRY_OVERHEAD_BYTES: usize = 96;

#[derive(Default)]
pub struct Memtable {
    /// `None` is a deletion: it hides what older runs say.
    entries: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
}

impl Memtable {
    pub fn insert(&mut self, key: Bytes, value: Option<Bytes>) {
        let added = key.len() + ENTRY_OVERHEAD_BYTES + value.as_ref().map_or(0, Bytes::len);
        let key_len = key.len();
        if let Some(old) = self.entries.insert(key, value) {
            self.bytes -= key_len + ENTRY_OVERHEAD_BYTES + old.map_or(0, |old| old.len());
        }
        self.bytes += added;
    }

    /// `Some(None)`: deleted here.
    pub fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.entries.get(key).cloned()
    }

    pub fn range(&self, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = (&Bytes, &Option<Bytes>)> {
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = if from < to {
            (Bound::Included(from), Bound::Excluded(to))
        } else {
            (Bound::Included(from), Bound::Included(from))
        };
        let empty = from >= to;
        self.entries.range::<[u8], _>(bounds).filter(move |_| !empty)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &Option<Bytes>)> {
        self.entries.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What it takes of the memory budget, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
