//! Rebuilds in clusters of other sizes and with other drives than seeds have.

use weft_sim::scale::{ScaleOptions, rebuild};
use weft_wire::map::Protection;

#[test]
fn many_leaders_that_rebuild_on_slow_drives_get_through() {
    // Each of 64 buckets rebuilds by itself, and they meet at seven drives: what all of them would ask at once takes these
    // longer than a call may. Without pauses four times as much is read as is needed, and if steps grow regardless, nothing goes on.
    let options = ScaleOptions {
        node_bytes: 64 << 20,
        bytes_per_second: 4 << 20,
        ..ScaleOptions::new(1, 8, Protection { data: 4, parity: 2 })
    };
    let done = rebuild(&options).unwrap_or_else(|error| panic!("{error}"));
    let needed = options.node_bytes * (u64::from(options.protection.data) + 1);
    assert!(done.moved < needed * 3, "{done:?}");
    assert!(done.took < done.ideal() * 2, "{done:?}");
}
