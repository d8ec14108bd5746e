//! An operator who adds, drains, removes and replaces nodes and drives while everything else goes on.
//!
//! Drawn apart from all else: a seed without an operator is as if there were none.

use crate::faults::Faults;
use crate::node::{Crash, NodeTunables};
use crate::orders::{Order, Step, drive_in, newest_map, node_of, purpose, serving};
use crate::stripes;
use crate::world::World;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::mem::{CrashKeeps, MemOptions};
use weft_placement::Holds;
use weft_reactor::{Instant, Random};
use weft_wire::control::{Answer, Command, ManagerState};
use weft_wire::manager::Part;
use weft_wire::map::{Map, Node, Purpose, State};
use weft_wire::{DriveId, NodeId};

/// Chosen so that seeds that were known before there was an operator have none.
const SALT: u64 = 0x6772_6f7b;
const SHARE: f64 = 0.2;
/// How often the operator looks at orders that are under way.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Orders at a time.
const ORDERS_MAX: usize = 3;
/// Nodes and drives of a node that a cluster grows to.
const NODES_MAX: usize = 9;
const DRIVES_MAX: usize = 3;
/// Until a command that nobody has answered is given again.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// In virtual time, until all orders are carried out once everything is well.
const FINISH_MAX: Duration = Duration::from_secs(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    AddNode,
    AddDrive,
    DrainNode,
    DrainDrive,
    /// A node loses all its drives, and gets others.
    ReplaceNode,
    /// A node never comes back, and another one takes its place.
    BuryNode,
    ReplaceDrive,
    /// What has to be refused.
    Forbidden,
    HotSpare,
}

const KINDS: [(Kind, u64); 9] = [
    (Kind::AddNode, 20),
    (Kind::AddDrive, 15),
    (Kind::DrainNode, 25),
    (Kind::DrainDrive, 15),
    (Kind::ReplaceNode, 12),
    (Kind::BuryNode, 12),
    (Kind::ReplaceDrive, 12),
    (Kind::Forbidden, 15),
    (Kind::HotSpare, 5),
];

/// What a seed's operator is like.
#[derive(Clone, Debug)]
pub struct Plan {
    seed: u64,
    /// Nodes beyond those that the run's options give.
    pub more_nodes: usize,
    pub drives: usize,
    kinds: Vec<(Kind, u64)>,
    every: Duration,
}

impl Plan {
    pub fn draw(seed: u64) -> Option<Self> {
        let mut random = Random::new(seed ^ SALT);
        if !random.chance(SHARE) {
            return None;
        }
        let more_nodes = random.below(3) as usize;
        let drives = 1 + random.below(2) as usize;
        let kinds = KINDS.into_iter().filter(|_| random.chance(0.6)).collect();
        let every = Duration::from_millis(500 + random.below(4000));
        Some(Self { seed: random.next_u64(), more_nodes, drives, kinds, every })
    }
}

struct Asked {
    answer: Rc<RefCell<Option<Answer>>>,
    until: Instant,
}

struct Task {
    order: Order,
    asked: Option<Asked>,
    /// Why the newest command was refused.
    refused: String,
}

/// A command that has to be refused.
struct Bait {
    asked: Asked,
    what: String,
    node: NodeId,
    /// When it was last looked at: its drives may be given up before the managers decide.
    serves: bool,
}

pub struct Growth {
    plan: Plan,
    random: Random,
    drive: MemOptions,
    tunables: NodeTunables,
    next: Instant,
    look_at: Instant,
    tasks: Vec<Task>,
    bait: Option<Bait>,
    hot_spare: Option<Asked>,
    /// What is lost is not made again yet.
    is_lossy: bool,
    pub carried_out: u64,
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for task in &self.tasks {
            write!(f, "{:?}", task.order)?;
            if !task.refused.is_empty() {
                write!(f, " ({})", task.refused)?;
            }
            f.write_str("; ")?;
        }
        Ok(())
    }
}

