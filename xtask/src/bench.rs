//! `cargo xtask bench`: what work costs on Weft, on a FUSE pass-through and on GlusterFS, in one run.

use crate::{tree, up};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;
use weft_bench::report::Report;
use weft_bench::rows::{self, Row, Sizes};
use weft_bench::{Contender, Plan};
use weft_cluster_tests::programs::{PACKAGES, Programs};

#[derive(clap::Args)]
pub struct Bench {
    /// Measure only these rows
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Measure only these filesystems; without one of them there is no ratio
    #[arg(long, value_enum, value_delimiter = ',', default_value = "weft,passthrough,gluster")]
    systems: Vec<Contender>,
    /// A quarter of the work
    #[arg(long)]
    quick: bool,
    /// Measure each cell so often, and show the middle
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=99))]
    repeat: u8,
    /// Print JSON on stdout; the table goes to stderr
    #[arg(long)]
    json: bool,
    /// MiB of the file that is read and written
    #[arg(long)]
    file_mib: Option<usize>,
    /// Random reads and random writes
    #[arg(long)]
    random_operations: Option<usize>,
    /// Writes with fsync
    #[arg(long)]
    syncs: Option<usize>,
    /// Files that each of eight processes makes, looks at, removes
    #[arg(long)]
    files_per_process: Option<usize>,
    /// Files in the archive and in the repository
    #[arg(long)]
    tree_files: Option<usize>,
    /// Build with this profile; `dist` is what is shipped, `release` builds faster
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Build nothing, and use what an earlier build has put there: to compare two versions
    #[arg(long, value_name = "DIR", conflicts_with = "profile")]
    programs: Option<PathBuf>,
    /// Size of each node's drive, a sparse file
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = up::parse_size)]
    drive_size: u64,
    /// Where everything goes; `bench` in cargo's target directory unless given. What is there of an earlier run is deleted
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
}

impl Bench {
    pub fn run(self) -> Result<ExitCode> {
        let target = tree::target()?;
        let built = match &self.programs {
            Some(directory) => directory.canonicalize().with_context(|| format!("no {}", directory.display()))?,
            None => {
                self.build()?;
                target.join(&self.profile)
            }
        };
        let place = self.place.clone().unwrap_or_else(|| target.join("bench"));
        let plan = Plan {
            contenders: self.systems.clone(),
            rows: if self.rows.is_empty() { rows::ALL.to_vec() } else { self.rows.clone() },
            repetitions: usize::from(self.repeat),
            sizes: self.sizes(),
            place: std::path::absolute(place)?,
            programs: Programs::in_directory(&built)?,
            load: built.join("weft-load"),
            passthrough: built.join("examples/passthrough"),
            drive_bytes: self.drive_size,
        };
        let report = Report::new(&plan.run()?, &plan.sizes);
        eprintln!("\n{}\n{}", report.details(), report.table());
        if self.json {
            println!("{}", report.json()?);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn sizes(&self) -> Sizes {
        let usual = if self.quick { Sizes::QUICK } else { Sizes::FULL };
        Sizes {
            file_mib: self.file_mib.unwrap_or(usual.file_mib),
            random_operations: self.random_operations.unwrap_or(usual.random_operations),
            syncs: self.syncs.unwrap_or(usual.syncs),
            files_per_process: self.files_per_process.unwrap_or(usual.files_per_process),
            tree_files: self.tree_files.unwrap_or(usual.tree_files),
        }
    }

    fn build(&self) -> Result<()> {
        let mut command = tree::cargo();
        command.current_dir(tree::root()?).args(["build", "--profile", &self.profile, "--package", "weft-bench"]);
        command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        let status = command.args(["--bins", "--example", "passthrough"]).status().context("can't start cargo")?;
        if !status.success() {
            bail!("the build failed; the compiler's messages are above");
        }
        Ok(())
    }
}
