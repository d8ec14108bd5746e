//! Ensemble change, sealing and epoch start of a bucket's journal.
//!
//! Drives, leaders of several epochs, the map's list of ensembles. A leader never dies in this model: it may stop at
//! any point and go on at any later one, so that every crash, every late message and every race of two leaders is a
//! path. A copy counts towards an acknowledgement as soon as a drive has it, which is earlier than any leader can
//! know: what holds here holds for every later moment of acknowledging.
//!
//! | rule | implemented by |
//! |---|---|
//! | a drive refuses appends of epochs below its seal, durably | `DriveServer::handle` in weft-drive |
//! | what counts, where the log ends, what is adopted | [`weft_journal::Gathered::decide`], called here |
//! | N-P drives of each listed ensemble are sealed before deciding | `Gathered::quorum`, `Recovery::step` |
//! | what may lack copies is copied, then the start is written, then the leader serves | `Replicator::advance` |
//! | acknowledgement in sequence order at P+1 of the current ensemble | `Replicator::advance` |
//! | records keep their epoch when they are copied | `Replicator::new`, `Replicator::poll` |
//! | an earlier ensemble is dropped when all adopted records stand on P+1 of the current one | `Replicator::copied` |

use bytes::Bytes;
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use weft_journal::{Decision, DriveView, EpochStart, Gathered, Known, Record, Verdict};
use weft_wire::drive::{RecordHeader, RecordKind, TailSummary};
use weft_wire::{BucketId, DriveId, Epoch, Seq};

/// The protocol, or the protocol with one rule broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    Correct,
    /// Acknowledges at P copies.
    AcknowledgeAtP,
    /// Decides with one seal less than N-P.
    SkipASeal,
    /// A drive forgets its seal when it restarts.
    ForgetSealAtRestart,
    /// Adopts whatever is held, of whatever epoch.
    IgnoreEpochs,
    /// Copies adopted records as records of the new epoch.
    ReappendUnderNewEpoch,
    /// Seals the current ensemble only.
    SealCurrentOnly,
    /// Drops the earlier ensemble as soon as the new leader serves.
    DropEnsembleEarly,
    /// Writes the epoch start without waiting for the copies.
    StartBeforeCopies,
    /// Serves without waiting for the epoch start to stand.
    ServeBeforeStart,
}

/// Also says that what a leader which served had not adopted is never adopted later: it would be no prefix any more.
pub const KEEPS: &str = "every later leader adopts what earlier ones acknowledged or adopted, and nothing between";
/// No leader with enough seals stops for want of knowledge: with P drives away the bucket goes on.
pub const DECIDES: &str = "a leader with enough seals can decide";

/// Bounds of the search.
#[derive(Clone, Debug)]
pub struct Journal {
    pub variant: Variant,
    /// P.
    pub parity: usize,
    /// Oldest first; the map moves from each to the next once.
    pub ensembles: Vec<Vec<u8>>,
    /// Each epoch that can bring another ensemble does.
    pub moves_at_once: bool,
    pub epochs_max: u8,
    /// Batches that the leader of each epoch appends; epochs beyond the list append none.
    pub batches_max: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DriveState {
    sealed: u8,
    /// Epoch of the record at each sequence.
    held: BTreeMap<u8, u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Sealing,
    Decided,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    /// Listed ensembles when the epoch was given, the current one first.
    listed: Vec<u8>,
    phase: Phase,
    /// Drives that it sealed: a bit each.
    sealed: u8,
    /// Epochs of the adopted records, from sequence 1 on.
    adopted: Vec<u8>,
    /// What was known to be acknowledged at the decision.
    mark: u8,
    history: Vec<(u8, u8)>,
    /// Acknowledged mark in each batch that it appended.
    batches: Vec<u8>,
    /// Drives that hold each record, as far as the leader knows: adopted, start, batches.
    copies: Vec<u8>,
}

impl Leader {
    fn new(listed: Vec<u8>) -> Self {
        Self {
            listed,
            phase: Phase::Sealing,
            sealed: 0,
            adopted: Vec::new(),
            mark: 0,
            history: Vec::new(),
            batches: Vec::new(),
            copies: Vec::new(),
        }
    }

