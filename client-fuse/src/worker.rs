//! What one thread of a session does: reads messages, starts a task for each request, hands on what belongs elsewhere.

use crate::abi;
use crate::channel::{Channel, Closed, Received};
use crate::execute::execute;
use crate::filesystem::{Filesystem, Request, Route};
use crate::handshake::IO_BYTES_MAX;
use crate::interrupt::{Interrupt, Unmatched};
use crate::request::{self, Message, Operation};
use bytes::Bytes;
use nix::errno::Errno;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use weft_reactor::{AlignedBuf, Handle, Instant, Mailbox, Poller, Pool, Task, WakeOn};

/// A message is read to where its data, if it is a write, starts a page.
const HEAD_BYTES: usize = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();
const DATA_START: usize = 4096;
const HEAD_START: usize = DATA_START - HEAD_BYTES;
const BUFFER_BYTES: usize = DATA_START + IO_BYTES_MAX as usize;
/// Large buffers that a thread keeps while they are not in use.
const BUFFERS_KEPT: usize = 8;

/// A write of up to this much is copied to a small buffer, which costs less than a cold large one.
const COPY_BYTES_MAX: usize = 32 << 10;
const SMALL_BUFFERS_KEPT: usize = 64;

/// Messages taken in a row, before the reactor looks at tasks and other sources again.
const MESSAGES_PER_POLL: usize = 16;

/// Large writes under way on a thread, at which it reads no more messages until one of them is done.
const LARGE_WRITES_MAX: usize = 32;

/// Requests under way on a thread; each is an application's thread that waits. Further ones are refused with ENOMEM:
/// leaving them unread would leave interrupts unread too, and nobody could be killed any more.
const REQUESTS_MAX: usize = 16_384;

/// Ways between the threads of a session.
pub(crate) struct Peers {
    inboxes: Vec<Inbox>,
    closing: AtomicBool,
}

#[derive(Default)]
pub(crate) struct Inbox {
    mail: Mutex<VecDeque<Mail>>,
    /// Wakes the thread; absent until it has started.
    mailbox: OnceLock<Mailbox>,
}

enum Mail {
    Interrupt(u64),
    Request(Box<Forwarded>),
}

/// A request that another thread read.
struct Forwarded {
    channel: Arc<Channel>,
    caller: Caller,
    operation: Operation,
}

#[derive(Clone, Copy)]
struct Caller {
    unique: u64,
    uid: u32,
    gid: u32,
    pid: u32,
}

impl Peers {
    pub fn new(threads: usize) -> Self {
        let inboxes = std::iter::repeat_with(Inbox::default).take(threads).collect();
        Self { inboxes, closing: AtomicBool::new(false) }
    }

    pub fn join(&self, index: usize, mailbox: Mailbox) {
        // Each thread joins once, at its start.
        let _ = self.inboxes[index].mailbox.set(mailbox);
    }

    /// Ends the session on all threads.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        for inbox in &self.inboxes {
            inbox.wake();
        }
    }

    fn send(&self, index: usize, mail: Mail) {
        let inbox = &self.inboxes[index];
        inbox.lock().push_back(mail);
        inbox.wake();
    }
}

impl Inbox {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Mail>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(mailbox) = self.mailbox.get() {
            // The mail itself is taken by the thread's poller.
            // It refuses when it is full of other wake-ups, or the thread has ended: just as well.
            let _ = mailbox.send(Box::new(|_| {}));
        }
    }
}

pub(crate) struct Worker<F> {
    index: usize,
    handle: Handle,
    filesystem: Rc<F>,
    channel: Arc<Channel>,
    peers: Arc<Peers>,
    destroy_wait: Duration,
    under_way: RefCell<HashMap<u64, UnderWay>>,
    unmatched: RefCell<Unmatched>,
    small_buffers: Pool,
    large_writes: Cell<usize>,
    end: Cell<Option<Result<Option<Closed>, Errno>>>,
}

struct UnderWay {
    interrupt: Interrupt,
    task: Task<()>,
}

impl<F: Filesystem> Worker<F> {
    pub fn new(
        index: usize,
        handle: Handle,
        filesystem: Rc<F>,
        channel: Arc<Channel>,
        peers: Arc<Peers>,
        destroy_wait: Duration,
    ) -> Self {
        Self {
            index,
            handle,
            filesystem,
            channel,
            peers,
            destroy_wait,
            under_way: RefCell::default(),
            unmatched: RefCell::default(),
            small_buffers: Pool::new(COPY_BYTES_MAX, SMALL_BUFFERS_KEPT),
            large_writes: Cell::new(0),
            end: Cell::new(None),
        }
    }

