//! However many files there are: nodes stay within their memory, and a restart takes as long as with few.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_cluster_tests::cluster::Cluster;
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::many::Many;
use weft_cluster_tests::memory::{Group, peak_resident_bytes};
use weft_cluster_tests::programs::Programs;
use weft_cluster_tests::{mount, wait};

/// What a node may use.
const MEMORY_BYTES_MAX: u64 = 128_000_000;
const RESTART_MAX: Duration = Duration::from_secs(5);
/// A restart with many files takes at most this share of one with few...
const RESTART_SHARE_MAX: f64 = 1.5;
/// ... unless both are so short that the machine's mood decides.
const RESTART_SHORT: Duration = Duration::from_millis(2500);
const SERVING_DEADLINE: Duration = Duration::from_secs(60);

/// Few, and many; with `cargo xtask test --long` really many.
fn files() -> (u64, u64) {
    match std::env::var("WEFT_FILES").ok().and_then(|files| files.parse().ok()) {
        Some(many) => (10_000, many),
        None if std::env::var_os("WEFT_LONG").is_some() => (10_000, 1_000_000),
        None => (1_000, 10_000),
    }
}

struct Scene {
    root: PathBuf,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Scene {
        let root = std::env::temp_dir().join(format!("weft-many-{}", std::process::id()));
        let layout = Layout::new("many", 6, "4+2", 2 << 30).unwrap();
        let programs = Programs::beside_this_test().unwrap();
        let mut cluster = Cluster::create(programs, &root.join("state"), layout).unwrap();
        for node in &mut cluster.nodes {
            let name = format!("weft-many-{}-{}", std::process::id(), node.number);
            node.memory = Group::create(&name, MEMORY_BYTES_MAX).unwrap();
        }
        cluster.start().unwrap();
        cluster.form("main").unwrap();
        let mountpoint = root.join("mnt");
        std::fs::create_dir_all(&mountpoint).unwrap();
        cluster.mount(&mountpoint, "").unwrap();
        Scene { root, cluster }
    }

    fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// kill -9 of all nodes, then a start. How long it took until all buckets served and the directories of the first `few` files
    /// answered; then those of all `files` must.
    fn restart(&mut self, few: u64, files: u64) -> Duration {
        self.cluster.kill_all().unwrap();
        let started = Instant::now();
        self.cluster.start().unwrap();
        wait::until("all buckets serve", SERVING_DEADLINE, || {
            let status = self.cluster.weft(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&status.unwrap_or_default()).unwrap_or_default();
            let count = |name: &str| status["buckets"][name].as_u64();
            Ok((count("total").is_some() && count("total") == count("serving")).then_some(()))
        })
        .unwrap();
        let (mountpoint, serving) = (self.mountpoint(), started.elapsed());
        let directories = Many { root: &mountpoint };
        directories.touch(few).unwrap();
        let took = started.elapsed();
        directories.touch(files).unwrap();
        let times = [serving, took, started.elapsed()].map(|time| format!("{:.2}", time.as_secs_f64()));
        println!(
            "{files} files: s after the start until all buckets serve, {few} files' and all directories answer: {times:?}"
        );
        took
    }

    /// Prints what each node used, and fails if one used too much.
    fn check_memory(&self, when: &str) {
        for node in &self.cluster.nodes {
            let resident = peak_resident_bytes(node.daemon().unwrap()).unwrap();
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            match &node.memory {
                Some(group) => {
                    let (peak, kills) = (group.peak_bytes().unwrap(), group.kills().unwrap());
                    println!("{when}: node{} {:.1} MiB, {:.1} resident", node.number, mib(peak), mib(resident));
                    assert_eq!(kills, 0, "node{} was killed for its memory", node.number);
                }
                None => println!("{when}: node{} {:.1} MiB resident (no limit enforced)", node.number, mib(resident)),
            }
            assert!(resident <= MEMORY_BYTES_MAX, "node{} had {resident} bytes in memory", node.number);
        }
    }
}

impl Drop for Scene {
    /// A failed test leaves no processes and no mounts, and its state to look at.
    fn drop(&mut self) {
        let _ = mount::unmount(&self.mountpoint(), true);
        let _ = self.cluster.kill_all();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn many_files_take_no_more_memory_and_no_longer_restart() {
    let (few, many) = files();
    let mut scene = Scene::new();
    let place = scene.mountpoint();
    let files = Many { root: &place };
    let mut took = Vec::new();
    for range in [0..few, few..many] {
        let (count, end) = (range.end - range.start, range.end);
        let started = Instant::now();
        files.make(range).unwrap();
        println!("{count} files made, {:.0} each second", count as f64 / started.elapsed().as_secs_f64());
        scene.check_memory(&format!("{end} files"));
        took.push(scene.restart(few, end));
        files.check(end).unwrap();
        scene.check_memory(&format!("{end} files, read after a restart"));
    }
    assert!(took[1] <= RESTART_MAX, "a restart took {:?}", took[1]);
    let share = took[1].as_secs_f64() / took[0].as_secs_f64();
    assert!(
        share <= RESTART_SHARE_MAX || took[1] <= RESTART_SHORT,
        "a restart with many files took {share:.2} as long"
    );
}
