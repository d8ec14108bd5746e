use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::fds::Fds;
use crate::mailbox::Mailbox;
use crate::park::Parker;
use crate::spin::SpinHabit;
use crate::{Executor, Handle, Instant, Poller, SystemClock};

/// Tasks polled between two looks at the pollers.
const TASKS_PER_LOOP_MAX: usize = 256;
/// How often a core that never sleeps looks at registered descriptors.
const FD_CHECK_INTERVAL: Duration = Duration::from_micros(20);
/// A poll, or a round of the pollers, that takes longer is reported with its name.
const STALL_AFTER: Duration = Duration::from_millis(50);
/// Rounds that tasks get to finish once shutdown was asked for.
const SHUTDOWN_ROUNDS_MAX: usize = 1_000;

/// What a core does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Asks its pollers again and again.
    Busy,
    /// Sleeps until something happens. As long as what comes mostly comes within `spin`, it goes on asking for so long first.
    Adaptive { spin: Duration },
}

#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Name of the thread; the kernel keeps 15 bytes of it.
    pub name: String,
    pub idle: Idle,
    /// Seed of [`Handle::random_u64`].
    pub seed: u64,
    /// The processor to stay on.
    pub pin: Option<usize>,
}

/// What a core has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// Rounds of the loop.
    pub rounds: u64,
    /// Rounds that found nothing to do.
    pub rounds_idle: u64,
    pub sleeps: u64,
}

/// One thread's loop: pollers, mailbox, tasks, and sleep when there is nothing to do.
pub struct Core {
    // Dropped in this order: tasks may hold what pollers drive, and registrations of descriptors.
    executor: Executor,
    pollers: Vec<Box<dyn Poller>>,
    handle: Handle,
    mailbox: Mailbox,
    fds: Rc<Fds>,
    parker: Arc<Parker>,
    idle: Idle,
    spin_habit: SpinHabit,
    stats: CoreStats,
    fds_checked: Instant,
}

impl Core {
    /// Makes a core of the calling thread, names and pins it.
    ///
    /// Fails when the system has no more descriptors, or has no such processor for us.
    pub fn new(options: CoreOptions) -> io::Result<Self> {
        if let Some(processor) = options.pin {
            pin_thread(processor)?;
        }
        name_thread(&options.name);
        let executor = Executor::new(Rc::new(SystemClock), options.seed);
        let parker = Arc::new(Parker::new()?);
        let fds = Rc::new(Fds::new(Arc::clone(&parker))?);
        executor.attach(Arc::clone(&parker) as _, Rc::clone(&fds), STALL_AFTER);
        Ok(Self {
            handle: executor.handle(),
            executor,
            pollers: Vec::new(),
            mailbox: Mailbox::new(Arc::clone(&parker)),
            fds,
            parker,
            idle: options.idle,
            spin_habit: SpinHabit::default(),
            stats: CoreStats::default(),
            fds_checked: Instant::ZERO,
        })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    pub fn stats(&self) -> CoreStats {
        self.stats
    }

    /// Adds a poller; it is asked in the order of adding. Fails when its descriptor can't be waited for.
    pub fn add_poller(&mut self, poller: Box<dyn Poller>) -> io::Result<()> {
        if let Some(fd) = poller.wait_fd() {
            self.fds.add_wake_only(fd)?;
        }
        self.pollers.push(poller);
        Ok(())
    }

    /// Runs until [`Handle::shutdown`] and lets tasks that are ready then finish.
    ///
    /// Fails when the system refuses to wait for a descriptor.
    pub fn run(&mut self) -> io::Result<()> {
        let mut input_at = self.handle.now();
        let mut asked_in_vain = false;
        while !self.handle.is_shutdown() {
            let now = self.handle.now();
            let round = self.round(now)?;
            if let Round::Nothing = round {
                self.stats.rounds_idle += 1;
            }
            let Idle::Adaptive { spin } = self.idle else {
                if let Round::Nothing = round {
                    std::hint::spin_loop();
                }
                continue;
            };
            if let Round::Input = round {
                if std::mem::take(&mut asked_in_vain) {
                    self.spin_habit.note(true);
                }
                input_at = now;
            }
            match round {
                // Descriptors that are readable already end the sleep at once, so this loses nothing.
                _ if !self.spin_habit.pays() => self.sleep(spin)?,
                Round::Nothing if now.since(input_at) >= spin => {
                    if std::mem::take(&mut asked_in_vain) {
                        self.spin_habit.note(false);
                    }
                    self.sleep(spin)?;
                }
                Round::Nothing => {
                    asked_in_vain = true;
                    std::hint::spin_loop();
                }
                Round::Input | Round::TasksOnly => (),
            }
        }
        for _ in 0..SHUTDOWN_ROUNDS_MAX {
            if let Round::Nothing = self.round(self.handle.now())? {
                break;
            }
        }
        Ok(())
    }

    /// Asks everyone once.
    fn round(&mut self, now: Instant) -> io::Result<Round> {
        self.stats.rounds += 1;
        let mut input = 0;
        for poller in self.executor.take_new_pollers() {
            self.add_poller(poller)?;
        }
        // Before the pollers: a message may say that there is something for one of them, and a sleep may follow this round.
        if !self.mailbox.is_empty() {
            for message in self.mailbox.take_all() {
                message(&self.handle);
                input += 1;
            }
        }
        for poller in &mut self.pollers {
            input += poller.poll(now);
        }
        if self.fds.has_callbacks() && now.since(self.fds_checked) >= FD_CHECK_INTERVAL {
            self.fds_checked = now;
            input += self.fds.wait(Some(Duration::ZERO))?;
        }
        let polled_at = self.handle.now();
        if polled_at.since(now) > STALL_AFTER {
            self.executor.report_stall("pollers", polled_at.since(now));
        }
        let tasks = self.executor.run(TASKS_PER_LOOP_MAX);
        Ok(match (input, tasks) {
            (0, 0) => Round::Nothing,
            (0, _) => Round::TasksOnly,
            _ => Round::Input,
        })
    }

    fn sleep(&mut self, spin: Duration) -> io::Result<()> {
        let now = self.handle.now();
        let mut wake_at = self.executor.next_deadline();
        for poller in &mut self.pollers {
            wake_at = earliest(wake_at, poller.before_sleep());
        }
        self.parker.fall_asleep();
        let nothing_to_do = self.mailbox.is_empty()
            && self.executor.is_idle()
            && !self.executor.has_new_pollers()
            && !self.handle.is_shutdown();
        if nothing_to_do && wake_at.is_none_or(|wake_at| wake_at > now) {
            self.stats.sleeps += 1;
            let slept = self.fds.wait(wake_at.map(|wake_at| wake_at.since(now)));
            self.parker.wake_up();
            slept?;
            // The sleep has looked at all descriptors.
            self.fds_checked = self.handle.now();
            self.spin_habit.note(self.fds_checked.since(now) < spin);
        } else {
            self.parker.wake_up();
        }
        Ok(())
    }
}

/// What a round of the loop found to do.
enum Round {
    Nothing,
    /// Timers and what follows from them. That is no sign of more to come soon.
    TasksOnly,
    /// Something from outside. The next is likely near, so it pays to stay awake for it.
    Input,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("idle", &self.idle).field("stats", &self.stats).finish_non_exhaustive()
    }
}

pub(crate) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn pin_thread(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("pinning to processor {processor}: {error}"))
    })
}

fn name_thread(name: &str) {
    // A name is for people to read: one with a zero byte in it is not worth failing for.
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}
