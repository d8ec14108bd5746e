//! Large clusters: rebuilds take the less time the more nodes there are, growth moves no more than it must, and a rack may die.

use std::time::Duration;
use weft_sim::flow::{self, FlowOptions};
use weft_sim::rack::{RackOptions, lose_rack};
use weft_sim::scale::{self, ScaleOptions};
use weft_wire::map::Protection;

fn protection(data: u8, parity: u8) -> Protection {
    Protection { data, parity }
}

/// Time times survivors, which should be the same everywhere.
fn work_seconds(nodes: usize, protection: Protection) -> f64 {
    let done = flow::rebuild(nodes, &FlowOptions::new(protection)).expect("a rebuild");
    let shards = f64::from(protection.data) + 1.0;
    assert!((done.moved as f64) < done.bytes as f64 * shards * 1.001, "{done:?}");
    let busiest = done.busiest as f64 * (nodes - 1) as f64 / done.moved as f64;
    assert!(busiest <= 1.1, "{nodes} nodes: the busiest drive does {busiest} times the mean");
    done.took.as_secs_f64() * (nodes - 1) as f64
}

#[test]
fn twice_the_nodes_rebuild_in_half_the_time() {
    for (protection, nodes) in [(protection(4, 2), [8, 32, 128, 256]), (protection(8, 2), [16, 64, 256, 512])] {
        let work = nodes.map(|nodes| work_seconds(nodes, protection));
        let (least, most) = (work.into_iter().fold(f64::MAX, f64::min), work.into_iter().fold(0.0, f64::max));
        assert!(most <= least * 1.1, "{protection}: {work:?}");
    }
}

#[test]
fn ten_more_than_a_hundred_move_what_they_must() {
    let grown = flow::grow(100, 110, &FlowOptions::new(protection(4, 2))).expect("a larger cluster");
    assert!(grown.share <= 10.0 / 110.0 * 1.05, "{grown:?}");
    assert!(grown.after.fill <= 1.05, "{grown:?}");
}

/// Whole clusters do what the model says: reads of D and one write for each byte, spread over all.
#[test]
fn a_whole_cluster_moves_what_the_model_says() {
    let options = ScaleOptions { node_bytes: 128 << 20, ..ScaleOptions::new(1, 8, protection(4, 2)) };
    let done = scale::rebuild(&options).expect("a rebuild");
    let rebuilt = done.bytes as f64;
    assert!((done.moved as f64) < rebuilt * 5.25, "{done:?}");
    assert!(done.busiest_to_mean() <= 1.15, "{done:?}");
    assert!(done.took.as_secs_f64() <= done.ideal().as_secs_f64() * 1.5, "{done:?}");
}

/// Silence is noticed after 1.5 s. The managers' leader may be among the dead: then another is elected first.
#[test]
fn a_rack_dies_and_nobody_notices() {
    let lost = lose_rack(&RackOptions::new(1)).expect("a cluster without one of its racks");
    assert!(lost.operations > 500, "{lost:?}");
    assert!(lost.longest <= Duration::from_millis(3500), "{lost:?}");
    assert!(lost.rebuilt_bytes > 0, "{lost:?}");
    assert_eq!(lost.domains_min, 8, "{lost:?}");
}
