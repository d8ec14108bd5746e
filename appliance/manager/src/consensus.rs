//! The consensus of the managers as a state machine without time, files or network: ticks, messages and deltas go in; messages, and what
//! is to be stored before more of them may go out, come out.
//!
//! The voting itself is the `raft` library's. This file gives it a log whose snapshot is the map, keeps malformed and foreign messages away from it
//! (it takes its peers at their word and stops the process when they contradict themselves) and replaces its source of chance: an election's time-out follows
//! from voter and term, so that a simulated run is a function of its seed.

use crate::Tunables;
use crate::log::Log;
use crate::records::{Members, Place, node_of};
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, Ready, SnapshotStatus, StateRole};
use std::rc::Rc;
use weft_wire::map::{Delta, Map};
use weft_wire::{NodeId, Uuid, decode, encode};

const MESSAGE_ENTRIES_BYTES_MAX: u64 = 256 << 10;
const IN_FLIGHT_MAX: usize = 64;
/// A listener that lacks no more entries has caught up: they are on their way to it while the leader decides all the time.
const BEHIND_MAX: u64 = 16;
/// Terms and indices beyond this are nonsense; the library adds to them.
const NUMBER_MAX: u64 = 1 << 56;

pub(crate) struct Consensus {
    raw: RawNode<Log>,
    log: Log,
    cluster: Uuid,
    map: Option<Rc<Map>>,
    election_ticks: usize,
}

/// An encoded message for the manager on `node`.
pub(crate) struct Outgoing {
    pub voter: u64,
    pub node: NodeId,
    pub bytes: Bytes,
    pub is_snapshot: bool,
}

/// What the library wants done. Store first if it says so, then [`Consensus::finish`].
pub(crate) struct Work {
    ready: Ready,
    /// May go out before anything is stored.
    pub send: Vec<Outgoing>,
    /// The log or the vote changed: it must be durable before `finish`.
    pub must_store: bool,
    /// The log starts anew from a map, which must be durable before the log is.
    pub restored: bool,
}

/// An entry that is committed and in the map now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub index: u64,
    pub term: u64,
}

#[derive(Default)]
pub(crate) struct Done {
    pub send: Vec<Outgoing>,
    pub applied: Vec<Applied>,
    /// Deltas in the order in which they made the map.
    pub deltas: Vec<Delta>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotProposed;

impl Consensus {
    /// `log` begins where `map` stands. `Err` names what the library can't work with.
    pub fn new(voter: u64, cluster: Uuid, log: Log, map: Option<Rc<Map>>, tunables: &Tunables) -> Result<Self, String> {
        let config = Config {
            id: voter,
            election_tick: tunables.election_ticks,
            heartbeat_tick: tunables.heartbeat_ticks,
            applied: log.applied().index,
            max_size_per_msg: MESSAGE_ENTRIES_BYTES_MAX,
            max_inflight_msgs: IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: tunables.election_ticks,
            max_election_tick: 2 * tunables.election_ticks,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log.clone(), &logger).map_err(|error| error.to_string())?;
        let mut consensus = Self { raw, log, cluster, map, election_ticks: tunables.election_ticks };
        // Nobody can have heard of a leader yet: the first election comes at once.
        consensus.raw.raft.election_elapsed = tunables.election_ticks;
        consensus.draw_timeout();
        Ok(consensus)
    }

