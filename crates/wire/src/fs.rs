//! Filesystem requests to the leader of a bucket.
//!
//! A client splits each call of an application into requests that concern one bucket each. Names,
//! values and targets are bytes. Times are nanoseconds since 1970 by the leader's clock unless an
//! application set them.

use crate::*;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsRequest {
    /// Whose bucket is meant: a node of another cluster, found at an address that used to be of this one, refuses.
    pub cluster: Uuid,
    pub bucket: BucketId,
    /// The bucket's epoch in the sender's map.
    pub epoch: Epoch,
    pub fs: FsId,
    pub client: ClientId,
    /// Number of this mutating request at this bucket; 0 for one that changes nothing.
    pub sequence: u64,
    /// Lowest sequence at this bucket that the client has no answer for yet; results below it are dropped.
    pub unanswered: u64,
    /// Depth of the directory's page that the bucket is asked for; 0 for what isn't about the names in a directory.
    pub depth: u8,
    pub op: FsOp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum FileKind {
    File = 1,
    Directory = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
}

/// Who asks. Permissions are checked by the client's kernel; the leader needs the owner of what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    pub inode: InodeId,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: 0o7777.
    pub mode: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
    pub size_bytes: u64,
    /// Allocated blocks of 4 KiB of slab 0. (For a file of several slabs: the sum of all buckets' [`FsOp::CountBlocks`].)
    pub blocks: u64,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// Birth.
    pub btime_ns: i64,
    /// Rises with each cut (truncate); writes carry it.
    pub cut_generation: u64,
    /// Whether the buckets of the slabs know of newer writes.
    pub late: LateTimes,
}

/// What the times of an inode have to do with those that the buckets of its slabs keep ([`FsOp::Overwrite`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LateTimes {
    /// They keep none.
    #[default]
    Never,
    /// The newest of all counts.
    Newest,
    /// An application has set mtime; a write that a slab knows of came later, whatever the two say.
    AfterSet,
}

