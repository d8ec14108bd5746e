//! Managers that are replaced: elections, a log that is copied, voters that go and come one at a time.
//!
//! The voting itself is the raft library's, and is here as far as its members matter: a manager that lost its memory, or
//! whose node left, must never bring about two leaders or the loss of a decision. Messages are late for ever: whoever was
//! elected may go on at any time, and votes are asked for and given one by one.
//!
//! | rule | implemented by |
//! |---|---|
//! | a vote and the log are durable before anything depends on them | `Copies::write`, `Driver::run` in weft-manager |
//! | who can't know what it promised never votes as that voter again | `recall` in copies.rs, `rejoin` in manager.rs of weft-manager |
//! | a new voter has an id that was never used, and what is committed | `decide::rejoin`, `Consensus` in weft-manager |
//! | one voter changes at a time, and the next only when everything before is committed | `Consensus::is_settled` in weft-manager |
//! | a change counts from its commitment on | the raft library |

use stateright::{Model, Property};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    Correct,
    /// A manager that forgot what it promised goes on voting as before.
    AmnesiacVotes,
    /// Two voters are replaced in one step.
    TwoAtOnce,
    /// Votes for candidates that know less than the voter.
    VoteForLess,
    /// A majority is counted among those who are left, not among all voters.
    MajorityOfTheLiving,
}

/// Bounds of the search.
#[derive(Clone, Debug)]
pub struct Managers {
    pub variant: Variant,
    /// The voters at first, a bit each.
    pub first: u8,
    /// Voters that there can ever be: those at first and those with new ids.
    pub voters: u8,
    pub terms_max: u8,
    /// Entries of the log, the first configuration included.
    pub entries_max: u8,
    pub forgets_max: u8,
}

pub const ELECTED: &str = "a term has one leader";
pub const COMMITTED: &str = "what is committed anywhere is committed everywhere, in one order";

