//! What an operation on names does in one bucket. An operation is planned as parts of as many buckets as it needs; when
//! all are in one bucket, they become one record, otherwise a transaction.
//!
//! A part is checked and worked out under its locks. Worked out again, under the same locks, it comes to the same: so a
//! participant journals the parts alone, and works them out again when they are decided.

use crate::acl::Born;
use crate::inode::{Dentry, Inode, inode_key, orphan_key};
use crate::{Call, Namespace, dentries, errno};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::rc::Rc;
use weft_bucket::{Batch, KeyBuilder, Tag};
use weft_wire::fs::{Attr, FileKind, FsError};
use weft_wire::hash::Secret;
use weft_wire::limits::LINKS_MAX;
use weft_wire::{FsId, InodeId, Position};

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub inode: InodeId,
    pub kind: FileKind,
}

/// What a new inode takes over from its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub setgid: bool,
    pub gid: u32,
    pub default_acl: Option<Bytes>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// A new inode, numbered by its bucket.
    Make { position: Position, born: Born },
    /// One more name for an inode.
    Link { inode: InodeId },
    /// One name less; the last takes the inode with it. A directory must be empty.
    Drop { inode: InodeId, directory: bool },
    /// It was renamed. `parent`: the directory's new parent.
    Move { inode: InodeId, parent: Option<InodeId> },
    /// A name that means `expected` goes.
    TakeName { dir: InodeId, name: Bytes, expected: Entry },
    /// A name that means `expected` now comes to mean `entry`; without one, what the operation makes or links.
    PutName { dir: InodeId, name: Bytes, expected: Option<Entry>, entry: Option<Entry>, inherited: Option<Inherited> },
    /// No other directory of the filesystem moves to another parent meanwhile.
    Tree,
}

/// All parts of an operation in one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    pub fs: FsId,
    pub now_ns: i64,
    pub parts: Vec<Part>,
}

/// Why a part can't be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Veto {
    /// What was seen when the operation was planned is no longer so.
    Changed,
    /// A bucket can't be reached; nothing was done.
    Away(String),
    Error(FsError),
}

impl From<Veto> for FsError {
    fn from(veto: Veto) -> Self {
        match veto {
            Veto::Changed => Self::NotReady("others change the same names all the time".into()),
            Veto::Away(reason) => Self::NotReady(reason),
            Veto::Error(error) => error,
        }
    }
}

impl From<FsError> for Veto {
    fn from(error: FsError) -> Self {
        Self::Error(error)
    }
}

/// Parts worked out: what they change.
pub struct Worked {
    pub batch: Batch,
    /// The inode that is made or linked, as it will be.
    pub found: Option<Attr>,
    /// Nameless inodes whose contents are to be removed.
    pub purges: Vec<InodeId>,
}

/// The key that stands for a filesystem's tree, at the bucket of its root.
fn tree_key(fs: FsId) -> Bytes {
    KeyBuilder::new(fs, Tag::Inode).build()
}

impl Parts {
    /// What must be locked.
    pub fn locks(&self) -> Vec<Bytes> {
        self.parts
            .iter()
            .filter_map(|part| match part {
                Part::Make { .. } => None,
                Part::Link { inode } | Part::Drop { inode, .. } | Part::Move { inode, .. } => {
                    Some(inode_key(self.fs, *inode))
                }
                Part::TakeName { dir, .. } | Part::PutName { dir, .. } => Some(inode_key(self.fs, *dir)),
                Part::Tree => Some(tree_key(self.fs)),
            })
            .collect()
    }

    /// What nobody may look at between the intent and the outcome. `made`: the number of what is made.
    pub fn hidden(&self, secret: &Secret, made: Option<InodeId>) -> Vec<Bytes> {
        let names = self.parts.iter().filter_map(|part| match part {
            Part::TakeName { dir, name, .. } | Part::PutName { dir, name, .. } => {
                Some(name_key(secret, self.fs, *dir, name))
            }
            _ => None,
        });
        let made = made.map(|inode| inode_key(self.fs, inode));
        self.locks().into_iter().chain(names).chain(made).collect()
    }

