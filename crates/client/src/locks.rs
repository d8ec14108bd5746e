//! Locks, held by the inode's leader.

use crate::client::{Client, unexpected};
use crate::errno::Errno;
use crate::request::Effect;
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::InodeId;
use weft_wire::fs::{FsOp, FsReply, Lock, LockKind, LockType};

/// Takes back a wait for a lock that was given up before it was answered.
struct Asked<'a> {
    client: &'a Rc<Client>,
    inode: InodeId,
    owner: u64,
    answered: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let (client, inode, owner) = (Rc::clone(self.client), self.inode, self.owner);
        let cancel = async move {
            // The number of the request is no news to the leader: an owner waits for one lock of an inode at a time.
            let op = FsOp::CancelLock { inode, owner, waiting: 0 };
            let told = client.change(inode.position(), op, Bytes::new()).await;
            tracing::trace!(%inode, ok = told.is_ok(), "gave up waiting for a lock");
        };
        self.client.handle.spawn("cancel lock", cancel).detach();
    }
}

impl Client {
    /// Takes or gives back a lock. `wait`: however long it takes; dropping the future gives up.
    pub async fn set_lock(self: &Rc<Self>, inode: InodeId, lock: Lock, wait: bool) -> Result<(), Errno> {
        if lock.typ == LockType::Unlock {
            drop(self.held.telling.lock().await);
            self.held.set(inode, lock);
        }
        let mut asked = Asked { client: self, inode, owner: lock.owner, answered: !wait };
        let op = FsOp::SetLock { inode, lock, wait };
        let outcome = self.send(inode.position(), op, Bytes::new(), Effect::Once).await;
        asked.answered = true;
        if outcome.is_ok() && lock.typ != LockType::Unlock {
            self.held.set(inode, lock);
        }
        outcome.map(drop).map_err(Errno::from)
    }

    /// What stands in the way of a lock.
    pub async fn test_lock(&self, inode: InodeId, lock: Lock) -> Result<Option<Lock>, Errno> {
        match self.ask(inode.position(), FsOp::TestLock { inode, lock }).await? {
            (FsReply::Lock(found), _) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives back all locks of an owner.
    pub async fn release_locks(&self, inode: InodeId, kind: LockKind, owner: u64) -> Result<(), Errno> {
        drop(self.held.telling.lock().await);
        self.held.release(inode, kind, owner);
        self.inode_change(inode, FsOp::ReleaseLocks { inode, kind, owner }).await.map(drop)
    }
}
