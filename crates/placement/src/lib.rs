//! Who holds what: pure functions from a request, or from a map and an event, to a map or a change of it.
//!
//! Nothing here knows time, files, sockets or randomness. The managers' leader computes an outcome once and
//! consensus carries the outcome, so two versions of this crate never have to agree.
//!
//! [`form`] makes the first map. [`add_node`], [`replace_drive`], [`drain`] and [`set_leaders`] make the changes of later ones
//! and move no more shards than the new balance needs. [`node_states`] is what a node's death or return changes at once.
#![forbid(unsafe_code)]

mod change;
mod ensembles;
mod failover;
mod form;
mod leaders;
mod members;
mod movement;
mod quota;
mod refusal;
mod request;

pub use change::{add_node, balance_leaders, drain, replace_drive, set_leaders};
pub use failover::{better_ensemble, drive_failed, lives, node_states, urgent, with_ensemble};
pub use form::{BUCKETS_PER_CORE_MIN, ZONES_PER_BUCKET_MIN, form};
pub use refusal::Refusal;
pub use request::{FormRequest, NewDrive, NewNode};

/// Most nodes of a cluster: the pair table of placement is quadratic in them.
pub const NODES_MAX: usize = 1024;
/// Most drives of a cluster.
pub const DRIVES_MAX: usize = 16 * NODES_MAX;
/// Most buckets are 2 to the power of this.
pub const BUCKET_BITS_MAX: u8 = 16;
/// Most cores of a node: a core's number is a byte.
pub const CORES_MAX: usize = 256;
