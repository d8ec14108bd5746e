//! One session: it carries the calls of the one who opened it, and the responses to them.
//!
//! Each direction of calls between two cores has a session of its own, so nobody has to agree on who opens it.
//! Data packets are numbered and never sent twice: what a lost one carried goes out again in a new one. A packet is lost when
//! later ones arrived and a round trip has passed (RFC 9002 and RACK, RFC 8985, in spirit); when nothing arrives at
//! all, the oldest pieces are sent again as a probe, at doubling intervals, until the peer counts as unreachable.

use crate::assembly::{Assembly, Budget, Message, Piece};
use crate::congestion::Congestion;
use crate::endpoint::{CallId, Event, RequestId};
use crate::frame::{self, Ack, FragmentHead, Frame, Frames};
use crate::mtu::Mtu;
use crate::options::{
    ACK_RANGES_MAX, EndpointOptions, LOSS_PACKETS, PACKETS_IN_FLIGHT_MAX, REST_AFTER, TIMER_GRANULARITY,
};
use crate::outbox::Outbox;
use crate::packet::{self, FLAG_ACK_NOW, Kind, OVERHEAD_BYTES, Packet, TAG_BYTES};
use crate::ranges::Ranges;
use crate::role::{Role, Status};
use crate::rpc::{CallError, Response};
use crate::rtt::Rtt;
use crate::sent::{Cargo, Carried, Sent, SentPacket};
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use weft_reactor::Instant;
use weft_wire::Service;

/// The two bits of the IP header: we understand marks of congestion; this packet has met some.
pub const ECN_CAPABLE: u8 = 0b10;
const ECN_MARKED: u8 = 0b11;
/// With so much in flight and nothing behind it that would show a loss, the peer is asked after a round trip or a little more
/// what arrived, unless it has said so by itself.
const TAIL_FROM_BYTES: usize = 32 << 10;

/// What sessions of an endpoint share.
pub struct Shared<'a> {
    pub options: &'a EndpointOptions,
    pub budget: &'a mut Budget,
    pub events: &'a mut VecDeque<Event>,
}

/// What is left of a session after its timers fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Alive,
    /// Nothing was under way; nobody will miss it.
    Expired,
    Unreachable,
}

#[derive(Debug)]
pub struct Session {
    pub peer: SocketAddr,
    /// The session as we number it.
    pub local: u64,
    /// As the peer numbers it; `None` while it is being opened.
    remote: Option<u64>,
    /// The life of the peer's process.
    pub peer_nonce: Option<u64>,
    pub role: Role,
    outbox: Outbox,
    assembly: Assembly,
    sent: Sent,
    rtt: Rtt,
    congestion: Congestion,
    mtu: Mtu,

    received: Ranges<u64>,
    /// Packets below are settled: a late one counts as a duplicate.
    received_below: u64,
    largest_at: Instant,
    /// Packets that wait for an acknowledgement.
    unacknowledged: u32,
    acknowledge_at: Option<Instant>,
    marks_received: u32,
    marks_told: u32,

    loss_at: Option<Instant>,
    /// Packets that may go beyond the congestion window.
    probes: u8,
    probes_unanswered: u32,
    probed_at: Instant,
    /// The newest packet asks to be acknowledged at once.
    is_asking: bool,
    /// The newest packet is the end of much, and doesn't ask: what the peer answers will say that it arrived.
    is_tail: bool,
    /// Sent since the peer was last asked, or has acknowledged so much that nothing older is on its way.
    unasked_bytes: usize,
    unanswered_since: Option<Instant>,
    ping_due: bool,
    /// How long the peer may be silent while calls below `pinged_below` wait; for newer ones it is the shortest time.
    ping_after: Duration,
    pinged_below: u64,
    pub opened_at: Instant,
    heard_at: Instant,
    used_at: Instant,
    /// Holds no more memory than it must.
    is_resting: bool,

