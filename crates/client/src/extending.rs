//! Writes behind the end of a file that are under way in this client. They become part of the file from the front on: a size
//! that passes over data which nobody has published takes it for that of a writer that died, and has it written again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use weft_reactor::sync::Notify;
use weft_wire::InodeId;

#[derive(Default)]
pub(crate) struct Extending {
    /// Of each file, by (first byte, order of coming). As many as there are operations under way.
    under_way: RefCell<BTreeMap<InodeId, BTreeSet<(u64, u64)>>>,
    begun: Cell<u64>,
    ended: Notify,
}

impl Extending {
    pub fn begin(&self, inode: InodeId, start: u64) -> Extends<'_> {
        self.begun.set(self.begun.get() + 1);
        let place = (start, self.begun.get());
        self.under_way.borrow_mut().entry(inode).or_default().insert(place);
        Extends { of: self, inode, place }
    }
}

/// A write that may extend its file; over when this is dropped.
pub(crate) struct Extends<'a> {
    of: &'a Extending,
    inode: InodeId,
    place: (u64, u64),
}

impl Extends<'_> {
    fn is_first(&self) -> bool {
        let under_way = self.of.under_way.borrow();
        under_way.get(&self.inode).and_then(BTreeSet::first).is_none_or(|first| *first >= self.place)
    }

    /// Returns when no write that begins before this one is under way. The first of all waits for nobody.
    pub async fn turn(&self) {
        while !self.is_first() {
            self.of.ended.notified().await;
        }
    }
}

impl Drop for Extends<'_> {
    fn drop(&mut self) {
        let mut under_way = self.of.under_way.borrow_mut();
        if let Some(places) = under_way.get_mut(&self.inode) {
            places.remove(&self.place);
            if places.is_empty() {
                under_way.remove(&self.inode);
            }
        }
        drop(under_way);
        self.of.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_reactor::testing::VirtualTime;

    #[test]
    fn writes_take_their_turns_from_the_front() {
        let time = VirtualTime::new(1);
        let extending = Extending::default();
        let order = RefCell::new(Vec::new());
        let write = |inode, start| {
            let extends = extending.begin(InodeId(inode), start);
            let order = &order;
            async move {
                extends.turn().await;
                order.borrow_mut().push((inode, start));
            }
        };
        let writes = vec![write(1, 30), write(1, 10), write(2, 50), write(1, 20), write(1, 10)];
        time.block_on(weft_reactor::join_all(writes));
        assert_eq!(order.into_inner(), [(1, 10), (2, 50), (1, 10), (1, 20), (1, 30)]);
        assert!(extending.under_way.borrow().is_empty());
    }

    #[test]
    fn one_that_is_given_up_holds_up_nobody() {
        let time = VirtualTime::new(1);
        let extending = Extending::default();
        let first = extending.begin(InodeId(1), 0);
        let second = extending.begin(InodeId(1), 5);
        assert!(!second.is_first());
        drop(first);
        time.block_on(second.turn());
    }
}
