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
    /// Writes to zones that drives lose or put elsewhere.
    pub bad_writes: bool,
    pub slow_drives: bool,
    /// Nodes hang: nothing of them runs, and then they go on as if nothing had been.
    pub hangs: bool,
    /// All drives of a node fail, and are back later with what they held then.
    pub failing_drives: bool,
    pub client_deaths: bool,
    /// Nodes are down for long.
    pub long: bool,
    /// More nodes than may fail go down at once: then nothing is answered wrongly, and all is there when they come back.
    pub beyond: bool,
    /// Partitions are often between two nodes, which all others reach.
    pub pairs: bool,
    /// And so are some that are counted apart.
    pub pair_cuts: bool,
    /// The cluster falls in two halves, each with clients of its own. Some nodes are reached by both.
    pub halves: bool,
    /// A node reaches one other alone, and then both lose power.
    pub alone: bool,
    /// Clients don't reach some nodes, or any, for long.
    pub client_cuts: bool,
    /// Leaders are replaced, and a drive that was sealed for it restarts.
    pub sealed: bool,
    /// Between two faults, on average.
    pub every: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Crash,
    PowerLossOfAll,
    Weather,
    Partition,
    Corruption,
    BadWrite,
    SlowDrive,
    Hang,
    FailingDrives,
    ClientDeath,
    PairCut,
    Halves,
    Alone,
    Sealed,
    ClientCut,
}

impl FaultOptions {
    pub fn none(every: Duration) -> Self {
        Self {
            network: false,
            crashes: false,
            power_loss_of_all: false,
            corruption: false,
            bad_writes: false,
            slow_drives: false,
            hangs: false,
            failing_drives: false,
            client_deaths: false,
            long: false,
            beyond: false,
            pairs: false,
            pair_cuts: false,
            halves: false,
            alone: false,
            client_cuts: false,
            sealed: false,
            every,
        }
    }

    /// The kinds, and how often each strikes.
    fn kinds(&self) -> Vec<(Kind, u64)> {
        let all = [
            (self.crashes, Kind::Crash, 40),
            (self.power_loss_of_all, Kind::PowerLossOfAll, 8),
            (self.network, Kind::Weather, 15),
            (self.network, Kind::Partition, 20),
            (self.corruption, Kind::Corruption, 15),
            (self.bad_writes, Kind::BadWrite, 15),
            (self.slow_drives, Kind::SlowDrive, 10),
            (self.client_deaths, Kind::ClientDeath, 8),
            (self.hangs, Kind::Hang, 15),
            (self.failing_drives, Kind::FailingDrives, 15),
            (self.pair_cuts, Kind::PairCut, 40),
            (self.halves, Kind::Halves, 40),
            (self.alone, Kind::Alone, 40),
            (self.sealed, Kind::Sealed, 40),
            (self.client_cuts, Kind::ClientCut, 40),
        ];
        all.into_iter().filter(|(on, ..)| *on).map(|(_, kind, weight)| (kind, weight)).collect()
    }

    /// A drive may hold what isn't right, while it says that it is.
    pub fn damages(&self) -> bool {
        self.corruption || self.bad_writes
    }
}