    /// Whether there will be an inode more.
    pub fn make(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Make { .. }))
    }

    pub fn takes_tree(&self) -> bool {
        self.parts.contains(&Part::Tree)
    }
}

/// Stands for a name, whether it is there or not.
pub fn name_key(secret: &Secret, fs: FsId, dir: InodeId, name: &[u8]) -> Bytes {
    crate::inode::dentry_key(fs, dir, dentries::first_cookie(secret, dir, name))
}

/// Inodes that parts work on, loaded once each.
#[derive(Default)]
struct Inodes(BTreeMap<InodeId, Inode>);

impl Inodes {
    async fn get(&mut self, namespace: &Namespace, fs: FsId, number: InodeId) -> Result<&mut Inode, FsError> {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.0.entry(number) {
            vacant.insert(crate::inode::load(&namespace.bucket, fs, number).await?);
        }
        self.0.get_mut(&number).ok_or(errno::EIO)
    }

    /// A directory that has a name.
    async fn directory(&mut self, namespace: &Namespace, fs: FsId, dir: InodeId) -> Result<&mut Inode, FsError> {
        let inode = self.get(namespace, fs, dir).await?;
        match (inode.kind, inode.links) {
            (FileKind::Directory, 0) => Err(errno::ENOENT),
            (FileKind::Directory, _) => Ok(inode),
            _ => Err(errno::ENOTDIR),
        }
    }
}

/// An inode that a name meant a moment ago and that isn't there: the name will tell why.
fn changed(error: FsError) -> Veto {
    if error == errno::ESTALE { Veto::Changed } else { Veto::Error(error) }
}

