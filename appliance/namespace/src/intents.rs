//! The participants' side of transactions: intents that wait for their outcome.
//!
//! An intent is journalled under its locks, and keeps them until it is decided, over changes of leader too. What it is
//! about is hidden meanwhile: whoever looks waits, so that nobody sees one half of an operation before the other.

use crate::part::{Parts, Veto};
use crate::{Namespace, WAIT_MAX, cut, errno};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Batch, BucketError, KeyBuilder, LockGuard, Tag};
use weft_reactor::sync::Notify;
use weft_wire::bucket::{ParticipantOp, ParticipantReply, TransactionId};
use weft_wire::fs::FsError;
use weft_wire::{FsId, InodeId};

/// How long an intent waits for its outcome until it asks.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// As journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    transaction: TransactionId,
    parts: Parts,
    /// The number that was given to what is made.
    made: Option<InodeId>,
}

struct Held {
    intent: Intent,
    hidden: Vec<Bytes>,
    _locks: LockGuard,
}

#[derive(Default)]
pub struct Intents {
    held: BTreeMap<TransactionId, Rc<Held>>,
    hidden: BTreeMap<Bytes, u32>,
    decided: Notify,
    /// The newest aborts, for requests that come after them.
    aborted: VecDeque<TransactionId>,
}

/// Aborts that are remembered.
const ABORTED_MAX: usize = 256;

impl Intents {
    fn remember_abort(&mut self, transaction: TransactionId) {
        self.aborted.push_back(transaction);
        if self.aborted.len() > ABORTED_MAX {
            self.aborted.pop_front();
        }
    }

    fn insert(&mut self, held: Held) {
        for key in &held.hidden {
            *self.hidden.entry(key.clone()).or_default() += 1;
        }
        self.held.insert(held.intent.transaction, Rc::new(held));
    }

    fn remove(&mut self, transaction: TransactionId) {
        let Some(held) = self.held.remove(&transaction) else { return };
        for key in &held.hidden {
            if let Some(count) = self.hidden.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    self.hidden.remove(key);
                }
            }
        }
        self.decided.notify_all();
    }
}

const MARK: u8 = b'I';

fn intent_key(transaction: TransactionId) -> Bytes {
    KeyBuilder::new(FsId(0), Tag::Transaction)
        .u8(MARK)
        .u64(u64::from(transaction.bucket.0))
        .u64(transaction.epoch.0)
        .u64(transaction.number)
        .build()
}

impl Namespace {
    /// Waits until no undecided transaction is about the key; `NotReady` if that takes long.
    pub(crate) async fn seen(&self, key: &Bytes) -> Result<(), FsError> {
        let until = self.bucket.handle().now() + WAIT_MAX;
        loop {
            let decided = {
                let intents = self.intents.borrow();
                if !intents.hidden.contains_key(key) {
                    return Ok(());
                }
                intents.decided.notified()
            };
            if self.bucket.handle().timeout_at(until, decided).await.is_err() {
                return Err(FsError::NotReady(self.undecided(key)));
            }
        }
    }

    fn undecided(&self, key: &Bytes) -> String {
        let intents = self.intents.borrow();
        match intents.held.values().find(|held| held.hidden.contains(key)) {
            Some(held) => format!("{} has not decided a transaction yet", held.intent.transaction.bucket),
            None => "a transaction is being decided".into(),
        }
    }

    /// Checks the parts, takes their locks, journals the intent.
    pub(crate) async fn prepare(
        self: &Rc<Self>,
        transaction: TransactionId,
        body: &[u8],
    ) -> Result<ParticipantReply, FsError> {
        let parts: Parts = weft_wire::decode(body).map_err(|_| errno::EINVAL)?;
        if parts.make()
            && let Err(full) = self.room_for(0)
        {
            return Ok(ParticipantReply::Vetoed(full));
        }
        let locks = self.bucket.lock(parts.locks()).await;
        if self.intents.borrow().aborted.contains(&transaction) {
            return Ok(ParticipantReply::Changed);
        }
        let worked = match self.work(&parts, None, None).await {
            Ok(worked) => worked,
            Err(Veto::Changed) => return Ok(ParticipantReply::Changed),
            Err(Veto::Paged) => return Ok(ParticipantReply::Paged),
            Err(veto) => return Ok(ParticipantReply::Vetoed(veto.into())),
        };
        let made = worked.found.map(|attr| attr.inode);
        let intent = Intent { transaction, parts, made };
        let mut batch = Batch::new();
        batch.put(intent_key(transaction), weft_wire::encode(&intent));
        let hidden = intent.parts.hidden(&self.map()?.secret, made);
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        self.intents.borrow_mut().insert(Held { intent, hidden, _locks: locks });
        if self.intents.borrow().aborted.contains(&transaction) {
            // The word came while the intent was written.
            self.conclude(transaction, false).await?;
            return Ok(ParticipantReply::Changed);
        }
        self.ask_later(transaction, ASK_AFTER);
        Ok(ParticipantReply::Prepared { found: worked.found })
    }