impl Growth {
    pub fn new(plan: Plan, drive: MemOptions, tunables: NodeTunables, now: Instant) -> Self {
        let random = Random::new(plan.seed);
        let mut growth = Self {
            plan,
            random,
            drive,
            tunables,
            next: now,
            look_at: now,
            tasks: Vec::new(),
            bait: None,
            hot_spare: None,
            is_lossy: false,
            carried_out: 0,
        };
        growth.plan_next(now);
        growth
    }

    fn plan_next(&mut self, now: Instant) {
        self.next = now + Duration::from_nanos(self.random.below(2 * self.plan.every.as_nanos() as u64));
    }

    pub fn next_at(&self) -> Instant {
        self.next.min(self.look_at)
    }

    /// Does what is due: looks at orders, and has another one, perhaps.
    pub fn act(&mut self, world: &mut World, faults: &mut Faults) -> Result<(), String> {
        let now = world.now();
        if self.look_at <= now {
            self.look_at = now + LOOK_EVERY;
            self.go_on(world)?;
            self.note_losses(world, faults);
        }
        if self.next <= now {
            self.plan_next(now);
            if self.tasks.len() < ORDERS_MAX {
                self.order(world, faults);
            }
        }
        Ok(())
    }

    /// Until all orders are carried out.
    pub fn finish(&mut self, world: &mut World, faults: &mut Faults) -> Result<(), String> {
        let end = world.now() + FINISH_MAX;
        while world.now() < end {
            self.go_on(world)?;
            self.note_losses(world, faults);
            if self.tasks.is_empty() && self.bait.is_none() && !self.is_lossy {
                return Ok(());
            }
            world.run_for(LOOK_EVERY);
        }
        Err(format!("{self}{}", describe(world)))
    }

    fn go_on(&mut self, world: &mut World) -> Result<(), String> {
        self.watch_bait(world)?;
        let Some(map) = newest_map(world) else { return Ok(()) };
        let mut at = 0;
        while let Some(task) = self.tasks.get_mut(at) {
            at += 1;
            if let Some(asked) = &task.asked {
                let answer = asked.answer.borrow_mut().take();
                match answer {
                    None if world.now() < asked.until => continue,
                    Some(Answer::Refused(reason)) => {
                        world.trace.note(&format!("{:?} is refused: {reason}", task.order));
                        let too_few = reason.contains("Add a node in another domain first");
                        if too_few && matches!(task.order, Order::Leave { .. } | Order::Hesitate { .. }) {
                            at -= 1;
                            self.tasks.remove(at);
                            continue;
                        }
                        task.refused = reason;
                    }
                    _ => task.refused.clear(),
                }
                task.asked = None;
                // What was answered shows in the next map.
                continue;
            }
            match task.order.step(world, &map) {
                Step::Wait => {}
                Step::Done => {
                    world.trace.note(&format!("{:?} is carried out", task.order));
                    self.carried_out += 1;
                    at -= 1;
                    self.tasks.remove(at);
                }
                Step::Wrong(text) => return Err(text),
                Step::Ask(machine, command) => {
                    let those = serving(world);
                    let any = those.get(self.random.below(those.len() as u64) as usize).copied();
                    let Some(machine) = machine.or(any) else { continue };
                    task.asked = ask(world, machine, command);
                }
            }
        }
        Ok(())
    }

    fn watch_bait(&mut self, world: &World) -> Result<(), String> {
        let Some(bait) = &mut self.bait else { return Ok(()) };
        let answer = bait.asked.answer.borrow_mut().take();
        match answer {
            Some(Answer::Refused(_)) => {}
            Some(_) if bait.serves => return Err(format!("{} was not refused", bait.what)),
            Some(_) => {}
            None if world.now() < bait.asked.until => {
                bait.serves &= newest_map(world).is_some_and(|map| serves(&map, bait.node));
                return Ok(());
            }
            None => {}
        }
        self.bait = None;
        Ok(())
    }

    fn begin(&mut self, world: &mut World, order: Order) {
        world.trace.note(&format!("the operator: {order:?}"));
        self.tasks.push(Task { order, asked: None, refused: String::new() });
    }

