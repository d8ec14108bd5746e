//! What happened, as a hash that tells two runs apart, and as text for those who look for a bug.

use std::net::SocketAddr;
use std::time::Duration;
use weft_reactor::{Clock, Instant, VirtualClock};

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
/// Signs of life between notes, in virtual time.
const PRINT_EVERY: Duration = Duration::from_secs(1);
const FNV_PRIME: u64 = 0x100_0000_01b3;

pub struct Trace {
    clock: VirtualClock,
    hash: u64,
    turns: u64,
    print: bool,
    printed_at: Instant,
}

impl Trace {
    pub fn new(clock: VirtualClock) -> Self {
        Self { clock, hash: FNV_OFFSET, turns: 0, print: false, printed_at: Instant::ZERO }
    }

    /// Notes go to standard error as well.
    pub fn print(&mut self) {
        self.print = true;
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }

    /// A process had its turn and did so much.
    pub fn note_turn(&mut self, addr: SocketAddr, work: usize) {
        self.turns += 1;
        let now = self.clock.now();
        if self.print && now.since(self.printed_at) >= PRINT_EVERY {
            self.printed_at = now;
            eprintln!("{now:?} {} turns", self.turns);
        }
        self.add(&now.0.to_le_bytes());
        if let std::net::IpAddr::V4(ip) = addr.ip() {
            self.add(&ip.octets());
        }
        self.add(&(work as u64).to_le_bytes());
    }

    pub fn note(&mut self, text: &str) {
        self.add(text.as_bytes());
        if self.print {
            eprintln!("{:?} {text}", self.clock.now());
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn turns(&self) -> u64 {
        self.turns
    }
}
