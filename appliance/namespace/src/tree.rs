//! All pages of a directory together: what stat shows, what rmdir removes, who learns of a new group.

use crate::inode::{Inode, directory_blocks, inode_key, page_key};
use crate::page::Stage;
use crate::part::{Entry, Inherited, Part};
use crate::transaction::Plan;
use crate::{Call, Namespace, WAIT_MAX, errno};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use weft_bucket::Batch;
use weft_reactor::join_all;
use weft_wire::bucket::{PageState, ParticipantOp, ParticipantReply};
use weft_wire::fs::{Attr, FileKind, FsError};
use weft_wire::hash::Secret;
use weft_wire::limits::BLOCK_BYTES;
use weft_wire::page::{KnownPages, PageId};
use weft_wire::{BucketId, FsId, InodeId};

/// How often pages that have split, or are gone, are asked for again.
pub const PAGES_ASKED_MAX: usize = 64;

impl Namespace {
    /// Where a name of a directory is, as far as this leader knows.
    pub(crate) fn known_page(&self, fs: FsId, dir: InodeId, secret: &Secret, name: &[u8]) -> PageId {
        let pages = self.pages.borrow();
        pages.known.get(&fs).map_or(PageId::root(dir), |known| known.of_name(secret, dir, name))
    }

    pub(crate) fn learn_pages(&self, fs: FsId, learn: impl FnOnce(&mut KnownPages)) {
        learn(self.pages.borrow_mut().known.entry(fs).or_default());
    }

    /// What a page of this bucket has to say.
    pub(crate) async fn page_state(&self, fs: FsId, page: PageId) -> Result<PageState, FsError> {
        if page.is_root() {
            self.seen(&inode_key(fs, page.dir)).await?;
            return match crate::inode::load(&self.bucket, fs, page.dir).await {
                Ok(inode) if inode.is_split() => Ok(PageState::Split),
                Ok(inode) => Ok(PageState::Here {
                    entries: inode.entries,
                    directories: inode.links.saturating_sub(2),
                    mtime_ns: inode.mtime_ns,
                    ctime_ns: inode.ctime_ns,
                }),
                Err(errno::ESTALE) => Ok(PageState::Absent),
                Err(error) => Err(error),
            };
        }
        self.seen(&page_key(fs, page)).await?;
        let record = self.page_record(fs, page).await?;
        Ok(match record.map(|record| (record.stage, record)) {
            Some((Stage::Here, record)) => PageState::Here {
                entries: record.entries,
                directories: record.directories,
                mtime_ns: record.mtime_ns,
                ctime_ns: record.ctime_ns,
            },
            Some((Stage::Split { .. }, _)) => PageState::Split,
            Some((Stage::Filling { .. } | Stage::Gone, _)) | None => PageState::Absent,
        })
    }

    /// All pages that have a directory's names now, with what they say.
    pub(crate) async fn leaves(&self, fs: FsId, dir: InodeId) -> Result<BTreeMap<PageId, PageState>, FsError> {
        let mut found: BTreeMap<PageId, PageState> = BTreeMap::new();
        for _ in 0..PAGES_ASKED_MAX {
            let map = self.map()?;
            let known = self.pages.borrow().known.get(&fs).map_or_else(|| vec![PageId::root(dir)], |all| all.all(dir));
            let known: BTreeSet<PageId> = known.into_iter().collect();
            found.retain(|page, _| known.contains(page));
            let mut asked: BTreeMap<BucketId, Vec<PageId>> = BTreeMap::new();
            for page in known.into_iter().filter(|page| !found.contains_key(page)) {
                asked.entry(map.bucket_of(page.position(&map.secret, fs))).or_default().push(page);
            }
            if asked.is_empty() {
                return Ok(found);
            }
            let answers = asked.into_iter().map(|(bucket, pages)| async move {
                let op = ParticipantOp::Pages { fs, pages: pages.clone() };
                match self.ask_once(bucket, op, Bytes::new()).await? {
                    ParticipantReply::Pages(states) if states.len() == pages.len() => Ok((pages, states)),
                    _ => Err(errno::EIO),
                }
            });
            for answer in join_all(answers).await {
                let (pages, states) = answer?;
                for (page, state) in pages.into_iter().zip(states) {
                    match state {
                        PageState::Here { .. } => _ = found.insert(page, state),
                        PageState::Split => self.learn_pages(fs, |known| known.split(page)),
                        PageState::Absent if page.is_root() => return Err(errno::ESTALE),
                        PageState::Absent => self.learn_pages(fs, |known| known.forget(dir)),
                    }
                }
            }
        }
        Err(FsError::NotReady(format!("the pages of {dir} are changing")))
    }

