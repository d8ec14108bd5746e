//! Merging runs into fewer, a stripe at a time, so that more urgent work comes in between.

use crate::BucketError;
use crate::bucket::{Bucket, add};
use crate::checkpoint::RunWriter;
use crate::index::{Cursor, Run};
use crate::run::{IndexStripe, RunBuilder};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::StripeId;

/// Entries between two looks at other tasks.
const ENTRIES_PER_TURN: u32 = 512;

/// Runs that are being merged. They stay in use until the merged one is complete.
pub(crate) struct Merge {
    old: Vec<Rc<Run>>,
    cursors: Vec<Cursor>,
    builder: RunBuilder,
    writer: RunWriter,
    /// Nothing is below them: deletions have nothing left to hide.
    oldest: bool,
    any: bool,
}

impl Bucket {
    /// Whether a merge is under way or due.
    pub(crate) fn wants_merge(&self) -> bool {
        self.0.merging.borrow().is_some() || self.0.index.runs_len() > self.0.tunables.runs_max
    }

    /// Goes on with a merge up to the next full stripe. If that fails, the merge is begun anew another time.
    pub(crate) async fn merge_once(&self) -> Result<(), BucketError> {
        let merge = self.0.merging.borrow_mut().take();
        let mut merge = match merge {
            Some(merge) => merge,
            None => self.begin_merge().await?,
        };
        if merge.advance(self).await? {
            self.end_merge(merge).await
        } else {
            *self.0.merging.borrow_mut() = Some(merge);
            Ok(())
        }
    }

    async fn begin_merge(&self) -> Result<Merge, BucketError> {
        let runs = self.0.index.runs();
        // A run joins while it isn't much larger than all newer ones together: each entry is written again about
        // log(size) times.
        let mut blocks = 0;
        let mut count = 0;
        while count < runs.len() && (count < 2 || u64::from(runs[count].blocks()) <= 2 * blocks) {
            blocks += u64::from(runs[count].blocks());
            count += 1;
        }
        let old = runs[..count].to_vec();
        let mut cursors = Vec::with_capacity(count);
        for run in &old {
            cursors.push(Cursor::seek(&self.0.index, Rc::clone(run), &[], &self.0.stripes).await?);
        }
        Ok(Merge {
            oldest: count == runs.len(),
            old,
            cursors,
            builder: RunBuilder::default(),
            writer: RunWriter::new(&self.0.stripes),
            any: false,
        })
    }

    async fn end_merge(&self, merge: Merge) -> Result<(), BucketError> {
        let Merge { old, builder, writer, any, .. } = merge;
        let merged = if any { Some(writer.finish(builder, self.next_run_id()).await?) } else { None };
        self.0.index.replace(&old, merged);
        let mut zones = self.0.stripes.zones.borrow_mut();
        for run in &old {
            run.meta.borrow().stripes.iter().for_each(|stripe| zones.retire(stripe.id));
        }
        add(&self.0.counters.merges, 1);
        Ok(())
    }
}

impl Merge {
    /// What it wrote so far.
    pub fn written(&self) -> &[IndexStripe] {
        self.writer.written()
    }

    /// Whether it wrote this stripe.
    pub fn wrote(&self, id: StripeId) -> bool {
        self.writer.wrote(id)
    }

    /// True: all entries are taken.
    async fn advance(&mut self, bucket: &Bucket) -> Result<bool, BucketError> {
        let mut turn = 0;
        loop {
            let lowest = self.cursors.iter().filter_map(|cursor| cursor.peek().map(|(key, _)| key)).min().cloned();
            let Some(lowest) = lowest else { return Ok(true) };
            let mut newest: Option<Option<Bytes>> = None;
            for cursor in &mut self.cursors {
                if cursor.peek().is_some_and(|(key, _)| *key == lowest) {
                    let (_, value) = cursor.take(&bucket.0.index, &bucket.0.stripes).await?;
                    newest.get_or_insert(value);
                }
            }
            if let Some(value) = newest.filter(|value| value.is_some() || !self.oldest) {
                self.any = true;
                self.builder.push(&lowest, value.as_ref());
                if self.writer.drain(&mut self.builder).await? {
                    return Ok(false);
                }
            }
            turn += 1;
            if turn % ENTRIES_PER_TURN == 0 {
                bucket.0.handle.yield_now().await;
            }
        }
    }
}
