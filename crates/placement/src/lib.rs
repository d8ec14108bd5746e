//! Who holds what: pure functions from a request, or from a map and an event, to a map or a change of it.
//!
//! Nothing here knows time, files, sockets or randomness. The managers' leader computes an outcome once and
//! consensus carries the outcome, so two versions of this crate never have to agree.
//!
//! [`form`] makes the first map. [`add_node`], [`set_purpose`], [`remove`] and their like say what belongs to the cluster;
//! [`next_moves`] then brings the shards where they should be, a few at a time and no more of them than the new balance needs.
//! [`node_states`] is what a node's death or return changes at once.
#![forbid(unsafe_code)]

mod change;
mod ensembles;
mod failover;
mod fold;
mod form;
mod holds;
mod leaders;
mod managers;
mod members;
mod movement;
mod moves;
mod quota;
mod reads;
mod refusal;
mod request;
mod spare;

pub use change::{add_drive, add_node, drive_ready, remove, set_purpose};
pub use failover::{
    better_ensemble, drive_failed, is_well, journals_lacking, lives, node_states, urgent, with_ensemble,
};
pub use fold::folded;
pub use form::{BUCKETS_PER_CORE_MIN, ZONES_PER_BUCKET_MIN, form};
pub use holds::Holds;
pub use leaders::{balance_leaders, set_leaders};
pub use managers::next_managers;
pub use moves::{Moves, moved, moves, next_moves};
pub use reads::{Reads, rebuild_reads};
pub use refusal::Refusal;
pub use request::FormRequest;
pub use spare::{Spare, hot_spare, spare};
pub use weft_wire::map::{NewDrive, NewNode};

/// Most nodes of a cluster: the pair table of placement is quadratic in them.
pub const NODES_MAX: usize = 1024;
/// Most drives of a cluster.
pub const DRIVES_MAX: usize = 16 * NODES_MAX;
/// Largest encoded map: it must fit a slot of a drive and a message.
pub const MAP_BYTES_MAX: usize = 1000 << 10;
/// Most buckets are 2 to the power of this.
pub const BUCKET_BITS_MAX: u8 = 16;
/// Most cores of a node: a core's number is a byte.
pub const CORES_MAX: usize = 256;
