//! One descriptor of `/dev/fuse`: messages of the kernel in, answers out.
#![allow(unsafe_code, reason = "the ioctl that clones a channel has no safe wrapper")]

use crate::abi;
use crate::answer::Answer;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::uio::writev;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use zerocopy::IntoBytes;

/// Answers go to the channel that the request came from, whichever thread writes them.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: OwnedFd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes.
    Message(usize),
    Empty,
    Closed(Closed),
}

/// Why no message will come any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The mount is gone.
    Unmounted,
    /// The connection was cut (`umount -f`, the kernel's control filesystem); the mount may still be there.
    Aborted,
}

nix::ioctl_read!(dev_clone, abi::DEV_IOC_MAGIC, abi::DEV_IOC_CLONE, u32);

impl Channel {
    pub const DEVICE: &str = "/dev/fuse";

    /// Parts of one answer: below the kernel's 1024 with room for header and fixed part.
    const DATA_PARTS_MAX: usize = 1000;
    /// Answers with so few parts need no allocation.
    const PARTS_INLINE: usize = 8;

    pub fn open() -> Result<Self, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = nix::fcntl::open(Path::new(Self::DEVICE), flags, Mode::empty())?;
        Ok(Self { fd })
    }

    /// One more channel of the same mount. The kernel keeps a queue of answers due for each.
    pub fn clone_of(other: &Self) -> Result<Self, Errno> {
        let channel = Self::open()?;
        let mut other_fd = other.fd.as_raw_fd().cast_unsigned();
        // SAFETY: the kernel only reads the u32 behind the pointer, which lives until the call returns, and checks that
        // it names a descriptor of /dev/fuse.
        unsafe { dev_clone(channel.fd.as_raw_fd(), &raw mut other_fd) }?;
        Ok(channel)
    }

    /// Reads one message if there is one. A buffer that is too small for the negotiated writes is an error.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Received, Errno> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Ok(len) => return Ok(Received::Message(len)),
                Err(Errno::EAGAIN) => return Ok(Received::Empty),
                // ENOENT: the request was taken back while it was read.
                Err(Errno::EINTR | Errno::ENOENT) => {}
                Err(Errno::ENODEV) => return Ok(Received::Closed(Closed::Unmounted)),
                Err(Errno::ECONNABORTED) => return Ok(Received::Closed(Closed::Aborted)),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Answers a request. That nobody waits for the answer any more is no error: there is nothing to be done.
    pub fn send(&self, unique: u64, result: Result<Answer, Errno>) {
        let sent = match &result {
            Ok(answer) => self.send_answer(unique, answer),
            Err(errno) => self.send_error(unique, *errno),
        };
        match sent {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV | Errno::ECONNABORTED) => {}
            Err(errno) => {
                // The kernel refused the answer's form. Without another one the caller would wait for ever.
                tracing::error!(unique, %errno, "the kernel refused an answer; the application gets EIO");
                let _ = self.send_error(unique, Errno::EIO);
            }
        }
    }

    fn send_error(&self, unique: u64, errno: Errno) -> Result<(), Errno> {
        /// What the kernel takes for an error.
        const ERRNOS: std::ops::Range<i32> = 1..512;
        let errno = if ERRNOS.contains(&(errno as i32)) { errno as i32 } else { libc::EIO };
        let len = size_of::<abi::OutHeader>() as u32;
        let header = abi::OutHeader { len, error: -errno, unique };
        self.write(&[IoSlice::new(header.as_bytes())])
    }

    fn send_answer(&self, unique: u64, answer: &Answer) -> Result<(), Errno> {
        let fixed = answer.fixed();
        let data = answer.data();
        let data_len: usize = data.iter().map(|part| part.len()).sum();
        let len = size_of::<abi::OutHeader>() + fixed.len() + data_len;
        let len = u32::try_from(len).map_err(|_| Errno::EINVAL)?;
        let header = abi::OutHeader { len, error: 0, unique };

        let ends = [IoSlice::new(header.as_bytes()), IoSlice::new(fixed)];
        if data.len() + ends.len() <= Self::PARTS_INLINE {
            let mut parts = [IoSlice::new(&[]); Self::PARTS_INLINE];
            parts[..ends.len()].copy_from_slice(&ends);
            for (part, bytes) in parts[ends.len()..].iter_mut().zip(data) {
                *part = IoSlice::new(bytes);
            }
            self.write(&parts[..ends.len() + data.len()])
        } else if data.len() <= Self::DATA_PARTS_MAX {
            let parts: Vec<_> = ends.into_iter().chain(data.iter().map(|bytes| IoSlice::new(bytes))).collect();
            self.write(&parts)
        } else {
            let joined = data.concat();
            self.write(&[ends[0], ends[1], IoSlice::new(&joined)])
        }
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        loop {
            match writev(&self.fd, parts) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
