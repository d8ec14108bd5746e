//! Rebuilds the index from the ring when a drive is opened.
//!
//! Groups are numbered without gaps and segments carry serial numbers, so damage shows: a missing number between
//! two groups is damage, an incomplete group after the last is a write that was never acknowledged. Within a segment,
//! groups numbered at or above the first of the next segment were given up by their writer and don't count.

use super::index::Index;
use super::payload_matches;
use crate::device::{Drive, DriveError, outcome};
use crate::format::Identity;
use crate::format::frame::FrameError;
use crate::format::group::{self, ENTRIES_MAX, Entry, GroupHeader};
use crate::format::superblock::Superblock;
use bytes::Bytes;
use std::collections::BTreeMap;
use weft_wire::BucketId;
use weft_wire::limits::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Read at once while looking for groups.
const WINDOW_BYTES: u64 = 64 << 10;

/// What a scan found and where writing goes on.
pub struct RingContent {
    pub index: Index,
    pub oldest_serial: u64,
    /// The newest segment and the end of its last group.
    pub serial: u64,
    pub at: u64,
    pub next_number: u64,
    pub groups: u64,
    /// Groups that were written and can't be read any more.
    pub lost_groups: u64,
}

struct Group {
    offset: u64,
    header: GroupHeader,
    entries: Vec<(BucketId, Entry)>,
}

#[derive(Default)]
struct Segment {
    groups: Vec<Group>,
    /// Up to where groups follow each other, from the segment's start.
    unbroken_bytes: u64,
    /// Its first block isn't a group of this or an earlier round, and not empty.
    first_block_damaged: bool,
}

pub async fn scan_ring(drive: &dyn Drive, superblock: &Superblock) -> Result<RingContent, DriveError> {
    let mut scanner =
        Scanner { drive, superblock, identity: superblock.identity(), window: Bytes::new(), window_offset: 0 };
    let geometry = &superblock.geometry;
    let mut index = Index::new(geometry.ring_live_bytes_max());
    let Some(newest) = scanner.newest_serial().await? else {
        return Ok(RingContent {
            index,
            oldest_serial: 1,
            serial: 1,
            at: 0,
            next_number: 1,
            groups: 0,
            lost_groups: 0,
        });
    };
    let mut segments: BTreeMap<u64, Segment> = BTreeMap::new();
    let lowest = (newest + 1).saturating_sub(u64::from(geometry.segments)).max(1);
    for serial in lowest..=newest {
        segments.insert(serial, scanner.walk(serial).await?);
    }
    scanner.search_for_lost(&mut segments).await?;
    let oldest_serial = segments
        .values()
        .flat_map(|segment| segment.groups.iter().map(|group| group.header.oldest_serial))
        .max()
        .unwrap_or(lowest)
        .clamp(lowest, newest);
    segments.retain(|serial, _| *serial >= oldest_serial);
    drop_given_up(&mut segments);
    scanner.drop_torn_last(&mut segments).await?;
    let lost_groups = count_lost(&segments);
    let mut next_number = 1;
    let mut groups = 0;
    for group in segments.values().flat_map(|segment| &segment.groups) {
        enter(&mut index, group);
        next_number = group.header.number + 1;
        groups += 1;
    }
    if lost_groups > 0 {
        tracing::error!(drive = %superblock.drive, lost_groups, "groups of the journal ring are damaged");
        index.suspect_all(lost_groups.saturating_mul(ENTRIES_MAX as u64));
    }
    let buckets: Vec<BucketId> = index.buckets.keys().copied().collect();
    for bucket in buckets {
        let below = index.bucket(bucket).state.trim_below;
        index.trim(bucket, below);
    }
    let last = segments.get(&newest).and_then(|segment| segment.groups.last());
    let at = last.map_or(0, |last| last.offset + last.header.total_bytes - geometry.segment_offset(newest));
    Ok(RingContent { index, oldest_serial, serial: newest, at, next_number, groups, lost_groups })
}

