//! All numbers that can be turned.

use core::time::Duration;
use weft_wire::limits::{MESSAGE_BODY_BYTES_MAX, RECORD_BYTES_MAX};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// T: for how long a drive promises not to answer a higher seal. Must be what the drives are configured with.
    pub lease: Duration,
    /// By how much two clocks may run apart while a promise lasts, in millionths.
    pub drift_ppm: u32,
    /// After which a call counts as unanswered.
    pub call_timeout: Duration,
    /// First pause after a call to a drive failed; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// For how long a recovery that has enough drives waits for the others that seem alive.
    pub grace: Duration,
    /// Records that no root covers yet may take this much; beyond it appends answer `Full`. Roots and epoch starts
    /// are taken still, and records of up to 4 KiB until it is an eighth more. Behind a tail that a former leader left, a quarter is free
    /// whatever that takes. At most [`Tunables::quota_of`].
    pub quota_bytes: u64,
    /// Acknowledged records are kept in memory for drives that lag up to this much, then those drives get a hole.
    pub backlog_bytes_max: u64,
    /// Payloads in flight to one drive.
    pub window_bytes: usize,
    /// Records in flight to one drive.
    pub window_records: usize,
    /// Payloads of one message.
    pub group_bytes: usize,
    /// Records of one message.
    pub group_records: usize,
    /// Answer to one request for a drive's tail.
    pub read_bytes: u32,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            lease: Duration::from_millis(150),
            drift_ppm: 10_000,
            call_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
            grace: Duration::from_millis(20),
            quota_bytes: 8 << 20,
            backlog_bytes_max: 4 << 20,
            window_bytes: 4 << 20,
            window_records: 512,
            group_bytes: MESSAGE_BODY_BYTES_MAX / 2,
            group_records: 128,
            read_bytes: (2 * RECORD_BYTES_MAX) as u32,
        }
    }
}

impl Tunables {
    /// How long a promise counts from the moment the request for it was sent.
    pub fn promise(&self) -> Duration {
        self.lease.saturating_sub(self.lease * self.drift_ppm / 1_000_000)
    }

    /// What a drive guarantees each of `buckets` whose ensembles it is in, if its ring holds `ring_bytes` of live
    /// records (`DriveStat::ring_bytes`): from half of the ring on it takes from a bucket only its share (twice that behind
    /// what former leaders left: their share was larger, if drives died since). A quota beyond that may leave batches refused in
    /// front of the root that would make room.
    pub fn quota_of(ring_bytes: u64, buckets: u64) -> u64 {
        (ring_bytes / 2 / buckets.max(1)).max(RECORD_BYTES_MAX as u64)
    }

    /// Pause after the `failures`-th failure in a row.
    pub fn backoff(&self, failures: u32) -> Duration {
        self.backoff_min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.backoff_max)
    }
}
