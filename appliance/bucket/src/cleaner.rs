//! The cleaner: what is still alive in a sparse zone set moves elsewhere, then the set is free. Repair is the same
//! move, of one stripe: nothing is ever rewritten in place.

use crate::BucketError;
use crate::batch::DataChange;
use crate::bucket::Bucket;
use crate::extent::Location;
use crate::extents::{Worked, slab_lock, slabs};
use crate::key::Object;
use crate::lock::Mode;
use crate::stripes::concat;
use crate::zones::Kind;
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_journal::LogError;
use weft_wire::StripeId;
use weft_wire::limits::SLAB_BLOCKS;

/// Live blocks of a stripe that one file refers to.
#[derive(Clone, Copy, Debug)]
struct Live {
    object: Object,
    first: u64,
    blocks: u32,
    stripe: StripeId,
    block: u32,
}

impl Bucket {
    /// Empties the emptiest zone set.
    pub(crate) async fn clean_once(&self) -> Result<(), BucketError> {
        let share_max = self.0.tunables.clean_share_max;
        let found = self.0.stripes.zones.borrow().emptiest(u32::from(self.0.protection.data), share_max);
        let Some((set, _)) = found else { return Ok(()) };
        let stripes = self.0.stripes.zones.borrow().stripes_of(set);
        let index = stripes.iter().any(|(_, entry)| entry.kind == Kind::Index);
        let mut live = Vec::new();
        for (id, entry) in stripes {
            if entry.kind == Kind::Index {
                self.move_index_stripe(id).await?;
            } else {
                live.extend(self.live_of(id).await?);
            }
        }
        self.move_live(live).await?;
        if index {
            // Only a root that names the copies lets the originals go.
            self.checkpoint().await?;
        }
        let counter = &self.0.counters.cleaned_sets;
        counter.set(counter.get() + 1);
        Ok(())
    }

    /// Moves every stripe that a read found damaged.
    pub(crate) async fn repair_damaged(&self) -> Result<(), BucketError> {
        let Some(id) = self.0.stripes.damaged.borrow().first().copied() else { return Ok(()) };
        let kind = self.0.stripes.zones.borrow().stripe(id).map(|entry| entry.kind);
        match kind {
            Some(Kind::Index) => {
                self.move_index_stripe(id).await?;
                self.checkpoint().await?;
            }
            Some(_) => {
                let live = self.live_of(id).await?;
                self.move_live(live).await?;
            }
            None => {}
        }
        self.0.stripes.damaged.borrow_mut().remove(&id);
        let counter = &self.0.counters.repaired_stripes;
        counter.set(counter.get() + 1);
        tracing::info!(bucket = %self.0.id, stripe = %id, "repaired: moved to a new place");
        Ok(())
    }

    /// Who still refers to blocks of a stripe.
    async fn live_of(&self, id: StripeId) -> Result<Vec<Live>, BucketError> {
        let record = match self.stripe_record(id).await {
            Err(BucketError::Gone(_)) => return Ok(Vec::new()),
            record => record?,
        };
        let mut live = Vec::new();
        for owner in record.owners {
            let object = owner.object();
            let range = owner.first..owner.first + u64::from(owner.blocks);
            for extent in self.extents(object, range.clone(), usize::MAX).await? {
                let Some(extent) = extent.clip(&range) else { continue };
                if let Location::Stripe { stripe, block } = extent.location
                    && stripe == id
                {
                    live.push(Live { object, first: extent.first, blocks: extent.blocks, stripe, block });
                }
            }
        }
        Ok(live)
    }

    /// Copies blocks into new stripes and gives them to those who still refer to the old ones.
    async fn move_live(&self, live: Vec<Live>) -> Result<(), BucketError> {
        let blocks_max = self.0.stripes.blocks_max();
        let mut batch: Vec<Live> = Vec::new();
        let mut blocks = 0;
        for piece in live {
            if blocks + piece.blocks > blocks_max {
                self.move_batch(std::mem::take(&mut batch)).await?;
                blocks = 0;
            }
            blocks += piece.blocks;
            batch.push(piece);
        }
        self.move_batch(batch).await
    }

    async fn move_batch(&self, batch: Vec<Live>) -> Result<(), BucketError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(batch.len());
        for piece in &batch {
            let view = self.view(piece.stripe).await?;
            parts.push(self.0.stripes.read(&view, piece.block, piece.blocks).await?);
        }
        let staged = Rc::new(self.0.stripes.stage(Kind::Moved, concat(parts)).await?);
        let touched: BTreeSet<_> = batch
            .iter()
            .flat_map(|piece| slabs(piece.object, &(piece.first..piece.first + u64::from(piece.blocks))))
            .collect();
        loop {
            let guard = self.0.locks.lock(touched.iter().map(|slab| (slab_lock(*slab), Mode::Exclusive))).await;
            let mut worked = Worked::default();
            for slab in &touched {
                let range = slab.1 * SLAB_BLOCKS..(slab.1 + 1) * SLAB_BLOCKS;
                worked.load(*slab, self.extents(slab.0, range, usize::MAX).await?);
            }
            let mut data = Vec::new();
            let mut moved = 0;
            let mut offset = 0;
            for piece in &batch {
                let range = piece.first..piece.first + u64::from(piece.blocks);
                for extent in worked.current(piece.object, &range) {
                    let Some(extent) = extent.clip(&range) else { continue };
                    let skipped = (extent.first - piece.first) as u32;
                    if extent.location == (Location::Stripe { stripe: piece.stripe, block: piece.block + skipped }) {
                        moved += u64::from(extent.blocks);
                        data.push(DataChange::Place {
                            object: piece.object,
                            first: extent.first,
                            staged: Rc::clone(&staged),
                            block: offset + skipped,
                            blocks: extent.blocks,
                        });
                    }
                }
                offset += piece.blocks;
            }
            if data.is_empty() {
                self.0.stripes.abandon(&staged);
                return Ok(());
            }
            data.iter().for_each(|change| worked.apply(change));
            match self.commit_now(&[], &data, &worked, &[]) {
                Err(LogError::Full) => {}
                done => {
                    done?;
                    let counter = &self.0.counters.moved_blocks;
                    counter.set(counter.get() + moved);
                    return Ok(());
                }
            }
            drop(guard);
            self.0.handle.sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
