//! Six nodes of Weft on this machine, with 4+2.

use super::{System, end_processes, fresh, unmount_below};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use weft_cluster_tests::cluster::{Cluster, READY_DEADLINE};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::programs::Programs;
use weft_cluster_tests::wait;

const NODES: usize = 6;
const PROTECTION: &str = "4+2";

pub struct Weft {
    cluster: Cluster,
    mount: PathBuf,
}

impl Weft {
    pub fn start(programs: Programs, state: &Path, drive_bytes: u64) -> Result<Weft> {
        let state = fresh(state)?;
        let layout = Layout::new("bench", NODES, PROTECTION, drive_bytes)?;
        let mut cluster = Cluster::create(programs, &state, layout)?;
        cluster.start()?;
        cluster.form("main")?;
        let mount = super::directory(&state, "mnt")?;
        cluster.mount(&mount, "")?;
        wait::until_ok(READY_DEADLINE, || std::fs::read_dir(&mount).context("the mount does not answer"))?;
        Ok(Weft { cluster, mount })
    }
}

impl System for Weft {
    fn state(&self) -> &Path {
        &self.cluster.state
    }

    fn mount(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Weft {
    fn drop(&mut self) {
        // What fails here fails when the directory is used again, and is said there.
        let _ = unmount_below(&self.cluster.state);
        let _ = self.cluster.stop();
        let _ = end_processes(&self.cluster.state);
    }
}
