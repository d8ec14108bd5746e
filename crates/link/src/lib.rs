//! Ways to move datagrams. What is above a link does not know which one it is.
#![forbid(unsafe_code)]

pub mod sim;
pub mod udp;

use std::net::SocketAddr;
use std::os::fd::RawFd;

/// Which way datagrams take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkKind {
    /// Kernel sockets.
    Udp,
    /// The simulator.
    Sim,
}

/// One or more datagrams to one place, sent with one call where the link can.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub to: SocketAddr,
    /// Explicit congestion notification: the two bits of the IP header.
    pub ecn: u8,
    /// The datagrams one behind the other: each `segment_size` bytes long, the last one may be shorter.
    pub segments: &'a [u8],
    /// At least 1 and at most [`Link::datagram_bytes_max`]. More than one segment only if each fits the path:
    /// what probes for a larger path must travel alone.
    pub segment_size: usize,
}

/// One datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    pub from: SocketAddr,
    /// Explicit congestion notification: the two bits of the IP header.
    pub ecn: u8,
    pub data: &'a [u8],
}

/// Moves bursts of datagrams, unreliably: they may get lost, double, late, out of order and, rarely, corrupt.
pub trait Link {
    fn local_addr(&self) -> SocketAddr;

    fn kind(&self) -> LinkKind;

    /// The largest payload of one datagram that this end can send at all. What the path carries may be less.
    fn datagram_bytes_max(&self) -> usize;

    /// The most segments that one [`Datagram`] should carry; a link splits what is longer, at a cost.
    fn segments_max(&self) -> usize;

    /// Sends and returns how many of `batch`, from its start, were taken. Fewer than all: the link is full, try later.
    /// Taken means neither sent nor arrived.
    fn send(&mut self, batch: &[Datagram<'_>]) -> usize;

    /// Hands what has arrived to `sink`, a bounded burst of it, and returns how many datagrams that were.
    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> usize;

    /// Readable when [`receive`](Self::receive) or [`take_unreachable`](Self::take_unreachable) would find something.
    fn wait_fd(&self) -> Option<RawFd>;

    /// Who is known to listen no more: a datagram sent there was refused since the last call.
    /// A hint that anyone on the path can forge.
    fn take_unreachable(&mut self) -> Vec<SocketAddr>;
}