    /// The transaction is decided. What is not known is done.
    pub(crate) async fn conclude(
        self: &Rc<Self>,
        transaction: TransactionId,
        committed: bool,
    ) -> Result<ParticipantReply, FsError> {
        // One at a time: the second word of an outcome is answered when the first has been followed.
        let _turn = self.bucket.lock([intent_key(transaction)]).await;
        let held = self.intents.borrow().held.get(&transaction).cloned();
        let Some(held) = held else {
            if !committed {
                self.intents.borrow_mut().remember_abort(transaction);
            }
            return Ok(ParticipantReply::Confirmed);
        };
        let mut batch = Batch::new();
        let (mut purges, mut pages) = (Vec::new(), Vec::new());
        if committed {
            let made = held.intent.made;
            match self.work(&held.intent.parts, made, None).await {
                Ok(worked) => {
                    batch = worked.batch;
                    purges = worked.purges;
                    pages = worked.pages;
                }
                Err(veto) => {
                    tracing::error!(?transaction, ?veto, "a decided transaction can't be done; trying again");
                    return Err(FsError::NotReady("a decided transaction can't be done".into()));
                }
            }
        }
        batch.delete(intent_key(transaction));
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        self.intents.borrow_mut().remove(transaction);
        for number in purges {
            cut::purge_later(self, held.intent.parts.fs, number);
        }
        self.pages_changed(held.intent.parts.fs, pages);
        Ok(ParticipantReply::Confirmed)
    }

    /// Asks the deciding bucket for the outcome if it doesn't come by itself.
    fn ask_later(self: &Rc<Self>, transaction: TransactionId, after: Duration) {
        let weak = Rc::downgrade(self);
        let handle = self.bucket.handle().clone();
        let sleeper = handle.clone();
        let ask = async move {
            let mut pause = after;
            loop {
                sleeper.sleep(pause).await;
                pause = ASK_AFTER;
                let Some(namespace) = weak.upgrade() else { return };
                let open = namespace.intents.borrow().held.contains_key(&transaction);
                if !open || namespace.bucket.failed().is_some() {
                    return;
                }
                let op = ParticipantOp::Ask { transaction, participant: namespace.bucket.id() };
                if let Ok(ParticipantReply::Outcome { committed }) =
                    namespace.ask_once(transaction.bucket, op, Bytes::new()).await
                    && namespace.conclude(transaction, committed).await.is_ok()
                {
                    return;
                }
            }
        };
        handle.spawn("ask for an outcome", ask).detach();
    }

    /// Takes up the intents of the former leader, with their locks.
    pub(crate) async fn load_intents(self: &Rc<Self>) -> Result<(), BucketError> {
        let prefix = KeyBuilder::new(FsId(0), Tag::Transaction).u8(MARK).build();
        let found = self.bucket.scan_prefix(&prefix, usize::MAX).await?;
        if found.is_empty() {
            return Ok(());
        }
        let secret = match self.map() {
            Ok(map) => map.secret,
            Err(error) => return Err(BucketError::NotReady(error.to_string())),
        };
        for (_, value) in found {
            let intent: Intent =
                weft_wire::decode(&value).map_err(|_| BucketError::Corrupt("an intent of a transaction".into()))?;
            let transaction = intent.transaction;
            let locks = self.bucket.lock(intent.parts.locks()).await;
            let hidden = intent.parts.hidden(&secret, intent.made);
            self.intents.borrow_mut().insert(Held { intent, hidden, _locks: locks });
            self.ask_later(transaction, Duration::ZERO);
        }
        Ok(())
    }
}
