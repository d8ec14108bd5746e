//! A network within one process: for tests of the layers above, in virtual time, with faults on demand.
//!
//! Every message takes a random time between two bounds, so messages overtake each other. What happens is a function of
//! the executor's seed. It keeps the promises of the real network and breaks the same ones: a request runs at most once,
//! an error says nothing about whether it ran unless [`CallError`] says so.

use crate::rpc::{CallError, Handler, Network, Request, Response, fits};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::{Pending, completion};
use weft_reactor::{Handle, Task, buf};
use weft_wire::map::Map;
use weft_wire::{CoreId, NodeId, Service};

/// Requests that one endpoint runs at a time.
pub const RUNNING_MAX: usize = 4096;

const PORT: u16 = 7000;

/// All endpoints and what lies between them. Clones are the same network.
#[derive(Clone)]
pub struct MemoryNetwork {
    handle: Handle,
    state: Rc<RefCell<State>>,
}

struct State {
    latency_min: Duration,
    latency_max: Duration,
    loss_per_million: u64,
    endpoints: BTreeMap<SocketAddr, Endpoint>,
    /// Addresses of cores that maps told, besides the ones that this network gives by itself.
    told: BTreeMap<SocketAddr, CoreId>,
    /// From, to.
    cuts: BTreeSet<(SocketAddr, SocketAddr)>,
    next_task: u64,
}

#[derive(Default)]
struct Endpoint {
    core: Option<CoreId>,
    /// Counts crashes: what an earlier life handed out is dead.
    life: u64,
    down: bool,
    handlers: BTreeMap<Service, Handler>,
    /// Handlers that run, and calls that wait.
    tasks: BTreeMap<u64, Task<()>>,
}

impl MemoryNetwork {
    /// A network without endpoints, faults or loss, where a message takes 5 to 20 microseconds.
    pub fn new(handle: Handle) -> Self {
        let state = State {
            latency_min: Duration::from_micros(5),
            latency_max: Duration::from_micros(20),
            loss_per_million: 0,
            endpoints: BTreeMap::new(),
            told: BTreeMap::new(),
            cuts: BTreeSet::new(),
            next_task: 0,
        };
        Self { handle, state: Rc::new(RefCell::new(state)) }
    }

    /// The network as `core` sees it; creates the core's endpoint the first time. After a crash: [`Self::restart`] it, then ask again.
    pub fn node(&self, core: CoreId) -> Rc<dyn Network> {
        self.endpoint(Self::address(core), Some(core))
    }

    /// The network as client number `index` sees it.
    pub fn client(&self, index: u16) -> Rc<dyn Network> {
        self.endpoint(Self::client_address(index), None)
    }

