use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::fds::{FdRegistration, Fds, WakeOn};
use crate::ready::{ReadyQueue, TaskHeader, Unpark};
use crate::sync::{Notify, Pending, completion};
use crate::tasks::{TaskStats, Tasks};
use crate::timers::{TimerKey, Timers, coalesced};
use crate::{Clock, Instant, Poller, Random};

/// Runs tasks and timers of one thread. It never blocks and never looks at time except through its clock.
///
/// Dropping it drops all tasks. Their destructors may use a [`Handle`]: what they spawn is dropped at once.
pub struct Executor {
    inner: Rc<Inner>,
}

/// Access to an [`Executor`] from its tasks. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inner: Rc<Inner>,
}

struct Inner {
    clock: Rc<dyn Clock>,
    tasks: RefCell<Tasks>,
    timers: RefCell<Timers>,
    queue: Arc<ReadyQueue>,
    /// The part of the queue that is being worked off.
    current: RefCell<VecDeque<Arc<TaskHeader>>>,
    random: RefCell<Random>,
    /// Set by a core: polls longer than this are reported.
    stall_threshold: Cell<Option<Duration>>,
    stall_reported: Cell<Instant>,
    /// Set by a core: descriptors that end its sleep.
    fds: RefCell<Option<Rc<Fds>>>,
    new_pollers: RefCell<Vec<Box<dyn Poller>>>,
    /// Set by a core: timers may fire a little late, to fire together.
    coalesce: Cell<bool>,
    shutdown: Cell<bool>,
    shutdown_signal: Notify,
    closed: Cell<bool>,
}

/// A stalled core says so at most this often.
const STALL_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// No slab gets this far.
const OUTSIDER_INDEX: usize = usize::MAX;

/// What [`Executor::step`] did.
pub(crate) enum Step {
    Idle,
    /// Whose turn it was: 1 task, or 0 if it no longer exists.
    Polled(usize),
    Outsider,
}

impl Executor {
    pub fn new(clock: Rc<dyn Clock>, seed: u64) -> Self {
        let queue = Arc::new(ReadyQueue::default());
        Self {
            inner: Rc::new(Inner {
                clock,
                tasks: RefCell::new(Tasks::new(Arc::clone(&queue))),
                timers: RefCell::default(),
                queue,
                current: RefCell::default(),
                random: RefCell::new(Random::new(seed)),
                stall_threshold: Cell::new(None),
                stall_reported: Cell::new(Instant::ZERO),
                fds: RefCell::default(),
                new_pollers: RefCell::default(),
                coalesce: Cell::new(false),
                shutdown: Cell::new(false),
                shutdown_signal: Notify::new(),
                closed: Cell::new(false),
            }),
        }
    }

    pub fn handle(&self) -> Handle {
        Handle { inner: Rc::clone(&self.inner) }
    }

    /// Fires the timers that are due, then polls ready tasks, at most `tasks_max`. Returns how many were polled.
    pub fn run(&self, tasks_max: usize) -> usize {
        let inner = &*self.inner;
        inner.fire_timers();
        let mut watch = inner.stall_threshold.get().map(|threshold| (threshold, inner.clock.now()));
        let mut polled = 0;
        while polled < tasks_max {
            let Some(header) = inner.next_ready() else { break };
            polled += inner.poll_task(&header, &mut watch);
        }
        polled
    }

