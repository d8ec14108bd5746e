//! INIT: what the kernel and we agree on at the start of a mount.

use crate::abi::{self, init};
use crate::mount::MountError;

/// Of one write or read.
pub(crate) const IO_BYTES_MAX: u32 = 1 << 20;
/// A program's buffer seldom begins with a page: then a transfer of full length touches one page more, and would be two.
pub(crate) const IO_PAGES_MAX: u16 = (IO_BYTES_MAX / 4096) as u16 + 1;

/// Requests for which nobody waits (read-ahead, asynchronous direct I/O, releases) that the kernel has under way at once.
const BACKGROUND_MAX: u16 = 256;
const BACKGROUND_CONGESTED: u16 = 192;

/// Not among them, on purpose: the write-back cache (an acknowledged write must survive us), export support, cached
/// symlinks and directories (nothing may be cached without a lease).
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::ABORT_ERROR
    | init::MAX_PAGES
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP;

/// Without these the message layouts or the rules for set-id bits would be others.
const NEEDED: u64 = init::BIG_WRITES | init::MAX_PAGES | init::SETXATTR_EXT | init::INIT_EXT | init::HANDLE_KILLPRIV_V2;

/// Whether the kernel may ask for attributes along with directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaddirPlus {
    /// Best while entries and attributes are not to be cached.
    Off,
    /// At the start of a directory, and while the application looks at what it lists.
    Auto,
}

/// Who keeps the locks of files (POSIX, OFD, flock).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// The kernel, for this mount alone.
    Kernel,
    /// The filesystem: [`getlk`](crate::Filesystem::getlk) and [`setlk`](crate::Filesystem::setlk).
    Filesystem,
}

pub(crate) fn negotiate(
    offer: &abi::InitIn,
    readdirplus: ReaddirPlus,
    locks: Locks,
) -> Result<abi::InitOut, MountError> {
    let offered = u64::from(offer.flags) | u64::from(offer.flags2) << 32;
    if offer.major != abi::MAJOR || offer.minor < abi::MINOR_MIN || offered & NEEDED != NEEDED {
        return Err(MountError::KernelTooOld { major: offer.major, minor: offer.minor });
    }
    let readdirplus = match readdirplus {
        ReaddirPlus::Off => 0,
        ReaddirPlus::Auto => init::DO_READDIRPLUS | init::READDIRPLUS_AUTO,
    };
    let locks = match locks {
        Locks::Kernel => 0,
        Locks::Filesystem => init::POSIX_LOCKS | init::FLOCK_LOCKS,
    };
    let flags = offered & (WANTED | readdirplus | locks);
    Ok(abi::InitOut {
        major: abi::MAJOR,
        minor: offer.minor.min(abi::MINOR),
        max_readahead: offer.max_readahead.min(IO_BYTES_MAX),
        flags: flags as u32,
        max_background: BACKGROUND_MAX,
        congestion_threshold: BACKGROUND_CONGESTED,
        max_write: IO_BYTES_MAX,
        time_gran: 1,
        max_pages: IO_PAGES_MAX,
        flags2: (flags >> 32) as u32,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(minor: u32, flags: u64) -> abi::InitIn {
        abi::InitIn {
            major: 7,
            minor,
            max_readahead: 1 << 30,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..Default::default()
        }
    }

    #[test]
    fn only_what_is_offered_is_taken() -> Result<(), MountError> {
        let out = negotiate(&offer(38, NEEDED | init::DO_READDIRPLUS | 1 << 50), ReaddirPlus::Off, Locks::Kernel)?;
        assert_eq!(u64::from(out.flags), NEEDED);
        assert_eq!((out.minor, out.flags2, out.max_pages, out.max_readahead), (38, 0, 257, 1 << 20));
        let out = negotiate(&offer(60, u64::MAX), ReaddirPlus::Auto, Locks::Filesystem)?;
        assert_eq!(out.minor, abi::MINOR);
        assert_ne!(u64::from(out.flags) & init::DO_READDIRPLUS, 0);
        assert_eq!(out.flags2, (init::DIRECT_IO_ALLOW_MMAP >> 32) as u32);
        Ok(())
    }

    #[test]
    fn an_old_kernel_is_refused_by_its_version() {
        let error = negotiate(&offer(31, u64::MAX), ReaddirPlus::Off, Locks::Kernel).err();
        assert_eq!(error, Some(MountError::KernelTooOld { major: 7, minor: 31 }));
        assert!(negotiate(&offer(40, NEEDED & !init::MAX_PAGES), ReaddirPlus::Off, Locks::Kernel).is_err());
    }
}
