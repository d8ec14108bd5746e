//! Every number of the managers in one place.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// The consensus counts time in these. Each manager wakes so often when nothing happens.
    pub tick: Duration,
    /// Ticks between heartbeats of the leader.
    pub heartbeat_ticks: usize,
    /// Ticks of silence after which a manager stands for election, at least; at most twice as many.
    pub election_ticks: usize,
    /// How often a node tells the leader that it lives.
    pub alive_every: Duration,
    /// A node that is silent for so long is `Away`; half-way it is asked.
    pub away_after: Duration,
    /// How long a node is given to answer when it is asked whether it lives.
    pub ask_timeout: Duration,
    /// A node that is away and was not admitted anew is `Up` once it has been heard for so long without a gap.
    pub back_after: Duration,
    /// A node that is away for so long is given up: its shards are rebuilt elsewhere, if there is a place.
    pub failed_after: Duration,
    /// Shards are moved when all nodes have been in the same state for so long, and none of them is away.
    pub move_after: Duration,
    /// A manager that has just started waits for so long before it calls silent nodes away: they may be starting, too.
    pub start_grace: Duration,
    /// The same for nodes of a new cluster that have never started.
    pub form_grace: Duration,
    /// How long the leader waits for a quorum before it answers `NoQuorum`.
    pub commit_wait: Duration,
    /// How long a manager holds a question to the leader while an election is on.
    pub election_hold: Duration,
    /// How long a node that doesn't vote lets a manager hold its question for a newer map.
    pub follow_wait: Duration,
    /// Time for a call that is answered at once.
    pub call_timeout: Duration,
    /// A new map is on every drive of a node after about this time.
    pub save_after: Duration,
    /// First and longest pause between tries.
    pub retry_first: Duration,
    pub retry_most: Duration,
    /// A log that is longer is cut at the stored map.
    pub log_entries_max: usize,
    pub log_bytes_max: usize,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            heartbeat_ticks: 2,
            election_ticks: 6,
            alive_every: Duration::from_millis(400),
            away_after: Duration::from_millis(1500),
            ask_timeout: Duration::from_millis(300),
            back_after: Duration::from_secs(1),
            failed_after: Duration::from_secs(30),
            move_after: Duration::from_secs(3),
            start_grace: Duration::from_secs(5),
            form_grace: Duration::from_secs(10),
            commit_wait: Duration::from_secs(3),
            election_hold: Duration::from_millis(500),
            follow_wait: Duration::from_secs(5),
            call_timeout: Duration::from_secs(1),
            save_after: Duration::from_millis(300),
            retry_first: Duration::from_millis(50),
            retry_most: Duration::from_secs(1),
            log_entries_max: 128,
            log_bytes_max: 256 << 10,
        }
    }
}

/// Copies of the consensus' state on different drives of a node; a node with one drive has one.
pub const COPIES: usize = 2;
/// Largest encoded delta: it must fit a message and, with a log of others, a slot.
pub const DELTA_BYTES_MAX: usize = 384 << 10;
/// Reports of a suspicion against one node are passed on no more often than this.
pub const SUSPECT_EVERY: Duration = Duration::from_millis(100);
/// Messages and questions that wait for the consensus of this node.
pub const INBOX_MAX: usize = 1024;
/// Proposals that wait for the leader.
pub const PROPOSALS_MAX: usize = 1024;
/// Messages of the consensus on their way to one peer.
pub const SENDING_MAX: usize = 64;
/// Deltas kept for those who ask, and their encoded bytes.
pub const HISTORY_MAX: usize = 512;
pub const HISTORY_BYTES_MAX: usize = 512 << 10;
/// Questions for a newer map that wait on one node.
pub const WAITING_MAX: usize = 16_384;
/// Longest that a question for a newer map is held.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Clients and filesystems of a cluster.
pub const CLIENTS_MAX: usize = 16_384;
pub const FILESYSTEMS_MAX: usize = 1024;
pub const HOST_BYTES_MAX: usize = 255;
