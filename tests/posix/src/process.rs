//! Programs under a time-box, in process groups of their own, with what they say in a log.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weft_cluster_tests::wait;

const LINES_SHOWN: usize = 20;

pub struct Running {
    child: Child,
    what: String,
    log: PathBuf,
    deadline: Instant,
}

impl Running {
    pub fn start(mut command: Command, log: &Path, time_box: Duration) -> Result<Running> {
        let file = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let what = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("can't start {what}"))?;
        Ok(Running { child, what, log: log.into(), deadline: Instant::now() + time_box })
    }

    /// Waits for its end, which must be a success within the time-box.
    pub fn finish(mut self) -> Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let status = wait::until(&format!("the end of {}", self.what), left, || Ok(self.child.try_wait()?));
        let wrong = match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => format!("{} ended with {status}", self.what),
            Err(error) => format!("{error:#}"),
        };
        bail!("{wrong}; the end of {}:\n{}", self.log.display(), end_of(&self.log))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A process that waits for the filesystem ends when that does: no waiting here.
            let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        }
    }
}

/// Starts it, and waits for its success within the time-box.
pub fn run(command: Command, log: &Path, time_box: Duration) -> Result<()> {
    Running::start(command, log, time_box)?.finish()
}

fn end_of(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, time_box: Duration) -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let name = format!("weft-process-{}-{}", std::process::id(), script.len());
        let log = std::env::temp_dir().join(name);
        let result = run(command, &log, time_box);
        std::fs::remove_file(log).unwrap();
        result
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        assert!(shell("true", Duration::from_secs(60)).is_ok());
        let error = shell("echo what went wrong; exit 3", Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("what went wrong"), "{error}");
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let error = shell("sleep 1000; true", Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("not within 0 s"), "{error}");
    }
}
