//! The leader's side of the log: copies what was adopted, opens the epoch, appends, beats, counts promises. Sans-IO.
//!
//! Each drive has its own queue and window, so that one that lags or is down never stops the others. A drive that
//! missed records gets them when it answers again, as long as they are in memory; beyond the backlog it keeps a hole,
//! which a later recovery fills from the other drives.

use crate::call::{Call, CallId, Outcome, Unreached};
use crate::error::LogError;
use crate::gathered::{Decision, Known};
use crate::peer::{Flight, FlightKind, Peer};
use crate::record::{EpochStart, Record, RootFrame, RootRecord, header};
use crate::store::{Entry, Ledger, Store};
use crate::tunables::Tunables;
use bytes::Bytes;
use core::time::Duration;
use std::collections::VecDeque;
use weft_reactor::Instant;
use weft_reactor::buf::AlignedBuf;
use weft_wire::drive::{DriveOp, DriveRefusal, DriveReply, RecordKind};
use weft_wire::limits::{MESSAGE_BODY_BYTES_MAX, RECORD_BYTES_MAX};
use weft_wire::{BucketId, DriveId, Epoch, Seq};

/// Records of one message to a drive whose ring is full.
const RECORDS_WITH_ROOT_MAX: usize = 2048;
/// Records of at most so many bytes may go beyond the quota, by one part in so many of it.
const SMALL_BYTES: usize = 4096;
const SPARE_PART: u64 = 8;
/// Behind an adopted tail there is room for one part in so many of the quota, whatever the tail has taken of it.
const BEHIND_ADOPTED_PART: u64 = 4;

#[derive(Clone, Debug)]
pub struct ReplicatorParams {
    pub bucket: BucketId,
    pub epoch: Epoch,
    /// The current ensemble.
    pub drives: Vec<DriveId>,
    /// P+1.
    pub copies_needed: usize,
    /// Earlier ensembles are still listed: what was acknowledged there must be copied to the current one.
    pub moving: bool,
    pub tunables: Tunables,
}

/// What the records that no root covers take, and what they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes_used: u64,
    pub bytes_quota: u64,
}

/// A drive of the ensemble that does not keep up, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub drive: DriveId,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Bringing what may lack copies to P+1.
    Copying,
    /// The epoch start is on its way.
    Starting(Seq),
    Serving,
}

#[derive(Debug)]
pub struct Replicator {
    bucket: BucketId,
    epoch: Epoch,
    copies_needed: usize,
    tunables: Tunables,
    peers: Vec<Peer>,
    store: Store,
    ledger: Ledger,
    /// What of the ledger was there when this leader began. It may be more than the quota: former leaders may have had a larger one.
    adopted_bytes: u64,
    phase: Phase,
    start: EpochStart,
    /// Last adopted sequence.
    adopted: Seq,
    /// All adopted records stand on P+1 of the current ensemble.
    copied: bool,
    last: Seq,
    acknowledged: Seq,
    /// Floor of the newest root that stands: everything up to it may be trimmed.
    floor: Seq,
    /// What the newest root covers.
    covered: Seq,
    /// Roots that do not stand yet, with their floors.
    roots: VecDeque<(Seq, Seq)>,
    failed: Option<LogError>,
    calls: u64,
    /// The last gathered body: drives in step share it.
    gathered: Option<(Seq, Seq, Bytes)>,
}

