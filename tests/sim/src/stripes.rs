//! The checker of what is on the drives: each bucket compares its stripes with the drives' blocks, parity and owners.

use crate::quiet;
use crate::world::World;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use weft_bucket::{Bucket, BucketError};
use weft_drive::format::geometry::Geometry;
use weft_drive::mem::MemMedia;
use weft_wire::BucketId;

/// In virtual time, for one bucket.
const CHECK_MAX: Duration = Duration::from_secs(300);
/// After a pass that marked damaged stripes, for their repair.
const REPAIR_WAIT: Duration = Duration::from_secs(30);
/// Passes after which everything must be repaired: what is read may be repaired to a place that is damaged, too.
const PASSES_MAX: u32 = 4;

/// The bytes of a drive that are zones.
pub fn zones_of(media: &MemMedia) -> Option<Range<u64>> {
    let geometry = Geometry::for_capacity(media.capacity_bytes()).ok()?;
    Some(geometry.zones_offset..geometry.zones_offset + u64::from(geometry.zones) * geometry.zone_bytes)
}

/// What is served, and where.
pub fn buckets(world: &World) -> Vec<(usize, Bucket)> {
    let nodes = world.nodes.iter().enumerate();
    nodes
        .flat_map(|(index, node)| {
            node.node().map(|node| node.buckets()).unwrap_or_default().into_iter().map(move |bucket| (index, bucket))
        })
        .collect()
}

/// Lets the buckets read everything and repair what is damaged.
pub fn repair(world: &mut World, bucket_count: usize) -> Result<(), String> {
    let mut damaged = 0;
    for _ in 0..PASSES_MAX {
        // What is on a drive that isn't back yet is not looked at.
        quiet::settle(world, bucket_count);
        damaged = 0;
        let served = buckets(world);
        // One that is on its way to another leader isn't among them.
        let mut missed = served.len() != bucket_count;
        for (node, bucket) in served {
            let id = bucket.id();
            let scrub = async move { bucket.scrub().await };
            match world.block_on_node(node, CHECK_MAX, scrub) {
                Ok(Ok(found)) => {
                    damaged += found.damaged;
                    missed |= found.unreachable_shards > 0;
                }
                // While nodes come back, buckets still go to other leaders. The next pass meets those.
                Ok(Err(BucketError::Stopped | BucketError::Deposed(_))) => missed = true,
                Ok(Err(error)) => return Err(format!("{id} can't be scrubbed: {error}")),
                Err(_) => return Err(format!("scrubbing {id} does not end")),
            }
        }
        if damaged == 0 && !missed {
            return Ok(());
        }
        world.trace.note(&format!("scrub: {damaged} stripes are damaged"));
        world.run_for(REPAIR_WAIT);
    }
    // Shards that were never written are missed each time.
    if damaged == 0 { Ok(()) } else { Err("stripes are still damaged after all passes".into()) }
}

/// Checks every bucket that is served, each of which must be served by one node.
pub fn check(world: &mut World, bucket_count: usize) -> Result<(), String> {
    let mut served = 0;
    for _ in 0..PASSES_MAX {
        quiet::settle(world, bucket_count);
        match look(world, bucket_count) {
            // While nodes come back, buckets still go to other leaders.
            Look::Moved { served: now } => served = now,
            Look::All(problems) if problems.is_empty() => return Ok(()),
            Look::All(problems) => return Err(problems.join("; ")),
        }
    }
    Err(format!("buckets go from leader to leader all the time, or are not led: {served} of {bucket_count} are served"))
}

enum Look {
    /// All were looked at; what is wrong.
    All(Vec<String>),
    /// Nothing is wrong so far, but a bucket was on its way to another leader.
    Moved { served: usize },
}

fn look(world: &mut World, bucket_count: usize) -> Look {
    let mut served: BTreeMap<BucketId, usize> = BTreeMap::new();
    let mut moved = false;
    let mut problems = Vec::new();
    for (node, bucket) in buckets(world) {
        let id = bucket.id();
        if let Some(other) = served.insert(id, node) {
            problems.push(format!("{id} is served by nodes {other} and {node}"));
        }
        let looking = async move {
            let first = bucket.check().await?;
            // A session with a process that has died meanwhile ends at its next call, and that call fails. Who reads
            // gets the data from other shards; the second look must find all of them.
            if first.unreachable_shards > 0 { bucket.check().await } else { Ok(first) }
        };
        match world.block_on_node(node, CHECK_MAX, looking) {
            Ok(Ok(checked)) => {
                problems.extend(checked.problems.into_iter().map(|problem| format!("{id}: {problem}")));
                if checked.unreachable_shards > 0 {
                    problems.push(format!("{id}: {} shards can't be reached", checked.unreachable_shards));
                }
            }
            // Its background work goes on all the time: nothing was found wrong.
            Ok(Err(BucketError::NotReady(_))) => {}
            Ok(Err(BucketError::Stopped | BucketError::Deposed(_))) => moved = true,
            Ok(Err(error)) => problems.push(format!("{id} can't be checked: {error}")),
            Err(_) => problems.push(format!("checking {id} does not end")),
        }
    }
    match moved || served.len() != bucket_count {
        true if problems.is_empty() => Look::Moved { served: served.len() },
        _ => Look::All(problems),
    }
}
