//! Many small files: made by several threads, looked at again later.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const THREADS: usize = 8;
const FILES_PER_DIRECTORY: u64 = 1000;
/// One file of so many has contents.
const CONTENTS_EVERY: u64 = 16;
/// One directory of so many has all its files looked at.
const LOOK_EVERY: u64 = 10;

/// Directories of numbered files below `root`.
pub struct Many<'a> {
    pub root: &'a Path,
}

impl Many<'_> {
    fn directory(&self, number: u64) -> PathBuf {
        self.root.join(format!("directory{number}"))
    }

    fn file(&self, number: u64) -> PathBuf {
        self.directory(number / FILES_PER_DIRECTORY).join(format!("file{number}"))
    }

    /// Makes files `range`, of whole directories.
    pub fn make(&self, range: Range<u64>) -> Result<()> {
        self.each_directory(range, |number| {
            let directory = self.directory(number);
            std::fs::create_dir(&directory).with_context(|| format!("can't make {}", directory.display()))?;
            for file in number * FILES_PER_DIRECTORY..(number + 1) * FILES_PER_DIRECTORY {
                let path = self.file(file);
                let made = match file % CONTENTS_EVERY {
                    0 => std::fs::write(&path, file.to_string()),
                    _ => mknod(&path, SFlag::S_IFREG, Mode::S_IRUSR | Mode::S_IWUSR, 0).map_err(Into::into),
                };
                made.with_context(|| format!("can't make {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Every directory answers.
    pub fn touch(&self, files: u64) -> Result<()> {
        self.each_directory(0..files, |number| {
            let directory = self.directory(number);
            std::fs::metadata(&directory).with_context(|| format!("{} does not answer", directory.display()))?;
            Ok(())
        })
    }

    /// Every directory lists what it should; in some, every file is what it should be.
    pub fn check(&self, files: u64) -> Result<()> {
        self.each_directory(0..files, |number| {
            let directory = self.directory(number);
            let mut names = Vec::new();
            for entry in std::fs::read_dir(&directory)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            let numbers = number * FILES_PER_DIRECTORY..(number + 1) * FILES_PER_DIRECTORY;
            let mut expected: Vec<String> = numbers.clone().map(|file| format!("file{file}")).collect();
            names.sort_unstable();
            expected.sort_unstable();
            ensure!(names == expected, "{} lists {} names that are not its own", directory.display(), names.len());
            if number.is_multiple_of(LOOK_EVERY) {
                numbers.into_iter().try_for_each(|file| self.check_file(file))?;
            }
            Ok(())
        })
    }

    fn check_file(&self, number: u64) -> Result<()> {
        let path = self.file(number);
        let expected = if number.is_multiple_of(CONTENTS_EVERY) { number.to_string() } else { String::new() };
        let found = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        ensure!(found == expected.as_bytes(), "{} has {} bytes of something else", path.display(), found.len());
        Ok(())
    }

    fn each_directory(&self, files: Range<u64>, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
        ensure!(
            files.start.is_multiple_of(FILES_PER_DIRECTORY) && files.end.is_multiple_of(FILES_PER_DIRECTORY),
            "directories are made whole, with {FILES_PER_DIRECTORY} files"
        );
        let next = AtomicU64::new(files.start / FILES_PER_DIRECTORY);
        let end = files.end / FILES_PER_DIRECTORY;
        std::thread::scope(|scope| {
            let worker = || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return Ok(());
                    }
                    work(number)?;
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
        })
    }
}
