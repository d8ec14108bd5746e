//! Drives one manager's consensus: one loop that selects what to do next, and stores before it sends.

use crate::Role;
use crate::consensus::{Applied, Consensus, Outgoing, Work};
use crate::copies::{AllLost, Copies};
use crate::decide::{self, Decision, Outcome};
use crate::records::{MapRecord, node_of, voter};
use crate::seat::find_out;
use crate::shared::{Input, Shared};
use bytes::Bytes;
use raft::StateRole;
use std::rc::Rc;
use weft_reactor::Instant;
use weft_reactor::sync::Completer;
use weft_wire::manager::ManagerReply;
use weft_wire::map::{Change, Delta, Map, Purpose, State};
use weft_wire::{MapVersion, NodeId};

const PHASES: u32 = 9;
/// Ticks without a leader after which a manager asks whether it still is one.
const ORPHAN_TICKS: u32 = 30;

pub(crate) struct Driver {
    shared: Rc<Shared>,
    consensus: Consensus,
    copies: Copies,
    in_flight: Option<InFlight>,
    /// Who sent messages that were just taken, and may be answered with what is to be said to them. At most [`INBOX_MAX`].
    ///
    /// [`INBOX_MAX`]: crate::tunables::INBOX_MAX
    answers: Vec<(NodeId, Completer<Bytes>)>,
    /// Managers that ask for a vote: each once.
    joining: Vec<(NodeId, Completer<ManagerReply>)>,
    led: bool,
    /// The leader's business is due.
    due: bool,
    /// Up to here the map has been looked at for what can't wait.
    looked_at: MapVersion,
    /// Up to here the map has been looked at for what should move.
    moved_at: MapVersion,
    /// The leader is known to have died so many ticks ago, and there is no other yet.
    orphaned: Option<usize>,
    /// Ticks since a leader was heard of.
    leaderless: u32,
    /// The leader said so.
    dismissed: bool,
    /// The nodes' states as last seen, and since when they are so.
    calm: (Vec<State>, Instant),
}

/// Why a manager's part in the consensus ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every copy of what it must not forget failed.
    AllLost,
    /// Others vote in its place.
    Dismissed,
}

/// The one change that waits to be committed.
struct InFlight {
    at: Applied,
    until: Instant,
    /// Who asked, and what to answer once it is.
    answer: Option<(Completer<ManagerReply>, ManagerReply)>,
}

impl Driver {
    pub fn new(shared: Rc<Shared>, consensus: Consensus, copies: Copies) -> Self {
        let calm = (Vec::new(), shared.handle.now());
        Self {
            shared,
            leaderless: 0,
            dismissed: false,
            calm,
            consensus,
            copies,
            in_flight: None,
            answers: Vec::new(),
            joining: Vec::new(),
            led: false,
            due: false,
            looked_at: MapVersion(0),
            moved_at: MapVersion(0),
            orphaned: None,
        }
    }

    /// Runs until the last copy of the consensus' state is lost, or others vote instead.
    pub async fn run(mut self) -> End {
        self.show();
        // Managers that started together tick apart, so that one of them has won an election before the next stands for it.
        let phase = u32::from(node_of(self.consensus.voter()).0) % PHASES;
        let mut next_tick = self.shared.handle.now() + self.shared.tunables.tick * (phase + 1) / PHASES;
        loop {
            loop {
                let input = self.shared.inbox.borrow_mut().pop_front();
                let Some(input) = input else { break };
                self.take(input);
            }
            let now = self.shared.handle.now();
            if now >= next_tick {
                next_tick = now + self.shared.tunables.tick;
                self.consensus.tick();
                if self.consensus.is_leader() && self.is_replacing() {
                    self.consensus.ping();
                }
                self.stand_in();
                self.look_for_leader();
                self.due = true;
            }
            if self.work().await.is_err() {
                return self.give_up(End::AllLost).await;
            }
            if self.dismissed || self.consensus.is_dismissed() {
                return self.give_up(End::Dismissed).await;
            }
            self.admit();
            self.due |= self.shared.tend_now.take() || self.consensus.is_leader() != self.led;
            // Until others vote than the dead, fewer can be missed: no step of that waits for a tick.
            self.due |= self.consensus.is_settled() && self.is_replacing();
            if self.due {
                self.due = !self.tend();
            }
            self.decide();
            if self.work().await.is_err() {
                return self.give_up(End::AllLost).await;
            }
            if !self.has_more() {
                // Either way there is something to look at.
                let _ = self.shared.handle.timeout_at(next_tick, self.shared.wake.notified()).await;
            }
        }
    }

