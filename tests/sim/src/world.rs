//! The world: one clock, one network, nodes and clients, all on this thread.

use crate::node::SimNode;
use crate::process::{LocalClock, Process};
use crate::trace::Trace;
use std::cell::RefCell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use weft_link::sim::{SimNet, SimNetOptions};
use weft_reactor::{Clock, Instant, Random, VirtualClock};
use weftd::node::NodeEnd;

/// How far a clock may run away from the world's, in millionths: two of them stay within what leases allow for.
const DRIFT_PPM_MAX: u64 = 4000;
/// Machines were switched on at most so long ago.
const UPTIME_SECONDS_MAX: u64 = 1000;
const PORT: u16 = 7500;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Hosts of one network; nodes and clients have every second network.
const HOSTS: usize = 250;

pub fn node_addr(index: usize) -> SocketAddr {
    addr(index, 0)
}

pub fn client_addr(index: usize) -> SocketAddr {
    addr(index, 1)
}

fn addr(index: usize, kind: usize) -> SocketAddr {
    let (network, host) = (2 * (index / HOSTS) + kind, 1 + index % HOSTS);
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, network as u8, host as u8)), PORT)
}

pub struct World {
    pub clock: VirtualClock,
    pub net: SimNet,
    pub random: Random,
    pub nodes: Vec<SimNode>,
    pub clients: Vec<Process>,
    pub trace: Trace,
}

/// Time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLate;

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let clock = VirtualClock::new();
        let net = SimNet::new(random.next_u64(), SimNetOptions::calm());
        Self { trace: Trace::new(clock.clone()), clock, net, random, nodes: Vec::new(), clients: Vec::new() }
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// A clock for a machine that is switched on.
    pub fn local_clock(&mut self) -> LocalClock {
        let offset = Duration::from_millis(self.random.below(UPTIME_SECONDS_MAX * 1000));
        let drift = self.random.below(2 * DRIFT_PPM_MAX + 1) as i64 - DRIFT_PPM_MAX as i64;
        LocalClock::new(self.clock.clone(), offset, drift)
    }

    pub fn add_client(&mut self) -> usize {
        let index = self.clients.len();
        let clock = self.local_clock();
        let process = Process::new(&self.net, client_addr(index), clock, self.random.next_u64());
        self.clients.push(process);
        index
    }

    /// A client's process dies. Another one, with nothing on it yet, takes its place and its address.
    pub fn kill_client(&mut self, index: usize) {
        let clock = self.local_clock();
        let fresh = Process::new(&self.net, client_addr(index), clock, self.random.next_u64());
        if let Some(process) = self.clients.get_mut(index) {
            std::mem::replace(process, fresh).kill();
        }
        self.trace.note(&format!("client {index} dies"));
    }

    /// Lets everything happen that happens now.
    fn settle(&mut self) {
        loop {
            self.net.advance(self.now());
            let arrived = self.net.take_arrived();
            let now = self.now();
            let mut ran = false;
            let processes = self.nodes.iter_mut().filter_map(SimNode::process).chain(&mut self.clients);
            for process in processes {
                let due = process.wake_at().is_some_and(|at| at <= now);
                if due || (arrived.contains(&process.addr()) && !process.hangs()) {
                    let work = process.run();
                    self.trace.note_turn(process.addr(), work);
                    ran = true;
                }
            }
            self.restart_ended();
            if !ran {
                break;
            }
        }
    }

    /// Moves time to the next event, but not beyond `until`. False: it is `until`.
    fn advance(&mut self, until: Instant) -> bool {
        let wakes = self.nodes.iter_mut().filter_map(SimNode::process).chain(&mut self.clients);
        let next = wakes.filter_map(|process| process.wake_at()).chain(self.net.next_event()).min();
        let restart = self.nodes.iter().filter_map(SimNode::restart_at).min();
        let next = next.into_iter().chain(restart).min().unwrap_or(Instant::FAR_FUTURE).min(until);
        self.clock.advance_to(next);
        next < until
    }

    pub fn run_until(&mut self, until: Instant) {
        let _ = self.run_while(until.since(self.now()), |_| false);
    }

    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now() + duration);
    }

    /// Runs until `done` says so, at most for `limit`.
    pub fn run_while(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<(), TooLate> {
        let until = self.now() + limit;
        loop {
            self.settle();
            if done(self) {
                return Ok(());
            }
            if !self.advance(until) {
                return Err(TooLate);
            }
        }
    }

    /// The same, for what costs so much to look at that it is done now and then.
    pub fn run_until_seen(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Result<(), TooLate> {
        let until = self.now() + limit;
        loop {
            if done(self) {
                return Ok(());
            }
            if self.now() >= until {
                return Err(TooLate);
            }
            self.run_until(until.min(self.now() + LOOK_EVERY));
        }
    }

    /// Runs `future` in a client's process and the world with it.
    pub fn block_on_client<T: 'static>(
        &mut self,
        client: usize,
        limit: Duration,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, TooLate> {
        let output = Rc::new(RefCell::new(None));
        if let Some(process) = self.clients.get_mut(client) {
            spawn(process, Rc::clone(&output), future);
        }
        self.run_while(limit, |_| output.borrow().is_some())?;
        output.borrow_mut().take().ok_or(TooLate)
    }

    /// The same in a node's process. The node must be up.
    pub fn block_on_node<T: 'static>(
        &mut self,
        node: usize,
        limit: Duration,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, TooLate> {
        let output = Rc::new(RefCell::new(None));
        if let Some(process) = self.nodes.get_mut(node).and_then(SimNode::process) {
            spawn(process, Rc::clone(&output), future);
        }
        self.run_while(limit, |_| output.borrow().is_some())?;
        output.borrow_mut().take().ok_or(TooLate)
    }

    /// What the supervisor does: a process that ended by itself is started again, if it was not removed.
    fn restart_ended(&mut self) {
        for index in 0..self.nodes.len() {
            let ended = self.nodes.get(index).and_then(SimNode::ended);
            if let Some(end) = ended {
                self.trace.note(&format!("node {index} ended: {end}"));
                self.restart_node(index);
                if end == NodeEnd::Removed {
                    self.abandon_node(index);
                }
            }
            let due = self.nodes.get(index).and_then(SimNode::restart_at).is_some_and(|at| at <= self.now());
            if due {
                self.start_node(index);
            }
        }
    }
}

fn spawn<T: 'static>(process: &mut Process, output: Rc<RefCell<Option<T>>>, future: impl Future<Output = T> + 'static) {
    let run = async move {
        let value = future.await;
        *output.borrow_mut() = Some(value);
    };
    process.handle().spawn("simulation", run).detach();
    process.poke();
}
