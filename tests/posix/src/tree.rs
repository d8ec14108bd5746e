//! A real source tree, this repository with the sources of all crates it needs: copied in, cloned and built inside,
//! and compared byte for byte.

use crate::Findings;
use crate::process;
use crate::scene::Scene;
use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(1800);
/// What is built inside: a crate of ours that needs few others.
const PACKAGE: &str = "weft-wire";

pub fn run(scene: &Scene) -> Result<Findings> {
    let original = scene.scratch.join("tree");
    let mut findings = Findings::default();
    prepare(scene, &original).context("can't prepare the tree to copy")?;

    let directory = scene.directory("tree")?;
    let (copy, clone) = (directory.join("copy"), directory.join("clone"));
    let command = |name: &str, program: &str, arguments: &[&OsStr]| {
        let mut command = Command::new(program);
        command.args(arguments);
        process::run(command, &scene.log(&format!("tree-{name}")), TIME)
    };
    findings.check("copy", command("copy", "cp", &["-a".as_ref(), original.as_ref(), copy.as_ref()]));
    let compare = |name| {
        let options = ["-r".as_ref(), "--no-dereference".as_ref(), original.as_ref(), copy.as_ref()];
        command(name, "diff", &options)
    };
    findings.check("compare", compare("compare"));
    let clone_arguments = ["clone".as_ref(), "--no-local".as_ref(), copy.as_ref(), clone.as_ref()];
    findings.check("git clone", command("clone", "git", &clone_arguments));
    let inside = |repository: &Path, name: &str, arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(repository).args(arguments);
        process::run(command, &scene.log(&format!("tree-{name}")), TIME)
    };
    findings.check("git fsck", inside(&clone, "fsck", &["fsck", "--full", "--strict"]));
    findings.check("git status", inside(&clone, "status", &["diff", "--exit-code", "HEAD"]));
    findings.check("cargo build", build(scene, &copy));
    std::fs::remove_dir_all(copy.join("target")).context("can't remove what was built")?;
    findings.check("compare again", compare("compare-again"));
    let remove = || -> Result<()> {
        std::fs::remove_dir_all(&directory)?;
        ensure!(!directory.exists(), "it is still there");
        Ok(())
    };
    findings.check("remove", remove());
    findings.note = format!("{} files", count_files(&original)?);
    Ok(findings)
}

/// Copies the repository's files in, clones that and checks both, in another thread.
pub fn start(scene: &Scene, directory: &Path) -> JoinHandle<Result<()>> {
    let (source, directory) = (scene.source.clone(), directory.to_path_buf());
    let log = scene.log("tree-killed");
    std::thread::spawn(move || {
        let (clone, second) = (directory.join("clone"), directory.join("second"));
        let git = |arguments: &[&OsStr]| {
            let mut command = Command::new("git");
            command.args(arguments);
            process::run(command, &log, TIME)
        };
        for (from, to) in [(&source, &clone), (&clone, &second)] {
            git(&["clone".as_ref(), "--no-local".as_ref(), from.as_ref(), to.as_ref()])?;
        }
        for repository in [&clone, &second] {
            let inside = ["-C".as_ref(), repository.as_ref()];
            git(&[&inside[..], &["fsck".as_ref(), "--full".as_ref(), "--strict".as_ref()]].concat())?;
            git(&[&inside[..], &["diff".as_ref(), "--exit-code".as_ref(), "HEAD".as_ref()]].concat())?;
        }
        let mut compare = Command::new("diff");
        compare.args(["-r", "--no-dereference", "--exclude", ".git"]).args([&clone, &second]);
        process::run(compare, &log, TIME)
    })
}

/// A clone of the repository, with its dependencies' sources in `vendor` and told to use them.
fn prepare(scene: &Scene, original: &Path) -> Result<()> {
    let log = scene.log("tree-prepare");
    let mut clone = Command::new("git");
    clone.args(["clone", "--quiet"]).arg(&scene.source).arg(original);
    process::run(clone, &log, TIME)?;
    let mut vendor = cargo();
    vendor.current_dir(original).args(["vendor", "--locked", "--quiet", "vendor"]);
    process::run(vendor, &log, TIME)?;
    let configuration = original.join(".cargo/config.toml");
    let mut text = std::fs::read_to_string(&configuration).unwrap_or_default();
    text += "\n[source.crates-io]\nreplace-with = \"vendored\"\n[source.vendored]\ndirectory = \"vendor\"\n";
    std::fs::write(&configuration, text).with_context(|| format!("can't write {}", configuration.display()))
}

fn build(scene: &Scene, copy: &Path) -> Result<()> {
    let mut command = cargo();
    command.current_dir(copy).args(["build", "--offline", "--package", PACKAGE]);
    command.env("CARGO_TARGET_DIR", copy.join("target"));
    process::run(command, &scene.log("tree-build"), TIME)
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn count_files(directory: &Path) -> Result<u64> {
    let mut count = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}