/// Longest that a node stays down, a partition lasts, a drive is slow.
const DOWN_MAX: Duration = Duration::from_secs(5);
const DOWN_LONG_MAX: Duration = Duration::from_secs(40);
const PARTITION_MAX: Duration = Duration::from_secs(3);
/// Participants of a transaction ask for its outcome after a second.
const PAIR_CUT_MIN: Duration = Duration::from_millis(1100);
/// How long the cluster is in two halves, and how long a node reaches one other alone, at most; those two stay down until
/// others do their work.
const HALVES_MAX: Duration = Duration::from_secs(5);
const ALONE_MAX: Duration = Duration::from_millis(1500);
/// Longer than a client may be silent.
const CLIENT_CUT_MAX: Duration = Duration::from_secs(45);
const DOWN_ALONE_MIN: Duration = Duration::from_secs(2);
/// After a node is taken for dead, drives are sealed, and the next leader writes to them, within so long.
const SEALED_MAX: Duration = Duration::from_millis(300);
const LOOK_EVERY: Duration = Duration::from_millis(5);
const SEAL_CUT: Duration = Duration::from_secs(6);
const RESTARTED_MAX: Duration = Duration::from_millis(50);
/// Of nodes and clients, those that both halves reach.
const BETWEEN_SHARE: f64 = 0.2;
const SLOW_MAX: Duration = Duration::from_secs(5);
/// What a slow drive needs more for each operation, at most.
const DELAY_MAX: Duration = Duration::from_millis(50);
/// Until it is looked again whether victims may come back, and how long they wait when everything heals.
const HELD_BACK: Duration = Duration::from_millis(100);
const OTHERS_MAX: Duration = Duration::from_secs(60);
/// Clients that die in a run, at most: what each had asked for may take effect at any later time, and all combinations
/// are followed.
const DEATHS_MAX: u32 = 3;
/// How long drives pretend, and how long all was well before.
const PRETENCE: Duration = Duration::from_secs(3);

/// How a node will go down.
#[derive(Clone, Copy, Debug)]
struct Doom {
    node: usize,
    loses_power: bool,
    down_min: Duration,
    down_max: Duration,
}

/// A node goes down soon after others are taken for dead.
#[derive(Clone, Copy, Debug)]
struct Watch {
    doom: Doom,
    /// One of those others.
    cut_off: usize,
    look_at: Instant,
    until: Instant,
}

pub struct Faults {
    options: FaultOptions,
    random: Random,
    parity: usize,
    next: Instant,
    /// Nodes that are down, hang or have no drive that works, and when they come back.
    down: Vec<(usize, Instant)>,
    partitions: Vec<(PartitionId, Instant)>,
    /// Nodes with slow drives, and until when.
    slow: Vec<(usize, Instant)>,
    /// Nodes that will go down, and when.
    doomed: Vec<(Doom, Instant)>,
    watch: Option<Watch>,
    rough: bool,
    /// When something last happened that holds up answers for a while.
    disturbed: Instant,
    /// With damage, only these nodes go down or are damaged.
    victims: Vec<usize>,
    deaths: u32,
    /// Nodes whose drives are lost and not made again yet: so many fewer may go down.
    reserved: usize,
    pub struck: u64,
}

fn between(random: &mut Random, least: Duration, most: Duration) -> Duration {
    least + Duration::from_nanos(random.below(most.saturating_sub(least).as_nanos() as u64 + 1))
}

