//! A bucket: the unit of ownership. Its leader keeps an ordered index of everything in it, its files' blocks in
//! stripes, and makes each change durable through the bucket's journal before anyone hears of it.
//!
//! - [`Bucket`] is what the namespace builds on: get, scan, commit, read and write of blocks, locks;
//! - a commit is one journal record of effects ([`Batch`]); it is applied to memory at once, in order, and answered
//!   when it stands on P+1 drives ([`Bucket::settled`]);
//! - `destage` gathers small writes from the journal into stripes, `checkpoint` writes the index as sorted runs and
//!   puts a root into the journal, `cleaner` empties zone sets: one planner (`planner`) decides which, one at a time;
//! - `scrub` looks for damage, `check` for contradictions.
#![forbid(unsafe_code)]

mod batch;
mod bucket;
mod cache;
mod check;
mod checkpoint;
mod cleaner;
mod commit;
mod destage;
mod drives;
mod extent;
mod extents;
mod freeing;
mod handover;
mod held;
mod index;
mod io;
pub mod key;
mod lock;
mod memtable;
mod merge;
mod pace;
mod planner;
mod read;
mod rebuild;
mod rebuild_chunk;
pub mod rebuild_pace;
mod recover;
mod run;
mod scrub;
mod shards;
mod staging;
mod stripe;
mod stripes;
mod tunables;
mod zone_set;
mod zones;

pub use batch::Batch;
pub use bucket::{Bucket, BucketParams, Space, Stats};
pub use check::Checked;
pub use drives::DriveStates;
pub use io::{DriveCallError, DriveCalls, FindDrive};
pub use key::{KeyBuilder, Object, Tag};
pub use lock::{LockGuard, Mode};
pub use read::ReadExtent;
pub use rebuild::RebuildProgress;
pub use scrub::{ScrubFind, ScrubPass, Scrubbed};
pub use stripe::Staged;
pub use tunables::Tunables;
pub use zone_set::Kind;

use weft_journal::{LogError, RecoverError};
use weft_wire::{Epoch, StripeId};

/// Why a bucket could not do it, by what follows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// Another leader took over: forget everything, refresh the map.
    #[error("a leader of {0} took over")]
    Deposed(Epoch),
    /// The bucket is being closed.
    #[error("the bucket is closed")]
    Stopped,
    /// Space for users is used up.
    #[error("no space left")]
    NoSpace,
    /// For now; try again.
    #[error("not ready: {0}")]
    NotReady(String),
    /// More is lost than the protection survives: these blocks can't be read, others can.
    #[error("unreadable: {0}")]
    Unreadable(String),
    /// The caller looked at something that moved meanwhile: look again.
    #[error("{0} was freed")]
    Gone(StripeId),
    /// What is on the drives contradicts itself.
    #[error("corrupt: {0}")]
    Corrupt(String),
    #[error("out of bounds: {0}")]
    Bounds(String),
    #[error(transparent)]
    Recover(RecoverError),
}

impl From<LogError> for BucketError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Sealed(epoch) => Self::Deposed(epoch),
            LogError::Full => Self::NotReady("the journal is full; a checkpoint is under way".into()),
            LogError::TooLarge(bytes) => Self::Bounds(format!("a record of {bytes} bytes")),
            LogError::Stopped => Self::Stopped,
        }
    }
}
