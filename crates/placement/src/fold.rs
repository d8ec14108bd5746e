//! Folding: with fewer domains than a bucket has shards, and drives enough, some domains have two of them. That is better than
//! a shard that is nowhere: a domain that dies takes two shards with it, but a drive only one. It ends by itself when there are
//! domains enough, see [`crate::next_moves`].

use std::collections::BTreeSet;
use weft_wire::map::{Bucket, Map};

/// How many buckets have two shards in one domain.
pub fn folded(map: &Map) -> usize {
    let is_folded = |bucket: &&Bucket| {
        let mut domains = BTreeSet::new();
        let nodes = bucket.members.iter().filter_map(|drive| map.nodes.get(&map.drives.get(drive)?.node));
        !nodes.map(|node| node.domain).all(|domain| domains.insert(domain))
    };
    map.buckets.iter().filter(is_folded).count()
}
