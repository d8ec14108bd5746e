//! A member of a zone set is replaced: its drive is away, shards are made anew elsewhere, the old drive returns.
//!
//! One shard's place in one zone set, and the stripes of that set; the other shards are there and can make it anew. Two
//! drives take turns as the member. Leaders of several epochs never die; the journal is taken as proven (see
//! [`crate::journal`]): what stands is adopted by every later leader, any further part may be. Orders to drives arrive at
//! any later time, as often as anybody who gave them likes.
//!
//! | rule | implemented by |
//! |---|---|
//! | a shard is absent in a commit only if the map says that its drive is away | `Drives::is_there`, `Stripes::stage` in weft-bucket |
//! | a replacement is recorded when every stripe of the set is there | `rebuild.rs` in weft-bucket |
//! | stripes that are committed while it is being made count as well | `rebuild.rs` in weft-bucket |
//! | the zone of the old member is freed when the record that replaces it stands | `freeing.rs` in weft-bucket |
//! | a drive frees by a leader's order alone | `DriveServer::handle` in weft-drive |
//! | a zone takes writes of the leader that opened it, in its generation | `DriveServer::handle` in weft-drive |
//! | a shard that was absent is read only after it was written and that is recorded | `rebuild_chunk.rs` in weft-bucket |

use stateright::{Model, Property};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    Correct,
    /// The replacement is recorded when the stripes that there were at its beginning are copied.
    ForgetNewStripes,
    /// The replacement is recorded before everything is copied.
    ReplaceBeforeCopied,
    /// The old zone is freed when the record is appended.
    FreeBeforeRecordStands,
    /// A drive that returns and finds that the newest leader has another member frees its zone by itself.
    FreeByItself,
    /// A drive that returns counts as holding what was committed without it.
    TrustWhatReturns,
    /// A new leader takes over a zone that the one before it was filling, without knowing what is in it.
    TakeOverForeignZone,
}

/// Bounds of the search.
#[derive(Clone, Debug)]
pub struct Members {
    pub variant: Variant,
    pub stripes_max: u8,
    pub epochs_max: u8,
    /// How often a drive goes away.
    pub absences_max: u8,
    /// How often each drive's zone is handed out.
    pub generations_max: u8,
}

/// Nobody who goes by the log reads nothing, or another stripe, where a shard should be.
pub const THERE: &str = "a shard that isn't absent is where the newest leader's log says";

const DRIVES: usize = 2;

