//! Transactions over several buckets: one coordinator, its participants, leaders that change, messages that are late.
//!
//! A bucket's journal is taken as proven (see [`crate::journal`]): what stands is adopted by every later leader, what
//! does not may be. Memory is lost with the leader. Messages arrive at any later time, commits and asks any number of times.
//!
//! | rule | implemented by |
//! |---|---|
//! | begin stands before an intent is asked for | `Namespace::begin` in weft-namespace |
//! | an intent is asked for once; it is answered when it stands | `Namespace::decide`, `Namespace::prepare` |
//! | the decision is one record of the leader that began; it stands before anyone hears of it | `Namespace::decide`, `Namespace::finish` |
//! | a new leader aborts what it finds undecided | `Namespace::load_transactions` |
//! | what is not known was aborted; answers go by what stands | `Namespace::outcome`, `Namespace::assist` |
//! | an outcome is confirmed when it stands | `Namespace::conclude`, `Namespace::assist` |
//! | a decision is kept until all have confirmed | `Namespace::finish` |

use stateright::{Model, Property};
use std::collections::BTreeSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    Correct,
    /// Asks for intents before begin is even in the journal.
    IntentBeforeBegin,
    /// Asks for an intent once more when no answer came.
    PrepareAgain,
    /// A participant answers before its intent stands.
    PreparedBeforeIntentStands,
    /// The outcome is told before the decision stands.
    CommitBeforeDecisionStands,
    /// A new leader leaves what it finds undecided as it is.
    UndecidedStays,
    /// Confirms an outcome that doesn't stand yet.
    ConfirmBeforeOutcomeStands,
    /// Forgets the decision when it has been told.
    ForgetBeforeConfirmed,
    /// Answers from records that don't stand yet.
    OutcomeOfUnsettled,
}

/// Bounds of the search.
#[derive(Clone, Debug)]
pub struct Transactions {
    pub variant: Variant,
    pub participants: u8,
    /// Changes of leader, of all buckets together.
    pub changes_max: u8,
}

