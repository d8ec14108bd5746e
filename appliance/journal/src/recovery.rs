//! Seals and gathers until the end of the log can be decided. Sans-IO.
//!
//! ```text
//! each drive:  seal -> read its newest root -> (which root is newest?) -> read what follows its floor -> complete
//! ```
//!
//! All drives of all listed ensembles are asked at once. N-P of each must answer; the others that seem alive get a
//! short grace, since what they hold is then known and needn't be copied. Drives that are away are asked again and again.

use crate::call::{Call, CallId, Outcome, Unreached};
use crate::error::RecoverError;
use crate::gathered::{Decision, DriveView, Gathered, Lack, Verdict, seals_needed};
use crate::record::Record;
use crate::tunables::Tunables;
use bytes::Bytes;
use core::time::Duration;
use std::collections::BTreeMap;
use weft_reactor::Instant;
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply, RecordHeader};
use weft_wire::{BucketId, DriveId, Epoch, Seq};

#[derive(Clone, Debug)]
pub struct RecoveryParams {
    pub bucket: BucketId,
    /// The epoch that is to begin.
    pub epoch: Epoch,
    /// P.
    pub parity: usize,
    /// Drives of each listed ensemble, the current one first.
    pub ensembles: Vec<Vec<DriveId>>,
    pub tunables: Tunables,
}

/// Where a recovery stands.
#[derive(Debug)]
pub enum Step {
    /// Make the calls that [`Recovery::poll`] gives, wait for replies or the deadline.
    Working,
    Done(Box<Decision>),
    Failed(RecoverError),
}

/// What a recovery waits for, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Drives that gave no answer lately, and why.
    pub away: Vec<(DriveId, String)>,
    /// Of the ensemble that lacks most: drives sealed and read, and how many must be.
    pub have: usize,
    pub needed: usize,
    /// What could not be decided with the drives that did answer.
    pub lack: Option<Lack>,
}

#[derive(Debug, Default)]
struct Progress {
    outstanding: Option<CallId>,
    retry_at: Instant,
    failures: u32,
    why: Option<String>,
    root_read: bool,
    /// Everything from here to the end was read.
    read_to_end_from: Option<Seq>,
    /// A reading under way: where it began, where it goes on.
    reading: Option<(Seq, Seq)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Sealing, and reading each drive's newest root.
    Sealing,
    /// Reading everything from `Gathered::read_from` on.
    Reading,
}

#[derive(Debug)]
pub struct Recovery {
    tunables: Tunables,
    gathered: Gathered,
    progress: BTreeMap<DriveId, Progress>,
    stage: Stage,
    /// When enough drives had answered this stage.
    quorum_at: Option<Instant>,
    lack: Option<Lack>,
    failed: Option<RecoverError>,
    calls: u64,
}

impl Recovery {
    pub fn new(params: RecoveryParams) -> Result<Self, RecoverError> {
        let needed = params.parity + 1;
        for drives in &params.ensembles {
            if drives.len() < needed {
                return Err(RecoverError::TooFewDrives { drives: drives.len(), needed });
            }
        }
        if params.ensembles.is_empty() {
            return Err(RecoverError::TooFewDrives { drives: 0, needed });
        }
        let progress = params.ensembles.iter().flatten().map(|drive| (*drive, Progress::default())).collect();
        let gathered = Gathered {
            bucket: params.bucket,
            epoch: params.epoch,
            parity: params.parity,
            ensembles: params.ensembles,
            read_from: Seq::FIRST,
            drives: BTreeMap::new(),
            records: BTreeMap::new(),
        };
        Ok(Self {
            tunables: params.tunables,
            gathered,
            progress,
            stage: Stage::Sealing,
            quorum_at: None,
            lack: None,
            failed: None,
            calls: 0,
        })
    }

    /// How many drives are asked.
    pub fn drives(&self) -> usize {
        self.progress.len()
    }