    /// The timer that the endpoint holds for this session.
    pub timer: Option<Instant>,
    /// Whether the endpoint has it among those that want to send.
    pub is_ready: bool,
}

impl Session {
    pub fn new(now: Instant, peer: SocketAddr, local: u64, role: Role, options: &EndpointOptions) -> Self {
        Self {
            peer,
            local,
            remote: None,
            peer_nonce: None,
            role,
            outbox: Outbox::default(),
            assembly: Assembly::default(),
            sent: Sent::default(),
            rtt: Rtt::default(),
            congestion: Congestion::new(options),
            mtu: Mtu::new(options.mtu_bytes_max),
            received: Ranges::default(),
            received_below: 0,
            largest_at: now,
            unacknowledged: 0,
            acknowledge_at: None,
            marks_received: 0,
            marks_told: 0,
            loss_at: None,
            probes: 0,
            probes_unanswered: 0,
            probed_at: now,
            is_asking: false,
            is_tail: false,
            unasked_bytes: 0,
            unanswered_since: None,
            ping_due: false,
            ping_after: options.ping_min,
            pinged_below: 0,
            opened_at: now,
            heard_at: now,
            used_at: now,
            is_resting: false,
            timer: None,
            is_ready: false,
        }
    }

    /// The peer's number and life are known: data may flow.
    pub fn establish(&mut self, now: Instant, remote: u64, nonce: u64, window_bytes: usize) {
        self.remote = Some(remote);
        self.peer_nonce = Some(nonce);
        self.heard_at = now;
        self.outbox.set_window(window_bytes);
    }

    /// Length of a full packet.
    pub fn mtu_bytes(&self) -> usize {
        self.mtu.current()
    }

    pub fn is_open(&self) -> bool {
        self.remote.is_some()
    }

    /// Whether a reset that names the peer's session and one of our packets can be an answer to us.
    pub fn believes_reset(&self, remote: u64, number: u64) -> bool {
        self.remote == Some(remote) && self.sent.is_plausible(number)
    }

    pub fn call(
        &mut self,
        now: Instant,
        service: Service,
        head: Bytes,
        body: Bytes,
        options: &EndpointOptions,
    ) -> Result<u64, CallError> {
        let Role::Opener(opener) = &mut self.role else { return Err(CallError::Overloaded) };
        let bytes = head.len() + body.len();
        if opener.calls.len() >= options.calls_max || self.outbox.bytes() + bytes > options.queue_bytes_max {
            return Err(CallError::Overloaded);
        }
        let number = opener.next;
        opener.next += 1;
        opener.calls.insert(number);
        self.outbox.push(number, service as u8, head, body);
        self.used_at = now;
        Ok(number)
    }

    pub fn cancel(&mut self, number: u64, budget: &mut Budget) {
        if let Role::Opener(opener) = &mut self.role
            && opener.calls.remove(&number)
        {
            self.outbox.cancel(number);
            self.assembly.forget(number, budget);
        }
    }

    pub fn respond(&mut self, number: u64, status: Status, head: Bytes, body: Bytes) {
        if let Role::Accepter(accepter) = &mut self.role
            && accepter.running.remove(&number)
        {
            self.outbox.push(number, status as u8, head, body);
        }
    }

    /// Ends the session: the calls that wait fail.
    pub fn close(&mut self, error: CallError, shared: &mut Shared<'_>) {
        self.assembly.clear(shared.budget);
        match &mut self.role {
            Role::Opener(opener) => {
                for number in std::mem::take(&mut opener.calls) {
                    let call = CallId { session: self.local, number };
                    shared.events.push_back(Event::Outcome { call, outcome: Err(error) });
                }
            }
            Role::Accepter(accepter) => {
                for number in std::mem::take(&mut accepter.running) {
                    shared.events.push_back(Event::Abandoned(RequestId { session: self.local, number }));
                }
            }
        }
    }

