//! fio writes with checksums in several jobs at once, reads all back, and compares.

use crate::process::{self, Running};
use crate::scene::Scene;
use crate::{Extent, Findings};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(900);

struct Load {
    name: &'static str,
    options: &'static [&'static str],
}

const LOADS: [Load; 6] = [
    Load {
        name: "random",
        options: &["--rw=randwrite", "--bssplit=4k/40:16k/20:64k/20:256k/10:1m/10", "--ioengine=psync", "--numjobs=4"],
    },
    Load {
        name: "random-direct",
        options: &[
            "--rw=randwrite",
            "--bssplit=4k/50:64k/30:1m/20",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=8",
            "--numjobs=2",
        ],
    },
    Load { name: "sequential", options: &["--rw=write", "--bs=1m", "--ioengine=psync", "--numjobs=3"] },
    Load { name: "unaligned", options: &["--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned", "--numjobs=2"] },
    // Written alone and in one size: fio loses track of overwritten blocks when it also reads, or their sizes differ.
    Load { name: "overwritten", options: &["--rw=randwrite", "--bs=24k", "--norandommap", "--numjobs=2"] },
    Load { name: "again", options: &["--rw=randwrite", "--bsrange=4k-256k", "--loops=3", "--numjobs=2"] },
];
/// What goes on while daemons die.
const DURING_KILLS: Load = Load {
    name: "killed",
    options: &["--rw=randwrite", "--bssplit=4k/60:64k/20:1m/20", "--ioengine=psync", "--numjobs=2", "--fsync=16"],
};

pub fn run(scene: &Scene, extent: Extent) -> Result<Findings> {
    let mebibytes = if extent == Extent::Quick { 16 } else { 96 };
    let directory = scene.directory("fio")?;
    let mut findings = Findings::default();
    for load in LOADS {
        let command = command(&directory, &load, mebibytes);
        findings.check(load.name, process::run(command, &scene.log(&format!("fio-{}", load.name)), TIME));
        // The cluster is small.
        for entry in std::fs::read_dir(&directory)? {
            std::fs::remove_file(entry?.path())?;
        }
    }
    findings.note = format!("{mebibytes} MiB for each job");
    Ok(findings)
}

pub fn start(scene: &Scene, directory: &Path, mebibytes: u32) -> Result<Running> {
    Running::start(command(directory, &DURING_KILLS, mebibytes), &scene.log("fio-killed"), TIME)
}

fn command(directory: &Path, load: &Load, mebibytes: u32) -> Command {
    let mut command = Command::new("fio");
    command.arg(format!("--name={}", load.name)).arg(format!("--directory={}", directory.display()));
    command.arg(format!("--size={mebibytes}m")).args(load.options);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=1", "--fallocate=none"]);
    command.args(["--end_fsync=1", "--thread", "--group_reporting", "--verify_state_save=0"]);
    command
}
