//! The ring shared with the kernel, and the operations that are on their way.
#![allow(unsafe_code, reason = "the kernel reads and writes memory behind raw pointers")]

use super::failed;
use crate::device::{DriveError, Operation};
use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use nix::fcntl::Flock;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use weft_reactor::AlignedBuf;
use weft_reactor::sync::Completer;
use weft_wire::limits::BLOCK_BYTES;

/// Operations that the kernel has at once; more wait here.
const IN_FLIGHT_MAX: usize = 256;
/// Operations that wait; more are refused. Callers bound themselves far below.
const WAITING_MAX: usize = 1 << 16;
/// One read or write of the kernel's is never longer.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

pub type Done<T> = Completer<Result<T, DriveError>>;

/// An operation with everything that the kernel touches while it runs.
pub enum Job {
    Read { offset: u64, buffer: AlignedBuf, filled: usize, done: Done<Bytes> },
    Write(WriteJob),
    Flush { done: Done<()> },
    Discard { offset: u64, len: u64, done: Done<()> },
}

pub struct WriteJob {
    offset: u64,
    /// What isn't written yet. Never changed while the kernel has it.
    data: VecDeque<Bytes>,
    vectors: Vec<libc::iovec>,
    durable: bool,
    done: Done<()>,
}

impl Job {
    pub fn write(offset: u64, data: Vec<Bytes>, durable: bool, done: Done<()>) -> Self {
        Self::Write(WriteJob { offset, data: data.into(), vectors: Vec::new(), durable, done })
    }

    fn fail(self, error: DriveError) {
        match self {
            Self::Read { done, .. } => done.complete(Err(error)),
            Self::Write(WriteJob { done, .. }) | Self::Flush { done } | Self::Discard { done, .. } => {
                done.complete(Err(error));
            }
        }
    }

    fn error(&self, errno: i32) -> DriveError {
        match self {
            Self::Read { offset, buffer, .. } => failed(Operation::Read, *offset, buffer.len() as u64, errno),
            Self::Write(write) => failed(Operation::Write, write.offset, write.left_bytes(), errno),
            Self::Flush { .. } => failed(Operation::Flush, 0, 0, errno),
            Self::Discard { offset, len, .. } => failed(Operation::Discard, *offset, *len, errno),
        }
    }
}

impl WriteJob {
    fn left_bytes(&self) -> u64 {
        self.data.iter().map(|piece| piece.len() as u64).sum()
    }

    /// Takes off what a short write has done. `false` if it didn't end on a block.
    fn advance(&mut self, mut written: usize) -> bool {
        if written == 0 || !written.is_multiple_of(BLOCK_BYTES) {
            return false;
        }
        self.offset += written as u64;
        while let Some(first) = self.data.front_mut() {
            if written < first.len() {
                *first = first.slice(written..);
                break;
            }
            written -= first.len();
            self.data.pop_front();
        }
        true
    }
}

pub struct Queue {
    ring: IoUring,
    file: Flock<File>,
    is_block_device: bool,
    /// By the number that the kernel returns. A job stays where it is, and its memory with it, until it is returned.
    in_flight: Vec<Option<Box<Job>>>,
    free: Vec<usize>,
    waiting: VecDeque<Box<Job>>,
}

impl Queue {
    pub fn new(file: Flock<File>, is_block_device: bool) -> io::Result<Self> {
        let ring = IoUring::builder().setup_clamp().build(IN_FLIGHT_MAX as u32)?;
        Ok(Self {
            ring,
            file,
            is_block_device,
            in_flight: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
            free: (0..IN_FLIGHT_MAX).rev().collect(),
            waiting: VecDeque::new(),
        })
    }

    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Readable while there are completions.
    pub fn wait_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    pub fn push(&mut self, job: Job) {
        if self.waiting.len() >= WAITING_MAX {
            let error = job.error(libc::EAGAIN);
            job.fail(error);
            return;
        }
        self.waiting.push_back(Box::new(job));
        self.fill();
    }

    /// Submits and completes. Returns how many operations ended.
    pub fn poll(&mut self) -> usize {
        self.fill();
        self.submit();
        let ended = self.reap();
        if ended > 0 {
            self.fill();
            self.submit();
        }
        ended
    }

