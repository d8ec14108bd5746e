//! What daemons have used: processor time, and bytes read from and written to drives.

use crate::scene::Scene;
use anyhow::{Context, Result};
use nix::unistd::{Pid, SysconfVar, sysconf};
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    pub cpu: Duration,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

impl Work {
    /// Since its start.
    pub fn of(pid: Pid) -> Result<Work> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).context("the process is gone")?;
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Work::parse(&stat, &io, ticks_per_second as u64).context("/proc can't be understood")
    }

    fn parse(stat: &str, io: &str, ticks_per_second: u64) -> Option<Work> {
        // The name before the state is in parentheses and may contain anything; then user and system time are 11th and 12th.
        let fields: Vec<&str> = stat.rsplit(") ").next()?.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        let number = |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Some(Work {
            cpu: Duration::from_secs(ticks) / ticks_per_second as u32,
            read_bytes: number("read_bytes:")?,
            written_bytes: number("write_bytes:")?,
        })
    }

    fn since(self, before: Work) -> Work {
        Work {
            cpu: self.cpu.saturating_sub(before.cpu),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

/// The work of each daemon that runs, from a moment on.
pub struct Meter(BTreeMap<i32, Work>);

impl Meter {
    pub fn start(scene: &Scene) -> Meter {
        Meter(all(scene))
    }

    /// Of those that ran then and still run.
    pub fn so_far(&self, scene: &Scene) -> Vec<Work> {
        let now = all(scene);
        now.iter().filter_map(|(pid, work)| Some(work.since(*self.0.get(pid)?))).collect()
    }
}

fn all(scene: &Scene) -> BTreeMap<i32, Work> {
    let daemons = scene.cluster.nodes.iter().filter_map(|node| node.daemon());
    daemons.filter_map(|pid| Some((pid.as_raw(), Work::of(pid).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_tells() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 1 2 3";
        let io = "rchar: 1\nwchar: 2\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 0\n";
        let work = Work { cpu: Duration::from_secs(2), read_bytes: 4096, written_bytes: 8192 };
        assert_eq!(Work::parse(stat, io, 100), Some(work));
        assert_eq!(Work::parse("7 (a) S 1", io, 100), None);
        assert!(Work::of(Pid::this()).is_ok());
    }
}
