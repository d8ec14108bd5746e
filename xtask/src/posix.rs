//! `cargo xtask posix`: the suites that a mounted cluster must stand, on a cluster started for them.

use crate::{tree, up};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;
use weft_posix_tests::scene::Scene;
use weft_posix_tests::{ALL, Extent, Findings, QUICK, Suite, Tools};

#[derive(clap::Args)]
pub struct Posix {
    /// Run only these suites
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Only what finds most in a few minutes
    #[arg(long)]
    quick: bool,
    /// Where cluster, mounts and logs go; `posix` in cargo's target directory unless given. Whatever is there is deleted
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
    /// Size of each node's drive, a sparse file
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = up::parse_size)]
    drive_size: u64,
    /// Write the numbers of passed and failed checks to this file, too
    #[arg(long, value_name = "FILE")]
    count: Option<PathBuf>,
}

impl Posix {
    pub fn run(self) -> Result<ExitCode> {
        let suites = match (self.suites.as_slice(), self.quick) {
            ([], false) => ALL.to_vec(),
            ([], true) => QUICK.to_vec(),
            (asked, _) => asked.to_vec(),
        };
        let extent = if self.quick { Extent::Quick } else { Extent::Full };
        let programs = up::build()?;
        build_writer()?;
        let target = tree::target()?;
        let tools = Tools::install(&target.join("tools"), &suites)?;
        let place = self.place.clone().unwrap_or_else(|| target.join("posix"));
        let mut scene = Scene::new(programs, tools, &tree::root()?, &place, self.drive_size)?;
        let (mut passed, mut failed) = (0, 0);
        for suite in suites {
            let started = Instant::now();
            // What could not be run is wrong, too.
            let findings = suite.run(&mut scene, extent).unwrap_or_else(|error| {
                let wrong = vec![format!("could not be run to its end: {error:#}")];
                Findings { wrong, ..Findings::default() }
            });
            passed += findings.passed;
            failed += findings.wrong.len() as u64;
            println!(
                "{:<10}{:>7.1} s {:>5} passed {:>4} failed  {}",
                suite.name(),
                started.elapsed().as_secs_f64(),
                findings.passed,
                findings.wrong.len(),
                findings.note
            );
            for wrong in &findings.wrong {
                println!("    {}", wrong.replace('\n', "\n        "));
            }
        }
        if failed > 0 {
            println!("logs: {0}/scratch and {0}/state/node*/weftd.log", place.display());
        }
        println!("{passed} passed, {failed} failed");
        if let Some(path) = &self.count {
            std::fs::write(path, format!("{passed} {failed}"))
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The writer and checker that suite `kill` runs beside everything else.
fn build_writer() -> Result<()> {
    let mut command: Command = tree::cargo();
    command.current_dir(tree::root()?).args(["build", "--quiet", "--profile", "ci", "--package", "weft-cluster-tests"]);
    let status = command.args(["--bin", "weft-fsync"]).status().context("can't start cargo")?;
    anyhow::ensure!(status.success(), "the build failed; the compiler's messages are above");
    Ok(())
}
