//! Scrub: every block of every stripe is read and compared with its checksum, parity and dead blocks included, so that
//! damage is found while enough is left to repair it.

use crate::BucketError;
use crate::batch::Batch;
use crate::bucket::{Bucket, add};
use crate::key::{KeyBuilder, Tag};
use crate::run::IndexStripe;
use crate::shards::PieceError;
use crate::stripe::StripeView;
use crate::zone_set::Kind;
use bytes::Bytes;
use std::collections::VecDeque;
use weft_wire::{DriveId, FsId, StripeId, ZoneIndex};

/// Finds that a pass keeps until they are taken; what goes beyond is counted in [`Scrubbed::damaged`] alone.
const FINDS_MAX: usize = 64;

/// What a pass over all stripes found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub stripes: u64,
    /// Blocks of 4 KiB that are as they were written.
    pub blocks: u64,
    /// Stripes with a wrong or unreadable block. They are waiting to be repaired.
    pub damaged: u64,
    /// Shards that could not be looked at: their drives are or were away.
    pub unreachable_shards: u64,
}

/// Where damage is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubFind {
    pub stripe: StripeId,
    pub shard: usize,
    pub drive: DriveId,
    pub zone: ZoneIndex,
    /// First block of the shard in its zone.
    pub row: u32,
    pub reason: String,
}

/// A pass over all stripes that are there when it comes by. Whoever takes its steps sets the pace.
pub struct ScrubPass {
    next: StripeId,
    /// The index's stripes, once the others are done.
    index: Option<VecDeque<IndexStripe>>,
    found: Scrubbed,
    finds: Vec<ScrubFind>,
}

impl ScrubPass {
    pub fn found(&self) -> Scrubbed {
        self.found
    }

    /// Where damage was found since the last call.
    pub fn take_finds(&mut self) -> Vec<ScrubFind> {
        std::mem::take(&mut self.finds)
    }
}

impl Bucket {
    /// One pass over all stripes, as fast as the drives are. What is damaged is marked for repair. `Stats` counts
    /// along; a pass that ends early ends with an error.
    pub async fn scrub(&self) -> Result<Scrubbed, BucketError> {
        let mut pass = self.begin_scrub();
        while self.scrub_step(&mut pass).await? {}
        Ok(pass.found)
    }

    pub fn begin_scrub(&self) -> ScrubPass {
        ScrubPass { next: StripeId(0), index: None, found: Scrubbed::default(), finds: Vec::new() }
    }

    /// Looks at the next stripe. `false`: there was none left.
    pub async fn scrub_step(&self, pass: &mut ScrubPass) -> Result<bool, BucketError> {
        while pass.index.is_none() {
            let at = self.0.stripes.zones.borrow().stripe_from(pass.next);
            let Some((id, entry)) = at else {
                pass.index = Some(self.index_stripes().into());
                break;
            };
            pass.next = StripeId(id.0 + 1);
            if entry.kind == Kind::Index {
                continue;
            }
            let view = match self.stripe_record(id).await {
                Ok(record) => self.0.stripes.view(id, record),
                Err(error) => Err(error),
            };
            self.scrub_stripe(view, pass).await?;
            return Ok(true);
        }
        let Some(stripe) = pass.index.as_mut().and_then(VecDeque::pop_front) else {
            add(&self.0.counters.scrubs, 1);
            return Ok(false);
        };
        self.scrub_stripe(self.0.stripes.index_view(&stripe), pass).await?;
        Ok(true)
    }

    /// The stripes that runs and manifest consist of.
    pub(crate) fn index_stripes(&self) -> Vec<IndexStripe> {
        let mut stripes = self.0.manifest.borrow().clone();
        for run in self.0.index.runs() {
            stripes.extend(run.meta.borrow().stripes.iter().cloned());
        }
        stripes
    }

    async fn scrub_stripe(
        &self,
        view: Result<StripeView, BucketError>,
        pass: &mut ScrubPass,
    ) -> Result<(), BucketError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        let view = match view {
            Ok(view) => view,
            // Freed since it was seen.
            Err(BucketError::Gone(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let found = &mut pass.found;
        let mut finds = Vec::new();
        let mut blocks = 0;
        for (shard, answer) in self.0.stripes.read_all(&view).await.into_iter().enumerate() {
            match answer {
                Ok(_) => blocks += u64::from(view.rows),
                Err(PieceError::Gone) => return Ok(()),
                Err(PieceError::Wrong(reason)) => finds.push((shard, reason)),
                Err(PieceError::Unreachable(_) | PieceError::Absent) => found.unreachable_shards += 1,
            }
        }
        found.stripes += 1;
        found.blocks += blocks;
        found.damaged += u64::from(!finds.is_empty());
        add(&self.0.counters.scrubbed_stripes, 1);
        add(&self.0.counters.scrubbed_blocks, blocks);
        for (shard, reason) in finds {
            let Some(member) = view.set.member(shard) else { continue };
            if pass.finds.len() < FINDS_MAX {
                let (stripe, drive, zone, row) = (view.id, member.drive, member.zone, view.row);
                pass.finds.push(ScrubFind { stripe, shard, drive, zone, row, reason });
            }
        }
        Ok(())
    }

    /// When the last pass ended, in nanoseconds since 1970; whoever led the bucket then.
    pub async fn scrubbed_at(&self) -> Result<Option<i64>, BucketError> {
        let value = self.get(&scrubbed_key()).await?;
        let Some(value) = value else { return Ok(None) };
        weft_wire::decode(&value).map(Some).map_err(|_| BucketError::Corrupt("the date of the last scrub".into()))
    }

    /// Remembers when a pass ended.
    pub async fn set_scrubbed_at(&self, time_ns: i64) -> Result<(), BucketError> {
        let mut batch = Batch::new();
        batch.put(scrubbed_key(), weft_wire::encode(&time_ns));
        let seq = self.commit(batch).await?;
        self.settled(seq).await
    }
}

/// Belongs to no filesystem.
fn scrubbed_key() -> Bytes {
    KeyBuilder::new(FsId(0), Tag::Counter).bytes(b"scrubbed").build()
}
