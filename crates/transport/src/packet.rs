//! The packet: a header, a payload, a tag. Little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | kind |
//! | 1 | layout of the header, 1 |
//! | 1 | key of the tag; 0: none, the tag is a CRC-32C and zeros |
//! | 1 | flags; bit 0: acknowledge at once |
//! | 8 | session, as its receiver numbers it |
//! | 8 | packet number, from 0 in each session and direction |
//! | n | payload |
//! | 16 | tag over everything before it |
//!
//! Header, tag, hello and refusal keep their form in all versions of the protocol, so that a mismatch can be told by name.

use weft_wire::PROTOCOL_VERSION;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub const HEADER_BYTES: usize = size_of::<Header>();
pub const TAG_BYTES: usize = 16;
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

const LAYOUT: u8 = 1;
const KEY_NONE: u8 = 0;
pub const FLAG_ACK_NOW: u8 = 1;
/// Where the flags are in a packet.
pub const FLAGS_OFFSET: usize = core::mem::offset_of!(Header, flags);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Asks for a session. Payload: [`Hello`].
    Hello = 1,
    /// Say hello again with this cookie; nothing was stored. Payload: [`Retry`].
    Retry = 2,
    /// The session stands. Payload: [`Accept`].
    Accept = 3,
    /// There will be no session. Payload: [`Refuse`].
    Refuse = 4,
    /// Frames of a session.
    Data = 5,
    /// The session named is unknown here. Session and packet number are those of the packet answered; no payload.
    Reset = 6,
}

impl Kind {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Hello,
            2 => Self::Retry,
            3 => Self::Accept,
            4 => Self::Refuse,
            5 => Self::Data,
            6 => Self::Reset,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: u8,
    layout: u8,
    key: u8,
    flags: u8,
    session: U64,
    number: U64,
}

/// Asks for a session. As long as the longest answer to it, so that a forged sender gains nothing.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    pub protocol: U16,
    pub reserved: U16,
    /// Bytes of messages that may be on their way to the sender at once.
    pub window_bytes: U32,
    /// Names the life of the sending process.
    pub nonce: U64,
    /// The session as its opener numbers it.
    pub session: U64,
    /// Rises with each session that this process opens.
    pub order: U64,
    /// Zero, or what a [`Retry`] brought.
    pub cookie: [u8; 16],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Retry {
    pub cookie: [u8; 16],
    /// The nonce of the hello answered.
    pub echo: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Accept {
    pub window_bytes: U32,
    pub reserved: U32,
    /// Names the life of the accepting process.
    pub nonce: U64,
    /// The session as its accepter numbers it.
    pub session: U64,
    pub echo: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Refuse {
    /// The version that the refuser speaks.
    pub protocol: U16,
    /// [`REFUSE_VERSION`] or [`REFUSE_FULL`].
    pub reason: U16,
    pub echo: U64,
}

pub const REFUSE_VERSION: u16 = 1;
pub const REFUSE_FULL: u16 = 2;

impl Hello {
    pub fn speaks_our_version(&self) -> bool {
        self.protocol.get() == PROTOCOL_VERSION
    }
}

/// A packet whose tag was right.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub kind: Kind,
    pub ack_now: bool,
    pub session: u64,
    pub number: u64,
    pub payload: &'a [u8],
}

/// Checks a datagram; `None` if it is not one of ours, or damaged.
pub fn parse(data: &[u8]) -> Option<Packet<'_>> {
    let (signed, tag) = data.split_last_chunk::<TAG_BYTES>()?;
    let (header, payload) = Header::ref_from_prefix(signed).ok()?;
    if header.layout != LAYOUT || header.key != KEY_NONE || *tag != self::tag(signed) {
        return None;
    }
    Some(Packet {
        kind: Kind::from_u8(header.kind)?,
        ack_now: header.flags & FLAG_ACK_NOW != 0,
        session: header.session.get(),
        number: header.number.get(),
        payload,
    })
}

fn tag(signed: &[u8]) -> [u8; TAG_BYTES] {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, signed) as u32;
    let mut tag = [0; TAG_BYTES];
    tag[..4].copy_from_slice(&crc.to_le_bytes());
    tag
}

/// Appends a header; the payload follows, then [`seal`].
pub fn begin(out: &mut Vec<u8>, kind: Kind, flags: u8, session: u64, number: u64) {
    let header = Header {
        kind: kind as u8,
        layout: LAYOUT,
        key: KEY_NONE,
        flags,
        session: session.into(),
        number: number.into(),
    };
    out.extend_from_slice(header.as_bytes());
}

/// Appends the tag of the packet that begins at `start`.
pub fn seal(out: &mut Vec<u8>, start: usize) {
    let tag = tag(&out[start..]);
    out.extend_from_slice(&tag);
}

/// A whole packet with a payload of fixed form.
pub fn whole(kind: Kind, session: u64, number: u64, payload: &(impl IntoBytes + Immutable)) -> bytes::Bytes {
    let payload = payload.as_bytes();
    let mut out = Vec::with_capacity(OVERHEAD_BYTES + payload.len());
    begin(&mut out, kind, 0, session, number);
    out.extend_from_slice(payload);
    seal(&mut out, 0);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_seen() {
        let refuse = Refuse { protocol: 7.into(), reason: 1.into(), echo: 9.into() };
        let packet = whole(Kind::Refuse, 3, 4, &refuse);
        assert_eq!(packet.len(), OVERHEAD_BYTES + 12);
        let parsed = parse(&packet).unwrap();
        assert_eq!((parsed.kind, parsed.session, parsed.number), (Kind::Refuse, 3, 4));
        for bit in 0..packet.len() * 8 {
            let mut damaged = packet.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_none(), "bit {bit}");
        }
        for len in 0..packet.len() {
            assert!(parse(&packet[..len]).is_none());
        }
    }

    #[test]
    fn no_answer_to_a_hello_is_longer() {
        assert!(size_of::<Hello>() >= size_of::<Retry>());
        assert!(size_of::<Hello>() >= size_of::<Accept>());
        assert!(size_of::<Hello>() >= size_of::<Refuse>());
    }
}