    /// Completes what the inode of a directory says with what its pages say. Answers when a page changed last.
    pub(crate) async fn combine(&self, fs: FsId, inode: &Inode, attr: &mut Attr) -> Result<i64, FsError> {
        let (mut entries_all, mut newest_ns) = (0, 0);
        attr.links = 2;
        for state in self.leaves(fs, attr.inode).await?.into_values() {
            let PageState::Here { entries, directories, mtime_ns, ctime_ns } = state else { continue };
            entries_all += entries;
            attr.links = attr.links.saturating_add(directories);
            attr.ctime_ns = attr.ctime_ns.max(ctime_ns);
            newest_ns = mtime_ns.max(newest_ns);
        }
        if inode.split_since_ns.is_some_and(|since_ns| newest_ns > since_ns) {
            attr.mtime_ns = newest_ns;
        }
        attr.blocks = directory_blocks(entries_all);
        attr.size_bytes = attr.blocks * BLOCK_BYTES as u64;
        Ok(newest_ns)
    }

    /// Adds what is to be done so that an inode has one name less. `ENOTEMPTY` is what its pages say now: the caller
    /// looks whether the name still means it.
    pub(crate) async fn add_drop(&self, call: &Call, plan: &mut Plan, target: Entry) -> Result<(), FsError> {
        let directory = target.kind == FileKind::Directory;
        let paged = plan.paged;
        if directory && paged {
            let mut split = BTreeSet::new();
            for (page, state) in self.leaves(call.fs, target.inode).await? {
                if matches!(state, PageState::Here { entries, .. } if entries > 0) {
                    return Err(errno::ENOTEMPTY);
                }
                if !page.is_root() {
                    self.add_page_part(call, plan, page, Part::DropPage { page, split: false })?;
                }
                split.extend(std::iter::successors(page.parent(), |page| page.parent()));
            }
            for page in split.into_iter().filter(|page| !page.is_root()) {
                self.add_page_part(call, plan, page, Part::DropPage { page, split: true })?;
            }
        }
        let drop = Part::Drop { inode: target.inode, directory, paged };
        self.add_part(call, plan, target.inode.position(), drop)
    }

    /// Tells all pages of a directory what is inherited from it. Told twice, it comes to the same.
    pub(crate) async fn tell_pages(&self, fs: FsId, dir: InodeId, inherited: &Inherited) -> Result<(), FsError> {
        let told_of = weft_wire::encode(inherited);
        let mut told = BTreeSet::new();
        for _ in 0..PAGES_ASKED_MAX {
            let todo: Vec<_> = self.leaves(fs, dir).await?.into_keys().filter(|page| !told.contains(page)).collect();
            if todo.is_empty() {
                return Ok(());
            }
            let map = self.map()?;
            for page in todo {
                let bucket = map.bucket_of(page.position(&map.secret, fs));
                match self.ask_once(bucket, ParticipantOp::Inherit { fs, page }, told_of.clone()).await {
                    Err(FsError::Moved { .. }) => self.learn_pages(fs, |known| known.split(page)),
                    Err(FsError::NoPage) => self.learn_pages(fs, |known| known.forget(dir)),
                    answer => {
                        answer?;
                        told.insert(page);
                    }
                }
            }
        }
        Err(FsError::NotReady(format!("the pages of {dir} are changing")))
    }

    pub(crate) async fn inherit(&self, fs: FsId, page: PageId, body: &[u8]) -> Result<(), FsError> {
        let inherited: Inherited = weft_wire::decode(body).map_err(|_| errno::EINVAL)?;
        let key = page_key(fs, page);
        // Whoever tells this holds the inode, and a removal that holds the page may wait for that.
        let lock = self.bucket.handle().timeout(WAIT_MAX, self.bucket.lock([key.clone()])).await;
        let _guard = lock.map_err(|_| FsError::NotReady(format!("a page of {} is busy", page.dir)))?;
        let mut record = self.page_here(fs, page).await?;
        if record.inherited != inherited {
            record.inherited = inherited;
            let mut batch = Batch::new();
            batch.put(key, weft_wire::encode(&record));
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        }
        Ok(())
    }
}