    /// When the next timer is due. Until then, and until something wakes a task, an idle executor stays idle.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.inner.timers.borrow_mut().next_deadline()
    }

    /// No task is ready. (A timer may be due.)
    pub fn is_idle(&self) -> bool {
        self.inner.current.borrow().is_empty() && self.inner.queue.is_empty()
    }

    /// Makes the executor part of a core that can sleep and has a clock to look for stalls with.
    pub(crate) fn attach(&self, unpark: Arc<dyn Unpark>, fds: Rc<Fds>, stall_threshold: Duration) {
        self.inner.queue.set_unpark(unpark);
        *self.inner.fds.borrow_mut() = Some(fds);
        self.inner.stall_threshold.set(Some(stall_threshold));
        self.inner.coalesce.set(true);
    }

    pub(crate) fn has_new_pollers(&self) -> bool {
        !self.inner.new_pollers.borrow().is_empty()
    }

    pub(crate) fn take_new_pollers(&self) -> Vec<Box<dyn Poller>> {
        std::mem::take(&mut *self.inner.new_pollers.borrow_mut())
    }

    pub(crate) fn report_stall(&self, name: &'static str, busy: Duration) {
        self.inner.report_stall(name, busy);
    }

    /// A waker's target that is no task: [`step`](Self::step) reports it in its turn.
    pub(crate) fn outsider(&self) -> Arc<TaskHeader> {
        TaskHeader::new(OUTSIDER_INDEX, 0, Arc::clone(&self.inner.queue))
    }

    /// Polls the next ready task; timers are left alone.
    pub(crate) fn step(&self) -> Step {
        match self.inner.next_ready() {
            None => Step::Idle,
            Some(header) if header.index == OUTSIDER_INDEX => {
                header.clear_queued();
                Step::Outsider
            }
            Some(header) => Step::Polled(self.inner.poll_task(&header, &mut None)),
        }
    }

    pub(crate) fn fire_timers(&self) {
        self.inner.fire_timers();
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.inner.closed.set(true);
        self.inner.shutdown.set(true);
        drop(self.take_new_pollers());
        let slot_count = self.inner.tasks.borrow().slot_count();
        for index in 0..slot_count {
            // The borrow must end before the future is dropped: its destructors may come back here.
            let removed = self.inner.tasks.borrow_mut().clear_slot(index);
            drop(removed);
        }
        self.inner.queue.close();
        drop(self.inner.current.take());
    }
}

impl Inner {
    fn fire_timers(&self) {
        let now = self.clock.now();
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            match due {
                Some(waker) => waker.wake(),
                None => break,
            }
        }
    }

    fn next_ready(&self) -> Option<Arc<TaskHeader>> {
        let mut current = self.current.borrow_mut();
        if current.is_empty() {
            self.queue.drain(&mut current);
        }
        current.pop_front()
    }

    /// Polls one task and returns 1, or 0 if it no longer exists.
    fn poll_task(&self, header: &TaskHeader, watch: &mut Option<(Duration, Instant)>) -> usize {
        header.clear_queued();
        let taken = self.tasks.borrow_mut().take(header.index, header.serial);
        let Some(mut running) = taken else { return 0 };
        let name = running.name;
        let finished = {
            let mut context = Context::from_waker(&running.waker);
            running.future.as_mut().poll(&mut context).is_ready()
        };
        if finished {
            // Dropped before its slot is free, so that what its destructors spawn cannot be mistaken for it.
            drop(running);
            self.tasks.borrow_mut().finish(header.index);
        } else {
            let aborted = self.tasks.borrow_mut().put_back(header.index, running);
            drop(aborted);
        }
        match watch {
            None => {
                self.tasks.borrow_mut().count_poll(name, None);
            }
            Some((threshold, started)) => {
                let now = self.clock.now();
                let busy = now.since(*started);
                *started = now;
                let name = self.tasks.borrow_mut().count_poll(name, Some(busy));
                if busy > *threshold {
                    self.report_stall(name, busy);
                }
            }
        }
        1
    }

    fn report_stall(&self, name: &'static str, busy: Duration) {
        let now = self.clock.now();
        if now.since(self.stall_reported.get()) >= STALL_REPORT_INTERVAL {
            self.stall_reported.set(now);
            tracing::warn!(task = name, busy_ms = busy.as_millis() as u64, "a task held the core too long");
        }
    }
}

impl Handle {
    pub fn now(&self) -> Instant {
        self.inner.clock.now()
    }

    /// Nanoseconds since the Unix epoch.
    pub fn wall_ns(&self) -> i64 {
        self.inner.clock.wall_ns()
    }

