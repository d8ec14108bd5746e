//! How a rebuild shares the drives with the rebuilds of all other leaders: how much it reads and writes at once, and which
//! of the shards that would do it reads. Nobody tells the leaders of each other; the drives' answers do.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_wire::DriveId;
use weft_wire::limits::{BLOCK_BYTES, MESSAGE_BODY_BYTES_MAX, STRIPE_ROWS_MAX};

/// Rows of one read and one write.
pub const CHUNK_ROWS_MAX: u32 = 128;
const _: () =
    assert!(CHUNK_ROWS_MAX >= STRIPE_ROWS_MAX && CHUNK_ROWS_MAX as usize * BLOCK_BYTES <= MESSAGE_BODY_BYTES_MAX);

/// A step that took longer has waited behind others at the drives, as everything else there does: then less is done at once.
const STEP_MAX: Duration = Duration::from_millis(50);

/// A drive with so many times as long to wait for as the soonest is passed over, whatever is planned.
const LATE: u32 = 8;
/// A drive that could not be read as planned for long is not read all the time afterwards: shards that are caught up at most.
const OWED_MAX: i64 = 4;

/// Parts of a zone set that the next step copies at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stride(usize);

impl Default for Stride {
    fn default() -> Self {
        Self(1)
    }
}

impl Stride {
    pub fn chunks(self) -> usize {
        self.0
    }

    /// The next one, of `most` at most, after a step that took so long.
    pub fn after(self, took: Duration, most: usize) -> Self {
        match took > STEP_MAX {
            true => Self((self.0 / 2).max(1)),
            false => Self((self.0 + 1).min(most.max(1))),
        }
    }

    /// How long others have the drives to themselves after a step that took so long. All leaders that rebuild meet at the
    /// drives; where they are many, each leaves so much time that what waits there stays about a step's worth.
    pub fn pause(self, took: Duration) -> Duration {
        if self.0 == 1 { took.saturating_sub(STEP_MAX) } else { Duration::ZERO }
    }
}

/// What is known of a drive that was read from.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    /// About how long its last answers took, each counted a quarter; less each time it is passed over, so that it is asked again.
    took: Duration,
    /// Reads that it has not answered.
    asked: u32,
    /// By how much it was read less than planned.
    owed: i64,
}

impl Answers {
    fn wait(&self) -> Duration {
        self.took * (self.asked + 1)
    }
}

/// The drives that a bucket's rebuilds read from.
#[derive(Debug, Default)]
pub struct Sources {
    /// One entry for each that was a candidate since there is work without a break.
    answers: BTreeMap<DriveId, Answers>,
    /// How much of each is to be read, so that all drives of the cluster have equally much to do.
    plan: BTreeMap<DriveId, u64>,
}

impl Sources {
    /// How much of each drive's shard is to be read, in any unit: together as many whole ones as are needed. What is
    /// planned for others than the candidates is no plan.
    pub fn follow(&mut self, plan: BTreeMap<DriveId, u64>) {
        self.plan = plan;
    }

    /// There is nothing to read: how drives answered is not remembered.
    pub fn rest(&mut self) {
        self.answers.clear();
    }

    /// As many of the candidates as are needed: those that were read less than planned, and without a plan those with the
    /// least to wait for. Where all are alike, `turn` says who is passed over, so that each is as often as any other.
    pub fn choose(&mut self, candidates: Vec<(usize, DriveId)>, needed: usize, turn: usize) -> Vec<usize> {
        let count = candidates.len().max(1);
        let planned = self.planned(&candidates, needed);
        let waits = candidates.iter().filter_map(|(_, drive)| Some(self.answers.get(drive)?.wait()));
        let least = waits.filter(|wait| !wait.is_zero()).min().unwrap_or_default();
        let mut order = Vec::with_capacity(candidates.len());
        for (position, (shard, drive)) in candidates.into_iter().enumerate() {
            let answers = self.answers.entry(drive).or_default();
            let rank = match planned {
                Some(_) => {
                    answers.owed += self.plan.get(&drive).map_or(0, |share| *share as i64);
                    let is_late = answers.wait() > least * LATE;
                    (is_late, Reverse(answers.owed), Duration::ZERO)
                }
                None => (false, Reverse(0), answers.wait()),
            };
            order.push((rank, (position + turn) % count, shard, drive));
        }
        order.sort_unstable();
        for (at, (_, _, _, drive)) in order.iter().enumerate() {
            let Some(answers) = self.answers.get_mut(drive) else { continue };
            let whole = planned.unwrap_or(0);
            match at < needed {
                true => answers.owed -= whole,
                false => answers.took -= answers.took / 8,
            }
            answers.owed = answers.owed.clamp(-OWED_MAX * whole, OWED_MAX * whole);
        }
        order.into_iter().take(needed).map(|(_, _, shard, _)| shard).collect()
    }

