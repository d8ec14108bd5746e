//! `weft-sim`: runs seeds. Each seed in a process of its own, so that one that never ends or takes all memory is one.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use std::time::Duration;
use weft_sim::run::{RunOptions, run};
use weft_wire::map::Protection;

#[derive(Parser)]
#[command(name = "weft-sim", about = "Runs whole clusters in virtual time")]
struct Arguments {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 6)]
    nodes: usize,
    #[arg(long, default_value = "4+2")]
    protection: Protection,
    /// Virtual seconds with faults
    #[arg(long, default_value_t = 20, value_name = "SECONDS")]
    time: u64,
    /// Print what happens, and the programs' own logs as RUST_LOG says
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.verbose {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
    let options = RunOptions {
        nodes: arguments.nodes,
        protection: arguments.protection,
        time: Duration::from_secs(arguments.time),
        print: arguments.verbose,
        ..RunOptions::new(arguments.seed)
    };
    match run(&options) {
        Ok(report) => {
            println!("seed {}: {report:?}", arguments.seed);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("seed {}: {failure}", arguments.seed);
            ExitCode::FAILURE
        }
    }
}
