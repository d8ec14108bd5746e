use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::waiters::{Line, Waiter};

/// Wakes those who wait for something to happen. Clones are the same.
#[derive(Clone, Default)]
pub struct Notify {
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// A notification that came when nobody waited.
    stored: Cell<bool>,
    line: Line,
}

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the first waiter go on, or if there is none, the next one that comes. Not counted: twice is like once.
    pub fn notify_one(&self) {
        match self.inner.line.pop() {
            Some(waiter) => waiter.grant(),
            None => self.inner.stored.set(true),
        }
    }

    /// Lets everyone go on who waits now (whose [`Notified`] was polled). Nothing is stored for those who come later.
    pub fn notify_all(&self) {
        self.inner.line.grant_all();
    }

    pub fn notified(&self) -> Notified {
        Notified { inner: Rc::clone(&self.inner), waiter: None }
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").field("stored", &self.inner.stored.get()).finish_non_exhaustive()
    }
}

/// Made by [`Notify::notified`].
#[must_use = "does nothing unless awaited"]
pub struct Notified {
    inner: Rc<Inner>,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Notified {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &self.waiter {
            Some(waiter) if waiter.is_granted() => {
                self.waiter = None;
                Poll::Ready(())
            }
            Some(waiter) => {
                waiter.set_waker(context.waker());
                Poll::Pending
            }
            None if self.inner.stored.replace(false) => Poll::Ready(()),
            None => {
                self.waiter = Some(self.inner.line.join(context.waker()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.is_granted() {
            // Given up between being notified and being polled: the notification must not get lost.
            match self.inner.line.pop() {
                Some(next) => next.grant(),
                None => self.inner.stored.set(true),
            }
        } else {
            self.inner.line.leave(&waiter);
        }
    }
}
