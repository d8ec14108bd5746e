//! Locks that two mounts ask for. To the filesystem they are two owners, also when one process asks through both.

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::path::Path;

#[derive(Clone, Copy)]
enum Kind {
    /// Of the process.
    Record,
    /// Of the open file.
    OpenFile,
}

fn range(shared: bool, start: i64, len: i64) -> libc::flock {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn take(file: &File, kind: Kind, lock: libc::flock) -> nix::Result<()> {
    let argument = match kind {
        Kind::Record => FcntlArg::F_SETLK(&lock),
        Kind::OpenFile => FcntlArg::F_OFD_SETLK(&lock),
    };
    fcntl(file, argument).map(drop)
}

fn give_back(file: &File, kind: Kind, start: i64, len: i64) -> nix::Result<()> {
    take(file, kind, libc::flock { l_type: libc::F_UNLCK as i16, ..range(false, start, len) })
}

fn refused(result: nix::Result<()>, what: &str) -> Result<()> {
    ensure!(matches!(result, Err(Errno::EAGAIN | Errno::EACCES)), "{what}: {result:?}");
    Ok(())
}

pub fn seen_by_both(here: &Path, there: &Path) -> Result<()> {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    for kind in [Kind::Record, Kind::OpenFile] {
        let (one, other) = (open(here)?, open(there)?);
        ranges(&one, &other, kind)?;
        // The end of a file ends its record locks, before close returns.
        if matches!(kind, Kind::Record) {
            take(&one, kind, range(false, 0, 0)).context("locking the whole file")?;
            drop(one);
            take(&other, kind, range(false, 0, 0)).context("after the holder closed the file")?;
        }
    }
    let (one, other) = (open(here)?, open(there)?);
    waiting(&one, &other)?;
    whole_files(one, other)
}

fn ranges(one: &File, other: &File, kind: Kind) -> Result<()> {
    take(one, kind, range(false, 0, 100)).context("a first lock")?;
    refused(take(other, kind, range(false, 50, 100)), "one that overlaps")?;
    refused(take(other, kind, range(true, 99, 1)), "a shared one on its last byte")?;
    take(other, kind, range(false, 100, 100)).context("one beside it")?;
    let mut asked = range(false, 0, 1000);
    match kind {
        Kind::Record => fcntl(other, FcntlArg::F_GETLK(&mut asked))?,
        Kind::OpenFile => fcntl(other, FcntlArg::F_OFD_GETLK(&mut asked))?,
    };
    ensure!((asked.l_start, asked.l_len) == (0, 100), "the holder has {} bytes at {}", asked.l_len, asked.l_start);
    give_back(one, kind, 0, 60)?;
    take(other, kind, range(false, 0, 60)).context("the part that was given back")?;
    refused(take(other, kind, range(false, 60, 1)), "the part that was not")?;
    give_back(one, kind, 0, 0)?;
    give_back(other, kind, 0, 0)?;
    take(one, kind, range(true, 0, 0)).context("a shared one")?;
    take(other, kind, range(true, 0, 0)).context("a second shared one")?;
    refused(take(one, kind, range(false, 0, 1)), "an exclusive one beside a shared one")?;
    give_back(one, kind, 0, 0)?;
    give_back(other, kind, 0, 0)?;
    Ok(())
}

/// Who waits gets the lock when it is given back.
fn waiting(one: &File, other: &File) -> Result<()> {
    let lock = range(false, 0, 10);
    take(one, Kind::OpenFile, lock)?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || fcntl(other, FcntlArg::F_OFD_SETLKW(&lock)).map(drop));
        let given_back = give_back(one, Kind::OpenFile, 0, 10);
        let waited = waiter.join();
        given_back?;
        match waited {
            Ok(result) => result.context("waiting for the lock"),
            Err(_) => bail!("the waiting thread panicked"),
        }
    })?;
    refused(take(one, Kind::OpenFile, lock), "the one that waited holds it")?;
    give_back(other, Kind::OpenFile, 0, 10)?;
    Ok(())
}

fn whole_files(one: File, other: File) -> Result<()> {
    let held = Flock::lock(one, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let other = match Flock::lock(other, FlockArg::LockSharedNonblock) {
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(errno.into()),
        Ok(_) => bail!("both have flock"),
    };
    held.unlock().map_err(|(_, errno)| errno)?;
    let held = Flock::lock(other, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    held.unlock().map_err(|(_, errno)| errno)?;
    Ok(())
}
