//! Names that go: unlink and rmdir.

use crate::part::{Part, Veto};
use crate::{Call, Namespace, Outcome, dentries, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, FsReply};

impl Namespace {
    pub(crate) async fn remove(self: &Rc<Self>, call: &Call, dir: InodeId, name: &[u8], directory: bool) -> Outcome {
        dentries::check_name(name)?;
        let page = self.page_of(call, dir, name)?;
        let name = Bytes::copy_from_slice(name);
        let done = self.plan_until_done(
            call,
            |_| FsReply::Done,
            async |plan| {
                let target = self.meaning_here(call, page, &name).await?.ok_or(errno::ENOENT)?;
                match (directory, target.kind == FileKind::Directory) {
                    (true, false) => return Err(errno::ENOTDIR.into()),
                    (false, true) => return Err(errno::EISDIR.into()),
                    _ => {}
                }
                self.add_page_part(call, plan, page, Part::TakeName { page, name: name.clone(), expected: target })?;
                if let Err(error) = self.add_drop(call, plan, target).await {
                    // Both must have been so at one moment.
                    let same = self.meaning_here(call, page, &name).await? == Some(target);
                    return Err(if same && error != errno::ESTALE { error.into() } else { Veto::Changed });
                }
                Ok(None)
            },
        );
        Ok(done.await?)
    }
}
