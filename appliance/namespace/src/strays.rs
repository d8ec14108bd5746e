//! Blocks behind slab 0 whose writer dies before the size passes over them belong to a file that doesn't know of them. As
//! long as it is there, `beyond` sees to it that nobody sees them. But when it goes, and was never larger than slab 0,
//! nobody would remove them: asking all buckets at each removal of a small file costs too much.
//!
//! So a bucket that gets its first block of a file journals, with the block, a mark that it may be a stray. Now and then it
//! asks the inodes' leaders about all that are marked. A file that is larger than slab 0 needs no mark: whenever that
//! changes, or it goes, all buckets cut it. What is left of one that is gone is removed. The others stay marked.

use crate::inode::{cut_key, dentry_cookie, object, stray_key};
use crate::{Namespace, errno};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Weak;
use std::time::Duration;
use weft_bucket::{Batch, KeyBuilder, Tag};
use weft_reactor::sync::Notify;
use weft_wire::bucket::{ParticipantOp, ParticipantReply, Reach};
use weft_wire::fs::FsError;
use weft_wire::limits::{REACH_INODES_MAX, SLAB_BLOCKS, SLAB_BYTES};
use weft_wire::{BucketId, FsId, InodeId};

/// How often leaders are asked: most writers are through by then.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Files of which it is remembered that their blocks here are marked, or need no mark. Others are looked up.
const KNOWN_MAX: usize = 4096;

#[derive(Default)]
pub struct Strays {
    known: BTreeSet<(FsId, InodeId)>,
    /// There is no mark in the index.
    none: bool,
    marked: Notify,
}

impl Namespace {
    /// Puts a mark into a batch that writes blocks behind slab 0, if it needs one. The slab is locked for writing.
    pub(crate) async fn mark_stray(&self, fs: FsId, number: InodeId, batch: &mut Batch) -> Result<(), FsError> {
        if self.strays.borrow().known.contains(&(fs, number)) {
            return Ok(());
        }
        let found = self.bucket.seek(object(fs, number), SLAB_BLOCKS, u64::MAX, false).await;
        if found.map_err(errno::of_bucket)?.is_none() {
            self.put_mark(fs, number, batch);
        }
        Ok(())
    }

    /// The batch is committed.
    pub(crate) fn is_marked(&self, fs: FsId, number: InodeId) {
        let mut strays = self.strays.borrow_mut();
        if strays.known.len() >= KNOWN_MAX {
            strays.known.pop_first();
        }
        strays.known.insert((fs, number));
    }

    /// All blocks behind slab 0 are about to be cut: who was just told that the file is large must not take that for the
    /// blocks that come after. The cut is locked.
    pub(crate) async fn cut_strays(&self, fs: FsId, number: InodeId, batch: &mut Batch) -> Result<(), FsError> {
        self.strays.borrow_mut().known.remove(&(fs, number));
        if self.bucket.get(&stray_key(fs, number)).await.map_err(errno::of_bucket)?.is_some() {
            self.put_mark(fs, number, batch);
        }
        Ok(())
    }

    /// No two marks are equal.
    fn put_mark(&self, fs: FsId, number: InodeId, batch: &mut Batch) {
        let mark = (self.bucket.epoch(), self.bucket.serial());
        batch.put(stray_key(fs, number), weft_wire::encode(&mark));
        let mut strays = self.strays.borrow_mut();
        strays.none = false;
        strays.marked.notify_one();
    }

    /// How far files that are here reach.
    pub(crate) async fn reach(&self, fs: FsId, numbers: Vec<InodeId>) -> Result<Vec<Reach>, FsError> {
        if numbers.len() > REACH_INODES_MAX {
            return Err(errno::EINVAL);
        }
        let mut reaches = Vec::with_capacity(numbers.len());
        for number in numbers {
            self.seen(&crate::inode::inode_key(fs, number)).await?;
            reaches.push(match crate::inode::load(&self.bucket, fs, number).await {
                Ok(inode) if inode.size > SLAB_BYTES && !inode.cutting => Reach::Large,
                Ok(_) => Reach::Small,
                Err(errno::ESTALE) => Reach::Gone,
                Err(error) => return Err(error),
            });
        }
        Ok(reaches)
    }