/// A drive's zone in one of its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    drive: u8,
    generation: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Commit {
        stripe: u8,
        absent: bool,
    },
    /// The shard that was absent is where it belongs.
    Present {
        stripe: u8,
    },
    /// From here on the member is this.
    Replace {
        place: Place,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Drive {
    there: bool,
    generation: u8,
    /// Epoch that opened the zone; 0: free.
    holder: u8,
    /// The stripes whose shards it holds, a bit each.
    holds: u8,
}

/// A replacement that a leader is making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Making {
    place: Place,
    /// What it has seen to be durable there.
    copied: u8,
    /// What there was when it began.
    at_first: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Leader {
    log: Vec<Entry>,
    stands: u8,
    started: bool,
    making: Option<Making>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    drives: Vec<Drive>,
    leaders: Vec<Leader>,
    stripes: u8,
    absences: u8,
    returned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A new leader adopts so many records of the last that started.
    Begin {
        adopted: u8,
    },
    Start {
        epoch: u8,
    },
    Stand {
        epoch: u8,
    },
    /// A drive goes away, as the map says, or returns with what it held.
    Leave {
        drive: u8,
    },
    Return {
        drive: u8,
    },
    /// A stripe is written and committed, with or without this member.
    Commit {
        epoch: u8,
    },
    /// A zone is opened on the other drive, to become the member.
    Open {
        epoch: u8,
        drive: u8,
    },
    TakeOver {
        epoch: u8,
        drive: u8,
    },
    /// A shard is made anew and written there.
    Copy {
        epoch: u8,
        stripe: u8,
    },
    Replace {
        epoch: u8,
    },
    /// A shard that was absent is made anew where it belongs; then that is recorded.
    CatchUp {
        epoch: u8,
        stripe: u8,
    },
    /// A leader's order to free a zone arrives.
    Free {
        place: Place,
    },
}

/// What a log says: the member, and the stripes with whether their shards are there.
fn read_log(log: &[Entry]) -> (Place, BTreeMap<u8, bool>) {
    let mut member = Place { drive: 0, generation: 1 };
    let mut stripes = BTreeMap::new();
    for entry in log {
        match *entry {
            Entry::Commit { stripe, absent } => drop(stripes.insert(stripe, !absent)),
            Entry::Present { stripe } => drop(stripes.insert(stripe, true)),
            Entry::Replace { place } => {
                member = place;
                stripes.values_mut().for_each(|there| *there = true);
            }
        }
    }
    (member, stripes)
}

impl Leader {
    fn standing(&self) -> &[Entry] {
        &self.log[..usize::from(self.stands)]
    }
}

fn bits(stripes: impl Iterator<Item = u8>) -> u8 {
    stripes.fold(0, |bits, stripe| bits | 1 << stripe)
}

impl Members {
    fn newest_started(state: &State) -> Option<&Leader> {
        state.leaders.iter().rev().find(|leader| leader.started)
    }

    /// What this leader does to zones that it does not own: its orders may be as late as they like.
    fn frees(&self, state: &State, epoch: u8, leader: &Leader, actions: &mut Vec<Action>) {
        let says = if self.variant == Variant::FreeBeforeRecordStands { &leader.log[..] } else { leader.standing() };
        let mut member = Place { drive: 0, generation: 1 };
        for entry in says {
            if let Entry::Replace { place } = *entry {
                actions.push(Action::Free { place: member });
                member = place;
            }
        }
        // Only after its start: what no record names, and an earlier leader opened.
        if leader.started {
            for (drive, index) in state.drives.iter().zip(0u8..) {
                let place = Place { drive: index, generation: drive.generation };
                let named = read_log(leader.standing()).0 == place || read_log(&leader.log).0 == place;
                let own = leader.making.is_some_and(|making| making.place == place);
                if drive.holder > 0 && drive.holder < epoch && !named && !own {
                    actions.push(Action::Free { place });
                }
            }
        }
    }

    fn plans(&self, state: &State, epoch: u8, leader: &Leader, actions: &mut Vec<Action>) {
        let (member, stripes) = read_log(&leader.log);
        let drive = &state.drives[usize::from(member.drive)];
        if state.stripes < self.stripes_max {
            actions.push(Action::Commit { epoch });
        }
        for (other, index) in state.drives.iter().zip(0u8..).filter(|(_, index)| *index != member.drive) {
            if !drive.there && other.there && leader.making.is_none() {
                if other.holder == 0 && other.generation < self.generations_max {
                    actions.push(Action::Open { epoch, drive: index });
                }
                if self.variant == Variant::TakeOverForeignZone && other.holder > 0 {
                    actions.push(Action::TakeOver { epoch, drive: index });
                }
            }
        }
        if let Some(making) = leader.making {
            let missing = stripes.keys().filter(|stripe| making.copied & (1 << **stripe) == 0);
            actions.extend(missing.map(|stripe| Action::Copy { epoch, stripe: *stripe }));
            let wanted = match self.variant {
                Variant::ForgetNewStripes => making.at_first,
                Variant::ReplaceBeforeCopied => 0,
                _ => bits(stripes.keys().copied()),
            };
            if making.copied & wanted == wanted {
                actions.push(Action::Replace { epoch });
            }
        }
        if drive.there {
            let absent = stripes.iter().filter(|(_, there)| !**there);
            actions.extend(absent.map(|(stripe, _)| Action::CatchUp { epoch, stripe: *stripe }));
        }
    }

    /// A leader's write arrives: the drive is there, and its zone is still this one.
    fn takes(&self, drive: &Drive, place: Place) -> bool {
        drive.there && drive.holder > 0 && drive.generation == place.generation
    }
}

impl Model for Members {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let first = Drive { there: true, generation: 1, holder: 1, holds: 0 };
        let other = Drive { there: true, generation: 0, holder: 0, holds: 0 };
        let leader = Leader { log: Vec::new(), stands: 0, started: true, making: None };
        let drives = std::iter::once(first).chain(std::iter::repeat_n(other, DRIVES - 1)).collect();
        vec![State { drives, leaders: vec![leader], stripes: 0, absences: 0, returned: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.leaders.len() < usize::from(self.epochs_max)
            && let Some(last) = Self::newest_started(state)
        {
            actions.extend((last.stands..=last.log.len() as u8).map(|adopted| Action::Begin { adopted }));
        }
        for (leader, epoch) in state.leaders.iter().zip(1u8..) {
            let newest = state.leaders.len() == usize::from(epoch);
            self.frees(state, epoch, leader, actions);
            if !leader.started {
                if newest {
                    actions.push(Action::Start { epoch });
                }
                continue;
            }
            if newest && usize::from(leader.stands) < leader.log.len() {
                actions.push(Action::Stand { epoch });
            }
            self.plans(state, epoch, leader, actions);
        }
        for (drive, index) in state.drives.iter().zip(0u8..) {
            match drive.there {
                true if state.absences < self.absences_max => actions.push(Action::Leave { drive: index }),
                true => {}
                false => actions.push(Action::Return { drive: index }),
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin { adopted } => {
                let log = Self::newest_started(last)?.log[..usize::from(adopted)].to_vec();
                state.leaders.push(Leader { log, stands: 0, started: false, making: None });
            }
            Action::Start { epoch } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                leader.started = true;
                leader.stands = leader.log.len() as u8;
            }
            Action::Stand { epoch } => state.leaders[usize::from(epoch) - 1].stands += 1,
            Action::Leave { drive } => {
                state.absences += 1;
                state.drives[usize::from(drive)].there = false;
            }
            Action::Return { drive } => {
                state.returned = true;
                let (member, _) = read_log(Self::newest_started(last).map_or(&[], Leader::standing));
                let returning = &mut state.drives[usize::from(drive)];
                returning.there = true;
                if self.variant == Variant::FreeByItself && member.drive != drive {
                    returning.holder = 0;
                }
                if self.variant == Variant::TrustWhatReturns {
                    for leader in &mut state.leaders {
                        let absent: Vec<u8> =
                            read_log(&leader.log).1.into_iter().filter(|(_, there)| !there).map(|(id, _)| id).collect();
                        leader.log.extend(absent.into_iter().map(|stripe| Entry::Present { stripe }));
                    }
                }
            }
            Action::Commit { epoch } => {
                let stripe = state.stripes;
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let (member, _) = read_log(&leader.log);
                let drive = &mut state.drives[usize::from(member.drive)];
                let takes = self.takes(drive, member);
                // A drive that is there and refuses makes the leader look again.
                if drive.there && !takes {
                    return None;
                }
                if takes {
                    drive.holds |= 1 << stripe;
                }
                leader.log.push(Entry::Commit { stripe, absent: !takes });
                state.stripes += 1;
            }
            Action::Open { epoch, drive } => {
                let opened = &mut state.drives[usize::from(drive)];
                opened.generation += 1;
                opened.holder = epoch;
                opened.holds = 0;
                let place = Place { drive, generation: opened.generation };
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let at_first = bits(read_log(&leader.log).1.into_keys());
                leader.making = Some(Making { place, copied: 0, at_first });
            }
            Action::TakeOver { epoch, drive } => {
                let place = Place { drive, generation: state.drives[usize::from(drive)].generation };
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let there = bits(read_log(&leader.log).1.into_keys());
                leader.making = Some(Making { place, copied: there, at_first: there });
            }
            Action::Copy { epoch, stripe } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let making = leader.making.as_mut()?;
                let drive = &mut state.drives[usize::from(making.place.drive)];
                if !self.takes(drive, making.place) {
                    return None;
                }
                drive.holds |= 1 << stripe;
                making.copied |= 1 << stripe;
            }
            Action::Replace { epoch } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let place = leader.making.take()?.place;
                leader.log.push(Entry::Replace { place });
            }
            Action::CatchUp { epoch, stripe } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let (member, _) = read_log(&leader.log);
                let drive = &mut state.drives[usize::from(member.drive)];
                if !self.takes(drive, member) {
                    return None;
                }
                drive.holds |= 1 << stripe;
                leader.log.push(Entry::Present { stripe });
            }
            Action::Free { place } => {
                let drive = &mut state.drives[usize::from(place.drive)];
                if !self.takes(drive, place) {
                    return None;
                }
                drive.holder = 0;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(THERE, |_, state: &State| {
                Self::newest_started(state).is_none_or(|leader| {
                    let (member, stripes) = read_log(leader.standing());
                    let drive = &state.drives[usize::from(member.drive)];
                    let there = bits(stripes.into_iter().filter(|(_, there)| *there).map(|(stripe, _)| stripe));
                    drive.holder > 0 && drive.generation == member.generation && drive.holds & there == there
                })
            }),
            Property::sometimes("a later leader reads where an earlier one put the shards anew", |_, state: &State| {
                state.leaders.iter().skip(1).any(|leader| {
                    let (member, stripes) = read_log(leader.standing());
                    leader.started && member.drive != 0 && !stripes.is_empty()
                })
            }),
            Property::sometimes("a drive that returned has caught up", |_, state: &State| {
                state.returned
                    && state
                        .leaders
                        .iter()
                        .any(|leader| leader.standing().iter().any(|entry| matches!(entry, Entry::Present { .. })))
            }),
            Property::sometimes("the old zone is free again", |_, state: &State| {
                state.returned && state.drives[0].holder == 0
            }),
        ]
    }
}