    pub fn voter(&self) -> u64 {
        self.raw.raft.id
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn map(&self) -> Option<&Rc<Map>> {
        self.map.as_ref()
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn role(&self) -> StateRole {
        self.raw.raft.state
    }

    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.raw.raft.leader_id;
        (leader != raft::INVALID_ID).then(|| node_of(leader))
    }

    /// Leads, and everything in its log is in its map: only then may it decide what comes next.
    pub fn is_settled(&self) -> bool {
        self.is_leader() && self.raw.raft.raft_log.applied == self.raw.raft.raft_log.last_index()
    }

    pub fn tick(&mut self) {
        if self.leader().is_none() && self.raw.raft.state != StateRole::Candidate {
            // Asking whether an election would succeed costs nothing: without a leader, ask twice as often.
            self.raw.raft.election_elapsed += 1;
        }
        self.raw.tick();
        self.draw_timeout();
    }

    /// Heartbeats at once: who was not there for the last ones answers, and gets what it lacks.
    pub fn ping(&mut self) {
        self.raw.ping();
    }

    /// The leader's process is known to have ended: waits for it no longer, and believes those who stand for election.
    /// Returns whether it was the leader.
    pub fn forget_leader(&mut self, node: NodeId) -> bool {
        if self.leader() != Some(node) || self.is_leader() {
            return false;
        }
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.draw_timeout();
        true
    }

    /// Stands for election now, if there is no leader.
    pub fn campaign(&mut self) {
        if self.leader().is_none() {
            // Fails where it must not stand: then another one does.
            drop(self.raw.campaign());
            self.draw_timeout();
        }
    }

    /// Takes a message from the manager on `from`. One that can't be from a sane peer of this cluster is dropped.
    pub fn step(&mut self, from: NodeId, bytes: &[u8]) {
        let Ok(message) = Message::parse_from_bytes(bytes) else {
            tracing::warn!(%from, "dropped a malformed message of the consensus");
            return;
        };
        if let Err(reason) = self.check(from, &message) {
            tracing::warn!(%from, kind = ?message.get_msg_type(), reason, "dropped a message of the consensus");
            return;
        }
        // Errors are of messages that came too late to matter.
        drop(self.raw.step(message));
        self.draw_timeout();
    }

    fn check(&self, from: NodeId, message: &Message) -> Result<(), &'static str> {
        if node_of(message.from) != from {
            return Err("it names another sender");
        }
        if message.to != self.voter() {
            return Err("it is for an earlier life of this manager");
        }
        if message.term.max(message.index).max(message.commit) > NUMBER_MAX {
            return Err("its numbers are beyond any life time");
        }
        let log = &self.raw.raft.raft_log;
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.commit > log.last_index() => {
                Err("it commits what this manager never got")
            }
            MessageType::MsgAppend => {
                for (index, entry) in (message.index + 1..).zip(message.get_entries()) {
                    if entry.index != index || entry.term > message.term {
                        return Err("its entries are out of order");
                    }
                    let known = log.term(index).ok().filter(|term| *term != 0);
                    if index <= log.committed && known.is_some_and(|term| term != entry.term) {
                        return Err("it contradicts what is committed");
                    }
                }
                Ok(())
            }
            MessageType::MsgSnapshot => {
                let metadata = message.get_snapshot().get_metadata();
                let members = metadata.get_conf_state();
                if members.get_voters().is_empty() || metadata.index == 0 {
                    return Err("its snapshot is empty");
                }
                match decode::<Map>(&message.get_snapshot().data) {
                    Ok(map) if map.cluster == self.cluster => Ok(()),
                    Ok(_) => Err("its snapshot is of another cluster"),
                    Err(_) => Err("its snapshot is malformed"),
                }
            }
            MessageType::MsgAppendResponse if !message.reject && message.index > log.last_index() => {
                Err("it confirms what was never sent")
            }
            MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgTimeoutNow => Ok(()),
            _ => Err("managers don't send such"),
        }
    }

    /// Puts a delta into the log. It counts when [`Applied`] names the same index and term.
    pub fn propose(&mut self, delta: &Delta) -> Result<Applied, NotProposed> {
        self.raw.propose(Vec::new(), encode(delta).to_vec()).map_err(|_| NotProposed)?;
        Ok(Applied { index: self.raw.raft.raft_log.last_index(), term: self.term() })
    }

    /// The peer can't be reached, so the library stops streaming to it and probes.
    pub fn report_unreachable(&mut self, voter: u64) {
        self.raw.report_unreachable(voter);
    }

    pub fn report_snapshot(&mut self, voter: u64, arrived: bool) {
        self.raw.report_snapshot(voter, if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
    }

    /// Lets a node listen under a new voter's id.
    pub fn admit(&mut self, voter: u64) -> Result<Applied, NotProposed> {
        self.change_member(ConfChangeType::AddLearnerNode, voter)
    }

    /// All voters and listeners, as of what is applied.
    pub fn members(&self) -> Members {
        self.log.applied().members
    }

    /// Whether this voter was taken out of the consensus.
    pub fn is_dismissed(&self) -> bool {
        let members = self.members();
        !members.voters.is_empty() && !members.ids().any(|voter| voter == self.voter())
    }

    /// One step towards one voter for each of `managers`: earlier lives of nodes go, listeners that have caught up vote, and when all managers do, those go
    /// that the map no longer names. Returns whether there was one to take.
    pub fn tend_members(&mut self, managers: &[NodeId]) -> bool {
        let members = self.members();
        let newest = |voter: u64| members.ids().all(|other| node_of(other) != node_of(voter) || other <= voter);
        if let Some(old) = members.ids().find(|voter| !newest(*voter)) {
            return self.change_member(ConfChangeType::RemoveNode, old).is_ok();
        }
        let named = |voter: &u64| managers.contains(&node_of(*voter));
        if let Some(dropped) = members.learners.iter().copied().find(|voter| !named(voter)) {
            return self.change_member(ConfChangeType::RemoveNode, dropped).is_ok();
        }
        let committed = self.raw.raft.raft_log.committed;
        let caught_up = members.learners.iter().copied().find(|voter| {
            self.raw.raft.prs().get(*voter).is_some_and(|progress| {
                let follows = progress.recent_active && progress.state == ProgressState::Replicate;
                follows && progress.matched + BEHIND_MAX >= committed
            })
        });
        if let Some(voter) = caught_up {
            return self.change_member(ConfChangeType::AddNode, voter).is_ok();
        }
        if !self.all_vote(managers) {
            return false;
        }
        match members.voters.iter().copied().find(|voter| !named(voter)) {
            // Another one leads first.
            Some(own) if own == self.voter() => {
                let matched = |voter: &u64| self.raw.raft.prs().get(*voter).map_or(0, |progress| progress.matched);
                if let Some(next) = members.voters.iter().copied().filter(named).max_by_key(matched) {
                    self.raw.transfer_leader(next);
                }
                false
            }
            Some(dropped) => self.change_member(ConfChangeType::RemoveNode, dropped).is_ok(),
            None => false,
        }
    }

    /// Whether each of `managers` has a vote.
    pub fn all_vote(&self, managers: &[NodeId]) -> bool {
        let voters = self.members().voters;
        managers.iter().all(|manager| voters.iter().any(|voter| node_of(*voter) == *manager))
    }

    fn change_member(&mut self, kind: ConfChangeType, voter: u64) -> Result<Applied, NotProposed> {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(kind);
        single.node_id = voter;
        let mut change = ConfChangeV2::default();
        change.set_changes(vec![single].into());
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| NotProposed)?;
        Ok(Applied { index: self.raw.raft.raft_log.last_index(), term: self.term() })
    }

