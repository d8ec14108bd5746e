//! Whole groups of managers over a network in memory, in virtual time.

mod chaos;
mod cluster;
mod decisions;
mod failover;
mod follow;
mod forget;
mod growth;
mod hostile;
mod quorum;
