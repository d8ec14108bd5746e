//! A drive in memory, for the simulator and for tests: it can lose power, tear, lose, misdirect and corrupt
//! writes, and fail, all decided by its caller and its seed.
//!
//! [`MemMedia`] is what survives a crash, [`MemDrive`] one process' claim on it.

use crate::device::{Drive, DriveError, Operation, check_pieces, check_range};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::{Pending, completion};
use weft_reactor::{AlignedBuf, Handle, Instant};
use weft_wire::limits::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;
const SECTOR_BYTES: usize = 512;

#[derive(Clone, Copy, Debug)]
pub struct MemOptions {
    pub capacity_bytes: u64,
    pub read_latency: Duration,
    pub write_latency: Duration,
    pub flush_latency: Duration,
}

impl MemOptions {
    /// Without latency: every operation is complete at once.
    pub fn instant(capacity_bytes: u64) -> Self {
        Self {
            capacity_bytes,
            read_latency: Duration::ZERO,
            write_latency: Duration::ZERO,
            flush_latency: Duration::ZERO,
        }
    }
}

/// What becomes of a write that isn't durable when power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKeeps {
    Nothing,
    Everything,
    /// Each block by itself: new, old, or some of its sectors new.
    Some {
        seed: u64,
    },
}

/// What the operations of a drive amounted to since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemCounters {
    pub reads: u64,
    pub writes: u64,
    pub durable_writes: u64,
    pub blocks_read: u64,
    pub blocks_written: u64,
    pub flushes: u64,
}

/// Blocks moved in one region of a drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionCounters {
    pub read: u64,
    pub written: u64,
}

struct UnflushedWrite {
    number: u64,
    block: u64,
    data: Vec<Bytes>,
    complete: bool,
}

#[derive(Default)]
struct Faults {
    read_errors: BTreeSet<u64>,
    writes_failing: u64,
    flushes_failing: u64,
    /// Of writes that begin in these blocks.
    lose_next: Option<Range<u64>>,
    lies: bool,
    /// Of writes that begin in these blocks: where the next one lands.
    misdirect_next: Option<(Range<u64>, u64)>,
    delay: Duration,
    fails: bool,
    /// Power fails after so many more blocks were written.
    blocks_until_power_loss: Option<u64>,
}

struct Media {
    options: MemOptions,
    /// What reads see, and what survives. Blocks never written are zero.
    current: BTreeMap<u64, Bytes>,
    /// With the number of the write, so that an older one that becomes durable later doesn't cover a newer one.
    durable: BTreeMap<u64, (u64, Bytes)>,
    unflushed: Vec<UnflushedWrite>,
    next_write: u64,
    /// Rises with each crash; drives of an earlier life are closed.
    life: u64,
    powered: bool,
    faults: Faults,
    counters: MemCounters,
    /// The first blocks of the regions that are counted apart, and what was read and written in each.
    regions: Vec<(u64, RegionCounters)>,
    /// `None`: as many at once as one likes.
    bytes_per_second: Option<u64>,
    /// Until then the drive moves what it was given before.
    busy_until: Instant,
}

/// The content of a drive, shared by the drives that successive processes open on it.
#[derive(Clone)]
pub struct MemMedia(Rc<RefCell<Media>>);

impl MemMedia {
    pub fn new(options: MemOptions) -> Self {
        Self(Rc::new(RefCell::new(Media {
            options,
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            unflushed: Vec::new(),
            next_write: 0,
            life: 0,
            powered: true,
            faults: Faults::default(),
            counters: MemCounters::default(),
            regions: Vec::new(),
            bytes_per_second: None,
            busy_until: Instant::ZERO,
        })))
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.0.borrow().options.capacity_bytes
    }

    /// A process opens the drive. Drives opened before stay open until [`crash`](Self::crash).
    pub fn open(&self, handle: &Handle) -> Rc<MemDrive> {
        Rc::new(MemDrive { media: self.clone(), handle: handle.clone(), life: self.0.borrow().life })
    }

