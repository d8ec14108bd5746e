//! `mount.weft HOST:PORT[,HOST:PORT...]/NAME MOUNTPOINT [-o OPTIONS]`: mounts a filesystem of a Weft cluster.
//!
//! mount(8) calls it for `mount -t weft`, from fstab too. It starts itself again as the program that serves, and returns
//! when that has mounted and answers; until then it waits, also for a cluster that is away, and takes that program along
//! when it is killed.
#![forbid(unsafe_code)]

mod background;
mod serve;
mod source;

use clap::Parser;
use source::Source;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_fuse::mount_options::{MountAction, MountOptions};

/// What mount(8) knows as "the mount failed" and "wrong usage".
const EXIT_FAILED: u8 = 32;
const EXIT_USAGE: u8 = 1;

/// Mounts a filesystem of a Weft cluster.
#[derive(Debug, Parser)]
#[command(name = "mount.weft", version, disable_version_flag = true)]
struct Arguments {
    /// HOST:PORT[,HOST:PORT...]/NAME: data addresses of some nodes, and the filesystem
    source: String,
    /// An existing directory
    mountpoint: PathBuf,
    /// Mount options, separated by commas; an unknown one lists all
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in front instead of serving in the background
    #[arg(short = 'f', long)]
    foreground: bool,
    /// More in the log
    #[arg(short = 'v')]
    verbose: bool,
    /// Accepted for mount(8): nothing is written to mtab anyway
    #[arg(short = 'n')]
    no_mtab: bool,
    /// Accepted for mount(8): tolerate unknown options
    #[arg(short = 's')]
    sloppy: bool,
    /// Accepted for mount(8): the type
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// This is the program in the background
    #[arg(long, hide = true)]
    serve: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mount.weft: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let options = MountOptions::parse(arguments.options.iter().map(String::as_str))?;
    if options.action == MountAction::Remount {
        return Ok(weft_fuse::mount::remount(&arguments.mountpoint, options.flags)?);
    }
    let source = Source::parse(&arguments.source)?;
    if arguments.serve {
        let signals = serve::catch_signals()?;
        background::attach()?;
        let ready = background::Ready::Parent { log_file: options.log_file.clone() };
        serve::serve(arguments, &source, &options, signals, ready)
    } else if arguments.foreground {
        let signals = serve::catch_signals()?;
        serve::serve(arguments, &source, &options, signals, background::Ready::Foreground)
    } else {
        background::start(arguments)
    }
}
