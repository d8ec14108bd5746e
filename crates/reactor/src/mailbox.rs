use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Handle;
use crate::park::Parker;
use crate::ready::Unpark;

/// How many messages may wait in a core's mailbox.
pub const MAILBOX_MESSAGES_MAX: usize = 65_536;

/// What other threads ask of a core: to be run there.
pub type Message = Box<dyn FnOnce(&Handle) + Send>;

/// The way into a core from other threads.
#[derive(Clone)]
pub struct Mailbox {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    queue: Mutex<VecDeque<Message>>,
    /// Messages in the queue, to be looked at without the lock.
    len: AtomicUsize,
    closed: AtomicBool,
    parker: Arc<Parker>,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailboxError {
    /// [`MAILBOX_MESSAGES_MAX`] are waiting: the core is stuck or overrun. Try later.
    Full,
    /// The core has ended.
    Closed,
}

impl fmt::Display for MailboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the core's mailbox is full",
            Self::Closed => "the core has ended",
        })
    }
}

impl std::error::Error for MailboxError {}

impl Mailbox {
    pub(crate) fn new(parker: Arc<Parker>) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                len: AtomicUsize::new(0),
                closed: AtomicBool::new(false),
                parker,
            }),
        }
    }

    /// Runs `message` on the core's thread, soon and in the order of sending. It is dropped unrun if the core ends first.
    pub fn send(&self, message: Message) -> Result<(), MailboxError> {
        {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if self.shared.closed.load(Ordering::Acquire) {
                return Err(MailboxError::Closed);
            }
            if queue.len() >= MAILBOX_MESSAGES_MAX {
                return Err(MailboxError::Full);
            }
            queue.push_back(message);
            self.shared.len.store(queue.len(), Ordering::SeqCst);
        }
        self.shared.parker.unpark();
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.shared.len.load(Ordering::SeqCst) == 0
    }

    pub(crate) fn take_all(&self) -> VecDeque<Message> {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.len.store(0, Ordering::SeqCst);
        std::mem::take(&mut *queue)
    }

    /// Refuses messages from now on and drops those that wait.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        drop(self.take_all());
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("waiting", &self.shared.len).finish_non_exhaustive()
    }
}
