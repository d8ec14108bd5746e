use std::time::Duration;

/// How a path behaves. Probabilities are per datagram, 0.0 to 1.0.
#[derive(Clone, Debug, PartialEq)]
pub struct SimNetOptions {
    /// Each datagram takes an evenly drawn time between these two; a wide range reorders.
    pub delay_min: Duration,
    pub delay_max: Duration,
    pub loss: f64,
    /// A second copy arrives, with a delay of its own.
    pub duplicate: f64,
    /// Some bits arrive flipped.
    pub corrupt: f64,
    /// The datagram is late by up to `reorder_delay` more.
    pub reorder: f64,
    pub reorder_delay: Duration,
    /// Of the sender's port and of the receiver's, in bytes per second. `None`: no limit, no queues.
    pub bandwidth: Option<u64>,
    /// What waits at a port: beyond it the sender's port takes no more, the receiver's drops.
    pub queue_bytes_max: u64,
    /// Datagrams that may carry it get the mark of congestion when more than this waits at the receiver's port.
    pub mark_above_bytes: u64,
    /// Larger ones vanish on the path, as with a path MTU that nobody reports.
    pub datagram_bytes_max: usize,
}

impl SimNetOptions {
    /// A quiet network: a tenth of a millisecond one way, in order, nothing lost.
    pub fn calm() -> Self {
        Self {
            delay_min: Duration::from_micros(100),
            delay_max: Duration::from_micros(100),
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            reorder: 0.0,
            reorder_delay: Duration::ZERO,
            bandwidth: None,
            queue_bytes_max: 1 << 20,
            mark_above_bytes: 128 << 10,
            datagram_bytes_max: 65_507,
        }
    }

    /// A bad network: loses, doubles, delays, reorders and corrupts a few in a hundred.
    pub fn rough() -> Self {
        Self {
            delay_max: Duration::from_millis(2),
            loss: 0.03,
            duplicate: 0.02,
            corrupt: 0.005,
            reorder: 0.05,
            reorder_delay: Duration::from_millis(10),
            ..Self::calm()
        }
    }
}

impl Default for SimNetOptions {
    fn default() -> Self {
        Self::calm()
    }
}

/// What becomes of datagrams from and to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    #[default]
    Up,
    /// The host is dead or unplugged: nothing goes in or out, and nobody is told.
    Silent,
    /// The host lives, the process does not: senders learn that the port is closed.
    Refusing,
}

/// Names a partition, to heal it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionId(pub(super) u64);

/// What happened to datagrams so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimNetStats {
    pub sent: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    /// Stopped by a partition or a silent node.
    pub blocked: u64,
    /// Nobody listened.
    pub refused: u64,
    /// Dropped at a full port or by a receiver that does not receive.
    pub overflowed: u64,
    pub too_large: u64,
}
