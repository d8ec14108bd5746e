//! What clients hold in a bucket (open files, locks) and for how long.
//!
//! Held things live in memory. Which clients hold any is journalled before the first is given, so that a new leader
//! knows whom to wait for: until each of them has told again what it holds, or [`GRACE`] has passed, it grants no locks
//! and removes nothing that may be open. A client loses everything when the map fences or drops it, and what it has open when it has
//! been silent for [`SESSION_SECONDS_MAX`], also if it died before it renewed for the first time.
//!
//! Who has, or may have, locks is fenced first: it might live, reach other leaders, and write what it believes to have locked.

use crate::inode::holder_key;
use crate::locks::Owner;
use crate::{Call, Namespace, Outcome, cut, errno};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;
use weft_bucket::{Batch, BucketError, KeyBuilder, Tag};
use weft_reactor::Instant;
use weft_reactor::sync::Notify;
use weft_wire::fs::{FsError, FsReply, Holds};
use weft_wire::limits::SESSION_SECONDS_MAX;
use weft_wire::{ClientId, FsId};

/// How long a new leader waits for clients to tell what they hold. Those that may have locks are fenced then.
const GRACE: Duration = Duration::from_secs(10);
/// How long a client may be silent.
const SILENT_MAX: Duration = Duration::from_secs(SESSION_SECONDS_MAX);
/// A fence is asked for again: there may be no quorum of managers.
const FENCE_EVERY: Duration = Duration::from_secs(5);
/// When this leader has heard of a fence, the others have within so long, or are taken for dead.
const FENCE_SETTLES: Duration = Duration::from_secs(2);
/// How often those who hold something are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often results of clients that may be gone are looked at, where nobody holds anything.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// What a client may hold, as journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub locks: bool,
}

impl Listed {
    fn encode(self) -> Bytes {
        Bytes::copy_from_slice(&[u8::from(self.locks)])
    }
}

#[derive(Default)]
pub struct Sessions {
    /// When each was last heard.
    sessions: BTreeMap<ClientId, Instant>,
    listed: BTreeMap<ClientId, Listed>,
    /// Clients of the former leader that have not told yet what they hold.
    awaited: BTreeMap<ClientId, Listed>,
    /// When this leader began to wait for them.
    awaits_since: Option<Instant>,
    /// Clients with locks that must not be served any more.
    fences: BTreeMap<ClientId, Fence>,
    pub changed: Notify,
}

#[derive(Clone, Copy, Debug)]
enum Fence {
    Asked(Instant),
    /// It is in the map.
    Stands(Instant),
}

/// What the map says of a client.
enum Standing {
    Known,
    Fenced,
    Removed,
}

impl Sessions {
    /// Whether somebody may hold something that this leader doesn't know of.
    pub fn in_grace(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// The same for locks.
    pub fn locks_in_grace(&self) -> bool {
        self.awaited.values().any(|listed| listed.locks)
    }

    pub fn heard(&mut self, client: ClientId, now: Instant) {
        if let Some(heard) = self.sessions.get_mut(&client) {
            *heard = now;
        }
    }
}

impl Namespace {
    /// Whether clients still have to tell this leader what they hold. Another leader would begin to wait for them anew.
    pub fn waits_for_clients(&self) -> bool {
        self.sessions.borrow().in_grace()
    }

    /// Whom the former leader had listed.
    pub(crate) async fn load_sessions(&self) -> Result<(), BucketError> {
        let prefix = KeyBuilder::new(FsId(0), Tag::Open).build();
        let found = self.bucket.scan_prefix(&prefix, usize::MAX).await?;
        let mut sessions = self.sessions.borrow_mut();
        for (key, value) in found {
            let Some(client) = crate::inode::dentry_cookie(&key).map(ClientId) else { continue };
            let listed = Listed { locks: value.first() == Some(&1) };
            sessions.listed.insert(client, listed);
            sessions.awaited.insert(client, listed);
        }
        sessions.awaits_since = Some(self.bucket.handle().now());
        Ok(())
    }

    /// Journals, if it isn't yet, that the client may hold something from now on.
    pub(crate) async fn list_holder(&self, client: ClientId, locks: bool) -> Result<(), FsError> {
        let mut batch = Batch::new();
        self.list_holder_with(client, locks, &mut batch);
        if !batch.is_empty() {
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
            self.listed(client, locks);
        }
        Ok(())
    }

