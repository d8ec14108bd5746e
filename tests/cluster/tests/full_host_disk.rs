//! The filesystem that holds the drives' files and the logs runs full under a cluster that promised more: whoever waits is
//! told why, nobody ends, and nothing that was acknowledged is lost.

use nix::mount::MsFlags;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, wait};

const DRIVE_BYTES: u64 = 512 << 20;
/// The host's disk: less than the drives say they have, and what it is made larger to.
const DISK: &str = "size=600m";
const LARGER_DISK: &str = "size=2600m";
const FILE_BYTES: usize = 4 << 20;
const FULL_DEADLINE: Duration = Duration::from_secs(120);
const HEALTHY_DEADLINE: Duration = Duration::from_secs(120);

/// The host's disk, gone with the test.
struct Disk(PathBuf);

impl Disk {
    fn new(place: &Path) -> Disk {
        std::fs::create_dir_all(place).unwrap();
        nix::mount::mount(Some("weft-disk"), place, Some("tmpfs"), MsFlags::empty(), Some(DISK)).unwrap();
        Disk(place.into())
    }

    fn enlarge(&self) {
        let none: Option<&str> = None;
        nix::mount::mount(none, &self.0, none, MsFlags::MS_REMOUNT, Some(LARGER_DISK)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn contents(file: u64) -> Vec<u8> {
    let words = (0..FILE_BYTES as u64 / 8).map(|word| (file << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Each in a directory of its own, so that buckets fill evenly: a file's first MiB is where its directory is.
fn path(place: &Path, number: u64) -> PathBuf {
    place.join(number.to_string()).join("file")
}

/// Writes files until it is told to stop; `done` of them were acknowledged.
fn write(place: &Path, stop: &AtomicBool, done: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let number = done.load(Ordering::Relaxed);
        let path = path(place, number);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents(number)).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        done.store(number + 1, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn a_full_host_disk_stops_writers_and_loses_nothing() {
    let root = std::env::temp_dir().join(format!("weft-disk-{}", std::process::id()));
    let disk = Disk::new(&root.join("state"));
    let layout = Layout::new("disk", 6, "4+2", DRIVE_BYTES).unwrap();
    let mut scene = Scene::formed("disk", layout).unwrap();
    scene.mount().unwrap();
    let place = scene.mountpoint();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = std::thread::spawn({
        let (place, stop, done) = (place.clone(), Arc::clone(&stop), Arc::clone(&done));
        move || write(&place, &stop, &done)
    });
    let daemons = |scene: &Scene| scene.cluster.nodes.iter().map(|node| node.daemon()).collect::<Vec<_>>();
    let before = daemons(&scene);
    let told = wait::until("status says that the disk is full", FULL_DEADLINE, || {
        let error = scene.cluster.weft(&["status"]).err().map(|error| format!("{error:#}"));
        Ok(error.filter(|error| error.contains("the filesystem that holds the drive's file is full; free space there")))
    });
    told.unwrap();
    // Logs find no room either, and nobody ends for that.
    let mut log = std::fs::OpenOptions::new().append(true).open(root.join("state/mount.log")).unwrap();
    while std::io::Write::write_all(&mut log, &[b'\n'; 4096]).is_ok() {}
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(daemons(&scene), before, "no daemon ended");
    assert!(!writing.is_finished(), "the writer waits");
    let acknowledged = done.load(Ordering::Relaxed);
    assert!(acknowledged > 0);

    disk.enlarge();
    let goes_on = || Ok((done.load(Ordering::Relaxed) > acknowledged + 2).then_some(()));
    wait::until("writing goes on", HEALTHY_DEADLINE, goes_on).unwrap();
    stop.store(true, Ordering::Relaxed);
    writing.join().unwrap();
    let check = |files: u64| {
        for number in 0..files {
            assert!(std::fs::read(path(&place, number)).unwrap() == contents(number), "file {number}");
        }
    };
    let files = done.load(Ordering::Relaxed);
    check(files);
    // What was given up meanwhile comes back with its node.
    scene.cluster.kill_all().unwrap();
    scene.cluster.start().unwrap();
    wait::until_ok(HEALTHY_DEADLINE, || scene.cluster.weft(&["status"])).unwrap();
    check(files);
    mount::unmount(&place, false).unwrap();
    drop(scene);
    drop(disk);
    std::fs::remove_dir_all(root).unwrap();
}
