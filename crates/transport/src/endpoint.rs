//! All sessions of one core: a state machine without sockets or clock.
//!
//! Datagrams and the time go in; datagrams and events come out. Nobody gets memory here before a cookie has shown that it
//! hears what is sent to its address. A peer that restarted doesn't know our session and says so at once
//! ([`Kind::Reset`]), or opens a session itself under another nonce: either ends what was under way.

use crate::assembly::Budget;
use crate::cookie::Secret;
use crate::options::{
    BATCH_BYTES_MAX, BATCH_SEGMENTS_MAX, BATCHES_PER_TURN, CONTROL_QUEUE_MAX, EndpointOptions, RESETS_PER_SECOND,
};
use crate::packet::{self, Accept, Hello, Kind, Packet, REFUSE_FULL, REFUSE_VERSION, Refuse, Retry};
use crate::role::{Accepter, Opener, Role, Status};
use crate::rpc::{CallError, Response, fits};
use crate::session::{ECN_CAPABLE, Life, Session, Shared};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use weft_reactor::Instant;
use weft_wire::{PROTOCOL_VERSION, Service};
use zerocopy::FromBytes;

/// Timers that are moved before one sleep.
const TIMERS_MOVED_MAX: usize = 16;

/// A call of ours. Unique in the life of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    pub(crate) session: u64,
    pub(crate) number: u64,
}

/// A request of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId {
    pub(crate) session: u64,
    pub(crate) number: u64,
}

#[derive(Debug)]
pub enum Event {
    /// A whole request arrived; answer it with [`Endpoint::respond`].
    Request { id: RequestId, from: SocketAddr, service: Service, head: Bytes, body: Bytes },
    /// Nobody waits for the response to this request any more.
    Abandoned(RequestId),
    /// A call ended.
    Outcome { call: CallId, outcome: Result<Response, CallError> },
}

/// Datagrams to one place, as long as each other but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub to: SocketAddr,
    pub ecn: u8,
    /// Length of all datagrams together.
    pub bytes: usize,
    pub segment_bytes: usize,
}

/// What an endpoint saw since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub datagrams_in: u64,
    /// Not ours, damaged, or for a session that doesn't match the sender.
    pub datagrams_dropped: u64,
    pub datagrams_out: u64,
    pub sessions_opened: u64,
    pub sessions_accepted: u64,
    pub sessions_lost: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    opened: Option<u32>,
    accepted: Option<u32>,
}

/// A session of ours that doesn't stand yet.
#[derive(Debug)]
struct Opening {
    hello: Hello,
    since: Instant,
    tries: u32,
    next: Instant,
}

#[derive(Debug)]
struct Slot {
    session: Session,
    opening: Option<Opening>,
    /// Batches sent in this turn.
    turns: usize,
}

pub struct Endpoint {
    options: EndpointOptions,
    secret: Secret,
    /// Names the life of this process to others.
    nonce: u64,
    slots: Vec<Option<Box<Slot>>>,
    free: Vec<u32>,
    peers: BTreeMap<SocketAddr, Peer>,
    /// Sessions with something to send, in turn.
    ready: VecDeque<u32>,
    timers: BTreeSet<(Instant, u32)>,
    control: VecDeque<(SocketAddr, Bytes)>,
    budget: Budget,
    events: VecDeque<Event>,
    /// Peers that were waited for in vain, since the last look.
    given_up: BTreeSet<SocketAddr>,
    resets: (Instant, u32),
    sessions_made: u64,
    stats: Stats,
}

