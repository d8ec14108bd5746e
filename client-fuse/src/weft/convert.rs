//! Between the kernel's types and the cluster's.

use crate::filesystem::{self as face, LockRequest, NodeId, Request};
use weft_wire::InodeId;
use weft_wire::fs::{self as wire, FallocateMode, RenameMode, SeekTarget};
use weft_wire::limits::BLOCK_BYTES;

/// The kernel's numbers of inodes: ours, but the root and number 1 change places, since the kernel calls the root 1.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    pub root: InodeId,
}

/// Of a read or write that suits: half of the largest message is plenty for programs that allocate what we say.
const IO_BYTES: u32 = 128 << 10;

impl Numbers {
    fn swap(self, number: u64) -> u64 {
        match number {
            _ if number == NodeId::ROOT.0 => self.root.0,
            _ if number == self.root.0 => NodeId::ROOT.0,
            _ => number,
        }
    }

    pub fn inode(self, node: NodeId) -> InodeId {
        InodeId(self.swap(node.0))
    }

    pub fn node(self, inode: InodeId) -> NodeId {
        NodeId(self.swap(inode.0))
    }

    pub fn attr(self, attr: &wire::Attr) -> face::Attr {
        face::Attr {
            inode: self.node(attr.inode).0,
            kind: attr.kind,
            mode: attr.mode,
            links: attr.links,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            size_bytes: attr.size_bytes,
            blocks_512: attr.blocks * (BLOCK_BYTES as u64 / 512),
            atime_ns: attr.atime_ns,
            mtime_ns: attr.mtime_ns,
            ctime_ns: attr.ctime_ns,
            btime_ns: Some(attr.btime_ns),
            io_bytes: IO_BYTES,
        }
    }
}

pub fn caller(request: &Request) -> wire::Caller {
    wire::Caller { uid: request.uid, gid: request.gid }
}

pub fn set_attr(set: face::SetAttr) -> wire::SetAttr {
    let time = |time: face::SetTime| match time {
        face::SetTime::Now => wire::SetTime::Now,
        face::SetTime::At(ns) => wire::SetTime::At(ns),
    };
    wire::SetAttr {
        mode: set.mode,
        uid: set.uid,
        gid: set.gid,
        size_bytes: set.size_bytes,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time),
        // A new owner must not inherit powers either; the kernel leaves that to us.
        kill_setid: set.kill_setid || set.uid.is_some() || set.gid.is_some(),
    }
}

/// `flags` of renameat2(2).
pub fn rename_mode(flags: u32) -> Option<RenameMode> {
    match flags {
        0 => Some(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Some(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Some(RenameMode::Exchange),
        _ => None,
    }
}

/// `mode` of fallocate(2).
pub fn fallocate_mode(mode: i32) -> Option<FallocateMode> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(FallocateMode::Allocate { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(FallocateMode::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Some(FallocateMode::Zero { keep_size }),
        _ => None,
    }
}

pub fn seek_target(whence: i32) -> Option<SeekTarget> {
    match whence {
        libc::SEEK_DATA => Some(SeekTarget::Data),
        libc::SEEK_HOLE => Some(SeekTarget::Hole),
        _ => None,
    }
}

pub fn lock(ask: &LockRequest) -> wire::Lock {
    wire::Lock {
        kind: match ask.kind {
            face::LockKind::Record => wire::LockKind::Record,
            face::LockKind::Flock => wire::LockKind::Flock,
        },
        typ: match ask.lock.typ {
            face::LockType::Read => wire::LockType::Read,
            face::LockType::Write => wire::LockType::Write,
            face::LockType::Unlock => wire::LockType::Unlock,
        },
        start: ask.lock.start,
        end: ask.lock.end,
        owner: ask.owner.0,
        pid: ask.lock.pid,
    }
}

pub fn lock_found(lock: &wire::Lock) -> face::Lock {
    let typ = match lock.typ {
        wire::LockType::Read => face::LockType::Read,
        wire::LockType::Write => face::LockType::Write,
        wire::LockType::Unlock => face::LockType::Unlock,
    };
    face::Lock { typ, start: lock.start, end: lock.end, pid: lock.pid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_number_one_change_places() {
        let numbers = Numbers { root: InodeId(77) };
        assert_eq!(numbers.inode(NodeId::ROOT), InodeId(77));
        assert_eq!(numbers.node(InodeId(77)), NodeId::ROOT);
        assert_eq!(numbers.node(InodeId(1)), NodeId(77));
        assert_eq!(numbers.inode(NodeId(77)), InodeId(1));
        assert_eq!(numbers.node(InodeId(5)), NodeId(5));
        let same = Numbers { root: InodeId(1) };
        assert_eq!(same.node(InodeId(1)), NodeId::ROOT);
    }

    #[test]
    fn modes_that_are_not_offered_are_refused() {
        assert_eq!(fallocate_mode(libc::FALLOC_FL_COLLAPSE_RANGE), None);
        assert_eq!(fallocate_mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE), Some(FallocateMode::Punch));
        assert_eq!(rename_mode(libc::RENAME_WHITEOUT), None);
    }
}
