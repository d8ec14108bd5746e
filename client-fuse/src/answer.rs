//! From a result to the kernel's message: a small fixed part, then data by reference.

use crate::abi::{self, fopen};
use crate::filesystem::*;
use crate::request::split_time;
use bytes::Bytes;
use nix::errno::Errno;
use std::time::Duration;
use weft_wire::fs::FileKind;
use zerocopy::{Immutable, IntoBytes};

/// What follows the header of a successful answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    fixed: Fixed,
    data: Vec<Bytes>,
}

/// The largest is [`abi::StatxOut`]; on the stack, for answers are many.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fixed {
    bytes: [u8; Self::BYTES_MAX],
    len: usize,
}

impl Fixed {
    const BYTES_MAX: usize = size_of::<abi::StatxOut>();
}

impl Default for Fixed {
    fn default() -> Self {
        Self { bytes: [0; Self::BYTES_MAX], len: 0 }
    }
}

impl Answer {
    pub fn empty() -> Self {
        Self::default()
    }

    pub fn fixed(&self) -> &[u8] {
        &self.fixed.bytes[..self.fixed.len]
    }

    pub fn data(&self) -> &[Bytes] {
        &self.data
    }

    pub fn entry(entry: &Entry) -> Self {
        Self::default().with(&entry_out(entry))
    }

    pub fn attributes(attributes: &Attributes) -> Self {
        let (attr_valid, attr_valid_nsec) = split_duration(attributes.valid);
        Self::default().with(&abi::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr_out(&attributes.attr) })
    }

    pub fn statx(attributes: &Attributes) -> Self {
        let (attr_valid, attr_valid_nsec) = split_duration(attributes.valid);
        let stat = statx(&attributes.attr);
        Self::default().with(&abi::StatxOut { attr_valid, attr_valid_nsec, flags: 0, spare: [0; 2], stat })
    }

    pub fn opened(opened: &Opened) -> Self {
        Self::default().with(&open_out(opened))
    }

    pub fn opened_dir(handle: FileHandle) -> Self {
        Self::default().with(&abi::OpenOut { fh: handle.0, ..Default::default() })
    }

    pub fn created(entry: &Entry, opened: &Opened) -> Self {
        Self::default().with(&entry_out(entry)).with(&open_out(opened))
    }

    pub fn data_parts(data: Vec<Bytes>) -> Self {
        Self { data, ..Self::default() }
    }

    pub fn bytes(data: impl Into<Bytes>) -> Self {
        Self::data_parts(vec![data.into()])
    }

    pub fn written(size: u32) -> Self {
        Self::default().with(&abi::WriteOut { size, padding: 0 })
    }

    pub fn offset(offset: u64) -> Self {
        Self::default().with(&abi::LseekOut { offset })
    }

    /// A list of names or a value, for a caller with so much room; 0 asks for the size alone.
    pub fn xattr(value: Bytes, room: u32) -> Result<Self, Errno> {
        match u32::try_from(value.len()) {
            Ok(size) if room == 0 => Ok(Self::default().with(&abi::GetxattrOut { size, padding: 0 })),
            Ok(size) if size <= room => Ok(Self::bytes(value)),
            _ => Err(Errno::ERANGE),
        }
    }

    pub fn lock(lock: Option<Lock>) -> Self {
        let lock = lock.unwrap_or(Lock { typ: LockType::Unlock, start: 0, end: 0, pid: 0 });
        let typ = match lock.typ {
            LockType::Read => libc::F_RDLCK,
            LockType::Write => libc::F_WRLCK,
            LockType::Unlock => libc::F_UNLCK,
        };
        let lk = abi::FileLock { start: lock.start, end: lock.end, typ: typ.cast_unsigned(), pid: lock.pid };
        Self::default().with(&abi::LkOut { lk })
    }

    pub fn statfs(stat: &StatFs) -> Self {
        Self::default().with(&abi::KstatFs {
            blocks: stat.blocks,
            bfree: stat.blocks_free,
            bavail: stat.blocks_available,
            files: stat.files,
            ffree: stat.files_free,
            bsize: stat.block_bytes,
            namelen: stat.name_bytes_max,
            frsize: stat.block_bytes,
            ..Default::default()
        })
    }

    pub(crate) fn init(out: &abi::InitOut) -> Self {
        Self::default().with(out)
    }

    fn with(mut self, value: &(impl IntoBytes + Immutable)) -> Self {
        let bytes = value.as_bytes();
        let start = self.fixed.len;
        self.fixed.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.fixed.len += bytes.len();
        self
    }
}

