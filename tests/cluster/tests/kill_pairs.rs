//! Nodes die, alone and in pairs, or hang, while programs write and read: no error, no wrong byte. How long the longest step
//! took is printed, not judged: it is the machine's business, too. Bounds are checked in virtual time.

use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::load::{Load, longest};
use weft_cluster_tests::scene::Scene;
use weft_cluster_tests::{mount, process, wait};

const NODES: usize = 6;
/// A cluster that was hurt is well again within this.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(120);
/// Load before the blow, and after it.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug)]
enum Blow {
    /// The daemon dies, its supervisor tells and starts it again.
    Daemon,
    /// Daemon and supervisor die.
    Node,
    /// The daemon hangs.
    Hang,
}

fn plan() -> Vec<(Blow, Vec<usize>)> {
    if std::env::var_os("WEFT_LONG").is_none() {
        return vec![(Blow::Daemon, vec![3]), (Blow::Node, vec![1, 5])];
    }
    let nodes = (1..=NODES).collect::<Vec<_>>();
    let pairs = nodes.iter().flat_map(|a| nodes.iter().filter(move |b| *b > a).map(move |b| vec![*a, *b]));
    let pairs: Vec<Vec<usize>> = pairs.collect();
    let single = |blow| nodes.iter().map(move |node| (blow, vec![*node]));
    let double = |blow| pairs.clone().into_iter().map(move |pair| (blow, pair));
    let hangs = [vec![1], vec![4], vec![2, 6]].into_iter().map(|nodes| (Blow::Hang, nodes));
    single(Blow::Daemon)
        .chain(double(Blow::Daemon))
        .chain(single(Blow::Node))
        .chain(double(Blow::Node))
        .chain(hangs)
        .collect()
}

fn strike(scene: &mut Scene, blow: Blow, victims: &[usize]) {
    let nodes = scene.cluster.nodes.iter_mut().filter(|node| victims.contains(&node.number));
    std::thread::scope(|scope| {
        for node in nodes {
            scope.spawn(move || match blow {
                Blow::Daemon => node.kill_daemon().unwrap(),
                Blow::Node => node.kill().unwrap(),
                Blow::Hang => process::signal(node.daemon().unwrap(), Signal::SIGSTOP).unwrap(),
            });
        }
    });
}

fn mend(scene: &mut Scene, blow: Blow, victims: &[usize]) {
    if let Blow::Hang = blow {
        for node in scene.cluster.nodes.iter().filter(|node| victims.contains(&node.number)) {
            process::signal(node.daemon().unwrap(), Signal::SIGCONT).unwrap();
        }
    }
    scene.cluster.start().unwrap();
    wait::until_ok(HEALTHY_DEADLINE, || scene.cluster.weft(&["status"])).unwrap();
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn work_goes_on_whoever_dies() {
    let layout = Layout::new("pairs", NODES, "4+2", 512 << 20).unwrap();
    let mut scene = Scene::formed("pairs", layout).unwrap();
    scene.mount().unwrap();
    let mut stalls: Vec<Duration> = Vec::new();
    for (round, (blow, victims)) in plan().into_iter().enumerate() {
        let load = Load::start(&scene.mountpoint().join(format!("round{round}")));
        std::thread::sleep(BEFORE);
        let struck = Instant::now();
        strike(&mut scene, blow, &victims);
        std::thread::sleep(AFTER);
        let steps = load.finish().unwrap_or_else(|error| panic!("{blow:?} of {victims:?}: {error}"));
        let stall = longest(&steps, struck);
        println!("{blow:?} of {victims:?}: longest step {} ms, {} steps", stall.as_millis(), steps.len());
        stalls.push(stall);
        mend(&mut scene, blow, &victims);
    }
    stalls.sort_unstable();
    let median = stalls.get(stalls.len() / 2).copied().unwrap_or_default();
    let most = stalls.last().copied().unwrap_or_default();
    println!("{} rounds: median {} ms, longest {} ms", stalls.len(), median.as_millis(), most.as_millis());
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
