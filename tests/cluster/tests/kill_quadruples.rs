//! As many nodes as 5+4 survives die at the same time while programs write and read: no error, no wrong byte.

use weft_cluster_tests::blows::{Blow, work_through};
use weft_cluster_tests::layout::Layout;
use weft_cluster_tests::mount;
use weft_cluster_tests::scene::Scene;

const NODES: usize = 9;
const VICTIMS: usize = 4;
const SEED: u64 = 2;

/// Different quadruples in an order that the seed decides.
fn quadruples(count: usize) -> Vec<Vec<usize>> {
    let all = (0..1_usize << NODES).filter(|set| set.count_ones() as usize == VICTIMS);
    let mut all: Vec<(u64, usize)> =
        all.map(|set| ((set as u64 + SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15).swap_bytes(), set)).collect();
    all.sort_unstable();
    let nodes = |set: usize| (1..=NODES).filter(move |node| set >> (node - 1) & 1 == 1).collect();
    all.into_iter().take(count).map(|(_, set)| nodes(set)).collect()
}

#[test]
#[ignore = "starts a cluster: `cargo xtask test cluster`"]
fn four_of_nine_die_together() {
    let layout = Layout::new("quads", NODES, "5+4", 512 << 20).unwrap();
    let mut scene = Scene::formed("quads", layout).unwrap();
    scene.mount().unwrap();
    let rounds = if std::env::var_os("WEFT_LONG").is_some() { 20 } else { 1 };
    // Every other time their supervisors die, too.
    let blows = [Blow::Daemon, Blow::Node].into_iter().cycle();
    work_through(&mut scene, blows.zip(quadruples(rounds)).collect()).unwrap();
    mount::unmount(&scene.mountpoint(), false).unwrap();
}
