//! Estimates the round trip time (RFC 6298, with the peer's own delay taken out as in RFC 9002).

use crate::options::EndpointOptions;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
    min: Duration,
}

impl Default for Rtt {
    fn default() -> Self {
        Self { smoothed: None, variation: Duration::ZERO, latest: Duration::ZERO, min: Duration::MAX }
    }
}

impl Rtt {
    /// One measurement, of which the peer spent `held` waiting before it acknowledged.
    pub fn sample(&mut self, measured: Duration, held: Duration) {
        self.min = self.min.min(measured);
        let adjusted = measured.saturating_sub(held).max(self.min);
        self.latest = adjusted;
        match self.smoothed {
            None => {
                self.smoothed = Some(adjusted);
                self.variation = adjusted / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(adjusted)) / 4;
                self.smoothed = Some((smoothed * 7 + adjusted) / 8);
            }
        }
    }

    /// The larger of the newest and the smoothed time, if anything was measured.
    pub fn recent(&self) -> Option<Duration> {
        self.smoothed.map(|smoothed| smoothed.max(self.latest))
    }

    /// How long to wait for an acknowledgement before asking again, the first time; `asked`: the peer was told not to wait
    /// with it.
    pub fn probe_after(&self, asked: bool, options: &EndpointOptions) -> Duration {
        match self.smoothed {
            None => options.probe_initial,
            Some(smoothed) => {
                let spread = (self.variation * 4).max(Duration::from_millis(1));
                let delay = if asked { Duration::ZERO } else { options.ack_delay };
                ((smoothed + spread).max(options.probe_min) + delay).min(options.probe_max)
            }
        }
    }
}
