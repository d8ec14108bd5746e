//! Arithmetic of byte-range locks: what both the leader and the client that holds them must agree on.

use crate::fs::{Lock, LockType};

/// Puts a lock (or with [`LockType::Unlock`] nothing) in the place of whatever its owner had in the range. `held` are one
/// owner's locks of one kind on one file: they never overlap, and neighbours of one type are one.
pub fn replace(held: &mut Vec<Lock>, lock: Lock) {
    let mut kept = Vec::with_capacity(held.len() + 2);
    let mut new = lock;
    for old in held.drain(..) {
        let touches = old.start <= lock.end.saturating_add(1) && lock.start <= old.end.saturating_add(1);
        if !touches {
            kept.push(old);
            continue;
        }
        if old.typ == lock.typ {
            new.start = new.start.min(old.start);
            new.end = new.end.max(old.end);
            continue;
        }
        if old.start < lock.start {
            kept.push(Lock { end: old.end.min(lock.start - 1), ..old });
        }
        if old.end > lock.end {
            kept.push(Lock { start: old.start.max(lock.end + 1), ..old });
        }
    }
    if lock.typ != LockType::Unlock {
        kept.push(new);
    }
    *held = kept;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::LockKind;
    use LockType::{Read, Unlock, Write};

    fn lock(typ: LockType, start: u64, end: u64) -> Lock {
        Lock { kind: LockKind::Record, typ, start, end, owner: 1, pid: 1 }
    }

    fn ranges(held: &[Lock]) -> Vec<(LockType, u64, u64)> {
        let mut ranges: Vec<_> = held.iter().map(|lock| (lock.typ, lock.start, lock.end)).collect();
        ranges.sort_by_key(|range| range.1);
        ranges
    }

    #[test]
    fn ranges_split_and_merge() {
        let mut held = Vec::new();
        replace(&mut held, lock(Write, 0, 99));
        replace(&mut held, lock(Read, 40, 59));
        assert_eq!(ranges(&held), [(Write, 0, 39), (Read, 40, 59), (Write, 60, 99)]);
        replace(&mut held, lock(Unlock, 50, 69));
        assert_eq!(ranges(&held), [(Write, 0, 39), (Read, 40, 49), (Write, 70, 99)]);
        replace(&mut held, lock(Write, 40, 69));
        assert_eq!(ranges(&held), [(Write, 0, 99)]);
        replace(&mut held, lock(Write, 100, u64::MAX));
        assert_eq!(ranges(&held), [(Write, 0, u64::MAX)]);
        replace(&mut held, lock(Unlock, 0, u64::MAX));
        assert!(held.is_empty());
    }
}
