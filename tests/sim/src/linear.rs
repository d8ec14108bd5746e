//! Whether a history can be explained: is there an order of its operations, each between its invocation and its
//! response, in which a sequential model gives the same answers?
//!
//! The history is walked once, from event to event, with all states that the object may be in. An operation takes
//! effect in the search only when an answer asks for it: its own, or one that depends on it. Operations without an
//! answer may take effect at any later time, or never. Operations that share no key with one another, directly or
//! through others that are under way, can't tell in which order they were, so only one order of them is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// States looked at for one answer, at most; beyond it the verdict is [`Verdict::Undecided`].
const STATES_MAX: usize = 200_000;

/// One operation on the object.
pub struct Operation<C> {
    pub invoked: u64,
    pub responded: Option<u64>,
    pub call: C,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Shared,
    Exclusive,
}

pub trait Model {
    type State: Clone + Ord;
    type Call;
    type Key: Ord + Clone;

    /// The states that the call leads to if it takes effect now with the answer that it got. None: it can't.
    fn step(&self, state: &Self::State, call: &Self::Call) -> Vec<Self::State>;

    /// With the answer that it got, the call changes nothing.
    fn only_looks(&self, call: &Self::Call) -> bool;

    /// What the call looks at, or changes so that others may see it. Those that only look at the same are independent.
    fn keys(&self, call: &Self::Call) -> Vec<(Self::Key, Access)>;
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Explained,
    /// The answer to this operation can't be explained.
    Violated(usize),
    /// Too many possibilities at the answer to this operation.
    Undecided(usize),
}

/// Most are looked at several times and never changed: they are shared.
type Config<S> = (BTreeSet<usize>, Rc<S>);

/// Walks the history of one object. States at the end come with the verdict.
pub fn check<M: Model>(
    model: &M,
    initial: M::State,
    operations: &[Operation<M::Call>],
) -> (Verdict, BTreeSet<M::State>) {
    let mut events: Vec<(u64, usize, bool)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        events.push((operation.invoked, index, false));
        events.extend(operation.responded.map(|at| (at, index, true)));
    }
    events.sort_unstable();
    let mut pending: BTreeSet<usize> = BTreeSet::new();
    // Which pending operations have taken effect, and the state then.
    let mut configs: BTreeSet<Config<M::State>> = BTreeSet::from([(BTreeSet::new(), Rc::new(initial))]);
    for (_, index, is_response) in events {
        if !is_response {
            pending.insert(index);
            continue;
        }
        let near = connected(model, operations, &pending, index);
        match explain(model, operations, configs, &near, index) {
            Some(explained) if explained.is_empty() => return (Verdict::Violated(index), BTreeSet::new()),
            Some(explained) => configs = explained,
            None => return (Verdict::Undecided(index), BTreeSet::new()),
        }
        pending.remove(&index);
    }
    (Verdict::Explained, configs.into_iter().map(|(_, state)| Rc::unwrap_or_clone(state)).collect())
}

/// Pending operations that may have to do with this one.
fn connected<M: Model>(
    model: &M,
    operations: &[Operation<M::Call>],
    pending: &BTreeSet<usize>,
    index: usize,
) -> Vec<usize> {
    let keys = |index: usize| operations.get(index).map(|operation| model.keys(&operation.call)).unwrap_or_default();
    let mut by_key: BTreeMap<M::Key, Vec<(usize, Access)>> = BTreeMap::new();
    for &other in pending {
        for (key, access) in keys(other) {
            by_key.entry(key).or_default().push((other, access));
        }
    }
    let mut found = BTreeSet::from([index]);
    let mut open = vec![index];
    while let Some(at) = open.pop() {
        for (key, access) in keys(at) {
            for (other, others) in by_key.get(&key).into_iter().flatten() {
                let related = access == Access::Exclusive || *others == Access::Exclusive;
                if related && found.insert(*other) {
                    open.push(*other);
                }
            }
        }
    }
    found.into_iter().collect()
}

