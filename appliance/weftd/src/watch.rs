//! Watches the node's own drives: one that goes on failing to write, or that is not there, is reported, and given up by the
//! managers until the node starts again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::DriveService;
use weft_manager::MapWatch;
use weft_reactor::Handle;
use weft_wire::map::State;
use weft_wire::{BucketId, DriveId, NodeId};

/// How often drives' counters are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row that find new errors: a single one may be a passing trouble, and is written again.
const WORSE_LOOKS: u32 = 3;
/// Looks until it is said again of a drive that the managers could not do without.
const AGAIN_LOOKS: u32 = 30;

/// Calls `report` for each drive of the node that fails, as long as the map doesn't know.
pub(crate) async fn drives(
    service: DriveService,
    node: NodeId,
    handle: Handle,
    map: MapWatch,
    report: Rc<dyn Fn(DriveId)>,
) {
    // Errors as last seen, and for how many looks in a row there have been more.
    let mut seen: BTreeMap<DriveId, (u64, u32)> = BTreeMap::new();
    loop {
        handle.sleep(LOOK_EVERY).await;
        let Some(newest) = map.get() else { continue };
        let takes_part = |state| matches!(state, State::Up | State::Draining);
        for id in
            newest.drives.values().filter(|drive| drive.node == node && takes_part(drive.state)).map(|drive| drive.id)
        {
            let (before, worse) = seen.entry(id).or_default();
            // One that the node could not open fails with every look.
            let errors = service.get(id).map_or(*before + 1, |server| server.stat(BucketId::default()).write_errors);
            *worse = if errors > *before { *worse + 1 } else { 0 };
            *before = errors;
            if *worse >= WORSE_LOOKS && (*worse - WORSE_LOOKS).is_multiple_of(AGAIN_LOOKS) {
                tracing::error!(
                    drive = %id,
                    errors,
                    "the drive goes on failing to write, or is not there: the managers are asked to give it up"
                );
                report(id);
            }
        }
    }
}