    pub fn handle_packet(&mut self, now: Instant, ecn: u8, packet: &Packet<'_>, shared: &mut Shared<'_>) {
        let number = packet.number;
        if number < self.received_below || number >= u64::MAX / 2 || self.received.contains(number) {
            return;
        }
        self.heard_at = now;
        self.is_resting = false;
        let mut asks = false;
        for frame in Frames::new(packet.payload) {
            let taken = match frame {
                Ok(Frame::Ack(ack)) => self.on_ack(now, &ack, shared.options),
                Ok(Frame::Fragment(head, data)) => {
                    asks = true;
                    self.on_fragment(now, &head, data, shared)
                }
                Ok(Frame::Cancel(number)) => {
                    asks = true;
                    self.on_cancel(number, shared)
                }
                Ok(Frame::Ping) => {
                    asks = true;
                    true
                }
                Err(_) => false,
            };
            if !taken {
                // As if it had never arrived: without an acknowledgement it comes again, slower.
                return;
            }
        }
        if ecn == ECN_MARKED {
            self.marks_received = self.marks_received.wrapping_add(1);
        }
        self.on_received(now, number, asks, packet.ack_now, shared.options);
    }

    fn on_received(&mut self, now: Instant, number: u64, asks: bool, at_once: bool, options: &EndpointOptions) {
        let expected = self.received.iter().next_back().map_or(self.received_below, |(_, end)| end);
        self.received.insert(number, number + 1);
        if number >= expected {
            self.largest_at = now;
        }
        if self.received.len() > ACK_RANGES_MAX {
            self.received.remove_first();
            self.received_below = self.received.iter().next().map_or(self.received_below, |(start, _)| start);
        }
        if !asks {
            return;
        }
        self.unacknowledged += 1;
        if at_once || number != expected || self.unacknowledged >= options.ack_packets {
            self.acknowledge_at = Some(now);
        } else if self.acknowledge_at.is_none() {
            self.acknowledge_at = Some(now + options.ack_delay);
        }
    }

    fn on_ack(&mut self, now: Instant, ack: &Ack<'_>, options: &EndpointOptions) -> bool {
        let Self { sent, outbox, mtu, congestion, rtt, .. } = self;
        let in_flight = sent.bytes_in_flight();
        let mut newest_sent = None;
        let mut measured = None;
        for (low, high) in ack.ranges() {
            let known = sent.arrived(low, high, &mut |packet: SentPacket| {
                newest_sent = newest_sent.max(Some(packet.at));
                if packet.number == ack.largest {
                    measured = Some(now.since(packet.at));
                }
                congestion.on_arrived(packet.bytes, packet.at, in_flight, mtu.current());
                if packet.cargo.is_mtu_probe() {
                    mtu.on_probe_arrived(packet.bytes);
                } else {
                    mtu.on_arrived(packet.bytes);
                }
                for carried in packet.cargo.iter() {
                    outbox.on_arrived(carried);
                }
            });
            if known.is_none() {
                return false;
            }
        }
        let Some(newest_sent) = newest_sent else { return true };
        if let Some(measured) = measured {
            // The peer may hold an acknowledgement back, but not longer than agreed.
            let held = Duration::from_micros(u64::from(ack.delay_us)).min(options.ack_delay);
            rtt.sample(measured, held);
        }
        if ack.congestion_marks != self.marks_told {
            self.marks_told = ack.congestion_marks;
            congestion.on_congestion(newest_sent, now);
        }
        self.probes = 0;
        self.probes_unanswered = 0;
        self.unasked_bytes = self.unasked_bytes.min(self.sent.bytes_in_flight());
        self.unanswered_since = if self.sent.is_empty() { None } else { Some(now) };
        self.detect_lost(now);
        true
    }

