use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

/// One who waits in a line.
#[derive(Default)]
pub(crate) struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    pub(crate) fn is_granted(&self) -> bool {
        self.granted.get()
    }

    pub(crate) fn set_waker(&self, waker: &Waker) {
        match &mut *self.waker.borrow_mut() {
            Some(present) => present.clone_from(waker),
            absent => *absent = Some(waker.clone()),
        }
    }

    /// Lets the waiter go on. The line must not be borrowed: waking may run foreign code.
    pub(crate) fn grant(&self) {
        self.granted.set(true);
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A line of waiters, first come, first served. It holds only futures that exist, so their owners bound it.
#[derive(Default)]
pub(crate) struct Line {
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Line {
    pub(crate) fn join(&self, waker: &Waker) -> Rc<Waiter> {
        let waiter = Rc::new(Waiter::default());
        waiter.set_waker(waker);
        self.waiting.borrow_mut().push_back(Rc::clone(&waiter));
        waiter
    }

    /// Takes the first out of the line.
    pub(crate) fn pop(&self) -> Option<Rc<Waiter>> {
        self.waiting.borrow_mut().pop_front()
    }

    pub(crate) fn leave(&self, waiter: &Rc<Waiter>) {
        let mut waiting = self.waiting.borrow_mut();
        if let Some(position) = waiting.iter().position(|other| Rc::ptr_eq(other, waiter)) {
            waiting.remove(position);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    pub(crate) fn grant_all(&self) {
        let all = std::mem::take(&mut *self.waiting.borrow_mut());
        for waiter in all {
            waiter.grant();
        }
    }
}
