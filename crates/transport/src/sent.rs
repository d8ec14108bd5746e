//! Packets sent and not yet settled: which arrived, which are lost, what they carried.

use std::collections::VecDeque;
use std::time::Duration;
use weft_reactor::Instant;

/// Something a packet carried that must be sent again if it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Piece { number: u64, offset: u32, len: u32 },
    Cancel(u64),
    MtuProbe,
}

/// What one packet carried. Most carry one thing, which needs no memory of its own.
#[derive(Clone, Debug, Default)]
pub struct Cargo {
    first: Option<Carried>,
    more: Vec<Carried>,
}

impl Cargo {
    pub fn push(&mut self, carried: Carried) {
        if self.first.is_none() { self.first = Some(carried) } else { self.more.push(carried) }
    }

    pub fn iter(&self) -> impl Iterator<Item = Carried> {
        self.first.into_iter().chain(self.more.iter().copied())
    }

    pub fn is_mtu_probe(&self) -> bool {
        self.first == Some(Carried::MtuProbe)
    }
}

#[derive(Debug)]
pub struct SentPacket {
    pub number: u64,
    pub at: Instant,
    /// Length of the datagram.
    pub bytes: usize,
    pub cargo: Cargo,
}

#[derive(Debug, Default)]
pub struct Sent {
    /// Number of the next packet.
    next: u64,
    /// In flight, by number: sorted, with holes where packets asked for no acknowledgement or are settled.
    packets: VecDeque<Option<SentPacket>>,
    /// Number of the first slot.
    base: u64,
    bytes_in_flight: usize,
    in_flight: usize,
    largest_arrived: Option<u64>,
    /// When the newest packet that arrived was sent.
    newest_arrived: Option<Instant>,
    last_at: Option<Instant>,
}

impl Sent {
    /// Takes the next packet number.
    pub fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Whether a packet of this number was sent lately enough that a stateless answer to it may be believed.
    pub fn is_plausible(&self, number: u64) -> bool {
        number < self.next && number + crate::options::PACKETS_IN_FLIGHT_MAX as u64 >= self.next
    }

    /// Remembers a packet that asks to be acknowledged. Its number must be the newest.
    pub fn record(&mut self, packet: SentPacket) {
        if self.packets.is_empty() {
            self.base = packet.number;
        }
        while self.base + (self.packets.len() as u64) < packet.number {
            self.packets.push_back(None);
        }
        self.bytes_in_flight += packet.bytes;
        self.in_flight += 1;
        self.last_at = Some(packet.at);
        self.packets.push_back(Some(packet));
    }

    pub fn bytes_in_flight(&self) -> usize {
        self.bytes_in_flight
    }

    /// Packets in flight.
    pub fn len(&self) -> usize {
        self.in_flight
    }

    pub fn is_empty(&self) -> bool {
        self.in_flight == 0
    }

    /// When the newest packet in flight was sent.
    pub fn last_at(&self) -> Option<Instant> {
        self.last_at.filter(|_| self.in_flight > 0)
    }

    fn take(&mut self, slot: usize) -> Option<SentPacket> {
        let packet = self.packets.get_mut(slot)?.take()?;
        self.bytes_in_flight -= packet.bytes;
        self.in_flight -= 1;
        Some(packet)
    }

    /// Gives memory back that only traffic needs.
    pub fn shrink(&mut self) {
        self.packets.shrink_to_fit();
    }

    fn trim(&mut self) {
        while let Some(None) = self.packets.front() {
            self.packets.pop_front();
            self.base += 1;
        }
    }

    /// Packets `low..=high` arrived; gives those that weren't known to. `None` if one of them was never sent.
    pub fn arrived(&mut self, low: u64, high: u64, each: &mut dyn FnMut(SentPacket)) -> Option<()> {
        if high >= self.next {
            return None;
        }
        self.largest_arrived = self.largest_arrived.max(Some(high));
        let end = self.base + self.packets.len() as u64;
        for number in low.max(self.base)..(high + 1).min(end) {
            if let Some(packet) = self.take((number - self.base) as usize) {
                self.newest_arrived = self.newest_arrived.max(Some(packet.at));
                each(packet);
            }
        }
        self.trim();
        Some(())
    }

    /// Gives the packets that are lost by now: those overtaken by `packets` others and older than `soon`, and those
    /// overtaken at all and older than `late`. Returns when the next one will be.
    pub fn detect_lost(
        &mut self,
        now: Instant,
        packets: u64,
        soon: Duration,
        late: Duration,
        each: &mut dyn FnMut(SentPacket),
    ) -> Option<Instant> {
        let (largest, newest) = (self.largest_arrived?, self.newest_arrived?);
        let mut next = None;
        for slot in 0..self.packets.len() {
            let number = self.base + slot as u64;
            if number >= largest {
                break;
            }
            let Some(Some(packet)) = self.packets.get(slot) else { continue };
            if packet.at > newest {
                break;
            }
            let patience = if number + packets <= largest { soon } else { late };
            if now.since(packet.at) >= patience {
                if let Some(packet) = self.take(slot) {
                    each(packet);
                }
            } else {
                let at = packet.at + patience;
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
        }
        self.trim();
        next
    }

    /// Gives up the oldest packet in flight, for a probe to carry what it carried.
    pub fn take_oldest(&mut self) -> Option<SentPacket> {
        self.trim();
        let oldest = self.take(0);
        self.trim();
        oldest
    }
}
