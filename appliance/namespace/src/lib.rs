//! POSIX on top of a bucket: inodes, names, data, and who may see what when.
//!
//! A request is one function: lock the keys that it depends on, look, build a batch with the effects and the result,
//! commit, wait until it stands on P+1, answer. Reads wait until everything they may have seen stands there.
#![forbid(unsafe_code)]

mod acl;
mod assist;
mod attr;
mod beyond;
mod create;
mod cut;
mod data;
mod dentries;
mod errno;
mod inode;
mod intents;
mod late;
mod locking;
mod locks;
mod opens;
mod page;
mod part;
mod plan;
mod remove;
mod rename;
mod results;
mod sessions;
mod split;
mod strays;
mod transaction;
mod tree;
mod xattr;

use bytes::Bytes;
use intents::Intents;
use locking::Locking;
use opens::Opens;
use results::{Results, Ticket};
use sessions::Sessions;
use std::cell::RefCell;
use std::rc::Rc;
use transaction::Transactions;
use weft_bucket::BucketError;
use weft_bucket::{Batch, Bucket};
use weft_transport::rpc::Network;
use weft_wire::bucket::{ParticipantReply, ParticipantRequest};
use weft_wire::fs::{FsError, FsOp, FsReply, FsRequest, Space};
use weft_wire::map::Map;
use weft_wire::{ClientId, FsId, InodeId};

/// For how long a request waits for something that others must finish first, when its client can as well come again.
const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// Numbers that can be turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// A page of a directory with more entries than this splits.
    pub page_entries_max: u64,
}

impl Default for Tunables {
    fn default() -> Self {
        Self { page_entries_max: 4096 }
    }
}

/// What a namespace needs beside its bucket.
#[derive(Clone)]
pub struct Context {
    /// The newest map.
    pub map: Rc<dyn Fn() -> Option<Rc<Map>>>,
    /// To the leaders of other buckets.
    pub network: Rc<dyn Network>,
    /// Asks the managers for a map in which the client is fenced.
    pub fence: Rc<dyn Fn(ClientId)>,
    pub tunables: Tunables,
}

/// Serves the filesystem requests of one led bucket.
pub struct Namespace {
    bucket: Bucket,
    context: Context,
    results: Results,
    opens: RefCell<Opens>,
    sessions: RefCell<Sessions>,
    locking: RefCell<Locking>,
    cuts: RefCell<cut::Cuts>,
    intents: RefCell<Intents>,
    transactions: RefCell<Transactions>,
    pages: RefCell<page::Pages>,
    strays: RefCell<strays::Strays>,
}

/// What an operation works with.
struct Call {
    fs: FsId,
    client: weft_wire::ClientId,
    ticket: Option<Ticket>,
    /// Of the page that is asked for.
    depth: u8,
    now_ns: i64,
}

/// An operation's outcome: a reply that may be answered once everything before stands on P+1.
type Outcome = Result<(FsReply, Bytes), FsError>;

impl Namespace {
    /// Takes over what the former leader left: orphans, pending cuts.
    pub async fn open(bucket: Bucket, context: Context) -> Result<Rc<Self>, BucketError> {
        let namespace = Rc::new(Self {
            bucket,
            context,
            results: Results::default(),
            opens: RefCell::default(),
            sessions: RefCell::default(),
            locking: RefCell::default(),
            cuts: RefCell::default(),
            intents: RefCell::default(),
            transactions: RefCell::default(),
            pages: RefCell::default(),
            strays: RefCell::default(),
        });
        // Intents first: they hold locks that nobody else may take before.
        namespace.load_intents().await?;
        namespace.load_pages().await?;
        namespace.load_transactions().await?;
        namespace.load_sessions().await?;
        let watch = sessions::watch(Rc::downgrade(&namespace));
        namespace.bucket.handle().spawn("sessions", watch).detach();
        let forget = cut::forget(Rc::downgrade(&namespace));
        namespace.bucket.handle().spawn("forget cuts", forget).detach();
        let look_after = strays::look_after(Rc::downgrade(&namespace));
        namespace.bucket.handle().spawn("strays", look_after).detach();
        cut::resume(&namespace);
        Ok(namespace)
    }

    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Serves one request. The caller has checked that bucket and epoch are right and the client is known.
    pub async fn handle(self: &Rc<Self>, request: FsRequest, body: Bytes) -> (FsReply, Bytes) {
        match self.serve(request, body).await {
            Ok(answer) => answer,
            Err(error) => (FsReply::Error(error), Bytes::new()),
        }
    }

