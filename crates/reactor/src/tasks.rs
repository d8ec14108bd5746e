use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::ready::{ReadyQueue, TaskHeader};

pub(crate) type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// How much of the core the tasks of one name have used. Times are kept by a [`Core`](crate::Core) only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskStats {
    pub name: &'static str,
    pub spawned: u64,
    pub polls: u64,
    pub busy: Duration,
    /// The longest single poll.
    pub busy_max: Duration,
}

enum Slot {
    Free,
    Idle(Running),
    /// Taken out to be polled. `aborted`: drop the future instead of putting it back.
    Polling {
        serial: u64,
        aborted: bool,
    },
}

/// A task that can be polled.
pub(crate) struct Running {
    pub(crate) serial: u64,
    pub(crate) name: usize,
    pub(crate) future: LocalFuture,
    pub(crate) waker: Waker,
}

/// All tasks of an executor, in a slab.
pub(crate) struct Tasks {
    queue: Arc<ReadyQueue>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    serial_next: u64,
    live: usize,
    names: BTreeMap<&'static str, usize>,
    stats: Vec<TaskStats>,
}

impl Tasks {
    pub(crate) fn new(queue: Arc<ReadyQueue>) -> Self {
        Self {
            queue,
            slots: Vec::new(),
            free: Vec::new(),
            serial_next: 0,
            live: 0,
            names: BTreeMap::new(),
            stats: Vec::new(),
        }
    }

    /// Adds a task; its waker has to be woken for the first poll.
    pub(crate) fn insert(&mut self, name: &'static str, future: LocalFuture) -> (usize, u64, Waker) {
        let serial = self.serial_next;
        self.serial_next += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        let waker = Waker::from(TaskHeader::new(index, serial, Arc::clone(&self.queue)));
        let stats = &mut self.stats;
        let name = *self.names.entry(name).or_insert_with(|| {
            stats.push(TaskStats { name, ..TaskStats::default() });
            stats.len() - 1
        });
        self.stats[name].spawned += 1;
        self.slots[index] = Slot::Idle(Running { serial, name, future, waker: waker.clone() });
        self.live += 1;
        (index, serial, waker)
    }

    /// Takes a task out to poll it, unless it is gone.
    pub(crate) fn take(&mut self, index: usize, serial: u64) -> Option<Running> {
        let slot = self.slots.get_mut(index)?;
        match std::mem::replace(slot, Slot::Polling { serial, aborted: false }) {
            Slot::Idle(running) if running.serial == serial => Some(running),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Puts a task back that is still pending. Returns it if it was aborted meanwhile, to be dropped outside of any borrow.
    pub(crate) fn put_back(&mut self, index: usize, running: Running) -> Option<Running> {
        match &mut self.slots[index] {
            slot @ Slot::Polling { aborted: false, .. } => {
                *slot = Slot::Idle(running);
                None
            }
            slot => {
                *slot = Slot::Free;
                self.free.push(index);
                self.live -= 1;
                Some(running)
            }
        }
    }

    /// Frees the slot of a task that finished in the poll it was taken out for.
    pub(crate) fn finish(&mut self, index: usize) {
        self.slots[index] = Slot::Free;
        self.free.push(index);
        self.live -= 1;
    }

    /// Removes a task. Returns it, if it is not being polled just now, to be dropped outside of any borrow.
    pub(crate) fn abort(&mut self, index: usize, serial: u64) -> Option<Running> {
        let slot = self.slots.get_mut(index)?;
        match slot {
            Slot::Idle(running) if running.serial == serial => {
                let Slot::Idle(running) = std::mem::replace(slot, Slot::Free) else { return None };
                self.free.push(index);
                self.live -= 1;
                Some(running)
            }
            Slot::Polling { serial: polled, aborted } if *polled == serial => {
                *aborted = true;
                None
            }
            _ => None,
        }
    }

    /// Removes the task in this slot, unless it is being polled, to be dropped outside of any borrow.
    pub(crate) fn clear_slot(&mut self, index: usize) -> Option<Running> {
        let slot = self.slots.get_mut(index)?;
        let Slot::Idle(running) = slot else { return None };
        let serial = running.serial;
        self.abort(index, serial)
    }

    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Counts a poll and returns the name of the task.
    pub(crate) fn count_poll(&mut self, name: usize, busy: Option<Duration>) -> &'static str {
        let stats = &mut self.stats[name];
        stats.polls += 1;
        if let Some(busy) = busy {
            stats.busy += busy;
            stats.busy_max = stats.busy_max.max(busy);
        }
        stats.name
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn stats(&self) -> Vec<TaskStats> {
        self.names.values().map(|&index| self.stats[index]).collect()
    }

    /// Names of the tasks that exist, sorted, each with how many there are.
    pub(crate) fn census(&self) -> Vec<(&'static str, usize)> {
        let mut counts = vec![0; self.stats.len()];
        for slot in &self.slots {
            if let Slot::Idle(running) = slot {
                counts[running.name] += 1;
            }
        }
        self.names
            .iter()
            .filter(|(_, index)| counts[**index] > 0)
            .map(|(name, index)| (*name, counts[*index]))
            .collect()
    }
}
