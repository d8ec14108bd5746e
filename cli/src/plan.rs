//! The map of a cluster that is being formed, kept until every node has it: an interrupted formation goes on with the same one.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use weft_wire::control::LINE_BYTES_MAX;
use weft_wire::map::Map;

pub struct PlanFile {
    path: PathBuf,
}

impl PlanFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn load(&self) -> Result<Option<Map>> {
        let shown = self.path.display();
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("can't read the plan {shown}")),
        };
        let mut text = Vec::new();
        let read = file.take(LINE_BYTES_MAX as u64).read_to_end(&mut text);
        read.with_context(|| format!("can't read the plan {shown}"))?;
        let wrong =
            || format!("{shown} is no plan of this version of weft; move it away, or name another file with --plan");
        serde_json::from_slice(&text).map(Some).with_context(wrong)
    }

    /// Complete and durable before it has its name. It holds the cluster's secret: only its owner may read it.
    pub fn store(&self, map: &Map) -> Result<()> {
        let shown = self.path.display();
        let failed =
            || format!("can't keep the plan in {shown}; name a file in a directory where you may write with --plan");
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = self.path.with_file_name(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh).with_context(failed)?;
        let text = serde_json::to_vec(map).context("the plan can't be written as JSON")?;
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(failed)?;
        std::fs::rename(&fresh, &self.path).with_context(failed)
    }

    /// Nobody needs it any more.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(error)
                .with_context(|| {
                    format!("can't delete the plan {}; delete it: it is of no more use", self.path.display())
                }),
            _ => Ok(()),
        }
    }
}
