//! `weft-sim`: runs seeds, each in a process of its own, so that one that never ends, or takes all memory, is only one.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;
use weft_sim::aims::Aim;
use weft_sim::creates;
use weft_sim::many::{self, Many};
use weft_sim::run::{RunOptions, run};
use weft_sim::tables::{self, Growth, cpu_seconds};
use weft_wire::map::Protection;

#[derive(Parser)]
#[command(name = "weft-sim", about = "Runs whole clusters in virtual time, everything a function of the seed")]
struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other from the first
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// Go on with further seeds for so long instead
    #[arg(long, value_name = "SECONDS")]
    budget: Option<u64>,
    /// Begin no further seed once one has failed
    #[arg(long)]
    until_failure: bool,
    /// Write the first seed, the one after the last, how many passed within and beyond P, how many failed, and the
    /// median of their CPU seconds
    #[arg(long, value_name = "FILE")]
    sum: Option<std::path::PathBuf>,
    /// Seeds that are run before all others, one a line, some with an aim behind it
    #[arg(long, value_name = "FILE")]
    seeds: Option<std::path::PathBuf>,
    #[arg(long, default_value_t = 6)]
    nodes: usize,
    /// Instead of seeds with faults: how long the rebuild of a dead node takes in clusters of so many nodes
    #[arg(long, value_name = "NODES,...", value_delimiter = ',')]
    rebuild: Vec<usize>,
    /// Instead of seeds with faults: what making a file costs in a directory that has so many, ascending
    #[arg(long, value_name = "ENTRIES,...", value_delimiter = ',')]
    creates: Vec<u64>,
    /// Instead of seeds with faults: what is moved when a cluster grows
    #[arg(long, value_name = "NODES:NODES", conflicts_with = "rebuild")]
    grow: Option<Growth>,
    #[arg(long, default_value = "4+2")]
    protection: Protection,
    /// Virtual seconds with faults
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    time: u64,
    /// What all seeds are made for, instead of what each draws
    #[arg(long, value_name = "AIM")]
    aim: Option<Aim>,
    /// Processes at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Print what happens, and the programs' own logs as RUST_LOG says
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    #[cfg(weft_mutants)]
    weft_wire::break_rule(std::env::var("WEFT_MUTANT").unwrap_or_default());
    let arguments = Arguments::parse();
    if arguments.runs != 1 || arguments.budget.is_some() || arguments.seeds.is_some() || arguments.sum.is_some() {
        let mut shape = vec![
            format!("--nodes={}", arguments.nodes),
            format!("--protection={}", arguments.protection),
            format!("--time={}", arguments.time),
        ];
        shape.extend(arguments.aim.and_then(|aim| Some(format!("--aim={}", aim.to_possible_value()?.get_name()))));
        let many = Many {
            seed: arguments.seed,
            runs: arguments.runs,
            budget: arguments.budget.map(Duration::from_secs),
            until_failure: arguments.until_failure,
            sum: arguments.sum,
            seeds: arguments.seeds,
            jobs: arguments.jobs.max(1),
            shape,
        };
        return match many::run(&many) {
            Ok(sum) if sum.failed == 0 => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if arguments.verbose {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    let tables = match (&arguments.rebuild[..], arguments.grow) {
        ([], None) => None,
        ([], Some(grow)) => Some(tables::grow(grow, arguments.protection)),
        (nodes, _) => Some(tables::rebuild(arguments.seed, nodes, arguments.protection)),
    };
    if let Some(done) = tables {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if !arguments.creates.is_empty() {
        return creates(&arguments);
    }
    let options = RunOptions {
        nodes: arguments.nodes,
        protection: arguments.protection,
        time: Duration::from_secs(arguments.time),
        print: arguments.verbose,
        aim: arguments.aim,
        ..RunOptions::new(arguments.seed)
    };
    match run(&options) {
        Ok(report) => {
            println!("seed {}: {report}, {:.3} s of CPU", arguments.seed, cpu_seconds());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("seed {}: {failure}", arguments.seed);
            ExitCode::FAILURE
        }
    }
}

/// A table for docs/design/directories.md.
fn creates(arguments: &Arguments) -> ExitCode {
    let costs = creates::costs(arguments.seed, arguments.nodes, arguments.protection, &arguments.creates, cpu_seconds);
    match costs {
        Ok(costs) => {
            println!("| entries | datagrams for a create | CPU us | us in virtual time |\n|--:|--:|--:|--:|");
            for cost in costs {
                let creates::Cost { entries, packets, cpu_us, took_us } = cost;
                println!("| {entries} | {packets:.1} | {cpu_us:.0} | {took_us:.0} |");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