    /// Serves the leader of another bucket. The caller has checked that bucket and epoch are right.
    pub async fn participant(self: &Rc<Self>, request: ParticipantRequest, body: Bytes) -> (ParticipantReply, Bytes) {
        let reply = self.assist(request.op, body).await.unwrap_or_else(ParticipantReply::Refused);
        (reply, Bytes::new())
    }

    async fn serve(self: &Rc<Self>, request: FsRequest, body: Bytes) -> Outcome {
        self.sessions.borrow_mut().heard(request.client, self.bucket.handle().now());
        let ticket = Ticket::new(request.client, request.sequence, request.unanswered)?;
        // A copy of the request waits here until the first has run.
        let _once = match &ticket {
            Some(ticket) => {
                let first = self.bucket.lock([inode::result_key(ticket.client, ticket.sequence)]);
                // Copies of what takes long must not pile up: the client comes again.
                let guard = self.bucket.handle().timeout(WAIT_MAX, first).await;
                let guard = guard.map_err(|_| FsError::NotReady("the request is being carried out".into()))?;
                let known = self.results.knows(ticket.client);
                let found = self.results.find(&self.bucket, ticket).await?;
                if !known {
                    // Whoever forgets the results of those who are gone has something to look after.
                    self.sessions.borrow().changed.notify_one();
                }
                if let Some(reply) = found {
                    self.finished(ticket).await;
                    self.cut_finished(request.fs, &request.op).await?;
                    self.bucket.readable().await.map_err(errno::of_bucket)?;
                    return Ok((reply, Bytes::new()));
                }
                Some(guard)
            }
            None => None,
        };
        let now_ns = self.bucket.handle().wall_ns();
        let call = Call { fs: request.fs, client: request.client, ticket, depth: request.depth, now_ns };
        let outcome = self.dispatch(&call, request.op, body).await;
        // Nothing that was seen may still vanish, also not what an error is about.
        if !matches!(outcome, Err(FsError::NotReady(_))) {
            self.bucket.readable().await.map_err(errno::of_bucket)?;
        }
        outcome
    }

