//! Requests and responses between cores.
//!
//! [`rpc`] is what the layers above see: a [`rpc::Network`] that carries requests to services and answers back.
//! [`memory`] is the same within one process, in virtual time, with faults on demand.
#![forbid(unsafe_code)]

pub mod memory;
pub mod rpc;
