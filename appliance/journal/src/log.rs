//! Drives recovery and replication over the network. This is what the bucket uses.

use crate::call::{Call, CallId, Outcome, Unreached};
use crate::error::{LogError, RecoverError};
use crate::record::{Record, RootRecord};
use crate::recovery::{Recovery, RecoveryParams, Step, Waiting};
use crate::replicator::{Replicator, ReplicatorParams, Room, Trouble};
use crate::tunables::Tunables;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write;
use std::future::Future;
use std::rc::{Rc, Weak};
use weft_reactor::sync::{Completer, Notify, Pending, completion, mpsc};
use weft_reactor::{Handle, Instant};
use weft_transport::rpc::{Network, flatten};
use weft_wire::drive::{DriveOp, DriveRequest, RecordKind};
use weft_wire::map::{Ensemble, Protection};
use weft_wire::{BucketId, CoreId, DriveId, Epoch, Seq, Service, Uuid};

#[derive(Clone)]
pub struct LogParams {
    pub cluster: Uuid,
    pub bucket: BucketId,
    /// Given to this incarnation of this process alone, and tried once.
    pub epoch: Epoch,
    pub protection: Protection,
    /// As the committed map lists them: newest first.
    pub ensembles: Vec<Ensemble>,
    /// Which core owns a drive, by the newest map.
    pub drives: Rc<dyn Fn(DriveId) -> Option<CoreId>>,
    /// The logs of the same core.
    pub beats: Rc<Beats>,
    pub tunables: Tunables,
}

/// A log whose epoch has begun, and what a new leader must know.
pub struct Recovered {
    pub log: Rc<Log>,
    /// The newest root: where it stands, and what the former leader wrote into it.
    pub root: Option<(Seq, RootRecord)>,
    /// All batches after what the root covers, in order.
    pub records: Vec<Record>,
}

/// Makes calls and brings their outcomes back.
#[derive(Clone)]
struct Caller {
    cluster: Uuid,
    bucket: BucketId,
    drives: Rc<dyn Fn(DriveId) -> Option<CoreId>>,
    net: Rc<dyn Network>,
    handle: Handle,
}

impl Caller {
    fn call(&self, call: Call, done: impl FnOnce(CallId, Outcome) + 'static) {
        let Call { id, drive, op, body, timeout } = call;
        let head = weft_wire::encode(&DriveRequest { cluster: self.cluster, drive, bucket: self.bucket, op });
        // The request is sent here, not when the task first runs: promises count from now.
        let pending = (self.drives)(drive).map(|core| self.net.call(core, Service::Drive, head, body, timeout));
        let task = self.handle.spawn("journal call", async move {
            let outcome = match pending {
                None => Err(Unreached("the map doesn't say which core owns it".into())),
                Some(pending) => match flatten(pending.await) {
                    Err(error) => Err(Unreached(error.to_string())),
                    Ok(response) => match weft_wire::decode(&response.head) {
                        Ok(reply) => Ok((reply, response.body)),
                        Err(error) => Err(Unreached(error.to_string())),
                    },
                },
            };
            done(id, outcome);
        });
        task.detach();
    }

    fn describe(&self, drive: DriveId) -> String {
        match (self.drives)(drive) {
            Some(core) => format!("{drive} on {}", core.node),
            None => format!("{drive}, which the map doesn't place"),
        }
    }

    /// Drives that are waited for, those with the same reason together.
    fn describe_all<'a>(&self, drives: impl Iterator<Item = (DriveId, &'a str)>) -> String {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for (drive, why) in drives {
            let drive = self.describe(drive);
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, drives)) => drives.push(drive),
                None => reasons.push((why, vec![drive])),
            }
        }
        let each = reasons.iter().map(|(why, drives)| format!("{} ({why})", drives.join(", ")));
        format!("waiting for {}", each.collect::<Vec<_>>().join(", "))
    }

    fn describe_waiting(&self, waiting: &Waiting) -> String {
        let mut text = self.describe_all(waiting.away.iter().map(|(drive, why)| (*drive, why.as_str())));
        if waiting.away.is_empty() {
            text.push_str("more drives");
        }
        // Writing to a String can't fail.
        let _ = write!(text, ": {} of {} needed drives are sealed and read", waiting.have, waiting.needed);
        if let Some(lack) = &waiting.lack {
            let _ = write!(text, "; {}: {}", lack.seq, lack.reason);
        }
        text
    }
}

/// The log of a bucket that this core leads.
pub struct Log {
    caller: Caller,
    state: RefCell<State>,
    /// Something changed that `hold_lease` or `copied` may wait for.
    changed: Notify,
    /// When the next timer fires.
    armed: Cell<Option<Instant>>,
    tunables: Tunables,
    beats: Rc<Beats>,
    /// The lease was needed since it was last asked for.
    lease_wanted: Cell<bool>,
}

