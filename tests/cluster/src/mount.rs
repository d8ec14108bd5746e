//! A mounted filesystem, as the kernel sees it.

use crate::programs::Programs;
use crate::wait;
use anyhow::{Context, Result, bail};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// The type of the filesystem mounted at exactly this place. Does not touch the filesystem, which may be stuck.
pub fn kind(mountpoint: &Path) -> Result<Option<String>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("can't read the table of mounts")?;
    Ok(table
        .lines()
        .filter_map(|line| entry(line).filter(|(place, _)| place == mountpoint))
        .map(|(_, kind)| kind)
        .next_back())
}

/// Mounts at or below a directory, the deepest first.
pub fn below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("can't read the table of mounts")?;
    let mut found: Vec<PathBuf> = table.lines().filter_map(entry).map(|(place, _)| place).collect();
    found.retain(|place| place.starts_with(directory));
    found.sort_by_key(|place| std::cmp::Reverse(place.components().count()));
    Ok(found)
}

/// Mountpoint and type of one line. Spaces and the like in paths are written as octal numbers.
fn entry(line: &str) -> Option<(PathBuf, String)> {
    let (before, after) = line.split_once(" - ")?;
    let place = before.split(' ').nth(4)?;
    let place = place.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    Some((place.into(), after.split(' ').next()?.into()))
}

pub fn is_weft(kind: &str) -> bool {
    kind == "weft" || kind == "fuse.weft"
}

/// A command that needs root: through sudo if we are not.
pub fn privileged(program: &Path) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(program);
    command
}

/// Mounts, and returns when the kernel knows it. What the client says goes to `log`.
pub fn mount(programs: &Programs, source: &str, mountpoint: &Path, options: &str, log: &Path) -> Result<()> {
    if let Some(kind) = kind(mountpoint)? {
        bail!("something is mounted on {} already, of type {kind}", mountpoint.display());
    }
    let file = OpenOptions::new().create(true).append(true).open(log);
    let file = file.with_context(|| format!("can't open {}", log.display()))?;
    let mut command = privileged(&programs.mount);
    command.arg(source).arg(mountpoint);
    if !options.is_empty() {
        command.args(["-o", options]);
    }
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = command.status().with_context(|| format!("can't start {}", programs.mount.display()))?;
    if !status.success() {
        bail!("mount.weft {source} {} failed ({status}); {} says why", mountpoint.display(), log.display());
    }
    let what = format!("{} is mounted", mountpoint.display());
    wait::until(&what, MOUNT_DEADLINE, || match kind(mountpoint)? {
        Some(kind) if is_weft(&kind) => Ok(Some(())),
        Some(kind) => bail!("{} has a filesystem of type {kind}, not weft", mountpoint.display()),
        None => Ok(None),
    })
}

/// Unmounts; if it is busy or stuck and `force` is set, it is detached and vanishes with its last user.
pub fn unmount(mountpoint: &Path, force: bool) -> Result<()> {
    if kind(mountpoint)?.is_none() {
        return Ok(());
    }
    let run = |flags: &[&str]| -> Result<bool> {
        let mut command = privileged(Path::new("umount"));
        let status = command.args(flags).arg(mountpoint).stdin(Stdio::null()).stderr(Stdio::null()).status();
        Ok(status.context("can't start umount")?.success())
    };
    if run(&[])? || (force && run(&["-l"])?) {
        return Ok(());
    }
    bail!("can't unmount {}: end the programs that use it (`fuser -vm {0}` lists them)", mountpoint.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let line = r"61 1 0:46 / /mnt/a\040b rw,nosuid shared:5 - fuse.weft 127.0.0.1:7401/main rw,user_id=0";
        assert_eq!(entry(line), Some(("/mnt/a b".into(), "fuse.weft".into())));
        assert_eq!(entry("nonsense"), None);
        assert_eq!(kind(Path::new("/proc")).unwrap().as_deref(), Some("proc"));
        assert!(below(Path::new("/proc")).unwrap().contains(&"/proc".into()));
    }
}
