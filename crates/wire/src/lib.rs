//! What crosses the network and what every crate above agrees on: ids, the map, messages.
//!
//! Nothing here knows time, files, sockets or randomness. Multi-byte fields are little-endian.
//! Bodies (file data, journal payloads, shards) travel beside the encoded head, never inside it.
#![forbid(unsafe_code)]

pub mod acl;
pub mod bucket;
pub mod control;
pub mod drive;
pub mod fs;
pub mod hash;
pub mod ids;
pub mod limits;
pub mod locks;
pub mod manager;
pub mod map;
mod mutant;
pub mod page;

pub use ids::*;
#[cfg(weft_mutants)]
pub use mutant::break_rule;
pub use mutant::mutant;

use serde::{Serialize, de::DeserializeOwned};

/// Version of everything in this crate. Peers with another version are refused by name at the handshake.
pub const PROTOCOL_VERSION: u16 = 1;

/// Which handler of a core a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Service {
    /// Drives: journal ring, zones, shards. Heads are [`drive::DriveRequest`].
    Drive = 1,
    /// Filesystem operations at a bucket's leader. Heads are [`fs::FsRequest`].
    Fs = 2,
    /// Bucket to bucket: participants of transactions. Heads are [`bucket::ParticipantRequest`].
    Bucket = 3,
    /// Consensus between managers, proposals to them. Heads are [`manager::ManagerRequest`].
    Manager = 4,
    /// The map for anyone who asks. Heads are [`manager::MapRequest`].
    Map = 5,
}

impl Service {
    /// The service with this number on the wire, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Drive,
            2 => Self::Fs,
            3 => Self::Bucket,
            4 => Self::Manager,
            5 => Self::Map,
            _ => return None,
        })
    }
}

/// A message that could not be decoded: truncated, of another version, or forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Encodes a message head or an on-drive structure.
///
/// Panics never: all types of this crate encode into memory without a size limit of their own.
pub fn encode<T: Serialize>(value: &T) -> bytes::Bytes {
    match postcard::to_stdvec(value) {
        Ok(vec) => vec.into(),
        // Only a serializer with a bounded buffer or a map of unknown length can fail; neither occurs here.
        Err(error) => unreachable!("encoding {}: {error}", core::any::type_name::<T>()),
    }
}

/// Decodes what [`encode`] made. The whole slice must be used: trailing bytes are malformed.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Malformed(core::any::type_name::<T>())),
    }
}
