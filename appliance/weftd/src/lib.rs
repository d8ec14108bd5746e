//! The daemon of a node: puts the parts on cores and drives.

#![forbid(unsafe_code)]

pub mod config;
pub mod control;
pub mod drives;
mod folds;
mod grow;
pub mod lead;
mod moves;
pub mod node;
pub mod notify;
pub mod passes;
mod reach;
mod report;
pub mod run;
pub mod supervise;
mod upkeep;
mod watch;
pub mod word;
