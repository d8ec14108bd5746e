use std::cell::Cell;
use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::rc::Rc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A point in time: nanoseconds of `CLOCK_BOOTTIME`, which counts suspend, or of a [`VirtualClock`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    pub const ZERO: Self = Self(0);
    /// Later than anything that will happen.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// Time passed since `earlier`; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This much earlier, but not before the beginning.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates: a wait of [`Duration::MAX`] ends in the far future.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where time comes from.
pub trait Clock {
    /// Monotonic, counts suspend.
    fn now(&self) -> Instant;
    /// Nanoseconds since the Unix epoch: for time stamps that users see, never for deciding anything.
    fn wall_ns(&self) -> i64;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant(read_clock(ClockId::CLOCK_BOOTTIME).max(0) as u64)
    }

    fn wall_ns(&self) -> i64 {
        read_clock(ClockId::CLOCK_REALTIME)
    }
}

fn read_clock(clock: ClockId) -> i64 {
    // Both clocks have existed since Linux 2.6.39 and the call has no other way to fail.
    match clock_gettime(clock) {
        Ok(time) => time.tv_sec() * 1_000_000_000 + time.tv_nsec(),
        Err(error) => unreachable!("clock {clock}: {error}"),
    }
}

/// Wall time of a [`VirtualClock`] at its [`Instant::ZERO`].
const VIRTUAL_EPOCH_WALL_NS: i64 = 1_700_000_000_000_000_000;

/// A clock that stands still until told otherwise. Clones share the time.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock {
    now: Rc<Cell<Instant>>,
}

impl VirtualClock {
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves to `to`; time never goes back, so an earlier `to` does nothing.
    pub fn advance_to(&self, to: Instant) {
        self.now.set(self.now.get().max(to));
    }

    pub fn advance(&self, by: Duration) {
        self.now.set(self.now.get() + by);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn wall_ns(&self) -> i64 {
        VIRTUAL_EPOCH_WALL_NS.saturating_add(i64::try_from(self.now.get().0).unwrap_or(i64::MAX))
    }
}