    /// A whole shard in the plan's unit, if there is a plan for these candidates.
    fn planned(&self, candidates: &[(usize, DriveId)], needed: usize) -> Option<i64> {
        let shares = candidates.iter().map(|(_, drive)| self.plan.get(drive).copied());
        let sum = shares.sum::<Option<u64>>()?;
        i64::try_from(sum / (needed as u64).max(1)).ok().filter(|whole| *whole > 0)
    }

    pub fn asks(&mut self, drive: DriveId) {
        self.answers.entry(drive).or_default().asked += 1;
    }

    pub fn answered(&mut self, drive: DriveId, took: Duration) {
        // One that was forgotten meanwhile stays so.
        if let Some(answers) = self.answers.get_mut(&drive) {
            answers.asked = answers.asked.saturating_sub(1);
            answers.took = match answers.took.is_zero() {
                true => took,
                false => (answers.took * 3 + took) / 4,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn equals_take_turns_and_a_busy_drive_is_passed_over() {
        let mut sources = Sources::default();
        let candidates = || (0..5).map(|shard| (shard, DriveId(shard as u32))).collect::<Vec<_>>();
        let mut read = [0; 5];
        for turn in 0..50 {
            sources.choose(candidates(), 4, turn).into_iter().for_each(|shard| read[shard] += 1);
        }
        assert_eq!(read, [40; 5]);
        let mut read = [0; 5];
        for turn in 0..100 {
            for shard in sources.choose(candidates(), 4, turn) {
                read[shard] += 1;
                sources.asks(DriveId(shard as u32));
                sources.answered(DriveId(shard as u32), if shard == 2 { 20 * MS } else { 5 * MS });
            }
        }
        assert!((1..=20).contains(&read[2]), "{read:?}");
        // One that owes answers is as good as a slow one.
        (0..10).for_each(|_| sources.asks(DriveId(0)));
        assert!(!sources.choose(candidates(), 4, 0).contains(&0));
    }

    #[test]
    fn a_plan_is_followed_unless_a_drive_is_late() {
        let mut sources = Sources::default();
        let candidates = || (0..5).map(|shard| (shard, DriveId(shard as u32))).collect::<Vec<_>>();
        sources.follow((0..5).map(|shard| (DriveId(shard), [10, 5, 10, 10, 5][shard as usize])).collect());
        let read = |sources: &mut Sources, late: Option<u32>| {
            let mut read = [0; 5];
            for turn in 0..100 {
                for shard in sources.choose(candidates(), 4, turn) {
                    read[shard] += 1;
                    sources.asks(DriveId(shard as u32));
                    sources.answered(DriveId(shard as u32), if late == Some(shard as u32) { 100 * MS } else { 5 * MS });
                }
            }
            read
        };
        assert_eq!(read(&mut sources, None), [100, 50, 100, 100, 50]);
        let late = read(&mut sources, Some(2));
        assert!(late[2] <= 40, "{late:?}");
        // Members that nothing is planned for: by their answers.
        let mut sources = Sources::default();
        sources.follow(BTreeMap::from([(DriveId(0), 10)]));
        let unplanned = read(&mut sources, None);
        assert!(unplanned.iter().all(|reads| (70..=90).contains(reads)), "{unplanned:?}");
    }

    #[test]
    fn a_step_that_took_long_is_followed_by_a_smaller_one() {
        let mut stride = Stride::default();
        (0..5).for_each(|_| stride = stride.after(10 * MS, 4));
        assert_eq!((stride.chunks(), stride.pause(200 * MS)), (4, Duration::ZERO));
        (0..2).for_each(|_| stride = stride.after(80 * MS, 4));
        assert_eq!((stride.chunks(), stride.pause(80 * MS)), (1, 30 * MS));
    }
}
