//! Checkpoint: the memtable becomes a run, a manifest names all runs and zone sets, a root record in the journal names
//! the manifest. From then on the journal below it is not needed.

use crate::BucketError;
use crate::bucket::Bucket;
use crate::index::{Cursor, Run};
use crate::run::{IndexStripe, RunBuilder, RunMeta};
use crate::stripe::Staged;
use crate::zones::{Kind, StripeEntry, ZoneSet, ZoneTableImage};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_journal::RootRecord;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{Seq, StripeId};

/// Entries between two looks at other tasks.
const ENTRIES_PER_TURN: u32 = 512;

/// Everything that a new leader needs beside the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Newest first.
    pub runs: Vec<RunMeta>,
    pub zones: ZoneTableImage,
    pub next_serial: u64,
    pub next_run: u64,
}

/// The body of a root record: where the manifest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootBody {
    pub stripes: Vec<(IndexStripe, ZoneSet)>,
    pub manifest_bytes: u64,
}

impl Bucket {
    /// Writes everything up to now into runs and trims the journal.
    pub(crate) async fn checkpoint(&self) -> Result<(), BucketError> {
        // What only the journal holds keeps it from being trimmed: all that is there now goes into stripes first.
        let target = self.0.log.last();
        while self.0.held.borrow().oldest().is_some_and(|oldest| oldest <= target) {
            if !self.destage_once().await? {
                break;
            }
        }
        let last = self.0.log.last();
        let oldest_held = self.0.held.borrow().oldest();
        if self.0.index.frozen().is_none() {
            self.0.index.freeze();
            self.0.frozen_at.set(match oldest_held {
                Some(oldest) => last.min(Seq(oldest.0 - 1)),
                None => last,
            });
        }
        let covers = self.0.frozen_at.get();
        if let Some(frozen) = self.0.index.frozen() {
            let mut builder = RunBuilder::new(self.0.stripes.blocks_max());
            let mut writer = RunWriter::new(self);
            let mut turn = 0;
            for (key, value) in frozen.iter() {
                builder.push(key, value.as_ref());
                writer.drain(&mut builder).await?;
                turn += 1;
                if turn % ENTRIES_PER_TURN == 0 {
                    self.0.handle.yield_now().await;
                }
            }
            let run = writer.finish(builder).await?;
            self.0.index.thaw(run);
        }
        let retired = self.merge_if_many().await?;
        self.0.retired.borrow_mut().extend(retired);
        self.write_root(covers).await?;
        let counter = &self.0.counters.checkpoints;
        counter.set(counter.get() + 1);
        Ok(())
    }

    /// Writes the manifest, then the root. When that stands, what it replaced is free.
    async fn write_root(&self, covers: Seq) -> Result<(), BucketError> {
        let old_manifest = self.0.manifest.borrow().clone();
        let mut leaving: BTreeSet<StripeId> = self.0.retired.borrow().iter().copied().collect();
        leaving.extend(old_manifest.iter().map(|stripe| stripe.id));
        let manifest = Manifest {
            runs: self.0.index.runs().iter().map(|run| run.meta.borrow().clone()).collect(),
            zones: self.0.stripes.zones.borrow().image(&leaving),
            next_serial: self.0.next_serial.get(),
            next_run: self.0.next_run.get(),
        };
        let encoded = weft_wire::encode(&manifest);
        let manifest_bytes = encoded.len() as u64;
        let mut padded = encoded.to_vec();
        padded.resize(encoded.len().next_multiple_of(BLOCK_BYTES), 0);
        let padded = Bytes::from(padded);
        let stripe_bytes = self.0.stripes.blocks_max() as usize * BLOCK_BYTES;
        let mut stripes = Vec::new();
        let mut at = 0;
        while at < padded.len() {
            let end = (at + stripe_bytes).min(padded.len());
            let stripe = self.write_index_stripe(padded.slice(at..end)).await?;
            let set = self.0.stripes.zones.borrow().set(stripe.zone_set).cloned();
            let set = set.ok_or(BucketError::Gone(stripe.id))?;
            stripes.push((stripe, set));
            at = end;
        }
        let body = RootBody { stripes, manifest_bytes };
        let (_, stands) = self.0.log.append_root(RootRecord { covers, body: weft_wire::encode(&body) })?;
        stands.await.map_err(|_| BucketError::Stopped)??;
        *self.0.manifest.borrow_mut() = body.stripes.into_iter().map(|(stripe, _)| stripe).collect();
        self.0.retired.borrow_mut().retain(|id| !leaving.contains(id));
        let mut zones = self.0.stripes.zones.borrow_mut();
        for id in leaving {
            zones.set_live(id, 0);
        }
        Ok(())
    }

    /// Writes a stripe of a run or manifest and enters it into the table.
    pub(crate) async fn write_index_stripe(&self, data: Bytes) -> Result<IndexStripe, BucketError> {
        let staged = self.0.stripes.stage(Kind::Index, data).await?;
        Ok(self.enter_index_stripe(staged))
    }

