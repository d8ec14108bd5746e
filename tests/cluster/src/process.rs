//! Processes that may be children of somebody else.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;

/// Whether the process runs; one that ended and was not waited for does not.
pub fn alive(pid: Pid) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name before the state is in parentheses and may contain anything.
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
}

/// Whether the process has `path` as one of its arguments: a process id alone may have been reused.
pub fn has_argument(pid: Pid, path: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    line.split(|byte| *byte == 0).any(|argument| argument == path.as_os_str().as_encoded_bytes())
}

pub fn children(pid: Pid) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok().map(Pid::from_raw)).collect()
}

/// Sends a signal; that the process is gone already is no error.
pub fn signal(pid: Pid, signal: Signal) -> anyhow::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(anyhow::anyhow!("can't send {signal} to process {pid}: {error}")),
    }
}