impl Faults {
    pub fn new(options: FaultOptions, seed: u64, world: &World, parity: usize) -> Self {
        let mut random = Random::new(seed);
        let mut victims: Vec<usize> = (0..world.nodes.len()).collect();
        if options.damages() {
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
            slow: Vec::new(),
            doomed: Vec::new(),
            watch: None,
            rough: false,
            disturbed: world.now(),
            victims,
            deaths: 0,
            reserved: 0,
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
        let slow = self.slow.iter().map(|(_, until)| *until);
        let doomed = self.doomed.iter().map(|(_, when)| *when);
        let look_at = self.watch.iter().map(|watch| watch.look_at);
        down.chain(partitions).chain(slow).chain(doomed).chain(look_at).chain([self.next]).min().unwrap_or(self.next)
    }

    /// Since when nothing holds up answers, if that is so: no more nodes are down than may be.
    pub fn calm_since(&self) -> Option<Instant> {
        let held_up = self.rough || !self.partitions.is_empty() || self.down.len() + self.reserved > self.parity;
        (!held_up).then_some(self.disturbed)
    }

    /// A node more that may go down.
    pub fn joins(&mut self, node: usize) {
        if !self.options.damages() {
            self.victims.push(node);
        }
    }

    /// Whether a node may lose what is on its drives: it is one more that is down.
    pub fn may_lose(&self, node: usize) -> bool {
        let is_victim = self.victims.contains(&node) && !self.down.iter().any(|(down, _)| *down == node);
        is_victim && self.down.len() + self.reserved < self.parity
    }

    pub fn reserve(&mut self, nodes: usize, now: Instant) {
        self.reserved = nodes;
        self.disturbed = now;
    }

    /// Something else holds up answers for a while.
    pub fn disturb(&mut self, now: Instant) {
        self.disturbed = now;
    }

    /// Does what is due. Answers which client dies, if one does: that is its owner's business.
    pub fn strike(&mut self, world: &mut World) -> Option<usize> {
        let now = world.now();
        self.hold_back_victims(world);
        let started = take_due(&mut self.down, now);
        for node in &started {
            world.bring_back(*node);
        }
        for node in take_due(&mut self.slow, now) {
            set_delay(world, node, Duration::ZERO);
        }
        self.watch_the_cut_off(world);
        for Doom { node, loses_power, down_min, down_max } in take_due(&mut self.doomed, now) {
            let crash = if loses_power { Crash::PowerLoss(self.keeps()) } else { Crash::Kill };
            let until = now + between(&mut self.random, down_min, down_max);
            world.crash_node(node, crash);
            self.down.push((node, until));
        }
        let healed = take_due(&mut self.partitions, now);
        if !started.is_empty() || !healed.is_empty() {
            self.disturbed = now;
        }
        for partition in healed {
            world.net.heal(partition);
            world.trace.note("a partition heals");
        }
        if self.next > now {
            return None;
        }
        self.plan_next(now);
        self.fault(world)
    }

    /// What is written while a node is taken for dead lacks that node's shards. With damage, this must be the case of victims
    /// alone: they come back after all others are believed to be up.
    fn hold_back_victims(&mut self, world: &World) {
        if !self.options.damages() || self.others_serve(world) {
            return;
        }
        let again = world.now() + HELD_BACK;
        for (node, until) in &mut self.down {
            if self.victims.contains(node) {
                *until = again.max(*until);
            }
        }
    }

    /// All nodes that are no victims are up in the eyes of each other.
    fn others_serve(&self, world: &World) -> bool {
        let others = || world.nodes.iter().enumerate().filter(|(node, _)| !self.victims.contains(node));
        let names: Vec<String> = others().map(|(_, machine)| machine.name()).collect();
        others().all(|(_, machine)| {
            let Some(status) = machine.node().map(|node| node.status()) else { return false };
            // Before it has a word of the managers its map is of an earlier life.
            let Some(cluster) = status.cluster.filter(|_| status.phase == "serving") else { return false };
            let up = cluster.nodes.iter().filter(|node| node.state == "up" && names.contains(&node.name));
            up.count() == names.len()
        })
    }

    fn fault(&mut self, world: &mut World) -> Option<usize> {
        let kinds = self.options.kinds();
        let mut left = self.random.below(kinds.iter().map(|(_, weight)| weight).sum());
        let (kind, _) = kinds.iter().find(|(_, weight)| match left.checked_sub(*weight) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })?;
        self.struck += 1;
        if !matches!(kind, Kind::Corruption | Kind::BadWrite | Kind::ClientDeath) {
            self.disturbed = world.now();
        }
        match kind {
            Kind::Crash => self.crash(world),
            Kind::PowerLossOfAll => self.power_loss_of_all(world),
            Kind::Weather => self.weather(world),
            Kind::Partition => self.partition(world),
            Kind::Corruption => self.corrupt(world),
            Kind::BadWrite => self.bad_write(world),
            Kind::SlowDrive => self.slow_drive(world),
            Kind::Hang => self.out_of_work(world, World::hang_node),
            Kind::FailingDrives => self.out_of_work(world, World::fail_drives),
            Kind::ClientDeath if self.deaths < DEATHS_MAX => {
                self.deaths += 1;
                return Some(self.random.below(world.clients.len() as u64) as usize);
            }
            Kind::ClientDeath => {}
            Kind::PairCut => self.cut_pair(world),
            Kind::Halves => self.cut_in_halves(world),
            Kind::Alone => self.leave_alone(world),
            Kind::Sealed => self.cut_at_a_seal(world),
            Kind::ClientCut => self.cut_client(world),
        }
        None
    }

