//! Runs that are made for what random faults meet too seldom: few kinds of faults, and calls that they can hurt.

use crate::faults::FaultOptions;
use crate::workload::{self, WorkloadOptions};
use clap::ValueEnum;
use std::time::Duration;
use weft_drive::mem::MemOptions;
use weft_reactor::Random;

/// Seeds before this one have no aim: they are what they were when they failed.
const AIMED_FROM: u64 = 1_011_583;
const AIM_SALT: u64 = 0x6169_6d73;
const AIMED_SHARE: f64 = 0.2;
/// Few zones are soon handed out again.
const SMALL_DRIVE_BYTES: u64 = 160 << 20;

/// A client that doesn't reach most nodes soon waits in all of its workers, unless there are many and they take their time.
const SEALED_WORKERS: u64 = 10;
const SEALED_PAUSE_MAX: Duration = Duration::from_millis(2000);

/// What a run is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Aim {
    /// Leaders that were replaced and don't know, and drives that both they and their successors reach.
    Halves,
    /// Leaders that reach one other node alone, and then both lose power.
    Alone,
    /// Transactions whose participants don't reach each other.
    Pairs,
    /// Leaders that were replaced and don't know, and drives that restart right after they were sealed.
    Sealed,
    /// Recoveries that are interrupted before they are done.
    Restarts,
    /// Drives that are slow, or fail and come back, one after the other.
    Drives,
    /// Clients that are silent for longer than they may, and come back.
    Clients,
    /// Zones that are handed out again while somebody hangs who knew them before.
    Zones,
}

impl Aim {
    /// What a seed is made for, if it is made for anything.
    pub fn draw(seed: u64) -> Option<Self> {
        let mut random = Random::new(seed ^ AIM_SALT);
        let all = Self::value_variants();
        let aim = all.get(random.below(all.len() as u64) as usize).copied();
        aim.filter(|_| seed >= AIMED_FROM && random.chance(AIMED_SHARE))
    }

    /// Of each client, if not as many as always.
    pub fn workers(self) -> Option<u64> {
        (self == Self::Sealed).then_some(SEALED_WORKERS)
    }

    pub fn narrow(
        self,
        faults: &mut FaultOptions,
        work: &mut WorkloadOptions,
        drive: &mut MemOptions,
        random: &mut Random,
    ) {
        let mut every = |least: u64, most: u64| Duration::from_millis(least + random.below(most - least));
        *faults = match self {
            Self::Halves => FaultOptions { halves: true, crashes: true, ..FaultOptions::none(every(500, 2000)) },
            Self::Alone => FaultOptions { alone: true, ..FaultOptions::none(every(500, 2000)) },
            Self::Pairs => FaultOptions { pair_cuts: true, ..FaultOptions::none(every(200, 1500)) },
            Self::Sealed => FaultOptions { sealed: true, ..FaultOptions::none(every(1000, 3000)) },
            Self::Restarts => {
                FaultOptions { crashes: true, power_loss_of_all: true, ..FaultOptions::none(every(50, 800)) }
            }
            Self::Drives => {
                FaultOptions { failing_drives: true, slow_drives: true, ..FaultOptions::none(every(200, 1500)) }
            }
            Self::Clients => FaultOptions { client_cuts: true, long: true, ..FaultOptions::none(every(3000, 10_000)) },
            Self::Zones => FaultOptions { hangs: true, crashes: true, ..FaultOptions::none(every(100, 1000)) },
        };
        match self {
            Self::Halves | Self::Alone | Self::Restarts | Self::Drives => {}
            Self::Sealed => work.pause_max = SEALED_PAUSE_MAX,
            Self::Pairs => work.without = workload::without_all_but_names(),
            Self::Clients => work.without = workload::without_all_but_locks(),
            Self::Zones => {
                work.without = workload::without_all_but_data();
                drive.capacity_bytes = SMALL_DRIVE_BYTES;
            }
        }
    }
}
