//! A network in memory, in virtual time, with the faults of real ones.

mod net;
mod options;
mod path;

pub use net::{SimLink, SimNet};
pub use options::{NodeState, PartitionId, SimNetOptions, SimNetStats};
