//! What an operation on names does in one bucket. An operation is planned as parts of as many buckets as it needs; when
//! all are in one bucket, they become one record, otherwise a transaction.
//!
//! A part is checked and worked out under its locks. Worked out again, under the same locks, it comes to the same: so a
//! participant journals the parts alone, and works them out again when they are decided.

use crate::acl::Born;
use crate::inode::{Dentry, Inode, inode_key, orphan_key, page_key};
use crate::page::{Page, Records, Stage, life_key, lock_key};
use crate::{Call, Namespace, dentries, errno};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use weft_bucket::{Batch, KeyBuilder, Tag};
use weft_wire::fs::{Attr, FileKind, FsError};
use weft_wire::hash::Secret;
use weft_wire::limits::LINKS_MAX;
use weft_wire::page::PageId;
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
    /// One name less; the last takes the inode with it. A directory must be empty. `paged`: if it has several pages,
    /// the operation drops them too.
    Drop { inode: InodeId, directory: bool, paged: bool },
    /// It was renamed. `parent`: the directory's new parent.
    Move { inode: InodeId, parent: Option<InodeId> },
    /// A name that means `expected` goes.
    TakeName { page: PageId, name: Bytes, expected: Entry },
    /// A name that means `expected` now comes to mean `entry`; without one, what the operation makes or links.
    PutName { page: PageId, name: Bytes, expected: Option<Entry>, entry: Option<Entry>, inherited: Option<Inherited> },
    /// No other directory of the filesystem moves to another parent meanwhile.
    Tree,
    /// The page has been copied to those that it splits into.
    SplitPage { page: PageId },
    /// A page that was filled by this attempt begins to be one.
    BeginPage { page: PageId, attempt: u64, record: Page },
    /// A page of a directory that goes: one that has split, or an empty one.
    DropPage { page: PageId, split: bool },
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
    /// The directory that is to go has several pages: they must be dropped with it.
    Paged,
    /// A bucket can't be reached; nothing was done.
    Away(String),
    Error(FsError),
}