/// The logs that one core leads. When one asks its drives for promises, those whose leases are in use ask theirs at the same
/// moment: what goes to the same core then shares packets and wake-ups, there and back.
#[derive(Default)]
pub struct Beats {
    logs: RefCell<Vec<Weak<Log>>>,
}

impl Beats {
    fn join(&self, log: &Rc<Log>) {
        let mut logs = self.logs.borrow_mut();
        logs.retain(|log| log.strong_count() > 0);
        logs.push(Rc::downgrade(log));
    }

    /// Asks for promises for all logs that need them now or soon.
    fn beat(&self) {
        let logs: Vec<_> = self.logs.borrow().iter().filter_map(Weak::upgrade).collect();
        for log in logs.into_iter().filter(|log| log.lease_wanted.take()) {
            log.beat(log.tunables.promise() * 3 / 4);
        }
    }
}

struct State {
    replicator: Replicator,
    /// By sequence, ascending.
    waiters: VecDeque<(Seq, Completer<Result<(), LogError>>)>,
}

impl State {
    fn wait(&mut self, seq: Seq, completer: Completer<Result<(), LogError>>) {
        let place = self.waiters.partition_point(|(waits_for, _)| *waits_for <= seq);
        self.waiters.insert(place, (seq, completer));
    }
}

impl Log {
    /// Begins an epoch: seals the ensembles, adopts what counts, writes the epoch start. Waits for drives that are
    /// away as long as it takes; drop the future to give up (the epoch is then used up).
    pub async fn recover(params: LogParams, net: Rc<dyn Network>, handle: Handle) -> Result<Recovered, RecoverError> {
        let bucket = params.bucket;
        Self::recover_with(params, net, handle, move |reason| tracing::info!(%bucket, "recovery is {reason}")).await
    }

    /// [`Log::recover`] that tells `progress` what it waits for, each time that changes.
    pub async fn recover_with(
        params: LogParams,
        net: Rc<dyn Network>,
        handle: Handle,
        progress: impl Fn(&str) + 'static,
    ) -> Result<Recovered, RecoverError> {
        let LogParams { cluster, bucket, epoch, protection, ensembles, drives, beats, tunables } = params;
        let caller = Caller { cluster, bucket, drives, net, handle };
        let ensembles: Vec<Vec<DriveId>> = ensembles.into_iter().map(|ensemble| ensemble.drives).collect();
        let parity = usize::from(protection.parity);
        let current = ensembles.first().cloned().unwrap_or_default();
        let moving = ensembles.len() > 1;
        let recovery = Recovery::new(RecoveryParams { bucket, epoch, parity, ensembles, tunables })?;
        let mut reason = String::new();
        let mut tell = |new: String| {
            if new != reason {
                progress(&new);
                reason = new;
            }
        };
        let decision = gather(&caller, recovery, &mut tell).await?;
        let root = decision.root.as_ref().map(|(seq, _, root)| (*seq, root.clone()));
        let covers = root.as_ref().map_or(Seq(0), |(_, root)| root.covers);
        let batches = decision.records.iter().filter(|record| record.header.kind == RecordKind::Batch);
        let records: Vec<Record> = batches.filter(|record| record.header.seq > covers).cloned().collect();
        let copies_needed = match weft_wire::mutant("acknowledge_at_p") {
            true => usize::from(protection.parity),
            false => protection.acknowledge(),
        };
        let params = ReplicatorParams { bucket, epoch, drives: current, copies_needed, moving, tunables };
        let log = Rc::new(Self {
            caller,
            state: RefCell::new(State { replicator: Replicator::new(params, *decision), waiters: VecDeque::new() }),
            changed: Notify::new(),
            armed: Cell::new(None),
            tunables,
            beats: Rc::clone(&beats),
            lease_wanted: Cell::new(false),
        });
        beats.join(&log);
        log.pump();
        loop {
            let changed = log.changed.notified();
            {
                let state = log.state.borrow();
                match state.replicator.failed() {
                    Some(LogError::Sealed(epoch)) => return Err(RecoverError::Sealed(*epoch)),
                    Some(_) => return Err(RecoverError::Stopped),
                    None if state.replicator.serving() => break,
                    None => {}
                }
                let troubles = state.replicator.troubles();
                if !troubles.is_empty() {
                    tell(log.describe_troubles(&troubles));
                }
            }
            changed.await;
        }
        Ok(Recovered { log, root, records })
    }

    fn describe_troubles(&self, troubles: &[Trouble]) -> String {
        self.caller.describe_all(troubles.iter().map(|trouble| (trouble.drive, trouble.why.as_str())))
    }

