//! What is on a drive, for people: read-only, and whatever the bytes are.

use crate::device::{Drive, DriveError, Operation, check_range, outcome};
use crate::format::geometry::Geometry;
use crate::format::superblock::Superblock;
use crate::formatted::{ConfigSlot, read_config_header, read_superblock};
use crate::ring::payload_matches;
use crate::ring::scan::{RingContent, scan_ring};
use crate::zones::load_table;
use bytes::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use weft_reactor::AlignedBuf;
use weft_reactor::sync::Pending;
use weft_wire::BucketId;
use weft_wire::limits::BLOCK_BYTES;

/// What was found. A drive that can't be used has a `problem`, and as much of the rest as could be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub capacity_bytes: u64,
    pub problem: Option<String>,
    pub superblocks: Vec<SuperblockReport>,
    pub drive: Option<DriveReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuperblockReport {
    pub offset: u64,
    /// "intact", or what is wrong with it.
    pub state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DriveReport {
    pub cluster: String,
    pub node: u16,
    pub drive: u32,
    pub uuid: String,
    pub geometry: Geometry,
    pub config: Vec<SlotReport>,
    pub zones: Option<ZonesReport>,
    pub ring: Option<RingReport>,
    pub buckets: Vec<BucketReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotReport {
    pub slot: String,
    /// Of each copy: generation and bytes, or what is wrong with it.
    pub copies: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZonesReport {
    pub total: u32,
    pub free: u32,
    pub generation_max: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RingReport {
    pub segments: u32,
    pub segments_used: u64,
    pub oldest_serial: u64,
    pub serial: u64,
    pub groups: u64,
    /// Groups that were written and can't be read any more.
    pub groups_lost: u64,
    pub live_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BucketReport {
    pub bucket: u32,
    pub zones: u32,
    /// Nothing is granted to lower epochs.
    pub fence: u64,
    pub trim_below: u64,
    pub first: u64,
    pub last: u64,
    pub records: u64,
    pub records_damaged: u64,
    pub bytes: u64,
    pub acknowledged: u64,
    pub root: Option<u64>,
}

/// Reads everything but the zones' content. Never writes.
pub async fn inspect(drive: &dyn Drive) -> Report {
    let mut report = Report {
        capacity_bytes: drive.capacity_bytes(),
        problem: None,
        superblocks: look_at_superblocks(drive).await,
        drive: None,
    };
    match read_superblock(drive).await {
        Ok(superblock) => report.drive = Some(look_at_regions(drive, &superblock, &mut report.problem).await),
        Err(error) => report.problem = Some(error.to_string()),
    }
    report
}

/// [`inspect`] for a file or block device, also one that is in use: then what is being written may look torn.
pub fn inspect_file(path: &Path) -> std::io::Result<Report> {
    let mut file = File::open(path)?;
    let capacity_bytes = file.seek(SeekFrom::End(0))? / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let drive = ReadOnlyFile { file, capacity_bytes };
    let mut inspecting = pin!(inspect(&drive));
    // Every read of this drive is complete when it returns, so there is nothing to wait for.
    match inspecting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(report) => Ok(report),
        Poll::Pending => Err(std::io::Error::other("the drive didn't answer")),
    }
}

async fn look_at_superblocks(drive: &dyn Drive) -> Vec<SuperblockReport> {
    let block = BLOCK_BYTES as u64;
    let last = (drive.capacity_bytes() / block * block).saturating_sub(block);
    let mut reports = Vec::new();
    for offset in [0, last] {
        let state = match outcome(drive.read(offset, BLOCK_BYTES)).await {
            Ok(bytes) => Superblock::decode(&bytes, offset).map_or_else(|error| error.to_string(), |_| "intact".into()),
            Err(error) => error.to_string(),
        };
        reports.push(SuperblockReport { offset, state });
    }
    reports
}

async fn look_at_regions(drive: &dyn Drive, superblock: &Superblock, problem: &mut Option<String>) -> DriveReport {
    let mut report = DriveReport {
        cluster: superblock.cluster.to_string(),
        node: superblock.node.0,
        drive: superblock.drive.0,
        uuid: superblock.uuid.to_string(),
        geometry: superblock.geometry,
        config: Vec::new(),
        zones: None,
        ring: None,
        buckets: Vec::new(),
    };
    for slot in ConfigSlot::ALL {
        report.config.push(look_at_slot(drive, superblock, slot).await);
    }
    let mut buckets: BTreeMap<BucketId, BucketReport> = BTreeMap::new();
    match load_table(drive, superblock).await {
        Ok(table) => {
            let holders = table.entries.iter().filter_map(|entry| entry.holder);
            holders.for_each(|holder| bucket_of(&mut buckets, holder.bucket).zones += 1);
            report.zones = Some(ZonesReport {
                total: superblock.geometry.zones,
                free: table.entries.iter().filter(|entry| entry.holder.is_none()).count() as u32,
                generation_max: table.entries.iter().map(|entry| entry.generation.0).max().unwrap_or(0),
            });
        }
        Err(error) => *problem = Some(error.to_string()),
    }
    match scan_ring(drive, superblock).await {
        Ok(content) => {
            report.ring = Some(look_at_ring(superblock, &content));
            look_at_logs(drive, &content, &mut buckets).await;
        }
        Err(error) => *problem = Some(error.to_string()),
    }
    report.buckets = buckets.into_values().collect();
    report
}

fn bucket_of(buckets: &mut BTreeMap<BucketId, BucketReport>, bucket: BucketId) -> &mut BucketReport {
    buckets.entry(bucket).or_insert_with(|| BucketReport {
        bucket: bucket.0,
        zones: 0,
        fence: 0,
        trim_below: 0,
        first: 0,
        last: 0,
        records: 0,
        records_damaged: 0,
        bytes: 0,
        acknowledged: 0,
        root: None,
    })
}

async fn look_at_slot(drive: &dyn Drive, superblock: &Superblock, slot: ConfigSlot) -> SlotReport {
    let mut copies = Vec::new();
    for copy in 0..2 {
        copies.push(match read_config_header(drive, superblock, slot, copy).await {
            Ok(Ok(header)) => format!("generation {}, {} bytes", header.generation, header.content_bytes),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        });
    }
    SlotReport { slot: format!("{slot:?}"), copies }
}

fn look_at_ring(superblock: &Superblock, content: &RingContent) -> RingReport {
    RingReport {
        segments: superblock.geometry.segments,
        segments_used: if content.groups == 0 { 0 } else { content.serial - content.oldest_serial + 1 },
        oldest_serial: content.oldest_serial,
        serial: content.serial,
        groups: content.groups,
        groups_lost: content.lost_groups,
        live_bytes: content.index.live_bytes,
    }
}

async fn look_at_logs(drive: &dyn Drive, content: &RingContent, buckets: &mut BTreeMap<BucketId, BucketReport>) {
    for (bucket, log) in &content.index.buckets {
        let tail = log.summary();
        let mut records_damaged = 0;
        for held in log.records.values() {
            let skip = (held.offset % BLOCK_BYTES as u64) as usize;
            let len = held.header.len_bytes as usize;
            let whole = (skip + len).next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
            let read = outcome(drive.read(held.offset - skip as u64, whole)).await;
            let intact = read.is_ok_and(|blocks| payload_matches(*bucket, &held.header, &blocks[skip..skip + len]));
            records_damaged += u64::from(!intact);
        }
        let report = bucket_of(buckets, *bucket);
        *report = BucketReport {
            fence: log.state.fence.0,
            trim_below: log.state.trim_below.0,
            first: tail.first.0,
            last: tail.last.0,
            records: log.records.len() as u64,
            records_damaged,
            bytes: log.live_bytes,
            acknowledged: tail.acknowledged.0,
            root: tail.root.map(|seq| seq.0),
            ..report.clone()
        };
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(problem) = &self.problem {
            writeln!(f, "PROBLEM      {problem}")?;
        }
        writeln!(f, "capacity     {} bytes", self.capacity_bytes)?;
        for superblock in &self.superblocks {
            writeln!(f, "superblock   at byte {}: {}", superblock.offset, superblock.state)?;
        }
        match &self.drive {
            Some(drive) => drive.fmt(f),
            None => Ok(()),
        }
    }
}

impl fmt::Display for DriveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "cluster      {}", self.cluster)?;
        writeln!(f, "identity     drive{} of node{}, formatted as {}", self.drive, self.node, self.uuid)?;
        for slot in &self.config {
            writeln!(f, "config       {:<13}{}", slot.slot, slot.copies.join(" | "))?;
        }
        if let Some(zones) = &self.zones {
            let (held, bytes) = (zones.total - zones.free, self.geometry.zone_bytes);
            writeln!(f, "zones        {} of {bytes} bytes: {held} held, {} free", zones.total, zones.free)?;
        }
        if let Some(ring) = &self.ring {
            let (bytes, used) = (self.geometry.segment_bytes, ring.segments_used);
            writeln!(f, "ring         {} segments of {bytes} bytes: {used} used", ring.segments)?;
            writeln!(
                f,
                "             {} groups, {} lost; {} bytes live",
                ring.groups, ring.groups_lost, ring.live_bytes
            )?;
        }
        for bucket in &self.buckets {
            let root = bucket.root.map_or("none".into(), |root| format!("seq{root}"));
            write!(f, "bucket{:<7}{} zones, fence epoch{}, ", bucket.bucket, bucket.zones, bucket.fence)?;
            write!(f, "{} records seq{}..seq{} ", bucket.records, bucket.first, bucket.last)?;
            writeln!(f, "({} bytes, {} damaged), root {root}", bucket.bytes, bucket.records_damaged)?;
        }
        Ok(())
    }
}

/// A file that is only read, at once and through the page cache.
struct ReadOnlyFile {
    file: File,
    capacity_bytes: u64,
}

impl ReadOnlyFile {
    fn read_now(&self, offset: u64, len: usize) -> Result<Bytes, DriveError> {
        check_range(self.capacity_bytes, offset, len as u64)?;
        let mut buffer = AlignedBuf::with_len(len);
        self.file.read_exact_at(buffer.as_mut_slice(), offset).map_err(|error| DriveError::Failed {
            operation: Operation::Read,
            offset,
            len: len as u64,
            reason: error.to_string(),
        })?;
        Ok(buffer.freeze())
    }

    fn refuse(operation: Operation, offset: u64, len: u64) -> Pending<Result<(), DriveError>> {
        let reason = "the drive was opened for reading only".into();
        Pending::ready(Err(DriveError::Failed { operation, offset, len, reason }))
    }
}

impl Drive for ReadOnlyFile {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn read(&self, offset: u64, len: usize) -> Pending<Result<Bytes, DriveError>> {
        Pending::ready(self.read_now(offset, len))
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        Self::refuse(Operation::Write, offset, data.iter().map(|piece| piece.len() as u64).sum())
    }

    fn write_durable(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        self.write(offset, data)
    }

    fn flush(&self) -> Pending<Result<(), DriveError>> {
        Self::refuse(Operation::Flush, 0, 0)
    }

    fn discard(&self, offset: u64, len: u64) -> Pending<Result<(), DriveError>> {
        Self::refuse(Operation::Discard, offset, len)
    }
}
