//! One process of the simulated world: an executor with everything on it, a clock of its own, and its place on the network.
//!
//! Dropping it is `kill -9`: every task, timer and poller is gone at once.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use weft_link::sim::{SimLink, SimNet};
use weft_link::{Datagram, Link, LinkKind, Received};
use weft_reactor::{Clock, Executor, Handle, Instant, Poller, VirtualClock};
use weft_transport::rpc::{Rpc, RpcOptions};
use weft_wire::CoreId;

/// So many turns without time passing mean that tasks keep each other busy for ever.
const TURNS_PER_INSTANT_MAX: usize = 1_000_000;
const TASKS_PER_TURN: usize = 1024;
const MILLION: i128 = 1_000_000;

/// A clock that began at another time than the world's and runs a little faster or slower.
#[derive(Clone)]
pub struct LocalClock {
    world: VirtualClock,
    offset: Duration,
    drift_ppm: i64,
}

impl LocalClock {
    pub fn new(world: VirtualClock, offset: Duration, drift_ppm: i64) -> Self {
        Self { world, offset, drift_ppm }
    }

    fn at(&self, world: Instant) -> Instant {
        let passed = i128::from(world.0);
        let local = passed + passed * i128::from(self.drift_ppm) / MILLION + self.offset.as_nanos() as i128;
        Instant(u64::try_from(local).unwrap_or(u64::MAX))
    }

    /// The first moment of the world at which this clock shows `local` or more.
    fn world_at(&self, local: Instant) -> Instant {
        let passed = i128::from(local.0) - self.offset.as_nanos() as i128;
        let guess = passed.max(0) * MILLION / (MILLION + i128::from(self.drift_ppm));
        let mut world = Instant(u64::try_from(guess).unwrap_or(u64::MAX).saturating_sub(2));
        while self.at(world) < local && world < Instant::FAR_FUTURE {
            world.0 += 1;
        }
        world
    }
}

impl Clock for LocalClock {
    fn now(&self) -> Instant {
        self.at(self.world.now())
    }

    fn wall_ns(&self) -> i64 {
        self.world.wall_ns()
    }
}

/// What a process has plugged into the network; pulled out when it dies, whoever still holds the link.
#[derive(Clone)]
pub struct Plug {
    addr: SocketAddr,
    link: Rc<RefCell<Option<SimLink>>>,
    bytes_max: usize,
}

impl Plug {
    fn pull(&self) {
        drop(self.link.borrow_mut().take());
    }
}

impl Link for Plug {
    fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    fn kind(&self) -> LinkKind {
        LinkKind::Sim
    }

    fn datagram_bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn segments_max(&self) -> usize {
        self.link.borrow().as_ref().map_or(1, Link::segments_max)
    }

