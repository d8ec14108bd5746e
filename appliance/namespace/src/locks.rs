//! Byte-range locks of files: who holds what, who waits. Pure bookkeeping.
//!
//! One owner's locks never overlap: what it takes replaces what it had there, so ranges split and merge as POSIX says.
//! Waiters are served in the order of their coming, each as soon as nothing that is held stands in its way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use weft_wire::fs::{Lock, LockKind, LockType};
use weft_wire::locks::replace;
use weft_wire::{ClientId, FsId, InodeId};

/// Locks held in one bucket.
pub const LOCKS_MAX: usize = 65_536;
/// Requests that wait in one bucket.
pub const WAITERS_MAX: usize = 4096;

/// Who holds a lock: an owner token of a client's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub client: ClientId,
    pub token: u64,
}

/// What is locked. Record locks and flock don't see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub fs: FsId,
    pub inode: InodeId,
    flock: bool,
}

impl Target {
    pub fn new(fs: FsId, inode: InodeId, kind: LockKind) -> Self {
        Self { fs, inode, flock: kind == LockKind::Flock }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    owner: Owner,
    lock: Lock,
}

#[derive(Default)]
struct File {
    held: Vec<Held>,
    waiting: VecDeque<u64>,
}

struct Waiter {
    target: Target,
    owner: Owner,
    lock: Lock,
    /// The number of the client's request.
    request: u64,
}

/// Outcome of a request for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Granted,
    /// Something stands in the way.
    Conflict,
    /// In the queue, under this number.
    Waits(u64),
    /// Waiting would be for ever: owners would wait for each other.
    Deadlock,
    Full,
}

#[derive(Default)]
pub struct Locks {
    files: BTreeMap<Target, File>,
    waiters: BTreeMap<u64, Waiter>,
    next: u64,
    held: usize,
    /// Waiters that have been granted their lock.
    granted: Vec<u64>,
}

impl Locks {
    /// Takes, or with [`LockType::Unlock`] gives back. `wait`: the number of the request, if it may wait.
    pub fn set(&mut self, target: Target, owner: Owner, lock: Lock, wait: Option<u64>) -> Taken {
        if lock.typ == LockType::Unlock {
            self.place(target, owner, &lock);
            self.serve(target);
            return Taken::Granted;
        }
        if self.held >= LOCKS_MAX {
            return Taken::Full;
        }
        if self.obstacles(target, owner, &lock).next().is_none() {
            self.place(target, owner, &lock);
            // A write lock that became a read lock lets others in.
            self.serve(target);
            return Taken::Granted;
        }
        if target.flock {
            // A conversion that can't be had at once gives up what was there, so that two of them don't wait for each other.
            self.place(target, owner, &Lock { typ: LockType::Unlock, start: 0, end: u64::MAX, ..lock });
            self.serve(target);
        }
        let Some(request) = wait else { return Taken::Conflict };
        if self.waiters.len() >= WAITERS_MAX {
            return Taken::Full;
        }
        if !target.flock && self.closes_circle(target, owner, &lock) {
            return Taken::Deadlock;
        }
        let id = self.next;
        self.next += 1;
        self.waiters.insert(id, Waiter { target, owner, lock, request });
        self.files.entry(target).or_default().waiting.push_back(id);
        Taken::Waits(id)
    }

    /// The first lock that stands in the way.
    pub fn test(&self, target: Target, owner: Owner, lock: &Lock) -> Option<Lock> {
        self.obstacles(target, owner, lock).map(|held| held.lock).min_by_key(|lock| lock.start)
    }

