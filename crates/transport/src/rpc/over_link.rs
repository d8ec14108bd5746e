//! The network over a link: one [`Endpoint`], the handlers of its core, the callers that wait.
//!
//! Everything happens in [`Poller::poll`], once per turn of the core's loop: what arrived is taken in and handed on, what tasks
//! asked for since is sent in as few system calls as possible. Calls and responses only queue.

use super::{CallError, Handler, Network, Request, Response, TellCore, fits};
use crate::endpoint::{CallId, Endpoint, Event, Refusal, RequestId, Stats, Transmit};
use crate::options::EndpointOptions;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::time::Duration;
use weft_link::{Datagram, Link};
use weft_reactor::sync::{Completer, Pending, completion};
use weft_reactor::{Handle, Instant, Poller, to_aligned};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::map::Map;
use weft_wire::{CoreId, Service};

/// Bytes that are built before the link gets them: few enough to stay in the cache.
const BUILT_BYTES_MAX: usize = 128 << 10;
/// Batches that one flush hands to the link.
const FLUSH_BATCHES_MAX: usize = 64;
/// How soon to try again when the link was full.
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// How often calls are looked through for those whose caller went away, and how many at a time.
const SWEEP_EVERY: Duration = Duration::from_millis(5);
const SWEEP_CALLS_MAX: usize = 64;
/// Stands where calls over the link have their session.
const LOCAL_SESSION: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub struct RpcOptions {
    pub endpoint: EndpointOptions,
    /// The core that this network belongs to; `None` for clients.
    pub local: Option<CoreId>,
    /// Requests in handlers; more are sent back as overloaded.
    pub requests_max: usize,
    /// Bytes of requests in handlers; more are sent back as overloaded.
    pub request_bytes_max: usize,
}

impl Default for RpcOptions {
    fn default() -> Self {
        Self { endpoint: EndpointOptions::default(), local: None, requests_max: 16_384, request_bytes_max: 512 << 20 }
    }
}

/// A [`Network`] over a [`Link`].
pub struct Rpc {
    handle: Handle,
    local: Option<CoreId>,
    address: SocketAddr,
    handlers: RefCell<BTreeMap<Service, Handler>>,
    addresses: RefCell<Addresses>,
    inner: RefCell<Inner>,
    running: Rc<Running>,
    refusals: RefCell<Option<TellCore>>,
    silence: RefCell<Option<TellCore>>,
    this: Weak<Rpc>,
}

#[derive(Default)]
struct Addresses {
    of_core: BTreeMap<CoreId, SocketAddr>,
    core_at: BTreeMap<SocketAddr, CoreId>,
}

struct Inner {
    link: Box<dyn Link>,
    endpoint: Endpoint,
    calls: BTreeMap<CallId, Caller>,
    deadlines: BTreeSet<(Instant, CallId)>,
    local_calls: u64,
    sweep_at: Instant,
    /// Calls up to here were looked at.
    swept: Option<CallId>,
    outgoing: Outgoing,
}

struct Caller {
    completer: Completer<Result<Response, CallError>>,
    deadline: Instant,
}

/// What was built and the link has not taken yet.
#[derive(Default)]
struct Outgoing {
    buffer: Vec<u8>,
    batches: Vec<Transmit>,
    taken: usize,
}

/// What handlers occupy.
struct Running {
    requests: Cell<usize>,
    bytes: Cell<usize>,
    requests_max: usize,
    bytes_max: usize,
}

struct Admission {
    running: Rc<Running>,
    bytes: usize,
}

impl Running {
    fn admit(self: &Rc<Self>, bytes: usize) -> Option<Admission> {
        let (requests, all) = (self.requests.get() + 1, self.bytes.get() + bytes);
        if requests > self.requests_max || all > self.bytes_max {
            return None;
        }
        self.requests.set(requests);
        self.bytes.set(all);
        Some(Admission { running: self.clone(), bytes })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.running.requests.set(self.running.requests.get() - 1);
        self.running.bytes.set(self.running.bytes.get() - self.bytes);
    }
}