/// All configurations in which the operation has taken effect, without it among the pending ones.
fn explain<M: Model>(
    model: &M,
    operations: &[Operation<M::Call>],
    configs: BTreeSet<Config<M::State>>,
    near: &[usize],
    index: usize,
) -> Option<BTreeSet<Config<M::State>>> {
    let mut explained = BTreeSet::new();
    let mut open: Vec<Config<M::State>> = configs.into_iter().collect();
    let mut seen: BTreeSet<Config<M::State>> = open.iter().cloned().collect();
    while let Some((mut done, state)) = open.pop() {
        if done.remove(&index) {
            explained.insert((done, state));
            continue;
        }
        if seen.len() > STATES_MAX {
            return None;
        }
        let mut branches = Vec::new();
        let mut greedy = None;
        for &next in near.iter().filter(|next| !done.contains(next)) {
            let Some(operation) = operations.get(next) else { continue };
            let states = model.step(&state, &operation.call);
            if matches!(&states[..], [only] if *only == *state) && model.only_looks(&operation.call) {
                // Its answer fits: to let it take effect now never hurts.
                greedy = Some(next);
                break;
            }
            branches.extend(states.into_iter().map(|state| (next, Rc::new(state))));
        }
        if let Some(next) = greedy {
            branches = vec![(next, state)];
        }
        for (next, state) in branches {
            let mut done = done.clone();
            done.insert(next);
            let config = (done, state);
            if seen.insert(config.clone()) {
                open.push(config);
            }
        }
    }
    Some(explained)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Register;

    #[derive(Clone, Copy)]
    enum Use {
        Write(u32),
        Read(u32),
    }
    use Use::{Read, Write};

    impl Model for Register {
        type State = u32;
        type Call = Use;
        type Key = ();

        fn step(&self, state: &u32, call: &Use) -> Vec<u32> {
            match call {
                Write(value) => vec![*value],
                Read(value) if value == state => vec![*state],
                Read(_) => vec![],
            }
        }

        fn only_looks(&self, call: &Use) -> bool {
            matches!(call, Read(_))
        }

        fn keys(&self, _: &Use) -> Vec<((), Access)> {
            vec![((), Access::Exclusive)]
        }
    }

    fn verdict(operations: &[(Use, u64, u64)]) -> Verdict {
        let operations: Vec<_> = operations
            .iter()
            .map(|(call, invoked, responded)| Operation {
                invoked: *invoked,
                responded: (*responded > 0).then_some(*responded),
                call: *call,
            })
            .collect();
        check(&Register, 0, &operations).0
    }

    #[test]
    fn overlapping_operations_may_be_in_any_order() {
        assert_eq!(verdict(&[(Write(1), 1, 4), (Read(0), 2, 3), (Read(1), 5, 6)]), Verdict::Explained);
        assert_eq!(verdict(&[(Write(1), 1, 4), (Read(1), 2, 3), (Read(1), 5, 6)]), Verdict::Explained);
        assert_eq!(
            verdict(&[(Write(1), 1, 5), (Write(2), 2, 6), (Read(2), 3, 4), (Read(1), 7, 8)]),
            Verdict::Explained
        );
    }

    #[test]
    fn what_was_answered_stays_and_time_does_not_go_back() {
        assert_eq!(verdict(&[(Write(1), 1, 2), (Read(0), 3, 4)]), Verdict::Violated(1));
        assert_eq!(verdict(&[(Write(1), 1, 6), (Read(1), 2, 3), (Read(0), 4, 5)]), Verdict::Violated(2));
        assert_eq!(verdict(&[(Read(7), 1, 2)]), Verdict::Violated(0));
    }

    #[test]
    fn what_was_not_answered_may_happen_late_or_never() {
        assert_eq!(verdict(&[(Write(1), 1, 0), (Read(0), 2, 3), (Read(1), 4, 5)]), Verdict::Explained);
        assert_eq!(verdict(&[(Write(1), 1, 0), (Read(0), 2, 3), (Read(0), 4, 5)]), Verdict::Explained);
        assert_eq!(
            verdict(&[(Write(1), 1, 0), (Read(1), 2, 3), (Read(0), 4, 5)]),
            Verdict::Violated(2),
            "it happened once"
        );
    }
}
