//! Waiting until a healed cluster has noticed that it is healed: nodes are believed to be up, all buckets are served, and no shard is
//! on its way to where it should be.

use crate::world::World;
use std::time::Duration;

/// In virtual time. What is not so by then won't be, and the checkers say why that is wrong.
const NOTICED_MAX: Duration = Duration::from_secs(60);
/// For readers that leave drives alone for a while after they were silent, and for leaders that free and repair.
const SETTLED_AFTER: Duration = Duration::from_secs(4);

/// Lets time pass until every node serves, is up in every map, and all buckets are served.
pub fn settle(world: &mut World, bucket_count: usize) {
    let noticed = world.run_until_seen(NOTICED_MAX, |world| {
        let mut served = 0;
        let all = world.nodes.iter().filter(|machine| !machine.is_gone()).all(|machine| {
            let Some(status) = machine.node().map(|node| node.status()) else { return false };
            served += status.buckets.iter().filter(|bucket| bucket.serving).count();
            status.phase == "serving"
                && status.cluster.is_some_and(|cluster| {
                    let rests = cluster.moves_under_way == 0 && cluster.moves_waiting == 0;
                    rests && cluster.nodes.iter().all(|node| node.state == "up")
                })
        });
        all && served == bucket_count
    });
    if noticed.is_err() {
        world.trace.note("the cluster has not noticed that all is well");
    }
    world.run_for(SETTLED_AFTER);
}
