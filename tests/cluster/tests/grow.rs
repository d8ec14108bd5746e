//! A node more and a node less while programs write and read: no error, no wrong byte, and in the end nothing is left on the
//! drives of the one that goes. It votes on the map, and it leads.

use serde_json::Value;
use std::time::{Duration, Instant};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, wait};

const NODES: usize = 6;
const LEAVER: &str = "node2";
/// Everything has moved within this.
const MOVED_DEADLINE: Duration = Duration::from_secs(300);

fn is_long() -> bool {
    std::env::var_os("WEFT_LONG").is_some()
}

fn status(scene: &Scene) -> Option<Value> {
    // A note or a problem makes no difference here.
    let node = scene.cluster.nodes.iter().rfind(|node| node.supervisor().is_some())?;
    let mut weft = std::process::Command::new(&scene.cluster.programs.weft);
    let output = weft.arg("--socket").arg(node.socket()).args(["status", "--json"]).output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

fn node<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

/// Zones in use on each node's drives.
fn used(status: &Value) -> Vec<(String, u64)> {
    let drives = status["drives"].as_array().cloned().unwrap_or_default();
    let used = |drive: &Value| Some(drive["zones"].as_u64()? - drive["zones_free"].as_u64()?);
    drives.iter().filter_map(|drive| Some((drive["node"].as_str()?.to_owned(), used(drive)?))).collect()
}

fn until(scene: &Scene, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, MOVED_DEADLINE, || Ok(status(scene).filter(|status| is_so(status))))
        .unwrap_or_else(|error| panic!("{error:#}: {:#}", status(scene).unwrap_or_default()))
}

fn fill(scene: &Scene, bytes: usize) {
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for number in 0..bytes >> 20 {
        std::fs::write(scene.mountpoint().join(format!("ballast{number}")), &block).unwrap();
    }
}

/// Somebody dies on the way, when there is time for it.
fn disturb(scene: &mut Scene, number: usize) {
    if is_long() {
        scene.cluster.nodes[number - 1].kill_daemon().unwrap();
    }
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn a_node_more_and_a_node_less_under_load() {
    let (drive, ballast) = if is_long() { (1 << 30, 2 << 30) } else { (256 << 20, 24 << 20) };
    let layout = Layout::new("grow", NODES, "4+2", drive).unwrap();
    let mut scene = Scene::formed("grow", layout).unwrap();
    scene.mount().unwrap();
    fill(&scene, ballast);
    let before = status(&scene).unwrap();
    let load = Load::start(&scene.mountpoint().join("load"));
    let began = Instant::now();

    scene.cluster.grow().unwrap();
    disturb(&mut scene, 4);
    let shards = |status: &Value, name: &str| node(status, name).and_then(|node| node["holds"]["shards"].as_u64());
    let seven = until(&scene, "the new node has its share", |status| {
        status["moves"].is_null() && shards(status, "node7").is_some_and(|shards| shards > 0)
    });
    println!(
        "seven nodes after {:.1} s; zones in use {:?}, before {:?}",
        began.elapsed().as_secs_f64(),
        used(&seven),
        used(&before)
    );

    let refused = scene.cluster.weft(&["node", "remove", LEAVER]).unwrap_err().to_string();
    assert!(refused.contains("is a member of"), "{refused}");
    let drained = Instant::now();
    scene.cluster.weft(&["node", "drain", LEAVER]).unwrap();
    disturb(&mut scene, 5);
    let empty = until(&scene, "the node is drained, and its drives hold nothing", |status| {
        let of_node: Vec<u64> =
            used(status).into_iter().filter(|(name, _)| name == LEAVER).map(|(_, used)| used).collect();
        node(status, LEAVER).is_some_and(|node| node["state"] == "drained") && of_node == [0]
    });
    println!("drained after {:.1} s; zones in use {:?}", drained.elapsed().as_secs_f64(), used(&empty));
    scene.cluster.weft(&["node", "remove", LEAVER]).unwrap();
    let leaver = scene.cluster.nodes.iter_mut().find(|node| format!("node{}", node.number) == LEAVER).unwrap();
    leaver.wait_stopped(Duration::from_secs(60)).unwrap();

    let steps = load.finish().unwrap_or_else(|error| panic!("{error}"));
    println!("longest step {} ms of {}", longest(&steps, began).as_millis(), steps.len());
    let six = until(&scene, "the six are healthy", |status| status["health"] == "healthy");
    assert_eq!(six["nodes"].as_array().map(Vec::len), Some(6));
    assert_eq!(six["managers"]["total"], 5);
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