    fn tail(&self) -> u8 {
        self.adopted.len() as u8
    }

    fn start(&self) -> u8 {
        self.tail() + 1
    }

    fn last(&self) -> u8 {
        self.start() + self.batches.len() as u8
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    drives: Vec<DriveState>,
    /// The leader of epoch e is at e-1.
    leaders: Vec<Leader>,
    /// Ensembles that the map lists, the current one first.
    listed: Vec<u8>,
    dropped: bool,
    restarts: u8,
    /// A leader with enough seals could not decide.
    stuck: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The managers give the next epoch, perhaps together with the next ensemble.
    Lead {
        new_ensemble: bool,
    },
    Seal {
        epoch: u8,
        drive: u8,
    },
    Decide {
        epoch: u8,
    },
    /// An append reaches a drive.
    Send {
        epoch: u8,
        drive: u8,
        seq: u8,
    },
    Batch {
        epoch: u8,
    },
    /// The leader reports that the adopted log is copied.
    Report {
        epoch: u8,
    },
    Restart {
        drive: u8,
    },
}

const RESTARTS_MAX: u8 = 1;

impl Journal {
    fn current(&self, leader: &Leader) -> &[u8] {
        &self.ensembles[usize::from(leader.listed[0])]
    }

    /// Up to where the leader's log stands on enough drives.
    fn acknowledged(&self, leader: &Leader) -> u8 {
        let needed = if self.variant == Variant::AcknowledgeAtP { self.parity } else { self.parity + 1 };
        let mut seq = leader.mark;
        while seq < leader.last() && leader.copies[usize::from(seq)].count_ones() as usize >= needed {
            seq += 1;
        }
        seq
    }

    fn serving(&self, leader: &Leader) -> bool {
        leader.phase == Phase::Decided && self.acknowledged(leader) >= leader.start()
    }

    fn epoch_of(leader: &Leader, epoch: u8, seq: u8) -> u8 {
        leader.adopted.get(usize::from(seq) - 1).copied().unwrap_or(epoch)
    }

    /// Whether `later` adopted everything that `earlier` adopted or acknowledged.
    fn has_what_counts(&self, earlier: &Leader, epoch: u8, later: &Leader) -> bool {
        (1..=self.acknowledged(earlier)).all(|seq| {
            let adopted = later.adopted.get(usize::from(seq) - 1);
            adopted == Some(&Self::epoch_of(earlier, epoch, seq))
        })
    }

    /// Whether what `earlier` had left behind is left behind by `later`.
    fn has_nothing_between(earlier: &Leader, epoch: u8, later: &Leader) -> bool {
        later.adopted.iter().skip(usize::from(earlier.tail())).all(|adopted| *adopted >= epoch)
    }

    /// Whether the leader may send the record at `seq` by now.
    fn may_send(&self, leader: &Leader, seq: u8) -> bool {
        if seq <= leader.tail() {
            return seq > leader.mark || leader.listed.len() > 1;
        }
        if seq == leader.start() {
            return self.variant == Variant::StartBeforeCopies || self.acknowledged(leader) >= leader.tail();
        }
        true
    }

    fn copied(&self, leader: &Leader) -> bool {
        let stands = |copies: &u8| copies.count_ones() as usize > self.parity;
        self.serving(leader) && leader.copies[..leader.adopted.len()].iter().all(stands)
    }

    /// The record that a drive holds, as the drive would send it.
    fn record(&self, state: &State, seq: u8, epoch: u8) -> Record {
        let writer = &state.leaders[usize::from(epoch) - 1];
        let (kind, payload, mark) = if seq == writer.start() {
            (RecordKind::EpochStart, start_of(writer, epoch).encode(), writer.mark)
        } else {
            let batch = seq.checked_sub(writer.start() + 1).and_then(|nth| writer.batches.get(usize::from(nth)));
            (RecordKind::Batch, Bytes::new(), batch.copied().unwrap_or(writer.mark))
        };
        let (epoch, seq, acknowledged) = (Epoch(epoch.into()), Seq(seq.into()), Seq(mark.into()));
        let header = RecordHeader { epoch, seq, kind, acknowledged, len_bytes: payload.len() as u32, checksum: 0 };
        Record { header, payload }
    }

