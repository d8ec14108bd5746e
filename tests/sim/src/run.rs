//! One run: a cluster from formation to the last check, a function of its options and its seed.

use crate::aims::Aim;
use crate::crew::Crew;
use crate::faults::{FaultOptions, Faults};
use crate::growth::{Growth, Plan};
use crate::leaks;
use crate::memory::{self, Budget};
use crate::node::{Crash, NodeTunables};
use crate::oracle::{self, Shape};
use crate::stripes;
use crate::workload::{WorkloadOptions, read_back, swarm};
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
    pub workers_per_client: u64,
    /// Print what happens.
    pub print: bool,
    /// What it is made for, whatever the seed says.
    pub aim: Option<Aim>,
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
            aim: None,
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
    /// Orders to grow or shrink that were carried out.
    pub orders: u64,
    /// More nodes were down than may fail.
    pub beyond: bool,
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
        if self.orders > 0 {
            write!(f, ", {} orders", self.orders)?;
        }
        if self.beyond {
            write!(f, "{BEYOND}")?;
        }
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
    /// Operations don't end although nothing holds them up.
    Slow(String),
    /// Answers that can't be.
    Wrong(String),
    /// What is on the drives isn't right.
    Drives(String),
    Memory(String),
    /// Something is left when all was removed.
    Leak(String),
    /// Orders to grow or shrink aren't carried out, or ones are that should be refused.
    Growth(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(text) => write!(f, "the cluster did not come up: {text}"),
            Self::Stuck(text) => write!(f, "stuck after everything healed: {text}"),
            Self::Slow(text) => write!(f, "no answer for {} s of calm: {text}", LIVE_MAX.as_secs()),
            Self::Wrong(text) => write!(f, "wrong answers: {text}"),
            Self::Drives(text) => write!(f, "wrong on the drives: {text}"),
            Self::Memory(text) => write!(f, "memory: {text}"),
            Self::Leak(text) => write!(f, "left behind: {text}"),
            Self::Growth(text) => write!(f, "growing and shrinking: {text}"),
        }
    }
}

/// Marks the report of a run whose faults went beyond what must be survived.
pub const BEYOND: &str = ", beyond P";
const FS: &str = "data";
const DRIVE_BYTES: u64 = 256 << 20;
const BUCKET_BITS: u8 = 3;
/// Virtual time in which everything must be answered once all is well.
const HEALED_MAX: Duration = Duration::from_secs(120);
/// In which every call must be answered when nothing holds it up, and how often that is looked at. Locks of dead clients are free
/// after 10 s of grace and the 2 s that their fence takes to settle.
const LIVE_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Runs whose nodes are down for long take so much longer.
const LONG_FACTOR: u32 = 3;
const NAMES: u16 = 8;
const PAGES_SALT: u64 = 0x7061_6765;
/// By a planted damage: enough to hit something.
const DAMAGED_BLOCKS: u64 = 20_000;
/// Operations around a violation that are shown.
const CONTEXT_OPS: usize = 20;

struct Drawn {
    workload: WorkloadOptions,
    faults: FaultOptions,
    tunables: NodeTunables,
    drive: MemOptions,
    /// Whether all is removed at the end, to see what is left.
    leaks: bool,
}