    /// Appends a batch. It has its sequence at once and is on its way; the outcome follows in sequence order, when it
    /// stands on P+1. An error there leaves open whether a later leader adopts the record.
    pub fn append(
        self: &Rc<Self>,
        kind: RecordKind,
        payload: Vec<Bytes>,
    ) -> Result<(Seq, Pending<Result<(), LogError>>), LogError> {
        assert_eq!(kind, RecordKind::Batch, "roots go through append_root, epoch starts are the log's own");
        let seq = self.state.borrow_mut().replicator.append(payload)?;
        Ok((seq, self.sent(seq)))
    }

    /// Appends a root, which must not cover less than the one before. What it covers is trimmed when it stands, as far as that was acknowledged when it was appended.
    pub fn append_root(self: &Rc<Self>, root: RootRecord) -> Result<(Seq, Pending<Result<(), LogError>>), LogError> {
        let seq = self.state.borrow_mut().replicator.append_root(root)?;
        Ok((seq, self.sent(seq)))
    }

    fn sent(self: &Rc<Self>, seq: Seq) -> Pending<Result<(), LogError>> {
        let (completer, pending) = completion();
        self.state.borrow_mut().wait(seq, completer);
        self.pump();
        pending
    }

    /// The last sequence given.
    pub fn last(&self) -> Seq {
        self.state.borrow().replicator.last()
    }

    /// Up to here everything stands on P+1.
    pub fn acknowledged(&self) -> Seq {
        self.state.borrow().replicator.acknowledged()
    }

    pub fn epoch(&self) -> Epoch {
        self.state.borrow().replicator.epoch()
    }

    /// Waits until `seq` stands on P+1.
    pub fn settled(&self, seq: Seq) -> impl Future<Output = Result<(), LogError>> + use<> {
        let mut state = self.state.borrow_mut();
        let pending = if seq <= state.replicator.acknowledged() {
            Pending::ready(Ok(()))
        } else if let Some(error) = state.replicator.failed() {
            Pending::ready(Err(error.clone()))
        } else {
            let (completer, pending) = completion();
            state.wait(seq, completer);
            pending
        };
        async move { pending.await.unwrap_or(Err(LogError::Stopped)) }
    }

    /// Whether, at `now`, no other leader can have begun.
    pub fn lease_valid(&self, now: Instant) -> bool {
        self.state.borrow().replicator.lease_valid(now)
    }

    /// Returns when the leader lease holds. Asks the drives for promises if it doesn't, and ahead of time when half
    /// of it is over, so that a busy reader seldom waits.
    pub async fn hold_lease(self: &Rc<Self>) -> Result<(), LogError> {
        self.lease_wanted.set(true);
        let beat_again = self.tunables.lease / 3;
        let mut asked_at: Option<Instant> = None;
        loop {
            let changed = self.changed.notified();
            let now = self.caller.handle.now();
            let (valid, fresh) = {
                let state = self.state.borrow();
                if let Some(error) = state.replicator.failed() {
                    return Err(error.clone());
                }
                let left = state.replicator.leased_until().since(now);
                (state.replicator.lease_valid(now), left > self.tunables.lease / 2)
            };
            if valid && fresh {
                return Ok(());
            }
            // An answer may be late or lost: asked again before long, but not after each answer. That of the own drive
            // comes at once, and would be asked for without end until the others' arrive.
            let due = asked_at.is_none_or(|at| now.since(at) >= beat_again);
            if due {
                self.beat(self.tunables.promise() / 2);
                self.beats.beat();
            }
            let asked = *asked_at.insert(asked_at.filter(|_| !due).unwrap_or(now));
            if valid {
                return Ok(());
            }
            let _ = self.caller.handle.timeout_at(asked + beat_again, changed).await;
        }
    }

    /// Asks the drives for promises of which no more than so much is left.
    fn beat(self: &Rc<Self>, left_max: core::time::Duration) {
        let now = self.caller.handle.now();
        self.state.borrow_mut().replicator.beat(now, left_max);
        self.pump();
    }

    /// What the records that no root covers take. A full journal refuses appends until a root trims it.
    pub fn room(&self) -> Room {
        self.state.borrow().replicator.room()
    }

    /// Why the log takes nothing any more, if so.
    pub fn failed(&self) -> Option<LogError> {
        self.state.borrow().replicator.failed().cloned()
    }

    /// Why acknowledgements may be slow or missing, for people: the drives that do not answer.
    pub fn troubles(&self) -> Option<String> {
        let troubles = self.state.borrow().replicator.troubles();
        (!troubles.is_empty()).then(|| self.describe_troubles(&troubles))
    }