    fn gathered(&self, state: &State, epoch: u8) -> Gathered {
        let leader = &state.leaders[usize::from(epoch) - 1];
        let listed = match self.variant {
            Variant::SealCurrentOnly => &leader.listed[..1],
            _ => &leader.listed[..],
        };
        let drive_ids = |index: &u8| self.ensembles[usize::from(*index)].iter().map(|d| DriveId((*d).into())).collect();
        let mut gathered = Gathered {
            bucket: BucketId(0),
            epoch: Epoch(epoch.into()),
            // One drive more may be missing: one seal less is asked for.
            parity: self.parity + usize::from(self.variant == Variant::SkipASeal),
            ensembles: listed.iter().map(drive_ids).collect(),
            read_from: Seq::FIRST,
            drives: BTreeMap::new(),
            records: BTreeMap::new(),
        };
        for (index, drive) in state.drives.iter().enumerate().filter(|(index, _)| leader.sealed & (1 << index) != 0) {
            let mut acknowledged = Seq(0);
            let mut held = BTreeSet::new();
            for (seq, epoch) in &drive.held {
                let record = self.record(state, *seq, *epoch);
                acknowledged = acknowledged.max(record.header.acknowledged);
                held.insert((record.header.seq, record.header.epoch));
                gathered.records.insert((record.header.seq, record.header.epoch), record);
            }
            let first = drive.held.keys().next().copied().unwrap_or(1).into();
            let last = drive.held.keys().next_back().copied().unwrap_or(0).into();
            let summary = TailSummary { first: Seq(first), last: Seq(last), acknowledged, root: None };
            let view = DriveView { summary, complete: true, held, unreadable: BTreeSet::new() };
            gathered.drives.insert(DriveId(index as u32), view);
        }
        gathered
    }

    /// What the variant adopts instead of what counts: at each sequence whatever the lowest drive holds.
    fn adopt_anything(&self, state: &State, epoch: u8) -> Vec<u8> {
        let leader = &state.leaders[usize::from(epoch) - 1];
        let sealed = || state.drives.iter().enumerate().filter(|(index, _)| leader.sealed & (1 << index) != 0);
        (1..).map_while(|seq| sealed().find_map(|(_, drive)| drive.held.get(&seq).copied())).collect()
    }

    /// The same state with drives renumbered: drives of the same ensembles are interchangeable.
    fn canonical(&self, state: State) -> State {
        let column = |bits: u8, drive: u8| bits & (1 << drive) != 0;
        let key = |drive: u8| {
            let ensembles: Vec<bool> = self.ensembles.iter().map(|drives| drives.contains(&drive)).collect();
            let bits: Vec<bool> = state
                .leaders
                .iter()
                .flat_map(|leader| std::iter::once(&leader.sealed).chain(&leader.copies))
                .map(|bits| column(*bits, drive))
                .collect();
            (ensembles, &state.drives[usize::from(drive)], bits)
        };
        // Drives of one kind trade places among themselves only.
        let mut order: Vec<u8> = (0..state.drives.len() as u8).collect();
        let kinds: BTreeSet<Vec<bool>> = order.iter().map(|drive| key(*drive).0).collect();
        for kind in kinds {
            let places: Vec<usize> =
                order.iter().map(|d| usize::from(*d)).filter(|d| key(*d as u8).0 == kind).collect();
            let mut sorted: Vec<u8> = places.iter().map(|place| *place as u8).collect();
            sorted.sort_by(|a, b| key(*a).cmp(&key(*b)));
            for (place, drive) in places.into_iter().zip(sorted) {
                order[place] = drive;
            }
        }
        let remap =
            |bits: u8| order.iter().enumerate().fold(0, |new, (to, from)| new | (u8::from(column(bits, *from)) << to));
        let mut renumbered = state.clone();
        renumbered.drives = order.iter().map(|from| state.drives[usize::from(*from)].clone()).collect();
        for leader in &mut renumbered.leaders {
            leader.sealed = remap(leader.sealed);
            leader.copies.iter_mut().for_each(|copies| *copies = remap(*copies));
        }
        renumbered
    }

