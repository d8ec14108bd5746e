//! The cleaner: what is still alive in a sparse zone set moves elsewhere, then the set is free. Repair is the same
//! move, of one stripe: nothing is ever rewritten in place.
//!
//! One step moves about one stripe's worth, so that checkpoints and destaging come in between: a large zone set takes
//! many records, more than the journal has room for.

use crate::BucketError;
use crate::batch::DataChange;
use crate::bucket::{Bucket, add};
use crate::extent::Location;
use crate::extents::{Worked, slab_lock, touched};
use crate::key::Object;
use crate::lock::Mode;
use crate::planner::Step;
use crate::stripes::{Purse, concat};
use crate::zone_set::Kind;
use bytes::Bytes;
use std::ops::Range;
use std::rc::Rc;
use weft_wire::{StripeId, ZoneSetId};

/// Stripes that one step looks at.
const STRIPES_MAX: usize = 64;

/// Live blocks of a stripe that one file refers to.
#[derive(Clone, Copy, Debug)]
struct Live {
    object: Object,
    first: u64,
    blocks: u32,
    stripe: StripeId,
    block: u32,
}

impl Live {
    fn target(&self) -> (Object, Range<u64>) {
        (self.object, self.first..self.first + u64::from(self.blocks))
    }
}

impl Bucket {
    /// The set to be emptied: the one begun, or the emptiest when sets run short.
    pub(crate) fn set_to_clean(&self) -> Option<ZoneSetId> {
        let zones = self.0.stripes.zones.borrow();
        let begun = self.0.cleaning.get().filter(|set| zones.kept(*set) > 0);
        begun.or_else(|| {
            let short = zones.sets_len() + 1 >= self.0.stripes.limits.get().user();
            if short { zones.emptiest(self.0.tunables.clean_share_max) } else { None }
        })
    }

    /// Moves about one stripe's worth out of the set that is being emptied.
    pub(crate) async fn clean_once(&self) -> Result<(), BucketError> {
        let Some(set) = self.set_to_clean() else { return Ok(()) };
        self.0.cleaning.set(Some(set));
        let before = self.0.stripes.zones.borrow().kept(set);
        let stripes = self.0.stripes.zones.borrow().kept_stripes_of(set, STRIPES_MAX);
        let blocks_max = self.0.stripes.blocks_max();
        let mut live = Vec::new();
        let mut blocks = 0;
        for (id, entry) in stripes {
            if entry.kind == Kind::Index {
                self.move_index_stripe(id).await?;
                blocks += entry.live;
            } else {
                let found = self.live_of(id).await?;
                blocks += found.iter().map(|live| live.blocks).sum::<u32>();
                live.extend(found);
            }
            if blocks >= blocks_max {
                break;
            }
        }
        let moved = self.move_live(live).await;
        let kept = self.0.stripes.zones.borrow().kept(set);
        if kept == 0 {
            self.0.cleaning.set(None);
            add(&self.0.counters.cleaned_sets, 1);
        } else if kept == before && !matches!(moved, Err(BucketError::NotReady(_) | BucketError::NoSpace)) {
            // What is left can't be read: others are cleaned instead.
            tracing::warn!(bucket = %self.0.id, %set, blocks = kept, "a zone set can't be emptied");
            self.0.cleaning.set(None);
            self.0.stripes.zones.borrow_mut().leave_alone(set);
        }
        moved
    }

    /// Moves a stripe that a read or scrub found damaged. What is beyond repair stays where it is.
    pub(crate) async fn repair_damaged(&self) -> Result<(), BucketError> {
        let Some(id) = self.0.stripes.damaged.borrow().first().copied() else { return Ok(()) };
        let kind = self.0.stripes.zones.borrow().stripe(id).map(|entry| entry.kind);
        match kind {
            None => self.0.stripes.forget(id),
            Some(Kind::Index) => match self.move_index_stripe(id).await {
                Ok(()) => {
                    self.0.stripes.forget(id);
                    if self.0.stripes.damaged.borrow().is_empty() {
                        // The newest root still names the damaged one: an idle bucket would keep it for ever.
                        self.0.step.set(Some(Step::Checkpoint));
                        self.checkpoint().await?;
                    }
                }
                Err(BucketError::Unreadable(_)) => self.lose(id),
                Err(error) => return Err(error),
            },
            Some(Kind::Data | Kind::Moved) => {
                let live = self.live_of(id).await?;
                match self.move_live(live).await {
                    Ok(()) | Err(BucketError::Unreadable(_)) => {}
                    Err(error) => return Err(error),
                }
                if self.0.stripes.zones.borrow().stripe(id).is_some() {
                    self.lose(id);
                    return Ok(());
                }
                self.0.stripes.forget(id);
            }
        }
        if kind.is_some() {
            add(&self.0.counters.repaired_stripes, 1);
            tracing::info!(bucket = %self.0.id, stripe = %id, "repaired: moved to a new place");
        }
        Ok(())
    }