    pub fn clock(&self) -> Rc<dyn Clock> {
        Rc::clone(&self.inner.clock)
    }

    /// Starts a task. It runs on when the returned [`Task`] is dropped. `name` shows up in statistics and stall reports.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let (completer, pending) = completion();
        let mut task = Task { pending, place: None };
        if self.inner.closed.get() {
            return task;
        }
        let future = Box::pin(async move { completer.complete(future.await) });
        let (index, serial, waker) = self.inner.tasks.borrow_mut().insert(name, future);
        waker.wake();
        task.place = Some(Place { executor: Rc::downgrade(&self.inner), index, serial });
        task
    }

    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep { inner: Rc::clone(&self.inner), deadline, key: None }
    }

    /// Gives up on `future` after `duration`; it is dropped then.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, Elapsed> {
        self.timeout_at(self.now() + duration, future).await
    }

    /// Gives up on `future` at `deadline`; it is dropped then.
    pub async fn timeout_at<F: Future>(&self, deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = self.sleep_until(deadline);
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            Pin::new(&mut sleep).poll(context).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Lets every task that is ready now run first.
    pub fn yield_now(&self) -> YieldNow {
        YieldNow { yielded: false }
    }

    pub fn random_u64(&self) -> u64 {
        self.inner.random.borrow_mut().next_u64()
    }

    /// Evenly from `0..bound`; 0 if `bound` is 0.
    pub fn random_below(&self, bound: u64) -> u64 {
        self.inner.random.borrow_mut().below(bound)
    }

    /// Calls `callback` whenever `fd` is readable: it has to see to it that somebody reads, or it is called again.
    ///
    /// Fails on an executor without a core, and when the descriptor can't be waited for.
    pub fn register_fd(&self, fd: RawFd, callback: Rc<dyn Fn()>) -> io::Result<FdRegistration> {
        match &*self.inner.fds.borrow() {
            Some(fds) => fds.register(fd, callback),
            None => Err(io::Error::new(io::ErrorKind::Unsupported, "this executor waits for no descriptors")),
        }
    }

    /// Ends the core's sleep when `fd` is readable, for descriptors that several cores wait for: only one of them wakes.
    ///
    /// Fails where [`Self::register_fd`] does.
    pub fn wake_one(&self, fd: RawFd) -> io::Result<WakeOn> {
        match &*self.inner.fds.borrow() {
            Some(fds) => fds.wake_one(fd),
            None => Err(io::Error::new(io::ErrorKind::Unsupported, "this executor waits for no descriptors")),
        }
    }

    /// Adds a poller to the core, or the virtual time, that runs this executor.
    pub fn add_poller(&self, poller: Box<dyn Poller>) {
        if !self.inner.closed.get() {
            self.inner.new_pollers.borrow_mut().push(poller);
        }
    }

    /// Asks everything on this executor to stop: a core leaves its loop, tasks that wait for
    /// [`until_shutdown`](Self::until_shutdown) go on.
    pub fn shutdown(&self) {
        self.inner.shutdown.set(true);
        self.inner.shutdown_signal.notify_all();
    }

    pub fn is_shutdown(&self) -> bool {
        self.inner.shutdown.get()
    }

    pub async fn until_shutdown(&self) {
        while !self.is_shutdown() {
            self.inner.shutdown_signal.notified().await;
        }
    }

    /// How many tasks exist.
    pub fn task_count(&self) -> usize {
        self.inner.tasks.borrow().live()
    }

    /// Per task name, sorted by name.
    pub fn task_stats(&self) -> Vec<TaskStats> {
        self.inner.tasks.borrow().stats()
    }

    /// Which tasks exist and are not being polled: (name, how many), sorted by name.
    pub fn task_census(&self) -> Vec<(&'static str, usize)> {
        self.inner.tasks.borrow().census()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("tasks", &self.task_count()).finish_non_exhaustive()
    }
}

/// The task was aborted, or its executor dropped, before it finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted;