    fn victim(&mut self) -> Option<usize> {
        self.victims.get(self.random.below(self.victims.len() as u64) as usize).copied()
    }

    fn keeps(&mut self) -> CrashKeeps {
        match self.random.below(4) {
            0 => CrashKeeps::Nothing,
            1 => CrashKeeps::Everything,
            _ => CrashKeeps::Some { seed: self.random.next_u64() },
        }
    }

    /// A node that may go down now.
    fn next_down(&mut self, world: &World) -> Option<usize> {
        let most = if self.options.beyond { world.nodes.len() } else { self.parity };
        let node = self.victim()?;
        let is_gone = world.nodes.get(node).is_some_and(|node| node.is_gone());
        let is_down = self.down.iter().any(|(down, _)| *down == node);
        (!is_gone && !is_down && self.down.len() + self.reserved < most).then_some(node)
    }

    fn until_back(&mut self, now: Instant) -> Instant {
        let longest = if self.options.long { DOWN_LONG_MAX } else { DOWN_MAX };
        now + between(&mut self.random, Duration::from_millis(1), longest)
    }

    fn out_of_work(&mut self, world: &mut World, strike: impl Fn(&mut World, usize)) {
        let Some(node) = self.next_down(world) else { return };
        let until = self.until_back(world.now());
        strike(world, node);
        self.down.push((node, until));
    }

    fn crash(&mut self, world: &mut World) {
        let Some(node) = self.next_down(world) else { return };
        let crash = if self.random.chance(0.5) { Crash::Kill } else { Crash::PowerLoss(self.keeps()) };
        let until = self.until_back(world.now());
        world.crash_node(node, crash);
        self.down.push((node, until));
    }

