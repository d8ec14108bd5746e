//! The checker of memory: what buckets hold stays within what they are configured with, whatever they have been through.

use crate::world::World;
use weft_wire::limits::RECORD_BYTES_MAX;
use weftd::lead::Tunables;

/// Records that may be on their way into a bucket when its bounds are reached: one of each worker, and some of its own.
const RECORDS_UNDER_WAY: u64 = 16;

#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub held_bytes: u64,
    pub index_bytes: u64,
    pub journal_bytes: u64,
}

impl Budget {
    pub fn of(tunables: &Tunables) -> Self {
        let under_way = RECORDS_UNDER_WAY * RECORD_BYTES_MAX as u64;
        let (bucket, journal) = (&tunables.bucket, &tunables.journal);
        Self {
            // A new leader adopts what the journal has.
            held_bytes: bucket.held_bytes_max.max(journal.quota_bytes) + under_way,
            // One memtable that is written while the next is filled.
            index_bytes: 2 * (bucket.memtable_bytes_max + bucket.cache_bytes_max) as u64
                + bucket.sections_bytes_max as u64
                + under_way,
            journal_bytes: journal.quota_bytes + under_way,
        }
    }
}

/// Looks at every bucket that is served now.
pub fn check(world: &World, budget: &Budget) -> Result<(), String> {
    for node in world.nodes.iter().filter_map(|node| node.node()) {
        for bucket in node.buckets() {
            let stats = bucket.stats();
            for (what, bytes, most) in [
                ("held data", stats.held_bytes, budget.held_bytes),
                ("index", stats.index_resident_bytes, budget.index_bytes),
                ("journal", stats.journal_bytes, budget.journal_bytes),
            ] {
                if bytes > most {
                    return Err(format!("{} has {bytes} bytes of {what}, {most} at most are allowed", bucket.id()));
                }
            }
        }
    }
    Ok(())
}
