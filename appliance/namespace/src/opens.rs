//! Who has which inode open. In memory: a client tells a new leader what it has open before the leader removes what
//! has no name.

use crate::{Call, Namespace, Outcome, cut, errno};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use weft_wire::fs::{FileKind, FsError, FsReply, SetAttr};
use weft_wire::{ClientId, FsId, InodeId};

#[derive(Default)]
pub struct Opens {
    by_inode: BTreeMap<(FsId, InodeId), BTreeSet<ClientId>>,
}

impl Opens {
    /// True: it had it not open before.
    pub fn add(&mut self, fs: FsId, inode: InodeId, client: ClientId) -> bool {
        self.by_inode.entry((fs, inode)).or_default().insert(client)
    }

    fn others(&self, fs: FsId, inode: InodeId, client: ClientId) -> bool {
        self.by_inode.get(&(fs, inode)).is_some_and(|clients| clients.iter().any(|other| *other != client))
    }

    /// True: nobody has it open any more.
    pub fn remove(&mut self, fs: FsId, inode: InodeId, client: ClientId) -> bool {
        let Some(clients) = self.by_inode.get_mut(&(fs, inode)) else { return true };
        clients.remove(&client);
        let last = clients.is_empty();
        if last {
            self.by_inode.remove(&(fs, inode));
        }
        last
    }

    /// Inodes that nobody has open now that the client is gone.
    pub fn drop_client(&mut self, client: ClientId) -> Vec<(FsId, InodeId)> {
        let mut closed = Vec::new();
        self.by_inode.retain(|inode, clients| {
            if clients.remove(&client) && clients.is_empty() {
                closed.push(*inode);
            }
            !clients.is_empty()
        });
        closed
    }

    pub fn is_open(&self, fs: FsId, inode: InodeId) -> bool {
        self.by_inode.contains_key(&(fs, inode))
    }
}

impl Namespace {
    /// Whether someone has it open, or may have by what is known.
    pub(crate) fn may_be_open(&self, fs: FsId, inode: InodeId) -> bool {
        self.opens.borrow().is_open(fs, inode) || self.sessions.borrow().in_grace()
    }

    pub(crate) async fn open_inode(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        truncate: bool,
        kill_setid: bool,
    ) -> Outcome {
        // Registered first: whoever unlinks from now on leaves it alive.
        self.list_holder(call.client, false).await?;
        let new = self.opens.borrow_mut().add(call.fs, number, call.client);
        let outcome = self.open_registered(call, number, truncate, kill_setid, new).await;
        if new && outcome.is_err() && self.opens.borrow_mut().remove(call.fs, number, call.client) {
            // Its last name may have gone meanwhile, and all others who had it open.
            self.purge_if_nameless(call, number).await?;
        }
        outcome
    }

    async fn open_registered(
        self: &Rc<Self>,
        call: &Call,
        number: InodeId,
        truncate: bool,
        kill_setid: bool,
        new: bool,
    ) -> Outcome {
        let inode = self.inode(call, number).await?;
        let others = self.opens.borrow().others(call.fs, number, call.client) || self.sessions.borrow().in_grace();
        if new && inode.links == 0 && !others {
            // It is on its way out.
            return Err(errno::ESTALE);
        }
        if truncate && inode.kind == FileKind::File {
            let set = SetAttr { size_bytes: Some(0), kill_setid, ..SetAttr::default() };
            return self.set_attr(call, number, set).await;
        }
        let inode = self.settled_inode(call, number).await?;
        Ok((FsReply::Attr(inode.attr(number)), Bytes::new()))
    }

    pub(crate) async fn release(self: &Rc<Self>, call: &Call, number: InodeId) -> Outcome {
        let last = self.opens.borrow_mut().remove(call.fs, number, call.client);
        if last {
            self.purge_if_nameless(call, number).await?;
        }
        Ok((FsReply::Done, Bytes::new()))
    }

    async fn purge_if_nameless(self: &Rc<Self>, call: &Call, number: InodeId) -> Result<(), FsError> {
        match self.inode(call, number).await {
            Ok(inode) if inode.links == 0 => cut::purge_later(self, call.fs, number),
            Ok(_) | Err(errno::ESTALE) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