    /// Why the thread ended; a thread that was told to by another is none the wiser.
    pub fn end(&self) -> Result<Option<Closed>, Errno> {
        self.end.get().unwrap_or(Ok(None))
    }

    fn has_room(&self) -> bool {
        self.large_writes.get() < LARGE_WRITES_MAX
    }

    /// Takes a message in; gives the buffer back unless it went on with the data.
    fn take(self: &Rc<Self>, buffer: AlignedBuf, len: usize) -> Option<AlignedBuf> {
        let message = &buffer.as_slice()[HEAD_START..HEAD_START + len];
        let Ok((header, body)) = request::header(message) else {
            tracing::error!(len, "the kernel sent a message that makes no sense");
            return Some(buffer);
        };
        let mut large: Option<Range<usize>> = None;
        let parsed = request::parse(&header, body, |range| {
            if range.len() > COPY_BYTES_MAX {
                large = Some(range);
                return Bytes::new();
            }
            let mut small = self.small_buffers.take(range.len());
            small.as_mut_slice().copy_from_slice(&body[range]);
            small.freeze()
        });
        let caller = Caller { unique: header.unique, uid: header.uid, gid: header.gid, pid: header.pid };
        let mut operation = match parsed {
            Ok(Message::Operation(operation)) => operation,
            Ok(Message::Forget(forgets)) => {
                for (node, lookups) in forgets {
                    self.filesystem.forget(node, lookups);
                }
                return Some(buffer);
            }
            Ok(Message::Interrupt(unique)) => {
                self.interrupt_everywhere(unique);
                return Some(buffer);
            }
            Ok(Message::Destroy) => {
                self.channel.send(caller.unique, Ok(crate::Answer::empty()));
                return Some(buffer);
            }
            Ok(Message::Refused(errno)) => {
                self.channel.send(caller.unique, Err(errno));
                return Some(buffer);
            }
            Err(error) => {
                tracing::error!(opcode = header.opcode, %error, "the kernel sent a request that makes no sense");
                self.channel.send(caller.unique, Err(Errno::EIO));
                return Some(buffer);
            }
        };
        let mut rest = Some(buffer);
        if let (Some(range), Operation::Write { data, .. }) = (large, &mut operation)
            && let Some(buffer) = rest.take()
        {
            let body_start = HEAD_START + size_of::<abi::InHeader>();
            *data = buffer.freeze().slice(body_start + range.start..body_start + range.end);
        }
        self.dispatch(caller, operation);
        rest
    }

    fn dispatch(self: &Rc<Self>, caller: Caller, operation: Operation) {
        let channel = Arc::clone(&self.channel);
        let threads = self.peers.inboxes.len();
        match self.filesystem.route(&operation) {
            Route::Thread(thread) if thread % threads != self.index => {
                let forwarded = Forwarded { channel, caller, operation };
                self.peers.send(thread % threads, Mail::Request(Box::new(forwarded)));
            }
            _ => self.start(channel, caller, operation),
        }
    }

    fn start(self: &Rc<Self>, channel: Arc<Channel>, caller: Caller, operation: Operation) {
        let Caller { unique, uid, gid, pid } = caller;
        if self.under_way.borrow().len() >= REQUESTS_MAX {
            channel.send(unique, Err(Errno::ENOMEM));
            return;
        }
        let interrupt = Interrupt::default();
        if self.unmatched.borrow_mut().take(unique) {
            interrupt.raise();
        }
        let request = Request { unique, uid, gid, pid, interrupt: interrupt.clone() };
        let large = matches!(&operation, Operation::Write { data, .. } if data.len() > COPY_BYTES_MAX);
        let large = large.then(|| LargeWrite::new(Rc::clone(self)));
        let execution = execute(Rc::clone(&self.filesystem), request, operation);
        let worker = Rc::clone(self);
        let task = self.handle.spawn("fuse request", async move {
            let result = execution.await;
            channel.send(unique, result);
            drop(large);
            worker.under_way.borrow_mut().remove(&unique);
        });
        self.under_way.borrow_mut().insert(unique, UnderWay { interrupt, task });
    }

    /// The request may be with any thread, or on its way from one to another.
    fn interrupt_everywhere(&self, unique: u64) {
        self.interrupt(unique);
        for index in (0..self.peers.inboxes.len()).filter(|&index| index != self.index) {
            self.peers.send(index, Mail::Interrupt(unique));
        }
    }

