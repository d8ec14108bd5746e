//! What sealed drives hold, and the decision where the log ends. No time, no messages.

use crate::error::RecoverError;
use crate::record::{EpochStart, Record, RootFrame, RootRecord};
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::drive::{RecordKind, TailSummary};
use weft_wire::{BucketId, DriveId, Epoch, Seq};

/// One sealed drive's answers.
#[derive(Clone, Debug)]
pub struct DriveView {
    pub summary: TailSummary,
    /// The drive has told everything from `Gathered::read_from` on.
    pub complete: bool,
    pub held: BTreeSet<(Seq, Epoch)>,
    pub unreadable: BTreeSet<Seq>,
}

impl DriveView {
    pub fn new(summary: TailSummary) -> Self {
        Self { summary, complete: false, held: BTreeSet::new(), unreadable: BTreeSet::new() }
    }

    /// Whether the drive positively never had the record of `epoch` at `seq`: not held, not unreadable, not trimmed.
    fn lacks(&self, seq: Seq, epoch: Epoch) -> bool {
        let trimmed = self.summary.last >= self.summary.first && seq < self.summary.first;
        self.complete && !trimmed && !self.held.contains(&(seq, epoch)) && !self.unreadable.contains(&seq)
    }
}

/// What a new leader knows of a drive of the current ensemble when the log's end is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Not sealed by this leader: may hold anything.
    Nothing,
    /// Sealed; what it holds was not read to the end.
    Sealed,
    /// Sealed, and holds just these of the records that count.
    Holds(BTreeSet<Seq>),
}

/// The adopted log.
#[derive(Clone, Debug)]
pub struct Decision {
    pub root: Option<(Seq, RootFrame, RootRecord)>,
    /// All records that count, without a gap, from the root's floor (or the beginning) up to the end of the log.
    pub records: Vec<Record>,
    /// Last sequence of the adopted log; the new epoch starts at the next.
    pub tail: Seq,
    /// Up to here records are known to stand on P+1 of a listed ensemble.
    pub acknowledged: Seq,
    pub start: EpochStart,
    pub known: BTreeMap<DriveId, Known>,
}

/// Why more drives are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    pub seq: Seq,
    pub reason: String,
}

#[derive(Clone, Debug)]
pub enum Verdict {
    Decided(Box<Decision>),
    /// Undecidable with the drives that answered; with all of them answered, it never will be.
    AskMore(Lack),
    /// The root that the reading began at does not count: read everything.
    ReadAll,
    Refuse(RecoverError),
}

/// Everything that sealed drives have answered so far.
#[derive(Clone, Debug)]
pub struct Gathered {
    pub bucket: BucketId,
    /// The epoch that is to begin.
    pub epoch: Epoch,
    /// P.
    pub parity: usize,
    /// Drives of each listed ensemble, the current one first.
    pub ensembles: Vec<Vec<DriveId>>,
    /// Drives are read from here on: above the floor of the newest root, or the beginning.
    pub read_from: Seq,
    pub drives: BTreeMap<DriveId, DriveView>,
    pub records: BTreeMap<(Seq, Epoch), Record>,
}

/// Seals that make P+1 impossible for an older leader: N-P.
pub fn seals_needed(drives: usize, parity: usize) -> usize {
    let spared = if weft_wire::mutant("skip_seal") { parity + 1 } else { parity };
    drives.saturating_sub(spared).max(1)
}

impl Gathered {
    /// Whether N-P drives of each listed ensemble fulfil `ready`.
    pub fn quorum(&self, ready: impl Fn(DriveId) -> bool) -> bool {
        self.ensembles.iter().all(|drives| {
            drives.iter().filter(|drive| ready(**drive)).count() >= seals_needed(drives.len(), self.parity)
        })
    }

    /// Takes in a record that `drive` sent. One with a wrong checksum is as good as unreadable.
    pub fn take(&mut self, drive: DriveId, record: Record) -> Result<(), RecoverError> {
        let Some(view) = self.drives.get_mut(&drive) else { return Ok(()) };
        let key = (record.header.seq, record.header.epoch);
        if !record.intact(self.bucket) {
            view.unreadable.insert(key.0);
            return Ok(());
        }
        view.held.insert(key);
        match self.records.get(&key) {
            Some(known) if known.header != record.header => Err(RecoverError::Inconsistent {
                drive,
                reason: format!("another record of {} at {} than elsewhere", key.1, key.0),
            }),
            Some(_) => Ok(()),
            None => {
                self.records.insert(key, record);
                Ok(())
            }
        }
    }

    /// The newest root that was read, counted or not: where reading begins.
    pub fn newest_root(&self) -> Option<(Seq, RootFrame)> {
        self.roots().max_by_key(|(seq, epoch, ..)| (*epoch, *seq)).map(|(seq, _, frame, _)| (seq, frame))
    }

    fn roots(&self) -> impl DoubleEndedIterator<Item = (Seq, Epoch, RootFrame, RootRecord)> {
        self.records.iter().filter(|(_, record)| record.header.kind == RecordKind::Root).filter_map(|(key, record)| {
            let (frame, root) = RootFrame::decode(&record.payload).ok()?;
            Some((key.0, key.1, frame, root))
        })
    }

    /// The start of the highest epoch, be it a record or within a root.
    fn newest_start(&self) -> Option<EpochStart> {
        let starts = self
            .records
            .values()
            .filter(|record| record.header.kind == RecordKind::EpochStart)
            .filter_map(|record| EpochStart::decode(&record.payload).ok());
        starts.chain(self.roots().map(|(_, _, frame, _)| frame.start)).max_by_key(|start| start.epoch)
    }

