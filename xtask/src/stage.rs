//! One command with a time-box, in a process group of its own so that nothing of it outlives the box.

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub enum Ended {
    Exited(ExitStatus),
    TimedOut,
}

pub struct Outcome {
    pub ended: Ended,
    pub took: Duration,
}

/// Runs the command and waits for its end, or kills it with all its children when `time_box` is over.
pub fn run(mut command: Command, time_box: Duration) -> Result<Outcome> {
    let started = Instant::now();
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("can't start {command:?}"))?;
    let group = Pid::from_raw(child.id() as i32);
    let (sender, receiver) = channel();
    let waiter = std::thread::spawn(move || sender.send(child.wait()));
    let ended = match receiver.recv_timeout(time_box) {
        Ok(status) => Ended::Exited(status.with_context(|| format!("can't wait for {command:?}"))?),
        Err(RecvTimeoutError::Timeout) => {
            // The group may have ended in this very moment; then there is nothing to kill.
            let _ = killpg(group, Signal::SIGKILL);
            Ended::TimedOut
        }
        Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the thread waiting for {command:?} is gone"),
    };
    let _ = waiter.join();
    Ok(Outcome { ended, took: started.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn tells_success_from_failure() {
        let code = |script| match run(shell(script), Duration::from_secs(60)).unwrap().ended {
            Ended::Exited(status) => status.code(),
            Ended::TimedOut => None,
        };
        assert_eq!(code("true"), Some(0));
        assert_eq!(code("exit 3"), Some(3));
    }

    #[test]
    fn kills_what_does_not_end() {
        let outcome = run(shell("sleep 1000"), Duration::from_millis(10)).unwrap();
        assert!(matches!(outcome.ended, Ended::TimedOut));
    }
}
