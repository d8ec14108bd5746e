//! `weftd`: the daemon of a node.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weftd::config::{Config, ConfigError, Exposure};
use weftd::supervise::{BackoffOptions, EXIT_CONFIGURATION, Options, bind_to_supervisor, supervise};

/// The daemon of a Weft node: drives, buckets and a share in the cluster's management.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Checks a configuration file and says what is wrong with it.
    #[arg(long, value_name = "FILE")]
    check_config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs the node until SIGTERM.
    Run(Node),
    /// Runs the node, and starts it again when it dies.
    Supervise(Node),
}

#[derive(clap::Args)]
struct Node {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Takes addresses that are not loopback ones, although nothing is encrypted yet.
    #[arg(long)]
    insecure: bool,
}

impl Node {
    fn load(&self) -> Result<Config, ConfigError> {
        let exposure = if self.insecure { Exposure::Insecure } else { Exposure::Loopback };
        let config = Config::load(&self.config, exposure)?;
        config.check_host(&self.config)?;
        Ok(config)
    }
}

fn fail(error: impl std::fmt::Display, code: u8) -> ExitCode {
    // It may be a file on a full disk.
    let _ = writeln!(std::io::stderr(), "weftd: {error}");
    ExitCode::from(code)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(path) = arguments.check_config {
        return check(&path);
    }
    match arguments.verb {
        Some(Verb::Run(node)) => run(&node),
        Some(Verb::Supervise(node)) => keep_running(&node),
        None => fail("what shall I do? try `weftd run --config FILE` or `weftd --help`", EXIT_CONFIGURATION),
    }
}

fn check(path: &Path) -> ExitCode {
    let checked = Config::load(path, Exposure::Insecure).and_then(|config| config.check_host(path));
    match checked {
        Ok(()) => {
            println!("{} is good", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => fail(error, EXIT_CONFIGURATION),
    }
}

fn run(node: &Node) -> ExitCode {
    if let Err(error) = bind_to_supervisor() {
        return fail(error, 1);
    }
    let config = match node.load() {
        Ok(config) => config,
        Err(error) => return fail(error, EXIT_CONFIGURATION),
    };
    let filter = match tracing_subscriber::EnvFilter::try_new(&config.log) {
        Ok(filter) => filter,
        Err(error) => return fail(format!("log = {:?}: {error}", config.log), EXIT_CONFIGURATION),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A line that can't be written, for want of space, is lost: complaining of it there would end the process.
        .log_internal_errors(false)
        .init();
    match weftd::run::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            fail(format!("{error:#}"), 1)
        }
    }
}

fn keep_running(node: &Node) -> ExitCode {
    let config = match node.load() {
        Ok(config) => config,
        Err(error) => return fail(error, EXIT_CONFIGURATION),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return fail(format!("where is weftd? {error}"), 1),
    };
    let mut run = vec!["run".into(), "--config".into(), node.config.clone().into_os_string()];
    if node.insecure {
        run.push("--insecure".into());
    }
    let options = Options { program, arguments: run, state_dir: config.state_dir, backoff: BackoffOptions::default() };
    match supervise(&options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(error, 1),
    }
}
