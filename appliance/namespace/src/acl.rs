//! ACLs: what new inodes inherit, and how an access ACL and the mode follow each other. The rules themselves are
//! [`weft_wire::acl`]'s; whether someone may do something is checked by the client's kernel.

use crate::inode::{Inode, inode_key, xattr_key};
use crate::part::Inherited;
use crate::{Call, Namespace, errno};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_bucket::Batch;
use weft_wire::acl::{self, ACCESS_NAME, Acl, AclError, DEFAULT_NAME};
use weft_wire::fs::{FileKind, FsError, NewNode};
use weft_wire::{FsId, InodeId};

/// A new inode, with the extended attributes that it is born with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Born {
    pub inode: Inode,
    pub xattrs: Vec<(Bytes, Bytes)>,
}

impl Born {
    pub fn put(&self, batch: &mut Batch, fs: FsId, number: InodeId) {
        batch.put(inode_key(fs, number), weft_wire::encode(&self.inode));
        self.put_xattrs(batch, fs, number);
    }

    pub fn put_xattrs(&self, batch: &mut Batch, fs: FsId, number: InodeId) {
        for (name, value) in &self.xattrs {
            batch.put(xattr_key(fs, number, name), value.clone());
        }
    }
}

fn errno_of(error: AclError) -> FsError {
    match error {
        AclError::Malformed => errno::EINVAL,
        AclError::Version => errno::EOPNOTSUPP,
    }
}

/// Mode and extended attributes of an inode that is made in a directory with this to inherit.
pub fn at_birth(inherited: &Inherited, node: &NewNode) -> Result<(u16, Vec<(Bytes, Bytes)>), FsError> {
    if node.kind == FileKind::Symlink {
        return Ok((0o777, Vec::new()));
    }
    let default = inherited.default_acl.as_deref().map(Acl::from_xattr).transpose().map_err(errno_of)?;
    let born = acl::inherit(default.as_ref(), node.mode & 0o7777, node.umask, node.kind == FileKind::Directory);
    let named =
        |name: &'static [u8], value: Option<Vec<u8>>| value.map(|value| (Bytes::from_static(name), value.into()));
    let xattrs = named(ACCESS_NAME, born.access).into_iter().chain(named(DEFAULT_NAME, born.default));
    Ok((born.mode, xattrs.collect()))
}

/// An extended attribute is about to be set: if it is an access ACL, the mode follows. True: the mode says all of it, and it
/// is not kept.
pub fn to_be_set(inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<bool, FsError> {
    if name != ACCESS_NAME && name != DEFAULT_NAME {
        return Ok(false);
    }
    let acl = Acl::from_xattr(value).map_err(errno_of)?;
    match (name == DEFAULT_NAME, inode.kind) {
        (_, FileKind::Symlink) => Err(errno::EOPNOTSUPP),
        (true, FileKind::Directory) => Ok(false),
        (true, _) => Err(errno::EACCES),
        (false, _) => {
            inode.mode = (inode.mode & !0o777) | acl.mode();
            Ok(acl.is_minimal())
        }
    }
}

impl Namespace {
    /// What is made in this directory takes over.
    pub(crate) async fn inherited(&self, fs: FsId, dir: InodeId, parent: &Inode) -> Result<Inherited, FsError> {
        let default_acl = match parent.has_xattrs {
            true => self.bucket.get(&xattr_key(fs, dir, DEFAULT_NAME)).await.map_err(errno::of_bucket)?,
            false => None,
        };
        Ok(Inherited { setgid: parent.mode & 0o2000 != 0, gid: parent.gid, default_acl })
    }

    /// After a chmod, the access ACL says what the mode says. The inode's lock is held.
    pub(crate) async fn acl_follows_mode(
        &self,
        call: &Call,
        number: InodeId,
        inode: &Inode,
        batch: &mut Batch,
    ) -> Result<(), FsError> {
        if !inode.has_xattrs {
            return Ok(());
        }
        let key = xattr_key(call.fs, number, ACCESS_NAME);
        if let Some(value) = self.bucket.get(&key).await.map_err(errno::of_bucket)? {
            let mut acl = Acl::from_xattr(&value).map_err(errno_of)?;
            acl.set_mode(inode.mode);
            batch.put(key, acl.to_xattr());
        }
        Ok(())
    }
}
