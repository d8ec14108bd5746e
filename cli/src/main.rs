//! `weft`: what people and programs say to a cluster.
#![forbid(unsafe_code)]

mod arguments;
mod connection;
mod create;
mod events;
mod filesystems;
mod gather;
mod grow;
mod health;
mod inspect;
mod mount;
mod output;
mod overview;
mod pages;
mod passes;
mod plan;
mod room;
#[cfg(test)]
mod sample;
mod shrink;
mod size;
mod status;
mod table;
mod time;

use anyhow::Result;
use arguments::{Arguments, ClusterVerb, DriveVerb, FsVerb, Global, NodeVerb, ScrubVerb, Verb};
use clap::Parser;
use connection::Access;
use output::{Closed, Output, progress};
use std::process::ExitCode;

const FAILED: u8 = 1;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_status = matches!(arguments.verb, Verb::Status);
    match run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is::<Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("weft: {error:#}").lines() {
                progress(line);
            }
            ExitCode::from(if is_status { health::Health::Unknown.exit_code() } else { FAILED })
        }
    }
}

fn run(Arguments { global, verb }: Arguments) -> Result<u8> {
    let output = if global.json { Output::Json } else { Output::Text };
    let timeout = global.timeout;
    let mut access = Access::new(global.endpoint(), &global.token_file());
    match verb {
        Verb::Cluster(ClusterVerb::Create(create)) => {
            let plan = plan::PlanFile::new(create.plan.clone().unwrap_or_else(|| plan_path(&global, &create.name)));
            create::create(&mut access, output, timeout, &create, &plan)?;
        }
        Verb::Cluster(ClusterVerb::HotSpare { nodes, dry_run }) => {
            room::hot_spare(&mut access, output, timeout, nodes, dry_run)?;
        }
        Verb::Node(NodeVerb::Add(add)) => {
            let mut cluster = Access::new(global.endpoint(), &global.token_file());
            grow::add_node(&mut cluster, &access, output, timeout, &add)?;
        }
        Verb::Node(NodeVerb::Drain { node, drain }) => shrink::drain_node(&mut access, output, timeout, &node, drain)?,
        Verb::Node(NodeVerb::Remove { node, dry_run }) => {
            shrink::remove_node(&mut access, output, timeout, &node, dry_run)?;
        }
        Verb::Drive(DriveVerb::Add { node, path, dry_run }) => {
            grow::add_drive(&mut access, output, timeout, &node, &path, dry_run)?;
        }
        Verb::Drive(DriveVerb::Drain { drive, drain }) => {
            shrink::drain_drive(&mut access, output, timeout, &drive, drain)?;
        }
        Verb::Drive(DriveVerb::Remove { drive, dry_run }) => {
            shrink::remove_drive(&mut access, output, timeout, &drive, dry_run)?;
        }
        Verb::Status => return Ok(status::status(&mut access, output, timeout)?.exit_code()),
        Verb::Events { follow } => events::events(&mut access, output, timeout, follow)?,
        Verb::Fs(FsVerb::Create { name, size }) => filesystems::create(&access, output, timeout, &name, size)?,
        Verb::Fs(FsVerb::List) => filesystems::list(&access, output, timeout)?,
        Verb::Fs(FsVerb::Delete { name, yes }) => filesystems::delete(&access, output, timeout, &name, yes)?,
        Verb::Fs(FsVerb::Check) => return passes::check(&mut access, output, timeout),
        Verb::Scrub(ScrubVerb::Start { pace, wait }) => {
            return passes::start(&mut access, output, timeout, pace, wait);
        }
        Verb::Scrub(ScrubVerb::Status) => return passes::status(&mut access, output, timeout),
        Verb::Scrub(ScrubVerb::Stop) => return passes::stop(&mut access, output, timeout),
        Verb::Drive(DriveVerb::List) => status::drives(&mut access, output, timeout)?,
        Verb::Drive(DriveVerb::Inspect { file }) => {
            return Ok(if inspect::inspect(output, &file)? { 0 } else { FAILED });
        }
        Verb::Mount(mount) => mount::mount(&mount)?,
        Verb::Completion { shell } => pages::completion(shell)?,
        Verb::Man { directory } => pages::manual(&directory)?,
    }
    Ok(0)
}

fn plan_path(global: &Global, name: &str) -> std::path::PathBuf {
    global.token_file().with_file_name(format!("{name}.forming"))
}