    fn order(&mut self, world: &mut World, faults: &mut Faults) {
        let Some(map) = newest_map(world) else { return };
        let mut left = self.random.below(self.plan.kinds.iter().map(|(_, weight)| weight).sum());
        let kind = self.plan.kinds.iter().find(|(_, weight)| match left.checked_sub(*weight) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        let Some((kind, _)) = kind else { return };
        match kind {
            Kind::AddNode => self.add_node(world, faults, &map),
            Kind::AddDrive => self.add_drive(world, faults, &map),
            Kind::DrainNode => self.drain_node(world, &map),
            Kind::DrainDrive => self.drain_drive(world, &map),
            Kind::ReplaceNode => self.replace_node(world, faults, &map),
            Kind::BuryNode => self.bury_node(world, faults, &map),
            Kind::ReplaceDrive => self.replace_drive(world, faults, &map),
            Kind::Forbidden => self.ask_forbidden(world, &map),
            Kind::HotSpare => {
                let command = Command::HotSpare { nodes: self.random.below(2) as u16 };
                // It may be refused.
                self.hot_spare = serving(world).first().and_then(|machine| ask(world, *machine, command));
            }
        }
    }

    /// A machine that serves, with no order that concerns it, and its node.
    fn choose<'a>(
        &mut self,
        world: &World,
        map: &'a Map,
        may: impl Fn(usize, &Node) -> bool,
    ) -> Option<(usize, &'a Node)> {
        let free = |machine: &usize, node: &Node| {
            node.purpose == Purpose::Serve && node.state == State::Up && !self.concerns(map, *machine, node)
        };
        let those: Vec<_> = serving(world)
            .into_iter()
            .filter_map(|machine| node_of(world, map, machine).map(|node| (machine, node)))
            .filter(|(machine, node)| free(machine, node) && may(*machine, node))
            .collect();
        those.get(self.random.below(those.len() as u64) as usize).copied()
    }

    fn concerns(&self, map: &Map, machine: usize, node: &Node) -> bool {
        self.tasks.iter().any(|task| match &task.order {
            Order::Join { machine: joins, .. } | Order::JoinDrive { machine: joins, .. } => *joins == machine,
            Order::Leave { part, .. } | Order::Hesitate { part, .. } | Order::Stay { part } | Order::Bury { part } => {
                match part {
                    Part::Node(id) => *id == node.id,
                    Part::Drive(id) => map.drives.get(id).is_some_and(|drive| drive.node == node.id),
                }
            }
        })
    }

    fn add_node(&mut self, world: &mut World, faults: &mut Faults, map: &Map) {
        if map.nodes.len() < NODES_MAX {
            self.add_machine(world, faults);
        }
    }

    fn add_machine(&mut self, world: &mut World, faults: &mut Faults) {
        let drives = 1 + self.random.below(2) as usize;
        let machine = world.nodes.len();
        world.add_node(drives, self.drive, self.tunables);
        faults.joins(machine);
        self.begin(world, Order::Join { machine, replace: false });
    }

    fn add_drive(&mut self, world: &mut World, faults: &mut Faults, map: &Map) {
        let Some((machine, _)) = self.choose(world, map, |machine, _| {
            let blank = (0..DRIVES_MAX).any(|slot| drive_in(world, machine, slot).is_none());
            faults.may_lose(machine) && blank
        }) else {
            return;
        };
        let slots = world.nodes.get(machine).map_or(0, |node| node.media.len());
        let blank = (0..slots).find(|slot| drive_in(world, machine, *slot).is_none());
        let slot = blank.unwrap_or(slots);
        // Drives are looked for when the daemon starts.
        world.crash_node(machine, Crash::Kill);
        world.give_drive(machine, slot, self.drive);
        faults.disturb(world.now());
        world.start_node(machine);
        self.begin(world, Order::JoinDrive { machine, slot });
    }

    /// To be emptied and taken out, perhaps not for good.
    fn leaves(&mut self, world: &mut World, part: Part) {
        let order = match self.random.chance(0.25) {
            true => Order::Hesitate { part, until: world.now() + Duration::from_millis(self.random.below(6000)) },
            false => Order::Leave { part, empty_since: None },
        };
        self.begin(world, order);
    }

