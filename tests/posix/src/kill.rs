//! All daemons are killed in the middle of everything, again and again. Their supervisors start them again; the mounts
//! wait and go on, so no program may see an error, and nothing acknowledged may be lost.

use crate::fsx::Mode;
use crate::process::Running;
use crate::scene::Scene;
use crate::{Extent, Findings, Suite, fio, fsx, mounts, pjdfstest, sqlite, tree};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;
use weft_cluster_tests::fsync::survivor::Survivor;
use weft_cluster_tests::wait;

/// All of these must be durable between two kills, so that each kill meets work.
const ACKNOWLEDGED_MIN: usize = 60;
const PROGRESS_DEADLINE: Duration = Duration::from_secs(120);
const END_DEADLINE: Duration = Duration::from_secs(600);
const QUICK: &[Suite] = &[Suite::Fsx];
const ALL: &[Suite] = &[Suite::Fsx, Suite::Fio, Suite::Sqlite, Suite::Mounts, Suite::Tree, Suite::Pjdfstest];
const SEED: &str = "77";

pub fn run(scene: &mut Scene, extent: Extent) -> Result<Findings> {
    let (rounds, loads) = match extent {
        Extent::Quick => (2, QUICK),
        Extent::Full => (5, ALL),
    };
    let [first, second] = scene.directories("kill")?;
    let mut findings = Findings::default();
    for (number, suite) in loads.iter().enumerate() {
        // Short names: pjdfstest binds sockets, and their paths must be shorter than 108 bytes.
        let name = number.to_string();
        let (here, there) = (first.join(&name), second.join(&name));
        std::fs::create_dir(&here)?;
        let load = Load::start(scene, *suite, &here, &there)?;
        findings.check(&format!("fsync and {}", suite.name()), survive(scene, suite.name(), &here, load, rounds));
    }
    findings.note = format!("{rounds} kills of all nodes under each");
    Ok(findings)
}

/// What goes on while daemons die.
enum Load {
    Process(Running),
    Thread(JoinHandle<Result<()>>),
}

impl Load {
    fn start(scene: &Scene, suite: Suite, here: &Path, there: &Path) -> Result<Load> {
        Ok(match suite {
            Suite::Fsx => Load::Process(fsx::start(scene, here, Mode::Mapped, 2500)?),
            Suite::Fio => Load::Process(fio::start(scene, here, 32)?),
            Suite::Sqlite => Load::Process(sqlite::start(scene, here, there, 60)?),
            Suite::Tree => Load::Thread(tree::start(scene, here)),
            Suite::Pjdfstest => Load::Thread(pjdfstest::start(scene, here)?),
            Suite::Mounts | Suite::Acl | Suite::Kill => Load::Thread(mounts::start(here, there, 8)),
        })
    }

    /// Waits for its end, which must be a success.
    fn finish(self) -> Result<()> {
        match self {
            Load::Process(running) => running.finish(),
            Load::Thread(thread) => {
                wait::until("the end of the load", END_DEADLINE, || Ok(thread.is_finished().then_some(())))?;
                thread.join().unwrap_or_else(|_| bail!("it panicked"))
            }
        }
    }
}

/// Kills all daemons while the load and a writer that calls fsync run, then waits for the load and checks the files.
fn survive(scene: &mut Scene, name: &str, directory: &Path, load: Load, rounds: usize) -> Result<()> {
    let written = directory.join("fsync");
    std::fs::create_dir(&written)?;
    let log = scene.scratch.join(format!("kill-{name}.acknowledged"));
    let fsync = scene.writer();
    let mut survivor = Survivor::start(fsync_command(&fsync, "write", &written), &log)?;
    let outcome = kill_repeatedly(scene, &log, rounds);
    // The writer ends where it is, between two operations or within one.
    survivor.kill()?;
    survivor.wait()?;
    outcome?;
    load.finish().with_context(|| format!("{name} under kills"))?;
    let output = fsync_command(&fsync, "check", &written).arg("--log").arg(&log).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn kill_repeatedly(scene: &mut Scene, log: &Path, rounds: usize) -> Result<()> {
    let mut seen = 0;
    for round in 0..=rounds {
        let enough = || {
            let count = std::fs::read_to_string(log).unwrap_or_default().lines().count();
            Ok((count >= seen + ACKNOWLEDGED_MIN).then_some(count))
        };
        seen = wait::until(&format!("{ACKNOWLEDGED_MIN} more acknowledgements"), PROGRESS_DEADLINE, enough)
            .with_context(|| format!("after {round} kills"))?;
        if round < rounds {
            for node in &scene.cluster.nodes {
                node.kill_daemon()?;
            }
        }
    }
    Ok(())
}

fn fsync_command(program: &PathBuf, verb: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([verb, "--seed", SEED, "--directory"]).arg(directory);
    command
}
