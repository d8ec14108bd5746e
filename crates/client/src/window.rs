//! Numbers of mutating requests, per bucket: the server recognises a request that comes again by its number.
//!
//! A number is outstanding from when it is taken until its request is answered or given up. The lowest outstanding one
//! travels with each request; the server refuses what is below it, so a request that was given up can't take effect
//! after a later one has.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_reactor::sync::{Mutex, Notify};
use weft_wire::limits::CLIENT_WINDOW_MAX;

/// The requests of one client to one bucket.
pub(crate) struct Window {
    next: Cell<u64>,
    outstanding: RefCell<BTreeSet<u64>>,
    /// Whoever waits for a number, in order.
    turn: Mutex<()>,
    moved: Notify,
}

/// A number that is outstanding until this is dropped.
pub(crate) struct Ticket {
    window: Rc<Window>,
    pub sequence: u64,
}

impl Window {
    pub fn new() -> Rc<Self> {
        let window =
            Self { next: Cell::new(1), outstanding: RefCell::default(), turn: Mutex::new(()), moved: Notify::new() };
        Rc::new(window)
    }

    /// The next number, as soon as it is within reach of the lowest outstanding one.
    pub async fn take(self: &Rc<Self>) -> Ticket {
        let _turn = self.turn.lock().await;
        while self.next.get() - self.lowest() >= CLIENT_WINDOW_MAX {
            self.moved.notified().await;
        }
        let sequence = self.next.get();
        self.next.set(sequence + 1);
        self.outstanding.borrow_mut().insert(sequence);
        Ticket { window: Rc::clone(self), sequence }
    }

    fn lowest(&self) -> u64 {
        self.outstanding.borrow().first().copied().unwrap_or(self.next.get())
    }
}

impl Ticket {
    /// The lowest number that has no answer yet.
    pub fn unanswered(&self) -> u64 {
        self.window.lowest()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.window.outstanding.borrow_mut().remove(&self.sequence);
        self.window.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_reactor::testing::VirtualTime;

    #[test]
    fn numbers_stay_within_the_window_of_the_lowest_outstanding_one() {
        let time = VirtualTime::new(1);
        let window = Window::new();
        let handle = time.handle();
        time.block_on(async {
            let first = window.take().await;
            let mut others = Vec::new();
            for _ in 1..CLIENT_WINDOW_MAX {
                others.push(window.take().await);
            }
            // All others answered: the first still holds back the next.
            others.clear();
            assert_eq!(first.unanswered(), 1);
            let waiting = window.clone();
            let next = handle.spawn("take", async move { waiting.take().await });
            handle.yield_now().await;
            handle.yield_now().await;
            assert!(!next.is_finished());
            drop(first);
            let next = next.await.ok().map(|ticket| (ticket.sequence, ticket.unanswered()));
            assert_eq!(next, Some((CLIENT_WINDOW_MAX + 1, CLIENT_WINDOW_MAX + 1)));
        });
    }
}
