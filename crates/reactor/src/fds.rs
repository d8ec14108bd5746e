//! Sleeping until a file descriptor is readable or a time has come.
#![allow(unsafe_code, reason = "epoll on descriptors that other crates own, with a timeout in nanoseconds")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::park::Parker;

/// Events taken from the kernel at a time; more stay there for the next look.
const EVENTS_PER_WAIT_MAX: usize = 64;
const TOKEN_PARKER: u64 = 0;
/// The token of descriptors that only end the sleep.
const TOKEN_WAKE_ONLY: u64 = 1;

/// The descriptors that end a core's sleep.
pub(crate) struct Fds {
    epoll: OwnedFd,
    parker: Arc<Parker>,
    callbacks: RefCell<BTreeMap<u64, Rc<dyn Fn()>>>,
    token_next: Cell<u64>,
    /// The kernel has `epoll_pwait2` (Linux 5.11).
    has_pwait2: Cell<bool>,
}

impl Fds {
    pub(crate) fn new(parker: Arc<Parker>) -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it is owned, and nothing else owns it.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let fds = Self {
            epoll,
            parker,
            callbacks: RefCell::default(),
            token_next: Cell::new(TOKEN_WAKE_ONLY + 1),
            has_pwait2: Cell::new(true),
        };
        fds.control(libc::EPOLL_CTL_ADD, fds.parker.wait_fd(), TOKEN_PARKER)?;
        Ok(fds)
    }

    /// Adds a descriptor that ends the sleep when it is readable.
    pub(crate) fn add_wake_only(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, TOKEN_WAKE_ONLY)
    }

    /// As [`Self::add_wake_only`], but of several cores that wait for the same only one wakes.
    pub(crate) fn wake_one(self: &Rc<Self>, fd: RawFd) -> io::Result<WakeOn> {
        let mut wake = WakeOn { fds: Rc::clone(self), fd, armed: false };
        wake.set_armed(true)?;
        Ok(wake)
    }

    pub(crate) fn register(self: &Rc<Self>, fd: RawFd, callback: Rc<dyn Fn()>) -> io::Result<FdRegistration> {
        let token = self.token_next.get();
        self.token_next.set(token + 1);
        self.control(libc::EPOLL_CTL_ADD, fd, token)?;
        self.callbacks.borrow_mut().insert(token, callback);
        Ok(FdRegistration { fds: Rc::clone(self), fd, token })
    }

    pub(crate) fn has_callbacks(&self) -> bool {
        !self.callbacks.borrow().is_empty()
    }

    /// Waits at most `timeout` (`None`: for ever) and calls back for what is readable. Returns how many callbacks that were.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<usize> {
        let mut events = [MaybeUninit::<libc::epoll_event>::uninit(); EVENTS_PER_WAIT_MAX];
        let count = match self.wait_raw(&mut events, timeout) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let mut called = 0;
        for event in &events[..count] {
            // SAFETY: the kernel has filled in the first `count` events.
            let token = unsafe { event.assume_init() }.u64;
            if token == TOKEN_PARKER {
                self.parker.clear_event();
                continue;
            }
            // The borrow ends before the call: callbacks may register and deregister.
            let callback = self.callbacks.borrow().get(&token).cloned();
            if let Some(callback) = callback {
                callback();
                called += 1;
            }
        }
        Ok(called)
    }

    fn wait_raw(
        &self,
        events: &mut [MaybeUninit<libc::epoll_event>; EVENTS_PER_WAIT_MAX],
        timeout: Option<Duration>,
    ) -> io::Result<usize> {
        if self.has_pwait2.get() {
            let timespec = timeout.map(|timeout| libc::timespec {
                tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: timeout.subsec_nanos() as libc::c_long,
            });
            let timespec_pointer = timespec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            // SAFETY: `events` has room for as many events as are asked for, `timespec` outlives the call,
            // and a null signal mask means that the mask stays as it is.
            let count = unsafe {
                libc::syscall(
                    libc::SYS_epoll_pwait2,
                    self.epoll.as_raw_fd(),
                    events.as_mut_ptr(),
                    EVENTS_PER_WAIT_MAX as libc::c_int,
                    timespec_pointer,
                    std::ptr::null::<libc::sigset_t>(),
                    0_usize,
                )
            };
            match usize::try_from(count) {
                Ok(count) => return Ok(count),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() != Some(libc::ENOSYS) {
                        return Err(error);
                    }
                    self.has_pwait2.set(false);
                }
            }
        }
        let millis = timeout.map_or(-1, |timeout| {
            libc::c_int::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: `events` has room for as many events as are asked for.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr().cast(),
                EVENTS_PER_WAIT_MAX as libc::c_int,
                millis,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, token: u64) -> io::Result<()> {
        self.control_events(operation, fd, token, libc::EPOLLIN as u32)
    }

    fn control_events(&self, operation: libc::c_int, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` outlives the call. A descriptor that is not open makes it fail, nothing worse.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Ends the core's sleep when a descriptor is readable that other cores may wait for, too: one of those asleep wakes.
/// Made by [`Handle::wake_one`](crate::Handle::wake_one); drop it before the descriptor is closed.
pub struct WakeOn {
    fds: Rc<Fds>,
    fd: RawFd,
    armed: bool,
}

impl WakeOn {
    /// While it is not armed, the core sleeps on, whatever there is to read.
    pub fn set_armed(&mut self, armed: bool) -> io::Result<()> {
        if armed == self.armed {
            return Ok(());
        }
        let operation = if armed { libc::EPOLL_CTL_ADD } else { libc::EPOLL_CTL_DEL };
        let events = (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32;
        self.fds.control_events(operation, self.fd, TOKEN_WAKE_ONLY, events)?;
        self.armed = armed;
        Ok(())
    }
}

impl Drop for WakeOn {
    fn drop(&mut self) {
        // It fails when the descriptor was closed before; then the kernel has forgotten it already.
        let _ = self.set_armed(false);
    }
}

impl fmt::Debug for WakeOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakeOn").field("fd", &self.fd).field("armed", &self.armed).finish_non_exhaustive()
    }
}

/// Keeps a callback registered. Made by [`Handle::register_fd`](crate::Handle::register_fd); drop it before the descriptor is closed.
#[must_use = "dropping a registration ends it"]
pub struct FdRegistration {
    fds: Rc<Fds>,
    fd: RawFd,
    token: u64,
}

impl Drop for FdRegistration {
    fn drop(&mut self) {
        let callback = self.fds.callbacks.borrow_mut().remove(&self.token);
        drop(callback);
        // It fails when the descriptor was closed before; then the kernel has forgotten it already.
        let _ = self.fds.control(libc::EPOLL_CTL_DEL, self.fd, self.token);
    }
}

impl fmt::Debug for FdRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdRegistration").field("fd", &self.fd).finish_non_exhaustive()
    }
}
