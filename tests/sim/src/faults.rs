//! What goes wrong, and when: drawn from the seed, never more at once than the cluster must survive.

use crate::node::Crash;
use crate::world::{World, client_addr, node_addr};
use std::net::SocketAddr;
use std::time::Duration;
use weft_drive::mem::CrashKeeps;
use weft_link::sim::{PartitionId, SimNetOptions};
use weft_reactor::{Instant, Random};

/// Which kinds of faults a run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultOptions {
    pub network: bool,
    pub crashes: bool,
    pub power_loss_of_all: bool,
    pub corruption: bool,
    /// Between two faults, on average.
    pub every: Duration,
}

impl FaultOptions {
    pub fn none() -> Self {
        Self {
            network: false,
            crashes: false,
            power_loss_of_all: false,
            corruption: false,
            every: Duration::from_secs(1),
        }
    }
}

/// Longest that a node stays down, a partition lasts, the network stays bad.
const DOWN_MAX: Duration = Duration::from_secs(5);
const PARTITION_MAX: Duration = Duration::from_secs(3);
/// How long drives pretend, and how long all was well before.
const PRETENCE: Duration = Duration::from_secs(3);

pub struct Faults {
    options: FaultOptions,
    random: Random,
    parity: usize,
    next: Instant,
    /// Nodes that are down, and when they come back.
    down: Vec<(usize, Instant)>,
    partitions: Vec<(PartitionId, Instant)>,
    /// With corruption, only these nodes go down or are damaged.
    victims: Vec<usize>,
    pub struck: u64,
}

fn between(random: &mut Random, least: Duration, most: Duration) -> Duration {
    least + Duration::from_nanos(random.below(most.saturating_sub(least).as_nanos() as u64 + 1))
}

impl Faults {
    pub fn new(options: FaultOptions, seed: u64, world: &World, parity: usize) -> Self {
        let mut random = Random::new(seed);
        let mut victims: Vec<usize> = (0..world.nodes.len()).collect();
        if options.corruption {
            while victims.len() > parity {
                victims.remove(random.below(victims.len() as u64) as usize);
            }
        }
        let mut faults = Self {
            options,
            random,
            parity,
            next: world.now(),
            down: Vec::new(),
            partitions: Vec::new(),
            victims,
            struck: 0,
        };
        faults.plan_next(world.now());
        faults
    }

    fn plan_next(&mut self, now: Instant) {
        self.next = now + between(&mut self.random, Duration::ZERO, 2 * self.options.every);
    }

    /// When something is due.
    pub fn next_at(&self) -> Instant {
        let down = self.down.iter().map(|(_, until)| *until);
        let partitions = self.partitions.iter().map(|(_, until)| *until);
        down.chain(partitions).chain([self.next]).min().unwrap_or(self.next)
    }

    /// Does what is due.
    pub fn strike(&mut self, world: &mut World) {
        let now = world.now();
        for (node, _) in self.take_due(now) {
            world.start_node(node);
        }
        let (due, rest): (Vec<_>, Vec<_>) = self.partitions.drain(..).partition(|(_, until)| *until <= now);
        self.partitions = rest;
        for (partition, _) in due {
            world.net.heal(partition);
            world.trace.note("a partition heals");
        }
        if self.next <= now {
            self.fault(world);
            self.plan_next(now);
        }
    }

    fn take_due(&mut self, now: Instant) -> Vec<(usize, Instant)> {
        let (due, rest) = self.down.drain(..).partition(|(_, until)| *until <= now);
        self.down = rest;
        due
    }

    fn fault(&mut self, world: &mut World) {
        self.struck += 1;
        match self.random.below(100) {
            0..40 if self.options.crashes => self.crash(world),
            40..48 if self.options.power_loss_of_all => self.power_loss_of_all(world),
            48..65 if self.options.network => self.weather(world),
            65..85 if self.options.network => self.partition(world),
            85..100 if self.options.corruption => self.corrupt(world),
            _ => {}
        }
    }

    fn keeps(&mut self) -> CrashKeeps {
        match self.random.below(4) {
            0 => CrashKeeps::Nothing,
            1 => CrashKeeps::Everything,
            _ => CrashKeeps::Some { seed: self.random.next_u64() },
        }
    }

