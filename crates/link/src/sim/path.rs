use std::cmp::Ordering;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use weft_reactor::{Instant, Random};

use super::options::SimNetOptions;

/// The two bits of a packet that may be marked, and of one that is.
const ECN_NOT_CAPABLE: u8 = 0b00;
const ECN_CONGESTED: u8 = 0b11;
/// Bits flipped in a corrupt datagram, at most.
const CORRUPT_BITS_MAX: u64 = 8;

#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: u8,
    pub(super) data: Bytes,
}

impl Packet {
    pub(super) fn mark_congestion(&mut self) {
        if self.ecn != ECN_NOT_CAPABLE {
            self.ecn = ECN_CONGESTED;
        }
    }

    pub(super) fn corrupt(&mut self, random: &mut Random) {
        let mut data = self.data.to_vec();
        for _ in 0..=random.below(CORRUPT_BITS_MAX) {
            let bit = random.below(data.len() as u64 * 8);
            if let Some(byte) = data.get_mut((bit / 8) as usize) {
                *byte ^= 1 << (bit % 8);
            }
        }
        self.data = data.into();
    }
}

/// Something that will happen to a packet.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) at: Instant,
    /// Order of creation, among events of one time.
    pub(super) serial: u64,
    pub(super) kind: EventKind,
}

#[derive(Debug)]
pub(super) enum EventKind {
    /// It gets to the receiver's port and queues there.
    ReachPort(Packet),
    Arrive(Packet),
    /// The sender learns that nobody listens at the address.
    Refuse {
        sender: SocketAddr,
        to: SocketAddr,
    },
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// One direction of a port: sends or takes in one byte after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Port {
    busy_until: Instant,
}

impl Port {
    /// Bytes that wait at `now`.
    pub(super) fn backlog_bytes(&self, now: Instant, bandwidth: u64) -> u64 {
        let wait = self.busy_until.since(now).as_nanos();
        u64::try_from(wait * u128::from(bandwidth) / 1_000_000_000).unwrap_or(u64::MAX)
    }

    /// Queues `bytes` and returns when the last of them is through.
    pub(super) fn pass(&mut self, now: Instant, bytes: usize, bandwidth: u64) -> Instant {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(bandwidth.max(1));
        self.busy_until = self.busy_until.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.busy_until
    }
}

/// Draws how long a packet takes.
pub(super) fn draw_delay(options: &SimNetOptions, random: &mut Random) -> Duration {
    let spread = options.delay_max.saturating_sub(options.delay_min);
    let mut delay = options.delay_min + draw_up_to(spread, random);
    if random.chance(options.reorder) {
        delay += draw_up_to(options.reorder_delay, random);
    }
    delay
}

fn draw_up_to(max: Duration, random: &mut Random) -> Duration {
    let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX - 1);
    Duration::from_nanos(random.below(nanos + 1))
}
