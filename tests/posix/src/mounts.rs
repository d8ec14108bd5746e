//! Two mounts of one filesystem: what one has done, the other sees at once. Each look is exactly one, right after the
//! call of the other mount returned.

use crate::scene::Scene;
use crate::{Extent, Findings};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::stat::Mode;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

const SLAB: u64 = 1 << 20;

/// A directory as one mount shows it and as the other does.
#[derive(Clone, Copy)]
struct Views<'a> {
    here: &'a Path,
    there: &'a Path,
}

impl Views<'_> {
    fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.here.join(name), self.there.join(name))
    }
}

type Check = fn(Views<'_>) -> Result<()>;

const CHECKS: [(&str, Check); 17] = [
    ("creates", creates),
    ("exclusive creates", exclusive_creates),
    ("writes", writes),
    ("writes far out", writes_far_out),
    ("sizes", sizes),
    ("truncates", truncates),
    ("holes", holes),
    ("appends", appends),
    ("appends at the same time", appends_at_the_same_time),
    ("renames", renames),
    ("exchanges", exchanges),
    ("removals", removals),
    ("open files without a name", open_files_without_a_name),
    ("directories", directories),
    ("links", links),
    ("attributes", attributes),
    ("locks", locks),
];

pub fn run(scene: &Scene, extent: Extent) -> Result<Findings> {
    let rounds = if extent == Extent::Quick { 3 } else { 25 };
    let [first, second] = scene.directories("mounts")?;
    let mut findings = Findings::default();
    for (what, check) in CHECKS {
        let result = (0..rounds).try_for_each(|round| one_round(&first, &second, what, check, round));
        findings.check(what, result);
    }
    findings.note = format!("{rounds} rounds");
    Ok(findings)
}

/// All checks in another thread, each once and then again until `rounds` are done.
pub fn start(first: &Path, second: &Path, rounds: usize) -> JoinHandle<Result<()>> {
    let (first, second) = (first.to_path_buf(), second.to_path_buf());
    std::thread::spawn(move || {
        for round in 0..rounds {
            for (what, check) in CHECKS {
                one_round(&first, &second, what, check, round).with_context(|| what)?;
            }
        }
        Ok(())
    })
}

fn one_round(first: &Path, second: &Path, what: &str, check: Check, round: usize) -> Result<()> {
    let name = format!("{}-{round}", what.replace(' ', "-"));
    let (one, other) = (first.join(&name), second.join(&name));
    fs::create_dir(&one)?;
    // Both ways in turn.
    let (here, there) = if round.is_multiple_of(2) { (&one, &other) } else { (&other, &one) };
    check(Views { here, there }).with_context(|| format!("round {round}"))
}

fn fail(error: std::io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

fn absent(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => bail!("{} is still there", path.display()),
    }
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = entries.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn read_write(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
}

fn content(path: &Path, expected: &[u8]) -> Result<()> {
    let found = fs::read(path)?;
    let first = found.iter().zip(expected).position(|(found, expected)| found != expected);
    ensure!(
        found == expected,
        "{} has {} bytes instead of {}, the first difference is at {first:?}",
        path.display(),
        found.len(),
        expected.len()
    );
    Ok(())
}

/// Bytes that tell where they belong.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed) as u8).collect()
}

fn creates(views: Views<'_>) -> Result<()> {
    for number in 0..10 {
        let (here, there) = views.paths(&format!("f{number}"));
        // A name that was looked for in vain must not stay away.
        absent(&there)?;
        File::create(&here)?;
        ensure!(fs::metadata(&there)?.is_file(), "it is no file");
        ensure!(names(views.there)?.contains(&format!("f{number}")), "the directory does not list it");
    }
    Ok(())
}

fn exclusive_creates(views: Views<'_>) -> Result<()> {
    let create = |path: PathBuf| match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    };
    for number in 0..10 {
        let (here, there) = views.paths(&format!("f{number}"));
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| create(here));
            let other = scope.spawn(|| create(there));
            (one.join(), other.join())
        });
        let (Ok(one), Ok(other)) = (one, other) else { bail!("a thread panicked") };
        let (one, other) = (one?, other?);
        ensure!(one != other, "made by the one: {one}, by the other: {other}");
    }
    Ok(())
}

