//! Where a node keeps the map and the consensus' state: slots on each of its drives.

use bytes::Bytes;
use weft_reactor::sync::Pending;
use weft_wire::Uuid;

/// A slot of a drive. A write to it leaves the old contents or the new, never a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The last whole map.
    Map,
    /// A manager's vote and log.
    Raft,
}

/// The drives of one node. `weftd` implements it over the configuration slots of formatted drives.
pub trait ConfigStore {
    /// The drives that can be used now, in the same order each time.
    fn drives(&self) -> Vec<Uuid>;

    /// Resolves when the contents are durable. Two writes to one slot are done in the order of their calls.
    fn store(&self, drive: Uuid, slot: Slot, bytes: Bytes) -> Pending<Result<(), StoreError>>;

    /// `None`: nothing was ever stored there.
    fn load(&self, drive: Uuid, slot: Slot) -> Pending<Result<Option<Bytes>, StoreError>>;
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The drive is treated as lost until the next start.
    #[error("the drive failed: {0}")]
    Drive(String),
    #[error("{bytes} bytes don't fit a slot of {most}")]
    TooLarge { bytes: usize, most: usize },
}
