//! Writes with fsync and says what is durable; checks afterwards that it is there.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use weft_cluster_tests::fsync::{check, write};

#[derive(Parser)]
#[command(about = "Writes with fsync and says what is durable; checks afterwards that it is there")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write, and print a line for each operation that is durable
    Write {
        #[command(flatten)]
        plan: PlanArguments,
        /// How many operations each thread does
        #[arg(long, default_value_t = u64::MAX)]
        operations: u64,
    },
    /// Check that what the lines say is there
    Check {
        #[command(flatten)]
        plan: PlanArguments,
        /// The lines that `write` printed
        #[arg(long)]
        log: PathBuf,
    },
}

#[derive(Args)]
struct PlanArguments {
    /// Where to work; exists, and belongs to this program
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long, default_value_t = 4)]
    threads: u64,
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Write { plan, operations } => write_all(&plan, operations),
        Verb::Check { plan, log } => check_all(&plan, &log),
    }
}

fn write_all(plan: &PlanArguments, operations: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let start = |thread| {
            scope.spawn(move || {
                let acknowledge = |number| write::print(thread, number);
                write::run(&plan.directory, plan.seed, thread, operations, acknowledge)
            })
        };
        let threads: Vec<_> = (0..plan.threads).map(start).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })
}

fn check_all(plan: &PlanArguments, log: &std::path::Path) -> Result<()> {
    let text = std::fs::read_to_string(log).with_context(|| format!("can't read {}", log.display()))?;
    let last = check::read_log(&text)?;
    let mut wrong = Vec::new();
    for thread in 0..plan.threads {
        let acknowledged = last.get(&thread).copied().unwrap_or(0);
        let directory = write::directory(&plan.directory, thread);
        let found = check::violations(&directory, plan.seed, thread, acknowledged)?;
        wrong.extend(found.into_iter().map(|what| format!("{}: after {acknowledged}: {what}", directory.display())));
    }
    if !wrong.is_empty() {
        bail!("what was acknowledged is not there:\n  {}", wrong.join("\n  "));
    }
    println!("{} acknowledged operations are there", last.values().sum::<u64>());
    Ok(())
}
