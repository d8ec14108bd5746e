//! How a rebuild scales: clusters of any size in calm, every drive as fast as all others, one node dies for good.
//!
//! What is written is zeros, which memory drives don't store: a cluster may hold more than the machine that simulates it.

use crate::calm::{self, create_file};
use crate::node::{Crash, NodeTunables, SimNode};
use crate::orders::newest_map;
use crate::stripes::{buckets, zones_of};
use crate::world::World;
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, Errno};
use weft_drive::format::geometry::ZONE_BYTES_MIN;
use weft_drive::mem::{MemMedia, RegionCounters};
use weft_placement::ZONES_PER_BUCKET_MIN;
use weft_reactor::join_all;
use weft_wire::fs::SetAttr;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::{Map, Protection, State};

const FS: &str = "data";
const PIECE_BYTES: usize = 1 << 20;
const FILE_BYTES: u64 = 64 << 20;
static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];
/// Writes at a time.
const WRITES: u64 = 16;
/// In virtual time: filling, noticing, and what is written behind.
const FILL_MAX: Duration = Duration::from_secs(600);
const QUIET: Duration = Duration::from_secs(10);
const FAILED_AFTER: Duration = Duration::from_secs(3);
const REBUILD_MAX: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const NODE_BYTES: u64 = 128 << 20;
const DRIVE_BYTES_MIN: u64 = 512 << 20;
/// A drive of today, slowed down as much as it holds less.
const RATE: u64 = 64 << 20;
/// Buckets that two nodes have in common, on average.
const SHARED_MIN: usize = 4;
const BUCKET_BITS_MIN: u8 = 6;
const BUCKET_BITS_MAX: u8 = 16;

#[derive(Clone, Copy, Debug)]
pub struct ScaleOptions {
    pub seed: u64,
    pub nodes: usize,
    pub protection: Protection,
    /// Data and parity that each node holds.
    pub node_bytes: u64,
    pub drive_bytes: u64,
    pub bucket_bits: u8,
    /// Of each drive, for reading and writing together.
    pub bytes_per_second: u64,
}

/// One rebuild.
#[derive(Clone, Copy, Debug)]
pub struct Rebuild {
    pub nodes: usize,
    pub buckets: usize,
    /// Written anew on other drives. Less what leaders made that others replaced meanwhile: rebuilds here end before that.
    pub bytes: u64,
    /// From the map that gave the node up to the last byte.
    pub took: Duration,
    /// What the survivors' drives moved meanwhile, and the most that one of them did.
    pub moved: u64,
    pub busiest: u64,
    /// Of that what was not in zones: journals, zone tables, maps.
    pub beside: u64,
    /// From the first node that had the map to the last.
    pub map_took: Duration,
    pub bytes_per_second: u64,
}

impl ScaleOptions {
    /// Two nodes share so many buckets that nobody has much more to do than another, and drives have room for them.
    pub fn new(seed: u64, nodes: usize, protection: Protection) -> Self {
        let shards = protection.shards();
        let buckets = (SHARED_MIN * nodes * nodes).div_ceil(shards * (shards - 1)).next_power_of_two();
        let bucket_bits = (buckets.trailing_zeros() as u8).clamp(BUCKET_BITS_MIN, BUCKET_BITS_MAX);
        let each = ((shards << bucket_bits).div_ceil(nodes) + 1) as u64;
        let drive_bytes = (each * u64::from(ZONES_PER_BUCKET_MIN) * ZONE_BYTES_MIN * 5 / 4).max(DRIVE_BYTES_MIN);
        Self { seed, nodes, protection, node_bytes: NODE_BYTES, drive_bytes, bucket_bits, bytes_per_second: RATE }
    }
}

impl Rebuild {
    /// All survivors at work all the time.
    pub fn ideal(&self) -> Duration {
        let rate = self.bytes_per_second as f64 * (self.nodes - 1) as f64;
        Duration::from_secs_f64(self.moved as f64 / rate)
    }

    /// The busiest drive's work, in terms of the mean.
    pub fn busiest_to_mean(&self) -> f64 {
        self.busiest as f64 * (self.nodes - 1) as f64 / self.moved.max(1) as f64
    }
}

