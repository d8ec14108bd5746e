//! Programs that write and read on a mounted filesystem all the time, compare every byte, and remember how long each step took.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const WRITERS: u64 = 4;
/// Files that one writer writes again and again.
const FILES: u64 = 24;
const BYTES_MAX: u64 = 20_000;

/// One write with fsync, or one read.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub began: Instant,
    pub took: Duration,
}

/// Writers that run until they are asked what they saw.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<Vec<Step>, String>>>,
}

impl Load {
    pub fn start(directory: &Path) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..WRITERS).map(|number| {
            let (stop, own) = (Arc::clone(&stop), directory.join(format!("writer{number}")));
            std::thread::spawn(move || write(&own, number, &stop))
        });
        Load { writers: writers.collect(), stop }
    }

    /// All steps of all writers; or the first error, or the first byte that was not what had been written.
    pub fn finish(self) -> Result<Vec<Step>, String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for writer in self.writers {
            all.extend(writer.join().map_err(|_| "a writer panicked".to_string())??);
        }
        Ok(all)
    }
}

/// The longest step that was under way at or after `since`.
pub fn longest(steps: &[Step], since: Instant) -> Duration {
    let after = steps.iter().filter(|step| step.began + step.took >= since);
    after.map(|step| step.took).max().unwrap_or_default()
}

fn write(directory: &Path, seed: u64, stop: &AtomicBool) -> Result<Vec<Step>, String> {
    std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut written: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut steps = Vec::new();
    let mut random = seed + 1;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = random >> 33;
        let path = directory.join(format!("file{}", draw % FILES));
        let began = Instant::now();
        let done = match draw / FILES % 2 {
            0 => {
                let content: Vec<u8> = (0..draw % BYTES_MAX).map(|at| (at ^ draw) as u8).collect();
                let stored = store(&path, &content);
                written.insert(path.clone(), content);
                stored
            }
            _ => written.get(&path).map_or(Ok(()), |content| compare(&path, content)),
        };
        steps.push(Step { began, took: began.elapsed() });
        done.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(steps)
}

fn store(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn compare(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut found = Vec::new();
    File::open(path)?.read_to_end(&mut found)?;
    match found == content {
        true => Ok(()),
        false => {
            Err(std::io::Error::other(format!("{} bytes that differ from the {} written", found.len(), content.len())))
        }
    }
}
