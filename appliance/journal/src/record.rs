//! Records, and the rule that says which of them count.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use weft_wire::drive::{RecordHeader, RecordKind};
use weft_wire::{BucketId, Epoch, Malformed, Seq};

/// A record as drives hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub header: RecordHeader,
    pub payload: Bytes,
}

impl Record {
    /// Whether header and payload are what their leader made them.
    pub fn intact(&self, bucket: BucketId) -> bool {
        self.header.len_bytes as usize == self.payload.len()
            && self.header.checksum_of(bucket, [self.payload.as_ref()]) == self.header.checksum
    }
}

/// Builds the header of a new record.
pub(crate) fn header(
    bucket: BucketId,
    epoch: Epoch,
    seq: Seq,
    kind: RecordKind,
    acknowledged: Seq,
    pieces: &[Bytes],
) -> RecordHeader {
    let len: usize = pieces.iter().map(Bytes::len).sum();
    let mut header = RecordHeader { epoch, seq, kind, acknowledged, len_bytes: len as u32, checksum: 0 };
    header.checksum = header.checksum_of(bucket, pieces.iter().map(AsRef::as_ref));
    header
}

/// The first record of an epoch: what it adopted. Also the rule for what counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EpochStart {
    pub epoch: Epoch,
    /// The start's own sequence: the first of its epoch.
    pub seq: Seq,
    /// Which epoch each adopted record is of: (epoch, its first sequence), oldest first, all below `seq`.
    pub history: Vec<(Epoch, Seq)>,
}

impl EpochStart {
    /// The start of the log's first epoch.
    pub fn first(epoch: Epoch) -> Self {
        Self { epoch, seq: Seq::FIRST, history: Vec::new() }
    }

    /// The one epoch whose record counts at `seq`: the start's own from its sequence on, below it what the history
    /// says. `None` is older than the history tells, which only sequences below the newest root are.
    pub fn epoch_of(&self, seq: Seq) -> Option<Epoch> {
        if seq >= self.seq {
            return Some(self.epoch);
        }
        self.history.iter().rev().find(|(_, first)| *first <= seq).map(|(epoch, _)| *epoch)
    }

    /// The start of `epoch` that adopts everything below `seq` from `floor` on by this start's rule.
    pub fn successor(&self, epoch: Epoch, seq: Seq, floor: Seq) -> Self {
        let mut history = self.history.clone();
        history.push((self.epoch, self.seq));
        let newest_below = history.iter().rposition(|(_, first)| *first <= floor).unwrap_or(0);
        history.drain(..newest_below);
        Self { epoch, seq, history }
    }

    pub fn encode(&self) -> Bytes {
        weft_wire::encode(self)
    }

    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        weft_wire::decode(payload)
    }
}

/// Where the bucket's index can be found, as the bucket hands it over and gets it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootRecord {
    /// All records up to this one are in the index that the body leads to.
    pub covers: Seq,
    pub body: Bytes,
}

/// What the journal adds to a root: all that a new leader needs to know of the log below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFrame {
    pub covers: Seq,
    /// Records up to this one are covered and were acknowledged when the root was made: the log is read from the next
    /// on, and trimmed up to it when the root stands. Every later epoch starts above.
    pub floor: Seq,
    /// The newest start, so that it outlives the trimming.
    pub start: EpochStart,
}

impl RootFrame {
    /// The pieces of a root's payload: the frame's length, the frame, the bucket's body.
    pub fn encode(&self, body: Bytes) -> Vec<Bytes> {
        let frame = weft_wire::encode(self);
        let mut head = BytesMut::with_capacity(4 + frame.len());
        head.put_u32_le(frame.len() as u32);
        head.put_slice(&frame);
        vec![head.freeze(), body]
    }

    pub fn decode(payload: &Bytes) -> Result<(Self, RootRecord), Malformed> {
        const WHAT: Malformed = Malformed("root record");
        let (len, rest) = payload.split_first_chunk::<4>().ok_or(WHAT)?;
        let len = u32::from_le_bytes(*len) as usize;
        let frame: Self = weft_wire::decode(rest.get(..len).ok_or(WHAT)?)?;
        let body = payload.slice(4 + len..);
        let root = RootRecord { covers: frame.covers, body };
        Ok((frame, root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_start_decides_what_counts() {
        let start =
            EpochStart { epoch: Epoch(5), seq: Seq(20), history: vec![(Epoch(1), Seq(1)), (Epoch(3), Seq(10))] };
        assert_eq!(start.epoch_of(Seq(1)), Some(Epoch(1)));
        assert_eq!(start.epoch_of(Seq(9)), Some(Epoch(1)));
        assert_eq!(start.epoch_of(Seq(10)), Some(Epoch(3)));
        assert_eq!(start.epoch_of(Seq(19)), Some(Epoch(3)));
        assert_eq!(start.epoch_of(Seq(20)), Some(Epoch(5)));
        assert_eq!(start.epoch_of(Seq(21)), Some(Epoch(5)));
    }

    #[test]
    fn a_successor_keeps_the_history_that_still_matters() {
        let start =
            EpochStart { epoch: Epoch(5), seq: Seq(20), history: vec![(Epoch(1), Seq(1)), (Epoch(3), Seq(10))] };
        let next = start.successor(Epoch(7), Seq(25), Seq(12));
        assert_eq!(next.history, vec![(Epoch(3), Seq(10)), (Epoch(5), Seq(20))]);
        for seq in 12..25 {
            assert_eq!(next.epoch_of(Seq(seq)), start.epoch_of(Seq(seq)));
        }
    }

    #[test]
    fn a_root_survives_its_encoding_and_truncation_is_refused() {
        let frame = RootFrame { covers: Seq(7), floor: Seq(6), start: EpochStart::first(Epoch(1)) };
        let pieces = frame.encode(Bytes::from_static(b"body"));
        let payload: Bytes = pieces.concat().into();
        let (back, root) = RootFrame::decode(&payload).expect("intact");
        assert_eq!((back, root.body.as_ref(), root.covers), (frame, b"body".as_ref(), Seq(7)));
        for len in 0..payload.len() - 4 {
            assert!(RootFrame::decode(&payload.slice(..len)).is_err(), "{len}");
        }
    }
}
