//! Destage: journal-held blocks are gathered into full stripes.

use crate::BucketError;
use crate::batch::DataChange;
use crate::bucket::{Bucket, add};
use crate::extents::{Worked, slab_lock, touched};
use crate::held::Piece;
use crate::lock::Mode;
use crate::stripes::{Purse, concat};
use crate::zone_set::Kind;
use std::rc::Rc;
use weft_wire::Seq;

impl Bucket {
    /// Moves up to one stripe of journal-held blocks, the oldest first. False: there are none.
    pub(crate) async fn destage_once(&self) -> Result<bool, BucketError> {
        let gathered = self.0.held.borrow().gather(self.0.stripes.fitting_blocks(Kind::Data));
        if gathered.is_empty() {
            return Ok(false);
        }
        let parts = {
            let held = self.0.held.borrow();
            gathered.iter().filter_map(|(seq, piece)| held.read(*seq, piece.offset, piece.blocks)).collect()
        };
        let staged = Rc::new(self.0.stripes.stage(Kind::Data, Purse::Planner, concat(parts)).await?);
        let mut slots = Vec::with_capacity(gathered.len());
        let mut block = 0;
        for (seq, piece) in gathered {
            slots.push((seq, piece, block));
            block += piece.blocks;
        }
        self.place_live(slots, staged).await
    }

    /// Gives the staged blocks to those that still want them.
    async fn place_live(
        &self,
        slots: Vec<(Seq, Piece, u32)>,
        staged: Rc<crate::stripe::Staged>,
    ) -> Result<bool, BucketError> {
        // Only what the pieces themselves cover changes, and what it changes begins in their slabs.
        let touched = touched(slots.iter().map(|(_, piece, _)| piece.target()));
        let _guard = self.0.locks.lock(touched.keys().map(|slab| (slab_lock(*slab), Mode::Exclusive))).await;
        let mut worked = Worked::default();
        for (slab, range) in &touched {
            worked.load(*slab, self.extents(slab.0, range.clone(), usize::MAX).await?);
        }
        // From here on synchronous: what is live now is live when the record is applied.
        let mut data = Vec::new();
        let mut blocks = 0;
        {
            let held = self.0.held.borrow();
            for (seq, piece, block) in &slots {
                for live in held.still_live(*seq, piece) {
                    blocks += u64::from(live.blocks);
                    data.push(DataChange::Place {
                        object: live.object,
                        first: live.first,
                        staged: Rc::clone(&staged),
                        block: block + (live.offset - piece.offset),
                        blocks: live.blocks,
                    });
                }
            }
        }
        if !data.is_empty() {
            data.iter().for_each(|change| worked.apply(change));
            self.commit_now(&[], &data, &worked, Vec::new(), Purse::Planner)?;
            add(&self.0.counters.destaged_blocks, blocks);
        }
        Ok(true)
    }
}
