//! A client of one filesystem: what it knows, and the operations on names and inodes.

use crate::connect::{self, ConnectError, ConnectOptions, propose};
use crate::data::Heard;
use crate::errno::Errno;
use crate::extending::Extending;
use crate::follow::Follower;
use crate::opens::{OpenMode, Opens};
use crate::renew::Held;
use crate::report::Reports;
use crate::request::{Answer, Effect, Failure};
use crate::waiting::Waits;
use crate::window::Window;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::Watch;
use weft_reactor::{Handle, Instant, Task};
use weft_transport::rpc::Network;
use weft_wire::fs::{Attr, DirEntry, FileKind, FsOp, FsReply, NewNode, RenameMode, SetAttr, Space, XattrMode};
use weft_wire::manager::Proposal;
use weft_wire::map::Map;
use weft_wire::page::KnownPages;
use weft_wire::{BucketId, ClientId, FsId, InodeId};

/// One mount's way into one filesystem, for one thread.
///
/// Nothing is kept that another client could change. Each method waits until the cluster answers, unless
/// [`ConnectOptions::fail_after`] says otherwise; dropping its future ends the wait.
pub struct Client {
    pub(crate) network: Rc<dyn Network>,
    pub(crate) handle: Handle,
    pub(crate) follower: Follower,
    pub(crate) map_watch: Watch<Option<Rc<Map>>>,
    pub(crate) waits: Rc<Waits>,
    pub(crate) fail_after: Option<Duration>,
    pub(crate) id: ClientId,
    pub(crate) fs: FsId,
    root: InodeId,
    fenced: Cell<bool>,
    windows: RefCell<BTreeMap<BucketId, Rc<Window>>>,
    pub(crate) opens: Opens,
    /// What was heard of files beyond one slab. A server that knows a newer cut generation says so.
    pub(crate) generations: RefCell<BTreeMap<InodeId, Heard>>,
    pub(crate) extending: Extending,
    /// Where the names of directories with several pages are.
    pub(crate) pages: RefCell<KnownPages>,
    pub(crate) statfs: Cell<Option<(Instant, Space)>>,
    pub(crate) held: Held,
    pub(crate) reports: Reports,
    reopener: Cell<Option<Task<()>>>,
    renewer: Cell<Option<Task<()>>>,
}

/// A name that was found or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub attr: Attr,
    /// It was not there before.
    pub created: bool,
}

/// A part of a directory, and whether it ends there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<DirEntry>,
    pub end: bool,
}

/// A name whose inode is gone when it is asked for was removed in between; looked up again so often.
const VANISHED_TRIES_MAX: usize = 8;

impl Client {
    /// Finds the cluster and the filesystem and gets an id. Waits for a cluster that is away.
    pub async fn connect(
        network: Rc<dyn Network>,
        handle: Handle,
        options: ConnectOptions,
    ) -> Result<Rc<Self>, ConnectError> {
        let waits = Waits::new(handle.clone());
        let joined = connect::join(&network, &handle, &waits, &options).await?;
        tracing::info!(client = %joined.client, fs = %joined.fs, name = options.fs_name, "connected");
        let client = Rc::new(Self {
            network,
            handle: handle.clone(),
            map_watch: joined.follower.watch(),
            follower: joined.follower,
            waits,
            fail_after: options.fail_after,
            id: joined.client,
            fs: joined.fs,
            root: joined.root,
            fenced: Cell::new(false),
            windows: RefCell::default(),
            opens: Opens::default(),
            generations: RefCell::default(),
            extending: Extending::default(),
            pages: RefCell::default(),
            statfs: Cell::new(None),
            held: Held::default(),
            reports: Reports::default(),
            reopener: Cell::new(None),
            renewer: Cell::new(None),
        });
        let reopen = crate::opens::reopen(Rc::downgrade(&client), client.map_watch.clone());
        client.reopener.set(Some(handle.spawn("open again", reopen)));
        let renew = crate::renew::renew(Rc::downgrade(&client), handle.clone());
        client.renewer.set(Some(handle.spawn("renew", renew)));
        Ok(client)
    }

    pub fn id(&self) -> ClientId {
        self.id
    }

    pub fn fs(&self) -> FsId {
        self.fs
    }

    pub fn root(&self) -> InodeId {
        self.root
    }

    /// What operations wait for at present.
    pub fn waiting(&self) -> Option<String> {
        self.waits.describe()
    }