    /// Asks about all that is marked in a filesystem. Whether marks are left.
    async fn ask_about_strays(&self, fs: FsId) -> Result<bool, FsError> {
        let prefix = KeyBuilder::new(fs, Tag::Stray).build();
        let end = stray_key(fs, InodeId(u64::MAX));
        let (mut from, mut left) = (prefix, false);
        loop {
            let found = self.bucket.scan(&from, &end, REACH_INODES_MAX).await.map_err(errno::of_bucket)?;
            let Some((last, _)) = found.last() else { return Ok(left) };
            from = [last.as_ref(), &[0]].concat().into();
            let map = self.map()?;
            let mut by_bucket: BTreeMap<BucketId, Vec<(InodeId, Bytes)>> = BTreeMap::new();
            for (key, mark) in found {
                let Some(number) = dentry_cookie(&key).map(InodeId) else { continue };
                by_bucket.entry(map.bucket_of(number.position())).or_default().push((number, mark));
            }
            for (bucket, marked) in by_bucket {
                let op = ParticipantOp::Reach { fs, inodes: marked.iter().map(|(number, _)| *number).collect() };
                let reaches = match self.ask_once(bucket, op, Bytes::new()).await {
                    Ok(ParticipantReply::Reached(reaches)) if reaches.len() == marked.len() => reaches,
                    // The next time, then.
                    Ok(_) | Err(_) => {
                        left = true;
                        continue;
                    }
                };
                for ((number, mark), reach) in marked.into_iter().zip(reaches) {
                    match reach {
                        Reach::Small => left = true,
                        Reach::Large => left |= !self.unmark(fs, number, &mark).await?,
                        Reach::Gone => self.remove_strays(fs, number).await?,
                    }
                }
            }
        }
    }

    /// False: it was cut since.
    async fn unmark(&self, fs: FsId, number: InodeId, mark: &Bytes) -> Result<bool, FsError> {
        let key = stray_key(fs, number);
        let _cut = self.bucket.lock([cut_key(fs, number)]).await;
        if self.bucket.get(&key).await.map_err(errno::of_bucket)?.as_ref() != Some(mark) {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.delete(key);
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        Ok(true)
    }

    async fn remove_strays(&self, fs: FsId, number: InodeId) -> Result<(), FsError> {
        let _cut = self.bucket.lock([cut_key(fs, number)]).await;
        self.strays.borrow_mut().known.remove(&(fs, number));
        self.remove_blocks(fs, number, SLAB_BLOCKS).await.map_err(errno::of_bucket)?;
        let mut batch = Batch::new();
        batch.delete(stray_key(fs, number));
        self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        Ok(())
    }

    async fn look_after_strays(&self) -> Result<(), FsError> {
        self.strays.borrow_mut().none = true;
        let filesystems: Vec<FsId> = self.map()?.filesystems.keys().copied().collect();
        for fs in filesystems {
            match self.ask_about_strays(fs).await {
                Ok(false) => {}
                left => {
                    self.strays.borrow_mut().none = false;
                    left?;
                }
            }
        }
        Ok(())
    }
}

/// Looks after strays for as long as the namespace lives.
pub(crate) async fn look_after(namespace: Weak<Namespace>) {
    loop {
        let Some(alive) = namespace.upgrade() else { return };
        let handle = alive.bucket.handle().clone();
        let (none, marked) = {
            let strays = alive.strays.borrow();
            (strays.none, strays.marked.notified())
        };
        drop(alive);
        if none {
            marked.await;
        }
        handle.sleep(ASK_EVERY).await;
        let Some(alive) = namespace.upgrade() else { return };
        if let Err(error) = alive.look_after_strays().await {
            if alive.bucket.failed().is_some() {
                return;
            }
            tracing::debug!(bucket = %alive.bucket.id(), %error, "strays are looked after later");
            alive.strays.borrow_mut().none = false;
        }
    }
}
