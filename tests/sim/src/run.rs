//! One run: a cluster from formation to the last check, a function of its options and its seed.

use crate::faults::{FaultOptions, Faults};
use crate::history::History;
use crate::memory::{self, Budget};
use crate::node::{Crash, NodeTunables};
use crate::oracle::{self, Shape};
use crate::stripes;
use crate::workload::{Hand, Shared, WorkloadOptions, read_back, work};
use crate::world::World;
use std::fmt;
use std::time::Duration;
use weft_drive::mem::MemOptions;
use weft_reactor::{Instant, Random};
use weft_wire::map::Protection;

#[derive(Clone, Debug)]
pub struct RunOptions {
    pub seed: u64,
    pub nodes: usize,
    pub protection: Protection,
    /// Virtual time with faults.
    pub time: Duration,
    pub clients: usize,
    pub workers_per_client: usize,
    /// Print what happens.
    pub print: bool,
    /// What a checker has to see.
    pub planted: Option<Planted>,
}

/// A fault beyond what a cluster survives, or a demand beyond what it promises: shows that a checker sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// Drives that say that data is durable when it isn't, and a power loss.
    LyingDrives,
    /// A damaged drive that nobody scrubs.
    Damage,
    /// More nodes than may fail don't come back.
    NodesGone,
    /// No memory at all is allowed.
    NoMemory,
}

impl RunOptions {
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: 6,
            protection: Protection { data: 4, parity: 2 },
            time: Duration::from_secs(20),
            clients: 3,
            workers_per_client: 2,
            print: false,
            planted: None,
        }
    }
}

/// What a run was like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub trace: u64,
    pub turns: u64,
    pub operations: usize,
    pub faults: u64,
    pub virtual_time: Duration,
    pub undecided: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "trace {:016x}, {} operations, {} faults, {} turns, {:.1} s",
            self.trace,
            self.operations,
            self.faults,
            self.turns,
            self.virtual_time.as_secs_f64()
        )?;
        if self.undecided > 0 {
            write!(f, ", {} histories not decided", self.undecided)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The cluster could not even be formed in calm.
    Start(String),
    /// With everything healed, operations don't end.
    Stuck(String),
    /// Answers that can't be.
    Wrong(String),
    /// What is on the drives isn't right.
    Drives(String),
    Memory(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(text) => write!(f, "the cluster did not come up: {text}"),
            Self::Stuck(text) => write!(f, "stuck after everything healed: {text}"),
            Self::Wrong(text) => write!(f, "wrong answers: {text}"),
            Self::Drives(text) => write!(f, "wrong on the drives: {text}"),
            Self::Memory(text) => write!(f, "memory: {text}"),
        }
    }
}

const FS: &str = "data";
const DRIVE_BYTES: u64 = 256 << 20;
const BUCKET_BITS: u8 = 3;
/// Virtual time in which everything must be answered once all is well.
const HEALED_MAX: Duration = Duration::from_secs(120);
const NAMES: u16 = 8;
/// By a planted damage: enough to hit something.
const DAMAGED_BLOCKS: u64 = 20_000;
/// Operations around a violation that are shown.
const CONTEXT_OPS: usize = 20;

struct Drawn {
    workload: WorkloadOptions,
    faults: FaultOptions,
    tunables: NodeTunables,
    drive: MemOptions,
}

/// What differs from seed to seed.
fn draw(random: &mut Random) -> Drawn {
    let mut tunables = NodeTunables::default();
    if random.chance(0.7) {
        // Small, so that destaging, checkpoints, merges and cleaning happen all the time.
        let bucket = &mut tunables.lead.bucket;
        bucket.memtable_bytes_max = 16 << 10 << random.below(4);
        bucket.cache_bytes_max = 64 << 10;
        bucket.held_bytes_max = 256 << 10 << random.below(3);
        bucket.checkpoint_share = 32 + random.below(100);
        bucket.runs_max = 2 + random.below(4) as usize;
        bucket.planner_pause = Duration::from_millis(20 + random.below(1000));
        tunables.lead.journal.quota_bytes = 2 << 20 << random.below(3);
    }
    let cell_bytes = [512, 1000, 4096, 4096][random.below(4) as usize];
    let micros = |random: &mut Random, most: u64| Duration::from_micros(1 + random.below(most));
    Drawn {
        workload: WorkloadOptions { cell_bytes, names: NAMES, pause_max: Duration::from_millis(5 + random.below(60)) },
        faults: FaultOptions {
            network: random.chance(0.7),
            crashes: random.chance(0.7),
            power_loss_of_all: random.chance(0.4),
            corruption: random.chance(0.3),
            every: Duration::from_millis(200 + random.below(2000)),
        },
        tunables,
        drive: MemOptions {
            capacity_bytes: DRIVE_BYTES,
            read_latency: micros(random, 300),
            write_latency: micros(random, 100),
            flush_latency: micros(random, 1000),
        },
    }
}

