//! The cluster that the suites work on, with two mounts of its filesystem.

use crate::tools::Tools;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use weft_cluster_tests::cluster::{Cluster, READY_DEADLINE};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::programs::Programs;
use weft_cluster_tests::{mount, preflight, wait};

const WRITER: &str = "weft-fsync";
const FILESYSTEM: &str = "main";
const NODES: usize = 6;
const PROTECTION: &str = "4+2";
/// Names in a part of a directory.
const PAGE_ENTRIES_MAX: u64 = 8;

pub struct Scene {
    pub cluster: Cluster,
    pub tools: Tools,
    /// Logs and scratch files that are not on the filesystem under test.
    pub scratch: PathBuf,
    /// The root of the source tree that this was built from.
    pub source: PathBuf,
    mounts: [PathBuf; 2],
}

impl Scene {
    /// Starts a fresh cluster below `place`, and mounts it twice. What an earlier run left there goes.
    pub fn new(programs: Programs, tools: Tools, source: &Path, place: &Path, drive_bytes: u64) -> Result<Scene> {
        std::fs::create_dir_all(place).with_context(|| format!("can't create {}", place.display()))?;
        let place = place.canonicalize()?;
        let state = place.join("state");
        clear(&programs, &place, &state)?;
        let mounts = [place.join("mnt1"), place.join("mnt2")];
        let scratch = place.join("scratch");
        for directory in mounts.iter().chain([&scratch, &state]) {
            std::fs::create_dir_all(directory).with_context(|| format!("can't create {}", directory.display()))?;
        }
        let mut layout = Layout::new("posix", NODES, PROTECTION, drive_bytes)?;
        // A missing flush shows when daemons are killed.
        layout.volatile_cache = true;
        // Few names are enough for directories over several buckets.
        layout.extra_config = format!("page_entries_max = {PAGE_ENTRIES_MAX}\n");
        preflight::check(&preflight::Wanted {
            state: &state,
            nodes: layout.nodes,
            drive_bytes: layout.drive_bytes,
            base_port: layout.base_port,
            mount: Some(&mounts[0]),
        })?;
        let programs = keep(&programs, &place.join("programs"))?;
        let cluster = Cluster::create(programs, &state, layout)?;
        let mut scene = Scene { cluster, tools, scratch, source: source.into(), mounts };
        scene.cluster.start()?;
        scene.cluster.form(FILESYSTEM)?;
        let source = scene.cluster.source()?;
        for place in &scene.mounts {
            let log = scene.scratch.join("mount.log");
            mount::mount(&scene.cluster.programs, &source, place, "", &log)?;
            wait::until_ok(READY_DEADLINE, || Ok(std::fs::read_dir(place).map(drop)?))?;
        }
        Ok(scene)
    }

    /// A fresh directory for a suite, by way of the first mount.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        self.directories(name).map(|[first, _]| first)
    }

    /// The same, as both mounts show it.
    pub fn directories(&self, name: &str) -> Result<[PathBuf; 2]> {
        for mountpoint in &self.mounts {
            let kind = mount::kind(mountpoint)?;
            ensure!(
                kind.as_deref().is_some_and(mount::is_weft),
                "{} has a filesystem of type {}, not weft: nothing is tested there",
                mountpoint.display(),
                kind.as_deref().unwrap_or("none")
            );
        }
        let both = self.mounts.clone().map(|mountpoint| mountpoint.join(name));
        std::fs::create_dir(&both[0]).with_context(|| format!("can't create {}", both[0].display()))?;
        Ok(both)
    }

    /// The program that writes with fsync, and checks.
    pub fn writer(&self) -> PathBuf {
        self.cluster.programs.weftd.with_file_name(WRITER)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("{name}.log"))
    }
}

impl Drop for Scene {
    /// Processes and mounts go; drives and logs stay to be looked at, until the next run.
    fn drop(&mut self) {
        for mountpoint in &self.mounts {
            let _ = mount::unmount(mountpoint, true);
        }
        let _ = self.cluster.kill_all();
    }
}

/// Copies the programs: what is built while the suites run must not replace daemons that are started again.
fn keep(programs: &Programs, place: &Path) -> Result<Programs> {
    std::fs::create_dir_all(place)?;
    let writer = programs.weftd.with_file_name(WRITER);
    for program in [&programs.weftd, &programs.weft, &programs.mount, &writer] {
        let copy = place.join(program.file_name().unwrap_or_default());
        std::fs::copy(program, copy).with_context(|| format!("can't copy {}", program.display()))?;
    }
    Programs::in_directory(place)
}

fn clear(programs: &Programs, place: &Path, state: &Path) -> Result<()> {
    for left in mount::below(place)? {
        mount::unmount(&left, true)?;
    }
    if let Some(mut cluster) = Cluster::open(programs.clone(), state)? {
        cluster.kill_all()?;
    }
    std::fs::remove_dir_all(place).with_context(|| format!("can't clear {}", place.display()))
}