    /// Power fails: writes that aren't durable are kept or not, open drives are closed. Then power is back.
    pub fn crash(&self, keeps: CrashKeeps) {
        self.0.borrow_mut().crash(keeps);
    }

    /// The process dies, the drive goes on: what was written stays. Drives opened before are closed.
    pub fn kill(&self) {
        self.0.borrow_mut().crash(CrashKeeps::Everything);
    }

    /// Power fails when so many more blocks have been written, possibly in the middle of a write. From then on every
    /// operation is refused, until [`crash`](Self::crash).
    pub fn lose_power_after(&self, blocks: u64) {
        self.0.borrow_mut().faults.blocks_until_power_loss = Some(blocks);
    }

    /// Whether [`lose_power_after`](Self::lose_power_after) has struck.
    pub fn lost_power(&self) -> bool {
        !self.0.borrow().powered
    }

    /// Flips bits of one byte, on the media.
    pub fn corrupt(&self, offset: u64, flip: u8) {
        let mut media = self.0.borrow_mut();
        let block = offset / BLOCK;
        let mut content = media.block(block).to_vec();
        content[(offset % BLOCK) as usize] ^= flip;
        let content = Bytes::from(content);
        media.current.insert(block, content.clone());
        let number = media.next_write;
        media.durable.insert(block, (number, content));
    }

    /// Reads take so long from now on.
    pub fn set_read_latency(&self, latency: Duration) {
        self.0.borrow_mut().options.read_latency = latency;
    }

    /// From now on reads and writes take turns, each as long as its bytes need at this rate.
    pub fn set_bytes_per_second(&self, rate: u64) {
        self.0.borrow_mut().bytes_per_second = Some(rate.max(1));
    }

    /// The block that contains this byte can't be read until it is written.
    pub fn fail_reads_at(&self, offset: u64) {
        self.0.borrow_mut().faults.read_errors.insert(offset / BLOCK);
    }

    /// The next writes fail and change nothing.
    pub fn fail_writes(&self, count: u64) {
        self.0.borrow_mut().faults.writes_failing = count;
    }

    pub fn fail_flushes(&self, count: u64) {
        self.0.borrow_mut().faults.flushes_failing = count;
    }

    /// From now on nothing becomes durable, though the drive says so.
    pub fn lie_about_durability(&self) {
        self.0.borrow_mut().faults.lies = true;
    }

    pub fn be_honest_again(&self) {
        self.0.borrow_mut().faults.lies = false;
    }

    /// The next write is acknowledged and never happens.
    pub fn lose_next_write(&self) {
        self.lose_next_write_in(0..self.capacity_bytes());
    }

    /// The next write that begins in these bytes is acknowledged and never happens.
    pub fn lose_next_write_in(&self, bytes: Range<u64>) {
        self.0.borrow_mut().faults.lose_next = Some(blocks(&bytes));
    }

    /// The next write lands at another offset.
    pub fn misdirect_next_write(&self, offset: u64) {
        self.misdirect_next_write_in(0..self.capacity_bytes(), offset);
    }

    /// The next write that begins in these bytes lands at another offset.
    pub fn misdirect_next_write_in(&self, bytes: Range<u64>, offset: u64) {
        self.0.borrow_mut().faults.misdirect_next = Some((blocks(&bytes), offset / BLOCK));
    }

    /// No write is lost or misdirected any more that was going to be.
    pub fn write_well_again(&self) {
        let faults = &mut self.0.borrow_mut().faults;
        (faults.lose_next, faults.misdirect_next) = (None, None);
    }

