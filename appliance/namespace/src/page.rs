//! Pages of directories: where the names are, and what is counted of them. The first page's record is the directory's
//! inode; pages that came by splitting have records of their own.

use crate::inode::{Inode, decode, inode_key, page_key};
use crate::part::{Entry, Inherited};
use crate::{Call, Namespace, dentries, errno};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use weft_bucket::Batch;
use weft_reactor::Instant;
use weft_wire::FsId;
use weft_wire::InodeId;
use weft_wire::fs::{FileKind, FsError};
use weft_wire::limits::LINKS_MAX;
use weft_wire::page::{KnownPages, PageId};

/// Where a page stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The page that splits is being copied to it, by this attempt. Nobody is told to look here yet.
    Filling {
        attempt: u64,
    },
    Here,
    /// It has split. `emptied`: nothing of its entries is left.
    Split {
        emptied: bool,
    },
    /// The directory is gone; entries that are left are being removed.
    Gone,
}

/// The record of a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub stage: Stage,
    pub entries: u64,
    /// How many of them are directories.
    pub directories: u32,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub inherited: Inherited,
}

/// What a leader knows of pages without looking.
#[derive(Default)]
pub struct Pages {
    /// Pages of this bucket that have split, or are gone while something of them is left.
    split: BTreeSet<(FsId, PageId)>,
    /// Pages of other buckets: hints.
    pub known: BTreeMap<FsId, KnownPages>,
    /// Pages that are splitting (`None`), or that could not a moment ago.
    pub splitting: BTreeMap<(FsId, PageId), Option<Instant>>,
    /// How many have split here.
    pub splits: u64,
}

impl Pages {
    pub fn note_split(&mut self, fs: FsId, page: PageId) {
        self.split.insert((fs, page));
    }

    pub fn note_gone(&mut self, fs: FsId, page: PageId) {
        self.split.remove(&(fs, page));
    }
}

/// The key that is locked for changes of a page.
pub fn lock_key(fs: FsId, page: PageId) -> Bytes {
    if page.is_root() { inode_key(fs, page.dir) } else { page_key(fs, page) }
}

/// Stands for whether there is a page, as [`lock_key`] does for what it says.
pub fn life_key(fs: FsId, page: PageId) -> Bytes {
    let mut key = page_key(fs, page).to_vec();
    key.push(0);
    key.into()
}

/// A page that is here, with its record.
pub enum Holder<'a> {
    Inode(&'a mut Inode),
    Page(&'a mut Page),
}

impl Holder<'_> {
    pub fn entries(&self) -> u64 {
        match self {
            Self::Inode(inode) => inode.entries,
            Self::Page(page) => page.entries,
        }
    }

    /// A name comes, goes, or comes to mean something else.
    pub fn count(&mut self, before: Option<Entry>, after: Option<Entry>, now_ns: i64) -> Result<(), FsError> {
        let is_directory = |entry: Option<Entry>| entry.is_some_and(|entry| entry.kind == FileKind::Directory);
        let (entries, directories) = match self {
            Self::Inode(inode) => (&mut inode.entries, &mut inode.links),
            Self::Page(page) => (&mut page.entries, &mut page.directories),
        };
        match (before.is_some(), after.is_some()) {
            (false, true) => *entries += 1,
            (true, false) => *entries = entries.saturating_sub(1),
            _ => {}
        }
        match (is_directory(before), is_directory(after)) {
            (false, true) if *directories >= LINKS_MAX => return Err(errno::EMLINK),
            (false, true) => *directories += 1,
            (true, false) => *directories = directories.saturating_sub(1),
            _ => {}
        }
        let (mtime_ns, ctime_ns) = match self {
            Self::Inode(inode) => (&mut inode.mtime_ns, &mut inode.ctime_ns),
            Self::Page(page) => (&mut page.mtime_ns, &mut page.ctime_ns),
        };
        *mtime_ns = now_ns;
        *ctime_ns = now_ns;
        Ok(())
    }
}

/// Records that an operation works on, loaded once each.
#[derive(Default)]
pub struct Records {
    pub inodes: BTreeMap<InodeId, Inode>,
    pages: BTreeMap<PageId, Page>,
}

impl Records {
    pub async fn inode(&mut self, namespace: &Namespace, fs: FsId, number: InodeId) -> Result<&mut Inode, FsError> {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.inodes.entry(number) {
            vacant.insert(crate::inode::load(&namespace.bucket, fs, number).await?);
        }
        self.inodes.get_mut(&number).ok_or(errno::EIO)
    }

