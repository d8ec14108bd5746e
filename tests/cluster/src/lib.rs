//! Real clusters of local processes: what `cargo xtask up` starts, what tests kill, and programs that check afterwards
//! that nothing acknowledged was lost.
//!
//! A cluster is a state directory: `cluster.json` says how it was made, and each node has a directory with its
//! configuration, drive, log and sockets. Processes are found again through these files, so the program that started a
//! cluster may end and another one take over.

#![forbid(unsafe_code)]

pub mod blows;
pub mod cluster;
pub mod cut;
pub mod fsync;
pub mod health;
pub mod layout;
pub mod load;
pub mod many;
pub mod memory;
pub mod mount;
pub mod node;
pub mod ports;
pub mod preflight;
pub mod process;
pub mod programs;
pub mod scene;
pub mod wait;
pub mod work;
