//! A machine of the cluster: drives that survive its processes, and the daemon's own wiring while it runs.

use crate::process::{LocalClock, Process};
use crate::world::{TooLate, World, node_addr};
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::mem::{CrashKeeps, MemMedia, MemOptions};
use weft_link::sim::NodeState;
use weft_reactor::Instant;
use weft_transport::rpc::Network;
use weft_wire::control::{Answer, Command};
use weftd::drives::Device;
use weftd::node::{Node, NodeEnd, NodeParams};
use weftd::supervise::{Backoff, BackoffOptions};

/// Numbers that differ between seeds and are the same for all nodes of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeTunables {
    pub manager: weft_manager::Tunables,
    pub lead: weftd::lead::Tunables,
    pub drive: weft_drive::DriveOptions,
}

pub struct SimNode {
    index: usize,
    domain: Option<String>,
    pub media: Vec<MemMedia>,
    /// The machine's, for as long as it has power.
    clock: LocalClock,
    tunables: NodeTunables,
    life: Option<Life>,
    /// The supervisor's.
    backoff: Backoff,
    started: Instant,
    /// When the supervisor starts the process again that ended by itself.
    restart_at: Option<Instant>,
    /// It was taken out of the cluster, or never comes back.
    is_gone: bool,
}

struct Life {
    process: Process,
    node: Rc<Node>,
    end: Rc<RefCell<Option<NodeEnd>>>,
}

/// How a node goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies, the machine goes on: peers are told that nobody listens, drives keep what they were given.
    Kill,
    /// The machine loses power: silence, and drives lose what they had not made durable.
    PowerLoss(CrashKeeps),
}

impl SimNode {
    pub fn new(index: usize, clock: LocalClock, drives: usize, drive: MemOptions, tunables: NodeTunables) -> Self {
        let media = (0..drives).map(|_| MemMedia::new(drive)).collect();
        let backoff = Backoff::new(BackoffOptions::default());
        Self {
            index,
            domain: None,
            media,
            clock,
            tunables,
            life: None,
            backoff,
            started: Instant::ZERO,
            restart_at: None,
            is_gone: false,
        }
    }

    pub fn process(&mut self) -> Option<&mut Process> {
        self.life.as_mut().map(|life| &mut life.process)
    }

    pub fn node(&self) -> Option<Rc<Node>> {
        self.life.as_ref().map(|life| Rc::clone(&life.node))
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub fn is_up(&self) -> bool {
        self.life.is_some()
    }

    /// When its supervisor starts it again.
    pub fn restart_at(&self) -> Option<Instant> {
        self.restart_at
    }

    /// Why its process ended by itself, if it has.
    pub fn ended(&self) -> Option<NodeEnd> {
        self.life.as_ref().and_then(|life| life.end.borrow().clone())
    }

    /// As the map knows it.
    pub fn name(&self) -> String {
        format!("node{}", self.index)
    }

    pub fn addr(&self) -> SocketAddr {
        node_addr(self.index)
    }

    fn params(&self, process: &Process) -> NodeParams {
        let handle = process.handle();
        let devices = self.media.iter().enumerate();
        NodeParams {
            name: self.name(),
            domain: self.domain.clone(),
            cores: vec![self.addr()],
            control: SocketAddr::new(self.addr().ip(), self.addr().port() + 1),
            devices: devices
                .map(|(number, media)| Device {
                    path: format!("/dev/sim{}.{number}", self.index),
                    core: 0,
                    drive: media.open(&handle),
                })
                .collect(),
            manager: self.tunables.manager,
            lead: self.tunables.lead,
            drive: self.tunables.drive,
            passes: weftd::passes::PassOptions::default(),
        }
    }
}

impl World {
    pub fn add_node(&mut self, drives: usize, drive: MemOptions, tunables: NodeTunables) {
        self.add_node_in(None, drives, drive, tunables);
    }

    /// A node that may fail together with all others that name the same domain.
    pub fn add_node_in(&mut self, domain: Option<String>, drives: usize, drive: MemOptions, tunables: NodeTunables) {
        let index = self.nodes.len();
        let clock = self.local_clock();
        let mut node = SimNode::new(index, clock, drives, drive, tunables);
        node.domain = domain;
        self.nodes.push(node);
        self.start_node(index);
    }

