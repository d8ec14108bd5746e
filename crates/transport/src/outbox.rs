//! Messages to send, cut into pieces. A large one never holds up a small one: small ones go first, three in four times.
//! Large ones take turns of many packets, so that they are done one after the other and not all at the end.
//!
//! A message is *started* when its first piece goes out and ends when all of it arrived. The peer grants a window of bytes
//! in started messages; the last part of the window is kept for small messages.

use crate::frame::{self, FRAGMENT_BYTES, FragmentHead};
use crate::options::{REQUEST_WINDOW, SMALL_MESSAGE_BYTES, SMALL_RESERVE_BYTES};
use crate::sent::{Cargo, Carried};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// A rest of a packet smaller than this is not worth a piece of a larger message.
const PIECE_BYTES_MIN: usize = 256;

/// Bytes of a large message before the next one has its turn.
const TURN_BYTES: usize = 256 << 10;
/// One in so many pieces is a large message's, however many small ones wait.
const LARGE_EVERY: u8 = 4;

#[derive(Debug)]
struct Outgoing {
    meta: u8,
    head: Bytes,
    body: Bytes,
    /// Bytes counted against the windows until the message ends.
    total: usize,
    state: State,
    /// First byte that was never sent.
    next: u32,
    /// Pieces that were lost.
    again: Vec<(u32, u32)>,
    arrived: u32,
    empty_sent: bool,
    in_turn: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Started,
    /// Taken back; ends when the peer knows.
    Cancelled,
}

impl Outgoing {
    fn has_more(&self) -> bool {
        self.state == State::Started
            && (!self.again.is_empty() || (self.next as usize) < self.total || (self.total == 0 && !self.empty_sent))
    }

    /// Takes the next piece of at most `max` bytes.
    fn piece(&mut self, max: u32) -> (u32, u32) {
        if let Some((offset, len)) = self.again.pop() {
            if len > max {
                self.again.push((offset + max, len - max));
            }
            return (offset, len.min(max));
        }
        self.empty_sent = true;
        let offset = self.next;
        let len = (self.total as u32 - offset).min(max);
        self.next += len;
        (offset, len)
    }

    fn put(&self, out: &mut Vec<u8>, offset: u32, len: u32) {
        let (offset, end) = (offset as usize, (offset + len) as usize);
        let split = self.head.len();
        if offset < split {
            out.extend_from_slice(&self.head[offset..end.min(split)]);
        }
        if end > split {
            out.extend_from_slice(&self.body[offset.max(split) - split..end - split]);
        }
    }

    fn piece_bytes_next(&self) -> usize {
        self.again.last().map_or(self.total - self.next as usize, |(_, len)| *len as usize)
    }
}

/// Messages with something to send now.
#[derive(Debug, Default)]
struct Turns {
    small: VecDeque<u64>,
    large: VecDeque<u64>,
    pieces: u8,
    /// What the first large message has sent in this turn.
    large_bytes: usize,
}

impl Turns {
    fn queue_of(&mut self, message: &Outgoing) -> &mut VecDeque<u64> {
        if message.total <= SMALL_MESSAGE_BYTES { &mut self.small } else { &mut self.large }
    }

    fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    /// Whose turn it is.
    fn next(&self) -> Option<u64> {
        let large_is_due = self.pieces == 0 && !self.large.is_empty();
        let first = if self.small.is_empty() || large_is_due { &self.large } else { &self.small };
        first.front().copied()
    }

