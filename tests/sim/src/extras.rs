//! The oracle for what else an inode has: extended attributes, and locks.

use crate::history::{Name, OpId, Owner};
use crate::linear::{Access, Model};
use std::collections::BTreeMap;

/// A call on extended attributes, with its answer. A value is the operation that set it.
#[derive(Clone, Debug)]
pub enum XattrCall {
    Set {
        name: Name,
        value: OpId,
    },
    Saw {
        name: Name,
        value: Option<OpId>,
    },
    /// `there`: what the answer says about it, if there is one.
    Remove {
        name: Name,
        there: Option<bool>,
    },
}

pub struct Xattrs;

impl Model for Xattrs {
    type State = BTreeMap<Name, OpId>;
    type Call = XattrCall;
    type Key = Name;

    fn step(&self, state: &Self::State, call: &XattrCall) -> Vec<Self::State> {
        let mut next = state.clone();
        match call {
            XattrCall::Set { name, value } => _ = next.insert(*name, *value),
            XattrCall::Saw { name, value } if state.get(name) == value.as_ref() => {}
            XattrCall::Saw { .. } => return Vec::new(),
            XattrCall::Remove { name, there } => {
                let was_there = next.remove(name).is_some();
                if there.is_some_and(|there| there != was_there) {
                    return Vec::new();
                }
            }
        }
        vec![next]
    }

    fn only_looks(&self, call: &XattrCall) -> bool {
        matches!(call, XattrCall::Saw { .. } | XattrCall::Remove { there: Some(false), .. })
    }

    fn keys(&self, call: &XattrCall) -> Vec<(Name, Access)> {
        match call {
            XattrCall::Saw { name, .. } => vec![(*name, Access::Shared)],
            XattrCall::Set { name, .. } | XattrCall::Remove { name, .. } => vec![(*name, Access::Exclusive)],
        }
    }
}

/// A call on the lock of a whole file, with its answer.
#[derive(Clone, Debug)]
pub enum LockCall {
    /// `granted`: what the answer says, if there is one.
    Lock {
        owner: Owner,
        exclusive: bool,
        granted: Option<bool>,
    },
    Unlock {
        owner: Owner,
    },
}

pub struct Locks;

impl Model for Locks {
    /// Who has it, and whether alone.
    type State = BTreeMap<Owner, bool>;
    type Call = LockCall;
    type Key = ();

    fn step(&self, state: &Self::State, call: &LockCall) -> Vec<Self::State> {
        let mut next = state.clone();
        match call {
            LockCall::Lock { owner, exclusive, granted } => {
                let mut others = state.iter().filter(|(other, _)| *other != owner);
                let obstacle = others.any(|(_, others)| *exclusive || *others);
                match granted {
                    Some(granted) if *granted == obstacle => return Vec::new(),
                    None if obstacle => return Vec::new(),
                    Some(false) => {}
                    _ => _ = next.insert(*owner, *exclusive),
                }
            }
            LockCall::Unlock { owner } => _ = next.remove(owner),
        }
        vec![next]
    }

    fn only_looks(&self, call: &LockCall) -> bool {
        matches!(call, LockCall::Lock { granted: Some(false), .. })
    }

    fn keys(&self, call: &LockCall) -> Vec<((), Access)> {
        let access = if self.only_looks(call) { Access::Shared } else { Access::Exclusive };
        vec![((), access)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::{Operation, Verdict, check};

    fn verdict(calls: &[LockCall]) -> Verdict {
        let one_after_the_other = |(at, call): (u64, &LockCall)| Operation {
            invoked: 2 * at,
            responded: Some(2 * at + 1),
            call: call.clone(),
        };
        let operations: Vec<_> = (1..).zip(calls).map(one_after_the_other).collect();
        check(&Locks, BTreeMap::new(), &operations).0
    }

    #[test]
    fn an_exclusive_lock_is_one_owners() {
        let owner = |worker| Owner { client: 1, worker };
        let lock =
            |worker, exclusive, granted| LockCall::Lock { owner: owner(worker), exclusive, granted: Some(granted) };
        let unlock = |worker| LockCall::Unlock { owner: owner(worker) };
        assert_eq!(
            verdict(&[lock(1, true, true), lock(2, false, false), unlock(1), lock(2, false, true)]),
            Verdict::Explained
        );
        assert_eq!(verdict(&[lock(1, true, true), lock(2, true, true)]), Verdict::Violated(1));
        assert_eq!(verdict(&[lock(1, false, true), lock(2, false, true), lock(1, true, true)]), Verdict::Violated(2));
        assert_eq!(verdict(&[lock(1, true, true), unlock(1), lock(2, true, false)]), Verdict::Violated(2));
    }

    #[test]
    fn an_attribute_keeps_its_newest_value() {
        let operations: Vec<_> = [
            XattrCall::Set { name: 1, value: 7 },
            XattrCall::Saw { name: 1, value: Some(7) },
            XattrCall::Remove { name: 1, there: Some(true) },
            XattrCall::Saw { name: 1, value: Some(7) },
        ]
        .into_iter()
        .zip(1..)
        .map(|(call, at)| Operation { invoked: 2 * at, responded: Some(2 * at + 1), call })
        .collect();
        assert_eq!(check(&Xattrs, BTreeMap::new(), &operations).0, Verdict::Violated(3));
    }
}
