//! Requests and responses between cores.
//!
//! [`rpc`] is what the layers above see: a [`rpc::Network`] that carries requests to services and answers back.
//! [`endpoint`] is the protocol: a state machine without sockets or clock, made of packets with frames in them.
//! [`memory`] is the same within one process, in virtual time, with faults on demand.
#![forbid(unsafe_code)]

mod assembly;
mod congestion;
mod cookie;
pub mod endpoint;
mod frame;
pub mod memory;
mod mtu;
pub mod options;
mod outbox;
mod packet;
mod ranges;
mod role;
pub mod rpc;
mod rtt;
mod sent;
mod session;

#[cfg(test)]
mod tests;
