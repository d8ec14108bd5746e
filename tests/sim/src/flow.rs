//! Rebuilds and growth of clusters that are too large to simulate whole: which bytes move from drive to drive, and how long
//! they queue there.
//!
//! Real are the maps (`weft_placement` forms them, gives the dead node up, moves shards) and what decides how much a
//! rebuild does at once and from where (`weft_bucket::rebuild_pace`). A bucket's leader is a loop as in `weft_bucket::rebuild`: a few
//! chunks of a zone set are read, made and written, then the next ones; a record ends the set. Drives and ports are queues: first
//! come, first served, each operation takes its bytes over the rate. There are no processors, no journals, no messages but
//! those that carry chunks, and all buckets hold equally much.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use weft_bucket::rebuild_pace::{CHUNK_ROWS_MAX, Sources, Stride};
use weft_placement::{FormRequest, NewDrive, NewNode};
use weft_wire::hash::Secret;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::{Map, Protection, State};
use weft_wire::{BucketId, DriveId, Incarnation, NodeId, Uuid};

const CHUNK_BYTES: u64 = CHUNK_ROWS_MAX as u64 * BLOCK_BYTES as u64;
/// Of a message, one way.
const LATENCY: Duration = Duration::from_micros(100);
/// Opening zones before a set, and its record afterwards: two round trips with a write each.
const SET_COSTS: Duration = Duration::from_micros(600);
/// Large enough that the zones of no drive limit the number of buckets.
const ZONE_BYTES: u64 = 256 << 20;
const ZONES: u32 = 16_384;

/// What all nodes are like. Each has a core and a drive.
#[derive(Clone, Copy, Debug)]
pub struct FlowOptions {
    pub protection: Protection,
    /// Data and parity of each node.
    pub node_bytes: u64,
    /// `None`: by placement's own rule.
    pub bucket_bits: Option<u8>,
    /// Of a zone set, what each drive holds.
    pub set_bytes: u64,
    /// Of each drive, for reading and writing together.
    pub drive_rate: u64,
    /// Of each node's port, in each direction.
    pub port_rate: u64,
    pub chunks_max: usize,
}

impl FlowOptions {
    /// Servers with a drive of 2 GiB/s and a port of 100 Gbit/s, holding enough that a rebuild takes seconds.
    pub fn new(protection: Protection) -> Self {
        Self {
            protection,
            node_bytes: 32 << 30,
            bucket_bits: None,
            set_bytes: ZONE_BYTES,
            drive_rate: 2 << 30,
            port_rate: 12_500_000_000,
            chunks_max: weft_bucket::Tunables::default().rebuild_chunks_max,
        }
    }
}

/// What a cluster did.
#[derive(Clone, Copy, Debug)]
pub struct Flowed {
    pub buckets: usize,
    /// Written to other drives.
    pub bytes: u64,
    pub moved: u64,
    pub busiest: u64,
    pub took: Duration,
    /// If every drive that took part had moved as much as any other, all the time.
    pub ideal: Duration,
    /// Maps that it took.
    pub maps: u64,
}

fn address(node: usize, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, (node >> 8) as u8, node as u8, 1)), port)
}

fn server(number: usize) -> NewNode {
    NewNode {
        name: format!("node{number}"),
        domain: None,
        cores: vec![address(number, 7500)],
        control: address(number, 7501),
        drives: vec![NewDrive {
            uuid: Uuid(number as u128 + 1),
            core: 0,
            capacity_bytes: ZONE_BYTES * u64::from(ZONES + 1),
            zone_bytes: ZONE_BYTES,
            zones: ZONES,
        }],
    }
}

/// The first map of a cluster of so many nodes.
pub fn formed(nodes: usize, options: &FlowOptions) -> Result<Map, String> {
    let request = FormRequest {
        cluster: Uuid(nodes as u128),
        name: "flow".into(),
        secret: Secret([0; 16]),
        protection: options.protection,
        nodes: (0..nodes).map(server).collect(),
        bucket_bits: options.bucket_bits,
    };
    weft_placement::form(&request).map_err(|refusal| refusal.to_string())
}