impl Namespace {
    /// Works parts out under their locks. `made`: the number that an earlier working-out gave to what is made here.
    /// `found`: what another bucket makes or links.
    pub(crate) async fn work(
        self: &Rc<Self>,
        parts: &Parts,
        made: Option<InodeId>,
        found: Option<Attr>,
    ) -> Result<Worked, Veto> {
        let secret = self.map()?.secret;
        let call = Call { now_ns: parts.now_ns, ..self.own_call(parts.fs) };
        let mut inodes = Inodes::default();
        let mut worked = Worked { batch: Batch::new(), found, purges: Vec::new() };
        // A name that is put behind one that goes must stay reachable.
        let put: Vec<u64> = parts
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::PutName { dir, name, .. } => Some(dentries::first_cookie(&secret, *dir, name)),
                _ => None,
            })
            .collect();
        for part in &parts.parts {
            match part {
                Part::Make { position, born } => {
                    let number = made.unwrap_or_else(|| InodeId::new(*position, self.bucket.serial()));
                    worked.found = Some(born.inode.attr(number));
                    born.put_xattrs(&mut worked.batch, parts.fs, number);
                    inodes.0.insert(number, born.inode.clone());
                }
                Part::Link { inode: number } => {
                    let gone = |error| if error == errno::ESTALE { errno::ENOENT } else { error };
                    let inode = inodes.get(self, parts.fs, *number).await.map_err(gone)?;
                    if inode.kind == FileKind::Directory {
                        return Err(errno::EPERM.into());
                    }
                    if inode.links >= LINKS_MAX {
                        return Err(errno::EMLINK.into());
                    }
                    if inode.links == 0 {
                        if !inode.linkable || !self.may_be_open(parts.fs, *number) {
                            return Err(errno::ENOENT.into());
                        }
                        if !inode.cutting {
                            worked.batch.delete(orphan_key(parts.fs, *number));
                        }
                    }
                    inode.links += 1;
                    inode.linkable = false;
                    inode.ctime_ns = parts.now_ns;
                    worked.found = Some(inode.attr(*number));
                }
                Part::Drop { inode: number, directory } => {
                    let inode = inodes.get(self, parts.fs, *number).await.map_err(changed)?;
                    match (*directory, inode.kind == FileKind::Directory) {
                        (true, false) => return Err(errno::ENOTDIR.into()),
                        (false, true) => return Err(errno::EISDIR.into()),
                        (true, true) if inode.entries > 0 => return Err(errno::ENOTEMPTY.into()),
                        _ => {}
                    }
                    if let Some(inode) = inodes.0.remove(number)
                        && self.drop_link(&call, &mut worked.batch, *number, inode)
                    {
                        worked.purges.push(*number);
                    }
                }
                Part::Move { inode: number, parent } => {
                    let inode = inodes.get(self, parts.fs, *number).await.map_err(changed)?;
                    inode.ctime_ns = parts.now_ns;
                    if let (FileKind::Directory, Some(parent)) = (inode.kind, parent) {
                        inode.parent = *parent;
                    }
                }
                Part::TakeName { dir, name, expected } => {
                    let parent = inodes.directory(self, parts.fs, *dir).await?;
                    parent.entries = parent.entries.saturating_sub(1);
                    relink(parent, Some(*expected), None)?;
                    stamp(parent, parts.now_ns);
                    let there = dentries::find(&self.bucket, &secret, parts.fs, *dir, name).await?;
                    if meaning(&there) != Some(*expected) {
                        return Err(Veto::Changed);
                    }
                    let keeps_place = put.contains(&dentries::first_cookie(&secret, *dir, name));
                    dentries::remove(&self.bucket, &mut worked.batch, parts.fs, *dir, &there, keeps_place).await?;
                }
                Part::PutName { dir, name, expected, entry, inherited } => {
                    let entry = match (entry, &worked.found) {
                        (Some(entry), _) => *entry,
                        (None, Some(found)) => Entry { inode: found.inode, kind: found.kind },
                        // Not made yet: checked now, worked out again with the number.
                        (None, None) => Entry { inode: InodeId(0), kind: FileKind::File },
                    };
                    let parent = inodes.directory(self, parts.fs, *dir).await?;
                    if let Some(inherited) = inherited
                        && *inherited != self.inherited(parts.fs, *dir, parent).await?
                    {
                        return Err(Veto::Changed);
                    }
                    let there = dentries::find(&self.bucket, &secret, parts.fs, *dir, name).await?;
                    if meaning(&there) != *expected {
                        return Err(Veto::Changed);
                    }
                    parent.entries += u64::from(expected.is_none());
                    relink(parent, *expected, Some(entry))?;
                    stamp(parent, parts.now_ns);
                    let dentry = Dentry { name: name.clone(), inode: entry.inode, kind: entry.kind };
                    dentries::put(&mut worked.batch, parts.fs, *dir, there.cookie, &dentry);
                }
                Part::Tree => {}
            }
        }
        for (number, inode) in &inodes.0 {
            worked.batch.put(inode_key(parts.fs, *number), weft_wire::encode(inode));
        }
        Ok(worked)
    }
}

pub fn meaning(found: &dentries::Found) -> Option<Entry> {
    found.dentry.as_ref().map(|dentry| Entry { inode: dentry.inode, kind: dentry.kind })
}

/// A directory counts the directories in it.
fn relink(parent: &mut Inode, before: Option<Entry>, after: Option<Entry>) -> Result<(), FsError> {
    let counts = |entry: Option<Entry>| entry.is_some_and(|entry| entry.kind == FileKind::Directory);
    match (counts(before), counts(after)) {
        (false, true) if parent.links >= LINKS_MAX => return Err(errno::EMLINK),
        (false, true) => parent.links += 1,
        (true, false) => parent.links = parent.links.saturating_sub(1),
        _ => {}
    }
    Ok(())
}

fn stamp(parent: &mut Inode, now_ns: i64) {
    parent.mtime_ns = now_ns;
    parent.ctime_ns = now_ns;
}
