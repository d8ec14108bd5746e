//! Weft as a [`Filesystem`]: each thread of a session has an engine of its own, with its own client id and its own
//! socket; nothing is shared between them and nothing is cached.
//!
//! The kernel's node numbers are inode numbers, except that the root is always 1; so there is no table to keep, and any
//! thread can serve any request. What is open or locked is the business of the first thread's client alone: an owner's
//! locks must be one client's for the leader to see who waits for whom, and end with the file that they were taken through.

mod convert;
mod killed;

use crate::dir_buffer::{DirBuffer, DirEntry};
use crate::filesystem::*;
use crate::request::Operation;
use bytes::Bytes;
use convert::Numbers;
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use weft_client::{Client, ConnectError, ConnectOptions, OpenMode};
use weft_link::udp::UdpLink;
use weft_reactor::sync::Watch;
use weft_reactor::{Either, Handle, select};
use weft_transport::rpc::{Network, Rpc, RpcOptions};
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, NewNode, XattrMode};
use weft_wire::limits::{BLOCK_BYTES, NAME_BYTES_MAX};

/// Pause before a connection that failed is tried again.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
/// Cookies of "." and "..": lower than those of any name.
const COOKIE_DOT: u64 = 1;
const COOKIE_DOT_DOT: u64 = 2;
const READDIR_ENTRIES_MAX: usize = 1024;
/// The thread whose client has the open files and the locks.
const HOLDER: usize = 0;
/// Nothing may be used twice without asking, as long as no lease says that nobody changes it.
const VALID: Duration = Duration::ZERO;

