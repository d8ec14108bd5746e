//! Rename within one bucket.

use crate::inode::{Dentry, Inode, inode_key};
use crate::{Call, Namespace, Outcome, cut, dentries, errno};
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_bucket::Batch;
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, FsError, FsReply, RenameMode};

/// A directory deeper than this can't be moved: the walk to the root must end.
const DEPTH_MAX: usize = 4096;

impl Namespace {
    pub(crate) async fn rename(
        self: &Rc<Self>,
        call: &Call,
        from: (InodeId, Vec<u8>),
        to: (InodeId, Vec<u8>),
        mode: RenameMode,
    ) -> Outcome {
        let (dir, name) = from;
        let (new_dir, new_name) = to;
        dentries::check_name(&name)?;
        dentries::check_name(&new_name)?;
        let secret = self.map()?.secret;
        // One rename of a directory at a time, so that no cycle can form while ancestors are checked.
        let tree = weft_bucket::KeyBuilder::new(call.fs, weft_bucket::Tag::Inode).build();
        loop {
            let source = dentries::find(&self.bucket, &secret, call.fs, dir, &name).await?;
            let target = dentries::find(&self.bucket, &secret, call.fs, new_dir, &new_name).await?;
            let Some(seen) = source.dentry else {
                self.directory(call, dir).await?;
                return Err(errno::ENOENT);
            };
            let seen_target = target.dentry.map(|dentry| dentry.inode);
            let moves_directory = dir != new_dir && (seen.kind == FileKind::Directory || mode == RenameMode::Exchange);
            let _tree = match moves_directory {
                true => Some(self.bucket.lock([tree.clone()]).await),
                false => None,
            };
            let _guard = self.lock_inodes(call, [dir, new_dir, seen.inode].into_iter().chain(seen_target)).await;
            let source = dentries::find(&self.bucket, &secret, call.fs, dir, &name).await?;
            let target = dentries::find(&self.bucket, &secret, call.fs, new_dir, &new_name).await?;
            let unchanged = source.dentry.as_ref() == Some(&seen)
                && target.dentry.as_ref().map(|dentry| dentry.inode) == seen_target;
            if !unchanged {
                continue;
            }
            let mut inodes: BTreeMap<InodeId, Inode> = BTreeMap::new();
            inodes.insert(dir, self.directory(call, dir).await?);
            inodes.insert(new_dir, self.directory(call, new_dir).await.map_err(moved_away)?);
            for number in [Some(seen.inode), seen_target].into_iter().flatten() {
                inodes.insert(number, self.inode(call, number).await.map_err(moved_away)?);
            }
            match (&target.dentry, mode) {
                (Some(_), RenameMode::NoReplace) => return Err(errno::EEXIST),
                (None, RenameMode::Exchange) => return Err(errno::ENOENT),
                (Some(other), _) if other.inode == seen.inode => {
                    return Ok((FsReply::Done, Default::default()));
                }
                _ => {}
            }
            if dir != new_dir {
                if seen.kind == FileKind::Directory {
                    self.check_not_below(call, new_dir, seen.inode).await?;
                }
                if let (Some(other), RenameMode::Exchange) = (&target.dentry, mode)
                    && other.kind == FileKind::Directory
                {
                    self.check_not_below(call, dir, other.inode).await?;
                }
            }
            let mut batch = Batch::new();
            let moved_kind = seen.kind == FileKind::Directory;
            let mut doomed = None;
            match (target.dentry.clone(), mode) {
                (Some(other), RenameMode::Exchange) => {
                    let other_kind = other.kind == FileKind::Directory;
                    let here = Dentry { inode: other.inode, kind: other.kind, name: seen.name.clone() };
                    let there = Dentry { inode: seen.inode, kind: seen.kind, name: other.name.clone() };
                    dentries::put(&mut batch, call.fs, dir, source.cookie, &here);
                    dentries::put(&mut batch, call.fs, new_dir, target.cookie, &there);
                    links(&mut inodes, dir, i64::from(other_kind) - i64::from(moved_kind));
                    links(&mut inodes, new_dir, i64::from(moved_kind) - i64::from(other_kind));
                    adopt(&mut inodes, other.inode, dir, call.now_ns);
                }
                (other, _) => {
                    if let Some(other) = other {
                        let replaced = inodes.get(&other.inode).ok_or(errno::EIO)?;
                        match (moved_kind, other.kind == FileKind::Directory) {
                            (true, false) => return Err(errno::ENOTDIR),
                            (false, true) => return Err(errno::EISDIR),
                            (true, true) if replaced.entries > 0 => return Err(errno::ENOTEMPTY),
                            _ => {}
                        }
                        links(&mut inodes, new_dir, -i64::from(other.kind == FileKind::Directory));
                        doomed = Some(other.inode);
                    } else if let Some(parent) = inodes.get_mut(&new_dir) {
                        parent.entries += 1;
                    }
                    dentries::remove(&self.bucket, &mut batch, call.fs, dir, &source).await?;
                    if let Some(parent) = inodes.get_mut(&dir) {
                        parent.entries = parent.entries.saturating_sub(1);
                    }
                    let there = Dentry { inode: seen.inode, kind: seen.kind, name: new_name.clone().into() };
                    dentries::put(&mut batch, call.fs, new_dir, target.cookie, &there);
                    links(&mut inodes, dir, -i64::from(moved_kind));
                    links(&mut inodes, new_dir, i64::from(moved_kind));
                }
            }
            adopt(&mut inodes, seen.inode, new_dir, call.now_ns);
            for parent in [dir, new_dir] {
                if let Some(parent) = inodes.get_mut(&parent) {
                    parent.mtime_ns = call.now_ns;
                    parent.ctime_ns = call.now_ns;
                }
            }
            let mut purge = false;
            if let Some(number) = doomed
                && let Some(inode) = inodes.remove(&number)
            {
                purge = self.drop_link(call, &mut batch, number, inode);
            }
            for (number, inode) in &inodes {
                batch.put(inode_key(call.fs, *number), weft_wire::encode(inode));
            }
            let outcome = self.commit(call, batch, FsReply::Done).await;
            if let (true, Some(number), true) = (purge, doomed, outcome.is_ok()) {
                cut::purge_later(self, call.fs, number);
            }
            return outcome;
        }
    }

    /// `EINVAL` if `dir` is `ancestor` or lies below it.
    async fn check_not_below(&self, call: &Call, dir: InodeId, ancestor: InodeId) -> Result<(), FsError> {
        let mut at = dir;
        for _ in 0..DEPTH_MAX {
            if at == ancestor {
                return Err(errno::EINVAL);
            }
            let parent = self.inode(call, at).await.map_err(moved_away)?.parent;
            if parent == at {
                return Ok(());
            }
            at = parent;
        }
        Err(errno::EINVAL)
    }
}

/// Inodes of other buckets can't be renamed until transactions span several.
fn moved_away(error: FsError) -> FsError {
    if error == errno::ESTALE { errno::EXDEV } else { error }
}

fn links(inodes: &mut BTreeMap<InodeId, Inode>, dir: InodeId, by: i64) {
    if let Some(inode) = inodes.get_mut(&dir) {
        inode.links = inode.links.saturating_add_signed(by as i32);
    }
}

fn adopt(inodes: &mut BTreeMap<InodeId, Inode>, number: InodeId, parent: InodeId, now_ns: i64) {
    if let Some(inode) = inodes.get_mut(&number) {
        inode.ctime_ns = now_ns;
        if inode.kind == FileKind::Directory {
            inode.parent = parent;
        }
    }
}
