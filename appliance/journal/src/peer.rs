//! One drive of the ensemble as its leader sees it: what it has yet to get, what is under way, what it promised.

use crate::call::CallId;
use crate::tunables::Tunables;
use std::collections::{BTreeMap, BTreeSet};
use weft_reactor::Instant;
use weft_wire::{DriveId, Seq};

/// An unanswered call.
#[derive(Debug)]
pub struct Flight {
    pub sent: Instant,
    pub what: FlightKind,
    pub bytes: usize,
}

#[derive(Debug)]
pub enum FlightKind {
    Seal,
    Append { records: Vec<Seq>, trim_below: Seq },
}

#[derive(Debug)]
pub struct Peer {
    pub drive: DriveId,
    /// Refuses all older leaders. Nothing is sent to a drive before.
    pub sealed: bool,
    /// To be sent: what must stand before the epoch starts and everything since, lowest first.
    pub urgent: BTreeSet<Seq>,
    /// To be sent when nothing is urgent: the older rest, for a new ensemble.
    pub later: BTreeSet<Seq>,
    pub flights: BTreeMap<CallId, Flight>,
    pub flight_bytes: usize,
    pub flight_records: usize,
    /// Until then the drive answers no higher seal.
    pub promised_until: Instant,
    /// A beat is due even if there is nothing to append.
    pub beat: bool,
    /// Not before then is it asked for a promise alone.
    pub beat_at: Instant,
    /// The highest trim that the drive confirmed.
    pub trimmed_below: Seq,
    pub retry_at: Instant,
    pub failures: u32,
    pub why: Option<String>,
    pub ring_full: bool,
}

impl Peer {
    pub fn new(drive: DriveId, sealed: bool) -> Self {
        Self {
            drive,
            sealed,
            urgent: BTreeSet::new(),
            later: BTreeSet::new(),
            flights: BTreeMap::new(),
            flight_bytes: 0,
            flight_records: 0,
            promised_until: Instant::default(),
            beat: false,
            beat_at: Instant::default(),
            trimmed_below: Seq(0),
            retry_at: Instant::default(),
            failures: 0,
            why: None,
            ring_full: false,
        }
    }

    /// Whether a call may be made now: the drive is not in a pause, and in trouble it is asked one thing at a time.
    pub fn may_send(&self, now: Instant) -> bool {
        self.retry_at <= now && (self.failures == 0 || self.flights.is_empty())
    }

    pub fn has_work(&self) -> bool {
        !self.sealed || self.beat || !self.urgent.is_empty() || !self.later.is_empty()
    }

    /// Whether another append fits the window.
    pub fn window_open(&self, tunables: &Tunables) -> bool {
        self.flights.is_empty()
            || (self.flight_bytes < tunables.window_bytes && self.flight_records < tunables.window_records)
    }

    pub fn depart(&mut self, call: CallId, flight: Flight) {
        self.flight_bytes += flight.bytes;
        if let FlightKind::Append { records, .. } = &flight.what {
            self.flight_records += records.len();
        }
        self.flights.insert(call, flight);
    }

    pub fn arrive(&mut self, call: CallId) -> Option<Flight> {
        let flight = self.flights.remove(&call)?;
        self.flight_bytes -= flight.bytes;
        if let FlightKind::Append { records, .. } = &flight.what {
            self.flight_records -= records.len();
        }
        Some(flight)
    }

    /// The call did not succeed: what it carried is to be sent again, after a pause.
    pub fn fail(&mut self, now: Instant, flight: Flight, why: String, tunables: &Tunables) {
        if let FlightKind::Append { records, .. } = flight.what {
            self.urgent.extend(records);
        }
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + tunables.backoff(self.failures);
        self.why = Some(why);
    }

    pub fn succeed(&mut self) {
        self.failures = 0;
        self.why = None;
        self.ring_full = false;
        self.retry_at = Instant::default();
    }
}
