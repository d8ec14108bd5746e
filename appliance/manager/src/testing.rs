//! A store in memory, with faults on demand, for tests of the managers and of what is above them.

use crate::store::{ConfigStore, Slot, StoreError};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::Handle;
use weft_reactor::sync::{Notify, Pending, completion};
use weft_wire::Uuid;

/// Time that a write takes.
const WRITE: Duration = Duration::from_micros(100);

/// The drives of one node. Clones are the same drives; they survive the node's crashes.
#[derive(Clone)]
pub struct MemStore {
    handle: Handle,
    inner: Rc<Inner>,
}

#[derive(Default)]
struct Inner {
    drives: Vec<Uuid>,
    slots: RefCell<BTreeMap<(Uuid, Slot), Bytes>>,
    failed: RefCell<BTreeSet<Uuid>>,
    /// Writes end when they go on.
    stalled: Cell<bool>,
    goes_on: Notify,
    /// Counts losses of power: writes on their way are lost with it.
    life: Cell<u64>,
    writes: Cell<u64>,
}

impl MemStore {
    pub fn new(handle: Handle, drives: Vec<Uuid>) -> Self {
        Self { handle, inner: Rc::new(Inner { drives, ..Inner::default() }) }
    }

    /// From now on writes don't end, until the drives go on.
    pub fn stall(&self) {
        self.inner.stalled.set(true);
    }

    pub fn go_on(&self) {
        self.inner.stalled.set(false);
        self.inner.goes_on.notify_all();
    }

    /// From now on the drive answers nothing but errors.
    pub fn fail(&self, drive: Uuid) {
        self.inner.failed.borrow_mut().insert(drive);
    }

    /// The drive is back, with what it had when it failed.
    pub fn mend(&self, drive: Uuid) {
        self.inner.failed.borrow_mut().remove(&drive);
    }

    /// Everything on the drive is gone.
    pub fn wipe(&self, drive: Uuid) {
        self.inner.slots.borrow_mut().retain(|(other, _), _| *other != drive);
    }

    /// Writes that were not answered yet are lost.
    pub fn power_loss(&self) {
        self.inner.life.set(self.inner.life.get() + 1);
    }

    pub fn contents(&self, drive: Uuid, slot: Slot) -> Option<Bytes> {
        self.inner.slots.borrow().get(&(drive, slot)).cloned()
    }

    /// Writes that were asked for so far.
    pub fn writes(&self) -> u64 {
        self.inner.writes.get()
    }
}

impl ConfigStore for MemStore {
    fn drives(&self) -> Vec<Uuid> {
        self.inner.drives.clone()
    }

    fn store(&self, drive: Uuid, slot: Slot, bytes: Bytes) -> Pending<Result<(), StoreError>> {
        let (completer, pending) = completion();
        let (inner, life, handle) = (self.inner.clone(), self.inner.life.get(), self.handle.clone());
        inner.writes.set(inner.writes.get() + 1);
        drop(self.handle.spawn("memory store", async move {
            handle.sleep(WRITE).await;
            while inner.stalled.get() {
                inner.goes_on.notified().await;
            }
            if inner.life.get() != life {
                return;
            }
            completer.complete(if inner.failed.borrow().contains(&drive) {
                Err(StoreError::Drive("failed by a test".into()))
            } else {
                inner.slots.borrow_mut().insert((drive, slot), bytes);
                Ok(())
            });
        }));
        pending
    }

    fn load(&self, drive: Uuid, slot: Slot) -> Pending<Result<Option<Bytes>, StoreError>> {
        Pending::ready(if self.inner.failed.borrow().contains(&drive) {
            Err(StoreError::Drive("failed by a test".into()))
        } else {
            Ok(self.contents(drive, slot))
        })
    }
}