impl Replicator {
    /// Takes over the decided log.
    pub fn new(params: ReplicatorParams, decision: Decision) -> Self {
        let Decision { root, records, tail, acknowledged, start, known } = decision;
        let floor = root.as_ref().map_or(Seq(0), |(_, frame, _)| frame.floor);
        let mut ledger = Ledger::new(floor.next());
        for record in &records {
            ledger.push(record.header.len_bytes);
        }
        // With one ensemble listed, what was acknowledged has its copies.
        let first = if params.moving { floor.next() } else { acknowledged.next() };
        let mut replicator = Self {
            bucket: params.bucket,
            epoch: params.epoch,
            copies_needed: params.copies_needed,
            tunables: params.tunables,
            peers: Vec::with_capacity(params.drives.len()),
            store: Store::new(first),
            adopted_bytes: ledger.bytes(),
            ledger,
            phase: Phase::Copying,
            start,
            adopted: tail,
            copied: !params.moving,
            last: tail,
            acknowledged,
            floor,
            covered: root.as_ref().map_or(Seq(0), |(_, frame, _)| frame.covers),
            roots: VecDeque::new(),
            failed: None,
            calls: 0,
            gathered: None,
        };
        if let Some((seq, frame, _)) = &root
            && *seq > acknowledged
        {
            replicator.roots.push_back((*seq, frame.floor));
        }
        for Record { header, payload } in records {
            if header.seq >= first {
                let header = match weft_wire::mutant("reappend") {
                    true => self::header(
                        params.bucket,
                        params.epoch,
                        header.seq,
                        header.kind,
                        acknowledged,
                        std::slice::from_ref(&payload),
                    ),
                    false => header,
                };
                replicator.store.push(Entry { header, pieces: vec![payload], holders: 0 });
            }
        }
        let newest_root = root.map(|(seq, ..)| seq);
        for (index, drive) in params.drives.iter().enumerate() {
            let known = known.get(drive).unwrap_or(&Known::Nothing);
            let mut peer = Peer::new(*drive, *known != Known::Nothing);
            for seq in (first.0..=tail.0).map(Seq) {
                match known {
                    Known::Holds(held) if held.contains(&seq) => {
                        if let Some(entry) = replicator.store.get_mut(seq) {
                            entry.holders |= 1 << index;
                        }
                    }
                    // A drive that is new in the ensemble gets the root first.
                    _ if seq > acknowledged || Some(seq) == newest_root => drop(peer.urgent.insert(seq)),
                    _ => drop(peer.later.insert(seq)),
                }
            }
            replicator.peers.push(peer);
        }
        replicator.advance();
        replicator
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn last(&self) -> Seq {
        self.last
    }

    /// Drives of the current ensemble.
    pub fn drives(&self) -> impl Iterator<Item = DriveId> {
        self.peers.iter().map(|peer| peer.drive)
    }

    /// Everything below may be trimmed wherever it is.
    pub fn trim_below(&self) -> Seq {
        self.floor.next()
    }

    /// The last sequence that former leaders wrote.
    pub fn adopted(&self) -> Seq {
        self.adopted
    }

    /// Up to here everything stands on P+1.
    pub fn acknowledged(&self) -> Seq {
        self.acknowledged
    }

    /// The epoch start stands: the leader may serve.
    pub fn serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    /// All adopted records stand on P+1 of the current ensemble: earlier ones may be dropped from the map.
    pub fn copied(&self) -> bool {
        self.copied && self.serving()
    }

    pub fn failed(&self) -> Option<&LogError> {
        self.failed.as_ref()
    }

    pub fn stop(&mut self) {
        self.failed.get_or_insert(LogError::Stopped);
    }

    /// Drives of which more refuse for want of room than can be missed count as a full journal.
    pub fn room(&self) -> Room {
        let bytes_quota = self.tunables.quota_bytes;
        let full = self.peers.iter().filter(|peer| peer.ring_full).count();
        let bytes_used = if self.peers.len() - full < self.copies_needed {
            self.ledger.bytes().max(bytes_quota)
        } else {
            self.ledger.bytes()
        };
        Room { bytes_used, bytes_quota }
    }

    /// Drives that do not answer, and why.
    pub fn troubles(&self) -> Vec<Trouble> {
        let troubles = self.peers.iter().filter_map(|peer| Some((peer.drive, peer.why.clone()?)));
        troubles.map(|(drive, why)| Trouble { drive, why }).collect()
    }

    /// Until then P+1 drives answer no seal of a higher epoch.
    pub fn leased_until(&self) -> Instant {
        let mut promises: Vec<Instant> = self.peers.iter().map(|peer| peer.promised_until).collect();
        promises.sort_unstable_by(|a, b| b.cmp(a));
        self.copies_needed.checked_sub(1).and_then(|nth| promises.get(nth)).copied().unwrap_or_default()
    }

    /// Whether nobody else can lead now. False while the epoch has not begun and after it ended.
    pub fn lease_valid(&self, now: Instant) -> bool {
        self.serving() && self.failed.is_none() && now < self.leased_until()
    }

    /// Takes a batch of index changes.
    pub fn append(&mut self, payload: Vec<Bytes>) -> Result<Seq, LogError> {
        let len: usize = payload.iter().map(Bytes::len).sum();
        let room = self.room();
        // What makes room begins with a small record: work that failed again and again must not have used up the place for it.
        let spare = len <= SMALL_BYTES && room.bytes_used == self.ledger.bytes();
        // After the death of drives the others serve more buckets, and each has less of them than its former leaders had.
        let quota = room.bytes_quota.max(self.adopted_bytes + room.bytes_quota / BEHIND_ADOPTED_PART);
        let limit = quota + if spare { room.bytes_quota / SPARE_PART } else { 0 };
        if room.bytes_used + len as u64 > limit {
            self.failed.clone().map_or(Ok(()), Err)?;
            return Err(LogError::Full);
        }
        self.take(RecordKind::Batch, payload)
    }

    /// Takes a root; it must not cover less than the one before. When it stands, everything that it covers is trimmed, as far as that was acknowledged by now.
    pub fn append_root(&mut self, root: RootRecord) -> Result<Seq, LogError> {
        assert!(root.covers <= self.last, "a root covers what was appended before it");
        assert!(root.covers >= self.covered, "a root covers what the root before it covers: that may be trimmed");
        let floor = root.covers.min(self.acknowledged);
        let frame = RootFrame { covers: root.covers, floor, start: self.start.clone() };
        let seq = self.take(RecordKind::Root, frame.encode(root.body))?;
        self.roots.push_back((seq, floor));
        self.covered = root.covers;
        Ok(seq)
    }

    fn take(&mut self, kind: RecordKind, pieces: Vec<Bytes>) -> Result<Seq, LogError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let len: usize = pieces.iter().map(Bytes::len).sum();
        if len > RECORD_BYTES_MAX {
            return Err(LogError::TooLarge(len));
        }
        let seq = self.last.next();
        let header = header(self.bucket, self.epoch, seq, kind, self.acknowledged, &pieces);
        self.ledger.push(header.len_bytes);
        self.store.push(Entry { header, pieces, holders: 0 });
        self.last = seq;
        let first = self.store.first();
        for peer in &mut self.peers {
            peer.urgent.insert(seq);
            // What is no longer in memory can't be sent: the drive keeps a hole.
            while peer.urgent.first().is_some_and(|seq| *seq < first) {
                peer.urgent.pop_first();
            }
        }
        Ok(seq)
    }