impl fmt::Display for Aborted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("task aborted")
    }
}

impl std::error::Error for Aborted {}

/// The time was up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("time is up")
    }
}

impl std::error::Error for Elapsed {}

/// A spawned task; awaits its result. Dropping it detaches the task.
#[must_use = "dropping a task detaches it: say so with `detach`"]
pub struct Task<T> {
    pending: Pending<T>,
    place: Option<Place>,
}

struct Place {
    executor: Weak<Inner>,
    index: usize,
    serial: u64,
}

impl<T> Task<T> {
    /// Lets the task run on its own.
    pub fn detach(self) {}

    /// Drops the task's future: now, or if it is aborting itself, when its current poll returns.
    pub fn abort(&self) {
        let Some(place) = &self.place else { return };
        let Some(executor) = place.executor.upgrade() else { return };
        let removed = executor.tasks.borrow_mut().abort(place.index, place.serial);
        drop(removed);
    }

    /// It finished or was aborted.
    pub fn is_finished(&self) -> bool {
        self.pending.is_settled()
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, Aborted>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.pending).poll(context).map_err(|_| Aborted)
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

/// Ends at its deadline, never before. On a core it may end later by an eighth of its length, at most 4.2 ms, so that
/// timers share wake-ups; in virtual time it ends exactly then. Made by [`Handle::sleep`].
#[must_use = "a sleep does nothing unless awaited"]
pub struct Sleep {
    inner: Rc<Inner>,
    deadline: Instant,
    key: Option<TimerKey>,
}

impl Sleep {
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(key) = self.key {
            if self.inner.timers.borrow_mut().update(key, context.waker()) {
                return Poll::Pending;
            }
            self.key = None;
            return Poll::Ready(());
        }
        let now = self.inner.clock.now();
        if now >= self.deadline {
            return Poll::Ready(());
        }
        let fires_at = if self.inner.coalesce.get() { coalesced(now, self.deadline) } else { self.deadline };
        let key = self.inner.timers.borrow_mut().insert(fires_at, context.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let waker = self.inner.timers.borrow_mut().cancel(key);
            drop(waker);
        }
    }
}

/// Made by [`Handle::yield_now`].
#[must_use = "a yield does nothing unless awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::VirtualClock;

    struct Nobody;

    impl Unpark for Nobody {
        fn unpark(&self) {}
    }

    #[test]
    fn a_task_that_holds_the_core_is_found_in_the_statistics() {
        let clock = VirtualClock::new();
        let executor = Executor::new(Rc::new(clock.clone()), 0);
        executor.inner.queue.set_unpark(Arc::new(Nobody));
        executor.inner.stall_threshold.set(Some(Duration::from_millis(50)));
        let handle = executor.handle();
        for millis in [1, 60, 2] {
            let clock = clock.clone();
            handle.spawn("greedy", async move { clock.advance(Duration::from_millis(millis)) }).detach();
        }
        handle.spawn("modest", async {}).detach();
        clock.advance(STALL_REPORT_INTERVAL);
        executor.run(100);
        let stats = handle.task_stats();
        assert_eq!((stats[0].name, stats[0].polls), ("greedy", 3));
        assert_eq!((stats[0].busy.as_millis(), stats[0].busy_max.as_millis()), (63, 60));
        assert_eq!((stats[1].name, stats[1].busy), ("modest", Duration::ZERO));
        assert_eq!(executor.inner.stall_reported.get(), clock.now().before(Duration::from_millis(2)), "reported");
    }

    #[test]
    fn a_dropped_executor_frees_its_queue() {
        let executor = Executor::new(Rc::new(VirtualClock::new()), 0);
        let handle = executor.handle();
        handle.spawn("woken", pending::<()>()).detach();
        let waker = std::task::Waker::from(executor.outsider());
        waker.wake_by_ref();
        let queue = Arc::downgrade(&executor.inner.queue);
        drop((executor, handle));
        waker.wake();
        assert!(queue.upgrade().is_none());
    }
}