    /// Starts the daemon of a node that is down.
    pub fn start_node(&mut self, index: usize) {
        let seed = self.random.next_u64();
        let now = self.now();
        let Some(machine) = self.nodes.get_mut(index).filter(|machine| !machine.is_up() && !machine.is_gone) else {
            return;
        };
        self.net.set_node(machine.addr(), NodeState::Up);
        let process = Process::new(&self.net, machine.addr(), machine.clock.clone(), seed);
        let node = Node::new(process.handle(), machine.params(&process));
        let end = Rc::new(RefCell::new(None));
        let socket = process.socket();
        let live = {
            let (node, end) = (Rc::clone(&node), Rc::clone(&end));
            let network = move |core| socket.bind(Some(core)).map(|rpc| rpc as Rc<dyn Network>);
            async move {
                let ended = node.run(Box::new(network)).await;
                *end.borrow_mut() = Some(ended);
            }
        };
        process.handle().spawn("node", live).detach();
        machine.life = Some(Life { process, node, end });
        machine.started = now;
        machine.restart_at = None;
        self.trace.note(&format!("node {index} starts"));
    }

    /// Its process gets no turn any more, while its machine goes on.
    pub fn hang_node(&mut self, index: usize) {
        if let Some(process) = self.nodes.get_mut(index).and_then(SimNode::process) {
            process.hang();
        }
        self.trace.note(&format!("node {index} hangs"));
    }

    /// Every operation of its drives fails.
    pub fn fail_drives(&mut self, index: usize) {
        for media in self.nodes.get(index).iter().flat_map(|machine| &machine.media) {
            media.set_failing(true);
        }
        self.trace.note(&format!("node {index}: its drives fail"));
    }

    /// Whatever keeps a node from its work ends. A drive that was given up is looked at again when its daemon starts.
    pub fn bring_back(&mut self, index: usize) {
        let Some(machine) = self.nodes.get_mut(index) else { return };
        let failing: Vec<&MemMedia> = machine.media.iter().filter(|media| media.is_failing()).collect();
        failing.iter().for_each(|media| media.set_failing(false));
        if !failing.is_empty() {
            self.crash_node(index, Crash::Kill);
        } else if let Some(process) = machine.process().filter(|process| process.hangs()) {
            process.go_on();
            self.trace.note(&format!("node {index} goes on"));
        }
        self.start_node(index);
    }

    /// The process has ended by itself. It is started again some time later, as by its supervisor.
    pub(crate) fn restart_node(&mut self, index: usize) {
        self.crash_node(index, Crash::Kill);
        let now = self.now();
        if let Some(machine) = self.nodes.get_mut(index) {
            machine.restart_at = Some(now + machine.backoff.after_death(now.since(machine.started)));
        }
    }

    /// A node that is down never comes back.
    pub fn abandon_node(&mut self, index: usize) {
        if let Some(machine) = self.nodes.get_mut(index) {
            machine.is_gone = true;
            machine.restart_at = None;
        }
        self.trace.note(&format!("node {index} is gone"));
    }

    /// Puts a blank drive into a slot, or into a further one. The daemon sees it when it starts.
    pub fn give_drive(&mut self, index: usize, slot: usize, drive: MemOptions) {
        let Some(machine) = self.nodes.get_mut(index) else { return };
        match machine.media.get_mut(slot) {
            Some(media) => *media = MemMedia::new(drive),
            None => machine.media.push(MemMedia::new(drive)),
        }
    }

    pub fn crash_node(&mut self, index: usize, crash: Crash) {
        let clock = self.local_clock();
        let Some(machine) = self.nodes.get_mut(index) else { return };
        for (number, media) in machine.media.iter().enumerate() {
            match crash {
                Crash::Kill => media.kill(),
                Crash::PowerLoss(CrashKeeps::Some { seed }) => {
                    media.crash(CrashKeeps::Some { seed: seed.wrapping_add((index * 16 + number) as u64) });
                }
                Crash::PowerLoss(keeps) => media.crash(keeps),
            }
        }
        match crash {
            Crash::Kill => {}
            Crash::PowerLoss(_) => {
                self.net.set_node(machine.addr(), NodeState::Silent);
                machine.clock = clock;
            }
        }
        machine.restart_at = None;
        if let Some(life) = machine.life.take() {
            life.process.kill();
        }
        self.trace.note(&format!("node {index} goes down: {crash:?}"));
    }

    /// A command of the control API to a node, which must be up.
    pub fn command(&mut self, index: usize, limit: Duration, command: Command) -> Result<Answer, TooLate> {
        let node = self.nodes.get(index).and_then(SimNode::node).ok_or(TooLate)?;
        self.block_on_node(index, limit, node.command(command))
    }
}