    /// Asks for a promise from each drive that has nothing under way that brings one, and of whose last no more than
    /// `left_max` is left. A drive that answers faster than the others isn't asked again for each of their answers.
    pub fn beat(&mut self, now: Instant, left_max: Duration) {
        let again = self.tunables.lease / 8;
        for peer in &mut self.peers {
            let stale = peer.promised_until.since(now) <= left_max;
            if stale && peer.flights.is_empty() && peer.beat_at <= now {
                peer.beat = true;
                peer.beat_at = now + again;
            }
        }
    }

    /// The next call to make now, if any. Ask until there is none.
    pub fn poll(&mut self, now: Instant) -> Option<Call> {
        if self.failed.is_some() {
            return None;
        }
        (0..self.peers.len()).find_map(|index| self.poll_peer(index, now))
    }

    fn poll_peer(&mut self, index: usize, now: Instant) -> Option<Call> {
        let tunables = self.tunables;
        let id = CallId(self.calls + 1);
        let peer = self.peers.get_mut(index)?;
        if !peer.may_send(now) {
            return None;
        }
        if !peer.sealed {
            if !peer.flights.is_empty() {
                return None;
            }
            peer.depart(id, Flight { sent: now, what: FlightKind::Seal, bytes: 0 });
            self.calls = id.0;
            let (drive, op) = (peer.drive, DriveOp::Seal { epoch: self.epoch });
            let timeout = tunables.call_timeout + tunables.lease;
            return Some(Call { id, drive, op, body: Bytes::new(), timeout });
        }
        if !peer.window_open(&tunables) {
            return None;
        }
        // A full ring takes refused batches only together with the root behind them.
        let (records_max, bytes_max) = match peer.ring_full {
            true => (RECORDS_WITH_ROOT_MAX, MESSAGE_BODY_BYTES_MAX),
            false => (tunables.group_records, tunables.group_bytes),
        };
        let (mut records, mut bytes) = (Vec::new(), 0);
        for queue in [&mut peer.urgent, &mut peer.later] {
            while let Some(seq) = queue.first().copied() {
                let len = self.store.get(seq).map_or(0, |entry| entry.header.len_bytes as usize);
                if records.len() == records_max || (!records.is_empty() && bytes + len > bytes_max) {
                    break;
                }
                queue.pop_first();
                if self.store.get(seq).is_some_and(|entry| entry.holders & (1 << index) == 0) {
                    records.push(seq);
                    bytes += len;
                }
            }
        }
        if records.is_empty() && !peer.beat {
            return None;
        }
        peer.beat = false;
        self.calls = id.0;
        let drive = peer.drive;
        let trim_below = self.floor.next();
        let what = FlightKind::Append { records: records.clone(), trim_below };
        peer.depart(id, Flight { sent: now, what, bytes });
        let body = self.gather(&records, bytes);
        let headers = records.iter().filter_map(|seq| Some(self.store.get(*seq)?.header)).collect();
        let op = DriveOp::Append { as_epoch: self.epoch, records: headers, trim_below, promise: true };
        Some(Call { id, drive, op, body, timeout: tunables.call_timeout })
    }