/// The address of this host from which `peer` is reached.
pub fn local_address(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// A network of this thread's own, on the address that routes to the first of `peers` that can be reached.
pub fn network(handle: &Handle, peers: &[SocketAddr]) -> io::Result<Rc<dyn Network>> {
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for peer in peers {
        match local_address(*peer) {
            Ok(address) => {
                let link = UdpLink::bind(SocketAddr::new(address, 0))?;
                let rpc = Rpc::new(handle.clone(), Box::new(link), RpcOptions::default());
                handle.add_poller(rpc.poller());
                return Ok(rpc);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[derive(Clone)]
enum Engine {
    Connecting,
    Connected(Rc<Client>),
    /// For good.
    Failed,
}

/// One thread's view of a mounted Weft filesystem.
pub struct Weft {
    handle: Handle,
    fail_after: Option<Duration>,
    engine: Watch<Engine>,
    next_handle: Cell<u64>,
    /// Owners of record locks, by the open file that they were taken through. A process's own end as it closes the file;
    /// those of an open file end with it.
    lockers: RefCell<BTreeMap<(NodeId, FileHandle), BTreeSet<u64>>>,
}

/// The root as any thread last saw it: a process serves one mount.
static ROOT_SEEN: Mutex<Option<Attributes>> = Mutex::new(None);
/// The space likewise.
static SPACE_SEEN: Mutex<Option<StatFs>> = Mutex::new(None);

/// `umount` looks at the root and at the space first. So that it never hangs, they are shown as they were when the
/// cluster is away for so long.
const SEEN_AFTER: Duration = Duration::from_secs(2);

impl Weft {
    /// Connects in the background; operations wait for it.
    pub fn start(handle: &Handle, options: ConnectOptions) -> Rc<Self> {
        let weft = Rc::new(Self {
            handle: handle.clone(),
            fail_after: options.fail_after,
            engine: Watch::new(Engine::Connecting),
            next_handle: Cell::new(0),
            lockers: RefCell::default(),
        });
        handle.spawn("connect", Rc::clone(&weft).connect(options)).detach();
        weft
    }

    async fn connect(self: Rc<Self>, options: ConnectOptions) {
        loop {
            match network(&self.handle, &options.addresses) {
                Ok(network) => match Client::connect(network, self.handle.clone(), options.clone()).await {
                    Ok(client) => return self.engine.set(Engine::Connected(client)),
                    Err(error @ ConnectError::TimedOut { .. }) => tracing::warn!("{error}"),
                    Err(error) => {
                        tracing::error!("{error}");
                        return self.engine.set(Engine::Failed);
                    }
                },
                Err(error) => tracing::warn!("no way to the cluster: {error}"),
            }
            self.handle.sleep(CONNECT_AGAIN).await;
        }
    }

    async fn client(&self) -> Result<Rc<Client>> {
        loop {
            let version = self.engine.version();
            match self.engine.get() {
                Engine::Connected(client) => return Ok(client),
                Engine::Failed => return Err(Errno::EIO),
                Engine::Connecting => {}
            }
            let connected = self.engine.changed_since(version);
            match self.fail_after {
                None => connected.await,
                Some(limit) => self.handle.timeout(limit, connected).await.map_err(|_| Errno::EIO)?,
            }
        }
    }

    /// Does `work` for a caller until it is done or the caller is killed. What was given up has happened or never will.
    async fn serve<T>(
        &self,
        request: &Request,
        work: impl AsyncFnOnce(&Rc<Client>, Numbers) -> Result<T, weft_client::Errno>,
    ) -> Result<T> {
        let work = async {
            let client = self.client().await?;
            let numbers = Numbers { root: client.root() };
            work(&client, numbers).await.map_err(|errno| Errno::from_raw(errno.0))
        };
        match select(work, killed::killed(&self.handle, request)).await {
            Either::Left(outcome) => outcome,
            Either::Right(()) => Err(Errno::EINTR),
        }
    }

    /// What `fresh` finds, or what was found last if that takes too long.
    async fn or_as_seen<T: Copy>(&self, seen: &Mutex<Option<T>>, fresh: impl Future<Output = Result<T>>) -> Result<T> {
        let last = *seen.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = match last {
            None => fresh.await,
            Some(last) => match select(fresh, self.handle.sleep(SEEN_AFTER)).await {
                Either::Left(outcome) => outcome,
                Either::Right(()) => return Ok(last),
            },
        };
        if let Ok(found) = &outcome {
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(*found);
        }
        outcome
    }

    fn opened(&self) -> Opened {
        self.next_handle.set(self.next_handle.get() + 1);
        Opened { handle: FileHandle(self.next_handle.get()), caching: Caching::Direct }
    }

    /// The owners that took record locks through an open file and still may have them.
    fn take_lockers(&self, node: NodeId, handle: FileHandle) -> BTreeSet<u64> {
        self.lockers.borrow_mut().remove(&(node, handle)).unwrap_or_default()
    }

    /// An owner's locks of a file have ended.
    fn forget_locker(&self, node: NodeId, owner: LockOwner) {
        let mut lockers = self.lockers.borrow_mut();
        lockers.retain(|(other, _), owners| {
            if *other == node {
                owners.remove(&owner.0);
            }
            !owners.is_empty()
        });
    }
}

fn entry(numbers: Numbers, attr: &weft_wire::fs::Attr) -> Entry {
    let attr = numbers.attr(attr);
    Entry { node: NodeId(attr.inode), attr, attr_valid: VALID, entry_valid: VALID }
}

fn new_node(request: &Request, kind: FileKind, new: &NewFile) -> NewNode {
    let mode = new.mode as u16 & 0o7777;
    NewNode { kind, mode, umask: new.umask, rdev: new.rdev, caller: convert::caller(request), target: Vec::new() }
}

fn open_mode(how: &OpenHow) -> OpenMode {
    match how.flags & libc::O_TRUNC != 0 {
        true => OpenMode::Truncate { kill_setid: how.kill_setid },
        false => OpenMode::Keep,
    }
}

impl Filesystem for Weft {
    fn route(&self, operation: &Operation) -> Route {
        match operation {
            Operation::Open { .. }
            | Operation::Create { .. }
            | Operation::Tmpfile { .. }
            | Operation::Flush { .. }
            | Operation::Release { .. }
            | Operation::Getlk { .. }
            | Operation::Setlk { .. } => Route::Thread(HOLDER),
            _ => Route::Here,
        }
    }

    async fn destroy(&self) {
        if let Engine::Connected(client) = self.engine.get() {
            client.close().await;
        }
    }

    async fn lookup(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.serve(request, async |client, numbers| {
            let found = client.lookup(numbers.inode(parent), name).await?;
            Ok(entry(numbers, &found.attr))
        })
        .await
    }

    async fn getattr(&self, request: &Request, node: NodeId, _handle: Option<FileHandle>) -> Result<Attributes> {
        let fresh = self.serve(request, async |client, numbers| {
            let attr = client.stat(numbers.inode(node)).await?;
            Ok(Attributes { attr: numbers.attr(&attr), valid: VALID })
        });
        if node == NodeId::ROOT { self.or_as_seen(&ROOT_SEEN, fresh).await } else { fresh.await }
    }

    async fn setattr(
        &self,
        request: &Request,
        node: NodeId,
        _handle: Option<FileHandle>,
        set: SetAttr,
    ) -> Result<Attributes> {
        self.serve(request, async |client, numbers| {
            let attr = client.setattr(numbers.inode(node), convert::set_attr(set)).await?;
            Ok(Attributes { attr: numbers.attr(&attr), valid: VALID })
        })
        .await
    }

    async fn readlink(&self, request: &Request, node: NodeId) -> Result<Bytes> {
        self.serve(request, async |client, numbers| client.readlink(numbers.inode(node)).await.map(Bytes::from)).await
    }

    async fn symlink(&self, request: &Request, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        self.serve(request, async |client, numbers| {
            let caller = convert::caller(request);
            let node =
                NewNode { kind: FileKind::Symlink, mode: 0o777, umask: 0, rdev: 0, caller, target: target.to_vec() };
            Ok(entry(numbers, &client.make(numbers.inode(parent), name, node).await?))
        })
        .await
    }

    async fn mknod(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        let kind = crate::answer::kind_of_mode(new.mode).ok_or(Errno::EINVAL)?;
        self.serve(request, async |client, numbers| {
            let node = new_node(request, kind, &new);
            Ok(entry(numbers, &client.make(numbers.inode(parent), name, node).await?))
        })
        .await
    }

    async fn mkdir(&self, request: &Request, parent: NodeId, name: &[u8], new: NewFile) -> Result<Entry> {
        self.serve(request, async |client, numbers| {
            let node = new_node(request, FileKind::Directory, &new);
            Ok(entry(numbers, &client.make(numbers.inode(parent), name, node).await?))
        })
        .await
    }

    async fn unlink(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        self.serve(request, async |client, numbers| client.unlink(numbers.inode(parent), name).await).await
    }

    async fn rmdir(&self, request: &Request, parent: NodeId, name: &[u8]) -> Result<()> {
        self.serve(request, async |client, numbers| client.rmdir(numbers.inode(parent), name).await).await
    }

    async fn rename(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let mode = convert::rename_mode(flags).ok_or(Errno::EINVAL)?;
        self.serve(request, async |client, numbers| {
            client.rename(numbers.inode(parent), name, numbers.inode(new_parent), new_name, mode).await
        })
        .await
    }

    async fn link(&self, request: &Request, node: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        self.serve(request, async |client, numbers| {
            let attr = client.link(numbers.inode(node), numbers.inode(new_parent), new_name).await?;
            Ok(entry(numbers, &attr))
        })
        .await
    }

    async fn open(&self, request: &Request, node: NodeId, how: OpenHow) -> Result<Opened> {
        self.serve(request, async |client, numbers| {
            client.open(numbers.inode(node), open_mode(&how)).await?;
            Ok(self.opened())
        })
        .await
    }

    async fn create(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
        new: NewFile,
        how: OpenHow,
    ) -> Result<(Entry, Opened)> {
        self.serve(request, async |client, numbers| {
            let node = new_node(request, FileKind::File, &new);
            let exclusive = how.flags & libc::O_EXCL != 0;
            let found = client.create(numbers.inode(parent), name, node, exclusive, open_mode(&how)).await?;
            if found.attr.kind != FileKind::File {
                // Someone else made something that isn't a file meanwhile: the kernel looks again.
                return Err(weft_client::Errno::ESTALE);
            }
            Ok((entry(numbers, &found.attr), self.opened()))
        })
        .await
    }

    async fn tmpfile(&self, request: &Request, parent: NodeId, new: NewFile, _how: OpenHow) -> Result<(Entry, Opened)> {
        self.serve(request, async |client, numbers| {
            let node = new_node(request, FileKind::File, &new);
            let attr = client.create_unnamed(numbers.inode(parent), node).await?;
            Ok((entry(numbers, &attr), self.opened()))
        })
        .await
    }

    async fn read(
        &self,
        request: &Request,
        node: NodeId,
        _handle: FileHandle,
        offset: u64,
        len_bytes: u32,
    ) -> Result<Vec<Bytes>> {
        self.serve(request, async |client, numbers| client.read(numbers.inode(node), offset, len_bytes).await).await
    }

    async fn write(
        &self,
        request: &Request,
        node: NodeId,
        _handle: FileHandle,
        offset: u64,
        data: Bytes,
        how: WriteHow,
    ) -> Result<u32> {
        self.serve(request, async |client, numbers| {
            let inode = numbers.inode(node);
            let written = match how.flags & libc::O_APPEND != 0 && !how.from_page_cache {
                true => client.append(inode, data, how.kill_setid).await?,
                false => client.write(inode, offset, data, how.kill_setid).await?,
            };
            Ok(written as u32)
        })
        .await
    }

    async fn flush(&self, request: &Request, node: NodeId, _handle: FileHandle, owner: LockOwner) -> Result<()> {
        self.forget_locker(node, owner);
        self.serve(request, async |client, numbers| {
            client.release_locks(numbers.inode(node), weft_wire::fs::LockKind::Record, owner.0).await
        })
        .await
    }

    async fn release(&self, request: &Request, node: NodeId, handle: FileHandle, how: ReleaseHow) -> Result<()> {
        let record = self.take_lockers(node, handle);
        self.serve(request, async |client, numbers| {
            let inode = numbers.inode(node);
            client.release(inode);
            for owner in record {
                client.release_locks(inode, weft_wire::fs::LockKind::Record, owner).await?;
            }
            match how.flock_owner {
                Some(owner) => client.release_locks(inode, weft_wire::fs::LockKind::Flock, owner.0).await,
                None => Ok(()),
            }
        })
        .await
    }

    async fn fsync(&self, request: &Request, _node: NodeId, _handle: FileHandle, _data_only: bool) -> Result<()> {
        self.serve(request, async |client, _| client.fsync()).await
    }

    async fn readdir(
        &self,
        request: &Request,
        node: NodeId,
        _handle: FileHandle,
        cookie: u64,
        buffer: &mut DirBuffer,
    ) -> Result<()> {
        self.serve(request, async |client, numbers| {
            let dir = numbers.inode(node);
            let kind = FileKind::Directory;
            if cookie < COOKIE_DOT {
                let dot = DirEntry { inode: node.0, kind, cookie: COOKIE_DOT, name: b"." };
                if buffer.push(&dot).is_err() {
                    return Ok(());
                }
            }
            if cookie < COOKIE_DOT_DOT {
                let parent = if node == NodeId::ROOT { dir } else { parent(client, dir).await? };
                let dots = DirEntry { inode: numbers.node(parent).0, kind, cookie: COOKIE_DOT_DOT, name: b".." };
                if buffer.push(&dots).is_err() {
                    return Ok(());
                }
            }
            let mut after = if cookie <= COOKIE_DOT_DOT { 0 } else { cookie };
            loop {
                let entries_max = buffer.entries_max().clamp(1, READDIR_ENTRIES_MAX) as u32;
                let listing = client.readdir(dir, after, entries_max).await?;
                for found in &listing.entries {
                    let inode = numbers.node(found.inode).0;
                    let entry = DirEntry { inode, kind: found.kind, cookie: found.cookie, name: &found.name };
                    if buffer.push(&entry).is_err() {
                        return Ok(());
                    }
                    after = found.cookie;
                }
                if listing.end || listing.entries.is_empty() {
                    return Ok(());
                }
            }
        })
        .await
    }

    async fn fsyncdir(&self, request: &Request, _node: NodeId, _handle: FileHandle, _data_only: bool) -> Result<()> {
        self.serve(request, async |client, _| client.fsync()).await
    }

    async fn syncfs(&self, request: &Request) -> Result<()> {
        self.serve(request, async |client, _| client.fsync()).await
    }

    async fn statfs(&self, request: &Request, _node: NodeId) -> Result<StatFs> {
        let fresh = self.serve(request, async |client, _| {
            let space = client.statfs().await?;
            Ok(StatFs {
                block_bytes: BLOCK_BYTES as u32,
                blocks: space.blocks,
                blocks_free: space.blocks_free,
                blocks_available: space.blocks_available,
                files: space.files,
                files_free: 0,
                name_bytes_max: NAME_BYTES_MAX as u32,
            })
        });
        self.or_as_seen(&SPACE_SEEN, fresh).await
    }

    async fn setxattr(&self, request: &Request, node: NodeId, name: &[u8], value: &[u8], how: XattrHow) -> Result<()> {
        let mode = match how.flags {
            0 => XattrMode::Either,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.serve(request, async |client, numbers| {
            client.setxattr(numbers.inode(node), name, value, mode, how.kill_setgid).await
        })
        .await
    }

    async fn getxattr(&self, request: &Request, node: NodeId, name: &[u8]) -> Result<Bytes> {
        self.serve(request, async |client, numbers| client.getxattr(numbers.inode(node), name).await.map(Bytes::from))
            .await
    }

    async fn listxattr(&self, request: &Request, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.serve(request, async |client, numbers| client.listxattr(numbers.inode(node)).await).await
    }

    async fn removexattr(&self, request: &Request, node: NodeId, name: &[u8]) -> Result<()> {
        self.serve(request, async |client, numbers| client.removexattr(numbers.inode(node), name).await).await
    }

    async fn getlk(
        &self,
        request: &Request,
        node: NodeId,
        _handle: FileHandle,
        ask: LockRequest,
    ) -> Result<Option<Lock>> {
        self.serve(request, async |client, numbers| {
            let found = client.test_lock(numbers.inode(node), convert::lock(&ask)).await?;
            Ok(found.as_ref().map(convert::lock_found))
        })
        .await
    }

    async fn setlk(
        &self,
        request: &Request,
        node: NodeId,
        handle: FileHandle,
        ask: LockRequest,
        wait: bool,
    ) -> Result<()> {
        if ask.kind == LockKind::Record && ask.lock.typ != LockType::Unlock {
            self.lockers.borrow_mut().entry((node, handle)).or_default().insert(ask.owner.0);
        }
        let set = self.serve(request, async |client, numbers| {
            client.set_lock(numbers.inode(node), convert::lock(&ask), wait).await
        });
        if !wait {
            return set.await;
        }
        // Any signal ends this wait, also one that is caught.
        match select(set, request.interrupt.raised()).await {
            Either::Left(outcome) => outcome,
            Either::Right(()) => Err(Errno::EINTR),
        }
    }

    async fn fallocate(
        &self,
        request: &Request,
        node: NodeId,
        _handle: FileHandle,
        offset: u64,
        len_bytes: u64,
        mode: i32,
    ) -> Result<()> {
        let mode = convert::fallocate_mode(mode).ok_or(Errno::EOPNOTSUPP)?;
        self.serve(request, async |client, numbers| {
            client.fallocate(numbers.inode(node), offset, len_bytes, mode).await
        })
        .await
    }

    async fn lseek(
        &self,
        request: &Request,
        node: NodeId,
        _handle: FileHandle,
        offset: u64,
        whence: i32,
    ) -> Result<u64> {
        let target = convert::seek_target(whence).ok_or(Errno::EINVAL)?;
        self.serve(request, async |client, numbers| client.seek(numbers.inode(node), offset, target).await).await
    }
}

async fn parent(client: &Rc<Client>, dir: InodeId) -> Result<InodeId, weft_client::Errno> {
    match client.lookup(dir, b"..").await {
        Ok(found) => Ok(found.attr.inode),
        // A directory that was removed lists nothing but itself.
        Err(weft_client::Errno::ENOENT | weft_client::Errno::ESTALE) => Ok(dir),
        Err(errno) => Err(errno),
    }
}
