//! A directory mounted through FUSE: what any filesystem there costs at least.

use super::{System, directory, end_processes, fresh, unmount_below, wait_mounted};
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub struct Passthrough {
    state: PathBuf,
    mount: PathBuf,
    child: Child,
}

impl Passthrough {
    /// `program` is the example of the crate `weft-fuse`.
    pub fn start(program: &Path, state: &Path) -> Result<Passthrough> {
        let state = fresh(state)?;
        let (source, mount) = (directory(&state, "source")?, directory(&state, "mnt")?);
        let log = File::create(state.join("log")).context("can't write the log")?;
        let mut command = Command::new(program);
        command.arg(source).arg(&mount).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("can't start {}", program.display()))?;
        let started = Passthrough { state, mount, child };
        wait_mounted(&started.mount)?;
        Ok(started)
    }
}

impl System for Passthrough {
    fn state(&self) -> &Path {
        &self.state
    }

    fn mount(&self) -> &Path {
        &self.mount
    }
}

impl Drop for Passthrough {
    fn drop(&mut self) {
        let _ = unmount_below(&self.state);
        // A process that ended and was not waited for counts as ended.
        let _ = end_processes(&self.state);
        let _ = self.child.wait();
    }
}
