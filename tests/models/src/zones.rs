//! Stripe locations and zone generations: one drive, its zones, leaders of several epochs, the journal as a log.
//!
//! The journal is taken as proven (see [`crate::journal`]): a record stands only while no higher epoch has begun, a new
//! leader adopts all records that stand and any further ones, and what it adopted is the log once its start stands.
//! Leaders never die: they stop and go on at any point, and their messages arrive late and more than once. Leaders
//! here are laxer than the real ones: while a write is unconfirmed they may try another stripe at its location.
//!
//! | rule | implemented by |
//! |---|---|
//! | a zone gets a new generation when it is handed out, durable with its bucket and epoch | `Zones::open` in weft-drive |
//! | a location is written once in a generation, by the epoch that opened the zone | `Zones::write` in weft-drive |
//! | zones opened before a drive's restart are closed for writes | `Zones::new`, `Zones::write` in weft-drive |
//! | reads name the generation | `Zones::read` in weft-drive |
//! | a stripe is committed when its shards are durable, into a zone set whose opening stands | `Stripes::stage` in weft-bucket |
//! | a zone is freed after the record that closes it stands | `Bucket::free_sets` in weft-bucket |
//! | zones that no record names are freed after the epoch start and the records that closed them stand | `Bucket::free_unknown_zones` in weft-bucket |

use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    Correct,
    /// A location may be written again.
    WriteTwice,
    /// A restarted drive takes written locations for fresh ones.
    ForgetWrittenAtRestart,
    /// Commits a stripe without waiting for its shard.
    CommitBeforeDurable,
    /// Frees a zone when the record that closes it is appended.
    FreeBeforeRecordStands,
    /// Frees zones that its log doesn't name as soon as it has adopted a log.
    FreeUnnamedBeforeStart,
    /// Takes a zone for unnamed when the record that closes it is appended.
    NameByUnfinishedLog,
    /// Reads whatever the zone holds now.
    ReadAnyGeneration,
}

/// Bounds of the search.
#[derive(Clone, Debug)]
pub struct Zones {
    pub variant: Variant,
    pub zones: u8,
    pub locations: u8,
    pub stripes_max: u8,
    pub epochs_max: u8,
    pub generations_max: u8,
}

