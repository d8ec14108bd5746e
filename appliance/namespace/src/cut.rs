//! Cuts: what lies beyond a file's end goes, in all buckets. A bucket that has cut refuses writes that don't know of it.

use crate::inode::{Cut, Inode, Remains, cut_key, inode_key, object, orphan_key, xattr_key};
use crate::sessions::LOOK_EVERY;
use crate::{Call, Namespace, errno};
use bytes::Bytes;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::time::Duration;
use weft_bucket::{Batch, BucketError, KeyBuilder, Tag};
use weft_reactor::Instant;
use weft_reactor::sync::Notify;
use weft_wire::bucket::ParticipantOp;
use weft_wire::fs::FsError;
use weft_wire::limits::{BLOCK_BYTES, SLAB_BLOCKS, SLAB_BYTES};
use weft_wire::{BucketId, FsId, InodeId};

/// Blocks that one record of a cut removes.
const CUT_BLOCKS_MAX: u64 = 64 * SLAB_BLOCKS;
/// How long a bucket refuses writes from before a cut. Whatever was under way then is over: calls take seconds, and one
/// that was not begun in its time never begins.
const CUT_KEPT: Duration = Duration::from_secs(120);
/// Until background work is tried again that something was in the way of.
const AGAIN: Duration = Duration::from_secs(1);
/// Keys removed by one record.
const KEYS_MAX: usize = 256;

/// A cut that this bucket remembers.
struct Made {
    at: Instant,
    fs: FsId,
    number: InodeId,
    generation: u64,
}

/// Cuts that are to be forgotten, oldest first.
#[derive(Default)]
pub struct Cuts {
    queue: VecDeque<Made>,
    added: Notify,
}

impl Namespace {
    /// Removes all blocks at and beyond a size in this bucket, and remembers the cut.
    pub(crate) async fn cut_here(
        &self,
        call: &Call,
        number: InodeId,
        generation: u64,
        size: u64,
    ) -> Result<(), FsError> {
        let key = cut_key(call.fs, number);
        let _cut = self.bucket.lock([key.clone()]).await;
        let newest = self.newest_cut(call.fs, number).await?;
        if newest.generation > generation || newest == (Cut { generation, pending: false }) {
            return Ok(());
        }
        let first = size.div_ceil(BLOCK_BYTES as u64);
        let found =
            self.bucket.seek(object(call.fs, number), first, u64::MAX, false).await.map_err(errno::of_bucket)?;
        // Refused from the record on, so that nothing comes in behind the cut while it goes on.
        let mut batch = Batch::new();
        batch.put(key.clone(), weft_wire::encode(&Cut { generation, pending: true }));
        self.forget_cut_later(call.fs, number, generation);
        if size <= SLAB_BYTES {
            self.cut_strays(call.fs, number, &mut batch).await?;
            self.cut_time(call.fs, number, &mut batch).await?;
        }
        {
            let _slab = self.lock_slab(call, number, size / SLAB_BYTES).await;
            if size > SLAB_BYTES {
                self.zero_tail(call, number, size, &mut batch).await?;
            }
            if found.is_none() {
                batch.put(key.clone(), weft_wire::encode(&Cut { generation, pending: false }));
            }
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        }
        if found.is_some() {
            self.remove_blocks(call.fs, number, first).await.map_err(errno::of_bucket)?;
            let mut batch = Batch::new();
            batch.put(key, weft_wire::encode(&Cut { generation, pending: false }));
            self.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        }
        Ok(())
    }

    fn forget_cut_later(&self, fs: FsId, number: InodeId, generation: u64) {
        let mut cuts = self.cuts.borrow_mut();
        cuts.queue.push_back(Made { at: self.bucket.handle().now(), fs, number, generation });
        cuts.added.notify_one();
    }

