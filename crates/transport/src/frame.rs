//! Frames: what the payload of a data packet is made of.
//!
//! Each begins with a byte that names it:
//! - 0 padding: the rest of the payload means nothing.
//! - 1 acknowledgement: largest packet number (8), how long it was held back in microseconds (4), packets that came
//!   with congestion marked (4), further ranges (1), packets in the first range less one (4); per further range:
//!   packets missing above it less one (4), packets in it less one (4).
//! - 2 fragment: service or status (1), number of the message (8), bytes of the head (4), of the body (4), offset in
//!   head and body together (4), bytes here (2), the bytes.
//! - 3 cancel: number of the request (8).
//! - 4 ping.

use crate::options::ACK_RANGES_MAX;
use crate::ranges::Ranges;
use bytes::BufMut;
use weft_wire::limits::{MESSAGE_BODY_BYTES_MAX, MESSAGE_HEAD_BYTES_MAX};

const PADDING: u8 = 0;
const ACK: u8 = 1;
const FRAGMENT: u8 = 2;
const CANCEL: u8 = 3;
const PING: u8 = 4;

/// Bytes of a fragment before its data.
pub const FRAGMENT_BYTES: usize = 1 + 1 + 8 + 4 + 4 + 4 + 2;
pub const CANCEL_BYTES: usize = 1 + 8;
/// Ranges in one acknowledgement besides the first.
const ACK_RANGES_SENT: usize = 15;

/// Where a piece belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHead {
    /// The service of a request, the status of a response.
    pub meta: u8,
    pub number: u64,
    pub head_len: u32,
    pub body_len: u32,
    /// Within head and body, one after the other.
    pub offset: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    pub largest: u64,
    pub delay_us: u32,
    pub congestion_marks: u32,
    first: u32,
    further: &'a [u8],
}

impl Ack<'_> {
    /// Ranges of packet numbers, highest first, both ends included. Ends early where they would leave 0.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut low = self.largest.checked_sub(u64::from(self.first));
        let first = low.map(|low| (low, self.largest));
        let further = self.further.chunks_exact(8).map_while(move |pair| {
            let (gap, len) = pair.split_at(4);
            let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            let high = low?.checked_sub(number(gap) + 2)?;
            low = high.checked_sub(number(len));
            Some((low?, high))
        });
        first.into_iter().chain(further)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Ack(Ack<'a>),
    Fragment(FragmentHead, &'a [u8]),
    Cancel(u64),
    Ping,
}

/// The frames of a payload. `Err` once where something malformed begins.
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn frame(&mut self, kind: u8) -> Option<Frame<'a>> {
        Some(match kind {
            ACK => {
                let (largest, delay_us, congestion_marks) = (self.u64()?, self.u32()?, self.u32()?);
                let [count] = self.array()?;
                let first = self.u32()?;
                let further = self.take(usize::from(count) * 8)?;
                if usize::from(count) >= ACK_RANGES_MAX {
                    return None;
                }
                Frame::Ack(Ack { largest, delay_us, congestion_marks, first, further })
            }
            FRAGMENT => {
                let [meta] = self.array()?;
                let head = FragmentHead {
                    meta,
                    number: self.u64()?,
                    head_len: self.u32()?,
                    body_len: self.u32()?,
                    offset: self.u32()?,
                };
                let len = u16::from_le_bytes(self.array()?);
                let data = self.take(usize::from(len))?;
                if head.head_len as usize > MESSAGE_HEAD_BYTES_MAX || head.body_len as usize > MESSAGE_BODY_BYTES_MAX {
                    return None;
                }
                let total = head.head_len + head.body_len;
                if head.offset > total || u32::from(len) > total - head.offset || (len == 0) != (total == 0) {
                    return None;
                }
                Frame::Fragment(head, data)
            }
            CANCEL => Frame::Cancel(self.u64()?),
            PING => Frame::Ping,
            _ => return None,
        })
    }
}

/// A payload that does not follow the form above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, BadFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        let [kind] = self.array()?;
        if kind == PADDING {
            self.0 = &[];
            return None;
        }
        let frame = self.frame(kind);
        if frame.is_none() {
            self.0 = &[];
        }
        Some(frame.ok_or(BadFrame))
    }
}

/// Writes what was received, as far as one frame holds.
pub fn put_ack(out: &mut Vec<u8>, received: &Ranges<u64>, delay_us: u32, congestion_marks: u32) {
    let mut newest_first = received.iter().rev();
    let Some((start, end)) = newest_first.next() else { return };
    let count = (received.len() - 1).min(ACK_RANGES_SENT);
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    out.put_u8(ACK);
    out.put_u64_le(end - 1);
    out.put_u32_le(delay_us);
    out.put_u32_le(congestion_marks);
    let at = out.len();
    out.put_u8(0);
    // A range of more than 2^32 packets loses its oldest: they were told before.
    out.put_u32_le(small(end - 1 - start));
    let mut low = start;
    let mut written = 0;
    for (start, end) in newest_first.take(count) {
        let (gap, len) = (low - end - 1, end - 1 - start);
        let (Ok(gap), Ok(len)) = (u32::try_from(gap), u32::try_from(len)) else { break };
        out.put_u32_le(gap);
        out.put_u32_le(len);
        low = start;
        written += 1;
    }
    out[at] = written;
}

pub fn put_fragment(out: &mut Vec<u8>, head: &FragmentHead, len: u16) {
    out.put_u8(FRAGMENT);
    out.put_u8(head.meta);
    out.put_u64_le(head.number);
    out.put_u32_le(head.head_len);
    out.put_u32_le(head.body_len);
    out.put_u32_le(head.offset);
    out.put_u16_le(len);
}

pub fn put_cancel(out: &mut Vec<u8>, number: u64) {
    out.put_u8(CANCEL);
    out.put_u64_le(number);
}

pub fn put_ping(out: &mut Vec<u8>) {
    out.put_u8(PING);
}

pub fn put_padding(out: &mut Vec<u8>, len: usize) {
    out.put_bytes(PADDING, len);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_tells_its_ranges() {
        let mut received = Ranges::default();
        for number in [0, 1, 2, 5, 9, 10, 11] {
            received.insert(number, number + 1);
        }
        let mut out = Vec::new();
        put_ack(&mut out, &received, 17, 3);
        let frames: Vec<_> = Frames::new(&out).collect();
        let [Ok(Frame::Ack(ack))] = frames[..] else { panic!("{frames:?}") };
        assert_eq!((ack.largest, ack.delay_us, ack.congestion_marks), (11, 17, 3));
        assert_eq!(ack.ranges().collect::<Vec<_>>(), [(9, 11), (5, 5), (0, 2)]);
    }

    #[test]
    fn a_fragment_stays_within_its_message() {
        let good = FragmentHead { meta: 1, number: 7, head_len: 4, body_len: 4, offset: 4 };
        for (head, len, ok) in [
            (good, 4, true),
            (FragmentHead { offset: 5, ..good }, 4, false),
            (FragmentHead { offset: u32::MAX, ..good }, 4, false),
            (FragmentHead { head_len: u32::MAX, ..good }, 4, false),
            (good, 0, false),
            (FragmentHead { head_len: 0, body_len: 0, offset: 0, ..good }, 0, true),
        ] {
            let mut out = Vec::new();
            put_fragment(&mut out, &head, len);
            out.put_bytes(9, usize::from(len));
            assert_eq!(Frames::new(&out).next().unwrap().is_ok(), ok, "{head:?}");
        }
    }
}