    /// The payloads one after another. Not copied if they are one piece, and copied once for drives in step.
    fn gather(&mut self, records: &[Seq], bytes: usize) -> Bytes {
        let pieces = || records.iter().filter_map(|seq| self.store.get(*seq)).flat_map(|entry| &entry.pieces);
        let mut filled = pieces().filter(|piece| !piece.is_empty());
        let (Some(piece), second) = (filled.next(), filled.next()) else { return Bytes::new() };
        if second.is_none() {
            return piece.clone();
        }
        let (Some(first), Some(last)) = (records.first().copied(), records.last().copied()) else {
            return Bytes::new();
        };
        let consecutive = records.iter().zip(first.0..).all(|(seq, expected)| seq.0 == expected);
        if consecutive
            && let Some((known_first, known_last, body)) = &self.gathered
            && (*known_first, *known_last) == (first, last)
        {
            return body.clone();
        }
        let mut buffer = AlignedBuf::unfilled(bytes);
        let mut rest = buffer.as_mut_slice();
        for piece in pieces() {
            let (place, behind) = rest.split_at_mut(piece.len());
            place.copy_from_slice(piece);
            rest = behind;
        }
        let body = buffer.freeze();
        if consecutive {
            self.gathered = Some((first, last, body.clone()));
        }
        body
    }

