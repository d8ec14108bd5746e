use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Wake;

/// What ends the sleep of a thread: called from any thread.
pub(crate) trait Unpark: Send + Sync {
    fn unpark(&self);
}

/// Tasks that were woken, in order. Wakers may be called from any thread, so this is the one part of an
/// executor that is shared; a lock that nobody contends costs about as much as the owner check that would avoid it.
#[derive(Default)]
pub(crate) struct ReadyQueue {
    woken: Mutex<Woken>,
    /// Set once, by a core that can sleep.
    unpark: OnceLock<Arc<dyn Unpark>>,
}

#[derive(Default)]
struct Woken {
    tasks: VecDeque<Arc<TaskHeader>>,
    /// The executor is gone. Tasks hold the queue: one that still held tasks would never be freed.
    is_closed: bool,
}

impl ReadyQueue {
    pub(crate) fn set_unpark(&self, unpark: Arc<dyn Unpark>) {
        // A second core on one executor cannot be built: the executor belongs to the first.
        let _ = self.unpark.set(unpark);
    }

    pub(crate) fn push(&self, task: Arc<TaskHeader>) {
        {
            let mut woken = self.lock();
            if woken.is_closed {
                return;
            }
            woken.tasks.push_back(task);
        }
        if let Some(unpark) = self.unpark.get() {
            unpark.unpark();
        }
    }

    /// Moves all that is queued behind what `into` holds.
    pub(crate) fn drain(&self, into: &mut VecDeque<Arc<TaskHeader>>) {
        let mut woken = self.lock();
        if into.is_empty() {
            std::mem::swap(&mut woken.tasks, into);
        } else {
            into.append(&mut woken.tasks);
        }
    }

    /// Forgets what is queued, now and from now on.
    pub(crate) fn close(&self) {
        let forgotten = {
            let mut woken = self.lock();
            woken.is_closed = true;
            std::mem::take(&mut woken.tasks)
        };
        drop(forgotten);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().tasks.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Woken> {
        // Nothing under this lock can panic half-way; a poisoned queue is a whole queue.
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a task that wakers hold.
pub(crate) struct TaskHeader {
    pub(crate) index: usize,
    /// Never used twice, so that a waker which outlives its task wakes nobody else.
    pub(crate) serial: u64,
    queued: AtomicBool,
    queue: Arc<ReadyQueue>,
}

impl TaskHeader {
    pub(crate) fn new(index: usize, serial: u64, queue: Arc<ReadyQueue>) -> Arc<Self> {
        Arc::new(Self { index, serial, queued: AtomicBool::new(false), queue })
    }

    /// To be called before the task is polled: wakes from now on queue it again.
    pub(crate) fn clear_queued(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

impl Wake for TaskHeader {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            let queue = Arc::clone(&self.queue);
            queue.push(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.queue.push(Arc::clone(self));
        }
    }
}
