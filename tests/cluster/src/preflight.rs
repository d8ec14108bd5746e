//! Whether this machine can run a cluster: all problems at once, each with what to do.

use crate::layout;
use anyhow::{Result, bail};
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

const MIB: u64 = 1 << 20;
/// A cluster with nothing in it: journals, configuration, logs.
const BYTES_PER_NODE_MIN: u64 = 64 * MIB;
/// Registered buffers are locked memory.
const LOCKED_BYTES_MIN: u64 = 64 * MIB;
/// `sun_path` less the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

pub struct Wanted<'a> {
    pub state: &'a Path,
    pub nodes: usize,
    pub drive_bytes: u64,
    pub base_port: u16,
    /// A filesystem will be mounted.
    pub mount: Option<&'a Path>,
}

/// Nothing of the cluster may run yet. Hints that are no problems are returned.
pub fn check(wanted: &Wanted<'_>) -> Result<Vec<String>> {
    let (mut problems, mut hints) = (Vec::new(), Vec::new());
    if let Err(error) = std::fs::create_dir_all(wanted.state) {
        bail!("can't create {}: {error}; choose another place with --state", wanted.state.display());
    }
    check_disk(wanted, &mut problems, &mut hints);
    problems.extend(direct_problem(wanted.state));
    problems.extend(uring_problem());
    problems.extend(locked_memory_problem());
    problems.extend(socket_problem(wanted));
    if let Some(busy) = layout::busy_port(wanted.base_port, wanted.nodes) {
        problems.push(format!(
            "{busy}; end what uses it (`ss -lunpt` lists it), or use another --state for a second cluster"
        ));
    }
    if let Some(mountpoint) = wanted.mount {
        check_mount(mountpoint, &mut problems);
    }
    if problems.is_empty() {
        return Ok(hints);
    }
    bail!("this machine can't run the cluster yet:\n  {}", problems.join("\n  "))
}

fn check_disk(wanted: &Wanted<'_>, problems: &mut Vec<String>, hints: &mut Vec<String>) {
    let place = wanted.state.display();
    let free = match nix::sys::statvfs::statvfs(wanted.state) {
        Ok(stat) => stat.blocks_available() * stat.fragment_size(),
        Err(error) => return problems.push(format!("can't ask for the free space of {place}: {error}")),
    };
    let whole = wanted.drive_bytes * wanted.nodes as u64;
    let least = BYTES_PER_NODE_MIN * wanted.nodes as u64;
    let (free_mib, whole_mib, least_mib) = (free / MIB, whole / MIB, least / MIB);
    match sparse(wanted.state) {
        Err(error) => problems.push(format!("can't write to {place}: {error}; choose another place with --state")),
        Ok(false) if free < whole => problems.push(format!(
            "{place} has {free_mib} MiB free and can't hold sparse files, so the drives need {whole_mib} MiB: \
             choose a smaller --drive-size, or another --state"
        )),
        Ok(_) if free < least => problems.push(format!(
            "{place} has {free_mib} MiB free, and even an empty cluster needs {least_mib} MiB: \
             free some, or choose another --state"
        )),
        Ok(true) if free < whole => hints.push(format!(
            "the drives are sparse files of {whole_mib} MiB in all, and {place} has {free_mib} MiB free: \
             the disk can run full before the cluster does"
        )),
        Ok(_) => {}
    }
}

/// Whether files in this directory can have holes.
fn sparse(directory: &Path) -> std::io::Result<bool> {
    let path = directory.join("preflight.sparse");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    let result = file.set_len(16 * MIB).and_then(|()| file.metadata()).map(|data| data.blocks() * 512 < 8 * MIB);
    std::fs::remove_file(&path)?;
    result
}

