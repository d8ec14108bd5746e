//! Small drives: overwritten again and again when nearly full, filled up, emptied.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, wait};

const DRIVE_BYTES: u64 = 256 << 20;
/// Each is in a directory of its own, so that buckets fill evenly: a file's first MiB is where its directory is.
const FILE_BYTES: usize = 256 << 10;
const SMALL_BYTES: usize = 10_000;
/// Files that find no room, one after the other, before all counts as full: buckets don't fill at the same time.
const FULL_AFTER: usize = 24;
const FREED_DEADLINE: Duration = Duration::from_secs(120);

/// A long run makes the cleaner move everything several times.
fn overwrites() -> u64 {
    if std::env::var_os("WEFT_LONG").is_some() { 10 } else { 1 }
}

/// Differs from file to file, from round to round and from block to block.
fn contents(file: u64, round: u64) -> Vec<u8> {
    let words = (0..FILE_BYTES as u64 / 8).map(|word| (file << 40 | round << 32) ^ word.wrapping_mul(0x9e37_79b9));
    words.flat_map(u64::to_le_bytes).collect()
}

fn no_space(result: std::io::Result<()>) -> bool {
    match result {
        Ok(()) => false,
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => true,
        Err(error) => panic!("{error}"),
    }
}

fn available(place: &Path) -> u64 {
    let space = nix::sys::statvfs::statvfs(place).unwrap();
    space.blocks_available() * space.fragment_size()
}

/// The sum over all buckets of a counter that `weft status` tells.
fn counter(scene: &Scene, name: &str) -> u64 {
    let status: serde_json::Value = serde_json::from_str(&scene.cluster.weft(&["status", "--json"]).unwrap()).unwrap();
    status["counters"][name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {status}"))
}

fn path(place: &Path, number: u64) -> PathBuf {
    place.join(number.to_string()).join("file")
}

fn make(place: &Path, files: u64) {
    (0..files).for_each(|number| std::fs::create_dir(place.join(number.to_string())).unwrap());
}

fn remove(place: &Path, files: u64) {
    (0..files).for_each(|number| std::fs::remove_dir_all(place.join(number.to_string())).unwrap());
}

fn overwrite(place: &Path, files: u64, round: u64) {
    for number in 0..files {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path(place, number));
        // Pieces large and small: through stripes, and through the journal.
        let (file, data) = (file.unwrap(), contents(number, round));
        file.write_all_at(&data[..FILE_BYTES - 3 * SMALL_BYTES], 0).unwrap();
        for at in (FILE_BYTES - 3 * SMALL_BYTES..FILE_BYTES).step_by(SMALL_BYTES) {
            file.write_all_at(&data[at..at + SMALL_BYTES], at as u64).unwrap();
        }
    }
}

fn check(place: &Path, files: u64, round: u64) {
    for number in 0..files {
        let found = std::fs::read(path(place, number)).unwrap();
        assert!(found == contents(number, round), "file {number} after round {round}");
    }
}

/// Fills all buckets; answers how many directories it took.
fn fill(place: &Path) -> u64 {
    let (mut made, mut refused) = (0, 0);
    std::fs::create_dir(place).unwrap();
    while refused < FULL_AFTER {
        let directory = place.join(made.to_string());
        let create = || -> std::io::Result<()> {
            std::fs::create_dir(&directory)?;
            made += 1;
            std::fs::write(directory.join("file"), vec![7; FILE_BYTES])
        };
        refused = if no_space({ create }()) { refused + 1 } else { 0 };
    }
    made
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn full_drives_are_overwritten_and_emptied() {
    let layout = Layout::new("full", 6, "4+2", DRIVE_BYTES).unwrap();
    let mut scene = Scene::formed("full", layout).unwrap();
    scene.mount().unwrap();
    let place = scene.mountpoint();
    let empty = available(&place);
    let files = empty * 8 / 10 / FILE_BYTES as u64;
    make(&place, files);
    let rounds = overwrites();
    for round in 0..=rounds {
        overwrite(&place, files, round);
    }
    check(&place, files, rounds);
    assert!(available(&place) < empty / 4, "{} of {empty} bytes are available", available(&place));

    let fillers = fill(&place.join("fillers"));
    // What is full says so, and no more than that: what is there can be read and overwritten.
    std::fs::write(path(&place, 0), contents(0, rounds)).unwrap();
    overwrite(&place, 4, rounds + 1);
    check(&place, 4, rounds + 1);
    overwrite(&place, 4, rounds);
    check(&place, files, rounds);
    let large = OpenOptions::new().write(true).open(path(&place, 1)).unwrap();
    let flags = nix::fcntl::FallocateFlags::empty();
    let refused = nix::fcntl::fallocate(&large, flags, 0, i64::try_from(empty).unwrap());
    assert_eq!(refused, Err(nix::errno::Errno::ENOSPC));
    drop(large);

    remove(&place.join("fillers"), fillers);
    remove(&place, files);
    let freed = || Ok((available(&place) >= empty / 10 * 9).then_some(()));
    wait::until("what was deleted is available", FREED_DEADLINE, freed).unwrap();
    make(&place, files / 8);
    overwrite(&place, files / 8, 99);
    check(&place, files / 8, 99);
    for name in ["checkpoints", "cleaned_sets", "freed_sets", "destaged_blocks"] {
        assert!(counter(&scene, name) > 0, "{name}");
    }
    let written = counter(&scene, "destaged_blocks") * 4096;
    assert!(counter(&scene, "journal_bytes") < written, "the journals are trimmed");
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
