//! Finds the largest datagram the path carries, and notices when it shrinks.
//!
//! Starts at a size that every path carries, tries the largest at once (right on most networks), then the usual sizes of
//! networks, then halves what is left. A lost probe says nothing about congestion. When several large packets in a row are
//! lost while none arrives, the path has become a black hole for them: back to the base.

use crate::options::MTU_BASE_BYTES;
use std::time::Duration;
use weft_reactor::Instant;

/// Probes of one size before it counts as too large.
const TRIES: u8 = 2;
/// Large packets lost in a row that make a black hole.
const LOST_IN_A_ROW_MAX: u8 = 6;
/// Sizes closer together than this are not told apart.
const PRECISION_BYTES: usize = 64;
/// Payloads of Ethernet at 1500 and 9000 behind IPv4 and UDP, less something for tunnels.
const USUAL_BYTES: [usize; 2] = [1452, 8952];
/// After this long a path that was too small is tried again; each failure doubles it. Short at first, because a peer that
/// merely stood still looks like a black hole.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(64);

#[derive(Clone, Debug)]
pub struct Mtu {
    current: usize,
    max: usize,
    /// Sizes from here on failed or can't be.
    failed: usize,
    tries: u8,
    /// The size on its way.
    probe: Option<usize>,
    lost_in_a_row: u8,
    again: Option<Instant>,
    again_after: Duration,
}

impl Mtu {
    pub fn new(max: usize) -> Self {
        let max = max.max(MTU_BASE_BYTES);
        Self {
            current: MTU_BASE_BYTES,
            max,
            failed: max + 1,
            tries: 0,
            probe: None,
            lost_in_a_row: 0,
            again: None,
            again_after: AGAIN_MIN,
        }
    }

    /// The largest datagram to send.
    pub fn current(&self) -> usize {
        self.current
    }

    /// The size of a probe to send now, if one is due.
    pub fn probe_due(&mut self, now: Instant) -> Option<usize> {
        if self.again.is_some_and(|again| again <= now) {
            self.again = None;
            self.failed = self.max + 1;
            self.tries = 0;
        }
        if self.probe.is_some() {
            return None;
        }
        self.candidate()
    }

    fn try_again_later(&mut self, now: Instant) {
        self.again = Some(now + self.again_after);
        self.again_after = (self.again_after * 2).min(AGAIN_MAX);
    }

    fn candidate(&self) -> Option<usize> {
        if self.failed == self.max + 1 && self.current < self.max {
            return Some(self.max);
        }
        let largest = self.failed - 1;
        if largest < self.current + PRECISION_BYTES {
            return None;
        }
        let usual = USUAL_BYTES.iter().rev().find(|size| (self.current + 1..=largest).contains(size));
        Some(usual.copied().unwrap_or((self.current + largest).div_ceil(2)))
    }

    pub fn on_probe_sent(&mut self, size: usize) {
        self.probe = Some(size);
    }

    pub fn on_probe_arrived(&mut self, size: usize) {
        if self.probe == Some(size) {
            self.probe = None;
            self.tries = 0;
            self.lost_in_a_row = 0;
            self.current = self.current.max(size);
            if self.current == self.max {
                self.again_after = AGAIN_MIN;
            }
        }
    }

    pub fn on_probe_lost(&mut self, size: usize, now: Instant) {
        if self.probe == Some(size) {
            self.probe = None;
            self.tries += 1;
            if self.tries >= TRIES {
                self.tries = 0;
                self.failed = size;
                self.try_again_later(now);
            }
        }
    }

    pub fn on_arrived(&mut self, size: usize) {
        if size > MTU_BASE_BYTES {
            self.lost_in_a_row = 0;
        }
    }

    /// A data packet was lost, or got no answer. Each of the path's sizes is suspected by itself.
    pub fn on_lost(&mut self, size: usize, now: Instant) {
        if size <= MTU_BASE_BYTES || self.current == MTU_BASE_BYTES {
            return;
        }
        self.lost_in_a_row += 1;
        if self.lost_in_a_row >= LOST_IN_A_ROW_MAX {
            self.lost_in_a_row = 0;
            self.failed = self.current;
            self.current = MTU_BASE_BYTES;
            self.probe = None;
            self.tries = 0;
            self.try_again_later(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the search against a path of `path` bytes; returns the size found and how many probes it took.
    fn search(mtu: &mut Mtu, path: usize) -> (usize, usize) {
        let mut probes = 0;
        while let Some(size) = mtu.probe_due(Instant(0)) {
            probes += 1;
            mtu.on_probe_sent(size);
            if size <= path { mtu.on_probe_arrived(size) } else { mtu.on_probe_lost(size, Instant(0)) }
        }
        (mtu.current(), probes)
    }

    #[test]
    fn finds_every_path() {
        for path in (MTU_BASE_BYTES..9100).step_by(37) {
            let mut mtu = Mtu::new(8952);
            let (found, probes) = search(&mut mtu, path);
            assert!(
                found <= path.max(MTU_BASE_BYTES) && found + PRECISION_BYTES >= path.min(8952),
                "{found} on {path}"
            );
            assert!(probes <= 24, "{probes} probes on {path}");
        }
        assert_eq!(search(&mut Mtu::new(8952), 9000), (8952, 1));
    }

    #[test]
    fn a_black_hole_sends_it_back_to_the_base() {
        let mut mtu = Mtu::new(8952);
        search(&mut mtu, 8952);
        for _ in 0..LOST_IN_A_ROW_MAX {
            mtu.on_lost(8952, Instant(0));
        }
        assert_eq!(mtu.current(), MTU_BASE_BYTES);
        assert_eq!(search(&mut mtu, 1452).0, 1452);
        assert_eq!(mtu.probe_due(Instant(0) + AGAIN_MAX), Some(8952));
    }
}