/// The first node dies for good.
pub fn rebuild(nodes: usize, options: &FlowOptions) -> Result<Flowed, String> {
    let before = formed(nodes, options)?;
    let dead = *before.nodes.keys().next().ok_or("no nodes")?;
    let delta =
        weft_placement::node_states(&before, &BTreeMap::from([(dead, State::Failed)])).ok_or("it changes nothing")?;
    let mut after = before.clone();
    after.apply(&delta).map_err(|error| error.to_string())?;
    let shard_bytes = shard_bytes(&before, options);
    let mut flow = Flow::new(&after, options);
    let mut reads = weft_placement::rebuild_reads(&after);
    for (index, (old, new)) in before.buckets.iter().zip(&after.buckets).enumerate() {
        let there = |drive: &&DriveId| before.drives.get(drive).is_some_and(|drive| drive.node != dead);
        let sources: Vec<DriveId> = old.members.iter().filter(there).copied().collect();
        let target = new.members.iter().find(|drive| !old.members.contains(drive)).copied();
        if sources.len() < old.members.len() {
            let target = target.ok_or("a shard finds no place")?;
            let work =
                flow.begin(index, new.leader.node, sources, usize::from(options.protection.data), target, shard_bytes);
            work.chosen.follow(reads.remove(&BucketId(index as u32)).unwrap_or_default());
        }
    }
    flow.run(|_, _| {});
    Ok(flow.flowed(before.buckets.len(), nodes - 1, 1))
}

/// What each bucket has on each of its drives.
fn shard_bytes(map: &Map, options: &FlowOptions) -> u64 {
    let shards = (map.buckets.len() * map.protection.shards()) as u64;
    options.node_bytes * map.nodes.len() as u64 / shards
}

/// How evenly a map spreads shards: over drives, and over pairs of nodes.
#[derive(Clone, Copy, Debug)]
pub struct Balance {
    /// Shards of the fullest drive, in terms of the mean.
    pub fill: f64,
    /// Buckets that two nodes share: least, mean, most.
    pub pairs: (u64, f64, u64),
}

impl Balance {
    pub fn of(map: &Map) -> Self {
        let mut held: BTreeMap<DriveId, u64> = map.drives.keys().map(|id| (*id, 0)).collect();
        let position: BTreeMap<NodeId, usize> = map.nodes.keys().enumerate().map(|(at, id)| (*id, at)).collect();
        let nodes = position.len();
        let mut pairs = vec![0; nodes * nodes];
        for bucket in &map.buckets {
            let node = |drive: &DriveId| position.get(&map.drives.get(drive)?.node).copied();
            let members: Vec<usize> = bucket.members.iter().filter_map(node).collect();
            for drive in &bucket.members {
                *held.entry(*drive).or_default() += 1;
            }
            for one in &members {
                members.iter().for_each(|other| pairs[one * nodes + other] += 1);
            }
        }
        let mean = held.values().sum::<u64>() as f64 / held.len().max(1) as f64;
        let shared = || (0..nodes).flat_map(|one| (one + 1..nodes).map(move |other| (one, other)));
        let shared = || shared().map(|(one, other)| pairs[one * nodes + other]);
        let count = shared().count().max(1) as f64;
        Self {
            fill: held.values().max().copied().unwrap_or(0) as f64 / mean,
            pairs: (shared().min().unwrap_or(0), shared().sum::<u64>() as f64 / count, shared().max().unwrap_or(0)),
        }
    }
}

/// What growing came to.
#[derive(Clone, Copy, Debug)]
pub struct Grown {
    pub flowed: Flowed,
    pub before: Balance,
    pub after: Balance,
    /// What was moved, of all there is.
    pub share: f64,
}

/// A cluster of so many nodes becomes one of so many more, all at once.
pub fn grow(from: usize, to: usize, options: &FlowOptions) -> Result<Grown, String> {
    let first = formed(from, options)?;
    let mut map = first.clone();
    for number in from..to {
        let delta = weft_placement::add_node(&map, &server(number), false).map_err(|refusal| refusal.to_string())?;
        let id = map.next_node;
        map.apply(&delta.ok_or("a node is known already")?).map_err(|error| error.to_string())?;
        if let Some(node) = map.nodes.get_mut(&id) {
            (node.state, node.incarnation) = (State::Up, Incarnation(node.incarnation.0 + 1));
        }
    }
    let shard_bytes = shard_bytes(&first, options);
    let mut flow = Flow::new(&map, options);
    let mut maps = 0;
    let mut problem = None;
    let mut move_some = |flow: &mut Flow<'_>, done: Option<usize>| {
        let mut change = |map: &mut Map, delta| match map.apply(&delta) {
            Ok(()) => maps += 1,
            Err(error) => problem = Some(error.to_string()),
        };
        if let Some(bucket) = done {
            let id = BucketId(bucket as u32);
            let former: Vec<DriveId> = map
                .bucket(id)
                .map(|bucket| bucket.former.iter().map(|former| former.drive).collect())
                .unwrap_or_default();
            if let Some(delta) = weft_placement::moved(&map, id, &former) {
                change(&mut map, delta);
            }
        }
        let Some(delta) = weft_placement::next_moves(&map) else { return };
        let before = map.clone();
        change(&mut map, delta);
        for (index, (old, new)) in before.buckets.iter().zip(&map.buckets).enumerate() {
            let target = new.members.iter().find(|drive| !old.members.contains(drive));
            let source = old.members.iter().find(|drive| !new.members.contains(drive));
            if let (Some(source), Some(target)) = (source, target) {
                flow.begin(index, new.leader.node, vec![*source], 1, *target, shard_bytes);
            }
        }
    };
    move_some(&mut flow, None);
    flow.run(|flow, bucket| move_some(flow, Some(bucket)));
    if let Some(problem) = problem {
        return Err(problem);
    }
    let all = options.node_bytes * from as u64;
    let flowed = flow.flowed(first.buckets.len(), to - from, maps);
    let share = flowed.bytes as f64 / all as f64;
    Ok(Grown { flowed, before: Balance::of(&first), after: Balance::of(&map), share })
}