    fn has_more(&self) -> bool {
        let can_decide = self.in_flight.is_none() && self.consensus.is_settled();
        let asked = !self.shared.proposals.borrow().is_empty() || !self.joining.is_empty();
        let wanted = self.due || self.shared.tend_now.get() || asked;
        !self.shared.inbox.borrow().is_empty() || (can_decide && wanted)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Message(from, bytes, answer) => {
                self.consensus.step(from, &bytes);
                self.answers.extend(answer.map(|answer| (from, answer)));
            }
            Input::Unreachable(voter) => self.consensus.report_unreachable(voter),
            Input::Snapshot { voter, arrived } => self.consensus.report_snapshot(voter, arrived),
            Input::Died(node) => {
                if self.consensus.forget_leader(node) {
                    self.orphaned = Some(0);
                    self.stand_in();
                }
            }
            Input::Dismissed(voter) => self.dismissed |= voter == self.consensus.voter(),
            Input::HasVote(voter, answer) => answer.complete(match self.consensus.is_settled() {
                true => ManagerReply::Vote { has: self.consensus.members().ids().any(|other| other == voter) },
                false => ManagerReply::NoQuorum,
            }),
            Input::Rejoin(node, answer) => {
                let is_manager = self.shared.map().is_some_and(|map| map.managers.contains(&node));
                if !is_manager {
                    return answer.complete(ManagerReply::Refused(format!("{node} is no manager")));
                }
                self.joining.retain(|(other, _)| *other != node);
                self.joining.push((node, answer));
            }
        }
    }

    /// Lets the next one that asked for a vote listen, as soon as nothing else is being decided.
    fn admit(&mut self) {
        if !self.consensus.is_leader() {
            // Dropped: they ask the next leader.
            return self.joining.clear();
        }
        while self.in_flight.is_none() && self.consensus.is_settled() {
            let Some((node, answer)) = self.joining.pop() else { return };
            if answer.is_abandoned() {
                continue;
            }
            // No voter's id comes twice: the log is longer each time, also when the node had no vote for a while.
            let by_log = voter(node, u32::try_from(self.consensus.log().applied().index).unwrap_or(u32::MAX));
            let lives = self.consensus.members().ids().filter(|voter| node_of(*voter) == node).max();
            let next = lives.map_or(by_log, |newest| by_log.max(newest + 1));
            match self.consensus.admit(next) {
                Ok(at) => {
                    let until = self.shared.handle.now() + self.shared.tunables.commit_wait;
                    let answer = Some((answer, ManagerReply::Rejoin { voter: next }));
                    self.in_flight = Some(InFlight { at, until, answer });
                }
                Err(_) => answer.complete(ManagerReply::NoQuorum),
            }
        }
    }

    /// Whether others vote than those whom the map names, or should.
    fn is_replacing(&self) -> bool {
        let Some(map) = self.consensus.map() else { return false };
        !self.consensus.members().are(&map.managers) || weft_placement::next_managers(map).is_some()
    }

    /// A manager that was replaced while it could not be reached hears of no leader: it asks now and then whether it still has
    /// a vote.
    fn look_for_leader(&mut self) {
        self.leaderless = if self.consensus.leader().is_some() { 0 } else { self.leaderless + 1 };
        if self.leaderless >= ORPHAN_TICKS {
            self.leaderless = 0;
            let look = find_out(self.shared.clone(), self.consensus.voter());
            self.shared.handle.spawn("look for a leader", look).detach();
        }
    }

    /// When the leader is known to be dead nobody waits for the election's time-out: the first of the managers that are left
    /// stands at once, each later one a tick after the one before it.
    fn stand_in(&mut self) {
        let (Some(ticks), None) = (self.orphaned, self.consensus.leader()) else {
            self.orphaned = None;
            return;
        };
        let Some(map) = self.consensus.map() else { return };
        let health = self.shared.health.borrow();
        let lives = |id: &&NodeId| {
            map.nodes.get(id).is_some_and(|node| node.state == State::Up && !health.is_dead(node.id, node.incarnation))
        };
        let left: Vec<NodeId> = map.managers.iter().filter(lives).copied().collect();
        let rank = left.iter().position(|id| Some(*id) == self.shared.node.get());
        drop(health);
        self.orphaned = (ticks < 2 * left.len()).then_some(ticks + 1);
        if rank.is_some_and(|rank| ticks % left.len() == rank) {
            self.consensus.campaign();
        }
    }

    /// Stores, sends and applies until there is nothing left to do.
    async fn work(&mut self) -> Result<(), AllLost> {
        while let Some(mut work) = self.consensus.work() {
            std::mem::take(&mut work.send).into_iter().for_each(|message| self.send(message));
            let restored = work.restored;
            if work.must_store || restored {
                // That takes its time: nobody is left to wonder whether the message arrived.
                self.answers.clear();
            }
            self.store(&work).await?;
            let done = self.consensus.finish(work);
            done.send.into_iter().for_each(|message| self.send(message));
            let moved = restored || !done.applied.is_empty();
            for applied in done.applied {
                self.settle(applied);
            }
            if moved && let Some(map) = self.consensus.map().cloned() {
                self.hear_admitted(&done.deltas);
                self.shared.take_map(self.consensus.log().applied(), map, done.deltas);
            }
            self.show();
        }
        self.answers.clear();
        self.cut().await;
        Ok(())
    }

    /// With the answer to whom it is for, if that one waits.
    fn send(&mut self, message: Outgoing) {
        self.answers.retain(|(_, answer)| !answer.is_abandoned());
        match self.answers.iter().position(|(node, _)| *node == message.node && !message.is_snapshot) {
            Some(waiting) => self.answers.swap_remove(waiting).1.complete(message.bytes),
            None => self.shared.send(message),
        }
    }

    /// A node that was just admitted has shown that it lives.
    fn hear_admitted(&self, deltas: &[Delta]) {
        let now = self.shared.handle.now();
        let mut health = self.shared.health.borrow_mut();
        for change in deltas.iter().flat_map(|delta| &delta.changes) {
            if let Change::Node(node) = change
                && matches!(node.state, State::Up | State::Draining)
            {
                health.hear(node.id, now, &self.shared.tunables);
            }
        }
    }

    async fn store(&mut self, work: &Work) -> Result<(), AllLost> {
        let record = self.record();
        if work.restored {
            // From here on nobody may store the map from before.
            self.shared.current.replace(self.consensus.map().map(|map| (self.consensus.log().applied(), map.clone())));
        }
        if work.restored
            && let Some(record) = &record
            && !self.copies.write_map(record).await
        {
            // The copy that failed fails for the log as well and is struck there; the others have the map.
            tracing::error!("a map from the leader could not be stored on every copy");
        }
        if work.must_store {
            self.copies.write(self.consensus.log(), record.as_ref()).await?;
        }
        Ok(())
    }

    fn record(&self) -> Option<MapRecord> {
        let map = Map::clone(self.consensus.map()?);
        Some(MapRecord { node: self.shared.node.get()?, place: self.consensus.log().applied(), map })
    }

    /// Shortens the log once the map that stands for its beginning is durable.
    async fn cut(&mut self) {
        let log = self.consensus.log().clone();
        let tunables = &self.shared.tunables;
        if log.len() <= tunables.log_entries_max && log.bytes() <= tunables.log_bytes_max {
            return;
        }
        if let Some(record) = self.record()
            && self.copies.write_map(&record).await
        {
            log.cut(record.place.index);
        }
    }

    /// Answers the proposal that this entry was, or that it took the place of.
    fn settle(&mut self, applied: Applied) {
        if self.in_flight.as_ref().is_none_or(|flight| applied.index < flight.at.index) {
            return;
        }
        let Some(flight) = self.in_flight.take() else { return };
        let Some((answer, reply)) = flight.answer else { return };
        answer.complete(if applied == flight.at { reply } else { ManagerReply::NoQuorum });
    }

    /// Lets the next proposal go, if the last one is through, and answers those that have waited too long.
    fn decide(&mut self) {
        let now = self.shared.handle.now();
        if self.in_flight.as_ref().is_some_and(|flight| now >= flight.until || !self.consensus.is_leader()) {
            // Whether it is ever committed is open; nothing else is decided before the log is settled.
            let answer = self.in_flight.take().and_then(|flight| flight.answer);
            answer.into_iter().for_each(|(answer, _)| answer.complete(ManagerReply::NoQuorum));
        }
        if !self.consensus.is_leader() {
            let asked = std::mem::take(&mut *self.shared.proposals.borrow_mut());
            let leader = self.consensus.leader();
            asked.into_iter().for_each(|asked| asked.answer.complete(ManagerReply::NotLeader(leader)));
            return;
        }
        while self.in_flight.is_none() && self.consensus.is_settled() {
            let asked = self.shared.proposals.borrow_mut().pop_front();
            let (Some(asked), Some(map)) = (asked, self.consensus.map().cloned()) else { return };
            match decide::decide(&map, &asked.proposal) {
                Decision::Refused(text) => asked.answer.complete(ManagerReply::Refused(text)),
                Decision::Nothing(outcome) => asked.answer.complete(committed(map.version, outcome)),
                Decision::Change(delta, outcome) => match self.consensus.propose(&delta) {
                    Ok(at) => {
                        let answer = Some((asked.answer, committed(delta.version, outcome)));
                        self.in_flight = Some(InFlight { at, until: asked.until, answer });
                    }
                    Err(_) => asked.answer.complete(ManagerReply::NoQuorum),
                },
            }
        }
        loop {
            let late = self.shared.proposals.borrow_mut().pop_front_if(|asked| now >= asked.until);
            let Some(late) = late else { return };
            late.answer.complete(ManagerReply::NoQuorum);
        }
    }

    /// The leader's own business: who lives, who leads instead of the dead, who forgot its vote. Returns whether it is done.
    fn tend(&mut self) -> bool {
        let now = self.shared.handle.now();
        let leads = self.consensus.is_leader();
        let (Some(map), true) = (self.consensus.map().cloned(), leads) else {
            self.led = leads;
            return true;
        };
        if !self.led {
            self.shared.health.borrow_mut().begin(&map, now, self.shared.started, &self.shared.tunables);
            self.led = true;
        }
        self.shared.health.borrow_mut().look(now, &self.shared.tunables);
        if let (Some(node), Some(incarnation)) = (self.shared.node.get(), self.shared.incarnation.get()) {
            self.shared.hear(node, incarnation);
        }
        let ask = self.shared.health.borrow_mut().whom_to_ask(&map, now, &self.shared.tunables);
        ask.into_iter().for_each(|node| self.ask(node));
        if self.in_flight.is_some() || !self.consensus.is_settled() {
            return false;
        }
        if self.shared.health.borrow().is_unsure() {
            // The answer brings it back here.
            return true;
        }
        let states = self.shared.health.borrow_mut().judge(&map, now, &self.shared.tunables);
        for (node, state) in &states {
            tracing::warn!(%node, ?state, "a node is in another state");
        }
        let news = !states.is_empty() || self.looked_at < map.version;
        self.looked_at = map.version;
        match news.then(|| weft_placement::node_states(&map, &states)).flatten() {
            Some(delta) => {
                if let Ok(at) = self.consensus.propose(&delta) {
                    let until = now + self.shared.tunables.commit_wait;
                    self.in_flight = Some(InFlight { at, until, answer: None });
                }
            }
            None => self.tend_slowly(&map, now),
        }
        true
    }

    /// What can wait until nothing presses: who votes, and where shards go.
    fn tend_slowly(&mut self, map: &Map, now: Instant) {
        if self.consensus.tend_members(&map.managers) {
            return;
        }
        let states: Vec<State> = map.nodes.values().map(|node| node.state).collect();
        if self.calm.0 != states {
            self.calm = (states, now);
        }
        let is_calm = now.since(self.calm.1) >= self.shared.tunables.move_after && !self.calm.0.contains(&State::Away);
        // One at a time: whoever is to vote and can does so first.
        let awaited: Vec<NodeId> = map
            .managers
            .iter()
            .filter(|id| {
                map.nodes.get(id).is_some_and(|node| node.state != State::Failed && node.purpose == Purpose::Serve)
            })
            .copied()
            .collect();
        let managers = self.consensus.all_vote(&awaited).then(|| weft_placement::next_managers(map)).flatten();
        let delta = match managers {
            Some(managers) => {
                tracing::info!(?managers, "other managers");
                Some(Delta { version: MapVersion(map.version.0 + 1), changes: vec![Change::Managers(managers)] })
            }
            None if is_calm && self.moved_at < map.version => {
                self.moved_at = map.version;
                weft_placement::next_moves(map)
            }
            None => None,
        };
        if let Some(delta) = delta
            && let Ok(at) = self.consensus.propose(&delta)
        {
            let until = now + self.shared.tunables.commit_wait;
            self.in_flight = Some(InFlight { at, until, answer: None });
        }
    }

    fn ask(&self, node: NodeId) {
        let shared = self.shared.clone();
        let ask = async move {
            let (answer, map) = shared.ask(node).await;
            if let Some(node) = map.as_ref().and_then(|map| map.nodes.get(&node)) {
                shared.health.borrow_mut().answered(node, answer, shared.handle.now(), &shared.tunables);
                shared.tend_now.set(true);
                shared.wake.notify_one();
            }
        };
        self.shared.handle.spawn("ask a node", ask).detach();
    }

    /// Publishes what this manager is.
    fn show(&self) {
        let members = self.consensus.members();
        let is_learner = members.learners.contains(&self.consensus.voter());
        self.shared.voters.replace(members.voters.iter().copied().map(node_of).collect());
        self.shared.role.set(match self.consensus.role() {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if is_learner || self.consensus.map().is_none() => Role::Learner,
            StateRole::Follower => Role::Follower,
        });
        self.shared.term.set(self.consensus.term());
        self.shared.set_leader(self.consensus.leader());
        if *self.shared.copies.borrow() != self.copies.listed() {
            self.shared.copies.replace(self.copies.listed().to_vec());
        }
    }

    async fn give_up(self, end: End) -> End {
        self.shared.role.set(Role::None);
        self.shared.set_leader(None);
        self.shared.copies.borrow_mut().clear();
        self.shared.voters.borrow_mut().clear();
        self.shared.inbox.borrow_mut().clear();
        self.shared.proposals.borrow_mut().clear();
        if end == End::Dismissed {
            self.copies.resign().await;
        }
        end
    }
}

fn committed(version: MapVersion, outcome: Outcome) -> ManagerReply {
    let Outcome { incarnation, fs, client } = outcome;
    ManagerReply::Committed { version, incarnation, fs, client }
}
