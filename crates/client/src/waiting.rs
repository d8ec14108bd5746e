//! What operations wait for: kept as text for whoever asks, and logged now and then.

use crate::tunables::{WAIT_LOG_AFTER, WAIT_LOG_EVERY};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_reactor::{Handle, Instant};

/// All operations of a client that wait.
pub(crate) struct Waits {
    handle: Handle,
    entries: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
    logged: Cell<Option<Instant>>,
}

struct Entry {
    since: Instant,
    reason: String,
}

/// One operation; what it waits for, while it does.
pub(crate) struct Wait {
    waits: Rc<Waits>,
    started: Instant,
    id: Option<u64>,
}

impl Waits {
    pub fn new(handle: Handle) -> Rc<Self> {
        Rc::new(Self { handle, entries: RefCell::default(), next: Cell::new(0), logged: Cell::new(None) })
    }

    pub fn begin(self: &Rc<Self>) -> Wait {
        Wait { waits: Rc::clone(self), started: self.handle.now(), id: None }
    }

    /// What the oldest waiting operation waits for, and how many there are.
    pub fn describe(&self) -> Option<String> {
        let entries = self.entries.borrow();
        let oldest = entries.values().min_by_key(|entry| entry.since)?;
        let seconds = self.handle.now().since(oldest.since).as_secs();
        Some(format!("{} waiting, the oldest for {seconds} s: {}", entries.len(), oldest.reason))
    }

    fn log(&self) {
        let now = self.handle.now();
        if self.logged.get().is_some_and(|at| now.since(at) < WAIT_LOG_EVERY) {
            return;
        }
        let oldest = self.entries.borrow().values().map(|entry| entry.since).min();
        if oldest.is_none_or(|since| now.since(since) < WAIT_LOG_AFTER) {
            return;
        }
        self.logged.set(Some(now));
        if let Some(text) = self.describe() {
            tracing::warn!("{text}");
        }
    }
}

impl Wait {
    /// The operation waits, for this reason from now on.
    pub fn set(&mut self, reason: String) {
        let waits = &self.waits;
        let id = *self.id.get_or_insert_with(|| {
            waits.next.set(waits.next.get() + 1);
            waits.next.get()
        });
        waits.entries.borrow_mut().insert(id, Entry { since: self.started, reason });
        waits.log();
    }

    pub fn reason(&self) -> Option<String> {
        let entries = self.waits.entries.borrow();
        Some(entries.get(&self.id?)?.reason.clone())
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let last = {
            let mut entries = self.waits.entries.borrow_mut();
            entries.remove(&id);
            entries.is_empty()
        };
        if last && self.waits.logged.take().is_some() {
            tracing::info!("nothing waits any more");
        }
    }
}