    /// The page, which is locked. `Moved`, `NoPage`: it isn't here.
    pub async fn holder(&mut self, namespace: &Namespace, fs: FsId, page: PageId) -> Result<Holder<'_>, FsError> {
        if page.is_root() {
            let inode = self.inode(namespace, fs, page.dir).await?;
            return match (inode.kind, inode.links) {
                (FileKind::Directory, 0) => Err(errno::ENOENT),
                (FileKind::Directory, _) if inode.is_split() => Err(FsError::Moved { depth: 1 }),
                (FileKind::Directory, _) => Ok(Holder::Inode(inode)),
                _ => Err(errno::ENOTDIR),
            };
        }
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.pages.entry(page) {
            vacant.insert(namespace.page_here(fs, page).await?);
        }
        self.pages.get_mut(&page).map(Holder::Page).ok_or(errno::EIO)
    }

    pub fn put(&self, batch: &mut Batch, fs: FsId) {
        for (number, inode) in &self.inodes {
            batch.put(inode_key(fs, *number), weft_wire::encode(inode));
        }
        for (page, record) in &self.pages {
            batch.put(page_key(fs, *page), weft_wire::encode(record));
        }
    }
}

impl Namespace {
    /// The page of a name that a request asks this bucket for.
    pub(crate) fn page_of(&self, call: &Call, dir: InodeId, name: &[u8]) -> Result<PageId, FsError> {
        match call.depth {
            0 => Ok(PageId::root(dir)),
            depth => Ok(PageId::of_name(&self.map()?.secret, dir, name, depth)),
        }
    }

    pub(crate) async fn page_record(&self, fs: FsId, page: PageId) -> Result<Option<Page>, FsError> {
        let value = self.bucket.get(&page_key(fs, page)).await.map_err(errno::of_bucket)?;
        value.map(|value| decode(&value)).transpose()
    }

    /// The record of a page that is not the first.
    pub(crate) async fn page_here(&self, fs: FsId, page: PageId) -> Result<Page, FsError> {
        let record = self.page_record(fs, page).await?;
        match record.as_ref().map(|record| record.stage) {
            Some(Stage::Here) => record.ok_or(FsError::NoPage),
            Some(Stage::Split { .. }) => Err(FsError::Moved { depth: page.depth + 1 }),
            Some(Stage::Filling { .. } | Stage::Gone) | None => Err(FsError::NoPage),
        }
    }

    /// `Moved` if the page has split. What was read of its entries before counts only if this says nothing.
    pub(crate) async fn still_here(&self, fs: FsId, page: PageId) -> Result<(), FsError> {
        if !self.pages.borrow().split.contains(&(fs, page)) {
            return Ok(());
        }
        if page.is_root() {
            // While a directory goes, all of its pages do: whoever is sent on would find none.
            self.seen(&inode_key(fs, page.dir)).await?;
            if crate::inode::load(&self.bucket, fs, page.dir).await?.links == 0 {
                return Err(errno::ENOENT);
            }
        }
        Err(FsError::Moved { depth: page.depth + 1 })
    }

    /// A page that is not the first is here, and not about to become so or to go.
    pub(crate) async fn check_page(&self, fs: FsId, page: PageId) -> Result<(), FsError> {
        self.seen(&life_key(fs, page)).await?;
        self.page_here(fs, page).await.map(drop)
    }

    /// What is made in this page takes over.
    pub(crate) async fn inherited_by(&self, fs: FsId, page: PageId, holder: &Holder<'_>) -> Result<Inherited, FsError> {
        match holder {
            Holder::Inode(inode) => self.inherited(fs, page.dir, inode).await,
            Holder::Page(record) => Ok(record.inherited.clone()),
        }
    }

    /// What a name means by this page, and where it is or would be. An error if there is no such directory.
    pub(crate) async fn find_name(&self, call: &Call, page: PageId, name: &[u8]) -> Result<dentries::Found, FsError> {
        let secret = self.map()?.secret;
        if !page.is_root() {
            self.check_page(call.fs, page).await?;
        }
        let found = dentries::find(&self.bucket, &secret, call.fs, page, name).await?;
        if page.is_root() && found.dentry.is_none() {
            self.directory(call, page.dir).await?;
        }
        self.still_here(call.fs, page).await?;
        Ok(found)
    }
}
