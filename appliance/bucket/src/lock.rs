//! Locks on keys: taken in key order, handed on in the order of asking. They live in memory alone; whatever must
//! survive the leader (the locks of transactions) is in the journal and taken again at recovery.

use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Shared,
    Exclusive,
}

struct Waiter {
    mode: Mode,
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Slot {
    shared: usize,
    exclusive: bool,
    waiting: VecDeque<Rc<Waiter>>,
}

impl Slot {
    fn admits(&self, mode: Mode) -> bool {
        match mode {
            Mode::Shared => !self.exclusive,
            Mode::Exclusive => !self.exclusive && self.shared == 0,
        }
    }

    fn take(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.shared += 1,
            Mode::Exclusive => self.exclusive = true,
        }
    }

    fn give_back(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.shared -= 1,
            Mode::Exclusive => self.exclusive = false,
        }
    }
}

#[derive(Clone, Default)]
pub struct Locks(Rc<RefCell<BTreeMap<Bytes, Slot>>>);

/// Keys that are locked until this is dropped.
#[must_use]
pub struct LockGuard {
    locks: Locks,
    held: Vec<(Bytes, Mode)>,
}

impl Locks {
    /// Waits until all `keys` are its own. A key named twice is taken once, exclusively if either asks so.
    pub async fn lock(&self, keys: impl IntoIterator<Item = (Bytes, Mode)>) -> LockGuard {
        let mut wanted: BTreeMap<Bytes, Mode> = BTreeMap::new();
        for (key, mode) in keys {
            let entry = wanted.entry(key).or_insert(mode);
            if mode == Mode::Exclusive {
                *entry = mode;
            }
        }
        // The guard grows as keys are granted, so that a caller who gives up half-way leaves nothing locked.
        let mut guard = LockGuard { locks: self.clone(), held: Vec::with_capacity(wanted.len()) };
        for (key, mode) in wanted {
            if let Some(waiter) = self.queue(&key, mode) {
                Queued { locks: self, key: &key, waiter, taken: false }.await;
            }
            guard.held.push((key, mode));
        }
        guard
    }

    #[cfg(test)]
    fn is_idle(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Takes the key at once, or gives a place in its queue.
    fn queue(&self, key: &Bytes, mode: Mode) -> Option<Rc<Waiter>> {
        let mut slots = self.0.borrow_mut();
        let slot = slots.entry(key.clone()).or_default();
        if slot.waiting.is_empty() && slot.admits(mode) {
            slot.take(mode);
            return None;
        }
        let waiter = Rc::new(Waiter { mode, granted: Cell::new(false), waker: RefCell::new(None) });
        slot.waiting.push_back(Rc::clone(&waiter));
        Some(waiter)
    }

    /// Changes a slot, then lets in whom it admits.
    fn update(&self, key: &Bytes, change: impl FnOnce(&mut Slot)) {
        let mut woken = Vec::new();
        {
            let mut slots = self.0.borrow_mut();
            let Some(slot) = slots.get_mut(key) else { return };
            change(slot);
            while let Some(next) = slot.waiting.front() {
                if !slot.admits(next.mode) {
                    break;
                }
                if let Some(next) = slot.waiting.pop_front() {
                    slot.take(next.mode);
                    next.granted.set(true);
                    woken.extend(next.waker.borrow_mut().take());
                }
            }
            if slot.shared == 0 && !slot.exclusive && slot.waiting.is_empty() {
                slots.remove(key);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A place in a queue. Dropped early, it leaves the queue or gives back what it was just granted.
struct Queued<'a> {
    locks: &'a Locks,
    key: &'a Bytes,
    waiter: Rc<Waiter>,
    taken: bool,
}

impl Future for Queued<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.granted.get() {
            self.taken = true;
            return Poll::Ready(());
        }
        *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let waiter = &self.waiter;
        self.locks.update(self.key, |slot| {
            if waiter.granted.get() {
                slot.give_back(waiter.mode);
            } else {
                slot.waiting.retain(|other| !Rc::ptr_eq(other, waiter));
            }
        });
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        for (key, mode) in self.held.drain(..) {
            self.locks.update(&key, |slot| slot.give_back(mode));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    struct Nothing;
    impl Wake for Nothing {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        let waker = Waker::from(std::sync::Arc::new(Nothing));
        future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    fn key(name: &'static str, mode: Mode) -> [(Bytes, Mode); 1] {
        [(Bytes::from_static(name.as_bytes()), mode)]
    }

    fn ready<F: Future>(future: F) -> F::Output {
        match poll(&mut Box::pin(future)) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("not ready"),
        }
    }

    #[test]
    fn exclusive_holders_follow_each_other_in_order() {
        let locks = Locks::default();
        let first = ready(locks.lock(key("a", Mode::Exclusive)));
        let mut second = Box::pin(locks.lock(key("a", Mode::Exclusive)));
        let mut third = Box::pin(locks.lock(key("a", Mode::Shared)));
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        drop(first);
        assert!(poll(&mut third).is_pending());
        let Poll::Ready(second) = poll(&mut second) else { panic!("the second is next") };
        drop(second);
        assert!(poll(&mut third).is_ready());
    }

    #[test]
    fn whoever_gives_up_blocks_nobody() {
        let locks = Locks::default();
        let first = ready(locks.lock(key("a", Mode::Shared)));
        let mut writer = Box::pin(locks.lock(key("a", Mode::Exclusive)));
        let mut reader = Box::pin(locks.lock(key("a", Mode::Shared)));
        assert!(poll(&mut writer).is_pending() && poll(&mut reader).is_pending());
        drop(writer);
        assert!(poll(&mut reader).is_ready());
        let mut granted = Box::pin(locks.lock(key("a", Mode::Exclusive)));
        assert!(poll(&mut granted).is_pending());
        drop(first);
        drop(granted);
        assert!(locks.is_idle());
    }
}
