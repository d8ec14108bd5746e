//! Tells the managers when a bucket has nothing left on drives that were its members, so that others may move.

use crate::lead::Leads;
use std::rc::Rc;
use std::time::Duration;
use weft_namespace::Namespace;
use weft_wire::manager::Proposal;
use weft_wire::map::Bucket;
use weft_wire::{BucketId, DriveId};

/// How often a core looks whether a move is done.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Drives are given so long to say that they hold nothing.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Looks after the moves of this core's buckets for as long as it leads any.
pub(crate) async fn run(leads: Leads) {
    let (core, incarnation, handle, map, propose) = leads.parts();
    loop {
        handle.sleep(LOOK_EVERY).await;
        if leads.is_finishing() {
            return;
        }
        let Some(newest) = map.get() else { continue };
        for (id, namespace) in leads.serving() {
            let Some(bucket) = newest.bucket(id).filter(|bucket| !bucket.former.is_empty()) else { continue };
            let left = handle.timeout(LOOK_MAX, left(&namespace, bucket)).await.unwrap_or_default();
            if !left.is_empty() {
                propose(moved(id, bucket, left, core.node, incarnation));
            }
        }
    }
}

fn moved(
    bucket: BucketId,
    by_map: &Bucket,
    drives: Vec<DriveId>,
    node: weft_wire::NodeId,
    incarnation: weft_wire::Incarnation,
) -> Proposal {
    Proposal::Moved { node, incarnation, bucket, epoch: by_map.epoch, layout: by_map.layout, drives }
}

/// The former members on which nothing is left, as this map has it.
async fn left(namespace: &Rc<Namespace>, by_map: &Bucket) -> Vec<DriveId> {
    let bucket = namespace.bucket();
    let mut left = Vec::new();
    for former in &by_map.former {
        // The bucket must know this map's members, or it could begin something new on a former one.
        if bucket.epoch() == by_map.epoch && bucket.members() == by_map.members && bucket.has_left(former.drive).await {
            left.push(former.drive);
        }
    }
    left
}