fn enter(index: &mut Index, group: &Group) {
    for (bucket, entry) in &group.entries {
        match entry {
            Entry::Record(record) => {
                let offset = group.offset + u64::from(record.payload_offset);
                index.insert(*bucket, record, group.header.serial, offset);
            }
            Entry::State(state) => index.insert_state(*bucket, state, group.header.serial),
        }
    }
}

/// Groups that their writer replaced by others of the same number in the next segment.
fn drop_given_up(segments: &mut BTreeMap<u64, Segment>) {
    let mut limit = u64::MAX;
    for segment in segments.values_mut().rev() {
        segment.groups.retain(|group| group.header.number < limit);
        if let Some(first) = segment.groups.first() {
            limit = limit.min(first.header.number);
        }
    }
}

/// How many numbers are missing; a damaged start counts as one.
fn count_lost(segments: &BTreeMap<u64, Segment>) -> u64 {
    let mut lost = 0;
    let mut expected: Option<u64> = None;
    for segment in segments.values() {
        if expected.is_none() {
            let starts_late = !segment.groups.is_empty() && segment.unbroken_bytes == 0;
            lost += u64::from(segment.first_block_damaged || starts_late);
        }
        for group in &segment.groups {
            lost += expected.map_or(0, |expected| group.header.number.saturating_sub(expected));
            expected = Some(group.header.number + 1);
        }
    }
    lost
}

struct Scanner<'a> {
    drive: &'a dyn Drive,
    superblock: &'a Superblock,
    identity: Identity,
    window: Bytes,
    window_offset: u64,
}

