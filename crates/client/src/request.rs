//! One request to a bucket's leader, made again until it is answered.

use crate::client::Client;
use crate::errno::Errno;
use crate::tunables::{CALL_TIMEOUT, LOCK_CALL_TIMEOUT, RETRY_FIRST, RETRY_MOST};
use crate::waiting::Wait;
use crate::window::Ticket;
use bytes::Bytes;
use std::time::Duration;
use weft_reactor::{Either, select};
use weft_transport::rpc::CallError;
use weft_wire::fs::{FsError, FsOp, FsReply, FsRequest};
use weft_wire::{BucketId, CoreId, Epoch, Position, Service, decode, encode};

/// Why an operation's request failed for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Errno(Errno),
    /// The slab has seen a newer cut.
    Cut {
        generation: u64,
    },
    /// The page of the directory has split.
    PageSplit,
    /// The directory has no such page.
    NoPage,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Failure> for Errno {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Errno(errno) => errno,
            // Only writers of slabs and those who look for names meet them, and they try again.
            Failure::Cut { .. } | Failure::PageSplit | Failure::NoPage => Errno::EIO,
        }
    }
}

/// Whether a request changes something that must happen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    Once,
}

/// What a request is for: a position, and which page of a directory if it is about names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub position: Position,
    pub depth: u8,
}

impl From<Position> for Target {
    fn from(position: Position) -> Self {
        Self { position, depth: 0 }
    }
}

pub(crate) type Answer = (FsReply, Bytes);

/// What one call brought.
enum Attempt {
    Answer(Answer),
    Failure(Failure),
    /// Again after a pause, for this reason.
    Again(String),
    /// Again, with a newer map.
    Stale(String),
}

/// Where the request goes by the map.
struct Route {
    leader: CoreId,
    epoch: Epoch,
}

impl Client {
    /// Asks for something that changes nothing.
    pub(crate) async fn ask(&self, position: Position, op: FsOp) -> Result<Answer, Errno> {
        self.send(position, op, Bytes::new(), Effect::None).await.map_err(Errno::from)
    }

    /// Asks for a change, exactly once. Dropping the future gives the request up: it took effect, or never will once a
    /// later change to the bucket has.
    pub(crate) async fn change(&self, position: Position, op: FsOp, body: Bytes) -> Result<Answer, Failure> {
        self.send(position, op, body, Effect::Once).await
    }

