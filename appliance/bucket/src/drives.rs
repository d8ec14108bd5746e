//! What a bucket knows of the drives that hold its shards: what the map says, and who was silent lately.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::{Handle, Instant};
use weft_wire::DriveId;
use weft_wire::map::State;

/// For how long a drive that did not answer a read is left alone by reads that can do without it.
const SILENT: Duration = Duration::from_secs(2);

/// The state of each drive of the cluster: the worse of its own and its node's. A drive that isn't listed is gone.
pub type DriveStates = Rc<BTreeMap<DriveId, State>>;

/// Drives as the newest map that the bucket was told of has them.
pub struct Drives {
    handle: Handle,
    /// Shard i of a new zone set goes to `members[i]`.
    members: RefCell<Vec<DriveId>>,
    states: RefCell<DriveStates>,
    /// Drives that did not answer a read lately, and until when they are left alone.
    silent: RefCell<BTreeMap<DriveId, Instant>>,
}

impl Drives {
    pub fn new(handle: Handle, members: Vec<DriveId>, states: DriveStates) -> Self {
        Self { handle, members: RefCell::new(members), states: RefCell::new(states), silent: RefCell::default() }
    }

    /// A newer map. The drives that are back; `None`: nothing changed.
    pub fn update(&self, members: Vec<DriveId>, states: DriveStates) -> Option<Vec<DriveId>> {
        let before = self.states.replace(Rc::clone(&states));
        if before == states && *self.members.borrow() == members {
            return None;
        }
        let was_up = |drive: &DriveId| before.get(drive).is_some_and(|state| answers(*state));
        let back: Vec<DriveId> =
            states.iter().filter(|(id, state)| answers(**state) && !was_up(id)).map(|(id, _)| *id).collect();
        self.silent.borrow_mut().retain(|id, _| !back.contains(id));
        *self.members.borrow_mut() = members;
        Some(back)
    }

    pub fn members(&self) -> Vec<DriveId> {
        self.members.borrow().clone()
    }

    pub fn state(&self, drive: DriveId) -> State {
        self.states.borrow().get(&drive).copied().unwrap_or(State::Failed)
    }

    /// Whether the map expects an answer of the drive.
    pub fn is_there(&self, drive: DriveId) -> bool {
        answers(self.state(drive))
    }

    /// Whether reads do better without the drive now.
    pub fn is_away(&self, drive: DriveId) -> bool {
        if !self.is_there(drive) {
            return true;
        }
        let mut silent = self.silent.borrow_mut();
        match silent.get(&drive) {
            None => false,
            Some(until) if *until > self.handle.now() => true,
            Some(_) => {
                silent.remove(&drive);
                false
            }
        }
    }

    /// The drive did not answer a read.
    pub fn was_silent(&self, drive: DriveId) {
        self.silent.borrow_mut().insert(drive, self.handle.now() + SILENT);
    }
}

fn answers(state: State) -> bool {
    matches!(state, State::Up | State::Draining)
}
