//! Locks, held by the inode's leader.
//!
//! Requests for locks carry no number: asking twice for the same lock is like asking once, and one that waits for hours
//! must not hold back the numbers of others. What happens to a request that its caller gave up is seen to in the
//! background: whatever it is granted then goes back.

use crate::client::{Client, unexpected};
use crate::errno::Errno;
use crate::request::{Effect, Failure};
use bytes::Bytes;
use std::rc::Rc;
use weft_reactor::Task;
use weft_wire::InodeId;
use weft_wire::fs::{FsOp, FsReply, Lock, LockKind, LockType};

type Outcome = Result<(), Failure>;

/// A request for a lock whose caller may go away.
struct Asked<'a> {
    client: &'a Rc<Client>,
    inode: InodeId,
    lock: Lock,
    wait: bool,
    answer: Option<Task<Outcome>>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let (client, inode, lock, wait) = (Rc::clone(self.client), self.inode, self.lock, self.wait);
        let give_up = async move {
            if wait {
                let cancel = FsOp::CancelLock { inode, owner: lock.owner, waiting: 0 };
                let told = client.send(inode.position(), cancel, Bytes::new(), Effect::None).await;
                tracing::trace!(%inode, ok = told.is_ok(), "gave up waiting for a lock");
            }
            if !matches!(answer.await, Ok(Ok(()))) {
                return;
            }
            if client.held.has(inode, lock.kind, lock.owner) {
                // Its owner has other locks there; this one goes with them.
                client.held.set(inode, lock);
            } else {
                let given_back = client.unlock(inode, Lock { typ: LockType::Unlock, ..lock }).await;
                tracing::trace!(%inode, ok = given_back.is_ok(), "gave back a lock that nobody waits for");
            }
        };
        self.client.handle.spawn("give up a lock", give_up).detach();
    }
}

impl Client {
    /// Takes or gives back a lock. `wait`: however long it takes; dropping the future gives up.
    pub async fn set_lock(self: &Rc<Self>, inode: InodeId, lock: Lock, wait: bool) -> Result<(), Errno> {
        if lock.typ == LockType::Unlock {
            return self.unlock(inode, lock).await;
        }
        self.may_hold(inode);
        let client = Rc::clone(self);
        let ask = async move {
            let op = FsOp::SetLock { inode, lock, wait };
            client.send(inode.position(), op, Bytes::new(), Effect::None).await.map(drop)
        };
        let task = self.handle.spawn("set lock", ask);
        let mut asked = Asked { client: self, inode, lock, wait, answer: Some(task) };
        let Some(answer) = asked.answer.as_mut() else { return Err(Errno::EIO) };
        let outcome = answer.await.unwrap_or(Err(Failure::Errno(Errno::EIO)));
        asked.answer = None;
        outcome?;
        self.held.set(inode, lock);
        Ok(())
    }

    async fn unlock(&self, inode: InodeId, lock: Lock) -> Result<(), Errno> {
        self.told(inode).await;
        self.held.set(inode, lock);
        let op = FsOp::SetLock { inode, lock, wait: false };
        let answer = self.send(inode.position(), op, Bytes::new(), Effect::None).await;
        answer.map(drop).map_err(Errno::from)
    }

    /// What stands in the way of a lock.
    pub async fn test_lock(&self, inode: InodeId, lock: Lock) -> Result<Option<Lock>, Errno> {
        match self.ask(inode.position(), FsOp::TestLock { inode, lock }).await? {
            (FsReply::Lock(found), _) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives back all locks of an owner, if it has any.
    pub async fn release_locks(&self, inode: InodeId, kind: LockKind, owner: u64) -> Result<(), Errno> {
        if !self.held.has(inode, kind, owner) {
            return Ok(());
        }
        self.told(inode).await;
        self.held.release(inode, kind, owner);
        self.ask(inode.position(), FsOp::ReleaseLocks { inode, kind, owner }).await.map(drop)
    }
}
