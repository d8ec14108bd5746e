//! Checkpoint: the memtable becomes a run, a manifest names all runs and zone sets, a root record in the journal names
//! the manifest. From then on the journal below it is not needed.

use crate::BucketError;
use crate::bucket::{Bucket, add};
use crate::index::Run;
use crate::run::{IndexStripe, RunBuilder, RunMeta};
use crate::stripes::{Purse, Stripes};
use crate::zone_set::{Kind, StripeEntry, ZoneSet};
use crate::zones::ZoneTableImage;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_journal::RootRecord;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{Seq, StripeId};

/// Entries between two looks at other tasks.
const ENTRIES_PER_TURN: u32 = 512;

/// Of manifests, runs, and what namespaces keep under their keys; its upper bytes tell it from other numbers.
pub(crate) const INDEX_VERSION: u32 = 0x6964_7803;

/// Everything that a new leader needs beside the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Newest first.
    pub runs: Vec<RunMeta>,
    pub zones: ZoneTableImage,
    pub next_serial: u64,
    pub reserved_blocks: u64,
    pub next_run: u64,
}

/// The body of a root record: where the manifest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootBody {
    /// [`INDEX_VERSION`] of who wrote it.
    pub version: u32,
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
            let mut builder = RunBuilder::default();
            let mut writer = RunWriter::new(&self.0.stripes);
            let mut turn = 0;
            for (key, value) in frozen.iter() {
                builder.push(key, value.as_ref());
                writer.drain(&mut builder).await?;
                turn += 1;
                if turn % ENTRIES_PER_TURN == 0 {
                    self.0.handle.yield_now().await;
                }
            }
            let run = writer.finish(builder, self.next_run_id()).await?;
            self.0.index.thaw(run);
        }
        self.write_root(covers).await?;
        self.0.starved.set(false);
        add(&self.0.counters.checkpoints, 1);
        Ok(())
    }

    /// A number that no run had before.
    pub(crate) fn next_run_id(&self) -> u64 {
        self.0.next_run.replace(self.0.next_run.get() + 1)
    }

    /// Writes the manifest, then the root. When that stands, what it replaced is free.
    async fn write_root(&self, covers: Seq) -> Result<(), BucketError> {
        let leaving: BTreeSet<StripeId> = {
            let manifest = self.0.manifest.borrow();
            let zones = self.0.stripes.zones.borrow();
            zones.retired().iter().copied().chain(manifest.iter().map(|stripe| stripe.id)).collect()
        };
        let manifest = Manifest {
            runs: self.0.index.runs().iter().map(|run| run.meta.borrow().clone()).collect(),
            zones: self.0.stripes.zones.borrow().image(),
            next_serial: self.0.next_serial.get(),
            reserved_blocks: self.0.reserved_blocks.get(),
            next_run: self.0.next_run.get(),
        };
        let encoded = weft_wire::encode(&manifest);
        drop(manifest);
        let manifest_bytes = encoded.len() as u64;
        let mut padded = BytesMut::from(encoded);
        padded.resize(padded.len().next_multiple_of(BLOCK_BYTES), 0);
        let padded = padded.freeze();
        let mut writer = RunWriter::new(&self.0.stripes);
        writer.write(&padded).await?;
        let mut stripes = Vec::with_capacity(writer.written.len());
        for stripe in &writer.written {
            let set = self.0.stripes.zones.borrow().set(stripe.zone_set).cloned();
            stripes.push((stripe.clone(), set.ok_or(BucketError::Gone(stripe.id))?));
        }
        let body = RootBody { version: INDEX_VERSION, stripes, manifest_bytes };
        let (_, stands) = self.0.log.append_root(RootRecord { covers, body: weft_wire::encode(&body) })?;
        // From here on the root may stand, whatever this leader hears of it: an error means that it is deposed.
        *self.0.manifest.borrow_mut() = std::mem::take(&mut writer.written);
        stands.await.map_err(|_| BucketError::Stopped)??;
        let mut zones = self.0.stripes.zones.borrow_mut();
        for id in leaving {
            zones.set_live(id, 0);
            self.0.stripes.forget(id);
        }
        Ok(())
    }

    /// Copies a stripe of a run to a new place. The old one is free after the next root.
    pub(crate) async fn move_index_stripe(&self, id: StripeId) -> Result<(), BucketError> {
        if self.0.merging.borrow().as_ref().is_some_and(|merge| merge.wrote(id)) {
            // Nobody can say yet where the copy would have to be named: the merge is begun anew.
            let given_up = self.0.merging.borrow_mut().take();
            drop(given_up);
            return Ok(());
        }
        for run in self.0.index.runs() {
            let found = run.meta.borrow().stripes.iter().position(|stripe| stripe.id == id);
            let Some(at) = found else { continue };
            let old = run.meta.borrow().stripes[at].clone();
            let data = self.0.stripes.read_index_stripe(&old, 0, old.data_blocks).await?;
            let mut writer = RunWriter::new(&self.0.stripes);
            writer.write(&data).await?;
            // Only the planner moves stripes: it is where it was.
            run.meta.borrow_mut().stripes.splice(at..=at, std::mem::take(&mut writer.written));
        }
        // One of the manifest: the next root has a new one.
        self.0.stripes.zones.borrow_mut().retire(id);
        Ok(())
    }
}