    fn decide(&self, state: &mut State, epoch: u8) {
        let gathered = self.gathered(state, epoch);
        let decision = match gathered.decide() {
            Verdict::Decided(decision) => decision,
            // Too late: a higher epoch began.
            Verdict::Refuse(weft_journal::RecoverError::Sealed(_)) => return,
            _ if self.variant == Variant::IgnoreEpochs => return,
            _ => return state.stuck = true,
        };
        let Decision { records, acknowledged, start, known, .. } = *decision;
        let anything = self.adopt_anything(state, epoch);
        let leader = &mut state.leaders[usize::from(epoch) - 1];
        leader.phase = Phase::Decided;
        leader.adopted = records.iter().map(|record| record.header.epoch.0 as u8).collect();
        leader.mark = acknowledged.0 as u8;
        leader.history = start.history.iter().map(|(epoch, seq)| (epoch.0 as u8, seq.0 as u8)).collect();
        leader.copies = vec![0; leader.adopted.len() + 1];
        match self.variant {
            Variant::IgnoreEpochs => {
                leader.adopted = anything;
                leader.mark = leader.mark.min(leader.tail());
                leader.copies = vec![0; leader.adopted.len() + 1];
            }
            Variant::ReappendUnderNewEpoch => {
                let mark = usize::from(leader.mark);
                leader.adopted[mark..].fill(epoch);
                leader.history.retain(|(_, first)| *first <= leader.mark);
                leader.history.push((epoch, leader.mark + 1));
            }
            _ => {
                for (drive, known) in known {
                    let Known::Holds(held) = known else { continue };
                    for seq in held {
                        leader.copies[seq.0 as usize - 1] |= 1 << drive.0;
                    }
                }
            }
        }
    }
}

fn start_of(leader: &Leader, epoch: u8) -> EpochStart {
    let history = leader.history.iter().map(|(epoch, seq)| (Epoch((*epoch).into()), Seq((*seq).into())));
    EpochStart { epoch: Epoch(epoch.into()), seq: Seq(leader.start().into()), history: history.collect() }
}

impl Model for Journal {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let drives = self.ensembles.iter().flatten().max().map_or(0, |highest| usize::from(*highest) + 1);
        let mut state = State {
            drives: vec![DriveState::default(); drives],
            leaders: Vec::new(),
            listed: vec![0],
            dropped: false,
            restarts: 0,
            stuck: false,
        };
        // The first leader finds every drive empty: there is one outcome, so it is given.
        state.leaders.push(Leader::new(state.listed.clone()));
        for drive in &self.ensembles[0] {
            state.drives[usize::from(*drive)].sealed = 1;
            state.leaders[0].sealed |= 1 << drive;
        }
        self.decide(&mut state, 1);
        vec![self.canonical(state)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.stuck {
            return;
        }
        if state.leaders.len() < usize::from(self.epochs_max) {
            let another = usize::from(state.listed[0]) + 1 < self.ensembles.len();
            if another {
                actions.push(Action::Lead { new_ensemble: true });
            }
            if !(another && self.moves_at_once) {
                actions.push(Action::Lead { new_ensemble: false });
            }
        }
        for (leader, epoch) in state.leaders.iter().zip(1u8..) {
            let reach: &[u8] = if leader.phase == Phase::Sealing { &leader.listed } else { &leader.listed[..1] };
            let drives: BTreeSet<u8> =
                reach.iter().flat_map(|index| &self.ensembles[usize::from(*index)]).copied().collect();
            for drive in drives {
                if leader.sealed & (1 << drive) == 0 && state.drives[usize::from(drive)].sealed <= epoch {
                    actions.push(Action::Seal { epoch, drive });
                }
            }
            if leader.phase == Phase::Sealing {
                if self.gathered(state, epoch).quorum(|drive| leader.sealed & (1 << drive.0) != 0) {
                    actions.push(Action::Decide { epoch });
                }
                continue;
            }
            for drive in self.current(leader).iter().copied() {
                if leader.sealed & (1 << drive) == 0 || state.drives[usize::from(drive)].sealed > epoch {
                    continue;
                }
                for seq in 1..=leader.last() {
                    if leader.copies[usize::from(seq) - 1] & (1 << drive) == 0 && self.may_send(leader, seq) {
                        actions.push(Action::Send { epoch, drive, seq });
                    }
                }
            }
            let batches_max = self.batches_max.get(usize::from(epoch) - 1).copied().unwrap_or(0);
            if (self.serving(leader) || self.variant == Variant::ServeBeforeStart)
                && leader.batches.len() < usize::from(batches_max)
            {
                actions.push(Action::Batch { epoch });
            }
            let newest = state.leaders.len() == usize::from(epoch);
            let copied = self.copied(leader) || (self.variant == Variant::DropEnsembleEarly && self.serving(leader));
            if newest && leader.listed.len() > 1 && state.listed.len() > 1 && copied {
                actions.push(Action::Report { epoch });
            }
        }
        if self.variant == Variant::ForgetSealAtRestart && state.restarts < RESTARTS_MAX {
            let sealed = state.drives.iter().zip(0u8..).filter(|(drive, _)| drive.sealed > 0);
            actions.extend(sealed.map(|(_, drive)| Action::Restart { drive }));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Lead { new_ensemble } => {
                if new_ensemble {
                    state.listed.insert(0, state.listed[0] + 1);
                }
                state.leaders.push(Leader::new(state.listed.clone()));
            }
            Action::Seal { epoch, drive } => {
                state.drives[usize::from(drive)].sealed = epoch;
                state.leaders[usize::from(epoch) - 1].sealed |= 1 << drive;
            }
            Action::Decide { epoch } => self.decide(&mut state, epoch),
            Action::Send { epoch, drive, seq } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                leader.copies[usize::from(seq) - 1] |= 1 << drive;
                let of = Self::epoch_of(leader, epoch, seq);
                state.drives[usize::from(drive)].held.insert(seq, of);
            }
            Action::Batch { epoch } => {
                let mark = self.acknowledged(&state.leaders[usize::from(epoch) - 1]);
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                leader.batches.push(mark);
                leader.copies.push(0);
            }
            Action::Report { .. } => {
                state.listed.truncate(1);
                state.dropped = true;
            }
            Action::Restart { drive } => {
                state.drives[usize::from(drive)].sealed = 0;
                state.restarts += 1;
            }
        }
        (state != *last).then(|| self.canonical(state))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(KEEPS, |model: &Self, state: &State| {
                let serving = || state.leaders.iter().zip(1u8..).filter(|(leader, _)| model.serving(leader));
                serving().all(|(later, later_epoch)| {
                    serving().filter(|(_, epoch)| *epoch < later_epoch).all(|(earlier, epoch)| {
                        model.has_what_counts(earlier, epoch, later) && Self::has_nothing_between(earlier, epoch, later)
                    })
                })
            }),
            Property::always(DECIDES, |_, state: &State| !state.stuck),
            Property::sometimes("a batch is adopted by a later leader that serves", |model: &Self, state: &State| {
                let mut later = state.leaders.iter().skip(1);
                later.any(|leader| leader.adopted.len() >= 2 && model.serving(leader))
            }),
            Property::sometimes("an unacknowledged record is left behind", |model: &Self, state: &State| {
                state.leaders.last().is_some_and(|leader| {
                    model.serving(leader)
                        && state.drives.iter().any(|drive| {
                            drive.held.iter().any(|(seq, epoch)| {
                                *epoch < state.leaders.len() as u8
                                    && leader.adopted.get(usize::from(*seq) - 1).is_none_or(|of| of != epoch)
                            })
                        })
                })
            }),
            Property::sometimes("an earlier ensemble is dropped, if there is one", |model: &Self, state: &State| {
                state.dropped || model.ensembles.len() == 1
            }),
        ]
    }
}