    /// The same, as part of a batch that is about to be committed.
    pub(crate) fn list_holder_with(&self, client: ClientId, locks: bool, batch: &mut Batch) {
        if client == ClientId(0) {
            return;
        }
        let mut sessions = self.sessions.borrow_mut();
        let now = self.bucket.handle().now();
        sessions.sessions.entry(client).or_insert(now);
        sessions.changed.notify_one();
        let known = sessions.listed.get(&client).copied();
        let wanted = Listed { locks: locks || known.is_some_and(|listed| listed.locks) };
        if known != Some(wanted) {
            // Listed in memory once the batch stands in the index; a batch that fails is written again by the next.
            batch.put(holder_key(client), wanted.encode());
        }
    }

    /// Takes note that what [`Namespace::list_holder_with`] asked for is in the index.
    pub(crate) fn listed(&self, client: ClientId, locks: bool) {
        let mut sessions = self.sessions.borrow_mut();
        let listed = sessions.listed.entry(client).or_default();
        listed.locks |= locks;
    }

    pub(crate) async fn renew(self: &Rc<Self>, call: &Call, holds: Option<Holds>) -> Outcome {
        let now = self.bucket.handle().now();
        let reassert = {
            let mut sessions = self.sessions.borrow_mut();
            let known = sessions.sessions.insert(call.client, now).is_some();
            sessions.changed.notify_one();
            // One that is not known has lost what it had, or had it from another leader.
            !known || sessions.awaited.contains_key(&call.client)
        };
        let Some(holds) = holds else { return Ok((FsReply::Renewed { reassert }, Bytes::new())) };
        if !holds.opens.is_empty() || !holds.locks.is_empty() {
            self.list_holder(call.client, !holds.locks.is_empty()).await?;
        }
        for inode in holds.opens {
            self.opens.borrow_mut().add(call.fs, inode, call.client);
        }
        for (inode, lock) in holds.locks {
            let owner = Owner { client: call.client, token: lock.owner };
            if !self.reassert(call.fs, inode, owner, lock) {
                tracing::warn!(%inode, client = %call.client, "a lock was lost when the leader changed");
            }
        }
        self.sessions.borrow_mut().awaited.remove(&call.client);
        Ok((FsReply::Renewed { reassert: false }, Bytes::new()))
    }

    /// Everything that the client held here is free.
    fn end_session(self: &Rc<Self>, client: ClientId) {
        tracing::info!(%client, bucket = %self.bucket.id(), "its open files and locks are given up");
        {
            let mut sessions = self.sessions.borrow_mut();
            sessions.sessions.remove(&client);
            sessions.awaited.remove(&client);
            sessions.fences.remove(&client);
        }
        let closed = self.opens.borrow_mut().drop_client(client);
        self.drop_locks(client);
        for (fs, inode) in closed {
            cut::purge_later(self, fs, inode);
        }
    }

    /// Unlists those whose session has ended.
    async fn unlist(&self, clients: &[ClientId]) -> Result<(), BucketError> {
        let mut batch = Batch::new();
        for client in clients {
            if self.is_gone(*client) {
                self.results.drop_client(&self.bucket, *client, &mut batch).await?;
            }
            if self.sessions.borrow_mut().listed.remove(client).is_some() {
                batch.delete(holder_key(*client));
            }
        }
        if !batch.is_empty() {
            self.bucket.commit(batch).await?;
        }
        for client in clients {
            // One that came back meanwhile was listed before it was unlisted.
            let back = self.sessions.borrow().sessions.contains_key(client);
            if back {
                let mut batch = Batch::new();
                let listed = Listed { locks: true };
                batch.put(holder_key(*client), listed.encode());
                self.bucket.commit(batch).await?;
                self.listed(*client, true);
            }
        }
        Ok(())
    }

    /// A map that is older than the client says nothing about it.
    fn standing(&self, client: ClientId) -> Standing {
        let Some(map) = (self.context.map)() else { return Standing::Known };
        match map.clients.get(&client) {
            Some(listed) if listed.fenced => Standing::Fenced,
            None if client < map.next_client => Standing::Removed,
            _ => Standing::Known,
        }
    }

    fn is_gone(&self, client: ClientId) -> bool {
        !matches!(self.standing(client), Standing::Known)
    }

