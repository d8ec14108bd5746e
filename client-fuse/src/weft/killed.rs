//! Whether the caller of a request is being killed.
//!
//! The kernel tells of the first signal that comes for a caller, fatal or not. One that the program catches must not
//! fail a system call that no local filesystem would let it fail (a timer's tick in the middle of a rename); a fatal one
//! must end the wait, since the kernel waits for our answer. So after that first word the caller itself is looked at.

use crate::filesystem::Request;
use std::time::Duration;
use weft_reactor::Handle;

/// How often a caller with a signal is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A caller that can't be looked at (in another PID namespace) is taken for killed after this long.
const UNSEEN_WAIT: Duration = Duration::from_secs(5);

/// Ends when the caller is being killed, perhaps never.
pub async fn killed(handle: &Handle, request: &Request) {
    request.interrupt.raised().await;
    if request.pid == 0 {
        return handle.sleep(UNSEEN_WAIT).await;
    }
    while !is_dying(request.pid) {
        handle.sleep(LOOK_EVERY).await;
    }
}

fn is_dying(thread: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => has_fatal_signal(&status),
        Err(_) => true,
    }
}

/// Whether a signal is pending that the thread neither blocks, catches nor ignores, and that ends a process.
fn has_fatal_signal(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0)
    };
    let bit = |signal: i32| 1u64 << (signal - 1);
    let harmless = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    let harmless = harmless.into_iter().fold(0, |all, signal| all | bit(signal));
    let pending = mask("SigPnd") | mask("ShdPnd");
    let handled = mask("SigBlk") | mask("SigIgn") | mask("SigCgt") | harmless;
    // What kills can't be handled.
    pending & bit(libc::SIGKILL) != 0 || pending & !handled != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tx\nSigPnd:\t{:016x}\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n",
            0
        )
    }

    #[test]
    fn only_signals_that_end_the_process_count() {
        let bit = |signal: i32| 1u64 << (signal - 1);
        assert!(has_fatal_signal(&status(bit(libc::SIGKILL), 0, 0, 0)));
        assert!(has_fatal_signal(&status(bit(libc::SIGTERM), 0, 0, 0)));
        assert!(!has_fatal_signal(&status(bit(libc::SIGTERM), 0, 0, bit(libc::SIGTERM))));
        assert!(!has_fatal_signal(&status(bit(libc::SIGINT), 0, bit(libc::SIGINT), 0)));
        assert!(!has_fatal_signal(&status(bit(libc::SIGALRM), bit(libc::SIGALRM), 0, 0)));
        assert!(!has_fatal_signal(&status(bit(libc::SIGCHLD), 0, 0, 0)));
        assert!(!has_fatal_signal(&status(0, 0, 0, 0)));
    }
}