impl Attr {
    /// Takes in the time of the newest write that the buckets of the slabs know of.
    pub fn add_late(&mut self, written_ns: Option<i64>) {
        let Some(written_ns) = written_ns else { return };
        match self.late {
            LateTimes::Never => return,
            LateTimes::Newest => self.mtime_ns = self.mtime_ns.max(written_ns),
            LateTimes::AfterSet => self.mtime_ns = written_ns,
        }
        self.ctime_ns = self.ctime_ns.max(written_ns);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    Now,
    At(i64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Clear setuid and, for a group-executable file, setgid (a write, truncate or chown by an ordinary user).
    pub kill_setid: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewNode {
    pub kind: FileKind,
    /// As asked for: the leader takes the umask off, or follows the directory's default ACL instead.
    pub mode: u16,
    pub umask: u16,
    pub rdev: u32,
    pub caller: Caller,
    /// Target of a symlink, otherwise empty.
    pub target: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub inode: InodeId,
    pub kind: FileKind,
    /// Where readdir goes on after this entry: 55 bits of name hash, 8 bits of collision number.
    pub cookie: u64,
    /// Present if it was asked for and the inode is in the same bucket.
    pub attr: Option<Attr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replaces what is there.
    Replace,
    /// RENAME_NOREPLACE
    NoReplace,
    /// RENAME_EXCHANGE
    Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallocateMode {
    Allocate { keep_size: bool },
    Punch,
    Zero { keep_size: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeekTarget {
    Data,
    Hole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    Either,
    Create,
    Replace,
}

/// One kind of lock each: they do not see each other, but for POSIX and OFD locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockKind {
    Record,
    Flock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockType {
    Read,
    Write,
    Unlock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub kind: LockKind,
    pub typ: LockType,
    /// First and last byte, inclusive.
    pub start: u64,
    pub end: u64,
    /// The kernel's owner token within the client.
    pub owner: u64,
    pub pid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsOp {
    // To the bucket of the directory's page.
    Lookup {
        dir: InodeId,
        name: Vec<u8>,
    },
    /// Makes an inode and its entry. `exclusive`: EEXIST if the name is there; otherwise answers what is there.
    /// `open`: registers the client as having the inode open.
    Create {
        dir: InodeId,
        name: Vec<u8>,
        node: NewNode,
        exclusive: bool,
        open: bool,
    },
    /// Adds an entry for an inode that exists.
    Link {
        inode: InodeId,
        dir: InodeId,
        name: Vec<u8>,
    },
    /// Removes an entry; `directory`: rmdir, otherwise unlink.
    Remove {
        dir: InodeId,
        name: Vec<u8>,
        directory: bool,
    },
    Rename {
        dir: InodeId,
        name: Vec<u8>,
        new_dir: InodeId,
        new_name: Vec<u8>,
        mode: RenameMode,
    },
    /// Entries of the page after `cookie` (0: from the start), at most `entries_max`. "." and ".." are the client's business.
    ReadDir {
        dir: InodeId,
        cookie: u64,
        entries_max: u32,
        attrs: bool,
    },

    // To the bucket of the inode.
    /// `own`: of a directory, without what its pages have to say: size, links and times may be older.
    GetAttr {
        inode: InodeId,
        own: bool,
    },
    SetAttr {
        inode: InodeId,
        set: SetAttr,
    },
    ReadLink {
        inode: InodeId,
    },
    /// An unnamed file (O_TMPFILE) in the filesystem of `dir`, in dir's bucket, open by the client.
    CreateUnnamed {
        dir: InodeId,
        node: NewNode,
    },
    /// The client has the inode open from now on; unlinking leaves it alive.
    Open {
        inode: InodeId,
        truncate: bool,
        kill_setid: bool,
    },
    /// The client has closed it for the last time.
    Release {
        inode: InodeId,
    },
    GetXattr {
        inode: InodeId,
        name: Vec<u8>,
    },
    SetXattr {
        inode: InodeId,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
        /// Clear setgid: an ACL set by someone who is not in the file's group.
        kill_setgid: bool,
    },
    ListXattr {
        inode: InodeId,
    },
    RemoveXattr {
        inode: InodeId,
        name: Vec<u8>,
    },
    /// Takes or releases. `wait`: answers when it is granted; the client may cancel. Otherwise EAGAIN. A client that
    /// learns no answer asks again with the same number.
    SetLock {
        inode: InodeId,
        lock: Lock,
        wait: bool,
    },
    /// What would stand in the way.
    TestLock {
        inode: InodeId,
        lock: Lock,
    },
    /// Gives up waiting for the lock that the request with number `waiting` asked for: that one answers EINTR.
    CancelLock {
        inode: InodeId,
        owner: u64,
        waiting: u64,
    },
    /// Gives back all of an owner's locks (close, or the last close of a flock'ed file).
    ReleaseLocks {
        inode: InodeId,
        kind: LockKind,
        owner: u64,
    },

    // To the bucket of the slab; offsets are file offsets, ranges stay within one slab.
    /// Data in the answer's body; shorter than asked where nothing was ever written up to the slab's end (zeros follow).
    /// `cut_generation`: of a reader that relies on a size which it heard under that generation; a slab that has seen a newer
    /// cut says so.
    Read {
        inode: InodeId,
        offset: u64,
        len_bytes: u32,
        cut_generation: Option<u64>,
    },
    /// Data in the body. For slab 0, which is the inode's bucket, size and times change in the same record.
    Write {
        inode: InodeId,
        offset: u64,
        cut_generation: u64,
        kill_setid: bool,
    },
    /// Data in the body, for a slab beyond the first, before the end of a file whose inode says that times come late: the
    /// slab's bucket keeps the time of the write, which is later than `after_ns`.
    Overwrite {
        inode: InodeId,
        offset: u64,
        cut_generation: u64,
        after_ns: i64,
    },
    /// Large O_APPEND and others ask the inode's leader to fix an offset and write; data in the body.
    Append {
        inode: InodeId,
        kill_setid: bool,
    },
    /// Data from `start` to `end` is durable at the slabs' owners: publishes the size and the times. `end` 0: times only.
    /// From the first one on that lies before the end, times may come late.
    /// `cut_generation`: the oldest that the data was written under; if a cut came since, or comes now because others left
    /// something before `start` that they never published, it is to be written again.
    Publish {
        inode: InodeId,
        start: u64,
        end: u64,
        cut_generation: u64,
        kill_setid: bool,
    },
    Fallocate {
        inode: InodeId,
        offset: u64,
        len_bytes: u64,
        mode: FallocateMode,
        cut_generation: u64,
    },
    /// Within the slabs of this bucket from `offset` on, up to `end`.
    Seek {
        inode: InodeId,
        offset: u64,
        end: u64,
        target: SeekTarget,
    },
    /// Allocated blocks of the inode's slabs in this bucket, and when it was last told to overwrite some.
    CountBlocks {
        inode: InodeId,
    },

    // To any bucket.
    StatFs,
    /// The root directory of a new filesystem; sent by the node that leads the bucket of `root`.
    MakeRoot {
        root: InodeId,
    },
    /// Tells the bucket that the client is alive. Every request does; a client that holds something and has nothing
    /// else to ask sends this at least every [`crate::limits::RENEW_SECONDS`]. `holds`: all that it holds there; sent when
    /// the bucket's epoch has changed or the answer to the last one asked for it.
    Renew {
        holds: Option<Holds>,
    },
}

/// What a client holds in a bucket, of one filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    pub opens: Vec<InodeId>,
    pub locks: Vec<(InodeId, Lock)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsReply {
    Done,
    Attr(Attr),
    /// The entry; the inode's attributes too if they are in the same bucket.
    Entry {
        inode: InodeId,
        kind: FileKind,
        attr: Option<Attr>,
        created: bool,
    },
    /// `end`: of the page.
    Entries {
        entries: Vec<DirEntry>,
        end: bool,
    },
    Bytes(Vec<u8>),
    Names(Vec<Vec<u8>>),
    Lock(Option<Lock>),
    /// Data in the body.
    Data,
    /// `offset` is where it went (of use to an append); attributes only from the inode's bucket.
    Written {
        offset: u64,
        attr: Option<Attr>,
    },
    Offset(Option<u64>),
    Blocks {
        count: u64,
        written_ns: Option<i64>,
    },
    Space(Space),
    /// `reassert`: the leader is new, and wants to hear what the client holds.
    Renewed {
        reassert: bool,
    },
    Error(FsError),
}

/// What the application gets, or what the client must do first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FsError {
    /// An errno of POSIX, final.
    #[error("errno {0}")]
    Errno(i32),
    /// The sender's map is older than this: refresh it and try again.
    #[error("the bucket is in {0} now")]
    Newer(Epoch),
    /// The receiver's map is older than the sender's: try again a little later.
    #[error("the receiver knows only {0}")]
    Older(Epoch),
    #[error("this core doesn't lead the bucket")]
    NotLeader,
    /// The page has split: the name is in one of this depth.
    #[error("the directory's page moved: depth {depth}")]
    Moved { depth: u8 },
    /// There is no such page: ask the directory.
    #[error("the directory has no such page")]
    NoPage,
    /// The leader is there but can't serve yet; try again. The text is shown in `weft status`.
    #[error("not ready: {0}")]
    NotReady(String),
    #[error("a cut to generation {generation} came before; take it and try again")]
    Cut { generation: u64 },
    #[error("{0} is unknown or fenced")]
    Fenced(ClientId),
}