impl From<Veto> for FsError {
    fn from(veto: Veto) -> Self {
        match veto {
            Veto::Changed | Veto::Paged => Self::NotReady("others change the same names all the time".into()),
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
    /// What becomes of pages.
    pub pages: Vec<PageChange>,
}

/// What this leader does when a change of pages is committed.
#[derive(Clone, Copy, Debug)]
pub enum PageChange {
    /// It has entries, so many now.
    Grown(PageId, u64),
    /// It has split, and what it had is to be removed.
    Split(PageId),
    /// It is no more.
    Gone(PageId),
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
                Part::TakeName { page, .. }
                | Part::PutName { page, .. }
                | Part::SplitPage { page }
                | Part::BeginPage { page, .. }
                | Part::DropPage { page, .. } => Some(lock_key(self.fs, *page)),
                Part::Tree => Some(tree_key(self.fs)),
            })
            .collect()
    }

    /// What must be locked beside what is.
    pub fn locks_but(&self, held: &[Bytes]) -> Vec<Bytes> {
        self.locks().into_iter().filter(|key| !held.contains(key)).collect()
    }

    /// What nobody may look at between the intent and the outcome. `made`: the number of what is made.
    pub fn hidden(&self, secret: &Secret, made: Option<InodeId>) -> Vec<Bytes> {
        let names = self.parts.iter().filter_map(|part| match part {
            Part::TakeName { page, name, .. } | Part::PutName { page, name, .. } => {
                Some(name_key(secret, self.fs, *page, name))
            }
            Part::BeginPage { page, .. } | Part::DropPage { page, .. } => Some(life_key(self.fs, *page)),
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
pub fn name_key(secret: &Secret, fs: FsId, page: PageId, name: &[u8]) -> Bytes {
    crate::inode::dentry_key(fs, page, dentries::first_cookie(secret, page.dir, name))
}

/// A page that was here a moment ago and isn't.
fn page_changed(error: FsError) -> Veto {
    if matches!(error, FsError::Moved { .. } | FsError::NoPage) { Veto::Changed } else { Veto::Error(error) }
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
        let mut records = Records::default();
        let mut worked = Worked { batch: Batch::new(), found, purges: Vec::new(), pages: Vec::new() };
        // A name that is put behind one that goes must stay reachable.
        let put: Vec<u64> = parts
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::PutName { page, name, .. } => Some(dentries::first_cookie(&secret, page.dir, name)),
                _ => None,
            })
            .collect();
        for part in &parts.parts {
            match part {
                Part::Make { position, born } => {
                    let number = made.unwrap_or_else(|| InodeId::new(*position, self.bucket.serial()));
                    worked.found = Some(born.inode.attr(number));
                    born.put_xattrs(&mut worked.batch, parts.fs, number);
                    records.inodes.insert(number, born.inode.clone());
                }
                Part::Link { inode: number } => {
                    let gone = |error| if error == errno::ESTALE { errno::ENOENT } else { error };
                    let inode = records.inode(self, parts.fs, *number).await.map_err(gone)?;
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
                Part::Drop { inode: number, directory, paged } => {
                    let inode = records.inode(self, parts.fs, *number).await.map_err(changed)?;
                    match (*directory, inode.kind == FileKind::Directory) {
                        (true, false) => return Err(errno::ENOTDIR.into()),
                        (false, true) => return Err(errno::EISDIR.into()),
                        (true, true) if inode.entries > 0 => return Err(errno::ENOTEMPTY.into()),
                        (true, true) if inode.is_split() && !paged => return Err(Veto::Paged),
                        (true, true) if inode.is_split() => {
                            self.drop_page(parts.fs, PageId::root(*number), true, &mut worked).await?;
                        }
                        _ => {}
                    }
                    if let Some(inode) =
                        records.inodes.remove(number).map(|inode| Inode { split_since_ns: None, ..inode })
                        && self.drop_link(&call, &mut worked.batch, *number, inode)
                    {
                        worked.purges.push(*number);
                    }
                }
                Part::Move { inode: number, parent } => {
                    let inode = records.inode(self, parts.fs, *number).await.map_err(changed)?;
                    inode.ctime_ns = parts.now_ns;
                    if let (FileKind::Directory, Some(parent)) = (inode.kind, parent) {
                        inode.parent = *parent;
                    }
                }
                Part::TakeName { page, name, expected } => {
                    let mut parent = records.holder(self, parts.fs, *page).await.map_err(page_changed)?;
                    parent.count(Some(*expected), None, parts.now_ns)?;
                    let there = dentries::find(&self.bucket, &secret, parts.fs, *page, name).await?;
                    if meaning(&there) != Some(*expected) {
                        return Err(Veto::Changed);
                    }
                    let keeps_place = put.contains(&dentries::first_cookie(&secret, page.dir, name));
                    dentries::remove(&self.bucket, &mut worked.batch, parts.fs, *page, &there, keeps_place).await?;
                }
                Part::PutName { page, name, expected, entry, inherited } => {
                    let entry = match (entry, &worked.found) {
                        (Some(entry), _) => *entry,
                        (None, Some(found)) => Entry { inode: found.inode, kind: found.kind },
                        // Not made yet: checked now, worked out again with the number.
                        (None, None) => Entry { inode: InodeId(0), kind: FileKind::File },
                    };
                    let mut parent = records.holder(self, parts.fs, *page).await.map_err(page_changed)?;
                    if let Some(inherited) = inherited
                        && *inherited != self.inherited_by(parts.fs, *page, &parent).await?
                    {
                        return Err(Veto::Changed);
                    }
                    let there = dentries::find(&self.bucket, &secret, parts.fs, *page, name).await?;
                    if meaning(&there) != *expected {
                        return Err(Veto::Changed);
                    }
                    parent.count(*expected, Some(entry), parts.now_ns)?;
                    worked.pages.push(PageChange::Grown(*page, parent.entries()));
                    let dentry = Dentry { name: name.clone(), inode: entry.inode, kind: entry.kind };
                    dentries::put(&mut worked.batch, parts.fs, *page, there.cookie, &dentry);
                }
                Part::SplitPage { page } => {
                    records.holder(self, parts.fs, *page).await.map_err(page_changed)?.split();
                    if page.is_root() {
                        let record = Page::split_root(parts.now_ns);
                        worked.batch.put(page_key(parts.fs, *page), weft_wire::encode(&record));
                    }
                    worked.pages.push(PageChange::Split(*page));
                }
                Part::BeginPage { page, attempt, record } => {
                    let filled = self.page_record(parts.fs, *page).await?.map(|record| record.stage);
                    if filled != Some(Stage::Filling { attempt: *attempt }) {
                        return Err(Veto::Changed);
                    }
                    worked.batch.put(page_key(parts.fs, *page), weft_wire::encode(record));
                }
                Part::DropPage { page, split } => self.drop_page(parts.fs, *page, *split, &mut worked).await?,
                Part::Tree => {}
            }
        }
        records.put(&mut worked.batch, parts.fs);
        Ok(worked)
    }
}

pub fn meaning(found: &dentries::Found) -> Option<Entry> {
    found.dentry.as_ref().map(|dentry| Entry { inode: dentry.inode, kind: dentry.kind })
}
