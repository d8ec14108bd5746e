//! One planner for each bucket decides what happens to its stripes, one step at a time: two actors on one stripe would
//! be where data is lost.
//!
//! A step that fails is left alone for a while, and the others go on: a stripe that can't be repaired now must not stop
//! the checkpoint that gives the journal room.

use crate::BucketError;
use crate::batch::ZoneSetChange;
use crate::bucket::{Bucket, add};
use crate::extents::Worked;
use crate::stripes::Purse;
use std::time::Duration;
use weft_reactor::Instant;

/// What the planner found to do, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Free,
    Checkpoint,
    Destage,
    Repair,
    /// Shards of a zone set get a place on a member that is there.
    Rebuild,
    Merge,
    Clean,
    /// Tell drives that were away which zones are free.
    FreeAgain,
}

const STEPS: [Step; 8] = [
    Step::Free,
    Step::Checkpoint,
    Step::Destage,
    Step::Repair,
    Step::Rebuild,
    Step::Merge,
    Step::Clean,
    Step::FreeAgain,
];

/// A kind of step that is left alone for a while.
#[derive(Clone, Debug)]
struct Pause {
    until: Instant,
    /// Why the last one failed; a rebuild also pauses for the sake of others.
    failed: Option<String>,
    /// In a row.
    failures: u32,
}

/// Each failure in a row doubles the pause before the next try, so often: a try may leave records in the journal of what it opened.
const DOUBLINGS_MAX: u32 = 3;

/// When each kind of step may be taken again.
#[derive(Debug, Default)]
pub(crate) struct Pauses([Option<Pause>; STEPS.len()]);

impl Pauses {
    fn until(&self, step: Step) -> Option<Instant> {
        self.0[step as usize].as_ref().map(|pause| pause.until)
    }

    fn failures(&self, step: Step) -> u32 {
        self.0[step as usize].as_ref().map_or(0, |pause| pause.failures)
    }

    /// What failed may work now.
    pub(crate) fn try_again(&mut self, now: Instant) {
        for pause in self.0.iter_mut().flatten().filter(|pause| pause.failed.is_some()) {
            (pause.until, pause.failures) = (now, 0);
        }
    }
}

impl Bucket {
    /// Whether there is anything to do of this kind. Asked with each commit: looks at counters alone.
    fn wants(&self, step: Step) -> bool {
        let tunables = &self.0.tunables;
        // What is left of the journal then is for the checkpoint.
        let tight = || self.0.log.room().bytes_used * 8 > self.0.log.room().bytes_quota * 7;
        match step {
            Step::Free => self.0.stripes.zones.borrow().has_freeable(),
            Step::Checkpoint => {
                let room = self.0.log.room();
                self.0.starved.get()
                    || room.bytes_used * 256 >= room.bytes_quota * tunables.checkpoint_share
                    || self.0.index.memtable_bytes() >= tunables.memtable_bytes_max
                    || self.wants_root()
            }
            Step::Destage => {
                let held = self.0.held.borrow();
                !tight()
                    && (held.live_blocks() >= u64::from(self.0.stripes.blocks_max())
                        || held.resident_bytes() * 2 > tunables.held_bytes_max)
            }
            Step::Repair => !tight() && !self.0.stripes.damaged.borrow().is_empty(),
            Step::Rebuild => !tight() && self.wants_rebuild(),
            Step::Merge => self.wants_merge(),
            Step::Clean => !tight() && self.set_to_clean().is_some(),
            Step::FreeAgain => self.0.stripes.can_free_again(),
        }
    }

    /// Whether what merging and cleaning left behind is needed now: only a new root lets it go.
    fn wants_root(&self) -> bool {
        let zones = self.0.stripes.zones.borrow();
        !zones.retired().is_empty() && zones.sets_len() + 1 >= self.0.stripes.limits.get().user()
    }

    /// The most urgent step that isn't paused.
    fn next_step(&self) -> Option<Step> {
        let pauses = self.0.pauses.borrow();
        let now = self.0.handle.now();
        let ready = |step: &Step| pauses.until(*step).is_none_or(|until| until <= now);
        STEPS.into_iter().find(|step| ready(step) && self.wants(*step))
    }

    /// Nothing to do that could make room, paused steps included: waiting for the planner would be in vain.
    pub(crate) fn is_idle(&self) -> bool {
        !STEPS.into_iter().any(|step| step != Step::Rebuild && self.wants(step))
    }

    /// Whether the planner has anything to do, paused steps included.
    pub(crate) fn has_work(&self) -> bool {
        STEPS.into_iter().any(|step| self.wants(step))
    }

    /// Whether others wait while a rebuild goes on.
    pub(crate) fn has_work_below_rebuild(&self) -> bool {
        self.wants(Step::Merge) || self.wants(Step::Clean)
    }

    /// When a paused step may be tried again.
    fn pause_ends(&self) -> Option<Instant> {
        let pauses = self.0.pauses.borrow();
        STEPS.into_iter().filter(|step| self.wants(*step)).filter_map(|step| pauses.until(step)).min()
    }