fn writes(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let (writer, reader) = (read_write(&here)?, read_write(&there)?);
    for (seed, len) in [(1, 10), (2, 4096), (3, 100_000), (4, 3000), (5, 700_000)] {
        let data = pattern(seed, len);
        writer.write_all_at(&data, seed * 1000)?;
        let mut found = vec![0; len];
        reader.read_exact_at(&mut found, seed * 1000)?;
        ensure!(found == data, "other bytes after a write of {len}");
        // And back.
        let data = pattern(seed + 100, len);
        reader.write_all_at(&data, seed * 1000)?;
        writer.read_exact_at(&mut found, seed * 1000)?;
        ensure!(found == data, "other bytes after a write of {len} by the other");
    }
    Ok(())
}

/// Several slabs, which other buckets have.
fn writes_far_out(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let (writer, reader) = (read_write(&here)?, read_write(&there)?);
    for offset in [3 * SLAB - 100, 9 * SLAB, 5 * SLAB + 17, 1 << 40] {
        let data = pattern(offset, 300_000);
        writer.write_all_at(&data, offset)?;
        let mut found = vec![0; data.len()];
        reader.read_exact_at(&mut found, offset)?;
        ensure!(found == data, "other bytes at {offset}");
    }
    ensure!(fs::metadata(&there)?.len() == (1 << 40) + 300_000, "another size");
    Ok(())
}

fn sizes(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let (writer, reader) = (read_write(&here)?, read_write(&there)?);
    for size in [1, 4096, 5000, SLAB, SLAB + 1, 3 * SLAB] {
        writer.write_all_at(b"x", size - 1)?;
        let found = [fs::metadata(&there)?.len(), reader.metadata()?.len()];
        ensure!(found == [size, size], "{found:?} instead of {size}");
    }
    ensure!(fs::metadata(&there)?.mtime_nsec() == fs::metadata(&here)?.mtime_nsec(), "different times");
    Ok(())
}

fn truncates(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let data = pattern(7, 3 * SLAB as usize);
    fs::write(&here, &data)?;
    content(&there, &data)?;
    let (writer, reader) = (read_write(&here)?, read_write(&there)?);
    for size in [2 * SLAB + 5, SLAB, 5000, 10, 0] {
        writer.set_len(size)?;
        ensure!(reader.metadata()?.len() == size, "{} instead of {size}", reader.metadata()?.len());
        content(&there, data.get(..size as usize).unwrap_or_default())?;
    }
    // What was cut away does not come back, nor do writes of the other bring it back.
    writer.set_len(3 * SLAB)?;
    reader.write_all_at(b"x", 2 * SLAB)?;
    let mut expected = vec![0; 3 * SLAB as usize];
    expected[2 * SLAB as usize] = b'x';
    content(&here, &expected)?;
    content(&there, &expected)
}

fn holes(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let mut data = pattern(9, 2 * SLAB as usize);
    fs::write(&here, &data)?;
    let (writer, reader) = (read_write(&here)?, read_write(&there)?);
    let (from, to) = (SLAB as usize - 5000, SLAB as usize + 9000);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&writer, flags, from as i64, (to - from) as i64)?;
    data[from..to].fill(0);
    let mut found = vec![1; data.len()];
    reader.read_exact_at(&mut found, 0)?;
    ensure!(found == data, "the hole is not there");
    Ok(())
}

fn append(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().append(true).create(true).open(path)?)
}

fn appends(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("log");
    let (mut one, mut other) = (append(&here)?, append(&there)?);
    let mut expected = Vec::new();
    for number in 0..30_usize {
        let line = pattern(number as u64, [7, 900, 5000, 120_000][number % 4]);
        let file = if number % 2 == 0 { &mut one } else { &mut other };
        ensure!(file.write(&line)? == line.len(), "a part was written");
        expected.extend(line);
        let (written, seen) = if number % 2 == 0 { (&here, &there) } else { (&there, &here) };
        content(seen, &expected)?;
        ensure!(fs::metadata(written)?.len() == expected.len() as u64, "another size");
    }
    Ok(())
}

