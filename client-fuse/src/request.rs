//! From the kernel's message to an operation. Pure: bytes in, a value out.

use crate::abi::{self, fattr, opcode};
use crate::filesystem::*;
use bytes::Bytes;
use nix::errno::Errno;
use weft_wire::Malformed;
use zerocopy::{FromBytes, Immutable, KnownLayout};

pub type Name = Box<[u8]>;

/// What the kernel wants of the filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Lookup { parent: NodeId, name: Name },
    Getattr { node: NodeId, handle: Option<FileHandle> },
    Statx { node: NodeId, handle: Option<FileHandle> },
    Setattr { node: NodeId, handle: Option<FileHandle>, set: SetAttr },
    Readlink { node: NodeId },
    Symlink { parent: NodeId, name: Name, target: Name },
    Mknod { parent: NodeId, name: Name, new: NewFile },
    Mkdir { parent: NodeId, name: Name, new: NewFile },
    Unlink { parent: NodeId, name: Name },
    Rmdir { parent: NodeId, name: Name },
    Rename { parent: NodeId, name: Name, new_parent: NodeId, new_name: Name, flags: u32 },
    Link { node: NodeId, new_parent: NodeId, new_name: Name },
    Open { node: NodeId, how: OpenHow },
    Create { parent: NodeId, name: Name, new: NewFile, how: OpenHow },
    Tmpfile { parent: NodeId, new: NewFile, how: OpenHow },
    Read { node: NodeId, handle: FileHandle, offset: u64, len_bytes: u32 },
    Write { node: NodeId, handle: FileHandle, offset: u64, data: Bytes, how: WriteHow },
    Flush { node: NodeId, handle: FileHandle, owner: LockOwner },
    Release { node: NodeId, handle: FileHandle, how: ReleaseHow },
    Fsync { node: NodeId, handle: FileHandle, data_only: bool },
    Opendir { node: NodeId, flags: i32 },
    Readdir { node: NodeId, handle: FileHandle, cookie: u64, len_bytes: u32, plus: bool },
    Releasedir { node: NodeId, handle: FileHandle },
    Fsyncdir { node: NodeId, handle: FileHandle, data_only: bool },
    Syncfs,
    Statfs { node: NodeId },
    Setxattr { node: NodeId, name: Name, value: Name, how: XattrHow },
    Getxattr { node: NodeId, name: Name, room: u32 },
    Listxattr { node: NodeId, room: u32 },
    Removexattr { node: NodeId, name: Name },
    Getlk { node: NodeId, handle: FileHandle, ask: LockRequest },
    Setlk { node: NodeId, handle: FileHandle, ask: LockRequest, wait: bool },
    Fallocate { node: NodeId, handle: FileHandle, offset: u64, len_bytes: u64, mode: i32 },
    Lseek { node: NodeId, handle: FileHandle, offset: u64, whence: i32 },
    CopyFileRange(CopyRange),
}

/// A message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Operation(Operation),
    /// No answer is expected.
    Forget(Vec<(NodeId, u64)>),
    /// The request with this number has a signal. No answer is expected.
    Interrupt(u64),
    Destroy,
    /// Nothing that we offer: answered with this.
    Refused(Errno),
}

/// Splits the header off a message.
pub fn header(message: &[u8]) -> Result<(abi::InHeader, &[u8]), Malformed> {
    let (header, rest) = abi::InHeader::read_from_prefix(message).map_err(|_| Malformed("FUSE header"))?;
    if header.len as usize != message.len() {
        return Err(Malformed("FUSE message length"));
    }
    let extensions = usize::from(header.total_extlen) * 8;
    let body = rest.len().checked_sub(extensions).ok_or(Malformed("FUSE extensions"))?;
    Ok((header, &rest[..body]))
}