    pub(crate) fn lose(&self, id: StripeId) {
        tracing::error!(bucket = %self.0.id, stripe = %id, "more of a stripe is lost than the protection survives");
        self.0.stripes.damaged.borrow_mut().remove(&id);
        self.0.stripes.lost.borrow_mut().insert(id);
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

    /// Copies blocks into new stripes and gives them to those who still refer to the old ones. What can't be read is
    /// left where it is, and told when all else has moved.
    async fn move_live(&self, live: Vec<Live>) -> Result<(), BucketError> {
        let mut blocks_max = self.0.stripes.fitting_blocks(Kind::Moved);
        let mut batch: Vec<(Live, Bytes)> = Vec::new();
        let mut blocks = 0;
        let mut lost = Ok(());
        for mut piece in live {
            while piece.blocks > 0 {
                let taken = Live { blocks: piece.blocks.min(blocks_max - blocks), ..piece };
                piece.first += u64::from(taken.blocks);
                piece.block += taken.blocks;
                piece.blocks -= taken.blocks;
                blocks += taken.blocks;
                match self.read_live(taken, &mut batch).await {
                    Err(error @ BucketError::Unreadable(_)) => lost = Err(error),
                    done => done?,
                }
                if blocks == blocks_max {
                    self.move_batch(std::mem::take(&mut batch)).await?;
                    blocks_max = self.0.stripes.fitting_blocks(Kind::Moved);
                    blocks = 0;
                }
            }
        }
        self.move_batch(batch).await?;
        lost
    }

    /// Reads a piece that is to be moved, block by block if it can't be had as a whole. Nothing, if it is gone.
    async fn read_live(&self, piece: Live, batch: &mut Vec<(Live, Bytes)>) -> Result<(), BucketError> {
        let view = match self.view(piece.stripe).await {
            // Overwritten since it was looked up.
            Err(BucketError::Gone(_)) => return Ok(()),
            view => view?,
        };
        let error = match self.0.stripes.read(&view, piece.block, piece.blocks).await {
            Ok(data) => {
                batch.push((piece, data));
                return Ok(());
            }
            Err(BucketError::Gone(_)) => return Ok(()),
            Err(error @ BucketError::Unreadable(_)) => error,
            Err(error) => return Err(error),
        };
        for at in 0..piece.blocks {
            let block = Live { first: piece.first + u64::from(at), block: piece.block + at, blocks: 1, ..piece };
            match self.0.stripes.read(&view, block.block, 1).await {
                Ok(data) => batch.push((block, data)),
                Err(BucketError::Unreadable(_) | BucketError::Gone(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(error)
    }

    async fn move_batch(&self, batch: Vec<(Live, Bytes)>) -> Result<(), BucketError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (batch, parts): (Vec<Live>, Vec<Bytes>) = batch.into_iter().unzip();
        let staged = Rc::new(self.0.stripes.stage(Kind::Moved, Purse::Planner, concat(parts)).await?);
        let touched = touched(batch.iter().map(Live::target));
        let _guard = self.0.locks.lock(touched.keys().map(|slab| (slab_lock(*slab), Mode::Exclusive))).await;
        let mut worked = Worked::default();
        for (slab, range) in &touched {
            worked.load(*slab, self.extents(slab.0, range.clone(), usize::MAX).await?);
        }
        let mut data = Vec::new();
        let mut moved = 0;
        let mut offset = 0;
        for piece in &batch {
            let (object, range) = piece.target();
            for extent in worked.current(object, &range) {
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
        if !data.is_empty() {
            data.iter().for_each(|change| worked.apply(change));
            self.commit_now(&[], &data, &worked, Vec::new(), Purse::Planner)?;
            add(&self.0.counters.moved_blocks, moved);
        }
        Ok(())
    }
}
