//! The journal over real drives in memory and a network in memory, in virtual time.
#![forbid(unsafe_code)]

mod cluster;
mod log;
mod random;