/// Parses the body of a message. `take_data` makes a buffer of a write's data, given as its range in `body`.
pub fn parse(
    header: &abi::InHeader,
    body: &[u8],
    take_data: impl FnOnce(std::ops::Range<usize>) -> Bytes,
) -> Result<Message, Malformed> {
    let node = NodeId(header.nodeid);
    let mut body = Body { rest: body };
    let operation = match header.opcode {
        opcode::LOOKUP => Operation::Lookup { parent: node, name: body.name()? },
        opcode::FORGET => return Ok(Message::Forget(vec![(node, body.fixed::<abi::ForgetIn>()?.nlookup)])),
        opcode::BATCH_FORGET => return parse_batch_forget(&mut body),
        opcode::INTERRUPT => return Ok(Message::Interrupt(body.fixed::<abi::InterruptIn>()?.unique)),
        opcode::DESTROY => return Ok(Message::Destroy),
        opcode::IOCTL => return Ok(Message::Refused(Errno::ENOTTY)),
        opcode::GETATTR => {
            let arg: abi::GetattrIn = body.fixed()?;
            Operation::Getattr { node, handle: handle_if(arg.getattr_flags, arg.fh) }
        }
        opcode::STATX => {
            let arg: abi::StatxIn = body.fixed()?;
            Operation::Statx { node, handle: handle_if(arg.getattr_flags, arg.fh) }
        }
        opcode::SETATTR => parse_setattr(node, &body.fixed()?),
        opcode::READLINK => Operation::Readlink { node },
        opcode::SYMLINK => {
            let name = body.name()?;
            Operation::Symlink { parent: node, name, target: body.name()? }
        }
        opcode::MKNOD => {
            let arg: abi::MknodIn = body.fixed()?;
            let new = NewFile { mode: arg.mode, umask: permissions(arg.umask), rdev: arg.rdev };
            Operation::Mknod { parent: node, name: body.name()?, new }
        }
        opcode::MKDIR => {
            let arg: abi::MkdirIn = body.fixed()?;
            let mode = (arg.mode & 0o7777) | libc::S_IFDIR;
            let new = NewFile { mode, umask: permissions(arg.umask), rdev: 0 };
            Operation::Mkdir { parent: node, name: body.name()?, new }
        }
        opcode::UNLINK => Operation::Unlink { parent: node, name: body.name()? },
        opcode::RMDIR => Operation::Rmdir { parent: node, name: body.name()? },
        opcode::RENAME => {
            let arg: abi::RenameIn = body.fixed()?;
            parse_rename(node, arg.newdir, 0, &mut body)?
        }
        opcode::RENAME2 => {
            let arg: abi::Rename2In = body.fixed()?;
            parse_rename(node, arg.newdir, arg.flags, &mut body)?
        }
        opcode::LINK => {
            let arg: abi::LinkIn = body.fixed()?;
            Operation::Link { node: NodeId(arg.oldnodeid), new_parent: node, new_name: body.name()? }
        }
        opcode::OPEN => {
            let arg: abi::OpenIn = body.fixed()?;
            Operation::Open { node, how: open_how(arg.flags, arg.open_flags) }
        }
        opcode::CREATE => {
            let (new, how) = new_open(&body.fixed()?);
            Operation::Create { parent: node, name: body.name()?, new, how }
        }
        opcode::TMPFILE => {
            let (new, how) = new_open(&body.fixed()?);
            Operation::Tmpfile { parent: node, new, how }
        }
        opcode::READ => {
            let arg: abi::ReadIn = body.fixed()?;
            Operation::Read { node, handle: FileHandle(arg.fh), offset: arg.offset, len_bytes: arg.size }
        }
        opcode::WRITE => {
            let arg: abi::WriteIn = body.fixed()?;
            if body.rest.len() != arg.size as usize {
                return Err(Malformed("FUSE write length"));
            }
            let start = size_of::<abi::WriteIn>();
            let how = WriteHow {
                flags: arg.flags.cast_signed(),
                kill_setid: arg.write_flags & abi::WRITE_KILL_SUIDGID != 0,
                from_page_cache: arg.write_flags & abi::WRITE_CACHE != 0,
            };
            let data = take_data(start..start + body.rest.len());
            Operation::Write { node, handle: FileHandle(arg.fh), offset: arg.offset, data, how }
        }
        opcode::FLUSH => {
            let arg: abi::FlushIn = body.fixed()?;
            Operation::Flush { node, handle: FileHandle(arg.fh), owner: LockOwner(arg.lock_owner) }
        }
        opcode::RELEASE => {
            let arg: abi::ReleaseIn = body.fixed()?;
            let flock = arg.release_flags & abi::RELEASE_FLOCK_UNLOCK != 0;
            let flock_owner = flock.then_some(LockOwner(arg.lock_owner));
            let how = ReleaseHow { flags: arg.flags.cast_signed(), flock_owner };
            Operation::Release { node, handle: FileHandle(arg.fh), how }
        }
        opcode::FSYNC => {
            let (handle, data_only) = fsync(&body.fixed()?);
            Operation::Fsync { node, handle, data_only }
        }
        opcode::FSYNCDIR => {
            let (handle, data_only) = fsync(&body.fixed()?);
            Operation::Fsyncdir { node, handle, data_only }
        }
        opcode::OPENDIR => {
            let arg: abi::OpenIn = body.fixed()?;
            Operation::Opendir { node, flags: arg.flags.cast_signed() }
        }
        opcode::READDIR | opcode::READDIRPLUS => {
            let arg: abi::ReadIn = body.fixed()?;
            let plus = header.opcode == opcode::READDIRPLUS;
            Operation::Readdir { node, handle: FileHandle(arg.fh), cookie: arg.offset, len_bytes: arg.size, plus }
        }
        opcode::RELEASEDIR => {
            let arg: abi::ReleaseIn = body.fixed()?;
            Operation::Releasedir { node, handle: FileHandle(arg.fh) }
        }
        opcode::SYNCFS => Operation::Syncfs,
        opcode::STATFS => Operation::Statfs { node },
        opcode::SETXATTR => parse_setxattr(node, &mut body)?,
        opcode::GETXATTR => {
            let arg: abi::GetxattrIn = body.fixed()?;
            Operation::Getxattr { node, name: body.name()?, room: arg.size }
        }
        opcode::LISTXATTR => Operation::Listxattr { node, room: body.fixed::<abi::GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Operation::Removexattr { node, name: body.name()? },
        opcode::GETLK => {
            let (handle, ask) = lock_request(&body.fixed()?)?;
            Operation::Getlk { node, handle, ask }
        }
        opcode::SETLK | opcode::SETLKW => {
            let (handle, ask) = lock_request(&body.fixed()?)?;
            Operation::Setlk { node, handle, ask, wait: header.opcode == opcode::SETLKW }
        }
        opcode::FALLOCATE => {
            let arg: abi::FallocateIn = body.fixed()?;
            let handle = FileHandle(arg.fh);
            let mode = arg.mode.cast_signed();
            Operation::Fallocate { node, handle, offset: arg.offset, len_bytes: arg.length, mode }
        }
        opcode::LSEEK => {
            let arg: abi::LseekIn = body.fixed()?;
            let whence = arg.whence.cast_signed();
            Operation::Lseek { node, handle: FileHandle(arg.fh), offset: arg.offset, whence }
        }
        opcode::COPY_FILE_RANGE => {
            let arg: abi::CopyFileRangeIn = body.fixed()?;
            Operation::CopyFileRange(CopyRange {
                from: node,
                from_handle: FileHandle(arg.fh_in),
                from_offset: arg.off_in,
                to: NodeId(arg.nodeid_out),
                to_handle: FileHandle(arg.fh_out),
                to_offset: arg.off_out,
                len_bytes: arg.len,
            })
        }
        _ => return Ok(Message::Refused(Errno::ENOSYS)),
    };
    Ok(Message::Operation(operation))
}

struct Body<'a> {
    rest: &'a [u8],
}

