//! Watches the node's own drives: one that goes on failing to write, or that is not there, is reported, and given up by the
//! managers until the node starts again.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use weft_drive::{DriveService, Writes};
use weft_manager::MapWatch;
use weft_reactor::Handle;
use weft_wire::map::State;
use weft_wire::{DriveId, NodeId};

/// How often drives' counters are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks that find new errors, and between them none that finds writes without one: a single error may be a passing
/// trouble, and is written again.
const WORSE_LOOKS: u32 = 4;
/// Looks until it is said again of a drive that the managers could not do without.
const AGAIN_LOOKS: u32 = 120;

/// A drive's writes of one kind as last seen, and how many looks found them worse.
#[derive(Debug, Default)]
struct Seen {
    writes: Writes,
    worse: u32,
}

impl Seen {
    /// `None`: the node could not open it, so that it fails with every look. True: it is worse again, and often enough.
    fn look(&mut self, writes: Option<Writes>) -> bool {
        let now = writes.unwrap_or(Writes { failed: self.writes.failed + 1, ..self.writes });
        let (failed, done) = (now.failed > self.writes.failed, now.done > self.writes.done);
        match (failed, done) {
            (true, _) => self.worse += 1,
            (false, true) => self.worse = 0,
            (false, false) => {}
        }
        self.writes = now;
        failed && self.worse >= WORSE_LOOKS
    }
}

/// Calls `report` for each drive of the node that fails, as long as the map doesn't know.
pub(crate) async fn drives(
    service: DriveService,
    node: NodeId,
    handle: Handle,
    map: MapWatch,
    report: Rc<dyn Fn(DriveId)>,
) {
    let mut seen: BTreeMap<DriveId, [Seen; 2]> = BTreeMap::new();
    loop {
        handle.sleep(LOOK_EVERY).await;
        let Some(newest) = map.get() else { continue };
        let takes_part = |state| matches!(state, State::Up | State::Draining);
        for id in
            newest.drives.values().filter(|drive| drive.node == node && takes_part(drive.state)).map(|drive| drive.id)
        {
            let writes = service.get(id).map(|server| server.writes());
            let kinds = seen.entry(id).or_default();
            let mut worst = None;
            for (kind, seen) in kinds.iter_mut().enumerate() {
                if seen.look(writes.map(|writes| writes[kind])) {
                    worst = worst.max(Some(seen.worse));
                }
            }
            if worst.is_some_and(|worse| (worse - WORSE_LOOKS).is_multiple_of(AGAIN_LOOKS)) {
                let errors: u64 = kinds.iter().map(|seen| seen.writes.failed).sum();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_go_on_are_told_from_passing_ones() {
        let mut seen = Seen::default();
        let mut look = |done, failed| seen.look(Some(Writes { done, failed }));
        assert!(!look(10, 0));
        // Nothing is written for a while: that is no sign of health.
        assert!(!look(10, 1) && !look(10, 1) && !look(10, 3) && !look(10, 4));
        assert!(look(10, 5) && look(10, 6));
        assert!(!look(11, 6), "it can be written again");
        assert!(!look(11, 7) && !look(12, 7) && !look(12, 8));
        // A disk that is full takes some writes and refuses others.
        assert!(!look(13, 9) && !look(14, 10) && look(15, 11));
        let mut absent = Seen::default();
        assert_eq!([(); 5].map(|()| absent.look(None)), [false, false, false, true, true]);
    }
}
