//! A part of a rebuild: some rows of a zone set, read in one go from each drive that is needed, written in one go.

use crate::BucketError;
use crate::bucket::Bucket;
use crate::rebuild::Target;
use crate::rebuild_pace::CHUNK_ROWS_MAX;
use crate::stripe::{Piece, StripeView};
use crate::zone_set::{Kind, StripeEntry, ZoneSet};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_reactor::buf::AlignedBuf;
use weft_reactor::join_all;
use weft_wire::drive::{DriveOp, DriveReply};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::{StripeId, ZoneSetId};

/// Rows of dead stripes that are copied along rather than interrupting a read.
const GAP_ROWS_MAX: u32 = 16;

/// Stripes that lie close to each other, in the order of their rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk(Vec<(StripeId, StripeEntry)>);

pub(crate) enum CopyError {
    /// Nothing was written of it: it can be tried again.
    Read(BucketError),
    /// What was written nobody knows, or it can't go on as it was begun.
    Write(BucketError),
}

impl From<BucketError> for CopyError {
    fn from(error: BucketError) -> Self {
        Self::Read(error)
    }
}

impl Bucket {
    /// The next stripes of a set from `next` on.
    pub(crate) fn next_chunk(&self, set: ZoneSetId, next: &mut StripeId) -> Option<Chunk> {
        let zones = self.0.stripes.zones.borrow();
        let mut chunk: Vec<(StripeId, StripeEntry)> = Vec::new();
        for (id, entry) in zones.stripes_of(set, *next) {
            if let (Some((_, first)), Some((_, last))) = (chunk.first(), chunk.last()) {
                let gap = entry.row.saturating_sub(last.row + last.rows);
                if gap > GAP_ROWS_MAX || entry.row + entry.rows - first.row > CHUNK_ROWS_MAX {
                    break;
                }
            }
            *next = StripeId(id.0 + 1);
            chunk.push((id, entry));
        }
        (!chunk.is_empty()).then_some(Chunk(chunk))
    }

    /// Makes the shards of some stripes at their new places. The bytes that were written.
    pub(crate) async fn copy_chunk(
        &self,
        set: &ZoneSet,
        targets: &[Target],
        index: &BTreeMap<StripeId, Rc<Vec<u32>>>,
        chunk: &Chunk,
    ) -> Result<u64, CopyError> {
        let mut views = Vec::with_capacity(chunk.0.len());
        for (id, entry) in &chunk.0 {
            let known = match (entry.kind, index.get(id)) {
                (_, Some(checksums)) => Ok(Rc::clone(checksums)),
                (Kind::Index, None) => self.index_checksums(*id).ok_or(BucketError::Gone(*id)),
                (Kind::Data | Kind::Moved, None) => {
                    self.stripe_record(*id).await.map(|record| Rc::new(record.checksums))
                }
            };
            let checksums = match known {
                Ok(checksums) => checksums,
                // It died.
                Err(BucketError::Gone(_)) if self.0.stripes.zones.borrow().stripe(*id).is_none() => continue,
                // Replaced before its checksums were noted: it takes a new beginning, with a new root.
                Err(BucketError::Gone(_)) if entry.kind == Kind::Index => {
                    return Err(CopyError::Write(BucketError::NotReady(format!("the root alone names {id}"))));
                }
                Err(BucketError::Gone(_)) => return Err(BucketError::NotReady(format!("{id} moves")).into()),
                Err(error) => return Err(error.into()),
            };
            views.push(StripeView { id: *id, set: set.clone(), row: entry.row, rows: entry.rows, checksums });
        }
        let (Some(first), Some(last)) = (views.first(), views.last()) else { return Ok(0) };
        let (from, rows) = (first.row, last.row + last.rows - first.row);
        let shards = match self.copy_fast(set, targets, &views, from, rows).await {
            Some(shards) => shards,
            None => self.copy_each(targets, &views, from, rows).await?,
        };
        let writes = targets.iter().zip(shards).map(|(target, data)| async move {
            let Target { member, .. } = target;
            let op = DriveOp::WriteShard {
                epoch: self.0.epoch,
                zone: member.zone,
                generation: member.generation,
                block: from,
            };
            match self.0.stripes.ask(member.drive, op, data).await {
                Ok((DriveReply::Written, _)) => Ok(()),
                Ok(_) => Err(BucketError::NotReady(format!("{} is confused", member.drive))),
                Err(error) => Err(BucketError::NotReady(error.to_string())),
            }
        });
        let written: Result<Vec<()>, BucketError> = join_all(writes).await.into_iter().collect();
        written.map_err(CopyError::Write)?;
        Ok(u64::from(rows) * BLOCK_BYTES as u64 * targets.len() as u64)
    }

    /// Of a stripe that belongs to a run, to one that is being merged, or to the manifest.
    fn index_checksums(&self, id: StripeId) -> Option<Rc<Vec<u32>>> {
        let merging = self.0.merging.borrow();
        let merged = merging.iter().flat_map(|merge| merge.written()).find(|stripe| stripe.id == id).cloned();
        let stripe = merged.or_else(|| self.index_stripes().into_iter().find(|stripe| stripe.id == id))?;
        Some(Rc::new(stripe.checksums))
    }

