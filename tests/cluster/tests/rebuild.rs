//! As many nodes as may be lost are lost for good, what they held is made again by the others, and as many are lost again: no
//! error, no wrong byte. What a rebuild takes is printed: time, processor time, and how evenly the work is spread.

use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use weft_cluster_tests::health::{is_whole, managers_vote, node, shards, until};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::mount;
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::work::Meter;

const NODES: usize = 8;
const SCHEME: &str = "4+2";
/// Of what the drives hold, this is data.
const DATA_SHARE: (u64, u64) = (4, 6);
const FILE_BYTES: u64 = 8 << 20;
/// The first MiB of each file is where its directory is: on drives as small as these, many in one directory would fill its bucket.
const FILES_PER_DIRECTORY: u64 = 16;
/// Away for so long, a node is given up.
const FAILED_AFTER: &str = "failed_after_s = 5";
const DEADLINE: Duration = Duration::from_secs(200);

/// What each node holds, and how large its drive is: with `cargo xtask test --long` as much as stands in the aims.
fn sizes() -> (u64, u64) {
    match std::env::var_os("WEFT_LONG") {
        Some(_) => (1 << 30, 2560 << 20),
        None => (64 << 20, 512 << 20),
    }
}

fn content(number: u64) -> Vec<u8> {
    let words = (0..FILE_BYTES / 8).map(|at| (at + (number << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

struct Files {
    directory: PathBuf,
    count: u64,
}

impl Files {
    fn make(scene: &Scene, bytes: u64) -> Files {
        let files = Files { directory: scene.mountpoint().join("files"), count: bytes.div_ceil(FILE_BYTES) };
        for number in 0..files.count {
            let path = files.path(number);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content(number)).unwrap();
        }
        files
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join((number / FILES_PER_DIRECTORY).to_string()).join(number.to_string())
    }

    fn check(&self) {
        for number in 0..self.count {
            let found = std::fs::read(self.path(number)).unwrap_or_else(|error| panic!("file {number}: {error}"));
            assert!(found == content(number), "file {number} has {} other bytes", found.len());
        }
    }
}

/// Everything that the dead held is elsewhere, no stripe lacks a shard, no journal a copy, and others vote instead of them.
fn is_made_again(status: &Value, dead: &[usize]) -> bool {
    let lacking = status["counters"]["stripes_by_missing"].as_array().cloned().unwrap_or_default();
    let holds = |number: &usize| {
        node(status, &format!("node{number}"))
            .is_none_or(|node| node["holds"]["shards"] != 0 || node["holds"]["journals"] != 0)
    };
    let held = dead.iter().any(holds);
    let waiting = status["buckets"]["total"] != status["buckets"]["serving"];
    !held
        && !waiting
        && status["moves"].is_null()
        && managers_vote(status)
        && status["counters"]["rebuild_bytes_left"] == 0
        && lacking.first().is_some_and(|whole| *whole != 0)
        && lacking.iter().skip(1).all(|stripes| *stripes == 0)
}

/// Kills nodes with their supervisors, for good, and waits until what they held is made again.
fn lose(scene: &mut Scene, victims: &[usize]) {
    for victim in victims {
        scene.cluster.nodes[victim - 1].kill().unwrap();
    }
    until(scene, &format!("nodes {victims:?} are given up"), DEADLINE, |status| {
        let state = |number: &usize| node(status, &format!("node{number}")).map(|node| node["state"].clone());
        victims.iter().all(|number| state(number).is_some_and(|state| state == "failed"))
    });
    let (began, meter) = (Instant::now(), Meter::start(scene));
    until(scene, &format!("what nodes {victims:?} held is made again"), DEADLINE, |status| {
        is_made_again(status, victims)
    });
    let (took, work) = (began.elapsed(), meter.so_far(scene));
    let cpu: Duration = work.iter().map(|work| work.cpu).sum();
    let moved: Vec<u64> = work.iter().map(|work| (work.read_bytes + work.written_bytes) >> 20).collect();
    let mean = moved.iter().sum::<u64>() as f64 / moved.len() as f64;
    let most = moved.iter().max().copied().unwrap_or_default();
    println!(
        "nodes {victims:?}: made again {:.2} s after they were given up, {:.2} CPU-s of the daemons, {mean:.0} MiB read and \
         written by each of {} nodes, {:.2} of that by the busiest",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        moved.len(),
        most as f64 / mean.max(1.0)
    );
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn as_many_as_may_be_lost_are_lost_twice() {
    let (node_bytes, drive_bytes) = sizes();
    let mut layout = Layout::new("rebuild", NODES, SCHEME, drive_bytes).unwrap();
    layout.extra_config = FAILED_AFTER.into();
    let mut scene = Scene::formed("rebuild", layout).unwrap();
    scene.mount().unwrap();
    let files = Files::make(&scene, node_bytes * NODES as u64 * DATA_SHARE.0 / DATA_SHARE.1);
    until(&scene, "everything is in its place", DEADLINE, is_whole);

    // One in calm, for its numbers; it comes back with what it had.
    lose(&mut scene, &[8]);
    let programs = scene.cluster.programs.clone();
    scene.cluster.nodes[7].start(&programs).unwrap();
    until(&scene, "node8 takes its share again", DEADLINE, |status| is_whole(status) && shards(status, "node8") > 0);

    let load = Load::start(&scene.mountpoint().join("load"));
    let began = Instant::now();
    files.check();
    let (calm, calm_until) = (began.elapsed(), Instant::now());
    lose(&mut scene, &[2, 5]);
    let rebuilt = Instant::now();
    lose_again(&mut scene, &[3, 7]);
    files.check();
    let steps = load.finish().unwrap_or_else(|error| panic!("{error}"));
    let each_second = |from: Instant, to: Instant| {
        let steps = steps.iter().filter(|step| step.began >= from && step.began < to).count();
        steps as f64 / to.duration_since(from).as_secs_f64()
    };
    println!(
        "programs: {:.0} steps a second while files were read for {:.1} s, {:.0} from the deaths to the end of the rebuild; longest {} ms",
        each_second(began, calm_until),
        calm.as_secs_f64(),
        each_second(calm_until, rebuilt),
        longest(&steps, began).as_millis()
    );

    for number in [2, 5, 3, 7] {
        scene.cluster.nodes[number - 1].start(&programs).unwrap();
    }
    until(&scene, "all are back and hold their share", DEADLINE, |status| {
        is_whole(status) && (1..=NODES).all(|number| shards(status, &format!("node{number}")) > 0)
    });
    files.check();
    mount::unmount(&scene.mountpoint(), false).unwrap();
}

/// There are not domains enough any more to make anything again: all goes on with what is left.
fn lose_again(scene: &mut Scene, victims: &[usize]) {
    for victim in victims {
        scene.cluster.nodes[victim - 1].kill().unwrap();
    }
    until(scene, &format!("nodes {victims:?} are missed, and everything is served"), DEADLINE, |status| {
        let gone = |number: &usize| node(status, &format!("node{number}")).is_some_and(|node| node["state"] != "up");
        victims.iter().all(gone) && status["buckets"]["total"] == status["buckets"]["serving"]
    });
}