/// Fills a cluster, kills its first node, and waits until everything is protected as before.
pub fn rebuild(options: &ScaleOptions) -> Result<Rebuild, String> {
    let mut world = World::new(options.seed);
    let mut tunables = NodeTunables::default();
    tunables.manager.failed_after = FAILED_AFTER;
    let drive = calm::drive(options.drive_bytes);
    for _ in 0..options.nodes {
        world.add_node(1, drive, tunables);
    }
    world.form(options.protection, options.bucket_bits)?;
    world.create_filesystem(FS)?;
    let (process, client) = world.connect(FS)?;
    let shards = u64::try_from(options.protection.shards()).unwrap_or(u64::MAX);
    let data = options.node_bytes * options.nodes as u64 * u64::from(options.protection.data) / shards;
    let filled = world.block_on_client(process, FILL_MAX, fill(client, data)).map_err(|_| "filling takes too long")?;
    filled.map_err(|errno| format!("filling: {errno}"))?;
    world.run_for(QUIET);
    world.kill_client(process);

    for media in world.nodes.iter().flat_map(|machine| &machine.media) {
        media.set_bytes_per_second(options.bytes_per_second);
        media.count_regions(&[0, zones_of(media).ok_or("a drive without zones")?.start]);
    }
    let rebuilt_before = rebuilt_bytes(&world);
    world.crash_node(0, Crash::Kill);
    let given_up = |map: &Map| map.nodes.values().any(|node| node.state == State::Failed);
    let hears = |world: &World| newest_map(world).is_some_and(|map| given_up(&map));
    world.run_while(REBUILD_MAX, hears).map_err(|_| "the dead node is not given up")?;
    let begun = world.now();
    let knows = |node: &SimNode| node.node().and_then(|node| node.map_watch()?.get()).is_some_and(|map| given_up(&map));
    let all = |world: &World| world.nodes.iter().filter(|node| node.is_up()).all(knows);
    world.run_while(REBUILD_MAX, all).map_err(|_| "a node does not hear of the map")?;
    let map_took = world.now().since(begun);
    let mut ended = begun;
    while !is_whole(&world) {
        if world.now().since(begun) > REBUILD_MAX {
            return Err(format!("{} MiB are rebuilt, and no more: {}", rebuilt_bytes(&world) >> 20, left(&world)));
        }
        world.run_for(LOOK_EVERY);
        ended = world.now();
    }
    let bytes = |region: &RegionCounters| (region.read + region.written) * BLOCK_BYTES as u64;
    let drives = world.nodes.iter().skip(1).flat_map(|node| &node.media).map(MemMedia::region_counters);
    let work: Vec<Vec<u64>> = drives.map(|regions| regions.iter().map(bytes).collect()).collect();
    let all: Vec<u64> = work.iter().map(|regions| regions.iter().sum()).collect();
    Ok(Rebuild {
        nodes: options.nodes,
        buckets: newest_map(&world).map_or(0, |map| map.buckets.len()),
        bytes: rebuilt_bytes(&world).saturating_sub(rebuilt_before),
        took: ended.since(begun),
        moved: all.iter().sum(),
        busiest: all.iter().max().copied().unwrap_or(0),
        beside: work.iter().filter_map(|regions| regions.first()).sum(),
        map_took,
        bytes_per_second: options.bytes_per_second,
    })
}

async fn fill(client: Rc<Client>, bytes: u64) -> Result<(), Errno> {
    let mut left = bytes;
    let mut number = 0_u32;
    while left > 0 {
        let inode = create_file(&client, &format!("file{number}")).await?;
        let end = left.min(FILE_BYTES);
        // Writes that each make the file longer wait for those before them, or are made again.
        client.setattr(inode, SetAttr { size_bytes: Some(end), ..SetAttr::default() }).await?;
        let mut at = 0;
        while at < end {
            let next = (at + WRITES * PIECE_BYTES as u64).min(end);
            let writes = (at..next).step_by(PIECE_BYTES).map(|offset| {
                let len = (next - offset).min(PIECE_BYTES as u64) as usize;
                client.write(inode, offset, Bytes::from_static(&ZEROS).slice(..len), false)
            });
            for written in join_all(writes).await {
                written?;
            }
            at = next;
        }
        client.release(inode);
        left -= end;
        number += 1;
    }
    Ok(())
}

pub(crate) fn rebuilt_bytes(world: &World) -> u64 {
    buckets(world).iter().map(|(_, bucket)| bucket.stats().rebuilt_bytes).sum()
}

/// Every bucket is led, no member is on a drive that was given up, and no stripe lacks a shard.
pub(crate) fn is_whole(world: &World) -> bool {
    let Some(map) = newest_map(world) else { return false };
    let up = |drive| {
        map.drives.get(drive).is_some_and(|drive| map.nodes.get(&drive.node).is_some_and(|n| n.state == State::Up))
    };
    let placed = map.buckets.iter().all(|bucket| bucket.members.iter().all(up));
    let led = buckets(world);
    let whole = |stripes: &[u64]| stripes.iter().skip(1).all(|count| *count == 0);
    placed && led.len() == map.buckets.len() && led.iter().all(|(_, bucket)| whole(&bucket.stats().stripes_by_missing))
}

/// What is not as it should be.
pub(crate) fn left(world: &World) -> String {
    let Some(map) = newest_map(world) else { return "no map".into() };
    let states: Vec<_> =
        map.nodes.values().filter(|node| node.state != State::Up).map(|node| (node.id, node.state)).collect();
    let led = buckets(world);
    let missing =
        led.iter().map(|(_, bucket)| bucket.stats().stripes_by_missing.iter().skip(1).sum::<u64>()).sum::<u64>();
    let trouble = led.iter().find_map(|(_, bucket)| bucket.stats().trouble);
    format!(
        "{states:?}, {} of {} buckets are led, {missing} stripes lack shards, {trouble:?}",
        led.len(),
        map.buckets.len()
    )
}