    /// Every operation takes so much longer from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.0.borrow_mut().faults.delay = delay;
    }

    /// Every operation fails from now on, or works again on what the drive held. Writes that are under way when it begins stand,
    /// though they fail.
    pub fn set_failing(&self, fails: bool) {
        self.0.borrow_mut().faults.fails = fails;
    }

    pub fn is_failing(&self) -> bool {
        self.0.borrow().faults.fails
    }

    pub fn counters(&self) -> MemCounters {
        self.0.borrow().counters
    }

    /// From now on counts apart what is moved in the regions that begin at these offsets, in order.
    pub fn count_regions(&self, starts: &[u64]) {
        self.0.borrow_mut().regions = starts.iter().map(|start| (start / BLOCK, RegionCounters::default())).collect();
    }

    /// What was moved in each since [`count_regions`](Self::count_regions).
    pub fn region_counters(&self) -> Vec<RegionCounters> {
        self.0.borrow().regions.iter().map(|(_, counters)| *counters).collect()
    }

    /// What a read would see now.
    pub fn peek(&self, offset: u64, len: usize) -> Bytes {
        self.0.borrow().read(offset, len)
    }
}

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

impl Media {
    fn block(&self, block: u64) -> Bytes {
        self.current.get(&block).cloned().unwrap_or(Bytes::from_static(&ZEROS))
    }

    /// What is counted of the region that a block is in.
    fn region(&mut self, block: u64) -> Option<&mut RegionCounters> {
        self.regions.iter_mut().rev().find(|(start, _)| *start <= block).map(|(_, counters)| counters)
    }

    /// How long an operation that begins now waits for its turn and moves its bytes.
    fn turn(&mut self, now: Instant, bytes: u64) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        self.busy_until = self.busy_until.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.busy_until.since(now)
    }

    fn read(&self, offset: u64, len: usize) -> Bytes {
        let mut buffer = AlignedBuf::with_len(len);
        for (piece, block) in buffer.as_mut_slice().chunks_mut(BLOCK_BYTES).zip(offset / BLOCK..) {
            if let Some(content) = self.current.get(&block) {
                piece.copy_from_slice(&content[..piece.len()]);
            }
        }
        buffer.freeze()
    }

    /// Returns the write's number, or `None` if it was lost or power failed in the middle.
    fn write(&mut self, offset: u64, data: Vec<Bytes>) -> Option<u64> {
        let mut block = offset / BLOCK;
        if self.faults.lose_next.take_if(|range| range.contains(&block)).is_some() {
            return None;
        }
        if let Some((_, elsewhere)) = self.faults.misdirect_next.take_if(|(range, _)| range.contains(&block)) {
            block = elsewhere;
        }
        let mut pieces = Vec::new();
        for piece in data {
            for at in (0..piece.len()).step_by(BLOCK_BYTES) {
                match &mut self.faults.blocks_until_power_loss {
                    Some(0) => {
                        self.powered = false;
                        break;
                    }
                    Some(left) => *left -= 1,
                    None => {}
                }
                let content = piece.slice(at..at + BLOCK_BYTES);
                // Zeros take no memory: clusters may be larger than the machine that simulates them.
                pieces.push(if content == ZEROS[..] { Bytes::from_static(&ZEROS) } else { content });
            }
        }
        self.counters.blocks_written += pieces.len() as u64;
        if let Some(region) = self.region(block) {
            region.written += pieces.len() as u64;
        }
        for (content, block) in pieces.iter().zip(block..) {
            self.current.insert(block, content.clone());
            self.faults.read_errors.remove(&block);
        }
        self.next_write += 1;
        let number = self.next_write;
        self.unflushed.push(UnflushedWrite { number, block, data: pieces, complete: false });
        self.powered.then_some(number)
    }

    /// Makes the writes durable that `chosen` picks.
    fn make_durable(&mut self, chosen: impl Fn(&UnflushedWrite) -> bool) {
        if self.faults.lies {
            return;
        }
        let (chosen, rest) = std::mem::take(&mut self.unflushed).into_iter().partition(chosen);
        self.unflushed = rest;
        let chosen: Vec<UnflushedWrite> = chosen;
        for write in chosen {
            for (content, block) in write.data.into_iter().zip(write.block..) {
                self.settle(block, write.number, content);
            }
        }
    }

    fn settle(&mut self, block: u64, number: u64, content: Bytes) {
        if self.durable.get(&block).is_none_or(|(newest, _)| *newest < number) {
            self.durable.insert(block, (number, content));
        }
    }

    fn crash(&mut self, keeps: CrashKeeps) {
        self.life += 1;
        self.busy_until = Instant::ZERO;
        self.powered = true;
        self.faults.blocks_until_power_loss = None;
        let mut random = match keeps {
            CrashKeeps::Some { seed } => seed,
            _ => 0,
        };
        for write in std::mem::take(&mut self.unflushed) {
            for (content, block) in write.data.into_iter().zip(write.block..) {
                match keeps {
                    CrashKeeps::Nothing => {}
                    CrashKeeps::Everything => self.settle(block, write.number, content),
                    CrashKeeps::Some { .. } => {
                        let kept = self.keep_some(block, &content, next_random(&mut random));
                        self.settle(block, write.number, kept);
                    }
                }
            }
        }
        self.current = self.durable.iter().map(|(block, (_, content))| (*block, content.clone())).collect();
    }

    fn keep_some(&self, block: u64, content: &Bytes, random: u64) -> Bytes {
        let mut kept = self.durable.get(&block).map_or_else(|| vec![0; BLOCK_BYTES], |(_, old)| old.to_vec());
        let sectors = match random % 3 {
            0 => 0,
            1 => u8::MAX,
            _ => (random >> 8) as u8,
        };
        for sector in (0..BLOCK_BYTES / SECTOR_BYTES).filter(|sector| sectors & (1 << sector) != 0) {
            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
            kept[range.clone()].copy_from_slice(&content[range]);
        }
        kept.into()
    }
}

