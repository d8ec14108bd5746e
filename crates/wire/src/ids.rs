//! Newtypes for everything that is counted or named.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

id!(/// A server running `weftd`. Never reused.
    NodeId(u16), "node");
id!(/// One NVMe namespace, block device or file. Never reused.
    DriveId(u32), "drive");
id!(/// A failure domain; nodes of one domain may fail together.
    DomainId(u16), "domain");
id!(/// A unit of ownership: index into the map's bucket table, equal to the top bits of a position.
    BucketId(u32), "bucket");
id!(/// Rises with each change of a bucket's leader, also when the leader restarts. 0 is before the first.
    Epoch(u64), "epoch");
id!(/// Rises with each change of a bucket's members.
    Layout(u64), "layout");
id!(/// Position of a record in a bucket's journal. The first record has sequence 1.
    Seq(u64), "seq");
id!(/// A zone of a drive, counted from its first data byte.
    ZoneIndex(u32), "zone");
id!(/// How often a zone was handed out. 0 is never.
    Generation(u64), "generation");
id!(/// One zone on each member at the time; numbered by its bucket, never reused.
    ZoneSetId(u64), "zoneset");
id!(/// A stripe, numbered by its bucket, never reused.
    StripeId(u64), "stripe");
id!(/// A mount. Issued by the managers, never reused; 0 is no client.
    ClientId(u64), "client");
id!(/// A filesystem of the cluster. Never reused; 0 is none.
    FsId(u32), "fs");
id!(/// Version of the map; rises by one with each delta. 0 is before formation.
    MapVersion(u64), "map");
id!(/// One life of one `weftd` process on a node; rises with each start.
    Incarnation(u64), "incarnation");

impl Seq {
    pub const FIRST: Seq = Seq(1);
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

/// One polling thread of one node: the end of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CoreId {
    pub node: NodeId,
    pub core: u8,
}

impl fmt::Display for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.core)
    }
}

impl fmt::Debug for CoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 128 bits that name a cluster or a drive for ever. Printed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Uuid(pub u128);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of an inode: a 24-bit position, then a 40-bit serial that its bucket never reuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct InodeId(pub u64);

impl InodeId {
    pub const SERIAL_BITS: u32 = 40;

    /// The inode at `position` with `serial`. Bits beyond 24 and 40 must be 0.
    pub fn new(position: Position, serial: u64) -> Self {
        assert!(serial < 1 << Self::SERIAL_BITS, "inode serial {serial} is beyond 40 bits");
        Self(u64::from(position.0) << Self::SERIAL_BITS | serial)
    }

    pub fn position(self) -> Position {
        Position((self.0 >> Self::SERIAL_BITS) as u32)
    }
}

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode{:x}", self.0)
    }
}

impl fmt::Debug for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 24 bits of a keyed hash or of an inode number; its top bits are the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position(pub u32);

impl Position {
    pub const BITS: u32 = 24;

    /// The bucket that owns this position in a cluster of 2^`bucket_bits` buckets.
    pub fn bucket(self, bucket_bits: u8) -> BucketId {
        BucketId(self.0 >> (Self::BITS - u32::from(bucket_bits)))
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "position{:06x}", self.0)
    }
}
