//! What a leader needs to give its bucket away, or to begin a new epoch of its own, with a short pause.

use crate::BucketError;
use crate::bucket::Bucket;
use weft_wire::DriveId;

impl Bucket {
    /// Returns when everything that earlier ensembles hold stands on P+1 of the newest.
    pub async fn tail_copied(&self) -> Result<(), BucketError> {
        Ok(self.0.log.copied().await?)
    }

    /// Drives whose ensembles are forgotten needn't keep this bucket's journal. Returns whether they keep nothing any more.
    pub fn forget_journal_on(&self, drives: &[DriveId]) -> bool {
        self.0.log.forget_on(drives)
    }

    /// Has the planner write a checkpoint next, and returns when it has.
    pub async fn checkpoint_soon(&self) -> Result<(), BucketError> {
        let before = self.0.counters.checkpoints.get();
        self.0.starved.set(true);
        self.0.stripes.work.notify_one();
        loop {
            let progress = self.0.progress.notified();
            if let Some(error) = self.failed() {
                return Err(error);
            }
            if self.0.counters.checkpoints.get() > before {
                return Ok(());
            }
            progress.await;
        }
    }
}