    /// The next call to make now, if any. Ask until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Call> {
        let drive = *self
            .progress
            .iter()
            .find(|(drive, progress)| {
                progress.outstanding.is_none() && progress.retry_at <= now && self.wanted(**drive).is_some()
            })?
            .0;
        let op = self.wanted(drive)?;
        self.calls += 1;
        let id = CallId(self.calls);
        // A drive answers a seal only when its last promise has run out.
        let timeout = match op {
            DriveOp::Seal { .. } => self.tunables.call_timeout + self.tunables.lease,
            _ => self.tunables.call_timeout,
        };
        let progress = self.progress.get_mut(&drive)?;
        progress.outstanding = Some(id);
        if let DriveOp::ReadTail { from, .. } = op {
            progress.reading = Some((progress.reading.map_or(from, |(began, _)| began), from));
        }
        Some(Call { id, drive, op, body: Bytes::new(), timeout })
    }

    /// What to ask a drive next.
    fn wanted(&self, drive: DriveId) -> Option<DriveOp> {
        let progress = self.progress.get(&drive)?;
        let bytes_max = self.tunables.read_bytes;
        let Some(view) = self.gathered.drives.get(&drive) else {
            return Some(DriveOp::Seal { epoch: self.gathered.epoch });
        };
        if let Some((_, from)) = progress.reading {
            return Some(DriveOp::ReadTail { from, bytes_max });
        }
        match (self.stage, view.summary.root) {
            (Stage::Sealing, Some(from)) if !progress.root_read => Some(DriveOp::ReadTail { from, bytes_max }),
            (Stage::Reading, _) if !view.complete => {
                Some(DriveOp::ReadTail { from: self.gathered.read_from, bytes_max })
            }
            _ => None,
        }
    }

    /// Takes in the outcome of a call.
    pub fn reply(&mut self, call: CallId, now: Instant, outcome: Outcome) {
        let Some((drive, progress)) = self.progress.iter_mut().find(|(_, progress)| progress.outstanding == Some(call))
        else {
            return;
        };
        let drive = *drive;
        progress.outstanding = None;
        let trouble = match outcome {
            Ok((DriveReply::Sealed { tail }, _)) => {
                progress.failures = 0;
                progress.why = None;
                self.gathered.drives.insert(drive, DriveView::new(tail));
                return;
            }
            Ok((DriveReply::Tail { records, unreadable, more }, body)) => {
                match self.take_tail(drive, records, &unreadable, more, &body) {
                    Ok(()) => return,
                    Err(why) => why,
                }
            }
            Ok((DriveReply::Refused(DriveRefusal::Sealed(epoch)), _)) if epoch > self.gathered.epoch => {
                self.failed = Some(RecoverError::Sealed(epoch));
                return;
            }
            Ok((DriveReply::Refused(DriveRefusal::Promised { retry_ms }), _)) => {
                progress.retry_at = now + Duration::from_millis(u64::from(retry_ms.max(1)));
                progress.why = Some(format!("promised the old leader to wait for {retry_ms} ms"));
                return;
            }
            Ok((DriveReply::Refused(refusal), _)) => refusal.to_string(),
            Ok(_) => "answered something else than it was asked".into(),
            Err(Unreached(why)) => why,
        };
        if let Some(progress) = self.progress.get_mut(&drive) {
            progress.failures = progress.failures.saturating_add(1);
            progress.retry_at = now + self.tunables.backoff(progress.failures);
            progress.why = Some(trouble);
        }
    }

    fn take_tail(
        &mut self,
        drive: DriveId,
        records: Vec<RecordHeader>,
        unreadable: &[Seq],
        more: bool,
        body: &Bytes,
    ) -> Result<(), String> {
        let length: usize = records.iter().map(|header| header.len_bytes as usize).sum();
        if length != body.len() {
            return Err(format!("records of {length} bytes came with {}", body.len()));
        }
        let Some(progress) = self.progress.get_mut(&drive) else { return Ok(()) };
        let Some((began, from)) = progress.reading else { return Ok(()) };
        let highest = records.iter().map(|header| header.seq).chain(unreadable.iter().copied()).max();
        progress.reading = match (more, highest) {
            (true, Some(highest)) if highest >= from => Some((began, highest.next())),
            (true, _) => return Err("has more records, but sent none".into()),
            (false, _) => None,
        };
        progress.failures = 0;
        progress.why = None;
        progress.root_read = true;
        if !more {
            progress.read_to_end_from = Some(progress.read_to_end_from.map_or(began, |known| known.min(began)));
        } else if self.stage == Stage::Sealing {
            // The root is the first record from its sequence on; the rest is read when it is known from where.
            progress.reading = None;
        }
        let mut offset = 0;
        for header in records {
            let end = offset + header.len_bytes as usize;
            if let Err(error) = self.gathered.take(drive, Record { header, payload: body.slice(offset..end) }) {
                self.failed = Some(error);
                return Ok(());
            }
            offset = end;
        }
        if let Some(view) = self.gathered.drives.get_mut(&drive) {
            view.unreadable.extend(unreadable);
        }
        self.mark_complete();
        Ok(())
    }

    fn mark_complete(&mut self) {
        for (drive, view) in &mut self.gathered.drives {
            let read = self.progress.get(drive).and_then(|progress| progress.read_to_end_from);
            view.complete = self.stage == Stage::Reading && read.is_some_and(|from| from <= self.gathered.read_from);
        }
    }

    /// Goes on as far as the answers allow.
    pub fn step(&mut self, now: Instant) -> Step {
        loop {
            if let Some(error) = &self.failed {
                return Step::Failed(error.clone());
            }
            if !self.stage_over(now) {
                return Step::Working;
            }
            match self.stage {
                Stage::Sealing => {
                    let from = self.gathered.newest_root().map_or(Seq::FIRST, |(_, frame)| frame.floor.next());
                    self.read_from(from);
                }
                Stage::Reading => match self.gathered.decide() {
                    Verdict::Decided(decision) => return Step::Done(decision),
                    Verdict::ReadAll => self.read_from(Seq::FIRST),
                    Verdict::Refuse(error) => return Step::Failed(error),
                    Verdict::AskMore(Lack { seq, reason }) if self.progress.keys().all(|drive| self.ready(*drive)) => {
                        return Step::Failed(RecoverError::Lost { seq, reason });
                    }
                    Verdict::AskMore(lack) => {
                        self.lack = Some(lack);
                        return Step::Working;
                    }
                },
            }
        }
    }

    fn read_from(&mut self, from: Seq) {
        self.stage = Stage::Reading;
        self.gathered.read_from = from;
        self.quorum_at = None;
        self.lack = None;
        for progress in self.progress.values_mut().filter(|progress| progress.outstanding.is_none()) {
            progress.reading = None;
        }
        self.mark_complete();
    }

    /// Whether a drive has done its part of the stage.
    fn ready(&self, drive: DriveId) -> bool {
        let Some(view) = self.gathered.drives.get(&drive) else { return false };
        match self.stage {
            Stage::Sealing => {
                view.summary.root.is_none() || self.progress.get(&drive).is_some_and(|progress| progress.root_read)
            }
            Stage::Reading => view.complete,
        }
    }

    /// Whether enough drives are ready, and those that seem alive too or the grace is over.
    fn stage_over(&mut self, now: Instant) -> bool {
        if !self.gathered.quorum(|drive| self.ready(drive)) {
            return false;
        }
        let since = *self.quorum_at.get_or_insert(now);
        let mut others = self.progress.iter().filter(|(_, progress)| progress.failures == 0);
        now >= since + self.tunables.grace || others.all(|(drive, _)| self.ready(*drive))
    }

    /// When to call `poll` and `step` again if no reply comes before.
    pub fn deadline(&self) -> Option<Instant> {
        let retries = self
            .progress
            .iter()
            .filter(|(drive, progress)| progress.outstanding.is_none() && self.wanted(**drive).is_some())
            .map(|(_, progress)| progress.retry_at);
        // Once the grace is over only answers help.
        let grace = self.quorum_at.filter(|_| self.lack.is_none()).map(|since| since + self.tunables.grace);
        retries.chain(grace).min()
    }

    /// What is being waited for, if any drive is away or what answered doesn't suffice.
    pub fn waiting(&self) -> Option<Waiting> {
        let away: Vec<_> =
            self.progress.iter().filter_map(|(drive, progress)| Some((*drive, progress.why.clone()?))).collect();
        if away.is_empty() && self.lack.is_none() {
            return None;
        }
        let ensembles = self.gathered.ensembles.iter().map(|drives| {
            let have = drives.iter().filter(|drive| self.ready(**drive)).count();
            (have, seals_needed(drives.len(), self.gathered.parity))
        });
        let (have, needed) = ensembles.max_by_key(|(have, needed)| needed.saturating_sub(*have)).unwrap_or_default();
        Some(Waiting { away, have, needed, lack: self.lack.clone() })
    }
}
