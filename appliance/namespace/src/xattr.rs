//! Extended attributes: a key each.

use crate::inode::{inode_key, xattr_key};
use crate::part::Inherited;
use crate::{Call, Namespace, Outcome, acl, errno};
use bytes::Bytes;
use weft_bucket::Batch;
use weft_wire::InodeId;
use weft_wire::acl::DEFAULT_NAME;
use weft_wire::fs::{FsError, FsReply, XattrMode};
use weft_wire::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};

/// All names together must fit one listxattr call.
const XATTR_LIST_BYTES_MAX: usize = 65536;

fn check(name: &[u8]) -> Result<(), FsError> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(errno::ERANGE);
    }
    Ok(())
}

impl Namespace {
    pub(crate) async fn get_xattr(&self, call: &Call, number: InodeId, name: &[u8]) -> Outcome {
        check(name)?;
        let value = self.bucket.get(&xattr_key(call.fs, number, name)).await.map_err(errno::of_bucket)?;
        // Looked at afterwards: an inode goes before what it has.
        self.inode(call, number).await?;
        Ok((FsReply::Bytes(value.ok_or(errno::ENODATA)?.to_vec()), Bytes::new()))
    }

    async fn xattrs(&self, call: &Call, number: InodeId) -> Result<Vec<Vec<u8>>, FsError> {
        let prefix = xattr_key(call.fs, number, b"");
        let found = self.bucket.scan_prefix(&prefix, usize::MAX).await.map_err(errno::of_bucket)?;
        Ok(found.into_iter().map(|(key, _)| key[prefix.len()..].to_vec()).collect())
    }

    pub(crate) async fn list_xattr(&self, call: &Call, number: InodeId) -> Outcome {
        let inode = self.inode(call, number).await?;
        let names = if inode.has_xattrs { self.xattrs(call, number).await? } else { Vec::new() };
        Ok((FsReply::Names(names), Bytes::new()))
    }

    pub(crate) async fn set_xattr(
        &self,
        call: &Call,
        number: InodeId,
        name: &[u8],
        value: Vec<u8>,
        mode: XattrMode,
        kill_setgid: bool,
    ) -> Outcome {
        check(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(errno::ERANGE);
        }
        let _guard = self.lock_inodes(call, [number]).await;
        let mut inode = self.inode(call, number).await?;
        if kill_setgid {
            inode.mode &= !0o2000;
        }
        let said_by_mode = acl::to_be_set(&mut inode, name, &value)?;
        let key = xattr_key(call.fs, number, name);
        let exists = self.bucket.get(&key).await.map_err(errno::of_bucket)?.is_some();
        match (mode, exists) {
            (XattrMode::Create, true) => return Err(errno::EEXIST),
            (XattrMode::Replace, false) => return Err(errno::ENODATA),
            _ => {}
        }
        if !said_by_mode {
            self.room_for(value.len())?;
        }
        if !exists && !said_by_mode {
            let taken: usize = self.xattrs(call, number).await?.iter().map(|name| name.len() + 1).sum();
            if taken + name.len() + 1 > XATTR_LIST_BYTES_MAX {
                return Err(errno::ENOSPC);
            }
        }
        if inode.is_split() && (name == DEFAULT_NAME || kill_setgid) {
            let mut inherited = self.inherited(call.fs, number, &inode).await?;
            if name == DEFAULT_NAME {
                inherited.default_acl = Some(value.clone().into());
            }
            self.tell_pages(call.fs, number, &inherited).await?;
        }
        inode.ctime_ns = call.now_ns;
        let mut batch = Batch::new();
        if said_by_mode {
            batch.delete(key);
        } else {
            inode.has_xattrs = true;
            batch.put(key, value);
        }
        batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
        self.commit(call, batch, FsReply::Done).await
    }

    pub(crate) async fn remove_xattr(&self, call: &Call, number: InodeId, name: &[u8]) -> Outcome {
        check(name)?;
        let _guard = self.lock_inodes(call, [number]).await;
        let mut inode = self.inode(call, number).await?;
        let names = self.xattrs(call, number).await?;
        if !names.iter().any(|found| found == name) {
            return Err(errno::ENODATA);
        }
        if inode.is_split() && name == DEFAULT_NAME {
            let inherited = Inherited { default_acl: None, ..self.inherited(call.fs, number, &inode).await? };
            self.tell_pages(call.fs, number, &inherited).await?;
        }
        inode.has_xattrs = names.len() > 1;
        inode.ctime_ns = call.now_ns;
        let mut batch = Batch::new();
        batch.delete(xattr_key(call.fs, number, name));
        batch.put(inode_key(call.fs, number), weft_wire::encode(&inode));
        self.commit(call, batch, FsReply::Done).await
    }
}
