//! What is done on each filesystem, and in which unit its cost is said.

use crate::tree::Tree;
use anyhow::{Context, Result};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Processes of the rows that make, look at and remove files.
const PROCESSES: usize = 8;
const MB: f64 = 1e6;
const MIB: f64 = 1_048_576.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    SeqWrite,
    SeqRead,
    RandomRead,
    RandomWrite,
    WriteFsync,
    Create,
    Stat,
    Unlink,
    Untar,
    GitClone,
}

pub const ALL: [Row; 10] = [
    Row::SeqWrite,
    Row::SeqRead,
    Row::RandomRead,
    Row::RandomWrite,
    Row::WriteFsync,
    Row::Create,
    Row::Stat,
    Row::Unlink,
    Row::Untar,
    Row::GitClone,
];

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub file_mib: usize,
    pub random_operations: usize,
    pub syncs: usize,
    pub files_per_process: usize,
    pub tree_files: usize,
}

impl Sizes {
    pub const FULL: Sizes =
        Sizes { file_mib: 512, random_operations: 20_000, syncs: 2_000, files_per_process: 500, tree_files: 2_000 };
    pub const QUICK: Sizes =
        Sizes { file_mib: 128, random_operations: 4_000, syncs: 400, files_per_process: 100, tree_files: 500 };
}

/// How CPU seconds become the number in the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// So many MB for each CPU second; more is better.
    MegabytesPerSecond(f64),
    /// Microseconds for each of so many operations; less is better.
    MicrosPerOperation(f64),
    Seconds,
}

impl Unit {
    pub fn value(self, cpu_s: f64) -> f64 {
        match self {
            Unit::MegabytesPerSecond(megabytes) => megabytes / cpu_s,
            Unit::MicrosPerOperation(operations) => cpu_s * 1e6 / operations,
            Unit::Seconds => cpu_s,
        }
    }

    /// How much cheaper ours is.
    pub fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Unit::MegabytesPerSecond(_) => ours / theirs,
            Unit::MicrosPerOperation(_) | Unit::Seconds => theirs / ours,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Unit::MegabytesPerSecond(_) => "MB/CPU-s",
            Unit::MicrosPerOperation(_) => "CPU us/op",
            Unit::Seconds => "CPU s",
        }
    }
}

/// Programs that do a row's work together.
pub enum Work {
    /// `weft-load`s, which start when all are ready.
    Loads(Vec<Command>),
    Program(Command),
}

pub struct Place<'a> {
    pub load: &'a Path,
    pub mount: &'a Path,
    pub tree: &'a Tree,
    pub sizes: Sizes,
}

impl Row {
    pub fn name(self) -> &'static str {
        match self {
            Row::SeqWrite => "seq-write",
            Row::SeqRead => "seq-read",
            Row::RandomRead => "random-read",
            Row::RandomWrite => "random-write",
            Row::WriteFsync => "write-fsync",
            Row::Create => "create",
            Row::Stat => "stat",
            Row::Unlink => "unlink",
            Row::Untar => "untar",
            Row::GitClone => "git-clone",
        }
    }

    pub fn unit(self, sizes: &Sizes) -> Unit {
        let names = Unit::MicrosPerOperation((sizes.files_per_process * PROCESSES) as f64);
        match self {
            Row::SeqWrite | Row::SeqRead => Unit::MegabytesPerSecond(sizes.file_mib as f64 * MIB / MB),
            Row::RandomRead | Row::RandomWrite => Unit::MicrosPerOperation(sizes.random_operations as f64),
            Row::WriteFsync => Unit::MicrosPerOperation(sizes.syncs as f64),
            Row::Create | Row::Stat | Row::Unlink => names,
            Row::Untar | Row::GitClone => Unit::Seconds,
        }
    }

    /// What must be there before, and is not measured.
    pub fn prepare(self, place: &Place<'_>) -> Result<Option<Work>> {
        let file = place.mount.join("data");
        Ok(match self {
            Row::SeqWrite => {
                remove(&file)?;
                None
            }
            // Written again: random writes have left it in pieces.
            Row::SeqRead | Row::RandomRead | Row::RandomWrite | Row::WriteFsync => {
                remove(&file)?;
                Some(place.loads("seq-write", [file], place.sizes.file_mib))
            }
            Row::Create | Row::Stat | Row::Unlink => {
                let directories = place.directories();
                for directory in &directories {
                    remove(directory)?;
                    std::fs::create_dir(directory).with_context(|| format!("can't make {}", directory.display()))?;
                }
                (self != Row::Create).then(|| place.loads("create", directories, place.sizes.files_per_process))
            }
            Row::Untar | Row::GitClone => {
                remove(&place.untarred())?;
                remove(&place.cloned())?;
                std::fs::create_dir(place.untarred())?;
                None
            }
        })
    }

    pub fn work(self, place: &Place<'_>) -> Work {
        let (file, sizes) = ([place.mount.join("data")], &place.sizes);
        match self {
            Row::SeqWrite => place.loads("seq-write", file, sizes.file_mib),
            Row::SeqRead => place.loads("seq-read", file, sizes.file_mib),
            Row::RandomRead => place.loads("random-read", file, sizes.random_operations),
            Row::RandomWrite => place.loads("random-write", file, sizes.random_operations),
            Row::WriteFsync => place.loads("write-fsync", file, sizes.syncs),
            Row::Create => place.loads("create", place.directories(), sizes.files_per_process),
            Row::Stat => place.loads("stat", place.directories(), sizes.files_per_process),
            Row::Unlink => place.loads("unlink", place.directories(), sizes.files_per_process),
            Row::Untar => {
                let mut tar = Command::new("tar");
                tar.arg("xf").arg(&place.tree.archive).arg("-C").arg(place.untarred());
                Work::Program(tar)
            }
            Row::GitClone => {
                let mut git = Command::new("git");
                git.args(["clone", "--quiet", "--no-local"]).arg(&place.tree.repository).arg(place.cloned());
                Work::Program(git)
            }
        }
    }
}

impl Place<'_> {
    fn loads(&self, load: &str, paths: impl IntoIterator<Item = PathBuf>, count: usize) -> Work {
        let command = |path: PathBuf| {
            let mut command = Command::new(self.load);
            command.arg(load).arg(path).arg(count.to_string());
            command
        };
        Work::Loads(paths.into_iter().map(command).collect())
    }

    fn directories(&self) -> Vec<PathBuf> {
        (0..PROCESSES).map(|number| self.mount.join(format!("directory{number}"))).collect()
    }

    fn untarred(&self) -> PathBuf {
        self.mount.join("untarred")
    }

    fn cloned(&self) -> PathBuf {
        self.mount.join("cloned")
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("can't remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_always_in_our_favour() {
        let (ours_s, theirs_s) = (2.0, 8.0);
        for unit in [Unit::MegabytesPerSecond(512.0), Unit::MicrosPerOperation(100.0), Unit::Seconds] {
            assert_eq!(unit.ratio(unit.value(ours_s), unit.value(theirs_s)), 4.0, "{unit:?}");
        }
    }

    #[test]
    fn rows_are_called_as_on_the_command_line() {
        for row in ALL {
            assert_eq!(row.to_possible_value().unwrap().get_name(), row.name());
        }
    }
}