    /// Highest sequence that any leader said stands on P+1.
    fn acknowledged(&self) -> Seq {
        let marks = self.records.values().map(|record| record.header.acknowledged);
        let summaries = self.drives.values().map(|view| view.summary.acknowledged);
        marks.chain(summaries).max().unwrap_or_default()
    }

    /// Decides where the log ends and what counts.
    ///
    /// A record counts if its epoch is the one that the highest start gives for its sequence, and is adopted if any
    /// sealed drive holds it. The log ends before the first sequence that N-P drives of *each* listed ensemble
    /// positively lack: such a record was not acknowledged and, those drives being sealed, never will be.
    pub fn decide(&self) -> Verdict {
        if !self.quorum(|drive| self.drives.get(&drive).is_some_and(|view| view.complete)) {
            return Verdict::AskMore(Lack { seq: self.read_from, reason: "too few drives answered".into() });
        }
        let start = self.newest_start();
        if let Some(start) = &start {
            if start.epoch > self.epoch {
                return Verdict::Refuse(RecoverError::Sealed(start.epoch));
            }
            if start.epoch == self.epoch {
                return Verdict::Refuse(RecoverError::EpochUsed(self.epoch));
            }
        }
        let newest_epoch = self.records.keys().map(|(_, epoch)| *epoch).max();
        if newest_epoch > start.as_ref().map(|start| start.epoch) {
            // Its start stood on P+1 before it wrote anything else, so some drive can tell.
            let seq = self.read_from;
            let reason = format!("the start of {} is unreadable", newest_epoch.unwrap_or_default());
            return Verdict::AskMore(Lack { seq, reason });
        }
        // No start at all: nothing was ever acknowledged here, unless it can't be read.
        let start = start.unwrap_or(EpochStart { epoch: Epoch(0), seq: Seq::FIRST, history: Vec::new() });
        self.decide_under(&start)
    }

    fn decide_under(&self, start: &EpochStart) -> Verdict {
        let counted: Vec<_> =
            self.roots().rev().filter(|(seq, epoch, ..)| start.epoch_of(*seq) == Some(*epoch)).collect();
        let mut lack = None;
        for (seq, _, frame, root) in counted {
            if frame.floor.next() < self.read_from {
                return Verdict::ReadAll;
            }
            match self.tail(start, frame.floor) {
                Ok(tail) if tail >= seq => return self.conclude(start, Some((seq, frame, root)), tail),
                // The root lies beyond a gap: it was never acknowledged.
                Ok(_) => {}
                // An older root may not stand in for one that can't be judged yet.
                Err(reason) => {
                    lack = Some(reason);
                    break;
                }
            }
        }
        if let Some(lack) = lack {
            return Verdict::AskMore(lack);
        }
        if self.read_from > Seq::FIRST {
            return Verdict::ReadAll;
        }
        match self.tail(start, Seq(0)) {
            Ok(tail) => self.conclude(start, None, tail),
            Err(lack) => Verdict::AskMore(lack),
        }
    }

    /// Last sequence of the run of held records above `floor`, if where it ends can be told.
    fn tail(&self, start: &EpochStart, floor: Seq) -> Result<Seq, Lack> {
        let mut last = floor;
        loop {
            let seq = last.next();
            let epoch = start.epoch_of(seq).unwrap_or_default();
            if self.records.contains_key(&(seq, epoch)) {
                last = seq;
                continue;
            }
            let lacks = |drive| self.drives.get(&drive).is_some_and(|view: &DriveView| view.lacks(seq, epoch));
            if !self.quorum(lacks) {
                let reason = "held by no drive that answered, nor lacking on enough of them".into();
                return Err(Lack { seq, reason });
            }
            let acknowledged = self.acknowledged();
            if last < acknowledged {
                let reason = format!("held by no drive that answered, yet {acknowledged} was acknowledged");
                return Err(Lack { seq, reason });
            }
            if last < start.seq && start.epoch > Epoch(0) && floor < start.seq {
                let reason = format!("held by no drive that answered, yet {} started above it", start.epoch);
                return Err(Lack { seq, reason });
            }
            return Ok(last);
        }
    }

    fn conclude(&self, start: &EpochStart, root: Option<(Seq, RootFrame, RootRecord)>, tail: Seq) -> Verdict {
        let floor = root.as_ref().map_or(Seq(0), |(_, frame, _)| frame.floor);
        let key = |seq: Seq| (seq, start.epoch_of(seq).unwrap_or_default());
        let sequences = || (floor.0 + 1..=tail.0).map(Seq);
        let records: Vec<Record> = sequences().filter_map(|seq| self.records.get(&key(seq)).cloned()).collect();
        let mut known = BTreeMap::new();
        for drive in self.ensembles.first().into_iter().flatten() {
            let what = match self.drives.get(drive) {
                None => Known::Nothing,
                Some(view) if !view.complete => Known::Sealed,
                Some(view) => Known::Holds(sequences().filter(|seq| view.held.contains(&key(*seq))).collect()),
            };
            known.insert(*drive, what);
        }
        let successor = if start.epoch == Epoch(0) {
            EpochStart::first(self.epoch)
        } else {
            start.successor(self.epoch, tail.next(), floor.next())
        };
        let acknowledged = self.acknowledged().min(tail).max(floor);
        Verdict::Decided(Box::new(Decision { root, records, tail, acknowledged, start: successor, known }))
    }
}
