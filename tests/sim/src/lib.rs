//! The simulator: whole clusters with their clients in virtual time, on one thread, everything a function of one seed.
//!
//! Nodes are the daemon's own wiring (`weftd::node::Node`) on drives in memory, a network in memory and clocks that
//! drift; clients are the client's own engine. [`run::run`] forms a cluster, lets clients work while [`faults`] strike,
//! heals everything, reads everything back and has [`oracle`] explain each answer.
#![forbid(unsafe_code)]

pub mod aims;
mod calm;
pub mod cluster;
pub mod creates;
pub mod crew;
pub mod extras;
pub mod faults;
pub mod files;
pub mod flow;
pub mod growth;
pub mod history;
pub mod leaks;
pub mod linear;
pub mod many;
pub mod memory;
pub mod names;
pub mod node;
pub mod oracle;
pub mod orders;
pub mod process;
mod quiet;
pub mod rack;
pub mod run;
pub mod scale;
pub mod stripes;
pub mod tables;
pub mod trace;
pub mod workload;
pub mod world;
