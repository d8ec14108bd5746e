//! Drives come and go, a dead node is replaced and another never comes back, while programs write and read and others are killed:
//! no error, no wrong byte, and all that was lost is made again.

use std::time::{Duration, Instant};
use weft_cluster_tests::health::{is_whole, managers_leader, node, shards, status, until};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, wait};

const NODES: usize = 6;
const DRIVE_BYTES: u64 = 256 << 20;
const READY_DEADLINE: Duration = Duration::from_secs(60);
const MOVED_DEADLINE: Duration = Duration::from_secs(200);

fn fill(scene: &Scene, files: usize) {
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for number in 0..files {
        std::fs::write(scene.mountpoint().join(format!("ballast{number}")), &block).unwrap();
    }
}

fn restart(scene: &mut Scene, number: usize) {
    let programs = scene.cluster.programs.clone();
    let node = &mut scene.cluster.nodes[number - 1];
    node.terminate().unwrap();
    node.wait_stopped(READY_DEADLINE).unwrap();
    node.start(&programs).unwrap();
    node.wait_ready(READY_DEADLINE).unwrap();
}

/// What a drive that a node names has become: its number, as far as it has one.
fn drive_at(scene: &Scene, name: &str, file: &str) -> Option<u64> {
    let status = status(scene)?;
    let drives = status["drives"].as_array()?;
    let is_it = |drive: &&serde_json::Value| {
        drive["node"] == name && drive["path"].as_str().is_some_and(|path| path.ends_with(file))
    };
    drives.iter().find(is_it)?["id"].as_u64()
}

fn kill_leader_of_managers(scene: &Scene) {
    let leader = wait::until("the managers have a leader", READY_DEADLINE, || Ok(managers_leader(scene))).unwrap();
    scene.cluster.nodes[leader].kill_daemon().unwrap();
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn drives_and_nodes_are_replaced_under_load() {
    let layout = Layout::new("replace", NODES, "4+2", DRIVE_BYTES).unwrap();
    let mut scene = Scene::formed("replace", layout).unwrap();
    scene.mount().unwrap();
    fill(&scene, 24);
    let load = Load::start(&scene.mountpoint().join("load"));
    let began = Instant::now();

    // A drive more, and the one that was there is drained. Two die on the way.
    let second = "second.drive";
    scene.cluster.nodes[1].configure_drive(second, DRIVE_BYTES).unwrap();
    restart(&mut scene, 2);
    let path = scene.cluster.nodes[1].directory.join(second).to_string_lossy().into_owned();
    wait::until_ok(READY_DEADLINE, || scene.cluster.weft(&["drive", "add", "node2", &path])).unwrap();
    let old = drive_at(&scene, "node2", "node2.drive").unwrap();
    assert!(drive_at(&scene, "node2", second).is_some_and(|new| new != old));
    let name = format!("drive{old}");
    let refused = scene.cluster.weft(&["drive", "remove", &name]).unwrap_err().to_string();
    assert!(refused.contains("is a member of"), "{refused}");
    scene.cluster.weft(&["drive", "drain", &name]).unwrap();
    kill_leader_of_managers(&scene);
    scene.cluster.nodes[3].kill().unwrap();
    let programs = scene.cluster.programs.clone();
    scene.cluster.nodes[3].start(&programs).unwrap();
    wait::until_ok(MOVED_DEADLINE, || scene.cluster.weft(&["drive", "remove", &name])).unwrap();
    until(&scene, "the other drive has it all", MOVED_DEADLINE, |status| {
        is_whole(status) && shards(status, "node2") > 0
    });
    println!("a drive was replaced after {:.1} s", began.elapsed().as_secs_f64());

    // A node dies with its drive.
    let dies = Instant::now();
    scene.cluster.nodes[4].kill().unwrap();
    until(&scene, "node5 is missed", MOVED_DEADLINE, |status| {
        node(status, "node5").is_some_and(|node| node["state"] != "up")
    });
    scene.cluster.replace(5).unwrap();
    kill_leader_of_managers(&scene);
    until(&scene, "everything is made again", MOVED_DEADLINE, |status| is_whole(status) && shards(status, "node5") > 0);
    println!("a node with another drive after {:.1} s", dies.elapsed().as_secs_f64());

    // With a node more, one can be spared.
    let refused = scene.cluster.weft(&["cluster", "hot-spare", "1"]).unwrap_err().to_string();
    assert!(refused.contains("failure domains"), "{refused}");
    scene.cluster.grow().unwrap();
    scene.cluster.weft(&["cluster", "hot-spare", "1"]).unwrap();
    let spared =
        until(&scene, "seven nodes share it", MOVED_DEADLINE, |status| is_whole(status) && shards(status, "node7") > 0);
    assert_eq!(spared["hot_spare"], 1);

    let steps = load.finish().unwrap_or_else(|error| panic!("{error}"));
    println!("longest step {} ms of {}", longest(&steps, began).as_millis(), steps.len());
    mount::unmount(&scene.mountpoint(), false).unwrap();
}

/// What a node would hold is made again beside other shards, two nodes more may die, and it is spread again when the first is back.
#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn domains_that_run_out_are_folded() {
    if std::env::var_os("WEFT_LONG").is_none() {
        println!("only with --long: a node is given up after half a minute");
        return;
    }
    let layout = Layout::new("fold", NODES, "4+2", DRIVE_BYTES).unwrap();
    let mut scene = Scene::new("fold", layout).unwrap();
    for node in &scene.cluster.nodes {
        node.configure_drive("second.drive", DRIVE_BYTES).unwrap();
    }
    scene.cluster.start().unwrap();
    scene.cluster.form("main").unwrap();
    scene.mount().unwrap();
    fill(&scene, 24);
    let load = Load::start(&scene.mountpoint().join("load"));
    let problem = |status: &serde_json::Value, text: &str| {
        status["problems"]
            .as_array()
            .is_some_and(|all| all.iter().any(|problem| problem.as_str().is_some_and(|problem| problem.contains(text))))
    };
    let (folded, programs) = ("two shards in one failure domain", scene.cluster.programs.clone());
    let lacks = |status: &serde_json::Value| {
        let stripes = status["counters"]["stripes_by_missing"].as_array().cloned().unwrap_or_default();
        stripes.is_empty() || stripes.iter().skip(1).any(|stripes| *stripes != 0)
    };

    let died = Instant::now();
    scene.cluster.nodes[2].kill().unwrap();
    until(&scene, "all of node3 is made again elsewhere", MOVED_DEADLINE, |status| {
        problem(status, folded) && shards(status, "node3") == 0 && !lacks(status)
    });
    println!("folded after {:.1} s", died.elapsed().as_secs_f64());
    scene.cluster.nodes[4].kill().unwrap();
    until(&scene, "node5 is missed", MOVED_DEADLINE, |status| {
        node(status, "node5").is_some_and(|node| node["state"] != "up")
    });
    scene.cluster.nodes[4].start(&programs).unwrap();
    until(&scene, "node5 is back", MOVED_DEADLINE, |status| !lacks(status));
    scene.cluster.nodes[2].start(&programs).unwrap();
    until(&scene, "every shard is in a domain of its own", MOVED_DEADLINE, |status| {
        is_whole(status) && shards(status, "node3") > 0
    });
    let events = scene.cluster.weft(&["events"]).unwrap();
    assert!(events.contains("failure domains have run out"), "{events}");
    load.finish().unwrap_or_else(|error| panic!("{error}"));
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
