//! sqlite: several processes change one database, with a rollback journal and with a write-ahead log.
//!
//! A write-ahead log needs memory that all processes share, which is coherent within one mount only; sqlite itself rules
//! it out between machines. So two mounts use the rollback journal.

use crate::process::{self, Running};
use crate::scene::Scene;
use crate::{Extent, Findings};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(600);
const SCRIPT: &str = include_str!("sqlite_stress.py");
const PROCESSES: u32 = 4;

pub fn run(scene: &Scene, extent: Extent) -> Result<Findings> {
    let transactions = if extent == Extent::Quick { 25 } else { 150 };
    let [first, second] = scene.directories("sqlite")?;
    let mut findings = Findings::default();
    let runs = [
        ("rollback journal", "delete", vec![first.join("journal.db")]),
        ("write-ahead log", "wal", vec![first.join("log.db")]),
        ("rollback journal from two mounts", "delete", vec![first.join("two.db"), second.join("two.db")]),
    ];
    for (what, mode, databases) in runs {
        let log = scene.log(&format!("sqlite-{}", what.replace(' ', "-")));
        let result = command(scene, mode, transactions, &databases).and_then(|c| process::run(c, &log, TIME));
        findings.check(what, result);
    }
    findings.note = format!("{PROCESSES} processes with {transactions} transactions each");
    Ok(findings)
}

/// One run, from two mounts, that goes on while something else happens.
pub fn start(scene: &Scene, here: &Path, there: &Path, transactions: u32) -> Result<Running> {
    let databases = [here.join("killed.db"), there.join("killed.db")];
    let command = command(scene, "delete", transactions, &databases)?;
    Running::start(command, &scene.log("sqlite-killed"), TIME)
}

fn command(scene: &Scene, mode: &str, transactions: u32, databases: &[PathBuf]) -> Result<Command> {
    let script = scene.scratch.join("sqlite_stress.py");
    std::fs::write(&script, SCRIPT)?;
    let mut command = Command::new("python3");
    command.arg(script).args([mode, &transactions.to_string(), &PROCESSES.to_string()]).args(databases);
    Ok(command)
}
