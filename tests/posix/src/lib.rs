//! What a mounted cluster must stand: public suites (pjdfstest, fsx, fio, sqlite), a source tree, two mounts that look
//! at each other, and all of these while every daemon is killed.
//!
//! Each suite works in a directory of its own on a cluster that all of them share, and says what it found in one line.

#![forbid(unsafe_code)]

mod acl;
mod ext4;
mod fio;
mod fsx;
mod kill;
mod locks;
mod mounts;
mod pjdfstest;
mod process;
pub mod scene;
mod sqlite;
mod tools;
mod tree;

use anyhow::Result;
use scene::Scene;
pub use tools::Tools;

/// How much to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// A minute or so for each suite.
    Quick,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Suite {
    /// POSIX, call by call, beside ext4
    Pjdfstest,
    /// ACLs, made, inherited and used, beside ext4
    Acl,
    /// Random operations on one file: buffered, mapped, O_DIRECT
    Fsx,
    /// Several jobs write in all sizes and read back
    Fio,
    /// Databases that several processes change at once, from one mount and from two
    Sqlite,
    /// A source tree is copied in, cloned, built and compared
    Tree,
    /// What one mount has done, the other sees at once
    Mounts,
    /// All of this while every daemon is killed
    Kill,
}

pub const ALL: [Suite; 8] =
    [Suite::Pjdfstest, Suite::Acl, Suite::Mounts, Suite::Fsx, Suite::Fio, Suite::Sqlite, Suite::Kill, Suite::Tree];
/// Those of a quick run.
pub const QUICK: [Suite; 4] = [Suite::Pjdfstest, Suite::Acl, Suite::Mounts, Suite::Fsx];

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Suite::Pjdfstest => "pjdfstest",
            Suite::Acl => "acl",
            Suite::Fsx => "fsx",
            Suite::Fio => "fio",
            Suite::Sqlite => "sqlite",
            Suite::Tree => "tree",
            Suite::Mounts => "mounts",
            Suite::Kill => "kill",
        }
    }

    /// Runs it. The error says that it could not be run, or ended early; what it found wrong is in the findings.
    pub fn run(self, scene: &mut Scene, extent: Extent) -> Result<Findings> {
        match self {
            Suite::Pjdfstest => pjdfstest::run(scene, extent),
            Suite::Acl => acl::run(scene),
            Suite::Fsx => fsx::run(scene, extent),
            Suite::Fio => fio::run(scene, extent),
            Suite::Sqlite => sqlite::run(scene, extent),
            Suite::Tree => tree::run(scene),
            Suite::Mounts => mounts::run(scene, extent),
            Suite::Kill => kill::run(scene, extent),
        }
    }
}

/// What a suite found.
#[derive(Debug, Default)]
pub struct Findings {
    pub passed: u64,
    /// What is wrong, a line or more each.
    pub wrong: Vec<String>,
    /// What else there is to know, for the suite's line.
    pub note: String,
}

impl Findings {
    /// Counts one check.
    fn check(&mut self, what: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => self.wrong.push(format!("{what}: {error:#}")),
        }
    }
}