/// What differs from seed to seed.
fn draw(random: &mut Random) -> Drawn {
    let mut tunables = NodeTunables::default();
    if random.chance(0.7) {
        // Small, so that destaging, checkpoints, merges and cleaning happen all the time.
        let bucket = &mut tunables.lead.bucket;
        bucket.memtable_bytes_max = 16 << 10 << random.below(4);
        bucket.cache_bytes_max = 64 << 10;
        bucket.sections_bytes_max = 16 << 10;
        bucket.held_bytes_max = 256 << 10 << random.below(3);
        bucket.checkpoint_share = 32 + random.below(100);
        bucket.runs_max = 2 + random.below(4) as usize;
        bucket.planner_pause = Duration::from_millis(20 + random.below(1000));
        tunables.lead.journal.quota_bytes = 2 << 20 << random.below(3);
    }
    let cell_bytes = [512, 1000, 4096, 4096][random.below(4) as usize];
    let micros = |random: &mut Random, most: u64| Duration::from_micros(1 + random.below(most));
    // More than what a drive may do wrong, and more nodes down than may fail, is more than can be survived.
    let beyond = random.chance(0.15);
    let long = random.chance(0.3);
    // As many calls in long runs as in others: what they cost is spent on more faults.
    let pause_max = Duration::from_millis(10 + random.below(60)) * if long { LONG_FACTOR } else { 1 };
    Drawn {
        workload: WorkloadOptions { cell_bytes, names: NAMES, pause_max, without: swarm(random) },
        faults: FaultOptions {
            network: random.chance(0.6),
            crashes: random.chance(0.7),
            power_loss_of_all: random.chance(0.4),
            corruption: random.chance(0.3) && !beyond,
            bad_writes: random.chance(0.3) && !beyond,
            slow_drives: random.chance(0.3),
            client_deaths: random.chance(0.4),
            long,
            beyond,
            ..FaultOptions::none(Duration::from_millis(200 + random.below(2000)))
        },
        tunables,
        drive: MemOptions {
            capacity_bytes: DRIVE_BYTES,
            read_latency: micros(random, 300),
            write_latency: micros(random, 100),
            flush_latency: micros(random, 1000),
        },
        leaks: random.chance(0.3),
    }
}

