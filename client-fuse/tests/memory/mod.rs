//! A filesystem in memory, shared by all threads of a session: the other side of the tests.

use bytes::Bytes;
use nix::errno::Errno;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use weft_fuse::request::Operation;
use weft_fuse::*;
use weft_reactor::select;
use weft_reactor::sync::Notify;
use weft_wire::fs::FileKind;

/// What all instances of one mount share.
#[derive(Default)]
pub struct State {
    nodes: HashMap<u64, Node>,
    node_last: u64,
    clock_ns: i64,
    pub seen: Seen,
}

/// What tests ask about.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub interrupts: usize,
    /// Lookups of "hung", which are never answered.
    pub hung: usize,
    pub destroyed: usize,
    pub opens: usize,
    pub releases: usize,
    pub writes_unaligned: usize,
    pub write_bytes_max: usize,
    /// Lock requests that reached another thread than the first.
    pub locks_astray: usize,
    pub threads_used: std::collections::BTreeSet<usize>,
}

struct Node {
    attr: Attr,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    lookups: u64,
    opens: u64,
}

enum Content {
    Data(Vec<u8>),
    Target(Vec<u8>),
    Entries { by_cookie: BTreeMap<u64, (Vec<u8>, u64)>, by_name: HashMap<Vec<u8>, u64>, cookie_last: u64, parent: u64 },
    Nothing,
}

impl State {
    fn new() -> Self {
        let mut state = Self::default();
        let root = state.add(FileKind::Directory, 0o755, 0, 0, 0, Content::directory(1));
        assert_eq!(root, 1);
        state.nodes.entry(1).and_modify(|node| node.lookups = 1);
        state
    }

    fn tick(&mut self) -> i64 {
        self.clock_ns += 1_000_000;
        self.clock_ns
    }

    fn add(&mut self, kind: FileKind, mode: u16, uid: u32, gid: u32, rdev: u32, content: Content) -> u64 {
        self.node_last += 1;
        let now = self.tick();
        let links = if kind == FileKind::Directory { 2 } else { 1 };
        let attr = Attr {
            inode: self.node_last,
            kind,
            mode,
            links,
            uid,
            gid,
            rdev,
            size_bytes: 0,
            blocks_512: 0,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: Some(now),
            io_bytes: 4096,
        };
        self.nodes.insert(self.node_last, Node { attr, content, xattrs: BTreeMap::new(), lookups: 0, opens: 0 });
        self.node_last
    }

