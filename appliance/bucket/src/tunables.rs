//! All numbers that can be turned. Bytes and counts are per bucket.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// A memtable of this size is written as a run.
    pub memtable_bytes_max: usize,
    /// Pages of runs in memory.
    pub cache_bytes_max: usize,
    /// Of runs, what says where keys are: about two bytes for each key; what is beyond is read when it is needed.
    pub sections_bytes_max: usize,
    /// Places and checksums of stripes in memory, for readers.
    pub views_bytes_max: usize,
    /// Journal-held data in memory; writers wait beyond it.
    pub held_bytes_max: u64,
    /// A checkpoint begins when records that no root covers take this share (of 256) of the journal's quota.
    pub checkpoint_share: u64,
    /// More runs than this are merged.
    pub runs_max: usize,
    /// Zone sets that the bucket may own, reserved ones included.
    pub zone_sets_max: usize,
    /// Of these, for cleaning, checkpoints and deletes alone.
    pub zone_sets_reserved: usize,
    /// Users may fill this share (of 256) of what is not reserved.
    pub fill_share_max: u64,
    /// A zone set with more than this share (of 256) live is not worth cleaning. Above what users may fill: while they
    /// may write, there is one to clean.
    pub clean_share_max: u32,
    /// Blocks of one record of a small write.
    pub inline_blocks_max: u32,
    /// While clients or other work of the planner want the drives too, rebuilding takes this share (of 256) of the time.
    pub rebuild_share: u32,
    /// Parts of a zone set, up to 512 KiB of each drive, that are rebuilt at once while drives answer soon.
    pub rebuild_chunks_max: usize,
    /// The planner looks at least this often when there may be work.
    pub planner_pause: Duration,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            memtable_bytes_max: 2 << 20,
            cache_bytes_max: 1 << 20,
            sections_bytes_max: 1 << 20,
            views_bytes_max: 256 << 10,
            held_bytes_max: 4 << 20,
            checkpoint_share: 128,
            runs_max: 6,
            zone_sets_max: 64,
            zone_sets_reserved: 2,
            fill_share_max: 235,
            clean_share_max: 248,
            inline_blocks_max: 64,
            rebuild_share: 128,
            rebuild_chunks_max: 4,
            planner_pause: Duration::from_secs(1),
        }
    }
}
