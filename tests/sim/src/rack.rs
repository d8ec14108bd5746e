//! A rack dies: all nodes of one failure domain lose power at the same moment and never come back, while clients work.

use crate::calm::{self, create_file};
use crate::node::{Crash, NodeTunables};
use crate::orders::newest_map;
use crate::scale::{is_whole, left, rebuilt_bytes};
use crate::stripes;
use crate::world::World;
use bytes::Bytes;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, Errno};
use weft_drive::mem::CrashKeeps;
use weft_reactor::{Handle, Instant, Random};
use weft_wire::InodeId;
use weft_wire::map::{Protection, State};

const FS: &str = "data";
const PIECE_BYTES: u64 = 64 << 10;
const PIECES: u64 = 16;
/// Between two calls of a worker.
const PAUSE: Duration = Duration::from_millis(20);
/// Every so many calls a file is made and removed.
const NAMES_EVERY: u64 = 8;
const STEP_MAX: Duration = Duration::from_secs(120);
/// Calm work before the rack dies.
const BEFORE: Duration = Duration::from_secs(2);
const FAILED_AFTER: Duration = Duration::from_secs(3);
const WHOLE_MAX: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub struct RackOptions {
    pub seed: u64,
    pub racks: usize,
    pub nodes_per_rack: usize,
    pub protection: Protection,
    pub bucket_bits: u8,
    pub drive_bytes: u64,
    /// Files that are written before and read afterwards.
    pub files: u64,
    pub workers: usize,
}

