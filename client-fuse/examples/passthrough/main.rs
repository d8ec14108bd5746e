//! A directory, mounted again through the session layer: `passthrough SOURCE MOUNTPOINT [THREADS] [CACHE_SECONDS]`.
//!
//! What a filesystem over FUSE costs at least: each operation is one or two system calls on O_PATH descriptors, made in
//! place. Also the other side of conformance runs. (It makes files as root and hands them over; default ACLs don't replace the umask.)

mod sys;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag};
use nix::unistd::{Gid, Uid, UnlinkatFlags, Whence};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use sys::{name_of, proc_path};
use weft_fuse::session::{SessionOptions, run};
use weft_fuse::*;
use weft_reactor::{Handle, Pool};

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args_os().skip(1);
    let usage = || anyhow::anyhow!("usage: passthrough SOURCE MOUNTPOINT [THREADS] [CACHE_SECONDS]");
    let source = PathBuf::from(arguments.next().ok_or_else(usage)?);
    let mountpoint = PathBuf::from(arguments.next().ok_or_else(usage)?);
    let mut numbers = arguments.map(|argument| argument.to_str().and_then(|text| text.parse::<usize>().ok()));
    let threads = numbers.next().map_or(Some(2), |number| number).ok_or_else(usage)?;
    let cache_s = numbers.next().map_or(Some(0), |number| number).ok_or_else(usage)?;
    let valid = Duration::from_secs(cache_s as u64);

    nix::sys::stat::umask(Mode::empty());
    let root = nix::fcntl::open(&source, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let table = Arc::new(Mutex::new(Table::new(root)?));
    let readdirplus = if cache_s > 0 { ReaddirPlus::Auto } else { ReaddirPlus::Off };
    let source = source.display().to_string();
    let options = SessionOptions { source, threads, readdirplus, ..SessionOptions::default() };
    run(&mountpoint, options, |_, _: &Handle| {
        Rc::new(Passthrough { table: Arc::clone(&table), valid, buffers: Pool::new(1 << 20, 16) })
    })?;
    Ok(())
}

/// Inodes that the kernel knows, shared by all threads.
struct Table {
    nodes: HashMap<u64, Node>,
    /// (device, inode) to node.
    by_file: HashMap<(u64, u64), u64>,
    files: HashMap<u64, Arc<OwnedFd>>,
    last: u64,
}

struct Node {
    fd: Arc<OwnedFd>,
    file: (u64, u64),
    lookups: u64,
}

impl Table {
    fn new(root: OwnedFd) -> Result<Self> {
        let stat = nix::sys::stat::fstat(&root)?;
        let file = (stat.st_dev, stat.st_ino);
        let node = Node { fd: Arc::new(root), file, lookups: 1 };
        let root = NodeId::ROOT.0;
        Ok(Self {
            nodes: HashMap::from([(root, node)]),
            by_file: HashMap::from([(file, root)]),
            files: HashMap::new(),
            last: root,
        })
    }

    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

struct Passthrough {
    table: Arc<Mutex<Table>>,
    valid: Duration,
    buffers: Pool,
}

impl Passthrough {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, node: NodeId) -> Result<Arc<OwnedFd>> {
        self.table().nodes.get(&node.0).map(|node| Arc::clone(&node.fd)).ok_or(Errno::ESTALE)
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<OwnedFd>> {
        self.table().files.get(&handle.0).map(Arc::clone).ok_or(Errno::EBADF)
    }

    fn keep(&self, file: OwnedFd) -> FileHandle {
        let mut table = self.table();
        let handle = table.next();
        table.files.insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    /// The kernel gets to know an O_PATH descriptor.
    fn known(&self, fd: OwnedFd) -> Result<Entry> {
        let (attr, file) = sys::stat(&fd)?;
        let mut table = self.table();
        let id = match table.by_file.get(&file) {
            Some(&id) => id,
            None => {
                let id = table.next();
                table.by_file.insert(file, id);
                table.nodes.insert(id, Node { fd: Arc::new(fd), file, lookups: 0 });
                id
            }
        };
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups += 1;
        }
        Ok(Entry { node: NodeId(id), attr, attr_valid: self.valid, entry_valid: self.valid })
    }

