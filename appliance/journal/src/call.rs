//! What the state machines ask of the outside, and what they are told.

use bytes::Bytes;
use core::time::Duration;
use weft_wire::DriveId;
use weft_wire::drive::{DriveOp, DriveReply};

/// Names one call of one state machine. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// One request to one drive. Each gets exactly one [`Outcome`].
#[derive(Clone, Debug)]
pub struct Call {
    pub id: CallId,
    pub drive: DriveId,
    pub op: DriveOp,
    pub body: Bytes,
    pub timeout: Duration,
}

/// The drive gave no answer. It may or may not have done what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached(pub String);

/// The drive's answer with its body, or none.
pub type Outcome = Result<(DriveReply, Bytes), Unreached>;
