//! The map and its managers: 2P+1 nodes agree on it, all nodes keep and serve it.
//!
//! [`Manager`] is one node's part. The managers' leader turns each proposal into a delta ([`decide()`]), the consensus carries the delta, and every
//! manager applies the same ones. Nodes that don't vote, and clients, ask any node for what is newer. Vote, log and map live on the node's own drives
//! ([`ConfigStore`]); a manager that lost some of that never votes as the one it was.
#![forbid(unsafe_code)]

mod consensus;
mod copies;
mod decide;
mod driver;
mod follow;
mod health;
mod history;
mod log;
mod manager;
mod propose;
mod records;
mod seat;
mod shared;
mod store;
pub mod testing;
mod tunables;

pub use copies::LoadError;
pub use decide::{Decision, Outcome, ROOT_SERIAL, decide};
pub use history::{MapServer, MapWatch};
pub use manager::{BootstrapError, Ended, Manager, ManagerStatus, NotAdmitted};
pub use propose::{Patience, propose};
pub use records::RecordError;
pub use shared::Role;
pub use store::{ConfigStore, Slot, StoreError};
pub use tunables::Tunables;