pub fn run(options: &RunOptions) -> Result<Report, Failure> {
    let mut world = World::new(options.seed);
    if options.print {
        world.trace.print();
    }
    let mut random = Random::new(world.random.next_u64());
    let drawn = draw(&mut random);
    world.trace.note(&format!("{:?} {:?} {:?}", drawn.workload, drawn.faults, drawn.drive));
    for _ in 0..options.nodes {
        world.add_node(1, drawn.drive, drawn.tunables);
    }
    world.form(options.protection, BUCKET_BITS).map_err(Failure::Start)?;
    world.create_filesystem(FS).map_err(Failure::Start)?;
    let history = History::new(world.clock.clone());
    let mut hands: Vec<Hand> = Vec::new();
    for _ in 0..options.clients {
        let (index, client) = world.connect(FS).map_err(Failure::Start)?;
        let shared = match hands.first() {
            Some(hand) => std::rc::Rc::clone(&hand.shared),
            None => Shared::new(drawn.workload, history.clone(), client.root()),
        };
        hands.push(Hand { index, client, shared });
    }
    let Some(shared) = hands.first().map(|hand| std::rc::Rc::clone(&hand.shared)) else {
        return Err(Failure::Start("a run needs a client".into()));
    };
    world.trace.note("work begins");
    for hand in &hands {
        for _ in 0..options.workers_per_client {
            let seed = random.next_u64();
            if let Some(process) = world.clients.get_mut(hand.index) {
                let handle = process.handle();
                process.handle().spawn("work", work(hand.clone(), handle, seed)).detach();
                process.poke();
            }
        }
    }
    let mut faults = Faults::new(drawn.faults, random.next_u64(), &world, usize::from(options.protection.parity));
    let budget = match options.planted {
        Some(Planted::NoMemory) => Budget { held_bytes: 0, index_bytes: 0, journal_bytes: 0 },
        _ => Budget::of(&drawn.tunables.lead),
    };
    let end = world.now() + options.time;
    while world.now() < end {
        world.run_until(faults.next_at().min(end));
        memory::check(&world, &budget).map_err(Failure::Memory)?;
        faults.strike(&mut world);
    }
    if options.planted == Some(Planted::LyingDrives) {
        faults.lie(&mut world);
    }
    faults.heal(&mut world);
    if options.planted == Some(Planted::NodesGone) {
        for node in 0..=usize::from(options.protection.parity) {
            world.crash_node(node, Crash::Kill);
        }
    }
    shared.stopping.set(true);
    let finished = world.run_while(HEALED_MAX, |_| history.outstanding() == 0);
    if finished.is_err() {
        return Err(Failure::Stuck(describe_stuck(&mut world, &hands, &history)));
    }
    world.trace.note("work has ended");
    // A client that has seen nothing looks at everything.
    let (index, client) = world.connect(FS).map_err(Failure::Stuck)?;
    let reader = Hand { index, client, shared };
    let reading = {
        let reader = reader.clone();
        async move { read_back(&reader).await }
    };
    match world.block_on_client(index, HEALED_MAX, reading) {
        Ok(Ok(())) => {}
        Ok(Err(text)) => {
            // The oracle may say more precisely what is wrong.
            judge(&history, &reader, &drawn.workload)?;
            return Err(Failure::Wrong(text));
        }
        Err(_) => {
            hands.push(reader);
            return Err(Failure::Stuck(describe_stuck(&mut world, &hands, &history)));
        }
    }
    let undecided = judge(&history, &reader, &drawn.workload)?;
    match options.planted {
        Some(Planted::Damage) => faults.damage(&mut world, 0, DAMAGED_BLOCKS),
        _ if drawn.faults.corruption => stripes::repair(&mut world).map_err(Failure::Drives)?,
        _ => {}
    }
    stripes::check(&mut world, 1 << BUCKET_BITS).map_err(Failure::Drives)?;
    memory::check(&world, &budget).map_err(Failure::Memory)?;
    Ok(Report {
        trace: world.trace.hash(),
        turns: world.trace.turns(),
        operations: history.len(),
        faults: faults.struck,
        virtual_time: world.now().since(Instant::ZERO),
        undecided,
    })
}

/// The number of objects that could not be decided.
fn judge(history: &History, hand: &Hand, workload: &WorkloadOptions) -> Result<usize, Failure> {
    let ops = history.ops();
    let shape = Shape { slab_cells: workload.slab_cells(), names: workload.names };
    let findings = oracle::judge(&ops, hand.shared.root, shape);
    let Some(first) = findings.violations.iter().min_by_key(|violation| violation.op) else {
        return Ok(findings.undecided);
    };
    let mut text = format!("{} ({} violations)\n", first.text, findings.violations.len());
    let subject = first.inode(&ops);
    for (id, op) in ops.iter().enumerate().take(first.op + CONTEXT_OPS) {
        let mark = match subject {
            _ if id == first.op => ">>>",
            Some(inode) if oracle::concerns(op, inode) => "  *",
            _ if id + CONTEXT_OPS > first.op => "   ",
            _ => continue,
        };
        text.push_str(&format!("{mark} {id} {op}\n"));
    }
    Err(Failure::Wrong(text))
}

fn describe_stuck(world: &mut World, hands: &[Hand], history: &History) -> String {
    let mut text = String::new();
    for (id, op) in history.ops().iter().enumerate().filter(|(_, op)| op.answer.is_none()) {
        text.push_str(&format!("\n  {id} {op}"));
    }
    for hand in hands {
        if let Some(waiting) = hand.client.waiting() {
            text.push_str(&format!("\n  client {}: {waiting}", hand.index));
        }
    }
    for (index, node) in world.nodes.iter().enumerate() {
        let Some(node) = node.node() else { continue };
        let status = node.status();
        text.push_str(&format!("\n  node {index}: {} {:?}", status.phase, status.waiting));
        for bucket in status.buckets.iter().filter(|bucket| !bucket.serving) {
            text.push_str(&format!("\n    bucket {} epoch {}: {}", bucket.bucket, bucket.epoch, bucket.state));
        }
        for bucket in &status.buckets {
            let trouble = bucket.stats.as_ref().and_then(|stats| stats.trouble.clone());
            if let Some(trouble) = trouble {
                text.push_str(&format!("\n    bucket {} has trouble: {trouble}", bucket.bucket));
            }
        }
    }
    text
}
