//! A page that has grown splits: under its lock its entries are copied to two new pages by the next bit of their
//! hashes, then one transaction makes those begin and this one end. A page is small, so the lock is held for
//! milliseconds; reads go on meanwhile. What the page had is removed in the background.

use crate::inode::{Dentry, decode, dentry_cookie, dentry_key, page_key, page_of_key};
use crate::page::{Holder, Page, Records, Stage, lock_key};
use crate::part::{Inherited, PageChange, Part, Veto, Worked};
use crate::transaction::Plan;
use crate::{Namespace, errno};
use bytes::Bytes;
use std::rc::Rc;
use std::time::Duration;
use weft_bucket::{Batch, BucketError, KeyBuilder, Tag};
use weft_wire::FsId;
use weft_wire::bucket::{ParticipantOp, ParticipantReply};
use weft_wire::fs::{FileKind, FsError, FsReply};
use weft_wire::page::{PAGE_DEPTH_MAX, PageId};

/// Entries that are copied or removed at a time: with the longest names they fit a record.
const ENTRIES_PER_STEP: usize = 256;
/// How long a new page's leader may take for one step; those who want to change the page wait meanwhile.
const FILL_MAX: Duration = Duration::from_secs(2);
/// A page that could not split tries again after this, when it grows.
const SPLIT_AGAIN: Duration = Duration::from_secs(10);
/// What was copied to a page that didn't begin after this long is removed.
const FILLING_KEPT: Duration = Duration::from_secs(60);
/// A directory may have so many pages for each bucket (a power of two): more would spread nothing.
const PAGES_PER_BUCKET_BITS: u8 = 2;

impl Page {
    /// What stands for a directory's first page when it has split.
    pub fn split_root(now_ns: i64) -> Self {
        let inherited = Inherited { setgid: false, gid: 0, default_acl: None };
        let stage = Stage::Split { emptied: false };
        Self { stage, entries: 0, directories: 0, mtime_ns: now_ns, ctime_ns: now_ns, inherited }
    }
}

impl Holder<'_> {
    /// Its entries are elsewhere from now on.
    pub fn split(self) {
        match self {
            Self::Inode(inode) => {
                inode.split_since_ns = Some(0);
                inode.entries = 0;
                inode.links = 2;
            }
            Self::Page(page) => {
                page.stage = Stage::Split { emptied: false };
                page.entries = 0;
                page.directories = 0;
            }
        }
    }

    /// The beginning of a page that it splits into.
    fn child(&self, inherited: Inherited) -> Page {
        // The times of an inode stay with it; they may have been set to anything.
        let (mtime_ns, ctime_ns) = match self {
            Self::Inode(_) => (0, 0),
            Self::Page(page) => (page.mtime_ns, page.ctime_ns),
        };
        Page { stage: Stage::Here, entries: 0, directories: 0, mtime_ns, ctime_ns, inherited }
    }
}

impl Namespace {
    /// Begins to split a page in the background if it has more entries than it should.
    pub(crate) fn split_if_large(self: &Rc<Self>, fs: FsId, page: PageId, entries: u64) {
        if entries <= self.context.tunables.page_entries_max || page.depth >= self.page_depth_max() {
            return;
        }
        let now = self.bucket.handle().now();
        {
            let mut pages = self.pages.borrow_mut();
            let before = pages.splitting.get(&(fs, page));
            if before.is_some_and(|again| again.is_none_or(|again| again > now)) {
                return;
            }
            pages.splitting.retain(|_, again| again.is_none_or(|again| again > now));
            pages.splitting.insert((fs, page), None);
        }
        let namespace = Rc::clone(self);
        let splitting = async move {
            let done = namespace.split_page(fs, page).await;
            let mut pages = namespace.pages.borrow_mut();
            match done {
                Ok(()) => _ = pages.splitting.remove(&(fs, page)),
                Err(error) => {
                    tracing::debug!(?page, %error, "a directory's page splits later");
                    let again = namespace.bucket.handle().now() + SPLIT_AGAIN;
                    pages.splitting.insert((fs, page), Some(again));
                }
            }
        };
        self.bucket.handle().spawn("split a page", splitting).detach();
    }

    fn page_depth_max(&self) -> u8 {
        let bits = self.map().map_or(0, |map| map.bucket_bits + PAGES_PER_BUCKET_BITS);
        bits.min(PAGE_DEPTH_MAX)
    }

    async fn split_page(self: &Rc<Self>, fs: FsId, page: PageId) -> Result<(), FsError> {
        let key = lock_key(fs, page);
        let _guard = self.bucket.lock([key.clone()]).await;
        let mut records = Records::default();
        let holder = records.holder(self, fs, page).await?;
        if holder.entries() <= self.context.tunables.page_entries_max {
            return Ok(());
        }
        let attempt = self.bucket.handle().random_u64();
        let children = page.children();
        let inherited = self.inherited_by(fs, page, &holder).await?;
        let mut begun = [holder.child(inherited.clone()), holder.child(inherited)];
        self.copy(fs, page, attempt, &mut begun).await?;
        let mut plan = Plan { held: vec![key], ..Plan::default() };
        let call = self.own_call(fs);
        self.add_page_part(&call, &mut plan, page, Part::SplitPage { page })?;
        for (child, record) in children.into_iter().zip(begun) {
            self.add_page_part(&call, &mut plan, child, Part::BeginPage { page: child, attempt, record })?;
        }
        self.execute(&call, plan, |_| FsReply::Done).await?;
        Ok(())
    }

