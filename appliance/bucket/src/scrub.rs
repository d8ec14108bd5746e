//! Scrub: every block of every stripe is read and compared with its checksum, parity and dead blocks included, so that
//! damage is found while enough is left to repair it.

use crate::BucketError;
use crate::bucket::{Bucket, add};
use crate::run::IndexStripe;
use crate::shards::PieceError;
use crate::stripe::StripeView;
use crate::zone_set::Kind;
use weft_wire::StripeId;

/// What a pass over all stripes found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub stripes: u64,
    /// Blocks of 4 KiB that are as they were written.
    pub blocks: u64,
    /// Stripes with a wrong or unreadable block. They are waiting to be repaired.
    pub damaged: u64,
    /// Shards that could not be looked at: their drives were away.
    pub unreachable_shards: u64,
}

impl Bucket {
    /// One pass over all stripes that are there when it comes by, one at a time. What is damaged is marked for repair.
    /// `Stats` counts along; a pass that ends early ends with an error.
    pub async fn scrub(&self) -> Result<Scrubbed, BucketError> {
        let mut found = Scrubbed::default();
        let mut next = StripeId(0);
        loop {
            let at = self.0.stripes.zones.borrow().stripe_from(next);
            let Some((id, entry)) = at else { break };
            next = StripeId(id.0 + 1);
            if entry.kind == Kind::Index {
                continue;
            }
            let view = match self.stripe_record(id).await {
                Ok(record) => self.0.stripes.view(id, record),
                Err(error) => Err(error),
            };
            self.scrub_stripe(view, &mut found).await?;
        }
        for stripe in self.index_stripes() {
            self.scrub_stripe(self.0.stripes.index_view(&stripe), &mut found).await?;
        }
        add(&self.0.counters.scrubs, 1);
        Ok(found)
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
        found: &mut Scrubbed,
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
        let mut damaged = false;
        let mut blocks = 0;
        for answer in self.0.stripes.read_all(&view).await {
            match answer {
                Ok(_) => blocks += u64::from(view.rows),
                Err(PieceError::Gone) => return Ok(()),
                Err(PieceError::Wrong(_)) => damaged = true,
                Err(PieceError::Unreachable(_) | PieceError::Absent) => found.unreachable_shards += 1,
            }
        }
        found.stripes += 1;
        found.blocks += blocks;
        found.damaged += u64::from(damaged);
        add(&self.0.counters.scrubbed_stripes, 1);
        add(&self.0.counters.scrubbed_blocks, blocks);
        Ok(())
    }
}
