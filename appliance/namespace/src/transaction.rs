//! The coordinator's side of transactions over several buckets.
//!
//! Begin is journalled on P+1 before anyone else hears of it. Participants are asked in the order of their buckets, this
//! one among them, and take their locks as they go, so that transactions never wait for each other in a circle. The
//! decision is one record of this leader in this epoch, with this bucket's own part and the client's result in it. A
//! begin that a new leader finds undecided is aborted: what nobody knows of was aborted, or is finished everywhere.
//! Decisions are kept until all participants have confirmed.

use crate::part::{Parts, Veto};
use crate::results::Ticket;
use crate::{Call, Namespace, cut, errno};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use weft_bucket::{Batch, BucketError, KeyBuilder, LockGuard, Tag};
use weft_reactor::join_all;
use weft_reactor::sync::Notify;
use weft_wire::bucket::{ParticipantOp, ParticipantReply, TransactionId};
use weft_wire::fs::{Attr, FsError, FsReply};
use weft_wire::{BucketId, ClientId, Epoch, FsId, InodeId};

/// A directory deeper than this can't be moved: the walk to the root must end.
const DEPTH_MAX: usize = 4096;

/// What an operation does, by bucket, and what must hold.
#[derive(Debug, Default)]
pub struct Plan {
    pub parts: BTreeMap<BucketId, Parts>,
    /// Directories that must not be, or lie below, the second of each pair.
    pub not_below: Vec<(InodeId, InodeId)>,
    /// The directory that goes is known to have several pages.
    pub paged: bool,
    /// Keys of this bucket that the caller has locked.
    pub held: Vec<Bytes>,
}

/// As journalled, in this bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    participants: Vec<BucketId>,
    /// The participant, or this bucket, that keeps the filesystem's tree from changing: it is told last.
    tree: Option<(BucketId, FsId)>,
    client: ClientId,
    sequence: u64,
    decided: bool,
}

struct Live {
    record: Record,
    /// Who has not confirmed yet.
    open: BTreeSet<BucketId>,
}

#[derive(Default)]
pub struct Transactions {
    live: BTreeMap<TransactionId, Live>,
    last: u64,
    finished: Notify,
}

const MARK: u8 = b'B';

fn record_key(transaction: TransactionId) -> Bytes {
    KeyBuilder::new(FsId(0), Tag::Transaction).u8(MARK).u64(transaction.epoch.0).u64(transaction.number).build()
}

fn transaction_of(bucket: BucketId, key: &[u8]) -> Option<TransactionId> {
    let number = crate::inode::dentry_cookie(key)?;
    let epoch = crate::inode::dentry_cookie(key.get(..key.len().checked_sub(8)?)?)?;
    Some(TransactionId { bucket, epoch: Epoch(epoch), number })
}

impl Namespace {
    /// Does all parts of a plan or none, with the result for the client. Answers when all of it stands.
    /// [`Veto::Changed`]: nothing was done; plan again.
    pub(crate) async fn execute(
        self: &Rc<Self>,
        call: &Call,
        plan: Plan,
        reply: impl FnOnce(Option<Attr>) -> FsReply,
    ) -> Result<FsReply, Veto> {
        let own = self.bucket.id();
        if let (Some(parts), 1) = (plan.parts.get(&own), plan.parts.len()) {
            let _locks = self.bucket.lock(parts.locks_but(&plan.held)).await;
            self.check_not_below(parts.fs, &plan.not_below).await?;
            let worked = self.work(parts, None, None).await?;
            let reply = reply(worked.found);
            self.commit(call, worked.batch, reply.clone()).await?;
            worked.purges.into_iter().for_each(|number| cut::purge_later(self, parts.fs, number));
            self.pages_changed(parts.fs, worked.pages);
            return Ok(reply);
        }
        let transaction = self.begin(call, &plan).await?;
        match self.decide(call, transaction, &plan, reply).await {
            Ok((reply, locks)) => {
                let finishing = Rc::clone(self);
                let finish = async move { finishing.finish(transaction, locks).await };
                let finished = self.bucket.handle().spawn("finish a transaction", finish).await;
                match finished {
                    Ok(Ok(())) => Ok(reply),
                    // Decided, but not done everywhere: the client asks again and waits for it.
                    Ok(Err(error)) => Err(Veto::Error(error)),
                    Err(_) => Err(Veto::Error(FsError::NotReady("a transaction was interrupted".into()))),
                }
            }
            Err(veto) => {
                self.abort(transaction).await;
                Err(veto)
            }
        }
    }