impl Rpc {
    /// The handle's randomness makes the secrets of this endpoint: on a real core its seed must come from the system.
    pub fn new(handle: Handle, link: Box<dyn Link>, options: RpcOptions) -> Rc<Self> {
        let mut secret = [0; 16];
        for half in secret.chunks_exact_mut(8) {
            half.copy_from_slice(&handle.random_u64().to_le_bytes());
        }
        let mut endpoint = options.endpoint;
        endpoint.mtu_bytes_max = endpoint.mtu_bytes_max.min(link.datagram_bytes_max());
        let address = link.local_addr();
        let inner = Inner {
            link,
            endpoint: Endpoint::new(endpoint, secret),
            calls: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            local_calls: 0,
            sweep_at: Instant::ZERO,
            swept: None,
            outgoing: Outgoing::default(),
        };
        let running = Running {
            requests: Cell::new(0),
            bytes: Cell::new(0),
            requests_max: options.requests_max,
            bytes_max: options.request_bytes_max,
        };
        Rc::new_cyclic(|this| Self {
            handle,
            local: options.local,
            address,
            handlers: RefCell::default(),
            addresses: RefCell::default(),
            inner: RefCell::new(inner),
            running: Rc::new(running),
            refusals: RefCell::default(),
            silence: RefCell::default(),
            this: this.clone(),
        })
    }

    /// What drives this network; to be added to the core once.
    pub fn poller(&self) -> Box<dyn Poller> {
        Box::new(RpcPoller { rpc: self.this.clone(), fd: self.inner.borrow().link.wait_fd() })
    }

    /// Lets go of everything that others registered here: handlers that hold this network would keep it for ever.
    /// Calls that are under way end as dropped.
    pub fn close(&self) {
        let handlers = std::mem::take(&mut *self.handlers.borrow_mut());
        let calls = {
            let mut inner = self.inner.borrow_mut();
            inner.deadlines.clear();
            std::mem::take(&mut inner.calls)
        };
        let (refusals, silence) = (self.refusals.borrow_mut().take(), self.silence.borrow_mut().take());
        drop((handlers, calls, refusals, silence));
    }

