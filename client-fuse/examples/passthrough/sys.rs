//! System calls that have no safe wrapper, or need one of another shape.

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use weft_fuse::{Attr, DirEntry, Full, Result, SetTime, kind_of_mode};
use weft_wire::fs::FileKind;

pub fn name_of(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// A path to what a descriptor stands for, also for calls that refuse O_PATH.
pub fn proc_path(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Attributes, and (device, inode).
pub fn stat(fd: &impl AsFd) -> Result<(Attr, (u64, u64))> {
    let stat = nix::sys::stat::fstatat(fd, c"", AtFlags::AT_EMPTY_PATH)?;
    let time = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
    let attr = Attr {
        inode: stat.st_ino,
        kind: kind_of_mode(stat.st_mode).ok_or(Errno::EIO)?,
        mode: (stat.st_mode & 0o7777) as u16,
        links: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: encode_device(stat.st_rdev),
        size_bytes: stat.st_size.cast_unsigned(),
        blocks_512: stat.st_blocks.cast_unsigned(),
        atime_ns: time(stat.st_atime, stat.st_atime_nsec),
        mtime_ns: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: time(stat.st_ctime, stat.st_ctime_nsec),
        btime_ns: None,
        io_bytes: stat.st_blksize as u32,
    };
    Ok((attr, (stat.st_dev, stat.st_ino)))
}

/// To the kernel's 32-bit encoding.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

pub fn decode_device(device: u32) -> u64 {
    libc::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}

pub fn kill_setid(fd: &OwnedFd) -> Result<()> {
    let mode = nix::sys::stat::fstatat(fd, c"", AtFlags::AT_EMPTY_PATH)?.st_mode & 0o7777;
    let group = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
    let killed = mode & !(libc::S_ISUID | group);
    if killed == mode {
        return Ok(());
    }
    let mode = Mode::from_bits_truncate(killed);
    nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, proc_path(fd).as_str(), mode, FchmodatFlags::FollowSymlink)
}

pub fn set_times(fd: &OwnedFd, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    let spec = |time| match time {
        None => TimeSpec::UTIME_OMIT,
        Some(SetTime::Now) => TimeSpec::UTIME_NOW,
        Some(SetTime::At(ns)) => TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000)),
    };
    let path = proc_path(fd);
    let (atime, mtime) = (spec(atime), spec(mtime));
    let at = nix::fcntl::AT_FDCWD;
    nix::sys::stat::utimensat(at, path.as_str(), &atime, &mtime, UtimensatFlags::FollowSymlink)
}

/// Goes through a directory from `cookie` on until `push` has no room.
pub fn list(
    directory: &OwnedFd,
    cookie: u64,
    mut push: impl FnMut(&DirEntry<'_>) -> std::result::Result<(), Full>,
) -> Result<()> {
    const NAME: usize = std::mem::offset_of!(libc::dirent64, d_name);
    nix::unistd::lseek(directory, cookie.cast_signed(), nix::unistd::Whence::SeekSet)?;
    let mut buffer = [0_u64; 4096];
    loop {
        let len = size_of_val(&buffer);
        // SAFETY: the buffer is as long as said, and aligned for the entries that the kernel lays into it.
        let filled = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), buffer.as_mut_ptr(), len) };
        let filled = usize::try_from(Errno::result(filled)?).map_err(|_| Errno::EIO)?;
        if filled == 0 {
            return Ok(());
        }
        // SAFETY: the kernel has filled that many bytes, and any bytes are valid u8.
        let mut rest = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), filled) };
        while rest.len() > NAME {
            let word = |start: usize| rest[start..start + 8].try_into().map(u64::from_ne_bytes).unwrap_or(0);
            let record = usize::from(u16::from_ne_bytes([rest[16], rest[17]])).clamp(NAME, rest.len());
            let kind = kind_of_mode(u32::from(rest[18]) << 12).unwrap_or(FileKind::File);
            let name = CStr::from_bytes_until_nul(&rest[NAME..record]).map_err(|_| Errno::EIO)?.to_bytes();
            let entry = DirEntry { inode: word(0), kind, cookie: word(8), name };
            if push(&entry).is_err() {
                return Ok(());
            }
            rest = &rest[record..];
        }
    }
}

fn c_strings(fd: &OwnedFd, name: &[u8]) -> Result<(CString, CString)> {
    let string = |bytes: Vec<u8>| CString::new(bytes).map_err(|_| Errno::EINVAL);
    Ok((string(proc_path(fd).into_bytes())?, string(name.to_vec())?))
}

pub fn set_xattr(fd: &OwnedFd, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
    let (path, name) = c_strings(fd, name)?;
    // SAFETY: the strings end in zero bytes; the value is as long as said.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(result).map(drop)
}

pub fn get_xattr(fd: &OwnedFd, name: &[u8]) -> Result<Bytes> {
    let (path, name) = c_strings(fd, name)?;
    let mut value = vec![0_u8; 64 << 10];
    // SAFETY: the strings end in zero bytes; the buffer is as long as said, which is the longest value there is.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(Errno::result(len)?).map_err(|_| Errno::EIO)?);
    Ok(value.into())
}

pub fn list_xattrs(fd: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let (path, _) = c_strings(fd, b"")?;
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: the path ends in a zero byte; the buffer is as long as said.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(Errno::result(len)?).map_err(|_| Errno::EIO)?);
    Ok(names.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

pub fn remove_xattr(fd: &OwnedFd, name: &[u8]) -> Result<()> {
    let (path, name) = c_strings(fd, name)?;
    // SAFETY: the strings end in zero bytes.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}