    fn node(&mut self, node: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&node.0).ok_or(Errno::ESTALE)
    }

    fn child(&mut self, parent: NodeId, name: &[u8]) -> Result<u64> {
        match &self.node(parent)?.content {
            Content::Entries { by_cookie, by_name, .. } => {
                let cookie = by_name.get(name).ok_or(Errno::ENOENT)?;
                by_cookie.get(cookie).map(|(_, node)| *node).ok_or(Errno::EIO)
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn attach(&mut self, parent: NodeId, name: &[u8], child: u64) -> Result<()> {
        let now = self.tick();
        let parent = self.node(parent)?;
        if parent.attr.links == 0 {
            return Err(Errno::ENOENT);
        }
        parent.attr.mtime_ns = now;
        match &mut parent.content {
            Content::Entries { by_cookie, by_name, cookie_last, .. } => {
                *cookie_last += 1;
                by_cookie.insert(*cookie_last, (name.to_vec(), child));
                by_name.insert(name.to_vec(), *cookie_last);
                Ok(())
            }
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn detach(&mut self, parent: NodeId, name: &[u8]) -> Result<u64> {
        let child = self.child(parent, name)?;
        if let Content::Entries { by_cookie, by_name, .. } = &mut self.node(parent)?.content
            && let Some(cookie) = by_name.remove(name)
        {
            by_cookie.remove(&cookie);
        }
        Ok(child)
    }

    fn unlink(&mut self, parent: NodeId, name: &[u8]) -> Result<()> {
        let child = self.detach(parent, name)?;
        let now = self.tick();
        if let Some(node) = self.nodes.get_mut(&child) {
            node.attr.links = if node.attr.kind == FileKind::Directory { 0 } else { node.attr.links - 1 };
            node.attr.ctime_ns = now;
        }
        self.collect(child);
        Ok(())
    }

    fn collect(&mut self, node: u64) {
        let gone =
            self.nodes.get(&node).is_some_and(|node| node.attr.links == 0 && node.opens == 0 && node.lookups == 0);
        if gone {
            self.nodes.remove(&node);
        }
    }

    fn entry(&mut self, node: u64) -> Result<Entry> {
        let found = self.node(NodeId(node))?;
        found.lookups += 1;
        Ok(Entry { node: NodeId(node), attr: found.attr, attr_valid: Duration::ZERO, entry_valid: Duration::ZERO })
    }

    fn open(&mut self, node: u64) -> Result<Opened> {
        self.node(NodeId(node))?.opens += 1;
        self.seen.opens += 1;
        Ok(Opened { handle: FileHandle(self.seen.opens as u64), caching: Caching::Direct })
    }

    /// Nodes that are neither named nor open nor known to the kernel would be leaks.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn open_count(&self) -> u64 {
        self.nodes.values().map(|node| node.opens).sum()
    }
}

impl Content {
    fn directory(parent: u64) -> Self {
        Self::Entries { by_cookie: BTreeMap::new(), by_name: HashMap::new(), cookie_last: 2, parent }
    }

    fn data(&mut self) -> Result<&mut Vec<u8>> {
        match self {
            Self::Data(data) => Ok(data),
            Self::Entries { .. } => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn is_empty_directory(&self) -> bool {
        matches!(self, Self::Entries { by_name, .. } if by_name.is_empty())
    }
}

#[derive(Clone)]
pub struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::new())))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Held {
    handle: FileHandle,
    ask: LockRequest,
}

pub struct Memory {
    shared: Shared,
    thread: usize,
    /// Of the first thread alone: see `route`.
    locks: RefCell<HashMap<(NodeId, LockKind), Vec<Held>>>,
    unlocked: Notify,
}

impl Memory {
    pub fn new(shared: &Shared, thread: usize) -> Rc<Self> {
        Rc::new(Self { shared: shared.clone(), thread, locks: RefCell::default(), unlocked: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.seen.threads_used.insert(self.thread);
        state
    }

    fn conflict(&self, node: NodeId, ask: &LockRequest) -> Option<LockRequest> {
        let locks = self.locks.borrow();
        let held = locks.get(&(node, ask.kind))?;
        let other = held.iter().map(|held| held.ask).filter(|held| held.owner != ask.owner);
        other
            .filter(|held| held.lock.start <= ask.lock.end && ask.lock.start <= held.lock.end)
            .find(|held| held.lock.typ == LockType::Write || ask.lock.typ == LockType::Write)
    }

    /// Whole locks only: what overlaps an owner's new lock or unlock goes.
    fn set(&self, node: NodeId, handle: FileHandle, ask: LockRequest) {
        let mut locks = self.locks.borrow_mut();
        let held = locks.entry((node, ask.kind)).or_default();
        held.retain(|Held { ask: held, .. }| {
            held.owner != ask.owner || held.lock.start > ask.lock.end || ask.lock.start > held.lock.end
        });
        if ask.lock.typ != LockType::Unlock {
            held.push(Held { handle, ask });
        }
        self.unlocked.notify_all();
    }

    fn make(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile, content: Content) -> Result<u64> {
        let mut state = self.state();
        if state.child(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        let kind = kind_of_mode(new.mode).ok_or(Errno::EINVAL)?;
        let mode = (new.mode & 0o7777) as u16 & !new.umask;
        let node = state.add(kind, mode, request.uid, request.gid, new.rdev, content);
        if let Content::Target(target) = &state.node(NodeId(node))?.content {
            let size = target.len() as u64;
            state.node(NodeId(node))?.attr.size_bytes = size;
        }
        state.attach(parent, name, node)?;
        Ok(node)
    }
}

fn attributes(attr: Attr) -> Attributes {
    Attributes { attr, valid: Duration::ZERO }
}

fn resize(node: &mut Node, len: usize) -> Result<()> {
    const FILE_BYTES_MAX: usize = 256 << 20;
    if len > FILE_BYTES_MAX {
        return Err(Errno::EFBIG);
    }
    let data = node.content.data()?;
    data.resize(len, 0);
    node.attr.size_bytes = len as u64;
    node.attr.blocks_512 = len.div_ceil(512) as u64;
    Ok(())
}

impl Filesystem for Memory {
    fn route(&self, operation: &Operation) -> Route {
        match operation {
            Operation::Setlk { .. } | Operation::Getlk { .. } | Operation::Flush { .. } | Operation::Release { .. } => {
                Route::Thread(0)
            }
            _ => Route::Here,
        }
    }

    async fn destroy(&self) {
        self.state().seen.destroyed += 1;
    }

    async fn lookup(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<Entry> {
        if name == b"stuck" {
            request.interrupt.raised().await;
            self.state().seen.interrupts += 1;
            return Err(Errno::EINTR);
        }
        if name == b"hung" {
            self.state().seen.hung += 1;
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        let child = state.child(parent, name)?;
        state.entry(child)
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(&node.0) {
            node.lookups -= lookups;
        }
        state.collect(node.0);
    }

    async fn getattr(&self, _: &Request, node: NodeId, _: Option<FileHandle>) -> Result<Attributes> {
        Ok(attributes(self.state().node(node)?.attr))
    }

    async fn setattr(&self, _: &Request, node: NodeId, _: Option<FileHandle>, set: SetAttr) -> Result<Attributes> {
        let mut state = self.state();
        let now = state.tick();
        let node = state.node(node)?;
        if let Some(size) = set.size_bytes {
            resize(node, usize::try_from(size).map_err(|_| Errno::EFBIG)?)?;
            node.attr.mtime_ns = now;
        }
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        node.attr.mode = set.mode.unwrap_or(node.attr.mode);
        node.attr.uid = set.uid.unwrap_or(node.attr.uid);
        node.attr.gid = set.gid.unwrap_or(node.attr.gid);
        node.attr.atime_ns = set.atime.map_or(node.attr.atime_ns, time);
        node.attr.mtime_ns = set.mtime.map_or(node.attr.mtime_ns, time);
        node.attr.ctime_ns = now;
        Ok(attributes(node.attr))
    }

    async fn readlink(&self, _: &Request, node: NodeId) -> Result<Bytes> {
        match &self.state().node(node)?.content {
            Content::Target(target) => Ok(Bytes::copy_from_slice(target)),
            _ => Err(Errno::EINVAL),
        }
    }

    async fn symlink(&self, request: &Request, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        let new = NewFile { mode: libc::S_IFLNK | 0o777, umask: 0, rdev: 0 };
        let node = self.make(request, parent, name, new, Content::Target(target.to_vec()))?;
        self.state().entry(node)
    }

    async fn mknod(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        let content = match kind_of_mode(new.mode) {
            Some(FileKind::File) => Content::Data(Vec::new()),
            _ => Content::Nothing,
        };
        let node = self.make(request, parent, name, new, content)?;
        self.state().entry(node)
    }

    async fn mkdir(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        let node = self.make(request, parent, name, new, Content::directory(parent.0))?;
        self.state().entry(node)
    }

    async fn unlink(&self, _: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        self.state().unlink(parent, name)
    }

    async fn rmdir(&self, _: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        let mut state = self.state();
        let child = state.child(parent, name)?;
        if !state.node(NodeId(child))?.content.is_empty_directory() {
            return Err(Errno::ENOTEMPTY);
        }
        state.unlink(parent, name)
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
        let mut state = self.state();
        let from = state.child(parent, name)?;
        let to = state.child(new_parent, new_name).ok();
        match (flags, to) {
            (libc::RENAME_NOREPLACE, Some(_)) => return Err(Errno::EEXIST),
            (libc::RENAME_EXCHANGE, Some(to)) => {
                state.detach(parent, name)?;
                state.detach(new_parent, new_name)?;
                state.attach(parent, name, to)?;
                return state.attach(new_parent, new_name, from);
            }
            (libc::RENAME_EXCHANGE, None) => return Err(Errno::ENOENT),
            (0 | libc::RENAME_NOREPLACE, None) => {}
            (0, Some(_)) => state.unlink(new_parent, new_name)?,
            _ => return Err(Errno::EINVAL),
        }
        state.detach(parent, name)?;
        state.attach(new_parent, new_name, from)
    }

    async fn link(&self, _: &Request, node: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        let mut state = self.state();
        state.attach(new_parent, new_name, node.0)?;
        state.node(node)?.attr.links += 1;
        state.entry(node.0)
    }

    async fn open(&self, _: &Request, node: NodeId, how: OpenHow) -> Result<Opened> {
        let mut state = self.state();
        if how.flags & libc::O_TRUNC != 0 {
            resize(state.node(node)?, 0)?;
        }
        state.open(node.0)
    }

    async fn create(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new: NewFile,
        how: OpenHow,
    ) -> Result<(Entry, Opened)> {
        let node = match self.make(request, parent, name, new, Content::Data(Vec::new())) {
            Err(Errno::EEXIST) if how.flags & libc::O_EXCL == 0 => self.state().child(parent, name)?,
            made => made?,
        };
        let mut state = self.state();
        Ok((state.entry(node)?, state.open(node)?))
    }

    async fn tmpfile(&self, request: &Request, _: NodeId, new: NewFile, _: OpenHow) -> Result<(Entry, Opened)> {
        let mut state = self.state();
        let mode = (new.mode & 0o7777) as u16 & !new.umask;
        let node = state.add(FileKind::File, mode, request.uid, request.gid, 0, Content::Data(Vec::new()));
        state.node(NodeId(node))?.attr.links = 0;
        Ok((state.entry(node)?, state.open(node)?))
    }

    async fn read(&self, _: &Request, node: NodeId, _: FileHandle, offset: u64, len_bytes: u32) -> Result<Vec<Bytes>> {
        let mut state = self.state();
        let data = state.node(node)?.content.data()?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        let end = data.len().min(start + len_bytes as usize);
        // In pieces, as a filesystem of blocks would.
        Ok(data[start..end].chunks(4096).map(Bytes::copy_from_slice).collect())
    }

    async fn write(
        &self,
        _: &Request,
        node: NodeId,
        _: FileHandle,
        offset: u64,
        data: Bytes,
        how: WriteHow,
    ) -> Result<u32> {
        let mut state = self.state();
        state.seen.write_bytes_max = state.seen.write_bytes_max.max(data.len());
        if data.len() >= 4096 && !weft_reactor::is_aligned(&data) {
            state.seen.writes_unaligned += 1;
        }
        let now = state.tick();
        let node = state.node(node)?;
        let append = how.flags & libc::O_APPEND != 0 && !how.from_page_cache;
        let start =
            if append { node.content.data()?.len() } else { usize::try_from(offset).map_err(|_| Errno::EFBIG)? };
        let end = start + data.len();
        if end > node.content.data()?.len() {
            resize(node, end)?;
        }
        node.content.data()?[start..end].copy_from_slice(&data);
        node.attr.mtime_ns = now;
        Ok(data.len() as u32)
    }

    async fn flush(&self, _: &Request, node: NodeId, handle: FileHandle, owner: LockOwner) -> Result<()> {
        let all = Lock { typ: LockType::Unlock, start: 0, end: u64::MAX, pid: 0 };
        self.set(node, handle, LockRequest { kind: LockKind::Record, owner, lock: all });
        Ok(())
    }

    async fn release(&self, _: &Request, node: NodeId, handle: FileHandle, _: ReleaseHow) -> Result<()> {
        for held in self.locks.borrow_mut().values_mut() {
            held.retain(|held| held.handle != handle);
        }
        self.unlocked.notify_all();
        let mut state = self.state();
        state.seen.releases += 1;
        state.node(node)?.opens -= 1;
        state.collect(node.0);
        Ok(())
    }

    async fn fsync(&self, _: &Request, _: NodeId, _: FileHandle, _: bool) -> Result<()> {
        Ok(())
    }

    async fn readdir(
        &self,
        _: &Request,
        node: NodeId,
        _: FileHandle,
        cookie: u64,
        buffer: &mut DirBuffer,
    ) -> Result<()> {
        let mut state = self.state();
        let mut list = Vec::new();
        match &state.node(node)?.content {
            Content::Entries { by_cookie, parent, .. } => {
                list.push((1, b".".to_vec(), node.0));
                list.push((2, b"..".to_vec(), *parent));
                let entries = by_cookie.range(cookie.max(2) + 1..).take(buffer.entries_max());
                list.extend(entries.map(|(cookie, (name, node))| (*cookie, name.clone(), *node)));
            }
            _ => return Err(Errno::ENOTDIR),
        }
        for (own_cookie, name, child) in list.into_iter().filter(|(own_cookie, ..)| *own_cookie > cookie) {
            let attr = state.node(NodeId(child))?.attr;
            let entry = DirEntry { inode: child, kind: attr.kind, cookie: own_cookie, name: &name };
            let pushed = if buffer.wants_attrs() && own_cookie > 2 {
                let found =
                    Entry { node: NodeId(child), attr, attr_valid: Duration::ZERO, entry_valid: Duration::ZERO };
                let pushed = buffer.push_plus(&entry, &found);
                if pushed.is_ok() {
                    state.node(NodeId(child))?.lookups += 1;
                }
                pushed
            } else {
                buffer.push(&entry)
            };
            if pushed == Err(Full) {
                break;
            }
        }
        Ok(())
    }

    async fn statfs(&self, _: &Request, _: NodeId) -> Result<StatFs> {
        Ok(StatFs {
            block_bytes: 4096,
            blocks: 1000,
            blocks_free: 500,
            blocks_available: 400,
            name_bytes_max: 255,
            ..StatFs::default()
        })
    }

    async fn syncfs(&self, _: &Request) -> Result<()> {
        Ok(())
    }

    async fn setxattr(&self, _: &Request, node: NodeId, name: &[u8], value: &[u8], how: XattrHow) -> Result<()> {
        let mut state = self.state();
        let xattrs = &mut state.node(node)?.xattrs;
        match (how.flags, xattrs.contains_key(name)) {
            (libc::XATTR_CREATE, true) => return Err(Errno::EEXIST),
            (libc::XATTR_REPLACE, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    async fn getxattr(&self, _: &Request, node: NodeId, name: &[u8]) -> Result<Bytes> {
        let mut state = self.state();
        state.node(node)?.xattrs.get(name).map(|value| Bytes::copy_from_slice(value)).ok_or(Errno::ENODATA)
    }

    async fn listxattr(&self, _: &Request, node: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.state().node(node)?.xattrs.keys().cloned().collect())
    }

    async fn removexattr(&self, _: &Request, node: NodeId, name: &[u8]) -> Result<()> {
        self.state().node(node)?.xattrs.remove(name).map(|_| ()).ok_or(Errno::ENODATA)
    }

    async fn getlk(&self, _: &Request, node: NodeId, _: FileHandle, ask: LockRequest) -> Result<Option<Lock>> {
        Ok(self.conflict(node, &ask).map(|held| held.lock))
    }

    async fn setlk(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        ask: LockRequest,
        wait: bool,
    ) -> Result<()> {
        if self.thread != 0 {
            self.state().seen.locks_astray += 1;
        }
        while ask.lock.typ != LockType::Unlock && self.conflict(node, &ask).is_some() {
            if !wait {
                return Err(Errno::EAGAIN);
            }
            if request.interrupt.is_raised() {
                self.state().seen.interrupts += 1;
                return Err(Errno::EINTR);
            }
            select(self.unlocked.notified(), request.interrupt.raised()).await;
        }
        self.set(node, handle, ask);
        Ok(())
    }

    async fn fallocate(
        &self,
        _: &Request,
        node: NodeId,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<()> {
        let mut state = self.state();
        let node = state.node(node)?;
        let (start, end) = (offset as usize, (offset + len) as usize);
        match mode {
            0 if end > node.content.data()?.len() => resize(node, end),
            0 => Ok(()),
            mode if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => {
                let data = node.content.data()?;
                let end = end.min(data.len());
                data[start.min(end)..end].fill(0);
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    async fn lseek(&self, _: &Request, node: NodeId, _: FileHandle, offset: u64, whence: i32) -> Result<u64> {
        let size = self.state().node(node)?.attr.size_bytes;
        match whence {
            _ if offset >= size => Err(Errno::ENXIO),
            libc::SEEK_DATA => Ok(offset),
            _ => Ok(size),
        }
    }
}
