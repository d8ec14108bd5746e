//! Inodes and directory entries as the index holds them.

use crate::errno;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_bucket::{Bucket, KeyBuilder, Object, Tag};
use weft_wire::fs::{Attr, FileKind, FsError, LateTimes};
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::page::PageId;
use weft_wire::{ClientId, FsId, InodeId};

/// A file up to this size lives inside its inode record.
pub const INLINE_BYTES_MAX: usize = 2048;
/// Entries that a directory's size counts as one block.
const ENTRIES_PER_PAGE: u64 = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub kind: FileKind,
    pub mode: u16,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size: u64,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub btime_ns: i64,
    pub cut_generation: u64,
    /// What was written under older generations than this must be written again before it is published: a cut took it
    /// from beyond the end, or a truncate left other buckets alone.
    pub published_from: u64,
    /// Of a directory: where ".." leads.
    pub parent: InodeId,
    /// Of a directory: number of entries of its first page.
    pub entries: u64,
    /// Of a directory whose first page has split: entries, directories and the times of their changes are with the
    /// pages, and those later than this count.
    pub split_since_ns: Option<i64>,
    /// Contents of a small file, or a symlink's target.
    pub inline: Bytes,
    /// Blocks of slab 0; a small file's contents count as none.
    pub blocks: u64,
    /// A cut that isn't confirmed by all buckets yet: the size that was cut to is `size`.
    pub cutting: bool,
    /// There are keys of extended attributes.
    pub has_xattrs: bool,
    /// Born without a name (O_TMPFILE) and never given one: the only kind of nameless inode that may get a name. What
    /// lost its last name may be half removed already.
    pub linkable: bool,
    pub late: LateTimes,
}

impl Inode {
    pub fn attr(&self, inode: InodeId) -> Attr {
        // A directory's size says how much there is to read, in steps.
        let pages = directory_blocks(self.entries);
        let (size_bytes, blocks) = match self.kind {
            FileKind::Directory => (pages * BLOCK_BYTES as u64, pages),
            FileKind::File => (self.size, self.blocks + u64::from(!self.inline.is_empty())),
            _ => (self.size, 0),
        };
        Attr {
            inode,
            kind: self.kind,
            mode: self.mode,
            links: self.links,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size_bytes,
            blocks,
            atime_ns: self.atime_ns,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
            btime_ns: self.btime_ns,
            cut_generation: self.cut_generation,
            late: self.late,
        }
    }

    pub fn is_split(&self) -> bool {
        self.split_since_ns.is_some()
    }

    /// Its contents have changed.
    pub fn written(&mut self, now_ns: i64) {
        self.mtime_ns = now_ns;
        self.ctime_ns = now_ns;
        if self.late == LateTimes::AfterSet {
            self.late = LateTimes::Newest;
        }
    }

    /// A write or truncate by an ordinary user: the file must not keep its powers.
    pub fn kill_setid(&mut self) {
        self.mode &= !0o4000;
        if self.mode & 0o010 != 0 {
            self.mode &= !0o2000;
        }
    }

    /// Blocks that the contents reach into.
    pub fn size_blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_BYTES as u64)
    }
}

/// The size of a directory with so many entries.
pub fn directory_blocks(entries: u64) -> u64 {
    1 + entries / ENTRIES_PER_PAGE
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    /// Empty: the name that stood here is gone, but one that collided with it stands behind.
    pub name: Bytes,
    pub inode: InodeId,
    pub kind: FileKind,
}

pub fn inode_key(fs: FsId, inode: InodeId) -> Bytes {
    KeyBuilder::new(fs, Tag::Inode).u64(inode.0).build()
}

/// Pages of different depth share no keys, so that one can be made where another still is.
pub fn dentry_key(fs: FsId, page: PageId, cookie: u64) -> Bytes {
    KeyBuilder::new(fs, Tag::Dentry).u64(page.dir.0).u8(page.depth).u64(cookie).build()
}

/// The cookie in a dentry's key.
pub fn dentry_cookie(key: &[u8]) -> Option<u64> {
    let tail: [u8; 8] = key.get(key.len().checked_sub(8)?..)?.try_into().ok()?;
    Some(u64::from_be_bytes(tail))
}

/// The record of a page of a directory.
pub fn page_key(fs: FsId, page: PageId) -> Bytes {
    KeyBuilder::new(fs, Tag::Page).u64(page.dir.0).u8(page.depth).u64(page.prefix).build()
}

/// The page whose record is under a key.
pub fn page_of_key(key: &[u8]) -> Option<PageId> {
    let prefix = dentry_cookie(key)?;
    let rest = key.get(..key.len().checked_sub(8)?)?;
    let (depth, rest) = rest.split_last()?;
    Some(PageId { dir: InodeId(dentry_cookie(rest)?), depth: *depth, prefix })
}

pub fn xattr_key(fs: FsId, inode: InodeId, name: &[u8]) -> Bytes {
    KeyBuilder::new(fs, Tag::Xattr).u64(inode.0).bytes(name).build()
}

/// An inode without a name that is still open, or with a cut to finish; with [`Remains`] as value one that is gone, and
/// whose data is still being removed.
pub fn orphan_key(fs: FsId, inode: InodeId) -> Bytes {
    KeyBuilder::new(fs, Tag::Open).u64(inode.0).build()
}

/// What is left of an inode that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// Of the cut that removes its data from other buckets.
    pub cut_generation: u64,
    pub size: u64,
}

/// A client that may have something open or locked here.
pub fn holder_key(client: ClientId) -> Bytes {
    KeyBuilder::new(FsId(0), Tag::Open).u64(client.0).build()
}

/// The newest cut of an inode's slabs in this bucket.
pub fn cut_key(fs: FsId, inode: InodeId) -> Bytes {
    KeyBuilder::new(fs, Tag::Cut).u64(inode.0).build()
}

/// The mark of a file with blocks behind slab 0 in this bucket that its inode may not know of.
pub fn stray_key(fs: FsId, inode: InodeId) -> Bytes {
    KeyBuilder::new(fs, Tag::Stray).u64(inode.0).build()
}

/// When a file was last overwritten here, if its inode isn't told.
pub fn time_key(fs: FsId, inode: InodeId) -> Bytes {
    KeyBuilder::new(fs, Tag::Time).u64(inode.0).build()
}

/// The newest cut that a bucket has heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub generation: u64,
    /// Blocks beyond its size may still be there.
    pub pending: bool,
}

/// Results belong to no filesystem: a client's sequence counts over all.
pub fn result_key(client: ClientId, sequence: u64) -> Bytes {
    KeyBuilder::new(FsId(0), Tag::Result).u64(client.0).u64(sequence).build()
}

pub fn object(fs: FsId, inode: InodeId) -> Object {
    Object { fs, inode }
}

/// The inode, or `ESTALE`: its number was given to nobody else.
pub async fn load(bucket: &Bucket, fs: FsId, inode: InodeId) -> Result<Inode, FsError> {
    let value = bucket.get(&inode_key(fs, inode)).await.map_err(errno::of_bucket)?.ok_or(errno::ESTALE)?;
    decode(&value)
}

pub fn decode<T: serde::de::DeserializeOwned>(value: &[u8]) -> Result<T, FsError> {
    weft_wire::decode(value).map_err(|error| {
        tracing::error!(%error, "an index value can't be read");
        errno::EIO
    })
}