    /// The address of a core in this network.
    pub fn address(core: CoreId) -> SocketAddr {
        let [high, low] = core.node.0.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, high, low, core.core)), PORT)
    }

    /// The address of a client in this network.
    pub fn client_address(index: u16) -> SocketAddr {
        let [high, low] = index.to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(11, high, low, 0)), PORT)
    }

    /// From now on a message takes between `min` and `max`.
    pub fn set_latency(&self, min: Duration, max: Duration) {
        assert!(min <= max, "latency {min:?}..{max:?} is empty");
        let mut state = self.state.borrow_mut();
        (state.latency_min, state.latency_max) = (min, max);
    }

    /// From now on so many of a million messages vanish: their calls time out.
    pub fn set_loss(&self, per_million: u64) {
        self.state.borrow_mut().loss_per_million = per_million;
    }

    /// Messages from `from` to `to` vanish; the other direction still works.
    pub fn cut(&self, from: CoreId, to: CoreId) {
        self.cut_addr(Self::address(from), Self::address(to));
    }

    /// [`Self::cut`] for any endpoints.
    pub fn cut_addr(&self, from: SocketAddr, to: SocketAddr) {
        self.state.borrow_mut().cuts.insert((from, to));
    }

    /// Undoes one [`Self::cut`].
    pub fn mend(&self, from: CoreId, to: CoreId) {
        self.state.borrow_mut().cuts.remove(&(Self::address(from), Self::address(to)));
    }

    /// Undoes all cuts.
    pub fn mend_all(&self) {
        self.state.borrow_mut().cuts.clear();
    }

    /// The core stops where it is: its handlers and running requests are dropped, its own calls never return, networks it holds are dead.
    /// Calls that it was working on fail with [`CallError::SessionLost`], later ones with [`CallError::Unreachable`].
    pub fn crash(&self, core: CoreId) {
        let tasks = {
            let mut state = self.state.borrow_mut();
            let endpoint = state.endpoints.entry(Self::address(core)).or_default();
            endpoint.core = Some(core);
            endpoint.life += 1;
            endpoint.down = true;
            endpoint.handlers.clear();
            std::mem::take(&mut endpoint.tasks)
        };
        for task in tasks.into_values() {
            task.abort();
        }
    }

    /// The core is there again, without handlers; [`Self::node`] gives its new network.
    pub fn restart(&self, core: CoreId) {
        let mut state = self.state.borrow_mut();
        if let Some(endpoint) = state.endpoints.get_mut(&Self::address(core)) {
            endpoint.down = false;
        }
    }

    fn endpoint(&self, address: SocketAddr, core: Option<CoreId>) -> Rc<dyn Network> {
        let mut state = self.state.borrow_mut();
        let endpoint = state.endpoints.entry(address).or_default();
        endpoint.core = core;
        Rc::new(Node { network: self.clone(), address, core, life: endpoint.life })
    }

    /// The time one message takes from `from` to `to`; `None` if it vanishes.
    fn transit(&self, from: SocketAddr, to: SocketAddr) -> Option<Duration> {
        let state = self.state.borrow();
        if from == to {
            return Some(Duration::ZERO);
        }
        if state.cuts.contains(&(from, to)) {
            return None;
        }
        if state.loss_per_million > 0 && self.handle.random_u64() % 1_000_000 < state.loss_per_million {
            return None;
        }
        let spread = (state.latency_max - state.latency_min).as_nanos() as u64;
        Some(state.latency_min + Duration::from_nanos(self.handle.random_u64() % (spread + 1)))
    }

    /// One message's way. Never returns if it is lost on it.
    async fn travel(&self, from: SocketAddr, to: SocketAddr) {
        match self.transit(from, to) {
            None => std::future::pending().await,
            Some(Duration::ZERO) => {}
            Some(time) => self.handle.sleep(time).await,
        }
    }

    /// Runs `future` as part of the endpoint's present life: a crash drops it.
    fn spawn_at(&self, address: SocketAddr, future: impl Future<Output = ()> + 'static) {
        let mut state = self.state.borrow_mut();
        let id = state.next_task;
        state.next_task += 1;
        let cleanup = self.state.clone();
        let task = self.handle.spawn("memory network", async move {
            future.await;
            let ended = cleanup.borrow_mut().endpoints.get_mut(&address).and_then(|e| e.tasks.remove(&id));
            drop(ended);
        });
        state.endpoints.entry(address).or_default().tasks.insert(id, task);
    }

    /// Starts the handler at the endpoint `to`.
    fn deliver(&self, to: SocketAddr, service: Service, request: Request) -> Result<Pending<Response>, CallError> {
        let handler = {
            let state = self.state.borrow();
            let endpoint = state.endpoints.get(&to).ok_or(CallError::Unreachable)?;
            if endpoint.down {
                return Err(CallError::Unreachable);
            }
            if endpoint.tasks.len() >= RUNNING_MAX {
                return Err(CallError::Overloaded);
            }
            endpoint.handlers.get(&service).cloned().ok_or(CallError::NoService)?
        };
        let (completer, pending) = completion();
        self.spawn_at(to, async move {
            completer.complete(handler(request).await);
        });
        Ok(pending)
    }

    /// A whole call, from the caller's life to the handler and back.
    async fn carry(
        self,
        from: SocketAddr,
        to: SocketAddr,
        service: Service,
        mut request: Request,
    ) -> Result<Response, CallError> {
        self.travel(from, to).await;
        request.body = align(request.body);
        let outcome = match self.deliver(to, service, request) {
            Ok(pending) => pending.await.map_err(|_| CallError::SessionLost),
            Err(error) => Err(error),
        };
        self.travel(to, from).await;
        let response = outcome?;
        if !fits(&response.head, &response.body) {
            return Err(CallError::TooLarge);
        }
        Ok(Response { head: response.head, body: align(response.body) })
    }
}

/// Bodies of whole blocks arrive aligned, as from the real network.
fn align(body: Bytes) -> Bytes {
    if body.len() >= weft_wire::limits::BLOCK_BYTES { buf::to_aligned(body) } else { body }
}

/// One life of one endpoint.
struct Node {
    network: MemoryNetwork,
    address: SocketAddr,
    core: Option<CoreId>,
    life: u64,
}

impl Node {
    fn is_alive(&self) -> bool {
        let state = self.network.state.borrow();
        state.endpoints.get(&self.address).is_some_and(|e| e.life == self.life && !e.down)
    }
}

