//! Between the leaders of buckets: transactions over several of them, and what one does for another.

use crate::fs::{Attr, FileKind, FsError};
use crate::page::PageId;
use crate::*;
use serde::{Deserialize, Serialize};

/// Names a transaction: the deciding bucket, the epoch of its leader and a number within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransactionId {
    pub bucket: BucketId,
    pub epoch: Epoch,
    pub number: u64,
}

/// A request of one bucket's leader to another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParticipantRequest {
    pub cluster: Uuid,
    pub bucket: BucketId,
    /// The bucket's epoch in the sender's map.
    pub epoch: Epoch,
    pub op: ParticipantOp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipantOp {
    /// Checks, locks its keys, journals the intent. The part is in the body. Sent once for each transaction and
    /// participant: whoever gets no answer aborts.
    Prepare {
        transaction: TransactionId,
    },
    Commit {
        transaction: TransactionId,
    },
    Abort {
        transaction: TransactionId,
    },
    /// A participant asks the deciding bucket what became of it.
    Ask {
        transaction: TransactionId,
        participant: BucketId,
    },
    /// Removes everything of the inode at or beyond `size_bytes` in this bucket and refuses older cut generations.
    Cut {
        fs: FsId,
        inode: InodeId,
        cut_generation: u64,
        size_bytes: u64,
    },
    /// Whether bytes of this range were ever written to slabs of this bucket, zeros aside.
    Holds {
        fs: FsId,
        inode: InodeId,
        start: u64,
        end: u64,
    },
    /// The inode's leader writes the data in the body to a slab of this bucket.
    Write {
        fs: FsId,
        inode: InodeId,
        offset: u64,
        cut_generation: u64,
    },
    /// Where ".." of a directory leads.
    Parent {
        fs: FsId,
        inode: InodeId,
    },
    /// What a name of a directory means, by this page.
    Name {
        fs: FsId,
        page: PageId,
        name: Vec<u8>,
    },
    /// Entries of a page that is being made; they are in the body. `first`: what an earlier attempt left goes.
    Fill {
        fs: FsId,
        page: PageId,
        attempt: u64,
        first: bool,
    },
    /// What pages of a directory say of it.
    Pages {
        fs: FsId,
        pages: Vec<PageId>,
    },
    /// How far these files reach: other buckets may have blocks of them.
    Reach {
        fs: FsId,
        inodes: Vec<InodeId>,
    },
    /// When a file was last written here by overwrites. Times up to `forget_ns` are forgotten first.
    Written {
        fs: FsId,
        inode: InodeId,
        forget_ns: Option<i64>,
    },
    /// What is made by the page's names takes over something else of the directory: the body says what.
    Inherit {
        fs: FsId,
        page: PageId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParticipantReply {
    /// The intent stands on P+1. `found` is the inode that the part makes or links, as it will be.
    Prepared {
        found: Option<Attr>,
    },
    /// The check failed; nothing was kept.
    Vetoed(FsError),
    /// What the coordinator saw is no longer so; nothing was kept. It looks again.
    Changed,
    /// The directory that is to go has several pages, and the coordinator doesn't know; nothing was kept.
    Paged,
    /// The outcome stands on P+1.
    Confirmed,
    Outcome {
        committed: bool,
    },
    Undecided,
    Done,
    Holds(bool),
    Parent(InodeId),
    Name(Option<(InodeId, FileKind)>),
    /// One for each that was asked for.
    Pages(Vec<PageState>),
    /// One for each that was asked for.
    Reached(Vec<Reach>),
    Written(Option<i64>),
    /// The request could not be served: by what follows.
    Refused(FsError),
}

/// How far a file reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// There is no such inode, and never will be.
    Gone,
    /// Not beyond slab 0, or this is just changing.
    Small,
    /// Beyond slab 0: all buckets will hear when it goes, or gets small.
    Large,
}

/// What a page has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PageState {
    Here { entries: u64, directories: u32, mtime_ns: i64, ctime_ns: i64 },
    Split,
    Absent,
}