/// What takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Queue {
    Drive(usize),
    Out(usize),
    In(usize),
}

/// A chunk on its way through queues, for the work of a bucket.
struct Piece {
    work: usize,
    /// Read from this drive since then; `None`: it is written.
    read: Option<(DriveId, u64)>,
    chunk: usize,
    bytes: u64,
    left: VecDeque<Queue>,
}

/// The rebuild or move of one bucket's shard.
struct Work {
    bucket: usize,
    leader: usize,
    sources: Vec<DriveId>,
    needed: usize,
    target: DriveId,
    bytes_left: u64,
    set_left: u64,
    chosen: Sources,
    stride: Stride,
    step_began: u64,
    /// Reads that are awaited for each chunk of the step.
    reading: Vec<usize>,
    chunks: Vec<u64>,
    unwritten: usize,
    turn: usize,
}

enum Event {
    Step(usize),
    Piece(usize),
}

struct Flow<'a> {
    options: &'a FlowOptions,
    /// Where each drive is.
    places: BTreeMap<DriveId, usize>,
    position: BTreeMap<NodeId, usize>,
    works: Vec<Work>,
    pieces: Vec<Piece>,
    free_pieces: Vec<usize>,
    events: BinaryHeap<Reverse<(u64, u64, usize, bool)>>,
    serial: u64,
    now: u64,
    busy: BTreeMap<Queue, u64>,
    moved: Vec<u64>,
    written: u64,
}

impl<'a> Flow<'a> {
    fn new(map: &Map, options: &'a FlowOptions) -> Self {
        let position: BTreeMap<NodeId, usize> = map.nodes.keys().enumerate().map(|(at, id)| (*id, at)).collect();
        let places = map.drives.values().filter_map(|drive| Some((drive.id, *position.get(&drive.node)?))).collect();
        Self {
            options,
            places,
            moved: vec![0; position.len()],
            position,
            works: Vec::new(),
            pieces: Vec::new(),
            free_pieces: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            now: 0,
            busy: BTreeMap::new(),
            written: 0,
        }
    }

    fn place(&self, drive: DriveId) -> usize {
        self.places.get(&drive).copied().unwrap_or(0)
    }

