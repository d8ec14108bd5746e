//! What ICMP said about datagrams sent earlier: the socket's error queue.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use socket2::Socket;

/// Room for the error, its offender, and what the socket reports with every message (address, traffic class, time).
const CONTROL_BYTES: usize = 512;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
/// Destination unreachable (RFC 792); its code 4 is about the size of the packet, not about its destination.
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_CODE_TOO_BIG: u8 = 4;
/// Destination unreachable (RFC 4443); all its codes are about the destination.
const ICMP6_UNREACHABLE: u8 = 1;

pub(super) enum QueuedError {
    /// A datagram to this address did not get there.
    Unreachable(SocketAddr),
    Other,
}

/// Takes the next error out of the queue. The kernel tells whom the datagram was for, not only who complains.
pub(super) fn next_error(socket: &Socket) -> Option<QueuedError> {
    let mut control = nix::cmsg_space!([u8; CONTROL_BYTES]);
    let mut returned = [0; 1];
    let mut slices = [IoSliceMut::new(&mut returned)];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = loop {
        match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Ok(message) => break message,
            Err(Errno::EINTR) => (),
            Err(_) => return None,
        }
    };
    let is_unreachable = message.cmsgs().is_ok_and(|mut controls| {
        controls.any(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                match (error.ee_origin, error.ee_type) {
                    (ORIGIN_ICMP, ICMP_UNREACHABLE) => error.ee_code != ICMP_CODE_TOO_BIG,
                    (ORIGIN_ICMP6, ICMP6_UNREACHABLE) => true,
                    _ => false,
                }
            }
            _ => false,
        })
    });
    let to = message.address.as_ref().and_then(socket_addr);
    Some(to.filter(|_| is_unreachable).map_or(QueuedError::Other, QueuedError::Unreachable))
}

fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|&addr| SocketAddrV4::from(addr).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|&addr| SocketAddrV6::from(addr).into()))
}

/// Reported by a call that has nothing to do with it.
pub(super) fn is_of_earlier_datagram(error: &io::Error) -> bool {
    means_unreachable(error) || matches!(error.raw_os_error(), Some(raw) if raw == Errno::EPROTO as i32)
}

pub(super) fn means_unreachable(error: &io::Error) -> bool {
    let Some(raw) = error.raw_os_error() else { return false };
    matches!(Errno::from_raw(raw), Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN)
}
