//! One planner for each bucket decides what happens to its stripes, one step at a time: two actors on one stripe would
//! be where data is lost.

use crate::BucketError;
use crate::batch::{Batch, ZoneSetChange};
use crate::bucket::Bucket;

/// What the planner found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Free,
    Checkpoint,
    Destage,
    Repair,
    Clean,
}

impl Bucket {
    /// The most urgent step, if there is one. Pure look.
    fn next_step(&self) -> Option<Step> {
        let tunables = &self.0.tunables;
        let room = self.0.log.room();
        let journal_full = room.bytes_used * 256 >= room.bytes_quota * tunables.checkpoint_share;
        let zones = self.0.stripes.zones.borrow();
        let short = zones.sets_len() + 2 > tunables.zone_sets_max.saturating_sub(tunables.zone_sets_reserved);
        let held = self.0.held.borrow();
        let destage = held.live_blocks() >= u64::from(self.0.stripes.blocks_max())
            || held.resident_bytes() * 2 > tunables.held_bytes_max;
        if zones.has_freeable() {
            Some(Step::Free)
        } else if journal_full || self.0.index.memtable_bytes() >= tunables.memtable_bytes_max {
            Some(Step::Checkpoint)
        } else if destage {
            Some(Step::Destage)
        } else if !self.0.stripes.damaged.borrow().is_empty() {
            Some(Step::Repair)
        } else if short && zones.emptiest(u32::from(self.0.protection.data), tunables.clean_share_max).is_some() {
            Some(Step::Clean)
        } else {
            None
        }
    }

    pub(crate) fn wants_work(&self) -> bool {
        self.next_step().is_some()
    }

    async fn take(&self, step: Step) -> Result<(), BucketError> {
        match step {
            Step::Free => self.free_sets().await,
            Step::Checkpoint => self.checkpoint().await,
            Step::Destage => self.destage_once().await.map(drop),
            Step::Repair => self.repair_damaged().await,
            Step::Clean => self.clean_once().await,
        }
    }

    /// Orderly end: a last checkpoint, so that the next leader has little to replay; then the bucket is closed.
    pub async fn finish(&self) -> Result<(), BucketError> {
        self.0.finishing.set(true);
        self.0.stripes.work.notify_one();
        self.0.planner_done.notified().await;
        let done = match self.failed() {
            None => self.checkpoint().await,
            Some(error) => Err(error),
        };
        self.close();
        done
    }

    /// Runs until the bucket is closed or taken over.
    pub(crate) async fn plan(self) {
        while self.failed().is_none() && !self.0.finishing.get() {
            let Some(step) = self.next_step() else {
                self.0.progress.notify_all();
                self.0.stripes.work.notified().await;
                continue;
            };
            let done = self.take(step).await;
            match done {
                Ok(()) => {
                    *self.0.trouble.borrow_mut() = None;
                    self.0.progress.notify_all();
                    self.0.handle.yield_now().await;
                }
                Err(BucketError::Deposed(_) | BucketError::Stopped) => break,
                Err(error) => {
                    tracing::warn!(bucket = %self.0.id, ?step, %error, "background work waits");
                    *self.0.trouble.borrow_mut() = Some(format!("{step:?}: {error}"));
                    self.0.progress.notify_all();
                    self.0.handle.sleep(self.0.tunables.planner_pause).await;
                }
            }
        }
        self.0.progress.notify_all();
        self.0.planner_done.notify_one();
    }

    /// Frees zone sets that hold nothing any more: first the record, then the drives.
    async fn free_sets(&self) -> Result<(), BucketError> {
        let sets = self.0.stripes.zones.borrow_mut().take_freeable();
        for (at, id) in sets.iter().enumerate() {
            let Some(set) = self.0.stripes.zones.borrow().set(*id).cloned() else { continue };
            let freed = match self.commit_unadmitted(&Batch::new(), &[ZoneSetChange::Free(*id)]).await {
                Ok(seq) => self.settled(seq).await,
                Err(error) => Err(error),
            };
            if let Err(error) = freed {
                let mut zones = self.0.stripes.zones.borrow_mut();
                sets[at..].iter().for_each(|id| zones.keep(*id));
                return Err(error);
            }
            self.0.stripes.free_members(&set.members).await;
            let counter = &self.0.counters.freed_sets;
            counter.set(counter.get() + 1);
        }
        Ok(())
    }
}