    async fn dispatch(self: &Rc<Self>, call: &Call, op: FsOp, body: Bytes) -> Outcome {
        match op {
            FsOp::Lookup { dir, name } => self.lookup(call, dir, &name).await,
            FsOp::Create { dir, name, node, exclusive, open } => {
                self.create(call, dir, name, node, exclusive, open).await
            }
            FsOp::Link { inode, dir, name } => self.link(call, inode, dir, name).await,
            FsOp::Remove { dir, name, directory } => self.remove(call, dir, &name, directory).await,
            FsOp::Rename { dir, name, new_dir, new_name, mode } => {
                self.rename(call, (dir, name), (new_dir, new_name), mode).await
            }
            FsOp::ReadDir { dir, cookie, entries_max, attrs } => {
                self.read_dir(call, dir, cookie, entries_max, attrs).await
            }
            FsOp::GetAttr { inode, own } => self.get_attr(call, inode, own).await,
            FsOp::SetAttr { inode, set } => self.set_attr(call, inode, set).await,
            FsOp::ReadLink { inode } => self.read_link(call, inode).await,
            FsOp::CreateUnnamed { dir, node } => self.create_unnamed(call, dir, node).await,
            FsOp::Open { inode, truncate, kill_setid } => self.open_inode(call, inode, truncate, kill_setid).await,
            FsOp::Release { inode } => self.release(call, inode).await,
            FsOp::GetXattr { inode, name } => self.get_xattr(call, inode, &name).await,
            FsOp::SetXattr { inode, name, value, mode, kill_setgid } => {
                self.set_xattr(call, inode, &name, value, mode, kill_setgid).await
            }
            FsOp::ListXattr { inode } => self.list_xattr(call, inode).await,
            FsOp::RemoveXattr { inode, name } => self.remove_xattr(call, inode, &name).await,
            FsOp::Read { inode, offset, len_bytes, cut_generation } => {
                self.read(call, inode, offset, len_bytes, cut_generation).await
            }
            FsOp::Write { inode, offset, cut_generation, kill_setid } => {
                self.write(call, inode, offset, cut_generation, kill_setid, body).await
            }
            FsOp::Overwrite { inode, offset, cut_generation, after_ns } => {
                self.overwrite(call, inode, offset, cut_generation, after_ns, body).await
            }
            FsOp::Append { inode, kill_setid } => self.append(call, inode, kill_setid, body).await,
            FsOp::Publish { inode, start, end, cut_generation, kill_setid } => {
                self.publish(call, inode, start..end, cut_generation, kill_setid).await
            }
            FsOp::Fallocate { inode, offset, len_bytes, mode, cut_generation } => {
                self.fallocate(call, inode, offset, len_bytes, mode, cut_generation).await
            }
            FsOp::Seek { inode, offset, end, target } => self.seek(call, inode, offset, end, target).await,
            FsOp::CountBlocks { inode } => {
                let count = self.bucket.count_blocks(inode::object(call.fs, inode)).await.map_err(errno::of_bucket)?;
                let written_ns = self.newest_time(call.fs, inode).await?;
                Ok((FsReply::Blocks { count, written_ns }, Bytes::new()))
            }
            FsOp::StatFs => self.stat_fs(),
            FsOp::MakeRoot { root } => self.make_root(call, root).await,
            FsOp::Renew { holds } => self.renew(call, holds).await,
            FsOp::SetLock { inode, lock, wait } => self.set_lock(call, inode, lock, wait).await,
            FsOp::TestLock { inode, lock } => self.test_lock(call, inode, lock).await,
            FsOp::CancelLock { inode, owner, waiting } => self.cancel_lock(call, inode, owner, waiting),
            FsOp::ReleaseLocks { inode, kind, owner } => self.release_locks(call, inode, kind, owner),
        }
    }

    fn map(&self) -> Result<Rc<Map>, FsError> {
        (self.context.map)().ok_or_else(|| FsError::NotReady("the node has no map".into()))
    }

    /// Commits the effects together with the result, and waits until they stand on P+1.
    async fn commit(&self, call: &Call, mut batch: Batch, reply: FsReply) -> Outcome {
        let unheard_of = call.ticket.as_ref().is_some_and(|ticket| self.results.record(&mut batch, ticket, &reply));
        let committed = self.bucket.commit(batch).await;
        match (&call.ticket, &committed) {
            (Some(ticket), Err(_)) => self.results.forget(ticket),
            // The client may have been given up while this was on its way: its results are to be looked after again.
            (Some(ticket), Ok(_)) if self.results.keep(ticket.client) || unheard_of => {
                self.sessions.borrow().changed.notify_one();
            }
            _ => {}
        }
        committed.map_err(errno::of_bucket)?;
        Ok((reply, Bytes::new()))
    }

    /// `ENOSPC` if there is no room for one key more, with a value of so many bytes. What makes room is never asked.
    fn room_for(&self, value_bytes: usize) -> Result<(), FsError> {
        let blocks = 1 + value_bytes / weft_wire::limits::BLOCK_BYTES;
        self.bucket.fits(blocks as u64).map_err(errno::of_bucket)
    }

    fn stat_fs(&self) -> Outcome {
        let space = self.bucket.space();
        let free = space.blocks.saturating_sub(space.used);
        let space = Space { blocks: space.blocks, blocks_free: free, blocks_available: free, files: 0 };
        Ok((FsReply::Space(space), Bytes::new()))
    }

    /// Whether an inode is in this bucket.
    fn is_here(&self, inode: InodeId) -> bool {
        (self.context.map)().is_some_and(|map| map.bucket_of(inode.position()) == self.bucket.id())
    }

    async fn inode(&self, call: &Call, inode: InodeId) -> Result<inode::Inode, FsError> {
        inode::load(&self.bucket, call.fs, inode).await
    }

    async fn lock_inodes(&self, call: &Call, inodes: impl IntoIterator<Item = InodeId>) -> weft_bucket::LockGuard {
        self.bucket.lock(inodes.into_iter().map(|inode| inode::inode_key(call.fs, inode))).await
    }
}
