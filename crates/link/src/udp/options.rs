//! Socket options beyond what `quinn-udp` sets.

use nix::sys::socket::{setsockopt, sockopt};
use socket2::Socket;

/// Asks for large socket buffers: all of it if we may, else as much as the system allows.
pub(super) fn enlarge_buffers(socket: &Socket, bytes: usize) {
    let receive =
        setsockopt(socket, sockopt::RcvBufForce, &bytes).or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes));
    let send =
        setsockopt(socket, sockopt::SndBufForce, &bytes).or_else(|_| setsockopt(socket, sockopt::SndBuf, &bytes));
    if let Err(error) = receive.and(send) {
        tracing::debug!(%error, "the system keeps its default socket buffers");
    }
}

/// `quinn-udp` 0.6 asks for receive time stamps, which nobody here reads. With one, the control messages of an
/// offloaded burst are larger than its buffer for them, and the congestion bits are what gets cut off.
pub(super) fn disable_timestamps(socket: &Socket) {
    if let Err(error) = setsockopt(socket, sockopt::ReceiveTimestampns, &false) {
        tracing::debug!(%error, "receive time stamps stay on");
    }
}