    fn drain_node(&mut self, world: &mut World, map: &Map) {
        // The map may not know yet who never comes back.
        let is_gone = |node: &Node| world.nodes.iter().any(|machine| machine.is_gone() && machine.name() == node.name);
        let stays = |node: &&Node| node.purpose == Purpose::Serve && node.state == State::Up && !is_gone(node);
        let stay = map.nodes.values().filter(stays).count();
        if stay <= map.protection.domains() {
            return;
        }
        if let Some((_, node)) = self.choose(world, map, |_, _| true) {
            self.leaves(world, Part::Node(node.id));
        }
    }

    /// A drive of a node with several that serve.
    fn choose_drive(
        &mut self,
        world: &World,
        map: &Map,
        may: impl Fn(usize) -> bool,
    ) -> Option<(usize, usize, DriveId)> {
        let own = |machine: usize| {
            let ids = (0..DRIVES_MAX).filter_map(move |slot| Some((slot, drive_in(world, machine, slot)?)));
            ids.filter(|(_, id)| {
                map.drives.get(id).is_some_and(|drive| drive.state == State::Up && drive.purpose == Purpose::Serve)
            })
        };
        let (machine, _) = self.choose(world, map, |machine, _| may(machine) && own(machine).count() > 1)?;
        let those: Vec<_> = own(machine).collect();
        let (slot, id) = those.get(self.random.below(those.len() as u64) as usize)?;
        Some((machine, *slot, *id))
    }

    fn drain_drive(&mut self, world: &mut World, map: &Map) {
        if let Some((_, _, id)) = self.choose_drive(world, map, |_| true) {
            self.leaves(world, Part::Drive(id));
        }
    }

    /// Its drives are gone, whatever was on them.
    fn replace_node(&mut self, world: &mut World, faults: &mut Faults, map: &Map) {
        if self.is_lossy || !is_whole(world) {
            return;
        }
        let Some((machine, _)) = self.choose(world, map, |machine, _| faults.may_lose(machine)) else { return };
        self.loses(world, faults, machine);
        let slots = world.nodes.get(machine).map_or(0, |node| node.media.len());
        for slot in 0..slots {
            world.give_drive(machine, slot, self.drive);
        }
        world.start_node(machine);
        self.begin(world, Order::Join { machine, replace: true });
    }

    fn loses(&mut self, world: &mut World, faults: &mut Faults, machine: usize) {
        world.crash_node(machine, Crash::PowerLoss(CrashKeeps::Nothing));
        self.is_lossy = true;
        faults.reserve(1, world.now());
    }

    fn bury_node(&mut self, world: &mut World, faults: &mut Faults, map: &Map) {
        if self.is_lossy || !is_whole(world) || map.nodes.len() >= NODES_MAX {
            return;
        }
        let Some((machine, node)) = self.choose(world, map, |machine, _| faults.may_lose(machine)) else { return };
        self.loses(world, faults, machine);
        world.abandon_node(machine);
        self.add_machine(world, faults);
        self.begin(world, Order::Bury { part: Part::Node(node.id) });
    }

    fn replace_drive(&mut self, world: &mut World, faults: &mut Faults, map: &Map) {
        if self.is_lossy || !is_whole(world) {
            return;
        }
        let chosen = self.choose_drive(world, map, |machine| faults.may_lose(machine));
        let Some((machine, slot, id)) = chosen else { return };
        self.loses(world, faults, machine);
        world.give_drive(machine, slot, self.drive);
        world.start_node(machine);
        self.begin(world, Order::JoinDrive { machine, slot });
        self.begin(world, Order::Bury { part: Part::Drive(id) });
    }

    /// Taking out what serves, or emptying what the others can't do without.
    fn ask_forbidden(&mut self, world: &mut World, map: &Map) {
        if self.bait.is_some() {
            return;
        }
        let Some((machine, node)) = self.choose(world, map, |_, node| serves(map, node.id)) else { return };
        let part = Part::Node(node.id);
        let command = match map.nodes.len() <= map.protection.domains() && self.random.chance(0.5) {
            true => Command::SetPurpose { part, purpose: Purpose::Leave },
            false => Command::Remove { part },
        };
        let joins = self.tasks.iter().any(|task| matches!(task.order, Order::Join { .. }));
        if joins || purpose(map, part) != Some(Purpose::Serve) {
            return;
        }
        let what = format!("{command:?}");
        self.bait = ask(world, machine, command).map(|asked| Bait { asked, what, node: node.id, serves: true });
    }

