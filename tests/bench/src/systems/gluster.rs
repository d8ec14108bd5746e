//! GlusterFS of the distribution: one volume, disperse 6 with redundancy 2, as it comes, on loopback.

use super::{System, directory, end_processes, fresh, succeed, unmount_below, wait_mounted};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use weft_cluster_tests::mount::privileged;
use weft_cluster_tests::wait;

/// It refuses bricks on 127.0.0.1.
const ADDRESS: &str = "127.0.0.2";
const VOLUME: &str = "bench";
const BRICKS: usize = 6;
const REDUNDANCY: usize = 2;
const READY_DEADLINE: Duration = Duration::from_secs(60);

pub struct Gluster {
    state: PathBuf,
    mount: PathBuf,
}

impl Gluster {
    /// Installs it if it is not there.
    pub fn install() -> Result<()> {
        let mut probe = Command::new("glusterd");
        if succeed(probe.arg("--version")).is_ok() {
            return Ok(());
        }
        println!("installing glusterfs-server");
        let apt = |arguments: &[&str]| {
            let mut command = privileged(Path::new("apt-get"));
            succeed(command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments))
        };
        apt(&["update"])?;
        apt(&["install", "-y", "--no-install-recommends", "glusterfs-server"])
    }

    pub fn start(state: &Path) -> Result<Gluster> {
        let state = fresh(state)?;
        let mount = directory(&state, "mnt")?;
        let started = Gluster { state, mount };
        started.start_daemon()?;
        let bricks = (1..=BRICKS).map(|number| directory(&started.state, &format!("brick{number}")));
        let bricks = bricks.collect::<Result<Vec<PathBuf>>>()?;
        let bricks = bricks.iter().map(|path| format!("{ADDRESS}:{}", path.display()));
        let (count, redundancy) = (BRICKS.to_string(), REDUNDANCY.to_string());
        let mut create = started.command();
        create.args(["volume", "create", VOLUME, "disperse", &count, "redundancy", &redundancy]);
        succeed(create.args(bricks).arg("force"))?;
        succeed(started.command().args(["volume", "start", VOLUME]))?;
        let mut client = privileged(Path::new("glusterfs"));
        client.arg(format!("--volfile-server={ADDRESS}")).arg(format!("--volfile-id={VOLUME}"));
        succeed(client.arg("--log-file").arg(started.state.join("client.log")).arg(&started.mount))?;
        wait_mounted(&started.mount)?;
        // It answers at once, and with errors until enough bricks are connected.
        let probe = started.mount.join("probe");
        wait::until_ok(READY_DEADLINE, || std::fs::write(&probe, "x").context("the volume takes no writes"))?;
        std::fs::remove_file(&probe)?;
        Ok(started)
    }

    fn start_daemon(&self) -> Result<()> {
        let (work, run, log) =
            (directory(&self.state, "work")?, directory(&self.state, "run")?, self.state.join("log"));
        let volfile = self.state.join("glusterd.vol");
        let text = format!(
            "volume management\n    type mgmt/glusterd\n    option working-directory {}\n    option run-directory {}\n    \
             option glusterd-sockfile {}\n    option transport-type socket\n    \
             option transport.socket.bind-address {ADDRESS}\n    option transport.socket.listen-port 24007\n    \
             option max-port 60999\nend-volume\n",
            work.display(),
            run.display(),
            self.socket().display()
        );
        std::fs::write(&volfile, text).with_context(|| format!("can't write {}", volfile.display()))?;
        let mut daemon = privileged(Path::new("glusterd"));
        daemon.arg("--volfile").arg(&volfile).arg("--pid-file").arg(self.state.join("glusterd.pid"));
        succeed(daemon.arg("--log-file").arg(log))?;
        wait::until_ok(READY_DEADLINE, || succeed(self.command().args(["volume", "list"])))
    }

    fn socket(&self) -> PathBuf {
        self.state.join("run/glusterd.sock")
    }

    fn command(&self) -> Command {
        let mut command = privileged(Path::new("gluster"));
        command.arg(format!("--glusterd-sock={}", self.socket().display())).arg("--mode=script");
        command
    }
}

impl System for Gluster {
    fn state(&self) -> &Path {
        &self.state
    }

    fn mount(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Gluster {
    fn drop(&mut self) {
        let _ = unmount_below(&self.state);
        let _ = end_processes(&self.state);
    }
}