    /// Waiters that were granted their locks since the last call.
    pub fn take_granted(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.granted)
    }

    /// Takes waiters out of the queue: those of an owner, by the number of their request, or all for 0.
    pub fn cancel(&mut self, target: Target, owner: Owner, request: u64) -> Vec<u64> {
        let wanted = |waiter: &Waiter| {
            waiter.target == target && waiter.owner == owner && (request == 0 || waiter.request == request)
        };
        let ids: Vec<u64> = self.waiters.iter().filter(|(_, waiter)| wanted(waiter)).map(|(id, _)| *id).collect();
        ids.iter().for_each(|id| self.forget(*id));
        ids
    }

    /// A waiter that is no longer interested.
    pub fn forget(&mut self, id: u64) {
        let Some(waiter) = self.waiters.remove(&id) else { return };
        if let Some(file) = self.files.get_mut(&waiter.target) {
            file.waiting.retain(|other| *other != id);
        }
        self.tidy(waiter.target);
    }

    /// Whether the client has any.
    pub fn holds(&self, client: ClientId) -> bool {
        self.files.values().any(|file| file.held.iter().any(|held| held.owner.client == client))
    }

    /// Gives back everything of a client. Answers its waiters.
    pub fn drop_client(&mut self, client: ClientId) -> Vec<u64> {
        let waiting: Vec<u64> =
            self.waiters.iter().filter(|(_, waiter)| waiter.owner.client == client).map(|(id, _)| *id).collect();
        waiting.iter().for_each(|id| self.forget(*id));
        let targets: Vec<Target> = self
            .files
            .iter()
            .filter(|(_, file)| file.held.iter().any(|held| held.owner.client == client))
            .map(|(target, _)| *target)
            .collect();
        for target in targets {
            if let Some(file) = self.files.get_mut(&target) {
                let before = file.held.len();
                file.held.retain(|held| held.owner.client != client);
                self.held -= before - file.held.len();
            }
            self.serve(target);
            self.tidy(target);
        }
        waiting
    }

    fn obstacles(&self, target: Target, owner: Owner, lock: &Lock) -> impl Iterator<Item = &Held> {
        let (typ, start, end) = (lock.typ, lock.start, lock.end);
        self.files.get(&target).into_iter().flat_map(|file| file.held.iter()).filter(move |held| {
            held.owner != owner
                && held.lock.start <= end
                && start <= held.lock.end
                && (typ == LockType::Write || held.lock.typ == LockType::Write)
        })
    }

    /// Whether an owner in the way waits, over others perhaps, for this one.
    fn closes_circle(&self, target: Target, owner: Owner, lock: &Lock) -> bool {
        let mut seen = BTreeSet::new();
        let mut ahead: Vec<Owner> = self.obstacles(target, owner, lock).map(|held| held.owner).collect();
        while let Some(next) = ahead.pop() {
            if next == owner {
                return true;
            }
            if !seen.insert(next) {
                continue;
            }
            for waiter in self.waiters.values().filter(|waiter| waiter.owner == next && !waiter.target.flock) {
                ahead.extend(self.obstacles(waiter.target, waiter.owner, &waiter.lock).map(|held| held.owner));
            }
        }
        false
    }

    /// Puts a lock in the place of whatever its owner had in the range.
    fn place(&mut self, target: Target, owner: Owner, lock: &Lock) {
        let file = self.files.entry(target).or_default();
        let before = file.held.len();
        let (own, mut held): (Vec<Held>, Vec<Held>) = file.held.drain(..).partition(|held| held.owner == owner);
        let mut own: Vec<Lock> = own.into_iter().map(|held| held.lock).collect();
        replace(&mut own, *lock);
        held.extend(own.into_iter().map(|lock| Held { owner, lock }));
        file.held = held;
        self.held = self.held + file.held.len() - before;
        self.tidy(target);
    }

    /// Grants what can be granted to those who wait, in their order.
    fn serve(&mut self, target: Target) {
        let Some(file) = self.files.get(&target) else { return };
        for id in file.waiting.iter().copied().collect::<Vec<_>>() {
            let Some(waiter) = self.waiters.get(&id) else { continue };
            let (owner, lock) = (waiter.owner, waiter.lock);
            if self.obstacles(target, owner, &lock).next().is_some() {
                continue;
            }
            self.forget(id);
            self.place(target, owner, &lock);
            self.granted.push(id);
        }
    }

    fn tidy(&mut self, target: Target) {
        if self.files.get(&target).is_some_and(|file| file.held.is_empty() && file.waiting.is_empty()) {
            self.files.remove(&target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Owner { client: ClientId(1), token: 10 };
    const B: Owner = Owner { client: ClientId(2), token: 20 };
    const C: Owner = Owner { client: ClientId(2), token: 30 };

    fn target(inode: u64, kind: LockKind) -> Target {
        Target::new(FsId(1), InodeId(inode), kind)
    }

    fn lock(typ: LockType, start: u64, end: u64) -> Lock {
        Lock { kind: LockKind::Record, typ, start, end, owner: 0, pid: 1 }
    }

    use LockType::{Read, Unlock, Write};

    #[test]
    fn writers_exclude_readers_do_not() {
        let t = target(1, LockKind::Record);
        let mut locks = Locks::default();
        locks.set(t, A, lock(Read, 0, 9), None);
        assert_eq!(locks.set(t, B, lock(Read, 5, 20), None), Taken::Granted);
        assert_eq!(locks.set(t, B, lock(Write, 0, 0), None), Taken::Conflict);
        assert_eq!(locks.set(t, B, lock(Write, 10, 30), None), Taken::Granted);
        assert_eq!(
            locks.test(t, A, &lock(Read, 8, 15)).map(|lock| (lock.typ, lock.start, lock.end)),
            Some((Write, 10, 30))
        );
        assert_eq!(locks.test(t, A, &lock(Read, 0, 9)), None);
        // flock is another world.
        assert_eq!(locks.set(target(1, LockKind::Flock), B, lock(Write, 0, u64::MAX), None), Taken::Granted);
    }

    #[test]
    fn waiters_are_served_in_order() {
        let t = target(1, LockKind::Record);
        let mut locks = Locks::default();
        locks.set(t, A, lock(Write, 0, 9), None);
        let Taken::Waits(first) = locks.set(t, B, lock(Write, 0, 4), Some(7)) else { panic!() };
        let Taken::Waits(second) = locks.set(t, C, lock(Write, 3, 9), Some(8)) else { panic!() };
        locks.set(t, A, lock(Unlock, 0, 9), None);
        assert_eq!(locks.take_granted(), [first]);
        locks.set(t, B, lock(Unlock, 3, 4), None);
        assert_eq!(locks.take_granted(), [second]);
        let Taken::Waits(third) = locks.set(t, A, lock(Read, 0, 9), Some(9)) else { panic!() };
        assert_eq!(locks.cancel(t, A, 5), []);
        assert_eq!(locks.cancel(t, A, 9), [third]);
        let Taken::Waits(fourth) = locks.set(t, A, lock(Read, 0, 9), Some(10)) else { panic!() };
        assert_eq!(locks.drop_client(ClientId(2)), []);
        assert_eq!(locks.take_granted(), [fourth]);
    }

    #[test]
    fn owners_that_would_wait_for_each_other_are_told() {
        let (t, u) = (target(1, LockKind::Record), target(2, LockKind::Record));
        let mut locks = Locks::default();
        locks.set(t, A, lock(Write, 0, 0), None);
        locks.set(u, B, lock(Write, 0, 0), None);
        locks.set(u, C, lock(Write, 5, 5), None);
        assert!(matches!(locks.set(u, A, lock(Write, 5, 5), Some(1)), Taken::Waits(_)));
        assert!(matches!(locks.set(u, C, lock(Read, 0, 0), Some(1)), Taken::Waits(_)));
        // A waits for C, C for B.
        assert_eq!(locks.set(t, B, lock(Write, 0, 0), Some(1)), Taken::Deadlock);
        // Two readers that both want to write.
        let v = target(3, LockKind::Record);
        locks.drop_client(ClientId(1));
        locks.drop_client(ClientId(2));
        locks.set(v, A, lock(Read, 0, 0), None);
        locks.set(v, B, lock(Read, 0, 0), None);
        assert!(matches!(locks.set(v, A, lock(Write, 0, 0), Some(1)), Taken::Waits(_)));
        assert_eq!(locks.set(v, B, lock(Write, 0, 0), Some(1)), Taken::Deadlock);
        // With flock the first lets go, so the second has its way at once.
        let w = target(3, LockKind::Flock);
        locks.set(w, A, lock(Read, 0, 9), None);
        locks.set(w, B, lock(Read, 0, 9), None);
        let Taken::Waits(a) = locks.set(w, A, lock(Write, 0, 9), Some(1)) else { panic!() };
        assert_eq!(locks.set(w, B, lock(Write, 0, 9), Some(1)), Taken::Granted);
        locks.set(w, B, lock(Unlock, 0, 9), None);
        assert_eq!(locks.take_granted(), [a]);
    }
}