    async fn begin(&self, call: &Call, plan: &Plan) -> Result<TransactionId, FsError> {
        let own = self.bucket.id();
        let transaction = {
            let mut transactions = self.transactions.borrow_mut();
            transactions.last += 1;
            TransactionId { bucket: own, epoch: self.bucket.epoch(), number: transactions.last }
        };
        let tree = plan.parts.iter().find(|(_, parts)| parts.takes_tree()).map(|(bucket, parts)| (*bucket, parts.fs));
        let record = Record {
            participants: plan.parts.keys().copied().filter(|bucket| *bucket != own).collect(),
            tree,
            client: call.client,
            sequence: call.ticket.as_ref().map_or(0, |ticket| ticket.sequence),
            decided: false,
        };
        let mut batch = Batch::new();
        batch.put(record_key(transaction), weft_wire::encode(&record));
        let seq = self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        let open = record.participants.iter().copied().collect();
        self.transactions.borrow_mut().live.insert(transaction, Live { record, open });
        self.bucket.settled(seq).await.map_err(errno::of_bucket)?;
        Ok(transaction)
    }

    /// Collects the participants' consent and journals the decision. On an error nothing was decided.
    async fn decide(
        self: &Rc<Self>,
        call: &Call,
        transaction: TransactionId,
        plan: &Plan,
        reply: impl FnOnce(Option<Attr>) -> FsReply,
    ) -> Result<(FsReply, Option<LockGuard>), Veto> {
        let own = self.bucket.id();
        let mut locks = None;
        let mut found = None;
        for (bucket, parts) in &plan.parts {
            if *bucket == own {
                locks = Some(self.bucket.lock(parts.locks_but(&plan.held)).await);
                continue;
            }
            let asked = self.ask_once(*bucket, ParticipantOp::Prepare { transaction }, weft_wire::encode(parts)).await;
            let answer = match asked {
                Err(FsError::NotReady(reason)) => return Err(Veto::Away(reason)),
                answer => answer?,
            };
            match answer {
                ParticipantReply::Prepared { found: theirs } => found = theirs.or(found),
                ParticipantReply::Changed => return Err(Veto::Changed),
                ParticipantReply::Paged => return Err(Veto::Paged),
                ParticipantReply::Vetoed(error) => return Err(error.into()),
                other => {
                    tracing::error!(?other, "an answer to nothing that was asked");
                    return Err(errno::EIO.into());
                }
            }
        }
        let fs = call.fs;
        self.check_not_below(fs, &plan.not_below).await?;
        let mut batch = Batch::new();
        let (mut purges, mut pages) = (Vec::new(), Vec::new());
        if let Some(parts) = plan.parts.get(&own) {
            let worked = self.work(parts, None, found).await?;
            (batch, purges, found, pages) = (worked.batch, worked.purges, worked.found, worked.pages);
        }
        let record = {
            let transactions = self.transactions.borrow();
            let live = transactions.live.get(&transaction).ok_or(errno::EIO)?;
            Record { decided: true, ..live.record.clone() }
        };
        batch.put(record_key(transaction), weft_wire::encode(&record));
        let keeps_tree = record.tree.is_some_and(|(bucket, _)| bucket == own);
        let reply = reply(found);
        self.commit(call, batch, reply.clone()).await?;
        if let Some(live) = self.transactions.borrow_mut().live.get_mut(&transaction) {
            live.record.decided = true;
        }
        purges.into_iter().for_each(|number| cut::purge_later(self, fs, number));
        self.pages_changed(fs, pages);
        Ok((reply, locks.filter(|_| keeps_tree)))
    }

    /// Tells everyone of the decision until all have confirmed.
    async fn finish(self: &Rc<Self>, transaction: TransactionId, locks: Option<LockGuard>) -> Result<(), FsError> {
        // The decision must stand before anyone acts on it.
        self.bucket.readable().await.map_err(errno::of_bucket)?;
        let (participants, tree) = match self.transactions.borrow().live.get(&transaction) {
            Some(live) => (live.record.participants.clone(), live.record.tree),
            None => return Ok(()),
        };
        let last = tree.map(|(bucket, _)| bucket);
        let (late, early): (Vec<_>, Vec<_>) = participants.into_iter().partition(|bucket| Some(*bucket) == last);
        for group in [early, late] {
            let told = group.into_iter().map(|bucket| async move {
                let op = ParticipantOp::Commit { transaction };
                self.ask_bucket(bucket, op, Bytes::new()).await?;
                if let Some(live) = self.transactions.borrow_mut().live.get_mut(&transaction) {
                    live.open.remove(&bucket);
                }
                Ok::<(), FsError>(())
            });
            for outcome in join_all(told).await {
                outcome?;
            }
        }
        drop(locks);
        let mut batch = Batch::new();
        batch.delete(record_key(transaction));
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        self.forget(transaction);
        Ok(())
    }

    fn forget(&self, transaction: TransactionId) {
        let mut transactions = self.transactions.borrow_mut();
        transactions.live.remove(&transaction);
        transactions.finished.notify_all();
    }

