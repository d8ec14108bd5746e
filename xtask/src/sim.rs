//! `cargo xtask sim`: whole clusters in virtual time, seed by seed.

use crate::tree;
use anyhow::{Context, Result};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Sim {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other from the first
    #[arg(long, default_value_t = 1)]
    runs: u64,
    #[arg(long, default_value_t = 6)]
    nodes: usize,
    /// Data and parity shards
    #[arg(long, default_value = "4+2")]
    protection: String,
    /// Virtual seconds with faults
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    time: u64,
    /// Seeds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Print what happens, and the programs' own logs as RUST_LOG says
    #[arg(long)]
    verbose: bool,
}

impl Sim {
    pub fn run(self) -> Result<ExitCode> {
        let mut command = tree::cargo();
        command.current_dir(tree::root()?);
        command.args(["run", "--quiet", "--profile", "ci", "--package", "weft-sim", "--"]);
        command.arg("--seed").arg(self.seed.to_string());
        command.arg("--runs").arg(self.runs.to_string());
        command.arg("--nodes").arg(self.nodes.to_string());
        command.arg("--protection").arg(&self.protection);
        command.arg("--time").arg(self.time.to_string());
        command.arg("--jobs").arg(self.jobs.to_string());
        if self.verbose {
            command.arg("--verbose");
        }
        let status = command.status().context("can't start cargo")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