/// SplitMix64: a crash is a function of its seed.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One process' claim on a [`MemMedia`].
pub struct MemDrive {
    media: MemMedia,
    handle: Handle,
    life: u64,
}

impl MemDrive {
    /// Completes after `latency` with what `finish` says then; a crash in between closes it.
    fn after<T: 'static>(
        &self,
        operation: Operation,
        latency: Duration,
        finish: impl FnOnce(&mut Media) -> Result<T, DriveError> + 'static,
    ) -> Pending<Result<T, DriveError>> {
        let media = self.media.clone();
        let (latency, failed_at_once) = {
            let faults = &media.0.borrow().faults;
            (latency + faults.delay, faults.fails)
        };
        let life = self.life;
        let finish = move || {
            let mut media = media.0.borrow_mut();
            match media.life == life && media.powered {
                true if failed_at_once || media.faults.fails => Err(failed(operation, 0, 0)),
                true => finish(&mut media),
                false => Err(DriveError::Closed),
            }
        };
        if latency.is_zero() {
            return Pending::ready(finish());
        }
        let (completer, pending) = completion();
        let sleep = self.handle.sleep(latency);
        self.handle
            .spawn("mem drive", async move {
                sleep.await;
                completer.complete(finish());
            })
            .detach();
        pending
    }

    fn turn(&self, bytes: u64) -> Duration {
        self.media.0.borrow_mut().turn(self.handle.now(), bytes)
    }

    fn alive(&self) -> Result<(), DriveError> {
        let media = self.media.0.borrow();
        if media.life == self.life && media.powered { Ok(()) } else { Err(DriveError::Closed) }
    }

    fn begin_write(&self, offset: u64, data: Vec<Bytes>) -> Result<Option<u64>, DriveError> {
        self.alive()?;
        let len = check_pieces(self.capacity_bytes(), offset, &data)?;
        let mut media = self.media.0.borrow_mut();
        media.counters.writes += 1;
        if media.faults.writes_failing > 0 {
            media.faults.writes_failing -= 1;
            return Err(failed(Operation::Write, offset, len));
        }
        if media.faults.fails {
            return Ok(None);
        }
        Ok(media.write(offset, data))
    }
}

fn blocks(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}

