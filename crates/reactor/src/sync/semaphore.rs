use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::waiters::{Line, Waiter};

/// A number of permits, given out first come, first served. Clones are the same.
#[derive(Clone)]
pub struct Semaphore {
    inner: Rc<Inner>,
}

struct Inner {
    permits: Cell<usize>,
    line: Line,
}

impl Inner {
    fn try_take(&self) -> bool {
        let permits = self.permits.get();
        // Nobody overtakes the line.
        if permits == 0 || !self.line.is_empty() {
            return false;
        }
        self.permits.set(permits - 1);
        true
    }

    fn release(&self) {
        match self.line.pop() {
            Some(next) => next.grant(),
            None => self.permits.set(self.permits.get() + 1),
        }
    }
}

impl Semaphore {
    pub fn new(permits: usize) -> Self {
        Self { inner: Rc::new(Inner { permits: Cell::new(permits), line: Line::default() }) }
    }

    pub fn available(&self) -> usize {
        self.inner.permits.get()
    }

    pub fn acquire(&self) -> Acquire {
        Acquire { inner: Rc::clone(&self.inner), waiter: None }
    }

    pub fn try_acquire(&self) -> Option<Permit> {
        self.inner.try_take().then(|| Permit { inner: Rc::clone(&self.inner) })
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available", &self.available()).finish_non_exhaustive()
    }
}

/// Given back when dropped.
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    inner: Rc<Inner>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.release();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// Made by [`Semaphore::acquire`].
#[must_use = "does nothing unless awaited"]
pub struct Acquire {
    inner: Rc<Inner>,
    waiter: Option<Rc<Waiter>>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let granted = match &self.waiter {
            Some(waiter) => {
                if !waiter.is_granted() {
                    waiter.set_waker(context.waker());
                }
                waiter.is_granted()
            }
            None => self.inner.try_take(),
        };
        if granted {
            self.waiter = None;
            return Poll::Ready(Permit { inner: Rc::clone(&self.inner) });
        }
        if self.waiter.is_none() {
            self.waiter = Some(self.inner.line.join(context.waker()));
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.is_granted() {
            self.inner.release();
        } else {
            self.inner.line.leave(&waiter);
        }
    }
}
