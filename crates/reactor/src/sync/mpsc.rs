//! A bounded queue from many to one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Permit, Semaphore};

/// A queue of at most `capacity` values, at least one.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let inner = Rc::new(Inner {
        queue: RefCell::default(),
        room: Semaphore::new(capacity.max(1)),
        receiver_waker: RefCell::default(),
        senders: Cell::new(1),
        receiver_gone: Cell::new(false),
    });
    (Sender { inner: Rc::clone(&inner) }, Receiver { inner })
}

struct Inner<T> {
    /// Each value with the permit for its place.
    queue: RefCell<VecDeque<(T, Permit)>>,
    room: Semaphore,
    receiver_waker: RefCell<Option<Waker>>,
    senders: Cell<usize>,
    receiver_gone: Cell<bool>,
}

impl<T> Inner<T> {
    fn push(&self, value: T, permit: Permit) {
        self.queue.borrow_mut().push_back((value, permit));
        self.wake_receiver();
    }

    fn wake_receiver(&self) {
        let waker = self.receiver_waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The receiver is gone; here is the value back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed<T>(pub T);

/// Why a value could not be sent at once; here it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySendError<T> {
    Full(T),
    Closed(T),
}

pub struct Sender<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Sender<T> {
    /// Waits for room.
    pub async fn send(&self, value: T) -> Result<(), Closed<T>> {
        if self.is_closed() {
            return Err(Closed(value));
        }
        let permit = self.inner.room.acquire().await;
        if self.is_closed() {
            return Err(Closed(value));
        }
        self.inner.push(value, permit);
        Ok(())
    }

    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        if self.is_closed() {
            return Err(TrySendError::Closed(value));
        }
        match self.inner.room.try_acquire() {
            Some(permit) => {
                self.inner.push(value, permit);
                Ok(())
            }
            None => Err(TrySendError::Full(value)),
        }
    }

    /// The receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.inner.receiver_gone.get()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.inner.senders.set(self.inner.senders.get() + 1);
        Self { inner: Rc::clone(&self.inner) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.inner.senders.set(self.inner.senders.get() - 1);
        if self.inner.senders.get() == 0 {
            self.inner.wake_receiver();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("room", &self.inner.room.available()).finish_non_exhaustive()
    }
}

pub struct Receiver<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Receiver<T> {
    /// The next value, or `None` when the queue is empty and all senders are gone.
    pub async fn recv(&mut self) -> Option<T> {
        poll_fn(|context| self.poll_recv(context)).await
    }

    pub fn try_recv(&mut self) -> Option<T> {
        let taken = self.inner.queue.borrow_mut().pop_front();
        taken.map(|(value, _permit)| value)
    }

    pub fn len(&self) -> usize {
        self.inner.queue.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.try_recv() {
            return Poll::Ready(Some(value));
        }
        if self.inner.senders.get() == 0 {
            return Poll::Ready(None);
        }
        *self.inner.receiver_waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.inner.receiver_gone.set(true);
        // Gives the permits back, so that senders which wait for room learn that nobody will read.
        let unread = std::mem::take(&mut *self.inner.queue.borrow_mut());
        drop(unread);
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("len", &self.len()).finish_non_exhaustive()
    }
}