    pub(crate) async fn send(
        &self,
        target: impl Into<Target>,
        op: FsOp,
        body: Bytes,
        effect: Effect,
    ) -> Result<Answer, Failure> {
        let target = target.into();
        // A lock may be waited for as long as it takes.
        let limit = if waits_for_lock(&op) { None } else { self.fail_after };
        let mut wait = self.waits.begin();
        let Some(limit) = limit else { return self.send_until_answered(target, op, body, effect, &mut wait).await };
        let work = self.send_until_answered(target, op, body, effect, &mut wait);
        match self.handle.timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let reason = wait.reason().unwrap_or_else(|| "no answer".into());
                tracing::error!(after_s = limit.as_secs(), reason, "an operation failed");
                Err(Failure::Errno(Errno::EIO))
            }
        }
    }

    async fn send_until_answered(
        &self,
        target: Target,
        op: FsOp,
        body: Bytes,
        effect: Effect,
        wait: &mut Wait,
    ) -> Result<Answer, Failure> {
        let Some(map) = self.follower.map() else { return Err(Failure::Errno(Errno::EIO)) };
        let (cluster, bucket) = (map.cluster, map.bucket_of(target.position));
        drop(map);
        let ticket = match effect {
            Effect::None => None,
            Effect::Once => Some(self.window(bucket).take().await),
        };
        let timeout = if waits_for_lock(&op) { LOCK_CALL_TIMEOUT } else { CALL_TIMEOUT };
        let mut request = FsRequest {
            cluster,
            bucket,
            epoch: Epoch(0),
            fs: self.fs,
            client: self.id,
            sequence: ticket.as_ref().map_or(0, |ticket| ticket.sequence),
            unanswered: 0,
            depth: target.depth,
            op,
        };
        let mut pause = RETRY_FIRST;
        loop {
            self.check_fenced()?;
            let version = self.map_watch.version();
            match self.attempt(&mut request, ticket.as_ref(), body.clone(), timeout).await {
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::Failure(failure) => return Err(failure),
                Attempt::Again(reason) => wait.set(format!("{bucket}: {reason}")),
                Attempt::Stale(reason) => {
                    wait.set(format!("{bucket}: {reason}"));
                    self.follower.refresh(None);
                }
            }
            match select(self.map_watch.changed_since(version), self.handle.sleep(pause)).await {
                Either::Left(()) => pause = RETRY_FIRST,
                Either::Right(()) => pause = (pause * 2).min(RETRY_MOST),
            }
        }
    }

    fn route(&self, bucket: BucketId) -> Option<Route> {
        let map = self.follower.map()?;
        let by_map = map.bucket(bucket)?;
        Some(Route { leader: by_map.leader, epoch: by_map.epoch })
    }

    /// Returns when the bucket has another epoch.
    async fn moved(&self, bucket: BucketId, epoch: Epoch) {
        let same = |map: &Option<std::rc::Rc<weft_wire::map::Map>>| {
            map.as_ref().and_then(|map| map.bucket(bucket)).is_none_or(|bucket| bucket.epoch == epoch)
        };
        self.map_watch.wait_for(|map| !same(map)).await
    }

    async fn attempt(
        &self,
        request: &mut FsRequest,
        ticket: Option<&Ticket>,
        body: Bytes,
        timeout: Duration,
    ) -> Attempt {
        let Some(route) = self.route(request.bucket) else {
            return Attempt::Stale("the map doesn't have the bucket".into());
        };
        request.epoch = route.epoch;
        request.unanswered = ticket.map_or(0, Ticket::unanswered);
        let call = self.network.ask(route.leader, Service::Fs, encode(request), body, timeout);
        let outcome = match select(call, self.moved(request.bucket, route.epoch)).await {
            Either::Left(outcome) => outcome,
            Either::Right(()) => return Attempt::Again("it changed its leader meanwhile".into()),
        };
        let leader = route.leader;
        let response = match outcome {
            Ok(response) => response,
            Err(error @ (CallError::Overloaded | CallError::NoService | CallError::VersionMismatch)) => {
                return Attempt::Again(format!("its leader {leader}: {error}"));
            }
            Err(CallError::TooLarge) => {
                tracing::error!(op = ?request.op, "a message is too large");
                return Attempt::Failure(Failure::Errno(Errno::EIO));
            }
            Err(error) => {
                if error == CallError::Unreachable {
                    self.report(leader.node);
                }
                return Attempt::Stale(format!("its leader {leader}: {error}"));
            }
        };
        match decode::<FsReply>(&response.head) {
            Ok(FsReply::Error(error)) => {
                tracing::debug!(bucket = %request.bucket, sequence = request.sequence, op = ?request.op, %error, "refused");
                self.refused(leader, error)
            }
            Ok(reply) => Attempt::Answer((reply, response.body)),
            Err(error) => Attempt::Again(format!("its leader {leader}: {error}")),
        }
    }

    fn refused(&self, leader: CoreId, error: FsError) -> Attempt {
        match error {
            FsError::Errno(errno) => Attempt::Failure(Failure::Errno(Errno(errno))),
            FsError::Cut { generation } => Attempt::Failure(Failure::Cut { generation }),
            FsError::Moved { .. } => Attempt::Failure(Failure::PageSplit),
            FsError::NoPage => Attempt::Failure(Failure::NoPage),
            FsError::Newer(_) => {
                let hint = self.follower.map().and_then(|map| map.core_addr(CoreId { core: 0, ..leader }));
                self.follower.refresh(hint);
                Attempt::Again(format!("our map is older than that of {leader}"))
            }
            FsError::NotLeader => Attempt::Stale(format!("{leader} doesn't lead it")),
            FsError::Older(_) => Attempt::Again(format!("{leader} has an older map")),
            FsError::NotReady(reason) => Attempt::Again(format!("its leader {leader} isn't ready: {reason}")),
            FsError::Fenced(client) => {
                self.set_fenced(client);
                Attempt::Failure(Failure::Errno(Errno::ESTALE))
            }
        }
    }
}

fn waits_for_lock(op: &FsOp) -> bool {
    matches!(op, FsOp::SetLock { wait: true, .. })
}
