//! `cargo xtask VERB`: what developers and CI do with this repository, one verb per file.

#![forbid(unsafe_code)]

mod bench;
mod down;
mod ledger;
mod machine;
mod mutants;
mod posix;
mod sim;
mod stage;
mod test;
mod tree;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What developers and CI do with this repository", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run everything that CI runs; the last line says how many tests passed and failed
    Test(test::Test),
    /// Start a cluster of local processes and mount it; brings back the one that was there
    Up(up::Up),
    /// Stop the cluster
    Down(down::Down),
    /// Run whole clusters in virtual time, with faults, each a function of its seed
    Sim(sim::Sim),
    /// Build deliberately broken simulators, each of which some seed must catch
    Mutants(mutants::Mutants),
    /// Run public test suites on a mounted cluster that is started for them
    Posix(posix::Posix),
    /// Measure what work costs, beside a FUSE pass-through and GlusterFS
    Bench(bench::Bench),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Test(test) => test.run(),
        Verb::Up(up) => up.run(),
        Verb::Down(down) => down.run(),
        Verb::Sim(sim) => sim.run(),
        Verb::Mutants(mutants) => mutants.run(),
        Verb::Posix(posix) => posix.run(),
        Verb::Bench(bench) => bench.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
