//! A bucket's replicated log.
//!
//! One leader writes each record to all P+2 drives of the bucket's ensemble and acknowledges, in sequence order, what
//! stands on P+1 of them. A new leader seals enough drives to make P+1 impossible for the old one, gathers what they
//! hold, decides where the log ends, copies what may lack copies, and opens its epoch with a record that says which
//! older records count. Nothing is guessed: what can't be decided is waited for, with a stated reason, or refused.
//!
//! - [`Gathered::decide`] is the decision alone, a pure function;
//! - [`Recovery`] seals and gathers, [`Replicator`] copies, appends, beats and counts promises: state machines that
//!   are told replies and the time, and say which calls to make;
//! - [`Log`] drives both over the network. This is what the bucket uses.
#![forbid(unsafe_code)]

mod call;
mod error;
mod gathered;
mod log;
mod peer;
mod record;
mod recovery;
mod replicator;
mod store;
mod tunables;

pub use call::{Call, CallId, Outcome, Unreached};
pub use error::{LogError, RecoverError};
pub use gathered::{Decision, DriveView, Gathered, Known, Lack, Verdict};
pub use log::{Beats, Log, LogParams, Recovered};
pub use record::{EpochStart, Record, RootFrame, RootRecord};
pub use recovery::{Recovery, RecoveryParams, Step, Waiting};
pub use replicator::{Replicator, ReplicatorParams, Room, Trouble};
pub use tunables::Tunables;