    fn enter_index_stripe(&self, staged: Staged) -> IndexStripe {
        let mut zones = self.0.stripes.zones.borrow_mut();
        zones.settle(staged.place);
        let entry = StripeEntry {
            zone_set: staged.place.zone_set,
            row: staged.place.row,
            rows: staged.rows,
            kind: Kind::Index,
            live: staged.data_blocks,
        };
        zones.add_stripe(staged.place.stripe, entry);
        IndexStripe {
            id: staged.place.stripe,
            zone_set: staged.place.zone_set,
            row: staged.place.row,
            rows: staged.rows,
            data_blocks: staged.data_blocks,
            checksums: staged.checksums,
        }
    }

    /// Merges the newest runs into one when there are too many. Answers the stripes that are free once a root stands
    /// that doesn't name them.
    async fn merge_if_many(&self) -> Result<Vec<StripeId>, BucketError> {
        let runs = self.0.index.runs();
        if runs.len() <= self.0.tunables.runs_max {
            return Ok(Vec::new());
        }
        // A run joins while it isn't much larger than all newer ones together: each entry is written again about
        // log(size) times.
        let mut blocks = u64::from(runs[0].blocks());
        let mut count = 1;
        while count < runs.len() && (count < 2 || u64::from(runs[count].blocks()) <= 2 * blocks) {
            blocks += u64::from(runs[count].blocks());
            count += 1;
        }
        let old = &runs[..count];
        let oldest = count == runs.len();
        let mut cursors = Vec::with_capacity(count);
        for run in old {
            cursors.push(Cursor::seek(&self.0.index, Rc::clone(run), &[], &self.0.stripes).await?);
        }
        let mut builder = RunBuilder::new(self.0.stripes.blocks_max());
        let mut writer = RunWriter::new(self);
        let mut any = false;
        let mut turn = 0;
        while let Some(lowest) = cursors.iter().filter_map(|cursor| cursor.peek().map(|(key, _)| key)).min().cloned() {
            let mut newest: Option<Option<Bytes>> = None;
            for cursor in &mut cursors {
                if cursor.peek().is_some_and(|(key, _)| *key == lowest) {
                    let (_, value) = cursor.take(&self.0.index, &self.0.stripes).await?;
                    newest.get_or_insert(value);
                }
            }
            // A deletion has nothing left to hide below the oldest run.
            if let Some(value) = newest.filter(|value| value.is_some() || !oldest) {
                any = true;
                builder.push(&lowest, value.as_ref());
                writer.drain(&mut builder).await?;
            }
            turn += 1;
            if turn % ENTRIES_PER_TURN == 0 {
                self.0.handle.yield_now().await;
            }
        }
        let merged = if any { Some(writer.finish(builder).await?) } else { None };
        self.0.index.replace(old, merged);
        let counter = &self.0.counters.merges;
        counter.set(counter.get() + 1);
        Ok(old
            .iter()
            .flat_map(|run| run.meta.borrow().stripes.iter().map(|stripe| stripe.id).collect::<Vec<_>>())
            .collect())
    }

    /// Copies a stripe of a run to a new place. The old one is free after the next root.
    pub(crate) async fn move_index_stripe(&self, id: StripeId) -> Result<(), BucketError> {
        for run in self.0.index.runs() {
            let found = run.meta.borrow().stripes.iter().position(|stripe| stripe.id == id);
            let Some(at) = found else { continue };
            let old = run.meta.borrow().stripes[at].clone();
            let data = self.0.stripes.read_index_stripe(&old, 0, old.data_blocks).await?;
            let new = self.write_index_stripe(data).await?;
            if let Some(place) = run.meta.borrow_mut().stripes.get_mut(at) {
                *place = new;
            }
            self.0.retired.borrow_mut().push(id);
            return Ok(());
        }
        // One of the manifest: the next root has a new one.
        Ok(())
    }
}

/// Writes the stripes of one run.
struct RunWriter<'a> {
    bucket: &'a Bucket,
    stripes: Vec<IndexStripe>,
}

impl<'a> RunWriter<'a> {
    fn new(bucket: &'a Bucket) -> Self {
        Self { bucket, stripes: Vec::new() }
    }

    async fn drain(&mut self, builder: &mut RunBuilder) -> Result<(), BucketError> {
        while let Some(full) = builder.take_full() {
            self.stripes.push(self.bucket.write_index_stripe(full).await?);
        }
        Ok(())
    }

    async fn finish(mut self, mut builder: RunBuilder) -> Result<Rc<Run>, BucketError> {
        self.drain(&mut builder).await?;
        let finished = builder.finish();
        let stripe_bytes = self.bucket.0.stripes.blocks_max() as usize * BLOCK_BYTES;
        let mut at = 0;
        while at < finished.rest.len() {
            let end = (at + stripe_bytes).min(finished.rest.len());
            self.stripes.push(self.bucket.write_index_stripe(finished.rest.slice(at..end)).await?);
            at = end;
        }
        let id = self.bucket.0.next_run.get();
        self.bucket.0.next_run.set(id + 1);
        let meta = RunMeta {
            id,
            stripes: std::mem::take(&mut self.stripes),
            footer_block: finished.footer_block,
            footer_bytes: finished.footer_bytes,
            entries: finished.entries,
            blocks: finished.blocks,
        };
        Ok(Run::new(meta, Some(finished.footer)))
    }
}

impl Drop for RunWriter<'_> {
    /// Stripes of a run that was never finished are nobody's.
    fn drop(&mut self) {
        let mut zones = self.bucket.0.stripes.zones.borrow_mut();
        for stripe in &self.stripes {
            zones.set_live(stripe.id, 0);
        }
    }
}