pub fn run(options: &RunOptions) -> Result<Report, Failure> {
    let mut world = World::new(options.seed);
    if options.print {
        world.trace.print();
    }
    let mut random = Random::new(world.random.next_u64());
    let mut drawn = draw(&mut random);
    // Drawn apart, so that all else is as it was for a seed before there were pages, pairs, hangs and drives that fail.
    let mut pages = Random::new(options.seed ^ PAGES_SALT);
    if pages.chance(0.6) {
        // Few names are many enough for several pages.
        drawn.tunables.lead.namespace.page_entries_max = 1 + pages.below(4);
    }
    drawn.faults.pairs = pages.chance(0.4);
    drawn.faults.hangs = pages.chance(0.4);
    drawn.faults.failing_drives = pages.chance(0.3);
    let aim = options.aim.or_else(|| Aim::draw(options.seed));
    if let Some(aim) = aim {
        let Drawn { faults, workload, drive, .. } = &mut drawn;
        aim.narrow(faults, workload, drive, &mut pages);
        world.trace.note(&format!("{aim:?}"));
    }
    world.trace.note(&format!("{:?} {:?} {:?}", drawn.workload, drawn.faults, drawn.drive));
    let plan = Plan::draw(options.seed).filter(|_| options.planted.is_none());
    let (more_nodes, drives) = plan.as_ref().map_or((0, 1), |plan| (plan.more_nodes, plan.drives));
    for _ in 0..options.nodes + more_nodes {
        world.add_node(drives, drawn.drive, drawn.tunables);
    }
    world.form(options.protection, BUCKET_BITS).map_err(Failure::Start)?;
    world.create_filesystem(FS).map_err(Failure::Start)?;
    let (clients, workers) = (options.clients, aim.and_then(Aim::workers).unwrap_or(options.workers_per_client));
    let crew = Crew::new(&mut world, FS, clients, workers, drawn.workload, &mut random);
    let mut crew = crew.map_err(Failure::Start)?;
    if options.print {
        crew.history.print();
    }
    let mut faults = Faults::new(drawn.faults, random.next_u64(), &world, usize::from(options.protection.parity));
    let mut growth = plan.map(|plan| Growth::new(plan, drawn.drive, drawn.tunables, world.now()));
    let budget = match options.planted {
        Some(Planted::NoMemory) => Budget { held_bytes: 0, index_bytes: 0, journal_bytes: 0 },
        _ => Budget::of(&drawn.tunables.lead),
    };
    let end = world.now() + options.time * if drawn.faults.long { LONG_FACTOR } else { 1 };
    let mut look_at = world.now() + LOOK_EVERY;
    while world.now() < end {
        let acts_at = growth.as_ref().map_or(end, Growth::next_at);
        world.run_until(faults.next_at().min(look_at).min(acts_at).min(end));
        if look_at <= world.now() {
            look_at = world.now() + LOOK_EVERY;
            crew.replace_silent(&mut world, &mut random);
            check_liveness(&mut world, &faults, &crew)?;
        }
        if faults.next_at() <= world.now() {
            memory::check(&world, &budget).map_err(Failure::Memory)?;
            if let Some(client) = faults.strike(&mut world) {
                crew.client_dies(&mut world, client, &mut random);
            }
        }
        if let Some(growth) = growth.as_mut().filter(|growth| growth.next_at() <= world.now()) {
            growth.act(&mut world, &mut faults).map_err(Failure::Growth)?;
        }
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
    crew.shared.stopping.set(true);
    if let Some(growth) = &mut growth {
        growth.finish(&mut world, &mut faults).map_err(Failure::Growth)?;
    }
    let healed = world.now();
    while world.run_while(LOOK_EVERY, |_| crew.is_done()).is_err() {
        crew.replace_silent(&mut world, &mut random);
        if world.now().since(healed) >= HEALED_MAX {
            return Err(Failure::Stuck(crew.describe_stuck(&mut world)));
        }
    }
    world.trace.note("work has ended");
    crew.outlive_the_dead(&mut world);
    // A client that has seen nothing looks at everything.
    let (process, reader) = crew.reader(&mut world).map_err(Failure::Stuck)?;
    let reading = async move { read_back(&reader).await };
    match world.block_on_client(process, HEALED_MAX, reading) {
        Ok(Ok(())) => {}
        Ok(Err(text)) => {
            // The oracle may say more precisely what is wrong.
            judge(&crew, &drawn.workload)?;
            return Err(Failure::Wrong(text));
        }
        Err(_) => return Err(Failure::Stuck(crew.describe_stuck(&mut world))),
    }
    let undecided = judge(&crew, &drawn.workload)?;
    match options.planted {
        Some(Planted::Damage) => faults.damage(&mut world, 0, DAMAGED_BLOCKS),
        _ if drawn.faults.damages() => stripes::repair(&mut world, 1 << BUCKET_BITS).map_err(Failure::Drives)?,
        _ => {}
    }
    stripes::check(&mut world, 1 << BUCKET_BITS).map_err(Failure::Drives)?;
    memory::check(&world, &budget).map_err(Failure::Memory)?;
    if drawn.leaks && options.planted.is_none() {
        leaks::check(&mut world, &crew).map_err(Failure::Leak)?;
    }
    Ok(Report {
        trace: world.trace.hash(),
        turns: world.trace.turns(),
        operations: crew.history.len(),
        faults: faults.struck,
        orders: growth.map_or(0, |growth| growth.carried_out),
        beyond: drawn.faults.beyond,
        virtual_time: world.now().since(Instant::ZERO),
        undecided,
    })
}

/// With nothing that holds up answers for a while, nobody has waited for as long.
fn check_liveness(world: &mut World, faults: &Faults, crew: &Crew) -> Result<(), Failure> {
    let now = world.now();
    let live = |since: Instant| now.since(since) > LIVE_MAX;
    let waits_long = || crew.history.outstanding().iter().any(|(_, op)| live(op.invoked_at));
    match faults.calm_since().is_some_and(live) && waits_long() {
        true => Err(Failure::Slow(crew.describe_stuck(world))),
        false => Ok(()),
    }
}

/// The number of objects that could not be decided.
fn judge(crew: &Crew, workload: &WorkloadOptions) -> Result<usize, Failure> {
    let ops = crew.history.ops();
    let shape = Shape { slab_cells: workload.slab_cells(), names: workload.names };
    let findings = oracle::judge(&ops, crew.shared.root, shape);
    let Some(first) = findings.violations.iter().min_by_key(|violation| violation.op) else {
        return Ok(findings.undecided);
    };
    let mut text = format!("{} ({} violations)\n", first.text, findings.violations.len());
    // Nearly everything goes through the root.
    let subjects: Vec<_> = first.inodes(&ops).into_iter().filter(|inode| *inode != crew.shared.root).collect();
    for (id, op) in ops.iter().enumerate().take(first.op + CONTEXT_OPS) {
        let mark = if id == first.op {
            ">>>"
        } else if oracle::inodes(op).iter().any(|inode| subjects.contains(inode)) {
            "  *"
        } else if id + CONTEXT_OPS > first.op {
            "   "
        } else {
            continue;
        };
        text.push_str(&format!("{mark} {id} {op}\n"));
    }
    Err(Failure::Wrong(text))
}