    /// Clients that are gone, and those that are silent for too long.
    fn ended(&self, now: Instant) -> BTreeSet<ClientId> {
        let mut known: BTreeSet<ClientId> = self.results.clients().into_iter().collect();
        let sessions = self.sessions.borrow();
        known.extend(sessions.sessions.keys().chain(sessions.listed.keys()));
        let ended = |client: &ClientId| {
            let heard = sessions.sessions.get(client);
            heard.is_some_and(|heard| now.since(*heard) > SILENT_MAX) || self.is_gone(*client)
        };
        known.into_iter().filter(ended).collect()
    }

    /// Those who held something when this leader began, and have not told for too long what it was.
    fn late(&self, now: Instant) -> Vec<ClientId> {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.awaits_since.is_none_or(|since| now.since(since) < GRACE) {
            return Vec::new();
        }
        let late: Vec<(ClientId, Listed)> =
            sessions.awaited.iter().map(|(client, listed)| (*client, *listed)).collect();
        for (client, _) in late.iter().filter(|(_, listed)| !listed.locks) {
            tracing::warn!(bucket = %self.bucket.id(), %client, "it has not told what it has open");
            sessions.awaited.remove(client);
        }
        // Those who were not heard at all are gone: the next leader need not wait for them again.
        let ends = |(client, listed): &(ClientId, Listed)| listed.locks || !sessions.sessions.contains_key(client);
        late.into_iter().filter(ends).map(|(client, _)| client).collect()
    }

    /// Whether nobody serves the client any more, if it has locks, or may have: others get them next.
    fn lets_go(&self, client: ClientId, now: Instant) -> bool {
        let mut sessions = self.sessions.borrow_mut();
        let may_have = sessions.awaited.get(&client).is_some_and(|listed| listed.locks);
        if !may_have && !self.has_locks(client) {
            return true;
        }
        let fence = sessions.fences.get(&client).copied();
        match (self.standing(client), fence) {
            (Standing::Removed, _) => true,
            (Standing::Fenced, Some(Fence::Stands(since))) => now.since(since) >= FENCE_SETTLES,
            (Standing::Fenced, _) => {
                sessions.fences.insert(client, Fence::Stands(now));
                false
            }
            (Standing::Known, Some(Fence::Asked(at))) if now.since(at) < FENCE_EVERY => false,
            (Standing::Known, _) => {
                sessions.fences.insert(client, Fence::Asked(now));
                tracing::warn!(bucket = %self.bucket.id(), %client, "it is silent and may have locks here: it is to be fenced");
                (self.context.fence)(client);
                false
            }
        }
    }

    fn holds_anything(&self) -> bool {
        let sessions = self.sessions.borrow();
        !sessions.sessions.is_empty() || !sessions.listed.is_empty() || sessions.in_grace()
    }

    /// Ends the sessions that are over, now.
    pub(crate) async fn end_sessions(self: &Rc<Self>) -> Result<(), BucketError> {
        let now = self.bucket.handle().now();
        let mut ended = self.ended(now);
        ended.extend(self.late(now));
        ended.retain(|client| self.lets_go(*client, now));
        let ended: Vec<ClientId> = ended.into_iter().collect();
        for client in &ended {
            self.end_session(*client);
        }
        self.unlist(&ended).await
    }
}

/// Looks after sessions for as long as the namespace lives.
pub(crate) async fn watch(namespace: Weak<Namespace>) {
    {
        let Some(alive) = namespace.upgrade() else { return };
        let load = async || alive.results.load_inherited(&alive.bucket).await.map_err(errno::of_bucket);
        alive.until_done("results of clients that are gone", load).await;
    }
    loop {
        let Some(alive) = namespace.upgrade() else { return };
        let ended = alive.end_sessions().await;
        if alive.bucket.failed().is_some() {
            return;
        }
        if let Err(error) = ended {
            tracing::warn!(bucket = %alive.bucket.id(), %error, "ended sessions are unlisted later");
        }
        let handle = alive.bucket.handle().clone();
        let (busy, changed) = (alive.holds_anything(), alive.sessions.borrow().changed.notified());
        let remembers = !alive.results.clients().is_empty();
        drop(alive);
        match (busy, remembers) {
            (true, _) => handle.sleep(LOOK_EVERY).await,
            (false, true) => drop(handle.timeout(FORGET_EVERY, changed).await),
            (false, false) => changed.await,
        }
    }
}
