//! Names that go: unlink and rmdir.

use crate::part::Part;
use crate::{Call, Namespace, Outcome, dentries, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, FsReply};

impl Namespace {
    pub(crate) async fn remove(self: &Rc<Self>, call: &Call, dir: InodeId, name: &[u8], directory: bool) -> Outcome {
        dentries::check_name(name)?;
        let name = Bytes::copy_from_slice(name);
        let done = self.plan_until_done(
            call,
            |_| FsReply::Done,
            async |plan| {
                let Some(target) = self.meaning_here(call, dir, &name).await? else {
                    self.directory(call, dir).await?;
                    return Err(errno::ENOENT.into());
                };
                match (directory, target.kind == FileKind::Directory) {
                    (true, false) => return Err(errno::ENOTDIR.into()),
                    (false, true) => return Err(errno::EISDIR.into()),
                    _ => {}
                }
                self.add_part(call, plan, dir, Part::TakeName { dir, name: name.clone(), expected: target })?;
                self.add_part(call, plan, target.inode, Part::Drop { inode: target.inode, directory })?;
                Ok(None)
            },
        );
        Ok(done.await?)
    }
}