fn failed(operation: Operation, offset: u64, len: u64) -> DriveError {
    DriveError::Failed { operation, offset, len, reason: "injected fault".into() }
}

impl Drive for MemDrive {
    fn capacity_bytes(&self) -> u64 {
        self.media.0.borrow().options.capacity_bytes
    }

    fn read(&self, offset: u64, len: usize) -> Pending<Result<Bytes, DriveError>> {
        let checked = self.alive().and_then(|()| check_range(self.capacity_bytes(), offset, len as u64));
        if let Err(error) = checked {
            return Pending::ready(Err(error));
        }
        let turn = self.turn(len as u64);
        let latency = self.media.0.borrow().options.read_latency;
        self.after(Operation::Read, latency + turn, move |media| {
            media.counters.reads += 1;
            media.counters.blocks_read += len as u64 / BLOCK;
            if let Some(region) = media.region(offset / BLOCK) {
                region.read += len as u64 / BLOCK;
            }
            let blocks = offset / BLOCK..offset / BLOCK + len as u64 / BLOCK;
            if media.faults.read_errors.range(blocks).next().is_some() {
                return Err(failed(Operation::Read, offset, len as u64));
            }
            Ok(media.read(offset, len))
        })
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        let turn = self.turn(data.iter().map(|piece| piece.len() as u64).sum());
        match self.begin_write(offset, data) {
            Err(error) => Pending::ready(Err(error)),
            Ok(number) => {
                let latency = self.media.0.borrow().options.write_latency;
                self.after(Operation::Write, latency + turn, move |media| {
                    if let Some(write) = media.unflushed.iter_mut().find(|write| Some(write.number) == number) {
                        write.complete = true;
                    }
                    Ok(())
                })
            }
        }
    }

    fn write_durable(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        let turn = self.turn(data.iter().map(|piece| piece.len() as u64).sum());
        match self.begin_write(offset, data) {
            Err(error) => Pending::ready(Err(error)),
            Ok(number) => {
                let options = self.media.0.borrow().options;
                self.after(Operation::Write, options.write_latency + options.flush_latency + turn, move |media| {
                    media.counters.durable_writes += 1;
                    media.make_durable(|write| Some(write.number) == number);
                    Ok(())
                })
            }
        }
    }

    fn flush(&self) -> Pending<Result<(), DriveError>> {
        if let Err(error) = self.alive() {
            return Pending::ready(Err(error));
        }
        let mut media = self.media.0.borrow_mut();
        if media.faults.flushes_failing > 0 {
            media.faults.flushes_failing -= 1;
            return Pending::ready(Err(failed(Operation::Flush, 0, 0)));
        }
        // Only what is complete now is covered; writes that complete during the flush aren't.
        let covered: BTreeSet<u64> =
            media.unflushed.iter().filter(|write| write.complete).map(|write| write.number).collect();
        let latency = media.options.flush_latency;
        drop(media);
        self.after(Operation::Flush, latency, move |media| {
            media.counters.flushes += 1;
            media.make_durable(|write| covered.contains(&write.number));
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Pending<Result<(), DriveError>> {
        if let Err(error) = self.alive().and_then(|()| check_range(self.capacity_bytes(), offset, len)) {
            return Pending::ready(Err(error));
        }
        let mut media = self.media.0.borrow_mut();
        if media.faults.fails {
            return Pending::ready(Err(failed(Operation::Discard, offset, len)));
        }
        let blocks = offset / BLOCK..(offset + len) / BLOCK;
        let held: Vec<u64> = media.current.range(blocks.clone()).map(|(block, _)| *block).collect();
        for block in held {
            media.current.remove(&block);
            media.durable.remove(&block);
        }
        // Like the content itself, pending writes to it don't matter any more.
        media.unflushed.retain(|write| {
            let end = write.block + write.data.len() as u64;
            end <= blocks.start || write.block >= blocks.end
        });
        Pending::ready(Ok(()))
    }
}
