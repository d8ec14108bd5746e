//! Runs plans on a directory, and says after each operation that it is durable.

use super::plan::{Operation, Plan};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where a thread works.
pub fn directory(root: &Path, thread: u64) -> PathBuf {
    root.join(format!("t{thread}"))
}

/// Runs `operations` of one thread's plan. `acknowledge` is called when an operation is durable, before the next begins.
pub fn run(
    root: &Path,
    seed: u64,
    thread: u64,
    operations: u64,
    mut acknowledge: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let directory = directory(root, thread);
    std::fs::create_dir_all(&directory).with_context(|| format!("can't create {}", directory.display()))?;
    sync_directory(root)?;
    let mut plan = Plan::new(seed, thread);
    for _ in 0..operations {
        let (number, operation) = plan.step();
        perform(&directory, &operation).with_context(|| format!("operation {number} of thread {thread}"))?;
        acknowledge(number)?;
    }
    Ok(())
}

/// One line of the log.
pub fn line(thread: u64, number: u64) -> String {
    format!("ack {thread} {number}\n")
}

/// Prints acknowledgements in one write each, so that a death leaves whole lines but for the last.
pub fn print(thread: u64, number: u64) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(line(thread, number).as_bytes())?;
    out.flush().context("nobody reads the acknowledgements")
}

fn perform(directory: &Path, operation: &Operation) -> Result<()> {
    match operation {
        Operation::Write { file, offset, data } => {
            let path = directory.join(file);
            let opened = OpenOptions::new().write(true).open(&path);
            let (opened, created) = match opened {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    (OpenOptions::new().write(true).create_new(true).open(&path)?, true)
                }
                opened => (opened?, false),
            };
            opened.write_all_at(data, *offset)?;
            opened.sync_all()?;
            if created {
                sync_directory(directory)?;
            }
        }
        Operation::Truncate { file, bytes } => {
            let opened = OpenOptions::new().write(true).open(directory.join(file))?;
            opened.set_len(*bytes)?;
            opened.sync_all()?;
        }
        Operation::Rename { from, to } => {
            std::fs::rename(directory.join(from), directory.join(to))?;
            sync_directory(directory)?;
        }
        Operation::Remove { file } => {
            std::fs::remove_file(directory.join(file))?;
            sync_directory(directory)?;
        }
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> Result<()> {
    let opened = File::open(directory).with_context(|| format!("can't open {}", directory.display()))?;
    opened.sync_all().with_context(|| format!("can't sync {}", directory.display()))
}
