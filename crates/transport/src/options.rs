//! All tunables of the transport, with their defaults.

use std::time::Duration;

/// Datagram size that every path carries: IPv6's minimum less its headers.
pub const MTU_BASE_BYTES: usize = 1200;
/// Largest payload of one segmented send: what UDP's 16-bit length leaves.
pub const BATCH_BYTES_MAX: usize = 65_000;
/// Segments of one segmented send that kernels accept.
pub const BATCH_SEGMENTS_MAX: usize = 64;
/// Batches that one session sends before others have their turn.
pub const BATCHES_PER_TURN: usize = 4;
/// Handshake answers waiting to be sent; more are dropped, their senders ask again.
pub const CONTROL_QUEUE_MAX: usize = 1024;
/// Requests of one session that are not yet known to have arrived. Both ends count.
pub const REQUEST_WINDOW: u64 = 1024;
/// Messages up to this size may use the last part of a session's window, so that large ones never block them.
pub const SMALL_MESSAGE_BYTES: usize = 16 << 10;
/// The part of a session's window that large messages leave alone.
pub const SMALL_RESERVE_BYTES: usize = 1 << 20;
/// Ranges of packet numbers that a receiver remembers; older gaps are closed for good.
pub const ACK_RANGES_MAX: usize = 32;
/// Pieces of one message that may wait for what is missing between them.
pub const PIECES_MAX: usize = 1024;
/// Packets that one session has unacknowledged at most.
pub const PACKETS_IN_FLIGHT_MAX: usize = 8192;
/// Cookies are accepted for one to two of these.
pub const COOKIE_LIFE: Duration = Duration::from_secs(15);
/// Stateless resets sent per second; a restarted core has at most this many peers to tell at once.
pub const RESETS_PER_SECOND: u32 = 2000;
/// A session without traffic for so long gives the memory back that only traffic needs.
pub const REST_AFTER: Duration = Duration::from_secs(5);
/// Gap to the largest packet known to have arrived from which on a late one counts as lost, once a round trip has passed.
pub const LOSS_PACKETS: u64 = 3;
/// A timer finer than this is not worth waking up for.
pub const TIMER_GRANULARITY: Duration = Duration::from_micros(200);

#[derive(Clone, Debug)]
pub struct EndpointOptions {
    /// Largest datagram the link takes.
    pub mtu_bytes_max: usize,
    /// Sessions of both kinds; beyond it, peers are refused.
    pub sessions_max: usize,
    /// Bytes of messages that a peer may have on their way to us at once.
    pub window_bytes: usize,
    /// Bytes of incomplete messages over all sessions; beyond it packets are dropped, their senders slow down.
    pub assembly_bytes_max: usize,
    /// Bytes of requests queued in one session; beyond it calls fail as overloaded.
    pub queue_bytes_max: usize,
    /// Calls waiting for their response in one session; beyond it calls fail as overloaded.
    pub calls_max: usize,
    /// Requests that one peer may have in handlers.
    pub requests_per_peer_max: usize,
    /// How long an acknowledgement waits for data to ride on. A lone one costs both sides a wake-up; waiting for it costs
    /// nothing but a later probe when the last packet of a burst was lost (as in QUIC, RFC 9000).
    pub ack_delay: Duration,
    /// Packets after which an acknowledgement waits no longer.
    pub ack_packets: u32,
    /// A peer that answers nothing for so long, and to at least three probes, is unreachable.
    pub give_up: Duration,
    /// Shortest time until something unanswered is sent again, beside the acknowledgement's delay; and the longest with it.
    pub probe_min: Duration,
    pub probe_max: Duration,
    /// First time to wait for an answer, before a round trip was measured.
    pub probe_initial: Duration,
    /// How long calls may wait in silence before we ask whether the peer still lives; doubled each time up to `ping_max`.
    pub ping_min: Duration,
    pub ping_max: Duration,
    /// A session of ours without calls for so long is forgotten; one of a peer's after twice that.
    pub idle: Duration,
    pub congestion_bytes_initial: usize,
    pub congestion_bytes_max: usize,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            mtu_bytes_max: 8952,
            sessions_max: 16_384,
            window_bytes: 8 << 20,
            assembly_bytes_max: 256 << 20,
            queue_bytes_max: 64 << 20,
            calls_max: 16_384,
            requests_per_peer_max: 4096,
            ack_delay: Duration::from_millis(25),
            ack_packets: 24,
            give_up: Duration::from_secs(3),
            probe_min: Duration::from_millis(10),
            probe_max: Duration::from_secs(1),
            probe_initial: Duration::from_millis(50),
            ping_min: Duration::from_millis(100),
            ping_max: Duration::from_secs(1),
            idle: Duration::from_secs(60),
            congestion_bytes_initial: 128 << 10,
            congestion_bytes_max: 2 << 20,
        }
    }
}
