//! Kernel UDP sockets with segmentation offload both ways.

mod errors;
mod options;

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Datagram, Link, LinkKind, Received};

/// Asked of the kernel for each direction; it grants what `net.core.rmem_max` and `wmem_max` allow, or all of it to root.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// What one receive call can return for one message: several datagrams that arrived as one burst.
const MESSAGE_BYTES_MAX: usize = 65_536;
/// Payload of the largest IPv4 and IPv6 packets.
const DATAGRAM_V4_BYTES_MAX: usize = 65_507;
const DATAGRAM_V6_BYTES_MAX: usize = 65_487;
/// Messages offered to the kernel in a receive call after one that brought little. Setting each up costs something.
const MESSAGES_PER_RECEIVE_MIN: usize = 4;
/// Receive calls of one [`Link::receive`].
const RECEIVE_CALLS_MAX: usize = 4;
/// Remembered between two calls of [`Link::take_unreachable`]; more are forgotten, they are only hints.
const UNREACHABLE_MAX: usize = 1024;

/// A bound socket.
pub struct UdpLink {
    socket: Socket,
    state: UdpSocketState,
    local: SocketAddr,
    /// Receive buffers, [`MESSAGE_BYTES_MAX`] for each of [`BATCH_SIZE`] messages.
    buffer: Vec<u8>,
    metas: Vec<RecvMeta>,
    /// How many messages the next receive call offers room for.
    messages_offered: usize,
    unreachable: BTreeSet<SocketAddr>,
}

impl UdpLink {
    /// Binds to `addr`; port 0 lets the system choose.
    ///
    /// The error names the address. Typically it is in use, or not an address of this host.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("binding udp {addr}: {error}"));
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)).map_err(named)?;
        socket.bind(&addr.into()).map_err(named)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket)).map_err(named)?;
        options::disable_timestamps(&socket);
        options::enlarge_buffers(&socket, SOCKET_BUFFER_BYTES);
        state.enable_transport_errors(UdpSockRef::from(&socket)).map_err(named)?;
        let local = socket
            .local_addr()
            .and_then(|local| local.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable)))
            .map_err(named)?;
        Ok(Self {
            socket,
            state,
            local,
            buffer: vec![0; BATCH_SIZE * MESSAGE_BYTES_MAX],
            metas: vec![RecvMeta::default(); BATCH_SIZE],
            messages_offered: MESSAGES_PER_RECEIVE_MIN,
            unreachable: BTreeSet::new(),
        })
    }

    /// What the kernel granted: (receive, send), in bytes.
    pub fn socket_buffer_bytes(&self) -> io::Result<(usize, usize)> {
        Ok((self.socket.recv_buffer_size()?, self.socket.send_buffer_size()?))
    }

    fn send_one(&mut self, datagram: &Datagram<'_>) -> Outcome {
        let destination = self.as_seen_by_socket(datagram.to);
        let segment_size = datagram.segment_size.max(1);
        let mut rest = datagram.segments;
        while !rest.is_empty() {
            let segments = self.segments_max().min((DATAGRAM_V6_BYTES_MAX / segment_size).max(1));
            let (burst, after) = rest.split_at(rest.len().min(segments * segment_size));
            let transmit = Transmit {
                destination,
                ecn: EcnCodepoint::from_bits(datagram.ecn),
                contents: burst,
                segment_size: Some(segment_size),
                src_ip: None,
            };
            match self.try_send(&transmit) {
                Ok(()) => rest = after,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Full,
                // The card can't segment: the limit has just fallen, so this ends.
                Err(_) if burst.len() > segment_size && segments > self.segments_max() => (),
                Err(error) => {
                    self.note_send_error(&error, datagram.to);
                    rest = after;
                }
            }
        }
        Outcome::Taken
    }

    /// A pending error of an earlier datagram is reported by the next call, whatever that is about: then tries again.
    fn try_send(&mut self, transmit: &Transmit<'_>) -> io::Result<()> {
        let first = self.state.try_send(UdpSockRef::from(&self.socket), transmit);
        match &first {
            Err(error) if errors::is_of_earlier_datagram(error) => {
                self.drain_errors();
                self.state.try_send(UdpSockRef::from(&self.socket), transmit)
            }
            _ => first,
        }
    }

    /// A datagram that the system refuses is lost like any other, but what it says about the destination is worth knowing.
    fn note_send_error(&mut self, error: &io::Error, to: SocketAddr) {
        if errors::means_unreachable(error) {
            self.note_unreachable(to);
        } else if !quinn_udp::is_msg_size_err(error) {
            tracing::debug!(%to, %error, "a datagram could not be sent");
        }
        self.drain_errors();
    }

    fn drain_errors(&mut self) {
        while let Some(error) = errors::next_error(&self.socket) {
            if let errors::QueuedError::Unreachable(addr) = error {
                self.note_unreachable(addr);
            }
        }
    }

    fn note_unreachable(&mut self, addr: SocketAddr) {
        if self.unreachable.len() < UNREACHABLE_MAX {
            self.unreachable.insert(canonical(addr));
        }
    }

    /// An IPv6 socket knows IPv4 peers by their mapped addresses.
    fn as_seen_by_socket(&self, addr: SocketAddr) -> SocketAddr {
        match (self.local, addr) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => SocketAddrV6::new(
                Ipv6Addr::from_bits(0xffff_0000_0000 | u128::from(v4.ip().to_bits())),
                v4.port(),
                0,
                0,
            )
            .into(),
            _ => addr,
        }
    }

    fn receive_call(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> io::Result<Burst> {
        let offered = self.messages_offered.min(BATCH_SIZE);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        for (slice, chunk) in slices.iter_mut().zip(self.buffer.chunks_exact_mut(MESSAGE_BYTES_MAX)) {
            *slice = IoSliceMut::new(chunk);
        }
        let messages = self.state.recv(UdpSockRef::from(&self.socket), &mut slices[..offered], &mut self.metas)?;
        let mut datagrams = 0;
        for (meta, message) in self.metas.iter().zip(&slices).take(messages) {
            let from = canonical(meta.addr);
            let ecn = meta.ecn.map_or(0, |ecn| ecn as u8);
            for data in message[..meta.len.min(MESSAGE_BYTES_MAX)].chunks(meta.stride.max(1)) {
                sink(Received { from, ecn, data });
                datagrams += 1;
            }
        }
        Ok(Burst { datagrams, may_be_more: messages == offered })
    }
}