    /// Ends this client: closes what is open, gives the id back. Whatever is called afterwards fails.
    pub async fn close(&self) {
        self.fenced.set(true);
        for task in [self.reopener.take(), self.renewer.take()].into_iter().flatten() {
            task.abort();
        }
        let mut wait = self.waits.begin();
        let proposal = Proposal::RemoveClient { client: self.id };
        propose(&self.network, &self.handle, &self.follower, &proposal, &mut wait).await;
    }

    pub(crate) fn window(&self, bucket: BucketId) -> Rc<Window> {
        Rc::clone(self.windows.borrow_mut().entry(bucket).or_insert_with(Window::new))
    }

    /// The cluster serves it no more: it was silent for too long while it had locks.
    pub fn is_fenced(&self) -> bool {
        self.fenced.get()
    }

    pub(crate) fn check_fenced(&self) -> Result<(), Errno> {
        if self.fenced.get() { Err(Errno::ESTALE) } else { Ok(()) }
    }

    pub(crate) fn set_fenced(&self, client: ClientId) {
        if !self.fenced.replace(true) {
            tracing::error!(%client, "the cluster has cut this client off; unmount and mount again");
        }
    }

    pub(crate) async fn inode_change(&self, inode: InodeId, op: FsOp) -> Result<Answer, Errno> {
        self.change(inode.position(), op, Bytes::new()).await.map_err(Errno::from)
    }

    /// The attributes as the inode's leader has them: what the buckets of slabs have to say is in [`Client::stat`].
    pub async fn getattr(&self, inode: InodeId) -> Result<Attr, Errno> {
        self.getattr_of(inode, false).await
    }

    async fn getattr_of(&self, inode: InodeId, own: bool) -> Result<Attr, Errno> {
        match self.ask(inode.position(), FsOp::GetAttr { inode, own }).await? {
            (FsReply::Attr(attr), _) => {
                self.learn(&attr);
                Ok(attr)
            }
            other => Err(unexpected(&other)),
        }
    }

