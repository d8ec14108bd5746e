//! What is measured: filesystems that can be started, mounted and stopped.

mod gluster;
mod passthrough;
mod weft;

pub use gluster::Gluster;
pub use passthrough::Passthrough;
pub use weft::Weft;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use weft_cluster_tests::{mount, process, wait};

const END_DEADLINE: Duration = Duration::from_secs(30);

/// Starts when it is made. Dropping it ends all its processes; what it stored stays until its directory is used again.
pub trait System {
    /// All its processes name this directory in their arguments.
    fn state(&self) -> &Path;
    /// Where it is mounted; no process but its client names this place.
    fn mount(&self) -> &Path;
}

/// An empty directory for a system, whatever was there before.
fn fresh(state: &Path) -> Result<PathBuf> {
    unmount_below(state)?;
    end_processes(state)?;
    match std::fs::remove_dir_all(state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("can't delete {}", state.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(state).with_context(|| format!("can't create {}", state.display()))?;
    Ok(state.canonicalize()?)
}

fn directory(parent: &Path, name: &str) -> Result<PathBuf> {
    let path = parent.join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("can't create {}", path.display()))?;
    Ok(path)
}

fn unmount_below(state: &Path) -> Result<()> {
    mount::below(state)?.iter().try_for_each(|place| mount::unmount(place, true))
}

/// Ends what names the directory in its arguments: some systems start daemons that are nobody's children.
fn end_processes(state: &Path) -> Result<()> {
    let found = || -> Result<Vec<Pid>> {
        let needle = format!("{}/", state.display()).into_bytes();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let own = pid == std::process::id().cast_signed();
            if !own && arguments.windows(needle.len()).any(|window| window == needle) {
                found.push(Pid::from_raw(pid));
            }
        }
        Ok(found.into_iter().filter(|pid| process::alive(*pid)).collect())
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        found()?.into_iter().try_for_each(|pid| process::signal(pid, signal))?;
        let gone = || Ok(found()?.is_empty().then_some(()));
        if wait::until("processes end", END_DEADLINE, gone).is_ok() {
            return Ok(());
        }
    }
    anyhow::bail!("processes that use {} do not end", state.display())
}

/// Runs a command to its end, quietly unless it fails.
pub fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed ({}): {}", output.status, said.trim());
    Ok(())
}

fn wait_mounted(place: &Path) -> Result<()> {
    let what = format!("{} is mounted", place.display());
    wait::until(&what, END_DEADLINE, || Ok(mount::kind(place)?.map(drop)))
}
