//! Names that go: unlink and rmdir.

use crate::inode::inode_key;
use crate::{Call, Namespace, Outcome, cut, dentries, errno};
use std::rc::Rc;
use weft_bucket::Batch;
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, FsReply};

impl Namespace {
    pub(crate) async fn remove(self: &Rc<Self>, call: &Call, dir: InodeId, name: &[u8], directory: bool) -> Outcome {
        dentries::check_name(name)?;
        let secret = self.map()?.secret;
        loop {
            // The inode must be locked too, and only its name says which it is: look, lock, look again.
            let seen = dentries::find(&self.bucket, &secret, call.fs, dir, name).await?;
            let Some(target) = seen.dentry.as_ref().map(|dentry| dentry.inode) else {
                self.directory(call, dir).await?;
                return Err(errno::ENOENT);
            };
            let _guard = self.lock_inodes(call, [dir, target]).await;
            let found = dentries::find(&self.bucket, &secret, call.fs, dir, name).await?;
            if found.dentry.as_ref().map(|dentry| dentry.inode) != Some(target) {
                continue;
            }
            let mut parent = self.directory(call, dir).await?;
            let inode = self.inode(call, target).await?;
            match (directory, inode.kind == FileKind::Directory) {
                (true, false) => return Err(errno::ENOTDIR),
                (false, true) => return Err(errno::EISDIR),
                (true, true) if inode.entries > 0 => return Err(errno::ENOTEMPTY),
                _ => {}
            }
            let mut batch = Batch::new();
            dentries::remove(&self.bucket, &mut batch, call.fs, dir, &found).await?;
            parent.entries = parent.entries.saturating_sub(1);
            parent.links -= u32::from(directory);
            parent.mtime_ns = call.now_ns;
            parent.ctime_ns = call.now_ns;
            batch.put(inode_key(call.fs, dir), weft_wire::encode(&parent));
            let purge = self.drop_link(call, &mut batch, target, inode);
            let outcome = self.commit(call, batch, FsReply::Done).await;
            if purge && outcome.is_ok() {
                cut::purge_later(self, call.fs, target);
            }
            return outcome;
        }
    }
}
