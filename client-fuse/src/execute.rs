//! One operation: the filesystem's method for it, and the answer made of its result.

use crate::answer::Answer;
use crate::dir_buffer::DirBuffer;
use crate::filesystem::{Filesystem, Request};
use crate::request::Operation;
use bytes::Bytes;
use nix::errno::Errno;
use std::pin::Pin;
use std::rc::Rc;

pub(crate) type Execution = Pin<Box<dyn Future<Output = Result<Answer, Errno>>>>;

/// Boxes the future of each operation by itself, so that a small one doesn't take the memory of the largest.
macro_rules! execution {
    ($body:expr) => {
        Box::pin(async move { $body })
    };
}

pub(crate) fn execute<F: Filesystem>(fs: Rc<F>, rq: Request, operation: Operation) -> Execution {
    use Operation::*;
    match operation {
        Lookup { parent, name } => execution!(Ok(Answer::entry(&fs.lookup(&rq, parent, &name).await?))),
        Getattr { node, handle } => execution!(Ok(Answer::attributes(&fs.getattr(&rq, node, handle).await?))),
        Statx { node, handle } => execution!(Ok(Answer::statx(&fs.getattr(&rq, node, handle).await?))),
        Setattr { node, handle, set } => {
            execution!(Ok(Answer::attributes(&fs.setattr(&rq, node, handle, set).await?)))
        }
        Readlink { node } => execution!(Ok(Answer::bytes(fs.readlink(&rq, node).await?))),
        Symlink { parent, name, target } => {
            execution!(Ok(Answer::entry(&fs.symlink(&rq, parent, &name, &target).await?)))
        }
        Mknod { parent, name, new } => execution!(Ok(Answer::entry(&fs.mknod(&rq, parent, &name, new).await?))),
        Mkdir { parent, name, new } => execution!(Ok(Answer::entry(&fs.mkdir(&rq, parent, &name, new).await?))),
        Unlink { parent, name } => execution!(done(fs.unlink(&rq, parent, &name).await)),
        Rmdir { parent, name } => execution!(done(fs.rmdir(&rq, parent, &name).await)),
        Rename { parent, name, new_parent, new_name, flags } => {
            execution!(done(fs.rename(&rq, parent, &name, new_parent, &new_name, flags).await))
        }
        Link { node, new_parent, new_name } => {
            execution!(Ok(Answer::entry(&fs.link(&rq, node, new_parent, &new_name).await?)))
        }
        Open { node, how } => execution!(Ok(Answer::opened(&fs.open(&rq, node, how).await?))),
        Create { parent, name, new, how } => execution!({
            let (entry, opened) = fs.create(&rq, parent, &name, new, how).await?;
            Ok(Answer::created(&entry, &opened))
        }),
        Tmpfile { parent, new, how } => execution!({
            let (entry, opened) = fs.tmpfile(&rq, parent, new, how).await?;
            Ok(Answer::created(&entry, &opened))
        }),
        Read { node, handle, offset, len_bytes } => {
            execution!(Ok(Answer::data_parts(fs.read(&rq, node, handle, offset, len_bytes).await?)))
        }
        Write { node, handle, offset, data, how } => {
            execution!(Ok(Answer::written(fs.write(&rq, node, handle, offset, data, how).await?)))
        }
        Flush { node, handle, owner } => execution!(done(fs.flush(&rq, node, handle, owner).await)),
        Release { node, handle, how } => execution!(done(fs.release(&rq, node, handle, how).await)),
        Fsync { node, handle, data_only } => execution!(done(fs.fsync(&rq, node, handle, data_only).await)),
        Opendir { node, flags } => execution!(Ok(Answer::opened_dir(fs.opendir(&rq, node, flags).await?))),
        Readdir { node, handle, cookie, len_bytes, plus } => execution!({
            let mut buffer = DirBuffer::new(len_bytes, plus);
            fs.readdir(&rq, node, handle, cookie, &mut buffer).await?;
            Ok(Answer::bytes(buffer.into_bytes()))
        }),
        Releasedir { node, handle } => execution!(done(fs.releasedir(&rq, node, handle).await)),
        Fsyncdir { node, handle, data_only } => execution!(done(fs.fsyncdir(&rq, node, handle, data_only).await)),
        Syncfs => execution!(done(fs.syncfs(&rq).await)),
        Statfs { node } => execution!(Ok(Answer::statfs(&fs.statfs(&rq, node).await?))),
        Setxattr { node, name, value, how } => {
            execution!(done(fs.setxattr(&rq, node, &name, &value, how).await))
        }
        Getxattr { node, name, room } => execution!(Answer::xattr(fs.getxattr(&rq, node, &name).await?, room)),
        Listxattr { node, room } => execution!({
            let mut list = Vec::new();
            for name in fs.listxattr(&rq, node).await? {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Answer::xattr(Bytes::from(list), room)
        }),
        Removexattr { node, name } => execution!(done(fs.removexattr(&rq, node, &name).await)),
        Getlk { node, handle, ask } => execution!(Ok(Answer::lock(fs.getlk(&rq, node, handle, ask).await?))),
        Setlk { node, handle, ask, wait } => execution!(done(fs.setlk(&rq, node, handle, ask, wait).await)),
        Fallocate { node, handle, offset, len_bytes, mode } => {
            execution!(done(fs.fallocate(&rq, node, handle, offset, len_bytes, mode).await))
        }
        Lseek { node, handle, offset, whence } => {
            execution!(Ok(Answer::offset(fs.lseek(&rq, node, handle, offset, whence).await?)))
        }
        CopyFileRange(copy) => execution!(Ok(Answer::written(fs.copy_file_range(&rq, copy).await?))),
    }
}

fn done(result: Result<(), Errno>) -> Result<Answer, Errno> {
    result.map(|()| Answer::empty())
}