    fn schedule(&mut self, at: u64, event: Event) {
        let (index, is_step) = match event {
            Event::Step(work) => (work, true),
            Event::Piece(piece) => (piece, false),
        };
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, index, is_step)));
    }

    fn begin(
        &mut self,
        bucket: usize,
        leader: NodeId,
        sources: Vec<DriveId>,
        needed: usize,
        target: DriveId,
        bytes: u64,
    ) -> &mut Work {
        let leader = self.position.get(&leader).copied().unwrap_or(0);
        let work = self.works.len();
        self.works.push(Work {
            bucket,
            leader,
            sources,
            needed,
            target,
            bytes_left: bytes,
            set_left: 0,
            chosen: Sources::default(),
            stride: Stride::default(),
            step_began: 0,
            reading: Vec::new(),
            chunks: Vec::new(),
            unwritten: 0,
            turn: bucket,
        });
        self.schedule(self.now, Event::Step(work));
        &mut self.works[work]
    }

    /// Until nothing is left to do. `done` hears of each bucket that is ready.
    fn run(&mut self, mut done: impl FnMut(&mut Self, usize)) {
        while let Some(Reverse((at, _, index, is_step))) = self.events.pop() {
            self.now = at;
            match is_step {
                true if !self.step(index) => done(self, self.works[index].bucket),
                true => {}
                false => self.go_on(index),
            }
        }
    }

    /// The next chunks of a bucket. False: there are none.
    fn step(&mut self, index: usize) -> bool {
        let work = &mut self.works[index];
        if work.bytes_left == 0 {
            return false;
        }
        if work.set_left == 0 {
            work.set_left = work.bytes_left.min(self.options.set_bytes);
            // Its zones are opened, and those of the one before recorded.
            let at = self.now + SET_COSTS.as_nanos() as u64;
            self.schedule(at, Event::Step(index));
            return true;
        }
        work.step_began = self.now;
        work.chunks.clear();
        while work.chunks.len() < work.stride.chunks() && work.set_left > 0 {
            let bytes = work.set_left.min(CHUNK_BYTES);
            work.set_left -= bytes;
            work.bytes_left -= bytes;
            work.chunks.push(bytes);
        }
        work.unwritten = work.chunks.len();
        work.reading = vec![work.needed; work.chunks.len()];
        for chunk in 0..self.works[index].chunks.len() {
            let work = &mut self.works[index];
            let candidates = work.sources.iter().copied().enumerate().collect();
            work.turn += 1;
            let chosen = work.chosen.choose(candidates, work.needed, work.turn);
            let drives: Vec<DriveId> = chosen.into_iter().map(|source| work.sources[source]).collect();
            let (leader, bytes) = (work.leader, work.chunks[chunk]);
            for drive in drives {
                self.works[index].chosen.asks(drive);
                let place = self.place(drive);
                let mut left = VecDeque::from([Queue::Drive(place)]);
                if place != leader {
                    left.extend([Queue::Out(place), Queue::In(leader)]);
                }
                self.send(Piece { work: index, read: Some((drive, self.now)), chunk, bytes, left });
            }
        }
        true
    }

    fn send(&mut self, piece: Piece) {
        let at = self.now + LATENCY.as_nanos() as u64;
        let index = match self.free_pieces.pop() {
            Some(index) => {
                self.pieces[index] = piece;
                index
            }
            None => {
                self.pieces.push(piece);
                self.pieces.len() - 1
            }
        };
        self.schedule(at, Event::Piece(index));
    }

    /// A piece enters the next queue, or is where it should be.
    fn go_on(&mut self, index: usize) {
        let (bytes, next) = {
            let piece = &mut self.pieces[index];
            (piece.bytes, piece.left.pop_front())
        };
        let Some(queue) = next else { return self.arrived(index) };
        let rate = match queue {
            Queue::Drive(place) => {
                self.moved[place] += bytes;
                self.options.drive_rate
            }
            Queue::Out(_) | Queue::In(_) => self.options.port_rate,
        };
        let busy = self.busy.entry(queue).or_default();
        *busy = self.now.max(*busy)
            + u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
        let at = *busy;
        let last = self.pieces[index].left.is_empty();
        let at = if last { at + LATENCY.as_nanos() as u64 } else { at };
        self.schedule(at, Event::Piece(index));
    }

    fn arrived(&mut self, index: usize) {
        let (work_index, read, chunk, bytes) = {
            let piece = &self.pieces[index];
            (piece.work, piece.read, piece.chunk, piece.bytes)
        };
        self.free_pieces.push(index);
        let now = self.now;
        let work = &mut self.works[work_index];
        if let Some((drive, since)) = read {
            work.chosen.answered(drive, Duration::from_nanos(now - since));
            work.reading[chunk] -= 1;
            if work.reading[chunk] == 0 {
                let (leader, target) = (work.leader, work.target);
                let place = self.place(target);
                let mut left = VecDeque::new();
                if place != leader {
                    left.extend([Queue::Out(leader), Queue::In(place)]);
                }
                left.push_back(Queue::Drive(place));
                self.send(Piece { work: work_index, read: None, chunk, bytes, left });
            }
            return;
        }
        self.written += bytes;
        work.unwritten -= 1;
        if work.unwritten == 0 {
            let took = Duration::from_nanos(now - work.step_began);
            work.stride = work.stride.after(took, self.options.chunks_max);
            let pause = work.stride.pause(took).as_nanos() as u64;
            self.schedule(now + pause, Event::Step(work_index));
        }
    }

    /// `movers`: drives that could not have done with less work.
    fn flowed(&self, buckets: usize, movers: usize, maps: u64) -> Flowed {
        let moved: u64 = self.moved.iter().sum();
        // Growing writes to the new drives alone.
        let least = if self.works.iter().all(|work| work.needed == 1) { self.written } else { moved };
        let rate = self.options.drive_rate as f64 * movers as f64;
        Flowed {
            buckets,
            bytes: self.written,
            moved,
            busiest: self.moved.iter().max().copied().unwrap_or(0),
            took: Duration::from_nanos(self.now),
            ideal: Duration::from_secs_f64(least as f64 / rate),
            maps,
        }
    }
}
