//! What the leader of a bucket does about its own place: reports that a journal's tail is copied, asks for better ensembles
//! when drives stay away, are back, or are no members any more, and gives buckets to cores that lead fewer or that stay.
//!
//! One thing at a time on each core, so that few buckets pause at once. The managers' leader decides by its own map, so it
//! does no harm that all cores plan by themselves.

use crate::lead::Leads;
use crate::reach;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use weft_namespace::Namespace;
use weft_wire::manager::{HandOverReason, Proposal};
use weft_wire::map::{Bucket, Map, State};
use weft_wire::{BucketId, CoreId, DriveId, Epoch, NodeId};

/// How often a core looks whether something could be better.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// After an ensemble has been made better: until all are, journals may lack copies.
const NEXT_AFTER: Duration = Duration::from_millis(20);
/// A drive that is away for so long is replaced in ensembles that can still write, before another one fails.
const ENSEMBLE_AFTER: Duration = Duration::from_secs(3);
/// Nothing is evened out before all nodes have been in the same state for so long.
const CALM_AFTER: Duration = Duration::from_secs(10);
/// A bucket is given away when its journal is short, or after so long.
const CHECKPOINT_MAX: Duration = Duration::from_secs(2);
/// How long a change that was proposed may take to show in the map.
const SHOW_MAX: Duration = Duration::from_secs(2);
/// Between two reports that a tail is copied.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between two words to drives of earlier ensembles that they may forget.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// What a bucket of this core could have better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    Ensemble(BucketId),
    Leader(BucketId, CoreId),
}

/// Tells the managers when the earlier ensembles of a bucket may be forgotten, until they have.
pub(crate) fn report_copied(leads: &Leads, id: BucketId, epoch: Epoch) {
    let (core, incarnation, handle, map, propose) = leads.parts();
    let Some(namespace) = leads.serving().into_iter().find(|(other, _)| *other == id).map(|(_, found)| found) else {
        return;
    };
    let (map, propose, sleeper) = (map.clone(), Rc::clone(propose), handle.clone());
    let listed = move |map: &Option<Rc<Map>>| {
        let bucket = map.as_ref().and_then(|map| map.bucket(id));
        bucket.is_some_and(|bucket| bucket.epoch == epoch && bucket.ensembles.len() > 1)
    };
    let report = async move {
        if !map.with(listed) || namespace.bucket().tail_copied().await.is_err() {
            return;
        }
        let former = map.with(|map| map.as_ref().and_then(|map| map.bucket(id)).map(former_drives)).unwrap_or_default();
        while map.with(listed) && namespace.bucket().failed().is_none() {
            propose(Proposal::TailCopied { node: core.node, incarnation, bucket: id, epoch });
            sleeper.sleep(REPORT_EVERY).await;
        }
        while namespace.bucket().failed().is_none() && !namespace.bucket().forget_journal_on(&former) {
            sleeper.sleep(FORGET_EVERY).await;
        }
    };
    handle.spawn("report a copied tail", report).detach();
}

/// Drives of earlier ensembles that are not in the newest.
fn former_drives(bucket: &Bucket) -> Vec<DriveId> {
    let newest = bucket.ensembles.first().map(|newest| newest.drives.as_slice()).unwrap_or_default();
    let earlier: BTreeSet<DriveId> =
        bucket.ensembles.iter().skip(1).flat_map(|earlier| &earlier.drives).copied().collect();
    earlier.into_iter().filter(|drive| !newest.contains(drive)).collect()
}