impl Scanner<'_> {
    /// The highest serial number of any segment that begins with a group.
    async fn newest_serial(&mut self) -> Result<Option<u64>, DriveError> {
        let geometry = self.superblock.geometry;
        let mut newest = None;
        for segment in 0..u64::from(geometry.segments) {
            let offset = geometry.segment_offset(segment);
            let end = offset + geometry.segment_bytes;
            if let Ok(group) = self.group_at(offset, end).await? {
                newest = newest.max(Some(group.header.serial));
            }
        }
        // The newest segment may have lost its first group.
        let next = newest.map_or(1, |found: u64| found + 1);
        let hidden = self.search(next, 0, 0).await?;
        Ok(if hidden.is_empty() { newest } else { Some(next) })
    }

    /// The groups that follow each other from the start of a segment.
    async fn walk(&mut self, serial: u64) -> Result<Segment, DriveError> {
        let start = self.superblock.geometry.segment_offset(serial);
        let end = start + self.superblock.geometry.segment_bytes;
        let mut segment = Segment::default();
        let mut number = None;
        while start + segment.unbroken_bytes < end {
            match self.group_at(start + segment.unbroken_bytes, end).await? {
                Ok(group) if group.header.serial == serial && number.is_none_or(|n| group.header.number == n) => {
                    number = Some(group.header.number + 1);
                    segment.unbroken_bytes += group.header.total_bytes;
                    segment.groups.push(group);
                }
                Ok(_) | Err(FrameError::Zero | FrameError::OtherDrive) => break,
                Err(_) => {
                    segment.first_block_damaged = segment.unbroken_bytes == 0;
                    break;
                }
            }
        }
        Ok(segment)
    }

    /// Looks behind damage, where numbers are missing and behind the last group.
    async fn search_for_lost(&mut self, segments: &mut BTreeMap<u64, Segment>) -> Result<(), DriveError> {
        let serials: Vec<u64> = segments.keys().copied().collect();
        let mut last_number = 0;
        for serial in serials {
            let next_first = segments
                .range(serial + 1..)
                .find_map(|(_, segment)| segment.groups.first())
                .map(|group| group.header.number);
            let Some(segment) = segments.get_mut(&serial) else { continue };
            last_number = segment.groups.last().map_or(last_number, |group| group.header.number);
            if next_first != Some(last_number + 1) {
                let from = segment.unbroken_bytes;
                let found = self.search(serial, from, last_number).await?;
                segment.groups.extend(found);
                last_number = segment.groups.last().map_or(last_number, |group| group.header.number);
            }
        }
        Ok(())
    }

    /// Tries every block of a segment from `from` bytes on for groups numbered above `above`.
    async fn search(&mut self, serial: u64, from: u64, above: u64) -> Result<Vec<Group>, DriveError> {
        let start = self.superblock.geometry.segment_offset(serial);
        let end = start + self.superblock.geometry.segment_bytes;
        let mut found: Vec<Group> = Vec::new();
        let mut at = start + from;
        while at < end {
            let highest = found.last().map_or(above, |group| group.header.number);
            match self.group_at(at, end).await? {
                Ok(group) if group.header.serial == serial && group.header.number > highest => {
                    at += group.header.total_bytes;
                    found.push(group);
                }
                _ => at += BLOCK,
            }
        }
        Ok(found)
    }

    /// The last group of all is whole, or it was never acknowledged.
    async fn drop_torn_last(&mut self, segments: &mut BTreeMap<u64, Segment>) -> Result<(), DriveError> {
        let Some(segment) = segments.values_mut().rev().find(|segment| !segment.groups.is_empty()) else {
            return Ok(());
        };
        let Some(last) = segment.groups.last() else { return Ok(()) };
        let content = match outcome(self.drive.read(last.offset, last.header.total_bytes as usize)).await {
            Ok(content) => content,
            Err(DriveError::Failed { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let whole = last.entries.iter().all(|(bucket, entry)| match entry {
            Entry::State(_) => true,
            Entry::Record(record) => {
                let from = record.payload_offset as usize;
                let payload = content.get(from..from + record.header.len_bytes as usize);
                payload.is_some_and(|payload| payload_matches(*bucket, &record.header, payload))
            }
        });
        if !whole {
            segment.groups.pop();
        }
        Ok(())
    }

    /// The group that begins at this byte and ends before `end`.
    async fn group_at(&mut self, offset: u64, end: u64) -> Result<Result<Group, FrameError>, DriveError> {
        let first = match self.bytes_at(offset, BLOCK, end).await? {
            Some(bytes) => bytes,
            None => return Ok(Err(FrameError::Checksum)),
        };
        let covered = match group::covered_bytes(&first) {
            Ok(covered) => covered as u64,
            Err(error) => return Ok(Err(error)),
        };
        if covered > end - offset {
            return Ok(Err(FrameError::Checksum));
        }
        let Some(bytes) = self.bytes_at(offset, covered.next_multiple_of(BLOCK), end).await? else {
            return Ok(Err(FrameError::Checksum));
        };
        Ok(group::decode(&bytes, self.identity, offset).and_then(|(header, entries)| {
            let fits = header.total_bytes <= end - offset && header.serial > 0 && header.serial < u64::MAX / 2;
            let there = fits && self.superblock.geometry.segment_offset(header.serial) <= offset;
            if there { Ok(Group { offset, header, entries }) } else { Err(FrameError::Checksum) }
        }))
    }

    /// `None` if they can't be read.
    async fn bytes_at(&mut self, offset: u64, len: u64, end: u64) -> Result<Option<Bytes>, DriveError> {
        let held = self.window_offset..self.window_offset + self.window.len() as u64;
        if !(held.start <= offset && offset + len <= held.end) {
            let wanted = WINDOW_BYTES.max(len).min(end - offset);
            self.window = match outcome(self.drive.read(offset, wanted as usize)).await {
                Ok(window) => window,
                Err(DriveError::Failed { .. }) if wanted > len => {
                    match outcome(self.drive.read(offset, len as usize)).await {
                        Ok(window) => window,
                        Err(DriveError::Failed { .. }) => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
                Err(DriveError::Failed { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            self.window_offset = offset;
        }
        let from = (offset - self.window_offset) as usize;
        Ok(self.window.get(from..from + len as usize).map(|_| self.window.slice(from..from + len as usize)))
    }
}