    fn find(&self, parent: &OwnedFd, name: &[u8]) -> Result<Entry> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.known(nix::fcntl::openat(parent, name_of(name), flags, Mode::empty())?)
    }

    /// What root made becomes the caller's; changing owners clears set-id bits, so they are set again.
    fn hand_over(&self, request: &Request, parent: &OwnedFd, name: &[u8], new: NewFile) -> Result<()> {
        if request.uid == 0 && request.gid == 0 {
            return Ok(());
        }
        let inherits_gid = nix::sys::stat::fstat(parent)?.st_mode & libc::S_ISGID != 0;
        let gid = (!inherits_gid).then(|| Gid::from_raw(request.gid));
        let uid = Some(Uid::from_raw(request.uid));
        nix::unistd::fchownat(parent, name_of(name), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if new.mode & libc::S_IFMT == libc::S_IFREG && new.mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            nix::sys::stat::fchmodat(parent, name_of(name), masked(new), FchmodatFlags::FollowSymlink)?;
        }
        Ok(())
    }
}

fn masked(new: NewFile) -> Mode {
    Mode::from_bits_truncate(new.mode & 0o7777 & !u32::from(new.umask))
}

/// Flags of an application's open that mean something for our own.
fn own_flags(flags: i32) -> OFlag {
    // O_APPEND would override offsets of pages that are written back; direct I/O is for the application's own cache.
    let dropped = OFlag::O_APPEND | OFlag::O_DIRECT | OFlag::O_NOFOLLOW | OFlag::O_CREAT | OFlag::O_EXCL;
    (OFlag::from_bits_retain(flags) - dropped) | OFlag::O_CLOEXEC
}

impl Filesystem for Passthrough {
    async fn lookup(&self, _: &Request, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.find(&*self.node(parent)?, name)
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        let mut table = self.table();
        let Some(known) = table.nodes.get_mut(&node.0) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 && node != NodeId::ROOT {
            let file = known.file;
            table.by_file.remove(&file);
            table.nodes.remove(&node.0);
        }
    }

    async fn getattr(&self, _: &Request, node: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        Ok(Attributes { attr: sys::stat(&*self.node(node)?)?.0, valid: self.valid })
    }

    async fn setattr(&self, _: &Request, node: NodeId, handle: Option<FileHandle>, set: SetAttr) -> Result<Attributes> {
        let fd = self.node(node)?;
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            nix::unistd::fchownat(&*fd, c"", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if let Some(mode) = set.mode {
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                proc_path(&fd).as_str(),
                Mode::from_bits_truncate(mode.into()),
                FchmodatFlags::FollowSymlink,
            )?;
        }
        if let Some(size) = set.size_bytes {
            let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
            match handle {
                Some(handle) => nix::unistd::ftruncate(&*self.file(handle)?, size)?,
                None => nix::unistd::truncate(proc_path(&fd).as_str(), size)?,
            }
            if set.kill_setid {
                sys::kill_setid(&fd)?;
            }
        }
        if set.atime.is_some() || set.mtime.is_some() {
            sys::set_times(&fd, set.atime, set.mtime)?;
        }
        Ok(Attributes { attr: sys::stat(&*fd)?.0, valid: self.valid })
    }

    async fn readlink(&self, _: &Request, node: NodeId) -> Result<Bytes> {
        use std::os::unix::ffi::OsStringExt;
        Ok(nix::fcntl::readlinkat(&*self.node(node)?, c"")?.into_vec().into())
    }

    async fn symlink(&self, request: &Request, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        let parent = self.node(parent)?;
        nix::unistd::symlinkat(name_of(target), &*parent, name_of(name))?;
        self.hand_over(request, &parent, name, NewFile { mode: libc::S_IFLNK, umask: 0, rdev: 0 })?;
        self.find(&parent, name)
    }

    async fn mknod(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        let parent = self.node(parent)?;
        let kind = SFlag::from_bits_truncate(new.mode & libc::S_IFMT);
        nix::sys::stat::mknodat(&*parent, name_of(name), kind, masked(new), sys::decode_device(new.rdev))?;
        self.hand_over(request, &parent, name, new)?;
        self.find(&parent, name)
    }

    async fn mkdir(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        let parent = self.node(parent)?;
        nix::sys::stat::mkdirat(&*parent, name_of(name), masked(new))?;
        self.hand_over(request, &parent, name, new)?;
        self.find(&parent, name)
    }