    /// Another loss may come when the one before is made good.
    fn note_losses(&mut self, world: &World, faults: &mut Faults) {
        if self.is_lossy && is_whole(world) {
            self.is_lossy = false;
            faults.reserve(0, world.now());
        }
    }
}

/// One whose drives are given up may leave, and so may one that isn't there and holds nothing: the others do without it already.
fn serves(map: &Map, node: NodeId) -> bool {
    let is_up = map.nodes.get(&node).is_some_and(|node| node.state == State::Up);
    (is_up || !Holds::of(map, Part::Node(node)).is_nothing())
        && map.drives.values().any(|drive| drive.node == node && drive.state == State::Up)
}

/// Nothing is given up that anything is still on, no stripe lacks a shard, every journal has its drives, and those vote whom the
/// map names.
fn is_whole(world: &World) -> bool {
    let Some(map) = newest_map(world) else { return false };
    let lives = |id: &DriveId| {
        let drive = map.drives.get(id);
        drive.is_some_and(|drive| {
            drive.state == State::Up && map.nodes.get(&drive.node).is_some_and(|node| node.state == State::Up)
        })
    };
    let by_map = map.buckets.iter().all(|bucket| {
        bucket.ensembles.len() == 1
            && bucket.former.is_empty()
            && bucket.members.iter().chain(bucket.ensembles.iter().flat_map(|ensemble| &ensemble.drives)).all(lives)
    });
    let managers = map.managers.iter().all(|id| map.nodes.get(id).is_some_and(|node| node.state == State::Up));
    let leader = (world.nodes.iter().filter_map(|machine| machine.node()?.status().manager))
        .find(|manager| manager.role == ManagerState::LEADER);
    let managers = managers && leader.is_some_and(|leader| leader.voters == map.managers);
    let buckets = stripes::buckets(world);
    let is_complete = |stripes: &[u64]| stripes.iter().skip(1).all(|count| *count == 0);
    by_map
        && managers
        && buckets.len() == map.buckets.len()
        && buckets.iter().all(|(_, bucket)| is_complete(&bucket.stats().stripes_by_missing))
}

/// For whoever wonders what an order waits for.
fn describe(world: &World) -> String {
    let Some(map) = newest_map(world) else { return "nobody has a map".into() };
    let nodes = map.nodes.values().map(|node| format!("{} {:?}", node.name, node.state));
    let drives = map.drives.values().map(|drive| format!("{} of {} {:?}", drive.id, drive.node, drive.state));
    let parts: Vec<String> = nodes.chain(drives).collect();
    let lacking: Vec<String> = stripes::buckets(world)
        .iter()
        .map(|(node, bucket)| (node, bucket.id(), bucket.stats()))
        .filter(|(.., stats)| stats.stripes_by_missing.iter().skip(1).any(|count| *count > 0))
        .map(|(node, id, stats)| format!("{id} at node {node}: {:?}, {:?}", stats.stripes_by_missing, stats.trouble))
        .collect();
    format!("the map: {}; moves {:?}; lacking: {}", parts.join(", "), weft_placement::moves(&map), lacking.join("; "))
}

fn ask(world: &mut World, machine: usize, command: Command) -> Option<Asked> {
    let until = world.now() + ANSWER_MAX;
    let answer: Rc<RefCell<Option<Answer>>> = Rc::default();
    let machine = world.nodes.get_mut(machine)?;
    let node = machine.node()?;
    let process = machine.process()?;
    let slot = Rc::clone(&answer);
    let asking = async move {
        let answered = node.command(command).await;
        *slot.borrow_mut() = Some(answered);
    };
    process.handle().spawn("operator", asking).detach();
    process.poke();
    Some(Asked { answer, until })
}
