//! The two ends of a session: who opened it calls, who accepted it answers.

use crate::options::REQUEST_WINDOW;
use std::collections::BTreeSet;

/// How a response came about, as its first byte of meaning on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Done = 0,
    Overloaded = 1,
    NoService = 2,
    TooLarge = 3,
}

#[derive(Debug)]
pub enum Role {
    Opener(Opener),
    Accepter(Accepter),
}

#[derive(Debug, Default)]
pub struct Opener {
    /// Calls without a response so far.
    pub calls: BTreeSet<u64>,
    pub next: u64,
}

#[derive(Debug)]
pub struct Accepter {
    /// Which session of its peer this is.
    pub order: u64,
    /// Requests below were received or taken back.
    settled_below: u64,
    settled: BTreeSet<u64>,
    /// Requests in handlers.
    pub running: BTreeSet<u64>,
}

impl Accepter {
    pub fn new(order: u64) -> Self {
        Self { order, settled_below: 0, settled: BTreeSet::new(), running: BTreeSet::new() }
    }

    pub fn is_settled(&self, number: u64) -> bool {
        number < self.settled_below || self.settled.contains(&number)
    }

    /// Whether the peer may use this number yet.
    pub fn is_in_window(&self, number: u64) -> bool {
        number < self.settled_below.saturating_add(REQUEST_WINDOW)
    }

    pub fn settle(&mut self, number: u64) {
        if number < self.settled_below {
            return;
        }
        self.settled.insert(number);
        while self.settled.remove(&self.settled_below) {
            self.settled_below += 1;
        }
    }
}
