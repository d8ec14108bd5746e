//! Many seeds, each in a child process of this same program.

use crate::run::BEYOND;
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// CPU time after which a seed counts as one that never ends. A busy machine fails no seed.
const SEED_CPU_MAX: Duration = Duration::from_secs(300);
/// How often that is looked at.
const CPU_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub struct Many {
    pub seed: u64,
    pub runs: u64,
    pub budget: Option<Duration>,
    pub until_failure: bool,
    /// Where [`Sum`] is written.
    pub sum: Option<PathBuf>,
    pub seeds: Option<PathBuf>,
    pub jobs: usize,
    /// Arguments that are the same for all.
    pub shape: Vec<String>,
}

/// What became of all seeds.
#[derive(Debug, Default)]
pub struct Sum {
    pub passed: u64,
    pub failed: u64,
    /// Of those that passed, the ones whose faults went beyond what must be survived.
    beyond: u64,
    /// CPU seconds of those that passed, each with its seed.
    cpu: Vec<(f64, u64)>,
}

impl Sum {
    fn share(&mut self, of: f64) -> (f64, u64) {
        self.cpu.sort_by(|one, other| one.0.total_cmp(&other.0));
        let at = (self.cpu.len() as f64 * of) as usize;
        self.cpu.get(at.min(self.cpu.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// A seed of a list, and what it is made for there.
struct Known {
    seed: u64,
    aim: Option<String>,
}

/// A seed with the arguments that it was given.
struct Run {
    seed: u64,
    shape: Vec<String>,
}

struct Running {
    run: Run,
    child: Child,
    /// When its CPU time is looked at again.
    look_at: Instant,
    output: std::thread::JoinHandle<String>,
}

/// Runs them all.
pub fn run(many: &Many) -> Result<Sum> {
    let mut first = known_seeds(many.seeds.as_deref())?;
    let program = std::env::current_exe().context("this program can't find itself")?;
    let started = Instant::now();
    let mut next = many.seed;
    let mut running: Vec<Running> = Vec::new();
    let mut sum = Sum::default();
    loop {
        let more = match many.budget {
            Some(budget) => started.elapsed() < budget,
            None => next < many.seed + many.runs,
        };
        let more = more && !(many.until_failure && sum.failed > 0);
        let seed = match first.pop_front() {
            Some(known) => Some(known),
            None if more => {
                next += 1;
                Some(Known { seed: next - 1, aim: None })
            }
            None => None,
        };
        if let Some(Known { seed, aim }) = &seed {
            let shape = many.shape.iter().cloned().chain(aim.iter().map(|aim| format!("--aim={aim}")));
            running.push(start(&program, *seed, shape.collect())?);
        } else if running.is_empty() {
            break;
        }
        while !running.is_empty() && (running.len() >= many.jobs || seed.is_none()) {
            match take_finished(&mut running)? {
                Some((run, true, output)) => {
                    sum.passed += 1;
                    sum.beyond += u64::from(output.contains(BEYOND));
                    sum.cpu.extend(cpu_of(&output).map(|cpu| (cpu, run.seed)));
                }
                Some((run, false, output)) => {
                    sum.failed += 1;
                    println!("{}", output.trim_end());
                    println!("FAILED; again: cargo xtask sim --seed {} {} --verbose\n", run.seed, run.shape.join(" "));
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }
    let (passed, failed) = (sum.passed, sum.failed);
    println!("{passed} seeds passed, {failed} failed in {:.1} s", started.elapsed().as_secs_f64());
    let ((median, _), (most, costly)) = (sum.share(0.5), sum.share(1.0));
    println!("{median:.2} s of CPU for a seed (median), {most:.2} s at most (seed {costly})");
    if let Some(path) = &many.sum {
        let text = format!("{} {next} {} {} {failed} {median:.2}\n", many.seed, passed - sum.beyond, sum.beyond);
        std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(sum)
}

/// CPU time of a process with one thread: its number, or `self`. Nothing where the system doesn't tell.
pub fn spent(process: &str) -> Duration {
    let spent = std::fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap_or_default();
    let nanos = spent.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

/// What a run that passed says of itself.
fn cpu_of(output: &str) -> Option<f64> {
    let (before, _) = output.rsplit_once(" s of CPU")?;
    before.rsplit_once(' ')?.1.parse().ok()
}

/// A number on each line, and an aim behind some.
fn known_seeds(path: Option<&std::path::Path>) -> Result<VecDeque<Known>> {
    let Some(path) = path else { return Ok(VecDeque::new()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let known = |line: &str| {
        let mut words = line.split_whitespace();
        let seed = words.next().and_then(|seed| seed.parse().ok());
        let seed = seed.with_context(|| format!("{}: {line:?} is no seed", path.display()))?;
        Ok(Known { seed, aim: words.next().map(Into::into) })
    };
    lines.filter(|line| !line.is_empty()).map(known).collect()
}

fn start(program: &std::path::Path, seed: u64, shape: Vec<String>) -> Result<Running> {
    let mut command = Command::new(program);
    command.arg("--seed").arg(seed.to_string()).args(&shape);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("can't start {}", program.display()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stdout.map(|mut pipe| pipe.read_to_end(&mut text));
        let _ = stderr.map(|mut pipe| pipe.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    Ok(Running { run: Run { seed, shape }, child, look_at: Instant::now() + CPU_EVERY, output })
}

/// A child that has ended, whether all was well, and what it said.
fn take_finished(running: &mut Vec<Running>) -> Result<Option<(Run, bool, String)>> {
    for index in 0..running.len() {
        let Some(one) = running.get_mut(index) else { continue };
        let mut stuck = false;
        let status = match one.child.try_wait().context("a child can't be waited for")? {
            Some(status) => status,
            None if one.look_at > Instant::now() => continue,
            None if spent(&one.child.id().to_string()) <= SEED_CPU_MAX => {
                one.look_at = Instant::now() + CPU_EVERY;
                continue;
            }
            None => {
                stuck = true;
                one.child.kill().context("a child can't be killed")?;
                one.child.wait().context("a child can't be waited for")?
            }
        };
        let Running { run, output, .. } = running.swap_remove(index);
        let mut output = output.join().unwrap_or_default();
        if stuck {
            output.push_str(&format!("seed {}: no end after {} s of CPU", run.seed, SEED_CPU_MAX.as_secs()));
        }
        return Ok(Some((run, status.success(), output)));
    }
    Ok(None)
}