enum Outcome {
    Taken,
    Full,
}

struct Burst {
    datagrams: usize,
    may_be_more: bool,
}

impl Link for UdpLink {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn kind(&self) -> LinkKind {
        LinkKind::Udp
    }

    fn datagram_bytes_max(&self) -> usize {
        match self.local {
            SocketAddr::V4(_) => DATAGRAM_V4_BYTES_MAX,
            SocketAddr::V6(_) => DATAGRAM_V6_BYTES_MAX,
        }
    }

    fn segments_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn send(&mut self, batch: &[Datagram<'_>]) -> usize {
        for (taken, datagram) in batch.iter().enumerate() {
            if let Outcome::Full = self.send_one(datagram) {
                return taken;
            }
        }
        batch.len()
    }

    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> usize {
        let mut datagrams = 0;
        for _ in 0..RECEIVE_CALLS_MAX {
            match self.receive_call(sink) {
                Ok(burst) => {
                    datagrams += burst.datagrams;
                    if !burst.may_be_more {
                        self.messages_offered = MESSAGES_PER_RECEIVE_MIN;
                        break;
                    }
                    self.messages_offered = (self.messages_offered * 2).min(BATCH_SIZE);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Not about receiving: an error of an earlier datagram that was sent.
                Err(_) => self.drain_errors(),
            }
        }
        datagrams
    }

    fn wait_fd(&self) -> Option<RawFd> {
        Some(self.socket.as_raw_fd())
    }

    fn take_unreachable(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.unreachable).into_iter().collect()
    }
}

impl AsFd for UdpLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::fmt::Debug for UdpLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpLink").field("local", &self.local).finish_non_exhaustive()
    }
}

/// The address as everyone else writes it: IPv4 not mapped, no flow label.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match (addr, addr.ip().to_canonical()) {
        (SocketAddr::V6(_), IpAddr::V4(ip)) => SocketAddr::new(ip.into(), addr.port()),
        (SocketAddr::V6(v6), _) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        _ => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_one_way() {
        let of = |text: &str| -> SocketAddr { text.parse().unwrap() };
        assert_eq!(canonical(of("[::ffff:10.0.0.1]:7")), of("10.0.0.1:7"));
        assert_eq!(canonical(of("[fd00::1]:7")), of("[fd00::1]:7"));
        assert_eq!(canonical(of("10.0.0.1:7")), of("10.0.0.1:7"));
    }
}
