//! What a drive has granted the leaders of one bucket, and to whom it grants nothing any more.
//!
//! A promise holds a seal of a higher epoch back until it has run out. Promises live in memory: a restarted
//! drive doesn't know them and answers no seal until the longest that it may have given has run out.

use std::time::Duration;
use weft_reactor::Instant;
use weft_wire::Epoch;

#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// Lower epochs are granted nothing: a higher one appended or asked for a seal.
    highest: Epoch,
    /// The newest promise.
    epoch: Epoch,
    until: Instant,
    /// When the last promise to an epoch below `epoch` ends.
    older_until: Instant,
}

impl Promises {
    /// `fence`: what is known from the drive. `silent_until`: no seal is answered before.
    pub fn new(fence: Epoch, silent_until: Instant) -> Self {
        Self { highest: fence, epoch: Epoch(0), until: silent_until, older_until: silent_until }
    }

    pub fn highest(&self) -> Epoch {
        self.highest
    }

    /// A leader of `epoch` asks for something. `Err` names the epoch that has replaced it.
    pub fn admit(&mut self, epoch: Epoch) -> Result<(), Epoch> {
        if epoch < self.highest && !weft_wire::mutant("ignore_epochs") {
            return Err(self.highest);
        }
        self.highest = epoch;
        Ok(())
    }

    /// Promises the leader of `epoch`, which was admitted, that no higher seal is answered for `lease` from `now` on.
    pub fn promise(&mut self, epoch: Epoch, now: Instant, lease: Duration) {
        if epoch > self.epoch {
            self.older_until = self.older_until.max(self.until);
            self.epoch = epoch;
            self.until = now;
        }
        self.until = self.until.max(now + lease);
    }

    /// The leader of `epoch` has ended, it says. An append of its own that arrives late may renew the promise: that only takes longer.
    pub fn release(&mut self, epoch: Epoch) {
        if epoch == self.epoch {
            self.until = Instant::ZERO;
        }
    }

    /// When a seal of `epoch` may be answered.
    pub fn seal_at(&self, epoch: Epoch) -> Instant {
        if epoch > self.epoch { self.until.max(self.older_until) } else { self.older_until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(150);

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    #[test]
    fn a_seal_waits_for_promises_to_lower_epochs_only() {
        let mut promises = Promises::new(Epoch(1), at(0));
        promises.promise(Epoch(1), at(10), LEASE);
        assert_eq!(promises.seal_at(Epoch(2)), at(160));
        assert_eq!(promises.seal_at(Epoch(1)), at(0));
        assert_eq!(promises.admit(Epoch(2)), Ok(()));
        promises.promise(Epoch(2), at(50), LEASE);
        assert_eq!(promises.seal_at(Epoch(2)), at(160), "its own promise doesn't hold it back, the older one does");
        assert_eq!(promises.seal_at(Epoch(3)), at(200));
        assert_eq!(promises.admit(Epoch(1)), Err(Epoch(2)));
    }

    #[test]
    fn a_leader_gives_back_its_own_promise_alone() {
        let mut promises = Promises::new(Epoch(1), at(40));
        promises.promise(Epoch(2), at(10), LEASE);
        promises.release(Epoch(1));
        assert_eq!(promises.seal_at(Epoch(3)), at(160), "another's");
        promises.release(Epoch(2));
        assert_eq!(promises.seal_at(Epoch(3)), at(40), "the drive's silence after a restart stays");
    }

    #[test]
    fn a_restarted_drive_is_silent_first() {
        assert_eq!(Promises::new(Epoch(4), at(150)).seal_at(Epoch(9)), at(150));
    }
}
