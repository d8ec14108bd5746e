//! Keys of a bucket's index: filesystem, snapshot, a tag that says what it is, then whatever orders it.
//!
//! Numbers are big-endian, so that the order of the bytes is the order of the numbers.

use bytes::Bytes;
use weft_wire::{FsId, InodeId, StripeId};

/// What a key holds. The bucket itself knows [`Tag::Extent`] and [`Tag::Stripe`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    Inode = b'I',
    Dentry = b'D',
    Xattr = b'X',
    /// Results of mutating requests, by client and sequence.
    Result = b'R',
    /// Inodes that clients have open, and inodes without a name.
    Open = b'O',
    Transaction = b'T',
    Cut = b'C',
    Counter = b'B',
    /// Pages of a directory.
    Page = b'P',
    Extent = b'E',
    Stripe = b'S',
    /// Files with blocks here that may not know of them.
    Stray = b'W',
    /// When files were last written that have blocks here and whose inodes aren't told of each write.
    Time = b'M',
}

/// A file as the bucket sees it: something that has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    pub fs: FsId,
    pub inode: InodeId,
}

pub const PREFIX_BYTES: usize = 9;

/// Builds a key piece by piece.
#[derive(Clone, Debug)]
pub struct KeyBuilder(Vec<u8>);

impl KeyBuilder {
    pub fn new(fs: FsId, tag: Tag) -> Self {
        let mut key = Vec::with_capacity(PREFIX_BYTES + 24);
        key.extend_from_slice(&fs.0.to_be_bytes());
        // The snapshot: 0 is the live filesystem.
        key.extend_from_slice(&0u32.to_be_bytes());
        key.push(tag as u8);
        Self(key)
    }

    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    pub fn build(self) -> Bytes {
        self.0.into()
    }
}

/// The key of the extent that begins at `block`.
pub fn extent(object: Object, block: u64) -> Bytes {
    KeyBuilder::new(object.fs, Tag::Extent).u64(object.inode.0).u64(block).build()
}

/// The block at which the extent under `key` begins.
pub fn extent_block(key: &[u8]) -> Option<u64> {
    let tail: [u8; 8] = key.get(PREFIX_BYTES + 8..)?.try_into().ok()?;
    Some(u64::from_be_bytes(tail))
}

pub fn is_extent(key: &[u8]) -> bool {
    key.get(PREFIX_BYTES - 1) == Some(&(Tag::Extent as u8))
}

/// Stripes belong to no filesystem.
pub fn stripe(id: StripeId) -> Bytes {
    KeyBuilder::new(FsId(0), Tag::Stripe).u64(id.0).build()
}

/// The stripe whose record is under `key`.
pub fn stripe_of(key: &[u8]) -> Option<StripeId> {
    let number: [u8; 8] = key.get(PREFIX_BYTES..)?.try_into().ok()?;
    (key.get(..4) == Some(&[0; 4]) && key.get(PREFIX_BYTES - 1) == Some(&(Tag::Stripe as u8)))
        .then(|| StripeId(u64::from_be_bytes(number)))
}

/// The first key after all that begin with `prefix`; `None` if there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_a_file_are_in_the_order_of_their_blocks() {
        let object = Object { fs: FsId(7), inode: InodeId(9) };
        assert!(extent(object, 255) < extent(object, 256));
        assert!(extent(object, u64::MAX) < extent(Object { inode: InodeId(10), ..object }, 0));
        assert_eq!(extent_block(&extent(object, 1 << 40)), Some(1 << 40));
        assert_eq!(stripe_of(&stripe(StripeId(77))), Some(StripeId(77)));
        assert_eq!(stripe_of(&extent(object, 77)), None);
    }

    #[test]
    fn the_end_of_a_prefix_carries() {
        assert_eq!(after_prefix(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(after_prefix(&[0xff]), None);
    }
}
