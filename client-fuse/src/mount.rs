//! Mounting, remounting and unmounting by the system calls themselves, as root.
#![allow(unsafe_code, reason = "statx has no safe wrapper")]

use crate::channel::Channel;
use crate::handshake::IO_PAGES_MAX;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a mount shows as its type (`findmnt -t fuse.weft`).
pub const FILESYSTEM_TYPE: &str = "fuse.weft";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    #[error("mounting on {mountpoint} needs root; run it with sudo, or put it into /etc/fstab")]
    NotRoot { mountpoint: PathBuf },
    #[error("cannot open {}: {errno}; is the kernel's fuse module loaded (modprobe fuse)?", Channel::DEVICE)]
    Device { errno: Errno },
    #[error("mount point {mountpoint}: {errno}; an existing directory was expected")]
    Mountpoint { mountpoint: PathBuf, errno: Errno },
    #[error("cannot mount on {mountpoint}: {errno}")]
    Refused { mountpoint: PathBuf, errno: Errno },
    #[error("the kernel said nothing after mounting on {mountpoint}")]
    Silent { mountpoint: PathBuf },
    #[error("this kernel speaks FUSE {major}.{minor}; 7.{} or newer was expected (Linux 5.17)", crate::abi::MINOR_MIN)]
    KernelTooOld { major: u32, minor: u32 },
    #[error("the kernel's first message on {mountpoint} made no sense: {errno}")]
    Handshake { mountpoint: PathBuf, errno: Errno },
}

/// Where the kernel says how many pages a message of any FUSE filesystem may at most have (Linux 6.13 and newer).
const PAGES_LIMIT: &str = "/proc/sys/fs/fuse/max_pages_limit";

/// Raises the kernel's limit for all that mount from now on to what we ask for: each asks for its own, so it changes nothing
/// for others. Where that can't be, a large transfer from a buffer that doesn't begin with a page takes two messages.
pub(crate) fn raise_pages_limit() {
    let limit = std::fs::read_to_string(PAGES_LIMIT).ok().and_then(|text| text.trim().parse::<u16>().ok());
    if limit.is_some_and(|limit| limit < IO_PAGES_MAX) {
        let _ = std::fs::write(PAGES_LIMIT, IO_PAGES_MAX.to_string());
    }
}

/// Mounts a channel on a directory. The kernel checks permissions, for all users alike.
pub(crate) fn mount(
    channel: &Channel,
    source: &str,
    mountpoint: &Path,
    flags: MsFlags,
    read_bytes_max: u32,
) -> Result<(), MountError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(MountError::NotRoot { mountpoint: mountpoint.to_owned() });
    }
    let refuse = |errno| MountError::Mountpoint { mountpoint: mountpoint.to_owned(), errno };
    match nix::sys::stat::stat(mountpoint) {
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {}
        Ok(_) => return Err(refuse(Errno::ENOTDIR)),
        Err(errno) => return Err(refuse(errno)),
    }
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={read_bytes_max}",
        channel.as_fd().as_raw_fd()
    );
    nix::mount::mount(Some(source), mountpoint, Some(FILESYSTEM_TYPE), flags, Some(data.as_str()))
        .map_err(|errno| MountError::Refused { mountpoint: mountpoint.to_owned(), errno })
}

/// Changes the flags of an existing mount (`-o remount,ro`).
pub fn remount(mountpoint: &Path, flags: MsFlags) -> Result<(), MountError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(MountError::NotRoot { mountpoint: mountpoint.to_owned() });
    }
    nix::mount::mount(None::<&str>, mountpoint, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>)
        .map_err(|errno| MountError::Refused { mountpoint: mountpoint.to_owned(), errno })
}

/// Takes the mount out of the tree at once; what is open in it stays usable until it is closed, or the session ends.
pub fn unmount_lazily(mountpoint: &Path) -> Result<(), Errno> {
    nix::mount::umount2(mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
}

/// The kernel's number for one mount, never given to another (Linux 6.8; before, there is none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MountId(u64);

impl MountId {
    /// Of what is mounted there now. Asks the kernel alone, not the filesystem.
    pub fn at(mountpoint: &Path) -> Option<Self> {
        /// `STATX_MNT_ID_UNIQUE`
        const MASK: u32 = 0x4000;
        let path = CString::new(mountpoint.as_os_str().as_bytes()).ok()?;
        let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
        let flags = libc::AT_STATX_DONT_SYNC | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
        // SAFETY: the path ends in a zero byte and `stat` has room for the answer; both outlive the call.
        let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, MASK, stat.as_mut_ptr()) };
        // SAFETY: all-zero is a valid statx, and the kernel writes whole ones.
        let stat = unsafe { stat.assume_init() };
        (result == 0 && stat.stx_mask & MASK != 0).then_some(Self(stat.stx_mnt_id))
    }
}