    /// Nothing was decided, and nothing will be.
    async fn abort(self: &Rc<Self>, transaction: TransactionId) {
        let participants = match self.transactions.borrow().live.get(&transaction) {
            Some(live) => live.record.participants.clone(),
            None => return,
        };
        let mut batch = Batch::new();
        batch.delete(record_key(transaction));
        if let Err(error) = self.bucket.commit(batch).await {
            // The next leader aborts it.
            tracing::debug!(?transaction, %error, "an aborted transaction stays for now");
            return;
        }
        self.forget(transaction);
        let namespace = Rc::clone(self);
        let tell = async move {
            let told = participants.into_iter().map(|bucket| {
                let op = ParticipantOp::Abort { transaction };
                namespace.ask_once(bucket, op, Bytes::new())
            });
            // Who doesn't hear it asks.
            drop(join_all(told).await);
        };
        self.bucket.handle().spawn("tell of an abort", tell).detach();
    }

    /// What became of a transaction.
    pub(crate) fn outcome(
        &self,
        transaction: TransactionId,
        participant: BucketId,
    ) -> Result<ParticipantReply, FsError> {
        if transaction.bucket != self.bucket.id() || transaction.epoch > self.bucket.epoch() {
            return Err(FsError::NotReady("a later leader knows".into()));
        }
        let transactions = self.transactions.borrow();
        let known = |live: &&Live| live.record.decided || !weft_wire::mutant("abort_without_begin");
        let Some(live) = transactions.live.get(&transaction).filter(known) else {
            return Ok(ParticipantReply::Outcome { committed: false });
        };
        let last = live.record.tree.map(|(bucket, _)| bucket) == Some(participant);
        let others = live.open.iter().any(|bucket| *bucket != participant);
        Ok(match live.record.decided {
            false => ParticipantReply::Undecided,
            true if last && others => ParticipantReply::Undecided,
            true => ParticipantReply::Outcome { committed: live.open.contains(&participant) },
        })
    }

    /// Waits until what the request decided is done everywhere.
    pub(crate) async fn finished(&self, ticket: &Ticket) {
        loop {
            let finished = {
                let transactions = self.transactions.borrow();
                let mut live = transactions.live.values();
                if !live.any(|live| live.record.client == ticket.client && live.record.sequence == ticket.sequence) {
                    return;
                }
                transactions.finished.notified()
            };
            finished.await;
        }
    }

    /// Takes up what the former leader had begun: aborts what it had not decided, finishes the rest.
    pub(crate) async fn load_transactions(self: &Rc<Self>) -> Result<(), BucketError> {
        let prefix = KeyBuilder::new(FsId(0), Tag::Transaction).u8(MARK).build();
        let mut aborted = Batch::new();
        for (key, value) in self.bucket.scan_prefix(&prefix, usize::MAX).await? {
            let record = weft_wire::decode::<Record>(&value).ok();
            let (Some(record), Some(transaction)) = (record, transaction_of(self.bucket.id(), &key)) else {
                return Err(BucketError::Corrupt("a record of a transaction".into()));
            };
            if !record.decided {
                aborted.delete(key);
                continue;
            }
            let locks = match record.tree {
                Some((bucket, fs)) if bucket == self.bucket.id() => {
                    let tree = Parts { fs, now_ns: 0, parts: vec![crate::part::Part::Tree] };
                    Some(self.bucket.lock(tree.locks()).await)
                }
                _ => None,
            };
            let open = record.participants.iter().copied().collect();
            self.transactions.borrow_mut().live.insert(transaction, Live { record, open });
            let namespace = Rc::clone(self);
            let finish = async move {
                if let Err(error) = namespace.finish(transaction, locks).await {
                    tracing::debug!(?transaction, %error, "a later leader finishes it");
                }
            };
            self.bucket.handle().spawn("finish a transaction", finish).detach();
        }
        if !aborted.is_empty() {
            self.bucket.commit(aborted).await?;
        }
        Ok(())
    }

    /// `EINVAL` if a directory is or lies below what is to become its descendant. The filesystem's tree is locked.
    async fn check_not_below(self: &Rc<Self>, fs: FsId, pairs: &[(InodeId, InodeId)]) -> Result<(), FsError> {
        for (dir, ancestor) in pairs {
            let mut at = *dir;
            let mut depth = 0;
            loop {
                if at == *ancestor || depth == DEPTH_MAX {
                    return Err(errno::EINVAL);
                }
                let parent = self.parent_of(fs, at).await?;
                if parent == at {
                    break;
                }
                at = parent;
                depth += 1;
            }
        }
        Ok(())
    }

    async fn parent_of(self: &Rc<Self>, fs: FsId, dir: InodeId) -> Result<InodeId, FsError> {
        let bucket = self.map()?.bucket_of(dir.position());
        if bucket == self.bucket.id() {
            return Ok(crate::inode::load(&self.bucket, fs, dir).await?.parent);
        }
        match self.ask_once(bucket, ParticipantOp::Parent { fs, inode: dir }, Bytes::new()).await? {
            ParticipantReply::Parent(parent) => Ok(parent),
            _ => Err(errno::EIO),
        }
    }
}
