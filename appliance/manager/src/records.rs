//! What is stored in a slot.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weft_wire::map::Map;
use weft_wire::{NodeId, Uuid, decode, encode};

/// Version of both records, in front of each. Others are refused by name.
pub const FORMAT: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("it is of format {0}; this version reads {FORMAT}")]
    Format(u16),
    #[error("it is malformed")]
    Malformed,
}

/// A record as it is stored: the format, then the fields.
pub fn seal<T: Serialize>(record: &T) -> Bytes {
    let fields = encode(record);
    let mut bytes = Vec::with_capacity(2 + fields.len());
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&fields);
    bytes.into()
}

/// Reads what [`seal`] made.
pub fn open<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    let (format, fields) = bytes.split_first_chunk::<2>().ok_or(RecordError::Malformed)?;
    match u16::from_le_bytes(*format) {
        FORMAT => decode(fields).map_err(|_| RecordError::Malformed),
        other => Err(RecordError::Format(other)),
    }
}

/// A place in the consensus' log: everything up to `index` is in the map beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The voter whose log it is; 0 for a map that was only followed.
    pub voter: u64,
    pub index: u64,
    pub term: u64,
    pub members: Members,
}

/// Who votes and who only listens, at a place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

impl Members {
    pub fn from_raft(state: &ConfState) -> Self {
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        Self { voters: sorted(state.get_voters()), learners: sorted(state.get_learners()) }
    }

    pub fn to_raft(&self) -> ConfState {
        ConfState::from((self.voters.iter().copied(), self.learners.iter().copied()))
    }

    /// Whether exactly these nodes vote, each once, and nobody only listens.
    pub fn are(&self, nodes: &[NodeId]) -> bool {
        let votes = |node: &NodeId| self.voters.iter().any(|voter| node_of(*voter) == *node);
        self.learners.is_empty() && self.voters.len() == nodes.len() && nodes.iter().all(votes)
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.voters.iter().chain(&self.learners).copied()
    }
}

/// Contents of [`crate::Slot::Map`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    pub node: NodeId,
    pub place: Place,
    pub map: Map,
}

/// Contents of [`crate::Slot::Raft`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftRecord {
    pub cluster: Uuid,
    pub node: NodeId,
    pub voter: u64,
    /// Rises with each write; the highest of all copies counts.
    pub generation: u64,
    /// The drives that all hold this record before anything in it counts.
    pub copies: Vec<Uuid>,
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    /// The log begins after this entry.
    pub cut_index: u64,
    pub cut_term: u64,
    /// Entries as the consensus library encodes them.
    pub entries: Vec<Bytes>,
}

impl RaftRecord {
    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit, ..HardState::default() }
    }

    /// The log, checked: contiguous from the cut on.
    pub fn log(&self) -> Option<Vec<Entry>> {
        let mut log = Vec::with_capacity(self.entries.len());
        for (index, bytes) in (self.cut_index + 1..).zip(&self.entries) {
            let entry: Entry = protobuf::Message::parse_from_bytes(bytes).ok()?;
            if entry.index != index {
                return None;
            }
            log.push(entry);
        }
        Some(log)
    }
}

/// Encodes what can't fail: all fields are plain.
pub fn entry_bytes(entry: &Entry) -> Bytes {
    match protobuf::Message::write_to_bytes(entry) {
        Ok(bytes) => bytes.into(),
        Err(error) => unreachable!("encoding an entry into memory: {error}"),
    }
}

/// A node's voter id; `life` rises each time the node forgot what it had promised.
pub fn voter(node: NodeId, life: u32) -> u64 {
    u64::from(node.0) << 32 | u64::from(life)
}

/// The node of a voter's id.
pub fn node_of(voter: u64) -> NodeId {
    NodeId((voter >> 32) as u16)
}