    fn detect_lost(&mut self, now: Instant) {
        let Self { sent, outbox, mtu, congestion, rtt, .. } = self;
        let Some(round_trip) = rtt.recent() else { return };
        let late = round_trip * 5 / 4 + TIMER_GRANULARITY;
        self.loss_at = sent.detect_lost(now, LOSS_PACKETS, round_trip, late, &mut |packet| {
            if packet.cargo.is_mtu_probe() {
                mtu.on_probe_lost(packet.bytes, now);
                return;
            }
            congestion.on_congestion(packet.at, now);
            mtu.on_lost(packet.bytes, now);
            packet.cargo.iter().for_each(|carried| outbox.on_lost(carried));
        });
    }

    /// Returns whether the piece was taken, or is not needed.
    fn on_fragment(&mut self, now: Instant, fragment: &FragmentHead, data: &[u8], shared: &mut Shared<'_>) -> bool {
        let number = fragment.number;
        let is_wanted = match &self.role {
            Role::Opener(opener) => opener.calls.contains(&number),
            Role::Accepter(accepter) if !accepter.is_in_window(number) => return false,
            Role::Accepter(accepter) => !accepter.is_settled(number),
        };
        if !is_wanted {
            return true;
        }
        self.used_at = now;
        match self.assembly.add(fragment, data, shared.options.window_bytes, shared.budget) {
            Piece::Stored => true,
            Piece::NoRoom | Piece::Wrong => false,
            Piece::Completed(message) => {
                self.on_message(number, message, shared);
                true
            }
        }
    }

    fn on_message(&mut self, number: u64, message: Message, shared: &mut Shared<'_>) {
        match &mut self.role {
            Role::Opener(opener) => {
                opener.calls.remove(&number);
                // Who answers has the whole request, whatever acknowledgements got lost.
                self.outbox.drop_message(number);
                let outcome = match message.meta {
                    meta if meta == Status::Done as u8 => Ok(Response { head: message.head, body: message.body }),
                    meta if meta == Status::NoService as u8 => Err(CallError::NoService),
                    meta if meta == Status::TooLarge as u8 => Err(CallError::TooLarge),
                    _ => Err(CallError::Overloaded),
                };
                let call = CallId { session: self.local, number };
                shared.events.push_back(Event::Outcome { call, outcome });
            }
            Role::Accepter(accepter) => {
                accepter.settle(number);
                let refusal = match Service::from_u8(message.meta) {
                    None => Status::NoService,
                    Some(_) if accepter.running.len() >= shared.options.requests_per_peer_max => Status::Overloaded,
                    Some(service) => {
                        accepter.running.insert(number);
                        shared.events.push_back(Event::Request {
                            id: RequestId { session: self.local, number },
                            from: self.peer,
                            service,
                            head: message.head,
                            body: message.body,
                        });
                        return;
                    }
                };
                self.outbox.push(number, refusal as u8, Bytes::new(), Bytes::new());
            }
        }
    }

    fn on_cancel(&mut self, number: u64, shared: &mut Shared<'_>) -> bool {
        let Role::Accepter(accepter) = &mut self.role else { return true };
        if !accepter.is_in_window(number) {
            return false;
        }
        accepter.settle(number);
        if accepter.running.remove(&number) {
            shared.events.push_back(Event::Abandoned(RequestId { session: self.local, number }));
        }
        self.assembly.forget(number, shared.budget);
        self.outbox.drop_message(number);
        true
    }

    fn may_send(&self) -> bool {
        if self.sent.len() >= PACKETS_IN_FLIGHT_MAX {
            return false;
        }
        let bytes = self.sent.bytes_in_flight();
        self.probes > 0 || bytes == 0 || bytes + self.mtu.current() <= self.congestion.window()
    }

    /// Whether something waits to be sent, apart from acknowledgements.
    fn has_data(&self) -> bool {
        self.outbox.has_more() || self.ping_due
    }

    /// Whether [`Self::build`] would build something.
    pub fn wants_to_send(&mut self, now: Instant) -> bool {
        self.outbox.prune();
        self.is_open() && ((self.has_data() && self.may_send()) || self.acknowledge_at.is_some_and(|at| at <= now))
    }