/// What is committed is on the drive, where the journal says, and nothing else is.
pub const THERE: &str = "every committed stripe is where the newest leader's log says";
/// Whoever still knows an old place reads the stripe that was committed there, or learns that it is gone.
pub const NEVER_ANOTHER: &str = "a place that was ever committed never shows another stripe";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    zone: u8,
    generation: u8,
    location: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Open { zone: u8, generation: u8 },
    Commit { stripe: u8, place: Place },
    Delete { stripe: u8 },
    Close { zone: u8, generation: u8 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Zone {
    generation: u8,
    /// Epoch that opened it; 0 is free.
    holder: u8,
    /// Opened since the drive started.
    writable: bool,
    written: Vec<bool>,
    content: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Staged {
    stripe: u8,
    place: Place,
    durable: bool,
    committed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Leader {
    log: Vec<Entry>,
    stands: u8,
    started: bool,
    staged: Vec<Staged>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    zones: Vec<Zone>,
    leaders: Vec<Leader>,
    stripes: u8,
    restarted: bool,
    /// Every place that was ever in a standing log, with its stripe.
    committed: BTreeMap<Place, u8>,
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
    Open {
        epoch: u8,
        zone: u8,
    },
    Stage {
        epoch: u8,
        zone: u8,
        location: u8,
    },
    Deliver {
        epoch: u8,
        staged: u8,
    },
    Commit {
        epoch: u8,
        staged: u8,
    },
    Delete {
        epoch: u8,
        stripe: u8,
    },
    Close {
        epoch: u8,
        zone: u8,
        generation: u8,
    },
    /// A leader's order to free a zone arrives.
    Free {
        zone: u8,
        generation: u8,
    },
    Restart,
}

/// What a log says: zones in use, and where committed stripes are.
fn read_log(log: &[Entry]) -> (BTreeSet<(u8, u8)>, BTreeMap<u8, Place>) {
    let (mut open, mut stripes) = (BTreeSet::new(), BTreeMap::new());
    for entry in log {
        match *entry {
            Entry::Open { zone, generation } => drop(open.insert((zone, generation))),
            Entry::Commit { stripe, place } => drop(stripes.insert(stripe, place)),
            Entry::Delete { stripe } => drop(stripes.remove(&stripe)),
            Entry::Close { zone, generation } => drop(open.remove(&(zone, generation))),
        }
    }
    (open, stripes)
}

impl Leader {
    fn standing(&self) -> &[Entry] {
        &self.log[..usize::from(self.stands)]
    }
}

impl Zones {
    fn newest_started(state: &State) -> Option<&Leader> {
        state.leaders.iter().rev().find(|leader| leader.started)
    }

    fn leader_actions(&self, state: &State, epoch: u8, leader: &Leader, actions: &mut Vec<Action>) {
        let newest = state.leaders.len() == usize::from(epoch);
        if newest && leader.started && usize::from(leader.stands) < leader.log.len() {
            actions.push(Action::Stand { epoch });
        }
        let (open, stripes) = read_log(&leader.log);
        if leader.started || self.variant == Variant::FreeUnnamedBeforeStart {
            // A zone that was closed by a record which does not stand yet is still named.
            let settled = leader.started && self.variant != Variant::NameByUnfinishedLog;
            let named = if settled { read_log(leader.standing()).0 } else { open.clone() };
            for (zone, index) in state.zones.iter().zip(0u8..) {
                if zone.holder > 0 && zone.holder < epoch && !named.contains(&(index, zone.generation)) {
                    actions.push(Action::Free { zone: index, generation: zone.generation });
                }
            }
        }
        let (log_of_free, early) = match self.variant {
            Variant::FreeBeforeRecordStands => (&leader.log[..], true),
            _ => (leader.standing(), false),
        };
        for entry in log_of_free {
            if let Entry::Close { zone, generation } = *entry
                && (early || leader.started)
            {
                actions.push(Action::Free { zone, generation });
            }
        }
        for (staged, index) in leader.staged.iter().zip(0u8..) {
            actions.push(Action::Deliver { epoch, staged: index });
            if (staged.durable || self.variant == Variant::CommitBeforeDurable)
                && !staged.committed
                && open.contains(&(staged.place.zone, staged.place.generation))
            {
                actions.push(Action::Commit { epoch, staged: index });
            }
        }
        if !leader.started {
            return;
        }
        for (zone, index) in state.zones.iter().zip(0u8..) {
            if zone.holder == 0 && zone.generation < self.generations_max {
                actions.push(Action::Open { epoch, zone: index });
            }
        }
        actions.extend(stripes.keys().map(|stripe| Action::Delete { epoch, stripe: *stripe }));
        for (zone, generation) in open {
            let used = stripes.values().any(|place| (place.zone, place.generation) == (zone, generation));
            let under_way = leader
                .staged
                .iter()
                .any(|staged| (staged.place.zone, staged.place.generation) == (zone, generation) && !staged.committed);
            if !used && !under_way {
                actions.push(Action::Close { epoch, zone, generation });
            }
            let opened_here = leader.standing().contains(&Entry::Open { zone, generation })
                && state.zones[usize::from(zone)].holder == epoch;
            if opened_here && state.stripes < self.stripes_max {
                let committed = |location| stripes.values().any(|place| *place == Place { zone, generation, location });
                let free = (0..self.locations).filter(|location| !committed(*location));
                actions.extend(free.map(|location| Action::Stage { epoch, zone, location }));
            }
        }
    }
}

impl Model for Zones {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let blank = vec![0; usize::from(self.locations)];
        let written = vec![false; usize::from(self.locations)];
        let zone = Zone { generation: 0, holder: 0, writable: false, written, content: blank };
        let first = Leader { log: Vec::new(), stands: 0, started: true, staged: Vec::new() };
        vec![State {
            zones: vec![zone; usize::from(self.zones)],
            leaders: vec![first],
            stripes: 0,
            restarted: false,
            committed: BTreeMap::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.leaders.len() < usize::from(self.epochs_max)
            && let Some(last) = Self::newest_started(state)
        {
            actions.extend((last.stands..=last.log.len() as u8).map(|adopted| Action::Begin { adopted }));
        }
        for (leader, epoch) in state.leaders.iter().zip(1u8..) {
            self.leader_actions(state, epoch, leader, actions);
            if !leader.started && state.leaders.len() == usize::from(epoch) {
                actions.push(Action::Start { epoch });
            }
        }
        if !state.restarted {
            actions.push(Action::Restart);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Begin { adopted } => {
                let log = Self::newest_started(last)?.log[..usize::from(adopted)].to_vec();
                state.leaders.push(Leader { log, stands: 0, started: false, staged: Vec::new() });
            }
            Action::Start { epoch } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                leader.started = true;
                leader.stands = leader.log.len() as u8;
            }
            Action::Stand { epoch } => state.leaders[usize::from(epoch) - 1].stands += 1,
            Action::Open { epoch, zone } => {
                let slot = &mut state.zones[usize::from(zone)];
                slot.generation += 1;
                slot.holder = epoch;
                slot.writable = true;
                slot.written.fill(false);
                slot.content.fill(0);
                let generation = slot.generation;
                state.leaders[usize::from(epoch) - 1].log.push(Entry::Open { zone, generation });
            }
            Action::Stage { epoch, zone, location } => {
                state.stripes += 1;
                let place = Place { zone, generation: state.zones[usize::from(zone)].generation, location };
                let staged = Staged { stripe: state.stripes, place, durable: false, committed: false };
                state.leaders[usize::from(epoch) - 1].staged.push(staged);
            }
            Action::Deliver { epoch, staged } => {
                let staged = &mut state.leaders[usize::from(epoch) - 1].staged[usize::from(staged)];
                let zone = &mut state.zones[usize::from(staged.place.zone)];
                let location = usize::from(staged.place.location);
                if zone.generation != staged.place.generation || zone.holder != epoch || !zone.writable {
                    return None;
                }
                if !zone.written[location] || self.variant == Variant::WriteTwice {
                    zone.content[location] = staged.stripe;
                    zone.written[location] = true;
                }
                // The same write again is answered as done.
                staged.durable |= zone.content[location] == staged.stripe;
            }
            Action::Commit { epoch, staged } => {
                let leader = &mut state.leaders[usize::from(epoch) - 1];
                let staged = &mut leader.staged[usize::from(staged)];
                staged.committed = true;
                leader.log.push(Entry::Commit { stripe: staged.stripe, place: staged.place });
            }
            Action::Delete { epoch, stripe } => {
                state.leaders[usize::from(epoch) - 1].log.push(Entry::Delete { stripe });
            }
            Action::Close { epoch, zone, generation } => {
                state.leaders[usize::from(epoch) - 1].log.push(Entry::Close { zone, generation });
            }
            Action::Free { zone, generation } => {
                let zone = &mut state.zones[usize::from(zone)];
                if zone.generation != generation || zone.holder == 0 {
                    return None;
                }
                zone.holder = 0;
            }
            Action::Restart => {
                state.restarted = true;
                for zone in &mut state.zones {
                    match self.variant {
                        Variant::ForgetWrittenAtRestart => zone.written.fill(false),
                        _ => zone.writable = false,
                    }
                }
            }
        }
        if let Some(newest) = Self::newest_started(&state) {
            let places: Vec<(Place, u8)> =
                read_log(newest.standing()).1.into_iter().map(|(stripe, place)| (place, stripe)).collect();
            state.committed.extend(places);
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(THERE, |_, state: &State| {
                Self::newest_started(state).is_none_or(|leader| {
                    read_log(leader.standing()).1.iter().all(|(stripe, place)| {
                        let zone = &state.zones[usize::from(place.zone)];
                        zone.holder > 0
                            && zone.generation == place.generation
                            && zone.content[usize::from(place.location)] == *stripe
                    })
                })
            }),
            Property::always(NEVER_ANOTHER, |model: &Self, state: &State| {
                state.committed.iter().all(|(place, stripe)| {
                    let zone = &state.zones[usize::from(place.zone)];
                    let gone = zone.holder == 0
                        || (zone.generation != place.generation && model.variant != Variant::ReadAnyGeneration);
                    gone || zone.content[usize::from(place.location)] == *stripe
                })
            }),
            Property::sometimes("a zone is used again and holds a committed stripe", |_, state: &State| {
                state.committed.keys().any(|place| place.generation > 1)
            }),
            Property::sometimes("a later leader has a stripe of an earlier one", |_, state: &State| {
                state.leaders.iter().skip(1).any(|leader| leader.started && !read_log(leader.standing()).1.is_empty())
            }),
        ]
    }
}