    fn interrupt(&self, unique: u64) {
        let interrupt = self.under_way.borrow().get(&unique).map(|under_way| under_way.interrupt.clone());
        match interrupt {
            Some(interrupt) => interrupt.raise(),
            None => self.unmatched.borrow_mut().remember(unique),
        }
    }

    /// Handles what other threads sent; returns how much that was.
    fn take_mail(self: &Rc<Self>) -> usize {
        let mail = std::mem::take(&mut *self.peers.inboxes[self.index].lock());
        let count = mail.len();
        for mail in mail {
            match mail {
                Mail::Interrupt(unique) => self.interrupt(unique),
                Mail::Request(forwarded) => {
                    let Forwarded { channel, caller, operation } = *forwarded;
                    self.start(channel, caller, operation);
                }
            }
        }
        count
    }

    /// Drops everything under way, for nobody waits for it any more, lets the filesystem say good-bye, ends the thread.
    fn close(self: &Rc<Self>, end: Result<Option<Closed>, Errno>) {
        if self.end.get().is_some() {
            return;
        }
        self.end.set(Some(end));
        let under_way = std::mem::take(&mut *self.under_way.borrow_mut());
        for under_way in under_way.into_values() {
            under_way.task.abort();
        }
        let handle = self.handle.clone();
        let filesystem = Rc::clone(&self.filesystem);
        let destroy_wait = self.destroy_wait;
        self.handle
            .spawn("fuse destroy", async move {
                if handle.timeout(destroy_wait, filesystem.destroy()).await.is_err() {
                    tracing::warn!("the filesystem did not end in time; what it held ends with its lease");
                }
                handle.shutdown();
            })
            .detach();
    }
}

/// Counts a large write until it is done or dropped.
struct LargeWrite<F> {
    worker: Rc<Worker<F>>,
}

impl<F> LargeWrite<F> {
    fn new(worker: Rc<Worker<F>>) -> Self {
        worker.large_writes.set(worker.large_writes.get() + 1);
        Self { worker }
    }
}

impl<F> Drop for LargeWrite<F> {
    fn drop(&mut self) {
        self.worker.large_writes.set(self.worker.large_writes.get() - 1);
    }
}

/// Lets the reactor read the channel.
pub(crate) struct Reader<F> {
    /// A message is for whichever thread reads it: one of those asleep is enough.
    wake: WakeOn,
    worker: Rc<Worker<F>>,
    buffers: Pool,
    buffer: Option<AlignedBuf>,
}

impl<F> Reader<F> {
    pub fn new(worker: Rc<Worker<F>>) -> std::io::Result<Self> {
        let wake = worker.handle.wake_one(worker.channel.as_fd().as_raw_fd())?;
        Ok(Self { worker, buffers: Pool::new(BUFFER_BYTES, BUFFERS_KEPT), buffer: None, wake })
    }
}

impl<F: Filesystem> Poller for Reader<F> {
    fn poll(&mut self, _now: Instant) -> usize {
        if self.worker.end.get().is_some() {
            return 0;
        }
        let mut count = self.worker.take_mail();
        if self.worker.peers.closing.load(Ordering::Acquire) {
            self.worker.close(Ok(None));
            return count;
        }
        for _ in 0..MESSAGES_PER_POLL {
            if !self.worker.has_room() {
                break;
            }
            let mut buffer = self.buffer.take().unwrap_or_else(|| self.buffers.take(BUFFER_BYTES));
            match self.worker.channel.receive(&mut buffer.as_mut_slice()[HEAD_START..]) {
                Ok(Received::Message(len)) => self.buffer = self.worker.take(buffer, len),
                Ok(Received::Empty) => {
                    self.buffer = Some(buffer);
                    break;
                }
                Ok(Received::Closed(closed)) => {
                    self.worker.close(Ok(Some(closed)));
                    break;
                }
                Err(errno) => {
                    self.worker.close(Err(errno));
                    break;
                }
            }
            count += 1;
        }
        count
    }

    fn before_sleep(&mut self) -> Option<Instant> {
        // At its end the channel stays readable, and without room for messages nothing is read: no reason to wake.
        let wanted = self.worker.end.get().is_none() && self.worker.has_room();
        if let Err(error) = self.wake.set_armed(wanted) {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            self.worker.close(Err(errno));
        }
        None
    }
}