impl Body<'_> {
    fn fixed<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Malformed> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| Malformed("FUSE argument"))?;
        self.rest = rest;
        Ok(value)
    }

    fn name(&mut self) -> Result<Name, Malformed> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or(Malformed("FUSE name"))?;
        let (name, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(name.into())
    }
}

fn parse_batch_forget(body: &mut Body<'_>) -> Result<Message, Malformed> {
    let arg: abi::BatchForgetIn = body.fixed()?;
    let count = arg.count as usize;
    if body.rest.len() / size_of::<abi::ForgetOne>() < count {
        return Err(Malformed("FUSE forget count"));
    }
    let mut forgets = Vec::with_capacity(count);
    for _ in 0..count {
        let one: abi::ForgetOne = body.fixed()?;
        forgets.push((NodeId(one.nodeid), one.nlookup));
    }
    Ok(Message::Forget(forgets))
}

fn parse_setattr(node: NodeId, arg: &abi::SetattrIn) -> Operation {
    let has = |bit| arg.valid & bit != 0;
    let time = |set, now, seconds: u64, nanos: u32| match (has(set), has(now)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(join_time(seconds.cast_signed(), nanos))),
        (false, false) => None,
    };
    let set = SetAttr {
        mode: has(fattr::MODE).then_some(permissions(arg.mode)),
        uid: has(fattr::UID).then_some(arg.uid),
        gid: has(fattr::GID).then_some(arg.gid),
        size_bytes: has(fattr::SIZE).then_some(arg.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, arg.atime, arg.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, arg.mtime, arg.mtimensec),
        kill_setid: has(fattr::KILL_SUIDGID),
    };
    Operation::Setattr { node, handle: has(fattr::FH).then_some(FileHandle(arg.fh)), set }
}

