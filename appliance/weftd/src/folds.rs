//! Says when failure domains run out, and when they suffice again.

use weft_manager::MapWatch;
use weft_wire::NodeId;
use weft_wire::map::{Map, State};

/// Watches the map for as long as the node lives. The first node that is up speaks for all.
pub(crate) async fn watch(own: NodeId, map: MapWatch, tell: impl Fn(&str, String)) {
    let mut known = 0;
    loop {
        let version = map.version();
        if let Some(newest) = map.get() {
            let folded = weft_placement::folded(&newest);
            let speaks = newest.nodes.values().find(|node| node.state == State::Up).is_some_and(|node| node.id == own);
            if speaks && (folded == 0) != (known == 0) {
                let (level, text) = text(&newest, folded);
                tell(level, text);
            }
            known = folded;
        }
        map.changed_since(version).await;
    }
}

fn text(map: &Map, folded: usize) -> (&'static str, String) {
    match folded {
        0 => ("info", "every shard is in a failure domain of its own again".into()),
        _ => (
            "warn",
            format!(
                "failure domains have run out: {folded} of {} buckets have two shards in one. Bring nodes back, or add one in \
                 another domain",
                map.buckets.len()
            ),
        ),
    }
}
