//! CPU time of the whole machine and of its processes, from /proc.
//!
//! The machine's busy time is sampled by the kernel's tick (4 ms here), a process's is exact. What ended between two looks is
//! in its parent's account of children, so the sum over all processes loses nothing.

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use std::collections::HashMap;
use std::path::Path;

/// Bit of a process's flags that tells kernel threads (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Server,
    Client,
    /// This program, what it started and waited for.
    Load,
    Kernel,
    /// Nothing to do with what is measured.
    Foreign,
}

#[derive(Clone, Debug)]
pub struct Look {
    busy_s: f64,
    stolen_s: f64,
    /// By process.
    used: HashMap<u32, (Whose, f64)>,
    at: std::time::Instant,
}

/// What lay between two looks, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    pub elapsed: f64,
    /// All cores together.
    pub busy: f64,
    /// Taken by the hypervisor.
    pub stolen: f64,
    pub servers: f64,
    pub client: f64,
    pub load: f64,
    pub kernel: f64,
    pub foreign: f64,
}

impl Spent {
    pub fn own(&self) -> f64 {
        self.servers + self.client
    }

    /// Of the whole machine's time, the part that somebody else used.
    pub fn foreign_share(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        (self.foreign + self.stolen) / (self.elapsed * cores as f64).max(f64::EPSILON)
    }
}

impl Look {
    /// `state` is the directory that all processes of the system name in their arguments; its client names `mount`, too.
    /// `loads` are children of this program that work on the mount, and still run.
    pub fn take(state: &Path, mount: &Path, loads: &[u32]) -> Result<Look> {
        let tick = ticks_per_second()?;
        let text = std::fs::read_to_string("/proc/stat").context("can't read /proc/stat")?;
        let (busy, stolen) = machine(&text).context("can't understand /proc/stat")?;
        let mut used = HashMap::new();
        for entry in std::fs::read_dir("/proc").context("can't list /proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // It may have ended meanwhile.
            let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let Some(process) = Process::parse(&stat) else { continue };
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let names = |path: &Path| contains(&arguments, path.as_os_str().as_encoded_bytes());
            let whose = match () {
                () if pid == std::process::id() || loads.contains(&pid) => Whose::Load,
                () if process.flags & KERNEL_THREAD != 0 => Whose::Kernel,
                () if names(mount) => Whose::Client,
                () if names(state) => Whose::Server,
                () => Whose::Foreign,
            };
            used.insert(pid, (whose, process.ticks as f64 / tick));
        }
        Ok(Look { busy_s: busy as f64 / tick, stolen_s: stolen as f64 / tick, used, at: std::time::Instant::now() })
    }

    pub fn since(&self, before: &Look) -> Spent {
        let sum = |whose: Whose| {
            let total = |look: &Look| look.used.values().filter(|(w, _)| *w == whose).map(|(_, s)| s).sum::<f64>();
            (total(self) - total(before)).max(0.0)
        };
        Spent {
            elapsed: self.at.duration_since(before.at).as_secs_f64(),
            busy: self.busy_s - before.busy_s,
            stolen: self.stolen_s - before.stolen_s,
            servers: sum(Whose::Server),
            client: sum(Whose::Client),
            load: sum(Whose::Load),
            kernel: sum(Whose::Kernel),
            foreign: sum(Whose::Foreign),
        }
    }
}

fn ticks_per_second() -> Result<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).context("can't ask for the clock tick")?;
    Ok(ticks.context("the kernel has no clock tick")? as f64)
}

/// Busy and stolen ticks of all cores. Guests are part of `user`.
fn machine(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = ticks[..] else { return None };
    Some((user + nice + system + irq + softirq, stolen))
}

struct Process {
    flags: u64,
    /// Its own and those of the children that it waited for.
    ticks: u64,
}

impl Process {
    fn parse(stat: &str) -> Option<Process> {
        // The name before is in parentheses and may contain anything. What follows starts with field 3, the state.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = (14..=17).map(number).sum::<Option<u64>>()?;
        Some(Process { flags: number(9)?, ticks })
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_machines_line() {
        let text = "cpu  10 2 30 1000 5 3 4 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine(text), Some((49, 7)));
        assert_eq!(machine("cpu 1 2"), None);
    }

    #[test]
    fn reads_a_process_whatever_its_name() {
        let line = "12 (a) b (c) S 1 12 12 0 -1 2097152 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        let process = Process::parse(line).unwrap();
        assert_eq!((process.flags, process.ticks), (KERNEL_THREAD, 127));
        assert!(Process::parse("nonsense").is_none());
    }

    #[test]
    fn what_this_program_uses_is_load() {
        let nowhere = Path::new("/nowhere/at/all/");
        let before = Look::take(nowhere, nowhere, &[]).unwrap();
        let mut sum = 0_u64;
        let spent = loop {
            (0..1_000_000_u64).for_each(|n| sum = std::hint::black_box(sum ^ n));
            let spent = Look::take(nowhere, nowhere, &[]).unwrap().since(&before);
            if spent.load > 0.0 {
                break spent;
            }
        };
        assert_eq!(spent.own(), 0.0);
        assert!(spent.elapsed > 0.0);
    }
}
