//! Cookies: an address proves that it hears us before it costs us memory.

use crate::options::COOKIE_LIFE;
use crate::packet::Hello;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};
use weft_reactor::Instant;

/// The secret of one process: makes its cookies, its nonce and its session numbers.
#[derive(Clone)]
pub struct Secret([u8; 16]);

impl Secret {
    pub fn new(secret: [u8; 16]) -> Self {
        Self(secret)
    }

    /// A number that nobody without the secret can guess, the same for the same `purpose` and `count`.
    pub fn number(&self, purpose: u8, count: u64) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write_u8(purpose);
        hasher.write_u64(count);
        hasher.finish128().h1
    }

    fn cookie_of_period(&self, period: u64, from: SocketAddr, hello: &Hello) -> [u8; 16] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write_u8(0);
        hasher.write_u64(period);
        match from.ip() {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        hasher.write_u16(from.port());
        for part in [hello.nonce, hello.session, hello.order] {
            hasher.write_u64(part.get());
        }
        let hash = hasher.finish128();
        (u128::from(hash.h1) << 64 | u128::from(hash.h2)).to_le_bytes()
    }

    pub fn cookie(&self, now: Instant, from: SocketAddr, hello: &Hello) -> [u8; 16] {
        self.cookie_of_period(period(now), from, hello)
    }

    /// Whether a hello brings the cookie that it was given in this period or the one before.
    pub fn accepts(&self, now: Instant, from: SocketAddr, hello: &Hello) -> bool {
        let period = period(now);
        let given = |period| self.cookie_of_period(period, from, hello) == hello.cookie;
        given(period) || period.checked_sub(1).is_some_and(given)
    }
}

fn period(now: Instant) -> u64 {
    now.0 / COOKIE_LIFE.as_nanos() as u64
}
