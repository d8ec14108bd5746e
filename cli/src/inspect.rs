//! `weft drive inspect`.

use crate::output::Output;
use crate::table::plain;
use anyhow::{Context, Result};
use std::path::Path;
use weft_drive::inspect::inspect_file;

/// Whether the drive is usable.
pub fn inspect(output: Output, path: &Path) -> Result<bool> {
    let shown = plain(&path.display().to_string());
    let hint = || format!("can't look at {shown}; expected a drive file or block device that you may read");
    let kind = std::fs::metadata(path).with_context(hint)?.file_type();
    anyhow::ensure!(!kind.is_dir(), "{shown} is a directory; expected a drive file or block device");
    let report = inspect_file(path).with_context(hint)?;
    output.show(&report, || report.to_string().lines().map(|line| plain(line) + "\n").collect())?;
    Ok(report.problem.is_none())
}
