//! All numbers that shape how a client takes its time.

use std::time::Duration;
use weft_wire::limits::SESSION_SECONDS_MAX;

/// One call to a leader; longer, and it is made again with the same number.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// One call that waits for a lock.
pub const LOCK_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one sign of life may take; the next comes anyway.
pub const RENEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a call is made again; doubles up to the larger one. A newer map ends it early.
pub const RETRY_FIRST: Duration = Duration::from_millis(10);
pub const RETRY_MOST: Duration = Duration::from_millis(500);

/// Least time between two reports of one node that doesn't listen, and how long a manager may take to hear of it.
pub const REPORT_EVERY: Duration = Duration::from_millis(100);
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a node may hold a request for a newer map.
pub const MAP_WAIT: Duration = Duration::from_secs(20);
/// What a node may take longer than that.
pub const MAP_CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Least time between two questions for a newer map.
pub const MAP_PAUSE: Duration = Duration::from_millis(20);
pub const MAP_PAUSE_MOST: Duration = Duration::from_millis(500);

/// A proposal to the managers; they may wait for a quorum meanwhile.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a filesystem that the map doesn't name is waited for: the node that was asked first may be behind.
pub const UNKNOWN_FILESYSTEM_WAIT: Duration = Duration::from_secs(3);

/// How long something waits before that is worth a line in the log.
pub const WAIT_LOG_AFTER: Duration = Duration::from_secs(1);
/// How often waiting is logged, and how often whoever waits for the map says so again.
pub const WAIT_LOG_EVERY: Duration = Duration::from_secs(5);

/// How old the answer to statfs may be.
pub const STATFS_AGE_MAX: Duration = Duration::from_secs(1);

/// For so long after a leader answered, what was open there is: it counts the silence by a clock of its own.
pub const OPENS_COUNT: Duration = Duration::from_secs(SESSION_SECONDS_MAX * 3 / 4);

/// Of one append; larger ones are several.
pub const APPEND_BYTES_MAX: usize = 1 << 20;
/// Requests of one operation that are under way at a time.
pub const PARALLEL_MAX: usize = 16;
/// A file with more slabs than this is looked for in all buckets at once.
pub const SLABS_ASKED_MAX: u64 = 64;
/// Slabs that a hole is punched into whether the file's size reaches them or not.
pub const PUNCH_SLABS_MAX: u64 = 4096;
/// Looks at a file whose times are set meanwhile.
pub const STAT_LOOKS_MAX: u32 = 4;
/// Files whose cut generation is remembered.
pub const GENERATIONS_MAX: usize = 16_384;
/// How long a file's cut generation is used for new writes, or its size for new reads, after it was heard, and within which
/// time a slab must have taken or given the data so that it counts: buckets remember cuts for two minutes.
pub const GENERATION_AGE_MAX: Duration = Duration::from_secs(30);
pub const GENERATION_USED_MAX: Duration = Duration::from_secs(60);
/// Longest pause of a writer before it writes again what a cut has taken; doubled each time.
pub const AGAIN_FIRST: Duration = Duration::from_millis(1);
pub const AGAIN_MOST: Duration = Duration::from_millis(250);