    pub async fn setattr(&self, inode: InodeId, set: SetAttr) -> Result<Attr, Errno> {
        match self.inode_change(inode, FsOp::SetAttr { inode, set }).await? {
            (FsReply::Attr(attr), _) => {
                self.learn(&attr);
                Ok(attr)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The inode that a name leads to; ".." works too. Of a large directory, size, links and times may be older than
    /// what [`Client::getattr`] says.
    pub async fn lookup(&self, dir: InodeId, name: &[u8]) -> Result<Found, Errno> {
        for _ in 0..VANISHED_TRIES_MAX {
            let op = FsOp::Lookup { dir, name: name.to_vec() };
            let answer = match name {
                b".." => self.ask(dir.position(), op).await?,
                _ => self.ask_name(dir, name, op).await?,
            };
            if let Some(found) = self.found(answer).await? {
                return Ok(found);
            }
        }
        Err(Errno::ENOENT)
    }

    /// The entry in an answer, with its attributes. `None`: the inode is gone.
    async fn found(&self, answer: Answer) -> Result<Option<Found>, Errno> {
        let (FsReply::Entry { inode, attr, created, .. }, _) = answer else { return Err(unexpected(&answer)) };
        let attr = match attr {
            Some(attr) => {
                self.learn(&attr);
                attr
            }
            None => match self.getattr_of(inode, true).await {
                Ok(attr) => attr,
                Err(Errno::ESTALE) => return Ok(None),
                Err(errno) => return Err(errno),
            },
        };
        Ok(Some(Found { attr, created }))
    }

    /// Makes a node that must not be there yet: anything but a file to be opened.
    pub async fn make(&self, dir: InodeId, name: &[u8], node: NewNode) -> Result<Attr, Errno> {
        let op = FsOp::Create { dir, name: name.to_vec(), node, exclusive: true, open: false };
        let answer = self.change_name(dir, name, op).await?;
        self.found(answer).await?.map(|found| found.attr).ok_or(Errno::ENOENT)
    }

    /// Makes a file, or opens what is there (as `mode` says) unless `exclusive`. Each success with a file is followed
    /// by one [`Client::release`]; what is there may be something else, and isn't open then.
    pub async fn create(
        self: &Rc<Self>,
        dir: InodeId,
        name: &[u8],
        node: NewNode,
        exclusive: bool,
        mode: OpenMode,
    ) -> Result<Found, Errno> {
        for _ in 0..VANISHED_TRIES_MAX {
            let node = node.clone();
            let op = FsOp::Create { dir, name: name.to_vec(), node, exclusive, open: true };
            let answer = self.change_name(dir, name, op).await?;
            let Some(mut found) = self.found(answer).await? else { continue };
            if found.created {
                self.opened(found.attr.inode);
                return Ok(found);
            }
            if found.attr.kind != FileKind::File {
                return Ok(found);
            }
            match self.open(found.attr.inode, mode).await {
                Ok(Some(attr)) => found.attr = attr,
                Ok(None) => {}
                Err(Errno::ESTALE) => continue,
                Err(errno) => return Err(errno),
            }
            return Ok(found);
        }
        Err(Errno::ENOENT)
    }

    /// A file without a name, open. Followed by one [`Client::release`].
    pub async fn create_unnamed(self: &Rc<Self>, dir: InodeId, node: NewNode) -> Result<Attr, Errno> {
        let answer = self.inode_change(dir, FsOp::CreateUnnamed { dir, node }).await?;
        let found = self.found(answer).await?.ok_or(Errno::ESTALE)?;
        self.opened(found.attr.inode);
        Ok(found.attr)
    }

    pub async fn link(&self, inode: InodeId, dir: InodeId, name: &[u8]) -> Result<Attr, Errno> {
        let answer = self.change_name(dir, name, FsOp::Link { inode, dir, name: name.to_vec() }).await?;
        self.found(answer).await?.map(|found| found.attr).ok_or(Errno::ENOENT)
    }

    pub async fn unlink(&self, dir: InodeId, name: &[u8]) -> Result<(), Errno> {
        let op = FsOp::Remove { dir, name: name.to_vec(), directory: false };
        self.change_name(dir, name, op).await.map(drop)
    }

    pub async fn rmdir(&self, dir: InodeId, name: &[u8]) -> Result<(), Errno> {
        let op = FsOp::Remove { dir, name: name.to_vec(), directory: true };
        self.change_name(dir, name, op).await.map(drop)
    }

    pub async fn rename(
        &self,
        dir: InodeId,
        name: &[u8],
        new_dir: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let op = FsOp::Rename { dir, name: name.to_vec(), new_dir, new_name: new_name.to_vec(), mode };
        self.change_name(dir, name, op).await.map(drop)
    }

    pub async fn readlink(&self, inode: InodeId) -> Result<Vec<u8>, Errno> {
        match self.ask(inode.position(), FsOp::ReadLink { inode }).await? {
            (FsReply::Bytes(target), _) => Ok(target),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn getxattr(&self, inode: InodeId, name: &[u8]) -> Result<Vec<u8>, Errno> {
        match self.ask(inode.position(), FsOp::GetXattr { inode, name: name.to_vec() }).await? {
            (FsReply::Bytes(value), _) => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    pub async fn listxattr(&self, inode: InodeId) -> Result<Vec<Vec<u8>>, Errno> {
        match self.ask(inode.position(), FsOp::ListXattr { inode }).await? {
            (FsReply::Names(names), _) => Ok(names),
            other => Err(unexpected(&other)),
        }
    }

    /// `kill_setgid`: an ACL set by someone who is not in the file's group.
    pub async fn setxattr(
        &self,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        kill_setgid: bool,
    ) -> Result<(), Errno> {
        let op = FsOp::SetXattr { inode, name: name.to_vec(), value: value.to_vec(), mode, kill_setgid };
        self.inode_change(inode, op).await.map(drop)
    }

    pub async fn removexattr(&self, inode: InodeId, name: &[u8]) -> Result<(), Errno> {
        self.inode_change(inode, FsOp::RemoveXattr { inode, name: name.to_vec() }).await.map(drop)
    }

    /// Everything acknowledged is durable already: there is nothing to do, unless the cluster has cut us off.
    pub fn fsync(&self) -> Result<(), Errno> {
        self.check_fenced()
    }

    /// One request of the reopener and of releases, for which nobody waits.
    pub(crate) async fn send_in_background(&self, inode: InodeId, op: FsOp) -> Result<Answer, Failure> {
        self.send(inode.position(), op, Bytes::new(), Effect::None).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        for task in [self.reopener.take(), self.renewer.take()].into_iter().flatten() {
            task.abort();
        }
    }
}

/// A reply of another kind than the request's: the peer is broken.
pub(crate) fn unexpected(answer: &Answer) -> Errno {
    tracing::error!(reply = ?answer.0, "a leader answered something else than what it was asked");
    Errno::EIO
}
