//! Block devices and files through io_uring, past the page cache.
//!
//! A drive belongs to one process: it is locked while the file is open, and the kernel lets the lock go only after
//! the last operation of a dead process has ended. Operations are queued when they are called and submitted
//! together when the core polls.

mod queue;

use crate::device::{Drive, DriveError, Operation, check_pieces, check_range};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use queue::{Job, Queue};
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use weft_reactor::sync::{Pending, completion};
use weft_reactor::{AlignedBuf, Instant, Poller};
use weft_wire::limits::BLOCK_BYTES;

/// Pieces of one write: what the kernel takes.
const PIECES_MAX: usize = 1024;

/// Why a drive can't be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("drive {path}: {source}; expected a block device or a file made for this")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("drive {path} is read-only or this user may not write to it: {source}")]
    ReadOnly { path: PathBuf, source: std::io::Error },
    #[error("drive {path} is in use by another process; stop it first")]
    InUse { path: PathBuf },
    #[error("drive {path} is neither a block device nor a file")]
    NotADrive { path: PathBuf },
    #[error("drive {path}: its filesystem doesn't support O_DIRECT; put the file on ext4, xfs or another that does")]
    NoDirectIo { path: PathBuf },
    #[error("drive {path} can't be created with {size_bytes} bytes: {source}")]
    Create { path: PathBuf, size_bytes: u64, source: std::io::Error },
    #[error("io_uring isn't available ({0}); check /proc/sys/kernel/io_uring_disabled and the memlock limit")]
    Uring(std::io::Error),
}

/// An open, locked drive. Its [`poller`](Self::poller) must be added to the core.
pub struct UringDrive {
    queue: Rc<RefCell<Queue>>,
    capacity_bytes: u64,
}

impl UringDrive {
    /// Makes a sparse file. It must not exist yet.
    pub fn create(path: &Path, size_bytes: u64) -> Result<(), ClaimError> {
        let failed = |source| ClaimError::Create { path: path.into(), size_bytes, source };
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        file.set_len(size_bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        if let Some(parent) = path.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    /// Claims a block device or a file for this process alone.
    pub fn open(path: &Path) -> Result<Rc<Self>, ClaimError> {
        let file = open_direct(path)?;
        let is_block_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => ClaimError::InUse { path: path.into() },
            errno => ClaimError::Open { path: path.into(), source: errno.into() },
        })?;
        let size = file.seek(SeekFrom::End(0)).map_err(|source| ClaimError::Open { path: path.into(), source })?;
        let capacity_bytes = size / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let queue = Queue::new(file, is_block_device).map_err(ClaimError::Uring)?;
        Ok(Rc::new(Self { queue: Rc::new(RefCell::new(queue)), capacity_bytes }))
    }

    /// Submits what was queued and completes what is done.
    pub fn poller(&self) -> Box<dyn Poller> {
        Box::new(UringPoller { queue: Rc::downgrade(&self.queue), wait_fd: self.queue.borrow().wait_fd() })
    }

    fn start<T>(&self, make: impl FnOnce(queue::Done<T>) -> Job) -> Pending<Result<T, DriveError>> {
        let (done, pending) = completion();
        self.queue.borrow_mut().push(make(done));
        pending
    }

    fn start_write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> Pending<Result<(), DriveError>> {
        match check_pieces(self.capacity_bytes, offset, &data) {
            Err(error) => Pending::ready(Err(error)),
            Ok(len) if data.len() > PIECES_MAX => Pending::ready(Err(DriveError::Bounds { offset, len })),
            Ok(_) => self.start(|done| Job::write(offset, data, durable, done)),
        }
    }
}

fn open_direct(path: &Path) -> Result<File, ClaimError> {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let meta = std::fs::metadata(path).map_err(|source| ClaimError::Open { path: path.into(), source })?;
    let is_block_device = meta.file_type().is_block_device();
    if !is_block_device && !meta.is_file() {
        return Err(ClaimError::NotADrive { path: path.into() });
    }
    // For a block device O_EXCL keeps out mounted filesystems and others who claim it.
    let flags = libc::O_DIRECT | libc::O_CLOEXEC | if is_block_device { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    opened.map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => ClaimError::NoDirectIo { path: path.into() },
        Some(libc::EBUSY) => ClaimError::InUse { path: path.into() },
        Some(libc::EROFS | libc::EACCES | libc::EPERM) => ClaimError::ReadOnly { path: path.into(), source },
        _ => ClaimError::Open { path: path.into(), source },
    })
}

impl Drive for UringDrive {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn is_sparse(&self) -> bool {
        !self.queue.borrow().is_block_device()
    }

    fn read(&self, offset: u64, len: usize) -> Pending<Result<Bytes, DriveError>> {
        match check_range(self.capacity_bytes, offset, len as u64) {
            Err(error) => Pending::ready(Err(error)),
            Ok(()) => self.start(|done| Job::Read { offset, buffer: AlignedBuf::unfilled(len), filled: 0, done }),
        }
    }

    fn write(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        self.start_write(offset, data, false)
    }

    fn write_durable(&self, offset: u64, data: Vec<Bytes>) -> Pending<Result<(), DriveError>> {
        self.start_write(offset, data, true)
    }

    fn flush(&self) -> Pending<Result<(), DriveError>> {
        self.start(|done| Job::Flush { done })
    }

    fn discard(&self, offset: u64, len: u64) -> Pending<Result<(), DriveError>> {
        match check_range(self.capacity_bytes, offset, len) {
            Err(error) => Pending::ready(Err(error)),
            Ok(()) => self.start(|done| Job::Discard { offset, len, done }),
        }
    }
}

/// Lets go of the drive with its last user; the lock must not outlive it.
struct UringPoller {
    queue: Weak<RefCell<Queue>>,
    wait_fd: RawFd,
}

impl Poller for UringPoller {
    fn poll(&mut self, _now: Instant) -> usize {
        self.queue.upgrade().map_or(0, |queue| queue.borrow_mut().poll())
    }

    fn wait_fd(&self) -> Option<RawFd> {
        Some(self.wait_fd)
    }

    fn before_sleep(&mut self) -> Option<Instant> {
        // What completed before the wake-up was armed must not wait for the next completion.
        self.queue.upgrade()?.borrow_mut().arm().then_some(Instant::ZERO)
    }
}

/// The error of an operation that the kernel refused with this number.
fn failed(operation: Operation, offset: u64, len: u64, errno: i32) -> DriveError {
    let reason = match errno {
        libc::ENOSPC | libc::EDQUOT => format!(
            "{}: the filesystem that holds the drive's file is full; free space there",
            std::io::Error::from_raw_os_error(errno)
        ),
        _ => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    DriveError::Failed { operation, offset, len, reason }
}
