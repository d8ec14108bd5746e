//! Passes over everything that the node's buckets hold: scrub, on demand and by a schedule, and check. One at a time,
//! one bucket after the other, at a bounded pace.
//!
//! A bucket remembers when its last scrub ended, in its own index, so that the schedule survives restarts and changes
//! of leader. One that was never scrubbed gets a date within the period that its number gives: so buckets spread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Bucket, BucketError, ScrubFind, Scrubbed};
use weft_reactor::{Handle, Task};
use weft_wire::BucketId;
use weft_wire::control::{PassCause, PassKind, PassPhase, PassState};
use weft_wire::limits::BLOCK_BYTES;

/// Finds that a pass tells one by one; more are counted.
const PROBLEMS_MAX: usize = 64;
/// Of these, so many become events: a damaged drive must not push everything else out of the list of events.
const EVENTS_MAX: u64 = 16;
/// How often the schedule is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassOptions {
    /// Within this time everything is scrubbed once; zero: only on demand.
    pub scrub_period: Duration,
    /// Bytes per second that a scrub reads, parity included.
    pub scrub_pace_bytes: u64,
}

impl Default for PassOptions {
    fn default() -> Self {
        Self { scrub_period: Duration::from_secs(7 * 24 * 3600), scrub_pace_bytes: 64 << 20 }
    }
}

/// Tells an event: level and text.
pub type Tell = Rc<dyn Fn(&str, String)>;
/// The buckets that are led here just now.
pub type Led = Rc<dyn Fn() -> Vec<Bucket>>;

#[derive(Clone)]
pub struct Passes(Rc<Inner>);

struct Inner {
    handle: Handle,
    options: PassOptions,
    led: Led,
    tell: Tell,
    states: RefCell<BTreeMap<PassKind, PassState>>,
    running: Cell<Option<PassKind>>,
    task: RefCell<Option<Task<()>>>,
    /// When each bucket is to be scrubbed next, in nanoseconds since 1970, as far as that was looked up.
    due: RefCell<BTreeMap<BucketId, i64>>,
}

impl Passes {
    pub fn start(handle: Handle, options: PassOptions, led: Led, tell: Tell) -> Self {
        let passes = Self(Rc::new(Inner {
            handle: handle.clone(),
            options,
            led,
            tell,
            states: RefCell::default(),
            running: Cell::new(None),
            task: RefCell::default(),
            due: RefCell::default(),
        }));
        if !options.scrub_period.is_zero() {
            handle.spawn("scrub schedule", passes.clone().keep_schedule()).detach();
        }
        passes
    }

    /// How the newest pass of this kind goes, or went.
    pub fn state(&self, kind: PassKind) -> PassState {
        let state = self.0.states.borrow().get(&kind).cloned();
        let mut state = state.unwrap_or_else(|| PassState::never(kind));
        if kind == PassKind::Scrub {
            state.next_ns = self.0.due.borrow().values().min().copied();
            state.waiting_for_repair = (self.0.led)().iter().map(|bucket| bucket.stats().damaged_stripes).sum();
        }
        state
    }

    /// Begins a pass over all led buckets. One by schedule gives way; one that someone asked for does not.
    pub fn begin(&self, kind: PassKind, pace_bytes: Option<u64>) -> Result<(), String> {
        if let Some(running) = self.0.running.get() {
            let asked = self.0.states.borrow().get(&running).is_some_and(|state| state.cause == PassCause::Asked);
            if asked {
                return Err(format!("a {} runs already: `weft scrub status` shows it", running.name()));
            }
            self.stop(running);
        }
        let pace = pace_bytes.unwrap_or(self.0.options.scrub_pace_bytes).max(BLOCK_BYTES as u64);
        self.launch(kind, PassCause::Asked, pace, (self.0.led)());
        Ok(())
    }

    /// Ends the pass of this kind that runs, if one does.
    pub fn stop(&self, kind: PassKind) -> bool {
        if self.0.running.get() != Some(kind) {
            return false;
        }
        if let Some(task) = self.0.task.borrow_mut().take() {
            task.abort();
        }
        self.end(kind, PassPhase::Stopped);
        true
    }

