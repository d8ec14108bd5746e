//! `cargo xtask sim`: whole clusters in virtual time, seed by seed.

use crate::{ledger, tree};
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
    /// What all seeds are made for, instead of what each draws: halves, alone, pairs, sealed, restarts, drives, clients, zones
    #[arg(long, value_name = "AIM", conflicts_with = "resume")]
    aim: Option<String>,
    /// Seeds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Go on with further seeds for so long instead
    #[arg(long, value_name = "SECONDS")]
    budget: Option<u64>,
    /// Go on behind the seeds of docs/ledger.md, and write there what became of these
    #[arg(long, conflicts_with = "seed")]
    resume: bool,
    /// Instead of seeds with faults: how long the rebuild of a dead node takes in clusters of so many nodes
    #[arg(long, value_name = "NODES,...", value_delimiter = ',', conflicts_with_all = ["resume", "budget", "runs"])]
    rebuild: Vec<usize>,
    /// Instead of seeds with faults: what making a file costs in a directory that has so many, ascending
    #[arg(long, value_name = "ENTRIES,...", value_delimiter = ',', conflicts_with_all = ["resume", "budget", "runs", "rebuild"])]
    creates: Vec<u64>,
    /// Instead of seeds with faults: what is moved when a cluster grows
    #[arg(long, value_name = "NODES:NODES", conflicts_with_all = ["resume", "budget", "runs", "rebuild"])]
    grow: Option<String>,
    /// Print what happens, and the programs' own logs as RUST_LOG says
    #[arg(long)]
    verbose: bool,
}

impl Sim {
    pub fn run(self) -> Result<ExitCode> {
        let mut command = tree::cargo();
        command.current_dir(tree::root()?);
        command.args(["run", "--quiet", "--profile", "ci", "--package", "weft-sim", "--"]);
        let root = tree::root()?;
        let ledger = root.join(ledger::PATH);
        let resumed = match self.resume {
            true => Some(ledger::commit(&root)?),
            false => None,
        };
        let seed = match self.resume {
            true => ledger::next_seed(&std::fs::read_to_string(&ledger).unwrap_or_default()),
            false => self.seed,
        };
        command.arg("--seed").arg(seed.to_string());
        command.arg("--runs").arg(self.runs.to_string());
        command.arg("--nodes").arg(self.nodes.to_string());
        command.arg("--protection").arg(&self.protection);
        command.arg("--time").arg(self.time.to_string());
        command.arg("--jobs").arg(self.jobs.to_string());
        if let Some(aim) = &self.aim {
            command.arg("--aim").arg(aim);
        }
        if let Some(budget) = self.budget {
            command.arg("--budget").arg(budget.to_string());
        }
        for nodes in &self.rebuild {
            command.arg("--rebuild").arg(nodes.to_string());
        }
        for entries in &self.creates {
            command.arg("--creates").arg(entries.to_string());
        }
        if let Some(grow) = &self.grow {
            command.arg("--grow").arg(grow);
        }
        if self.verbose {
            command.arg("--verbose");
        }
        let sum = tree::target()?.join("sim.sum");
        if self.resume {
            // What an earlier run left says nothing about this one.
            let _ = std::fs::remove_file(&sum);
            command.arg("--sum").arg(&sum);
        }
        let status = command.status().context("can't start cargo")?;
        if let Some(commit) = resumed {
            let text = std::fs::read_to_string(&sum).with_context(|| format!("can't read {}", sum.display()))?;
            let shape = format!("{} nodes, {}, {} s", self.nodes, self.protection, self.time);
            ledger::add(&root, &commit, &shape, &ledger::Sum::parse(&text)?)?;
            let [within, beyond, failed] =
                ledger::with_same_protocol(&std::fs::read_to_string(&ledger).unwrap_or_default(), &commit);
            println!("added to {}", ledger.display());
            println!("on this protocol: {within} passed within P, {beyond} beyond P, {failed} failed");
        }
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
