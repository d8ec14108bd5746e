//! The files of the work tree.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    pub text: String,
}

pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// All text files that belong to the repository, sorted by path.
pub fn files() -> Result<Vec<File>> {
    let root = root();
    let mut found = Vec::new();
    walk(&root, &root, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(root: &Path, directory: &Path, found: &mut Vec<File>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("can't list {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let relative = path.strip_prefix(root)?.to_string_lossy().into_owned();
        if ["target", ".git", ".weft"].contains(&name.as_str()) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found)?;
        } else if !name.ends_with(".drive") {
            let bytes = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
            // What is not text (a golden file, a picture) has no rules here.
            if let Ok(text) = String::from_utf8(bytes) {
                found.push(File { path: relative, text });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub fn sample(path: &str, text: &str) -> File {
    File { path: path.into(), text: text.into() }
}