impl Endpoint {
    /// `secret` must be new in each life of the process and unknown to others.
    pub fn new(options: EndpointOptions, secret: [u8; 16]) -> Self {
        let secret = Secret::new(secret);
        Self {
            nonce: secret.number(1, 0),
            secret,
            slots: Vec::new(),
            free: Vec::new(),
            peers: BTreeMap::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            control: VecDeque::new(),
            budget: Budget::new(options.assembly_bytes_max),
            events: VecDeque::new(),
            given_up: BTreeSet::new(),
            resets: (Instant::ZERO, 0),
            sessions_made: 0,
            stats: Stats::default(),
            options,
        }
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Sessions of both kinds.
    pub fn session_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes held in incomplete messages.
    pub fn assembly_bytes(&self) -> usize {
        self.options.assembly_bytes_max - self.budget.bytes_left
    }

    /// Starts a call. Its outcome comes as an [`Event::Outcome`].
    pub fn call(
        &mut self,
        now: Instant,
        to: SocketAddr,
        service: Service,
        head: Bytes,
        body: Bytes,
    ) -> Result<CallId, CallError> {
        if !fits(&head, &body) {
            return Err(CallError::TooLarge);
        }
        let index = match self.peers.get(&to).and_then(|peer| peer.opened) {
            Some(index) => index,
            None => self.open(now, to)?,
        };
        let Some(slot) = self.slots.get_mut(index as usize).and_then(Option::as_mut) else {
            return Err(CallError::Overloaded);
        };
        let number = slot.session.call(now, service, head, body, &self.options)?;
        let call = CallId { session: slot.session.local, number };
        self.touch(now, index);
        Ok(call)
    }

    /// Takes a call back. No outcome follows.
    pub fn cancel(&mut self, now: Instant, call: CallId) {
        if let Some(index) = self.index_of(call.session) {
            if let Some(Some(slot)) = self.slots.get_mut(index as usize) {
                slot.session.cancel(call.number, &mut self.budget);
            }
            self.touch(now, index);
        }
    }

    /// Answers a request; does nothing if its session is gone or its caller gave up.
    pub fn respond(&mut self, now: Instant, request: RequestId, response: Response) {
        if fits(&response.head, &response.body) {
            self.answer(now, request, Status::Done, response);
        } else {
            self.answer(now, request, Status::TooLarge, Response::default());
        }
    }

    /// Sends a request back that no handler will run.
    pub fn refuse(&mut self, now: Instant, request: RequestId, reason: Refusal) {
        let status = match reason {
            Refusal::Overloaded => Status::Overloaded,
            Refusal::NoService => Status::NoService,
        };
        self.answer(now, request, status, Response::default());
    }

    fn answer(&mut self, now: Instant, request: RequestId, status: Status, response: Response) {
        if let Some(index) = self.index_of(request.session) {
            if let Some(Some(slot)) = self.slots.get_mut(index as usize) {
                slot.session.respond(request.number, status, response.head, response.body);
            }
            self.touch(now, index);
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Something arrived at `from`'s word.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, ecn: u8, data: &[u8]) {
        self.stats.datagrams_in += 1;
        let taken = packet::parse(data).and_then(|packet| match packet.kind {
            Kind::Data => self.on_data(now, from, ecn, &packet),
            Kind::Hello => self.on_hello(now, from, &packet),
            Kind::Retry => self.on_retry(now, from, &packet),
            Kind::Accept => self.on_accept(now, from, &packet),
            Kind::Refuse => self.on_refuse(now, from, &packet),
            Kind::Reset => self.on_reset(now, from, &packet),
        });
        if taken.is_none() {
            self.stats.datagrams_dropped += 1;
        }
    }

    /// The network says that nobody listens at `address`.
    pub fn handle_unreachable(&mut self, now: Instant, address: SocketAddr) {
        let Some(peer) = self.peers.get(&address).copied() else { return };
        for index in [peer.opened, peer.accepted].into_iter().flatten() {
            self.close(now, index, CallError::Unreachable);
        }
    }

    /// Peers that gave no answer for so long that they were given up since the last look.
    pub fn take_given_up(&mut self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut self.given_up)
    }

    /// When to call [`Self::handle_timeout`] at the latest. To be asked before falling asleep: timers that would fire for
    /// nothing are moved here, so that they wake nobody.
    pub fn next_timeout(&mut self, now: Instant) -> Option<Instant> {
        for _ in 0..TIMERS_MOVED_MAX {
            let (at, index) = *self.timers.first()?;
            let slot = self.slots.get_mut(index as usize).and_then(Option::as_mut);
            let Some(slot) = slot.filter(|slot| slot.opening.is_none() && at > now) else { return Some(at) };
            let next = slot.session.next_timeout(now, &self.options);
            if next <= at {
                return Some(at);
            }
            slot.session.timer = Some(next);
            self.timers.remove(&(at, index));
            self.timers.insert((next, index));
        }
        self.timers.first().map(|(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, index)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(Some(slot)) = self.slots.get_mut(index as usize) else { continue };
            slot.session.timer = None;
            let peer = slot.session.peer;
            let life = match &mut slot.opening {
                None => slot.session.handle_timeout(now, &self.options),
                Some(opening) if opening.next > now => Life::Alive,
                Some(opening) if now.since(opening.since) >= self.options.give_up => Life::Unreachable,
                Some(opening) => {
                    opening.tries += 1;
                    opening.next = now + hello_after(&self.options, opening.tries);
                    // A cookie that has aged, or is another process's, is answered by a new one.
                    let hello = packet::whole(Kind::Hello, 0, u64::from(opening.tries), &opening.hello);
                    self.push_control(peer, hello);
                    Life::Alive
                }
            };
            match life {
                Life::Alive => self.touch(now, index),
                Life::Expired => self.close(now, index, CallError::SessionLost),
                Life::Unreachable => {
                    self.given_up.insert(peer);
                    self.close(now, index, CallError::Unreachable);
                }
            }
        }
    }

    /// Appends datagrams to one place to `out`, as many as fit one segmented send.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<Transmit> {
        if let Some((to, datagram)) = self.control.pop_front() {
            out.extend_from_slice(&datagram);
            self.stats.datagrams_out += 1;
            return Some(Transmit { to, ecn: 0, bytes: datagram.len(), segment_bytes: datagram.len() });
        }
        while let Some(index) = self.ready.front().copied() {
            let Some(Some(slot)) = self.slots.get_mut(index as usize) else {
                self.ready.pop_front();
                continue;
            };
            let session = &mut slot.session;
            let start = out.len();
            let mut segment_bytes = 0;
            let mut segments = 0;
            while let Some(bytes) = session.build(now, out, segments == 0) {
                segments += 1;
                if segments == 1 {
                    segment_bytes = bytes;
                }
                let all = out.len() - start;
                let is_full = segments >= BATCH_SEGMENTS_MAX || all + segment_bytes > BATCH_BYTES_MAX;
                // A shorter one can only be the last. A probe of the path, longer than usual, goes alone.
                if bytes < segment_bytes || bytes != session.mtu_bytes() || is_full {
                    break;
                }
            }
            let to = session.peer;
            slot.turns += 1;
            if segments == 0 || slot.turns >= BATCHES_PER_TURN || !session.wants_to_send(now) {
                slot.turns = 0;
                self.ready.pop_front();
                session.is_ready = false;
                self.touch(now, index);
            }
            if segments > 0 {
                self.stats.datagrams_out += segments as u64;
                return Some(Transmit { to, ecn: ECN_CAPABLE, bytes: out.len() - start, segment_bytes });
            }
        }
        None
    }

