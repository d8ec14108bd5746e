//! Nodes die, alone and in pairs, or hang, while programs write and read: no error, no wrong byte.

use weft_cluster_tests::blows::{Blow, work_through};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::mount;
use weft_cluster_tests::scene::Scene;

const NODES: usize = 6;

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

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn work_goes_on_whoever_dies() {
    let layout = Layout::new("pairs", NODES, "4+2", 512 << 20).unwrap();
    let mut scene = Scene::formed("pairs", layout).unwrap();
    scene.mount().unwrap();
    work_through(&mut scene, plan()).unwrap();
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
