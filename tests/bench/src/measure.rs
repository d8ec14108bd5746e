//! One row on one filesystem.

use crate::cpu::{Look, Spent};
use crate::rows::{Place, Row, Work};
use crate::systems::System;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const SETTLE_LOOK: Duration = Duration::from_millis(250);
/// Of one core: what a filesystem may use that has nothing more to do.
const SETTLED_CORES: f64 = 0.03;
const SETTLE_MAX: Duration = Duration::from_secs(10);
const IDLE_TIME: Duration = Duration::from_secs(5);
/// Of the whole machine. With more, the machine's busy time says little.
const DISTURBED_SHARE: f64 = 0.05;

#[derive(Clone, Copy, Debug)]
pub struct Measured {
    pub spent: Spent,
    pub wall_s: f64,
    /// What the machine, with the filesystem mounted, uses in that time when nobody works on it.
    pub idle_s: Idle,
}

/// Of one core, or seconds: the machine without other people's programs, and the filesystem's processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle {
    pub machine: f64,
    pub processes: f64,
}

impl Idle {
    /// While nothing is done. Other people's programs are not counted.
    pub fn measure(system: &dyn System) -> Result<Idle> {
        settle(system)?;
        let look = || Look::take(system.state(), system.mount(), &[]);
        let before = look()?;
        std::thread::sleep(IDLE_TIME);
        let spent = look()?.since(&before);
        let machine = (spent.busy - spent.foreign - spent.load) / spent.elapsed;
        Ok(Idle { machine: machine.max(0.0), processes: spent.own() / spent.elapsed })
    }

    fn during(self, seconds: f64) -> Idle {
        Idle { machine: self.machine * seconds, processes: self.processes * seconds }
    }
}

impl Measured {
    /// Busy time of the whole machine, less what has nothing to do with the filesystem.
    pub fn machine_s(&self) -> f64 {
        let rest = self.spent.busy - self.idle_s.machine - self.spent.load - self.spent.foreign;
        // The tick counts in steps.
        rest.max(0.001)
    }

    /// What its processes used themselves.
    pub fn processes_s(&self) -> f64 {
        (self.spent.own() - self.idle_s.processes).max(0.001)
    }

    pub fn disturbed(&self) -> bool {
        self.spent.foreign_share() > DISTURBED_SHARE
    }
}

/// The row's work, what led to it not counted, what the filesystem does afterwards on its own account counted.
pub fn measure(row: Row, system: &dyn System, place: &Place<'_>, idle: Idle) -> Result<Measured> {
    if let Some(work) = row.prepare(place)? {
        Running::start(work)?.finish()?;
    }
    settle(system)?;
    forget_caches(system)?;
    let running = Running::start(row.work(place))?;
    let before = running.look(system)?;
    let wall_s = running.finish()?;
    settle(system)?;
    let spent = Look::take(system.state(), system.mount(), &[])?.since(&before);
    Ok(Measured { spent, wall_s, idle_s: idle.during(spent.elapsed) })
}

/// Waits until the filesystem has done what it put off.
fn settle(system: &dyn System) -> Result<()> {
    let look = || Look::take(system.state(), system.mount(), &[]);
    let started = Instant::now();
    let mut before = look()?;
    while started.elapsed() < SETTLE_MAX {
        std::thread::sleep(SETTLE_LOOK);
        let now = look()?;
        let spent = now.since(&before);
        if spent.own() <= SETTLED_CORES * spent.elapsed {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Nothing is to be in the kernel's memory, neither of the mount nor of what lies below it.
fn forget_caches(system: &dyn System) -> Result<()> {
    for place in [system.mount(), system.state()] {
        let directory = File::open(place).with_context(|| format!("can't open {}", place.display()))?;
        nix::unistd::syncfs(directory).with_context(|| format!("can't sync {}", place.display()))?;
    }
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("can't drop the kernel's caches: run it as root")
}

enum Running {
    /// Ready, waiting for the word.
    Loads(Vec<(Child, BufReader<ChildStdout>)>),
    Program(Command),
}

impl Running {
    fn start(work: Work) -> Result<Running> {
        let commands = match work {
            Work::Program(command) => return Ok(Running::Program(command)),
            Work::Loads(commands) => commands,
        };
        let start = |mut command: Command| -> Result<_> {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("can't start {command:?}"))?;
            let mut said = BufReader::new(child.stdout.take().context("a load has no output")?);
            let mut line = String::new();
            said.read_line(&mut line)?;
            ensure!(line.trim() == "ready", "{command:?} did not get ready");
            Ok((child, said))
        };
        Ok(Running::Loads(commands.into_iter().map(start).collect::<Result<_>>()?))
    }

    fn look(&self, system: &dyn System) -> Result<Look> {
        let loads: Vec<u32> = match self {
            Running::Loads(children) => children.iter().map(|(child, _)| child.id()).collect(),
            Running::Program(_) => Vec::new(),
        };
        Look::take(system.state(), system.mount(), &loads)
    }

    /// Seconds until the last one was done.
    fn finish(self) -> Result<f64> {
        match self {
            Running::Program(mut command) => {
                let started = Instant::now();
                let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
                let status = status.with_context(|| format!("can't start {command:?}"))?;
                ensure!(status.success(), "{command:?} failed ({status})");
                Ok(started.elapsed().as_secs_f64())
            }
            Running::Loads(mut children) => {
                for (child, _) in &mut children {
                    child.stdin.take().context("a load has no input")?.write_all(b"\n")?;
                }
                let mut longest_s: f64 = 0.0;
                for (mut child, mut said) in children {
                    let mut line = String::new();
                    said.read_line(&mut line)?;
                    let status = child.wait()?;
                    let Ok(seconds) = line.trim().parse::<f64>() else { bail!("a load failed ({status})") };
                    longest_s = longest_s.max(seconds);
                }
                Ok(longest_s)
            }
        }
    }
}
