//! What a bucket knows of the drives that hold its shards: what the map says, who was silent lately, who is slow.

use crate::pace::Paces;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_reactor::sync::Notify;
use weft_reactor::{Handle, Instant};
use weft_wire::DriveId;
use weft_wire::map::State;

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
    pub paces: Paces,
    /// Counts the maps that changed anything here.
    version: Cell<u64>,
    changed: Notify,
}

impl Drives {
    pub fn new(handle: Handle, members: Vec<DriveId>, states: DriveStates) -> Self {
        Self {
            handle,
            members: RefCell::new(members),
            states: RefCell::new(states),
            silent: RefCell::default(),
            paces: Paces::default(),
            version: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// A newer map. The drives that are back; `None`: nothing changed.
    pub fn update(&self, members: Vec<DriveId>, states: DriveStates) -> Option<Vec<DriveId>> {
        let before = self.states.replace(Rc::clone(&states));
        if before == states && *self.members.borrow() == members {
            return None;
        }
        let was_there = |drive: &DriveId| before.get(drive).is_some_and(|state| answers(*state));
        let back: Vec<DriveId> =
            states.iter().filter(|(id, state)| answers(**state) && !was_there(id)).map(|(id, _)| *id).collect();
        self.silent.borrow_mut().retain(|id, _| states.contains_key(id) && !back.contains(id));
        self.paces.retain(|id| states.contains_key(&id));
        *self.members.borrow_mut() = members;
        self.version.set(self.version.get() + 1);
        self.changed.notify_all();
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

    pub fn is_known(&self, drive: DriveId) -> bool {
        self.states.borrow().contains_key(&drive)
    }

    /// All drives of the cluster that the map expects answers of.
    pub fn all_there(&self) -> Vec<DriveId> {
        self.states.borrow().iter().filter(|(_, state)| answers(**state)).map(|(id, _)| *id).collect()
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

    /// The drive did not answer a read in time: others are read for so long.
    pub fn leave_alone(&self, drive: DriveId, time: Duration) {
        let until = self.handle.now() + time;
        let mut silent = self.silent.borrow_mut();
        let stands = silent.entry(drive).or_insert(until);
        *stands = (*stands).max(until);
    }

    /// Counts the maps that changed anything.
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// Waits for a map that changes something after `version`.
    pub async fn changed_since(&self, version: u64) {
        while self.version.get() == version {
            self.changed.notified().await;
        }
    }

    /// Waits until the map says that the drive isn't there.
    pub async fn left(&self, drive: DriveId) {
        while self.is_there(drive) {
            self.changed.notified().await;
        }
    }
}

fn answers(state: State) -> bool {
    matches!(state, State::Up | State::Draining)
}
