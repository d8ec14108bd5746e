//! Between the leaders of buckets: transactions over several of them.

use crate::fs::FsError;
use crate::*;
use serde::{Deserialize, Serialize};

/// Names a transaction: the deciding bucket, the epoch of its leader and a number within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransactionId {
    pub bucket: BucketId,
    pub epoch: Epoch,
    pub number: u64,
}

/// One participant's part: what must hold, and what changes. Encoded by the namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParticipantRequest {
    pub bucket: BucketId,
    pub epoch: Epoch,
    pub transaction: TransactionId,
    pub op: ParticipantOp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipantOp {
    /// Checks, locks its keys, journals the intent. The part is in the body.
    Prepare,
    Commit,
    Abort,
    /// A participant asks the deciding bucket what became of it.
    Ask,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipantReply {
    /// The intent stands on P+1. What the participant found is in the body.
    Prepared,
    /// The check failed; nothing was kept.
    Vetoed(FsError),
    /// The outcome stands on P+1.
    Confirmed,
    Outcome {
        committed: bool,
    },
    Undecided,
    Refused(FsError),
}