    fn power_loss_of_all(&mut self, world: &mut World) {
        let keeps = self.keeps();
        let now = world.now();
        for node in 0..world.nodes.len() {
            if world.nodes.get(node).is_some_and(|node| node.is_up() || node.restart_at().is_some()) {
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
        self.rough = !calm;
        world.net.set_options(if calm { SimNetOptions::calm() } else { options });
        world.trace.note(if calm { "the network is calm" } else { "the network is rough" });
    }

    /// Two nodes don't reach each other for longer than those who do wait for an answer: what concerns both stands still
    /// half-way, and nobody is taken for dead.
    fn cut_pair(&mut self, world: &mut World) {
        let count = world.nodes.len() as u64;
        let one = self.random.below(count);
        let other = (one + 1 + self.random.below(count - 1)) % count;
        let until = world.now() + between(&mut self.random, PAIR_CUT_MIN, PARTITION_MAX);
        world.trace.note(&format!("nodes {one} and {other} don't reach each other"));
        let (one, other) = (vec![node_addr(one as usize)], vec![node_addr(other as usize)]);
        self.partitions.push((world.net.partition(one.clone(), other.clone()), until));
        self.partitions.push((world.net.partition(other, one), until));
    }

    /// Two sides that don't reach each other, and what lies between them.
    fn cut_in_halves(&mut self, world: &mut World) {
        if !self.partitions.is_empty() {
            return;
        }
        let nodes = (0..world.nodes.len()).map(node_addr);
        let clients = (0..world.clients.len()).map(client_addr);
        let mut sides = [Vec::new(), Vec::new()];
        for addr in nodes.chain(clients) {
            let side = self.random.below(2) as usize;
            if !self.random.chance(BETWEEN_SHARE) {
                sides.get_mut(side).into_iter().for_each(|side| side.push(addr));
            }
        }
        let [one, other] = sides;
        let until = world.now() + between(&mut self.random, Duration::from_millis(1), HALVES_MAX);
        world.trace.note(&format!("{one:?} and {other:?} don't reach each other"));
        self.partitions.push((world.net.partition(one.clone(), other.clone()), until));
        self.partitions.push((world.net.partition(other, one), until));
    }

    fn cut_client(&mut self, world: &mut World) {
        let client = self.random.below(world.clients.len() as u64) as usize;
        let nodes: Vec<SocketAddr> =
            (0..world.nodes.len()).map(node_addr).filter(|_| self.random.chance(0.8)).collect();
        let until = world.now() + between(&mut self.random, Duration::from_secs(1), CLIENT_CUT_MAX);
        world.trace.note(&format!("client {client} and {nodes:?} don't reach each other"));
        self.partitions.push((world.net.partition(vec![client_addr(client)], nodes.clone()), until));
        self.partitions.push((world.net.partition(nodes, vec![client_addr(client)]), until));
    }

    /// A node reaches one other and the clients, until both go down.
    fn leave_alone(&mut self, world: &mut World) {
        let Some((node, other)) =
            self.next_down(world).zip(self.next_down(world)).filter(|(node, other)| node != other)
        else {
            return;
        };
        if self.down.len() + self.reserved + 2 > self.parity || !self.doomed.is_empty() {
            return;
        }
        let rest =
            (0..world.nodes.len()).filter(|index| ![node, other].contains(index)).map(node_addr).collect::<Vec<_>>();
        let until = world.now() + between(&mut self.random, Duration::from_millis(1), ALONE_MAX);
        world.trace.note(&format!("node {node} reaches node {other} alone, and then both lose power"));
        self.partitions.push((world.net.partition(vec![node_addr(node)], rest.clone()), until));
        self.partitions.push((world.net.partition(rest, vec![node_addr(node)]), until));
        let doom = |node| Doom { node, loses_power: true, down_min: DOWN_ALONE_MIN, down_max: DOWN_MAX };
        self.doomed.extend([(doom(node), until), (doom(other), until)]);
    }

    fn watch_the_cut_off(&mut self, world: &World) {
        let now = world.now();
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.look_at <= now) else { return };
        watch.look_at = now + LOOK_EVERY;
        let name = format!("node{}", watch.cut_off);
        let nodes = world.nodes.iter().filter_map(|machine| machine.node()?.status().cluster);
        let is_away =
            nodes.into_iter().any(|cluster| cluster.nodes.iter().any(|node| node.name == name && node.state == "away"));
        if is_away {
            self.doomed.push((watch.doom, now + between(&mut self.random, Duration::ZERO, SEALED_MAX)));
        }
        if is_away || watch.until <= now {
            self.watch = None;
        }
    }

    /// Two nodes and some clients are cut off. All others are, too, from them, but one node that serves both sides: about when
    /// leaders are replaced its process ends, and is back at once. All drives are slow, so that this takes a while.
    fn cut_at_a_seal(&mut self, world: &mut World) {
        let mut nodes: Vec<usize> = (0..world.nodes.len()).collect();
        let mut take = |random: &mut Random| nodes.swap_remove(random.below(nodes.len() as u64) as usize);
        let cut_off = [(); 2].map(|()| take(&mut self.random));
        let between_both = take(&mut self.random);
        let may_end = !self.down.iter().any(|(node, _)| *node == between_both) && self.down.len() < self.parity;
        if !may_end || !self.doomed.is_empty() || self.watch.is_some() || !self.partitions.is_empty() {
            return;
        }
        let clients = (0..world.clients.len()).map(client_addr).filter(|_| self.random.chance(0.5)).collect::<Vec<_>>();
        let others: Vec<SocketAddr> = nodes.into_iter().map(node_addr).collect();
        let side: Vec<SocketAddr> = cut_off.into_iter().map(node_addr).chain(clients.clone()).collect();
        world.trace.note(&format!("{side:?} reach {between_both} alone, which restarts"));
        let now = world.now();
        let until = now + SEAL_CUT;
        let between_both_addr = vec![node_addr(between_both)];
        for (one, other) in [(side, others), (clients, between_both_addr)] {
            self.partitions.push((world.net.partition(one.clone(), other.clone()), until));
            self.partitions.push((world.net.partition(other, one), until));
        }
        for node in 0..world.nodes.len() {
            set_delay(world, node, between(&mut self.random, DELAY_MAX / 5, DELAY_MAX));
            self.slow.push((node, now + SEAL_CUT / 2));
        }
        let doom = Doom {
            node: between_both,
            loses_power: false,
            down_min: Duration::from_millis(1),
            down_max: RESTARTED_MAX,
        };
        let [cut_off, _] = cut_off;
        self.watch = Some(Watch { doom, cut_off, look_at: now, until });
    }

    fn partition(&mut self, world: &mut World) {
        if self.options.pairs && !self.options.damages() && self.random.chance(0.5) {
            return self.cut_pair(world);
        }
        let nodes = (0..world.nodes.len()).map(node_addr);
        let clients = (0..world.clients.len()).map(client_addr);
        let all: Vec<SocketAddr> = nodes.chain(clients.clone()).collect();
        // Nodes that don't hear each other are taken for dead: with damage elsewhere that would be more than may fail.
        let cuttable: Vec<SocketAddr> = if self.options.damages() { clients.collect() } else { all.clone() };
        let (mut from, mut to): (Vec<SocketAddr>, Vec<SocketAddr>) = (Vec::new(), Vec::new());
        let cut = 1 + self.random.below(self.parity as u64) as usize;
        for _ in 0..cut {
            from.extend(cuttable.get(self.random.below(cuttable.len() as u64) as usize));
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
        let Some(node) = self.victim() else { return };
        let blocks = 1 + self.random.below(200);
        self.damage(world, node, blocks);
    }

    /// A victim's drive loses the next write to its zones, or puts it somewhere else in them.
    fn bad_write(&mut self, world: &mut World) {
        let Some(node) = self.victim() else { return };
        let Some(machine) = world.nodes.get(node) else { return };
        for media in &machine.media {
            let Some(zones) = crate::stripes::zones_of(media) else { continue };
            if self.random.chance(0.5) {
                media.lose_next_write_in(zones);
            } else {
                // Near the beginning, where zones are handed out first.
                let span = (zones.end - zones.start) / 64;
                let to = zones.start + self.random.below(span);
                media.misdirect_next_write_in(zones, to);
            }
        }
        world.trace.note(&format!("node {node}: its drives do not write what they are told next"));
    }

    fn slow_drive(&mut self, world: &mut World) {
        let Some(node) = self.victim() else { return };
        let delay = between(&mut self.random, Duration::ZERO, DELAY_MAX);
        let until = world.now() + between(&mut self.random, Duration::ZERO, SLOW_MAX);
        set_delay(world, node, delay);
        world.trace.note(&format!("node {node}: each operation of its drives takes {delay:?} more"));
        self.slow.push((node, until));
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
        let damages = self.options.damages();
        let (first, last): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.down).into_iter().partition(|(node, _)| !damages || !self.victims.contains(node));
        for (node, _) in first {
            world.bring_back(node);
        }
        if !last.is_empty() {
            // Whether or not: the run says what doesn't work.
            let _ = world.run_until_seen(OTHERS_MAX, |world| self.others_serve(world));
        }
        for (node, _) in last {
            world.bring_back(node);
        }
        self.partitions.clear();
        self.doomed.clear();
        self.watch = None;
        for (node, _) in std::mem::take(&mut self.slow) {
            set_delay(world, node, Duration::ZERO);
        }
        for media in world.nodes.iter().flat_map(|node| &node.media) {
            media.write_well_again();
        }
    }
}

fn take_due<T>(list: &mut Vec<(T, Instant)>, now: Instant) -> Vec<T> {
    let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(list).into_iter().partition(|(_, until)| *until <= now);
    *list = rest;
    due.into_iter().map(|(thing, _)| thing).collect()
}

fn set_delay(world: &World, node: usize, delay: Duration) {
    for media in world.nodes.get(node).iter().flat_map(|node| &node.media) {
        media.set_delay(delay);
    }
}