    fn crash(&mut self, world: &mut World) {
        if self.down.len() >= self.parity {
            return;
        }
        let Some(node) = self.victims.get(self.random.below(self.victims.len() as u64) as usize).copied() else {
            return;
        };
        if self.down.iter().any(|(down, _)| *down == node) {
            return;
        }
        let crash = if self.random.chance(0.5) { Crash::Kill } else { Crash::PowerLoss(self.keeps()) };
        let until = world.now() + between(&mut self.random, Duration::from_millis(1), DOWN_MAX);
        world.crash_node(node, crash);
        self.down.push((node, until));
    }

    fn power_loss_of_all(&mut self, world: &mut World) {
        let keeps = self.keeps();
        let now = world.now();
        for node in 0..world.nodes.len() {
            if world.nodes.get(node).is_some_and(|node| node.is_up()) {
                world.crash_node(node, Crash::PowerLoss(keeps));
                let until = now + between(&mut self.random, Duration::from_millis(1), DOWN_MAX);
                self.down.push((node, until));
            }
        }
    }

    fn weather(&mut self, world: &mut World) {
        let rough = SimNetOptions::rough();
        let random = &mut self.random;
        let mut share = || random.below(1000) as f64 / 1000.0;
        let options = SimNetOptions {
            loss: rough.loss * 3.0 * share(),
            duplicate: rough.duplicate * 2.0 * share(),
            corrupt: rough.corrupt * 2.0 * share(),
            reorder: rough.reorder * 2.0 * share(),
            delay_max: rough.delay_min + rough.delay_max.mul_f64(share()),
            ..rough
        };
        let calm = self.random.chance(0.4);
        world.net.set_options(if calm { SimNetOptions::calm() } else { options });
        world.trace.note(if calm { "the network is calm" } else { "the network is rough" });
    }

    fn partition(&mut self, world: &mut World) {
        let nodes = (0..world.nodes.len()).map(node_addr);
        let all: Vec<SocketAddr> = nodes.chain((0..world.clients.len()).map(client_addr)).collect();
        let (mut from, mut to): (Vec<SocketAddr>, Vec<SocketAddr>) = (Vec::new(), Vec::new());
        let cut = 1 + self.random.below(self.parity as u64) as usize;
        for _ in 0..cut {
            from.extend(all.get(self.random.below(all.len() as u64) as usize));
        }
        to.extend(all.iter().filter(|addr| !from.contains(addr) && self.random.chance(0.7)));
        let until = world.now() + between(&mut self.random, Duration::from_millis(1), PARTITION_MAX);
        world.trace.note(&format!("{from:?} cut off from {to:?}, one way or both"));
        if self.random.chance(0.5) {
            self.partitions.push((world.net.partition(to.clone(), from.clone()), until));
        }
        self.partitions.push((world.net.partition(from, to), until));
    }

    /// Damages some blocks in the zones of a victim's drive.
    fn corrupt(&mut self, world: &mut World) {
        let Some(node) = self.victims.get(self.random.below(self.victims.len() as u64) as usize).copied() else {
            return;
        };
        let blocks = 1 + self.random.below(200);
        self.damage(world, node, blocks);
    }

    pub fn damage(&mut self, world: &mut World, node: usize, blocks: u64) {
        let Some(machine) = world.nodes.get(node) else { return };
        let random = &mut self.random;
        for media in &machine.media {
            let Some(zones) = crate::stripes::zones_of(media) else { continue };
            for _ in 0..blocks {
                // Zones are handed out from the first on.
                let span = (zones.end - zones.start) / (1 + random.below(16));
                let at = zones.start + random.below(span.max(1));
                media.corrupt(at, 1 << random.below(8));
            }
        }
        world.trace.note(&format!("node {node}: {blocks} blocks of its drives are damaged"));
    }

    /// Drives that only pretend for a while, then power fails everywhere.
    pub fn lie(&mut self, world: &mut World) {
        self.heal(world);
        world.run_for(PRETENCE);
        for media in world.nodes.iter().flat_map(|node| &node.media) {
            media.lie_about_durability();
        }
        world.run_for(PRETENCE);
        for node in 0..world.nodes.len() {
            world.crash_node(node, Crash::PowerLoss(CrashKeeps::Nothing));
            self.down.push((node, world.now()));
        }
        for media in world.nodes.iter().flat_map(|node| &node.media) {
            media.be_honest_again();
        }
    }

    /// Everything is well again, and stays so.
    pub fn heal(&mut self, world: &mut World) {
        world.trace.note("everything heals");
        world.net.heal_all();
        world.net.set_options(SimNetOptions::calm());
        for (node, _) in std::mem::take(&mut self.down) {
            world.start_node(node);
        }
        self.partitions.clear();
    }
}