    fn launch(&self, kind: PassKind, cause: PassCause, pace_bytes: u64, buckets: Vec<Bucket>) {
        let state = PassState {
            phase: PassPhase::Running,
            cause,
            started_ns: self.0.handle.wall_ns(),
            buckets: buckets.len() as u64,
            stripes: buckets.iter().map(|bucket| bucket.stats().stripes).sum(),
            ..PassState::never(kind)
        };
        self.0.states.borrow_mut().insert(kind, state);
        self.0.running.set(Some(kind));
        let passes = self.clone();
        let pass = async move {
            for bucket in buckets {
                match kind {
                    PassKind::Scrub => passes.scrub(&bucket, pace_bytes).await,
                    PassKind::Check => passes.check(&bucket).await,
                }
                passes.update(kind, |state| state.buckets_done += 1);
            }
            passes.end(kind, PassPhase::Ended);
        };
        let task = self.0.handle.spawn("pass over buckets", pass);
        *self.0.task.borrow_mut() = Some(task);
    }

    fn update(&self, kind: PassKind, change: impl FnOnce(&mut PassState)) {
        if let Some(state) = self.0.states.borrow_mut().get_mut(&kind) {
            change(state);
        }
    }

    fn end(&self, kind: PassKind, phase: PassPhase) {
        self.0.running.set(None);
        let ended_ns = self.0.handle.wall_ns();
        self.update(kind, |state| {
            state.phase = phase;
            state.ended_ns = ended_ns;
        });
        let state = self.state(kind);
        let nothing = state.buckets == 0 || (state.cause == PassCause::Schedule && state.problems.is_empty());
        if !nothing {
            (self.0.tell)(if state.problems.is_empty() { "info" } else { "warn" }, summary(&state));
        }
    }

    async fn scrub(&self, bucket: &Bucket, pace_bytes: u64) {
        let mut pass = bucket.begin_scrub();
        let repaired_before = bucket.stats().repaired_stripes;
        let mut told = Scrubbed::default();
        let done = loop {
            let step = bucket.scrub_step(&mut pass).await;
            let found = pass.found();
            let bytes = (found.blocks - told.blocks) * BLOCK_BYTES as u64;
            self.update(PassKind::Scrub, |state| {
                state.stripes_done += found.stripes - told.stripes;
                state.blocks += found.blocks - told.blocks;
                state.damaged += found.damaged - told.damaged;
                state.unreachable_shards += found.unreachable_shards - told.unreachable_shards;
            });
            told = found;
            for find in pass.take_finds() {
                self.problem(PassKind::Scrub, describe(bucket.id(), &find));
            }
            match step {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
            // However little was read, others get their turn.
            let pause = Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(pace_bytes)) as u64);
            self.0.handle.sleep(pause).await;
        };
        let repaired = bucket.stats().repaired_stripes.saturating_sub(repaired_before);
        self.update(PassKind::Scrub, |state| state.repaired += repaired);
        match done {
            Ok(()) => self.note_scrubbed(bucket).await,
            Err(error) => self.unfinished(PassKind::Scrub, bucket.id(), &error),
        }
    }

    async fn note_scrubbed(&self, bucket: &Bucket) {
        let now = self.0.handle.wall_ns();
        match bucket.set_scrubbed_at(now).await {
            Ok(()) => drop(self.0.due.borrow_mut().insert(bucket.id(), now.saturating_add(self.period_ns()))),
            // It will be scrubbed sooner than it had to.
            Err(error) => tracing::info!(bucket = %bucket.id(), %error, "that it was scrubbed is not written down"),
        }
    }

    async fn check(&self, bucket: &Bucket) {
        match bucket.check().await {
            Ok(checked) => {
                self.update(PassKind::Check, |state| {
                    state.stripes_done += checked.stripes;
                    state.blocks += checked.blocks;
                    state.unreachable_shards += checked.unreachable_shards;
                    state.more_problems += checked.more_problems;
                });
                for problem in checked.problems {
                    self.problem(PassKind::Check, format!("bucket {}: {problem}", bucket.id().0));
                }
            }
            Err(error) => self.unfinished(PassKind::Check, bucket.id(), &error),
        }
    }

    fn problem(&self, kind: PassKind, text: String) {
        let mut nth = 0;
        self.update(kind, |state| {
            nth = state.problems.len() as u64 + state.more_problems;
            match state.problems.len() < PROBLEMS_MAX {
                true => state.problems.push(text.clone()),
                false => state.more_problems += 1,
            }
        });
        if nth < EVENTS_MAX {
            (self.0.tell)("warn", format!("{}: {text}", kind.name()));
        }
    }

    fn unfinished(&self, kind: PassKind, bucket: BucketId, error: &BucketError) {
        self.update(kind, |state| state.unfinished.push(format!("bucket {}: {error}", bucket.0)));
    }

    fn period_ns(&self) -> i64 {
        i64::try_from(self.0.options.scrub_period.as_nanos()).unwrap_or(i64::MAX)
    }

    /// Scrubs what is due, whenever nothing else runs.
    async fn keep_schedule(self) {
        loop {
            self.0.handle.sleep(LOOK_EVERY).await;
            let led = (self.0.led)();
            self.0.due.borrow_mut().retain(|id, _| led.iter().any(|bucket| bucket.id() == *id));
            if self.0.running.get().is_some() {
                continue;
            }
            let mut due = Vec::new();
            for bucket in led {
                match self.due_at(&bucket).await {
                    Ok(at) if at <= self.0.handle.wall_ns() => due.push(bucket),
                    Ok(_) => {}
                    Err(error) => tracing::info!(bucket = %bucket.id(), %error, "when it was scrubbed can't be read"),
                }
            }
            // Someone may have asked for a pass meanwhile.
            if !due.is_empty() && self.0.running.get().is_none() {
                self.launch(PassKind::Scrub, PassCause::Schedule, self.0.options.scrub_pace_bytes, due);
            }
        }
    }

    async fn due_at(&self, bucket: &Bucket) -> Result<i64, BucketError> {
        let known = self.0.due.borrow().get(&bucket.id()).copied();
        if let Some(at) = known {
            return Ok(at);
        }
        let now = self.0.handle.wall_ns();
        let last = match bucket.scrubbed_at().await? {
            // A clock that was set back must not put the next one off for years.
            Some(last) => last.min(now),
            None => {
                let last = now.saturating_sub(spread(bucket.id(), self.period_ns()));
                bucket.set_scrubbed_at(last).await?;
                last
            }
        };
        let at = last.saturating_add(self.period_ns());
        self.0.due.borrow_mut().insert(bucket.id(), at);
        Ok(at)
    }
}