impl Network for Node {
    fn call(
        &self,
        to: CoreId,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>> {
        self.call_addr(MemoryNetwork::address(to), service, head, body, timeout)
    }

    fn call_addr(
        &self,
        to: SocketAddr,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>> {
        if !fits(&head, &body) {
            return Pending::ready(Err(CallError::TooLarge));
        }
        if !self.is_alive() {
            return Pending::ready(Err(CallError::Unreachable));
        }
        let network = self.network.clone();
        // A map may name the core by an address of the real network.
        let to = network.state.borrow().told.get(&to).map_or(to, |core| MemoryNetwork::address(*core));
        let from = self.address;
        let request = Request { from, from_core: self.core, head, body };
        let (completer, pending) = completion();
        self.network.spawn_at(from, async move {
            let call = network.clone().carry(from, to, service, request);
            let outcome = network.handle.timeout(timeout, call).await;
            completer.complete(outcome.unwrap_or(Err(CallError::Timeout)));
        });
        pending
    }

    fn serve(&self, service: Service, handler: Handler) {
        if !self.is_alive() {
            return;
        }
        let before = {
            let mut state = self.network.state.borrow_mut();
            state.endpoints.entry(self.address).or_default().handlers.insert(service, handler)
        };
        drop(before);
    }

    fn local(&self) -> Option<CoreId> {
        self.core
    }

    fn set_addresses(&self, map: &Map) {
        let mut state = self.network.state.borrow_mut();
        for node in map.nodes.values() {
            for (core, address) in (0u8..).zip(&node.cores) {
                state.told.insert(*address, CoreId { node: NodeId(node.id.0), core });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_reactor::testing::VirtualTime;

    const A: CoreId = CoreId { node: NodeId(1), core: 0 };
    const B: CoreId = CoreId { node: NodeId(2), core: 0 };
    const SECOND: Duration = Duration::from_secs(1);

    fn echo() -> Handler {
        crate::rpc::handler(|request| async move { Response { head: request.head, body: request.body } })
    }

    async fn ask(from: &Rc<dyn Network>, to: CoreId, body: Bytes) -> Result<Response, CallError> {
        from.ask(to, Service::Drive, Bytes::from_static(b"head"), body, SECOND).await
    }

    #[test]
    fn a_call_arrives_with_its_body_aligned() {
        let time = VirtualTime::new(1);
        let network = MemoryNetwork::new(time.handle());
        let (a, b) = (network.node(A), network.node(B));
        b.serve(Service::Drive, echo());
        let odd = Bytes::from(vec![7; 8193]).slice(1..);
        let response = time.block_on(async move { ask(&a, B, odd).await }).unwrap();
        assert_eq!(response.body.len(), 8192);
        assert!(buf::is_aligned(&response.body));
    }

    #[test]
    fn a_cut_works_in_one_direction_only() {
        let time = VirtualTime::new(2);
        let network = MemoryNetwork::new(time.handle());
        let (a, b) = (network.node(A), network.node(B));
        a.serve(Service::Drive, echo());
        b.serve(Service::Drive, echo());
        network.cut(A, B);
        // The request reaches A, its response doesn't; nor do requests from A.
        let (first, second) = (a.clone(), b.clone());
        assert_eq!(time.block_on(async move { ask(&first, B, Bytes::new()).await }), Err(CallError::Timeout));
        assert_eq!(time.block_on(async move { ask(&second, A, Bytes::new()).await }), Err(CallError::Timeout));
        network.mend(A, B);
        assert!(time.block_on(async move { ask(&a, B, Bytes::new()).await }).is_ok());
    }

    #[test]
    fn a_crash_fails_what_is_in_flight_and_kills_the_old_life() {
        let time = VirtualTime::new(3);
        let network = MemoryNetwork::new(time.handle());
        let (a, b) = (network.node(A), network.node(B));
        let stuck = crate::rpc::handler(|_| std::future::pending());
        b.serve(Service::Drive, stuck);
        let call = a.call(B, Service::Drive, Bytes::new(), Bytes::new(), SECOND);
        time.run_for(Duration::from_millis(1));
        network.crash(B);
        assert_eq!(time.block_on(async move { crate::rpc::flatten(call.await) }), Err(CallError::SessionLost));
        let first = a.clone();
        assert_eq!(time.block_on(async move { ask(&first, B, Bytes::new()).await }), Err(CallError::Unreachable));
        network.restart(B);
        let dead = b.clone();
        assert_eq!(time.block_on(async move { ask(&dead, A, Bytes::new()).await }), Err(CallError::Unreachable));
        let second = a.clone();
        assert_eq!(time.block_on(async move { ask(&second, B, Bytes::new()).await }), Err(CallError::NoService));
        network.node(B).serve(Service::Drive, echo());
        assert!(time.block_on(async move { ask(&a, B, Bytes::new()).await }).is_ok());
    }
}
