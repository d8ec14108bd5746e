//! Destage: journal-held blocks are gathered into full stripes.

use crate::BucketError;
use crate::batch::DataChange;
use crate::bucket::Bucket;
use crate::extents::{Worked, slab_lock, slabs};
use crate::held::Piece;
use crate::lock::Mode;
use crate::stripes::concat;
use crate::zones::Kind;
use std::collections::BTreeSet;
use std::rc::Rc;
use weft_journal::LogError;
use weft_wire::Seq;
use weft_wire::limits::SLAB_BLOCKS;

impl Bucket {
    /// Moves up to one stripe of journal-held blocks, the oldest first. False: there are none.
    pub(crate) async fn destage_once(&self) -> Result<bool, BucketError> {
        let gathered = self.0.held.borrow().gather(self.0.stripes.blocks_max());
        if gathered.is_empty() {
            return Ok(false);
        }
        let parts = {
            let held = self.0.held.borrow();
            gathered.iter().filter_map(|(seq, piece)| held.read(*seq, piece.offset, piece.blocks)).collect()
        };
        let staged = Rc::new(self.0.stripes.stage(Kind::Data, concat(parts)).await?);
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
        let touched: BTreeSet<_> = slots
            .iter()
            .flat_map(|(_, piece, _)| slabs(piece.object, &(piece.first..piece.first + u64::from(piece.blocks))))
            .collect();
        loop {
            let guard = self.0.locks.lock(touched.iter().map(|slab| (slab_lock(*slab), Mode::Exclusive))).await;
            let mut worked = Worked::default();
            for slab in &touched {
                let range = slab.1 * SLAB_BLOCKS..(slab.1 + 1) * SLAB_BLOCKS;
                worked.load(*slab, self.extents(slab.0, range, usize::MAX).await?);
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
            if data.is_empty() {
                self.0.stripes.abandon(&staged);
                return Ok(true);
            }
            data.iter().for_each(|change| worked.apply(change));
            match self.commit_now(&[], &data, &worked, &[]) {
                Err(LogError::Full) => {}
                done => {
                    done?;
                    let counter = &self.0.counters.destaged_blocks;
                    counter.set(counter.get() + blocks);
                    return Ok(true);
                }
            }
            drop(guard);
            self.0.handle.sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
