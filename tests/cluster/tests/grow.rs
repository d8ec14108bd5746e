//! A node more and a node less while programs write and read: no error, no wrong byte, no more is moved than must be, and in the
//! end nothing is left on the drives of the one that goes. It votes on the map, and it leads.

use serde_json::Value;
use std::time::{Duration, Instant};
use weft_cluster_tests::health::{Rebuilt, managers_leader, node, shards, status, unevenness, until, used};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::mount;
use weft_cluster_tests::scene::Scene;

const NODES: usize = 6;
const LEAVER: &str = "node2";
/// Everything has moved within this.
const MOVED_DEADLINE: Duration = Duration::from_secs(600);
/// With --long: of 6 GiB, as much as fills them to 60 % with its parity.
const LONG_DRIVE: u64 = 1 << 30;
const LONG_BALLAST: usize = 2400 << 20;
/// Of what has to be moved, and of the mean of all nodes.
const MOVED_MOST: f64 = 1.1;
const UNEVEN_MOST: f64 = 1.05;

fn is_long() -> bool {
    std::env::var_os("WEFT_LONG").is_some()
}

fn fill(scene: &Scene, bytes: usize) {
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for number in 0..bytes >> 20 {
        // Each in a directory of its own, so that buckets fill evenly: a file's first MiB is where its directory is.
        let directory = scene.mountpoint().join(format!("ballast{number}"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("file"), &block).unwrap();
    }
}

/// Zones in use of all that there are, in percent.
fn percent(status: &Value) -> u64 {
    let zones = |which: &str| -> u64 {
        status["drives"].as_array().into_iter().flatten().filter_map(|drive| drive[which].as_u64()).sum()
    };
    100 - 100 * zones("zones_free") / zones("zones").max(1)
}

/// Kills the daemon of whoever leads the managers.
fn disturb(scene: &Scene) {
    if let Some(leader) = managers_leader(scene) {
        scene.cluster.nodes[leader].kill_daemon().unwrap();
    }
}

/// `least`: the bytes that have to move. Only full drives tell whether that was kept: of little data, much is in zones that have
/// just been begun.
fn report(what: &str, began: Instant, status: &Value, rebuilt: &Rebuilt, least: u64) {
    let mut used = used(status);
    used.retain(|_, zones| *zones > 0);
    let (moved, uneven) = (rebuilt.bytes() as f64 / least as f64, unevenness(&used));
    assert!(
        !is_long() || (moved <= MOVED_MOST && uneven <= UNEVEN_MOST),
        "{moved:.3} was moved, {uneven:.3}: {used:?}"
    );
    println!(
        "{what} after {:.1} s, {} % full: {moved:.3} of the least was moved, the fullest node has {uneven:.3} of the mean; {used:?}",
        began.elapsed().as_secs_f64(),
        percent(status),
    );
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn a_node_more_and_a_node_less_under_load() {
    let (drive, ballast) = if is_long() { (LONG_DRIVE, LONG_BALLAST) } else { (256 << 20, 24 << 20) };
    let layout = Layout::new("grow", NODES, "4+2", drive).unwrap();
    let mut scene = Scene::formed("grow", layout).unwrap();
    scene.mount().unwrap();
    fill(&scene, ballast);
    // With parity, a seventh of it belongs on each of seven nodes.
    let least = ballast as u64 * 6 / 4 / 7;
    let load = Load::start(&scene.mountpoint().join("load"));
    let began = Instant::now();

    let mut grown = Rebuilt::since(&status(&scene).unwrap());
    scene.cluster.grow().unwrap();
    disturb(&scene);
    let seven = until(&scene, "the new node has its share", MOVED_DEADLINE, |status| {
        grown.look(status);
        status["moves"].is_null() && shards(status, "node7") > 0
    });
    report("seven nodes", began, &seven, &grown, least);

    let refused = scene.cluster.weft(&["node", "remove", LEAVER]).unwrap_err().to_string();
    assert!(refused.contains("is a member of"), "{refused}");
    let drained = Instant::now();
    let mut shrunk = Rebuilt::since(&seven);
    scene.cluster.weft(&["node", "drain", LEAVER]).unwrap();
    disturb(&scene);
    let empty = until(&scene, "the node is drained, and its drives hold nothing", MOVED_DEADLINE, |status| {
        shrunk.look(status);
        node(status, LEAVER).is_some_and(|node| node["state"] == "drained") && used(status).get(LEAVER) == Some(&0)
    });
    report("drained", drained, &empty, &shrunk, least);
    scene.cluster.weft(&["node", "remove", LEAVER]).unwrap();
    let leaver = scene.cluster.nodes.iter_mut().find(|node| format!("node{}", node.number) == LEAVER).unwrap();
    leaver.wait_stopped(Duration::from_secs(60)).unwrap();

    let steps = load.finish().unwrap_or_else(|error| panic!("{error}"));
    println!("longest step {} ms of {}", longest(&steps, began).as_millis(), steps.len());
    let six = until(&scene, "the six are healthy", MOVED_DEADLINE, |status| status["health"] == "healthy");
    assert_eq!(six["nodes"].as_array().map(Vec::len), Some(6));
    assert_eq!(six["managers"]["total"], 5);
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