fn parse_rename(parent: NodeId, new_parent: u64, flags: u32, body: &mut Body<'_>) -> Result<Operation, Malformed> {
    let name = body.name()?;
    let new_name = body.name()?;
    Ok(Operation::Rename { parent, name, new_parent: NodeId(new_parent), new_name, flags })
}

fn parse_setxattr(node: NodeId, body: &mut Body<'_>) -> Result<Operation, Malformed> {
    let arg: abi::SetxattrIn = body.fixed()?;
    let name = body.name()?;
    if body.rest.len() != arg.size as usize {
        return Err(Malformed("FUSE xattr length"));
    }
    let how =
        XattrHow { flags: arg.flags.cast_signed(), kill_setgid: arg.setxattr_flags & abi::SETXATTR_ACL_KILL_SGID != 0 };
    Ok(Operation::Setxattr { node, name, value: body.rest.into(), how })
}

fn handle_if(getattr_flags: u32, fh: u64) -> Option<FileHandle> {
    (getattr_flags & abi::GETATTR_FH != 0).then_some(FileHandle(fh))
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

fn open_how(flags: u32, open_flags: u32) -> OpenHow {
    OpenHow { flags: flags.cast_signed(), kill_setid: open_flags & abi::OPEN_KILL_SUIDGID != 0 }
}

fn new_open(arg: &abi::CreateIn) -> (NewFile, OpenHow) {
    let mode = (arg.mode & 0o7777) | libc::S_IFREG;
    (NewFile { mode, umask: permissions(arg.umask), rdev: 0 }, open_how(arg.flags, arg.open_flags))
}

fn fsync(arg: &abi::FsyncIn) -> (FileHandle, bool) {
    (FileHandle(arg.fh), arg.fsync_flags & abi::FSYNC_FDATASYNC != 0)
}

fn lock_request(arg: &abi::LkIn) -> Result<(FileHandle, LockRequest), Malformed> {
    let typ = match i32::try_from(arg.lk.typ) {
        Ok(libc::F_RDLCK) => LockType::Read,
        Ok(libc::F_WRLCK) => LockType::Write,
        Ok(libc::F_UNLCK) => LockType::Unlock,
        _ => return Err(Malformed("FUSE lock type")),
    };
    let kind = if arg.lk_flags & abi::LK_FLOCK != 0 { LockKind::Flock } else { LockKind::Record };
    let lock = Lock { typ, start: arg.lk.start, end: arg.lk.end, pid: arg.lk.pid };
    Ok((FileHandle(arg.fh), LockRequest { kind, owner: LockOwner(arg.owner), lock }))
}

/// Nanoseconds since 1970; what doesn't fit (beyond the years 1677 and 2262) becomes the nearest that does.
pub(crate) fn join_time(seconds: i64, nanos: u32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos))
}

