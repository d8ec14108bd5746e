//! An operator's order, from its first command until the cluster shows what was ordered.
//!
//! Each step looks at what is there and says what to ask next, so an order survives everything that happens to those who
//! were asked: what got no answer, or was refused, is asked again.

use crate::cluster::new_node;
use crate::node::SimNode;
use crate::world::World;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use weft_placement::Holds;
use weft_reactor::Instant;
use weft_wire::DriveId;
use weft_wire::control::{Answer, Command, Status};
use weft_wire::manager::Part;
use weft_wire::map::{Map, Node, Purpose, State};

/// A drive that the map has nothing on has freed all its zones so long after, if its node lives.
const FREED_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub enum Order {
    /// A machine's drives are blank: it becomes a node, or the one again that it was.
    Join {
        machine: usize,
        replace: bool,
    },
    /// The drive in this slot of the machine becomes part of the cluster.
    JoinDrive {
        machine: usize,
        slot: usize,
    },
    /// To be emptied and taken out.
    Leave {
        part: Part,
        empty_since: Option<Instant>,
    },
    /// The same, until the operator thinks better of it.
    Hesitate {
        part: Part,
        until: Instant,
    },
    Stay {
        part: Part,
    },
    /// What never comes back is taken out when nothing is left of it.
    Bury {
        part: Part,
    },
}

/// What to do about an order.
pub enum Step {
    Done,
    Wait,
    /// A machine is asked; `None` is any that serves.
    Ask(Option<usize>, Command),
    /// What can't be.
    Wrong(String),
}

/// The newest map that any process has.
pub fn newest_map(world: &World) -> Option<Rc<Map>> {
    let nodes = world.nodes.iter().filter_map(SimNode::node);
    nodes.filter_map(|node| node.map_watch()?.get()).max_by_key(|map| map.version)
}

fn status(world: &World, machine: usize) -> Option<Status> {
    world.nodes.get(machine)?.node().map(|node| node.status())
}

/// Machines whose daemons serve.
pub fn serving(world: &World) -> Vec<usize> {
    (0..world.nodes.len())
        .filter(|machine| status(world, *machine).is_some_and(|status| status.phase == "serving"))
        .collect()
}

pub fn node_of<'a>(world: &World, map: &'a Map, machine: usize) -> Option<&'a Node> {
    let name = world.nodes.get(machine)?.name();
    map.nodes.values().find(|node| node.name == name)
}

/// What a machine's slot holds, as far as its daemon knows.
pub fn drive_in(world: &World, machine: usize, slot: usize) -> Option<DriveId> {
    status(world, machine)?.drives.get(slot)?.id
}