    fn index_of(&self, session: u64) -> Option<u32> {
        let index = session as u32;
        let slot = self.slots.get(index as usize)?.as_ref()?;
        (slot.session.local == session).then_some(index)
    }

    /// Takes a free slot and a number for a session, if there may be another one.
    fn reserve(&mut self) -> Option<(u32, u64)> {
        if self.session_count() >= self.options.sessions_max {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.sessions_made += 1;
        // Half a slot, half a secret: found at once, and not to be guessed.
        Some((index, self.secret.number(2, self.sessions_made) << 32 | u64::from(index)))
    }

    fn open(&mut self, now: Instant, to: SocketAddr) -> Result<u32, CallError> {
        let (index, local) = self.reserve().ok_or(CallError::Overloaded)?;
        let session = Session::new(now, to, local, Role::Opener(Opener::default()), &self.options);
        let hello = Hello {
            protocol: PROTOCOL_VERSION.into(),
            reserved: 0.into(),
            window_bytes: window(&self.options).into(),
            nonce: self.nonce.into(),
            session: local.into(),
            order: self.sessions_made.into(),
            cookie: [0; 16],
        };
        let opening = Opening { hello, since: now, tries: 0, next: now + hello_after(&self.options, 0) };
        self.push_control(to, packet::whole(Kind::Hello, 0, 0, &hello));
        self.insert(index, Slot { session, opening: Some(opening), turns: 0 });
        self.peers.entry(to).or_default().opened = Some(index);
        self.stats.sessions_opened += 1;
        Ok(index)
    }

    fn insert(&mut self, index: u32, slot: Slot) {
        if let Some(place) = self.slots.get_mut(index as usize) {
            *place = Some(Box::new(slot));
        }
    }

    /// Removes a session; its calls fail with `error`.
    fn close(&mut self, now: Instant, index: u32, error: CallError) {
        let Some(mut slot) = self.slots.get_mut(index as usize).and_then(Option::take) else { return };
        let session = &mut slot.session;
        tracing::debug!(peer = %session.peer, ?error, open_ms = now.since(session.opened_at).as_millis() as u64, "session ends");
        if let Some(timer) = session.timer {
            self.timers.remove(&(timer, index));
        }
        if session.is_ready {
            self.ready.retain(|ready| *ready != index);
        }
        if let Some(peer) = self.peers.get_mut(&session.peer) {
            peer.opened = peer.opened.filter(|opened| *opened != index);
            peer.accepted = peer.accepted.filter(|accepted| *accepted != index);
            if peer.opened.is_none() && peer.accepted.is_none() {
                self.peers.remove(&session.peer);
            }
        }
        session
            .close(error, &mut Shared { options: &self.options, budget: &mut self.budget, events: &mut self.events });
        self.free.push(index);
        self.stats.sessions_lost += 1;
    }

    /// Brings a session's place among timers and senders up to date.
    fn touch(&mut self, now: Instant, index: u32) {
        let Some(Some(slot)) = self.slots.get_mut(index as usize) else { return };
        let session = &mut slot.session;
        if !session.is_ready && session.wants_to_send(now) {
            session.is_ready = true;
            self.ready.push_back(index);
        }
        let next = match &slot.opening {
            Some(opening) => opening.next,
            None => session.next_timeout(now, &self.options),
        };
        // One that is too early stays where it is until there is time to sleep: cheaper than moving it with each packet.
        if session.timer.is_none_or(|timer| next < timer) {
            if let Some(timer) = session.timer.replace(next) {
                self.timers.remove(&(timer, index));
            }
            self.timers.insert((next, index));
        }
    }

    fn push_control(&mut self, to: SocketAddr, datagram: Bytes) {
        if self.control.len() < CONTROL_QUEUE_MAX {
            self.control.push_back((to, datagram));
        }
    }

    fn on_data(&mut self, now: Instant, from: SocketAddr, ecn: u8, packet: &Packet<'_>) -> Option<()> {
        let Some(index) = self.index_of(packet.session) else {
            self.reset(now, from, packet);
            return None;
        };
        let slot = self.slots.get_mut(index as usize)?.as_mut()?;
        if slot.session.peer != from || !slot.session.is_open() {
            return None;
        }
        let mut shared = Shared { options: &self.options, budget: &mut self.budget, events: &mut self.events };
        slot.session.handle_packet(now, ecn, packet, &mut shared);
        self.touch(now, index);
        Some(())
    }

    /// Tells a sender that its session is unknown. Shorter than what provoked it, and never provoked by another reset.
    fn reset(&mut self, now: Instant, to: SocketAddr, packet: &Packet<'_>) {
        if now.since(self.resets.0) >= Duration::from_secs(1) {
            self.resets = (now, 0);
        }
        if self.resets.1 < RESETS_PER_SECOND && !packet.payload.is_empty() {
            self.resets.1 += 1;
            self.push_control(to, packet::whole(Kind::Reset, packet.session, packet.number, &()));
        }
    }

    fn on_reset(&mut self, now: Instant, from: SocketAddr, packet: &Packet<'_>) -> Option<()> {
        let peer = self.peers.get(&from).copied()?;
        let meant = [peer.opened, peer.accepted].into_iter().flatten().find(|index| {
            let slot = self.slots.get(*index as usize).and_then(Option::as_ref);
            slot.is_some_and(|slot| slot.session.believes_reset(packet.session, packet.number))
        });
        self.close(now, meant?, CallError::SessionLost);
        Some(())
    }

    fn on_hello(&mut self, now: Instant, from: SocketAddr, packet: &Packet<'_>) -> Option<()> {
        let (hello, _) = Hello::read_from_prefix(packet.payload).ok()?;
        let to = hello.session.get();
        if !hello.speaks_our_version() {
            self.push_control(from, packet::whole(Kind::Refuse, to, 0, &refuse(REFUSE_VERSION, &hello)));
            return Some(());
        }
        if !self.secret.accepts(now, from, &hello) {
            let retry = Retry { cookie: self.secret.cookie(now, from, &hello), echo: hello.nonce };
            self.push_control(from, packet::whole(Kind::Retry, to, 0, &retry));
            return Some(());
        }
        let (nonce, order) = (hello.nonce.get(), hello.order.get());
        let peer = self.peers.get(&from).copied().unwrap_or_default();
        if let Some(slot) = peer.accepted.and_then(|index| self.slots.get(index as usize)?.as_ref()) {
            let known = match &slot.session.role {
                Role::Accepter(accepter) if slot.session.peer_nonce == Some(nonce) => Some(accepter.order),
                _ => None,
            };
            let local = slot.session.local;
            match known {
                Some(known) if known == order => {
                    self.push_accept(from, &hello, local);
                    return Some(());
                }
                // An old one that was long under way.
                Some(known) if known > order => return None,
                _ => {}
            }
        }
        if let Some(index) = peer.accepted {
            self.close(now, index, CallError::SessionLost);
        }
        let has_restarted = |index: &u32| {
            let slot = self.slots.get(*index as usize).and_then(Option::as_ref);
            slot.and_then(|slot| slot.session.peer_nonce).is_some_and(|known| known != nonce)
        };
        if let Some(index) = peer.opened.filter(has_restarted) {
            self.close(now, index, CallError::SessionLost);
        }
        let Some((index, local)) = self.reserve() else {
            self.push_control(from, packet::whole(Kind::Refuse, to, 0, &refuse(REFUSE_FULL, &hello)));
            return Some(());
        };
        let mut session = Session::new(now, from, local, Role::Accepter(Accepter::new(order)), &self.options);
        session.establish(now, to, nonce, hello.window_bytes.get() as usize);
        self.insert(index, Slot { session, opening: None, turns: 0 });
        self.peers.entry(from).or_default().accepted = Some(index);
        self.stats.sessions_accepted += 1;
        self.push_accept(from, &hello, local);
        self.touch(now, index);
        Some(())
    }

    fn push_accept(&mut self, to: SocketAddr, hello: &Hello, local: u64) {
        let accept = Accept {
            window_bytes: window(&self.options).into(),
            reserved: 0.into(),
            nonce: self.nonce.into(),
            session: local.into(),
            echo: hello.nonce,
        };
        self.push_control(to, packet::whole(Kind::Accept, hello.session.get(), 0, &accept));
    }

    /// The session that is being opened and to which an answer to our hello belongs.
    fn opening(&mut self, from: SocketAddr, session: u64, echo: u64) -> Option<(u32, &mut Slot)> {
        let index = self.index_of(session)?;
        let slot = self.slots.get_mut(index as usize)?.as_mut()?;
        let is_ours = slot.session.peer == from && slot.opening.is_some() && echo == self.nonce;
        is_ours.then_some((index, &mut **slot))
    }

    fn on_retry(&mut self, now: Instant, from: SocketAddr, packet: &Packet<'_>) -> Option<()> {
        let (retry, _) = Retry::read_from_prefix(packet.payload).ok()?;
        let (index, slot) = self.opening(from, packet.session, retry.echo.get())?;
        let opening = slot.opening.as_mut()?;
        if opening.hello.cookie == retry.cookie {
            return None;
        }
        opening.hello.cookie = retry.cookie;
        let hello = packet::whole(Kind::Hello, 0, u64::from(opening.tries), &opening.hello);
        self.push_control(from, hello);
        self.touch(now, index);
        Some(())
    }

    fn on_accept(&mut self, now: Instant, from: SocketAddr, packet: &Packet<'_>) -> Option<()> {
        let (accept, _) = Accept::read_from_prefix(packet.payload).ok()?;
        let (index, slot) = self.opening(from, packet.session, accept.echo.get())?;
        slot.opening = None;
        let window = accept.window_bytes.get() as usize;
        slot.session.establish(now, accept.session.get(), accept.nonce.get(), window);
        self.touch(now, index);
        Some(())
    }

    fn on_refuse(&mut self, now: Instant, from: SocketAddr, packet: &Packet<'_>) -> Option<()> {
        let (refuse, _) = Refuse::read_from_prefix(packet.payload).ok()?;
        let (index, _) = self.opening(from, packet.session, refuse.echo.get())?;
        let error = match refuse.reason.get() {
            REFUSE_VERSION => {
                tracing::warn!(peer = %from, theirs = refuse.protocol.get(), ours = PROTOCOL_VERSION, "the peer speaks another version of the protocol");
                CallError::VersionMismatch
            }
            _ => CallError::Overloaded,
        };
        self.close(now, index, error);
        Some(())
    }
}

/// Why a request was sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Overloaded,
    NoService,
}

fn hello_after(options: &EndpointOptions, tries: u32) -> Duration {
    (options.probe_initial * (1 << tries.min(10))).min(options.probe_max / 4)
}

fn refuse(reason: u16, hello: &Hello) -> Refuse {
    Refuse { protocol: PROTOCOL_VERSION.into(), reason: reason.into(), echo: hello.nonce }
}

fn window(options: &EndpointOptions) -> u32 {
    u32::try_from(options.window_bytes).unwrap_or(u32::MAX)
}
