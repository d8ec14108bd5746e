//! fsx: random operations on one file, each read compared with what was written.

use crate::process::{self, Running};
use crate::scene::Scene;
use crate::{Extent, Findings};
use anyhow::Result;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(300);

/// How the file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Buffered,
    /// Also through mappings.
    Mapped,
    /// The file is opened with O_DIRECT, and all operations are on whole blocks.
    Direct,
}

const MODES: [Mode; 3] = [Mode::Buffered, Mode::Mapped, Mode::Direct];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Buffered => "buffered",
            Mode::Mapped => "mapped",
            Mode::Direct => "direct",
        }
    }

    /// Several slabs of 1 MiB, and operations that cross their borders.
    fn configuration(self) -> String {
        let align = if self == Mode::Direct { 4096 } else { 1 };
        let mapped = if self == Mode::Mapped { 10 } else { 0 };
        // With whole blocks fsx sometimes allocates 0 bytes at the file's end, which POSIX wants refused, and is surprised.
        let allocate = if self == Mode::Direct { 0 } else { 2 };
        format!(
            "flen = 3145728\n[opsize]\nmax = 262144\nmin = {align}\nalign = {align}\n[weights]\nclose_open = 2\nread = 10\n\
             write = 10\nmapread = {mapped}\nmapwrite = {mapped}\ninvalidate = {}\ntruncate = 5\nfsync = 1\nfdatasync = 1\n\
             posix_fallocate = {allocate}\npunch_hole = 4\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 3\n",
            mapped / 10
        )
    }
}

pub fn run(scene: &Scene, extent: Extent) -> Result<Findings> {
    let (seeds, operations) = match extent {
        Extent::Quick => (1, 1000),
        Extent::Full => (5, 4000),
    };
    let directory = scene.directory("fsx")?;
    let mut findings = Findings::default();
    for mode in MODES {
        for seed in 1..=seeds {
            let (command, log) = command(scene, &directory, mode, seed, operations)?;
            findings.check(&format!("{} with seed {seed}", mode.name()), process::run(command, &log, TIME));
        }
    }
    findings.note = format!("{operations} operations each");
    Ok(findings)
}

/// One run that goes on while something else happens.
pub fn start(scene: &Scene, directory: &Path, mode: Mode, operations: u32) -> Result<Running> {
    let (command, log) = command(scene, directory, mode, 100, operations)?;
    Running::start(command, &log, TIME)
}

fn command(
    scene: &Scene,
    directory: &Path,
    mode: Mode,
    seed: u32,
    operations: u32,
) -> Result<(Command, std::path::PathBuf)> {
    let name = format!("fsx-{}-{seed}", mode.name());
    let configuration = scene.scratch.join(format!("{name}.toml"));
    std::fs::write(&configuration, mode.configuration())?;
    let mut command = Command::new(scene.tools.program("fsx"));
    if mode == Mode::Direct {
        command.env("LD_PRELOAD", scene.tools.shim()).env("WEFT_DIRECT", directory);
    }
    command.arg("-f").arg(configuration).arg("-P").arg(&scene.scratch);
    command.args(["-S", &seed.to_string(), "-N", &operations.to_string()]).arg(directory.join(&name));
    Ok((command, scene.log(&name)))
}