    /// Before the core sleeps. `true` if there is something to do already.
    pub fn arm(&mut self) -> bool {
        self.fill();
        self.submit();
        self.ring.completion().sync();
        !self.ring.completion().is_empty() || !self.ring.submission().is_empty()
    }

    fn submit(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        if let Err(error) = self.ring.submit()
            && !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN | libc::EINTR))
        {
            tracing::error!(%error, "io_uring refuses operations");
        }
    }

    /// Gives waiting operations to the kernel as long as there is room.
    fn fill(&mut self) {
        while !self.waiting.is_empty() && !self.ring.submission().is_full() {
            let Some(slot) = self.free.pop() else { return };
            let Some(mut job) = self.waiting.pop_front() else { return };
            let entry = self.entry(&mut job).user_data(slot as u64);
            self.in_flight[slot] = Some(job);
            // SAFETY: the memory that the entry points to belongs to the boxed job, which stays untouched in
            // `in_flight` until the kernel has returned this slot's number; dropping the queue waits for that.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            assert!(pushed.is_ok(), "the submission queue had room");
        }
    }

    fn entry(&self, job: &mut Job) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        match job {
            Job::Read { offset, buffer, filled, .. } => {
                let rest = &mut buffer.as_mut_slice()[*filled..];
                let len = rest.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), len).offset(*offset + *filled as u64).build()
            }
            Job::Write(write) => {
                let vector = |piece: &Bytes| libc::iovec { iov_base: piece.as_ptr() as *mut _, iov_len: piece.len() };
                write.vectors = write.data.iter().map(vector).collect();
                let flags = if write.durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, write.vectors.as_ptr(), write.vectors.len() as u32)
                    .offset(write.offset)
                    .rw_flags(flags)
                    .build()
            }
            Job::Flush { .. } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            // Only files: what a discarded block device returns and how long it takes differ too much.
            Job::Discard { .. } if self.is_block_device => opcode::Nop::new().build(),
            Job::Discard { offset, len, .. } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(mode).build()
            }
        }
    }

    fn reap(&mut self) -> usize {
        let mut ended = 0;
        loop {
            self.ring.completion().sync();
            let Some(entry) = self.ring.completion().next() else { return ended };
            let slot = entry.user_data() as usize;
            let Some(job) = self.in_flight.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            ended += 1;
            if let Some(rest) = finish(*job, entry.result()) {
                self.waiting.push_front(Box::new(rest));
            }
        }
    }

    fn busy(&self) -> bool {
        self.in_flight.iter().any(Option::is_some)
    }
}

/// Completes a job, or returns what is left of it.
fn finish(job: Job, result: i32) -> Option<Job> {
    if result == -libc::EAGAIN || result == -libc::EINTR {
        return Some(job);
    }
    if result < 0 {
        let error = job.error(-result);
        job.fail(error);
        return None;
    }
    let moved = result as usize;
    match job {
        Job::Read { offset, buffer, filled, done } => {
            let filled = filled + moved;
            if filled < buffer.len() && moved > 0 && filled.is_multiple_of(BLOCK_BYTES) {
                return Some(Job::Read { offset, buffer, filled, done });
            }
            if filled < buffer.len() {
                let len = buffer.len() as u64;
                let reason = format!("only {filled} bytes are there: the drive was truncated");
                done.complete(Err(DriveError::Failed { operation: Operation::Read, offset, len, reason }));
            } else {
                done.complete(Ok(buffer.freeze()));
            }
        }
        Job::Write(mut write) => {
            if !write.advance(moved) {
                let error = failed(Operation::Write, write.offset, write.left_bytes(), libc::EIO);
                write.done.complete(Err(error));
            } else if write.data.is_empty() {
                write.done.complete(Ok(()));
            } else {
                return Some(Job::Write(write));
            }
        }
        Job::Flush { done } | Job::Discard { done, .. } => done.complete(Ok(())),
    }
    None
}

impl Drop for Queue {
    /// Waits for the kernel to return all memory.
    fn drop(&mut self) {
        self.waiting.clear();
        while self.busy() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => drop(self.reap()),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "io_uring doesn't return operations; their memory is given up");
                    std::mem::forget(std::mem::take(&mut self.in_flight));
                    return;
                }
            }
            self.waiting.clear();
        }
    }
}
