//! One load on one directory or file. It prepares itself, prints `ready`, waits for a line, works, and prints the seconds
//! that this took.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const MIB: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;

#[derive(Parser)]
struct Arguments {
    #[arg(value_enum)]
    load: Load,
    /// The file, or the directory for those that make, look at or remove many
    path: PathBuf,
    /// Operations; for sequential loads, MiB
    count: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Load {
    SeqWrite,
    SeqRead,
    RandomRead,
    RandomWrite,
    WriteFsync,
    Create,
    Stat,
    Unlink,
}

fn main() -> Result<()> {
    let Arguments { load, path, count } = Arguments::parse();
    let seconds = match load {
        Load::SeqWrite => seq_write(&path, count),
        Load::SeqRead => seq_read(&path, count),
        Load::RandomRead => random_read(&path, count),
        Load::RandomWrite => random_write(&path, count, count),
        // A sync for each.
        Load::WriteFsync => random_write(&path, count, 1),
        Load::Create => names(&path, count, |name| File::create_new(name).map(drop)),
        Load::Stat => names(&path, count, |name| std::fs::symlink_metadata(name).map(drop)),
        Load::Unlink => names(&path, count, |name| std::fs::remove_file(name)),
    };
    let seconds = seconds.with_context(|| format!("on {}", path.display()))?;
    println!("{seconds:.6}");
    Ok(())
}

/// Seconds that `work` takes once the other side says so.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new())?;
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}

fn seq_write(path: &Path, count: usize) -> Result<f64> {
    let mut buffer = vec![0_u8; MIB];
    fill(&mut buffer, 1);
    timed(|| {
        let mut file = File::create(path)?;
        for number in 0..count {
            // No two pieces are the same.
            buffer[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all(&buffer)?;
        }
        Ok(file.sync_all()?)
    })
}

fn seq_read(path: &Path, count: usize) -> Result<f64> {
    let mut buffer = vec![0_u8; MIB];
    timed(|| {
        let mut file = File::open(path)?;
        for number in 0..count {
            file.read_exact(&mut buffer)?;
            ensure!(buffer[..8] == number.to_le_bytes(), "MiB {number} is not what was written there");
        }
        Ok(())
    })
}

fn random_read(path: &Path, count: usize) -> Result<f64> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
    let offsets = distinct_offsets(&file, count)?;
    let mut buffer = vec![0_u8; BLOCK_BYTES];
    timed(|| {
        offsets.iter().try_for_each(|offset| file.read_exact_at(&mut buffer, *offset))?;
        Ok(())
    })
}

/// Syncs after each `sync_every` writes.
fn random_write(path: &Path, count: usize, sync_every: usize) -> Result<f64> {
    let file = OpenOptions::new().write(true).open(path)?;
    let offsets = distinct_offsets(&file, count)?;
    let mut buffer = vec![0_u8; BLOCK_BYTES];
    fill(&mut buffer, 2);
    timed(|| {
        for (number, offset) in offsets.iter().enumerate() {
            buffer[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all_at(&buffer, *offset)?;
            if (number + 1) % sync_every == 0 {
                file.sync_all()?;
            }
        }
        Ok(())
    })
}

fn names(directory: &Path, count: usize, each: impl Fn(&Path) -> std::io::Result<()>) -> Result<f64> {
    let names: Vec<PathBuf> = (0..count).map(|number| directory.join(format!("file{number:06}"))).collect();
    timed(|| {
        names.iter().try_for_each(|name| each(name))?;
        Ok(())
    })
}

/// Offsets of blocks in a fixed random order, none twice, so that no cache can help.
fn distinct_offsets(file: &File, count: usize) -> Result<Vec<u64>> {
    let blocks = file.metadata()?.len() / BLOCK_BYTES as u64;
    ensure!(blocks >= count as u64, "the file has {blocks} blocks, fewer than {count} operations");
    let mut order: Vec<u64> = (0..blocks).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for last in (1..order.len()).rev() {
        order.swap(last, (next(&mut state) % (last as u64 + 1)) as usize);
    }
    order.truncate(count);
    Ok(order.into_iter().map(|block| block * BLOCK_BYTES as u64).collect())
}

/// Bytes that don't compress.
fn fill(buffer: &mut [u8], seed: u64) {
    let mut state = seed;
    for word in buffer.chunks_mut(8) {
        let bytes = next(&mut state).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
