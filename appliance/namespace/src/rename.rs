//! Rename: a name goes here and comes there, and what it means learns of it. Within one bucket that is one record.

use crate::part::{Entry, Part, Veto};
use crate::{Call, Namespace, Outcome, dentries, errno};
use bytes::Bytes;
use std::rc::Rc;
use weft_wire::InodeId;
use weft_wire::bucket::{ParticipantOp, ParticipantReply};
use weft_wire::fs::{FileKind, FsError, FsReply, RenameMode};

fn is_directory(entry: Entry) -> bool {
    entry.kind == FileKind::Directory
}

/// The answer, if nothing is to be done.
fn answer_at_once(source: Entry, target: Option<Entry>, mode: RenameMode) -> Option<Result<FsReply, FsError>> {
    match (target, mode) {
        (Some(_), RenameMode::NoReplace) => Some(Err(errno::EEXIST)),
        (None, RenameMode::Exchange) => Some(Err(errno::ENOENT)),
        // Two names of one file.
        (Some(target), _) if target.inode == source.inode => Some(Ok(FsReply::Done)),
        (Some(target), RenameMode::Replace) => match (is_directory(source), is_directory(target)) {
            (true, false) => Some(Err(errno::ENOTDIR)),
            (false, true) => Some(Err(errno::EISDIR)),
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
        let done = self.plan_until_done(
            call,
            |_| FsReply::Done,
            async |plan| {
                let Some(source) = self.meaning_here(call, dir, &name).await? else {
                    self.directory(call, dir).await?;
                    return Err(errno::ENOENT.into());
                };
                let target = self.name_anywhere(call, new_dir, &new_name).await?;
                if let Some(answer) = answer_at_once(source, target, mode) {
                    // Both names must have meant this at one moment.
                    if self.meaning_here(call, dir, &name).await? != Some(source) {
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
                    self.add_part(call, plan, root, Part::Tree)?;
                }
                let first = match exchanged {
                    Some(other) => Part::PutName {
                        dir,
                        name: name.clone(),
                        expected: Some(source),
                        entry: Some(other),
                        inherited: None,
                    },
                    None => Part::TakeName { dir, name: name.clone(), expected: source },
                };
                self.add_part(call, plan, dir, first)?;
                let put = Part::PutName {
                    dir: new_dir,
                    name: new_name.clone(),
                    expected: target,
                    entry: Some(source),
                    inherited: None,
                };
                self.add_part(call, plan, new_dir, put)?;
                let moved = Part::Move { inode: source.inode, parent: Some(new_dir) };
                self.add_part(call, plan, source.inode, moved)?;
                if let Some(other) = exchanged {
                    self.add_part(call, plan, other.inode, Part::Move { inode: other.inode, parent: Some(dir) })?;
                }
                if let Some(gone) = replaced {
                    let drop = Part::Drop { inode: gone.inode, directory: is_directory(gone) };
                    self.add_part(call, plan, gone.inode, drop)?;
                }
                Ok(None)
            },
        );
        Ok(done.await?)
    }

    /// What a name of a directory in any bucket means now.
    async fn name_anywhere(self: &Rc<Self>, call: &Call, dir: InodeId, name: &Bytes) -> Result<Option<Entry>, FsError> {
        let map = self.map()?;
        let bucket = map.bucket_of(dir.position());
        if bucket == self.bucket.id() {
            let found = self.meaning_here(call, dir, name).await?;
            if found.is_none() {
                self.directory(call, dir).await?;
            }
            return Ok(found);
        }
        let op = ParticipantOp::Name { fs: call.fs, dir, name: name.to_vec() };
        match self.ask_once(bucket, op, Bytes::new()).await? {
            ParticipantReply::Name(found) => Ok(found.map(|(inode, kind)| Entry { inode, kind })),
            _ => Err(errno::EIO),
        }
    }
}
