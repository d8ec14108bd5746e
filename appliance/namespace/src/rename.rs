//! Rename: a name goes here and comes there, and what it means learns of it. Within one bucket that is one record.

use crate::part::{Entry, Part, Veto};
use crate::tree::PAGES_ASKED_MAX;
use crate::{Call, Namespace, Outcome, dentries, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::InodeId;
use weft_wire::bucket::{ParticipantOp, ParticipantReply};
use weft_wire::fs::{FileKind, FsError, FsReply, RenameMode};
use weft_wire::page::PageId;

fn is_directory(entry: Entry) -> bool {
    entry.kind == FileKind::Directory
}

/// The answer, if nothing is to be done.
fn answer_at_once(
    dir: InodeId,
    source: Entry,
    target: Option<Entry>,
    mode: RenameMode,
) -> Option<Result<FsReply, FsError>> {
    match (target, mode) {
        (Some(_), RenameMode::NoReplace) => Some(Err(errno::EEXIST)),
        (None, RenameMode::Exchange) => Some(Err(errno::ENOENT)),
        // Two names of one file.
        (Some(target), _) if target.inode == source.inode => Some(Ok(FsReply::Done)),
        (Some(target), RenameMode::Replace) => match (is_directory(source), is_directory(target)) {
            (true, false) => Some(Err(errno::ENOTDIR)),
            (false, true) => Some(Err(errno::EISDIR)),
            // In place of its own parent, which has the source in it. Once that is taken out it would count as empty.
            _ if target.inode == dir => Some(Err(errno::ENOTEMPTY)),
            _ => None,
        },
        _ => None,
    }
}

impl Namespace {
    pub(crate) async fn rename(
        self: &Rc<Self>,
        call: &Call,
        from: (InodeId, Vec<u8>),
        to: (InodeId, Vec<u8>),
        mode: RenameMode,
    ) -> Outcome {
        let (dir, name) = (from.0, Bytes::from(from.1));
        let (new_dir, new_name) = (to.0, Bytes::from(to.1));
        dentries::check_name(&name)?;
        dentries::check_name(&new_name)?;
        let page = self.page_of(call, dir, &name)?;
        let done = self.plan_until_done(
            call,
            |_| FsReply::Done,
            async |plan| {
                let source = self.meaning_here(call, page, &name).await?.ok_or(errno::ENOENT)?;
                let (target, new_page) = self.name_anywhere(call, new_dir, &new_name).await?;
                if let Some(answer) = answer_at_once(dir, source, target, mode) {
                    // Both names must have meant this at one moment.
                    if self.meaning_here(call, page, &name).await? != Some(source) {
                        return Err(Veto::Changed);
                    }
                    return Ok(Some(answer?));
                }
                let exchanged = target.filter(|_| mode == RenameMode::Exchange);
                let replaced = target.filter(|_| mode != RenameMode::Exchange);
                if dir != new_dir {
                    // A directory must not come to lie in itself.
                    let goes = is_directory(source).then_some((new_dir, source.inode));
                    let comes = exchanged.filter(|other| is_directory(*other)).map(|other| (dir, other.inode));
                    plan.not_below.extend(goes.into_iter().chain(comes));
                }
                if !plan.not_below.is_empty() {
                    let map = self.map()?;
                    let root = map.filesystems.get(&call.fs).ok_or(errno::ESTALE)?.root;
                    self.add_part(call, plan, root.position(), Part::Tree)?;
                }
                let first = match exchanged {
                    Some(other) => Part::PutName {
                        page,
                        name: name.clone(),
                        expected: Some(source),
                        entry: Some(other),
                        inherited: None,
                    },
                    None => Part::TakeName { page, name: name.clone(), expected: source },
                };
                self.add_page_part(call, plan, page, first)?;
                let put = Part::PutName {
                    page: new_page,
                    name: new_name.clone(),
                    expected: target,
                    entry: Some(source),
                    inherited: None,
                };
                self.add_page_part(call, plan, new_page, put)?;
                let moved = Part::Move { inode: source.inode, parent: Some(new_dir) };
                self.add_part(call, plan, source.inode.position(), moved)?;
                if let Some(other) = exchanged {
                    let moved = Part::Move { inode: other.inode, parent: Some(dir) };
                    self.add_part(call, plan, other.inode.position(), moved)?;
                }
                if let Some(gone) = replaced
                    && let Err(error) = self.add_drop(call, plan, gone).await
                {
                    let same = self.name_anywhere(call, new_dir, &new_name).await?.0 == target
                        && self.meaning_here(call, page, &name).await? == Some(source);
                    return Err(if same && error != errno::ESTALE { error.into() } else { Veto::Changed });
                }
                Ok(None)
            },
        );
        Ok(done.await?)
    }

    /// What a name of a directory in any bucket means now, and the page that says so.
    async fn name_anywhere(
        self: &Rc<Self>,
        call: &Call,
        dir: InodeId,
        name: &Bytes,
    ) -> Result<(Option<Entry>, PageId), FsError> {
        let map = self.map()?;
        for _ in 0..PAGES_ASKED_MAX {
            let page = self.known_page(call.fs, dir, &map.secret, name);
            let bucket = map.bucket_of(page.position(&map.secret, call.fs));
            let found = match bucket == self.bucket.id() {
                true => self.meaning_here(call, page, name).await,
                false => {
                    let op = ParticipantOp::Name { fs: call.fs, page, name: name.to_vec() };
                    self.ask_once(bucket, op, Bytes::new()).await.and_then(|reply| match reply {
                        ParticipantReply::Name(found) => Ok(found.map(|(inode, kind)| Entry { inode, kind })),
                        _ => Err(errno::EIO),
                    })
                }
            };
            match found {
                Err(FsError::Moved { .. }) => self.learn_pages(call.fs, |known| known.split(page)),
                Err(FsError::NoPage) => self.learn_pages(call.fs, |known| known.forget(dir)),
                found => return Ok((found?, page)),
            }
        }
        Err(FsError::NotReady(format!("the pages of {dir} are changing")))
    }
}
