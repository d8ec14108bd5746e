//! Blocks that only the journal holds: written small, not yet gathered into stripes. Kept in memory until then.

use crate::key::Object;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Range;
use weft_wire::Seq;
use weft_wire::limits::BLOCK_BYTES;

/// A run of blocks of one file within a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub object: Object,
    pub first: u64,
    pub blocks: u32,
    /// Where it begins in the record's data.
    pub offset: u32,
}

impl Piece {
    pub fn target(&self) -> (Object, Range<u64>) {
        (self.object, self.first..self.first + u64::from(self.blocks))
    }
}

struct Record {
    /// Each with the number of its first block. A piece lies in one part.
    parts: Vec<(u32, Bytes)>,
    bytes: u64,
    pieces: Vec<Piece>,
    live: Vec<bool>,
    live_blocks: u32,
}

#[derive(Default)]
pub struct Held {
    records: BTreeMap<Seq, Record>,
    live_blocks: u64,
    resident_bytes: u64,
}

impl Held {
    /// Keeps a record's data. All of it is live.
    pub fn insert(&mut self, seq: Seq, data: Vec<Bytes>, pieces: Vec<Piece>) {
        let mut parts = Vec::with_capacity(data.len());
        let mut blocks = 0;
        for part in data {
            parts.push((blocks as u32, part.clone()));
            blocks += part.len() / BLOCK_BYTES;
        }
        if blocks == 0 {
            return;
        }
        let bytes = (blocks * BLOCK_BYTES) as u64;
        self.live_blocks += blocks as u64;
        self.resident_bytes += bytes;
        let record = Record { parts, bytes, pieces, live: vec![true; blocks], live_blocks: blocks as u32 };
        self.records.insert(seq, record);
    }

    /// The runs of all records, live or not.
    pub fn all(&self) -> Vec<(Seq, Piece)> {
        self.records.iter().flat_map(|(seq, record)| record.pieces.iter().map(|piece| (*seq, *piece))).collect()
    }

    /// Nobody reads these blocks any more.
    pub fn kill(&mut self, seq: Seq, block: u32, blocks: u32) {
        let Some(record) = self.records.get_mut(&seq) else { return };
        for flag in record.live.iter_mut().skip(block as usize).take(blocks as usize) {
            if std::mem::take(flag) {
                record.live_blocks -= 1;
                self.live_blocks -= 1;
            }
        }
        if record.live_blocks == 0 {
            self.resident_bytes -= record.bytes;
            self.records.remove(&seq);
        }
    }

    /// The bytes of live blocks.
    pub fn read(&self, seq: Seq, block: u32, blocks: u32) -> Option<Bytes> {
        let record = self.records.get(&seq)?;
        let part = record.parts.partition_point(|(first, _)| *first <= block).checked_sub(1)?;
        let (first, data) = &record.parts[part];
        let from = (block - first) as usize * BLOCK_BYTES;
        let to = from + blocks as usize * BLOCK_BYTES;
        (to <= data.len()).then(|| data.slice(from..to))
    }

    pub fn is_live(&self, seq: Seq, block: u32) -> bool {
        self.records.get(&seq).is_some_and(|record| record.live.get(block as usize) == Some(&true))
    }

    /// The oldest record whose data is still needed: the journal can't be trimmed beyond it.
    pub fn oldest(&self) -> Option<Seq> {
        self.records.first_key_value().map(|(seq, _)| *seq)
    }

    pub fn live_blocks(&self) -> u64 {
        self.live_blocks
    }

    /// What it keeps in memory, dead blocks included.
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// Live runs in the order of the journal, until there are `blocks_max` blocks. The last is cut to fit.
    pub fn gather(&self, blocks_max: u32) -> Vec<(Seq, Piece)> {
        let mut found = Vec::new();
        let mut total = 0;
        for (seq, record) in &self.records {
            for piece in &record.pieces {
                for mut run in live_runs(record, piece) {
                    run.blocks = run.blocks.min(blocks_max - total);
                    total += run.blocks;
                    found.push((*seq, run));
                    if total == blocks_max {
                        return found;
                    }
                }
            }
        }
        found
    }

    /// What is still live of a run that was gathered earlier.
    pub fn still_live(&self, seq: Seq, piece: &Piece) -> Vec<Piece> {
        self.records.get(&seq).map(|record| live_runs(record, piece)).unwrap_or_default()
    }
}

fn live_runs(record: &Record, piece: &Piece) -> Vec<Piece> {
    let mut runs: Vec<Piece> = Vec::new();
    for i in 0..piece.blocks {
        if record.live.get((piece.offset + i) as usize) != Some(&true) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.offset + run.blocks == piece.offset + i => run.blocks += 1,
            _ => runs.push(Piece { first: piece.first + u64::from(i), blocks: 1, offset: piece.offset + i, ..*piece }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_wire::{FsId, InodeId};

    #[test]
    fn overwritten_blocks_are_let_go() {
        let object = Object { fs: FsId(1), inode: InodeId(2) };
        let mut held = Held::default();
        let piece = Piece { object, first: 10, blocks: 4, offset: 0 };
        held.insert(Seq(5), vec![Bytes::from(vec![7; 4 * BLOCK_BYTES])], vec![piece]);
        held.kill(Seq(5), 2, 1);
        let runs: Vec<_> = held.gather(100).into_iter().map(|(_, run)| (run.first, run.blocks, run.offset)).collect();
        assert_eq!(runs, [(10, 2, 0), (13, 1, 3)]);
        assert_eq!(held.oldest(), Some(Seq(5)));
        assert_eq!(held.gather(1)[0].1.blocks, 1);
        assert_eq!(held.gather(2).len(), 1);
        held.kill(Seq(5), 0, 4);
        assert_eq!((held.oldest(), held.live_blocks(), held.resident_bytes()), (None, 0, 0));
    }
}
