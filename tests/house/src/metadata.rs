//! What cargo knows about the workspace.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    /// None: a member of the workspace or another path.
    pub source: Option<String>,
    pub manifest_path: String,
    pub dependencies: Vec<Dependency>,
    pub targets: Vec<Target>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
    /// None: normal; otherwise "dev" or "build".
    pub kind: Option<String>,
    pub path: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
    pub src_path: String,
}

impl Package {
    /// The crate's directory relative to the root.
    pub fn directory(&self, root: &Path) -> String {
        let directory = Path::new(&self.manifest_path).parent().unwrap_or(Path::new(""));
        directory.strip_prefix(root).unwrap_or(directory).to_string_lossy().into_owned()
    }
}

/// The members of the workspace.
pub fn members() -> Result<Metadata> {
    query(&["--no-deps"])
}

/// The members and everything that they depend on, on the platform that we ship for.
pub fn everything() -> Result<Metadata> {
    query(&["--filter-platform", "x86_64-unknown-linux-gnu"])
}

fn query(arguments: &[&str]) -> Result<Metadata> {
    let output = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(arguments)
        .current_dir(super::tree::root())
        .output()
        .context("can't start cargo")?;
    if !output.status.success() {
        anyhow::bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("can't read what cargo metadata says")
}

#[cfg(test)]
pub fn sample(name: &str, uses: &[&str]) -> Package {
    let dependency = |name: &&str| Dependency { name: name.to_string(), kind: None, path: Some(String::new()) };
    Package {
        name: name.into(),
        version: "0.0.0".into(),
        license: None,
        source: None,
        manifest_path: String::new(),
        dependencies: uses.iter().map(dependency).collect(),
        targets: Vec::new(),
    }
}