/// A part of the period, another for each bucket.
fn spread(bucket: BucketId, period_ns: i64) -> i64 {
    // The golden ratio's multiples lie evenly, however many there are.
    let part = u128::from(u64::from(bucket.0).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    ((part * period_ns.max(0) as u128) >> 64) as i64
}

fn describe(bucket: BucketId, find: &ScrubFind) -> String {
    format!(
        "bucket {}: {} shard {} on {} ({} from block {}): {}",
        bucket.0, find.stripe, find.shard, find.drive, find.zone, find.row, find.reason
    )
}

fn summary(state: &PassState) -> String {
    let problems = state.problems.len() as u64 + state.more_problems;
    let end = if state.phase == PassPhase::Stopped { "was stopped" } else { "ended" };
    let mut text = format!(
        "{} {end}: {} of {} buckets, {} stripes, {problems} problems",
        state.kind.name(),
        state.buckets_done,
        state.buckets,
        state.stripes_done
    );
    if state.unreachable_shards > 0 {
        text += &format!(", {} shards on drives that are away", state.unreachable_shards);
    }
    if let Some(reason) = state.unfinished.first() {
        text += &format!(", {} buckets not to the end ({reason})", state.unfinished.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_dates_are_spread_over_the_period() {
        const PERIOD: i64 = 1000;
        const BUCKETS: u32 = 16;
        let mut dates: Vec<i64> = (0..BUCKETS).map(|bucket| spread(BucketId(bucket), PERIOD)).collect();
        dates.sort_unstable();
        assert!(dates.iter().all(|date| (0..PERIOD).contains(date)));
        let widest = dates.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(widest <= Some(2 * PERIOD / i64::from(BUCKETS)), "{dates:?}");
    }
}
