use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::ready::Unpark;

/// Ends the sleep of a core from any thread, without a system call while the core is awake.
pub(crate) struct Parker {
    asleep: AtomicBool,
    event: EventFd,
}

impl Parker {
    pub(crate) fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { asleep: AtomicBool::new(false), event })
    }

    pub(crate) fn wait_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// From here on [`Unpark::unpark`] makes the event readable. The core looks at its queues *after* this and only
    /// then sleeps: whoever queued something before that look is seen by it, whoever queues later sees the flag.
    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// To be called when the event was seen readable. (Not at each waking: who takes the flag writes only later.)
    pub(crate) fn clear_event(&self) {
        let _ = self.event.read();
    }
}

impl Unpark for Parker {
    fn unpark(&self) {
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            // It fails only when the counter is full, and then the event is readable as it should be.
            let _ = self.event.write(1);
        }
    }
}
