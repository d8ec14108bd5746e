//! What this client holds at the leaders of buckets, and telling them: now and then that it is still there, and a new
//! leader all that it had from the one before.

use crate::client::Client;
use crate::tunables::RENEW_TIMEOUT;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;
use weft_reactor::sync::Mutex;
use weft_reactor::{Handle, join_all};
use weft_wire::fs::{FsOp, FsReply, Holds, Lock, LockKind, LockType};
use weft_wire::limits::RENEW_SECONDS;
use weft_wire::locks::replace;
use weft_wire::map::Map;
use weft_wire::{BucketId, InodeId};

/// Locks that were granted.
#[derive(Default)]
pub(crate) struct Held {
    locks: RefCell<BTreeMap<InodeId, Vec<Lock>>>,
    /// An inode of each bucket that lists this client among those who may hold something: a new leader waits for its word,
    /// also if that is that it holds nothing.
    listed: RefCell<BTreeMap<BucketId, InodeId>>,
    /// Buckets whose present leader has not heard it yet.
    untold: RefCell<BTreeSet<BucketId>>,
    /// Buckets whose leaders are being told, so many times: that takes as long as they are away.
    being_told: RefCell<BTreeMap<BucketId, usize>>,
    /// Of each bucket, taken while its leader is told: what is given back meanwhile is given back after it.
    telling: RefCell<BTreeMap<BucketId, Rc<Mutex<()>>>>,
}

impl Held {
    fn telling(&self, bucket: BucketId) -> Rc<Mutex<()>> {
        let mut telling = self.telling.borrow_mut();
        Rc::clone(telling.entry(bucket).or_insert_with(|| Rc::new(Mutex::new(()))))
    }

    /// Takes note of what was granted, or is about to be given back.
    pub fn set(&self, inode: InodeId, lock: Lock) {
        let mut locks = self.locks.borrow_mut();
        let held = locks.entry(inode).or_default();
        let (mut own, mut others): (Vec<Lock>, Vec<Lock>) =
            held.drain(..).partition(|other| other.owner == lock.owner && other.kind == lock.kind);
        replace(&mut own, lock);
        others.extend(own);
        match others.is_empty() {
            true => _ = locks.remove(&inode),
            false => _ = locks.insert(inode, others),
        }
    }

    pub fn release(&self, inode: InodeId, kind: LockKind, owner: u64) {
        self.set(inode, Lock { kind, typ: LockType::Unlock, start: 0, end: u64::MAX, owner, pid: 0 });
    }

    /// Whether the owner has any lock of the inode.
    pub fn has(&self, inode: InodeId, kind: LockKind, owner: u64) -> bool {
        let locks = self.locks.borrow();
        locks.get(&inode).is_some_and(|locks| locks.iter().any(|lock| (lock.kind, lock.owner) == (kind, owner)))
    }

    fn inodes(&self) -> Vec<InodeId> {
        self.locks.borrow().keys().copied().collect()
    }

    fn of_bucket(&self, map: &Map, bucket: BucketId) -> Vec<(InodeId, Lock)> {
        let locks = self.locks.borrow();
        let here = locks.iter().filter(|(inode, _)| map.bucket_of(inode.position()) == bucket);
        here.flat_map(|(inode, locks)| locks.iter().map(|lock| (*inode, *lock))).collect()
    }
}

impl Client {
    /// An inode of each bucket where this client holds something.
    fn holds_at(&self) -> BTreeMap<BucketId, InodeId> {
        let Some(map) = self.follower.map() else { return BTreeMap::new() };
        let inodes = self.opens.all().into_iter().chain(self.held.inodes());
        inodes.map(|inode| (map.bucket_of(inode.position()), inode)).collect()
    }

    /// Something of this inode is about to be held.
    pub(crate) fn may_hold(&self, inode: InodeId) {
        if let Some(map) = self.follower.map() {
            self.held.listed.borrow_mut().insert(map.bucket_of(inode.position()), inode);
        }
    }

    /// Whether the leader wants to hear all. `None`: it doesn't answer.
    async fn renew_at(&self, inode: InodeId, holds: Option<Holds>) -> Option<bool> {
        let renewal = self.ask(inode.position(), FsOp::Renew { holds });
        match self.handle.timeout(RENEW_TIMEOUT, renewal).await {
            Ok(Ok((FsReply::Renewed { reassert }, _))) => Some(reassert),
            _ => None,
        }
    }

    /// Tells the leader of each of the buckets what this client holds there, or that it is nothing any more. Who could not be told is told with
    /// the next renewal.
    pub(crate) async fn tell_holds(&self, buckets: &BTreeSet<BucketId>) {
        let mut listed = self.held.listed.borrow().clone();
        listed.retain(|bucket, _| buckets.contains(bucket));
        self.held.untold.borrow_mut().extend(listed.keys());
        for bucket in listed.keys() {
            *self.held.being_told.borrow_mut().entry(*bucket).or_default() += 1;
        }
        let told = listed.into_iter().map(|(bucket, inode)| async move {
            // Opens first, each in its turn with releases; the locks end it.
            self.open_again(bucket).await;
            let telling = self.held.telling(bucket);
            let _telling = telling.lock().await;
            if let Some(map) = self.follower.map() {
                let locks = self.held.of_bucket(&map, bucket);
                if self.renew_at(inode, Some(Holds { opens: Vec::new(), locks })).await.is_some() {
                    self.held.untold.borrow_mut().remove(&bucket);
                }
            }
            let mut being_told = self.held.being_told.borrow_mut();
            match being_told.get_mut(&bucket) {
                Some(times) if *times > 1 => *times -= 1,
                _ => drop(being_told.remove(&bucket)),
            }
        });
        join_all(told).await;
    }

    /// Tells those again who could not be told, unless that is under way. Signs of life to others don't wait for who is away.
    fn tell_again(self: &Rc<Self>) {
        let mut untold = self.held.untold.borrow().clone();
        untold.retain(|bucket| !self.held.being_told.borrow().contains_key(bucket));
        if !untold.is_empty() {
            let client = Rc::clone(self);
            self.handle.spawn("tell what is held", async move { client.tell_holds(&untold).await }).detach();
        }
    }

    async fn renew(self: &Rc<Self>) {
        self.tell_again();
        let renewals = self.holds_at().into_iter().map(|(bucket, inode)| async move {
            if self.renew_at(inode, None).await == Some(true) {
                self.held.untold.borrow_mut().insert(bucket);
            }
        });
        join_all(renewals).await;
        self.tell_again();
    }

    /// A new leader of the inode that is being told what is held hears of what is given back afterwards.
    pub(crate) async fn told(&self, inode: InodeId) {
        if let Some(map) = self.follower.map() {
            drop(self.held.telling(map.bucket_of(inode.position())).lock().await);
        }
    }
}

/// Lets leaders hear of this client for as long as it holds something.
pub(crate) async fn renew(client: Weak<Client>, handle: Handle) {
    loop {
        handle.sleep(Duration::from_secs(RENEW_SECONDS)).await;
        let Some(client) = client.upgrade() else { return };
        if client.check_fenced().is_err() {
            return;
        }
        client.renew().await;
    }
}
