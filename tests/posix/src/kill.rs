//! All daemons are killed in the middle of everything, again and again. Their supervisors start them again; the mounts
//! wait and go on, so no program may see an error, and nothing acknowledged may be lost.

use crate::fsx::Mode;
use crate::process::Running;
use crate::scene::Scene;
use crate::{Extent, Findings, fio, fsx, mounts, sqlite};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use weft_cluster_tests::fsync::survivor::Survivor;
use weft_cluster_tests::wait;

/// All of these must be durable between two kills, so that each kill meets work.
const ACKNOWLEDGED_MIN: usize = 60;
const PROGRESS_DEADLINE: Duration = Duration::from_secs(120);
const SEED: &str = "77";

pub fn run(scene: &mut Scene, extent: Extent) -> Result<Findings> {
    let rounds = if extent == Extent::Quick { 2 } else { 6 };
    let [first, second] = scene.directories("kill")?;
    let mut findings = Findings::default();
    if extent == Extent::Quick {
        let loads = [Load::start(scene, &first, "fsx")?];
        findings.check("fsync and fsx", survive(scene, &first, loads.into(), rounds));
    } else {
        for name in ["fsx", "fio", "sqlite"] {
            let directory = first.join(name);
            std::fs::create_dir(&directory)?;
            let load = Load::start(scene, &directory, name)?;
            findings.check(&format!("fsync and {name}"), survive(scene, &directory, vec![load], rounds));
        }
    }
    findings.check("two mounts afterwards", mounts::agree(&first, &second));
    findings.note = format!("{rounds} kills of all nodes each");
    Ok(findings)
}

struct Load {
    name: &'static str,
    running: Running,
}

impl Load {
    fn start(scene: &Scene, directory: &Path, name: &'static str) -> Result<Load> {
        let running = match name {
            "fio" => fio::start(scene, directory, 32)?,
            "sqlite" => sqlite::start(scene, directory, 60)?,
            _ => fsx::start(scene, directory, Mode::Mapped, 2500)?,
        };
        Ok(Load { name, running })
    }
}

/// Kills all daemons while the loads and a writer that calls fsync run, then waits for the loads and checks the files.
fn survive(scene: &mut Scene, directory: &Path, loads: Vec<Load>, rounds: usize) -> Result<()> {
    let written = directory.join("fsync");
    std::fs::create_dir(&written)?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let log = scene.scratch.join(format!("kill-{name}.acknowledged"));
    let fsync = scene.program("weft-fsync");
    let mut survivor = Survivor::start(fsync_command(&fsync, "write", &written), &log)?;
    let outcome = kill_repeatedly(scene, &log, rounds);
    // The writer ends where it is, between two operations or within one.
    survivor.kill()?;
    survivor.wait()?;
    outcome?;
    for load in loads {
        load.running.finish().with_context(|| format!("{} under kills", load.name))?;
    }
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
