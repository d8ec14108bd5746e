//! Endpoints against each other, in virtual time, over a network that does everything networks do.

mod faults;
mod hostile;
mod life;

use crate::endpoint::{CallId, Endpoint, Event, RequestId};
use crate::options::EndpointOptions;
use crate::rpc::{CallError, Response};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use weft_reactor::{Instant, Random};
use weft_wire::Service;

/// What the network does to datagrams.
#[derive(Clone, Debug)]
struct Faults {
    loss: f64,
    duplicate: f64,
    corrupt: f64,
    /// Up to so much is added to the latency of each datagram.
    jitter: Duration,
    mtu: usize,
    /// Time that one byte occupies the wire, in picoseconds.
    byte_ps: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { loss: 0.0, duplicate: 0.0, corrupt: 0.0, jitter: Duration::ZERO, mtu: 65_507, byte_ps: 0 }
    }
}

const LATENCY: Duration = Duration::from_micros(25);

struct Datagram {
    from: SocketAddr,
    to: SocketAddr,
    ecn: u8,
    data: Vec<u8>,
}

#[derive(Debug)]
struct Arrived {
    id: RequestId,
    body: Bytes,
}

/// Two endpoints or more, and the network between them.
struct Pair {
    now: Instant,
    random: Random,
    faults: Faults,
    endpoints: BTreeMap<SocketAddr, Endpoint>,
    under_way: BTreeMap<(Instant, u64), Datagram>,
    sent: u64,
    wire_free: Instant,
    /// Requests answer themselves with their own head and body.
    echo: bool,
    requests: Vec<Arrived>,
    abandoned: Vec<RequestId>,
    outcomes: BTreeMap<CallId, Result<Response, CallError>>,
    /// The order in which calls ended.
    ended: Vec<CallId>,
    /// Everything that was sent, if it is to be kept.
    capture: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
}

fn a() -> SocketAddr {
    ([10, 0, 0, 1], 7000).into()
}

fn b() -> SocketAddr {
    ([10, 0, 0, 2], 7000).into()
}

fn endpoint(seed: u8, options: &EndpointOptions) -> Endpoint {
    Endpoint::new(options.clone(), [seed; 16])
}

impl Pair {
    fn new(seed: u64, faults: Faults) -> Self {
        Self::with_options(seed, faults, &EndpointOptions::default())
    }

    fn with_options(seed: u64, faults: Faults, options: &EndpointOptions) -> Self {
        let endpoints = BTreeMap::from([(a(), endpoint(1, options)), (b(), endpoint(2, options))]);
        Self {
            now: Instant(1_000_000_000),
            random: Random::new(seed),
            faults,
            endpoints,
            under_way: BTreeMap::new(),
            sent: 0,
            wire_free: Instant::ZERO,
            echo: true,
            requests: Vec::new(),
            abandoned: Vec::new(),
            outcomes: BTreeMap::new(),
            ended: Vec::new(),
            capture: None,
        }
    }

    fn at(&mut self, address: SocketAddr) -> &mut Endpoint {
        self.endpoints.get_mut(&address).unwrap()
    }

    fn call(&mut self, from: SocketAddr, to: SocketAddr, head: &[u8], body: Bytes) -> CallId {
        let now = self.now;
        self.at(from).call(now, to, Service::Drive, Bytes::copy_from_slice(head), body).unwrap()
    }

    /// Sends what the endpoints have to send.
    fn flush(&mut self) {
        let now = self.now;
        let mut datagrams = Vec::new();
        for (from, endpoint) in &mut self.endpoints {
            let mut out = Vec::new();
            while let Some(transmit) = endpoint.poll_transmit(now, &mut out) {
                assert_eq!(transmit.bytes, out.len());
                assert!(transmit.segment_bytes <= out.len() && out.len() <= 65_507);
                for data in out.chunks(transmit.segment_bytes) {
                    datagrams.push((*from, transmit.to, transmit.ecn, data.to_vec()));
                }
                out.clear();
            }
        }
        for (from, to, ecn, data) in datagrams {
            if let Some(capture) = &mut self.capture {
                capture.push((from, to, data.clone()));
            }
            self.send(from, to, ecn, data);
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, ecn: u8, mut data: Vec<u8>) {
        let wire = Duration::from_nanos(data.len() as u64 * self.faults.byte_ps / 1000);
        self.wire_free = self.wire_free.max(self.now) + wire;
        if data.len() > self.faults.mtu || self.random.chance(self.faults.loss) {
            return;
        }
        if self.random.chance(self.faults.corrupt) {
            let bit = self.random.below(data.len() as u64 * 8) as usize;
            data[bit / 8] ^= 1 << (bit % 8);
        }
        let copies = if self.random.chance(self.faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = Duration::from_nanos(self.random.below(self.faults.jitter.as_nanos() as u64));
            self.sent += 1;
            let datagram = Datagram { from, to, ecn, data: data.clone() };
            self.under_way.insert((self.wire_free + LATENCY + jitter, self.sent), datagram);
        }
    }

    fn take_events(&mut self) {
        let now = self.now;
        for endpoint in self.endpoints.values_mut() {
            while let Some(event) = endpoint.poll_event() {
                match event {
                    Event::Request { id, head, body, .. } => {
                        assert!(body.len() < 4096 || weft_reactor::is_aligned(&body));
                        self.requests.push(Arrived { id, body: body.clone() });
                        if self.echo {
                            endpoint.respond(now, id, Response { head, body });
                        }
                    }
                    Event::Abandoned(id) => self.abandoned.push(id),
                    Event::Outcome { call, outcome } => {
                        self.ended.push(call);
                        assert!(self.outcomes.insert(call, outcome).is_none(), "{call:?} ended twice");
                    }
                }
            }
        }
    }

    /// Lets the next thing happen; false if that is later than `until`.
    fn step(&mut self, until: Instant) -> bool {
        self.take_events();
        self.flush();
        let now = self.now;
        let timer = self.endpoints.values_mut().filter_map(|endpoint| endpoint.next_timeout(now)).min();
        let arrival = self.under_way.first_key_value().map(|((at, _), _)| *at);
        let Some(next) = timer.into_iter().chain(arrival).min().filter(|next| *next <= until) else {
            self.now = self.now.max(until);
            return false;
        };
        self.now = self.now.max(next);
        let now = self.now;
        if arrival == Some(next) {
            if let Some((_, datagram)) = self.under_way.pop_first()
                && let Some(endpoint) = self.endpoints.get_mut(&datagram.to)
            {
                endpoint.handle_datagram(now, datagram.from, datagram.ecn, &datagram.data);
            }
        } else {
            self.endpoints.values_mut().for_each(|endpoint| endpoint.handle_timeout(now));
        }
        self.take_events();
        true
    }

    fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
    }

    /// Runs until so many calls have ended, or a minute has passed.
    fn run_until_ended(&mut self, calls: usize) {
        let until = self.now + Duration::from_secs(60);
        while self.outcomes.len() < calls {
            assert!(self.step(until), "{} of {calls} calls ended", self.outcomes.len());
        }
    }

    fn outcome(&self, call: CallId) -> Result<&Response, CallError> {
        self.outcomes.get(&call).expect("the call has ended").as_ref().map_err(|error| *error)
    }
}

/// A body that differs from any other of another seed.
fn body(seed: u64, len: usize) -> Bytes {
    let mut random = Random::new(seed);
    let mut body = Vec::with_capacity(len + 8);
    while body.len() < len {
        body.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    body.truncate(len);
    body.into()
}