/// A command that is answered without waiting.
fn at_once(world: &World, machine: usize, command: Command) -> Option<Answer> {
    let node = world.nodes.get(machine)?.node()?;
    let answer = pin!(node.command(command));
    match answer.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

pub fn purpose(map: &Map, part: Part) -> Option<Purpose> {
    match part {
        Part::Node(id) => map.nodes.get(&id).map(|node| node.purpose),
        Part::Drive(id) => map.drives.get(&id).map(|drive| drive.purpose),
    }
}

impl Order {
    pub fn step(&mut self, world: &World, map: &Map) -> Step {
        match self {
            Self::Join { machine, replace } => join(world, map, *machine, *replace),
            Self::JoinDrive { machine, slot } => join_drive(world, map, *machine, *slot),
            Self::Leave { part, empty_since } => leave(world, map, *part, empty_since),
            Self::Hesitate { part, until } => {
                let part = *part;
                if world.now() >= *until {
                    *self = Self::Stay { part };
                    return Step::Wait;
                }
                match purpose(map, part) {
                    None => Step::Done,
                    Some(Purpose::Leave) => Step::Wait,
                    Some(Purpose::Serve) => Step::Ask(None, Command::SetPurpose { part, purpose: Purpose::Leave }),
                }
            }
            Self::Stay { part } => match purpose(map, *part) {
                Some(Purpose::Leave) => Step::Ask(None, Command::SetPurpose { part: *part, purpose: Purpose::Serve }),
                None | Some(Purpose::Serve) => Step::Done,
            },
            Self::Bury { part } => bury(map, *part),
        }
    }
}

fn join(world: &World, map: &Map, machine: usize, replace: bool) -> Step {
    let Some(status) = status(world, machine) else { return Step::Wait };
    let known = node_of(world, map, machine);
    match status.phase.as_str() {
        "serving" => return if known.is_some_and(|node| node.state == State::Up) { Step::Done } else { Step::Wait },
        "unclaimed" => {}
        _ => return Step::Wait,
    }
    let Some(Answer::Description(found)) = at_once(world, machine, Command::Describe) else { return Step::Wait };
    let is_named = known.is_some_and(|node| {
        let is_drive = |uuid| map.drives.values().any(|drive| drive.uuid == uuid && drive.node == node.id);
        node.state == State::Joining && found.drives.iter().all(|drive| is_drive(drive.uuid))
    });
    match is_named {
        true => Step::Ask(Some(machine), Command::Form { map: Box::new(map.clone()) }),
        false => Step::Ask(None, Command::AddNode { new: new_node(&found), replace }),
    }
}

fn join_drive(world: &World, map: &Map, machine: usize, slot: usize) -> Step {
    let Some(status) = status(world, machine).filter(|status| status.phase == "serving") else { return Step::Wait };
    let Some(drive) = status.drives.get(slot) else {
        return Step::Wrong(format!("node {machine} does not show its drive {slot}"));
    };
    let by_map = drive.id.and_then(|id| map.drives.get(&id));
    match by_map {
        Some(by_map) if matches!(by_map.state, State::Up | State::Draining) => Step::Done,
        _ => Step::Ask(Some(machine), Command::AddDrive { path: drive.path.clone() }),
    }
}

/// The machine that is, or has, `part`.
fn machine_of(world: &World, map: &Map, part: Part) -> Option<usize> {
    let id = match part {
        Part::Node(id) => id,
        Part::Drive(id) => map.drives.get(&id)?.node,
    };
    (0..world.nodes.len()).find(|machine| node_of(world, map, *machine).is_some_and(|node| node.id == id))
}

fn leave(world: &World, map: &Map, part: Part, empty_since: &mut Option<Instant>) -> Step {
    match purpose(map, part) {
        None => return Step::Done,
        Some(Purpose::Serve) => return Step::Ask(None, Command::SetPurpose { part, purpose: Purpose::Leave }),
        Some(Purpose::Leave) => {}
    }
    let state = match part {
        Part::Node(id) => map.nodes.get(&id).map(|node| node.state),
        Part::Drive(id) => map.drives.get(&id).map(|drive| drive.state),
    };
    let lives = state == Some(State::Draining);
    let status = machine_of(world, map, part).and_then(|machine| status(world, machine));
    let status = status.filter(|status| status.phase == "serving" && lives);
    if !Holds::of(map, part).is_nothing() {
        *empty_since = None;
        return Step::Wait;
    }
    // Somebody who is away says nothing of its drives.
    let Some(status) = status else {
        *empty_since = None;
        return Step::Ask(None, Command::Remove { part });
    };
    let is_of = |id: DriveId| match part {
        Part::Drive(drive) => drive == id,
        Part::Node(node) => map.drives.get(&id).is_some_and(|drive| drive.node == node),
    };
    let own = status.drives.iter().filter(|drive| drive.id.is_some_and(is_of));
    let used: u32 = own.map(|drive| drive.zones - drive.zones_free).sum();
    let since = *empty_since.get_or_insert(world.now());
    match used {
        0 => Step::Ask(None, Command::Remove { part }),
        _ if world.now().since(since) < FREED_MAX => Step::Wait,
        _ => Step::Wrong(format!("{part} holds nothing by the map, and {used} of its zones are in use")),
    }
}

fn bury(map: &Map, part: Part) -> Step {
    let state = match part {
        Part::Node(id) => map.nodes.get(&id).map(|node| node.state),
        Part::Drive(id) => map.drives.get(&id).map(|drive| drive.state),
    };
    match state {
        None => Step::Done,
        Some(State::Failed) if Holds::of(map, part).is_nothing() => Step::Ask(None, Command::Remove { part }),
        Some(_) => Step::Wait,
    }
}