    /// Appends the next packet to `out`; returns how long it is. Packets of one segmented send have one length, so only
    /// the first may be a probe, which is longer than the others.
    pub fn build(&mut self, now: Instant, out: &mut Vec<u8>, is_first: bool) -> Option<usize> {
        let remote = self.remote?;
        if !self.wants_to_send(now) {
            return None;
        }
        let with_data = self.has_data() && self.may_send();
        if with_data
            && is_first
            && let Some(size) = self.mtu.probe_due(now)
        {
            return Some(self.build_mtu_probe(now, out, remote, size));
        }
        let start = out.len();
        let number = self.sent.number();
        let flag_at = start + packet::FLAGS_OFFSET;
        packet::begin(out, Kind::Data, 0, remote, number);
        if self.unacknowledged > 0 {
            let held = u32::try_from(now.since(self.largest_at).as_micros()).unwrap_or(u32::MAX);
            frame::put_ack(out, &self.received, held, self.marks_received);
            self.unacknowledged = 0;
        }
        self.acknowledge_at = None;
        if with_data {
            let mut cargo = Cargo::default();
            let end = start + self.mtu.current() - TAG_BYTES;
            let mut at_once = self.probes > 0 || self.ping_due;
            let empty = out.len();
            if std::mem::take(&mut self.ping_due) {
                frame::put_ping(out);
            }
            self.outbox.fill(out, end, &mut cargo);
            debug_assert!(out.len() > empty, "a packet without anything to acknowledge would never be");
            if self.outbox.has_more() {
                // Full length, so that the next one may follow in the same send.
                frame::put_padding(out, end.saturating_sub(out.len()));
            }
            self.probes = self.probes.saturating_sub(1);
            self.record(now, number, out.len() - start + TAG_BYTES, cargo);
            // Twice in a window, so that acknowledgements of one half let the next go while the other is under way.
            at_once |=
                self.outbox.has_more() && (self.unasked_bytes * 2 >= self.congestion.window() || !self.may_send());
            self.unasked_bytes = if at_once { 0 } else { self.unasked_bytes };
            self.is_asking = at_once;
            self.is_tail = !at_once && !self.outbox.has_more() && self.sent.bytes_in_flight() >= TAIL_FROM_BYTES;
            if at_once && let Some(flags) = out.get_mut(flag_at) {
                *flags |= FLAG_ACK_NOW;
            }
        }
        packet::seal(out, start);
        Some(out.len() - start)
    }

    fn build_mtu_probe(&mut self, now: Instant, out: &mut Vec<u8>, remote: u64, size: usize) -> usize {
        let start = out.len();
        let number = self.sent.number();
        packet::begin(out, Kind::Data, FLAG_ACK_NOW, remote, number);
        frame::put_ping(out);
        frame::put_padding(out, size - OVERHEAD_BYTES - 1);
        packet::seal(out, start);
        let mut cargo = Cargo::default();
        cargo.push(Carried::MtuProbe);
        self.mtu.on_probe_sent(size);
        self.is_asking = true;
        self.record(now, number, size, cargo);
        size
    }

    fn record(&mut self, now: Instant, number: u64, bytes: usize, cargo: Cargo) {
        self.unanswered_since.get_or_insert(now);
        self.is_resting = false;
        self.used_at = now;
        self.unasked_bytes += bytes;
        self.sent.record(SentPacket { number, at: now, bytes, cargo });
    }

    /// When something unanswered is sent again.
    fn probe_at(&self, options: &EndpointOptions) -> Option<Instant> {
        let last = self.sent.last_at()?.max(self.probed_at);
        let after =
            self.rtt.probe_after(self.is_asking || self.is_tail, options) * (1 << self.probes_unanswered.min(10));
        Some(last + after.min(options.probe_max))
    }

