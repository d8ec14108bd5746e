//! Memory limits that the kernel enforces: a control group for each node. Both versions of control groups are known,
//! since machines have the one or the other.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group of processes that together may use so much memory, what the kernel keeps for them included. It goes when it is
/// dropped; its processes must have ended then.
#[derive(Debug)]
pub struct Group {
    directory: PathBuf,
    version: Version,
}

impl Group {
    /// None: this machine or user can't limit memory.
    pub fn create(name: &str, bytes_max: u64) -> Result<Option<Group>> {
        let own = std::fs::read_to_string("/proc/self/cgroup").context("can't read /proc/self/cgroup")?;
        let Some((parent, version)) = parent(&own, Path::new(ROOT)) else { return Ok(None) };
        let directory = parent.join(name);
        // One that a killed test left behind.
        let _ = std::fs::remove_dir(&directory);
        if std::fs::create_dir(&directory).is_err() {
            return Ok(None);
        }
        let group = Group { directory, version };
        let file = match version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        let file = group.directory.join(file);
        std::fs::write(&file, bytes_max.to_string()).with_context(|| format!("can't write {}", file.display()))?;
        Ok(Some(group))
    }

    /// Who is written there belongs to the group.
    pub fn processes(&self) -> PathBuf {
        self.directory.join("cgroup.procs")
    }

    /// The most that was ever used, what the kernel could have taken back included.
    pub fn peak_bytes(&self) -> Result<u64> {
        match self.version {
            Version::One => self.number("memory.max_usage_in_bytes"),
            // Kernels before 5.19 don't count it.
            Version::Two => self.number("memory.peak").or_else(|_| self.number("memory.current")),
        }
    }

    /// How often the kernel killed a process because the limit was reached.
    pub fn kills(&self) -> Result<u64> {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = self.read(file)?;
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(kills.and_then(|kills| kills.trim().parse().ok()).unwrap_or(0))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.directory.join(file);
        std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    }

    fn number(&self, file: &str) -> Result<u64> {
        let text = self.read(file)?;
        text.trim().parse().with_context(|| format!("{file} holds {text:?}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Below which group of `root` new ones can be made, by the lines of `/proc/self/cgroup`.
fn parent(own: &str, root: &Path) -> Option<(PathBuf, Version)> {
    let paths = |wanted: fn(&str, &str) -> bool| {
        own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            wanted(number, controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    if let Some(path) = paths(|_, controllers| controllers.split(',').any(|controller| controller == "memory")) {
        let hierarchy = root.join("memory");
        // In a container the path may be that of the host.
        let parent = [hierarchy.join(path), hierarchy].into_iter().find(|directory| directory.is_dir())?;
        return Some((parent, Version::One));
    }
    let path = paths(|number, controllers| number == "0" && controllers.is_empty())?;
    let own = root.join(path);
    // A group with processes in it can't give its children controllers: one further up does.
    let gives_memory = |directory: &Path| {
        let given = std::fs::read_to_string(directory.join("cgroup.subtree_control")).unwrap_or_default();
        given.split_whitespace().any(|controller| controller == "memory")
    };
    let mut ancestors = own.ancestors().take_while(|directory| directory.starts_with(root));
    ancestors.find(|directory| gives_memory(directory)).map(|directory| (directory.to_owned(), Version::Two))
}

/// The most that a process had in memory at any time.
pub fn peak_resident_bytes(pid: nix::unistd::Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024).with_context(|| format!("{path} has no VmHWM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_where_groups_can_be_made() {
        let root = std::env::temp_dir().join(format!("weft-groups-{}", std::process::id()));
        std::fs::create_dir_all(root.join("memory/here")).unwrap();
        std::fs::create_dir_all(root.join("user/session")).unwrap();
        std::fs::write(root.join("user/cgroup.subtree_control"), "cpu memory\n").unwrap();
        let one = "4:cpu,memory:/here\n0::/\n";
        assert_eq!(parent(one, &root), Some((root.join("memory/here"), Version::One)));
        assert_eq!(parent("4:memory:/elsewhere", &root), Some((root.join("memory"), Version::One)));
        assert_eq!(parent("0::/user/session\n", &root), Some((root.join("user"), Version::Two)));
        assert_eq!(parent("0::/\n", &root), None);
        assert_eq!(parent("", &root), None);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn knows_how_large_a_process_was() {
        assert!(peak_resident_bytes(nix::unistd::getpid()).unwrap() > 1 << 20);
    }
}