    /// All rows of each drive that is needed at once; what comes out is compared with the checksums, which says the
    /// same of what went in. `None`: something is away or wrong.
    async fn copy_fast(
        &self,
        set: &ZoneSet,
        targets: &[Target],
        views: &[StripeView],
        from: u32,
        rows: u32,
    ) -> Option<Vec<Bytes>> {
        let stripes = &self.0.stripes;
        let readable = |shard: &usize| set.member(*shard).is_some_and(|member| !stripes.drives.is_away(member.drive));
        let (copied, made): (Vec<usize>, Vec<usize>) = targets.iter().map(|target| target.shard).partition(readable);
        let mut sources = copied.clone();
        if !made.is_empty() {
            let needed = usize::from(self.0.protection.data);
            let others = (0..set.members.len()).filter(|shard| readable(shard) && !copied.contains(shard));
            let others = others.filter_map(|shard| Some((shard, set.member(shard)?.drive))).collect();
            let turn = set.id.0 as usize + (from / CHUNK_ROWS_MAX) as usize;
            let choice = &mut self.0.rebuilds.borrow_mut().sources;
            sources.extend(choice.choose(others, needed.saturating_sub(copied.len()), turn));
            if sources.len() < needed {
                return None;
            }
        }
        let reads = sources.iter().map(|shard| self.read_source(set, *shard, from, rows));
        let mut found: Vec<Option<Bytes>> = vec![None; set.members.len()];
        for (shard, answer) in sources.iter().zip(join_all(reads).await) {
            found[*shard] = Some(answer?);
        }
        if !made.is_empty() {
            let present: Vec<bool> = found.iter().map(Option::is_some).collect();
            let plan = stripes.code.plan(&present, &made).ok()?;
            let mut outputs: Vec<AlignedBuf> =
                made.iter().map(|_| AlignedBuf::unfilled(rows as usize * BLOCK_BYTES)).collect();
            {
                let inputs: Vec<&[u8]> =
                    plan.sources().iter().filter_map(|shard| found.get(*shard)?.as_deref()).collect();
                let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(|output| output.as_mut_slice()).collect();
                plan.apply(&inputs, &mut outputs);
            }
            for (shard, output) in made.iter().zip(outputs) {
                found[*shard] = Some(output.freeze());
            }
        }
        let mut shards = Vec::with_capacity(targets.len());
        for target in targets {
            let data = found.get(target.shard)?.clone()?;
            for view in views {
                let start = (view.row - from) as usize * BLOCK_BYTES;
                let piece = Piece { shard: target.shard, row: 0, rows: view.rows };
                if !view.verify(piece, data.get(start..start + view.rows as usize * BLOCK_BYTES)?) {
                    return None;
                }
            }
            shards.push(data);
        }
        Some(shards)
    }

    async fn read_source(&self, set: &ZoneSet, shard: usize, from: u32, rows: u32) -> Option<Bytes> {
        let drive = set.member(shard)?.drive;
        let begun = self.0.handle.now();
        self.0.rebuilds.borrow_mut().sources.asks(drive);
        let answer = self.0.stripes.read_rows(set, shard, from, rows).await;
        self.0.rebuilds.borrow_mut().sources.answered(drive, self.0.handle.now().since(begun));
        answer
    }

    /// Stripe by stripe, each the best way that there is. Rows of which more is lost than the protection survives stay
    /// zeros, which their checksums tell from what they were.
    async fn copy_each(
        &self,
        targets: &[Target],
        views: &[StripeView],
        from: u32,
        rows: u32,
    ) -> Result<Vec<Bytes>, BucketError> {
        let mut shards = Vec::with_capacity(targets.len());
        for target in targets {
            let mut data = AlignedBuf::with_len(rows as usize * BLOCK_BYTES);
            for view in views {
                let start = (view.row - from) as usize * BLOCK_BYTES;
                let mut put = |row: u32, part: &Bytes| {
                    let at = start + row as usize * BLOCK_BYTES;
                    data.as_mut_slice()[at..at + part.len()].copy_from_slice(part);
                };
                let whole = Piece { shard: target.shard, row: 0, rows: view.rows };
                match self.0.stripes.read_or_reconstruct(view, whole).await {
                    Ok(part) => put(0, &part),
                    Err(BucketError::Unreadable(_)) => {
                        for row in 0..view.rows {
                            match self.0.stripes.read_or_reconstruct(view, Piece { row, rows: 1, ..whole }).await {
                                Ok(part) => put(row, &part),
                                Err(BucketError::Unreadable(_)) => self.lose(view.id),
                                Err(error) => return Err(error),
                            }
                        }
                    }
                    Err(BucketError::Gone(id)) if self.0.stripes.zones.borrow().stripe(id).is_none() => {}
                    Err(BucketError::Gone(id)) => return Err(BucketError::NotReady(format!("{id} moves"))),
                    Err(error) => return Err(error),
                }
            }
            shards.push(data.freeze());
        }
        Ok(shards)
    }
}
