//! How much may be in flight: slow start, then additive increase, cut by 0.7 on loss or a mark of congestion.
//!
//! Round trips in a data centre are so short that the slow growth of additive increase costs little, and the shallow cut
//! keeps the pipe full; a curve in time (CUBIC) would be governed by timer noise at 50 microseconds.

use crate::options::{EndpointOptions, MTU_BASE_BYTES};
use weft_reactor::Instant;

#[derive(Clone, Debug)]
pub struct Congestion {
    window: usize,
    threshold: usize,
    max: usize,
    /// Losses of packets sent until then were answered.
    answered: Option<Instant>,
}

const WINDOW_MIN: usize = 8 * MTU_BASE_BYTES;

impl Congestion {
    pub fn new(options: &EndpointOptions) -> Self {
        Self {
            window: options.congestion_bytes_initial.max(WINDOW_MIN),
            threshold: usize::MAX,
            max: options.congestion_bytes_max.max(WINDOW_MIN),
            answered: None,
        }
    }

    pub fn window(&self) -> usize {
        self.window
    }

    fn is_answered(&self, sent: Instant) -> bool {
        self.answered.is_some_and(|until| sent <= until)
    }

    /// `bytes` sent at `sent` arrived, while `in_flight` were on their way.
    pub fn on_arrived(&mut self, bytes: usize, sent: Instant, in_flight: usize, mtu: usize) {
        // A window that isn't used is not proven.
        if self.is_answered(sent) || in_flight * 2 < self.window {
            return;
        }
        let growth = if self.window < self.threshold { bytes } else { (mtu * bytes).div_ceil(self.window) };
        self.window = (self.window + growth).min(self.max);
    }

    /// A packet sent at `sent` was lost, or the network marked one that arrived now.
    pub fn on_congestion(&mut self, sent: Instant, now: Instant) {
        if self.is_answered(sent) {
            return;
        }
        self.answered = Some(now);
        self.window = (self.window / 10 * 7).max(WINDOW_MIN);
        self.threshold = self.window;
    }
}