    /// Why work that is still to be done could not be done: what nobody wants any more is no trouble.
    pub(crate) fn trouble(&self) -> Option<String> {
        let failed = |step: &Step| self.0.pauses.borrow().0[*step as usize].as_ref()?.failed.clone();
        let troubles = STEPS.into_iter().filter_map(|step| Some((step, failed(&step)?)));
        let mut wanted = troubles.filter(|(step, _)| self.wants(*step));
        wanted.next().map(|(step, error)| format!("{step:?}: {error}"))
    }

    async fn take(&self, step: Step) -> Result<(), BucketError> {
        match step {
            Step::Free => self.free_sets().await,
            Step::Checkpoint => self.checkpoint().await,
            Step::Destage => self.destage_once().await.map(drop),
            Step::Repair => self.repair_damaged().await,
            Step::Rebuild => self.rebuild_once().await,
            Step::Merge => self.merge_once().await,
            Step::Clean => self.clean_once().await,
            Step::FreeAgain => match self.0.stripes.free_again().await {
                true => Ok(()),
                false => {
                    let left = self.0.stripes.unfreed_len();
                    Err(BucketError::NotReady(format!("{left} zones are not freed yet")))
                }
            },
        }
    }

    /// Orderly end: a last checkpoint, so that the next leader has little to replay; then the bucket is closed.
    pub async fn finish(&self) -> Result<(), BucketError> {
        self.0.finishing.set(true);
        self.0.stripes.work.notify_one();
        while self.0.planning.get() {
            self.0.planner_done.notified().await;
        }
        let done = match self.failed() {
            None => {
                // A second call waits here for the first.
                self.0.planning.set(true);
                self.0.step.set(Some(Step::Checkpoint));
                let done = self.checkpoint().await;
                self.stop_planning();
                done
            }
            Some(error) => Err(error),
        };
        self.close();
        done
    }

    fn stop_planning(&self) {
        self.0.step.set(None);
        self.0.planning.set(false);
        self.0.planner_done.notify_all();
    }

    /// Runs until the bucket is closed or taken over.
    pub(crate) async fn plan(self) {
        while self.failed().is_none() && !self.0.finishing.get() {
            let Some(step) = self.next_step() else {
                let work = self.0.stripes.work.notified();
                match self.pause_ends() {
                    // Whoever waits for the paused step goes on waiting.
                    Some(until) => drop(self.0.handle.timeout_at(until, work).await),
                    None => {
                        self.0.progress.notify_all();
                        work.await;
                    }
                }
                continue;
            };
            self.0.step.set(Some(step));
            let begun = self.0.handle.now();
            let done = self.take(step).await;
            self.0.step.set(None);
            match done {
                Ok(()) => {
                    let now = self.0.handle.now();
                    let pause = match step {
                        Step::Rebuild => self.rebuild_pause(now.since(begun)),
                        _ => Duration::ZERO,
                    };
                    let pause =
                        (pause > Duration::ZERO).then(|| Pause { until: now + pause, failed: None, failures: 0 });
                    self.0.pauses.borrow_mut().0[step as usize] = pause;
                    self.0.progress.notify_all();
                }
                Err(error @ (BucketError::Deposed(_) | BucketError::Stopped)) => {
                    // The journal may not have heard yet: without a planner the bucket can't go on either way.
                    self.end(error);
                    break;
                }
                Err(error) => {
                    tracing::warn!(bucket = %self.0.id, ?step, %error, "background work waits");
                    let before = self.0.pauses.borrow().failures(step);
                    let pause = self.0.tunables.planner_pause * (1 << before.min(DOUBLINGS_MAX));
                    let until = self.0.handle.now() + pause;
                    let pause = Pause { until, failed: Some(error.to_string()), failures: before + 1 };
                    self.0.pauses.borrow_mut().0[step as usize] = Some(pause);
                }
            }
            self.0.handle.yield_now().await;
        }
        let unfinished = self.0.merging.borrow_mut().take();
        drop(unfinished);
        *self.0.rebuilds.borrow_mut() = Default::default();
        self.0.progress.notify_all();
        self.stop_planning();
    }

    /// Frees zone sets that hold nothing any more: first the records, then the drives.
    async fn free_sets(&self) -> Result<(), BucketError> {
        let ids = self.0.stripes.zones.borrow_mut().take_freeable();
        let mut members = Vec::new();
        let mut last = None;
        for (at, id) in ids.iter().enumerate() {
            let Some(set) = self.0.stripes.zones.borrow().set(*id).cloned() else { continue };
            let change = vec![ZoneSetChange::Free(*id)];
            match self.commit_now(&[], &[], &Worked::default(), change, Purse::Planner) {
                Ok(seq) => last = Some(seq),
                Err(error) => {
                    let mut zones = self.0.stripes.zones.borrow_mut();
                    ids[at..].iter().for_each(|id| zones.keep(*id));
                    drop(zones);
                    if last.is_none() {
                        return Err(error.into());
                    }
                    break;
                }
            }
            members.extend(set.zones().copied());
            add(&self.0.counters.freed_sets, 1);
        }
        if let Some(seq) = last {
            self.settled(seq).await?;
            self.0.stripes.free_members(members).await;
        }
        Ok(())
    }
}
