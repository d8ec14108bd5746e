//! The polling core: tasks, timers, pollers, buffers, idle policy.
//!
//! One [`Executor`] runs on one thread and owns everything that its tasks touch. It knows time only through
//! a [`Clock`] and randomness only through its seed, so that a run in virtual time is a function of the seed:
//! ready tasks are polled first in, first out, and timers fire by (deadline, order of registration).
//! [`Core`] drives an executor on a real thread with pollers and an idle policy; [`testing::VirtualTime`]
//! drives one in tests.
#![deny(unsafe_code)]

pub mod buf;
mod combine;
mod core_loop;
mod executor;
mod fds;
mod mailbox;
mod park;
mod poller;
mod random;
mod ready;
mod spin;
pub mod sync;
mod tasks;
pub mod testing;
mod time;
mod timers;

pub use buf::{AlignedBuf, Pool, is_aligned, to_aligned};
pub use combine::{Either, join, join_all, select};
pub use core_loop::{Core, CoreOptions, CoreStats, Idle};
pub use executor::{Aborted, Elapsed, Executor, Handle, Sleep, Task, YieldNow};
pub use fds::{FdRegistration, WakeOn};
pub use mailbox::{MAILBOX_MESSAGES_MAX, Mailbox, MailboxError, Message};
pub use poller::Poller;
pub use random::Random;
pub use tasks::TaskStats;
pub use time::{Clock, Instant, SystemClock, VirtualClock};