    /// The next piece of work. Nothing else may be called until it is given to [`Self::finish`].
    pub fn work(&mut self) -> Option<Work> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let send = outgoing(ready.take_messages());
        let restored = !ready.snapshot().is_empty();
        if restored {
            let metadata = ready.snapshot().get_metadata();
            let members = Members::from_raft(metadata.get_conf_state());
            let place = Place { voter: self.voter(), index: metadata.index, term: metadata.term, members };
            match decode::<Map>(&ready.snapshot().data) {
                Ok(map) => {
                    let map = Rc::new(map);
                    self.map = Some(map.clone());
                    self.log.restore(place, map);
                }
                Err(error) => unreachable!("a snapshot was checked when it came: {error}"),
            }
        }
        if let Some(hard) = ready.hs() {
            self.log.set_hard_state(hard.clone());
        }
        self.log.append(ready.take_entries());
        Some(Work { send, must_store: ready.must_sync(), restored, ready })
    }

    /// Goes on after everything in `work` is durable.
    pub fn finish(&mut self, mut work: Work) -> Done {
        let mut done = Done { send: outgoing(work.ready.take_persisted_messages()), ..Done::default() };
        self.apply(work.ready.take_committed_entries(), &mut done);
        let mut light = self.raw.advance(work.ready);
        done.send.extend(outgoing(light.take_messages()));
        self.apply(light.take_committed_entries(), &mut done);
        self.raw.advance_apply();
        self.draw_timeout();
        done
    }

    fn apply(&mut self, entries: Vec<Entry>, done: &mut Done) {
        for entry in entries {
            let mut place = self.log.applied();
            place.voter = self.voter();
            (place.index, place.term) = (entry.index, entry.term);
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {}
                EntryType::EntryNormal => self.apply_delta(&entry, done),
                // Of an earlier kind that this product never wrote.
                EntryType::EntryConfChange => tracing::error!(index = entry.index, "skipped a change of the managers"),
                EntryType::EntryConfChangeV2 => match ConfChangeV2::parse_from_bytes(&entry.data) {
                    Ok(change) => self.apply_members(&change, &mut place),
                    Err(error) => tracing::error!(%error, index = entry.index, "a change of the managers is malformed"),
                },
            }
            done.applied.push(Applied { index: place.index, term: place.term });
            self.log.set_applied(place, self.map.clone());
        }
    }

    fn apply_members(&mut self, change: &ConfChangeV2, place: &mut Place) {
        match self.raw.apply_conf_change(change) {
            Ok(state) => place.members = Members::from_raft(&state),
            // All managers find the same and none of them changes its members.
            Err(error) => tracing::error!(%error, index = place.index, "a change of the managers could not be made"),
        }
    }

    fn apply_delta(&mut self, entry: &Entry, done: &mut Done) {
        let (Some(map), Ok(delta)) = (&self.map, decode::<Delta>(&entry.data)) else {
            tracing::error!(index = entry.index, "an entry of the log holds no delta of this version");
            return;
        };
        let mut next = Map::clone(map);
        match next.apply(&delta) {
            Ok(()) => {
                self.map = Some(Rc::new(next));
                done.deltas.push(delta);
            }
            // Decided on an older map, by a leader that was replaced: all managers skip it.
            Err(error) => tracing::warn!(%error, index = entry.index, "skipped a delta"),
        }
    }

    /// Between one and two election time-outs, spread by voter and term.
    fn draw_timeout(&mut self) {
        let mut value = self.voter() ^ self.term().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let spread = (value ^ (value >> 31)) % self.election_ticks as u64;
        self.raw.raft.set_randomized_election_timeout(self.election_ticks + spread as usize);
    }
}

fn outgoing(messages: Vec<Message>) -> Vec<Outgoing> {
    messages
        .into_iter()
        .filter_map(|message| {
            let bytes = message.write_to_bytes().ok()?;
            Some(Outgoing {
                voter: message.to,
                node: node_of(message.to),
                bytes: bytes.into(),
                is_snapshot: message.get_msg_type() == MessageType::MsgSnapshot,
            })
        })
        .collect()
}