impl IndexStripe {
    pub(crate) fn entry(&self) -> StripeEntry {
        StripeEntry {
            zone_set: self.zone_set,
            row: self.row,
            rows: self.rows,
            kind: Kind::Index,
            live: self.data_blocks,
        }
    }
}

impl Stripes {
    /// Writes a stripe of a run or manifest and enters it into the table.
    pub(crate) async fn write_index_stripe(&self, data: Bytes) -> Result<IndexStripe, BucketError> {
        let staged = self.stage(Kind::Index, Purse::Planner, data).await?;
        let stripe = IndexStripe {
            id: staged.place.stripe,
            zone_set: staged.place.zone_set,
            row: staged.place.row,
            rows: staged.rows,
            data_blocks: staged.data_blocks,
            checksums: staged.checksums.clone(),
        };
        self.zones.borrow_mut().add_stripe(stripe.id, stripe.entry());
        Ok(stripe)
    }
}

/// Writes the stripes of one run or manifest. Dropped unfinished, they are nobody's.
pub(crate) struct RunWriter {
    stripes: Rc<Stripes>,
    written: Vec<IndexStripe>,
}

impl RunWriter {
    pub fn new(stripes: &Rc<Stripes>) -> Self {
        Self { stripes: Rc::clone(stripes), written: Vec::new() }
    }

    pub fn written(&self) -> &[IndexStripe] {
        &self.written
    }

    pub fn wrote(&self, id: StripeId) -> bool {
        self.written.iter().any(|stripe| stripe.id == id)
    }

    /// Writes the full stripes that the builder has. True: there was one.
    pub async fn drain(&mut self, builder: &mut RunBuilder) -> Result<bool, BucketError> {
        let mut any = false;
        while let Some(full) = builder.take_full(self.stripes.fitting_blocks(Kind::Index)) {
            self.written.push(self.stripes.write_index_stripe(full).await?);
            any = true;
        }
        Ok(any)
    }

    /// Whole blocks, as many stripes as it takes.
    async fn write(&mut self, blocks: &Bytes) -> Result<(), BucketError> {
        let mut at = 0;
        while at < blocks.len() {
            let end = (at + self.stripes.fitting_blocks(Kind::Index) as usize * BLOCK_BYTES).min(blocks.len());
            self.written.push(self.stripes.write_index_stripe(blocks.slice(at..end)).await?);
            at = end;
        }
        Ok(())
    }

    /// Writes the rest; the run has the number `id` from now on.
    pub async fn finish(mut self, mut builder: RunBuilder, id: u64) -> Result<Rc<Run>, BucketError> {
        self.drain(&mut builder).await?;
        let finished = builder.finish();
        self.write(&finished.rest).await?;
        let meta = RunMeta {
            id,
            stripes: std::mem::take(&mut self.written),
            sections: finished.sections,
            last_key: finished.last_key,
            blocks: finished.blocks,
        };
        Ok(Run::new(meta))
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        let mut zones = self.stripes.zones.borrow_mut();
        for stripe in &self.written {
            zones.set_live(stripe.id, 0);
        }
    }
}