/// A configuration: in the term of its leader, these are the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    term: u8,
    voters: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Role {
    Follower,
    /// Has these votes.
    Candidate(u8),
    Leader,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Voter {
    term: u8,
    /// Whom it voted for in this term.
    vote: Option<u8>,
    log: Vec<Entry>,
    /// Entries that it knows to be committed.
    committed: u8,
    role: Role,
    /// Its memory is gone: it takes part no more.
    gone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    voters: Vec<Voter>,
    /// Who was elected in each term, a bit each.
    elected: Vec<u8>,
    /// Entries that some leader counted as committed: the longest such log.
    decided: Vec<Entry>,
    /// Two logs were committed of which neither continues the other.
    split: bool,
    forgets: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Stand(u8),
    /// A voter gives a candidate its vote.
    Grant {
        voter: u8,
        candidate: u8,
    },
    /// A leader's log arrives at another voter.
    Copy {
        leader: u8,
        to: u8,
    },
    /// The leader hears that a majority has its log.
    Commit(u8),
    /// The leader appends a configuration.
    Change {
        leader: u8,
        voters: u8,
    },
    Forget(u8),
}

impl Voter {
    /// Who votes, as far as it knows: the newest configuration that is committed.
    fn configuration(&self) -> u8 {
        let known = usize::from(self.committed).checked_sub(1).and_then(|last| self.log.get(last));
        known.map_or(0, |entry| entry.voters)
    }

    fn knows_at_least(&self, other: &Voter) -> bool {
        let last = |voter: &Voter| voter.log.last().map_or(0, |entry| entry.term);
        (last(self), self.log.len()) >= (last(other), other.log.len())
    }

    fn hear(&mut self, term: u8) {
        if term > self.term {
            *self = Voter { term, vote: None, role: Role::Follower, ..self.clone() };
        }
    }
}

fn is_in(voters: u8, voter: u8) -> bool {
    voters & (1 << voter) != 0
}

impl Managers {
    fn majority(&self, state: &State, voters: u8, among: u8) -> bool {
        let all = match self.variant {
            Variant::MajorityOfTheLiving => {
                let living = (0..self.voters).filter(|id| !state.voters[usize::from(*id)].gone);
                voters & living.fold(0, |bits, id| bits | 1 << id)
            }
            _ => voters,
        };
        (all & among).count_ones() * 2 > all.count_ones()
    }

    /// How much of the leader's log a majority has.
    fn committable(&self, state: &State, leader: &Voter) -> u8 {
        let holds = |voter: &Voter, len: usize| voter.log.get(..len) == leader.log.get(..len);
        let longest = (usize::from(leader.committed) + 1..=leader.log.len()).rev().find(|len| {
            let holders = (0..self.voters).filter(|id| {
                let voter = &state.voters[usize::from(*id)];
                // What was lost answers nobody, but it did answer: its holding was counted when it was told.
                !voter.gone && holds(voter, *len)
            });
            let among = holders.fold(0, |bits, id| bits | 1 << id);
            leader.log[len - 1].term == leader.term && self.majority(state, leader.configuration(), among)
        });
        longest.map_or(leader.committed, |len| len as u8)
    }

    /// Who is gone is replaced by an id that was never used: removed first, then added.
    fn changes(&self, state: &State, leader: u8) -> Vec<u8> {
        let now = state.voters[usize::from(leader)].configuration();
        let unused = (0..self.voters).filter(|id| !is_in(self.first, *id) && !is_in(now, *id));
        if self.variant == Variant::TwoAtOnce {
            let new = unused.fold(0, |bits, id| bits | 1 << id);
            return if new == 0 { Vec::new() } else { vec![1 << leader | new] };
        }
        let gone = (0..self.voters).filter(|id| is_in(now, *id) && state.voters[usize::from(*id)].gone);
        let smaller = now.count_ones() < self.first.count_ones();
        gone.map(|id| now & !(1 << id)).chain(unused.filter(|_| smaller).map(|id| now | 1 << id)).collect()
    }

    fn commit(&self, state: &mut State, leader: u8) {
        let committed = self.committable(state, &state.voters[usize::from(leader)]);
        let voter = &mut state.voters[usize::from(leader)];
        voter.committed = committed;
        let log = voter.log[..usize::from(committed)].to_vec();
        let common = log.len().min(state.decided.len());
        if log[..common] != state.decided[..common] {
            state.split = true;
        } else if log.len() > state.decided.len() {
            state.decided = log;
        }
    }
}

impl Model for Managers {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // All have the first leader's first entry: how it came about has one outcome.
        let log = vec![Entry { term: 1, voters: self.first }];
        let voters = (0..self.voters).map(|id| {
            let member = is_in(self.first, id);
            Voter {
                term: u8::from(member),
                vote: member.then_some(0),
                log: if member { log.clone() } else { Vec::new() },
                committed: u8::from(member),
                role: if id == 0 { Role::Leader } else { Role::Follower },
                gone: false,
            }
        });
        let mut elected = vec![0; usize::from(self.terms_max) + 1];
        elected[1] = 1;
        vec![State { voters: voters.collect(), elected, decided: log, split: false, forgets: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (voter, id) in state.voters.iter().zip(0u8..).filter(|(voter, _)| !voter.gone) {
            if voter.role != Role::Leader && voter.term < self.terms_max && is_in(voter.configuration(), id) {
                actions.push(Action::Stand(id));
            }
            if let Role::Candidate(votes) = voter.role {
                let asked =
                    (0..self.voters).filter(|other| is_in(voter.configuration(), *other) && !is_in(votes, *other));
                actions.extend(asked.map(|other| Action::Grant { voter: other, candidate: id }));
            }
            if voter.role == Role::Leader {
                actions.extend((0..self.voters).filter(|to| *to != id).map(|to| Action::Copy { leader: id, to }));
                actions.push(Action::Commit(id));
                let settled = usize::from(voter.committed) == voter.log.len();
                if settled && voter.log.len() < usize::from(self.entries_max) {
                    let changes = self.changes(state, id).into_iter();
                    actions.extend(changes.map(|voters| Action::Change { leader: id, voters }));
                }
            }
            if state.forgets < self.forgets_max && is_in(self.first, id) {
                actions.push(Action::Forget(id));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Stand(id) => {
                let voter = &mut state.voters[usize::from(id)];
                voter.term += 1;
                voter.vote = Some(id);
                voter.role = Role::Candidate(1 << id);
            }
            Action::Grant { voter, candidate } => {
                let asking = last.voters[usize::from(candidate)].clone();
                let asked = &mut state.voters[usize::from(voter)];
                if asked.gone {
                    return None;
                }
                asked.hear(asking.term);
                let knows = asking.knows_at_least(asked) || self.variant == Variant::VoteForLess;
                let free = asked.term == asking.term && asked.vote.is_none_or(|vote| vote == candidate);
                if knows && free {
                    asked.vote = Some(candidate);
                    let Role::Candidate(votes) = asking.role else { return None };
                    let votes = votes | 1 << voter;
                    let won = self.majority(&state, asking.configuration(), votes);
                    let winner = &mut state.voters[usize::from(candidate)];
                    winner.role = if won { Role::Leader } else { Role::Candidate(votes) };
                    if won {
                        // Its first entry changes nothing: when it is committed, everything before it is.
                        let voters = winner.log.last().map_or(0, |entry| entry.voters);
                        let term = winner.term;
                        if winner.log.len() < usize::from(self.entries_max) {
                            winner.log.push(Entry { term, voters });
                        }
                        state.elected[usize::from(term)] |= 1 << candidate;
                    }
                }
            }
            Action::Copy { leader, to } => {
                let (term, log, committed) = {
                    let leader = &last.voters[usize::from(leader)];
                    (leader.term, leader.log.clone(), leader.committed)
                };
                let voter = &mut state.voters[usize::from(to)];
                if voter.gone || term < voter.term {
                    return None;
                }
                voter.hear(term);
                if voter.role == Role::Leader {
                    return None;
                }
                voter.role = Role::Follower;
                voter.log = log;
                voter.committed = voter.committed.max(committed);
            }
            Action::Commit(id) => self.commit(&mut state, id),
            Action::Change { leader, voters } => {
                let voter = &mut state.voters[usize::from(leader)];
                let term = voter.term;
                voter.log.push(Entry { term, voters });
            }
            Action::Forget(id) => {
                state.forgets += 1;
                let voter = &mut state.voters[usize::from(id)];
                match self.variant {
                    Variant::AmnesiacVotes => {
                        // It has the map, as every node does, and nothing of what it promised.
                        let first = voter.log.first().copied();
                        *voter = Voter {
                            term: 0,
                            vote: None,
                            log: first.into_iter().collect(),
                            committed: 1,
                            role: Role::Follower,
                            gone: false,
                        };
                    }
                    _ => voter.gone = true,
                }
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ELECTED, |_, state: &State| state.elected.iter().all(|leaders| leaders.count_ones() <= 1)),
            Property::always(COMMITTED, |_, state: &State| !state.split),
            Property::sometimes("another voter takes the place of one that forgot", |model: &Self, state: &State| {
                let newest = state.decided.last().map_or(0, |entry| entry.voters);
                state.forgets > 0 && newest & !model.first != 0
            }),
            Property::sometimes("a leader is elected by votes of a new voter", |model: &Self, state: &State| {
                let new = (0..model.voters).filter(|id| !is_in(model.first, *id));
                state.voters.iter().any(|voter| voter.role == Role::Leader)
                    && new.into_iter().any(|id| state.voters[usize::from(id)].vote.is_some_and(|vote| vote != id))
            }),
        ]
    }
}
