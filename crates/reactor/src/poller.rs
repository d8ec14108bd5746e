use std::os::fd::RawFd;

use crate::Instant;

/// A source of work that is asked again and again: a network endpoint, a completion queue.
pub trait Poller {
    /// Does what there is to do now and returns how much that was; 0 lets the core go idle.
    fn poll(&mut self, now: Instant) -> usize;

    /// A file descriptor that is readable when [`poll`](Self::poll) would find work. It must not change.
    ///
    /// Without one, the core wakes for this poller only at the time that [`before_sleep`](Self::before_sleep) names.
    fn wait_fd(&self) -> Option<RawFd> {
        None
    }

    /// Called right before the core sleeps: arm wake-ups. Returns when to be polled again at the latest.
    fn before_sleep(&mut self) -> Option<Instant> {
        None
    }
}