    /// A piece of the message whose turn it was went out.
    fn sent(&mut self, number: u64, len: usize, has_more: bool) {
        self.pieces = (self.pieces + 1) % LARGE_EVERY;
        if self.small.front() == Some(&number) {
            if !has_more {
                self.small.pop_front();
            }
            return;
        }
        self.large_bytes += len;
        if !has_more || self.large_bytes >= TURN_BYTES {
            self.large_bytes = 0;
            self.large.pop_front();
            if has_more {
                self.large.push_back(number);
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct Outbox {
    messages: BTreeMap<u64, Outgoing>,
    turns: Turns,
    /// Messages that the window has no room for yet.
    waiting: VecDeque<u64>,
    cancels: VecDeque<u64>,
    bytes: usize,
    bytes_started: usize,
    window: usize,
}

impl Outbox {
    /// The peer accepts so many bytes in started messages.
    pub fn set_window(&mut self, bytes: usize) {
        self.window = bytes;
        self.start_waiting();
    }

    /// Bytes of all messages that haven't ended.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a message. Numbers must be new.
    pub fn push(&mut self, number: u64, meta: u8, head: Bytes, body: Bytes) {
        let total = head.len() + body.len();
        self.bytes += total;
        let message = Outgoing {
            meta,
            head,
            body,
            total,
            state: State::Waiting,
            next: 0,
            again: Vec::new(),
            arrived: 0,
            empty_sent: false,
            in_turn: false,
        };
        self.messages.insert(number, message);
        if !self.start(number) {
            self.waiting.push_back(number);
        }
    }

    fn start(&mut self, number: u64) -> bool {
        let lowest = self.messages.first_key_value().map_or(number, |(lowest, _)| *lowest);
        let Some(message) = self.messages.get_mut(&number) else { return true };
        let reserve = if message.total <= SMALL_MESSAGE_BYTES { 0 } else { SMALL_RESERVE_BYTES.min(self.window / 2) };
        // One message always may, however small the window.
        let fits = self.bytes_started == 0 && self.window > 0
            || self.bytes_started + message.total <= self.window.saturating_sub(reserve);
        // The peer counts requests from the lowest that it misses: it tells no further numbers apart.
        if !fits || number - lowest >= REQUEST_WINDOW {
            return false;
        }
        self.bytes_started += message.total;
        message.state = State::Started;
        message.in_turn = true;
        self.turns.queue_of(message).push_back(number);
        true
    }

    fn start_waiting(&mut self) {
        while let Some(number) = self.waiting.front().copied() {
            let is_waiting = self.messages.get(&number).is_some_and(|m| m.state == State::Waiting);
            if is_waiting && !self.start(number) {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Gives memory back that only traffic needs.
    pub fn shrink(&mut self) {
        let queues = [&mut self.turns.small, &mut self.turns.large, &mut self.waiting, &mut self.cancels];
        queues.into_iter().for_each(VecDeque::shrink_to_fit);
    }

    /// Takes a request back: the peer is told, whatever it has got of it.
    pub fn cancel(&mut self, number: u64) {
        if let Some(message) = self.messages.get_mut(&number) {
            if message.state == State::Cancelled {
                return;
            }
            if message.state == State::Waiting {
                self.bytes -= message.total;
                message.total = 0;
            }
            message.state = State::Cancelled;
            message.head = Bytes::new();
            message.body = Bytes::new();
            message.again = Vec::new();
        }
        self.cancels.push_back(number);
    }

    /// Drops a message without telling; for responses that nobody waits for.
    pub fn drop_message(&mut self, number: u64) {
        self.end(number);
    }

    fn end(&mut self, number: u64) {
        if let Some(message) = self.messages.remove(&number) {
            self.bytes -= message.total;
            if message.state != State::Waiting {
                self.bytes_started -= message.total;
            }
            self.start_waiting();
        }
    }

    /// Forgets the turns of messages that ended meanwhile.
    pub fn prune(&mut self) {
        let Self { messages, turns, .. } = self;
        for queue in [&mut turns.small, &mut turns.large] {
            while let Some(number) = queue.front() {
                let message = messages.get_mut(number);
                if message.as_ref().is_some_and(|message| message.has_more()) {
                    break;
                }
                if let Some(message) = message {
                    message.in_turn = false;
                }
                queue.pop_front();
            }
        }
    }

    /// Whether [`Self::fill`] would write something, given that [`Self::prune`] was called since the last change.
    pub fn has_more(&self) -> bool {
        !self.turns.is_empty() || !self.cancels.is_empty()
    }

    /// Appends frames until `out` has `end` bytes or nothing is left.
    pub fn fill(&mut self, out: &mut Vec<u8>, end: usize, cargo: &mut Cargo) {
        while out.len() + frame::CANCEL_BYTES <= end
            && let Some(number) = self.cancels.pop_front()
        {
            frame::put_cancel(out, number);
            cargo.push(Carried::Cancel(number));
        }
        self.prune();
        while let Some(number) = self.turns.next() {
            let Some(message) = self.messages.get_mut(&number) else { return };
            let room = end.saturating_sub(out.len() + FRAGMENT_BYTES);
            let wanted = message.piece_bytes_next();
            if room < wanted.min(PIECE_BYTES_MIN) || out.len() + FRAGMENT_BYTES > end {
                return;
            }
            let (offset, len) = message.piece(room.min(usize::from(u16::MAX)) as u32);
            let fragment = FragmentHead {
                meta: message.meta,
                number,
                head_len: message.head.len() as u32,
                body_len: message.body.len() as u32,
                offset,
            };
            frame::put_fragment(out, &fragment, len as u16);
            message.put(out, offset, len);
            cargo.push(Carried::Piece { number, offset, len });
            message.in_turn = message.has_more();
            self.turns.sent(number, len as usize, message.in_turn);
            self.prune();
        }
    }

    /// Something arrived.
    pub fn on_arrived(&mut self, carried: Carried) {
        match carried {
            Carried::Piece { number, len, .. } => {
                let Some(message) = self.messages.get_mut(&number) else { return };
                message.arrived += len;
                if message.state == State::Started && message.arrived as usize >= message.total {
                    self.end(number);
                }
            }
            Carried::Cancel(number) => self.end(number),
            Carried::MtuProbe => {}
        }
    }

    /// Something was lost: it goes out again, first of its message.
    pub fn on_lost(&mut self, carried: Carried) {
        match carried {
            Carried::Piece { number, offset, len } => {
                let Some(message) = self.messages.get_mut(&number) else { return };
                if message.state != State::Started {
                    return;
                }
                message.again.push((offset, len));
                if !message.in_turn {
                    message.in_turn = true;
                    self.turns.queue_of(message).push_front(number);
                }
            }
            Carried::Cancel(number) => self.cancels.push_back(number),
            Carried::MtuProbe => {}
        }
    }
}
