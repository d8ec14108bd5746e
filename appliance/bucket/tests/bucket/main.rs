//! Whole buckets over drives and a network in memory, in virtual time.

mod degraded;
mod life;
mod random;
mod rig;