/// No line is lost, torn or doubled, and those of one writer come in order.
fn appends_at_the_same_time(views: Views<'_>) -> Result<()> {
    const LINES: u32 = 40;
    let (here, there) = views.paths("log");
    let write = |path: &Path, writer: u32| -> Result<()> {
        let mut file = append(path)?;
        for number in 0..LINES {
            let line = format!("{writer} {number} {}\n", "x".repeat((writer * 37 + number * 101) as usize % 3000));
            ensure!(file.write(line.as_bytes())? == line.len(), "a part was written");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let write = &write;
        let writers = [&here, &there, &here, &there].into_iter().zip(0..);
        let threads: Vec<_> = writers.map(|(path, writer)| scope.spawn(move || write(path, writer))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    let text = fs::read_to_string(&there)?;
    let mut next: BTreeMap<u32, u32> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [writer, number, rest] = words.as_slice() else { bail!("a torn line: {line:.40}") };
        let (writer, number): (u32, u32) = (writer.parse()?, number.parse()?);
        ensure!(rest.len() == (writer * 37 + number * 101) as usize % 3000, "a torn line of {writer}: {number}");
        let expected = next.entry(writer).or_default();
        ensure!(number == *expected, "line {number} of {writer} follows {expected} others");
        *expected += 1;
    }
    ensure!(next.values().all(|count| *count == LINES) && next.len() == 4, "{next:?} lines of each");
    Ok(())
}

fn renames(views: Views<'_>) -> Result<()> {
    fs::create_dir(views.here.join("sub"))?;
    fs::write(views.here.join("n0"), b"moved")?;
    for number in 0..10 {
        let place = |number: u32| if number % 3 == 2 { format!("sub/n{number}") } else { format!("n{number}") };
        let ((from, old), (to, new)) = (views.paths(&place(number)), views.paths(&place(number + 1)));
        absent(&new)?;
        fs::metadata(&old)?;
        fs::rename(&from, &to)?;
        absent(&old)?;
        content(&new, b"moved")?;
    }
    // Over another one, which the other mount has open.
    let ((one, _), (target, seen)) = (views.paths("one"), views.paths("target"));
    fs::write(&one, b"new")?;
    fs::write(&target, b"old")?;
    let held = File::open(&seen)?;
    fs::rename(&one, &target)?;
    content(&seen, b"new")?;
    let mut old = [0; 3];
    held.read_exact_at(&mut old, 0)?;
    ensure!(&old == b"old" && held.metadata()?.nlink() == 0, "the open file is another one");
    fs::remove_file(&seen)?;
    fs::remove_dir(views.there.join("sub")).or_else(|_| Ok(()))
}

fn exchanges(views: Views<'_>) -> Result<()> {
    let ((a, a_there), (b, b_there)) = (views.paths("a"), views.paths("b"));
    fs::write(&a, b"a")?;
    fs::create_dir(&b)?;
    renameat2(AT_FDCWD, &a, AT_FDCWD, &b, RenameFlags::RENAME_EXCHANGE)?;
    ensure!(fs::metadata(&a_there)?.is_dir() && fs::metadata(&b_there)?.is_file(), "they did not change places");
    let refused = renameat2(AT_FDCWD, &b_there, AT_FDCWD, &a_there, RenameFlags::RENAME_NOREPLACE);
    ensure!(refused == Err(Errno::EEXIST), "{refused:?}");
    content(&b, b"a")
}

fn removals(views: Views<'_>) -> Result<()> {
    for number in 0..10 {
        let (here, there) = views.paths(&format!("f{number}"));
        fs::write(&here, b"x")?;
        fs::metadata(&there)?;
        fs::remove_file(&here)?;
        absent(&there)?;
        ensure!(names(views.there)?.is_empty(), "the directory still lists it");
        let again = fs::remove_file(&there).map_err(fail);
        ensure!(again == Err(Some(Errno::ENOENT)), "{again:?}");
    }
    Ok(())
}

fn open_files_without_a_name(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let data = pattern(3, 200_000);
    fs::write(&here, &data)?;
    let held = read_write(&there)?;
    fs::remove_file(&here)?;
    absent(&there)?;
    let mut found = vec![0; data.len()];
    held.read_exact_at(&mut found, 0)?;
    ensure!(found == data, "it lost its contents");
    held.write_all_at(b"still alive", 5000)?;
    let mut found = [0; 11];
    held.read_exact_at(&mut found, 5000)?;
    ensure!(&found == b"still alive", "it takes no writes");
    ensure!(held.metadata()?.nlink() == 0, "it has a link");
    // A new one of that name is another.
    fs::write(&here, b"new")?;
    ensure!(fs::metadata(&here)?.ino() != held.metadata()?.ino(), "the same inode number");
    content(&there, b"new")
}

fn directories(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("dir");
    fs::create_dir(&here)?;
    fs::write(there.join("inside"), b"x")?;
    let refused = fs::remove_dir(&here).map_err(fail);
    ensure!(refused == Err(Some(Errno::ENOTEMPTY)), "{refused:?}");
    ensure!(fs::metadata(views.here)?.nlink() == 3, "{} links", fs::metadata(views.here)?.nlink());
    fs::remove_file(here.join("inside"))?;
    fs::remove_dir(&there)?;
    absent(&here)?;
    let refused = File::create(here.join("late")).map(drop).map_err(fail);
    ensure!(refused == Err(Some(Errno::ENOENT)), "{refused:?}");
    ensure!(fs::metadata(views.there)?.nlink() == 2, "{} links", fs::metadata(views.there)?.nlink());
    Ok(())
}

fn links(views: Views<'_>) -> Result<()> {
    let ((here, there), (second, second_there)) = (views.paths("file"), views.paths("second"));
    fs::write(&here, b"x")?;
    fs::hard_link(&here, &second)?;
    ensure!(fs::metadata(&there)?.nlink() == 2, "{} links", fs::metadata(&there)?.nlink());
    ensure!(fs::metadata(&there)?.ino() == fs::metadata(&second_there)?.ino(), "two inodes");
    fs::write(&second_there, b"by the other name")?;
    content(&here, b"by the other name")?;
    fs::remove_file(&there)?;
    ensure!(fs::metadata(&second)?.nlink() == 1, "{} links", fs::metadata(&second)?.nlink());
    let (symbolic, symbolic_there) = views.paths("symbolic");
    std::os::unix::fs::symlink("second", &symbolic)?;
    ensure!(fs::read_link(&symbolic_there)? == Path::new("second"), "another target");
    content(&symbolic_there, b"by the other name")?;
    fs::remove_file(&symbolic)?;
    std::os::unix::fs::symlink("nowhere", &symbolic)?;
    ensure!(fs::read_link(&symbolic_there)? == Path::new("nowhere"), "the old target");
    Ok(())
}

fn attributes(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("file");
    let file = File::create(&here)?;
    fs::metadata(&there)?;
    for mode in [0o600, 0o4755, 0o644, 0o0] {
        fs::set_permissions(&here, fs::Permissions::from_mode(mode))?;
        let found = fs::metadata(&there)?.mode() & Mode::all().bits();
        ensure!(found == mode, "mode {found:o} instead of {mode:o}");
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    file.set_times(fs::FileTimes::new().set_modified(time).set_accessed(time))?;
    let found = fs::metadata(&there)?;
    ensure!(found.modified()? == time && found.accessed()? == time, "other times");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&here, Some(12), Some(34))?;
        let found = fs::metadata(&there)?;
        ensure!((found.uid(), found.gid()) == (12, 34), "another owner");
    }
    Ok(())
}

fn locks(views: Views<'_>) -> Result<()> {
    let (here, there) = views.paths("locked");
    crate::locks::seen_by_both(&here, &there)
}
