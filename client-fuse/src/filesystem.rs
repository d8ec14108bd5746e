//! What a filesystem answers: one method per operation of the kernel, in plain types.

use crate::dir_buffer::DirBuffer;
use crate::interrupt::Interrupt;
use crate::request::Operation;
use bytes::Bytes;
use nix::errno::Errno;
use std::time::Duration;
use weft_wire::fs::FileKind;

/// The kernel's number for an inode, chosen by the filesystem; [`NodeId::ROOT`] is given. Generations are always 0:
/// a number must not be used for another inode while the mount lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    pub const ROOT: Self = Self(1);
}

/// What the filesystem calls an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileHandle(pub u64);

/// The kernel's token for whoever holds a lock: a process (POSIX) or an open file (OFD, flock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockOwner(pub u64);

/// Who asks, and whether it still wants the answer.
#[derive(Clone, Debug)]
pub struct Request {
    /// The kernel's number of this request.
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    /// 0 for the kernel itself (write-back, another PID namespace).
    pub pid: u32,
    /// A signal has come for the caller. An operation that waits for others (a lock, a cluster that is away) must end
    /// with `EINTR` then, unless it has taken effect; the others may ignore it.
    pub interrupt: Interrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`
    pub inode: u64,
    pub kind: FileKind,
    /// 0o7777
    pub mode: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// In the kernel's 32-bit encoding, as [`Filesystem::mknod`] got it.
    pub rdev: u32,
    pub size_bytes: u64,
    /// `st_blocks`: units of 512 bytes, whatever `st_blksize` says.
    pub blocks_512: u64,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Birth; statx(2) shows it.
    pub btime_ns: Option<i64>,
    /// `st_blksize`: the size of I/O that suits the file.
    pub io_bytes: u32,
}

/// Attributes, and how long the kernel may use them without asking again (zero: not at all).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub attr: Attr,
    pub valid: Duration,
}

/// A name that was found or made. Each one counts as a lookup of `node`, until [`Filesystem::forget`] takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub node: NodeId,
    pub attr: Attr,
    pub attr_valid: Duration,
    pub entry_valid: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// A truncate by an ordinary user: clear setuid, and setgid of a group-executable file. A change of owner must do so by itself.
    pub kill_setid: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// With the type: `S_IFREG` and so on.
    pub mode: u32,
    /// Not yet applied to `mode`: it has no effect in a directory with a default ACL. See [`crate::acl::inherit`].
    pub umask: u16,
    /// Of a device, in the kernel's 32-bit encoding, otherwise 0.
    pub rdev: u32,
}

/// Whether the kernel's page cache stands between an open file and the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Each read and write comes here; mmap works, coherent within this mount.
    Direct,
    /// Pages are cached, dropped at open.
    Paged,
    /// Pages are cached and stay from the last time.
    PagedKeep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub handle: FileHandle,
    pub caching: Caching,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHow {
    /// As given to open(2): `O_RDWR`, `O_TRUNC`, `O_APPEND`, ...
    pub flags: i32,
    /// `O_TRUNC` by an ordinary user: as [`SetAttr::kill_setid`].
    pub kill_setid: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteHow {
    /// Of the open file. With `O_APPEND` the filesystem finds the offset itself.
    pub flags: i32,
    /// As [`SetAttr::kill_setid`].
    pub kill_setid: bool,
    /// From the page cache (mmap): `handle` and the caller's identity are the kernel's guess, and O_APPEND says nothing.
    pub from_page_cache: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseHow {
    pub flags: i32,
    /// Present if the open file held a flock that ends now.
    pub flock_owner: Option<LockOwner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockKind {
    /// POSIX and OFD locks, on ranges.
    Record,
    Flock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockType {
    Read,
    Write,
    Unlock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    pub typ: LockType,
    /// First and last byte, inclusive; the whole file ends at `i64::MAX`.
    pub start: u64,
    pub end: u64,
    pub pid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRequest {
    pub kind: LockKind,
    pub owner: LockOwner,
    pub lock: Lock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XattrHow {
    /// `XATTR_CREATE`, `XATTR_REPLACE` or 0.
    pub flags: i32,
    /// An access ACL set by someone outside the file's group: clear setgid.
    pub kill_setgid: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Of `blocks`, `blocks_free`, `blocks_available`.
    pub block_bytes: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_bytes_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRange {
    pub from: NodeId,
    pub from_handle: FileHandle,
    pub from_offset: u64,
    pub to: NodeId,
    pub to_handle: FileHandle,
    pub to_offset: u64,
    pub len_bytes: u64,
}

/// Where a request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// On the thread that read it.
    Here,
    /// On this thread (modulo their number), at the price of one hand-over.
    Thread(usize),
}

pub type Result<T, E = Errno> = std::result::Result<T, E>;

/// One filesystem as one thread of a session sees it.
///
/// A session makes an instance per thread. Any thread may get any request: node ids, handles and lookup counts mean the
/// same to all instances, or [`route`](Self::route) sends what must meet to the same one.
///
/// The kernel checks permissions, types and the length of names beforehand. Methods that are not there answer `ENOSYS`
/// (where the kernel then helps itself, or tells the application `EOPNOTSUPP`).
#[allow(async_fn_in_trait, reason = "the futures stay on their thread")]
#[allow(unused_variables, reason = "default methods show the names of their arguments")]
pub trait Filesystem: 'static {
    fn route(&self, operation: &Operation) -> Route {
        Route::Here
    }

    /// The session ends; nothing follows. Cut off after [`SessionOptions::destroy_wait`](crate::session::SessionOptions).
    async fn destroy(&self) {}

    async fn lookup(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<Entry>;

    /// The kernel drops `lookups` of its references to `node`.
    fn forget(&self, node: NodeId, lookups: u64) {}

    async fn getattr(&self, request: &Request, node: NodeId, handle: Option<FileHandle>) -> Result<Attributes>;

    async fn setattr(
        &self,
        request: &Request,
        node: NodeId,
        handle: Option<FileHandle>,
        set: SetAttr,
    ) -> Result<Attributes> {
        Err(Errno::ENOSYS)
    }

    async fn readlink(&self, request: &Request, node: NodeId) -> Result<Bytes> {
        Err(Errno::ENOSYS)
    }

    async fn symlink(&self, request: &Request, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    async fn mknod(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    /// `new.mode` holds permission bits and `S_IFDIR`.
    async fn mkdir(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    async fn unlink(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    async fn rmdir(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// `flags` of renameat2(2).
    async fn rename(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    async fn link(&self, request: &Request, node: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        Err(Errno::ENOSYS)
    }

    async fn open(&self, request: &Request, node: NodeId, how: OpenHow) -> Result<Opened>;

    /// Makes a regular file, or opens what is there unless `how.flags` has `O_EXCL`.
    async fn create(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new: NewFile,
        how: OpenHow,
    ) -> Result<(Entry, Opened)> {
        Err(Errno::ENOSYS)
    }

    /// O_TMPFILE: a regular file without a name, to be linked later perhaps.
    async fn tmpfile(&self, request: &Request, parent: NodeId, new: NewFile, how: OpenHow) -> Result<(Entry, Opened)> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Fewer bytes than asked for mean the end of the file.
    async fn read(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        len_bytes: u32,
    ) -> Result<Vec<Bytes>>;

    /// `data` starts at a multiple of 4096 in memory if it is at least that long. Answers how much was written.
    async fn write(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        data: Bytes,
        how: WriteHow,
    ) -> Result<u32> {
        Err(Errno::ENOSYS)
    }

    /// A descriptor of the open file was closed: the POSIX locks of `owner` on it end.
    async fn flush(&self, request: &Request, node: NodeId, handle: FileHandle, owner: LockOwner) -> Result<()> {
        Ok(())
    }

    /// The last descriptor was closed, the last mapping gone. Nobody waits for the answer.
    ///
    /// All locks end that were taken through `handle`. (The kernel tells the owner of a flock, but says nothing of OFD
    /// locks; those of POSIX owners ended with [`flush`](Self::flush) before.)
    async fn release(&self, request: &Request, node: NodeId, handle: FileHandle, how: ReleaseHow) -> Result<()> {
        Ok(())
    }

    async fn fsync(&self, request: &Request, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    async fn opendir(&self, request: &Request, node: NodeId, flags: i32) -> Result<FileHandle> {
        Ok(FileHandle(0))
    }

    /// Pushes the entries after `cookie` (0: from the start) until the buffer is full or the directory ends; "." and
    /// ".." among them.
    async fn readdir(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        cookie: u64,
        buffer: &mut DirBuffer,
    ) -> Result<()>;

    async fn releasedir(&self, request: &Request, node: NodeId, handle: FileHandle) -> Result<()> {
        Ok(())
    }

    async fn fsyncdir(&self, request: &Request, node: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    async fn syncfs(&self, request: &Request) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    async fn statfs(&self, request: &Request, node: NodeId) -> Result<StatFs>;

    async fn setxattr(&self, request: &Request, node: NodeId, name: &[u8], value: &[u8], how: XattrHow) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// The whole value; the session deals with callers that ask for the size or have no room.
    async fn getxattr(&self, request: &Request, node: NodeId, name: &[u8]) -> Result<Bytes> {
        Err(Errno::ENOSYS)
    }

    async fn listxattr(&self, request: &Request, node: NodeId) -> Result<Vec<Vec<u8>>> {
        Err(Errno::ENOSYS)
    }

    async fn removexattr(&self, request: &Request, node: NodeId, name: &[u8]) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// What would stand in the way of `ask`.
    async fn getlk(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        ask: LockRequest,
    ) -> Result<Option<Lock>> {
        Err(Errno::ENOSYS)
    }

    /// `wait`: until it is granted, or `request.interrupt` says to give up with `EINTR`; otherwise `EAGAIN` at once.
    async fn setlk(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        ask: LockRequest,
        wait: bool,
    ) -> Result<()> {
        Err(Errno::ENOSYS)
    }

    /// `mode` of fallocate(2).
    async fn fallocate(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        len_bytes: u64,
        mode: i32,
    ) -> Result<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `whence` is `SEEK_DATA` or `SEEK_HOLE`.
    async fn lseek(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        whence: i32,
    ) -> Result<u64> {
        Err(Errno::ENOSYS)
    }

    async fn copy_file_range(&self, request: &Request, copy: CopyRange) -> Result<u32> {
        Err(Errno::ENOSYS)
    }
}
