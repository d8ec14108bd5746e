//! Where this repository's tree and its build results are.

use anyhow::{Context, Result};
use std::path::PathBuf;

/// The root of the work tree that this program was built from.
pub fn root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.context("start it as `cargo xtask`, so that it knows its work tree")?;
    let root = manifest.parent().context("xtask has no parent directory")?;
    Ok(root.to_path_buf())
}

/// Where cargo puts what it builds.
pub fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => Ok(root()?.join(directory)),
        None => Ok(root()?.join("target")),
    }
}

/// The cargo that started us.
pub fn cargo() -> std::process::Command {
    std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