/// Everywhere or nowhere.
pub const ATOMIC: &str = "no participant follows what another does not";
pub const ONCE: &str = "an outcome is followed once";
/// Looking at the coordinator and then at a participant never shows one half alone.
pub const HIDDEN: &str = "once the decision can be seen, its participants show it or make who looks wait";
pub const DONE: &str = "when nothing can happen any more, no intent waits";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Entry {
    Begin,
    Decide,
    Forget,
    Intent,
    Committed,
    Aborted,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Journal {
    log: Vec<Entry>,
    stands: u8,
}

impl Journal {
    fn standing(&self) -> &[Entry] {
        &self.log[..usize::from(self.stands)]
    }

    fn settled(&self) -> bool {
        usize::from(self.stands) == self.log.len()
    }

    fn has(&self, entry: Entry) -> bool {
        self.log.contains(&entry)
    }
}

/// Whether an intent waits for its outcome.
fn waits(log: &[Entry]) -> bool {
    log.last() == Some(&Entry::Intent)
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    coordinator: Journal,
    participants: Vec<Journal>,
    changes: u8,
    /// The coordinator's memory: it leads since before the begin, and collects consent.
    collects: bool,
    asked: BTreeSet<u8>,
    prepared: BTreeSet<u8>,
    confirmed: BTreeSet<u8>,
    /// Under way.
    prepares: Vec<u8>,
    consents: BTreeSet<u8>,
    confirmations: BTreeSet<u8>,
    /// The coordinator has told the outcome.
    told: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Begin,
    StandHere,
    Stand(u8),
    Ask(u8),
    AskAgain(u8),
    /// A request for an intent arrives.
    Prepare(u8),
    /// The participant says that it is prepared; later the coordinator hears it.
    Consent(u8),
    Hear(u8),
    Decide,
    Abort,
    /// The coordinator begins to tell the outcome.
    Tell,
    /// The outcome arrives.
    Follow(u8),
    Confirm(u8),
    HearConfirmed(u8),
    Forget,
    /// A participant asks, and follows the answer.
    Question(u8),
    NewLeaderHere {
        adopted: u8,
    },
    NewLeader {
        participant: u8,
        adopted: u8,
    },
}

impl Transactions {
    fn is(&self, variant: Variant) -> bool {
        self.variant == variant
    }

    /// The coordinator's answer to a participant that asks.
    fn outcome(&self, state: &State, participant: u8) -> Option<bool> {
        let journal = &state.coordinator;
        if !journal.settled() && !self.is(Variant::OutcomeOfUnsettled) {
            return None;
        }
        match journal.log.last() {
            Some(Entry::Decide) => Some(!state.confirmed.contains(&participant)),
            Some(Entry::Begin) => None,
            _ => Some(false),
        }
    }

    fn follow(state: &mut State, participant: u8, committed: bool) {
        let journal = &mut state.participants[usize::from(participant)];
        if waits(&journal.log) {
            journal.log.push(if committed { Entry::Committed } else { Entry::Aborted });
        }
    }

    /// Everything but changes of leader.
    fn steps(&self, state: &State, actions: &mut Vec<Action>) {
        let here = &state.coordinator;
        if here.log.is_empty() && state.collects {
            actions.push(Action::Begin);
        }
        if !here.settled() {
            actions.push(Action::StandHere);
        }
        let undecided = here.log.last() == Some(&Entry::Begin) && state.collects;
        let begun = undecided && here.settled();
        for (journal, index) in state.participants.iter().zip(0u8..) {
            if !journal.settled() {
                actions.push(Action::Stand(index));
            }
            let early = self.is(Variant::IntentBeforeBegin) && state.collects && here.log.is_empty();
            if (begun || early) && !state.asked.contains(&index) {
                actions.push(Action::Ask(index));
            }
            if self.is(Variant::PrepareAgain)
                && undecided
                && state.asked.contains(&index)
                && !state.prepared.contains(&index)
                && state.prepares.iter().filter(|asked| **asked == index).count() < 2
            {
                actions.push(Action::AskAgain(index));
            }
            if state.prepares.contains(&index) && !waits(&journal.log) {
                actions.push(Action::Prepare(index));
            }
            let stands = waits(journal.standing()) && journal.settled();
            if stands || (self.is(Variant::PreparedBeforeIntentStands) && waits(&journal.log)) {
                actions.push(Action::Consent(index));
            }
            if state.consents.contains(&index) && undecided {
                actions.push(Action::Hear(index));
            }
            if state.told.is_some() && waits(&journal.log) {
                actions.push(Action::Follow(index));
            }
            let concluded = !waits(&journal.log) && (journal.settled() || self.is(Variant::ConfirmBeforeOutcomeStands));
            if state.told == Some(true) && concluded {
                actions.push(Action::Confirm(index));
            }
            if state.confirmations.contains(&index) && here.has(Entry::Decide) {
                actions.push(Action::HearConfirmed(index));
            }
            if waits(&journal.log) && self.outcome(state, index).is_some() {
                actions.push(Action::Question(index));
            }
        }
        let all = usize::from(self.participants);
        if undecided && state.prepared.len() == all {
            actions.push(Action::Decide);
        }
        if undecided {
            actions.push(Action::Abort);
        }
        let decided = here.log.last() == Some(&Entry::Decide);
        if decided && (here.settled() || self.is(Variant::CommitBeforeDecisionStands)) && state.told.is_none() {
            actions.push(Action::Tell);
        }
        let known = state.confirmed.len() == all || self.is(Variant::ForgetBeforeConfirmed);
        if decided && state.told.is_some() && known {
            actions.push(Action::Forget);
        }
    }
}

impl Model for Transactions {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            coordinator: Journal::default(),
            participants: vec![Journal::default(); usize::from(self.participants)],
            changes: 0,
            collects: true,
            asked: BTreeSet::new(),
            prepared: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            prepares: Vec::new(),
            consents: BTreeSet::new(),
            confirmations: BTreeSet::new(),
            told: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.steps(state, actions);
        if state.changes < self.changes_max {
            let adoptions = |journal: &Journal| journal.stands..=journal.log.len() as u8;
            actions.extend(adoptions(&state.coordinator).map(|adopted| Action::NewLeaderHere { adopted }));
            for (journal, participant) in state.participants.iter().zip(0u8..) {
                actions.extend(adoptions(journal).map(|adopted| Action::NewLeader { participant, adopted }));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin => state.coordinator.log.push(Entry::Begin),
            Action::StandHere => state.coordinator.stands += 1,
            Action::Stand(index) => state.participants[usize::from(index)].stands += 1,
            Action::Ask(index) | Action::AskAgain(index) => {
                state.asked.insert(index);
                state.prepares.push(index);
                state.prepares.sort_unstable();
            }
            Action::Prepare(index) => {
                let arrived = state.prepares.iter().position(|asked| *asked == index)?;
                state.prepares.remove(arrived);
                state.participants[usize::from(index)].log.push(Entry::Intent);
            }
            Action::Consent(index) => drop(state.consents.insert(index)),
            Action::Hear(index) => drop(state.prepared.insert(index)),
            Action::Decide => state.coordinator.log.push(Entry::Decide),
            Action::Abort => {
                state.coordinator.log.push(Entry::Forget);
                state.collects = false;
                state.told = Some(false);
            }
            Action::Tell => state.told = Some(true),
            Action::Follow(index) => Self::follow(&mut state, index, last.told?),
            Action::Confirm(index) => drop(state.confirmations.insert(index)),
            Action::HearConfirmed(index) => drop(state.confirmed.insert(index)),
            Action::Forget => state.coordinator.log.push(Entry::Forget),
            Action::Question(index) => {
                let committed = self.outcome(last, index)?;
                Self::follow(&mut state, index, committed);
            }
            Action::NewLeaderHere { adopted } => {
                state.changes += 1;
                let journal = &mut state.coordinator;
                journal.log.truncate(usize::from(adopted));
                journal.stands = adopted;
                state.collects = false;
                state.prepared.clear();
                state.confirmed.clear();
                // What was sent stays under way; a decision is told again.
                if journal.log.last() == Some(&Entry::Begin) && !self.is(Variant::UndecidedStays) {
                    journal.log.push(Entry::Forget);
                }
            }
            Action::NewLeader { participant, adopted } => {
                state.changes += 1;
                let journal = &mut state.participants[usize::from(participant)];
                journal.log.truncate(usize::from(adopted));
                journal.stands = adopted;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ATOMIC, |_, state: &State| {
                let decided = state.coordinator.standing().contains(&Entry::Decide);
                let committed = state.participants.iter().any(|journal| journal.standing().contains(&Entry::Committed));
                let torn = state
                    .participants
                    .iter()
                    .any(|journal| journal.standing().contains(&Entry::Aborted) && !journal.has(Entry::Committed));
                (decided || !committed) && !(decided && torn)
            }),
            Property::always(ONCE, |_, state: &State| {
                let times = |journal: &Journal| journal.log.iter().filter(|entry| **entry == Entry::Committed).count();
                state.participants.iter().all(|journal| times(journal) <= 1)
            }),
            Property::always(HIDDEN, |_, state: &State| {
                !state.coordinator.standing().contains(&Entry::Decide)
                    || state.participants.iter().all(|journal| waits(&journal.log) || journal.has(Entry::Committed))
            }),
            Property::always(DONE, |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.steps(state, &mut actions);
                let stuck = actions.into_iter().all(|action| model.next_state(state, action).is_none());
                !stuck || state.participants.iter().all(|journal| !waits(&journal.log))
            }),
            Property::sometimes("all follow a decision, and it is forgotten", |_, state: &State| {
                state.participants.iter().all(|journal| journal.standing().contains(&Entry::Committed))
                    && state.coordinator.standing().last() == Some(&Entry::Forget)
            }),
            Property::sometimes("a new leader aborts while an intent waits", |_, state: &State| {
                state.changes > 0
                    && !state.coordinator.has(Entry::Decide)
                    && state.coordinator.standing().last() == Some(&Entry::Forget)
                    && state.participants.iter().any(|journal| waits(&journal.log))
            }),
        ]
    }
}
