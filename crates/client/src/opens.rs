//! Which inodes applications have open: the inode's leader knows it of each client, so that what is unlinked lives
//! until it is closed.
//!
//! The leader is told of the first open and of the last close, the latter in the background. Both take turns per inode,
//! so that a late release never undoes a new open. A leader keeps this in memory: a new one is told again.

use crate::client::{Client, unexpected};
use crate::errno::Errno;
use crate::tunables::PARALLEL_MAX;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use weft_reactor::join_all;
use weft_reactor::sync::{Mutex, Watch};
use weft_wire::fs::{Attr, FsOp, FsReply};
use weft_wire::map::Map;
use weft_wire::{BucketId, Epoch, InodeId};

/// What becomes of a file's contents at open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    Keep,
    /// O_TRUNC. `kill_setid`: by an ordinary user.
    Truncate {
        kill_setid: bool,
    },
}

#[derive(Default)]
pub(crate) struct Opens {
    inodes: RefCell<BTreeMap<InodeId, Rc<OpenInode>>>,
}

/// Whether the leader knows that this client has an inode open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    No,
    /// It was asked, and what became of that is not known: it is to be told of the close, and asked by the next who opens.
    Maybe,
    Yes,
}

struct OpenInode {
    /// Open files of this client.
    files: Cell<u64>,
    /// Held while the leader is being told.
    known: Mutex<Known>,
}

impl Opens {
    fn get(&self, inode: InodeId) -> Rc<OpenInode> {
        let new = || Rc::new(OpenInode { files: Cell::new(0), known: Mutex::new(Known::No) });
        Rc::clone(self.inodes.borrow_mut().entry(inode).or_insert_with(new))
    }

    /// Forgets an inode that nobody has open and the leader doesn't know as open.
    fn tidy(&self, inode: InodeId) {
        let mut inodes = self.inodes.borrow_mut();
        let idle = |open: &Rc<OpenInode>| {
            open.files.get() == 0
                && Rc::strong_count(open) == 1
                && open.known.try_lock().is_some_and(|known| *known == Known::No)
        };
        if inodes.get(&inode).is_some_and(idle) {
            inodes.remove(&inode);
        }
    }

    pub fn all(&self) -> Vec<InodeId> {
        self.inodes.borrow().keys().copied().collect()
    }
}

/// Takes an open file back unless it is kept: an open that failed or was given up.
struct Counted<'a> {
    client: &'a Rc<Client>,
    inode: InodeId,
    kept: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.client.release(self.inode);
        }
    }
}

impl Client {
    /// Opens a file. Each success is followed by one [`Client::release`]. The attributes are there if the leader was asked.
    pub async fn open(self: &Rc<Self>, inode: InodeId, mode: OpenMode) -> Result<Option<Attr>, Errno> {
        self.check_fenced()?;
        let open = self.opens.get(inode);
        open.files.set(open.files.get() + 1);
        let mut counted = Counted { client: self, inode, kept: false };
        let mut known = open.known.lock().await;
        let mut attr = None;
        if *known != Known::Yes || mode != OpenMode::Keep {
            // From here on it may be registered, whatever becomes of the answer.
            *known = Known::Maybe;
            let told = self.tell_open(inode, mode).await;
            match told {
                Ok(_) => *known = Known::Yes,
                // It is gone: whoever waited for this open must not take it for open.
                Err(Errno::ESTALE) => *known = Known::No,
                Err(_) => {}
            }
            attr = Some(told?);
        }
        counted.kept = true;
        Ok(attr)
    }

    async fn tell_open(&self, inode: InodeId, mode: OpenMode) -> Result<Attr, Errno> {
        self.may_hold(inode);
        let answer = match mode {
            OpenMode::Keep => {
                self.ask(inode.position(), FsOp::Open { inode, truncate: false, kill_setid: false }).await?
            }
            OpenMode::Truncate { kill_setid } => {
                self.inode_change(inode, FsOp::Open { inode, truncate: true, kill_setid }).await?
            }
        };
        match answer {
            (FsReply::Attr(attr), _) => {
                self.learn(&attr);
                Ok(attr)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Registers an open file that the leader knows of already.
    pub(crate) fn opened(&self, inode: InodeId) {
        self.may_hold(inode);
        let open = self.opens.get(inode);
        open.files.set(open.files.get() + 1);
        if let Some(mut known) = open.known.try_lock() {
            *known = Known::Yes;
        }
    }

    /// An open file was closed. The leader hears of the last one in the background.
    pub fn release(self: &Rc<Self>, inode: InodeId) {
        let open = self.opens.get(inode);
        open.files.set(open.files.get().saturating_sub(1));
        if open.files.get() > 0 {
            return;
        }
        let client = Rc::clone(self);
        let tell = async move {
            {
                let mut known = open.known.lock().await;
                if open.files.get() == 0 && *known != Known::No {
                    // An inode that is gone, or a leader that gave us up, needs no release.
                    let told = client.send_in_background(inode, FsOp::Release { inode }).await;
                    tracing::trace!(%inode, ok = told.is_ok(), "released");
                    *known = Known::No;
                }
            }
            drop(open);
            client.opens.tidy(inode);
            if client.opens.inodes.borrow().get(&inode).is_none() {
                client.generations.borrow_mut().remove(&inode);
            }
        };
        self.handle.spawn("release", tell).detach();
    }

    /// Tells the leader of a bucket what is open there.
    pub(crate) async fn open_again(&self, bucket: BucketId) {
        let Some(map) = self.follower.map() else { return };
        let here = |inode: &InodeId| map.bucket_of(inode.position()) == bucket;
        let inodes: Vec<InodeId> = self.opens.all().into_iter().filter(here).collect();
        for some in inodes.chunks(PARALLEL_MAX) {
            let tell = some.iter().map(|inode| async move {
                let open = self.opens.inodes.borrow().get(inode).cloned();
                let Some(open) = open else { return };
                let known = open.known.lock().await;
                if open.files.get() > 0
                    && *known != Known::No
                    && let Err(error) = self.tell_open(*inode, OpenMode::Keep).await
                {
                    tracing::warn!(%inode, %error, "an open file was lost with its leader");
                }
            });
            join_all(tell).await;
        }
    }
}

/// Watches for buckets with new epochs.
pub(crate) async fn reopen(client: Weak<Client>, watch: Watch<Option<Rc<Map>>>) {
    let mut epochs: BTreeMap<BucketId, Epoch> = BTreeMap::new();
    loop {
        let version = watch.version();
        if let Some(map) = watch.get() {
            let mut changed = BTreeSet::new();
            for (index, bucket) in map.buckets.iter().enumerate() {
                let id = BucketId(index as u32);
                if epochs.insert(id, bucket.epoch).is_some_and(|before| before != bucket.epoch) {
                    changed.insert(id);
                }
            }
            if !changed.is_empty() {
                let Some(client) = client.upgrade() else { return };
                let handle = client.handle.clone();
                handle.spawn("tell what is held", async move { client.tell_holds(&changed).await }).detach();
            }
        }
        watch.changed_since(version).await;
    }
}
