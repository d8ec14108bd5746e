//! Messages arriving in pieces. Each piece is copied once, to where the message will stay.

use crate::frame::FragmentHead;
use crate::options::PIECES_MAX;
use crate::ranges::Ranges;
use bytes::Bytes;
use std::collections::BTreeMap;
use weft_reactor::{AlignedBuf, Pool};
use weft_wire::limits::BLOCK_BYTES;

/// A whole message.
#[derive(Clone, Debug)]
pub struct Message {
    pub meta: u8,
    pub head: Bytes,
    /// 4096-aligned when at least 4096 bytes long.
    pub body: Bytes,
}

/// What all sessions together may still hold in incomplete messages, and the buffers that bodies come in.
#[derive(Debug)]
pub struct Budget {
    pub bytes_left: usize,
    bodies: Bodies,
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self { bytes_left: bytes, bodies: Bodies::new() }
    }
}

/// Buffers for bodies, kept for reuse: fresh memory of a megabyte costs more in page faults than all the rest of its way.
#[derive(Debug)]
struct Bodies {
    /// By length, shortest first.
    pools: Vec<(usize, Pool)>,
}

/// Lengths of pooled buffers. Bodies that would leave more than a quarter of one unused get memory of their own.
const POOLED_BYTES: [usize; 11] =
    [4096, 8192, 12_288, 16_384, 32_768, 65_536, 131_072, 262_144, 524_288, 1 << 20, 2 << 20];
/// Memory kept in unused buffers of one length.
const POOLED_BYTES_MAX: usize = 4 << 20;
const POOLED_BUFFERS_MAX: usize = 128;

impl Bodies {
    fn new() -> Self {
        let pool = |bytes| (bytes, Pool::new(bytes, (POOLED_BYTES_MAX / bytes).min(POOLED_BUFFERS_MAX)));
        Self { pools: POOLED_BYTES.into_iter().map(pool).collect() }
    }

    /// A buffer with unspecified content.
    fn take(&self, len: usize) -> AlignedBuf {
        let at = self.pools.partition_point(|(bytes, _)| *bytes < len);
        match self.pools.get(at) {
            Some((bytes, pool)) if len > bytes / 4 * 3 => pool.take(len),
            _ => AlignedBuf::unfilled(len),
        }
    }
}

#[derive(Debug)]
pub enum Piece {
    Completed(Message),
    Stored,
    /// There is no room for it now; it must not be acknowledged.
    NoRoom,
    /// It contradicts an earlier piece or breaks a bound that the peer knows.
    Wrong,
}

#[derive(Debug)]
struct Partial {
    meta: u8,
    head: Vec<u8>,
    body: Buffer,
    received: Ranges<u32>,
}

#[derive(Debug)]
enum Buffer {
    Small(Vec<u8>),
    Aligned(AlignedBuf),
}

impl Buffer {
    /// Its content is unspecified: a message is complete only when all of it was written.
    fn with_len(len: usize, bodies: &Bodies) -> Self {
        if len >= BLOCK_BYTES { Self::Aligned(bodies.take(len)) } else { Self::Small(vec![0; len]) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Self::Small(vec) => vec,
            Self::Aligned(buf) => buf.as_mut_slice(),
        }
    }

    fn freeze(self) -> Bytes {
        match self {
            Self::Small(vec) => vec.into(),
            Self::Aligned(buf) => buf.freeze(),
        }
    }
}

/// The incomplete messages of one session.
#[derive(Debug, Default)]
pub struct Assembly {
    partial: BTreeMap<u64, Partial>,
    bytes: usize,
}

impl Assembly {
    /// Adds a piece; its bounds were checked when it was decoded. `window` is what the peer may have incomplete here.
    pub fn add(&mut self, fragment: &FragmentHead, data: &[u8], window: usize, budget: &mut Budget) -> Piece {
        let (head_len, body_len) = (fragment.head_len as usize, fragment.body_len as usize);
        let total = head_len + body_len;
        if data.len() == total {
            // The whole message: no need to wait, and an earlier part of it is no longer needed.
            self.remove(fragment.number, budget);
            let (head, body) = data.split_at(head_len);
            let mut buffer = Buffer::with_len(body_len, &budget.bodies);
            buffer.as_mut_slice().copy_from_slice(body);
            return Piece::Completed(Message {
                meta: fragment.meta,
                head: Bytes::copy_from_slice(head),
                body: buffer.freeze(),
            });
        }
        if !self.partial.contains_key(&fragment.number) {
            if self.bytes > 0 && self.bytes + total > window {
                return Piece::Wrong;
            }
            if total > budget.bytes_left {
                return Piece::NoRoom;
            }
            budget.bytes_left -= total;
            self.bytes += total;
            let partial = Partial {
                meta: fragment.meta,
                head: vec![0; head_len],
                body: Buffer::with_len(body_len, &budget.bodies),
                received: Ranges::default(),
            };
            self.partial.insert(fragment.number, partial);
        }
        let Some(partial) = self.partial.get_mut(&fragment.number) else { return Piece::Wrong };
        let same = partial.meta == fragment.meta
            && partial.head.len() == head_len
            && partial.body.as_mut_slice().len() == body_len;
        if !same {
            return Piece::Wrong;
        }
        let end = fragment.offset + data.len() as u32;
        // What closes a gap is always welcome, so that there is a way out.
        if partial.received.len() >= PIECES_MAX && !partial.received.touches(fragment.offset, end) {
            return Piece::NoRoom;
        }
        let offset = fragment.offset as usize;
        let in_head = head_len.saturating_sub(offset).min(data.len());
        let (first, second) = data.split_at(in_head);
        if let Some(target) = partial.head.get_mut(offset..offset + in_head) {
            target.copy_from_slice(first);
        }
        let body_offset = (offset + in_head).saturating_sub(head_len);
        if let Some(target) = partial.body.as_mut_slice().get_mut(body_offset..body_offset + second.len()) {
            target.copy_from_slice(second);
        }
        partial.received.insert(fragment.offset, end);
        if !partial.received.is_exactly(0, total as u32) {
            return Piece::Stored;
        }
        match self.remove(fragment.number, budget) {
            Some(partial) => {
                Piece::Completed(Message { meta: partial.meta, head: partial.head.into(), body: partial.body.freeze() })
            }
            None => Piece::Wrong,
        }
    }

    fn remove(&mut self, number: u64, budget: &mut Budget) -> Option<Partial> {
        let mut partial = self.partial.remove(&number)?;
        let total = partial.head.len() + partial.body.as_mut_slice().len();
        self.bytes -= total;
        budget.bytes_left += total;
        Some(partial)
    }

    /// Drops what there is of a message.
    pub fn forget(&mut self, number: u64, budget: &mut Budget) {
        drop(self.remove(number, budget));
    }

    /// Drops everything.
    pub fn clear(&mut self, budget: &mut Budget) {
        budget.bytes_left += self.bytes;
        self.bytes = 0;
        self.partial.clear();
    }
}
