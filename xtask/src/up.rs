//! `cargo xtask up`: from a clone to a mounted cluster on this machine. What is there already is kept, so it also brings
//! back a cluster that was stopped or killed.

use crate::{machine, tree};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;
use weft_cluster_tests::cluster::Cluster;
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::preflight;
use weft_cluster_tests::programs::{PACKAGES, Programs};
use weft_cluster_tests::{mount, wait};

const FILESYSTEM: &str = "main";
const PROTECTION: &str = "4+2";
const NODES: usize = 6;
const DRIVE_BYTES: u64 = 4 << 30;

#[derive(clap::Args)]
pub struct Up {
    /// How many nodes, one process each; 6 unless the cluster exists
    #[arg(long)]
    nodes: Option<usize>,
    /// Data and parity shards of each stripe; 4+2 unless the cluster exists
    #[arg(long, value_name = "D+P")]
    protection: Option<String>,
    /// Size of each node's drive, a sparse file; 4GiB unless the cluster exists
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    drive_size: Option<u64>,
    /// Where drives, logs and sockets go; `.weft` in the repository unless given
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where to mount
    #[arg(long, value_name = "DIR", default_value = "/mnt/weft")]
    mount: PathBuf,
}

/// Says what is being done, with the seconds since the start.
struct Progress(Instant);

impl Progress {
    fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}

impl Up {
    pub fn run(self) -> Result<ExitCode> {
        let progress = Progress(Instant::now());
        let state = state_directory(self.state.as_deref())?;
        let stored = Layout::load(&state)?;
        let layout = self.layout(stored.as_ref(), &state)?;

        progress.say("building weftd, weft and mount.weft");
        let programs = build()?;
        let mut cluster = match stored {
            Some(_) => Cluster::open(programs, &state)?.context("the cluster vanished while it was looked at")?,
            None => {
                self.preflight(&layout, &state, &progress)?;
                Cluster::create(programs, &state, layout)?
            }
        };
        let running = cluster.running();
        if running == 0 && stored.is_some() {
            self.preflight(&cluster.layout.clone(), &state, &progress)?;
        }
        progress.say(&format!("starting {} nodes, {running} of them run already", cluster.layout.nodes));
        cluster.start()?;
        if cluster.layout.filesystem.is_none() {
            progress.say(&format!("forming a cluster of {} with {}", cluster.layout.nodes, cluster.layout.protection));
            cluster.form(FILESYSTEM)?;
        }
        match mount::kind(&self.mount)? {
            Some(kind) if mount::is_weft(&kind) => {
                progress.say(&format!("{} is mounted already", self.mount.display()))
            }
            Some(kind) => {
                bail!("{} has a filesystem of type {kind}: choose another place with --mount", self.mount.display())
            }
            None => {
                progress.say(&format!("mounting {}", self.mount.display()));
                create_mountpoint(&self.mount)?;
                cluster.mount(&self.mount, "")?;
            }
        }
        // Mounted is not served: the first answer of the filesystem is.
        wait::until_ok(weft_cluster_tests::cluster::READY_DEADLINE, || {
            std::fs::read_dir(&self.mount).with_context(|| format!("{} does not answer", self.mount.display()))
        })?;
        progress.say("ready");
        self.print_hints(&cluster);
        Ok(ExitCode::SUCCESS)
    }

    /// What the cluster is, or shall be. What was asked for must agree with what exists.
    fn layout(&self, stored: Option<&Layout>, state: &Path) -> Result<Layout> {
        let Some(stored) = stored else {
            let protection = self.protection.as_deref().unwrap_or(PROTECTION);
            let (nodes, drive_bytes) = (self.nodes.unwrap_or(NODES), self.drive_size.unwrap_or(DRIVE_BYTES));
            return Layout::new("local", nodes, protection, drive_bytes);
        };
        let differs = self.nodes.is_some_and(|nodes| nodes != stored.nodes)
            || self.protection.as_ref().is_some_and(|protection| *protection != stored.protection)
            || self.drive_size.is_some_and(|bytes| bytes != stored.drive_bytes);
        if differs {
            bail!(
                "the cluster in {} has {} nodes, {} and drives of {} bytes; `cargo xtask down --wipe` deletes it \
                 with all data, or --state makes another one beside it",
                state.display(),
                stored.nodes,
                stored.protection,
                stored.drive_bytes
            );
        }
        Ok(stored.clone())
    }