/// Looks after the places of this core's buckets for as long as it leads any.
pub(crate) async fn run(leads: Leads) {
    let (_, _, handle, map, _) = leads.parts();
    let (handle, map) = (handle.clone(), map.clone());
    let mut states: Vec<(NodeId, State)> = Vec::new();
    let mut since = handle.now();
    let mut seen = None;
    let mut givers = reach::Givers::default();
    let mut pause = LOOK_EVERY;
    loop {
        handle.sleep(std::mem::replace(&mut pause, LOOK_EVERY)).await;
        let Some(newest) = map.get() else { continue };
        if leads.is_finishing() {
            return;
        }
        givers.look(&newest, handle.now());
        let now: Vec<(NodeId, State)> = newest.nodes.values().map(|node| (node.id, node.state)).collect();
        if now != states {
            (states, since, seen) = (now, handle.now(), None);
        }
        let calm = handle.now().since(since);
        // A map that was looked at in vain, and when it was calm enough for everything, needs no second look.
        if calm < ENSEMBLE_AFTER || seen == Some(newest.version) {
            continue;
        }
        match plan(&leads, &newest, calm, &givers) {
            Some(wanted) => {
                make(&leads, &newest, wanted).await;
                if matches!(wanted, Move::Ensemble(_)) {
                    pause = NEXT_AFTER;
                }
            }
            None if calm >= CALM_AFTER && givers.is_empty() && all_settled(&leads) => seen = Some(newest.version),
            None => {}
        }
    }
}

/// A new leader waits for clients to tell what they hold; one that died has it wait for its whole time. With every further epoch it
/// would begin anew, so what doesn't press waits for that.
fn all_settled(leads: &Leads) -> bool {
    leads.serving().iter().all(|(_, namespace)| !namespace.waits_for_clients())
}

fn plan(leads: &Leads, map: &Map, calm: Duration, givers: &reach::Givers) -> Option<Move> {
    let serving = leads.serving();
    let ensemble = serving.iter().find(|(id, namespace)| {
        let Some(bucket) = map.bucket(*id) else { return false };
        let newest = bucket.ensembles.first().map(|newest| newest.drives.as_slice()).unwrap_or_default();
        let presses = newest.iter().any(|drive| !weft_placement::lives(map, *drive));
        let ails = newest.iter().any(|drive| !weft_placement::is_well(map, bucket, *drive));
        let may = presses || ((ails || calm >= CALM_AFTER) && !namespace.waits_for_clients());
        may && weft_placement::better_ensemble(map, *id).is_some()
    });
    if let Some((id, _)) = ensemble {
        return Some(Move::Ensemble(*id));
    }
    let (own, ..) = leads.parts();
    let leaves = map.nodes.get(&own.node).is_some_and(|node| node.state == State::Draining);
    if calm < CALM_AFTER && !leaves {
        return None;
    }
    let moves = weft_placement::balance_leaders(map);
    let ours =
        |id: &BucketId| serving.iter().any(|(own, namespace)| own == id && (leaves || !namespace.waits_for_clients()));
    let first = moves.into_iter().find(|(id, to)| ours(id) && !givers.has(to.node));
    first.map(|(id, to)| Move::Leader(id, to))
}

async fn make(leads: &Leads, map: &Map, wanted: Move) {
    let (core, incarnation, handle, watch, propose) = leads.parts();
    let (Move::Ensemble(bucket) | Move::Leader(bucket, _)) = wanted;
    let Some(epoch) = map.bucket(bucket).map(|bucket| bucket.epoch) else { return };
    let Some(namespace) = leads.serving().into_iter().find(|(id, _)| *id == bucket).map(|(_, found)| found) else {
        return;
    };
    tracing::info!(%bucket, ?wanted, "evening out");
    shorten(&namespace).await;
    propose(match wanted {
        Move::Ensemble(_) => Proposal::NewEnsemble { node: core.node, incarnation, bucket, epoch },
        Move::Leader(_, to) => {
            Proposal::HandOver { node: core.node, incarnation, bucket, epoch, to, reason: HandOverReason::Balance }
        }
    });
    let shown =
        watch.wait_for(|map| map.as_ref().and_then(|map| map.bucket(bucket)).is_none_or(|bucket| bucket.epoch > epoch));
    // Refused or lost: looked at again.
    let _ = handle.timeout(SHOW_MAX, shown).await;
}

/// A checkpoint first, so that the next epoch has little to read.
async fn shorten(namespace: &Namespace) {
    let bucket = namespace.bucket();
    let _ = bucket.handle().timeout(CHECKPOINT_MAX, bucket.checkpoint_soon()).await;
}
