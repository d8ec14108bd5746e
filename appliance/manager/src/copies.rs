//! A manager's memory on its drives: which copies there are, and when it has lost too much to vote.
//!
//! A record counts when every *listed* copy holds it. A copy that fails is struck from the list, and the shorter list is durable on
//! the others before anything goes on without it. So at a start the newest record of those that can be read names every copy that could hold a newer one: if
//! one of them can't be read, this manager may have promised what it no longer knows.

use crate::log::Log;
use crate::records::{MapRecord, Members, Place, RaftRecord, RecordError, open, seal, voter};
use crate::store::{ConfigStore, Slot, StoreError};
use crate::tunables::COPIES;
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_reactor::join_all;
use weft_wire::map::Map;
use weft_wire::{NodeId, Uuid};

/// What the drives of a node remember.
pub(crate) struct Loaded {
    pub map: MapRecord,
    pub memory: Memory,
}

pub(crate) enum Memory {
    /// Never was a manager.
    None,
    Kept(Box<Kept>),
    /// Was a manager, and something it may have promised is gone. `generation` is the highest seen.
    Lost {
        reason: String,
        generation: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("the drives of this node belong to clusters {0} and {1}; take the ones of the other cluster out")]
    SeveralClusters(Uuid, Uuid),
    #[error("the drives of this node belong to {0} and {1} of one cluster; put them back where they were")]
    SeveralNodes(NodeId, NodeId),
    #[error("drive {drive}: what is stored can't be read: {error}")]
    Format { drive: Uuid, error: RecordError },
}

/// A manager's memory. `place` and `map` are where the log begins or beyond.
pub(crate) struct Kept {
    pub copies: Copies,
    pub record: RaftRecord,
    pub place: Place,
    pub map: Map,
}

/// All copies that were written are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AllLost;

pub(crate) struct Copies {
    store: Rc<dyn ConfigStore>,
    record: RaftRecord,
    /// Failed once; not used again before the next start.
    bad: BTreeSet<Uuid>,
}

/// Reads everything. `None`: no drive has a map, this node is in no cluster yet.
pub(crate) async fn load(store: &Rc<dyn ConfigStore>) -> Result<Option<Loaded>, LoadError> {
    let drives = store.drives();
    let maps: Vec<(Uuid, MapRecord)> = read(store, &drives, Slot::Map).await?;
    let Some((_, newest)) = maps.iter().max_by_key(|(_, record)| record.map.version) else { return Ok(None) };
    for (_, other) in &maps {
        if other.map.cluster != newest.map.cluster {
            return Err(LoadError::SeveralClusters(newest.map.cluster, other.map.cluster));
        }
        if other.node != newest.node {
            return Err(LoadError::SeveralNodes(newest.node, other.node));
        }
    }
    let records: Vec<(Uuid, RaftRecord)> = read(store, &drives, Slot::Raft).await?;
    let memory = recall(store, newest, &maps, records);
    Ok(Some(Loaded { map: newest.clone(), memory }))
}

/// The records of one slot that can be read. A drive that fails is left out: whether that matters, the others tell.
async fn read<T: serde::de::DeserializeOwned>(
    store: &Rc<dyn ConfigStore>,
    drives: &[Uuid],
    slot: Slot,
) -> Result<Vec<(Uuid, T)>, LoadError> {
    let loads = join_all(drives.iter().map(|drive| store.load(*drive, slot))).await;
    let mut records = Vec::new();
    for (drive, outcome) in drives.iter().zip(loads) {
        match outcome {
            Ok(Ok(Some(bytes))) => match open(&bytes) {
                Ok(record) => records.push((*drive, record)),
                Err(error @ RecordError::Format(_)) => return Err(LoadError::Format { drive: *drive, error }),
                Err(error) => tracing::error!(%drive, ?slot, %error, "a stored record can't be read"),
            },
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::error!(%drive, ?slot, %error, "a stored record can't be read"),
            Err(_) => tracing::error!(%drive, ?slot, "a drive went away while it was read"),
        }
    }
    Ok(records)
}

fn recall(
    store: &Rc<dyn ConfigStore>,
    newest: &MapRecord,
    maps: &[(Uuid, MapRecord)],
    records: Vec<(Uuid, RaftRecord)>,
) -> Memory {
    let generation = records.iter().map(|(_, record)| record.generation).max().unwrap_or(0);
    let lost = |reason: String| Memory::Lost { reason, generation };
    let known: BTreeSet<Uuid> = records.iter().map(|(drive, _)| *drive).collect();
    // What a later voter wrote stands above everything that an earlier one did.
    let Some((_, record)) = records.into_iter().max_by_key(|(_, record)| (record.voter, record.generation)) else {
        return match newest.map.managers.contains(&newest.node) {
            true => lost("no drive holds this manager's vote and log".into()),
            false => Memory::None,
        };
    };
    if record.copies.is_empty() && !newest.map.managers.contains(&newest.node) {
        return Memory::None;
    }
    if record.copies.is_empty() {
        return lost("this node gave its vote back".into());
    }
    if record.cluster != newest.map.cluster || record.node != newest.node {
        return lost("this manager's vote and log are of another node".into());
    }
    if let Some(missing) = record.copies.iter().find(|drive| !known.contains(*drive)) {
        return lost(format!("drive {missing} holds a copy of this manager's vote and log and can't be read"));
    }
    let own = maps.iter().map(|(_, map)| map).filter(|map| map.place.voter == record.voter);
    let start = own.max_by_key(|map| map.place.index).map(|map| (map.place.clone(), map.map.clone()));
    let (place, map) = match start {
        Some((place, map)) if place.index >= record.cut_index => (place, map),
        // A new voter that has listened to nothing yet starts with nothing.
        None if record.cut_index == 0 => (Place { voter: record.voter, ..Place::default() }, newest.map.clone()),
        _ => return lost(format!("the log begins after entry {}, and no map reaches so far", record.cut_index)),
    };
    let last = record.cut_index + record.entries.len() as u64;
    if record.log().is_none() || place.index > last || record.commit > last {
        return lost("the stored log has gaps".into());
    }
    let copies = Copies::new(store.clone(), record.clone());
    Memory::Kept(Box::new(Kept { copies, record, place, map }))
}