    fn preflight(&self, layout: &Layout, state: &Path, progress: &Progress) -> Result<()> {
        progress.say("looking at the machine");
        machine::prepare(|what| progress.say(what))?;
        if !nix::unistd::geteuid().is_root() && !self.mount.exists() {
            let mut sudo = Command::new("sudo");
            let status = sudo.args(["mkdir", "-p"]).arg(&self.mount).status().context("can't start sudo")?;
            anyhow::ensure!(
                status.success(),
                "can't create {}: choose another place with --mount",
                self.mount.display()
            );
        }
        create_mountpoint(&self.mount)?;
        let fresh = mount::kind(&self.mount)?.is_none();
        let hints = preflight::check(&preflight::Wanted {
            state,
            nodes: layout.nodes,
            drive_bytes: layout.drive_bytes,
            base_port: layout.base_port,
            mount: fresh.then_some(self.mount.as_path()),
        })?;
        hints.iter().for_each(|hint| println!("note: {hint}"));
        Ok(())
    }

    fn print_hints(&self, cluster: &Cluster) {
        let Some(node) = cluster.nodes.first() else { return };
        let (weft, socket) = (cluster.programs.weft.display(), node.socket());
        let (mountpoint, state, socket) = (self.mount.display(), cluster.state.display(), socket.display());
        println!(
            "\nWeft is mounted on {mountpoint}. What to try:\n\
             \n  cp -r . {mountpoint}/copy && diff -r --exclude target . {mountpoint}/copy\
             \n  {weft} --socket {socket} status\
             \n  kill everything, and see that nothing is lost:\
             \n    kill -9 $(cat {state}/node*/supervisor.lock); cargo xtask up\
             \n  cargo xtask down           stops it; `cargo xtask up` brings it back\
             \n  cargo xtask down --wipe    stops it and deletes all data\
             \n\nLogs: {state}/node*/weftd.log and {state}/mount.log"
        );
    }
}

/// The state directory, absolute.
pub fn state_directory(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(std::path::absolute(path)?),
        None => Ok(tree::root()?.join(".weft")),
    }
}

/// Builds what a cluster needs and nothing else.
pub fn build() -> Result<Programs> {
    let mut command = tree::cargo();
    command.current_dir(tree::root()?).args(["build", "--profile", "ci"]);
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let status = command.status().context("can't start cargo")?;
    if !status.success() {
        bail!("the build failed; the compiler's messages are above");
    }
    Programs::in_directory(&tree::target()?.join("ci"))
}

fn create_mountpoint(mountpoint: &Path) -> Result<()> {
    if mount::kind(mountpoint)?.is_some() {
        return Ok(());
    }
    let created = std::fs::create_dir_all(mountpoint);
    created.with_context(|| format!("can't create {}; choose another place with --mount", mountpoint.display()))
}

/// A number of bytes, with KiB, MiB, GiB or TiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text.get(digits.len()..).unwrap_or_default() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        other => return Err(format!("{other} is no unit; use KiB, MiB, GiB or TiB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{digits:?} is no whole number"))?;
    let bytes = number.checked_mul(unit).ok_or("that is more than 16 EiB")?;
    if bytes % 4096 != 0 { Err("a drive has whole blocks of 4096 bytes".into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes() {
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("8192"), Ok(8192));
        for bad in ["", "GiB", "4GB", "1.5GiB", "-1", "4097", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_asked_must_agree_with_what_exists() {
        let stored = Layout::new("local", 6, "4+2", 1 << 30).unwrap();
        let up = |nodes| Up { nodes, protection: None, drive_size: None, state: None, mount: "/mnt".into() };
        assert!(up(None).layout(Some(&stored), Path::new("x")).is_ok());
        assert!(up(Some(6)).layout(Some(&stored), Path::new("x")).is_ok());
        let error = up(Some(7)).layout(Some(&stored), Path::new("x")).unwrap_err().to_string();
        assert!(error.contains("has 6 nodes") && error.contains("--wipe"), "{error}");
    }
}
