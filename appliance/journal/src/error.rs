//! Errors, by what the caller should do.

use weft_wire::limits::RECORD_BYTES_MAX;
use weft_wire::{DriveId, Epoch, Seq};

/// Why a record was not taken, or its fate is unknown to this leader.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Step down. A record that was not acknowledged may or may not be adopted by the new leader.
    #[error("a leader of {0} took over")]
    Sealed(Epoch),
    /// Checkpoint, write a root, and try again.
    #[error("the bucket's share of the journal is full; checkpoint and trim")]
    Full,
    /// Split it, or send the data through stripes.
    #[error("a record of {0} bytes is over the limit of {RECORD_BYTES_MAX}")]
    TooLarge(usize),
    /// The log was stopped by its owner.
    #[error("the log is stopped")]
    Stopped,
}

/// Why an epoch could not begin. Away drives are no error: they are waited for.
///
/// After any of these, and when the future is dropped before it is done, the epoch must not be tried again: what it
/// wrote may stand. A new attempt takes a new epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// Give up the bucket, fetch the map.
    #[error("a leader of {0} took over")]
    Sealed(Epoch),
    /// The map asks for what can't be: refuse.
    #[error("an ensemble of {drives} drives can't hold {needed} copies; add drives in other domains")]
    TooFewDrives { drives: usize, needed: usize },
    /// An earlier attempt with this very epoch left records. Ask the managers for a new epoch.
    #[error("{0} was used before; a new attempt needs a new epoch")]
    EpochUsed(Epoch),
    /// More failed than the protection survives: every listed drive answered, and the log has a hole.
    #[error("{seq} is lost: {reason}. More drives failed than the bucket's protection survives; nothing was changed")]
    Lost { seq: Seq, reason: String },
    /// Drives hold what no leader can have written.
    #[error("{drive} contradicts the other drives of its journal: {reason}")]
    Inconsistent { drive: DriveId, reason: String },
    #[error("the recovery was stopped")]
    Stopped,
}