fn direct_problem(directory: &Path) -> Option<String> {
    let path = directory.join("preflight.direct");
    let flags = OFlag::O_DIRECT.bits();
    let opened = OpenOptions::new().create(true).truncate(true).write(true).custom_flags(flags).open(&path);
    let _ = std::fs::remove_file(&path);
    let error = opened.err()?;
    let place = directory.display();
    Some(match error.kind() {
        ErrorKind::InvalidInput => {
            format!("{place} is on a filesystem without O_DIRECT: choose one on ext4, xfs or btrfs with --state")
        }
        _ => format!("can't open a file with O_DIRECT in {place}: {error}"),
    })
}

fn uring_problem() -> Option<String> {
    let error = io_uring::IoUring::new(2).err()?;
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    Some(match disabled.trim() {
        "1" | "2" => "io_uring is switched off: `sysctl -w kernel.io_uring_disabled=0` switches it on".into(),
        _ => format!("io_uring does not work here ({error}): it needs Linux 5.10, and no container that forbids it"),
    })
}

fn locked_memory_problem() -> Option<String> {
    if nix::unistd::geteuid().is_root() {
        return None;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    if soft >= LOCKED_BYTES_MIN {
        return None;
    }
    // The nodes inherit what is raised here.
    if hard >= LOCKED_BYTES_MIN && setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).is_ok() {
        return None;
    }
    Some(format!(
        "a node may lock only {} KiB of memory and wants {}: raise it (`ulimit -l`, or memlock in \
         /etc/security/limits.conf and log in again), or run as root",
        hard / 1024,
        LOCKED_BYTES_MIN / 1024
    ))
}

fn socket_problem(wanted: &Wanted<'_>) -> Option<String> {
    let state = wanted.state.canonicalize().ok()?;
    let longest = state.join(format!("node{}/control.sock", wanted.nodes));
    let bytes = longest.as_os_str().len();
    (bytes > SOCKET_PATH_BYTES_MAX).then(|| {
        format!(
            "{} is too long for a Unix socket ({bytes} of {SOCKET_PATH_BYTES_MAX} bytes): choose a shorter --state",
            longest.display()
        )
    })
}

fn check_mount(mountpoint: &Path, problems: &mut Vec<String>) {
    if !Path::new("/dev/fuse").exists() {
        problems.push("there is no /dev/fuse: `modprobe fuse` makes it; in a container it must be passed in".into());
    }
    if !nix::unistd::geteuid().is_root() && !sudo_works() {
        problems.push("mounting needs root: run it as root, or give yourself sudo without password".into());
    }
    match std::fs::read_dir(mountpoint).map(|mut entries| entries.next().is_some()) {
        Ok(true) => {
            problems.push(format!("{} is not empty: choose another place with --mount", mountpoint.display()));
        }
        Ok(false) => {}
        Err(error) => {
            problems.push(format!("can't use {}: {error}; choose another place with --mount", mountpoint.display()));
        }
    }
}

fn sudo_works() -> bool {
    let mut command = std::process::Command::new("sudo");
    let quiet = command.args(["-n", "true"]).stderr(std::process::Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("weft-preflight-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn says_all_that_is_wrong_and_what_to_do() {
        let state = scratch("bad");
        std::fs::write(state.join("file"), "x").unwrap();
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let deep = state.join("x".repeat(100));
        let wanted = Wanted {
            state: &deep,
            nodes: 1,
            drive_bytes: 1 << 28,
            base_port: taken.local_addr().unwrap().port() - 1,
            mount: Some(&state),
        };
        let said = check(&wanted).unwrap_err().to_string();
        for expected in
            ["UDP port", "ss -lunpt", "too long", "shorter --state", "not empty", "another place with --mount"]
        {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        std::fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn warns_of_drives_larger_than_the_disk() {
        let state = scratch("large");
        let wanted = Wanted { state: &state, nodes: 1, drive_bytes: 1 << 60, base_port: 1, mount: None };
        let (mut problems, mut hints) = (Vec::new(), Vec::new());
        check_disk(&wanted, &mut problems, &mut hints);
        assert_eq!(problems.len() + hints.len(), 1, "{problems:?} {hints:?}");
        std::fs::remove_dir_all(&state).unwrap();
    }
}
