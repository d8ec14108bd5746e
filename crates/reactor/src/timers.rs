use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

use crate::Instant;

/// Below this many dead entries the heap is not worth compacting.
const DEAD_ENTRIES_MIN: usize = 64;

/// A timer is late by at most its length over this, and by at most [`COALESCE_NANOS_MAX`].
const COALESCE_DIVISOR: u64 = 8;
/// 4.2 ms; a power of two.
const COALESCE_NANOS_MAX: u64 = 1 << 22;

/// Moves a deadline up to the next point of a grid that is coarser for longer timers. Timers that are due at about the
/// same time, in all processes of a host, then share a wake-up, and a wake-up is what an idle core spends its power on.
pub(crate) fn coalesced(now: Instant, deadline: Instant) -> Instant {
    let step_max = (deadline.0.saturating_sub(now.0) / COALESCE_DIVISOR).clamp(1, COALESCE_NANOS_MAX);
    let step = 1 << step_max.ilog2();
    Instant(deadline.0.checked_next_multiple_of(step).unwrap_or(u64::MAX))
}

/// Names a registered timer. A key of a timer that fired or was cancelled names nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    index: usize,
    serial: u64,
}

struct Slot {
    serial: u64,
    waker: Option<Waker>,
}

/// Timers by (deadline, order of registration).
///
/// Most timers are timeouts that never fire, so cancelling is what must be cheap: it empties the timer's slot
/// and leaves a dead entry in the heap, which is compacted when more than half of it is dead.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    serial_next: u64,
    live: usize,
}

impl Timers {
    pub(crate) fn insert(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        let serial = self.serial_next;
        self.serial_next += 1;
        let slot = Slot { serial, waker: Some(waker) };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.heap.push(Reverse((deadline, serial, index)));
        self.live += 1;
        TimerKey { index, serial }
    }

    /// Replaces the waker of a timer that is still registered; false if it has fired.
    pub(crate) fn update(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.slots.get_mut(key.index) {
            Some(Slot { serial, waker: Some(present) }) if *serial == key.serial => {
                present.clone_from(waker);
                true
            }
            _ => false,
        }
    }

    /// Forgets a timer. Returns its waker, to be dropped outside of any borrow.
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<Waker> {
        let waker = self.release(key.index, key.serial);
        let dead = self.heap.len() - self.live;
        if dead >= DEAD_ENTRIES_MIN && dead > self.live {
            let slots = &self.slots;
            self.heap.retain(|Reverse((_, serial, index))| is_live(slots, *index, *serial));
        }
        waker
    }

    /// The earliest deadline, if there is a timer.
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        while let Some(&Reverse((deadline, serial, index))) = self.heap.peek() {
            if is_live(&self.slots, index, serial) {
                return Some(deadline);
            }
            self.heap.pop();
        }
        None
    }

    /// Takes the next timer that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        while let Some(&Reverse((deadline, serial, index))) = self.heap.peek() {
            if deadline > now {
                return None;
            }
            self.heap.pop();
            if let Some(waker) = self.release(index, serial) {
                return Some(waker);
            }
        }
        None
    }

    fn release(&mut self, index: usize, serial: u64) -> Option<Waker> {
        let slot = self.slots.get_mut(index).filter(|slot| slot.serial == serial)?;
        let waker = slot.waker.take()?;
        self.free.push(index);
        self.live -= 1;
        Some(waker)
    }
}

fn is_live(slots: &[Slot], index: usize, serial: u64) -> bool {
    slots.get(index).is_some_and(|slot| slot.serial == serial && slot.waker.is_some())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn coalesced_timers_are_a_little_late_and_never_early() {
        let now = Instant(1_234_567_890_123);
        for length in [0, 1, 7, 8, 100, 80_000, 1_000_000, 100_000_000, 5_000_000_000] {
            let deadline = now + Duration::from_nanos(length);
            let fires_at = coalesced(now, deadline);
            assert!(fires_at >= deadline);
            assert!(fires_at.since(deadline).as_nanos() as u64 <= (length / COALESCE_DIVISOR).min(COALESCE_NANOS_MAX));
        }
        let near = |millis| coalesced(now, now + Duration::from_millis(millis));
        assert_eq!(near(100).0 % COALESCE_NANOS_MAX, 0);
        let beats: std::collections::BTreeSet<_> = (100..120).map(near).collect();
        assert!(beats.len() <= 6, "20 timers within 20 ms share wake-ups: {beats:?}");
        assert_eq!(coalesced(now, Instant(u64::MAX)), Instant(u64::MAX));
    }

    #[test]
    fn cancelled_timers_leave_no_heap_behind() {
        let mut timers = Timers::default();
        let kept = timers.insert(Instant(u64::MAX), Waker::noop().clone());
        for deadline in 0..100_000 {
            let key = timers.insert(Instant(deadline), Waker::noop().clone());
            assert!(timers.cancel(key).is_some());
            assert!(timers.cancel(key).is_none());
        }
        assert!(timers.heap.len() <= 2 * DEAD_ENTRIES_MIN, "{}", timers.heap.len());
        assert!(timers.slots.len() <= 2);
        assert_eq!(timers.next_deadline(), Some(Instant(u64::MAX)));
        assert!(timers.update(kept, Waker::noop()));
        assert!(timers.pop_due(Instant(u64::MAX)).is_some());
        assert!(!timers.update(kept, Waker::noop()));
        assert_eq!(timers.next_deadline(), None);
    }
}
