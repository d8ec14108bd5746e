//! `cargo xtask down`: stops the cluster that `up` started, in order. Its data stays unless told otherwise.

use crate::tree;
use crate::up::state_directory;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use weft_cluster_tests::cluster::Cluster;
use weft_cluster_tests::mount;
use weft_cluster_tests::programs::Programs;

#[derive(clap::Args)]
pub struct Down {
    /// The state directory given to `up`
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Delete the cluster with all its data
    #[arg(long)]
    wipe: bool,
}

impl Down {
    pub fn run(self) -> Result<ExitCode> {
        let state = state_directory(self.state.as_deref())?;
        // Stopping needs none of the programs, which may be gone.
        let directory = tree::target()?.join("ci");
        let programs = Programs {
            weftd: directory.join("weftd"),
            weft: directory.join("weft"),
            mount: directory.join("mount-weft"),
        };
        let Some(mut cluster) = Cluster::open(programs, &state)? else {
            println!("there is no cluster in {}", state.display());
            return Ok(ExitCode::SUCCESS);
        };
        if let Some(mountpoint) = cluster.layout.mount.clone() {
            // While the nodes still run: what is cached must reach them.
            let weft = mount::kind(&mountpoint)?.is_some_and(|kind| mount::is_weft(&kind));
            if weft {
                let hint =
                    || format!("the cluster runs on; to stop it all the same: `umount -l {}`", mountpoint.display());
                mount::unmount(&mountpoint, cluster.running() == 0).with_context(hint)?;
            }
        }
        let running = cluster.running();
        for node in cluster.stop()? {
            println!("node{node} did not stop in time and was killed; its log says more");
        }
        println!("{running} nodes stopped");
        if self.wipe {
            cluster.wipe()?;
            println!("{} deleted", state.display());
        } else {
            println!("the data is in {}; `cargo xtask up` brings it back", state.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
