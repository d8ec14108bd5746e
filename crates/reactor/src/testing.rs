//! Runs an executor in virtual time.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::core_loop::earliest;
use crate::executor::Step;
use crate::{Clock, Executor, Handle, Instant, Poller, VirtualClock};

/// So many polls without time passing mean that tasks keep each other busy for ever.
const POLLS_PER_INSTANT_MAX: usize = 5_000_000;

/// An executor whose time jumps to the next deadline whenever nothing else can happen.
pub struct VirtualTime {
    clock: VirtualClock,
    executor: Executor,
    pollers: RefCell<Vec<Box<dyn Poller>>>,
}

impl VirtualTime {
    pub fn new(seed: u64) -> Self {
        let clock = VirtualClock::new();
        let executor = Executor::new(Rc::new(clock.clone()), seed);
        Self { clock, executor, pollers: RefCell::default() }
    }

    pub fn handle(&self) -> Handle {
        self.executor.handle()
    }

    pub fn clock(&self) -> VirtualClock {
        self.clock.clone()
    }

    /// Adds a source of events. It is polled like on a core; the time that its `before_sleep` names counts as a deadline.
    pub fn add_poller(&self, poller: Box<dyn Poller>) {
        self.handle().add_poller(poller);
    }

    /// Runs until `future` is done. It takes turns with the tasks; time advances only when everything waits for it.
    ///
    /// Panics when nothing can happen any more, or when tasks spin without letting time pass.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let waker = Waker::from(self.executor.outsider());
        waker.wake_by_ref();
        let mut output = None;
        loop {
            self.settle(&mut || {
                if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    output = Some(value);
                }
                output.is_some()
            });
            if let Some(output) = output {
                return output;
            }
            match self.next_event() {
                Some(at) => self.clock.advance_to(at),
                None => {
                    panic!("deadlock at {:?}: waiting tasks are {:?}", self.clock.now(), self.handle().task_census())
                }
            }
        }
    }

    /// Lets this much time pass and everything happen that is due in it.
    pub fn run_for(&self, duration: Duration) {
        let end = self.clock.now() + duration;
        loop {
            self.settle(&mut || false);
            match self.next_event() {
                Some(at) if at <= end => self.clock.advance_to(at),
                _ => break,
            }
        }
        self.clock.advance_to(end);
        self.settle(&mut || false);
    }

    /// Runs what can run at this instant, until nothing is left or the main future, when it was its turn, is done.
    fn settle(&self, poll_main: &mut dyn FnMut() -> bool) {
        let mut polls = 0;
        loop {
            let mut work = 0;
            self.pollers.borrow_mut().extend(self.executor.take_new_pollers());
            for poller in self.pollers.borrow_mut().iter_mut() {
                work += poller.poll(self.clock.now());
            }
            self.executor.fire_timers();
            loop {
                match self.executor.step() {
                    Step::Idle => break,
                    Step::Polled(polled) => work += polled,
                    Step::Outsider if poll_main() => return,
                    Step::Outsider => work += 1,
                }
                if polls + work > POLLS_PER_INSTANT_MAX {
                    panic!("livelock at {:?}: tasks are {:?}", self.clock.now(), self.handle().task_stats());
                }
            }
            if work == 0 {
                return;
            }
            polls += work;
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let mut next = self.executor.next_deadline();
        for poller in self.pollers.borrow_mut().iter_mut() {
            next = earliest(next, poller.before_sleep());
        }
        next
    }
}