    fn send(&mut self, batch: &[Datagram<'_>]) -> usize {
        self.link.borrow_mut().as_mut().map_or(batch.len(), |link| link.send(batch))
    }

    fn receive(&mut self, sink: &mut dyn FnMut(Received<'_>)) -> usize {
        self.link.borrow_mut().as_mut().map_or(0, |link| link.receive(sink))
    }

    fn wait_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    fn take_unreachable(&mut self) -> Vec<SocketAddr> {
        self.link.borrow_mut().as_mut().map(Link::take_unreachable).unwrap_or_default()
    }
}

/// Makes a process' network: handed to whoever runs in it.
#[derive(Clone)]
pub struct Socket {
    net: SimNet,
    addr: SocketAddr,
    handle: Handle,
    plug: Rc<RefCell<Option<Plug>>>,
    rpc: Rc<RefCell<Option<Rc<Rpc>>>>,
    pollers: Rc<RefCell<Vec<Box<dyn Poller>>>>,
}

impl Socket {
    pub fn bind(&self, local: Option<CoreId>) -> Result<Rc<Rpc>, String> {
        let link = self.net.link(self.addr).map_err(|error| error.to_string())?;
        let bytes_max = link.datagram_bytes_max();
        let plug = Plug { addr: self.addr, link: Rc::new(RefCell::new(Some(link))), bytes_max };
        let options = RpcOptions { local, ..RpcOptions::default() };
        let rpc = Rpc::new(self.handle.clone(), Box::new(plug.clone()), options);
        *self.plug.borrow_mut() = Some(plug);
        self.pollers.borrow_mut().push(rpc.poller());
        *self.rpc.borrow_mut() = Some(Rc::clone(&rpc));
        Ok(rpc)
    }
}

pub struct Process {
    clock: LocalClock,
    socket: Socket,
    executor: Executor,
    /// When it next has something to do, by the world's clock.
    wake_at: Option<Instant>,
    /// It gets no turn, and nobody is told.
    hangs: bool,
}

impl Process {
    pub fn new(net: &SimNet, addr: SocketAddr, clock: LocalClock, seed: u64) -> Self {
        let executor = Executor::new(Rc::new(clock.clone()), seed);
        let socket = Socket {
            net: net.clone(),
            addr,
            handle: executor.handle(),
            plug: Rc::default(),
            rpc: Rc::default(),
            pollers: Rc::default(),
        };
        Self { clock, socket, executor, wake_at: Some(Instant::ZERO), hangs: false }
    }

    pub fn handle(&self) -> Handle {
        self.executor.handle()
    }

    pub fn socket(&self) -> Socket {
        self.socket.clone()
    }

    pub fn addr(&self) -> SocketAddr {
        self.socket.addr
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.wake_at.filter(|_| !self.hangs)
    }

    pub fn hang(&mut self) {
        self.hangs = true;
    }

    pub fn hangs(&self) -> bool {
        self.hangs
    }

    /// It goes on where it was, with all that has arrived meanwhile.
    pub fn go_on(&mut self) {
        self.hangs = false;
        self.poke();
    }

    /// Something was given to it from outside: it gets a turn at once.
    pub fn poke(&mut self) {
        self.wake_at = Some(Instant::ZERO);
    }

    /// Does everything that can be done at this instant. Returns how much that was.
    pub fn run(&mut self) -> usize {
        let now = self.clock.now();
        let mut all = 0;
        for turn in 0.. {
            assert!(turn < TURNS_PER_INSTANT_MAX, "livelock at {now:?}: tasks are {:?}", self.handle().task_stats());
            let mut work = 0;
            let mut pollers = std::mem::take(&mut *self.socket.pollers.borrow_mut());
            for poller in &mut pollers {
                work += poller.poll(now);
            }
            work += self.executor.run(TASKS_PER_TURN);
            let added = std::mem::take(&mut *self.socket.pollers.borrow_mut());
            work += added.len();
            pollers.extend(added);
            *self.socket.pollers.borrow_mut() = pollers;
            if work == 0 {
                break;
            }
            all += work;
        }
        let mut next = self.executor.next_deadline();
        for poller in &mut *self.socket.pollers.borrow_mut() {
            next = [next, poller.before_sleep()].into_iter().flatten().min();
        }
        self.wake_at = next.map(|local| self.clock.world_at(local));
        all
    }

    /// It dies: nothing of it sends or runs any more.
    pub fn kill(self) {
        if let Some(plug) = self.socket.plug.borrow_mut().take() {
            plug.pull();
        }
        drop(self.executor);
        self.socket.pollers.borrow_mut().clear();
        if let Some(rpc) = self.socket.rpc.borrow_mut().take() {
            rpc.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_clock_is_never_early() {
        for drift_ppm in [-4000, 0, 1, 4000] {
            let clock = LocalClock::new(VirtualClock::new(), Duration::from_nanos(12_345), drift_ppm);
            for local in [12_345, 12_346, 99_999, 1_000_000_007, 3_600_000_000_001] {
                let world = clock.world_at(Instant(local));
                assert!(clock.at(world) >= Instant(local));
                assert!(world.0 == 0 || clock.at(Instant(world.0 - 1)) < Instant(local));
            }
        }
    }
}
