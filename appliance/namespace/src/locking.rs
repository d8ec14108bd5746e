//! Requests for locks. The table is in memory, at the inode's leader; see `sessions` for what happens when the leader
//! or a client goes.

use crate::locks::{Locks, Owner, Taken, Target};
use crate::{Call, Namespace, Outcome, errno};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_reactor::sync::{Completer, completion};
use weft_wire::fs::{FsError, FsReply, Lock, LockKind, LockType};
use weft_wire::{ClientId, FsId, InodeId};

#[derive(Default)]
pub struct Locking {
    locks: Locks,
    waiting: BTreeMap<u64, Completer<Result<(), FsError>>>,
}

impl Locking {
    /// Tells those who were granted what they waited for.
    fn tell(&mut self) {
        for id in self.locks.take_granted() {
            if let Some(completer) = self.waiting.remove(&id) {
                completer.complete(Ok(()));
            }
        }
    }
}

/// A place in the queue, left when the request is given up.
struct Place<'a> {
    locking: &'a RefCell<Locking>,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut locking = self.locking.borrow_mut();
        locking.locks.forget(self.id);
        locking.waiting.remove(&self.id);
    }
}

impl Namespace {
    pub(crate) async fn set_lock(self: &Rc<Self>, call: &Call, number: InodeId, lock: Lock, wait: bool) -> Outcome {
        if lock.start > lock.end {
            return Err(errno::EINVAL);
        }
        let target = Target::new(call.fs, number, lock.kind);
        let owner = Owner { client: call.client, token: lock.owner };
        if lock.typ != LockType::Unlock {
            self.inode(call, number).await?;
            if self.sessions.borrow().locks_in_grace() {
                return Err(FsError::NotReady("clients are telling their locks to the new leader".into()));
            }
            // It stands on P+1 before the answer leaves.
            self.list_holder(call.client, true).await?;
            let obstacle = self.locking.borrow().locks.test(target, owner, &lock);
            if obstacle.is_some() {
                // Those who are gone for good stand in nobody's way.
                self.end_sessions().await.map_err(errno::of_bucket)?;
            }
        }
        let request = call.ticket.as_ref().map_or(0, |ticket| ticket.sequence);
        let pending = {
            let mut locking = self.locking.borrow_mut();
            let taken = locking.locks.set(target, owner, lock, wait.then_some(request));
            locking.tell();
            match taken {
                Taken::Granted => return Ok((FsReply::Done, Bytes::new())),
                Taken::Conflict => return Err(errno::EAGAIN),
                Taken::Deadlock => return Err(errno::EDEADLK),
                Taken::Full => return Err(errno::ENOLCK),
                Taken::Waits(id) => {
                    let (completer, pending) = completion();
                    locking.waiting.insert(id, completer);
                    (Place { locking: &self.locking, id }, pending)
                }
            }
        };
        let (_place, pending) = pending;
        match pending.await {
            Ok(outcome) => outcome.map(|()| (FsReply::Done, Bytes::new())),
            Err(_) => Err(errno::EINTR),
        }
    }

    pub(crate) async fn test_lock(&self, call: &Call, number: InodeId, lock: Lock) -> Outcome {
        self.inode(call, number).await?;
        if self.sessions.borrow().locks_in_grace() {
            return Err(FsError::NotReady("clients are telling their locks to the new leader".into()));
        }
        let target = Target::new(call.fs, number, lock.kind);
        let owner = Owner { client: call.client, token: lock.owner };
        let found = self.locking.borrow().locks.test(target, owner, &lock);
        Ok((FsReply::Lock(found), Bytes::new()))
    }

    pub(crate) fn cancel_lock(&self, call: &Call, number: InodeId, token: u64, request: u64) -> Outcome {
        let owner = Owner { client: call.client, token };
        for kind in [LockKind::Record, LockKind::Flock] {
            let mut locking = self.locking.borrow_mut();
            for id in locking.locks.cancel(Target::new(call.fs, number, kind), owner, request) {
                if let Some(completer) = locking.waiting.remove(&id) {
                    completer.complete(Err(errno::EINTR));
                }
            }
        }
        Ok((FsReply::Done, Bytes::new()))
    }

    pub(crate) fn release_locks(&self, call: &Call, number: InodeId, kind: LockKind, token: u64) -> Outcome {
        let owner = Owner { client: call.client, token };
        let all = Lock { kind, typ: LockType::Unlock, start: 0, end: u64::MAX, owner: token, pid: 0 };
        let mut locking = self.locking.borrow_mut();
        locking.locks.set(Target::new(call.fs, number, kind), owner, all, None);
        locking.tell();
        Ok((FsReply::Done, Bytes::new()))
    }

    /// A lock that its owner had from the former leader. False: somebody else has it now.
    pub(crate) fn reassert(&self, fs: FsId, number: InodeId, owner: Owner, lock: Lock) -> bool {
        let target = Target::new(fs, number, lock.kind);
        lock.start <= lock.end && self.locking.borrow_mut().locks.set(target, owner, lock, None) == Taken::Granted
    }

    pub(crate) fn has_locks(&self, client: ClientId) -> bool {
        self.locking.borrow().locks.holds(client)
    }

    pub(crate) fn drop_locks(&self, client: ClientId) {
        let mut locking = self.locking.borrow_mut();
        for id in locking.locks.drop_client(client) {
            locking.waiting.remove(&id);
        }
        locking.tell();
    }
}
