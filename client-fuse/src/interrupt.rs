//! Signals that came for the callers of requests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Tells an operation that its caller got a signal. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    raised: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
}

impl Interrupt {
    pub fn is_raised(&self) -> bool {
        self.shared.raised.get()
    }

    /// Ends when the signal comes, perhaps never.
    pub async fn raised(&self) {
        poll_fn(|context| {
            if self.is_raised() {
                return Poll::Ready(());
            }
            let mut wakers = self.shared.wakers.borrow_mut();
            if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    pub(crate) fn raise(&self) {
        self.shared.raised.set(true);
        for waker in self.shared.wakers.take() {
            waker.wake();
        }
    }
}

/// Interrupts whose request this thread does not know (yet): the kernel hands them to whichever thread reads next, which
/// may be quicker than the one that is taking over the request. The kernel never uses a number twice.
#[derive(Debug, Default)]
pub(crate) struct Unmatched {
    uniques: VecDeque<u64>,
}

impl Unmatched {
    /// Most of them belong to requests that are already answered; the oldest is dropped for a new one.
    const UNIQUES_MAX: usize = 256;

    pub fn remember(&mut self, unique: u64) {
        if self.uniques.len() == Self::UNIQUES_MAX {
            self.uniques.pop_front();
        }
        self.uniques.push_back(unique);
    }

    pub fn take(&mut self, unique: u64) -> bool {
        let Some(position) = self.uniques.iter().position(|&other| other == unique) else {
            return false;
        };
        self.uniques.remove(position);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn a_raised_interrupt_ends_the_wait_of_all_clones() {
        let interrupt = Interrupt::default();
        let clone = interrupt.clone();
        let mut wait = pin!(clone.raised());
        let mut context = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        interrupt.raise();
        assert!(wait.as_mut().poll(&mut context).is_ready());
        assert!(clone.is_raised());
    }

    #[test]
    fn the_oldest_unmatched_interrupts_are_dropped_first() {
        let mut unmatched = Unmatched::default();
        for unique in 0..=Unmatched::UNIQUES_MAX as u64 {
            unmatched.remember(unique);
        }
        assert!(!unmatched.take(0));
        assert!(unmatched.take(1));
        assert!(!unmatched.take(1));
        assert_eq!(unmatched.uniques.len(), Unmatched::UNIQUES_MAX - 1);
    }
}