    /// Returns when all adopted records stand on P+1 of the current ensemble: the managers may then drop the earlier
    /// ensembles from the map.
    pub async fn copied(&self) -> Result<(), LogError> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                if let Some(error) = state.replicator.failed() {
                    return Err(error.clone());
                }
                if state.replicator.copied() {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Takes nothing more and sends no records any more; what is not acknowledged fails with `Stopped`. Serves no read from
    /// here on, so the drives needn't hold a successor back.
    pub fn stop(&self) {
        self.state.borrow_mut().replicator.stop();
        self.conclude();
        let (epoch, drives) = {
            let state = self.state.borrow();
            (state.replicator.epoch(), state.replicator.drives().collect::<Vec<_>>())
        };
        for drive in drives {
            self.tell(drive, DriveOp::Release { epoch });
        }
    }

    /// Has drives that are no longer listed forget what no root needs, as far as it is. Returns whether nothing is left that
    /// former leaders wrote.
    pub fn forget_on(&self, drives: &[DriveId]) -> bool {
        let (as_epoch, trim_below, adopted) = {
            let state = self.state.borrow();
            (state.replicator.epoch(), state.replicator.trim_below(), state.replicator.adopted())
        };
        for drive in drives {
            self.tell(*drive, DriveOp::Append { as_epoch, records: Vec::new(), trim_below, promise: false });
        }
        trim_below > adopted
    }

    /// Says something that needs no answer.
    fn tell(&self, drive: DriveId, op: DriveOp) {
        let call = Call { id: CallId(0), drive, op, body: Bytes::new(), timeout: self.tunables.call_timeout };
        self.caller.call(call, |_, _| {});
    }

    /// Makes the calls that are due.
    fn pump(self: &Rc<Self>) {
        let now = self.caller.handle.now();
        loop {
            let call = self.state.borrow_mut().replicator.poll(now);
            let Some(call) = call else { break };
            let log = Rc::downgrade(self);
            self.caller.call(call, move |id, outcome| Self::reply(&log, id, outcome));
        }
        self.arm(now);
    }

    fn reply(log: &Weak<Self>, id: CallId, outcome: Outcome) {
        let Some(log) = log.upgrade() else { return };
        let now = log.caller.handle.now();
        log.state.borrow_mut().replicator.reply(id, now, outcome);
        log.conclude();
        log.pump();
    }

    /// Tells those who wait what has become true.
    fn conclude(&self) {
        let mut state = self.state.borrow_mut();
        let acknowledged = state.replicator.acknowledged();
        let failed = state.replicator.failed().cloned();
        let count = match failed {
            Some(_) => state.waiters.len(),
            None => state.waiters.partition_point(|(seq, _)| *seq <= acknowledged),
        };
        let done: Vec<_> = state.waiters.drain(..count).collect();
        drop(state);
        for (seq, completer) in done {
            completer.complete(match &failed {
                Some(error) if seq > acknowledged => Err(error.clone()),
                _ => Ok(()),
            });
        }
        self.changed.notify_all();
    }

    /// Sets a timer for the next pause that ends, unless one fires before.
    fn arm(self: &Rc<Self>, now: Instant) {
        let Some(deadline) = self.state.borrow().replicator.deadline(now) else { return };
        if self.armed.get().is_some_and(|armed| armed <= deadline) {
            return;
        }
        self.armed.set(Some(deadline));
        let log = Rc::downgrade(self);
        let sleep = self.caller.handle.sleep_until(deadline);
        let task = self.caller.handle.spawn("journal timer", async move {
            sleep.await;
            let Some(log) = log.upgrade() else { return };
            // A timer set later for an earlier time has taken over.
            if log.armed.get() == Some(deadline) {
                log.armed.set(None);
                log.pump();
            }
        });
        task.detach();
    }
}

/// Runs a recovery up to its decision.
async fn gather(
    caller: &Caller,
    mut recovery: Recovery,
    tell: &mut impl FnMut(String),
) -> Result<Box<crate::gathered::Decision>, RecoverError> {
    // Each drive has one call under way at most.
    let (sender, mut outcomes) = mpsc::bounded::<(CallId, Outcome)>(recovery.drives());
    loop {
        let now = caller.handle.now();
        match recovery.step(now) {
            Step::Done(decision) => return Ok(decision),
            Step::Failed(error) => return Err(error),
            Step::Working => {}
        }
        while let Some(call) = recovery.poll(now) {
            let sender = sender.clone();
            caller.call(call, move |id, outcome| {
                // Fails only when the recovery is over: nobody wants to know any more.
                let _ = sender.try_send((id, outcome));
            });
        }
        if let Some(waiting) = recovery.waiting() {
            tell(caller.describe_waiting(&waiting));
        }
        let outcome = match recovery.deadline() {
            None => outcomes.recv().await,
            Some(deadline) => caller.handle.timeout_at(deadline, outcomes.recv()).await.unwrap_or_default(),
        };
        if let Some((id, outcome)) = outcome {
            recovery.reply(id, caller.handle.now(), outcome);
        }
        while let Some((id, outcome)) = outcomes.try_recv() {
            recovery.reply(id, caller.handle.now(), outcome);
        }
    }
}