    async fn unlink(&self, _: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        nix::unistd::unlinkat(&*self.node(parent)?, name_of(name), UnlinkatFlags::NoRemoveDir)
    }

    async fn rmdir(&self, _: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        nix::unistd::unlinkat(&*self.node(parent)?, name_of(name), UnlinkatFlags::RemoveDir)
    }

    async fn rename(
        &self,
        _: &Request,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let (parent, new_parent) = (self.node(parent)?, self.node(new_parent)?);
        let flags = RenameFlags::from_bits_retain(flags);
        nix::fcntl::renameat2(&*parent, name_of(name), &*new_parent, name_of(new_name), flags)
    }

    async fn link(&self, _: &Request, node: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        let (fd, parent) = (self.node(node)?, self.node(new_parent)?);
        nix::unistd::linkat(&*fd, c"", &*parent, name_of(new_name), AtFlags::AT_EMPTY_PATH)?;
        self.find(&parent, new_name)
    }

    async fn open(&self, _: &Request, node: NodeId, how: OpenHow) -> Result<Opened> {
        let fd = self.node(node)?;
        let file = nix::fcntl::open(proc_path(&fd).as_str(), own_flags(how.flags), Mode::empty())?;
        if how.kill_setid && how.flags & libc::O_TRUNC != 0 {
            sys::kill_setid(&fd)?;
        }
        Ok(Opened { handle: self.keep(file), caching: Caching::Direct })
    }

    async fn create(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new: NewFile,
        how: OpenHow,
    ) -> Result<(Entry, Opened)> {
        let parent = self.node(parent)?;
        let flags = own_flags(how.flags) | OFlag::O_CREAT | OFlag::O_NOFOLLOW;
        let made = nix::fcntl::openat(&*parent, name_of(name), flags | OFlag::O_EXCL, masked(new));
        let file = match made {
            Ok(file) => {
                self.hand_over(request, &parent, name, new)?;
                file
            }
            Err(Errno::EEXIST) if how.flags & libc::O_EXCL == 0 => {
                nix::fcntl::openat(&*parent, name_of(name), flags, masked(new))?
            }
            Err(errno) => return Err(errno),
        };
        let entry = self.find(&parent, name)?;
        Ok((entry, Opened { handle: self.keep(file), caching: Caching::Direct }))
    }