    /// Forgets cuts that were made long ago, and waits until there is something to do again.
    async fn forget_cuts(&self) -> Result<(), BucketError> {
        let now = self.bucket.handle().now();
        let mut due = Vec::new();
        {
            let mut cuts = self.cuts.borrow_mut();
            while due.len() < KEYS_MAX
                && let Some(made) = cuts.queue.pop_front_if(|made| now.since(made.at) >= CUT_KEPT)
            {
                due.push(made);
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        let _guard = self.bucket.lock(due.iter().map(|made| cut_key(made.fs, made.number))).await;
        let mut batch = Batch::new();
        for made in due {
            let done = Cut { generation: made.generation, pending: false };
            if self.newest_cut(made.fs, made.number).await == Ok(done) {
                batch.delete(cut_key(made.fs, made.number));
            }
        }
        if !batch.is_empty() {
            self.bucket.commit(batch).await?;
        }
        Ok(())
    }

    pub(crate) async fn newest_cut(&self, fs: FsId, number: InodeId) -> Result<Cut, FsError> {
        let found = self.bucket.get(&cut_key(fs, number)).await.map_err(errno::of_bucket)?;
        found.map_or(Ok(Cut::default()), |value| crate::inode::decode(&value))
    }

    /// Frees the file's blocks in this bucket from `block` on.
    pub(crate) async fn remove_blocks(&self, fs: FsId, number: InodeId, block: u64) -> Result<(), BucketError> {
        let target = object(fs, number);
        let mut at = block;
        while let Some(next) = self.bucket.seek(target, at, u64::MAX, false).await? {
            let end = (next / SLAB_BLOCKS * SLAB_BLOCKS).saturating_add(CUT_BLOCKS_MAX);
            let mut batch = Batch::new();
            // Slab by slab: most slabs of the range are in other buckets, and what isn't here costs a look each.
            let mut slab = next;
            let mut slabs = 0;
            while slab < end && slabs < 16 {
                let stop = (slab / SLAB_BLOCKS + 1) * SLAB_BLOCKS;
                batch.punch(target, slab..stop);
                slabs += 1;
                match self.bucket.seek(target, stop, u64::MAX, false).await? {
                    Some(following) => slab = following,
                    None => slab = u64::MAX,
                }
            }
            self.bucket.commit(batch).await?;
            at = next + 1;
        }
        Ok(())
    }
}

/// Writes to a slab that another bucket (or this one) owns.
pub(crate) async fn write_slab(
    namespace: &Rc<Namespace>,
    fs: FsId,
    number: InodeId,
    offset: u64,
    cut_generation: u64,
    data: Bytes,
) -> Result<(), FsError> {
    let map = namespace.map()?;
    let position = weft_wire::hash::slab_position(&map.secret, fs, number, offset / SLAB_BYTES);
    let op = ParticipantOp::Write { fs, inode: number, offset, cut_generation };
    namespace.ask_bucket(map.bucket_of(position), op, data).await.map(drop)
}

/// Makes a cut in all buckets. Returns when it stands everywhere.
pub(crate) async fn everywhere(
    namespace: &Rc<Namespace>,
    fs: FsId,
    number: InodeId,
    generation: u64,
    size: u64,
) -> Result<(), FsError> {
    let buckets = namespace.map()?.buckets.len() as u32;
    let cuts: Vec<_> = (0..buckets)
        .map(|bucket| {
            let op = ParticipantOp::Cut { fs, inode: number, cut_generation: generation, size_bytes: size };
            namespace.ask_bucket(BucketId(bucket), op, Bytes::new())
        })
        .collect();
    for cut in weft_reactor::join_all(cuts).await {
        cut?;
    }
    Ok(())
}

/// Removes, in the background, an inode that nobody can reach any more.
pub(crate) fn purge_later(namespace: &Rc<Namespace>, fs: FsId, number: InodeId) {
    let namespace = Rc::clone(namespace);
    let handle = namespace.bucket.handle().clone();
    let purging = async move { namespace.until_done("a removed file's space", || purge(&namespace, fs, number)).await };
    handle.spawn("purge", purging).detach();
}

async fn purge(namespace: &Rc<Namespace>, fs: FsId, number: InodeId) -> Result<(), FsError> {
    let _guard = namespace.bucket.lock([inode_key(fs, number)]).await;
    let Some(remains) = take_inode(namespace, fs, number).await? else { return Ok(()) };
    if remains.size > SLAB_BYTES {
        // Other buckets must not lose data to a removal that may itself still be lost.
        namespace.bucket.readable().await.map_err(errno::of_bucket)?;
        everywhere(namespace, fs, number, remains.cut_generation, 0).await?;
    }
    namespace.remove_blocks(fs, number, 0).await.map_err(errno::of_bucket)?;
    let prefix = xattr_key(fs, number, b"");
    loop {
        let found = namespace.bucket.scan_prefix(&prefix, KEYS_MAX).await.map_err(errno::of_bucket)?;
        let mut batch = Batch::new();
        found.iter().for_each(|(key, _)| _ = batch.delete(key.clone()));
        let done = found.len() < KEYS_MAX;
        if done {
            batch.delete(orphan_key(fs, number));
        }
        namespace.bucket.commit(batch).await.map_err(errno::of_bucket)?;
        if done {
            return Ok(());
        }
    }
}

/// Takes a nameless inode that nobody has open out of the index, and says what is left of it. It goes before its data
/// does: a new leader, which can't know yet who has it open, must not show what is half removed.
async fn take_inode(namespace: &Namespace, fs: FsId, number: InodeId) -> Result<Option<Remains>, FsError> {
    let inode: Inode = match crate::inode::load(&namespace.bucket, fs, number).await {
        Err(errno::ESTALE) => return namespace.remains(fs, number).await,
        inode => inode?,
    };
    if inode.links > 0 || namespace.may_be_open(fs, number) {
        return Ok(None);
    }
    let remains = Remains { cut_generation: inode.cut_generation + 1, size: inode.size };
    let mut batch = Batch::new();
    batch.delete(inode_key(fs, number));
    batch.put(orphan_key(fs, number), weft_wire::encode(&remains));
    namespace.bucket.commit(batch).await.map_err(errno::of_bucket)?;
    Ok(Some(remains))
}

/// What the former leader left half done: pending cuts first; nameless inodes when all clients have told what they
/// have open.
pub(crate) fn resume(namespace: &Rc<Namespace>) {
    let task = resume_removals(Rc::clone(namespace));
    namespace.bucket.handle().spawn("resume removals", task).detach();
}

/// Forgets old cuts for as long as the namespace lives.
pub(crate) async fn forget(namespace: Weak<Namespace>) {
    {
        let Some(alive) = namespace.upgrade() else { return };
        alive.until_done("remembered cuts", || alive.load_cuts()).await;
    }
    loop {
        let Some(alive) = namespace.upgrade() else { return };
        let handle = alive.bucket.handle().clone();
        if let Err(error) = alive.forget_cuts().await {
            if alive.bucket.failed().is_some() {
                return;
            }
            tracing::debug!(%error, "old cuts are forgotten later");
        }
        let (idle, added) = {
            let cuts = alive.cuts.borrow();
            (cuts.queue.is_empty(), cuts.added.notified())
        };
        drop(alive);
        match idle {
            true => added.await,
            false => handle.sleep(CUT_KEPT / 8).await,
        }
    }
}

async fn resume_removals(namespace: Rc<Namespace>) {
    namespace.until_done("truncates that the former leader began", || finish_cuts(&namespace)).await;
    while namespace.sessions.borrow().in_grace() {
        namespace.bucket.handle().sleep(LOOK_EVERY).await;
    }
    let purges = async || {
        orphans(&namespace).await?.into_iter().for_each(|(fs, number)| purge_later(&namespace, fs, number));
        Ok(())
    };
    namespace.until_done("removals that the former leader began", purges).await;
}

async fn finish_cuts(namespace: &Rc<Namespace>) -> Result<(), FsError> {
    let mut later = Ok(());
    for (fs, number) in orphans(namespace).await? {
        match finish_cut(namespace, fs, number).await {
            Ok(()) => {}
            Err(error @ FsError::NotReady(_)) => later = Err(error),
            Err(error) => tracing::warn!(inode = %number, %error, "its truncate can't be finished"),
        }
    }
    later
}

impl Namespace {
    async fn remains(&self, fs: FsId, number: InodeId) -> Result<Option<Remains>, FsError> {
        let found = self.bucket.get(&orphan_key(fs, number)).await.map_err(errno::of_bucket)?;
        found.filter(|value| !value.is_empty()).map(|value| crate::inode::decode(&value)).transpose()
    }

    /// Takes up the cuts that the former leader remembered.
    async fn load_cuts(&self) -> Result<(), FsError> {
        let map = self.map()?;
        let mut cuts = Vec::new();
        for fs in map.filesystems.keys().copied() {
            let prefix = KeyBuilder::new(fs, Tag::Cut).build();
            for (key, value) in self.bucket.scan_prefix(&prefix, usize::MAX).await.map_err(errno::of_bucket)? {
                if let Some(number) = crate::inode::dentry_cookie(&key) {
                    cuts.push((fs, InodeId(number), crate::inode::decode::<Cut>(&value)?));
                }
            }
        }
        cuts.into_iter().for_each(|(fs, number, cut)| self.forget_cut_later(fs, number, cut.generation));
        Ok(())
    }

    /// Works in the background until it is done. What others are in the way of is tried again; what can't be done at all is
    /// left to the next leader.
    pub(crate) async fn until_done(&self, what: &'static str, work: impl AsyncFn() -> Result<(), FsError>) {
        while let Err(error) = work().await {
            if self.bucket.failed().is_some() {
                return;
            }
            if !matches!(error, FsError::NotReady(_)) {
                tracing::warn!(bucket = %self.bucket.id(), what, %error, "it is left as it is");
                return;
            }
            tracing::debug!(bucket = %self.bucket.id(), what, %error, "it is tried again");
            self.bucket.handle().sleep(AGAIN).await;
        }
    }
}

/// Inodes without a name, or with a cut to finish.
async fn orphans(namespace: &Namespace) -> Result<Vec<(FsId, InodeId)>, FsError> {
    let map = namespace.map()?;
    let mut orphans = Vec::new();
    for fs in map.filesystems.keys().copied() {
        let prefix = KeyBuilder::new(fs, Tag::Open).build();
        let found = namespace.bucket.scan_prefix(&prefix, usize::MAX).await.map_err(errno::of_bucket)?;
        let numbers = found.iter().filter_map(|(key, _)| crate::inode::dentry_cookie(key));
        orphans.extend(numbers.map(|number| (fs, InodeId(number))));
    }
    Ok(orphans)
}

/// Finishes a cut that the former leader journalled.
async fn finish_cut(namespace: &Rc<Namespace>, fs: FsId, number: InodeId) -> Result<(), FsError> {
    let _guard = namespace.bucket.lock([inode_key(fs, number)]).await;
    let mut inode = match crate::inode::load(&namespace.bucket, fs, number).await {
        // It is gone, with its data still to be removed.
        Err(errno::ESTALE) => return Ok(()),
        inode => inode?,
    };
    if inode.cutting {
        everywhere(namespace, fs, number, inode.cut_generation, inode.size).await?;
        inode.cutting = false;
        let mut batch = Batch::new();
        inode.blocks = namespace.bucket.blocks_after(object(fs, number), 0, &batch).await.map_err(errno::of_bucket)?;
        if inode.links > 0 {
            batch.delete(orphan_key(fs, number));
        }
        batch.put(inode_key(fs, number), weft_wire::encode(&inode));
        namespace.bucket.commit(batch).await.map_err(errno::of_bucket)?;
    }
    Ok(())
}