pub(crate) fn entry_out(entry: &Entry) -> abi::EntryOut {
    let (entry_valid, entry_valid_nsec) = split_duration(entry.entry_valid);
    let (attr_valid, attr_valid_nsec) = split_duration(entry.attr_valid);
    abi::EntryOut {
        nodeid: entry.node.0,
        generation: 0,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr_out(&entry.attr),
    }
}

/// `S_IFMT` of a kind.
pub(crate) fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

/// The kind that `S_IFMT` of a mode says; no type bits at all mean a regular file, as for mknod(2).
pub fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

fn open_out(opened: &Opened) -> abi::OpenOut {
    let open_flags = match opened.caching {
        Caching::Direct => fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES,
        Caching::Paged => 0,
        Caching::PagedKeep => fopen::KEEP_CACHE,
    };
    abi::OpenOut { fh: opened.handle.0, open_flags, backing_id: 0 }
}

fn attr_out(attr: &Attr) -> abi::Attr {
    let (atime, atimensec) = split_time(attr.atime_ns);
    let (mtime, mtimensec) = split_time(attr.mtime_ns);
    let (ctime, ctimensec) = split_time(attr.ctime_ns);
    abi::Attr {
        ino: attr.inode,
        size: attr.size_bytes,
        blocks: attr.blocks_512,
        atime: atime.cast_unsigned(),
        mtime: mtime.cast_unsigned(),
        ctime: ctime.cast_unsigned(),
        atimensec,
        mtimensec,
        ctimensec,
        mode: type_bits(attr.kind) | u32::from(attr.mode),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.io_bytes,
        flags: 0,
    }
}

fn statx(attr: &Attr) -> abi::Statx {
    let time = |time_ns| {
        let (tv_sec, tv_nsec) = split_time(time_ns);
        abi::SxTime { tv_sec, tv_nsec, reserved: 0 }
    };
    let btime = if attr.btime_ns.is_some() { libc::STATX_BTIME } else { 0 };
    abi::Statx {
        mask: libc::STATX_BASIC_STATS | btime,
        blksize: attr.io_bytes,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        mode: type_bits(attr.kind) as u16 | attr.mode,
        ino: attr.inode,
        size: attr.size_bytes,
        blocks: attr.blocks_512,
        atime: time(attr.atime_ns),
        btime: attr.btime_ns.map(time).unwrap_or_default(),
        ctime: time(attr.ctime_ns),
        mtime: time(attr.mtime_ns),
        // The kernel's 32-bit encoding: minor bits 0-7, major bits 8-19, minor bits 20-31.
        rdev_major: (attr.rdev >> 8) & 0xfff,
        rdev_minor: (attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xfff00),
        ..Default::default()
    }
}

fn split_duration(duration: Duration) -> (u64, u32) {
    (duration.as_secs(), duration.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_xattr_answers_size_value_or_no_room() {
        let value = Bytes::from_static(b"value");
        assert_eq!(Answer::xattr(value.clone(), 0).map(|answer| answer.fixed()[0]), Ok(5));
        assert_eq!(Answer::xattr(value.clone(), 5).map(|answer| answer.data().to_vec()), Ok(vec![value.clone()]));
        assert_eq!(Answer::xattr(value, 4), Err(Errno::ERANGE));
    }

    #[test]
    fn the_mode_carries_the_type() {
        for kind in [FileKind::File, FileKind::Directory, FileKind::Symlink, FileKind::Fifo, FileKind::Socket] {
            assert_eq!(kind_of_mode(type_bits(kind)), Some(kind));
        }
        assert_eq!(kind_of_mode(0o170000), None);
    }
}
