//! How long drives take to answer reads: when to stop waiting for one that is slower than it should be, and which are.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use weft_wire::DriveId;

/// A read that takes so many times what 95 of 100 reads of the usual drive take is hedged.
const HEDGE_FACTOR: u32 = 4;
/// Not before: a burst on a fast drive is no reason.
const HEDGE_MIN: Duration = Duration::from_millis(10);
/// As long as nothing is known of the drives.
const HEDGE_UNKNOWN: Duration = Duration::from_millis(200);
/// A drive that is so many times slower than the usual one, and slower than this, is called slow.
const SLOW_FACTOR: u32 = 8;
const SLOW_MIN: Duration = Duration::from_millis(20);
/// So is one that others were faster than so many times in a row.
const LATE_MIN: u32 = 3;
/// Samples between two looks at which drive is the usual one.
const SAMPLES_PER_LOOK: u32 = 64;

/// For each drive about the time within which 95 of 100 reads are answered: an estimate that each answer nudges up or
/// down, so that it takes one number a drive.
#[derive(Default)]
pub struct Paces {
    p95: RefCell<BTreeMap<DriveId, Duration>>,
    /// The median of the drives' estimates.
    usual: Cell<Option<Duration>>,
    samples: Cell<u32>,
    /// Reads in a row that others were faster with.
    late: RefCell<BTreeMap<DriveId, u32>>,
}

impl Paces {
    pub fn sample(&self, drive: DriveId, took: Duration) {
        self.late.borrow_mut().remove(&drive);
        let mut p95 = self.p95.borrow_mut();
        let estimate = p95.entry(drive).or_insert(took * 2);
        // 19 steps down outweigh one up: in balance one answer of 20 takes longer.
        *estimate = if took > *estimate { *estimate + *estimate / 8 } else { *estimate - *estimate / 152 };
        *estimate = (*estimate).max(Duration::from_micros(1));
        self.samples.set(self.samples.get() + 1);
        if self.samples.get() >= SAMPLES_PER_LOOK || self.usual.get().is_none() {
            self.samples.set(0);
            let mut all: Vec<Duration> = p95.values().copied().collect();
            all.sort_unstable();
            self.usual.set(all.get(all.len() / 2).copied());
        }
    }

    /// Others were faster with what the drive was asked for.
    pub fn was_late(&self, drive: DriveId) {
        *self.late.borrow_mut().entry(drive).or_default() += 1;
    }

    /// How long to wait for a drive before its shard is made from others.
    pub fn hedge_after(&self) -> Duration {
        self.usual.get().map_or(HEDGE_UNKNOWN, |usual| (usual * HEDGE_FACTOR).max(HEDGE_MIN))
    }

    pub fn slow(&self) -> BTreeSet<DriveId> {
        let limit = self.usual.get().map(|usual| (usual * SLOW_FACTOR).max(SLOW_MIN));
        let p95 = self.p95.borrow();
        let slow = p95.iter().filter(|(_, p95)| limit.is_some_and(|limit| **p95 > limit)).map(|(id, _)| *id);
        let late = self.late.borrow();
        let late = late.iter().filter(|(_, count)| **count >= LATE_MIN).map(|(id, _)| *id);
        slow.chain(late).collect()
    }

    pub fn retain(&self, stays: impl Fn(DriveId) -> bool) {
        self.p95.borrow_mut().retain(|id, _| stays(*id));
        self.late.borrow_mut().retain(|id, _| stays(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_that_became_slow_is_told_from_the_others() {
        let paces = Paces::default();
        let us = Duration::from_micros;
        for round in 0..400u64 {
            for drive in 0..5 {
                paces.sample(DriveId(drive), us(80 + round % 40));
            }
            paces.sample(DriveId(5), us(90));
        }
        assert_eq!((paces.slow(), paces.hedge_after()), ([].into(), HEDGE_MIN));
        for _ in 0..400 {
            (0..5).for_each(|drive| paces.sample(DriveId(drive), us(100)));
            paces.sample(DriveId(5), us(50_000));
        }
        assert_eq!((paces.slow(), paces.hedge_after()), ([DriveId(5)].into(), HEDGE_MIN));
        for _ in 0..4000 {
            (0..6).for_each(|drive| paces.sample(DriveId(drive), us(100)));
        }
        assert_eq!(paces.slow(), [].into());
        (0..LATE_MIN).for_each(|_| paces.was_late(DriveId(3)));
        assert_eq!(paces.slow(), [DriveId(3)].into());
        paces.sample(DriveId(3), us(100));
        assert_eq!(paces.slow(), [].into());
        paces.retain(|drive| drive == DriveId(0));
        assert_eq!(paces.p95.borrow().len(), 1);
    }
}