impl RackOptions {
    /// 50 nodes in 10 racks.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            racks: 10,
            nodes_per_rack: 5,
            protection: Protection { data: 6, parity: 2 },
            bucket_bits: 6,
            drive_bytes: 256 << 20,
            files: 16,
            workers: 4,
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub struct RackLoss {
    pub operations: u64,
    /// Of the calls, as their callers saw it.
    pub longest: Duration,
    /// From the loss of power until no stripe lacked a shard.
    pub whole_after: Duration,
    pub rebuilt_bytes: u64,
    /// Domains that had a shard of each bucket when all was whole again, of the bucket that had fewest.
    pub domains_min: usize,
}

#[derive(Default)]
struct Watch {
    operations: u64,
    longest: Duration,
    wrong: Option<String>,
    stop: bool,
    at_work: usize,
}

impl Watch {
    fn count(&mut self, took: Duration) {
        self.operations += 1;
        self.longest = self.longest.max(took);
    }
}

/// Fills a cluster, lets clients work, takes the first rack's power, and waits until everything is protected as before.
pub fn lose_rack(options: &RackOptions) -> Result<RackLoss, String> {
    let mut world = World::new(options.seed);
    let mut tunables = NodeTunables::default();
    tunables.manager.failed_after = FAILED_AFTER;
    let drive = calm::drive(options.drive_bytes);
    for rack in 0..options.racks {
        for _ in 0..options.nodes_per_rack {
            world.add_node_in(Some(format!("rack{rack}")), 1, drive, tunables);
        }
    }
    world.form(options.protection, options.bucket_bits)?;
    world.create_filesystem(FS)?;
    let (filler, client) = world.connect(FS)?;
    let written = fill(Rc::clone(&client), options.files);
    let files = world.block_on_client(filler, STEP_MAX, written).map_err(|_| "filling takes too long")?;
    let files = files.map_err(|errno| format!("filling: {errno}"))?;

    let watch: Rc<RefCell<Watch>> = Rc::default();
    for number in 0..options.workers {
        let (process, client) = world.connect(FS)?;
        let seed = world.random.next_u64();
        let Some(process) = world.clients.get_mut(process) else { continue };
        watch.borrow_mut().at_work += 1;
        let working = work(client, process.handle(), number, seed, Rc::clone(&watch));
        process.handle().spawn("worker", working).detach();
        process.poke();
    }
    world.run_for(BEFORE);
    let rebuilt_before = rebuilt_bytes(&world);
    for node in 0..options.nodes_per_rack {
        world.crash_node(node, Crash::PowerLoss(CrashKeeps::Nothing));
        world.abandon_node(node);
    }
    let begun = world.now();
    let given_up = |world: &World| {
        let failed = |map: &weft_wire::map::Map| map.nodes.values().filter(|node| node.state == State::Failed).count();
        newest_map(world).is_some_and(|map| failed(&map) == options.nodes_per_rack)
    };
    world.run_while(WHOLE_MAX, given_up).map_err(|_| format!("the rack is not given up: {}", left(&world)))?;
    while !is_whole(&world) {
        if world.now().since(begun) > WHOLE_MAX {
            return Err(format!("it is not whole again: {}", left(&world)));
        }
        world.run_for(LOOK_EVERY);
    }
    let whole_after = world.now().since(begun);
    world.run_for(BEFORE);
    watch.borrow_mut().stop = true;
    world.run_while(STEP_MAX, |_| watch.borrow().at_work == 0).map_err(|_| "calls of workers don't end".to_string())?;
    if let Some(wrong) = watch.borrow_mut().wrong.take() {
        return Err(wrong);
    }
    let reading = async move {
        for (number, inode) in (0..).zip(files) {
            for piece in 0..PIECES {
                expect(&client, inode, piece, &pattern(number, piece)).await?;
            }
        }
        Ok::<(), String>(())
    };
    world.block_on_client(filler, STEP_MAX, reading).map_err(|_| "reading back takes too long")??;
    let map = newest_map(&world).ok_or("no map")?;
    let domains = |bucket: &weft_wire::map::Bucket| {
        let domain = |drive: &weft_wire::DriveId| Some(map.nodes.get(&map.drives.get(drive)?.node)?.domain);
        bucket.members.iter().filter_map(domain).collect::<std::collections::BTreeSet<_>>().len()
    };
    let domains_min = map.buckets.iter().map(domains).min().unwrap_or(0);
    let rebuilt = rebuilt_bytes(&world).saturating_sub(rebuilt_before);
    stripes::check(&mut world, map.buckets.len())?;
    let watch = watch.borrow();
    Ok(RackLoss {
        operations: watch.operations,
        longest: watch.longest,
        whole_after,
        rebuilt_bytes: rebuilt,
        domains_min,
    })
}

fn pattern(file: u64, piece: u64) -> Bytes {
    let words = (0..PIECE_BYTES / 8).flat_map(|word| (file << 40 | piece << 20 | word | 1 << 63).to_le_bytes());
    words.collect::<Vec<u8>>().into()
}

async fn fill(client: Rc<Client>, files: u64) -> Result<Vec<InodeId>, Errno> {
    let mut inodes = Vec::new();
    for number in 0..files {
        let inode = create_file(&client, &format!("old{number}")).await?;
        for piece in 0..PIECES {
            client.write(inode, piece * PIECE_BYTES, pattern(number, piece), false).await?;
        }
        inodes.push(inode);
    }
    Ok(inodes)
}

async fn expect(client: &Client, inode: InodeId, piece: u64, expected: &[u8]) -> Result<(), String> {
    let found = client.read(inode, piece * PIECE_BYTES, PIECE_BYTES as u32).await;
    let found = found.map_err(|errno| format!("reading piece {piece} of {inode}: {errno}"))?.concat();
    if found == expected { Ok(()) } else { Err(format!("piece {piece} of {inode} holds something else")) }
}

/// Writes and reads pieces of a file of its own, makes and removes others, until it is told to stop or something is wrong.
async fn work(client: Rc<Client>, handle: Handle, number: usize, seed: u64, watch: Rc<RefCell<Watch>>) {
    let mut worker = Worker { client, handle, number, random: Random::new(seed), last: vec![None; PIECES as usize] };
    let made = create_file(&worker.client, &format!("worker{number}")).await;
    let mut wrong = made.as_ref().err().map(|errno| format!("worker {number} can't make its file: {errno}"));
    let mut count = 0;
    while let (None, Ok(inode)) = (&wrong, &made) {
        if watch.borrow().stop {
            break;
        }
        count += 1;
        let begun = worker.handle.now();
        wrong = worker.call(*inode, count).await.err();
        watch.borrow_mut().count(worker.since(begun));
        worker.handle.sleep(PAUSE).await;
    }
    let mut seen = watch.borrow_mut();
    seen.at_work -= 1;
    seen.wrong = seen.wrong.take().or(wrong);
}

struct Worker {
    client: Rc<Client>,
    handle: Handle,
    number: usize,
    random: Random,
    /// What it wrote last to each piece of its file.
    last: Vec<Option<Bytes>>,
}

impl Worker {
    fn since(&self, begun: Instant) -> Duration {
        self.handle.now().since(begun)
    }

    async fn call(&mut self, inode: InodeId, count: u64) -> Result<(), String> {
        let piece = self.random.below(PIECES);
        if count.is_multiple_of(NAMES_EVERY) {
            let name = format!("new{}.{count}", self.number);
            create_file(&self.client, &name).await.map_err(|errno| format!("making {name}: {errno}"))?;
            let removed = self.client.unlink(self.client.root(), name.as_bytes()).await;
            return removed.map_err(|errno| format!("removing {name}: {errno}"));
        }
        let last = self.last.get(piece as usize).cloned().flatten();
        if let (Some(expected), true) = (last, self.random.chance(0.5)) {
            return expect(&self.client, inode, piece, &expected).await;
        }
        let data = pattern(1 << 16 | self.number as u64, count);
        let written = self.client.write(inode, piece * PIECE_BYTES, data.clone(), false).await;
        written.map_err(|errno| format!("writing piece {piece} of {inode}: {errno}"))?;
        if let Some(last) = self.last.get_mut(piece as usize) {
            *last = Some(data);
        }
        Ok(())
    }
}