    /// Where this network listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn stats(&self) -> Stats {
        self.inner.borrow().endpoint.stats()
    }

    /// Sessions of both kinds.
    pub fn session_count(&self) -> usize {
        self.inner.borrow().endpoint.session_count()
    }

    /// Requests in handlers.
    pub fn running(&self) -> usize {
        self.running.requests.get()
    }

    fn start(
        &self,
        to: SocketAddr,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>> {
        let now = self.handle.now();
        let mut inner = self.inner.borrow_mut();
        match inner.endpoint.call(now, to, service, head, body) {
            Ok(call) => inner.wait_for(call, now + timeout),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn start_local(
        &self,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>> {
        if !fits(&head, &body) {
            return Pending::ready(Err(CallError::TooLarge));
        }
        let Some(handler) = self.handler(service) else { return Pending::ready(Err(CallError::NoService)) };
        let Some(admission) = self.running.admit(head.len() + body.len()) else {
            return Pending::ready(Err(CallError::Overloaded));
        };
        let (call, pending) = {
            let mut inner = self.inner.borrow_mut();
            inner.local_calls += 1;
            let call = CallId { session: LOCAL_SESSION, number: inner.local_calls };
            (call, inner.wait_for(call, self.handle.now() + timeout))
        };
        let request = Request { from: self.address, from_core: self.local, head, body: align(body) };
        let this = self.this.clone();
        let response = handler(request);
        self.handle
            .spawn(task_name(service), async move {
                let Response { head, body } = response.await;
                drop(admission);
                let outcome = if fits(&head, &body) {
                    Ok(Response { head, body: align(body) })
                } else {
                    Err(CallError::TooLarge)
                };
                if let Some(rpc) = this.upgrade() {
                    rpc.finish(call, outcome);
                }
            })
            .detach();
        pending
    }

    fn handler(&self, service: Service) -> Option<Handler> {
        self.handlers.borrow().get(&service).cloned()
    }

    /// A call ended.
    fn finish(&self, call: CallId, outcome: Result<Response, CallError>) {
        let caller = self.inner.borrow_mut().forget(call);
        if let Some(caller) = caller {
            caller.completer.complete(outcome);
        }
    }

    /// A request arrived.
    fn serve_request(&self, id: RequestId, service: Service, request: Request) {
        let refusal = match (self.handler(service), self.running.admit(request.head.len() + request.body.len())) {
            (Some(handler), Some(admission)) => {
                let this = self.this.clone();
                let response = handler(request);
                self.handle
                    .spawn(task_name(service), async move {
                        let response = response.await;
                        drop(admission);
                        if let Some(rpc) = this.upgrade() {
                            let now = rpc.handle.now();
                            rpc.inner.borrow_mut().endpoint.respond(now, id, response);
                        }
                    })
                    .detach();
                return;
            }
            (None, _) => Refusal::NoService,
            (Some(_), None) => Refusal::Overloaded,
        };
        let now = self.handle.now();
        self.inner.borrow_mut().endpoint.refuse(now, id, refusal);
    }

    /// Tells whoever watches of the core at this address.
    fn tell(&self, watcher: &RefCell<Option<TellCore>>, address: SocketAddr) {
        let core = self.addresses.borrow().core_at.get(&address).copied();
        let tell = watcher.borrow().clone();
        if let (Some(core), Some(tell)) = (core, tell) {
            tell(core);
        }
    }

    fn poll(&self, now: Instant) -> usize {
        let (mut work, refused, silent, overdue) = {
            let mut inner = self.inner.borrow_mut();
            let (arrived, refused) = inner.receive(now);
            inner.endpoint.handle_timeout(now);
            let silent = inner.endpoint.take_given_up();
            inner.sweep(now);
            (arrived, refused, silent, inner.take_overdue(now))
        };
        refused.into_iter().for_each(|address| self.tell(&self.refusals, address));
        silent.into_iter().for_each(|address| self.tell(&self.silence, address));
        work += overdue.len();
        for caller in overdue {
            caller.completer.complete(Err(CallError::Timeout));
        }
        loop {
            let event = self.inner.borrow_mut().endpoint.poll_event();
            work += usize::from(event.is_some());
            match event {
                None => break,
                Some(Event::Outcome { call, outcome }) => self.finish(call, outcome),
                // What runs is never interrupted: it may hold half of a change.
                Some(Event::Abandoned(_)) => {}
                Some(Event::Request { id, from, service, head, body }) => {
                    let from_core = self.addresses.borrow().core_at.get(&from).copied();
                    self.serve_request(id, service, Request { from, from_core, head, body });
                }
            }
        }
        work + self.inner.borrow_mut().flush(now)
    }

    fn before_sleep(&self) -> Option<Instant> {
        let now = self.handle.now();
        let mut inner = self.inner.borrow_mut();
        let sent = inner.flush(now);
        let retry = match inner.outgoing.is_empty() {
            // There may be more.
            true => (sent >= FLUSH_BATCHES_MAX).then_some(now),
            false => Some(now + RETRY_AFTER),
        };
        let deadline = inner.deadlines.first().map(|(at, _)| *at);
        [retry, deadline, inner.endpoint.next_timeout(now)].into_iter().flatten().min()
    }
}

impl Inner {
    fn wait_for(&mut self, call: CallId, deadline: Instant) -> Pending<Result<Response, CallError>> {
        let (completer, pending) = completion();
        self.calls.insert(call, Caller { completer, deadline });
        self.deadlines.insert((deadline, call));
        pending
    }

    fn forget(&mut self, call: CallId) -> Option<Caller> {
        let caller = self.calls.remove(&call)?;
        self.deadlines.remove(&(caller.deadline, call));
        Some(caller)
    }

    /// How many datagrams arrived, and at which addresses nobody listens.
    fn receive(&mut self, now: Instant) -> (usize, Vec<SocketAddr>) {
        let Self { link, endpoint, .. } = self;
        let arrived = link.receive(&mut |received| {
            endpoint.handle_datagram(now, received.from, received.ecn, received.data);
        });
        let refused = link.take_unreachable();
        for address in &refused {
            endpoint.handle_unreachable(now, *address);
        }
        (arrived, refused)
    }

    /// Takes out the calls whose time is over.
    fn take_overdue(&mut self, now: Instant) -> Vec<Caller> {
        let mut overdue = Vec::new();
        while let Some((deadline, call)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            self.endpoint.cancel(now, call);
            match self.forget(call) {
                Some(caller) => overdue.push(caller),
                None => drop(self.deadlines.pop_first()),
            }
        }
        overdue
    }

    /// Takes back calls whose callers dropped their end.
    fn sweep(&mut self, now: Instant) {
        if self.calls.is_empty() || now < self.sweep_at {
            return;
        }
        self.sweep_at = now + SWEEP_EVERY;
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut abandoned = Vec::new();
        for (seen, (call, caller)) in self.calls.range((from, Bound::Unbounded)).enumerate() {
            if seen == SWEEP_CALLS_MAX {
                self.swept = Some(*call);
                break;
            }
            if caller.completer.is_abandoned() {
                abandoned.push(*call);
            }
        }
        for call in abandoned {
            self.endpoint.cancel(now, call);
            drop(self.forget(call));
        }
    }

    /// Sends what there is to send. Returns how many batches went out.
    fn flush(&mut self, now: Instant) -> usize {
        let Self { link, endpoint, outgoing, .. } = self;
        let mut sent = 0;
        while sent < FLUSH_BATCHES_MAX {
            if outgoing.is_empty() {
                while outgoing.buffer.len() < BUILT_BYTES_MAX
                    && let Some(transmit) = endpoint.poll_transmit(now, &mut outgoing.buffer)
                {
                    outgoing.batches.push(transmit);
                }
            }
            let offered = outgoing.batches.len() - outgoing.taken;
            let taken = outgoing.send(link.as_mut());
            sent += taken;
            if taken == 0 || taken < offered {
                break;
            }
        }
        sent
    }
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn send(&mut self, link: &mut dyn Link) -> usize {
        if self.is_empty() {
            return 0;
        }
        let mut rest = self.buffer.as_slice();
        let datagrams: Vec<_> = self
            .batches
            .iter()
            .map_while(|batch| {
                let (segments, after) = rest.split_at_checked(batch.bytes)?;
                rest = after;
                Some(Datagram { to: batch.to, ecn: batch.ecn, segments, segment_size: batch.segment_bytes })
            })
            .collect();
        let sent = datagrams.get(self.taken..).map_or(0, |rest| link.send(rest));
        self.taken += sent;
        if self.taken >= self.batches.len() {
            self.taken = 0;
            self.batches.clear();
            self.buffer.clear();
        }
        sent
    }
}

impl Network for Rpc {
    fn call(
        &self,
        to: CoreId,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>> {
        if self.local == Some(to) {
            return self.start_local(service, head, body, timeout);
        }
        let address = self.addresses.borrow().of_core.get(&to).copied();
        match address {
            Some(address) => self.start(address, service, head, body, timeout),
            None => Pending::ready(Err(CallError::NoAddress)),
        }
    }

    fn call_addr(
        &self,
        to: SocketAddr,
        service: Service,
        head: Bytes,
        body: Bytes,
        timeout: Duration,
    ) -> Pending<Result<Response, CallError>> {
        if to == self.address {
            return self.start_local(service, head, body, timeout);
        }
        self.start(SocketAddr::new(to.ip().to_canonical(), to.port()), service, head, body, timeout)
    }

    fn serve(&self, service: Service, handler: Handler) {
        let before = self.handlers.borrow_mut().insert(service, handler);
        drop(before);
    }

    fn local(&self) -> Option<CoreId> {
        self.local
    }

    fn set_addresses(&self, map: &Map) {
        let mut addresses = Addresses::default();
        for node in map.nodes.values() {
            for (core, address) in (0_u8..).zip(&node.cores) {
                let core = CoreId { node: node.id, core };
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                addresses.of_core.insert(core, address);
                addresses.core_at.insert(address, core);
            }
        }
        *self.addresses.borrow_mut() = addresses;
    }

    fn watch_refusals(&self, tell: TellCore) {
        let before = self.refusals.borrow_mut().replace(tell);
        drop(before);
    }

    fn watch_silence(&self, tell: TellCore) {
        let before = self.silence.borrow_mut().replace(tell);
        drop(before);
    }
}

struct RpcPoller {
    rpc: Weak<Rpc>,
    fd: Option<RawFd>,
}

impl Poller for RpcPoller {
    fn poll(&mut self, now: Instant) -> usize {
        self.rpc.upgrade().map_or(0, |rpc| rpc.poll(now))
    }

    fn wait_fd(&self) -> Option<RawFd> {
        self.fd
    }

    fn before_sleep(&mut self) -> Option<Instant> {
        self.rpc.upgrade()?.before_sleep()
    }
}

/// Bodies of whole blocks are aligned, as if they had come over the link.
fn align(body: Bytes) -> Bytes {
    if body.len() >= BLOCK_BYTES { to_aligned(body) } else { body }
}

fn task_name(service: Service) -> &'static str {
    match service {
        Service::Drive => "serve drive",
        Service::Fs => "serve fs",
        Service::Bucket => "serve bucket",
        Service::Manager => "serve manager",
        Service::Map => "serve map",
    }
}
