//! Waiting for each other, on one thread. Everything here is deterministic: waiters are served first come, first served.

mod completion;
pub mod mpsc;
mod mutex;
mod notify;
mod semaphore;
mod waiters;
mod watch;

pub use completion::{Completer, Dropped, Pending, completion};
pub use mutex::{Mutex, MutexGuard};
pub use notify::{Notified, Notify};
pub use semaphore::{Acquire, Permit, Semaphore};
pub use watch::Watch;