    /// Copies a page's entries to those that it splits into, and counts them.
    async fn copy(&self, fs: FsId, page: PageId, attempt: u64, begun: &mut [Page; 2]) -> Result<(), FsError> {
        let children = page.children();
        let mut first = [true; 2];
        let mut from = page.first_cookie();
        loop {
            let found = self.entries_from(fs, page, from).await?;
            let end = found.len() < ENTRIES_PER_STEP;
            if let Some((last, _)) = found.last() {
                from = last + 1;
            }
            for (side, child) in children.into_iter().enumerate() {
                let part: Vec<&(u64, Bytes)> = found
                    .iter()
                    .filter(|(cookie, _)| (child.first_cookie()..=child.last_cookie()).contains(cookie))
                    .collect();
                for (_, value) in &part {
                    let dentry: Dentry = decode(value)?;
                    let counts = !dentry.name.is_empty();
                    begun[side].entries += u64::from(counts);
                    begun[side].directories += u32::from(counts && dentry.kind == FileKind::Directory);
                }
                if !part.is_empty() || (first[side] && end) {
                    self.send(fs, child, attempt, first[side], weft_wire::encode(&part)).await?;
                    first[side] = false;
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    /// Some entries of a page, as they are in the index.
    async fn entries_from(&self, fs: FsId, page: PageId, cookie: u64) -> Result<Vec<(u64, Bytes)>, FsError> {
        let (from, to) = (dentry_key(fs, page, cookie), dentry_key(fs, page, page.last_cookie() + 1));
        let found = self.bucket.scan(&from, &to, ENTRIES_PER_STEP).await.map_err(errno::of_bucket)?;
        Ok(found.into_iter().filter_map(|(key, value)| Some((dentry_cookie(&key)?, value))).collect())
    }

    async fn send(&self, fs: FsId, page: PageId, attempt: u64, first: bool, entries: Bytes) -> Result<(), FsError> {
        let map = self.map()?;
        let bucket = map.bucket_of(page.position(&map.secret, fs));
        let asked = self.ask_once(bucket, ParticipantOp::Fill { fs, page, attempt, first }, entries);
        match self.bucket.handle().timeout(FILL_MAX, asked).await {
            Ok(Ok(ParticipantReply::Done)) => Ok(()),
            Ok(Ok(_)) => Err(errno::EIO),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(FsError::NotReady(format!("{bucket} takes no entries"))),
        }
    }

    /// Takes entries for a page that is to begin here.
    pub(crate) async fn fill(
        self: &Rc<Self>,
        fs: FsId,
        page: PageId,
        attempt: u64,
        first: bool,
        body: &[u8],
    ) -> Result<(), FsError> {
        let entries: Vec<(u64, Bytes)> = weft_wire::decode(body).map_err(|_| errno::EINVAL)?;
        let range = page.depth.checked_sub(1).filter(|above| *above < PAGE_DEPTH_MAX);
        let range = range.map(|_| page.first_cookie()..=page.last_cookie()).ok_or(errno::EINVAL)?;
        if entries.iter().any(|(cookie, _)| !range.contains(cookie)) {
            return Err(errno::EINVAL);
        }
        let key = page_key(fs, page);
        let _guard = self.bucket.lock([key.clone()]).await;
        let stage = self.page_record(fs, page).await?.map(|record| record.stage);
        let begins = match (stage, first) {
            (None | Some(Stage::Filling { .. }), true) => true,
            (Some(Stage::Filling { attempt: current }), false) if current == attempt => false,
            // A late word of an attempt that is over.
            _ => return Err(errno::EAGAIN),
        };
        self.room_for(body.len())?;
        if begins {
            // Before anything of an earlier attempt is removed: that can't begin any more.
            let record = Page { stage: Stage::Filling { attempt }, ..Page::split_root(0) };
            let mut batch = Batch::new();
            batch.put(key, weft_wire::encode(&record));
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
            self.give_up_later(fs, page, attempt);
            self.remove_entries(fs, page).await?;
        }
        let mut batch = Batch::new();
        for (cookie, value) in entries {
            batch.put(dentry_key(fs, page, cookie), value);
        }
        if !batch.is_empty() {
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        }
        Ok(())
    }

    /// Removes what was copied to a page unless it begins in time.
    fn give_up_later(self: &Rc<Self>, fs: FsId, page: PageId, attempt: u64) {
        let (weak, handle) = (Rc::downgrade(self), self.bucket.handle().clone());
        let sleeper = handle.clone();
        let give_up = async move {
            sleeper.sleep(FILLING_KEPT).await;
            if let Some(namespace) = weak.upgrade() {
                namespace.tidy(fs, page, Some(attempt)).await;
            }
        };
        handle.spawn("give up a page", give_up).detach();
    }

    /// Removes the entries of a page that has split or is gone, or that never began (`attempt`: in this attempt).
    async fn tidy(&self, fs: FsId, page: PageId, attempt: Option<u64>) {
        self.until_done("what a page had", || self.try_tidy(fs, page, attempt)).await;
    }

    async fn try_tidy(&self, fs: FsId, page: PageId, attempt: Option<u64>) -> Result<(), FsError> {
        let key = page_key(fs, page);
        // What is removed without a lock is removed by one task alone: then a new attempt may begin.
        let ends = |stage: Stage| match (stage, attempt) {
            (Stage::Filling { attempt: current }, Some(attempt)) => attempt == current,
            (Stage::Filling { .. } | Stage::Split { emptied: false } | Stage::Gone, None) => true,
            _ => false,
        };
        {
            let _guard = self.bucket.lock([lock_key(fs, page)]).await;
            let Some(record) = self.page_record(fs, page).await?.filter(|record| ends(record.stage)) else {
                return Ok(());
            };
            if matches!(record.stage, Stage::Filling { .. }) {
                // Before anything is removed: a new page with less than was copied to it must not begin.
                let mut batch = Batch::new();
                batch.put(key.clone(), weft_wire::encode(&Page { stage: Stage::Gone, ..record }));
                self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
            }
        }
        // Nobody uses them any more: no need to keep anyone waiting.
        self.remove_entries(fs, page).await?;
        let _guard = self.bucket.lock([lock_key(fs, page)]).await;
        let Some(record) = self.page_record(fs, page).await? else { return Ok(()) };
        let gone = record.stage == Stage::Gone;
        let mut batch = Batch::new();
        if gone {
            batch.delete(key);
        } else {
            batch.put(key, weft_wire::encode(&Page { stage: Stage::Split { emptied: true }, ..record }));
        }
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        if gone {
            self.pages.borrow_mut().note_gone(fs, page);
        }
        Ok(())
    }

    async fn remove_entries(&self, fs: FsId, page: PageId) -> Result<(), FsError> {
        loop {
            let found = self.entries_from(fs, page, page.first_cookie()).await?;
            if found.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            found.iter().for_each(|(cookie, _)| _ = batch.delete(dentry_key(fs, page, *cookie)));
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        }
    }

    fn tidy_later(self: &Rc<Self>, fs: FsId, page: PageId) {
        let namespace = Rc::clone(self);
        let tidy = async move { namespace.tidy(fs, page, None).await };
        self.bucket.handle().spawn("tidy a page", tidy).detach();
    }

    /// Puts the end of a page into what a removal does.
    pub(crate) async fn drop_page(&self, fs: FsId, page: PageId, split: bool, worked: &mut Worked) -> Result<(), Veto> {
        let record = self.page_record(fs, page).await?.ok_or(Veto::Changed)?;
        match (record.stage, split) {
            (Stage::Here, false) if record.entries > 0 => return Err(errno::ENOTEMPTY.into()),
            (Stage::Here, false) | (Stage::Split { .. }, true) => {}
            _ => return Err(Veto::Changed),
        }
        let gone = Page { stage: Stage::Gone, ..record };
        worked.batch.put(page_key(fs, page), weft_wire::encode(&gone));
        worked.pages.push(PageChange::Gone(page));
        Ok(())
    }

    /// Changes of pages were committed.
    pub(crate) fn pages_changed(self: &Rc<Self>, fs: FsId, changes: Vec<PageChange>) {
        for change in changes {
            match change {
                PageChange::Grown(page, entries) => self.split_if_large(fs, page, entries),
                PageChange::Split(page) => {
                    {
                        let mut pages = self.pages.borrow_mut();
                        pages.note_split(fs, page);
                        pages.splits += 1;
                    }
                    self.tidy_later(fs, page);
                }
                PageChange::Gone(page) => self.tidy_later(fs, page),
            }
        }
    }

    /// Takes up what the former leader left: which pages have split, and what is still to be removed.
    pub(crate) async fn load_pages(self: &Rc<Self>) -> Result<(), BucketError> {
        let map = self.map().map_err(|error| BucketError::NotReady(error.to_string()))?;
        for fs in map.filesystems.keys().copied() {
            for (key, value) in self.bucket.scan_prefix(&KeyBuilder::new(fs, Tag::Page).build(), usize::MAX).await? {
                let record = weft_wire::decode::<Page>(&value).ok();
                let (Some(page), Some(record)) = (page_of_key(&key), record) else {
                    return Err(BucketError::Corrupt("the record of a page".into()));
                };
                match record.stage {
                    Stage::Here => {}
                    Stage::Split { emptied: true } => self.pages.borrow_mut().note_split(fs, page),
                    Stage::Split { emptied: false } | Stage::Gone => {
                        self.pages.borrow_mut().note_split(fs, page);
                        self.tidy_later(fs, page);
                    }
                    Stage::Filling { .. } => self.tidy_later(fs, page),
                }
            }
        }
        Ok(())
    }

    /// How many pages of directories have split under this leader.
    pub fn page_splits(&self) -> u64 {
        self.pages.borrow().splits
    }
}