    /// When to ask whether the peer still lives. A call that waits for long has others beside it that come and go: they
    /// don't begin its questions anew.
    fn ping_at(&self, options: &EndpointOptions) -> Option<Instant> {
        let newest = *self.newest_call()?;
        if !self.sent.is_empty() || self.has_data() {
            return None;
        }
        let after = if newest < self.pinged_below { self.ping_after } else { options.ping_min };
        Some(self.heard_at.max(self.used_at) + after)
    }

    /// The newest call without a response.
    fn newest_call(&self) -> Option<&u64> {
        match &self.role {
            Role::Opener(opener) => opener.calls.last(),
            Role::Accepter(_) => None,
        }
    }

    fn idle_at(&self, options: &EndpointOptions) -> Instant {
        match &self.role {
            Role::Opener(opener) if opener.calls.is_empty() => self.used_at + options.idle,
            Role::Opener(_) => Instant::FAR_FUTURE,
            Role::Accepter(_) => self.heard_at + options.idle * 2,
        }
    }

    /// When to free what only traffic needs.
    fn rest_at(&self) -> Option<Instant> {
        let rests = self.is_resting || !self.sent.is_empty() || self.has_data();
        (!rests).then(|| self.heard_at.max(self.used_at) + REST_AFTER)
    }

    /// When [`Self::handle_timeout`] has something to do, or an acknowledgement becomes due.
    pub fn next_timeout(&self, now: Instant, options: &EndpointOptions) -> Instant {
        let acknowledge = self.acknowledge_at.filter(|at| *at > now);
        [acknowledge, self.loss_at, self.probe_at(options), self.ping_at(options), self.rest_at()]
            .into_iter()
            .flatten()
            .fold(self.idle_at(options), Instant::min)
    }

    pub fn handle_timeout(&mut self, now: Instant, options: &EndpointOptions) -> Life {
        if self.loss_at.is_some_and(|at| at <= now) {
            self.loss_at = None;
            self.detect_lost(now);
        }
        if self.probe_at(options).is_some_and(|at| at <= now) {
            let silent = self.unanswered_since.map_or(Duration::ZERO, |since| now.since(since));
            if silent >= options.give_up && self.probes_unanswered >= 3 {
                return Life::Unreachable;
            }
            match std::mem::take(&mut self.is_tail) {
                true => self.ask(now),
                false => self.probe(now),
            }
        }
        if self.ping_at(options).is_some_and(|at| at <= now)
            && let Some(newest) = self.newest_call().copied()
        {
            self.ping_due = true;
            let last = if newest < self.pinged_below { self.ping_after } else { options.ping_min };
            self.ping_after = (last * 2).min(options.ping_max);
            self.pinged_below = newest + 1;
        }
        if self.rest_at().is_some_and(|at| at <= now) {
            self.is_resting = true;
            self.sent.shrink();
            self.outbox.shrink();
        }
        if self.idle_at(options) <= now { Life::Expired } else { Life::Alive }
    }

    /// Asks what arrived, past the congestion window. If the end of it didn't, the answer shows that it was overtaken.
    fn ask(&mut self, now: Instant) {
        self.probes = 1;
        self.probed_at = now;
        self.ping_due = true;
    }

    /// Sends the oldest unanswered things again, past the congestion window.
    fn probe(&mut self, now: Instant) {
        self.probes = 2;
        self.probes_unanswered += 1;
        self.probed_at = now;
        for _ in 0..self.probes {
            let Some(packet) = self.sent.take_oldest() else { break };
            if packet.cargo.is_mtu_probe() {
                self.mtu.on_probe_lost(packet.bytes, now);
            } else {
                self.mtu.on_lost(packet.bytes, now);
            }
            packet.cargo.iter().for_each(|carried| self.outbox.on_lost(carried));
        }
        if !self.outbox.has_more() {
            self.ping_due = true;
        }
    }
}