    /// Takes in the outcome of a call.
    pub fn reply(&mut self, call: CallId, now: Instant, outcome: Outcome) {
        let promise = self.tunables.promise();
        let Some((index, peer)) = self.peers.iter_mut().enumerate().find(|(_, peer)| peer.flights.contains_key(&call))
        else {
            return;
        };
        let Some(flight) = peer.arrive(call) else { return };
        let why = match (outcome, &flight.what) {
            (Ok((DriveReply::Sealed { .. }, _)), FlightKind::Seal) => {
                peer.succeed();
                peer.sealed = true;
                return;
            }
            (Ok((DriveReply::Appended { promised }, _)), FlightKind::Append { records, trim_below }) => {
                peer.succeed();
                peer.trimmed_below = peer.trimmed_below.max(*trim_below);
                if promised {
                    // Counted from the sending: the drive's own count began later.
                    peer.promised_until = peer.promised_until.max(flight.sent + promise);
                }
                for seq in records {
                    if let Some(entry) = self.store.get_mut(*seq) {
                        entry.holders |= 1 << index;
                    }
                }
                self.advance();
                return;
            }
            (Ok((DriveReply::Refused(DriveRefusal::Sealed(epoch)), _)), _) if epoch > self.epoch => {
                self.failed = Some(LogError::Sealed(epoch));
                return;
            }
            (Ok((DriveReply::Refused(DriveRefusal::Promised { retry_ms }), _)), _) => {
                peer.why = Some(format!("promised the old leader to wait for {retry_ms} ms"));
                peer.retry_at = now + Duration::from_millis(u64::from(retry_ms.max(1)));
                return;
            }
            (Ok((DriveReply::Refused(refusal), _)), _) => {
                peer.ring_full = refusal == DriveRefusal::RingFull;
                refusal.to_string()
            }
            (Ok(_), _) => "answered something else than it was asked".into(),
            (Err(Unreached(why)), _) => why,
        };
        peer.fail(now, flight, why, &self.tunables);
    }

    /// Draws the conclusions from new copies.
    fn advance(&mut self) {
        while let Some(entry) = self.store.get(self.acknowledged.next())
            && entry.copies() >= self.copies_needed
        {
            self.acknowledged = self.acknowledged.next();
        }
        match self.phase {
            Phase::Copying if self.acknowledged == self.adopted => {
                let start = self.start.encode();
                self.phase = Phase::Starting(self.start.seq);
                if let Err(error) = self.take(RecordKind::EpochStart, vec![start]) {
                    self.failed.get_or_insert(error);
                }
            }
            Phase::Starting(start) if self.acknowledged >= start => self.phase = Phase::Serving,
            _ => {}
        }
        while let Some((seq, floor)) = self.roots.front().copied()
            && seq <= self.acknowledged
        {
            self.roots.pop_front();
            self.floor = self.floor.max(floor);
            self.ledger.trim(self.floor);
            self.adopted_bytes = self.adopted_bytes.min(self.ledger.bytes());
            for peer in &mut self.peers {
                peer.beat = true;
            }
        }
        if !self.copied {
            let from = self.store.first();
            self.copied = (from.0..=self.adopted.0)
                .all(|seq| self.store.get(Seq(seq)).is_none_or(|entry| entry.copies() >= self.copies_needed));
        }
        let everyone = (1 << self.peers.len()) - 1;
        let (acknowledged, floor, needed) = (self.acknowledged, self.floor, self.copies_needed);
        let kept_max = self.tunables.backlog_bytes_max;
        self.store.evict(|entry, kept| {
            let seq = entry.header.seq;
            let stands = seq <= acknowledged && entry.copies() >= needed;
            entry.holders == everyone || (seq <= acknowledged && seq <= floor) || (stands && kept > kept_max)
        });
    }

    /// When to call `poll` again if no reply comes before.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.failed.is_some() {
            return None;
        }
        let waiting = self.peers.iter().filter(|peer| peer.retry_at > now && peer.has_work());
        waiting.map(|peer| peer.retry_at).min()
    }
}