/// Seconds, rounded down, and the rest in nanoseconds.
pub(crate) fn split_time(time_ns: i64) -> (i64, u32) {
    (time_ns.div_euclid(1_000_000_000), time_ns.rem_euclid(1_000_000_000) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let len = (size_of::<abi::InHeader>() + body.len()) as u32;
        let header = abi::InHeader { len, opcode, unique: 6, nodeid: 1, ..Default::default() };
        [header.as_bytes(), body].concat()
    }

    fn parse_whole(message: &[u8]) -> Result<Message, Malformed> {
        let (head, body) = header(message)?;
        parse(&head, body, |range| Bytes::copy_from_slice(&body[range]))
    }

    #[test]
    fn names_and_data_are_found() -> Result<(), Malformed> {
        let rename = abi::Rename2In { newdir: 9, flags: 1, padding: 0 };
        let body = [rename.as_bytes(), b"old\0new\0"].concat();
        let expected = Operation::Rename {
            parent: NodeId::ROOT,
            name: (*b"old").into(),
            new_parent: NodeId(9),
            new_name: (*b"new").into(),
            flags: 1,
        };
        assert_eq!(parse_whole(&message(opcode::RENAME2, &body))?, Message::Operation(expected));

        let write =
            abi::WriteIn { fh: 3, offset: 4096, size: 5, write_flags: abi::WRITE_KILL_SUIDGID, ..Default::default() };
        let body = [write.as_bytes(), b"hello"].concat();
        let expected = Operation::Write {
            node: NodeId::ROOT,
            handle: FileHandle(3),
            offset: 4096,
            data: Bytes::from_static(b"hello"),
            how: WriteHow { flags: 0, kill_setid: true, from_page_cache: false },
        };
        assert_eq!(parse_whole(&message(opcode::WRITE, &body))?, Message::Operation(expected));
        Ok(())
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        let mut short = message(opcode::LOOKUP, b"name\0");
        short.pop();
        assert!(parse_whole(&short).is_err());
        assert!(parse_whole(&message(opcode::LOOKUP, b"name")).is_err());
        let forget = abi::BatchForgetIn { count: u32::MAX, dummy: 0 };
        assert!(parse_whole(&message(opcode::BATCH_FORGET, forget.as_bytes())).is_err());
        let write = abi::WriteIn { size: 4, ..Default::default() };
        assert!(parse_whole(&message(opcode::WRITE, &[write.as_bytes(), b"hello"].concat())).is_err());
    }

    #[test]
    fn extensions_are_no_part_of_the_body() -> Result<(), Malformed> {
        let mut bytes = message(opcode::LOOKUP, b"a\0\xff\xff\xff\xff\xff\xff\xff\xff");
        let extlen = std::mem::offset_of!(abi::InHeader, total_extlen);
        bytes[extlen] = 1;
        let (_, body) = header(&bytes)?;
        assert_eq!(body, b"a\0");
        Ok(())
    }

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        assert_eq!(split_time(-1), (-1, 999_999_999));
        assert_eq!(join_time(-1, 999_999_999), -1);
        assert_eq!(join_time(i64::MAX, 0), i64::MAX);
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_do_no_harm(opcode in 0u32..60, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_whole(&message(opcode, &body));
        }
    }
}
