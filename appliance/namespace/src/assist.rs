//! What the leaders of buckets ask of each other.

use crate::{Call, Namespace, errno};
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::{Either, select};
use weft_transport::rpc::Response;
use weft_wire::bucket::{ParticipantOp, ParticipantReply, ParticipantRequest};
use weft_wire::fs::FsError;
use weft_wire::{BucketId, ClientId, Epoch, FsId, Service};

/// Between two tries to reach another bucket.
const AGAIN: Duration = Duration::from_millis(20);
/// How often a call that takes its time looks whether the bucket has moved.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// One call.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Tries between two words in the log.
const TRIES_LOGGED: u32 = 250;

impl Namespace {
    pub(crate) async fn assist(self: &Rc<Self>, op: ParticipantOp, body: Bytes) -> Result<ParticipantReply, FsError> {
        let reply = match op {
            ParticipantOp::Cut { fs, inode, cut_generation, size_bytes } => {
                self.cut_here(&self.own_call(fs), inode, cut_generation, size_bytes).await?;
                ParticipantReply::Done
            }
            ParticipantOp::Holds { fs, inode, start, end } => {
                ParticipantReply::Holds(self.holds(&self.own_call(fs), inode, &(start..end)).await?)
            }
            ParticipantOp::Write { fs, inode, offset, cut_generation } => {
                self.write(&self.own_call(fs), inode, offset, cut_generation, false, body).await?;
                ParticipantReply::Done
            }
            ParticipantOp::Prepare { transaction } => self.prepare(transaction, &body).await?,
            ParticipantOp::Commit { transaction } => self.conclude(transaction, true).await?,
            ParticipantOp::Abort { transaction } => self.conclude(transaction, false).await?,
            ParticipantOp::Ask { transaction, participant } => self.outcome(transaction, participant)?,
            ParticipantOp::Parent { fs, inode } => {
                ParticipantReply::Parent(crate::inode::load(&self.bucket, fs, inode).await?.parent)
            }
            ParticipantOp::Name { fs, page, name } => {
                let found = self.meaning_here(&self.own_call(fs), page, &name).await?;
                ParticipantReply::Name(found.map(|entry| (entry.inode, entry.kind)))
            }
            ParticipantOp::Fill { fs, page, attempt, first } => {
                self.fill(fs, page, attempt, first, &body).await?;
                ParticipantReply::Done
            }
            ParticipantOp::Pages { fs, pages } => {
                let mut states = Vec::with_capacity(pages.len());
                for page in pages {
                    states.push(self.page_state(fs, page).await?);
                }
                ParticipantReply::Pages(states)
            }
            ParticipantOp::Reach { fs, inodes } => ParticipantReply::Reached(self.reach(fs, inodes).await?),
            ParticipantOp::Written { fs, inode, forget_ns } => {
                ParticipantReply::Written(self.written_here(fs, inode, forget_ns).await?)
            }
            ParticipantOp::Inherit { fs, page } => {
                self.inherit(fs, page, &body).await?;
                ParticipantReply::Done
            }
        };
        self.bucket.readable().await.map_err(errno::of_bucket)?;
        Ok(reply)
    }

    /// A call that no client made.
    pub(crate) fn own_call(&self, fs: FsId) -> Call {
        Call { fs, client: ClientId(0), ticket: None, depth: 0, now_ns: self.bucket.handle().wall_ns() }
    }

    /// Asks the leader of another bucket (or of this one) once. `NotReady`: the answer is not known.
    pub(crate) async fn ask_once(
        &self,
        bucket: BucketId,
        op: ParticipantOp,
        body: Bytes,
    ) -> Result<ParticipantReply, FsError> {
        if let Some(error) = self.bucket.failed() {
            return Err(errno::of_bucket(error));
        }
        let map = self.map()?;
        let leader = map.bucket(bucket).ok_or(errno::EIO)?;
        let head = weft_wire::encode(&ParticipantRequest { cluster: map.cluster, bucket, epoch: leader.epoch, op });
        let asked = self.context.network.ask(leader.leader, Service::Bucket, head, body, CALL_MAX);
        let answer = match select(asked, self.moved(bucket, leader.epoch)).await {
            Either::Left(answer) => answer,
            Either::Right(()) => return Err(FsError::NotReady(format!("{bucket} changed its leader meanwhile"))),
        };
        let Response { head, .. } = answer.map_err(|error| FsError::NotReady(format!("{bucket}: {error}")))?;
        match weft_wire::decode(&head).map_err(|_| errno::EIO)? {
            ParticipantReply::Refused(
                error @ (FsError::Errno(_) | FsError::Cut { .. } | FsError::Moved { .. } | FsError::NoPage),
            ) => Err(error),
            ParticipantReply::Refused(error) => Err(FsError::NotReady(format!("{bucket}: {error}"))),
            reply => Ok(reply),
        }
    }

    /// Returns when another bucket has another epoch: whoever was asked may be gone, and needn't be waited for.
    async fn moved(&self, bucket: BucketId, epoch: Epoch) {
        loop {
            self.bucket.handle().sleep(LOOK_EVERY).await;
            let by_map = (self.context.map)().and_then(|map| Some(map.bucket(bucket)?.epoch));
            if by_map != Some(epoch) {
                return;
            }
        }
    }

    /// Asks the leader of another bucket again and again until it answers. For what may be done twice.
    pub(crate) async fn ask_bucket(
        &self,
        bucket: BucketId,
        op: ParticipantOp,
        body: Bytes,
    ) -> Result<ParticipantReply, FsError> {
        let mut tries = 0u32;
        loop {
            match self.ask_once(bucket, op.clone(), body.clone()).await {
                Err(FsError::NotReady(reason)) => {
                    if let Some(error) = self.bucket.failed() {
                        return Err(errno::of_bucket(error));
                    }
                    tries += 1;
                    if tries.is_multiple_of(TRIES_LOGGED) {
                        tracing::warn!(%bucket, reason, "waiting for the leader of another bucket");
                    }
                }
                answer => return answer,
            }
            self.bucket.handle().sleep(AGAIN).await;
        }
    }
}