    async fn tmpfile(&self, request: &Request, parent: NodeId, new: NewFile, how: OpenHow) -> Result<(Entry, Opened)> {
        let parent = self.node(parent)?;
        let flags = own_flags(how.flags) | OFlag::O_TMPFILE;
        let file = nix::fcntl::openat(&*parent, c".", flags, masked(new))?;
        nix::unistd::fchown(&file, Some(Uid::from_raw(request.uid)), Some(Gid::from_raw(request.gid)))?;
        let path = nix::fcntl::open(proc_path(&file).as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        let entry = self.known(path)?;
        Ok((entry, Opened { handle: self.keep(file), caching: Caching::Direct }))
    }

    async fn read(
        &self,
        _: &Request,
        _: NodeId,
        handle: FileHandle,
        offset: u64,
        len_bytes: u32,
    ) -> Result<Vec<Bytes>> {
        let file = self.file(handle)?;
        let mut buffer = self.buffers.take(len_bytes as usize);
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let len = nix::sys::uio::pread(&*file, buffer.as_mut_slice(), offset)?;
        buffer.truncate(len);
        Ok(vec![buffer.freeze()])
    }

    async fn write(
        &self,
        _: &Request,
        node: NodeId,
        handle: FileHandle,
        offset: u64,
        data: Bytes,
        how: WriteHow,
    ) -> Result<u32> {
        let file = self.file(handle)?;
        let offset = match how.flags & libc::O_APPEND != 0 && !how.from_page_cache {
            true => nix::unistd::lseek(&*file, 0, Whence::SeekEnd)?,
            false => i64::try_from(offset).map_err(|_| Errno::EFBIG)?,
        };
        let written = nix::sys::uio::pwrite(&*file, &data, offset)?;
        if how.kill_setid {
            sys::kill_setid(&*self.node(node)?)?;
        }
        Ok(written as u32)
    }

    async fn release(&self, _: &Request, _: NodeId, handle: FileHandle, _: ReleaseHow) -> Result<()> {
        let file = self.table().files.remove(&handle.0);
        drop(file);
        Ok(())
    }

    async fn fsync(&self, _: &Request, _: NodeId, handle: FileHandle, data_only: bool) -> Result<()> {
        let file = self.file(handle)?;
        if data_only { nix::unistd::fdatasync(&*file) } else { nix::unistd::fsync(&*file) }
    }

    async fn opendir(&self, _: &Request, node: NodeId, _: i32) -> Result<FileHandle> {
        let fd = self.node(node)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(self.keep(nix::fcntl::openat(&*fd, c".", flags, Mode::empty())?))
    }

    async fn readdir(
        &self,
        _: &Request,
        node: NodeId,
        handle: FileHandle,
        cookie: u64,
        buffer: &mut DirBuffer,
    ) -> Result<()> {
        let (directory, fd) = (self.file(handle)?, self.node(node)?);
        sys::list(&directory, cookie, |entry| {
            let dots = entry.name == b"." || entry.name == b"..";
            if !buffer.wants_attrs() || dots {
                return buffer.push(entry);
            }
            match self.find(&fd, entry.name) {
                Ok(found) => buffer.push_plus(entry, &found).inspect_err(|Full| self.forget(found.node, 1)),
                // Gone meanwhile.
                Err(_) => Ok(()),
            }
        })
    }

    async fn releasedir(&self, _: &Request, _: NodeId, handle: FileHandle) -> Result<()> {
        let file = self.table().files.remove(&handle.0);
        drop(file);
        Ok(())
    }

    async fn fsyncdir(&self, _: &Request, _: NodeId, handle: FileHandle, _: bool) -> Result<()> {
        nix::unistd::fsync(&*self.file(handle)?)
    }

    async fn syncfs(&self, _: &Request) -> Result<()> {
        let root = self.node(NodeId::ROOT)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::unistd::syncfs(nix::fcntl::openat(&*root, c".", flags, Mode::empty())?)
    }

    async fn statfs(&self, _: &Request, node: NodeId) -> Result<StatFs> {
        let stat = nix::sys::statvfs::fstatvfs(&*self.node(node)?)?;
        Ok(StatFs {
            block_bytes: stat.fragment_size() as u32,
            blocks: stat.blocks(),
            blocks_free: stat.blocks_free(),
            blocks_available: stat.blocks_available(),
            files: stat.files(),
            files_free: stat.files_free(),
            name_bytes_max: stat.name_max() as u32,
        })
    }

    async fn setxattr(&self, _: &Request, node: NodeId, name: &[u8], value: &[u8], how: XattrHow) -> Result<()> {
        sys::set_xattr(&*self.node(node)?, name, value, how.flags)
    }

    async fn getxattr(&self, _: &Request, node: NodeId, name: &[u8]) -> Result<Bytes> {
        sys::get_xattr(&*self.node(node)?, name)
    }

    async fn listxattr(&self, _: &Request, node: NodeId) -> Result<Vec<Vec<u8>>> {
        sys::list_xattrs(&*self.node(node)?)
    }

    async fn removexattr(&self, _: &Request, node: NodeId, name: &[u8]) -> Result<()> {
        sys::remove_xattr(&*self.node(node)?, name)
    }

    async fn fallocate(
        &self,
        _: &Request,
        _: NodeId,
        handle: FileHandle,
        offset: u64,
        len_bytes: u64,
        mode: i32,
    ) -> Result<()> {
        let file = self.file(handle)?;
        let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let len = i64::try_from(len_bytes).map_err(|_| Errno::EFBIG)?;
        nix::fcntl::fallocate(&*file, FallocateFlags::from_bits_retain(mode), offset, len)
    }

    async fn lseek(&self, _: &Request, _: NodeId, handle: FileHandle, offset: u64, whence: i32) -> Result<u64> {
        let file = self.file(handle)?;
        let whence = if whence == libc::SEEK_DATA { Whence::SeekData } else { Whence::SeekHole };
        let offset = nix::unistd::lseek(&*file, offset.cast_signed(), whence)?;
        Ok(offset.cast_unsigned())
    }
}