/// The first records of a manager when its cluster is formed: all managers start with the same map as entry 1.
pub(crate) fn first_record(map: &Map, node: NodeId, drives: &[Uuid]) -> RaftRecord {
    RaftRecord {
        cluster: map.cluster,
        node,
        voter: voter(node, 1),
        generation: 0,
        copies: drives.iter().copied().take(COPIES).collect(),
        term: 1,
        vote: 0,
        commit: 1,
        cut_index: 1,
        cut_term: 1,
        entries: Vec::new(),
    }
}

/// Where the first map stands.
pub(crate) fn first_place(map: &Map, node: NodeId) -> Place {
    let mut voters: Vec<u64> = map.managers.iter().map(|node| voter(*node, 1)).collect();
    voters.sort_unstable();
    let own = if map.managers.contains(&node) { voter(node, 1) } else { 0 };
    Place { voter: own, index: 1, term: 1, members: Members { voters, learners: Vec::new() } }
}

impl Copies {
    pub fn new(store: Rc<dyn ConfigStore>, record: RaftRecord) -> Self {
        Self { store, record, bad: BTreeSet::new() }
    }

    pub fn listed(&self) -> &[Uuid] {
        &self.record.copies
    }

    /// Makes log and vote durable on every listed copy. Copies that fail are struck, a spare drive takes their place.
    pub async fn write(&mut self, log: &Log, map: Option<&MapRecord>) -> Result<(), AllLost> {
        log.fill(&mut self.record);
        self.write_listed().await?;
        while self.record.copies.len() < COPIES {
            let listed = &self.record.copies;
            let spare =
                self.store.drives().into_iter().find(|drive| !listed.contains(drive) && !self.bad.contains(drive));
            let Some(spare) = spare else { break };
            if self.prepare(spare, map).await {
                self.record.copies.push(spare);
                self.write_listed().await?;
            } else {
                self.bad.insert(spare);
            }
        }
        Ok(())
    }

    async fn write_listed(&mut self) -> Result<(), AllLost> {
        loop {
            self.record.generation += 1;
            let bytes = seal(&self.record);
            let listed = self.record.copies.clone();
            let failed = failures(&self.store, &listed, Slot::Raft, &bytes).await;
            if failed.is_empty() {
                return Ok(());
            }
            for (drive, error) in failed {
                tracing::error!(%drive, %error, "a copy of the manager's vote and log failed and is struck from the list");
                self.record.copies.retain(|listed| *listed != drive);
                self.bad.insert(drive);
            }
            if self.record.copies.is_empty() {
                return Err(AllLost);
            }
        }
    }

    /// This voter votes never again, and the drives remember that. If none of them takes it, that is found out once more.
    pub async fn resign(mut self) {
        self.record.generation += 1;
        self.record.copies.clear();
        self.record.entries.clear();
        for (drive, error) in failures(&self.store, &self.store.drives(), Slot::Raft, &seal(&self.record)).await {
            tracing::warn!(%drive, %error, "a drive still remembers a vote that was given back");
        }
    }

    /// Brings a drive so far that a list may name it: should the list be read first, the record is there.
    async fn prepare(&mut self, spare: Uuid, map: Option<&MapRecord>) -> bool {
        if let Some(map) = map
            && !failures(&self.store, &[spare], Slot::Map, &seal(map)).await.is_empty()
        {
            return false;
        }
        failures(&self.store, &[spare], Slot::Raft, &seal(&self.record)).await.is_empty()
    }

    /// Makes a map durable on every listed copy, so that the log may begin there. `false`: some failed, and the log has to stay.
    pub async fn write_map(&self, map: &MapRecord) -> bool {
        failures(&self.store, &self.record.copies, Slot::Map, &seal(map)).await.is_empty()
    }
}

/// Writes one slot of several drives; says which failed.
pub(crate) async fn failures(
    store: &Rc<dyn ConfigStore>,
    drives: &[Uuid],
    slot: Slot,
    bytes: &bytes::Bytes,
) -> Vec<(Uuid, StoreError)> {
    let writes = join_all(drives.iter().map(|drive| store.store(*drive, slot, bytes.clone()))).await;
    let gone = || StoreError::Drive("it went away".into());
    drives
        .iter()
        .zip(writes)
        .filter_map(|(drive, outcome)| outcome.unwrap_or_else(|_| Err(gone())).err().map(|error| (*drive, error)))
        .collect()
}
